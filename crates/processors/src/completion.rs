//! The text-completion service: the place where a language model is asked. Which one is a setting of the program.

mod openai;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sluice_schema::exchange;
use sluice_schema::message::{Error, ModelInfo, TextCompletionRequest, TextCompletionResponse};
use sluice_sdk::{BindError, Inputs, Ports, Processor, Responder};

use self::openai::OpenAi;

const NOT_CONFIGURED: &str = "no language model is configured; set SLUICE_LLM_URL to the base URL of an OpenAI-compatible \
                              service (for example http://localhost:11434/v1), SLUICE_LLM_MODEL to a model it offers and, \
                              if it needs one, SLUICE_LLM_KEY, then start again";

/// A text that is never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    fn reveal(&self) -> &str {
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

/// The language model that a program asks.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// Base URL of an OpenAI-compatible service, without `/chat/completions`.
    pub base_url: String,
    /// Key sent as bearer token; `None` sends none.
    pub api_key: Option<Secret>,
    /// Model asked for; `None` takes the flow's `model` parameter.
    pub model: Option<String>,
    /// Longest wait for one answer; a timeout is not tried again, because the model may have worked. Default 120 s.
    pub answer_timeout: Duration,
    /// Tries in all when the service is overloaded or away. Default 4.
    pub attempts_max: u32,
    /// First pause between tries, doubling from there up to 10 s. Default 500 ms.
    pub retry_pause: Duration,
}

impl ModelConfig {
    /// A service at a base URL, everything else as by default.
    pub fn new(base_url: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            api_key: None,
            model: None,
            answer_timeout: Duration::from_secs(120),
            attempts_max: 4,
            retry_pause: Duration::from_millis(500),
        }
    }
}

/// The configured model, ready to be asked; lent to the processors. Cheap to clone.
#[derive(Clone, Default)]
pub struct Model(Option<Arc<OpenAi>>);

impl Model {
    /// A model to ask, or none: then every call is answered by how to configure one.
    ///
    /// # Errors
    /// When the HTTP client cannot be made or the base URL is none.
    pub fn new(config: Option<ModelConfig>) -> Result<Self, ModelError> {
        config.map(|config| OpenAi::new(config).map(Arc::new)).transpose().map(Self)
    }
}

/// Why a model could not be asked, or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The base URL is not one.
    #[error(
        "'{url}' is not the base URL of a service: {reason}; set SLUICE_LLM_URL to one like http://localhost:11434/v1"
    )]
    BadUrl {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The HTTP client could not be made.
    #[error("no HTTP client: {0}")]
    NoClient(String),
    /// No model is named anywhere.
    #[error("no model is named; set SLUICE_LLM_MODEL or the flow's parameter llm-model")]
    NoModel,
    /// The service could not be reached.
    #[error("the language model at {url} cannot be reached: {reason}")]
    Unreachable {
        /// The base URL.
        url: String,
        /// Why.
        reason: String,
    },
    /// The service did not answer in time.
    #[error("the language model at {url} did not answer within {timeout_ms} ms")]
    TimedOut {
        /// The base URL.
        url: String,
        /// The bound.
        timeout_ms: u128,
    },
    /// The service refused.
    #[error("the language model at {url} answered {status}: {reason}")]
    Status {
        /// The base URL.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of its body.
        reason: String,
    },
    /// The answer is not of the expected form.
    #[error("the language model at {url} answered something else than a completion: {reason}")]
    Garbage {
        /// The base URL.
        url: String,
        /// What was wrong with it.
        reason: String,
    },
}

/// What a model wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Completion {
    text: String,
    in_token: Option<i64>,
    out_token: Option<i64>,
    model: String,
}

/// The text-completion service of one flow.
pub struct TextCompletion {
    model: Model,
    name: Option<String>,
    temperature: Option<f64>,
}

impl Processor for TextCompletion {
    const NAME: &'static str = "text-completion";
    const CONCURRENCY: usize = 16;

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        let temperature = ports.text("temperature").map(|_| ports.setting("temperature", 0.0)).transpose()?;
        Ok(Self { model: ports.resource()?, name: ports.text("model"), temperature })
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.request::<exchange::TextCompletion, _, _>("request", Self::answer);
    }
}

impl TextCompletion {
    async fn answer(
        self: Arc<Self>,
        request: TextCompletionRequest,
        _answer: Responder<exchange::TextCompletion>,
    ) -> Result<TextCompletionResponse, Error> {
        let provider = self.model.0.as_ref().ok_or_else(|| Error::new("llm-error", NOT_CONFIGURED))?;
        let failed = |error: ModelError| Error::new("llm-error", error.to_string());
        let mut answer = TextCompletionResponse { end_of_stream: true, ..Default::default() };
        match request.operation.as_str() {
            "completion" | "" => {
                let asked = provider.complete(self.name.as_deref(), self.temperature, &request).await;
                let completion = asked.map_err(failed)?;
                answer.response = completion.text;
                answer.in_token = completion.in_token;
                answer.out_token = completion.out_token;
                answer.model = Some(completion.model);
            }
            "list-models" => {
                let named = |id: String| ModelInfo { id, ..Default::default() };
                answer.models = provider.models().await.map_err(failed)?.into_iter().map(named).collect();
            }
            other => {
                let reason = format!("'{other}' is not an operation; use completion or list-models");
                return Err(Error::new("not-implemented", reason));
            }
        }
        Ok(answer)
    }
}
