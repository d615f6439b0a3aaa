//! Typed ends: sending messages, and calls that wait for their answers on the one reply inbox of a process.
//!
//! # Flow
//! [`Replies`] holds the inbox and a table of who waits for which id. A [`Client`] follows its response topic with that
//! inbox before its first question, so an answer cannot be missed. A call stamps an id, registers, publishes, waits.
//!
//! # Guarantees
//! A call ends with its answer, a typed error, or its deadline. One whose question was in a queue that somebody removed, and
//! of which nothing came, ends soon after that is known (`lost`). An answer that nobody waits for is dropped. A body that
//! cannot be read fails the one call it belongs to. Who works on a question can learn that its asker has left, also when
//! that is another process ([`Foreign`]).
//!
//! # Assumes
//! Somebody drives [`Replies::run`]; until then calls wait for their deadline.

use std::collections::HashMap;
use std::convert::Infallible;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde::Serialize;
use sluice_schema::{Exchange, Topic, message, wire};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::contract::{Address, Broker, Inbox, InboxAddress};
use crate::message::{Message, property};
use crate::shares::Shares;
use crate::{Error, ErrorKind, Renewing, Result, trace};

mod lost;
mod parts;

/// Parts of one streamed answer that may wait unread before the call fails.
const UNREAD_PARTS_MAX: usize = 1_024;
/// Bytes of one streamed answer that may wait unread before the call fails; a single larger part still arrives.
const UNREAD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a fresh client waits for the reply inbox to come up.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);
/// Askers that have left and whose workers are not told yet; more are not told.
const LEAVING_MAX: usize = 1_024;
/// Pauses before a full service is asked again.
const FULL_PAUSE_MIN: Duration = Duration::from_millis(50);
const FULL_PAUSE_MAX: Duration = Duration::from_secs(2);
const REATTACH_DELAY_MIN: Duration = Duration::from_millis(100);
const REATTACH_DELAY_MAX: Duration = Duration::from_secs(2);

/// Sends messages of one type to one topic.
pub struct Sender<T: ?Sized> {
    broker: Arc<dyn Broker>,
    address: Address,
    topic: Topic,
    message: PhantomData<fn(&T)>,
}

impl<T: ?Sized> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            broker: self.broker.clone(),
            address: self.address.clone(),
            topic: self.topic.clone(),
            message: PhantomData,
        }
    }
}

impl<T: Serialize + ?Sized> Sender<T> {
    /// An end that publishes to `topic`, whether or not anybody reads it.
    pub fn new(broker: Arc<dyn Broker>, topic: Topic) -> Self {
        Self { broker, address: Address::Topic(topic.clone()), topic, message: PhantomData }
    }

    /// An end that publishes to a `topic` with a reader on record: without one, sending fails.
    pub fn subscribed(broker: Arc<dyn Broker>, topic: Topic) -> Self {
        Self { broker, address: Address::Subscribed(topic.clone()), topic, message: PhantomData }
    }

    /// Where it publishes.
    #[must_use]
    pub const fn topic(&self) -> &Topic {
        &self.topic
    }

    /// Sends a message; on return the broker has it.
    ///
    /// # Errors
    /// As [`Broker::publish`].
    pub async fn send(&self, message: &T) -> Result<()> {
        self.send_message(Message::new(wire::encode(message))).await
    }

    /// Sends a message with properties already set.
    ///
    /// # Errors
    /// As [`Broker::publish`].
    pub async fn send_message(&self, mut message: Message) -> Result<()> {
        trace::stamp(&mut message);
        self.broker.publish(&self.address, message).await
    }
}

/// The reply inbox of a process, shared by all its clients. Cheap to clone.
#[derive(Clone)]
pub struct Replies {
    shared: Arc<Shared>,
}

struct Shared {
    broker: Arc<dyn Broker>,
    waiting: Mutex<HashMap<Box<str>, Waiter>>,
    /// Bytes of parts that wait unread, of all calls, by the workspace that is asked.
    unread: Arc<Shares>,
    followed: Mutex<HashMap<Topic, usize>>,
    inbox: watch::Sender<Option<Arc<Renewing>>>,
    /// Questions of other processes that are worked on here.
    foreign: Mutex<HashMap<Box<str>, CancellationToken>>,
    leaving: mpsc::Sender<Leaving>,
    /// The other end, for whoever runs.
    leaving_now: Mutex<Option<mpsc::Receiver<Leaving>>>,
}

