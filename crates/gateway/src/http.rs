//! The HTTP door: paths, bodies, statuses. Each call goes down the hallway of [`crate::hall`] and comes back as one
//! JSON body.
//!
//! **Invariant: who calls is known before anything is read of a body or taken of a bound.** Calls that need no credential
//! have bounds of their own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use serde_json::{Map, Value};
use sluice_schema::message::IamRequest;
use sluice_schema::operation::{self, Kind};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tracing::Instrument as _;

use crate::Options;
use crate::answer::{Answer, Part};
use crate::body;
use crate::browser;
use crate::connections::Connection;
use crate::forwarded;
use crate::hall::{Call, Door, Hall, Room};
use crate::identity::{self, Credential, Identity, Origin};
use crate::listener::Peer;
use crate::refusal::{self, Refusal, TurnedAway};
use crate::socket;
use sluice_bus::shares::Share;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_BYTES_MAX: usize = 128;
/// How much of a refused body is read and thrown away, so that its sender sees the refusal instead of a broken pipe.
const LINGER_BYTES_MAX: usize = 64 << 20;
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);

/// Every path of the gateway.
pub(crate) fn router(hall: Arc<Hall>) -> Router {
    Router::new()
        .route("/", get(alive))
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/api/metrics", get(metrics))
        .route("/api/v1/socket", get(open_socket))
        .route("/api/socket", get(open_socket))
        .route("/api/v1/document-stream", get(document_stream))
        .route("/api/v1/auth/{operation}", post(auth))
        .route("/api/v1/{kind}", post(service))
        .route("/api/v1/flow/{flow}/service/{*kind}", post(flow_service))
        .fallback(|| async { (StatusCode::NOT_FOUND, "404: Not Found") })
        .method_not_allowed_fallback(|| async { (StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed") })
        .with_state(hall)
}

/// Answers one request. It gets an id that its log lines, its messages and its answer carry, and is routed if it is of no
/// foreign page.
pub(crate) async fn answer(
    hall: &Hall,
    router: &Router,
    peer: Peer,
    connection: &Arc<Connection>,
    mut request: Request,
) -> Response {
    let header = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let usable = |id: &&str| {
        (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
    };
    let request_id: Arc<str> = match header.filter(usable) {
        Some(id) => id.into(),
        None => (&*uuid::Uuid::new_v4().hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer())).into(),
    };
    let client = forwarded::client(peer.remote.ip(), request.headers(), &hall.options.trusted_proxies);
    let span = tracing::info_span!("http", id = &*request_id, method = %request.method(), path = request.uri().path());
    let origin = Origin {
        request_id: request_id.clone(),
        client: Some(client),
        local: peer.local,
        connection: Some(connection.clone()),
    };
    request.extensions_mut().insert(origin.clone());
    let answered = browser::guard(hall, &origin, router, request);
    let mut response = answered.instrument(span.clone()).await;
    if let Some(TurnedAway(reason)) = response.extensions().get() {
        span.in_scope(|| hall.gate.tries.refused(&origin, reason));
    }
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// Where a request comes from; taken out of it once.
fn origin(request: &mut Request) -> Origin {
    let origin = request.extensions_mut().remove();
    debug_assert!(origin.is_some(), "taken twice, or never put in");
    origin.unwrap_or_default()
}

/// The bearer token; any other scheme counts as no credential. Of two headers nobody could say which one counts, and a
/// proxy may have looked at the other.
pub(crate) fn credential(headers: &HeaderMap) -> Result<Credential, Refusal> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().and_then(|value| value.to_str().ok());
    if values.next().is_some() {
        return Err(Refusal::Rejected("there are two Authorization headers; send one".to_owned()));
    }
    let bearer = value.and_then(|value| value.trim_start().split_once(' '));
    let token = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token);
    Ok(Credential::from_token(token))
}

async fn alive() -> &'static str {
    "sluice\n"
}

async fn ready(State(hall): State<Arc<Hall>>) -> Response {
    match hall.look().await {
        Ok(()) => "ready\n".into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

async fn metrics(State(hall): State<Arc<Hall>>, mut request: Request) -> Result<Response, Refusal> {
    let origin = origin(&mut request);
    let caller = hall.gate.authenticate(&credential(request.headers())?, &origin).await?;
    hall.permit_stream(&caller, "metrics", &origin).await?;
    Ok(hall.process.metrics.text().into_response())
}

/// `POST /api/v1/{kind}`: services of a workspace, and iam.
async fn service(State(hall): State<Arc<Hall>>, Path(kind): Path<String>, request: Request) -> Response {
    serve(&hall, None, &kind, request).await
}

/// `POST /api/v1/flow/{flow}/service/{kind}`.
async fn flow_service(
    State(hall): State<Arc<Hall>>,
    Path((flow, kind)): Path<(String, String)>,
    mut request: Request,
) -> Response {
    if operation::find(Kind::FlowService, &kind).is_none() {
        let origin = origin(&mut request);
        return refuse(&hall, Refusal::UnknownKind, request.into_body(), &origin).await;
    }
    serve(&hall, Some(&flow), &kind, request).await
}

async fn serve(hall: &Hall, flow: Option<&str>, service: &str, mut request: Request) -> Response {
    let origin = origin(&mut request);
    let (head, mut body) = request.into_parts();
    let entered = async {
        let caller = match hall.gate.authenticate(&credential(&head.headers)?, &origin).await {
            Ok(caller) => Some(caller),
            // Some operations of iam are for everybody; which, the hallway knows.
            Err(Refusal::Unauthenticated) if flow.is_none() && service == "iam" => None,
            Err(refusal) => return Err(refusal),
        };
        let (mut room, limits) = match &caller {
            Some(caller) => (hall.room(caller)?, BodyLimits::of_callers(&hall.options)),
            None => (hall.public_room(&origin)?, BodyLimits::of_strangers(&hall.options)),
        };
        let bytes = read(&mut room, &limits, &head.headers, &mut body).await?;
        let body = body::object(bytes, &mut room, &hall.body_readers).await?;
        let call = Call { door: Door::Http, caller, workspace: None, flow, service, body, origin: &origin };
        let answer = hall.enter(call).await?;
        room.is_asked(&answer);
        let part = answer.only().await?;
        hall.gate.hears(&origin, service, &part.reply);
        Ok(part)
    };
    match entered.await {
        Ok(part) => {
            let response = json_of(&part.reply.body, part.held);
            match &part.reply.error {
                Some(error) if error.is_store_unavailable() => refusal::repaired_first(response),
                Some(error) if error.is_overloaded() => refusal::too_many_first(response),
                _ => response,
            }
        }
        Err(refusal) => refuse(hall, refusal, body, &origin).await,
    }
}

/// How large a body may be, and how long it may take.
struct BodyLimits {
    bytes_max: usize,
    /// To the next part.
    idle: Duration,
    total: Duration,
}

impl BodyLimits {
    const fn of_callers(options: &Options) -> Self {
        Self {
            bytes_max: options.body_bytes_max,
            idle: options.body_idle_timeout,
            total: options.call_timeout,
        }
    }

    const fn of_strangers(options: &Options) -> Self {
        let total = options.public_body_timeout;
        Self { bytes_max: options.public_body_bytes_max, idle: total, total }
    }
}

/// The body, within its limits. Its bytes count as they arrive: what is only announced takes nothing.
async fn read(
    room: &mut Room,
    limits: &BodyLimits,
    headers: &HeaderMap,
    body: &mut Body,
) -> Result<Bytes, Refusal> {
    let BodyLimits { bytes_max, idle, total } = *limits;
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|bytes| bytes > bytes_max) {
        return Err(Refusal::TooLarge { bytes_max });
    }
    let mut parts = std::mem::take(body).into_data_stream();
    let mut whole = Whole::Nothing;
    let began = Instant::now();
    loop {
        // One timer for both limits, whichever comes first.
        let within = idle.min(total.saturating_sub(began.elapsed()));
        let next = tokio::time::timeout(within, parts.next()).await.map_err(|_| Refusal::Late)?;
        let Some(part) = next else { return Ok(whole.bytes()) };
        let part = part.map_err(|_| Refusal::InvalidJson)?;
        let bytes = whole.len() + part.len();
        let refused =
            if bytes > bytes_max { Err(Refusal::TooLarge { bytes_max }) } else { room.grow_to(bytes) };
        if let Err(refusal) = refused {
            *body = Body::from_stream(parts);
            return Err(refusal);
        }
        whole = whole.with(part, declared.unwrap_or(0));
    }
}

/// A body being put together; one that comes in one piece is not copied.
enum Whole {
    Nothing,
    One(Bytes),
    Many(BytesMut),
}

impl Whole {
    fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::One(bytes) => bytes.len(),
            Self::Many(bytes) => bytes.len(),
        }
    }

    fn with(self, part: Bytes, expected: usize) -> Self {
        match self {
            Self::Nothing => Self::One(part),
            Self::One(first) => {
                // What is only announced gets no memory: the buffer grows with what comes.
                let arrived = first.len() + part.len();
                let mut all = BytesMut::with_capacity(expected.min(4 * arrived).max(arrived));
                all.extend_from_slice(&first);
                all.extend_from_slice(&part);
                Self::Many(all)
            }
            Self::Many(mut all) => {
                all.extend_from_slice(&part);
                Self::Many(all)
            }
        }
    }

    fn bytes(self) -> Bytes {
        match self {
            Self::Nothing => Bytes::new(),
            Self::One(bytes) => bytes,
            Self::Many(bytes) => bytes.freeze(),
        }
    }
}

