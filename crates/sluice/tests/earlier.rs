//! What earlier versions left: their folders, stopped and killed, and their backups are taken over with all that is in them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Output;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use common::{Up, ends, sluice, text};

/// What a version with marks, sealed stores and backups left: a folder that was stopped, a copy of it that was killed later,
/// and a backup of it. Each with documents, one of them in a file, a flow, edited config and a letter that nobody could read.
const MARKED: &[u8] = include_bytes!("data/marked.zip");

struct Kept {
    root: tempfile::TempDir,
}

impl Kept {
    fn unpack() -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut archive = zip::ZipArchive::new(std::io::Cursor::new(MARKED)).unwrap();
        archive.extract(root.path()).unwrap();
        Self { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }
}

fn run(args: &[&str], data: &Path) -> Output {
    sluice().args(args).arg("--data").arg(data).output().unwrap()
}

fn verify(folder: &Path) -> Output {
    sluice().arg("verify").arg(folder).output().unwrap()
}

/// All that the folder held is there, is served, and takes part in what comes.
fn check(up: &Up) {
    let found = up.json(&["doc", "ls"]);
    let found = found.as_array().unwrap();
    let id = |title: &str| {
        let one = found.iter().find(|one| one["title"] == title);
        one.unwrap_or_else(|| panic!("{title} is not in {found:?}"))["id"].as_str().unwrap().to_owned()
    };
    let content = |title: &str| {
        let asked = serde_json::json!({"operation": "get-document-content", "document-id": id(title)});
        let answer = up.post("/api/v1/librarian", &asked);
        let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        BASE64_STANDARD.decode(body["content"].as_str().unwrap_or_else(|| panic!("{body}"))).unwrap()
    };
    assert_eq!(content("large.txt"), "Line of a large document.\n".repeat(5_000).into_bytes());
    assert!(String::from_utf8(content("coffee.md")).unwrap().contains("beans"));
    assert_eq!(up.json(&["config", "get", "prompt", "system"]), serde_json::json!("Be brief and cite."));
    assert_eq!(up.json(&["dead", "ls"]).as_array().unwrap().len(), 1);
    let flows = text(&up.run(&["flow", "ls"]));
    assert!(flows.contains("reading"), "{flows}");
    let answer = || up.run(&["ask", "how long should coffee beans rest?", "--flow", "reading"]);
    common::until("an answer", || text(&answer()).contains("coffee.md"), || up.log());
}

#[test]
fn folders_of_the_version_before_are_taken_over_whether_stopped_or_killed() {
    let kept = Kept::unpack();
    // Unpacked, the one that was killed is a copy.
    for (name, more, (code, says)) in
        [("stopped", &[][..], (0, "is whole")), ("killed", &["--accept-loss", "copy"], (1, "it is a copy"))]
    {
        let data = kept.path(name);
        ends(&verify(&data), code, says);
        let mut up = Up::start_with(&data, more);
        check(&up);
        if name == "killed" {
            // It was accepted just before the kill, and nothing was done with it.
            let answer = || up.run(&["ask", "how is a bowline tied?", "--flow", "reading"]);
            common::until("what was under way", || text(&answer()).contains("knots.txt"), || up.log());
        }
        assert_eq!(up.terminate(), 0);
        ends(&verify(&data), 0, "is whole");
        check(&Up::start(&data));
    }
}

#[test]
fn a_backup_of_the_version_before_is_restored_and_gone_on_with() {
    let kept = Kept::unpack();
    let (dir, data) = (kept.path("backup"), kept.path("stopped"));
    let dir_name = dir.to_str().unwrap();
    ends(&verify(&dir), 0, "is whole");
    ends(&run(&["restore", dir_name], &kept.path("new")), 0, "Restored");
    check(&Up::start(&kept.path("new")));

    // The folder that it was made of is backed up into it again: only the log, which is kept in pieces now, and what this start
    // noted is copied.
    let output = run(&["backup", dir_name, "-o", "json"], &data);
    assert!(output.status.success(), "{}", text(&output));
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let log: u64 = std::fs::read_dir(data.join("broker"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_str().unwrap().starts_with("log-"))
        .map(|entry| entry.metadata().unwrap().len())
        .sum();
    let (copied, all) = (made["copied-bytes"].as_u64().unwrap(), made["bytes"].as_u64().unwrap());
    assert!(copied < log + (all - log) / 2, "{made}, of which the log has {log}");
    ends(&verify(&dir), 0, "is whole");
    ends(&run(&["restore", dir_name], &kept.path("again")), 0, "Restored");
    check(&Up::start(&kept.path("again")));
}
