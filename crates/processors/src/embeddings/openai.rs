//! Embeddings in the OpenAI dialect.

use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Answer {
    data: Vec<Datum>,
}

#[derive(Deserialize)]
struct Datum {
    embedding: Vec<f64>,
    #[serde(default)]
    index: usize,
}

/// Path and body that ask for the vectors of texts.
pub(super) fn question(model: &str, texts: &[String]) -> (&'static str, Value) {
    ("embeddings", json!({"model": model, "input": texts, "encoding_format": "float"}))
}

/// The vectors of an answer, in the order of the texts.
pub(super) fn vectors(answer: Value) -> Result<Vec<Vec<f64>>, serde_json::Error> {
    let mut answer: Answer = serde_json::from_value(answer)?;
    answer.data.sort_by_key(|datum| datum.index);
    Ok(answer.data.into_iter().map(|datum| datum.embedding).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_come_in_the_order_of_their_texts() {
        let answer = json!({"data": [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1]}]});
        assert_eq!(vectors(answer).unwrap(), [[1.0], [2.0]]);
        assert!(vectors(json!({"data": [{"index": 0}]})).is_err());
        assert_eq!(question("m", &["a".to_owned()]).1["input"], json!(["a"]));
    }
}
