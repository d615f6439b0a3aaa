//! A parked message on its way to the dead letters, in one of two forms.
//!
//! As a rule a letter is one JSON text with the message's body in it, as base64. That makes it a third larger than the
//! message, so one that the broker has just carried may be too large for it as a letter. Such a one travels as it is: its
//! body is the message's, and what is reported about it stands in a property.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use sluice_schema::message::DeadLetter;
use sluice_schema::wire;

use crate::contract::Limits;
use crate::message::{Message, property};

/// What a property may hold: brokers carry all of them in one frame, of 128 KiB as a rule.
const HEAD_BYTES_MAX: usize = 96 * 1024;
/// Of a reason, where it stands in a property.
const REASON_CHARS_MAX: usize = 4_096;

/// A letter as a message: what is reported about it, without its body, and the body of the message that is parked.
#[must_use]
pub fn message(mut letter: DeadLetter, body: &Bytes, limits: Limits) -> Message {
    letter.body.clear();
    let wrapped_bytes = wire::encode(&letter).len() + body.len().div_ceil(3) * 4;
    if wrapped_bytes > limits.message_bytes_max {
        let mut short = letter.clone();
        short.reason = short.reason.chars().take(REASON_CHARS_MAX).collect();
        let head = wire::encode(&short);
        if let Ok(head) = std::str::from_utf8(&head)
            && head.len() <= HEAD_BYTES_MAX
        {
            return Message::new(body.clone()).with(property::LETTER, head);
        }
    }
    letter.body = STANDARD.encode(body);
    Message::new(wire::encode(&letter))
}

/// What is reported about a parked message, and its body if that travels as it is; else it is in the letter, as base64.
///
/// # Errors
/// When it is no letter.
pub fn read(message: &Message) -> Result<(DeadLetter, Option<Bytes>), wire::DecodeError> {
    match message.get(property::LETTER) {
        Some(head) => Ok((wire::decode(head.as_bytes())?, Some(message.body.clone()))),
        None => Ok((wire::decode(&message.body)?, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { message_bytes_max: 200_000 };

    fn letter(reason: &str) -> DeadLetter {
        DeadLetter { id: "l1".to_owned(), reason: reason.to_owned(), ..DeadLetter::default() }
    }

    #[test]
    fn what_fits_is_one_text_and_what_does_not_travels_as_it_is() {
        for (bytes, is_wrapped) in
            [(0, true), (1_000, true), (149_000, true), (151_000, false), (200_000, false)]
        {
            let body = Bytes::from(vec![b'x'; bytes]);
            let sent = message(letter("why"), &body, LIMITS);
            assert!(sent.body.len() <= LIMITS.message_bytes_max, "{bytes}");
            let (read, raw) = read(&sent).unwrap();
            assert_eq!((read.id.as_str(), read.reason.as_str()), ("l1", "why"));
            match raw {
                None => assert!(is_wrapped && STANDARD.decode(read.body).unwrap() == body, "{bytes}"),
                Some(raw) => assert!(!is_wrapped && read.body.is_empty() && raw == body, "{bytes}"),
            }
        }
    }

    #[test]
    fn what_is_told_fits_a_property() {
        let body = Bytes::from(vec![b'x'; 190_000]);
        let sent = message(letter(&"é".repeat(100_000)), &body, LIMITS);
        assert!(sent.get(property::LETTER).is_some_and(|head| head.len() <= HEAD_BYTES_MAX));
        assert_eq!(read(&sent).unwrap().0.reason.chars().count(), REASON_CHARS_MAX);
        // With properties of its own that fill a frame, it has no second form.
        let mut full = letter("why");
        full.properties.insert("a".to_owned(), "v".repeat(HEAD_BYTES_MAX));
        assert!(message(full, &body, LIMITS).get(property::LETTER).is_none());
    }
}
