//! Whole systems on servers that are features of the build, NATS, Pulsar and Kafka, through the binary: each case on each of them.
//! Where a build does not know a kind of server, or there is none and it cannot be fetched, its cases are listed as ignored.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "common/asking.rs"]
mod asking;
mod common;
#[path = "common/door.rs"]
mod door;
#[path = "brokers/healing.rs"]
mod healing;
#[path = "common/kills.rs"]
mod kills;
#[path = "brokers/load.rs"]
mod load;
#[path = "brokers/server.rs"]
mod server;
#[path = "common/wired.rs"]
mod wired;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use common::cases::Single;
use common::{Up, ends, sluice, text, until};
use healing::what_each_owner_has_is_made_again_whoever_removed_it;
use load::calls_under_way_when_the_server_is_killed_each_end_and_questions_are_answered_again;
use serde_json::Value;
use server::{KINDS, World};

type Case = (&'static str, fn(&mut World));

/// Functions as cases: their names are the sentences.
macro_rules! named {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name)),*] };
}

/// Each has a server of its own.
const CASES: &[Case] = named![
    the_main_job_leaves_nothing_of_the_flow,
    a_second_process_with_data_of_its_own_is_refused_and_takes_over_after_a_kill,
    a_system_goes_on_after_server_and_system_were_killed,
    a_stop_with_leftovers_keeps_them,
    what_each_owner_has_is_made_again_whoever_removed_it,
    a_server_is_put_through_every_case_beside_a_running_system,
    messages_sent_before_any_processor_exists_are_all_delivered,
    flows_started_and_stopped_again_and_again_leave_no_topic,
    killed_at_random_moments_it_converges_and_leaves_nothing_at_the_server,
    calls_under_way_when_the_server_is_killed_each_end_and_questions_are_answered_again,
];

/// Times that the system is killed; `SLUICE_KILLS=24` kills more often.
const KILLS: u64 = 3;
/// Times that a flow is started and stopped; `SLUICE_CYCLES=100` does it more often.
const CYCLES: u64 = 5;
/// Messages that are sent before anybody could process them; `SLUICE_MESSAGES=10000` sends more.
const MESSAGES: usize = 300;

fn main() -> ExitCode {
    let on_each = CASES.iter().flat_map(|case| KINDS.iter().map(move |kind| (kind, case)));
    let single = on_each.map(|(kind, (name, run))| Single {
        name: format!("{}: {name}", kind.name),
        missing: (kind.missing)(),
        run: Box::new(move || run(&mut World::start(kind))),
    });
    common::cases::run_each(single.collect())
}

/// What the environment says, or what is done always.
fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(name: &str, default: T) -> T {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn notes(folder: &Path) -> String {
    let notes = folder.join("pump.md");
    std::fs::write(&notes, "# Pump\n\nThe spare key of the pump house hangs behind the blue door.\n")
        .unwrap();
    notes.to_str().unwrap().to_owned()
}

fn finds_the_key(answer: &Value) -> bool {
    answer["response"].as_str().is_some_and(|text| text.contains("blue door"))
}

/// Whether a question is answered with what its document says.
fn answers(up: &Up) -> bool {
    let asked = ["ask", "where is the spare key?", "--flow", "f1", "--timeout", "10", "-o", "json"];
    let output = up.run(&asked);
    output.status.success() && finds_the_key(&serde_json::from_slice(&output.stdout).unwrap())
}

fn the_main_job_leaves_nothing_of_the_flow(world: &mut World) {
    let folder = tempfile::tempdir().unwrap();
    let mut up = world.up(&folder.path().join("data"), &[]);
    let notes = notes(folder.path());
    for run in ["f1", "f1-r2"] {
        up.json(&["flow", "start", "f1", "document-rag"]);
        assert!(!world.left_of(run).is_empty(), "{run} has no topics");
        let added = up.json(&["doc", "add", &notes, "--flow", "f1"]);
        assert_eq!(added["progress"][0]["complete"], true, "{added}");
        let answer = up.json(&["ask", "where is the spare key?", "--flow", "f1"]);
        assert!(finds_the_key(&answer), "{answer}");
        up.stop("f1");
        assert_eq!(world.left_of(run), Vec::<String>::new());
        assert_eq!(up.json(&["flow", "ls"]), Value::Array(Vec::new()));
    }
    let doctor = up.run(&["doctor", "-o", "json"]);
    assert!(doctor.status.success(), "{}", text(&doctor));
    assert_eq!(up.terminate(), 0);
}

fn a_second_process_with_data_of_its_own_is_refused_and_takes_over_after_a_kill(world: &mut World) {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let mut first = world.up(&one, &[]);
    let data = two.to_str().unwrap();
    let second = sluice()
        .args(["up", "--listen", "127.0.0.1:0", "--data", data, "--broker", &world.url()])
        .output()
        .unwrap();
    ends(&second, 1, &format!("process {}", first.pid()));
    first.kill();
    // At once: it waits until what was held is let go.
    let mut again = world.up(&one, &[]);
    assert_eq!(again.terminate(), 0);
}

fn a_system_goes_on_after_server_and_system_were_killed(world: &mut World) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut first = world.up(&data, &[]);
    let notes = notes(folder.path());
    first.json(&["flow", "start", "f1", "document-rag"]);
    first.json(&["doc", "add", &notes, "--flow", "f1"]);
    world.kill();
    world.run();
    until("an answer after the server was killed", || answers(&first), || first.log());
    first.kill();
    let mut again = world.up(&data, &[]);
    until("an answer after the system was killed", || answers(&again), || again.log());
    again.stop("f1");
    assert_eq!(world.left_of("f1"), Vec::<String>::new());
    assert_eq!(again.terminate(), 0);
}

