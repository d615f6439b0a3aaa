//! What one call did one call undoes, in every state that accepted calls can reach: everything is filled to its ceilings
//! through the binary under a limit of its address space, it is started again, and single calls empty it. And what is
//! damaged or too large in a folder keeps nothing else from working.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Up, ends, sluice};
use serde_json::{Value, json};

/// Address space of the process: what is built without measure ends it.
const ADDRESS_KIB: u64 = 6 * 1024 * 1024;
const LARGE: usize = 1_000_000;

fn start(data: &Path) -> Up {
    let mut limited = Command::new("/bin/sh");
    let script = format!("ulimit -v {ADDRESS_KIB}; exec \"$0\" \"$@\"");
    limited.args(["-c", &script, env!("CARGO_BIN_EXE_sluice")]);
    Up::start_as(limited, data, &[])
}

/// Calls a service; an error in the answer is one.
fn call(up: &Up, service: &str, body: &Value) -> Result<Value, String> {
    let said = up.post(&format!("/api/v1/{service}"), body);
    let Some((head, answer)) = said.split_once("\r\n\r\n") else {
        return Err(format!("no answer\n{}", up.log()));
    };
    let answer: Value = serde_json::from_str(answer).unwrap_or_default();
    let is_fine = head.starts_with("HTTP/1.1 200") && answer.get("error").is_none_or(Value::is_null);
    if is_fine { Ok(answer) } else { Err(format!("{head}\n{answer}")) }
}

/// Something that calls make, one each.
struct Kind {
    name: &'static str,
    service: &'static str,
    /// So many of them, or until one is refused.
    count_max: usize,
    make: fn(usize) -> Value,
    undo: fn(usize) -> Value,
    list: Value,
    /// How many of them a page of the list tells.
    told: fn(&Value) -> usize,
}

impl Kind {
    /// Each kind has a workspace of its own, but for workspaces.
    fn body(&self, mut body: Value) -> Value {
        body["workspace"] = json!(if self.service == "iam" { "default" } else { self.name });
        body
    }

    /// Makes them; how many there are, and why there are no more.
    fn fill(&self, up: &Up) -> (usize, Option<String>) {
        for n in 0..self.count_max {
            if let Err(refused) = call(up, self.service, &self.body((self.make)(n))) {
                assert!(refused.contains("too-large"), "{} {n}: {refused}", self.name);
                return (n, Some(refused));
            }
        }
        (self.count_max, None)
    }

    /// How many the list tells of, page by page; in one answer it is all of them, or an error that says how to ask.
    fn count(&self, up: &Up) -> usize {
        let mut page = self.body(self.list.clone());
        let whole = call(up, self.service, &page);
        page["bytes_max"] = json!(4 << 20);
        let mut count = 0;
        loop {
            let answer = call(up, self.service, &page).unwrap();
            count += (self.told)(&answer);
            match answer["cursor"].as_str() {
                Some(cursor) if !cursor.is_empty() => page["cursor"] = json!(cursor),
                _ => break,
            }
        }
        match whole {
            Ok(whole) => assert_eq!((self.told)(&whole), count, "{}", self.name),
            Err(error) => assert!(error.contains("too-large") && error.contains("bytes_max"), "{error}"),
        }
        count
    }
}

fn long(bytes: usize) -> String {
    "x".repeat(bytes)
}

fn array(answer: &Value, member: &str) -> usize {
    answer[member].as_array().map_or(0, Vec::len)
}

