//! A real model from a folder, through the binary. Where the model cannot be had, the case is listed as ignored.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails; the harness tells what it ran"
)]

mod common;
#[path = "../../processors/tests/minilm/fetch.rs"]
mod fetch;

use std::path::Path;

use common::{Up, ends};

const NAME: &str = "a_model_from_a_folder_embeds_documents_and_questions";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        return println!("{NAME}: test");
    }
    let mut wanted = args.iter().filter(|arg| !arg.starts_with('-')).peekable();
    if wanted.peek().is_some() && !wanted.any(|arg| NAME.contains(arg.as_str())) {
        return;
    }
    match fetch::model() {
        Ok(model) => {
            case(&model);
            println!("test {NAME} ... ok");
        }
        Err(why) => println!("test {NAME} ... ignored, {why}"),
    }
}

fn case(model: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start_with(&folder.path().join("data"), &["--embeddings-local", model.to_str().unwrap()]);
    up.json(&["flow", "start", "f1", "document-rag"]);
    for (name, text) in [
        ("dog.md", "The hound sleeps beside the fireplace.\n"),
        ("pump.md", "Open the valve before the motor is switched on.\n"),
    ] {
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        let added = up.json(&["doc", "add", file.to_str().unwrap(), "--flow", "f1"]);
        assert_eq!(added["progress"][0]["embedded"], 1, "{added}");
    }
    let asked = ["ask", "Where does the hound nap?", "--mode", "vector", "--flow", "f1", "-o", "json"];
    let answer = up.run(&asked);
    ends(&answer, 0, "");
    let answer: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert!(answer["sources"][0].to_string().contains("hound"), "{answer}");
    let found = up.json(&["doctor"]);
    let told = found.as_array().unwrap().iter().find(|one| one["code"] == "embeddings-answer").unwrap();
    assert!(told["text"].as_str().unwrap().contains("384 numbers"), "{told}");
}
