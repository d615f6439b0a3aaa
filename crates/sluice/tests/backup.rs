//! Backups through the binary: made while the system works, a second time, checked, restored.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "backup/others.rs"]
mod others;
#[path = "backup/wrong.rs"]
mod wrong;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest as _, Sha256};

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

/// Digests and sizes of the pieces of the broker's log in a backup, by file.
fn log_pieces(dir: &Path) -> BTreeMap<String, Vec<(String, u64)>> {
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.join("sluice-backup.json")).unwrap()).unwrap();
    let piece = |one: &serde_json::Value| (one["sha256"].to_string(), one["bytes"].as_u64().unwrap());
    let pieces = |file: &serde_json::Value| file["pieces"].as_array().unwrap().iter().map(piece).collect();
    let files = manifest["backup"]["log"].as_array().unwrap();
    files.iter().map(|file| (file["name"].to_string(), pieces(file))).collect()
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
    // What goes through a flow is in the log of the broker.
    let read = place.path("read.txt");
    fs::write(&read, large(4)).unwrap();
    up.json(&["doc", "add", read.to_str().unwrap(), "--flow", "f1"]);
    let first = backup(&dir, &data);
    let log = log_pieces(&dir);
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
    // Of the log, what was added, and the piece that it was added to.
    let (name, known) = log.iter().max_by_key(|(_, pieces)| pieces.len()).unwrap();
    assert!(known.len() > 2, "{log:?}");
    let now = log_pieces(&dir);
    assert_eq!(now[name][..known.len() - 1], known[..known.len() - 1], "what is written stays as it is");
    let pieces = known.iter().map(|(sha256, _)| dir.join("chunks").join(sha256.trim_matches('"')));
    for path in pieces.take(known.len() - 1) {
        assert_eq!(after.get(&path), before.get(&path), "{} was copied again", path.display());
    }
    ends(&verify(&dir), 0, "is whole");
    add(&up, "large-3.txt", &large(3));
    let key = up.key();

    ends(&run(&["restore", dir.to_str().unwrap()], &new), 0, "Restored");
    ends(&run(&["restore", dir.to_str().unwrap()], &new), 1, "already");
    // Beside the one that was backed up: it is a folder of its own.
    let restored = Up::start(&new);
    assert_eq!(titles(&restored), ["large-1.txt", "read.txt", "small-2.txt"]);
    assert_eq!(restored.key(), key);
    assert_eq!(restored.json(&["config", "get", "prompt", "system"]), serde_json::json!("Mine."));
    let flows = text(&restored.run(&["flow", "ls"]));
    assert!(flows.contains("f1"), "{flows}");
    let (restored_at, here) = (version(&restored), version(&up));
    assert!(restored_at > here + 1_000, "{restored_at} after {here}: readers take it for old news");
    assert_eq!(titles(&up).len(), 4);
    assert_eq!(up.terminate(), 0);
    ends(&verify(&data), 0, "is whole");
    // Of a folder that nobody holds too, where nothing changes in between.
    backup(&dir, &data);
    let again = backup(&dir, &data);
    assert_eq!(again["copied-bytes"], 0, "{again}");
    ends(&verify(&dir), 0, "is whole");
    assert_eq!(titles(&Up::start(&data)).len(), 4);
}

