//! A reader of a shared subscription beside processes of TrustGraph 2.11: a member of a classic group, whose one partition one
//! member has at a time, ours or theirs.
//!
//! Nothing is handed out before the group has it on record that it is ([`Window`]), so that a message which ends processes is
//! counted. What is wanted again later waits here. When the group moves the partition to another member, this one waits a moment
//! for what is in hand; what is not settled by then comes again there.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture as Boxed;
use krafka::admin::{AdminClient, GroupOffset};
use krafka::consumer::{
    AutoOffsetReset, Consumer, ConsumerRebalanceListener, OffsetAndMetadata, PartitionAssignmentStrategy,
    TopicPartition,
};
use krafka::{CloseOptions, ConsumerRecord, KrafkaError};
use sluice_bus::{Delivery, Error, Message, Result, Verdict, property};
use sluice_schema::Class;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::book::Book;
use super::shared::{At, Settler, Told, WAITING_MAX, is_gone, ready, until};
use super::window::Window;
use super::{fault, group, names};
use crate::local::{Pauses, lock, stopped};

/// How long the broker may keep a question for messages; what is written waits for it.
const WAIT_MAX: Duration = Duration::from_millis(250);
const POLL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a member is missed until its messages go to another one: as short as the broker lets it, unless configured otherwise.
const SESSION_TIMEOUT: Duration = Duration::from_secs(6);
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Messages in hand, however many are wanted.
const PREFETCH_MAX: usize = 128;
/// How long what is in hand is waited for when the group moves the partition.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a member has to leave.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the group decides.
enum Event {
    /// The partition is ours from here on.
    Assigned(Result<Option<GroupOffset>>),
    /// It goes to another member, once we say so.
    Revoked(oneshot::Sender<()>),
    /// It went already.
    Lost,
}

struct Listener {
    at: Arc<At>,
    client: Arc<AdminClient>,
    within: Duration,
    events: mpsc::UnboundedSender<Event>,
}

impl ConsumerRebalanceListener for Listener {
    async fn on_partitions_assigned<'a>(&'a self, partitions: &'a [TopicPartition]) {
        if partitions.is_empty() {
            return;
        }
        let found = group::offset(&self.client, &self.at.group, &self.at.place, self.within).await;
        let _ = self.events.send(Event::Assigned(found));
    }

    async fn on_partitions_revoked<'a>(&'a self, partitions: &'a [TopicPartition]) {
        if partitions.is_empty() {
            return;
        }
        let (done, told) = oneshot::channel();
        if self.events.send(Event::Revoked(done)).is_ok() {
            let _ = told.await;
        }
    }

    async fn on_partitions_lost<'a>(&'a self, _partitions: &'a [TopicPartition]) {
        let _ = self.events.send(Event::Lost);
    }
}

/// What a reader needs.
pub(super) struct Parts {
    pub(super) at: Arc<At>,
    pub(super) kafka: krafka::Kafka,
    pub(super) client: Arc<AdminClient>,
    pub(super) book: Arc<Book>,
    pub(super) prefetch: usize,
    pub(super) within: Duration,
    pub(super) stop: CancellationToken,
    pub(super) out: mpsc::Sender<Delivery>,
    pub(super) verdicts: mpsc::UnboundedSender<Told>,
    pub(super) told: mpsc::UnboundedReceiver<Told>,
    pub(super) ended: Arc<Mutex<Option<Error>>>,
}

/// What a member has while the partition is its own.
struct Mine {
    window: Window<Arc<Message>>,
    /// Another member gets it once this is told, and at that time at the latest.
    leaving: Option<(oneshot::Sender<()>, Instant)>,
}

struct Reader {
    parts: Parts,
    consumer: Arc<Consumer>,
    mine: Option<Mine>,
    numbers: u64,
    is_paused: bool,
}

type Writing = Boxed<'static, std::result::Result<(), KrafkaError>>;
type Asking = Boxed<'static, std::result::Result<Vec<ConsumerRecord>, KrafkaError>>;

/// Reads until it is stopped or what is read is gone.
pub(super) async fn run(mut parts: Parts, begun: oneshot::Sender<Result<()>>) {
    // What is written of those in hand has to fit beside the offset.
    parts.prefetch = parts.prefetch.min(PREFETCH_MAX);
    let (events, told) = mpsc::unbounded_channel();
    let consumer = match join(&parts, events).await {
        Ok(consumer) => consumer,
        Err(error) => {
            // Whoever attached may have left: then it is stopped.
            let _ = begun.send(Err(error));
            return;
        }
    };
    let _ = begun.send(Ok(()));
    let mut reader = Reader { parts, consumer: Arc::new(consumer), mine: None, numbers: 0, is_paused: false };
    let error = reader.serve(told).await;
    *lock(&reader.parts.ended) = Some(error);
    reader.leave().await;
}

