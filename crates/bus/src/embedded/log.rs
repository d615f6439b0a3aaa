//! The log of the `flow` topics: one thread that writes and syncs, and a door for everybody else.
//!
//! # Flow
//! Publishers and owners hand an operation to the thread and wait. The thread takes all that arrived during its last
//! sync, writes it, syncs once, puts the messages into their queues in that order and answers. Nothing waits for a timer.
//! One message is one record, however many subscriptions it is for.
//!
//! # Guarantees
//! - *Attempts are counted before hand-over.* The reader's own thread writes a small record before it hands a message
//!   out. It is a plain write of some 40 bytes to the end of the file (a microsecond; the page cache outlives a killed
//!   process, which is what poison does), not a sync. A power cut may lose the last of these, which costs a message one
//!   attempt of its count, never the message.
//! - *Settling never waits.* Its record goes out with the next write of anybody, or when the thread gets to it. A crash
//!   redelivers the last few.
//! - *A failed sync is fatal.* Nobody knows what the kernel threw away, so publishers under way learn that the outcome
//!   is unknown, everybody later gets [`Error::Disk`], and the broker stops.
//! - *A full disk is not fatal.* A message is written whole or not at all; publishers wait a while for space, then fail.
//!   Settling and removing go on from the reserve.
//! - *Disk use is bounded by what lives.* A file goes when nothing in it and in older ones lives; when old survivors pin
//!   more than twice as much dead weight, they are moved to the end.
//! - *A log that was closed ends with a record that says so.* Whoever remembers where that was ([`LogEnd`]) has a missing
//!   end or file found; a file that others follow says which, and files that were given back are on record, so a missing
//!   file is found after a crash too.
//! - *Recovery needs memory for numbers, not for bodies.* The log is the spill file: what is over the memory budget, and
//!   everything found at start, is read again when it is delivered.
//!
//! # Assumes
//! One process per folder (it is locked), and a file system on which a rename is atomic.

mod frame;
#[cfg(test)]
mod fuzz;
mod ledger;
mod recover;
mod segment;
mod tail;
mod writer;

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use self::recover::{disk, unusable, wrong};
pub use self::segment::DiskFaults;
use self::segment::Segment;
use self::tail::Tail;
use super::config::{LogEnd, Stamp};
use super::queue::{Entry, Stored};
use super::topic::{Table, TopicState, lock};
use crate::contract::TopicSpec;
use crate::message::Message;
use crate::{Error, Result};

/// Bytes of messages written at once.
const WRITE_BYTES: usize = 1 << 20;
/// How often, and after which pause, a folder is tried that seems to be in use.
const LOCK_TRIES_MAX: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// How often a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_millis(100);

/// The door to the log. All state behind it is shared with its thread.
pub(super) struct Log {
    shared: Arc<Shared>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

struct Shared {
    table: Arc<Table>,
    pending: Mutex<Pending>,
    arrived: Condvar,
    tail: Mutex<Tail>,
    /// Something may have become free on a full disk.
    freed: Notify,
    /// Why nothing works any more.
    dead: OnceLock<String>,
    gone: watch::Sender<bool>,
    /// As `pending.end`, to be asked without its lock.
    ended: AtomicBool,
    /// Why nothing more is written: a file of it is not where its path says.
    misplaced: Mutex<Option<String>>,
    faults: Arc<DiskFaults>,
    cut_bytes: u64,
    /// Where it ends, once it is closed.
    closed_at: OnceLock<LogEnd>,
}

/// A file of a log as it was at some moment.
#[derive(Debug, Clone)]
pub struct LogFile {
    /// Its name in the folder of the log.
    pub name: String,
    /// How much of it was written, in bytes.
    pub bytes: u64,
    segment: Arc<Segment>,
}

impl LogFile {
    /// Reads it from the beginning; what was written later comes after [`LogFile::bytes`].
    #[must_use]
    pub fn reader(&self) -> impl io::Read + use<> {
        LogReader { segment: self.segment.clone(), offset: 0 }
    }

    /// Whether all of it is still what was written to it. Reads it from the disk, or from what the system remembers of it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn is_whole(&self) -> io::Result<bool> {
        recover::is_whole(&self.segment, self.bytes)
    }
}

struct LogReader {
    segment: Arc<Segment>,
    offset: u64,
}

impl io::Read for LogReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.segment.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// What waits for the thread. Bounded by its publishers: each waits for its one operation.
#[derive(Default)]
struct Pending {
    operations: Vec<Operation>,
    /// There is something else to do: small records to write, files to remove.
    poked: bool,
    end: Option<End>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Write and sync what is promised.
    Close,
    /// Leave everything as a killed process would.
    Crash,
}

