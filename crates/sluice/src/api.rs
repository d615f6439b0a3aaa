//! The gateway as a client sees it: one call, with every way it can fail told to a person.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use reqwest::Url;
use rustls::pki_types::ServerName;
use serde_json::{Map, Value, json};
use sluice_iam::proof::{Challenge, Side};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::address;
use crate::cli::Target;
use crate::exit::{Code, Told};
use crate::key::{self, Key, Local};
use crate::trust;

/// About how much of a list is asked for at once, in bytes.
const PAGE_BYTES: u64 = 4 * 1024 * 1024;
/// How long the other end may take to be there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to one gateway, in one workspace.
#[derive(Clone)]
pub(crate) struct Api {
    http: reqwest::Client,
    base: String,
    /// The base address without anything that could be a secret, for messages.
    shown: String,
    key: Key,
    /// The address to dial, where the URL leads to this machine.
    local: Option<SocketAddr>,
    /// How to speak TLS, with an `https://` address.
    tls: Option<Arc<rustls::ClientConfig>>,
    timeout: Duration,
    pub(crate) workspace: String,
}

/// The bytes of a socket, in clear or in TLS.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// The folder that holds data and the admin key.
pub(crate) fn data_folder(target: &Target) -> anyhow::Result<PathBuf> {
    if let Some(folder) = &target.data {
        return Ok(folder.clone());
    }
    let home = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    home("XDG_DATA_HOME")
        .or_else(|| home("HOME").map(|home| home.join(".local/share")))
        .map(|folder| folder.join("sluice"))
        .ok_or_else(|| {
            Told::usage("there is no home folder to keep data in").next("give one with --data DIR").into()
        })
}

impl Api {
    /// Connects to what the arguments name, with the key that is for it.
    pub(crate) fn new(target: &Target) -> anyhow::Result<Self> {
        let url = address::GATEWAY.read(&target.url)?;
        let local = key::loopback(&url);
        let key = Key::find(target, data_folder(target).ok().as_deref(), local)?;
        let is_tls = url.scheme() == "https";
        if matches!(key, Key::Named(_)) && !is_tls && local.is_none() {
            tracing::warn!(
                url = address::GATEWAY.shown(&target.url),
                "the key goes to another machine in clear; use an https:// address"
            );
        }
        let tls = is_tls.then(|| trust::config(target)).transpose()?;
        let base = target.url.trim().trim_end_matches('/');
        Self::connect(base, &target.workspace, key, local, tls, Duration::from_secs(target.timeout))
    }

    /// Connects to a server of this process with its key.
    pub(crate) fn own(
        address: SocketAddr,
        workspace: &str,
        key: String,
        timeout: Duration,
    ) -> anyhow::Result<Self> {
        let base = format!("http://{address}");
        Self::connect(&base, workspace, Key::Named(key), Some(address), None, timeout)
    }

