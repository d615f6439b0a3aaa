//! Nobody reaches another workspace: every kind of call, through both doors.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use sluice_schema::api;
use sluice_schema::operation::{self, Access, Kind, Operation};

use crate::world::World;

/// Every row of the table that a caller of these doors can name.
fn callable() -> impl Iterator<Item = &'static Operation> {
    operation::table().iter().filter(|row| match row.kind {
        Kind::Service(_) => true,
        Kind::FlowService => row.name != operation::THRU,
        Kind::Iam | Kind::FlowImport | Kind::FlowExport | Kind::Stream => false,
    })
}

fn path(row: &Operation) -> String {
    match row.kind {
        Kind::FlowService => format!("/api/v1/flow/f/service/{}", row.name),
        kind => format!("/api/v1/{}", kind.as_str()),
    }
}

/// A world in which every service of `other` would answer, and counts who gets through.
async fn treasury() -> (World, Arc<AtomicU64>) {
    let world = World::new().await;
    let reached = Arc::new(AtomicU64::new(0));
    let answer = {
        let reached = reached.clone();
        move |_: Value, _| {
            reached.fetch_add(1, Ordering::SeqCst);
            async { Ok(json!({"secret": true, "is_final": true})) }
        }
    };
    let names: Vec<&str> = api::services().map(|service| service.name).collect();
    for base in ["config", "flow", "librarian", "knowledge", "collection", "dead-letters"] {
        world.serve_system("other", base, answer.clone()).await;
    }
    for name in names.iter().filter(|name| !name.ends_with("-load")) {
        world.serve("other", "f", name, answer.clone()).await;
    }
    world.put_flow("other", "f", "f", &names, None).await;
    (world, reached)
}

#[tokio::test]
async fn no_kind_of_call_lets_a_stranger_or_a_neighbour_in() {
    let (world, reached) = treasury().await;
    let mut stranger = world.socket("").await;
    let mut wrong = world.socket("?token=tg_wrong").await;
    let mut neighbour = world.socket("?token=tg_default").await;
    let mut rows = 0;
    for row in callable() {
        rows += 1;
        assert!(matches!(row.access, Access::Capability(_)), "{row:?}");
        let body = json!({"operation": row.name, "workspace": "other"});
        for (token, status) in [(None, 401), (Some("tg_wrong"), 401), (Some("tg_default"), 403)] {
            assert_eq!(world.ask_as(token, &path(row), &body).await.0, status, "{token:?} {row:?}");
        }
        let mut frame = json!({"id": 1, "workspace": "other", "request": body});
        match row.kind {
            Kind::FlowService => {
                frame["flow"] = json!("f");
                frame["service"] = json!(row.name);
            }
            kind => frame["service"] = json!(kind.as_str()),
        }
        for (socket, refusal) in [
            (&mut stranger, "auth-required"),
            (&mut wrong, "auth-required"),
            (&mut neighbour, "access-denied"),
        ] {
            let said = socket.ask(&frame).await;
            assert_eq!(
                (&said["error"]["type"], &said["complete"]),
                (&json!(refusal), &json!(true)),
                "{row:?}"
            );
        }
    }
    assert!(rows > 50, "{rows} rows");
    assert_eq!(reached.load(Ordering::SeqCst), 0, "somebody got through");
}

#[tokio::test]
async fn a_pass_through_is_behind_the_same_wall() {
    let (world, reached) = treasury().await;
    let path = "/api/v1/flow/f/service/thru/embeddings";
    assert_eq!(world.ask_as(Some("tg_default"), path, &json!({"workspace": "other"})).await.0, 403);
    let mut socket = world.socket("?token=tg_default").await;
    let frame =
        json!({"id": 1, "workspace": "other", "flow": "f", "service": "thru/embeddings", "request": {}});
    assert_eq!(socket.ask(&frame).await["error"]["type"], "access-denied");
    assert_eq!(reached.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_envelope_decides_on_a_socket_and_not_the_body() {
    let (world, reached) = treasury().await;
    let mut socket = world.socket("?token=tg_default").await;
    let request = json!({"operation": "list", "workspace": "other", "type": "x"});
    world
        .serve_system("default", "config", |question, _| async move {
            assert_ne!(question["workspace"], "other");
            Ok(json!({"version": 4}))
        })
        .await;
    let said = socket.ask(&json!({"id": 1, "service": "config", "request": request})).await;
    assert_eq!(said["response"]["version"], 4, "{said}");
    assert_eq!(reached.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn who_lives_there_is_let_in() {
    let (world, reached) = treasury().await;
    let mut socket = world.socket("?token=tg_other").await;
    let said = socket
        .ask(&json!({"id": 1, "service": "config", "request": {"operation": "list", "type": "x"}}))
        .await;
    assert!(said.get("error").is_none(), "{said}");
    let body = json!({"texts": ["a"]});
    assert_eq!(world.ask_as(Some("tg_other"), "/api/v1/flow/f/service/embeddings", &body).await.0, 200);
    assert_eq!(reached.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_claimed_user_context_never_reaches_a_service() {
    let world = World::new().await;
    world
        .serve("default", "f", "triples", |question, _| async move {
            assert!(question["user_context"].is_null(), "{question}");
            Ok(json!({"triples": [], "is_final": true}))
        })
        .await;
    world.put_flow("default", "f", "f", &["triples"], None).await;
    let body = json!({"limit": 1, "user-context": {"user_id": "somebody", "roles": ["admin"]}});
    let (status, said) = world.ask("/api/v1/flow/f/service/triples", &body).await;
    assert_eq!((status, said.get("error")), (200, None), "{said}");
}
