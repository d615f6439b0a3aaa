//! People who go on asking while the system dies under them, and what has to hold afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and it says its seed"
)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::common::{PATIENCE, Up};

const FLOWS: [&str; 3] = ["k1", "k2", "k3"];
/// The latest moment of a kill after people began to ask.
const MOMENT_MAX: Duration = Duration::from_millis(250);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// What people ask for while the system is killed.
struct People {
    url: String,
    key: String,
    random: StdRng,
    answered: Arc<AtomicU64>,
}

impl People {
    /// Asks until told to leave; who asks a dead system gets nothing.
    fn ask_on(mut self, leave: &AtomicBool) {
        while !leave.load(Ordering::SeqCst) {
            let id = FLOWS[self.random.random_range(0..FLOWS.len())];
            let (path, body) = match self.random.random_range(0..5) {
                0 | 1 => ("/api/v1/flow".to_owned(), start(id)),
                2 => {
                    let drain = ["1ms", "20s", "discard"][self.random.random_range(0..3)];
                    let stop = json!({"operation": "stop-flow", "flow-id": id, "drain": drain});
                    ("/api/v1/flow".to_owned(), stop)
                }
                _ => {
                    let text = "The spare key hangs behind the blue door. ".repeat(20);
                    (format!("/api/v1/flow/{id}/service/text-load"), json!({"id": "d", "text": text}))
                }
            };
            if post(&self.url, &self.key, &path, &body).is_some_and(|answer| answer.contains("200 OK")) {
                self.answered.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

fn start(id: &str) -> Value {
    json!({"operation": "start-flow", "flow-id": id, "blueprint-name": "document-rag", "description": "", "parameters": {}})
}

/// An answer; `None` when the system died before it.
fn post(url: &str, key: &str, path: &str, body: &Value) -> Option<String> {
    let address = url.strip_prefix("http://")?;
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

/// Waits until every flow is as somebody wished.
fn converge(up: &Up) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let flows = up.json(&["flow", "ls"]);
        let rows = flows.as_array().unwrap();
        if rows.iter().all(|row| row["phase"] == "Running") {
            return rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect();
        }
        assert!(begun.elapsed() < PATIENCE, "{flows}\n{}", up.log());
    }
}

/// Kills a system at random moments while people ask, and begins it again. In the end every flow can be stopped, every id
/// used, and config has nothing left. Returns the system that runs then. `SLUICE_KILLS` says how often, `SLUICE_SEED` when.
pub(crate) fn kill_again_and_again(begin: impl Fn() -> Up, kills_default: u64) -> Up {
    let (kills, seed) = (number("SLUICE_KILLS", kills_default), number("SLUICE_SEED", 1));
    println!("{kills} kills, SLUICE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let answered = Arc::new(AtomicU64::new(0));
    let mut up = begin();
    for _ in 0..kills {
        let leave = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let random = StdRng::seed_from_u64(random.random());
                let (url, key, answered) = (up.url.clone(), up.key(), answered.clone());
                let people = People { url, key, random, answered };
                scope.spawn(|| people.ask_on(&leave));
            }
            // The moment is the point here, not something to wait for.
            std::thread::park_timeout(random.random_range(Duration::ZERO..MOMENT_MAX));
            up.kill();
            leave.store(true, Ordering::SeqCst);
        });
        up = begin();
        converge(&up);
    }
    assert!(answered.load(Ordering::SeqCst) > kills, "people were hardly ever answered");
    for id in converge(&up) {
        up.json(&["flow", "stop", &id]);
    }
    for id in FLOWS {
        up.json(&["flow", "start", id, "document-rag"]);
        up.json(&["flow", "stop", id]);
    }
    assert_eq!(up.json(&["flow", "ls"]), json!([]));
    let shown = up.json(&["config", "show"]);
    let types = shown["config"].as_object().unwrap();
    let is_of_flows = |kind: &str| kind == "flow" || kind.starts_with("processor:");
    let left: Vec<_> = types
        .iter()
        .filter(|(kind, values)| {
            is_of_flows(kind) && values.as_object().is_some_and(|values| !values.is_empty())
        })
        .collect();
    assert!(left.is_empty(), "{left:?}");
    up
}

/// The runs that the flows may have had.
pub(crate) fn is_of_a_run(name: &str) -> bool {
    FLOWS.iter().any(|id| name.contains(&format!(":{id}")))
}
