//! Against a fake service on a free port.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode as Status};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing};

use super::*;
use crate::completion::Secret;

/// What the fake does with the next question.
#[derive(Clone)]
enum Act {
    Answer(u16, String),
    Hang,
}

struct Fake {
    acts: Mutex<VecDeque<Act>>,
    asked: Mutex<Vec<(Option<String>, Value)>>,
}

async fn answer(State(fake): State<Arc<Fake>>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    let key = headers.get("authorization").and_then(|value| value.to_str().ok()).map(str::to_owned);
    fake.asked.lock().unwrap().push((key, body));
    let act = fake.acts.lock().unwrap().pop_front();
    match act {
        Some(Act::Answer(status, body)) => {
            (Status::from_u16(status).unwrap(), [("retry-after", "0")], body).into_response()
        }
        Some(Act::Hang) | None => std::future::pending().await,
    }
}

#[expect(clippy::disallowed_methods, reason = "the fake service ends with the test's runtime")]
async fn fake(acts: &[Act]) -> (Arc<Fake>, ModelConfig) {
    let fake = Arc::new(Fake { acts: Mutex::new(acts.iter().cloned().collect()), asked: Mutex::default() });
    let router = Router::new().route("/v1/chat/completions", routing::post(answer)).with_state(fake.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let mut config = ModelConfig::new(format!("http://{address}/v1/"));
    config.model = Some("m1".to_owned());
    config.retry_pause = Duration::from_millis(1);
    (fake, config)
}

fn good() -> Act {
    let body = json!({
        "choices": [{"message": {"role": "assistant", "content": "Mars."}}],
        "usage": {"prompt_tokens": 21, "completion_tokens": 3}, "model": "m1-2026",
    });
    Act::Answer(200, body.to_string())
}

async fn complete(config: ModelConfig) -> Result<Completion, ModelError> {
    let request = TextCompletionRequest {
        system: "Be brief.".to_owned(),
        prompt: "Name one planet.".to_owned(),
        ..Default::default()
    };
    OpenAi::new(config).unwrap().complete(Some("flow-model"), Some(0.5), &request).await
}

#[tokio::test]
async fn an_overloaded_model_is_asked_again_and_its_answer_and_tokens_come_through() {
    let (fake, mut config) = fake(&[Act::Answer(429, String::new()), good()]).await;
    config.api_key = Some(Secret::new("k-1"));
    let completion = complete(config.clone()).await.unwrap();
    let expected = Completion {
        text: "Mars.".to_owned(),
        in_token: Some(21),
        out_token: Some(3),
        model: "m1-2026".to_owned(),
    };
    assert_eq!(completion, expected);
    let asked = fake.asked.lock().unwrap();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].0.as_deref(), Some("Bearer k-1"));
    let message = json!([{"role": "user", "content": "Be brief.\n\nName one planet."}]);
    assert_eq!(asked[1].1, json!({"model": "m1", "messages": message, "temperature": 0.5}));
    assert!(!format!("{config:?}").contains("k-1"));
}

#[tokio::test]
async fn a_failing_model_is_given_up_after_a_bounded_number_of_tries() {
    let (fake, config) = fake(&vec![Act::Answer(500, "overheated".to_owned()); 9]).await;
    let said = complete(config).await.unwrap_err().to_string();
    assert!(said.contains("500") && said.contains("overheated"), "{said}");
    assert_eq!(fake.asked.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn a_refusal_is_final() {
    let (fake, config) = fake(&[Act::Answer(401, "bad key".to_owned()), good()]).await;
    assert!(matches!(complete(config).await, Err(ModelError::Status { status: 401, .. })));
    assert_eq!(fake.asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_model_that_hangs_is_left_after_the_timeout_and_not_asked_twice() {
    let (fake, mut config) = fake(&[Act::Hang]).await;
    config.answer_timeout = Duration::from_millis(200);
    assert!(matches!(complete(config).await, Err(ModelError::TimedOut { timeout_ms: 200, .. })));
    assert_eq!(fake.asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn garbage_is_called_garbage() {
    for body in ["<html>", "{}", r#"{"choices": []}"#] {
        let (_fake, config) = fake(&[Act::Answer(200, body.to_owned())]).await;
        assert!(matches!(complete(config).await, Err(ModelError::Garbage { .. })), "{body}");
    }
}

#[tokio::test]
async fn a_service_that_is_not_there_and_a_url_that_is_none_are_named() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let mut config = ModelConfig::new(&url);
    config.retry_pause = Duration::from_millis(1);
    let said = complete(config).await.unwrap_err().to_string();
    assert!(said.contains("cannot be reached") && said.contains(&url), "{said}");
    assert!(matches!(OpenAi::new(ModelConfig::new("localhost:1")), Err(ModelError::BadUrl { .. })));
}

#[test]
fn a_schema_asks_for_structured_output() {
    let schema = json!({"type": "object"}).as_object().cloned();
    let request =
        TextCompletionRequest { response_format: Some("json".to_owned()), schema, ..Default::default() };
    let body = chat_request("m", None, &request);
    assert_eq!(body["response_format"]["json_schema"]["strict"], json!(true));
    assert_eq!(body.get("temperature"), None);
}
