//! Renders prompt templates. They are written for a dialect close to Jinja; what differs is translated before compiling,
//! and values are written the way people tuned their templates to: `None`, `True`, `['a', 1]`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value};

/// Steps that one rendering may take.
const FUEL: u64 = 5_000_000;

/// Bytes of a line, and lines: places in a template are counted in so few bits.
const LINE_MAX: usize = 65_000;

/// Words inside tags that have another name here.
const RENAMED: [(&str, &str); 4] = [
    ("loop.index", "loop.index0"),
    ("loop.count", "loop.index"),
    ("loop.is_first", "loop.first"),
    ("loop.is_last", "loop.last"),
];
const FILTER_NAMES: [(&str, &str); 2] = [("reversed", "reverse"), ("len", "length")];

/// An environment for templates of the dialect.
pub(crate) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().keep_trailing_newline(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Chainable);
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(write_value);
    environment.set_unknown_method_callback(call_method);
    environment.add_function("__rows", rows);
    environment.add_filter("repr", |value: Value| literal(&value));
    environment
        .add_filter("index", |value: Value, at: usize| value.get_item_by_index(at).unwrap_or_default());
    environment.add_function("__cycle", cycle);
    environment.add_filter("__spaceless", |html: String| spaceless(html.trim()));
    environment.add_filter("spaceless", |html: String| spaceless(&html));
    environment.add_filter("str", |value: Value| shown(&value));
    environment.add_filter(
        "default",
        |value: Value, fallback: Value| {
            if value.is_true() { value } else { fallback }
        },
    );
    environment.add_filter("join", |items: Value, between: Option<String>| {
        join(&items, between.as_deref().unwrap_or_default())
    });
    environment.add_filter("title", |text: String| title(&text));
    environment.add_filter("truncatewords", |text: String, count: usize, ellipsis: Option<String>| {
        truncate_words(&text, count, ellipsis.as_deref().unwrap_or(" [...]"))
    });
    environment.add_filter("truncatechars", |text: String, count: usize, ellipsis: Option<String>| {
        truncate_chars(&text, count, ellipsis.as_deref().unwrap_or("..."))
    });
    environment
}

/// Compiles a template under a name.
pub(crate) fn compile(
    environment: &mut Environment<'static>,
    name: &str,
    source: &str,
) -> Result<(), String> {
    let translated = translate(source);
    if translated.lines().any(|line| line.len() > LINE_MAX) {
        return Err(format!("it has a line of more than {LINE_MAX} bytes; break it into several"));
    }
    if translated.lines().count() > LINE_MAX {
        return Err(format!("it has more than {LINE_MAX} lines; use fewer"));
    }
    environment.add_template_owned(name.to_owned(), translated).map_err(|e| explain(&e))
}

/// Renders a compiled template.
pub(crate) fn render(
    environment: &Environment<'_>,
    name: &str,
    terms: &BTreeMap<String, Value>,
) -> Result<String, String> {
    let template = environment.get_template(name).map_err(|e| explain(&e))?;
    template.render(Value::from_pairs(terms.clone())).map_err(|e| explain(&e))
}

fn explain(error: &Error) -> String {
    match error.line() {
        Some(line) => format!("{error:#} (line {line} of the template)"),
        None => format!("{error:#}"),
    }
}

