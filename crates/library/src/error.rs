//! What can go wrong in the library, and how the caller is told.

use sluice_schema::message;
use sluice_sdk::ConfigError;
use sluice_store::ErrorKind;

/// A failed library call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller's fault.
    #[error("{0}")]
    Request(String),
    /// The id is taken; a type of its own because the dialect does not count it as the caller's fault.
    #[error("Document already exists: '{0}'; remove it first, or choose another id")]
    Exists(String),
    /// What the caller named is not there.
    #[error("{0}")]
    NotFound(String),
    /// Told as it is.
    #[error("{}", .0.message)]
    Told(message::Error),
    /// The store failed.
    #[error("the library's store failed")]
    Store(#[from] sluice_store::Error),
    /// The config service failed.
    #[error("the library could not read or write config")]
    Config(#[from] ConfigError),
    /// The bus failed.
    #[error("the library could not reach the bus")]
    Bus(#[from] sluice_bus::Error),
    /// What rests in the store cannot be read.
    #[error("the stored record of {what} cannot be read: {reason}")]
    Damaged {
        /// Which record.
        what: String,
        /// What the reader said.
        reason: String,
    },
}

impl Error {
    pub(crate) fn request(text: impl Into<String>) -> Self {
        Self::Request(text.into())
    }

    /// The error as it goes to the caller; what is not the caller's fault is logged here, once, with its cause.
    pub(crate) fn told(self, operation: &str, trace: Option<&str>) -> message::Error {
        let kind = match &self {
            Self::Told(error) => return error.clone(),
            Self::Request(_) => return message::Error::new("request-error", self.to_string()),
            Self::NotFound(_) => return message::Error::new("not-found", self.to_string()),
            Self::Exists(_) => return message::Error::new("unexpected-error", self.to_string()),
            Self::Store(error) if error.kind() == ErrorKind::Unavailable => message::Error::STORE_UNAVAILABLE,
            Self::Config(ConfigError::Refused { kind, .. }) if kind == message::Error::CONFIG_UNAVAILABLE => {
                kind
            }
            Self::Store(_) | Self::Config(_) | Self::Bus(_) | Self::Damaged { .. } => "unexpected-error",
        };
        let cause = cause(&self);
        tracing::error!(operation, trace, cause, "a library call failed");
        message::Error::new(kind, cause)
    }
}

/// An error with what lies behind it, on one line.
pub(crate) fn cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_takes_nothing_has_a_type_of_its_own() {
        let full = sluice_store::Error::Disk { folder: "d".to_owned(), reason: "full".to_owned() };
        let told = Error::Store(full).told("add-document", None);
        assert_eq!(told.r#type, "store-unavailable");
        assert!(told.message.contains("disk of 'd' is full"), "{told:?}");
        let damaged = sluice_store::Error::Damaged { what: "a row".to_owned(), reason: "torn".to_owned() };
        assert_eq!(Error::Store(damaged).told("add-document", None).r#type, "unexpected-error");
    }
}
