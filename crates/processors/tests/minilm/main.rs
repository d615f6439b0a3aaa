//! A real model, MiniLM: the vectors that the reference implementation gives, and how well questions find their passages.
//! The model comes from a package of PyPI and is kept under `target`; where it cannot be had, each case is listed as ignored.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on says where; the harness tells what it ran"
)]

mod fetch;
mod model;

use std::path::Path;
use std::process::ExitCode;

use serde::Deserialize;
use sluice_processors::hashing;

use self::fetch::model;
use self::model::{Passage, embed, found, passages, questions};

type Case = (&'static str, fn(&Path));

const CASES: &[Case] = &[
    ("vectors_are_those_of_the_reference", vectors_are_those_of_the_reference),
    (
        "what_means_the_same_is_nearer_than_what_shares_words",
        what_means_the_same_is_nearer_than_what_shares_words,
    ),
    ("questions_find_their_passage_among_thirty", questions_find_their_passage_among_thirty),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    let cases =
        CASES.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|arg| name.contains(*arg)));
    let cases: Vec<&Case> = cases.collect();
    if args.iter().any(|arg| arg == "--list") {
        cases.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", cases.len());
    let model = match model() {
        Ok(model) => model,
        Err(why) => {
            cases.iter().for_each(|(name, _)| println!("test {name} ... ignored, {why}"));
            println!("\ntest result: ok. 0 passed; 0 failed; {} ignored\n", cases.len());
            return ExitCode::SUCCESS;
        }
    };
    let mut failed = 0;
    for (name, case) in &cases {
        // The panic itself has been printed by its hook.
        let passed = std::panic::catch_unwind(|| case(&model)).is_ok();
        failed += usize::from(!passed);
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {} passed; {failed} failed; 0 ignored\n", cases.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Deserialize)]
struct Known {
    text: String,
    vector: Vec<f64>,
}

/// The vectors were computed once, in double precision by another implementation with the model's own tokenizer, which
/// gives the similarities that the model's authors print.
fn vectors_are_those_of_the_reference(model: &Path) {
    let known: Vec<Known> = serde_json::from_str(include_str!("reference.json")).unwrap();
    let texts: Vec<&str> = known.iter().map(|known| known.text.as_str()).collect();
    for (known, found) in known.iter().zip(embed(model, &texts)) {
        let alike = hashing::cosine(&known.vector, &found);
        println!("  {alike:.6}  {:.60}", known.text.escape_debug().to_string());
        assert!(alike > 0.999, "{}", known.text);
        let widest = known.vector.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(widest < 1e-4, "{}: off by {widest}", known.text);
    }
}

fn what_means_the_same_is_nearer_than_what_shares_words(model: &Path) {
    let texts = [
        "How do I lubricate a bicycle chain?",
        "Put oil on the links of your bike.",
        "How do I link a chain of bicycle shops?",
    ];
    let vectors = embed(model, &texts);
    println!(
        "  {:.3} {:.3}",
        hashing::cosine(&vectors[0], &vectors[1]),
        hashing::cosine(&vectors[0], &vectors[2])
    );
    assert!(hashing::cosine(&vectors[0], &vectors[1]) > hashing::cosine(&vectors[0], &vectors[2]));
}

/// Thirty questions and a passage for each; the bench does it with all passages, which takes longer unoptimised.
fn questions_find_their_passage_among_thirty(model: &Path) {
    let questions = questions("questions-held-out.json");
    let mut passages = passages(600);
    let mut kept: Vec<Passage> = Vec::new();
    for question in &questions {
        if !kept.iter().any(|passage| question.is_answered_by(passage)) {
            let place = passages.iter().position(|passage| question.is_answered_by(passage)).unwrap();
            kept.push(passages.swap_remove(place));
        }
    }
    let texts: Vec<&str> = kept.iter().map(|passage| passage.text.as_str()).collect();
    let asked: Vec<&str> = questions.iter().map(|question| question.question.as_str()).collect();
    let found = found(&questions, &embed(model, &asked), &kept, &embed(model, &texts), 1);
    println!("  {found} of {} questions find their passage first of {}", questions.len(), kept.len());
    assert!(found >= 24);
}
