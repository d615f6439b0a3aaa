//! What can be wrong with a body, told to the caller by the member's name.

use std::fmt;

use serde_json::Value;

use crate::message as m;

/// A body that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// A member that must be there is not.
    #[error("'{member}' is missing")]
    Missing {
        /// Its path, as `values[0].key`.
        member: String,
    },
    /// A member is not what it should be.
    #[error("'{member}' {problem}")]
    Member {
        /// Its path.
        member: String,
        /// What it must be, and what it is.
        problem: String,
    },
    /// The service answered something that is not an answer.
    #[error("the {service} service sent an answer that cannot be read: {reason}")]
    Unreadable {
        /// The service's name.
        service: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl ApiError {
    pub(super) fn missing(member: &str) -> Self {
        Self::Missing { member: member.to_owned() }
    }

    pub(super) fn shape(expected: &str, found: &Value) -> Self {
        Self::Member { member: String::new(), problem: format!("must be {expected}, not {}", what(found)) }
    }

    pub(super) fn bad(expected: &str, reason: impl fmt::Display) -> Self {
        Self::Member { member: String::new(), problem: format!("{expected}: {reason}") }
    }

    /// What the message type refused although the table took it; serde's text names the member.
    pub(super) fn untyped(reason: impl fmt::Display) -> Self {
        Self::Member { member: "body".to_owned(), problem: format!("does not fit: {reason}") }
    }

    pub(super) fn unreadable(service: &'static str, reason: impl fmt::Display) -> Self {
        Self::Unreadable { service, reason: reason.to_string() }
    }

    /// The same, seen from one level further out.
    pub(super) fn under(mut self, outer: &str) -> Self {
        if let Self::Missing { member } | Self::Member { member, .. } = &mut self {
            let joint = if member.is_empty() || member.starts_with('[') { "" } else { "." };
            *member = format!("{outer}{joint}{member}");
        }
        self
    }

    /// Whether it is the caller's mistake rather than the service's.
    #[must_use]
    pub fn is_callers(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Member { .. })
    }

    /// As the caller is told: type `request-error` for a mistake, `gateway-error` for what a service did.
    #[must_use]
    pub fn to_error(&self) -> m::Error {
        let kind = if self.is_callers() { "request-error" } else { "gateway-error" };
        m::Error::new(kind, self.to_string())
    }
}

fn what(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
