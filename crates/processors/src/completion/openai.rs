//! Services that speak the OpenAI dialect: `/chat/completions` and `/models`, not streamed.

use std::time::Duration;

use reqwest::{RequestBuilder, StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};
use sluice_schema::message::TextCompletionRequest;
use sluice_sdk::Backoff;

use super::{Completion, ModelConfig, ModelError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(10);
/// Longest pause that a service may ask for; one that wants more is answered as an error.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// Bytes of an answer at most.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Characters of a refusal that are passed on.
const REASON_CHARS_MAX: usize = 300;

pub(crate) struct OpenAi {
    http: reqwest::Client,
    base: Url,
    config: ModelConfig,
}

#[derive(Deserialize)]
struct ChatCompletion {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    model: Option<String>,
}

#[derive(Deserialize)]
struct Choice {
    message: ChatMessage,
}

#[derive(Deserialize)]
struct ChatMessage {
    content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Option<i64>,
    #[serde(default)]
    completion_tokens: Option<i64>,
}

#[derive(Deserialize)]
struct ModelList {
    data: Vec<ListedModel>,
}

#[derive(Deserialize)]
struct ListedModel {
    id: String,
}

/// How one try ended.
enum Tried {
    Answered(String),
    /// Worth another try, after the pause that the service asked for.
    Again(ModelError, Option<Duration>),
    Failed(ModelError),
}

impl OpenAi {
    pub(crate) fn new(config: ModelConfig) -> Result<Self, ModelError> {
        let bad = |reason: String| ModelError::BadUrl { url: config.base_url.clone(), reason };
        let base = Url::parse(&format!("{}/", config.base_url.trim_end_matches('/')))
            .map_err(|e| bad(e.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(bad("it begins with neither http:// nor https://".to_owned()));
        }
        // Somebody else in the process may have installed one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(config.answer_timeout)
            .build();
        let http = http.map_err(|e| ModelError::NoClient(reasons(&e)))?;
        Ok(Self { http, base, config })
    }

    pub(crate) async fn complete(
        &self,
        flow_model: Option<&str>,
        temperature: Option<f64>,
        request: &TextCompletionRequest,
    ) -> Result<Completion, ModelError> {
        let model = self.config.model.as_deref().or(flow_model).ok_or(ModelError::NoModel)?;
        let body = chat_request(model, temperature, request);
        let text = self.ask(|| self.http.post(self.url("chat/completions")).json(&body)).await?;
        let completion: ChatCompletion =
            serde_json::from_str(&text).map_err(|e| self.garbage(&e.to_string()))?;
        let choice =
            completion.choices.into_iter().next().ok_or_else(|| self.garbage("it has no choices"))?;
        Ok(Completion {
            text: choice.message.content.unwrap_or_default(),
            in_token: completion.usage.as_ref().and_then(|usage| usage.prompt_tokens),
            out_token: completion.usage.as_ref().and_then(|usage| usage.completion_tokens),
            model: completion.model.unwrap_or_else(|| model.to_owned()),
        })
    }

    pub(crate) async fn models(&self) -> Result<Vec<String>, ModelError> {
        let text = self.ask(|| self.http.get(self.url("models"))).await?;
        let list: ModelList = serde_json::from_str(&text).map_err(|e| self.garbage(&e.to_string()))?;
        Ok(list.data.into_iter().map(|model| model.id).collect())
    }

    /// Asks until there is an answer, a final refusal, or no try left.
    async fn ask(&self, request: impl Fn() -> RequestBuilder) -> Result<String, ModelError> {
        let backoff = Backoff { min: self.config.retry_pause, max: RETRY_PAUSE_MAX };
        let mut attempt = 0;
        loop {
            let (error, asked_pause) = match self.attempt(request()).await {
                Tried::Answered(text) => return Ok(text),
                Tried::Failed(error) => return Err(error),
                Tried::Again(error, asked_pause) => (error, asked_pause),
            };
            attempt += 1;
            if attempt >= self.config.attempts_max || asked_pause.is_some_and(|pause| pause > RETRY_AFTER_MAX)
            {
                return Err(error);
            }
            let pause = asked_pause.unwrap_or_else(|| backoff.pause(attempt - 1));
            tracing::warn!(%error, attempt, ?pause, "a language model is asked again");
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&self, request: RequestBuilder) -> Tried {
        let request = match &self.config.api_key {
            Some(key) => request.bearer_auth(key.reveal()),
            None => request,
        };
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return self.not_answered(&error),
        };
        let (status, pause) = (answer.status(), retry_after(&answer));
        let text = match self.read(answer).await {
            Ok(text) => text,
            Err(tried) => return tried,
        };
        if status.is_success() {
            return Tried::Answered(text);
        }
        let reason = text.chars().take(REASON_CHARS_MAX).collect();
        let error = ModelError::Status { url: self.config.base_url.clone(), status: status.as_u16(), reason };
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            Tried::Again(error, pause)
        } else {
            Tried::Failed(error)
        }
    }

    async fn read(&self, mut answer: reqwest::Response) -> Result<String, Tried> {
        let mut body = Vec::new();
        while let Some(bytes) = answer.chunk().await.map_err(|e| self.not_answered(&e))? {
            body.extend_from_slice(&bytes);
            if body.len() > BODY_BYTES_MAX {
                return Err(Tried::Failed(
                    self.garbage(&format!("it is longer than {BODY_BYTES_MAX} bytes")),
                ));
            }
        }
        String::from_utf8(body).map_err(|_| Tried::Failed(self.garbage("it is not UTF-8")))
    }

    fn not_answered(&self, error: &reqwest::Error) -> Tried {
        let url = self.config.base_url.clone();
        if error.is_timeout() && !error.is_connect() {
            Tried::Failed(ModelError::TimedOut { url, timeout_ms: self.config.answer_timeout.as_millis() })
        } else {
            Tried::Again(ModelError::Unreachable { url, reason: reasons(error) }, None)
        }
    }

    fn garbage(&self, reason: &str) -> ModelError {
        ModelError::Garbage { url: self.config.base_url.clone(), reason: reason.to_owned() }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }
}

fn chat_request(model: &str, temperature: Option<f64>, request: &TextCompletionRequest) -> Value {
    let prompt = match request.system.as_str() {
        "" => request.prompt.clone(),
        system => format!("{system}\n\n{}", request.prompt),
    };
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": prompt}]});
    if let Some(temperature) = temperature {
        body["temperature"] = json!(temperature);
    }
    if let (Some("json"), Some(schema)) = (request.response_format.as_deref(), &request.schema) {
        let schema = json!({"name": "response", "strict": true, "schema": schema});
        body["response_format"] = json!({"type": "json_schema", "json_schema": schema});
    }
    body
}

fn retry_after(answer: &reqwest::Response) -> Option<Duration> {
    let seconds = answer.headers().get("retry-after")?.to_str().ok()?.trim().parse::<f64>().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// An error with its causes, since the first one seldom says what happened.
fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
