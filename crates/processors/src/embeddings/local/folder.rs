//! Gets hold of a model's folder: it is there, or its files are fetched once from a URL that the user gave.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{StatusCode, Url};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use crate::provider::{ModelError, shown};

/// Files of a model, whether it can do without, and how large they may be.
const FILES: [(&str, bool, u64); 5] = [
    ("config.json", true, 1 << 20),
    ("tokenizer.json", true, 64 << 20),
    ("sentence_bert_config.json", false, 1 << 20),
    ("1_Pooling/config.json", false, 1 << 20),
    ("model.safetensors", true, 4 << 30),
];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence while a file comes.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether a model is to be fetched.
pub(super) fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// The folder of a model. What comes from a URL is kept under `cache` by its URL, and is there whole or not at all.
pub(super) async fn ready(source: &str, cache: &Path) -> Result<PathBuf, ModelError> {
    if !is_url(source) {
        return Ok(PathBuf::from(source));
    }
    let base = Url::parse(&format!("{}/", source.trim_end_matches('/')))
        .map_err(|e| ModelError::BadUrl(e.to_string()))?;
    let name: String = Sha256::digest(base.as_str())[..12].iter().map(|byte| format!("{byte:02x}")).collect();
    let folder = cache.join(&name);
    if tokio::fs::try_exists(&folder).await.unwrap_or(false) {
        return Ok(folder);
    }
    tracing::info!(source = shown(source), folder = %folder.display(), "a model is fetched; it is kept for the next start");
    let partial = cache.join(format!("{name}.part-{}", uuid::Uuid::new_v4()));
    let fetched = fetch_all(&base, &partial).await;
    let done = match fetched {
        Ok(()) => tokio::fs::rename(&partial, &folder).await.map_err(|e| unkept(&folder, &e)),
        Err(error) => Err(error),
    };
    if done.is_err() {
        // Nothing more can be done about what is left of it.
        let _ = tokio::fs::remove_dir_all(&partial).await;
    }
    // Somebody else may have fetched the same meanwhile.
    if done.is_err() && tokio::fs::try_exists(&folder).await.unwrap_or(false) {
        return Ok(folder);
    }
    done.map(|()| folder)
}

async fn fetch_all(base: &Url, folder: &Path) -> Result<(), ModelError> {
    // Somebody else in the process may have installed one already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(IDLE_TIMEOUT).build();
    let http = http.map_err(|e| ModelError::NoClient(e.to_string()))?;
    for (name, is_needed, bytes_max) in FILES {
        let url = base.join(name).map_err(|e| ModelError::Unfit(e.to_string()))?;
        let unavailable = |reason: String| ModelError::Unavailable {
            url: shown(base.as_str()),
            reason: format!("'{name}': {reason}"),
        };
        let answer = http.get(url).send().await.map_err(|e| unavailable(e.without_url().to_string()))?;
        if answer.status() == StatusCode::NOT_FOUND && !is_needed {
            continue;
        }
        if !answer.status().is_success() {
            let reason =
                format!("'{name}': {}; give the URL under which the model's files lie", answer.status());
            return Err(ModelError::Refused { url: shown(base.as_str()), reason });
        }
        save(answer, &folder.join(name), bytes_max).await.map_err(unavailable)?;
    }
    Ok(())
}

async fn save(mut answer: reqwest::Response, path: &Path, bytes_max: u64) -> Result<(), String> {
    if let Some(folder) = path.parent() {
        tokio::fs::create_dir_all(folder).await.map_err(|e| unkept(folder, &e).to_string())?;
    }
    let kept = |e: std::io::Error| unkept(path, &e).to_string();
    let mut file = tokio::fs::File::create(path).await.map_err(kept)?;
    let mut bytes = 0;
    while let Some(piece) = answer.chunk().await.map_err(|e| e.without_url().to_string())? {
        bytes += piece.len() as u64;
        if bytes > bytes_max {
            return Err(format!("it is larger than {bytes_max} bytes"));
        }
        file.write_all(&piece).await.map_err(kept)?;
    }
    file.sync_all().await.map_err(kept)
}

fn unkept(path: &Path, error: &std::io::Error) -> ModelError {
    ModelError::Unfit(format!("'{}' cannot be written: {error}", path.display()))
}
