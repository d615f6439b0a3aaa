//! A message whose processor is killed under it, each time: a real process, ended by the system at once, and its successor.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use serde_json::{Value, json};

use crate::common::cases::Shared;
use crate::common::{Program, Up, sluice, until};
use crate::notes;
use crate::provider::Provider;

/// How often a message may end its process.
const KILLS: usize = 5;
/// What reads the message; it runs alone in its process.
const VICTIM: &str = "document-embeddings";

pub(crate) fn a_message_whose_process_is_killed_each_time_is_parked_after_five_and_others_pass(
    shared: &mut Shared,
) {
    let (folder, vhost, provider) = (tempfile::tempdir().unwrap(), shared.vhost(), Provider::start());
    // Its questions stay open, so that the message is in its reader's hands when that dies.
    provider.allow_vectors(Some(0));
    let broker = shared.broker_args(&vhost);
    let more = ["--without", VICTIM, "--embeddings-url", &provider.url, "--embeddings-model", "m"];
    let args: Vec<&str> = broker.iter().map(String::as_str).chain(more).collect();
    let mut up = Up::start_with(&folder.path().join("data"), &args);
    start_flow(&up, folder.path());
    up.json(&["doc", "add", &notes(folder.path()), "--flow", "f1", "--no-wait"]);
    let victim = || {
        let mut command = sluice();
        command.args(["run", VICTIM]).args(&broker).arg("--data").arg(folder.path().join("victim"));
        Program::start(command, " serving ").0
    };

    for killed in 0..KILLS {
        assert_eq!(up.json(&["dead", "ls"]), json!([]), "parked after {killed}");
        let mut victim = victim();
        let is_in_hand = || provider.asked_for_vectors().len() > killed;
        until("the message to be worked on", is_in_hand, || format!("{}\n{}", victim.log(), up.log()));
        victim.kill();
    }
    let mut survivor = victim();
    let letters = || up.json(&["dead", "ls"]).as_array().map_or(0, Vec::len);
    until("the message to be parked", || letters() == 1, || format!("{}\n{}", survivor.log(), up.log()));
    let letter = &up.json(&["dead", "ls"])[0];
    let reason = format!("it ended the process {KILLS} times");
    assert!(letter["reason"].as_str().is_some_and(|told| told.contains(&reason)), "{letter}");
    assert!(letter["topic"].as_str().is_some_and(|topic| topic.contains("chunk-load")), "{letter}");
    assert_eq!(provider.asked_for_vectors().len(), KILLS, "it was worked on once more");

    provider.allow_vectors(None);
    let good = folder.path().join("good.md");
    std::fs::write(&good, "# Gate\n\nThe gate opens at seven.\n").unwrap();
    let added = up.json(&["doc", "add", good.to_str().unwrap(), "--flow", "f1"]);
    assert_eq!(added["progress"][0]["complete"], true, "{added}");
    assert_eq!((survivor.terminate(), up.terminate()), (0, 0));
}

/// The standard flow, where a question for vectors that nobody waits for any more holds up no other.
fn start_flow(up: &Up, folder: &std::path::Path) {
    let mut blueprint: Value = up.json(&["blueprint", "show", "document-rag"]);
    blueprint["flow"]["embeddings:{id}"]["parameters"]["concurrency"] = json!("16");
    let file = folder.join("blueprint.json");
    std::fs::write(&file, blueprint.to_string()).unwrap();
    assert!(up.run(&["blueprint", "put", "careful", file.to_str().unwrap()]).status.success());
    up.json(&["flow", "start", "f1", "careful"]);
}
