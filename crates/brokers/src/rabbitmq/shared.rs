//! A reader of a named queue. One task per reader owns its channel: it counts attempts before it hands out, holds what is
//! wanted later, and attaches again after a lost connection.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture as Boxed;
use futures_util::stream::{BoxStream, FuturesUnordered, SelectAll};
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery as Arrived;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel};
use sluice_bus::{
    BoxFuture, Delivery, Error, ErrorKind, Inbox, InboxAddress, Losses, Result, Settle, Verdict,
};
use sluice_schema::Topic;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::admin::Admin;
use super::fault::{self, code};
use super::link::{Closing, Link, Place};
use super::outbox::{Fault, Letter, Routed};
use super::publish::Publisher;
use super::{Core, Pauses, begun, lock, names, stopped};

/// Longest wait of a message wanted later; the broker takes unsettled messages back after half an hour.
const HOLD_MAX: Duration = Duration::from_secs(15 * 60);
/// Messages held at once without taking places of others; beyond it the reader waits for the first to be due.
const HELD_MAX: usize = 64;
/// How long a message waits whose attempt could not be counted.
const RECOUNT_PAUSE: Duration = Duration::from_secs(1);

/// The reader's end.
pub(super) struct SharedInbox {
    topic: Topic,
    queue: ShortString,
    deliveries: tokio::sync::Mutex<mpsc::Receiver<Delivery>>,
    ended: Arc<Mutex<Option<Error>>>,
    admin: Arc<Admin>,
    _gone: DropGuard,
}

pub(super) async fn attach(core: &Core, topic: &Topic, name: &str, prefetch: u32) -> Result<SharedInbox> {
    names::check_class(topic, true)?;
    if core.stop.is_cancelled() {
        return Err(stopped());
    }
    let prefetch = u16::try_from(prefetch).unwrap_or(u16::MAX).max(1);
    let place = core.consuming.place().await?;
    let queue = Queue {
        topic: topic.clone(),
        subscription: name.to_owned(),
        name: names::short(&names::queue(topic, name))?,
        prefetch,
    };
    let session = Session::open(&core.admin, &place.link, &queue, 0).await?;
    let named = queue.name.clone();
    let stop = core.stop.child_token();
    let (out, deliveries) = mpsc::channel(prefetch.into());
    let (verdicts, told) = mpsc::unbounded_channel();
    let ended = Arc::new(Mutex::new(None));
    let reader = Reader {
        queue,
        place,
        admin: core.admin.clone(),
        publisher: core.publisher.clone(),
        stop: stop.clone(),
        out,
        verdicts,
        told,
        ended: ended.clone(),
        losses: core.losses.clone(),
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "floor 1 does not see the sdk's tasks; `stop` ends this one"
    )]
    tokio::spawn(reader.run(session));
    let deliveries = tokio::sync::Mutex::new(deliveries);
    let admin = core.admin.clone();
    let _gone = stop.drop_guard();
    Ok(SharedInbox { topic: topic.clone(), queue: named, deliveries, ended, admin, _gone })
}

impl Inbox for SharedInbox {
    fn next(&self) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(async move {
            match self.deliveries.lock().await.recv().await {
                Some(delivery) => Ok(delivery),
                None => Err(lock(&self.ended).clone().unwrap_or_else(stopped)),
            }
        })
    }

    fn begin(&self, delivery: Delivery) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(begun::note(&self.admin, &self.queue, delivery))
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

impl SharedInbox {
    fn cannot_follow(&self) -> Error {
        Error::Refused { reason: format!("a reader of '{}' follows no other topics", self.topic) }
    }
}

/// What is read.
struct Queue {
    topic: Topic,
    subscription: String,
    name: ShortString,
    prefetch: u16,
}

/// What a holder decided; `session` tells verdicts over messages that the broker has long taken back.
struct Told {
    session: u64,
    tag: u64,
    later: Option<Later>,
}

/// How a message is wanted again.
#[derive(Debug, Clone, Copy)]
enum Later {
    /// Given back when this long is over.
    Counted(Duration),
    /// Nobody worked on it: a copy with the count that it had goes behind the others.
    Untried(Duration),
}

struct Settler {
    channel: Channel,
    session: u64,
    tag: u64,
    /// Unbounded: at most one entry for each delivery in somebody's hands, of which there are `prefetch`.
    verdicts: mpsc::UnboundedSender<Told>,
}

impl Settle for Settler {
    fn settle(self: Box<Self>, verdict: Verdict) {
        let later = match verdict {
            Verdict::Done => {
                // Polled once, a frame is queued for sending; its being sent is not waited for.
                let _ = self.channel.basic_ack(self.tag, BasicAckOptions::default()).now_or_never();
                None
            }
            Verdict::Again(Duration::ZERO) => {
                give_back(&self.channel, self.tag);
                None
            }
            Verdict::Again(delay) => Some(Later::Counted(delay)),
            Verdict::Untried(delay) => Some(Later::Untried(delay)),
        };
        // When the reader is gone, so is its channel, and the broker has taken the message back.
        let _ = self.verdicts.send(Told { session: self.session, tag: self.tag, later });
    }
}

