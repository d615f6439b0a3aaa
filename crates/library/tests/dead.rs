//! Dead letters: kept, listed, exported, replayed, removed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::sync::Arc;

use common::{WS, World, base64, next, text_flow, topic};
use sluice_bus::{Address, Broker as _, BrokerAdmin, TopicSpec, property};
use sluice_library::Limits;
use sluice_schema::message::{DeadLetter, DeadLettersRequest};
use sluice_schema::record;
use sluice_sdk::config::value;

const PARKED: &str = "flow:tg:dead-letters:default";
const LOAD: &str = "flow:tg:text-document-load:default:f1";

fn letter(id: &str, topic: &str, body: &str) -> DeadLetter {
    DeadLetter {
        id: id.to_owned(),
        workspace: WS.to_owned(),
        flow: "f1".to_owned(),
        topic: topic.to_owned(),
        subscription: "chunker--default--f1--input".to_owned(),
        reason: "too hard".to_owned(),
        attempts: 5,
        time: 1_700_000_000,
        properties: [("sluice-trace".to_owned(), "t1".to_owned())].into(),
        body: base64(body),
    }
}

fn ask(operation: &str) -> DeadLettersRequest {
    DeadLettersRequest { operation: operation.to_owned(), ..Default::default() }
}

fn ids(letters: &[DeadLetter]) -> Vec<&str> {
    letters.iter().map(|letter| letter.id.as_str()).collect()
}

#[tokio::test]
async fn letters_are_listed_newest_first_filtered_paged_and_outlive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    for (id, flow) in [("1", "f1"), ("2", "f2"), ("3", "f1-r2"), ("2", "f2"), ("4", "f1")] {
        world.publish(PARKED, DeadLetter { flow: flow.into(), ..letter(id, LOAD, "body") }).await;
    }
    assert_eq!(
        ids(&world.letters(4).await.letters),
        ["4", "3", "2", "1"],
        "a letter that came twice is kept once"
    );
    world.stop().await;

    let world = World::start(folder.path()).await;
    let listed = world.letters(4).await.letters;
    assert_eq!(DeadLetter { body: base64("body"), ..listed[3].clone() }, letter("1", LOAD, "body"));
    assert!(listed[3].body.is_empty(), "a list has no bodies");
    let only = world.dead(DeadLettersRequest { flow: "f1".into(), ..ask("list") }).await;
    assert_eq!(ids(&only.letters), ["4", "3", "1"], "a flow's name means all its runs");
    let first = world.dead(DeadLettersRequest { limit: 2, ..ask("list") }).await;
    assert_eq!((ids(&first.letters), first.remaining), (vec!["4", "3"], 2));
    let second = world.dead(DeadLettersRequest { limit: 2, before: "3".into(), ..ask("list") }).await;
    assert_eq!((ids(&second.letters), second.remaining), (vec!["2", "1"], 0));
    let none = world.dead(DeadLettersRequest { topic: "flow:tg:x:default:f1".into(), ..ask("list") }).await;
    assert!(none.letters.is_empty());
    world.stop().await;
}

#[tokio::test]
async fn an_export_has_bodies_and_comes_page_by_page() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    let large = "x".repeat(1_500_000);
    for id in ["1", "2", "3"] {
        world.publish(PARKED, letter(id, LOAD, &large)).await;
    }
    world.letters(3).await;
    let first = world.dead(ask("export")).await;
    assert_eq!((first.letters, first.remaining), (["3", "2"].map(|id| letter(id, LOAD, &large)).to_vec(), 1));
    let second = world.dead(DeadLettersRequest { before: "2".into(), ..ask("export") }).await;
    assert_eq!((second.letters, second.remaining), (vec![letter("1", LOAD, &large)], 0));
    let one = world.dead(DeadLettersRequest { limit: 1, ..ask("export") }).await;
    assert_eq!((one.count, one.remaining), (1, 2));
    world.stop().await;
}

