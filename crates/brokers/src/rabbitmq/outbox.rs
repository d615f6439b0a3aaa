//! Few channels for many publishes. What waits when a channel gets free is sent over it together and confirmed together,
//! so the broker confirms many publishes in one frame; a message that comes back is looked for among all that were sent
//! with it, for the client library ties it to any of them.
//!
//! One task publishes over a channel: the library numbers a publish before it sends it, and the broker counts what it gets,
//! so two tasks could take each other's confirmation for their own.
//!
//! A failed publish closes its channel. So one that is likely to fail goes alone: to an exchange that this channel has
//! not published to before, or a large one. Should one fail among others all the same, those after it, of which the
//! broker has taken none, are sent again, and those before it that were not yet confirmed have an unknown outcome.
//! Publishes that the client library still held back when the channel closed go out on the closed channel, and the broker
//! ends the connection for that: then what was under way on the others has an unknown outcome too.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use sluice_bus::{Error, Result};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::fault::{self, code};
use super::link::Link;
use super::stopped;

/// Publishes that wait for a channel; beyond it their callers do.
const WAITING_MAX: usize = 256;
/// Publishes that go over a channel together.
const TOGETHER_MAX: usize = 64;
/// A larger body goes alone.
const TOGETHER_BYTES_MAX: usize = 256 << 10;
/// Exchanges that a channel is known to publish to; beyond it they are all forgotten.
const KNOWN_MAX: usize = 10_000;

/// What is sent.
pub(super) struct Letter {
    pub(super) exchange: ShortString,
    pub(super) key: ShortString,
    /// Whether it comes back when no queue takes it.
    pub(super) mandatory: bool,
    pub(super) body: Bytes,
    pub(super) properties: BasicProperties,
}

/// Where the broker put a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Routed {
    Queued,
    Nowhere,
}

/// Why a publish failed.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// The exchange is not there.
    NoExchange,
    /// The broker takes smaller messages only, of so many bytes where it says so.
    TooLarge(Option<usize>),
    /// No word in time: it may have happened.
    Late,
    Other(Error),
}

struct Posted {
    letter: Letter,
    deadline: Instant,
    answer: oneshot::Sender<Result<Routed, Fault>>,
}

/// Ends with its last clone.
pub(super) struct Outbox {
    waiting: mpsc::Sender<Posted>,
}

impl Outbox {
    pub(super) fn new(link: &Link, channels: usize) -> Self {
        let (waiting, queue) = mpsc::channel(WAITING_MAX);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..channels.max(1) {
            let (queue, link) = (queue.clone(), link.clone());
            let lane = Lane { queue, link, open: None, known: HashSet::new() };
            #[expect(
                clippy::disallowed_methods,
                reason = "floor 1 does not see the sdk's tasks; the last sender's end ends this one"
            )]
            tokio::spawn(lane.run());
        }
        Self { waiting }
    }

    /// Sends and waits for the broker's word.
    pub(super) async fn post(&self, letter: Letter, deadline: Instant) -> Result<Routed, Fault> {
        let (answer, answered) = oneshot::channel();
        let posted = Posted { letter, deadline, answer };
        // Mostly there is room, and no need of a timer.
        let waits = match self.waiting.try_send(posted) {
            Ok(()) => None,
            Err(TrySendError::Full(posted)) => Some(posted),
            Err(TrySendError::Closed(_)) => return Err(Fault::Other(stopped())),
        };
        if let Some(posted) = waits {
            match timeout_at(deadline, self.waiting.send(posted)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Fault::Other(stopped())),
                Err(_) => {
                    let reason = format!("{WAITING_MAX} publishes were before it all the time");
                    return Err(Fault::Other(Error::Unavailable { reason }));
                }
            }
        }
        match timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Fault::Other(stopped())),
            Err(_) => Err(Fault::Late),
        }
    }
}

fn about(letter: &Letter) -> String {
    let to = if letter.exchange.as_str().is_empty() { &letter.key } else { &letter.exchange };
    format!("a publish to '{to}'")
}