fn give_back(channel: &Channel, tag: u64) {
    let options = BasicNackOptions { requeue: true, ..Default::default() };
    let _ = channel.basic_nack(tag, options).now_or_never();
}

struct Reader {
    queue: Queue,
    place: Place,
    admin: Arc<Admin>,
    publisher: Arc<Publisher>,
    stop: CancellationToken,
    out: mpsc::Sender<Delivery>,
    verdicts: mpsc::UnboundedSender<Told>,
    told: mpsc::UnboundedReceiver<Told>,
    ended: Arc<Mutex<Option<Error>>>,
    losses: Losses,
}

/// Why a session ended.
enum End {
    Left,
    Removed,
    Lost(String),
}

impl Reader {
    async fn run(mut self, mut session: Session) {
        let error = loop {
            let end = self.serve(&mut session).await;
            match end {
                End::Left => break stopped(),
                End::Removed => break self.queue.absent(),
                End::Lost(reason) => {
                    tracing::debug!(queue = %self.queue.name, reason, "a reader was cut off; attaching again");
                }
            }
            session = match self.attach_again(session.number + 1).await {
                Ok(session) => session,
                Err(error) => break error,
            };
        };
        if error.kind() == ErrorKind::Absent {
            // Its owner learns at once, also where others of its topic stayed.
            self.losses.note_removed(&self.queue.topic);
        }
        *lock(&self.ended) = Some(error);
        session.end_recounts(self.place.link.call_timeout()).await;
        let closing = session.channel.close(200, "bye".into());
        let _ = tokio::time::timeout(self.place.link.call_timeout(), closing).await;
    }

    async fn serve(&mut self, session: &mut Session) -> End {
        loop {
            self.hand_out(session);
            let due = session.held.first().map(|(at, _)| *at);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return End::Left,
                Some(told) = self.told.recv() => {
                    self.settled(session, &told).await;
                    while let Ok(told) = self.told.try_recv() {
                        self.settled(session, &told).await;
                    }
                }
                Some(recounted) = session.recounts.next() => session.recounted(recounted, &self.queue).await,
                () = until(due) => session.give_back_due().await,
                event = session.events.next() => match event {
                    Some(Event::Message(arrived)) => self.arrived(session, *arrived),
                    Some(Event::Lost(reason)) => return End::Lost(reason),
                    Some(Event::Cancelled) | None if session.channel.status().connected() => return End::Removed,
                    Some(Event::Cancelled) | None => return End::Lost("its connection was closed".to_owned()),
                },
            }
        }
    }

    fn arrived(&self, session: &mut Session, arrived: Arrived) {
        let counted = names::attempts(&arrived.properties);
        let known = names::attempts_redelivered(&arrived.properties);
        if !arrived.redelivered && known == counted + 1 {
            session.waiting.push_back((arrived, counted + 1));
            return;
        }
        let (publisher, queue) = (self.publisher.clone(), self.queue.name.clone());
        session.recounts.push(Box::pin(recount(publisher, queue, arrived, known)));
    }

    async fn settled(&self, session: &mut Session, told: &Told) {
        if told.session != session.number {
            return;
        }
        let held = session.in_hands.remove(&told.tag);
        match (told.later, held) {
            (None, _) => {}
            (Some(Later::Counted(delay)), _) => session.hold(told.tag, delay, &self.queue).await,
            (Some(Later::Untried(delay)), Some(held)) => {
                let (publisher, queue, tag) = (self.publisher.clone(), self.queue.name.clone(), told.tag);
                let stop = self.stop.clone();
                session.recounts.push(Box::pin(async move {
                    if stop.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
                        return Recounted::Later(tag);
                    }
                    held.copied_behind(&publisher, queue, tag).await
                }));
            }
            (Some(Later::Untried(_)), None) => give_back(&session.channel, told.tag),
        }
    }

    fn hand_out(&self, session: &mut Session) {
        while session.in_hands.len() < self.queue.prefetch.into() {
            let Some((arrived, attempt)) = session.waiting.pop_front() else { return };
            let settler = Settler {
                channel: (*session.channel).clone(),
                session: session.number,
                tag: arrived.delivery_tag,
                verdicts: self.verdicts.clone(),
            };
            let message = names::message(arrived.data, &arrived.properties);
            let held = InHands {
                properties: arrived.properties,
                exchange: arrived.exchange,
                body: message.body.clone(),
                attempt,
            };
            session.in_hands.insert(arrived.delivery_tag, held);
            let delivery = Delivery::new(message, self.queue.topic.clone(), attempt, Box::new(settler));
            // There is room for as many as may be in hands; should the reader be gone, dropping gives it back.
            let _ = self.out.try_send(delivery);
        }
    }

    async fn attach_again(&self, number: u64) -> Result<Session> {
        let mut pauses = Pauses::new();
        loop {
            let pause = pauses.next();
            let attempt = async {
                tokio::time::sleep(pause).await;
                Session::open(&self.admin, &self.place.link, &self.queue, number).await
            };
            match self.stop.run_until_cancelled(attempt).await {
                None => return Err(stopped()),
                Some(Err(error)) if !matches!(error.kind(), ErrorKind::Absent | ErrorKind::Refused) => {
                    tracing::debug!(queue = %self.queue.name, %error, "a reader could not attach yet");
                }
                Some(outcome) => return outcome,
            }
        }
    }
}

