//! Backups through the binary: made while the system works, a second time, checked, restored.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Up, ends, sluice, text};

struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }
}

fn run(args: &[&str], data: &Path) -> Output {
    sluice().args(args).arg("--data").arg(data).output().unwrap()
}

fn backup(dir: &Path, data: &Path) -> serde_json::Value {
    let output = run(&["backup", dir.to_str().unwrap(), "-o", "json"], data);
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn verify(dir: &Path) -> Output {
    sluice().args(["verify"]).arg(dir).output().unwrap()
}

fn add(up: &Up, name: &str, content: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(name);
    fs::write(&file, content).unwrap();
    up.json(&["doc", "add", file.to_str().unwrap(), "--store-only"]);
}

fn large(number: u32) -> String {
    format!("Line of document {number}.\n").repeat(5_000)
}

fn titles(up: &Up) -> Vec<String> {
    let found = up.json(&["doc", "ls"]);
    let mut titles: Vec<String> =
        found.as_array().unwrap().iter().map(|one| one["title"].as_str().unwrap().to_owned()).collect();
    titles.sort();
    titles
}

/// The version of config.
fn version(up: &Up) -> u64 {
    let answer = up.post("/api/v1/config", &serde_json::json!({"operation": "config"}));
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    body["version"].as_u64().unwrap()
}

/// Files of a folder with what tells one from another.
fn files(dir: &Path) -> BTreeMap<PathBuf, (u64, u64)> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            let meta = fs::metadata(&path).unwrap();
            all.insert(path, (meta.ino(), meta.len()));
        }
    }
    all
}

#[test]
fn a_running_system_is_backed_up_a_second_time_only_what_changed_and_restored() {
    let place = Place::new();
    let (data, dir, new) = (place.path("data"), place.path("backup"), place.path("new"));
    let mut up = Up::start(&data);
    up.json(&["flow", "start", "f1", "document-rag"]);
    add(&up, "large-1.txt", &large(1));
    up.json(&["config", "put", "prompt", "system", "\"Mine.\""]);
    let first = backup(&dir, &data);
    assert!(first["copied-bytes"].as_u64().unwrap() > 100_000, "{first}");
    ends(&verify(&dir), 0, "is whole");
    let before = files(&dir);

    add(&up, "small-2.txt", "A small document.");
    let second = backup(&dir, &data);
    let copied = second["copied-bytes"].as_u64().unwrap();
    assert!(copied < first["copied-bytes"].as_u64().unwrap(), "{first} then {second}");
    let content = before.iter().filter(|(path, _)| path.parent().unwrap().ends_with("blobs"));
    let after = files(&dir);
    for (path, identity) in content {
        assert_eq!(after.get(path), Some(identity), "{} was copied again", path.display());
    }
    ends(&verify(&dir), 0, "is whole");
    add(&up, "large-3.txt", &large(3));
    let key = up.key();

    ends(&run(&["restore", dir.to_str().unwrap()], &new), 0, "Restored");
    ends(&run(&["restore", dir.to_str().unwrap()], &new), 1, "already");
    // Beside the one that was backed up: it is a folder of its own.
    let restored = Up::start(&new);
    assert_eq!(titles(&restored), ["large-1.txt", "small-2.txt"]);
    assert_eq!(restored.key(), key);
    assert_eq!(restored.json(&["config", "get", "prompt", "system"]), serde_json::json!("Mine."));
    let flows = text(&restored.run(&["flow", "ls"]));
    assert!(flows.contains("f1"), "{flows}");
    let (restored_at, here) = (version(&restored), version(&up));
    assert!(restored_at > here + 1_000, "{restored_at} after {here}: readers take it for old news");
    assert_eq!(titles(&up).len(), 3);
    assert_eq!(up.terminate(), 0);
    ends(&verify(&data), 0, "is whole");
    // Of a folder that nobody holds too, where nothing changes in between.
    backup(&dir, &data);
    let again = backup(&dir, &data);
    assert_eq!(again["copied-bytes"], 0, "{again}");
    ends(&verify(&dir), 0, "is whole");
    assert_eq!(titles(&Up::start(&data)).len(), 3);
}