/// A member of the group.
async fn join(parts: &Parts, events: mpsc::UnboundedSender<Event>) -> Result<Consumer> {
    let at = &parts.at;
    let doing = format!("attaching to '{}' of '{}'", at.subscription, at.topic);
    let listener = Listener { at: at.clone(), client: parts.client.clone(), within: parts.within, events };
    let consumer = parts
        .kafka
        .consumer(&at.group)
        .auto_offset_reset(AutoOffsetReset::Earliest)
        .enable_auto_commit(false)
        .fetch_max_wait(WAIT_MAX)
        .max_poll_records(i32::try_from(parts.prefetch).unwrap_or(i32::MAX))
        .session_timeout(SESSION_TIMEOUT)
        .heartbeat_interval(HEARTBEAT_INTERVAL)
        // Among ours a member keeps what it has; theirs know another one only.
        .partition_assignment_strategies([
            PartitionAssignmentStrategy::CooperativeSticky,
            PartitionAssignmentStrategy::RoundRobin,
        ])
        .rebalance_listener(listener)
        .metrics_push(false)
        .build()
        .await
        .map_err(|error| fault::of(&error, &doing))?;
    match consumer.subscribe([&at.place]).await {
        Ok(()) => Ok(consumer),
        Err(error) => {
            leave(&consumer).await;
            Err(fault::of(&error, &doing))
        }
    }
}

async fn leave(consumer: &Consumer) {
    if let Err(error) = consumer.close_with(CloseOptions::new().timeout(LEAVE_TIMEOUT)).await {
        tracing::debug!(%error, "a member did not leave in good order; the group misses it");
    }
}

