//! How long start-flow and stop-flow take, from the request to its answer, beside one durable config write, which each of
//! them needs at least twice. Run with `cargo bench -p sluice-flow`.

#![allow(clippy::unwrap_used, reason = "a bench")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use divan::Bencher;
use serde_json::{Map, Value, json};
use sluice_bus::{BrokerAdmin, Client, Embedded, TopicSpec};
use sluice_flow::{Options, Parts};
use sluice_schema::exchange;
use sluice_schema::message::FlowRequest;
use sluice_sdk::{Catalogue, ConfigClient, ConfigWatch, Process};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const SIZES: [usize; 3] = [5, 50, 200];

fn main() {
    divan::main();
}

/// A running system on disk, with one blueprint.
struct System {
    runtime: Runtime,
    client: Client<exchange::Flow>,
    config: ConfigClient,
    next: AtomicU64,
    _process: Process,
    _store: sluice_store::Embedded,
    _folder: tempfile::TempDir,
}

/// A pipeline of processors, each with an input, an output and a service that it asks.
fn blueprint(processors: usize) -> Value {
    let mut flow = Map::new();
    for n in 0..processors {
        let part = json!({"topics": {
            "input": format!("flow:tg:stage-{n}:{{workspace}}:{{id}}"),
            "output": format!("flow:tg:stage-{}:{{workspace}}:{{id}}", n + 1),
            "librarian-request": "request:tg:librarian:{workspace}",
            "librarian-response": "response:tg:librarian:{workspace}"
        }, "parameters": {"size": "2000"}});
        flow.insert(format!("stage-{n}:{{id}}"), part);
    }
    json!({"blueprint": {}, "flow": flow})
}

impl System {
    fn new(processors: usize) -> Self {
        let runtime = Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (process, store, config, client) = runtime.block_on(async {
            let broker = sluice_bus::embedded::Config {
                dir: Some(folder.path().join("broker")),
                ..sluice_bus::embedded::Config::default()
            };
            let broker = Embedded::open(broker).unwrap();
            let store = sluice_store::Embedded::open(folder.path().join("store")).unwrap();
            let admin: Arc<dyn BrokerAdmin> = Arc::new(broker.clone());
            let process = Process::new(Arc::new(broker), CancellationToken::new());
            let parts = sluice_config::Parts {
                process: process.clone(),
                admin: admin.clone(),
                tables: store.tables(),
            };
            sluice_config::start(parts).await.unwrap();
            let config = ConfigClient::new(&process.replies).await.unwrap();
            let put = |workspace: &'static str, kind: &'static str, key: &'static str, text: String| {
                config.put(workspace, vec![sluice_sdk::config::value(workspace, kind, key, text)])
            };
            put("__workspaces__", "workspace", "acme", "{\"enabled\": true}".to_owned()).await.unwrap();
            put("acme", "flow-blueprint", "b", blueprint(processors).to_string()).await.unwrap();
            let letters = TopicSpec::with("flow:tg:dead-letters:acme".parse().unwrap(), "librarian");
            admin.ensure(&letters).await.unwrap();
            let watch = ConfigWatch::start(&process, Duration::from_secs(30));
            sluice_flow::start(Parts {
                process: process.clone(),
                admin,
                watch,
                config: ConfigClient::new(&process.replies).await.unwrap(),
                catalogue: Catalogue::default(),
                options: Options::default(),
            })
            .await;
            let (ask, answers) =
                ("request:tg:flow:acme".parse().unwrap(), "response:tg:flow:acme".parse().unwrap());
            let client = Client::new(&process.replies, ask, &answers).await.unwrap();
            (process, store, config, client)
        });
        Self {
            runtime,
            client,
            config,
            next: AtomicU64::new(0),
            _process: process,
            _store: store,
            _folder: folder,
        }
    }

    fn call(&self, operation: &str, id: &str) {
        let request = FlowRequest {
            operation: operation.to_owned(),
            flow_id: id.to_owned(),
            blueprint_name: "b".to_owned(),
            ..Default::default()
        };
        let answer = self.runtime.block_on(self.client.call(&request, Duration::from_secs(60))).unwrap();
        assert_eq!(answer.error, None);
    }

    fn fresh_id(&self) -> String {
        format!("f{}", self.next.fetch_add(1, Ordering::Relaxed))
    }
}

#[divan::bench(sample_count = 50, sample_size = 1)]
fn one_config_write(bencher: Bencher<'_, '_>) {
    let system = System::new(1);
    bencher.bench_local(|| {
        let value = sluice_sdk::config::value("acme", "bench", "key", "\"value\"");
        system.runtime.block_on(system.config.put("acme", vec![value])).unwrap()
    });
}

#[divan::bench(args = SIZES, sample_count = 20, sample_size = 1)]
fn start_flow(bencher: Bencher<'_, '_>, processors: usize) {
    let system = System::new(processors);
    bencher
        .with_inputs(|| {
            let last = system.next.load(Ordering::Relaxed);
            if last > 0 {
                system.call("stop-flow", &format!("f{}", last - 1));
            }
            system.fresh_id()
        })
        .bench_local_values(|id| system.call("start-flow", &id));
}

#[divan::bench(args = SIZES, sample_count = 20, sample_size = 1)]
fn stop_flow(bencher: Bencher<'_, '_>, processors: usize) {
    let system = System::new(processors);
    bencher
        .with_inputs(|| {
            let id = system.fresh_id();
            system.call("start-flow", &id);
            id
        })
        .bench_local_values(|id| system.call("stop-flow", &id));
}
