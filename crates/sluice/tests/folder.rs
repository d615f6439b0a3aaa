//! What a data folder may lack, and what a start makes of it: nothing is removed, what is wrong is named.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::BufRead as _;
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
            let copied = fs::copy(entry.path(), target);
            // A file that is just being written gets its name when it is whole.
            let is_new = entry.path().extension().is_some_and(|end| end == "new");
            assert!(copied.is_ok() || is_new, "{}: {copied:?}", entry.path().display());
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
    let changed: Vec<_> = before.keys().filter(differs).collect();
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
fn a_part_that_may_not_be_read_is_not_taken_for_missing() {
    // Whoever runs this, a link that leads to itself cannot be read.
    for part in ["store.redb", "blobs", "broker", "admin.key", "broker/log-0000000000000001"] {
        let (_root, data) = copied(&FOLDERS.now);
        let path = data.join(part);
        let kept = data.with_extension("kept");
        fs::rename(&path, &kept).unwrap();
        std::os::unix::fs::symlink(path.file_name().unwrap(), &path).unwrap();
        let output = up(&data, &[]);
        ends(&output, 1, "is there, but cannot be read");
        assert!(!text(&output).contains("--accept-loss"), "{part}: {}", text(&output));
        fs::remove_file(&path).unwrap();
        fs::rename(&kept, &path).unwrap();
        assert_eq!(documents(&Up::start(&data)), 2, "{part}");
    }
}

#[test]
fn a_mark_or_key_that_cannot_be_is_refused_and_its_way_out_works() {
    fn edit(data: &Path, change: fn(&mut serde_json::Value)) {
        let file = data.join("sluice.json");
        let mut mark = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        change(&mut mark);
        fs::write(file, mark.to_string()).unwrap();
    }
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 4] = [
        ("mark", |data| edit(data, |mark| mark["is-fresh"] = true.into())),
        ("mark", |data| edit(data, |mark| mark["generation"] = u64::MAX.into())),
        ("mark", |data| edit(data, |mark| mark["store"]["generation"] = (u64::MAX - 1).into())),
        ("admin-key", |data| fs::write(data.join("admin.key"), "no key").unwrap()),
    ];
    for (number, (loss, harm)) in harms.into_iter().enumerate() {
        let (_root, data) = copied(&FOLDERS.now);
        harm(&data);
        ends(&up(&data, &[]), 1, &format!("--accept-loss {loss}"));
        let is_aside = |name: &str| name.starts_with("set-aside");
        let names =
            || fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(!names().any(|name| is_aside(&name)), "{number}: unasked");
        let mut up = Up::start_with(&data, &["--accept-loss", loss]);
        assert_eq!(documents(&up), 2, "{number}");
        assert_eq!(up.terminate(), 0);
        assert_eq!(documents(&Up::start(&data)), 2, "{number}");
    }
}

