//! Language models, prompts, vectors, scores: services that hold a model.

use serde_json::{Map, Value};

use super::field::{Field, Shape, field, flag, int, is_filled, text};
use super::{ApiError, Call, Caller, Ending, Service, row};
use crate::message as m;

// What a call cost and who answered, where the service tells it.
const IN_TOKEN: Field = int("in_token").if_set();
const OUT_TOKEN: Field = int("out_token").if_set();
const MODEL: Field = text("model").if_set();

const MODEL_INFO: &[Field] = &[
    text("id"),
    text("name").if_set(),
    text("owned_by").if_set(),
    int("created").if_set(),
    text("description").if_set(),
    int("context_length").if_set(),
    int("max_output_length").if_set(),
    field("input_modalities", Shape::Texts).if_filled(),
    field("output_modalities", Shape::Texts).if_filled(),
    field("supported_features", Shape::Texts).if_filled(),
    field("input_price", Shape::Number).if_set(),
    field("output_price", Shape::Number).if_set(),
    text("family").if_set(),
    text("parameter_size").if_set(),
    text("quantization").if_set(),
    text("format").if_set(),
];
const CLOZE_MODEL: &[Field] = &[
    text("name"),
    text("state"),
    field("labels", Shape::Texts),
    field("accuracy", Shape::Number).if_set(),
    int("train_size").if_set(),
    int("test_size").if_set(),
];
const RERANK_QUERY: &[Field] = &[text("query_id"), text("query_text")];
const RERANK_DOCUMENT: &[Field] = &[text("document_id"), text("document_text")];
const RERANK_RESULT: &[Field] = &[text("document_id"), text("query_id"), field("score", Shape::Number)];

pub(super) const SERVICES: &[Service] = &[
    row::<m::TextCompletionRequest>(
        "text-completion",
        &[
            text("operation"),
            text("system"),
            text("prompt"),
            flag("streaming"),
            text("response_format"),
            field("schema", Shape::Object),
        ],
        &[
            text("response"),
            IN_TOKEN,
            OUT_TOKEN,
            MODEL,
            flag("end_of_stream"),
            field("models", Shape::Records(MODEL_INFO)).if_filled(),
        ],
    )
    .ends(Ending::Flag("end_of_stream", false)),
    row::<m::PromptRequest>(
        "prompt",
        &[text("id").required(), field("terms", Shape::TextMap), flag("streaming")],
        &[text("text"), text("object"), flag("end_of_stream"), IN_TOKEN, OUT_TOKEN, MODEL],
    )
    .prepared(variables_as_terms)
    .ends(Ending::Flag("end_of_stream", false))
    .finished(text_or_object),
    row::<m::ToolRequest>(
        "mcp-tool",
        &[text("name").required(), field("parameters", Shape::JsonText).or_text("{}")],
        &[text("text"), field("object", Shape::JsonText)],
    )
    .finished(text_or_object),
    row::<m::EmbeddingsRequest>(
        "embeddings",
        &[field("texts", Shape::Texts).required()],
        &[field("vectors", Shape::List)],
    ),
    row::<m::RerankerRequest>(
        "reranker",
        &[
            field("queries", Shape::Records(RERANK_QUERY)).required(),
            field("documents", Shape::Records(RERANK_DOCUMENT)).required(),
            int("limit").or_int(10),
        ],
        &[field("results", Shape::Records(RERANK_RESULT))],
    ),
    row::<m::ImageToTextRequest>(
        "image-to-text",
        &[
            field("image", Shape::Base64).required(),
            text("mime_type").required(),
            text("prompt"),
            text("system"),
        ],
        &[text("description"), IN_TOKEN, OUT_TOKEN, MODEL],
    ),
    row::<m::ClozeRequest>(
        "cloze",
        &[text("operation"), text("model"), text("query")],
        &[
            text("label"),
            field("confidence", Shape::Number),
            field("models", Shape::Records(CLOZE_MODEL)).if_filled(),
        ],
    ),
    row::<m::DecisionScoringRequest>(
        "decision-scoring",
        &[field("state", Shape::Object), field("questions", Shape::Object)],
        &[field("answers", Shape::Object), text("model")],
    ),
    row::<m::FieldExtractionRequest>(
        "field-extraction",
        &[field("state", Shape::Object), field("fields", Shape::Object)],
        &[field("answers", Shape::Object), text("model")],
    ),
];

/// `variables` are values, written as JSON text one by one; `terms` are such texts already. `variables` win.
fn variables_as_terms(body: &mut Map<String, Value>, _: &Caller<'_>) -> Result<(), ApiError> {
    match body.remove("variables") {
        None | Some(Value::Null) => {}
        Some(Value::Object(variables)) => {
            let terms = variables.into_iter().map(|(name, value)| (name, Value::from(value.to_string())));
            body.insert("terms".to_owned(), Value::Object(terms.collect()));
        }
        Some(other) => return Err(ApiError::shape("an object", &other).under("variables")),
    }
    Ok(())
}

/// Clients look at `text` first, so an answer has one of the two: the object if there is one, else the text.
fn text_or_object(_: &Call, _: &mut Map<String, Value>, api: &mut Map<String, Value>) {
    let has_object = api.get("object").is_some_and(|object| !object.is_null() && object != "");
    let has_text = api.get("text").is_some_and(is_filled);
    if has_text || !has_object {
        api.remove("object");
    }
    let unset = api.get("text").is_none_or(Value::is_null);
    if unset || (has_object && !has_text) {
        api.remove("text");
    }
}
