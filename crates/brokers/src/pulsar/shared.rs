//! A reader of a shared subscription. One task per reader notes what it hands out, settles it, and attaches again after a
//! lost connection. What is wanted again later waits here; the broker has it back as soon as the reader goes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use futures_util::future::BoxFuture as Boxed;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use sluice_bus::{
    BoxFuture, Delivery, Error, ErrorKind, Inbox, InboxAddress, Losses, Message, Result, Settle, Verdict,
};
use sluice_schema::Topic;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Core;
use super::batch::{Batches, Part, Settled};
use super::ends::{Consumer, How};
use super::link::{Arrived, Fault};
use super::links::{Links, Role};
use super::names::{self, Place};
use super::notes::{self, Notes};
use super::proto::{MessageId, code};
use crate::local::{Pauses, lock, stopped};

/// The reader's end.
pub(super) struct SharedInbox {
    at: Arc<At>,
    deliveries: tokio::sync::Mutex<mpsc::Receiver<Delivery>>,
    ended: Arc<Mutex<Option<Error>>>,
    notes: Notes,
    _gone: DropGuard,
}

/// What is read.
struct At {
    topic: Topic,
    subscription: String,
    place: Place,
    /// What the subscription is called at the broker.
    escaped: String,
}

pub(super) async fn attach(core: &Core, topic: &Topic, name: &str, prefetch: u32) -> Result<SharedInbox> {
    names::check_class(topic, true)?;
    if core.stop.is_cancelled() {
        return Err(stopped());
    }
    let at = Arc::new(At {
        topic: topic.clone(),
        subscription: name.to_owned(),
        place: Place::from(topic),
        escaped: names::escaped(name),
    });
    let consumer = at.attach(&core.links).await?;
    core.notes.ready().await?;
    let prefetch = prefetch.max(1);
    let stop = core.stop.child_token();
    let (out, deliveries) = mpsc::channel(prefetch as usize);
    let (verdicts, told) = mpsc::unbounded_channel();
    let ended = Arc::new(Mutex::new(None));
    let reader = Reader {
        at: at.clone(),
        prefetch,
        links: core.links.clone(),
        notes: core.notes.clone(),
        stop: stop.clone(),
        out,
        verdicts,
        told,
        in_hands: HashMap::new(),
        batches: Batches::default(),
        waiting: VecDeque::new(),
        later: BTreeMap::new(),
        waits: 0,
        counted: FuturesOrdered::new(),
        uncounted: FuturesUnordered::new(),
        ended: ended.clone(),
        losses: core.losses.clone(),
    };
    core.readers.spawn(reader.run(consumer));
    let deliveries = tokio::sync::Mutex::new(deliveries);
    let notes = core.notes.clone();
    Ok(SharedInbox { at, deliveries, ended, notes, _gone: stop.drop_guard() })
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
        Box::pin(async move { self.notes.begin(&self.at.mark(&delivery.message), delivery).await })
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
        Error::Refused { reason: format!("a reader of '{}' follows no other topics", self.at.topic) }
    }
}

impl At {
    async fn attach(&self, links: &Arc<Links>) -> Result<Consumer> {
        let attached = async {
            let link = links.to(Role::Read, &self.place).await?;
            let how = How::Shared { subscription: &self.escaped };
            Consumer::open(link, &self.place, &how, links.within()).await
        };
        attached.await.map_err(|fault: Fault| {
            if fault.is(code::TOPIC_NOT_FOUND) {
                return Error::NoTopic { topic: self.topic.clone() };
            }
            if fault.is(code::SUBSCRIPTION_NOT_FOUND) {
                return self.absent();
            }
            fault.of(&format!("attaching to '{}' of '{}'", self.subscription, self.topic))
        })
    }

    fn absent(&self) -> Error {
        Error::NoSubscription { topic: self.topic.clone(), subscription: self.subscription.clone() }
    }

    fn key(&self, at: Spot) -> String {
        notes::key(&self.topic, &self.subscription, at.id, at.part)
    }

    fn mark(&self, message: &Message) -> String {
        notes::mark(&self.topic, &self.subscription, message)
    }
}

/// Where a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Spot {
    id: MessageId,
    part: Option<Part>,
}

/// Which delivery of which message: one that came before a connection was lost is not this reader's any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Which {
    at: Spot,
    number: u64,
}

