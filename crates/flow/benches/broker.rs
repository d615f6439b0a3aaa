//! How long start-flow and stop-flow take on a real broker, beside bare declares and deletes of the same topics and subscriptions,
//! sixteen side by side, in the same run. Words on the command line choose among the brokers by their names. Run with
//! `cargo bench -p sluice-flow --features kafka,nats,pulsar --bench broker`.

#![allow(clippy::unwrap_used, reason = "a bench")]
#![allow(clippy::print_stdout, reason = "a bench prints")]

#[path = "../tests/scale/world.rs"]
mod world;

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use sluice_brokers::Connection;
use sluice_brokers::testing::{Declares, RabbitServer};
use sluice_bus::TopicSpec;
use world::{World, topics};

const SIZES: [usize; 3] = [5, 50, 200];
const ROUNDS: usize = 9;
/// Bare calls side by side.
const LANES: usize = 16;

/// A broker of its own for the run.
trait Kind: Sized {
    const NAME: &'static str;
    /// Why there can be none here; `None` when there can.
    fn missing() -> Option<&'static str>;
    async fn start() -> Self;
    async fn connect(&self) -> Connection;
    async fn bare(&self) -> impl Declares;
}

fn main() {
    // `cargo test` runs benches too, to see that they start.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    println!(
        "broker    processors  start ms  bare ms  ratio   stop ms  bare ms  ratio   (medians of {ROUNDS})"
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

async fn measure<K: Kind>() {
    let server = K::start().await;
    let world = World::new(server.connect().await, &SIZES).await;
    let bare = server.bare().await;
    for size in SIZES {
        let [mut start, mut stop, mut make, mut remove] = [const { Vec::new() }; 4];
        for round in 0..ROUNDS {
            let specs = topics(size, &format!("bare-{round}"));
            make.push(timed(each(&specs, |spec| bare.make(spec))).await);
            remove.push(timed(each(&specs, |spec| bare.remove(spec))).await);
            let id = format!("of-{size}-{round}");
            start.push(timed(world.start(&id, size)).await);
            stop.push(timed(world.stop(&id)).await);
        }
        let [start, stop, make, remove] = [start, stop, make, remove].map(median);
        println!(
            "{:<8}  {size:>10}  {:>8.1}  {:>7.1}  {:>5.2}  {:>8.1}  {:>7.1}  {:>5.2}",
            K::NAME,
            ms(start),
            ms(make),
            ms(start) / ms(make),
            ms(stop),
            ms(remove),
            ms(stop) / ms(remove)
        );
    }
    bare.close().await;
    world.end().await;
}

async fn each<'a, F>(specs: &'a [TopicSpec], call: impl Fn(&'a TopicSpec) -> F)
where
    F: Future<Output = Result<(), String>>,
{
    let call = &call;
    let lane = |n: usize| async move {
        for spec in specs.iter().skip(n).step_by(LANES) {
            call(spec).await?;
        }
        Ok::<_, String>(())
    };
    try_join_all((0..LANES).map(lane)).await.unwrap();
}

async fn timed(work: impl Future<Output = ()>) -> Duration {
    let begun = Instant::now();
    work.await;
    begun.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
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

    async fn connect(&self) -> Connection {
        world::connect(&self.server, &self.vhost).await
    }

    async fn bare(&self) -> impl Declares {
        self.server.declares(&self.vhost).await.unwrap()
    }
}

#[cfg(any(feature = "kafka", feature = "nats", feature = "pulsar"))]
async fn connect(url: &str) -> Connection {
    sluice_brokers::connect(url, sluice_brokers::Settings::default()).await.unwrap()
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

    async fn connect(&self) -> Connection {
        connect(&self.url()).await
    }

    async fn bare(&self) -> impl Declares {
        self.declares().await.unwrap()
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

    async fn connect(&self) -> Connection {
        connect(&self.url()).await
    }

    async fn bare(&self) -> impl Declares {
        self.declares()
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

    async fn connect(&self) -> Connection {
        connect(&self.url()).await
    }

    async fn bare(&self) -> impl Declares {
        self.declares().await.unwrap()
    }
}
