//! Committing writes: whatever arrived while the last commit was under way goes into the next one, each write with its
//! own version.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use sluice_schema::message;
use sluice_store::{Batch, Error, ErrorKind, Found, KeyRange, Tables, contract::Read as Look};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::layout::{self, ASKED, ASKED_MAX, DEAD, HEAD, HEAD_KEY, OUTBOX, Row, SIZE, Size, VALUE};
use crate::reader::{damaged, head_of};
use crate::request::Write;
use crate::state::{self, State, TRIM_COUNT, Written};

/// Writes of one commit at most.
const GROUP_WRITES_MAX: usize = 256;
/// Bytes of values in one commit, beyond which no further write joins it.
const GROUP_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Writes that may wait for their commit.
const WAITING_MAX: usize = 1_024;
/// How often a commit is tried again because another instance was faster.
const RACES_MAX: usize = 100;

/// What a write came to, or why it was refused.
pub(crate) type Outcome = Result<Written, message::Error>;

struct Job {
    write: Write,
    answer: oneshot::Sender<Outcome>,
}

/// The way to the writer. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Writer {
    jobs: mpsc::Sender<Job>,
}

/// Versions whose notices were sent and need not be kept; forgotten with the next commit.
#[derive(Default)]
pub(crate) struct Sent(Mutex<Vec<i64>>);

impl Sent {
    pub(crate) fn add(&self, versions: impl IntoIterator<Item = i64>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(versions);
    }