#[tokio::test]
async fn a_replayed_letter_is_delivered_with_its_properties_and_gone() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    let later = "flow:tg:text-document-load:default:f1-r2";
    for id in ["1", "2", "3"] {
        world.publish(PARKED, letter(id, LOAD, &format!("body {id}"))).await;
    }
    world.publish(PARKED, letter("foreign", "flow:tg:x:other:f1", "x")).await;
    world.publish(PARKED, letter("system", "flow:tg:progress:default", "x")).await;
    world.letters(5).await;

    let one = |id: &str| DeadLettersRequest { ids: vec![id.into()], ..ask("replay") };
    let stays = async |why: &str| {
        let kept = world.dead(one("1")).await;
        assert_eq!((kept.count, kept.kept.len()), (0, 1));
        assert!(kept.kept[0].reason.contains(why), "{kept:?}");
    };
    stays("start the flow").await;
    world.config.put(WS, vec![value(WS, record::FLOW, "f1", "{}")]).await.unwrap();
    stays("nobody reads").await;

    world.broker.ensure(&TopicSpec::with(topic(LOAD), "chunker--default--f1--input")).await.unwrap();
    world.broker.ensure(&TopicSpec::with(topic(later), "chunker--default--f1-r2--input")).await.unwrap();
    let own = world.read(LOAD, "chunker--default--f1--input").await;
    let moved = world.read(later, "chunker--default--f1-r2--input").await;
    assert_eq!(world.dead(one("1")).await.count, 1);
    let delivery = next(&*own).await;
    assert_eq!(
        (&delivery.message.body[..], delivery.message.get("sluice-trace")),
        (&b"body 1"[..], Some("t1"))
    );
    delivery.ack();

    let rest = DeadLettersRequest { flow: "f1".into(), run: "f1-r2".into(), ..ask("replay") };
    let answer = world.dead(rest).await;
    assert_eq!((answer.error, answer.count), (None, 2));
    let refused: Vec<_> = answer.kept.iter().map(|kept| kept.id.as_str()).collect();
    assert_eq!(refused, ["foreign", "system"]);
    for body in ["body 2", "body 3"] {
        let delivery = next(&*moved).await;
        assert_eq!(&delivery.message.body[..], body.as_bytes());
        delivery.ack();
    }
    assert_eq!(ids(&world.letters(2).await.letters), ["system", "foreign"]);
    let progress = DeadLettersRequest { ids: vec!["system".into(), "foreign".into()], ..ask("remove") };
    assert_eq!(world.dead(progress).await.count, 2);
    world.letters(0).await;
    world.stop().await;
}

