//! Documents of many kinds through the binary: pages with their numbers, bad ones with one clear reason each, and limits that
//! hold on what a hostile one can do.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "../../documents/tests/made/mod.rs"]
#[allow(dead_code, reason = "shared with the tests of the reader, which make more")]
mod made;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::Up;
use serde_json::{Value, json};

struct World {
    up: Up,
    folder: tempfile::TempDir,
}

impl World {
    fn start(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let up = Up::start_with(&folder.path().join("data"), more);
        up.json(&["flow", "start", "f1", "document-rag"]);
        Self { up, folder }
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let file = self.folder.path().join(name);
        std::fs::write(&file, content).unwrap();
        file
    }

    /// Adds files and waits until they are through, with this exit code; progress by name.
    fn add(&self, code: i32, files: &[PathBuf]) -> BTreeMap<String, Value> {
        let mut args = vec!["doc", "add", "--flow", "f1", "-o", "json"];
        args.extend(files.iter().map(|file| file.to_str().unwrap()));
        let output = self.up.run(&args);
        assert_eq!(output.status.code(), Some(code), "{}\n{}", common::text(&output), self.up.log());
        let added: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}\n{}", common::text(&output), self.up.log()));
        let ids = added["documents"].as_array().unwrap();
        let names = files.iter().map(|file: &PathBuf| name(file));
        let progress = |id: &Value| {
            let all = added["progress"].as_array().unwrap();
            all.iter().find(|one| one["document-id"] == *id).unwrap().clone()
        };
        names.zip(ids.iter().map(progress)).collect()
    }

    fn librarian(&self, body: &Value) -> Value {
        let answer = self.up.post("/api/v1/librarian", body);
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let body = body.find('{').map_or("", |at| &body[at..=body.rfind('}').unwrap()]);
        serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"))
    }

    /// Titles, types and ids of the parts of a document, in order of their titles.
    fn parts(&self, document: &str) -> Vec<(String, String, String)> {
        let answer = self.librarian(&json!({"operation": "list-children", "document-id": document}));
        let text = |one: &Value, name: &str| one[name].as_str().unwrap().to_owned();
        let part = |one: &Value| (text(one, "title"), text(one, "document-type"), text(one, "id"));
        let mut parts: Vec<_> = answer["document-metadatas"].as_array().unwrap().iter().map(part).collect();
        parts.sort();
        parts
    }
}

fn name(file: &Path) -> String {
    file.file_name().unwrap().to_str().unwrap().to_owned()
}

/// The reasons of what failed.
fn reasons(progress: &Value) -> Vec<&str> {
    progress["failures"].as_array().unwrap().iter().map(|one| one["reason"].as_str().unwrap()).collect()
}

#[test]
fn pages_keep_their_numbers_from_the_file_to_the_answer_and_are_made_once() {
    let world = World::start(&[]);
    let pdf = made::pdf(&[
        "The pump house stands by the river.",
        "",
        "The spare key of the pump house hangs behind the blue door.",
    ]);
    let added = world.add(
        0,
        &[
            world.file("pumps.pdf", &pdf),
            world.file("garden.docx", &made::docx()),
            world.file("beds.xlsx", &made::xlsx()),
            world.file("old.txt", b"Im Caf\xe9 von Z\xfcrich gibt es K\xe4sefondue, und es ist gut."),
            world.file("page.html", b"<h1>Bees</h1><p>Drones are evicted in August.</p>"),
            world.file("hives.csv", b"hive,queen\nsouth,marked blue in 2024\n"),
        ],
    );
    let pump = &added["pumps.pdf"];
    assert_eq!((&pump["complete"], &pump["failed"]), (&json!(true), &json!(0)), "{pump}");
    assert_eq!((&pump["texts-announced"], &pump["texts-done"]), (&json!(3), &json!(3)), "{pump}");
    assert!(matches!(reasons(pump)[..], [reason] if reason.contains("page 2")), "{pump}");

    for (question, title, says, page) in [
        ("Where is the spare key of the pump house?", "pumps.pdf", "blue door", json!(3)),
        ("When are drones evicted?", "page.html", "August", Value::Null),
        ("How many leeks are in the north bed?", "beds.xlsx", "count: 12", Value::Null),
        ("How is the queen of the south hive marked?", "hives.csv", "marked blue", Value::Null),
        ("Was gibt es im Café von Zürich?", "old.txt", "Käsefondue", Value::Null),
    ] {
        let answer = world.up.json(&["ask", question, "--flow", "f1"]);
        let source = &answer["sources"][0];
        assert_eq!((&source["title"], &source["page"]), (&json!(title), &page), "{answer}");
        assert!(source["text"].as_str().unwrap().contains(says), "{answer}");
    }

    let document = pump["document-id"].as_str().unwrap();
    let parts = world.parts(document);
    let seen: Vec<(&str, &str)> = parts.iter().map(|(title, kind, _)| (&title[..], &kind[..])).collect();
    assert_eq!(seen, [("Page 1", "page"), ("Page 3", "page")]);
    // Decoded once more, under another processing record.
    let again = json!({"operation": "add-processing", "processing-metadata": {
        "id": "again", "document-id": document, "flow": "f1", "collection": "default", "tags": [],
    }});
    assert_eq!(world.librarian(&again)["error"], Value::Null);
    let until = std::time::Instant::now() + common::PATIENCE;
    loop {
        let body = json!({"operation": "get-progress", "document-id": document});
        let progress = world.librarian(&body)["progress"][0].clone();
        if progress["complete"] == true {
            break;
        }
        assert!(std::time::Instant::now() < until, "{progress}");
    }
    assert_eq!(world.parts(document), parts);
}

