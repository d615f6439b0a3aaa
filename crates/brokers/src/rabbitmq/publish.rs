//! Sending, confirmed by the broker, with what cannot be routed told apart. What the broker has to put on a disk goes
//! over channels of its own: nothing else waits for that.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lapin::types::ShortString;
use sluice_bus::{Address, Error, Message, Result};
use sluice_schema::{Class, Topic};
use tokio::time::Instant;

use super::link::Link;
use super::lock;
use super::names;
use super::outbox::{Fault, Letter, Outbox, Routed};

/// Topics whose lost messages are counted one by one.
const COUNTED_TOPICS_MAX: usize = 10_000;

pub(super) struct Publisher {
    link: Link,
    durable: Outbox,
    fleeting: Outbox,
    timeout: Duration,
    unroutable: Mutex<Unroutable>,
    /// The largest body: ours until the broker has refused a smaller one, and said what it takes.
    bytes_max: AtomicUsize,
}

#[derive(Default)]
struct Unroutable {
    total: u64,
    by_topic: HashMap<Topic, u64>,
}

impl Publisher {
    /// With so many channels for what goes to a disk, and as many for what does not.
    pub(super) fn new(link: Link, channels: usize, timeout: Duration, bytes_max: usize) -> Self {
        let (durable, fleeting) = (Outbox::new(&link, channels), Outbox::new(&link, channels));
        let bytes_max = AtomicUsize::new(bytes_max);
        Self { link, durable, fleeting, timeout, unroutable: Mutex::default(), bytes_max }
    }

    /// The largest body that is known to be taken, or not known not to be.
    pub(super) fn bytes_max(&self) -> usize {
        self.bytes_max.load(Ordering::Relaxed)
    }

    pub(super) async fn publish(&self, to: &Address, message: Message) -> Result<()> {
        let (bytes, max) = (message.body.len(), self.bytes_max());
        if bytes > max {
            return Err(Error::TooLarge { bytes, max });
        }
        let (class, exchange, key) = match to {
            Address::Topic(topic) | Address::Subscribed(topic) => {
                (Some(topic.class()), names::short(&names::exchange(topic))?, ShortString::default())
            }
            Address::Inbox(inbox) => (None, ShortString::default(), names::short(&inbox.0)?),
        };
        // Answers and signals may have no reader: nobody wants those back.
        let mandatory = !matches!(class, Some(Class::Response | Class::Notify));
        let properties = names::properties(&message, class)?;
        let sent = self.send(Letter { exchange, key, mandatory, body: message.body, properties }).await;
        match (sent, to) {
            (Ok(Routed::Queued), _) => Ok(()),
            (Ok(Routed::Nowhere), Address::Inbox(inbox)) => Err(Error::NoInbox { inbox: inbox.to_string() }),
            (Ok(Routed::Nowhere), Address::Topic(topic) | Address::Subscribed(topic))
                if topic.class() == Class::Request =>
            {
                Err(Error::Unroutable { topic: topic.clone() })
            }
            (Ok(Routed::Nowhere), Address::Subscribed(topic)) => {
                Err(Error::NoReader { topic: topic.clone() })
            }
            (Ok(Routed::Nowhere), Address::Topic(topic)) => {
                self.count_unroutable(topic);
                Ok(())
            }
            (Err(Fault::NoExchange), Address::Topic(topic) | Address::Subscribed(topic)) => {
                Err(Error::NoTopic { topic: topic.clone() })
            }
            (Err(Fault::NoExchange), Address::Inbox(inbox)) => {
                Err(Error::NoInbox { inbox: inbox.to_string() })
            }
            (Err(Fault::TooLarge(of_broker)), _) => {
                let max = of_broker.unwrap_or(max).min(max);
                self.bytes_max.fetch_min(max, Ordering::Relaxed);
                Err(Error::TooLarge { bytes, max })
            }
            (Err(Fault::Late), _) => {
                let why = if self.is_blocked() { "it takes no messages" } else { "it did not confirm" };
                let (what, within) = (format!("a publish to '{}'", name(to)), self.timeout.as_secs());
                Err(Error::OutcomeUnknown { what, reason: format!("{why} within {within} s") })
            }
            (Err(Fault::Other(error)), _) => Err(error),
        }
    }

    /// Sends messages to nobody, which come back where the broker takes messages; the error says why they did not.
    pub(super) async fn probe(&self, within: Duration) -> Result<()> {
        // An alarm lets the first through and then stops the connection.
        for _ in 0..2 {
            if self.link.is_blocked() {
                return self.link.unblocked(within).await;
            }
            let letter = Letter {
                exchange: ShortString::default(),
                key: names::short(names::NOBODY)?,
                mandatory: true,
                body: bytes::Bytes::new(),
                properties: names::properties(&Message::default(), None)?,
            };
            match self.fleeting.post(letter, Instant::now() + within).await {
                Ok(_) => {}
                Err(Fault::Other(error)) => return Err(error),
                Err(why @ (Fault::NoExchange | Fault::TooLarge(_) | Fault::Late)) => {
                    let reason = format!("{why:?} within {} s", within.as_secs());
                    return Err(Error::Unavailable { reason });
                }
            }
        }
        Ok(())
    }

    /// Sends and waits for the broker's word.
    pub(super) async fn send(&self, letter: Letter) -> Result<Routed, Fault> {
        let deadline = Instant::now() + self.timeout;
        if self.link.is_blocked() {
            self.link.unblocked(self.timeout).await.map_err(Fault::Other)?;
        }
        let outbox = if names::is_durable(&letter.properties) { &self.durable } else { &self.fleeting };
        outbox.post(letter, deadline).await
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
        self.link.is_blocked()
    }

    /// Why nothing can be sent at the moment: the connection is away, or the broker takes no messages.
    pub(super) fn trouble(&self) -> Option<&'static str> {
        self.link.trouble()
    }

    pub(super) fn blocked(&self) -> Option<String> {
        self.link.blocked()
    }

    pub(super) async fn close(&self) {
        self.link.close().await;
    }
}

fn name(to: &Address) -> &str {
    match to {
        Address::Topic(topic) | Address::Subscribed(topic) => topic.as_str(),
        Address::Inbox(inbox) => &inbox.0,
    }
}
