//! What a socket says: frames read leniently, written exactly.

use std::hash::{BuildHasher as _, RandomState};

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use sluice_schema::api::Reply;

use crate::body;
use crate::refusal::Refusal;

/// The longest id; it comes back with every part of the answer.
const ID_BYTES_MAX: usize = 1 << 10;
/// The longest name of a workspace, flow or service, and the longest token, as they are written.
const NAME_BYTES_MAX: usize = 16 << 10;

/// What a frame from a client asks for.
pub(crate) enum Frame {
    /// To be somebody, or somebody else.
    Auth { token: Option<String> },
    /// An answer.
    Request(Request),
}

/// A question in a frame.
pub(crate) struct Request {
    pub(crate) id: Box<RawValue>,
    pub(crate) workspace: Option<String>,
    /// Empty and absent are the same: a service of the workspace or the system.
    pub(crate) flow: Option<String>,
    pub(crate) service: String,
    pub(crate) body: Map<String, Value>,
    /// What the body takes in memory, at most.
    pub(crate) weight_bytes: usize,
    /// The same for frames that ask the same under the same id.
    pub(crate) sameness: u64,
}

/// A frame that cannot be understood, with its id if that much could be read.
pub(crate) struct Garbage {
    pub(crate) id: Option<Box<RawValue>>,
    pub(crate) refusal: Refusal,
}

/// Nothing of it is read further than it has to be: what it holds may be large, and its sender a stranger.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    request: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    r#type: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    token: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    workspace: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    flow: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    service: Option<&'a RawValue>,
}

/// Keeps `null` apart from absent.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// A member that is a string, or none when it is absent, `null` or empty; an error when it is anything else.
fn name(member: Option<&RawValue>) -> Result<Option<String>, ()> {
    let Some(text) = member.map(RawValue::get).filter(|text| *text != "null") else { return Ok(None) };
    if !text.starts_with('"') || text.len() > NAME_BYTES_MAX {
        return Err(());
    }
    let name: String = serde_json::from_str(text).map_err(|_| ())?;
    Ok(Some(name).filter(|name| !name.is_empty()))
}

impl Frame {
    pub(crate) fn read(text: &str, hasher: &RandomState) -> Result<Self, Garbage> {
        let garbage = |id: Option<&RawValue>, text: &str| Garbage {
            id: id.map(ToOwned::to_owned),
            refusal: Refusal::failed("error", text),
        };
        let envelope: Envelope<'_> = match serde_json::from_str(text) {
            Ok(_) if !text.trim_start().starts_with('{') => {
                return Err(garbage(None, "frame must be a JSON object"));
            }
            Ok(envelope) => envelope,
            Err(error) if error.is_data() => return Err(garbage(None, "frame must be a JSON object")),
            Err(_) => return Err(garbage(None, "frame is not JSON")),
        };
        if name(envelope.r#type).is_ok_and(|kind| kind.as_deref() == Some("auth")) {
            return match envelope.token.map(RawValue::get) {
                Some(token) if token.len() > NAME_BYTES_MAX => Err(garbage(None, "the token is too long")),
                // What is no string is no token.
                _ => Ok(Self::Auth { token: name(envelope.token).unwrap_or_default() }),
            };
        }
        let Some(id) = envelope.id else { return Err(garbage(None, "frame has no id")) };
        if id.get().len() > ID_BYTES_MAX {
            return Err(garbage(None, "the id is longer than 1024 bytes"));
        }
        let Some(request) = envelope.request else { return Err(garbage(Some(id), "frame has no request")) };
        if !request.get().starts_with('{') {
            return Err(garbage(Some(id), "request must be an object"));
        }
        let weighed = body::check(request.get().as_bytes());
        let weight_bytes = weighed.map_err(|refusal| Garbage { id: Some(id.to_owned()), refusal })?;
        let Ok(body) = serde_json::from_str(request.get()) else {
            return Err(garbage(Some(id), "request must be an object"));
        };
        let Ok(workspace) = name(envelope.workspace) else {
            return Err(garbage(Some(id), "workspace must be a text"));
        };
        let Ok(flow) = name(envelope.flow) else { return Err(garbage(Some(id), "flow must be a text")) };
        let service = name(envelope.service).ok().flatten().unwrap_or_default();
        let sameness = hasher.hash_one((id.get(), &workspace, &flow, &service, request.get()));
        let id = id.to_owned();
        Ok(Self::Request(Request { id, workspace, flow, service, body, weight_bytes, sameness }))
    }
}

/// A frame with one part of an answer. Python clients that wait for a single frame (`whole`) look for a failure beside
/// the answer only; readers of a stream expect it inside.
pub(crate) fn answer(id: &RawValue, reply: &Reply, whole: bool) -> String {
    let mut text = String::with_capacity(id.get().len() + 256);
    text.push_str("{\"id\":");
    text.push_str(id.get());
    if let Some(error) = reply.body.get("error").filter(|_| whole && reply.last) {
        text.push_str(",\"error\":");
        text.push_str(&error.to_string());
    }
    text.push_str(",\"response\":");
    text.push_str(&reply.body.to_string());
    text.push_str(if reply.last { ",\"complete\":true}" } else { ",\"complete\":false}" });
    text
}

