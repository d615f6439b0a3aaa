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
    /// Bodies of all calls under way together, unfinished ones included; shared as the calls are. Default 256 MiB.
    pub bodies_bytes_max: usize,
    /// Answers that their callers have not taken yet, large ones only, by what they take once they are read; shared as the
    /// calls are. Default 256 MiB.
    pub answers_bytes_max: usize,
    /// Calls that come in, and calls under way, in the whole gateway. Above it, callers that have more than their share of the first,
    /// and workspaces that have more of the second, are told to come later, so that one cannot keep out others;
    /// [`sluice_bus::shares`] says how many there are together. Default 1024.
    pub calls_max: usize,
    /// Calls without a credential under way; a bound of their own, shared in the same way by address. Default 32.
    pub public_calls_max: usize,
    /// The largest body of a call without a credential. Default 8 KiB.
    pub public_body_bytes_max: usize,
    /// Open connections; above it the oldest without an accepted credential, then idle ones, give way to new ones. Never
    /// more than the process may have files, of which the inside keeps a quarter, at least 256. Default 4096.
    pub connections_max: usize,
    /// Connections from one address, as part of all; a trusted proxy may have all. Default 0.75.
    pub address_share_max: f32,
    /// How long the head of a request may take. Default 10 s.
    pub header_timeout: Duration,
    /// How long a connection may be open between two requests. Default 60 s.
    pub idle_timeout: Duration,
    /// How long a body, or a message on a socket, may pause before it is whole. Default 30 s.
    pub body_idle_timeout: Duration,
    /// How long the body of a call without a credential may take. Default 5 s.
    pub public_body_timeout: Duration,
    /// How long a socket may be open before a credential is accepted on it. Default 10 s.
    pub socket_auth_timeout: Duration,
    /// How long nothing may come from a socket, not even an answer to a ping, before it is closed. Default 600 s: clients
    /// that are not inside a call may leave pings unanswered.
    pub socket_silence_timeout: Duration,
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
    /// How often a socket is pinged. Default 30 s.
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
            answers_bytes_max: 256 << 20,
            calls_max: 1_024,
            public_calls_max: 32,
            public_body_bytes_max: 8 << 10,
            connections_max: 4_096,
            address_share_max: 0.75,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            body_idle_timeout: Duration::from_secs(30),
            public_body_timeout: Duration::from_secs(5),
            socket_auth_timeout: Duration::from_secs(10),
            socket_silence_timeout: Duration::from_secs(600),
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