/// An asker that has left: who works on its question, and the question's id.
type Leaving = (InboxAddress, Box<str>);

impl Shared {
    /// Sees to it that a worker learns that nobody waits any more.
    fn leave(&self, worker: InboxAddress, id: &str) {
        // One that is not told works to its end, as it would have without this.
        let _ = self.leaving.try_send((worker, id.into()));
    }
}

/// The other end of a call: where parts go, and what is cancelled when it is dropped.
struct Waiter {
    to: Topic,
    parts: parts::Sender,
    left: CancellationToken,
    /// Somebody has begun to work on the question, as far as can be known here: it waits in no queue any more.
    is_begun: bool,
    /// Who works on the question, if another process has said so.
    taken_by: Option<InboxAddress>,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.left.cancel();
    }
}

impl Waiter {
    /// Hands a part over; `false` when too much waits unread already.
    fn take(&mut self, part: Message) -> bool {
        self.is_begun = true;
        part.get(property::DROPPED).is_none() && self.parts.send(Ok(part))
    }
}

impl Replies {
    /// Replies through `broker`; nothing is attached until [`Replies::run`].
    pub fn new(broker: Arc<dyn Broker>) -> Self {
        let (leaving, leaving_now) = mpsc::channel(LEAVING_MAX);
        let shared = Shared {
            foreign: Mutex::default(),
            leaving,
            leaving_now: Mutex::new(Some(leaving_now)),
            broker,
            waiting: Mutex::new(HashMap::new()),
            unread: Shares::new(parts::ALL_UNREAD_BYTES_MAX),
            followed: Mutex::new(HashMap::new()),
            inbox: watch::Sender::new(None),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The broker that calls go through.
    #[must_use]
    pub fn broker(&self) -> &Arc<dyn Broker> {
        &self.shared.broker
    }

    /// Receives answers until `stop`; after a lost connection it attaches again and follows the same topics.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = self.keep_attached(stop) => {}
            never = lost::end_calls(&self.shared) => match never {},
        }
    }

    async fn keep_attached(&self, stop: CancellationToken) {
        let mut delay = REATTACH_DELAY_MIN;
        let mut leaving = lock(&self.shared.leaving_now).take();
        while !stop.is_cancelled() {
            if let Ok(inbox) = self.attach().await {
                delay = REATTACH_DELAY_MIN;
                self.shared.inbox.send_replace(Some(inbox.clone()));
                let received = async {
                    tokio::select! {
                        error = self.receive(&*inbox) => error,
                        never = self.tell_workers(leaving.as_mut()) => match never {},
                    }
                };
                let ended = stop.run_until_cancelled(received).await;
                self.shared.inbox.send_replace(None);
                match ended {
                    // Its connection says so once for the whole process.
                    Some(error @ Error::Unavailable { .. }) => {
                        tracing::debug!(%error, "the reply inbox was lost; attaching again");
                    }
                    Some(error) => tracing::warn!(%error, "the reply inbox was lost; attaching again"),
                    None => {}
                }
            }
            stop.run_until_cancelled(tokio::time::sleep(delay)).await;
            delay = (delay * 2).min(REATTACH_DELAY_MAX);
        }
    }

    async fn attach(&self) -> Result<Arc<Renewing>> {
        let inbox = Renewing::attach(&*self.shared.broker, Vec::new(), || ()).await?;
        let topics: Vec<Topic> = lock(&self.shared.followed).keys().cloned().collect();
        for topic in topics {
            // A topic that went with its flow is not followed again; its callers end by their deadline.
            if let Err(error) = inbox.follow(&topic).await
                && error.kind() != ErrorKind::Absent
            {
                return Err(error);
            }
        }
        Ok(Arc::new(inbox))
    }

    async fn receive(&self, inbox: &dyn Inbox) -> Error {
        loop {
            match inbox.next().await {
                Ok(mut delivery) => {
                    let message = std::mem::take(&mut delivery.message);
                    delivery.ack();
                    self.hand_over(&message);
                }
                Err(error) => return error,
            }
        }
    }

