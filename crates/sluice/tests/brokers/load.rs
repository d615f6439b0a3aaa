//! A server is killed and started again while people ask everything: whoever had asked hears how it ended, and a while after the
//! server is back, questions are answered again.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and it tells how long it took"
)]

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::asking::{Leaves, calls, is_well};
use crate::common::{PATIENCE, until, until_within};
use crate::door::{Answer, Door};
use crate::server::World;
use crate::{answers, notes};

/// Who asks meanwhile.
const ASKERS: usize = 4;
/// Calls that are answered before the server is killed.
const DONE_BEFORE: usize = 40;
/// A server takes its time to come back, and what rests on it too.
const LONG_PATIENCE: Duration = Duration::from_secs(5 * PATIENCE.as_secs());
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How calls ended, and how many have not.
#[derive(Default)]
struct Counts {
    done: AtomicUsize,
    refused: AtomicUsize,
    under_way: AtomicUsize,
}

/// Asks everything again and again until told to leave; each call has to end in an answer or a typed error.
fn ask_on(door: &Door, leave: &AtomicBool, counts: &Counts) {
    let question = json!({"query": "where is the spare key?", "collection": "default"});
    let mut all = calls();
    all.push(("/api/v1/flow/f1/service/document-rag".to_owned(), question));
    let all = all.iter().cycle();
    for (path, body) in all.take_while(|_| !leave.load(Ordering::SeqCst)) {
        counts.under_way.fetch_add(1, Ordering::SeqCst);
        let begun = Instant::now();
        match door.post(path, body) {
            Answer::Done(_) => counts.done.fetch_add(1, Ordering::SeqCst),
            Answer::Refused(said) => {
                assert!(is_typed(&said), "{path}: {said}");
                counts.refused.fetch_add(1, Ordering::SeqCst)
            }
            Answer::None => panic!("{path} ended without an answer after {:?}", begun.elapsed()),
        };
        counts.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether programs can tell what an error is: by its type, or as one after which to come again. Nobody's key is refused.
fn is_typed(said: &str) -> bool {
    let (head, body) = said.split_once("\r\n\r\n").unwrap_or_default();
    let told: Value = serde_json::from_str(body).unwrap_or_default();
    let has_type = told["error"]["type"].is_string() || told["type"].is_string();
    let is_for_later = head.contains(" 503 ") && head.to_lowercase().contains("retry-after:");
    let is_of_the_key = head.contains(" 401 ") || body.contains("auth failure");
    (has_type || is_for_later) && !is_of_the_key
}

/// When a port is listened on again.
fn is_back(url: &str) -> Instant {
    let address = url.split("://").nth(1).and_then(|rest| rest.split('?').next()).unwrap();
    let begun = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(begun.elapsed() < LONG_PATIENCE, "{address} is not listened on again");
        std::thread::park_timeout(LOOK_EVERY);
    }
    Instant::now()
}

pub(crate) fn calls_under_way_when_the_server_is_killed_each_end_and_questions_are_answered_again(
    world: &mut World,
) {
    let folder = tempfile::tempdir().unwrap();
    let mut up = world.up(&folder.path().join("data"), &[]);
    let door = Door { url: up.url.clone(), key: up.key() };
    up.json(&["flow", "start", "f1", "document-rag"]);
    up.json(&["doc", "add", &notes(folder.path()), "--flow", "f1"]);
    is_well(&up, &door, "at first");

    let (leave, counts) = (AtomicBool::new(false), Counts::default());
    let done = || counts.done.load(Ordering::SeqCst);
    std::thread::scope(|scope| {
        let _leaves = Leaves(&leave);
        for _ in 0..ASKERS {
            scope.spawn(|| ask_on(&door, &leave, &counts));
        }
        until("calls to be answered", || done() >= DONE_BEFORE, || up.log());
        let under_way = counts.under_way.load(Ordering::SeqCst);
        assert!(under_way > 0, "nobody asks any more");
        world.kill();
        let (killed, url) = (Instant::now(), world.url());
        let back = scope.spawn(move || is_back(&url));
        world.run();
        let back = back.join().unwrap();
        until_within(LONG_PATIENCE, "a question to be answered again", || answers(&up), || up.log());
        println!(
            "  {}: killed under {under_way} calls, its port is back after {:.1} s; a question is answered {:.1} s after that",
            world.kind.name,
            (back - killed).as_secs_f32(),
            back.elapsed().as_secs_f32()
        );
        let before = done();
        until_within(LONG_PATIENCE, "others to be answered", || done() >= before + DONE_BEFORE, || up.log());
    });
    println!("  {} calls were answered, {} refused", done(), counts.refused.load(Ordering::SeqCst));
    is_well(&up, &door, "in the end");
    // A piece whose answer was lost is in work until its question's deadline; the stop waits a while for it.
    let is_gone = || [Some(0), Some(3)].contains(&up.run(&["flow", "stop", "f1"]).status.code());
    until_within(LONG_PATIENCE, "the flow to be stopped", is_gone, || up.log());
    assert_eq!(world.left_of("f1"), Vec::<String>::new());
    assert_eq!(up.terminate(), 0, "{}", up.log());
}
