//! Bulk import and export: frames of a socket to and from the messages of a store's topic.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::field::{Field, Shape, field, text, to_api, to_bus};
use super::library::{DOCUMENT_EMBEDDINGS, GRAPH_EMBEDDINGS, METADATA, TRIPLES};
use super::{ApiError, typed};
use crate::{message as m, wire};

/// A kind of item that can be sent in bulk.
pub struct Import {
    /// Its name in paths.
    pub kind: &'static str,
    /// The interface of the flow whose `flow` topic takes it.
    pub interface: &'static str,
    fields: &'static [Field],
    prepare: fn(&mut Map<String, Value>),
    typed: fn(Value) -> Result<Bytes, String>,
}

/// A kind of item that can be read in bulk.
pub struct Export {
    /// Its name in paths.
    pub kind: &'static str,
    /// The interface of the flow whose `flow` topic has it.
    pub interface: &'static str,
    fields: &'static [Field],
}

const CONTEXT: &[Field] = &[
    text("context"),
    field("entity", Shape::Term),
    text("chunk_id").if_filled(),
    field("rdf_type", Shape::Texts).if_filled(),
    field("attributes", Shape::Object).if_filled(),
];
const ENTITY_CONTEXTS: &[Field] =
    &[field("metadata", Shape::Record(METADATA)), field("entities", Shape::Records(CONTEXT))];
const ROWS: &[Field] = &[
    field("metadata", Shape::Record(METADATA)),
    text("schema_name"),
    field("values", Shape::Json),
    field("confidence", Shape::Number),
    text("source_span"),
];

const IMPORTS: &[Import] = &[
    Import {
        kind: "triples",
        interface: "triples-store",
        fields: TRIPLES,
        prepare: |frame| wrap_bare(frame, "triples", &["s", "p", "o"]),
        typed: typed::<m::Triples>,
    },
    Import {
        kind: "graph-embeddings",
        interface: "graph-embeddings-store",
        fields: GRAPH_EMBEDDINGS,
        prepare: |_| (),
        typed: typed::<m::GraphEmbeddings>,
    },
    Import {
        kind: "document-embeddings",
        interface: "document-embeddings-store",
        fields: DOCUMENT_EMBEDDINGS,
        prepare: |_| (),
        typed: typed::<m::DocumentEmbeddings>,
    },
    Import {
        kind: "entity-contexts",
        interface: "entity-contexts-load",
        fields: ENTITY_CONTEXTS,
        prepare: |frame| wrap_bare(frame, "entities", &["entity"]),
        typed: typed::<m::EntityContexts>,
    },
    Import {
        kind: "rows",
        interface: "rows-store",
        fields: ROWS,
        prepare: one_row_or_many,
        typed: typed::<m::ExtractedObject>,
    },
];

const EXPORTS: &[Export] = &[
    Export { kind: "triples", interface: "triples-store", fields: TRIPLES },
    Export { kind: "graph-embeddings", interface: "graph-embeddings-store", fields: GRAPH_EMBEDDINGS },
    Export {
        kind: "document-embeddings",
        interface: "document-embeddings-store",
        fields: DOCUMENT_EMBEDDINGS,
    },
    Export { kind: "entity-contexts", interface: "entity-contexts-load", fields: ENTITY_CONTEXTS },
];

/// Every kind that can be imported.
pub fn imports() -> impl Iterator<Item = &'static Import> {
    IMPORTS.iter()
}

/// Every kind that can be exported.
pub fn exports() -> impl Iterator<Item = &'static Export> {
    EXPORTS.iter()
}

/// The import of a kind.
#[must_use]
pub fn find_import(kind: &str) -> Option<&'static Import> {
    imports().find(|import| import.kind == kind)
}

/// The export of a kind.
#[must_use]
pub fn find_export(kind: &str) -> Option<&'static Export> {
    exports().find(|export| export.kind == kind)
}

impl Import {
    /// A client's frame as the store's message.
    ///
    /// # Errors
    /// An [`ApiError`] that names the member that does not fit.
    pub fn encode(&self, frame: Value) -> Result<Bytes, ApiError> {
        let Value::Object(mut frame) = frame else {
            return Err(ApiError::shape("an object", &frame).under("frame"));
        };
        (self.prepare)(&mut frame);
        if !frame.get("metadata").is_some_and(Value::is_object) {
            frame.insert("metadata".to_owned(), json!({"collection": "default"}));
        }
        (self.typed)(Value::Object(to_bus(self.fields, frame)?)).map_err(ApiError::untyped)
    }
}

impl Export {
    /// A store's message as a frame.
    ///
    /// # Errors
    /// An [`ApiError`] when the message is not an object.
    pub fn decode(&self, body: &[u8]) -> Result<Value, ApiError> {
        match wire::decode(body).map_err(|e| ApiError::unreadable(self.kind, e))? {
            Value::Object(mut bus) => Ok(Value::Object(to_api(self.fields, &mut bus))),
            _ => Err(ApiError::unreadable(self.kind, "it is not an object")),
        }
    }
}

/// One client sends items bare, one a frame.
fn wrap_bare(frame: &mut Map<String, Value>, list: &str, signs: &[&str]) {
    if !frame.contains_key(list) && signs.iter().any(|sign| frame.contains_key(*sign)) {
        let item = std::mem::take(frame);
        frame.insert(list.to_owned(), json!([item]));
    }
}

fn one_row_or_many(frame: &mut Map<String, Value>) {
    if let Some(values) = frame.get_mut("values")
        && values.is_object()
    {
        *values = Value::Array(vec![values.take()]);
    }
    let confidence = frame.entry("confidence").or_insert(Value::Null);
    if confidence.is_null() {
        *confidence = 1.0.into();
    }
}
