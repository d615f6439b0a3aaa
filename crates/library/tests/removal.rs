//! What goes with a document, with a processing record and with a collection, also when the process dies on the way.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use common::{WS, World, about, add, add_child, add_processing, call, next, text_flow};
use sluice_bus::embedded::Embedded as Broker;
use sluice_bus::{Address, BoxFuture, Inbox, Limits, Message, Patience, Subscription, property};
use sluice_library::Limits as LetterLimits;
use sluice_schema::message::{
    CollectionManagementRequest, DeadLetter, DeadLettersRequest, LibrarianRequest, LibrarianResponse,
    Removal, StageReport,
};
use sluice_schema::wire;
use sluice_store::{Batch, Embedded as Store, Error, Found, Read, Stores, Tables};

const REMOVALS: &str = "flow:tg:removals:default";
const REPORTS: &str = "flow:tg:progress:default";
const LOAD: &str = "flow:tg:text-document-load:default:f1";

/// A part that was made for a collection.
fn add_made(parent: &str, id: &str, collection: &str) -> LibrarianRequest {
    LibrarianRequest { collection: collection.into(), ..add_child(parent, id, id) }
}

fn process_into(id: &str, document: &str, collection: &str) -> LibrarianRequest {
    let mut request = add_processing(id, document, "f1");
    request.processing_metadata.as_mut().unwrap().collection = collection.into();
    request
}

async fn taken<T: serde::de::DeserializeOwned>(inbox: &dyn Inbox) -> (T, Option<i64>) {
    let delivery = next(inbox).await;
    let body = wire::decode(&delivery.message.body).unwrap();
    let pass = delivery.message.get(property::PASS).map(|pass| pass.parse().unwrap());
    delivery.ack();
    (body, pass)
}

async fn everything(world: &World) -> Vec<String> {
    let all = world.ok(LibrarianRequest { include_children: true, ..call("list-documents") }).await;
    all.document_metadatas.into_iter().map(|document| document.id).collect()
}

async fn blobs(world: &World) -> usize {
    world.store.as_ref().unwrap().stores().blobs.list("doc/", None, 100).await.unwrap().len()
}

#[tokio::test]
async fn with_a_document_goes_everything_and_what_was_on_its_way_does_not_bring_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    world.flow("f1", &text_flow("f1")).await;
    world.ok(add("doc", "text")).await;
    world.ok(process_into("p1", "doc", "default")).await;
    let load = world.read(LOAD, "reader").await;
    let (_, first) = taken::<serde_json::Value>(&*load).await;
    world.ok(add_made("doc", "chunk", "default")).await;
    let mut told = Vec::new();
    for kind in ["vectors", "keywords", "triples"] {
        told.push(world.read(REMOVALS, kind).await);
    }

    world.ok(about("remove-document", "doc")).await;
    for inbox in &told {
        let (removal, _) = taken::<Removal>(&**inbox).await;
        assert_eq!((removal.document_id.as_str(), removal.collection.as_str()), ("doc", ""));
        assert!(!removal.restored && removal.pass > first.unwrap(), "later than the pass that it ends");
    }
    assert!(everything(&world).await.is_empty());
    assert_eq!(blobs(&world).await, 0);
    assert!(world.ok(call("list-processing")).await.processing_metadatas.is_empty());
    assert!(world.refused(about("remove-document", "doc")).await.message.contains("not in the library"));

    // A chunk and a report of the pass that ended, then one of another document, which is counted.
    let of_pass = |body: Vec<u8>, pass: i64| Message::new(body).with(property::PASS, &pass.to_string());
    let report = |document: &str| StageReport {
        id: "1".into(),
        document_id: document.into(),
        flow: "f1".into(),
        collection: "default".into(),
        stage: "store".into(),
        event: "done".into(),
        unit: "chunk".into(),
        pieces: vec!["chunk".into()],
        count: 1,
        ..Default::default()
    };
    for document in ["doc", "other"] {
        let message = of_pass(wire::encode(&report(document)).to_vec(), first.unwrap());
        let to = Address::Topic(common::topic(REPORTS));
        sluice_bus::Broker::publish(&world.broker, &to, message).await.unwrap();
    }
    let late = of_pass(wire::encode(&add_made("doc", "late", "default")).to_vec(), first.unwrap());
    let mut call = world.librarian.stream_message(late, Patience::total(common::DEADLINE)).await.unwrap();
    let taken_and_forgotten = call.next().await.unwrap().unwrap();
    assert_eq!(taken_and_forgotten.error, None);
    let progress =
        world.until(about("get-progress", ""), |answer| !answer.progress.is_empty()).await.progress;
    assert_eq!(progress.iter().map(|one| one.document_id.as_str()).collect::<Vec<_>>(), ["other"]);
    assert!(everything(&world).await.is_empty());

    // The same id again is another document, and the stores hear that it is there again.
    world.ok(add("doc", "new text")).await;
    for inbox in &told {
        assert!(taken::<Removal>(&**inbox).await.0.restored);
    }
    world.ok(process_into("p1", "doc", "default")).await;
    let (_, second) = taken::<serde_json::Value>(&*load).await;
    assert!(second > first);
    world.ok(add_made("doc", "chunk", "default")).await;
    assert_eq!(everything(&world).await, ["chunk", "doc"]);
    world.stop().await;
}

