//! The embedded broker: topics in this process, `flow` messages durable in a log of its own.
//!
//! ```
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! # runtime.block_on(async {
//! use sluice_bus::{Address, Broker, BrokerAdmin, Embedded, Message, Subscription, TopicSpec};
//!
//! let broker = Embedded::in_memory();
//! let topic: sluice_schema::Topic = "flow:tg:chunk-load:default:f1".parse()?;
//! broker.ensure(&TopicSpec::with(topic.clone(), "chunker")).await?;
//! broker.publish(&Address::Topic(topic.clone()), Message::new(r#"{"chunk": "Water boils."}"#)).await?;
//!
//! let name = "chunker".to_owned();
//! let inbox = broker.subscribe(&Subscription::Shared { topic, name, prefetch: 1 }).await?;
//! let delivery = inbox.next().await?;
//! assert_eq!(delivery.attempt, 1);
//! delivery.ack();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod own;
mod queue;
mod reader;
mod topic;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use sluice_schema::Class;

use crate::contract::{
    Address, Broker, BrokerAdmin, Inbox, InboxAddress, Limits, Pressure, Seen, Subscription, TopicSpec,
};
use crate::message::Message;
use crate::{BoxFuture, Error, Result};

pub use config::Config;
use own::{Own, OwnInbox};
use queue::Entry;
use reader::SharedInbox;
use topic::{Table, check_class};

/// The broker of this process. Cheap to clone; it stops when [`Embedded::shutdown`] is called or the last clone is
/// dropped.
#[derive(Clone)]
pub struct Embedded {
    core: Arc<Core>,
    _stop: Arc<StopOnDrop>,
}

/// What readers share with the broker; they keep this alive, not the broker running.
struct Core {
    table: Arc<Table>,
    inboxes: RwLock<HashMap<Arc<str>, Arc<Own>>>,
}

struct StopOnDrop(Arc<Core>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Embedded {
    /// Opens the broker, with the `flow` topics and messages that its folder holds.
    ///
    /// # Errors
    /// [`Error::Disk`] when the folder cannot be used, is in use, or holds a damaged log; it names the file and place.
    pub fn open(config: Config) -> Result<Self> {
        if let Some(dir) = &config.dir {
            let reason = format!("a log in {} is not possible yet; open it without a folder", dir.display());
            return Err(Error::Refused { reason });
        }
        let table = Arc::new(Table::new(config));
        let core = Arc::new(Core { table, inboxes: RwLock::default() });
        Ok(Self { _stop: Arc::new(StopOnDrop(core.clone())), core })
    }

    /// A broker without a folder, for tests: everything is lost when it stops.
    #[must_use]
    pub fn in_memory() -> Self {
        let core =
            Arc::new(Core { table: Arc::new(Table::new(Config::default())), inboxes: RwLock::default() });
        Self { _stop: Arc::new(StopOnDrop(core.clone())), core }
    }

    /// Stops: readers and publishers get [`Error::Unavailable`], what was promised is on disk, the folder is free for
    /// the next.
    pub async fn shutdown(&self) {
        self.core.stop();
    }

    /// How much unsettled `flow` traffic it holds.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        self.core.pressure()
    }

    /// Messages that the reader of an inbox lost because it did not read; `None` when it is gone.
    #[must_use]
    pub fn dropped(&self, inbox: &InboxAddress) -> Option<u64> {
        self.core.inbox(inbox).ok().map(|own| own.dropped())
    }
}

impl Core {
    fn stop(&self) {
        self.table.stop();
        let inboxes: Vec<_> =
            self.inboxes.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for own in inboxes {
            own.close();
        }
    }

    fn pressure(&self) -> Pressure {
        Pressure {
            bytes: self.table.backlog.used() as u64,
            high_water_bytes: self.table.config.high_water_bytes,
            disk_full: false,
        }
    }

    fn inbox(&self, address: &InboxAddress) -> Result<Arc<Own>> {
        let inboxes = self.inboxes.read().unwrap_or_else(PoisonError::into_inner);
        inboxes.get(&address.0).cloned().ok_or_else(|| Error::NoInbox { inbox: address.to_string() })
    }

