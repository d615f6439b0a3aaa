//! Text to terms: how the keyword index reads texts and queries.
//!
//! A term is a run of letters and digits, in lower case, without accents, its English plural taken off. Scripts written
//! without spaces (Chinese, Japanese) give one term per character. Words of other languages and code names stay as they
//! are, so that searching for exactly what was written always works.

use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::is_combining_mark;

/// The longest term, in bytes; longer runs are cut.
pub const TERM_BYTES_MAX: usize = 64;

/// The terms of a text, in order, repeats included.
///
/// ```
/// assert_eq!(sluice_store::terms::terms("The Cafés' pump-7, 水泵"), ["the", "cafe", "pump", "7", "水", "泵"]);
/// ```
#[must_use]
pub fn terms(text: &str) -> Vec<String> {
    let mut terms = Vec::new();
    let mut word = String::new();
    let letters = text.nfkd().filter(|c| !is_combining_mark(*c)).flat_map(char::to_lowercase);
    for c in letters {
        if stands_alone(c) {
            finish(&mut word, &mut terms);
            terms.push(c.to_string());
        } else if c.is_alphanumeric() {
            if word.len() + c.len_utf8() <= TERM_BYTES_MAX {
                word.push(c);
            }
        } else if c != '\'' && c != '’' || word.is_empty() {
            finish(&mut word, &mut terms);
        } else {
            // "pump's" is the pump; "don't" is one word.
            word.push('\'');
        }
    }
    finish(&mut word, &mut terms);
    terms
}

fn finish(word: &mut String, terms: &mut Vec<String>) {
    let word = std::mem::take(word);
    let bare = word.trim_end_matches('\'');
    let bare = bare.strip_suffix("'s").unwrap_or(bare).replace('\'', "");
    if !bare.is_empty() {
        terms.push(singular(bare));
    }
}

/// Takes off an English plural: "bodies" to "body", "pumps" to "pump", but not "gas", "glass" or "status".
fn singular(mut word: String) -> String {
    let is_plain = word.len() > 3 && word.bytes().all(|b| b.is_ascii_lowercase());
    if !is_plain
        || !word.ends_with('s')
        || word.ends_with("ss")
        || word.ends_with("us")
        || word.ends_with("is")
    {
        return word;
    }
    if word.ends_with("ies") && word.len() > 4 {
        word.truncate(word.len() - 3);
        word.push('y');
    } else if ["sses", "xes", "ches", "shes", "zzes"].iter().any(|end| word.ends_with(end)) {
        word.truncate(word.len() - 2);
    } else {
        word.truncate(word.len() - 1);
    }
    word
}

/// Characters of scripts that put no spaces between words.
fn stands_alone(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{20000}'..='\u{323af}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_terms() {
        let check = |text: &str, expected: &[&str]| assert_eq!(terms(text), expected, "{text:?}");
        check("", &[]);
        check(" -- '' … ", &[]);
        check("Pump-7 feeds tank_2.", &["pump", "7", "feed", "tank", "2"]);
        check("pump's pumps' don't", &["pump", "pump", "dont"]);
        check("bodies boxes churches glasses houses", &["body", "box", "church", "glass", "house"]);
        check("gas bus status analysis glass its", &["gas", "bus", "status", "analysis", "glass", "its"]);
        check("Überdruck CAFÉ cafe\u{301}", &["uberdruck", "cafe", "cafe"]);
        check("Насосы ΣΟΦΟΣ", &["насосы", "σοφοσ"]);
        check("水泵A1", &["水", "泵", "a1"]);
        check("ﬁeld №5", &["field", "no5"]);
        check("X86s v1s", &["x86s", "v1s"]);
    }

    #[test]
    fn a_long_run_is_cut_and_stays_one_term() {
        let found = terms(&"x".repeat(1000));
        assert_eq!(found, ["x".repeat(TERM_BYTES_MAX)]);
        assert_eq!(terms(&"é".repeat(1000)), ["e".repeat(TERM_BYTES_MAX)]);
    }

    #[test]
    fn a_term_is_its_own_term() {
        for text in ["Bodies of water", "pumps", "Überdruck", "news series", "don't"] {
            for term in terms(text) {
                assert_eq!(terms(&term), std::slice::from_ref(&term), "{text}");
            }
        }
    }
}
