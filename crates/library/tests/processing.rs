//! Documents on their way into flows, and what is counted of them there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{WS, World, about, add, add_processing, call, captured, flow_record, next, text_flow, topic};
use sluice_bus::{Address, BoxFuture, Broker, Inbox, Limits, Message, Subscription};
use sluice_library::Limits as LetterLimits;
use sluice_schema::message::{LibrarianRequest, LibrarianResponse, StageReport};
use sluice_schema::record;
use sluice_sdk::config::value;

const LOAD: &str = "flow:tg:text-document-load:default:cap1";
const TRIPLES: &str = "flow:tg:triples-store:default:cap1";
const REPORTS: &str = "flow:tg:progress:default";

fn progress(document: &str) -> LibrarianRequest {
    about("get-progress", document)
}

fn report(id: &str, stage: &str, event: &str, unit: &str, pieces: &[&str]) -> StageReport {
    StageReport {
        id: id.to_owned(),
        document_id: "http://example.org/doc1".to_owned(),
        flow: "cap1".to_owned(),
        collection: "default".to_owned(),
        stage: stage.to_owned(),
        event: event.to_owned(),
        unit: unit.to_owned(),
        pieces: pieces.iter().map(|piece| (*piece).to_owned()).collect(),
        count: i64::try_from(pieces.len()).unwrap(),
        reason: if event == "failed" { "too hard".to_owned() } else { String::new() },
    }
}

/// Plays the recorded conversation up to the document being in the library.
async fn with_the_recorded_document(world: &World) {
    for (exchange, _, body) in captured("librarian.jsonl") {
        if exchange == "tg.request.librarian:default" {
            world.ok(serde_json::from_value(body).unwrap()).await;
            if !world.ok(call("list-documents")).await.document_metadatas.is_empty() {
                return;
            }
        }
    }
}

