//! Accepts connections and serves HTTP on each, in TLS where that is configured, with a deadline for everything that its peer
//! may leave undone.
//!
//! A connection costs next to nothing until it says something, and little until the head of its first request is whole: only
//! then the machinery of HTTP is set up for it. Where there are too many, some give way (`connections`).

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Options;
use crate::connections::{Bounds, Connection, Connections, Deadlines, Place, Serving, Stage};
use crate::files;
use crate::hall::Hall;
use crate::http;
use crate::identity::Origin;
use crate::refusal::{Refusal, UNREADABLE};
use crate::stream::Stream;
use crate::tls::{Tls, Wire};

/// Connections that are made and not accepted yet, as far as the system allows so many. One beyond that waits a second, whoever
/// it is of: its first packet is thrown away.
const UNACCEPTED_MAX: u32 = 4_096;
/// Pause after a failed accept, which is out of file descriptors or the like.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Failed accepts are logged at most this often.
const ACCEPT_LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Connections that are closed where no file is left for a new one.
const SHED: usize = 16;

/// Connections that gave way and have not ended yet, and how long their end is waited for before another is accepted. The
/// rest waits unaccepted, which costs next to nothing; but whoever waits there waits behind all others, so there are many.
const LEAVING_MAX: usize = 1_024;
const LEAVE_PAUSE: Duration = Duration::from_millis(1);
const LEAVE_LOOKS_MAX: usize = 10;

/// Connections beside all others that are answered health checks, and how long the head of one may take.
const RESERVE: usize = 32;
const RESERVE_HEADER_TIMEOUT: Duration = Duration::from_secs(2);
const HEALTH_PATHS: [&str; 3] = ["/", "/healthz", "/readyz"];

/// Connections with an unfinished first head, requests and sockets without an accepted credential.
const HEADS_MAX: usize = 512;
const STRANGERS_MAX: usize = 512;
const STRANGER_SOCKETS_MAX: usize = 256;

/// The largest head of a request; above it the answer is 431.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// The first buffer for a head, which most fit into.
const HEAD_BUFFER_BYTES: usize = 1 << 10;
/// Bytes of a connection that wait to be handled or written.
const BUFFER_BYTES_MAX: usize = 128 << 10;
/// How long a last word may take to leave.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// A listening socket.
pub(crate) struct Listener {
    tcp: TcpListener,
    tls: Option<Tls>,
}

impl Listener {
    pub(crate) fn bind(options: &Options) -> io::Result<Self> {
        let address = options.listen;
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // So that a gateway can be started again where connections of the last one are still being closed.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self { tcp: socket.listen(UNACCEPTED_MAX)?, tls: options.tls.clone() })
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// Both ends of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    /// Where it comes from.
    pub(crate) remote: SocketAddr,
    /// Where it arrived, as far as that is known.
    pub(crate) local: Option<SocketAddr>,
}

/// What all connections share.
struct Server {
    hall: Arc<Hall>,
    router: Router,
    http: http1::Builder,
    tls: Option<Tls>,
    handshake_timeout: Duration,
    deadlines: Deadlines,
    /// Nothing new is taken in.
    stop: CancellationToken,
    /// What is still open is dropped.
    cut_off: CancellationToken,
}

/// Serves until the gateway stops, then until every connection is closed.
pub(crate) async fn serve(listener: Listener, hall: &Arc<Hall>, cut_off: &CancellationToken) {
    let proxies = hall.options.trusted_proxies.clone();
    let connections = Connections::new(bounds(&hall.options, files::raise()), proxies, hall.metrics.clone());
    let mut http = http1::Builder::new();
    // Heads have a deadline of ours, which tells a slow head from an idle connection.
    http.header_read_timeout(None).max_buf_size(BUFFER_BYTES_MAX).max_header_size(HEAD_BYTES_MAX);
    let server = Arc::new(Server {
        hall: hall.clone(),
        router: http::router(hall.clone()),
        http,
        tls: listener.tls.clone(),
        handshake_timeout: hall.options.handshake_timeout,
        deadlines: Deadlines {
            head: hall.options.header_timeout,
            idle: hall.options.idle_timeout,
            write: hall.options.write_timeout,
        },
        stop: hall.stop.clone(),
        cut_off: cut_off.clone(),
    });
    let open = TaskTracker::new();
    let mut failures = Failures::default();
    while let Some(accepted) = hall.stop.run_until_cancelled(listener.tcp.accept()).await {
        match accepted {
            Ok((tcp, peer)) => {
                // Without a place it is closed at once.
                let Some(place) = connections.admit(peer) else { continue };
                let one = attend(tcp, place, server.clone());
                hall.process.tasks.spawn("gateway/connection", open.track_future(one));
                let mut looks = 0..LEAVE_LOOKS_MAX;
                while open.len() > connections.len() + LEAVING_MAX && looks.next().is_some() {
                    hall.stop.run_until_cancelled(tokio::time::sleep(LEAVE_PAUSE)).await;
                }
            }
            Err(error) => {
                failures.log(&error);
                // It may be for want of files that peers hold who have shown nothing.
                connections.shed(SHED);
                hall.stop.run_until_cancelled(tokio::time::sleep(ACCEPT_PAUSE)).await;
            }
        }
    }
    drop(listener);
    open.close();
    open.wait().await;
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a part of some thousands"
)]
fn bounds(options: &Options, files: usize) -> Bounds {
    let total = options.connections_max.min(files::for_connections(files)).max(1);
    let per_address = (total as f32 * options.address_share_max.clamp(0.0, 1.0)) as usize;
    Bounds {
        total,
        per_address: per_address.max(1),
        reserve: RESERVE,
        heads: HEADS_MAX,
        strangers: STRANGERS_MAX,
        stranger_sockets: STRANGER_SOCKETS_MAX,
    }
}

