//! Being a service: answers on a request topic, several at a time, each settled after its answer is sent.

use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use sluice_bus::shares::{Share, Shares};
use sluice_bus::{
    Address, Broker, Delivery, Error, ErrorKind, Foreign, Inbox, InboxAddress, Message, Subscription,
    property, trace,
};
use sluice_schema::listing::{self, Page};
use sluice_schema::{Class, Exchange, Topic, doors, message, wire};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Process;
use crate::suspects::{self, ALONE_TIMEOUT, ELSEWHERE_PAUSE};
use crate::tasks::{Backoff, lock, panic_text};

/// How long requests under way may take to finish once a service stops: less than its process has to stop, so that what is cut goes
/// back by itself.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);
/// Room for large answers that are being made, over all services of a process, in KiB: one workspace alone may have all of it,
/// several a little more together.
const ANSWERS_KIB_MAX: usize = 256 << 10;
/// What making an answer may take without room.
const SMALL_BYTES: usize = 1 << 20;
/// What an answer takes while it is made, times its size: as it was read, as an answer, and as its message.
const COPIES: usize = 3;
/// A page of a list that needs no room.
pub const SMALL_PAGE_BYTES: usize = SMALL_BYTES / COPIES;
/// How long room is waited for.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);
/// How long work that is cut may take to end.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);
/// Pauses between tries to attach.
const ATTACH: Backoff = Backoff { min: Duration::from_millis(50), max: Duration::from_secs(2) };
/// Work of less than this for another process is not announced to it.
const ANNOUNCE_AFTER: Duration = Duration::from_millis(250);
/// How often longer work is announced again, which also shows whether its asker is still there.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(15);
/// Pauses before an answer that could not be sent is sent again.
const AGAIN: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(1) };
/// How long it is sent again: longer than a broker takes to start anew, and this process to come back to it.
const AGAIN_TIMEOUT: Duration = Duration::from_secs(20);
/// How often where nobody is there to take it: whoever lost its inbox has another after some seconds, and hears what comes on
/// the topic of answers; whoever has ended does not.
const ATTEMPTS_NOBODY_MAX: u32 = 10;
/// Room for answers of a process that are sent again beside other work, in KiB; one beyond that is sent again in its place.
pub(crate) const LATE_KIB_MAX: usize = 256 << 10;
/// How often a request is handed out: one that has ended the process as often gets an error.
const HANDED_MAX: u32 = 5;

/// Where a service listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// The topic that questions come on.
    pub request: Topic,
    /// The topic that answers go to when the asker names no inbox.
    pub response: Topic,
    /// The subscription's name; replicas share it.
    pub subscription: String,
    /// Requests under way at most.
    pub concurrency: usize,
    /// Whether answers may go straight to the asker's inbox instead of the response topic.
    pub direct: bool,
}

impl Point {
    /// A system service's point: direct answers, 64 requests under way.
    pub fn new(request: Topic, response: Topic, subscription: impl Into<String>) -> Self {
        Self { request, response, subscription: subscription.into(), concurrency: 64, direct: true }
    }
}

/// A point in a process, shared by all that is under way there.
pub(crate) struct Served {
    pub(crate) process: Process,
    pub(crate) point: Point,
}

/// Sends the answer of one request, in parts where wanted.
pub struct Responder<X: Exchange> {
    broker: Arc<dyn Broker>,
    to: Answers,
    id: Box<str>,
    trace: Option<Box<str>>,
    left: Option<CancellationToken>,
    foreign: Option<Foreign>,
    is_repeated: bool,
    served: Arc<Served>,
    room: Room,
    exchange: std::marker::PhantomData<fn(X)>,
}

/// Room for large answers that are being made, in KiB, which workspaces share: whatever others ask for, one finds its part.
pub(crate) struct Rooms {
    shares: Arc<Shares>,
    /// Notified when some is given back.
    given_back: Notify,
    /// How many keep everybody waiting.
    closed: AtomicUsize,
}

impl Default for Rooms {
    fn default() -> Self {
        Self { shares: Shares::new(ANSWERS_KIB_MAX), given_back: Notify::new(), closed: AtomicUsize::new(0) }
    }
}

