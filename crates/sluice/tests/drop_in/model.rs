//! A language model that greets, says what a passage told it, or fails when asked to.

use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// An OpenAI-compatible service on a port of its own, gone when dropped.
pub(crate) struct Model {
    pub(crate) url: String,
    _runtime: Runtime,
}

impl Model {
    pub(crate) fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let models = json!({"object": "list", "data": [{"id": "tiny-test", "object": "model"}]});
        let router = Router::new()
            .route("/v1/chat/completions", post(|Json(asked): Json<Value>| async move { answer(&asked) }))
            .route("/v1/models", get(|| async { Json(models) }));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { url, _runtime: runtime }
    }
}

fn answer(asked: &Value) -> (StatusCode, Json<Value>) {
    let said = asked["messages"].to_string();
    if said.contains("Please fail.") {
        let error = json!({"error": {"message": "the model is on holiday", "type": "invalid_request_error"}});
        return (StatusCode::BAD_REQUEST, Json(error));
    }
    let text = if said.contains("behind the blue door") {
        "The key hangs where the notes say: behind the blue door."
    } else {
        "The model greets you."
    };
    let message = json!({"role": "assistant", "content": text});
    let answer = json!({
        "id": "1", "object": "chat.completion", "model": asked["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15},
    });
    (StatusCode::OK, Json(answer))
}
