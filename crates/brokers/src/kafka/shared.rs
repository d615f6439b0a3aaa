//! A reader of a shared subscription. The client library gives a member of a share group no further message before it has
//! settled those that it has, so a reader is as many members as it has messages in hand and one that asks for the next; only
//! one asks at a time, which keeps them in order. Members come as they are needed.
//!
//! What is wanted again later waits here under a lock that is renewed, and is released then. What the broker would drop for
//! having been handed out too often is sent once more in time, for this subscription only, with how often it was.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::future::BoxFuture as Boxed;
use futures_util::stream::FuturesUnordered;
use krafka::share_consumer::{AcknowledgementMode, AcquireMode, ShareConsumer};
use krafka::{CloseOptions, ConsumerRecord, KrafkaError};
use sluice_bus::{
    BoxFuture, Delivery, Error, Inbox, InboxAddress, Losses, Message, Result, Settle, Verdict, property,
};
use sluice_schema::{Class, Topic};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Core;
use super::address::Role;
use super::book::Book;
use super::group::{Groups, LOCK};
use super::publish::Publisher;
use super::registry::Registry;
use super::{classic, fault, names};
use crate::local::{Pauses, lock, stopped};

/// How long the broker may keep a question for messages. Members share a connection, on which all else waits for it.
const WAIT_MAX: Duration = Duration::from_millis(250);
/// How long one asks until it is looked whether what is read is still there.
const POLL_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages that wait to be tried again. With more of them nothing further is read until the first is due.
pub(super) const WAITING_MAX: usize = 32;
/// When what could not be sent once more is tried again.
const COPY_RETRY: Duration = Duration::from_secs(1);
/// How often a member asks what there is to read before it waits to be told.
const JOIN_TRIES_MAX: u32 = 4;
/// How long a member has to leave.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The reader's end.
pub(super) struct SharedInbox {
    topic: Topic,
    deliveries: tokio::sync::Mutex<mpsc::Receiver<Delivery>>,
    ended: Arc<Mutex<Option<Error>>>,
    losses: Losses,
    _gone: DropGuard,
}

/// What is read.
pub(super) struct At {
    pub(super) topic: Topic,
    pub(super) subscription: String,
    /// Which incarnation of the topic.
    id: String,
    pub(super) place: String,
    pub(super) group: String,
    /// After so many deliveries the broker drops a message of a share group.
    deliveries_max: u32,
}

pub(super) async fn attach(core: &Core, topic: &Topic, name: &str, prefetch: u32) -> Result<SharedInbox> {
    names::check_class(topic, true)?;
    if core.stop.is_cancelled() {
        return Err(stopped());
    }
    let has = |entry: &super::registry::Entry| entry.subscriptions.iter().any(|known| known == name);
    let known = core.book.registry.topic(topic).filter(has);
    let entry = match known {
        Some(entry) => Some(entry),
        None => core.book.topic(topic).await?,
    };
    let entry = entry.ok_or_else(|| Error::NoTopic { topic: topic.clone() })?;
    if !has(&entry) {
        return Err(Error::NoSubscription { topic: topic.clone(), subscription: name.to_owned() });
    }
    let place = entry.place(topic);
    let group = core.groups.name(&place, name);
    let deliveries_max = match core.groups {
        Groups::Share { .. } => core.admin.deliveries_max(&group).await?,
        Groups::Classic { .. } => u32::MAX,
    };
    let kafka = core.address.open(Role::Read, core.options.call_timeout).await?;
    let at = At {
        topic: topic.clone(),
        subscription: name.to_owned(),
        id: entry.id,
        place,
        group,
        deliveries_max,
    };
    let prefetch = prefetch.max(1) as usize;
    let stop = core.stop.child_token();
    let (out, deliveries) = mpsc::channel(prefetch);
    let (verdicts, told) = mpsc::unbounded_channel();
    let (begun, attached) = oneshot::channel();
    let ended = Arc::new(Mutex::new(None));
    let at = Arc::new(at);
    match core.groups {
        Groups::Classic { .. } => {
            let parts = classic::Parts {
                at,
                kafka,
                client: core.client.clone(),
                book: core.book.clone(),
                prefetch,
                within: core.options.call_timeout,
                stop: stop.clone(),
                out,
                verdicts,
                told,
                ended: ended.clone(),
            };
            core.readers.spawn(classic::run(parts, begun));
        }
        Groups::Share { .. } => {
            let reader = Reader {
                at,
                kafka,
                prefetch,
                book: core.book.clone(),
                publisher: core.publisher.clone(),
                stop: stop.clone(),
                out,
                verdicts,
                told,
                members: BTreeMap::new(),
                joining: None,
                numbers: 0,
                ended: ended.clone(),
            };
            core.readers.spawn(reader.run(begun));
        }
    }
    let gone = stop.drop_guard();
    attached.await.map_err(|_| stopped())??;
    let deliveries = tokio::sync::Mutex::new(deliveries);
    Ok(SharedInbox { topic: topic.clone(), deliveries, ended, losses: core.losses.clone(), _gone: gone })
}