#[tokio::test]
async fn letters_are_changed_only_when_named() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    world.publish(PARKED, letter("1", LOAD, "x")).await;
    world.publish(PARKED, letter("2", LOAD, "x")).await;
    world.letters(2).await;
    let refused = async |request: DeadLettersRequest, text: &str| {
        let error = world.dead(request).await.error.unwrap();
        assert_eq!(error.r#type, "request-error");
        assert!(error.message.contains(text), "{}", error.message);
    };
    refused(ask("remove"), "say all").await;
    refused(ask("replay"), "say all").await;
    refused(ask("burn"), "Invalid operation: burn").await;
    refused(ask(""), "Null operation").await;
    refused(DeadLettersRequest { ids: vec!["1".into(), "x".into()], ..ask("remove") }, "no dead letter 'x'")
        .await;
    for operation in ["replay", "remove"] {
        let request = DeadLettersRequest { ids: vec!["x".into(), "y".into()], ..ask(operation) };
        let error = world.dead(request).await.error.unwrap();
        assert_eq!(error.r#type, "not-found");
        assert!(error.message.contains("no dead letter 'x'"), "{}", error.message);
    }
    refused(DeadLettersRequest { before: "x".into(), ..ask("list") }, "no dead letter 'x'").await;
    let first = world.dead(DeadLettersRequest { all: true, limit: 1, ..ask("remove") }).await;
    assert_eq!((first.count, first.remaining), (1, 1));
    assert_eq!(ids(&world.letters(1).await.letters), ["2"], "the oldest go first");
    assert_eq!(world.dead(DeadLettersRequest { all: true, ..ask("remove") }).await.count, 1);
    world.stop().await;
}

/// Too large for the broker as base64, so it came as it is.
#[tokio::test]
async fn a_letter_as_large_as_a_message_may_be_is_kept_told_and_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    let limits = world.broker.limits();
    let text = format!(r#"{{"metadata": {{"id": "d1"}}, "text": "{}"}}"#, "x".repeat(60 << 20));
    let body = bytes::Bytes::from(text);
    for (id, body) in [("1", body.slice(..100)), ("2", body.clone()), ("3", body.slice(..50))] {
        let parked = sluice_bus::letter::message(letter(id, LOAD, ""), &body, limits);
        assert_eq!(parked.get(property::LETTER).is_some(), id == "2");
        world.broker.publish(&Address::Topic(topic(PARKED)), parked).await.unwrap();
    }
    assert_eq!(ids(&world.letters(3).await.letters), ["3", "2", "1"]);
    let of_document = world.dead(DeadLettersRequest { document_id: "d1".into(), ..ask("list") }).await;
    assert_eq!(ids(&of_document.letters), ["2"]);
    let exported = world.dead(ask("export")).await;
    assert_eq!((ids(&exported.letters), exported.remaining), (vec!["3"], 1), "it ends its page");
    assert!(
        exported.kept[0].id == "2" && exported.kept[0].reason.contains("replay it"),
        "{:?}",
        exported.kept
    );
    let rest = world.dead(DeadLettersRequest { before: "2".into(), ..ask("export") }).await;
    assert_eq!((ids(&rest.letters), rest.kept.len(), rest.remaining), (vec!["1"], 0, 0));

    world.config.put(WS, vec![value(WS, record::FLOW, "f1", "{}")]).await.unwrap();
    world.broker.ensure(&TopicSpec::with(topic(LOAD), "chunker--default--f1--input")).await.unwrap();
    let one = DeadLettersRequest { ids: vec!["2".into()], ..ask("replay") };
    assert_eq!(world.dead(one).await.count, 1);
    let inbox = world.read(LOAD, "chunker--default--f1--input").await;
    let delivery = next(&*inbox).await;
    assert!(delivery.message.body == body && delivery.message.get(property::LETTER).is_none());
    delivery.ack();
    world.stop().await;
}

#[tokio::test]
async fn without_a_run_letters_go_to_the_run_that_their_flow_has_now() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    let of_run = |id: &str, run: &str| DeadLetter {
        flow: run.into(),
        subscription: format!("chunker--default--{run}--input"),
        ..letter(id, &format!("flow:tg:text-document-load:default:{run}"), &format!("body {id}"))
    };
    for (id, run) in [("1", "f1"), ("2", "f1-r2"), ("3", "f1-r3"), ("4", "f1-r2"), ("other", "f2")] {
        world.publish(PARKED, of_run(id, run)).await;
    }
    world.letters(5).await;
    let now = "flow:tg:text-document-load:default:f1-r3";
    world.broker.ensure(&TopicSpec::with(topic(now), "chunker--default--f1-r3--input")).await.unwrap();
    let inbox = world.read(now, "chunker--default--f1-r3--input").await;
    let flow = |flow: &str| DeadLettersRequest { flow: flow.into(), ..ask("replay") };

    let stopping = record::Flow { status: Some("stopping".into()), ..text_flow("f1-r3") };
    world.flow("f1", &stopping).await;
    let kept = world.dead(flow("f1")).await;
    assert_eq!((kept.count, kept.kept.len()), (0, 4));
    assert!(kept.kept[0].reason.contains("stopping"), "{kept:?}");

    world.flow("f1", &text_flow("f1-r3")).await;
    let of_one_run = world.dead(flow("f1-r2")).await;
    assert_eq!((of_one_run.error, of_one_run.count, of_one_run.kept), (None, 2, Vec::new()));
    let rest = world.dead(flow("f1")).await;
    assert_eq!((rest.error, rest.count, rest.kept), (None, 2, Vec::new()));
    for body in ["body 2", "body 4", "body 1", "body 3"] {
        let delivery = next(&*inbox).await;
        assert_eq!(&delivery.message.body[..], body.as_bytes());
        delivery.ack();
    }
    assert_eq!(ids(&world.letters(1).await.letters), ["other"]);
    world.stop().await;
}

