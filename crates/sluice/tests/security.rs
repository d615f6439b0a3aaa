//! Who learns what from a running system, and who does not: pages of other sites, whoever listens where the server is
//! thought to be, the network, and readers of logs and process lists.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "common/provider.rs"]
mod provider;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::{Program, Up, ends, sluice, text, until};
use provider::Provider;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;

/// Sends a request as it is and gives everything that comes back.
fn raw(up: &Up, head: &str, body: &str) -> String {
    let address = up.url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("{head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    stream.write_all(request.replace("{own}", address).as_bytes()).unwrap();
    common::read_all(stream)
}

#[test]
fn a_document_whose_id_can_be_none_is_refused_when_its_stream_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(&folder.path().join("data"));
    let asked = |id: &str| {
        let path = format!("/api/v1/document-stream?document-id={id}");
        let key = up.key();
        raw(&up, &format!("GET {path} HTTP/1.1\r\nHost: {{own}}\r\nAuthorization: Bearer {key}"), "")
    };
    for (id, status) in [("%00", 400), ("nope", 404)] {
        assert!(asked(id).starts_with(&format!("HTTP/1.1 {status} ")), "{id}: {}", asked(id));
    }
}

#[test]
fn a_page_of_another_site_neither_reads_nor_writes_where_no_key_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start_with(&folder.path().join("data"), &["--no-auth"]);
    let put = json!({"operation": "put", "values": [{"type": "probe", "key": "evil", "value": "1"}]});
    let evil = "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\nContent-Type: text/plain";
    let said =
        raw(&up, &format!("POST /api/v1/config HTTP/1.1\r\nHost: {{own}}\r\n{evil}"), &put.to_string());
    assert!(
        said.starts_with("HTTP/1.1 403") && said.contains("--allow-origin https://evil.example"),
        "{said}"
    );
    let rebound = raw(&up, "POST /api/v1/config HTTP/1.1\r\nHost: evil.example", &put.to_string());
    assert!(
        rebound.starts_with("HTTP/1.1 403") && rebound.contains("--allow-host evil.example"),
        "{rebound}"
    );
    assert_eq!(up.json(&["config", "ls", "probe"]), json!([]));
    let disable = json!({"operation": "disable-workspace", "workspace_record": {"id": "default"}});
    let said = raw(&up, "POST /api/v1/iam HTTP/1.1\r\nHost: {own}", &disable.to_string());
    assert!(said.contains("operation-not-permitted"), "{said}");
    up.json(&["config", "put", "probe", "mine", "1"]);
}

/// What a listener does that is not the server.
#[derive(Clone, Copy)]
enum Rogue {
    /// It knows nothing of keys.
    Refuses,
    /// It says that no key is needed.
    SaysOpen,
    /// It passes every byte on to the server.
    Relays(SocketAddr),
}

/// Listens where the server is thought to be, and keeps what it hears.
struct Listener {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Listener {
    fn start(rogue: Rogue) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let kept = heard.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let kept = kept.clone();
                std::thread::spawn(move || listen(stream, rogue, &kept));
            }
        });
        Self { address, heard }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn heard(&self) -> String {
        String::from_utf8_lossy(&self.heard.lock().unwrap()).into_owned()
    }
}

