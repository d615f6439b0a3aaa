//! The flow and the config service are killed at random moments while people start, stop and load, beside a chunker of
//! TrustGraph 2.11 that works all the time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::Rng as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use serde_json::{Value, json};

use crate::blueprint::{self, CHUNKER};
use crate::clients;
use crate::common::cases::Shared;
use crate::common::until;
use crate::door::{Answer, Door, Loader, PARAGRAPHS, PARAMETERS};
use crate::fleet::{Fleet, Part};
use crate::kills::{entries_of_flows, ids, load, schedule, start, stop, tell};
use crate::theirs::Theirs;

/// Times that one of the services is killed, or both at once; `SLUICE_KILLS=200` kills more often.
const KILLS: u64 = 6;
/// The latest moment of a kill after people began to ask: starts and stops take about as long.
const MOMENT_MAX: Duration = Duration::from_millis(1500);

const PROCESSES: &[Part] = &[
    ("gateway", &["gateway"]),
    ("library", &["library"]),
    ("stores", &["stores"]),
    ("work", &["document-decoder", "chunker", "embeddings", "document-embeddings"]),
    FLOW,
    CONFIG,
];
const FLOW: Part = ("flow", &["flow"]);
const CONFIG: Part = ("config", &["config", "iam"]);

/// Each is killed once before one is killed again.
const VICTIMS: [&[Part]; 3] = [&[FLOW], &[CONFIG], &[CONFIG, FLOW]];

const BLUEPRINT: &str = "left-to-theirs";
/// Whose wish for each is known, as only one person asks for it.
const FLOWS: &[(&str, &str)] = &[("p1", BLUEPRINT), ("p2", BLUEPRINT), ("p3", "document-rag")];
/// The flow that documents go through all the time.
const STEADY: &str = "p0";

/// Workers of theirs, more than it can lose: one ends for good whenever a flow is stopped, with a short drain, while a call of
/// it to the library is under way. By default it has one.
const fn workers(kills: u64) -> u64 {
    64 + 2 * kills
}

pub(crate) fn missing() -> Option<&'static str> {
    clients::python_missing().map(|_| "python3 with venv is not installed")
}

/// Somebody with a flow of their own.
struct Person {
    id: &'static str,
    blueprint: &'static str,
    random: StdRng,
    /// Whether it should run, as far as the last answer tells; a request whose outcome is open leaves both.
    wish: Option<bool>,
    started: u64,
    stopped: u64,
    loaded: u64,
    refused: u64,
}

impl Person {
    fn new(id: &'static str, blueprint: &'static str, random: StdRng) -> Self {
        Self { id, blueprint, random, wish: Some(false), started: 0, stopped: 0, loaded: 0, refused: 0 }
    }

    /// Starts, loads and stops until told to leave.
    fn ask_on(&mut self, door: &Door, leave: &AtomicBool) {
        while !leave.load(Ordering::SeqCst) {
            match (self.wish, self.random.random_range(0..4)) {
                (Some(true), 0..3) => {
                    let (path, text) = load(self.id);
                    self.loaded += u64::from(self.is_done(door, &path, &text));
                }
                (Some(true), _) => self.decide(door, false),
                (Some(false), _) => self.decide(door, true),
                (None, way) => self.decide(door, way % 2 == 0),
            }
        }
    }

    fn decide(&mut self, door: &Door, runs: bool) {
        let body = if runs { start(self.id, self.blueprint) } else { stop(self.id, &mut self.random) };
        let done = self.is_done(door, "/api/v1/flow", &body);
        self.wish = done.then_some(runs);
        *(if runs { &mut self.started } else { &mut self.stopped }) += u64::from(done);
    }

    /// Whether it was done, or refused with a reason. The gateway lives, so that there is always an answer.
    fn is_done(&mut self, door: &Door, path: &str, body: &Value) -> bool {
        match door.post(path, body) {
            Answer::Done(_) => true,
            Answer::Refused(_) => {
                self.refused += 1;
                false
            }
            Answer::None => panic!("a request hung: {path} {body}"),
        }
    }
}

/// Waits until every flow runs or is gone, and as its person wished; which ones run.
fn converge(fleet: &Fleet, people: &[Person]) -> Vec<String> {
    let mut seen = json!([]);
    let mut holds = || {
        seen = fleet.client.in_the_end(&["flow", "ls"], fleet);
        let running = ids(&seen);
        let as_wished =
            |one: &Person| one.wish.is_none_or(|runs| running.iter().any(|id| id == one.id) == runs);
        seen.as_array().unwrap().iter().all(|row| row["phase"] == "Running") && people.iter().all(as_wished)
    };
    let wishes = || people.iter().map(|one| format!("{}: {:?}", one.id, one.wish)).collect::<Vec<_>>();
    until("flows to be as wished", &mut holds, || format!("{:?}\n{}", wishes(), fleet.logs()));
    assert!(ids(&seen).iter().any(|id| id == STEADY), "nobody stopped it: {seen}\n{}", fleet.logs());
    ids(&seen)
}

