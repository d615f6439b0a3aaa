//! What a system has at its broker is removed while people go on asking: its owners make it again, and every call is
//! answered well again.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and it tells how long it took"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_brokers::testing::Damage;

use crate::common::cases::Shared;
use crate::common::{PATIENCE, Up, until};
use crate::door::Door;
use crate::{kills, up};

/// How long a call is waited for. A question that was in a queue when somebody removed that is gone, and whoever asked waits
/// for the deadline of the call, which is longer.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Who asks while things are removed.
const ASKERS: usize = 2;

/// A call to every service, and one into and one through a flow.
fn calls() -> Vec<(String, Value)> {
    let service = |name: &str, body: Value| (format!("/api/v1/{name}"), body);
    vec![
        service("iam", json!({"operation": "whoami"})),
        service("config", json!({"operation": "list", "type": "prompt"})),
        service("librarian", json!({"operation": "list-documents"})),
        service("collection-management", json!({"operation": "list-collections"})),
        service("dead-letters", json!({"operation": "list"})),
        service("flow", json!({"operation": "list-flows"})),
        service("flow/f1/service/embeddings", json!({"texts": ["a"]})),
        kills::load("f1"),
    ]
}

/// How a call ended.
#[derive(Debug)]
#[allow(dead_code, reason = "shown where a case fails")]
enum Ended {
    Well,
    /// It was told why not, and may come again.
    Refused(String),
    /// Nothing came within [`CALL_TIMEOUT`].
    Unanswered,
}

/// Asks once. What is told meanwhile has to be true: never that the key is not accepted, and where nothing happened when
/// to come again.
fn ask(door: &Door, (path, body): &(String, Value)) -> Ended {
    let address = door.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(CALL_TIMEOUT)).unwrap();
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        door.key,
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let mut said = String::new();
    if stream.read_to_string(&mut said).is_err() {
        return Ended::Unanswered;
    }
    let (head, answer) = said.split_once("\r\n\r\n").unwrap_or((&said, ""));
    let status = head.split(' ').nth(1).unwrap_or_default();
    match (status, serde_json::from_str::<Value>(answer)) {
        ("200", Ok(answer)) if answer.get("error").is_none_or(Value::is_null) => Ended::Well,
        ("200", Ok(answer)) => {
            let text = answer.to_string();
            assert!(!text.contains("auth"), "{path}: {text}");
            Ended::Refused(text)
        }
        ("503", Ok(answer)) => {
            assert!(head.to_lowercase().contains("retry-after:"), "{path}: {said}");
            Ended::Refused(answer.to_string())
        }
        _ => panic!("{path}: {said}"),
    }
}

/// What the system has in a vhost, and how it is bound.
struct Wired {
    names: BTreeSet<String>,
    bindings: BTreeSet<(String, String)>,
}

/// An inbox may come again under another name.
fn lasting(name: &str) -> String {
    if name.starts_with("sluice.inbox.") { "an inbox".to_owned() } else { name.to_owned() }
}

impl Wired {
    fn look(shared: &Shared, vhost: &str) -> Self {
        let is_ours = |name: &String| name.starts_with("tg.") || name.starts_with("sluice.");
        let names = shared.names(vhost).into_iter().filter(is_ours).collect();
        let bindings = shared.runtime.block_on(shared.server.bindings(vhost)).unwrap();
        Self { names, bindings: bindings.into_iter().collect() }
    }

    /// How many there are of each.
    fn counts(&self) -> BTreeMap<String, usize> {
        let names = self.names.iter().map(|name| lasting(name));
        let bindings = self.bindings.iter().map(|(from, to)| format!("{from} -> {}", lasting(to)));
        let mut counts = BTreeMap::new();
        names.chain(bindings).for_each(|one| *counts.entry(one).or_default() += 1);
        counts
    }

    /// What was there and is not.
    fn missing(&self, now: &Self) -> Vec<String> {
        let now = now.counts();
        let is_there = |(one, count): &(String, usize)| now.get(one).is_some_and(|now| now >= count);
        self.counts().into_iter().filter(|one| !is_there(one)).map(|(one, _)| one).collect()
    }
}

/// What somebody does to a vhost.
#[derive(Debug, Clone, Copy)]
enum Harm {
    Exchanges,
    Queues,
    Both,
    Bindings,
    /// Queues of processes: inboxes and holds.
    OfProcesses,
    /// Everything, and the broker is killed and started again.
    BothAndRestart,
}

