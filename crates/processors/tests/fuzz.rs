//! Whatever a prompt template, a schema or a model's answer is: the process that works on it answers within its limits, and is
//! neither crashed nor believed beyond them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use sluice_processors::{Renderer, RendererConfig};

#[test]
#[ignore = "the process that renders prompts for the other tests"]
fn renders_prompts() {
    sluice_processors::renderer::child::serve(std::io::stdin(), std::io::stdout()).unwrap();
}

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

/// Renders in processes of this program.
fn renderer() -> Renderer {
    let arguments = ["renders_prompts", "--exact", "--ignored", "--nocapture", "--test-threads", "1"];
    Renderer::new(RendererConfig {
        program: std::env::current_exe().unwrap(),
        arguments: arguments.map(str::to_owned).to_vec(),
        ..RendererConfig::default()
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A refusal is about the job, in words of a bounded length: the process lived, or was ended by a limit.
fn is_about_the_job(done: &Result<String, String>, input: &[u8]) {
    let Err(reason) = done else { return };
    assert!(!reason.contains("at the moment") && !reason.contains("confuses"), "{reason}");
    assert!(!reason.contains("crashes"), "{reason}");
    assert!(reason.len() < 4 * input.len() + (4 << 10), "{} bytes of reason", reason.len());
}

#[test]
fn any_template_renders_or_is_refused_and_crashes_nothing() {
    let (runtime, renderer) = (runtime(), renderer());
    let terms =
        [("a", "\"b <i> c\""), ("items", "[1, null, \"x\"]"), ("d", r#"{"k": [{}]}"#), ("t", "as it is")];
    let terms: BTreeMap<String, String> =
        terms.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let rendered = AtomicUsize::new(0);
    sluice_fuzz::run("templates", &corpus("templates"), 600, &[], &|input| {
        let template = String::from_utf8_lossy(input);
        let done = runtime.block_on(renderer.render("w", &template, &terms));
        rendered.fetch_add(usize::from(done.is_ok()), Ordering::SeqCst);
        is_about_the_job(&done, input);
    });
    assert!(rendered.into_inner() > 20, "hardly any template was any good");
}

#[test]
fn any_schema_and_any_answer_are_compared_or_refused() {
    let (runtime, renderer) = (runtime(), renderer());
    sluice_fuzz::run("schemas", &corpus("schemas"), 600, &[], &|input| {
        let text = String::from_utf8_lossy(input);
        let (schema, answer) = text.split_once('\n').unwrap_or((&text, "{}"));
        let done = runtime.block_on(renderer.check("w", schema, answer));
        is_about_the_job(&done, input);
    });
}