impl Inbox for SharedInbox {
    fn next(&self) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(async move {
            match self.deliveries.lock().await.recv().await {
                Some(delivery) => Ok(delivery),
                None => {
                    let error = lock(&self.ended).clone().unwrap_or_else(stopped);
                    // Its owner learns at once of a topic that somebody removed.
                    self.losses.note(&error);
                    Err(error)
                }
            }
        })
    }

    fn address(&self) -> Option<InboxAddress> {
        None
    }

    fn follow<'a>(&'a self, _topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { Err(self.cannot_follow()) })
    }

    fn unfollow<'a>(&'a self, _topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { Err(self.cannot_follow()) })
    }
}

impl Drop for SharedInbox {
    /// What it was given and did not take does not count.
    fn drop(&mut self) {
        let deliveries = self.deliveries.get_mut();
        deliveries.close();
        while let Ok(delivery) = deliveries.try_recv() {
            delivery.untried(Duration::ZERO);
        }
    }
}

impl SharedInbox {
    fn cannot_follow(&self) -> Error {
        Error::Refused { reason: format!("a reader of '{}' follows no other topics", self.topic) }
    }
}

impl At {
    pub(super) fn absent(&self) -> Error {
        Error::NoSubscription { topic: self.topic.clone(), subscription: self.subscription.clone() }
    }

    pub(super) fn is_there(&self, registry: &Registry) -> bool {
        registry.is_there(&self.topic, &self.id)
    }

    /// A further member of the group.
    async fn join(&self, kafka: &krafka::Kafka) -> Result<ShareConsumer> {
        let doing = || format!("attaching to '{}' of '{}'", self.subscription, self.topic);
        let member = kafka
            .share_consumer(&self.group)
            .acknowledgement_mode(AcknowledgementMode::Explicit)
            .acquire_mode(AcquireMode::RecordLimit)
            .max_poll_records(1)
            .batch_size(1)
            .fetch_max_wait(WAIT_MAX)
            .metrics_push(false)
            .build()
            .await
            .map_err(|error| fault::of(&error, &doing()))?;
        let joined = async {
            let mut pauses = Pauses::new();
            for _ in 0..JOIN_TRIES_MAX {
                member.subscribe([&self.place]).await?;
                if !member.assignment().is_empty() {
                    break;
                }
                // The broker says what there is to read with its next answer, which would else be asked for much later.
                tokio::time::sleep(pauses.next()).await;
            }
            Ok(())
        };
        match joined.await {
            Ok(()) => Ok(member),
            Err(error) => {
                leave(&member).await;
                Err(fault::of(&error, &doing()))
            }
        }
    }
}

/// What it has is released, for others.
async fn leave(member: &ShareConsumer) {
    if let Err(error) = member.close_with(CloseOptions::new().timeout(LEAVE_TIMEOUT)).await {
        tracing::debug!(%error, "a member did not leave in good order; the broker misses it");
    }
}

/// What a holder decided.
#[derive(Clone, Copy)]
pub(super) struct Told {
    pub(super) number: u64,
    pub(super) verdict: Verdict,
}

pub(super) struct Settler {
    number: u64,
    /// Unbounded: at most one entry for each delivery in somebody's hands, of which there are `prefetch`.
    verdicts: mpsc::UnboundedSender<Told>,
}

impl Settler {
    pub(super) const fn new(number: u64, verdicts: mpsc::UnboundedSender<Told>) -> Self {
        Self { number, verdicts }
    }
}

impl Settle for Settler {
    fn settle(self: Box<Self>, verdict: Verdict) {
        // When the reader is gone, it has given the message back.
        let _ = self.verdicts.send(Told { number: self.number, verdict });
    }
}