/// A frame that refuses.
pub(crate) fn refused(id: Option<&RawValue>, refusal: &Refusal) -> String {
    let error = refusal.frame_error();
    match id {
        Some(id) => format!("{{\"id\":{},\"error\":{error},\"complete\":true}}", id.get()),
        None => json!({"error": error, "complete": true}).to_string(),
    }
}

/// The answer to an authentication that succeeded.
pub(crate) fn authenticated(workspace: &str) -> String {
    json!({"type": "auth-ok", "default_workspace": workspace}).to_string()
}

/// The answer to one that did not. A credential that could not be looked at says why, and that it may be shown again.
pub(crate) fn not_authenticated(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Unauthenticated => json!({"type": "auth-failed", "error": "auth failure"}).to_string(),
        other => {
            let error = other.frame_error();
            json!({"type": "auth-failed", "error": error["message"], "reason": error["type"]}).to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn garbage(text: &str) -> (Option<String>, String) {
        match Frame::read(text, &RandomState::new()) {
            Ok(_) => panic!("{text} was understood"),
            Err(garbage) => {
                (garbage.id.map(|id| id.get().to_owned()), garbage.refusal.frame_error().to_string())
            }
        }
    }

    fn request(text: &str, hasher: &RandomState) -> Request {
        match Frame::read(text, hasher) {
            Ok(Frame::Request(request)) => request,
            _ => panic!("{text} is not a request"),
        }
    }

    #[test]
    fn garbage_says_what_is_wrong_under_its_id_where_there_is_one() {
        let check = |text: &str, id: Option<&str>, expected: &str| {
            let (seen, said) = garbage(text);
            assert_eq!(seen.as_deref(), id, "{text}");
            assert!(said.contains(expected), "{text}: {said}");
        };
        check("{", None, "not JSON");
        check("", None, "not JSON");
        check("[1,2]", None, "must be a JSON object");
        check("7", None, "must be a JSON object");
        check("{}", None, "no id");
        check(r#"{"request":{}}"#, None, "no id");
        check(r#"{"id":1}"#, Some("1"), "no request");
        check(r#"{"id":{"a":[1]},"request":[]}"#, Some(r#"{"a":[1]}"#), "request must be an object");
        check(r#"{"id":"x","request":null}"#, Some("\"x\""), "request must be an object");
        check(r#"{"id":"x","request":{},"flow":7}"#, Some("\"x\""), "flow must be a text");
        check(r#"{"id":"x","request":{},"workspace":["a"]}"#, Some("\"x\""), "workspace must be a text");
    }

    #[test]
    fn a_request_keeps_its_id_as_written_and_an_empty_flow_is_none() {
        let text =
            r#"{"id": 1.50, "service":"config","flow":"","workspace":null,"request":{"operation":"list"}}"#;
        let read = request(text, &RandomState::new());
        assert_eq!(
            (read.id.get(), read.flow, read.workspace, &*read.service),
            ("1.50", None, None, "config")
        );
        assert!(matches!(
            Frame::read(r#"{"type":"auth","id":1,"token":"t"}"#, &RandomState::new()),
            Ok(Frame::Auth { token: Some(token) }) if token == "t"
        ));
    }

    #[test]
    fn members_that_nobody_asked_for_are_not_read() {
        let many = |part: &str| part.repeat((4 << 20) / part.len());
        for text in [
            format!(r#"{{"token":[{}0]}}"#, many("0,")),
            format!(r#"{{"type":[{}0],"id":1}}"#, many("{},")),
            format!(r#"{{"id":[{}0],"request":{{}}}}"#, many("[],")),
            format!(r#"{{"id":1,"request":{{"x":[{}0]}}}}"#, many("0,")),
            format!(r#"{{"id":1,"request":[{}0]}}"#, many("0,")),
            format!(r#"{{"id":1,"request":{{}},"flow":{}{}}}"#, many("["), many("]")),
            format!(r#"{{"id":1,"request":{{}},"workspace":"{}"}}"#, many("w")),
            format!(r#"{{"type":"auth","token":"{}"}}"#, many("t")),
        ] {
            garbage(&text);
        }
        let text = format!(r#"{{"id":1,"service":[{}0],"x":[{}0],"request":{{}}}}"#, many("0,"), many("0,"));
        assert_eq!(request(&text, &RandomState::new()).service, "");
    }

    #[test]
    fn only_frames_that_ask_the_same_are_the_same() {
        let hasher = RandomState::new();
        let of = |text: &str| request(text, &hasher).sameness;
        let first = of(r#"{"id":"a","service":"s","flow":"f","request":{"x":1}}"#);
        assert_eq!(first, of(r#"{"id":"a","service":"s","flow":"f","request":{"x":1},"workspace":""}"#));
        assert_ne!(first, of(r#"{"id":"b","service":"s","flow":"f","request":{"x":1}}"#));
        assert_ne!(first, of(r#"{"id":"a","service":"s","flow":"f","request":{"x":2}}"#));
        assert_ne!(first, of(r#"{"id":"a","service":"s","flow":"g","request":{"x":1}}"#));
    }
}