#[test]
fn a_backup_that_is_made_while_documents_come_and_go_holds_all_that_it_names() {
    let place = Place::new();
    let (data, dir) = (place.path("data"), place.path("backup"));
    let up = Arc::new(Up::start(&data));
    let stop = Arc::new(AtomicBool::new(false));
    // By name, the newest is the last.
    let in_order = |number: u32| format!("large-{number:06}.txt");
    let writer = std::thread::spawn({
        let (up, stop) = (up.clone(), stop.clone());
        move || {
            let mut number = 0;
            while !stop.load(Ordering::SeqCst) {
                number += 1;
                add(&up, &in_order(number), &large(number));
                if number > 2 {
                    let found = up.json(&["doc", "ls"]);
                    let oldest =
                        found.as_array().unwrap().iter().find(|one| one["title"] == in_order(number - 2));
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
    let data_link = place.path("link");
    std::os::unix::fs::symlink(&data, &data_link).unwrap();
    let linked = data_link.join("inside");
    ends(&run(&["backup", linked.to_str().unwrap()], &data), 64, "inside the data folder");
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

/// Flips a bit in the middle of a file.
fn flip(file: &Path) {
    let mut content = fs::read(file).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(file, content).unwrap();
}

/// The file that holds the content of a large document.
fn file_of(data: &Path, number: u32) -> PathBuf {
    let is_it = |path: &PathBuf| fs::read(path).unwrap().starts_with(large(number).as_bytes());
    files(&data.join("blobs")).into_keys().find(is_it).unwrap()
}

/// Whether the content of a document is given out.
fn is_read(up: &Up, title: &str) -> bool {
    let found = up.json(&["doc", "ls"]);
    let id = found.as_array().unwrap().iter().find(|one| one["title"] == title).unwrap()["id"].clone();
    let asked = serde_json::json!({"operation": "get-document-content", "document-id": id});
    !up.post("/api/v1/librarian", &asked).contains("\"error\"")
}

#[test]
fn damaged_content_is_backed_up_as_it_is_and_named_by_backup_verify_and_restore() {
    let place = Place::new();
    let (data, dir, new) = (place.path("data"), place.path("backup"), place.path("new"));
    let up = Up::start(&data);
    for number in 1..5 {
        add(&up, &format!("large-{number}.txt"), &large(number));
    }
    let [flipped, cut, missing, whole] = [1, 2, 3, 4].map(|number| file_of(&data, number));
    let harm = || {
        flip(&flipped);
        fs::write(&cut, "short").unwrap();
        fs::remove_file(&missing).unwrap();
    };
    let heal = || {
        for (file, number) in [(&flipped, 1), (&cut, 2), (&missing, 3), (&whole, 4)] {
            fs::write(file, large(number)).unwrap();
        }
    };
    harm();
    let names = [&flipped, &cut, &missing].map(|file| file.file_name().unwrap().to_str().unwrap().to_owned());
    for _ in 0..2 {
        let output = run(&["backup", dir.to_str().unwrap()], &data);
        ends(&output, 2, "Backed up");
        names.iter().for_each(|name| assert!(text(&output).contains(name), "{name}: {}", text(&output)));
    }
    let output = verify(&dir);
    ends(&output, 2, "was backed up as it is");
    names.iter().for_each(|name| assert!(text(&output).contains(name), "{name}: {}", text(&output)));

    let output = run(&["restore", dir.to_str().unwrap()], &new);
    ends(&output, 2, "Restored");
    names.iter().for_each(|name| assert!(text(&output).contains(name), "{name}: {}", text(&output)));
    let restored = Up::start(&new);
    assert_eq!(titles(&restored).len(), 4);
    assert!(is_read(&restored, "large-4.txt"), "what was whole is");
    for number in 1..4 {
        assert!(!is_read(&restored, &format!("large-{number}.txt")), "{number} was damaged");
    }
    // Once they are whole again the next backup is, and what it holds stays whole. One that is cut short leaves this one.
    heal();
    fs::create_dir(dir.join("sluice-backup.json.new")).unwrap();
    ends(&run(&["backup", dir.to_str().unwrap()], &data), 1, "no backup was made");
    let told = verify(&dir);
    ends(&told, 2, "was backed up as it is");
    assert!(!text(&told).contains("is not what was backed up"), "{}", text(&told));
    fs::remove_dir(dir.join("sluice-backup.json.new")).unwrap();
    for _ in 0..2 {
        backup(&dir, &data);
        ends(&verify(&dir), 0, "is whole");
    }
    // Neither is a key that cannot be read left out without a word.
    let (key, aside) = (data.join("admin.key"), place.path("key"));
    fs::rename(&key, &aside).unwrap();
    fs::create_dir(&key).unwrap();
    ends(&run(&["backup", dir.to_str().unwrap()], &data), 2, "admin.key cannot be read");
    ends(&verify(&dir), 2, "admin.key cannot be read");
    fs::remove_dir(&key).unwrap();
    fs::rename(&aside, &key).unwrap();
    harm();
    flip(&whole);
    backup(&dir, &data);
    ends(&verify(&dir), 0, "is whole");
}

#[test]
fn the_next_backup_mends_whatever_of_it_is_damaged() {
    let place = Place::new();
    let (data, dir) = (place.path("data"), place.path("backup"));
    let mut up = Up::start(&data);
    add(&up, "large-1.txt", &large(1));
    backup(&dir, &data);
    assert_eq!(up.terminate(), 0);
    backup(&dir, &data);
    let is_part = |file: &PathBuf| !file.ends_with("sluice-backup.json");
    let harms: [fn(&Path); 3] =
        [flip, |file| fs::write(file, "short").unwrap(), |file| fs::remove_file(file).unwrap()];
    for harm in harms {
        let parts: Vec<PathBuf> = files(&dir).into_keys().filter(is_part).collect();
        assert!(!log_pieces(&dir).is_empty());
        let folders = ["chunks", "blobs", "backup"];
        for folder in folders {
            assert!(parts.iter().any(|part| part.parent().unwrap().ends_with(folder)), "{folder}");
        }
        parts.iter().for_each(|part| harm(part));
        let output = verify(&dir);
        ends(&output, 2, "Next: run `sluice backup DIR`");
        backup(&dir, &data);
        ends(&verify(&dir), 0, "is whole");
    }
}

#[test]
fn a_log_whose_pieces_are_in_another_order_is_told_by_verify_and_not_restored() {
    let place = Place::new();
    let (data, dir, new) = (place.path("data"), place.path("backup"), place.path("new"));
    let up = Up::start(&data);
    up.json(&["flow", "start", "f1", "document-rag"]);
    let read = place.path("read.txt");
    fs::write(&read, large(1)).unwrap();
    up.json(&["doc", "add", read.to_str().unwrap(), "--flow", "f1"]);
    backup(&dir, &data);
    let pieces = log_pieces(&dir).into_values().max_by_key(Vec::len).unwrap();
    let [first, second] = [0, 1].map(|at: usize| pieces[at].0.trim_matches('"'));
    let manifest = fs::read_to_string(dir.join("sluice-backup.json")).unwrap();
    let begin = manifest.find("\"backup\":").unwrap() + "\"backup\":".len();
    let rest = &manifest[begin..manifest.len() - 1];
    let swapped = rest.replace(first, "first").replace(second, first).replace("first", second);
    assert_ne!(rest, swapped);
    // Whoever changes it can make its digest fit.
    let sum: String = Sha256::digest(&swapped).iter().map(|byte| format!("{byte:02x}")).collect();
    let changed = format!("{{\"format\":2,\"sha256\":\"{sum}\",\"backup\":{swapped}}}");
    fs::write(dir.join("sluice-backup.json"), changed).unwrap();
    ends(&verify(&dir), 2, "the pieces of log/log-");
    ends(&run(&["restore", dir.to_str().unwrap()], &new), 1, "is not whole");
    assert!(!new.exists());
    backup(&dir, &data);
    ends(&verify(&dir), 0, "is whole");
    let inside = dir.join("chunks/new");
    ends(&run(&["restore", dir.to_str().unwrap()], &inside), 64, "inside the backup");
}

#[test]
fn what_a_backup_that_was_cut_short_left_behind_goes_with_the_next_one() {
    let place = Place::new();
    let (data, dir) = (place.path("data"), place.path("backup"));
    let up = Up::start(&data);
    add(&up, "large-1.txt", &large(1));
    let unique = "0190f5fe1c2a7bd29f0b5a0c1d2e3f40";
    let left = [
        format!("chunks/{}", "ab".repeat(32)),
        format!("chunks/{}.new", "cd".repeat(32)),
        format!("blobs/0123456789abcdef-{unique}"),
        format!("blobs/0123456789abcdef-{unique}.new"),
        format!("objects/0123456789abcdef-{unique}"),
        "log/log-0000000000000099".to_owned(),
        "log/log-0000000000000100.new".to_owned(),
    ];
    let theirs = ["chunks/notes.txt", "blobs/log-0000000000000099", "log/old.log", "objects/x.new"];
    for is_first in [true, false] {
        for name in left.iter().map(String::as_str).chain(theirs) {
            let file = dir.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "contents of a document that was removed").unwrap();
        }
        backup(&dir, &data);
        for name in &left {
            assert!(!dir.join(name).exists(), "{name} is left, first: {is_first}");
        }
        for name in theirs {
            assert!(dir.join(name).exists(), "{name} is somebody else's");
        }
        ends(&verify(&dir), 0, "is whole");
    }
}

#[test]
fn a_backup_that_is_cut_short_leaves_the_one_before_it_whole() {
    let place = Place::new();
    let (data, dir) = (place.path("data"), place.path("backup"));
    let mut up = Up::start(&data);
    add(&up, "first.txt", "The first document.");
    backup(&dir, &data);
    // Another time for each name that its files may have by then.
    for number in 1..=3 {
        add(&up, &format!("large-{number}.txt"), &large(number));
        assert_eq!(up.terminate(), 0);
        let key = fs::read_to_string(data.join("admin.key")).unwrap();
        fs::write(data.join("admin.key"), format!("{key}\n")).unwrap();
        let before = files(&dir);
        // The last file that a backup writes cannot be written.
        fs::create_dir(dir.join("sluice-backup.json.new")).unwrap();
        let output = run(&["backup", dir.to_str().unwrap()], &data);
        assert!(!output.status.success(), "{}", text(&output));
        let after = files(&dir);
        for (path, identity) in &before {
            assert_eq!(after.get(path), Some(identity), "{}", path.display());
        }
        ends(&verify(&dir), 0, "is whole");
        let new = place.path(&format!("new-{number}"));
        ends(&run(&["restore", dir.to_str().unwrap()], &new), 0, "Restored");
        assert_eq!(titles(&Up::start(&new)).len(), number as usize);

        fs::remove_dir(dir.join("sluice-backup.json.new")).unwrap();
        backup(&dir, &data);
        ends(&verify(&dir), 0, "is whole");
        let keys =
            fs::read_dir(&dir).unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
        assert_eq!(keys.filter(|name| name.starts_with("admin.key")).count(), 1);
        up = Up::start(&data);
    }
}

#[test]
fn content_that_was_lost_and_is_there_again_is_backed_up() {
    let place = Place::new();
    let (data, dir, away) = (place.path("data"), place.path("backup"), place.path("away"));
    let mut up = Up::start(&data);
    add(&up, "large-1.txt", &large(1));
    add(&up, "large-2.txt", &large(2));
    assert_eq!(up.terminate(), 0);
    fs::rename(data.join("blobs"), &away).unwrap();
    let mut up = Up::start_with(&data, &["--accept-loss", "blobs"]);
    assert_eq!(up.terminate(), 0);
    backup(&dir, &data);
    ends(&verify(&dir), 0, "is whole");
    assert_eq!(fs::read_dir(dir.join("blobs")).unwrap().count(), 0);
    for entry in fs::read_dir(&away).unwrap().take(1) {
        let entry = entry.unwrap();
        fs::rename(entry.path(), data.join("blobs").join(entry.file_name())).unwrap();
    }
    // Before a start has seen it, and after.
    for starts in [false, true] {
        if starts {
            assert_eq!(Up::start(&data).terminate(), 0);
        }
        backup(&dir, &data);
        ends(&verify(&dir), 0, "is whole");
        assert_eq!(fs::read_dir(dir.join("blobs")).unwrap().count(), 1);
    }
    // Gone once more, it is missed again.
    fs::remove_dir_all(data.join("blobs")).unwrap();
    ends(&run(&["up", "--listen", "127.0.0.1:0"], &data), 1, "--accept-loss blobs");
}

#[test]
fn a_row_that_cannot_be_read_is_named_by_the_backup_that_is_not_made() {
    let place = Place::new();
    let (data, dir) = (place.path("data"), place.path("backup"));
    let mut up = Up::start(&data);
    up.json(&["config", "put", "prompt", "mine", "\"A value that is nowhere else.\""]);
    backup(&dir, &data);
    assert_eq!(up.terminate(), 0);
    let store = data.join("store.redb");
    let mut content = fs::read(&store).unwrap();
    let pattern = b"A value that is nowhere else.";
    let places: Vec<usize> = content
        .windows(pattern.len())
        .enumerate()
        .filter(|(_, one)| one == pattern)
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty());
    places.iter().for_each(|at| content[*at] ^= 1);
    fs::write(&store, content).unwrap();
    let output = run(&["backup", dir.to_str().unwrap()], &data);
    ends(&output, 1, "of table '");
    let said = text(&output);
    assert!(said.contains("row '") && said.contains("sluice restore DIR --data NEW"), "{said}");
    assert!(!said.contains("Page") && !said.contains("order"), "{said}");
    ends(&verify(&dir), 0, "is whole");
}

#[test]
fn a_damaged_log_is_left_out_of_the_backup_named_and_no_harm_to_the_restored_rest() {
    let place = Place::new();
    let (data, dir, new) = (place.path("data"), place.path("backup"), place.path("new"));
    let mut up = Up::start(&data);
    up.json(&["flow", "start", "f1", "document-rag"]);
    add(&up, "large-1.txt", &large(1));
    let log = files(&data.join("broker"))
        .into_keys()
        .find(|file| file.file_name().unwrap().to_str().unwrap().starts_with("log-"));
    let log = log.unwrap();
    let flip_early = || {
        // In place: the process goes on with the file that it has open.
        let file = fs::OpenOptions::new().read(true).write(true).open(&log).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 100).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 100).unwrap();
    };
    flip_early();
    ends(&run(&["backup", dir.to_str().unwrap()], &data), 2, "the broker's log");
    ends(&verify(&dir), 2, "messages that wait in it are left out");
    ends(&run(&["restore", dir.to_str().unwrap()], &new), 2, "the broker's log");
    let restored = Up::start(&new);
    assert_eq!(titles(&restored), ["large-1.txt"]);
    let flows = text(&restored.run(&["flow", "ls"]));
    assert!(flows.contains("f1"), "{flows}");
    flip_early();
    backup(&dir, &data);
    ends(&verify(&dir), 0, "is whole");
    assert_eq!(up.terminate(), 0);
}
