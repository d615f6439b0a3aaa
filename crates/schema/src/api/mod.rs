//! Translations between the API dialect, which clients speak to the gateway, and the bus dialect, which services speak:
//! one table of services, one row each. A row says what a question holds, how an answer is shown and which message of it
//! is the last, so that the gateway is one loop for all of them.
//!
//! Questions are checked here: a body that does not fit is the caller's error, names the member, and nothing of it
//! reaches the bus. Reading is tolerant: `null` is absent, whole numbers may come as texts, unknown members are ignored.
//! In an answer `error` is there exactly when the service failed.
//!
//! ```
//! use serde_json::json;
//! use sluice_schema::{WorkspaceId, api::{self, Caller}};
//!
//! let workspace = WorkspaceId::parse("default")?;
//! let caller = Caller { handle: "u1", default_workspace: &workspace, parts: false };
//!
//! let service = api::find("embeddings").expect("a service");
//! let call = service.encode(json!({"texts": ["a"]}), &caller)?;
//! assert_eq!(call.body, r#"{"texts":["a"]}"#);
//!
//! let reply = call.decode(br#"{"error": null, "vectors": [[0.5]]}"#)?;
//! assert!(reply.last && call.sends(&reply));
//! assert_eq!(reply.body, json!({"vectors": [[0.5]]}));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod base64;
mod control;
mod error;
mod field;
mod library;
mod load;
mod models;
mod query;
mod rag;
mod stream;
mod term;

use std::fmt;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

pub use self::error::ApiError;
pub use self::stream::{Export, Import, exports, find_export, find_import, imports};
use crate::operation::Level;
use crate::{Topic, WorkspaceId, message as m, wire};
use field::Field;

/// How a service is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// A question with an answer: topics `request` and `response` of the interface named like the service.
    Call,
    /// A message without an answer: topic `flow` of that interface. The caller gets `{}` once the bus has it.
    Send,
}

/// Who asks, as far as a translation depends on it.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// The caller's handle. It goes to iam as the actor, whatever the body says.
    pub handle: &'a str,
    /// The caller's own workspace.
    pub default_workspace: &'a WorkspaceId,
    /// Whether the caller can take an answer in parts (the socket). If not (HTTP), services are asked not to stream.
    pub parts: bool,
}

/// Where a service is asked and where it answers.
type Topics = fn(&WorkspaceId) -> (Topic, Topic);
/// Rewrites a question before its members are read.
type Prepare = fn(&mut Map<String, Value>, &Caller<'_>) -> Result<(), ApiError>;
/// Adds to an answer what its members alone do not tell. Sees what the table left of the bus form, then the API form.
type Finish = fn(&Call, &mut Map<String, Value>, &mut Map<String, Value>);

/// One row of the table.
pub struct Service {
    /// Its name in paths and frames, and of its interface in flows.
    pub name: &'static str,
    /// Whether it serves the system, a workspace or a flow.
    pub level: Level,
    /// How it is reached.
    pub door: Door,
    topics: Option<Topics>,
    request: &'static [Field],
    prepare: Prepare,
    /// Reads the bus form of a question as its message and writes that.
    typed: fn(Value) -> Result<Bytes, String>,
    response: &'static [Field],
    finish: Finish,
    ending: Ending,
    /// Whether explanations are asides to the answer.
    asides: bool,
}

/// Which message of an answer is the last, beside one with an error.
#[derive(Clone, Copy)]
enum Ending {
    /// Every: there is only one.
    Every,
    /// The one where this flag is set; the second member is what a missing flag means.
    Flag(&'static str, bool),
    /// As this function says, which sees the operation and the bus form, errors included.
    Told(fn(&Call, &Map<String, Value>) -> bool),
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service({})", self.name)
    }
}

/// A question on its way.
#[derive(Debug, Clone)]
pub struct Call {
    /// What is published.
    pub body: Bytes,
    /// The operation asked for; empty for services with only one.
    pub operation: String,
    /// Whether the answer was asked for in parts.
    pub streaming: bool,
    /// Whether the caller can take an answer in parts.
    parts: bool,
    /// Over HTTP one part of a document is asked for by number.
    part: Option<i64>,
    service: &'static Service,
}

/// One message of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// For the caller, as it is. An object; `error` in it exactly when `error` below is.
    pub body: Value,
    /// Whether no more messages follow.
    pub last: bool,
    /// What the service says went wrong. A failure may come in the middle: go on until `last`.
    pub error: Option<m::Error>,
    /// An explanation on the side, which a caller who did not ask for parts is not sent.
    pub aside: bool,
}

