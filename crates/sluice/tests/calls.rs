//! No call ends the process or takes more memory than its body accounts for: every operation, and every member that its service
//! reads, with the largest, the most and the deepest, through the binary under a limit of its address space.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Mutex;

use common::Up;
use serde_json::{Value, json};
use sluice_schema::api;
use sluice_schema::operation::{self, EMBEDDINGS_TEXTS_MAX, Kind, Operation, QUERY_BYTES_MAX};
use tokio_tungstenite::tungstenite::{self, Message};

/// Address space of the process: what is built without measure ends it.
const ADDRESS_KIB: u64 = 6 * 1024 * 1024;
/// Memory that a call may take beside what its body accounts for.
const CALL_BYTES: u64 = 64 * 1024 * 1024;
/// The same for one whose answer is as large as it may be.
const ANSWER_BYTES: u64 = 128 * 1024 * 1024;
/// Small questions for large answers that come at once.
const QUESTIONS: usize = 20;
/// Memory that large answers may take together: what is made of them, and what waits to be taken.
const ANSWERS_BYTES: u64 = 1536 * 1024 * 1024;
/// Memory that each byte of a body may take.
const FACTOR: u64 = 40;
const MIB: usize = 1024 * 1024;
/// Bodies of each operation of a workspace or the system that go over sockets too.
const SOCKET_BODIES: usize = 2;

/// The doors of the gateway that take calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Door {
    Http,
    /// By the path of the socket.
    Socket(&'static str),
}

const DOORS: [Door; 3] = [Door::Http, Door::Socket("/api/v1/socket"), Door::Socket("/api/socket")];

/// The call that took the most memory, and how much.
#[derive(Default)]
struct Most {
    memory_bytes: u64,
    body_bytes: usize,
    operation: &'static str,
}

struct World {
    up: Up,
    key: String,
    /// What the process took before its first call. What calls leave behind counts for each that comes after them.
    quiet_bytes: u64,
    /// The most that calls took, by door and shape.
    most: Mutex<BTreeMap<(Door, String), Most>>,
    _folder: tempfile::TempDir,
}

