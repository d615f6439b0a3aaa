//! One member of a body in both dialects: what it holds, when it must be there, when it is shown. The tables of
//! [`super`] are made of these.

use serde_json::{Map, Number, Value};

use super::{ApiError, term};

/// What a member holds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// A text.
    Text,
    /// A text; a number or truth value is taken as its text.
    TextLike,
    /// A whole number; its decimal text is taken too.
    Int,
    /// A number.
    Number,
    /// True or false.
    Bool,
    /// A list of texts.
    Texts,
    /// A list of numbers.
    Numbers,
    /// A list of any JSON, the same in both dialects.
    List,
    /// A text that holds base64.
    Base64,
    /// Any JSON, the same in both dialects.
    Json,
    /// Any JSON outside, its JSON text on the bus.
    JsonText,
    /// An object of any JSON; its JSON text is taken too.
    Object,
    /// An object of texts.
    TextMap,
    /// An RDF term.
    Term,
    /// A list of RDF terms, some of them null.
    Terms,
    /// A list of triples.
    Triples,
    /// An object of such members.
    Record(&'static [Field]),
    /// A list of objects of such members.
    Records(&'static [Field]),
}

/// What a missing (or null) member of a question means.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Missing {
    /// The default of the bus message.
    Default,
    /// The caller's mistake.
    Refused,
    /// This number.
    Int(i64),
    /// This text.
    Text(&'static str),
}

/// Which values of an answer are shown.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shown {
    /// All; for lists and objects, null as empty.
    Always,
    /// All but null.
    Set,
    /// All but null, zero, false and what is empty.
    Filled,
}

/// One member.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    api: &'static str,
    /// The name on the bus where it is not the API name with `_` for `-`.
    bus: Option<&'static str>,
    shape: Shape,
    missing: Missing,
    shown: Shown,
}

/// A member that may be missing in a question and is always shown in an answer.
pub(crate) const fn field(api: &'static str, shape: Shape) -> Field {
    Field { api, bus: None, shape, missing: Missing::Default, shown: Shown::Always }
}

/// A text.
pub(crate) const fn text(api: &'static str) -> Field {
    field(api, Shape::Text)
}

/// A whole number.
pub(crate) const fn int(api: &'static str) -> Field {
    field(api, Shape::Int)
}

/// True or false.
pub(crate) const fn flag(api: &'static str) -> Field {
    field(api, Shape::Bool)
}

impl Field {
    /// Where values go in a question: the way to the member, and to each one within it.
    pub(crate) fn paths(&self) -> Vec<Vec<&'static str>> {
        let within: &[Self] = match self.shape {
            Shape::Record(fields) | Shape::Records(fields) => fields,
            _ => &[],
        };
        let deeper = within.iter().flat_map(Self::paths);
        let deeper = deeper.map(|path| [&[self.api], &path[..]].concat());
        std::iter::once(vec![self.api]).chain(deeper).collect()
    }

    pub(crate) const fn on_bus(mut self, bus: &'static str) -> Self {
        self.bus = Some(bus);
        self
    }

    pub(crate) const fn required(mut self) -> Self {
        self.missing = Missing::Refused;
        self
    }

    pub(crate) const fn or_int(mut self, default: i64) -> Self {
        self.missing = Missing::Int(default);
        self
    }

    pub(crate) const fn or_text(mut self, default: &'static str) -> Self {
        self.missing = Missing::Text(default);
        self
    }

    pub(crate) const fn if_set(mut self) -> Self {
        self.shown = Shown::Set;
        self
    }

    pub(crate) const fn if_filled(mut self) -> Self {
        self.shown = Shown::Filled;
        self
    }

    pub(crate) fn bus_name(&self) -> String {
        self.bus.map_or_else(|| self.api.replace('-', "_"), str::to_owned)
    }
}

/// Members of a question, checked and renamed for the bus. What the table does not know is left out.
pub(crate) fn to_bus(fields: &[Field], mut body: Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    let mut out = Map::new();
    for field in fields {
        let given = body.remove(field.api).filter(|value| !value.is_null());
        let value = match (given, field.missing) {
            (Some(value), _) => question(field.shape, value).map_err(|e| e.under(field.api))?,
            (None, Missing::Default) => continue,
            (None, Missing::Refused) => return Err(ApiError::missing(field.api)),
            (None, Missing::Int(default)) => default.into(),
            (None, Missing::Text(default)) => default.into(),
        };
        out.insert(field.bus_name(), value);
    }
    Ok(out)
}

/// Members of an answer, renamed for the API. What the table does not know is left out.
pub(crate) fn to_api(fields: &[Field], body: &mut Map<String, Value>) -> Map<String, Value> {
    let mut out = Map::new();
    for field in fields {
        let value = answer(field.shape, body.remove(&field.bus_name()).unwrap_or_default());
        let show = match field.shown {
            Shown::Always => true,
            Shown::Set => !value.is_null(),
            Shown::Filled => is_filled(&value),
        };
        if show {
            out.insert(field.api.to_owned(), value);
        }
    }
    out
}

