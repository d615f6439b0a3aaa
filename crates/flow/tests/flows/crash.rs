//! Faults at every step, at random ones, and a leader that sleeps, with a broker in this process.

use std::sync::atomic::Ordering;
use std::time::Duration;

use sluice_bus::TopicSpec;

use crate::common::{World, ok, status, topic};
use crate::faulty::Fault;
use crate::ground::Ground;
use crate::steps::{self, Extent, live};

/// Worlds at once: most of their time they wait.
const AT_ONCE: usize = 64;

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_survives_a_fault_at_every_step() {
    println!("{}", steps::cover(&Ground::Embedded, AT_ONCE, Extent::All).await);
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
    world.admin.ensure(&TopicSpec::bare(topic(LOAD))).await.unwrap();
    let before = world.topic_names().await;
    world.faults.wake();
    let came_late = || async { world.faults.late_calls.load(Ordering::SeqCst) > 0 };
    world.until("the sleeper's call comes too late", came_late).await;
    assert_eq!(world.topic_names().await, before);
    ok(&world.start("f1", "demo").await);
    assert_eq!(status(&world.get("f1").await)["run"], "f1-r2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_arrives_after_its_flow_is_gone_changes_nothing() {
    let world = World::with_blueprint().await;
    let _another = world.another().await;
    world.faults.catches_opening.store(true, Ordering::SeqCst);
    let losing = async {
        let is_caught = || async { world.faults.caught.lock().unwrap().is_some() };
        world.until("the leader opens the flow", is_caught).await;
        world.faults.lose_holds();
    };
    let (started, ()) = tokio::join!(world.start("f1", "demo"), losing);
    ok(&started);
    ok(&world.stop("f1").await);
    world.assert_nothing_left("after the successor's stop").await;
    let (to, message) = world.faults.caught.lock().unwrap().take().unwrap();
    world.broker.publish(&to, message).await.unwrap();
    let is_answered = || async {
        let queues =
            world.admin.list("request:tg:config").await.unwrap().into_iter().flat_map(|t| t.subscriptions);
        let waiting: Vec<u64> = queues.map(|queue| queue.ready + queue.unsettled.unwrap()).collect();
        assert!(!waiting.is_empty(), "the config service has a queue");
        waiting.iter().sum::<u64>() == 0
    };
    world.until("the late write is answered", is_answered).await;
    world.assert_nothing_left("after the late write").await;
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
