//! Finds the JSON in what a model wrote, although it stands among other text, in a code fence, with a comma too many or
//! without its end.

use serde_json::Value;

/// Places where an object or list was tried to be read in vain, at most: the rest is prose.
const PLACES_MAX: usize = 64;

/// The JSON value that a model meant: the text itself, what stands in its first code fence, or its first object or list.
pub(crate) fn value(text: &str) -> Result<Value, String> {
    let text = spoken(text);
    let inside = fenced(text).unwrap_or(text).trim();
    let reason = match parse(inside) {
        Ok(value) => return Ok(value),
        Err(reason) => reason,
    };
    let opens =
        |text: &str| text.char_indices().filter(|(_, c)| matches!(c, '{' | '[')).map(|(at, _)| at).collect();
    for text in [inside, text] {
        let places: Vec<usize> = opens(text);
        for at in places.into_iter().take(PLACES_MAX) {
            if let Some(value) = balanced(&text[at..]).and_then(|part| parse(part).ok()) {
                return Ok(value);
            }
        }
    }
    Err(reason)
}

/// The JSON values that a model wrote, one a line or not quite; what cannot be read is left out. `fits` tells whether a
/// value is an item, since a list may be one or hold all of them.
pub(crate) fn values(text: &str, fits: impl Fn(&Value) -> bool) -> Vec<Value> {
    let text = spoken(text);
    let mut rest = fenced(text).unwrap_or(text);
    let mut values = Vec::new();
    let mut lines_left = PLACES_MAX;
    while !rest.is_empty() {
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let trimmed = line.trim().trim_end_matches(',');
        let start = rest.len() - rest.trim_start().len();
        if let Ok(value) = parse(trimmed) {
            values.push(value);
            rest = after;
        } else if trimmed.starts_with(['{', '['])
            && lines_left > 0
            && let Some(part) = balanced(&rest[start..])
            && let Ok(value) = parse(part)
        {
            // A value over several lines, or several on one.
            values.push(value);
            rest = rest[start + part.len()..].trim_start_matches([',', ' ', '\t', '\r']);
        } else {
            lines_left = lines_left.saturating_sub(usize::from(trimmed.starts_with(['{', '['])));
            rest = after;
        }
    }
    let is_all = |value: &Value| {
        let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
        !items.is_empty() && items.iter().all(Value::is_object) && !fits_alone(value, &fits)
    };
    let one_or_all = |value: Value| match value {
        Value::Array(items) => items,
        one => vec![one],
    };
    let items =
        values.into_iter().flat_map(|value| if is_all(&value) { one_or_all(value) } else { vec![value] });
    items.filter(|item| fits(item)).collect()
}

/// A list of objects is an item itself only where a schema says so, which a list without one cannot show.
fn fits_alone(value: &Value, fits: impl Fn(&Value) -> bool) -> bool {
    fits(value) && !fits(&Value::Object(serde_json::Map::new()))
}

/// What a model wrote without what it thought aloud before.
fn spoken(text: &str) -> &str {
    let text = text.trim_start_matches('\u{feff}').trim_start();
    match text.strip_prefix("<think>").and_then(|thoughts| thoughts.split_once("</think>")) {
        Some((_, spoken)) => spoken.trim_start(),
        None => text,
    }
}

/// What stands in the first code fence, if there is one.
fn fenced(text: &str) -> Option<&str> {
    let (_, after) = text.split_once("```")?;
    let (_, body) = after.split_once('\n')?;
    Some(body.split_once("\n```").or_else(|| body.split_once("```")).map_or(body, |(inside, _)| inside))
}

fn parse(text: &str) -> Result<Value, String> {
    let first = serde_json::from_str(text).map_err(|e| e.to_string());
    first.or_else(|reason| serde_json::from_str(&without_trailing_commas(text)).map_err(|_| reason))
}