impl Rooms {
    /// Waits for so much.
    async fn take(self: &Arc<Self>, holder: &str, bytes: usize) -> Taken {
        let kib = (bytes >> 10).min(ANSWERS_KIB_MAX);
        loop {
            let mut given_back = std::pin::pin!(self.given_back.notified());
            given_back.as_mut().enable();
            if self.closed.load(Ordering::Acquire) == 0
                && let Some(share) = self.shares.take(holder, kib)
            {
                return Taken { share: Mutex::new(share), rooms: self.clone() };
            }
            given_back.await;
        }
    }

    /// Keeps everybody waiting until what this gives back is dropped.
    pub(crate) fn close(self: &Arc<Self>) -> Closed {
        self.closed.fetch_add(1, Ordering::AcqRel);
        Closed(self.clone())
    }
}

/// Keeps everybody waiting who wants room.
pub(crate) struct Closed(Arc<Rooms>);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.closed.fetch_sub(1, Ordering::AcqRel);
        self.0.given_back.notify_waiters();
    }
}

/// Room that one answer has.
struct Taken {
    share: Mutex<Share>,
    rooms: Arc<Rooms>,
}

impl Taken {
    /// Gives back what is beyond so many bytes.
    fn keep(&self, bytes: usize) {
        let mut share = lock(&self.share);
        let less = share.amount().saturating_sub(bytes.div_ceil(1 << 10));
        share.shrink(less);
        drop(share);
        self.rooms.given_back.notify_waiters();
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.keep(0);
    }
}

/// What an answer has taken of the room for large ones, until nobody in this process has its bytes any more.
type Room = Arc<OnceLock<Arc<Taken>>>;

/// The bytes of an answer, with their room.
struct Roomy {
    bytes: Bytes,
    _room: Arc<Taken>,
}

impl AsRef<[u8]> for Roomy {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn body(answer: &impl serde::Serialize, room: &Room) -> Bytes {
    let bytes = wire::encode(answer);
    match room.get() {
        Some(room) => {
            // It is made: what making it took is free.
            room.keep(bytes.len());
            Bytes::from_owner(Roomy { bytes, _room: room.clone() })
        }
        None => bytes,
    }
}

impl<X: Exchange> Responder<X> {
    fn new(served: &Arc<Served>, question: &Message, attempt: u32) -> Option<Self> {
        let Served { process, point } = &**served;
        let id = question.get(property::ID)?;
        let asker = question.get(property::REPLY_TO);
        let asker = asker.map(|inbox| Address::Inbox(InboxAddress(inbox.into())));
        let topic = Address::Topic(point.response.clone());
        let to = match asker {
            Some(asker) if point.direct => Answers { to: asker, or_else: Some(topic) },
            asker => Answers { to: topic, or_else: asker },
        };
        let trace = question.get(property::TRACE).map(Into::into);
        Some(Self {
            broker: process.broker.clone(),
            to,
            id: id.into(),
            trace,
            left: process.replies.left(question),
            foreign: process.replies.foreign(question),
            is_repeated: attempt > 1,
            served: served.clone(),
            room: Room::default(),
            exchange: std::marker::PhantomData,
        })
    }

    /// The request id that a person sees, if the question carried one.
    #[must_use]
    pub fn trace(&self) -> Option<&str> {
        self.trace.as_deref()
    }

    /// The id that ties the answer to its question.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether the question was handed out before: somebody may have worked on it, and even answered it, and died before
    /// the broker knew.
    #[must_use]
    pub const fn is_repeated(&self) -> bool {
        self.is_repeated
    }

    /// The asker, to be taken before the answer is worked on.
    pub(crate) fn asker(&mut self) -> Asker {
        Asker { left: self.left.take().unwrap_or_default(), foreign: self.foreign.take() }
    }

