//! Damage in a data folder through the binary: it is told by what a person knows, and with what to do.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use common::{Up, ends, sluice, text};

fn add(up: &Up, name: &str, content: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(name);
    fs::write(&file, content).unwrap();
    up.json(&["doc", "add", file.to_str().unwrap(), "--store-only"]);
}

/// A document whose content rests in a file of its own.
fn add_large(up: &Up, name: &str) {
    add(up, name, &format!("Line of {name}.\n").repeat(5_000));
}

fn id_of(up: &Up, title: &str) -> String {
    let found = up.json(&["doc", "ls"]);
    let is_it = |one: &&serde_json::Value| one["title"] == title;
    found.as_array().unwrap().iter().find(is_it).unwrap()["id"].as_str().unwrap().to_owned()
}

/// The file that holds the content of a large document.
fn file_of(data: &Path, name: &str) -> PathBuf {
    let files = fs::read_dir(data.join("blobs")).unwrap().map(|entry| entry.unwrap().path());
    let begins = format!("Line of {name}.\n");
    files.into_iter().find(|file| fs::read(file).unwrap().starts_with(begins.as_bytes())).unwrap()
}

fn flip(file: &Path, at: usize) {
    let mut content = fs::read(file).unwrap();
    content[at] ^= 1;
    fs::write(file, content).unwrap();
}

fn on(data: &Path, args: &[&str]) -> Output {
    sluice().args(args).arg("--data").arg(data).output().unwrap()
}

fn start(data: &Path, more: &[&str]) -> Output {
    on(data, &[&["up", "--listen", "127.0.0.1:0"], more].concat())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (entry, target) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).unwrap();
        if entry.is_dir() {
            copy(&entry, &target);
        } else if entry.is_file() {
            fs::copy(entry, target).unwrap();
        }
    }
}

#[test]
fn damaged_content_is_told_with_its_document_wherever_it_is_told() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let (data, dir) = (path("data"), path("backup"));
    let mut up = Up::start(&data);
    for name in ["harmed.txt", "whole.txt"] {
        add_large(&up, name);
    }
    let id = id_of(&up, "harmed.txt");
    let document = format!("document '{id}' (\"harmed.txt\") of workspace 'default': its content 'doc/");
    let file = file_of(&data, "harmed.txt");
    flip(&file, 1_000);
    let says = |output: &Output, what: &str| {
        let said = text(output);
        assert!(said.replace("\\\"", "\"").contains(&document), "{what} does not say {document}:\n{said}");
        assert!(!said.contains("whole.txt"), "{what}: {said}");
    };
    let doctor = ["doctor", "--verify", "--url", "http://127.0.0.1:9"];
    let (backup, verify) = (["backup", dir.to_str().unwrap()], |dir: &Path| {
        let output = sluice().arg("verify").arg(dir).output().unwrap();
        ends(&output, 2, "");
        output
    });

    let asked = serde_json::json!({"operation": "get-document-content", "document-id": id});
    let answer = up.post("/api/v1/librarian", &asked).replace("\\\"", "\"");
    assert!(answer.contains(&document), "{answer}");
    says(&on(&data, &doctor), "the doctor of a running system");
    let is_logged = || up.log().replace("\\\"", "\"").contains(&document);
    common::until("the damage in the log", is_logged, || up.log());
    says(&on(&data, &backup), "a backup of a running system");
    says(&verify(&dir), "verify of a backup");
    says(&on(&path("restored"), &["restore", dir.to_str().unwrap()]), "restore");
    assert_eq!(up.terminate(), 0);
    says(&on(&data, &doctor), "the doctor of a stopped folder");
    says(&on(&data, &["doctor", "--url", "http://127.0.0.1:9"]), "the report");
    says(&on(&data, &backup), "a backup of a stopped folder");
    says(&verify(&data), "verify of a folder");
    let salvage = |to: &str| sluice().arg("salvage").arg(&data).arg("--data").arg(path(to)).output().unwrap();
    says(&salvage("first"), "salvage");
    fs::remove_file(&file).unwrap();
    says(&salvage("second"), "salvage without the file");
    let refused = start(&data, &[]);
    ends(&refused, 1, "--accept-loss blobs");
    says(&refused, "a refused start");
}

