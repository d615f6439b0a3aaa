//! Every service as a process of its own on one broker: started in any order, killed in any order while work goes on.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "a long case tells how far it is")]

#[path = "beside/blueprint.rs"]
mod blueprint;
#[path = "drop_in/clients.rs"]
mod clients;
mod common;
#[path = "common/door.rs"]
mod door;
#[path = "distributed/fleet.rs"]
mod fleet;
#[path = "distributed/killed.rs"]
mod killed;
#[path = "common/kills.rs"]
mod kills;
#[path = "distributed/lost.rs"]
mod lost;
#[path = "drop_in/program.rs"]
mod program;
#[path = "common/provider.rs"]
mod provider;
#[path = "beside/theirs.rs"]
mod theirs;

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use common::cases::{Case, Shared};
use common::{PATIENCE, Program, ends, sluice, text};
use fleet::{Client, Fleet, PROCESSES};
use killed::flow_and_config_killed_at_random_moments_beside_theirs_at_work_converge_and_leave_nothing;
use lost::a_question_that_went_with_its_queue_ends_its_call_in_another_process;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use sluice_bus::BrokerAdmin as _;

const CASES: &[Case] = cases![
    processes_started_in_any_order_do_the_main_job_and_leave_nothing: both,
    any_process_killed_while_requests_run_loses_no_accepted_document_and_hangs_no_request: both,
    flow_and_config_killed_at_random_moments_beside_theirs_at_work_converge_and_leave_nothing: both
        needs killed::missing,
    what_cannot_run_alone_is_told_before_anything_is_made: plain,
    a_second_process_with_data_of_its_own_is_refused: both,
    while_a_process_is_restarted_another_with_other_data_waits_and_is_refused: both,
    a_process_whose_claim_is_anothers_ends_and_says_so: both,
    a_question_whose_asker_hangs_up_is_dropped_at_the_provider_and_the_doctor_names_who_is_away: both,
    a_question_that_went_with_its_queue_ends_its_call_in_another_process: both,
];

fn main() -> ExitCode {
    common::cases::run(CASES)
}

/// A document with a fact that no other has.
fn fact(folder: &Path, number: usize) -> String {
    let file = folder.join(format!("vault{number}.md"));
    std::fs::write(&file, format!("# Vault\n\nThe code word of vault{number} is heron{number}.\n")).unwrap();
    file.to_str().unwrap().to_owned()
}

fn knows(client: &Client, fleet: &Fleet, number: usize) {
    let question = format!("what is the code word of vault{number}?");
    let mut answer = serde_json::Value::Null;
    // A document that somebody had in hand when a process was killed comes again a while later.
    let mut is_known = || {
        answer = client.in_the_end(&["ask", &question, "--flow", "f1"], fleet);
        answer["response"].as_str().unwrap_or_default().contains(&format!("heron{number}"))
    };
    common::until(&question, &mut is_known, || fleet.logs());
}

fn processes_started_in_any_order_do_the_main_job_and_leave_nothing(shared: &mut Shared) {
    let vhost = shared.vhost();
    // The one that all others wait for comes last.
    let fleet = Fleet::start(shared, &vhost, PROCESSES);
    let client = fleet.client.clone();
    for run in ["f1", "f1-r2"] {
        client.json(&["flow", "start", "f1", "document-rag"]);
        assert!(!shared.left_of(&vhost, run).is_empty(), "{run} has no queues");
        let added = client.json(&["doc", "add", &fact(fleet.folder.path(), 1), "--flow", "f1"]);
        assert_eq!(added["progress"][0]["complete"], true, "{added}");
        knows(&client, &fleet, 1);
        client.json(&["flow", "stop", "f1"]);
        assert_eq!(shared.left_of(&vhost, run), Vec::<String>::new());
    }
    fleet.stop();
    assert_eq!(shared.of_processes(&vhost), Vec::<String>::new(), "what belongs to a process outlives it");
}