impl World {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut limited = Command::new("/bin/sh");
        let script = format!("ulimit -v {ADDRESS_KIB}; exec \"$0\" \"$@\"");
        limited.args(["-c", &script, env!("CARGO_BIN_EXE_sluice")]);
        let up = Up::start_as(limited, &folder.path().join("data"), &[]);
        up.json(&["flow", "start", "f1", "document-rag"]);
        let key = up.key();
        let mut world = Self { up, key, quiet_bytes: 0, most: Mutex::default(), _folder: folder };
        world.is_well();
        world.quiet_bytes = world.status("VmRSS:");
        world
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.up.url.trim_start_matches("http://")).unwrap();
        // Large answers come late on a busy machine.
        stream.set_read_timeout(Some(4 * common::PATIENCE)).unwrap();
        stream
    }

    /// Posts a body; what came back, which may be nothing where it was too large to be read.
    fn post(&self, path: &str, body: &str) -> String {
        let mut stream = self.connect();
        let (key, length) = (&self.key, body.len());
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        // One that refuses early does not read to the end.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn get(&self, target: &str) -> String {
        let mut stream = self.connect();
        let key = &self.key;
        let head = format!(
            "GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
        );
        // One that refuses early does not read to the end.
        let _ = stream.write_all(head.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn call(&self, operation: &Operation, body: &str) -> String {
        let path = match operation.kind {
            Kind::FlowService => format!("/api/v1/flow/f1/service/{}", operation.name),
            kind => format!("/api/v1/{}", kind.as_str()),
        };
        self.post(&path, body)
    }

    /// Makes a call over a socket of its own; what came back for it, or why the socket was closed.
    fn call_over_socket(&self, path: &str, operation: &Operation, body: &str) -> String {
        let url = format!("{}{path}", self.up.url.replace("http://", "ws://"));
        let (mut socket, _) = tungstenite::client(url, self.connect()).unwrap();
        socket.send(Message::text(json!({"type": "auth", "token": self.key}).to_string())).unwrap();
        let (flow, service) = match operation.kind {
            Kind::FlowService => ("f1", operation.name),
            kind => ("", kind.as_str()),
        };
        let frame = format!(
            "{{\"id\": \"1\", \"flow\": \"{flow}\", \"service\": \"{service}\", \"request\": {body}}}"
        );
        // One that refuses early does not read to the end.
        let _ = socket.send(Message::text(frame));
        loop {
            match socket.read() {
                Ok(Message::Text(text)) => {
                    let frame: Value = serde_json::from_str(&text).unwrap();
                    // What cannot be read has no id that could come back.
                    if frame["complete"] == true || frame.get("error").is_some() {
                        return text.to_string();
                    }
                }
                Ok(Message::Close(Some(close))) => return format!("closed: {} {}", close.code, close.reason),
                Ok(_) => {}
                Err(error) => return format!("gone: {error}"),
            }
        }
    }

    fn call_at(&self, door: Door, operation: &Operation, body: &str) -> String {
        match door {
            Door::Http => self.call(operation, body),
            Door::Socket(path) => self.call_over_socket(path, operation, body),
        }
    }

    /// Tells what was measured.
    fn tell(&self) {
        for ((door, shape), Most { memory_bytes, body_bytes, operation }) in &*self.most.lock().unwrap() {
            let (memory_kib, body_kib) = (memory_bytes >> 10, body_bytes >> 10);
            eprintln!("{door:?} {shape}: {memory_kib} KiB for a body of {body_kib} KiB ({operation})");
        }
    }

    fn status(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.up.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Makes a call; the process has to live, answer in words, and have taken no more than its body accounts for.
    fn holds(&self, what: &str, body: &str, beside: u64, call: impl FnOnce() -> String) -> String {
        // The peak is counted from here.
        std::fs::write(format!("/proc/{}/clear_refs", self.up.pid()), "5").unwrap();
        let answer = call();
        let more = self.more_bytes();
        let may = beside + FACTOR * body.len() as u64;
        assert!(more <= may, "{what}: {more} bytes for a body of {}", body.len());
        let is_answered = ["HTTP/1.1 ", "{", "closed: "].iter().any(|begins| answer.starts_with(begins));
        assert!(is_answered, "{what}: no answer but '{answer}'\n{}", self.up.log());
        answer
    }

    /// The most that the process took since the peak was last counted anew, beyond what it took in quiet.
    fn more_bytes(&self) -> u64 {
        self.status("VmHWM:").saturating_sub(self.quiet_bytes)
    }

    /// The same, and notes what it took.
    fn measured(&self, door: Door, operation: &Operation, shape: &str, body: &str) {
        let what = format!("{}/{} {shape} at {door:?}", operation.kind.as_str(), operation.name);
        self.holds(&what, body, CALL_BYTES, || self.call_at(door, operation, body));
        let more = self.more_bytes();
        let mut most = self.most.lock().unwrap();
        let known = most.entry((door, shape.to_owned())).or_default();
        if more > known.memory_bytes {
            *known = Most { memory_bytes: more, body_bytes: body.len(), operation: operation.name };
        }
    }

    fn is_well(&self) {
        let mut stream = self.connect();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}\n{}", self.up.log());
    }
}

/// A body with this at the end of a way of members, in objects and, where it is said so, in lists of one.
fn body_with(path: &[&str], hostile: &str, in_lists: bool) -> String {
    let mut value = hostile.to_owned();
    for (depth, name) in path.iter().enumerate().rev() {
        value = format!("{{\"{name}\": {value}}}");
        if in_lists && depth > 0 {
            value = format!("[{value}]");
        }
    }
    value
}

/// Bodies for an operation, with something hostile in members that its service reads, and in one that it does not. A service
/// reads them before it looks at the operation, so its operations share its members among them.
fn bodies(operation: &Operation, hostile: &str) -> Vec<String> {
    let service = match operation.kind {
        Kind::FlowService if operation.name == operation::THRU => return Vec::new(),
        Kind::FlowService => operation.name,
        kind => kind.as_str(),
    };
    let service = api::find(service).unwrap_or_else(|| panic!("no service '{service}'"));
    let of_service = operation::table().iter().filter(|other| match operation.kind {
        Kind::FlowService => other.name == operation.name,
        kind => other.kind == kind,
    });
    let names: Vec<_> = of_service.map(|other| other.name).collect();
    let own = names.iter().position(|name| *name == operation.name).unwrap();
    let mut bodies = Vec::new();
    for (number, path) in service.members().chain([vec!["unknown"]]).enumerate() {
        if number % names.len() != own {
            continue;
        }
        bodies.push(body_with(&path, hostile, false));
        if path.len() > 1 {
            bodies.push(body_with(&path, hostile, true));
        }
    }
    if operation.kind != Kind::FlowService {
        let named = format!("{{\"operation\": \"{}\", ", operation.name);
        // First one that nearly every operation reads, with one that none does.
        let unknown = if hostile.len() > MIB { "1" } else { hostile };
        bodies.insert(0, format!("{{\"id\": {hostile}, \"values\": [], \"unknown\": [{unknown}]}}"));
        bodies.iter_mut().for_each(|body| body.replace_range(..1, &named));
    }
    bodies
}

/// The largest, the most, the deepest that is read, and deeper.
fn shapes() -> [(&'static str, String); 4] {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    [
        ("largest", format!("\"{}\"", "x".repeat(2 * MIB))),
        ("most", format!("[{}\"a\"]", "\"a\",".repeat(100_000))),
        ("deepest", nested(100)),
        ("deeper", nested(50_000)),
    ]
}

#[test]
fn no_call_ends_the_process_and_memory_is_in_proportion_to_its_body() {
    for (shape, hostile) in shapes() {
        // A process for each, so that what larger bodies left behind is room for none of the others.
        let world = World::start();
        for operation in operation::table() {
            if matches!(operation.kind, Kind::FlowImport | Kind::FlowExport | Kind::Stream) {
                continue;
            }
            for (number, body) in bodies(operation, &hostile).iter().enumerate() {
                let is_everywhere = operation.kind == Kind::FlowService || number < SOCKET_BODIES;
                let doors = if is_everywhere { &DOORS[..] } else { &DOORS[..1] };
                for door in doors {
                    world.measured(*door, operation, shape, body);
                }
            }
        }
        world.tell();
        world.is_well();
    }
}

#[test]
fn small_questions_for_large_answers_take_bounded_memory_however_many_come() {
    let world = World::start();
    let add = json!({"operation": "add-document", "content": "YWFh".repeat(6 * MIB),
        "document-metadata": {"id": "large", "kind": "text/plain", "title": "large", "time": 1}});
    let added = world.post("/api/v1/librarian", &add.to_string());
    assert!(added.starts_with("HTTP/1.1 200") && !added.contains("error"), "{added}");
    let value = "x".repeat(1_000_000);
    for key in 0..14 {
        let put = json!({"operation": "put", "values": [{"type": "large", "key": key.to_string(), "value": value}]});
        let put = world.post("/api/v1/config", &put.to_string());
        assert!(put.starts_with("HTTP/1.1 200") && !put.contains("error"), "{put}");
    }
    let content = json!({"operation": "get-document-content", "document-id": "large"}).to_string();
    let values = json!({"operation": "getvalues", "type": "large"}).to_string();
    let streamed = "/api/v1/document-stream?document-id=large&chunk-size=50000000";
    let asks: [(&str, &(dyn Fn() -> String + Sync)); 3] = [
        ("content", &|| world.post("/api/v1/librarian", &content)),
        ("values", &|| world.post("/api/v1/config", &values)),
        ("parts", &|| world.get(streamed)),
    ];
    for (what, ask) in asks {
        std::fs::write(format!("/proc/{}/clear_refs", world.up.pid()), "5").unwrap();
        // Of each answer only the beginning is kept, so that this process stays small.
        let answers: Vec<String> = std::thread::scope(|scope| {
            let asked: Vec<_> =
                (0..QUESTIONS).map(|_| scope.spawn(|| ask().chars().take(300).collect::<String>())).collect();
            asked.into_iter().map(|answer| answer.join().unwrap()).collect()
        });
        let is_answered = |answer: &&String| answer.starts_with("HTTP/1.1 200");
        assert!(answers.iter().any(|answer| is_answered(&answer)), "{what}: {}", answers[0]);
        // The others are told to come again.
        let is_told = |answer: &String| is_answered(&answer) || answer.starts_with("HTTP/1.1 429");
        let untold = answers.iter().find(|answer| !is_told(answer));
        assert!(untold.is_none(), "{what}: {untold:?}\n{}", world.up.log());
        let more = world.more_bytes();
        eprintln!("{QUESTIONS} questions for {what}: {} MiB more", more >> 20);
        assert!(more <= ANSWERS_BYTES, "{what}: {more} bytes for small questions");
        world.is_well();
    }
}

#[test]
fn no_query_ends_the_process() {
    let world = World::start();
    let long = |bytes: usize| format!("document-id={}", "x".repeat(bytes));
    let most = |count: usize| format!("{}document-id=a", "a=b&".repeat(count));
    let deep = |depth: usize| format!("document-id={}", "%5B".repeat(depth));
    let queries = [
        long(1_000),
        long(10_000),
        long(2 * MIB),
        most(1_000),
        most(500_000),
        deep(1_000),
        deep(500_000),
        "document-id=a&chunk-size=0".to_owned(),
        "document-id=a&chunk-size=18446744073709551615".to_owned(),
        "document-id=a&chunk-size=-1".to_owned(),
        "document-id=%00%FF%&workspace=%2E%2E%2F".to_owned(),
        "document-id=a&document-id=b&workspace=".to_owned(),
        String::new(),
    ];
    for path in ["/api/v1/document-stream", "/api/metrics", "/readyz"] {
        for query in &queries {
            let what = format!("{path} with {} bytes of a query", query.len());
            let answer = world.holds(&what, query, CALL_BYTES, || {
                let answer = world.get(&format!("{path}?{query}"));
                // The rest of a head that is too large is not read; what was said of it may be lost with it.
                if answer.is_empty() && query.len() > 64 * 1024 {
                    "closed: too large".to_owned()
                } else {
                    answer
                }
            });
            // What lacks its parameter is 500, as published clients expect.
            let is_typed =
                !answer.starts_with("HTTP/1.1 500") || answer.contains("Missing required parameter");
            assert!(is_typed, "{what}: {}", &answer[..answer.len().min(300)]);
        }
    }
    world.is_well();
}

#[test]
fn what_is_allowed_is_answered_and_a_little_more_is_refused_by_name() {
    let world = World::start();
    let service = |name: &str| operation::find(Kind::FlowService, name).unwrap();
    let texts = |count: usize| json!({"texts": vec!["a"; count]}).to_string();
    let body = texts(EMBEDDINGS_TEXTS_MAX);
    let answer = world.holds("embeddings", &body, ANSWER_BYTES, || world.call(service("embeddings"), &body));
    assert!(answer.contains("\"vectors\""), "{}", &answer[..answer.len().min(500)]);
    let body = texts(EMBEDDINGS_TEXTS_MAX + 1);
    let answer = world.holds("embeddings", &body, ANSWER_BYTES, || world.call(service("embeddings"), &body));
    assert!(answer.contains("too-large") && answer.contains("at most 2048"), "{answer}");
    // So many that the gateway does not even build the body.
    let body = texts(1_200_000);
    let answer = world.holds("embeddings", &body, ANSWER_BYTES, || world.call(service("embeddings"), &body));
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("send fewer"), "{answer}");
    for (bytes, refused) in [(QUERY_BYTES_MAX, false), (QUERY_BYTES_MAX + 1, true), (20 * MIB, true)] {
        let body = json!({"query": "why ".repeat(bytes / 4) + &"x".repeat(bytes % 4)}).to_string();
        let answer =
            world.holds("document-rag", &body, ANSWER_BYTES, || world.call(service("document-rag"), &body));
        assert_eq!(answer.contains("too-large"), refused, "{bytes}: {}", &answer[..answer.len().min(500)]);
    }
    world.is_well();
}

