//! Words for search: folding, splitting, stop words and light stemming, shared by everything that compares texts here.

use std::collections::HashSet;
use std::sync::LazyLock;

use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::is_combining_mark;

/// English words that say little about what a text is about.
static STOP_WORDS: LazyLock<HashSet<&str>> = LazyLock::new(|| STOP_WORD_LIST.split_whitespace().collect());
const STOP_WORD_LIST: &str = "
a about actually after again ago all almost already also although always am an and any anybody anyone
anything anyway are arent around as at away be because become becomes becoming been before behind being
between both but by came can cannot cant come comes could couldnt did didnt do does doesnt doing done dont
either else even ever every everybody everyone everything few for from get give given gives go goes going
gone good got had hadnt has hasnt have havent having he helps her here hers herself hes him himself his
how however hows i if im in instead into is isnt it its itself ive just keep know known let lets
like lot lots made make makes making many may maybe me mean means might more most much must mustnt my
myself need needed needs neither never next no nobody none nor not nothing now of off often on once one
only onto or other ought our ours ourselves out over own perhaps please put quite rather really s said
same say says seem seems several shall she shes should shouldnt since so some somebody someone something
sometimes somewhere still such sure t take taken takes than that thats the their them then there theres
these they theyd theyre theyve thing things think this those though through thus to together too took
toward towards try under until up upon us use used uses using usually very want wants was wasnt way ways
we well went were werent weve what whatever whats when whenever where wheres wherever whether which while
who whoever whom whose why will with within without wont would wouldnt yes yet you youd youll your youre
yours yourself youve
";

/// A word of a text, folded and stemmed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Word {
    /// What two forms of one word share.
    pub stem: String,
    /// Whether it is one of the words that every text is full of.
    pub is_stop: bool,
}

/// The words of a text, in order. Scripts without spaces between words give overlapping pairs of characters.
#[must_use]
pub fn words(text: &str) -> Vec<Word> {
    let mut found = Vec::new();
    let mut run = String::new();
    let mut ideographs: Vec<char> = Vec::new();
    for c in text.nfkd().filter(|c| !is_combining_mark(*c)).chain([' ']) {
        if is_ideograph(c) {
            take_run(&mut run, &mut found);
            ideographs.push(c);
            continue;
        }
        take_ideographs(&mut ideographs, &mut found);
        if c.is_alphanumeric() {
            run.extend(c.to_lowercase());
        } else if !matches!(c, '\'' | '\u{2019}') || run.is_empty() {
            take_run(&mut run, &mut found);
        } else {
            run.push('\'');
        }
    }
    found
}

/// The words of a text that tell what it is about; all of its words when it has no other.
#[must_use]
pub fn telling_words(text: &str) -> Vec<String> {
    let all = words(text);
    let telling: Vec<String> =
        all.iter().filter(|word| !word.is_stop).map(|word| word.stem.clone()).collect();
    if telling.is_empty() { all.into_iter().map(|word| word.stem).collect() } else { telling }
}

/// The sentences of a text; never empty ones. A line break ends a sentence only where something else begins: after a blank
/// line or a heading, and before a heading or an item of a list. Elsewhere it is white space inside the sentence.
pub fn sentences(text: &str) -> impl Iterator<Item = &str> {
    blocks(text).flat_map(block_sentences).map(str::trim).filter(|sentence| !sentence.is_empty())
}

/// The stretches of a text that sentences do not reach across.
fn blocks(text: &str) -> impl Iterator<Item = &str> {
    let mut start = 0;
    let mut at = 0;
    let mut ends = Vec::new();
    let mut after_heading = false;
    for line in text.split_inclusive('\n') {
        let said = line.trim();
        if said.is_empty() || after_heading || is_heading(said) || is_item(said) {
            ends.push((start, at));
            start = at;
        }
        after_heading = is_heading(said);
        at += line.len();
    }
    ends.push((start, at));
    ends.into_iter().map(|(from, to)| &text[from..to])
}

/// Whether a line is a Markdown heading.
pub(crate) fn is_heading(line: &str) -> bool {
    line.starts_with('#')
}

fn is_item(line: &str) -> bool {
    let mark = line.trim_start_matches(|c: char| c.is_ascii_digit());
    let is_bullet = ["- ", "* ", "+ ", "| "].iter().any(|bullet| line.starts_with(bullet));
    is_bullet || (mark.len() < line.len() && (mark.starts_with(". ") || mark.starts_with(") ")))
}

fn block_sentences(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut start = 0;
    let mut end_mark = false;
    for (at, c) in line.char_indices() {
        if end_mark && c.is_whitespace() && line[at..].trim_start().chars().next().is_none_or(starts_sentence)
        {
            found.push(&line[start..at]);
            start = at;
        }
        end_mark = matches!(c, '.' | '!' | '?' | '。' | '！' | '？')
            || (end_mark && matches!(c, '"' | '\'' | ')' | '”' | '’'));
    }
    found.push(&line[start..]);
    found
}

