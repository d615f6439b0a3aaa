//! Why a call ends without an answer, and how each door says so. Both doors read from this one table.

use std::borrow::Cow;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use sluice_bus::{Broker, Excess};
use sluice_schema::message;

/// Seconds after which a caller that was told to come later may try again.
const RETRY_AFTER_SECONDS: &str = "1";
/// The same where something has to be started or repaired first.
const RETRY_AFTER_REPAIR_SECONDS: &str = "2";

/// The type of a call that failed because the broker is away.
pub(crate) const BUS_UNAVAILABLE: &str = "bus-unavailable";
/// The type of a call that failed because the identity service is away.
pub(crate) const IAM_UNAVAILABLE: &str = "iam-unavailable";

/// The type of an answer over HTTP to new work of which too much waits already.
const BACKLOG_HIGH: &str = "backlog-high";

/// The type of the answer of a process on which nobody should rely, although it answers.
pub(crate) const PROCESS_TROUBLED: &str = "process-troubled";

/// A call that the gateway itself ends.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Refusal {
    /// The body is not JSON.
    InvalidJson,
    /// The body is JSON, but not an object.
    NotAnObject,
    /// A service with operations was called without one.
    MissingOperation,
    /// A member that decides where the call goes is not a text.
    BadRequest,
    /// No such operation, or no such service.
    UnknownOperation,
    /// No such service of flows.
    UnknownKind,
    /// A body that the identity service turns down, in its words.
    Rejected(String),
    /// Nobody that we know.
    Unauthenticated,
    /// Somebody we know, who may not.
    Denied,
    /// The workspace does not exist.
    NoWorkspace,
    /// The body, or what it becomes on the bus, is too large.
    TooLarge { bytes_max: usize },
    /// The body would become much larger than it is.
    TooManyValues,
    /// The body did not arrive in time.
    Late,
    /// A bound is reached; the same call may succeed later.
    Overloaded(&'static str),
    /// The same for new work, in words about what waits.
    Backlogged(String),
    /// Too many credentials that were not accepted came from one address.
    TooManyTries,
    /// The connection has a place for health checks only.
    Crowded,
    /// Who calls could not be asked about, or the call not be handed on.
    CannotAsk { kind: &'static str, reason: Cow<'static, str> },
    /// Nothing is known about workspaces and flows yet.
    NotReady,
    /// Nothing was done, as far as is known, for a passing cause, told as a typed error: the same call may succeed later.
    Later(message::Error),
    /// Everything else, told as a typed error.
    Failed(message::Error),
}

impl Refusal {
    pub(crate) fn failed(kind: &str, message: impl Into<String>) -> Self {
        Self::Failed(message::Error::new(kind, message))
    }

    /// The broker takes nothing, for the reason that it knows.
    pub(crate) fn bus_unavailable(broker: &dyn Broker) -> Self {
        let reason = match broker.trouble() {
            Some(why) => {
                format!("the message broker takes nothing at the moment: {why}; try again later").into()
            }
            None => "the message broker takes nothing at the moment; try again later".into(),
        };
        Self::CannotAsk { kind: BUS_UNAVAILABLE, reason }
    }

    /// The broker stopped taking messages while it had one, for a reason that is known.
    pub(crate) fn outcome_unknown(broker: &dyn Broker) -> Self {
        let why = broker.trouble();
        let why = why.as_deref().unwrap_or("the connection to it was lost");
        let reason = format!(
            "the message broker did not say whether it took the call: {why}; if it changes something, look first whether that was done"
        );
        Self::CannotAsk { kind: BUS_UNAVAILABLE, reason: reason.into() }
    }

    /// The store of this process takes nothing that needs room.
    pub(crate) fn no_room(why: &str) -> Self {
        let reason = format!(
            "the store takes nothing new at the moment: {why}; what is kept can be read and removed; try again later"
        );
        Self::CannotAsk { kind: message::Error::STORE_UNAVAILABLE, reason: reason.into() }
    }

    /// More waits in flows than may.
    pub(crate) fn backlogged(workspace: &str, excess: &Excess) -> Self {
        let mib = |bytes: &u64| bytes >> 20;
        Self::Backlogged(match excess {
            Excess::Whole => {
                "the flows have more queued than they may, all workspaces together; try again in a moment"
                    .to_owned()
            }
            Excess::Own { bytes, share_bytes, flow } => {
                // What waits for a service is in no flow.
                let most = flow.as_ref().map_or_else(String::new, |flow| format!(", most in flow '{flow}'"));
                format!(
                    "the flows of workspace '{workspace}' have more queued than they may: {} of {} MiB{most}; try again in a moment",
                    mib(bytes),
                    mib(share_bytes)
                )
            }
        })
    }