/// A JSON body with status 200.
pub(crate) fn json(body: &Value) -> Response {
    json_of(body, None)
}

/// The same; what it counts for is given back once all of it has left.
fn json_of(body: &Value, held: Option<Share>) -> Response {
    // What is counted is about as long as it was on the bus: a buffer that doubles as it grows would take twice that.
    let mut bytes = Vec::with_capacity(held.as_ref().map_or(128, |held| held.amount() + held.amount() / 64));
    // A value has text keys only, so writing it cannot fail.
    let _ = serde_json::to_writer(&mut bytes, body);
    ([(header::CONTENT_TYPE, "application/json; charset=utf-8")], held_bytes(bytes, held)).into_response()
}

/// Bytes that count for somebody until the last of them has left.
fn held_bytes(bytes: impl Into<Bytes> + AsRef<[u8]> + Send + 'static, held: Option<Share>) -> Bytes {
    struct Held<B>(B, #[expect(dead_code, reason = "it is given back when this is dropped")] Share);
    impl<B: AsRef<[u8]>> AsRef<[u8]> for Held<B> {
        fn as_ref(&self) -> &[u8] {
            self.0.as_ref()
        }
    }
    match held {
        None => bytes.into(),
        Some(held) => Bytes::from_owner(Held(bytes, held)),
    }
}

/// Refuses, after taking in what is left of the body. Only so many strangers get that at once: it is a courtesy.
async fn refuse(hall: &Hall, refusal: Refusal, body: Body, origin: &Origin) -> Response {
    let is_known = origin.connection.as_ref().is_none_or(|connection| connection.is_known());
    let turn = if is_known { None } else { hall.strangers_lingering.try_acquire().ok() };
    if refusal != Refusal::Late && (is_known || turn.is_some()) {
        let mut parts = body.into_data_stream();
        let discarded = async {
            let mut bytes = 0;
            while let Some(Ok(part)) = parts.next().await {
                bytes += part.len();
                if bytes > LINGER_BYTES_MAX {
                    return;
                }
            }
        };
        // Whether the sender finished or not, it gets its answer now.
        let _ = tokio::time::timeout(LINGER_TIMEOUT, discarded).await;
    }
    refusal.into_response()
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
struct StreamQuery {
    document_id: Option<String>,
    workspace: Option<String>,
    chunk_size: Option<u64>,
}

/// `GET /api/v1/document-stream`: the bytes of a document, part by part as they are read. The status waits for the first
/// part; what fails later breaks the connection off, so that nobody takes half a document for a whole one.
async fn document_stream(
    State(hall): State<Arc<Hall>>,
    Query(query): Query<StreamQuery>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let origin = origin(&mut request);
    let caller = hall.gate.authenticate(&credential(request.headers())?, &origin).await?;
    let mut room = hall.room(&caller)?;
    let document = query.document_id.filter(|id| !id.is_empty());
    let Some(document) = document else {
        return Err(Refusal::Rejected("Missing required parameter: document-id".to_owned()));
    };
    let mut body = Map::new();
    body.insert("operation".to_owned(), "stream-document".into());
    body.insert("document-id".to_owned(), document.into());
    if let Some(bytes) = query.chunk_size {
        body.insert("chunk-size".to_owned(), bytes.into());
    }
    let workspace = query.workspace.as_deref();
    let (flow, service) = (None, "librarian");
    let call =
        Call { door: Door::Socket, caller: Some(caller), workspace, flow, service, body, origin: &origin };
    let mut answer = hall.enter(call).await?;
    room.is_asked(&answer);
    let first = content(&mut answer).await;
    let first = match first {
        Err(Refusal::Failed(error)) if error.r#type == "not-found" => {
            return Ok(
                (StatusCode::NOT_FOUND, json(&serde_json::json!({"error": error.message}))).into_response()
            );
        }
        Err(Refusal::Failed(error)) => {
            let status = match error.r#type.as_str() {
                "request-error" => StatusCode::BAD_REQUEST,
                _ => StatusCode::BAD_GATEWAY,
            };
            let told = (status, json(&serde_json::json!({"error": error.message}))).into_response();
            return Ok(match &error {
                error if error.is_store_unavailable() => refusal::repaired_first(told),
                error if error.is_overloaded() => refusal::too_many_first(told),
                _ => told,
            });
        }
        outcome => outcome?,
    };
    let rest = futures_util::stream::unfold(Some((first, answer, room)), async |state| {
        let ((part, is_last), mut answer, room) = state?;
        if is_last {
            return Some((Ok(part), None));
        }
        // Dropped with the connection: nobody reads on for a reader who has left.
        match content(&mut answer).await {
            Ok(next) => Some((Ok(part), Some((next, answer, room)))),
            Err(refusal) => Some((Err(std::io::Error::other(format!("{refusal:?}"))), None)),
        }
    });
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(rest)).into_response())
}

