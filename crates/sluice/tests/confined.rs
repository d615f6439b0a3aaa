//! A process that reads a document, looked at from inside: what it can do is read that document.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "../../documents/tests/made/mod.rs"]
#[allow(dead_code, reason = "shared with the tests of the reader, which make more")]
mod made;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use sluice_documents::{Event, Limits, child};

fn checked(more: &[&str]) -> Value {
    let output = common::sluice().args(["decode", "--check"]).args(more).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", common::text(&output)))
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
}

#[test]
fn a_process_that_reads_documents_reaches_no_file_no_network_and_no_process() {
    let bare = checked(&["--bare"]);
    assert_eq!(names(&bare["refused"]), [""; 0], "what cannot be done anyway shows nothing: {bare}");
    let confined = checked(&[]);
    let parts: Vec<&str> =
        confined["missing"].as_array().unwrap().iter().map(|one| one["part"].as_str().unwrap()).collect();
    if parts.contains(&"seccomp") {
        // Then doctor and log say what can be done; Landlock alone keeps from files and addresses.
        assert!(
            parts.contains(&"Landlock") || !names(&confined["done"]).contains(&"open a file"),
            "{confined}"
        );
    } else {
        assert_eq!(names(&confined["done"]), [""; 0], "{confined}");
        assert_eq!(names(&confined["refused"]), names(&bare["done"]));
    }
}

/// What a process of its own reports of a document.
fn read(declared: &str, content: &[u8]) -> Vec<Event> {
    let order = child::Order {
        declared: declared.to_owned(),
        content_bytes: content.len() as u64,
        limits: Limits::default(),
    };
    let mut process = common::sluice()
        .arg("decode")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = process.stdin.take().unwrap();
    input.write_all(&[&order.line(), content].concat()).unwrap();
    drop(input);
    let output = process.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", common::text(&output));
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
}

#[test]
fn documents_of_every_kind_are_read_without_files_and_calls() {
    let latin = b"Ein Caf\xe9 in Z\xfcrich hat ge\xf6ffnet, und die K\xe4sefondues sind gut.";
    for (declared, content, says) in [
        #[cfg(feature = "pdf")]
        ("", made::pdf(&["The pump house.", "The blue door."]), "The blue door."),
        ("", made::docx(), "Leeks"),
        ("", made::xlsx(), "plant: leek"),
        ("", made::pptx(), "What we eat"),
        ("text/html", b"<title>Bees</title><p>Drones &eacute;".to_vec(), "Drones é"),
        ("text/csv", b"hive,queen\nsouth,blue\n".to_vec(), "queen: blue"),
        ("text/plain", latin.to_vec(), "Käsefondues"),
        ("text/markdown", b"# Leeks".repeat(200_000), "# Leeks"),
    ] {
        let told = read(declared, &content);
        let texts: Vec<&str> = told
            .iter()
            .filter_map(|event| match event {
                Event::Part { text, .. } => Some(text.as_str()),
                _ => None,
            })
            .collect();
        assert!(texts.iter().any(|text| text.contains(says)), "{says}: {:.500}", format!("{told:?}"));
        assert_eq!(told.last(), Some(&Event::End), "{says}");
    }
    // A parser that panics or is lost is told as well, and ends.
    let told = read("application/pdf", &made::pdf(&["One."])[..40]);
    assert!(matches!(told.last(), Some(Event::Failed(_))), "{told:?}");
}

#[test]
fn a_process_that_reads_ends_with_the_one_that_started_it() {
    // The pipe to it stays open here, so that no end of it is seen.
    let script = r#"exec 3<&0; "$0" decode <&3 & echo $!; wait"#;
    let mut parent = Command::new("/bin/sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_sluice")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let status = format!("/proc/{}/status", line.trim());
    let says = |wanted: &str| {
        std::fs::read_to_string(&status).unwrap_or_default().lines().any(|line| line.starts_with(wanted))
    };
    // The last thing that it sets before it reads.
    common::until("its confinement", || says("Seccomp:\t2"), String::new);
    parent.kill().unwrap();
    parent.wait().unwrap();
    let has_ended = || !Path::new(&status).exists() || says("State:\tZ");
    common::until("its end", has_ended, || std::fs::read_to_string(&status).unwrap_or_default());
}