fn starts_sentence(c: char) -> bool {
    !c.is_lowercase()
}

fn take_run(run: &mut String, found: &mut Vec<Word>) {
    let word = run.trim_end_matches('\'');
    let word = word.strip_suffix("'s").unwrap_or(word).replace('\'', "");
    if !word.is_empty() {
        let is_stop = STOP_WORDS.contains(word.as_str());
        found.push(Word { stem: if is_stop { word } else { stem(&word) }, is_stop });
    }
    run.clear();
}

fn take_ideographs(run: &mut Vec<char>, found: &mut Vec<Word>) {
    if let [only] = run[..] {
        found.push(Word { stem: only.to_string(), is_stop: false });
    }
    found.extend(run.windows(2).map(|pair| Word { stem: pair.iter().collect(), is_stop: false }));
    run.clear();
}

const fn is_ideograph(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30FF}' | '\u{3400}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{3FFFF}')
}

/// Takes off the endings that the forms of an English word differ in. Light on purpose: two words that mean different
/// things should rarely end up the same.
fn stem(word: &str) -> String {
    if !word.is_ascii() || word.len() < 4 || word.bytes().any(|b| b.is_ascii_digit()) {
        return word.to_owned();
    }
    let mut stem = plural(word);
    for ending in ["ingly", "edly", "ing", "ed", "ly"] {
        if let Some(rest) = stem.strip_suffix(ending)
            && rest.len() >= 3
            && rest.bytes().any(|b| b"aeiouy".contains(&b))
        {
            stem = undouble(rest).to_owned();
            break;
        }
    }
    if stem.len() > 3 && stem.ends_with('e') {
        stem.pop();
    } else if stem.len() > 3 && stem.ends_with('y') {
        stem.pop();
        stem.push('i');
    }
    stem
}

fn plural(word: &str) -> String {
    if let Some(rest) = word.strip_suffix("ies")
        && rest.len() > 1
    {
        return format!("{rest}y");
    }
    for ending in ["sses", "xes", "ches", "shes", "zes"] {
        if word.ends_with(ending) {
            return word[..word.len() - 2].to_owned();
        }
    }
    let keeps = ["ss", "us", "is"].iter().any(|ending| word.ends_with(ending));
    word.strip_suffix('s').filter(|_| !keeps).unwrap_or(word).to_owned()
}

fn undouble(word: &str) -> &str {
    let bytes = word.as_bytes();
    let doubled = bytes.len() > 3 && bytes[bytes.len() - 1] == bytes[bytes.len() - 2];
    if doubled && !b"lsz".contains(&bytes[bytes.len() - 1]) { &word[..word.len() - 1] } else { word }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stems(text: &str) -> Vec<String> {
        words(text).into_iter().map(|word| word.stem).collect()
    }

    #[test]
    fn forms_of_one_word_share_a_stem() {
        for forms in [
            &["bake", "bakes", "baked", "baking"][..],
            &["run", "runs", "running"],
            &["berry", "berries"],
            &["box", "boxes"],
            &["brush", "brushes", "brushing"],
            &["queue", "queues", "queued"],
            &["slow", "slowly"],
            &["fill", "filled", "filling"],
        ] {
            let stems: Vec<String> = forms.iter().map(|form| stem(form)).collect();
            assert!(stems.windows(2).all(|pair| pair[0] == pair[1]), "{forms:?} became {stems:?}");
        }
        assert_ne!(stem("bring"), stem("bred"));
        assert_eq!(stem("glass"), "glass");
    }

    #[test]
    fn words_are_folded_whatever_their_case_accents_and_apostrophes() {
        assert_eq!(stems("Café DON'T Anna’s ﬁne"), ["caf", "dont", "anna", "fin"]);
        assert_eq!(stems("14:30, 3.5 kg"), ["14", "30", "3", "5", "kg"]);
        assert_eq!(stems("灯台守"), ["灯台", "台守"]);
        assert!(stems(" … — ").is_empty());
    }

    #[test]
    fn stop_words_are_told_apart_and_only_dropped_when_others_remain() {
        assert_eq!(telling_words("What is a lighthouse for?"), ["lighthous"]);
        assert_eq!(telling_words("to be or not to be"), ["to", "be", "or", "not", "to", "be"]);
    }

    #[test]
    fn sentences_end_where_people_end_them() {
        let found: Vec<&str> =
            sentences("One. Two is 3.5 long! (Three?) Four, e.g. this.\nFive\n\n").collect();
        assert_eq!(found, ["One.", "Two is 3.5 long!", "(Three?)", "Four, e.g. this.", "Five"]);
    }
}