#[tokio::test]
async fn a_document_enters_a_flow_as_it_was_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    with_the_recorded_document(&world).await;
    world.flow("cap1", &text_flow("cap1")).await;
    let (load, triples) = (world.read(LOAD, "reader").await, world.read(TRIPLES, "reader").await);

    let recorded = captured("document-processing.jsonl");
    let question: LibrarianRequest = serde_json::from_value(recorded[0].2.clone()).unwrap();
    assert_eq!(world.ask(question.clone()).await, LibrarianResponse::default());
    let published = |exchange: &str| recorded.iter().find(|(name, ..)| name == exchange).unwrap().2.clone();
    for (inbox, exchange) in
        [(&triples, "tg.flow.triples-store:default:cap1"), (&load, "tg.flow.text-document-load:default:cap1")]
    {
        let delivery = next(&**inbox).await;
        let sent: serde_json::Value = serde_json::from_slice(&delivery.message.body).unwrap();
        assert_eq!(sent, published(exchange));
        delivery.ack();
    }
    let collection = world.config.get(WS, "collection", "default").await.unwrap().unwrap().value.unwrap();
    let stored: serde_json::Value = serde_json::from_str(&collection).unwrap();
    let put = recorded.iter().find(|(_, _, body)| body["operation"] == "put").unwrap();
    let recorded_value = put.2["values"][0]["value"].as_str().unwrap();
    assert_eq!(stored, serde_json::from_str::<serde_json::Value>(recorded_value).unwrap());

    let listed = world.ok(call("list-processing")).await.processing_metadatas;
    assert_eq!(listed, [question.processing_metadata.clone().unwrap()]);
    world.ok(question.clone()).await;
    let mut other = question.clone();
    other.processing_metadata.as_mut().unwrap().time += 1;
    assert!(world.refused(other).await.message.contains("'p1' already exists"));
    world.ok(LibrarianRequest { processing_id: "p1".into(), ..call("remove-processing") }).await;
    assert!(world.ok(call("list-processing")).await.processing_metadatas.is_empty());

    // A second document says that nothing of the repeated call stood before it.
    world.ok(add("second", "text")).await;
    world.ok(add_processing("p2", "second", "cap1")).await;
    let body = String::from_utf8(next(&*load).await.message.body.to_vec()).unwrap();
    assert!(body.contains(r#""document_id":"second""#), "the repeated call sent nothing: {body}");
    world.stop().await;
}

#[tokio::test]
async fn what_cannot_be_processed_is_refused_and_leaves_no_record() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    world.ok(add("d", "text")).await;
    world.flow("f1", &text_flow("f1")).await;
    let stopping = record::Flow { status: Some("stopping".into()), ..text_flow("f2") };
    world.flow("f2", &stopping).await;
    world.flow("nodoor", &flow_record("nodoor", &[("triples-store", "triples-store")])).await;
    world.config.put(WS, vec![value(WS, record::FLOW, "odd", "{")]).await.unwrap();
    // Its record is there and its topics are not: the flow is going at this moment.
    let gone = serde_json::to_string(&text_flow("gone")).unwrap();
    world.config.put(WS, vec![value(WS, record::FLOW, "gone", gone)]).await.unwrap();
    let mut nowhere = add_processing("p", "d", "f1");
    nowhere.processing_metadata.as_mut().unwrap().collection.clear();
    let mut misnamed = add_processing("p", "d", "f1");
    misnamed.processing_metadata.as_mut().unwrap().collection = "a/b".into();
    let cases = [
        (add_processing("p", "d", "unknown"), "flow 'unknown' does not run in workspace 'default'"),
        (add_processing("p", "d", "f2"), "is stopping"),
        (add_processing("p", "d", "nodoor"), "no interface 'text-load'"),
        (add_processing("p", "d", "odd"), "cannot be read"),
        (add_processing("p", "d", "gone"), "was stopped meanwhile"),
        (add_processing("p", "nobody", "f1"), "'nobody' is not in the library"),
        (add_processing("", "d", "f1"), "names no processing record"),
        (add_processing("p", "d", ""), "names no flow"),
        (nowhere, "names no collection"),
        (misnamed, "collection"),
        (
            LibrarianRequest { processing_metadata: None, ..add_processing("p", "d", "f1") },
            "no processing-metadata",
        ),
        (LibrarianRequest { processing_id: "p".into(), ..call("remove-processing") }, "'p' does not exist"),
    ];
    for (request, text) in cases {
        let said = world.refused(request).await;
        assert!(said.message.contains(text), "expecting {text}: {said:?}");
    }
    assert!(world.ok(call("list-processing")).await.processing_metadatas.is_empty());
    assert!(world.ok(progress("")).await.progress.is_empty());
    world.stop().await;
}