    /// The broker refuses what this process asks of it: a permission was taken away, or a limit is reached.
    pub(crate) const fn bus_refuses() -> Self {
        let reason = "the message broker refuses what the gateway asks of it; the gateway's log says why (permissions, limits); try again later";
        Self::CannotAsk { kind: BUS_UNAVAILABLE, reason: Cow::Borrowed(reason) }
    }

    /// The queue that a call waited in was removed at the broker.
    pub(crate) fn question_lost(service: &str) -> Self {
        let text = format!(
            "the queue of {service} was removed at the message broker with what waited in it, and nothing shows that anybody works on this call: send it again; if it changes something, look first whether that was done"
        );
        Self::Later(message::Error::new("gateway-error", text))
    }

    /// Whatever the call was about, this process answers it no more.
    pub(crate) fn stopping() -> Self {
        Self::Later(message::Error::new("gateway-error", "the gateway is stopping"))
    }

    /// What the refusal is called towards a socket.
    fn typed(&self) -> message::Error {
        let (kind, text) = match self {
            Self::InvalidJson => ("error", "invalid json"),
            Self::NotAnObject => ("error", "request must be an object"),
            Self::BadRequest => ("error", "bad request"),
            Self::MissingOperation | Self::UnknownOperation | Self::UnknownKind => {
                ("unknown-service", "unknown service")
            }
            Self::Rejected(text) => return message::Error::new("error", text),
            Self::Unauthenticated => ("auth-required", "auth failure"),
            Self::Denied => ("access-denied", "access denied"),
            Self::NoWorkspace => ("workspace-not-found", "workspace not found"),
            Self::TooLarge { bytes_max } => return message::Error::new("too-large", too_large(*bytes_max)),
            Self::TooManyValues => ("too-large", TOO_MANY_VALUES),
            Self::Late => ("request-error", LATE),
            Self::Overloaded(what) => ("gateway-overloaded", *what),
            Self::Backlogged(text) => return message::Error::new("gateway-overloaded", text),
            Self::TooManyTries => ("gateway-overloaded", TOO_MANY_TRIES),
            Self::Crowded => ("gateway-overloaded", CROWDED),
            Self::CannotAsk { kind, reason } => (*kind, &**reason),
            Self::NotReady => ("gateway-not-ready", NOT_READY),
            Self::Later(error) | Self::Failed(error) => return error.clone(),
        };
        message::Error::new(kind, text)
    }

    /// Why somebody is turned away whatever was asked for, in the words of the log: it was too much, or nothing that can be
    /// read. `None` for what is an answer, or is logged where it is decided.
    pub(crate) const fn turns_away(&self) -> Option<&'static str> {
        match self {
            Self::InvalidJson | Self::NotAnObject | Self::BadRequest => Some(UNREADABLE),
            Self::TooLarge { .. } | Self::TooManyValues => Some("what it sends is too large"),
            Self::Late => Some("it does not finish what it sends"),
            Self::Overloaded(_) | Self::Backlogged(_) | Self::TooManyTries | Self::Crowded => {
                Some("it asks for too much at once")
            }
            Self::MissingOperation
            | Self::UnknownOperation
            | Self::UnknownKind
            | Self::Rejected(_)
            | Self::Unauthenticated
            | Self::Denied
            | Self::NoWorkspace
            | Self::CannotAsk { .. }
            | Self::NotReady
            | Self::Later(_)
            | Self::Failed(_) => None,
        }
    }

    /// The error member of a socket frame.
    pub(crate) fn frame_error(&self) -> serde_json::Value {
        let error = self.typed();
        json!({"type": error.r#type, "message": error.message})
    }
}

/// What is no JSON, no frame and no request.
pub(crate) const UNREADABLE: &str = "what it sends cannot be read";
const NOT_READY: &str = "the gateway has not read its configuration yet; try again in a moment";
const TOO_MANY_VALUES: &str = "the body has too many values for its size; send fewer in one call (numbers and names as few longer texts)";
const LATE: &str = "the body did not arrive in time; send it again, or in smaller parts";
const TOO_MANY_TRIES: &str =
    "too many credentials from this address were not accepted; check the key and try again in a moment";
const CROWDED: &str = "too many connections are open; close some and try again in a moment";

fn too_large(bytes_max: usize) -> String {
    format!(
        "the body is larger than {bytes_max} bytes; send it in parts (librarian begin-upload) or raise the limit"
    )
}

/// Why the caller of a response was turned away; see [`Refusal::turns_away`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct TurnedAway(pub(crate) &'static str);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let turned_away = self.turns_away().map(TurnedAway);
        let mut response = self.response();
        if let Some(turned_away) = turned_away {
            response.extensions_mut().insert(turned_away);
        }
        response
    }
}

