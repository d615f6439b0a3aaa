//! The WebSocket: authentication, ids, many calls at once, garbage, readers that do not read, stopping.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_schema::message as m;
use tokio::sync::{Notify, Semaphore};
use tokio_tungstenite::tungstenite::{self, protocol::frame::coding::CloseCode};

use crate::world::{PATIENCE, World, options, wait_for};

fn embed(id: impl Into<Value>, text: &str) -> Value {
    json!({"id": id.into(), "flow": "f", "service": "embeddings", "request": {"texts": [text]}})
}

fn vectors(id: impl Into<Value>) -> Value {
    json!({"id": id.into(), "response": {"vectors": [[0.5]]}, "complete": true})
}

fn refused(id: &str, kind: &str, message: &str) -> Value {
    json!({"id": id, "error": {"type": kind, "message": message}, "complete": true})
}

/// A flow whose embeddings service holds each question until its text is let go.
async fn with_held_embeddings(world: &World) -> (Arc<Notify>, Arc<Semaphore>) {
    let (go, entered) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let (wait, enter) = (go.clone(), entered.clone());
    world
        .serve("default", "f", "embeddings", move |question, _| {
            let (wait, enter) = (wait.clone(), enter.clone());
            async move {
                enter.add_permits(1);
                if question["texts"] == json!(["slow"]) {
                    wait.notified().await;
                }
                Ok(json!({"vectors": [[0.5]]}))
            }
        })
        .await;
    world.put_flow("default", "f", "f", &["embeddings"], None).await;
    (go, entered)
}

async fn entered(entered: &Semaphore, count: u32) {
    tokio::time::timeout(PATIENCE, entered.acquire_many(count)).await.unwrap().unwrap().forget();
}

#[tokio::test]
async fn a_socket_authenticates_in_band_and_may_change_who_it_is() {
    let world = World::new().await;
    world.with_embeddings().await;
    let mut socket = world.socket("").await;
    let auth_required = refused("1", "auth-required", "auth failure");
    assert_eq!(socket.ask(&embed("1", "a")).await, auth_required);
    let failed = json!({"type": "auth-failed", "error": "auth failure"});
    assert_eq!(socket.ask(&json!({"type": "auth", "token": "tg_wrong"})).await, failed);
    let ok = json!({"type": "auth-ok", "default_workspace": "default"});
    assert_eq!(socket.ask(&json!({"type": "auth", "token": "tg_admin"})).await, ok);
    assert_eq!(socket.ask(&embed("1", "a")).await, vectors("1"));
    let ok = json!({"type": "auth-ok", "default_workspace": "other"});
    assert_eq!(socket.ask(&json!({"type": "auth", "token": "tg_other"})).await, ok);
    let invalid = refused("1", "flow-error", "Invalid flow other/f");
    assert_eq!(socket.ask(&embed("1", "a")).await, invalid, "the workspace is the caller's own");
    assert_eq!(socket.ask(&json!({"type": "auth", "token": "tg_wrong"})).await, failed);
    assert_eq!(socket.ask(&embed("1", "a")).await, auth_required, "a failed attempt leaves nobody");
}

