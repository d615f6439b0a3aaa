//! The broker that all cases share, each group of them on a vhost of its own.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use sluice_brokers::testing::RabbitServer;
use sluice_bus::{BrokerAdmin, TopicSpec};
use tokio::runtime::Runtime;

/// A running broker.
pub(crate) struct Server {
    rabbit: RabbitServer,
    runtime: Runtime,
    http: reqwest::Client,
}

/// The broker, or why there is none.
static SERVER: Mutex<Option<Result<Arc<Server>, String>>> = Mutex::new(None);

/// The broker, started for the first who asks.
pub(crate) fn shared() -> Arc<Server> {
    let started = SERVER.lock().unwrap().get_or_insert_with(|| Server::start().map(Arc::new)).clone();
    started.unwrap_or_else(|why| panic!("{why}"))
}

/// Stops it, if anybody asked for it.
pub(crate) fn stop() {
    SERVER.lock().unwrap().take();
}

impl Server {
    fn start() -> Result<Self, String> {
        let runtime = Runtime::new().map_err(|error| error.to_string())?;
        let rabbit = runtime.block_on(RabbitServer::start())?;
        Ok(Self { rabbit, runtime, http: reqwest::Client::new() })
    }

    pub(crate) fn vhost(&self) -> String {
        self.runtime.block_on(self.rabbit.vhost()).unwrap()
    }

    pub(crate) fn url(&self, vhost: &str) -> String {
        self.rabbit.url(vhost)
    }

    pub(crate) fn management(&self) -> String {
        self.rabbit.options().management.unwrap().reveal().to_owned()
    }

    /// Names of all queues and exchanges of a vhost.
    pub(crate) fn names(&self, vhost: &str) -> BTreeSet<String> {
        self.runtime.block_on(self.rabbit.names(vhost)).unwrap().into_iter().collect()
    }

    /// Makes a topic with a subscription behind everybody's back.
    pub(crate) fn plant(&self, vhost: &str, topic: &str, subscription: &str) {
        let spec = TopicSpec::with(topic.parse().unwrap(), subscription);
        self.runtime.block_on(async {
            let broker = self.rabbit.connect(vhost).await.unwrap();
            broker.ensure(&spec).await.unwrap();
            broker.shutdown().await;
        });
    }

    /// Cuts the connections that a vhost has from others than us; how many there were.
    pub(crate) fn cut_theirs(&self, vhost: &str) -> usize {
        let connections: Value =
            serde_json::from_str(&self.ask("GET", &format!("vhosts/{vhost}/connections"))).unwrap();
        let is_theirs =
            |one: &&Value| one["client_properties"]["product"].as_str().is_some_and(|name| name != "lapin");
        let theirs: Vec<&Value> = connections.as_array().unwrap().iter().filter(is_theirs).collect();
        for one in &theirs {
            let name = one["name"].as_str().unwrap().replace(' ', "%20").replace('>', "%3E");
            self.ask("DELETE", &format!("connections/{name}"));
        }
        theirs.len()
    }

    fn ask(&self, method: &str, path: &str) -> String {
        let url = format!("{}/api/{path}", self.management());
        let request = self.http.request(method.parse().unwrap(), url);
        self.runtime.block_on(async {
            let answer = request.send().await.unwrap().error_for_status().unwrap();
            answer.text().await.unwrap()
        })
    }
}
