//! The connection: it is rebuilt when lost, by the client library; what was under way then has an unknown outcome.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::connection::State as Connected;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream;
use async_nats::jetstream::{Error as Refusal, ErrorCode};
use async_nats::{
    Client, ConnectError, ConnectErrorKind, Event, HeaderMap, Message, Request, RequestErrorKind, ServerError,
};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sluice_bus::{Error, Result};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Options;
use super::address::Address;
use crate::local::lock;

/// A dead connection is seen within two of them.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Pauses between attempts to connect again grow by the first up to the second.
const RECONNECT_STEP: Duration = Duration::from_millis(100);
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// In a cluster, as far as nothing else is said: one may be away.
const REPLICAS_WANTED: usize = 3;
/// How often a lost connection is looked at while somebody waits for it, should the library's word be missed.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(super) struct Link {
    pub(super) client: Client,
    /// How many servers are to have each stream.
    pub(super) replicas: usize,
    /// How often the connection was lost.
    lost: watch::Receiver<u64>,
    /// What the server last said that this user may not do.
    denied: Arc<Mutex<Option<String>>>,
}

/// Why a request has no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// Nobody listens to its subject.
    NoResponders,
    /// Larger than what the server takes.
    TooLarge,
    Other(Error),
}

impl Link {
    pub(super) async fn open(address: &Address, options: &Options) -> Result<Self> {
        let (sender, lost) = watch::channel(0);
        let denied: Arc<Mutex<Option<String>>> = Arc::default();
        let (shown, noted) = (address.to_string(), denied.clone());
        let connect = address
            .options()?
            .name(&options.name)
            .connection_timeout(options.call_timeout)
            .ping_interval(PING_INTERVAL)
            .reconnect_delay_callback(|tries| {
                let waits = u32::try_from(tries.saturating_sub(1)).unwrap_or(u32::MAX);
                RECONNECT_MAX.min(RECONNECT_STEP.saturating_mul(waits))
            })
            .event_callback(move |event| {
                note(&event, &shown, &sender, &noted);
                std::future::ready(())
            });
        let connected = tokio::time::timeout(options.call_timeout, connect.connect(address.servers()));
        let client = match connected.await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(of_connecting(&error, address)),
            Err(_) => {
                return Err(Error::Unavailable { reason: format!("no connection to {address} in time") });
            }
        };
        let is_clustered = client.server_info().cluster.is_some();
        let replicas = address.replicas().unwrap_or(if is_clustered { REPLICAS_WANTED } else { 1 });
        Ok(Self { client, replicas, lost, denied })
    }

    /// Whether there may be other servers, which do not know everything at once that this one knows.
    pub(super) fn is_clustered(&self) -> bool {
        self.client.server_info().cluster.is_some()
    }

    /// Changes whenever the connection is lost.
    pub(super) fn lost(&self) -> watch::Receiver<u64> {
        self.lost.clone()
    }

    pub(super) fn is_up(&self) -> bool {
        self.client.connection_state() == Connected::Connected
    }

    /// Waits for the connection.
    pub(super) async fn up(&self, within: Duration) -> Result<()> {
        let until = Instant::now() + within;
        while !self.is_up() {
            if Instant::now() >= until {
                return Err(Error::Unavailable { reason: "the connection is lost".to_owned() });
            }
            tokio::time::sleep(LOOK_EVERY.min(within)).await;
        }
        Ok(())
    }

    /// Asks, and waits for the answer; `what` says what is asked, for errors.
    pub(super) async fn request(
        &self,
        what: &str,
        subject: String,
        headers: HeaderMap,
        body: Bytes,
        within: Duration,
    ) -> Result<Message, Fault> {
        let until = Instant::now() + within;
        self.up(within).await.map_err(Fault::Other)?;
        let mut lost = self.lost();
        lost.mark_unchanged();
        let left = until.saturating_duration_since(Instant::now());
        let request = Request::new().payload(body).timeout(Some(left));
        let request = if headers.is_empty() { request } else { request.headers(headers) };
        let answer = tokio::select! {
            answer = self.client.send_request(subject.clone(), request) => answer,
            _ = lost.changed() => {
                let reason = "the connection was lost meanwhile".to_owned();
                return Err(Fault::Other(Error::OutcomeUnknown { what: what.to_owned(), reason }));
            }
        };
        answer.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => Fault::NoResponders,
            RequestErrorKind::MaxPayloadExceeded => Fault::TooLarge,
            RequestErrorKind::TimedOut => Fault::Other(self.unanswered(what, &subject, within)),
            RequestErrorKind::InvalidSubject | RequestErrorKind::Other => {
                Fault::Other(Error::OutcomeUnknown { what: what.to_owned(), reason: error.to_string() })
            }
        })
    }

    /// The server does not answer what this user may not ask; it says so apart.
    fn unanswered(&self, what: &str, subject: &str, within: Duration) -> Error {
        let denied = lock(&self.denied).clone();
        if let Some(said) = denied.filter(|said| said.contains(subject)) {
            return Error::Refused { reason: format!("the broker does not allow {what}: {said}") };
        }
        Error::TimedOut { what: what.to_owned(), after_ms: within.as_millis() as u64 }
    }

    /// Makes a stream; while too few servers are there for its replicas, with one.
    pub(super) async fn make(
        &self,
        config: &stream::Config,
        within: Duration,
    ) -> Result<Result<stream::Info, Refusal>> {
        let path = format!("STREAM.CREATE.{}", config.name);
        match self.api(&path, config, within).await? {
            Err(refusal)
                if config.num_replicas > 1 && refusal.error_code() == ErrorCode::CLUSTER_NO_PEERS =>
            {
                tracing::warn!(stream = config.name, %refusal, "too few servers are there; it is made with one replica");
                self.api(&path, &stream::Config { num_replicas: 1, ..config.clone() }, within).await
            }
            made => Ok(made),
        }
    }

    /// A call of the JetStream API; the inner error is the server's word.
    pub(super) async fn api<V: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        within: Duration,
    ) -> Result<Result<V, Refusal>> {
        let what = format!("a call of the broker's API ({path})");
        let unreadable = |error: serde_json::Error| Error::Refused { reason: format!("{what}: {error}") };
        let mut body = serde_json::to_vec(body).map_err(unreadable)?;
        // Calls without arguments must be empty.
        if body == b"null" {
            body.clear();
        }
        let asked =
            self.request(&what, format!("$JS.API.{path}"), HeaderMap::new(), body.into(), within).await;
        let answer = asked.map_err(|fault| match fault {
            Fault::NoResponders => Error::Unavailable {
                reason: "JetStream does not answer; it must be on for the server and for this account"
                    .to_owned(),
            },
            Fault::TooLarge => {
                Error::Refused { reason: format!("{what} is larger than what the broker takes") }
            }
            Fault::Other(error) => error,
        })?;
        Ok(match serde_json::from_slice(&answer.payload).map_err(unreadable)? {
            Response::Ok(value) => Ok(value),
            Response::Err { error } => Err(error),
        })
    }
}

