//! The gateway: REST and WebSocket in front, the bus behind, live routes between.
//!
//! It owns the doors: who is let in, how much at once, how refusals look. It refuses to know stores and the insides of
//! other services: what a question and an answer look like stands in `sluice_schema::api`, who may ask in
//! `sluice_schema::operation` and with the identity service, where it goes in the flow records. Begin with `hall`, the one
//! way that calls of both doors (`http`, `socket`) take; `routes` is where they lead.
//!
//! **Invariant: who has no credential costs a constant.** Connections that have not shown one are few, small, short-lived and
//! give way to others (`connections`); nothing that holders of keys need is taken before a credential was accepted, and
//! among those everybody has a share (`shares`).
//!
//! **Invariant: no caller reaches a topic outside the workspace it was authorised for.** The workspace is resolved once,
//! before permission is asked; flow records that name topics of another workspace or of a system service are not routed.
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use sluice_bus::embedded::Embedded;
//! use sluice_gateway::{Options, Parts};
//! use sluice_sdk::{ConfigWatch, Process};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let process = Process::new(Arc::new(Embedded::in_memory()), Default::default());
//! let watch = ConfigWatch::start(&process, Duration::from_secs(30));
//! let options = Options::new("127.0.0.1:0".parse()?);
//! let gateway = sluice_gateway::start(Parts { process, watch, options, no_room: None }).await?;
//! println!("listening on {}", gateway.local_addr);
//! gateway.shutdown().await;
//! # Ok(()) }
//! ```

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_sdk::Process;
use sluice_sdk::watch::ConfigWatch;
use tokio_util::sync::CancellationToken;

mod address;
mod answer;
mod body;
mod browser;
mod cache;
mod connections;
mod files;
mod forwarded;
mod frame;
#[cfg(test)]
mod fuzz;
mod hall;
mod http;
mod identity;
mod listener;
mod meter;
mod metrics;
mod options;
mod outbox;
mod refusal;
mod routes;
mod socket;
mod stream;
mod tls;
mod tries;

pub use address::{AddressError, Host, Network, WebOrigin};
pub use options::Options;
pub use routes::{RouteWatch, RoutedFlow};
pub use tls::{Tls, TlsError, TlsFiles};

use hall::Hall;
use listener::Listener;

/// How long the answers of calls that were cut may take to leave.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(2);

/// What a gateway is made of.
pub struct Parts {
    /// The process it runs in.
    pub process: Process,
    /// The config receiver of that process.
    pub watch: ConfigWatch,
    /// Its settings.
    pub options: Options,
    /// Of a process that keeps data: why it refuses what it is to keep, while it does.
    pub no_room: Option<NoRoom>,
}

/// Tells why there is no room, while there is none. Anybody may read it: it names no place on the machine.
pub type NoRoom = Arc<dyn Fn() -> Option<&'static str> + Send + Sync>;

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else listens there.
    #[error(
        "cannot listen on {address}: the port is in use; stop what uses it or choose another with --listen HOST:PORT"
    )]
    InUse {
        /// Where it should listen.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}; choose another address with --listen HOST:PORT")]
    Listen {
        /// Where it should listen.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A running gateway. It runs in its process's tasks; dropping this does not stop it.
pub struct Gateway {
    /// Where it listens.
    pub local_addr: SocketAddr,
    stop: CancellationToken,
    stopped: CancellationToken,
}

impl Gateway {
    /// Takes nothing new in, lets calls under way end up to the drain timeout, then cuts them with a typed error. To be
    /// called before the services behind stop, so that calls still get their answers.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.stopped.cancelled().await;
    }
}

/// Starts a gateway. On return it listens; calls are held until config has been read.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn start(parts: Parts) -> Result<Gateway, Error> {
    let Parts { process, watch, options, no_room } = parts;
    let address = options.listen;
    let listen = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => Error::InUse { address },
        _ => Error::Listen { address, source },
    };
    let tcp = Listener::bind(&options).map_err(listen)?;
    let local_addr = tcp.address().map_err(listen)?;

    let metrics = metrics::Metrics::register(&process.metrics);
    let routes = routes::Routes::start(&process, &watch, &metrics);

    let stop = process.stop.child_token();
    let stopped = CancellationToken::new();
    let drain_timeout = options.drain_timeout;
    let tasks = process.tasks.clone();
    if let Some(tls) = options.tls.clone() {
        let stop = stop.clone();
        tasks.spawn("gateway/certificates", async move {
            // It ends with the gateway only.
            let _ = stop.run_until_cancelled(tls.watch()).await;
        });
    }
    let hall = Arc::new(Hall::new(process, watch, routes, metrics, options, no_room, stop.clone()));
    let (stopping, done) = (stop.clone(), stopped.clone());
    tasks.spawn("gateway/http", async move {
        let cut_off = CancellationToken::new();
        let ended = async {
            // Ends only after the stop signal, with every connection closed.
            listener::serve(tcp, &hall, &cut_off).await;
            hall.sockets.close();
            hall.sockets.wait().await;
        };
        let cut = async {
            stopping.cancelled().await;
            tokio::time::sleep(drain_timeout).await;
            tracing::warn!("calls under way are cut at the drain deadline");
            hall.cut.cancel();
            // Who was cut is still told so.
            tokio::time::sleep(LAST_WORDS_TIMEOUT).await;
        };
        tokio::select! {
            () = ended => {}
            () = cut => {}
        }
        cut_off.cancel();
        done.cancel();
    });
    Ok(Gateway { local_addr, stop, stopped })
}