#[tokio::test]
async fn with_the_last_record_of_a_document_in_a_collection_goes_what_was_made_there_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    world.flow("f1", &text_flow("f1")).await;
    world.ok(add("doc", "text")).await;
    for (id, collection) in [("p1", "a"), ("p2", "a"), ("p3", "b")] {
        world.ok(process_into(id, "doc", collection)).await;
    }
    world.ok(add_made("doc", "page-a", "a")).await;
    world.ok(add_made("page-a", "chunk-a", "a")).await;
    world.ok(add_child("page-a", "image", "kept")).await;
    world.ok(add_made("doc", "chunk-b", "b")).await;
    let told = world.read(REMOVALS, "vectors").await;
    let record = |id: &str| LibrarianRequest { processing_id: id.into(), ..call("remove-processing") };
    let remove = |id: &str| LibrarianRequest { remove_derived: true, ..record(id) };

    world.ok(process_into("p0", "doc", "kept")).await;
    world.ok(record("p0")).await;
    assert!(world.ok(call("list-processing")).await.processing_metadatas.iter().all(|one| one.id != "p0"));
    assert_eq!(
        everything(&world).await,
        ["chunk-a", "chunk-b", "doc", "image", "page-a"],
        "a record goes alone unless told"
    );
    world.ok(remove("p1")).await;
    assert_eq!(everything(&world).await, ["chunk-a", "chunk-b", "doc", "image", "page-a"], "p2 wants it");
    world.ok(remove("p2")).await;
    let (removal, _) = taken::<Removal>(&*told).await;
    assert_eq!(
        (removal.document_id.as_str(), removal.collection.as_str()),
        ("doc", "a"),
        "only one was told"
    );
    assert_eq!(everything(&world).await, ["chunk-b", "doc", "image"]);
    let children = world.ok(about("list-children", "doc")).await.document_metadatas;
    let children: Vec<_> = children.iter().map(|child| child.id.as_str()).collect();
    assert_eq!(children, ["chunk-b", "image"], "what was a part of a part is still found");

    let delete = CollectionManagementRequest {
        operation: "delete-collection".into(),
        collection: "b".into(),
        ..Default::default()
    };
    assert_eq!(world.collection(delete).await.error, None);
    let (removal, _) = taken::<Removal>(&*told).await;
    assert_eq!((removal.document_id.as_str(), removal.collection.as_str()), ("", "b"));
    assert_eq!(world.config.get(WS, "collection", "b").await.unwrap(), None);
    assert!(world.config.get(WS, "collection", "a").await.unwrap().is_some());
    assert_eq!(everything(&world).await, ["doc", "image"]);
    assert!(world.ok(call("list-processing")).await.processing_metadatas.is_empty());
    world.ok(about("remove-document", "doc")).await;
    assert!(everything(&world).await.is_empty());
    world.stop().await;
}

