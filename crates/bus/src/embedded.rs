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

mod backlog;
mod config;
mod hold;
mod log;
mod own;
mod queue;
mod reader;
mod topic;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use sluice_schema::{Class, Topic};

use crate::contract::{
    Address, Broker, BrokerAdmin, Excess, Finding, HoldEnd, Inbox, InboxAddress, Limits, PoisonBound,
    Pressure, Promise, Seen, Subscription, TopicSpec, Traits,
};
use crate::losses::Losses;
use crate::message::Message;
use crate::{BoxFuture, Error, Result};

pub use config::{Config, LogEnd, Stamp};
use hold::Hold;
use log::Log;
pub use log::{DiskFaults, LogFile};
use own::{Own, OwnInbox};
use queue::Entry;
use reader::SharedInbox;
use topic::{Table, TopicState, check_class};

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
    log: Option<Log>,
    held: Arc<Mutex<HashSet<String>>>,
    losses: Losses,
}

struct StopOnDrop(Arc<Core>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        // A broker that nobody shut down still keeps its word: what was settled is written, the folder is free.
        if let Some(log) = &self.0.log {
            log.end(false);
            log.join();
        }
        self.0.table.stop(&TopicState::stopped());
    }
}

impl Embedded {
    /// What it does not promise.
    pub const TRAITS: Traits = Traits {
        hold: HoldEnd::Connection,
        not_promised: &[(Promise::StrangersTakePart, "no other process reaches it")],
    };

    /// Opens the broker, with the `flow` topics and messages that its folder holds.
    ///
    /// # Errors
    /// [`Error::Log`] when the folder holds a damaged log; it names the file and place. [`Error::LogUnopened`] when this process
    /// may not use it, or another one does.
    /// [`Error::Disk`] when the disk is full.
    pub fn open(config: Config) -> Result<Self> {
        let dir = config.dir.clone();
        let table = Arc::new(Table::new(config));
        let log = dir.map(|dir| Log::open(&dir, &table)).transpose()?;
        Ok(Self::from_core(table, log))
    }

    /// A broker without a folder, for tests: everything is lost when it stops.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::from_core(Arc::new(Table::new(Config::default())), None)
    }

    fn from_core(table: Arc<Table>, log: Option<Log>) -> Self {
        let core = Arc::new(Core { table, log, held: Arc::default(), losses: Losses::default() });
        Self { _stop: Arc::new(StopOnDrop(core.clone())), core }
    }

    /// Stops: readers and publishers get [`Error::Unavailable`], what was promised is on disk, the folder is free for
    /// the next.
    pub async fn shutdown(&self) {
        self.end(false).await;
    }

    /// Stops as a killed process would: nothing more is written, and what waited to be written is lost. For tests of
    /// those who build on it.
    pub async fn crash(&self) {
        self.end(true).await;
    }

    async fn end(&self, crash: bool) {
        if let Some(log) = &self.core.log {
            log.end(crash);
            log.gone().await;
        }
        self.core.table.stop(&TopicState::stopped());
    }

    /// Which data folder its log belongs to; `None` without a folder, or for a log that never heard of one.
    #[must_use]
    pub fn stamp(&self) -> Option<Stamp> {
        self.core.log.as_ref().and_then(Log::stamp)
    }

    /// Puts down which data folder the log belongs to, and how far that has come; on return it is durable.
    ///
    /// # Errors
    /// [`Error::Disk`] if it cannot be written.
    pub async fn set_stamp(&self, stamp: &Stamp) -> Result<()> {
        match &self.core.log {
            Some(log) => log.set_stamp(stamp).await,
            None => Ok(()),
        }
    }

    /// The files of the log as they are at one moment, between two records of it, at which `moment` is called. They can be
    /// read from then on whatever becomes of the log.
    ///
    /// # Errors
    /// [`Error::Disk`] if the log does not work any more.
    pub fn freeze<T>(&self, moment: impl FnOnce() -> T) -> Result<(Vec<LogFile>, T)> {
        match &self.core.log {
            Some(log) => log.freeze(moment),
            None => Ok((Vec::new(), moment())),
        }
    }

    /// Insists that the paths of the log's files still name those that are open. While one does not, nothing is taken for
    /// the log, with the same error: what is open is gone with this process.
    ///
    /// # Errors
    /// [`Error::Disk`], with what to do.
    pub fn check_in_place(&self) -> Result<()> {
        self.core.log.as_ref().map_or(Ok(()), Log::check_in_place)
    }

    /// Where the log ends, once the broker was shut down in good order.
    #[must_use]
    pub fn log_end(&self) -> Option<LogEnd> {
        self.core.log.as_ref().and_then(Log::closed_at)
    }

    /// Grows with everything that is written to the log.
    #[must_use]
    pub fn log_position(&self) -> (u64, u64) {
        self.core.log.as_ref().map_or((0, 0), Log::position)
    }

    /// Bytes of a torn end that were cut when the log was opened.
    #[must_use]
    pub fn cut_bytes(&self) -> u64 {
        self.core.log.as_ref().map_or(0, Log::cut_bytes)
    }

    /// Waits until its disk has failed, and tells why it takes and gives nothing more; for ever while all is well. A full
    /// disk is no such failure.
    pub async fn failed(&self) -> String {
        match &self.core.log {
            Some(log) => log.failed().await,
            None => std::future::pending().await,
        }
    }

    /// Why it takes and gives nothing more, once its disk has failed.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.core.log.as_ref().and_then(Log::failure)
    }

    /// How much unsettled `flow` traffic it holds.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        self.core.pressure()
    }

    /// Bytes of the log on disk, its reserve not counted; 0 without a folder.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.core.log.as_ref().map_or(0, Log::disk_bytes)
    }

    /// Makes its disk fail, for tests; `None` without a folder.
    #[must_use]
    pub fn disk_faults(&self) -> Option<&DiskFaults> {
        self.core.log.as_ref().map(Log::faults)
    }

    /// Messages that the reader of an inbox lost because it did not read; `None` when it is gone.
    #[must_use]
    pub fn dropped(&self, inbox: &InboxAddress) -> Option<u64> {
        self.core.table.inbox(&inbox.0).ok().map(|own| own.dropped())
    }
}

