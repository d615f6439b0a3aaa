//! RabbitMQ, the real server: every conformance case of the bus by name, then what only a real broker can do to us.
//! Where the program is missing, each case is listed as ignored.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stdout, reason = "the harness tells what it ran")]

mod common;
mod conformance;
mod faults;
#[path = "../harness/mod.rs"]
mod harness;
mod holds;
mod strangers;
mod tls;
mod together;

use std::process::ExitCode;

use sluice_brokers::testing::RabbitServer;

pub(crate) type Server = harness::Shared<RabbitServer>;
pub(crate) type Case = harness::Case<RabbitServer>;

fn main() -> ExitCode {
    let cases = [
        conformance::cases(),
        faults::cases(),
        together::cases(),
        holds::cases(),
        strangers::cases(),
        tls::cases(),
    ];
    let cases = cases.into_iter().flatten().collect();
    harness::main(cases, RabbitServer::missing(), RabbitServer::start, "lapin")
}