fn listen(mut stream: TcpStream, rogue: Rogue, heard: &Mutex<Vec<u8>>) {
    let mut server = match rogue {
        Rogue::Relays(server) => TcpStream::connect(server).ok(),
        Rogue::Refuses | Rogue::SaysOpen => None,
    };
    if let Some(server) = &server {
        let (mut from, mut to) = (server.try_clone().unwrap(), stream.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
    }
    let mut part = [0; 4_096];
    while let Ok(bytes @ 1..) = stream.read(&mut part) {
        heard.lock().unwrap().extend_from_slice(&part[..bytes]);
        let (status, body) = match rogue {
            Rogue::Relays(_) => {
                let _ = server.as_mut().unwrap().write_all(&part[..bytes]);
                continue;
            }
            Rogue::Refuses => ("401 Unauthorized", r#"{"error":"auth failure"}"#),
            Rogue::SaysOpen => ("200 OK", r#"{"open":true,"proof":""}"#),
        };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let _ = stream.write_all(answer.as_bytes());
    }
}

#[test]
fn the_key_of_a_data_folder_goes_only_to_the_server_that_made_it() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(&folder.path().join("data"));
    let key = up.key();
    let ls = |url: &str, more: &[&str]| -> Output {
        let mut command = sluice();
        command.args(["config", "ls", "probe", "--url", url, "--data"]).arg(&up.data).args(more);
        command.output().unwrap()
    };
    ends(&ls(&up.url, &[]), 0, "");
    ends(&ls(&up.url.replace("127.0.0.1", "localhost"), &[]), 0, "");

    let server = up.url.trim_start_matches("http://").parse().unwrap();
    for rogue in [Rogue::Refuses, Rogue::Relays(server)] {
        let listener = Listener::start(rogue);
        ends(&ls(&listener.url(), &[]), 4, "--token-file");
        // The name of another address of this machine, which nothing can be said of.
        let elsewhere = ls(&listener.url().replace("127.0.0.1", "0.0.0.0"), &[]);
        ends(&elsewhere, 4, if matches!(rogue, Rogue::Refuses) { "--token-file" } else { "--allow-host" });
        assert!(listener.heard().contains("/api/v1/"), "it was asked: {}", listener.heard());
        assert!(!listener.heard().contains(&key), "{}", listener.heard());
    }
    let listener = Listener::start(Rogue::SaysOpen);
    ls(&listener.url(), &[]);
    assert!(listener.heard().contains("/api/v1/config") && !listener.heard().contains(&key));

    // A server of another folder is another server.
    let other = Up::start(&folder.path().join("other"));
    ends(&ls(&other.url, &[]), 4, "does not know the key");

    // Who names a key decides where it goes.
    let listener = Listener::start(Rogue::Relays(server));
    let file = up.data.join("admin.key").display().to_string();
    ends(&ls(&listener.url(), &["--token-file", &file]), 0, "");
    assert!(listener.heard().contains(&key));
    let named = sluice()
        .args(["config", "ls", "probe", "--url", &other.url])
        .env("TRUSTGRAPH_TOKEN", other.key())
        .output()
        .unwrap();
    ends(&named, 0, "");
    ends(&ls(&up.url, &["--token-file", "/not/there"]), 1, "/not/there");
}

#[test]
fn a_folder_with_a_key_can_be_served_without_one() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    drop(Up::start(&data));
    let up = Up::start_with(&data, &["--no-auth"]);
    assert!(up.data.join("admin.key").exists());
    assert_eq!(up.json(&["config", "ls", "probe"]), json!([]));
    common::until("a warning", || up.log().contains("--no-auth: whoever reaches this system"), || up.log());
}

#[test]
fn a_key_that_is_named_and_not_accepted_is_told_as_that() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(&folder.path().join("data"));
    let wrong = "tg_0123456789abcdef0123456789abcdef";
    let output =
        sluice().args(["flow", "ls", "--url", &up.url]).env("TRUSTGRAPH_TOKEN", wrong).output().unwrap();
    ends(&output, 4, "TRUSTGRAPH_TOKEN or --token-file FILE is not accepted");
    assert!(!common::text(&output).contains(wrong));
}

/// An issuer with a certificate for a server on loopback and one for a caller.
fn issue(folder: &Path) -> impl Fn(&str) -> String + use<> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("ca.pem"), issuer.pem()).unwrap();
    for (name, subjects) in [("server", ["127.0.0.1", "localhost"]), ("caller", ["caller", "caller.example"])]
    {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(subjects.map(str::to_owned)).unwrap();
        std::fs::write(folder.join(format!("{name}.pem")), params.signed_by(&key, &issuer).unwrap().pem())
            .unwrap();
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    let folder = folder.to_owned();
    move |name| folder.join(name).display().to_string()
}

/// A server that answers to nothing but TLS, and to that with a refusal.
fn only_tls() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut first = [0; 1024];
            let count = stream.read(&mut first).unwrap_or_default();
            if first[..count].starts_with(&[0x16]) {
                // An alert: the handshake failed.
                let _ = stream.write_all(&[0x15, 3, 3, 0, 2, 2, 40]);
            }
        }
    });
    url
}

