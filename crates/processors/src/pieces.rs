//! Cuts a text into pieces of bounded length at its natural borders: paragraphs, lines, words, characters.
//!
//! Lengths and offsets count Unicode code points. Neighbouring parts are joined as long as they fit, and whole parts at the
//! end of a piece are repeated at the start of the next one as long as they fit into the overlap. What is joined always
//! stood side by side, so a piece is a slice of the text and its offset is exact. The borders are those of 2.11's recursive
//! chunker; so a piece that repeats something may be longer than the size, by as much as it repeats.

use std::collections::VecDeque;

/// Borders, coarsest first; the empty one parts between any two characters.
const SEPARATORS: [&str; 4] = ["\n\n", "\n", " ", ""];

/// A slice of the text, with where it starts and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The slice itself.
    pub text: &'a str,
    /// Bytes of the text before the piece.
    pub start: usize,
    /// Characters of the text before the piece.
    pub offset: usize,
    /// Characters in the piece.
    pub length: usize,
}

/// Cuts `text` into pieces of at most `size` characters, beside what the next one repeats: at most `overlap` and a border.
/// Pieces of white space only are left out. A `size` of 0 counts as 1.
#[must_use]
pub fn pieces(text: &str, size: usize, overlap: usize) -> Vec<Piece<'_>> {
    let mut cut = Cut { text, size: size.max(1), overlap, pieces: Vec::new() };
    cut.split(Span { start: 0, end: text.len(), offset: 0, length: text.chars().count() }, &SEPARATORS);
    cut.pieces
}

/// A stretch of the text in bytes (`start`, `end`) and characters (`offset`, `length`).
#[derive(Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
    offset: usize,
    length: usize,
}

struct Cut<'a> {
    text: &'a str,
    size: usize,
    overlap: usize,
    pieces: Vec<Piece<'a>>,
}

impl Cut<'_> {
    fn split(&mut self, span: Span, separators: &[&str]) {
        let text = &self.text[span.start..span.end];
        let found =
            separators.iter().position(|separator| text.contains(separator)).unwrap_or(separators.len());
        let Some((separator, finer)) = separators[found..].split_first() else { return self.emit(span) };
        let mut joined = Joined::new(separator.chars().count());
        let mut next = Some((span.start, span.offset));
        while let Some((start, offset)) = next {
            let (part, after) = self.part(start, offset, span.end, separator);
            if part.length < self.size {
                self.join(&mut joined, part);
            } else {
                self.flush(&mut joined);
                if finer.is_empty() { self.emit(part) } else { self.split(part, finer) }
            }
            next = after;
        }
        self.flush(&mut joined);
    }

    /// The part that begins at `start`, and where the one after it begins.
    fn part(
        &self,
        start: usize,
        offset: usize,
        end: usize,
        separator: &str,
    ) -> (Span, Option<(usize, usize)>) {
        let rest = &self.text[start..end];
        let (length_bytes, gap_bytes) = if separator.is_empty() {
            (rest.chars().next().map_or(0, char::len_utf8), 0)
        } else {
            match rest.find(separator) {
                Some(at) => (at, separator.len()),
                None => (rest.len(), 0),
            }
        };
        let length = rest[..length_bytes].chars().count();
        let part = Span { start, end: start + length_bytes, offset, length };
        let next = part.end + gap_bytes;
        let more = gap_bytes > 0 || next < end;
        (part, more.then(|| (next, offset + length + separator.chars().count())))
    }

    fn join(&mut self, joined: &mut Joined, part: Span) {
        if !joined.fits(part.length, self.size) {
            if let Some(span) = joined.span() {
                self.emit(span);
            }
            joined.keep_end(self.overlap);
        }
        joined.push(part);
    }

    fn flush(&mut self, joined: &mut Joined) {
        if let Some(span) = joined.span() {
            self.emit(span);
        }
        joined.parts.clear();
        joined.total = 0;
    }

    fn emit(&mut self, span: Span) {
        let text = &self.text[span.start..span.end];
        if !text.trim().is_empty() {
            self.pieces.push(Piece { text, start: span.start, offset: span.offset, length: span.length });
        }
    }
}

/// Parts that stand side by side in the text, to be emitted as one piece.
struct Joined {
    parts: VecDeque<Span>,
    total: usize,
    separator_length: usize,
}

