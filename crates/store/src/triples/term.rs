//! A term as it rests: its type, then the fields that belong to the type, all but a last one with their length.

use sluice_schema::message::{Term, Triple};

use super::{put_number, take_number};
use crate::{Error, Result};

/// How deep statements may be quoted inside each other.
const QUOTES_MAX: usize = 16;
/// What the name of a graph begins with.
const GRAPH: u8 = b'g';

fn refused(reason: impl Into<String>) -> Error {
    Error::Refused { reason: reason.into() }
}

/// A term as bytes.
pub(super) fn encode(term: &Term) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    put(term, &mut bytes, 0)?;
    Ok(bytes)
}

/// The name of a graph as bytes; that of the default graph is empty.
pub(super) fn encode_graph(name: &str) -> Vec<u8> {
    [&[GRAPH], name.as_bytes()].concat()
}

pub(super) fn is_default_graph(bytes: &[u8]) -> bool {
    *bytes == [GRAPH]
}

pub(super) fn decode_graph(bytes: &[u8]) -> Result<String> {
    let name = bytes.strip_prefix(&[GRAPH]).and_then(|name| String::from_utf8(name.to_vec()).ok());
    name.ok_or_else(|| Error::damaged("the name of a graph", &"it is none"))
}

pub(super) fn decode(mut bytes: &[u8]) -> Result<Term> {
    let term = take(&mut bytes).filter(|_| bytes.is_empty());
    term.ok_or_else(|| Error::damaged("a term", &"it is cut short"))
}

/// The terms of a statement, which must all be set.
pub(super) fn terms_of(triple: &Triple) -> Result<[&Term; 3]> {
    match (&triple.s, &triple.p, &triple.o) {
        (Some(s), Some(p), Some(o)) => Ok([s, p, o]),
        _ => Err(refused("a statement needs a subject, a predicate and an object")),
    }
}

fn put(term: &Term, to: &mut Vec<u8>, depth: usize) -> Result<()> {
    let (kind, fields): (u8, &[&String]) = match term.r#type.as_str() {
        "i" => (b'i', &[&term.iri]),
        "b" => (b'b', &[&term.id]),
        "l" => (b'l', &[&term.value, &term.datatype, &term.language]),
        "t" if depth < QUOTES_MAX => (b't', &[]),
        "t" => return Err(refused(format!("statements are quoted more than {QUOTES_MAX} deep"))),
        other => return Err(refused(format!("a term has the type '{other}'; use 'i', 'b', 'l' or 't'"))),
    };
    to.push(kind);
    for field in fields {
        put_text(field, to);
    }
    if kind == b't' {
        let quoted = term.triple.as_deref().ok_or_else(|| refused("a term of type 't' needs a triple"))?;
        for term in terms_of(quoted)? {
            put(term, to, depth + 1)?;
        }
        put_text(quoted.g.as_deref().unwrap_or_default(), to);
    }
    Ok(())
}

fn put_text(text: &str, to: &mut Vec<u8>) {
    put_number(text.len() as u64, to);
    to.extend_from_slice(text.as_bytes());
}

fn take(from: &mut &[u8]) -> Option<Term> {
    let kind = from.split_off_first()?;
    let mut term = Term { r#type: char::from(*kind).to_string(), ..Term::default() };
    match kind {
        b'i' => term.iri = take_text(from)?,
        b'b' => term.id = take_text(from)?,
        b'l' => {
            term.value = take_text(from)?;
            term.datatype = take_text(from)?;
            term.language = take_text(from)?;
        }
        b't' => {
            let (s, p, o) = (take(from)?, take(from)?, take(from)?);
            let graph = take_text(from)?;
            let g = (!graph.is_empty()).then_some(graph);
            term.triple = Some(Box::new(Triple { s: Some(s), p: Some(p), o: Some(o), g }));
        }
        _ => return None,
    }
    Some(term)
}

fn take_text(from: &mut &[u8]) -> Option<String> {
    let length = take_number(from)?;
    let text = from.split_off(..usize::try_from(length).ok()?)?;
    String::from_utf8(text.to_vec()).ok()
}
