//! Answers on their way back: parts until the last, or the reason why there are no more.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value};
use sluice_bus::shares::{Share, Shares};
use sluice_bus::{Broker, Error, RawCall};
use sluice_schema::api::{self, Reply};
use sluice_schema::{ceilings, message};
use tokio_util::sync::CancellationToken;

use crate::identity;
use crate::metrics::Metrics;
use crate::refusal::Refusal;

/// Answers up to this size are counted nowhere: as many as there are calls take little.
const SMALL_BYTES: usize = 64 << 10;
/// What an answer may weigh: vectors of three thousand numbers for each of two thousand texts do.
const WEIGHT_BYTES_MAX: usize = 1 << 30;
/// What a value takes of its weight once an answer is read: nothing of it grows then.
const WEIGHT_PARTS: usize = 4;
const TOO_MANY_VALUES: &str = "the answer has too many values for its size; ask for less of it, for lists by pages: 'bytes_max', for example 4194304";
const ANSWERS_FULL: &str =
    "you have too many bytes of answers under way; take those that you asked for, then try again";

/// An answer that comes in parts. Dropping it stops waiting.
pub(crate) struct Answer {
    source: Source,
    service: &'static str,
    started: Instant,
    metrics: Metrics,
    ended: bool,
    taker: Taker,
}

/// What a call under way counts for, and by which name its answers do.
pub(crate) struct CallShare {
    pub(crate) holder: String,
    pub(crate) _taken: Share,
}

/// Who takes an answer, and what large answers count in until they are taken.
pub(crate) struct Taker {
    /// `None` for a call without a credential.
    pub(crate) share: Option<CallShare>,
    pub(crate) answers: Arc<Shares>,
}

impl Taker {
    /// What a part of an answer counts for, if its caller may have so much: what it takes once it is read.
    fn hold(&self, part: &[u8]) -> Result<Option<Share>, Refusal> {
        let Some(share) = self.share.as_ref().filter(|_| part.len() > SMALL_BYTES) else { return Ok(None) };
        let weight = ceilings::weigh(part);
        if weight > WEIGHT_BYTES_MAX {
            return Err(Refusal::failed(message::Error::TOO_LARGE, TOO_MANY_VALUES));
        }
        let takes = part.len().max(weight / WEIGHT_PARTS);
        // One that is heavier than all answers may be still comes alone.
        let mut held = self.answers.share(&share.holder, 0);
        let fits = held.grow(takes.min(held.most()));
        if fits { Ok(Some(held)) } else { Err(Refusal::Overloaded(ANSWERS_FULL)) }
    }
}

/// A part of an answer.
pub(crate) struct Part {
    pub(crate) reply: Reply,
    /// What it counts for until its caller has it; `None` for a small one.
    pub(crate) held: Option<Share>,
}

pub(crate) enum Source {
    /// Handed in; there is nothing more to say.
    Accepted,
    Service(Box<Stream>),
}

pub(crate) struct Stream {
    pub(crate) raw: RawCall,
    pub(crate) asked: api::Call,
    /// What ends the call early, and how that is told.
    pub(crate) gone: Option<(CancellationToken, Refusal)>,
    /// Cancelled when calls still under way are cut.
    pub(crate) cut: CancellationToken,
}

impl Answer {
    pub(crate) fn new(
        source: Source,
        service: &'static str,
        started: Instant,
        metrics: Metrics,
        taker: Taker,
    ) -> Self {
        Self { source, service, started, metrics, ended: false, taker }
    }

    /// Whether the call is counted as under way.
    pub(crate) const fn is_counted(&self) -> bool {
        self.taker.share.is_some()
    }

    /// The next part that the caller is sent; nothing is asked for after the last or after a refusal. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Part, Refusal> {
        let part = match &mut self.source {
            Source::Accepted => {
                let reply = Reply { body: Value::Object(Map::new()), last: true, error: None, aside: false };
                Ok(Part { reply, held: None })
            }
            Source::Service(stream) => stream.next(&self.metrics, &self.taker).await,
        };
        if part.as_ref().map_or(true, |part| part.reply.last) {
            self.end(part.as_ref().is_ok_and(|part| part.reply.error.is_none()));
        }
        part
    }

    /// The one part that a caller who takes no parts gets.
    pub(crate) async fn only(mut self) -> Result<Part, Refusal> {
        loop {
            let part = self.next().await?;
            if part.reply.last || self.is_by_number() {
                self.end(part.reply.error.is_none());
                return Ok(part);
            }
        }
    }

    /// Whether one part was asked for by its number, so that the first one handed out is it.
    fn is_by_number(&self) -> bool {
        matches!(&self.source, Source::Service(stream) if stream.asked.operation == "stream-document")
    }

    fn end(&mut self, ok: bool) {
        if !std::mem::replace(&mut self.ended, true) {
            self.metrics.called(self.service, ok, self.started.elapsed());
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // The caller left before the end.
        self.end(false);
    }
}

impl Stream {
    async fn next(&mut self, metrics: &Metrics, taker: &Taker) -> Result<Part, Refusal> {
        loop {
            let message = tokio::select! {
                biased;
                message = self.raw.next() => message.map_err(|error| lost(&error, self.asked.service().name, self.raw.broker()))?,
                refusal = ended_early(self.gone.as_ref()) => return Err(refusal),
                () = self.cut.cancelled() => return Err(Refusal::stopping()),
            };
            let held = taker.hold(&message.body)?;
            let reply = self.asked.decode(&message.body).map_err(|error| {
                metrics.unreadable_answers.inc();
                tracing::error!(%error, "an answer cannot be read");
                Refusal::Failed(error.to_error())
            })?;
            if self.asked.sends(&reply) {
                return Ok(Part { reply, held });
            }
            if reply.last {
                // Nothing comes after it: waiting on would be waiting for the deadline.
                let reason = "the answer ended without the part that was asked for";
                return Err(Refusal::failed("gateway-error", reason));
            }
        }
    }
}

async fn ended_early(gone: Option<&(CancellationToken, Refusal)>) -> Refusal {
    match gone {
        None => std::future::pending().await,
        Some((token, refusal)) => {
            token.cancelled().await;
            refusal.clone()
        }
    }
}

fn lost(error: &Error, service: &str, broker: &dyn Broker) -> Refusal {
    tracing::warn!(%error, service, "a call ended without its answer");
    match error {
        Error::TimedOut { .. } if service == "iam" => identity::cannot_ask(error, broker),
        Error::TimedOut { .. } => Refusal::failed("gateway-error", "Timeout"),
        Error::Full { .. } => Refusal::Overloaded("the answer was not read fast enough"),
        Error::QuestionLost { .. } if service == "iam" => identity::cannot_ask(error, broker),
        Error::QuestionLost { .. } => Refusal::question_lost(service),
        _ => Refusal::failed("gateway-error", "the answer was lost"),
    }
}
