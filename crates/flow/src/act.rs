//! Taking the steps of a plan. Each may be repeated, and each insists on the wish it was planned for where it writes to
//! config, so that a step that lands late changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::stream::{self, FuturesUnordered, StreamExt};
use sluice_bus::{
    Address, BoxFuture, Broker, BrokerAdmin, Delivery, ErrorKind, Seen, SeenSubscription, Subscription,
    TopicSpec, letter, property,
};
use sluice_schema::message::{DeadLetter, ScopedKey};
use sluice_schema::record::{self, Flow};
use sluice_schema::{Topic, WorkspaceId, system};
use sluice_sdk::{Apply, ConfigClient, ConfigError};

use crate::blueprint::{OwnedTopic, Part};
use crate::memory::{
    FlowKey, LEDGER, Named, ONLY, REPORT, RUNS, Records, WISH, Want, Wish, own_key, own_value, scoped_key,
    scoped_value, unchanged,
};
use crate::plan::{self, Leftover, Step};

/// Broker calls of one step under way at once.
const CALLS_MAX: usize = 64;
/// How long one step may take; it is taken again after the next look.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long parking waits for the next message of a queue before it looks again.
const PARK_PATIENCE: Duration = Duration::from_millis(500);
/// Messages of one queue that are being parked at once; as many as a reader is handed unsettled.
const PARK_WINDOW: u16 = 64;
/// Bytes of messages that are moved at once, beyond a single one: a letter is some times as large while it is written.
const PARK_WINDOW_BYTES: usize = 16 * 1024 * 1024;
/// A longer identity of a message is none of ours, and would not fit its letter.
const MESSAGE_ID_BYTES_MAX: usize = 1_024;
/// Messages parked in one step per queue at most.
const PARK_MAX: u64 = 1_000;

/// Why a step did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The broker refused or failed.
    #[error("{doing}: {source}")]
    Bus {
        /// What was attempted.
        doing: String,
        /// Why not.
        source: sluice_bus::Error,
    },
    /// Config refused or failed.
    #[error("writing the {what} to config: {source}")]
    Config {
        /// What was attempted.
        what: &'static str,
        /// Why not.
        source: ConfigError,
    },
    /// The dead letters cannot keep anything.
    #[error(
        "the dead letters of workspace '{workspace}' ({topic}) have no reader that would keep leftovers; start the library service, which makes its queue there; stopping the flow with drain \"discard\" would lose them"
    )]
    NoDeadLetters {
        /// The workspace.
        workspace: String,
        /// Their topic.
        topic: Topic,
    },
    /// The broker has no room for what is left.
    #[error(
        "{doing}: {source}; the stop goes on once there is room; a stop with drain \"discard\" (`sluice flow stop ID --drain discard`) needs none, and loses what still waits in the flow's queues"
    )]
    NoRoomToPark {
        /// What was attempted.
        doing: String,
        /// Why not.
        source: sluice_bus::Error,
    },
    /// It took too long.
    #[error("a step took longer than {within_s} s")]
    TimedOut {
        /// The bound.
        within_s: u64,
    },
}

impl Error {
    /// Whether somebody decided something in the meantime: look again at once.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Config { source: ConfigError::Conflict(_), .. })
    }

    /// Whether somebody came to read, or something to be read, after it was last looked at.
    pub(crate) fn is_in_use(&self) -> bool {
        matches!(self, Self::Bus { source: sluice_bus::Error::InUse { .. }, .. })
    }

    /// Whether this service leads no more: nothing was done, and nothing is to be told.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self, Self::Bus { source: sluice_bus::Error::HoldLost { .. }, .. })
    }

    /// Whether trying again cannot help unless the world changes.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Bus { source, .. } => source.kind() == ErrorKind::Refused,
            // Its store may be well again the next time.
            Self::Config { source: source @ ConfigError::Refused { .. }, .. } => !source.is_unasked(),
            Self::Config { .. } => false,
            Self::NoDeadLetters { .. } | Self::NoRoomToPark { .. } | Self::TimedOut { .. } => false,
        }
    }
}

