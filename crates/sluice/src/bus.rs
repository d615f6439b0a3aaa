//! The bus of a process: the embedded broker, or a connection to one that is shared with others.

use std::path::Path;
use std::sync::Arc;

use std::time::Duration;

use anyhow::Context;
use sluice_brokers::{Connection, SCHEMES, Secret};
use sluice_bus::embedded::{Config, Embedded};
use sluice_bus::{Broker, BrokerAdmin, Error, ErrorKind};
use sluice_sdk::Process;
use tokio::time::Instant;

use crate::exit::{Code, Told};

/// How long a service waits for another process to let go of its claim.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(5);
const CLAIM_RETRY: Duration = Duration::from_millis(100);
/// How often a claim is looked at.
const CLAIM_LOOK: Duration = Duration::from_secs(15);

/// A broker that is not ours.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    /// Its address, which may hold a password.
    pub(crate) url: Secret,
    pub(crate) settings: sluice_brokers::Settings,
}

/// Both paths, and how they end.
pub(crate) struct Bus {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) admin: Arc<dyn BrokerAdmin>,
    held: Held,
}

enum Held {
    Embedded(Embedded),
    Remote(Connection),
}

impl Remote {
    /// Refuses an address that no broker of this build answers to.
    pub(crate) fn check(&self) -> Result<(), Told> {
        let scheme = self.url.reveal().split("://").next().unwrap_or_default();
        if SCHEMES.contains(&scheme) {
            return Ok(());
        }
        let told = format!("this build has no broker for '{scheme}://' addresses");
        let next =
            format!("use {}://… or leave --broker out to use the embedded broker", SCHEMES.join("://…, "));
        Err(Told::new(Code::Usage, told).next(next))
    }

    async fn connect(&self) -> anyhow::Result<Connection> {
        self.check()?;
        sluice_brokers::connect(self.url.reveal(), self.settings.clone()).await.map_err(|error| {
            let next = match error.kind() {
                ErrorKind::Refused => {
                    "check the user and the vhost in --broker, and the password: in --broker-password-file FILE, or in \
                     SLUICE_BROKER_PASSWORD"
                }
                ErrorKind::Absent | ErrorKind::Unavailable | ErrorKind::OutcomeUnknown => {
                    "start the broker, or check the address given with --broker"
                }
            };
            Told::new(Code::Failed, error.to_string()).next(next).into()
        })
    }
}

impl Bus {
    /// Connects to `remote`, or opens the embedded broker in `data`.
    pub(crate) async fn open(remote: Option<&Remote>, data: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(remote) = remote {
            return Self::connect(remote).await;
        }
        let dir = data.map(|data| data.join("broker"));
        Self::embed(Config { dir, ..Default::default() }).context("the embedded broker could not be opened")
    }

    /// Connects to a broker that is shared with others.
    pub(crate) async fn connect(remote: &Remote) -> anyhow::Result<Self> {
        let connection = remote.connect().await?;
        let (broker, admin) = (connection.broker.clone(), connection.admin.clone());
        Ok(Self { broker, admin, held: Held::Remote(connection) })
    }

    /// Opens the embedded broker.
    pub(crate) fn embed(config: Config) -> Result<Self, Error> {
        let embedded = Embedded::open(config)?;
        let ends = Arc::new(embedded.clone());
        Ok(Self { broker: ends.clone(), admin: ends, held: Held::Embedded(embedded) })
    }

    /// The embedded broker, if it is that.
    pub(crate) const fn embedded(&self) -> Option<&Embedded> {
        match &self.held {
            Held::Embedded(broker) => Some(broker),
            Held::Remote(_) => None,
        }
    }

    /// Whether nobody but this process can be on it.
    pub(crate) const fn is_own(&self) -> bool {
        matches!(self.held, Held::Embedded(_))
    }

    /// Claims services that keep data of their own, so that no second process answers for them out of another folder. The
    /// claims end with this process.
    pub(crate) async fn claim(&self, keepers: &[&'static str], process: &Process) -> anyhow::Result<()> {
        if self.is_own() {
            return Ok(());
        }
        for &name in keepers {
            let hold = self.hold(name).await?;
            let (admin, stop) = (self.admin.clone(), process.stop.clone());
            process.tasks.spawn(format!("claim/{name}"), async move {
                stop.run_until_cancelled(keep(admin, name, hold)).await;
            });
        }
        Ok(())
    }

    async fn hold(&self, name: &str) -> anyhow::Result<Arc<dyn BrokerAdmin>> {
        let until = Instant::now() + CLAIM_TIMEOUT;
        loop {
            match self.admin.hold(name).await {
                Ok(hold) => return Ok(hold),
                // A process that was killed a moment ago may still be known to the broker.
                Err(Error::Held { .. }) if Instant::now() < until => tokio::time::sleep(CLAIM_RETRY).await,
                Err(Error::Held { .. }) => {
                    // A holder that does not say who it is refuses all the same.
                    let who = self.admin.holder(name).await.ok().flatten();
                    let who = who.map(|who| format!(" in {who}")).unwrap_or_default();
                    let told = format!("{name} runs on this broker already{who}, with data of its own");
                    let next = "stop that process first; one that vanished without a word is forgotten within two minutes";
                    return Err(Told::new(Code::Failed, told).next(next).into());
                }
                Err(error) => return Err(error).with_context(|| format!("{name} cannot be claimed")),
            }
        }
    }

    pub(crate) async fn close(&self) {
        match &self.held {
            Held::Embedded(broker) => broker.shutdown().await,
            Held::Remote(connection) => connection.close().await,
        }
    }
}

/// Claims again what was lost together with a connection.
async fn keep(admin: Arc<dyn BrokerAdmin>, name: &'static str, mut hold: Arc<dyn BrokerAdmin>) {
    loop {
        tokio::time::sleep(CLAIM_LOOK).await;
        if !matches!(hold.observe(&[]).await, Err(Error::HoldLost { .. })) {
            continue;
        }
        match admin.hold(name).await {
            Ok(again) => hold = again,
            Err(Error::Held { .. }) => tracing::error!(
                service = name,
                "another process serves this on the same broker with data of its own: stop one of them"
            ),
            Err(error) => tracing::debug!(service = name, %error, "not claimed again yet"),
        }
    }
}
