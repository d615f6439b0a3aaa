//! What a system has at its broker is removed while people go on asking: its owners make it again, and every call is
//! answered well again.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and it tells how long it took"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use sluice_brokers::testing::Damage;

use crate::asking::{ASKERS, Leaves, ask_on, is_well};
use crate::common::cases::Shared;
use crate::common::until;
use crate::door::Door;
use crate::up;

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
            let of_processes =
                |name: &&String| name.starts_with("sluice.") && !name.starts_with("sluice.begun.");
            for queue in before.names.iter().filter(of_processes) {
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
        // Whose question was removed is told so; an answer may be lost with its asker's queue, or with the way to it.
        let unanswered = unanswered.load(Ordering::SeqCst);
        let allowed = if matches!(done, Harm::Queues | Harm::Bindings) { 0 } else { 2 * ASKERS };
        println!("{done:?}: well after {:?}, {unanswered} without an answer", begun.elapsed());
        assert!(unanswered <= allowed, "{done:?}: {unanswered} without an answer\n{}", up.log());
        is_well(&up, &door, &format!("after {done:?}"));
    }
    // A piece whose answer went with a queue is in work until its question's deadline; the stop waits a while for it.
    let is_gone = || [Some(0), Some(3)].contains(&up.run(&["flow", "stop", "f1"]).status.code());
    until("the flow to be stopped", is_gone, || up.log());
    assert_eq!(shared.left_of(&vhost, "f1"), Vec::<String>::new());
    assert_eq!(up.terminate(), 0);
}