/// Messages moved to the dead letters, by queue.
pub(crate) type Parked = BTreeMap<String, u64>;

/// Hands that steps are taken with.
#[derive(Clone)]
pub(crate) struct Hands {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) admin: Arc<dyn BrokerAdmin>,
    pub(crate) config: Arc<ConfigClient>,
}

/// What a step is about.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub(crate) key: &'a FlowKey,
    pub(crate) wish: &'a Wish,
    pub(crate) records: &'a Records,
}

impl Hands {
    /// Takes one step.
    pub(crate) async fn take(&self, job: Job<'_>, step: &Step) -> Result<Parked, Error> {
        let step = async {
            match step {
                Step::Ensure(topics) => self.ensure(topics).await?,
                Step::Open(parts) => self.open(job, parts).await?,
                Step::Close => self.apply("closed record", job.close()).await?,
                Step::Withdraw(parts) => {
                    self.apply("removal of the processor entries", job.withdraw(parts)).await?
                }
                Step::Park(queues) => return self.park(job, queues).await,
                Step::Remove(topics) => self.remove_idle(topics).await?,
                Step::Discard(topics) => self.remove(topics).await?,
                Step::Forget => self.apply("removal of the flow's records", job.forget()).await?,
            }
            Ok(Parked::new())
        };
        let within_s = STEP_TIMEOUT.as_secs();
        tokio::time::timeout(STEP_TIMEOUT, step).await.map_err(|_| Error::TimedOut { within_s })?
    }

    /// Looks at topics.
    pub(crate) async fn observe(&self, topics: &[TopicSpec]) -> Result<Vec<Seen>, Error> {
        let looked = tokio::time::timeout(STEP_TIMEOUT, self.admin.observe(topics)).await;
        let within_s = STEP_TIMEOUT.as_secs();
        let looked = looked.map_err(|_| Error::TimedOut { within_s })?;
        looked.map_err(|source| Error::Bus { doing: "looking at the topics".to_owned(), source })
    }

