//! Questions to models from end to end: through the services of a flow to a provider that answers, streams, refuses, wants
//! fewer calls, hangs, breaks off or talks nonsense.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod failures;
mod world;

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_bus::Patience;
use sluice_processors::{Dialect, Secret};
use sluice_schema::message::{
    DocumentEmbeddingsRequest, EmbeddingsRequest, PromptRequest, TextCompletionRequest,
    TextCompletionResponse,
};

use sluice_store::{Attributes, Scope, VectorEntry};

use self::world::{Act, DEADLINE, Provider, Then, WS, World, ask, end, good, streamed, whole, words};

async fn parts(world: &World, text: &str) -> Vec<TextCompletionResponse> {
    let mut call = world.text.stream(&ask(text, true), Patience::total(DEADLINE)).await.unwrap();
    let mut parts = Vec::new();
    while let Some(part) = call.next().await.unwrap() {
        parts.push(part);
    }
    parts
}

#[tokio::test]
async fn an_answer_in_parts_arrives_as_it_is_written_and_ends_with_its_tokens() {
    let (provider, mut config, _) = Provider::start(vec![streamed(&["Ma", "rs", "."])]).await;
    config.api_key = Some(Secret::new("k-1"));
    let world = World::start(config, json!({"temperature": "0.5"})).await;
    let parts = parts(&world, "Name one planet.").await;
    let texts: Vec<&str> = parts.iter().map(|part| part.response.as_str()).collect();
    assert_eq!(texts, ["Ma", "rs", ".", ""]);
    assert!(parts.iter().all(|part| part.model.as_deref() == Some("m1-2026") && part.error.is_none()));
    assert!(parts[..3].iter().all(|part| part.in_token.is_none() && !part.end_of_stream));
    assert_eq!((parts[3].in_token, parts[3].out_token, parts[3].end_of_stream), (Some(21), Some(3), true));
    let asked = provider.asked.lock().unwrap().remove(0);
    assert_eq!(
        (asked.0.as_str(), &asked.1["authorization"]),
        ("/v1/chat/completions", &"Bearer k-1".parse().unwrap())
    );
    assert_eq!((&asked.2["temperature"], &asked.2["stream"]), (&json!(0.5), &json!(true)));
    world.stop().await;
}

#[tokio::test]
async fn the_first_part_is_there_before_the_model_has_written_the_second() {
    let act = Act::Parts("text/event-stream", words(&["Ma"]), Then::Hang);
    let (_provider, config, mut left) = Provider::start(vec![act]).await;
    let world = World::start(config, json!({})).await;
    let mut call = world.text.stream(&ask("x", true), Patience::total(DEADLINE)).await.unwrap();
    assert_eq!(call.next().await.unwrap().unwrap().response, "Ma");
    // And when its asker leaves, the provider sees the connection close.
    drop(call);
    tokio::time::timeout(DEADLINE, left.recv()).await.unwrap().unwrap();
    world.stop().await;
}

#[tokio::test]
async fn an_asker_who_leaves_a_prompt_is_noticed_by_the_provider() {
    let (provider, config, mut left) = Provider::start(vec![Act::Hang]).await;
    let world = World::start(config, json!({})).await;
    let question = PromptRequest {
        id: "question".to_owned(),
        terms: [("question".to_owned(), "\"Why?\"".to_owned())].into(),
        streaming: false,
    };
    {
        let call = world.prompt.call(&question, DEADLINE);
        tokio::pin!(call);
        tokio::select! {
            answer = &mut call => panic!("{answer:?}"),
            () = provider.asked_at_least(1) => {}
        }
    }
    tokio::time::timeout(DEADLINE, left.recv()).await.unwrap().unwrap();
    world.stop().await;
}

