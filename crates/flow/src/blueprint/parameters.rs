//! A flow's parameters: what the caller gave, what another parameter passes on, what the type says.

use serde_json::{Map, Value};

use super::Error;

/// What a blueprint says about one of its parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Declared {
    /// The parameter's name.
    pub name: String,
    /// Key of its `parameter-type`.
    pub type_name: Option<String>,
    /// The parameter whose value it takes when the caller gives none.
    pub controlled_by: Option<String>,
}

/// What matters of a `parameter-type` record; the rest is for people.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ParameterType {
    default: Option<String>,
    required: bool,
}

impl ParameterType {
    /// Reads a record leniently: what cannot be read counts as an empty definition.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let Ok(Value::Object(record)) = serde_json::from_str(text) else { return Self::default() };
        let default = record.get("default").and_then(|value| stringify(value).ok().flatten());
        let required = match record.get("required") {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Number(n)) => n.as_f64() != Some(0.0),
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Bool(true) | Value::Array(_) | Value::Object(_)) => true,
        };
        Self { default, required }
    }
}

/// Name and value, in order.
pub type Parameters = Vec<(String, String)>;

/// Resolves a flow's parameters: the caller's value, else the value of the controlling parameter, else the type's default.
/// What the caller gave beyond the declared comes last.
///
/// # Errors
/// A required parameter without a value, or a value that is no scalar.
pub fn resolve(
    declared: &[Declared],
    given: &Map<String, Value>,
    type_of: impl Fn(&str) -> Option<ParameterType>,
) -> Result<Parameters, Error> {
    let mut resolver = Resolver { declared, given, type_of };
    let mut resolved = Parameters::new();
    for parameter in declared {
        if let Some(value) = resolver.value(&parameter.name)? {
            resolved.push((parameter.name.clone(), value));
        } else if resolver.type_of(parameter).required {
            return Err(Error::Required { name: parameter.name.clone() });
        }
    }
    for (name, value) in given {
        if resolved.iter().all(|(known, _)| known != name)
            && let Some(value) = scalar(name, value)?
        {
            resolved.push((name.clone(), value));
        }
    }
    Ok(resolved)
}

struct Resolver<'a, F> {
    declared: &'a [Declared],
    given: &'a Map<String, Value>,
    type_of: F,
}

impl<F: Fn(&str) -> Option<ParameterType>> Resolver<'_, F> {
    /// Chains end: reading a blueprint refuses cycles.
    fn value(&mut self, name: &str) -> Result<Option<String>, Error> {
        if let Some(value) = self.given.get(name)
            && let Some(text) = scalar(name, value)?
        {
            return Ok(Some(text));
        }
        let Some(parameter) = self.declared.iter().find(|p| p.name == name) else { return Ok(None) };
        if let Some(controller) = &parameter.controlled_by
            && let Some(value) = self.value(controller)?
        {
            return Ok(Some(value));
        }
        Ok(self.type_of(parameter).default)
    }

    fn type_of(&self, parameter: &Declared) -> ParameterType {
        parameter.type_name.as_deref().and_then(&self.type_of).unwrap_or_default()
    }
}

/// The names along a circle of `controlled-by`, if there is one.
pub(super) fn circle(declared: &[Declared]) -> Option<Vec<String>> {
    declared.iter().find_map(|start| {
        let mut path = vec![start.name.clone()];
        let mut at = start;
        while let Some(next) = &at.controlled_by {
            if *next == start.name {
                path.push(next.clone());
                return Some(path);
            }
            if path.contains(next) {
                return None;
            }
            path.push(next.clone());
            at = declared.iter().find(|p| p.name == *next)?;
        }
        None
    })
}

fn scalar(name: &str, value: &Value) -> Result<Option<String>, Error> {
    stringify(value).map_err(|found| Error::ParameterValue { name: name.to_owned(), found })
}

