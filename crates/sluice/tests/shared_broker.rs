//! The main job on a real broker, through the binary. Where the server is missing, each case is listed as ignored.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "common/asking.rs"]
mod asking;
mod common;
#[path = "common/door.rs"]
mod door;
#[path = "shared_broker/healing.rs"]
mod healing;
#[path = "common/kills.rs"]
mod kills;
#[path = "shared_broker/poison.rs"]
mod poison;
#[path = "common/provider.rs"]
mod provider;
#[path = "common/wired.rs"]
mod wired;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::cases::{Case, Shape, Shared};
use common::{PATIENCE, Up, ends, sluice, until};
use healing::what_a_system_has_at_its_broker_is_made_again_whoever_removed_it;
use poison::a_message_whose_process_is_killed_each_time_is_parked_after_five_and_others_pass;
use rand::Rng as _;
use serde_json::Value;
use sluice_brokers::testing::Damage;
use sluice_brokers::{Options, RabbitMq};
use sluice_bus::{BrokerAdmin as _, TopicSpec};

const CASES: &[Case] = cases![
    a_broker_that_does_not_let_us_in_is_told_with_what_to_do: plain,
    the_main_job_leaves_nothing_of_the_flow: both,
    a_stop_with_leftovers_ends_and_they_are_kept: both,
    what_was_taken_is_kept_although_somebody_removes_queues: both,
    what_a_system_has_at_its_broker_is_made_again_whoever_removed_it: both,
    one_of_two_readers_that_loses_its_queue_gets_it_back_at_once: both,
    a_system_goes_on_after_its_broker_was_killed_and_started_again: both,
    stops_go_on_after_their_broker_was_killed: both,
    an_alarm_is_named_by_the_doctor_and_a_stop_goes_on_after_it: both,
    an_alarm_is_told_to_callers_with_its_reason_and_is_no_refused_key: both,
    killed_at_random_moments_it_converges_and_leaves_nothing_at_the_broker: both,
    messages_sent_before_any_processor_exists_are_all_delivered: both,
    a_message_whose_process_is_killed_each_time_is_parked_after_five_and_others_pass: both,
    a_broker_is_put_through_every_case_beside_a_running_system: both,
];

/// Times that the system is killed; `SLUICE_KILLS=200` kills more often.
const KILLS: u64 = 6;
/// Messages that are sent before anybody could process them.
const MESSAGES: usize = 10_000;
/// Stops that the broker is killed under, and the latest moment.
const STOPS_CUT: u64 = 2;
const STOP_MOMENT_MAX: Duration = Duration::from_millis(400);

fn main() -> ExitCode {
    common::cases::run(CASES)
}

/// A system on a vhost of its own.
fn up(shared: &Shared, data: &std::path::Path) -> (Up, String) {
    let vhost = shared.vhost();
    (up_on(shared, data, &vhost), vhost)
}

