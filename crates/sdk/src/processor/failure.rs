//! How a handler fails, and why a processor cannot bind.

use sluice_bus::{Error as BusError, ErrorKind};

/// Why a message was not processed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// The world's fault: deliver it again later. Parked after some attempts.
    #[error("{0}")]
    Again(String),
    /// The message's fault: park it with this reason.
    #[error("{0}")]
    Never(String),
}

impl Failure {
    /// The world's fault.
    pub fn again(reason: impl std::fmt::Display) -> Self {
        Self::Again(reason.to_string())
    }

    /// The message's fault.
    pub fn never(reason: impl std::fmt::Display) -> Self {
        Self::Never(reason.to_string())
    }
}

impl From<BusError> for Failure {
    fn from(error: BusError) -> Self {
        match error.kind() {
            ErrorKind::Refused => Self::never(error),
            ErrorKind::Absent | ErrorKind::Unavailable | ErrorKind::OutcomeUnknown => Self::again(error),
        }
    }
}

/// Why a processor cannot take part in a flow as its entry describes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// The entry lacks a topic.
    #[error("the entry has no topic for slot '{0}'; add it to the blueprint")]
    MissingSlot(String),
    /// A topic that is none.
    #[error("slot '{slot}': {reason}")]
    BadTopic {
        /// The slot.
        slot: String,
        /// What is wrong.
        reason: String,
    },
    /// A setting that cannot be read.
    #[error("parameter '{name}' has the value '{value}', which is not a valid {wanted}")]
    BadSetting {
        /// The parameter.
        name: String,
        /// Its text.
        value: String,
        /// The Rust type it should be.
        wanted: &'static str,
    },
    /// The program runs without something the processor needs.
    #[error("this program was started without {0}")]
    MissingResource(&'static str),
}
