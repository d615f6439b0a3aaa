//! Data folders that no start takes, and what is something else than it should be: named, and never copied over what is whole.

use std::os::unix::fs::symlink;
use std::process::Command;

use super::*;

/// A command that ends by itself, or is ended and tells that by another code.
fn run_for_a_while(args: &[&str], data: Option<&Path>) -> Output {
    let mut command = Command::new("timeout");
    command.arg("30").arg(env!("CARGO_BIN_EXE_sluice")).args(args);
    data.map(|data| command.arg("--data").arg(data));
    command.output().unwrap()
}

fn doctor(data: &Path) -> Output {
    run(&["doctor", "--verify", "--url", "http://127.0.0.1:1"], data)
}

fn pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

fn remove(path: &Path) {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
}

/// The first file in a part of a backup.
fn first_in(part: &Path) -> PathBuf {
    fs::read_dir(part).unwrap().next().unwrap().unwrap().path()
}

#[test]
fn a_stopped_folder_that_no_start_takes_is_named_and_replaces_no_backup() {
    let place = Place::new();
    let (data, other, dir) = (place.path("data"), place.path("other"), place.path("backup"));
    for folder in [&data, &other] {
        let mut up = Up::start(folder);
        add(&up, "large-1.txt", &large(1));
        assert_eq!(up.terminate(), 0);
    }
    backup(&dir, &data);
    let made = files(&dir);
    type Harm = fn(&Path, &Path);
    let harms: [(&str, &str, Harm); 6] = [
        ("broker", "broker", |data, _| remove(&data.join("broker"))),
        ("broker", "broker", |data, _| {
            remove(&data.join("broker"));
            fs::create_dir(data.join("broker")).unwrap();
        }),
        ("admin.key", "admin-key", |data, _| remove(&data.join("admin.key"))),
        ("admin.key", "admin-key", |data, _| fs::write(data.join("admin.key"), "").unwrap()),
        ("admin.key", "admin-key", |data, _| {
            let mut key = fs::read(data.join("admin.key")).unwrap();
            key[6] = if key[6] == b'a' { b'b' } else { b'a' };
            fs::write(data.join("admin.key"), key).unwrap();
        }),
        ("admin.key", "admin-key", |data, other| {
            fs::copy(other.join("admin.key"), data.join("admin.key")).unwrap();
        }),
    ];
    for (number, (part, loss, harm)) in harms.into_iter().enumerate() {
        let (path, kept) = (data.join(part), place.path("kept"));
        copy(&path, &kept);
        harm(&data, &other);
        let to = dir.to_str().unwrap();
        for output in [run(&["backup", to], &data), run(&["backup", to, "--older"], &data), verify(&data)] {
            ends(&output, 1, part);
            assert!(text(&output).contains(&format!("--accept-loss {loss}")), "{number}: {}", text(&output));
        }
        let told = doctor(&data);
        ends(&told, 2, part);
        assert!(text(&told).contains("folder-not-verified"), "{number}: {}", text(&told));
        assert!(files(&dir) == made, "{number}: the backup was changed");
        if path.exists() {
            remove(&path);
        }
        fs::rename(&kept, &path).unwrap();
    }
    ends(&verify(&data), 0, "is whole");
    assert!(text(&doctor(&data)).contains("matched its checksums"));
    backup(&dir, &data);
    ends(&verify(&dir), 0, "is whole");
}

#[test]
fn a_key_that_is_lost_while_the_system_runs_is_named_and_the_one_of_the_backup_before_is_kept() {
    let place = Place::new();
    let (data, dir, first) = (place.path("data"), place.path("backup"), place.path("first"));
    let up = Up::start(&data);
    let key = up.key();
    backup(&dir, &data);
    let wrong = format!("tg_{}", "a".repeat(32));
    for (number, (text_in_file, told)) in
        [(None, "admin.key is missing"), (Some(&wrong), "admin.key is not the key of this data")]
            .into_iter()
            .enumerate()
    {
        match text_in_file {
            None => remove(&data.join("admin.key")),
            Some(wrong) => fs::write(data.join("admin.key"), wrong).unwrap(),
        }
        ends(&run(&["backup", dir.to_str().unwrap()], &data), 2, told);
        ends(&verify(&dir), 2, "the one of the backup before is kept");
        let new = place.path(&format!("new-{number}"));
        ends(&run(&["restore", dir.to_str().unwrap()], &new), 2, told);
        assert_eq!(Up::start(&new).key(), key);
        // There is none to keep.
        ends(&run(&["backup", first.to_str().unwrap()], &data), 2, told);
        assert!(!first.join("admin.key").exists() && !text(&verify(&first)).contains("is kept"));
    }
    fs::write(data.join("admin.key"), &key).unwrap();
    for dir in [&dir, &first] {
        backup(dir, &data);
        ends(&verify(dir), 0, "is whole");
    }
}