impl Refusal {
    fn response(self) -> Response {
        let rejected = |status: StatusCode, text: &str| {
            (status, crate::http::json(&json!({"error": text}))).into_response()
        };
        match self {
            Self::InvalidJson => rejected(StatusCode::BAD_REQUEST, "invalid json"),
            Self::NotAnObject => rejected(StatusCode::BAD_REQUEST, "body must be an object"),
            Self::BadRequest => rejected(StatusCode::BAD_REQUEST, "bad request"),
            Self::MissingOperation => rejected(StatusCode::BAD_REQUEST, "missing operation"),
            Self::UnknownOperation => rejected(StatusCode::BAD_REQUEST, "unknown operation"),
            Self::UnknownKind => rejected(StatusCode::NOT_FOUND, "unknown kind"),
            Self::Rejected(text) => rejected(StatusCode::BAD_REQUEST, &text),
            Self::Unauthenticated => {
                let mut response = rejected(StatusCode::UNAUTHORIZED, "auth failure");
                let scheme = header::HeaderValue::from_static("Bearer");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
                response
            }
            Self::Denied => rejected(StatusCode::FORBIDDEN, "access denied"),
            Self::NoWorkspace => rejected(StatusCode::NOT_FOUND, "workspace not found"),
            Self::TooLarge { bytes_max } => {
                (StatusCode::PAYLOAD_TOO_LARGE, format!("413: {}", too_large(bytes_max))).into_response()
            }
            Self::TooManyValues => rejected(StatusCode::PAYLOAD_TOO_LARGE, TOO_MANY_VALUES),
            Self::Late => rejected(StatusCode::REQUEST_TIMEOUT, LATE),
            Self::Overloaded(what) => {
                later(rejected(StatusCode::TOO_MANY_REQUESTS, what), RETRY_AFTER_SECONDS)
            }
            Self::Backlogged(text) => {
                let body = crate::http::json(&json!({"error": text, "type": BACKLOG_HIGH}));
                later((StatusCode::TOO_MANY_REQUESTS, body).into_response(), RETRY_AFTER_SECONDS)
            }
            Self::TooManyTries => {
                later(rejected(StatusCode::TOO_MANY_REQUESTS, TOO_MANY_TRIES), RETRY_AFTER_SECONDS)
            }
            Self::Crowded => later(rejected(StatusCode::SERVICE_UNAVAILABLE, CROWDED), RETRY_AFTER_SECONDS),
            Self::NotReady => {
                later(rejected(StatusCode::SERVICE_UNAVAILABLE, NOT_READY), RETRY_AFTER_SECONDS)
            }
            Self::CannotAsk { kind, reason } => {
                let body = crate::http::json(&json!({"error": reason, "type": kind}));
                later((StatusCode::SERVICE_UNAVAILABLE, body).into_response(), RETRY_AFTER_REPAIR_SECONDS)
            }
            Self::Later(error) => {
                let told = json!({"error": {"type": error.r#type, "message": error.message}});
                later(
                    (StatusCode::SERVICE_UNAVAILABLE, crate::http::json(&told)).into_response(),
                    RETRY_AFTER_SECONDS,
                )
            }
            Self::Failed(error) => {
                crate::http::json(&json!({"error": {"type": error.r#type, "message": error.message}}))
            }
        }
    }
}

/// The answer of a service whose store takes nothing: the same call may succeed once there is room again.
pub(crate) fn repaired_first(mut answer: Response) -> Response {
    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    later(answer, RETRY_AFTER_REPAIR_SECONDS)
}

/// The answer of a service that has too much under way: the same call may succeed soon.
pub(crate) fn too_many_first(mut answer: Response) -> Response {
    *answer.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    later(answer, RETRY_AFTER_REPAIR_SECONDS)
}

fn later(mut response: Response, seconds: &'static str) -> Response {
    response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static(seconds));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_names_its_flow_where_there_is_one() {
        let told = |flow: Option<&str>| {
            let excess =
                Excess::Own { bytes: 9 << 20, share_bytes: 6 << 20, flow: flow.map(ToOwned::to_owned) };
            Refusal::backlogged("w", &excess).typed().message
        };
        assert!(told(Some("f1")).contains("9 of 6 MiB, most in flow 'f1'; try"), "{}", told(Some("f1")));
        assert!(told(None).contains("9 of 6 MiB; try"), "{}", told(None));
    }
}