    fn connect(
        base: &str,
        workspace: &str,
        key: Key,
        local: Option<SocketAddr>,
        tls: Option<rustls::ClientConfig>,
        timeout: Duration,
    ) -> anyhow::Result<Self> {
        // Redirects are not followed: a key is for the address that it was checked for.
        let mut http = reqwest::Client::builder()
            .timeout(timeout)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none());
        if let Some(tls) = &tls {
            http = http.tls_backend_preconfigured(tls.clone());
        }
        if let Some(address) = local {
            // No proxy stands between a machine and itself, and one address of the name is meant.
            http = http.no_proxy().resolve("localhost", address);
        }
        let http = http.build().context("the HTTP client could not be made")?;
        let (base, workspace) = (base.to_owned(), workspace.to_owned());
        let shown = address::GATEWAY.shown(&base);
        Ok(Self { http, base, shown, key, local, tls: tls.map(Arc::new), timeout, workspace })
    }

    /// The key to send, if any. That of the data folder is sent only to a server that proves to know it.
    async fn token(&self) -> anyhow::Result<Option<&str>> {
        match &self.key {
            Key::None | Key::Elsewhere(_) => Ok(None),
            Key::Named(key) => Ok(Some(key)),
            Key::Local(local) => {
                let is_sent = local.is_sent.get_or_try_init(|| self.is_proved(local)).await?;
                if *is_sent {
                    key::sendable(&local.key, &format!("'{}'", local.file.display()))?;
                }
                Ok(is_sent.then_some(&local.key))
            }
        }
    }

    /// Whether the server knows the key (`true`) or asks for none (`false`); everything else is an error.
    async fn is_proved(&self, local: &Local) -> anyhow::Result<bool> {
        let nonce = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
        let address = local.address.to_string();
        let challenge = Challenge { nonce: &nonce, address: &address };
        let body = json!({"nonce": nonce, "proof": challenge.prove(Side::Holder, &local.key)});
        let url = format!("{}/api/v1/auth/prove-key", self.base);
        let (status, bytes) = self.send(self.http.post(&url).json(&body)).await?;
        let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let proof = answer["proof"].as_str().unwrap_or_default();
        match status {
            200 if answer["open"] == true => Ok(false),
            200 if challenge.is_proved(Side::Service, &local.key, proof) => Ok(true),
            408 | 429 | 503 => Err(self.refused(status, &answer).into()),
            _ => Err(Told::new(
                Code::Denied,
                format!("what answers at {} does not know the key in {}, so the key was not sent", self.shown, local.file.display()),
            )
            .next("name the folder of the server that runs there with --data DIR; for a server behind a forwarded port or a proxy, name its key with --token-file FILE")
            .into()),
        }
    }

    /// Longest wait for an answer.
    pub(crate) const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether the gateway is there, and if so why it is not ready for calls.
    pub(crate) async fn why_not_ready(&self) -> anyhow::Result<Option<Told>> {
        let url = format!("{}/readyz", self.base);
        let (status, bytes) = self.send(self.http.get(&url)).await?;
        let is_ready = (200..300).contains(&status);
        Ok((!is_ready).then(|| self.refused(status, &read(&bytes))))
    }

    /// Calls an operation that needs no key.
    pub(crate) async fn call_public(&self, operation: &str) -> anyhow::Result<Value> {
        let nobody = Self { key: Key::None, ..self.clone() };
        nobody.post(&format!("/api/v1/auth/{operation}"), json!({})).await
    }

    /// Calls a workspace service.
    pub(crate) async fn call(&self, kind: &str, body: Value) -> anyhow::Result<Value> {
        self.post(&format!("/api/v1/{kind}"), body).await
    }

    /// Calls a workspace service for a list, page by page; the answer is as if it had come in one piece.
    pub(crate) async fn list(&self, kind: &str, mut body: Value) -> anyhow::Result<Value> {
        let mut whole = Value::Null;
        body["bytes_max"] = json!(PAGE_BYTES);
        loop {
            let mut page = self.call(kind, body.clone()).await?;
            // A service that is not ours answers in one piece.
            let cursor = page.as_object_mut().and_then(|page| page.remove("cursor"));
            join(&mut whole, page);
            match cursor {
                Some(cursor) if cursor.as_str().is_some_and(|cursor| !cursor.is_empty()) => {
                    body["cursor"] = cursor;
                }
                _ => return Ok(whole),
            }
        }
    }

    /// Calls a service of a flow.
    pub(crate) async fn call_flow(&self, flow: &str, kind: &str, body: Value) -> anyhow::Result<Value> {
        self.post(&format!("/api/v1/flow/{}/service/{kind}", percent(flow)), body).await
    }

    /// Calls a service of a flow that answers in parts, and hands on each as it comes, over a socket.
    pub(crate) async fn stream_flow(
        &self,
        flow: &str,
        kind: &str,
        mut body: Value,
        mut part: impl FnMut(&Value),
    ) -> anyhow::Result<()> {
        body["streaming"] = json!(true);
        let parts = async {
            let token = self.token().await?;
            let mut socket = self.open_socket().await?;
            let mut frames = Vec::new();
            if let Some(token) = token {
                frames.push(json!({"type": "auth", "token": token}));
            }
            frames.push(json!({"id": "1", "workspace": self.workspace, "flow": flow, "service": kind, "request": body}));
            for frame in frames {
                socket.send(Message::text(frame.to_string())).await.map_err(|_| self.nobody())?;
            }
            while let Some(frame) = socket.next().await {
                let Message::Text(text) = frame.map_err(|_| self.nobody())? else { continue };
                let frame: Value =
                    serde_json::from_str(&text).context("the gateway sent what is not JSON")?;
                if frame["type"] == "auth-failed" {
                    // With a reason, the key was not looked at.
                    let status = if frame["reason"].is_string() { 503 } else { 401 };
                    return Err(self.refused(status, &frame).into());
                }
                if let Some(error) = frame.get("error").and_then(Value::as_object) {
                    return Err(service_failure(error).into());
                }
                if frame["id"] != "1" {
                    continue;
                }
                let answer = told_by_service(frame["response"].clone())?;
                part(&answer);
                if frame["complete"] == true {
                    return Ok(());
                }
            }
            Err(Told::new(Code::Failed, "the gateway closed the connection before the answer was whole")
                .into())
        };
        match tokio::time::timeout(self.timeout, parts).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.late().into()),
        }
    }

    /// Connects to the other end; its name, and the connection.
    async fn dial(&self) -> anyhow::Result<(String, TcpStream)> {
        let url = Url::parse(&self.base).map_err(|_| self.not_an_address())?;
        let host = url.host_str().ok_or_else(|| self.not_an_address())?;
        let port = url.port_or_known_default().ok_or_else(|| self.not_an_address())?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let tcp = match self.local {
            Some(address) => TcpStream::connect(address).await,
            None => TcpStream::connect((bare, port)).await,
        };
        Ok((bare.to_owned(), tcp.map_err(|_| self.nobody())?))
    }

    async fn open_socket(&self) -> anyhow::Result<WebSocketStream<Box<dyn Wire>>> {
        let (host, tcp) = self.dial().await?;
        let wire: Box<dyn Wire> = match &self.tls {
            None => Box::new(tcp),
            Some(tls) => {
                let name = ServerName::try_from(host).map_err(|_| self.not_an_address())?;
                let shaken = TlsConnector::from(tls.clone()).connect(name, tcp).await;
                Box::new(shaken.map_err(|error| self.untrusted(&error).unwrap_or_else(|| self.nobody()))?)
            }
        };
        let after_scheme = self.base.split_once("://").map_or("", |(_, after)| after);
        let request = format!("ws://{after_scheme}/api/v1/socket");
        match tokio_tungstenite::client_async(request, wire).await {
            Ok((socket, _)) => Ok(socket),
            // Whoever answers in clear, other than that this was no request, speaks no TLS.
            Err(tungstenite::Error::Http(answer)) if answer.status() != 400 => Err(self.nobody().into()),
            Err(_) if self.is_tls_missing().await => Err(self.wants_tls().into()),
            Err(_) => Err(self.nobody().into()),
        }
    }

    async fn post(&self, path: &str, mut body: Value) -> anyhow::Result<Value> {
        if let Value::Object(members) = &mut body {
            members.entry("workspace").or_insert_with(|| json!(self.workspace));
        }
        let url = format!("{}{path}", self.base);
        let mut request = self.http.post(&url).timeout(self.timeout).json(&body);
        if let Some(token) = self.token().await? {
            request = request.bearer_auth(token);
        }
        let (status, bytes) = self.send(request).await?;
        let answer = read(&bytes);
        // What a service said is told in its words, whatever the status.
        if is_of_service(status, &answer) {
            return told_by_service(answer);
        }
        Err(self.refused(status, &answer).into())
    }

    /// Sends a request; the status and the body of its answer.
    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<(u16, Bytes)> {
        let answered = async {
            let response = request.send().await?;
            Ok::<_, reqwest::Error>((response.status().as_u16(), response.bytes().await?))
        };
        let answered = answered.await;
        // Where TLS is spoken, what comes in clear is no answer, or one that refuses.
        let is_answer = match &answered {
            Ok((status, body)) => *status != 400 || read(body).is_object(),
            Err(error) => error.is_timeout() || error.is_builder(),
        };
        if !is_answer && self.is_tls_missing().await {
            return Err(self.wants_tls().into());
        }
        answered.map_err(|error| self.unreachable(&error))
    }

    /// Its address for people, without how it is spoken to.
    fn after_scheme(&self) -> &str {
        self.shown.split_once("://").map_or("HOST:PORT", |(_, after)| after)
    }

    /// Whether the other end speaks TLS, and is spoken to without.
    async fn is_tls_missing(&self) -> bool {
        if self.tls.is_some() {
            return false;
        }
        let asked = async {
            match self.dial().await {
                Ok((host, tcp)) => trust::is_tls_spoken(host, tcp).await,
                Err(_) => false,
            }
        };
        tokio::time::timeout(CONNECT_TIMEOUT, asked).await.unwrap_or(false)
    }

    fn wants_tls(&self) -> Told {
        let next = format!(
            "--url https://{}, and --ca FILE where this machine does not know the issuer of its certificate",
            self.after_scheme()
        );
        Told::new(Code::Failed, format!("what answers at {} speaks TLS, and was asked without", self.shown))
            .next(next)
    }

    fn unreachable(&self, error: &reqwest::Error) -> anyhow::Error {
        let told = if error.is_timeout() {
            self.late()
        } else if error.is_builder() {
            self.not_an_address()
        } else {
            self.untrusted(error).unwrap_or_else(|| self.nobody())
        };
        told.into()
    }

    fn not_an_address(&self) -> Told {
        Told::usage(format!("{} cannot be asked", self.shown)).next("--url http://127.0.0.1:8888/")
    }

    /// A failure of TLS, if it is one.
    fn untrusted(&self, error: &(dyn std::error::Error + 'static)) -> Option<Told> {
        let cause = trust::tls_error(error)?;
        let told = Told::new(Code::Failed, format!("no TLS connection to {}: {cause}", self.shown));
        Some(match cause {
            rustls::Error::InvalidCertificate(_) if trust::shows_an_issuer(cause) => Told {
                message: format!(
                    "no TLS connection to {}: the server shows the certificate of an issuer (CA) as its own",
                    self.shown
                ),
                ..told
            }
            .next(trust::ISSUER_SHOWN_NEXT),
            rustls::Error::InvalidCertificate(_) => {
                told.next("name the certificate of its issuer with --ca FILE")
            }
            rustls::Error::InvalidMessage(_) => {
                Told { message: format!("what answers at {} speaks no TLS: {cause}", self.shown), ..told }
                    .next(format!("--url http://{}, where it serves without TLS", self.after_scheme()))
            }
            _ => told.next("if it asks for a certificate, give --client-cert FILE and --client-key FILE"),
        })
    }

    fn late(&self) -> Told {
        Told::new(Code::TimedOut, format!("no answer from {} in time", self.shown))
            .next("wait longer with --timeout SECONDS, or look at the log of `sluice up`")
    }

    fn nobody(&self) -> Told {
        Told::new(Code::Failed, format!("nobody answers at {}", self.shown))
            .next("start the system with `sluice up`, or name another address with --url")
    }

    fn refused(&self, status: u16, answer: &Value) -> Told {
        let said = answer
            .get("error")
            .and_then(Value::as_str)
            .or_else(|| answer.as_str())
            .unwrap_or("no reason given");
        let message = format!("the gateway refused ({status}): {said}");
        let kind =
            ["reason", "type"].into_iter().find_map(|name| answer.get(name)?.as_str()).unwrap_or_default();
        let told = match status {
            300..=399 => Told::new(Code::Failed, message).next("name the address it points to with --url"),
            401 => Told::new(Code::Denied, message).next(match &self.key {
                Key::Elsewhere(file) => format!(
                    "name a key for this address with --token-file FILE or TRUSTGRAPH_TOKEN; the one in {} is sent to its own server on this machine alone",
                    file.display()
                ),
                Key::Named(_) => "the key given with TRUSTGRAPH_TOKEN or --token-file FILE is not accepted there: check it, or leave it out to use admin.key of a data folder on this machine".to_owned(),
                Key::None | Key::Local(_) => "set TRUSTGRAPH_TOKEN or --token-file FILE, or name the folder that holds admin.key with --data DIR".to_owned(),
            }),
            403 if said == "access denied" => {
                Told::new(Code::Denied, message).next("ask an administrator for the capability")
            }
            403 => Told::new(Code::Denied, message),
            404 if said == "workspace not found" => {
                Told::new(Code::NotFound, format!("there is no workspace '{}'", self.workspace))
                    .next("name another with --workspace ID")
            }
            404 => Told::new(Code::NotFound, message),
            408 | 504 => Told::new(Code::TimedOut, message),
            413 => Told::new(Code::Failed, message).next("send it in smaller parts"),
            429 => Told::new(Code::Failed, message).next("try again in a moment"),
            503 => Told::new(Code::Failed, message).next("try again in a moment, or run `sluice doctor`"),
            _ => Told::new(Code::Failed, message),
        };
        Told { kind: kind.to_owned(), ..told }
    }
}

