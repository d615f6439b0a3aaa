//! A flow's parameters: what the caller gave, what another parameter passes on, what the type says, and whether the type
//! allows it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use sluice_schema::ceilings;

use super::{Error, shown};

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
    kind: Kind,
    least: Option<f64>,
    most: Option<f64>,
    suggested: Vec<String>,
}

/// What a text must read as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Any,
    Whole,
    Number,
    Boolean,
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
        let kind = match record.get("type").and_then(Value::as_str) {
            Some("integer") => Kind::Whole,
            Some("number" | "float") => Kind::Number,
            Some("boolean") => Kind::Boolean,
            _ => Kind::Any,
        };
        let bound = |name: &str| record.get(name).and_then(number);
        let least = [bound("min"), bound("minimum")].into_iter().flatten().reduce(f64::max);
        let most = [bound("max"), bound("maximum")].into_iter().flatten().reduce(f64::min);
        let choices = record.get("enum").and_then(Value::as_array).into_iter().flatten();
        let suggested =
            choices.filter_map(|choice| stringify(choice.get("id").unwrap_or(choice)).ok().flatten());
        Self { default, required, kind, least, most, suggested: suggested.collect() }
    }

    fn allows(&self, text: &str) -> bool {
        let number = text.parse::<f64>().ok().filter(|n| n.is_finite());
        let within = number.is_none_or(|n| {
            self.least.is_none_or(|least| n >= least) && self.most.is_none_or(|most| n <= most)
        });
        match self.kind {
            Kind::Any => true,
            Kind::Whole => text.parse::<i128>().is_ok() && within,
            Kind::Number => number.is_some() && within,
            Kind::Boolean => ["true", "false"].iter().any(|word| text.eq_ignore_ascii_case(word)),
        }
    }

    fn wanted(&self) -> String {
        let what = match self.kind {
            Kind::Any => return "text".to_owned(),
            Kind::Boolean => return "true or false".to_owned(),
            Kind::Whole => "a whole number",
            Kind::Number => "a number",
        };
        match (self.least, self.most) {
            (None, None) => what.to_owned(),
            (Some(least), None) => format!("{what}, at least {least}"),
            (None, Some(most)) => format!("{what}, at most {most}"),
            (Some(least), Some(most)) => format!("{what} from {least} to {most}"),
        }
    }
}

fn number(value: &Value) -> Option<f64> {
    let number = value.as_f64().or_else(|| value.as_str()?.parse().ok());
    number.filter(|n| n.is_finite())
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
    let resolver = Resolver { by_name: index(declared), types: types(declared, type_of), given };
    let mut resolved = Parameters::new();
    let mut bytes = 0;
    for parameter in declared {
        if let Some(value) = resolver.value(parameter)? {
            // Many may have one long default.
            bytes += parameter.name.len() + value.len();
            if bytes > ceilings::PARAMETERS_BYTES_MAX {
                return Err(Error::Parameters { bytes_max: ceilings::PARAMETERS_BYTES_MAX });
            }
            resolved.push((parameter.name.clone(), value));
        } else if resolver.type_of(parameter).is_some_and(|kind| kind.required) {
            return Err(Error::Required { name: parameter.name.clone() });
        }
    }
    let known: BTreeSet<String> = resolved.iter().map(|(name, _)| name.clone()).collect();
    for (name, value) in given.iter().filter(|(name, _)| !known.contains(*name)) {
        if let Some(value) = scalar(name, value)? {
            resolved.push((name.clone(), value));
        }
    }
    Ok(resolved)
}

/// Checks resolved parameters against their types; what may be wrong but need not be comes back as warnings.
///
/// # Errors
/// A value that its type rules out.
pub fn check(
    declared: &[Declared],
    resolved: &Parameters,
    type_of: impl Fn(&str) -> Option<ParameterType>,
) -> Result<Vec<String>, Error> {
    let mut warnings = Vec::new();
    let (by_name, types) = (index(declared), types(declared, type_of));
    for (name, value) in resolved {
        let Some(parameter) = by_name.get(name.as_str()) else {
            let name = shown(name);
            warnings.push(format!(
                "parameter '{name}' is not declared by the blueprint; it is passed on, but may have no effect"
            ));
            continue;
        };
        let Some(type_name) = &parameter.type_name else { continue };
        let Some(kind) = types.get(type_name.as_str()) else { continue };
        if !kind.allows(value) {
            let (name, type_name) = (name.clone(), type_name.clone());
            return Err(Error::ParameterWanted {
                name,
                value: shown(value),
                type_name,
                wanted: kind.wanted(),
            });
        }
        if !kind.suggested.is_empty() && !kind.suggested.contains(value) {
            let value = shown(value);
            warnings.push(format!(
                "parameter '{name}' is '{value}', which is not among the values that its type '{type_name}' suggests"
            ));
        }
    }
    Ok(warnings)
}

type ByName<'a> = BTreeMap<&'a str, &'a Declared>;

fn index(declared: &[Declared]) -> ByName<'_> {
    declared.iter().map(|parameter| (parameter.name.as_str(), parameter)).collect()
}

