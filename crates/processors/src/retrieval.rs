//! From the matches of two indexes to one list of candidates, and from texts to an answer made of quotations.

use std::collections::{HashMap, HashSet};

use sluice_schema::message::{ChunkMatch, PassageSource};

use crate::fusion::{Ranking, fuse};
use crate::lexical::Scorer;
use crate::text::is_heading;

const VECTOR_WEIGHT: f64 = 1.0;
const KEYWORD_WEIGHT: f64 = 1.0;
/// Passages quoted in an answer without a model.
pub(crate) const QUOTED_MAX: usize = 3;

/// The best `limit` chunks of both indexes, best first. `by_vector` has one list per concept; the first list that names a
/// chunk decides its rank. Without keyword matches the order is that of the vectors, with their scores.
#[must_use]
pub fn candidates(
    by_vector: Vec<Vec<ChunkMatch>>,
    by_keyword: Vec<ChunkMatch>,
    limit: usize,
) -> Vec<ChunkMatch> {
    let mut seen = HashSet::new();
    let mut near: Vec<ChunkMatch> =
        by_vector.into_iter().flatten().filter(|found| seen.insert(found.chunk_id.clone())).collect();
    if by_keyword.is_empty() {
        near.truncate(limit);
        return near;
    }
    let keys =
        |found: &[ChunkMatch]| -> Vec<String> { found.iter().map(|found| found.chunk_id.clone()).collect() };
    let (near_keys, keyword_keys) = (keys(&near), keys(&by_keyword));
    let mut known: HashMap<String, ChunkMatch> = HashMap::new();
    for found in near.into_iter().chain(by_keyword) {
        known.entry(found.chunk_id.clone()).or_insert(found);
    }
    let rankings = [
        Ranking { keys: near_keys.iter().map(String::as_str).collect(), weight: VECTOR_WEIGHT },
        Ranking { keys: keyword_keys.iter().map(String::as_str).collect(), weight: KEYWORD_WEIGHT },
    ];
    let fused = fuse(&rankings, limit);
    fused.into_iter().filter_map(|(key, score)| Some(ChunkMatch { score, ..known.remove(key)? })).collect()
}

/// An answer made of the sentences that fit best, for when no model writes one; `why` says so.
#[must_use]
pub fn quotations(question: &str, passages: &[PassageSource], why: &str) -> String {
    // A passage that shares nothing with the question is no answer to it.
    let quoted: Vec<(usize, &PassageSource)> =
        passages.iter().take(QUOTED_MAX).enumerate().filter(|(_, passage)| passage.score > 0.0).collect();
    let scorer = Scorer::new(question, passages.iter().map(|passage| passage.text.as_str()));
    let mut text = String::new();
    for (place, passage) in &quoted {
        let number = place + 1;
        let sentences = one_line(scorer.best_stretch(*place));
        let page = passage.page.map(|page| format!(", page {page}")).unwrap_or_default();
        text.push_str(&format!("[{number}] {sentences}\n    ({}{page})\n\n", passage.title));
    }
    if quoted.is_empty() {
        text.push_str("Nothing that fits the question was found in this collection.\n\n");
    } else {
        text.insert_str(0, "These passages fit the question best:\n\n");
    }
    text.push_str(&format!(
        "This answer is extractive: it quotes what was found, no model wrote it ({why})."
    ));
    text
}

/// Sentences as one line, headings and line breaks left out.
fn one_line(sentences: Vec<&str>) -> String {
    let told = sentences.into_iter().filter(|sentence| !is_heading(sentence));
    told.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(ids: &[&str]) -> Vec<ChunkMatch> {
        ids.iter()
            .map(|id| ChunkMatch { chunk_id: (*id).to_owned(), score: 0.5, ..Default::default() })
            .collect()
    }

    fn ids(found: &[ChunkMatch]) -> Vec<&str> {
        found.iter().map(|found| found.chunk_id.as_str()).collect()
    }

    #[test]
    fn the_first_concept_that_finds_a_chunk_decides_its_rank() {
        let merged = candidates(vec![found(&["a", "b"]), found(&["b", "c"])], vec![], 9);
        assert_eq!(ids(&merged), ["a", "b", "c"]);
        assert_eq!(merged[0].score, 0.5);
    }

    #[test]
    fn both_indexes_count() {
        let merged = candidates(vec![found(&["a", "b", "c"])], found(&["d", "c"]), 3);
        assert_eq!(ids(&merged), ["c", "a", "d"]);
        assert_eq!(ids(&candidates(vec![], found(&["x"]), 3)), ["x"]);
    }

    #[test]
    fn quotations_name_their_source_and_say_that_no_model_wrote_them() {
        let passage = PassageSource {
            title: "Coffee".to_owned(),
            page: Some(2),
            score: 0.5,
            text: "Beans age. Rest them for five days after roasting. Clean the mill.".to_owned(),
            ..Default::default()
        };
        let stranger = PassageSource { score: 0.0, ..passage.clone() };
        assert!(quotations("x", &[stranger], "no model").starts_with("Nothing"));
        let text = quotations("How long should beans rest after roasting?", &[passage], "no model");
        assert!(
            text.contains("[1]") && text.contains("five days") && text.contains("(Coffee, page 2)"),
            "{text}"
        );
        assert!(text.contains("(no model)"));
        assert!(quotations("x", &[], "no model").starts_with("Nothing"));
    }
}