impl Core {
    fn pressure(&self) -> Pressure {
        Pressure {
            bytes: self.table.backlog.bytes(),
            high_water_bytes: self.table.config.high_water_bytes,
            disk_full: self.log.as_ref().is_some_and(Log::is_full),
        }
    }

    /// Counts an attempt and finds the body, before a message leaves for its reader.
    fn before_hand_over(&self, entry: &Entry, queue_id: u64) -> Result<Message> {
        let id = entry.stored.id;
        if id != 0
            && let Some(log) = &self.log
        {
            log.handed(id, queue_id, entry.attempts)?;
        }
        match (&entry.stored.message, &self.log) {
            (Some(message), _) => Ok(message.clone()),
            (None, Some(log)) => log.read(id),
            (None, None) => Err(Error::Log { reason: format!("message {id} is in none") }),
        }
    }

    /// Notes that the last hand-over of a message does not count. Should that not be written, it counts after a crash.
    fn uncount(&self, id: u64, queue_id: u64, attempts: u32) {
        if id != 0
            && let Some(log) = &self.log
            && let Err(error) = log.handed(id, queue_id, attempts)
        {
            tracing::debug!(%error, "a message that was given back untried stays counted");
        }
    }

    fn after_settling(&self, id: u64, queue_id: u64) {
        if id != 0
            && let Some(log) = &self.log
        {
            log.settled(id, queue_id);
        }
    }

    async fn publish(&self, to: &Address, message: Message) -> Result<()> {
        self.table.check_running()?;
        let (bytes, max) = (message.body.len(), self.table.config.message_bytes_max);
        if bytes > max {
            return Err(Error::TooLarge { bytes, max });
        }
        let topic = match to {
            Address::Topic(topic) | Address::Subscribed(topic) => topic,
            Address::Inbox(address) => {
                self.table.inbox(&address.0)?.give(message).await;
                return Ok(());
            }
        };
        let found = self.table.find(topic)?;
        match topic.class() {
            Class::Request => found.request(message, &self.table),
            Class::Response | Class::Notify => found.broadcast(&message),
            Class::Flow if !found.wants()? => match to {
                Address::Subscribed(_) => Err(Error::NoReader { topic: topic.clone() }),
                Address::Topic(_) | Address::Inbox(_) => Ok(()),
            },
            Class::Flow => match &self.log {
                Some(log) => log.publish(&found, message).await,
                None => found.enqueue(0, message, &self.table),
            },
        }
    }

    fn own_inbox(self: &Arc<Self>, topics: &[Topic]) -> Result<OwnInbox> {
        let own = Arc::new(Own::new(&self.table)?);
        self.table.add_inbox(&own)?;
        let inbox = OwnInbox { core: self.clone(), own };
        topics.iter().try_for_each(|topic| inbox.follow_now(topic))?;
        Ok(inbox)
    }

    async fn ensure(&self, spec: &TopicSpec) -> Result<()> {
        if !spec.subscriptions.is_empty() {
            check_class(&spec.topic, true)?;
        }
        self.table.check_running()?;
        if self.table.find(&spec.topic).is_ok_and(|found| found.has_queues(&spec.subscriptions)) {
            return Ok(());
        }
        if let Some(log) = self.log_of(&spec.topic) {
            return log.ensure(spec).await;
        }
        self.table.ensure(&spec.topic, 0, spec.subscriptions.iter().map(|name| (name, 0)));
        Ok(())
    }

    async fn remove(&self, spec: &TopicSpec) -> Result<()> {
        self.table.check_running()?;
        if let Some(log) = self.log_of(&spec.topic) {
            return log.remove(spec).await;
        }
        self.table.remove(&spec.topic);
        Ok(())
    }