/// Adds a page to those before: lists grow, objects are joined, of all else the later counts.
fn join(whole: &mut Value, page: Value) {
    match (whole, page) {
        (Value::Array(items), Value::Array(more)) => items.extend(more),
        (Value::Object(members), Value::Object(more)) => {
            for (name, value) in more {
                join(members.entry(name).or_insert(Value::Null), value);
            }
        }
        (whole, page) => *whole = page,
    }
}

/// An answer as JSON, or what it says as a string.
fn read(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).trim().to_owned()))
}

/// Whether a service said this, and not the gateway.
fn is_of_service(status: u16, answer: &Value) -> bool {
    (200..300).contains(&status) || (matches!(status, 429 | 503) && answer["error"].is_object())
}

/// A failure that a service reports inside a good answer.
fn told_by_service(answer: Value) -> anyhow::Result<Value> {
    let Some(error) = answer.get("error").and_then(Value::as_object) else { return Ok(answer) };
    Err(service_failure(error).into())
}

fn service_failure(error: &Map<String, Value>) -> Told {
    let member = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default();
    let (kind, message) = (member("type"), member("message"));
    let code = match kind {
        "not-found" | "workspace-not-found" | "unknown-service" => Code::NotFound,
        "version-conflict" => Code::Differs,
        "access-denied" | "auth-required" | "auth-failed" => Code::Denied,
        "timeout" | "provider-timeout" => Code::TimedOut,
        _ if is_known_to_be(NOT_THERE, kind, message) => Code::NotFound,
        _ if is_known_to_be(LATE, kind, message) => Code::TimedOut,
        _ => Code::Failed,
    };
    let told = Told { kind: kind.to_owned(), ..Told::new(code, format!("{kind}: {message}")) };
    match (kind, code) {
        ("flow-error", Code::NotFound) if message == NO_BLUEPRINT => told.next("sluice blueprint ls"),
        ("flow-error", Code::NotFound) => told.next("sluice flow ls"),
        ("overloaded", _) => told.next("try again in a moment"),
        ("store-unavailable" | "config-unavailable", _) => {
            told.next("run `sluice doctor`, which looks at the store and its disk, then try again")
        }
        ("bus-unavailable", _) => told.next(
            "run `sluice doctor`, which looks at the broker, then look whether it is done, or try again",
        ),
        ("outcome-unknown", _) => {
            told.next("look whether it happened, as with `sluice flow ls`, then ask again")
        }
        ("flow-error", _) if message == FLOW_EXISTS => {
            told.next("choose another id, or stop it first with `sluice flow stop ID`")
        }
        _ => told,
    }
}

