//! Commands that look at a running system and at what it runs on, and the models that it is given, against a stub of their
//! provider.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "common/provider.rs"]
mod provider;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use common::{PATIENCE, Up, ends, sluice, text};
use provider::Provider;
use serde_json::{Value, json};

fn write(folder: &Path, name: &str, content: &str) -> PathBuf {
    let file = folder.join(name);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, content).unwrap();
    file
}

/// Codes of what the doctor finds, with the exit code it should have.
fn doctor(up: &Up, code: i32) -> Vec<String> {
    let output = up.run(&["doctor", "-o", "json"]);
    assert_eq!(output.status.code(), Some(code), "{}", text(&output));
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    findings.iter().map(|one| one["code"].as_str().unwrap().to_owned()).collect()
}

/// A flow whose documents nobody takes.
fn start_sink(up: &Up, folder: &Path) {
    let topics = json!({"input": "flow:tg:in:{workspace}:{id}"});
    let blueprint = json!({
        "interfaces": {"text-load": {"flow": "flow:tg:in:{workspace}:{id}"}},
        "blueprint": {},
        "flow": {"sink:{id}": {"topics": topics}},
    });
    let file = write(folder, "sink.json", &blueprint.to_string());
    up.json(&["blueprint", "put", "sink", file.to_str().unwrap()]);
    up.json(&["flow", "start", "sink", "sink"]);
}

#[test]
fn documents_named_by_a_pattern_are_added_shown_and_watched_to_their_end() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(&folder.path().join("data"));
    up.json(&["flow", "start", "f1", "document-rag"]);
    write(folder.path(), "notes/pump.md", "# Pump\n\nThe spare key hangs behind the blue door.\n");
    write(folder.path(), "notes/deep/mill.md", "# Mill\n\nMeet at the old oak.\n");
    write(folder.path(), "notes/deep/mill.png", "no document");
    let pattern = folder.path().join("notes/**/*");
    let added = up.json(&["doc", "add", pattern.to_str().unwrap(), "--flow", "f1", "--no-wait"]);
    let ids: Vec<&str> = added["documents"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(ids.len(), 2, "{added}");

    let watched = up.run(&["flow", "watch", "f1", "--until-idle", "-o", "json"]);
    assert!(watched.status.success(), "{}", text(&watched));
    let pictures: Vec<Value> = String::from_utf8_lossy(&watched.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let last = pictures.last().unwrap();
    assert_eq!((&last["backlog"], &last["documents"]["complete"]), (&json!(0), &json!(2)), "{last}");
    assert_eq!(last["chunks"]["stored"], last["chunks"]["announced"], "{last}");

    let shown = up.json(&["doc", "show", ids[0]]);
    assert_eq!(shown["document"]["title"], "mill.md", "{shown}");
    assert_eq!(
        (&shown["flows"][0]["flow"], &shown["progress"][0]["complete"]),
        (&json!("f1"), &json!(true)),
        "{shown}"
    );
    ends(&up.run(&["doc", "show", ids[0]]), 0, "complete");
    ends(&up.run(&["doc", "show", "urn:nothing"]), 3, "sluice doc ls");
    ends(&up.run(&["doc", "retry", ids[0]]), 0, "no failed message");
    ends(&up.run(&["flow", "watch", "nowhere"]), 3, "sluice flow ls");
    ends(&up.run(&["doc", "add", pattern.to_str().unwrap(), "--flow", "nowhere"]), 3, "start it first");

    let found = doctor(&up, 0);
    for code in [
        "iam-answers",
        "config-answers",
        "library-answers",
        "flow-answers",
        "store-writes",
        "embeddings-answer",
        "model-not-configured",
    ] {
        assert!(found.iter().any(|one| one == code), "{code} in {found:?}");
    }
}

#[test]
fn waiting_for_documents_that_nobody_takes_ends_with_the_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(&folder.path().join("data"));
    start_sink(&up, folder.path());
    let file = write(folder.path(), "a.txt", "Nobody reads this.");
    let add = up.run(&["doc", "add", file.to_str().unwrap(), "--flow", "sink", "--timeout", "5"]);
    ends(&add, 5, "nothing has moved for 5 s");
    let watch = up.run(&["flow", "watch", "sink", "--until-idle", "--timeout", "5"]);
    ends(&watch, 5, "1 waiting");
}