#[test]
fn bad_documents_are_told_with_one_clear_reason_each_and_the_rest_goes_on() {
    let world = World::start(&["--decode-pages", "3", "--decode-seconds", "2"]);
    let many: Vec<String> = (1..=40).map(|number| format!("Fact {number} of the long book.")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let bad: [(&str, Vec<u8>, &str); 7] = [
        ("download.pdf", b"<html><h1>404 Not Found</h1>".to_vec(), "a web page"),
        ("picture.pdf", b"\x89PNG\r\n\x1a\n".to_vec(), "a PNG picture"),
        ("locked.pdf", made::locked_pdf(), "password"),
        ("cut.docx", made::docx()[..made::docx().len() / 2].to_vec(), "damaged"),
        ("scan.pdf", made::pdf(&["", ""]), "OCR"),
        ("long.pdf", made::pdf(&many), "pages 4 to 40 were left out"),
        // Its page tree holds itself, and keeps the parser busy for ever.
        ("endless.pdf", made::endless_pdf(), "2 s of computing"),
    ];
    let mut files: Vec<PathBuf> = bad.iter().map(|(name, content, _)| world.file(name, content)).collect();
    files.push(world.file("good.md", b"# Ladder\n\nThe ladder leans on the north wall.\n"));
    let added = world.add(1, &files);
    for (name, _, expected) in &bad {
        let progress = &added[*name];
        let reasons = reasons(progress);
        assert!(matches!(reasons[..], [reason] if reason.contains(expected)), "{name}: {progress}");
        assert_eq!(progress["complete"], true, "{name}: {progress}");
    }
    assert_eq!(added["long.pdf"]["stored"], 3, "{added:?}");
    // What could not be read waits in the dead letters; blank and cut ones are through.
    let letters = world.up.json(&["dead", "ls"]);
    assert_eq!(letters.as_array().unwrap().len(), 5, "{letters}");
    let answer = world.up.json(&["ask", "Where does the ladder lean?", "--flow", "f1"]);
    assert_eq!(answer["sources"][0]["title"], "good.md", "{answer}");
}

#[test]
fn a_small_document_beside_hostile_ones_of_a_neighbour_waits_for_one_of_them_at_most() {
    let world = World::start(&["--decode-seconds", "10"]);
    let make = json!({"operation": "create-workspace", "workspace_record": {"id": "acme", "name": "Acme"}});
    let made = world.up.post("/api/v1/iam", &make);
    assert!(made.starts_with("HTTP/1.1 200"), "{made}");
    world.up.json(&["flow", "start", "f1", "document-rag", "--workspace", "acme"]);
    // As many as are decoded at once, each of which keeps the parser busy until its time is over.
    let names = (0..8).map(|number| format!("endless-{number}.pdf"));
    let hostile: Vec<PathBuf> = names
        .map(|name| {
            let content = [made::endless_pdf(), name.clone().into_bytes()].concat();
            world.file(&name, &content)
        })
        .collect();
    let mut args = vec!["doc", "add", "--flow", "f1", "--no-wait"];
    args.extend(hostile.iter().map(|file| file.to_str().unwrap()));
    let added = world.up.json(&args);
    let hostile = added["documents"].as_array().unwrap();
    assert_eq!(hostile.len(), 8, "{added}");
    let small = world.file("small.html", b"<html><h1>Bees</h1><p>Drones are evicted in August.</p>");
    let small = small.to_str().unwrap();
    let added = world.up.json(&["doc", "add", small, "--flow", "f1", "--workspace", "acme"]);
    assert_eq!(added["progress"][0]["failed"], 0, "{added}");
    let waits = |id: &&Value| {
        let body = json!({"operation": "get-progress", "document-id": id});
        world.librarian(&body)["progress"][0]["complete"] != true
    };
    // First come first served, all of them would have had their time before.
    let waiting = hostile.iter().filter(waits).count();
    assert!(waiting >= 3, "only {waiting} of the neighbour's documents were behind it\n{}", world.up.log());
}

#[test]
fn what_unpacks_to_too_much_ends_within_its_limits() {
    let world = World::start(&["--decode-memory-mib", "700"]);
    let added = world.add(
        1,
        &[
            world
                .file("bomb.docx", &made::bomb(sluice_documents::Kind::Docx, "word/document.xml", 280 << 20)),
            world.file("bomb.pdf", &made::pdf_bomb()),
            world.file("good.md", b"# Ladder\n\nThe ladder leans on the north wall.\n"),
        ],
    );
    assert!(reasons(&added["bomb.docx"])[0].contains("unpacks to more than"), "{added:?}");
    // Whether the parser's own bound or the system's ends it, it ends with a reason and without text.
    let pdf = &added["bomb.pdf"];
    assert_eq!((&pdf["complete"], &pdf["stored"]), (&json!(true), &json!(0)), "{pdf}");
    assert_eq!(reasons(pdf).len(), 1, "{pdf}");
    assert_eq!(added["good.md"]["stored"], 1, "{added:?}");
}

/// The processor that reads these last words tells a lack of memory from a crash by them.
#[test]
fn a_reading_process_says_that_it_lacks_memory_before_it_dies() {
    let order = sluice_documents::child::Order {
        declared: String::new(),
        content_bytes: 1 << 30,
        limits: sluice_documents::Limits::default(),
    };
    let mut child = Command::new("/bin/sh")
        .args(["-c", "ulimit -v 524288; exec \"$0\" decode", env!("CARGO_BIN_EXE_sluice")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&order.line()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    let said = common::text(&output);
    assert!(said.contains("memory allocation of 1073741824 bytes failed"), "{said}");
}
