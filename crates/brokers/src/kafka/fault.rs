//! What goes wrong at the cluster, in the bus's words.

use krafka::KrafkaError;
use krafka::error::ErrorCode;
use sluice_bus::Error;

/// What a call that changes nothing failed with.
pub(super) fn of(error: &KrafkaError, doing: &str) -> Error {
    match error {
        KrafkaError::Broker { code, .. } if is_denied(*code) => Error::Refused {
            reason: format!("the broker does not allow {doing} ({error}); grant it to this user"),
        },
        KrafkaError::Auth { .. } if is_untrusted(error) => Error::Refused {
            reason: format!(
                "the broker shows a certificate that is not trusted here, {doing} ({error}); give the certificate of the CA that \
                 signed it, and an address whose host the certificate names"
            ),
        },
        KrafkaError::Auth { .. } => Error::Refused {
            reason: format!(
                "the broker does not let us in, {doing} ({error}); check user, password and mechanism"
            ),
        },
        KrafkaError::Config { .. } | KrafkaError::Protocol { .. } => {
            Error::Refused { reason: format!("{doing}: {error}") }
        }
        _ => Error::Unavailable { reason: format!("{doing}: {error}") },
    }
}

/// What a call that changes something failed with: it may have been done where it was sent and not answered.
pub(super) fn of_change(error: &KrafkaError, doing: &str) -> Error {
    match error {
        KrafkaError::Timeout { .. }
        | KrafkaError::Network(_)
        | KrafkaError::DeliveryTimeout { possibly_written: true, .. } => {
            Error::OutcomeUnknown { what: doing.to_owned(), reason: error.to_string() }
        }
        _ => of(error, doing),
    }
}

fn is_denied(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::TopicAuthorizationFailed
            | ErrorCode::GroupAuthorizationFailed
            | ErrorCode::ClusterAuthorizationFailed
    )
}

fn is_untrusted(error: &KrafkaError) -> bool {
    let mut told = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        told += &cause.to_string();
        source = cause.source();
    }
    told.to_lowercase().contains("certificate")
}

/// Whether the broker says that a topic is not there.
pub(super) fn is_no_topic(error: &KrafkaError) -> bool {
    match error {
        KrafkaError::UnknownTopic { .. } => true,
        KrafkaError::Broker { code, .. } => {
            matches!(code, ErrorCode::UnknownTopicOrPartition | ErrorCode::UnknownTopicId)
        }
        _ => false,
    }
}

/// Whether the broker says this code.
pub(super) fn is(error: &KrafkaError, wanted: ErrorCode) -> bool {
    matches!(error, KrafkaError::Broker { code, .. } if *code == wanted)
}

/// Whether a message is larger than the broker takes.
pub(super) fn is_too_large(error: &KrafkaError) -> bool {
    is(error, ErrorCode::MessageTooLarge) || is(error, ErrorCode::RecordListTooLarge)
}
