//! What becomes of a data folder while a process works in it, and while somebody looks at it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use rand::{Rng as _, SeedableRng as _};

use common::{Up, ends, sluice, text, until};

/// A folder of the last version that kept no mark.
const WITHOUT_MARK: &[u8] = include_bytes!("data/folder-without-mark.zip");

fn run(args: &[&str], data: &Path) -> Output {
    sluice().args(args).arg("--data").arg(data).output().unwrap()
}

fn get(up: &Up, path: &str) -> String {
    let address = up.url.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    common::read_all(stream)
}

fn add(up: &Up, name: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(name);
    fs::write(&file, format!("What {name} says.")).unwrap();
    up.run(&["doc", "add", file.to_str().unwrap(), "--store-only"])
}

fn documents(up: &Up) -> usize {
    up.json(&["doc", "ls"]).as_array().unwrap().len()
}

fn log_file(data: &Path) -> PathBuf {
    let files = fs::read_dir(data.join("broker")).unwrap().map(|one| one.unwrap().path());
    files.into_iter().find(|file| file.to_str().unwrap().contains("/log-")).unwrap()
}

fn remove(path: &Path) {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    // The process may have put one of its files into its place.
    assert!(removed.is_ok() || !path.exists(), "{}: {removed:?}", path.display());
}

/// Takes something away from under a process; where its folder is then.
type Harm = fn(&Path) -> PathBuf;

const HARMS: &[(&str, Harm)] = &[
    ("store.redb", |data| {
        fs::remove_file(data.join("store.redb")).unwrap();
        data.to_owned()
    }),
    ("store.redb", |data| {
        fs::rename(data.join("store.redb"), data.join("elsewhere")).unwrap();
        data.to_owned()
    }),
    ("store.redb", |data| {
        fs::copy(data.join("store.redb"), data.join("copy")).unwrap();
        fs::rename(data.join("copy"), data.join("store.redb")).unwrap();
        data.to_owned()
    }),
    ("log-", |data| {
        fs::remove_file(log_file(data)).unwrap();
        data.to_owned()
    }),
    ("log-", |data| {
        fs::rename(data.join("broker"), data.join("elsewhere")).unwrap();
        data.to_owned()
    }),
    ("store.redb", |data| {
        fs::read_dir(data).unwrap().for_each(|one| remove(&one.unwrap().path()));
        data.to_owned()
    }),
    ("the data folder", |data| {
        let moved = data.with_file_name("moved");
        fs::rename(data, &moved).unwrap();
        fs::create_dir(data).unwrap();
        moved
    }),
    ("the data folder", |data| {
        // The process may be writing a report there.
        while fs::remove_dir_all(data).is_err() {}
        fs::create_dir(data).unwrap();
        data.to_owned()
    }),
];

#[test]
fn a_part_that_is_taken_from_under_a_running_process_is_reported_and_nothing_more_is_acknowledged() {
    let root = tempfile::tempdir().unwrap();
    let mut harmed: Vec<(&str, Up, PathBuf, PathBuf)> = Vec::new();
    for (at, (part, harm)) in HARMS.iter().enumerate() {
        let place = root.path().join(at.to_string());
        fs::create_dir(&place).unwrap();
        let data = place.join("data");
        let up = Up::start(&data);
        ends(&add(&up, "first.txt"), 0, "Added 1");
        let key = place.join("key");
        fs::copy(data.join("admin.key"), &key).unwrap();
        let now_at = harm(&data);
        harmed.push((part, up, now_at, key));
    }
    for (part, up, now_at, key) in &mut harmed {
        let (key, now_at) = (key.to_str().unwrap(), now_at.as_path());
        let ask = |args: &[&str]| up.run(&[args, &["--token-file", key]].concat());
        if *part == "log-" {
            let started = ask(&["flow", "start", "f1", "document-rag", "--timeout", "5"]);
            assert!(!started.status.success(), "{part}: {}", text(&started));
        } else {
            // At once, whenever it is looked by itself.
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("second.txt");
            fs::write(&file, "Not to be lost.").unwrap();
            let added = ask(&["doc", "add", file.to_str().unwrap(), "--store-only", "--timeout", "5"]);
            assert!(!added.status.success(), "{part}: {}", text(&added));
        }
        until("readyz to say it", || get(up, "/readyz").contains(" 503 "), || up.log());
        let answer = get(up, "/readyz");
        assert!(answer.contains("sluice backup DIR"), "{part}: {answer}");
        assert!(!answer.contains(up.data.to_str().unwrap()), "{part}: anybody may read {answer}");
        let is_said = |line: &str| {
            line.contains("ERROR") && line.contains("while it is in use") && line.contains(*part)
        };
        until("the reason in the log", || up.log().lines().any(is_said), || up.log());
        let log = up.log();
        let is_removed = *part == "the data folder" && now_at == up.data;
        if is_removed {
            assert!(log.contains("make an empty folder in its place"), "{log}");
        } else {
            // Of the folder where it is now.
            let found = sluice()
                .args(["doctor", "--url", &up.url, "--token-file", key, "--data"])
                .arg(now_at)
                .output();
            ends(&found.unwrap(), 2, "sluice backup DIR");
        }

        let backup = now_at.with_file_name("backup");
        // The key is a file that nobody holds open: where it went too, that is said.
        let (code, says) =
            if now_at.join("admin.key").exists() { (0, "") } else { (2, "admin.key is missing") };
        let backed_up = || {
            let output = run(&["backup", backup.to_str().unwrap()], now_at);
            output.status.code() == Some(code) && text(&output).contains(says)
        };
        until("a backup of what it holds", backed_up, || up.log());
        assert_eq!(up.terminate(), 1, "{part}: {}", up.log());
        assert!(up.log().contains("not in its place"), "{part}: {}", up.log());
        let restored = now_at.with_file_name("restored");
        let told = run(&["restore", backup.to_str().unwrap()], &restored);
        ends(&told, code, "Restored");
        assert!(text(&told).contains(says), "{part}: {}", text(&told));
        let restored = Up::start_with(&restored, &["--accept-loss", "admin-key"]);
        assert_eq!(documents(&restored), 1, "{part}");
    }
}

