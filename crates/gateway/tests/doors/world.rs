//! A small system around a gateway: the embedded broker, a config and an identity service that tests hold in their
//! hands, and services that answer as a test says.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use sluice_bus::embedded::Embedded;
use sluice_bus::{Address, BoxFuture, Broker, BrokerAdmin, Inbox, Limits, Message, Subscription, TopicSpec};
use sluice_gateway::{Gateway, Options, Parts};
use sluice_schema::message::{self as m, ConfigPush, ConfigResponse, ConfigValue, IamResponse};
use sluice_schema::{Exchange, Topic, exchange, record, system, wire};
use sluice_sdk::service::{Point, Responder, serve};
use sluice_sdk::{ConfigWatch, Process};
use tokio_tungstenite::tungstenite::{self, Utf8Bytes};
use tokio_util::sync::CancellationToken;

/// How long a test waits for what should happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// An exchange of plain JSON; the last answer has `last` or `error`, or is the only one.
pub(crate) enum Plain {}

impl Exchange for Plain {
    const NAME: &'static str = "plain";
    type Request = Value;
    type Response = Value;
    fn is_last(_: &Value) -> bool {
        true
    }
    fn error(_: &Value) -> Option<&m::Error> {
        None
    }
    fn failed(error: m::Error) -> Value {
        json!({"error": {"type": error.r#type, "message": error.message}})
    }
}

/// The embedded broker, with a pressure that tests can raise, and that they can take away or have refuse all.
struct Pressed {
    inner: Arc<Embedded>,
    high: Arc<AtomicBool>,
    away: Arc<AtomicBool>,
    refusing: Arc<AtomicBool>,
}

impl Broker for Pressed {
    fn publish<'a>(&'a self, to: &'a Address, message: Message) -> BoxFuture<'a, sluice_bus::Result<()>> {
        if self.away.load(Ordering::SeqCst) {
            let reason = "taken away by the test".to_owned();
            return Box::pin(async { Err(sluice_bus::Error::Unavailable { reason }) });
        }
        if self.refusing.load(Ordering::SeqCst) {
            let reason = "refused by the test".to_owned();
            return Box::pin(async { Err(sluice_bus::Error::Refused { reason }) });
        }
        self.inner.publish(to, message)
    }
    fn subscribe<'a>(&'a self, to: &'a Subscription) -> BoxFuture<'a, sluice_bus::Result<Box<dyn Inbox>>> {
        self.inner.subscribe(to)
    }
    fn limits(&self) -> Limits {
        self.inner.limits()
    }
    fn pressure(&self) -> Option<sluice_bus::contract::Pressure> {
        let bytes = u64::from(self.high.load(Ordering::SeqCst));
        Some(sluice_bus::contract::Pressure { bytes, high_water_bytes: 1, disk_full: false })
    }
    fn excess(&self, workspace: &str) -> Option<sluice_bus::contract::Excess> {
        let whole = self.high.load(Ordering::SeqCst).then_some(sluice_bus::contract::Excess::Whole);
        whole.or_else(|| self.inner.excess(workspace))
    }
}

/// Of what waits in flows.
pub(crate) const HIGH_WATER_BYTES: u64 = 8 << 20;

type Values = BTreeMap<(String, String, String), String>;

/// A config service held in a test's hands.
#[derive(Clone, Default)]
pub(crate) struct Config {
    values: Arc<Mutex<(i64, Values)>>,
    /// While set, every fetch fails.
    pub(crate) broken: Arc<AtomicBool>,
    pub(crate) fetches: Arc<AtomicU64>,
}

impl Config {
    fn answer(&self, request: &m::ConfigRequest) -> Result<ConfigResponse, m::Error> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        if self.broken.load(Ordering::SeqCst) {
            return Err(m::Error::new("config-error", "broken by the test"));
        }
        let values = self.values.lock().unwrap();
        let wanted = values.1.iter().filter(|((_, kind, _), _)| request.types.contains(kind));
        let values_out = wanted.map(|((workspace, kind, key), value)| ConfigValue {
            r#type: kind.clone(),
            key: key.clone(),
            value: Some(value.clone()),
            workspace: workspace.clone(),
            ..ConfigValue::default()
        });
        Ok(ConfigResponse { version: values.0, values: values_out.collect(), ..ConfigResponse::default() })
    }
}

/// Who has which token, and what it allows: every capability, in one workspace or in all.
const TOKENS: [(&str, &str, &str, Option<&str>); 3] = [
    ("tg_admin", "u-admin", "default", None),
    ("tg_default", "u-default", "default", Some("default")),
    ("tg_other", "u-other", "other", Some("other")),
];

#[derive(Clone, Default)]
pub(crate) struct Iam {
    /// Whether anybody may do anything.
    pub(crate) no_auth: Arc<AtomicBool>,
    /// While set, it does not answer.
    pub(crate) silent: Arc<AtomicBool>,
    /// How long it takes over each answer.
    pub(crate) pause: Arc<Mutex<Duration>>,
    /// While set, it fails to answer.
    pub(crate) broken: Arc<AtomicBool>,
    /// A token that is not accepted any more.
    pub(crate) revoked: Arc<Mutex<Option<String>>>,
    pub(crate) asked: Arc<AtomicU64>,
    /// Where the last question said that its call comes from.
    pub(crate) client_ip: Arc<Mutex<String>>,
}

impl Iam {
    pub(crate) fn answer(&self, request: &m::IamRequest) -> Result<IamResponse, m::Error> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.client_ip.lock().unwrap().clone_from(&request.client_ip);
        if self.broken.load(Ordering::SeqCst) {
            return Err(m::Error::new("internal-error", "broken by the test"));
        }
        let no_auth = self.no_auth.load(Ordering::SeqCst);
        let is = |handle: &str, workspace: &str| IamResponse {
            resolved_user_id: handle.to_owned(),
            resolved_default_workspace: workspace.to_owned(),
            ..IamResponse::default()
        };
        match request.operation.as_str() {
            "authenticate-anonymous" | "resolve-api-key" if no_auth => Ok(is("anonymous", "default")),
            "resolve-api-key" if self.revoked.lock().unwrap().as_deref() == Some(&*request.api_key) => {
                Err(m::Error::new("auth-failed", "revoked"))
            }
            "resolve-api-key" => TOKENS
                .iter()
                .find(|(token, ..)| *token == request.api_key)
                .map(|(_, handle, workspace, _)| is(handle, workspace))
                .ok_or_else(|| m::Error::new("auth-failed", "unknown api key")),
            "authorise" => {
                let resource: Value = serde_json::from_str(&request.resource_json).unwrap();
                let scope =
                    TOKENS.iter().find(|(_, handle, ..)| *handle == request.user_id).and_then(|row| row.3);
                let named = resource["workspace"].as_str();
                let inside = scope.is_none_or(|scope| named == Some(scope));
                Ok(IamResponse {
                    decision_allow: no_auth || inside,
                    decision_ttl_seconds: 60,
                    ..IamResponse::default()
                })
            }
            "whoami" => Ok(IamResponse {
                user: Some(m::UserRecord { id: request.actor.clone(), ..m::UserRecord::default() }),
                ..IamResponse::default()
            }),
            "login" if request.password == "right" => {
                Ok(IamResponse { jwt: "a.b.c".to_owned(), ..IamResponse::default() })
            }
            "bootstrap-status" => Ok(IamResponse::default()),
            "disable-workspace" => Err(m::Error::new("operation-not-permitted", "it stays")),
            _ => Err(m::Error::new("auth-failed", "no")),
        }
    }
}

/// The system.
pub(crate) struct World {
    pub(crate) process: Process,
    pub(crate) broker: Arc<Embedded>,
    pub(crate) gateway: Gateway,
    pub(crate) config: Config,
    pub(crate) iam: Iam,
    pub(crate) pressure: Arc<AtomicBool>,
    /// While set, the broker takes nothing of the gateway.
    pub(crate) away: Arc<AtomicBool>,
    /// While set, the broker refuses what the gateway sends.
    pub(crate) refusing: Arc<AtomicBool>,
    /// While set, the store of the gateway's process takes nothing.
    pub(crate) full: Arc<AtomicBool>,
    pub(crate) http: reqwest::Client,
}

pub(crate) fn options() -> Options {
    let mut options = Options::new("127.0.0.1:0".parse().unwrap());
    options.settle_timeout = Duration::from_millis(300);
    // Other tests keep the machine busy.
    options.socket_auth_timeout = PATIENCE;
    options
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(options()).await
    }

