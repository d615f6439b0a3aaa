//! Calls over RabbitMQ: our ends, with 1, 16 and 64 at once, beside a bare client that makes the same two hops with the
//! same confirmations in the same run. `SLUICE_BENCH_CHANNELS` takes the place of the number of publishing channels.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench tells what it measured, or ends")]
#![allow(clippy::disallowed_methods, reason = "tasks end with the run")]

mod bare;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bare::Bare;
use futures_util::StreamExt;
use sluice_brokers::RabbitMq;
use sluice_brokers::testing::RabbitServer;
use sluice_bus::{
    Address, Broker, BrokerAdmin, InboxAddress, Message, Patience, Replies, Subscription, TopicSpec, property,
};
use sluice_schema::{Class, Topic};
use tokio_util::sync::CancellationToken;

const CALLS: usize = 4_000;
const AT_ONCE: [usize; 3] = [1, 16, 64];
const PREFETCHES: [u32; 3] = [1, 16, 64];
const BODY: &str = r#"{"operation": "completion", "system": "s", "prompt": "Say hello", "streaming": false}"#;

fn main() {
    // `cargo test` runs benches too, to see that they build.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    if let Some(why) = RabbitServer::missing() {
        println!("round_trip: not measured, {why}");
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(measure());
}

async fn measure() {
    let server = RabbitServer::start().await.unwrap();
    let vhost = server.vhost().await.unwrap();
    for prefetch in PREFETCHES {
        let ours = Ours::start(&server, &vhost, prefetch).await;
        let bare = Bare::start(&server.url(&vhost), u16::try_from(prefetch).unwrap(), BODY).await;
        let bare = Arc::new(bare);
        for at_once in AT_ONCE {
            // Both warm up; then each runs twice, in turns, and the better run counts.
            let mut best = [0.0_f64; 2];
            for round in 0..3 {
                let rates = [ours.rate(at_once).await, bare_rate(&bare, at_once).await];
                if round > 0 {
                    best = [best[0].max(rates[0]), best[1].max(rates[1])];
                }
            }
            println!(
                "prefetch {prefetch:>2}, {at_once:>2} at once: ours {:>6.0}/s, bare {:>6.0}/s, ratio {:.2}",
                best[0],
                best[1],
                best[0] / best[1]
            );
        }
        bare.close().await;
        ours.stop.cancel();
    }
}

/// Runs calls, so many at once; answers how many a second.
async fn rate<F: Future<Output = ()> + Send + 'static>(at_once: usize, call: impl Fn() -> F) -> f64 {
    let calls = CALLS / (64 / at_once).clamp(1, 8);
    let started = Instant::now();
    let all = futures_util::stream::iter((0..calls).map(|_| tokio::spawn(call()))).buffer_unordered(at_once);
    all.for_each(|done| async { done.unwrap() }).await;
    calls as f64 / started.elapsed().as_secs_f64()
}

async fn bare_rate(bare: &Arc<Bare>, at_once: usize) -> f64 {
    rate(at_once, || {
        let bare = bare.clone();
        async move { bare.ask().await }
    })
    .await
}

async fn connect(server: &RabbitServer, vhost: &str) -> RabbitMq {
    let mut options = server.options();
    if let Ok(channels) = std::env::var("SLUICE_BENCH_CHANNELS") {
        options.publishing_channels = channels.parse().unwrap();
    }
    RabbitMq::connect(&server.url(vhost), options).await.unwrap()
}

struct Ours {
    replies: Replies,
    request: Topic,
    stop: CancellationToken,
}

impl Ours {
    async fn start(server: &RabbitServer, vhost: &str, prefetch: u32) -> Self {
        let (asker, answerer) = (connect(server, vhost).await, connect(server, vhost).await);
        let request = Topic::tg(Class::Request, format!("ask-{prefetch}")).unwrap();
        asker.ensure(&TopicSpec::with(request.clone(), "answerer")).await.unwrap();
        let name = "answerer".to_owned();
        let to = Subscription::Shared { topic: request.clone(), name, prefetch };
        let inbox = answerer.subscribe(&to).await.unwrap();
        let answerer = Arc::new(answerer);
        tokio::spawn(async move {
            while let Ok(delivery) = inbox.next().await {
                let answerer = answerer.clone();
                tokio::spawn(async move {
                    let to = delivery.message.get(property::REPLY_TO).unwrap().into();
                    let answer = Message::new(delivery.message.body.clone())
                        .with(property::ID, delivery.message.get(property::ID).unwrap());
                    answerer.publish(&Address::Inbox(InboxAddress(to)), answer).await.unwrap();
                    delivery.ack();
                });
            }
        });
        let (replies, stop) = (Replies::new(Arc::new(asker)), CancellationToken::new());
        tokio::spawn(replies.clone().run(stop.clone()));
        Self { replies, request, stop }
    }

    async fn rate(&self, at_once: usize) -> f64 {
        rate(at_once, || {
            let (replies, request) = (self.replies.clone(), self.request.clone());
            async move {
                let patience = Patience::total(Duration::from_secs(30));
                let mut call = replies.ask(&request, Message::new(BODY), patience).await.unwrap();
                call.next().await.unwrap();
            }
        })
        .await
    }
}