#[rustfmt::skip]
fn kinds() -> Vec<Kind> {
    vec![
        Kind {
            name: "values", service: "config", count_max: 75,
            make: |n| json!({"operation": "put", "values": [{"type": format!("t{}", n / 15), "key": format!("k{n}"), "value": long(LARGE)}]}),
            undo: |n| json!({"operation": "delete", "keys": [{"type": format!("t{}", n / 15), "key": format!("k{n}")}]}),
            list: json!({"operation": "config"}),
            told: |page| {
                let types = page["config"].as_object().into_iter().flatten();
                types.filter(|(kind, _)| kind.len() == 2).map(|(_, keys)| keys.as_object().map_or(0, |keys| keys.len())).sum()
            },
        },
        Kind {
            name: "blueprints", service: "flow", count_max: 30,
            make: |n| json!({"operation": "put-blueprint", "blueprint-name": format!("b{n}"),
                "blueprint-definition": json!({"flow": {}, "blueprint": {}, "pad": long(LARGE)}).to_string()}),
            undo: |n| json!({"operation": "delete-blueprint", "blueprint-name": format!("b{n}")}),
            list: json!({"operation": "list-blueprints"}),
            told: |page| {
                let names = page["blueprint-names"].as_array().into_iter().flatten();
                names.filter(|name| name.as_str().is_some_and(|name| name.starts_with('b'))).count()
            },
        },
        Kind {
            name: "flows", service: "flow", count_max: 6,
            make: |n| json!({"operation": "start-flow", "flow-id": format!("f{n}"), "blueprint-name": "document-rag",
                "description": long(16 << 10)}),
            undo: |n| json!({"operation": "stop-flow", "flow-id": format!("f{n}"), "drain": "discard"}),
            list: json!({"operation": "list-flows"}),
            told: |page| array(page, "flows"),
        },
        Kind {
            name: "documents", service: "librarian", count_max: 75,
            make: |n| json!({"operation": "add-document", "content": "eA==", "document-metadata": {
                "id": format!("d{n}"), "kind": "text/plain", "comments": long(LARGE), "tags": [long(40_000)], "metadata": []}}),
            undo: |n| json!({"operation": "remove-document", "document-id": format!("d{n}")}),
            list: json!({"operation": "list-documents"}),
            told: |page| array(page, "document-metadatas"),
        },
        Kind {
            name: "collections", service: "collection-management", count_max: 30,
            make: |n| json!({"operation": "update-collection", "collection": format!("c{n}"), "description": long(60_000)}),
            undo: |n| json!({"operation": "delete-collection", "collection": format!("c{n}")}),
            list: json!({"operation": "list-collections"}),
            told: |page| {
                let all = page["collections"].as_array().into_iter().flatten();
                all.filter(|one| one["collection"].as_str().is_some_and(|id| id.starts_with('c'))).count()
            },
        },
        Kind {
            name: "workspaces", service: "iam", count_max: 10,
            make: |n| json!({"operation": "create-workspace", "workspace_record": {"id": format!("made{n}"), "name": long(1_024), "enabled": true}}),
            undo: |n| json!({"operation": "disable-workspace", "workspace_record": {"id": format!("made{n}")}}),
            list: json!({"operation": "list-workspaces"}),
            told: |page| {
                let all = page["workspaces"].as_array().into_iter().flatten();
                all.filter(|one| one["enabled"] == true && one["id"].as_str().is_some_and(|id| id.starts_with("made"))).count()
            },
        },
    ]
}

#[test]
fn what_one_call_did_one_call_undoes_in_every_state_that_accepted_calls_reach() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut up = start(&data);
    let kinds = kinds();
    let make = |up: &Up, id: &str| {
        let made = json!({"operation": "create-workspace", "workspace_record": {"id": id, "name": id, "enabled": true}});
        call(up, "iam", &made).unwrap();
    };
    make(&up, "beside");
    let mut made = Vec::new();
    for kind in &kinds {
        if kind.service != "iam" {
            make(&up, kind.name);
        }
        let (count, refused) = kind.fill(&up);
        let is_bounded = ["values", "blueprints"].contains(&kind.name);
        assert_eq!(refused.is_some(), is_bounded, "{}: {count} {refused:?}", kind.name);
        assert_eq!(kind.count(&up), count, "{}", kind.name);
        made.push(count);
    }
    // What could not be told later is refused, and leaves nothing.
    for n in 0..3 {
        let vast = json!({"operation": "update-collection", "workspace": "beside", "collection": format!("v{n}"), "description": long(15 << 20)});
        let refused = call(&up, "collection-management", &vast).unwrap_err();
        assert!(refused.contains("too-large"), "{refused}");
    }
    // A command pages by itself.
    let listed = up.json(&["doc", "ls", "--workspace", "documents"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(75));

    assert_eq!(up.terminate(), 0, "{}", up.log());
    let up = start(&data);
    // Others have never noticed.
    let beside = json!({"operation": "put", "workspace": "beside", "values": [{"type": "t", "key": "k", "value": "1"}]});
    call(&up, "config", &beside).unwrap();
    up.json(&["flow", "start", "f1", "document-rag", "--workspace", "beside"]);
    for (kind, count) in kinds.iter().zip(made) {
        assert_eq!(kind.count(&up), count, "{} after the restart", kind.name);
        for n in 0..count {
            if let Err(error) = call(&up, kind.service, &kind.body((kind.undo)(n))) {
                panic!("{} {n} cannot be undone: {error}", kind.name);
            }
        }
        assert_eq!(kind.count(&up), 0, "{} after all of it was undone", kind.name);
        let mut again = kind.body((kind.make)(0));
        if kind.service == "iam" {
            // It is there, and disabled.
            again["operation"] = json!("update-workspace");
        }
        call(&up, kind.service, &again).unwrap();
        assert_eq!(kind.count(&up), 1, "{} again", kind.name);
    }
    up.json(&["flow", "stop", "f1", "--workspace", "beside"]);
}