    /// A system whose config has been read.
    pub(crate) async fn with(options: Options) -> Self {
        let world = Self::unread(options, false).await;
        wait_for("the first config fetch", || async {
            world.http.get(world.url("/readyz")).send().await.unwrap().status() == 200
        })
        .await;
        world
    }

    /// A system whose config service may fail from the start.
    pub(crate) async fn unread(options: Options, broken: bool) -> Self {
        // Another test may have installed it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config =
            sluice_bus::embedded::Config { high_water_bytes: HIGH_WATER_BYTES, ..Default::default() };
        let broker = Arc::new(Embedded::open(config).unwrap());
        let pressure = Arc::new(AtomicBool::new(false));
        let away = Arc::new(AtomicBool::new(false));
        let refusing = Arc::new(AtomicBool::new(false));
        let pressed = Pressed {
            inner: broker.clone(),
            high: pressure.clone(),
            away: away.clone(),
            refusing: refusing.clone(),
        };
        let process = Process::new(Arc::new(pressed), CancellationToken::new());
        let (config, iam) = (Config::default(), Iam::default());
        config.broken.store(broken, Ordering::SeqCst);
        for workspace in ["default", "other"] {
            config.values.lock().unwrap().1.insert(
                (record::WORKSPACES.to_owned(), record::WORKSPACE.to_owned(), workspace.to_owned()),
                r#"{"enabled":true}"#.to_owned(),
            );
        }
        broker.ensure(&TopicSpec::bare(system::config_notify())).await.unwrap();
        let answering = config.clone();
        answer::<exchange::Config, _, _>(
            &process,
            &broker,
            (system::config_request(None), system::config_response(None)),
            move |request, _| {
                let answering = answering.clone();
                async move { answering.answer(&request) }
            },
        )
        .await;
        let deciding = iam.clone();
        answer::<exchange::Iam, _, _>(
            &process,
            &broker,
            (system::iam_request(), system::iam_response()),
            move |request, _| {
                let deciding = deciding.clone();
                async move {
                    if deciding.silent.load(Ordering::SeqCst) {
                        std::future::pending::<()>().await;
                    }
                    let pause = *deciding.pause.lock().unwrap();
                    tokio::time::sleep(pause).await;
                    deciding.answer(&request)
                }
            },
        )
        .await;
        let watch = ConfigWatch::start(&process, Duration::from_secs(30));
        let full = Arc::new(AtomicBool::new(false));
        let is_full = full.clone();
        let no_room: sluice_gateway::NoRoom =
            Arc::new(move || is_full.load(Ordering::SeqCst).then_some("its disk is full"));
        let parts = Parts { process: process.clone(), watch, options, no_room: Some(no_room) };
        let gateway = sluice_gateway::start(parts).await.unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { process, broker, gateway, config, iam, pressure, away, refusing, full, http }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.gateway.local_addr)
    }

    /// Writes a config value and tells everybody.
    pub(crate) async fn put(&self, workspace: &str, kind: &str, key: &str, value: Option<String>) {
        let version = {
            let mut values = self.config.values.lock().unwrap();
            let name = (workspace.to_owned(), kind.to_owned(), key.to_owned());
            match value {
                Some(value) => values.1.insert(name, value),
                None => values.1.remove(&name),
            };
            values.0 += 1;
            values.0
        };
        let push = ConfigPush {
            version,
            changes: [(kind.to_owned(), vec![workspace.to_owned()])].into(),
            workspace_changes: None,
        };
        let told = Message::new(wire::encode(&push));
        self.broker.publish(&system::config_notify().into(), told).await.unwrap();
    }

    /// Puts a flow record with these interfaces on record, under a run of its own.
    pub(crate) async fn put_flow(
        &self,
        workspace: &str,
        id: &str,
        run: &str,
        interfaces: &[&str],
        status: Option<&str>,
    ) {
        let doors: serde_json::Map<String, Value> = interfaces
            .iter()
            .map(|name| {
                let topic = |class: &str| format!("{class}:tg:{name}:{workspace}:{run}");
                let roles = if name.ends_with("-load") {
                    json!({"flow": topic("flow")})
                } else {
                    json!({"request": topic("request"), "response": topic("response")})
                };
                ((*name).to_owned(), roles)
            })
            .collect();
        let mut flow = json!({"blueprint-name": "b", "interfaces": doors, "parameters": {}, "run": run});
        if let Some(status) = status {
            flow["status"] = json!(status);
        }
        self.put(workspace, record::FLOW, id, Some(flow.to_string())).await;
    }

    /// A run whose interfaces all have a reader on record.
    pub(crate) async fn put_read_flow(&self, workspace: &str, id: &str, run: &str, interfaces: &[&str]) {
        let topic = |name: &&str| format!("flow:tg:{name}:{workspace}:{run}");
        let doors: BTreeMap<_, _> =
            interfaces.iter().map(|name| (name, json!({"flow": topic(name)}))).collect();
        let read: Vec<String> = interfaces.iter().map(topic).collect();
        let flow = json!({"blueprint-name": "b", "interfaces": doors, "run": run, "read": read});
        self.put(workspace, record::FLOW, id, Some(flow.to_string())).await;
    }

    /// Serves one interface of a run.
    pub(crate) async fn serve<F, Fut>(
        &self,
        workspace: &str,
        run: &str,
        interface: &str,
        handler: F,
    ) -> CancellationToken
    where
        F: Fn(Value, Responder<Plain>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Value, m::Error>> + Send + 'static,
    {
        let topic = |class: &str| Topic::parse(&format!("{class}:tg:{interface}:{workspace}:{run}")).unwrap();
        answer::<Plain, _, _>(&self.process, &self.broker, (topic("request"), topic("response")), handler)
            .await
    }

    /// Serves a system service of a workspace.
    pub(crate) async fn serve_system<F, Fut>(&self, workspace: &str, base: &str, handler: F)
    where
        F: Fn(Value, Responder<Plain>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Value, m::Error>> + Send + 'static,
    {
        let topic = |class: &str| Topic::parse(&format!("{class}:tg:{base}:{workspace}")).unwrap();
        answer::<Plain, _, _>(&self.process, &self.broker, (topic("request"), topic("response")), handler)
            .await;
    }

    /// A flow `f` in `default` whose embeddings service answers with one vector.
    pub(crate) async fn with_embeddings(&self) {
        self.serve("default", "f", "embeddings", |_, _| async { Ok(json!({"vectors": [[0.5]]})) }).await;
        self.put_flow("default", "f", "f", &["embeddings"], None).await;
        let path = "/api/v1/flow/f/service/embeddings";
        self.until("the route to f", path, &json!({"texts": ["a"]}), |_, body| body.get("vectors").is_some())
            .await;
    }

    pub(crate) async fn post(
        &self,
        path: &str,
        token: Option<&str>,
        body: impl Into<reqwest::Body>,
    ) -> reqwest::Response {
        let request = self.http.post(self.url(path)).body(body);
        let request = match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        tokio::time::timeout(PATIENCE, request.send()).await.unwrap().unwrap()
    }

    /// Status and JSON body of a call as admin.
    pub(crate) async fn ask(&self, path: &str, body: &Value) -> (u16, Value) {
        self.ask_as(Some("tg_admin"), path, body).await
    }

    pub(crate) async fn ask_as(&self, token: Option<&str>, path: &str, body: &Value) -> (u16, Value) {
        let answer = self.post(path, token, body.to_string()).await;
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Asks again until the answer is as wanted.
    pub(crate) async fn until(
        &self,
        what: &str,
        path: &str,
        body: &Value,
        wanted: impl Fn(u16, &Value) -> bool,
    ) -> (u16, Value) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let (status, said) = self.ask(path, body).await;
            if wanted(status, &said) {
                return (status, said);
            }
            assert!(tokio::time::Instant::now() < deadline, "{what} never came; last: {status} {said}");
        }
    }

    pub(crate) async fn socket(&self, query: &str) -> Socket {
        Socket::open(self.gateway.local_addr, query).await
    }

    /// What the metrics say of one line.
    pub(crate) fn metric(&self, line: &str) -> Option<f64> {
        let text = self.process.metrics.text();
        text.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok())
    }
}

