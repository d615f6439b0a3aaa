//! The reading end of what has no group: the registry, the leases, inboxes and followed topics. One task reads all of them,
//! each from an offset that is given, and goes on from what is there where the broker has dropped what comes next.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use krafka::consumer::{AutoOffsetReset, Consumer};
use krafka::{ConsumerRecord, KrafkaError};
use sluice_bus::Result;
use sluice_schema::Topic;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::address::{Address, Role};
use super::fault;
use super::registry::{Log, Registry};
use crate::local::{Pauses, lock, stopped};

/// How long the broker may keep a question for messages. What is to be followed in addition waits for it.
const WAIT_MAX: Duration = Duration::from_millis(250);
const POLL_TIMEOUT: Duration = Duration::from_secs(5);
/// Changes of what is read that wait.
const CHANGES_MAX: usize = 256;

pub(super) type Push = Arc<dyn Fn(&ConsumerRecord) + Send + Sync>;

pub(super) struct Tail {
    changes: mpsc::Sender<Change>,
    followers: Mutex<HashMap<String, Vec<Follower>>>,
    numbers: AtomicU64,
}

enum Change {
    Begin { read: Read, from: i64, done: oneshot::Sender<Result<()>> },
    End { place: String },
}

/// Which incarnation of a topic it is; several can have one place at the broker, one after the other.
type Of = Option<(Topic, String)>;

/// A topic that is read, and what of: one that is removed is not read any more.
struct Read {
    place: String,
    of: Of,
}

struct Follower {
    number: u64,
    of: Of,
    from: i64,
    push: Push,
}

/// Following ends when it is dropped.
pub(super) struct Following {
    tail: Arc<Tail>,
    place: String,
    number: u64,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.tail.leave(&self.place, self.number);
    }
}

impl Tail {
    pub(super) fn new() -> (Arc<Self>, Changes) {
        let (changes, told) = mpsc::channel(CHANGES_MAX);
        let tail = Arc::new(Self { changes, followers: Mutex::default(), numbers: AtomicU64::new(0) });
        (tail, Changes(told))
    }

    /// Hands on what comes to a topic from an offset on. On return it is read.
    pub(super) async fn follow(
        self: &Arc<Self>,
        place: &str,
        of: Of,
        from: i64,
        push: Push,
    ) -> Result<Following> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let follower = Follower { number, of: of.clone(), from, push };
        lock(&self.followers).entry(place.to_owned()).or_default().push(follower);
        let following = Following { tail: self.clone(), place: place.to_owned(), number };
        let (done, begun) = oneshot::channel();
        let read = Read { place: place.to_owned(), of };
        let change = Change::Begin { read, from, done };
        self.changes.send(change).await.map_err(|_| stopped())?;
        begun.await.map_err(|_| stopped())??;
        Ok(following)
    }

    fn leave(&self, place: &str, number: u64) {
        let mut followers = lock(&self.followers);
        let Some(of) = followers.get_mut(place) else { return };
        of.retain(|follower| follower.number != number);
        if of.is_empty() {
            followers.remove(place);
            // Where there is no room, it is read on for nobody until somebody else leaves.
            let _ = self.changes.try_send(Change::End { place: place.to_owned() });
        }
    }

    fn is_followed(&self, place: &str) -> bool {
        lock(&self.followers).get(place).is_some_and(|all| !all.is_empty())
    }

    fn hand_on(&self, of: &Of, record: &ConsumerRecord) {
        let wants = |follower: &&Follower| follower.from <= record.offset && follower.of == *of;
        let pushes: Vec<Push> = match lock(&self.followers).get(&*record.topic) {
            Some(all) => all.iter().filter(wants).map(|follower| follower.push.clone()).collect(),
            None => return,
        };
        pushes.iter().for_each(|push| push(record));
    }
}

/// What the task is told.
pub(super) struct Changes(mpsc::Receiver<Change>);

/// The reading end itself.
pub(super) struct Reading {
    address: Arc<Address>,
    within: Duration,
    consumer: Consumer,
    /// What this consumer's connections have read and does not read any more: it would ask for the topic that was there, not for one that is made
    /// again under that name.
    spent: HashSet<String>,
    tail: Arc<Tail>,
    registry: Arc<Registry>,
    changes: mpsc::Receiver<Change>,
    /// What is read now.
    reads: Vec<Read>,
}

/// With connections of its own, since those remember which topic has a name.
async fn consumer(address: &Address, within: Duration) -> Result<Consumer> {
    let consumer = address
        .open(Role::Tail, within)
        .await?
        .consumer_without_group()
        .auto_offset_reset(AutoOffsetReset::Earliest)
        .fetch_max_wait(WAIT_MAX)
        .metrics_push(false)
        .build();
    consumer.await.map_err(|error| fault::of(&error, "reading the registry"))
}

