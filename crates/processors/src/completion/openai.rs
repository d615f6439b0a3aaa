//! The OpenAI dialect: `chat/completions` and `models`, as OpenAI and the many services that copy it understand them.

use serde::Deserialize;
use serde_json::{Value, json};
use sluice_schema::message::ModelInfo;

use super::{Ask, Dialect, Odd, Part, told};
use crate::provider::{Framing, Question};

pub(super) struct OpenAi;

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    model: Option<String>,
}

#[derive(Deserialize)]
struct Choice {
    /// A part carries its text here, a whole answer in `message`.
    #[serde(default, alias = "delta")]
    message: Option<Message>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    /// A text, or a list of which some members have one.
    #[serde(default)]
    content: Value,
    #[serde(default)]
    refusal: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Option<i64>,
    #[serde(default)]
    completion_tokens: Option<i64>,
}

#[derive(Deserialize)]
struct List {
    data: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    id: String,
    #[serde(default)]
    owned_by: Option<String>,
    #[serde(default)]
    created: Option<i64>,
}

impl Dialect for OpenAi {
    fn framing(&self) -> Framing {
        Framing::Events
    }

    fn question(&self, ask: &Ask<'_>) -> Question {
        let mut body = json!({"model": ask.model, "messages": [{"role": "user", "content": ask.joined()}]});
        if let Some(temperature) = ask.temperature {
            body["temperature"] = json!(temperature);
        }
        if let Some(tokens) = ask.max_output_tokens {
            body["max_tokens"] = json!(tokens);
        }
        if let Some(schema) = ask.schema() {
            let schema = json!({"name": "response", "strict": true, "schema": schema});
            body["response_format"] = json!({"type": "json_schema", "json_schema": schema});
        }
        if ask.in_parts {
            body["stream"] = json!(true);
            body["stream_options"] = json!({"include_usage": true});
        }
        Question { path: "chat/completions", body: Some(body) }
    }

    fn whole(&self, body: &str) -> Result<Part, Odd> {
        let part = read(body)?;
        if part.text.is_none() {
            return Err(Odd::Form("it has no choice with a message".to_owned()));
        }
        Ok(Part { is_complete: true, is_last: true, ..part.into() })
    }

    fn part(&self, frame: &str) -> Result<Part, Odd> {
        if frame.trim() == "[DONE]" {
            return Ok(Part { is_complete: true, is_last: true, ..Part::default() });
        }
        read(frame).map(Part::from)
    }

    fn list(&self) -> &'static str {
        "models"
    }

    fn listed(&self, body: &str) -> Result<Vec<ModelInfo>, Odd> {
        let list: List = serde_json::from_str(body)?;
        let info = |listed: Listed| ModelInfo {
            id: listed.id,
            owned_by: listed.owned_by,
            created: listed.created,
            ..Default::default()
        };
        Ok(list.data.into_iter().map(info).collect())
    }
}

/// An answer's first choice; its text is `None` where it has none at all.
struct First {
    text: Option<String>,
    finished: bool,
    usage: Option<Usage>,
    model: Option<String>,
}

impl From<First> for Part {
    fn from(first: First) -> Self {
        Self {
            text: first.text.unwrap_or_default(),
            in_token: first.usage.as_ref().and_then(|usage| usage.prompt_tokens),
            out_token: first.usage.as_ref().and_then(|usage| usage.completion_tokens),
            model: first.model.filter(|model| !model.is_empty()),
            is_complete: first.finished,
            is_last: false,
        }
    }
}

fn read(text: &str) -> Result<First, Odd> {
    let value: Value = serde_json::from_str(text)?;
    if let Some(failure) = told(&value) {
        return Err(failure);
    }
    let answer: Answer = serde_json::from_value(value)?;
    let choice = answer.choices.into_iter().next();
    let finished = choice.as_ref().is_some_and(|choice| choice.finish_reason.is_some());
    let text = choice.and_then(|choice| choice.message).map(|message| {
        let text = content(&message.content);
        if text.is_empty() { message.refusal.unwrap_or_default() } else { text }
    });
    Ok(First { text, finished, usage: answer.usage, model: answer.model })
}

fn content(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use sluice_schema::message::TextCompletionRequest;

    use super::*;

    #[test]
    fn system_and_prompt_are_one_message_and_settings_are_sent_where_there_are_any() {
        let request = TextCompletionRequest {
            system: "Be brief.".to_owned(),
            prompt: "Name a planet.".to_owned(),
            ..Default::default()
        };
        let mut ask = Ask {
            model: "m",
            temperature: None,
            max_output_tokens: None,
            in_parts: false,
            request: &request,
        };
        let message = json!([{"role": "user", "content": "Be brief.\n\nName a planet."}]);
        assert_eq!(OpenAi.question(&ask).body.unwrap(), json!({"model": "m", "messages": message}));
        let wanted = TextCompletionRequest {
            response_format: Some("json".to_owned()),
            schema: json!({"type": "object"}).as_object().cloned(),
            ..request.clone()
        };
        ask = Ask {
            temperature: Some(0.5),
            max_output_tokens: Some(9),
            in_parts: true,
            request: &wanted,
            ..ask
        };
        let body = OpenAi.question(&ask).body.unwrap();
        assert_eq!((&body["temperature"], &body["max_tokens"]), (&json!(0.5), &json!(9)));
        assert_eq!(body["response_format"]["json_schema"]["strict"], json!(true));
        assert_eq!((&body["stream"], &body["stream_options"]["include_usage"]), (&json!(true), &json!(true)));
    }

    #[test]
    fn parts_carry_text_and_the_last_ones_the_count_and_the_end() {
        let text = OpenAi
            .part(r#"{"choices": [{"delta": {"content": "Ma"}, "finish_reason": null}], "model": "m1"}"#);
        assert_eq!(text, Ok(Part { text: "Ma".to_owned(), model: Some("m1".to_owned()), ..Part::default() }));
        let stop = OpenAi.part(r#"{"choices": [{"delta": {}, "finish_reason": "stop"}]}"#).unwrap();
        assert!(stop.is_complete && !stop.is_last);
        let usage = OpenAi
            .part(r#"{"choices": [], "usage": {"prompt_tokens": 21, "completion_tokens": 3}}"#)
            .unwrap();
        assert_eq!((usage.in_token, usage.out_token), (Some(21), Some(3)));
        assert!(OpenAi.part("[DONE]").unwrap().is_last);
        let told = OpenAi.part(r#"{"error": {"type": "server_error", "message": "overheated"}}"#);
        assert_eq!(told, Err(Odd::Told { kind: "server_error".to_owned(), reason: "overheated".to_owned() }));
    }

    #[test]
    fn a_whole_answer_may_be_a_list_of_texts_or_a_refusal() {
        let whole = |message: &str| {
            OpenAi.whole(&format!(r#"{{"choices": [{{"message": {message}}}]}}"#)).unwrap().text
        };
        assert_eq!(
            whole(r#"{"content": [{"type": "thinking"}, {"type": "text", "text": "Mars."}]}"#),
            "Mars."
        );
        assert_eq!(whole(r#"{"content": null, "refusal": "No."}"#), "No.");
        for odd in ["<html>", "{}", r#"{"choices": []}"#, r#"{"choices": [{"text": "old"}]}"#] {
            assert!(matches!(OpenAi.whole(odd), Err(Odd::Form(_))), "{odd}");
        }
    }
}
