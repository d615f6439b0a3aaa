//! What the broker's errors mean on the bus.

use lapin::ErrorKind;
use sluice_bus::Error;

/// The reply codes that mean something to us.
pub(super) mod code {
    pub(in super::super) const ACCESS_REFUSED: u16 = 403;
    pub(in super::super) const NOT_FOUND: u16 = 404;
    pub(in super::super) const RESOURCE_LOCKED: u16 = 405;
    pub(in super::super) const PRECONDITION_FAILED: u16 = 406;
    pub(in super::super) const NOT_ALLOWED: u16 = 530;
}

/// In its reply about a queue or exchange that is there with other properties.
const INEQUIVALENT: &str = "inequivalent arg";

/// The broker's reply code and text, when the error is the broker's word.
pub(super) fn reply(error: &lapin::Error) -> Option<(u16, &str)> {
    match error.kind() {
        ErrorKind::ProtocolError(told) => Some((told.get_id(), told.get_message().as_str())),
        _ => None,
    }
}

pub(super) fn is(error: &lapin::Error, code: u16) -> bool {
    reply(error).is_some_and(|(told, _)| told == code)
}

/// Whether the broker does not take an argument here.
pub(super) fn refuses(error: &lapin::Error, argument: &str) -> bool {
    reply(error).is_some_and(|(told, text)| told == code::PRECONDITION_FAILED && text.contains(argument))
}

/// What `error` means for a call about `name`; `what` says what was under way.
pub(super) fn of_call(error: &lapin::Error, name: &str, what: &str) -> Error {
    match reply(error) {
        Some((code::PRECONDITION_FAILED, text)) if text.contains(INEQUIVALENT) => mismatch(name, text),
        // A limit that is reached, say.
        Some((code::PRECONDITION_FAILED, text)) => {
            Error::Refused { reason: format!("the broker refuses {what}: {text}") }
        }
        Some((code::RESOURCE_LOCKED, text)) => {
            Error::InUse { name: name.to_owned(), holders: text.to_owned() }
        }
        Some((code::ACCESS_REFUSED | code::NOT_ALLOWED, text)) => {
            Error::Refused { reason: format!("the broker does not allow {what}: {text}") }
        }
        _ if was_never_sent(error) => Error::Unavailable { reason: error.to_string() },
        _ => Error::OutcomeUnknown { what: what.to_owned(), reason: error.to_string() },
    }
}

/// What `error` means for a connection attempt to `address`.
pub(super) fn of_connecting(error: &lapin::Error, address: &super::Address) -> Error {
    match reply(error) {
        Some((code::ACCESS_REFUSED | code::NOT_ALLOWED, text)) => Error::Refused {
            reason: format!(
                "the broker at {address} does not let this user in with this password, or not into this vhost: {text}"
            ),
        },
        _ if is_distrust(error) && error.to_string().contains("CaUsedAsEndEntity") => Error::Refused {
            reason: format!(
                "the broker at {address} shows the certificate of an issuer (CA) as its own; give it one that the issuer made \
                 for its host, and give the issuer's certificate here"
            ),
        },
        _ if is_distrust(error) => Error::Refused {
            reason: format!(
                "the broker at {address} shows a certificate that is not trusted here ({error}); give the certificate \
                 of the CA that signed it, and an address whose host the certificate names"
            ),
        },
        _ => Error::Unavailable { reason: format!("no connection to {address}: {error}") },
    }
}

fn is_distrust(error: &lapin::Error) -> bool {
    let ErrorKind::IOError(io) = error.kind() else { return false };
    let tls = io.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
}

/// The largest message that the broker takes, from its words about one that was larger:
/// `… message size 17825792 is larger than configured max size 16777216`.
pub(super) fn message_bytes_max(text: &str) -> Option<usize> {
    let rest = text.split_once("max size ")?.1;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Whether lapin refused before anything left.
pub(super) fn was_never_sent(error: &lapin::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::InvalidChannelState(..)
            | ErrorKind::InvalidConnectionState(_)
            | ErrorKind::InvalidChannel(_)
            | ErrorKind::ChannelsLimitReached
    )
}

/// `… inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but current is 'false'`
fn mismatch(name: &str, text: &str) -> Error {
    let quoted = |after: &str| {
        let rest = text.split_once(after)?.1;
        Some(rest.split_once('\'').map_or(rest, |(value, _)| value).to_owned())
    };
    let property = quoted(&format!("{INEQUIVALENT} '"));
    let describe = |value: Option<String>| match (&property, value) {
        (Some(property), Some(value)) => format!("{property} '{value}'"),
        (Some(property), None) => format!("another {property}"),
        (None, _) => text.to_owned(),
    };
    Error::Mismatch {
        name: name.to_owned(),
        wanted: describe(quoted("received '")),
        found: describe(quoted("current is '")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_message_is_what_the_broker_says_in_any_of_its_wordings() {
        let later = "PRECONDITION_FAILED - message size 17825792 is larger than configured max size 16777216";
        assert_eq!(message_bytes_max(later), Some(16_777_216));
        let earlier = "PRECONDITION_FAILED - message size 134217729 larger than max size 134217728, class 60";
        assert_eq!(message_bytes_max(earlier), Some(134_217_728));
        for other in ["PRECONDITION_FAILED - size", "max size ", "max size x 7", ""] {
            assert_eq!(message_bytes_max(other), None, "{other}");
        }
    }

    #[test]
    fn a_mismatch_names_both_sides() {
        let text = "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but \
                    current is 'false'";
        assert_eq!(mismatch("q", text).to_string(), "'q' exists with durable 'false', wanted durable 'true'");
        let text = "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': received none \
                    but current is the value '5' of type 'signedint'";
        let told = mismatch("q", text).to_string();
        assert!(told.contains("x-message-ttl"), "{told}");
    }
}
