//! Scores texts against a question by the words they share: how many of the question's words a text holds, how rare those
//! are among the candidates, and how close together they stand in the text's best sentences.

use std::collections::{HashMap, HashSet};

use crate::hashing::{cosine, embed};
use crate::text::{sentences, telling_words};

const COVERAGE_WEIGHT: f64 = 0.4;
const SENTENCE_WEIGHT: f64 = 0.35;
const LIKENESS_WEIGHT: f64 = 0.25;
/// Sentences of one text that are looked at; what follows still counts for coverage.
const SENTENCES_MAX: usize = 400;

/// A question prepared for scoring.
pub struct Scorer {
    weights: HashMap<String, f64>,
    total: f64,
    vector: Vec<f64>,
}

impl Scorer {
    /// Prepares a question; words that few of the candidates hold weigh more.
    #[must_use]
    pub fn new<'a>(question: &str, candidates: impl IntoIterator<Item = &'a str>) -> Self {
        let mut held: HashMap<String, f64> =
            telling_words(question).into_iter().map(|word| (word, 0.0)).collect();
        let mut candidates_count = 0.0;
        for text in candidates {
            candidates_count += 1.0;
            let words: HashSet<String> = telling_words(text).into_iter().collect();
            for (word, count) in &mut held {
                if words.contains(word) {
                    *count += 1.0;
                }
            }
        }
        let weights: HashMap<String, f64> = held
            .into_iter()
            .map(|(word, count)| (word, (1.0 + (candidates_count + 1.0) / (count + 0.5)).ln()))
            .collect();
        Self { total: weights.values().sum(), weights, vector: embed(question) }
    }

    /// How well a text fits the question: 0 (shares nothing) to 1.
    #[must_use]
    pub fn score(&self, text: &str) -> f64 {
        if self.total == 0.0 {
            return 0.0;
        }
        let likeness = cosine(&self.vector, &embed(text)).max(0.0);
        let (sentence, nearest) = self.best_sentence(text);
        (COVERAGE_WEIGHT * self.coverage(text)
            + SENTENCE_WEIGHT * sentence
            + LIKENESS_WEIGHT * likeness.max(nearest))
        .clamp(0.0, 1.0)
    }

    /// The share of the question's weight that the text holds, repeated words counting a little more.
    fn coverage(&self, text: &str) -> f64 {
        let mut times: HashMap<&str, f64> = HashMap::new();
        let words = telling_words(text);
        for word in &words {
            *times.entry(word).or_default() += 1.0;
        }
        let held = |(word, weight): (&String, &f64)| {
            let times = times.get(word.as_str()).copied().unwrap_or_default();
            weight * (times / (times + 0.3))
        };
        self.weights.iter().map(held).sum::<f64>() / self.total
    }

    /// The highest share that one sentence with its neighbour holds, and the highest likeness of a sentence.
    fn best_sentence(&self, text: &str) -> (f64, f64) {
        let mut previous: HashSet<String> = HashSet::new();
        let (mut best, mut nearest) = (0.0_f64, 0.0_f64);
        for sentence in sentences(text).take(SENTENCES_MAX) {
            let words: HashSet<String> = telling_words(sentence).into_iter().collect();
            let share = |words: &HashSet<String>| -> f64 {
                self.weights.iter().filter(|(word, _)| words.contains(*word)).map(|(_, weight)| weight).sum()
            };
            let alone = share(&words);
            let together = share(&previous.union(&words).cloned().collect());
            best = best.max((0.5 * alone + 0.5 * together) / self.total);
            nearest = nearest.max(cosine(&self.vector, &embed(sentence)));
            previous = words;
        }
        (best, nearest)
    }

    /// The sentences of a text that fit best, at most `count`, in the order of the text.
    #[must_use]
    pub fn best_sentences<'a>(&self, text: &'a str, count: usize) -> Vec<&'a str> {
        let mut scored: Vec<(usize, &str, f64)> = sentences(text)
            .take(SENTENCES_MAX)
            .enumerate()
            .map(|(place, sentence)| {
                let words: HashSet<String> = telling_words(sentence).into_iter().collect();
                let held =
                    self.weights.iter().filter(|(word, _)| words.contains(*word)).map(|(_, weight)| weight);
                (
                    place,
                    sentence,
                    held.sum::<f64>() + self.total * 0.5 * cosine(&self.vector, &embed(sentence)),
                )
            })
            .collect();
        scored.sort_by(|a, b| b.2.total_cmp(&a.2));
        scored.truncate(count);
        scored.sort_by_key(|(place, _, _)| *place);
        scored.into_iter().map(|(_, sentence, _)| sentence).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 3] = [
        "Oil the chain after every wet ride. Wipe off what is too much.",
        "Bread needs salt. The oven should be hot before the loaf goes in.",
        "A chain of lighthouses guards the coast; every keeper had oil for the lamp.",
    ];

    #[test]
    fn the_text_that_answers_scores_highest_and_all_scores_lie_between_0_and_1() {
        let scorer = Scorer::new("When should I oil the chain?", TEXTS);
        let scores: Vec<f64> = TEXTS.iter().map(|text| scorer.score(text)).collect();
        assert!(scores[0] > scores[2] && scores[2] > scores[1], "{scores:?}");
        assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)));
    }

    #[test]
    fn nothing_to_compare_scores_nothing() {
        assert_eq!(Scorer::new("", TEXTS).score(TEXTS[0]), 0.0);
        assert_eq!(Scorer::new("oven", []).score(""), 0.0);
    }

    #[test]
    fn the_best_sentence_is_quoted() {
        let scorer = Scorer::new("how hot must the oven be", TEXTS);
        assert_eq!(scorer.best_sentences(TEXTS[1], 1), ["The oven should be hot before the loaf goes in."]);
        assert!(scorer.best_sentences("", 2).is_empty());
    }
}