#[test]
fn a_part_that_comes_back_is_gone_on_with() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    let mut up = Up::start(&data);
    fs::rename(data.join("store.redb"), data.join("elsewhere")).unwrap();
    assert!(!add(&up, "first.txt").status.success());
    until("readyz to say it", || get(&up, "/readyz").contains(" 503 "), || up.log());
    fs::rename(data.join("elsewhere"), data.join("store.redb")).unwrap();
    ends(&add(&up, "second.txt"), 0, "Added 1");
    until("readyz to be well", || get(&up, "/readyz").contains(" 200 "), || up.log());
    assert_eq!(up.terminate(), 0, "{}", up.log());
    assert!(documents(&Up::start(&data)) >= 1);
}

#[test]
fn no_second_process_works_in_a_folder_whose_lock_was_removed_and_lock_and_mark_are_put_back() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    let mut up = Up::start(&data);
    ends(&add(&up, "first.txt"), 0, "Added 1");
    for part in ["sluice.lock", "broker/lock", "sluice.json"] {
        fs::remove_file(data.join(part)).unwrap();
    }
    let second = run(&["up", "--listen", "127.0.0.1:0"], &data);
    ends(&second, 1, "in use by process");
    // Whoever looks asks the process too, and does not read what that is writing.
    let looked = text(&up.run(&["doctor", "--largest"]));
    assert!(looked.contains("is in use"), "{looked}");
    let is_back = || ["sluice.lock", "sluice.json"].iter().all(|part| data.join(part).is_file());
    until("lock and mark to be put back", is_back, || up.log());
    let pid = up.pid().to_string();
    ends(&run(&["up", "--listen", "127.0.0.1:0"], &data), 1, &format!("in use by process {pid}"));
    assert_eq!(up.terminate(), 0, "{}", up.log());
    assert_eq!(documents(&Up::start(&data)), 1);
}

#[test]
fn a_limit_on_the_size_of_files_is_a_full_disk_and_ends_no_process() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    // Above the reserve, which has 8 MiB. A unit is 512 or 1024 bytes, as the shell has it.
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "ulimit -f 18000 && exec \"$0\" \"$@\""]).arg(sluice().get_program());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SLUICE_")) {
        limited.env_remove(name);
    }
    limited.stdin(std::process::Stdio::null());
    let mut up = Up::start_as(limited, &data, &[]);
    let mut random = rand::rngs::StdRng::seed_from_u64(5);
    let files = root.path().join("files");
    fs::create_dir(&files).unwrap();
    for number in 0..400 {
        // What can be packed would fit.
        let content: String =
            (&mut random).sample_iter(rand::distr::Alphanumeric).take(60_000).map(char::from).collect();
        fs::write(files.join(format!("d{number:03}.txt")), content).unwrap();
    }
    let added = up.run(&["doc", "add", files.to_str().unwrap(), "--store-only"]);
    assert!(!added.status.success(), "{}", text(&added));
    assert!(text(&added).contains("is full"), "{}", text(&added));
    assert!(documents(&up) > 50);
    let again = || up.run(&["doc", "add", files.to_str().unwrap(), "--store-only"]);
    let is_told = || {
        let ready = get(&up, "/readyz");
        let is_told = ready.contains(" 503 ") && ready.contains("store-unavailable");
        is_told || {
            again();
            false
        }
    };
    until("readyz to say it", is_told, || up.log());
    // There is room for a little.
    let is_well = || {
        up.run(&["config", "put", "mine", "key", "1"]);
        get(&up, "/readyz").contains(" 200 ")
    };
    until("readyz to be well", is_well, || up.log());
    assert_eq!(up.terminate(), 0, "{}", up.log());
    assert!(!up.log().contains("Previous I/O"), "{}", up.log());
    assert!(documents(&Up::start(&data)) > 50);
}

