//! What a model wrote, turned into the result that a template promises.

use serde_json::Value;

use crate::json_schema;

/// The form of a prompt's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResponseType {
    Text,
    Json,
    /// One JSON value per line.
    JsonLines,
}

/// Text and object of a prompt's answer: one of the two is empty.
pub(crate) fn result(
    form: ResponseType,
    schema: Option<&Value>,
    text: String,
) -> Result<(String, String), String> {
    match form {
        ResponseType::Text if text.trim().is_empty() => {
            Err("the model answered with an empty text".to_owned())
        }
        ResponseType::Text => Ok((text, String::new())),
        ResponseType::Json => {
            let value: Value = serde_json::from_str(fenced(&text).unwrap_or(&text).trim())
                .map_err(|e| format!("JSON parse fail: {e}"))?;
            if let Some(schema) = schema {
                json_schema::check(schema, &value)
                    .map_err(|wrong| format!("Schema validation fail: {wrong}"))?;
            }
            Ok((String::new(), value.to_string()))
        }
        ResponseType::JsonLines => {
            let fits = |value: &Value| schema.is_none_or(|schema| json_schema::check(schema, value).is_ok());
            let lines = fenced(&text).unwrap_or(&text).lines();
            let values: Vec<Value> =
                lines.filter_map(|line| serde_json::from_str(line.trim()).ok()).filter(fits).collect();
            Ok((String::new(), Value::Array(values).to_string()))
        }
    }
}

/// What stands in the first code fence, if there is one.
fn fenced(text: &str) -> Option<&str> {
    let (_, after) = text.split_once("```")?;
    let (_, body) = after.split_once('\n')?;
    Some(body.split_once("```").map_or(body, |(inside, _)| inside))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(form: ResponseType, schema: Option<&Value>, text: &str, expected: Result<(&str, &str), &str>) {
        let found = result(form, schema, text.to_owned());
        match (found, expected) {
            (Ok((text, object)), Ok(expected)) => assert_eq!((text.as_str(), object.as_str()), expected),
            (Err(reason), Err(part)) => assert!(reason.contains(part), "{reason}"),
            (found, expected) => panic!("{found:?} is not {expected:?}"),
        }
    }

    #[test]
    fn a_text_stays_and_an_empty_one_is_an_error() {
        check(ResponseType::Text, None, "a ```b``` c", Ok(("a ```b``` c", "")));
        check(ResponseType::Text, None, " \n", Err("empty"));
    }

    #[test]
    fn json_is_taken_from_the_first_fence_and_checked() {
        let schema = json!({"type": "object", "required": ["a"]});
        let schema = Some(&schema);
        check(ResponseType::Json, schema, "Sure:\n```json\n{\"a\": 1}\n```\n", Ok(("", "{\"a\":1}")));
        check(ResponseType::Json, schema, "{\"b\": 1}", Err("Schema validation fail: $: 'a' is missing"));
        check(ResponseType::Json, schema, "I cannot", Err("JSON parse fail"));
    }

    #[test]
    fn bad_lines_are_skipped() {
        let schema = json!({"type": "object"});
        let text = "```jsonl\n{\"a\": 1}\nwhat?\n\n[1]\n{\"b\": 2}\n```";
        check(ResponseType::JsonLines, Some(&schema), text, Ok(("", "[{\"a\":1},{\"b\":2}]")));
        check(ResponseType::JsonLines, None, "none", Ok(("", "[]")));
    }
}
