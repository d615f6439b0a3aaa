//! Vectors without a model: words, other words for them, their neighbours and their character sequences, hashed into a
//! fixed number of places.
//!
//! Texts that share words, parts of words or meanings of common words get vectors that point the same way. Counts grow with their logarithm, words
//! that every text is full of weigh little, and vectors have length one. The same text gives the same vector everywhere.

use std::collections::HashMap;

use crate::text::{Word, words};
use crate::thesaurus::related;

/// Length of a vector.
pub const DIMENSIONS: usize = 512;

const WORD_WEIGHT: f64 = 1.0;
const PAIR_WEIGHT: f64 = 0.5;
const GRAM_WEIGHT: f64 = 0.25;
const RELATED_WEIGHT: f64 = 0.3;
const STOP_WEIGHT: f64 = 0.05;
const GRAM_LENGTHS: [usize; 2] = [4, 5];
/// Seeds keep a word, a pair and a character sequence with the same letters apart.
const WORD_SEED: u64 = 1;
const PAIR_SEED: u64 = 2;
const GRAM_SEED: u64 = 3;

/// The vector of a text: of length one, or all zeros when the text has no words.
#[must_use]
pub fn embed(text: &str) -> Vec<f64> {
    let mut features: HashMap<u64, (f64, f64)> = HashMap::new();
    let mut count = |feature: u64, weight: f64| {
        let (times, heaviest) = features.entry(feature).or_default();
        *times += 1.0;
        *heaviest = heaviest.max(weight);
    };
    let words = words(text);
    for word in &words {
        count(hash(WORD_SEED, &word.stem), WORD_WEIGHT * telling(word));
        if !word.is_stop {
            grams(&word.stem, |gram| count(hash(GRAM_SEED, gram), GRAM_WEIGHT));
            for other in related(&word.stem) {
                count(hash(WORD_SEED, other), RELATED_WEIGHT);
            }
        }
    }
    let telling: Vec<&Word> = words.iter().filter(|word| !word.is_stop).collect();
    for pair in telling.windows(2) {
        count(hash(PAIR_SEED, &format!("{} {}", pair[0].stem, pair[1].stem)), PAIR_WEIGHT);
    }

    // Summed in a fixed order, because the last digits of a sum depend on it.
    let mut features: Vec<(u64, (f64, f64))> = features.into_iter().collect();
    features.sort_unstable_by_key(|(feature, _)| *feature);
    let mut vector = vec![0.0; DIMENSIONS];
    for (feature, (times, weight)) in features {
        let sign = if feature >> 63 == 0 { 1.0 } else { -1.0 };
        vector[(feature % DIMENSIONS as u64) as usize] += sign * weight * (1.0 + f64::ln(times));
    }
    normalise(&mut vector);
    vector
}

/// How alike two vectors of length one are, from -1 to 1.
#[must_use]
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Longer words are rarer and say more.
fn telling(word: &Word) -> f64 {
    if word.is_stop { STOP_WEIGHT } else { (0.3 + 0.1 * word.stem.chars().count() as f64).min(1.0) }
}

fn grams(stem: &str, mut found: impl FnMut(&str)) {
    let padded: Vec<char> = std::iter::once('<').chain(stem.chars()).chain(['>']).collect();
    let mut gram = String::new();
    for length in GRAM_LENGTHS {
        for window in padded.windows(length) {
            gram.clear();
            gram.extend(window);
            found(&gram);
        }
    }
}

fn normalise(vector: &mut [f64]) {
    let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    if length > 0.0 {
        for x in vector {
            *x /= length;
        }
    }
}

/// FNV-1a with a final mix, so that all bits depend on all characters.
fn hash(seed: u64, text: &str) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for byte in text.bytes() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    state = (state ^ (state >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    state = (state ^ (state >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    state ^ (state >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alike(a: &str, b: &str) -> f64 {
        cosine(&embed(a), &embed(b))
    }

    #[test]
    fn a_vector_has_length_one_and_its_direction_does_not_depend_on_repetition() {
        let vector = embed("Oil the chain after every wet ride.");
        assert_eq!(vector.len(), DIMENSIONS);
        assert!((cosine(&vector, &vector) - 1.0).abs() < 1e-9);
        assert!(alike("oil the chain", "oil the chain oil the chain") > 0.8);
        assert_eq!(vector, embed("Oil the chain after every wet ride."));
    }

    #[test]
    fn a_text_without_words_has_no_direction() {
        assert!(embed("").iter().chain(&embed(" -- ! ")).all(|x| *x == 0.0));
    }

    #[test]
    fn texts_that_share_words_or_parts_of_words_are_nearer() {
        let question = "How do I lubricate a bicycle chain?";
        assert!(
            alike(question, "Lubricating the chain of a bicycle")
                > alike(question, "Bake bread at 230 degrees") + 0.3
        );
        assert!(alike("lubrication", "lubricants") > alike("lubrication", "lighthouse") + 0.1);
        assert!(alike("what is the moon", "what is the bread").abs() < 0.3, "stop words carry little");
    }
}
