//! What people get wrong: each mistake has its message, its exit code, and loses nothing.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::os::unix::fs::PermissionsExt;

use common::{Up, ends, sluice};

#[test]
fn the_command_line_says_what_is_wrong_before_anything_starts() {
    let run = |args: &[&str]| sluice().args(args).output().unwrap();
    ends(&run(&["flow", "strat"]), 64, "start");
    ends(&run(&["up", "--listen", "nowhere"]), 64, "listen");
    ends(&run(&["up", "--no-auth", "--listen", "0.0.0.0:8888"]), 64, "--force");
    ends(&run(&["up", "--broker", "carrier-pigeon://coop", "--data", "/dev/null/x"]), 64, "carrier-pigeon");
    let variable = sluice()
        .args(["up", "--listen", "0.0.0.0:8888"])
        .env("SLUICE_NO_AUTH", "1")
        .env("SLUICE_DATA", "/dev/null/x")
        .output()
        .unwrap();
    ends(&variable, 64, "--force");
    let apart =
        ["run", "iam", "config", "--no-auth", "--broker", "amqp://127.0.0.1:1", "--data", "/dev/null/x"];
    ends(&run(&apart), 64, "--force");
    ends(&run(&["up", "--allow-origin", "null"]), 64, "https://app.example.org");
    ends(&run(&["flow", "start", "f", "b", "-p", "novalue"]), 64, "NAME=VALUE");
    ends(&run(&["flow", "stop", "f", "--drain", "banana"]), 64, "discard");
    ends(&run(&["flow", "stop", "f", "--drain", "2m", "--url", "http://127.0.0.1:1/"]), 1, "sluice up");
    ends(&run(&["flow", "ls", "--url", "http://127.0.0.1:1/"]), 1, "sluice up");
    ends(&run(&["--help"]), 0, "Examples");
    ends(&run(&["completions", "bash"]), 0, "complete");
    ends(&run(&["notices"]), 0, "Software of others in the sluice binary");
}

#[test]
fn a_folder_or_a_port_in_use_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(&folder.path().join("data"));
    let second = sluice().args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(&up.data).output().unwrap();
    ends(&second, 1, &up.data.display().to_string());
    let address = up.url.trim_start_matches("http://");
    let other = folder.path().join("other");
    let third = sluice().args(["up", "--listen", address, "--data"]).arg(other).output().unwrap();
    ends(&third, 1, "in use");
    assert_eq!(up.run(&["flow", "ls"]).status.code(), Some(0), "the first goes on");
}

#[test]
fn a_data_folder_that_cannot_be_made_is_named() {
    let output = sluice().args(["up", "--listen", "127.0.0.1:0", "--data", "/dev/null/x"]).output().unwrap();
    ends(&output, 1, "/dev/null/x");
}

#[test]
fn the_admin_key_is_for_its_owner_alone_and_a_wrong_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(&folder.path().join("data"));
    let mode = std::fs::metadata(up.data.join("admin.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!up.log().contains(&up.key()), "the key is never logged");
    let wrong =
        sluice().args(["flow", "ls", "--url", &up.url]).env("TRUSTGRAPH_TOKEN", "tg_wrong").output().unwrap();
    ends(&wrong, 4, "TRUSTGRAPH_TOKEN");
}

#[test]
fn what_is_not_there_ends_with_3_and_names_the_next_command() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(&folder.path().join("data"));
    ends(&up.run(&["flow", "stop", "nope"]), 3, "sluice flow ls");
    ends(&up.run(&["flow", "start", "f1", "nope"]), 3, "sluice blueprint ls");
    ends(&up.run(&["config", "get", "prompt", "nope"]), 3, "sluice config ls prompt");
    ends(&up.run(&["blueprint", "show", "nope"]), 3, "sluice blueprint ls");
    ends(&up.run(&["flow", "ls", "-w", "nope"]), 3, "--workspace");
    ends(&up.run(&["ask", "why?", "--flow", "nope"]), 3, "nope");
    ends(&up.run(&["doc", "add", "/nowhere.md"]), 3, "/nowhere.md");
    ends(&up.run(&["doc", "rm", "urn:nope"]), 3, "urn:nope");
}

#[test]
fn a_file_that_cannot_be_loaded_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(&folder.path().join("data"));
    up.json(&["flow", "start", "default", "document-rag"]);
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    ends(&up.run(&["doc", "add", &file("empty.md", b"")]), 1, "empty.md");
    let picture = file("picture.png", b"\x89PNG");
    ends(&up.run(&["doc", "add", &picture]), 64, "picture.png");
    let good = file("good.md", b"# Good");
    ends(&up.run(&["doc", "add", &good, &picture, &file("empty2.md", b"")]), 1, "nothing was added");
    assert_eq!(up.json(&["doc", "ls"]), serde_json::Value::Array(Vec::new()));
    ends(&up.run(&["doc", "add", &good, "--flow", "nope"]), 3, "nope");
    ends(&up.run(&["flow", "start", "default", "document-rag"]), 1, "already exists");
    ends(&up.run(&["config", "put", "prompt", "x", "not json"]), 64, "not JSON");
}

#[test]
fn blueprints_that_reach_through_walls_are_refused_with_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(&folder.path().join("data"));
    let put = |name: &str, topic: &str| {
        let text = format!(
            r#"{{"flow": {{"chunker:{{id}}": {{"topics": {{"input": "{topic}", "output": "flow:tg:out:{{workspace}}:{{id}}"}}}}}}, "blueprint": {{}}, "interfaces": {{}}}}"#
        );
        let path = folder.path().join(format!("{name}.json"));
        std::fs::write(&path, text).unwrap();
        up.run(&["blueprint", "put", name, path.to_str().unwrap()])
    };
    ends(&put("other", "flow:tg:chunk-load:acme:{id}"), 1, "acme");
    ends(&put("system", "request:tg:config"), 1, "request:tg:config");
    ends(&put("shape", "nonsense"), 1, "nonsense");
    ends(&put("fine", "flow:tg:in:{workspace}:{id}"), 0, "fine");
}

#[test]
fn what_is_to_be_removed_and_is_not_there_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(&folder.path().join("data"));
    let remove = ["config", "rm", "tool", "t1"];
    ends(&up.run(&remove), 3, "there is no value tool/t1");
    up.json(&["config", "put", "tool", "t1", "{}"]);
    ends(&up.run(&remove), 0, "Deleted tool/t1.");
    ends(&up.run(&remove), 3, "sluice config ls tool");
    ends(&up.run(&["dead", "rm", "nope"]), 3, "nope");
    ends(&up.run(&["blueprint", "rm", "nope"]), 3, "sluice blueprint ls");
    ends(&up.run(&["blueprint", "rm", "document-rag"]), 0, "Deleted blueprint 'document-rag'");
    ends(&up.run(&["blueprint", "rm", "document-rag"]), 3, "sluice blueprint ls");
}
