//! Every operation, through both doors, beside what the reference system answered.

use crate::common::*;
use serde_json::Value;
use sluice_bus::Embedded;
use sluice_schema::message::{ConfigRequest, ConfigResponse};
use sluice_schema::wire;
use sluice_sdk::{Apply, ConfigError, Position};

async fn house() -> (Embedded, Store, Instance) {
    let (broker, store) = (Embedded::in_memory(), Store::new());
    let instance = Instance::start(&broker, &store).await;
    (broker, store, instance)
}

/// An answer without what only ours tells.
fn as_reference(answer: &ConfigResponse) -> Value {
    let mut answer = answer.clone();
    answer.values.iter_mut().for_each(|value| value.version = 0);
    serde_json::from_slice(&wire::encode(&answer)).unwrap()
}

#[tokio::test]
async fn the_recorded_conversation_goes_the_same_way() {
    let recorded = include_str!("../../../schema/tests/captures/config.jsonl");
    let (broker, _store, house) = house().await;
    let seed = vec![
        value("parameter-type", "chunk-size", r#"{"type":"integer","default":2000}"#),
        value("parameter-type", "llm-model", r#"{"type":"string","default":"fake-model"}"#),
    ];
    house.system.put("default", seed).await.unwrap();
    // The registry entry goes in quietly, so that versions stay in step with the recording.
    let entry = value_in("__workspaces__", "workspace", "default", "{\"enabled\": true}");
    house.system.apply(Apply { puts: vec![entry], quiet: true, ..Default::default() }).await.unwrap();
    let user = house.user("default").await;
    let notices = Listener::attach(&broker).await;

    let mut answer: Option<(String, ConfigResponse)> = None;
    let (mut answers, mut told) = (0, 0);
    for line in recorded.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let body = &line["body"];
        match line["exchange"].as_str().unwrap_or_default() {
            "tg.request.config:default" => {
                let request: ConfigRequest = serde_json::from_value(body.clone()).unwrap();
                answer = Some((request.operation.clone(), ask(&user, request).await));
            }
            "tg.notify.config" => {
                let ours: Value = serde_json::from_slice(&notices.next_body().await).unwrap();
                assert_eq!(&ours, body);
                told += 1;
            }
            "tg.response.config:default" => {
                let (operation, ours) = answer.take().expect("a question first");
                let mut expected = body.clone();
                match operation.as_str() {
                    // Ours tells the version that was written.
                    "put" | "delete" => {
                        assert!(ours.version > 0);
                        expected["version"] = ours.version.into();
                    }
                    // Ours takes null for an empty list.
                    "get" if !body["error"].is_null() => {
                        expected["error"] = Value::Null;
                        expected["version"] = ours.version.into();
                    }
                    _ => {}
                }
                assert_eq!(as_reference(&ours), expected, "{operation}");
                answers += 1;
            }
            _ => {}
        }
    }
    assert!(answers >= 9 && told == 2, "{answers} answers, {told} notices");
    house.stop().await;
}

#[tokio::test]
async fn both_doors_answer_what_they_should_and_no_more() {
    let (_broker, _store, house) = house().await;
    house.register("acme").await;
    house.register("other").await;
    house.system.put("other", vec![value("tool", "secret", "s")]).await.unwrap();
    let user = house.user("acme").await;
    let written = ask(
        &user,
        ConfigRequest {
            workspace: "other".into(),
            values: vec![value("tool", "b", "1"), value("tool", "a", "2"), value("prompt", "p", "3")],
            ..request("put")
        },
    )
    .await;

    let answer = ask(&user, ConfigRequest { r#type: "tool".into(), ..request("list") }).await;
    assert_eq!((answer.directory, answer.version), (vec!["a".to_owned(), "b".to_owned()], written.version));
    let answer = ask(&user, ConfigRequest { workspace: "other".into(), ..request("config") }).await;
    let types: Vec<_> = answer.config.keys().map(String::as_str).collect();
    assert_eq!(types, ["prompt", "tool"]);
    assert_eq!(answer.config["tool"].len(), 2);
    let keys = vec![key("tool", "a"), key("tool", "secret")];
    let answer = ask(&user, ConfigRequest { keys, workspace: "other".into(), ..request("get") }).await;
    assert_eq!(answer.values[0].value.as_deref(), Some("2"));
    assert_eq!((answer.values[1].value.as_deref(), answer.values[1].version), (None, 0));
    for internal in ["getvalues-all-ws", "getkeys-all-ws", "getvalues-many", "apply", "nonsense"] {
        let error = ask(&user, request(internal)).await.error.unwrap();
        assert_eq!(error.r#type, "bad-operation");
    }

    let all = house.system.getvalues_all("tool").await.unwrap();
    let found: Vec<_> = all.values.iter().map(|v| (v.workspace.as_str(), v.key.as_str())).collect();
    assert_eq!(found, [("acme", "a"), ("acme", "b"), ("other", "secret")]);
    let names =
        house.system.call(&ConfigRequest { r#type: "tool".into(), ..request("getkeys-all-ws") }).await;
    assert!(names.unwrap().values.iter().all(|v| v.value.as_deref() == Some("")));
    let refused = house.system.call(&request("getvalues")).await.unwrap_err().to_string();
    assert_eq!(refused, "config refused (bad-request): Workspace is required");

    let gone = ask(
        &user,
        ConfigRequest { keys: vec![key("prompt", "p"), key("prompt", "absent")], ..request("delete") },
    );
    assert_eq!(gone.await.version, written.version + 1);
    let answer = ask(&user, request("config")).await;
    assert!(!answer.config.contains_key("prompt"), "a type without keys is not there");
    house.stop().await;
}

#[tokio::test]
async fn a_value_that_is_no_text_is_refused_in_words_that_help() {
    let (_broker, _store, house) = house().await;
    let body = br#"{"operation":"put","workspace":"a","values":[{"type":"t","key":"k","value":{"x":1}}]}"#;
    let topic = "request:tg:config".parse().unwrap();
    let patience = sluice_bus::Patience::total(DEADLINE);
    let question = sluice_bus::Message::new(&body[..]);
    let mut call = house.process.replies.ask(&topic, question, patience).await.unwrap();
    let answer: ConfigResponse = wire::decode(&call.next().await.unwrap().body).unwrap();
    let error = answer.error.unwrap();
    assert_eq!(error.r#type, "config-error");
    assert!(error.message.contains("values must be a list of {type,key,value}"), "{}", error.message);
    house.stop().await;
}

#[tokio::test]
async fn users_cannot_write_what_the_flow_service_manages() {
    let (_broker, _store, house) = house().await;
    house.register("acme").await;
    let user = house.user("acme").await;
    let only = ConfigRequest { values: vec![value("flow", "f", "{}")], ..request("put") };
    let error = ask(&user, only).await.error.unwrap();
    assert!(error.r#type == "config-error" && error.message.contains("flow service"), "{error:?}");
    let mixed = vec![value("processor:chunker", "f", "{}"), value("tool", "t", "{}")];
    let answer = ask(&user, ConfigRequest { values: mixed, ..request("put") }).await;
    assert_eq!(answer.skipped, [key("processor:chunker", "f")]);
    let dump = ask(&user, request("config")).await.config;
    assert_eq!(dump.keys().collect::<Vec<_>>(), ["tool"]);
    let quiet = ConfigRequest { quiet: true, values: vec![value("tool", "t", "{}")], ..request("put") };
    assert_eq!(ask(&user, quiet).await.error.unwrap().r#type, "bad-request");
    house.stop().await;
}

#[tokio::test]
async fn compare_and_set_holds_for_every_key_or_nothing_happens() {
    let (_broker, _store, house) = house().await;
    house.register("acme").await;
    let user = house.user("acme").await;
    let create = ConfigRequest {
        values: vec![value("tool", "t", "1")],
        r#if: vec![expect("", "tool", "t", 0)],
        ..request("put")
    };
    let first = ask(&user, create.clone()).await;
    assert_eq!(first.error, None);
    let error = ask(&user, create).await.error.unwrap();
    assert_eq!(error.r#type, "version-conflict");
    let said = format!("'tool/t' in workspace 'acme' is version {}, expected absent", first.version);
    assert_eq!(error.message, said);

    let got = house.system.get("acme", "tool", "t").await.unwrap().unwrap();
    assert_eq!(got.version, first.version);
    let stale = ConfigRequest {
        keys: vec![key("tool", "t")],
        r#if: vec![expect("", "tool", "t", first.version), expect("", "tool", "u", 7)],
        ..request("delete")
    };
    assert_eq!(ask(&user, stale).await.error.unwrap().r#type, "version-conflict");
    assert!(house.system.get("acme", "tool", "t").await.unwrap().is_some());
    let delete = ConfigRequest {
        keys: vec![key("tool", "t")],
        r#if: vec![expect("", "tool", "t", first.version)],
        ..request("delete")
    };
    assert_eq!(ask(&user, delete).await.error, None);
    let again = Apply {
        expect: vec![expect("acme", "tool", "t", first.version)],
        puts: vec![value_in("acme", "tool", "t", "2")],
        ..Default::default()
    };
    let conflict = house.system.apply(again).await.unwrap_err();
    assert!(matches!(&conflict, ConfigError::Conflict(said) if said.contains("is absent")), "{conflict}");
    house.stop().await;
}

#[tokio::test]
async fn apply_is_one_step_across_workspaces() {
    let (broker, _store, house) = house().await;
    house.system.put("a", vec![value("t", "old", "1")]).await.unwrap();
    let notices = Listener::attach(&broker).await;
    let good = Apply {
        expect: vec![expect("b", "t", "new", 0)],
        puts: vec![value_in("b", "t", "new", "2"), value_in("__flows__", "flow-wish", "b/f", "{}")],
        deletes: vec![key_in("a", "t", "old")],
        ..Apply::default()
    };
    let version = house.system.apply(good.clone()).await.unwrap();
    let push = notices.next().await;
    assert_eq!(push.version, version);
    assert_eq!(
        push.changes.into_iter().collect::<Vec<_>>(),
        [("t".to_owned(), vec!["b".into(), "a".into()])]
    );
    assert!(matches!(house.system.apply(good).await, Err(ConfigError::Conflict(_))));
    let all = house.system.getvalues_all("t").await.unwrap();
    assert_eq!((all.values.len(), all.values[0].workspace.as_str(), all.version), (1, "b", version));
    assert_eq!(house.system.apply(Apply::default()).await.unwrap(), version, "an empty apply only checks");
    house.stop().await;
}

#[tokio::test]
async fn quiet_writes_keep_the_version_and_still_compare() {
    let (broker, _store, house) = house().await;
    let before = house.system.put("a", vec![value("t", "k", "1")]).await.unwrap();
    let notices = Listener::attach(&broker).await;
    let lease = |expected| Apply {
        expect: vec![expect("__flows__", "flow-lease", "leader", expected)],
        puts: vec![value_in("__flows__", "flow-lease", "leader", "me")],
        deletes: Vec::new(),
        quiet: true,
        ..Apply::default()
    };
    let first = house.system.apply(lease(0)).await.unwrap();
    let second = house.system.apply(lease(first)).await.unwrap();
    assert!(matches!(house.system.apply(lease(first)).await, Err(ConfigError::Conflict(_))));
    let got = house.system.get("__flows__", "flow-lease", "leader").await.unwrap().unwrap();
    assert_eq!(got.version, second);

    let types = ["flow-lease".to_owned()];
    let changed = house.system.getvalues_many(&types, before).await.unwrap();
    assert_eq!((changed.version, changed.since, changed.values.len()), (before, before, 1));
    let after = house.system.put("a", vec![value("t", "k", "2")]).await.unwrap();
    assert_eq!(after, before + 1);
    assert_eq!(notices.next().await.version, after, "the quiet writes were told to nobody");
    let unchanged = house.system.getvalues_many(&types, after).await.unwrap();
    assert_eq!(unchanged.values.len(), 0);
    house.stop().await;
}

#[tokio::test]
async fn getvalues_many_tells_what_changed_and_its_size_does_not_grow_with_the_rest() {
    let (_broker, _store, house) = house().await;
    let many = (0..500).map(|n| value("other", &format!("k{n}"), &"x".repeat(1_000))).collect();
    house.system.put("a", many).await.unwrap();
    house.system.put("a", vec![value("t", "k1", "1"), value("t", "k2", "2")]).await.unwrap();
    let since = house.system.put("b", vec![value("u", "k3", "3")]).await.unwrap();
    let types = ["t".to_owned(), "u".to_owned()];

    let whole = house.system.getvalues_many(&types, 0).await.unwrap();
    assert_eq!((whole.since, whole.version, whole.values.len()), (0, since, 3));
    assert!(wire::encode(&whole).len() < 1_000);
    house.system.delete("a", vec![key("t", "k1"), key("other", "k1")]).await.unwrap();
    house.system.put("b", vec![value("t", "k4", "4"), value("other", "k", "5")]).await.unwrap();
    let part = house.system.getvalues_many(&types, since).await.unwrap();
    assert_eq!((part.since, part.version), (since, since + 2));
    assert_eq!(part.deleted, [key_in("a", "t", "k1")]);
    let found: Vec<_> =
        part.values.iter().map(|v| (v.workspace.as_str(), v.key.as_str(), v.version)).collect();
    assert_eq!(found, [("b", "k4", since + 2)]);
    house.system.put("a", vec![value("t", "k1", "again")]).await.unwrap();
    let part = house.system.getvalues_many(&types, since).await.unwrap();
    assert_eq!((part.deleted.len(), part.values.len()), (0, 2), "what came back is not deleted");
    let ahead = house.system.getvalues_many(&types, since + 1_000).await.unwrap();
    assert_eq!((ahead.since, ahead.values.len()), (0, 4), "a version that never was gets everything");
    house.stop().await;
}

#[tokio::test]
async fn a_reader_that_was_away_too_long_gets_everything() {
    let (_broker, _store, house) = house().await;
    let first = house.system.put("a", vec![value("t", "stays", "1")]).await.unwrap();
    for round in 0..12 {
        let names = || (0..1_000).map(move |n| format!("{round}-{n}"));
        house.system.put("a", names().map(|n| value("t", &n, "v")).collect()).await.unwrap();
        house.system.delete("a", names().map(|n| key("t", &n)).collect()).await.unwrap();
    }
    let types = ["t".to_owned()];
    let late = house.system.getvalues_many(&types, first).await.unwrap();
    assert_eq!((late.since, late.values.len(), late.deleted.len()), (0, 1, 0));
    let recent = late.version - 1;
    let fresh = house.system.getvalues_many(&types, recent).await.unwrap();
    assert_eq!((fresh.since, fresh.values.len(), fresh.deleted.len()), (recent, 0, 1_000));
    house.stop().await;
}

/// Two stores give the same versions to other writes, as one does that was restored from an older copy.
#[tokio::test]
async fn a_reader_of_another_history_gets_everything() {
    let types = ["t".to_owned()];
    let mut read = Vec::new();
    for own in ["lost", "kept"] {
        let (_broker, _store, house) = house().await;
        house.system.put("a", vec![value("t", own, "1")]).await.unwrap();
        let answer = house.system.changes(&types, &Position::default()).await.unwrap();
        let here = Position::default().after(&answer);
        for before in read.iter().chain([&here]) {
            house.system.put("a", vec![value("t", "later", "2")]).await.unwrap();
            let answer = house.system.changes(&types, before).await.unwrap();
            let expected = if *before == here { (here.version, 1) } else { (0, 2) };
            assert_eq!((answer.since, answer.values.len()), expected, "{before:?} asks where {here:?} is");
        }
        let garbled = Position { history: "x".to_owned(), ..here.clone() };
        assert_eq!(house.system.changes(&types, &garbled).await.unwrap().since, 0);
        read.push(here);
        house.stop().await;
    }
    assert_eq!(read[0].version, read[1].version, "versions alone tell nothing");
}

#[tokio::test]
async fn a_new_history_is_newer_than_whatever_was_seen_of_the_old_one() {
    let (broker, store, house) = house().await;
    let seen = house.system.put("a", vec![value("t", "k", "1")]).await.unwrap();
    house.stop().await;
    sluice_config::begin_history(&*store.tables).await.unwrap();
    let house = Instance::start(&broker, &store).await;
    let types = ["t".to_owned()];
    let answer = house.system.getvalues_many(&types, seen).await.unwrap();
    assert!(answer.version > seen + 1_000, "{answer:?}");
    assert_eq!((answer.since, answer.values.len()), (0, 1), "who compares versions only gets everything too");
    let next = house.system.put("a", vec![value("t", "k", "2")]).await.unwrap();
    assert_eq!(next, answer.version + 1);
    let relative = house.system.changes(&types, &Position::default().after(&answer)).await.unwrap();
    assert_eq!((relative.since, relative.values.len()), (answer.version, 1));
    house.stop().await;
}

#[tokio::test]
async fn getvalues_many_reads_types_by_their_beginning() {
    let (_broker, _store, house) = house().await;
    let values =
        vec![value("processor:a", "f", "1"), value("processor:b", "f", "2"), value("processors", "f", "3")];
    let since = house.system.put("a", values).await.unwrap();
    let types = ["processor:*".to_owned(), "processor:a".to_owned()];
    let found = |answer: ConfigResponse| answer.values.into_iter().map(|v| v.r#type).collect::<Vec<_>>();
    let whole = house.system.getvalues_many(&types, 0).await.unwrap();
    assert_eq!(found(whole), ["processor:a", "processor:b"]);
    house.system.put("b", vec![value("processor:c", "f", "4"), value("processors", "g", "5")]).await.unwrap();
    house.system.delete("a", vec![key("processor:b", "f"), key("processors", "f")]).await.unwrap();
    let part = house.system.getvalues_many(&types, since).await.unwrap();
    assert_eq!(part.deleted, [key_in("a", "processor:b", "f")]);
    assert_eq!(found(part), ["processor:c"]);
    house.stop().await;
}
