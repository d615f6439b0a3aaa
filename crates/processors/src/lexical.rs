//! Scores texts against a question by the words they share: how much of what the question asks for a text holds, how rare
//! that is among the candidates, and how close together it stands. A word also counts, less, when a text has only a
//! relative of it: the same beginning, or a compound with it.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::text::{sentences, telling_words};
use crate::thesaurus::related;

/// What share the words of the whole text have in a score; the rest is that of its best stretch of sentences.
const WHOLE_WEIGHT: f64 = 0.5;
/// How much another word for a word counts beside the word itself.
const RELATED_WEIGHT: f64 = 0.7;
/// How much a word that looks alike counts.
const RELATIVE_WEIGHT: f64 = 0.6;
/// How fast more of the same word stops counting, and how much longer texts are held against them: as in BM25.
const SATURATION: f64 = 1.2;
const LENGTH_PENALTY: f64 = 0.75;
/// Neighbouring sentences that are read together.
const STRETCH_SENTENCES: usize = 3;
/// Words of a question that are looked for.
const QUESTION_WORDS_MAX: usize = 64;
/// Sentences of one text that are looked at.
const SENTENCES_MAX: usize = 400;

/// A question and the texts that may answer it, read once.
pub struct Scorer<'a> {
    terms: Vec<Term>,
    total: f64,
    readings: Vec<Reading<'a>>,
    average_words: f64,
}

/// A word of the question: which words count for it and how much, and how much it weighs.
struct Term {
    counts_as: HashMap<String, f64>,
    weight: f64,
}

/// A text as its sentences with their words.
struct Reading<'a> {
    sentences: Vec<(&'a str, Vec<String>)>,
    words: usize,
}

impl<'a> Reading<'a> {
    fn of(text: &'a str) -> Self {
        let sentences: Vec<(&str, Vec<String>)> =
            sentences(text).take(SENTENCES_MAX).map(|sentence| (sentence, telling_words(sentence))).collect();
        Self { words: sentences.iter().map(|(_, words)| words.len()).sum(), sentences }
    }

    fn times(&self, term: &Term) -> f64 {
        self.sentences.iter().map(|(_, words)| term.times(words)).sum()
    }
}

impl Term {
    fn times(&self, words: &[String]) -> f64 {
        words.iter().filter_map(|word| self.counts_as.get(word)).sum()
    }
}

impl<'a> Scorer<'a> {
    /// Reads the texts with the question in mind; words that few of them hold weigh more.
    #[must_use]
    pub fn new(question: &str, texts: impl IntoIterator<Item = &'a str>) -> Self {
        let readings: Vec<Reading<'_>> = texts.into_iter().map(Reading::of).collect();
        let vocabulary: HashSet<&str> = readings
            .iter()
            .flat_map(|reading| &reading.sentences)
            .flat_map(|(_, words)| words)
            .map(String::as_str)
            .collect();
        let asked: BTreeSet<String> = telling_words(question).into_iter().take(QUESTION_WORDS_MAX).collect();
        let count = readings.len() as f64;
        let terms: Vec<Term> = asked
            .iter()
            .map(|word| {
                let counts_as = vocabulary
                    .iter()
                    .filter_map(|other| Some(((*other).to_owned(), likeness(word, other)?)))
                    .collect();
                let mut term = Term { counts_as, weight: 0.0 };
                let holding = readings.iter().filter(|reading| reading.times(&term) > 0.0).count() as f64;
                term.weight = (1.0 + (count - holding + 0.5) / (holding + 0.5)).ln();
                term
            })
            .collect();
        let words: usize = readings.iter().map(|reading| reading.words).sum();
        let average_words = (words as f64 / count.max(1.0)).max(1.0);
        Self { total: terms.iter().map(|term| term.weight).sum(), terms, readings, average_words }
    }

    /// How well each text fits, in the order they were given: 0 (shares nothing) to 1.
    #[must_use]
    pub fn scores(&self) -> Vec<f64> {
        self.readings.iter().map(|reading| self.score(reading)).collect()
    }