/// A message that a member has.
struct Held {
    record: ConsumerRecord,
    message: Message,
    /// How often it was handed out, this time included.
    attempt: u32,
    /// How old it was when the broker got this copy of it.
    age_ms: u64,
    state: State,
    renew_at: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// In somebody's hands, by this number.
    Out(u64),
    /// Released then.
    Again(Instant),
    /// Sent once more then, as if this time had not been.
    Untried(Instant),
    /// Being sent once more.
    Copied,
}

/// A member and what it has.
struct Member {
    consumer: ShareConsumer,
    held: Option<Held>,
}

struct Reader {
    at: Arc<At>,
    kafka: krafka::Kafka,
    prefetch: usize,
    book: Arc<Book>,
    publisher: Arc<Publisher>,
    stop: CancellationToken,
    out: mpsc::Sender<Delivery>,
    verdicts: mpsc::UnboundedSender<Told>,
    told: mpsc::UnboundedReceiver<Told>,
    /// By numbers of their own.
    members: BTreeMap<u64, Member>,
    /// A further one, on its way.
    joining: Option<Boxed<'static, Result<ShareConsumer>>>,
    numbers: u64,
    ended: Arc<Mutex<Option<Error>>>,
}

/// What a member that asked got.
struct Polled {
    member: u64,
    got: std::result::Result<Vec<ConsumerRecord>, KrafkaError>,
}

/// What was done about a copy.
struct Sent {
    member: u64,
    is_sent: bool,
}

impl Reader {
    async fn run(mut self, begun: oneshot::Sender<Result<()>>) {
        match self.at.join(&self.kafka).await {
            Ok(consumer) => self.joined(consumer),
            Err(error) => {
                let _ = begun.send(Err(error));
                return;
            }
        }
        // Whoever attached may have left: then it is stopped.
        let _ = begun.send(Ok(()));
        let error = self.serve().await;
        *lock(&self.ended) = Some(error);
        self.leave().await;
    }

