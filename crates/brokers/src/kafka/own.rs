//! A reader's own inbox. All inboxes of a process share a topic that it makes, in which each message says for which it is; the
//! registry says which inboxes there are. Followed topics are read without a group, from their end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as SyncMutex, Weak};
use std::time::Duration;

use krafka::ConsumerRecord;
use krafka::admin::{AdminClient, DeleteTopicsOptions, OffsetSpec};
use sluice_bus::{BoxFuture, Delivery, Error, Inbox, InboxAddress, Losses, Result};
use sluice_schema::{Class, Topic};
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::book::Book;
use super::registry::{Entry, InboxEntry, Key};
use super::tail::{Following, Push, Tail};
use super::{Core, names};
use crate::local::{lock, stopped};

/// Unread messages that an inbox holds; beyond it messages are dropped and counted.
const INBOX_MESSAGES_MAX: usize = 65_536;
/// Bytes of the unread messages that an inbox holds.
const INBOX_BYTES_MAX: usize = 256 << 20;
/// How long what nobody read is kept.
const RETENTION: Duration = Duration::from_secs(300);
/// How often a process looks for its topic of inboxes, which somebody may remove.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often a topic is looked at that is made again while it is being followed.
const FOLLOW_TRIES_MAX: u32 = 4;

/// The topic of a process's inboxes.
pub(super) struct Inboxes {
    book: Arc<Book>,
    client: Arc<AdminClient>,
    tail: Arc<Tail>,
    tasks: TaskTracker,
    stop: CancellationToken,
    within: Duration,
    /// How often this process says that it lives.
    alive_every: Duration,
    message_bytes_max: usize,
    open: Mutex<Option<Arc<Open>>>,
}

/// The one that is read now.
struct Open {
    process: String,
    /// Where messages go.
    boxes: Arc<SyncMutex<HashMap<String, Weak<Own>>>>,
    /// Cancelled when somebody removed the topic or an inbox in it: all of them end.
    gone: CancellationToken,
    _following: Following,
    _stop: DropGuard,
}

/// What inboxes need.
pub(super) struct Parts {
    pub(super) book: Arc<Book>,
    pub(super) client: Arc<AdminClient>,
    pub(super) tail: Arc<Tail>,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    pub(super) within: Duration,
    pub(super) alive_every: Duration,
    pub(super) message_bytes_max: usize,
}

impl Inboxes {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { book, client, tail, tasks, stop, within, alive_every, message_bytes_max } = parts;
        Self {
            book,
            client,
            tail,
            tasks,
            stop,
            within,
            alive_every,
            message_bytes_max,
            open: Mutex::default(),
        }
    }

    /// A new inbox, on record. Ends with the token.
    async fn add(&self, own: &Arc<Own>) -> Result<CancellationToken> {
        let mut held = self.open.lock().await;
        let open = match held.as_ref().filter(|open| !open.gone.is_cancelled()) {
            Some(open) => open.clone(),
            None => held.insert(Arc::new(self.make().await?)).clone(),
        };
        lock(&open.boxes).insert(own.name.clone(), Arc::downgrade(own));
        drop(held);
        let entry = InboxEntry { process: open.process.clone() };
        self.book.write(&Key::Inbox(own.name.clone()), Some(&entry), self.within).await?;
        Ok(open.gone.clone())
    }

    async fn make(&self) -> Result<Open> {
        let process = names::fresh();
        let place = names::inboxes(&process);
        let alive = Key::Process(process.clone());
        // Known to live before anybody could miss it.
        self.book.write(&alive, Some(&1), self.within).await?;
        let configs = vec![
            ("retention.ms", RETENTION.as_millis().to_string()),
            ("segment.ms", RETENTION.as_millis().to_string()),
            ("max.message.bytes", self.message_bytes_max.to_string()),
        ];
        self.book.make(&place, configs, self.within).await?;
        let boxes: Arc<SyncMutex<HashMap<String, Weak<Own>>>> = Arc::default();
        let to = boxes.clone();
        let push: Push = Arc::new(move |record: &ConsumerRecord| {
            let own = names::to(&record.headers).and_then(|name| lock(&to).get(name).and_then(Weak::upgrade));
            if let Some(own) = own {
                own.push(record, &own.direct);
            }
        });
        // A topic that was made just now may not be known everywhere yet.
        let from = self.book.offset(&place, OffsetSpec::Earliest).await?;
        let following = self.tail.follow(&place, None, from, push).await?;
        let (stop, gone) = (self.stop.child_token(), CancellationToken::new());
        let living = keep_alive(self.book.clone(), process.clone(), self.alive_every, gone.clone());
        let until = stop.clone();
        self.tasks.spawn(async move { until.run_until_cancelled(living).await });
        Ok(Open { process, boxes, gone, _following: following, _stop: stop.drop_guard() })
    }

    /// An inbox goes.
    async fn remove(&self, name: &str) {
        if let Some(open) = self.open.lock().await.as_ref() {
            lock(&open.boxes).remove(name);
        }
        if self.book.registry.inbox(name).is_none() {
            return;
        }
        let key = Key::Inbox(name.to_owned());
        if let Err(error) = self.book.write::<InboxEntry>(&key, None, self.within).await {
            tracing::debug!(name, %error, "an inbox stays on record until its process is missed");
        }
    }

    /// Somebody removed this one, and the topic with it or soon: the next inbox gets another topic.
    async fn lost(&self, name: &str) {
        let mut held = self.open.lock().await;
        if let Some(open) = held.take_if(|open| lock(&open.boxes).contains_key(name)) {
            open.gone.cancel();
        }
    }

    /// The process ends.
    pub(super) async fn close(&self) {
        let Some(open) = self.open.lock().await.take() else { return };
        let place = names::inboxes(&open.process);
        let options = DeleteTopicsOptions::default().timeout(self.within);
        if let Err(error) = self.client.delete_topics([&place], options).await {
            tracing::debug!(place, %error, "a topic of inboxes stays until its process is missed");
        }
        let key = Key::Process(open.process.clone());
        if let Err(error) = self.book.write::<u8>(&key, None, self.within).await {
            tracing::debug!(process = open.process, %error, "a process is missed later");
        }
    }
}

