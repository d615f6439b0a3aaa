//! The text-completion service: the place where a language model is asked. Which one is a setting of the program; each
//! dialect that models are asked in is a file beside this one, and says what questions and answers look like, no more.

mod anthropic;
mod ollama;
mod openai;

use std::sync::Arc;

use serde_json::Value;
use sluice_schema::exchange;
use sluice_schema::message::{Error, ModelInfo, TextCompletionRequest, TextCompletionResponse};
use sluice_schema::operation::PROMPT_BYTES_MAX;
use sluice_sdk::{BindError, Inputs, Ports, Processor, Responder};
use tokio::time::Instant;

use crate::provider::{Failed, Framing, Opened, Question, Service, Stream};
pub use crate::provider::{ModelConfig, ModelError, Secret};

/// What every call is answered with while no model is configured.
pub const NOT_CONFIGURED: &str = "no language model is configured; set SLUICE_LLM_URL to the base URL of a provider that speaks \
                              the OpenAI, Anthropic or Ollama dialect (for example http://localhost:11434), SLUICE_LLM_MODEL to a model it offers and, \
                              if it needs one, SLUICE_LLM_KEY, then start again";
const COMPLETION: &str = "a completion";

/// The configured model, ready to be asked; lent to the processors. Cheap to clone.
#[derive(Clone, Default)]
pub struct Model(Option<Arc<Provider>>);

impl Model {
    /// A model to ask, or none: then every call is answered by how to configure one.
    ///
    /// # Errors
    /// When the HTTP client cannot be made or the base URL is none.
    pub fn new(config: Option<ModelConfig>) -> Result<Self, ModelError> {
        config.map(|config| Provider::new(config).map(Arc::new)).transpose().map(Self)
    }

    /// What the provider offers, which also shows that it can be reached; `None` when no model is configured.
    ///
    /// # Errors
    /// As the provider fails.
    pub async fn offered(&self) -> Result<Option<Vec<ModelInfo>>, ModelError> {
        match &self.0 {
            Some(provider) => provider.models().await.map(Some),
            None => Ok(None),
        }
    }
}

/// What is asked of a model.
struct Ask<'a> {
    model: &'a str,
    temperature: Option<f64>,
    max_output_tokens: Option<u32>,
    in_parts: bool,
    request: &'a TextCompletionRequest,
}

impl Ask<'_> {
    /// System text and prompt as one text, for dialects in which callers expect them so.
    fn joined(&self) -> String {
        match self.request.system.as_str() {
            "" => self.request.prompt.clone(),
            system => format!("{system}\n\n{}", self.request.prompt),
        }
    }

    /// The schema that the answer must follow, if the caller wants structured output.
    fn schema(&self) -> Option<&serde_json::Map<String, Value>> {
        self.request.schema.as_ref().filter(|_| self.request.response_format.as_deref() == Some("json"))
    }
}

/// A piece of an answer, or all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Part {
    text: String,
    in_token: Option<i64>,
    out_token: Option<i64>,
    model: Option<String>,
    /// The model has written all it wants to; an answer that ends before this one broke off.
    is_complete: bool,
    /// Nothing follows.
    is_last: bool,
}

/// Why an answer's JSON is no part.
#[derive(Debug, PartialEq, Eq)]
enum Odd {
    /// It has another form.
    Form(String),
    /// The provider tells a failure: its kind, and what it says.
    Told { kind: String, reason: String },
}

impl From<serde_json::Error> for Odd {
    fn from(error: serde_json::Error) -> Self {
        Self::Form(error.to_string())
    }
}

/// What questions and answers look like in one dialect.
trait Dialect: Send + Sync {
    /// How streamed answers are framed.
    fn framing(&self) -> Framing;
    /// The question.
    fn question(&self, ask: &Ask<'_>) -> Question;
    /// An answer in one piece.
    fn whole(&self, body: &str) -> Result<Part, Odd>;
    /// One frame of a streamed answer.
    fn part(&self, frame: &str) -> Result<Part, Odd>;
    /// Where models are listed.
    fn list(&self) -> &'static str;
    /// The models of a list.
    fn listed(&self, body: &str) -> Result<Vec<ModelInfo>, Odd>;
}

struct Provider {
    service: Service,
    dialect: &'static dyn Dialect,
}

impl Provider {
    fn new(config: ModelConfig) -> Result<Self, ModelError> {
        let dialect: &'static dyn Dialect = match config.dialect {
            crate::provider::Dialect::OpenAi => &openai::OpenAi,
            crate::provider::Dialect::Anthropic => &anthropic::Anthropic,
            crate::provider::Dialect::Ollama => &ollama::Ollama,
        };
        Ok(Self { service: Service::new(config)?, dialect })
    }

