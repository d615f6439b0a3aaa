//! What the gateway costs: calls through it to a service that does nothing, beside a bare axum server that echoes, in the
//! same run, with the same client. `cargo bench -p sluice-gateway`.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement that fails may panic, and prints"
)]

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::WebSocketUpgrade;
use axum::response::Response;
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use sluice_bus::embedded::Embedded;
use sluice_bus::{BrokerAdmin as _, TopicSpec};
use sluice_gateway::{Options, Parts};
use sluice_iam::Mode;
use sluice_schema::message::EmbeddingsResponse;
use sluice_schema::{Topic, exchange, record};
use sluice_sdk::service::{Point, serve};
use sluice_sdk::{ConfigClient, ConfigWatch, Process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

const WARM_UP: Duration = Duration::from_millis(500);
const MEASURED: Duration = Duration::from_secs(2);
const BODY: &str = r#"{"texts":["what boils at a hundred degrees?"]}"#;
const PATH: &str = "/api/v1/flow/f/service/embeddings";

fn main() {
    // Tests only want to see it build.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(run());
}

async fn run() {
    let folder = tempfile::tempdir().unwrap();
    let echo = echo().await;
    let (gateway, token, _process, _store) = gateway(folder.path()).await;
    println!(
        "| door | callers | echo req/s | gateway req/s | ratio | echo p50 µs | gateway p50 µs | added p50 µs |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for callers in [1, 64] {
        let bare = http(echo, "/echo", &token, callers).await;
        let ours = http(gateway, PATH, &token, callers).await;
        row("HTTP", callers, &bare, &ours);
    }
    let frame = |n: usize| format!(r#"{{"id":{n},"flow":"f","service":"embeddings","request":{BODY}}}"#);
    for callers in [1, 64] {
        let bare = socket(&format!("ws://{echo}/socket"), callers, &frame).await;
        let ours = socket(&format!("ws://{gateway}/api/v1/socket?token={token}"), callers, &frame).await;
        row("one WebSocket", callers, &bare, &ours);
    }
}

fn row(door: &str, callers: usize, bare: &Measured, ours: &Measured) {
    let (a, b) = (bare.per_second(), ours.per_second());
    let (p, q) = (bare.p50_us(), ours.p50_us());
    println!(
        "| {door} | {callers} | {a:.0} | {b:.0} | {:.0} % | {p:.0} | {q:.0} | {:.0} |",
        100.0 * b / a,
        q - p
    );
}

/// Latencies of one measurement.
struct Measured {
    took: Vec<Duration>,
    span: Duration,
}

impl Measured {
    fn per_second(&self) -> f64 {
        self.took.len() as f64 / self.span.as_secs_f64()
    }

    fn p50_us(&self) -> f64 {
        let mut sorted = self.took.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).map_or(0.0, |took| took.as_secs_f64() * 1e6)
    }
}

/// A bare server: HTTP and WebSocket echo.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let listener = listener.tap_io(|tcp| tcp.set_nodelay(true).unwrap());
    async fn echo_socket(upgrade: WebSocketUpgrade) -> Response {
        upgrade.on_upgrade(async |mut socket| {
            while let Some(Ok(message)) = socket.recv().await {
                if socket.send(message).await.is_err() {
                    return;
                }
            }
        })
    }
    let app = axum::Router::new()
        .route("/echo", post(async |body: bytes::Bytes| body))
        .route("/socket", get(echo_socket));
    spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

/// The gateway with its neighbours on the embedded broker, and one flow with a service that answers at once.
async fn gateway(folder: &std::path::Path) -> (SocketAddr, String, Process, sluice_store::Embedded) {
    let store = sluice_store::Embedded::open(folder.join("store")).unwrap();
    let broker = Arc::new(Embedded::in_memory());
    let process = Process::new(broker.clone(), CancellationToken::new());
    let tables = store.tables();
    let parts =
        sluice_config::Parts { process: process.clone(), admin: broker.clone(), tables: tables.clone() };
    sluice_config::start(parts).await.unwrap();
    let file = folder.join("admin.key");
    let config = ConfigClient::new(&process.replies).await.unwrap();
    let mode = Mode::AdminKey { file: file.clone() };
    let admin = broker.clone();
    let parts = sluice_iam::Parts { process: process.clone(), admin, tables, config, mode };
    sluice_iam::start(parts).await.unwrap();

    let topic = |class: &str| Topic::parse(&format!("{class}:tg:embeddings:default:f")).unwrap();
    let (request, response) = (topic("request"), topic("response"));
    broker.ensure(&TopicSpec::with(request.clone(), "svc")).await.unwrap();
    broker.ensure(&TopicSpec::bare(response.clone())).await.unwrap();
    let doors = json!({"embeddings": {"request": request, "response": response}});
    let point = Point::new(request, response, "svc");
    let attached =
        serve::<exchange::Embeddings, _, _>(&process, point, CancellationToken::new(), |_, _| async {
            Ok(EmbeddingsResponse { vectors: vec![vec![0.5; 8]], ..EmbeddingsResponse::default() })
        });
    attached.cancelled().await;
    let config = ConfigClient::new(&process.replies).await.unwrap();
    let flow = json!({"blueprint-name": "b", "interfaces": doors}).to_string();
    config
        .put("default", vec![sluice_sdk::config::value("default", record::FLOW, "f", &flow)])
        .await
        .unwrap();

    let watch = ConfigWatch::start(&process, Duration::from_secs(30));
    let options = Options::new("127.0.0.1:0".parse().unwrap());
    let gateway = sluice_gateway::start(Parts { process: process.clone(), watch, options }).await.unwrap();
    let token = std::fs::read_to_string(file).unwrap().trim().to_owned();
    (gateway.local_addr, token, process, store)
}

/// Callers that each hold one connection and ask again as soon as they have their answer.
async fn http(address: SocketAddr, path: &str, token: &str, callers: usize) -> Measured {
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let mut running = JoinSet::new();
    let started = Instant::now();
    for _ in 0..callers {
        let request = request.clone();
        spawn_on(&mut running, async move {
            let mut tcp = TcpStream::connect(address).await.unwrap();
            tcp.set_nodelay(true).unwrap();
            let mut took = Vec::new();
            let mut buffer = Vec::with_capacity(4_096);
            while started.elapsed() < WARM_UP + MEASURED {
                let asked = Instant::now();
                tcp.write_all(request.as_bytes()).await.unwrap();
                read_answer(&mut tcp, &mut buffer).await;
                if started.elapsed() > WARM_UP {
                    took.push(asked.elapsed());
                }
            }
            took
        });
    }
    let took = running.join_all().await.into_iter().flatten().collect();
    Measured { took, span: MEASURED }
}

async fn read_answer(tcp: &mut TcpStream, buffer: &mut Vec<u8>) {
    buffer.clear();
    loop {
        assert_ne!(tcp.read_buf(buffer).await.unwrap(), 0, "the server closed the connection");
        let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&buffer[..end]).unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{}", String::from_utf8_lossy(buffer));
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if buffer.len() >= end + 4 + length.parse::<usize>().unwrap() {
            assert!(!buffer.ends_with(b"}}"), "an error: {}", String::from_utf8_lossy(buffer));
            return;
        }
    }
}