#[tokio::test]
async fn a_letter_of_a_topic_that_flows_of_a_blueprint_share_goes_back_there() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    let shared = "flow:tg:x:default:blue";
    for (id, flow) in [("1", "blue"), ("2", "f1")] {
        world.publish(PARKED, DeadLetter { flow: flow.into(), ..letter(id, shared, "x") }).await;
    }
    world.letters(2).await;
    world.broker.ensure(&TopicSpec::with(topic(shared), "chunker--default--f1--input")).await.unwrap();
    world.config.put(WS, vec![value(WS, record::BLUEPRINT, "blue", "{}")]).await.unwrap();
    let answer = world.dead(DeadLettersRequest { all: true, ..ask("replay") }).await;
    assert_eq!((answer.count, answer.kept), (2, Vec::new()));
    world.stop().await;
}

#[tokio::test]
async fn beyond_the_bound_letters_wait_on_their_topic_until_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let broker = sluice_bus::embedded::Embedded::in_memory();
    let limits = Limits { letters_max: 3, body_bytes_max: 1_000 };
    let world = World::start_with(folder.path(), &broker, Arc::new(broker.clone()), limits).await;
    let full = async |count: u64| {
        let line = format!("sluice_dead_letters_full {count}\n");
        let ends = tokio::time::Instant::now() + common::DEADLINE;
        while !world.process.metrics.text().contains(&line) {
            assert!(tokio::time::Instant::now() < ends, "never {line}");
            tokio::task::yield_now().await;
        }
    };
    let remove = async |id: &str| {
        let gone = world.dead(DeadLettersRequest { ids: vec![id.into()], ..ask("remove") }).await;
        assert_eq!(gone.count, 1);
    };
    let body = |length: usize| "x".repeat(length);
    for id in ["1", "2", "3", "4", "5"] {
        world.publish(PARKED, letter(id, LOAD, "x")).await;
    }
    full(1).await;
    let first: Vec<_> = world.letters(3).await.letters.into_iter().map(|letter| letter.id).collect();
    assert_eq!(first, ["3", "2", "1"], "nothing that was taken is lost");
    remove("2").await;
    remove("1").await;
    let mut all: Vec<_> = world.letters(3).await.letters.into_iter().map(|letter| letter.id).collect();
    all.sort();
    assert_eq!(all, ["3", "4", "5"], "what waited is taken by itself");
    full(1).await;

    // So it is with bytes; one that is larger than the bound is kept when it is alone.
    world.publish(PARKED, letter("large", LOAD, &body(1_500))).await;
    remove("4").await;
    remove("5").await;
    full(1).await;
    assert_eq!(ids(&world.letters(1).await.letters), ["3"]);
    remove("3").await;
    let ends = tokio::time::Instant::now() + common::DEADLINE;
    while ids(&world.dead(ask("list")).await.letters) != ["large"] {
        assert!(tokio::time::Instant::now() < ends, "the large letter is never taken");
        tokio::task::yield_now().await;
    }
    world.publish(PARKED, letter("6", LOAD, "x")).await;
    full(1).await;
    world.stop().await;

    // What waits outlives the library, which starts although it is full.
    let world = World::start_with(folder.path(), &broker, Arc::new(broker.clone()), limits).await;
    assert_eq!(ids(&world.letters(1).await.letters), ["large"]);
    let gone = world.dead(DeadLettersRequest { all: true, ..ask("remove") }).await;
    assert_eq!(gone.count, 1);
    assert_eq!(ids(&world.letters(1).await.letters), ["6"]);
    world.stop().await;
}