    fn forget_inbox(&self, address: &Arc<str>) {
        self.inboxes.write().unwrap_or_else(PoisonError::into_inner).remove(address);
    }

    /// Counts an attempt and finds the body, before a message leaves for its reader.
    fn before_hand_over(&self, entry: &Entry, _queue_id: impl FnOnce() -> u64) -> Result<Message> {
        match &entry.stored.message {
            Some(message) => Ok(message.clone()),
            None => Err(Error::Disk { reason: "the body is not there".to_owned() }),
        }
    }

    fn after_settling(&self, _message_id: u64, _queue_id: u64) {}

    async fn publish(&self, to: &Address, message: Message) -> Result<()> {
        if self.table.is_stopped() {
            return Err(topic::TopicState::stopped());
        }
        let (bytes, max) = (message.body.len(), self.table.config.message_bytes_max);
        if bytes > max {
            return Err(Error::TooLarge { bytes, max });
        }
        let topic = match to {
            Address::Topic(topic) => topic,
            Address::Inbox(address) => {
                let own = self.inbox(address)?;
                own.push(message, own.direct.clone());
                return Ok(());
            }
        };
        let found = self.table.find(topic)?;
        match topic.class() {
            Class::Request => found.request(message, &self.table),
            Class::Response | Class::Notify => found.broadcast(&message),
            Class::Flow if !found.wants()? => Ok(()),
            Class::Flow => found.enqueue(0, message, &self.table),
        }
    }

    fn own_inbox(self: &Arc<Self>, topics: &[sluice_schema::Topic]) -> Result<OwnInbox> {
        let own = Arc::new(Own::new(self)?);
        self.inboxes.write().unwrap_or_else(PoisonError::into_inner).insert(own.address.clone(), own.clone());
        let inbox = OwnInbox { core: self.clone(), own };
        if self.table.is_stopped() {
            return Err(topic::TopicState::stopped());
        }
        topics.iter().try_for_each(|topic| inbox.follow_now(topic))?;
        Ok(inbox)
    }

    async fn ensure(&self, spec: &TopicSpec) -> Result<()> {
        if !spec.subscriptions.is_empty() {
            check_class(&spec.topic, true)?;
        }
        if self.table.is_stopped() {
            return Err(topic::TopicState::stopped());
        }
        let there = self.table.find(&spec.topic).is_ok_and(|found| found.has_queues(&spec.subscriptions));
        if !there {
            self.table.ensure(&spec.topic, 0, spec.subscriptions.iter().map(|name| (name, 0)));
        }
        Ok(())
    }

    async fn remove(&self, spec: &TopicSpec) -> Result<()> {
        if self.table.is_stopped() {
            return Err(topic::TopicState::stopped());
        }
        self.table.remove(&spec.topic);
        Ok(())
    }
}

impl Broker for Embedded {
    fn publish<'a>(&'a self, to: &'a Address, message: Message) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.core.publish(to, message))
    }

    fn subscribe<'a>(&'a self, to: &'a Subscription) -> BoxFuture<'a, Result<Box<dyn Inbox>>> {
        Box::pin(async move {
            match to {
                Subscription::Shared { topic, name, prefetch } => {
                    let inbox = SharedInbox::attach(&self.core, topic, name, *prefetch)?;
                    Ok(Box::new(inbox) as Box<dyn Inbox>)
                }
                Subscription::Own { topics } => Ok(Box::new(self.core.own_inbox(topics)?) as Box<dyn Inbox>),
            }
        })
    }

    fn limits(&self) -> Limits {
        Limits { message_bytes_max: self.core.table.config.message_bytes_max }
    }

    fn pressure(&self) -> Option<Pressure> {
        Some(self.core.pressure())
    }
}

impl BrokerAdmin for Embedded {
    fn observe<'a>(&'a self, topics: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(async move {
            let asked: Vec<_> =
                topics.iter().map(|spec| (&spec.topic, spec.subscriptions.as_slice())).collect();
            Ok(self.core.table.observe(&asked))
        })
    }

    fn ensure<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.core.ensure(topic))
    }

    fn remove<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.core.remove(topic))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(async move { Ok(self.core.table.list(prefix)) })
    }
}