/// The service of a name: `config`, `document-rag`, `thru/custom`.
#[must_use]
pub fn find(name: &str) -> Option<&'static Service> {
    match name.strip_prefix("thru/") {
        Some("") => None,
        Some(_) => Some(&load::THRU),
        None => services().find(|service| service.name == name),
    }
}

/// Every service that has a name of its own, so without pass-through.
pub fn services() -> impl Iterator<Item = &'static Service> {
    [control::SERVICES, library::SERVICES, models::SERVICES, query::SERVICES, rag::SERVICES, load::SERVICES]
        .into_iter()
        .flatten()
}

/// The interface of a flow that a service name stands for: the name, without `thru/`.
#[must_use]
pub fn interface(name: &str) -> &str {
    name.strip_prefix("thru/").unwrap_or(name)
}

impl Service {
    /// The members of a question, each as the names that lead to it.
    pub fn members(&self) -> impl Iterator<Item = Vec<&'static str>> {
        self.request.iter().flat_map(field::Field::paths)
    }

    /// Where a service of a workspace or the system is asked and answers; `None` for a flow's, whose record tells.
    #[must_use]
    pub fn topics(&self, workspace: &WorkspaceId) -> Option<(Topic, Topic)> {
        self.topics.map(|topics| topics(workspace))
    }

    /// A caller's body as a question for the bus.
    ///
    /// # Errors
    /// An [`ApiError`] that names the member that does not fit.
    pub fn encode(&'static self, body: Value, caller: &Caller<'_>) -> Result<Call, ApiError> {
        let Value::Object(mut body) = body else {
            return Err(ApiError::shape("an object", &body).under("body"));
        };
        if !caller.parts {
            body.remove("streaming");
        }
        (self.prepare)(&mut body, caller)?;
        let bus = field::to_bus(self.request, body)?;
        let operation = bus.get("operation").and_then(Value::as_str).unwrap_or_default().to_owned();
        let streaming = bus.get("streaming") == Some(&Value::Bool(true));
        let one_part = operation == "stream-document" && !caller.parts;
        let part = one_part.then(|| bus.get("chunk_index").and_then(Value::as_i64).unwrap_or_default());
        let body = (self.typed)(Value::Object(bus)).map_err(ApiError::untyped)?;
        Ok(Call { body, operation, streaming, parts: caller.parts, part, service: self })
    }
}

impl Call {
    /// The service that is asked.
    #[must_use]
    pub fn service(&self) -> &'static Service {
        self.service
    }

    /// One message from the bus as the caller gets it.
    ///
    /// # Errors
    /// An [`ApiError`] when the service sent something that is not an answer.
    pub fn decode(&self, body: &[u8]) -> Result<Reply, ApiError> {
        let answer: Value = wire::decode(body).map_err(|e| ApiError::unreadable(self.service.name, e))?;
        let Value::Object(mut bus) = answer else {
            return Err(ApiError::unreadable(self.service.name, "it is not an object"));
        };
        let error = failure(&bus);
        let last = match self.service.ending {
            Ending::Every => true,
            Ending::Flag(name, missing) => {
                error.is_some() || bus.get(name).and_then(Value::as_bool).unwrap_or(missing)
            }
            Ending::Told(told) => told(self, &bus),
        };
        let aside = self.service.asides && bus.get("message_type").is_some_and(|kind| kind == "explain");
        let mut body = field::to_api(self.service.response, &mut bus);
        (self.service.finish)(self, &mut bus, &mut body);
        let error = error.or_else(|| last.then(|| self.part_not_there(&body)).flatten());
        if let Some(error) = &error {
            body.insert("error".to_owned(), error_body(error));
        }
        Ok(Reply { body: Value::Object(body), last, error, aside })
    }

    /// Whether the caller is sent a reply. One who takes no parts gets exactly one: the last, or the part asked for by
    /// number; after that one the rest need not be read.
    #[must_use]
    pub fn sends(&self, reply: &Reply) -> bool {
        match (self.part, &reply.error) {
            (Some(part), None) => part_of(&reply.body) == Some(part),
            (Some(_), Some(_)) => reply.last,
            (None, _) => reply.last || (self.parts && (self.streaming || !reply.aside)),
        }
    }

    /// The failure to tell when a document ended before the part that was asked for.
    fn part_not_there(&self, body: &Map<String, Value>) -> Option<m::Error> {
        let asked = self.part?;
        let index = body.get("chunk-index").and_then(Value::as_i64).unwrap_or_default();
        let message = format!("chunk-index {asked} is not in the document; its last is {index}");
        (asked < 0 || index < asked).then(|| m::Error::new("request-error", message))
    }
}

