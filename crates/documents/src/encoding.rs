//! Bytes become characters: marks at the start, what was declared, UTF-8, and a guess for what older programs wrote.

use std::borrow::Cow;

use encoding_rs::{CoderResult, Encoding, UTF_8, UTF_16BE, UTF_16LE};

/// Bytes looked at to tell text from other content.
const SAMPLE_BYTES_MAX: usize = 8 * 1024;
/// Of so many characters in a text at most one may be a control character.
const CHARS_PER_CONTROL_MIN: usize = 50;
/// Bytes at the start of a web page in which its encoding is named.
const META_BYTES_MAX: usize = 1024;
/// Bytes of text that [`pieces`] hands over at once.
const PIECE_BYTES: usize = 64 * 1024;

/// Whether a content can be text.
pub(crate) fn is_text(content: &[u8]) -> bool {
    if Encoding::for_bom(content).is_some() || wide(content).is_some() {
        return true;
    }
    let sample = &content[..content.len().min(SAMPLE_BYTES_MAX)];
    let controls =
        sample.iter().filter(|byte| byte.is_ascii_control() && !byte.is_ascii_whitespace() && **byte != 0x1b);
    !sample.contains(&0) && controls.count() * CHARS_PER_CONTROL_MIN <= sample.len()
}

/// The text of a content, borrowed where it is UTF-8. Never fails: what no encoding explains becomes replacement characters.
pub(crate) fn decode<'a>(declared: &str, content: &'a [u8]) -> Cow<'a, str> {
    let (encoding, start) = explain(declared, content);
    encoding.decode_without_bom_handling(&content[start..]).0
}

/// The same text in pieces, so that no more than one of them is in memory beside the content. Pieces are not empty.
pub(crate) fn pieces<E>(
    declared: &str,
    content: &[u8],
    mut take: impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    let (encoding, start) = explain(declared, content);
    let mut decoder = encoding.new_decoder_without_bom_handling();
    let mut rest = &content[start..];
    let mut piece = String::with_capacity(PIECE_BYTES);
    loop {
        piece.clear();
        let (result, read, _) = decoder.decode_to_string(rest, &mut piece, true);
        rest = &rest[read..];
        if !piece.is_empty() {
            take(&piece)?;
        }
        if result == CoderResult::InputEmpty {
            return Ok(());
        }
    }
}

/// The encoding of a content, and where its text begins.
fn explain(declared: &str, content: &[u8]) -> (&'static Encoding, usize) {
    if let Some(marked) = Encoding::for_bom(content) {
        return marked;
    }
    if let Some(encoding) = wide(content) {
        return (encoding, 0);
    }
    if std::str::from_utf8(content).is_ok() {
        return (UTF_8, 0);
    }
    if let Some(encoding) = named(declared).or_else(|| in_page(content)).filter(|named| *named != UTF_8) {
        return (encoding, 0);
    }
    (if is_nearly_utf_8(content) { UTF_8 } else { guess(content) }, 0)
}

/// UTF-16 without a mark: in most scripts every other byte is often zero, and always on the same side.
fn wide(content: &[u8]) -> Option<&'static Encoding> {
    let sample = &content[..content.len().min(SAMPLE_BYTES_MAX)];
    let pairs = sample.chunks_exact(2);
    let (count, mut high_first, mut low_first) = (pairs.len(), 0, 0);
    for pair in pairs {
        high_first += usize::from(pair[0] == 0 && pair[1] != 0);
        low_first += usize::from(pair[1] == 0 && pair[0] != 0);
    }
    match (high_first, low_first) {
        (0, low) if low > 1 && low * 2 > count => Some(UTF_16LE),
        (high, 0) if high > 1 && high * 2 > count => Some(UTF_16BE),
        _ => None,
    }
}

/// The encoding that a MIME type names.
fn named(declared: &str) -> Option<&'static Encoding> {
    let (_, label) =
        declared.to_ascii_lowercase().split_once("charset=").map(|(a, b)| (a.to_owned(), b.to_owned()))?;
    let end = label.find(|c: char| c == ';' || c.is_whitespace()).unwrap_or(label.len());
    Encoding::for_label(label[..end].trim_matches(['"', '\'']).as_bytes())
}

