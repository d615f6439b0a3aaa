//! The HTTP door: paths, bodies, statuses. Each call goes down the hallway of [`crate::hall`] and comes back as one
//! JSON body.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Query, Request, State, WebSocketUpgrade};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use serde_json::{Map, Value};
use sluice_schema::message::IamRequest;
use sluice_schema::operation::{self, Kind};
use tracing::Instrument as _;

use crate::answer::Answer;
use crate::browser;
use crate::forwarded;
use crate::hall::{Call, Door, Hall, Room};
use crate::identity::{Credential, Identity, Origin};
use crate::listener::Peer;
use crate::refusal::Refusal;
use crate::socket;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_BYTES_MAX: usize = 128;
/// The largest body of somebody who is not known yet.
const PUBLIC_BODY_BYTES_MAX: usize = 64 << 10;
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
        .layer(axum::middleware::from_fn_with_state(hall.clone(), browser::guard))
        .layer(axum::middleware::from_fn_with_state(hall.clone(), with_origin))
        .with_state(hall)
}

/// Gives every request an id that its log lines, its messages and its answer carry.
async fn with_origin(State(hall): State<Arc<Hall>>, mut request: Request, next: Next) -> Response {
    let header = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let usable = |id: &&str| {
        (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
    };
    let request_id: Arc<str> = match header.filter(usable) {
        Some(id) => id.into(),
        None => (&*uuid::Uuid::new_v4().hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer())).into(),
    };
    let client_ip = client_ip(&hall, &request);
    let span = tracing::info_span!("http", id = &*request_id, method = %request.method(), path = request.uri().path());
    request.extensions_mut().insert(Origin { request_id: request_id.clone(), client_ip });
    let mut response = next.run(request).instrument(span).await;
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn client_ip(hall: &Hall, request: &Request) -> Arc<str> {
    let Some(ConnectInfo(peer)) = request.extensions().get::<ConnectInfo<Peer>>() else { return "".into() };
    let client = forwarded::client(peer.remote.ip(), request.headers(), &hall.options.trusted_proxies);
    client.to_string().into()
}

fn origin(request: &Request) -> Origin {
    request.extensions().get().cloned().unwrap_or_default()
}

/// The bearer token, matched literally; any other scheme counts as no credential.
fn credential(headers: &HeaderMap) -> Credential {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    Credential::from_token(value.and_then(|value| value.strip_prefix("Bearer ")))
}

async fn alive() -> &'static str {
    "sluice\n"
}

async fn ready(State(hall): State<Arc<Hall>>) -> Response {
    if hall.is_ready() { "ready\n".into_response() } else { Refusal::NotReady.into_response() }
}

async fn metrics(State(hall): State<Arc<Hall>>, request: Request) -> Result<Response, Refusal> {
    let origin = origin(&request);
    let caller = hall.gate.authenticate(&credential(request.headers()), &origin).await?;
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
    request: Request,
) -> Response {
    if operation::find(Kind::FlowService, &kind).is_none() {
        return refuse(Refusal::UnknownKind, request.into_body()).await;
    }
    serve(&hall, Some(&flow), &kind, request).await
}

async fn serve(hall: &Hall, flow: Option<&str>, service: &str, request: Request) -> Response {
    let origin = origin(&request);
    let (head, mut body) = request.into_parts();
    let entered = async {
        let mut room = hall.room()?;
        let caller = match hall.gate.authenticate(&credential(&head.headers), &origin).await {
            Ok(caller) => Some(caller),
            // Some operations of iam are for everybody; which, the hallway knows.
            Err(_) if flow.is_none() && service == "iam" => None,
            Err(refusal) => return Err(refusal),
        };
        let bytes_max = if caller.is_some() { hall.options.body_bytes_max } else { PUBLIC_BODY_BYTES_MAX };
        let bytes = read(hall, &mut room, bytes_max, &head.headers, &mut body).await?;
        let body = object(&bytes)?;
        drop(bytes);
        let call = Call { door: Door::Http, caller, workspace: None, flow, service, body, origin: &origin };
        let answer = hall.enter(call).await?;
        room.release_body();
        answer.only().await
    };
    match entered.await {
        Ok(reply) => json(&reply.body),
        Err(refusal) => refuse(refusal, body).await,
    }
}

