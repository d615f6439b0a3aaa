//! Whatever bytes come over a connection of a real gateway: it answers in words or closes, and serves the next one.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "shared with other tests, which use more")]
#[path = "doors/world.rs"]
mod world;

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use world::{PATIENCE, World};

/// How long a peer waits for answers; what comes later is not looked at.
const PAUSE: Duration = Duration::from_millis(20);

/// Everything that comes back for these bytes, up to where the gateway closes.
async fn answered(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // Who is refused early may find the line closed, and a reset ends it as well.
    let _ = stream.write_all(bytes).await;
    let mut all = Vec::new();
    // A peer that closes gets no answer any more, so it waits a little first.
    let _ = tokio::time::timeout(PAUSE, stream.read_to_end(&mut all)).await;
    let _ = stream.shutdown().await;
    let rest = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await;
    assert!(rest.is_ok(), "the gateway keeps what its peer has closed");
    all
}

/// The status of the first answer.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\r').next().filter(|line| !line.is_empty())?;
    let line = std::str::from_utf8(line).expect("an answer begins with a line of text");
    let mut words = line.split(' ');
    assert!(words.next().is_some_and(|version| version.starts_with("HTTP/1.")), "{line}");
    Some(words.next().and_then(|status| status.parse().ok()).expect("a status"))
}

#[test]
fn any_bytes_on_a_connection_are_answered_or_end_it() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let world = runtime.block_on(async {
        let mut options = world::options();
        // Most of what is asked here is served by nobody.
        options.settle_timeout = Duration::ZERO;
        options.iam_timeout = PATIENCE;
        let world = World::with(options).await;
        world.put_flow("default", "f1", "f1", &["text-load", "agent"], None).await;
        world
    });
    // A panic in the gateway is logged as its task's failure and goes no further; here it counts.
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        before(panic);
    }));
    let address = world.gateway.local_addr;
    let answers = Cell::new(0);
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/connections");
    sluice_fuzz::run("connections", &corpus, 300, &[], &|input| {
        let answer = runtime.block_on(answered(address, input));
        assert_eq!(PANICS.load(Ordering::SeqCst), 0, "a task of the gateway panicked");
        let status = status(&answer);
        answers.set(answers.get() + usize::from(status == Some(200)));
        // 500 is for what nobody foresaw.
        assert!(status != Some(500), "{}", String::from_utf8_lossy(&answer));
    });
    assert!(answers.get() > 0, "nothing that was asked was answered");
    runtime.block_on(async {
        let call = world.http.post(world.url("/api/v1/iam")).bearer_auth("tg_default");
        let answer = call.body(r#"{"operation":"whoami"}"#).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    });
}
