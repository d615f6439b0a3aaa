//! Disks that stand still, as that of a file server that is gone: whoever names a folder on one waits, and nobody else does.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{PATIENCE, Up, ends, sluice, text, until};

/// Holds whoever does one thing (`DISK_HOLDS`) with a path that has a word in it, once a file exists.
const DISK: &str = r#"
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static void look(const char *call, const char *path) {
    const char *when = getenv("DISK_HOLDS_WHEN"), *in = getenv("DISK_HOLDS_IN"), *at = getenv("DISK_HOLDS");
    if (!when || !in || !at || strcmp(at, call) != 0 || !path || !strstr(path, in)) return;
    while (access(when, F_OK) == 0) usleep(20000);
}
#define NEXT(type, name) ((type) dlsym(RTLD_NEXT, #name))
#define MODE(flags) mode_t mode = 0; va_list rest; va_start(rest, flags); if (flags & O_CREAT) mode = va_arg(rest, mode_t); va_end(rest)
int open64(const char *p, int flags, ...) {
    MODE(flags);
    look("open", p);
    return NEXT(int (*)(const char *, int, ...), open64)(p, flags, mode);
}
int open(const char *p, int flags, ...) {
    MODE(flags);
    look("open", p);
    return NEXT(int (*)(const char *, int, ...), open)(p, flags, mode);
}
int mkdir(const char *p, mode_t mode) { look("mkdir", p); return NEXT(int (*)(const char *, mode_t), mkdir)(p, mode); }
int unlink(const char *p) { look("unlink", p); return NEXT(int (*)(const char *), unlink)(p); }
DIR *opendir(const char *p) { look("opendir", p); return NEXT(DIR *(*)(const char *), opendir)(p); }
int rename(const char *p, const char *to) { look("rename", p); return NEXT(int (*)(const char *, const char *), rename)(p, to); }
"#;

/// A disk that stands still on command, for whoever has the word `still` in a path.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let (source, library) = (root.path().join("disk.c"), root.path().join("disk.so"));
        fs::write(&source, DISK).unwrap();
        let mut compiler = Command::new("cc");
        let compiled =
            compiler.args(["-shared", "-fPIC", "-o"]).arg(library).arg(source).arg("-ldl").output().unwrap();
        assert!(compiled.status.success(), "{}", text(&compiled));
        Self(root)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn stands_still(&self, is_still: bool) {
        match is_still {
            true => fs::write(self.path("stands"), "").unwrap(),
            false => fs::remove_file(self.path("stands")).unwrap(),
        }
    }

    /// A command for which it stands still when it does this.
    fn sluice(&self, call: &str) -> Command {
        let mut command = sluice();
        command.env("LD_PRELOAD", self.path("disk.so")).env("DISK_HOLDS_WHEN", self.path("stands"));
        command.env("DISK_HOLDS", call).env("DISK_HOLDS_IN", "still");
        command
    }
}

/// What a command comes to that must end by itself.
fn ended(mut command: Command) -> Output {
    let mut started = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let until = Instant::now() + PATIENCE;
    while started.try_wait().unwrap().is_none() {
        if Instant::now() >= until {
            started.kill().unwrap();
            panic!("{command:?} does not end:\n{}", text(&started.wait_with_output().unwrap()));
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    started.wait_with_output().unwrap()
}

fn backup(dir: &Path, data: &Path) -> Output {
    let mut command = sluice();
    command.arg("backup").arg(dir).args(["--timeout", "2", "--data"]).arg(data);
    ended(command)
}

#[test]
fn a_backup_on_a_disk_that_stands_still_holds_nobody_else_and_no_end_of_the_process() {
    let disk = Disk::new();
    for call in ["mkdir", "open", "opendir", "rename", "unlink"] {
        let (data, still, other) =
            (disk.path(&format!("data-{call}")), disk.path(&format!("still-{call}")), disk.path("other"));
        let mut up = Up::start_as(disk.sluice(call), &data, &[]);
        disk.stands_still(true);
        let late = backup(&still, &data);
        ends(&late, 5, "has not gone on with the backup for 2 s");
        ends(&up.run(&["flow", "ls", "--timeout", "20"]), 0, "");
        assert!(text(&late).contains("try: see whether"), "{call}: {}", text(&late));
        for _ in 0..4 {
            ends(&backup(&other, &data), 1, "this process is making one in");
        }
        if call == "open" {
            // It goes on where it stood, and all is as before.
            disk.stands_still(false);
            until("the backup to come to its end", || backup(&other, &data).status.success(), || up.log());
            ends(&sluice().arg("verify").arg(&still).output().unwrap(), 0, "is whole");
            disk.stands_still(true);
            ends(&backup(&still, &data), 5, "for 2 s");
        }
        let told_at = Instant::now();
        assert_eq!(up.terminate(), 0, "{call}: {}", up.log());
        assert!(told_at.elapsed() < Duration::from_secs(20), "{call}: it took {:?}", told_at.elapsed());
        disk.stands_still(false);
    }
}

#[test]
fn a_command_that_is_given_a_folder_on_a_disk_that_stands_still_ends_in_time_and_names_it() {
    let disk = Disk::new();
    let [data, still, new] = ["data", "still", "new"].map(|name| disk.path(name));
    let mut up = Up::start(&data);
    fs::create_dir(&still).unwrap();
    disk.stands_still(true);
    let [data, still, new] = [&data, &still, &new].map(|path| path.to_str().unwrap());
    for command in [
        &["backup", still, "--data", data][..],
        &["backup", new, "--data", still],
        &["verify", still],
        &["restore", still, "--data", new],
        &["restore", data, "--data", still],
        &["salvage", still, "--data", new],
        &["salvage", data, "--data", still],
    ] {
        let mut told = disk.sluice("opendir");
        told.args(command).args(["--timeout", "2"]);
        ends(&ended(told), 5, &format!("the disk of '{still}' has not answered for 2 s"));
    }
    for more in [&[][..], &["--verify"], &["--largest"]] {
        let mut told = disk.sluice("opendir");
        told.args(["doctor", "--data", still, "--url", &up.url, "--timeout", "2"]).args(more);
        ends(&ended(told), 2, "[folder-silent]");
    }
    assert_eq!(up.terminate(), 0);
}
