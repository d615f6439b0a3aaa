//! Every effect of a start and of a stop fails before it is done, fails after, is the service's last act before it is done,
//! or after. Whatever happens, the flow ends up fully there or fully gone, and the id can be used again.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::common::{World, status};
use crate::faulty::Fault;

/// One life: started, given work that nobody does, stopped.
async fn live(world: &World, context: &str) {
    start(world, context).await;
    let run = status(&world.get("f1").await)["run"].as_str().unwrap().to_owned();
    let subscriptions = world.subscriptions().await;
    for name in [format!("first--acme--{run}--input"), format!("second--acme--{run}--input")] {
        assert!(subscriptions.contains(&name), "{context}: {name} is not in {subscriptions:?}");
    }
    for n in 0..2 {
        world.publish(&format!("flow:tg:load:acme:{run}"), &format!("{run}-{n}")).await;
    }
    stop(world, context).await;
    world.assert_nothing_left(context).await;
    let letters = world.dead_letters().await;
    let ids: BTreeSet<_> = letters.iter().map(|letter| letter.id.as_str()).collect();
    assert_eq!(ids.len(), 2, "{context}: {letters:?}");
}

/// Asks for a start as a stubborn client does.
async fn start(world: &World, context: &str) {
    let is_up = || async {
        match world.start("f1", "demo").await.error {
            None => true,
            Some(error) if error.message == "Flow already exists" => {
                status(&world.get("f1").await)["phase"] == "Running"
            }
            Some(_) => false,
        }
    };
    world.until(&format!("{context}: started"), is_up).await;
}

async fn stop(world: &World, context: &str) {
    let is_gone =
        || async { world.stop("f1").await.error.is_none_or(|error| error.message == "Flow ID invalid") };
    world.until(&format!("{context}: stopped"), is_gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_survives_a_fault_at_every_step() {
    let recording = World::with_blueprint().await;
    recording.faults.record();
    live(&recording, "the recording").await;
    let effects = recording.faults.effects();
    for must in [
        "ensure ",
        "remove ",
        "config apply quietly put(flow-ledger",
        "config apply put(flow",
        "publish flow:tg:dead-letters:acme",
    ] {
        assert!(effects.iter().any(|effect| effect.starts_with(must)), "no '{must}' in {effects:#?}");
    }
    drop(recording);
    let mut covered = 0;
    for effect in &effects {
        for fault in Fault::ALL {
            let context = format!("{fault:?} at {effect}");
            let world = World::with_blueprint().await;
            world.faults.arm(effect, fault);
            let lives = async {
                live(&world, &context).await;
                assert_eq!(world.faults.fired(), 1, "{context}: was never reached");
                live(&world, &format!("again after {context}")).await;
            };
            let deadline = tokio::time::timeout(Duration::from_secs(120), world.surviving(lives));
            deadline.await.unwrap_or_else(|_| panic!("{context}: hangs"));
            covered += 1;
        }
    }
    let all = effects.len() * Fault::ALL.len();
    println!("covered {covered} of {all}: {} effects, {} faults each", effects.len(), Fault::ALL.len());
    assert_eq!(covered, all);
}

/// `FLOW_SEED=7 cargo test -p sluice-flow random` runs one seed again.
#[tokio::test(flavor = "multi_thread")]
async fn a_flow_survives_many_faults_at_random() {
    let one = std::env::var("FLOW_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    let seeds = one.map_or(1..=8, |seed| seed..=seed);
    let mut fired = 0;
    for seed in seeds {
        println!("FLOW_SEED={seed}");
        let world = World::with_blueprint().await;
        world.faults.strike_at_random(seed);
        let lives = async {
            for n in 0..3 {
                live(&world, &format!("seed {seed}, life {n}")).await;
            }
            world.faults.spare();
            live(&world, &format!("seed {seed}, in peace")).await;
        };
        let deadline = tokio::time::timeout(Duration::from_secs(240), world.surviving(lives));
        deadline.await.unwrap_or_else(|_| panic!("seed {seed}: hangs"));
        fired += world.faults.fired();
    }
    println!("{fired} faults");
    assert!(fired > 0);
}
