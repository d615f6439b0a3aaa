//! How calls are refused over HTTP: statuses, bodies, limits.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_bus::{Broker as _, BrokerAdmin as _, Subscription, TopicSpec};
use sluice_gateway::{Error, Parts};
use sluice_schema::Topic;
use sluice_schema::message as m;
use sluice_sdk::ConfigWatch;
use tokio::sync::Notify;

use crate::world::{self, PATIENCE, World, options, wait_for};

const EMBEDDINGS: &str = "/api/v1/flow/f/service/embeddings";

#[tokio::test]
async fn every_rejection_has_its_status_and_words() {
    let world = World::new().await;
    let check = async |path: &str, token: Option<&str>, body: &str, status: u16, said: Value| {
        let answer = world.post(path, token, body.to_owned()).await;
        assert_eq!(answer.status(), status, "{path} {body}");
        assert_eq!(answer.headers()["content-type"], "application/json; charset=utf-8", "{path} {body}");
        assert_eq!(answer.json::<Value>().await.unwrap(), said, "{path} {body}");
    };
    let admin = Some("tg_admin");
    let error = |text: &str| json!({"error": text});
    check("/api/v1/config", admin, "{", 400, error("invalid json")).await;
    check("/api/v1/config", admin, "", 400, error("invalid json")).await;
    check("/api/v1/config", admin, "[1]", 400, error("body must be an object")).await;
    check("/api/v1/config", admin, "{}", 400, error("missing operation")).await;
    check("/api/v1/config", admin, r#"{"operation":""}"#, 400, error("missing operation")).await;
    check("/api/v1/config", admin, r#"{"operation":"explode"}"#, 400, error("unknown operation")).await;
    check("/api/v1/config", admin, r#"{"operation":"apply"}"#, 400, error("unknown operation")).await;
    check("/api/v1/zzz", admin, r#"{"operation":"list"}"#, 400, error("unknown operation")).await;
    check("/api/v1/iam", admin, r#"{"operation":"resolve-api-key"}"#, 400, error("unknown operation")).await;
    check("/api/v1/config", admin, r#"{"operation":"list","workspace":7}"#, 400, error("bad request")).await;
    for token in [None, Some(""), Some("tg_wrong"), Some("a.b.c"), Some("zzz")] {
        check("/api/v1/config", token, r#"{"operation":"list"}"#, 401, error("auth failure")).await;
        check(EMBEDDINGS, token, r#"{"texts":[]}"#, 401, error("auth failure")).await;
        check("/api/v1/iam", token, r#"{"operation":"whoami"}"#, 401, error("auth failure")).await;
    }
    let other = r#"{"operation":"list","workspace":"other"}"#;
    check("/api/v1/config", Some("tg_default"), other, 403, error("access denied")).await;
    check("/api/v1/flow/f/service/zzz", None, "{", 404, error("unknown kind")).await;
    let nowhere = r#"{"operation":"list","workspace":"nowhere"}"#;
    check("/api/v1/config", admin, nowhere, 404, error("workspace not found")).await;
    check("/api/v1/config", Some("tg_default"), nowhere, 403, error("access denied")).await;
    let reserved = r#"{"operation":"list","workspace":"__workspaces__"}"#;
    check("/api/v1/config", admin, reserved, 404, error("workspace not found")).await;
}

#[tokio::test]
async fn what_no_path_serves_is_refused_in_plain_text() {
    let world = World::new().await;
    for path in ["/zzz", "/api/v1/config/", "/api/v1"] {
        let answer = world.post(path, Some("tg_admin"), "{}").await;
        assert_eq!(
            (answer.status().as_u16(), answer.text().await.unwrap().as_str()),
            (404, "404: Not Found"),
            "{path}"
        );
    }
    let answer = world.http.get(world.url("/api/v1/config")).send().await.unwrap();
    assert_eq!(answer.status(), 405);
    assert_eq!(answer.headers()["allow"], "POST");
    assert_eq!(answer.text().await.unwrap(), "405: Method Not Allowed");
    let answer = world.http.get(world.url("/api/v1/socket")).send().await.unwrap();
    assert_eq!(answer.status(), 400);
}

#[tokio::test]
async fn a_flow_that_cannot_be_called_is_a_typed_error() {
    let world = World::new().await;
    world.put_flow("default", "f", "f", &["embeddings"], None).await;
    world.serve("default", "f", "embeddings", |_, _| async { Ok(json!({"vectors": []})) }).await;
    let flow_error = |text: &str| json!({"error": {"type": "flow-error", "message": text}});
    let (status, said) = world.ask("/api/v1/flow/zzz/service/embeddings", &json!({"texts": []})).await;
    assert_eq!((status, said), (200, flow_error("Invalid flow default/zzz")));
    let (status, said) = world
        .ask("/api/v1/flow/f/service/reranker", &json!({"queries": [{"query": "a"}], "documents": []}))
        .await;
    assert_eq!((status, said), (200, flow_error("This kind not supported by flow")));
    let (status, said) = world.ask(EMBEDDINGS, &json!({"texts": 7})).await;
    assert_eq!((status, &said["error"]["type"]), (200, &json!("request-error")));
    assert!(said["error"]["message"].as_str().unwrap().contains("texts"), "{said}");
}

#[tokio::test]
async fn a_store_that_takes_nothing_is_a_typed_error_for_later() {
    let world = World::new().await;
    world.put_flow("default", "f", "f", &["embeddings"], None).await;
    let refuse = |asked: Value, _| async move {
        Err(m::Error::new(asked["texts"][0].as_str().unwrap_or_default(), "full"))
    };
    world.serve("default", "f", "embeddings", refuse).await;
    for (kind, status) in [("store-unavailable", 503), ("config-unavailable", 503), ("unexpected-error", 200)]
    {
        let asked = json!({"texts": [kind]}).to_string();
        let answer = world.post(EMBEDDINGS, Some("tg_admin"), asked).await;
        assert_eq!(answer.status(), status, "{kind}");
        assert_eq!(answer.headers().contains_key("retry-after"), status == 503, "{kind}");
        let said = answer.json::<Value>().await.unwrap();
        assert_eq!(said["error"], json!({"type": kind, "message": "full"}), "{kind}");
    }
}

#[tokio::test]
async fn a_flow_without_its_service_is_a_typed_error_at_once() {
    let world = World::new().await;
    world.put_flow("default", "f", "f", &["embeddings"], None).await;
    let (status, said) = world
        .until("the route", EMBEDDINGS, &json!({"texts": []}), |_, said| {
            said["error"]["message"] != "Invalid flow default/f"
        })
        .await;
    assert_eq!((status, &said["error"]["type"]), (503, &json!("flow-error")));
    assert!(said["error"]["message"].as_str().unwrap().contains("nobody serves embeddings"), "{said}");
    let answer = world.post(EMBEDDINGS, Some("tg_admin"), r#"{"texts": []}"#).await;
    assert!(answer.headers().contains_key("retry-after"), "it may only just start");
}

#[tokio::test]
async fn a_failing_service_is_told_as_an_object_with_status_200() {
    let world = World::new().await;
    let fails = |_, _| async { Err(m::Error::new("llm-error", "no model is configured")) };
    world.serve("default", "f", "text-completion", fails).await;
    world
        .serve_system("default", "flow", |_, _| async { Err(m::Error::new("flow-error", "f is there")) })
        .await;
    world.put_flow("default", "f", "f", &["text-completion"], None).await;
    let question = json!({"system": "s", "prompt": "p"});
    let (status, said) = world.ask("/api/v1/flow/f/service/text-completion", &question).await;
    assert_eq!(status, 200);
    assert_eq!(said["error"], json!({"type": "llm-error", "message": "no model is configured"}));
    let (status, said) = world.ask("/api/v1/flow", &json!({"operation": "stop-flow", "flow-id": "f"})).await;
    assert_eq!((status, &said["error"]["type"]), (200, &json!("flow-error")));
}

#[tokio::test]
async fn success_has_no_error_member_and_names_its_content_type() {
    let world = World::new().await;
    world.with_embeddings().await;
    let answer = world.post(EMBEDDINGS, Some("tg_admin"), r#"{"texts":["a"]}"#).await;
    assert_eq!(answer.headers()["content-type"], "application/json; charset=utf-8");
    assert_eq!(answer.json::<Value>().await.unwrap(), json!({"vectors": [[0.5]]}));
}

#[tokio::test]
async fn an_unreadable_answer_fails_its_own_call_only() {
    let world = World::new().await;
    world
        .serve("default", "f", "embeddings", |question, _| async move {
            if question["texts"] == json!(["bad"]) { Ok(json!([1, 2])) } else { Ok(json!({"vectors": []})) }
        })
        .await;
    world.put_flow("default", "f", "f", &["embeddings"], None).await;
    let (status, said) = world.ask(EMBEDDINGS, &json!({"texts": ["bad"]})).await;
    assert_eq!((status, &said["error"]["type"]), (200, &json!("gateway-error")));
    assert_eq!(world.ask(EMBEDDINGS, &json!({"texts": ["good"]})).await.1, json!({"vectors": []}));
    assert_eq!(world.metric("sluice_gateway_unreadable_answers_total"), Some(1.0));
}

#[tokio::test]
async fn a_service_that_never_answers_ends_at_the_deadline() {
    let mut options = options();
    options.call_timeout = Duration::from_millis(50);
    let world = World::with(options).await;
    world.serve("default", "f", "embeddings", |_, _| std::future::pending()).await;
    world.put_flow("default", "f", "f", &["embeddings"], None).await;
    let (status, said) = world.ask(EMBEDDINGS, &json!({"texts": ["a"]})).await;
    assert_eq!((status, said), (200, json!({"error": {"type": "gateway-error", "message": "Timeout"}})));
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_and_its_sender_is_told() {
    let mut options = options();
    options.body_bytes_max = 1_000;
    let world = World::with(options).await;
    let big = format!(r#"{{"operation":"list","x":"{}"}}"#, "x".repeat(5_000_000));
    for path in ["/api/v1/config", EMBEDDINGS, "/api/v1/iam"] {
        let answer = world.post(path, Some("tg_admin"), big.clone()).await;
        assert_eq!(answer.status(), 413, "{path}");
        assert!(answer.text().await.unwrap().contains("1000 bytes"));
        // The same without a declared length.
        let parts = futures_util::stream::iter(
            big.clone().into_bytes().chunks(50_000).map(<[u8]>::to_vec).collect::<Vec<_>>(),
        );
        let parts = futures_util::StreamExt::map(parts, Ok::<_, std::io::Error>);
        let answer = world.post(path, Some("tg_admin"), reqwest::Body::wrap_stream(parts)).await;
        assert_eq!(answer.status(), 413, "{path} in chunks");
    }
    let answer = world.post("/api/v1/config", Some("tg_wrong"), big).await;
    assert_eq!(answer.status(), 401);
    let answer = world.post("/api/v1/auth/login", None, "x".repeat(100_000)).await;
    assert_eq!(answer.status(), 413, "a stranger's body has a limit of its own");
}

#[tokio::test]
async fn above_the_high_water_mark_only_new_work_is_refused() {
    let world = World::new().await;
    world.with_embeddings().await;
    world.put_flow("default", "in", "in", &["text-load"], None).await;
    world.serve_system("default", "librarian", |_, _| async { Ok(json!({})) }).await;
    let load = "/api/v1/flow/in/service/text-load";
    world.pressure.store(true, Ordering::SeqCst);
    for (path, body) in [
        (load, json!({"id": "d", "text": "aGVsbG8="})),
        ("/api/v1/librarian", json!({"operation": "add-processing", "processing-metadata": {"id": "p"}})),
    ] {
        let answer = world.post(path, Some("tg_admin"), body.to_string()).await;
        assert_eq!(
            (answer.status().as_u16(), answer.headers()["retry-after"].to_str().unwrap()),
            (429, "1"),
            "{path}"
        );
        assert!(answer.json::<Value>().await.unwrap()["error"].is_string());
    }
    assert_eq!(world.ask(EMBEDDINGS, &json!({"texts": ["a"]})).await.0, 200);
    assert_eq!(world.ask("/api/v1/librarian", &json!({"operation": "list-documents"})).await.0, 200);
}

/// What a text becomes counts from the start, so that what waits later is not many times what was let in.
#[tokio::test]
async fn a_workspace_with_too_much_waiting_keeps_no_other_out() {
    let world = World::new().await;
    let mut readers = Vec::new();
    for workspace in ["default", "other"] {
        let topic = Topic::parse(&format!("flow:tg:text-load:{workspace}:in")).unwrap();
        world.broker.ensure(&TopicSpec::with(topic.clone(), "chunker")).await.unwrap();
        let shared = Subscription::Shared { topic, name: "chunker".to_owned(), prefetch: 100 };
        readers.push(world.broker.subscribe(&shared).await.unwrap());
        world.put_flow(workspace, "in", "in", &["text-load"], None).await;
        world.serve_system(workspace, "librarian", |_, _| async { Ok(json!({})) }).await;
    }
    let load = "/api/v1/flow/in/service/text-load";
    let of = |workspace: &str, bytes: usize| json!({"workspace": workspace, "id": "d", "text": "YWFh".repeat(bytes / 4)});
    let bytes = usize::try_from(world::HIGH_WATER_BYTES / 40).unwrap();
    let mut taken = 0;
    let (answer, refused) = loop {
        let answer = world.post(load, Some("tg_admin"), of("default", bytes).to_string()).await;
        match answer.status().as_u16() {
            200 => taken += 1,
            status => break (answer, status),
        }
        assert!(taken < 40, "nothing bounds what waits");
    };
    assert_eq!(refused, 429);
    // A text is three quarters as long as it was sent, and counts six times.
    assert_eq!(taken, 7);
    let said = answer.json::<Value>().await.unwrap();
    let text = said["error"].as_str().unwrap();
    assert!(text.contains("workspace 'default'") && text.contains("flow 'in'"), "{text}");
    assert_eq!(said["type"], "backlog-high");
    let add = |workspace: &str| {
        json!({"workspace": workspace, "operation": "add-processing", "processing-metadata": {"id": "p"}})
            .to_string()
    };
    assert_eq!(world.post("/api/v1/librarian", Some("tg_admin"), add("default")).await.status(), 429);
    assert_eq!(world.post(load, Some("tg_admin"), of("other", 1_000).to_string()).await.status(), 200);
    assert_eq!(world.post("/api/v1/librarian", Some("tg_admin"), add("other")).await.status(), 200);
    // What is worked off makes room.
    for _ in 0..3 {
        readers[0].next().await.unwrap().ack();
    }
    assert_eq!(world.post(load, Some("tg_admin"), of("default", 1_000).to_string()).await.status(), 200);
}

#[tokio::test]
async fn above_the_bounds_calls_are_told_to_come_later() {
    let mut options = options();
    options.calls_max = 2;
    options.bodies_bytes_max = 1 << 20;
    let world = World::with(options).await;
    let (go, entered) = (Arc::new(Notify::new()), Arc::new(tokio::sync::Semaphore::new(0)));
    let (wait, enter) = (go.clone(), entered.clone());
    world
        .serve("default", "f", "embeddings", move |_, _| {
            let (wait, enter) = (wait.clone(), enter.clone());
            async move {
                enter.add_permits(1);
                wait.notified().await;
                Ok(json!({"vectors": []}))
            }
        })
        .await;
    world.put_flow("default", "f", "f", &["embeddings"], None).await;
    let question = json!({"texts": ["a"]});
    let (one, two) = (world.ask(EMBEDDINGS, &question), world.ask(EMBEDDINGS, &question));
    let third = async {
        tokio::time::timeout(PATIENCE, entered.acquire_many(2)).await.unwrap().unwrap().forget();
        let answer = world.post(EMBEDDINGS, Some("tg_admin"), question.to_string()).await;
        for _ in 0..2 {
            go.notify_one();
        }
        answer
    };
    let (one, two, third) = tokio::join!(one, two, third);
    assert_eq!((one.0, two.0), (200, 200));
    assert_eq!((third.status().as_u16(), third.headers()["retry-after"].to_str().unwrap()), (429, "1"));
    let answer = world.post(EMBEDDINGS, Some("tg_admin"), vec![b'x'; 2 << 20]).await;
    assert_eq!(answer.status(), 429, "the budget for bodies");
}

#[tokio::test]
async fn calls_wait_for_the_first_config_and_are_refused_when_it_does_not_come() {
    let mut options = options();
    options.ready_timeout = Duration::from_millis(50);
    let world = World::unread(options.clone(), true).await;
    let answer = world.post("/api/v1/config", Some("tg_admin"), r#"{"operation":"list"}"#).await;
    assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].to_str().unwrap()), (503, "1"));
    assert_eq!(world.http.get(world.url("/readyz")).send().await.unwrap().status(), 503);
    assert_eq!(world.http.get(world.url("/healthz")).send().await.unwrap().status(), 200);
    assert_eq!(world.http.get(world.url("/")).send().await.unwrap().status(), 200);

    options.ready_timeout = PATIENCE;
    let world = World::unread(options, true).await;
    world.serve_system("default", "config", |_, _| async { Ok(json!({"version": 3})) }).await;
    let path = "/api/v1/config";
    let question = json!({"operation": "list", "type": "x"});
    let held = world.ask(path, &question);
    let mend = async {
        wait_for("a failing fetch", || async { world.config.fetches.load(Ordering::SeqCst) > 0 }).await;
        world.config.broken.store(false, Ordering::SeqCst);
    };
    let ((status, said), ()) = tokio::join!(held, mend);
    assert_eq!((status, &said["version"]), (200, &json!(3)));
}

#[tokio::test]
async fn a_request_id_is_kept_and_reaches_the_service() {
    let world = World::new().await;
    world
        .serve("default", "f", "embeddings", |_, responder| async move {
            Err(m::Error::new("trace", responder.trace().unwrap_or_default()))
        })
        .await;
    world.put_flow("default", "f", "f", &["embeddings"], None).await;
    let ask = async |id: &str| {
        let request =
            world.http.post(world.url(EMBEDDINGS)).bearer_auth("tg_admin").header("x-request-id", id);
        let answer = request.body(r#"{"texts":["a"]}"#).send().await.unwrap();
        let echoed = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        let said: Value = answer.json().await.unwrap();
        (echoed, said["error"]["message"].as_str().unwrap().to_owned())
    };
    assert_eq!(ask("my-id-1").await, ("my-id-1".to_owned(), "my-id-1".to_owned()));
    let (echoed, seen) = ask("not a good id").await;
    assert_ne!(echoed, "not a good id");
    assert_eq!(echoed, seen);
}

#[tokio::test]
async fn the_identity_service_is_asked_once_a_minute_and_never_means_yes_when_it_fails() {
    let world = World::new().await;
    world.with_embeddings().await;
    let before = world.iam.asked.load(Ordering::SeqCst);
    for _ in 0..20 {
        assert_eq!(world.ask(EMBEDDINGS, &json!({"texts": ["a"]})).await.0, 200);
    }
    assert_eq!(world.iam.asked.load(Ordering::SeqCst), before);
    assert_eq!(world.ask_as(Some("tg_nobody"), EMBEDDINGS, &json!({})).await.0, 401);
    let line = r#"tg_gateway_auth_failure_total{reason="invalid-api-key"}"#;
    assert_eq!(world.metric(line), Some(1.0));
}

#[tokio::test]
async fn without_authentication_any_token_and_none_are_let_in() {
    let world = World::new().await;
    world.iam.no_auth.store(true, Ordering::SeqCst);
    world.with_embeddings().await;
    for token in [None, Some("tg_x"), Some("whatever"), Some("a.b.c")] {
        assert_eq!(world.ask_as(token, EMBEDDINGS, &json!({"texts": ["a"]})).await.0, 200, "{token:?}");
    }
}

#[tokio::test]
async fn logging_in_is_for_everybody_and_says_no_more_than_no() {
    let world = World::new().await;
    let login = |password: &str| json!({"username": "a", "password": password});
    let (status, said) = world.ask_as(None, "/api/v1/auth/login", &login("right")).await;
    assert_eq!((status, &said["jwt"], &said["bootstrap_available"]), (200, &json!("a.b.c"), &json!(false)));
    let refused = (401, json!({"error": "auth failure"}));
    assert_eq!(world.ask_as(None, "/api/v1/auth/login", &login("wrong")).await, refused);
    assert_eq!(world.ask_as(None, "/api/v1/auth/bootstrap", &json!({})).await, refused);
    assert_eq!(world.ask_as(None, "/api/v1/auth/bootstrap-status", &json!({})).await.0, 200);
    assert_eq!(world.ask_as(None, "/api/v1/auth/change-password", &json!({})).await, refused);
    assert_eq!(world.post("/api/v1/auth/login", None, "{").await.status(), 400);
    let (status, said) = world.ask("/api/v1/iam", &json!({"operation": "whoami", "actor": "u-other"})).await;
    assert_eq!((status, &said["user"]["id"]), (200, &json!("u-admin")));
}

#[tokio::test]
async fn metrics_take_their_capability() {
    let world = World::new().await;
    let get = async |token: &str| {
        let answer = world.http.get(world.url("/api/metrics")).bearer_auth(token).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (status, text) = get("tg_admin").await;
    assert_eq!(status, 200);
    for name in
        ["tg_gateway_known_workspaces 2", "tg_gateway_active_flow_count 0", "tg_gateway_authz_decision_total"]
    {
        assert!(text.contains(name), "{name} is missing in\n{text}");
    }
    assert_eq!(get("tg_other").await.0, 403);
    assert_eq!(get("tg_wrong").await.0, 401);
}

#[tokio::test]
async fn a_port_in_use_names_the_address_and_what_to_do() {
    let world = World::new().await;
    let mut options = options();
    options.listen = world.gateway.local_addr;
    let watch = ConfigWatch::start(&world.process, Duration::from_secs(30));
    let error =
        sluice_gateway::start(Parts { process: world.process.clone(), watch, options, no_room: None })
            .await
            .err()
            .unwrap();
    assert!(matches!(error, Error::InUse { .. }));
    let said = error.to_string();
    assert!(said.contains(&world.gateway.local_addr.to_string()) && said.contains("--listen"), "{said}");
}