/// Makes the topics of a service and serves it; returns its stop signal.
pub(crate) async fn answer<X, F, Fut>(
    process: &Process,
    broker: &Embedded,
    (request, response): (Topic, Topic),
    handler: F,
) -> CancellationToken
where
    X: Exchange,
    F: Fn(X::Request, Responder<X>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<X::Response, m::Error>> + Send + 'static,
{
    broker.ensure(&TopicSpec::with(request.clone(), "svc")).await.unwrap();
    broker.ensure(&TopicSpec::bare(response.clone())).await.unwrap();
    let stop = CancellationToken::new();
    let attached = serve::<X, _, _>(process, Point::new(request, response, "svc"), stop.clone(), handler);
    tokio::time::timeout(PATIENCE, attached.cancelled()).await.unwrap();
    stop
}

/// Waits for a condition.
pub(crate) async fn wait_for<Fut: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> Fut) {
    let held = async {
        while !holds().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, held).await.unwrap_or_else(|_| panic!("{what} never came"));
}

/// A WebSocket client.
pub(crate) struct Socket {
    inner: tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>,
}

impl Socket {
    pub(crate) async fn open(address: SocketAddr, query: &str) -> Self {
        let url = format!("ws://{address}/api/v1/socket{query}");
        let (inner, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        Self { inner }
    }

    pub(crate) async fn send(&mut self, frame: &Value) {
        self.send_text(frame.to_string()).await;
    }

    pub(crate) async fn send_text(&mut self, text: impl Into<Utf8Bytes>) {
        self.inner.send(tungstenite::Message::Text(text.into())).await.unwrap();
    }

    pub(crate) async fn send_message(&mut self, message: tungstenite::Message) {
        self.inner.send(message).await.unwrap();
    }

    /// Whether it could be sent; not where the socket was closed.
    pub(crate) async fn try_send_message(&mut self, message: tungstenite::Message) -> bool {
        self.inner.send(message).await.is_ok()
    }

    /// A text in so many frames.
    pub(crate) async fn send_parts(&mut self, text: &str, parts: usize) {
        use tungstenite::protocol::frame::{
            Frame,
            coding::{Data, OpCode},
        };
        let bytes = text.len().div_ceil(parts);
        let chunks: Vec<&[u8]> = text.as_bytes().chunks(bytes).collect();
        for (number, chunk) in chunks.iter().enumerate() {
            let code = OpCode::Data(if number == 0 { Data::Text } else { Data::Continue });
            let frame = Frame::message(chunk.to_vec(), code, number + 1 == chunks.len());
            // It may be closed before all of it is sent.
            let _ = self.inner.send(tungstenite::Message::Frame(frame)).await;
        }
    }

    /// Bytes that are no whole frame.
    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        use tokio::io::AsyncWriteExt as _;
        let stream = self.inner.get_mut();
        // It may be closed before all of it is sent.
        let _ = stream.write_all(bytes).await;
        let _ = stream.flush().await;
    }

    /// The next message that is not a ping.
    pub(crate) async fn message(&mut self) -> Option<tungstenite::Message> {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.inner.next()).await.expect("a message in time");
            match next {
                Some(Ok(tungstenite::Message::Ping(_))) => {}
                Some(Ok(message)) => return Some(message),
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// The next frame.
    pub(crate) async fn frame(&mut self) -> Value {
        match self.message().await {
            Some(tungstenite::Message::Text(text)) => serde_json::from_str(&text).unwrap(),
            other => panic!("expected a frame, got {other:?}"),
        }
    }

    pub(crate) async fn ask(&mut self, frame: &Value) -> Value {
        self.send(frame).await;
        self.frame().await
    }
}