/// Rewrites the tags of a template; text and comments stay.
fn translate(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut cycles = 0;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let close = match tag.as_bytes().get(1) {
            Some(b'{') => "}}",
            Some(b'%') => "%}",
            Some(b'#') => "#}",
            _ => {
                out.push('{');
                rest = &tag[1..];
                continue;
            }
        };
        // Behind the two characters that open it: `{%}` is open still.
        let Some(end) = tag[2..].find(close).map(|end| 2 + end + close.len()) else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end);
        let inner = &tag[2..tag.len() - 2];
        match close {
            "}}" => out.push_str(&format!("{{{{{}}}}}", outside_quotes(inner))),
            "%}" => match inner.trim().strip_prefix("cycle ") {
                Some(items) => {
                    cycles += 1;
                    out.push_str(&format!("{{{{ __cycle({cycles}, {}) }}}}", outside_quotes(items)));
                }
                None => out.push_str(&format!("{{%{}%}}", statement(inner))),
            },
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn statement(inner: &str) -> String {
    let trimmed = inner.trim();
    match trimmed.split_whitespace().next() {
        Some("empty") => " else ".to_owned(),
        Some("trim") => " filter trim ".to_owned(),
        Some("spaceless") => " filter __spaceless ".to_owned(),
        Some("endtrim" | "endspaceless") => " endfilter ".to_owned(),
        Some("with") => with_commas(&outside_quotes(inner)),
        Some("for") => match trimmed.split_once(" in ") {
            Some((head, list)) => format!(" {head} in __rows({}) ", outside_quotes(list)),
            None => inner.to_owned(),
        },
        _ => outside_quotes(inner),
    }
}

/// Several names of one `with` are parted by commas instead of `&`.
fn with_commas(tag: &str) -> String {
    let mut quote = None;
    let part = |c: char| {
        match quote {
            Some(open) if open == c => quote = None,
            None if matches!(c, '"' | '\'') => quote = Some(c),
            None if c == '&' => return ',',
            Some(_) | None => {}
        }
        c
    };
    tag.chars().map(part).collect()
}

/// Renames words, leaving quoted text as it is.
fn outside_quotes(expression: &str) -> String {
    let mut out = String::with_capacity(expression.len());
    let mut rest = expression;
    let mut after_pipe = false;
    while let Some(c) = rest.chars().next() {
        if c == '"' || c == '\'' {
            let end = rest[1..].find(c).map_or(rest.len(), |end| end + 2);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        if end == 0 {
            after_pipe = c == '|' || (after_pipe && c.is_whitespace());
            out.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        }
        let word = &rest[..end];
        let names: &[(&str, &str)] = if after_pipe { &FILTER_NAMES } else { &RENAMED };
        out.push_str(names.iter().find(|(theirs, _)| *theirs == word).map_or(word, |(_, ours)| ours));
        after_pipe = false;
        rest = &rest[end..];
    }
    out
}

/// Nothing and `None` are looped over zero times.
fn rows(list: Value) -> Value {
    if list.is_none() || list.is_undefined() { Value::from(Vec::<Value>::new()) } else { list }
}

fn call_method(_: &mut State<'_, '_>, value: &Value, method: &str, _: &[Value]) -> Result<Value, Error> {
    match (method, value.kind()) {
        ("items", ValueKind::Map) => {}
        ("items", ValueKind::Undefined | ValueKind::None) => return Ok(Value::from(Vec::<Value>::new())),
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    }
    let pair = |key: Value| Value::from(vec![key.clone(), value.get_item(&key).unwrap_or_default()]);
    Ok(Value::from(value.try_iter()?.map(pair).collect::<Vec<_>>()))
}

/// One item after the other, from the start again after the last; each tag on its own count.
fn cycle(state: &mut State<'_, '_>, tag: usize, items: Value) -> Result<Value, Error> {
    let items: Vec<Value> = match items.as_str() {
        Some(text) => text.chars().map(|c| Value::from(c.to_string())).collect(),
        None => rows(items).try_iter()?.collect(),
    };
    let key = format!("cycle {tag}");
    let round = state.get_temp(&key).and_then(|round| usize::try_from(round).ok()).unwrap_or_default();
    state.set_temp(&key, Value::from(round + 1));
    Ok(items.get(round % items.len().max(1)).cloned().unwrap_or_default())
}

fn join(items: &Value, between: &str) -> Result<String, Error> {
    if let Some(text) = items.as_str() {
        let chars: Vec<String> = text.chars().map(String::from).collect();
        return Ok(chars.join(between));
    }
    Ok(items.try_iter()?.map(|item| shown(&item)).collect::<Vec<_>>().join(between))
}

/// Words, with what follows an apostrophe in them, begin with a capital.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut before, mut before_that) = (' ', ' ');
    for c in text.chars() {
        let goes_on = before.is_ascii_alphabetic() || (before == '\'' && before_that.is_ascii_alphabetic());
        out.push(if goes_on { c } else { c.to_ascii_uppercase() });
        (before_that, before) = (before, c);
    }
    out
}

fn truncate_words(text: &str, count: usize, ellipsis: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.get(..count) {
        Some(some) if words.len() > count => some.join(" ") + ellipsis,
        _ => words.join(" "),
    }
}

fn truncate_chars(text: &str, count: usize, ellipsis: &str) -> String {
    if text.chars().count() <= count {
        return text.to_owned();
    }
    let start: String = text.chars().take(count.saturating_sub(3)).collect();
    let start = start.trim_end_matches([' ', '.', ',', ';', ':', '?', '!']);
    format!("{start}{ellipsis}")
}

/// Leaves out white space between the tags of a markup.
fn spaceless(html: &str) -> String {
    let mut out = String::with_capacity(html.len());
    let mut pieces = html.split('>');
    out.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        out.push('>');
        let trimmed = piece.trim_start();
        out.push_str(if trimmed.starts_with('<') { trimmed } else { piece });
    }
    out
}