#[test]
fn what_failed_of_a_document_is_shown_and_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(&folder.path().join("data"));
    start_sink(&up, folder.path());
    let file = write(folder.path(), "a.txt", "Nobody reads this yet.");
    let added = up.json(&["doc", "add", file.to_str().unwrap(), "--flow", "sink", "--no-wait"]);
    let id = added["documents"][0].as_str().unwrap();
    up.json(&["flow", "stop", "sink", "--drain", "1ms"]);
    let shown = up.json(&["doc", "show", id]);
    assert_eq!(shown["parked"].as_array().unwrap().len(), 1, "{shown}");
    // Its flow is gone.
    ends(&up.run(&["doc", "retry", id]), 1, "start the flow");
    up.json(&["flow", "start", "sink", "sink"]);
    assert_eq!(up.json(&["doc", "retry", id])[0]["sent"], 1);
    assert_eq!(up.json(&["doc", "show", id])["parked"], json!([]));
    assert_eq!(up.json(&["flow", "describe", "sink"])["status"]["queues"][0]["ready"], 1);
}

#[test]
fn a_piece_that_its_provider_refused_is_listed_with_the_reason_and_sent_again_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let provider = Provider::start();
    provider.refuse(Some("Heron"));
    let options = ["--embeddings-url", &provider.url, "--embeddings-model", "m"];
    let up = Up::start_with(&folder.path().join("data"), &options);
    up.json(&["flow", "start", "f1", "document-rag"]);
    let about = |bird: &str| format!("{bird}. {}\n\n", "It stands in the river and waits. ".repeat(50));
    let content: String = ["Stork", "Heron", "Crane"].map(about).concat();
    let file = write(folder.path(), "birds.txt", &content);
    let added = up.run(&["doc", "add", file.to_str().unwrap(), "--flow", "f1", "-o", "json"]);
    assert_ne!(added.status.code(), Some(0), "{}", text(&added));
    let told: Value = serde_json::from_slice(&added.stdout).unwrap();
    let progress = &told["progress"][0];
    assert_eq!((&progress["stored"], &progress["failed"]), (&json!(2), &json!(1)), "{progress}");
    let failures = progress["failures"].as_array().unwrap();
    assert!(
        matches!(&failures[..], [one] if one["reason"].as_str().unwrap().contains("that word is not taken")),
        "{progress}"
    );

    let id = told["documents"][0].as_str().unwrap();
    provider.refuse(None);
    assert_eq!(up.json(&["doc", "retry", id])[0]["sent"], 1);
    let begun = Instant::now();
    loop {
        let shown = up.json(&["doc", "show", id]);
        let progress = &shown["progress"][0];
        if progress["stored"] == 3 && progress["failed"] == 0 && progress["complete"] == true {
            assert_eq!(shown["parked"], json!([]), "{shown}");
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{shown}\n{}", up.log());
    }
}

#[test]
fn models_and_embeddings_are_those_that_the_options_name() {
    let folder = tempfile::tempdir().unwrap();
    let (llm, vectors) = (Provider::start(), Provider::start());
    let key = write(folder.path(), "key", "k-from-file\n");
    let up = Up::start_with(
        &folder.path().join("data"),
        &[
            "--llm-url",
            &llm.url,
            "--llm-dialect",
            "ollama",
            "--llm-model",
            "gemma3",
            "--llm-key-file",
            key.to_str().unwrap(),
            "--embeddings-url",
            &vectors.url,
            "--embeddings-model",
            "embedder",
        ],
    );
    up.json(&["flow", "start", "f1", "document-rag"]);
    let asked = json!({"system": "", "prompt": "Say hello."});
    let answer = up.post("/api/v1/flow/f1/service/text-completion", &asked);
    assert!(answer.contains("hello from the stub"), "{answer}");
    let answer = up.post("/api/v1/flow/f1/service/embeddings", &json!({"texts": ["a"]}));
    assert!(answer.contains("0.25"), "{answer}");

    let question = llm.asked("/api/chat");
    assert!(question.contains("Bearer k-from-file") && question.contains("gemma3"), "{question}");
    assert!(vectors.asked("/embeddings").contains("\"embedder\""));
    assert!(!up.log().contains("k-from-file"));
    let found = doctor(&up, 0);
    assert!(
        found.contains(&"model-answers".to_owned()) && found.contains(&"embeddings-answer".to_owned()),
        "{found:?}"
    );

    llm.break_down();
    let found = doctor(&up, 2);
    assert!(found.contains(&"model-silent".to_owned()), "{found:?}");
}

#[test]
fn a_provider_of_the_anthropic_dialect_answers_whole_and_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let llm = Provider::start();
    let key = write(folder.path(), "key", "k-from-file\n");
    let options = ["--llm-url", &llm.url, "--llm-dialect", "anthropic", "--llm-model", "claude"];
    let options = [&options[..], &["--llm-key-file", key.to_str().unwrap()]].concat();
    let up = Up::start_with(&folder.path().join("data"), &options);
    up.json(&["flow", "start", "f1", "document-rag"]);
    let asked = json!({"system": "Be kind.", "prompt": "Say hello."});
    let answer = up.post("/api/v1/flow/f1/service/text-completion", &asked);
    assert!(answer.contains("hello from the stub"), "{answer}");
    let question = llm.asked("/messages").to_lowercase();
    assert!(
        question.contains("x-api-key: k-from-file") && question.contains("anthropic-version:"),
        "{question}"
    );
    let note = write(folder.path(), "note.md", "# Pump\n\nThe spare key hangs behind the blue door.\n");
    up.json(&["doc", "add", note.to_str().unwrap(), "--flow", "f1"]);
    let answer = up.run(&["ask", "where is the spare key?", "--flow", "f1"]);
    ends(&answer, 0, "hello from the stub");
    assert!(llm.asked("/messages").contains("\"stream\":true"));
    assert!(doctor(&up, 0).contains(&"model-answers".to_owned()));
}

