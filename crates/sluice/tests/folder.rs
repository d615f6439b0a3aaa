//! What a data folder may lack, and what a start makes of it: nothing is removed, what is wrong is named.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::LazyLock;

use common::{Up, ends, sluice, text};
use rand::{Rng as _, SeedableRng as _};

/// A folder of the last version that kept no mark: documents, one of them in a file, edited and deleted config, a running flow,
/// dead letters.
const WITHOUT_MARK: &[u8] = include_bytes!("data/folder-without-mark.zip");

/// What people and tests damage.
const PARTS: &[&str] = &["store.redb", "blobs", "broker", "sluice.json"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Missing,
    Empty,
    Truncated,
    OfAnother,
    Older,
}

const DAMAGES: &[Damage] =
    &[Damage::Missing, Damage::Empty, Damage::Truncated, Damage::OfAnother, Damage::Older];

/// Three stopped folders: one, the same some work earlier, and one of another system.
struct Folders {
    now: PathBuf,
    older: PathBuf,
    other: PathBuf,
    _root: tempfile::TempDir,
}

static FOLDERS: LazyLock<Folders> = LazyLock::new(|| {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let work = |data: &Path, number: u32| {
        let mut up = Up::start(data);
        add_large(&up, number);
        assert_eq!(up.terminate(), 0);
    };
    work(&path("now"), 1);
    copy(&path("now"), &path("older"));
    work(&path("now"), 2);
    work(&path("other"), 3);
    Folders { now: path("now"), older: path("older"), other: path("other"), _root: root }
});

/// Adds a document that rests in a file of its own.
fn add_large(up: &Up, number: u32) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(format!("large-{number}.txt"));
    fs::write(&file, format!("Line of document {number}.\n").repeat(5_000)).unwrap();
    up.json(&["doc", "add", file.to_str().unwrap(), "--store-only"]);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy(&entry.path(), &target);
        } else if kind.is_file() {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A copy of a folder, to be damaged.
fn copied(from: &Path) -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    copy(from, &data);
    (root, data)
}

fn remove(path: &Path) {
    if path.is_dir() {
        fs::remove_dir_all(path).unwrap();
    } else if path.exists() {
        fs::remove_file(path).unwrap();
    }
}

/// The files that hold what a part is made of.
fn files_of(part: &Path) -> Vec<PathBuf> {
    if !part.is_dir() {
        return vec![part.to_owned()];
    }
    let mut files: Vec<PathBuf> = fs::read_dir(part).unwrap().map(|one| one.unwrap().path()).collect();
    files.retain(|file| !["lock", "reserve"].contains(&file.file_name().unwrap().to_str().unwrap()));
    files.sort();
    files
}

fn damage(data: &Path, part: &str, how: Damage) {
    let place = data.join(part);
    let replace = |from: &Path| {
        remove(&place);
        if from.join(part).is_dir() {
            copy(&from.join(part), &place);
        } else {
            fs::copy(from.join(part), &place).unwrap();
        }
    };
    match how {
        Damage::Missing => remove(&place),
        Damage::Empty if place.is_dir() => files_of(&place).iter().for_each(|file| remove(file)),
        Damage::Empty => fs::write(&place, "").unwrap(),
        Damage::Truncated => {
            let file = files_of(&place).pop().unwrap();
            let whole = fs::read(&file).unwrap();
            fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        }
        Damage::OfAnother => replace(&FOLDERS.other),
        Damage::Older => replace(&FOLDERS.older),
    }
}

/// Every byte of a folder, but for what is there to be used up.
fn bytes_of(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(data).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            all.extend(bytes_of(&path));
        } else if path.is_file() && !["lock", "reserve", "sluice.lock"].contains(&name.as_str()) {
            all.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    all
}

fn up(data: &Path, more: &[&str]) -> Output {
    sluice().args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(data).args(more).output().unwrap()
}

fn documents(up: &Up) -> usize {
    up.json(&["doc", "ls"]).as_array().unwrap().len()
}