#[test]
fn commands_work_over_tls_with_a_trusted_certificate_and_say_what_to_do_without() {
    let folder = tempfile::tempdir().unwrap();
    let file = issue(&folder.path().join("own"));
    let (certificate, key) = (file("server.pem"), file("server.key"));
    let tls = ["--tls-cert", &certificate, "--tls-key", &key];
    let up = Up::start_with(&folder.path().join("data"), &tls);
    let secure = up.url.replace("http://", "https://");
    let run = |args: &[&str], url: &str| -> Output {
        sluice().args(args).args(["--url", url, "--data"]).arg(&up.data).output().unwrap()
    };
    let ca = file("ca.pem");
    ends(&run(&["flow", "start", "f1", "document-rag", "--ca", &ca], &secure), 0, "f1");
    let note = folder.path().join("note.md");
    std::fs::write(&note, "# Pump\n\nThe spare key hangs behind the blue door.\n").unwrap();
    ends(&run(&["doc", "add", note.to_str().unwrap(), "--flow", "f1", "--ca", &ca], &secure), 0, "");
    // The answer comes over a socket.
    let ask = ["ask", "where is the spare key?", "--flow", "f1", "--ca", &ca];
    ends(&run(&ask, &secure), 0, "blue door");
    ends(&run(&ask, &secure.replace("127.0.0.1", "localhost")), 0, "blue door");

    let strange = issue(&folder.path().join("strange"));
    ends(&run(&["flow", "ls"], &secure), 1, "--ca FILE");
    ends(&run(&["flow", "ls", "--ca", &strange("ca.pem")], &secure), 1, "--ca FILE");
    ends(&run(&["flow", "ls", "--ca", "/not/there"], &secure), 1, "/not/there");
    // Nothing is served in clear, and whoever asks so is told.
    let clear = &up.url;
    let next = format!("--url {secure}");
    for args in [&["flow", "ls"][..], &["ask", "where?", "--flow", "f1"], &["doctor"]] {
        let told = run(args, clear);
        assert!(
            text(&told).contains("speaks TLS") && text(&told).contains(&next),
            "{args:?}: {}",
            text(&told)
        );
        assert_ne!(told.status.code(), Some(0));
    }
    let key_file = up.data.join("admin.key").display().to_string();
    let with_key = ["--token-file", key_file.as_str()];
    for args in [&["flow", "ls"][..], &["ask", "where?", "--flow", "f1"]] {
        ends(&run(&[args, &with_key].concat(), clear), 1, "speaks TLS");
    }
    ends(&run(&["flow", "ls"], &only_tls()), 1, "speaks TLS");
    // As `openssl req -x509` makes them: one that signs itself, and may sign others.
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let [own, own_key] = ["own.pem", "own.key"].map(|name| folder.path().join(name).display().to_string());
    std::fs::write(&own, params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(&own_key, key.serialize_pem()).unwrap();
    let tls = ["--tls-cert", own.as_str(), "--tls-key", own_key.as_str()];
    let issuer = Up::start_with(&folder.path().join("issuer"), &tls);
    let told = run(&["flow", "ls", "--ca", &own], &issuer.url.replace("http://", "https://"));
    ends(&told, 1, "basicConstraints=critical,CA:FALSE");
    let plain = Up::start(&folder.path().join("plain"));
    let told = run(&["flow", "ls"], &plain.url.replace("http://", "https://"));
    ends(&told, 1, "speaks no TLS");
    ends(&told, 1, &format!("--url {}", plain.url));
}

#[test]
fn callers_show_a_certificate_where_one_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = issue(&folder.path().join("own"));
    let (certificate, key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
    let tls = ["--tls-cert", &certificate, "--tls-key", &key, "--tls-client-ca", &ca];
    let up = Up::start_with(&folder.path().join("data"), &tls);
    let secure = up.url.replace("http://", "https://");
    let ls = |more: &[&str]| -> Output {
        let mut command = sluice();
        command.args(["flow", "ls", "--url", &secure, "--ca", &ca, "--data"]).arg(&up.data).args(more);
        command.output().unwrap()
    };
    let (shown, own) = (file("caller.pem"), file("caller.key"));
    ends(&ls(&["--client-cert", &shown, "--client-key", &own]), 0, "");
    ends(&ls(&["--client-cert", &shown]), 64, "--client-key");
    let strange = issue(&folder.path().join("strange"));
    assert_ne!(ls(&[]).status.code(), Some(0));
    let stranger = ["--client-cert", &strange("caller.pem"), "--client-key", &strange("caller.key")];
    assert_ne!(ls(&stranger).status.code(), Some(0));
}

#[test]
fn what_crosses_the_network_in_clear_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let start = |name: &str, more: &[&str]| {
        let mut command = sluice();
        command.args(["up", "--listen", "0.0.0.0:0", "--data"]).arg(folder.path().join(name)).args(more);
        Program::start(command, "serving").0
    };
    let clear = start("clear", &[]);
    until("the warning", || clear.log().contains("docs/proxy.md"), || clear.log());
    let file = issue(&folder.path().join("own"));
    let mut secure = start("secure", &["--tls-cert", &file("server.pem"), "--tls-key", &file("server.key")]);
    assert_eq!(secure.terminate(), 0);
    assert!(!secure.log().contains("docs/proxy.md"), "{}", secure.log());
    let up = |more: &[&str]| {
        let data = folder.path().join("never");
        sluice().args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(data).args(more).output().unwrap()
    };
    ends(&up(&["--tls-cert", &file("server.pem")]), 64, "--tls-key");
    ends(&up(&["--tls-cert", &file("server.key"), "--tls-key", &file("server.key")]), 1, "server.key");
    assert!(!folder.path().join("never").exists());
}

