//! Models behind HTTP: how a provider is configured, asked again, and left. Completions and embeddings share this; what a
//! dialect says in its questions and answers stands in the dialect's own files.

mod error;
mod frames;
mod http;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

pub use self::error::ModelError;
pub(crate) use self::frames::Framing;
pub(crate) use self::http::{Failed, Opened, Question, Service, Stream, shown};

/// A text that is never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Reads a secret from a file, without the line end that editors add.
    ///
    /// # Errors
    /// When the file cannot be read as text.
    pub fn from_file(path: &Path) -> std::io::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        Ok(Self(text.trim_end_matches(['\r', '\n']).to_owned()))
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The HTTP language that a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `/chat/completions`, `/embeddings`: OpenAI and the many services that copy it.
    OpenAi,
    /// `/v1/messages`. It has no embeddings.
    Anthropic,
    /// `/api/chat`, `/api/embed`.
    Ollama,
}

impl Dialect {
    /// Every dialect with its name.
    pub const ALL: [(&'static str, Self); 3] =
        [("openai", Self::OpenAi), ("anthropic", Self::Anthropic), ("ollama", Self::Ollama)];

    /// The dialect that a base URL lets expect: Anthropic where host or path says so, Ollama where the path is `/api` or the
    /// port is 11434 and the path is not `/v1`, else OpenAI.
    #[must_use]
    pub fn of_url(url: &str) -> Self {
        let Ok(url) = reqwest::Url::parse(url) else { return Self::OpenAi };
        let path = url.path().trim_end_matches('/');
        let is_anthropic = |text: &str| text.split(['.', '/']).any(|part| part == "anthropic");
        if is_anthropic(url.host_str().unwrap_or_default()) || is_anthropic(path) {
            Self::Anthropic
        } else if path == "/api" || (url.port() == Some(11434) && path.is_empty()) {
            Self::Ollama
        } else {
            Self::OpenAi
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, dialect)| dialect == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl FromStr for Dialect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text);
        found
            .map(|(_, dialect)| *dialect)
            .ok_or_else(|| format!("'{text}' is no dialect; use openai, anthropic or ollama"))
    }
}

/// A provider of models, and how patient to be with it.
#[derive(Clone)]
pub struct ModelConfig {
    /// How it is spoken to. Default: what [`Dialect::of_url`] tells.
    pub dialect: Dialect,
    /// Base URL: `https://api.openai.com/v1`, `https://api.anthropic.com`, `http://localhost:11434`, …
    pub base_url: String,
    /// Key sent as the dialect wants it; `None` sends none.
    pub api_key: Option<Secret>,
    /// Model asked for; `None` takes the flow's `model` parameter.
    pub model: Option<String>,
    /// Tokens of one answer at most; `None` leaves it to the provider, or 4096 where the dialect must say something.
    pub max_output_tokens: Option<u32>,
    /// Questions under way at once, per flow; a flow's `concurrency` parameter comes first. Default 32.
    pub calls_max: usize,
    /// Longest wait for a connection. Default 10 s.
    pub connect_timeout: Duration,
    /// Longest silence: until an answer begins, and between its pieces. It is not tried again after that, because the model
    /// may have worked. Default 300 s.
    pub idle_timeout: Duration,
    /// Longest wait for an answer in one piece, all tries and pauses included. Less than the 600 s that askers wait, so
    /// that they are told why. Default 540 s.
    pub total_timeout: Duration,
    /// Longest wait for the end of a streamed answer. Default 1 h.
    pub stream_timeout: Duration,
    /// Tries in all when the provider is overloaded or away. Default 6.
    pub attempts_max: u32,
    /// First pause between tries, doubling from there up to 30 s. Default 500 ms.
    pub retry_pause: Duration,
    /// Longest pause that a provider may ask for; one that wants more is answered as an error. Default 60 s.
    pub retry_after_max: Duration,
}

impl fmt::Debug for ModelConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The base URL may hold a password.
        let config = &mut f.debug_struct("ModelConfig");
        config.field("dialect", &self.dialect).field("base_url", &shown(&self.base_url));
        config.field("model", &self.model).finish_non_exhaustive()
    }
}

impl ModelConfig {
    /// A provider at a base URL, everything else as by default.
    pub fn new(base_url: impl Into<String>) -> Self {
        let base_url = base_url.into();
        Self {
            dialect: Dialect::of_url(&base_url),
            base_url,
            api_key: None,
            model: None,
            max_output_tokens: None,
            calls_max: 32,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            total_timeout: Duration::from_secs(540),
            stream_timeout: Duration::from_secs(3_600),
            attempts_max: 6,
            retry_pause: Duration::from_millis(500),
            retry_after_max: Duration::from_secs(60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_tells_its_dialect() {
        for (url, dialect) in [
            ("https://api.openai.com/v1", Dialect::OpenAi),
            ("http://localhost:11434/v1", Dialect::OpenAi),
            ("http://localhost:11434", Dialect::Ollama),
            ("http://box/api/", Dialect::Ollama),
            ("https://api.anthropic.com", Dialect::Anthropic),
            ("https://proxy.example/anthropic/", Dialect::Anthropic),
            ("https://misanthropic.example/v1", Dialect::OpenAi),
            ("nonsense", Dialect::OpenAi),
        ] {
            assert_eq!(ModelConfig::new(url).dialect, dialect, "{url}");
        }
        for (name, dialect) in Dialect::ALL {
            assert_eq!((name.parse(), dialect.to_string().as_str()), (Ok(dialect), name));
        }
        assert!("cohere".parse::<Dialect>().unwrap_err().contains("anthropic"));
    }

    #[test]
    fn a_key_from_a_file_loses_its_line_end_and_is_not_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "k-1\n").unwrap();
        let key = Secret::from_file(file.path()).unwrap();
        assert_eq!(key.reveal(), "k-1");
        let mut config = ModelConfig::new("http://x");
        config.api_key = Some(key);
        assert!(!format!("{config:?}").contains("k-1"));
        assert!(!format!("{:?}", ModelConfig::new("http://u:hush@h")).contains("hush"));
    }
}
