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
    let wait = || sluice().args(["backup", dir.to_str().unwrap(), "--data"]).arg(&data).spawn().unwrap();
    let mut waiting = wait();
    let is_told = || {
        // It may have met one of those that are to be told of it.
        if waiting.try_wait().unwrap().is_some() {
            waiting = wait();
        }
        let output = run(&["backup", other.to_str().unwrap()], &data);
        let is_told = text(&output).contains("is making one in");
        assert!(!is_told || output.status.code() == Some(1), "{}", text(&output));
        is_told
    };
    until("a second one is told", is_told, || up.log());
    assert_eq!(waiting.wait().unwrap().code(), Some(1));
    let output = run(&["backup", dir.to_str().unwrap(), "--timeout", "1"], &data);
    // That this ends within seconds is known.
    ends(&output, 1, &format!("(by process {})", std::process::id()));
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

#[test]
fn whoever_waits_little_is_told_too_that_another_process_makes_a_backup_or_reads_it() {
    let place = Place::new();
    let (data, dir) = (place.path("data"), place.path("backup"));
    let _up = Up::start(&data);
    let impatient = || run(&["backup", dir.to_str().unwrap(), "--timeout", "1"], &data);
    let made = making(&dir);
    ends(&impatient(), 1, &format!("(by process {})", std::process::id()));
    drop(made);
    // As a restore does.
    let reading = fs::File::open(&dir).unwrap();
    reading.lock_shared().unwrap();
    ends(&impatient(), 0, "Backed up");
}

#[test]
fn a_process_that_cannot_listen_is_told_with_its_socket_and_listens_once_it_can() {
    let place = Place::new();
    let (data, dir) = (place.path("data"), place.path("backup"));
    assert_eq!(Up::start(&data).terminate(), 0);
    let socket = data.join("control.sock");
    fs::create_dir(&socket).unwrap();
    let up = Up::start(&data);
    assert!(up.log().contains("tries again"), "{}", up.log());
    let backed_up = || run(&["backup", dir.to_str().unwrap()], &data);
    let refused = backed_up();
    ends(&refused, 1, &format!("it is not reached, since '{}' is no socket", socket.display()));
    assert!(text(&refused).contains("try: move away what is there"), "{}", text(&refused));
    fs::remove_dir(&socket).unwrap();
    until("the process to listen", || backed_up().status.success(), || up.log());
}

#[test]
fn that_a_result_cannot_be_written_is_told_and_that_the_work_is_done() {
    let place = Place::new();
    let (data, dir, new) = (place.path("data"), place.path("backup"), place.path("new"));
    let up = Up::start(&data);
    let untold = |args: &[&str]| {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = sluice().args(args).args(["--url", &up.url]).stdout(full).output().unwrap();
        ends(&output, 1, "error: the result cannot be written to standard output: No space left");
        assert!(text(&output).contains("try: what was to be done is done"), "{args:?}: {}", text(&output));
    };
    let [at, into, restored] = [&data, &dir, &new].map(|path| path.to_str().unwrap());
    untold(&["backup", into, "--data", at, "-o", "json"]);
    ends(&verify(&dir), 0, "is whole");
    untold(&["verify", into]);
    untold(&["restore", into, "--data", restored]);
    untold(&["flow", "start", "f1", "document-rag", "--data", at]);
    untold(&["flow", "ls", "--data", at, "-o", "yaml"]);
    ends(&up.run(&["flow", "ls"]), 0, "f1");
    assert_eq!(Up::start(&new).terminate(), 0);
}

#[test]
fn nothing_is_left_in_a_folder_of_somebody_else_in_which_no_restore_is_made() {
    let place = Place::new();
    let (data, dir, theirs) = (place.path("data"), place.path("backup"), place.path("theirs"));
    assert_eq!(Up::start(&data).terminate(), 0);
    backup(&dir, &data);
    fs::create_dir(&theirs).unwrap();
    fs::write(theirs.join("mine.txt"), "mine").unwrap();
    for args in [["restore", dir.to_str().unwrap()], ["salvage", data.to_str().unwrap()]] {
        ends(&run(&args, &theirs), 1, "is not empty: 'mine.txt' is in it");
        let left: Vec<_> = fs::read_dir(&theirs).unwrap().map(|one| one.unwrap().file_name()).collect();
        assert_eq!(left, ["mine.txt"], "{args:?}");
    }
}

#[test]
fn no_backup_is_made_over_what_somebody_else_keeps() {
    let place = Place::new();
    let (data, dir) = (place.path("data"), place.path("kept"));
    let up = Up::start(&data);
    add(&up, "large-1.txt", &large(1));
    // Content and a key that were put there by hand, and a backup that was cut short before it had any.
    let content = dir.join("blobs/0123456789abcdef-0123456789abcdef0123456789abcdef");
    fs::create_dir_all(dir.join("blobs")).unwrap();
    for file in [&content, &dir.join("admin.key")] {
        fs::write(file, "somebody's").unwrap();
    }
    let refused = run(&["backup", dir.to_str().unwrap()], &data);
    ends(&refused, 1, "is not empty and no backup");
    for file in [&content, &dir.join("admin.key")] {
        assert_eq!(fs::read_to_string(file).unwrap(), "somebody's", "{}", text(&refused));
    }
    let cut = place.path("cut");
    fs::create_dir_all(cut.join("chunks")).unwrap();
    fs::write(cut.join("admin.key"), "tg_cut").unwrap();
    backup(&cut, &data);
    ends(&verify(&cut), 0, "is whole");

    // Nor is what a link leads to that lies in place of its lock.
    let (target, linked) = (place.path("target"), place.path("linked"));
    fs::create_dir(&linked).unwrap();
    fs::write(&target, "somebody's").unwrap();
    std::os::unix::fs::symlink(&target, linked.join("sluice-backup.json.lock")).unwrap();
    ends(&run(&["backup", linked.to_str().unwrap()], &data), 1, "cannot be written");
    assert_eq!(fs::read_to_string(&target).unwrap(), "somebody's");
}

#[test]
fn a_backup_into_a_folder_whose_name_is_no_text_is_refused_with_what_to_do_while_the_system_runs() {
    use std::os::unix::ffi::OsStrExt as _;
    let place = Place::new();
    let data = place.path("data");
    let dir = place.path("").join(std::ffi::OsStr::from_bytes(b"back\xffup"));
    let mut up = Up::start(&data);
    let backed_up = || sluice().arg("backup").arg(&dir).arg("--data").arg(&data).output().unwrap();
    let output = backed_up();
    ends(&output, 64, "is no UTF-8");
    assert!(text(&output).contains("  try: name another folder"), "{}", text(&output));
    assert_eq!(up.terminate(), 0);
    ends(&backed_up(), 0, "Backed up");
}
