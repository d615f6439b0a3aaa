//! Where texts are cut: at the places where TrustGraph 2.11's chunkers cut them, as recorded by `borders/generate.py`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

use serde::Deserialize;
use sluice_processors::pieces::{Piece, pieces};
use sluice_processors::tokens::token_pieces;

const VECTORS: &str = include_str!("borders/vectors.json");

#[derive(Deserialize)]
struct Case {
    kind: String,
    size: usize,
    overlap: usize,
    /// A text of its own, with its chunks.
    #[serde(default)]
    text: String,
    #[serde(default)]
    chunks: Vec<String>,
    /// Or a sample, with where each chunk starts and how long it is, in characters.
    sample: Option<String>,
    #[serde(default)]
    spans: Vec<(usize, usize)>,
}

fn check(kind: &str, cut: impl Fn(&str, usize, usize) -> Vec<(usize, usize, String)>) {
    let cases: Vec<Case> = serde_json::from_str(VECTORS).unwrap();
    // A border inside a character damages it there and is moved here.
    let is_whole = |case: &Case| case.chunks.iter().all(|chunk| !chunk.contains('\u{fffd}'));
    let cases: Vec<Case> = cases.into_iter().filter(|case| case.kind == kind && is_whole(case)).collect();
    assert!(cases.len() > 40, "{} cases", cases.len());
    for case in cases {
        let what = format!("{kind} {}/{} of {:?}{:?}", case.size, case.overlap, case.text, case.sample);
        match &case.sample {
            Some(name) => {
                let path = format!("{}/../../samples/{name}", env!("CARGO_MANIFEST_DIR"));
                let found = cut(&std::fs::read_to_string(path).unwrap(), case.size, case.overlap);
                let spans: Vec<_> = found.iter().map(|(offset, length, _)| (*offset, *length)).collect();
                assert_eq!(spans, case.spans, "{what}");
            }
            None => {
                let found = cut(&case.text, case.size, case.overlap);
                let texts: Vec<_> = found.into_iter().map(|(.., text)| text).collect();
                assert_eq!(texts, case.chunks, "{what}");
            }
        }
    }
}

fn told(pieces: Vec<Piece<'_>>) -> Vec<(usize, usize, String)> {
    pieces.into_iter().map(|piece| (piece.offset, piece.length, piece.text.to_owned())).collect()
}

#[test]
fn characters_are_cut_where_the_recursive_chunker_cuts_them() {
    check("characters", |text, size, overlap| told(pieces(text, size, overlap)));
}

#[test]
fn tokens_are_cut_where_the_token_chunker_cuts_them() {
    check("tokens", |text, size, overlap| told(token_pieces(text, size, overlap)));
}
