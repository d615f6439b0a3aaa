//! What the doctor finds, and what it tells to whom.

use serde_json::json;
use sluice_bus::TopicSpec;
use sluice_schema::message::Finding;

use crate::common::{World, ok, topic};

/// Nobody answers what the flow asks its embedder.
const UNANSWERED: &str = "nobody-reads warning f1 request:tg:embeddings:acme:demo";

/// Those that are no mere information, as `code severity flow topic`.
fn told(findings: &[Finding]) -> Vec<String> {
    let told = findings.iter().filter(|finding| finding.severity != "info");
    told.map(|f| format!("{} {} {} {}", f.code, f.severity, f.flow, f.topic)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_flow_has_nothing_wrong_and_unread_queues_are_told() {
    let world = World::with_blueprint().await;
    ok(&world.start("f1", "demo").await);
    let findings = world.doctor().await;
    assert_eq!(told(&findings), [UNANSWERED]);
    let unread = findings.iter().find(|f| f.topic == "flow:tg:load:acme:f1").unwrap();
    assert_eq!((unread.code.as_str(), unread.severity.as_str()), ("nobody-reads", "info"));
    assert_eq!((unread.flow.as_str(), unread.subscription.as_str()), ("f1", "first--acme--f1--input"));
    assert!(unread.next.contains("processor 'first'"), "{unread:?}");

    let asked = findings.iter().find(|f| f.topic == "request:tg:embeddings:acme:demo").unwrap();
    let _answers = world.read(&asked.topic, &asked.subscription).await;
    let _reader = world.read("flow:tg:load:acme:f1", "first--acme--f1--input").await;
    world.publish("flow:tg:chunks:acme:f1", "m1").await;
    let findings = world.doctor().await;
    assert!(findings.iter().all(|f| f.topic != "flow:tg:load:acme:f1"), "{findings:?}");
    assert_eq!(told(&findings), ["nobody-reads warning f1 flow:tg:chunks:acme:f1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_or_unknown_is_told_and_nothing_is_touched() {
    let world = World::with_blueprint().await;
    ok(&world.start("f1", "demo").await);
    world.admin.remove(&TopicSpec::bare(topic("flow:tg:chunks:acme:f1"))).await.unwrap();
    for stranger in
        ["flow:tg:odd:acme:x", "flow:tg:odd:other:x", "flow:tg:odd:gone:x", "request:elsewhere:odd:acme:x"]
    {
        world.admin.ensure(&TopicSpec::bare(topic(stranger))).await.unwrap();
    }
    let before = world.topic_names().await;
    let found = told(&world.doctor().await);
    // Another workspace's is not told; one of no workspace is.
    let expected = [
        "topic-missing error f1 flow:tg:chunks:acme:f1",
        UNANSWERED,
        "unknown-topic warning  flow:tg:odd:acme:x",
        "unknown-topic warning  flow:tg:odd:gone:x",
    ];
    assert_eq!(found, expected);
    assert_eq!(world.topic_names().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_cannot_be_read_and_flows_of_others_are_told_to_their_own_workspace() {
    let world = World::with_blueprint().await;
    world.put_value("acme", "processor:foreign", "x", "not json").await;
    world.put_value("other", "processor:foreign", "y", "neither").await;
    let theirs = json!({"blueprint-name": "x", "interfaces": {}});
    world.put_value("acme", "flow", "old", &theirs.to_string()).await;
    let findings = world.doctor().await;
    assert_eq!(told(&findings), ["unreadable-record error  "]);
    assert!(findings[0].text.contains("'processor:foreign/x'"), "{findings:?}");
    assert!(findings.iter().any(|f| f.code == "flow-unmanaged" && f.flow == "old"), "{findings:?}");
    assert!(!findings.iter().any(|f| f.text.contains("foreign/y")), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_stands_by_says_so_and_knows_where_flows_are() {
    let world = World::with_blueprint().await;
    ok(&world.start("f1", "demo").await);
    let _another = world.another().await;
    let pid = format!("process {} ", std::process::id());
    let stands_by = || async {
        let findings = world.doctor().await;
        assert_eq!(told(&findings), [UNANSWERED]);
        findings.iter().any(|f| f.code == "stands-by" && f.text.contains(&pid))
    };
    world.until("the one that stands by is asked", stands_by).await;
    for _ in 0..4 {
        assert_eq!(crate::common::status(&world.get("f1").await)["phase"], "Running");
    }
}