    fn observe(&self, topics: &[TopicSpec]) -> Result<Vec<Seen>> {
        let asked: Vec<_> = topics.iter().map(|spec| (&spec.topic, spec.subscriptions.as_slice())).collect();
        self.table.check_running()?;
        Ok(self.table.observe(&asked))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Seen>> {
        self.table.check_running()?;
        Ok(self.table.list(prefix))
    }

    fn bound_poison(&self, to: &Topic) -> Result<PoisonBound> {
        if to.class() != Class::Flow {
            let reason = format!("'{to}' keeps no messages; dead letters go to a 'flow' topic");
            return Err(Error::Refused { reason });
        }
        self.table.find(to)?;
        Ok(PoisonBound::Unneeded)
    }

    fn examine(&self) -> Result<Vec<Finding>> {
        self.table.check_running()?;
        let pressure = self.pressure();
        let find = |code, text, next: &str| Finding {
            code,
            topic: None,
            subscription: None,
            text,
            next: next.to_owned(),
        };
        let mut findings = Vec::new();
        if pressure.disk_full {
            let dir = self.table.config.dir.as_deref().unwrap_or(std::path::Path::new("memory"));
            findings.push(find(
                "disk-full",
                format!("the disk of the embedded broker in '{}' is full", dir.display()),
                "free space there, or allow its log more; publishing goes on by itself then",
            ));
        }
        let over = self.table.backlog.over();
        if over.is_empty() && pressure.bytes >= pressure.high_water_bytes {
            findings.push(find(
                "backlog-high",
                format!(
                    "{} bytes of messages wait in flow queues; new work is refused from {} on",
                    pressure.bytes, pressure.high_water_bytes
                ),
                BACKLOG_NEXT,
            ));
        }
        findings.extend(
            over.into_iter().map(|(workspace, topic, excess)| backlog_high(&workspace, topic, &excess)),
        );
        Ok(findings)
    }

    /// The log, for topics that survive a restart.
    fn log_of(&self, topic: &Topic) -> Option<&Log> {
        self.log.as_ref().filter(|_| topic.class() == Class::Flow)
    }
}

const BACKLOG_NEXT: &str =
    "see which queues grow and why their processors do not keep up, or run more of them";

/// About a workspace, by a topic of its own, so that no other workspace is told.
fn backlog_high(workspace: &str, topic: Topic, excess: &Excess) -> Finding {
    let text = match excess {
        Excess::Own { bytes, share_bytes, flow } => format!(
            "{bytes} bytes of messages wait in flow queues of workspace '{workspace}', most of them in flow '{}'; its new work is refused from {share_bytes} on",
            flow.as_deref().unwrap_or("?")
        ),
        Excess::Whole => {
            format!("too many bytes of messages wait in flow queues, among them of workspace '{workspace}'")
        }
    };
    Finding {
        code: "backlog-high",
        topic: Some(topic),
        subscription: None,
        text,
        next: BACKLOG_NEXT.to_owned(),
    }
}

impl Broker for Embedded {
    fn publish<'a>(&'a self, to: &'a Address, message: Message) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.core.publish(to, message).await.inspect_err(|error| self.core.losses.note(error))
        })
    }

    fn subscribe<'a>(&'a self, to: &'a Subscription) -> BoxFuture<'a, Result<Box<dyn Inbox>>> {
        Box::pin(async move {
            let attached = match to {
                Subscription::Shared { topic, name, prefetch } => {
                    SharedInbox::attach(&self.core, topic, name, *prefetch)
                        .map(|inbox| Box::new(inbox) as Box<dyn Inbox>)
                }
                Subscription::Own { topics } => {
                    self.core.own_inbox(topics).map(|inbox| Box::new(inbox) as Box<dyn Inbox>)
                }
            };
            attached.inspect_err(|error| self.core.losses.note(error))
        })
    }

    fn limits(&self) -> Limits {
        Limits { message_bytes_max: self.core.table.config.message_bytes_max }
    }

    fn pressure(&self) -> Option<Pressure> {
        Some(self.core.pressure())
    }

    fn excess(&self, workspace: &str) -> Option<Excess> {
        self.core.table.backlog.excess(workspace)
    }

    fn trouble(&self) -> Option<String> {
        self.core.pressure().disk_full.then(|| "its disk is full".to_owned())
    }

    fn losses(&self) -> Option<&Losses> {
        Some(&self.core.losses)
    }
}

impl BrokerAdmin for Embedded {
    fn observe<'a>(&'a self, topics: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(async move { self.core.observe(topics) })
    }

    fn ensure<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.core.ensure(topic))
    }

    fn remove<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.core.remove(topic))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(async move { self.core.list(prefix) })
    }

    fn hold<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn BrokerAdmin>>> {
        Box::pin(async move { Ok(Arc::new(Hold::take(&self.core, name)?) as Arc<dyn BrokerAdmin>) })
    }

    fn bound_poison<'a>(&'a self, to: &'a Topic) -> BoxFuture<'a, Result<PoisonBound>> {
        Box::pin(async move { self.core.bound_poison(to) })
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        Box::pin(async move { self.core.examine() })
    }

    fn traits(&self) -> Traits {
        Self::TRAITS
    }

    fn product(&self) -> BoxFuture<'_, Option<String>> {
        Box::pin(async { Some(concat!("embedded ", env!("CARGO_PKG_VERSION")).to_owned()) })
    }
}