impl Reader {
    async fn serve(&mut self, mut events: mpsc::UnboundedReceiver<Event>) -> Error {
        let (stop, at, book) = (self.parts.stop.clone(), self.parts.at.clone(), self.parts.book.clone());
        let mut removed = Box::pin(book.registry.until(|registry| !at.is_there(registry)));
        let (mut asking, mut writing): (Option<Asking>, Option<Writing>) = (None, None);
        let (mut pauses, mut rest) = (Pauses::new(), None);
        loop {
            if writing.is_none() && rest.is_none() {
                writing = self.write();
            }
            // What is to be handed out is written first: a question would hold it up.
            if asking.is_none() && rest.is_none() && !self.has_next() {
                asking = Some(self.ask().await);
            }
            let due = self.due();
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    if let Some(writing) = writing {
                        // Nobody is there to get what was to be handed out after it.
                        let _ = writing.await;
                        if let Some(mine) = self.mine.as_mut() {
                            mine.window.not_noted();
                        }
                    }
                    return stopped();
                }
                () = &mut removed => return at.absent(),
                Some(told) = self.parts.told.recv() => self.settled(told),
                Some(event) = events.recv() => {
                    if let Some(error) = self.decided(event) {
                        return error;
                    }
                }
                written = ready(&mut writing) => {
                    writing = None;
                    match self.written(written) {
                        true => pauses = Pauses::new(),
                        false => rest = Some(Instant::now() + pauses.next()),
                    }
                }
                () = until(due) => self.take_due(),
                () = until(rest) => rest = None,
                polled = ready(&mut asking) => {
                    asking = None;
                    while let Ok(event) = events.try_recv() {
                        if let Some(error) = self.decided(event) {
                            return error;
                        }
                    }
                    match polled {
                        Ok(records) if records.is_empty() => {
                            if is_gone(&book, &at).await {
                                return at.absent();
                            }
                        }
                        Ok(records) => records.iter().for_each(|record| self.arrived(record)),
                        Err(KrafkaError::Wakeup) => {}
                        Err(error) => {
                            tracing::debug!(group = at.group, %error, "a reader could not ask");
                            rest = Some(Instant::now() + pauses.next());
                        }
                    }
                }
            }
            self.hand_over(writing.is_none());
        }
    }

    /// A question for messages; while there is no room for any, one that only keeps the membership.
    async fn ask(&mut self) -> Asking {
        // While something is ready, the next that is written must not wait for a question.
        let is_full = self.mine.as_ref().is_some_and(|mine| {
            mine.leaving.is_some() || mine.window.is_ready() || mine.window.later() >= WAITING_MAX
        });
        let place = &self.parts.at.place;
        match (is_full, self.is_paused) {
            (true, false) => self.consumer.pause(place, &[0]).await,
            (false, true) => self.consumer.resume(place, &[0]).await,
            _ => {}
        }
        self.is_paused = is_full;
        let consumer = self.consumer.clone();
        async move { consumer.poll(POLL_TIMEOUT).await }.boxed()
    }

    fn has_next(&self) -> bool {
        let prefetch = self.parts.prefetch;
        let has_next = |mine: &Mine| mine.window.is_ready() && mine.window.out() < prefetch;
        self.mine.as_ref().is_some_and(|mine| mine.leaving.is_none() && has_next(mine))
    }

    /// Writes where the group stands, if that has changed or something may be handed out.
    fn write(&mut self) -> Option<Writing> {
        let hands_out = self.has_next();
        let mine = self.mine.as_mut()?;
        if !hands_out && !mine.window.is_changed() {
            return None;
        }
        let (offset, text) = mine.window.note(if hands_out { self.parts.prefetch } else { 0 });
        Some(commit(self.consumer.clone(), &self.parts.at, offset, text))
    }

    /// Hands out what is written; whether it was.
    fn written(&mut self, written: std::result::Result<(), KrafkaError>) -> bool {
        // It may have gone to another member meanwhile.
        let Some(mine) = self.mine.as_mut() else { return true };
        if let Err(error) = written {
            tracing::debug!(group = self.parts.at.group, %error, "a reader could not write where it is");
            mine.window.not_noted();
            return false;
        }
        for (number, next) in mine.window.noted(&mut self.numbers) {
            let settler = Settler::new(number, self.parts.verdicts.clone());
            let message = Message::clone(&next.message);
            let topic = self.parts.at.topic.clone();
            // There is room for as many as may be in hands; should the reader be gone, dropping gives it back.
            let _ = self.parts.out.try_send(Delivery::new(message, topic, next.attempt, Box::new(settler)));
        }
        true
    }

    fn arrived(&mut self, record: &ConsumerRecord) {
        let Some(mine) = self.mine.as_mut() else { return };
        let message = names::message(record);
        let ttl = message.get(property::TTL).and_then(|ttl| ttl.parse::<u64>().ok());
        let ttl = ttl.filter(|_| self.parts.at.topic.class() == Class::Request);
        let is_late = ttl.is_some_and(|ttl| self.parts.book.registry.age_ms(record.timestamp) > ttl);
        mine.window.arrived(record.offset, Arc::new(message), !is_late);
    }

    fn settled(&mut self, told: Told) {
        // Where it went to another member, it comes again there.
        let Some(mine) = self.mine.as_mut() else { return };
        let at = |delay: Duration| (!delay.is_zero()).then(|| Instant::now() + delay);
        match told.verdict {
            Verdict::Done => mine.window.done(told.number),
            Verdict::Again(delay) => mine.window.again(told.number, at(delay), true),
            Verdict::Untried(delay) => mine.window.again(told.number, at(delay), false),
        }
        self.wake();
    }

    /// Has what waits for messages end, where there is room or something to hand out now.
    fn wake(&self) {
        if self.is_paused || self.has_next() {
            self.consumer.wakeup();
        }
    }

    fn decided(&mut self, event: Event) -> Option<Error> {
        match event {
            Event::Assigned(Ok(Some(found))) if found.offset.is_some() => {
                let text = found.metadata.unwrap_or_default();
                let window = Window::new(found.offset.unwrap_or_default(), &text);
                self.mine = Some(Mine { window, leaving: None });
                self.is_paused = false;
            }
            // What its owner wrote is gone, or was never there.
            Event::Assigned(Ok(_)) => return Some(self.parts.at.absent()),
            Event::Assigned(Err(error)) => return Some(error),
            Event::Revoked(done) => {
                if let Some(mine) = self.mine.as_mut() {
                    mine.leaving = Some((done, Instant::now() + HAND_OVER_TIMEOUT));
                }
            }
            Event::Lost => self.mine = None,
        }
        None
    }

    /// Lets the partition go to another member, once nothing is in hand and all is written or it is time.
    fn hand_over(&mut self, is_written: bool) {
        let Some(mine) = self.mine.as_mut() else { return };
        let Some((_, at)) = &mine.leaving else { return };
        let is_over = mine.window.out() == 0 && !mine.window.is_changed() && is_written;
        if (is_over || *at <= Instant::now())
            && let Some(Mine { leaving: Some((done, _)), .. }) = self.mine.take()
        {
            let _ = done.send(());
        }
    }

    fn due(&self) -> Option<Instant> {
        let mine = self.mine.as_ref()?;
        match &mine.leaving {
            Some((_, at)) => Some(*at),
            None => mine.window.due(),
        }
    }

    fn take_due(&mut self) {
        if let Some(mine) = self.mine.as_mut().filter(|mine| mine.leaving.is_none()) {
            mine.window.take_due(Instant::now());
            self.wake();
        }
    }

    /// Writes where it is, what was decided before the end included, and leaves the group.
    async fn leave(mut self) {
        while let Ok(told) = self.parts.told.try_recv() {
            self.settled(told);
        }
        if let Some(mine) = self.mine.as_mut().filter(|_| self.parts.at.is_there(&self.parts.book.registry)) {
            let (offset, text) = mine.window.note(0);
            let written = commit(self.consumer.clone(), &self.parts.at, offset, text);
            if !matches!(tokio::time::timeout(LEAVE_TIMEOUT, written).await, Ok(Ok(()))) {
                tracing::debug!(group = self.parts.at.group, "what was done last may come again");
            }
        }
        self.mine = None;
        leave(&self.consumer).await;
    }
}

fn commit(consumer: Arc<Consumer>, at: &At, offset: i64, text: String) -> Writing {
    let place = TopicPartition::new(at.place.clone(), 0);
    async move {
        let stand = OffsetAndMetadata::with_metadata(offset, text);
        consumer.commit_offsets([(place, stand)]).await
    }
    .boxed()
}
