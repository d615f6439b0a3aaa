//! Parts of a data folder that this process may not use, or that are something else: named as that, and never as lost.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use common::{Up, ends, sluice, text};
use rustix::fs::{CWD, FileType, Mode, mknodat};

const LOG: &str = "broker/log-0000000000000001";

/// A stopped folder with a document whose content is a file of its own, and a flow.
static WHOLE: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    let mut up = Up::start(&data);
    let file = root.path().join("large.txt");
    fs::write(&file, "A line of the document.\n".repeat(5_000)).unwrap();
    up.json(&["doc", "add", file.to_str().unwrap(), "--store-only"]);
    up.json(&["flow", "start", "f1", "document-rag"]);
    assert_eq!(up.terminate(), 0);
    (root, data)
});

fn copied() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    copy(&WHOLE.1, &data);
    (root, data)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// The program without root's right to read and write everything, whoever runs this.
fn unprivileged() -> Command {
    if !rustix::process::geteuid().is_root() {
        return sluice();
    }
    let program = sluice();
    let mut command = Command::new("setpriv");
    let rights = "-dac_override,-dac_read_search";
    command.args([format!("--bounding-set={rights}"), format!("--inh-caps={rights}")]);
    command.arg(program.get_program());
    for (name, value) in program.get_envs() {
        assert!(value.is_none());
        command.env_remove(name);
    }
    command.stdin(std::process::Stdio::null());
    command
}

fn up_by(mut command: Command, data: &Path, more: &[&str]) -> Output {
    command.args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(data).args(more).output().unwrap()
}

fn documents(up: &Up) -> usize {
    up.json(&["doc", "ls"]).as_array().unwrap().len()
}

fn is_set_aside(data: &Path) -> bool {
    let mut entries = fs::read_dir(data).unwrap();
    entries.any(|entry| entry.unwrap().file_name().to_str().unwrap().starts_with("set-aside"))
}

#[test]
fn what_this_process_may_not_use_is_never_told_as_lost() {
    let parts = [
        (LOG, 0o444),
        (LOG, 0o000),
        ("broker/lock", 0o000),
        ("broker", 0o555),
        ("sluice.json", 0o000),
        ("store.redb", 0o444),
        ("blobs", 0o555),
        ("reserve", 0o444),
        ("admin.key", 0o000),
        ("sluice.lock", 0o000),
    ];
    let (_root, data) = copied();
    for (part, mode) in parts {
        let path = data.join(part);
        let was = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        for more in [&[][..], &["--accept-loss", "broker,blobs,mark,admin-key"], &["--init-empty"]] {
            let output = up_by(unprivileged(), &data, more);
            ends(&output, 1, "see ");
            let said = text(&output);
            assert!(said.contains(&path.display().to_string()), "{part} {mode:o}: {said}");
            assert!(said.contains("who owns it") && said.contains("ermission"), "{part} {mode:o}: {said}");
            assert!(!said.contains("to go on without"), "{part} {mode:o}: {said}");
            assert!(!is_set_aside(&data), "{part} {mode:o} {more:?}: {said}");
        }
        fs::set_permissions(&path, was).unwrap();
    }
    assert_eq!(documents(&Up::start_as(unprivileged(), &data, &[])), 1);
}

#[test]
fn a_folder_that_this_user_may_not_look_into_is_told_as_that_by_every_command() {
    let (root, data) = copied();
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let backup = root.path().join("backup");
    let (data_at, backup_at) = (path("data"), path("backup"));
    ends(&sluice().args(["backup", &backup_at, "--data", &data_at]).output().unwrap(), 0, "Backed up");
    for (folder, mode) in [(&data, 0o000), (&data, 0o600), (&backup, 0o000)] {
        fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
        let at = folder.display().to_string();
        let mut commands = vec![vec!["verify", &at]];
        if folder == &data {
            commands.extend([
                vec!["backup", "made", "--data", &at],
                vec!["salvage", &at, "--data", "made"],
                vec!["doctor", "--data", &at],
                vec!["doctor", "--largest", "--data", &at],
                vec!["up", "--listen", "127.0.0.1:0", "--data", &at],
            ]);
        } else {
            commands.push(vec!["restore", &at, "--data", "made"]);
        }
        for command in commands {
            let output = unprivileged().args(&command).current_dir(root.path()).output().unwrap();
            ends(&output, 1, "who owns it");
            let said = text(&output);
            assert!(said.contains(&at) && said.contains("ermission denied"), "{command:?}: {said}");
            assert!(
                !said.contains("no data folder") && !said.contains("another backup"),
                "{command:?}: {said}"
            );
        }
        assert!(!root.path().join("made").exists());
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
    }
}

