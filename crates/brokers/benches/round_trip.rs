//! Calls over each broker: our ends, with 1, 16 and 64 at once, beside its client library alone that makes the same two hops
//! with the same confirmations. Both are asked in turns in the same run, and each begins as often as the other.
//!
//! Words on the command line choose among the brokers by their names. `SLUICE_BENCH_PREFETCH=1,16,64` takes other prefetches
//! than the one that services use, `SLUICE_BENCH_TURNS` another number of turns, and `SLUICE_BENCH_CHANNELS` the place of
//! RabbitMQ's number of publishing channels.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench tells what it measured, or ends")]
#![allow(clippy::disallowed_methods, reason = "tasks end with the run")]

mod bare;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bare::Bare;
use futures_util::future::join_all;
use sluice_brokers::RabbitMq;
use sluice_brokers::testing::RabbitServer;
use sluice_bus::conformance::Ends;
use sluice_bus::{Address, InboxAddress, Message, Patience, Replies, Subscription, TopicSpec, property};
use sluice_schema::{Class, Topic};
use tokio_util::sync::CancellationToken;

const AT_ONCE: [usize; 3] = [1, 16, 64];
/// What services have.
const PREFETCH: &str = "64";
const TURNS: usize = 21;
const TURN: Duration = Duration::from_millis(500);
const ASK_TIMEOUT: Duration = Duration::from_secs(30);
const BODY: &str = r#"{"operation": "completion", "system": "s", "prompt": "Say hello", "streaming": false}"#;

/// A broker of its own for the run.
trait Kind: Sized {
    const NAME: &'static str;
    /// Why there can be none here; `None` when there can.
    fn missing() -> Option<&'static str>;
    async fn start() -> Self;
    /// Our ends, with connections of their own.
    async fn ends(&self) -> Ends;
    async fn bare(&self, prefetch: u32) -> impl Bare + 'static;
}

fn main() {
    // `cargo test` runs benches too, to see that they build.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    println!(
        "medians of {} turns of {} ms each, and in brackets the quartiles of the ratios of two turns",
        turns(),
        TURN.as_millis()
    );
    run::<Rabbit>();
    #[cfg(feature = "nats")]
    run::<sluice_brokers::testing::NatsServer>();
    #[cfg(feature = "pulsar")]
    run::<sluice_brokers::testing::PulsarServer>();
    #[cfg(feature = "kafka")]
    run::<sluice_brokers::testing::KafkaServer>();
}

fn run<K: Kind>() {
    let is_asked_for = |word: &String| K::NAME.to_lowercase().contains(&word.to_lowercase());
    let mut words = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).peekable();
    if words.peek().is_some() && !words.any(|word| is_asked_for(&word)) {
        return;
    }
    match K::missing() {
        Some(why) => println!("{}: not measured, {why}", K::NAME),
        None => tokio::runtime::Runtime::new().unwrap().block_on(measure::<K>()),
    }
}

fn turns() -> usize {
    std::env::var("SLUICE_BENCH_TURNS").map_or(TURNS, |turns| turns.parse().unwrap())
}

async fn measure<K: Kind>() {
    let server = K::start().await;
    let prefetches = std::env::var("SLUICE_BENCH_PREFETCH").unwrap_or_else(|_| PREFETCH.to_owned());
    for prefetch in prefetches.split(',').map(|prefetch| prefetch.parse().unwrap()) {
        let ours = Ours::start(&server, prefetch).await;
        let bare = Arc::new(server.bare(prefetch).await);
        for at_once in AT_ONCE {
            // Both warm up.
            ours.rate(at_once).await;
            bare_rate(&bare, at_once).await;
            let (mut of_ours, mut of_bare) = (Vec::new(), Vec::new());
            for turn in 0..turns() {
                if turn % 2 == 0 {
                    of_ours.push(ours.rate(at_once).await);
                }
                of_bare.push(bare_rate(&bare, at_once).await);
                if turn % 2 == 1 {
                    of_ours.push(ours.rate(at_once).await);
                }
            }
            println!(
                "{:<8} prefetch {prefetch:>2}, {at_once:>2} at once: {}",
                K::NAME,
                told(of_ours, of_bare)
            );
        }
        bare.close().await;
        ours.stop.cancel();
    }
}

fn told(ours: Vec<f64>, bare: Vec<f64>) -> String {
    let pairs = sorted(ours.iter().zip(&bare).map(|(ours, bare)| ours / bare).collect());
    let (ours, bare) = (sorted(ours), sorted(bare));
    let quartile = |all: &[f64], which: usize| all[all.len() * which / 4];
    let (ours, bare) = (quartile(&ours, 2), quartile(&bare, 2));
    format!(
        "ours {ours:>6.0}/s, bare {bare:>6.0}/s, ratio {:.2} ({:.2}–{:.2})",
        ours / bare,
        quartile(&pairs, 1),
        quartile(&pairs, 3)
    )
}

fn sorted(mut all: Vec<f64>) -> Vec<f64> {
    all.sort_by(f64::total_cmp);
    all
}

