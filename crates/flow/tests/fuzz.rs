//! Whatever text a blueprint is: it is refused with its place, or what comes of it is the flow's own and in proportion.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sluice_flow::blueprint::{Blueprint, Names, ParameterType, Ports, check_parameters, resolve_parameters};
use sluice_schema::{Topic, WorkspaceId};

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

/// What may come of an input: each placeholder may become one of the values below.
fn room(input: &[u8]) -> usize {
    64 * input.len() + (64 << 10)
}

/// What a caller gives for every parameter; the second is as misleading as can be.
const VALUES: [&str; 2] = ["x", ":b:f2.q--b--v"];

fn start(blueprint: &Blueprint, value: &str, room: usize) {
    let given: Map<String, Value> =
        blueprint.parameters().iter().map(|p| (p.name.clone(), Value::from(value))).collect();
    let type_of = |_: &str| Some(ParameterType::read(r#"{"type": "integer", "min": 1, "default": 7}"#));
    let workspace = WorkspaceId::parse("a").unwrap();
    let names = Names { workspace: &workspace, id: "f1", run: "f1-r2", blueprint: "bp", shared: "bp-2" };
    for given in [given, Map::new()] {
        let Ok(parameters) = resolve_parameters(blueprint.parameters(), &given, type_of) else { continue };
        let _ = check_parameters(blueprint.parameters(), &parameters, type_of);
        let Ok(resolved) = blueprint.resolve(names, &parameters, &Ports::default()) else { continue };
        let topology = &resolved.topology;
        let mut queues = BTreeMap::new();
        for owned in &topology.topics {
            let topic = &owned.topic;
            assert!([":a:f1-r2", ":a:bp-2"].iter().any(|end| topic.name().ends_with(end)), "{topic}");
            for subscription in &owned.subscriptions {
                let queue = format!("{}.{}.{}.{subscription}", topic.space(), topic.class(), topic.name());
                assert!(queue.len() <= Topic::QUEUE_BYTES_MAX, "{queue}");
                let earlier = queues.insert(queue, (topic.clone(), subscription.clone()));
                assert_eq!(earlier, None, "two readers share a queue name");
            }
        }
        let written = serde_json::to_string(topology).unwrap().len();
        let told: usize = resolved.warnings.iter().map(String::len).sum();
        assert!(written <= room && told <= room, "{written} bytes, {told} of warnings");
    }
}

#[test]
fn any_blueprint_is_refused_with_its_place_or_stays_within_its_walls() {
    let standard = sluice_schema::standard::BLUEPRINTS;
    let known: Vec<&[u8]> = standard.iter().map(|(_, text)| text.as_bytes()).collect();
    sluice_fuzz::run("blueprints", &corpus("blueprints"), 1_500, &known, &|input| {
        let text = String::from_utf8_lossy(input);
        let blueprint = match Blueprint::read(&text) {
            Ok(blueprint) => blueprint,
            Err(error) => {
                let said = error.to_string();
                assert!(!said.is_empty() && said.len() <= room(input), "{} bytes", said.len());
                return;
            }
        };
        let _ = blueprint.check_doors(&WorkspaceId::parse("a").unwrap());
        let told: usize = blueprint.undeclared().iter().map(String::len).sum();
        assert!(told <= room(input), "{told} bytes of notes");
        for value in VALUES {
            start(&blueprint, value, room(input));
        }
    });
}

#[test]
fn any_parameter_type_is_read() {
    let known: [&[u8]; 3] = [
        br#"{"type": "integer", "min": 0, "max": 32768, "default": 2000, "required": true}"#,
        br#"{"type": "string", "enum": [{"id": "a"}, 2, 1e-7], "default": 1e16}"#,
        br#"{"type": "boolean", "minimum": "0.5", "maximum": null}"#,
    ];
    let declared =
        br#"{"blueprint": {}, "flow": {}, "parameters": {"p": {"type": "t"}, "q": {"controlled-by": "p"}}}"#;
    let blueprint = Blueprint::read(std::str::from_utf8(declared).unwrap()).unwrap();
    sluice_fuzz::run("parameter-types", &corpus("parameter-types"), 2_000, &known, &|input| {
        let text = String::from_utf8_lossy(input);
        let type_of = |_: &str| Some(ParameterType::read(&text));
        let declared = blueprint.parameters();
        for given in [Map::new(), Map::from_iter([("p".to_owned(), Value::from("7"))])] {
            let Ok(parameters) = resolve_parameters(declared, &given, type_of) else { continue };
            // What a type gives by default may be what it refuses.
            let _ = check_parameters(declared, &parameters, type_of);
            assert!(parameters.iter().all(|(_, value)| value.len() <= input.len() + 400));
        }
    });
}
