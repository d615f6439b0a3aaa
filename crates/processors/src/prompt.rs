//! The prompt service: a template by id and its terms in, the model's answer out, checked against what the template
//! promises. Templates and schemas are users' programs: they run in the renderer's processes, never here.

mod records;
mod repair;
pub(crate) mod results;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sluice_bus::{Client, Patience};
use sluice_schema::exchange;
use sluice_schema::message::{
    Error, PromptRequest, PromptResponse, TextCompletionRequest, TextCompletionResponse,
};
use sluice_sdk::{BindError, ConfigError, Inputs, Ports, Processor, Responder, Values};

use self::records::{PROMPT, Record, Texts};
use self::results::ResponseType;
use crate::renderer::child::{Answer, Job};
use crate::renderer::{Renderer, WorkspaceRenderer};

/// Longest wait for the next message of the model's answer.
const MODEL_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest wait for the whole of a streamed answer.
const STREAM_TIMEOUT: Duration = Duration::from_secs(3_600);

/// The prompt service of one flow.
pub struct Prompt {
    model: Client<exchange::TextCompletion>,
    config: Values,
    renderer: WorkspaceRenderer,
    workspace: String,
    /// It was logged that the system prompt cannot be used.
    is_system_told: AtomicBool,
}

impl Processor for Prompt {
    const NAME: &'static str = "prompt";
    /// More than a flow asks its model at once, so that the model's bound is the one that holds.
    const CONCURRENCY: usize = 128;

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        Ok(Self {
            model: ports.client("text-completion")?,
            config: ports.config(PROMPT),
            renderer: ports.resource::<Renderer>()?.of(ports.workspace()),
            workspace: ports.workspace().to_owned(),
            is_system_told: AtomicBool::new(false),
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
        let texts = Texts::of(&self.config, &request.id).await.map_err(|error| unread(&error))?;
        if !texts.has_template() && self.config.is_empty().await.map_err(|error| unread(&error))? {
            let reason = format!(
                "workspace '{}' has no prompts; put the standard ones (config type '{PROMPT}') and ask again",
                self.workspace
            );
            return Err(Error::new("no-configuration", reason));
        }
        let record = records::find(&texts, &request.id).map_err(llm_error)?;
        let rendered = self.render(&texts, &record, &request).await.map_err(llm_error)?;
        drop(texts);
        let streaming = request.streaming && record.response_type == ResponseType::Text;
        let mut usage = Usage::default();
        let text = self.complete(&rendered, streaming.then_some(&answer), &mut usage).await?;
        let (text, object) = if streaming {
            (text, String::new())
        } else {
            self.result(&record, text).await.map_err(llm_error)?
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

    async fn render(
        &self,
        texts: &Texts,
        record: &Record,
        request: &PromptRequest,
    ) -> Result<Rendered, String> {
        let (system, unreadable) = records::system(texts);
        let wants_schema = record.response_type == ResponseType::Json;
        let job = Job::Render {
            name: &request.id,
            system: &system,
            template: &record.template,
            schema: if wants_schema { &record.schema } else { "" },
            terms: &request.terms,
        };
        let Answer::Rendered { system, prompt, strict_schema, bad_system } = self.renderer.run(&job).await?
        else {
            return Err("the renderer answered something else".to_owned());
        };
        let reason = unreadable.unwrap_or(bad_system);
        if !reason.is_empty() && !self.is_system_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(workspace = self.workspace, reason, "the system prompt cannot be used");
        }
        Ok(Rendered { system, prompt, schema: serde_json::from_str(&strict_schema).ok() })
    }

    /// Text and object of the answer. A text needs no look into it.
    async fn result(&self, record: &Record, text: String) -> Result<(String, String), String> {
        if record.response_type == ResponseType::Text {
            return results::result(ResponseType::Text, None, text);
        }
        let job = Job::Result { form: record.response_type, schema: &record.schema, text: &text };
        match self.renderer.run(&job).await? {
            Answer::Result { text, object } => Ok((text, object)),
            Answer::Rendered { .. } => Err("the renderer answered something else".to_owned()),
        }
    }

    /// Asks the model. With `parts`, all but the last fragment go there and the last one is returned; else all of them.
    async fn complete(
        &self,
        rendered: &Rendered,
        parts: Option<&Responder<exchange::Prompt>>,
        usage: &mut Usage,
    ) -> Result<String, Error> {
        let schema = rendered.schema.clone();
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
}

/// A prompt with its terms filled in.
struct Rendered {
    system: String,
    prompt: String,
    /// The schema of its result, if a provider can enforce it.
    schema: Option<serde_json::Map<String, serde_json::Value>>,
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

/// That no prompt could be read: for later where config could not be asked, or has too much to do.
fn unread(error: &ConfigError) -> Error {
    let unasked = error.is_unasked().then_some(Error::CONFIG_UNAVAILABLE);
    let kind = error.for_later().or(unasked).unwrap_or("llm-error");
    Error::new(kind, format!("prompts cannot be read; ask again: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_that_cannot_be_asked_for_are_told_as_something_for_later() {
        let refused = |kind: &str| ConfigError::Refused { kind: kind.to_owned(), message: "m".to_owned() };
        let away = sluice_bus::Error::Unavailable { reason: "x".to_owned() };
        assert_eq!(unread(&away.into()).r#type, Error::CONFIG_UNAVAILABLE);
        let late = sluice_bus::Error::TimedOut { what: "config".to_owned(), after_ms: 1 };
        assert_eq!(unread(&late.into()).r#type, Error::CONFIG_UNAVAILABLE);
        assert_eq!(unread(&refused(Error::OVERLOADED)).r#type, Error::OVERLOADED);
        assert_eq!(unread(&refused("config-error")).r#type, "llm-error");
    }
}
