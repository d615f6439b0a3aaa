//! A damaged data folder through the binary: what can be read of it goes on in a new one, and the rest is named.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Up, ends, sluice, text};

const BLOCK: usize = 4096;
const DOCUMENTS: usize = 60;

fn salvage(old: &Path, new: &Path) -> Output {
    sluice().arg("salvage").arg(old).arg("--data").arg(new).args(["-o", "json"]).output().unwrap()
}

fn titles(up: &Up) -> Vec<String> {
    let found = up.json(&["doc", "ls"]);
    let title = |one: &serde_json::Value| one["title"].as_str().unwrap().to_owned();
    let mut titles: Vec<String> = found.as_array().unwrap().iter().map(title).collect();
    titles.sort();
    titles
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else if path.is_file() {
            all.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    all
}

/// Some small documents, a large one whose content rests in a file, a config value and a flow; then stopped.
fn filled(data: &Path) -> (Vec<String>, String) {
    let mut up = Up::start(data);
    let folder = tempfile::tempdir().unwrap();
    for n in 0..DOCUMENTS {
        fs::write(folder.path().join(format!("small-{n:02}.txt")), format!("Document {n}. ").repeat(150))
            .unwrap();
    }
    fs::write(folder.path().join("large.txt"), "Line of a large document.\n".repeat(12_000)).unwrap();
    up.json(&["doc", "add", folder.path().to_str().unwrap(), "--store-only"]);
    up.json(&["config", "put", "prompt", "system", "\"Mine.\""]);
    up.json(&["flow", "start", "f1", "document-rag"]);
    let (titles, key) = (titles(&up), up.key());
    assert_eq!(up.terminate(), 0);
    (titles, key)
}

#[test]
fn a_folder_with_damaged_blocks_and_files_goes_on_in_a_new_one_without_what_is_named() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let (data, new) = (path("data"), path("new"));
    let (all, key) = filled(&data);
    assert_eq!(all.len(), DOCUMENTS + 1);

    // Nothing is wrong yet.
    let output = salvage(&data, &path("whole"));
    ends(&output, 0, "");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["lost"], serde_json::json!([]), "{found}");
    let mut up = Up::start(&path("whole"));
    assert_eq!((titles(&up), up.key()), (all.clone(), key.clone()));
    ends(&salvage(&path("whole"), &path("other")), 1, "");
    assert_eq!(up.terminate(), 0);

    // The blocks with the records of one document, and a part of the large one.
    let mut store = fs::read(data.join("store.redb")).unwrap();
    let named: Vec<usize> =
        store.windows(12).enumerate().filter(|(_, at)| at == b"small-30.txt").map(|(at, _)| at).collect();
    for at in named {
        store[at / BLOCK * BLOCK + 2_000] ^= 1;
    }
    fs::write(data.join("store.redb"), store).unwrap();
    let blob = fs::read_dir(data.join("blobs")).unwrap().next().unwrap().unwrap().path();
    let mut content = fs::read(&blob).unwrap();
    content[290_000] ^= 1;
    fs::write(&blob, content).unwrap();
    let before = files(&data);

    let output = salvage(&data, &new);
    ends(&output, 2, "");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let lost = text(&output);
    assert!(lost.contains("records of documents, by workspace and document"), "{lost}");
    assert!(lost.contains("doc/") && lost.contains("does not match its digests"), "{lost}");
    assert!(files(&data) == before, "the old folder was changed");
    ends(&salvage(&data, &new), 1, "already");

    let mut up = Up::start(&new);
    let left = titles(&up);
    assert!(left.len() < all.len() && left.len() > all.len() / 2, "{} of {}: {found}", left.len(), all.len());
    assert!(left.iter().all(|title| all.contains(title)) && !left.contains(&"small-30.txt".to_owned()));
    assert_eq!(up.key(), key);
    assert_eq!(up.json(&["config", "get", "prompt", "system"]), serde_json::json!("Mine."));
    assert!(text(&up.run(&["flow", "ls"])).contains("f1"));
    assert_eq!(up.terminate(), 0);
    let told = text(&sluice().arg("verify").arg(&new).output().unwrap());
    assert!(told.contains("doc/") && told.lines().count() <= 2, "nothing else is wrong with it: {told}");
}

