//! How often each message was handed out, and how often work on it began: the broker does not count what a reader had that
//! ended, and forgets all counts with its own end. So each hand-over is noted before it happens, in one topic for the whole
//! deployment. Under each key the last count is what holds, and the broker collects those. Every process with readers reads
//! along.
//!
//! A message is in one reader's hands at a time, so nobody else writes of it meanwhile. Once a reader has read its own note it
//! has read all that others wrote of the message before: if one of them came in between, it counts on from there.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sluice_bus::{Delivery, Message, Result};
use sluice_schema::{Class, Topic};
use tokio::sync::{OnceCell, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::batch::Part;
use super::ends::Producer;
use super::link::{Arrived, Fault};
use super::links::{Links, Role};
use super::names::{Place, SYSTEM};
use super::proto::{MessageId, Property, code};
use super::system::System;
use super::tail::Tail;
use crate::local::{Pauses, lock};

const TOPIC: &str = "notes";
/// The property that says which process wrote a note.
const BY: &str = "by";
/// The property that says which of its notes it is.
const NUMBER: &str = "number";
/// How long a note counts: its message went with its topic, or was settled by somebody who did not write so.
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a message waits whose beginning could not be noted.
const AGAIN_PAUSE: Duration = Duration::from_secs(1);

/// Notes of this process's readers. Cheap to clone.
#[derive(Clone)]
pub(super) struct Notes(Arc<Inner>);

struct Inner {
    links: Arc<Links>,
    system: Arc<System>,
    tasks: TaskTracker,
    end: CancellationToken,
    within: Duration,
    by: String,
    numbers: AtomicU64,
    log: Mutex<Log>,
    /// Unbounded: two for each delivery in somebody's hands, which are bounded.
    out: mpsc::UnboundedSender<Line>,
    lines: Mutex<Option<mpsc::UnboundedReceiver<Line>>>,
    is_ready: OnceCell<()>,
}

/// What has been read, and who waits to read what it wrote.
#[derive(Default)]
struct Log {
    counts: HashMap<String, u32>,
    /// Each is told what stood there before, 0 for nothing.
    waiting: HashMap<u64, oneshot::Sender<Result<u32, Fault>>>,
}

/// What is written under a key; 0 is nothing.
struct Line {
    number: u64,
    key: String,
    count: u32,
}

/// Of the hand-overs of a message; another subscription's is another one.
pub(super) fn key(topic: &Topic, subscription: &str, id: MessageId, part: Option<Part>) -> String {
    let part = part.map_or_else(String::new, |part| format!(":{}", part.index));
    format!("{topic}|{subscription}|{}:{}{part}", id.ledger, id.entry)
}

/// Of the beginnings of work on a message: the same for every delivery of it.
pub(super) fn mark(topic: &Topic, subscription: &str, message: &Message) -> String {
    let mut hasher = DefaultHasher::new();
    message.body.hash(&mut hasher);
    for property in message.properties() {
        property.hash(&mut hasher);
    }
    format!("{topic}|{subscription}|{:016x}", hasher.finish())
}

fn place() -> Place {
    Place::system(TOPIC.to_owned())
}

impl Notes {
    pub(super) fn new(
        links: Arc<Links>,
        system: Arc<System>,
        tasks: TaskTracker,
        end: CancellationToken,
        within: Duration,
    ) -> Self {
        let (out, lines) = mpsc::unbounded_channel();
        Self(Arc::new(Inner {
            links,
            system,
            tasks,
            end,
            within,
            by: uuid::Uuid::new_v4().simple().to_string(),
            numbers: AtomicU64::new(0),
            log: Mutex::default(),
            out,
            lines: Mutex::new(Some(lines)),
            is_ready: OnceCell::new(),
        }))
    }

    /// Reads what is noted so far, and from then on along.
    pub(super) async fn ready(&self) -> Result<()> {
        self.0.is_ready.get_or_try_init(|| self.0.clone().start()).await.map(drop)
    }

    /// Notes that a message is handed out, and returns for which time. A first time of a request is not waited for, as
    /// somebody waits for its answer: should this process end in that very moment, it may not be counted.
    pub(super) async fn hand_out(&self, class: Class, key: &str, is_given_back: bool) -> u32 {
        let known = self.0.known(key);
        if class != Class::Flow && known == 0 && !is_given_back {
            self.0.write(key, 1, None);
            return 1;
        }
        match self.0.count(key, known).await {
            Ok(attempt) => attempt,
            Err(error) => {
                tracing::warn!(key, %error, "a hand-over could not be noted; should it end this process, it is not counted");
                known.saturating_add(1)
            }
        }
    }

    /// Takes the hand-over of an attempt off the count.
    pub(super) async fn untried(&self, key: &str, attempt: u32) -> Result<()> {
        let written = self.0.put(key, attempt.saturating_sub(1)).await;
        written.map(drop).map_err(|fault| fault.of("noting that nobody tried"))
    }

    /// Notes that work begins, and sets how often it has: the first time, each time noted, and this one.
    pub(super) async fn begin(&self, mark: &str, mut delivery: Delivery) -> Result<Delivery> {
        let begun = self.0.known(mark).saturating_add(1);
        match self.0.put(mark, begun).await {
            Ok(_) => {
                delivery.begun = Some(begun.saturating_add(1));
                Ok(delivery)
            }
            Err(fault) => {
                delivery.untried(AGAIN_PAUSE);
                Err(fault.of("noting that work begins"))
            }
        }
    }

    /// The message is settled.
    pub(super) fn forget(&self, key: &str) {
        self.0.write(key, 0, None);
    }

    /// The message is settled; few have been begun on.
    pub(super) fn forget_begun(&self, mark: &str) {
        if self.0.known(mark) > 0 {
            self.forget(mark);
        }
    }

    /// A topic is removed with its messages.
    pub(super) fn forget_all(&self, topic: &Topic) {
        let prefix = format!("{topic}|");
        let keys: Vec<_> =
            lock(&self.0.log).counts.keys().filter(|key| key.starts_with(&prefix)).cloned().collect();
        for key in keys {
            self.forget(&key);
        }
    }
}

impl Inner {
    async fn start(self: Arc<Self>) -> Result<()> {
        let open = || Tail::open(&self.links, place(), MessageId::EARLIEST, true);
        let tail = match open().await {
            // Who may only read and send finds it made by others.
            Err(fault) if fault.is(code::TOPIC_NOT_FOUND) => {
                self.system.make(&place(), self.within).await?;
                open().await
            }
            tail => tail,
        };
        let tail = tail.map_err(|fault| fault.of("reading notes"))?;
        let lines = lock(&self.lines).take();
        self.tasks.spawn(self.clone().read(tail));
        if let Some(lines) = lines {
            self.tasks.spawn(self.clone().write_all(lines));
        }
        // Once that is read, so is all that was written before.
        self.put(&self.by, 0).await.map(drop).map_err(|fault| fault.of("reading notes"))
    }

    fn known(&self, key: &str) -> u32 {
        lock(&self.log).counts.get(key).copied().unwrap_or(0)
    }

    async fn count(&self, key: &str, known: u32) -> Result<u32> {
        let (mut based, mut expected) = (known, known);
        loop {
            let count = based.saturating_add(1);
            let stood = self.put(key, count).await.map_err(|fault| fault.of("noting a hand-over"))?;
            if stood == expected {
                return Ok(count);
            }
            (based, expected) = (stood, count);
        }
    }

    /// Writes a count and waits until it is read; returns what stood there before.
    async fn put(&self, key: &str, count: u32) -> Result<u32, Fault> {
        let (read, is_read) = oneshot::channel();
        let number = self.write(key, count, Some(read));
        match timeout(self.within, is_read).await {
            Ok(Ok(stood)) => stood,
            Ok(Err(_)) => Err(Fault::Lost("this process disconnects".to_owned())),
            Err(_) => {
                lock(&self.log).waiting.remove(&number);
                Err(Fault::TimedOut(self.within))
            }
        }
    }

    fn write(&self, key: &str, count: u32, read: Option<oneshot::Sender<Result<u32, Fault>>>) -> u64 {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        if let Some(read) = read {
            lock(&self.log).waiting.insert(number, read);
        }
        // At the end of this process nobody waits any more.
        let _ = self.out.send(Line { number, key: key.to_owned(), count });
        number
    }

    /// Writes lines in their order. What may be lost with a connection is not written again: its message comes again.
    async fn write_all(self: Arc<Self>, mut lines: mpsc::UnboundedReceiver<Line>) {
        let mut producer = None;
        while let Some(Some(line)) = self.end.run_until_cancelled(lines.recv()).await {
            if let Err(fault) = self.send(&mut producer, &line).await {
                self.fail(line.number, fault);
            }
        }
    }

    async fn send(self: &Arc<Self>, producer: &mut Option<Producer>, line: &Line) -> Result<(), Fault> {
        let open = match producer.take().filter(|open| !open.is_closed()) {
            Some(open) => open,
            None => {
                let link = self.links.to(Role::Publish, &place()).await?;
                Producer::open(link, &place(), self.within).await?
            }
        };
        let property = |key: &str, value: String| Property { key: key.to_owned(), value };
        let properties = vec![property(BY, self.by.clone()), property(NUMBER, line.number.to_string())];
        let body = if line.count == 0 { String::new() } else { line.count.to_string() };
        let receipt = open.send(Some(line.key.clone()), properties, body.as_bytes(), self.within);
        let (inner, number) = (self.clone(), line.number);
        self.tasks.spawn(async move {
            if let Err(fault) = receipt.await {
                inner.fail(number, fault);
            }
        });
        *producer = Some(open);
        Ok(())
    }

    fn fail(&self, number: u64, fault: Fault) {
        match lock(&self.log).waiting.remove(&number) {
            Some(read) => _ = read.send(Err(fault)),
            None => tracing::debug!(?fault, "a note was not written"),
        }
    }

    async fn read(self: Arc<Self>, mut tail: Tail) {
        let mut pauses = Pauses::new();
        loop {
            let reads = async {
                while let Some(arrived) = tail.next().await {
                    pauses = Pauses::new();
                    self.take(&arrived);
                }
            };
            if self.end.run_until_cancelled(reads).await.is_none() {
                return;
            }
            let again = async {
                tokio::time::sleep(pauses.next()).await;
                tail.again().await
            };
            match self.end.run_until_cancelled(again).await {
                Some(Ok(())) => {}
                Some(Err(fault)) => {
                    tracing::debug!(?fault, "notes cannot be read yet");
                    // Somebody may have removed it.
                    if let Err(error) = self.system.make(&place(), self.within).await {
                        tracing::debug!(%error, "{SYSTEM}/{TOPIC} cannot be made");
                    }
                }
                None => return,
            }
        }
    }

    fn take(&self, arrived: &Arrived) {
        let metadata = &arrived.metadata;
        let Some(key) = &metadata.key else { return };
        let is_old = Duration::from_millis(metadata.publish_time) + MAX_AGE
            < SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let count = read(&arrived.body).filter(|_| !is_old);
        let mut log = lock(&self.log);
        let stood = match count {
            Some(count) => log.counts.insert(key.clone(), count),
            None => log.counts.remove(key),
        };
        let property = |name: &str| {
            metadata.properties.iter().find(|property| property.key == name).map(|found| found.value.as_str())
        };
        if property(BY) == Some(&self.by)
            && let Some(number) = property(NUMBER).and_then(|number| number.parse().ok())
            && let Some(read) = log.waiting.remove(&number)
        {
            let _ = read.send(Ok(stood.unwrap_or_default()));
        }
        drop(log);
        if is_old && !arrived.body.is_empty() {
            self.write(key, 0, None);
        }
    }
}

/// What cannot be read says nothing.
fn read(body: &[u8]) -> Option<u32> {
    std::str::from_utf8(body).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_cannot_be_read_is_none() {
        assert_eq!(read(b"3"), Some(3));
        for body in ["", "x", "-1", "4294967296"] {
            assert_eq!(read(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn messages_are_told_apart_by_what_is_in_them_and_who_reads_them() {
        let topic = Topic::parse("flow:tg:a").unwrap();
        let (one, two) = (Message::new("b").with("id", "1"), Message::new("b").with("id", "2"));
        let marks = [mark(&topic, "s", &one), mark(&topic, "s", &two), mark(&topic, "t", &one)];
        assert!(marks[0] != marks[1] && marks[0] != marks[2], "{marks:?}");
        assert_eq!(marks[0], mark(&topic, "s", &one.clone()));
    }
}
