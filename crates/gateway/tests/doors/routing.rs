//! Routes follow the flow records: what appears can be called, what vanishes ends its calls.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_bus::{Broker, BrokerAdmin, Subscription, TopicSpec};
use sluice_schema::{Topic, record};
use tokio::sync::Semaphore;

use crate::world::{PATIENCE, World, options, wait_for};

const EMBEDDINGS: &str = "/api/v1/flow/f/service/embeddings";

fn question() -> Value {
    json!({"texts": ["a"]})
}

fn stopped() -> Value {
    json!({"error": {"type": "flow-error", "message": "flow stopped"}})
}

async fn serve_number(world: &World, run: &str, number: u32) {
    world
        .serve("default", run, "embeddings", move |_, _| async move { Ok(json!({"vectors": [[number]]})) })
        .await;
}

/// A service that takes questions and never answers.
async fn serve_silence(world: &World, run: &str) -> Arc<Semaphore> {
    let entered = Arc::new(Semaphore::new(0));
    let enter = entered.clone();
    world
        .serve("default", run, "embeddings", move |_, _| {
            enter.add_permits(1);
            std::future::pending()
        })
        .await;
    entered
}

async fn inside(entered: &Semaphore) {
    tokio::time::timeout(PATIENCE, entered.acquire()).await.unwrap().unwrap().forget();
}

#[tokio::test]
async fn a_flow_can_be_called_from_its_record_to_its_end() {
    let world = World::new().await;
    serve_number(&world, "f", 1).await;
    assert_eq!(world.ask(EMBEDDINGS, &question()).await.1["error"]["message"], "Invalid flow default/f");
    world.put_flow("default", "f", "f", &["embeddings"], None).await;
    assert_eq!(
        world.ask(EMBEDDINGS, &question()).await.1,
        json!({"vectors": [[1]]}),
        "at once, without asking twice"
    );
    world.put("default", record::FLOW, "f", None).await;
    world
        .until("the end of the route", EMBEDDINGS, &question(), |_, said| {
            said["error"]["message"] == "Invalid flow default/f"
        })
        .await;
    wait_for("the gauge", || async { world.metric("tg_gateway_active_flow_count") == Some(0.0) }).await;
}

#[tokio::test]
async fn a_restarted_flow_is_called_under_its_new_run() {
    let world = World::new().await;
    serve_number(&world, "f", 1).await;
    serve_number(&world, "f-r2", 2).await;
    world.put_flow("default", "f", "f", &["embeddings"], None).await;
    assert_eq!(world.ask(EMBEDDINGS, &question()).await.1, json!({"vectors": [[1]]}));
    // Stopped and started within one look: the key never vanishes.
    world.put_flow("default", "f", "f-r2", &["embeddings"], None).await;
    world.until("the new run", EMBEDDINGS, &question(), |_, said| said == &json!({"vectors": [[2]]})).await;
}

#[tokio::test]
async fn a_call_on_a_flow_that_vanishes_ends_typed_within_a_second() {
    for another_run in [false, true] {
        let world = World::new().await;
        let entered = serve_silence(&world, "f").await;
        world.put_flow("default", "f", "f", &["embeddings"], None).await;
        let mut socket = world.socket("?token=tg_admin").await;
        socket.send(&json!({"id": "s", "flow": "f", "service": "embeddings", "request": question()})).await;
        let asked = question();
        let call = world.ask(EMBEDDINGS, &asked);
        let vanish = async {
            inside(&entered).await;
            inside(&entered).await;
            if another_run {
                world.put_flow("default", "f", "f-r2", &["embeddings"], None).await;
            } else {
                world.put("default", record::FLOW, "f", None).await;
            }
            Instant::now()
        };
        let ((status, said), gone) = tokio::join!(call, vanish);
        assert_eq!((status, said), (200, stopped()));
        let frame = socket.frame().await;
        assert_eq!((&frame["error"], &frame["complete"]), (&stopped()["error"], &json!(true)));
        // Far from the deadline of the call.
        assert!(gone.elapsed() < Duration::from_secs(10), "{:?}", gone.elapsed());
    }
}

#[tokio::test]
async fn a_stopping_flow_refuses_new_calls_and_finishes_old_ones() {
    let world = World::new().await;
    let (go, entered) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (wait, enter) = (go.clone(), entered.clone());
    world
        .serve("default", "f", "embeddings", move |_, _| {
            let (wait, enter) = (wait.clone(), enter.clone());
            async move {
                enter.add_permits(1);
                wait.acquire().await.unwrap().forget();
                Ok(json!({"vectors": [[1]]}))
            }
        })
        .await;
    world.put_flow("default", "f", "f", &["embeddings"], None).await;
    let asked = question();
    let old = world.ask(EMBEDDINGS, &asked);
    let stop = async {
        inside(&entered).await;
        world.put_flow("default", "f", "f", &["embeddings"], Some("stopping")).await;
        wait_for("the gauge", || async { world.metric("tg_gateway_active_flow_count") == Some(0.0) }).await;
        let said = world.ask(EMBEDDINGS, &question()).await.1;
        assert_eq!(said, json!({"error": {"type": "flow-error", "message": "flow default/f is stopping"}}));
        go.add_permits(1);
    };
    let ((_, said), ()) = tokio::join!(old, stop);
    assert_eq!(said, json!({"vectors": [[1]]}));
}

