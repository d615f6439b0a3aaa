//! The gateway in TLS: both doors, callers' certificates, handshakes that take their time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use sluice_gateway::{Options, Tls, TlsFiles};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite;

use crate::world::{PATIENCE, World, options, wait_for};

/// An issuer, a certificate of its for a server on loopback, and one for a caller.
struct Issued {
    folder: tempfile::TempDir,
}

impl Issued {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
        write("ca.pem", issuer.pem());
        for (name, subject) in [("server", "127.0.0.1"), ("caller", "caller.example.org")] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![subject.to_owned()]).unwrap();
            write(&format!("{name}.pem"), params.signed_by(&key, &issuer).unwrap().pem());
            write(&format!("{name}.key"), key.serialize_pem());
        }
        Self { folder }
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn options(&self, client_ca: Option<&Self>) -> Options {
        let files = TlsFiles {
            certificate: self.file("server.pem"),
            key: self.file("server.key"),
            client_ca: client_ca.map(|issued| issued.file("ca.pem")),
        };
        let mut options = options();
        options.tls = Some(Tls::load(files).unwrap());
        options
    }

    /// What a caller is set to that trusts this issuer and shows a certificate of `shown`.
    fn client(&self, shown: Option<&Self>) -> ClientConfig {
        let read = |file: &Path| CertificateDer::from_pem_file(file).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(read(&self.file("ca.pem"))).unwrap();
        let builder = ClientConfig::builder().with_root_certificates(roots);
        match shown {
            None => builder.with_no_client_auth(),
            Some(shown) => {
                let key = PrivateKeyDer::from_pem_file(shown.file("caller.key")).unwrap();
                builder.with_client_auth_cert(vec![read(&shown.file("caller.pem"))], key).unwrap()
            }
        }
    }
}

async fn connect(world: &World, client: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(world.gateway.local_addr).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(client)).connect(name, tcp).await
}

/// Status and body of a call as admin, or what went wrong.
async fn ask(world: &World, client: ClientConfig, path: &str, body: &Value) -> std::io::Result<String> {
    let asked = async {
        let mut stream = connect(world, client).await?;
        let (host, body) = (world.gateway.local_addr, body.to_string());
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer tg_admin\r\nContent-Length: {}\r\n\
             Origin: https://{host}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut said = String::new();
        stream.read_to_string(&mut said).await?;
        Ok(said)
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap()
}

async fn is_ready(world: &World, client: &ClientConfig) {
    let list = json!({"operation": "list", "type": "tool"});
    wait_for("an answer over TLS", || async {
        let said = ask(world, client.clone(), "/api/v1/config", &list).await;
        said.is_ok_and(|said| said.starts_with("HTTP/1.1 200"))
    })
    .await;
}

#[tokio::test]
async fn both_doors_are_served_in_tls_and_nothing_in_clear() {
    let issued = Issued::new();
    let world = World::unread(issued.options(None), false).await;
    let client = issued.client(None);
    is_ready(&world, &client).await;

    let wire = connect(&world, client).await.unwrap();
    let url = format!("ws://{}/api/v1/socket?token=tg_admin", world.gateway.local_addr);
    let (mut socket, _) = tokio_tungstenite::client_async(url, wire).await.unwrap();
    let frame = json!({"id": "1", "service": "config", "request": {"operation": "list", "type": "tool"}});
    socket.send(tungstenite::Message::text(frame.to_string())).await.unwrap();
    let answer = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
    let answer: Value = serde_json::from_str(answer.to_text().unwrap()).unwrap();
    assert_eq!((&answer["id"], &answer["complete"]), (&json!("1"), &json!(true)), "{answer}");

    let stranger = Issued::new();
    assert!(connect(&world, stranger.client(None)).await.is_err(), "its certificate is of another issuer");
    let mut clear = TcpStream::connect(world.gateway.local_addr).await.unwrap();
    clear.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    let read = tokio::time::timeout(PATIENCE, clear.read_to_end(&mut said)).await.unwrap();
    let said = String::from_utf8_lossy(&said);
    assert!(read.is_ok() && said.starts_with("HTTP/1.1 400 ") && said.contains("serves TLS"), "{said:?}");
}

#[tokio::test]
async fn where_callers_have_to_show_a_certificate_none_gets_in_without() {
    let (issued, others) = (Issued::new(), Issued::new());
    let world = World::unread(issued.options(Some(&issued)), false).await;
    is_ready(&world, &issued.client(Some(&issued))).await;
    let list = json!({"operation": "list", "type": "tool"});
    for shown in [None, Some(&others)] {
        // The server's refusal may come after the client's side of the handshake is done.
        let said = ask(&world, issued.client(shown), "/api/v1/config", &list).await;
        assert!(!said.is_ok_and(|said| said.contains("HTTP/1.1")), "{}", shown.is_some());
    }
}

#[tokio::test]
async fn handshakes_that_are_never_finished_take_no_room_and_end() {
    const SILENT: usize = 50;
    let issued = Issued::new();
    let mut options = issued.options(None);
    options.calls_max = 1;
    options.handshake_timeout = Duration::from_secs(3);
    let world = World::unread(options, false).await;
    let mut silent = Vec::new();
    for number in 0..SILENT {
        let mut tcp = TcpStream::connect(world.gateway.local_addr).await.unwrap();
        if number % 2 == 0 {
            // The beginning of a record, and nothing more.
            tcp.write_all(&[0x16, 0x03, 0x01, 0x02]).await.unwrap();
        }
        silent.push(tcp);
    }
    is_ready(&world, &issued.client(None)).await;
    for mut tcp in silent {
        let mut rest = Vec::new();
        // Closed or broken off; either way it ends.
        let ended = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "a connection without a handshake stays open");
    }
}