#[tokio::test]
async fn what_follows_an_authentication_waits_for_it() {
    let world = World::new().await;
    world.with_embeddings().await;
    let mut socket = world.socket("").await;
    socket.send(&json!({"type": "auth", "token": "tg_admin"})).await;
    for id in 0..5 {
        socket.send(&embed(id, "a")).await;
    }
    assert_eq!(socket.frame().await["type"], "auth-ok");
    let mut ids: Vec<i64> = Vec::new();
    for _ in 0..5 {
        ids.push(socket.frame().await["id"].as_i64().unwrap());
    }
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn a_query_token_authenticates_and_a_wrong_one_does_not_fail_the_upgrade() {
    let world = World::new().await;
    world.with_embeddings().await;
    let mut socket = world.socket("?token=tg_admin").await;
    assert_eq!(socket.ask(&embed("1", "a")).await, vectors("1"));
    let mut socket = world.socket("?token=tg_wrong").await;
    assert_eq!(socket.ask(&embed("1", "a")).await, refused("1", "auth-required", "auth failure"));
}

#[tokio::test]
async fn without_authentication_a_socket_needs_no_frame() {
    let world = World::new().await;
    world.iam.no_auth.store(true, Ordering::SeqCst);
    world.with_embeddings().await;
    let mut socket = world.socket("").await;
    assert_eq!(socket.ask(&embed("1", "a")).await, vectors("1"));
}

#[tokio::test]
async fn ids_come_back_as_they_were_written() {
    let world = World::new().await;
    world.with_embeddings().await;
    let mut socket = world.socket("?token=tg_admin").await;
    for id in [r#""req-1""#, "7", "1.50", r#"{"a":[1,null]}"#, "null", "\"é\\n\""] {
        let text = format!(r#"{{"id":{id},"flow":"f","service":"embeddings","request":{{"texts":["a"]}}}}"#);
        socket.send_message(tungstenite::Message::Binary(text.into_bytes().into())).await;
        let Some(tungstenite::Message::Text(said)) = socket.message().await else { panic!("no answer") };
        assert!(said.starts_with(&format!(r#"{{"id":{id},"response":{{"vectors""#)), "{said}");
    }
}

#[tokio::test]
async fn a_slow_call_does_not_hold_up_the_others() {
    let world = World::new().await;
    let (go, inside) = with_held_embeddings(&world).await;
    let mut socket = world.socket("?token=tg_admin").await;
    socket.send(&embed("slow", "slow")).await;
    entered(&inside, 1).await;
    for id in 0..200 {
        socket.send(&embed(id, "fast")).await;
    }
    for _ in 0..200 {
        assert_ne!(socket.frame().await["id"], "slow");
    }
    socket.send_message(tungstenite::Message::Ping("p".into())).await;
    assert_eq!(socket.message().await, Some(tungstenite::Message::Pong("p".into())));
    go.notify_one();
    assert_eq!(socket.frame().await, vectors("slow"));
}

#[tokio::test]
async fn the_same_question_again_is_answered_once() {
    let world = World::new().await;
    let (go, inside) = with_held_embeddings(&world).await;
    let mut socket = world.socket("?token=tg_admin").await;
    for _ in 0..3 {
        socket.send(&embed("a", "slow")).await;
    }
    socket.send(&embed("b", "fast")).await;
    assert_eq!(socket.frame().await, vectors("b"));
    entered(&inside, 2).await;
    go.notify_one();
    assert_eq!(socket.frame().await, vectors("a"));
    assert_eq!(socket.ask(&embed("c", "fast")).await, vectors("c"), "no second answer to a");
    entered(&inside, 1).await;
    assert_eq!(inside.available_permits(), 0);
    socket.send(&embed("a", "slow")).await;
    go.notify_one();
    assert_eq!(socket.frame().await, vectors("a"), "after its answer it may be asked again");
}

#[tokio::test]
async fn a_stream_comes_in_parts_and_ends_once() {
    let world = World::new().await;
    world
        .serve("default", "f", "text-completion", |question, responder| async move {
            let part = |text: &str, end: bool| json!({"response": text, "model": "m", "end_of_stream": end});
            if question["streaming"] == true {
                for text in ["Hel", "lo"] {
                    responder.part(&part(text, false)).await.unwrap();
                }
                return Ok(part("", true));
            }
            Ok(part("Hello", true))
        })
        .await;
    world.put_flow("default", "f", "f", &["text-completion"], None).await;
    let mut socket = world.socket("?token=tg_admin").await;
    let ask = |streaming: bool| {
        let request = json!({"system": "s", "prompt": "p", "streaming": streaming});
        json!({"id": "s", "flow": "f", "service": "text-completion", "request": request})
    };
    socket.send(&ask(true)).await;
    for (text, complete) in [("Hel", false), ("lo", false), ("", true)] {
        let frame = socket.frame().await;
        assert_eq!((&frame["response"]["response"], &frame["complete"]), (&json!(text), &json!(complete)));
    }
    let frame = socket.ask(&ask(false)).await;
    assert_eq!((&frame["response"]["response"], &frame["complete"]), (&json!("Hello"), &json!(true)));
    let body = json!({"system": "s", "prompt": "p", "streaming": true});
    let (_, said) = world.ask("/api/v1/flow/f/service/text-completion", &body).await;
    assert_eq!(said["response"], "Hello", "HTTP takes no parts");
}

#[tokio::test]
async fn a_failing_service_ends_its_call_with_the_last_frame() {
    let world = World::new().await;
    world.serve("default", "f", "embeddings", |_, _| async { Err(m::Error::new("llm-error", "no")) }).await;
    world.put_flow("default", "f", "f", &["embeddings"], None).await;
    let mut socket = world.socket("?token=tg_admin").await;
    let frame = socket.ask(&embed("1", "a")).await;
    let error = json!({"type": "llm-error", "message": "no"});
    assert_eq!((&frame["response"]["error"], &frame["complete"]), (&error, &json!(true)));
    assert_eq!(frame["error"], error, "those who wait for one frame look beside the answer");
    let mut streamed = embed("2", "a");
    streamed["request"]["streaming"] = true.into();
    let frame = socket.ask(&streamed).await;
    assert_eq!((&frame["response"]["error"], frame.get("error")), (&error, None), "streams carry it inside");
}

#[tokio::test]
async fn what_cannot_be_understood_is_told_and_the_socket_lives_on() {
    let world = World::new().await;
    world.with_embeddings().await;
    let mut socket = world.socket("?token=tg_admin").await;
    for garbage in ["", "{", "[]", "7", "\"x\"", "{}", r#"{"id":1}"#, r#"{"id":1,"request":3}"#, "\u{0}\u{1}"]
    {
        socket.send_text(garbage).await;
        let frame = socket.frame().await;
        assert_eq!(
            (&frame["error"]["type"], &frame["complete"]),
            (&json!("error"), &json!(true)),
            "{garbage}"
        );
    }
    socket.send_message(tungstenite::Message::Binary(vec![0xff, 0xfe].into())).await;
    assert_eq!(socket.frame().await["error"]["type"], "error");
    for service in [json!("zzz"), json!(7), Value::Null] {
        let frame = json!({"id": "u", "flow": "f", "service": service, "request": {}});
        assert_eq!(socket.ask(&frame).await, refused("u", "unknown-service", "unknown service"));
    }
    for request in [json!({"operation": "zzz"}), json!({})] {
        let frame = json!({"id": "u", "service": "config", "request": request});
        assert_eq!(socket.ask(&frame).await, refused("u", "unknown-service", "unknown service"));
    }
    assert_eq!(socket.ask(&embed("1", "a")).await, vectors("1"));
}

#[tokio::test]
async fn a_message_over_the_limit_closes_the_socket_with_1009() {
    let mut options = options();
    options.frame_bytes_max = 10_000;
    let world = World::with(options).await;
    let (_go, inside) = with_held_embeddings(&world).await;
    let mut socket = world.socket("?token=tg_admin").await;
    socket.send(&embed("a", "slow")).await;
    entered(&inside, 1).await;
    // More than is on its way at once: the socket has to be read on for the client to see why it is closed.
    socket.send_text("x".repeat(16 << 20)).await;
    assert_eq!(socket.frame().await["error"]["type"], "too-large");
    let open = socket.frame().await;
    assert_eq!(
        (&open["id"], &open["error"]["type"], &open["complete"]),
        (&json!("a"), &json!("gateway-error"), &json!(true))
    );
    let Some(tungstenite::Message::Close(Some(close))) = socket.message().await else { panic!("not closed") };
    assert_eq!(close.code, CloseCode::Size);
}

#[tokio::test]
async fn above_its_bound_a_socket_refuses_and_goes_on() {
    let mut options = options();
    options.socket_calls_max = 1;
    options.socket_waiting_max = 2;
    let world = World::with(options).await;
    let (go, inside) = with_held_embeddings(&world).await;
    let mut socket = world.socket("?token=tg_admin").await;
    socket.send(&embed(0, "slow")).await;
    entered(&inside, 1).await;
    for id in 1..=4 {
        socket.send(&embed(id, "fast")).await;
    }
    for id in [3, 4] {
        let frame = socket.frame().await;
        assert_eq!((&frame["id"], &frame["error"]["type"]), (&json!(id), &json!("gateway-overloaded")));
    }
    go.notify_one();
    for id in 0..=2 {
        assert_eq!(socket.frame().await, vectors(id));
    }
}

#[tokio::test]
async fn a_reader_that_never_reads_is_bounded_and_closed_and_harms_nobody() {
    let mut options = options();
    options.write_timeout = Duration::from_millis(200);
    options.socket_unread_bytes_max = 64 << 10;
    let world = World::with(options).await;
    world
        .serve("default", "f", "text-completion", |_, responder| async move {
            let part = json!({"response": "x".repeat(100_000), "end_of_stream": false});
            for _ in 0..3_000 {
                // Nobody waiting any more is no reason to send less.
                let _ = responder.part(&part).await;
                tokio::task::yield_now().await;
            }
            Ok(json!({"response": "", "end_of_stream": true}))
        })
        .await;
    world.with_embeddings().await;
    world.put_flow("default", "g", "f", &["text-completion"], None).await;
    let mut deaf = world.socket("?token=tg_admin").await;
    let request = json!({"system": "s", "prompt": "p", "streaming": true});
    deaf.send(&json!({"id": "d", "flow": "g", "service": "text-completion", "request": request})).await;
    wait_for("the end of the stalled socket", || async {
        world.metric("sluice_gateway_stalled_sockets_total") == Some(1.0)
    })
    .await;
    let failed = r#"tg_gateway_request_total{service="text-completion",status="error"}"#;
    wait_for("the call's end", || async { world.metric(failed) == Some(1.0) }).await;
    wait_for("the socket's end", || async { world.metric("sluice_gateway_open_sockets") == Some(0.0) }).await;
    let mut other = world.socket("?token=tg_admin").await;
    assert_eq!(other.ask(&embed("1", "a")).await, vectors("1"));
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_calls_with_it() {
    let world = World::new().await;
    let (_go, inside) = with_held_embeddings(&world).await;
    let mut socket = world.socket("?token=tg_admin").await;
    socket.send(&embed("a", "slow")).await;
    entered(&inside, 1).await;
    drop(socket);
    wait_for("the call's end", || async {
        world.metric(r#"tg_gateway_request_total{service="embeddings",status="error"}"#) == Some(1.0)
    })
    .await;
}

#[tokio::test]
async fn a_revoked_key_ends_on_open_sockets_too() {
    let mut options = options();
    options.trust_timeout = Duration::from_millis(1);
    let world = World::with(options).await;
    world.with_embeddings().await;
    let mut socket = world.socket("?token=tg_default").await;
    assert_eq!(socket.ask(&embed("1", "a")).await, vectors("1"));
    *world.iam.revoked.lock().unwrap() = Some("tg_default".to_owned());
    let revoked = async { while socket.ask(&embed("1", "a")).await == vectors("1") {} };
    tokio::time::timeout(PATIENCE, revoked).await.expect("the key stays trusted");
}

#[tokio::test]
async fn a_stopping_gateway_finishes_calls_and_closes_with_1001() {
    let world = World::new().await;
    let (go, inside) = with_held_embeddings(&world).await;
    let mut socket = world.socket("?token=tg_admin").await;
    socket.send(&embed("a", "slow")).await;
    entered(&inside, 1).await;
    let stop = world.gateway.shutdown();
    let client = async {
        let stopping = async {
            loop {
                let frame =
                    socket.ask(&json!({"id": "b", "flow": "f", "service": "zzz", "request": {}})).await;
                if frame == refused("b", "gateway-error", "the gateway is stopping") {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, stopping).await.expect("new calls are refused");
        go.notify_one();
        assert_eq!(socket.frame().await, vectors("a"));
        let Some(tungstenite::Message::Close(Some(close))) = socket.message().await else {
            panic!("not closed")
        };
        assert_eq!(close.code, CloseCode::Away);
        drop(socket);
    };
    let ((), ()) = tokio::join!(stop, client);
    assert!(world.http.get(world.url("/healthz")).send().await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn calls_that_outlast_the_drain_end_typed() {
    let mut options = options();
    options.drain_timeout = Duration::from_millis(50);
    let world = World::with(options).await;
    let (_go, inside) = with_held_embeddings(&world).await;
    let mut socket = world.socket("?token=tg_admin").await;
    socket.send(&embed("a", "slow")).await;
    let question = json!({"texts": ["slow"]});
    let http = world.ask("/api/v1/flow/f/service/embeddings", &question);
    let stop = async {
        entered(&inside, 2).await;
        world.gateway.shutdown().await;
    };
    let ((status, said), ()) = tokio::join!(http, stop);
    let error = json!({"type": "gateway-error", "message": "the gateway is stopping"});
    assert_eq!((status, said), (503, json!({"error": error})));
    assert_eq!(socket.frame().await, refused("a", "gateway-error", "the gateway is stopping"));
}
