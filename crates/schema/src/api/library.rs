//! Documents, knowledge cores, parked messages.

use serde_json::{Map, Value};

use super::field::{Field, Shape, field, flag, int, is_filled, text};
use super::{Call, Ending, Service, row};
use crate::message as m;
use crate::operation::Level;
use crate::system;

const DOCUMENT: &[Field] = &[
    text("id"),
    int("time").if_set(),
    text("kind"),
    text("title").if_filled(),
    text("comments").if_filled(),
    field("metadata", Shape::Triples),
    field("tags", Shape::Texts),
    text("parent-id").if_filled(),
    text("document-type").if_filled(),
];
const PROCESSING: &[Field] = &[
    text("id"),
    text("document-id"),
    int("time").if_set(),
    text("flow"),
    text("collection"),
    field("tags", Shape::Texts),
];
const CRITERION: &[Field] = &[text("key"), text("value"), text("operator")];
const UPLOAD: &[Field] = &[
    text("upload-id"),
    text("document-id"),
    text("document-metadata-json"),
    int("total-size"),
    int("chunk-size"),
    int("total-chunks"),
    int("chunks-received"),
    text("created-at"),
];
const PIECE_FAILURE: &[Field] = &[text("piece"), text("stage"), text("reason")];
const PROGRESS: &[Field] = &[
    text("document-id"),
    text("flow"),
    text("collection"),
    int("texts-announced"),
    int("texts-done"),
    int("announced"),
    int("embedded"),
    int("indexed"),
    int("stored"),
    int("failed"),
    flag("complete"),
    flag("lost").if_filled(),
    int("started").if_set(),
    field("rate-per-minute", Shape::Number),
    int("remaining-seconds").if_set(),
    field("failures", Shape::Records(PIECE_FAILURE)),
    field("embedded-chunks", Shape::Texts).if_filled(),
];

/// Which item a message carries and where it belongs.
pub(super) const METADATA: &[Field] = &[text("id"), text("root"), text("collection")];
/// Triples with their metadata.
pub(super) const TRIPLES: &[Field] =
    &[field("metadata", Shape::Record(METADATA)), field("triples", Shape::Triples)];
/// Entity vectors with their metadata.
pub(super) const GRAPH_EMBEDDINGS: &[Field] =
    &[field("metadata", Shape::Record(METADATA)), field("entities", Shape::Records(ENTITY))];
const ENTITY: &[Field] = &[
    field("vector", Shape::Numbers),
    field("entity", Shape::Term),
    text("chunk_id").if_filled(),
    field("rdf_type", Shape::Texts).if_filled(),
    field("attributes", Shape::Object).if_filled(),
];
/// Chunk vectors with their metadata.
pub(super) const DOCUMENT_EMBEDDINGS: &[Field] =
    &[field("metadata", Shape::Record(METADATA)), field("chunks", Shape::Records(CHUNK))];
const CHUNK: &[Field] =
    &[text("chunk_id"), field("vector", Shape::Numbers), field("attributes", Shape::Object).if_filled()];
const CORE_DOCUMENT: &[Field] = &[
    text("id"),
    text("kind"),
    text("title"),
    text("parent-id"),
    text("document-type"),
    text("comments"),
    field("tags", Shape::Texts),
];
const CORE_BLOB: &[Field] = &[text("id"), field("data", Shape::Base64)];

const LETTER: &[Field] = &[
    text("id"),
    text("workspace"),
    text("flow"),
    text("topic"),
    text("subscription"),
    text("reason"),
    int("attempts"),
    int("time"),
    field("properties", Shape::Object),
    text("body").if_filled(),
];
const KEPT: &[Field] = &[text("id"), text("reason")];