impl Queue {
    fn absent(&self) -> Error {
        Error::NoSubscription { topic: self.topic.clone(), subscription: self.subscription.clone() }
    }
}

enum Event {
    Message(Box<Arrived>),
    /// The broker ended the consumer: its queue was deleted.
    Cancelled,
    Lost(String),
}

/// What became of a message whose attempt was to be counted.
enum Recounted {
    /// A copy with the new count stands behind the others.
    Copied(u64),
    /// The queue went away meanwhile.
    Gone,
    /// We may not make copies: it is handed out as it is.
    AsItIs(Box<Arrived>, u32),
    /// Not now.
    Later(u64),
}

/// A copy that goes behind everything else in a queue.
fn copy(queue: ShortString, body: Bytes, properties: BasicProperties) -> Letter {
    Letter { exchange: ShortString::default(), key: queue, mandatory: true, body, properties }
}

/// A message in somebody's hands, as far as a copy needs it.
struct InHands {
    properties: BasicProperties,
    exchange: ShortString,
    body: Bytes,
    attempt: u32,
}

impl InHands {
    /// Puts a copy behind the others that was handed out one time less. Where that cannot be done, the message is given back
    /// and counted.
    async fn copied_behind(self, publisher: &Publisher, queue: ShortString, tag: u64) -> Recounted {
        let properties =
            names::counted(&self.properties, self.attempt.saturating_sub(1), self.exchange.as_str());
        let name = queue.to_string();
        match publisher.send(copy(queue, self.body, properties)).await {
            Ok(Routed::Queued) => Recounted::Copied(tag),
            Ok(Routed::Nowhere) => Recounted::Gone,
            Err(why) => {
                tracing::debug!(queue = name, ?why, "a message could not be given back uncounted");
                Recounted::Later(tag)
            }
        }
    }
}

async fn recount(
    publisher: Arc<Publisher>,
    queue: ShortString,
    mut arrived: Arrived,
    attempts: u32,
) -> Recounted {
    let properties = names::counted(&arrived.properties, attempts, arrived.exchange.as_str());
    let (name, tag) = (queue.to_string(), arrived.delivery_tag);
    let body = Bytes::from(std::mem::take(&mut arrived.data));
    let sent = publisher.send(copy(queue, body.clone(), properties)).await;
    arrived.data = body.into();
    match sent {
        Ok(Routed::Queued) => Recounted::Copied(tag),
        Ok(Routed::Nowhere) => Recounted::Gone,
        Err(Fault::NoExchange | Fault::TooLarge(_)) => Recounted::AsItIs(Box::new(arrived), attempts + 1),
        Err(Fault::Other(error)) if error.kind() == ErrorKind::Refused => {
            Recounted::AsItIs(Box::new(arrived), attempts + 1)
        }
        Err(why @ (Fault::Other(_) | Fault::Late)) => {
            tracing::debug!(queue = name, ?why, "an attempt could not be counted yet");
            Recounted::Later(tag)
        }
    }
}

/// One attachment: a channel with its consumers, and what came over it.
struct Session {
    number: u64,
    channel: Closing,
    /// Of every consumer.
    arguments: FieldTable,
    events: SelectAll<BoxStream<'static, Event>>,
    /// Consumers that make up for held messages, by tag.
    extras: Vec<ShortString>,
    waiting: VecDeque<(Arrived, u32)>,
    /// By tag.
    in_hands: BTreeMap<u64, InHands>,
    held: BTreeSet<(Instant, u64)>,
    recounts: FuturesUnordered<Boxed<'static, Recounted>>,
}