/// The object or list that a text begins with, up to the bracket that closes it.
fn balanced(text: &str) -> Option<&str> {
    let mut open = Vec::new();
    let (mut in_text, mut is_escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if in_text => is_escaped = true,
            '"' => in_text = !in_text,
            _ if in_text => {}
            '{' => open.push('}'),
            '[' => open.push(']'),
            '}' | ']' => {
                if open.pop() != Some(c) {
                    return None;
                }
                if open.is_empty() {
                    return Some(&text[..=at]);
                }
            }
            _ => {}
        }
    }
    None
}

/// The text without commas that only a closing bracket follows.
fn without_trailing_commas(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut in_text, mut is_escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if in_text => is_escaped = true,
            '"' => in_text = !in_text,
            ',' if !in_text && text[at + 1..].trim_start().starts_with(['}', ']']) => continue,
            _ => {}
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_is_found_among_what_models_put_around_it() {
        for text in [
            r#"{"a": [1, 2]}"#,
            "Sure, here you are:\n```json\n{\"a\": [1, 2]}\n```\nAnything else?",
            "```\n{\"a\": [1, 2,],}\n```",
            "The answer is {\"a\": [1, 2]}. I hope {that} helps.",
            "<think>{\"a\": 0}? No.</think>\n{\"a\": [1, 2]}",
            "As {placeholders} go: {\"a\": [1, 2]}",
            "\u{feff}{\"a\": [1,\n2\n,]}",
            "```json\n{\"a\": [1, 2]}",
        ] {
            assert_eq!(value(text).as_ref(), Ok(&json!({"a": [1, 2]})), "{text}");
        }
        assert_eq!(value(r#"{"code": "```\nx, }\n```"}"#), Ok(json!({"code": "```\nx, }\n```"})));
        assert_eq!(value("[\"a,]\", ]"), Ok(json!(["a,]"])));
        for text in ["I cannot", "{\"a\": [1, 2", "{]", ""] {
            assert!(value(text).is_err(), "{text}");
        }
    }

    fn check(text: &str, expected: &[Value]) {
        assert_eq!(values(text, |_| true), expected, "{text}");
    }

    #[test]
    fn lines_that_are_not_quite_json_lines_are_read_and_the_rest_is_left_out() {
        let both = [json!({"a": 1}), json!({"b": 2})];
        check("{\"a\": 1}\n{\"b\": 2}", &both);
        check("Here:\n```jsonl\n{\"a\": 1}\n\nwhat?\n{\"b\": 2}\n```\nDone.", &both);
        check("{\"a\": 1},\n{\"b\": 2,},\n", &both);
        check("[\n {\"a\": 1},\n {\"b\": 2}\n]", &both);
        check("[{\"a\": 1}, {\"b\": 2}]", &both);
        check("{\n  \"a\": 1\n}\n{\n  \"b\": 2\n}", &both);
        check("{\"a\": 1} {\"b\": 2}", &both);
        check("{\"a\": 1}\n{\"bad\": \n{\"b\": 2}", &both);
        check("{\"a\": 1}\n{\"b\": 2}\n{\"c\": \"cut o", &both);
        check("none", &[]);
        check("[1, 2]", &[json!([1, 2])]);
    }

    #[test]
    fn a_list_is_an_item_where_it_fits_as_one() {
        let text = "[{\"a\": 1}]\n[{\"b\": 2}]";
        assert_eq!(values(text, Value::is_array), [json!([{"a": 1}]), json!([{"b": 2}])]);
        assert_eq!(values(text, Value::is_object), [json!({"a": 1}), json!({"b": 2})]);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_in_bounded_time(text in "[\\[\\]{}\",:\\\\`a\n1 ]{0,200}") {
            let _ = value(&text);
            let _ = values(&text, |_| true);
        }

        #[test]
        fn good_lines_come_out_as_they_went_in(numbers in prop::collection::vec(any::<i32>(), 0..8), texts in prop::collection::vec(".{0,9}", 0..8)) {
            let items: Vec<Value> = numbers.iter().zip(&texts).map(|(n, t)| json!({"n": n, "t": t})).collect();
            let lines: Vec<String> = items.iter().map(Value::to_string).collect();
            prop_assert_eq!(values(&lines.join("\n"), |_| true), items);
        }
    }
}
