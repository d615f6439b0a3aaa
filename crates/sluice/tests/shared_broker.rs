//! The main job on a real broker, through the binary. Where the server is missing, each case is listed as ignored.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "the harness tells what it ran")]

mod common;

use std::process::ExitCode;
use std::time::Instant;

use common::{PATIENCE, Up, ends, sluice};
use serde_json::Value;
use sluice_brokers::testing::RabbitServer;
use tokio::runtime::Runtime;

type Case = (&'static str, fn(&mut RabbitServer, &Runtime));

macro_rules! cases {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name as fn(&mut RabbitServer, &Runtime))),*] };
}

const CASES: &[Case] = cases![
    a_broker_that_does_not_let_us_in_is_told_with_what_to_do,
    the_main_job_leaves_nothing_of_the_flow,
    a_system_goes_on_after_its_broker_was_killed_and_started_again,
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    let cases: Vec<Case> = CASES
        .iter()
        .filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|arg| name.contains(*arg)))
        .copied()
        .collect();
    if args.iter().any(|arg| arg == "--list") {
        cases.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", cases.len());
    if let Some(why) = RabbitServer::missing() {
        cases.iter().for_each(|(name, _)| println!("test {name} ... ignored, {why}"));
        println!("\ntest result: ok. 0 passed; 0 failed; {} ignored\n", cases.len());
        return ExitCode::SUCCESS;
    }
    if cases.is_empty() {
        return ExitCode::SUCCESS;
    }
    let runtime = Runtime::new().unwrap();
    let mut server = runtime.block_on(RabbitServer::start()).unwrap();
    for (name, case) in &cases {
        // A panic ends the test run, the server with it; cargo shows which case it was.
        println!("test {name} ...");
        case(&mut server, &runtime);
        println!("test {name} ... ok");
    }
    println!("\ntest result: ok. {} passed; 0 failed; 0 ignored\n", cases.len());
    ExitCode::SUCCESS
}

/// A system on a vhost of its own.
fn up(server: &RabbitServer, runtime: &Runtime, data: &std::path::Path) -> (Up, String) {
    let vhost = runtime.block_on(server.vhost()).unwrap();
    (up_on(server, data, &vhost), vhost)
}

fn up_on(server: &RabbitServer, data: &std::path::Path, vhost: &str) -> Up {
    let management = server.options().management.unwrap();
    let args =
        ["--broker", &server.url(vhost), "--broker-management", management.reveal()].map(str::to_owned);
    Up::start_with(data, &args.each_ref().map(String::as_str))
}

/// Names of all exchanges and queues that belong to a flow's run.
fn left_of(server: &RabbitServer, runtime: &Runtime, vhost: &str, run: &str) -> Vec<String> {
    let all = runtime.block_on(server.names(vhost)).unwrap();
    let mark = format!(":{run}");
    all.into_iter().filter(|name| name.ends_with(&mark) || name.contains(&format!("{mark}."))).collect()
}

fn notes(folder: &std::path::Path) -> String {
    let notes = folder.join("pump.md");
    std::fs::write(&notes, "# Pump\n\nThe spare key of the pump house hangs behind the blue door.\n")
        .unwrap();
    notes.to_str().unwrap().to_owned()
}

fn finds_the_key(answer: &Value) -> bool {
    answer["response"].as_str().is_some_and(|text| text.contains("blue door"))
}

fn a_broker_that_does_not_let_us_in_is_told_with_what_to_do(server: &mut RabbitServer, _: &Runtime) {
    let folder = tempfile::tempdir().unwrap();
    let wrong = server.url("").replacen("guest:guest", "guest:hush", 1);
    let run = |url: &str| {
        let data = folder.path().to_str().unwrap();
        sluice().args(["up", "--listen", "127.0.0.1:0", "--data", data, "--broker", url]).output().unwrap()
    };
    let output = run(&wrong);
    ends(&output, 1, "check user, password and vhost");
    assert!(!common::text(&output).contains("hush"));
    ends(&run(&server.url("nowhere")), 1, "nowhere");
    ends(&run("amqp://u:hush@127.0.0.1:1/"), 1, "start the broker");
}

fn the_main_job_leaves_nothing_of_the_flow(server: &mut RabbitServer, runtime: &Runtime) {
    let folder = tempfile::tempdir().unwrap();
    let (mut up, vhost) = up(server, runtime, &folder.path().join("data"));
    let notes = notes(folder.path());
    for run in ["f1", "f1-r2"] {
        up.json(&["flow", "start", "f1", "document-rag"]);
        assert!(!left_of(server, runtime, &vhost, run).is_empty(), "{run} has no queues");
        let added = up.json(&["doc", "add", &notes, "--flow", "f1"]);
        assert_eq!(added["progress"][0]["complete"], true, "{added}");
        let answer = up.json(&["ask", "where is the spare key?", "--flow", "f1"]);
        assert!(finds_the_key(&answer), "{answer}");
        up.json(&["flow", "stop", "f1"]);
        assert_eq!(left_of(server, runtime, &vhost, run), Vec::<String>::new());
        assert_eq!(up.json(&["flow", "ls"]), Value::Array(Vec::new()));
    }
    assert_eq!(up.terminate(), 0);
    let left = runtime.block_on(server.names(&vhost)).unwrap();
    assert!(
        !left.iter().any(|name| name.starts_with("sluice.inbox.")),
        "inboxes outlive their process: {left:?}"
    );
}

fn a_system_goes_on_after_its_broker_was_killed_and_started_again(
    server: &mut RabbitServer,
    runtime: &Runtime,
) {
    let folder = tempfile::tempdir().unwrap();
    let (mut up, vhost) = up(server, runtime, &folder.path().join("data"));
    let notes = notes(folder.path());
    up.json(&["flow", "start", "f1", "document-rag"]);
    up.json(&["doc", "add", &notes, "--flow", "f1"]);
    if server.is_ours() {
        runtime.block_on(server.stop(false));
        runtime.block_on(server.run()).unwrap();
    }
    let until = Instant::now() + PATIENCE;
    loop {
        let output = up.run(&["ask", "where is the spare key?", "--flow", "f1", "-o", "json"]);
        if output.status.success() {
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(finds_the_key(&answer), "{answer}");
            break;
        }
        assert!(Instant::now() < until, "it never came back: {}\n{}", common::text(&output), up.log());
    }
    // Killed itself, it finds everything again.
    up.kill();
    let mut up = up_on(server, &folder.path().join("data"), &vhost);
    let answer = up.json(&["ask", "where is the spare key?", "--flow", "f1"]);
    assert!(finds_the_key(&answer), "{answer}");
    up.json(&["flow", "stop", "f1"]);
    assert_eq!(left_of(server, runtime, &vhost, "f1"), Vec::<String>::new());
    assert_eq!(up.terminate(), 0);
}
