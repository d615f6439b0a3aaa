//! What can go wrong in a store, and what the caller should do about it.

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

/// A failed store operation.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// An expectation of a batch does not hold; nothing of the batch was applied. Read again, decide again.
    #[error("'{key}' in table '{table}' is not what the write expected; somebody else changed it")]
    Conflict {
        /// The table.
        table: String,
        /// The key, with unprintable bytes escaped.
        key: String,
        /// The key as it is.
        raw_key: bytes::Bytes,
    },
    /// A key, value or content exceeds its bound.
    #[error("{what} of {bytes} bytes is larger than the limit of {max} bytes")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// A vector does not fit the collection it goes to.
    #[error(
        "collection '{collection}' holds vectors of {wanted} numbers, this one has {got}; use the model that the collection was made with, or another collection"
    )]
    Dimension {
        /// The collection.
        collection: String,
        /// Numbers in a vector of the collection.
        wanted: usize,
        /// Numbers in the vector given.
        got: usize,
    },
    /// The call cannot be made this way.
    #[error("{reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// What is asked for is not there.
    #[error("{what} does not exist")]
    Absent {
        /// What.
        what: String,
    },
    /// Another process works in the folder.
    #[error(
        "the data folder '{folder}' is in use by process {pid}; stop that process, or choose another folder"
    )]
    Locked {
        /// The folder.
        folder: String,
        /// What its lock file says.
        pid: String,
    },
    /// The disk takes no more.
    #[error(
        "the disk of '{folder}' is full, nothing was written; free space or delete data, then try again ({reason})"
    )]
    Disk {
        /// The data folder.
        folder: String,
        /// What the system said.
        reason: String,
    },
    /// The store is stopped, has failed, or cannot be reached.
    #[error("the store is not available: {reason}")]
    Unavailable {
        /// Why, and what to do.
        reason: String,
    },
    /// A write failed at a point where it may have become durable.
    #[error("the outcome of {what} is unknown: {reason}")]
    OutcomeUnknown {
        /// What was under way.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// What rests in the store cannot be understood.
    #[error("{what} in the store cannot be read: {reason}")]
    Damaged {
        /// What.
        what: String,
        /// Why.
        reason: String,
    },
    /// Content is not what was stored.
    #[error("{}content '{id}' in the store cannot be read: {reason}", owned(.of.as_deref()))]
    DamagedContent {
        /// Its id.
        id: String,
        /// Whose it is, in words, where that is known.
        of: Option<String>,
        /// Why, and what to do.
        reason: String,
    },
}

fn owned(of: Option<&str>) -> String {
    of.map(|owner| format!("{owner}: its ")).unwrap_or_default()
}

impl Error {
    /// What the caller should do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Conflict { .. }
            | Self::TooLarge { .. }
            | Self::Dimension { .. }
            | Self::Refused { .. }
            | Self::Damaged { .. }
            | Self::DamagedContent { .. } => ErrorKind::Refused,
            Self::Absent { .. } => ErrorKind::Absent,
            Self::Locked { .. } | Self::Disk { .. } | Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::OutcomeUnknown { .. } => ErrorKind::OutcomeUnknown,
        }
    }

    /// Whether another writer was faster.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }

    /// Whether something is not what was stored.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::DamagedContent { .. })
    }

    /// Says of damaged content whose it is.
    #[must_use]
    pub fn of(self, owner: String) -> Self {
        match self {
            Self::DamagedContent { id, of: None, reason } => {
                Self::DamagedContent { id, of: Some(owner), reason }
            }
            other => other,
        }
    }

    /// The id of damaged content of which it is not said whose it is.
    pub(crate) fn content_of_nobody(&self) -> Option<&str> {
        match self {
            Self::DamagedContent { id, of: None, .. } => Some(id),
            _ => None,
        }
    }

    /// An error for content that is damaged.
    #[must_use]
    pub fn damaged_content(id: &str, reason: impl Into<String>) -> Self {
        Self::DamagedContent { id: id.to_owned(), of: None, reason: reason.into() }
    }

    pub(crate) fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into() }
    }

    pub(crate) fn damaged(what: impl Into<String>, reason: &impl ToString) -> Self {
        Self::Damaged { what: what.into(), reason: reason.to_string() }
    }
}
