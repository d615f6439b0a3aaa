//! What stands between a model and its asker: time to the first word beside the bare model, many slow calls beside one, and,
//! where MiniLM can be had, how fast texts are embedded here and how many questions find their passage.
//! `cargo bench -p sluice-processors --bench models`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench tells what it measured, or ends")]
#![allow(dead_code, reason = "the tests use more of what they share with this")]

#[path = "../tests/minilm/fetch.rs"]
mod fetch;
#[path = "../tests/minilm/model.rs"]
mod model;
#[path = "../tests/models/world.rs"]
mod world;

use std::time::{Duration, Instant};

use serde_json::json;
use sluice_bus::Patience;
use sluice_processors::hashing;
use sluice_schema::message::PromptRequest;

use self::world::{Act, DEADLINE, Provider, World, ask, streamed, whole};

/// Rounds of each measure; the median counts.
const ROUNDS: usize = 201;
const CALLS: usize = 32;
/// What the slow model takes for an answer.
const SLOW: Duration = Duration::from_secs(1);

fn main() {
    // `cargo test` runs benches too, to see that they build.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(first_word());
    runtime.block_on(many_calls());
    drop(runtime);
    local_model();
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

async fn first_word() {
    let (_provider, config, _) = Provider::start(vec![streamed(&["Mars", "."])]).await;
    let url = format!("{}/chat/completions", config.base_url);
    let world = World::start(config, json!({})).await;
    let question = ask("Name one planet.", true);
    let prompt = PromptRequest {
        id: "question".to_owned(),
        terms: [("question".to_owned(), "\"Name one planet.\"".to_owned())].into(),
        streaming: true,
    };
    let http = reqwest::Client::new();
    let body =
        json!({"model": "m1", "messages": [{"role": "user", "content": "Name one planet."}], "stream": true});
    let patience = Patience::total(DEADLINE);
    let (mut bare, mut text, mut prompted) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let mut answer = http.post(&url).json(&body).send().await.unwrap();
        answer.chunk().await.unwrap().unwrap();
        bare.push(started.elapsed());
        while answer.chunk().await.unwrap().is_some() {}

        let started = Instant::now();
        let mut call = world.text.stream(&question, patience).await.unwrap();
        assert_eq!(call.next().await.unwrap().unwrap().response, "Mars");
        text.push(started.elapsed());
        while call.next().await.unwrap().is_some() {}

        let started = Instant::now();
        let mut call = world.prompt.stream(&prompt, patience).await.unwrap();
        assert_eq!(call.next().await.unwrap().unwrap().text, "Mars");
        prompted.push(started.elapsed());
        while call.next().await.unwrap().is_some() {}
    }
    world.stop().await;
    let bare = median(bare);
    println!("time to first word, median of {ROUNDS}: bare model {bare:.0?}");
    for (name, times) in [("text-completion", text), ("prompt", prompted)] {
        let time = median(times);
        println!("  through {name}: {time:.0?}, {:.0?} more", time.saturating_sub(bare));
    }
}

async fn many_calls() {
    let (_provider, config, _) = Provider::start(vec![Act::After(SLOW, whole("Mars."))]).await;
    let world = World::start(config, json!({})).await;
    let question = ask("Name one planet.", false);
    let started = Instant::now();
    world.text.call(&question, DEADLINE).await.unwrap();
    let one = started.elapsed();
    let started = Instant::now();
    let calls = (0..CALLS).map(|_| world.text.call(&question, DEADLINE));
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!(answer.unwrap().error, None);
    }
    let all = started.elapsed();
    world.stop().await;
    println!(
        "a model that takes {SLOW:?}: one call {one:.2?}, {CALLS} at once {all:.2?}, ratio {:.2}",
        all.as_secs_f64() / one.as_secs_f64()
    );
}

fn local_model() {
    let folder = match fetch::model() {
        Ok(folder) => folder,
        Err(why) => return println!("MiniLM: not measured, {why}"),
    };
    let passages = model::passages(600);
    let texts: Vec<&str> = passages.iter().map(|passage| passage.text.as_str()).collect();
    let started = Instant::now();
    model::embed(&folder, &[]);
    let reading = started.elapsed();
    let started = Instant::now();
    let by_model = model::embed(&folder, &texts);
    let time = started.elapsed().saturating_sub(reading);
    println!(
        "MiniLM: read in {reading:.1?}; {} passages of at most 600 characters in {time:.1?}, {:.0} a second",
        texts.len(),
        texts.len() as f64 / time.as_secs_f64()
    );
    let by_words: Vec<Vec<f64>> = texts.iter().map(|text| hashing::embed(text)).collect();
    for file in ["questions.json", "questions-held-out.json"] {
        let questions = model::questions(file);
        let asked: Vec<&str> = questions.iter().map(|question| question.question.as_str()).collect();
        let asked_words: Vec<Vec<f64>> = asked.iter().map(|text| hashing::embed(text)).collect();
        let asked = model::embed(&folder, &asked);
        let by = |asked: &[Vec<f64>], vectors: &[Vec<f64>]| {
            [1, 3].map(|within| model::found(&questions, asked, &passages, vectors, within))
        };
        let ([first, three], [first_words, three_words]) =
            (by(&asked, &by_model), by(&asked_words, &by_words));
        println!(
            "  {file}: of {} questions, first / first three by MiniLM {first} / {three}, by hashed words {first_words} / {three_words}",
            questions.len()
        );
    }
}