#[test]
fn what_is_something_else_in_a_backup_is_named_with_what_to_do_and_not_waited_for() {
    let place = Place::new();
    let (data, whole) = (place.path("data"), place.path("whole"));
    let mut up = Up::start(&data);
    add(&up, "large-1.txt", &large(1));
    assert_eq!(up.terminate(), 0);
    backup(&whole, &data);
    let (dir, new) = (place.path("backup"), place.path("new"));
    let (at, to) = (dir.to_str().unwrap(), new.to_str().unwrap());
    let named = |part: &str| dir.join(first_in(&whole.join(part)).strip_prefix(&whole).unwrap());
    let begin = |path: &Path| {
        if dir.exists() {
            remove(&dir);
        }
        copy(&whole, &dir);
        if path.exists() {
            remove(path);
        }
    };
    let read = |code: i32, says: &str| {
        ends(&run_for_a_while(&["verify", at], None), code, says);
        ends(&run_for_a_while(&["restore", at, "--data", to], None), 1, says);
        assert!(!new.exists());
    };
    let make = || run_for_a_while(&["backup", at], Some(&data));

    // What cannot be mended by another backup.
    type Other = (fn(&Path), &'static str);
    let make_other: [Other; 3] = [
        (pipe, "is a pipe where a f"),
        (|path| fs::create_dir(path).unwrap(), "is a folder where a f"),
        (|path| symlink(path.file_name().unwrap(), path).unwrap(), "a link that leads to nothing"),
    ];
    for (other, says) in &make_other[..2] {
        begin(&dir.join("sluice-backup.json"));
        other(&dir.join("sluice-backup.json"));
        read(1, says);
        ends(&make(), 1, says);
    }
    for (other, says) in [make_other[0], make_other[2]] {
        for part in ["chunks", "blobs", "objects"] {
            begin(&dir.join(part));
            other(&dir.join(part));
            read(1, says);
            let told = make();
            ends(&told, 1, says);
            assert!(text(&told).contains("move it away"), "{}", text(&told));
        }
    }
    for (other, _) in &make_other {
        begin(&dir.join("sluice-backup.json.lock"));
        other(&dir.join("sluice-backup.json.lock"));
        let told = make();
        ends(&told, 1, "sluice-backup.json.lock' is no file of its own");
        assert!(text(&told).contains("move it away"), "{}", text(&told));
        // Who reads it does without.
        ends(&run_for_a_while(&["verify", at], None), 0, "is whole");
        ends(&run_for_a_while(&["restore", at, "--data", to], None), 0, "Restored");
        remove(&new);
    }
    // What can, at once or when it is not in the way any more.
    for path in [named("chunks"), named("blobs"), dir.join("admin.key")] {
        begin(&path);
        pipe(&path);
        let mut unfinished = path.clone().into_os_string();
        unfinished.push(".new");
        pipe(Path::new(&unfinished));
        read_wrong(&dir, at, to, "it is a pipe where a file should be");
        ends(&make(), 0, "");
        ends(&verify(&dir), 0, "is whole");

        begin(&path);
        fs::create_dir(&path).unwrap();
        read_wrong(&dir, at, to, "it is a folder where a file should be; move that away first");
        ends(&make(), 1, &format!("move the folder '{}' away", path.display()));
        remove(&path);
        ends(&make(), 0, "");
        ends(&verify(&dir), 0, "is whole");
    }

    // Nor is anything made where a folder cannot be.
    let file = place.path("file");
    fs::write(&file, "somebody's").unwrap();
    for to in [file.clone(), file.join("inner")] {
        let to = to.to_str().unwrap();
        let says = "is a file where a folder should be";
        let commands: [(&[&str], Option<&Path>); 3] = [
            (&["restore", whole.to_str().unwrap(), "--data", to], None),
            (&["salvage", data.to_str().unwrap(), "--data", to], None),
            (&["backup", to], Some(&data)),
        ];
        for (args, data) in commands {
            let output = run_for_a_while(args, data);
            ends(&output, 1, says);
            assert!(text(&output).contains("  try: name a"), "{}", text(&output));
        }
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "somebody's");
}

/// Reads a backup in which a file is something else.
fn read_wrong(dir: &Path, at: &str, to: &str, says: &str) {
    ends(&run_for_a_while(&["verify", at], None), 2, says);
    ends(&run_for_a_while(&["restore", at, "--data", to], None), 1, says);
    assert!(dir.exists() && !Path::new(to).exists());
}
