//! A reader of a durable consumer. One task per reader asks for as many messages as it has room for, says of those in hand
//! that they are still worked on, settles them, and asks anew after a lost connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::{ErrorCode, consumer};
use async_nats::{Message as Arrived, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture as Boxed;
use futures_util::stream::FuturesUnordered;
use serde_json::json;
use sluice_bus::{
    BoxFuture, Delivery, Error, ErrorKind, Inbox, InboxAddress, Losses, Message, Result, Settle, Verdict,
};
use sluice_schema::Topic;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::link::{self, Link};
use super::notes::{Note, Notes};
use super::{Core, names};
use crate::local::{Pauses, lock, stopped};

/// How long the server keeps a request for messages.
const PULL_EXPIRES: Duration = Duration::from_secs(300);
/// How often the server says that it still has one.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Hearing nothing for so long, a reader looks whether its consumer is there, and asks anew.
const SILENCE_MAX: Duration = Duration::from_secs(12);
/// How long a reader that leaves waits for what is on its way to it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// How the server ends a request whose consumer was removed.
const DELETED: &str = "Consumer Deleted";
const DONE: &str = "+ACK";
const AT_WORK: &str = "+WPI";
const AGAIN: &str = "-NAK";

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
    stream: String,
    consumer: String,
}

pub(super) async fn attach(core: &Core, topic: &Topic, name: &str, prefetch: u32) -> Result<SharedInbox> {
    names::check_class(topic, true)?;
    if core.stop.is_cancelled() {
        return Err(stopped());
    }
    let at = Arc::new(At {
        topic: topic.clone(),
        subscription: name.to_owned(),
        stream: names::stream(topic),
        consumer: names::consumer(name),
    });
    let found = at.look(&core.link, core.options.call_timeout).await?;
    let session = Session::open(&core.link).await?;
    let prefetch = prefetch.max(1) as usize;
    let stop = core.stop.child_token();
    let (out, deliveries) = mpsc::channel(prefetch);
    let (verdicts, told) = mpsc::unbounded_channel();
    let ended = Arc::new(Mutex::new(None));
    let reader = Reader {
        at: at.clone(),
        prefetch,
        link: core.link.clone(),
        notes: core.notes.clone(),
        tasks: core.tasks.clone(),
        within: core.options.call_timeout,
        at_work_every: (found.config.ack_wait / 3).max(Duration::from_millis(100)),
        stop: stop.clone(),
        out,
        verdicts,
        told,
        in_hands: HashMap::new(),
        lookups: FuturesUnordered::new(),
        ended: ended.clone(),
        losses: core.losses.clone(),
    };
    core.tasks.spawn(reader.run(session));
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
    /// Whether it is there.
    async fn look(&self, link: &Link, within: Duration) -> Result<consumer::Info> {
        let path = format!("CONSUMER.INFO.{}.{}", self.stream, self.consumer);
        match link.api(&path, &json!(null), within).await? {
            Ok(found) => Ok(found),
            Err(refusal) if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                Err(Error::NoTopic { topic: self.topic.clone() })
            }
            Err(refusal) if refusal.error_code() == ErrorCode::CONSUMER_NOT_FOUND => Err(self.absent()),
            Err(refusal) => Err(link::refused(&refusal, "looking at a consumer")),
        }
    }

    fn absent(&self) -> Error {
        Error::NoSubscription { topic: self.topic.clone(), subscription: self.subscription.clone() }
    }

    fn mark(&self, message: &Message) -> String {
        names::mark(&self.stream, &self.consumer, message)
    }
}

/// What a holder decided.
struct Told {
    sequence: u64,
    verdict: Verdict,
}

struct Settler {
    sequence: u64,
    /// Unbounded: at most one entry for each delivery in somebody's hands, of which there are `prefetch`.
    verdicts: mpsc::UnboundedSender<Told>,
}

impl Settle for Settler {
    fn settle(self: Box<Self>, verdict: Verdict) {
        // When the reader is gone, it has given the message back.
        let _ = self.verdicts.send(Told { sequence: self.sequence, verdict });
    }
}