/// Says that a process lives, until somebody removed the topic of its inboxes.
async fn keep_alive(book: Arc<Book>, process: String, every: Duration, gone: CancellationToken) {
    let (alive, place) = (Key::Process(process.clone()), names::inboxes(&process));
    let mut said = Instant::now();
    let mut is_missed = false;
    loop {
        tokio::time::sleep(every.min(LOOK_EVERY)).await;
        match book.is_made(&place).await {
            // A broker that has just come back may not know all of its topics yet.
            Ok(false) if is_missed => return gone.cancel(),
            Ok(is_made) => is_missed = !is_made,
            Err(error) => tracing::debug!(place, %error, "a topic of inboxes could not be looked at"),
        }
        if said.elapsed() < every {
            continue;
        }
        said = Instant::now();
        if let Err(error) = book.write(&alive, Some(&1), every).await {
            tracing::debug!(process, %error, "it could not be said that this process lives");
        }
    }
}

/// The reader's end.
pub(super) struct OwnInbox {
    own: Arc<Own>,
    deliveries: Mutex<mpsc::Receiver<Delivery>>,
    /// One change at a time.
    followed: Mutex<HashMap<Topic, Followed>>,
    book: Arc<Book>,
    tail: Arc<Tail>,
    losses: Losses,
    /// Cancelled when somebody removed it.
    gone: CancellationToken,
    _gone: DropGuard,
}

struct Own {
    name: String,
    /// Stands for the address where a topic is reported.
    direct: Topic,
    stop: CancellationToken,
    out: mpsc::Sender<Delivery>,
    bytes: AtomicUsize,
    dropped: AtomicU64,
}

struct Followed {
    id: String,
    _following: Following,
}