/// Failed accepts, of which there may be ten in a second for hours.
#[derive(Default)]
struct Failures {
    logged: Option<Instant>,
    unlogged: u64,
}

impl Failures {
    fn log(&mut self, error: &io::Error) {
        if self.logged.is_some_and(|logged| logged.elapsed() < ACCEPT_LOG_INTERVAL) {
            self.unlogged += 1;
            return;
        }
        self.logged = Some(Instant::now());
        let unlogged = std::mem::take(&mut self.unlogged);
        tracing::warn!(%error, unlogged, "a connection could not be accepted");
    }
}

/// Serves one connection to its end.
async fn attend(tcp: TcpStream, place: Place, server: Arc<Server>) {
    let connection = place.connection().clone();
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%error, "a connection was gone before it began");
    }
    let head_timeout = match connection.stage() {
        Stage::Reserve => RESERVE_HEADER_TIMEOUT.min(server.deadlines.head),
        _ => server.deadlines.head,
    };
    // Until something comes, not even a buffer is needed.
    let mut first = [0];
    let spoke = tokio::select! {
        spoke = tokio::time::timeout(head_timeout, tcp.peek(&mut first)) => spoke,
        () = connection.evicted() => return,
        () = server.stop.cancelled() => return,
    };
    if !matches!(spoke, Ok(Ok(1))) {
        return;
    }
    // In a box, so that those that say nothing are small.
    Box::pin(hear(tcp, place, server, first[0], head_timeout)).await;
}

/// Serves a connection that has begun to speak.
async fn hear(tcp: TcpStream, place: Place, server: Arc<Server>, first: u8, head_timeout: Duration) {
    let connection = place.connection().clone();
    let local = tcp.local_addr().ok();
    if server.tls.is_some() {
        connection.enter(Stage::Head);
        // A handshake begins with a byte of no letter.
        if first.is_ascii_uppercase() {
            turned_away(&server, &connection, UNREADABLE);
            return refuse_clear(tcp).await;
        }
    }
    let mut wire = Wire::new(tcp, server.tls.as_ref(), server.handshake_timeout);
    let mut head = BytesMut::new();
    let first = read_head(&mut wire, &mut head, &connection);
    let first = tokio::select! {
        first = tokio::time::timeout(head_timeout, first) => first,
        () = connection.evicted() => return,
        () = server.stop.cancelled() => return,
    };
    match first {
        Ok(Ok(Head::Whole)) => {}
        Ok(Ok(Head::TooLarge)) => {
            turned_away(&server, &connection, "the head of its request is too large");
            return farewell(&mut wire, b"HTTP/1.1 431 Request Header Fields Too Large\r\n").await;
        }
        Err(_) if !head.is_empty() => return farewell(&mut wire, b"HTTP/1.1 408 Request Timeout\r\n").await,
        Ok(Ok(Head::Ended) | Err(_)) | Err(_) => return,
    }
    connection.enter(Stage::Stranger);
    let peer = Peer { remote: connection.peer, local };
    Box::pin(serve_http(Stream::new(wire, head.freeze(), place), connection, peer, server)).await;
}

