//! Questions to stores: vectors, words, triples, rows.

use serde_json::{Map, Value};

use super::field::{Field, Shape, field, flag, int, text};
use super::{ApiError, Call, Caller, Ending, Service, row};
use crate::message as m;

const LIMIT: Field = int("limit").or_int(10);
pub(super) const COLLECTION: Field = text("collection").or_text("default");
const ATTRIBUTES_IN: Field = field("attributes", Shape::Object);
const ATTRIBUTES_OUT: Field = field("attributes", Shape::Object).if_filled();
const SCORE: Field = field("score", Shape::Number);
const VECTOR: Field = field("vector", Shape::Numbers).required();

const CHUNK: &[Field] = &[text("chunk_id"), SCORE, ATTRIBUTES_OUT];
const ENTITY: &[Field] =
    &[field("entity", Shape::Term), SCORE, field("rdf_type", Shape::Texts).if_filled(), ATTRIBUTES_OUT];
const ROW_INDEX: &[Field] =
    &[text("index_name"), field("index_value", Shape::Texts), text("text"), SCORE, ATTRIBUTES_OUT];
const BINDING: &[Field] = &[field("values", Shape::Terms)];
const GRAPHQL_ERROR: &[Field] = &[
    text("message"),
    field("path", Shape::Texts).if_filled(),
    field("extensions", Shape::Object).if_filled(),
];

pub(super) const SERVICES: &[Service] = &[
    row::<m::GraphEmbeddingsRequest>(
        "graph-embeddings",
        &[VECTOR, LIMIT, COLLECTION, text("rdf_type"), ATTRIBUTES_IN],
        &[field("entities", Shape::Records(ENTITY))],
    ),
    row::<m::DocumentEmbeddingsRequest>(
        "document-embeddings",
        &[VECTOR, LIMIT, COLLECTION, ATTRIBUTES_IN],
        &[field("chunks", Shape::Records(CHUNK))],
    ),
    row::<m::KeywordIndexRequest>(
        "keyword-index",
        &[text("query").required(), LIMIT, COLLECTION],
        &[field("chunks", Shape::Records(CHUNK))],
    ),
    row::<m::RowEmbeddingsRequest>(
        "row-embeddings",
        &[VECTOR, LIMIT, COLLECTION, text("schema_name"), text("index_name"), ATTRIBUTES_IN],
        &[field("matches", Shape::Records(ROW_INDEX))],
    ),
    row::<m::TriplesQueryRequest>(
        "triples",
        &[
            field("s", Shape::Term),
            field("p", Shape::Term),
            field("o", Shape::Term),
            text("g"),
            int("limit").or_int(10_000),
            COLLECTION,
            flag("streaming"),
            int("batch-size").or_int(20),
            field("user-context", Shape::Object),
        ],
        &[field("response", Shape::Triples).on_bus("triples")],
    )
    .ends(Ending::Flag("is_final", true)),
    row::<m::SparqlQueryRequest>(
        "sparql",
        &[
            text("query").required(),
            COLLECTION,
            int("limit").or_int(10_000),
            flag("streaming"),
            int("batch-size").or_int(20),
            field("user-context", Shape::Object),
        ],
        &[
            text("query-type"),
            field("variables", Shape::Texts),
            field("bindings", Shape::Records(BINDING)),
            flag("ask-result"),
            field("triples", Shape::Triples),
        ],
    )
    .ends(Ending::Flag("is_final", true))
    .finished(members_of_the_query_type),
    row::<m::RowsQueryRequest>(
        "rows",
        &[text("query").required(), COLLECTION, field("variables", Shape::Object), text("operation_name")],
        &[
            field("data", Shape::JsonText),
            field("errors", Shape::Records(GRAPHQL_ERROR)).if_filled(),
            field("extensions", Shape::Object).if_filled(),
        ],
    )
    .prepared(either_operation_name),
    row::<m::QuestionToStructuredQueryRequest>(
        "nlp-query",
        &[text("question").required(), int("max_results").or_int(100)],
        &[
            text("graphql_query"),
            field("variables", Shape::Object),
            field("detected_schemas", Shape::Texts),
            field("confidence", Shape::Number),
        ],
    ),
    row::<m::StructuredQueryRequest>(
        "structured-query",
        &[text("question").required(), COLLECTION],
        &[field("data", Shape::JsonText), field("errors", Shape::Texts)],
    ),
    row::<m::StructuredDataDiagnosisRequest>(
        "structured-diag",
        &[
            text("operation").required(),
            text("sample").required(),
            text("type"),
            text("schema-name"),
            field("options", Shape::Object),
        ],
        &[
            text("operation"),
            text("detected-type").if_filled(),
            field("confidence", Shape::Number).if_filled(),
            field("descriptor", Shape::JsonText).if_filled(),
            field("metadata", Shape::Object).if_filled(),
            field("schema-matches", Shape::Texts).if_filled(),
        ],
    )
    .finished(matches_of_a_selection),
];

/// Some clients spell it `operationName`.
#[expect(clippy::unnecessary_wraps, reason = "one of the table's preparations")]
fn either_operation_name(body: &mut Map<String, Value>, _: &Caller<'_>) -> Result<(), ApiError> {
    if let Some(name) = body.remove("operationName").filter(|name| !name.is_null()) {
        body.entry("operation_name").or_insert(name);
    }
    Ok(())
}

fn members_of_the_query_type(_: &Call, _: &mut Map<String, Value>, api: &mut Map<String, Value>) {
    let absent: &[&str] = match api.get("query-type").and_then(Value::as_str).unwrap_or_default() {
        "select" => &["ask-result", "triples"],
        "ask" => &["variables", "bindings", "triples"],
        "construct" | "describe" => &["variables", "bindings", "ask-result"],
        _ => &[],
    };
    for name in absent {
        api.remove(*name);
    }
}

fn matches_of_a_selection(call: &Call, _: &mut Map<String, Value>, api: &mut Map<String, Value>) {
    if call.operation == "schema-selection" {
        api.entry("schema-matches").or_insert_with(|| Value::Array(Vec::new()));
    }
}
