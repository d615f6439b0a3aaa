//! Flows begin, share, drain and end; what cannot be is refused with its reason.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_bus::{Address, Lost, Message, Subscription, TopicSpec, property};
use sluice_schema::message::{ConfigPush, FlowRequest};
use sluice_schema::wire;

use crate::common::{DEADLINE, World, blueprint, error, error_of, next, ok, status, topic};

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_started_flow_is_wired_recorded_and_gone_after_its_stop() {
    let world = World::with_blueprint().await;
    let started = world.start("f1", "demo").await;
    assert_eq!(status(ok(&started))["phase"], "Running");
    assert_eq!(
        world.subscriptions().await,
        names(&["first--acme--f1--input", "second--acme--f1--input", "vectors--acme--demo--request"])
    );
    let entry = world.config.get("acme", "processor:second", "f1").await.unwrap().unwrap().value.unwrap();
    let entry: Value = serde_json::from_str(&entry).unwrap();
    assert_eq!(entry["parameters"], json!({"size": "7", "who": "f1"}));
    let shown = world.get("f1").await;
    let record: Value = serde_json::from_str(&ok(&shown).flow).unwrap();
    assert_eq!(record["interfaces"]["load"]["flow"], "flow:tg:load:acme:f1");
    assert_eq!((record["blueprint-name"].as_str(), record.get("status")), (Some("demo"), None));
    assert_eq!(record["read"], json!(["flow:tg:load:acme:f1"]), "what has a reader on record");
    let first = world.config.get("acme", "processor:first", "f1").await.unwrap().unwrap().value.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&first).unwrap()["read"], json!(["output"]));
    assert_eq!(status(&shown)["queues"].as_array().unwrap().len(), 3);
    assert_eq!(world.list().await, ["f1"]);
    let listed = world.call(FlowRequest { operation: "list-flows".into(), ..Default::default() }).await;
    let row = &ok(&listed).flows[0];
    assert_eq!(
        [&row.id, &row.phase, &row.run, &row.blueprint, &row.description],
        ["f1", "Running", "f1", "demo", "a test"]
    );

    let stopped = world.stop("f1").await;
    assert_eq!(status(ok(&stopped))["phase"], "Gone");
    world.assert_nothing_left("after the stop").await;
    assert_eq!(error(&world.stop("f1").await), "Flow ID invalid");
    assert_eq!(error(&world.get("f1").await), "Unknown flow: f1");
}