    async fn models(&self) -> Result<Vec<ModelInfo>, ModelError> {
        let text = self.service.ask(&Question { path: self.dialect.list(), body: None }).await?;
        self.dialect.listed(&text).map_err(|odd| self.failed(odd, "a list of models").error)
    }

    /// The whole answer.
    async fn complete(&self, ask: &Ask<'_>) -> Result<Part, ModelError> {
        let text = self.service.ask(&self.dialect.question(ask)).await?;
        self.dialect.whole(&text).map_err(|odd| self.failed(odd, COMPLETION).error)
    }

    /// The answer in parts. Until the first text is there, a failed try may be repeated.
    async fn stream(&self, ask: &Ask<'_>) -> Result<Answer<'_>, ModelError> {
        let question = self.dialect.question(ask);
        let deadline = Instant::now() + self.service.config.stream_timeout;
        self.service
            .retrying(deadline, || async {
                let opened = self.service.open(&question, self.dialect.framing(), deadline).await?;
                let mut answer = Answer {
                    provider: self,
                    stream: None,
                    first: None,
                    usage: Part::default(),
                    has_begun: false,
                };
                match opened {
                    Opened::Stream(stream) => answer.stream = Some(stream),
                    Opened::Whole(body) => {
                        let whole = self.dialect.whole(&body).map_err(|odd| self.failed(odd, COMPLETION))?;
                        answer.take_usage(&whole);
                        answer.first = Some(whole.text);
                        return Ok(answer);
                    }
                }
                answer.first = answer.read().await?;
                Ok(answer)
            })
            .await
    }

    fn failed(&self, odd: Odd, wanted: &'static str) -> Failed {
        match odd {
            Odd::Form(reason) => Failed::for_good(self.service.garbage(wanted, &reason)),
            Odd::Told { kind, reason } => self.service.told(&kind, &reason),
        }
    }
}

/// An answer on its way. Dropping it closes the connection to the provider.
struct Answer<'a> {
    provider: &'a Provider,
    stream: Option<Box<Stream>>,
    first: Option<String>,
    /// Everything but the text, as far as it was told.
    usage: Part,
    has_begun: bool,
}

impl Answer<'_> {
    /// The next text; `None` when the answer is complete.
    async fn next(&mut self) -> Result<Option<String>, ModelError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        self.read().await.map_err(|failed| failed.error)
    }

    async fn read(&mut self) -> Result<Option<String>, Failed> {
        while let Some(stream) = &mut self.stream {
            let Some(frame) = stream.next().await.map_err(Failed::for_good)? else { break };
            let part =
                self.provider.dialect.part(&frame).map_err(|odd| self.provider.failed(odd, COMPLETION))?;
            self.has_begun = true;
            self.take_usage(&part);
            if part.is_last {
                self.stream = None;
            }
            if !part.text.is_empty() {
                return Ok(Some(part.text));
            }
        }
        self.stream = None;
        if !self.has_begun && !self.usage.is_complete {
            return Err(Failed::for_good(self.provider.service.garbage(COMPLETION, "it has no parts")));
        }
        if !self.usage.is_complete {
            let reason = "it ended before the model had finished";
            return Err(Failed::for_good(self.provider.service.broke_off(reason)));
        }
        Ok(None)
    }

    fn take_usage(&mut self, part: &Part) {
        let known = &mut self.usage;
        known.in_token = part.in_token.or(known.in_token);
        known.out_token = part.out_token.or(known.out_token);
        known.model = part.model.clone().or(known.model.take());
        known.is_complete |= part.is_complete;
    }
}

/// The text-completion service of one flow.
pub struct TextCompletion {
    model: Model,
    name: Option<String>,
    temperature: Option<f64>,
    calls_max: usize,
}