#[test]
fn a_damaged_blueprint_keeps_no_other_flow_from_starting_and_stopping() {
    const MIDDLE: &[u8] = b"in-the-middle-of-it";
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut up = start(&data);
    let middle = String::from_utf8_lossy(MIDDLE);
    // Large ones beside it, so that nothing small rests in the blocks that are damaged.
    for name in ["ee-beside", "ff-beside", "gg-damaged", "hh-beside"] {
        let pad = if name == "gg-damaged" {
            format!("{}{middle}{}", long(90_000), long(90_000))
        } else {
            long(90_000)
        };
        let definition = json!({"flow": {}, "blueprint": {}, "pad": pad}).to_string();
        let put = json!({"operation": "put-blueprint", "workspace": "default", "blueprint-name": name, "blueprint-definition": definition});
        call(&up, "flow", &put).unwrap();
    }
    up.json(&["flow", "start", "f1", "document-rag"]);
    assert_eq!(up.terminate(), 0, "{}", up.log());
    let store = data.join("store.redb");
    let mut content = std::fs::read(&store).unwrap();
    let places: Vec<usize> = places_of(&content, MIDDLE);
    assert!(!places.is_empty(), "it is in the file as it is");
    for place in places {
        content[place + 3] ^= 1;
    }
    std::fs::write(&store, content).unwrap();

    let mut up = start(&data);
    let listed = up.json(&["flow", "ls"]);
    assert!(
        listed.as_array().is_some_and(|flows| flows.len() == 1 && flows[0]["phase"] == "Running"),
        "{listed}"
    );
    up.json(&["flow", "stop", "f1"]);
    up.json(&["flow", "start", "f2", "document-rag"]);
    let refused = up.run(&["flow", "start", "f3", "gg-damaged"]);
    ends(&refused, 1, "blueprint 'gg-damaged' cannot be read");
    let names = up.json(&["blueprint", "ls"]);
    assert!(names.as_array().unwrap().iter().any(|name| name == "gg-damaged"), "{names}");
    up.json(&["flow", "stop", "f2"]);
    assert_eq!(up.terminate(), 0, "{}", up.log());
}

/// Where a pattern begins.
fn places_of(content: &[u8], pattern: &[u8]) -> Vec<usize> {
    let found = content.windows(pattern.len()).enumerate();
    found.filter(|(_, window)| *window == pattern).map(|(at, _)| at).collect()
}

#[test]
fn the_largest_values_of_a_folder_are_listed_and_one_is_taken_out_while_nobody_works_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let doctor = |more: &[&str]| {
        let args = ["doctor", "--url", "http://127.0.0.1:9", "-o", "json", "--data"];
        sluice().args(args).arg(&data).args(more).output().unwrap()
    };
    let mut up = start(&data);
    for (key, bytes) in [("large", LARGE), ("small", 10)] {
        let put = json!({"operation": "put", "workspace": "default", "values": [{"type": "t", "key": key, "value": long(bytes)}]});
        call(&up, "config", &put).unwrap();
    }
    ends(&doctor(&["--remove", "default/t/large"]), 1, "is in use");
    ends(&doctor(&["--largest"]), 1, "is in use");
    assert_eq!(up.terminate(), 0, "{}", up.log());

    let listed: Value = serde_json::from_slice(&doctor(&["--largest"]).stdout).unwrap();
    let sizes = listed.as_array().unwrap().iter().filter(|one| one["code"] == "value-size");
    let largest = sizes.map(|one| one["text"].as_str().unwrap()).next().unwrap();
    assert!(largest.contains("default/t/large") && largest.contains("KiB"), "{largest}");
    ends(
        &doctor(&["--remove", "default/t/nothing"]),
        3,
        "there is no config value 't/nothing' in workspace 'default'",
    );
    ends(&doctor(&["--remove", "t"]), 64, "WORKSPACE/TYPE/KEY");
    ends(&doctor(&["--remove", "default/t/large"]), 0, "default/t/large");

    let mut up = start(&data);
    let left = up.json(&["config", "ls", "t"]);
    assert_eq!(left, json!(["small"]));
    let put = json!({"operation": "put", "workspace": "default", "values": [{"type": "t", "key": "large", "value": "again"}]});
    call(&up, "config", &put).unwrap();
    assert_eq!(up.terminate(), 0, "{}", up.log());
}
