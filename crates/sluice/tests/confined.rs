//! Processes that read documents and render prompts, looked at from inside: what they can do is that.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "../../documents/tests/made/mod.rs"]
#[allow(dead_code, reason = "shared with the tests of the reader, which make more")]
mod made;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use sluice_documents::{Event, Limits, child};
use sluice_processors::{Renderer, RendererConfig};

/// The commands by which this program is started as a process that works on what others wrote.
const CONFINED: [&str; 2] = ["decode", "render"];

fn checked(command: &str, more: &[&str]) -> Value {
    let output = common::sluice().args([command, "--check"]).args(more).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{command}: {}", common::text(&output)))
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
}

#[test]
fn processes_that_read_and_render_reach_no_file_no_network_and_no_process() {
    for command in CONFINED {
        let bare = checked(command, &["--bare"]);
        assert_eq!(
            names(&bare["refused"]),
            [""; 0],
            "{command}: what cannot be done anyway shows nothing: {bare}"
        );
        let confined = checked(command, &[]);
        let parts: Vec<&str> =
            confined["missing"].as_array().unwrap().iter().map(|one| one["part"].as_str().unwrap()).collect();
        if parts.contains(&"seccomp") {
            // Then doctor and log say what can be done; Landlock alone keeps from files and addresses.
            assert!(
                parts.contains(&"Landlock") || !names(&confined["done"]).contains(&"open a file"),
                "{command}: {confined}"
            );
        } else {
            assert_eq!(names(&confined["done"]), [""; 0], "{command}: {confined}");
            assert_eq!(names(&confined["refused"]), names(&bare["done"]));
        }
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

/// Templates that stay within no limit, and others beside them, in processes that can open nothing to see what they take.
#[tokio::test]
async fn prompts_are_rendered_and_their_limits_hold_without_files_and_calls() {
    let twice = |what: &str, times: usize| {
        format!(
            "{{% set ns = namespace(x={what}) %}}{{% for i in range({times}) %}}{{% set ns.x = ns.x + ns.x %}}{{% endfor %}}"
        )
    };
    let program = env!("CARGO_BIN_EXE_sluice").into();
    let renderer = Renderer::new(RendererConfig { program, ..RendererConfig::default() });
    let terms = BTreeMap::from([("who".to_owned(), "\"bees\"".to_owned())]);
    for (template, says) in [
        ("{{ who }}, {{ [3, 1] | sort | tojson }}".to_owned(), Ok("bees, [1, 3]")),
        ("{% if %}".to_owned(), Err("cannot be used")),
        (format!("{}{{{{ ns.x | length }}}}", twice("[1, 1]", 40)), Err("of computing")),
        (format!("{}{{{{ ns.x }}}}", twice("'ab'", 40)), Err("of memory")),
        ("{{ who }}".to_owned(), Ok("bees")),
    ] {
        let rendered = renderer.render("w", &template, &terms).await;
        match (&rendered, says) {
            (Ok(text), Ok(says)) => assert_eq!(text, says),
            (Err(reason), Err(says)) => assert!(reason.contains(says), "{template}: {reason}"),
            _ => panic!("{template}: {rendered:?}"),
        }
    }
    let schema = r#"{"type": "object", "required": ["a"]}"#;
    assert_eq!(renderer.check("w", schema, "Sure: {\"a\": 1}").await.as_deref(), Ok(r#"{"a":1}"#));
    assert!(renderer.check("w", schema, "[]").await.unwrap_err().contains("is not of type"));
}

#[test]
fn a_process_that_reads_or_renders_ends_with_the_one_that_started_it() {
    for command in CONFINED {
        ends_with_its_parent(command);
    }
}

fn ends_with_its_parent(command: &str) {
    // The pipe to it stays open here, so that no end of it is seen. What it says goes nowhere.
    let script = r#"exec 3<&0; "$0" "$1" <&3 >/dev/null & echo $!; wait"#;
    let mut parent = Command::new("/bin/sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_sluice"), command])
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
