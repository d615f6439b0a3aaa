//! What travels: a body with a few text properties, and the duty to settle it that comes with a delivery.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sluice_schema::Topic;
use tokio_util::sync::CancellationToken;

/// Names of message properties. All are text; foreign peers read only [`property::ID`].
pub mod property {
    /// Matches answers to their question: a UUID, copied from the request to every response.
    pub const ID: &str = "id";
    /// Ours: the inbox that wants the answer directly, beside or instead of the response topic.
    pub const REPLY_TO: &str = "sluice-reply-to";
    /// Ours: milliseconds from publishing after which nobody waits for the answer; a broker may drop the request then.
    /// Relative, so that no two machines' clocks are compared.
    pub const TTL: &str = "sluice-ttl-ms";
    /// Ours, on a message to the inbox of an asker, which is no answer: the inbox of who works on the question with this id.
    pub const TAKEN_BY: &str = "sluice-taken-by";
    /// Ours, on a message to that inbox: the asker of the question with this id has stopped waiting.
    pub const LEFT: &str = "sluice-left";
    /// Ours, on a message to that inbox: it stands for the answer with this id, for which the inbox had no room.
    pub const DROPPED: &str = "sluice-dropped";
    /// Ours: the request id that a person sees, carried through every hop.
    pub const TRACE: &str = "sluice-trace";
    /// Ours: which pass of its document through a flow a pipeline message belongs to, carried through every hop: a number
    /// that grows with each pass.
    pub const PASS: &str = "sluice-pass";
    /// Ours, on a pipeline message: whoever sent it was working on something that may have been worked on before, so this
    /// may have been sent before. Carried through every hop.
    pub const AGAIN: &str = "sluice-again";
    /// Ours, on a message that is taken into a flow: how many times its bytes its stages make of it, about. What is yet to
    /// come counts in the backlog from the start where the broker reads this.
    pub const GROWTH: &str = "sluice-growth";
    /// Ours: identity of a pipeline message, stable across redeliveries and restarts.
    pub const MESSAGE_ID: &str = "sluice-message-id";
    /// Ours, on a parked message that travels as it is: the letter about it, see [`crate::letter`].
    pub const LETTER: &str = "sluice-letter";
    /// Ours, on a parked message: how many of its properties had no room in the letter, of how many bytes, and their names.
    pub const CUT: &str = "sluice-cut-properties";
    /// On a message that the broker itself took from its readers, see [`crate::BrokerAdmin::bound_poison`]: the topic
    /// that it was published to.
    pub const DEAD_TOPIC: &str = "sluice-dead-topic";
    /// On such a message: the subscription that it was taken from.
    pub const DEAD_SUBSCRIPTION: &str = "sluice-dead-subscription";
    /// On such a message: why, in the broker's word, such as `delivery_limit`.
    pub const DEAD_REASON: &str = "sluice-dead-reason";
}

/// A body and its properties. Cloning shares both.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    properties: Arc<Vec<(Box<str>, Box<str>)>>,
    /// The JSON body, passed on untouched.
    pub body: Bytes,
}

impl Message {
    /// A message without properties.
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self { properties: Arc::default(), body: body.into() }
    }

    /// The same message with one property set.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.set(name, value);
        self
    }

    /// Sets a property, replacing its former value.
    pub fn set(&mut self, name: &str, value: &str) {
        let properties = Arc::make_mut(&mut self.properties);
        match properties.iter_mut().find(|(known, _)| &**known == name) {
            Some((_, old)) => *old = value.into(),
            None => properties.push((name.into(), value.into())),
        }
    }

    /// A property's value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.properties.iter().find(|(known, _)| &**known == name).map(|(_, value)| &**value)
    }

    /// Every property, in the order they were set.
    pub fn properties(&self) -> impl Iterator<Item = (&str, &str)> {
        self.properties.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Bytes of the body and of the properties.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.properties().fold(self.body.len(), |sum, (name, value)| sum + name.len() + value.len())
    }
}

/// What a reader decided about a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Done: forget it.
    Done,
    /// Deliver again, not before this long from now, behind good messages.
    Again(Duration),
    /// Deliver again, not before this long from now, and do not count this time: nobody worked on it.
    Untried(Duration),
}

/// The broker's side of settling; never blocks, never fails (a lost settlement means one more delivery).
pub trait Settle: Send {
    /// Takes the verdict.
    fn settle(self: Box<Self>, verdict: Verdict);
}

/// A message in somebody's hands, with the duty to settle it. Settling takes it by value, so twice does not compile;
/// dropped unsettled, it comes back at once, counted as an attempt unless whoever worked on it was told to stop
/// ([`Delivery::cut_by`]).
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// Where it was published.
    pub topic: Topic,
    /// How many times it has been handed out, this time included: 1 at first. Counted before the hand-over, so that a
    /// message that kills the process is counted too.
    pub attempt: u32,
    /// How many times work on it began, this time included, where the broker notes that apart ([`crate::Inbox::begin`]).
    pub begun: Option<u32>,
    settle: Option<Box<dyn Settle>>,
    cut: Option<CancellationToken>,
}

impl Delivery {
    /// A delivery that must be settled.
    #[must_use]
    pub fn new(message: Message, topic: Topic, attempt: u32, settle: Box<dyn Settle>) -> Self {
        Self { message, topic, attempt, begun: None, settle: Some(settle), cut: None }
    }

    /// A delivery to a reader's own inbox: nothing to settle.
    #[must_use]
    pub fn unsettled(message: Message, topic: Topic) -> Self {
        Self { message, topic, attempt: 1, begun: None, settle: None, cut: None }
    }

    /// Done: the broker forgets it. Does not wait; a crash right after may deliver it once more.
    pub fn ack(mut self) {
        self.finish(Verdict::Done);
    }

    /// Wants it again, not before `delay` from now, behind good messages.
    pub fn again(mut self, delay: Duration) {
        self.finish(Verdict::Again(delay));
    }

    /// Gives it back as if it had not been handed out: it comes again, not before `delay` from now, behind others, and this
    /// time is not counted. For readers that took it and did not begin to work on it.
    pub fn untried(mut self, delay: Duration) {
        self.finish(Verdict::Untried(delay));
    }

    /// The same for a reader that this may tell to stop: dropped after that, it goes back untried, since work on it was cut and
    /// did not fail.
    #[must_use]
    pub fn cut_by(mut self, stop: &CancellationToken) -> Self {
        self.cut = Some(stop.clone());
        self
    }

    /// The same with another one who takes the verdict, made of the one who took it so far. Nothing changes where there is
    /// none.
    #[must_use]
    pub fn settled_by(mut self, by: impl FnOnce(Box<dyn Settle>) -> Box<dyn Settle>) -> Self {
        self.settle = self.settle.take().map(by);
        self
    }

    fn finish(&mut self, verdict: Verdict) {
        if let Some(settle) = self.settle.take() {
            settle.settle(verdict);
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let is_cut = self.cut.as_ref().is_some_and(CancellationToken::is_cancelled);
        self.finish(if is_cut { Verdict::Untried(Duration::ZERO) } else { Verdict::Again(Duration::ZERO) });
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("topic", &self.topic)
            .field("attempt", &self.attempt)
            .field("bytes", &self.message.body.len())
            .finish_non_exhaustive()
    }
}
