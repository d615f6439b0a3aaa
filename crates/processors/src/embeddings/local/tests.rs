//! A small model with made-up weights: whole, from a folder and from a URL.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::*;

const WIDTH: usize = 8;
const INNER: usize = 16;
const POSITIONS: usize = 12;
const WORDS: [&str; 8] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "oil", "the", "chain", "bread"];

/// Writes a model whose weights are a fixed sequence of numbers.
fn write_model(folder: &Path) {
    let config = json!({
        "model_type": "bert", "vocab_size": WORDS.len(), "hidden_size": WIDTH, "intermediate_size": INNER,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": POSITIONS,
    });
    let vocab: serde_json::Map<_, _> =
        WORDS.iter().enumerate().map(|(id, word)| ((*word).to_owned(), id.into())).collect();
    let tokenizer = json!({
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "lowercase": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": vocab},
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let mut shapes = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![WORDS.len(), WIDTH]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![POSITIONS, WIDTH]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, WIDTH]),
        ("embeddings.LayerNorm.weight".to_owned(), vec![WIDTH]),
        ("embeddings.LayerNorm.bias".to_owned(), vec![WIDTH]),
    ];
    for layer in 0..2 {
        for (part, outputs, inputs) in [
            ("attention.self.query", WIDTH, WIDTH),
            ("attention.self.key", WIDTH, WIDTH),
            ("attention.self.value", WIDTH, WIDTH),
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", INNER, WIDTH),
            ("output.dense", WIDTH, INNER),
        ] {
            shapes.push((format!("encoder.layer.{layer}.{part}.weight"), vec![outputs, inputs]));
            shapes.push((format!("encoder.layer.{layer}.{part}.bias"), vec![outputs]));
        }
        for part in ["attention.output.LayerNorm", "output.LayerNorm"] {
            shapes.push((format!("encoder.layer.{layer}.{part}.weight"), vec![WIDTH]));
            shapes.push((format!("encoder.layer.{layer}.{part}.bias"), vec![WIDTH]));
        }
    }
    let (mut table, mut numbers) = (serde_json::Map::new(), Vec::<u8>::new());
    let mut seed = 1_u32;
    for (name, shape) in shapes {
        let from = numbers.len();
        for _ in 0..shape.iter().product() {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let number = f64::from(seed) / f64::from(u32::MAX) - 0.5;
            numbers.extend((number as f32).to_le_bytes());
        }
        table.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [from, numbers.len()]}));
    }
    let table = serde_json::Value::Object(table).to_string();
    let file = [&(table.len() as u64).to_le_bytes(), table.as_bytes(), &numbers].concat();
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
}

async fn embed(local: &Local, texts: &[&str]) -> Vec<Vec<f64>> {
    local.embed(texts.iter().map(|text| (*text).to_owned()).collect()).await.unwrap()
}

#[tokio::test]
async fn texts_get_vectors_of_length_one_in_their_order_whatever_is_embedded_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let source = folder.path().to_str().unwrap();
    let local =
        Local::open(LocalConfig { threads_max: 1, ..LocalConfig::new(source, "unused") }).await.unwrap();
    let together = embed(&local, &["oil the chain", "bread", "", "Oil the CHAIN"]).await;
    for vector in &together {
        assert_eq!(vector.len(), WIDTH);
        assert!((vector.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-6);
    }
    assert_eq!(together[0], together[3]);
    assert_ne!(together[0], together[1]);
    assert_eq!(embed(&local, &["bread"]).await[0], together[1]);
    let long = "oil ".repeat(POSITIONS * 2);
    assert_eq!(embed(&local, &[&long]).await, embed(&local, &[&"oil ".repeat(POSITIONS - 2)]).await);
    assert!(embed(&local, &[]).await.is_empty());
}

#[tokio::test]
async fn the_first_token_is_the_vector_where_the_folder_says_so() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let mean = SentenceModel::read(folder.path()).unwrap().embed("oil the chain");
    std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    let pooling = folder.path().join("1_Pooling/config.json");
    std::fs::write(&pooling, r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#)
        .unwrap();
    let first = SentenceModel::read(folder.path()).unwrap();
    assert_eq!(first.pooling, Pooling::First);
    assert_ne!(first.embed("oil the chain"), mean);
    std::fs::write(&pooling, r#"{"pooling_mode_max_tokens": true}"#).unwrap();
    assert!(SentenceModel::read(folder.path()).err().unwrap().contains("pooling"));
}

#[tokio::test]
async fn a_folder_without_a_model_is_named_with_the_file_that_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().to_str().unwrap();
    let said = Local::open(LocalConfig::new(source, "unused")).await.err().unwrap().to_string();
    assert!(said.contains(source) && said.contains("config.json"), "{said}");
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the fake server ends with the test's runtime")]
async fn a_model_behind_a_url_is_fetched_once_and_whole_or_not_at_all() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_model(folder.path());
    let asked = Arc::new(AtomicUsize::new(0));
    let (files, count) = (folder.path().to_owned(), asked.clone());
    let router = axum::Router::new().fallback(move |uri: axum::http::Uri| {
        let path = files.join(uri.path().trim_start_matches("/models/tiny/"));
        count.fetch_add(1, Ordering::Relaxed);
        async move { std::fs::read(path).map_err(|_| axum::http::StatusCode::NOT_FOUND) }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/models/tiny/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });

    let weights = folder.path().join("model.safetensors");
    let away = folder.path().join("away");
    std::fs::rename(&weights, &away).unwrap();
    let config = LocalConfig::new(&url, cache.path());
    let said = Local::open(config.clone()).await.err().unwrap().to_string();
    assert!(said.contains("model.safetensors") && said.contains("404"), "{said}");
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);

    std::fs::rename(&away, &weights).unwrap();
    let fetched = Local::open(config.clone()).await.unwrap();
    let requests = asked.load(Ordering::Relaxed);
    let again = Local::open(config).await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), requests, "the second start asks nobody");
    assert_eq!(embed(&fetched, &["oil"]).await, embed(&again, &["oil"]).await);
}