enum Operation {
    Publish { topic: Arc<TopicState>, message: Message, done: Done },
    Ensure { spec: TopicSpec, done: Done },
    Remove { spec: TopicSpec, done: Done },
    Stamp { stamp: Stamp, done: Done },
}

type Done = oneshot::Sender<Result<(), Refusal>>;

/// Why an operation did not happen.
#[derive(Debug)]
enum Refusal {
    /// The disk is full: it may be tried again.
    Full(String),
    Failed(Error),
}

impl Log {
    /// Opens the log in `dir` and fills `table` with what it holds.
    pub(super) fn open(dir: &Path, table: &Arc<Table>) -> Result<Self> {
        let failed = |error: io::Error| unusable(dir, &error);
        let is_looked_at = table.config.is_looked_at;
        if !is_looked_at {
            std::fs::create_dir_all(dir).map_err(failed)?;
        }
        let folder = lock_folder(dir, is_looked_at)?;
        let faults = Arc::new(DiskFaults::default());
        let recovered = recover::open(dir, &table.config, &faults)?;
        let (mut tail, cut_bytes) = (recovered.tail, recovered.cut_bytes);
        let no_reserve = |error: io::Error| unusable(&dir.join(tail::RESERVE), &error);
        tail.full = is_looked_at || !tail.reserve(table.config.disk_reserve_bytes).map_err(no_reserve)?;
        fill(table, &tail);
        let shared = Arc::new(Shared {
            table: table.clone(),
            pending: Mutex::default(),
            arrived: Condvar::new(),
            tail: Mutex::new(tail),
            freed: Notify::new(),
            dead: OnceLock::new(),
            gone: watch::Sender::new(false),
            ended: AtomicBool::new(false),
            misplaced: Mutex::default(),
            faults,
            cut_bytes,
            closed_at: OnceLock::new(),
        });
        let thread = std::thread::Builder::new()
            .name("bus/log".to_owned())
            .spawn({
                let shared = shared.clone();
                move || {
                    shared.run();
                    // The folder is free before anybody hears that the thread is gone.
                    drop(folder);
                    shared.gone.send_replace(true);
                }
            })
            .map_err(failed)?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn faults(&self) -> &DiskFaults {
        &self.shared.faults
    }

    pub(super) fn is_full(&self) -> bool {
        lock(&self.shared.tail).full
    }

    pub(super) fn stamp(&self) -> Option<Stamp> {
        lock(&self.shared.tail).ledger.stamp.clone()
    }

    pub(super) fn freeze<T>(&self, moment: impl FnOnce() -> T) -> Result<(Vec<LogFile>, T)> {
        if self.shared.is_ended() {
            return Err(self.shared.unusable());
        }
        let mut tail = lock(&self.shared.tail);
        if let Err(error) = tail.flush() {
            tracing::debug!(%error, "settled messages are not in the copy of the log; they would come again");
        }
        let files = tail.ledger.segments.values().map(|held| {
            let segment = held.segment.clone();
            let name = segment.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let bytes = if segment.number == tail.segment.number { tail.offset } else { held.bytes };
            LogFile { name, bytes, segment }
        });
        let files = files.collect();
        Ok((files, moment()))
    }

    /// Insists that the paths of all files still name those that are open. While one does not, publishes are refused.
    pub(super) fn check_in_place(&self) -> Result<()> {
        // Under its lock no file is given back.
        let tail = lock(&self.shared.tail);
        let mut segments = tail.ledger.segments.values().map(|held| &held.segment);
        let lost = segments.find(|segment| !segment.is_in_place());
        let reason = (!tail.is_ended).then_some(lost).flatten().map(|segment| misplaced(segment));
        lock(&self.shared.misplaced).clone_from(&reason);
        reason.map_or(Ok(()), |reason| Err(disk(reason)))
    }

    pub(super) fn position(&self) -> (u64, u64) {
        let tail = lock(&self.shared.tail);
        (tail.segment.number, tail.offset)
    }

    pub(super) fn cut_bytes(&self) -> u64 {
        self.shared.cut_bytes
    }

    pub(super) fn closed_at(&self) -> Option<LogEnd> {
        self.shared.closed_at.get().copied()
    }

    pub(super) async fn set_stamp(&self, stamp: &Stamp) -> Result<()> {
        let what = || "noting which folder the log belongs to".to_owned();
        let stamp = stamp.clone();
        self.ask(|done| Operation::Stamp { stamp, done }, what).await.map_err(Refusal::into_error)
    }

    /// Waits until nothing works any more because the disk failed.
    pub(super) async fn failed(&self) -> String {
        self.gone().await;
        match self.shared.dead.get() {
            Some(reason) => reason.clone(),
            // It was shut down.
            None => std::future::pending().await,
        }
    }

    /// Why nothing works any more, if the disk failed.
    pub(super) fn failure(&self) -> Option<String> {
        self.shared.dead.get().cloned()
    }

    /// Bytes of all log files.
    pub(super) fn disk_bytes(&self) -> u64 {
        lock(&self.shared.tail).ledger.bytes()
    }

    /// Makes a message durable and puts it into its queues.
    pub(super) async fn publish(&self, topic: &Arc<TopicState>, message: Message) -> Result<()> {
        let deadline = Instant::now() + self.shared.table.config.disk_wait_max;
        loop {
            let freed = self.shared.freed.notified();
            let (topic, message) = (topic.clone(), message.clone());
            let what = topic.topic.clone();
            match self
                .ask(
                    |done| Operation::Publish { topic, message, done },
                    || format!("the publish to '{what}'"),
                )
                .await
            {
                Ok(()) => return Ok(()),
                Err(Refusal::Failed(error)) => return Err(error),
                Err(Refusal::Full(reason)) if Instant::now() >= deadline => return Err(disk(reason)),
                // Space that others make free is not told, so it is also looked for.
                Err(Refusal::Full(_)) => {
                    let until = deadline.min(Instant::now() + FULL_RETRY);
                    let _ = tokio::time::timeout_at(until, freed).await;
                }
            }
        }
    }

    pub(super) async fn ensure(&self, spec: &TopicSpec) -> Result<()> {
        let what = || format!("making '{}'", spec.topic);
        self.ask(|done| Operation::Ensure { spec: spec.clone(), done }, what)
            .await
            .map_err(Refusal::into_error)
    }

    pub(super) async fn remove(&self, spec: &TopicSpec) -> Result<()> {
        let what = || format!("removing '{}'", spec.topic);
        self.ask(|done| Operation::Remove { spec: spec.clone(), done }, what)
            .await
            .map_err(Refusal::into_error)
    }

    async fn ask(
        &self,
        operation: impl FnOnce(Done) -> Operation,
        what: impl FnOnce() -> String,
    ) -> Result<(), Refusal> {
        let (done, answer) = oneshot::channel();
        {
            let mut pending = lock(&self.shared.pending);
            if pending.end.is_some() {
                return Err(Refusal::Failed(self.shared.unusable()));
            }
            pending.operations.push(operation(done));
            self.shared.arrived.notify_one();
        }
        answer.await.unwrap_or_else(|_| {
            let reason = "the broker ended before it was done".to_owned();
            Err(Refusal::Failed(Error::OutcomeUnknown { what: what(), reason }))
        })
    }

    /// Counts a hand-over before it happens.
    pub(super) fn handed(&self, id: u64, queue: u64, attempts: u32) -> Result<()> {
        if self.shared.is_ended() {
            return Err(self.shared.unusable());
        }
        let mut tail = lock(&self.shared.tail);
        if tail.is_ended {
            return Err(self.shared.unusable());
        }
        let written = tail.handed(id, queue, attempts);
        written.map_err(|error| disk(format!("cannot note a delivery: {error}")))
    }

    /// Notes that a subscription is done with a message. Never waits for the disk.
    pub(super) fn settled(&self, id: u64, queue: u64) {
        if self.shared.is_ended() {
            return;
        }
        {
            let mut tail = lock(&self.shared.tail);
            if tail.is_ended {
                return;
            }
            if let Err(error) = tail.settled(id, queue) {
                tracing::debug!(%error, "settled messages cannot be written yet; a crash would deliver them again");
            }
        }
        self.shared.poke();
    }

    /// Reads a message that is not kept in memory.
    pub(super) fn read(&self, id: u64) -> Result<Message> {
        let place = {
            let tail = lock(&self.shared.tail);
            let live = tail.ledger.messages.get(&id);
            live.and_then(|live| {
                let held = tail.ledger.segments.get(&live.spot.segment)?;
                Some((held.segment.clone(), live.spot))
            })
        };
        let Some((segment, spot)) = place else {
            return Err(recover::wrong(format!("message {id} is not in it any more")));
        };
        let payload = segment
            .read(spot.offset, spot.bytes)
            .map_err(|error| wrong(format!("message {id} cannot be read back: {error}")))?;
        let message = match frame::read(&payload) {
            Some(frame::Record::Message { body, .. }) => frame::read_stored(body),
            _ => None,
        };
        message.ok_or_else(|| {
            wrong(format!("{} has no message at byte {}", segment.path.display(), spot.offset))
        })
    }

    /// Ends the thread; what was promised is on disk.
    pub(super) fn end(&self, crash: bool) {
        let mut pending = lock(&self.shared.pending);
        if pending.end.is_none() {
            // What is looked at stays as it was found.
            let crash = crash || self.shared.table.config.is_looked_at;
            pending.end = Some(if crash { End::Crash } else { End::Close });
            self.shared.ended.store(true, Ordering::Release);
            self.shared.arrived.notify_one();
        }
    }

    /// Waits until the thread has ended and the folder is free.
    pub(super) async fn gone(&self) {
        // The sender lives in `shared`, so waiting can only end well.
        let _ = self.shared.gone.subscribe().wait_for(|gone| *gone).await;
    }

    /// As [`Log::gone`], where nothing can be awaited.
    pub(super) fn join(&self) {
        if let Some(thread) = lock(&self.thread).take() {
            // A panic there was told when it happened.
            let _ = thread.join();
        }
    }
}

impl Refusal {
    fn into_error(self) -> Error {
        match self {
            Self::Full(reason) => disk(reason),
            Self::Failed(error) => error,
        }
    }
}

/// What is said of a file that its path does not lead to.
fn misplaced(segment: &Segment) -> String {
    format!(
        "'{}' was removed, moved or replaced while it is in use, and this process has the last copy open, to which nothing \
         more is written; run 'sluice backup DIR' before the process ends and restore that, or move the file back",
        segment.path.display()
    )
}

/// Locks the folder; one that is looked at as far as its lock is there.
fn lock_folder(dir: &Path, is_looked_at: bool) -> Result<Option<File>> {
    let path = dir.join("lock");
    let failed = |error: io::Error| unusable(&path, &error);
    let mut options = File::options();
    match is_looked_at {
        true => options.read(true),
        false => options.create(true).truncate(false).write(true),
    };
    let opened = options.custom_flags(segment::NO_LINK).open(&path);
    let file = match opened {
        Err(error) if is_looked_at && error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let mut tries = 0;
    let locked = loop {
        match file.try_lock() {
            // A process that this one has just begun holds what was open until it runs its own program.
            Err(TryLockError::WouldBlock) if tries < LOCK_TRIES_MAX => tries += 1,
            locked => break locked,
        }
        #[expect(clippy::disallowed_methods, reason = "a lock tells nobody when it is let go")]
        std::thread::sleep(LOCK_PAUSE);
    };
    match locked {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(Error::LogUnopened {
            reason: format!("{} is in use by another broker; stop it, or use another folder", dir.display()),
        }),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Puts what the log holds into the queues, oldest first, bodies left on disk.
fn fill(table: &Table, tail: &Tail) {
    for (id, known) in &tail.ledger.topics {
        table.ensure(&known.topic, *id, known.queues.iter().map(|(name, queue)| (&**name, *queue)));
    }
    let mut ids: Vec<u64> = tail.ledger.messages.keys().copied().collect();
    ids.sort_unstable();
    for id in ids {
        let Some(live) = tail.ledger.messages.get(&id) else { continue };
        let Some(known) = tail.ledger.topics.get(&live.topic) else { continue };
        let Ok(topic) = table.find(&known.topic) else { continue };
        let bytes = usize::try_from(live.spot.bytes).unwrap_or(usize::MAX);
        let stored = Arc::new(Stored {
            id,
            message: None,
            bytes,
            deadline: None,
            _share: None,
            _request: None,
            _backlog: Some(topic.waiting.take(bytes as u64)),
        });
        let mut state = topic.lock();
        for pending in &live.pending {
            if let Some(queue) = state.queues.iter_mut().find(|queue| queue.id == pending.queue) {
                queue.push(Entry { stored: stored.clone(), attempts: pending.attempts });
            }
        }
    }
}

impl Shared {
    fn unusable(&self) -> Error {
        self.dead.get().map_or_else(TopicState::stopped, |reason| disk(reason.clone()))
    }

    fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn poke(&self) {
        let mut pending = lock(&self.pending);
        if !pending.poked {
            pending.poked = true;
            self.arrived.notify_one();
        }
    }
}
