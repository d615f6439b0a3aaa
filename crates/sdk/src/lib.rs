//! How to be a program here: supervised tasks, services on request topics, processors in flows, the config watch, metrics.
//!
//! It owns everything that programs of the system have in common, so that a service is its handlers and a processor is its
//! thinking. It refuses to know which services exist beyond config. Begin with [`Process`]; then [`service`] to answer
//! calls, [`processor`] to take part in flows, [`watch`] to follow config.
//!
//! ```
//! # use std::sync::Arc;
//! use sluice_bus::embedded::Embedded;
//! use sluice_sdk::Process;
//! use tokio_util::sync::CancellationToken;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let broker = Arc::new(Embedded::in_memory());
//! let process = Process::new(broker, CancellationToken::new());
//! // … start services with it …
//! process.shutdown(std::time::Duration::from_secs(5)).await;
//! # }
//! ```

pub mod config;
pub mod host;
mod losses;
pub mod metrics;
pub mod owned;
pub mod process;
pub mod processor;
pub mod progress;
pub mod service;
pub mod suspects;
pub mod tasks;
pub mod values;
pub mod watch;
pub mod workspaces;

pub use config::{Apply, ConfigClient, ConfigError, Position};
pub use host::{Host, HostOptions};
pub use metrics::Metrics;
pub use process::{Process, Trouble};
pub use processor::{BindError, Catalogue, Failure, Inputs, Out, Ports, Processor, Resources, Roster};
pub use progress::{Progress, Recorded};
pub use service::{Point, Responder};
pub use suspects::Suspects;
pub use tasks::{Backoff, Tasks};
pub use values::Values;
pub use watch::{ConfigWatch, View};
