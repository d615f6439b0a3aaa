//! A parked message on its way to the dead letters, in one of two forms.
//!
//! As a rule a letter is one JSON text with the message's body in it, as base64. That makes it a third larger than the
//! message, so one that the broker has just carried may be too large for it as a letter. Such a one travels as it is: its
//! body is the message's, and what is reported about it stands in a property. Of a message with more properties than that one
//! has room for, the smallest are kept; the others are named.

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
/// Of what names the properties that were left out; a character takes six bytes at most.
const CUT_CHARS_MAX: usize = 1_024;
const CUT_BYTES_MAX: usize = 8 * 1024;

/// A letter as a message: what is reported about it, without its body, and the body of the message that is parked.
#[must_use]
pub fn message(mut letter: DeadLetter, body: &Bytes, limits: Limits) -> Message {
    letter.body.clear();
    let wrapped_bytes = wire::encode(&letter).len() + body.len().div_ceil(3) * 4;
    if wrapped_bytes > limits.message_bytes_max {
        let head = wire::encode(&fitted(&letter));
        if let Ok(head) = std::str::from_utf8(&head)
            && head.len() <= HEAD_BYTES_MAX
        {
            return Message::new(body.clone()).with(property::LETTER, head);
        }
    }
    letter.body = STANDARD.encode(body);
    Message::new(wire::encode(&letter))
}

/// A letter that has room in a property: with as many properties of the message as fit, and the names of the others.
fn fitted(letter: &DeadLetter) -> DeadLetter {
    let mut short = letter.clone();
    short.reason = short.reason.chars().take(REASON_CHARS_MAX).collect();
    if wire::encode(&short).len() <= HEAD_BYTES_MAX {
        return short;
    }
    let mut properties: Vec<_> = std::mem::take(&mut short.properties).into_iter().collect();
    // As a pair it takes a byte more than in the letter.
    properties.sort_by_cached_key(|property| wire::encode(property).len());
    let mut room = HEAD_BYTES_MAX.saturating_sub(CUT_BYTES_MAX + wire::encode(&short).len());
    let mut fits = |property: &(String, String)| {
        let left = room.checked_sub(wire::encode(property).len());
        room = left.unwrap_or(0);
        left.is_some()
    };
    let cut = properties.split_off(properties.iter().map_while(|one| fits(one).then_some(())).count());
    let bytes: usize = cut.iter().map(|(name, value)| name.len() + value.len()).sum();
    let names = cut.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    let told = format!("{} properties with {bytes} bytes had no room in this letter: {names}", cut.len());
    tracing::warn!(
        letter = short.id,
        count = cut.len(),
        bytes,
        "properties of a parked message were cut off; its letter names them"
    );
    properties.push((property::CUT.to_owned(), told.chars().take(CUT_CHARS_MAX).collect()));
    short.properties = properties.into_iter().collect();
    short
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
    }

    #[test]
    fn properties_that_have_no_room_in_a_letter_are_named_and_it_is_parked_all_the_same() {
        let body = Bytes::from(vec![b'x'; 190_000]);
        let small = ("id".to_owned(), "7".to_owned());
        let many = |count: usize, bytes: usize, of: &str| -> Vec<(String, String)> {
            (0..count).map(|number| (format!("p{number:05}"), of.repeat(bytes))).collect()
        };
        for (properties, kept, named) in [
            (
                many(1, HEAD_BYTES_MAX, "v"),
                0,
                "1 properties with 98310 bytes had no room in this letter: p00000",
            ),
            (many(3, 40_000, "v"), 2, "1 properties with 40006 bytes had no room in this letter: p00002"),
            // Each takes six bytes in the letter.
            (many(1, 20_000, "\u{1}"), 0, "1 properties with 20006 bytes"),
            (many(9_000, 6, "v"), 3_000, "p0"),
        ] {
            let mut full = letter("why");
            full.properties = properties.into_iter().chain([small.clone()]).collect();
            let before = full.properties.clone();
            let sent = message(full, &body, LIMITS);
            assert!(sent.get(property::LETTER).is_some_and(|head| head.len() <= HEAD_BYTES_MAX), "{named}");
            let (read, raw) = read(&sent).unwrap();
            assert_eq!((raw, read.id.as_str()), (Some(body.clone()), "l1"));
            let told = read.properties.get(property::CUT).unwrap();
            assert!(told.contains(named) && told.len() <= CUT_BYTES_MAX, "{told}");
            let rest: Vec<_> = read.properties.iter().filter(|(name, _)| *name != property::CUT).collect();
            assert!(
                rest.len() > kept && rest.iter().all(|(name, value)| before.get(*name) == Some(*value)),
                "{}",
                rest.len()
            );
            assert_eq!(read.properties.get("id"), Some(&small.1), "the small ones stay");
        }
        let mut fits = letter("why");
        fits.properties = many(2, 40_000, "v").into_iter().collect();
        let (read, _) = read(&message(fits.clone(), &body, LIMITS)).unwrap();
        assert_eq!(read.properties, fits.properties);
    }
}
