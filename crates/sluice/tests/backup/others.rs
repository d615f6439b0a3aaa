//! Backups beside others: readers and makers of the same one, older copies and restored folders, processes that do not answer.

use std::fs;
use std::io::{BufRead as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::{Up, ends, sluice, text, until};
use crate::{Place, add, backup, file_of, large, run, verify};

/// A folder and all that is in it.
fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// What a backup holds.
fn manifest(dir: &Path) -> Vec<u8> {
    fs::read(dir.join("sluice-backup.json")).unwrap()
}

/// Makes others take this process for one that makes a backup there.
fn making(dir: &Path) -> fs::File {
    fs::create_dir_all(dir).unwrap();
    let mut file = fs::File::create(dir.join("sluice-backup.json.lock")).unwrap();
    file.lock().unwrap();
    writeln!(file, "{}", std::process::id()).unwrap();
    file
}

#[test]
fn a_backup_is_read_while_another_one_is_made_into_it_and_its_first_or_mended_one_is_waited_for() {
    let place = Place::new();
    let (data, dir, first) = (place.path("data"), place.path("backup"), place.path("first"));
    let up = Up::start(&data);
    add(&up, "large-1.txt", &large(1));
    backup(&dir, &data);
    let by = format!("a backup is being made into it (by process {})", std::process::id());

    // Its manifest and all that it names are there.
    let made = making(&dir);
    ends(&verify(&dir), 0, "is whole");
    ends(&run(&["restore", dir.to_str().unwrap()], &place.path("new")), 0, "Restored");
    ends(&run(&["backup", dir.to_str().unwrap()], &data), 1, &by);
    let blob = file_of(&dir, 1);
    let whole = fs::read(&blob).unwrap();
    fs::remove_file(&blob).unwrap();
    let none = place.path("none");
    for output in [verify(&dir), run(&["restore", dir.to_str().unwrap()], &none)] {
        ends(&output, 1, &by);
        assert!(text(&output).contains("try again when it is done"), "{}", text(&output));
    }
    assert!(!none.exists());
    drop(made);
    ends(&verify(&dir), 2, "is missing");
    fs::write(&blob, whole).unwrap();

    let made = making(&first);
    ends(&verify(&first), 1, &by);
    ends(&run(&["restore", first.to_str().unwrap()], &none), 1, &by);
    drop(made);
    ends(&verify(&first), 3, "neither");
    backup(&first, &data);
    assert!(!first.join("sluice-backup.json.lock").exists());
    ends(&verify(&first), 0, "is whole");
}

#[test]
fn nothing_is_removed_from_a_backup_that_is_being_read() {
    let place = Place::new();
    let (data, dir) = (place.path("data"), place.path("backup"));
    let up = Up::start(&data);
    add(&up, "large-1.txt", &large(1));
    backup(&dir, &data);
    let blob = file_of(&dir, 1);
    let id = up.json(&["doc", "ls"])[0]["id"].as_str().unwrap().to_owned();
    up.json(&["doc", "rm", &id]);
    // As a restore does.
    let reader = fs::File::open(&dir).unwrap();
    reader.lock_shared().unwrap();
    backup(&dir, &data);
    assert!(blob.exists(), "somebody may still read it");
    ends(&verify(&dir), 0, "is whole");
    drop(reader);
    backup(&dir, &data);
    assert!(!blob.exists(), "nobody reads it any more");
    ends(&verify(&dir), 0, "is whole");
}

#[test]
fn restores_and_checks_beside_backups_into_the_same_place_find_it_whole() {
    let place = Place::new();
    let (data, dir) = (place.path("data"), place.path("backup"));
    let up = Up::start(&data);
    add(&up, "large-0.txt", &large(0));
    backup(&dir, &data);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1.. {
                if is_over.load(Ordering::SeqCst) {
                    break;
                }
                up.json(&["config", "put", "prompt", "mine", &format!("\"{number}\"")]);
                backup(&dir, &data);
            }
        });
        let results: Vec<(Output, Output)> = (0..8)
            .map(|round| {
                let new = place.path(&format!("new-{round}"));
                (verify(&dir), run(&["restore", dir.to_str().unwrap()], &new))
            })
            .collect();
        is_over.store(true, Ordering::SeqCst);
        for (verified, restored) in results {
            ends(&verified, 0, "is whole");
            ends(&restored, 0, "Restored");
        }
    });
}

#[test]
fn a_restore_that_fails_leaves_nothing_behind_and_says_what_to_do() {
    let place = Place::new();
    let (data, dir, new, deep) =
        (place.path("data"), place.path("backup"), place.path("new"), place.path("a/b"));
    let up = Up::start(&data);
    add(&up, "large-1.txt", &large(1));
    backup(&dir, &data);
    let there = place.path("there");
    fs::create_dir(&there).unwrap();
    for to in [&new, &deep, &there] {
        // No file may be larger than some KiB, as when a disk is full.
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -f 64; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_sluice"), "restore"]);
        let output = limited.arg(&dir).arg("--data").arg(to).output().unwrap();
        ends(&output, 1, "the backup was not restored");
        assert!(text(&output).contains("  try: see whether"), "{}", text(&output));
    }
    assert!(!new.exists() && !place.path("a").exists());
    assert_eq!(fs::read_dir(&there).unwrap().count(), 0);
    ends(&run(&["restore", dir.to_str().unwrap()], &there), 0, "Restored");
    ends(&run(&["restore", dir.to_str().unwrap()], &there), 1, "already");
    assert!(there.join("store.redb").exists(), "what was there before stays");
}

