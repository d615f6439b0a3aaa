//! A topic with its subscriptions and followers behind one lock, and the table of all topics.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::task::Waker;

use sluice_schema::{Topic, doors};
use tokio::time::Instant;

use super::backlog::{Backlog, Waiting};
use super::config::Config;
use super::own::Own;
use super::queue::{Budget, Entry, Queue, Stored};
use crate::contract::{Seen, SeenSubscription};
use crate::message::{Message, property};
use crate::shares::{self, Shares};
use crate::{Error, Result};

/// Memory that a waiting message costs beside its body and properties, in bytes, roughly.
const OVERHEAD_BYTES: usize = 128;

/// The most that a message may be said to become.
const GROWTH_MAX: u64 = 16;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a topic takes and gives nothing any more.
#[derive(Debug, Clone)]
pub(super) enum End {
    Removed,
    Stopped(Error),
}

pub(super) struct TopicState {
    pub(super) topic: Topic,
    /// Its number in the log; 0 where there is none.
    pub(super) id: u64,
    /// What waits in it.
    pub(super) waiting: Arc<Waiting>,
    /// Of the workspace's requests; nothing is in it.
    requests: shares::Share,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) end: Option<End>,
    pub(super) queues: Vec<Queue>,
    pub(super) followers: Vec<Arc<Own>>,
    unroutable: u64,
}

