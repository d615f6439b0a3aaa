//! Whatever blueprints, ids and parameters are accepted: each topic is the run's own, and no two readers share a queue.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use sluice_flow::blueprint::{Blueprint, Names, Ports, resolve_parameters};
use sluice_schema::{FlowId, WorkspaceId};

/// One of a few plain names, or now and then one put together from pieces that are as misleading as can be.
fn name(plain: &[&'static str], pieces: &[&'static str]) -> impl Strategy<Value = String> + use<> {
    let plain = prop::sample::select(plain.to_vec()).prop_map(str::to_owned);
    let pieces = [pieces, &["x", ".", "--", ":"]].concat();
    let odd = prop::collection::vec(prop::sample::select(pieces), 1..4).prop_map(|pieces| pieces.concat());
    prop_oneof![6 => plain, 1 => odd]
}

fn processor() -> impl Strategy<Value = String> {
    name(&["p", "q"], &["p", "q", ".q", "--a", "{id}"])
}

fn variant() -> impl Strategy<Value = String> {
    name(
        &["{id}", "v", "{id}.q--{workspace}--v", "v.q--{workspace}--v"],
        &["{id}", "v", ".q--a--v", ":a:f1", "{x}"],
    )
}

fn slot() -> impl Strategy<Value = String> {
    name(&["input"], &["input", "v--input", ".q--a--v--input"])
}

fn topic() -> impl Strategy<Value = String> {
    let base = name(&["x"], &["x", "x:a:f1.p--a--f1", ".p--{workspace}--{id}", "#", "{x}"]);
    let end = prop::sample::select(vec![
        ":{workspace}:{id}",
        ":{workspace}:{id}",
        ":{workspace}:{blueprint}",
        ":a:f1",
        "",
    ]);
    (base, end).prop_map(|(base, end)| format!("flow:tg:{base}{end}"))
}

fn section() -> impl Strategy<Value = Value> {
    let topics = prop::collection::vec((slot(), topic()), 1..3);
    let part = topics.prop_map(|topics| {
        let inputs: Vec<_> = topics.iter().map(|(slot, _)| slot.clone()).collect();
        json!({"topics": topics.into_iter().collect::<BTreeMap<_, _>>(), "inputs": inputs})
    });
    prop::collection::vec((processor(), variant(), part), 0..3).prop_map(|parts| {
        let parts =
            parts.into_iter().map(|(processor, variant, part)| (format!("{processor}:{variant}"), part));
        Value::Object(parts.collect())
    })
}

prop_compose! {
    fn start()(
        workspace in prop::sample::select(vec!["a", "a", "a", "a", "b", "a--b"]),
        id in prop::sample::select(vec!["f1", "f1", "f2", "f1.p--a--f1", "f1.p--a--v", "f1.x"]),
        shared in section(),
        own in section(),
        x in name(&["x"], &[":a:f1", ".q--a--v", "{id}"]),
    ) -> (String, String, String, String) {
        let blueprint = json!({"parameters": {"x": {}}, "blueprint": shared, "flow": own});
        (workspace.to_owned(), id.to_owned(), blueprint.to_string(), x)
    }
}

/// Every reader of an accepted start, by the name of its queue.
fn readers(
    (workspace, id, blueprint, x): &(String, String, String, String),
) -> Option<Vec<(String, (String, String))>> {
    let blueprint = Blueprint::read(blueprint).ok()?;
    let given = Map::from_iter([("x".to_owned(), Value::from(x.as_str()))]);
    let parameters = resolve_parameters(blueprint.parameters(), &given, |_| None).ok()?;
    let workspace = WorkspaceId::parse(workspace).unwrap();
    let id = FlowId::parse(id).unwrap();
    let names =
        Names { workspace: &workspace, id: id.as_str(), run: id.as_str(), blueprint: "bp", shared: "bp" };
    let resolved = blueprint.resolve(names, &parameters, &Ports::default()).ok()?;
    let mut found = Vec::new();
    for owned in &resolved.topology.topics {
        let topic = &owned.topic;
        let ends = [id.as_str(), "bp"].map(|name| format!(":{workspace}:{name}"));
        assert!(ends.iter().any(|end| topic.name().ends_with(end)), "{topic}");
        for subscription in &owned.subscriptions {
            let queue = format!("{}.{}.{}.{subscription}", topic.space(), topic.class(), topic.name());
            found.push((queue, (topic.to_string(), subscription.clone())));
        }
    }
    Some(found)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, max_global_rejects: 1_000_000, ..ProptestConfig::default() })]

    #[test]
    fn accepted_topics_are_the_runs_own_and_no_two_readers_share_a_queue_name(
        starts in prop::collection::vec(start(), 6..12)
    ) {
        let mut queues = BTreeMap::new();
        for start in &starts {
            for (queue, reader) in readers(start).into_iter().flatten() {
                let first = queues.entry(queue).or_insert_with(|| reader.clone());
                prop_assert_eq!(&*first, &reader);
            }
        }
    }
}
