//! Answers made from what was loaded: passages, graph, agent.

use serde_json::{Map, Value};

use super::field::{Field, Shape, field, flag, int, text};
use super::query::COLLECTION;
use super::{Call, Ending, Service, row};
use crate::message as m;

const EXPLAIN_ID: Field = text("explain_id").if_set();
const EXPLAIN_GRAPH: Field = text("explain_graph").if_set();
const EXPLAIN_TRIPLES: Field = field("explain_triples", Shape::Triples).if_filled();
const IN_TOKEN: Field = int("in_token").if_set();
const OUT_TOKEN: Field = int("out_token").if_set();
const MODEL: Field = text("model").if_set();

const SOURCE: &[Field] = &[text("uri"), text("title")];
const PASSAGE: &[Field] = &[
    text("document_id"),
    text("title"),
    int("page").if_set(),
    text("chunk_id"),
    int("offset"),
    int("length"),
    field("score", Shape::Number),
    text("text"),
];

pub(super) const SERVICES: &[Service] = &[
    row::<m::DocumentRagQuery>(
        "document-rag",
        &[
            text("query").required(),
            COLLECTION,
            int("doc-limit").or_int(20),
            int("fetch-limit").or_int(0),
            flag("streaming"),
            text("retrieval-mode").if_filled(),
            field("vector-weight", Shape::Number).if_set(),
            field("keyword-weight", Shape::Number).if_set(),
            text("rerank-diversity-mode").if_filled(),
            field("rerank-diversity-lambda", Shape::Number).if_set(),
        ],
        &[
            text("message_type").if_filled(),
            text("response").if_set(),
            EXPLAIN_ID,
            EXPLAIN_GRAPH,
            EXPLAIN_TRIPLES,
            field("sources", Shape::Records(PASSAGE)).if_filled(),
            flag("end_of_stream"),
            flag("end_of_session"),
            IN_TOKEN,
            OUT_TOKEN,
            MODEL,
        ],
    )
    .ends(Ending::Flag("end_of_session", false))
    .with_asides()
    .finished(a_failure_ends_the_session),
    row::<m::GraphRagQuery>(
        "graph-rag",
        &[
            text("query").required(),
            COLLECTION,
            int("entity-limit").or_int(50),
            int("triple-limit").or_int(30),
            int("max-subgraph-size").or_int(1000),
            int("max-path-length").or_int(2),
            int("edge-score-limit").or_int(30),
            int("edge-limit").or_int(25),
            int("max-reranker-input").or_int(350),
            flag("streaming"),
            text("parent-uri"),
            field("user-context", Shape::Object),
            field("grounding-seeds", Shape::Texts),
            field("graph-seeds", Shape::Texts),
            field("languages", Shape::Texts),
            field("traversal-instructions", Shape::Json),
            text("graph"),
        ],
        &[
            text("message_type").if_filled(),
            text("response"),
            EXPLAIN_ID,
            EXPLAIN_GRAPH,
            EXPLAIN_TRIPLES,
            field("sources", Shape::Records(SOURCE)).if_filled(),
            flag("end_of_stream"),
            flag("end_of_session"),
            IN_TOKEN,
            OUT_TOKEN,
            MODEL,
        ],
    )
    .ends(Ending::Flag("end_of_session", false))
    .with_asides()
    .finished(a_failure_ends_the_session),
    row::<m::AgentRequest>(
        "agent",
        &[
            text("question").required(),
            text("state"),
            field("group", Shape::Texts),
            field("history", Shape::Json),
            COLLECTION,
            flag("streaming"),
            text("session_id"),
            text("conversation_id"),
            text("pattern"),
            text("task_type"),
            text("framing"),
            text("correlation_id"),
            text("parent_session_id"),
            text("subagent_goal"),
            int("expected_siblings"),
        ],
        &[
            text("message_type"),
            text("content").if_filled(),
            flag("end_of_message"),
            flag("end_of_dialog"),
            text("message_id").if_filled(),
            EXPLAIN_ID,
            EXPLAIN_GRAPH,
            EXPLAIN_TRIPLES,
            IN_TOKEN,
            OUT_TOKEN,
            MODEL,
        ],
    )
    .ends(Ending::Flag("end_of_dialog", false))
    .finished(names_that_clients_read),
];

/// Whatever the service's flags say, nothing follows an error.
fn a_failure_ends_the_session(_: &Call, bus: &mut Map<String, Value>, api: &mut Map<String, Value>) {
    if bus.get("error").is_some_and(Value::is_object) {
        api.insert("end_of_session".to_owned(), true.into());
    }
}

/// Nothing follows an error. One client knows the type of a message as `chunk_type`, another the final text as `answer`.
fn names_that_clients_read(_: &Call, bus: &mut Map<String, Value>, api: &mut Map<String, Value>) {
    if bus.get("error").is_some_and(Value::is_object) {
        api.insert("end_of_dialog".to_owned(), true.into());
    }
    if let Some(kind) = api.get("message_type").cloned() {
        api.insert("chunk_type".to_owned(), kind);
    }
    let ends = api.get("end_of_dialog") == Some(&Value::Bool(true));
    if ends && api.get("message_type").is_some_and(|kind| kind == "answer") {
        let answer = api.get("content").cloned().unwrap_or_else(|| "".into());
        api.insert("answer".to_owned(), answer);
    }
}
