//! Notices: in version order whatever happens, at least once, and only about what may be told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::*;
use sluice_bus::{BrokerAdmin, Embedded, TopicSpec};
use sluice_sdk::{Apply, ConfigError};

/// Hears notices until `last`; checks that each new one is the next, and returns their versions.
async fn in_order(notices: &Listener, after: i64, last: i64) -> Vec<i64> {
    let mut seen = after;
    let mut fresh = Vec::new();
    while seen < last {
        let version = notices.next().await.version;
        if version > seen {
            assert_eq!(version, seen + 1, "a notice was overtaken: receivers would drop it");
            seen = version;
            fresh.push(version);
        }
    }
    fresh
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_writers_are_told_in_version_order() {
    let (broker, store) = (Embedded::in_memory(), Store::new());
    let house = Arc::new(Instance::start(&broker, &store).await);
    let notices = Listener::attach(&broker).await;
    let writers = (0..16).map(|writer| {
        let house = house.clone();
        async move {
            let mut versions = Vec::new();
            for n in 0..10 {
                let put = vec![value("t", &format!("{writer}-{n}"), "v")];
                versions.push(house.system.put("a", put).await.unwrap());
            }
            versions
        }
    });
    let versions: Vec<Vec<i64>> = futures_util::future::join_all(writers).await;
    let distinct: BTreeSet<i64> = versions.iter().flatten().copied().collect();
    assert_eq!(distinct, (1..=160).collect());
    assert_eq!(in_order(&notices, 0, 160).await.len(), 160);
    Arc::into_inner(house).unwrap().stop().await;
}

#[tokio::test]
async fn what_was_written_and_not_told_is_told_after_a_restart() {
    let (broker, store) = (Embedded::in_memory(), Store::new());
    let flaky = Arc::new(NoNotices { inner: broker.clone(), refusing: AtomicBool::new(false) });
    let first = Instance::start_with(flaky.clone(), &broker, &store).await;
    let notices = Listener::attach(&broker).await;
    let base = first.system.put("a", vec![value("t", "k", "told")]).await.unwrap();
    assert_eq!(notices.next().await.version, base);

    flaky.refusing.store(true, Ordering::SeqCst);
    let untold = first.system.put("a", vec![value("t", "k", "untold")]);
    let committed = until("the write in the store", || async {
        let found = first.system.get("a", "t", "k").await.unwrap().unwrap();
        (found.value.as_deref() == Some("untold")).then_some(found.version)
    });
    let version = tokio::select! {
        answer = untold => panic!("answered {answer:?} before its notice was told or given up on"),
        version = committed => version,
    };
    first.stop().await;

    let second = Instance::start(&broker, &store).await;
    let push = notices.next().await;
    assert_eq!((push.version, push.changes["t"].as_slice()), (version, &["a".to_owned()][..]));
    let start = notices.next().await;
    assert_eq!(start.version, version + 1, "the start has a version of its own");
    assert_eq!(start.changes["t"], ["a"], "and says what to read again");
    second.stop().await;
}

#[tokio::test]
async fn the_notice_is_out_before_the_answer() {
    let (broker, store) = (Embedded::in_memory(), Store::new());
    let house = Instance::start(&broker, &store).await;
    let notices = Listener::attach(&broker).await;
    for n in 0..20 {
        let version = house.system.put("a", vec![value("t", "k", &n.to_string())]).await.unwrap();
        assert_eq!(notices.arrived().map(|push| push.version), Some(version));
    }
    house.stop().await;
}

#[tokio::test]
async fn the_first_start_is_told_without_changes() {
    let (broker, store) = (Embedded::in_memory(), Store::new());
    broker.ensure(&TopicSpec::bare("notify:tg:config".parse().unwrap())).await.unwrap();
    let notices = Listener::attach(&broker).await;
    let house = Instance::start(&broker, &store).await;
    let body = String::from_utf8(notices.next_body().await).unwrap();
    assert_eq!(body, r#"{"version":0,"changes":{},"workspace_changes":null}"#);
    house.stop().await;
}

#[tokio::test]
async fn tools_are_told_together_and_reserved_workspaces_not_at_all() {
    let (broker, store) = (Embedded::in_memory(), Store::new());
    let house = Instance::start(&broker, &store).await;
    let notices = Listener::attach(&broker).await;
    house.system.put("a", vec![value("tool-service", "s", "{}")]).await.unwrap();
    let push = notices.next().await;
    assert_eq!(push.changes.keys().collect::<Vec<_>>(), ["tool", "tool-service"]);
    house.system.put("__system__", vec![value("init-state", "x", "1")]).await.unwrap();
    let push = notices.next().await;
    assert!(push.changes.is_empty() && push.workspace_changes.is_none());
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_instances_over_one_store_stay_in_one_line() {
    let (broker, store) = (Embedded::in_memory(), Store::new());
    let one = Arc::new(Instance::start(&broker, &store).await);
    let two = Arc::new(Instance::start(&broker, &store).await);
    let notices = Listener::attach(&broker).await;
    // Both count one number up with compare-and-set; requests go to either instance.
    let counters = (0..8).map(|n| {
        let house = if n % 2 == 0 { one.clone() } else { two.clone() };
        async move {
            let mut done = 0;
            while done < 10 {
                let now = house.system.get("a", "t", "n").await.unwrap();
                let (count, version) = now.map_or((0, 0), |v| (v.value.unwrap().parse().unwrap(), v.version));
                let step = Apply {
                    expect: vec![expect("a", "t", "n", version)],
                    puts: vec![value_in("a", "t", "n", &(count + 1_i64).to_string())],
                    ..Default::default()
                };
                match house.system.apply(step).await {
                    Ok(_) => done += 1,
                    Err(ConfigError::Conflict(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
    });
    futures_util::future::join_all(counters).await;
    let end = one.system.get("a", "t", "n").await.unwrap().unwrap();
    assert_eq!((end.value.as_deref(), end.version), (Some("80"), 80));
    assert_eq!(in_order(&notices, 0, 80).await.len(), 80);

    // A workspace that one registers is served while either lives.
    one.register("acme").await;
    Arc::into_inner(one).unwrap().stop().await;
    let user = two.user("acme").await;
    assert_eq!(ask(&user, request("config")).await.error, None);
    Arc::into_inner(two).unwrap().stop().await;
}
