//! Recorded conversations of the reference system: every bus body parses as its message and is written again the same,
//! and what its gateway made of questions and answers is what ours makes of them, but for the deviations named here.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use sluice_schema::api::{self, Caller};
use sluice_schema::{Class, Topic, WorkspaceId, message as m, operation, wire};

/// One message on the bus.
struct Published {
    place: String,
    topic: Topic,
    id: Option<String>,
    body: Value,
}

fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn captures(ending: &str) -> Vec<(String, std::path::PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = files
        .filter_map(|path| {
            let scenario = path.file_name()?.to_str()?.strip_suffix(ending)?.to_owned();
            (!scenario.contains('.')).then_some((scenario, path))
        })
        .collect();
    found.sort();
    assert!(found.len() >= 14, "only {} captures end in {ending}", found.len());
    found
}

/// `space.class.name` is how a topic is named on the broker. The name may hold dots and colons.
fn topic_of(exchange: &str) -> Topic {
    let mut parts = exchange.splitn(3, '.');
    let (space, class, name) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    Topic::parse(&format!("{class}:{space}:{name}")).unwrap()
}

fn exchange_of(topic: &Topic) -> String {
    format!("{}.{}.{}", topic.space(), topic.class(), topic.name())
}

/// What a scenario put on the bus; the recorder's own probes have no exchange.
fn published(scenario: &str, file: &Path) -> Vec<Published> {
    let recorded =
        lines(file).into_iter().filter(|line| line["event"] == "publish" && line["exchange"] != "");
    recorded
        .map(|mut line| Published {
            place: format!("{scenario} {}", line["n"]),
            topic: topic_of(line["exchange"].as_str().unwrap()),
            id: line["properties"]["headers"]["id"].as_str().map(str::to_owned),
            body: line["body"].take(),
        })
        .collect()
}

/// The rule for sameness: the same members, none missing and none more, in any order. Where the reference system writes
/// null in a member that cannot be null for us, we write what null means: at the top the message's default for that
/// member, further down the empty value of its type.
fn assert_same(place: &str, ours: &Value, theirs: &Value, default: Option<&Value>) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            let names = |object: &Map<String, Value>| {
                object.keys().cloned().collect::<std::collections::BTreeSet<_>>()
            };
            assert_eq!(names(ours), names(theirs), "{place}");
            for (name, value) in ours {
                let default = default.and_then(|default| default.get(name));
                let place = format!("{place}.{name}");
                match (&theirs[name], default) {
                    (Value::Null, Some(default)) => assert_eq!(value, default, "{place}"),
                    (Value::Null, None) => assert!(is_empty(value), "{place}: {value}"),
                    (theirs, _) => assert_same(&place, value, theirs, None),
                }
            }
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            assert_eq!(ours.len(), theirs.len(), "{place}");
            for (at, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                assert_same(&format!("{place}[{at}]"), ours, theirs, None);
            }
        }
        _ => assert_eq!(ours, theirs, "{place}"),
    }
}

fn is_empty(value: &Value) -> bool {
    [json!(null), json!(""), json!(0), json!(false), json!([]), json!({})].contains(value)
}

fn default_of<M: Default + Serialize>() -> Value {
    serde_json::to_value(M::default()).unwrap()
}

fn round_trip<M: DeserializeOwned + Default + Serialize>(place: &str, body: &Value) {
    let message: M = wire::decode(body.to_string().as_bytes()).unwrap_or_else(|e| panic!("{place}: {e}"));
    let written: Value = serde_json::from_slice(&wire::encode(&message)).unwrap();
    assert_same(place, &written, body, Some(&default_of::<M>()));
}

