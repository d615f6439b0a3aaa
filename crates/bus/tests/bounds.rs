//! What is bounded in memory stays bounded, and says so.
#![expect(clippy::unwrap_used, reason = "a test helper may panic")]

use std::time::Duration;

use sluice_bus::{
    Address, Broker, BrokerAdmin, Config, Embedded, Error, Excess, Message, Subscription, TopicSpec, property,
};
use sluice_schema::Topic;

fn topic(text: &str) -> Topic {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_request_queue_that_is_full_says_so_until_a_deadline_makes_room() {
    tokio::time::pause();
    let broker = Embedded::open(Config { request_messages_max: 2, ..Config::default() }).unwrap();
    let service = topic("request:tg:service");
    broker.ensure(&TopicSpec::with(service.clone(), "service")).await.unwrap();
    let to = Address::Topic(service);
    broker.publish(&to, Message::new("a").with(property::TTL, "1000")).await.unwrap();
    broker.publish(&to, Message::new("b")).await.unwrap();
    let full = broker.publish(&to, Message::new("c")).await.unwrap_err();
    assert!(matches!(full, Error::Full { limit: 2, unit: "messages", .. }), "{full}");
    tokio::time::advance(Duration::from_secs(1)).await;
    broker.publish(&to, Message::new("c")).await.unwrap();
}

#[tokio::test]
async fn requests_are_bounded_in_bytes() {
    let broker = Embedded::open(Config { queue_bytes_max: 10_000, ..Config::default() }).unwrap();
    let service = topic("request:tg:service");
    broker.ensure(&TopicSpec::with(service.clone(), "service")).await.unwrap();
    let to = Address::Topic(service);
    broker.publish(&to, Message::new(vec![b' '; 6_000])).await.unwrap();
    let full = broker.publish(&to, Message::new(vec![b' '; 6_000])).await.unwrap_err();
    assert!(matches!(full, Error::Full { limit: 10_000, unit: "bytes", .. }), "{full}");
}

#[tokio::test]
async fn what_waits_in_some_workspaces_keeps_no_request_of_others_out() {
    let broker = Embedded::open(Config { memory_bytes_max: 2_000_000, ..Config::default() }).unwrap();
    let ask = async |name: &str, bytes: usize| {
        let service = topic(name);
        broker.ensure(&TopicSpec::with(service.clone(), "service")).await.unwrap();
        broker.publish(&Address::Topic(service), Message::new(vec![b' '; bytes])).await
    };
    let fill = async |name: &str| {
        let mut bytes = 1 << 20;
        while bytes > 100 {
            if ask(name, bytes).await.is_err() {
                bytes /= 2;
            }
        }
    };
    // Messages of flows that nobody reads, then questions that nobody answers.
    let queued = topic("flow:tg:input:w0:f");
    broker.ensure(&TopicSpec::with(queued.clone(), "reader")).await.unwrap();
    while broker.publish(&Address::Topic(queued.clone()), Message::new(vec![b' '; 100_000])).await.is_ok() {}
    for n in 0..8 {
        fill(&format!("request:tg:service:w{n}:f")).await;
    }
    for name in
        ["request:tg:iam", "request:tg:config:w0", "request:tg:librarian:w9", "request:tg:service:w9:f"]
    {
        assert!(ask(name, 50_000).await.is_ok(), "{name}");
    }
    let full = ask("request:tg:service:w0:f", 50_000).await.unwrap_err();
    assert!(matches!(full, Error::Full { .. }), "{full}");
}

#[tokio::test]
async fn a_reader_that_never_reads_loses_the_newest_and_stops_nobody() {
    let broker = Embedded::open(Config { inbox_messages_max: 3, ..Config::default() }).unwrap();
    let news = topic("notify:tg:news");
    broker.ensure(&TopicSpec::bare(news.clone())).await.unwrap();
    let inbox = broker.subscribe(&Subscription::Own { topics: vec![news.clone()] }).await.unwrap();
    for number in 0..10 {
        broker.publish(&Address::Topic(news.clone()), Message::new(number.to_string())).await.unwrap();
    }
    assert_eq!(broker.dropped(&inbox.address().unwrap()), Some(7));
    for number in 0..3 {
        assert_eq!(inbox.next().await.unwrap().message.body, number.to_string());
    }
}

#[tokio::test]
async fn what_is_sent_to_one_inbox_waits_for_room_and_of_an_answer_that_finds_none_its_call_hears() {
    tokio::time::pause();
    let broker = Embedded::open(Config { queue_bytes_max: 10_000, ..Config::default() }).unwrap();
    let inbox = broker.subscribe(&Subscription::Own { topics: Vec::new() }).await.unwrap();
    let to = Address::Inbox(inbox.address().unwrap());
    let answer = |id: &str| Message::new(vec![b' '; 8_000]).with(property::ID, id);
    // One larger than all of it goes in alone.
    broker.publish(&to, Message::new(vec![b' '; 20_000])).await.unwrap();
    let sending = broker.publish(&to, answer("waits"));
    let reading = async {
        tokio::task::yield_now().await;
        (inbox.next().await.unwrap(), inbox.next().await.unwrap())
    };
    let (sent, (large, waited)) = tokio::join!(sending, reading);
    sent.unwrap();
    assert_eq!((large.message.body.len(), waited.message.get(property::ID)), (20_000, Some("waits")));
    // Nobody reads: the second is dropped in the end, and its notice comes in its place.
    broker.publish(&to, answer("first")).await.unwrap();
    broker.publish(&to, answer("second")).await.unwrap();
    assert_eq!(inbox.next().await.unwrap().message.get(property::ID), Some("first"));
    let notice = inbox.next().await.unwrap();
    assert_eq!((notice.message.get(property::ID), notice.message.body.len()), (Some("second"), 0));
    assert!(notice.message.get(property::DROPPED).is_some());
    broker.publish(&to, answer("third")).await.unwrap();
    assert_eq!(inbox.next().await.unwrap().message.get(property::ID), Some("third"));
}

#[tokio::test]
async fn a_delayed_message_comes_when_its_time_has_come() {
    tokio::time::pause();
    let broker = Embedded::in_memory();
    let work = topic("flow:tg:work");
    broker.ensure(&TopicSpec::with(work.clone(), "worker")).await.unwrap();
    let to = Subscription::Shared { topic: work.clone(), name: "worker".to_owned(), prefetch: 2 };
    let inbox = broker.subscribe(&to).await.unwrap();
    for body in ["later", "sooner"] {
        broker.publish(&Address::Topic(work.clone()), Message::new(body)).await.unwrap();
    }
    let (later, sooner) = (inbox.next().await.unwrap(), inbox.next().await.unwrap());
    let started = tokio::time::Instant::now();
    later.again(Duration::from_secs(60));
    // A reader that sleeps until the later one gets up for the sooner one.
    let waits = inbox.next();
    let settles = async { sooner.again(Duration::from_secs(5)) };
    let (first, ()) = tokio::join!(waits, settles);
    let first = first.unwrap();
    assert_eq!((&first.message.body[..], started.elapsed().as_secs()), (&b"sooner"[..], 5));
    let second = inbox.next().await.unwrap();
    assert_eq!((&second.message.body[..], started.elapsed().as_secs()), (&b"later"[..], 60));
}

#[tokio::test]
async fn stopping_tells_everybody() {
    let broker = Embedded::in_memory();
    let work = topic("flow:tg:work");
    broker.ensure(&TopicSpec::with(work.clone(), "worker")).await.unwrap();
    let shared = Subscription::Shared { topic: work, name: "worker".to_owned(), prefetch: 1 };
    let shared = broker.subscribe(&shared).await.unwrap();
    let own = broker.subscribe(&Subscription::Own { topics: Vec::new() }).await.unwrap();
    let (one, two, ()) = tokio::join!(shared.next(), own.next(), broker.shutdown());
    for told in
        [one.err(), two.err(), broker.subscribe(&Subscription::Own { topics: Vec::new() }).await.err()]
    {
        assert!(matches!(told, Some(Error::Unavailable { .. })), "{told:?}");
    }
}

#[tokio::test]
async fn of_a_backlog_the_workspace_and_its_flow_are_told_and_others_are_let_in() {
    let broker = Embedded::open(Config { high_water_bytes: 4_000, ..Config::default() }).unwrap();
    let made = async |name: &str| {
        let topic = topic(name);
        broker.ensure(&TopicSpec::with(topic.clone(), "worker")).await.unwrap();
        topic
    };
    let (load, chunks) = (made("flow:tg:load:acme:f1").await, made("flow:tg:chunks:acme:f2").await);
    let send = async |topic: &Topic, message: Message| {
        broker.publish(&Address::Topic(topic.clone()), message).await.unwrap();
    };
    send(&load, Message::new(vec![b'x'; 1_000])).await;
    assert_eq!((broker.excess("acme"), broker.examine().await.unwrap()), (None, Vec::new()));
    // What its stages will make of it counts from the start.
    send(&chunks, Message::new(vec![b'x'; 500]).with(property::GROWTH, "6")).await;
    assert_eq!(broker.excess("other"), None);
    let Some(Excess::Own { bytes, share_bytes, flow }) = broker.excess("acme") else { panic!("no excess") };
    assert!(bytes > 4_000 && share_bytes == 3_000, "{bytes} {share_bytes}");
    assert_eq!(flow.as_deref(), Some("f2"));
    let found = broker.examine().await.unwrap();
    assert_eq!(found.iter().map(|found| found.code).collect::<Vec<_>>(), ["backlog-high"]);
    assert!(found[0].text.contains("workspace 'acme'") && found[0].text.contains("flow 'f2'"), "{found:?}");
    assert_eq!(found[0].topic, Some(chunks.clone()), "so that only its workspace is told");
    broker.remove(&TopicSpec::with(chunks, "worker")).await.unwrap();
    assert_eq!((broker.excess("acme"), broker.examine().await.unwrap()), (None, Vec::new()));
}

#[tokio::test]
async fn a_backlog_above_the_high_water_mark_is_a_finding() {
    let broker = Embedded::open(Config { high_water_bytes: 4, ..Config::default() }).unwrap();
    let work = topic("flow:tg:work");
    broker.ensure(&TopicSpec::with(work.clone(), "worker")).await.unwrap();
    assert_eq!(broker.examine().await.unwrap(), []);
    broker.publish(&Address::Topic(work), Message::new("four")).await.unwrap();
    let found = broker.examine().await.unwrap();
    assert_eq!(found.iter().map(|found| found.code).collect::<Vec<_>>(), ["backlog-high"]);
}