/// A process that dies: after so many writes and publishes nothing works any more.
#[derive(Clone)]
struct Dying {
    tables: Option<Arc<dyn Tables>>,
    broker: Broker,
    left: Arc<AtomicI64>,
}

impl Dying {
    fn is_dead(&self) -> bool {
        self.left.fetch_sub(1, Ordering::SeqCst) <= 0
    }

    fn dead() -> Error {
        Error::Unavailable { reason: "the process is dead".into() }
    }
}

impl Tables for Dying {
    fn read(&self, reads: Vec<Read>) -> BoxFuture<'_, sluice_store::Result<Vec<Found>>> {
        if self.left.load(Ordering::SeqCst) <= 0 {
            return Box::pin(async { Err(Self::dead()) });
        }
        self.tables.as_ref().unwrap().read(reads)
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, sluice_store::Result<()>> {
        if self.is_dead() {
            return Box::pin(async { Err(Self::dead()) });
        }
        self.tables.as_ref().unwrap().commit(batch)
    }
}

impl sluice_bus::Broker for Dying {
    fn publish<'a>(&'a self, to: &'a Address, message: Message) -> BoxFuture<'a, sluice_bus::Result<()>> {
        let is_removal = matches!(to, Address::Topic(topic) if topic.to_string() == REMOVALS);
        if is_removal && self.is_dead() {
            let dead = sluice_bus::Error::Unavailable { reason: "the process is dead".into() };
            return Box::pin(async { Err(dead) });
        }
        self.broker.publish(to, message)
    }

    fn subscribe<'a>(&'a self, to: &'a Subscription) -> BoxFuture<'a, sluice_bus::Result<Box<dyn Inbox>>> {
        self.broker.subscribe(to)
    }

    fn limits(&self) -> Limits {
        self.broker.limits()
    }
}

#[tokio::test]
async fn a_removal_cut_short_at_any_moment_is_finished_by_the_next_start() {
    let mut moments = 0;
    loop {
        let folder = tempfile::tempdir().unwrap();
        let broker = Broker::in_memory();
        let dying =
            Dying { tables: None, broker: broker.clone(), left: Arc::new(AtomicI64::new(i64::MAX / 2)) };
        let path = Arc::new(dying.clone());
        let wrap = |stores: Stores| {
            let tables = Some(stores.tables.clone());
            Stores { tables: Arc::new(Dying { tables, ..dying.clone() }), ..stores }
        };
        let world = World::start_on(folder.path(), &broker, path, LetterLimits::default(), wrap).await;
        world.flow("f1", &text_flow("f1")).await;
        world.ok(add("doc", "text")).await;
        world.ok(process_into("p1", "doc", "default")).await;
        for page in 0..3 {
            world.ok(add_made("doc", &format!("page {page}"), "default")).await;
            world.ok(add_made(&format!("page {page}"), &format!("chunk {page}"), "default")).await;
        }
        dying.left.store(moments, Ordering::SeqCst);
        let answer = world.ask(about("remove-document", "doc")).await;
        let survived = answer.error.is_none();
        assert!(survived || dying.left.load(Ordering::SeqCst) <= 0, "moment {moments}: {answer:?}");
        world.stop().await;
        if survived {
            assert!(moments > 5, "it died {moments} times");
            return;
        }

        let world =
            World::start_with(folder.path(), &broker, Arc::new(broker.clone()), LetterLimits::default())
                .await;
        if moments == 0 {
            // It died before the wish was written: nothing has happened, and the call can be repeated.
            assert_eq!(everything(&world).await.len(), 7);
            world.ok(about("remove-document", "doc")).await;
        }
        // Adding it again finishes what is under way, or finds it finished.
        world.ok(add("doc", "another text")).await;
        assert_eq!(everything(&world).await, ["doc"], "moment {moments}");
        assert_eq!(blobs(&world).await, 1, "moment {moments}");
        assert!(world.ok(call("list-processing")).await.processing_metadatas.is_empty());
        let told = world.read(REMOVALS, "vectors").await;
        let (removal, _) = taken::<Removal>(&*told).await;
        assert_eq!((removal.document_id.as_str(), removal.restored), ("doc", false), "moment {moments}");
        world.stop().await;
        moments += 1;
    }
}