#[test]
fn every_way_out_that_a_refused_start_names_works() {
    for part in PARTS.iter().copied().chain(["admin.key"]) {
        // The key is what it was earlier.
        for how in DAMAGES.iter().copied().filter(|how| (part, *how) != ("admin.key", Damage::Older)) {
            let (_root, data) = copied(&FOLDERS.now);
            damage(&data, part, how);
            let said = text(&up(&data, &[]));
            let loss =
                said.split_once("--accept-loss ").and_then(|(_, rest)| rest.split([';', ' ', '\n']).next());
            let (way, found) = match loss {
                Some(loss) => (vec!["--accept-loss", loss], 2),
                None => (vec!["--init-empty"], 0),
            };
            let mut up = Up::start_with(&data, &way);
            assert_eq!(documents(&up), found, "{part} {how:?}: {said}");
            assert_eq!(up.terminate(), 0, "{part} {how:?}");
            assert_eq!(documents(&Up::start(&data)), found, "{part} {how:?}");
        }
    }
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
fn an_older_folder_whose_start_is_refused_stays_of_its_version() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    unpack_without_mark(&data);
    fs::remove_file(data.join("admin.key")).unwrap();
    refused(&data, &["admin.key"], "an older folder");
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

/// Makes reads (`r`), writes (`w`) or syncs (`s`) of files whose path has a word in it fail, once another file exists.
const FAILING_DISK: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
static int fails(int fd, char at) {
    char link[64], path[4096];
    const char *when = getenv("DISK_FAILS_WHEN"), *in = getenv("DISK_FAILS_IN"), *all = getenv("DISK_FAILS_AT");
    if (!when || !in || !all || !strchr(all, at) || access(when, F_OK) != 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, in) != NULL;
}
#define OR_EIO(at, call) if (fails(fd, at)) { errno = EIO; return -1; } return call
int fdatasync(int fd) { OR_EIO('s', syscall(SYS_fdatasync, fd)); }
int fsync(int fd) { OR_EIO('s', syscall(SYS_fsync, fd)); }
ssize_t write(int fd, const void *b, size_t n) { OR_EIO('w', syscall(SYS_write, fd, b, n)); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) { OR_EIO('w', syscall(SYS_pwrite64, fd, b, n, o)); }
ssize_t read(int fd, void *b, size_t n) { OR_EIO('r', syscall(SYS_read, fd, b, n)); }
ssize_t pread64(int fd, void *b, size_t n, off64_t o) { OR_EIO('r', syscall(SYS_pread64, fd, b, n, o)); }
"#;

/// A disk that fails on command.
struct FailingDisk(tempfile::TempDir);

impl FailingDisk {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let (source, library) = (root.path().join("disk.c"), root.path().join("disk.so"));
        fs::write(&source, FAILING_DISK).unwrap();
        let mut compiler = std::process::Command::new("cc");
        let compiled = compiler.args(["-shared", "-fPIC", "-o"]).arg(library).arg(source).output().unwrap();
        assert!(compiled.status.success(), "{}", text(&compiled));
        Self(root)
    }

    /// A process on such a disk, and the file that makes it fail.
    fn up(&self, data: &Path, file: &str, at: &str) -> (Up, PathBuf) {
        let when = data.with_extension("fails");
        let mut command = sluice();
        command.env("LD_PRELOAD", self.0.path().join("disk.so")).env("DISK_FAILS_WHEN", &when);
        command.env("DISK_FAILS_IN", file).env("DISK_FAILS_AT", at);
        (Up::start_as(command, data, &[]), when)
    }
}

/// A folder whose first start ended, by its mark, in the moment before it was over.
fn cut_in_its_first_start(said: impl Fn(u64) -> u64) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    assert_eq!(Up::start(&data).terminate(), 0);
    let mark = data.join("sluice.json");
    let mut state: serde_json::Value = serde_json::from_slice(&std::fs::read(&mark).unwrap()).unwrap();
    let generation = said(state["store"]["generation"].as_u64().unwrap());
    let part = serde_json::json!({"generation": generation, "before": generation - 1});
    let cut = serde_json::json!({"is-fresh": true, "is-closed": false, "generation": generation, "store": part, "broker": part});
    state.as_object_mut().unwrap().extend(cut.as_object().unwrap().clone());
    // In place: another file would be a copy.
    std::fs::write(&mark, serde_json::to_vec_pretty(&state).unwrap()).unwrap();
    home
}

#[test]
fn a_first_start_that_was_cut_again_and_again_goes_on_and_an_older_mark_is_told_from_it() {
    let home = cut_in_its_first_start(|at| at);
    assert_eq!(Up::start(&home.path().join("data")).terminate(), 0);
    let home = cut_in_its_first_start(|at| at - 1);
    refused(&home.path().join("data"), &["sluice.json is an older copy"], "a mark of an earlier moment");
}

