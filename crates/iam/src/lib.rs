//! Who may do what: the identity service, as far as one administrator needs it.
//!
//! It owns `request:tg:iam` and `response:tg:iam`, the admin key, and the record of which workspaces there should be. It
//! refuses to know what a capability protects, and every client: whoever asks over the bus is trusted to be the gateway.
//! Begin with [`start`]. Inside: `key` makes and compares the admin key, `workspaces` keeps the registry as it should be,
//! `regime` answers.
//!
//! Two modes. With [`Mode::AdminKey`] there is one user, `admin`, known by one API key; only its SHA-256 is stored. With
//! [`Mode::NoAuth`] everybody is an administrator called `anonymous`.
//!
//! A client that holds the key can have the service prove that it knows it too, before it sends it ([`proof`]).
//!
//! # Rotating the admin key
//! Remove the key file and start again: a new key is made and the old one stops working. (The `sluice` command takes a missing
//! key file for a loss and has to be told to: `--accept-loss admin-key`.) A key file that holds another
//! key than the one the store knows is refused at start, since one of the two is not what somebody thinks it is.

mod clock;
mod key;
pub mod proof;
mod regime;
mod workspaces;

use std::path::PathBuf;
use std::sync::Arc;

use sluice_bus::{BrokerAdmin, TopicSpec};
use sluice_schema::{exchange, system};
use sluice_sdk::{ConfigClient, ConfigError, Point, Process, owned, service::serve};
use sluice_store::Tables;

/// How the service knows people.
#[derive(Debug, Clone)]
pub enum Mode {
    /// By the admin key.
    AdminKey {
        /// Where the key stands in plain text, readable by its owner only; made at the first start.
        file: PathBuf,
    },
    /// Not at all: everybody may do everything.
    NoAuth,
}

/// Whether these tables know an admin key, so that a missing key file is a loss.
///
/// # Errors
/// What reading says.
pub async fn knows_admin_key(tables: &dyn Tables) -> Result<bool, Error> {
    key::is_known(tables).await
}

/// Insists that a key file, if it is there, holds the key that these tables know, or one that they can take in. Nothing is
/// changed.
///
/// # Errors
/// [`Error::NotAKey`] or [`Error::OtherKey`]; what reading says.
pub async fn check_admin_key(file: &std::path::Path, tables: &dyn Tables) -> Result<(), Error> {
    key::check(file, tables).await.map(drop)
}

/// What the service is made of.
pub struct Parts {
    /// The process it runs in.
    pub process: Process,
    /// Makes its queues.
    pub admin: Arc<dyn BrokerAdmin>,
    /// Where the key's digest and the workspaces rest.
    pub tables: Arc<dyn Tables>,
    /// The config service, which holds the registry of workspaces.
    pub config: ConfigClient,
    /// How it knows people.
    pub mode: Mode,
}

/// Why the service could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its queues could not be made.
    #[error("the identity service cannot use the broker")]
    Bus(#[from] sluice_bus::Error),
    /// What rests in the store could not be read or written.
    #[error("the identity service cannot use the store")]
    Store(#[from] sluice_store::Error),
    /// The registry of workspaces could not be read or written.
    #[error("the identity service cannot reach the registry of workspaces")]
    Config(#[from] ConfigError),
    /// The key file could not be read or written.
    #[error("the key file {} cannot be used; check that its folder exists and may be written", file.display())]
    KeyFile {
        /// The file.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The key file holds something else.
    #[error(
        "the key file {} does not hold an API key ('tg_' and at least {} letters, digits, '-' or '_'); \
         put the key in, or start with --accept-loss admin-key, which sets the file aside and makes a new key",
        file.display(), key::SECRET_CHARS_MIN
    )]
    NotAKey {
        /// The file.
        file: PathBuf,
    },
    /// The key file holds another key than the store knows.
    #[error(
        "the key in {} is not the admin key of this data; put the right key back, or start with --accept-loss admin-key, \
         which sets the file aside and makes a new key (the old one then stops working)",
        file.display()
    )]
    OtherKey {
        /// The file.
        file: PathBuf,
    },
    /// It did not get to serve in time.
    #[error(
        "the identity service did not get to serve {topic} within {within_s} s; see the log for what held it up"
    )]
    NotServing {
        /// Its request topic.
        topic: sluice_schema::Topic,
        /// The deadline.
        within_s: u64,
    },
}

/// How long start-up waits until the queue is served.
const START_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

/// Starts the service: the key is there, at least the workspace `default` is registered, and on return it answers.
///
/// # Errors
/// An [`Error`]; what was begun ends with the process.
pub async fn start(parts: Parts) -> Result<(), Error> {
    let Parts { process, admin, tables, config, mode } = parts;
    let (request, response) = (system::iam_request(), system::iam_response());
    let topics = vec![TopicSpec::with(request.clone(), system::IAM_SVC), TopicSpec::bare(response.clone())];
    owned::own(&process, &admin, "iam", topics).await?;

    // Nothing is answered before the key and the workspaces are settled.
    let access = match mode {
        Mode::AdminKey { file } => regime::Access::Key(key::AdminKey::settle(&file, &*tables).await?),
        Mode::NoAuth => regime::Access::Open,
    };
    let workspaces = workspaces::start(&process, tables, config).await?;
    let regime = regime::Regime::new(access, workspaces, process.broker.limits().message_bytes_max);

    let point = Point::new(request.clone(), response, system::IAM_SVC);
    let attached =
        serve::<exchange::Iam, _, _>(&process, point, process.stop.child_token(), move |question, _| {
            let regime = regime.clone();
            async move { regime.answer(question).await }
        });
    let within_s = START_TIMEOUT.as_secs();
    let served = tokio::time::timeout(START_TIMEOUT, attached.cancelled()).await;
    served.map_err(|_| Error::NotServing { topic: request, within_s })
}
