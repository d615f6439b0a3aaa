//! What can go wrong in the library, and how the caller is told.

use sluice_bus::ErrorKind as BusErrorKind;
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
    /// What was asked for is on record and goes on by itself, but did not come to its end yet.
    #[error("it is on record, and is finished as soon as that is possible")]
    OnRecord(#[source] Box<Error>),
    /// What rests in the store cannot be read.
    #[error("the stored record of {what} cannot be read: {reason}")]
    Damaged {
        /// Which record.
        what: String,
        /// What the reader said.
        reason: String,
    },
}

impl From<message::Error> for Error {
    fn from(told: message::Error) -> Self {
        Self::Told(told)
    }
}

impl Error {
    pub(crate) fn request(text: impl Into<String>) -> Self {
        Self::Request(text.into())
    }

    /// The error as it goes to the caller; what is not the caller's fault is logged here, once, with its cause.
    pub(crate) fn told(self, operation: &str, trace: Option<&str>) -> message::Error {
        if let Self::Told(error) = &self {
            return error.clone();
        }
        let cause = cause(&self);
        if !matches!(self, Self::Request(_) | Self::NotFound(_) | Self::Exists(_)) {
            tracing::error!(operation, trace, cause, "a library call failed");
        }
        message::Error::new(self.kind(), cause)
    }

    /// The type by which callers tell it from others.
    fn kind(&self) -> &str {
        const UNEXPECTED: &str = "unexpected-error";
        match self {
            Self::Told(error) => &error.r#type,
            Self::Request(_) => "request-error",
            Self::NotFound(_) => "not-found",
            Self::Store(error) if error.kind() == ErrorKind::Unavailable => message::Error::STORE_UNAVAILABLE,
            Self::Config(error) => error.for_later().unwrap_or(UNEXPECTED),
            Self::Bus(sluice_bus::Error::Full { .. }) => message::Error::OVERLOADED,
            Self::Bus(error) => match error.kind() {
                BusErrorKind::Absent | BusErrorKind::Unavailable => message::Error::BUS_UNAVAILABLE,
                BusErrorKind::OutcomeUnknown => message::Error::OUTCOME_UNKNOWN,
                BusErrorKind::Refused => UNEXPECTED,
            },
            Self::OnRecord(error) => error.kind(),
            Self::Exists(_) | Self::Store(_) | Self::Damaged { .. } => UNEXPECTED,
        }
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
        let away = sluice_bus::Error::Unavailable { reason: "x".to_owned() };
        let away = Error::Config(ConfigError::Bus(away)).told("add-processing", None);
        assert_eq!(
            away.r#type, "config-unavailable",
            "nothing was done, and the same call may succeed later"
        );
    }

    #[test]
    fn a_broker_that_takes_nothing_is_told_as_that_and_so_is_that_a_removal_goes_on() {
        let disk = || sluice_bus::Error::Disk { reason: "full".to_owned() };
        let told = Error::OnRecord(Box::new(Error::Bus(disk()))).told("remove-document", None);
        assert_eq!(told.r#type, "bus-unavailable");
        assert!(told.is_store_unavailable() && told.message.contains("on record"), "{told:?}");
        assert_eq!(Error::Bus(disk()).told("add-document", None).r#type, "bus-unavailable");
        let topic = "flow:tg:in:w:f".parse().unwrap();
        let full = sluice_bus::Error::Full { topic, limit: 1, unit: "messages" };
        assert!(Error::Bus(full).told("add-document", None).is_overloaded());
        let refused = sluice_bus::Error::Refused { reason: "never".to_owned() };
        assert_eq!(Error::Bus(refused).told("add-document", None).r#type, "unexpected-error");
    }
}
