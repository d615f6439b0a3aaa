//! Calls through the gateway over RabbitMQ to a service that does nothing, beside the same over the embedded broker and
//! beside the bare client library making the same two hops, in the same run. `cargo bench -p sluice-gateway`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement that fails may panic, and prints"
)]

#[path = "../../brokers/benches/bare/rabbitmq.rs"]
#[expect(clippy::disallowed_methods, reason = "its tasks end with the run")]
mod bare;
mod support;
#[path = "../../brokers/benches/bare/waiting.rs"]
mod waiting;

use std::sync::Arc;
use std::time::Instant;

use bare::Rabbit;
use sluice_brokers::testing::RabbitServer;
use sluice_bus::Embedded;
use support::{BODY, Bed, Measured, SPAN};
use tokio::task::JoinSet;

const CALLERS: [usize; 3] = [1, 16, 64];
/// Messages that the bare service is handed at once; as many as ours takes.
const PREFETCH: u16 = 64;

/// Rounds of each, in turns.
const ROUNDS: usize = 3;

fn main() {
    // Tests only want to see it build.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    if let Some(why) = RabbitServer::missing() {
        println!("rabbitmq: not measured, {why}");
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(run());
}

async fn run() {
    let server = RabbitServer::start().await.unwrap();
    let vhost = server.vhost().await.unwrap();
    let bare = Arc::new(Rabbit::start(&server.url(&vhost), PREFETCH, BODY).await);
    let end = async || server.connect(&vhost).await.unwrap();
    let ends = [end().await, end().await, end().await];
    let over_rabbit = Bed::start(ends.clone()).await;
    let broker = Embedded::in_memory();
    let embedded = Bed::start([broker.clone(), broker.clone(), broker]).await;
    println!(
        "| door | callers | bare client, req/s (p50/p99 ms) | embedded | RabbitMQ | of bare | of embedded |"
    );
    println!("|---|---|---|---|---|---|---|");
    for callers in CALLERS {
        let mut best = Best::default();
        for _ in 0..ROUNDS {
            let alone = ask(&bare, callers).await;
            best.keep([alone, embedded.http(callers).await, over_rabbit.http(callers).await]);
        }
        best.print("HTTP", callers);
    }
    for callers in CALLERS {
        let mut best = Best::default();
        for _ in 0..ROUNDS {
            let alone = ask(&bare, callers).await;
            best.keep([alone, embedded.socket(callers).await, over_rabbit.socket(callers).await]);
        }
        best.print("one WebSocket", callers);
    }
    bare.close().await;
    for end in ends {
        end.shutdown().await;
    }
}

/// The bare client, asked again as soon as it has its answer.
async fn ask(bare: &Arc<Rabbit>, callers: usize) -> Measured {
    let mut running = JoinSet::new();
    let started = Instant::now();
    for _ in 0..callers {
        let bare = bare.clone();
        running.spawn(async move {
            let mut took = Vec::new();
            while started.elapsed() < SPAN.warm_up + SPAN.measured {
                let asked = Instant::now();
                bare.ask().await;
                if started.elapsed() > SPAN.warm_up {
                    took.push(asked.elapsed());
                }
            }
            took
        });
    }
    let took = running.join_all().await.into_iter().flatten().collect();
    Measured { took, span: SPAN.measured }
}

/// The best round of each: what others do on the machine makes a round worse, never better.
#[derive(Default)]
struct Best([Option<Measured>; 3]);

impl Best {
    fn keep(&mut self, round: [Measured; 3]) {
        for (best, measured) in self.0.iter_mut().zip(round) {
            if best.as_ref().is_none_or(|best| best.per_second() < measured.per_second()) {
                *best = Some(measured);
            }
        }
    }

    fn print(&self, door: &str, callers: usize) {
        let [bare, embedded, ours] = self.0.each_ref().map(|best| best.as_ref().unwrap());
        let text = |one: &Measured| {
            let [p50, p99] = [0.5, 0.99].map(|part| one.percentile_us(part) / 1e3);
            format!("{:.0} ({p50:.2}/{p99:.2})", one.per_second())
        };
        let share = |other: &Measured| 100.0 * ours.per_second() / other.per_second();
        println!(
            "| {door} | {callers} | {} | {} | {} | {:.0} % | {:.0} % |",
            text(bare),
            text(embedded),
            text(ours),
            share(bare),
            share(embedded)
        );
    }
}