/// Folders that are kept as test data, and some of this version: stopped, killed, cut short, and a backup.
fn folders(root: &Path) -> Vec<(&'static str, PathBuf)> {
    let path = |name: &str| root.join(name);
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(WITHOUT_MARK)).unwrap();
    archive.extract(path("without-mark")).unwrap();
    let mut up = Up::start(&path("stopped"));
    ends(&add(&up, "first.txt"), 0, "Added 1");
    ends(&run(&["backup", path("a-backup").to_str().unwrap()], &up.data), 0, "Backed up");
    assert_eq!(up.terminate(), 0);
    let mut up = Up::start(&path("killed"));
    ends(&add(&up, "first.txt"), 0, "Added 1");
    up.kill();
    for unused in ["broker/reserve", "reserve"] {
        fs::remove_file(path("killed").join(unused)).unwrap();
    }
    let names = ["without-mark", "stopped", "killed", "a-backup"];
    names.map(|name| (name, path(name))).into()
}

/// Every file of a folder with its content, mode and time of change.
fn files(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u32, i64, i64)> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            all.extend(files(&path));
        }
        let content = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        all.insert(path, (content, meta.mode(), meta.mtime(), meta.mtime_nsec()));
    }
    all
}

#[test]
fn whoever_looks_at_a_folder_leaves_it_as_it_was() {
    let root = tempfile::tempdir().unwrap();
    for (name, data) in folders(root.path()) {
        let mut before = files(&data);
        let backup = root.path().join(format!("{name}-backup"));
        let is_backup = name == "a-backup";
        for looking in [
            &["verify", data.to_str().unwrap()][..],
            &["backup", backup.to_str().unwrap(), "--data", data.to_str().unwrap()],
            &["doctor", "--data", data.to_str().unwrap()],
            &["doctor", "--verify", "--data", data.to_str().unwrap()],
            &["doctor", "--largest", "--data", data.to_str().unwrap()],
        ] {
            let output = sluice().args(looking).output().unwrap();
            let said = text(&output);
            // The gateway does not answer `doctor`; a backup is no data folder, and is only verified.
            let code = match looking[0] {
                "doctor" | "backup" if is_backup => 1,
                "doctor" => 2,
                _ => 0,
            };
            assert_eq!(output.status.code(), Some(code), "{name} {looking:?}: {said}");
            assert!(is_backup || !said.contains("folder-not-verified"), "{name} {looking:?}: {said}");
            let after = files(&data);
            // What says when all was last read, which is what it was read for.
            let reads_all = looking[0] == "verify" || looking.contains(&"--verify");
            if reads_all && !is_backup {
                let report = data.join("upkeep.json");
                let (_, mode, ..) = &after[&report];
                assert_eq!(mode & 0o777, 0o600, "{name} {looking:?}");
                before.insert(report.clone(), after[&report].clone());
            }
            let all = before.keys().chain(after.keys());
            let differ: BTreeSet<_> = all.filter(|file| before.get(*file) != after.get(*file)).collect();
            assert!(differ.is_empty(), "{name} {looking:?}: {differ:?} differ\n{said}");
        }
        if is_backup {
            continue;
        }
        for (file, (_, mode, ..)) in files(&backup) {
            assert_eq!(mode & 0o077, 0, "{name}: others may read {}", file.display());
        }
        // What was backed up before an upgrade is all there after it.
        let restored = root.path().join(format!("{name}-restored"));
        ends(&run(&["restore", backup.to_str().unwrap()], &restored), 0, "Restored");
        let documents_there = if name == "without-mark" { 6 } else { 1 };
        assert_eq!(documents(&Up::start(&restored)), documents_there, "{name}");
        assert_eq!(documents(&Up::start(&data)), documents_there, "{name}");
    }
}
