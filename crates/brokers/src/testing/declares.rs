//! Making and removing topics with a client library alone, one call after the other for each: what starts and stops of flows are
//! measured beside.

use std::sync::atomic::{AtomicUsize, Ordering};

use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use sluice_bus::{BoxFuture, TopicSpec};
use sluice_schema::Topic;

use super::RabbitServer;

/// Channels that a bare end has.
const CHANNELS: usize = 16;

type Outcome = Result<(), String>;

/// An end with nothing of ours behind it. It keeps no record and looks at nothing before or after.
pub trait Declares: Send + Sync {
    /// Makes a topic with its subscriptions, as our link has them.
    fn make<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Outcome>;
    /// Removes it.
    fn remove<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Outcome>;
    /// Disconnects.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// `space.class.name`, as people would call it.
fn dotted(topic: &Topic) -> String {
    format!("{}.{}.{}", topic.space(), topic.class(), topic.name())
}

struct Rabbit {
    connection: Connection,
    channels: Vec<Channel>,
    calls: AtomicUsize,
}

impl RabbitServer {
    /// A bare end of a vhost.
    ///
    /// # Errors
    /// What the client library said.
    pub async fn declares(&self, vhost: &str) -> Result<impl Declares, String> {
        let connection = Connection::connect(&self.url(vhost), ConnectionProperties::default()).await;
        let connection = connection.map_err(text)?;
        let mut channels = Vec::with_capacity(CHANNELS);
        for _ in 0..CHANNELS {
            channels.push(connection.create_channel().await.map_err(text)?);
        }
        Ok(Rabbit { connection, channels, calls: AtomicUsize::new(0) })
    }
}

impl Rabbit {
    fn channel(&self) -> &Channel {
        &self.channels[self.calls.fetch_add(1, Ordering::Relaxed) % self.channels.len()]
    }

    async fn declare(&self, exchange: &ShortString, queues: Vec<ShortString>) -> lapin::Result<()> {
        let channel = self.channel();
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let none = FieldTable::default;
        channel.exchange_declare(exchange.clone(), ExchangeKind::Fanout, options, none()).await?;
        for queue in queues {
            let options = QueueDeclareOptions { durable: true, ..Default::default() };
            channel.queue_declare(queue.clone(), options, none()).await?;
            let options = QueueBindOptions::default();
            channel.queue_bind(queue.clone(), exchange.clone(), queue, options, none()).await?;
        }
        Ok(())
    }

    async fn delete(&self, exchange: ShortString, queues: Vec<ShortString>) -> lapin::Result<()> {
        let channel = self.channel();
        for queue in queues {
            channel.queue_delete(queue, QueueDeleteOptions::default()).await?;
        }
        channel.exchange_delete(exchange, ExchangeDeleteOptions::default()).await
    }
}

fn queues(spec: &TopicSpec) -> Vec<ShortString> {
    let exchange = dotted(&spec.topic);
    spec.subscriptions.iter().map(|name| format!("{exchange}.{name}").into()).collect()
}

impl Declares for Rabbit {
    fn make<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Outcome> {
        Box::pin(async {
            let exchange = dotted(&spec.topic).into();
            self.declare(&exchange, queues(spec)).await.map_err(text)
        })
    }

    fn remove<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Outcome> {
        Box::pin(async { self.delete(dotted(&spec.topic).into(), queues(spec)).await.map_err(text) })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Err(error) = self.connection.close(200, "done".into()).await {
                tracing::debug!(%error, "a bare end did not leave in good order");
            }
        })
    }
}

#[cfg(feature = "nats")]
mod nats {
    use async_nats::jetstream::consumer::{AckPolicy, pull};
    use async_nats::jetstream::stream::{self, RetentionPolicy};
    use async_nats::jetstream::{self, Context};
    use sluice_bus::{BoxFuture, TopicSpec};

    use super::super::NatsServer;
    use super::{Declares, Outcome, dotted, text};

    struct Nats(Context);

    impl NatsServer {
        /// A bare end.
        ///
        /// # Errors
        /// What the client library said.
        pub async fn declares(&self) -> Result<impl Declares, String> {
            Ok(Nats(jetstream::new(async_nats::connect(self.url()).await.map_err(text)?)))
        }
    }

    fn name(spec: &TopicSpec) -> String {
        dotted(&spec.topic).replace('.', "_")
    }

    impl Declares for Nats {
        fn make<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Outcome> {
            Box::pin(async {
                let config = stream::Config {
                    name: name(spec),
                    subjects: vec![dotted(&spec.topic)],
                    retention: RetentionPolicy::Interest,
                    ..Default::default()
                };
                let made = self.0.create_stream(config).await.map_err(text)?;
                for subscription in &spec.subscriptions {
                    let config = pull::Config {
                        durable_name: Some(subscription.clone()),
                        ack_policy: AckPolicy::Explicit,
                        max_ack_pending: -1,
                        ..Default::default()
                    };
                    made.create_consumer(config).await.map_err(text)?;
                }
                Ok(())
            })
        }

        fn remove<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Outcome> {
            Box::pin(async { self.0.delete_stream(name(spec)).await.map(drop).map_err(text) })
        }
    }
}

#[cfg(feature = "pulsar")]
mod pulsar {
    use reqwest::{Client, RequestBuilder};
    use serde_json::json;
    use sluice_bus::{BoxFuture, TopicSpec};

