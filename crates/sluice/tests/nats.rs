//! The main job on a NATS server, through the binary. Where the server is missing and cannot be fetched, each case is listed
//! as ignored.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "the harness tells what it ran")]

#[path = "common/asking.rs"]
mod asking;
mod common;
#[path = "common/door.rs"]
mod door;
#[path = "nats/healing.rs"]
mod healing;
#[path = "common/kills.rs"]
mod kills;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;

use common::{Up, ends, sluice, text, until};
use healing::what_each_owner_has_on_nats_is_made_again_whoever_removed_it;
use serde_json::Value;
use sluice_brokers::nats::{Nats, Options};
use sluice_brokers::testing::NatsServer;
use sluice_bus::BrokerAdmin as _;
use tokio::runtime::Runtime;

type Case = (&'static str, fn(&mut NatsServer, &Runtime));

const CASES: &[Case] = &[
    ("the_main_job_on_nats_leaves_nothing_of_the_flow", the_main_job_on_nats_leaves_nothing_of_the_flow),
    (
        "a_second_process_with_data_of_its_own_is_refused_and_takes_over_after_a_kill",
        a_second_process_with_data_of_its_own_is_refused_and_takes_over_after_a_kill,
    ),
    (
        "a_system_on_nats_goes_on_after_server_and_system_were_killed",
        a_system_on_nats_goes_on_after_server_and_system_were_killed,
    ),
    ("a_stop_on_nats_with_leftovers_keeps_them", a_stop_on_nats_with_leftovers_keeps_them),
    (
        "what_each_owner_has_on_nats_is_made_again_whoever_removed_it",
        what_each_owner_has_on_nats_is_made_again_whoever_removed_it,
    ),
    (
        "a_nats_server_is_put_through_every_case_beside_a_running_system",
        a_nats_server_is_put_through_every_case_beside_a_running_system,
    ),
];

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let cases = CASES.iter().filter(|(name, _)| is_wanted(name));
    if let Some(why) = NatsServer::missing() {
        cases.for_each(|(name, _)| println!("test {name} ... ignored, {why}"));
        return ExitCode::SUCCESS;
    }
    let runtime = Runtime::new().unwrap();
    let mut failed = false;
    for (name, run) in cases {
        let mut server = runtime.block_on(NatsServer::start()).unwrap();
        let is_ok = catch_unwind(AssertUnwindSafe(|| run(&mut server, &runtime))).is_ok();
        println!("test {name} ... {}", if is_ok { "ok" } else { "FAILED" });
        failed |= !is_ok;
    }
    if failed { ExitCode::from(101) } else { ExitCode::SUCCESS }
}

fn up(server: &NatsServer, data: &Path, more: &[&str]) -> Up {
    let url = server.url();
    Up::start_with(data, &[&["--broker", &url], more].concat())
}

/// Topics that are there.
fn topics(server: &NatsServer, runtime: &Runtime) -> Vec<String> {
    runtime.block_on(async {
        let broker = Nats::connect(&server.url(), Options::default()).await.unwrap();
        let seen = broker.list("").await.unwrap();
        broker.shutdown().await;
        let mut topics: Vec<String> = seen.into_iter().map(|seen| seen.topic.to_string()).collect();
        topics.sort();
        topics
    })
}

