//! The standard blueprint with parts that only theirs are.

use sluice_schema::standard;

pub(crate) const CHUNKER: &str = "chunker-py";

/// The blueprint with each of these parts of ours left to one of theirs.
pub(crate) fn left_to(parts: &[(&str, &str)]) -> String {
    let (_, text) = standard::BLUEPRINTS.iter().find(|(name, _)| *name == "document-rag").unwrap();
    parts.iter().fold((*text).to_owned(), |text, (ours, theirs)| {
        text.replace(&format!("\"{ours}:"), &format!("\"{theirs}:"))
    })
}