/// A message that the server has given us and that is not settled.
struct InHands {
    /// Where it is settled.
    reply: Subject,
    /// What its note goes by, and whether there may be one.
    message: Message,
    is_noted: bool,
}

/// One subscription, and what is asked for over it.
struct Session {
    inbox: String,
    messages: Subscriber,
    lost: watch::Receiver<u64>,
    /// How many messages the server may still send.
    asked: usize,
    heard: Instant,
}

impl Session {
    async fn open(link: &Link) -> Result<Self> {
        let mut lost = link.lost();
        lost.mark_unchanged();
        let inbox = link.client.new_inbox();
        let messages = link.client.subscribe(inbox.clone()).await;
        let messages = messages.map_err(|error| Error::Unavailable { reason: error.to_string() })?;
        Ok(Self { inbox, messages, lost, asked: 0, heard: Instant::now() })
    }

    /// When the server should have been heard of, if anything is asked for.
    fn silent_at(&self) -> Option<Instant> {
        (self.asked > 0).then(|| self.heard + SILENCE_MAX)
    }
}

/// A message whose attempts are known.
struct Known {
    message: Message,
    sequence: u64,
    attempt: u32,
}

struct Reader {
    at: Arc<At>,
    prefetch: usize,
    link: Arc<Link>,
    notes: Notes,
    tasks: TaskTracker,
    within: Duration,
    at_work_every: Duration,
    stop: CancellationToken,
    out: mpsc::Sender<Delivery>,
    verdicts: mpsc::UnboundedSender<Told>,
    told: mpsc::UnboundedReceiver<Told>,
    /// By sequence in the stream, which no other incarnation of the topic has.
    in_hands: HashMap<u64, InHands>,
    /// Messages of before, whose notes are read.
    lookups: FuturesUnordered<Boxed<'static, Known>>,
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
            match self.serve(&mut session).await {
                End::Left => {
                    self.leave(session).await;
                    break stopped();
                }
                End::Removed => break self.at.absent(),
                End::Lost(reason) => {
                    tracing::debug!(consumer = self.at.consumer, reason, "a reader was cut off; asking anew");
                }
            }
            session = match self.attach_again().await {
                Some(Ok(session)) => session,
                Some(Err(error)) => break error,
                None => {
                    self.give_all_back().await;
                    break stopped();
                }
            };
        };
        if error.kind() == ErrorKind::Absent {
            // Its owner learns at once, also where others of its topic stayed.
            self.losses.note_removed(&self.at.topic);
        }
        *lock(&self.ended) = Some(error);
    }

    async fn serve(&mut self, session: &mut Session) -> End {
        let mut at_work = tokio::time::interval(self.at_work_every);
        at_work.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Err(error) = self.ask(session).await {
                return End::Lost(error);
            }
            let silent_at = session.silent_at();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return End::Left,
                Some(told) = self.told.recv() => {
                    self.settled(told).await;
                    while let Ok(told) = self.told.try_recv() {
                        self.settled(told).await;
                    }
                }
                Some(known) = self.lookups.next() => self.hand_out(known),
                _ = session.lost.changed() => return End::Lost("the connection was lost".to_owned()),
                _ = at_work.tick() => self.say_at_work().await,
                () = until(silent_at) => return self.look("nothing was heard").await,
                arrived = session.messages.next() => {
                    session.heard = Instant::now();
                    match arrived {
                        None => return End::Lost("its subscription ended".to_owned()),
                        Some(arrived) => match arrived.status {
                            None => self.arrived(session, arrived),
                            Some(status) => match reported(session, status, &arrived) {
                                Ok(()) => {}
                                Err(why) if why.contains(DELETED) => return End::Removed,
                                Err(why) => return self.look(&why).await,
                            },
                        },
                    }
                }
            }
        }
    }

    /// Asks for as many messages as there is room for. Not one by one where there is much: each request costs a message.
    async fn ask(&mut self, session: &mut Session) -> Result<(), String> {
        let free = self.prefetch.saturating_sub(self.in_hands.len() + session.asked);
        if free == 0 || (session.asked > 0 && free < self.prefetch / 4) {
            return Ok(());
        }
        let body = json!({
            "batch": free,
            "expires": PULL_EXPIRES.as_nanos() as u64,
            "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
        });
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.at.stream, self.at.consumer);
        let body = Bytes::from(body.to_string());
        let sent = self.link.client.publish_with_reply(subject, session.inbox.clone(), body).await;
        sent.map_err(|error| error.to_string())?;
        session.asked += free;
        session.heard = Instant::now();
        Ok(())
    }

    fn arrived(&mut self, session: &mut Session, arrived: Arrived) {
        session.asked = session.asked.saturating_sub(1);
        let Some(reply) = arrived.reply else { return };
        let Some((sequence, delivered)) = counted(&reply) else {
            tracing::warn!(consumer = self.at.consumer, %reply, "a message came that cannot be settled");
            return;
        };
        // The server thought us gone: it is in hand already, and is settled where the latest delivery is.
        if let Some(held) = self.in_hands.get_mut(&sequence) {
            held.reply = reply;
            return;
        }
        let message = names::message(arrived.payload, arrived.headers.as_ref());
        let is_noted = delivered > 1;
        self.in_hands.insert(sequence, InHands { reply, message: message.clone(), is_noted });
        if !is_noted {
            self.hand_out(Known { message, sequence, attempt: 1 });
            return;
        }
        let (notes, at) = (self.notes.clone(), self.at.clone());
        self.lookups.push(Box::pin(async move {
            let note = notes.read(&at.mark(&message)).await.unwrap_or_else(|error| {
                tracing::debug!(at.consumer, %error, "a note could not be read; every delivery counts");
                Note::default()
            });
            Known { message, sequence, attempt: delivered.saturating_sub(note.untried).max(1) }
        }));
    }

    fn hand_out(&self, known: Known) {
        let settler = Settler { sequence: known.sequence, verdicts: self.verdicts.clone() };
        let topic = self.at.topic.clone();
        let delivery = Delivery::new(known.message, topic, known.attempt, Box::new(settler));
        // There is room for as many as may be in hands; should the reader be gone, dropping gives it back.
        let _ = self.out.try_send(delivery);
    }

    async fn settled(&mut self, told: Told) {
        let Some(held) = self.in_hands.remove(&told.sequence) else { return };
        match told.verdict {
            Verdict::Done => {
                say(&self.link, held.reply, DONE.into()).await;
                if held.is_noted {
                    let (notes, mark) = (self.notes.clone(), self.at.mark(&held.message));
                    self.tasks.spawn(async move {
                        if let Err(error) = notes.forget(&mark).await {
                            tracing::debug!(mark, %error, "a note was not removed; it goes by itself");
                        }
                    });
                }
            }
            Verdict::Again(delay) => say(&self.link, held.reply, again(delay)).await,
            Verdict::Untried(delay) => {
                let (notes, link, mark) =
                    (self.notes.clone(), self.link.clone(), self.at.mark(&held.message));
                // Noted first, so that its next reader knows.
                self.tasks.spawn(async move {
                    if let Err(error) = notes.untried(&mark).await {
                        tracing::debug!(mark, %error, "given back untried, it counts all the same");
                    }
                    say(&link, held.reply, again(delay)).await;
                });
            }
        }
    }

    async fn say_at_work(&mut self) {
        for held in self.in_hands.values() {
            say(&self.link, held.reply.clone(), AT_WORK.into()).await;
        }
    }

    /// Looks whether what is read is still there.
    async fn look(&mut self, why: &str) -> End {
        match self.at.look(&self.link, self.within).await {
            Err(error) if error.kind() == ErrorKind::Absent => End::Removed,
            Ok(_) | Err(_) => End::Lost(why.to_owned()),
        }
    }

    /// Attaches again, however long it takes; `None` when it is not wanted any more.
    async fn attach_again(&mut self) -> Option<Result<Session>> {
        let mut pauses = Pauses::new();
        loop {
            let pause = pauses.next();
            let attempt = async {
                tokio::time::sleep(pause).await;
                self.at.look(&self.link, self.within).await?;
                Session::open(&self.link).await
            };
            match self.stop.run_until_cancelled(attempt).await? {
                Err(error) if error.kind() == ErrorKind::Absent => return Some(Err(self.at.absent())),
                Err(error) if error.kind() != ErrorKind::Refused => {
                    tracing::debug!(consumer = self.at.consumer, %error, "a reader could not ask anew yet");
                }
                outcome => return Some(outcome),
            }
        }
    }

    /// Gives back what is on its way, and what is in hand: in this order, or the server would give it to this reader again,
    /// which may still ask for some.
    async fn leave(&mut self, mut session: Session) {
        let mut on_their_way = Vec::new();
        if session.asked > 0 && session.messages.drain().await.is_ok() {
            let rest = async {
                while let Some(arrived) = session.messages.next().await {
                    on_their_way.extend(arrived.reply.filter(|_| arrived.status.is_none()));
                }
            };
            if tokio::time::timeout(LEAVE_TIMEOUT, rest).await.is_err() {
                tracing::debug!(consumer = self.at.consumer, "what is on its way comes back by itself");
            }
        }
        for reply in on_their_way {
            say(&self.link, reply, AGAIN.into()).await;
        }
        self.give_all_back().await;
    }

    async fn give_all_back(&mut self) {
        while let Ok(told) = self.told.try_recv() {
            self.settled(told).await;
        }
        for (_, held) in std::mem::take(&mut self.in_hands) {
            say(&self.link, held.reply, AGAIN.into()).await;
        }
    }
}