/// One socket with so many questions under way.
async fn socket(url: &str, callers: usize, frame: &impl Fn(usize) -> String) -> Measured {
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    if let tokio_tungstenite::MaybeTlsStream::Plain(tcp) = socket.get_ref() {
        tcp.set_nodelay(true).unwrap();
    }
    let started = Instant::now();
    let mut asked = vec![started; callers];
    for (n, asked) in asked.iter_mut().enumerate() {
        *asked = Instant::now();
        socket.send(Message::text(frame(n))).await.unwrap();
    }
    let mut took = Vec::new();
    while started.elapsed() < WARM_UP + MEASURED {
        let Some(Ok(Message::Text(text))) = socket.next().await else { continue };
        let id = text.strip_prefix(r#"{"id":"#).and_then(|rest| rest.split(',').next()).unwrap();
        let n: usize = id.parse().unwrap();
        assert!(!text.contains("\"error\""), "{text}");
        if started.elapsed() > WARM_UP {
            took.push(asked[n].elapsed());
        }
        asked[n] = Instant::now();
        socket.send(Message::text(frame(n))).await.unwrap();
    }
    Measured { took, span: MEASURED }
}

#[expect(clippy::disallowed_methods, reason = "the measured server runs until the process ends")]
fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    drop(tokio::spawn(future));
}

fn spawn_on(set: &mut JoinSet<Vec<Duration>>, future: impl Future<Output = Vec<Duration>> + Send + 'static) {
    set.spawn(future);
}