#[test]
fn a_backup_that_is_made_while_documents_come_and_go_holds_all_that_it_names() {
    let place = Place::new();
    let (data, dir) = (place.path("data"), place.path("backup"));
    let up = Arc::new(Up::start(&data));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (up, stop) = (up.clone(), stop.clone());
        move || {
            let mut number = 0;
            while !stop.load(Ordering::SeqCst) {
                number += 1;
                add(&up, &format!("large-{number}.txt"), &large(number));
                if number > 2 {
                    let found = up.json(&["doc", "ls"]);
                    let oldest = found
                        .as_array()
                        .unwrap()
                        .iter()
                        .find(|one| one["title"] == format!("large-{}.txt", number - 2));
                    if let Some(id) = oldest.and_then(|one| one["id"].as_str()) {
                        up.json(&["doc", "rm", id]);
                    }
                }
            }
        }
    });
    for round in 0..4 {
        let before = titles(&up);
        backup(&dir, &data);
        ends(&verify(&dir), 0, "is whole");
        let new = place.path(&format!("new-{round}"));
        ends(&run(&["restore", dir.to_str().unwrap()], &new), 0, "Restored");
        let restored = Up::start(&new);
        let found = titles(&restored);
        // The newest was acknowledged before the backup began, and nobody removes it that soon.
        if let Some(newest) = before.last() {
            assert!(found.contains(newest) || found > before, "{newest} is not in {found:?}");
        }
    }
    stop.store(true, Ordering::SeqCst);
    writer.join().unwrap();
}

#[test]
fn a_damaged_backup_is_told_and_not_restored_and_the_next_one_mends_it() {
    let place = Place::new();
    let (data, dir) = (place.path("data"), place.path("backup"));
    let up = Up::start(&data);
    add(&up, "large-1.txt", &large(1));
    backup(&dir, &data);
    let all: Vec<PathBuf> =
        files(&dir).into_keys().filter(|path| fs::metadata(path).unwrap().len() > 0).collect();
    for file in &all {
        let name = file.file_name().unwrap().to_str().unwrap();
        let whole = fs::read(file).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for damaged in [Some(flipped), Some(whole[..whole.len() / 2].to_vec()), None] {
            match damaged {
                Some(damaged) => fs::write(file, damaged).unwrap(),
                None => fs::remove_file(file).unwrap(),
            }
            let output = verify(&dir);
            assert!(!output.status.success(), "{name}: {}", text(&output));
            let new = place.path("new");
            let output = run(&["restore", dir.to_str().unwrap()], &new);
            assert!(
                !output.status.success() && !new.join("store.redb").exists(),
                "{name}: {}",
                text(&output)
            );
            fs::write(file, &whole).unwrap();
        }
    }
    let blob = all.iter().find(|path| path.parent().unwrap().ends_with("blobs")).unwrap();
    fs::remove_file(blob).unwrap();
    let told = text(&verify(&dir));
    assert!(told.contains("Next: run `sluice backup DIR`"), "{told}");
    backup(&dir, &data);
    ends(&verify(&dir), 0, "is whole");
    // Another folder's backup is not written over it, and neither is anything else.
    let other = Up::start(&place.path("other"));
    ends(&run(&["backup", dir.to_str().unwrap()], &other.data), 1, "another data folder");
    let full = place.path("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("mine.txt"), "mine").unwrap();
    ends(&run(&["backup", full.to_str().unwrap()], &data), 1, "mine.txt");
    ends(&run(&["backup", data.join("inside").to_str().unwrap()], &data), 64, "inside the data folder");
    ends(&verify(&full), 3, "neither");
}

#[test]
fn a_restore_that_was_cut_short_is_refused_by_every_start() {
    let place = Place::new();
    let (data, dir, new) = (place.path("data"), place.path("backup"), place.path("new"));
    let mut up = Up::start(&data);
    add(&up, "large-1.txt", &large(1));
    backup(&dir, &data);
    assert_eq!(up.terminate(), 0);
    ends(&run(&["restore", dir.to_str().unwrap()], &new), 0, "Restored");
    let mark = fs::read_to_string(new.join("sluice.json")).unwrap();
    fs::write(new.join("sluice.json"), mark.replace("\"is-restoring\": false", "\"is-restoring\": true"))
        .unwrap();
    let output = sluice().args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(&new).output().unwrap();
    ends(&output, 1, "not finished");
}

#[test]
fn nothing_starts_on_a_backup_and_what_lies_beside_it_stops_no_later_one() {
    let place = Place::new();
    let (data, dir) = (place.path("data"), place.path("backup"));
    let up = Up::start(&data);
    add(&up, "large-1.txt", &large(1));
    backup(&dir, &data);
    for flags in [&["up"][..], &["up", "--init-empty"], &["up", "--accept-loss", "mark"]] {
        ends(
            &run(&[flags, &["--listen", "127.0.0.1:0"]].concat(), &dir),
            1,
            "is a backup, not a data folder",
        );
    }
    fs::create_dir(dir.join("lost+found")).unwrap();
    fs::write(dir.join("sluice.lock"), "").unwrap();
    add(&up, "large-2.txt", &large(2));
    backup(&dir, &data);
    ends(&verify(&dir), 0, "is whole");
}