/// The message's sequence in the stream and how often it was delivered, out of where it is settled:
/// `$JS.ACK.STREAM.CONSUMER.DELIVERED.SEQUENCE.…`, with domain and account before the stream on newer servers.
fn counted(reply: &str) -> Option<(u64, u32)> {
    let parts: Vec<_> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
    let at = if parts.len() >= 9 { 2 } else { 0 };
    let delivered = parts.get(at + 2)?.parse::<u64>().ok()?;
    Some((parts.get(at + 3)?.parse().ok()?, u32::try_from(delivered).unwrap_or(u32::MAX)))
}

/// Takes note of what the server says of a request for messages; the error says why all have to be asked for anew.
fn reported(session: &mut Session, status: StatusCode, arrived: &Arrived) -> Result<(), String> {
    if status == StatusCode::IDLE_HEARTBEAT {
        return Ok(());
    }
    let unsent = arrived.headers.as_ref().and_then(|headers| headers.get("Nats-Pending-Messages"));
    if let Some(unsent) = unsent.and_then(|unsent| unsent.as_str().parse().ok()) {
        session.asked = session.asked.saturating_sub(unsent);
        return Ok(());
    }
    let said = arrived.description.as_deref().unwrap_or_default();
    Err(format!("the server says {status} {said}"))
}