    /// Tells those who work for askers that have left.
    async fn tell_workers(&self, leaving: Option<&mut mpsc::Receiver<Leaving>>) -> Infallible {
        if let Some(leaving) = leaving {
            while let Some((worker, id)) = leaving.recv().await {
                let told = Message::new("{}").with(property::ID, &id).with(property::LEFT, "true");
                if let Err(error) = self.shared.broker.publish(&Address::Inbox(worker), told).await {
                    tracing::debug!(%error, "who works for an asker that has left could not be told");
                }
            }
        }
        std::future::pending().await
    }

    fn hand_over(&self, message: &Message) {
        let Some(id) = message.get(property::ID) else { return };
        if message.get(property::LEFT).is_some() {
            if let Some(left) = lock(&self.shared.foreign).get(id) {
                left.cancel();
            }
            return;
        }
        let mut waiting = lock(&self.shared.waiting);
        if let Some(worker) = message.get(property::TAKEN_BY).map(|worker| InboxAddress(worker.into())) {
            match waiting.get_mut(id) {
                Some(waiter) => (waiter.taken_by, waiter.is_begun) = (Some(worker), true),
                None => self.shared.leave(worker, id),
            }
            return;
        }
        let Some(waiter) = waiting.get_mut(id) else { return };
        if waiter.take(message.clone()) {
            return;
        }
        // Dropping the waiter ends the call: it sees its channel closed.
        if let Some(worker) = waiting.remove(id).and_then(|mut waiter| waiter.taken_by.take()) {
            self.shared.leave(worker, id);
        }
    }

    async fn inbox(&self) -> Result<Arc<Renewing>> {
        let mut inbox = self.shared.inbox.subscribe();
        let attached = tokio::time::timeout(ATTACH_TIMEOUT, inbox.wait_for(Option::is_some)).await;
        match attached.as_ref().map(|found| found.as_ref().map(|inbox| (**inbox).clone())) {
            Ok(Ok(Some(inbox))) => Ok(inbox),
            _ => Err(Error::Unavailable { reason: "the reply inbox is not attached".to_owned() }),
        }
    }

    /// Follows a response topic for as long as the guard lives.
    ///
    /// # Errors
    /// As [`Inbox::follow`], and when the inbox does not come up.
    pub async fn follow(&self, topic: &Topic) -> Result<Following> {
        // Written down first: an inbox that attaches from now on follows it, one that is there already is told below.
        *lock(&self.shared.followed).entry(topic.clone()).or_default() += 1;
        let following = Following { shared: Arc::downgrade(&self.shared), topic: topic.clone() };
        self.inbox().await?.follow(topic).await?;
        Ok(following)
    }

    /// What tells that the asker of a question has stopped waiting: cancelled then, or from the start when it already has.
    /// `None` when another process asked, since nothing tells of that here. To be called by whoever begins to work on it: its
    /// call is known from then on to wait in no queue.
    #[must_use]
    pub fn left(&self, question: &Message) -> Option<CancellationToken> {
        let id = question.get(property::ID)?;
        if let Some(waiter) = lock(&self.shared.waiting).get_mut(id) {
            waiter.is_begun = true;
            return Some(waiter.left.clone());
        }
        let ours = self.shared.inbox.borrow().as_ref().and_then(|inbox| inbox.address())?;
        (question.get(property::REPLY_TO)? == &*ours.0).then(|| {
            let left = CancellationToken::new();
            left.cancel();
            left
        })
    }

    /// What ties work on a question of another process to its asker; `None` for a question of this process, or one whose
    /// asker has no inbox.
    #[must_use]
    pub fn foreign(&self, question: &Message) -> Option<Foreign> {
        let (id, asker) = (question.get(property::ID)?, question.get(property::REPLY_TO)?);
        let own = self.shared.inbox.borrow().as_ref().and_then(|inbox| inbox.address())?;
        if *asker == *own.0 {
            return None;
        }
        let left = CancellationToken::new();
        lock(&self.shared.foreign).insert(id.into(), left.clone());
        let (id, asker) = (id.into(), InboxAddress(asker.into()));
        Some(Foreign { shared: self.shared.clone(), id, asker, own, left })
    }