fn up_on(shared: &Shared, data: &std::path::Path, vhost: &str) -> Up {
    let args = shared.broker_args(vhost);
    Up::start_with(data, &args.iter().map(String::as_str).collect::<Vec<_>>())
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

fn a_broker_that_does_not_let_us_in_is_told_with_what_to_do(shared: &mut Shared) {
    let folder = tempfile::tempdir().unwrap();
    let wrong = shared.server.url("").replacen("guest:guest", "guest:hush", 1);
    let run = |url: &str| {
        let data = folder.path().to_str().unwrap();
        sluice().args(["up", "--listen", "127.0.0.1:0", "--data", data, "--broker", url]).output().unwrap()
    };
    let output = run(&wrong);
    ends(&output, 1, "does not let this user in");
    assert!(!common::text(&output).contains("hush"));
    ends(&run(&shared.server.url("nowhere")), 1, "nowhere");
    ends(&run("amqp://u:hush@127.0.0.1:1/"), 1, "start the broker");
}

fn the_main_job_leaves_nothing_of_the_flow(shared: &mut Shared) {
    let folder = tempfile::tempdir().unwrap();
    let (mut up, vhost) = up(shared, &folder.path().join("data"));
    let notes = notes(folder.path());
    for run in ["f1", "f1-r2"] {
        up.json(&["flow", "start", "f1", "document-rag"]);
        assert!(!shared.left_of(&vhost, run).is_empty(), "{run} has no queues");
        let added = up.json(&["doc", "add", &notes, "--flow", "f1"]);
        assert_eq!(added["progress"][0]["complete"], true, "{added}");
        let answer = up.json(&["ask", "where is the spare key?", "--flow", "f1"]);
        assert!(finds_the_key(&answer), "{answer}");
        if run == "f1" {
            ends(&up.run(&["flow", "watch", run, "--until-idle"]), 0, "0 waiting");
        }
        up.json(&["flow", "stop", "f1"]);
        assert_eq!(shared.left_of(&vhost, run), Vec::<String>::new());
        assert_eq!(up.json(&["flow", "ls"]), Value::Array(Vec::new()));
    }
    assert_eq!(up.terminate(), 0);
    assert_eq!(shared.of_processes(&vhost), Vec::<String>::new(), "what belongs to a process outlives it");
}

fn a_stop_with_leftovers_ends_and_they_are_kept(shared: &mut Shared) {
    let folder = tempfile::tempdir().unwrap();
    let vhost = shared.vhost();
    let (mut up, door) = up_without_chunker(shared, &folder.path().join("data"), &vhost);
    up.json(&["flow", "start", "f1", "document-rag"]);
    load(&up, &door, "f1", 3);
    let stopped = up.json(&["flow", "stop", "f1"]);
    assert!(stopped.to_string().contains("parked"), "{stopped}");
    assert_eq!(shared.left_of(&vhost, "f1"), Vec::<String>::new());
    let kept = || up.json(&["dead", "ls"]).to_string().matches("chunker--").count();
    until("the letters to be kept", || kept() == 3, || up.log());
    assert_eq!(up.terminate(), 0);
}

/// Whatever is removed, a text is kept or refused, and soon is kept again.
fn what_was_taken_is_kept_although_somebody_removes_queues(shared: &mut Shared) {
    let folder = tempfile::tempdir().unwrap();
    let vhost = shared.vhost();
    let (mut up, door) = up_without_chunker(shared, &folder.path().join("data"), &vhost);
    up.json(&["flow", "start", "f1", "document-rag"]);
    let exchange = "tg.flow.text-document-load:default:f1";
    let queue = format!("{exchange}.chunker--default--f1--input");
    let spec = TopicSpec::with(
        "flow:tg:text-document-load:default:f1".parse().unwrap(),
        "chunker--default--f1--input",
    );
    let url = shared.server.url(&vhost);
    let broker = shared.runtime.block_on(RabbitMq::connect(&url, Options::default())).unwrap();
    for damage in [Damage::Queue(&queue), Damage::Binding(exchange, &queue), Damage::Exchange(exchange)] {
        let waiting = || {
            let seen = shared.runtime.block_on(broker.observe(std::slice::from_ref(&spec))).unwrap();
            seen[0].subscriptions[0].ready
        };
        shared.runtime.block_on(shared.server.damage(&vhost, damage)).unwrap();
        let before = if matches!(damage, Damage::Queue(_)) { 0 } else { waiting() };
        let mut taken = 0;
        until(
            "five texts to be taken",
            || {
                let (path, body) = kills::load("f1");
                match door.post(&path, &body) {
                    door::Answer::Done(_) => taken += 1,
                    door::Answer::Refused(said) => assert!(said.contains("flow-error"), "{said}"),
                    door::Answer::None => panic!("no answer"),
                }
                taken == 5
            },
            || up.log(),
        );
        until("all that were taken to be there", || waiting() >= before + taken, || up.log());
        assert_eq!(waiting(), before + taken, "{damage:?}\n{}", up.log());
    }
    up.json(&["flow", "stop", "f1"]);
    assert_eq!(shared.left_of(&vhost, "f1"), Vec::<String>::new());
    shared.runtime.block_on(broker.shutdown());
    assert_eq!(up.terminate(), 0);
}

fn a_system_goes_on_after_its_broker_was_killed_and_started_again(shared: &mut Shared) {
    let folder = tempfile::tempdir().unwrap();
    let (mut up, vhost) = up(shared, &folder.path().join("data"));
    let notes = notes(folder.path());
    up.json(&["flow", "start", "f1", "document-rag"]);
    up.json(&["doc", "add", &notes, "--flow", "f1"]);
    if shared.server.is_ours() {
        shared.runtime.block_on(shared.server.stop(false));
        shared.runtime.block_on(shared.server.run()).unwrap();
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
    let mut up = up_on(shared, &folder.path().join("data"), &vhost);
    let answer = up.json(&["ask", "where is the spare key?", "--flow", "f1"]);
    assert!(finds_the_key(&answer), "{answer}");
    up.json(&["flow", "stop", "f1"]);
    assert_eq!(shared.left_of(&vhost, "f1"), Vec::<String>::new());
    assert_eq!(up.terminate(), 0);
}

/// The processor that should take what waits never comes, so that each stop has something to move.
fn up_without_chunker(shared: &Shared, data: &std::path::Path, vhost: &str) -> (Up, door::Door) {
    let args = shared.broker_args(vhost);
    let args: Vec<&str> = args.iter().map(String::as_str).chain(["--without", "chunker"]).collect();
    let up = Up::start_with(data, &args);
    let door = door::Door { url: up.url.clone(), key: up.key() };
    (up, door)
}

fn load(up: &Up, door: &door::Door, flow: &str, texts: usize) {
    let (path, body) = kills::load(flow);
    for _ in 0..texts {
        assert!(matches!(door.post(&path, &body), door::Answer::Done(_)), "{}", up.log());
    }
}

/// Stops a flow as a stubborn person does, and looks whether all that was loaded is kept.
fn stops_in_the_end(shared: &Shared, up: &Up, vhost: &str, flow: &str, texts: usize) {
    let last = std::cell::RefCell::new(String::new());
    let is_gone = || {
        let stopping = up.run(&["flow", "stop", flow]);
        last.replace(common::text(&stopping));
        // Stopped, or gone by a request before.
        [Some(0), Some(3)].contains(&stopping.status.code())
    };
    until("the flow to be stopped", is_gone, || {
        let described = common::text(&up.run(&["flow", "describe", flow]));
        format!("{}\n{described}\n{}", last.borrow(), up.log())
    });
    assert_eq!(shared.left_of(vhost, flow), Vec::<String>::new());
    let kept = || up.run(&["dead", "ls", "--flow", flow, "-o", "json"]);
    // What was moved twice, for its stop was cut short, may be kept twice.
    let count = || common::text(&kept()).matches("chunker--").count();
    until("the letters to be kept", || count() >= texts, || format!("{} of {texts}\n{}", count(), up.log()));
}

fn stops_go_on_after_their_broker_was_killed(shared: &mut Shared) {
    const TEXTS: usize = 20;
    if !shared.server.is_ours() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let vhost = shared.vhost();
    let (mut up, door) = up_without_chunker(shared, &folder.path().join("data"), &vhost);
    let (kills, mut random) = kills::schedule(shared.times(STOPS_CUT));
    for kill in 0..kills {
        let flow = format!("s{kill}");
        up.json(&["flow", "start", &flow, "document-rag"]);
        load(&up, &door, &flow, TEXTS);
        std::thread::scope(|scope| {
            scope.spawn(|| up.run(&["flow", "stop", &flow]));
            // The moment is the point here, not something to wait for.
            std::thread::park_timeout(random.random_range(Duration::ZERO..STOP_MOMENT_MAX));
            shared.runtime.block_on(shared.server.stop(false));
            shared.runtime.block_on(shared.server.run()).unwrap();
        });
        stops_in_the_end(shared, &up, &vhost, &flow, TEXTS);
    }
    assert_eq!(up.json(&["flow", "ls"]), Value::Array(Vec::new()));
    assert_eq!(up.terminate(), 0);
}

fn an_alarm_is_named_by_the_doctor_and_a_stop_goes_on_after_it(shared: &mut Shared) {
    const TEXTS: usize = 3;
    if !shared.server.is_ours() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let vhost = shared.vhost();
    let (mut up, door) = up_without_chunker(shared, &folder.path().join("data"), &vhost);
    up.json(&["flow", "start", "f1", "document-rag"]);
    load(&up, &door, "f1", TEXTS);
    let watermark =
        |part: &str| shared.runtime.block_on(shared.server.control(&["set_vm_memory_high_watermark", part]));
    watermark("0.000001").unwrap();
    let stopping = up.run(&["flow", "stop", "f1"]);
    let broker = shared.broker_args(&vhost);
    let doctor: Vec<&str> =
        ["doctor", "-o", "json"].into_iter().chain(broker.iter().map(String::as_str)).collect();
    let found = common::text(&up.run(&doctor));
    watermark("0.6").unwrap();
    assert!(!stopping.status.success(), "it cannot have asked anybody: {}", common::text(&stopping));
    assert!(found.contains("publishers-blocked") && found.contains("memory"), "{found}");
    stops_in_the_end(shared, &up, &vhost, "f1", TEXTS);
    let mut found = String::new();
    let is_over = || {
        found = common::text(&up.run(&doctor));
        !found.contains("publishers-blocked")
    };
    until("the doctor to find no alarm", is_over, || up.log());
    let blind = shared.shape == Shape::WithoutManagement;
    assert_eq!(found.contains("management-missing"), blind, "{found}");
    assert_eq!(up.terminate(), 0);
}

/// Over HTTP: the status line, the head and the body.
fn get(up: &Up, path: &str) -> String {
    let address = up.url.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    common::read_all(stream)
}

fn an_alarm_is_told_to_callers_with_its_reason_and_is_no_refused_key(shared: &mut Shared) {
    if !shared.server.is_ours() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (mut up, vhost) = up(shared, &folder.path().join("data"));
    let door = door::Door { url: up.url.clone(), key: up.key() };
    up.json(&["flow", "start", "f1", "document-rag"]);
    let port = shared.server.url("").rsplit(':').next().unwrap().trim_end_matches('/').to_owned();
    let control = |args: &[&str]| shared.runtime.block_on(shared.server.control(args)).unwrap();
    for (reason, alarm, over) in [
        (
            "it is short of memory",
            ["set_vm_memory_high_watermark", "0.000001"],
            ["set_vm_memory_high_watermark", "0.6"],
        ),
        ("it is short of disk space", ["set_disk_free_limit", "900000GB"], ["set_disk_free_limit", "50MB"]),
    ] {
        control(&alarm);
        let (path, body) = kills::load("f1");
        let mut said = Vec::new();
        let is_told = || {
            let answers = [up.post(&path, &body), get(&up, "/readyz")];
            assert!(answers.iter().all(|answer| !answer.contains(" 401 ")), "{answers:?}");
            let is_told = answers.iter().all(|answer| answer.contains(reason));
            said = answers.into();
            is_told
        };
        until("callers to be told", is_told, || up.log());
        for answer in &said {
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
            assert!(answer.to_lowercase().contains("retry-after:"), "{answer}");
            // Neither where the broker is nor who is let in.
            for secret in [port.as_str(), vhost.as_str(), "guest", "amqp"] {
                assert!(!answer.contains(secret), "'{secret}' in {answer}");
            }
        }
        let broker = shared.broker_args(&vhost);
        let doctor: Vec<&str> =
            ["doctor", "-o", "json"].into_iter().chain(broker.iter().map(String::as_str)).collect();
        let found = common::text(&up.run(&doctor));
        assert!(found.contains("publishers-blocked"), "{found}");
        control(&over);
        let goes_on = || {
            matches!(door.post(&path, &body), door::Answer::Done(_)) && get(&up, "/readyz").contains("200 OK")
        };
        until("calls to go on", goes_on, || up.log());
    }
    up.json(&["flow", "stop", "f1"]);
    assert_eq!(up.terminate(), 0);
}

/// Whoever sends there sees nothing of it: its messages reach the other one.
fn one_of_two_readers_that_loses_its_queue_gets_it_back_at_once(shared: &mut Shared) {
    let folder = tempfile::tempdir().unwrap();
    let (mut up, vhost) = up(shared, &folder.path().join("data"));
    up.json(&["flow", "start", "f1", "document-rag"]);
    let names = shared.names(&vhost);
    let of_two = |exchange: &&String| {
        exchange.ends_with(":f1")
            && names.iter().filter(|name| name.starts_with(&format!("{exchange}."))).count() > 1
    };
    let exchange = names.iter().find(of_two).expect("a topic that two read");
    let queues = names.iter().filter(|name| name.starts_with(&format!("{exchange}.")));
    for queue in queues {
        shared.runtime.block_on(shared.server.damage(&vhost, Damage::Queue(queue))).unwrap();
        let is_back = || {
            let bound = shared.runtime.block_on(shared.server.bindings(&vhost)).unwrap();
            bound.iter().any(|(from, to)| from == exchange && to == queue)
        };
        until("the queue to be there and bound", is_back, || up.log());
    }
    up.json(&["flow", "stop", "f1"]);
    assert_eq!(up.terminate(), 0);
}

fn killed_at_random_moments_it_converges_and_leaves_nothing_at_the_broker(shared: &mut Shared) {
    let folder = tempfile::tempdir().unwrap();
    let (data, vhost) = (folder.path().join("data"), shared.vhost());
    assert_eq!(up_on(shared, &data, &vhost).terminate(), 0);
    let of_the_system = shared.lasting(&vhost);
    let mut up = kills::kill_again_and_again(|| up_on(shared, &data, &vhost), shared.times(KILLS));
    assert_eq!(up.terminate(), 0);
    let left: Vec<String> = shared.lasting(&vhost).difference(&of_the_system).cloned().collect();
    assert_eq!(left, Vec::<String>::new());
    assert_eq!(shared.of_processes(&vhost), Vec::<String>::new(), "what belongs to a process outlives it");
}

fn messages_sent_before_any_processor_exists_are_all_delivered(shared: &mut Shared) {
    let folder = tempfile::tempdir().unwrap();
    let (up, vhost) = up(shared, &folder.path().join("data"));
    let runtime = &shared.runtime;
    let broker = runtime.block_on(RabbitMq::connect(&shared.server.url(&vhost), Options::default())).unwrap();
    wired::are_all_delivered(&up, folder.path(), runtime, &broker, MESSAGES);
    runtime.block_on(broker.shutdown());
}

fn a_broker_is_put_through_every_case_beside_a_running_system(shared: &mut Shared) {
    let folder = tempfile::tempdir().unwrap();
    let (mut up, vhost) = up(shared, &folder.path().join("data"));
    up.json(&["flow", "start", "f1", "document-rag"]);
    let policies = |shared: &Shared| {
        shared.runtime.block_on(shared.server.control(&["list_policies", "-p", &vhost, "--no-table-headers"]))
    };
    let (before, bounded) = (shared.lasting(&vhost), policies(shared));
    let broker = shared.broker_args(&vhost);
    let tried = sluice().args(["conformance", "-o", "json"]).args(&broker).output().unwrap();
    ends(&tried, 0, "runs at this server (read there: config-svc");
    let answer: Value = serde_json::from_slice(&tried.stdout).unwrap();
    let (product, not_promised) = match shared.shape {
        Shape::WithManagement => ("RabbitMQ 3.", 0),
        Shape::WithoutManagement => ("RabbitMQ", 1),
    };
    assert!(answer["product"].as_str().is_some_and(|told| told.starts_with(product)), "{answer}");
    let counted = ["failed", "not-run", "not-promised"].map(|result| answer[result].as_u64());
    assert_eq!(counted, [Some(0), Some(3), Some(not_promised)], "{answer}");
    until("what the cases made to be gone", || shared.lasting(&vhost) == before, || up.log());
    assert_eq!(policies(shared), bounded);
    up.json(&["flow", "stop", "f1"]);
    assert_eq!(up.terminate(), 0);
}
