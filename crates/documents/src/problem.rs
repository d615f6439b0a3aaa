//! Why a document or a part of it gives no text: a stable kind for programs, a reason for people.

use serde::{Deserialize, Serialize};

/// Longest reason, in bytes.
pub const REASON_BYTES_MAX: usize = 2 * 1024;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// The content is not what its declared type says, and not something that should be read in its place.
    NotWhatItClaims,
    /// A kind of file that is not read here.
    Unsupported,
    /// It opens with a password only.
    Encrypted,
    /// More pages, text or unpacked content than is taken.
    TooLarge,
    /// It is of the kind it should be, and cannot be read.
    Damaged,
    /// There is no text in it.
    Empty,
}

impl ProblemKind {
    /// The stable name, for example `too-large`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotWhatItClaims => "not-what-it-claims",
            Self::Unsupported => "unsupported",
            Self::Encrypted => "encrypted",
            Self::TooLarge => "too-large",
            Self::Damaged => "damaged",
            Self::Empty => "empty",
        }
    }
}

/// Why there is no text, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{reason}")]
pub struct Problem {
    /// What is wrong.
    pub kind: ProblemKind,
    /// For people, with what to do.
    pub reason: String,
}

impl Problem {
    /// A problem of a kind. A reason of more than [`REASON_BYTES_MAX`] bytes is cut: parsers put what they found into it.
    pub fn new(kind: ProblemKind, reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        if reason.len() > REASON_BYTES_MAX {
            reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        }
        Self { kind, reason }
    }

    pub(crate) fn damaged(what: &str, cause: impl std::fmt::Display) -> Self {
        const CAUSE_CHARS_MAX: usize = 200;
        let cause: String = cause.to_string().chars().take(CAUSE_CHARS_MAX).collect();
        Self::new(ProblemKind::Damaged, format!("{what} is damaged and cannot be read: {cause}"))
    }

    pub(crate) fn too_large(reason: impl Into<String>) -> Self {
        Self::new(ProblemKind::TooLarge, reason)
    }

    pub(crate) fn empty(reason: impl Into<String>) -> Self {
        Self::new(ProblemKind::Empty, reason)
    }
}