/// Runs calls for a turn, so many at once; answers how many a second.
async fn rate<F: Future<Output = ()> + Send + 'static>(
    at_once: usize,
    call: impl Fn() -> F + Clone + Send + 'static,
) -> f64 {
    let started = Instant::now();
    let callers = (0..at_once).map(|_| {
        let call = call.clone();
        tokio::spawn(async move {
            let mut calls = 0_u32;
            while started.elapsed() < TURN {
                call().await;
                calls += 1;
            }
            calls
        })
    });
    let calls: u32 = join_all(callers).await.into_iter().map(Result::unwrap).sum();
    f64::from(calls) / started.elapsed().as_secs_f64()
}

async fn bare_rate(bare: &Arc<impl Bare + 'static>, at_once: usize) -> f64 {
    let bare = bare.clone();
    rate(at_once, move || {
        let bare = bare.clone();
        async move { bare.ask().await }
    })
    .await
}

struct Ours {
    replies: Replies,
    request: Topic,
    stop: CancellationToken,
}

impl Ours {
    async fn start(server: &impl Kind, prefetch: u32) -> Self {
        let (asker, answerer) = (server.ends().await, server.ends().await);
        let request = Topic::tg(Class::Request, format!("ask-{prefetch}")).unwrap();
        asker.admin.ensure(&TopicSpec::with(request.clone(), "answerer")).await.unwrap();
        let name = "answerer".to_owned();
        let to = Subscription::Shared { topic: request.clone(), name, prefetch };
        let (inbox, answerer) = (answerer.broker.subscribe(&to).await.unwrap(), answerer.broker);
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
        let (replies, stop) = (Replies::new(asker.broker), CancellationToken::new());
        tokio::spawn(replies.clone().run(stop.clone()));
        Self { replies, request, stop }
    }

    async fn rate(&self, at_once: usize) -> f64 {
        let (replies, request) = (self.replies.clone(), self.request.clone());
        rate(at_once, move || {
            let (replies, request) = (replies.clone(), request.clone());
            async move {
                let patience = Patience::total(ASK_TIMEOUT);
                let mut call = replies.ask(&request, Message::new(BODY), patience).await.unwrap();
                call.next().await.unwrap();
            }
        })
        .await
    }
}

struct Rabbit {
    server: RabbitServer,
    vhost: String,
}

impl Kind for Rabbit {
    const NAME: &'static str = "RabbitMQ";

    fn missing() -> Option<&'static str> {
        RabbitServer::missing()
    }

    async fn start() -> Self {
        let server = RabbitServer::start().await.unwrap();
        let vhost = server.vhost().await.unwrap();
        Self { server, vhost }
    }

    async fn ends(&self) -> Ends {
        let mut options = self.server.options();
        if let Ok(channels) = std::env::var("SLUICE_BENCH_CHANNELS") {
            options.publishing_channels = channels.parse().unwrap();
        }
        let ends = Arc::new(RabbitMq::connect(&self.server.url(&self.vhost), options).await.unwrap());
        Ends { broker: ends.clone(), admin: ends }
    }

    async fn bare(&self, prefetch: u32) -> impl Bare + 'static {
        let prefetch = u16::try_from(prefetch).unwrap();
        bare::rabbitmq::Rabbit::start(&self.server.url(&self.vhost), prefetch, BODY).await
    }
}

#[cfg(any(feature = "kafka", feature = "nats", feature = "pulsar"))]
async fn ends(url: &str) -> Ends {
    let connection = sluice_brokers::connect(url, sluice_brokers::Settings::default()).await.unwrap();
    Ends { broker: connection.broker, admin: connection.admin }
}

/// Without `scheme://` and what follows the port.
#[cfg(any(feature = "kafka", feature = "pulsar"))]
fn host(url: &str) -> &str {
    let host = url.split_once("://").unwrap().1;
    host.split_once('?').map_or(host, |(host, _)| host)
}

#[cfg(feature = "nats")]
impl Kind for sluice_brokers::testing::NatsServer {
    const NAME: &'static str = "NATS";

    fn missing() -> Option<&'static str> {
        Self::missing()
    }

    async fn start() -> Self {
        Self::start().await.unwrap()
    }

    async fn ends(&self) -> Ends {
        ends(&self.url()).await
    }

    async fn bare(&self, prefetch: u32) -> impl Bare + 'static {
        bare::nats::Nats::start(&self.url(), prefetch, BODY).await
    }
}

#[cfg(feature = "pulsar")]
impl Kind for sluice_brokers::testing::PulsarServer {
    const NAME: &'static str = "Pulsar";

    fn missing() -> Option<&'static str> {
        Self::missing()
    }

    async fn start() -> Self {
        Self::start().await.unwrap()
    }

    async fn ends(&self) -> Ends {
        ends(&self.url()).await
    }

    async fn bare(&self, prefetch: u32) -> impl Bare + 'static {
        bare::pulsar::Pulsar::start(host(&self.url()), prefetch, BODY).await
    }
}

#[cfg(feature = "kafka")]
impl Kind for sluice_brokers::testing::KafkaServer {
    const NAME: &'static str = "Kafka";

    fn missing() -> Option<&'static str> {
        Self::missing()
    }

    async fn start() -> Self {
        Self::start().await.unwrap()
    }

    async fn ends(&self) -> Ends {
        ends(&self.url()).await
    }

    async fn bare(&self, prefetch: u32) -> impl Bare + 'static {
        bare::kafka::Kafka::start(host(&self.url()), prefetch, BODY).await
    }
}
