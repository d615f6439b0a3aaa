//! What one call did one call undoes, in every state that accepted calls can reach: everything is filled to its ceilings
//! through the binary under a limit of its address space, it is started again, and single calls empty it. And what is
//! damaged or too large in a folder keeps nothing else from working.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Up, ends, sluice};
use serde_json::{Value, json};
use sluice_schema::ceilings;
use sluice_schema::operation::{self, Kind as Of};

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
    /// What is there first, in the kind's workspace: service and call.
    before: Vec<(&'static str, Value)>,
    /// So many of them, or until one is refused.
    count_max: usize,
    /// What the refusal says, of kinds that have a ceiling which is reached here.
    ceiling: Option<&'static str>,
    make: fn(usize) -> Value,
    /// From the number and what the making answered.
    undo: fn(usize, &Value) -> Value,
    list: Value,
    /// How many of them a page of the list tells.
    told: fn(&Value) -> usize,
}

/// A kind as it was filled: what each making answered.
struct Filled {
    kind: Kind,
    made: Vec<Value>,
}

impl Kind {
    /// Each kind has a workspace of its own, but for workspaces.
    fn body(&self, mut body: Value) -> Value {
        body["workspace"] = json!(if self.service == "iam" { "default" } else { self.name });
        body
    }

    /// Makes them, up to the ceiling or as many as are wanted.
    fn fill(self, up: &Up) -> Filled {
        for (service, body) in &self.before {
            call(up, service, &self.body(body.clone())).unwrap();
        }
        let mut made = Vec::new();
        let refused = loop {
            if made.len() == self.count_max {
                break None;
            }
            match call(up, self.service, &self.body((self.make)(made.len()))) {
                Ok(answer) => made.push(answer),
                Err(refused) => break Some(refused),
            }
        };
        match (&refused, self.ceiling) {
            (None, None) => {}
            (Some(refused), Some(says)) => assert!(refused.contains(says), "{}: {refused}", self.name),
            _ => panic!("{}: {} are there, then {refused:?}", self.name, made.len()),
        }
        Filled { kind: self, made }
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

/// Members of a list whose id begins as those made here do.
fn with_id(list: &Value, member: &str, begins: &str) -> usize {
    let all = list.as_array().into_iter().flatten();
    all.filter(|one| one[member].as_str().is_some_and(|id| id.starts_with(begins))).count()
}

const TOO_LARGE: Option<&str> = Some("too-large");
/// A blueprint whose flows are nothing but their records.
const EMPTY_BLUEPRINT: &str = r#"{"flow": {}, "blueprint": {}}"#;

#[rustfmt::skip]
fn kinds() -> Vec<Kind> {
    let document = |id: &str| json!({"id": id, "kind": "text/plain", "title": "", "comments": "", "tags": [], "metadata": []});
    vec![
        Kind {
            name: "values", service: "config", before: vec![], count_max: 75, ceiling: TOO_LARGE,
            make: |n| json!({"operation": "put", "values": [{"type": format!("t{}", n / 15), "key": format!("k{n}"), "value": long(LARGE)}]}),
            undo: |n, _| json!({"operation": "delete", "keys": [{"type": format!("t{}", n / 15), "key": format!("k{n}")}]}),
            list: json!({"operation": "config"}),
            told: |page| {
                let types = page["config"].as_object().into_iter().flatten();
                types.filter(|(kind, _)| kind.len() == 2).map(|(_, keys)| keys.as_object().map_or(0, |keys| keys.len())).sum()
            },
        },
        Kind {
            name: "blueprints", service: "flow", before: vec![], count_max: 30, ceiling: TOO_LARGE,
            make: |n| json!({"operation": "put-blueprint", "blueprint-name": format!("b{n}"),
                "blueprint-definition": json!({"flow": {}, "blueprint": {}, "pad": long(LARGE)}).to_string()}),
            undo: |n, _| json!({"operation": "delete-blueprint", "blueprint-name": format!("b{n}")}),
            list: json!({"operation": "list-blueprints"}),
            told: |page| {
                let names = page["blueprint-names"].as_array().into_iter().flatten();
                names.filter(|name| name.as_str().is_some_and(|name| name.starts_with('b'))).count()
            },
        },
        Kind {
            name: "flows", service: "flow", before: vec![], count_max: 6, ceiling: None,
            make: |n| json!({"operation": "start-flow", "flow-id": format!("f{n}"), "blueprint-name": "document-rag",
                "description": long(16 << 10)}),
            undo: |n, _| json!({"operation": "stop-flow", "flow-id": format!("f{n}"), "drain": "discard"}),
            list: json!({"operation": "list-flows"}),
            told: |page| array(page, "flows"),
        },
        Kind {
            name: "many-flows", service: "flow", count_max: 2_000, ceiling: Some("has 1000 flows, which is the limit"),
            before: vec![("flow", json!({"operation": "put-blueprint", "blueprint-name": "empty", "blueprint-definition": EMPTY_BLUEPRINT}))],
            make: |n| json!({"operation": "start-flow", "flow-id": format!("f{n}"), "blueprint-name": "empty",
                "description": long(12 << 10)}),
            undo: |n, _| json!({"operation": "stop-flow", "flow-id": format!("f{n}"), "drain": "discard"}),
            list: json!({"operation": "list-flows"}),
            told: |page| array(page, "flows"),
        },
        Kind {
            name: "documents", service: "librarian", before: vec![], count_max: 75, ceiling: None,
            make: |n| json!({"operation": "add-document", "content": "eA==", "document-metadata": {
                "id": format!("d{n}"), "kind": "text/plain", "comments": long(LARGE), "tags": [long(40_000)], "metadata": []}}),
            undo: |n, _| json!({"operation": "remove-document", "document-id": format!("d{n}")}),
            list: json!({"operation": "list-documents"}),
            told: |page| array(page, "document-metadatas"),
        },
        Kind {
            name: "uploads", service: "librarian", before: vec![], count_max: 2_000, ceiling: Some("1000 uploads are open"),
            make: |n| json!({"operation": "begin-upload", "total-size": 10, "chunk-size": 10, "document-metadata": {
                "id": format!("u{n}"), "kind": "text/plain", "comments": long(1_000), "tags": [], "metadata": []}}),
            undo: |_, made| json!({"operation": "abort-upload", "upload-id": made["upload-id"]}),
            list: json!({"operation": "list-uploads"}),
            told: |page| array(page, "upload-sessions"),
        },
        Kind {
            name: "processing", service: "librarian", count_max: 250, ceiling: None,
            before: vec![
                ("flow", json!({"operation": "start-flow", "flow-id": "f", "blueprint-name": "document-rag", "description": ""})),
                ("librarian", json!({"operation": "add-document", "content": "eA==", "document-metadata": document("d")})),
            ],
            make: |n| json!({"operation": "add-processing", "processing-metadata": {
                "id": format!("p{n}"), "document-id": "d", "flow": "f", "collection": "default", "tags": [long(60_000)]}}),
            undo: |n, _| json!({"operation": "remove-processing", "processing-id": format!("p{n}")}),
            list: json!({"operation": "list-processing"}),
            told: |page| array(page, "processing-metadatas"),
        },
        Kind {
            name: "collections", service: "collection-management", before: vec![], count_max: 1_000, ceiling: TOO_LARGE,
            make: |n| json!({"operation": "update-collection", "collection": format!("c{n}"), "description": long(60_000)}),
            undo: |n, _| json!({"operation": "delete-collection", "collection": format!("c{n}")}),
            list: json!({"operation": "list-collections"}),
            told: |page| with_id(&page["collections"], "collection", "c"),
        },
        Kind {
            // All but the last: see what comes before.
            name: "many-collections", service: "collection-management", count_max: 1_000, ceiling: TOO_LARGE,
            before: vec![("config", json!({"operation": "put", "values": many_collections(&|n| json!({"value": format!(r#"{{"name": "{n}"}}"#)}))}))],
            make: |n| json!({"operation": "update-collection", "collection": format!("c{n}"), "description": "one more"}),
            undo: |n, _| json!({"operation": "delete-collection", "collection": format!("c{n}")}),
            list: json!({"operation": "list-collections"}),
            told: |page| with_id(&page["collections"], "collection", "c"),
        },
        Kind {
            name: "workspaces", service: "iam", before: vec![], count_max: 10, ceiling: None,
            make: |n| json!({"operation": "create-workspace", "workspace_record": {"id": format!("made{n}"), "name": long(1_024), "enabled": true}}),
            undo: |n, _| json!({"operation": "disable-workspace", "workspace_record": {"id": format!("made{n}")}}),
            list: json!({"operation": "list-workspaces"}),
            told: |page| {
                let all = page["workspaces"].as_array().into_iter().flatten();
                all.filter(|one| one["enabled"] == true && one["id"].as_str().is_some_and(|id| id.starts_with("made"))).count()
            },
        },
    ]
}

/// So many collections are written by one call of config, so that those which are made one by one reach the ceiling of keys.
const WRITTEN_AT_ONCE: usize = ceilings::TYPE_KEYS_MAX as usize - 200;

/// Places of collections that are written at once, with more of each.
fn many_collections(more: &dyn Fn(usize) -> Value) -> Vec<Value> {
    let place = |n| {
        let mut place = more(n);
        place["type"] = json!("collection");
        place["key"] = json!(format!("at-once-{n}"));
        place
    };
    (0..WRITTEN_AT_ONCE).map(place).collect()
}

/// What makes something, by the kind above in which it is undone. What is in none of them is not there: it is refused.
#[rustfmt::skip]
const UNDONE: [(&str, &str, &str); 14] = [
    ("config", "put", "values"),
    ("flow", "put-blueprint", "blueprints"),
    ("flow", "start-flow", "flows"),
    ("librarian", "add-document", "documents"),
    // With the document that they are of, or made.
    ("librarian", "add-child-document", "documents"),
    ("librarian", "complete-upload", "documents"),
    ("librarian", "begin-upload", "uploads"),
    ("librarian", "upload-chunk", "uploads"),
    ("librarian", "add-processing", "processing"),
    ("collection-management", "update-collection", "collections"),
    ("iam", "create-workspace", "workspaces"),
    // They change what is there.
    ("librarian", "update-document", "documents"),
    ("iam", "update-workspace", "workspaces"),
    ("dead-letters", "replay", "processing"),
];

/// Every call of the table that makes something is undone here, or makes nothing.
fn what_is_not_here_makes_nothing(up: &Up, kinds: &[Filled]) {
    const MAKING: [&str; 13] = [
        "add",
        "begin",
        "bootstrap",
        "complete",
        "create",
        "load",
        "mint",
        "put",
        "replay",
        "rotate",
        "start",
        "update",
        "upload",
    ];
    for operation in operation::table() {
        let service = operation.kind.as_str();
        let makes = MAKING.contains(&operation.name.split('-').next().unwrap_or_default());
        if !matches!(operation.kind, Of::Iam | Of::Service(_))
            || !makes
            || operation.name == "bootstrap-status"
        {
            continue;
        }
        let undone = UNDONE.iter().find(|(of, name, _)| (*of, *name) == (service, operation.name));
        match undone {
            Some((.., kind)) => {
                assert!(kinds.iter().any(|filled| filled.kind.name == *kind), "{operation:?}")
            }
            None => {
                let user = json!({"username": "u", "name": "u", "password": "secret", "roles": ["admin"]});
                let body = json!({"operation": operation.name, "workspace": "default", "id": "x", "user": user,
                    "user_id": "admin", "group_id": "g", "group": {"id": "g", "name": "g"}, "key": {"user_id": "admin", "name": "k"}});
                let refused = call(up, service, &body).expect_err(operation.name);
                let is_none =
                    ["not-yet-implemented", "nobody serves", "auth failure", "not available", "nvalid"];
                assert!(is_none.iter().any(|says| refused.contains(says)), "{operation:?}: {refused}");
            }
        }
    }
}

#[test]
fn what_one_call_did_one_call_undoes_in_every_state_that_accepted_calls_reach() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut up = start(&data);
    let make = |up: &Up, id: &str| {
        let made = json!({"operation": "create-workspace", "workspace_record": {"id": id, "name": id, "enabled": true}});
        call(up, "iam", &made).unwrap();
    };
    make(&up, "beside");
    let mut kinds_filled = Vec::new();
    for kind in kinds() {
        if kind.service != "iam" {
            make(&up, kind.name);
        }
        let filled = kind.fill(&up);
        assert_eq!(filled.kind.count(&up), filled.made.len(), "{}", filled.kind.name);
        kinds_filled.push(filled);
    }
    what_is_not_here_makes_nothing(&up, &kinds_filled);
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
    for Filled { kind, made } in &kinds_filled {
        assert_eq!(kind.count(&up), made.len(), "{} after the restart", kind.name);
        for (n, answer) in made.iter().enumerate() {
            if let Err(error) = call(&up, kind.service, &kind.body((kind.undo)(n, answer))) {
                panic!("{} {n} cannot be undone: {error}", kind.name);
            }
        }
        assert_eq!(kind.count(&up), 0, "{} after all of it was undone", kind.name);
        call(&up, kind.service, &kind.body((kind.make)(0))).unwrap();
        assert_eq!(kind.count(&up), 1, "{} again", kind.name);
    }
    let at_once = json!({"operation": "delete", "workspace": "many-collections", "keys": many_collections(&|_| json!({}))});
    call(&up, "config", &at_once).unwrap();
    up.json(&["flow", "stop", "f1", "--workspace", "beside"]);
}

/// What the process takes of memory, in bytes.
fn memory(up: &Up) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", up.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Types that processors of flows read, and what runs beside flows; no flow of these workspaces runs.
#[test]
fn what_workspaces_hold_in_which_nothing_runs_takes_no_memory_also_after_a_start() {
    const WORKSPACES: usize = 8;
    const VALUES: usize = 230;
    const VALUE_BYTES: usize = 60_000;
    const MORE_BYTES: u64 = 200 << 20;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut up = start(&data);
    up.json(&["flow", "start", "f1", "document-rag"]);
    let quiet = memory(&up);
    let mut put_bytes = 0;
    for n in 0..WORKSPACES {
        let id = format!("w{n}");
        let made = json!({"operation": "create-workspace", "workspace_record": {"id": id, "name": id, "enabled": true}});
        call(&up, "iam", &made).unwrap();
        for kind in ["prompt", "token-cost", "trace-retention"] {
            let value = |key| json!({"type": kind, "key": format!("k{key}"), "value": long(VALUE_BYTES)});
            let values: Vec<Value> = (0..VALUES / 2).map(value).collect();
            for values in [values, (VALUES / 2..VALUES).map(value).collect()] {
                put_bytes += (VALUES / 2 * VALUE_BYTES) as u64;
                call(&up, "config", &json!({"operation": "put", "workspace": id, "values": values})).unwrap();
            }
        }
    }
    assert!(put_bytes > MORE_BYTES * 3 / 2, "{put_bytes}");
    let more = memory(&up).saturating_sub(quiet);
    assert!(more < MORE_BYTES, "{more} bytes more, of {put_bytes}");
    assert_eq!(up.terminate(), 0, "{}", up.log());
    let up = start(&data);
    up.json(&["flow", "stop", "f1"]);
    let more = memory(&up).saturating_sub(quiet);
    assert!(more < MORE_BYTES, "{more} bytes more after a start, of {put_bytes}");
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