/// Command lines and environments of the processes that another one has started.
fn of_children(parent: u32) -> Vec<String> {
    let read = |path: PathBuf| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let own = read(format!("/proc/{parent}/cmdline").into());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let stat = read(entry.path().join("stat"));
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        if after_name.split_whitespace().nth(1) == Some(&parent.to_string()) {
            let command_line = read(entry.path().join("cmdline"));
            // Split off from its parent and no program of its own yet, it shows what its parent was started with.
            if command_line != own {
                found.push(command_line + &read(entry.path().join("environ")));
            }
        }
    }
    found
}

/// Secrets and contents of this test, each a word that occurs nowhere else.
struct Canaries(Vec<(&'static str, String)>);

impl Canaries {
    #[track_caller]
    fn are_not_in(&self, what: &str, text: &str) {
        for (name, word) in &self.0 {
            let Some(at) = text.find(word.as_str()) else { continue };
            let from = text[..at].rfind('\n').map_or(0, |line| line + 1);
            let line: String = text[from..].chars().take(400).collect();
            panic!("{name} is in {what}: {line}");
        }
    }
}

#[test]
fn secrets_and_contents_are_in_no_log_error_metric_child_or_process_list() {
    const LLM_KEY: &str = "sk-canary-llm-5e1f";
    const VECTORS_KEY: &str = "sk-canary-vectors-90ab";
    const WRONG_TOKEN: &str = "tg_canary-wrong-token-77d0";
    const PASSWORD: &str = "canary-password-31c8";
    const DOCUMENT: &str = "canarydocumentb64e";
    /// Documents that are added at most until one of their reading processes is seen.
    const READINGS_MAX: usize = 20;
    const QUESTION: &str = "canaryquestion0d2a";
    const VALUE: &str = "canary-value-c9f3";
    let folder = tempfile::tempdir().unwrap();
    let (llm, vectors) = (Provider::start(), Provider::start());
    // Providers repeat the key that they refuse.
    vectors.refuse(Some("Heron"));
    let key_file = folder.path().join("llm.key");
    std::fs::write(&key_file, LLM_KEY).unwrap();
    let key_file = key_file.to_str().unwrap();
    let options =
        ["--llm-url", &llm.url, "--llm-dialect", "ollama", "--llm-model", "m", "--llm-key-file", key_file];
    let vectors_options = ["--embeddings-url", &vectors.url, "--embeddings-model", "m"];
    let options = [&options[..], &vectors_options].concat();
    let environment = [("SLUICE_LOG", "trace"), ("SLUICE_EMBEDDINGS_KEY", VECTORS_KEY)];
    let up = Up::start_in(&folder.path().join("data"), &options, &environment);
    let canaries = Canaries(vec![
        ("the admin key", up.key()),
        ("the key of the model", LLM_KEY.to_owned()),
        ("the key of the embeddings", VECTORS_KEY.to_owned()),
        ("a wrong token", WRONG_TOKEN.to_owned()),
        ("a password", PASSWORD.to_owned()),
        ("a document", DOCUMENT.to_owned()),
        ("a question", QUESTION.to_owned()),
        ("a value", VALUE.to_owned()),
    ]);

    // Every way in, right and wrong.
    let mut errors = String::new();
    up.json(&["config", "put", "tool", "t1", &format!("{{\"secret\": \"{VALUE}\"}}")]);
    up.json(&["flow", "start", "f1", "document-rag"]);
    let bearer = |token: &str| format!("Host: {{own}}\r\nAuthorization: Bearer {token}");
    let list = json!({"operation": "list", "type": "tool"}).to_string();
    for (head, body) in [
        (format!("POST /api/v1/config HTTP/1.1\r\n{}", bearer(WRONG_TOKEN)), list.as_str()),
        (format!("POST /api/v1/config HTTP/1.1\r\n{}", bearer(&up.key())), &format!("{{\"{VALUE}")),
        (
            format!("POST /api/v1/config HTTP/1.1\r\n{}", bearer(&up.key())),
            &json!({"operation": QUESTION}).to_string(),
        ),
        (
            "POST /api/v1/auth/login HTTP/1.1\r\nHost: {own}".to_owned(),
            &json!({"username": "a", "password": PASSWORD}).to_string(),
        ),
        (format!("GET /api/v1/document-stream?token={WRONG_TOKEN} HTTP/1.1\r\nHost: {{own}}"), ""),
        (
            format!("POST /api/v1/flow/f1/service/document-rag HTTP/1.1\r\n{}", bearer(&up.key())),
            &json!({"query": QUESTION, "doc-limit": "x"}).to_string(),
        ),
    ] {
        errors.push_str(&raw(&up, &head, body));
    }
    let socket = format!(
        "GET /api/v1/socket?token={} HTTP/1.1\r\nHost: {{own}}\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x",
        up.key()
    );
    errors.push_str(&raw(&up, &socket, ""));
    canaries.are_not_in("answers to failed calls", &errors);

    // Documents through a reading process, one of them refused by its provider; then questions.
    let html: String =
        (0..2_000).map(|n| format!("<h2>{n}</h2><p>The {DOCUMENT} of number {n}.</p>")).collect();
    std::fs::write(folder.path().join("b.md"), format!("# Heron\n\nThe Heron {DOCUMENT} stands there.\n"))
        .unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let done = Arc::new(AtomicBool::new(false));
    let looking = {
        let (seen, done, pid) = (seen.clone(), done.clone(), up.pid());
        std::thread::spawn(move || {
            while !done.load(Ordering::SeqCst) {
                seen.lock().unwrap().extend(of_children(pid));
            }
        })
    };
    // A reading process lives for a moment, which a busy machine may sleep through: then another is started.
    let is_seen = || seen.lock().unwrap().iter().any(|child| child.contains("decode"));
    for n in 0..READINGS_MAX {
        let path = folder.path().join(format!("a{n}.html"));
        std::fs::write(&path, format!("<p>{n}</p>{html}")).unwrap();
        up.run(&["doc", "add", path.to_str().unwrap(), "--flow", "f1"]);
        if is_seen() {
            break;
        }
    }
    let refused = folder.path().join("b.md");
    let added = up.run(&["doc", "add", refused.to_str().unwrap(), "--flow", "f1"]);
    canaries.are_not_in("what a command says of a failure", &text(&added));
    done.store(true, Ordering::SeqCst);
    looking.join().unwrap();
    up.run(&["ask", QUESTION, "--flow", "f1"]);
    llm.break_down();
    vectors.break_down();
    canaries.are_not_in(
        "a failed answer",
        &text(&up.run(&["ask", &format!("Heron {QUESTION}"), "--flow", "f1"])),
    );
    let doctor = up.run(&["doctor"]);
    canaries.are_not_in("the doctor's findings", &text(&doctor));

    assert!(is_seen(), "no reading process was seen");
    let children = seen.lock().unwrap();
    canaries.are_not_in("command lines and environments of children", &children.join("\n"));
    let own = std::fs::read(format!("/proc/{}/cmdline", up.pid())).unwrap();
    canaries.are_not_in("the command line", &String::from_utf8_lossy(&own));
    // A key in a wrong place is none the less a key.
    let wrong = format!("{WRONG_TOKEN}-{}", "x".repeat(20));
    for head in [
        format!("GET /api/v1/{wrong} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Request-Id: mine-{wrong}"),
        format!("GET /api/metrics HTTP/1.1\r\nHost: {wrong}.example"),
    ] {
        raw(&up, &head, "");
    }
    let metrics = raw(&up, &format!("GET /api/metrics HTTP/1.1\r\n{}", bearer(&up.key())), "");
    assert!(metrics.contains("tg_gateway_request"), "{metrics}");
    canaries.are_not_in("metrics", &metrics);
    assert!(up.log().contains("TRACE") || up.log().contains("DEBUG"), "the log is not at its loudest");
    canaries.are_not_in("the log", &up.log());
}

#[test]
fn secrets_of_brokers_and_object_stores_are_in_no_log_of_their_failure() {
    let folder = tempfile::tempdir().unwrap();
    let secrets = [
        ("SLUICE_LOG", "trace"),
        ("SLUICE_BROKER_PASSWORD", "canary-broker-4b1d"),
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "canary-secret-77aa"),
        ("AWS_SESSION_TOKEN", "canary-session-88bb"),
    ];
    let run = |args: &[&str]| -> Output { sluice().args(args).envs(secrets).output().unwrap() };
    let nobody = "127.0.0.1:1";
    let doctor =
        ["doctor", "--url", "http://127.0.0.1:1", "--timeout", "2", "--broker", "amqp://user@127.0.0.1:1"];
    let data = folder.path().join("data").display().to_string();
    let endpoint = format!("http://{nobody}");
    let objects = ["--objects", "s3://bucket/x", "--objects-endpoint", &endpoint];
    let up = [&["up", "--listen", "127.0.0.1:0", "--data", &data], &objects[..]].concat();
    for (args, code) in [(&doctor[..], 2), (&up, 1)] {
        let mut command = sluice();
        command.args(args).envs(secrets.iter().copied());
        // A broker is not asked for here, and its password would be refused without one.
        if args[0] == "up" {
            command.env_remove("SLUICE_BROKER_PASSWORD");
        }
        let output = command.output().unwrap();
        ends(&output, code, nobody);
        assert!(!text(&output).contains("canary-"), "{}", text(&output));
    }
    assert!(
        !text(&run(&["doctor", "--broker", "amqp://user@127.0.0.1:1", "--broker-ca", "/not/there"]))
            .contains("canary-")
    );
}

#[test]
fn a_secret_on_the_command_line_is_warned_of_without_being_repeated() {
    let run = |args: &[&str]| -> Output { sluice().args(args).output().unwrap() };
    let doctor = ["doctor", "--url", "http://127.0.0.1:1", "--timeout", "2", "--broker"];
    let typed =
        run(&[&doctor[..], &["amqp://user@127.0.0.1:1", "--broker-password", "canary-4b1d"]].concat());
    ends(&typed, 2, "--broker-password-file");
    assert!(text(&typed).contains("every user of this machine") && !text(&typed).contains("canary-4b1d"));
    let in_address = run(&[&doctor[..], &["amqp://user:canary-4b1d@127.0.0.1:1"]].concat());
    ends(&in_address, 2, "--broker-password-file");
    assert!(!text(&in_address).contains("canary-4b1d"), "{}", text(&in_address));
    let variable: Output = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(doctor)
        .arg("amqp://user@127.0.0.1:1")
        .env("SLUICE_BROKER_PASSWORD", "canary-4b1d")
        .output()
        .unwrap();
    assert!(!text(&variable).contains("every user") && !text(&variable).contains("canary-4b1d"));
}

/// The part of an address that is nowhere to be seen.
const PASSWORD: &str = "S3cretPw";

/// What people type in place of `SCHEME://user:password@host/path`.
fn mistyped(scheme: &str) -> Vec<String> {
    vec![
        format!("user:{PASSWORD}@host/path"),
        format!("{scheme}:/user:{PASSWORD}@host/path"),
        format!("{scheme}//user:{PASSWORD}@host/path"),
        format!("{scheme}:///user:{PASSWORD}@host:99999/path"),
        format!("{scheme}://user:{PASSWORD}@host:99999/path"),
        format!("{scheme}://user:{PASSWORD}@[host/path"),
        format!("{scheme}://user:x{PASSWORD}/x@host/path"),
        format!("gopher://user:{PASSWORD}@host/path"),
    ]
}

/// Runs a command with a value as an option and as a variable.
fn both_ways(args: &[&str], option: &str, variable: &str, value: &str) -> [Output; 2] {
    let nowhere = "/dev/null/nowhere";
    let command = || {
        let mut command = sluice();
        command.args(args).env("SLUICE_LOG", "trace").env("HOME", nowhere).env("XDG_DATA_HOME", nowhere);
        command
    };
    [command().args([option, value]).output().unwrap(), command().env(variable, value).output().unwrap()]
}

#[test]
fn an_address_that_is_mistyped_is_told_by_its_option_and_never_repeated() {
    let up: &[&str] = &["up"];
    let broker = ["up", "--broker", "amqp://127.0.0.1:1"];
    let endpoint = ["up", "--objects", "s3://bucket/folder"];
    let restore = ["restore", "/dev/null/backup", "--data", "/dev/null/data"];
    for (args, option, variable, scheme) in [
        (up, "--llm-url", "SLUICE_LLM_URL", "https"),
        (&["demo"], "--llm-url", "SLUICE_LLM_URL", "https"),
        (up, "--embeddings-url", "SLUICE_EMBEDDINGS_URL", "https"),
        (up, "--embeddings-local", "SLUICE_EMBEDDINGS_LOCAL", "https"),
        (up, "--objects", "SLUICE_OBJECTS", "s3"),
        (&restore, "--objects", "SLUICE_OBJECTS", "s3"),
        (&endpoint, "--objects-endpoint", "AWS_ENDPOINT_URL", "http"),
        (&broker, "--broker-management", "SLUICE_BROKER_MANAGEMENT", "http"),
        (&["doc", "ls"], "--url", "TRUSTGRAPH_URL", "http"),
        (&["ask", "what?"], "--url", "TRUSTGRAPH_URL", "http"),
        (&["doctor"], "--url", "TRUSTGRAPH_URL", "http"),
        (up, "--listen", "SLUICE_LISTEN", "http"),
        (up, "--allow-origin", "SLUICE_ALLOW_ORIGIN", "https"),
        (up, "--allow-host", "SLUICE_ALLOW_HOST", "https"),
        (up, "--trusted-proxy", "SLUICE_TRUSTED_PROXY", "https"),
    ] {
        for value in mistyped(scheme) {
            for output in both_ways(args, option, variable, &value) {
                ends(&output, 64, option);
                assert!(!text(&output).contains(PASSWORD), "{args:?} {value}: {}", text(&output));
            }
        }
    }
    let port = format!("amqp://user:12/{PASSWORD}@host/vhost");
    let query = format!("amqp://user:12?{PASSWORD}@host/vhost");
    let all =
        mistyped("amqp").into_iter().chain(mistyped("nats")).chain(mistyped("kafka")).chain([port, query]);
    for value in all {
        let is_read =
            value.starts_with("amqp://") || value.starts_with("nats://") || value.starts_with("kafka://");
        for (args, code) in
            [(&["conformance"][..], if is_read { 1 } else { 64 }), (&["doctor", "--timeout", "2"], 2)]
        {
            for output in both_ways(args, "--broker", "SLUICE_BROKER", &value) {
                let is_built_in = !value.starts_with("nats") && !value.starts_with("kafka");
                if is_built_in {
                    ends(&output, code, "--broker");
                }
                assert!(!text(&output).contains(PASSWORD), "{args:?} {value}: {}", text(&output));
            }
        }
    }
}

#[test]
fn of_an_address_with_a_password_only_the_place_is_shown() {
    let place = "http://127.0.0.1:1";
    let given = format!("http://user:{PASSWORD}@127.0.0.1:1/?key={PASSWORD}");
    let torn = format!("http://127.0.0.1:1/{PASSWORD}@host/");
    let patience = ["--timeout", "2"];
    for (args, option, variable, code) in [
        (&["doc", "ls"][..], "--url", "TRUSTGRAPH_URL", 1),
        (&["doctor"], "--url", "TRUSTGRAPH_URL", 2),
        (&["ask", "what?"], "--url", "TRUSTGRAPH_URL", 1),
    ] {
        for output in both_ways(&[args, &patience].concat(), option, variable, &given) {
            ends(&output, code, place);
            assert!(!text(&output).contains(PASSWORD), "{args:?}: {}", text(&output));
        }
        for output in both_ways(&[args, &patience].concat(), option, variable, &torn) {
            ends(&output, code, "the address given with --url");
            assert!(!text(&output).contains(PASSWORD), "{args:?}: {}", text(&output));
        }
    }
    let proxy = sluice()
        .args(["doc", "ls", "--url", "http://192.0.2.1:1", "--timeout", "2"])
        .envs([("SLUICE_LOG", "trace"), ("http_proxy", &given), ("TRUSTGRAPH_TOKEN", "tg_k")])
        .output()
        .unwrap();
    assert!(!text(&proxy).contains(PASSWORD), "{}", text(&proxy));
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let model = sluice()
        .args(["up", "--listen", "127.0.0.1:0", "--data"])
        .arg(&data)
        .envs([("SLUICE_LOG", "trace"), ("SLUICE_EMBEDDINGS_LOCAL", &given), ("SLUICE_LLM_URL", &given)])
        .output()
        .unwrap();
    ends(&model, 1, place);
    assert!(!text(&model).contains(PASSWORD), "{}", text(&model));
    let variables = [
        "TRUSTGRAPH_URL",
        "SLUICE_BROKER",
        "SLUICE_BROKER_MANAGEMENT",
        "SLUICE_LLM_URL",
        "SLUICE_EMBEDDINGS_URL",
        "SLUICE_EMBEDDINGS_LOCAL",
        "SLUICE_OBJECTS",
        "AWS_ENDPOINT_URL",
        "SLUICE_ALLOW_ORIGIN",
    ];
    for command in ["up", "run", "doctor", "conformance", "backup", "restore", "demo", "doc"] {
        let help =
            sluice().args([command, "--help"]).envs(variables.map(|name| (name, &given))).output().unwrap();
        ends(&help, 0, "Example");
        assert!(!text(&help).contains(PASSWORD), "{command}: {}", text(&help));
    }
}

#[test]
fn a_key_that_cannot_be_sent_is_told_by_where_it_came_from() {
    use std::os::unix::ffi::OsStrExt as _;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    for (token, is_sendable) in [
        (&b"tg_canary\r\n"[..], true),
        (b"tg_canary\nmore\n", false),
        (b"tg_canary\x07", false),
        (b"tg_canary\xff", false),
    ] {
        std::fs::write(&file, token).unwrap();
        let list = || {
            let mut command = sluice();
            command.args(["doc", "ls", "--url", "http://127.0.0.1:1"]);
            command
        };
        let variable = list().env("TRUSTGRAPH_TOKEN", std::ffi::OsStr::from_bytes(token)).output().unwrap();
        let from_file = list().arg("--token-file").arg(&file).output().unwrap();
        for (output, from) in [(variable, "TRUSTGRAPH_TOKEN"), (from_file, file.to_str().unwrap())] {
            match is_sendable {
                true => ends(&output, 1, "nobody answers"),
                false => ends(&output, 64, from),
            }
            assert!(!text(&output).contains("canary"), "{}", text(&output));
        }
    }
    let model = sluice()
        .args(["up", "--listen", "127.0.0.1:0", "--llm-url", "http://127.0.0.1:1", "--data"])
        .arg(folder.path().join("data"))
        .env("SLUICE_LLM_KEY", "sk-canary\nmore")
        .output()
        .unwrap();
    ends(&model, 1, "cannot be sent");
    assert!(!text(&model).contains("canary"), "{}", text(&model));
}