    /// Takes room for an answer before it is made, so that many questions for large ones do not take all memory: what making it
    /// takes altogether, in bytes. Waits for those of others; it is given back once this process is done with the answer. Small
    /// ones need none.
    ///
    /// # Errors
    /// Where there is none for long, for the asker.
    pub async fn room(&self, bytes: usize) -> Result<(), message::Error> {
        if bytes < SMALL_BYTES {
            return Ok(());
        }
        // What has room waits for no more: another answer could wait for it in turn.
        if self.room.get().is_some() {
            return Ok(());
        }
        let holder = doors::holder(&self.served.point.request);
        let taken = self.served.process.rooms.take(&holder, bytes);
        match tokio::time::timeout(ROOM_TIMEOUT, taken).await {
            Ok(taken) => {
                let _ = self.room.set(Arc::new(taken));
                Ok(())
            }
            Err(_) => Err(message::Error::new(
                message::Error::OVERLOADED,
                "too many large answers are under way; ask for fewer at once, or try again in a moment",
            )),
        }
    }

    /// The same for an answer of so many bytes, with what making it takes beside.
    ///
    /// # Errors
    /// As [`Responder::room`].
    pub async fn room_for(&self, answer_bytes: usize) -> Result<(), message::Error> {
        self.room(answer_bytes.saturating_mul(COPIES)).await
    }

    /// A list, with room for it where it is not small. How large it is shows when it is read: first as a small page.
    ///
    /// # Errors
    /// Those of the list, and as [`Responder::room`].
    pub async fn list<T, E, Fut>(&self, bytes_max: i64, list: impl Fn(Page<T>) -> Fut) -> Result<Page<T>, E>
    where
        E: From<message::Error>,
        Fut: Future<Output = Result<Page<T>, E>>,
    {
        let max = self.answer_bytes_max();
        let asked = listing::page_bytes(bytes_max, max).unwrap_or_else(|| listing::room(max));
        if asked > SMALL_PAGE_BYTES {
            let small = list(Page::new(SMALL_PAGE_BYTES as i64, max)).await?;
            if small.cursor.is_empty() {
                return Ok(small);
            }
            drop(small);
            self.room_for(asked).await?;
        }
        list(Page::new(bytes_max, max)).await
    }

    /// The largest answer, in bytes: that of the broker's messages.
    #[must_use]
    pub fn answer_bytes_max(&self) -> usize {
        self.broker.limits().message_bytes_max
    }

    /// Sends a part that is not the last.
    ///
    /// # Errors
    /// As [`Broker::publish`]; `Absent` means that nobody waits any more.
    pub async fn part(&self, part: &X::Response) -> Result<(), Error> {
        // A part may wait for a slow reader, which is bounded elsewhere.
        let answer = Message::new(wire::encode(part)).with(property::ID, &self.id);
        self.to.send(&*self.broker, &answer).await
    }
}

/// Where answers go.
#[derive(Clone)]
struct Answers {
    to: Address,
    /// Where they go while the first is missing. Of a topic with no inbox behind it nobody can tell whether the asker reads it.
    or_else: Option<Address>,
}

impl Answers {
    async fn send(&self, broker: &dyn Broker, answer: &Message) -> Result<(), Error> {
        match (broker.publish(&self.to, answer.clone()).await, &self.or_else) {
            (Err(Error::NoTopic { .. }), Some(asker @ Address::Inbox(_))) => {
                broker.publish(asker, answer.clone()).await
            }
            (Err(gone @ Error::NoInbox { .. }), Some(topic)) => {
                // Its asker may have another inbox by now.
                let _ = broker.publish(topic, answer.clone()).await;
                Err(gone)
            }
            (sent, _) => sent,
        }
    }

    /// Sends an answer again and again that could not be sent: the question is not worked on twice for it, and an asker that
    /// gets it twice takes the first.
    async fn send_again(
        &self,
        broker: &dyn Broker,
        answer: &Message,
        mut failed: Error,
    ) -> Result<(), Error> {
        let begun = Instant::now();
        let (mut away, mut nobody) = (0, 0);
        loop {
            let is_nobody = failed.kind() == ErrorKind::Absent;
            let tries = if is_nobody { &mut nobody } else { &mut away };
            // Both have their own bound: whoever lost its inbox with its broker has another only when that is back.
            let is_over =
                if is_nobody { *tries >= ATTEMPTS_NOBODY_MAX } else { begun.elapsed() > AGAIN_TIMEOUT };
            if is_over || !is_for_again(&failed) {
                return Err(failed);
            }
            tokio::time::sleep(AGAIN.pause(*tries)).await;
            *tries += 1;
            match self.send(broker, answer).await {
                Ok(()) => return Ok(()),
                Err(error) => failed = error,
            }
        }
    }
}

/// Whether an answer may still arrive that could not be sent.
fn is_for_again(error: &Error) -> bool {
    let is_away = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::OutcomeUnknown);
    is_away || matches!(error, Error::NoInbox { .. } | Error::NoTopic { .. })
}