/// Whether a value is more than null, zero, false, or an empty text, list or object.
pub(crate) fn is_filled(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}

fn question(shape: Shape, value: Value) -> Result<Value, ApiError> {
    Ok(match (shape, value) {
        (Shape::Text, text @ Value::String(_)) => text,
        (Shape::TextLike, text @ Value::String(_)) => text,
        (Shape::TextLike, other @ (Value::Number(_) | Value::Bool(_))) => other.to_string().into(),
        (Shape::Int, value) => whole(&value).ok_or_else(|| ApiError::shape("a whole number", &value))?.into(),
        (Shape::Number, number @ Value::Number(_)) => number,
        (Shape::Bool, on @ Value::Bool(_)) => on,
        (Shape::Texts, Value::Array(items)) => list(items, |item| question(Shape::Text, item))?,
        (Shape::Numbers, Value::Array(items)) => list(items, |item| question(Shape::Number, item))?,
        (Shape::List, items @ Value::Array(_)) => items,
        (Shape::Base64, Value::String(text)) => super::base64::checked(text)?.into(),
        (Shape::Json, value) => value,
        (Shape::JsonText, value) => value.to_string().into(),
        (Shape::Object, object @ Value::Object(_)) => object,
        (Shape::Object, Value::String(text)) => match serde_json::from_str(&text) {
            Ok(object @ Value::Object(_)) => object,
            _ => return Err(ApiError::shape("an object", &Value::String(text))),
        },
        (Shape::TextMap, Value::Object(members)) => {
            let texts = members.into_iter().map(|(name, value)| {
                let text = question(Shape::TextLike, value).map_err(|e| e.under(&name))?;
                Ok((name, text))
            });
            Value::Object(texts.collect::<Result<_, ApiError>>()?)
        }
        (Shape::Term, value) => term::to_bus(value)?,
        (Shape::Terms, Value::Array(items)) => {
            list(items, |item| if item.is_null() { Ok(item) } else { term::to_bus(item) })?
        }
        (Shape::Triples, Value::Array(items)) => list(items, term::triple_to_bus)?,
        (Shape::Record(fields), Value::Object(members)) => Value::Object(to_bus(fields, members)?),
        (Shape::Records(fields), Value::Array(items)) => {
            list(items, |item| question(Shape::Record(fields), item))?
        }
        // A published client deletes one config key without a list around it.
        (Shape::Records(fields), one @ Value::Object(_)) => {
            Value::Array(vec![question(Shape::Record(fields), one)?])
        }
        (shape, value) => return Err(ApiError::shape(expected(shape), &value)),
    })
}

fn list(items: Vec<Value>, each: impl Fn(Value) -> Result<Value, ApiError>) -> Result<Value, ApiError> {
    let numbered = items.into_iter().enumerate();
    let read = numbered.map(|(at, item)| each(item).map_err(|e| e.under(&format!("[{at}]"))));
    Ok(Value::Array(read.collect::<Result<_, _>>()?))
}

fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| integral(number)),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// `5.0` as 5: some clients only know floats. Beyond 2^53 a float is not exact any more, so it is refused.
fn integral(number: &Number) -> Option<i64> {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    let float = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() <= EXACT_MAX)?;
    #[expect(clippy::cast_possible_truncation, reason = "integral and within 2^53, checked above")]
    Some(float as i64)
}

fn expected(shape: Shape) -> &'static str {
    match shape {
        Shape::Text | Shape::TextLike => "a text",
        Shape::Int => "a whole number",
        Shape::Number => "a number",
        Shape::Bool => "true or false",
        Shape::Texts => "a list of texts",
        Shape::Numbers => "a list of numbers",
        Shape::List => "a list",
        Shape::Base64 => "a text that holds base64",
        Shape::Json | Shape::JsonText => "JSON",
        Shape::Object | Shape::Record(_) => "an object",
        Shape::TextMap => "an object of texts",
        Shape::Term => "an RDF term",
        Shape::Terms => "a list of RDF terms",
        Shape::Triples => "a list of triples",
        Shape::Records(_) => "a list of objects",
    }
}

fn answer(shape: Shape, value: Value) -> Value {
    match (shape, value) {
        (
            Shape::Texts | Shape::Numbers | Shape::List | Shape::Terms | Shape::Triples | Shape::Records(_),
            Value::Null,
        ) => Value::Array(Vec::new()),
        (Shape::Object | Shape::TextMap, Value::Null) => Value::Object(Map::new()),
        (Shape::JsonText, Value::String(text)) if text.is_empty() => Value::Null,
        (Shape::JsonText, Value::String(text)) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        (Shape::Term, value) => term::to_api(value),
        (Shape::Terms, Value::Array(items)) => items.into_iter().map(term::to_api).collect(),
        (Shape::Triples, Value::Array(items)) => items.into_iter().map(term::triple_to_api).collect(),
        (Shape::Record(fields), Value::Object(mut members)) => Value::Object(to_api(fields, &mut members)),
        (Shape::Records(fields), Value::Array(items)) => {
            items.into_iter().map(|item| answer(Shape::Record(fields), item)).collect()
        }
        (_, value) => value,
    }
}