#[tokio::test]
async fn a_record_that_opens_somebody_elses_door_is_not_routed() {
    let world = World::new().await;
    world.serve("other", "f", "embeddings", |_, _| async { Ok(json!({"vectors": [["stolen"]]})) }).await;
    world.serve_system("default", "librarian", |_, _| async { Ok(json!({"vectors": [["stolen"]]})) }).await;
    for (base, what) in [
        ("embeddings:other:f", "another workspace's flow"),
        ("config", "the whole system's config"),
        ("iam", "the identity service"),
        ("librarian:default", "the own librarian"),
        ("librarian:other", "another's librarian"),
        ("embeddings", "nobody's topic"),
    ] {
        let doors =
            json!({"request": format!("request:tg:{base}"), "response": format!("response:tg:{base}")});
        let record = json!({"blueprint-name": "b", "interfaces": {"embeddings": doors}});
        world.put("default", record::FLOW, "f", Some(record.to_string())).await;
        let (status, said) = world
            .until(what, EMBEDDINGS, &question(), |_, said| {
                said["error"]["message"]
                    .as_str()
                    .is_some_and(|text| text.contains(&format!("request:tg:{base}'")))
            })
            .await;
        assert_eq!((status, &said["error"]["type"]), (200, &json!("flow-error")), "{what}: {said}");
        assert_eq!(world.metric("sluice_gateway_unrouted_flows"), Some(1.0), "{what}");
    }
}

#[tokio::test]
async fn an_unreadable_record_harms_only_itself() {
    let world = World::new().await;
    serve_number(&world, "g", 1).await;
    for garbage in ["{", "[]", r#"{"interfaces": 7}"#, r#"{"interfaces":{"embeddings":{"request":"zzz"}}}"#] {
        world.put("default", record::FLOW, "f", Some(garbage.to_owned())).await;
        world.put_flow("default", "g", "g", &["embeddings"], None).await;
        assert_eq!(
            world.ask("/api/v1/flow/g/service/embeddings", &question()).await.1,
            json!({"vectors": [[1]]})
        );
        let (_, said) = world
            .until("the refusal", EMBEDDINGS, &question(), |_, said| {
                said["error"]["message"].as_str().is_some_and(|text| text.contains("cannot be called"))
            })
            .await;
        assert_eq!(said["error"]["type"], "flow-error");
        world.put("default", record::FLOW, "g", None).await;
    }
}

#[tokio::test]
async fn a_config_service_that_fails_during_a_change_is_caught_up_with() {
    let world = World::new().await;
    serve_number(&world, "f", 1).await;
    serve_number(&world, "f-r2", 2).await;
    world.put_flow("default", "f", "f", &["embeddings"], None).await;
    assert_eq!(world.ask(EMBEDDINGS, &question()).await.1, json!({"vectors": [[1]]}));
    world.config.broken.store(true, Ordering::SeqCst);
    let before = world.config.fetches.load(Ordering::SeqCst);
    world.put_flow("default", "f", "f-r2", &["embeddings"], None).await;
    wait_for("a failed fetch", || async { world.config.fetches.load(Ordering::SeqCst) > before }).await;
    assert_eq!(
        world.ask(EMBEDDINGS, &question()).await.1,
        json!({"vectors": [[1]]}),
        "the last good state stays"
    );
    world.config.broken.store(false, Ordering::SeqCst);
    world.until("the new run", EMBEDDINGS, &question(), |_, said| said == &json!({"vectors": [[2]]})).await;
}

#[tokio::test]
async fn twenty_restarts_in_a_row_end_at_the_last_run() {
    let world = World::new().await;
    for run in 1..=20 {
        let name = format!("f-r{run}");
        serve_number(&world, &name, run).await;
        world.put_flow("default", "f", &name, &["embeddings"], None).await;
        world.put("default", record::FLOW, "f", None).await;
    }
    world.put_flow("default", "f", "f-r20", &["embeddings"], None).await;
    world.until("the last run", EMBEDDINGS, &question(), |_, said| said == &json!({"vectors": [[20]]})).await;
}

#[tokio::test]
async fn a_workspace_that_goes_ends_its_calls_and_is_not_found() {
    let world = World::new().await;
    let (entered, path) = (Arc::new(Semaphore::new(0)), "/api/v1/flow");
    let enter = entered.clone();
    world
        .serve_system("other", "flow", move |_, _| {
            enter.add_permits(1);
            std::future::pending()
        })
        .await;
    let asked = json!({"operation": "list-flows", "workspace": "other"});
    let call = world.ask(path, &asked);
    let delete = async {
        inside(&entered).await;
        world.put(record::WORKSPACES, record::WORKSPACE, "other", None).await;
    };
    let (answer, ()) = tokio::join!(call, delete);
    assert_eq!(answer, (404, json!({"error": "workspace not found"})));
    assert_eq!(world.ask(path, &asked).await.0, 404);
}

