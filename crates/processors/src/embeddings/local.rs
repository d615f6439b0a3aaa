//! Models of the BERT family, run in this process: a folder of `config.json`, `tokenizer.json` and `model.safetensors`, as
//! sentence-transformers writes them.
//!
//! The forward pass, the tokenizer and the reader of weights are ours: together they are smaller than what a general
//! library would add to each build, and a sentence needs no padding when it runs alone. Texts run side by side on blocking
//! threads, as many as there are processors.

mod bert;
mod folder;
mod tensors;
mod wordpiece;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use sluice_schema::address;
use tokio::sync::Semaphore;

use self::bert::{Bert, Shape};
use self::tensors::Tensors;
use self::wordpiece::WordPiece;
use crate::provider::{ModelError, shown};

/// A model that is run here.
#[derive(Clone)]
pub struct LocalConfig {
    /// The folder of the model, or an `http://` or `https://` URL under which its files lie.
    pub source: String,
    /// Where models that are fetched from a URL are kept; not used for a folder.
    pub cache: PathBuf,
    /// Texts that are embedded at once. Default: one per processor.
    pub threads_max: usize,
}

impl fmt::Debug for LocalConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalConfig").field("source", &place(&self.source)).finish_non_exhaustive()
    }
}

impl LocalConfig {
    /// A model in a folder or behind a URL, everything else as by default.
    pub fn new(source: impl Into<String>, cache: impl Into<PathBuf>) -> Self {
        let threads_max = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { source: source.into(), cache: cache.into(), threads_max }
    }
}

/// A model in memory.
pub(super) struct Local {
    model: Arc<SentenceModel>,
    threads: Arc<Semaphore>,
}

impl Local {
    pub(super) async fn open(config: LocalConfig) -> Result<Self, ModelError> {
        let folder = folder::ready(&config.source, &config.cache).await?;
        let read = tokio::task::spawn_blocking(move || SentenceModel::read(&folder));
        let model = read.await.map_err(|e| ModelError::Unfit(e.to_string()))?;
        let place = place(&config.source);
        let told = |reason| ModelError::Unfit(format!("the model in {place} cannot be used: {reason}"));
        Ok(Self {
            model: Arc::new(model.map_err(told)?),
            threads: Arc::new(Semaphore::new(config.threads_max.max(1))),
        })
    }

    pub(super) async fn embed(&self, texts: Vec<String>) -> Result<Vec<Vec<f64>>, ModelError> {
        let one = |text: String| async {
            // The semaphore is never closed.
            let turn = self.threads.clone().acquire_owned().await;
            let model = self.model.clone();
            let work = move || {
                let _turn = turn;
                model.embed(&text)
            };
            tokio::task::spawn_blocking(work).await.map_err(|e| ModelError::Unfit(e.to_string()))
        };
        futures_util::future::try_join_all(texts.into_iter().map(one)).await
    }
}

/// A source as it may be shown: what is no folder may be an address with a password, mistyped.
fn place(source: &str) -> String {
    if folder::is_url(source) {
        return shown(source);
    }
    match address::is_harmless(source) || Path::new(source).is_dir() {
        true => format!("'{source}'"),
        false => "the folder that was given".to_owned(),
    }
}

/// How the vectors of words become the vector of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    Mean,
    First,
}

/// Tokenizer, transformer and pooling of one model.
struct SentenceModel {
    words: WordPiece,
    bert: Bert,
    pooling: Pooling,
    tokens_max: usize,
}

#[derive(Default, Deserialize)]
struct SentenceConfig {
    #[serde(default)]
    max_seq_length: Option<usize>,
}

#[derive(Default, Deserialize)]
struct PoolingConfig {
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
}

impl SentenceModel {
    fn read(folder: &Path) -> Result<Self, String> {
        let text = |name: &str| {
            std::fs::read_to_string(folder.join(name)).map_err(|e| format!("'{name}' cannot be read: {e}"))
        };
        let shape = Shape::read(&text("config.json")?)?;
        let words = WordPiece::read(&text("tokenizer.json")?)?;
        let weights = std::fs::read(folder.join("model.safetensors"))
            .map_err(|e| format!("'model.safetensors' cannot be read: {e}"))?;
        let bert = Bert::new(&shape, &Tensors::read(&weights)?)?;
        if words.len() > shape.vocab_size {
            let (words, rows) = (words.len(), shape.vocab_size);
            return Err(format!(
                "the tokenizer knows {words} words and the model {rows}; they do not belong together"
            ));
        }
        let sentence: SentenceConfig = optional(folder, "sentence_bert_config.json")?;
        let tokens_max = sentence.max_seq_length.unwrap_or(shape.max_position_embeddings);
        let pooling = match optional::<Option<PoolingConfig>>(folder, "1_Pooling/config.json")? {
            None => Pooling::Mean,
            Some(config) if config.pooling_mode_mean_tokens => Pooling::Mean,
            Some(config) if config.pooling_mode_cls_token => Pooling::First,
            Some(_) => return Err("its pooling is neither the mean nor the first token".to_owned()),
        };
        Ok(Self { words, bert, pooling, tokens_max: tokens_max.min(shape.max_position_embeddings) })
    }

    /// The vector of a text, of length one. What goes beyond the longest text that the model reads is left out.
    fn embed(&self, text: &str) -> Vec<f64> {
        let tokens = self.words.tokens(text, self.tokens_max);
        let hidden = self.bert.forward(&tokens);
        let pooled = match self.pooling {
            Pooling::First => hidden.row(0).to_owned(),
            Pooling::Mean => hidden.sum_axis(ndarray::Axis(0)) / tokens.len() as f32,
        };
        let length = pooled.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-12);
        pooled.iter().map(|x| f64::from(*x) / length).collect()
    }
}

/// A file that may be missing, which is the default then.
fn optional<T: Default + for<'de> Deserialize<'de>>(folder: &Path, name: &str) -> Result<T, String> {
    match std::fs::read_to_string(folder.join(name)) {
        Ok(text) => serde_json::from_str(&text).map_err(|e| format!("'{name}' cannot be read: {e}")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(format!("'{name}' cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests;
