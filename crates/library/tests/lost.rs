//! Documents that were under way when the broker's log was lost: told as that, and put through again on request.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

mod common;

use common::{World, about, add, add_processing, call, flow_record, next};
use sluice_schema::message::{DocumentProgress, LibrarianRequest, StageReport};
use sluice_schema::record;

const LOAD: &str = "flow:tg:text-document-load:default:f1";
const REPORTS: &str = "flow:tg:progress:default";

fn flow() -> record::Flow {
    flow_record(
        "f1",
        &[
            ("text-load", "text-document-load"),
            ("triples-store", "triples-store"),
            ("keyword-index", "keyword-index"),
        ],
    )
}

/// What stages say of a document of one chunk.
async fn report(world: &World, document: &str, stages: &[&str]) {
    let chunk = format!("{document}/c");
    for stage in stages {
        let (event, unit, piece) = match *stage {
            "announced" => ("announced", "chunk", &*chunk),
            "chunked" => ("done", "text", document),
            _ => ("done", "chunk", &*chunk),
        };
        let stage = if ["announced", "chunked"].contains(stage) { "chunker" } else { stage };
        let report = StageReport {
            id: format!("{document}/{stage}/{event}"),
            document_id: document.to_owned(),
            flow: "f1".to_owned(),
            collection: "default".to_owned(),
            stage: stage.to_owned(),
            event: event.to_owned(),
            unit: unit.to_owned(),
            pieces: vec![piece.to_owned()],
            count: 1,
            reason: String::new(),
        };
        world.publish(REPORTS, report).await;
    }
}

fn lost() -> LibrarianRequest {
    LibrarianRequest { lost: true, ..call("get-progress") }
}

async fn names_lost(world: &World) -> Vec<String> {
    world.ok(lost()).await.progress.into_iter().map(|one| one.document_id).collect()
}

async fn of(world: &World, document: &str) -> DocumentProgress {
    world.ok(about("get-progress", document)).await.progress.remove(0)
}

const THROUGH: [&str; 5] = ["announced", "chunked", "embeddings", "store", "index"];

#[tokio::test]
async fn documents_that_were_under_way_when_the_log_was_lost_are_told_and_put_through_again() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    world.flow("f1", &flow()).await;
    for (document, stages) in
        [("done", &THROUGH[..]), ("begun", &THROUGH[..2]), ("unindexed", &THROUGH[..4]), ("waits", &[])]
    {
        world.ok(add(document, "text")).await;
        world.ok(add_processing(document, document, "f1")).await;
        report(&world, document, stages).await;
    }
    world.until(about("get-progress", "unindexed"), |answer| answer.progress[0].complete).await;
    world.until(about("get-progress", "done"), |answer| answer.progress[0].indexed == 1).await;
    assert!(names_lost(&world).await.is_empty());
    world.stop().await;

    // A start whose log is whole tells nothing of it.
    let world = World::start(folder.path()).await;
    assert!(names_lost(&world).await.is_empty());
    world.stop().await;

    let store = sluice_store::Embedded::open(folder.path()).unwrap();
    sluice_library::log_lost(&*store.tables()).await.unwrap();
    store.close().await;
    let world = World::start(folder.path()).await;
    assert_eq!(names_lost(&world).await, ["begun", "unindexed", "waits"]);
    assert!(world.ok(LibrarianRequest { flow: "other".into(), ..lost() }).await.progress.is_empty());
    let (done, unindexed) = (of(&world, "done").await, of(&world, "unindexed").await);
    assert_eq!((done.complete, done.lost), (true, false));
    assert_eq!((unindexed.complete, unindexed.lost), (false, true), "its words cannot be found");

    // While its flow takes nothing, it is told as before.
    let said = world.refused(add_processing("begun", "begun", "f1")).await;
    assert!(said.message.contains("stopped meanwhile"), "{said:?}");
    assert_eq!(names_lost(&world).await, ["begun", "unindexed", "waits"]);
    world.flow("f1", &flow()).await;
    let load = world.read(LOAD, "reader").await;
    for document in ["done", "begun", "unindexed", "waits"] {
        world.ok(add_processing(document, document, "f1")).await;
        world.ok(add_processing(document, document, "f1")).await;
    }
    for document in ["begun", "unindexed", "waits"] {
        let delivery = next(&*load).await;
        let body = String::from_utf8(delivery.message.body.to_vec()).unwrap();
        assert!(body.contains(&format!(r#""document_id":"{document}""#)), "{body}");
        delivery.ack();
    }
    assert!(names_lost(&world).await.is_empty());
    let again = of(&world, "unindexed").await;
    assert_eq!((again.complete, again.lost, again.stored), (false, false, 0));
    report(&world, "unindexed", &THROUGH).await;
    world.until(about("get-progress", "unindexed"), |answer| answer.progress[0].complete).await;
    world.ok(add("new", "text")).await;
    world.ok(add_processing("new", "new", "f1")).await;
    let body = String::from_utf8(next(&*load).await.message.body.to_vec()).unwrap();
    assert!(body.contains(r#""document_id":"new""#), "each was sent once: {body}");
    world.stop().await;
}

/// Of a flow that tells of no index, nothing is missed there.
#[tokio::test]
async fn what_a_flow_does_not_tell_of_is_not_told_as_lost() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    world.flow("f1", &common::text_flow("f1")).await;
    world.ok(add("d", "text")).await;
    world.ok(add_processing("d", "d", "f1")).await;
    report(&world, "d", &THROUGH[..4]).await;
    world.until(about("get-progress", "d"), |answer| answer.progress[0].complete).await;
    world.stop().await;
    let store = sluice_store::Embedded::open(folder.path()).unwrap();
    sluice_library::log_lost(&*store.tables()).await.unwrap();
    store.close().await;
    let world = World::start(folder.path()).await;
    assert!(of(&world, "d").await.complete && names_lost(&world).await.is_empty());
    world.stop().await;
}