impl TopicState {
    fn new(topic: Topic, id: u64, table: &Table) -> Self {
        let waiting = table.backlog.of(&topic);
        let requests = table.requests.share(&doors::holder(&topic), 0);
        Self { topic, id, waiting, requests, state: Mutex::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn stopped() -> Error {
        Error::Unavailable { reason: "it is stopping".to_owned() }
    }

    fn check_open(&self, state: &State) -> Result<()> {
        match &state.end {
            None => Ok(()),
            Some(End::Removed) => Err(Error::NoTopic { topic: self.topic.clone() }),
            Some(End::Stopped(error)) => Err(error.clone()),
        }
    }

    /// Whether a `flow` message published now would be kept; counts it when not.
    pub(super) fn wants(&self) -> Result<bool> {
        let mut state = self.lock();
        self.check_open(&state)?;
        if state.queues.is_empty() {
            state.unroutable += 1;
        }
        Ok(!state.queues.is_empty())
    }

    /// Puts a `flow` message into every subscription.
    pub(super) fn enqueue(&self, id: u64, message: Message, table: &Table) -> Result<()> {
        let bytes = message.size_bytes() + OVERHEAD_BYTES;
        let weight_bytes = (bytes as u64).saturating_mul(growth(&message));
        let mut state = self.lock();
        self.check_open(&state)?;
        let in_memory =
            id == 0 || state.queues.iter().any(|q| q.bytes() + bytes <= table.config.queue_bytes_max);
        let share = if in_memory { table.memory.take(bytes) } else { None };
        if id == 0 && share.is_none() {
            let limit = table.memory.bytes_max() as u64;
            return Err(Error::Full { topic: self.topic.clone(), limit, unit: "bytes" });
        }
        let stored = Arc::new(Stored {
            id,
            message: share.is_some().then_some(message),
            bytes,
            deadline: None,
            _share: share,
            _request: None,
            _backlog: Some(self.waiting.take(weight_bytes)),
        });
        let wakers = push(&mut state.queues, &stored);
        drop(state);
        wakers.wake();
        Ok(())
    }

    /// Puts a `request` message into every subscription, or into none.
    pub(super) fn request(&self, message: Message, table: &Table) -> Result<()> {
        let full = |limit: usize, unit| Error::Full { topic: self.topic.clone(), limit: limit as u64, unit };
        let config = &table.config;
        let now = Instant::now();
        let ttl_ms = message.get(property::TTL).and_then(|text| text.parse::<u64>().ok());
        // A time too far to count never comes.
        let deadline = ttl_ms.and_then(|ms| now.checked_add(std::time::Duration::from_millis(ms)));
        let bytes = message.size_bytes() + OVERHEAD_BYTES;
        let mut state = self.lock();
        self.check_open(&state)?;
        if state.queues.is_empty() {
            state.unroutable += 1;
            return Err(Error::Unroutable { topic: self.topic.clone() });
        }
        for queue in &mut state.queues {
            queue.expire(now);
            if queue.len() >= config.request_messages_max {
                return Err(full(config.request_messages_max, "messages"));
            }
            if queue.bytes() + bytes > config.queue_bytes_max {
                return Err(full(config.queue_bytes_max, "bytes"));
            }
        }
        let Some(share) = self.requests.another(bytes) else {
            return Err(full(self.requests.most(), "bytes"));
        };
        let stored = Arc::new(Stored {
            id: 0,
            message: Some(message),
            bytes,
            deadline,
            _share: None,
            _request: Some(share),
            _backlog: None,
        });
        let wakers = push(&mut state.queues, &stored);
        drop(state);
        wakers.wake();
        Ok(())
    }

    /// Copies a `response` or `notify` message to whoever follows.
    pub(super) fn broadcast(&self, message: &Message) -> Result<()> {
        let state = self.lock();
        self.check_open(&state)?;
        for follower in &state.followers {
            follower.push(message.clone(), self.topic.clone());
        }
        Ok(())
    }

    /// Adds the subscriptions that are missing.
    pub(super) fn add_queues(&self, names: impl IntoIterator<Item = (impl AsRef<str>, u64)>) {
        let mut state = self.lock();
        for (name, id) in names {
            let name = name.as_ref();
            if !state.queues.iter().any(|queue| &*queue.name == name) {
                state.queues.push(Queue::new(name, id));
            }
        }
    }

    pub(super) fn has_queues(&self, names: &[String]) -> bool {
        let state = self.lock();
        names.iter().all(|name| state.queues.iter().any(|queue| *queue.name == **name))
    }

    /// Forgets everything and sends the readers away.
    pub(super) fn end(&self, end: End) {
        let mut state = self.lock();
        if state.end.is_some() {
            return;
        }
        state.end = Some(end);
        state.followers.clear();
        let mut wakers = Vec::new();
        for queue in &mut state.queues {
            queue.clear();
            wakers.extend(queue.wake_all());
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn seen(&self, state: &mut State, asked: &[String]) -> Seen {
        let now = Instant::now();
        let mut subscriptions: Vec<SeenSubscription> = Vec::with_capacity(state.queues.len());
        for queue in &mut state.queues {
            queue.expire(now);
            subscriptions.push(SeenSubscription {
                name: queue.name.to_string(),
                exists: true,
                ready: queue.ready() as u64,
                unsettled: Some(queue.unsettled() as u64),
                consumers: Some(queue.consumers() as u64),
                is_bound: Some(true),
            });
        }
        for name in asked {
            if !subscriptions.iter().any(|known| known.name == *name) {
                subscriptions.push(unseen(name));
            }
        }
        Seen { topic: self.topic.clone(), exists: true, subscriptions, unroutable: Some(state.unroutable) }
    }
}

fn unseen(name: &str) -> SeenSubscription {
    SeenSubscription {
        name: name.to_owned(),
        exists: false,
        ready: 0,
        unsettled: Some(0),
        consumers: Some(0),
        is_bound: Some(false),
    }
}

/// How many times its bytes a message counts for in the backlog, as its sender says, within reason.
fn growth(message: &Message) -> u64 {
    let said = message.get(property::GROWTH).and_then(|text| text.parse().ok());
    said.unwrap_or(1).clamp(1, GROWTH_MAX)
}

/// Readers to wake once the lock is gone; the usual one costs no allocation.
#[derive(Default)]
struct Wakers {
    first: Option<Waker>,
    more: Vec<Waker>,
}

impl Wakers {
    fn wake(self) {
        self.first.into_iter().chain(self.more).for_each(Waker::wake);
    }
}

fn push(queues: &mut [Queue], stored: &Arc<Stored>) -> Wakers {
    let mut wakers = Wakers::default();
    for queue in queues {
        let waker = queue.push(Entry { stored: stored.clone(), attempts: 0 });
        if wakers.first.is_none() {
            wakers.first = waker;
        } else {
            wakers.more.extend(waker);
        }
    }
    wakers
}

/// All topics of a broker and what they share.
pub(super) struct Table {
    pub(super) config: Config,
    /// For `flow` messages and inboxes.
    pub(super) memory: Arc<Budget>,
    /// For `request` messages, by workspace; those of the system are one more.
    requests: Arc<Shares>,
    /// Bytes of unsettled `flow` messages; counted, not bounded here.
    pub(super) backlog: Arc<Backlog>,
    topics: RwLock<HashMap<Topic, Arc<TopicState>>>,
    inboxes: RwLock<HashMap<Arc<str>, Arc<Own>>>,
    /// What everybody gets once it has stopped.
    stopped: OnceLock<Error>,
}

impl Table {
    pub(super) fn new(config: Config) -> Self {
        Self {
            memory: Arc::new(Budget::new(config.memory_bytes_max / if config.dir.is_some() { 2 } else { 1 })),
            requests: Shares::new(config.memory_bytes_max / 2),
            backlog: Backlog::new(config.high_water_bytes),
            config,
            topics: RwLock::default(),
            inboxes: RwLock::default(),
            stopped: OnceLock::new(),
        }
    }

    pub(super) fn check_running(&self) -> Result<()> {
        self.stopped.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<Topic, Arc<TopicState>>> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<Topic, Arc<TopicState>>> {
        self.topics.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, topic: &Topic) -> Result<Arc<TopicState>> {
        if let Some(found) = self.read().get(topic) {
            return Ok(found.clone());
        }
        self.check_running()?;
        Err(Error::NoTopic { topic: topic.clone() })
    }

    /// Makes what is missing of a topic.
    pub(super) fn ensure(
        &self,
        topic: &Topic,
        id: u64,
        queues: impl IntoIterator<Item = (impl AsRef<str>, u64)>,
    ) {
        let mut topics = self.write();
        if self.check_running().is_err() {
            return;
        }
        let state =
            topics.entry(topic.clone()).or_insert_with(|| Arc::new(TopicState::new(topic.clone(), id, self)));
        state.add_queues(queues);
    }

    /// Takes a topic away.
    pub(super) fn remove(&self, topic: &Topic) {
        // The lock is gone before readers are woken.
        let removed = self.write().remove(topic);
        if let Some(state) = removed {
            state.end(End::Removed);
        }
    }

    fn inboxes(&self) -> std::sync::RwLockReadGuard<'_, HashMap<Arc<str>, Arc<Own>>> {
        self.inboxes.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn inbox(&self, address: &Arc<str>) -> Result<Arc<Own>> {
        let found = self.inboxes().get(address).cloned();
        found.ok_or_else(|| Error::NoInbox { inbox: address.to_string() })
    }

    pub(super) fn add_inbox(&self, own: &Arc<Own>) -> Result<()> {
        let mut inboxes = self.inboxes.write().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that a stop either sees this inbox or is seen here.
        self.check_running()?;
        inboxes.insert(own.address.clone(), own.clone());
        Ok(())
    }

    pub(super) fn forget_inbox(&self, address: &Arc<str>) {
        self.inboxes.write().unwrap_or_else(PoisonError::into_inner).remove(address);
    }

    /// Ends every topic and inbox.
    pub(super) fn stop(&self, why: &Error) {
        if self.stopped.set(why.clone()).is_err() {
            return;
        }
        let topics: Vec<_> = self.read().values().cloned().collect();
        for state in topics {
            state.end(End::Stopped(why.clone()));
        }
        let inboxes: Vec<_> = self.inboxes().values().cloned().collect();
        for own in inboxes {
            own.close(Some(why.clone()));
        }
    }

    /// Looks at topics all at the same moment: every lock is held before the first count is taken, so a message that
    /// moves from one topic to the next is seen in at least one of them.
    pub(super) fn observe(&self, asked: &[(&Topic, &[String])]) -> Vec<Seen> {
        let found: Vec<Option<Arc<TopicState>>> = {
            let topics = self.read();
            asked.iter().map(|(topic, _)| topics.get(*topic).cloned()).collect()
        };
        // One order for everybody who takes more than one of these locks.
        let mut order: Vec<&Arc<TopicState>> = found.iter().flatten().collect();
        order.sort_by(|a, b| a.topic.cmp(&b.topic));
        order.dedup_by(|a, b| a.topic == b.topic);
        let mut held: HashMap<&Topic, MutexGuard<'_, State>> =
            order.into_iter().map(|state| (&state.topic, state.lock())).collect();
        let look = |(topic, names): &(&Topic, &[String]), found: &Option<Arc<TopicState>>| {
            let there = found.as_ref().zip(held.get_mut(*topic)).filter(|(_, state)| state.end.is_none());
            match there {
                Some((topic, state)) => topic.seen(state, names),
                None => Seen {
                    topic: (*topic).clone(),
                    exists: false,
                    subscriptions: names.iter().map(|name| unseen(name)).collect(),
                    unroutable: None,
                },
            }
        };
        asked
            .iter()
            .zip(&found)
            .map({
                let mut look = look;
                move |(asked, found)| look(asked, found)
            })
            .collect()
    }

    pub(super) fn list(&self, prefix: &str) -> Vec<Seen> {
        let mut topics: Vec<Topic> =
            self.read().keys().filter(|topic| topic.as_str().starts_with(prefix)).cloned().collect();
        topics.sort();
        let asked: Vec<(&Topic, &[String])> = topics.iter().map(|topic| (topic, &[][..])).collect();
        self.observe(&asked).into_iter().filter(|seen| seen.exists).collect()
    }
}

/// Whether the class of a topic has what is asked of it.
pub(super) fn check_class(topic: &Topic, with_subscriptions: bool) -> Result<()> {
    if topic.class().has_subscriptions() == with_subscriptions {
        return Ok(());
    }
    let reason = if with_subscriptions {
        format!("'{topic}' has no named subscriptions: its class is read through own inboxes")
    } else {
        format!("'{topic}' cannot be followed: its class is read through named subscriptions")
    };
    Err(Error::Refused { reason })
}