#[test]
fn a_process_whose_disk_failed_ends_and_says_why() {
    let disk = FailingDisk::new();
    for (file, at) in [("store.redb", "s"), ("broker/log-", "s"), ("blobs/", "s"), ("blobs/", "w")] {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("data");
        let (mut up, when) = disk.up(&data, file, at);
        add_large(&up, 1);
        fs::write(&when, "").unwrap();
        let large = root.path().join("large.txt");
        fs::write(&large, "Another line.\n".repeat(20_000)).unwrap();
        let failed = match file {
            "blobs/" => up.run(&["doc", "add", large.to_str().unwrap(), "--store-only", "--timeout", "20"]),
            _ => up.run(&["flow", "start", "f1", "document-rag", "--timeout", "20"]),
        };
        assert!(!failed.status.success(), "{file} {at}: {}", text(&failed));
        assert_eq!(up.ended(), 1, "{file} {at}: {}", up.log());
        assert!(up.log().contains("error: the disk failed"), "{file} {at}: {}", up.log());
        // With a disk that works again, what was acknowledged is there.
        assert_eq!(documents(&Up::start(&data)), 1, "{file} {at}");
    }
}

#[test]
fn a_process_whose_disk_fails_while_it_stops_says_so_and_nothing_is_lost() {
    let disk = FailingDisk::new();
    for (file, at) in [
        ("store.redb", "s"),
        ("store.redb", "w"),
        ("broker/log-", "s"),
        ("broker/log-", "w"),
        ("sluice.json", "ws"),
    ] {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("data");
        let (mut up, when) = disk.up(&data, file, at);
        add_large(&up, 1);
        fs::write(&when, "").unwrap();
        assert_eq!(up.terminate(), 1, "{file} {at}: {}", up.log());
        assert!(up.log().contains("error: the disk failed"), "{file} {at}: {}", up.log());
        assert_eq!(documents(&Up::start(&data)), 1, "{file} {at}");
    }
}

#[test]
fn what_the_disk_cannot_read_is_named_and_what_comes_after_it_is_looked_at() {
    let disk = FailingDisk::new();
    let (_root, data) = copied(&FOLDERS.now);
    let [unreadable, flipped] = &files_of(&data.join("blobs"))[..] else { panic!("two documents") };
    let mut content = fs::read(flipped).unwrap();
    content[1_000] ^= 1;
    fs::write(flipped, content).unwrap();
    let (_up, when) = disk.up(&data, unreadable.file_name().unwrap().to_str().unwrap(), "r");
    fs::write(&when, "").unwrap();
    let output = doctor(&data, &["--verify"]);
    ends(&output, 2, "the disk cannot read its file");
    assert!(text(&output).contains("does not match its digests"), "{}", text(&output));
    // And of the tables.
    let (_root, data) = copied(&FOLDERS.now);
    let (up, when) = disk.up(&data, "store.redb", "r");
    fs::write(&when, "").unwrap();
    let output = doctor(&data, &["--verify"]);
    ends(&output, 2, "cannot be read, or does not match its checksum");
    drop(up);
}

/// Starts a system and ends it at once; what it says if it does not start.
fn comes_up(data: &Path) -> Result<(), String> {
    let mut command = sluice();
    command.args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(data);
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut lines = std::io::BufReader::new(child.stderr.take().unwrap());
    while lines.read_line(&mut said).unwrap() > 0 {
        if said.contains(" serving") {
            child.kill().unwrap();
            child.wait().unwrap();
            return Ok(());
        }
    }
    assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
    Err(said)
}

