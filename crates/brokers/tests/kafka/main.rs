//! Kafka, the real broker: every conformance case of the bus by name, then what only a real broker can do to us. Where the program
//! is missing and cannot be fetched, each case is listed as ignored.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stdout, reason = "the harness tells what it ran")]

mod access;
mod beside;
mod conformance;
mod faults;
#[path = "../harness/mod.rs"]
mod harness;
mod holds;
mod victim;

use std::process::ExitCode;

use sluice_brokers::testing::KafkaServer;

pub(crate) type Server = harness::Shared<KafkaServer>;
pub(crate) type Case = harness::Case<KafkaServer>;

fn main() -> ExitCode {
    if let Some(ended) = victim::role() {
        return ended;
    }
    let cases = [conformance::cases(), faults::cases(), beside::cases(), holds::cases(), access::cases()];
    harness::main(
        cases.into_iter().flatten().collect(),
        KafkaServer::missing(),
        KafkaServer::start,
        "krafka=off,sluice_brokers",
    )
}