/// Logs that a peer is turned away before there is a request of it.
fn turned_away(server: &Server, connection: &Connection, reason: &'static str) {
    let origin = Origin { client: Some(connection.peer.ip()), ..Origin::default() };
    server.hall.gate.tries.refused(&origin, reason);
}

/// What somebody is told who speaks HTTP without TLS where TLS is served.
const NO_TLS: &str = "this port serves TLS; use an https:// or wss:// address\n";
/// Of what such a peer sent is read so much, so that it sees the answer.
const CLEAR_BYTES_MAX: usize = 64 << 10;

/// What came of a first head.
enum Head {
    /// It is there, or something that is none.
    Whole,
    TooLarge,
    /// The peer left.
    Ended,
}

/// Reads until the first head is whole.
async fn read_head<S: AsyncRead + Unpin>(
    io: &mut S,
    head: &mut BytesMut,
    connection: &Arc<Connection>,
) -> io::Result<Head> {
    head.reserve(HEAD_BUFFER_BYTES);
    let mut looked = 0;
    loop {
        if io.read_buf(head).await? == 0 {
            return Ok(Head::Ended);
        }
        // What does not begin as a request does is answered, not waited for.
        if !head[0].is_ascii_uppercase() || has_end(head, looked) {
            return Ok(Head::Whole);
        }
        if head.len() > HEAD_BYTES_MAX {
            return Ok(Head::TooLarge);
        }
        looked = head.len();
        connection.enter(Stage::Head);
        head.reserve(HEAD_BUFFER_BYTES);
    }
}

/// Whether an empty line is in a head whose first `looked` bytes had none.
fn has_end(head: &[u8], looked: usize) -> bool {
    let from = looked.saturating_sub(3);
    let tail = head.get(from..).unwrap_or_default();
    let line_ends = memchr::memchr_iter(b'\n', tail);
    line_ends.into_iter().any(|at| {
        let rest = &tail[at + 1..];
        rest.starts_with(b"\n") || rest.starts_with(b"\r\n")
    })
}

/// A last word to a peer whose request cannot be answered.
async fn farewell<S: AsyncWrite + Unpin>(io: &mut S, status: &[u8]) {
    last_words(io, &[status, b"Connection: close\r\nContent-Length: 0\r\n\r\n"].concat()).await;
}

async fn last_words<S: AsyncWrite + Unpin>(io: &mut S, text: &[u8]) {
    // The connection ends whether it arrives or not.
    let _ = tokio::time::timeout(FAREWELL_TIMEOUT, async {
        io.write_all(text).await?;
        io.shutdown().await
    })
    .await;
}

/// Tells a peer that speaks HTTP without TLS what is wrong.
async fn refuse_clear(mut tcp: TcpStream) {
    let mut unread = vec![0; CLEAR_BYTES_MAX];
    let _ = tcp.try_read(&mut unread);
    let status = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{NO_TLS}",
        NO_TLS.len()
    );
    last_words(&mut tcp, status.as_bytes()).await;
}