/// Who asked, in this process or in another. One in another is told who works for it, once that takes a moment: then it
/// knows that its question waits in no queue, and can say that it has left.
pub(crate) struct Asker {
    left: CancellationToken,
    foreign: Option<Foreign>,
}

impl Asker {
    /// Runs work for as long as its asker waits for it; `None` when that has left, and the work was dropped where it stood.
    /// Of an asker in another process it is known after a moment, once that was told who works for it.
    pub(crate) async fn while_it_waits<T>(self, work: impl Future<Output = T>) -> Option<T> {
        let Some(foreign) = &self.foreign else { return self.left.run_until_cancelled(work).await };
        tokio::select! {
            biased;
            done = work => Some(done),
            () = foreign.left().cancelled() => None,
            never = announce(foreign) => match never {},
        }
    }

    /// Runs work to its end, whether or not its asker waits.
    async fn told_of<T>(self, work: impl Future<Output = T>) -> T {
        let Some(foreign) = &self.foreign else { return work.await };
        tokio::select! {
            biased;
            done = work => done,
            never = announce(foreign) => match never {},
        }
    }
}

async fn announce(foreign: &Foreign) -> Infallible {
    let mut pause = ANNOUNCE_AFTER;
    loop {
        tokio::time::sleep(pause).await;
        foreign.announce().await;
        pause = ANNOUNCE_INTERVAL;
    }
}