#[test]
fn templates_without_end_stop_neither_calls_nor_the_stop() {
    let mut world = World::start();
    let template = "{% set ns = namespace(x=[1,1]) %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ns.x|length}}";
    let record = json!({"prompt": template}).to_string();
    let put =
        json!({"operation": "put", "values": [{"type": "prompt", "key": "template.t", "value": record}]});
    let config = operation::find(Kind::Service("config"), "put").unwrap();
    assert!(!world.call(config, &put.to_string()).contains("error"), "the prompt is put");
    let body = json!({"id": "t", "variables": {}}).to_string();
    let (key, length) = (&world.key, body.len());
    let request = format!(
        "POST /api/v1/flow/f1/service/prompt HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n\
         Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    // The record may take a moment to be seen by the flow.
    let until = std::time::Instant::now() + common::PATIENCE;
    loop {
        let answer = world.call(operation::find(Kind::FlowService, "prompt").unwrap(), &body);
        if answer.contains("computing") {
            break;
        }
        assert!(std::time::Instant::now() < until, "{answer}");
    }
    let asked: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut stream = world.connect();
            stream.write_all(request.as_bytes()).unwrap();
            stream
        })
        .collect();
    world.is_well();
    let listed = world.call(
        operation::find(Kind::Service("flow"), "list-flows").unwrap(),
        r#"{"operation": "list-flows"}"#,
    );
    assert!(listed.contains("f1"), "{listed}");
    // Told to stop while they are under way.
    assert_eq!(world.up.terminate(), 0, "{}", world.up.log());
    drop(asked);
}