impl Session {
    /// Looked for on another connection: a channel of this one is not to fail.
    async fn open(admin: &Admin, link: &Link, queue: &Queue, number: u64) -> Result<Self> {
        if admin.look_at_queue(queue.name.as_str()).await?.is_none() {
            return Err(queue.absent());
        }
        // A quorum queue ends its readers without being asked to, and refuses to be asked.
        let is_asked = !admin.is_quorum_queue(queue.name.as_str()).await?;
        let arguments = if is_asked { names::consuming() } else { FieldTable::default() };
        let mut attached = Self::attach(link, queue, number, arguments).await?;
        if attached.as_ref().is_err_and(|error| fault::refuses(error, names::ENDS_WITH_QUEUE)) {
            admin.note_quorum_queue();
            attached = Self::attach(link, queue, number, FieldTable::default()).await?;
        }
        attached.map_err(|error| match fault::of_call(&error, queue.name.as_str(), "reading a queue") {
            _ if fault::is(&error, code::NOT_FOUND) => queue.absent(),
            // Nothing that was half done outlives its channel.
            Error::OutcomeUnknown { reason, .. } => Error::Unavailable { reason },
            other => other,
        })
    }

    /// Attaches with these arguments; the inner error is the broker's word on the queue.
    async fn attach(
        link: &Link,
        queue: &Queue,
        number: u64,
        arguments: FieldTable,
    ) -> Result<std::result::Result<Self, lapin::Error>> {
        let within = link.call_timeout();
        let (_, channel) = link.channel(within, |channel| async { Ok(channel) }).await?;
        let channel = Closing::new(channel);
        let attached = tokio::time::timeout(within, async move {
            let mut session = Self {
                number,
                channel,
                arguments,
                events: SelectAll::new(),
                extras: Vec::new(),
                waiting: VecDeque::new(),
                in_hands: BTreeMap::new(),
                held: BTreeSet::new(),
                recounts: FuturesUnordered::new(),
            };
            session.consume(queue, queue.prefetch, true).await?;
            Ok(session)
        });
        let late = |_| Error::Unavailable { reason: format!("'{}' could not be read in time", queue.name) };
        attached.await.map_err(late)
    }

    async fn consume(&mut self, queue: &Queue, prefetch: u16, is_first: bool) -> Result<(), lapin::Error> {
        // Set for consumers that begin from now on.
        self.channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        let tag = ShortString::default();
        let arguments = self.arguments.clone();
        let consumer = self.channel.basic_consume(queue.name.clone(), tag, options, arguments).await?;
        if !is_first {
            self.extras.push(consumer.tag());
        }
        let events = consumer.map(|item| match item {
            Ok(arrived) => Event::Message(Box::new(arrived)),
            Err(error) => Event::Lost(error.to_string()),
        });
        // Only the first one's end means that the queue is gone: the others we end ourselves.
        let end = futures_util::stream::iter(is_first.then_some(Event::Cancelled));
        self.events.push(events.chain(end).boxed());
        Ok(())
    }

    async fn recounted(&mut self, recounted: Recounted, queue: &Queue) {
        match recounted {
            Recounted::Copied(tag) => {
                let _ = self.channel.basic_ack(tag, BasicAckOptions::default()).now_or_never();
            }
            Recounted::Gone => {}
            Recounted::AsItIs(arrived, attempt) => self.waiting.push_back((*arrived, attempt)),
            Recounted::Later(tag) => self.hold(tag, RECOUNT_PAUSE, queue).await,
        }
    }

    /// Waits for copies that are being made: a message whose copy is in the queue, and that is not acknowledged, would be there
    /// twice when its reader has left.
    async fn end_recounts(&mut self, within: Duration) {
        let ended = async {
            while let Some(recounted) = self.recounts.next().await {
                if let Recounted::Copied(tag) = recounted {
                    let _ = self.channel.basic_ack(tag, BasicAckOptions::default()).now_or_never();
                }
            }
        };
        let _ = tokio::time::timeout(within, ended).await;
    }

    /// Keeps a message until it is due, and lets another one come in its place.
    async fn hold(&mut self, tag: u64, delay: Duration, queue: &Queue) {
        self.held.insert((Instant::now() + delay.min(HOLD_MAX), tag));
        if self.extras.len() < self.held.len().min(HELD_MAX) {
            // Should it fail, the channel is broken and the session ends by that.
            let _ = self.consume(queue, 1, false).await;
        }
    }

    /// Gives back what is due: the broker marks it as redelivered, and so it is counted. Consumers that made up for it
    /// end first, lest the broker give it to one of those: taking it back from there, a quorum queue counts once more.
    async fn give_back_due(&mut self) {
        let later = self.held.split_off(&(Instant::now(), u64::MAX));
        let due = std::mem::replace(&mut self.held, later);
        while self.extras.len() > self.held.len() {
            if let Some(tag) = self.extras.pop() {
                let _ = self.channel.basic_cancel(tag, BasicCancelOptions::default()).await;
            }
        }
        for (_, tag) in due {
            give_back(&self.channel, tag);
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
