//! Beside the real thing: processors of TrustGraph 2.11, unchanged, in flows that our flow service starts and stops on a
//! real broker, asked through our gateway.
//!
//! They are installed once, into the folder of builds. Run one case by a part of its name:
//! `cargo test -p sluice --test beside -- killed_at_work`. Where the broker or Python is missing, each case is listed as
//! ignored.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "a test harness reports on standard output")]

use std::process::ExitCode;

use harness::{Asked, Case, Group};
use sluice_brokers::testing::RabbitServer;
use world::World;

#[path = "beside/attached.rs"]
mod attached;
#[path = "beside/blueprint.rs"]
mod blueprint;
#[path = "drop_in/clients.rs"]
mod clients;
#[cfg(feature = "pulsar")]
#[path = "beside/cluster.rs"]
mod cluster;
mod common;
#[path = "drop_in/harness.rs"]
mod harness;
#[cfg(all(feature = "kafka", feature = "pulsar"))]
#[path = "beside/kafkas.rs"]
mod kafkas;
#[path = "beside/late.rs"]
mod late;
#[path = "drop_in/model.rs"]
mod model;
#[path = "drop_in/program.rs"]
mod program;
#[path = "beside/replicas.rs"]
mod replicas;
#[path = "beside/server.rs"]
mod server;
#[path = "beside/theirs.rs"]
mod theirs;
#[path = "beside/world.rs"]
mod world;

/// A case and what it does.
type Row = (&'static str, fn(&World));

fn main() -> ExitCode {
    // The longest first: they run side by side. All of them twice: the system knows the broker's management API, or it
    // sees only what it asks for by name.
    let blind = "without_management";
    let mut groups = vec![
        Group { start: World::empty, cases: cases("late", late::CASES) },
        Group {
            start: World::empty_without_management,
            cases: cases(&format!("late::{blind}"), late::CASES),
        },
        Group { start: World::attached, cases: cases("attached", attached::CASES) },
        Group {
            start: World::attached_without_management,
            cases: cases(&format!("attached::{blind}"), attached::CASES),
        },
        Group { start: World::empty, cases: cases("replicas", replicas::CASES) },
        Group {
            start: World::empty_without_management,
            cases: cases(&format!("replicas::{blind}"), replicas::CASES),
        },
    ];
    on_pulsar(&mut groups);
    on_kafka(&mut groups);
    let ended = harness::run(&Asked::read(std::env::args().skip(1)), groups);
    server::stop();
    ended
}

/// The same on Pulsar, but for what only a queue of RabbitMQ does: theirs cannot make one again after its removal.
#[cfg(feature = "pulsar")]
fn on_pulsar(groups: &mut Vec<Group<World>>) {
    let missing = || {
        let is_asked = std::env::var("SLUICE_BESIDE").is_ok_and(|on| on == "pulsar");
        let not_asked = (!is_asked).then_some("it takes long: SLUICE_BESIDE=pulsar runs it");
        not_asked.or_else(cluster::missing).or_else(clients::python_missing)
    };
    for (start, prefix, rows) in [
        (
            World::attached_on_pulsar as fn() -> World,
            "attached::on_pulsar",
            &[attached::CASES, attached::COMPLETION_CASES].concat(),
        ),
        (World::empty_on_pulsar, "replicas::on_pulsar", &replicas::CASES.to_vec()),
        (World::empty_on_pulsar, "late::on_pulsar", &late::CASES[..1].to_vec()),
    ] {
        let cases = cases(prefix, rows).into_iter().map(|case| Case { missing, ..case });
        groups.push(Group { start, cases: cases.collect() });
    }
}

#[cfg(not(feature = "pulsar"))]
fn on_pulsar(_groups: &mut Vec<Group<World>>) {}

/// The same on Kafka, but for what needs two readers of one subscription at work.
#[cfg(all(feature = "kafka", feature = "pulsar"))]
fn on_kafka(groups: &mut Vec<Group<World>>) {
    let missing = || {
        let is_asked = std::env::var("SLUICE_BESIDE").is_ok_and(|on| on == "kafka");
        let not_asked = (!is_asked).then_some("it takes long: SLUICE_BESIDE=kafka runs it");
        not_asked.or_else(kafkas::missing).or_else(clients::python_missing)
    };
    for (start, prefix, rows) in [
        (
            World::attached_on_kafka as fn() -> World,
            "attached::on_kafka",
            &[attached::CASES, attached::COMPLETION_CASES].concat(),
        ),
        (World::empty_on_kafka, "replicas::on_kafka", &replicas::CASES[..2].to_vec()),
        (World::empty_on_kafka, "late::on_kafka", &late::CASES[..1].to_vec()),
    ] {
        let cases = cases(prefix, rows).into_iter().map(|case| Case { missing, ..case });
        groups.push(Group { start, cases: cases.collect() });
    }
}

#[cfg(not(all(feature = "kafka", feature = "pulsar")))]
fn on_kafka(_groups: &mut Vec<Group<World>>) {}

fn cases(prefix: &str, rows: &[Row]) -> Vec<Case<World>> {
    let case = |&(name, run): &Row| Case { name: format!("{prefix}::{name}"), missing, run: Box::new(run) };
    rows.iter().map(case).collect()
}

/// Names what is missing, if anything is.
fn missing() -> Option<&'static str> {
    RabbitServer::missing().map(|_| "rabbitmq-server").or_else(clients::python_missing)
}
