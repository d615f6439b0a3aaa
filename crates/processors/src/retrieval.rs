//! From the matches of two indexes to one list of candidates, and from texts to an answer made of quotations.

use std::collections::{HashMap, HashSet};

use sluice_schema::message::{ChunkMatch, PassageSource};

use crate::fusion::{Ranking, fuse};
use crate::lexical::Scorer;
use crate::text::is_heading;

/// Passages quoted in an answer without a model.
const QUOTED_MAX: usize = 3;

/// How much a rank in each index counts beside the other.
#[derive(Debug, Clone, Copy)]
pub struct Weights {
    /// For the vector index.
    pub vector: f64,
    /// For the keyword index.
    pub keyword: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { vector: 1.0, keyword: 1.0 }
    }
}

/// The best `limit` chunks of both indexes, best first. `by_vector` has one list per concept; the first list that names a
/// chunk decides its rank. Without keyword matches the order is that of the vectors, with their scores.
#[must_use]
pub fn candidates(
    by_vector: Vec<Vec<ChunkMatch>>,
    by_keyword: Vec<ChunkMatch>,
    weights: Weights,
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
        Ranking { keys: near_keys.iter().map(String::as_str).collect(), weight: weights.vector },
        Ranking { keys: keyword_keys.iter().map(String::as_str).collect(), weight: weights.keyword },
    ];
    let fused = fuse(&rankings, limit);
    fused.into_iter().filter_map(|(key, score)| Some(ChunkMatch { score, ..known.remove(key)? })).collect()
}

/// At most `limit` passages by maximal marginal relevance: the next one is always that which fits best and resembles
/// those before it least. `lambda` says which counts: 1 only the fit, 0 only the difference.
#[must_use]
pub fn diverse(passages: Vec<PassageSource>, lambda: f64, limit: usize) -> Vec<PassageSource> {
    struct Left {
        passage: PassageSource,
        words: HashSet<String>,
        fit: f64,
        likeness: f64,
    }
    let scores = || passages.iter().map(|passage| passage.score);
    let (low, high) = (scores().fold(f64::INFINITY, f64::min), scores().fold(f64::NEG_INFINITY, f64::max));
    let fit = |score: f64| if high > low { (score - low) / (high - low) } else { 0.5 };
    let mut left: Vec<Left> = passages
        .into_iter()
        .map(|passage| Left { words: words(&passage.text), fit: fit(passage.score), likeness: 0.0, passage })
        .collect();
    let mut chosen = Vec::new();
    while chosen.len() < limit && !left.is_empty() {
        let worth = |one: &Left| lambda * one.fit - (1.0 - lambda) * one.likeness;
        // Of equals the first.
        let best =
            (1..left.len()).fold(0, |best, at| if worth(&left[at]) > worth(&left[best]) { at } else { best });
        let Left { passage, words, .. } = left.remove(best);
        for one in &mut left {
            one.likeness = one.likeness.max(jaccard(&words, &one.words));
        }
        chosen.push(passage);
    }
    chosen
}

fn words(text: &str) -> HashSet<String> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

fn jaccard(a: &HashSet<String>, b: &HashSet<String>) -> f64 {
    let common = a.intersection(b).count();
    let all = a.len() + b.len() - common;
    if all == 0 { 0.0 } else { common as f64 / all as f64 }
}

/// An answer made of the sentences that fit best, for when no model writes one, and the places of the passages that it
/// quotes; `why` says so.
#[must_use]
pub fn quotations(question: &str, passages: &[PassageSource], why: &str) -> (String, Vec<usize>) {
    // A passage that shares nothing with the question is no answer to it.
    let fits = |(_, passage): &(usize, &PassageSource)| passage.score > 0.0;
    let quoted: Vec<(usize, &PassageSource)> =
        passages.iter().enumerate().filter(fits).take(QUOTED_MAX).collect();
    let scorer = Scorer::new(question, passages.iter().map(|passage| passage.text.as_str()));
    let mut text = String::new();
    for (number, (place, passage)) in (1..).zip(&quoted) {
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
    (text, quoted.into_iter().map(|(place, _)| place).collect())
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
        let merged = candidates(vec![found(&["a", "b"]), found(&["b", "c"])], vec![], Weights::default(), 9);
        assert_eq!(ids(&merged), ["a", "b", "c"]);
        assert_eq!(merged[0].score, 0.5);
    }

    #[test]
    fn both_indexes_count() {
        let merge = |weights| candidates(vec![found(&["a", "b", "c"])], found(&["d", "c"]), weights, 3);
        assert_eq!(ids(&merge(Weights::default())), ["c", "a", "d"]);
        assert_eq!(ids(&merge(Weights { vector: 0.0, keyword: 1.0 })), ["d", "c", "a"]);
        assert_eq!(ids(&candidates(vec![], found(&["x"]), Weights::default(), 3)), ["x"]);
    }

    #[test]
    fn a_passage_like_one_before_it_waits_for_others() {
        let passage =
            |text: &str, score| PassageSource { text: text.to_owned(), score, ..Default::default() };
        let all = || {
            vec![
                passage("Clean the filter weekly.", 0.9),
                passage("clean the FILTER, weekly!", 0.8),
                passage("Beans rest five days.", 0.7),
            ]
        };
        let texts = |lambda, limit| -> Vec<f64> {
            diverse(all(), lambda, limit).iter().map(|passage| passage.score).collect()
        };
        assert_eq!(texts(0.5, 9), [0.9, 0.7, 0.8]);
        assert_eq!(texts(1.0, 9), [0.9, 0.8, 0.7]);
        assert_eq!(texts(0.5, 1), [0.9]);
        assert!(diverse(vec![], 0.5, 3).is_empty());
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
        let (text, quoted) = quotations("x", std::slice::from_ref(&stranger), "no model");
        assert!(text.starts_with("Nothing") && quoted.is_empty());
        let question = "How long should beans rest after roasting?";
        let (text, quoted) = quotations(question, &[stranger, passage], "no model");
        assert_eq!(quoted, [1]);
        assert!(
            text.contains("[1]") && text.contains("five days") && text.contains("(Coffee, page 2)"),
            "{text}"
        );
        assert!(text.contains("(no model)"));
        assert!(quotations("x", &[], "no model").0.starts_with("Nothing"));
    }
}
