//! The Ollama dialect: `chat` and `tags`. Answers in parts are a JSON object a line.

use serde::Deserialize;
use serde_json::{Value, json};
use sluice_schema::message::ModelInfo;

use super::{Ask, Dialect, Odd, Part, told};
use crate::provider::{Framing, Question};

pub(super) struct Ollama;

#[derive(Deserialize)]
struct Answer {
    message: Message,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    done: bool,
    #[serde(default)]
    prompt_eval_count: Option<i64>,
    #[serde(default)]
    eval_count: Option<i64>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: String,
}

#[derive(Deserialize)]
struct Tags {
    models: Vec<Tag>,
}

#[derive(Deserialize)]
struct Tag {
    name: String,
    #[serde(default)]
    details: Details,
}

#[derive(Default, Deserialize)]
struct Details {
    #[serde(default)]
    family: Option<String>,
    #[serde(default)]
    parameter_size: Option<String>,
    #[serde(default)]
    quantization_level: Option<String>,
    #[serde(default)]
    format: Option<String>,
}

impl Dialect for Ollama {
    fn framing(&self) -> Framing {
        Framing::Lines
    }

    fn question(&self, ask: &Ask<'_>) -> Question {
        let message = json!({"role": "user", "content": ask.joined()});
        let mut body = json!({"model": ask.model, "messages": [message], "stream": ask.in_parts});
        if let Some(temperature) = ask.temperature {
            body["options"]["temperature"] = json!(temperature);
        }
        if let Some(tokens) = ask.max_output_tokens {
            body["options"]["num_predict"] = json!(tokens);
        }
        if let Some(schema) = ask.schema() {
            body["format"] = json!(schema);
        }
        Question { path: "chat", body: Some(body) }
    }

    fn whole(&self, body: &str) -> Result<Part, Odd> {
        let part = self.part(body)?;
        Ok(Part { is_complete: true, is_last: true, ..part })
    }

    fn part(&self, frame: &str) -> Result<Part, Odd> {
        let value: Value = serde_json::from_str(frame)?;
        if let Some(failure) = told(&value) {
            return Err(failure);
        }
        let answer: Answer = serde_json::from_value(value)?;
        Ok(Part {
            text: answer.message.content,
            in_token: answer.prompt_eval_count,
            out_token: answer.eval_count,
            model: answer.model,
            is_complete: answer.done,
            is_last: answer.done,
        })
    }

    fn list(&self) -> &'static str {
        "tags"
    }

    fn listed(&self, body: &str) -> Result<Vec<ModelInfo>, Odd> {
        let tags: Tags = serde_json::from_str(body)?;
        let info = |tag: Tag| ModelInfo {
            id: tag.name,
            family: tag.details.family,
            parameter_size: tag.details.parameter_size,
            quantization: tag.details.quantization_level,
            format: tag.details.format,
            ..Default::default()
        };
        Ok(tags.models.into_iter().map(info).collect())
    }
}

#[cfg(test)]
mod tests {
    use sluice_schema::message::TextCompletionRequest;

    use super::*;

    #[test]
    fn settings_are_options_and_a_schema_is_the_format() {
        let request = TextCompletionRequest {
            prompt: "Name a planet.".to_owned(),
            response_format: Some("json".to_owned()),
            schema: json!({"type": "object"}).as_object().cloned(),
            ..Default::default()
        };
        let ask = Ask {
            model: "l",
            temperature: Some(0.0),
            max_output_tokens: Some(5),
            in_parts: false,
            request: &request,
        };
        let expected = json!({
            "model": "l", "messages": [{"role": "user", "content": "Name a planet."}], "stream": false,
            "options": {"temperature": 0.0, "num_predict": 5}, "format": {"type": "object"},
        });
        assert_eq!(Ollama.question(&ask).body.unwrap(), expected);
    }

    #[test]
    fn lines_add_up_to_an_answer() {
        let part = Ollama
            .part(r#"{"model": "l", "message": {"role": "assistant", "content": "Ma"}, "done": false}"#)
            .unwrap();
        assert_eq!((part.text.as_str(), part.is_last), ("Ma", false));
        let last = r#"{"model": "l", "message": {"content": ""}, "done": true, "prompt_eval_count": 21, "eval_count": 3}"#;
        let last = Ollama.part(last).unwrap();
        assert_eq!((last.in_token, last.out_token, last.is_last), (Some(21), Some(3), true));
        assert!(
            matches!(Ollama.part(r#"{"error": "no such model"}"#), Err(Odd::Told { reason, .. }) if reason == "no such model")
        );
        assert!(matches!(Ollama.whole(r#"{"response": "x"}"#), Err(Odd::Form(_))));
    }
}