fn any_process_killed_while_requests_run_loses_no_accepted_document_and_hangs_no_request(
    shared: &mut Shared,
) {
    let seed =
        std::env::var("SLUICE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("seed {seed} (SLUICE_SEED={seed} runs it again)");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let vhost = shared.vhost();
    let mut fleet = Fleet::start(shared, &vhost, PROCESSES);
    let client = fleet.client.clone();
    client.json(&["flow", "start", "f1", "document-rag"]);

    let mut order = PROCESSES.to_vec();
    order.shuffle(&mut random);
    order.truncate(usize::try_from(shared.times(order.len() as u64)).unwrap());
    let folder = fleet.folder.path().to_owned();
    let mut accepted = Vec::new();
    for (round, process) in order.iter().enumerate() {
        let (over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (mut added, extra) = (Vec::new(), format!("extra{round}"));
        std::thread::scope(|scope| {
            let adding = scope.spawn(|| {
                let mut added = Vec::new();
                for number in round * 100.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let output =
                        client.run(&["doc", "add", &fact(&folder, number), "--flow", "f1", "--no-wait"]);
                    answers(&output);
                    if output.status.success() {
                        added.push(number);
                    }
                }
                added
            });
            let asking = scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    answers(&client.run(&["ask", "what is the code word of vault0?", "--flow", "f1"]));
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
            let deciding = scope.spawn(|| {
                answers(&client.run(&["flow", "start", &extra, "document-rag"]));
                answers(&client.run(&["flow", "stop", &extra]));
            });
            // Somewhere in the work, never at the same place.
            let some = asked.load(Ordering::Relaxed) + random.random_range(1..4);
            let until = Instant::now() + PATIENCE;
            while asked.load(Ordering::Relaxed) < some && Instant::now() < until {
                std::thread::yield_now();
            }
            fleet.kill(process.0);
            fleet.start_again(*process);
            let some = asked.load(Ordering::Relaxed) + 2;
            let until = Instant::now() + PATIENCE;
            while asked.load(Ordering::Relaxed) < some && Instant::now() < until {
                std::thread::yield_now();
            }
            over.store(true, Ordering::Relaxed);
            added = adding.join().unwrap();
            asking.join().unwrap();
            deciding.join().unwrap();
        });
        println!(
            "  {} killed: {} documents accepted, {} questions answered",
            process.0,
            added.len(),
            asked.into_inner()
        );
        accepted.extend(added);
    }
    assert!(!accepted.is_empty(), "nothing was accepted\n{}", fleet.logs());
    let until = Instant::now() + PATIENCE;
    while queued(&client, &fleet) != Some(0) {
        assert!(Instant::now() < until, "documents stay queued\n{}", fleet.logs());
    }
    for number in &accepted {
        knows(&client, &fleet, *number);
    }
    let mut runs = vec!["f1".to_owned()];
    for round in 0..order.len() {
        // Started or not, it can be stopped, or is not there.
        let extra = format!("extra{round}");
        let output = client.run(&["flow", "stop", &extra]);
        assert!([Some(0), Some(3)].contains(&output.status.code()), "{}\n{}", text(&output), fleet.logs());
        runs.push(extra);
    }
    client.in_the_end(&["flow", "stop", "f1"], &fleet);
    for run in &runs {
        assert_eq!(shared.left_of(&vhost, run), Vec::<String>::new());
    }
    fleet.stop();
}

/// A command ends by itself, with its own word or the system's: the client's own patience is never used up.
fn answers(output: &std::process::Output) {
    let said = text(output);
    assert!(!said.contains("no answer from"), "a request hung: {said}");
}

/// Messages in the queues of a flow, waiting or under way; `None` where the broker was too busy to say.
fn queued(client: &Client, fleet: &Fleet) -> Option<u64> {
    let described = client.in_the_end(&["flow", "describe", "f1"], fleet);
    let queues = described["status"]["queues"].as_array().filter(|queues| !queues.is_empty())?;
    let sum = |name: &str| queues.iter().map(|queue| queue[name].as_u64().unwrap_or_default()).sum::<u64>();
    Some(sum("ready") + sum("unsettled"))
}

fn what_cannot_run_alone_is_told_before_anything_is_made(shared: &mut Shared) {
    let run = |args: &[&str]| sluice().arg("run").args(args).output().unwrap();
    let url = shared.server.url("");
    ends(&run(&["chunker"]), 64, "--broker");
    ends(&run(&["nobody", "--broker", &url]), 64, "gateway");
    ends(&run(&["triples-write", "--broker", &url]), 64, "triples-query");
    ends(&run(&["config", "--broker", &url]), 64, "--data");
    ends(&run(&[]), 64, "sluice run");
}

fn a_second_process_with_data_of_its_own_is_refused(shared: &mut Shared) {
    let (vhost, folder) = (shared.vhost(), tempfile::tempdir().unwrap());
    let broker = shared.broker_args(&vhost);
    let run = |name: &str| {
        let mut command = sluice();
        command.args(["run", "config"]).args(&broker).arg("--data").arg(folder.path().join(name));
        command
    };
    let (mut first, _) = Program::start(run("first"), " serving ");
    let told = format!("runs on this broker already in process {} on host", first.pid());
    ends(&run("second").output().unwrap(), 1, &told);
    assert_eq!(first.terminate(), 0);
    Program::start(run("second"), " serving ");
}

fn while_a_process_is_restarted_another_with_other_data_waits_and_is_refused(shared: &mut Shared) {
    let (vhost, folder) = (shared.vhost(), tempfile::tempdir().unwrap());
    let broker = shared.broker_args(&vhost);
    let run = |name: &str| {
        let mut command = sluice();
        command.args(["run", "config"]).args(&broker).arg("--data").arg(folder.path().join(name));
        command
    };
    let (mut first, _) = Program::start(run("first"), " serving ");
    first.kill();
    let (mut second, _) = Program::start(run("second"), "for it to come back");
    let (first, _) = Program::start(run("first"), " serving ");
    assert_eq!(second.ended(), 1, "{}", second.log());
    let told = format!("runs on this broker already in process {} on host", first.pid());
    assert!(second.log().contains(&told), "{}", second.log());
    assert!(!second.log().contains(" serving "), "{}", second.log());
}

fn a_process_whose_claim_is_anothers_ends_and_says_so(shared: &mut Shared) {
    let (vhost, folder) = (shared.vhost(), tempfile::tempdir().unwrap());
    let broker = shared.broker_args(&vhost);
    let run = |name: &str| {
        let mut command = sluice();
        command.args(["run", "config"]).args(&broker).arg("--data").arg(folder.path().join(name));
        Program::start(command, " serving ").0
    };
    let lose = |shared: &mut Shared, process: &Program| {
        // It cannot take again what it loses before somebody else has it.
        process.signal("-STOP");
        shared.runtime.block_on(shared.server.stop(false));
        shared.runtime.block_on(shared.server.run()).unwrap();
        let broker = shared.runtime.block_on(shared.server.connect(&vhost)).unwrap();
        let hold = shared.runtime.block_on(broker.hold("config")).unwrap();
        (broker, hold)
    };
    let ends = |mut process: Program, told: &str| {
        process.signal("-CONT");
        assert_eq!(process.ended(), 1, "{}", process.log());
        assert!(process.log().contains(told), "{}", process.log());
    };

    // Whoever starts holds it for a moment, to see whose it is: then it is taken again.
    let mut process = run("first");
    let (broker, hold) = lose(shared, &process);
    drop(hold);
    process.signal("-CONT");
    let (until, own) = (Instant::now() + PATIENCE, format!("process {} on host", process.pid()));
    while !shared.runtime.block_on(broker.holder("config")).unwrap().is_some_and(|who| who.starts_with(&own))
    {
        assert!(Instant::now() < until, "{}", process.log());
    }
    assert_eq!(process.terminate(), 0);

    let process = run("first");
    let (broker, hold) = lose(shared, &process);
    ends(process, &format!("config is served in process {} on host", std::process::id()));
    drop((hold, broker));

    let process = run("first");
    let (_broker, hold) = lose(shared, &process);
    shared.runtime.block_on(hold.sign(Some("another"))).unwrap();
    drop(hold);
    ends(process, "config was served out of data folder another meanwhile");
}

fn a_question_whose_asker_hangs_up_is_dropped_at_the_provider_and_the_doctor_names_who_is_away(
    shared: &mut Shared,
) {
    let vhost = shared.vhost();
    let model = provider::Provider::start();
    model.become_slow();
    let more = ["--llm-url", &model.url, "--llm-dialect", "ollama", "--llm-model", "gemma3"];
    let mut fleet = Fleet::start_with(shared, &vhost, PROCESSES, &more);
    let client = fleet.client.clone();
    client.json(&["flow", "start", "f1", "document-rag"]);
    client.json(&["doc", "add", &fact(fleet.folder.path(), 1), "--flow", "f1"]);
    let wait = |what: &str, open: usize, hung_up: usize| {
        let until = Instant::now() + PATIENCE;
        while model.open_and_hung_up() != (open, hung_up) {
            let now = model.open_and_hung_up();
            assert!(Instant::now() < until, "{what}: {now:?}, not {:?}\n{}", (open, hung_up), fleet.logs());
            std::thread::yield_now();
        }
    };
    let mut ask = sluice();
    ask.args(["ask", "what is the code word of vault1?", "--flow", "f1", "--url", &client.url, "--data"]);
    let mut ask = ask.arg(&client.data).spawn().unwrap();
    wait("the question reaches the model", 1, 0);
    ask.kill().unwrap();
    ask.wait().unwrap();
    wait("the model is left by the command's question", 1, 1);

    let key = std::fs::read_to_string(client.data.join("admin.key")).unwrap();
    let body = r#"{"system": "", "prompt": "Say hello."}"#;
    let address = client.url.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let request = format!(
        "POST /api/v1/flow/f1/service/text-completion HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n{body}",
        key.trim(),
        body.len()
    );
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    wait("the call reaches the model", 2, 1);
    drop(stream);
    wait("the model is left by the call over HTTP", 2, 2);

    fleet.kill("library");
    let mut doctor = sluice();
    doctor.args(["doctor", "--timeout", "5", "-o", "json", "--url", &client.url, "--data"]).arg(&client.data);
    let found = doctor.output().unwrap();
    ends(&found, 2, "library-silent");
    let said = text(&found);
    assert!(said.contains("sluice run library") && said.contains("config-answers"), "{said}");
    assert!(!said.contains("config-silent"), "{said}");
    fleet.stop();
}