    /// Publishes a question and returns the call that waits for its answer. Sets the id, the reply address and the time
    /// the answer is waited for.
    ///
    /// # Errors
    /// As [`Broker::publish`], and when the inbox does not come up.
    pub async fn ask(&self, to: &Topic, mut question: Message, patience: Patience) -> Result<RawCall> {
        let started = Instant::now();
        let inbox = self.inbox().await?;
        let id = uuid::Uuid::new_v4().to_string();
        question.set(property::ID, &id);
        trace::stamp(&mut question);
        if let Some(InboxAddress(address)) = inbox.address() {
            question.set(property::REPLY_TO, &address);
        }
        let ttl_ms = patience.total.as_millis().to_string();
        question.set(property::TTL, &ttl_ms);
        let (sender, parts) = parts::parts(&self.shared.unread, to);
        let left = CancellationToken::new();
        let waiter = Waiter { to: to.clone(), parts: sender, left, is_begun: false, taken_by: None };
        lock(&self.shared.waiting).insert(id.as_str().into(), waiter);
        let shared = self.shared.clone();
        let call = RawCall { shared, id, to: to.clone(), parts, patience, started };
        let address = Address::Topic(to.clone());
        match tokio::time::timeout(patience.total, self.shared.broker.publish(&address, question)).await {
            Ok(sent) => sent.map(|()| call),
            Err(_) => Err(call.timed_out()),
        }
    }
}

/// How long a call waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For the next message of the answer.
    pub idle: Duration,
    /// For the last one, counted from the question.
    pub total: Duration,
}

impl Patience {
    /// One deadline, end to end.
    #[must_use]
    pub const fn total(total: Duration) -> Self {
        Self { idle: total, total }
    }
}

/// Keeps a response topic followed; see [`Replies::follow`].
pub struct Following {
    shared: Weak<Shared>,
    topic: Topic,
}

impl Drop for Following {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut followed = lock(&shared.followed);
        if let Some(count) = followed.get_mut(&self.topic) {
            *count -= 1;
            if *count == 0 {
                // The binding itself goes with the topic or with the inbox; after this it only costs ignored copies.
                followed.remove(&self.topic);
                if let Some(inbox) = &*shared.inbox.borrow() {
                    inbox.forget(&self.topic);
                }
            }
        }
    }
}

/// A question under way, untyped. Dropping it stops waiting.
pub struct RawCall {
    shared: Arc<Shared>,
    id: String,
    to: Topic,
    parts: parts::Receiver,
    patience: Patience,
    started: Instant,
}

impl RawCall {
    /// The id that the question carries.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The broker that it was asked over.
    #[must_use]
    pub fn broker(&self) -> &dyn Broker {
        &*self.shared.broker
    }

    /// The next message of the answer. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when patience runs out, [`Error::Full`] when too many parts waited unread, of this call or of all,
    /// [`Error::QuestionLost`] when the question seems to have gone with its queue.
    pub async fn next(&mut self) -> Result<Message> {
        let deadline = (Instant::now() + self.patience.idle).min(self.started + self.patience.total);
        match tokio::time::timeout_at(deadline, self.parts.next()).await {
            Ok(Some(part)) => part,
            Ok(None) => Err(Error::Full {
                topic: self.to.clone(),
                limit: UNREAD_PARTS_MAX as u64,
                unit: "unread answer parts",
            }),
            Err(_) => Err(self.timed_out()),
        }
    }

    fn timed_out(&self) -> Error {
        let after_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Error::TimedOut { what: self.to.to_string(), after_ms }
    }
}

impl Drop for RawCall {
    fn drop(&mut self) {
        let waiter = lock(&self.shared.waiting).remove(self.id.as_str());
        // After the last part nobody works on it any more, and who is told so ignores it.
        if let Some(worker) = waiter.and_then(|mut waiter| waiter.taken_by.take()) {
            self.shared.leave(worker, &self.id);
        }
    }
}

/// A question of another process that is worked on here, for as long as this lives.
///
/// # Flow
/// Work that takes time is announced to the asker's inbox. An asker that stops waiting tells whoever announced itself;
/// one that has stopped before tells it at once; one whose inbox is gone is known by that. Askers that are not ours have no
/// inbox and see nothing of this.
pub struct Foreign {
    shared: Arc<Shared>,
    id: Box<str>,
    asker: InboxAddress,
    own: InboxAddress,
    left: CancellationToken,
}

impl Foreign {
    /// Cancelled when the asker is known to have stopped waiting.
    #[must_use]
    pub const fn left(&self) -> &CancellationToken {
        &self.left
    }

