//! A failure to ask is told as one: never as a refused credential, and with when to come again.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use sluice_bus::{BrokerAdmin as _, TopicSpec};
use sluice_schema::system;

use crate::world::{World, answer, options, wait_for};

const EMBEDDINGS: &str = "/api/v1/flow/f/service/embeddings";

/// What a caller, one with a wrong key and one without any are told over HTTP, and what `readyz` says.
async fn is_told(world: &World, kind: &str, reason: &str) {
    let list = json!({"operation": "list", "type": "x"});
    let login = json!({"username": "a", "password": "right"});
    let cases = [
        (Some("tg_default"), "/api/v1/config", &list),
        (Some("tg_wrong"), "/api/v1/config", &list),
        (None, "/api/v1/config", &list),
        (Some("tg_default"), "/api/v1/iam", &json!({"operation": "whoami"})),
        (Some("tg_default"), EMBEDDINGS, &json!({"texts": ["a"]})),
        (None, "/api/v1/auth/login", &login),
        (None, "/api/v1/auth/bootstrap", &json!({})),
        (None, "/api/v1/auth/bootstrap-status", &json!({})),
        (Some("tg_default"), "/api/v1/auth/change-password", &login),
    ];
    for (token, path, body) in cases {
        let answer = world.post(path, token, body.to_string()).await;
        assert_eq!(answer.status(), 503, "{token:?} {path}");
        assert!(answer.headers().contains_key("retry-after"), "{token:?} {path}");
        let said: Value = answer.json().await.unwrap();
        assert_eq!(said["type"], kind, "{token:?} {path}: {said}");
        assert!(said["error"].as_str().unwrap().contains(reason), "{token:?} {path}: {said}");
    }
    for path in ["/readyz", "/api/metrics", "/api/v1/document-stream?document-id=d"] {
        let request = world.http.get(world.url(path)).bearer_auth("tg_default");
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 503, "{path}");
        let said: Value = answer.json().await.unwrap();
        assert_eq!(
            (&said["type"], said["error"].as_str().unwrap().contains(reason)),
            (&json!(kind), true),
            "{said}"
        );
    }
    assert_eq!(world.http.get(world.url("/healthz")).send().await.unwrap().status(), 200);

    let mut socket = world.socket("?token=tg_default").await;
    let question = json!({"id": "1", "flow": "f", "service": "embeddings", "request": {"texts": ["a"]}});
    let said = socket.ask(&question).await;
    assert_eq!(
        (&said["id"], &said["error"]["type"], &said["complete"]),
        (&json!("1"), &json!(kind), &json!(true))
    );
    let said = socket.ask(&json!({"type": "auth", "token": "tg_default"})).await;
    assert_eq!((&said["type"], &said["reason"]), (&json!("auth-failed"), &json!(kind)));
    assert!(said["error"].as_str().unwrap().contains(reason), "{said}");
}

/// Who could not be asked about goes on by itself, also on a socket that was open all the time.
async fn goes_on(world: &World, socket: &mut crate::world::Socket) {
    wait_for("the gateway to be ready", || async {
        world.http.get(world.url("/readyz")).send().await.unwrap().status() == 200
    })
    .await;
    let (status, _) = world.ask_as(Some("tg_default"), EMBEDDINGS, &json!({"texts": ["a"]})).await;
    assert_eq!(status, 200);
    let question = json!({"id": "2", "flow": "f", "service": "embeddings", "request": {"texts": ["a"]}});
    assert_eq!(socket.ask(&question).await["response"], json!({"vectors": [[0.5]]}));
}

#[tokio::test]
async fn an_identity_service_that_fails_is_told_as_such() {
    let world = World::new().await;
    world.with_embeddings().await;
    world.iam.broken.store(true, Ordering::SeqCst);
    wait_for("the gateway to notice", || async {
        world.http.get(world.url("/readyz")).send().await.unwrap().status() == 503
    })
    .await;
    is_told(&world, "iam-unavailable", "failed to answer").await;
    let mut open = world.socket("?token=tg_default").await;
    world.iam.broken.store(false, Ordering::SeqCst);
    goes_on(&world, &mut open).await;
}

