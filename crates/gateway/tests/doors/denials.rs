//! Whoever is turned down leaves a line in the log: of its kind, once in a minute, and without what it showed or sent.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;

use crate::world::{PATIENCE, World, options, wait_for};

/// What nobody should find in a log.
const CANARY: &str = "canary7d1f";
/// How often each kind of caller comes.
const TIMES: usize = 12;

/// What is logged by this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    /// Lines that say something of an address.
    fn lines(&self, address: &str, says: &str) -> usize {
        let is_of = |line: &&str| line.contains(&format!("address={address} ")) && line.contains(says);
        self.text().lines().filter(is_of).count()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a caller sends that is turned down.
enum Sent {
    /// The bytes of a connection.
    Bytes(String),
    /// A message on a socket of its own that was opened with this key.
    Message(&'static str, Message),
    /// Bytes on such a socket that are no frame.
    NoFrame,
}

/// A call over HTTP.
fn posted(path: &str, key: &str, body: &str) -> Sent {
    let length = body.len();
    Sent::Bytes(format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {key}\r\nContent-Length: {length}\r\n\r\n{body}"
    ))
}

fn asked(workspace: &str, service: &str, request: &serde_json::Value) -> Sent {
    let frame = json!({"id": CANARY, "workspace": workspace, "service": service, "request": request});
    Sent::Message("tg_default", Message::text(frame.to_string()))
}

/// A connection from an address of its own.
async fn connect(from: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
    socket.connect(to).await.unwrap()
}

impl Sent {
    /// Sends it, and reads until something comes back or the connection ends.
    async fn send(&self, from: &str, to: SocketAddr) {
        let mut stream = connect(from, to).await;
        match self {
            Self::Bytes(bytes) => {
                // It may be closed before all of it is sent.
                let _ = stream.write_all(bytes.as_bytes()).await;
                let _ = stream.read(&mut [0; 1024]).await;
            }
            Self::Message(key, message) => {
                let mut socket = open(key, to, stream).await;
                let _ = socket.send(message.clone()).await;
                let _ = socket.next().await;
            }
            Self::NoFrame => {
                let mut socket = open("tg_default", to, stream).await;
                // Reserved bits, which nothing was agreed on for.
                let _ = socket.get_mut().write_all(&[0xff, 0x80, 0, 0, 0, 0]).await;
                let _ = socket.next().await;
            }
        }
    }
}

async fn open(key: &str, to: SocketAddr, stream: TcpStream) -> tokio_tungstenite::WebSocketStream<TcpStream> {
    let url = format!("ws://{to}/api/v1/socket?token={key}");
    tokio_tungstenite::client_async(url, stream).await.unwrap().0
}

fn kinds() -> Vec<(&'static str, Sent, &'static str)> {
    let secret = format!(r#"{{"operation":"list","workspace":"other","type":"{CANARY}"}}"#);
    let denied = "access was denied";
    let away = "somebody was turned away";
    vec![
        ("a key that is not accepted", posted("/api/v1/config", "tg_canary7d1f", &secret), "an authentication failed"),
        ("a capability that is missing", posted("/api/v1/config", "tg_default", &secret), denied),
        (
            "the same on a socket",
            asked("other", "config", &json!({"operation": "put", "values": [{"value": CANARY}]})),
            denied,
        ),
        ("a capability of a flow", posted("/api/v1/flow/f/service/embeddings", "tg_other", "{\"workspace\": \"default\"}"), denied),
        ("a capability of the system", posted("/api/v1/iam", "tg_default", r#"{"operation": "create-workspace"}"#), denied),
        (
            "what the identity service itself does not permit",
            posted("/api/v1/iam", "tg_admin", r#"{"operation": "disable-workspace"}"#),
            "the identity service does not permit",
        ),
        (
            "a password on a socket",
            Sent::Message(
                "tg_admin",
                Message::text(json!({"id": 1, "service": "iam", "request": {"operation": "login", "username": "admin", "password": CANARY}}).to_string()),
            ),
            "an authentication failed",
        ),
        ("a frame that is no JSON", Sent::Message("tg_default", Message::text(CANARY)), away),
        ("a frame of a stranger that is no JSON", Sent::Message("", Message::text(CANARY)), away),
        ("a frame without an id", Sent::Message("tg_default", Message::text(format!(r#"{{"x": "{CANARY}"}}"#))), away),
        ("a frame that is no text", Sent::Message("tg_default", Message::binary(vec![0xff; 10])), away),
        ("what is no frame", Sent::NoFrame, away),
        ("a message of a stranger that is too large", Sent::Message("", Message::text(CANARY.repeat(4_000))), away),
        ("a body that is no JSON", posted("/api/v1/config", "tg_default", CANARY), away),
        ("a body that is no object", posted("/api/v1/config", "tg_default", &format!("[\"{CANARY}\"]")), away),
        ("what is no request", Sent::Bytes(format!("{CANARY}\r\n\r\n")), away),
        ("a head without an end", Sent::Bytes(format!("GET /{} HTTP/1.1\r\n", CANARY.repeat(20_000))), away),
    ]
}

#[tokio::test]
async fn each_kind_of_denial_alone_leaves_its_line_and_nothing_of_what_was_sent() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let world = World::with(options()).await;
    world.with_embeddings().await;
    for (number, (name, sent, says)) in kinds().iter().enumerate() {
        let address = format!("127.0.1.{}", number + 1);
        for _ in 0..TIMES {
            tokio::time::timeout(PATIENCE, sent.send(&address, world.gateway.local_addr)).await.expect(name);
        }
        wait_for(name, async || log.lines(&address, says) > 0).await;
        // One may come again in the next minute of a slow run.
        let all = log.lines(&address, "");
        assert!(all <= 3, "{name}: {all} lines\n{}", log.text());
    }
    let text = log.text();
    assert!(!text.contains(CANARY), "what was shown or sent is in the log:\n{text}");
}
