//! A Kafka broker that one group of cases has for itself.

use std::collections::BTreeSet;

use sluice_brokers::kafka::{Kafka, Options};
use sluice_brokers::testing::KafkaServer;
use sluice_bus::{BrokerAdmin as _, TopicSpec};
use tokio::runtime::Runtime;

use crate::theirs::Theirs;

/// A running broker.
pub(crate) struct Kafkas {
    server: KafkaServer,
    runtime: Runtime,
}

/// Why there can be none.
pub(crate) fn missing() -> Option<&'static str> {
    KafkaServer::missing()
}

impl Kafkas {
    pub(crate) fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let server = runtime.block_on(KafkaServer::start()).unwrap();
        Self { server, runtime }
    }

    /// Its address, for who lets theirs take part.
    pub(crate) fn url(&self) -> String {
        format!("{}?beside=2.11", self.server.url())
    }

    pub(crate) fn theirs(&self, program: &str, id: &str, more: &[&str]) -> Theirs {
        let servers = self.server.url().replace("kafka://", "");
        let at = ["--pubsub-backend", "kafka", "--kafka-bootstrap-servers", &servers];
        Theirs::start_at(program, id, &[&at[..], more].concat())
    }

    /// Topics, with the colons that they have elsewhere. Their groups cannot be told from those of others.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let topics = self.runtime.block_on(self.server.topics()).unwrap();
        let shown = |topic: &String| {
            let (class, name) = topic.strip_prefix("tg.")?.split_once('.')?;
            Some(format!("tg.{class}.{}", name.replace('.', ":")))
        };
        topics.iter().filter_map(shown).collect()
    }

    /// Makes a topic with a subscription behind everybody's back.
    pub(crate) fn plant(&self, topic: &str, subscription: &str) {
        let spec = TopicSpec::with(topic.parse().unwrap(), subscription);
        self.runtime.block_on(async {
            let broker = Kafka::connect(&self.url(), Options::default()).await.unwrap();
            broker.ensure(&spec).await.unwrap();
            broker.shutdown().await;
        });
    }
}