impl Processor for TextCompletion {
    const NAME: &'static str = "text-completion";

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        let temperature = ports.text("temperature").map(|_| ports.setting("temperature", 0.0)).transpose()?;
        let model: Model = ports.resource()?;
        let calls_max = model.0.as_ref().map_or(Self::CONCURRENCY, |known| known.service.config.calls_max);
        let calls_max = ports.setting("concurrency", calls_max)?;
        Ok(Self { model, name: ports.text("model"), temperature, calls_max })
    }

    fn concurrency(&self) -> usize {
        self.calls_max
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.request::<exchange::TextCompletion, _, _>("request", Self::answer);
    }
}

impl TextCompletion {
    async fn answer(
        self: Arc<Self>,
        request: TextCompletionRequest,
        answer: Responder<exchange::TextCompletion>,
    ) -> Result<TextCompletionResponse, Error> {
        let not_configured = || Error::new("llm-error", NOT_CONFIGURED);
        if request.system.len() > PROMPT_BYTES_MAX || request.prompt.len() > PROMPT_BYTES_MAX {
            let reason = format!("a prompt has at most {PROMPT_BYTES_MAX} bytes; make it shorter");
            return Err(Error::new("llm-error", reason));
        }
        match request.operation.as_str() {
            "completion" | "" => {
                let provider = self.model.0.as_ref().ok_or_else(not_configured)?;
                self.complete(provider, &request, &answer).await
            }
            "list-models" => {
                let models = self.model.offered().await.map_err(failed)?.ok_or_else(not_configured)?;
                // With the one that is asked, so that a reader can see whether it is among them.
                let model = self.asked_model().map(str::to_owned);
                Ok(TextCompletionResponse { end_of_stream: true, models, model, ..Default::default() })
            }
            other => {
                let reason = format!("'{other}' is not an operation; use completion or list-models");
                Err(Error::new("not-implemented", reason))
            }
        }
    }

    /// The program's model before the flow's.
    fn asked_model(&self) -> Option<&str> {
        let of_program = self.model.0.as_ref().and_then(|known| known.service.config.model.as_deref());
        of_program.or(self.name.as_deref())
    }

    async fn complete(
        &self,
        provider: &Provider,
        request: &TextCompletionRequest,
        answer: &Responder<exchange::TextCompletion>,
    ) -> Result<TextCompletionResponse, Error> {
        let config = &provider.service.config;
        let no_model = ModelError::NoModel { variable: "SLUICE_LLM_MODEL", parameter: "llm-model" };
        let model = self.asked_model().ok_or_else(|| failed(no_model))?;
        let ask = Ask {
            model,
            temperature: self.temperature,
            max_output_tokens: config.max_output_tokens,
            in_parts: request.streaming,
            request,
        };
        let whole = if request.streaming {
            let mut parts = provider.stream(&ask).await.map_err(failed)?;
            while let Some(text) = parts.next().await.map_err(failed)? {
                let part = TextCompletionResponse {
                    response: text,
                    model: Some(parts.usage.model.clone().unwrap_or_else(|| model.to_owned())),
                    ..Default::default()
                };
                answer.part(&part).await.map_err(|e| Error::new("llm-error", e.to_string()))?;
            }
            parts.usage
        } else {
            provider.complete(&ask).await.map_err(failed)?
        };
        Ok(TextCompletionResponse {
            response: whole.text,
            in_token: whole.in_token,
            out_token: whole.out_token,
            model: Some(whole.model.unwrap_or_else(|| model.to_owned())),
            end_of_stream: true,
            ..Default::default()
        })
    }
}

/// Clients know one type for everything that a model does wrong; what it was stands before the text.
#[expect(clippy::needless_pass_by_value, reason = "it maps the errors of results")]
fn failed(error: ModelError) -> Error {
    const KNOWN: &str = "llm-error";
    match error.kind() {
        KNOWN => Error::new(KNOWN, error.to_string()),
        kind => Error::new(KNOWN, format!("{kind}: {error}")),
    }
}

/// The failure in an answer, if it tells one: an object or a text under `error`.
fn told(answer: &Value) -> Option<Odd> {
    let error = answer.get("error").filter(|error| !error.is_null())?;
    let text = |name: &str| error.get(name).and_then(Value::as_str);
    let kind = text("type").or(text("code")).unwrap_or_default().to_owned();
    let reason = text("message").or(error.as_str()).map_or_else(|| error.to_string(), str::to_owned);
    Some(Odd::Told { kind, reason })
}
