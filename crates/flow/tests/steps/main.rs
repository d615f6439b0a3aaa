//! Every fault at every step of the flow service, as `tests/flows` has them, at real brokers: RabbitMQ with its management API
//! and without, NATS, Pulsar and Kafka. Where a server is missing, or the build has no link for it, its case is listed as
//! ignored. At RabbitMQ and NATS the first effect of each kind is covered, at Pulsar and Kafka, where worlds wait for each other, the
//! first topic that is made; `SLUICE_STEPS=kinds` and `SLUICE_STEPS=all` cover as much at every broker: of each kind the first, or
//! every effect.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should end")]
#![allow(clippy::print_stdout, reason = "a test tells how it went")]

#[path = "../flows/common.rs"]
#[allow(dead_code, reason = "the flow tests need more of it")]
mod common;
#[path = "../flows/faulty.rs"]
#[allow(dead_code, reason = "the flow tests need more of it")]
mod faulty;
#[path = "../flows/ground.rs"]
#[allow(dead_code, reason = "the flow tests need more of it")]
mod ground;
#[path = "../flows/steps.rs"]
#[allow(dead_code, reason = "the flow tests need more of it")]
mod steps;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;

use ground::{Ground, Shape};
#[cfg(feature = "kafka")]
use sluice_brokers::testing::KafkaServer;
#[cfg(feature = "nats")]
use sluice_brokers::testing::NatsServer;
#[cfg(feature = "pulsar")]
use sluice_brokers::testing::PulsarServer;
use sluice_brokers::testing::RabbitServer;
use steps::Extent;
use tokio::runtime::Runtime;

/// Worlds at once, where they are apart: some of their time they wait.
const AT_ONCE: usize = 16;
/// Servers, and so worlds at once, where a server is too dear for one world.
#[cfg(any(feature = "kafka", feature = "pulsar"))]
const SERVERS: usize = 3;

#[derive(Clone, Copy)]
enum Product {
    RabbitMq,
    Nats,
    Pulsar,
    Kafka,
}

const CASES: &[(&str, Product)] = &[
    ("a_flow_survives_a_fault_at_every_step_at_a_real_broker", Product::RabbitMq),
    ("a_flow_survives_a_fault_at_every_step_on_nats", Product::Nats),
    ("a_flow_survives_a_fault_at_every_step_on_pulsar", Product::Pulsar),
    ("a_flow_survives_a_fault_at_every_step_on_kafka", Product::Kafka),
];

fn main() -> ExitCode {
    // What `cargo test` passes on: a listing, or part of a name.
    let args: Vec<String> = std::env::args().skip(1).collect();
    let wanted: Vec<_> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let cases = CASES.iter().filter(|(name, _)| is_wanted(name));
    if args.iter().any(|arg| arg == "--list") {
        cases.for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let extent = match std::env::var("SLUICE_STEPS").as_deref() {
        Ok("all") => Some(Extent::All),
        Ok("kinds") => Some(Extent::Kinds),
        _ => None,
    };
    let runtime = Runtime::new().unwrap();
    let mut failed = false;
    for (name, product) in cases {
        if let Some(why) = product.missing() {
            println!("test {name} ... ignored, {why}");
            continue;
        }
        let is_ok = catch_unwind(AssertUnwindSafe(|| runtime.block_on(product.survive(extent)))).is_ok();
        println!("test {name} ... {}", if is_ok { "ok" } else { "FAILED" });
        failed |= !is_ok;
    }
    if failed { ExitCode::from(101) } else { ExitCode::SUCCESS }
}

impl Product {
    /// Why it cannot be tried here; `None` where it can.
    fn missing(self) -> Option<&'static str> {
        match self {
            Self::RabbitMq => RabbitServer::missing(),
            #[cfg(feature = "nats")]
            Self::Nats => NatsServer::missing(),
            #[cfg(feature = "pulsar")]
            Self::Pulsar => PulsarServer::missing(),
            #[cfg(feature = "kafka")]
            Self::Kafka => KafkaServer::missing(),
            #[cfg(not(feature = "nats"))]
            Self::Nats => Some("that takes a build with the feature 'nats'"),
            #[cfg(not(feature = "pulsar"))]
            Self::Pulsar => Some("that takes a build with the feature 'pulsar'"),
            #[cfg(not(feature = "kafka"))]
            Self::Kafka => Some("that takes a build with the feature 'kafka'"),
        }
    }

    /// Covers so much of it, or as much as there is time for.
    async fn survive(self, extent: Option<Extent>) {
        match self {
            Self::RabbitMq => {
                let server = Arc::new(RabbitServer::start().await.unwrap());
                for shape in [Shape::WithManagement, Shape::WithoutManagement] {
                    let ground = Ground::RabbitMq(server.clone(), shape);
                    let covered = steps::cover(&ground, AT_ONCE, extent.unwrap_or(Extent::Kinds)).await;
                    println!("{shape:?}\n{covered}");
                }
            }
            #[cfg(feature = "nats")]
            Self::Nats => {
                let extent = extent.unwrap_or(Extent::Kinds);
                println!("{}", steps::cover(&Ground::Nats, AT_ONCE, extent).await);
            }
            #[cfg(feature = "pulsar")]
            Self::Pulsar => {
                let ground = Ground::Pulsar(servers(PulsarServer::start).await);
                println!("{}", steps::cover(&ground, SERVERS, extent.unwrap_or(Extent::First)).await);
            }
            #[cfg(feature = "kafka")]
            Self::Kafka => {
                let ground = Ground::Kafka(servers(KafkaServer::start).await);
                println!("{}", steps::cover(&ground, SERVERS, extent.unwrap_or(Extent::First)).await);
            }
            #[cfg(not(feature = "nats"))]
            Self::Nats => unreachable!("it is missing"),
            #[cfg(not(feature = "pulsar"))]
            Self::Pulsar => unreachable!("it is missing"),
            #[cfg(not(feature = "kafka"))]
            Self::Kafka => unreachable!("it is missing"),
        }
    }
}

#[cfg(any(feature = "kafka", feature = "pulsar"))]
async fn servers<S, F: Future<Output = Result<S, String>>>(start: fn() -> F) -> Arc<ground::Pool<S>> {
    let started = futures_util::future::try_join_all((0..SERVERS).map(|_| start())).await;
    ground::Pool::new(started.unwrap())
}
