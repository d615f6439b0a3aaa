//! Sending: one channel per publish under way, confirmed by the broker, with what cannot be routed told apart.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Confirmation};
use sluice_bus::{Address, Error, Message, Result};
use sluice_schema::{Class, Topic};
use tokio::time::Instant;

use super::fault::{self, code};
use super::lock;
use super::names;
use super::pool::Pool;

/// Topics whose lost messages are counted one by one.
const COUNTED_TOPICS_MAX: usize = 10_000;

pub(super) struct Publisher {
    pool: Pool,
    timeout: Duration,
    unroutable: Mutex<Unroutable>,
}

#[derive(Default)]
struct Unroutable {
    total: u64,
    by_topic: HashMap<Topic, u64>,
}

/// Where the broker put a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Routed {
    Queued,
    Nowhere,
}

/// Why a publish failed.
pub(super) enum Fault {
    /// The exchange is not there.
    NoExchange,
    /// The broker takes smaller messages only.
    TooLarge,
    Other(Error),
}

impl Publisher {
    pub(super) fn new(pool: Pool, timeout: Duration) -> Self {
        Self { pool, timeout, unroutable: Mutex::default() }
    }

    pub(super) async fn publish(&self, to: &Address, message: Message, max: usize) -> Result<()> {
        let (class, exchange, key) = match to {
            Address::Topic(topic) => {
                (Some(topic.class()), names::short(&names::exchange(topic))?, ShortString::default())
            }
            Address::Inbox(inbox) => (None, ShortString::default(), names::short(&inbox.0)?),
        };
        // Answers and signals may have no reader: nobody wants those back.
        let mandatory = !matches!(class, Some(Class::Response | Class::Notify));
        let properties = names::properties(&message, class)?;
        let sent = self.send(exchange, key, mandatory, &message.body, properties, &name(to)).await;
        match (sent, to) {
            (Ok(Routed::Queued), _) => Ok(()),
            (Ok(Routed::Nowhere), Address::Inbox(inbox)) => Err(Error::NoInbox { inbox: inbox.to_string() }),
            (Ok(Routed::Nowhere), Address::Topic(topic)) if topic.class() == Class::Request => {
                Err(Error::Unroutable { topic: topic.clone() })
            }
            (Ok(Routed::Nowhere), Address::Topic(topic)) => {
                self.count_unroutable(topic);
                Ok(())
            }
            (Err(Fault::NoExchange), Address::Topic(topic)) => Err(Error::NoTopic { topic: topic.clone() }),
            (Err(Fault::NoExchange), Address::Inbox(inbox)) => {
                Err(Error::NoInbox { inbox: inbox.to_string() })
            }
            (Err(Fault::TooLarge), _) => Err(Error::TooLarge { bytes: message.body.len(), max }),
            (Err(Fault::Other(error)), _) => Err(error),
        }
    }

    /// Sends and waits for the broker's word.
    pub(super) async fn send(
        &self,
        exchange: ShortString,
        key: ShortString,
        mandatory: bool,
        body: &[u8],
        properties: BasicProperties,
        name: &str,
    ) -> Result<Routed, Fault> {
        let deadline = Instant::now() + self.timeout;
        let left = || deadline.saturating_duration_since(Instant::now());
        self.pool.link.unblocked(left()).await.map_err(Fault::Other)?;
        let lane = self.pool.take(left()).await.map_err(Fault::Other)?;
        let options = BasicPublishOptions { mandatory, ..Default::default() };
        let confirmed = tokio::time::timeout_at(deadline, async {
            lane.channel.basic_publish(exchange, key, options, body, properties).await?.await
        });
        let what = || format!("a publish to '{name}'");
        let outcome = match confirmed.await {
            Ok(Ok(Confirmation::Ack(None) | Confirmation::NotRequested)) => Ok(Routed::Queued),
            Ok(Ok(Confirmation::Ack(Some(_)))) => Ok(Routed::Nowhere),
            Ok(Ok(Confirmation::Nack(_))) => Err(Error::Unavailable {
                reason: format!("it did not take {} (an internal error, or a queue over its limit)", what()),
            }),
            Ok(Err(error)) => return Err(meaning(&error, name, &what())),
            Err(_) => {
                let why =
                    if self.pool.link.is_blocked() { "it takes no messages" } else { "it did not confirm" };
                let reason = format!("{why} within {} s", self.timeout.as_secs());
                return Err(Fault::Other(Error::OutcomeUnknown { what: what(), reason }));
            }
        };
        lane.give_back();
        outcome.map_err(Fault::Other)
    }

    fn count_unroutable(&self, topic: &Topic) {
        let mut unroutable = lock(&self.unroutable);
        unroutable.total += 1;
        if unroutable.by_topic.len() < COUNTED_TOPICS_MAX || unroutable.by_topic.contains_key(topic) {
            let count = unroutable.by_topic.entry(topic.clone()).or_default();
            *count += 1;
            if *count == 1 {
                tracing::warn!(%topic, "a message went to a topic without subscriptions and is gone");
            }
        }
    }

    /// Counted by this process; `None` where it lost none.
    pub(super) fn unroutable(&self, topic: &Topic) -> Option<u64> {
        lock(&self.unroutable).by_topic.get(topic).copied()
    }

    pub(super) fn unroutable_total(&self) -> u64 {
        lock(&self.unroutable).total
    }

    /// The topic's count ends with the topic.
    pub(super) fn forget(&self, topic: &Topic) {
        lock(&self.unroutable).by_topic.remove(topic);
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.pool.link.is_blocked()
    }

    pub(super) async fn close(&self) {
        self.pool.link.close().await;
    }
}

fn name(to: &Address) -> String {
    match to {
        Address::Topic(topic) => topic.to_string(),
        Address::Inbox(inbox) => inbox.to_string(),
    }
}

fn meaning(error: &lapin::Error, name: &str, what: &str) -> Fault {
    match fault::reply(error) {
        Some((code::NOT_FOUND, _)) => Fault::NoExchange,
        Some((code::PRECONDITION_FAILED, text)) if text.contains("size") => Fault::TooLarge,
        _ => Fault::Other(fault::of_call(error, name, what)),
    }
}