    use super::super::PulsarServer;
    use super::{Declares, Outcome, dotted, text};

    struct Pulsar {
        client: Client,
        /// Where its topics are under the admin API, in a namespace that the broker has from its start.
        base: String,
    }

    impl PulsarServer {
        /// A bare end.
        #[must_use]
        pub fn declares(&self) -> impl Declares + use<> {
            let base = format!("{}/admin/v2/persistent/public/default", self.admin_url());
            Pulsar { client: Client::new(), base }
        }
    }

    impl Pulsar {
        fn at(&self, spec: &TopicSpec) -> String {
            format!("{}/{}", self.base, dotted(&spec.topic))
        }
    }

    async fn done(call: RequestBuilder) -> Outcome {
        let answer = call.send().await.and_then(reqwest::Response::error_for_status).map_err(text)?;
        answer.bytes().await.map(drop).map_err(text)
    }

    impl Declares for Pulsar {
        fn make<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Outcome> {
            Box::pin(async {
                let at = self.at(spec);
                done(self.client.put(&at).json(&json!({}))).await?;
                for subscription in &spec.subscriptions {
                    let latest = json!({"ledgerId": i64::MAX, "entryId": i64::MAX, "partitionIndex": -1});
                    done(self.client.put(format!("{at}/subscription/{subscription}")).json(&latest)).await?;
                }
                Ok(())
            })
        }

        fn remove<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Outcome> {
            Box::pin(async { done(self.client.delete(format!("{}?force=true", self.at(spec)))).await })
        }
    }
}

#[cfg(feature = "kafka")]
mod kafka {
    use krafka::admin::{
        AdminClient, AlterShareGroupOffsetsOptions, ConfigOp, ConfigResource, CreateTopicsOptions,
        DeleteConsumerGroupsOptions, DeleteTopicsOptions, IncrementalAlterConfigsOptions, NewTopic,
    };
    use krafka::consumer::TopicPartition;
    use sluice_bus::{BoxFuture, TopicSpec};

    use super::super::KafkaServer;
    use super::{Declares, Outcome, dotted, text};

    struct Kafka(AdminClient);

    impl KafkaServer {
        /// A bare end.
        ///
        /// # Errors
        /// What the client library said.
        pub async fn declares(&self) -> Result<impl Declares, String> {
            let url = self.url();
            let servers = url.trim_start_matches("kafka://");
            Ok(Kafka(krafka::Kafka::builder(servers).connect().await.map_err(text)?.admin()))
        }
    }

    fn name(spec: &TopicSpec) -> String {
        dotted(&spec.topic).replace(':', ".")
    }

    /// What became of the one thing that was asked for.
    fn one<T>(answer: Option<krafka::error::Result<T>>) -> Outcome {
        answer.ok_or("no answer")?.map(drop).map_err(text)
    }

    impl Kafka {
        /// With what our link sets of a group.
        async fn group(&self, topic: &str, group: &str) -> Outcome {
            let settings = [
                ("share.delivery.count.limit", "10"),
                ("share.record.lock.duration.ms", "15000"),
                ("share.assignment.interval.ms", "0"),
            ];
            let (of, set) =
                (ConfigResource::group(group), settings.map(|(name, value)| ConfigOp::set(name, value)));
            let options = IncrementalAlterConfigsOptions::default();
            let set = self.0.incremental_alter_configs([(of.clone(), set.to_vec())], options).await;
            one(set.map_err(text)?.remove(&of))?;
            let at = TopicPartition::new(topic, 0);
            loop {
                let options = AlterShareGroupOffsetsOptions::default();
                let made = self.0.alter_share_group_offsets(group, [(at.clone(), 0)], options).await;
                match made.map(|mut made| made.remove(&at)) {
                    // A topic that was made just now may not be known everywhere yet.
                    Ok(Some(Err(error))) | Err(error) if error.is_retriable() => {
                        tokio::task::yield_now().await
                    }
                    Ok(answer) => return one(answer),
                    Err(error) => return Err(text(error)),
                }
            }
        }
    }

    impl Declares for Kafka {
        fn make<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Outcome> {
            Box::pin(async {
                let topic = name(spec);
                // As our link has a topic of a flow on a single broker.
                let new = NewTopic::new(&topic, 1, 1).map_err(text)?.with_config("flush.messages", "1");
                let made = self.0.create_topics([new], CreateTopicsOptions::default()).await;
                one(made.map_err(text)?.remove(&topic))?;
                for subscription in &spec.subscriptions {
                    self.group(&topic, &format!("{topic}/{subscription}")).await?;
                }
                Ok(())
            })
        }

        fn remove<'a>(&'a self, spec: &'a TopicSpec) -> BoxFuture<'a, Outcome> {
            Box::pin(async {
                let topic = name(spec);
                for subscription in &spec.subscriptions {
                    let group = format!("{topic}/{subscription}");
                    let options = DeleteConsumerGroupsOptions::default();
                    let removed = self.0.delete_consumer_groups([&group], options).await;
                    one(removed.map_err(text)?.remove(&group))?;
                }
                let removed = self.0.delete_topics([&topic], DeleteTopicsOptions::default()).await;
                one(removed.map_err(text)?.remove(&topic))
            })
        }
    }
}