/// One channel and the task that publishes over it.
struct Lane {
    queue: Arc<Mutex<mpsc::Receiver<Posted>>>,
    link: Link,
    open: Option<(u64, Channel)>,
    /// Exchanges that a publish has succeeded to.
    known: HashSet<ShortString>,
}

impl Lane {
    async fn run(mut self) {
        let mut posted = Vec::new();
        while self.queue.clone().lock().await.recv_many(&mut posted, TOGETHER_MAX).await > 0 {
            let (together, alone): (Vec<_>, Vec<_>) = posted
                .drain(..)
                .filter(|posted| !posted.answer.is_closed())
                .partition(|posted| self.is_likely_to_succeed(&posted.letter));
            self.send_all(together).await;
            for posted in alone {
                self.send_all(vec![posted]).await;
            }
        }
    }

    fn is_likely_to_succeed(&self, letter: &Letter) -> bool {
        let is_known = letter.exchange.as_str().is_empty() || self.known.contains(&letter.exchange);
        is_known && letter.body.len() <= TOGETHER_BYTES_MAX
    }

    /// Sends until each has an answer: every round answers at least one.
    async fn send_all(&mut self, mut posted: Vec<Posted>) {
        while let Some(last) = posted.iter().map(|posted| posted.deadline).max() {
            posted = match self.channel(last).await {
                Ok(channel) => self.send(&channel, posted).await,
                Err(error) => {
                    for posted in posted {
                        let _ = posted.answer.send(Err(Fault::Other(error.clone())));
                    }
                    return;
                }
            };
        }
    }

    async fn channel(&mut self, deadline: Instant) -> Result<Channel> {
        let within = deadline.saturating_duration_since(Instant::now()).min(self.link.call_timeout());
        let up = self.link.up(within).await?;
        if let Some((generation, channel)) = &self.open
            && *generation == up.generation
            && channel.status().connected()
        {
            return Ok(channel.clone());
        }
        let opened = self.link.channel(within, |channel| async {
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(channel)
        });
        Ok(self.open.insert(opened.await?).1.clone())
    }

    /// Sends these together; answers those of which nothing has happened.
    async fn send(&mut self, channel: &Channel, posted: Vec<Posted>) -> Vec<Posted> {
        let outcomes = confirmed(channel, &posted).await;
        let returned: HashSet<_> = outcomes.iter().filter_map(|outcome| came_back(outcome)).collect();
        let is_over = !outcomes.iter().all(|outcome| matches!(outcome, Outcome::Confirmed { .. }));
        if is_over && let Some((generation, _)) = self.open.take() {
            let has_failed = outcomes.iter().any(|outcome| matches!(outcome, Outcome::Failed(_)));
            has_failed.then(|| self.link.spent(generation));
        }
        let blamed =
            posted.iter().zip(&outcomes).position(|(posted, outcome)| is_blamed(&posted.letter, outcome));
        let is_alone = posted.len() == 1;
        let mut untouched = Vec::new();
        let mut answers = Vec::new();
        for (at, (posted, outcome)) in posted.into_iter().zip(&outcomes).enumerate() {
            let answer = match outcome {
                Outcome::Confirmed { is_taken: false, .. } => Err(Fault::Other(not_taken(&posted.letter))),
                Outcome::Confirmed { .. } if returned.contains(&key(&posted.letter)) => Ok(Routed::Nowhere),
                Outcome::Confirmed { .. } => Ok(Routed::Queued),
                Outcome::Failed(_) if blamed.is_some_and(|blamed| at > blamed) => {
                    untouched.push(posted);
                    continue;
                }
                // The broker's word against one of several is nobody's until it is known whose.
                Outcome::Failed(error) if is_alone || blamed == Some(at) || fault::reply(error).is_none() => {
                    Err(meaning(error, &about(&posted.letter)))
                }
                Outcome::Failed(error) => Err(Fault::Other(Error::OutcomeUnknown {
                    what: about(&posted.letter),
                    reason: format!("another publish closed their channel ({error})"),
                })),
                Outcome::Late => Err(Fault::Late),
            };
            answers.push((posted, answer));
        }
        drop(returned);
        for (posted, answer) in answers {
            self.learn(&posted.letter, answer.is_ok());
            let _ = posted.answer.send(answer);
        }
        untouched
    }

