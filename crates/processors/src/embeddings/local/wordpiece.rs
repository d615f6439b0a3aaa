//! Cuts a text into the words and pieces of words that a BERT model knows, as its `tokenizer.json` says.

use std::collections::HashMap;

use serde::Deserialize;
use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::is_combining_mark;

const START: &str = "[CLS]";
const END: &str = "[SEP]";

/// A tokenizer's words and rules.
pub(super) struct WordPiece {
    words: HashMap<String, usize>,
    /// Texts that are words wherever they stand, like `[MASK]`.
    marks: Vec<(String, usize)>,
    rules: Normalizer,
    continuation: String,
    word_chars_max: usize,
    unknown: usize,
    start: usize,
    end: usize,
}

#[derive(Deserialize)]
struct File {
    model: Model,
    normalizer: Option<Normalizer>,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default = "wordpiece", rename = "type")]
    kind: String,
    #[serde(default)]
    vocab: serde_json::Value,
    #[serde(default)]
    unk_token: String,
    #[serde(default = "hashes")]
    continuing_subword_prefix: String,
    #[serde(default = "hundred")]
    max_input_chars_per_word: usize,
}

fn wordpiece() -> String {
    "WordPiece".to_owned()
}

fn hashes() -> String {
    "##".to_owned()
}

const fn hundred() -> usize {
    100
}

#[derive(Deserialize)]
struct Added {
    id: usize,
    content: String,
}

#[derive(Deserialize)]
struct Normalizer {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    clean_text: bool,
    #[serde(default)]
    handle_chinese_chars: bool,
    /// `None` does what `lowercase` does.
    #[serde(default)]
    strip_accents: Option<bool>,
    #[serde(default)]
    lowercase: bool,
}