    fn take(&self) -> Vec<i64> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Writer {
    /// A writer and the loop that somebody has to drive.
    pub(crate) fn new(
        tables: Arc<dyn Tables>,
        sent: Arc<Sent>,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        (Self { jobs }, Committing { tables, sent, waiting, over_full: false }.run(stop))
    }

    /// Carries out a write; on return it is durable or was refused.
    pub(crate) async fn write(&self, write: Write) -> Outcome {
        let stopping = || message::Error::new("config-error", "the config service is stopping; try again");
        let (answer, outcome) = oneshot::channel();
        self.jobs.send(Job { write, answer }).await.map_err(|_| stopping())?;
        outcome.await.unwrap_or_else(|_| Err(stopping()))
    }
}

struct Committing {
    tables: Arc<dyn Tables>,
    sent: Arc<Sent>,
    waiting: mpsc::Receiver<Job>,
    over_full: bool,
}

impl Committing {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            let first = match stop.run_until_cancelled(self.waiting.recv()).await {
                Some(Some(job)) => job,
                // Stopping: what already waits is still committed, then the channel closes.
                None => {
                    self.waiting.close();
                    match self.waiting.recv().await {
                        Some(job) => job,
                        None => return,
                    }
                }
                Some(None) => return,
            };
            let group = self.gather(first);
            self.commit(group).await;
        }
    }

    fn gather(&mut self, first: Job) -> Vec<Job> {
        let bytes = |job: &Job| job.write.puts.iter().map(|p| p.value.len()).sum::<usize>();
        let mut total = bytes(&first);
        let mut group = vec![first];
        while group.len() < GROUP_WRITES_MAX && total < GROUP_BYTES_MAX {
            let Ok(job) = self.waiting.try_recv() else { break };
            total += bytes(&job);
            group.push(job);
        }
        group
    }

    async fn commit(&mut self, mut group: Vec<Job>) {
        let sent = self.sent.take();
        let mut essential: Vec<Job> = Vec::new();
        let (outcomes, failed) = match self.try_commit(&group, &sent).await {
            Ok(outcomes) => (outcomes, false),
            Err(error) => {
                tracing::error!(%error, writes = group.len(), "config could not be written");
                if matches!(error, Error::Damaged { .. }) && group.len() > 1 {
                    // Whose row is damaged is told so alone.
                    self.sent.add(sent);
                    for job in group {
                        Box::pin(self.commit(vec![job])).await;
                    }
                    return;
                }
                if matches!(error, Error::Disk { .. }) && group.len() > 1 {
                    // Alone it may use the room that is kept for it.
                    let (alone, others) = group.into_iter().partition(|job| job.write.is_essential());
                    group = others;
                    essential = alone;
                }
                let kind = match error.kind() {
                    ErrorKind::OutcomeUnknown => message::Error::OUTCOME_UNKNOWN,
                    ErrorKind::Refused | ErrorKind::Absent | ErrorKind::Unavailable => {
                        message::Error::CONFIG_UNAVAILABLE
                    }
                };
                let told = message::Error::new(kind, error.to_string());
                (group.iter().map(|_| Err(told.clone())).collect(), true)
            }
        };
        if failed {
            self.sent.add(sent);
        }
        for (job, outcome) in group.into_iter().zip(outcomes) {
            let _ = job.answer.send(outcome);
        }
        for job in essential {
            Box::pin(self.commit(vec![job])).await;
        }
    }

    async fn try_commit(&mut self, group: &[Job], sent: &[i64]) -> Result<Vec<Outcome>, Error> {
        let mut races = 0;
        loop {
            let (mut state, raw) = self.read(group).await?;
            let outcomes = group.iter().map(|job| state.write(&job.write)).collect();
            if state.is_unchanged() {
                self.sent.add(sent.iter().copied());
                return Ok(outcomes);
            }
            let over_full = State::is_over_full(state.head());
            let mut batch = Batch::new();
            if group.iter().all(|job| job.write.is_essential()) {
                batch.essential();
            }
            batch.expect(HEAD, HEAD_KEY, raw);
            for version in sent {
                batch.delete(OUTBOX, layout::outbox_key(*version));
            }
            for ((table, key), value) in state.into_changes() {
                match value {
                    Some(value) => batch.put(table, key, value),
                    None => batch.delete(table, key),
                };
            }
            match self.tables.commit(batch).await {
                Ok(()) => {
                    self.over_full = over_full;
                    return Ok(outcomes);
                }
                Err(error) if error.is_conflict() && races < RACES_MAX => races += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// The head and every row that the group touches, from one moment.
    async fn read(&self, group: &[Job]) -> Result<(State, Option<bytes::Bytes>), Error> {
        let keys: HashSet<Vec<u8>> = group.iter().flat_map(|job| state::touched_by(&job.write)).collect();
        let keys: Vec<Vec<u8>> = keys.into_iter().collect();
        let mut looks = vec![Look::get(HEAD, HEAD_KEY)];
        looks.extend(keys.iter().map(|key| Look::get(VALUE, key)));
        let sized: BTreeSet<Vec<u8>> = group.iter().flat_map(|job| state::sized_by(&job.write)).collect();
        looks.extend(sized.iter().map(|key| Look::get(SIZE, key)));
        if self.over_full {
            looks.push(Look::range(DEAD, KeyRange::all(), TRIM_COUNT));
        }
        let is_repeated = |job: &Job| job.write.asked.as_ref().is_some_and(|asked| asked.is_repeated);
        let asks_again = group.iter().any(is_repeated);
        if asks_again {
            looks.push(Look::range(ASKED, KeyRange::all(), ASKED_MAX));
        }
        let mut found = self.tables.read(looks).await?.into_iter();
        let raw = found.next().and_then(Found::into_value);
        let mut state = State::new(head_of(raw.as_ref())?, rand::random());
        for key in keys {
            let row = found.next().and_then(Found::into_value);
            // One that is no row can be written again and deleted.
            state.load(key, row.map(|raw| Row::decode(&raw).unwrap_or_else(|| Row::broken(&raw))));
        }
        for key in sized {
            let size = found.next().and_then(Found::into_value).and_then(|raw| Size::decode(&raw));
            state.load_size(key, size.unwrap_or_default());
        }
        if asks_again && let Some(rows) = found.next_back().map(Found::into_rows) {
            for (_, body) in rows.rows {
                let answered = sluice_schema::wire::decode(&body);
                state.remember(answered.map_err(|e| damaged("a request on record", &e.to_string()))?);
            }
        }
        let oldest = found.next().map(Found::into_rows).unwrap_or_default();
        for (key, _) in &oldest.rows {
            let Some((at, value_key)) = layout::history_of(key) else { continue };
            state.load(value_key.to_vec(), Some(Row { version: 0, at, value: None }));
            state.forget(value_key);
        }
        Ok((state, raw))
    }
}
