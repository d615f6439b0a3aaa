//! Documents through a whole system, the release binary: a PDF whose chunks wait for a slow provider of embeddings, beside
//! what that provider alone would take; the offline path; many small documents. `cargo bench -p sluice --bench ingest`;
//! `SLUICE_BENCH_BINARY` names the program of another build to measure instead.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench that cannot go on fails, and it prints"
)]

#[path = "../../documents/tests/made/mod.rs"]
#[allow(dead_code, reason = "shared with the tests, which make more")]
mod made;

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::routing::post;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_sluice");
const PAGES: usize = 100;
/// What the slow provider takes for an answer.
const SLOW: Duration = Duration::from_secs(1);
const SMALL_DOCUMENTS: usize = 10_000;
/// Callers who add small documents at once.
const CALLERS: usize = 16;

fn main() {
    // `cargo test` runs benches too, to see that they build; only `cargo bench` measures.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        for calls in [1, 32] {
            slow_provider(calls).await;
        }
        offline().await;
        small_documents().await;
    });
}

/// A system of its own, ended with its guard.
struct System {
    child: Child,
    url: String,
    http: reqwest::Client,
    _folder: tempfile::TempDir,
}

impl Drop for System {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl System {
    async fn start(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let listen = format!("127.0.0.1:{port}");
        let binary = std::env::var_os("SLUICE_BENCH_BINARY").unwrap_or_else(|| BINARY.into());
        let child = Command::new(binary)
            .args(["up", "--no-auth", "--listen", &listen, "--data"])
            .arg(folder.path())
            .args(more)
            .env("SLUICE_LOG", "error")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let system =
            Self { child, url: format!("http://{listen}"), http: reqwest::Client::new(), _folder: folder };
        let ready = format!("{}/readyz", system.url);
        while !system.http.get(&ready).send().await.is_ok_and(|answer| answer.status().is_success()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        system
    }

    async fn ask(&self, path: &str, body: Value) -> Value {
        let answer = self.http.post(format!("{}/api/v1/{path}", self.url)).json(&body).send().await.unwrap();
        let said: Value = answer.json().await.unwrap();
        assert!(said.get("error").is_none_or(Value::is_null), "{path}: {said}");
        said
    }

    /// Starts flow `f` whose embeddings are made so many at once.
    async fn flow(&self, calls: usize) {
        let named = json!({"operation": "get-blueprint", "blueprint-name": "document-rag"});
        let found = self.ask("flow", named).await;
        let mut blueprint: Value =
            serde_json::from_str(found["blueprint-definition"].as_str().unwrap()).unwrap();
        for part in ["embeddings:{id}", "document-embeddings:{id}"] {
            blueprint["flow"][part]["parameters"]["concurrency"] = json!(calls.to_string());
        }
        let put = json!({"operation": "put-blueprint", "blueprint-name": "bench", "blueprint-definition": blueprint.to_string()});
        self.ask("flow", put).await;
        self.ask("flow", json!({"operation": "start-flow", "flow-id": "f", "blueprint-name": "bench"})).await;
    }

    async fn add(&self, id: &str, kind: &str, content: &[u8]) {
        let metadata = json!({"id": id, "kind": kind, "title": id, "time": 0, "document-type": "source"});
        let body = json!({"operation": "add-document", "document-metadata": metadata, "content": BASE64.encode(content)});
        self.ask("librarian", body).await;
        let record = json!({"id": id, "document-id": id, "flow": "f", "collection": "default", "time": 0});
        self.ask("librarian", json!({"operation": "add-processing", "processing-metadata": record})).await;
    }

    async fn progress(&self, id: &str) -> Value {
        let asked = json!({"operation": "get-progress", "flow": "f", "document-ids": [id]});
        self.ask("librarian", asked).await["progress"][0].clone()
    }

    /// Waits until a document is through; its chunks.
    async fn through(&self, id: &str) -> u64 {
        loop {
            let progress = self.progress(id).await;
            if progress["complete"] == true {
                assert_eq!(progress["failed"].as_u64().unwrap_or(0), 0, "{progress}");
                return progress["stored"].as_u64().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Milliseconds of processor time so far, and MB written to the disk.
    fn spent(&self) -> (f64, f64) {
        let of = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap();
        let stat = of("stat");
        // After the name, which may hold anything: state first, user and system time 11 and 12 places on, in 1/100 s.
        let times = stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(2);
        let ticks: f64 = times.map(|ticks| ticks.parse::<f64>().unwrap()).sum();
        let io = of("io");
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap();
        (ticks * 10.0, written.parse::<f64>().unwrap() / 1e6)
    }

    fn resident_mb(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }
}

/// A provider that takes its time; counts the questions and the most that were asked at once.
async fn provider() -> (String, Arc<[AtomicUsize; 3]>) {
    let counts: Arc<[AtomicUsize; 3]> = Arc::default();
    let seen = counts.clone();
    let answer = move |Json(question): Json<Value>| {
        let seen = seen.clone();
        async move {
            let [asked, now, most] = &*seen;
            asked.fetch_add(1, Ordering::SeqCst);
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(SLOW).await;
            now.fetch_sub(1, Ordering::SeqCst);
            let texts = question["input"].as_array().map_or(1, Vec::len);
            let vector = |index| json!({"index": index, "embedding": [0.5, 0.5, 0.5, 0.5]});
            Json(
                json!({"data": (0..texts).map(vector).collect::<Vec<_>>(), "usage": {"prompt_tokens": 1, "total_tokens": 1}}),
            )
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, Router::new().route("/v1/embeddings", post(answer))).into_future());
    (url, counts)
}

async fn slow_provider(calls: usize) {
    let (url, counts) = provider().await;
    let system = System::start(&["--embeddings-url", &url, "--embeddings-model", "m"]).await;
    system.flow(calls).await;
    let line = "A sluice is a gate that lets water through, and only as much of it as is wanted. ".repeat(12);
    let pdf = made::pdf(&[line.as_str(); PAGES]);
    let began = Instant::now();
    system.add("pdf", "application/pdf", &pdf).await;
    let chunks = system.through("pdf").await;
    let took = began.elapsed().as_secs_f64();
    let [asked, _, most] = &*counts;
    let (asked, most) = (asked.load(Ordering::SeqCst), most.load(Ordering::SeqCst));
    let ideal = asked.div_ceil(calls) as f64 * SLOW.as_secs_f64();
    println!(
        "PDF of {PAGES} pages, {chunks} chunks, provider takes 1 s, {calls:>2} at once: {took:.1} s, the provider alone {ideal:.1} s, ratio {:.2} ({asked} questions, at most {most} at once)",
        took / ideal
    );
}

async fn offline() {
    let system = System::start(&[]).await;
    system.flow(32).await;
    let text =
        "A sluice is a gate that lets water through, and only as much of it as is wanted.\n\n".repeat(25_000);
    let began = Instant::now();
    system.add("text", "text/plain", text.as_bytes()).await;
    let chunks = system.through("text").await;
    let took = began.elapsed().as_secs_f64();
    println!(
        "text of {:.1} MB, offline embeddings: {chunks} chunks in {took:.1} s, {:.0} chunks/s",
        text.len() as f64 / 1e6,
        chunks as f64 / took
    );
}

async fn small_documents() {
    let system = System::start(&[]).await;
    system.flow(32).await;
    println!("small documents  documents/s  processor ms/document  MB written/document  resident MB");
    for batch in 0..10 {
        let (began, before) = (Instant::now(), system.spent());
        let first = batch * SMALL_DOCUMENTS / 10;
        let ids: Vec<String> = (first..first + SMALL_DOCUMENTS / 10).map(|n| format!("d{n}")).collect();
        let add = async |id: &String| {
            let text = format!("Note {id}: the spare key of pump house {id} hangs behind the blue door.");
            system.add(id, "text/plain", text.as_bytes()).await;
        };
        stream::iter(&ids).for_each_concurrent(CALLERS, add).await;
        for id in &ids {
            assert_eq!(system.through(id).await, 1, "{id}");
        }
        let rate = ids.len() as f64 / began.elapsed().as_secs_f64();
        let (now, count) = (system.spent(), ids.len() as f64);
        let (processor, written) = ((now.0 - before.0) / count, (now.1 - before.1) / count);
        println!(
            "{:>15}  {rate:>11.0}  {processor:>21.1}  {written:>19.2}  {:>11.1}",
            first + ids.len(),
            system.resident_mb()
        );
    }
}
