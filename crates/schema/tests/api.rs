//! Bodies as clients send and read them, service by service.
#![expect(clippy::needless_pass_by_value, reason = "bodies are written in place")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use serde_json::{Value, json};
use sluice_schema::api::{self, ApiError, Call, Caller, Reply};
use sluice_schema::{WorkspaceId, operation};

fn ask_in(parts: bool, service: &str, body: Value) -> Result<Call, ApiError> {
    let workspace = WorkspaceId::existing("home");
    let caller = Caller { handle: "me", default_workspace: &workspace, parts };
    api::find(service).unwrap().encode(body, &caller)
}

fn ask(service: &str, body: Value) -> Call {
    ask_in(true, service, body).unwrap()
}

fn bus(call: &Call) -> Value {
    serde_json::from_slice(&call.body).unwrap()
}

fn reply(call: &Call, body: Value) -> Reply {
    call.decode(body.to_string().as_bytes()).unwrap()
}

/// A question has these members on the bus, and an answer looks like this to the client.
fn check(service: &str, question: Value, on_bus: Value, answer: Value, shown: Value) {
    let call = ask(service, question);
    let written = bus(&call);
    for (name, value) in on_bus.as_object().unwrap() {
        assert_eq!(&written[name], value, "{service} {name}");
    }
    let reply = reply(&call, answer);
    assert_eq!((reply.body, reply.last), (shown, true), "{service}");
}

#[test]
fn every_call_of_a_flow_service_in_the_registry_has_a_translation() {
    for row in operation::table().iter().filter(|row| row.kind == operation::Kind::FlowService) {
        assert!(api::find(&row.name.replace('*', "x")).is_some(), "{}", row.name);
    }
    for service in api::services() {
        let known = match service.level {
            operation::Level::Flow => operation::find(operation::Kind::FlowService, service.name).is_some(),
            _ => operation::table().iter().any(|row| row.kind.as_str() == service.name),
        };
        assert!(known, "{}", service.name);
    }
}

#[test]
fn defaults_of_the_api_are_filled_in() {
    check(
        "document-rag",
        json!({"query": "q", "fetch-limit": null, "doc-limit": "7", "explainable": true}),
        json!({"query": "q", "collection": "default", "doc_limit": 7, "fetch_limit": 0, "streaming": false}),
        json!({"response": "DA", "end_of_stream": true, "end_of_session": true, "in_token": 1, "out_token": null,
               "message_type": "", "sources": [{"document_id": "d", "title": "T", "page": 3, "chunk_id": "c",
               "offset": 0, "length": 9, "score": 0.5, "text": "t"}]}),
        json!({"response": "DA", "end_of_stream": true, "end_of_session": true, "in_token": 1,
               "sources": [{"document_id": "d", "title": "T", "page": 3, "chunk_id": "c", "offset": 0, "length": 9,
               "score": 0.5, "text": "t"}]}),
    );
    check(
        "document-rag",
        json!({"query": "q", "retrieval-mode": "keyword", "vector-weight": 2, "keyword-weight": 0.5,
               "rerank-diversity-mode": "mmr", "rerank-diversity-lambda": 0}),
        json!({"query": "q", "doc_limit": 20, "retrieval_mode": "keyword", "vector_weight": 2.0,
               "keyword_weight": 0.5, "rerank_diversity_mode": "mmr", "rerank_diversity_lambda": 0.0}),
        json!({"response": "A", "end_of_stream": true, "end_of_session": true}),
        json!({"response": "A", "end_of_stream": true, "end_of_session": true}),
    );
    check(
        "graph-rag",
        json!({"query": "q", "entity-limit": 5.0}),
        json!({"entity_limit": 5, "triple_limit": 30, "max_subgraph_size": 1000, "max_path_length": 2,
               "edge_score_limit": 30, "edge_limit": 25, "max_reranker_input": 350}),
        json!({"message_type": "chunk", "response": "A", "end_of_stream": true, "end_of_session": true}),
        json!({"message_type": "chunk", "response": "A", "end_of_stream": true, "end_of_session": true}),
    );
    check(
        "triples",
        json!({"s": "<http://a>", "o": {"t": "l", "v": "x"}, "g": null}),
        json!({"limit": 10000, "collection": "default", "batch_size": 20, "p": null, "g": null}),
        json!({"error": null, "triples": [{"s": {"type": "i", "iri": "a"}, "p": null, "o": null, "g": ""}]}),
        json!({"response": [{"s": {"t": "i", "i": "a"}}]}),
    );
    check(
        "graph-embeddings",
        json!({"vector": [0.5, 1], "rdf_type": null, "attributes": null}),
        json!({"vector": [0.5, 1.0], "limit": 10, "collection": "default", "rdf_type": "", "attributes": {}}),
        json!({"entities": [{"entity": {"type": "i", "iri": "e"}, "score": 0.9, "rdf_type": [], "attributes": {}}]}),
        json!({"entities": [{"entity": {"t": "i", "i": "e"}, "score": 0.9}]}),
    );
    check(
        "document-embeddings",
        json!({"vector": [], "limit": "3"}),
        json!({"limit": 3}),
        json!({"chunks": [{"chunk_id": "c", "score": 0.8, "attributes": {}}]}),
        json!({"chunks": [{"chunk_id": "c", "score": 0.8}]}),
    );
}