    fn score(&self, reading: &Reading<'_>) -> f64 {
        if self.total <= 0.0 {
            return 0.0;
        }
        let length = 1.0 - LENGTH_PENALTY + LENGTH_PENALTY * reading.words as f64 / self.average_words;
        let whole: f64 = self
            .terms
            .iter()
            .map(|term| {
                let times = reading.times(term);
                term.weight * times / (times + SATURATION * length)
            })
            .sum();
        let stretches = reading.sentences.windows(STRETCH_SENTENCES.min(reading.sentences.len().max(1)));
        let best = stretches.map(|stretch| self.held(stretch)).fold(0.0, f64::max);
        (WHOLE_WEIGHT * whole + (1.0 - WHOLE_WEIGHT) * best) / self.total
    }

    /// The weight of the question's words that a stretch of sentences holds.
    fn held(&self, stretch: &[(&str, Vec<String>)]) -> f64 {
        let held = |term: &Term| stretch.iter().map(|(_, words)| term.times(words)).sum::<f64>().min(1.0);
        self.terms.iter().map(|term| term.weight * held(term)).sum()
    }

    /// The best stretch of sentences of the text at `place`; empty when there is none.
    #[must_use]
    pub fn best_stretch(&self, place: usize) -> Vec<&'a str> {
        let Some(reading) = self.readings.get(place).filter(|reading| !reading.sentences.is_empty()) else {
            return Vec::new();
        };
        let stretches = reading.sentences.windows(STRETCH_SENTENCES.min(reading.sentences.len()));
        // Of equally good ones the first is taken.
        let best = stretches.rev().max_by(|a, b| self.held(a).total_cmp(&self.held(b)));
        best.into_iter().flatten().map(|(sentence, _)| *sentence).collect()
    }
}

/// How much `other` counts for `word`: fully if it is the same, less if it is a relative, else not at all.
fn likeness(word: &str, other: &str) -> Option<f64> {
    if word == other {
        return Some(1.0);
    }
    if related(word).iter().any(|related| related == other) {
        return Some(RELATED_WEIGHT);
    }
    let (shorter, longer) = if word.len() < other.len() { (word, other) } else { (other, word) };
    let shared = shorter.chars().zip(longer.chars()).take_while(|(a, b)| a == b).count();
    let (short_length, long_length) = (shorter.chars().count(), longer.chars().count());
    let same_beginning = shared >= 5 && shared * 10 >= long_length * 6
        || shared == short_length && shared >= 4 && long_length <= shared + 3;
    let compound = short_length >= 5 && (longer.starts_with(shorter) || longer.ends_with(shorter));
    (same_beginning || compound).then_some(RELATIVE_WEIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 3] = [
        "Oil the chain after every wet ride. Wipe off what is too much.",
        "Bread needs salt. Knead it well. Let it rest. The oven should be hot before the loaf goes in. Then wait.",
        "A chain of lighthouses guards the coast; every keeper had oil for the lamp.",
    ];

    #[test]
    fn the_text_that_answers_scores_highest_and_all_scores_lie_between_0_and_1() {
        let scores = Scorer::new("After which ride should I oil the chain?", TEXTS).scores();
        assert!(scores[0] > scores[2] && scores[2] > scores[1], "{scores:?}");
        assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)));
    }

    #[test]
    fn nothing_to_compare_scores_nothing() {
        assert_eq!(Scorer::new("", TEXTS).scores(), [0.0; 3]);
        assert_eq!(Scorer::new("oven", [""]).scores(), [0.0]);
        assert!(Scorer::new("oven", []).scores().is_empty());
    }

    #[test]
    fn relatives_count_and_strangers_do_not() {
        assert_eq!(likeness("bleed", "bleed"), Some(1.0));
        assert_eq!(likeness("bleed", "nosebleed"), Some(RELATIVE_WEIGHT));
        assert_eq!(likeness("stabilis", "stabiliz"), Some(RELATIVE_WEIGHT));
        assert_eq!(likeness("wrench", "spanner"), Some(RELATED_WEIGHT));
        assert_eq!(likeness("port", "important"), None);
        assert_eq!(likeness("bread", "break"), None);
    }

    #[test]
    fn the_best_stretch_is_quoted() {
        let scorer = Scorer::new("how hot must the oven be", TEXTS);
        let quoted = scorer.best_stretch(1);
        assert!(quoted.contains(&"The oven should be hot before the loaf goes in."), "{quoted:?}");
        assert!(quoted.len() <= STRETCH_SENTENCES);
        assert!(scorer.best_stretch(9).is_empty());
    }
}