async fn serve_http(stream: Stream<Wire>, connection: Arc<Connection>, peer: Peer, server: Arc<Server>) {
    let (asked, serving) = (connection.clone(), server.clone());
    let service = service_fn(move |request| respond(serving.clone(), asked.clone(), peer, request));
    let mut http = pin!(server.http.serve_connection(TokioIo::new(stream), service).with_upgrades());
    // In a list, so that what ends a connection is looked at when it happens, not with every byte.
    let mut ends: FuturesUnordered<BoxFuture<'_, End>> = FuturesUnordered::new();
    ends.push(Box::pin(async {
        server.stop.cancelled().await;
        End::Stop
    }));
    ends.push(Box::pin(async {
        tokio::select! {
            () = connection.evicted() => {}
            () = server.cut_off.cancelled() => {}
            () = overdue(&connection, &server.deadlines) => {}
        }
        End::Over
    }));
    loop {
        tokio::select! {
            served = http.as_mut() => {
                if let Err(error) = served {
                    if error.is_parse() {
                        turned_away(&server, &connection, UNREADABLE);
                    }
                    tracing::debug!(%error, peer = %connection.peer, "a connection broke");
                }
                return;
            }
            Some(end) = ends.next() => match end {
                End::Stop => http.as_mut().graceful_shutdown(),
                End::Over => return,
            },
        }
    }
}

/// What ends a connection from our side.
enum End {
    /// Nothing new is taken in.
    Stop,
    /// At once.
    Over,
}

/// Waits until the peer has left something undone for too long.
async fn overdue(connection: &Connection, deadlines: &Deadlines) {
    let mut later = deadlines.head;
    loop {
        tokio::time::sleep(later).await;
        match connection.look(deadlines) {
            Ok(next) => later = next,
            Err(why) => {
                tracing::debug!(peer = %connection.peer, why, "a connection was closed");
                return;
            }
        }
    }
}

/// Answers one request. A connection on which no credential was accepted ends with its answer.
async fn respond(
    server: Arc<Server>,
    connection: Arc<Connection>,
    peer: Peer,
    request: hyper::Request<Incoming>,
) -> Result<Response<Watched>, Infallible> {
    let serving = connection.serve();
    let request: Request = request.map(Body::new);
    let is_crowded = connection.stage() == Stage::Reserve && !HEALTH_PATHS.contains(&request.uri().path());
    let mut response = if is_crowded {
        if let Some(reason) = Refusal::Crowded.turns_away() {
            turned_away(&server, &connection, reason);
        }
        Refusal::Crowded.into_response()
    } else {
        http::answer(&server.hall, &server.router, peer, &connection, request).await
    };
    if !connection.is_known() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| Watched { body, _serving: serving }))
}

/// The body of an answer; its request is under way until it is sent.
struct Watched {
    body: Body,
    _serving: Serving,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// While nothing is accepted, so that chance has no part in it.
    #[tokio::test]
    async fn many_connections_at_once_are_made_without_waiting_for_each_other() {
        const AT_ONCE: usize = 1_200;
        let (files, system) = (files::raise(), std::fs::read_to_string("/proc/sys/net/core/somaxconn"));
        let system_max = system.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(AT_ONCE);
        let count = AT_ONCE.min(system_max).min(files.saturating_sub(200));
        let listener = Listener::bind(&Options::new(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
        let address = listener.address().unwrap();
        let made: Vec<_> = (0..count)
            .map(|number| {
                let made = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(20));
                made.unwrap_or_else(|error| panic!("connection {number}: {error}"))
            })
            .collect();
        assert_eq!(made.len(), count);
    }

    #[test]
    fn a_head_ends_with_an_empty_line_wherever_it_was_cut() {
        for text in
            ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.1\n\n", "GET / HTTP/1.1\r\nA: b\n\r\nbody"]
        {
            let whole = text.as_bytes();
            let end = text.find("\n\r\n").map_or_else(|| text.find("\n\n").unwrap() + 2, |at| at + 3);
            for looked in 0..end {
                assert!(!has_end(&whole[..looked], 0), "{text} {looked}");
                assert!(has_end(&whole[..end], looked), "{text} {looked}");
            }
        }
    }

    #[test]
    fn bounds_follow_from_the_files_there_are() {
        let mut options = Options::new(SocketAddr::from(([127, 0, 0, 1], 0)));
        let of = |options: &Options, files| {
            let bounds = bounds(options, files);
            (bounds.total, bounds.per_address)
        };
        assert_eq!(of(&options, 65_536), (4_096, 3_072));
        assert_eq!(of(&options, 1_024), (768, 576));
        options.address_share_max = 1.0;
        options.connections_max = 1;
        assert_eq!(of(&options, 1_024), (1, 1));
    }
}
