//! What a model wrote, turned into the result that a template promises.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::repair;
use crate::json_schema;

/// The form of a prompt's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
            let value = repair::value(&text).map_err(|e| format!("JSON parse fail: {e}"))?;
            let value = unwrapped(schema, value);
            if let Some(schema) = schema {
                json_schema::check(schema, &value)
                    .map_err(|wrong| format!("Schema validation fail: {wrong}"))?;
            }
            Ok((String::new(), value.to_string()))
        }
        ResponseType::JsonLines => {
            let fits = |value: &Value| schema.is_none_or(|schema| json_schema::check(schema, value).is_ok());
            Ok((String::new(), Value::Array(repair::values(&text, fits)).to_string()))
        }
    }
}

/// The member that holds a list for providers that want an object at the root.
const ITEMS: &str = "items";

/// A schema that a provider can enforce: an object is itself, a list is the one member of an object.
pub(crate) fn enforceable(schema: &Value) -> Option<serde_json::Map<String, Value>> {
    if json_schema::is_strict(schema) {
        return schema.as_object().cloned();
    }
    let wrapped = serde_json::json!({
        "type": "object", "properties": {ITEMS: schema}, "required": [ITEMS], "additionalProperties": false,
    });
    let is_list = schema.get("type").and_then(Value::as_str) == Some("array");
    wrapped.as_object().filter(|_| is_list && json_schema::is_strict(&wrapped)).cloned()
}

/// The list in an object that was made for the provider, if the schema wants a list.
fn unwrapped(schema: Option<&Value>, value: Value) -> Value {
    let wants_list = schema.and_then(|schema| schema.get("type")).and_then(Value::as_str) == Some("array");
    match value {
        Value::Object(mut members) if wants_list && members.len() == 1 && members.contains_key(ITEMS) => {
            members.remove(ITEMS).unwrap_or_default()
        }
        value => value,
    }
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
    fn a_list_is_asked_for_in_an_object_and_taken_out_of_it() {
        let schema = json!({"type": "array", "items": {"type": "string"}});
        let asked = enforceable(&schema).unwrap();
        assert_eq!(asked["properties"]["items"], schema);
        check(ResponseType::Json, Some(&schema), "{\"items\": [\"a\"]}", Ok(("", "[\"a\"]")));
        check(ResponseType::Json, Some(&schema), "[\"a\"]", Ok(("", "[\"a\"]")));
        assert_eq!(enforceable(&json!({"type": "array", "items": {"type": "string"}, "minItems": 0})), None);
        assert_eq!(enforceable(&json!({"type": "object"})), None);
    }

    #[test]
    fn bad_lines_are_skipped() {
        let schema = json!({"type": "object"});
        let text = "```jsonl\n{\"a\": 1}\nwhat?\n\n[1]\n{\"b\": 2}\n```";
        check(ResponseType::JsonLines, Some(&schema), text, Ok(("", "[{\"a\":1},{\"b\":2}]")));
        check(ResponseType::JsonLines, None, "none", Ok(("", "[]")));
    }
}
