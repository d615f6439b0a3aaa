//! Values that are read when they are needed: within a bound whatever workspaces hold, as new as the last notice, and there
//! while the config service is not.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sluice_bus::{Address, Broker as _, BrokerAdmin, Embedded, Message, TopicSpec};
use sluice_schema::message::{ConfigPush, ConfigRequest, ConfigResponse, ConfigValue};
use sluice_schema::{exchange, record, wire};
use sluice_sdk::config::value;
use sluice_sdk::values::KEPT_BYTES_MAX;
use sluice_sdk::{ConfigClient, ConfigWatch, Point, Process};
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

/// A config service of a test's making: everything is there, `slow` takes long, and while it is away nothing is answered.
struct Fake {
    process: Process,
    broker: Embedded,
    watch: ConfigWatch,
    is_away: Arc<AtomicBool>,
}

impl Fake {
    async fn start() -> Self {
        let broker = Embedded::in_memory();
        let process = Process::new(Arc::new(broker.clone()), CancellationToken::new());
        let [request, response, notify] =
            ["request", "response", "notify"].map(|class| format!("{class}:tg:config").parse().unwrap());
        broker.ensure(&TopicSpec::with(request, "config")).await.unwrap();
        for topic in [response, notify] {
            broker.ensure(&TopicSpec::bare(topic)).await.unwrap();
        }
        let is_away = Arc::new(AtomicBool::new(false));
        let seen = is_away.clone();
        let [request, response] =
            ["request", "response"].map(|class| format!("{class}:tg:config").parse().unwrap());
        let point = Point::new(request, response, "config");
        let answer = move |asked: ConfigRequest, _| {
            let is_away = seen.load(Ordering::SeqCst);
            async move {
                if is_away || asked.keys.first().is_some_and(|key| key.key == "slow") {
                    tokio::time::sleep(Duration::from_secs(6)).await;
                }
                let value = |key: String| ConfigValue { value: Some(key.clone()), key, ..Default::default() };
                Ok(match asked.operation.as_str() {
                    // There is much of it.
                    "getvalues" => ConfigResponse { cursor: "more".to_owned(), ..Default::default() },
                    _ => ConfigResponse {
                        values: asked.keys.into_iter().map(|key| value(key.key)).collect(),
                        ..Default::default()
                    },
                })
            }
        };
        let stop = process.stop.child_token();
        sluice_sdk::service::serve::<exchange::Config, _, _>(&process, point, stop, answer).cancelled().await;
        let watch = ConfigWatch::start(&process, Duration::from_secs(3_600));
        Self { process, broker, watch, is_away }
    }

    /// Notices may have been missed.
    async fn doubt(&self) {
        let changes = self.watch.changes(&[KIND]);
        let push = wire::encode(&ConfigPush::default());
        let notices = Address::Topic("notify:tg:config".parse().unwrap());
        self.broker.publish(&notices, Message::new(push)).await.unwrap();
        assert!(tokio::time::timeout(PATIENCE, changes.next()).await.unwrap().all);
    }
}

#[tokio::test]
async fn a_value_waits_for_no_read_of_another_one() {
    let fake = Fake::start().await;
    let values = fake.watch.values(KIND, "w");
    assert_eq!(values.get("first").await.unwrap().as_deref(), Some("first"));
    let beside = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let began = Instant::now();
        for n in 0..20 {
            assert_eq!(values.get(&format!("k{n}")).await.unwrap().as_deref(), Some(&*format!("k{n}")));
        }
        began.elapsed()
    };
    let (slow, took) = tokio::join!(values.get("slow"), beside);
    assert_eq!(slow.unwrap().as_deref(), Some("slow"));
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(fake.process.shutdown(PATIENCE).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_known_value_is_there_at_once_while_config_is_away_and_read_again_when_it_is_back() {
    let fake = Fake::start().await;
    let values = fake.watch.values(KIND, "w");
    assert_eq!(values.get("known").await.unwrap().as_deref(), Some("known"));
    fake.is_away.store(true, Ordering::SeqCst);
    fake.doubt().await;
    let known = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let began = Instant::now();
        assert_eq!(values.get("known").await.unwrap().as_deref(), Some("known"));
        assert!(began.elapsed() < Duration::from_secs(4), "it is waited for a moment: {:?}", began.elapsed());
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(3) {
            let asked = Instant::now();
            assert_eq!(values.get("known").await.unwrap().as_deref(), Some("known"));
            assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // Somebody waits for one that is not known all the time.
    let (_, ()) = tokio::join!(values.get("unknown"), known);
    fake.is_away.store(false, Ordering::SeqCst);
    // What is read again is as new as the last notice, which an older one is not.
    let began = Instant::now();
    while values.get("other").await.is_err() {
        assert!(began.elapsed() < PATIENCE, "it is never read again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(fake.process.shutdown(PATIENCE).await, Vec::<String>::new());
}
