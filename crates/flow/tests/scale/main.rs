//! Many flows at once on a real broker: all start, all stop, nothing is left. `SLUICE_SCALE_FLOWS=500` runs as many.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]
#![allow(clippy::print_stdout, reason = "a test tells how it went")]

mod world;

use std::time::Instant;

use futures_util::{StreamExt, stream};
use sluice_brokers::testing::RabbitServer;
use world::{World, connect};

const NAME: &str = "many_flows_of_forty_processors_start_stop_and_leave_nothing";
const PROCESSORS: usize = 40;
/// Callers at once.
const CALLERS: usize = 16;

fn main() {
    // What `cargo test` passes on: a listing, or part of a name.
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        return println!("{NAME}: test");
    }
    if args.iter().any(|arg| !arg.starts_with('-') && !NAME.contains(arg.as_str())) {
        return;
    }
    if let Some(why) = RabbitServer::missing() {
        return println!("test {NAME} ... ignored, {why}");
    }
    let flows = std::env::var("SLUICE_SCALE_FLOWS").map_or(50, |flows| flows.parse().unwrap());
    tokio::runtime::Runtime::new().unwrap().block_on(many(flows));
    println!("test {NAME} ... ok");
}

async fn many(flows: usize) {
    let server = RabbitServer::start().await.unwrap();
    let vhost = server.vhost().await.unwrap();
    let world = World::new(connect(&server, &vhost).await, &[PROCESSORS]).await;
    let ids: Vec<_> = (0..flows).map(|n| format!("f{n}")).collect();
    let begun = Instant::now();
    stream::iter(&ids).for_each_concurrent(CALLERS, |id| world.start(id, PROCESSORS)).await;
    let started = begun.elapsed();
    // An exchange per stage and one for the last output; a queue per stage.
    assert_eq!(names(&server, &vhost).await.len(), flows * (2 * PROCESSORS + 1));
    let begun = Instant::now();
    stream::iter(&ids).for_each_concurrent(CALLERS, |id| world.stop(id)).await;
    let stopped = begun.elapsed();
    assert_eq!(names(&server, &vhost).await, Vec::<String>::new());
    println!("{flows} flows of {PROCESSORS} processors: started in {started:.1?}, stopped in {stopped:.1?}");
    world.end().await;
}

/// Exchanges and queues of flows that the broker has.
async fn names(server: &RabbitServer, vhost: &str) -> Vec<String> {
    let mut names = server.names(vhost).await.unwrap();
    names.retain(|name| name.starts_with("tg.flow.stage-"));
    names
}
