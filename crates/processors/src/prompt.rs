//! The prompt service: a template by id and its terms in, the model's answer out, checked against what the template
//! promises.

mod records;
mod repair;
mod results;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sluice_bus::{Client, Patience};
use sluice_schema::exchange;
use sluice_schema::message::{
    Error, PromptRequest, PromptResponse, TextCompletionRequest, TextCompletionResponse,
};
use sluice_sdk::{BindError, Inputs, Ports, Processor, Responder, View};
use tokio::sync::watch;

use self::records::{PROMPT, Prompts, Rendered};
use self::results::ResponseType;

/// Longest wait for the next message of the model's answer.
const MODEL_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest wait for the whole of a streamed answer.
const STREAM_TIMEOUT: Duration = Duration::from_secs(3_600);

/// The prompt service of one flow.
pub struct Prompt {
    model: Client<exchange::TextCompletion>,
    config: watch::Receiver<Arc<View>>,
    loaded: Mutex<Option<(Arc<View>, Arc<Prompts>)>>,
    workspace: String,
}

impl Processor for Prompt {
    const NAME: &'static str = "prompt";
    /// More than a flow asks its model at once, so that the model's bound is the one that holds.
    const CONCURRENCY: usize = 128;

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        Ok(Self {
            model: ports.client("text-completion")?,
            config: ports.config(&[PROMPT]),
            loaded: Mutex::new(None),
            workspace: ports.workspace().to_owned(),
        })
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.request::<exchange::Prompt, _, _>("request", Self::answer);
    }
}

impl Prompt {
    async fn answer(
        self: Arc<Self>,
        request: PromptRequest,
        answer: Responder<exchange::Prompt>,
    ) -> Result<PromptResponse, Error> {
        let prompts = self.prompts().ok_or_else(|| {
            let reason = format!(
                "workspace '{}' has no prompts; put the standard ones (config type '{PROMPT}') and ask again",
                self.workspace
            );
            Error::new("no-configuration", reason)
        })?;
        let rendered = prompts.render(&request.id, &request.terms).map_err(llm_error)?;
        let streaming = request.streaming && rendered.response_type == ResponseType::Text;
        let mut usage = Usage::default();
        let text = self.complete(&rendered, streaming.then_some(&answer), &mut usage).await?;
        let (text, object) = if streaming {
            (text, String::new())
        } else {
            results::result(rendered.response_type, rendered.schema.as_ref(), text).map_err(llm_error)?
        };
        Ok(PromptResponse {
            text,
            object,
            end_of_stream: true,
            in_token: usage.in_token,
            out_token: usage.out_token,
            model: usage.model,
            error: None,
        })
    }

    /// Asks the model. With `parts`, all but the last fragment go there and the last one is returned; else all of them.
    async fn complete(
        &self,
        rendered: &Rendered,
        parts: Option<&Responder<exchange::Prompt>>,
        usage: &mut Usage,
    ) -> Result<String, Error> {
        let schema = rendered.strict_schema();
        let question = TextCompletionRequest {
            system: rendered.system.clone(),
            prompt: rendered.prompt.clone(),
            streaming: parts.is_some(),
            response_format: schema.is_some().then(|| "json".to_owned()),
            schema,
            ..Default::default()
        };
        let total = if parts.is_some() { STREAM_TIMEOUT } else { MODEL_TIMEOUT };
        let patience = Patience { idle: MODEL_TIMEOUT, total };
        let mut call = self.model.stream(&question, patience).await.map_err(|e| llm_error(e.to_string()))?;
        let mut text = String::new();
        while let Some(part) = call.next().await.map_err(|e| llm_error(e.to_string()))? {
            if let Some(error) = part.error {
                return Err(error);
            }
            usage.take(&part);
            match parts {
                Some(answer) if !part.end_of_stream => {
                    let fragment = PromptResponse { text: part.response, ..Default::default() };
                    answer.part(&fragment).await.map_err(|e| llm_error(e.to_string()))?;
                }
                _ => text.push_str(&part.response),
            }
        }
        Ok(text)
    }

    /// The workspace's prompts; compiled again when their records changed. `None` when there are none.
    fn prompts(&self) -> Option<Arc<Prompts>> {
        let view = self.config.borrow().clone();
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, prompts)) = &*loaded
            && known.same_type(&view, PROMPT)
        {
            return Some(prompts.clone());
        }
        let records: Vec<(&str, &str)> =
            view.entries(PROMPT, &self.workspace).map(|(key, value)| (&**key, &**value)).collect();
        if records.is_empty() {
            *loaded = None;
            return None;
        }
        let prompts = Arc::new(Prompts::load(&records));
        for (key, reason) in prompts.bad() {
            tracing::warn!(
                workspace = self.workspace,
                prompt = key,
                reason,
                "a prompt record cannot be used"
            );
        }
        *loaded = Some((view, prompts.clone()));
        Some(prompts)
    }
}

#[derive(Default)]
struct Usage {
    in_token: Option<i64>,
    out_token: Option<i64>,
    model: Option<String>,
}

impl Usage {
    fn take(&mut self, part: &TextCompletionResponse) {
        self.in_token = part.in_token.or(self.in_token);
        self.out_token = part.out_token.or(self.out_token);
        self.model = part.model.clone().or(self.model.take());
    }
}

fn llm_error(reason: impl Into<String>) -> Error {
    Error::new("llm-error", reason)
}