impl Joined {
    fn new(separator_length: usize) -> Self {
        Self { parts: VecDeque::new(), total: 0, separator_length }
    }

    fn fits(&self, length: usize, size: usize) -> bool {
        self.parts.is_empty() || self.total + self.separator_length + length <= size
    }

    fn push(&mut self, part: Span) {
        let gap = if self.parts.is_empty() { 0 } else { self.separator_length };
        self.total += gap + part.length;
        self.parts.push_back(part);
    }

    /// Drops parts from the start until the rest fits the overlap; the last one alone is kept or goes.
    fn keep_end(&mut self, overlap: usize) {
        while self.total > overlap {
            let Some(first) = self.parts.pop_front() else { return };
            let gap = if self.parts.is_empty() { 0 } else { self.separator_length };
            self.total -= first.length + gap;
        }
    }

    fn span(&self) -> Option<Span> {
        let (first, last) = (self.parts.front()?, self.parts.back()?);
        Some(Span { start: first.start, end: last.end, offset: first.offset, length: self.total })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, size: usize, overlap: usize, expected: &[&str]) {
        let found: Vec<&str> = pieces(text, size, overlap).iter().map(|piece| piece.text).collect();
        assert_eq!(found, expected, "{text:?} at {size}/{overlap}");
    }

    #[test]
    fn a_text_is_cut_at_its_coarsest_border_that_fits() {
        check("", 10, 0, &[]);
        check(" \n\n ", 10, 0, &[]);
        check("one two", 10, 0, &["one two"]);
        check("one two\n\nthree four", 10, 0, &["one two", "three four"]);
        check("a\n\nb\n\nc", 4, 0, &["a\n\nb", "c"]);
        check("one two three", 8, 0, &["one two", "three"]);
        check("abcdefgh", 3, 0, &["abc", "def", "gh"]);
        check("abcd", 1, 0, &["a", "b", "c", "d"]);
        check("äöüß", 2, 0, &["äö", "üß"]);
    }

    #[test]
    fn whole_parts_are_repeated_while_they_fit_the_overlap() {
        check("aa bb cc dd", 5, 2, &["aa bb", "bb cc", "cc dd"]);
        check("abcdef", 3, 1, &["abc", "cde", "ef"]);
        check("a long paragraph\n\nanother", 20, 5, &["a long paragraph", "another"]);
        // What is repeated comes on top of the size.
        check("one two three four five", 20, 19, &["one two three four", "one two three four five"]);
    }

    #[test]
    fn a_long_paragraph_is_cut_on_its_own() {
        check("ab\n\ncdefghij\n\nk", 4, 0, &["ab", "cdef", "ghij", "k"]);
    }

    #[test]
    fn a_large_text_without_borders_is_cut_in_linear_time() {
        assert_eq!(pieces(&"x".repeat(2_000_000), 2_000, 50).len(), 1_026);
    }

    proptest! {
        #[test]
        fn pieces_are_slices_within_the_limit_that_lose_nothing_but_white_space(
            text in "(\\PC|[ \n]|\n\n){0,300}", size in 0_usize..60, overlap in 0_usize..80,
        ) {
            let characters: Vec<char> = text.chars().collect();
            let mut covered = vec![false; characters.len()];
            let mut previous = (0, 0);
            for piece in pieces(&text, size, overlap) {
                prop_assert!(piece.length <= size.max(1) + overlap + 2);
                prop_assert_eq!(piece.text.chars().count(), piece.length);
                let slice: String = characters[piece.offset..piece.offset + piece.length].iter().collect();
                prop_assert_eq!(slice.as_str(), piece.text);
                prop_assert!(text[piece.start..].starts_with(piece.text));
                let (start, end): (usize, usize) = previous;
                prop_assert!(piece.offset >= start && piece.offset + piece.length > end, "each piece moves on");
                prop_assert!(end.saturating_sub(piece.offset) <= overlap, "and repeats no more than the overlap");
                previous = (piece.offset, piece.offset + piece.length);
                covered[piece.offset..previous.1].fill(true);
            }
            for (at, covered) in covered.iter().enumerate() {
                prop_assert!(*covered || characters[at].is_whitespace(), "lost {:?}", characters[at]);
            }
        }
    }
}