#[tokio::test]
async fn a_new_workspace_can_be_called_at_once_though_its_queues_come_a_moment_later() {
    let mut options = options();
    options.settle_timeout = PATIENCE;
    let world = World::with(options).await;
    world.put(record::WORKSPACES, record::WORKSPACE, "fresh", Some("{}".to_owned())).await;
    let asked = json!({"operation": "list-flows", "workspace": "fresh"});
    let call = world.ask("/api/v1/flow", &asked);
    let create = async {
        wait_for("the workspace", || async { world.metric("tg_gateway_known_workspaces") == Some(3.0) })
            .await;
        world.serve_system("fresh", "flow", |_, _| async { Ok(json!({"flow_ids": ["x"]})) }).await;
    };
    let ((status, said), ()) = tokio::join!(call, create);
    assert_eq!((status, &said["flow-ids"]), (200, &json!(["x"])), "{said}");
}

#[tokio::test]
async fn what_is_in_no_record_is_refused_once_config_was_read_again() {
    let mut options = options();
    // Whoever waited for this to pass would not be done in time.
    options.settle_timeout = 10 * PATIENCE;
    let world = World::with(options).await;
    let question = json!({"texts": []});
    let asked = world.ask("/api/v1/flow/nowhere/service/embeddings", &question);
    let (status, said) = tokio::time::timeout(PATIENCE, asked).await.unwrap();
    assert_eq!((status, &said["error"]["message"]), (200, &json!("Invalid flow default/nowhere")));
    let asked = json!({"operation": "list-flows", "workspace": "nowhere"});
    let (status, said) = tokio::time::timeout(PATIENCE, world.ask("/api/v1/flow", &asked)).await.unwrap();
    assert_eq!((status, &said["error"]), (404, &json!("workspace not found")));
}

#[tokio::test]
async fn what_is_handed_in_where_a_readers_queue_is_missing_is_refused_for_now() {
    let world = World::new().await;
    let topic = Topic::parse("flow:tg:text-load:default:f").unwrap();
    world.broker.ensure(&TopicSpec::bare(topic.clone())).await.unwrap();
    world.put_flow("default", "f", "f", &["text-load"], None).await;
    let body = json!({"id": "d1", "text": "aGVsbG8="});
    let path = "/api/v1/flow/f/service/text-load";
    let ask = || async { world.post(path, Some("tg_admin"), body.to_string()).await };
    assert_eq!(ask().await.status(), 200, "without a reader on record it may go nowhere");
    world.put_read_flow("default", "f", "f", &["text-load"]).await;
    wait_for("the record to be read", || async { ask().await.status() == 503 }).await;
    let refused = ask().await;
    assert_eq!(refused.headers()["retry-after"], "1");
    let said: Value = refused.json().await.unwrap();
    assert_eq!(said["error"]["type"], "flow-error");
    assert!(said["error"]["message"].as_str().unwrap().contains("send it again"), "{said}");
    let mut socket = world.socket("?token=tg_admin").await;
    let frame = socket.ask(&json!({"id": 1, "flow": "f", "service": "text-load", "request": body})).await;
    assert_eq!(frame["error"]["type"], "flow-error", "{frame}");
    world.broker.ensure(&TopicSpec::with(topic, "decoder")).await.unwrap();
    assert_eq!(ask().await.status(), 200);
}

#[tokio::test]
async fn a_document_handed_in_is_on_its_topic_when_the_answer_comes() {
    let world = World::new().await;
    let topic = Topic::parse("flow:tg:text-load:default:f").unwrap();
    world.broker.ensure(&TopicSpec::with(topic.clone(), "decoder")).await.unwrap();
    world.put_flow("default", "f", "f", &["text-load"], None).await;
    let body = json!({"id": "d1", "text": "aGVsbG8=", "collection": "c"});
    let (status, said) = world.ask("/api/v1/flow/f/service/text-load", &body).await;
    assert_eq!((status, said), (200, json!({})));
    let to = Subscription::Shared { topic, name: "decoder".to_owned(), prefetch: 1 };
    let inbox = world.broker.subscribe(&to).await.unwrap();
    let delivery = tokio::time::timeout(PATIENCE, inbox.next()).await.unwrap().unwrap();
    let text: Value = serde_json::from_slice(&delivery.message.body).unwrap();
    assert_eq!(
        (&text["metadata"]["id"], &text["metadata"]["collection"]),
        (&json!("d1"), &json!("c")),
        "{text}"
    );
    delivery.ack();
    let mut socket = world.socket("?token=tg_admin").await;
    let frame = socket.ask(&json!({"id": 1, "flow": "f", "service": "text-load", "request": body})).await;
    assert_eq!(frame, json!({"id": 1, "response": {}, "complete": true}));
}
