//! The Anthropic dialect: `messages` and `models`. A schema is asked for as a tool that the model must use.

use serde::Deserialize;
use serde_json::{Value, json};
use sluice_schema::message::ModelInfo;

use super::{Ask, Dialect, Odd, Part, told};
use crate::provider::{Framing, Question};

pub(super) struct Anthropic;

/// The dialect wants a bound; this is the one that callers are used to.
const OUTPUT_TOKENS_DEFAULT: u32 = 4_096;
const TOOL: &str = "answer";

#[derive(Deserialize)]
struct Answer {
    content: Vec<Block>,
    #[serde(default)]
    usage: Usage,
    #[serde(default)]
    model: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Text {
        text: String,
    },
    ToolUse {
        input: Value,
    },
    #[serde(other)]
    Other,
}

#[derive(Default, Deserialize)]
struct Usage {
    #[serde(default)]
    input_tokens: Option<i64>,
    #[serde(default)]
    output_tokens: Option<i64>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    MessageStart {
        message: Start,
    },
    ContentBlockDelta {
        delta: Delta,
    },
    MessageDelta {
        #[serde(default)]
        delta: End,
        #[serde(default)]
        usage: Usage,
    },
    MessageStop,
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Start {
    #[serde(default)]
    usage: Usage,
    #[serde(default)]
    model: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Delta {
    #[serde(rename = "text_delta")]
    Text { text: String },
    #[serde(rename = "input_json_delta")]
    Json { partial_json: String },
    #[serde(other)]
    Other,
}

#[derive(Default, Deserialize)]
struct End {
    #[serde(default)]
    stop_reason: Option<String>,
}

#[derive(Deserialize)]
struct List {
    data: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    id: String,
    #[serde(default)]
    display_name: Option<String>,
}

impl Dialect for Anthropic {
    fn framing(&self) -> Framing {
        Framing::Events
    }

    fn question(&self, ask: &Ask<'_>) -> Question {
        let mut body = json!({
            "model": ask.model,
            "max_tokens": ask.max_output_tokens.unwrap_or(OUTPUT_TOKENS_DEFAULT),
            "messages": [{"role": "user", "content": ask.request.prompt}],
        });
        if !ask.request.system.is_empty() {
            body["system"] = json!(ask.request.system);
        }
        if let Some(temperature) = ask.temperature {
            body["temperature"] = json!(temperature);
        }
        if let Some(schema) = ask.schema() {
            body["tools"] =
                json!([{"name": TOOL, "description": "Gives the answer.", "input_schema": schema}]);
            body["tool_choice"] = json!({"type": "tool", "name": TOOL});
        }
        if ask.in_parts {
            body["stream"] = json!(true);
        }
        Question { path: "messages", body: Some(body) }
    }

    fn whole(&self, body: &str) -> Result<Part, Odd> {
        let value: Value = serde_json::from_str(body)?;
        if let Some(failure) = told(&value) {
            return Err(failure);
        }
        let answer: Answer = serde_json::from_value(value)?;
        let text = answer.content.into_iter().map(|block| match block {
            Block::Text { text } => text,
            Block::ToolUse { input } => input.to_string(),
            Block::Other => String::new(),
        });
        Ok(Part {
            text: text.collect(),
            in_token: answer.usage.input_tokens,
            out_token: answer.usage.output_tokens,
            model: answer.model,
            is_complete: true,
            is_last: true,
        })
    }

    fn part(&self, frame: &str) -> Result<Part, Odd> {
        let value: Value = serde_json::from_str(frame)?;
        if let Some(failure) = told(&value) {
            return Err(failure);
        }
        let mut part = Part::default();
        match serde_json::from_value(value)? {
            Event::MessageStart { message } => {
                part.in_token = message.usage.input_tokens;
                part.model = message.model;
            }
            Event::ContentBlockDelta { delta: Delta::Text { text } } => part.text = text,
            Event::ContentBlockDelta { delta: Delta::Json { partial_json } } => part.text = partial_json,
            Event::MessageDelta { delta, usage } => {
                part.in_token = usage.input_tokens;
                part.out_token = usage.output_tokens;
                part.is_complete = delta.stop_reason.is_some();
            }
            Event::MessageStop => (part.is_complete, part.is_last) = (true, true),
            Event::ContentBlockDelta { delta: Delta::Other } | Event::Other => {}
        }
        Ok(part)
    }

    fn list(&self) -> &'static str {
        "models"
    }

    fn listed(&self, body: &str) -> Result<Vec<ModelInfo>, Odd> {
        let list: List = serde_json::from_str(body)?;
        let info =
            |listed: Listed| ModelInfo { id: listed.id, name: listed.display_name, ..Default::default() };
        Ok(list.data.into_iter().map(info).collect())
    }
}

#[cfg(test)]
mod tests {
    use sluice_schema::message::TextCompletionRequest;

    use super::*;

    #[test]
    fn the_system_text_has_its_own_place_and_a_schema_is_a_tool() {
        let request = TextCompletionRequest {
            system: "Be brief.".to_owned(),
            prompt: "Name a planet.".to_owned(),
            response_format: Some("json".to_owned()),
            schema: json!({"type": "object"}).as_object().cloned(),
            ..Default::default()
        };
        let ask = Ask {
            model: "c",
            temperature: Some(0.0),
            max_output_tokens: None,
            in_parts: true,
            request: &request,
        };
        let expected = json!({
            "model": "c", "max_tokens": 4096, "messages": [{"role": "user", "content": "Name a planet."}],
            "system": "Be brief.", "temperature": 0.0, "stream": true,
            "tools": [{"name": "answer", "description": "Gives the answer.", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "tool", "name": "answer"},
        });
        assert_eq!(Anthropic.question(&ask).body.unwrap(), expected);
    }

    #[test]
    fn events_add_up_to_an_answer() {
        let events = [
            r#"{"type": "message_start", "message": {"model": "c-1", "usage": {"input_tokens": 21, "output_tokens": 1}}}"#,
            r#"{"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}"#,
            r#"{"type": "ping"}"#,
            r#"{"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm"}}"#,
            r#"{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Mars"}}"#,
            r#"{"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": "{}"}}"#,
            r#"{"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}}"#,
            r#"{"type": "message_stop"}"#,
        ];
        let parts: Vec<Part> = events.iter().map(|event| Anthropic.part(event).unwrap()).collect();
        assert_eq!(parts.iter().map(|part| part.text.as_str()).collect::<String>(), "Mars{}");
        assert_eq!((parts[0].in_token, parts[0].model.as_deref()), (Some(21), Some("c-1")));
        assert_eq!((parts[6].out_token, parts[6].is_complete), (Some(3), true));
        assert!(parts[7].is_last && !parts[6].is_last);
        let told =
            Anthropic.part(r#"{"type": "error", "error": {"type": "overloaded_error", "message": "Busy"}}"#);
        assert_eq!(told, Err(Odd::Told { kind: "overloaded_error".to_owned(), reason: "Busy".to_owned() }));
    }

    #[test]
    fn texts_and_the_use_of_the_tool_are_the_answer() {
        let whole = r#"{"content": [{"type": "thinking"}, {"type": "text", "text": "a"}, {"type": "tool_use", "input": {"b": 1}}],
                        "usage": {"input_tokens": 2, "output_tokens": 1}, "model": "c-1"}"#;
        let part = Anthropic.whole(whole).unwrap();
        assert_eq!((part.text.as_str(), part.in_token, part.out_token), ("a{\"b\":1}", Some(2), Some(1)));
        assert!(matches!(Anthropic.whole("{}"), Err(Odd::Form(_))));
    }
}