/// A scalar as text; `null` is "not given".
fn stringify(value: &Value) -> Result<Option<String>, &'static str> {
    match value {
        Value::Null => Ok(None),
        Value::Bool(b) => Ok(Some(b.to_string())),
        Value::Number(n) => Ok(Some(python_number(&n.to_string()))),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Array(_) => Err("a list"),
        Value::Object(_) => Err("an object"),
    }
}

/// Peers print exponents with a sign and two digits: `1e-07`, `1e+16`.
fn python_number(text: &str) -> String {
    let Some((mantissa, exponent)) = text.split_once('e') else { return text.to_owned() };
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', exponent.trim_start_matches('+')),
    };
    format!("{mantissa}e{sign}{digits:0>2}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn declared(name: &str, type_name: &str, controlled_by: &str) -> Declared {
        let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        Declared { name: name.to_owned(), type_name: text(type_name), controlled_by: text(controlled_by) }
    }

    fn check(declared: &[Declared], given: &Value, expected: Result<&[(&str, &str)], &str>) {
        let types = |name: &str| match name {
            "model" => Some(ParameterType::read(r#"{"default": "gpt-x", "required": true}"#)),
            "size" => Some(ParameterType::read(r#"{"default": 2000}"#)),
            "flag" => Some(ParameterType::read(r#"{"default": true}"#)),
            "must" => Some(ParameterType::read(r#"{"required": true}"#)),
            "broken" => Some(ParameterType::read("not json")),
            _ => None,
        };
        let found = resolve(declared, given.as_object().unwrap(), types).map_err(|e| e.to_string());
        let expected = expected
            .map(|e| e.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<Vec<_>>())
            .map_err(str::to_owned);
        assert_eq!(found, expected);
    }

    #[test]
    fn values_come_from_the_caller_then_the_controller_then_the_type() {
        let rag = [declared("llm", "model", ""), declared("rag", "model", "llm")];
        check(&rag, &json!({}), Ok(&[("llm", "gpt-x"), ("rag", "gpt-x")]));
        check(&rag, &json!({"llm": "a"}), Ok(&[("llm", "a"), ("rag", "a")]));
        check(&rag, &json!({"llm": "a", "rag": "b"}), Ok(&[("llm", "a"), ("rag", "b")]));
        let chain = [declared("c", "", "b"), declared("b", "", "a"), declared("a", "size", "")];
        check(&chain, &json!({}), Ok(&[("c", "2000"), ("b", "2000"), ("a", "2000")]));
        check(&[declared("x", "", "extra")], &json!({"extra": 1}), Ok(&[("x", "1"), ("extra", "1")]));
    }

    #[test]
    fn scalars_become_text_and_null_means_not_given() {
        let given =
            json!({"a": true, "b": null, "c": 0.5, "d": 2000.0, "e": 1e-7, "f": 7, "g": 1e16, "h": ""});
        check(
            &[],
            &given,
            Ok(&[
                ("a", "true"),
                ("c", "0.5"),
                ("d", "2000.0"),
                ("e", "1e-07"),
                ("f", "7"),
                ("g", "1e+16"),
                ("h", ""),
            ]),
        );
        check(&[declared("p", "flag", "")], &json!({"p": null}), Ok(&[("p", "true")]));
        check(&[], &json!({"x": [1]}), Err("parameter 'x' must be text, a number or a boolean, not a list"));
    }

    #[test]
    fn a_required_parameter_without_a_value_is_named() {
        let expected = "Required parameter 'p' not provided and has no default";
        check(&[declared("p", "must", "")], &json!({}), Err(expected));
        check(&[declared("p", "must", "")], &json!({"p": "v"}), Ok(&[("p", "v")]));
        check(&[declared("p", "broken", ""), declared("q", "none", "")], &json!({}), Ok(&[]));
    }

    #[test]
    fn circles_are_found() {
        let names = circle(&[declared("a", "", "b"), declared("b", "", "c"), declared("c", "", "b")]);
        assert_eq!(names.unwrap(), ["b", "c", "b"]);
        assert_eq!(circle(&[declared("a", "", "b"), declared("b", "", "")]), None);
        assert_eq!(circle(&[declared("a", "", "a")]).unwrap(), ["a", "a"]);
    }
}