/// Serves a request topic until `stop`, which is the process's stop signal or a child of it: attaches, retrying while the topic is not there, hands
/// each question to `handler`, sends what it returns as the last message.
///
/// The topic's owner must have made it with this subscription; nothing here does. That it is gone is reported to the owners in
/// this process. Returns a token that is cancelled once
/// attached for the first time.
pub fn serve<X, F, Fut>(
    process: &Process,
    point: Point,
    stop: CancellationToken,
    handler: F,
) -> CancellationToken
where
    X: Exchange,
    F: Fn(X::Request, Responder<X>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<X::Response, message::Error>> + Send + 'static,
{
    let attached = CancellationToken::new();
    let part = process.clone();
    let name = format!("serve/{}", point.request);
    let told = attached.clone();
    process.tasks.supervise_to_end(name, ATTACH, move || {
        attach_and_answer(part.clone(), point.clone(), stop.clone(), told.clone(), handler.clone())
    });
    attached
}

async fn attach_and_answer<X, F, Fut>(
    process: Process,
    point: Point,
    stop: CancellationToken,
    attached: CancellationToken,
    handler: F,
) -> Result<(), Error>
where
    X: Exchange,
    F: Fn(X::Request, Responder<X>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<X::Response, message::Error>> + Send + 'static,
{
    let prefetch = u32::try_from(point.concurrency).unwrap_or(u32::MAX);
    let to =
        Subscription::Shared { topic: point.request.clone(), name: point.subscription.clone(), prefetch };
    let Some(inbox) = stop.run_until_cancelled(process.broker.subscribe(&to)).await else { return Ok(()) };
    let inbox = inbox.inspect_err(|error| process.missing.report(error))?;
    attached.cancel();
    let handler = move |request, mut responder: Responder<X>| {
        let asker = responder.asker();
        asker.told_of(handler(request, responder))
    };
    let served = Arc::new(Served { process: process.clone(), point: point.clone() });
    let work = |delivery| answer(served.clone(), delivery, handler.clone());
    let ended = take(&*inbox, point.concurrency, &process, &stop, work).await;
    let Some(error) = ended else { return Ok(()) };
    process.missing.report(&error);
    Err(error)
}

/// Takes deliveries until `stop` or the inbox fails, working on at most `concurrency` at once; then waits for the work
/// under way. `None` means stopped. Where the queue was removed, nothing of it comes back: what is under way then goes on to
/// its end beside whatever reads next.
///
/// A message that may have ended a process is worked on alone: nothing else of this inbox is under way then, and no other
/// such message of this process. A request that may have is the only such one, but others go on beside it: they may be
/// what it waits for.
pub(crate) async fn take<F, Fut>(
    inbox: &dyn Inbox,
    concurrency: usize,
    process: &Process,
    stop: &CancellationToken,
    work: F,
) -> Option<Error>
where
    F: Fn(Delivery) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let suspects = &process.suspects;
    let mut under_way = JoinSet::new();
    let ended = loop {
        while under_way.try_join_next().is_some() {}
        if under_way.len() >= concurrency.max(1) {
            tokio::select! {
                () = stop.cancelled() => break None,
                _ = under_way.join_next() => continue,
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => break None,
            next = inbox.next() => match next {
                Ok(delivery) if suspects.is_suspect(&delivery) => {
                    let delivery = delivery.cut_by(stop);
                    let Some(turn) = suspects.turn() else {
                        delivery.untried(ELSEWHERE_PAUSE);
                        continue;
                    };
                    let is_message = delivery.topic.class() == Class::Flow;
                    if is_message && !idle(&mut under_way, Duration::MAX, stop).await {
                        delivery.untried(Duration::ZERO);
                        break None;
                    }
                    let delivery = match stop.run_until_cancelled(inbox.begin(delivery)).await {
                        None => break None,
                        Some(Ok(delivery)) => delivery,
                        Some(Err(error)) => {
                            tracing::debug!(%error, "work on a message that may have ended a process waits");
                            continue;
                        }
                    };
                    under_way.spawn(alone(turn, work(delivery)));
                    if is_message && !idle(&mut under_way, ALONE_TIMEOUT, stop).await {
                        break None;
                    }
                }
                Ok(delivery) => { under_way.spawn(work(delivery.cut_by(stop))); }
                Err(error) => break Some(error),
            },
        }
    };
    if under_way.is_empty() || ended.as_ref().is_none_or(|error| error.kind() != ErrorKind::Absent) {
        drain(under_way, "work under way was cut; its messages come back").await;
        return ended;
    }
    let stop = stop.clone();
    process.tasks.spawn("serve/rest of a removed queue", async move {
        idle(&mut under_way, Duration::MAX, &stop).await;
        drain(under_way, "work under way was cut; its queue was removed, so nothing of it comes back").await;
    });
    ended
}

/// Waits for work under way; cuts what takes too long, and says so.
async fn drain(mut under_way: JoinSet<()>, if_cut: &str) {
    let drained = async { while under_way.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
        tracing::warn!("{if_cut}");
        // What it had goes back by itself, uncounted, before its reader leaves and gives back the rest.
        if tokio::time::timeout(CUT_TIMEOUT, under_way.shutdown()).await.is_err() {
            tracing::warn!("work that does not yield was left behind");
        }
    }
}

/// Works with the turn in hand, for as long as one may have it.
async fn alone(turn: OwnedSemaphorePermit, work: impl Future<Output = ()>) {
    let mut work = std::pin::pin!(work);
    if tokio::time::timeout(ALONE_TIMEOUT, &mut work).await.is_err() {
        drop(turn);
        work.await;
    }
}

/// Waits until nothing is under way or the time is over; false when stopped before.
async fn idle(under_way: &mut JoinSet<()>, within: Duration, stop: &CancellationToken) -> bool {
    let ended = async { while under_way.join_next().await.is_some() {} };
    stop.run_until_cancelled(tokio::time::timeout(within, ended)).await.is_some()
}

pub(crate) async fn answer<X, F, Fut>(served: Arc<Served>, mut delivery: Delivery, handler: F)
where
    X: Exchange,
    F: Fn(X::Request, Responder<X>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<X::Response, message::Error>> + Send + 'static,
{
    let Served { process, point } = &*served;
    // Looked at before anything reads it.
    let spent = process.suspects.is_spent(&delivery, HANDED_MAX).then(|| suspects::reason(&delivery));
    let question = std::mem::take(&mut delivery.message);
    let Some(responder) = Responder::<X>::new(&served, &question, delivery.attempt) else {
        tracing::warn!(topic = %point.request, "a request without an id was dropped: nobody could read its answer");
        delivery.ack();
        return;
    };
    let (to, id, room) = (responder.to.clone(), responder.id.clone(), responder.room.clone());
    let request = match spent {
        None => wire::decode::<X::Request>(&question.body)
            .map_err(|error| message::Error::new("bad-request", error.to_string())),
        Some(reason) => {
            tracing::error!(service = X::NAME, topic = %point.request, reason, "a request was given up");
            let told = format!("the request was given up: {reason}; change it before you send it again");
            Err(message::Error::new("unexpected-error", told))
        }
    };
    let outcome = match request {
        Ok(request) => {
            let handled = AssertUnwindSafe(handler(request, responder)).catch_unwind();
            trace::carry(&question, delivery.attempt, handled).await.unwrap_or_else(|panic| {
                let text = panic_text(&*panic);
                tracing::error!(service = X::NAME, panic = text, "a handler panicked");
                let told = format!("the {} service failed: {text}", X::NAME);
                Err(message::Error::new("unexpected-error", told))
            })
        }
        Err(error) => Err(error),
    };
    let last = Message::new(body(&outcome.unwrap_or_else(X::failed), &room)).with(property::ID, &id);
    match to.send(&*process.broker, &last).await {
        Ok(()) => delivery.ack(),
        // In a box, as is what happens seldom: the future of an answer is moved and allocated with each one.
        Err(error) => Box::pin(not_sent::<X>(&served, (to, id), last, delivery, error)).await,
    }
}

/// What becomes of an answer that could not be sent at once.
async fn not_sent<X: Exchange>(
    served: &Served,
    (to, id): (Answers, Box<str>),
    last: Message,
    delivery: Delivery,
    error: Error,
) {
    let Served { process, .. } = served;
    let broker = process.broker.clone();
    if !is_for_again(&error) {
        return settle::<X>(&*broker, &to, &id, Some(delivery), Err(error)).await;
    }
    let kib = u32::try_from(last.size_bytes() >> 10).unwrap_or(u32::MAX).saturating_add(1);
    let Ok(late) = process.late.clone().try_acquire_many_owned(kib) else {
        let sent = to.send_again(&*broker, &last, error).await;
        return settle::<X>(&*broker, &to, &id, Some(delivery), sent).await;
    };
    // While the broker is away its answer waits with the question, which somebody else may get then. Where its asker is, the
    // question is done with, and no other waits behind it.
    let held = if error.kind() == ErrorKind::Absent {
        delivery.ack();
        None
    } else {
        Some(delivery)
    };
    let stop = process.stop.clone();
    process.tasks.spawn(format!("serve/late answer of {}", X::NAME), async move {
        let mut again = std::pin::pin!(to.send_again(&*broker, &last, error));
        let sent = match stop.run_until_cancelled(&mut again).await {
            Some(sent) => Ok(sent),
            None => tokio::time::timeout(DRAIN_TIMEOUT, again).await,
        };
        match sent {
            Ok(sent) => settle::<X>(&*broker, &to, &id, held, sent).await,
            Err(_) => tracing::warn!(service = X::NAME, "an answer was cut that could not be sent"),
        }
        drop(late);
    });
}

/// Ends work on a question whose answer was sent, or cannot be.
async fn settle<X: Exchange>(
    broker: &dyn Broker,
    to: &Answers,
    id: &str,
    delivery: Option<Delivery>,
    sent: Result<(), Error>,
) {
    match sent {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::Absent => {
            tracing::debug!(service = X::NAME, %error, "nobody waits for this answer any more");
        }
        Err(error) if error.kind() == ErrorKind::Refused => {
            let told = X::failed(message::Error::new("unexpected-error", error.to_string()));
            let _ = to.send(broker, &Message::new(wire::encode(&told)).with(property::ID, id)).await;
        }
        Err(error) => {
            tracing::warn!(service = X::NAME, %error, "an answer could not be sent");
        }
    }
    if let Some(delivery) = delivery {
        delivery.ack();
    }
}
