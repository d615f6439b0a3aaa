//! A gateway in front of a service that does nothing, and callers that keep it busy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use sluice_bus::{Broker, BrokerAdmin, TopicSpec};
use sluice_gateway::{Options, Parts};
use sluice_iam::Mode;
use sluice_schema::message::EmbeddingsResponse;
use sluice_schema::{Topic, exchange, record};
use sluice_sdk::service::{Point, serve};
use sluice_sdk::{ConfigClient, ConfigWatch, Process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

/// How long callers are busy, and how much of it counts.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
}

pub(crate) const SPAN: Span = Span { warm_up: Duration::from_millis(500), measured: Duration::from_secs(2) };
pub(crate) const BODY: &str = r#"{"texts":["what boils at a hundred degrees?"]}"#;
pub(crate) const PATH: &str = "/api/v1/flow/f/service/embeddings";

/// Latencies of one measurement.
pub(crate) struct Measured {
    pub(crate) took: Vec<Duration>,
    pub(crate) span: Duration,
}

impl Measured {
    pub(crate) fn per_second(&self) -> f64 {
        self.took.len() as f64 / self.span.as_secs_f64()
    }

    /// The latency that this part of the calls stays under.
    pub(crate) fn percentile_us(&self, part: f64) -> f64 {
        let mut sorted = self.took.clone();
        sorted.sort_unstable();
        let at = (sorted.len() as f64 * part) as usize;
        sorted.get(at).map_or(0.0, |took| took.as_secs_f64() * 1e6)
    }
}

/// A gateway with its neighbours, one flow, and a service in it that answers at once.
pub(crate) struct Bed {
    pub(crate) address: SocketAddr,
    pub(crate) token: String,
    _processes: [Process; 3],
    _store: sluice_store::Embedded,
    _folder: tempfile::TempDir,
}

impl Bed {
    /// The system's services, the gateway and the flow's service each use an end of their own.
    pub(crate) async fn start<B: Broker + BrokerAdmin>([system, front, back]: [B; 3]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = sluice_store::Embedded::open(folder.path().join("store")).unwrap();
        let system = Arc::new(system);
        let admin: Arc<dyn BrokerAdmin> = system.clone();
        let process = |broker| Process::new(broker, CancellationToken::new());
        let (system, front, back) = (process(system), process(Arc::new(front)), process(Arc::new(back)));
        let tables = store.tables();
        let parts =
            sluice_config::Parts { process: system.clone(), admin: admin.clone(), tables: tables.clone() };
        sluice_config::start(parts).await.unwrap();
        let file = folder.path().join("admin.key");
        let config = ConfigClient::new(&system.replies).await.unwrap();
        let mode = Mode::AdminKey { file: file.clone() };
        let parts = sluice_iam::Parts { process: system.clone(), admin: admin.clone(), tables, config, mode };
        sluice_iam::start(parts).await.unwrap();

        let topic = |class: &str| Topic::parse(&format!("{class}:tg:embeddings:default:f")).unwrap();
        let (request, response) = (topic("request"), topic("response"));
        admin.ensure(&TopicSpec::with(request.clone(), "svc")).await.unwrap();
        admin.ensure(&TopicSpec::bare(response.clone())).await.unwrap();
        let doors = json!({"embeddings": {"request": request, "response": response}});
        let point = Point::new(request, response, "svc");
        let answer = || EmbeddingsResponse { vectors: vec![vec![0.5; 8]], ..EmbeddingsResponse::default() };
        let attached =
            serve::<exchange::Embeddings, _, _>(&back, point, back.stop.clone(), move |_, _| async move {
                Ok(answer())
            });
        attached.cancelled().await;
        let config = ConfigClient::new(&system.replies).await.unwrap();
        let flow = json!({"blueprint-name": "b", "interfaces": doors}).to_string();
        let flow = sluice_sdk::config::value("default", record::FLOW, "f", &flow);
        config.put("default", vec![flow]).await.unwrap();

        let watch = ConfigWatch::start(&front, Duration::from_secs(30));
        let options = Options::new("127.0.0.1:0".parse().unwrap());
        let gateway = sluice_gateway::start(Parts { process: front.clone(), watch, options, no_room: None })
            .await
            .unwrap();
        let token = std::fs::read_to_string(file).unwrap().trim().to_owned();
        let _processes = [system, front, back];
        Self { address: gateway.local_addr, token, _processes, _store: store, _folder: folder }
    }

    /// Calls over HTTP.
    pub(crate) async fn http(&self, callers: usize) -> Measured {
        http(self.address, PATH, &self.token, callers, SPAN).await
    }

    /// Calls over one WebSocket.
    pub(crate) async fn socket(&self, callers: usize) -> Measured {
        socket(&format!("ws://{}/api/v1/socket?token={}", self.address, self.token), callers, SPAN).await
    }
}

/// Callers that each hold one connection and ask again as soon as they have their answer.
pub(crate) async fn http(
    address: SocketAddr,
    path: &str,
    token: &str,
    callers: usize,
    span: Span,
) -> Measured {
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let mut running = JoinSet::new();
    let started = Instant::now();
    for _ in 0..callers {
        let request = request.clone();
        running.spawn(async move {
            let mut tcp = TcpStream::connect(address).await.unwrap();
            tcp.set_nodelay(true).unwrap();
            let mut took = Vec::new();
            let mut buffer = Vec::with_capacity(4_096);
            while started.elapsed() < span.warm_up + span.measured {
                let asked = Instant::now();
                tcp.write_all(request.as_bytes()).await.unwrap();
                read_answer(&mut tcp, &mut buffer).await;
                if started.elapsed() > span.warm_up {
                    took.push(asked.elapsed());
                }
            }
            took
        });
    }
    let took = running.join_all().await.into_iter().flatten().collect();
    Measured { took, span: span.measured }
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
pub(crate) async fn socket(url: &str, callers: usize, span: Span) -> Measured {
    let frame = |n: usize| format!(r#"{{"id":{n},"flow":"f","service":"embeddings","request":{BODY}}}"#);
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
    while started.elapsed() < span.warm_up + span.measured {
        let Some(Ok(Message::Text(text))) = socket.next().await else { continue };
        let id = text.strip_prefix(r#"{"id":"#).and_then(|rest| rest.split(',').next()).unwrap();
        let n: usize = id.parse().unwrap();
        assert!(!text.contains("\"error\""), "{text}");
        if started.elapsed() > span.warm_up {
            took.push(asked[n].elapsed());
        }
        asked[n] = Instant::now();
        socket.send(Message::text(frame(n))).await.unwrap();
    }
    Measured { took, span: span.measured }
}