#[test]
fn values_that_travel_as_json_text_are_written_and_read() {
    check(
        "prompt",
        json!({"id": "p", "variables": {"a": "b", "n": [1]}, "terms": {"ignored": "1"}}),
        json!({"terms": {"a": "\"b\"", "n": "[1]"}}),
        json!({"text": null, "object": "{\"a\": 1}", "end_of_stream": true}),
        json!({"object": "{\"a\": 1}", "end_of_stream": true}),
    );
    check(
        "mcp-tool",
        json!({"name": "t", "parameters": {"x": 1}}),
        json!({"parameters": "{\"x\":1}"}),
        json!({"text": "", "object": "{\"y\": 2}"}),
        json!({"object": {"y": 2}}),
    );
    check(
        "mcp-tool",
        json!({"name": "t"}),
        json!({"parameters": "{}"}),
        json!({"text": "x", "object": ""}),
        json!({"text": "x"}),
    );
    check(
        "rows",
        json!({"query": "{a}", "operationName": "O", "variables": {"v": 1}}),
        json!({"operation_name": "O", "variables": {"v": 1}}),
        json!({"data": "", "errors": [{"message": "m", "path": [], "extensions": {}}], "extensions": {}}),
        json!({"data": null, "errors": [{"message": "m"}]}),
    );
    check(
        "sparql",
        json!({"query": "ASK {}"}),
        json!({"limit": 10000}),
        json!({"query_type": "select", "variables": ["x"], "bindings": [{"values": [null, {"type": "b", "id": "n"}]}], "ask_result": false, "triples": []}),
        json!({"query-type": "select", "variables": ["x"], "bindings": [{"values": [null, {"t": "b", "d": "n"}]}]}),
    );
    check(
        "structured-diag",
        json!({"operation": "schema-selection", "sample": "s"}),
        json!({}),
        json!({"operation": "schema-selection"}),
        json!({"operation": "schema-selection", "schema-matches": []}),
    );
}

