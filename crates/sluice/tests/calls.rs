//! No call ends the process or takes more memory than its body accounts for: every operation, and every member of the services
//! of flows, with the largest, the most and the deepest, through the binary under a limit of its address space.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;

use common::Up;
use serde_json::{Value, json};
use sluice_schema::operation::{self, EMBEDDINGS_TEXTS_MAX, Kind, Operation, QUERY_BYTES_MAX};
use tokio_tungstenite::tungstenite::{self, Message};

/// Address space of the process: what is built without measure ends it.
const ADDRESS_KIB: u64 = 6 * 1024 * 1024;
/// Memory that a call may take beside what its body accounts for.
const CALL_BYTES: u64 = 128 * 1024 * 1024;
/// Memory that each byte of a body may take.
const FACTOR: u64 = 40;
const MIB: usize = 1024 * 1024;

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
    /// What the process took before the last call.
    quiet: Cell<u64>,
    /// The most that calls took, by door and shape.
    most: RefCell<BTreeMap<(Door, String), Most>>,
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
        Self { up, key, quiet: Cell::new(0), most: RefCell::default(), _folder: folder }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.up.url.trim_start_matches("http://")).unwrap();
        stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
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
        for ((door, shape), Most { memory_bytes, body_bytes, operation }) in &*self.most.borrow() {
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
    fn holds(&self, what: &str, body: &str, call: impl FnOnce() -> String) -> String {
        // The peak is counted from here.
        std::fs::write(format!("/proc/{}/clear_refs", self.up.pid()), "5").unwrap();
        let before = self.status("VmRSS:");
        self.quiet.set(before);
        let answer = call();
        let more = self.status("VmHWM:").saturating_sub(before);
        let may = CALL_BYTES + FACTOR * body.len() as u64;
        assert!(more <= may, "{what}: {more} bytes for a body of {}", body.len());
        let is_answered = ["HTTP/1.1 ", "{", "closed: "].iter().any(|begins| answer.starts_with(begins));
        assert!(is_answered, "{what}: no answer but '{answer}'\n{}", self.up.log());
        answer
    }

    /// The same, and notes what it took.
    fn measured(&self, door: Door, operation: &Operation, shape: &str, body: &str) {
        let what = format!("{}/{} {shape} at {door:?}", operation.kind.as_str(), operation.name);
        self.holds(&what, body, || self.call_at(door, operation, body));
        let more = self.status("VmHWM:").saturating_sub(self.quiet.get());
        let mut most = self.most.borrow_mut();
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

/// Members of calls, by service of a flow; an operation of the table that has none here fails the test.
fn members(service: &str) -> &'static [&'static str] {
    match service {
        "agent" => &["question", "history", "group", "state"],
        "text-completion" => &["system", "prompt"],
        "prompt" => &["id", "terms", "variables"],
        "mcp-tool" => &["name", "parameters"],
        "graph-rag" => &["query", "collection", "entity-limit"],
        "document-rag" => &["query", "collection", "doc-limit", "retrieval-mode"],
        "embeddings" => &["texts"],
        "reranker" => &["queries", "documents", "limit"],
        "image-to-text" => &["image", "prompt"],
        "cloze" | "decision-scoring" | "field-extraction" => &["text", "prompt", "fields"],
        "graph-embeddings" | "document-embeddings" | "row-embeddings" => {
            &["vector", "vectors", "limit", "attributes"]
        }
        "keyword-index" => &["query", "limit", "collection"],
        "triples" => &["s", "p", "o", "limit", "collection"],
        "sparql" | "rows" => &["query", "variables", "operation-name"],
        "nlp-query" | "structured-query" => &["question", "max-results"],
        "structured-diag" => &["sample", "schema"],
        "text-load" => &["text", "id", "metadata"],
        "document-load" => &["data", "id", "metadata"],
        operation::THRU => &[],
        other => panic!("name the members of '{other}' here"),
    }
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
    let world = World::start();
    for operation in operation::table() {
        for (shape, hostile) in shapes() {
            let named: Vec<String> = match operation.kind {
                Kind::FlowService => members(operation.name)
                    .iter()
                    .map(|member| format!("{{\"{member}\": {hostile}}}"))
                    .collect(),
                Kind::Iam | Kind::Service(_) => {
                    let name = operation.name;
                    // One member each that some operation of the service reads, and one that none does.
                    vec![format!(
                        "{{\"operation\": \"{name}\", \"id\": {hostile}, \"values\": [], \"unknown\": [{}]}}",
                        if shape == "largest" { "1" } else { &hostile }
                    )]
                }
                Kind::FlowImport | Kind::FlowExport | Kind::Stream => continue,
            };
            for body in named {
                for door in DOORS {
                    world.measured(door, operation, shape, &body);
                }
            }
        }
    }
    world.tell();
    world.is_well();
}

#[test]
fn what_is_allowed_is_answered_and_a_little_more_is_refused_by_name() {
    let world = World::start();
    let service = |name: &str| operation::find(Kind::FlowService, name).unwrap();
    let texts = |count: usize| json!({"texts": vec!["a"; count]}).to_string();
    let body = texts(EMBEDDINGS_TEXTS_MAX);
    let answer = world.holds("embeddings", &body, || world.call(service("embeddings"), &body));
    assert!(answer.contains("\"vectors\""), "{}", &answer[..answer.len().min(500)]);
    let body = texts(EMBEDDINGS_TEXTS_MAX + 1);
    let answer = world.holds("embeddings", &body, || world.call(service("embeddings"), &body));
    assert!(answer.contains("too-large") && answer.contains("at most 2048"), "{answer}");
    // So many that the gateway does not even build the body.
    let body = texts(1_200_000);
    let answer = world.holds("embeddings", &body, || world.call(service("embeddings"), &body));
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("send fewer"), "{answer}");
    for (bytes, refused) in [(QUERY_BYTES_MAX, false), (QUERY_BYTES_MAX + 1, true), (20 * MIB, true)] {
        let body = json!({"query": "why ".repeat(bytes / 4) + &"x".repeat(bytes % 4)}).to_string();
        let answer = world.holds("document-rag", &body, || world.call(service("document-rag"), &body));
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