/// The encoding that a web page names in its head.
fn in_page(content: &[u8]) -> Option<&'static Encoding> {
    let head = String::from_utf8_lossy(&content[..content.len().min(META_BYTES_MAX)]).to_ascii_lowercase();
    let (_, after) = head.split_once("charset=")?;
    let label = after.trim_start_matches(['"', '\'']);
    let end = label.find(|c: char| !c.is_ascii_alphanumeric() && !"-_:".contains(c)).unwrap_or(label.len());
    head.trim_start().starts_with('<').then(|| Encoding::for_label(&label.as_bytes()[..end])).flatten()
}

/// UTF-8 with a few bytes broken: it has more characters of several bytes than faults.
fn is_nearly_utf_8(content: &[u8]) -> bool {
    let (mut faults, mut wide) = (0, 0);
    for chunk in content.utf8_chunks() {
        faults += usize::from(!chunk.invalid().is_empty());
        wide += chunk.valid().chars().filter(|c| !c.is_ascii()).count();
    }
    wide > faults
}

fn guess(content: &[u8]) -> &'static Encoding {
    let mut detector = chardetng::EncodingDetector::new(chardetng::Iso2022JpDetection::Allow);
    detector.feed(content, true);
    detector.guess(None, chardetng::Utf8Detection::Deny)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_names_are_obeyed() {
        assert_eq!(decode("", b"\xef\xbb\xbfK\xc3\xa4se"), "Käse");
        assert_eq!(decode("", b"\xff\xfeK\0\xe4\0"), "Kä");
        assert_eq!(decode("", b"\xfe\xff\0K\0\xe4"), "Kä");
        assert_eq!(decode("text/plain; charset=\"ISO-8859-2\"", b"\xb3\xf3d\xbc"), "łódź");
        assert_eq!(
            decode("text/html", b"<meta charset='koi8-r'><p>\xf0\xd2\xc9"),
            "<meta charset='koi8-r'><p>При"
        );
        // What is UTF-8 is UTF-8, whatever it was said to be.
        assert_eq!(decode("text/plain; charset=latin1", "Käse".as_bytes()), "Käse");
    }

    #[test]
    fn unmarked_text_is_read_as_what_explains_it() {
        let wide: Vec<u8> = "Über die Brücke".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(is_text(&wide));
        assert_eq!(decode("", &wide), "Über die Brücke");
        let latin = b"Ein Caf\xe9 in Z\xfcrich hat ge\xf6ffnet, und die K\xe4sefondues sind gut.";
        assert!(is_text(latin));
        assert_eq!(decode("", latin), "Ein Café in Zürich hat geöffnet, und die Käsefondues sind gut.");
    }

    #[test]
    fn a_broken_byte_does_not_make_utf_8_something_else() {
        assert_eq!(decode("", b"K\xc3\xa4se und Br\xc3\xb6tchen \xff!"), "Käse und Brötchen \u{fffd}!");
    }

    #[test]
    fn pieces_together_are_the_whole() {
        let long = "Käse, \u{1f9c0} und Brot\n".repeat(20_000);
        let wide: Vec<u8> = long.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let marked = [&b"\xff\xfe"[..], &wide].concat();
        let latin = b"Ein Caf\xe9 in Z\xfcrich hat ge\xf6ffnet.\n".repeat(9_000);
        for content in [long.as_bytes(), &marked, &latin, b"", b"cut \xc3"] {
            let mut text = String::new();
            let taken = pieces("", content, |piece| {
                assert!(!piece.is_empty() && piece.len() <= PIECE_BYTES);
                text.push_str(piece);
                Ok::<(), ()>(())
            });
            assert_eq!((taken, text), (Ok(()), decode("", content).into_owned()));
        }
    }

    #[test]
    fn binary_data_is_no_text() {
        assert!(!is_text(b"a\0b"));
        assert!(!is_text(&[1, 2, 3, 4, 5, 6, 7, 8]));
        assert!(is_text(b""));
        assert!(is_text(b"\x1b[1mbold\x1b[0m\r\n\ttext"));
    }
}