#[tokio::test]
async fn what_the_broker_took_from_a_foreign_reader_is_filed_where_it_came_from_and_replayed() {
    use sluice_bus::{Address, Broker, Message, property};
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    let reader = "chunker--default--f1--input";
    let taken = |workspace: &str| {
        Message::new("{\"text\": \"x\"}")
            .with(property::DEAD_TOPIC, &format!("flow:tg:text-document-load:{workspace}:f1"))
            .with(property::DEAD_SUBSCRIPTION, reader)
            .with(property::DEAD_REASON, "delivery_limit")
            .with(property::MESSAGE_ID, &format!("of {workspace}"))
    };
    let poison = Address::Topic(sluice_schema::system::poison());
    // Neither one without an origin nor one of a workspace that is gone stands in the way.
    for message in [Message::new("?"), taken("gone"), taken("default")] {
        world.broker.publish(&poison, message).await.unwrap();
    }
    let listed = world.letters(1).await.letters;
    assert_eq!((listed[0].topic.as_str(), listed[0].flow.as_str()), (LOAD, "f1"));
    assert_eq!(listed[0].reason, "a reader that is not ours gave it back too often");

    world.config.put(WS, vec![value(WS, record::FLOW, "f1", "{}")]).await.unwrap();
    world.broker.ensure(&TopicSpec::with(topic(LOAD), reader)).await.unwrap();
    let inbox = world.read(LOAD, reader).await;
    let replayed = world.dead(DeadLettersRequest { ids: vec![listed[0].id.clone()], ..ask("replay") }).await;
    assert_eq!((replayed.count, replayed.kept.len()), (1, 0), "{replayed:?}");
    let delivery = next(&*inbox).await;
    assert_eq!(delivery.message.get(property::MESSAGE_ID), Some("of default"));
    assert_eq!(delivery.message.get(property::DEAD_TOPIC), None);
    delivery.ack();
    world.stop().await;
}

#[tokio::test]
async fn letters_have_ceilings_and_their_lists_are_pages() {
    const COUNT: usize = 60;
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    for n in 0..COUNT {
        let properties = [("p".to_owned(), "x".repeat(100_000))].into();
        world.publish(PARKED, DeadLetter { properties, ..letter(&format!("{n:02}"), LOAD, "b") }).await;
    }
    let reason = "why ".repeat(1_000_000);
    world.publish(PARKED, DeadLetter { reason, ..letter("wordy", LOAD, "b") }).await;
    let properties = [("p".to_owned(), "x".repeat(1_000_000))].into();
    world.publish(PARKED, DeadLetter { properties, ..letter("vast", LOAD, "b") }).await;

    let all = || DeadLettersRequest { limit: 1_000, ..ask("list") };
    let ends = tokio::time::Instant::now() + common::DEADLINE;
    let first = loop {
        let first = world.dead(all()).await;
        if first.count + first.remaining == COUNT as i64 + 2 {
            break first;
        }
        assert!(tokio::time::Instant::now() < ends, "never all of them: {}", first.count + first.remaining);
    };
    assert!(first.remaining > 0 && first.letters.len() > 10, "{}", first.letters.len());
    let mut letters = first.letters;
    while letters.len() < COUNT + 2 {
        let before = letters[letters.len() - 1].id.clone();
        let next = world.dead(DeadLettersRequest { before, ..all() }).await;
        assert!(!next.letters.is_empty(), "{:?}", next.error);
        letters.extend(next.letters);
    }
    let mut told: Vec<&str> = letters[2..].iter().map(|letter| letter.id.as_str()).collect();
    told.reverse();
    assert_eq!(told, (0..COUNT).map(|n| format!("{n:02}")).collect::<Vec<_>>(), "each once");
    let vast = &letters[0];
    assert!(vast.reason.contains("more than 131072 bytes") && vast.properties.is_empty(), "{}", vast.reason);
    assert_eq!(letters[1].id, "wordy");
    assert!(letters[1].reason.len() <= 16 << 10 && letters[1].reason.ends_with("(cut)"));
    // What was kept as it came can be had whole, and all of it can be removed.
    let whole = world.dead(DeadLettersRequest { ids: vec![vast.id.clone()], ..ask("export") }).await;
    assert!(whole.letters[0].body.len() > 1_000_000);
    let many = DeadLettersRequest { ids: vec!["x".to_owned(); 1_001], ..ask("remove") };
    assert!(world.dead(many).await.error.unwrap().message.contains("at most 1000"));
    assert_eq!(world.dead(DeadLettersRequest { all: true, ..ask("remove") }).await.count, COUNT as i64 + 2);
    world.letters(0).await;
    world.stop().await;
}