#[test]
fn a_damaged_log_is_told_as_that_with_its_file_its_byte_and_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    let mut up = Up::start(&data);
    up.json(&["flow", "start", "f1", "document-rag"]);
    assert_eq!(up.terminate(), 0);
    let is_log = |file: &PathBuf| file.file_name().unwrap().to_str().unwrap().starts_with("log-");
    let log = fs::read_dir(data.join("broker")).unwrap().map(|one| one.unwrap().path()).find(is_log).unwrap();
    flip(&log, 100);
    let refused = start(&data, &[]);
    ends(&refused, 1, &format!("the broker's log cannot be used: {} is damaged at byte ", log.display()));
    let said = text(&refused);
    for way in ["restore a backup into another folder", "--accept-loss broker"] {
        assert!(said.contains(way), "{way}: {said}");
    }
    assert!(!said.contains("cannot write"), "{said}");
    let up = Up::start_with(&data, &["--accept-loss", "broker"]);
    assert!(text(&up.run(&["flow", "ls"])).contains("f1"));
}

#[test]
fn every_accepted_loss_is_told_with_what_follows_from_it() {
    let root = tempfile::tempdir().unwrap();
    let [data, copied] = ["data", "copy"].map(|name| root.path().join(name));
    let mut up = Up::start(&data);
    add_large(&up, "large.txt");
    up.kill();
    copy(&data, &copied);
    ends(&start(&copied, &[]), 1, "--accept-loss copy");
    let told = |data: &Path, loss: &str, follows: &str| {
        let mut up = Up::start_with(data, &["--accept-loss", loss]);
        let log = up.log();
        assert!(log.contains("as was asked for") && log.contains(follows), "{loss}: {log}");
        assert_eq!(up.terminate(), 0);
        let mut up = Up::start(data);
        assert!(!up.log().contains("as was asked for"), "{loss} again: {}", up.log());
        assert_eq!(up.terminate(), 0);
    };
    told(&copied, "copy", "documents may lack their content");
    assert_eq!(Up::start(&data).terminate(), 0);
    fs::remove_dir_all(data.join("broker")).unwrap();
    told(&data, "broker", "messages that waited are lost");
    fs::remove_dir_all(data.join("blobs")).unwrap();
    told(&data, "blobs", "documents whose content is missing cannot be read");
    fs::write(data.join("sluice.json"), "{").unwrap();
    told(&data, "mark", "what else is missing or older cannot be told");
    fs::remove_file(data.join("sluice.json")).unwrap();
    told(&data, "mark", "what else is missing or older cannot be told");
}

#[test]
fn that_a_store_was_not_closed_is_told_once_at_a_start() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    let mut up = Up::start(&data);
    add_large(&up, "large.txt");
    up.kill();
    let up = Up::start(&data);
    assert_eq!(up.log().matches("the store was not closed").count(), 1, "{}", up.log());
}

/// A flow whose documents nobody takes.
fn start_sink(up: &Up, folder: &Path) {
    let blueprint = serde_json::json!({
        "interfaces": {"text-load": {"flow": "flow:tg:in:{workspace}:{id}"}},
        "blueprint": {},
        "flow": {"sink:{id}": {"topics": {"input": "flow:tg:in:{workspace}:{id}"}}},
    });
    let file = folder.join("sink.json");
    fs::write(&file, blueprint.to_string()).unwrap();
    up.json(&["blueprint", "put", "sink", file.to_str().unwrap()]);
    up.json(&["flow", "start", "f1", "sink"]);
}

