//! Bodies as JSON: weighed before they are read, and read off the runtime's workers when they are large.
//!
//! A short text can become a large value: `[0,0,…]` takes forty times its length. What a body would take is counted first,
//! in one pass that allocates nothing, and what is out of proportion is refused unread.

use bytes::Bytes;
use serde_json::{Map, Value};
use sluice_schema::ceilings::weigh;
use tokio::sync::Semaphore;

use crate::hall::Room;
use crate::refusal::Refusal;

/// Larger ones are read on a thread of their own.
pub(crate) const INLINE_BYTES_MAX: usize = 1 << 20;
/// What a body may weigh whatever its length.
const WEIGHT_BYTES_MIN: usize = 16 << 20;
/// How many times its length a larger body may weigh.
const WEIGHT_FACTOR_MAX: usize = 8;

/// The weight of a text, if it is in proportion to its length.
pub(crate) fn check(json: &[u8]) -> Result<usize, Refusal> {
    let weight = weigh(json);
    let bytes_max = WEIGHT_BYTES_MIN.max(json.len().saturating_mul(WEIGHT_FACTOR_MAX));
    if weight > bytes_max { Err(Refusal::TooManyValues) } else { Ok(weight) }
}

/// A body as an object; what it takes beyond its length counts against the caller's share.
pub(crate) async fn object(
    bytes: Bytes,
    room: &mut Room,
    readers: &Semaphore,
) -> Result<Map<String, Value>, Refusal> {
    if bytes.len() <= INLINE_BYTES_MAX {
        room.weigh(check(&bytes)?)?;
        return read(&bytes);
    }
    // The semaphore is never closed.
    let _reader = readers.acquire().await;
    let weighed = bytes.clone();
    room.weigh(off_worker(move || check(&weighed)).await??)?;
    off_worker(move || read(&bytes)).await?
}

fn read(bytes: &[u8]) -> Result<Map<String, Value>, Refusal> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Refusal::NotAnObject),
        Err(_) => Err(Refusal::InvalidJson),
    }
}

/// Runs what takes long where it holds up nobody.
pub(crate) async fn off_worker<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| {
        tracing::error!(%error, "a body could not be read");
        Refusal::failed("gateway-error", "the body could not be read")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_proportion_is_refused_and_what_is_large_is_not() {
        let refused = |text: &str| check(text.as_bytes()) == Err(Refusal::TooManyValues);
        let many = |part: &str, bytes: usize| format!(r#"{{"x":[{}0]}}"#, part.repeat(bytes / part.len()));
        for part in ["0,", "{},", "[],", "\"\",", r#"{"a":0},"#, "null,", r#""ab","#] {
            assert!(refused(&many(part, 4 << 20)), "{part}");
            assert!(!refused(&many(part, 64 << 10)), "{part}: small ones may be anything");
        }
        assert!(!refused(&format!(r#"{{"content":"{}"}}"#, "A".repeat(4 << 20))), "a document");
        assert!(
            !refused(&format!(r#"{{"text":"{}"}}"#, r#"a\",[{:"#.repeat(1 << 20))),
            "what is in a string is text"
        );
    }

    #[test]
    fn a_weight_is_more_than_what_the_value_takes() {
        fn takes(value: &Value) -> usize {
            size_of::<Value>()
                + match value {
                    Value::Array(all) => {
                        all.capacity().saturating_sub(all.len()) * size_of::<Value>()
                            + all.iter().map(takes).sum::<usize>()
                    }
                    Value::Object(all) => {
                        all.iter().map(|(name, value)| 64 + name.capacity() + takes(value)).sum()
                    }
                    Value::String(text) => text.capacity(),
                    Value::Null | Value::Bool(_) | Value::Number(_) => 0,
                }
        }
        for text in [
            "[0,0,0,0,0,0,0,0]",
            "[[],[],[]]",
            "[[0],[0],[0]]",
            "{}",
            r#"{"a":{"b":{"c":[1,"x","yy"]}}}"#,
            r#"[{"a":0},{"a":0}]"#,
        ] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert!(weigh(text.as_bytes()) >= takes(&value), "{text}");
        }
    }

    #[test]
    fn strings_end_where_they_end() {
        for (text, weight) in
            [(r#""a\"b,[:""#, 32), (r#""\\","#, 32 + 112), (r#""open,,,"#, 32), ("\"\\", 32)]
        {
            assert_eq!(weigh(text.as_bytes()), text.len() + weight, "{text}");
        }
    }
}
