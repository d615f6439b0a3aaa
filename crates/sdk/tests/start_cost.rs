//! What a started flow costs the processes that run its processors: one question to the config service each, and an
//! answer that does not grow with the flows that run already.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fleet;

use fleet::{Cost, Fleet, System};
use sluice_bus::Embedded;

const PROCESSORS: usize = 40;

/// A system whose config versions have four digits from now on, so that answers of the same content are as long.
async fn system(broker: &Embedded) -> System {
    let system = System::start(broker.clone()).await;
    system.put_blueprint("b", PROCESSORS).await;
    let mut version = 0;
    while version < 1_000 {
        let put = || system.config.put("w", vec![sluice_sdk::config::value("w", "page", "k", "v")]);
        let versions = futures_util::future::join_all((0..64).map(|_| put())).await;
        version = versions.into_iter().map(Result::unwrap).max().unwrap();
    }
    system
}

/// Starts flows one after the other, with ids of the same length; what each cost the fleet. A question too many shows in the next.
async fn starts(system: &System, fleet: &Fleet<Embedded>, ids: std::ops::Range<usize>) -> Vec<Cost> {
    let mut costs = Vec::new();
    for id in ids {
        let before = fleet.attached_so_far();
        system.start_flow(&format!("f{id}"), "b").await;
        fleet.attached(before + PROCESSORS).await;
        costs.push(fleet.cost());
    }
    costs
}

fn is_one_request_each(costs: &[Cost], processes: u64) {
    let requests: Vec<u64> = costs.iter().map(|cost| cost.requests).collect();
    assert_eq!(requests, vec![processes; costs.len()]);
    let bytes: Vec<u64> = costs.iter().map(|cost| cost.fetched_bytes).collect();
    assert!(bytes[0] > 0, "answers are counted");
    assert_eq!(bytes, vec![bytes[0]; costs.len()], "answers stay as long as the first");
}

#[tokio::test]
async fn each_of_forty_processes_asks_once_per_start_and_the_answers_do_not_grow() {
    let broker = Embedded::in_memory();
    let system = system(&broker).await;
    let fleet = Fleet::start(vec![broker], PROCESSORS, PROCESSORS).await;
    fleet.cost();
    is_one_request_each(&starts(&system, &fleet, 100..150).await, 40);
    fleet.stop().await;
}

#[tokio::test]
async fn a_process_that_runs_forty_processors_and_follows_flows_asks_once_per_start() {
    let broker = Embedded::in_memory();
    let system = system(&broker).await;
    let fleet = Fleet::start(vec![broker], 1, PROCESSORS).await;
    // As a gateway does in the same process.
    fleet.watches[0].ready(&["flow"]).await;
    fleet.cost();
    is_one_request_each(&starts(&system, &fleet, 100..150).await, 1);
    fleet.stop().await;
}
