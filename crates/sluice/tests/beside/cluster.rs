//! A Pulsar broker that one group of cases has for itself.

use std::collections::BTreeSet;

use sluice_brokers::pulsar::{Options, Pulsar};
use sluice_brokers::testing::PulsarServer;
use sluice_bus::{BrokerAdmin as _, TopicSpec};
use tokio::runtime::Runtime;

use crate::theirs::Theirs;

/// A running broker.
pub(crate) struct Cluster {
    server: PulsarServer,
    runtime: Runtime,
}

/// Why there can be none.
pub(crate) fn missing() -> Option<&'static str> {
    PulsarServer::missing()
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let server = runtime.block_on(PulsarServer::start()).unwrap();
        Self { server, runtime }
    }

    /// Its address, for who lets theirs take part.
    pub(crate) fn url(&self) -> String {
        format!("{}&beside=2.11", self.server.url())
    }

    pub(crate) fn theirs(&self, program: &str, id: &str, more: &[&str]) -> Theirs {
        let (url, admin) = (self.server.url(), self.server.admin_url());
        let url = url.split('?').next().unwrap();
        let at = ["--pubsub-backend", "pulsar", "--pulsar-host", url, "--pulsar-admin-url", &admin];
        Theirs::start_at(program, id, &[&at[..], more].concat())
    }

    /// Topics, also those that are not persistent, and their subscriptions.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let (mut names, mut topics) = (BTreeSet::new(), Vec::new());
        for namespace in ["flow", "request", "response", "notify"] {
            for domain in ["persistent", "non-persistent"] {
                topics.extend(self.ask(&format!("{domain}/tg/{namespace}")));
            }
        }
        for uri in topics {
            let path = uri.replacen("://", "/", 1).replace(':', "%3A");
            let topic = uri.replacen("://tg/", ".", 1).replace('/', ".");
            // Those of others come and go with their readers.
            if ["persistent://tg/flow/", "persistent://tg/request/"]
                .iter()
                .any(|begins| uri.starts_with(begins))
            {
                let subscriptions = self.ask(&format!("{path}/subscriptions"));
                names.extend(subscriptions.iter().map(|name| format!("{topic}.{name}")));
            }
            names.insert(topic);
        }
        names
    }

    /// Makes a topic with a subscription behind everybody's back.
    pub(crate) fn plant(&self, topic: &str, subscription: &str) {
        let spec = TopicSpec::with(topic.parse().unwrap(), subscription);
        self.runtime.block_on(async {
            let broker = Pulsar::connect(&self.url(), Options::default()).await.unwrap();
            broker.ensure(&spec).await.unwrap();
            broker.shutdown().await;
        });
    }

    /// A list that the broker tells; none of what is not there.
    fn ask(&self, path: &str) -> Vec<String> {
        let url = format!("{}/admin/v2/{path}", self.server.admin_url());
        self.runtime.block_on(async {
            let answer = reqwest::get(url).await.unwrap();
            if answer.status() == reqwest::StatusCode::NOT_FOUND {
                return Vec::new();
            }
            answer.error_for_status().unwrap().json().await.unwrap()
        })
    }
}