/// What a holder decided.
#[derive(Clone, Copy)]
struct Told {
    which: Which,
    verdict: Verdict,
}

struct Settler {
    which: Which,
    /// Unbounded: at most one entry for each delivery in somebody's hands.
    verdicts: mpsc::UnboundedSender<Told>,
}

impl Settle for Settler {
    fn settle(self: Box<Self>, verdict: Verdict) {
        // When the reader is gone, it has given the message back.
        let _ = self.verdicts.send(Told { which: self.which, verdict });
    }
}

/// A message that the broker has given us and that is not settled.
struct InHand {
    number: u64,
    attempt: u32,
    message: Message,
}

/// A message whose hand-over is noted.
#[derive(Clone, Copy)]
struct Counted {
    which: Which,
    attempt: u32,
}

struct Reader {
    at: Arc<At>,
    prefetch: u32,
    links: Arc<Links>,
    notes: Notes,
    stop: CancellationToken,
    out: mpsc::Sender<Delivery>,
    /// What there is no room for yet: the rest of a batch.
    waiting: VecDeque<Delivery>,
    verdicts: mpsc::UnboundedSender<Told>,
    told: mpsc::UnboundedReceiver<Told>,
    in_hands: HashMap<Spot, InHand>,
    batches: Batches,
    /// Wanted again, by when and a number of their own.
    later: BTreeMap<(Instant, u64), MessageId>,
    /// Deliveries and waits so far.
    waits: u64,
    /// Hand-overs that are being noted, in the order in which messages came.
    counted: FuturesOrdered<Boxed<'static, Counted>>,
    /// Hand-overs that are being taken off the count, and when their messages are wanted again.
    uncounted: FuturesUnordered<Boxed<'static, (Spot, Instant)>>,
    ended: Arc<Mutex<Option<Error>>>,
    losses: Losses,
}

/// Why a session ended.
enum End {
    Left,
    /// The broker closed it, or the connection is lost.
    Lost,
}

impl Reader {
    async fn run(mut self, mut consumer: Consumer) {
        let error = loop {
            match self.serve(&mut consumer).await {
                End::Left => {
                    self.leave(&consumer).await;
                    break stopped();
                }
                End::Lost => tracing::debug!(topic = %self.at.topic, "a reader was cut off; attaching again"),
            }
            // The broker gives all of it to somebody anew.
            self.in_hands.clear();
            self.batches = Batches::default();
            self.waiting.clear();
            self.later.clear();
            self.counted = FuturesOrdered::new();
            self.uncounted.clear();
            consumer = match self.attach_again().await {
                Some(Ok(consumer)) => consumer,
                Some(Err(error)) => break error,
                None => break stopped(),
            };
        };
        if error.kind() == ErrorKind::Absent {
            // Its owner learns at once, also where others of its topic stayed.
            self.losses.note_removed(&self.at.topic);
        }
        *lock(&self.ended) = Some(error);
    }