#[test]
fn an_older_copy_of_a_folder_replaces_a_newer_backup_only_on_request() {
    let place = Place::new();
    let (data, dir, old) = (place.path("data"), place.path("backup"), place.path("old"));
    let mut up = Up::start(&data);
    add(&up, "first.txt", "The first document.");
    assert_eq!(up.terminate(), 0);
    copy(&data, &old);
    let mut up = Up::start(&data);
    add(&up, "second.txt", "The second document.");
    backup(&dir, &data);
    let newest = manifest(&dir);
    let refused = || {
        let output = run(&["backup", dir.to_str().unwrap()], &old);
        ends(&output, 1, "has come further");
        let said = text(&output);
        assert!(said.contains(old.to_str().unwrap()) && said.contains("--older"), "{said}");
        assert_eq!(manifest(&dir), newest);
    };
    refused();
    assert_eq!(up.terminate(), 0);
    refused();
    ends(&run(&["backup", dir.to_str().unwrap(), "--older"], &old), 0, "Backed up");
    assert_ne!(manifest(&dir), newest);
    // The newer one may follow at any time.
    backup(&dir, &data);
    ends(&verify(&dir), 0, "is whole");
}

#[test]
fn a_restored_folder_is_backed_up_into_the_backup_it_came_from_until_another_one_is_there() {
    let place = Place::new();
    let (data, dir, new, late) =
        (place.path("data"), place.path("backup"), place.path("new"), place.path("late"));
    let mut up = Up::start(&data);
    add(&up, "first.txt", "The first document.");
    backup(&dir, &data);
    ends(&run(&["restore", dir.to_str().unwrap()], &late), 0, "Restored");
    assert_eq!(up.terminate(), 0);
    // The old folder went on, and so did its backup.
    backup(&dir, &data);
    ends(&run(&["backup", dir.to_str().unwrap()], &late), 1, "another data folder");
    ends(&run(&["restore", dir.to_str().unwrap()], &new), 0, "Restored");
    let restored = Up::start(&new);
    add(&restored, "second.txt", "The second document.");
    backup(&dir, &new);
    backup(&dir, &new);
    ends(&verify(&dir), 0, "is whole");
    ends(&run(&["backup", dir.to_str().unwrap()], &data), 1, "another data folder");
}

#[test]
fn a_backup_is_not_waited_for_longer_than_asked_and_a_second_one_is_told_of_the_first() {
    let place = Place::new();
    let (data, dir, other) = (place.path("data"), place.path("backup"), place.path("other"));
    let up = Up::start(&data);
    let signal = |name: &str| {
        assert!(Command::new("kill").args([name, &up.pid().to_string()]).status().unwrap().success());
    };
    signal("-STOP");
    let output = run(&["backup", dir.to_str().unwrap(), "--timeout", "1"], &data);
    signal("-CONT");
    ends(&output, 5, "has not answered for 1 s");
    assert!(text(&output).contains("--timeout SECONDS"), "{}", text(&output));
    // What was asked then is done now.
    let is_made = || run(&["backup", dir.to_str().unwrap()], &data).status.success();
    until("a backup", is_made, || up.log());

    // One that waits for another process.
    let made = making(&dir);
    let waiting = sluice().args(["backup", dir.to_str().unwrap(), "--data"]).arg(&data).spawn();
    let mut waiting = waiting.unwrap();
    let is_told = || {
        let output = run(&["backup", other.to_str().unwrap()], &data);
        let is_told = text(&output).contains("is making one in");
        assert!(!is_told || output.status.code() == Some(1), "{}", text(&output));
        is_told
    };
    until("a second one is told", is_told, || up.log());
    assert_eq!(waiting.wait().unwrap().code(), Some(1));
    let output = run(&["backup", dir.to_str().unwrap(), "--timeout", "1"], &data);
    ends(&output, 5, "has not gone on with the backup for 1 s");
    drop(made);
    until("a backup", is_made, || up.log());
    ends(&verify(&dir), 0, "is whole");
}

#[test]
fn a_backup_that_goes_on_is_waited_for_however_long_it_takes() {
    let place = Place::new();
    let (data, dir) = (place.path("data"), place.path("backup"));
    fs::create_dir(&data).unwrap();
    let listener = UnixListener::bind(data.join("control.sock")).unwrap();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut question = String::new();
        std::io::BufReader::new(&stream).read_line(&mut question).unwrap();
        assert!(question.contains("\"older\":false"), "{question}");
        for _ in 0..8 {
            stream.write_all(b"\"working\"\n").unwrap();
            std::thread::park_timeout(Duration::from_millis(500));
        }
        stream.write_all(b"{\"done\":{\"rows\":7,\"files\":0,\"bytes\":0,\"copied-bytes\":0}}\n").unwrap();
    });
    let output = run(&["backup", dir.to_str().unwrap(), "--timeout", "2"], &data);
    serving.join().unwrap();
    ends(&output, 0, "7 rows");
}