#[tokio::test]
async fn the_other_dialects_answer_whole_and_in_parts() {
    let whole = json!({"content": [{"type": "text", "text": "Mars."}], "usage": {"input_tokens": 21, "output_tokens": 3}, "model": "c-1"});
    let events = [
        json!({"type": "message_start", "message": {"model": "c-1", "usage": {"input_tokens": 21}}}),
        json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Ma"}}),
        json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "rs."}}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}}),
        json!({"type": "message_stop"}),
    ];
    let events =
        events.iter().map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap()));
    let anthropic = [
        Act::Say(200, vec![], whole.to_string()),
        Act::Parts("text/event-stream", events.collect(), Then::End),
    ];
    let last = json!({"model": "c-1", "message": {"content": ""}, "done": true, "prompt_eval_count": 21, "eval_count": 3});
    let mut once = last.clone();
    once["message"]["content"] = json!("Mars.");
    let line =
        |text: &str| format!("{}\n", json!({"model": "c-1", "message": {"content": text}, "done": false}));
    let ollama = [
        Act::Say(200, vec![], once.to_string()),
        Act::Parts("application/x-ndjson", vec![line("Ma"), line("rs."), last.to_string()], Then::End),
    ];
    for (dialect, acts, path, key) in [
        (Dialect::Anthropic, anthropic, "/v1/messages", "x-api-key"),
        (Dialect::Ollama, ollama, "/api/chat", "authorization"),
    ] {
        let (provider, mut config, _) = Provider::start(acts.to_vec()).await;
        config.dialect = dialect;
        config.api_key = Some(Secret::new("k-1"));
        let world = World::start(config, json!({})).await;
        let once = world.text.call(&ask("x", false), DEADLINE).await.unwrap();
        assert_eq!((once.response.as_str(), once.error), ("Mars.", None), "{dialect}");
        let parts = parts(&world, "x").await;
        let texts: Vec<&str> = parts.iter().map(|part| part.response.as_str()).collect();
        assert_eq!(texts, ["Ma", "rs.", ""], "{dialect}");
        for last in [&once.in_token, &parts[2].in_token] {
            assert_eq!(*last, Some(21), "{dialect}");
        }
        assert_eq!((parts[2].out_token, parts[2].model.as_deref()), (Some(3), Some("c-1")), "{dialect}");
        let asked = provider.asked.lock().unwrap().clone();
        assert!(asked.iter().all(|(to, headers, _)| to == path && headers.contains_key(key)), "{asked:?}");
        world.stop().await;
    }
}

#[tokio::test]
async fn models_are_listed() {
    let list = json!({"data": [{"id": "m1", "owned_by": "us", "created": 7}, {"id": "m2"}]});
    let (_provider, config, _) = Provider::start(vec![Act::Say(200, vec![], list.to_string())]).await;
    let world = World::start(config, json!({})).await;
    let request = TextCompletionRequest { operation: "list-models".to_owned(), ..Default::default() };
    let models = world.text.call(&request, DEADLINE).await.unwrap().models;
    assert_eq!(models.iter().map(|model| model.id.as_str()).collect::<Vec<_>>(), ["m1", "m2"]);
    assert_eq!((models[0].owned_by.as_deref(), models[0].created), (Some("us"), Some(7)));
    world.stop().await;
}

#[tokio::test]
async fn a_server_that_does_not_stream_is_understood_all_the_same() {
    let (_provider, config, _) = Provider::start(vec![good("Mars.")]).await;
    let world = World::start(config, json!({})).await;
    let parts = parts(&world, "x").await;
    assert_eq!((parts[0].response.as_str(), parts[1].in_token, parts.len()), ("Mars.", Some(21), 2));
    world.stop().await;
}

#[tokio::test]
async fn many_calls_are_under_way_at_once() {
    const CALLS: usize = 32;
    let (_provider, config, _) = Provider::start(vec![Act::Together(CALLS, whole("Mars."))]).await;
    let world = World::start(config, json!({})).await;
    let question = ask("x", false);
    let calls = (0..CALLS).map(|_| world.text.call(&question, DEADLINE));
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!(answer.unwrap().response, "Mars.");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_flow_says_how_many_calls_are_under_way_at_most() {
    let (provider, config, _) = Provider::start(vec![Act::Together(2, whole("Mars."))]).await;
    let world = World::start(config, json!({"concurrency": "2"})).await;
    let question = ask("x", false);
    let calls = (0..8).map(|_| world.text.call(&question, DEADLINE));
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!(answer.unwrap().response, "Mars.");
    }
    assert_eq!(provider.most.load(Ordering::SeqCst), 2);
    world.stop().await;
}

async fn prompted(world: &World, id: &str, term: (&str, &str), streaming: bool) -> Vec<(String, String)> {
    let terms = [(term.0.to_owned(), term.1.to_owned())].into();
    let question = PromptRequest { id: id.to_owned(), terms, streaming };
    let mut call = world.prompt.stream(&question, Patience::total(DEADLINE)).await.unwrap();
    let mut parts = Vec::new();
    while let Some(part) = call.next().await.unwrap() {
        assert_eq!(part.error, None);
        parts.push((part.text, part.object));
    }
    parts
}

