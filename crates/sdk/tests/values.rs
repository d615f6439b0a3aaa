//! Values that are read when they are needed: within a bound whatever workspaces hold, as new as the last notice, and there
//! while the config service is not.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Duration;

use sluice_bus::{Address, Broker as _, BrokerAdmin, Embedded, Message};
use sluice_schema::message::ConfigPush;
use sluice_schema::{record, wire};
use sluice_sdk::config::value;
use sluice_sdk::values::KEPT_BYTES_MAX;
use sluice_sdk::{ConfigClient, ConfigWatch, Process};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);
const KIND: &str = "token-cost";

struct World {
    /// Where config runs.
    service: Process,
    /// Where values are read.
    process: Process,
    broker: Embedded,
    config: ConfigClient,
    watch: ConfigWatch,
    _store: sluice_store::Embedded,
    _folder: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = sluice_store::Embedded::open(folder.path()).unwrap();
        let broker = Embedded::in_memory();
        let admin: Arc<dyn BrokerAdmin> = Arc::new(broker.clone());
        let service = Process::new(Arc::new(broker.clone()), CancellationToken::new());
        let parts = sluice_config::Parts { process: service.clone(), admin, tables: store.tables() };
        sluice_config::start(parts).await.unwrap();
        let process = Process::new(Arc::new(broker.clone()), CancellationToken::new());
        let config = ConfigClient::new(&process.replies).await.unwrap();
        let watch = ConfigWatch::start(&process, Duration::from_secs(3_600));
        watch.ready(&[record::WORKSPACE]).await;
        Self { service, process, broker, config, watch, _store: store, _folder: folder }
    }

    async fn put(&self, workspace: &str, key: &str, text: &str) {
        self.config.put(workspace, vec![value(workspace, KIND, key, text)]).await.unwrap();
    }

    async fn stop(self) {
        for process in [&self.process, &self.service] {
            assert_eq!(process.shutdown(PATIENCE).await, Vec::<String>::new());
        }
    }
}

#[tokio::test]
async fn what_a_process_keeps_of_values_has_a_bound_and_goes_with_who_needs_it() {
    let world = World::start().await;
    let workspaces: Vec<String> = (0..6).map(|n| format!("w{n}")).collect();
    let text = |workspace: &str, n: usize| format!("{workspace}/{n} {}", "x".repeat(1_000_000));
    for workspace in &workspaces {
        for n in 0..10 {
            world.put(workspace, &format!("k{n}"), &text(workspace, n)).await;
        }
    }
    assert_eq!(world.watch.kept_bytes(), 0, "nothing runs, so nothing is kept");
    let held: Vec<_> = workspaces.iter().map(|workspace| world.watch.values(KIND, workspace)).collect();
    for _ in 0..2 {
        for (workspace, values) in workspaces.iter().zip(&held) {
            for n in 0..10 {
                let found = values.get(&format!("k{n}")).await.unwrap();
                assert_eq!(found.as_deref(), Some(&*text(workspace, n)));
                assert!(world.watch.kept_bytes() <= KEPT_BYTES_MAX, "{}", world.watch.kept_bytes());
            }
            assert_eq!(values.get("other").await.unwrap(), None);
            assert!(!values.is_empty().await.unwrap());
        }
    }
    assert!(world.watch.kept_bytes() > KEPT_BYTES_MAX / 2, "what is used is kept");
    assert!(world.watch.values(KIND, "none").is_empty().await.unwrap());
    drop(held);
    assert_eq!(world.watch.kept_bytes(), 0);
    world.stop().await;
}

#[tokio::test]
async fn a_value_is_as_new_as_the_last_notice_and_the_last_stays_while_config_is_away() {
    let world = World::start().await;
    world.put("w", "k", "0").await;
    let values = world.watch.values(KIND, "w");
    assert_eq!(values.get("k").await.unwrap().as_deref(), Some("0"));
    assert_eq!(values.get("absent").await.unwrap(), None);
    for round in 1..20 {
        world.put("w", "k", &round.to_string()).await;
        let is_seen = async {
            while values.get("k").await.unwrap().as_deref() != Some(&*round.to_string()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, is_seen).await.expect("a notice is enough");
    }
    let changes = world.watch.changes(&[KIND]);
    world.put("w", "absent", "there").await;
    let changed = tokio::time::timeout(PATIENCE, changes.next()).await.unwrap();
    assert!(!changed.all && changed.workspaces.iter().eq(["w"]), "{changed:?}");
    assert_eq!(values.get("absent").await.unwrap().as_deref(), Some("there"));

    assert_eq!(world.service.shutdown(PATIENCE).await, Vec::<String>::new());
    let push = wire::encode(&ConfigPush { version: 1_000, ..ConfigPush::default() });
    let notices = Address::Topic("notify:tg:config".parse().unwrap());
    world.broker.publish(&notices, Message::new(push)).await.unwrap();
    assert!(tokio::time::timeout(PATIENCE, changes.next()).await.unwrap().all);
    for _ in 0..3 {
        assert_eq!(values.get("k").await.unwrap().as_deref(), Some("19"));
        assert_eq!(values.get("never").await.unwrap(), None);
    }
    assert_eq!(world.process.shutdown(PATIENCE).await, Vec::<String>::new());
}
