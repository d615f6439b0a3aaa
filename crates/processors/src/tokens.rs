//! Cuts a text into windows of as many tokens as models of the `cl100k_base` encoding count, at the places where 2.11's token
//! chunker cuts.
//!
//! A border that would fall inside a character is moved to the character's start, so that no text is damaged. Runs without
//! any white space, or of white space only, are tokenised in stretches: where a run is very long its tokens may differ
//! from those of the whole, and the work stays proportional to the text.

use tiktoken_rs::{CoreBPE, cl100k_base_singleton};

use crate::pieces::Piece;

/// The longest run that is tokenised as one, in bytes.
const RUN_BYTES_MAX: usize = 4_096;

/// Cuts `text` into windows of `size` tokens, each repeating the last `overlap` tokens of the one before. A `size` of 0 counts
/// as 1, and an `overlap` that leaves no step forward as one less than the size.
#[must_use]
pub fn token_pieces(text: &str, size: usize, overlap: usize) -> Vec<Piece<'_>> {
    let size = size.max(1);
    let step = size - overlap.min(size - 1);
    let borders = borders(text);
    let tokens = borders.len() - 1;
    let mut pieces = Vec::new();
    // Characters are counted from one window's start to the next one's.
    let (mut counted, mut offset) = (0, 0);
    for first in (0..tokens).step_by(step) {
        let last = (first + size).min(tokens);
        let (start, end) =
            (text.floor_char_boundary(borders[first]), text.floor_char_boundary(borders[last]));
        offset += text[counted..start].chars().count();
        counted = start;
        let window = &text[start..end];
        if !window.is_empty() {
            pieces.push(Piece { text: window, start, offset, length: window.chars().count() });
        }
        if last == tokens {
            break;
        }
    }
    pieces
}

/// Where tokens begin, in bytes, and the end of the text.
fn borders(text: &str) -> Vec<usize> {
    let encoding = cl100k_base_singleton();
    let (mut borders, mut end) = (vec![0], 0);
    for stretch in stretches(text) {
        for token in encoding.encode_ordinary(stretch) {
            end += bytes_of(encoding, token);
            borders.push(end);
        }
    }
    borders
}

fn bytes_of(encoding: &CoreBPE, token: u32) -> usize {
    // A token that was just made has bytes.
    encoding.decode_bytes(&[token]).map_or(0, |bytes| bytes.len())
}

/// The text in stretches that end where a run has become too long; nearly always the text as it is.
fn stretches(text: &str) -> Vec<&str> {
    let mut stretches = Vec::new();
    let (mut start, mut run, mut is_blank) = (0, 0, false);
    for (at, character) in text.char_indices() {
        if character.is_whitespace() != is_blank {
            (run, is_blank) = (at, !is_blank);
        } else if at - run >= RUN_BYTES_MAX {
            stretches.push(&text[start..at]);
            (start, run) = (at, at);
        }
    }
    stretches.push(&text[start..]);
    stretches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_border_inside_a_character_is_moved_to_its_start() {
        // Each of these takes several tokens.
        let text = "𓀀𓀁𓀂";
        let found = token_pieces(text, 2, 0);
        assert!(found.len() > 1);
        assert_eq!(found.iter().map(|piece| piece.text).collect::<String>(), text);
    }

    #[test]
    fn an_overlap_as_large_as_the_size_still_moves_on() {
        assert_eq!(token_pieces("one two three", 2, 9).len(), 2);
        assert_eq!(token_pieces("one two three", 0, 0).len(), 3);
        assert!(token_pieces("", 5, 0).is_empty());
    }

    #[test]
    fn a_run_without_an_end_is_cut_in_linear_time() {
        for run in ["x", "ä", " ", "\n"] {
            let text = run.repeat(300_000);
            let found = token_pieces(&text, 1_000, 0);
            assert_eq!(found.iter().map(|piece| piece.text.len()).sum::<usize>(), text.len());
        }
    }

    proptest! {
        #[test]
        fn windows_are_slices_that_cover_the_text(
            text in "(\\PC|[a-z]{1,9}|[ \n]){0,80}", size in 1_usize..20, overlap in 0_usize..20,
        ) {
            let characters: Vec<char> = text.chars().collect();
            let mut end = 0;
            for piece in token_pieces(&text, size, overlap) {
                prop_assert!(piece.offset <= end, "nothing is left out");
                let slice: String = characters[piece.offset..piece.offset + piece.length].iter().collect();
                prop_assert_eq!(slice.as_str(), piece.text);
                prop_assert!(text[piece.start..].starts_with(piece.text));
                end = piece.offset + piece.length;
            }
            prop_assert_eq!(end, characters.len());
        }
    }
}
