//! Messages to bytes and back, with the dialect's leniency.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A body that does not hold the message it should.
#[derive(Debug, thiserror::Error)]
#[error("the body is not a valid {message} message: {reason}")]
pub struct DecodeError {
    /// The Rust name of the message type.
    pub message: &'static str,
    /// What the JSON reader said, with line and column.
    pub reason: String,
}

/// Writes a message as compact UTF-8 JSON.
pub fn encode<T: Serialize + ?Sized>(message: &T) -> Bytes {
    serde_json::to_vec(message).map(Bytes::from).unwrap_or_else(|_| unreachable_encoding())
}

fn unreachable_encoding() -> Bytes {
    // Wire types have string keys and no fallible serialisers, so this is never reached; null reads as "all defaults".
    Bytes::from_static(b"null")
}

/// Reads a message. What Python peers write and strict JSON refuses (`NaN`, `Infinity`, lone surrogate escapes) is read
/// as `null` and U+FFFD instead of dropping the whole message.
///
/// # Errors
/// A [`DecodeError`] when the body is not JSON even so, or a field has the wrong type.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    let first = match serde_json::from_slice(body) {
        Ok(message) => return Ok(message),
        Err(e) => e,
    };
    // The error's own category does not tell a broken text from a wrong type: the field's name is wrapped around it.
    if let Some(strict) = strict_json(body)
        && let Ok(message) = serde_json::from_slice(&strict)
    {
        return Ok(message);
    }
    Err(DecodeError { message: short_name::<T>(), reason: first.to_string() })
}

fn short_name<T>() -> &'static str {
    let full = std::any::type_name::<T>();
    full.rsplit("::").next().unwrap_or(full)
}

/// Rewrites Python's extensions of JSON; `None` when there are none.
fn strict_json(body: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(body.len());
    let mut changed = false;
    let mut in_string = false;
    let mut at = 0;
    while at < body.len() {
        let rest = &body[at..];
        if in_string {
            if rest[0] == b'\\' && rest.len() > 1 {
                let length = if rest[1] == b'u' { 6 } else { 2 };
                let escape = &rest[..length.min(rest.len())];
                match surrogate(escape) {
                    Some(Half::High)
                        if matches!(surrogate(rest.get(6..12).unwrap_or_default()), Some(Half::Low)) =>
                    {
                        out.extend_from_slice(&rest[..12]);
                        at += 12;
                    }
                    Some(_) => {
                        out.extend_from_slice(b"\\ufffd");
                        changed = true;
                        at += 6;
                    }
                    None => {
                        out.extend_from_slice(escape);
                        at += escape.len();
                    }
                }
                continue;
            }
            in_string = rest[0] != b'"';
        } else if let Some(word) =
            [&b"NaN"[..], b"-Infinity", b"Infinity"].into_iter().find(|word| rest.starts_with(word))
        {
            out.extend_from_slice(b"null");
            changed = true;
            at += word.len();
            continue;
        } else {
            in_string = rest[0] == b'"';
        }
        out.push(rest[0]);
        at += 1;
    }
    changed.then_some(out)
}

enum Half {
    High,
    Low,
}

fn surrogate(escape: &[u8]) -> Option<Half> {
    let digits = escape.strip_prefix(b"\\u")?;
    let code = u16::from_str_radix(std::str::from_utf8(digits.get(..4)?).ok()?, 16).ok()?;
    match code {
        0xD800..=0xDBFF => Some(Half::High),
        0xDC00..=0xDFFF => Some(Half::Low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Chunk, ConfigPush, EmbeddingsResponse, TriplesQueryResponse};

    #[test]
    fn null_and_missing_are_the_default() {
        let answer: TriplesQueryResponse =
            decode(br#"{"triples": null, "is_final": null, "unknown": 1}"#).unwrap();
        assert_eq!(answer, TriplesQueryResponse::default());
        assert!(answer.is_final);
    }

    #[test]
    fn python_extensions_do_not_drop_a_message() {
        let vectors: EmbeddingsResponse = decode(br#"{"vectors": []}"#).unwrap();
        assert!(vectors.vectors.is_empty());
        let chunk: Chunk = decode(br#"{"chunk": "a\ud800b\ud83d\ude00 NaN", "document_id": NaN}"#).unwrap();
        assert_eq!(chunk.chunk, "a\u{fffd}b\u{1f600} NaN");
    }

    #[test]
    fn a_wrong_type_names_the_field() {
        let said = decode::<ConfigPush>(br#"{"version": "x"}"#).unwrap_err().to_string();
        assert!(said.contains("ConfigPush") && said.contains("`version`"), "{said}");
        assert!(decode::<ConfigPush>(b"[1]").is_err());
        assert!(decode::<ConfigPush>(b"\xff").is_err());
    }

    #[test]
    fn every_field_is_written_and_additive_ones_only_when_set() {
        let push = encode(&ConfigPush::default());
        assert_eq!(push, r#"{"version":0,"changes":{},"workspace_changes":null}"#);
        let request = encode(&crate::message::ConfigRequest::default());
        assert_eq!(request, r#"{"operation":"","workspace":"","keys":[],"type":"","values":[]}"#);
    }
}
