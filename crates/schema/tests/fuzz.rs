//! Whatever bytes people, callers and services bring: names are checked or refused, bodies become questions or errors.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

use serde_json::Value;
use sluice_schema::api::{self, Caller, Service};
use sluice_schema::doors::{self, Home, Use};
use sluice_schema::ids::Name;
use sluice_schema::{FlowId, Topic, WorkspaceId, system};

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

#[test]
fn any_topic_id_is_checked_and_opens_no_door_of_others() {
    let workspace = WorkspaceId::parse("a").unwrap();
    let home = Home { workspace: &workspace, names: &["f1", "b1"] };
    let known: [&[u8]; 8] = [
        b"flow:tg:chunk-load:a:f1",
        b"request:tg:prompt:a:f1",
        b"response:tg:prompt:a:b1",
        b"request:tg:librarian:a",
        b"request:tg:config",
        b"notify:tg:config",
        b"flow:tg:chunk-load:other:f1",
        b"request:tg:librarian:other",
    ];
    sluice_fuzz::run("topics", &corpus("topics"), 5_000, &known, &|input| {
        let text = String::from_utf8_lossy(input);
        let Ok(topic) = Topic::parse(&text) else { return };
        assert_eq!(topic.as_str(), text);
        assert_eq!(format!("{}:{}:{}", topic.class(), topic.space(), topic.name()), text);
        assert!(!topic.space().is_empty() && !topic.space().contains(':') && !topic.name().is_empty());
        assert!(
            text.len() <= Topic::EXCHANGE_BYTES_MAX && text.bytes().all(|byte| (b' '..0x7f).contains(&byte))
        );
        for wanted in [Use::Consume, Use::Produce, Use::Call, Use::Expose] {
            if doors::check(&topic, wanted, home).is_err() {
                continue;
            }
            let is_own = [":a:f1", ":a:b1"].iter().any(|end| topic.name().ends_with(end));
            let is_neighbour = topic.name().ends_with(":a") && system::is_system(&topic);
            assert!(topic.space() == "tg", "{topic}");
            assert!(is_own || (wanted == Use::Call && is_neighbour), "{wanted:?} {topic}");
        }
    });
}

#[test]
fn any_id_is_plain_or_refused() {
    let known: [&[u8]; 5] = [b"default", b"a--b", b"f1.x_2", b"f1-r2", b"\xc3\xa9"];
    sluice_fuzz::run("ids", &corpus("ids"), 3_000, &known, &|input| {
        let text = String::from_utf8_lossy(input);
        let is_plain = |more: &str| {
            text.len() <= 128 && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        if let Ok(id) = WorkspaceId::parse(&text) {
            assert!(id.as_str() == text && is_plain("-") && text.len() <= 63);
            assert!(Topic::parse(&format!("request:tg:config:{id}")).is_ok());
        }
        if let Ok(id) = FlowId::parse(&text) {
            assert!(id.as_str() == text && is_plain("-._"));
        }
        if let Ok(name) = Name::parse(&text) {
            assert!(name.as_str() == text && is_plain("-._"));
        }
    });
}

/// The service that an input's first line names, and the rest.
fn addressed(input: &[u8]) -> Option<(&'static Service, &[u8])> {
    let end = input.iter().position(|byte| *byte == b'\n')?;
    let service = api::find(std::str::from_utf8(&input[..end]).ok()?)?;
    Some((service, &input[end + 1..]))
}

#[test]
fn any_body_becomes_a_typed_question_or_a_named_error() {
    let workspace = WorkspaceId::parse("a").unwrap();
    sluice_fuzz::run("questions", &corpus("questions"), 4_000, &[], &|input| {
        let Some((service, body)) = addressed(input) else { return };
        let Ok(body) = serde_json::from_slice::<Value>(body) else { return };
        for parts in [false, true] {
            let caller = Caller { handle: "u1", default_workspace: &workspace, parts };
            let call = match service.encode(body.clone(), &caller) {
                Ok(call) => call,
                Err(error) => {
                    assert!(!error.to_error().r#type.is_empty() && !error.to_error().message.is_empty());
                    continue;
                }
            };
            let sent: Value = serde_json::from_slice(&call.body).unwrap();
            assert!(sent.is_object() && (parts || !call.streaming));
            if service.name == "iam" {
                // What the gateway alone may say.
                assert_eq!(sent["actor"], "u1");
                for own in ["api_key", "client_ip", "request_id", "capability", "resource_json"] {
                    assert!(sent[own].as_str().is_none_or(str::is_empty), "{own}");
                }
            }
            let room = 32 * input.len() + (64 << 10);
            assert!(call.body.len() <= room, "{} bytes of {}", call.body.len(), input.len());
        }
    });
}

#[test]
fn any_answer_is_shown_or_refused_and_ends_in_an_error_where_it_has_one() {
    let workspace = WorkspaceId::parse("a").unwrap();
    sluice_fuzz::run("answers", &corpus("answers"), 4_000, &[], &|input| {
        let Some((service, body)) = addressed(input) else { return };
        for parts in [false, true] {
            let caller = Caller { handle: "u1", default_workspace: &workspace, parts };
            let Ok(call) = service.encode(serde_json::json!({"operation": "list"}), &caller) else {
                continue;
            };
            let Ok(reply) = call.decode(body) else { continue };
            assert!(reply.body.is_object());
            assert_eq!(reply.error.is_some(), reply.body.get("error").is_some(), "{}", reply.body);
            assert!(parts || !reply.last || call.sends(&reply), "who takes no parts waits for ever");
        }
    });
}