fn again(delay: Duration) -> Bytes {
    if delay.is_zero() {
        return AGAIN.into();
    }
    let nanos = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
    format!("{AGAIN} {}", json!({"delay": nanos})).into()
}

async fn say(link: &Link, to: Subject, what: Bytes) {
    if let Err(error) = link.client.publish(to, what).await {
        tracing::debug!(%error, "a message could not be settled; it comes again");
    }
}

/// Waits until then; for ever where there is no such time.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_are_counted_in_either_form() {
        let check = |reply: &str, wanted| assert_eq!(counted(reply), wanted, "{reply}");
        check(
            "$JS.ACK.tg_flow_a:b.reader.3.1764400000000001.7.1764400000000000000.2",
            Some((1764400000000001, 3)),
        );
        check("$JS.ACK._.hash.tg_flow_a.reader.1.9.7.1764400000000000000.2", Some((9, 1)));
        check("$JS.ACK.hub.hash.tg_flow_a.reader.1.9.7.1764400000000000000.2.token", Some((9, 1)));
        check("$JS.ACK.a.b", None);
        check("_INBOX.x", None);
    }

    #[test]
    fn a_wait_is_asked_for_in_nanoseconds() {
        assert_eq!(again(Duration::ZERO), "-NAK");
        assert_eq!(again(Duration::from_millis(300)), "-NAK {\"delay\":300000000}");
    }
}
