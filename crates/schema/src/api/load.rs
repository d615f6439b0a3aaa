//! What is sent into a flow without an answer, and what is passed through unread.

use serde_json::{Map, Value};

use super::field::{Field, Shape, field, text};
use super::library::METADATA;
use super::{ApiError, Call, Caller, Ending, Service, base64, row};
use crate::message as m;

const ITEM: Field = field("metadata", Shape::Record(METADATA));

pub(super) const SERVICES: &[Service] = &[
    row::<m::TextDocument>("text-load", &[ITEM, text("text").required()], &[])
        .sent()
        .prepared(text_for_the_flow),
    row::<m::Document>("document-load", &[ITEM, field("data", Shape::Base64).required()], &[])
        .sent()
        .prepared(about_the_item),
];

/// A service of a flow that is not in the table: bodies go through as they are.
pub(super) static THRU: Service =
    row::<m::PassthroughRequest>("thru", &[field("payload", Shape::Json)], &[field("payload", Shape::Json)])
        .ends(Ending::Flag("is_final", true))
        .prepared(as_payload)
        .finished(from_payload);

/// `id`, `root` and `collection` of a load become the item's metadata. Its own `metadata`, a list, is not used.
fn about_the_item(body: &mut Map<String, Value>, _: &Caller<'_>) -> Result<(), ApiError> {
    let mut about = Map::new();
    for (name, missing) in [("id", ""), ("root", ""), ("collection", "default")] {
        let value = match body.remove(name) {
            None | Some(Value::Null) => missing.into(),
            Some(text @ Value::String(_)) => text,
            Some(other) => return Err(ApiError::shape("a text", &other).under(name)),
        };
        about.insert(name.to_owned(), value);
    }
    body.insert("metadata".to_owned(), Value::Object(about));
    Ok(())
}

/// A text may come as base64 of its encoded form. What is ASCII, is valid base64 and decodes in the charset is taken so;
/// anything else is the text itself.
fn text_for_the_flow(body: &mut Map<String, Value>, caller: &Caller<'_>) -> Result<(), ApiError> {
    about_the_item(body, caller)?;
    let charset = match body.remove("charset") {
        None | Some(Value::Null) => "utf-8".to_owned(),
        Some(Value::String(name)) => name.to_ascii_lowercase(),
        Some(other) => return Err(ApiError::shape("a text", &other).under("charset")),
    };
    let decode = decoder(&charset).ok_or_else(|| {
        ApiError::bad("must be utf-8, ascii or latin-1", format_args!("'{charset}' is not known"))
            .under("charset")
    })?;
    if let Some(Value::String(given)) = body.get_mut("text")
        && let Some(text) = base64::decoded(given).and_then(decode)
    {
        *given = text;
    }
    Ok(())
}

fn decoder(charset: &str) -> Option<fn(Vec<u8>) -> Option<String>> {
    match charset {
        "" | "utf-8" | "utf8" => Some(|bytes| String::from_utf8(bytes).ok()),
        "ascii" | "us-ascii" => Some(|bytes| String::from_utf8(bytes).ok().filter(|text| text.is_ascii())),
        "latin-1" | "latin1" | "iso-8859-1" => {
            Some(|bytes| Some(bytes.into_iter().map(char::from).collect()))
        }
        _ => None,
    }
}

#[expect(clippy::unnecessary_wraps, reason = "one of the table's preparations")]
fn as_payload(body: &mut Map<String, Value>, _: &Caller<'_>) -> Result<(), ApiError> {
    let payload = std::mem::take(body);
    body.insert("payload".to_owned(), Value::Object(payload));
    Ok(())
}

fn from_payload(_: &Call, _: &mut Map<String, Value>, api: &mut Map<String, Value>) {
    *api = match api.remove("payload") {
        Some(Value::Object(payload)) => payload,
        Some(Value::Null) | None => Map::new(),
        Some(other) => Map::from_iter([("payload".to_owned(), other)]),
    };
}
