//! What the services of a system have at a server is removed, one owner's after the other's and in the end all of it, while
//! people go on asking: its owners make it again, and every call is answered well again.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and it tells how long it took"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use sluice_brokers::Connection;
use sluice_schema::{Topic, WorkspaceId, system};

use crate::asking::{ASKERS, CALL_TIMEOUT, Leaves, ask_on, is_well};
use crate::common::{text, until};
use crate::door::Door;
use crate::server::World;
use crate::{finds_the_key, notes};

/// Every topic, with the subscriptions that get what is sent there.
type Wired = BTreeMap<Topic, BTreeSet<String>>;

/// What is not a system service's is of the flows, which the flow service makes.
const OF_FLOWS: &str = "flows";

/// The service that no system has yet.
const NOT_SERVED: &str = system::KNOWLEDGE;

/// Looks until the server has answered in time.
fn look(world: &World, connection: &Connection) -> Wired {
    let mut seen = None;
    let mut answers = || {
        seen = world.runtime.block_on(connection.admin.list("")).ok();
        seen.is_some()
    };
    until("the server to list its topics", &mut answers, String::new);
    let seen = seen.unwrap_or_default();
    let of_topic = |seen: sluice_bus::Seen| {
        let wired = seen.subscriptions.into_iter().filter(|one| one.exists && one.is_bound != Some(false));
        (seen.topic, wired.map(|one| one.name).collect())
    };
    seen.into_iter().map(of_topic).collect()
}

/// What was there and is not.
fn missing(before: &Wired, now: &Wired) -> Vec<String> {
    let mut missing = Vec::new();
    for (topic, readers) in before {
        match now.get(topic) {
            None => missing.push(topic.to_string()),
            Some(now) => missing.extend(readers.difference(now).map(|reader| format!("{topic} / {reader}"))),
        }
    }
    missing
}

/// Topics by who makes them.
fn by_owner(wired: &Wired) -> BTreeMap<&'static str, Vec<Topic>> {
    let mut owners = BTreeMap::<_, Vec<Topic>>::new();
    for topic in wired.keys() {
        let owner = system::owner_of(topic).map_or(OF_FLOWS, |owner| owner.service);
        owners.entry(owner).or_default().push(topic.clone());
    }
    owners
}

/// What somebody does to a server.
enum Harm {
    Topics(Vec<Topic>),
    /// Also what holds and notes are kept in.
    Everything,
    /// Also the server is killed and started again.
    EverythingAndRestart,
}

fn harm(world: &mut World, before: &Wired, harm: &Harm) {
    match harm {
        Harm::Topics(topics) => world.rob(topics),
        Harm::Everything | Harm::EverythingAndRestart => {
            let of_the_flow: Vec<Topic> =
                before.keys().filter(|topic| topic.to_string().ends_with(":f1")).cloned().collect();
            world.rob_of_all_but(&of_the_flow);
        }
    }
    if matches!(harm, Harm::EverythingAndRestart) {
        world.kill();
        world.run();
    }
}

pub(crate) fn what_each_owner_has_is_made_again_whoever_removed_it(world: &mut World) {
    let folder = tempfile::tempdir().unwrap();
    let mut up = world.up(&folder.path().join("data"), &[]);
    let door = Door { url: up.url.clone(), key: up.key() };
    up.json(&["flow", "start", "f1", "document-rag"]);
    is_well(&up, &door, "at first");
    let connection = world.connect();
    let before = look(world, &connection);
    // Everybody who owns something is harmed: all that is on record as read is there.
    let on_record = system::global_subscriptions().into_iter();
    for (topic, reader) in on_record.chain(system::workspace_subscriptions(&WorkspaceId::existing("default")))
    {
        let is_there = before.get(&topic).is_some_and(|readers| readers.contains(reader));
        assert_eq!(is_there, reader != NOT_SERVED, "{topic} / {reader}");
    }
    let owners = by_owner(&before);
    assert!(owners.contains_key(OF_FLOWS), "{owners:?}");

    let one_by_one = owners.into_iter().map(|(owner, topics)| (owner, Harm::Topics(topics)));
    let all = [("everything", Harm::Everything), ("everything, and a restart", Harm::EverythingAndRestart)];
    let notes = notes(folder.path());
    for (what, done) in one_by_one.chain(all) {
        let begun = Instant::now();
        let (leave, unanswered) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let _leaves = Leaves(&leave);
            for _ in 0..ASKERS {
                scope.spawn(|| ask_on(&door, &leave, &unanswered));
            }
            harm(world, &before, &done);
            is_well(&up, &door, what);
            let missing = || missing(&before, &look(world, &connection));
            until(
                "everything to be there and read again",
                || missing().is_empty(),
                || format!("{what}: {:?}\n{}", missing(), up.log()),
            );
        });
        let (unanswered, took) = (unanswered.load(Ordering::SeqCst), begun.elapsed());
        println!("{what}: well after {took:?}, {unanswered} without an answer");
        // Of a message that the server takes while its stream is removed nobody hears until its sender has waited long enough, and
        // an answer may be lost with its asker's way to it.
        let at_most = ASKERS * (2 + took.as_secs() as usize / CALL_TIMEOUT.as_secs() as usize);
        assert!(unanswered <= at_most, "{what}: {unanswered} without an answer\n{}", up.log());
        is_well(&up, &door, &format!("after {what}"));
        // It is not only there: a document goes through every queue of its flow.
        let added = up.run(&["doc", "add", &notes, "--flow", "f1", "--timeout", "60", "-o", "json"]);
        let seen = || up.json(&["flow", "describe", "f1"]);
        assert!(added.status.success(), "{what}: {}\n{}\n{}", text(&added), seen(), up.log());
        let asked =
            up.run(&["ask", "where is the spare key?", "--flow", "f1", "--timeout", "60", "-o", "json"]);
        let is_found =
            asked.status.success() && finds_the_key(&serde_json::from_slice(&asked.stdout).unwrap());
        assert!(is_found, "{what}: {}\n{}\n{}", text(&asked), seen(), up.log());
    }
    // A piece whose answer went with a queue is in work until its question's deadline; the stop waits a while for it.
    let is_gone = || [Some(0), Some(3)].contains(&up.run(&["flow", "stop", "f1"]).status.code());
    until("the flow to be stopped", is_gone, || up.log());
    assert_eq!(world.left_of("f1"), Vec::<String>::new());
    world.runtime.block_on(connection.close());
    assert_eq!(up.terminate(), 0, "{}", up.log());
}
