//! The bus of a process: the embedded broker, or a connection to one that is shared with others.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use sluice_brokers::{Connection, SCHEMES, Secret};
use sluice_bus::embedded::{Config, Embedded};
use sluice_bus::{Broker, BrokerAdmin, ErrorKind};

use crate::exit::{Code, Told};

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
                    "check the address, the user, the password and the vhost given with --broker"
                }
                ErrorKind::Absent | ErrorKind::Unavailable | ErrorKind::OutcomeUnknown => {
                    "start the broker, or leave --broker out to use the embedded one"
                }
            };
            Told::new(Code::Failed, format!("the broker cannot be used: {error}")).next(next).into()
        })
    }
}

impl Bus {
    /// Connects to `remote`, or opens the embedded broker in `data`.
    pub(crate) async fn open(remote: Option<&Remote>, data: &Path) -> anyhow::Result<Self> {
        if let Some(remote) = remote {
            let connection = remote.connect().await?;
            let (broker, admin) = (connection.broker.clone(), connection.admin.clone());
            return Ok(Self { broker, admin, held: Held::Remote(connection) });
        }
        let config = Config { dir: Some(data.join("broker")), ..Default::default() };
        let embedded = Embedded::open(config).context("the embedded broker could not be opened")?;
        let ends = Arc::new(embedded.clone());
        Ok(Self { broker: ends.clone(), admin: ends, held: Held::Embedded(embedded) })
    }

    /// Whether nobody but this process can be on it.
    pub(crate) const fn is_own(&self) -> bool {
        matches!(self.held, Held::Embedded(_))
    }

    pub(crate) async fn close(&self) {
        match &self.held {
            Held::Embedded(broker) => broker.shutdown().await,
            Held::Remote(connection) => connection.close().await,
        }
    }
}