impl WordPiece {
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let wrong = |e: serde_json::Error| format!("'tokenizer.json': {e}");
        let file: File = serde_json::from_str(text).map_err(wrong)?;
        if file.model.kind != "WordPiece" {
            let kind = file.model.kind;
            return Err(format!(
                "its tokenizer is of type {kind}; models with a WordPiece tokenizer can be run"
            ));
        }
        let rules = file.normalizer.filter(|rules| rules.kind == "BertNormalizer");
        let rules = rules.ok_or("its tokenizer has another normalizer than BERT's")?;
        let words: HashMap<String, usize> = serde_json::from_value(file.model.vocab).map_err(wrong)?;
        let id = |word: &str| {
            words.get(word).copied().ok_or_else(|| format!("its tokenizer has no word '{word}'"))
        };
        let (unknown, start, end) = (id(&file.model.unk_token)?, id(START)?, id(END)?);
        let marks = file.added_tokens.into_iter().filter(|added| !added.content.is_empty());
        Ok(Self {
            unknown,
            start,
            end,
            marks: marks.map(|added| (added.content, added.id)).collect(),
            words,
            rules,
            continuation: file.model.continuing_subword_prefix,
            word_chars_max: file.model.max_input_chars_per_word,
        })
    }

    /// One more than the highest number of a word.
    pub(super) fn len(&self) -> usize {
        let marks = self.marks.iter().map(|(_, id)| id);
        self.words.values().chain(marks).max().map_or(0, |highest| highest + 1)
    }

    /// The numbers of a text's pieces, between those of its start and its end; at most `tokens_max` in all, at least two.
    pub(super) fn tokens(&self, text: &str, tokens_max: usize) -> Vec<usize> {
        let mut tokens = vec![self.start];
        let room = tokens_max.max(2) - 1;
        let mut rest = text;
        while !rest.is_empty() && tokens.len() < room {
            let marks =
                self.marks.iter().filter_map(|(mark, id)| Some((rest.find(mark.as_str())?, mark, *id)));
            let next = marks.min_by_key(|(at, mark, _)| (*at, std::cmp::Reverse(mark.len())));
            let (at, length) = next.map_or((rest.len(), 0), |(at, mark, _)| (at, mark.len()));
            self.plain(&rest[..at], room, &mut tokens);
            tokens.extend(next.map(|(_, _, id)| id));
            rest = &rest[at + length..];
        }
        tokens.truncate(room);
        tokens.push(self.end);
        tokens
    }

    /// A text without marks.
    fn plain(&self, text: &str, room: usize, tokens: &mut Vec<usize>) {
        let text = self.normalised(text);
        for part in text.split_whitespace() {
            for word in part.split_inclusive(is_punctuation) {
                if tokens.len() >= room {
                    return;
                }
                // What ends in punctuation is a word, if anything is before it, and the punctuation.
                let last = word.chars().next_back().filter(|c| is_punctuation(*c));
                let (word, mark) = word.split_at(word.len() - last.map_or(0, char::len_utf8));
                for word in [word, mark].into_iter().filter(|word| !word.is_empty()) {
                    self.pieces(word, tokens);
                }
            }
        }
    }

    /// The longest known beginning of a word, then the longest known continuation, and so on; all of it is unknown when any
    /// part of it is.
    fn pieces(&self, word: &str, tokens: &mut Vec<usize>) {
        let before = tokens.len();
        if word.chars().count() > self.word_chars_max {
            tokens.push(self.unknown);
            return;
        }
        let mut rest = word;
        let mut key = String::new();
        while !rest.is_empty() {
            let ends = rest.char_indices().map(|(at, c)| at + c.len_utf8()).rev();
            let prefix = if rest.len() == word.len() { "" } else { self.continuation.as_str() };
            let found = ends.into_iter().find_map(|end| {
                key.clear();
                key.push_str(prefix);
                key.push_str(&rest[..end]);
                Some((end, *self.words.get(&key)?))
            });
            let Some((end, id)) = found else {
                tokens.truncate(before);
                tokens.push(self.unknown);
                return;
            };
            tokens.push(id);
            rest = &rest[end..];
        }
    }

    fn normalised(&self, text: &str) -> String {
        let rules = &self.rules;
        let mut cleaned = String::with_capacity(text.len());
        for c in text.chars() {
            if rules.clean_text && is_junk(c) {
                continue;
            }
            if rules.clean_text && c.is_whitespace() {
                cleaned.push(' ');
            } else if rules.handle_chinese_chars && is_ideograph(c) {
                cleaned.extend([' ', c, ' ']);
            } else {
                cleaned.push(c);
            }
        }
        if rules.strip_accents.unwrap_or(rules.lowercase) {
            cleaned = cleaned.nfd().filter(|c| !is_combining_mark(*c)).collect();
        }
        if rules.lowercase {
            cleaned = cleaned.chars().flat_map(char::to_lowercase).collect();
        }
        cleaned
    }
}

/// Controls, formats, private characters, and the sign for what could not be decoded.
fn is_junk(c: char) -> bool {
    match c {
        '\t' | '\n' | '\r' => false,
        '\u{fffd}' | '\u{ad}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{8e2}' | '\u{180e}' | '\u{feff}' => {
            true
        }
        '\u{600}'..='\u{605}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' => true,
        '\u{2060}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}' | '\u{1d173}'..='\u{1d17a}' => true,
        '\u{e000}'..='\u{f8ff}' | '\u{e0001}'..='\u{e007f}' | '\u{f0000}'..='\u{10ffff}' => true,
        c => c.is_control(),
    }
}

fn is_ideograph(c: char) -> bool {
    matches!(c,
        '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{2a6df}'
        | '\u{2a700}'..='\u{2b73f}' | '\u{2b740}'..='\u{2b81f}' | '\u{2b920}'..='\u{2ceaf}' | '\u{2f800}'..='\u{2fa1f}')
}

