//! Whatever bytes come through a door, from the wire up to a typed question: within bounds, or refused in words.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use futures_util::StreamExt as _;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sluice_schema::{WorkspaceId, api};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::forwarded;
use crate::frame::{self, Frame};
use crate::hall::{self, Call, Door};
use crate::identity::{Identity, Origin};
use crate::meter::{Meter, Metered};

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

fn caller() -> Arc<Identity> {
    Arc::new(Identity { handle: "u1".into(), workspace: WorkspaceId::existing("own") })
}

/// Takes a body as far as the question that it becomes.
fn enter(door: Door, service: &str, flow: Option<&str>, workspace: Option<&str>, body: Map<String, Value>) {
    let (origin, caller) = (Origin::default(), caller());
    let mut call =
        Call { door, caller: Some(caller.clone()), workspace, flow, service, body, origin: &origin };
    let Ok(operation) = hall::find(&call) else { return };
    let Some(service) = api::find(service) else { return };
    let Ok(workspace) = hall::workspace_of(&call, &caller) else { return };
    assert!(!workspace.is_empty());
    let _ = operation.check(&call.body);
    call.body.insert("workspace".to_owned(), Value::String(workspace.clone()));
    match hall::encode(service, &mut call, &caller) {
        Ok(asked) => {
            let question: Value = serde_json::from_slice(&asked.body).expect("a question is JSON");
            if let Some(named) = question.get("workspace").filter(|_| service.name != "iam") {
                assert_eq!(named, &workspace, "{question}");
            }
        }
        Err(refusal) => assert!(!refusal.frame_error()["message"].to_string().is_empty()),
    }
}

fn takes(value: &Value) -> usize {
    size_of::<Value>()
        + match value {
            Value::Array(all) => all.iter().map(takes).sum::<usize>(),
            Value::Object(all) => all.iter().map(|(name, value)| 64 + name.capacity() + takes(value)).sum(),
            Value::String(text) => text.capacity(),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
}

#[test]
fn any_frame_is_a_typed_question_or_refused_under_its_id() {
    let hasher = RandomState::new();
    sluice_fuzz::run("frames", &corpus("frames"), 5_000, &[], &|input| {
        let text = String::from_utf8_lossy(input);
        match Frame::read(&text, &hasher) {
            Err(garbage) => {
                let id = garbage.id.as_ref().map(|id| id.get());
                let refused = frame::refused(garbage.id.as_deref(), &garbage.refusal);
                // An id comes back as it was written, whatever numbers are in it.
                let shown: BTreeMap<String, &RawValue> = serde_json::from_str(&refused).expect("JSON");
                assert_eq!(shown["complete"].get(), "true");
                assert_eq!(shown.get("id").map(|id| id.get()), id);
                assert!(refused.len() < 8 << 10, "what is refused comes back whole");
            }
            Ok(Frame::Auth { token }) => assert!(token.is_none_or(|token| !token.is_empty())),
            Ok(Frame::Request(request)) => {
                let body = Value::Object(request.body);
                assert!(request.weight_bytes + size_of::<Value>() >= takes(&body));
                let Value::Object(body) = body else { return };
                let (flow, workspace) = (request.flow.as_deref(), request.workspace.as_deref());
                enter(Door::Socket, &request.service, flow, workspace, body);
            }
        }
    });
}

#[test]
fn any_body_is_weighed_for_more_than_it_takes_and_becomes_a_typed_question() {
    sluice_fuzz::run("bodies", &corpus("bodies"), 5_000, &[], &|input| {
        let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
        let (path, text) = (String::from_utf8_lossy(&input[..end]), &input[input.len().min(end + 1)..]);
        let weight = sluice_schema::ceilings::weigh(text);
        let Ok(value) = serde_json::from_slice::<Value>(text) else { return };
        assert!(weight + size_of::<Value>() >= takes(&value), "{weight} for {} bytes", text.len());
        let Value::Object(members) = value else { return };
        match path.split_once('/') {
            Some((flow, service)) => enter(Door::Http, service, Some(flow), None, members),
            None => enter(Door::Http, &path, None, None, members),
        }
    });
}

/// Bytes that come so many at a time, from a peer that takes whatever it is sent.
struct Peer<'a> {
    left: &'a [u8],
    at_once: usize,
}

