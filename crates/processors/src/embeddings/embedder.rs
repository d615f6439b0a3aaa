//! What turns texts into vectors, and which one a program uses.

use std::sync::Arc;

use serde_json::Value;

use super::local::{Local, LocalConfig};
use super::{ollama, openai};
use crate::hashing;
use crate::provider::{Dialect, ModelConfig, ModelError, Question, Service};

/// Texts of one request to a provider at most.
const BATCH_TEXTS_MAX: usize = 64;
/// Numbers of one answer: as text they are some ten to twenty times as many bytes, which have to fit a message.
const NUMBERS_MAX: usize = 2_000_000;
/// Numbers of hashed vectors are sent with this many steps between 0 and 1: enough for a cosine, short as text.
const STEPS: f64 = 1e6;
const VECTORS: &str = "a list of vectors";

/// Where vectors come from.
#[derive(Debug, Clone, Default)]
pub enum EmbedderConfig {
    /// Hashed words and character sequences: needs nothing, knows no meanings but those of a small thesaurus.
    #[default]
    Hashing,
    /// A provider: OpenAI-compatible, or Ollama.
    Remote(ModelConfig),
    /// A model of the BERT family, run here.
    Local(LocalConfig),
}

/// Turns texts into vectors; lent to the processors. Cheap to clone.
#[derive(Clone, Default)]
pub struct Embedder(Kind);

#[derive(Clone, Default)]
enum Kind {
    #[default]
    Hashing,
    Remote(Arc<Service>),
    Local(Arc<Local>),
}

impl Embedder {
    /// Makes it ready; a local model is fetched, if it is given as a URL, and read.
    ///
    /// # Errors
    /// [`ModelError::BadUrl`] or [`ModelError::Unfit`] for what cannot work, others when a model cannot be fetched.
    pub async fn open(config: EmbedderConfig) -> Result<Self, ModelError> {
        match config {
            EmbedderConfig::Hashing => Ok(Self(Kind::Hashing)),
            EmbedderConfig::Remote(config) if config.dialect == Dialect::Anthropic => {
                let reason = "the anthropic dialect has no embeddings; use openai or ollama";
                Err(ModelError::Unfit(reason.to_owned()))
            }
            EmbedderConfig::Remote(config) => Ok(Self(Kind::Remote(Arc::new(Service::new(config)?)))),
            EmbedderConfig::Local(config) => Ok(Self(Kind::Local(Arc::new(Local::open(config).await?)))),
        }
    }

    /// One vector per text, in order. `model` is what the flow asks for, used where the program names none.
    ///
    /// # Errors
    /// What the provider or the local model fails with.
    pub async fn embed(&self, model: Option<&str>, texts: Vec<String>) -> Result<Vec<Vec<f64>>, ModelError> {
        match &self.0 {
            Kind::Hashing => hashed(texts).await,
            Kind::Remote(service) => remote(service, model, texts).await,
            Kind::Local(local) => local.embed(texts).await,
        }
    }

    /// Texts under way at once, per flow, where the flow does not say.
    pub(crate) fn calls_max(&self) -> Option<usize> {
        match &self.0 {
            Kind::Remote(service) => Some(service.config.calls_max),
            Kind::Hashing | Kind::Local(_) => None,
        }
    }
}

async fn hashed(texts: Vec<String>) -> Result<Vec<Vec<f64>>, ModelError> {
    let embed = move || texts.iter().map(|text| rounded(hashing::embed(text))).collect();
    tokio::task::spawn_blocking(embed).await.map_err(|e| ModelError::Unfit(e.to_string()))
}

fn rounded(mut vector: Vec<f64>) -> Vec<f64> {
    for x in &mut vector {
        *x = (*x * STEPS).round() / STEPS;
    }
    vector
}

async fn remote(
    service: &Service,
    model: Option<&str>,
    mut texts: Vec<String>,
) -> Result<Vec<Vec<f64>>, ModelError> {
    let no_model = ModelError::NoModel { variable: "SLUICE_EMBEDDINGS_MODEL", parameter: "embeddings-model" };
    let model = service.config.model.as_deref().or(model).ok_or(no_model)?;
    for text in texts.iter_mut().filter(|text| text.is_empty()) {
        // Providers refuse a text without anything in it, and with it all others.
        text.push(' ');
    }
    let mut vectors = Vec::with_capacity(texts.len());
    for batch in texts.chunks(BATCH_TEXTS_MAX) {
        let (path, body) = match service.config.dialect {
            Dialect::Ollama => ollama::question(model, batch),
            Dialect::OpenAi | Dialect::Anthropic => openai::question(model, batch),
        };
        let body = service.ask(&Question { path, body: Some(body) }).await?;
        let answer: Value =
            serde_json::from_str(&body).map_err(|e| service.garbage(VECTORS, &e.to_string()))?;
        let read = match service.config.dialect {
            Dialect::Ollama => ollama::vectors(answer),
            Dialect::OpenAi | Dialect::Anthropic => openai::vectors(answer),
        };
        let some = read.map_err(|e| service.garbage(VECTORS, &e.to_string()))?;
        check(&some, batch.len()).map_err(|reason| service.garbage(VECTORS, &reason))?;
        check_numbers(texts.len(), some.first().map_or(0, Vec::len))?;
        vectors.extend(some);
    }
    Ok(vectors)
}

/// Whether so many vectors fit one answer; asked as soon as it is known how long they are.
fn check_numbers(texts: usize, numbers: usize) -> Result<(), ModelError> {
    if texts.saturating_mul(numbers) <= NUMBERS_MAX {
        return Ok(());
    }
    let fit = NUMBERS_MAX / numbers.max(1);
    Err(ModelError::Unfit(format!(
        "{texts} vectors of {numbers} numbers are too many for one answer; ask for at most {fit}"
    )))
}

/// One vector per text, all of one length.
fn check(vectors: &[Vec<f64>], texts: usize) -> Result<(), String> {
    if vectors.len() != texts {
        return Err(format!("{} vectors for {texts} texts", vectors.len()));
    }
    let numbers = vectors.first().map_or(0, Vec::len);
    if vectors.iter().any(|vector| vector.len() != numbers || vector.is_empty()) {
        return Err("vectors of different lengths, or without numbers".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dialect_without_embeddings_is_refused_at_the_start() {
        let config = EmbedderConfig::Remote(ModelConfig::new("https://api.anthropic.com"));
        let said = Embedder::open(config).await.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(said.contains("openai or ollama"), "{said}");
    }

    #[test]
    fn more_numbers_than_an_answer_holds_are_refused_with_how_many_fit() {
        assert_eq!(check_numbers(2_048, hashing::DIMENSIONS).map_err(|e| e.to_string()), Ok(()));
        let said = check_numbers(2_048, 3_072).unwrap_err().to_string();
        assert!(said.contains("at most 651"), "{said}");
    }

    #[test]
    fn vectors_that_do_not_fit_the_texts_are_told_apart() {
        assert_eq!(check(&[vec![1.0], vec![0.5]], 2), Ok(()));
        for odd in [vec![vec![1.0]], vec![vec![1.0], vec![1.0, 2.0]], vec![vec![], vec![]]] {
            assert!(check(&odd, 2).is_err(), "{odd:?}");
        }
    }
}