/// As a process that died, or an earlier version, may have left it.
async fn wish(folder: &std::path::Path, names: &str, row: &'static [u8]) {
    let store = Store::open(folder).unwrap();
    let mut batch = Batch::new();
    batch.put("library-removals", format!("{WS}\0{names}"), Bytes::from_static(row));
    store.tables().commit(batch).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn a_removal_that_cannot_be_finished_keeps_no_other_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    // Refused, and nothing of it stays.
    for id in ["y".repeat(1_100), "a\0b".into(), "a\u{1b}b".into()] {
        let delete = CollectionManagementRequest {
            operation: "delete-collection".into(),
            collection: id,
            ..Default::default()
        };
        let refused = world.collection(delete).await.error.expect("a name that cannot be");
        assert!(refused.message.contains("collection ids are up to"), "{refused:?}");
    }
    world.ok(add("doc", "text")).await;
    world.ok(add("other", "text")).await;
    world.stop().await;
    // The first in order cannot be read, the second is for a name that config does not take.
    wish(folder.path(), "\0a", b"damaged").await;
    wish(folder.path(), &format!("\0{}", "y".repeat(1_100)), b"1").await;
    wish(folder.path(), "doc\0", b"1").await;
    let world = World::start(folder.path()).await;
    let gone = |answer: &LibrarianResponse| {
        answer.document_metadatas.iter().map(|document| document.id.as_str()).eq(["other"])
    };
    world.until(LibrarianRequest { include_children: true, ..call("list-documents") }, gone).await;
    let tables = world.store.as_ref().unwrap().tables();
    let ends = tokio::time::Instant::now() + common::DEADLINE;
    loop {
        let left = tables.read(vec![Read::prefix("library-removals", b"", 10)]).await.unwrap();
        let left: Vec<_> =
            left.into_iter().flat_map(|found| found.into_rows().rows).map(|row| row.0).collect();
        if left == ["default\0\0a"] {
            break;
        }
        assert!(tokio::time::Instant::now() < ends, "{left:?}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_was_lost_of_a_document_is_retried_by_naming_the_document() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    world.flow("f1", &text_flow("f1")).await;
    for (id, document) in [("1", "doc"), ("2", "other"), ("3", "doc")] {
        let body = format!(r#"{{"metadata":{{"id":"{id}","root":"{document}"}},"text":"x"}}"#);
        let letter = DeadLetter {
            id: id.into(),
            flow: "f1".into(),
            topic: LOAD.into(),
            subscription: "reader".into(),
            body: common::base64(body),
            ..Default::default()
        };
        world.publish("flow:tg:dead-letters:default", letter).await;
    }
    world.letters(3).await;
    let load = world.read(LOAD, "reader").await;
    let ask = |operation: &str| DeadLettersRequest {
        operation: operation.into(),
        document_id: "doc".into(),
        ..Default::default()
    };
    let listed = world.dead(ask("list")).await;
    assert_eq!(listed.letters.iter().map(|letter| letter.id.as_str()).collect::<Vec<_>>(), ["3", "1"]);
    let replayed = world.dead(ask("replay")).await;
    assert_eq!((replayed.count, replayed.kept.len()), (2, 0), "{replayed:?}");
    for id in ["1", "3"] {
        assert_eq!(taken::<serde_json::Value>(&*load).await.0["metadata"]["id"], id);
    }
    world.letters(1).await;
    world.stop().await;
}