#[test]
fn every_recorded_body_parses_as_its_message_and_is_written_the_same() {
    let mut seen = BTreeMap::new();
    for (scenario, file) in captures(".jsonl").iter().filter(|(scenario, _)| scenario != "topology") {
        for Published { place, topic, body, .. } in published(scenario, file) {
            let base = topic.name().split(':').next().unwrap().to_owned();
            let place = format!("{place} {topic}");
            match (topic.class(), base.as_str()) {
                (Class::Request, "config") => round_trip::<m::ConfigRequest>(&place, &body),
                (Class::Response, "config") => round_trip::<m::ConfigResponse>(&place, &body),
                (Class::Notify, "config") => round_trip::<m::ConfigPush>(&place, &body),
                (Class::Notify, "audit-events") => round_trip::<m::AuditEvent>(&place, &body),
                (Class::Request, "flow") => round_trip::<m::FlowRequest>(&place, &body),
                (Class::Response, "flow") => round_trip::<m::FlowResponse>(&place, &body),
                (Class::Request, "iam") => round_trip::<m::IamRequest>(&place, &body),
                (Class::Response, "iam") => round_trip::<m::IamResponse>(&place, &body),
                (Class::Request, "librarian") => round_trip::<m::LibrarianRequest>(&place, &body),
                (Class::Response, "librarian") => round_trip::<m::LibrarianResponse>(&place, &body),
                (Class::Request, "prompt") => round_trip::<m::PromptRequest>(&place, &body),
                (Class::Response, "prompt") => round_trip::<m::PromptResponse>(&place, &body),
                (Class::Request, "text-completion") => round_trip::<m::TextCompletionRequest>(&place, &body),
                (Class::Response, "text-completion") => {
                    round_trip::<m::TextCompletionResponse>(&place, &body)
                }
                (Class::Flow, "text-document-load") => round_trip::<m::TextDocument>(&place, &body),
                (Class::Flow, "chunk-load") => round_trip::<m::Chunk>(&place, &body),
                (Class::Flow, "triples-store") => round_trip::<m::Triples>(&place, &body),
                other => panic!("{place}: no message is known for {other:?}"),
            }
            *seen.entry((topic.class(), base)).or_insert(0) += 1;
        }
    }
    assert_eq!(seen.len(), 17, "{seen:?}");
    assert!(seen.values().sum::<i32>() > 300, "{seen:?}");
}

#[test]
fn every_recorded_name_is_a_topic_and_back() {
    let mut names = Vec::new();
    for (scenario, file) in captures(".jsonl") {
        match scenario.as_str() {
            "topology" => {
                let stages = lines(&file);
                let exchanges = stages.iter().flat_map(|stage| stage["exchanges"].as_array().unwrap());
                names.extend(exchanges.map(|exchange| exchange["name"].as_str().unwrap().to_owned()));
            }
            _ => names.extend(published(&scenario, &file).iter().map(|message| exchange_of(&message.topic))),
        }
    }
    assert!(names.len() > 300);
    for name in names {
        let topic = topic_of(&name);
        assert_eq!(exchange_of(&topic), name);
        assert_eq!(topic.as_str().parse(), Ok(topic.clone()));
    }
}

/// A question of a client, with what it got back in order.
struct Asked {
    place: String,
    service: String,
    parts: bool,
    workspace: String,
    body: Value,
    answers: Vec<Value>,
}

/// The questions of a scenario that reached the bus. The gateway refused the others: a status other than 200, or an
/// error that is a text or its own.
fn asked(scenario: &str, file: &Path) -> Vec<Asked> {
    let mut asked = Vec::new();
    for (at, line) in lines(file).into_iter().enumerate() {
        let place = format!("{scenario} api {at}");
        if line["via"] == "http" {
            let error = &line["response"]["error"];
            if line["status"] != 200 || error.is_string() || error["type"] == "gateway-error" {
                continue;
            }
            let path = line["path"].as_str().unwrap();
            let mut body = line["request"].clone();
            // The gateway writes the caller's workspace into bodies that lack one.
            let workspace = body["workspace"].as_str().unwrap_or("default").to_owned();
            if path == "/api/v1/config" {
                body["workspace"] = workspace.as_str().into();
            }
            let service = path.rsplit('/').next().unwrap().to_owned();
            asked.push(Asked {
                place,
                service,
                parts: false,
                workspace,
                body,
                answers: vec![line["response"].clone()],
            });
        } else if let Some(service) = line["frame"]["service"].as_str() {
            let frames = line["frames_back"].as_array().unwrap();
            if frames.iter().any(|frame| frame.get("error").is_some()) {
                continue;
            }
            let (last, before) = frames.split_last().unwrap();
            assert!(
                last["complete"] == true && before.iter().all(|frame| frame["complete"] == false),
                "{place}"
            );
            asked.push(Asked {
                place,
                service: service.to_owned(),
                parts: true,
                workspace: "default".to_owned(),
                body: line["frame"]["request"].clone(),
                answers: frames.iter().map(|frame| frame["response"].clone()).collect(),
            });
        }
    }
    asked
}

/// Whether a message on the bus is a client's question to a service, passed on by the gateway.
fn is_question(message: &Published, asked: &Asked) -> bool {
    let service = match asked.service.as_str() {
        "collection-management" => "collection",
        name => name,
    };
    let operation = message.body["operation"].as_str().unwrap_or_default();
    message.topic.class() == Class::Request
        && match service {
            "iam" => message.topic.name() == "iam" && operation::of_service("iam", operation).is_some(),
            "config" | "flow" | "librarian" => {
                message.topic.name() == format!("{service}:{}", asked.workspace)
            }
            _ => message.topic.name().starts_with(&format!("{service}:{}:", asked.workspace)),
        }
}