/// A start of a folder that is not whole: refused, with this in what it says, and not a byte is another.
fn refused(data: &Path, names: &[&str], what: &str) {
    let before = bytes_of(data);
    let output = up(data, &[]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{what}: {said}");
    assert!(names.iter().any(|name| said.contains(name)), "{what}: none of {names:?} in\n{said}");
    assert!(said.contains("--init-empty"), "{what}: {said}");
    let after = bytes_of(data);
    let differs = |file: &&PathBuf| after.get(*file) != before.get(*file);
    // A store that had to be opened to see that it does not fit has noted that it was, or was written anew by this version.
    let is_opened = |file: &Path| {
        let bytes = |files: &BTreeMap<PathBuf, Vec<u8>>| files.get(file).map_or(0, Vec::len);
        file.ends_with("store.redb") && bytes(&before) > 0 && bytes(&after) >= bytes(&before) / 2
    };
    let changed: Vec<_> = before.keys().filter(differs).filter(|file| !is_opened(file)).collect();
    assert!(changed.is_empty() && before.len() == after.len(), "{what}: {changed:?} changed\n{said}");
}

#[test]
fn no_start_removes_anything_because_something_is_missing() {
    for part in PARTS {
        for how in DAMAGES {
            let (_root, data) = copied(&FOLDERS.now);
            damage(&data, part, *how);
            refused(&data, &[part], &format!("{part} {how:?}"));
            // With the right part back, all is there.
            damage_undone(&data, part);
            if *how == Damage::Missing {
                let up = Up::start(&data);
                assert_eq!(documents(&up), 2, "{part} {how:?}");
            }
        }
    }
}

fn damage_undone(data: &Path, part: &str) {
    remove(&data.join(part));
    if FOLDERS.now.join(part).is_dir() {
        copy(&FOLDERS.now.join(part), &data.join(part));
    } else {
        fs::copy(FOLDERS.now.join(part), data.join(part)).unwrap();
    }
}

#[test]
fn of_several_damaged_parts_one_is_named_and_nothing_is_changed() {
    let seed: u64 = std::env::var("SLUICE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(5);
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    for round in 0..16 {
        let (_root, data) = copied(&FOLDERS.now);
        let mut told = format!("SLUICE_SEED={seed}, round {round}:");
        let mut kinds = Vec::new();
        for part in PARTS.iter().filter(|_| random.random_bool(0.6)).collect::<Vec<_>>() {
            let how = DAMAGES[random.random_range(0..DAMAGES.len())];
            damage(&data, part, how);
            told = format!("{told} {part} {how:?}");
            kinds.push(how);
        }
        // All parts of one older or other folder are a whole folder again.
        let is_whole = kinds.is_empty()
            || (kinds.len() == PARTS.len()
                && (kinds.iter().all(|how| *how == Damage::Older)
                    || kinds.iter().all(|how| *how == Damage::OfAnother)));
        if !is_whole {
            refused(&data, PARTS, &told);
        }
    }
}

#[test]
fn a_lost_key_is_told_and_a_new_one_is_made_on_request() {
    let (_root, data) = copied(&FOLDERS.now);
    fs::remove_file(data.join("admin.key")).unwrap();
    refused(&data, &["admin.key"], "the key");
    fs::write(data.join("admin.key"), "").unwrap();
    refused(&data, &["admin.key"], "an empty key");
    fs::remove_file(data.join("admin.key")).unwrap();
    let up = Up::start_with(&data, &["--accept-loss", "admin-key"]);
    assert_eq!(documents(&up), 2);
    drop(up);
    fs::copy(FOLDERS.other.join("admin.key"), data.join("admin.key")).unwrap();
    ends(&crate::up(&data, &[]), 1, "admin.key");
}

#[test]
fn what_is_lost_is_done_without_on_request_and_not_told_again() {
    for (part, loss) in [("broker", "broker"), ("blobs", "blobs"), ("sluice.json", "mark")] {
        let (_root, data) = copied(&FOLDERS.now);
        damage(&data, part, Damage::Missing);
        let mut up = Up::start_with(&data, &["--accept-loss", loss]);
        assert_eq!(documents(&up), 2, "{part}");
        assert_eq!(up.terminate(), 0);
        assert_eq!(documents(&Up::start(&data)), 2, "{part}");
    }
    let (_root, data) = copied(&FOLDERS.now);
    damage(&data, "store.redb", Damage::Older);
    ends(&up(&data, &["--accept-loss", "broker,blobs,mark,copy"]), 1, "older copy");
}

#[test]
fn a_folder_that_is_refused_is_begun_anew_on_request_with_all_that_was_there_set_aside() {
    let (_root, data) = copied(&FOLDERS.now);
    ends(&up(&data, &["--init-empty"]), 64, "nothing wrong");
    let whole = bytes_of(&data);
    fs::write(data.join("store.redb"), "").unwrap();
    let up = Up::start_with(&data, &["--init-empty"]);
    assert_eq!(documents(&up), 0);
    let aside = fs::read_dir(&data).unwrap().map(|one| one.unwrap().path());
    let aside = aside.into_iter().find(|path| path.to_str().unwrap().contains("set-aside")).unwrap();
    for file in files_of(&data.join("../data").join(aside.file_name().unwrap()).join("blobs")) {
        let name = file.file_name().unwrap();
        assert_eq!(fs::read(&file).unwrap(), whole[&data.join("blobs").join(name)]);
    }
    assert!(aside.join("broker").is_dir() && aside.join("admin.key").is_file());
}

#[test]
fn a_copy_of_a_folder_in_use_is_refused_and_one_made_after_a_stop_is_not() {
    let (_root, data) = copied(&FOLDERS.now);
    let mut up = Up::start(&data);
    let (_other, copy_in_use) = copied(&data);
    refused(&copy_in_use, &["sluice backup"], "a copy of a folder in use");
    up.kill();
    // The folder itself is as after any crash.
    let mut up = Up::start(&data);
    assert_eq!(documents(&up), 2);
    assert_eq!(up.terminate(), 0);
    let (_third, stopped) = copied(&data);
    assert_eq!(documents(&Up::start(&stopped)), 2);
}

#[test]
fn a_part_from_before_a_crash_is_told_from_the_others() {
    let (_root, data) = copied(&FOLDERS.now);
    let mut up = Up::start(&data);
    add_large(&up, 7);
    up.kill();
    for part in ["store.redb", "broker"] {
        let (_other, crashed) = {
            // A move keeps what a copy would not; here the file's identity is not what is looked at.
            let (root, data_2) = copied(&data);
            (root, data_2)
        };
        damage(&crashed, part, Damage::Older);
        let output = crate::up(&crashed, &["--accept-loss", "copy"]);
        ends(&output, 1, "older copy");
        assert!(text(&output).contains(part), "{}", text(&output));
    }
}

#[test]
fn a_folder_of_a_newer_version_is_refused_by_name() {
    let (_root, data) = copied(&FOLDERS.now);
    let mark = fs::read_to_string(data.join("sluice.json")).unwrap();
    fs::write(data.join("sluice.json"), mark.replace("\"format\": 1", "\"format\": 9")).unwrap();
    let output = up(&data, &[]);
    ends(&output, 1, "newer version");
    assert!(text(&output).contains("sluice.json"), "{}", text(&output));
}

#[test]
fn what_a_folder_holds_is_for_its_owner_alone_and_looser_ones_are_told() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    let mut up = Up::start(&data);
    add_large(&up, 1);
    fn check(path: &Path) {
        let mode = fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{} has {mode:o}", path.display());
        if path.is_dir() {
            assert_eq!(mode, 0o700, "{}", path.display());
            fs::read_dir(path).unwrap().for_each(|one| check(&one.unwrap().path()));
        }
    }
    check(&data);
    assert!(!up.log().contains("chmod"), "{}", up.log());
    assert_eq!(up.terminate(), 0);
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(data.join("store.redb"), fs::Permissions::from_mode(0o644)).unwrap();
    let up = Up::start(&data);
    assert!(up.log().contains("chmod -R go= ") && up.log().contains("store.redb"), "{}", up.log());
}

fn unpack_without_mark(data: &Path) {
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(WITHOUT_MARK)).unwrap();
    archive.extract(data).unwrap();
}