/// Topics of a run that are still there.
fn left_of(server: &NatsServer, runtime: &Runtime, run: &str) -> Vec<String> {
    let mut topics = topics(server, runtime);
    topics.retain(|topic| topic.ends_with(&format!(":default:{run}")));
    topics
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

fn the_main_job_on_nats_leaves_nothing_of_the_flow(server: &mut NatsServer, runtime: &Runtime) {
    let folder = tempfile::tempdir().unwrap();
    let mut up = up(server, &folder.path().join("data"), &[]);
    let notes = notes(folder.path());
    for run in ["f1", "f1-r2"] {
        up.json(&["flow", "start", "f1", "document-rag"]);
        assert!(!left_of(server, runtime, run).is_empty(), "{run} has no topics");
        let added = up.json(&["doc", "add", &notes, "--flow", "f1"]);
        assert_eq!(added["progress"][0]["complete"], true, "{added}");
        let answer = up.json(&["ask", "where is the spare key?", "--flow", "f1"]);
        assert!(finds_the_key(&answer), "{answer}");
        up.json(&["flow", "stop", "f1"]);
        assert_eq!(left_of(server, runtime, run), Vec::<String>::new());
        assert_eq!(up.json(&["flow", "ls"]), Value::Array(Vec::new()));
    }
    let doctor = up.run(&["doctor", "-o", "json"]);
    assert!(doctor.status.success(), "{}", text(&doctor));
    assert_eq!(up.terminate(), 0);
}

fn a_second_process_with_data_of_its_own_is_refused_and_takes_over_after_a_kill(
    server: &mut NatsServer,
    _: &Runtime,
) {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let mut first = up(server, &one, &[]);
    let data = two.to_str().unwrap();
    let second = sluice()
        .args(["up", "--listen", "127.0.0.1:0", "--data", data, "--broker", &server.url()])
        .output()
        .unwrap();
    ends(&second, 1, &format!("process {}", first.pid()));
    first.kill();
    // At once: it waits until what was held is let go.
    let mut again = up(server, &one, &[]);
    assert_eq!(again.terminate(), 0);
}

fn a_system_on_nats_goes_on_after_server_and_system_were_killed(server: &mut NatsServer, runtime: &Runtime) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut first = up(server, &data, &[]);
    let notes = notes(folder.path());
    first.json(&["flow", "start", "f1", "document-rag"]);
    first.json(&["doc", "add", &notes, "--flow", "f1"]);
    runtime.block_on(server.stop(false));
    runtime.block_on(server.run()).unwrap();
    let answers = |up: &Up| {
        let output = up.run(&["ask", "where is the spare key?", "--flow", "f1", "-o", "json"]);
        output.status.success() && finds_the_key(&serde_json::from_slice(&output.stdout).unwrap())
    };
    until("an answer after the server was killed", || answers(&first), || first.log());
    first.kill();
    let mut again = up(server, &data, &[]);
    until("an answer after the system was killed", || answers(&again), || again.log());
    again.json(&["flow", "stop", "f1"]);
    assert_eq!(left_of(server, runtime, "f1"), Vec::<String>::new());
    assert_eq!(again.terminate(), 0);
}

fn a_stop_on_nats_with_leftovers_keeps_them(server: &mut NatsServer, runtime: &Runtime) {
    let folder = tempfile::tempdir().unwrap();
    let mut up = up(server, &folder.path().join("data"), &["--without", "chunker"]);
    let notes = notes(folder.path());
    up.json(&["flow", "start", "f1", "document-rag"]);
    let added = up.run(&["doc", "add", &notes, "--flow", "f1", "--no-wait"]);
    assert!(added.status.success(), "{}", text(&added));
    let waits = || up.json(&["flow", "describe", "f1"]).to_string().contains("\"ready\":1");
    until("the document to wait for its chunker", waits, || up.log());
    let stopped = up.json(&["flow", "stop", "f1"]);
    assert!(stopped.to_string().contains("parked"), "{stopped}");
    assert_eq!(left_of(server, runtime, "f1"), Vec::<String>::new());
    let kept = || up.json(&["dead", "ls"]).to_string().contains("chunker--");
    until("the letter to be kept", kept, || up.log());
    assert_eq!(up.terminate(), 0);
}

fn a_nats_server_is_put_through_every_case_beside_a_running_system(
    server: &mut NatsServer,
    runtime: &Runtime,
) {
    let folder = tempfile::tempdir().unwrap();
    let mut up = up(server, &folder.path().join("data"), &[]);
    up.json(&["flow", "start", "f1", "document-rag"]);
    let before = topics(server, runtime);
    let tried = sluice().args(["conformance", "-o", "json", "--broker", &server.url()]).output().unwrap();
    ends(&tried, 0, "runs at this server (read there: config-svc");
    let answer: Value = serde_json::from_slice(&tried.stdout).unwrap();
    assert!(answer["product"].as_str().is_some_and(|product| product.starts_with("NATS 2.")), "{answer}");
    assert_eq!((&answer["failed"], &answer["not-run"]), (&Value::from(0), &Value::from(3)), "{answer}");
    let counts = answer["cases"].as_array().unwrap().iter().find(|row| row["case"] == "counts_are_exact");
    let why = counts.unwrap()["why"].as_str().unwrap();
    assert!(why.contains("not promised: readers are counted"), "{why}");
    assert_eq!(topics(server, runtime), before);
    // What runs there has not noticed.
    let added = up.json(&["doc", "add", &notes(folder.path()), "--flow", "f1"]);
    assert_eq!(added["progress"][0]["complete"], true, "{added}");
    up.json(&["flow", "stop", "f1"]);
    assert_eq!(up.terminate(), 0);
}
