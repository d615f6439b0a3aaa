//! NATS, the real server: every conformance case of the bus by name, then what only a real broker can do to us. Where the
//! program is missing and cannot be fetched, each case is listed as ignored.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stdout, reason = "the harness tells what it ran")]

mod access;
mod conformance;
mod faults;
#[path = "../harness/mod.rs"]
mod harness;
mod holds;

use std::process::ExitCode;

use sluice_brokers::testing::NatsServer;

pub(crate) type Server = harness::Shared<NatsServer>;
pub(crate) type Case = harness::Case<NatsServer>;

fn main() -> ExitCode {
    let cases = [conformance::cases(), faults::cases(), holds::cases(), access::cases()];
    harness::main(
        cases.into_iter().flatten().collect(),
        NatsServer::missing(),
        NatsServer::start,
        "async_nats",
    )
}