    async fn serve(&mut self, consumer: &mut Consumer) -> End {
        let out = self.out.clone();
        consumer.permit(self.prefetch);
        loop {
            let due = self.later.first_key_value().map(|((due, _), _)| *due);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return End::Left,
                Some(told) = self.told.recv() => self.settled(consumer, told),
                Some(counted) = self.counted.next() => self.hand_out(counted),
                Some((at, due)) = self.uncounted.next() => self.again(consumer, at, due),
                () = until(due) => self.give_back_due(consumer),
                Ok(room) = out.reserve(), if !self.waiting.is_empty() => {
                    if let Some(delivery) = self.waiting.pop_front() {
                        room.send(delivery);
                    }
                }
                arrived = consumer.next() => match arrived {
                    Some(arrived) => self.arrived(consumer, arrived),
                    None => return End::Lost,
                },
            }
        }
    }

    fn arrived(&mut self, consumer: &Consumer, arrived: Arrived) {
        let at = Spot { id: arrived.id, part: arrived.part };
        if let Some(part) = at.part {
            let (is_done, end) = self.batches.arrived(at.id, part);
            self.end(consumer, at.id, end);
            if is_done {
                return consumer.permit(1);
            }
        }
        let which = Which { at, number: self.number() };
        let message = names::message(arrived.body, &arrived.metadata);
        self.in_hands.insert(at, InHand { number: which.number, attempt: 1, message });
        let (notes, key) = (self.notes.clone(), self.at.key(at));
        let (class, is_given_back) = (self.at.topic.class(), arrived.redelivered > 0);
        self.counted.push_back(Box::pin(async move {
            Counted { which, attempt: notes.hand_out(class, &key, is_given_back).await }
        }));
    }

    const fn number(&mut self) -> u64 {
        self.waits += 1;
        self.waits
    }

    fn hand_out(&mut self, counted: Counted) {
        let Some(held) = self.in_hands.get_mut(&counted.which.at) else { return };
        held.attempt = counted.attempt;
        let settler = Settler { which: counted.which, verdicts: self.verdicts.clone() };
        let (message, topic) = (held.message.clone(), self.at.topic.clone());
        let delivery = Delivery::new(message, topic, counted.attempt, Box::new(settler));
        if !self.waiting.is_empty() {
            return self.waiting.push_back(delivery);
        }
        // Should the reader be gone, dropping gives it back.
        if let Err(TrySendError::Full(delivery)) = self.out.try_send(delivery) {
            self.waiting.push_back(delivery);
        }
    }

    fn settled(&mut self, consumer: &Consumer, told: Told) {
        let Which { at, number } = told.which;
        if self.in_hands.get(&at).is_none_or(|held| held.number != number) {
            return;
        }
        let Some(held) = self.in_hands.remove(&at) else { return };
        match told.verdict {
            Verdict::Done => {
                let end = match at.part {
                    None => Some(Settled::Done),
                    Some(part) => self.batches.done(at.id, part),
                };
                self.end(consumer, at.id, end);
                self.notes.forget(&self.at.key(at));
                if held.attempt > 1 {
                    self.notes.forget_begun(&self.at.mark(&held.message));
                }
            }
            Verdict::Again(delay) => self.again(consumer, at, Instant::now() + delay),
            Verdict::Untried(delay) => {
                let (notes, key, due) = (self.notes.clone(), self.at.key(at), Instant::now() + delay);
                // Noted first, so that its next reader knows.
                self.uncounted.push(Box::pin(async move {
                    if let Err(error) = notes.untried(&key, held.attempt).await {
                        tracing::debug!(key, %error, "given back untried, it counts all the same");
                    }
                    (at, due)
                }));
            }
        }
        consumer.permit(1);
    }

    fn again(&mut self, consumer: &Consumer, at: Spot, due: Instant) {
        let end = match at.part {
            None => Some(Settled::Again(due)),
            Some(part) => self.batches.again(at.id, part, due),
        };
        self.end(consumer, at.id, end);
    }

    /// Settles with the broker what is settled as a whole.
    fn end(&mut self, consumer: &Consumer, id: MessageId, end: Option<Settled>) {
        match end {
            None => {}
            Some(Settled::Done) => consumer.ack(id),
            Some(Settled::Again(due)) if due <= Instant::now() => consumer.give_back(vec![id]),
            Some(Settled::Again(due)) => self.wait(id, due),
        }
    }

    fn wait(&mut self, id: MessageId, due: Instant) {
        let number = self.number();
        self.later.insert((due, number), id);
    }

    fn give_back_due(&mut self, consumer: &Consumer) {
        let rest = self.later.split_off(&(Instant::now(), u64::MAX));
        let due = std::mem::replace(&mut self.later, rest);
        consumer.give_back(due.into_values().collect());
    }

    /// Attaches again, however long it takes; `None` when it is not wanted any more.
    async fn attach_again(&mut self) -> Option<Result<Consumer>> {
        let mut pauses = Pauses::new();
        loop {
            let pause = pauses.next();
            let attempt = async {
                tokio::time::sleep(pause).await;
                self.at.attach(&self.links).await
            };
            match self.stop.run_until_cancelled(attempt).await? {
                Err(error) if error.kind() == ErrorKind::Absent => return Some(Err(self.at.absent())),
                Err(error) if error.kind() != ErrorKind::Refused => {
                    tracing::debug!(topic = %self.at.topic, %error, "a reader could not attach again yet");
                }
                outcome => return Some(outcome),
            }
        }
    }

    /// Settles what was decided before the end. The broker takes the rest back when the consumer closes.
    async fn leave(&mut self, consumer: &Consumer) {
        while let Ok(told) = self.told.try_recv() {
            self.settled(consumer, told);
        }
        while self.uncounted.next().await.is_some() {}
    }
}

/// Waits until then; for ever where there is no such time.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
