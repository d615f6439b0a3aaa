//! A system on the embedded broker that is killed at random moments while flows start and stop and documents come in: after
//! each start it converges, and in the end nothing is left. `SLUICE_KILLS=1000` kills more often.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "common/door.rs"]
mod door;
#[path = "common/kills.rs"]
mod kills;

use std::collections::BTreeSet;
use std::path::Path;

use common::Up;
use sluice_bus::{BrokerAdmin as _, Config, Embedded};

const KILLS: u64 = 25;

#[test]
fn killed_at_random_moments_a_system_converges_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    assert_eq!(Up::start(&data).terminate(), 0);
    let of_the_system = topics(&data);
    assert!(!of_the_system.is_empty(), "the system's own topics stay");
    let mut up = kills::kill_again_and_again(|| Up::start(&data), KILLS);
    assert_eq!(up.terminate(), 0);
    let left: Vec<String> = topics(&data).difference(&of_the_system).cloned().collect();
    assert_eq!(left, Vec::<String>::new());
}

/// What the broker's log holds, looked at without the system.
fn topics(data: &Path) -> BTreeSet<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let broker = Embedded::open(Config::in_dir(data.join("broker"))).unwrap();
        let seen = broker.list("").await.unwrap();
        broker.shutdown().await;
        seen.iter().map(|seen| seen.topic.to_string()).collect()
    })
}