fn write_value(out: &mut Output<'_>, _: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let written = match value.as_str() {
        Some(text) => out.write_str(text),
        None => out.write_str(&shown(value)),
    };
    written.map_err(Error::from)
}

/// A value as it stands in the output.
fn shown(value: &Value) -> String {
    match (value.kind(), value.as_str()) {
        (ValueKind::Undefined, _) => String::new(),
        (_, Some(text)) => text.to_owned(),
        _ => literal(value),
    }
}

/// A value as Python writes it.
fn literal(value: &Value) -> String {
    if let Some(text) = value.as_str() {
        return quoted(text);
    }
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => "None".to_owned(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_owned(),
        ValueKind::Number if value.is_integer() => value.to_string(),
        ValueKind::Number => f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<String> =
                value.try_iter().into_iter().flatten().map(|item| literal(&item)).collect();
            format!("[{}]", items.join(", "))
        }
        ValueKind::Map => {
            let member = |key: Value| {
                format!("{}: {}", literal(&key), literal(&value.get_item(&key).unwrap_or_default()))
            };
            let members: Vec<String> = value.try_iter().into_iter().flatten().map(member).collect();
            format!("{{{}}}", members.join(", "))
        }
        _ => value.to_string(),
    }
}

fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if (c as u32) < 0x20 || (0x7f..0xa0).contains(&(c as u32)) => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// The shortest digits that read back the same, with a signed exponent of two digits at least.
fn float(number: f64) -> String {
    let text = format!("{number:?}");
    let Some((digits, exponent)) = text.split_once('e') else { return text.replace("NaN", "nan") };
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rendered(source: &str, terms: &serde_json::Value) -> Result<String, String> {
        let mut environment = environment();
        compile(&mut environment, "t", source)?;
        let terms = terms.as_object().unwrap().iter();
        render(
            &environment,
            "t",
            &terms.map(|(k, v)| (k.clone(), Value::from(minijinja::value::Serde(v)))).collect(),
        )
    }

    #[expect(clippy::needless_pass_by_value, reason = "terms are written in place")]
    fn check(source: &str, terms: serde_json::Value, expected: &str) {
        assert_eq!(rendered(source, &terms).as_deref(), Ok(expected), "{source}");
    }

    #[test]
    fn tags_that_close_as_they_open_and_lines_without_end_are_refused() {
        for source in ["{%}", "{#}", "a {%} b {% if x %}", "{{}", "{%", "{#"] {
            assert!(rendered(source, &json!({})).is_err(), "{source}");
        }
        let long = format!("{}{{{{ 1 }}}}", "x".repeat(70_000));
        assert!(rendered(&long, &json!({})).unwrap_err().contains("break it"));
        assert!(rendered(&"\n".repeat(70_000), &json!({})).unwrap_err().contains("use fewer"));
        check(&"x\n".repeat(50_000), json!({}), &"x\n".repeat(50_000));
    }

    #[test]
    fn values_are_written_as_templates_expect_them() {
        let terms = json!({
            "t": "<a> {{t}}", "n": null, "yes": true, "no": false, "i": 12, "f": 1.0, "big": 1e21, "small": 1e-7,
            "l": [1, "x", "it's", null, "ü\n"], "o": {"z": null, "a": {"b": [true]}},
        });
        check("{{t}}|{{n}}|{{yes}}|{{no}}|{{i}}", terms.clone(), "<a> {{t}}|None|True|False|12");
        check("{{f}}|{{big}}|{{small}}", terms.clone(), "1.0|1e+21|1e-07");
        check("{{l}}", terms.clone(), r#"[1, 'x', "it's", None, 'ü\n']"#);
        check("{{o}}", terms.clone(), "{'z': None, 'a': {'b': [True]}}");
        check("[{{gone}}{{gone.too}}{{o.gone.too}}]", terms, "[]");
    }

    #[test]
    fn loops_count_from_nought_and_from_one() {
        let terms = json!({"l": ["a", "b"], "none": null, "d": {"k": 1, "j": "v"}});
        check(
            "{% for x in l %}{{loop.index}}{{loop.count}}{{x}}{% if loop.is_last %}!{% endif %}{% endfor %}",
            terms.clone(),
            "01a12b!",
        );
        check("{% for x in none %}{{x}}{% empty %}nothing{% endfor %}", terms.clone(), "nothing");
        check("{% for x in gone %}{{x}}{% endfor %}.", terms.clone(), ".");
        check("{% for k, v in d.items() %}{{k}}={{v}};{% endfor %}", terms.clone(), "k=1;j=v;");
        check("{% for k, v in gone.items() %}{{k}}{% endfor %}.", terms.clone(), ".");
        check("{% for k in d %}{{k}}{% endfor %}", terms, "kj");
    }

    #[test]
    fn filters_paths_and_conditions_work() {
        let terms = json!({"l": ["a", "b"], "s": "one two three", "o": {"a": [{"b": "deep"}]}, "e": []});
        check(
            "{{ l | join(', ') }} {{ l | len }} {{ l | first }} {{ l | index(1) }}",
            terms.clone(),
            "a, b 2 a b",
        );
        check("{{ gone | default(\"x\") }}{{ s | upper }}", terms.clone(), "xONE TWO THREE");
        check("{{ s | truncatewords(2) }} {{ l | repr }}", terms.clone(), "one two [...] ['a', 'b']");
        check("{% for x in l | reversed %}{{x}}{% endfor %}", terms.clone(), "ba");
        check("{{ o.a.0.b }}", terms.clone(), "deep");
        check("{% if e %}a{% elif 'a' in l %}b{% else %}c{% endif %}", terms.clone(), "b");
        check("{% trim %}  {{s}}  {% endtrim %}", terms, "one two three");
    }

    /// What the engine that the templates were written for answers to the same.
    #[test]
    fn the_seldom_used_parts_work_as_they_did() {
        let terms = json!({"s": "hello wOrld's it", "n": null, "l": [1, 2, 3], "c": ["a", "b"], "e": ""});
        check("{% for x in l %}{% cycle c %}{{x}}{% cycle 'yz' %}{% endfor %}", terms.clone(), "a1yb2za3y");
        check(
            "{% spaceless %} <a>  <b> x </b>\n </a> {% endspaceless %}|",
            terms.clone(),
            "<a><b> x </b></a>|",
        );
        check("{% with a = l.0 & b = '&' %}{{a}}{{b}}{% endwith %}|{{a}}", terms.clone(), "1&|");
        check(
            "{{ s | title }}|{{ s | truncatechars(9) }}|{{ s | upper | lower }}",
            terms.clone(),
            "Hello WOrld's It|hello...|hello world's it",
        );
        check(
            "{{ gone | default('d') }}{{ n | default('d') }}{{ e | default(5) }}{{ s | default(5) }}",
            terms.clone(),
            "dd5hello wOrld's it",
        );
        check(
            "{{ l | join('-') }} {{ l | join }} {{ l | last }} {{ n | str }}",
            terms.clone(),
            "1-2-3 123 3 None",
        );
        check("{{ l.9 }}{{ 1.50 }}{{ -3 }}", terms, "1.5-3");
    }

    #[test]
    fn white_space_comments_and_braces_stay_exact() {
        check("a\n{% if true %}\n b {% endif %}\n\n", json!({}), "a\n\n b \n\n");
        check("{# {{x}} #}{\"entity\": 1} {}", json!({}), "{\"entity\": 1} {}");
        check("{{ 'loop.index' }}", json!({}), "loop.index");
    }

    #[test]
    fn a_bad_template_is_told_with_its_line_and_an_endless_one_ends() {
        assert!(rendered("a\n{% if %}", &json!({})).unwrap_err().contains("line 2"));
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}.{% endfor %}{% endfor %}{% endfor %}";
        assert!(rendered(endless, &json!({})).unwrap_err().contains("fuel"));
    }
}
