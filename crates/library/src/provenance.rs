//! What is known of a document before any processor has seen it, as triples in the default graph: labels of the
//! vocabulary, the document itself, and whatever its owner said about it.

use sluice_schema::message::{DocumentMetadata, Metadata, Term, Triple, Triples};
use sluice_schema::vocabulary::{DC, LABEL, LABELS, PROV, RDF_TYPE, TG};

/// The message for a flow's `triples-store`.
pub(crate) fn of(document: &DocumentMetadata, collection: &str) -> Triples {
    let mut triples: Vec<Triple> = LABELS
        .iter()
        .map(|(namespace, name, label)| {
            triple(format!("{namespace}{name}"), LABEL.to_owned(), literal(label))
        })
        .collect();
    let mut say =
        |predicate: String, object: Term| triples.push(triple(document.id.clone(), predicate, object));
    say(RDF_TYPE.to_owned(), iri(format!("{PROV}Entity")));
    say(RDF_TYPE.to_owned(), iri(format!("{TG}Document")));
    if !document.title.is_empty() {
        say(format!("{DC}title"), literal(&document.title));
        say(LABEL.to_owned(), literal(&document.title));
    }
    say(format!("{TG}mimeType"), literal(&document.kind));
    triples.extend(document.metadata.iter().cloned().map(|own| Triple { g: None, ..own }));
    Triples { metadata: Some(root(document, collection)), triples }
}

/// Metadata of the message that begins a document's way: its own id, root of everything made from it.
pub(crate) fn root(document: &DocumentMetadata, collection: &str) -> Metadata {
    Metadata { id: document.id.clone(), root: document.id.clone(), collection: collection.to_owned() }
}

fn triple(subject: String, predicate: String, object: Term) -> Triple {
    Triple { s: Some(iri(subject)), p: Some(iri(predicate)), o: Some(object), g: None }
}

fn iri(iri: String) -> Term {
    Term { r#type: "i".to_owned(), iri, ..Default::default() }
}

fn literal(text: &str) -> Term {
    Term { r#type: "l".to_owned(), value: text.to_owned(), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_schema::message::LibrarianResponse;

    fn captured(file: &str, n: u64) -> serde_json::Value {
        let path = format!("{}/tests/captures/{file}", env!("CARGO_MANIFEST_DIR"));
        let lines = std::fs::read_to_string(path).unwrap();
        let line = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        line.into_iter().find(|line| line["n"] == n).unwrap()["body"].clone()
    }

    #[test]
    fn the_triples_of_a_document_are_those_that_were_recorded() {
        let answer: LibrarianResponse = serde_json::from_value(captured("librarian.jsonl", 17)).unwrap();
        let sent = serde_json::to_value(of(&answer.document_metadata.unwrap(), "default")).unwrap();
        assert_eq!(sent, captured("document-processing.jsonl", 7));
    }

    #[test]
    fn a_document_without_a_title_gets_none_and_its_own_triples_go_to_the_default_graph() {
        let own =
            Triple { g: Some("urn:graph:x".to_owned()), ..triple("a".into(), "b".into(), literal("c")) };
        let document = DocumentMetadata { id: "d".into(), metadata: vec![own], ..Default::default() };
        let sent = of(&document, "default");
        assert_eq!(sent.triples.len(), LABELS.len() + 3 + 1);
        assert!(sent.triples.iter().all(|triple| triple.g.is_none()));
        assert_eq!(sent.triples.last().unwrap().s, Some(iri("a".into())));
    }
}