const NO_BLUEPRINT: &str = "Blueprint does not exist";
const FLOW_EXISTS: &str = "Flow already exists";
/// What the dialect gives no type of its own: the type, and how the text that is part of the dialect begins.
const NOT_THERE: &[(&str, &str)] = &[
    ("flow-error", NO_BLUEPRINT),
    ("flow-error", "Flow ID invalid"),
    ("flow-error", "Unknown flow: "),
    ("flow-error", "Invalid flow "),
];
const LATE: &[(&str, &str)] = &[("gateway-error", "Timeout"), ("llm-error", "provider-timeout:")];

fn is_known_to_be(known: &[(&str, &str)], kind: &str, message: &str) -> bool {
    known.iter().any(|(own, begins)| *own == kind && message.starts_with(begins))
}

/// Percent-encodes one path segment.
fn percent(segment: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_said_is_told_in_its_words_whatever_the_status() {
        let busy = json!({"error": {"type": "overloaded", "message": "too much is under way"}});
        assert!([200, 429, 503].into_iter().all(|status| is_of_service(status, &busy)));
        assert!(!is_of_service(429, &json!({"error": "too many calls"})) && !is_of_service(401, &busy));
        let told = told_by_service(busy).unwrap_err().downcast::<Told>().unwrap();
        assert_eq!(told.message, "overloaded: too much is under way");
        assert_eq!(told.next.as_deref(), Some("try again in a moment"));
        let full = json!({"error": {"type": "store-unavailable", "message": "its disk is full"}});
        let told = told_by_service(full).unwrap_err().downcast::<Told>().unwrap();
        assert!(told.next.unwrap_or_default().contains("sluice doctor"));
    }

    #[test]
    fn a_service_failure_gets_the_right_exit_code() {
        let check = |kind: &str, message: &str, code: Code| {
            let answer = json!({"error": {"type": kind, "message": message}});
            let error = told_by_service(answer).unwrap_err();
            assert_eq!(error.downcast_ref::<Told>().unwrap().code, code, "{kind}: {message}");
        };
        check("flow-error", "Flow ID invalid", Code::NotFound);
        check("flow-error", "Flow already exists", Code::Failed);
        check("flow-error", "Blueprint does not exist", Code::NotFound);
        check("flow-error", "Invalid flow default/f9", Code::NotFound);
        check("flow-error", "Unknown flow: f9", Code::NotFound);
        check("flow-error", "the flow is not found of what it looks for", Code::Failed);
        check("not-found", "x", Code::NotFound);
        check("gateway-error", "Timeout", Code::TimedOut);
        check("llm-error", "provider-timeout: the model did not answer", Code::TimedOut);
        check("version-conflict", "x", Code::Differs);
        check("access-denied", "x", Code::Denied);
        assert!(told_by_service(json!({"values": []})).is_ok());
    }

    #[test]
    fn pages_are_joined_as_if_they_were_one_answer() {
        let mut whole = Value::Null;
        join(&mut whole, json!({"version": 1, "names": ["a"], "config": {"t": {"k": "1"}}}));
        join(&mut whole, json!({"version": 2, "names": ["b"], "config": {"t": {"l": "2"}, "u": {"k": "3"}}}));
        let expected = json!({"version": 2, "names": ["a", "b"], "config": {"t": {"k": "1", "l": "2"}, "u": {"k": "3"}}});
        assert_eq!(whole, expected);
    }

    #[test]
    fn path_segments_are_encoded() {
        assert_eq!(percent("f 1/é"), "f%201%2F%C3%A9");
    }
}