#[test]
fn options_that_cannot_work_are_told_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let up = |more: &[&str]| {
        sluice().args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(&data).args(more).output().unwrap()
    };
    ends(&up(&["--without", "chunker"]), 64, "sluice up --broker amqp://user@host/vhost --without chunker");
    ends(&up(&["--llm-url", "http://x", "--llm-dialect", "latin"]), 64, "openai, anthropic or ollama");
    ends(&up(&["--embeddings-url", "http://x", "--embeddings-local", "y"]), 64, "cannot be used with");
    ends(&up(&["--llm-url", "http://x", "--llm-key-file", "/not/there"]), 1, "/not/there");
    assert!(!data.exists());
    ends(&up(&["--embeddings-local", "/not/there"]), 1, "/not/there");
    ends(&up(&["--embeddings-url", "https://x/anthropic"]), 1, "openai or ollama");
}

#[test]
fn the_doctor_says_that_nobody_is_there() {
    let began = Instant::now();
    let output = sluice().args(["doctor", "--url", "http://127.0.0.1:1", "-o", "json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(
        text(&output).contains("gateway-silent") && text(&output).contains("sluice up"),
        "{}",
        text(&output)
    );
    assert!(began.elapsed() < PATIENCE);
}

#[test]
fn told_to_stop_as_soon_as_it_serves_it_stops_in_good_order() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        assert_eq!(Up::start(&folder.path().join("data")).terminate(), 0);
    }
    // As a terminal does that is closed.
    let mut up = Up::start(&folder.path().join("data"));
    let told = Command::new("kill").args(["-HUP", &up.pid().to_string()]).status().unwrap();
    assert!(told.success() && up.ended() == 0, "{}", up.log());
}

#[test]
fn how_many_documents_were_taken_is_told_when_the_server_dies() {
    const FILES: usize = 2_000;
    let folder = tempfile::tempdir().unwrap();
    let mut up = Up::start(&folder.path().join("data"));
    let notes = folder.path().join("notes");
    for number in 0..FILES {
        write(&notes, &format!("{number}.txt"), &format!("note {number}"));
    }
    let adding = sluice()
        .args(["doc", "add", notes.to_str().unwrap(), "--store-only", "--url", &up.url, "--data"])
        .arg(&up.data)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let has_some = || up.json(&["doc", "ls"]).as_array().is_some_and(|all| !all.is_empty());
    common::until("some to be taken", has_some, || up.log());
    up.kill();
    let output = adding.wait_with_output().unwrap();
    ends(&output, 1, &format!("of {FILES} files were; the same command again adds the rest"));
}

/// Rows of `sluice conformance -o json` that ended in a way, by the names of their cases.
fn ended<'a>(answer: &'a Value, result: &str) -> Vec<&'a str> {
    let rows = answer["cases"].as_array().unwrap().iter().filter(|row| row["result"] == result);
    rows.map(|row| row["case"].as_str().unwrap()).collect()
}

#[test]
fn the_embedded_broker_keeps_every_case_and_one_that_is_not_there_is_told() {
    let conformance = |args: &[&str]| sluice().arg("conformance").args(args).output().unwrap();
    let output = conformance(&["-o", "json"]);
    assert!(output.status.success(), "{}", text(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let kept = ended(&answer, "kept");
    assert_eq!(kept.len(), answer["cases"].as_array().unwrap().len(), "{answer}");
    assert_eq!((&answer["kept"], &answer["failed"]), (&json!(kept.len()), &json!(0)), "{answer}");
    assert!(kept.contains(&"flow_messages_survive_a_restart"), "{kept:?}");
    assert!(answer["product"].as_str().unwrap().starts_with("embedded "), "{answer}");

    let output = conformance(&["prefetch", "poison"]);
    ends(&output, 0, "2 kept, 0 not promised, 0 not run, 0 failed.");
    ends(&output, 0, "not promised: readers and writers that are not ours take part");
    ends(&conformance(&["gopher"]), 64, "no case has 'gopher' in its name");
    ends(&conformance(&["--broker", "gopher://host"]), 64, "no broker for 'gopher://'");
    ends(&conformance(&["--broker", "amqp://guest@127.0.0.1:1"]), 1, "start the broker");
}
