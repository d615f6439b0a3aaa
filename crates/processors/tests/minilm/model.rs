//! What the model makes of texts, and the questions that the sample documents answer.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use sluice_processors::pieces::pieces;
use sluice_processors::{Embedder, EmbedderConfig, LocalConfig, hashing};

pub(crate) fn embed(model: &Path, texts: &[&str]) -> Vec<Vec<f64>> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = EmbedderConfig::Local(LocalConfig::new(model.to_str().unwrap(), "unused"));
    let texts = texts.iter().map(|text| (*text).to_owned()).collect();
    runtime.block_on(async { Embedder::open(config).await.unwrap().embed(None, texts).await.unwrap() })
}

#[derive(Deserialize)]
pub(crate) struct Question {
    pub(crate) question: String,
    document: String,
    passage: String,
}

/// A piece of a sample document.
pub(crate) struct Passage {
    document: String,
    pub(crate) text: String,
}

impl Question {
    pub(crate) fn is_answered_by(&self, passage: &Passage) -> bool {
        passage.document == self.document && passage.text.contains(&self.passage)
    }
}

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../samples")
}

pub(crate) fn questions(file: &str) -> Vec<Question> {
    serde_json::from_slice(&std::fs::read(samples().join(file)).unwrap()).unwrap()
}

pub(crate) fn passages(size_chars: usize) -> Vec<Passage> {
    let mut passages = Vec::new();
    for entry in std::fs::read_dir(samples()).unwrap() {
        let path = entry.unwrap().path();
        let document = path.file_name().unwrap().to_str().unwrap().to_owned();
        if document != "README.md" && (document.ends_with(".md") || document.ends_with(".txt")) {
            let text = std::fs::read_to_string(&path).unwrap();
            let cut = pieces(&text, size_chars, 50);
            let passage = |text: &str| Passage { document: document.clone(), text: text.to_owned() };
            passages.extend(cut.iter().map(|piece| passage(piece.text)));
        }
    }
    passages
}

/// How many questions find a passage that answers them among the nearest few.
pub(crate) fn found(
    questions: &[Question],
    asked: &[Vec<f64>],
    passages: &[Passage],
    vectors: &[Vec<f64>],
    within: usize,
) -> usize {
    let is_found = |(question, asked): &(&Question, &Vec<f64>)| {
        let mut order: Vec<usize> = (0..vectors.len()).collect();
        let near = |place: &usize| hashing::cosine(asked, &vectors[*place]);
        order.sort_by(|a, b| near(b).total_cmp(&near(a)));
        order.iter().take(within).any(|place| question.is_answered_by(&passages[*place]))
    };
    questions.iter().zip(asked).filter(is_found).count()
}