#[tokio::test]
async fn progress_grows_with_reports_survives_a_restart_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    with_the_recorded_document(&world).await;
    world.flow("cap1", &text_flow("cap1")).await;
    let document = "http://example.org/doc1";
    world.ok(add_processing("p1", document, "cap1")).await;
    let first = world.ok(progress(document)).await.progress.remove(0);
    assert_eq!((first.texts_announced, first.texts_done, first.complete), (1, 0, false));
    assert_eq!((first.flow.as_str(), first.collection.as_str()), ("cap1", "default"));

    world.publish(REPORTS, report("1", "chunker", "announced", "chunk", &["a", "b", "c"])).await;
    world.publish(REPORTS, "no report").await;
    world.publish(REPORTS, report("2", "chunker", "done", "text", &[document])).await;
    world.publish(REPORTS, report("3", "embeddings", "done", "chunk", &["a", "b"])).await;
    world.publish(REPORTS, report("4", "index", "done", "chunk", &["a"])).await;
    world.publish(REPORTS, report("5", "store", "done", "chunk", &["a"])).await;
    world.publish(REPORTS, report("6", "embeddings", "failed", "chunk", &["c"])).await;
    let half = world.until(progress(document), |answer| answer.progress[0].failed == 1).await;
    let half = &half.progress[0];
    assert_eq!((half.announced, half.embedded, half.indexed, half.stored), (3, 2, 1, 1));
    assert!(!half.complete);
    assert_eq!((half.failures[0].piece.as_str(), half.failures[0].reason.as_str()), ("c", "too hard"));
    world.stop().await;

    let world = World::start(folder.path()).await;
    world.publish(REPORTS, report("5", "store", "done", "chunk", &["a"])).await;
    world.publish(REPORTS, report("7", "store", "done", "chunk", &["b"])).await;
    let whole = world.until(progress(document), |answer| answer.progress[0].complete).await;
    assert_eq!((whole.progress[0].stored, whole.progress[0].failed), (2, 1));
    let only = |flow: &str| LibrarianRequest { flow: flow.into(), ..progress("") };
    assert_eq!(world.ok(only("cap1")).await.progress.len(), 1);
    assert!(world.ok(only("other")).await.progress.is_empty());

    // Put through a later run of the flow, it starts afresh, and the earlier run is not shown any more.
    world.flow("cap1", &text_flow("cap1-r2")).await;
    world.ok(add_processing("p1", document, "cap1")).await;
    let again = world.ok(progress(document)).await.progress;
    assert_eq!((again.len(), again[0].announced, again[0].texts_announced), (1, 0, 1));
    assert_eq!(world.ok(only("cap1-r2")).await.progress.len(), 1);
    world.ok(about("remove-document", document)).await;
    assert!(world.ok(progress("")).await.progress.is_empty());
    world.stop().await;
}

/// Publishes everything but documents while it is cut.
struct Cut {
    inner: sluice_bus::embedded::Embedded,
    cut: AtomicBool,
}

impl Broker for Cut {
    fn publish<'a>(&'a self, to: &'a Address, message: Message) -> BoxFuture<'a, sluice_bus::Result<()>> {
        if self.cut.load(Ordering::SeqCst) && *to == Address::Topic(topic(LOAD)) {
            let lost = sluice_bus::Error::OutcomeUnknown { what: "a publish".into(), reason: "cut".into() };
            return Box::pin(async { Err(lost) });
        }
        self.inner.publish(to, message)
    }
    fn subscribe<'a>(&'a self, to: &'a Subscription) -> BoxFuture<'a, sluice_bus::Result<Box<dyn Inbox>>> {
        self.inner.subscribe(to)
    }
    fn limits(&self) -> Limits {
        self.inner.limits()
    }
}

#[tokio::test]
async fn a_document_recorded_and_not_sent_is_sent_by_the_next_call_or_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let broker = sluice_bus::embedded::Embedded::in_memory();
    let cut = Arc::new(Cut { inner: broker.clone(), cut: AtomicBool::new(true) });
    let world = World::start_with(folder.path(), &broker, cut.clone(), LetterLimits::default()).await;
    world.flow("cap1", &text_flow("cap1")).await;
    for id in ["one", "two"] {
        world.ok(add(id, "text")).await;
        let said = world.refused(add_processing(id, id, "cap1")).await;
        assert_eq!(said.r#type, "outcome-unknown", "{said:?}");
    }
    let load = world.read(LOAD, "reader").await;
    cut.cut.store(false, Ordering::SeqCst);
    world.ok(add_processing("one", "one", "cap1")).await;
    let sent = async |load: &dyn Inbox| {
        let delivery = next(load).await;
        let body = String::from_utf8(delivery.message.body.to_vec()).unwrap();
        delivery.ack();
        body
    };
    assert!(sent(&*load).await.contains(r#""document_id":"one""#));
    world.stop().await;

    let world = World::start_with(folder.path(), &broker, cut.clone(), LetterLimits::default()).await;
    assert!(sent(&*load).await.contains(r#""document_id":"two""#), "sent by the start");
    world.until(add_processing("two", "two", "cap1"), |answer| answer.error.is_none()).await;
    world.ok(add("three", "text")).await;
    world.ok(add_processing("three", "three", "cap1")).await;
    assert!(sent(&*load).await.contains(r#""document_id":"three""#), "and only once");
    world.stop().await;
}