/// The body, within a limit and the gateway's budget.
async fn read(
    hall: &Hall,
    room: &mut Room,
    bytes_max: usize,
    headers: &HeaderMap,
    body: &mut Body,
) -> Result<Bytes, Refusal> {
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|bytes| bytes > bytes_max) {
        return Err(Refusal::TooLarge { bytes_max });
    }
    let whole = async {
        room.grow(declared.unwrap_or(0))?;
        let mut parts = std::mem::take(body).into_data_stream();
        let mut whole = Whole::Nothing;
        let mut taken = declared.unwrap_or(0);
        while let Some(part) = parts.next().await {
            let part = part.map_err(|_| Refusal::InvalidJson)?;
            let bytes = whole.len() + part.len();
            let refused = if bytes > bytes_max {
                Err(Refusal::TooLarge { bytes_max })
            } else {
                room.grow(bytes.saturating_sub(taken))
            };
            taken = taken.max(bytes);
            if let Err(refusal) = refused {
                *body = Body::from_stream(parts);
                return Err(refusal);
            }
            whole = whole.with(part, declared.unwrap_or(0));
        }
        Ok(whole.bytes())
    };
    let timed_out = || Refusal::failed("request-error", "the body did not arrive in time");
    tokio::time::timeout(hall.options.call_timeout, whole).await.map_err(|_| timed_out())?
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
                let mut all = BytesMut::with_capacity(expected.max(first.len() + part.len()));
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

fn object(bytes: &[u8]) -> Result<Map<String, Value>, Refusal> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Refusal::NotAnObject),
        Err(_) => Err(Refusal::InvalidJson),
    }
}

/// A JSON body with status 200.
pub(crate) fn json(body: &Value) -> Response {
    // A value has text keys only, so writing it cannot fail.
    let bytes = serde_json::to_vec(body).unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json; charset=utf-8")], bytes).into_response()
}

/// Refuses, after taking in what is left of the body.
async fn refuse(refusal: Refusal, body: Body) -> Response {
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
    request: Request,
) -> Result<Response, Refusal> {
    let origin = origin(&request);
    let room = hall.room()?;
    let caller = hall.gate.authenticate(&credential(request.headers()), &origin).await?;
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
    let first = content(&mut answer).await;
    let first = match first {
        Err(Refusal::Failed(error)) if error.r#type == "not-found" => {
            return Ok(
                (StatusCode::NOT_FOUND, json(&serde_json::json!({"error": error.message}))).into_response()
            );
        }
        Err(Refusal::Failed(error)) => {
            let told = json(&serde_json::json!({"error": error.message}));
            return Ok((StatusCode::BAD_GATEWAY, told).into_response());
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
    let reply = answer.next().await?;
    if let Some(error) = reply.error {
        return Err(Refusal::Failed(error));
    }
    let text = reply.body.get("content").and_then(Value::as_str).unwrap_or_default();
    let part = BASE64.decode(text).map_err(|_| Refusal::failed("gateway-error", "a part cannot be read"))?;
    Ok((part.into(), reply.last))
}

/// `POST /api/v1/auth/{operation}`: log in, first start, own password.
async fn auth(State(hall): State<Arc<Hall>>, Path(operation): Path<String>, request: Request) -> Response {
    let origin = origin(&request);
    let (head, mut body) = request.into_parts();
    let answered = async {
        let mut room = hall.room()?;
        let caller = match operation.as_str() {
            "change-password" => Some(hall.gate.authenticate(&credential(&head.headers), &origin).await?),
            "login" | "bootstrap" | "bootstrap-status" | "prove-key" => None,
            _ => return Ok((StatusCode::NOT_FOUND, "404: Not Found").into_response()),
        };
        let bytes = read(&hall, &mut room, PUBLIC_BODY_BYTES_MAX, &head.headers, &mut body).await?;
        let members = if operation.starts_with("bootstrap") { Map::new() } else { object(&bytes)? };
        if operation == "prove-key" {
            let peer = head.extensions.get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| *peer);
            return prove_key(&hall, peer.and_then(|peer| peer.local), &members, &origin).await;
        }
        authenticate_with_iam(&hall, &operation, caller.as_deref(), &members, &origin).await
    };
    match answered.await {
        Ok(response) => response,
        Err(refusal) => refuse(refusal, body).await,
    }
}

/// Has the identity service prove to the holder of the admin key that it knows the key, on this very connection: the
/// address is that of our end of it, whatever the caller says.
async fn prove_key(
    hall: &Hall,
    local: Option<SocketAddr>,
    members: &Map<String, Value>,
    origin: &Origin,
) -> Result<Response, Refusal> {
    let local = local.ok_or(Refusal::Unauthenticated)?;
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
    let answer = hall.gate.ask(&question, origin).await.map_err(|_| Refusal::NotReady)?;
    if answer.error.is_some() {
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
    let handle = caller.map_or_else(String::new, |caller| caller.handle.clone());
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
    let answer = hall.gate.ask(&question, origin).await.map_err(|_| Refusal::Unauthenticated)?;
    if let Some(error) = answer.error {
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
    axum::Extension(origin): axum::Extension<Origin>,
    upgrade: WebSocketUpgrade,
) -> Response {
    let credential = Credential::from_token(query.token.as_deref());
    let bytes_max = hall.options.frame_bytes_max;
    upgrade.max_message_size(bytes_max).max_frame_size(bytes_max).on_upgrade(move |socket| async move {
        let tasks = hall.process.tasks.clone();
        let sockets = hall.sockets.clone();
        tasks.spawn("gateway/socket", sockets.track_future(socket::serve(hall, socket, credential, origin)));
    })
}