/// In this world nobody looks unasked: who runs into the gap sees to it that the owner looks.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_somebody_misses_is_made_again_at_once() {
    let world = World::with_options(|options| options.audit_interval = Duration::from_secs(3_600)).await;
    world.put_size_and_blueprint().await;
    ok(&world.start("f1", "demo").await);
    let (load, reader) = (topic("flow:tg:load:acme:f1"), "first--acme--f1--input");
    let publishes = || async {
        let sent = world.broker.publish(&Address::Subscribed(load.clone()), Message::new("x")).await;
        sent.is_ok()
    };
    for _ in 0..3 {
        world.admin.remove(&TopicSpec::bare(load.clone())).await.unwrap();
        world.until("a publish finds it there again", publishes).await;
    }
    let reads = || async {
        let to = Subscription::Shared { topic: load.clone(), name: reader.to_owned(), prefetch: 1 };
        world.broker.subscribe(&to).await.is_ok()
    };
    world.admin.remove(&TopicSpec::bare(load.clone())).await.unwrap();
    world.until("a reader finds it there again", reads).await;
    ok(&world.stop("f1").await);
    world.assert_nothing_left("after it was missing").await;
    // What is no flow's any more stays away, however often it is missed.
    assert!(!publishes().await && !reads().await);
    world.assert_nothing_left("after it was missed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_sent_before_any_processor_exists_are_all_delivered() {
    const MESSAGES: usize = 10_000;
    let world = World::with_blueprint().await;
    ok(&world.start("f1", "demo").await);
    for number in 0..MESSAGES {
        world.publish("flow:tg:load:acme:f1", &number.to_string()).await;
    }
    let inbox = world.read("flow:tg:load:acme:f1", "first--acme--f1--input").await;
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < MESSAGES {
        let delivery = next(&*inbox).await;
        assert!(seen.insert(delivery.message.body.clone()), "{:?} came twice", delivery.message.body);
        delivery.ack();
    }
    drop(inbox);
    ok(&world.stop("f1").await);
    world.assert_nothing_left("after all were read").await;
    assert!(world.dead_letters().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_run_of_an_id_has_names_of_its_own() {
    let world = World::with_blueprint().await;
    ok(&world.start("f1", "demo").await);
    assert_eq!(error(&world.start("f1", "demo").await), "Flow already exists");
    ok(&world.stop("f1").await);
    let again = world.start("f1", "demo").await;
    assert_eq!(status(ok(&again))["run"], "f1-r2");
    assert!(world.topic_names().await.contains(&"flow:tg:load:acme:f1-r2".to_owned()));
    let entry = world.config.get("acme", "processor:second", "f1-r2").await.unwrap().unwrap().value.unwrap();
    assert!(entry.contains("\"who\":\"f1\""), "{entry}");
    ok(&world.stop("f1").await);
    world.assert_nothing_left("after the second run").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_parts_go_with_the_last_flow_that_uses_them() {
    let world = World::with_blueprint().await;
    ok(&world.start("f1", "demo").await);
    ok(&world.start("f2", "demo").await);
    assert_eq!(world.topic_names().await.iter().filter(|t| t.contains("embeddings")).count(), 2);
    ok(&world.stop("f1").await);
    let left = world.topic_names().await;
    assert!(left.contains(&"request:tg:embeddings:acme:demo".to_owned()), "{left:?}");
    assert!(!left.iter().any(|t| t.ends_with(":f1")), "{left:?}");
    assert!(world.config.get("acme", "processor:vectors", "demo").await.unwrap().is_some());
    ok(&world.stop("f2").await);
    world.assert_nothing_left("after the last").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_that_begins_while_shared_parts_go_has_all_it_needs() {
    let world = World::with_options(|options| options.audit_interval = Duration::from_secs(3_600)).await;
    world.put_size_and_blueprint().await;
    ok(&world.start("f1", "demo").await);
    world.faults.are_withdrawals_held.send_replace(true);
    let starting = async {
        let is_held = || async { world.faults.withdrawals_held.load(Ordering::SeqCst) > 0 };
        world.until("the stop is about to take the entries away", is_held).await;
        ok(&world.start("f2", "demo").await);
        world.faults.are_withdrawals_held.send_replace(false);
    };
    let (stopped, ()) = tokio::join!(world.stop("f1"), starting);
    ok(&stopped);
    // Nobody looks unasked in this world: what went would stay away.
    let records = world.records().await;
    let parts: Vec<_> = records.iter().filter(|one| one.r#type.starts_with("processor:")).collect();
    assert_eq!(parts.len(), 3, "{parts:?}");
    assert_eq!(world.topic_names().await.iter().filter(|t| t.contains("embeddings")).count(), 2);
    ok(&world.stop("f2").await);
    world.assert_nothing_left("after the last").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_section_with_other_content_has_another_name() {
    let world = World::with_blueprint().await;
    ok(&world.start("f1", "demo").await);
    let mut edited = blueprint();
    edited["blueprint"]["vectors:{blueprint}"]["parameters"] = json!({"model": "other"});
    ok(&world.put_blueprint("demo", &edited).await);
    ok(&world.start("f2", "demo").await);
    let topics = world.topic_names().await;
    for name in ["request:tg:embeddings:acme:demo", "request:tg:embeddings:acme:demo-r2"] {
        assert!(topics.contains(&name.to_owned()), "{topics:?}");
    }
    ok(&world.stop("f1").await);
    ok(&world.stop("f2").await);
    world.assert_nothing_left("after both").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn editing_or_deleting_a_blueprint_strands_no_running_flow() {
    let world = World::with_blueprint().await;
    ok(&world.start("f1", "demo").await);
    ok(&world.put_blueprint("demo", &json!({"blueprint": {}, "flow": {}})).await);
    ok(&world.stop("f1").await);
    world.assert_nothing_left("after an edit").await;
    ok(&world.put_blueprint("demo", &blueprint()).await);
    ok(&world.start("f1", "demo").await);
    world.delete_value("acme", "flow-blueprint", "demo").await;
    ok(&world.stop("f1").await);
    world.assert_nothing_left("after a deletion").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_reads_is_parked_with_its_run_and_queue() {
    let world = World::with_blueprint().await;
    ok(&world.start("f1", "demo").await);
    for id in ["m1", "m2", "m3"] {
        world.publish("flow:tg:load:acme:f1", id).await;
    }
    let stopped = world.stop("f1").await;
    let queues = status(ok(&stopped))["queues"].clone();
    let parked =
        json!({"queue": "flow:tg:load:acme:f1 / first--acme--f1--input", "verdict": "parked", "messages": 3});
    assert!(queues.as_array().unwrap().contains(&parked), "{queues}");
    let letters = world.dead_letters().await;
    let ids: Vec<_> = letters.iter().map(|l| l.properties["sluice-message-id"].as_str()).collect();
    assert_eq!(ids, ["m1", "m2", "m3"]);
    assert_eq!((letters[0].flow.as_str(), letters[0].topic.as_str()), ("f1", "flow:tg:load:acme:f1"));
    assert_eq!(letters[0].subscription, "first--acme--f1--input");
    world.assert_nothing_left("after the stop").await;
}

/// As base64 it would be a third larger than what the broker takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_as_large_as_the_broker_takes_is_parked_when_its_flow_stops() {
    let world = World::with_blueprint().await;
    ok(&world.start("f1", "demo").await);
    let to = Address::Topic(topic("flow:tg:load:acme:f1"));
    let body = "x".repeat(world.broker.limits().message_bytes_max);
    let message = Message::new(body.clone()).with(property::MESSAGE_ID, "m1");
    world.broker.publish(&to, message).await.unwrap();
    ok(&world.stop("f1").await);
    let letters = world.dead_letters().await;
    let told = &letters[0];
    assert_eq!((letters.len(), told.properties["sluice-message-id"].as_str()), (1, "m1"));
    assert_eq!((told.flow.as_str(), told.subscription.as_str()), ("f1", "first--acme--f1--input"));
    assert!(told.body == body, "{} bytes of {}", told.body.len(), body.len());
    world.assert_nothing_left("after the stop").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_the_dead_letters_to_be_kept_by_somebody() {
    let world =
        World::with_options(|options| options.answer_within = std::time::Duration::from_secs(5)).await;
    world.put_size_and_blueprint().await;
    ok(&world.start("f1", "demo").await);
    world.publish("flow:tg:load:acme:f1", "m1").await;
    let letters = topic("flow:tg:dead-letters:acme");
    world.admin.remove(&TopicSpec::bare(letters.clone())).await.unwrap();
    let told = |said: &str| said.contains("start the library service") && said.contains("discard");
    world
        .until("it says what is missing", || async { told(&error_of("timeout", &world.stop("f1").await)) })
        .await;
    assert!(world.topic_names().await.contains(&"flow:tg:load:acme:f1".to_owned()));
    world.admin.ensure(&TopicSpec::with(letters, "librarian")).await.unwrap();
    world
        .until("it is stopped", || async {
            world.stop("f1").await.error.is_none() || world.list().await.is_empty()
        })
        .await;
    assert_eq!(world.dead_letters().await.len(), 1);
    world.assert_nothing_left("after the library came").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_a_full_disk_holds_up_names_the_way_out_that_works() {
    let world =
        World::with_options(|options| options.answer_within = std::time::Duration::from_secs(5)).await;
    world.put_size_and_blueprint().await;
    ok(&world.start("f1", "demo").await);
    world.publish("flow:tg:load:acme:f1", "m1").await;
    world.faults.has_no_room.store(true, std::sync::atomic::Ordering::SeqCst);
    let told = |said: &str| {
        said.contains("it is full") && said.contains("--drain discard") && said.contains("loses")
    };
    world.until("it says what to do", || async { told(&error_of("timeout", &world.stop("f1").await)) }).await;
    ok(&world.stop_with("f1", Some("discard")).await);
    world.assert_nothing_left("after what was left was given up").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parking_is_told_and_goes_on_many_messages_at_once() {
    let world =
        World::with_options(|options| options.answer_within = std::time::Duration::from_secs(5)).await;
    world.put_size_and_blueprint().await;
    ok(&world.start("f1", "demo").await);
    let sent: Vec<_> = (0..200).map(|n| format!("m{n}")).collect();
    for id in &sent {
        world.publish("flow:tg:load:acme:f1", id).await;
    }
    world.faults.are_letters_held.send_replace(true);
    let said = error_of("timeout", &world.stop("f1").await);
    let doing = "parking 200 messages of flow:tg:load:acme:f1 / first--acme--f1--input";
    assert!(said.contains(doing), "{said}");
    let held = || async { world.faults.letters_held.load(std::sync::atomic::Ordering::SeqCst) == 64 };
    world.until("a window of letters is under way", held).await;
    world.faults.are_letters_held.send_replace(false);
    ok(&world.stop("f1").await);
    let parked = async || -> Vec<String> {
        let letters = world.dead_letters().await;
        letters.iter().map(|letter| letter.properties["sluice-message-id"].clone()).collect()
    };
    // Those that were held woke in any order.
    let mut ids = parked().await;
    ids.sort_by_key(|id| id[1..].parse::<u32>().unwrap());
    assert_eq!(ids, sent);

    ok(&world.start("f1", "demo").await);
    for id in &sent {
        world.publish("flow:tg:load:acme:f1-r2", id).await;
    }
    ok(&world.stop("f1").await);
    assert_eq!(parked().await, sent);
    world.assert_nothing_left("after both stops").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_ledger_blocks_every_decision_until_it_is_repaired() {
    let world = World::with_blueprint().await;
    ok(&world.start("f1", "demo").await);
    world.put_value("__flows__", "flow-ledger", "head", "not json").await;
    for response in [world.start("f2", "demo").await, world.stop("f1").await] {
        let said = error(&response);
        assert!(said.contains("config value 'flow-ledger/head' cannot be read"), "{said}");
    }
    assert_eq!(world.list().await, ["f1"]);
    world.delete_value("__flows__", "flow-ledger", "head").await;
    ok(&world.stop("f1").await);
    world.assert_nothing_left("after the repair").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_work_under_way_and_parks_nothing_then() {
    let world = World::with_blueprint().await;
    ok(&world.start("f1", "demo").await);
    let inbox = world.read("flow:tg:load:acme:f1", "first--acme--f1--input").await;
    world.publish("flow:tg:load:acme:f1", "m1").await;
    let delivery = next(&*inbox).await;
    let stopping = world.stop("f1");
    let working = async {
        world
            .until("draining is shown", || async { status(&world.get("f1").await)["phase"] == "Draining" })
            .await;
        let record: Value = serde_json::from_str(&world.get("f1").await.flow).unwrap();
        assert_eq!(record["status"], "stopping");
        delivery.ack();
        let gone = world.config.get("acme", "processor:first", "f1");
        assert!(gone.await.is_ok());
        // Told to leave by its entry being gone, the reader leaves.
        world
            .until("the entry is withdrawn", || async {
                world.config.get("acme", "processor:first", "f1").await.unwrap().is_none()
            })
            .await;
        drop(inbox);
    };
    let (stopped, ()) = tokio::join!(stopping, working);
    let queues = status(ok(&stopped))["queues"].clone();
    assert!(queues.as_array().unwrap().iter().all(|q| q["verdict"] == "drained"), "{queues}");
    assert_eq!(world.dead_letters().await, Vec::new());
    world.assert_nothing_left("after the stop").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_at_its_deadline_and_discard_throws_away() {
    let world = World::with_blueprint().await;
    ok(&world.start("f1", "demo").await);
    let inbox = world.read("flow:tg:load:acme:f1", "first--acme--f1--input").await;
    world.publish("flow:tg:load:acme:f1", "m1").await;
    let held = next(&*inbox).await;
    let stopping = world.stop_with("f1", Some("50ms"));
    let leaving = async {
        world
            .until("the entry is withdrawn", || async {
                world.config.get("acme", "processor:first", "f1").await.unwrap().is_none()
            })
            .await;
        drop((held, inbox));
    };
    let (stopped, ()) = tokio::join!(stopping, leaving);
    ok(&stopped);
    assert_eq!(world.dead_letters().await.len(), 1);

    ok(&world.start("f1", "demo").await);
    world.publish("flow:tg:load:acme:f1-r2", "m2").await;
    let stopped = world.stop_with("f1", Some("discard")).await;
    let queues = status(ok(&stopped))["queues"].clone();
    assert!(
        queues.as_array().unwrap().iter().any(|q| q["verdict"] == "discarded" && q["messages"] == 1),
        "{queues}"
    );
    assert_eq!(world.dead_letters().await, Vec::new());
    world.assert_nothing_left("after both").await;
    assert!(error(&world.stop_with("f1", Some("soon")).await).contains("drain 'soon' is not understood"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_holds_on_is_named_and_another_stop_joins() {
    let world =
        World::with_options(|options| options.answer_within = std::time::Duration::from_secs(5)).await;
    world.put_size_and_blueprint().await;
    ok(&world.start("f1", "demo").await);
    let inbox = world.read("flow:tg:load:acme:f1", "first--acme--f1--input").await;
    let said = error_of("timeout", &world.stop("f1").await);
    assert!(said.contains("still held by flow:tg:load:acme:f1 / first--acme--f1--input"), "{said}");
    assert_eq!(world.list().await, ["f1"]);
    assert_eq!(error(&world.start("f1", "demo").await), "Flow already exists");
    drop(inbox);
    world.until("the stop goes on alone", || async { world.list().await.is_empty() }).await;
    world.assert_nothing_left("after the reader left").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_starts_and_ten_stops_at_once_all_succeed() {
    let world = World::with_blueprint().await;
    let ids: Vec<_> = (0..10).map(|n| format!("f{n}")).collect();
    let started = futures_util::future::join_all(ids.iter().map(|id| world.start(id, "demo"))).await;
    started.iter().for_each(|response| _ = ok(response));
    assert_eq!(world.list().await, ids);
    assert_eq!(world.subscriptions().await.len(), 21);
    let stopped = futures_util::future::join_all(ids.iter().map(|id| world.stop(id))).await;
    stopped.iter().for_each(|response| _ = ok(response));
    world.assert_nothing_left("after all").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_read_blocks_removal_until_it_is_repaired() {
    let world =
        World::with_options(|options| options.answer_within = std::time::Duration::from_secs(5)).await;
    world.put_size_and_blueprint().await;
    ok(&world.start("f1", "demo").await);
    world.put_value("acme", "processor:foreign", "x", "not json").await;
    world.put_value("other", "processor:foreign", "y", "neither").await;
    let said = error_of("timeout", &world.stop("f1").await);
    assert!(said.contains("'processor:foreign/x' in workspace 'acme' cannot be read"), "{said}");
    assert!(world.topic_names().await.contains(&"flow:tg:load:acme:f1".to_owned()));
    world.delete_value("acme", "processor:foreign", "x").await;
    world.until("the stop goes on", || async { world.list().await.is_empty() }).await;
    assert_eq!(world.topic_names().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_flows_can_be_stopped_and_none_is_started() {
    let world = World::with_blueprint().await;
    for id in ["f1", "f2"] {
        ok(&world.start(id, "demo").await);
    }
    world.fill_the_disk().await;
    let said = error_of("config-unavailable", &world.start("f3", "demo").await);
    assert!(said.contains("is full"), "{said}");
    assert!(world.disk.played() > 0);
    for id in ["f1", "f2"] {
        ok(&world.stop(id).await);
    }
    assert_eq!(world.topic_names().await, Vec::<String>::new());
    assert_eq!(world.list().await, Vec::<String>::new());
    world.disk.give_space();
    ok(&world.start("f1", "demo").await);
    ok(&world.stop("f1").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_somebody_else_names_is_left_alone() {
    let world = World::with_blueprint().await;
    ok(&world.start("f1", "demo").await);
    let entry = json!({"topics": {"input": "flow:tg:chunks:acme:f1"}, "parameters": {}});
    world.put_value("other", "processor:foreign", "x", &entry.to_string()).await;
    ok(&world.stop("f1").await);
    assert_eq!(world.topic_names().await, ["flow:tg:chunks:acme:f1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_started_is_refused_and_nothing_is_written() {
    let world = World::with_blueprint().await;
    let start = |id: &'static str, blueprint: &'static str| world.start(id, blueprint);
    assert_eq!(error(&start("f1", "nope").await), "Blueprint does not exist");
    assert_eq!(error(&start("", "demo").await), "No flow ID");
    assert_eq!(error(&start("f1", "").await), "No blueprint name");
    assert!(error(&start("f1-r2", "demo").await).contains("not ending in -r<digits>"));
    assert!(error(&start("a/b", "demo").await).contains("flow id 'a/b' is not valid"));
    assert_eq!(error(&world.stop("nope").await), "Flow ID invalid");
    let door = json!({"blueprint": {}, "flow": {"a:{id}": {"topics": {"input": "flow:tg:x:other:{id}"}}}});
    let said = error(&world.put_blueprint("bad", &door).await);
    assert!(said.starts_with("flow / a:{id} / topics / input: "), "{said}");
    world.put_value("acme", "flow-blueprint", "bad", &door.to_string()).await;
    assert_eq!(error(&start("f1", "bad").await).replace(":f1", ":id").replace(" or ':acme:bad'", ""), said);
    let response = world.call(FlowRequest { operation: "frob".into(), ..Default::default() }).await;
    let error = response.error.unwrap();
    assert_eq!((error.r#type.as_str(), error.message.as_str()), ("bad-operation", "Bad operation"));
    world.assert_nothing_left("after refusals").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_parameters_are_refused_and_doubtful_ones_are_warned_of() {
    let world = World::with_blueprint().await;
    let size = json!({"type": "integer", "default": 7, "min": 1, "max": 9, "enum": [6, 7]});
    world.put_value("acme", "parameter-type", "size", &size.to_string()).await;
    let start = |given: Value| {
        world.call(FlowRequest {
            operation: "start-flow".into(),
            blueprint_name: "demo".into(),
            flow_id: "f1".into(),
            parameters: given.as_object().unwrap().clone(),
            ..Default::default()
        })
    };
    for (given, shown) in [(json!("abc"), "abc"), (json!(0), "0"), (json!("10"), "10"), (json!(2.5), "2.5")] {
        let said = error(&start(json!({"size": given})).await);
        let wanted = format!(
            "parameter 'size' is '{shown}', but must be a whole number from 1 to 9; its type 'size' says so"
        );
        assert_eq!(said, wanted);
    }
    world.assert_nothing_left("after refusals").await;
    let started = start(json!({"size": "8", "colour": "red"})).await;
    let warned = ok(&started).warnings.join("\n");
    assert!(warned.contains("parameter 'size' is '8', which is not among the values"), "{warned}");
    assert!(warned.contains("parameter 'colour' is not declared by the blueprint"), "{warned}");
    ok(&world.stop("f1").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_of_another_flow_service_is_shown_and_its_stop_adopts_it() {
    let world = World::with_blueprint().await;
    let record = json!({"description": "theirs", "blueprint-name": "x", "parameters": {},
        "interfaces": {"load": {"flow": "flow:tg:load:acme:old"}}});
    world.put_value("acme", "flow", "old", &record.to_string()).await;
    let entry = json!({"topics": {"input": "flow:tg:load:acme:old", "librarian-request": "request:tg:librarian:acme",
        "librarian-response": "response:tg:librarian:acme"}, "parameters": {}});
    world.put_value("acme", "processor:first", "old", &entry.to_string()).await;
    let spec = TopicSpec::with(topic("flow:tg:load:acme:old"), "first--acme--old--input");
    world.admin.ensure(&spec).await.unwrap();
    assert_eq!(status(ok(&world.get("old").await))["phase"], "Unmanaged");
    assert_eq!(error(&world.start("old", "demo").await), "Flow already exists");
    ok(&world.stop("old").await);
    world.assert_nothing_left("after the adopted flow").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_reappears_under_an_ended_name_is_swept() {
    let world =
        World::with_options(|options| options.audit_interval = std::time::Duration::from_millis(100)).await;
    world.put_size_and_blueprint().await;
    // So that names are not forgotten too early, nothing is listed before what is late is there.
    let listings = &world.faults.are_listings_held;
    listings.send_replace(true);
    ok(&world.start("f1", "demo").await);
    ok(&world.stop("f1").await);
    world.admin.ensure(&TopicSpec::with(topic("flow:tg:load:acme:f1"), "late")).await.unwrap();
    let unknown = topic("flow:tg:unknown:acme:f1");
    world.admin.ensure(&TopicSpec::bare(unknown)).await.unwrap();
    listings.send_replace(false);
    let is_swept = || async { world.topic_names().await == ["flow:tg:unknown:acme:f1"] };
    world.until("the topic is swept", is_swept).await;
    // Another run in between does not make the names of the first forgotten.
    listings.send_replace(true);
    ok(&world.start("f1", "demo").await);
    ok(&world.stop("f1").await);
    for late in ["flow:tg:load:acme:f1", "flow:tg:load:acme:f1-r2"] {
        world.admin.ensure(&TopicSpec::with(topic(late), "late")).await.unwrap();
    }
    listings.send_replace(false);
    world.until("both are swept", is_swept).await;
    // Also while the next run is up, which shares a section with the ended one.
    listings.send_replace(true);
    ok(&world.start("f1", "demo").await);
    let own = world.topic_names().await;
    world.admin.ensure(&TopicSpec::with(topic("flow:tg:load:acme:f1"), "late")).await.unwrap();
    listings.send_replace(false);
    world.until("it is swept again", || async { world.topic_names().await == own }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_missed_the_end_of_their_run_are_told_again() {
    let world =
        World::with_options(|options| options.audit_interval = std::time::Duration::from_millis(100)).await;
    world.put_size_and_blueprint().await;
    // So that its names are not forgotten too early, nothing is listed before it has come late.
    world.faults.are_listings_held.send_replace(true);
    ok(&world.start("f1", "demo").await);
    ok(&world.stop("f1").await);
    let notices = Subscription::Own { topics: vec![topic("notify:tg:config")] };
    let notices = world.broker.subscribe(&notices).await.unwrap();
    let told_of = async |kind: &str| loop {
        let notice = tokio::time::timeout(DEADLINE, notices.next()).await.expect("it is told").unwrap();
        let told: ConfigPush = wire::decode(&notice.message.body).unwrap();
        notice.ack();
        if told.changes.get(kind).is_some_and(|workspaces| workspaces == &["acme"]) {
            break;
        }
    };
    // Notices keep their order: what comes after this one is no news of the stop.
    world.put_value("acme", "marker", "after", "{}").await;
    told_of("marker").await;
    let late = TopicSpec::with(topic("flow:tg:load:acme:f1"), "first--acme--f1--input");
    let (topic, name) = (late.topic.clone(), late.subscriptions[0].clone());
    let reader = Subscription::Shared { topic, name, prefetch: 1 };
    // It is swept while nobody reads it.
    let _reader = loop {
        world.admin.ensure(&late).await.unwrap();
        if let Ok(reader) = world.broker.subscribe(&reader).await {
            break reader;
        }
    };
    world.faults.are_listings_held.send_replace(false);
    told_of("processor:first").await;
    // One that does not listen keeps nothing alive.
    world.until("the topic is swept", || async { world.topic_names().await.is_empty() }).await;
    ok(&world.start("f1", "demo").await);
    ok(&world.stop("f1").await);
    world.assert_nothing_left("after the late reader").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_topic_is_made_again_and_flows_survive_a_restart() {
    let world =
        World::with_options(|options| options.audit_interval = std::time::Duration::from_millis(100)).await;
    world.put_size_and_blueprint().await;
    ok(&world.start("f1", "demo").await);
    let lost = TopicSpec::bare(topic("flow:tg:chunks:acme:f1"));
    world.admin.remove(&lost).await.unwrap();
    world
        .until("the topic is back", || async {
            world.subscriptions().await.contains(&"second--acme--f1--input".to_owned())
        })
        .await;
    world.crash().await;
    assert_eq!(status(ok(&world.get("f1").await))["run"], "f1");
    ok(&world.stop("f1").await);
    world.assert_nothing_left("after a restart").await;
}

/// Made again, a topic has no followers, and nobody else lets those know that it had.
#[tokio::test(flavor = "multi_thread")]
async fn who_follows_a_topic_hears_each_time_that_it_was_lost_and_is_there_again() {
    let world =
        World::with_options(|options| options.audit_interval = std::time::Duration::from_millis(100)).await;
    world.put_size_and_blueprint().await;
    ok(&world.start("f1", "demo").await);
    let answers = topic("response:tg:embeddings:acme:demo");
    let is_there = || async { world.topic_names().await.contains(&answers.to_string()) };
    let heard = async {
        let mut times = 0;
        while times < 3 {
            world.until("the topic is there", is_there).await;
            // What follows from the last news is over.
            tokio::time::sleep(Duration::from_millis(300)).await;
            let mut news = world.broker.losses().unwrap().news();
            world.admin.remove(&TopicSpec::bare(answers.clone())).await.unwrap();
            let again = async { while news.next().await != (answers.clone(), Lost::Removed) {} };
            // One that is removed while it is just being made again is not seen to be gone.
            if tokio::time::timeout(Duration::from_secs(10), again).await.is_ok() {
                assert!(is_there().await, "it is reported too early");
                times += 1;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(120), heard).await.expect("its followers hear of it");
    ok(&world.stop("f1").await);
    world.assert_nothing_left("after a topic was lost").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_go_with_their_workspace() {
    let world =
        World::with_options(|options| options.audit_interval = std::time::Duration::from_millis(100)).await;
    world.put_size_and_blueprint().await;
    ok(&world.start("f1", "demo").await);
    world.delete_value("__workspaces__", "workspace", "acme").await;
    world.until("the topics are gone", || async { world.topic_names().await.is_empty() }).await;
    world.until("the records are gone", || async { world.records().await.is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_services_one_acts_and_the_other_takes_over() {
    let world = World::with_blueprint().await;
    let _another = world.another().await;
    for id in ["f1", "f2", "f3"] {
        ok(&world.start(id, "demo").await);
    }
    world.crash().await;
    for id in ["f1", "f2", "f3"] {
        ok(&world.stop(id).await);
    }
    world.assert_nothing_left("after the holder died").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_and_blueprints_are_listed_in_pages() {
    let world = World::with_blueprint().await;
    for n in 0..6 {
        let start = FlowRequest {
            operation: "start-flow".into(),
            blueprint_name: "demo".into(),
            flow_id: format!("f{n}"),
            description: "d".repeat(16 << 10),
            ..Default::default()
        };
        ok(&world.call(start).await);
        ok(&world.put_blueprint(&format!("b{n}"), &blueprint()).await);
    }
    let ask = |operation: &str, cursor: &str| FlowRequest {
        operation: operation.into(),
        bytes_max: 1,
        cursor: cursor.into(),
        ..Default::default()
    };
    let first = world.call(ask("list-flows", "")).await;
    assert_eq!((ok(&first).flow_ids.len(), first.cursor.as_str()), (3, "f2"));
    let second = world.call(ask("list-flows", &first.cursor)).await;
    assert_eq!(
        (second.flow_ids, second.cursor.as_str()),
        (["f3", "f4", "f5"].map(str::to_owned).to_vec(), "")
    );
    assert_eq!(second.flows.len(), 3);
    assert_eq!(world.list().await.len(), 6, "it fits one message");
    let names = world.call(ask("list-blueprints", "b3")).await;
    assert_eq!(names.blueprint_names, ["b4", "b5", "demo"]);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blueprints_of_others_that_take_all_room_keep_no_flow_from_being_started() {
    let world = World::new().await;
    // More than the copies of all workspaces may take together.
    let large = json!({"pad": "x".repeat(1_000_000)}).to_string();
    for n in 0..36 {
        world.put_value(&format!("other{}", n / 12), "flow-blueprint", &format!("large{n}"), &large).await;
    }
    assert_eq!(world.list().await.len(), 0);
    world.put_size_and_blueprint().await;
    for _ in 0..2 {
        ok(&world.start("f1", "demo").await);
        ok(&world.stop("f1").await);
    }
    let names = FlowRequest { operation: "list-blueprints".into(), ..Default::default() };
    assert!(world.call(names).await.blueprint_names.contains(&"demo".to_owned()));
    let refused = world.start("f2", "large1").await;
    assert!(refused.error.unwrap().message.contains("Blueprint does not exist"));
    world.end().await;
}
