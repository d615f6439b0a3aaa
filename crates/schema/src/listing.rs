//! Lists: whole in one answer where they fit, else in pages.
//!
//! A request for a list may say `bytes_max`, about so many bytes to a page; an answer that is not the last one then names a
//! `cursor`, which the next request sends back with all else as it was. Items come in the order of their places. What is
//! added or removed between two pages may or may not be told of; everything else is told once. Who asks for no pages gets
//! the whole list, or an error of the type [`Error::TOO_LARGE`] that says how to ask, never a part of it.

use crate::ceilings;
use crate::message::Error;

/// The smallest page, in bytes. As much is left in a message for what is around a list.
pub const PAGE_BYTES_MIN: usize = 64 << 10;
/// What an item takes beside what it is counted with: the comma, and members that are empty.
const ITEM_BYTES: usize = 64;

/// The bytes that lists may take in a message of at most so many.
#[must_use]
pub fn room(message_bytes_max: usize) -> usize {
    message_bytes_max.saturating_sub(PAGE_BYTES_MIN).max(PAGE_BYTES_MIN)
}

/// The size of a page that is asked for, within what a message has room for; `None` where no pages are asked for.
#[must_use]
pub fn page_bytes(asked: i64, message_bytes_max: usize) -> Option<usize> {
    let asked = usize::try_from(asked).ok().filter(|bytes| *bytes > 0);
    asked.map(|bytes| bytes.clamp(PAGE_BYTES_MIN, room(message_bytes_max)))
}

/// How many times its length a row may weigh before it counts as longer: rows of texts weigh some ten times.
const WEIGHT_FACTOR: usize = 16;

/// What a row counts for in a list: its length as JSON, or more where it holds so many values that whoever reads it needs
/// out of proportion more.
#[must_use]
pub fn row_bytes(json: &[u8]) -> usize {
    json.len().max(ceilings::weigh(json) / WEIGHT_FACTOR)
}

/// That something does not fit one message.
#[must_use]
pub fn too_large(message_bytes_max: usize) -> Error {
    let told = format!(
        "the list is larger than the limit of {message_bytes_max} bytes for one message; ask for pages: send 'bytes_max', \
         for example 4194304, and then the 'cursor' of each answer until an answer has none"
    );
    Error::new(Error::TOO_LARGE, told)
}

/// An answer to a request for a list, while it is filled.
#[derive(Debug)]
pub struct Page<T> {
    /// What it holds.
    pub items: Vec<T>,
    /// Where the next one goes on; empty on the last.
    pub cursor: String,
    bytes: usize,
    room: usize,
    is_paged: bool,
    message_bytes_max: usize,
    last: String,
}

impl<T> Page<T> {
    /// An empty page of the size that was asked for; 0 asks for the whole list.
    #[must_use]
    pub fn new(bytes_max: i64, message_bytes_max: usize) -> Self {
        let asked = page_bytes(bytes_max, message_bytes_max);
        Self {
            items: Vec::new(),
            cursor: String::new(),
            bytes: 0,
            room: asked.unwrap_or_else(|| room(message_bytes_max)),
            is_paged: asked.is_some(),
            message_bytes_max,
            last: String::new(),
        }
    }

    /// Takes the item that comes next, of so many bytes in a message, or says that the page is full. One item alone is
    /// always taken.
    ///
    /// # Errors
    /// [`too_large`], where no pages were asked for and the whole list has no room.
    pub fn take(&mut self, place: &str, bytes: usize, item: T) -> Result<bool, Error> {
        let bytes = self.bytes + bytes + ITEM_BYTES;
        if bytes > self.room && !self.items.is_empty() {
            if !self.is_paged {
                return Err(too_large(self.message_bytes_max));
            }
            self.cursor = std::mem::take(&mut self.last);
            return Ok(false);
        }
        self.bytes = bytes;
        place.clone_into(&mut self.last);
        self.items.push(item);
        Ok(true)
    }

    /// Takes all items behind a cursor that fit, each with its place; they come in the order of their places.
    ///
    /// # Errors
    /// As [`Page::take`].
    pub fn fill<'a>(
        mut self,
        cursor: &str,
        items: impl IntoIterator<Item = (&'a str, T)>,
        bytes: impl Fn(&T) -> usize,
    ) -> Result<Self, Error> {
        for (place, item) in items.into_iter().filter(|(place, _)| cursor.is_empty() || *place > cursor) {
            let bytes = bytes(&item);
            if !self.take(place, bytes, item)? {
                break;
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: usize = 1 << 20;

    #[test]
    fn a_row_of_nothing_but_values_counts_as_longer() {
        let empty = format!("[{}0]", "\"\",".repeat(10_000));
        assert!(row_bytes(empty.as_bytes()) > 2 * empty.len());
        let texts = format!("[{}0]", "\"a longer text\",".repeat(10_000));
        assert_eq!(row_bytes(texts.as_bytes()), texts.len());
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("{n:05}")).collect()
    }

    fn page(asked: i64, cursor: &str, names: &[String], bytes: usize) -> Result<Page<String>, Error> {
        let items = names.iter().map(|name| (name.as_str(), name.clone()));
        Page::new(asked, MESSAGE).fill(cursor, items, |_| bytes)
    }

    #[test]
    fn pages_tell_each_item_once_and_the_last_has_no_cursor() {
        let names = names(1_000);
        for asked in [1, 100_000, i64::MAX] {
            let (mut told, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
            loop {
                let next = page(asked, &cursor, &names, 3_000).unwrap();
                assert!(!next.items.is_empty() && next.items.len() * 3_000 <= room(MESSAGE));
                told.extend(next.items);
                pages += 1;
                cursor = next.cursor;
                if cursor.is_empty() {
                    break;
                }
            }
            assert_eq!(told, names, "{asked}");
            assert!(pages > 3, "{pages}");
        }
        assert!(page(1, "99999", &names, 1).unwrap().items.is_empty(), "behind the last is nothing");
    }

    #[test]
    fn who_asks_for_no_pages_gets_the_whole_list_or_is_told_how_to_ask() {
        let whole = page(0, "", &names(300), 3_000).unwrap();
        assert_eq!((whole.items.len(), whole.cursor), (300, String::new()));
        let error = page(0, "", &names(400), 3_000).unwrap_err();
        assert!(error.r#type == "too-large" && error.message.contains("'bytes_max'"), "{error:?}");
        assert_eq!(page(0, "", &names(1), 2 * MESSAGE).unwrap().items.len(), 1, "one alone is not held back");
    }
}