pub(super) const SERVICES: &[Service] = &[
    row::<m::LibrarianRequest>(
        "librarian",
        &[
            text("operation").required(),
            text("document-id"),
            text("processing-id"),
            field("document-metadata", Shape::Record(DOCUMENT)),
            field("processing-metadata", Shape::Record(PROCESSING)),
            field("content", Shape::Base64),
            text("collection"),
            field("criteria", Shape::Records(CRITERION)),
            int("total-size"),
            int("chunk-size"),
            text("upload-id"),
            int("chunk-index"),
            flag("include-children"),
            text("flow"),
            field("document-ids", Shape::Texts),
            field("chunk-ids", Shape::Texts),
            flag("lost"),
            flag("remove-derived"),
            int("bytes_max"),
            text("cursor"),
        ],
        &[
            field("document-metadata", Shape::Record(DOCUMENT)).if_set(),
            text("content").if_filled(),
            field("document-metadatas", Shape::Records(DOCUMENT)),
            field("processing-metadatas", Shape::Records(PROCESSING)),
            text("upload-id").if_filled(),
            int("chunk-size").if_filled(),
            int("total-chunks").if_filled(),
            int("chunk-index").if_filled(),
            int("chunks-received").if_filled(),
            int("bytes-received").if_filled(),
            int("total-bytes").if_filled(),
            text("document-id").if_filled(),
            text("object-id").if_filled(),
            text("upload-state").if_filled(),
            field("received-chunks", Shape::List).if_filled(),
            field("missing-chunks", Shape::List).if_filled(),
            field("upload-sessions", Shape::Records(UPLOAD)).if_filled(),
            field("progress", Shape::Records(PROGRESS)).if_filled(),
            text("cursor").if_filled(),
        ],
    )
    .at(Level::Workspace, |w| (system::librarian_request(w), system::librarian_response(w)))
    .ends(Ending::Flag("is_final", true))
    .finished(complete_for_its_operation),
    row::<m::KnowledgeRequest>(
        "knowledge",
        &[
            text("operation").required(),
            text("id"),
            text("flow"),
            text("collection"),
            field("triples", Shape::Record(TRIPLES)),
            field("graph-embeddings", Shape::Record(GRAPH_EMBEDDINGS)),
            field("document-embeddings", Shape::Record(DOCUMENT_EMBEDDINGS)),
            field("library-metadata", Shape::Record(CORE_DOCUMENT)),
            field("library-blob", Shape::Record(CORE_BLOB)),
        ],
        &[
            field("ids", Shape::Json).if_set(),
            flag("eos").if_filled(),
            field("triples", Shape::Record(TRIPLES)).if_set(),
            field("graph-embeddings", Shape::Record(GRAPH_EMBEDDINGS)).if_set(),
            field("document-embeddings", Shape::Record(DOCUMENT_EMBEDDINGS)).if_set(),
            field("library-metadata", Shape::Record(CORE_DOCUMENT)).if_set(),
            field("library-blob", Shape::Record(CORE_BLOB)).if_set(),
        ],
    )
    .at(Level::Workspace, |w| (system::knowledge_request(w), system::knowledge_response(w)))
    .ends(Ending::Told(core_is_over)),
    row::<m::DeadLettersRequest>(
        "dead-letters",
        &[
            text("operation").required(),
            field("ids", Shape::Texts),
            text("flow"),
            text("topic"),
            text("document-id"),
            text("run"),
            int("limit"),
            text("before"),
            flag("all"),
        ],
        &[
            field("letters", Shape::Records(LETTER)),
            int("count"),
            int("remaining"),
            field("kept", Shape::Records(KEPT)),
        ],
    )
    .at(Level::Workspace, |w| (system::dead_letters_request(w), system::dead_letters_response(w)))
    .ends(Ending::Flag("is_final", true)),
];

/// Numbers that are zero are left out of answers, except where the operation says that they are part of it.
fn complete_for_its_operation(call: &Call, _: &mut Map<String, Value>, api: &mut Map<String, Value>) {
    let always: &[(&str, Value)] = match call.operation.as_str() {
        "upload-chunk" => &[("chunk-index", Value::Number(0.into()))],
        "stream-document" => &[
            ("content", Value::String(String::new())),
            ("chunk-index", Value::Number(0.into())),
            ("total-chunks", Value::Number(0.into())),
            ("total-bytes", Value::Number(0.into())),
        ],
        "get-document-content" => &[("content", Value::String(String::new()))],
        "get-progress" => &[("progress", Value::Array(Vec::new()))],
        _ => &[],
    };
    for (name, zero) in always {
        api.entry(*name).or_insert_with(|| zero.clone());
    }
}

/// A core stream ends with `eos`. What the librarian could not give in its middle is told and passed over.
fn core_is_over(call: &Call, bus: &Map<String, Value>) -> bool {
    let is = |name: &str| bus.get(name).is_some_and(|value| !value.is_null());
    let told = |name: &str| bus.get("error").and_then(|error| error.get(name)).and_then(Value::as_str);
    if bus.get("error").is_some_and(Value::is_object) {
        let streams = matches!(call.operation.as_str(), "get-kg-core" | "get-de-core");
        return !(streams && told("type") == Some("librarian-error"))
            || bus.get("eos").is_some_and(is_filled);
    }
    let carries = ["triples", "graph_embeddings", "document_embeddings", "library_metadata", "library_blob"];
    is("ids") || bus.get("eos").is_some_and(is_filled) || !carries.into_iter().any(is)
}
