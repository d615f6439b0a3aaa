//! The largest things that are accepted, in one table. Whoever takes something in checks it at the door, so that nothing that
//! was accepted is too large to be read, answered or removed later; what a folder already holds beyond a ceiling can still
//! be read in pages and deleted.
//!
//! Sizes are those that a text has in a message: what JSON escapes counts as it is written there.

use memchr::memchr2;

use crate::message::Error;

/// A value of config.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// A value of the types that hold whole vocabularies: see [`value_bytes_max`].
pub const ONTOLOGY_BYTES_MAX: usize = 8 << 20;
/// All values of one config type in one workspace, with their names.
pub const TYPE_BYTES_MAX: usize = 16 << 20;
/// Keys of one config type in one workspace.
pub const TYPE_KEYS_MAX: u64 = 10_000;
/// All values of one workspace, with their names: a dump of it fits one message.
pub const WORKSPACE_BYTES_MAX: usize = 48 << 20;
/// What a value takes beside its texts.
pub const ROW_BYTES: usize = 64;

/// What a flow says about itself for people.
pub const DESCRIPTION_BYTES_MAX: usize = 16 << 10;
/// The parameters of a flow, names and values together.
pub const PARAMETERS_BYTES_MAX: usize = 256 << 10;
/// What a blueprint may become at most while its parameters are filled in.
pub const FILLED_BYTES_MAX: usize = 16 << 20;
/// What of it is kept of a flow.
pub const TOPOLOGY_BYTES_MAX: usize = 1 << 20;
/// Flows of one workspace.
pub const FLOWS_MAX: usize = 1_000;

/// A prompt record, a value of the config type `prompt`, as it is.
pub const PROMPT_RECORD_BYTES_MAX: usize = 64 << 10;
/// What the library keeps of a document beside its content: title, comments, tags, statements.
pub const DOCUMENT_METADATA_BYTES_MAX: usize = 1 << 20;
/// The record that a document is put through a flow.
pub const PROCESSING_BYTES_MAX: usize = 64 << 10;
/// What people say about a collection: name, description, tags.
pub const COLLECTION_BYTES_MAX: usize = 64 << 10;
/// A name for people, such as a workspace's.
pub const NAME_BYTES_MAX: usize = 1 << 10;
/// Workspaces, disabled ones counted: all of them fit the type that registers them.
pub const WORKSPACES_MAX: usize = TYPE_KEYS_MAX as usize;
/// A term of a statement, a literal above all, as it rests.
pub const TERM_BYTES_MAX: usize = 256 << 10;
/// Why a message could not be processed, as it is kept with it; a longer one is cut.
pub const REASON_BYTES_MAX: usize = 16 << 10;
/// Names and properties of a message that is kept as a dead letter.
pub const LETTER_BYTES_MAX: usize = 128 << 10;

/// A text of at most so many bytes: what is longer is cut, and says so.
#[must_use]
pub fn cut(text: String, bytes_max: usize) -> String {
    const MARK: &str = " … (cut)";
    if text.len() <= bytes_max {
        return text;
    }
    let mut end = bytes_max.saturating_sub(MARK.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{MARK}", &text[..end])
}

/// The largest value of a config type.
#[must_use]
pub fn value_bytes_max(config_type: &str) -> usize {
    if config_type == "ontology" { ONTOLOGY_BYTES_MAX } else { VALUE_BYTES_MAX }
}

// What parts of a value take in memory, with the slack of growing containers.
const VALUE_BYTES: usize = 112;
const MEMBER_BYTES: usize = 160;
const CONTAINER_BYTES: usize = 320;
const STRING_BYTES: usize = 32;

/// How many bytes a JSON text takes once it is read, at most. For what is not JSON the number means nothing.
#[must_use]
pub fn weigh(json: &[u8]) -> usize {
    let mut weight = json.len();
    let mut at = 0;
    while let Some(byte) = json.get(at) {
        at += 1;
        weight += match byte {
            b',' => VALUE_BYTES,
            b':' => MEMBER_BYTES,
            b'[' | b'{' => CONTAINER_BYTES + VALUE_BYTES,
            b'"' => {
                at = end_of_string(json, at);
                STRING_BYTES
            }
            _ => 0,
        };
    }
    weight
}

/// Where a string ends that begins before `at`.
fn end_of_string(json: &[u8], mut at: usize) -> usize {
    while let Some(found) = json.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found;
        if json[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    json.len()
}

/// What a text takes in a message, without its quotes.
#[must_use]
pub fn json_bytes(text: &str) -> usize {
    let mut bytes = text.len();
    for &byte in text.as_bytes() {
        bytes += usize::from(ESCAPED[byte as usize]);
    }
    bytes
}

/// How much longer each byte is where JSON escapes it.
const ESCAPED: [u8; 256] = {
    let mut more = [0; 256];
    let mut byte = 0;
    while byte < 0x20 {
        more[byte] = 5;
        byte += 1;
    }
    more[b'"' as usize] = 1;
    more[b'\\' as usize] = 1;
    more[b'\n' as usize] = 1;
    more[b'\r' as usize] = 1;
    more[b'\t' as usize] = 1;
    more[8] = 1;
    more[12] = 1;
    more
};

/// Refuses what is beyond a ceiling.
///
/// # Errors
/// An error of the type [`Error::TOO_LARGE`] that names what it is, its size and the ceiling.
pub fn within(what: impl std::fmt::Display, bytes: usize, bytes_max: usize) -> Result<(), Error> {
    if bytes <= bytes_max {
        return Ok(());
    }
    let told = format!("{what} takes {bytes} bytes; the limit is {bytes_max}. Make it smaller, or split it");
    Err(Error::new(Error::TOO_LARGE, told))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_takes_what_it_takes_in_a_message() {
        let all: String = (0..0x300).filter_map(char::from_u32).collect();
        for text in ["", "plain", "\"quoted\" \\ and\n\ttabbed\r\u{8}\u{c}", "\u{0}\u{1f}\u{7f}", "é→𝄞", &all]
        {
            let written = crate::wire::encode(text);
            assert_eq!(json_bytes(text) + 2, written.len(), "{text:?}");
        }
    }

    #[test]
    fn a_text_that_is_cut_is_no_longer_than_it_may_be_and_says_so() {
        assert_eq!(cut("short".to_owned(), 5), "short");
        for bytes_max in 20..30 {
            let text = cut("é→𝄞".repeat(10), bytes_max);
            assert!(text.len() <= bytes_max && text.len() + 4 > bytes_max, "{bytes_max}: {text}");
            assert!(text.ends_with("(cut)"), "{text}");
        }
    }

    #[test]
    fn what_is_beyond_a_ceiling_is_refused_with_both_sizes() {
        assert_eq!(within("a description", 5, 5), Ok(()));
        let error = within("a description", 6, 5).unwrap_err();
        assert_eq!(error.r#type, "too-large");
        assert!(
            error.message.starts_with("a description takes 6 bytes; the limit is 5"),
            "{}",
            error.message
        );
    }
}
