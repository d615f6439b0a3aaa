//! Peers that have shown no valid credential: what they may hold, for how long, and that they keep nobody else out.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::world::{PATIENCE, Socket, World, options, wait_for};

const EMBEDDINGS: &str = "/api/v1/flow/f/service/embeddings";
const SHORT: Duration = Duration::from_secs(1);
/// The same where callers have to be quicker than that, on a machine that other tests keep busy.
const LONGER: Duration = Duration::from_secs(5);

async fn connect(world: &World) -> TcpStream {
    tokio::time::timeout(PATIENCE, TcpStream::connect(world.gateway.local_addr)).await.unwrap().unwrap()
}

async fn say(world: &World, text: &str) -> TcpStream {
    let mut stream = connect(world).await;
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// Everything that comes until the connection is closed; an end that is not clean counts as one.
async fn rest(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all))
        .await
        .expect("the connection stays open");
    String::from_utf8_lossy(&all).into_owned()
}

fn half_body(path: &str, more: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n{more}\r\n{{")
}

async fn embeds(world: &World, token: &str) -> u16 {
    world.ask_as(Some(token), EMBEDDINGS, &json!({"texts": ["a"]})).await.0
}

/// A call over a connection of its own.
async fn embeds_anew(world: &World, token: &str) -> String {
    let body = r#"{"texts":["a"]}"#;
    let head = format!(
        "POST {EMBEDDINGS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    rest(&mut say(world, &head).await).await
}

fn embed(id: &str) -> Value {
    json!({"id": id, "flow": "f", "service": "embeddings", "request": {"texts": ["a"]}})
}

/// A flow whose embeddings service holds the text `slow` until it is let go.
async fn with_held_embeddings(world: &World) -> (Arc<Notify>, Arc<Semaphore>) {
    let (go, entered) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let (wait, enter) = (go.clone(), entered.clone());
    for workspace in ["default", "other"] {
        let (wait, enter) = (wait.clone(), enter.clone());
        world
            .serve(workspace, "f", "embeddings", move |question, _| {
                let (wait, enter) = (wait.clone(), enter.clone());
                async move {
                    if question["texts"] == json!(["slow"]) {
                        enter.add_permits(1);
                        wait.notified().await;
                    }
                    Ok(json!({"vectors": [[0.5]]}))
                }
            })
            .await;
        world.put_flow(workspace, "f", "f", &["embeddings"], None).await;
    }
    let routed = |_: u16, said: &Value| said.get("vectors").is_some();
    world.until("the route", EMBEDDINGS, &json!({"texts": ["a"]}), routed).await;
    (go, entered)
}

#[tokio::test]
async fn unfinished_bodies_of_strangers_keep_nobody_out() {
    let mut options = options();
    options.calls_max = 8;
    options.public_calls_max = 4;
    let world = World::with(options).await;
    world.with_embeddings().await;
    let mut held = Vec::new();
    for path in ["/api/v1/iam", "/api/v1/auth/login", "/api/v1/config", EMBEDDINGS] {
        for more in ["", "Authorization: Bearer tg_wrong\r\n", "Transfer-Encoding: chunked\r\n"] {
            let head = half_body(path, more);
            let head =
                if more.starts_with("Transfer") { head.replace("Content-Length: 100\r\n", "") } else { head };
            for _ in 0..10 {
                held.push(say(&world, &head).await);
            }
        }
    }
    for _ in 0..20 {
        assert_eq!(embeds(&world, "tg_admin").await, 200);
        let said = embeds_anew(&world, "tg_default").await;
        assert!(said.contains("200 OK") && said.contains("vectors"), "{said}");
    }
    drop(held);
}

#[tokio::test]
async fn calls_without_a_credential_have_a_bound_of_their_own() {
    let mut options = options();
    options.public_calls_max = 1;
    options.public_body_timeout = PATIENCE;
    let world = World::with(options).await;
    let held = say(&world, &half_body("/api/v1/auth/login", "")).await;
    let refused = async || {
        let answer = world.post("/api/v1/auth/login", None, r#"{"username":"a","password":"right"}"#).await;
        answer.status() == 429 && answer.headers()["retry-after"] == "1"
    };
    wait_for("the bound to be reached", refused).await;
    assert_eq!(world.ask("/api/v1/iam", &json!({"operation": "whoami"})).await.0, 200);
    drop(held);
    wait_for("room again", async || !refused().await).await;
}

#[tokio::test]
async fn a_body_that_does_not_come_is_told_so() {
    let mut options = options();
    options.public_body_timeout = SHORT;
    options.body_idle_timeout = SHORT;
    let world = World::with(options).await;
    for more in ["", "Authorization: Bearer tg_admin\r\n"] {
        let said = rest(&mut say(&world, &half_body("/api/v1/iam", more)).await).await;
        assert!(said.starts_with("HTTP/1.1 408 ") && said.contains("in time"), "{said}");
    }
}

#[tokio::test]
async fn what_is_only_announced_takes_no_room() {
    let mut options = options();
    options.body_bytes_max = 1 << 20;
    options.bodies_bytes_max = 1 << 20;
    let world = World::with(options).await;
    world.with_embeddings().await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let head = half_body(EMBEDDINGS, "Authorization: Bearer tg_admin\r\n").replace("100", "1000000");
        held.push(say(&world, &head).await);
    }
    let text = "a".repeat(500_000);
    assert_eq!(world.ask(EMBEDDINGS, &json!({"texts": [text]})).await.0, 200);
    drop(held);
}

#[tokio::test]
async fn a_workspace_that_is_over_its_share_keeps_out_nobody_else() {
    let mut options = options();
    options.calls_max = 4;
    let world = World::with(options).await;
    let (go, entered) = with_held_embeddings(&world).await;
    let slow = json!({"texts": ["slow"]});
    world.serve_system("default", "librarian", |_, _| async { Ok(json!({"is_final": true})) }).await;
    // In one workspace, all that there is room for.
    let mut socket = world.socket("?token=tg_admin").await;
    for id in 0..4 {
        socket.send(&json!({"id": id, "flow": "f", "service": "embeddings", "request": slow})).await;
    }
    tokio::time::timeout(PATIENCE, entered.acquire_many(4)).await.unwrap().unwrap().forget();
    let answer = world.post(EMBEDDINGS, Some("tg_admin"), slow.to_string()).await;
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    assert!(answer.text().await.unwrap().contains("this workspace has too many calls"));
    let in_other = json!({"workspace": "other", "texts": ["a"]});
    assert_eq!(
        world.ask_as(Some("tg_admin"), EMBEDDINGS, &in_other).await.0,
        200,
        "the same caller elsewhere"
    );
    let read = json!({"operation": "get-document-content", "document-id": "d"});
    assert_eq!(
        world.ask_as(Some("tg_admin"), "/api/v1/librarian", &read).await.0,
        200,
        "its services answer"
    );
    assert_eq!(embeds(&world, "tg_other").await, 200, "another caller, in another workspace");
    let answer = world.post(EMBEDDINGS, Some("tg_default"), slow.to_string()).await;
    assert_eq!(answer.status(), 429, "another caller in the workspace that is over its share");
    assert!(answer.text().await.unwrap().contains("this workspace has too many calls"));
    for _ in 0..4 {
        go.notify_one();
    }
    for _ in 0..4 {
        assert_eq!(socket.frame().await["complete"], true);
    }
    assert_eq!(embeds(&world, "tg_default").await, 200);
}

#[tokio::test]
async fn an_answer_of_nothing_but_values_is_not_read() {
    let world = World::new().await;
    let empty = json!([]);
    world
        .serve("default", "f", "embeddings", move |question, _| {
            let value = if question["texts"] == json!(["numbers"]) { json!(0.125) } else { empty.clone() };
            async move { Ok(json!({"vectors": vec![value; 2_100_000]})) }
        })
        .await;
    world.put_flow("default", "f", "f", &["embeddings"], None).await;
    let (status, said) = world.ask_as(Some("tg_admin"), EMBEDDINGS, &json!({"texts": ["empty"]})).await;
    assert_eq!((status, &said["error"]["type"]), (200, &json!("too-large")), "{said}");
    let (status, said) = world.ask_as(Some("tg_admin"), EMBEDDINGS, &json!({"texts": ["numbers"]})).await;
    assert_eq!((status, &said["error"]), (200, &Value::Null), "as many numbers are");
}

#[tokio::test]
async fn answers_that_are_not_taken_count_for_their_caller_and_keep_out_nobody_else() {
    const ANSWER_BYTES: usize = 16 << 20;
    let mut options = options();
    options.answers_bytes_max = ANSWER_BYTES * 9 / 4;
    let world = World::with(options).await;
    for workspace in ["default", "other"] {
        world
            .serve_system(workspace, "librarian", |_, _| async {
                Ok(json!({"content": "A".repeat(ANSWER_BYTES), "is_final": true}))
            })
            .await;
    }
    let read = json!({"operation": "get-document-content", "document-id": "d"}).to_string();
    let ask = |token: &'static str| world.post("/api/v1/librarian", Some(token), read.clone());
    let mut untaken = Vec::new();
    for _ in 0..2 {
        let answer = ask("tg_admin").await;
        assert_eq!(answer.status(), 200);
        untaken.push(answer);
    }
    let refused = ask("tg_admin").await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    assert!(refused.text().await.unwrap().contains("too many bytes of answers"));
    let mut socket = world.socket("?token=tg_admin").await;
    let frame =
        json!({"id": 1, "service": "librarian", "request": serde_json::from_str::<Value>(&read).unwrap()});
    let refused = socket.ask(&frame).await;
    assert!(refused.to_string().contains("too many bytes of answers"), "over the other door too");
    // A small answer, and another caller's large one.
    assert_eq!(world.ask("/api/v1/iam", &json!({"operation": "whoami"})).await.0, 200);
    let other = ask("tg_other").await;
    assert_eq!(other.status(), 200);
    assert!(other.bytes().await.unwrap().len() > ANSWER_BYTES);
    for answer in untaken {
        assert!(answer.bytes().await.unwrap().len() > ANSWER_BYTES, "what was promised comes whole");
    }
    wait_for("room for another answer", || async { ask("tg_admin").await.status() == 200 }).await;
}

#[tokio::test]
async fn a_caller_that_is_asked_about_again_does_not_give_way_to_strangers() {
    let mut options = options();
    options.trust_timeout = Duration::from_millis(1);
    let world = World::with(options).await;
    world.with_embeddings().await;
    assert_eq!(embeds(&world, "tg_default").await, 200);
    *world.iam.pause.lock().unwrap() = SHORT;
    let flood = async {
        tokio::time::sleep(SHORT / 4).await;
        let mut held = Vec::new();
        for n in 0..600 {
            let guess = format!("Authorization: Bearer tg_{n}\r\n");
            held.push(say(&world, &half_body(EMBEDDINGS, &guess)).await);
        }
        held
    };
    let (said, held) = tokio::join!(embeds_anew(&world, "tg_default"), flood);
    assert!(said.contains("200 OK") && said.contains("vectors"), "{said}");
    assert!(world.metric("sluice_gateway_connections_evicted_total").unwrap() > 0.0);
    drop(held);
}

/// It counts as known only for as long as it is asked about.
#[tokio::test]
async fn a_credential_that_is_accepted_no_more_ends_its_connection() {
    let mut options = options();
    options.trust_timeout = Duration::from_millis(1);
    let world = World::with(options).await;
    world.with_embeddings().await;
    assert_eq!(embeds(&world, "tg_default").await, 200);
    world.iam.revoked.lock().unwrap().replace("tg_default".to_owned());
    let body = r#"{"texts":["a"]}"#;
    let head = format!(
        "POST {EMBEDDINGS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer tg_default\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let said = rest(&mut say(&world, &head).await).await;
    assert!(said.starts_with("HTTP/1.1 401"), "{said}");
}

#[tokio::test]
async fn silent_connections_give_way_to_those_that_say_something() {
    let mut options = options();
    options.connections_max = 40;
    let world = World::with(options).await;
    world.with_embeddings().await;
    let mut socket = world.socket("?token=tg_admin").await;
    assert_eq!(socket.ask(&embed("1")).await["complete"], true);
    let mut held = Vec::new();
    for beginning in [
        "",
        "GET /healthz\r\nX: ",
        "POST /api/v1/iam HTTP/1.1\r\nHost: localhost\r\n",
        "\r\n",
        "\u{16}\u{3}\u{1}",
    ] {
        for _ in 0..60 {
            held.push(say(&world, beginning).await);
        }
        for path in ["/healthz", "/readyz"] {
            let answer = rest(&mut say(&world, &format!("GET {path} HTTP/1.0\r\n\r\n")).await).await;
            assert!(answer.contains("200 OK"), "{beginning:?}: {answer}");
        }
        let said = embeds_anew(&world, "tg_default").await;
        assert!(said.contains("200 OK") && said.contains("vectors"), "{beginning:?}: {said}");
    }
    assert_eq!(socket.ask(&embed("2")).await["complete"], true, "who is known keeps its place");
    assert!(world.metric("sluice_gateway_connections_evicted_total").unwrap() > 200.0);
}

#[tokio::test]
async fn health_is_told_where_every_place_is_taken() {
    let mut options = options();
    options.connections_max = 4;
    options.address_share_max = 1.0;
    let world = World::with(options).await;
    let (go, entered) = with_held_embeddings(&world).await;
    let mut sockets = Vec::new();
    for _ in 0..4 {
        let mut socket = world.socket("?token=tg_admin").await;
        let slow = json!({"id": "1", "flow": "f", "service": "embeddings", "request": {"texts": ["slow"]}});
        socket.send(&slow).await;
        tokio::time::timeout(PATIENCE, entered.acquire()).await.unwrap().unwrap().forget();
        sockets.push(socket);
    }
    let get = async |path: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        rest(&mut say(&world, &head).await).await
    };
    for path in ["/healthz", "/readyz", "/"] {
        assert!(get(path).await.contains("200 OK"), "{path}");
    }
    let said = embeds_anew(&world, "tg_admin").await;
    assert!(
        said.starts_with("HTTP/1.1 503 ")
            && said.contains("retry-after")
            && said.contains("too many connections"),
        "{said}"
    );
    for socket in &mut sockets {
        go.notify_one();
        assert_eq!(socket.frame().await["complete"], true);
    }
}

#[tokio::test]
async fn idle_sockets_of_known_callers_give_way_last_and_busy_ones_never() {
    let mut options = options();
    options.connections_max = 4;
    options.address_share_max = 1.0;
    let world = World::with(options).await;
    let (go, entered) = with_held_embeddings(&world).await;
    let mut busy = world.socket("?token=tg_admin").await;
    let slow = json!({"id": "1", "flow": "f", "service": "embeddings", "request": {"texts": ["slow"]}});
    busy.send(&slow).await;
    tokio::time::timeout(PATIENCE, entered.acquire()).await.unwrap().unwrap().forget();
    let mut idle = Vec::new();
    for _ in 0..3 {
        let mut socket = world.socket("?token=tg_admin").await;
        assert_eq!(socket.ask(&embed("1")).await["complete"], true);
        idle.push(socket);
    }
    let silent = connect(&world).await;
    let said = embeds_anew(&world, "tg_default").await;
    assert!(said.contains("200 OK") && said.contains("vectors"), "{said}");
    assert_eq!(closed_with(&mut idle[0]).await, Some(CloseCode::Again), "the one that was idle longest");
    assert_eq!(idle[2].ask(&embed("2")).await["complete"], true, "the silent one gave way first");
    go.notify_one();
    assert_eq!(busy.frame().await["complete"], true);
    drop(silent);
}

#[tokio::test]
async fn heads_and_idle_connections_have_their_time() {
    let mut options = options();
    options.header_timeout = SHORT;
    options.idle_timeout = SHORT;
    let world = World::with(options).await;
    world.with_embeddings().await;
    assert_eq!(rest(&mut connect(&world).await).await, "");
    for beginning in ["G", "GET /healthz HTTP/1.1\r\nX: ", "POST"] {
        let said = rest(&mut say(&world, beginning).await).await;
        assert!(said.starts_with("HTTP/1.1 408 "), "{beginning}: {said}");
    }
    // After an answer, with the connection left open by a caller that is known.
    let call = format!(
        "POST {EMBEDDINGS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer tg_admin\r\nContent-Length: 15\r\n\r\n{{\"texts\":[\"a\"]}}"
    );
    for next in ["", "GET /healthz HTTP/1.1\r\nX: "] {
        let mut stream = say(&world, &call).await;
        stream.write_all(next.as_bytes()).await.unwrap();
        let said = rest(&mut stream).await;
        assert!(said.contains("200 OK") && said.contains("vectors"), "{said}");
    }
    let huge = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(100_000));
    let mut stream = connect(&world).await;
    // It is closed before all of it is written.
    let _ = stream.write_all(huge.as_bytes()).await;
    let said = rest(&mut stream).await;
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 431 "), "{said}");
}

#[tokio::test]
async fn a_connection_on_which_no_credential_was_accepted_ends_with_its_answer() {
    let world = World::new().await;
    world.with_embeddings().await;
    for (path, more) in
        [("/healthz", ""), ("/zzz", ""), ("/api/metrics", "Authorization: Bearer tg_wrong\r\n")]
    {
        let said =
            rest(&mut say(&world, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n")).await)
                .await;
        assert!(said.to_lowercase().contains("connection: close"), "{path}: {said}");
    }
}

async fn closed_with(socket: &mut Socket) -> Option<CloseCode> {
    closed(socket).await.map(|close| close.code)
}

async fn closed(socket: &mut Socket) -> Option<CloseFrame> {
    loop {
        match socket.message().await {
            Some(tungstenite::Message::Close(close)) => return close,
            Some(_) => {}
            None => return None,
        }
    }
}

#[tokio::test]
async fn a_socket_without_an_accepted_credential_ends_whatever_it_says() {
    let mut options = options();
    options.socket_auth_timeout = LONGER;
    options.ping_interval = Duration::from_millis(20);
    let world = World::with(options).await;
    world.with_embeddings().await;
    for query in ["", "?token=tg_wrong"] {
        let close = closed(&mut world.socket(query).await).await.unwrap();
        assert_eq!(
            (close.code, &*close.reason),
            (CloseCode::Policy, "no credential was accepted in time"),
            "{query}"
        );
    }
    let mut pings = world.socket("").await;
    let ended = async {
        while pings.try_send_message(tungstenite::Message::Ping("p".into())).await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("pings keep a stranger's socket open");
    // Who is known stays.
    let mut known = world.socket("").await;
    assert_eq!(known.ask(&json!({"type": "auth", "token": "tg_admin"})).await["type"], "auth-ok");
    tokio::time::sleep(LONGER + SHORT).await;
    assert_eq!(known.ask(&embed("1")).await["complete"], true);
    // And who is not any more has to become it again.
    assert_eq!(known.ask(&json!({"type": "auth", "token": "tg_wrong"})).await["type"], "auth-failed");
    assert_eq!(closed_with(&mut known).await, Some(CloseCode::Policy));
}

#[tokio::test]
async fn a_stranger_sends_few_small_messages() {
    let world = World::new().await;
    world.with_embeddings().await;
    for parts in [1, 4] {
        let mut socket = world.socket("").await;
        socket.send_parts(&"x".repeat(20_000), parts).await;
        assert_eq!(socket.frame().await["error"]["type"], "too-large");
        assert_eq!(closed_with(&mut socket).await, Some(CloseCode::Size), "in {parts}");
    }
    // Only announced.
    let mut socket = world.socket("").await;
    socket.raw(&[0x81, 0xff, 0, 0, 0, 0, 3, 0, 0, 0]).await;
    assert_eq!(closed_with(&mut socket).await, Some(CloseCode::Size));
    // Once it is known, the same is fine, also when it was sent before that was certain.
    for query in ["?token=tg_admin", ""] {
        let mut socket = world.socket(query).await;
        if query.is_empty() {
            socket.send(&json!({"type": "auth", "token": "tg_admin"})).await;
        }
        let question = json!({"id": "1", "flow": "f", "service": "embeddings", "request": {"texts": ["x".repeat(3 << 20)]}});
        socket.send_parts(&question.to_string(), 7).await;
        if query.is_empty() {
            assert_eq!(socket.frame().await["type"], "auth-ok");
        }
        assert_eq!(socket.frame().await["response"], json!({"vectors": [[0.5]]}), "{query}");
    }
    let mut socket = world.socket("").await;
    let mut told = 0;
    while socket.try_send_message(tungstenite::Message::Text(embed("1").to_string().into())).await
        && told < 10_000
    {
        told += 1;
    }
    assert!(told < 10_000, "a stranger may go on for ever");
}

#[tokio::test]
async fn a_stranger_that_guesses_is_cut_off_and_its_neighbours_are_not() {
    let world = World::new().await;
    world.with_embeddings().await;
    assert_eq!(embeds(&world, "tg_default").await, 200);
    let mut socket = world.socket("").await;
    let mut guesses = 0;
    loop {
        let guess = json!({"type": "auth", "token": format!("tg_socket{guesses}")}).to_string();
        if !socket.try_send_message(tungstenite::Message::Text(guess.into())).await {
            break;
        }
        guesses += 1;
        match socket.message().await {
            Some(tungstenite::Message::Text(text)) => assert!(text.contains("auth-failed"), "{text}"),
            _ => break,
        }
    }
    assert!(guesses <= 9, "{guesses} guesses on one socket");
    let before = world.iam.asked.load(std::sync::atomic::Ordering::SeqCst);
    let mut refused = Vec::new();
    for n in 0..300 {
        refused.push(embeds(&world, &format!("tg_guess{n}")).await);
    }
    assert_eq!(refused[0], 401);
    assert_eq!(refused.last(), Some(&429), "{refused:?}");
    let asked = world.iam.asked.load(std::sync::atomic::Ordering::SeqCst) - before;
    assert!(asked < 200, "{asked} guesses were looked at");
    assert_eq!(embeds(&world, "tg_default").await, 200, "who was accepted before goes on");
    let answer = world.post(EMBEDDINGS, Some("tg_guess"), "{}").await;
    assert!(answer.headers().contains_key("retry-after"));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_guesses_that_come_at_once_few_are_looked_at() {
    // One after the other, and more of them than are let in while the first waits for its answer. No more than strangers have
    // places, so that each is answered: of more, the oldest give way, on a busy machine before they have their answer.
    for (guesses, pause, asked_max) in [(500, Duration::ZERO, 250), (240, Duration::from_millis(500), 200)] {
        let world = World::new().await;
        *world.iam.pause.lock().unwrap() = pause;
        let before = world.iam.asked.load(Ordering::SeqCst);
        let guess =
            |n: usize| world.http.get(world.url("/api/metrics")).bearer_auth(format!("tg_{n}")).send();
        let statuses: Vec<u16> = futures_util::future::join_all((0..guesses).map(guess))
            .await
            .into_iter()
            .map(|answer| answer.unwrap().status().as_u16())
            .collect();
        assert!(statuses.contains(&401) && statuses.contains(&429), "{statuses:?}");
        // The tries of an address, those that are looked at side by side, and what comes back with time.
        let asked = world.iam.asked.load(Ordering::SeqCst) - before;
        assert!(asked < asked_max, "the identity service was asked about {asked} of {guesses} guesses");
    }
}

#[tokio::test]
async fn sockets_of_strangers_give_way_to_newer_ones() {
    let world = World::new().await;
    world.with_embeddings().await;
    let mut known = world.socket("?token=tg_admin").await;
    assert_eq!(known.ask(&embed("1")).await["complete"], true);
    let mut first = world.socket("").await;
    let mut flood = Vec::new();
    for _ in 0..300 {
        flood.push(world.socket("").await);
    }
    assert_eq!(closed_with(&mut first).await, Some(CloseCode::Again));
    let open = world.metric(r#"sluice_gateway_connections{stage="stranger-socket"}"#).unwrap();
    assert!(open <= 256.0, "{open}");
    let newest = flood.last_mut().unwrap();
    assert_eq!(newest.ask(&json!({"type": "auth", "token": "tg_default"})).await["type"], "auth-ok");
    assert_eq!(newest.ask(&embed("1")).await["complete"], true);
    assert_eq!(known.ask(&embed("2")).await["complete"], true);
}

#[tokio::test]
async fn unfinished_messages_count_against_their_senders_share() {
    let mut options = options();
    options.bodies_bytes_max = 1 << 20;
    options.body_idle_timeout = PATIENCE;
    let world = World::with(options).await;
    world.with_embeddings().await;
    let mut header = vec![0x81, 0xff, 0, 0, 0, 0, 0, 0x1f, 0, 0, 0, 0, 0, 0];
    header.resize(400_000, b'x');
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut socket = world.socket("?token=tg_admin").await;
        socket.raw(&header).await;
        held.push(socket);
    }
    // Two fit, and wait for their rest; which of them comes last is nobody's.
    let frames = held.iter_mut().map(|socket| Box::pin(socket.frame()));
    let (frame, ..) = tokio::time::timeout(PATIENCE, futures_util::future::select_all(frames)).await.unwrap();
    assert_eq!(frame["error"]["type"], "gateway-overloaded", "more bytes are held than the bound: {frame}");
    let text = "a".repeat(400_000);
    let (status, _) = world.ask_as(Some("tg_other"), "/api/v1/config", &json!({"operation": text})).await;
    assert_eq!(status, 400, "another caller's body finds room");
}

#[tokio::test]
async fn what_would_become_much_larger_than_it_is_is_refused() {
    let world = World::new().await;
    world.with_embeddings().await;
    let many = format!(r#"{{"texts":[{}"a"]}}"#, "0,".repeat(2 << 20));
    let answer = world.post(EMBEDDINGS, Some("tg_admin"), many.clone()).await;
    assert_eq!(answer.status(), 413);
    assert!(answer.text().await.unwrap().contains("too many values"));
    // In proportion, and still more than there is room for at all.
    let floats = format!(r#"{{"texts":[{}0]}}"#, "0.123456789012345678,".repeat(3 << 20));
    assert_eq!(world.post(EMBEDDINGS, Some("tg_admin"), floats).await.status(), 413);
    let mut socket = world.socket("?token=tg_admin").await;
    socket.send_text(format!(r#"{{"id":"1","flow":"f","service":"embeddings","request":{many}}}"#)).await;
    let said = socket.frame().await;
    assert_eq!((&said["id"], &said["error"]["type"]), (&json!("1"), &json!("too-large")));
    assert_eq!(socket.ask(&embed("2")).await["complete"], true, "the socket lives on");
}

#[tokio::test]
async fn credentials_are_read_as_their_rfc_says() {
    let world = World::new().await;
    world.with_embeddings().await;
    let ask = async |values: &[&str]| {
        let mut request = world.http.post(world.url(EMBEDDINGS)).body(r#"{"texts":["a"]}"#);
        for value in values {
            request = request.header("authorization", *value);
        }
        request.send().await.unwrap()
    };
    for value in ["Bearer tg_admin", "bearer tg_admin", "BEARER  tg_admin ", "bEaReR tg_admin"] {
        assert_eq!(ask(&[value]).await.status(), 200, "{value}");
    }
    for values in
        [&[][..], &["Basic tg_admin"], &["tg_admin"], &["Bearer"], &["Bearer tg_wrong"], &["Bearertg_admin"]]
    {
        let answer = ask(values).await;
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["www-authenticate"]),
            (401, &"Bearer".parse().unwrap()),
            "{values:?}"
        );
    }
    for second in ["Bearer tg_admin", "Bearer tg_wrong", ""] {
        assert_eq!(ask(&["Bearer tg_admin", second]).await.status(), 400, "{second}");
    }
}

#[tokio::test]
async fn an_upgrade_succeeds_whatever_the_credential_and_is_refused_where_it_is_none() {
    let world = World::new().await;
    let upgrade = async |more: &str, version: &str, path: &str| {
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: {version}\r\n{more}\r\n"
        );
        let mut stream = say(&world, &head).await;
        let mut first = vec![0; 1_000];
        let bytes = tokio::time::timeout(PATIENCE, stream.read(&mut first)).await.unwrap().unwrap();
        String::from_utf8_lossy(&first[..bytes]).into_owned()
    };
    // The key and its answer are the example of RFC 6455.
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for path in
        ["/api/v1/socket", "/api/socket", "/api/v1/socket?token=tg_wrong", "/api/v1/socket?token=tg_admin"]
    {
        for more in
            ["", "Authorization: Bearer tg_wrong\r\n", "Sec-WebSocket-Extensions: permessage-deflate\r\n"]
        {
            let said = upgrade(&format!("{key}{more}"), "13", path).await;
            assert!(said.starts_with("HTTP/1.1 101 "), "{path}: {said}");
            assert!(said.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{said}");
            assert!(!said.to_lowercase().contains("connection: close"), "{said}");
        }
    }
    assert!(upgrade(key, "8", "/api/v1/socket").await.starts_with("HTTP/1.1 400 "));
    assert!(upgrade("", "13", "/api/v1/socket").await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test]
async fn a_socket_from_which_nothing_comes_is_closed() {
    let mut options = options();
    options.socket_silence_timeout = LONGER;
    options.ping_interval = Duration::from_millis(50);
    let world = World::with(options).await;
    world.with_embeddings().await;
    let mut socket = world.socket("?token=tg_admin").await;
    assert_eq!(socket.ask(&embed("1")).await["complete"], true);
    // A client that is not read from does not answer pings.
    wait_for("the end of the silent socket", || async {
        world.metric("sluice_gateway_open_sockets") == Some(0.0)
    })
    .await;
    let mut socket = world.socket("?token=tg_admin").await;
    let end = tokio::time::Instant::now() + 2 * LONGER;
    while tokio::time::Instant::now() < end {
        assert_eq!(socket.ask(&embed("1")).await["complete"], true, "who says something stays");
    }
}

#[tokio::test]
async fn a_message_that_is_not_finished_is_given_up() {
    let mut options = options();
    options.body_idle_timeout = SHORT;
    options.ping_interval = Duration::from_millis(50);
    let world = World::with(options).await;
    let mut socket = world.socket("?token=tg_admin").await;
    socket.raw(&[0x81, 0xfe, 0x10, 0, 0, 0, 0, 0, b'{']).await;
    // Nothing is read, so that no ping is answered in the middle of the message.
    wait_for("the end of the socket", || async { world.metric("sluice_gateway_open_sockets") == Some(0.0) })
        .await;
}
