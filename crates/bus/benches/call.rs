//! Question to answer in one process, beside three bare channel hops that encode and decode the same JSON.
//!
//! `cargo bench -p sluice-bus --bench call`: within a group, compare `bus` with `channels` of the same number in flight.
#![expect(clippy::unwrap_used, reason = "a bench may panic")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use futures_util::future::join_all;
use sluice_bus::{
    Address, Broker, BrokerAdmin, Client, Embedded, InboxAddress, Message, Replies, Subscription, TopicSpec,
    property,
};
use sluice_schema::exchange::Embeddings;
use sluice_schema::message::{EmbeddingsRequest, EmbeddingsResponse};
use sluice_schema::{Topic, wire};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

fn main() {
    divan::main();
}

const IN_FLIGHT: [usize; 2] = [1, 64];
const CALLS: usize = 1_024;
const LONG: Duration = Duration::from_secs(60);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn question() -> EmbeddingsRequest {
    EmbeddingsRequest { texts: vec!["How do I reset the pressure valve of the boiler?".to_owned()] }
}

fn answer(question: &EmbeddingsRequest) -> EmbeddingsResponse {
    let vectors = question.texts.iter().map(|text| vec![text.len() as f64 / 7.0; 16]).collect();
    EmbeddingsResponse { vectors, ..Default::default() }
}

/// Runs `CALLS` calls from so many callers at once.
fn measure<C, F>(bencher: Bencher<'_, '_>, runtime: &Runtime, in_flight: usize, call: C)
where
    C: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = usize> + Send,
{
    bencher.counter(ItemsCount::new(CALLS)).bench_local(|| {
        let callers = (0..in_flight).map(|_| {
            let call = call.clone();
            runtime.spawn(async move {
                for _ in 0..CALLS / in_flight {
                    divan::black_box(call().await);
                }
            })
        });
        let callers: Vec<_> = callers.collect();
        runtime.block_on(async { join_all(callers).await.into_iter().for_each(Result::unwrap) });
    });
}

/// As a process does it: a server, and one table of who waits for which id. Three hops: to the server, to the table,
/// to the caller.
#[divan::bench(args = IN_FLIGHT)]
fn channels(bencher: Bencher<'_, '_>, in_flight: usize) {
    let runtime = runtime();
    let (to_server, mut questions) = mpsc::channel::<(u64, Bytes)>(1_024);
    let (to_table, mut answers) = mpsc::channel::<(u64, Bytes)>(1_024);
    let waiting: Arc<Mutex<HashMap<u64, mpsc::Sender<Bytes>>>> = Arc::default();
    runtime.spawn(async move {
        while let Some((id, body)) = questions.recv().await {
            let question: EmbeddingsRequest = wire::decode(&body).unwrap();
            to_table.send((id, wire::encode(&answer(&question)))).await.unwrap();
        }
    });
    let table = waiting.clone();
    runtime.spawn(async move {
        while let Some((id, body)) = answers.recv().await {
            let waiter = table.lock().unwrap().remove(&id);
            if let Some(waiter) = waiter {
                waiter.send(body).await.unwrap();
            }
        }
    });
    let next = Arc::new(std::sync::atomic::AtomicU64::new(0));
    measure(bencher, &runtime, in_flight, move || {
        let (to_server, waiting, next) = (to_server.clone(), waiting.clone(), next.clone());
        async move {
            let id = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let (sender, mut answer) = mpsc::channel(4);
            waiting.lock().unwrap().insert(id, sender);
            to_server.send((id, wire::encode(&question()))).await.unwrap();
            let body = answer.recv().await.unwrap();
            wire::decode::<EmbeddingsResponse>(&body).unwrap().vectors.len()
        }
    });
}

/// The same through the bus: request topic, direct answer to the inbox, [`Client`].
#[divan::bench(args = IN_FLIGHT)]
fn bus(bencher: Bencher<'_, '_>, in_flight: usize) {
    let runtime = runtime();
    let broker = Embedded::in_memory();
    let request: Topic = "request:tg:embeddings".parse().unwrap();
    let response: Topic = "response:tg:embeddings".parse().unwrap();
    let stop = CancellationToken::new();
    let replies = Replies::new(Arc::new(broker.clone()));
    runtime.spawn(replies.clone().run(stop.clone()));
    let (ready, served) = oneshot::channel();
    let (server, topic, answers) = (broker.clone(), request.clone(), response.clone());
    runtime.spawn(async move {
        server.ensure(&TopicSpec::with(topic.clone(), "embeddings")).await.unwrap();
        server.ensure(&TopicSpec::bare(answers)).await.unwrap();
        let to = Subscription::Shared { topic, name: "embeddings".to_owned(), prefetch: 64 };
        let inbox = server.subscribe(&to).await.unwrap();
        ready.send(()).unwrap();
        while let Ok(delivery) = inbox.next().await {
            let question: EmbeddingsRequest = wire::decode(&delivery.message.body).unwrap();
            let id = delivery.message.get(property::ID).unwrap_or_default();
            let to = InboxAddress(delivery.message.get(property::REPLY_TO).unwrap_or_default().into());
            let answer = Message::new(wire::encode(&answer(&question))).with(property::ID, id);
            server.publish(&Address::Inbox(to), answer).await.unwrap();
            delivery.ack();
        }
    });
    let client = runtime.block_on(async {
        served.await.unwrap();
        Arc::new(Client::<Embeddings>::new(&replies, request, &response).await.unwrap())
    });
    measure(bencher, &runtime, in_flight, move || {
        let client = client.clone();
        async move { client.call(&question(), LONG).await.unwrap().vectors.len() }
    });
    stop.cancel();
}
