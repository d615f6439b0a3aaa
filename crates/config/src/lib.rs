//! What should be, per workspace, with versions and notices: the config service.
//!
//! It owns `request:tg:config`, `response:tg:config`, `notify:tg:config` and the two queues of every live workspace. It
//! refuses to know what a value means: values are texts, types and keys are names. Two exceptions, both of the platform's
//! own making: the registry of workspaces, which decides which queues it serves, and the types that only the flow service
//! writes, which it keeps users from writing.
//!
//! Begin with [`start`]. Inside: `request` reads what was asked, `layout` says how things rest, `state` carries writes
//! out (pure), `reader` answers questions, `pages` those that may be large, `sizes` keeps what is written within its ceilings, `writer` commits, `outbox` tells, `hosting` serves the queues. [`offline`] is for a
//! folder that no service works in.
//!
//! # Guarantees
//! A write is one step with one version and one notice; its answer comes after the notice was sent, or, when the broker
//! does not take it within [`NOTICE_TIMEOUT`], was recorded to be sent. Notices go out in version order, at least once,
//! also after a crash, also with several instances over one store. An answer's version is never newer than its data.
//!
//! **Invariant: a workspace's queue reaches that workspace only.** Everything else goes through the system queue, to
//! which the gateway never routes users.
//!
//! # Versions
//! The public version counts writes that are told to others. A value's own version, for compare-and-set, is the public
//! version of the write that left it; quiet writes leave versions from a counter of their own, above 2^40, and answer
//! with it. `getvalues-many` with `since` finds quiet writes too: they count as belonging to the version that comes next.
//!
//! A version belongs to a history: `getvalues-many` answers with both, and whoever asks with `since` sends both back. What
//! is not of this history gets everything, so a store that was restored from an older copy misleads no reader.
//!
//! A type that `getvalues-many` asks for and that ends in `*` means every type that begins so: `processor:*`.

mod history;
mod hosting;
mod layout;
pub mod offline;
mod outbox;
mod pages;
mod reader;
mod rebuild;
mod request;
mod service;
mod sizes;
mod state;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use sluice_bus::BrokerAdmin;
use sluice_sdk::Process;
use sluice_store::Tables;

pub use history::begin_history;
pub use rebuild::rebuild;

/// How long the answer to a write waits for its notice to be sent.
pub const NOTICE_TIMEOUT: Duration = Duration::from_secs(5);

/// The service's subscription on its request queues.
pub const SUBSCRIPTION: &str = sluice_schema::system::CONFIG_SVC;

/// What the service is made of.
#[derive(Clone)]
pub struct Parts {
    /// The process it runs in.
    pub process: Process,
    /// Makes and removes its queues.
    pub admin: Arc<dyn BrokerAdmin>,
    /// Where values rest; may be shared with other instances.
    pub tables: Arc<dyn Tables>,
}

/// Why the service could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its queues could not be made or its notices not sent.
    #[error("the config service cannot use the broker")]
    Bus(#[from] sluice_bus::Error),
    /// What rests in the store could not be read or written.
    #[error("the config service cannot use the store")]
    Store(#[from] sluice_store::Error),
    /// A queue's name could not be made.
    #[error(transparent)]
    Topic(#[from] sluice_schema::TopicError),
    /// It did not get to serve in time.
    #[error(
        "the config service did not get to serve {what} within {within_s} s; see the log for what held it up"
    )]
    NotServing {
        /// What it was about to serve.
        what: String,
        /// The deadline.
        within_s: u64,
    },
}

/// Starts the service. On return the system queue and the queues of every live workspace are served.
///
/// # Errors
/// An [`Error`]; what was begun ends with the process.
pub async fn start(parts: Parts) -> Result<(), Error> {
    service::start(parts).await
}