    /// Reads until it is stopped or what is read is gone.
    async fn serve(&mut self) -> Error {
        let (stop, at, book) = (self.stop.clone(), self.at.clone(), self.book.clone());
        let mut removed = Box::pin(book.registry.until(|registry| !at.is_there(registry)));
        let mut asking: Option<Boxed<'static, Polled>> = None;
        let mut copies: FuturesUnordered<Boxed<'static, Sent>> = FuturesUnordered::new();
        let (mut pauses, mut rest) = (Pauses::new(), None);
        loop {
            if asking.is_none() && rest.is_none() && self.has_room() {
                let idle =
                    self.members.iter().find(|(_, member)| member.held.is_none()).map(|(number, _)| *number);
                match idle {
                    Some(idle) => asking = self.ask(idle),
                    None if self.joining.is_none() => {
                        let (at, kafka) = (self.at.clone(), self.kafka.clone());
                        self.joining = Some(async move { at.join(&kafka).await }.boxed());
                    }
                    None => {}
                }
            }
            let due = self.due();
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    self.settle_all();
                    return stopped();
                }
                () = &mut removed => return self.at.absent(),
                Some(told) = self.told.recv() => {
                    if let Some(copy) = self.settled(told) {
                        copies.push(copy);
                    }
                }
                Some(sent) = copies.next() => self.copied(&sent),
                () = until(due) => copies.extend(self.take_due()),
                () = until(rest) => rest = None,
                joined = ready(&mut self.joining) => {
                    self.joining = None;
                    match joined {
                        Ok(consumer) => self.joined(consumer),
                        Err(error) => {
                            tracing::debug!(group = self.at.group, %error, "a reader has no further member yet");
                            rest = Some(Instant::now() + pauses.next());
                        }
                    }
                }
                polled = ready(&mut asking) => {
                    asking = None;
                    match polled.got {
                        Ok(records) if records.is_empty() => {
                            let reads = |member: &Member| !member.consumer.assignment().is_empty();
                            let is_idle = !self.members.get(&polled.member).is_some_and(reads);
                            if is_idle && is_gone(&book, &at).await {
                                return self.at.absent();
                            }
                        }
                        Ok(records) => {
                            pauses = Pauses::new();
                            for record in records {
                                if let Some(copy) = self.arrived(polled.member, record) {
                                    copies.push(copy);
                                }
                            }
                        }
                        Err(error) => {
                            tracing::debug!(group = self.at.group, %error, "a reader could not ask");
                            rest = Some(Instant::now() + pauses.next());
                            if error.is_fatal() {
                                // Another one takes its place.
                                self.members.remove(&polled.member);
                            }
                        }
                    }
                }
            }
        }
    }

    fn joined(&mut self, consumer: ShareConsumer) {
        self.numbers += 1;
        self.members.insert(self.numbers, Member { consumer, held: None });
    }

    /// Whether a further message may be taken.
    fn has_room(&self) -> bool {
        let held = || self.members.values().filter_map(|member| member.held.as_ref());
        let out = held().filter(|held| matches!(held.state, State::Out(_))).count();
        out < self.prefetch && held().count() - out < WAITING_MAX
    }

    fn ask(&self, member: u64) -> Option<Boxed<'static, Polled>> {
        let consumer = self.members.get(&member)?.consumer.clone();
        Some(async move { Polled { member, got: consumer.poll(POLL_TIMEOUT).await } }.boxed())
    }

    fn arrived(&mut self, number: u64, record: ConsumerRecord) -> Option<Boxed<'static, Sent>> {
        let copy = names::copy(&record.headers);
        let is_ours = copy.as_ref().is_none_or(|copy| copy.subscription == self.at.subscription);
        let message = names::message(&record);
        let (before, age_ms) = copy.map_or((0, 0), |copy| (copy.tried, copy.age_ms));
        let is_late = self.is_late(&record, &message, age_ms);
        self.numbers += 1;
        let out = self.numbers;
        let member = self.members.get_mut(&number)?;
        if !is_ours || is_late {
            settle(member.consumer.ack(&record));
            return None;
        }
        let delivered = record.delivery_count.map_or(1, |count| u32::try_from(count).unwrap_or(1).max(1));
        let attempt = before + delivered;
        let is_last = delivered + 1 >= self.at.deliveries_max;
        let state = if is_last { State::Copied } else { State::Out(out) };
        let renew_at = Instant::now() + LOCK / 3;
        member.held = Some(Held { record, message: message.clone(), attempt, age_ms, state, renew_at });
        if is_last {
            // This time does not count: it is not handed out.
            return self.copy(number);
        }
        let settler = Settler::new(out, self.verdicts.clone());
        let delivery = Delivery::new(message, self.at.topic.clone(), attempt, Box::new(settler));
        // There is room for as many as may be in hands; should the reader be gone, dropping gives it back.
        let _ = self.out.try_send(delivery);
        None
    }

    /// Whether nobody waits for the answer any more.
    fn is_late(&self, record: &ConsumerRecord, message: &Message, age_ms: u64) -> bool {
        let ttl = message.get(property::TTL).and_then(|ttl| ttl.parse::<u64>().ok());
        let Some(ttl_ms) = ttl.filter(|_| self.at.topic.class() == Class::Request) else { return false };
        self.book.registry.age_ms(record.timestamp) + age_ms > ttl_ms
    }

    fn settled(&mut self, told: Told) -> Option<Boxed<'static, Sent>> {
        let is_it =
            |member: &Member| member.held.as_ref().is_some_and(|held| held.state == State::Out(told.number));
        let number = self.members.iter().find(|(_, member)| is_it(member)).map(|(number, _)| *number)?;
        let now = Instant::now();
        match told.verdict {
            Verdict::Done => self.finish(number, ShareConsumer::ack),
            Verdict::Again(delay) if delay.is_zero() => self.finish(number, ShareConsumer::release),
            Verdict::Again(delay) => self.set(number, State::Again(now + delay)),
            Verdict::Untried(delay) if delay.is_zero() => {
                self.set(number, State::Copied);
                return self.copy(number);
            }
            Verdict::Untried(delay) => self.set(number, State::Untried(now + delay)),
        }
        None
    }

    fn set(&mut self, member: u64, state: State) {
        if let Some(held) = self.members.get_mut(&member).and_then(|member| member.held.as_mut()) {
            held.state = state;
        }
    }

    fn finish(&mut self, member: u64, how: Settling) {
        let Some(member) = self.members.get_mut(&member) else { return };
        if let Some(held) = member.held.take() {
            settle(how(&member.consumer, &held.record));
        }
    }

    /// Sends what a member has once more, as if it had not had it this time.
    fn copy(&self, member: u64) -> Option<Boxed<'static, Sent>> {
        let held = self.members.get(&member)?.held.as_ref()?;
        let copy = names::Copy {
            subscription: self.at.subscription.clone(),
            tried: held.attempt - 1,
            age_ms: held.age_ms + self.book.registry.age_ms(held.record.timestamp),
        };
        let (at, publisher, message) = (self.at.clone(), self.publisher.clone(), held.message.clone());
        let sent = async move {
            let sent = publisher.copy(&at.place, &copy, &message).await;
            if let Err(error) = &sent {
                tracing::warn!(topic = %at.topic, %error, "a message could not be sent once more yet");
            }
            Sent { member, is_sent: sent.is_ok() }
        };
        Some(sent.boxed())
    }

    fn copied(&mut self, sent: &Sent) {
        if sent.is_sent {
            self.finish(sent.member, ShareConsumer::ack);
        } else {
            // Kept until it can be sent: once released, the broker might drop it.
            self.set(sent.member, State::Untried(Instant::now() + COPY_RETRY));
        }
    }

    /// When something is to be done about what is in hand.
    fn due(&self) -> Option<Instant> {
        let due = |held: &Held| match held.state {
            State::Out(_) | State::Copied => held.renew_at,
            State::Again(at) | State::Untried(at) => at.min(held.renew_at),
        };
        self.members.values().filter_map(|member| member.held.as_ref()).map(due).min()
    }

    /// Renews locks, and gives back what has waited.
    fn take_due(&mut self) -> Vec<Boxed<'static, Sent>> {
        let now = Instant::now();
        let mut copies = Vec::new();
        let numbers: Vec<u64> = self.members.keys().copied().collect();
        for number in numbers {
            let Some(member) = self.members.get_mut(&number) else { continue };
            let Some(held) = &mut member.held else { continue };
            match held.state {
                State::Again(due) if due <= now => self.finish(number, ShareConsumer::release),
                State::Untried(due) if due <= now => {
                    held.state = State::Copied;
                    copies.extend(self.copy(number));
                }
                _ if held.renew_at <= now => {
                    held.renew_at = now + LOCK / 3;
                    settle(member.consumer.renew(&held.record));
                }
                _ => {}
            }
        }
        copies
    }

    /// What was decided before the end.
    fn settle_all(&mut self) {
        while let Ok(told) = self.told.try_recv() {
            // What is to be sent once more is, when its member leaves.
            let _ = self.settled(told);
        }
    }

    /// All members leave. What they have is released, unless it was not tried or the broker might drop it: then it is sent once
    /// more.
    async fn leave(mut self) {
        if let Some(joining) = self.joining.take()
            && let Ok(Ok(consumer)) = tokio::time::timeout(LEAVE_TIMEOUT, joining).await
        {
            self.joined(consumer);
        }
        let is_to_be_sent = |held: &Held| matches!(held.state, State::Copied | State::Untried(_));
        let untried =
            self.members.iter().filter(|(_, member)| member.held.as_ref().is_some_and(is_to_be_sent));
        let untried: Vec<u64> = untried.map(|(number, _)| *number).collect();
        let copies: Vec<_> = untried.into_iter().filter_map(|number| self.copy(number)).collect();
        let copies = tokio::time::timeout(LEAVE_TIMEOUT, futures_util::future::join_all(copies)).await;
        for sent in copies.unwrap_or_default().iter().filter(|sent| sent.is_sent) {
            self.finish(sent.member, ShareConsumer::ack);
        }
        for member in self.members.values() {
            if let Some(held) = &member.held {
                settle(member.consumer.release(&held.record));
            }
        }
        futures_util::future::join_all(self.members.values().map(|member| leave(&member.consumer))).await;
    }
}

type Settling = fn(&ShareConsumer, &ConsumerRecord) -> std::result::Result<(), KrafkaError>;

/// Whether the broker has no such topic any more, where it gives a member nothing to read.
pub(super) async fn is_gone(book: &Book, at: &At) -> bool {
    match book.is_made(&at.place).await {
        Ok(is_made) => !is_made,
        Err(error) => {
            tracing::debug!(group = at.group, %error, "it cannot be looked whether a topic is there");
            false
        }
    }
}

/// A lock that is lost is not ours to settle: then it comes again.
fn settle(outcome: std::result::Result<(), KrafkaError>) {
    if let Err(error) = outcome {
        tracing::debug!(%error, "a message could not be settled; it comes again");
    }
}

/// The outcome of what is under way; for ever where nothing is.
pub(super) async fn ready<T>(under_way: &mut Option<Boxed<'static, T>>) -> T {
    match under_way {
        Some(under_way) => under_way.await,
        None => std::future::pending().await,
    }
}

/// Waits until then; for ever where there is no such time.
pub(super) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