fn part_of(body: &Value) -> Option<i64> {
    body.get("chunk-index").and_then(Value::as_i64)
}

/// An error as part of an answer: `{"type", "message"}`.
#[must_use]
pub fn error_body(error: &m::Error) -> Value {
    serde_json::json!({"type": error.r#type, "message": error.message})
}

fn failure(bus: &Map<String, Value>) -> Option<m::Error> {
    let error = bus.get("error").filter(|error| error.is_object())?;
    let text = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    Some(m::Error { r#type: text("type"), message: text("message") })
}

fn typed<M: Serialize + DeserializeOwned>(bus: Value) -> Result<Bytes, String> {
    let message: M = serde_json::from_value(bus).map_err(|e| e.to_string())?;
    Ok(wire::encode(&message))
}

#[expect(clippy::unnecessary_wraps, reason = "a row that needs no preparation")]
fn as_given(_: &mut Map<String, Value>, _: &Caller<'_>) -> Result<(), ApiError> {
    Ok(())
}

fn as_shown(_: &Call, _: &mut Map<String, Value>, _: &mut Map<String, Value>) {}

/// A row: a flow's service with one answer message. The other kinds differ by the methods below.
const fn row<M: Serialize + DeserializeOwned>(
    name: &'static str,
    request: &'static [Field],
    response: &'static [Field],
) -> Service {
    Service {
        name,
        level: Level::Flow,
        door: Door::Call,
        topics: None,
        request,
        prepare: as_given,
        typed: typed::<M>,
        response,
        finish: as_shown,
        ending: Ending::Every,
        asides: false,
    }
}

impl Service {
    const fn at(mut self, level: Level, topics: Topics) -> Self {
        self.level = level;
        self.topics = Some(topics);
        self
    }

    const fn sent(mut self) -> Self {
        self.door = Door::Send;
        self
    }

    const fn ends(mut self, ending: Ending) -> Self {
        self.ending = ending;
        self
    }

    const fn with_asides(mut self) -> Self {
        self.asides = true;
        self
    }

    const fn prepared(mut self, prepare: Prepare) -> Self {
        self.prepare = prepare;
        self
    }

    const fn finished(mut self, finish: Finish) -> Self {
        self.finish = finish;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_of_a_question_can_be_asked_but_for_the_inner_ones() {
        for service in services() {
            let empty = (service.typed)(Value::Object(Map::new())).unwrap();
            let message: Map<String, Value> = serde_json::from_slice(&empty).unwrap();
            let table: Vec<_> = service.request.iter().map(Field::bus_name).collect();
            let inner: Vec<_> =
                message.keys().filter(|name| !table.contains(name)).map(String::as_str).collect();
            let expected: &[&str] = match service.name {
                // What the gateway itself asks identity; a client's body must not reach these.
                "iam" => &[
                    "api_key",
                    "request_id",
                    "client_ip",
                    "capability",
                    "resource_json",
                    "parameters_json",
                    "authorise_checks",
                ],
                "text-load" | "document-load" => &["document_id"],
                _ => &[],
            };
            assert_eq!(inner, expected, "{}", service.name);
        }
    }
}