#[tokio::test]
async fn prompts_stream_texts_repair_json_and_take_terms_that_are_none() {
    let lines = "Here:\n```jsonl\n{\"entity\": \"Pump\", \"definition\": \"It pumps.\",}\n{\"entity\": \"Ta";
    let (provider, config, _) = Provider::start(vec![streamed(&["Be", "cause."]), good(lines)]).await;
    let world = World::start(config, json!({})).await;
    let parts = prompted(&world, "question", ("question", "Why is it so?"), true).await;
    assert_eq!(parts.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>(), ["Be", "cause.", ""]);
    let sent: Value = provider.asked.lock().unwrap()[0].2.clone();
    assert!(sent["messages"][0]["content"].as_str().unwrap().contains("Why is it so?"), "{sent}");
    let parts = prompted(&world, "extract-definitions", ("text", "\"A pump.\""), true).await;
    let object = r#"[{"entity":"Pump","definition":"It pumps."}]"#;
    assert_eq!(parts, [(String::new(), object.to_owned())]);
    world.stop().await;
}

#[tokio::test]
async fn texts_are_embedded_by_a_provider_in_batches() {
    let texts: Vec<String> =
        (0..65).map(|number| if number == 1 { String::new() } else { number.to_string() }).collect();
    let batch = |count: usize, first: usize| {
        // Backwards, as a provider may.
        let data = (0..count).rev().map(|index| json!({"index": index, "embedding": [first + index, 1]}));
        Act::Say(200, vec![], json!({"data": data.collect::<Vec<_>>()}).to_string())
    };
    let (provider, config, _) = Provider::start(vec![batch(64, 0), batch(1, 64)]).await;
    let world = World::start(config, json!({})).await;
    let answer = world.embeddings.call(&EmbeddingsRequest { texts }, DEADLINE).await.unwrap();
    assert_eq!(answer.error, None);
    assert_eq!(answer.vectors.len(), 65);
    assert!(answer.vectors.iter().enumerate().all(|(number, vector)| vector[0] == number as f64));
    let asked = provider.asked.lock().unwrap().clone();
    let sizes: Vec<usize> =
        asked.iter().map(|(_, _, body)| body["input"].as_array().unwrap().len()).collect();
    assert_eq!((asked[0].0.as_str(), sizes), ("/v1/embeddings", vec![64, 1]));
    assert_eq!(asked[0].2["input"][1], json!(" "), "providers refuse a text without anything in it");
    world.stop().await;
}

/// What a provider embeds is looked for in a collection that was embedded by another model.
#[tokio::test]
async fn a_collection_of_another_model_says_so_instead_of_finding_anything() {
    let vectors = json!({"data": [{"index": 0, "embedding": [1, 0]}]});
    let (_provider, config, _) = Provider::start(vec![Act::Say(200, vec![], vectors.to_string())]).await;
    let world = World::start(config, json!({})).await;
    let old = VectorEntry { id: "a".to_owned(), vector: vec![1.0, 0.0, 0.0], attributes: Attributes::new() };
    world.store.stores().vectors.upsert(Scope::new(WS, "docs"), vec![old]).await.unwrap();
    let texts = vec!["x".to_owned()];
    let embedded = world.embeddings.call(&EmbeddingsRequest { texts }, DEADLINE).await.unwrap();
    let question = DocumentEmbeddingsRequest {
        vector: embedded.vectors[0].clone(),
        collection: "docs".to_owned(),
        ..Default::default()
    };
    let error = world.vectors.call(&question, DEADLINE).await.unwrap().error.unwrap();
    assert_eq!(error.r#type, "document-embeddings-query-error");
    assert!(
        error.message.contains("vectors of 3 numbers") && error.message.contains("the model that"),
        "{error:?}"
    );
    world.stop().await;
}

#[tokio::test]
async fn a_stream_that_was_busy_before_its_first_word_is_asked_for_again() {
    let busy = "event: error\ndata: {\"type\": \"error\", \"error\": {\"type\": \"overloaded_error\", \"message\": \"Busy\"}}\n\n";
    let mut pieces = words(&["Mars."]);
    pieces.push(end());
    let acts = vec![
        Act::Parts("text/event-stream", vec![busy.to_owned()], Then::End),
        Act::Parts("text/event-stream", pieces, Then::End),
    ];
    let (provider, config, _) = Provider::start(acts).await;
    let world = World::start(config, json!({})).await;
    let parts = parts(&world, "x").await;
    assert_eq!((parts[0].response.as_str(), provider.asked()), ("Mars.", 2));
    world.stop().await;
}

#[tokio::test]
async fn the_pause_that_a_provider_asks_for_is_kept() {
    const PAUSE: Duration = Duration::from_millis(150);
    let busy = Act::Say(429, vec![("retry-after-ms", "150")], "slow down".to_owned());
    let (provider, config, _) = Provider::start(vec![busy, good("Mars.")]).await;
    let world = World::start(config, json!({})).await;
    let started = std::time::Instant::now();
    let answer = world.text.call(&ask("x", false), DEADLINE).await.unwrap();
    assert_eq!((answer.response.as_str(), provider.asked()), ("Mars.", 2));
    assert!(started.elapsed() >= PAUSE);
    world.stop().await;
}
