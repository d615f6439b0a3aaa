//! RDF terms and triples: all seven members on the bus, the compact form outside.

use serde_json::{Map, Value, json};

use super::ApiError;

/// Bus name and API name of the member that holds a term's content, by its type.
fn content(kind: &str) -> Option<(&'static str, &'static str)> {
    match kind {
        "i" => Some(("iri", "i")),
        "b" => Some(("id", "d")),
        "l" => Some(("value", "v")),
        "t" => Some(("triple", "tr")),
        _ => None,
    }
}

/// A compact term for the bus. A plain text is taken as clients mean it: `<…>` or an address is an IRI, anything else a
/// literal.
pub(crate) fn to_bus(term: Value) -> Result<Value, ApiError> {
    let mut compact = match term {
        Value::Object(compact) => compact,
        Value::String(text) => return Ok(from_text(&text)),
        other => return Err(ApiError::shape("an RDF term", &other)),
    };
    let kind = member_text(&mut compact, "t")?;
    let mut out = Map::new();
    if let Some((bus, api)) = content(&kind) {
        let value = compact.remove(api).unwrap_or_default();
        let value = match (bus, value) {
            (_, Value::Null) => Value::Null,
            ("triple", value) => triple_to_bus(value).map_err(|e| e.under(api))?,
            (_, text @ Value::String(_)) => text,
            (_, other) => return Err(ApiError::shape("a text", &other).under(api)),
        };
        out.insert(bus.to_owned(), value);
    }
    if kind == "l" {
        for (bus, api) in [("datatype", "dt"), ("language", "ln")] {
            out.insert(bus.to_owned(), member_text(&mut compact, api)?.into());
        }
    }
    out.insert("type".to_owned(), kind.into());
    Ok(Value::Object(out))
}

fn from_text(text: &str) -> Value {
    let bracketed = text.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
    let address = ["http://", "https://", "urn:"].iter().any(|scheme| text.starts_with(scheme));
    match bracketed {
        Some(iri) => json!({"type": "i", "iri": iri}),
        None if address => json!({"type": "i", "iri": text}),
        None => json!({"type": "l", "value": text}),
    }
}

fn member_text(object: &mut Map<String, Value>, name: &str) -> Result<String, ApiError> {
    match object.remove(name) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(ApiError::shape("a text", &other).under(name)),
    }
}

/// A triple of compact terms for the bus. Missing members stay unset.
pub(crate) fn triple_to_bus(triple: Value) -> Result<Value, ApiError> {
    let mut compact = match triple {
        Value::Object(compact) => compact,
        other => return Err(ApiError::shape("a triple", &other)),
    };
    let mut out = Map::new();
    for name in ["s", "p", "o"] {
        if let Some(term) = compact.remove(name).filter(|term| !term.is_null()) {
            out.insert(name.to_owned(), to_bus(term).map_err(|e| e.under(name))?);
        }
    }
    let graph = member_text(&mut compact, "g")?;
    if !graph.is_empty() {
        out.insert("g".to_owned(), graph.into());
    }
    Ok(Value::Object(out))
}

/// A bus term in compact form; null stays null.
pub(crate) fn to_api(term: Value) -> Value {
    let Value::Object(mut full) = term else { return term };
    let kind = full.remove("type").unwrap_or_default();
    let mut out = Map::new();
    if let Some((bus, api)) = kind.as_str().and_then(content) {
        let value = full.remove(bus).unwrap_or_default();
        let value = match bus {
            "triple" => triple_to_api(value),
            _ if value.is_null() => Value::from(""),
            _ => value,
        };
        out.insert(api.to_owned(), value);
    }
    if kind == "l" {
        for (bus, api) in [("datatype", "dt"), ("language", "ln")] {
            if let Some(Value::String(text)) = full.remove(bus).filter(super::field::is_filled) {
                out.insert(api.to_owned(), text.into());
            }
        }
    }
    let kind = if kind.is_null() { Value::from("") } else { kind };
    out.insert("t".to_owned(), kind);
    Value::Object(out)
}

/// A bus triple of compact terms; unset members are left out.
pub(crate) fn triple_to_api(triple: Value) -> Value {
    let Value::Object(mut full) = triple else { return triple };
    let mut out = Map::new();
    for name in ["s", "p", "o"] {
        if let Some(term) = full.remove(name).filter(|term| !term.is_null()) {
            out.insert(name.to_owned(), to_api(term));
        }
    }
    if let Some(graph) = full.remove("g").filter(super::field::is_filled) {
        out.insert("g".to_owned(), graph);
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Term;

    #[test]
    fn terms_translate_both_ways() {
        let check = |compact: Value, full: Value| {
            let bus = to_bus(compact.clone()).unwrap();
            let typed: Term = serde_json::from_value(bus).unwrap();
            let written = serde_json::to_value(&typed).unwrap();
            for (name, value) in full.as_object().unwrap() {
                assert_eq!(&written[name], value, "{compact}");
            }
            assert_eq!(to_api(written), compact);
        };
        check(
            json!({"t": "i", "i": "urn:a"}),
            json!({"type": "i", "iri": "urn:a", "value": "", "triple": null}),
        );
        check(json!({"t": "b", "d": "b1"}), json!({"type": "b", "id": "b1"}));
        check(json!({"t": "l", "v": "x"}), json!({"type": "l", "value": "x"}));
        check(json!({"t": "l", "v": "x", "ln": "de"}), json!({"language": "de", "datatype": ""}));
        check(json!({"t": "l", "v": "1", "dt": "urn:int"}), json!({"datatype": "urn:int"}));
        check(json!({"t": "z"}), json!({"type": "z"}));
        let quoted = json!({"s": {"t": "i", "i": "urn:s"}, "p": {"t": "i", "i": "urn:p"}, "g": "urn:g"});
        check(json!({"t": "t", "tr": quoted}), json!({"type": "t"}));
    }

    #[test]
    fn a_text_is_taken_as_clients_mean_it() {
        for (text, kind, member) in
            [("<x>", "i", "iri"), ("urn:x", "i", "iri"), ("https://x", "i", "iri"), ("x", "l", "value")]
        {
            let bus = to_bus(text.into()).unwrap();
            assert_eq!((&bus["type"], &bus[member]), (&kind.into(), &text.trim_matches(['<', '>']).into()));
        }
    }

    #[test]
    fn what_is_no_term_names_its_place() {
        let said = triple_to_bus(json!({"s": {"t": "t", "tr": {"o": 5}}})).unwrap_err().to_string();
        assert_eq!(said, "'s.tr.o' must be an RDF term, not a number");
    }
}
