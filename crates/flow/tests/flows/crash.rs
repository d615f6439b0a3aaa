//! Every effect of a start and of a stop fails before it is done, fails after, is the service's last act before it is done,
//! or after. Whatever happens, the flow ends up fully there or fully gone, and the id can be used again.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sluice_bus::{BrokerAdmin, TopicSpec};

use crate::common::{World, ok, status, topic};
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
    // What only a successor does.
    let takeover = ["hold flow #1", "config apply quietly put(flow-leader) delete() #1"].map(str::to_owned);
    let mut covered = 0;
    for effect in effects.iter().chain(&takeover) {
        for fault in Fault::of(effect) {
            let context = format!("{fault:?} at {effect}");
            let world = World::with_blueprint().await;
            world.faults.arm(effect, fault);
            if takeover.contains(effect) {
                world.crash().await;
            }
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
    let all = effects.iter().chain(&takeover).map(|effect| Fault::of(effect).len()).sum::<usize>();
    println!("covered {covered} of {all} faults at {} effects", effects.len() + takeover.len());
    assert_eq!(covered, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_slept_through_its_successor_changes_nothing() {
    const LOAD: &str = "flow:tg:load:acme:f1";
    let world = World::with_blueprint().await;
    let _another = world.another().await;
    ok(&world.start("f1", "demo").await);
    world.faults.arm(&format!("remove {LOAD} #1"), Fault::Sleep);
    let stopping = world.stop("f1");
    let losing = async {
        world.faults.asleep.notified().await;
        world.faults.lose_holds();
    };
    let (stopped, ()) = tokio::join!(stopping, losing);
    ok(&stopped);
    world.assert_nothing_left("after the successor's stop").await;
    // Were its call to get through, this would go.
    world.broker.ensure(&TopicSpec::bare(topic(LOAD))).await.unwrap();
    let before = world.topic_names().await;
    world.faults.wake();
    let came_late = || async { world.faults.late_calls.load(Ordering::SeqCst) > 0 };
    world.until("the sleeper's call comes too late", came_late).await;
    assert_eq!(world.topic_names().await, before);
    ok(&world.start("f1", "demo").await);
    assert_eq!(status(&world.get("f1").await)["run"], "f1-r2");
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