    fn learn(&mut self, letter: &Letter, is_there: bool) {
        if !is_there {
            self.known.remove(&letter.exchange);
        } else if !self.known.contains(&letter.exchange) {
            if self.known.len() >= KNOWN_MAX {
                self.known.clear();
            }
            self.known.insert(letter.exchange.clone());
        }
    }
}

/// What became of one publish.
enum Outcome {
    Confirmed {
        is_taken: bool,
        /// A message that came back: of this publish, or of one sent with it.
        back: Option<Box<BasicReturnMessage>>,
    },
    Failed(lapin::Error),
    /// No word within its time.
    Late,
}

/// Publishes these in their order; waits for all, up to the last one's deadline.
async fn confirmed(channel: &Channel, posted: &[Posted]) -> Vec<Outcome> {
    let mut outcomes: Vec<_> = posted.iter().map(|_| Outcome::Late).collect();
    let publishes = posted
        .iter()
        .enumerate()
        .map(|(at, posted)| async move { (at, publish(channel, &posted.letter).await) });
    // Polled for the first time, and so published, in the order they are put in.
    let mut publishes: FuturesUnordered<_> = publishes.collect();
    let all = async {
        while let Some((at, outcome)) = publishes.next().await {
            outcomes[at] = outcome.map_or_else(Outcome::Failed, |confirmation| Outcome::Confirmed {
                is_taken: !confirmation.is_nack(),
                back: confirmation.take_message().map(Box::new),
            });
        }
    };
    let last = posted.iter().map(|posted| posted.deadline).max().unwrap_or_else(Instant::now);
    let _ = timeout_at(last, all).await;
    outcomes
}

async fn publish(channel: &Channel, letter: &Letter) -> Result<Confirmation, lapin::Error> {
    let options = BasicPublishOptions { mandatory: letter.mandatory, ..Default::default() };
    let (exchange, key) = (letter.exchange.clone(), letter.key.clone());
    channel.basic_publish(exchange, key, options, &letter.body, letter.properties.clone()).await?.await
}

/// What tells a message from those sent with it: who copies messages of others keeps their ids.
type Key<'a> = (Option<&'a ShortString>, &'a ShortString, &'a ShortString);

fn key(letter: &Letter) -> Key<'_> {
    (letter.properties.message_id().as_ref(), &letter.exchange, &letter.key)
}

fn came_back(outcome: &Outcome) -> Option<Key<'_>> {
    let Outcome::Confirmed { back: Some(back), .. } = outcome else { return None };
    Some((back.properties.message_id().as_ref(), &back.exchange, &back.routing_key))
}

/// Whether it is this one that the broker closed the channel for.
fn is_blamed(letter: &Letter, outcome: &Outcome) -> bool {
    let Outcome::Failed(error) = outcome else { return false };
    match fault::reply(error) {
        Some((code::NOT_FOUND | code::ACCESS_REFUSED, text)) => {
            text.contains(&format!("exchange '{}'", letter.exchange))
        }
        Some((code::PRECONDITION_FAILED, text)) => text.contains(&format!("size {} ", letter.body.len())),
        _ => false,
    }
}

fn not_taken(letter: &Letter) -> Error {
    let what = about(letter);
    Error::Unavailable {
        reason: format!("it did not take {what} (an internal error, or a queue over its limit)"),
    }
}

fn meaning(error: &lapin::Error, what: &str) -> Fault {
    match fault::reply(error) {
        Some((code::NOT_FOUND, _)) => Fault::NoExchange,
        Some((code::PRECONDITION_FAILED, text)) if text.contains("size") => {
            Fault::TooLarge(fault::message_bytes_max(text))
        }
        _ => Fault::Other(fault::of_call(error, what, what)),
    }
}