fn pipe(place: &Path) {
    mknodat(CWD, place, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

fn folder(place: &Path) {
    fs::create_dir(place).unwrap();
}

fn file(place: &Path) {
    fs::write(place, "somebody's").unwrap();
}

fn link_to_file(place: &Path) {
    let target = place.ancestors().find(|path| path.ends_with("data")).unwrap().with_file_name("target");
    fs::write(&target, "somebody's").unwrap();
    symlink(target, place).unwrap();
}

fn link_to_nothing(place: &Path) {
    symlink("/nonexistent/disk", place).unwrap();
}

#[test]
fn a_part_that_is_something_else_is_named_as_that_and_set_aside_on_request() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm, &str); 15] = [
        ("blobs", file, "a file where a folder should be"),
        ("blobs", link_to_nothing, "a link that leads to nothing where a folder should be"),
        ("broker", file, "a file where a folder should be"),
        ("trash", file, "a file where a folder should be"),
        ("store.redb", folder, "a folder where a file should be"),
        ("store.redb", pipe, "a pipe where a file should be"),
        ("sluice.json", folder, "a folder where a file should be"),
        ("sluice.json", pipe, "a pipe where a file should be"),
        ("admin.key", folder, "a folder where a file should be"),
        ("admin.key", pipe, "a pipe where a file should be"),
        (LOG, pipe, "a pipe where a file should be"),
        ("reserve", folder, "a folder where a file should be"),
        ("reserve", link_to_file, "a link where a file should be"),
        ("broker/reserve", folder, "a folder where a file should be"),
        ("broker/lock", link_to_file, "a link where a file should be"),
    ];
    for (part, harm, what) in harms {
        let (root, data) = copied();
        let (place, kept) = (data.join(part), root.path().join("kept"));
        let was_there = fs::rename(&place, &kept).is_ok();
        harm(&place);
        let told = format!("'{part}' is {what}");
        let backup = root.path().join("backup");
        let commands: [Output; 4] = [
            up_by(sluice(), &data, &[]),
            up_by(sluice(), &data, &["--accept-loss", "broker,blobs,mark,admin-key"]),
            sluice().arg("verify").arg(&data).output().unwrap(),
            sluice().arg("backup").arg(&backup).arg("--data").arg(&data).output().unwrap(),
        ];
        for output in commands {
            ends(&output, 1, &told);
            let said = text(&output);
            assert!(said.contains("move '") && said.contains("--init-empty"), "{part}: {said}");
            assert!(!said.contains("--accept-loss"), "{part}: {said}");
            assert!(!is_set_aside(&data), "{part}: {said}");
        }
        let anew = root.path().join("anew/data");
        fs::create_dir_all(anew.parent().unwrap()).unwrap();
        if !["sluice.json", "reserve"].contains(&part) {
            fs::rename(&data, &anew).unwrap();
            let up = Up::start_with(&anew, &["--init-empty"]);
            assert_eq!(documents(&up), 0, "{part}");
            assert!(is_set_aside(&anew), "{part}");
        } else {
            // As it says: moved away, with what was there in its place again.
            fs::rename(&place, root.path().join("away")).unwrap();
            if was_there {
                fs::rename(&kept, &place).unwrap();
            }
            assert_eq!(documents(&Up::start(&data)), 1, "{part}");
        }
        let target = root.path().join("target");
        assert!(!target.exists() || fs::read_to_string(&target).unwrap() == "somebody's", "{part}");
    }
}

#[test]
fn the_end_of_a_log_that_was_closed_is_set_aside_before_it_is_cut() {
    let (_root, data) = copied();
    let log = data.join(LOG);
    let whole = fs::read(&log).unwrap();
    let cut = &whole[..whole.len() - 5];
    fs::write(&log, cut).unwrap();
    ends(&up_by(sluice(), &data, &[]), 1, "--accept-loss broker");
    let up = Up::start_with(&data, &["--accept-loss", "broker"]);
    let said = up.log();
    assert!(said.contains("is set aside as it was") && !said.contains("not acknowledged yet"), "{said}");
    let mut aside = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().path());
    let aside = aside.find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("set-aside"));
    assert_eq!(fs::read(aside.unwrap().join(LOG)).unwrap(), cut);
    assert_eq!(documents(&up), 1);
}
