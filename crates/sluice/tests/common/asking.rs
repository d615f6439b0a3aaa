//! People who go on asking every service while things are removed under it. What they are told has to be true, and in the end
//! all is answered well.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and it tells how long it took"
)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{PATIENCE, Up};
use crate::door::Door;
use crate::kills;

/// How long a call is waited for; its own deadline is longer.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Who asks while things are removed.
pub(crate) const ASKERS: usize = 2;

/// A call to every service, and one into and one through a flow.
pub(crate) fn calls() -> Vec<(String, Value)> {
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

/// Asks everything again and again until told to leave; how many got no answer.
pub(crate) fn ask_on(door: &Door, leave: &AtomicBool, unanswered: &AtomicUsize) {
    while !leave.load(Ordering::SeqCst) {
        for call in calls() {
            if matches!(ask(door, &call), Ended::Unanswered) {
                unanswered.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

/// Lets askers leave, also when the case fails.
pub(crate) struct Leaves<'a>(pub(crate) &'a AtomicBool);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Asks everything until all is answered well.
pub(crate) fn is_well(up: &Up, door: &Door, what: &str) {
    for call in calls() {
        let begun = Instant::now();
        loop {
            let last = ask(door, &call);
            if matches!(last, Ended::Well) {
                break;
            }
            assert!(begun.elapsed() < 3 * PATIENCE, "{what}, {}: {last:?}\n{}", call.0, up.log());
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }
}