    async fn ensure(&self, topics: &[OwnedTopic]) -> Result<(), Error> {
        let call = |topic: &OwnedTopic| -> Call<'_, ()> {
            let (spec, doing) = (topic.spec(), format!("making topic {}", topic.topic));
            Box::pin(
                async move { self.admin.ensure(&spec).await.map_err(|source| Error::Bus { doing, source }) },
            )
        };
        side_by_side(topics.iter().map(call).collect()).await.map(|_| ())
    }

    /// Removes topics with what is in them.
    pub(crate) async fn remove(&self, topics: &[OwnedTopic]) -> Result<(), Error> {
        self.removing(topics, false).await
    }

    /// Removes topics that nobody reads and that hold nothing.
    async fn remove_idle(&self, topics: &[OwnedTopic]) -> Result<(), Error> {
        self.removing(topics, true).await
    }

    /// Never a system service's topic, whatever a record says.
    async fn removing(&self, topics: &[OwnedTopic], only_idle: bool) -> Result<(), Error> {
        let call = |topic: &OwnedTopic| -> Call<'_, ()> {
            let (spec, doing) = (topic.spec(), format!("removing topic {}", topic.topic));
            Box::pin(async move {
                let removal =
                    if only_idle { self.admin.remove_idle(&spec) } else { self.admin.remove(&spec) };
                removal.await.map_err(|source| Error::Bus { doing, source })
            })
        };
        let own = topics.iter().filter(|topic| !system::is_system(&topic.topic));
        side_by_side(own.map(call).collect()).await.map(|_| ())
    }

    async fn open(&self, job: Job<'_>, parts: &[Part]) -> Result<(), Error> {
        let naming = self.broker.naming();
        let parts: Vec<Part> = parts.iter().map(|part| part.named(naming)).collect();
        self.apply("processor entries and record", job.open(&parts)).await
    }

    pub(crate) async fn apply(&self, what: &'static str, write: Apply) -> Result<(), Error> {
        self.config.apply(write).await.map(|_| ()).map_err(|source| Error::Config { what, source })
    }

    async fn park(&self, job: Job<'_>, queues: &[Leftover]) -> Result<Parked, Error> {
        let workspace = &job.key.workspace;
        let letters = system::dead_letters(&WorkspaceId::existing(workspace));
        // Asked for by its name: some brokers show no subscription that nobody asked about.
        let keeper = TopicSpec::with(letters.clone(), system::LIBRARIAN);
        let seen = self.observe(std::slice::from_ref(&keeper)).await?;
        let is_keeper = |s: &SeenSubscription| s.exists && s.name == system::LIBRARIAN;
        if !seen.iter().any(|seen| seen.exists && seen.subscriptions.iter().any(is_keeper)) {
            return Err(Error::NoDeadLetters { workspace: workspace.to_string(), topic: letters });
        }
        let mut calls: Vec<Call<'_, (String, u64)>> = Vec::with_capacity(queues.len());
        for queue in queues {
            calls.push(Box::pin(self.park_queue(job, &letters, queue)));
        }
        Ok(side_by_side(calls).await?.into_iter().collect())
    }

    /// Moves what one queue holds, a window at once, begun in the queue's order. A crash in between moves what was under
    /// way twice, with the same ids.
    async fn park_queue(
        &self,
        job: Job<'_>,
        letters: &Topic,
        queue: &Leftover,
    ) -> Result<(String, u64), Error> {
        let (topic, name) = (&queue.topic, &queue.subscription);
        let failed = |source| {
            let doing = format!("parking what is left of {topic} / {name}");
            match source {
                sluice_bus::Error::Disk { .. } => Error::NoRoomToPark { doing, source },
                source => Error::Bus { doing, source },
            }
        };
        let to =
            Subscription::Shared { topic: topic.clone(), name: name.clone(), prefetch: PARK_WINDOW.into() };
        let inbox = self.broker.subscribe(&to).await.map_err(failed)?;
        let to = Address::Subscribed(letters.clone());
        let park = async |delivery: Delivery| {
            let bytes = delivery.message.body.len();
            let about = about(job, name, &delivery);
            let letter = letter::message(about, &delivery.message.body, self.broker.limits());
            self.broker.publish(&to, letter).await?;
            delivery.ack();
            Ok(bytes)
        };
        let mut under_way = FuturesUnordered::new();
        let (mut taken, mut moved, mut failure, mut is_empty) = (0, 0, None, false);
        let mut window_bytes = 0;
        loop {
            let has_room = under_way.len() < usize::from(PARK_WINDOW)
                && window_bytes < PARK_WINDOW_BYTES
                && taken < queue.messages.min(PARK_MAX);
            tokio::select! {
                biased;
                next = tokio::time::timeout(PARK_PATIENCE, inbox.next()),
                    if has_room && !is_empty && failure.is_none() => match next {
                    Ok(Ok(delivery)) => {
                        taken += 1;
                        window_bytes += delivery.message.body.len();
                        under_way.push(park(delivery));
                    }
                    Ok(Err(error)) => failure = Some(error),
                    Err(_) => is_empty = true,
                },
                Some(parked) = under_way.next() => match parked {
                    Ok(bytes) => {
                        moved += 1;
                        window_bytes -= bytes;
                    }
                    Err(error) => failure = Some(error),
                },
                else => break,
            }
        }
        failure.map_or(Ok((plan::queue(topic, name), moved)), |error| Err(failed(error)))
    }
}

type Call<'a, T> = BoxFuture<'a, Result<T, Error>>;