#[test]
fn a_folder_from_before_there_were_marks_is_taken_over_with_all_that_is_in_it() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    unpack_without_mark(&data);
    let mut up = Up::start(&data);
    check_taken_over(&up);
    assert_eq!(up.terminate(), 0);
    assert!(data.join("sluice.json").is_file());
    let up = Up::start(&data);
    check_taken_over(&up);
}

fn check_taken_over(up: &Up) {
    let found = up.json(&["doc", "ls"]);
    let titles: Vec<&str> =
        found.as_array().unwrap().iter().filter_map(|one| one["title"].as_str()).collect();
    for title in ["bread.md", "coffee.md", "first-aid.md", "harbour-log.txt", "knots.txt", "night-sky.md"] {
        assert!(titles.contains(&title), "{title} is not among {titles:?}");
    }
    assert_eq!(up.json(&["config", "get", "prompt", "system"]), serde_json::json!("Be brief and cite."));
    assert_eq!(up.json(&["dead", "ls"]).as_array().unwrap().len(), 30);
    let flows = text(&up.run(&["flow", "ls"]));
    assert!(flows.contains("default") && flows.contains("graph"), "{flows}");
    let answer = || up.run(&["ask", "how long should coffee beans rest?", "--flow", "default"]);
    common::until("an answer", || text(&answer()).contains("coffee.md"), || up.log());
}