impl AsyncRead for Peer<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, later) = self.left.split_at(self.at_once.min(into.remaining()).min(self.left.len()));
        into.put_slice(now);
        self.left = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The messages of a stream of bytes up to where it breaks.
async fn messages<S: AsyncRead + AsyncWrite + Unpin>(stream: S, bytes_max: usize) -> Vec<Message> {
    let config = WebSocketConfig::default().max_message_size(Some(bytes_max)).max_frame_size(Some(bytes_max));
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    let mut all = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        all.push(message);
    }
    all
}

/// A client's frame; the mask is one that changes nothing, so that what is in it can be read and mutated.
fn client_frame(first: u8, content: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match content.len() {
        bytes @ 0..126 => frame.push(0x80 | bytes as u8),
        bytes => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(bytes as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(content);
    frame
}

#[test]
fn any_bytes_on_a_socket_are_the_same_messages_with_a_meter_and_none_is_above_its_bound() {
    const LARGE: usize = 1 << 16;
    const SMALL: usize = 300;
    let text = br#"{"id":"1","service":"config","request":{"operation":"config"}}"#;
    let whole =
        [client_frame(0x81, text), client_frame(0x89, b"ping"), client_frame(0x88, &[3, 232])].concat();
    let parts =
        [client_frame(1, text), client_frame(0x89, b""), client_frame(0x80, &text.repeat(9))].concat();
    let large = [client_frame(0x81, &[b'x'; 400]), client_frame(0x82, &[b'y'; 200])].concat();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    sluice_fuzz::run("sockets", &corpus("sockets"), 3_000, &[&whole, &parts, &large], &|input| {
        runtime.block_on(async {
            let plain = messages(Peer { left: input, at_once: usize::MAX }, LARGE).await;
            for at_once in [1, 7, 4_096] {
                let peer = || Peer { left: input, at_once };
                let metered = messages(Metered::new(peer(), Meter::new(LARGE)), LARGE).await;
                // Where a frame says that it is too large, the meter stops before others see how large.
                assert_eq!(metered, plain[..metered.len().min(plain.len())], "{at_once} at once");
                let is_short = metered.len() < plain.len();
                assert!(!is_short || plain[metered.len()..].iter().all(Message::is_close), "{plain:?}");
                let narrow = messages(Metered::new(peer(), Meter::new(SMALL)), LARGE).await;
                assert_eq!(narrow, plain[..narrow.len().min(plain.len())], "{at_once} at once");
                assert!(narrow.iter().all(|message| message.len() <= SMALL), "{narrow:?}");
            }
        });
    });
}

#[test]
fn any_headers_are_read_or_refused() {
    let peer = [127, 0, 0, 1].into();
    let trusted = ["127.0.0.0/8".parse().expect("a network"), "10.0.0.0/8".parse().expect("a network")];
    sluice_fuzz::run("headers", &corpus("headers"), 3_000, &[], &|input| {
        let mut headers = HeaderMap::new();
        for line in input.split(|byte| *byte == b'\n') {
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let (name, value) = (HeaderName::from_bytes(&line[..colon]), &line[colon + 1..]);
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
                headers.append(name, value);
            }
        }
        let _ = crate::http::credential(&headers);
        let _ = crate::http::accept_key(&headers);
        let client = forwarded::client(peer, &headers, &trusted);
        // Somebody behind the proxy, or the proxy itself: what cannot be read is nobody.
        assert!(client == peer || headers.contains_key("x-forwarded-for"));
    });
}
