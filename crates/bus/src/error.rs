//! What can go wrong on the bus, and what the caller should do about it.

use sluice_schema::Topic;

/// What now? Every error answers with one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// It can never work as it is: report, do not retry.
    Refused,
    /// What it names is not there: often a fine state.
    Absent,
    /// Nothing happened: back off and retry.
    Unavailable,
    /// It may have happened: look again before acting again.
    OutcomeUnknown,
}

/// A failed bus operation.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The topic was never ensured, or is gone.
    #[error("topic '{topic}' does not exist; its owner has not made it or has removed it")]
    NoTopic {
        /// The topic.
        topic: Topic,
    },
    /// The topic has no subscription of that name.
    #[error(
        "topic '{topic}' has no subscription '{subscription}'; its owner has not made it or has removed it"
    )]
    NoSubscription {
        /// The topic.
        topic: Topic,
        /// The name asked for.
        subscription: String,
    },
    /// A `request` that nobody can receive.
    #[error("nobody serves '{topic}': it has no subscription")]
    Unroutable {
        /// The topic.
        topic: Topic,
    },
    /// A message for a reader on record, whose queue is missing. Nothing was kept.
    #[error(
        "the queue of a reader of '{topic}' is missing, and nothing was kept; its owner makes it again: try again in a moment"
    )]
    NoReader {
        /// The topic.
        topic: Topic,
    },
    /// The reader of that inbox is gone.
    #[error("the inbox '{inbox}' is gone")]
    NoInbox {
        /// Its address.
        inbox: String,
    },
    /// The body exceeds what the broker takes.
    #[error("a message of {bytes} bytes is larger than the broker's limit of {max} bytes")]
    TooLarge {
        /// Size of the body.
        bytes: usize,
        /// [`crate::Limits::message_bytes_max`].
        max: usize,
    },
    /// A bounded queue is full: the receiver does not keep up.
    #[error("'{topic}' is full ({limit} {unit}); its consumers do not keep up")]
    Full {
        /// The topic.
        topic: Topic,
        /// The bound.
        limit: u64,
        /// `messages` or `bytes`.
        unit: &'static str,
    },
    /// What is there differs from what was asked for.
    #[error("'{name}' exists with {found}, wanted {wanted}")]
    Mismatch {
        /// The topic or queue.
        name: String,
        /// What was asked for.
        wanted: String,
        /// What is there.
        found: String,
    },
    /// Somebody holds on to what should be removed.
    #[error("'{name}' is in use: {holders}")]
    InUse {
        /// The topic or queue.
        name: String,
        /// Who holds on.
        holders: String,
    },
    /// Somebody else holds the name.
    #[error("'{name}' is held by somebody else")]
    Held {
        /// The name.
        name: String,
    },
    /// The hold under which the call was made is over.
    #[error("the hold of '{name}' is lost; nothing more is done under it")]
    HoldLost {
        /// The name.
        name: String,
    },
    /// The call cannot be made this way.
    #[error("{reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The broker cannot be reached or is stopping.
    #[error("the broker is not available: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
    /// The broker's disk took no more: free space, then try again.
    #[error("the broker cannot write to its disk: {reason}")]
    Disk {
        /// Why.
        reason: String,
    },
    /// The broker's log is damaged, or lacks something.
    #[error("the broker's log cannot be used: {reason}")]
    Log {
        /// Which file, at which byte, and what to do.
        reason: String,
    },
    /// The broker's log is there, and this process may not use it, or another one does. Nothing is known to be lost.
    #[error("the broker's log cannot be opened: {reason}")]
    LogUnopened {
        /// Which file, and what to do.
        reason: String,
    },
    /// No answer within the deadline.
    #[error("'{what}' did not answer within {after_ms} ms")]
    TimedOut {
        /// The service or topic.
        what: String,
        /// The deadline.
        after_ms: u64,
    },
    /// The connection went away while something was under way.
    #[error("the outcome of {what} is unknown: {reason}")]
    OutcomeUnknown {
        /// What was under way.
        what: String,
        /// Why.
        reason: String,
    },
    /// A question was in a queue that somebody removed, as far as its asker can know: nothing came of it, and nobody said
    /// that he works on it.
    #[error(
        "the queue of '{topic}' was removed with what waited in it, and nothing shows that anybody works on this question; ask again"
    )]
    QuestionLost {
        /// Where it was asked.
        topic: Topic,
    },
    /// A body that does not hold the message it should.
    #[error(transparent)]
    Decode(std::sync::Arc<sluice_schema::wire::DecodeError>),
}

impl Error {
    /// What the caller should do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoTopic { .. }
            | Self::NoSubscription { .. }
            | Self::Unroutable { .. }
            | Self::NoInbox { .. } => ErrorKind::Absent,
            Self::TooLarge { .. } | Self::Mismatch { .. } | Self::Refused { .. } | Self::Decode(_) => {
                ErrorKind::Refused
            }
            Self::Full { .. }
            | Self::InUse { .. }
            | Self::Held { .. }
            | Self::HoldLost { .. }
            | Self::Unavailable { .. }
            | Self::NoReader { .. }
            | Self::Disk { .. }
            | Self::Log { .. }
            | Self::LogUnopened { .. } => ErrorKind::Unavailable,
            Self::TimedOut { .. } | Self::OutcomeUnknown { .. } | Self::QuestionLost { .. } => {
                ErrorKind::OutcomeUnknown
            }
        }
    }
}

impl From<sluice_schema::wire::DecodeError> for Error {
    fn from(error: sluice_schema::wire::DecodeError) -> Self {
        Self::Decode(std::sync::Arc::new(error))
    }
}
