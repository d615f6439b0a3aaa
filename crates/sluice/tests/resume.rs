//! A process that is killed while a document goes through: the next one goes on, and asks the provider again only for what
//! was under way.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "common/provider.rs"]
mod provider;

use std::collections::BTreeMap;
use std::time::Instant;

use common::{PATIENCE, Up};
use provider::Provider;
use serde_json::{Value, json};

const CHUNKS: usize = 60;
/// More than one call for dead letters takes.
const MANY: usize = 1_030;
/// Chunks that are through before the process is killed.
const BEFORE: usize = 20;
/// Chunks in work at once.
const CALLS: usize = 4;

#[test]
fn a_killed_process_asks_again_only_for_chunks_that_were_under_way() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let provider = Provider::start();
    provider.allow_vectors(Some(0));
    let options = ["--embeddings-url", &provider.url, "--embeddings-model", "m"];
    let mut up = Up::start_with(&data, &options);
    start_flow(&up, folder.path());
    let id = add(&up, folder.path(), CHUNKS);
    cut_up(&up, CHUNKS);
    provider.allow_vectors(Some(BEFORE));
    until(&up, &id, |progress| progress["stored"] == BEFORE);
    let (first, held) = loop {
        // What is held stays asked: nothing moves any more once all calls wait.
        let asked = marks(&provider);
        if asked.values().sum::<usize>() == BEFORE + CALLS {
            let shown = up.json(&["flow", "describe", "f1"]);
            break (asked, shown);
        }
    };
    up.kill();
    provider.allow_vectors(None);

    let up = Up::start_with(&data, &options);
    until(&up, &id, |progress| progress["complete"] == true);
    let asked = marks(&provider);
    assert_eq!(asked.len(), CHUNKS, "{asked:?}");
    let twice: Vec<_> = asked.iter().filter(|(_, times)| **times > 1).collect();
    assert!(asked.values().all(|times| *times <= 2), "{asked:?}");
    assert!(twice.iter().all(|(mark, _)| first.contains_key(*mark)), "{twice:?} beside {first:?}");
    assert!(twice.len() <= CALLS, "more than what was under way was asked again: {twice:?}, {held}");
}

#[test]
fn more_letters_than_a_call_takes_are_all_sent_into_the_next_run_and_counted_there() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::start();
    provider.allow_vectors(Some(0));
    let options = ["--embeddings-url", &provider.url, "--embeddings-model", "m"];
    let up = Up::start_with(&folder.path().join("data"), &options);
    start_flow(&up, folder.path());
    let id = add(&up, folder.path(), MANY);
    cut_up(&up, MANY);
    // So many letters may take longer than one answer may; asking again joins what is under way.
    let is_gone =
        || [Some(0), Some(3)].contains(&up.run(&["flow", "stop", "f1", "--drain", "1ms"]).status.code());
    common::until("the flow to be stopped", is_gone, || up.log());
    provider.allow_vectors(None);
    up.json(&["flow", "start", "f1", "careful"]);
    let replayed = up.json(&["dead", "replay", "--flow", "f1"]);
    // The words of each chunk wait for the keyword index too, unless it was done with them.
    assert!(replayed["count"].as_u64().unwrap() >= MANY as u64, "{replayed}");
    assert_eq!(replayed["remaining"].as_u64().unwrap_or_default(), 0, "{replayed}");
    assert_eq!(up.json(&["dead", "ls"]), json!([]));
    until(&up, &id, |progress| progress["complete"] == true && progress["stored"] == MANY);
}

/// Adds a text of so many chunks, each with its mark.
fn add(up: &Up, folder: &std::path::Path, chunks: usize) -> String {
    let paragraph = |n: usize| format!("Mark {n}. {}", "The gate lets water through. ".repeat(60));
    let text = (0..chunks).map(paragraph).collect::<Vec<_>>().join("\n\n");
    let file = folder.join("long.txt");
    std::fs::write(&file, text).unwrap();
    let added = up.json(&["doc", "add", file.to_str().unwrap(), "--flow", "f1", "--no-wait"]);
    added["documents"][0].as_str().unwrap().to_owned()
}

/// Waits until the document is cut, and all its chunks wait to be embedded.
fn cut_up(up: &Up, chunks: usize) {
    let (mut moved, mut before) = (Instant::now(), 0);
    loop {
        let told = up.json(&["flow", "describe", "f1"]);
        let waiting = |part: &str| {
            let queues = told["status"]["queues"].as_array().into_iter().flatten();
            let of_part =
                queues.filter(|queue| queue["topic"].as_str().is_some_and(|topic| topic.contains(part)));
            let count =
                |queue: &Value| queue["ready"].as_u64().unwrap() + queue["unsettled"].as_u64().unwrap();
            of_part.map(count).max().unwrap_or_default()
        };
        let now = waiting("tg:chunk-load:");
        if now == chunks as u64 && waiting("tg:text-document-load:") == 0 {
            return;
        }
        if now != before {
            (moved, before) = (Instant::now(), now);
        }
        assert!(moved.elapsed() < PATIENCE, "{told}\n{}", up.log());
    }
}

/// Waits until a document has come so far, as long as it moves.
fn until(up: &Up, id: &str, is_so: impl Fn(&Value) -> bool) {
    let (mut moved, mut before) = (Instant::now(), Value::Null);
    loop {
        let asked = json!({"operation": "get-progress", "flow": "f1", "document-ids": [id]});
        let answer = up.post("/api/v1/librarian", &asked);
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let progress = serde_json::from_str::<Value>(body).unwrap_or_default()["progress"][0].clone();
        if is_so(&progress) {
            return;
        }
        if progress["stored"] != before {
            (moved, before) = (Instant::now(), progress["stored"].clone());
        }
        assert!(moved.elapsed() < PATIENCE, "{progress}\n{}", up.log());
        std::thread::yield_now();
    }
}

/// How often each chunk was asked for, by its mark.
fn marks(provider: &Provider) -> BTreeMap<String, usize> {
    let mut marks = BTreeMap::new();
    for body in provider.asked_for_vectors() {
        let mark = body.split_once("Mark ").and_then(|(_, rest)| rest.split_once('.')).unwrap().0.to_owned();
        *marks.entry(mark).or_default() += 1;
    }
    marks
}

/// The standard flow, with so many calls at once.
fn start_flow(up: &Up, folder: &std::path::Path) {
    let mut blueprint = up.json(&["blueprint", "show", "document-rag"]);
    for part in ["embeddings:{id}", "document-embeddings:{id}"] {
        blueprint["flow"][part]["parameters"]["concurrency"] = json!(CALLS.to_string());
    }
    let file = folder.join("blueprint.json");
    std::fs::write(&file, blueprint.to_string()).unwrap();
    assert!(up.run(&["blueprint", "put", "careful", file.to_str().unwrap()]).status.success());
    up.json(&["flow", "start", "f1", "careful"]);
}
