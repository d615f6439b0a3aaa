//! Wiring: settings become a running system. The one place that knows every service; services know none of each other.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use sluice_sdk::{ConfigClient, ConfigWatch, Host, HostOptions, Process, watch};
use sluice_store::{Embedded as Store, Stores};
use tokio_util::sync::CancellationToken;

use crate::bus::{Bus, Remote};

/// How long work under way may take once the system is told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// What a system is made with.
pub(crate) struct Settings {
    /// The folder of everything durable.
    pub(crate) data: PathBuf,
    /// Where the gateway listens; port 0 takes a free one.
    pub(crate) listen: SocketAddr,
    /// A broker that is not ours; `None` is the embedded one.
    pub(crate) broker: Option<Remote>,
    /// Lets everybody in.
    pub(crate) no_auth: bool,
    /// The language model, if one is configured.
    pub(crate) model: Option<sluice_processors::ModelConfig>,
}

/// Everything, serving.
pub(crate) struct System {
    /// Where the gateway listens.
    pub(crate) address: SocketAddr,
    gateway: sluice_gateway::Gateway,
    layers: Layers,
    bus: Bus,
    store: Store,
}

impl System {
    /// Starts everything in order; on return the gateway serves.
    pub(crate) async fn start(settings: Settings) -> anyhow::Result<Self> {
        // An address that can never work is told before anything is made.
        settings.broker.as_ref().map_or(Ok(()), Remote::check)?;
        std::fs::create_dir_all(&settings.data)
            .with_context(|| format!("the data folder '{}' cannot be made", settings.data.display()))?;
        let store = Store::open(&settings.data).context("the store could not be opened")?;
        let bus = Bus::open(settings.broker.as_ref(), &settings.data).await?;
        let layers = Layers::new(&bus);
        match serve(&settings, &layers, &bus, store.stores()).await {
            Ok(gateway) => {
                let address = gateway.local_addr;
                Ok(Self { address, gateway, layers, bus, store })
            }
            Err(error) => {
                layers.stop(Duration::from_secs(1)).await;
                close(&bus, store).await;
                Err(error)
            }
        }
    }

    /// The topics of a run that the broker still holds.
    pub(crate) async fn topics_of(&self, run: &str) -> anyhow::Result<Vec<String>> {
        let all = self.bus.admin.list("").await.context("the broker cannot list its topics")?;
        let own =
            all.into_iter().filter(|seen| seen.exists && seen.topic.name().ends_with(&format!(":{run}")));
        Ok(own.map(|seen| seen.topic.to_string()).collect())
    }

    /// Stops in reverse order: nothing new in, work under way to its end or the deadline, then the rest is cut by name.
    pub(crate) async fn stop(self) {
        self.gateway.shutdown().await;
        self.layers.stop(DRAIN_TIMEOUT).await;
        close(&self.bus, self.store).await;
    }
}

/// Parts of the process in the order they start; they stop the other way round, so that each can still ask those below.
struct Layers {
    /// The reply inbox.
    base: Process,
    /// Config and its receiver.
    platform: Process,
    /// Everything that asks config.
    services: Process,
}

impl Layers {
    fn new(bus: &Bus) -> Self {
        let base = Process::new(bus.broker.clone(), CancellationToken::new());
        Self { platform: base.part(), services: base.part(), base }
    }

    async fn stop(&self, within: Duration) {
        for layer in [&self.services, &self.platform, &self.base] {
            // Each task that is cut has been logged by name.
            layer.shutdown(within).await;
        }
    }
}

async fn close(bus: &Bus, store: Store) {
    bus.close().await;
    store.close().await;
}

async fn serve(
    settings: &Settings,
    layers: &Layers,
    bus: &Bus,
    stores: Stores,
) -> anyhow::Result<sluice_gateway::Gateway> {
    let admin = bus.admin.clone();

    let platform = &layers.platform;
    sluice_config::start(sluice_config::Parts {
        process: platform.clone(),
        admin: admin.clone(),
        tables: stores.tables.clone(),
    })
    .await
    .context("the config service did not start")?;
    let watch = ConfigWatch::start(platform, watch::RESYNC_INTERVAL);
    let process = &layers.services;
    let config = || async { ConfigClient::new(&process.replies).await.context("config cannot be asked") };
    seed(&config().await?).await.context("the standard configuration could not be put")?;

    let mode = if settings.no_auth {
        sluice_iam::Mode::NoAuth
    } else {
        sluice_iam::Mode::AdminKey { file: settings.data.join("admin.key") }
    };
    sluice_iam::start(sluice_iam::Parts {
        process: process.clone(),
        admin: admin.clone(),
        tables: stores.tables.clone(),
        config: config().await?,
        mode,
    })
    .await
    .context("the identity service did not start")?;

    sluice_library::start(sluice_library::Parts::new(
        process.clone(),
        admin.clone(),
        stores.clone(),
        config().await?,
        watch.clone(),
    ))
    .await
    .context("the library did not start")?;

    let roster = sluice_processors::roster();
    let model = sluice_processors::Model::new(settings.model.clone())?;
    let resources = sluice_processors::resources(stores, model, &process.metrics);
    let catalogue = roster.catalogue(process, &watch, &resources).context("a processor cannot run here")?;
    sluice_flow::start(sluice_flow::Parts {
        process: process.clone(),
        admin,
        watch: watch.clone(),
        config: config().await?,
        catalogue,
        // On a shared broker, processors that we do not know may belong to others.
        options: sluice_flow::Options { only_own_processors: bus.is_own(), ..Default::default() },
    })
    .await;
    Host::new(process.clone(), roster, watch.clone(), resources, HostOptions::default()).start();

    sluice_gateway::start(sluice_gateway::Parts {
        process: process.clone(),
        watch,
        options: sluice_gateway::Options::new(settings.listen),
    })
    .await
    .context("the gateway did not start")
}

/// Puts what a new workspace starts with, once per data folder.
async fn seed(config: &ConfigClient) -> anyhow::Result<()> {
    use sluice_schema::{record, standard};
    const FLAG: (&str, &str, &str) = ("init-state", "template-seed", "\"sluice-1\"");
    let seeded = config.get(record::SYSTEM, FLAG.0, FLAG.1).await?;
    if seeded.is_some() {
        return Ok(());
    }
    let put =
        |kind: &str, key: &str, text: &str| sluice_sdk::config::value(record::TEMPLATE, kind, key, text);
    let mut puts: Vec<_> =
        standard::config().iter().map(|one| put(one.config_type, &one.key, &one.value)).collect();
    puts.extend(standard::BLUEPRINTS.iter().map(|(name, text)| put(record::BLUEPRINT, name, text)));
    puts.push(sluice_sdk::config::value(record::SYSTEM, FLAG.0, FLAG.1, FLAG.2));
    config.apply(sluice_sdk::Apply { puts, ..Default::default() }).await?;
    Ok(())
}
