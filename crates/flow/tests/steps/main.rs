//! Every fault at every step of the flow service, as `tests/flows` has them, at a real broker, with its management API and
//! without. Where the server is missing, the case is listed as ignored. `SLUICE_STEPS=all` covers every effect, not only the
//! first of each kind.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should end")]
#![allow(clippy::print_stdout, reason = "a test tells how it went")]

#[path = "../flows/common.rs"]
#[allow(dead_code, reason = "the flow tests need more of it")]
mod common;
#[path = "../flows/faulty.rs"]
#[allow(dead_code, reason = "the flow tests need more of it")]
mod faulty;
#[path = "../flows/ground.rs"]
mod ground;
#[path = "../flows/steps.rs"]
mod steps;

use std::sync::Arc;

use ground::{Ground, Shape};
use sluice_brokers::testing::RabbitServer;
use steps::Extent;

const NAME: &str = stringify!(a_flow_survives_a_fault_at_every_step_at_a_real_broker);
/// Worlds at once: some of their time they wait.
const AT_ONCE: usize = 16;

fn main() {
    // What `cargo test` passes on: a listing, or part of a name.
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        return println!("{NAME}: test");
    }
    let mut wanted = args.iter().filter(|arg| !arg.starts_with('-')).peekable();
    if wanted.peek().is_some() && !wanted.any(|arg| NAME.contains(arg.as_str())) {
        return;
    }
    if let Some(why) = RabbitServer::missing() {
        return println!("test {NAME} ... ignored, {why}");
    }
    let is_all = std::env::var("SLUICE_STEPS").is_ok_and(|steps| steps == "all");
    let extent = if is_all { Extent::All } else { Extent::Kinds };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(a_flow_survives_a_fault_at_every_step_at_a_real_broker(extent));
    println!("test {NAME} ... ok");
}

async fn a_flow_survives_a_fault_at_every_step_at_a_real_broker(extent: Extent) {
    let server = Arc::new(RabbitServer::start().await.unwrap());
    for shape in [Shape::WithManagement, Shape::WithoutManagement] {
        let ground = Ground::RabbitMq(server.clone(), shape);
        println!("{shape:?}\n{}", steps::cover(&ground, AT_ONCE, extent).await);
    }
}