    /// Tells the asker who works on its question. May be repeated.
    pub async fn announce(&self) {
        let taken = Message::new("{}").with(property::ID, &self.id).with(property::TAKEN_BY, &self.own.0);
        match self.shared.broker.publish(&Address::Inbox(self.asker.clone()), taken).await {
            Err(error) if error.kind() == ErrorKind::Absent => self.left.cancel(),
            Err(error) => tracing::debug!(%error, "an asker could not be told who works for it"),
            Ok(()) => {}
        }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        lock(&self.shared.foreign).remove(&self.id);
    }
}

/// Asks one service. Follows its response topic from the start.
pub struct Client<X: Exchange> {
    replies: Replies,
    request: Topic,
    _following: Option<Following>,
    exchange: PhantomData<fn() -> X>,
}

impl<X: Exchange> Client<X> {
    /// A client of the service behind `request`, whose answers may also come on `response`.
    ///
    /// # Errors
    /// As [`Replies::follow`].
    pub async fn new(replies: &Replies, request: Topic, response: &Topic) -> Result<Self> {
        let following = replies.follow(response).await?;
        Ok(Self { replies: replies.clone(), request, _following: Some(following), exchange: PhantomData })
    }

    /// A client whose response topic the caller keeps followed by other means.
    #[must_use]
    pub fn followed(replies: &Replies, request: Topic) -> Self {
        Self { replies: replies.clone(), request, _following: None, exchange: PhantomData }
    }

    /// Where it asks.
    #[must_use]
    pub const fn request_topic(&self) -> &Topic {
        &self.request
    }

    /// Asks and waits for the last message of the answer. A failure that the service reports is in the answer's `error`.
    ///
    /// # Errors
    /// As [`Replies::ask`] and [`RawCall::next`]; [`Error::Decode`] when the answer cannot be read.
    pub async fn call(&self, question: &X::Request, within: Duration) -> Result<X::Response> {
        let mut call = self.stream(question, Patience::total(within)).await?;
        loop {
            let part = call.part().await?;
            if X::is_last(&part) {
                return Ok(part);
            }
        }
    }

    /// Asks and hands out the answer message by message.
    ///
    /// # Errors
    /// As [`Replies::ask`].
    pub async fn stream(&self, question: &X::Request, patience: Patience) -> Result<Call<X>> {
        self.stream_message(Message::new(wire::encode(question)), patience).await
    }

    /// As [`Client::stream`] with properties (a trace id) already set. Where the service has too many questions waiting, this
    /// waits with them, as long as the call may take.
    ///
    /// # Errors
    /// As [`Replies::ask`].
    pub async fn stream_message(&self, question: Message, patience: Patience) -> Result<Call<X>> {
        let until = Instant::now() + patience.total;
        let mut pause = FULL_PAUSE_MIN;
        loop {
            let left = Patience { total: until.saturating_duration_since(Instant::now()), ..patience };
            match self.replies.ask(&self.request, question.clone(), left).await {
                // Nothing was published.
                Err(Error::Full { .. }) if left.total > pause => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(FULL_PAUSE_MAX);
                }
                raw => return raw.map(|raw| Call { raw, ended: false, exchange: PhantomData }),
            }
        }
    }
}

/// An answer that comes in parts. Dropping it stops waiting.
pub struct Call<X: Exchange> {
    raw: RawCall,
    ended: bool,
    exchange: PhantomData<fn() -> X>,
}

impl<X: Exchange> Call<X> {
    /// The next part, or `None` after the last. Cancel-safe.
    ///
    /// # Errors
    /// As [`RawCall::next`]; [`Error::Decode`] when the part cannot be read.
    pub async fn next(&mut self) -> Result<Option<X::Response>> {
        if self.ended {
            return Ok(None);
        }
        let part = self.part().await?;
        self.ended = X::is_last(&part);
        Ok(Some(part))
    }

    async fn part(&mut self) -> Result<X::Response> {
        let message = self.raw.next().await?;
        Ok(wire::decode(&message.body)?)
    }
}

/// A service's failure as an error of the asker: what [`Exchange::error`] told.
#[must_use]
pub fn told<X: Exchange>(response: &X::Response) -> Option<message::Error> {
    X::error(response).cloned()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