#[test]
fn documents_that_were_under_way_when_the_log_was_lost_are_told_and_put_through_again() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    let mut up = Up::start(&data);
    start_sink(&up, root.path());
    let mut ids = Vec::new();
    for name in ["first.txt", "second.txt"] {
        let file = root.path().join(name);
        fs::write(&file, format!("What {name} says.")).unwrap();
        let added = up.json(&["doc", "add", file.to_str().unwrap(), "--flow", "f1", "--no-wait"]);
        ids.push(added["documents"][0].as_str().unwrap().to_owned());
    }
    let findings = |up: &Up| {
        let output = up.run(&["doctor", "-o", "json"]);
        let all: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        all.into_iter().find(|one| one["code"] == "documents-lost")
    };
    ends(&up.run(&["doc", "retry", "--lost"]), 0, "Nothing is on record");
    assert_eq!(up.terminate(), 0);
    fs::remove_dir_all(data.join("broker")).unwrap();
    let mut up = Up::start_with(&data, &["--accept-loss", "broker"]);
    assert!(up.log().contains("`sluice doc retry --lost`"), "{}", up.log());
    assert_eq!(up.terminate(), 0);

    // It is told also after a start that lost nothing.
    let up = Up::start(&data);
    let told = findings(&up).expect("a finding");
    assert!(told["text"].as_str().unwrap().starts_with("2 document(s)"), "{told}");
    assert!(told["next"].as_str().unwrap().contains("sluice doc retry --lost"), "{told}");
    let shown = up.run(&["doc", "show", &ids[0]]);
    ends(&shown, 0, "not on record as done");
    assert!(text(&shown).contains(&format!("sluice doc retry {}", ids[0])), "{}", text(&shown));
    // The flow's topics are made again first.
    let is_sent = || up.run(&["doc", "retry", &ids[0]]).status.success();
    common::until("a document to be put through again", is_sent, || up.log());
    assert!(findings(&up).unwrap()["text"].as_str().unwrap().starts_with("1 document(s)"));
    ends(&up.run(&["doc", "retry", "--lost"]), 0, &format!("{}: put through flow 'f1' again.", ids[1]));
    ends(&up.run(&["doc", "retry", "--lost"]), 0, "Nothing is on record");
    assert_eq!(findings(&up), None);
    ends(&up.run(&["doc", "show", &ids[0]]), 0, "under way");
    let described = up.json(&["flow", "describe", "f1"]);
    assert_eq!(described["status"]["queues"][0]["ready"], 2, "{described}");
}

/// What is said of a start that is refused; `None` if it serves.
fn refusal(data: &Path) -> Option<String> {
    let mut command = sluice();
    command.args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(data);
    let mut started = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    for line in BufReader::new(started.stderr.take().unwrap()).lines().map_while(Result::ok) {
        if line.contains("address=127.0.0.1:") {
            started.kill().unwrap();
            break;
        }
        said.push_str(&format!("{line}\n"));
    }
    // One that was killed has no code.
    started.wait().unwrap().code().map(|_| said)
}

#[test]
fn a_start_that_damage_in_the_store_ends_names_the_ways_out() {
    const BLOCK: usize = 4096;
    const BLOCKS: usize = 64;
    let root = tempfile::tempdir().unwrap();
    let [data, harmed] = ["data", "harmed"].map(|name| root.path().join(name));
    let mut up = Up::start(&data);
    up.json(&["flow", "start", "f1", "document-rag"]);
    assert_eq!(up.terminate(), 0);
    let whole = fs::read(data.join("store.redb")).unwrap();
    let mut refusals = 0;
    // Its first blocks: what leads to rows, and rows of the config service, of the standard configuration and of identities.
    for at in 1..BLOCKS {
        let _ = fs::remove_dir_all(&harmed);
        copy(&data, &harmed);
        let mut store = whole.clone();
        store[at * BLOCK + 2_000] ^= 1;
        fs::write(harmed.join("store.redb"), store).unwrap();
        let Some(said) = refusal(&harmed) else { continue };
        refusals += 1;
        let ways = said.lines().find(|line| line.starts_with("  try: ")).unwrap_or_default();
        assert!(ways.contains("sluice restore") && said.contains("sluice salvage"), "block {at}: {said}");
    }
    assert!(refusals >= 8, "{refusals}");
}