#[test]
fn a_folder_without_mark_that_lacks_its_store_keeps_its_documents() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    unpack_without_mark(&data);
    let whole = fs::read(data.join("store.redb")).unwrap();
    fs::remove_file(data.join("store.redb")).unwrap();
    refused(&data, &["store.redb"], "no store");
    fs::write(data.join("store.redb"), "").unwrap();
    refused(&data, &["store.redb"], "an empty store");
    fs::copy(FOLDERS.other.join("store.redb"), data.join("store.redb")).unwrap();
    refused(&data, &["sluice.json", "store"], "the store of a marked folder");
    fs::write(data.join("store.redb"), &whole).unwrap();
    let key = fs::read(data.join("admin.key")).unwrap();
    fs::remove_file(data.join("admin.key")).unwrap();
    refused(&data, &["admin.key"], "a lost key");
    fs::write(data.join("admin.key"), key).unwrap();
    fs::write(data.join("store.redb"), &whole).unwrap();
    let blob = files_of(&data.join("blobs")).remove(0);
    let content = fs::read(&blob).unwrap();
    fs::remove_file(&blob).unwrap();
    refused(&data, &["blobs"], "a lost file of content");
    fs::write(&blob, content).unwrap();
    assert_eq!(documents(&Up::start(&data)), 6);
}

#[test]
fn a_start_that_is_killed_at_any_moment_is_gone_on_with_by_the_next() {
    let seed: u64 =
        std::env::var("SLUICE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("run again with SLUICE_SEED={seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    for round in 0..12 {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("data");
        if round % 3 == 1 {
            copy(&FOLDERS.now, &data);
        } else if round % 3 == 2 {
            unpack_without_mark(&data);
        }
        for _ in 0..3 {
            let mut command = sluice();
            command.args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(&data);
            let mut started = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
            std::thread::park_timeout(std::time::Duration::from_millis(random.random_range(0..150)));
            started.kill().unwrap();
            let output = started.wait_with_output().unwrap();
            assert!(
                !text(&output).contains("error:"),
                "SLUICE_SEED={seed}, round {round}: {}",
                text(&output)
            );
        }
        let mut up = Up::start(&data);
        assert_eq!(documents(&up), [0, 2, 6][round % 3]);
        assert_eq!(up.terminate(), 0);
    }
}

/// Makes syncs of files whose path has a word in it fail, once another file exists.
const FAILING_SYNCS: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
static int fails(int fd) {
    char link[64], path[4096];
    const char *when = getenv("SYNC_FAILS_WHEN"), *in = getenv("SYNC_FAILS_IN");
    if (!when || !in || access(when, F_OK) != 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, in) != NULL;
}
int fdatasync(int fd) { if (fails(fd)) { errno = EIO; return -1; } return syscall(SYS_fdatasync, fd); }
int fsync(int fd) { if (fails(fd)) { errno = EIO; return -1; } return syscall(SYS_fsync, fd); }
"#;

#[test]
fn a_process_whose_disk_failed_ends_and_says_why() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    fs::write(path("sync.c"), FAILING_SYNCS).unwrap();
    let mut compiler = std::process::Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(path("sync.so")).arg(path("sync.c"));
    let compiled = compiler.output().unwrap();
    assert!(compiled.status.success(), "{}", text(&compiled));
    for file in ["store.redb", "broker/log-"] {
        let data = path(&file.replace('/', "-"));
        let when = path(&format!("{}-fails", file.replace('/', "-")));
        let mut command = sluice();
        command.env("LD_PRELOAD", path("sync.so")).env("SYNC_FAILS_IN", file).env("SYNC_FAILS_WHEN", &when);
        let mut up = Up::start_as(command, &data, &[]);
        add_large(&up, 1);
        fs::write(&when, "").unwrap();
        let failed = up.run(&["flow", "start", "f1", "document-rag", "--timeout", "20"]);
        assert!(!failed.status.success(), "{file}: {}", text(&failed));
        assert_eq!(up.ended(), 1, "{file}: {}", up.log());
        assert!(up.log().contains("error: the disk failed"), "{file}: {}", up.log());
        // With a disk that works again, what was acknowledged is there.
        let up = Up::start(&data);
        assert_eq!(documents(&up), 1, "{file}");
    }
}