#[test]
fn documents_are_named_whose_content_is_somewhere_that_is_not_known_any_more() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let data = path("data");
    filled(&data);
    let whole = fs::read(data.join("store.redb")).unwrap();
    // Rows that say where content is lie closer together than any others that name it.
    let ids = |block: &[u8]| block.windows(4).filter(|at| at == b"doc/").count();
    let mut dense: Vec<(usize, usize)> =
        whole.chunks(BLOCK).enumerate().map(|(at, block)| (ids(block), at)).collect();
    dense.sort();
    let tried = dense.iter().rev().take(12).enumerate().find_map(|(n, (_, at))| {
        let mut store = whole.clone();
        store[at * BLOCK + 2_000] ^= 1;
        fs::write(data.join("store.redb"), store).unwrap();
        let new = path(&format!("new-{n}"));
        let output = salvage(&data, &new);
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let lost: Vec<String> =
            found["lost"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect();
        lost.iter().any(|line| line.contains("(table 'blobs')")).then_some((new, lost))
    });
    let (new, lost) = tried.expect("the rows that say where content is are in one of these blocks");
    let named = |title: &str| {
        lost.iter().any(|line| line.starts_with("the content of document") && line.contains(title))
    };
    let mut up = Up::start(&new);
    let mut gone = 0;
    for document in up.json(&["doc", "ls"]).as_array().unwrap() {
        let (id, title) = (document["id"].as_str().unwrap(), document["title"].as_str().unwrap());
        let asked = serde_json::json!({"operation": "get-document-content", "document-id": id});
        let is_there = !up.post("/api/v1/librarian", &asked).contains("\"error\"");
        assert_eq!(named(title), !is_there, "{title}: {lost:?}");
        gone += usize::from(!is_there);
    }
    assert!(gone > 0, "{lost:?}");
    assert_eq!(up.terminate(), 0);
}

#[test]
fn what_cannot_be_read_at_all_or_is_in_use_is_refused_and_no_folder_is_begun() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let (data, new) = (path("data"), path("new"));
    let mut up = Up::start(&data);
    ends(&salvage(&data, &new), 1, "is in use by process");
    assert_eq!(up.terminate(), 0);
    let mut store = fs::read(data.join("store.redb")).unwrap();
    for at in [100, BLOCK + 100] {
        store[at] ^= 1;
    }
    fs::write(data.join("store.redb"), store).unwrap();
    ends(&salvage(&data, &new), 1, "neither copy of its head is whole");
    assert!(!new.exists());
    ends(&sluice().arg("salvage").arg(&data).output().unwrap(), 64, "--data NEW");
}

#[test]
fn what_is_no_damaged_folder_or_no_new_one_is_told_as_that() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let (data, new, empty, link) = (path("data"), path("new"), path("empty"), path("link"));
    assert_eq!(Up::start(&data).terminate(), 0);
    fs::create_dir(&empty).unwrap();
    std::os::unix::fs::symlink(&data, &link).unwrap();
    ends(&salvage(&path("nope"), &new), 3, "there is no data folder");
    let output = salvage(&empty, &new);
    ends(&output, 3, "is no data folder");
    assert!(text(&output).contains("sluice salvage FOLDER --data NEW"), "{}", text(&output));
    let before = files(&data);
    for (old, to) in [(&data, &data), (&data, &link), (&link, &data)] {
        ends(&salvage(old, to), 64, "are one folder");
    }
    for inside in [data.join("inner"), link.join("inner/deep"), path("none").join("../data/inner")] {
        ends(&salvage(&data, &inside), 64, "inside the damaged one");
    }
    assert!(files(&data) == before, "the old folder was changed");
    assert!(!new.exists() && !path("none").exists());
}

