//! Removing documents while the disk is full.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{World, about, add, add_child, call, next, text_flow};
use sluice_bus::embedded::Embedded as Broker;
use sluice_bus::{Address, BoxFuture, Inbox, Limits, Message, Subscription};
use sluice_library::Limits as LetterLimits;
use sluice_schema::message::{LibrarianRequest, Removal};
use sluice_schema::wire;
use sluice_store::contract::tables::ESSENTIAL_BYTES_MAX;
use sluice_store::{Batch, Error, Found, Op, Read, Stores, Tables};

const REMOVALS: &str = "flow:tg:removals:default";

/// A part that was made for a collection.
fn add_made(parent: &str, id: &str, collection: &str) -> LibrarianRequest {
    LibrarianRequest { collection: collection.into(), ..add_child(parent, id, id) }
}

/// The document that the next removal is about.
async fn told(inbox: &dyn Inbox) -> String {
    let delivery = next(inbox).await;
    let removal: Removal = wire::decode(&delivery.message.body).unwrap();
    delivery.ack();
    removal.document_id
}

async fn everything(world: &World) -> Vec<String> {
    let all = world.ok(LibrarianRequest { include_children: true, ..call("list-documents") }).await;
    all.document_metadatas.into_iter().map(|document| document.id).collect()
}

async fn blobs(world: &World) -> usize {
    world.store.as_ref().unwrap().stores().blobs.list("doc/", None, 100).await.unwrap().len()
}

/// A disk without room: tables that do only what such a disk lets them, and a broker that takes no message.
#[derive(Clone)]
struct Full {
    tables: Option<Arc<dyn Tables>>,
    broker: Broker,
    is_full: Arc<AtomicBool>,
    broker_is_full: Arc<AtomicBool>,
}

impl Tables for Full {
    fn read(&self, reads: Vec<Read>) -> BoxFuture<'_, sluice_store::Result<Vec<Found>>> {
        self.tables.as_ref().unwrap().read(reads)
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, sluice_store::Result<()>> {
        let bytes = |op: &Op| match op {
            Op::Put { key, value, .. } => key.len() + value.len(),
            Op::Delete { key, .. } | Op::DeletePrefix { prefix: key, .. } => key.len(),
        };
        let is_small = batch.ops.iter().map(bytes).sum::<usize>() <= ESSENTIAL_BYTES_MAX;
        let is_taken = batch.only_removes() || (batch.is_essential && is_small);
        if self.is_full.load(Ordering::SeqCst) && !is_taken {
            let (folder, reason) = ("the folder".to_owned(), "it is full".to_owned());
            return Box::pin(async { Err(Error::Disk { folder, reason }) });
        }
        self.tables.as_ref().unwrap().commit(batch)
    }
}

impl sluice_bus::Broker for Full {
    fn publish<'a>(&'a self, to: &'a Address, message: Message) -> BoxFuture<'a, sluice_bus::Result<()>> {
        let is_removal = matches!(to, Address::Subscribed(topic) if topic.to_string() == REMOVALS);
        if is_removal && self.broker_is_full.load(Ordering::SeqCst) {
            let full = sluice_bus::Error::Unavailable { reason: "the disk is full".into() };
            return Box::pin(async { Err(full) });
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
async fn documents_with_many_parts_are_removed_on_a_full_disk_also_while_the_broker_takes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let full = Full {
        tables: None,
        broker: Broker::in_memory(),
        is_full: Arc::default(),
        broker_is_full: Arc::default(),
    };
    let path = Arc::new(full.clone());
    let wrap = |stores: Stores| {
        let tables = Some(stores.tables.clone());
        Stores { tables: Arc::new(Full { tables, ..full.clone() }), ..stores }
    };
    let world = World::start_on(folder.path(), &full.broker, path, LetterLimits::default(), wrap).await;
    world.flow("f1", &text_flow("f1")).await;
    for document in ["doc", "other"] {
        world.ok(add(document, "text")).await;
        let page = format!("page of {document}");
        world.ok(add_made(document, &page, "default")).await;
        for chunk in 0..100 {
            // As long as ids may be.
            let id = format!("{chunk:03} of {document} {}", "x".repeat(1_000));
            world.ok(add_made(&page, &id, "default")).await;
        }
    }
    let removals = world.read(REMOVALS, "vectors").await;
    full.is_full.store(true, Ordering::SeqCst);
    world.ok(about("remove-document", "doc")).await;
    assert_eq!(told(&*removals).await, "doc");
    full.broker_is_full.store(true, Ordering::SeqCst);
    let refused = world.refused(about("remove-document", "other")).await;
    assert!(refused.is_store_unavailable() && refused.r#type == "bus-unavailable", "{refused:?}");
    assert!(refused.message.starts_with("it is on record, and is finished as soon as"), "{refused:?}");
    assert_eq!((everything(&world).await.len(), blobs(&world).await), (0, 0), "what takes room is gone");
    full.broker_is_full.store(false, Ordering::SeqCst);
    full.is_full.store(false, Ordering::SeqCst);
    world.ok(add("other", "again")).await;
    assert_eq!(told(&*removals).await, "other", "the stores are told before it is there again");
    world.stop().await;
}