/// A broker whose messages on a topic were handed out so often, each time to a library that ended.
async fn ended(parked: &str, message: sluice_bus::Message, times: usize) -> sluice_bus::Embedded {
    use sluice_bus::{Address, Broker, Subscription};
    let broker = sluice_bus::Embedded::in_memory();
    broker.ensure(&TopicSpec::with(topic(parked), "librarian")).await.unwrap();
    broker.publish(&Address::Topic(topic(parked)), message).await.unwrap();
    let to = Subscription::Shared { topic: topic(parked), name: "librarian".to_owned(), prefetch: 1 };
    for _ in 0..times {
        let inbox = broker.subscribe(&to).await.unwrap();
        drop(next(&*inbox).await);
    }
    broker
}

/// Waits until nothing is left of it.
async fn is_drained(world: &World, parked: &str) {
    let spec = [TopicSpec::with(topic(parked), "librarian")];
    let drained = async {
        while !world.broker.observe(&spec).await.unwrap()[0].subscriptions[0].is_drained() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(common::DEADLINE, drained).await.expect("it has an end");
}

#[tokio::test]
async fn a_letter_that_ended_the_library_each_time_is_kept_unread_and_in_the_end_dropped() {
    for (times, kept) in [(4, Some("too hard")), (5, Some("it ended the process 5 times")), (10, None)] {
        let folder = tempfile::tempdir().unwrap();
        let body = sluice_schema::wire::encode(&letter("1", LOAD, "body"));
        let broker = ended(PARKED, sluice_bus::Message::new(body.clone()), times).await;
        let world =
            World::start_with(folder.path(), &broker, Arc::new(broker.clone()), Limits::default()).await;
        is_drained(&world, PARKED).await;
        let listed = world.dead(ask("list")).await.letters;
        let reasons: Vec<&str> = listed.iter().map(|letter| letter.reason.as_str()).collect();
        assert_eq!(reasons.len(), usize::from(kept.is_some()), "{times}: {reasons:?}");
        if let Some(kept) = kept {
            assert!(reasons[0].starts_with(kept), "{times}: {reasons:?}");
        }
        if times == 5 {
            let exported = world.dead(ask("export")).await.letters;
            assert_eq!(exported[0].body, base64(&body), "nothing of it is lost");
        }
        world.stop().await;
    }
}

#[tokio::test]
async fn poison_that_ended_the_library_each_time_is_filed_without_its_content_and_in_the_end_dropped() {
    use sluice_bus::{Message, property};
    let taken = Message::new("{\"text\": \"x\"}")
        .with(property::DEAD_TOPIC, LOAD)
        .with(property::DEAD_SUBSCRIPTION, "chunker--default--f1--input")
        .with(property::DEAD_REASON, "delivery_limit");
    for (times, bodies) in
        [(4, vec![base64("{\"text\": \"x\"}")]), (5, vec![String::new()]), (10, Vec::new())]
    {
        let folder = tempfile::tempdir().unwrap();
        let poison = sluice_schema::system::poison();
        let broker = ended(poison.as_str(), taken.clone(), times).await;
        let world =
            World::start_with(folder.path(), &broker, Arc::new(broker.clone()), Limits::default()).await;
        is_drained(&world, poison.as_str()).await;
        is_drained(&world, PARKED).await;
        let exported = world.dead(ask("export")).await.letters;
        let found: Vec<String> = exported.iter().map(|letter| letter.body.clone()).collect();
        assert_eq!(found, bodies, "{times}");
        let is_told =
            exported.iter().all(|letter| letter.reason.contains("its content is dropped") == (times == 5));
        assert!(is_told, "{exported:?}");
        world.stop().await;
    }
}