/// Punctuation of the common scripts; of ASCII every sign, as BERT has it.
fn is_punctuation(c: char) -> bool {
    match c {
        '\0'..='\x7f' => c.is_ascii_punctuation(),
        '¡' | '§' | '«' | '¶' | '·' | '»' | '¿' | '\u{37e}' | '\u{387}' | '։' | '֊' | '־' | '׀' | '׃'
        | '׆' | '׳' | '״' => true,
        '\u{55a}'..='\u{55f}' | '،' | '؍' | '؛' | '\u{61d}'..='؟' | '٪'..='٭' | '۔' | '।' | '॥' | '॰' => {
            true
        }
        '\u{2010}'..='\u{2027}' | '\u{2030}'..='\u{205e}' => !matches!(c, '\u{2044}' | '\u{2052}'),
        '\u{207d}'
        | '\u{207e}'
        | '\u{208d}'
        | '\u{208e}'
        | '\u{2308}'..='\u{230b}'
        | '\u{2329}'
        | '\u{232a}' => true,
        '\u{2768}'..='\u{2775}'
        | '\u{27e6}'..='\u{27ef}'
        | '\u{2983}'..='\u{2998}'
        | '\u{2e00}'..='\u{2e4f}' => true,
        '\u{3001}'..='\u{3003}' | '\u{3008}'..='\u{3011}' | '\u{3014}'..='\u{301f}' => true,
        '\u{3030}'
        | '\u{303d}'
        | '\u{30a0}'
        | '\u{30fb}'
        | '\u{fe10}'..='\u{fe19}'
        | '\u{fe30}'..='\u{fe52}' => true,
        '\u{fe54}'..='\u{fe61}' | '\u{fe63}' | '\u{fe68}' | '\u{fe6a}' | '\u{fe6b}' => true,
        '\u{ff01}'..='\u{ff0f}' => !matches!(c, '\u{ff04}' | '\u{ff0b}'),
        '\u{ff1a}' | '\u{ff1b}' | '\u{ff1f}' | '\u{ff20}' | '\u{ff3b}'..='\u{ff3d}' | '\u{ff3f}' => true,
        '\u{ff5b}' | '\u{ff5d}' | '\u{ff5f}'..='\u{ff65}' => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: [&str; 15] = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "oil", "##ing", "the", "chain", "cafe", ".", "水",
        "##s", "a", "'",
    ];

    fn tokenizer() -> WordPiece {
        let vocab: serde_json::Map<_, _> =
            WORDS.iter().enumerate().map(|(id, word)| ((*word).to_owned(), id.into())).collect();
        let file = serde_json::json!({
            "added_tokens": [{"id": 4, "content": "[MASK]"}],
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": vocab, "max_input_chars_per_word": 20},
        });
        WordPiece::read(&file.to_string()).unwrap()
    }

    fn check(text: &str, expected: &[&str]) {
        let tokenizer = tokenizer();
        let words: Vec<&str> = tokenizer.tokens(text, 100).into_iter().map(|id| WORDS[id]).collect();
        assert_eq!(words[1..words.len() - 1], *expected, "{text}");
        assert_eq!((words[0], words[words.len() - 1]), ("[CLS]", "[SEP]"));
    }

    #[test]
    fn words_fall_into_the_longest_pieces_that_are_known() {
        check("Oiling  the\tCHAINS.", &["oil", "##ing", "the", "chain", "##s", "."]);
        check("Café\u{200b}s", &["cafe", "##s"]);
        check("the水a", &["the", "水", "a"]);
        check("oilx the", &["[UNK]", "the"]);
        check("'.the'", &["'", ".", "the", "'"]);
        check("the[MASK]chain", &["the", "[MASK]", "chain"]);
        check(&"oil".repeat(9), &["[UNK]"]);
        check(" \n", &[]);
    }

    #[test]
    fn a_long_text_is_cut_and_keeps_its_end() {
        let tokens = tokenizer().tokens(&"oil the ".repeat(50), 6);
        assert_eq!(
            tokens.iter().map(|id| WORDS[*id]).collect::<Vec<_>>(),
            ["[CLS]", "oil", "the", "oil", "the", "[SEP]"]
        );
        assert_eq!(tokenizer().len(), WORDS.len());
    }

    #[test]
    fn other_tokenizers_are_named() {
        let said = WordPiece::read(r#"{"model": {"type": "Unigram", "vocab": []}, "normalizer": null}"#)
            .err()
            .unwrap();
        assert!(said.contains("Unigram"), "{said}");
        assert!(WordPiece::read("{}").err().unwrap().contains("tokenizer.json"));
    }
}