fn harm(shared: &mut Shared, vhost: &str, before: &Wired, harm: Harm) {
    let damage = |shared: &Shared, what: Damage<'_>| {
        // Some went with another, or are being made again.
        let _ = shared.runtime.block_on(shared.server.damage(vhost, what));
    };
    let is_queue = |name: &&String| before.bindings.iter().any(|(_, queue)| queue == *name);
    let (queues, exchanges): (Vec<_>, Vec<_>) =
        before.names.iter().filter(|name| name.starts_with("tg.")).partition(is_queue);
    if matches!(harm, Harm::Queues | Harm::Both | Harm::BothAndRestart) {
        queues.iter().for_each(|name| damage(shared, Damage::Queue(name)));
    }
    if matches!(harm, Harm::Exchanges | Harm::Both | Harm::BothAndRestart) {
        exchanges.iter().for_each(|name| damage(shared, Damage::Exchange(name)));
    }
    match harm {
        Harm::Bindings => {
            before.bindings.iter().for_each(|(from, to)| damage(shared, Damage::Binding(from, to)));
        }
        Harm::OfProcesses => {
            for queue in before.names.iter().filter(|name| name.starts_with("sluice.")) {
                let args = ["delete_queue", "--vhost", vhost, queue];
                shared.runtime.block_on(shared.server.control(&args)).unwrap();
            }
        }
        Harm::BothAndRestart => {
            shared.runtime.block_on(shared.server.stop(false));
            shared.runtime.block_on(shared.server.run()).unwrap();
        }
        Harm::Exchanges | Harm::Queues | Harm::Both => {}
    }
}

/// Asks everything again and again until told to leave; how many got no answer.
fn ask_on(door: &Door, leave: &AtomicBool, unanswered: &AtomicUsize) {
    while !leave.load(Ordering::SeqCst) {
        for call in calls() {
            if matches!(ask(door, &call), Ended::Unanswered) {
                unanswered.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

/// Lets askers leave, also when the case fails.
struct Leaves<'a>(&'a AtomicBool);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Asks everything until all is answered well.
fn is_well(up: &Up, door: &Door, what: &str) {
    for call in calls() {
        let begun = Instant::now();
        loop {
            let last = ask(door, &call);
            if matches!(last, Ended::Well) {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "{what}, {}: {last:?}\n{}", call.0, up.log());
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }
}

pub(crate) fn what_a_system_has_at_its_broker_is_made_again_whoever_removed_it(shared: &mut Shared) {
    if !shared.server.is_ours() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (mut up, vhost) = up(shared, &folder.path().join("data"));
    let door = Door { url: up.url.clone(), key: up.key() };
    up.json(&["flow", "start", "f1", "document-rag"]);
    is_well(&up, &door, "at first");
    let before = Wired::look(shared, &vhost);
    for done in
        [Harm::Exchanges, Harm::Queues, Harm::Both, Harm::Bindings, Harm::OfProcesses, Harm::BothAndRestart]
    {
        let begun = Instant::now();
        let (leave, unanswered) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let _leaves = Leaves(&leave);
            for _ in 0..ASKERS {
                scope.spawn(|| ask_on(&door, &leave, &unanswered));
            }
            let now = Wired::look(shared, &vhost);
            harm(shared, &vhost, &now, done);
            is_well(&up, &door, &format!("{done:?}"));
            let missing = || before.missing(&Wired::look(shared, &vhost));
            until(
                "everything to be there and bound again",
                || missing().is_empty(),
                || format!("{done:?}: {:?}\n{}", missing(), up.log()),
            );
        });
        // Whoever asked when its question or its answer was removed, and nobody else.
        let unanswered = unanswered.load(Ordering::SeqCst);
        println!("{done:?}: well after {:?}, {unanswered} without an answer", begun.elapsed());
        assert!(unanswered <= 2 * ASKERS, "{done:?}: {unanswered} without an answer\n{}", up.log());
        is_well(&up, &door, &format!("after {done:?}"));
    }
    // A piece whose question went with a queue is in work until that one's deadline; the stop waits a while for it.
    let is_gone = || [Some(0), Some(3)].contains(&up.run(&["flow", "stop", "f1"]).status.code());
    until("the flow to be stopped", is_gone, || up.log());
    assert_eq!(shared.left_of(&vhost, "f1"), Vec::<String>::new());
    assert_eq!(up.terminate(), 0);
}
