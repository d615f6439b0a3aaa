//! RabbitMQ 4, the real server: the contract of the bus case by case, and what this version does otherwise than 3.10. A short
//! schedule: the shape without the management API, and all else that a broker can do to us, is tried on the installed one.
//! Where it cannot be had, each case is listed as ignored.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stdout, reason = "the harness tells what it ran")]

#[allow(dead_code, unused_imports, reason = "the cases of 3.10 use more of it")]
#[path = "../rabbitmq/common.rs"]
mod common;
#[path = "../rabbitmq/conformance.rs"]
mod conformance;
#[allow(dead_code, reason = "the cases of 3.10 use more of it")]
#[path = "../harness/mod.rs"]
mod harness;

use std::path::Path;
use std::process::ExitCode;

use common::{Outcome, cases, check, send, text, world};
use sluice_brokers::testing::RabbitServer;
use sluice_bus::{Broker as _, BrokerAdmin as _, Error};

pub(crate) type Server = harness::Shared<RabbitServer>;
pub(crate) type Case = harness::Case<RabbitServer>;

/// The largest message, unless the server is configured otherwise.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

cases! {
    "version_4":
    a_body_of_17_mib_is_refused_with_the_limit_of_the_broker,
}

fn main() -> ExitCode {
    let contract = conformance::cases().into_iter().filter(|case| !case.name.contains("without_management"));
    let contract = contract.map(|case| Case { name: format!("version_4::{}", case.name), ..case });
    let cases = contract.chain(cases()).collect();
    let is_listing = std::env::args().any(|arg| arg == "--list");
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rabbitmq-4");
    let root = if is_listing { Err(String::new()) } else { RabbitServer::version_4(&cache) };
    let missing = root.as_ref().err().map(|why| &*why.clone().leak());
    let start = async move || RabbitServer::start_in(root?).await;
    harness::main(cases, missing, start, "lapin")
}

async fn a_body_of_17_mib_is_refused_with_the_limit_of_the_broker(server: Server) -> Outcome {
    let (_, broker, spec) = world(&server).await?;
    send(&broker, &spec.topic, vec![b'x'; MESSAGE_BYTES_MAX]).await.map_err(text)?;
    let refused = send(&broker, &spec.topic, vec![b'x'; 17 << 20]).await;
    let is_named = matches!(refused, Err(Error::TooLarge { max: MESSAGE_BYTES_MAX, .. }));
    check(is_named && broker.limits().message_bytes_max == MESSAGE_BYTES_MAX, &refused)?;
    send(&broker, &spec.topic, "goes on").await.map_err(text)?;
    broker.remove(&spec).await.map_err(text)
}
