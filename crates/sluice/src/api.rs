//! The gateway as a client sees it: one call, with every way it can fail told to a person.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Map, Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::cli::Target;
use crate::exit::{Code, Told};

/// A connection to one gateway, in one workspace.
#[derive(Clone)]
pub(crate) struct Api {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
    timeout: Duration,
    pub(crate) workspace: String,
}

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
    /// Connects to what the arguments name; the key comes from `TRUSTGRAPH_TOKEN` or the data folder.
    pub(crate) fn new(target: &Target) -> anyhow::Result<Self> {
        let token = std::env::var("TRUSTGRAPH_TOKEN").ok().filter(|token| !token.is_empty()).or_else(|| {
            let key = data_folder(target).ok()?.join("admin.key");
            std::fs::read_to_string(key).ok().map(|key| key.trim().to_owned())
        });
        Self::with(&target.url, &target.workspace, token, Duration::from_secs(target.timeout))
    }

    /// Connects to a known address with a known key.
    pub(crate) fn with(
        url: &str,
        workspace: &str,
        token: Option<String>,
        timeout: Duration,
    ) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .timeout(timeout)
            .connect_timeout(Duration::from_secs(5))
            .build()
            .context("the HTTP client could not be made")?;
        let base = url.trim_end_matches('/').to_owned();
        Ok(Self { http, base, token, timeout, workspace: workspace.to_owned() })
    }

    /// Longest wait for an answer.
    pub(crate) const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether the gateway is there, and if so whether it is ready for calls.
    pub(crate) async fn is_ready(&self) -> anyhow::Result<bool> {
        let url = format!("{}/readyz", self.base);
        let answer = self.http.get(&url).send().await.map_err(|error| self.unreachable(&error))?;
        Ok(answer.status().is_success())
    }

    /// Calls an operation that needs no key.
    pub(crate) async fn call_public(&self, operation: &str) -> anyhow::Result<Value> {
        let nobody = Self { token: None, ..self.clone() };
        nobody.post(&format!("/api/v1/auth/{operation}"), json!({})).await
    }

    /// Calls a workspace service.
    pub(crate) async fn call(&self, kind: &str, body: Value) -> anyhow::Result<Value> {
        self.post(&format!("/api/v1/{kind}"), body).await
    }

    /// Calls a service of a flow.
    pub(crate) async fn call_flow(&self, flow: &str, kind: &str, body: Value) -> anyhow::Result<Value> {
        self.post(&format!("/api/v1/flow/{}/service/{kind}", percent(flow)), body).await
    }

    /// Calls a service of a flow that answers in parts, and hands on each as it comes. Parts come over a socket; a
    /// gateway that is reached by `https://` gives its answer whole.
    pub(crate) async fn stream_flow(
        &self,
        flow: &str,
        kind: &str,
        mut body: Value,
        mut part: impl FnMut(&Value),
    ) -> anyhow::Result<()> {
        let Some(host) = self.base.strip_prefix("http://") else {
            part(&self.call_flow(flow, kind, body).await?);
            return Ok(());
        };
        body["streaming"] = json!(true);
        let url = format!("ws://{host}/api/v1/socket");
        let parts = async {
            let (mut socket, _) = tokio_tungstenite::connect_async(&url).await.map_err(|_| self.nobody())?;
            let mut frames = Vec::new();
            if let Some(token) = &self.token {
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
                    return Err(self.refused(401, &frame).into());
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

    async fn post(&self, path: &str, mut body: Value) -> anyhow::Result<Value> {
        if let Value::Object(members) = &mut body {
            members.entry("workspace").or_insert_with(|| json!(self.workspace));
        }
        let url = format!("{}{path}", self.base);
        let mut request = self.http.post(&url).timeout(self.timeout).json(&body);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status().as_u16();
        let bytes = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        let answer: Value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).trim().to_owned()));
        if (200..300).contains(&status) {
            return told_by_service(answer);
        }
        Err(self.refused(status, &answer).into())
    }

    fn unreachable(&self, error: &reqwest::Error) -> anyhow::Error {
        let told = if error.is_timeout() {
            self.late()
        } else if error.is_builder() {
            Told::usage(format!("'{}' is not a valid address", self.base))
                .next("--url http://127.0.0.1:8888/")
        } else {
            self.nobody()
        };
        told.into()
    }

    fn late(&self) -> Told {
        Told::new(Code::TimedOut, format!("no answer from {} in time", self.base))
            .next("wait longer with --timeout SECONDS, or look at the log of `sluice up`")
    }

    fn nobody(&self) -> Told {
        Told::new(Code::Failed, format!("nobody answers at {}", self.base))
            .next("start the system with `sluice up`, or name another address with --url")
    }

    fn refused(&self, status: u16, answer: &Value) -> Told {
        let said = answer
            .get("error")
            .and_then(Value::as_str)
            .or_else(|| answer.as_str())
            .unwrap_or("no reason given");
        let message = format!("the gateway refused ({status}): {said}");
        match status {
            401 => Told::new(Code::Denied, message)
                .next("set TRUSTGRAPH_TOKEN, or name the folder that holds admin.key with --data DIR"),
            403 => Told::new(Code::Denied, message).next("ask an administrator for the capability"),
            404 if said == "workspace not found" => {
                Told::new(Code::NotFound, format!("there is no workspace '{}'", self.workspace))
                    .next("name another with --workspace ID")
            }
            404 => Told::new(Code::NotFound, message),
            408 | 504 => Told::new(Code::TimedOut, message),
            413 => Told::new(Code::Failed, message).next("send it in smaller parts"),
            429 | 503 => Told::new(Code::Failed, message).next("try again in a moment"),
            _ => Told::new(Code::Failed, message),
        }
    }
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
    fn path_segments_are_encoded() {
        assert_eq!(percent("f 1/é"), "f%201%2F%C3%A9");
    }
}