/// The next part of a document, and whether it is the last.
async fn content(answer: &mut Answer) -> Result<(Bytes, bool), Refusal> {
    let Part { reply, held } = answer.next().await?;
    if let Some(error) = reply.error {
        return Err(Refusal::Failed(error));
    }
    let text = reply.body.get("content").and_then(Value::as_str).unwrap_or_default();
    let part = BASE64.decode(text).map_err(|_| Refusal::failed("gateway-error", "a part cannot be read"))?;
    Ok((held_bytes(part, held), reply.last))
}

/// `POST /api/v1/auth/{operation}`: log in, first start, own password.
async fn auth(
    State(hall): State<Arc<Hall>>,
    Path(operation): Path<String>,
    mut request: Request,
) -> Response {
    let origin = origin(&mut request);
    let (head, mut body) = request.into_parts();
    let answered = async {
        let caller = match operation.as_str() {
            "change-password" => Some(hall.gate.authenticate(&credential(&head.headers)?, &origin).await?),
            "login" | "bootstrap" | "bootstrap-status" | "prove-key" => None,
            _ => return Ok((StatusCode::NOT_FOUND, "404: Not Found").into_response()),
        };
        let mut room = match &caller {
            Some(caller) => hall.room(caller)?,
            None => hall.public_room(&origin)?,
        };
        let limits = BodyLimits::of_strangers(&hall.options);
        let bytes = read(&mut room, &limits, &head.headers, &mut body).await?;
        let members = match operation.as_str() {
            "bootstrap" | "bootstrap-status" => Map::new(),
            _ => body::object(bytes, &mut room, &hall.body_readers).await?,
        };
        if operation == "prove-key" {
            return prove_key(&hall, &members, &origin).await;
        }
        authenticate_with_iam(&hall, &operation, caller.as_deref(), &members, &origin).await
    };
    match answered.await {
        Ok(response) => response,
        Err(refusal) => refuse(&hall, refusal, body, &origin).await,
    }
}

