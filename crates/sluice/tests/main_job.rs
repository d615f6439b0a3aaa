//! The main job, through the binary: the demo, and a system that is stopped, killed and started again.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Up, ends, sluice, text};
use serde_json::Value;

#[test]
fn the_demo_answers_with_sources_and_leaves_nothing() {
    let output = sluice().arg("demo").output().unwrap();
    ends(&output, 0, "Sources");
    let said = text(&output);
    assert!(said.contains("extractive") || said.contains("No language model"), "{said}");
    assert!(said.contains("0 failed"), "{said}");
    assert!(said.contains("0 flow records, 0 processor entries, 0 topics"), "{said}");
    assert!(said.contains("Next:"), "{said}");
}

#[test]
fn a_second_start_finds_documents_and_flows_of_the_first_even_after_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let notes = folder.path().join("pump.md");
    std::fs::write(&notes, "# Pump\n\nThe spare key of the pump house hangs behind the blue door.\n")
        .unwrap();
    let data = folder.path().join("data");

    let mut up = Up::start(&data);
    up.json(&["flow", "start", "f1", "document-rag", "-d", "first"]);
    let added = up.json(&["doc", "add", notes.to_str().unwrap(), "--flow", "f1"]);
    assert_eq!(added["progress"][0]["complete"], true, "{added}");
    up.kill();

    let mut up = Up::start(&data);
    let flows = up.json(&["flow", "ls"]);
    assert_eq!(
        (&flows[0]["id"], &flows[0]["phase"]),
        (&Value::from("f1"), &Value::from("Running")),
        "{flows}"
    );
    assert_eq!(up.json(&["doc", "ls"]).as_array().unwrap().len(), 1);
    let answer = up.json(&["ask", "where is the spare key?", "--flow", "f1"]);
    assert!(answer["response"].as_str().unwrap().contains("blue door"), "{answer}");
    assert_eq!(answer["sources"][0]["title"], "pump.md", "{answer}");

    up.json(&["flow", "stop", "f1"]);
    assert_eq!(up.json(&["flow", "ls"]), Value::Array(Vec::new()));
    up.json(&["flow", "start", "f1", "document-rag"]);
    let again = up.json(&["ask", "where is the spare key?", "--flow", "f1"]);
    assert!(again["response"].as_str().unwrap().contains("blue door"), "{again}");
    assert_eq!(up.terminate(), 0);
}

#[test]
fn a_removed_document_is_no_longer_in_the_library() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(&folder.path().join("data"));
    up.json(&["flow", "start", "f1", "document-rag"]);
    let file = folder.path().join("a.txt");
    std::fs::write(&file, "The meeting point is the old oak at the mill.").unwrap();
    let file = file.to_str().unwrap();
    let added = up.json(&["doc", "add", file, file, "--flow", "f1"]);
    assert_eq!(added["documents"].as_array().unwrap().len(), 1, "the same content is one document: {added}");
    let id = added["documents"][0].as_str().unwrap();
    up.json(&["doc", "rm", id]);
    assert_eq!(up.json(&["doc", "ls"]), Value::Array(Vec::new()));
}

#[test]
fn what_a_stop_would_remove_is_kept_and_can_be_sent_into_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(&folder.path().join("data"));
    // Nobody here runs the sink, so what is sent into the flow stays queued.
    let blueprint = serde_json::json!({
        "interfaces": {"text-load": {"flow": "flow:tg:in:{workspace}:{id}"}},
        "blueprint": {},
        "flow": {"sink:{id}": {"topics": {"input": "flow:tg:in:{workspace}:{id}"}}},
    });
    let file = folder.path().join("sink.json");
    std::fs::write(&file, blueprint.to_string()).unwrap();
    up.json(&["blueprint", "put", "sink", file.to_str().unwrap()]);
    up.json(&["flow", "start", "f1", "sink"]);
    let text = serde_json::json!({"id": "d1", "text": "kept", "collection": "c"});
    let sent = up.post("/api/v1/flow/f1/service/text-load", &text);
    assert!(sent.starts_with("HTTP/1.1 200"), "{sent}");

    let stopped = up.json(&["flow", "stop", "f1"]);
    assert_eq!(stopped["status"]["queues"][0]["verdict"], "parked", "{stopped}");
    let letters = up.json(&["dead", "ls"]);
    assert_eq!(letters.as_array().unwrap().len(), 1, "{letters}");
    ends(&up.run(&["dead", "replay", "--flow", "f1"]), 1, "start the flow");

    up.json(&["flow", "start", "f1", "sink"]);
    let replayed = up.json(&["dead", "replay", "--flow", "f1"]);
    assert_eq!(replayed["count"], 1, "{replayed}");
    let described = up.json(&["flow", "describe", "f1"]);
    assert_eq!(described["status"]["run"], "f1-r2", "{described}");
    assert_eq!(described["status"]["queues"][0]["ready"], 1, "{described}");
    assert_eq!(up.json(&["dead", "ls"]), Value::Array(Vec::new()));
    up.json(&["flow", "stop", "f1", "--drain", "discard"]);
    assert_eq!(up.json(&["dead", "ls"]), Value::Array(Vec::new()));
}