/// Those of store and content are flipped in the tests of the store.
#[test]
fn a_flipped_bit_in_mark_log_or_key_is_refused_by_name_or_harmless() {
    let seed: u64 = std::env::var("SLUICE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    for (part, flips) in [("sluice.json", 24), ("broker", 16), ("admin.key", 8)] {
        for _ in 0..flips {
            let (_root, data) = copied(&FOLDERS.now);
            let file = files_of(&data.join(part)).pop().unwrap();
            let mut bytes = fs::read(&file).unwrap();
            // What is set aside for later is zeros.
            let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
            let bit = random.random_range(0..used * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&file, bytes).unwrap();
            let what = format!("SLUICE_SEED={seed}: bit {bit} of {}", file.display());
            match comes_up(&data) {
                Err(said) => assert!(
                    PARTS.iter().chain(&["admin.key"]).any(|part| said.contains(part)),
                    "{what}: {said}"
                ),
                Ok(()) => assert_eq!(documents(&Up::start(&data)), 2, "{what}"),
            }
        }
    }
}

/// The doctor on a folder, with nobody at its address.
fn doctor(data: &Path, more: &[&str]) -> Output {
    let args = ["doctor", "--url", "http://127.0.0.1:9", "--data"];
    sluice().args(args).arg(data).args(more).output().unwrap()
}

#[test]
fn the_doctor_names_damage_over_restarts_and_every_wait_for_a_check_has_an_end() {
    let (_root, data) = copied(&FOLDERS.now);
    let is_content = |file: &PathBuf| fs::metadata(file).unwrap().len() > 64 * 1024;
    let content = files_of(&data.join("blobs")).into_iter().find(is_content).unwrap();
    let whole = fs::read(&content).unwrap();
    let mut flipped = whole.clone();
    flipped[1_000] ^= 1;
    let sound = |output: Output| ends(&output, 2, "matched its checksums");
    let damaged = |output: Output| {
        ends(&output, 2, "[folder-damaged]");
        assert!(!text(&output).contains("matched its checksums"), "{}", text(&output));
    };
    // By whom and in which order it was read before does not matter.
    sound(doctor(&data, &["--verify"]));
    let mut up = Up::start(&data);
    sound(doctor(&data, &["--verify"]));
    fs::write(&content, flipped).unwrap();
    damaged(doctor(&data, &["--verify"]));
    assert_eq!(up.terminate(), 0);
    damaged(doctor(&data, &[]));
    let mut up = Up::start(&data);
    damaged(doctor(&data, &[]));
    assert_eq!(up.terminate(), 0);
    fs::write(&content, &whole).unwrap();
    ends(&sluice().arg("verify").arg(&data).output().unwrap(), 0, "is whole");
    sound(doctor(&data, &[]));

    // What was found cannot be put down, as on a full disk.
    let up = Up::start(&data);
    fs::create_dir(data.join("upkeep.json.new")).unwrap();
    let output = doctor(&data, &["--verify", "--timeout", "3"]);
    ends(&output, 2, "[folder-not-verified]");
    let said = text(&output);
    assert!(said.contains("within 3 s") && said.contains("--timeout SECONDS"), "{said}");
    drop(up);
}

#[test]
fn a_folder_that_is_none_is_an_error_for_every_command_that_reads_one_and_stays_as_it_is() {
    let root = tempfile::tempdir().unwrap();
    let (missing, other) = (root.path().join("missing"), root.path().join("other"));
    fs::create_dir(&other).unwrap();
    fs::write(other.join("mine.txt"), "mine").unwrap();
    let backup = root.path().join("backup");
    let commands: &[&[&str]] = &[
        &["doctor"],
        &["doctor", "--verify"],
        &["doctor", "--largest"],
        &["doctor", "--remove", "default/t/k"],
        &["backup", backup.to_str().unwrap()],
    ];
    for command in commands {
        for (data, says) in [(&missing, "there is no data folder"), (&other, "is no data folder")] {
            let output = sluice().args(*command).arg("--data").arg(data).output().unwrap();
            ends(&output, 3, says);
        }
    }
    for data in [&missing, &other] {
        ends(&sluice().arg("verify").arg(data).output().unwrap(), 3, "neither a backup nor a data folder");
    }
    assert!(!missing.exists() && !backup.exists());
    let left: Vec<PathBuf> = files_of(&other);
    assert_eq!(left, [other.join("mine.txt")]);
}
