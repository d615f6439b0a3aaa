//! Checks JSON values against the part of JSON Schema that prompt records use, and tells which schemas a provider can
//! enforce by itself.

use serde_json::Value;

/// Nesting of schemas that is followed.
const DEPTH_MAX: usize = 64;

/// Members whose presence makes a schema unfit for strict structured output.
const UNENFORCEABLE: [&str; 11] = [
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
];

/// What is wrong with a value, the path first; `Ok` when the schema allows it.
pub(crate) fn check(schema: &Value, value: &Value) -> Result<(), String> {
    check_at(schema, value, "$", DEPTH_MAX)
}

fn check_at(schema: &Value, value: &Value, path: &str, depth: usize) -> Result<(), String> {
    let depth = depth.checked_sub(1).ok_or_else(|| format!("{path}: the schema is nested too deeply"))?;
    let Value::Object(rules) = schema else {
        return if *schema == Value::Bool(false) { Err(format!("{path}: not allowed here")) } else { Ok(()) };
    };
    if let Some(wanted) = rules.get("type")
        && !type_names(wanted).any(|name| has_type(value, name))
    {
        return Err(format!("{path}: is not of type {wanted}"));
    }
    if let Some(Value::Array(allowed)) = rules.get("enum")
        && !allowed.contains(value)
    {
        return Err(format!("{path}: is none of {}", Value::Array(allowed.clone())));
    }
    if let Some(only) = rules.get("const")
        && only != value
    {
        return Err(format!("{path}: is not {only}"));
    }
    check_alternatives(rules, value, path, depth)?;
    check_bounds(rules, value, path)?;
    match value {
        Value::Object(members) => {
            for name in strings(rules.get("required")) {
                if !members.contains_key(name) {
                    return Err(format!("{path}: '{name}' is missing"));
                }
            }
            let known = rules.get("properties").and_then(Value::as_object);
            for (name, member) in members {
                let path = format!("{path}.{name}");
                let rule =
                    known.and_then(|known| known.get(name)).or_else(|| rules.get("additionalProperties"));
                rule.map_or(Ok(()), |rule| check_at(rule, member, &path, depth))?;
            }
        }
        Value::Array(items) => {
            if let Some(rule) = rules.get("items") {
                for (at, item) in items.iter().enumerate() {
                    check_at(rule, item, &format!("{path}[{at}]"), depth)?;
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    Ok(())
}

type Rules = serde_json::Map<String, Value>;

fn check_alternatives(rules: &Rules, value: &Value, path: &str, depth: usize) -> Result<(), String> {
    let fitting = |name: &str| -> Option<(usize, usize)> {
        let schemas = rules.get(name)?.as_array()?;
        let fits = schemas.iter().filter(|schema| check_at(schema, value, path, depth).is_ok()).count();
        Some((fits, schemas.len()))
    };
    if fitting("allOf").is_some_and(|(fits, all)| fits < all) {
        return Err(format!("{path}: does not fit all of what it should"));
    }
    if fitting("anyOf").is_some_and(|(fits, _)| fits == 0) {
        return Err(format!("{path}: fits none of what it could be"));
    }
    if fitting("oneOf").is_some_and(|(fits, _)| fits != 1) {
        return Err(format!("{path}: does not fit exactly one of what it could be"));
    }
    Ok(())
}

fn check_bounds(rules: &Rules, value: &Value, path: &str) -> Result<(), String> {
    let bound = |name: &str| rules.get(name).and_then(Value::as_f64);
    let (size, least, most) = match value {
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            if bound("exclusiveMinimum").is_some_and(|least| number <= least)
                || bound("exclusiveMaximum").is_some_and(|most| number >= most)
            {
                return Err(format!("{path}: {number} is out of bounds"));
            }
            (number, "minimum", "maximum")
        }
        Value::String(text) => (text.chars().count() as f64, "minLength", "maxLength"),
        Value::Array(items) => (items.len() as f64, "minItems", "maxItems"),
        Value::Object(members) => (members.len() as f64, "minProperties", "maxProperties"),
        Value::Null | Value::Bool(_) => return Ok(()),
    };
    if bound(least).is_some_and(|least| size < least) || bound(most).is_some_and(|most| size > most) {
        return Err(format!("{path}: {size} is out of bounds"));
    }
    Ok(())
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => true,
    }
}

fn type_names(wanted: &Value) -> impl Iterator<Item = &str> {
    wanted.as_str().into_iter().chain(strings(Some(wanted)))
}

fn strings(list: Option<&Value>) -> impl Iterator<Item = &str> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// Whether a provider can enforce the schema: the root is an object, every object closes and requires all its members,
/// and nothing else is bounded.
pub(crate) fn is_strict(schema: &Value) -> bool {
    schema.get("type").and_then(Value::as_str) == Some("object") && is_strict_below(schema, DEPTH_MAX)
}

fn is_strict_below(schema: &Value, depth: usize) -> bool {
    let (Value::Object(rules), Some(depth)) = (schema, depth.checked_sub(1)) else { return false };
    if UNENFORCEABLE.iter().any(|name| rules.contains_key(*name)) {
        return false;
    }
    if rules.get("type").and_then(Value::as_str) == Some("object") {
        let Some(members) = rules.get("properties").and_then(Value::as_object) else { return false };
        let closed = rules.get("additionalProperties") == Some(&Value::Bool(false));
        let required: Vec<&str> = strings(rules.get("required")).collect();
        if !closed
            || !members.keys().all(|name| required.contains(&name.as_str()))
            || !members.values().all(|member| is_strict_below(member, depth))
        {
            return false;
        }
    }
    let alternatives =
        ["oneOf", "anyOf", "allOf"].iter().filter_map(|name| rules.get(*name)?.as_array()).flatten();
    rules.get("items").into_iter().chain(alternatives).all(|schema| is_strict_below(schema, depth))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_does_not_fit_is_named_by_its_path() {
        let schema = json!({
            "type": "object", "required": ["name"], "additionalProperties": false,
            "properties": {"name": {"type": "string", "minLength": 1}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}}},
        });
        assert_eq!(check(&schema, &json!({"name": "x", "tags": ["a"]})), Ok(()));
        for (value, wrong) in [
            (json!([]), "$: is not of type"),
            (json!({}), "$: 'name' is missing"),
            (json!({"name": 1}), "$.name: is not of type"),
            (json!({"name": ""}), "$.name: 0 is out of bounds"),
            (json!({"name": "x", "tags": ["a", "c"]}), "$.tags[1]: is none of"),
            (json!({"name": "x", "more": 1}), "$.more: not allowed"),
        ] {
            let said = check(&schema, &value).unwrap_err();
            assert!(said.starts_with(wrong), "{value}: {said}");
        }
        assert!(check(&json!({"oneOf": [{"type": "null"}, {"type": "integer"}]}), &json!(1.5)).is_err());
        assert!(check(&json!({"type": ["null", "integer"]}), &json!(2.0)).is_ok());
    }

    #[test]
    fn only_closed_objects_without_bounds_are_strict() {
        let strict = json!({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": false});
        assert!(is_strict(&strict));
        for (pointer, value) in [
            ("/properties/a", json!({"type": "string", "maxLength": 3})),
            ("/required", json!([])),
            ("/additionalProperties", json!(true)),
        ] {
            let mut changed = strict.clone();
            *changed.pointer_mut(pointer).unwrap() = value;
            assert!(!is_strict(&changed), "{changed}");
        }
        assert!(!is_strict(&json!({"type": "array", "items": strict})));
    }
}