pub(crate) fn flow_and_config_killed_at_random_moments_beside_theirs_at_work_converge_and_leave_nothing(
    shared: &mut Shared,
) {
    let (kills, mut random) = schedule(shared.times(KILLS));
    let vhost = shared.vhost();
    let mut fleet = Fleet::start(shared, &vhost, PROCESSES);
    let client = fleet.client.clone();
    let file = fleet.folder.path().join("blueprint.json");
    std::fs::write(&file, blueprint::left_to(&[("chunker", CHUNKER)])).unwrap();
    client.json(&["blueprint", "put", BLUEPRINT, file.to_str().unwrap()]);
    let (broker, workers) = (shared.server.url(&vhost), workers(kills).to_string());
    let theirs = Theirs::start("chunker-recursive", CHUNKER, &broker, &["--concurrency", &workers]);
    theirs.until_ready();
    let of_the_system = shared.lasting(&vhost);

    client.json(&[&["flow", "start", STEADY, BLUEPRINT], PARAMETERS].concat());
    let mut person = |&(id, blueprint)| Person::new(id, blueprint, StdRng::seed_from_u64(random.random()));
    let mut people: Vec<Person> = FLOWS.iter().map(&mut person).collect();
    kill_while_they_ask(&mut fleet, kills, &mut random, &mut people);

    for id in converge(&fleet, &people) {
        client.in_the_end(&["flow", "stop", &id], &fleet);
    }
    for (id, blueprint) in FLOWS.iter().chain(&[(STEADY, BLUEPRINT)]) {
        client.json(&["flow", "start", id, blueprint]);
        client.json(&["flow", "stop", id]);
    }
    assert_eq!(client.json(&["flow", "ls"]), json!([]));
    assert_eq!(entries_of_flows(&client.json(&["config", "show"])), Vec::<String>::new());
    // Theirs may hear of a start when its flow is stopped already, and make again what it reads: that is swept.
    let left = || -> Vec<String> { shared.lasting(&vhost).difference(&of_the_system).cloned().collect() };
    until("nothing to be left", || left().is_empty(), || fleet.logs());
    assert!(!theirs.log().contains("Will retry..."), "theirs gave up in between\n{}", theirs.log());
    fleet.stop();
    drop(theirs);
    assert_eq!(shared.of_processes(&vhost), Vec::<String>::new(), "what belongs to a process outlives it");
}

/// Kills again and again while people ask and documents go through the steady flow. Each time all flows converge; in the
/// end every document that was accepted is through.
fn kill_while_they_ask(fleet: &mut Fleet, kills: u64, random: &mut StdRng, people: &mut [Person]) {
    let begun = Instant::now();
    let key = std::fs::read_to_string(fleet.client.data.join("admin.key")).unwrap().trim().to_owned();
    let door = Door { url: fleet.client.url.clone(), key };
    // Theirs announces nothing, so a document is through when all its parts are stored.
    let mut loader = Loader::new(STEADY, |progress| progress["stored"].as_u64() >= Some(PARAGRAPHS));
    loader.send(&door);
    let under_way = loader.under_way.clone();
    let (mut busy, mut deck) = (0, Vec::new());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| loader.load_on(&door, &over));
        let _over = Over(&over);
        for kill in 0..kills {
            if deck.is_empty() {
                deck = VICTIMS.to_vec();
                deck.shuffle(random);
            }
            let victims = deck.pop().unwrap();
            let leave = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let _leave = Over(&leave);
                for person in &mut *people {
                    let (door, leave) = (&door, &leave);
                    scope.spawn(move || person.ask_on(door, leave));
                }
                // The moment is the point here, not something to wait for.
                std::thread::park_timeout(random.random_range(Duration::ZERO..MOMENT_MAX));
                busy += u64::from(under_way.load(Ordering::SeqCst) > 0);
                victims.iter().for_each(|(name, _)| fleet.kill(name));
                fleet.start_all_again(victims);
            });
            assert!(!loading.is_finished(), "the loader gave up");
            converge(fleet, people);
            tell(kill, begun);
        }
    });
    let through = loader.finish(&door, || fleet.logs());
    let sum = |of: fn(&Person) -> u64| people.iter().map(of).sum::<u64>();
    let (started, stopped, loaded) = (sum(|one| one.started), sum(|one| one.stopped), sum(|one| one.loaded));
    println!(
        "{kills} kills in {} s, {busy} with documents under way: {started} starts, {stopped} stops, {loaded} texts taken, \
         {through} documents through, {} refused",
        begun.elapsed().as_secs(),
        sum(|one| one.refused)
    );
    assert!(busy * 2 > kills, "theirs was hardly ever at work");
    assert!(started > 0 && stopped > 0 && loaded > 0 && through > 0, "nothing came of it");
}

/// Ends what others do as soon as it is dropped, so that a failure does not leave them at it.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
