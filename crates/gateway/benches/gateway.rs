//! What the gateway costs: calls through it to a service that does nothing, beside a bare axum server that echoes, in the
//! same run, with the same client. `cargo bench -p sluice-gateway`.
//!
//! With `SLUICE_BESIDE=PROGRAM`, this benchmark as built of another version, both versions are measured in turns instead.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement that fails may panic, and prints"
)]

#[path = "support/beside.rs"]
mod beside;
mod support;

use std::future::Future;
use std::net::SocketAddr;

use axum::extract::WebSocketUpgrade;
use axum::response::Response;
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use sluice_bus::Embedded;
use support::{Bed, Measured, SPAN, http, socket};
use tokio::net::TcpListener;

fn main() {
    // Tests only want to see it build.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if std::env::args().any(|arg| arg == beside::SERVE) {
        return runtime.block_on(beside::serve());
    }
    match std::env::var_os("SLUICE_BESIDE") {
        Some(other) => runtime.block_on(beside::beside(other.as_ref())),
        None => runtime.block_on(run()),
    }
}

async fn run() {
    let echo = echo().await;
    let broker = Embedded::in_memory();
    let bed = Bed::start([broker.clone(), broker.clone(), broker]).await;
    println!(
        "| door | callers | echo req/s | gateway req/s | ratio | echo p50 µs | gateway p50 µs | added p50 µs |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for callers in [1, 64] {
        let bare = http(echo, "/echo", &bed.token, callers, SPAN).await;
        row("HTTP", callers, &bare, &bed.http(callers).await);
    }
    for callers in [1, 64] {
        let bare = socket(&format!("ws://{echo}/socket"), callers, SPAN).await;
        row("one WebSocket", callers, &bare, &bed.socket(callers).await);
    }
}

fn row(door: &str, callers: usize, bare: &Measured, ours: &Measured) {
    let (a, b) = (bare.per_second(), ours.per_second());
    let (p, q) = (bare.percentile_us(0.5), ours.percentile_us(0.5));
    println!(
        "| {door} | {callers} | {a:.0} | {b:.0} | {:.0} % | {p:.0} | {q:.0} | {:.0} |",
        100.0 * b / a,
        q - p
    );
}

/// A bare server: HTTP and WebSocket echo.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let listener = listener.tap_io(|tcp| tcp.set_nodelay(true).unwrap());
    async fn echo_socket(upgrade: WebSocketUpgrade) -> Response {
        upgrade.on_upgrade(async |mut socket| {
            while let Some(Ok(message)) = socket.recv().await {
                if socket.send(message).await.is_err() {
                    return;
                }
            }
        })
    }
    let app = axum::Router::new()
        .route("/echo", post(async |body: bytes::Bytes| body))
        .route("/socket", get(echo_socket));
    spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

#[expect(clippy::disallowed_methods, reason = "the measured server runs until the process ends")]
fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    drop(tokio::spawn(future));
}