/// Has the identity service prove to the holder of the admin key that it knows the key, on this very connection: the
/// address is that of our end of it, whatever the caller says.
async fn prove_key(hall: &Hall, members: &Map<String, Value>, origin: &Origin) -> Result<Response, Refusal> {
    let local = origin.local.ok_or(Refusal::Unauthenticated)?;
    let address = SocketAddr::new(local.ip().to_canonical(), local.port());
    let member = |name: &str| members.get(name).and_then(Value::as_str).unwrap_or_default();
    let challenge = serde_json::json!({
        "nonce": member("nonce"), "address": address.to_string(), "proof": member("proof"),
    });
    let question = IamRequest {
        operation: "prove-key".to_owned(),
        parameters_json: challenge.to_string(),
        ..hall.gate.question(origin)
    };
    hall.gate.tries.check(origin)?;
    let answer = hall.gate.ask(&question, origin).await?;
    if let Some(error) = answer.error {
        if identity::is_failure(&error) {
            return Err(identity::could_not_answer());
        }
        hall.gate.tries.failed(origin, "key-not-proved");
        return Err(Refusal::Unauthenticated);
    }
    let is_open = answer.proof.is_empty() && !answer.resolved_user_id.is_empty();
    Ok(json(&serde_json::json!({"proof": answer.proof, "open": is_open})))
}