#[test]
fn questions_and_answers_are_translated_as_recorded() {
    let workspace = WorkspaceId::existing("default");
    let (mut compared, mut failures) = (0, 0);
    for (scenario, file) in captures(".api.jsonl") {
        let bus_file = file.with_file_name(format!("{scenario}.jsonl"));
        let bus = published(&scenario, &bus_file);
        let mut taken = std::collections::BTreeSet::new();
        for asked in asked(&scenario, &file) {
            let place = &asked.place;
            let service = api::find(&asked.service).unwrap_or_else(|| panic!("{place}: {}", asked.service));
            let caller = Caller { handle: "anonymous", default_workspace: &workspace, parts: asked.parts };
            let call = service.encode(asked.body.clone(), &caller).unwrap_or_else(|e| panic!("{place}: {e}"));
            let mut ours: Value = serde_json::from_slice(&call.body).unwrap();

            // Deviation 1: over HTTP we do not ask services to stream, since the caller gets one message only.
            if !asked.parts && asked.body["streaming"] == true {
                assert_eq!(ours["streaming"], false, "{place}");
                ours["streaming"] = true.into();
            }
            let found = bus.iter().enumerate().find(|(at, message)| {
                !taken.contains(at) && is_question(message, &asked) && questions_match(&ours, &message.body)
            });
            let (at, question) = found.unwrap_or_else(|| panic!("{place}: nothing on the bus equals {ours}"));
            taken.insert(at);

            let answers = bus
                .iter()
                .filter(|message| message.topic.class() == Class::Response && message.id == question.id);
            let mut shown = Vec::new();
            for answer in answers {
                let reply = call.decode(answer.body.to_string().as_bytes()).unwrap();
                assert_eq!(reply.body.get("error").is_some(), reply.error.is_some(), "{place}");
                if call.sends(&reply) {
                    shown.push(reply);
                }
            }
            assert_eq!(shown.len(), asked.answers.len(), "{place}");
            let mut left = shown.len();
            for (mut reply, theirs) in shown.into_iter().zip(&asked.answers) {
                left -= 1;
                assert_eq!(reply.last, left == 0, "{place}");
                // Deviation 2: the reference gateway loses the error of a service; we tell it, beside the other members.
                if let Some(error) = reply.error.take() {
                    let told = reply.body.as_object_mut().unwrap().shift_remove("error");
                    assert_eq!(
                        told,
                        Some(json!({"type": error.r#type, "message": error.message})),
                        "{place}"
                    );
                    failures += 1;
                }
                assert_eq!(&reply.body, theirs, "{place}");
                compared += 1;
            }
        }
    }
    assert!(compared > 45, "{compared}");
    assert_eq!(failures, 12);
}

/// As [`assert_same`], for finding: null on their side is whatever we write as unset.
fn questions_match(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            ours.len() == theirs.len()
                && ours.iter().all(|(name, value)| {
                    theirs.get(name).is_some_and(|theirs| questions_match(value, theirs))
                })
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            ours.len() == theirs.len()
                && ours.iter().zip(theirs).all(|(ours, theirs)| questions_match(ours, theirs))
        }
        (ours, Value::Null) => is_empty(ours),
        (ours, theirs) => ours == theirs,
    }
}

#[test]
fn what_the_recorded_gateway_refused_never_reaches_the_bus() {
    let workspace = WorkspaceId::existing("default");
    let caller = Caller { handle: "u", default_workspace: &workspace, parts: false };
    // Deviation 3: the reference gateway calls it `gateway-error` and says `'key'`.
    let body = json!({"operation": "put", "workspace": "default", "values": [{"type": "demo"}]});
    let refused = api::find("config").unwrap().encode(body, &caller).err().unwrap().to_error();
    assert_eq!(
        (refused.r#type.as_str(), refused.message.as_str()),
        ("request-error", "'values[0].key' is missing")
    );

    // Unknown operations and kinds are not in the table.
    for (kind, name) in [("config", "frob"), ("flow", "frob"), ("nokind", "x")] {
        assert_eq!(operation::of_service(kind, name), None);
    }
    assert!(api::find("nope").is_none());
    // Deviation 4: `text-load` was refused with 404; we serve it.
    assert!(operation::find(operation::Kind::FlowService, "text-load").is_some());
}

#[test]
fn an_imported_frame_becomes_the_recorded_message() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
    let frame = lines(&folder.join("triples-import.api.jsonl"))[0]["frame"].clone();
    let bus = published("triples-import", &folder.join("triples-import.jsonl"));
    let theirs = bus.iter().find(|message| message.topic.class() == Class::Flow).unwrap();
    let import = api::find_import("triples").unwrap();
    let ours: Value = serde_json::from_slice(&import.encode(frame.clone()).unwrap()).unwrap();
    assert_eq!(ours, theirs.body);
    let export = api::find_export("triples").unwrap();
    assert_eq!(export.decode(theirs.body.to_string().as_bytes()).unwrap(), frame);
}