#[test]
fn a_salvage_that_fails_leaves_nothing_and_one_that_is_killed_is_told_as_that() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let (data, new) = (path("data"), path("new"));
    filled(&data);
    // No file may be larger than some KiB, as when a disk is full.
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 64; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_sluice"), "salvage"]);
    let output = limited.arg(&data).arg("--data").arg(&new).output().unwrap();
    ends(&output, 1, "nothing was salvaged");
    assert!(text(&output).contains("  try: see whether"), "{}", text(&output));
    assert!(!new.exists());

    let is_cut = |to: &Path| {
        let mut copying = sluice().arg("salvage").arg(&data).arg("--data").arg(to).spawn().unwrap();
        let mark = to.join("sluice.json");
        while !mark.exists() && copying.try_wait().unwrap().is_none() {}
        // It may have come to its end by then.
        copying.kill().unwrap();
        copying.wait().unwrap();
        fs::read_to_string(&mark).is_ok_and(|text| text.contains("\"is-restoring\": true"))
    };
    let cut = (0..20).map(|n| path(&format!("cut-{n}"))).find(|to| is_cut(to)).unwrap();
    let output = sluice().args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(&cut).output().unwrap();
    ends(&output, 1, "(sluice salvage), and that was not finished");
    assert!(!text(&output).contains("a backup was being restored"), "{}", text(&output));
    ends(&salvage(&data, &new), 0, "");
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

fn remove(path: &Path) {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
}

/// A salvage that ends by itself, or is ended and tells that by another code.
fn salvage_for_a_while(old: &Path, new: &Path) -> Output {
    let mut command = Command::new("timeout");
    command.arg("60").arg(env!("CARGO_BIN_EXE_sluice")).arg("salvage").arg(old).arg("--data").arg(new);
    command.output().unwrap()
}

const OTHER_LOG: &str = "log in broker belongs to another data folder";
const OLDER_LOG: &str = "log in broker is an older copy";

