//! Workspaces come with queues and a copy of the template, and go with their queues.

use crate::common::*;
use sluice_bus::Embedded;
use sluice_schema::message::ConfigRequest;
use sluice_sdk::Apply;

#[tokio::test]
async fn a_registered_workspace_is_served_and_holds_the_template() {
    let (broker, store) = (Embedded::in_memory(), Store::new());
    let house = Instance::start(&broker, &store).await;
    let template = vec![value("prompt", "system", "\"Be brief.\""), value("tool", "t", "template")];
    house.system.put("__template__", template).await.unwrap();
    house.system.put("acme", vec![value("tool", "t", "own"), value("mcp", "m", "{}")]).await.unwrap();
    let notices = Listener::attach(&broker).await;

    house.register("acme").await;
    let created = notices.next().await;
    assert!(created.changes.is_empty());
    assert_eq!(created.workspace_changes.unwrap().created, ["acme"]);
    let copied = notices.next().await;
    let types: Vec<_> = copied.changes.keys().map(String::as_str).collect();
    assert_eq!(types, ["mcp", "prompt", "tool", "tool-service"], "every type present is told");
    let user = house.user("acme").await;
    let dump = ask(&user, request("config")).await.config;
    assert_eq!(dump["prompt"]["system"], "\"Be brief.\"");
    assert_eq!(dump["tool"]["t"], "own", "only missing keys are copied");
    assert!(!house.exists("request:tg:config:__template__").await);

    // A second registration changes nothing of what the workspace holds.
    house.system.delete("acme", vec![key("prompt", "system")]).await.unwrap();
    house.register("acme").await;
    assert!(house.system.get("acme", "prompt", "system").await.unwrap().is_none());
    house.stop().await;
}

#[tokio::test]
async fn a_copy_that_was_not_made_is_made_at_the_next_start() {
    let (broker, store) = (Embedded::in_memory(), Store::new());
    let first = Instance::start(&broker, &store).await;
    first.system.put("__template__", vec![value("prompt", "p", "1")]).await.unwrap();
    first.register("acme").await;
    // As after a crash between the registration and the copy: no mark, nothing copied.
    let undone = Apply {
        deletes: vec![key_in("__system__", "init-state", "provision:acme"), key_in("acme", "prompt", "p")],
        quiet: true,
        ..Default::default()
    };
    first.system.apply(undone).await.unwrap();
    first.stop().await;

    let second = Instance::start(&broker, &store).await;
    assert!(second.system.get("acme", "prompt", "p").await.unwrap().is_some());
    let mark = second.system.get("__system__", "init-state", "provision:acme").await.unwrap().unwrap();
    assert_eq!(mark.value.as_deref(), Some("\"v1\""));
    let user = second.user("acme").await;
    assert_eq!(ask(&user, request("config")).await.error, None);
    second.stop().await;
}

#[tokio::test]
async fn an_unregistered_workspace_loses_its_queues_and_keeps_its_values() {
    let (broker, store) = (Embedded::in_memory(), Store::new());
    let house = Instance::start(&broker, &store).await;
    house.system.put("__template__", vec![value("prompt", "p", "1")]).await.unwrap();
    house.register("acme").await;
    assert!(house.exists("request:tg:config:acme").await && house.exists("response:tg:config:acme").await);
    let notices = Listener::attach(&broker).await;
    house.system.delete("__workspaces__", vec![key("workspace", "acme")]).await.unwrap();
    assert_eq!(notices.next().await.workspace_changes.unwrap().deleted, ["acme"]);
    assert!(!house.exists("request:tg:config:acme").await && !house.exists("response:tg:config:acme").await);
    assert!(house.system.get("acme", "prompt", "p").await.unwrap().is_some());

    // Registered again it is served again, and lacks nothing of the template.
    house.system.delete("acme", vec![key("prompt", "p")]).await.unwrap();
    house.register("acme").await;
    assert!(house.system.get("acme", "prompt", "p").await.unwrap().is_some());
    let user = house.user("acme").await;
    let put = ConfigRequest { values: vec![value("prompt", "q", "2")], ..request("put") };
    assert_eq!(ask(&user, put).await.error, None);
    house.stop().await;
}

#[tokio::test]
async fn names_that_cannot_have_queues_disturb_no_other_workspace() {
    let (broker, store) = (Embedded::in_memory(), Store::new());
    let house = Instance::start(&broker, &store).await;
    house.register("no{queue}").await;
    house.register("__flows__").await;
    house.register("acme").await;
    assert!(house.exists("request:tg:config:acme").await);
    assert!(!house.exists("request:tg:config:__flows__").await);
    house.stop().await;
}

/// The system queue, which nobody but internal callers reaches, a workspace's, and the notices.
#[tokio::test]
async fn a_config_queue_that_somebody_removes_is_made_again_and_served() {
    let (broker, store) = (Embedded::in_memory(), Store::new());
    let house = Instance::start(&broker, &store).await;
    house.register("acme").await;
    let user = house.user("acme").await;
    for queue in ["request:tg:config", "request:tg:config:acme", "notify:tg:config"] {
        let spec = sluice_bus::TopicSpec::bare(queue.parse().unwrap());
        house.admin.remove(&spec).await.unwrap();
        until("the system queue served again", async || house.system.get("a", "t", "k").await.ok()).await;
        until("the workspace's queue served again", async || {
            user.call(&request("config"), DEADLINE).await.ok()
        })
        .await;
        until("a write told", async || house.system.put("a", vec![value("t", "k", "1")]).await.ok()).await;
        assert!(house.exists(queue).await, "{queue}");
    }
    house.stop().await;
}