/// Runs calls to their ends, a bounded number at once: one that fails holds up no other. Of several failures the first in order.
async fn side_by_side<T>(calls: Vec<Call<'_, T>>) -> Result<Vec<T>, Error> {
    let ended: Vec<_> = stream::iter(calls).buffered(CALLS_MAX).collect().await;
    ended.into_iter().collect()
}

/// What is told about a message that is parked.
fn about(job: Job<'_>, subscription: &str, delivery: &Delivery) -> DeadLetter {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let id = delivery.message.get(property::MESSAGE_ID).filter(|id| id.len() <= MESSAGE_ID_BYTES_MAX);
    let id = id.map(|id| format!("{id}@{subscription}"));
    DeadLetter {
        id: id.unwrap_or_else(|| uuid::Uuid::now_v7().to_string()),
        workspace: job.key.workspace.to_string(),
        flow: job.wish.run.clone(),
        topic: delivery.topic.to_string(),
        subscription: subscription.to_owned(),
        reason: "the flow was stopped before this message was processed".to_owned(),
        attempts: i64::from(delivery.attempt) - 1,
        time: i64::try_from(now).unwrap_or(i64::MAX),
        properties: delivery.message.properties().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        body: String::new(),
    }
}

impl Job<'_> {
    fn record_key(&self) -> ScopedKey {
        scoped_key(&self.key.workspace, record::FLOW, &self.key.id)
    }

    fn entry_key(&self, part: &Part) -> ScopedKey {
        let kind = format!("{}{}", record::PROCESSOR_PREFIX, part.processor);
        scoped_key(&self.key.workspace, &kind, &part.variant)
    }

    /// A write that only counts while the wish is what it was.
    fn write(&self) -> Apply {
        let wish = unchanged(own_key(WISH, self.key), self.records.wishes.get(self.key));
        Apply { expect: vec![wish], essential: self.wish.want == Want::Gone, ..Apply::default() }
    }

    fn open(&self, parts: &[Part]) -> Apply {
        let mut write = self.write();
        write.puts = parts
            .iter()
            .map(|part| {
                let at = self.entry_key(part);
                scoped_value(&at.workspace, &at.r#type, &at.key, &part.entry)
            })
            .collect();
        write.puts.push(self.record(&self.wish.public()));
        write
    }

    fn record(&self, flow: &Flow) -> sluice_schema::message::ConfigValue {
        scoped_value(&self.key.workspace, record::FLOW, &self.key.id, flow)
    }

    fn close(&self) -> Apply {
        let mut write = self.write();
        let flow = Flow { status: Some("stopping".to_owned()), ..self.wish.public() };
        write.puts.push(self.record(&flow));
        write
    }

    /// Insists that nobody decided anything since the look: a new flow may have come to share an entry.
    fn withdraw(&self, parts: &[Part]) -> Apply {
        let mut write = self.write();
        let ledger = scoped_key(record::FLOWS, LEDGER, ONLY);
        write.expect.push(unchanged(ledger, self.records.ledger.as_ref()));
        write.deletes = parts.iter().map(|part| self.entry_key(part)).collect();
        write
    }

    fn forget(&self) -> Apply {
        let mut write = self.write();
        write.deletes = vec![self.record_key(), own_key(WISH, self.key), own_key(REPORT, self.key)];
        let runs = self.records.runs.get(self.key).and_then(|r| r.value.as_deref().ok());
        let row = match runs {
            Some(row) => row.clone(),
            None => Named { last: 1, ..Named::default() },
        };
        let row = row.after(&self.wish.topology.topics, &self.wish.request);
        write.puts.push(own_value(RUNS, self.key, &row));
        write
    }

    /// The report as others can read it; quiet, and only while the wish stands.
    pub(crate) fn report(&self, report: &crate::board::Report) -> Apply {
        let mut write = self.write();
        write.puts.push(own_value(REPORT, self.key, report));
        write.quiet = true;
        write.essential = true;
        write
    }
}