impl Reading {
    /// Reads the registry and the leases from these offsets on.
    pub(super) async fn open(
        address: Arc<Address>,
        within: Duration,
        tail: Arc<Tail>,
        registry: Arc<Registry>,
        changes: Changes,
        begins: [(Log, i64); 2],
    ) -> Result<Self> {
        let consumer = consumer(&address, within).await?;
        let (spent, reads, changes) = (HashSet::new(), Vec::new(), changes.0);
        let mut reading = Self { address, within, consumer, spent, tail, registry, changes, reads };
        for (log, offset) in begins {
            reading.registry.begin(log, offset);
            reading.begin(Read { place: log.name().to_owned(), of: None }, offset).await?;
        }
        Ok(reading)
    }

    async fn begin(&mut self, read: Read, from: i64) -> Result<()> {
        match self.reads.iter().find(|known| known.place == read.place).map(|known| known.of == read.of) {
            Some(true) => return Ok(()),
            // What was there under this name is gone.
            Some(false) => self.end(&read.place).await,
            None => {}
        }
        if self.spent.contains(&read.place) {
            self.renew().await?;
        }
        let begun = async {
            self.consumer.assign(&read.place, vec![0]).await?;
            self.consumer.seek(&read.place, 0, from).await
        };
        begun.await.map_err(|error| fault::of(&error, &format!("following '{}'", read.place)))?;
        self.reads.push(read);
        Ok(())
    }

    /// Goes on with another consumer from where this one is: this one would ask for topics that are gone.
    async fn renew(&mut self) -> Result<()> {
        let fresh = consumer(&self.address, self.within).await?;
        let moved = async {
            for read in &self.reads {
                let Some(at) = self.consumer.position(&read.place, 0).await else { continue };
                fresh.assign(&read.place, vec![0]).await?;
                fresh.seek(&read.place, 0, at).await?;
            }
            Ok(())
        };
        moved.await.map_err(|error: KrafkaError| fault::of(&error, "reading the registry"))?;
        let spent = std::mem::replace(&mut self.consumer, fresh);
        self.spent.clear();
        if let Err(error) = spent.close().await {
            tracing::debug!(%error, "reading did not end in good order");
        }
        Ok(())
    }

    async fn end(&mut self, place: &str) {
        self.spent.insert(place.to_owned());
        self.reads.retain(|known| known.place != place);
        if let Err(error) = self.consumer.assign(place, Vec::new()).await {
            tracing::debug!(place, %error, "a topic that is not followed any more is paused");
            self.consumer.pause(place, &[0]).await;
        }
    }

    /// Reads no more of what is removed.
    async fn end_removed(&mut self) {
        let is_removed =
            |read: &&Read| read.of.as_ref().is_some_and(|(topic, id)| !self.registry.is_there(topic, id));
        let removed: Vec<(String, Of)> =
            self.reads.iter().filter(is_removed).map(|read| (read.place.clone(), read.of.clone())).collect();
        for (place, of) in removed {
            if let Some(all) = lock(&self.tail.followers).get_mut(&place) {
                all.retain(|follower| follower.of != of);
            }
            self.end(&place).await;
        }
    }

    /// Reads until it is stopped.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut pauses = Pauses::new();
        loop {
            // Dropping a poll loses nothing: what it had comes with the next one.
            let polled = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(change) = self.changes.recv() => {
                    self.change(change).await;
                    continue;
                }
                polled = self.consumer.poll(POLL_TIMEOUT) => polled,
            };
            match polled {
                Ok(records) => {
                    if !records.is_empty() {
                        self.registry.heard();
                        pauses = Pauses::new();
                    }
                    records.iter().for_each(|record| self.arrived(record));
                    if records.iter().any(|record| &*record.topic == Log::Registry.name()) {
                        self.end_removed().await;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "the registry could not be read");
                    let pause = tokio::time::sleep(pauses.next());
                    let _ = stop.run_until_cancelled(pause).await;
                }
            }
        }
        if let Err(error) = self.consumer.close().await {
            tracing::debug!(%error, "reading the registry did not end in good order");
        }
    }

    async fn change(&mut self, change: Change) {
        match change {
            Change::Begin { read, from, done } => {
                // Whoever asked may have left.
                let _ = done.send(self.begin(read, from).await);
            }
            // Somebody may have come meanwhile.
            Change::End { place } if self.tail.is_followed(&place) => {}
            Change::End { place } => self.end(&place).await,
        }
    }

    fn arrived(&self, record: &ConsumerRecord) {
        match Log::ALL.into_iter().find(|log| log.name() == &*record.topic) {
            Some(log) => {
                let (key, value) = (record.key.as_deref(), record.value.as_deref());
                self.registry.apply(log, record.offset, record.timestamp, key, value);
            }
            None => {
                let read = self.reads.iter().find(|read| *read.place == *record.topic);
                if let Some(read) = read {
                    self.tail.hand_on(&read.of, record);
                }
            }
        }
    }
}