pub(super) async fn attach(core: &Core, topics: &[Topic]) -> Result<OwnInbox> {
    for topic in topics {
        names::check_class(topic, false)?;
    }
    if core.stop.is_cancelled() {
        return Err(stopped());
    }
    let (out, deliveries) = mpsc::channel(INBOX_MESSAGES_MAX);
    let (stop, gone) = (core.stop.child_token(), CancellationToken::new());
    let name = names::inbox();
    let direct = Topic::tg(Class::Response, &name);
    let direct = direct.map_err(|error| Error::Refused { reason: error.to_string() })?;
    let own = Arc::new(Own {
        name,
        direct,
        stop: stop.clone(),
        out,
        bytes: AtomicUsize::new(0),
        dropped: AtomicU64::new(0),
    });
    let inbox = OwnInbox {
        own: own.clone(),
        deliveries: Mutex::new(deliveries),
        followed: Mutex::default(),
        book: core.book.clone(),
        tail: core.tail.clone(),
        losses: core.losses.clone(),
        gone: gone.clone(),
        _gone: stop.clone().drop_guard(),
    };
    // However far it gets, it is taken off the record by this task.
    let (begun, added) = tokio::sync::oneshot::channel();
    let (inboxes, book) = (core.inboxes.clone(), core.book.clone());
    core.readers.spawn(async move {
        let added = inboxes.add(&own).await;
        let topic_gone = added.as_ref().ok().cloned();
        let _ = begun.send(added.map(drop));
        if let Some(topic_gone) = topic_gone {
            let removed = book.registry.until(|registry| registry.inbox(&own.name).is_none());
            let lost = topic_gone.run_until_cancelled(removed);
            if stop.run_until_cancelled(lost).await.is_some() {
                tracing::warn!(inbox = own.name, "somebody removed an inbox of this process");
                inboxes.lost(&own.name).await;
                gone.cancel();
            }
        }
        inboxes.remove(&own.name).await;
    });
    added.await.map_err(|_| stopped())??;
    for topic in topics {
        inbox.follow_one(topic).await?;
    }
    Ok(inbox)
}

impl Inbox for OwnInbox {
    fn next(&self) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(async move {
            let next = async { self.deliveries.lock().await.recv().await };
            let delivery = tokio::select! {
                biased;
                () = self.own.stop.cancelled() => return Err(stopped()),
                delivery = next => delivery.ok_or_else(stopped)?,
                () = self.gone.cancelled() => {
                    let reason = format!("the inbox '{}' was removed; attach again", self.own.name);
                    return Err(Error::Unavailable { reason });
                }
            };
            self.own.bytes.fetch_sub(delivery.message.size_bytes(), Ordering::Relaxed);
            Ok(delivery)
        })
    }

    fn address(&self) -> Option<InboxAddress> {
        Some(InboxAddress(self.own.name.as_str().into()))
    }

    fn follow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.follow_one(topic).await.inspect_err(|error| self.losses.note(error)) })
    }

    fn unfollow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            names::check_class(topic, false)?;
            self.followed.lock().await.remove(topic);
            Ok(())
        })
    }
}

impl OwnInbox {
    async fn follow_one(&self, topic: &Topic) -> Result<()> {
        names::check_class(topic, false)?;
        let mut followed = self.followed.lock().await;
        let registry = &self.book.registry;
        for _ in 0..FOLLOW_TRIES_MAX {
            let known = registry.topic(topic);
            // What is followed is looked at anew: it may be another one by now.
            let entry = match known.filter(|_| !followed.contains_key(topic)) {
                Some(entry) => Some(entry),
                None => self.book.topic(topic).await?,
            };
            let Some(entry) = entry else {
                followed.remove(topic);
                return Err(Error::NoTopic { topic: topic.clone() });
            };
            if followed.get(topic).is_some_and(|known| known.id == entry.id) {
                return Ok(());
            }
            followed.remove(topic);
            let following = match self.follow_place(topic, &entry).await {
                Ok(following) => following,
                // Removed meanwhile, or about to be made again.
                Err(_) if !registry.is_there(topic, &entry.id) => continue,
                Err(error) => return Err(error),
            };
            followed.insert(topic.clone(), Followed { id: entry.id.clone(), _following: following });
            if registry.is_there(topic, &entry.id) {
                return Ok(());
            }
        }
        Err(Error::Unavailable { reason: format!("'{topic}' is made again and again") })
    }

    async fn follow_place(&self, topic: &Topic, entry: &Entry) -> Result<Following> {
        let place = entry.place(topic);
        let from = self.book.offset(&place, OffsetSpec::Latest).await?;
        let (own, of) = (Arc::downgrade(&self.own), topic.clone());
        let push: Push = Arc::new(move |record: &ConsumerRecord| {
            if let Some(own) = own.upgrade() {
                own.push(record, &of);
            }
        });
        self.tail.follow(&place, Some((topic.clone(), entry.id.clone())), from, push).await
    }
}

impl Own {
    fn push(&self, record: &ConsumerRecord, topic: &Topic) {
        let message = names::message(record);
        let bytes = message.size_bytes();
        let has_room = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= INBOX_BYTES_MAX;
        if has_room && self.out.try_send(Delivery::unsettled(message, topic.clone())).is_ok() {
            return;
        }
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if self.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(inbox = self.name, "a reader does not read; what is newest is dropped");
        }
    }
}
