//! Text with `{placeholders}`, filled in one pass: a value is never looked at again.

/// Bytes of a text once its placeholders are filled.
pub(crate) const FILLED_BYTES_MAX: usize = 1024 * 1024;

/// Why a text cannot be filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unfilled {
    /// A placeholder that nothing fills.
    Leftover(String),
    /// More than [`FILLED_BYTES_MAX`] bytes come of it.
    TooLong,
}

/// Fills every placeholder that `value_of` knows. Braces around anything that is not a name are plain text.
pub(crate) fn render<'a>(
    template: &'a str,
    value_of: impl Fn(&str) -> Option<&'a str>,
) -> Result<String, Unfilled> {
    let mut out = String::with_capacity(template.len() + 16);
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        let (before, from_open) = rest.split_at(open);
        out.push_str(before);
        let inner = from_open[1..].split(['{', '}']).next().unwrap_or_default();
        let closed = from_open[1 + inner.len()..].starts_with('}');
        match value_of(inner).filter(|_| closed) {
            Some(value) => {
                if out.len() + value.len() > FILLED_BYTES_MAX {
                    return Err(Unfilled::TooLong);
                }
                out.push_str(value);
                rest = &from_open[inner.len() + 2..];
            }
            None if closed && is_name(inner) => return Err(Unfilled::Leftover(inner.to_owned())),
            None => {
                out.push('{');
                rest = &from_open[1..];
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// The names between braces in a template.
pub(crate) fn placeholders(template: &str) -> impl Iterator<Item = &str> {
    template
        .split('{')
        .skip(1)
        .filter_map(|rest| rest.split_once('}'))
        .map(|(name, _)| name)
        .filter(|n| is_name(n))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_filled_in_one_pass() {
        fn values(name: &str) -> Option<&'static str> {
            match name {
                "id" => Some("f1"),
                "model" => Some("{id}"),
                "with space" => Some("ok"),
                _ => None,
            }
        }
        let check = |template: &'static str, expected: Result<&str, &str>| {
            let expected = expected.map(str::to_owned).map_err(|n| Unfilled::Leftover(n.to_owned()));
            assert_eq!(render(template, values), expected, "{template}");
        };
        check("a:{id}", Ok("a:f1"));
        check("{id}{id}", Ok("f1f1"));
        check("{model}", Ok("{id}"));
        check("{with space}", Ok("ok"));
        check("{{id}}", Ok("{f1}"));
        check("a:{nope}", Err("nope"));
        check(r#"{"json": 1}"#, Ok(r#"{"json": 1}"#));
        check("open {id", Ok("open {id"));
        check("}{", Ok("}{"));
    }

    #[test]
    fn a_text_that_grows_without_measure_is_refused_before_it_is_built() {
        let value = "v".repeat(64 * 1024);
        let template = "{p}".repeat(300_000);
        let filled = render(&template, |_| Some(&value));
        assert_eq!(filled, Err(Unfilled::TooLong));
        assert_eq!(render("{p}{p}", |_| Some(&value)).map(|text| text.len()), Ok(2 * value.len()));
    }

    #[test]
    fn placeholders_are_listed() {
        assert_eq!(placeholders("{a}:{b-c} {\"x\": {d}").collect::<Vec<_>>(), ["a", "b-c", "d"]);
    }
}