/// The types of what is declared, each read once.
fn types(
    declared: &[Declared],
    type_of: impl Fn(&str) -> Option<ParameterType>,
) -> BTreeMap<&str, ParameterType> {
    let names: BTreeSet<&str> =
        declared.iter().filter_map(|parameter| parameter.type_name.as_deref()).collect();
    names.into_iter().filter_map(|name| Some((name, type_of(name)?))).collect()
}

struct Resolver<'a> {
    by_name: ByName<'a>,
    types: BTreeMap<&'a str, ParameterType>,
    given: &'a Map<String, Value>,
}

impl Resolver<'_> {
    /// The caller's value of a parameter or of the nearest that controls it, else the default of the furthest that has one.
    /// Chains end: reading a blueprint refuses circles.
    fn value(&self, parameter: &Declared) -> Result<Option<String>, Error> {
        let (mut chain, mut at) = (Vec::new(), Some(parameter));
        while let Some(parameter) = at {
            if let Some(text) = self.given(&parameter.name)? {
                return Ok(Some(text));
            }
            chain.push(parameter);
            let Some(controller) = &parameter.controlled_by else { break };
            at = self.by_name.get(controller.as_str()).copied();
            if at.is_none()
                && let Some(text) = self.given(controller)?
            {
                return Ok(Some(text));
            }
        }
        Ok(chain.into_iter().rev().find_map(|parameter| self.type_of(parameter)?.default.clone()))
    }

    fn given(&self, name: &str) -> Result<Option<String>, Error> {
        self.given.get(name).map_or(Ok(None), |value| scalar(name, value))
    }

    fn type_of(&self, parameter: &Declared) -> Option<&ParameterType> {
        self.types.get(parameter.type_name.as_deref()?)
    }
}

/// The names along a circle of `controlled-by`, if there is one. Each parameter is walked over once.
pub(super) fn circle(declared: &[Declared]) -> Option<Vec<String>> {
    let by_name = index(declared);
    let mut walked = BTreeMap::new();
    for (walk, start) in declared.iter().enumerate() {
        let (mut path, mut at) = (Vec::new(), Some(start));
        while let Some(parameter) = at {
            let name = parameter.name.as_str();
            match walked.insert(name, walk) {
                None => path.push(name),
                Some(earlier) if earlier == walk => {
                    let begin = path.iter().position(|on_path| *on_path == name)?;
                    let circle = path[begin..].iter().chain([&name]);
                    return Some(circle.map(|name| (*name).to_owned()).collect());
                }
                Some(_) => break,
            }
            at = parameter.controlled_by.as_deref().and_then(|next| by_name.get(next).copied());
        }
    }
    None
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
    fn a_value_must_be_what_its_type_says() {
        let check = |kind: &str, value: &str, expected: Result<usize, &str>| {
            let declared = [declared("p", "t", "")];
            let resolved = vec![("p".to_owned(), value.to_owned())];
            let found = super::check(&declared, &resolved, |_| Some(ParameterType::read(kind)));
            let found = found.map(|warnings| warnings.len()).map_err(|e| e.to_string());
            let expected = expected.map_err(|wanted| {
                format!("parameter 'p' is '{value}', but must be {wanted}; its type 't' says so")
            });
            assert_eq!(found, expected, "{kind} {value}");
        };
        let whole = r#"{"type": "integer", "min": 0, "max": 32768}"#;
        check(whole, "2000", Ok(0));
        for bad in ["abc", "", "2000.5", "-1", "32769", "1e3"] {
            check(whole, bad, Err("a whole number from 0 to 32768"));
        }
        let float = r#"{"type": "float", "minimum": "0"}"#;
        check(float, "0.5", Ok(0));
        for bad in ["-0.1", "nan", "inf", "warm"] {
            check(float, bad, Err("a number, at least 0"));
        }
        check(r#"{"type": "number", "maximum": 1}"#, "1.5", Err("a number, at most 1"));
        check(r#"{"type": "number", "maximum": "much"}"#, "1e9", Ok(0));
        check(r#"{"type": "boolean"}"#, "True", Ok(0));
        check(r#"{"type": "boolean"}"#, "maybe", Err("true or false"));
        check(r#"{"type": "string", "max": 3}"#, "7 of 9", Ok(0));
        check(r#"{"enum": [{"id": "a"}, 2]}"#, "2", Ok(0));
        check(r#"{"enum": [{"id": "a"}, 2]}"#, "b", Ok(1));
        check("not json", "x", Ok(0));
    }

    #[test]
    fn circles_are_found() {
        let names = circle(&[declared("a", "", "b"), declared("b", "", "c"), declared("c", "", "b")]);
        assert_eq!(names.unwrap(), ["b", "c", "b"]);
        assert_eq!(circle(&[declared("a", "", "b"), declared("b", "", "")]), None);
        assert_eq!(circle(&[declared("a", "", "a")]).unwrap(), ["a", "a"]);
    }

    #[test]
    fn many_parameters_with_one_long_default_are_refused_before_they_are_made() {
        let many: Vec<_> = (0..100).map(|number| declared(&format!("p{number}"), "long", "")).collect();
        let long = format!(r#"{{"default": "{}"}}"#, "x".repeat(10_000));
        let found = resolve(&many, &Map::new(), |_| Some(ParameterType::read(&long)));
        assert!(found.unwrap_err().to_string().contains("262144 bytes"));
    }
}