#[tokio::test]
async fn an_identity_service_that_is_away_is_told_as_such() {
    let world = World::new().await;
    world.with_embeddings().await;
    for topic in [system::iam_request(), system::iam_response()] {
        world.broker.remove(&TopicSpec::with(topic, "svc")).await.unwrap();
    }
    wait_for("the gateway to notice", || async {
        world.http.get(world.url("/readyz")).send().await.unwrap().status() == 503
    })
    .await;
    is_told(&world, "iam-unavailable", "is not there").await;
    let mut open = world.socket("?token=tg_default").await;
    let deciding = world.iam.clone();
    answer::<sluice_schema::exchange::Iam, _, _>(
        &world.process,
        &world.broker,
        (system::iam_request(), system::iam_response()),
        move |request, _| {
            let deciding = deciding.clone();
            async move { deciding.answer(&request) }
        },
    )
    .await;
    goes_on(&world, &mut open).await;
}

#[tokio::test]
async fn a_broker_that_takes_nothing_is_told_as_such() {
    let world = World::new().await;
    world.with_embeddings().await;
    world.away.store(true, Ordering::SeqCst);
    wait_for("the gateway to notice", || async {
        world.http.get(world.url("/readyz")).send().await.unwrap().status() == 503
    })
    .await;
    is_told(&world, "bus-unavailable", "the message broker takes nothing").await;
    // Somebody who is known still, and allowed still, learns the same of the call itself.
    let (status, said) = world.ask(EMBEDDINGS, &json!({"texts": ["a"]})).await;
    assert_eq!((status, &said["type"]), (503, &json!("bus-unavailable")), "{said}");
    let mut open = world.socket("?token=tg_default").await;
    world.away.store(false, Ordering::SeqCst);
    goes_on(&world, &mut open).await;
}

#[tokio::test]
async fn a_broker_that_refuses_what_the_gateway_asks_is_no_fault_of_its_callers() {
    let world = World::new().await;
    world.with_embeddings().await;
    world.refusing.store(true, Ordering::SeqCst);
    wait_for("the gateway to notice", || async {
        world.http.get(world.url("/readyz")).send().await.unwrap().status() == 503
    })
    .await;
    is_told(&world, "bus-unavailable", "the message broker refuses").await;
    let mut open = world.socket("?token=tg_default").await;
    world.refusing.store(false, Ordering::SeqCst);
    goes_on(&world, &mut open).await;
}

#[tokio::test]
async fn an_identity_service_that_never_answers_is_told_after_its_deadline() {
    let mut options = options();
    options.iam_timeout = std::time::Duration::from_secs(2);
    let world = World::with(options).await;
    world.with_embeddings().await;
    world.iam.silent.store(true, Ordering::SeqCst);
    wait_for("the gateway to notice", || async {
        world.http.get(world.url("/readyz")).send().await.unwrap().status() == 503
    })
    .await;
    is_told(&world, "iam-unavailable", "does not answer in time").await;
    let mut open = world.socket("?token=tg_default").await;
    world.iam.silent.store(false, Ordering::SeqCst);
    goes_on(&world, &mut open).await;
}

#[tokio::test]
async fn config_that_was_never_read_is_told_by_readyz() {
    let world = World::unread(options(), true).await;
    let answer = world.http.get(world.url("/readyz")).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].to_str().unwrap()), (503, "1"));
    assert!(answer.text().await.unwrap().contains("configuration"));
}

#[tokio::test]
async fn a_store_without_room_is_told_by_readyz_until_there_is_some_and_calls_go_on() {
    let world = World::new().await;
    world.with_embeddings().await;
    world.full.store(true, Ordering::SeqCst);
    let answer = world.http.get(world.url("/readyz")).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    let said: Value = answer.json().await.unwrap();
    assert_eq!(said["type"], "store-unavailable");
    assert!(said["error"].as_str().unwrap().contains("its disk is full"), "{said}");
    assert_eq!(world.http.get(world.url("/healthz")).send().await.unwrap().status(), 200);
    assert_eq!(world.ask(EMBEDDINGS, &json!({"texts": ["a"]})).await.0, 200, "what needs no room goes on");
    world.full.store(false, Ordering::SeqCst);
    assert_eq!(world.http.get(world.url("/readyz")).send().await.unwrap().status(), 200);
}