async fn authenticate_with_iam(
    hall: &Hall,
    operation: &str,
    caller: Option<&Identity>,
    members: &Map<String, Value>,
    origin: &Origin,
) -> Result<Response, Refusal> {
    let text = |name: &str| members.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let handle = caller.map_or_else(String::new, |caller| caller.handle.to_string());
    let question = IamRequest {
        operation: operation.to_owned(),
        actor: handle.clone(),
        user_id: handle,
        username: text("username"),
        workspace: text("workspace"),
        password: if caller.is_some() { text("current_password") } else { text("password") },
        new_password: text("new_password"),
        ..hall.gate.question(origin)
    };
    if matches!(operation, "login" | "change-password") {
        hall.gate.tries.check(origin)?;
    }
    let answer = hall.gate.ask(&question, origin).await?;
    if let Some(error) = answer.error {
        if identity::is_failure(&error) {
            tracing::error!(?error, operation, "the identity service could not answer");
            return Err(identity::could_not_answer());
        }
        if error.r#type == "auth-failed" {
            hall.gate.tries.failed(origin, "login-rejected");
        }
        // A wrong password, a closed bootstrap: nobody outside learns which.
        let told = caller.is_some() && error.r#type != "auth-failed";
        return Err(if told { Refusal::Rejected(error.message) } else { Refusal::Unauthenticated });
    }
    let mut body = Map::new();
    let members = [
        ("jwt", answer.jwt),
        ("jwt_expires", answer.jwt_expires),
        ("bootstrap_admin_user_id", answer.bootstrap_admin_user_id),
        ("bootstrap_admin_api_key", answer.bootstrap_admin_api_key),
    ];
    for (name, value) in members.into_iter().filter(|(_, value)| !value.is_empty()) {
        body.insert(name.to_owned(), Value::String(value));
    }
    body.insert("bootstrap_available".to_owned(), Value::Bool(answer.bootstrap_available));
    Ok(json(&Value::Object(body)))
}

#[derive(serde::Deserialize)]
struct SocketQuery {
    token: Option<String>,
}

/// The upgrade succeeds whatever the credential: a browser takes a failed one as final.
async fn open_socket(
    State(hall): State<Arc<Hall>>,
    Query(query): Query<SocketQuery>,
    mut request: Request,
) -> Response {
    let accepted = match accept_key(request.headers()) {
        Ok(accepted) => accepted,
        Err(what) => return (StatusCode::BAD_REQUEST, what).into_response(),
    };
    let origin = origin(&mut request);
    let credential = Credential::from_token(query.token.as_deref());
    let upgrade = hyper::upgrade::on(request);
    let (tasks, sockets) = (hall.process.tasks.clone(), hall.sockets.clone());
    let socket = async move {
        match upgrade.await {
            Ok(upgraded) => socket::serve(hall, upgraded, credential, origin).await,
            Err(error) => tracing::debug!(%error, "a socket was gone before it began"),
        }
    };
    tasks.spawn("gateway/socket", sockets.track_future(socket));
    let headers = [
        (header::CONNECTION, HeaderValue::from_static("upgrade")),
        (header::UPGRADE, HeaderValue::from_static("websocket")),
        (header::SEC_WEBSOCKET_ACCEPT, accepted),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// What proves to a client that its upgrade was understood, or why the request is none.
pub(crate) fn accept_key(headers: &HeaderMap) -> Result<HeaderValue, &'static str> {
    let names = |name: HeaderName, token: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(token))
    };
    if !names(header::CONNECTION, "upgrade") || !names(header::UPGRADE, "websocket") {
        return Err("this path is for WebSockets: connect with ws:// or wss://");
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err("only version 13 of the WebSocket protocol is spoken here");
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or("the Sec-WebSocket-Key header is missing")?;
    HeaderValue::try_from(derive_accept_key(key.as_bytes()))
        .map_err(|_| "the Sec-WebSocket-Key header is invalid")
}
