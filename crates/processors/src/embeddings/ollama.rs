//! Embeddings in the Ollama dialect.

use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Answer {
    embeddings: Vec<Vec<f64>>,
}

/// Path and body that ask for the vectors of texts.
pub(super) fn question(model: &str, texts: &[String]) -> (&'static str, Value) {
    ("embed", json!({"model": model, "input": texts}))
}

/// The vectors of an answer.
pub(super) fn vectors(answer: Value) -> Result<Vec<Vec<f64>>, serde_json::Error> {
    serde_json::from_value(answer).map(|answer: Answer| answer.embeddings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_go_in_and_vectors_come_out_in_order() {
        let (path, body) = question("m", &["a".to_owned(), "b".to_owned()]);
        assert_eq!((path, &body["input"]), ("embed", &json!(["a", "b"])));
        assert_eq!(vectors(json!({"model": "m", "embeddings": [[1, 0.5], [0, 1]]})).unwrap()[0], [1.0, 0.5]);
        assert!(vectors(json!({"embedding": [1]})).is_err());
    }
}