fn a_stop_with_leftovers_keeps_them(world: &mut World) {
    let folder = tempfile::tempdir().unwrap();
    let mut up = world.up(&folder.path().join("data"), &["--without", "chunker"]);
    let notes = notes(folder.path());
    up.json(&["flow", "start", "f1", "document-rag"]);
    let added = up.run(&["doc", "add", &notes, "--flow", "f1", "--no-wait"]);
    assert!(added.status.success(), "{}", text(&added));
    let waits = || up.json(&["flow", "describe", "f1"]).to_string().contains("\"ready\":1");
    until("the document to wait for its chunker", waits, || up.log());
    let stopped = up.stop("f1");
    assert!(stopped.to_string().contains("parked"), "{stopped}");
    assert_eq!(world.left_of("f1"), Vec::<String>::new());
    let kept = || up.json(&["dead", "ls"]).to_string().contains("chunker--");
    until("the letter to be kept", kept, || up.log());
    assert_eq!(up.terminate(), 0);
}

fn a_server_is_put_through_every_case_beside_a_running_system(world: &mut World) {
    let folder = tempfile::tempdir().unwrap();
    let mut up = world.up(&folder.path().join("data"), &[]);
    up.json(&["flow", "start", "f1", "document-rag"]);
    let before = world.topics();
    let tried = sluice().args(["conformance", "-o", "json", "--broker", &world.url()]).output().unwrap();
    ends(&tried, 0, "runs at this server (read there: config-svc");
    let answer: Value = serde_json::from_slice(&tried.stdout).unwrap();
    let product = answer["product"].as_str();
    assert_eq!(product.is_some(), world.kind.product.is_some(), "{answer}");
    assert!(product.unwrap_or_default().starts_with(world.kind.product.unwrap_or_default()), "{answer}");
    let counted = ["failed", "not-run", "not-promised"].map(|result| answer[result].as_u64());
    assert_eq!(counted, [Some(0), Some(3), Some(world.kind.not_promised)], "{answer}");
    let counts = answer["cases"].as_array().unwrap().iter().find(|row| row["case"] == "counts_are_exact");
    let why = counts.unwrap()["why"].as_str().unwrap();
    let left_out = world.kind.counts_without;
    assert_eq!(why.matches("not promised: ").count(), left_out.len(), "{why}");
    assert!(left_out.iter().all(|what| why.contains(&format!("not promised: {what}"))), "{why}");
    assert_eq!(world.topics(), before);
    // What runs there has not noticed.
    let added = up.json(&["doc", "add", &notes(folder.path()), "--flow", "f1"]);
    assert_eq!(added["progress"][0]["complete"], true, "{added}");
    up.stop("f1");
    assert_eq!(up.terminate(), 0);
}

fn messages_sent_before_any_processor_exists_are_all_delivered(world: &mut World) {
    let folder = tempfile::tempdir().unwrap();
    let mut up = world.up(&folder.path().join("data"), &[]);
    let connection = world.connect();
    let messages = number("SLUICE_MESSAGES", MESSAGES);
    wired::are_all_delivered(&up, folder.path(), &world.runtime, &*connection.broker, messages);
    world.runtime.block_on(connection.close());
    assert_eq!(world.left_of("f1"), Vec::<String>::new());
    assert_eq!(up.terminate(), 0);
}

fn flows_started_and_stopped_again_and_again_leave_no_topic(world: &mut World) {
    let folder = tempfile::tempdir().unwrap();
    let mut up = world.up(&folder.path().join("data"), &[]);
    let of_the_system = world.topics();
    for cycle in 1..=number("SLUICE_CYCLES", CYCLES) {
        let run = if cycle == 1 { "f1".to_owned() } else { format!("f1-r{cycle}") };
        up.json(&["flow", "start", "f1", "document-rag"]);
        assert!(!world.left_of(&run).is_empty(), "{run} has no topics");
        up.stop("f1");
        assert_eq!(world.topics(), of_the_system, "after {run}");
    }
    assert_eq!(up.json(&["flow", "ls"]), Value::Array(Vec::new()));
    assert_eq!(kills::entries_of_flows(&up.json(&["config", "show"])), Vec::<String>::new());
    assert_eq!(up.terminate(), 0);
}

fn killed_at_random_moments_it_converges_and_leaves_nothing_at_the_server(world: &mut World) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    assert_eq!(world.up(&data, &[]).terminate(), 0);
    let (of_the_system, kept_in) = (world.topics(), set(world.kept_in()));
    // What a killed process had in hand may count as that for longer than a stop waits.
    let begin = || {
        let mut up = world.up(&data, &[]);
        up.asks_again = true;
        up
    };
    let mut up = kills::kill_again_and_again(begin, KILLS);
    assert_eq!(up.terminate(), 0);
    assert_eq!(world.topics(), of_the_system);
    // Nor has the server itself anything that no link shows; but at Kafka a topic may stay that was not yet on record when the
    // process was killed that made it: docs/kafka.md.
    let left = || set(world.kept_in()).difference(&kept_in).cloned().collect::<Vec<_>>();
    if world.kind.name != "kafka" {
        until("the server to have nothing else", || left().is_empty(), || format!("{:?}", left()));
    }
}

fn set(names: Vec<String>) -> BTreeSet<String> {
    names.into_iter().collect()
}
