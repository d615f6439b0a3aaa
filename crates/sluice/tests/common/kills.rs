//! People who go on asking while the system dies under them, and what has to hold afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    dead_code,
    reason = "a test that cannot go on fails, and it says its seed; not every test uses every part"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::common::{PATIENCE, Up, until};
use crate::door::{Answer, Door, Loader, PARAMETERS};

const FLOWS: [&str; 3] = ["k1", "k2", "k3"];
/// The flow that documents go through all the time.
const STEADY: &str = "k0";
/// A kill comes at a random moment after a random number of requests were done, of which these are the largest.
const DONE_MAX: u64 = 3;
const MOMENT_MAX: Duration = Duration::from_millis(150);

/// How often to kill, and the random that decides when; the seed is told.
pub(crate) fn schedule(kills_default: u64) -> (u64, StdRng) {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (kills, seed) = (number("SLUICE_KILLS", kills_default), number("SLUICE_SEED", 1));
    println!("{kills} kills, SLUICE_SEED={seed}");
    (kills, StdRng::seed_from_u64(seed))
}

/// Tells how far a long run is.
pub(crate) fn tell(kill: u64, begun: Instant) {
    const TELL_EVERY: u64 = 50;
    if (kill + 1).is_multiple_of(TELL_EVERY) {
        println!("  {} kills in {} s", kill + 1, begun.elapsed().as_secs());
    }
}

/// What people ask for while the system is killed.
struct People {
    door: Door,
    random: StdRng,
    counts: Arc<Counts>,
}

/// What they got.
#[derive(Default)]
struct Counts {
    answered: AtomicU64,
    decided: AtomicU64,
    loaded: AtomicU64,
}

impl Counts {
    fn done(&self) -> u64 {
        self.decided.load(Ordering::SeqCst) + self.loaded.load(Ordering::SeqCst)
    }

    fn has_each_kind(&self) -> bool {
        self.decided.load(Ordering::SeqCst) > 0 && self.loaded.load(Ordering::SeqCst) > 0
    }
}

impl People {
    /// Asks until told to leave; who asks a dead system gets nothing.
    fn ask_on(mut self, leave: &AtomicBool) {
        while !leave.load(Ordering::SeqCst) {
            let id = FLOWS[self.random.random_range(0..FLOWS.len())];
            let (path, body) = match self.random.random_range(0..5) {
                0 | 1 => ("/api/v1/flow".to_owned(), start(id, "document-rag")),
                2 => ("/api/v1/flow".to_owned(), stop(id, &mut self.random)),
                _ => load(id),
            };
            match self.door.post(&path, &body) {
                Answer::None => continue,
                Answer::Refused(_) => {}
                Answer::Done(_) if path == "/api/v1/flow" => tick(&self.counts.decided),
                Answer::Done(_) => tick(&self.counts.loaded),
            }
            tick(&self.counts.answered);
        }
    }
}

fn tick(count: &AtomicU64) {
    count.fetch_add(1, Ordering::SeqCst);
}

pub(crate) fn start(id: &str, blueprint: &str) -> Value {
    json!({"operation": "start-flow", "flow-id": id, "blueprint-name": blueprint, "description": "", "parameters": {}})
}

/// A stop that lets work end for a while, for a long while, or throws it away.
pub(crate) fn stop(id: &str, random: &mut StdRng) -> Value {
    let drain = ["1ms", "20s", "discard"][random.random_range(0..3)];
    json!({"operation": "stop-flow", "flow-id": id, "drain": drain})
}

/// A text sent straight into a flow.
pub(crate) fn load(id: &str) -> (String, Value) {
    let text = "The spare key hangs behind the blue door. ".repeat(20);
    (format!("/api/v1/flow/{id}/service/text-load"), json!({"id": "d", "text": text}))
}

/// Waits until every flow is as somebody wished.
fn converge(up: &Up) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let flows = up.json(&["flow", "ls"]);
        let rows = flows.as_array().unwrap();
        if rows.iter().all(|row| row["phase"] == "Running") {
            return ids(&flows);
        }
        assert!(begun.elapsed() < PATIENCE, "{flows}\n{}", up.log());
    }
}

/// The ids in a list of flows.
pub(crate) fn ids(flows: &Value) -> Vec<String> {
    flows.as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

/// Kills a system at random moments while people ask and documents go through, and begins it again. In the end every
/// document that was accepted is through, every flow can be stopped, every id used, and config has nothing left. Returns
/// the system that runs then. `SLUICE_KILLS` says how often, `SLUICE_SEED` when.
pub(crate) fn kill_again_and_again(begin: impl Fn() -> Up, kills_default: u64) -> Up {
    let (kills, mut random) = schedule(kills_default);
    let begun = Instant::now();
    let counts = Arc::new(Counts::default());
    let mut loader = Loader::new(STEADY, |progress| progress["complete"] == true);
    let mut busy = 0;
    let door = |up: &Up| Door { url: up.url.clone(), key: up.key() };
    let mut up = begin();
    up.json(&[&["flow", "start", STEADY, "document-rag"], PARAMETERS].concat());
    loader.send(&door(&up));
    for kill in 0..kills * 4 {
        // A few kills may meet one kind of work only.
        if kill >= kills && counts.has_each_kind() {
            break;
        }
        let (leave, under_way) = (AtomicBool::new(false), loader.under_way.clone());
        let door = door(&up);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let random = StdRng::seed_from_u64(random.random());
                let people = People { door: door.clone(), random, counts: counts.clone() };
                scope.spawn(|| people.ask_on(&leave));
            }
            scope.spawn(|| loader.load_on(&door, &leave));
            let some = counts.done() + random.random_range(0..=DONE_MAX);
            until("requests to be done", || counts.done() >= some, || up.log());
            // The moment is the point here, not something to wait for.
            std::thread::park_timeout(random.random_range(Duration::ZERO..MOMENT_MAX));
            busy += u64::from(under_way.load(Ordering::SeqCst) > 0);
            up.kill();
            leave.store(true, Ordering::SeqCst);
        });
        up = begin();
        assert!(converge(&up).iter().any(|id| id == STEADY), "nobody stopped it\n{}", up.log());
        tell(kill, begun);
    }
    let through = loader.finish(&door(&up), || up.log());
    let [answered, decided, loaded] =
        [&counts.answered, &counts.decided, &counts.loaded].map(|count| count.load(Ordering::SeqCst));
    println!(
        "{kills} kills in {} s, {busy} with documents under way: {decided} starts and stops done, {loaded} texts taken, \
         {through} documents through",
        begun.elapsed().as_secs()
    );
    assert!(answered > kills, "people were hardly ever answered");
    assert!(decided > 0 && loaded > 0 && through > 0, "nothing came of it");
    for id in converge(&up) {
        up.stop(&id);
    }
    for id in FLOWS {
        up.json(&["flow", "start", id, "document-rag"]);
        up.stop(id);
    }
    assert_eq!(up.json(&["flow", "ls"]), json!([]));
    assert_eq!(entries_of_flows(&up.json(&["config", "show"])), Vec::<String>::new());
    up
}

/// Config types with entries of flows that still hold something.
pub(crate) fn entries_of_flows(shown: &Value) -> Vec<String> {
    let is_of_flows = |kind: &str| kind == "flow" || kind.starts_with("processor:");
    let holds = |values: &Value| values.as_object().is_some_and(|values| !values.is_empty());
    let types = shown["config"].as_object().unwrap().iter();
    types.filter(|(kind, values)| is_of_flows(kind) && holds(values)).map(|(kind, _)| kind.clone()).collect()
}
