//! Why a model could not be asked, or did not answer.

/// Why a model could not be asked, or did not answer. [`ModelError::kind`] is the `type` that callers see.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// The base URL is not one. It is not repeated: it may hold a password.
    #[error("the base URL of a model provider cannot be used: {0}; use one like http://localhost:11434/v1")]
    BadUrl(String),
    /// The provider cannot do this.
    #[error("{0}")]
    Unfit(String),
    /// The HTTP client could not be made.
    #[error("no HTTP client: {0}")]
    NoClient(String),
    /// No model is named anywhere.
    #[error("no model is named; set {variable} or the flow's parameter {parameter}")]
    NoModel {
        /// The environment variable that names one.
        variable: &'static str,
        /// The flow's parameter that names one.
        parameter: &'static str,
    },
    /// It could not be reached, or answered that it is broken or busy, until no try was left.
    #[error("the model at {url} is not available: {reason}; the call can be made again later")]
    Unavailable {
        /// The base URL.
        url: String,
        /// What the last try said.
        reason: String,
    },
    /// It wants fewer calls, until no try was left.
    #[error(
        "the model at {url} takes no more calls for now: {reason}; ask again later, or use fewer calls at once"
    )]
    RateLimited {
        /// The base URL.
        url: String,
        /// What the last try said.
        reason: String,
    },
    /// It refused: the same call will be refused again.
    #[error("the model at {url} refused: {reason}")]
    Refused {
        /// The base URL.
        url: String,
        /// Its status and the beginning of what it said.
        reason: String,
    },
    /// Nothing came in time.
    #[error("the model at {url} did not {what} within {timeout_ms} ms")]
    TimedOut {
        /// The base URL.
        url: String,
        /// What it should have done.
        what: &'static str,
        /// The bound.
        timeout_ms: u128,
    },
    /// The answer began and did not end.
    #[error("the answer of the model at {url} broke off: {reason}")]
    BrokeOff {
        /// The base URL.
        url: String,
        /// How.
        reason: String,
    },
    /// The answer is not of the expected form.
    #[error("the model at {url} answered something that is not {wanted}: {reason}")]
    Garbage {
        /// The base URL.
        url: String,
        /// What was expected.
        wanted: &'static str,
        /// What was wrong with it.
        reason: String,
    },
}

impl ModelError {
    /// What went wrong, in a word that does not change.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::BadUrl(_) | Self::Unfit(_) | Self::NoClient(_) | Self::NoModel { .. } => "llm-error",
            Self::Unavailable { .. } => "provider-unavailable",
            Self::RateLimited { .. } => "rate-limited",
            Self::Refused { .. } => "provider-refused",
            Self::TimedOut { .. } => "provider-timeout",
            Self::BrokeOff { .. } => "provider-broke-off",
            Self::Garbage { .. } => "provider-garbage",
        }
    }
}