#[test]
fn a_body_that_does_not_fit_names_the_member() {
    let refused = |service: &str, body: Value, expected: &str| {
        let error = ask_in(true, service, body).err().unwrap();
        assert!(error.is_callers());
        assert_eq!(error.to_error().r#type, "request-error");
        assert_eq!(error.to_string(), expected, "{service}");
    };
    refused("document-rag", json!({"query": null}), "'query' is missing");
    refused("document-rag", json!({"query": 5}), "'query' must be a text, not a number");
    refused(
        "document-rag",
        json!({"query": "q", "doc-limit": "many"}),
        "'doc-limit' must be a whole number, not a text",
    );
    refused("document-rag", json!([]), "'body' must be an object, not a list");
    refused("embeddings", json!({"texts": ["a", 1]}), "'texts[1]' must be a text, not a number");
    refused("triples", json!({"s": {"t": "i", "i": []}}), "'s.i' must be a text, not a list");
    refused("prompt", json!({"id": "p", "terms": {"a": []}}), "'terms.a' must be a text, not a list");
    refused("prompt", json!({"id": "p", "variables": 1}), "'variables' must be an object, not a number");
    refused(
        "text-load",
        json!({"text": "x", "charset": "ebcdic"}),
        "'charset' must be utf-8, ascii or latin-1: 'ebcdic' is not known",
    );
    refused("text-load", json!({"id": "x"}), "'text' is missing");
    refused("config", json!({"operation": "get", "keys": [{"type": "t"}]}), "'keys[0].key' is missing");
    let bad = ask_in(true, "document-load", json!({"data": "!!"})).err().unwrap().to_string();
    assert!(bad.starts_with("'data' must hold base64: "), "{bad}");
    let bad = ask_in(true, "graph-embeddings", json!({"vector": [], "attributes": {"a": 1}}))
        .err()
        .unwrap()
        .to_string();
    assert!(bad.starts_with("'body' does not fit: field `attributes`"), "{bad}");
}

#[test]
fn one_record_without_a_list_around_it_is_a_list_of_one() {
    let call = ask("config", json!({"operation": "delete", "keys": {"type": "t", "key": "k"}}));
    assert_eq!(bus(&call)["keys"], json!([{"type": "t", "key": "k"}]));
}

#[test]
fn a_text_is_loaded_whether_base64_or_not() {
    let check = |body: Value, text: &str| {
        let written = bus(&ask("text-load", body));
        assert_eq!(written["text"], text);
        assert_eq!(written["metadata"], json!({"id": "d", "root": "", "collection": "default"}));
    };
    check(json!({"id": "d", "text": "aGVsbG8gd29ybGQ="}), "hello world");
    check(json!({"id": "d", "text": "hello world", "metadata": []}), "hello world");
    check(json!({"id": "d", "text": "w6k="}), "é");
    check(json!({"id": "d", "text": "6Q==", "charset": "latin-1"}), "é");
    check(json!({"id": "d", "text": "6Q=="}), "6Q==");
    check(json!({"id": "d", "text": "é"}), "é");
    let document =
        bus(&ask("document-load", json!({"id": "d", "data": "aGVs\nbG8=", "collection": "c", "root": "r"})));
    assert_eq!(document["data"], "aGVsbG8=");
    assert_eq!(document["metadata"], json!({"id": "d", "root": "r", "collection": "c"}));
}

#[test]
fn an_error_is_shown_beside_the_other_members_and_ends_the_answer() {
    let call = ask("document-rag", json!({"query": "q", "streaming": true}));
    let failed = reply(
        &call,
        json!({"error": {"type": "t", "message": "m"}, "end_of_stream": true, "end_of_session": false}),
    );
    assert!(failed.last);
    let expected =
        json!({"end_of_stream": true, "end_of_session": true, "error": {"type": "t", "message": "m"}});
    assert_eq!(failed.body, expected);
    // An error that is not an object is none.
    let odd = reply(&call, json!({"error": "", "response": "r"}));
    assert!(odd.error.is_none() && odd.body.get("error").is_none() && !odd.last);
    let unreadable = call.decode(b"[]").unwrap_err();
    assert_eq!(unreadable.to_error().r#type, "gateway-error");
}

#[test]
fn explanations_go_only_to_those_who_asked_for_parts() {
    let explain = json!({"message_type": "explain", "explain_id": "u", "explain_triples": []});
    let answer = json!({"message_type": "chunk", "response": "A", "end_of_session": true});
    for (parts, streaming, sent) in [(true, true, true), (true, false, false), (false, true, false)] {
        let call = ask_in(parts, "graph-rag", json!({"query": "q", "streaming": streaming})).unwrap();
        assert_eq!(call.sends(&reply(&call, explain.clone())), sent, "{parts} {streaming}");
        assert!(call.sends(&reply(&call, answer.clone())));
    }
    let agent = ask("agent", json!({"question": "q"}));
    assert!(agent.sends(&reply(&agent, explain)));
}

#[test]
fn an_agents_messages_carry_the_names_that_clients_read() {
    check(
        "agent",
        json!({"question": "q", "group": null, "history": [{"thought": "t"}]}),
        json!({"collection": "default", "group": null}),
        json!({"message_type": "answer", "content": "42", "end_of_message": true, "end_of_dialog": true, "message_id": "urn:a"}),
        json!({"message_type": "answer", "content": "42", "end_of_message": true, "end_of_dialog": true,
               "message_id": "urn:a", "chunk_type": "answer", "answer": "42"}),
    );
}

#[test]
fn over_http_a_document_is_read_part_by_part() {
    let part = |index: i64, last: bool| {
        json!({"content": "YQ==", "chunk_index": index, "chunks_received": index + 1,
        "total_chunks": 3, "bytes_received": index + 1, "total_bytes": 3, "is_final": last})
    };
    let read = |asked: i64| {
        let body = json!({"operation": "stream-document", "document-id": "d", "chunk-index": asked});
        let call = ask_in(false, "librarian", body).unwrap();
        let replies = [part(0, false), part(1, false), part(2, true)].map(|body| reply(&call, body));
        replies.into_iter().filter(|reply| call.sends(reply)).map(|reply| reply.body).collect::<Vec<_>>()
    };
    for index in 0..3 {
        let got = read(index);
        assert_eq!(
            (got.len(), &got[0]["chunk-index"], &got[0]["total-chunks"]),
            (1, &json!(index), &json!(3))
        );
    }
    for index in [3, i64::MAX, -1, i64::MIN] {
        let beyond = read(index);
        assert_eq!(beyond.len(), 1, "{index}");
        let expected = format!("chunk-index {index} is not in the document; its last is 2");
        assert_eq!(beyond[0]["error"]["message"], expected);
    }

    let call =
        ask_in(false, "librarian", json!({"operation": "stream-document", "document-id": "d"})).unwrap();
    let empty = reply(&call, json!({"content": "", "is_final": true}));
    assert!(call.sends(&empty));
    assert_eq!((&empty.body["content"], &empty.body["total-chunks"]), (&json!(""), &json!(0)));
}

#[test]
fn a_core_stream_goes_on_after_what_the_librarian_could_not_give() {
    let call = ask("knowledge", json!({"operation": "get-kg-core", "id": "c"}));
    let last = |body: Value| reply(&call, body).last;
    let triples =
        json!({"triples": {"metadata": {"id": "c", "root": "r", "collection": "d"}, "triples": []}});
    assert!(!last(triples.clone()));
    assert_eq!(reply(&call, triples.clone()).body, triples);
    assert!(!last(json!({"error": {"type": "librarian-error", "message": "no blob"}})));
    assert!(last(json!({"error": {"type": "not-found", "message": "no core"}})));
    assert!(last(json!({"eos": true})));
    let listed = ask("knowledge", json!({"operation": "list-kg-cores"}));
    assert!(reply(&listed, json!({"ids": []})).last);
    let put = ask(
        "knowledge",
        json!({"operation": "put-kg-core", "id": "c",
        "graph-embeddings": {"metadata": {"id": "i", "collection": "c"}, "entities": [{"entity": {"t": "i", "i": "e"}, "vector": [1]}]}}),
    );
    assert_eq!(bus(&put)["graph_embeddings"]["entities"][0]["entity"]["iri"], "e");
    assert!(reply(&put, json!({"error": null, "ids": null, "eos": false})).last);
}

#[test]
fn identity_is_asked_on_behalf_of_the_caller() {
    let made =
        bus(&ask("iam", json!({"operation": "create-user", "actor": "admin", "user": {"username": "bob"}})));
    assert_eq!(
        (&made["actor"], &made["workspace"], &made["user"]["enabled"]),
        (&json!("me"), &json!("home"), &json!(true))
    );
    assert!(made.get("update_mask").is_none());
    let changed = bus(&ask(
        "iam",
        json!({"operation": "update-user", "user_id": "u", "user": {"name": "Al", "email": null}, "update_mask": ["enabled"]}),
    ));
    assert_eq!((&changed["update_mask"], &changed["workspace"]), (&json!(["name"]), &json!("")));
    let inner = bus(&ask(
        "iam",
        json!({"operation": "whoami", "api_key": "k", "request_id": "r", "update_mask": ["x"]}),
    ));
    assert_eq!((&inner["api_key"], &inner["request_id"]), (&json!(""), &json!("")));
    assert!(inner.get("update_mask").is_none());
}

#[test]
fn a_pass_through_is_not_read() {
    let call = ask("thru/custom", json!({"x": 1, "error": "mine"}));
    assert_eq!(bus(&call), json!({"payload": {"x": 1, "error": "mine"}}));
    let part = reply(&call, json!({"payload": {"n": 1}, "error": null, "is_final": false}));
    assert_eq!((part.body, part.last), (json!({"n": 1}), false));
    assert!(api::find("thru/").is_none());
    assert_eq!(api::interface("thru/custom"), "custom");
}

#[test]
fn bulk_frames_may_be_bare_or_batched() {
    let check = |kind: &str, frame: Value, expected: Value| {
        let written: Value =
            serde_json::from_slice(&api::find_import(kind).unwrap().encode(frame).unwrap()).unwrap();
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(&written[name], value, "{kind}");
        }
    };
    let metadata = json!({"id": "", "root": "", "collection": "default"});
    let bare = json!({"s": {"t": "i", "i": "a"}, "g": "urn:g"});
    let frame: Value =
        serde_json::from_slice(&api::find_import("triples").unwrap().encode(bare).unwrap()).unwrap();
    assert_eq!(
        (&frame["metadata"], &frame["triples"][0]["g"], &frame["triples"][0]["s"]["iri"]),
        (&metadata, &json!("urn:g"), &json!("a"))
    );
    check(
        "entity-contexts",
        json!({"entity": {"t": "i", "i": "a"}, "context": "c"}),
        json!({"metadata": metadata}),
    );
    check(
        "rows",
        json!({"schema_name": "s", "values": {"a": "1"}}),
        json!({"values": [{"a": "1"}], "confidence": 1.0}),
    );
    check("rows", json!({"values": [{"a": "1"}], "confidence": 0.5}), json!({"confidence": 0.5}));
    check(
        "document-embeddings",
        json!({"metadata": {"id": "i", "metadata": [], "collection": "c"}, "chunks": [{"chunk_id": "c", "vector": [1]}]}),
        json!({"metadata": {"id": "i", "root": "", "collection": "c"}}),
    );
    assert!(api::find_import("rows").unwrap().encode(json!(1)).is_err());
    assert!(api::find_export("rows").is_none());
}
