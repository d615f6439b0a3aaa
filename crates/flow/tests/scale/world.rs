//! The flow service on a real broker, with a real config service over the embedded store on disk.

#![allow(dead_code, reason = "the test and the bench each use a part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use sluice_brokers::testing::RabbitServer;
use sluice_brokers::{Connection, Settings};
use sluice_bus::{Client, TopicSpec};
use sluice_flow::{Options, Parts};
use sluice_schema::message::{FlowRequest, FlowResponse};
use sluice_schema::{Class, Topic, exchange};
use sluice_sdk::{Catalogue, ConfigClient, ConfigWatch, Process};
use tokio_util::sync::CancellationToken;

/// Nothing here takes this long unless it hangs.
const DEADLINE: Duration = Duration::from_secs(120);
/// Nor does a stop take this long, however many others are under way.
const PATIENCE: Duration = Duration::from_secs(300);

pub(crate) struct World {
    client: Client<exchange::Flow>,
    process: Process,
    store: sluice_store::Embedded,
    broker: Connection,
    _folder: tempfile::TempDir,
}

/// The topics of [`blueprint`] in a run, each with its only reader.
pub(crate) fn topics(processors: usize, run: &str) -> Vec<TopicSpec> {
    let topic = |n: usize| Topic::tg(Class::Flow, format!("stage-{n}:acme:{run}")).unwrap();
    let read = (0..processors).map(|n| TopicSpec::with(topic(n), format!("stage-{n}--acme--{run}--input")));
    read.chain([TopicSpec::bare(topic(processors))]).collect()
}

/// Our end of a vhost, with the management API.
pub(crate) async fn connect(server: &RabbitServer, vhost: &str) -> Connection {
    let settings = Settings { management: server.options().management, ..Settings::default() };
    sluice_brokers::connect(&server.url(vhost), settings).await.unwrap()
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

impl World {
    /// A world on a broker, with a blueprint `of-N` for each of these numbers of processors.
    pub(crate) async fn new(broker: Connection, sizes: &[usize]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = sluice_store::Embedded::open(folder.path()).unwrap();
        let admin = broker.admin.clone();
        let process = Process::new(broker.broker.clone(), CancellationToken::new());
        let parts =
            sluice_config::Parts { process: process.clone(), admin: admin.clone(), tables: store.tables() };
        sluice_config::start(parts).await.unwrap();
        let config = ConfigClient::new(&process.replies).await.unwrap();
        let put = |workspace: &str, kind: &str, key: &str, text: String| {
            let value = sluice_sdk::config::value(workspace, kind, key, text);
            let (config, workspace) = (&config, workspace.to_owned());
            async move { config.put(&workspace, vec![value]).await.unwrap() }
        };
        put("__workspaces__", "workspace", "acme", "{\"enabled\": true}".to_owned()).await;
        for size in sizes {
            put("acme", "flow-blueprint", &format!("of-{size}"), blueprint(*size).to_string()).await;
        }
        let topic = |text: &str| text.parse::<Topic>().unwrap();
        let letters = TopicSpec::with(topic("flow:tg:dead-letters:acme"), "librarian");
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
        let (ask, answers) = (topic("request:tg:flow:acme"), topic("response:tg:flow:acme"));
        let client = Client::new(&process.replies, ask, &answers).await.unwrap();
        Self { client, process, store, broker, _folder: folder }
    }

    pub(crate) async fn start(&self, id: &str, processors: usize) {
        let answer = self.call("start-flow", id, &format!("of-{processors}")).await;
        assert_eq!(answer.error, None, "start {id}");
    }

    pub(crate) async fn stop(&self, id: &str) {
        let begun = Instant::now();
        let mut is_under_way = false;
        while let Some(error) = self.call("stop-flow", id, "").await.error {
            match error.r#type.as_str() {
                // With very many flows on few processors it takes longer than one answer may; asking again joins it.
                "timeout" if begun.elapsed() < PATIENCE => is_under_way = true,
                // It ended between the two.
                _ if is_under_way && error.message == "Flow ID invalid" => break,
                _ => panic!("stop {id}: {error:?}"),
            }
        }
    }

    async fn call(&self, operation: &str, id: &str, blueprint: &str) -> FlowResponse {
        let request = FlowRequest {
            operation: operation.to_owned(),
            flow_id: id.to_owned(),
            blueprint_name: blueprint.to_owned(),
            ..Default::default()
        };
        self.client.call(&request, DEADLINE).await.unwrap()
    }

    pub(crate) async fn end(self) {
        self.process.shutdown(Duration::from_secs(10)).await;
        self.broker.close().await;
        self.store.close().await;
    }
}