#[test]
fn what_a_start_refuses_a_folder_for_is_told_as_lost_and_the_new_one_starts() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let (data, older, other) = (path("data"), path("older"), path("other"));
    filled(&data);
    copy(&data, &older);
    for _ in 0..2 {
        assert_eq!(Up::start(&data).terminate(), 0);
    }
    assert_eq!(Up::start(&other).terminate(), 0);
    // Of one that was killed nobody knows where its log ended.
    let killed = path("killed");
    copy(&data, &killed);
    Up::start(&killed).kill();
    let take = |from: &Path, part: &'static str, to: &Path| {
        if to.join(part).exists() {
            remove(&to.join(part));
        }
        copy(&from.join(part), &to.join(part));
    };
    let edit_key = |to: &Path, change: fn(&mut Vec<u8>)| {
        let mut key = fs::read(to.join("admin.key")).unwrap();
        change(&mut key);
        fs::write(to.join("admin.key"), key).unwrap();
    };
    type Harm<'a> = Box<dyn Fn(&Path) + 'a>;
    let (older, other) = (&older, &other);
    let harms: Vec<(&str, Harm<'_>)> = vec![
        ("log of the embedded broker (broker/log-…) is missing", Box::new(|to| remove(&to.join("broker")))),
        ("it was cut, added to, or comes from elsewhere", Box::new(|to| take(other, "broker", to))),
        (OTHER_LOG, Box::new(|to| take(other, "broker", to))),
        (OLDER_LOG, Box::new(|to| take(older, "broker", to))),
        ("store.redb is an older copy", Box::new(|to| take(older, "store.redb", to))),
        ("store.redb and sluice.json do not belong together", Box::new(|to| take(other, "store.redb", to))),
        ("sluice.json: it is missing", Box::new(|to| remove(&to.join("sluice.json")))),
        ("admin.key is missing", Box::new(|to| remove(&to.join("admin.key")))),
        ("admin.key is missing or empty", Box::new(|to| edit_key(to, Vec::clear))),
        (
            "admin.key is not the key of this data",
            Box::new(|to| edit_key(to, |key| key[6] = if key[6] == b'a' { b'b' } else { b'a' })),
        ),
        ("admin.key holds no key", Box::new(|to| edit_key(to, |key| key.truncate(9)))),
        ("admin.key is not the key of this data", Box::new(|to| take(other, "admin.key", to))),
    ];
    for (number, (says, harm)) in harms.iter().enumerate() {
        let (old, new) = (path(&format!("old-{number}")), path(&format!("new-{number}")));
        copy(if [OTHER_LOG, OLDER_LOG].contains(says) { &killed } else { &data }, &old);
        harm(&old);
        let before = files(&old);
        let told = salvage_for_a_while(&old, &new);
        ends(&told, 2, says);
        assert!(files(&old) == before, "{number}: the old folder was changed");
        let start = text(&told);
        let (_, start) = start.split_once("Start with: sluice up --data '").expect("how to start");
        let more = match start.contains("--accept-loss admin-key") {
            true => &["--accept-loss", "admin-key"][..],
            false => &[],
        };
        assert_eq!(
            !more.is_empty(),
            says.starts_with("admin.key") || says.contains("belong together"),
            "{start}"
        );
        assert_eq!(Up::start_with(&new, more).terminate(), 0);
    }
    // Of a folder of another broker no log is missed, and of one that was not finished all may be lost.
    let (old, unfinished) = (path("another-broker"), path("unfinished"));
    copy(&data, &old);
    copy(&data, &unfinished);
    remove(&old.join("broker"));
    let edit = |folder: &Path, change: fn(&mut serde_json::Value)| {
        let file = folder.join("sluice.json");
        let mut mark = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        change(&mut mark);
        fs::write(file, mark.to_string()).unwrap();
    };
    edit(&old, |mark| mark["broker"]["generation"] = 1.into());
    ends(&salvage_for_a_while(&old, &path("new-broker")), 0, "Nothing is lost");
    edit(&unfinished, |mark| mark["is-restoring"] = true.into());
    ends(&salvage_for_a_while(&unfinished, &path("new-unfinished")), 2, "that was not finished");
}

#[test]
fn what_may_not_be_read_or_is_something_else_is_refused_and_not_told_as_lost() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let (data, new) = (path("data"), path("new"));
    filled(&data);
    let blob = fs::read_dir(data.join("blobs")).unwrap().next().unwrap().unwrap().path();
    let blob = blob.strip_prefix(&data).unwrap().to_str().unwrap().to_owned();
    // Whoever runs this, a link that leads to itself cannot be read.
    let unreadable = |path: &Path| std::os::unix::fs::symlink(path.file_name().unwrap(), path).unwrap();
    let pipe = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    let parts =
        ["store.redb", "blobs", "broker", "admin.key", "sluice.json", "broker/log-0000000000000001", &blob];
    for part in parts {
        let (at, kept) = (data.join(part), path("kept"));
        fs::rename(&at, &kept).unwrap();
        unreadable(&at);
        ends(&salvage_for_a_while(&data, &new), 1, "is there, but cannot be read");
        remove(&at);
        pipe(&at);
        match part == blob {
            true => ends(&salvage_for_a_while(&data, &new), 2, "is missing or cannot be read"),
            false => ends(&salvage_for_a_while(&data, &new), 1, &format!("'{part}' is a pipe where a f")),
        }
        remove(&at);
        assert_eq!(new.exists(), part == blob, "{part}");
        if part == "broker" {
            fs::write(&at, "").unwrap();
            ends(&salvage_for_a_while(&data, &new), 1, "'broker' is a file where a folder should be");
            remove(&at);
        }
        fs::rename(&kept, &at).unwrap();
    }
    ends(&salvage_for_a_while(&data, &path("whole")), 0, "Nothing is lost");
}
