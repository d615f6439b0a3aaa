//! What can be set on a gateway. Every bound has its unit in its name.

use std::net::SocketAddr;
use std::time::Duration;

use crate::address::{Host, Network, WebOrigin};
use crate::tls::Tls;

/// Settings of a gateway; [`Options::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens; port 0 takes any free port.
    pub listen: SocketAddr,
    /// The name that it was given for that address, which requests may use.
    pub listen_name: Option<Host>,
    /// Whether anybody is let in without a key, so that pages of other sites have to be kept out. Default `None`: the
    /// identity service is asked.
    pub open: Option<bool>,
    /// Origins whose pages may use the gateway from a browser. Default none.
    pub allow_origins: Vec<WebOrigin>,
    /// Further hosts that requests may name: what a proxy in front is called. Default none.
    pub allow_hosts: Vec<Host>,
    /// Serves with TLS. Default `None`: in clear.
    pub tls: Option<Tls>,
    /// How long a TLS handshake may take. Default 10 s.
    pub handshake_timeout: Duration,
    /// Proxies whose `X-Forwarded-For` is believed. Default none.
    pub trusted_proxies: Vec<Network>,
    /// The largest HTTP body; above it the answer is 413. Default 64 MiB. Larger costs memory per call.
    pub body_bytes_max: usize,
    /// The largest WebSocket message; above it the socket closes with 1009. Default 50 MiB.
    pub frame_bytes_max: usize,
    /// Bodies of all calls under way together; above it new ones are told to come later. Default 256 MiB.
    pub bodies_bytes_max: usize,
    /// Calls under way in the whole gateway; above it new ones are told to come later. Default 1024.
    pub calls_max: usize,
    /// Open connections; above it new ones wait to be accepted. Default 4096.
    pub connections_max: usize,
    /// Calls under way on one socket. Default 64.
    pub socket_calls_max: usize,
    /// Calls that wait for their turn on one socket. Default 256.
    pub socket_waiting_max: usize,
    /// Answers on their way to one socket's reader. Default 8 MiB; a larger single answer travels alone.
    pub socket_unread_bytes_max: usize,
    /// How long one answer may take from question to end; a stream may take this long for its next part. Default 600 s.
    pub call_timeout: Duration,
    /// How long a stream may take to its end. Default 3600 s.
    pub stream_timeout: Duration,
    /// How long a question to the identity service may take. Default 10 s.
    pub iam_timeout: Duration,
    /// How long an authentication or a decision is remembered at most. Default 60 s, which is also the cap.
    pub trust_timeout: Duration,
    /// How long a call is held until configuration has been read for the first time. Default 10 s.
    pub ready_timeout: Duration,
    /// How long a call waits for a workspace, a flow or a service queue that was announced a moment ago. Default 1 s.
    pub settle_timeout: Duration,
    /// How long a socket's reader may leave an answer unread before the socket is closed. Default 60 s.
    pub write_timeout: Duration,
    /// How often a quiet socket is pinged; pongs are not required. Default 30 s.
    pub ping_interval: Duration,
    /// How long calls under way may take once the gateway stops. Default 10 s.
    pub drain_timeout: Duration,
}

impl Options {
    /// The defaults, listening on `listen`.
    #[must_use]
    pub const fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            listen_name: None,
            open: None,
            allow_origins: Vec::new(),
            allow_hosts: Vec::new(),
            trusted_proxies: Vec::new(),
            tls: None,
            handshake_timeout: Duration::from_secs(10),
            body_bytes_max: 64 << 20,
            frame_bytes_max: 50 << 20,
            bodies_bytes_max: 256 << 20,
            calls_max: 1_024,
            connections_max: 4_096,
            socket_calls_max: 64,
            socket_waiting_max: 256,
            socket_unread_bytes_max: 8 << 20,
            call_timeout: Duration::from_secs(600),
            stream_timeout: Duration::from_secs(3_600),
            iam_timeout: Duration::from_secs(10),
            trust_timeout: Duration::from_secs(60),
            ready_timeout: Duration::from_secs(10),
            settle_timeout: Duration::from_secs(1),
            write_timeout: Duration::from_secs(60),
            ping_interval: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
        }
    }
}