fn note(event: &Event, address: &str, lost: &watch::Sender<u64>, denied: &Mutex<Option<String>>) {
    match event {
        Event::Disconnected => {
            lost.send_modify(|times| *times += 1);
            tracing::warn!(broker = address, "the connection to the broker was lost; connecting again");
        }
        Event::Connected if *lost.borrow() > 0 => {
            tracing::info!(broker = address, "connected to the broker again");
        }
        Event::ServerError(ServerError::Other(said)) => *lock(denied) = Some(said.clone()),
        Event::SlowConsumer(_) => {
            tracing::warn!(broker = address, "messages came faster than they were taken; some are dropped");
        }
        Event::Connected
        | Event::LameDuckMode
        | Event::Draining
        | Event::Closed
        | Event::ServerError(_)
        | Event::ClientError(_) => tracing::debug!(broker = address, %event, "the client reports"),
    }
}

/// What the server's refusal of a call means; `what` says what was asked.
pub(super) fn refused(refusal: &Refusal, what: &str) -> Error {
    let said = refusal.to_string();
    match refusal.error_code() {
        ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STREAM_STORE_FAILED => Error::Disk { reason: said },
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
            Error::Refused { reason: format!("JetStream is off at the broker or for this account: {said}") }
        }
        _ if refusal.code() >= 500 => Error::Unavailable { reason: format!("{what}: {said}") },
        _ => Error::Refused { reason: format!("the broker refuses {what}: {said}") },
    }
}

/// What `error` means for a connection attempt to `address`.
fn of_connecting(error: &ConnectError, address: &Address) -> Error {
    let text = error.to_string();
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => Error::Refused {
            reason: format!(
                "the broker at {address} does not let this user in; give it the user and password, token or credentials \
                 that it knows"
            ),
        },
        _ if text.contains("invalid peer certificate") => Error::Refused {
            reason: format!(
                "the broker at {address} shows a certificate that is not trusted here ({text}); give the certificate of \
                 the CA that signed it, and an address whose host the certificate names"
            ),
        },
        ConnectErrorKind::ServerParse
        | ConnectErrorKind::Dns
        | ConnectErrorKind::TimedOut
        | ConnectErrorKind::Tls
        | ConnectErrorKind::Io
        | ConnectErrorKind::MaxReconnects => {
            Error::Unavailable { reason: format!("no connection to {address}: {text}") }
        }
    }
}
