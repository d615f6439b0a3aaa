//! Wiring: settings become a running system. The one place that knows every service; services know none of each other.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use prometheus_client::metrics::gauge::Gauge;
use sluice_bus::ErrorKind;
use sluice_gateway::NoRoom;
use sluice_schema::record;
use sluice_sdk::{
    Backoff, Catalogue, ConfigClient, ConfigError, ConfigWatch, Host, HostOptions, Process, Roster, watch,
};
use sluice_store::{Embedded as Store, FolderLock, Stores};
use tokio_util::sync::CancellationToken;

use crate::backup::Source;
use crate::bus::{Bus, Remote};
use crate::control;
use crate::exit::{Code, Told};
use crate::folder::{self, Folder, Loss, Room, Stopped, Want};
use crate::services::{Selection, Service};
use crate::standard;

/// How long work under way may take once the system is told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a start waits for another process to let go of the data folder.
const FOLDER_TIMEOUT: Duration = Duration::from_secs(3);
/// How often what is known of the store is counted, as long as counting takes little.
const COUNT_PAUSE: Duration = Duration::from_secs(5);
/// Pauses between tries of a start that waits for others.
const START_RETRY: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(5) };

/// What a system is made with.
pub(crate) struct Settings {
    /// What of it runs in this process.
    pub(crate) selection: Selection,
    /// The folder of everything durable; only a process that keeps nothing needs none.
    pub(crate) data: Option<PathBuf>,
    /// What the gateway is set to: where it listens and whom it serves.
    pub(crate) gateway: sluice_gateway::Options,
    /// Begins empty where the folder would be refused, and sets aside what is in it.
    pub(crate) init_empty: bool,
    /// Losses in the folder that are accepted.
    pub(crate) accept_loss: Vec<Loss>,
    /// A broker that is not ours; `None` is the embedded one.
    pub(crate) broker: Option<Remote>,
    /// Lets everybody in.
    pub(crate) no_auth: bool,
    /// The language model, if one is configured.
    pub(crate) model: Option<sluice_processors::ModelConfig>,
    /// Where vectors come from.
    pub(crate) embedder: sluice_processors::EmbedderConfig,
    /// How documents are read.
    pub(crate) decoding: sluice_processors::DecodingConfig,
    /// The object store that keeps the content of documents, and how it is reached; `None` is the data folder.
    pub(crate) objects: Option<(String, sluice_databases::Settings)>,
}

/// Everything that was selected, serving.
pub(crate) struct System {
    /// Where the gateway listens, if there is one here.
    pub(crate) address: Option<SocketAddr>,
    gateway: Option<sluice_gateway::Gateway>,
    layers: Layers,
    opened: Opened,
}

/// Why a process ends by itself.
pub(crate) enum Failure {
    /// The disk under store or broker.
    Disk(String),
    /// Another process serves the same with data of its own.
    Displaced(String),
}

/// What is durable, and the broker.
struct Opened {
    folder: Option<Arc<Folder>>,
    store: Option<Arc<Store>>,
    bus: Bus,
}

impl System {
    /// Starts everything in order; on return it serves. What runs in other processes is waited for.
    pub(crate) async fn start(settings: Settings) -> anyhow::Result<Self> {
        let data = settings.data.clone();
        Self::start_on(settings).await.map_err(|error| match data {
            Some(data) if is_damage(&error) => of_damage(&data, &error),
            _ => error,
        })
    }

    async fn start_on(settings: Settings) -> anyhow::Result<Self> {
        // An address that can never work is told before anything is made.
        settings.broker.as_ref().map_or(Ok(()), Remote::check)?;
        if let Some(data) = &settings.data {
            folder::keep_private();
            std::fs::create_dir_all(data)
                .with_context(|| format!("the data folder '{}' cannot be made", data.display()))?;
        }
        let opened = Opened::open(&settings).await?;
        let layers = Layers::new(&opened.bus);
        let served = async {
            let stores = match &opened.store {
                Some(store) => Some(stores(store, &opened, &settings).await?),
                None => None,
            };
            opened.claim(&settings.selection, &layers.base).await?;
            let gateway = serve(&settings, &layers, &opened.bus, stores, opened.no_room()).await?;
            if let Some(folder) = &opened.folder {
                folder.settle(settings.objects.as_ref().map(|(url, _)| url.as_str())).await?;
            }
            anyhow::Ok(gateway)
        };
        match served.await {
            Ok(gateway) => {
                let address = gateway.as_ref().map(|gateway| gateway.local_addr);
                opened.go_on_counting(&layers.base);
                opened.answer_commands(&settings, &layers.base).await;
                Ok(Self { address, gateway, layers, opened })
            }
            Err(error) => {
                let is_damaged = opened.store.as_ref().is_some_and(|store| is_met(&error, store));
                let error = match &settings.data {
                    Some(data) if is_damaged => of_damage(data, &error),
                    _ => error,
                };
                layers.stop(Duration::from_secs(1)).await;
                // The first error is the one to report.
                let _ = opened.close().await;
                Err(error)
            }
        }
    }

    /// Waits until this process can serve no longer, and returns why; for ever while all is well.
    pub(crate) async fn failed(&self) -> Failure {
        let store = async {
            let Some(store) = &self.opened.store else { return std::future::pending().await };
            let mut failure = store.failure();
            match failure.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone().unwrap_or_default(),
                // It was closed.
                Err(_) => std::future::pending().await,
            }
        };
        let broker = async {
            match self.opened.bus.embedded() {
                Some(broker) => broker.failed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            reason = store => Failure::Disk(reason),
            reason = broker => Failure::Disk(reason),
            reason = self.opened.bus.claim_lost() => Failure::Displaced(reason),
        }
    }

    /// The topics of a run that the broker still holds.
    pub(crate) async fn topics_of(&self, run: &str) -> anyhow::Result<Vec<String>> {
        let all = self.opened.bus.admin.list("").await.context("the broker cannot list its topics")?;
        let own =
            all.into_iter().filter(|seen| seen.exists && seen.topic.name().ends_with(&format!(":{run}")));
        Ok(own.map(|seen| seen.topic.to_string()).collect())
    }

    /// Stops in reverse order: nothing new in, work under way to its end or the deadline, then the rest is cut by name.
    ///
    /// # Errors
    /// If what was acknowledged is gone with this process.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        if let Some(gateway) = &self.gateway {
            gateway.shutdown().await;
        }
        self.layers.stop(DRAIN_TIMEOUT).await;
        self.opened.close().await
    }
}

impl Opened {
    /// Opens store and broker, once the folder is known to be whole.
    async fn open(settings: &Settings) -> anyhow::Result<Self> {
        if settings.selection.keepers().is_empty() {
            let bus = Bus::open(settings.broker.as_ref(), settings.data.as_deref()).await?;
            return Ok(Self { folder: None, store: None, bus });
        }
        let data = settings.data()?;
        let lock = hold(data).await.context("the store could not be opened")?;
        match Self::open_held(settings, data, &lock).await {
            Ok(opened) => {
                let is_whole = opened.folder.as_ref().is_some_and(|folder| !folder.is_fresh());
                if settings.init_empty && is_whole {
                    opened.close().await?;
                    return Err(Told::usage(format!(
                        "there is nothing wrong with the data folder '{}'",
                        data.display()
                    ))
                    .next("leave --init-empty out, or begin in another folder")
                    .into());
                }
                Ok(opened)
            }
            Err(error)
                if folder::is_refusal(&error)
                    && (settings.init_empty || folder::was_never_served(data, &error)) =>
            {
                let aside = folder::set_aside(data, &lock)?;
                tracing::warn!(
                    why = format!("{error:#}"), aside = %aside.display(),
                    "beginning with an empty data folder; what was in it is set aside"
                );
                Self::open_held(settings, data, &lock).await
            }
            Err(error) => Err(error),
        }
    }

    async fn open_held(settings: &Settings, data: &Path, lock: &FolderLock) -> anyhow::Result<Self> {
        let want = Want {
            broker: settings.broker.is_none(),
            admin_key: settings.selection.runs(Service::Iam) && !settings.no_auth,
            accept: settings.accept_loss.clone(),
        };
        let folder = Folder::look(data, Some(lock.clone()), want.clone())?;
        // Whoever accepts a loss has seen the refusal.
        if want.accept.is_empty() {
            Stopped::rehearse(data, lock, &want).await?;
        }
        folder.begin().await?;
        let store = folder.open_store().context("the store could not be opened")?;
        let bus = match folder.admit_opened(&store).await {
            Err(error) => Err(error),
            Ok(()) => match &settings.broker {
                Some(remote) => Bus::connect(remote).await,
                None => Self::embed(&folder).await,
            },
        };
        let bus = match bus {
            Ok(bus) => bus,
            Err(error) => {
                store.close().await;
                return Err(error);
            }
        };
        if let Err(error) = folder.admit(&store, bus.embedded()).await {
            let error = if is_met(&error, &store) { of_damage(data, &error) } else { error };
            bus.close().await;
            store.close().await;
            return Err(error);
        }
        Ok(Self { folder: Some(Arc::new(folder)), store: Some(Arc::new(store)), bus })
    }

    async fn embed(folder: &Folder) -> anyhow::Result<Bus> {
        let config = folder.broker_config().await;
        match Bus::embed(config.clone()) {
            Err(error @ sluice_bus::Error::Log { .. }) if folder.accepts(Loss::Broker) => {
                let aside = folder.set_broker_aside()?;
                tracing::warn!(%error, aside = %aside.display(), "going on with an empty log, as was asked for; the old one is set aside");
                Bus::embed(config).map_err(|error| folder.broker_error(error))
            }
            embedded => {
                let bus = embedded.map_err(|error| folder.broker_error(error))?;
                // An end that may have been promised was cut.
                if config.set_aside.is_some_and(|aside| aside.exists()) {
                    folder.log_is_lost();
                }
                Ok(bus)
            }
        }
    }

    /// Claims what this process keeps data for. Before that, nothing may be answered.
    async fn claim(&self, selection: &Selection, process: &Process) -> anyhow::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        self.bus.claim(&selection.keepers(), &folder.id().await, process).await
    }

    /// What tells why the store takes nothing that needs room.
    fn no_room(&self) -> Option<NoRoom> {
        let store = self.store.clone()?;
        Some(Arc::new(move || store.no_room()))
    }

    /// Lets the folder count on while there is work.
    fn go_on_counting(&self, process: &Process) {
        let (Some(folder), Some(store)) = (self.folder.clone(), self.store.clone()) else { return };
        look_after(&store, folder.is_read_at(), process);
        let (broker, stop) = (self.bus.embedded().cloned(), process.stop.clone());
        let trouble = process.trouble.clone();
        process.tasks.spawn("folder/pulse", async move {
            let mut known = None;
            loop {
                if stop.run_until_cancelled(tokio::time::sleep(folder::PULSE)).await.is_none() {
                    return;
                }
                if let Err(error) = folder.check_in_place(&store, broker.as_ref()).await {
                    let reason = format!("{error:#}");
                    if known.replace(reason.clone()) != Some(reason) {
                        tracing::error!("{error:#}");
                    }
                    trouble.set(Some(folder::NOT_IN_PLACE));
                    continue;
                }
                if known.take().is_some() {
                    trouble.set(None);
                    tracing::info!("all parts of the data folder are in their places again");
                }
                if let Err(error) = folder.pulse(&store, broker.as_ref()).await {
                    tracing::debug!(error = format!("{error:#}"), "the data folder does not count on now");
                }
            }
        });
    }

    /// Lets commands on this machine ask for backups.
    async fn answer_commands(&self, settings: &Settings, process: &Process) {
        let (Some(folder), Some(store), Some(data)) = (&self.folder, self.store.clone(), &settings.data)
        else {
            return;
        };
        let listener = control::listen(data);
        if let Err(error) = &listener {
            tracing::warn!(
                %error, socket = %control::place(data).display(),
                "'sluice backup' cannot reach this process, which tries again every {} s to listen there", folder::PULSE.as_secs()
            );
        }
        let (id, restored_from, folder) = (folder.id().await, folder.restored_from().await, folder.clone());
        let (broker, objects) = (self.bus.embedded().cloned(), settings.objects.clone());
        let stop = process.stop.clone();
        process.tasks.spawn("folder/control", async move {
            let running = control::Running::default();
            let source = || Source {
                path: folder.is_read_at(),
                folder: id.clone(),
                restored_from: restored_from.clone(),
                store: store.clone(),
                broker: broker.clone(),
                objects: objects.clone(),
            };
            let here = || folder.is_read_at();
            let answering = async {
                let mut listening = listener;
                loop {
                    let was_deaf = listening.is_err();
                    match listening {
                        Ok(listener) => tokio::select! {
                            () = control::serve(listener, &running, source) => {}
                            () = control::gone(here) => {}
                        },
                        Err(error) => {
                            tracing::debug!(%error, "'sluice backup' cannot reach this process");
                            tokio::time::sleep(folder::PULSE).await;
                        }
                    }
                    listening = control::listen(&here());
                    if was_deaf && listening.is_ok() {
                        tracing::info!("'sluice backup' reaches this process");
                    }
                }
            };
            stop.run_until_cancelled(answering).await;
            control::remove(&here());
        });
    }

    async fn close(&self) -> anyhow::Result<()> {
        let closed = match (&self.folder, &self.store) {
            (Some(folder), Some(store)) => folder.close(store, self.bus.embedded()).await,
            _ => Ok(()),
        };
        self.bus.close().await;
        closed
    }
}

impl Settings {
    fn data(&self) -> Result<&std::path::Path, Told> {
        self.data.as_deref().ok_or_else(|| {
            let keepers = self.selection.keepers().join(", ");
            Told::usage(format!("{keepers} keep data, and there is no folder for it"))
                .next("give one with --data DIR")
        })
    }
}

/// Whether a start failed because something in the store is not what was stored.
fn is_damage(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref()).any(sluice_store::Error::is_damage)
}

/// The same where it was told through another service, or in the middle of a write: the store knows what it has met.
fn is_met(error: &anyhow::Error, store: &Store) -> bool {
    let is_through_others = error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(ConfigError::Refused { .. }))
            || matches!(cause.downcast_ref(), Some(sluice_store::Error::OutcomeUnknown { .. }))
    });
    let has_met = || {
        let upkeep = store.upkeep();
        upkeep.damaged_blocks() > 0
            || !upkeep.report().damage.is_empty()
            || store.stamp().is_err_and(|error| error.is_damage())
    };
    is_through_others && has_met()
}

/// How that is told, unless it is already: with the ways out.
fn of_damage(data: &Path, error: &anyhow::Error) -> anyhow::Error {
    if let Some(told) = error.chain().find_map(|cause| cause.downcast_ref::<Told>()) {
        return told.clone().into();
    }
    let shown = data.display();
    Told::new(Code::Failed, format!("the data folder '{shown}' is damaged, and nothing is served from it: {error:#}"))
        .next(format!(
            "restore the last whole backup: sluice restore BACKUP --data NEW; without one, `sluice salvage {shown} --data NEW` copies \
             what can be read and names the rest; `sluice verify {shown}` names all that is damaged"
        ))
        .into()
}

/// Reports once what this machine lacks to confine the processes that read documents and render prompts.
async fn tell_confinement() {
    match sluice_processors::sandbox::Confinement::of_this_machine().await {
        Ok(confinement) if confinement.is_whole() => {}
        Ok(confinement) => tracing::warn!(
            "processes that read documents and render prompts are limited here, and not fully confined: {}; see docs/decisions/0009-confined-readers.md",
            confinement.text()
        ),
        Err(error) => tracing::warn!(
            %error,
            "whether processes that read documents and render prompts are confined could not be found out"
        ),
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

async fn serve(
    settings: &Settings,
    layers: &Layers,
    bus: &Bus,
    stores: Option<Stores>,
    no_room: Option<NoRoom>,
) -> anyhow::Result<Option<sluice_gateway::Gateway>> {
    let (selection, admin) = (&settings.selection, &bus.admin);
    let kept = || stores.clone().context("a service that keeps data was started without a store");

    let platform = &layers.platform;
    if selection.runs(Service::Config) {
        sluice_config::start(sluice_config::Parts {
            process: platform.clone(),
            admin: admin.clone(),
            tables: kept()?.tables,
        })
        .await
        .context("the config service did not start")?;
    }
    let watch = ConfigWatch::start(platform, watch::RESYNC_INTERVAL);
    let process = &layers.services;
    let config = || config_when_it_answers(process, &watch);
    if selection.runs(Service::Config) {
        standard::settle(&config().await?).await.context("the standard configuration could not be put")?;
    }

    if selection.runs(Service::Iam) {
        let mode = if settings.no_auth {
            sluice_iam::Mode::NoAuth
        } else {
            sluice_iam::Mode::AdminKey { file: settings.data()?.join("admin.key") }
        };
        let mut attempt = 0;
        loop {
            let parts = sluice_iam::Parts {
                process: process.clone(),
                admin: admin.clone(),
                tables: kept()?.tables,
                config: config().await?,
                mode: mode.clone(),
            };
            match sluice_iam::start(parts).await {
                Ok(()) => break,
                // Config went away between two questions: it is asked again when it is back.
                Err(sluice_iam::Error::Config(ConfigError::Bus(error)))
                    if error.kind() != ErrorKind::Refused =>
                {
                    watch.tell_away(&error);
                }
                Err(error) => return Err(error).context("the identity service did not start"),
            }
            tokio::time::sleep(START_RETRY.pause(attempt)).await;
            attempt += 1;
        }
    }

    if selection.runs(Service::Library) {
        sluice_library::start(sluice_library::Parts::new(
            process.clone(),
            admin.clone(),
            kept()?,
            config().await?,
            watch.clone(),
        ))
        .await
        .context("the library did not start")?;
    }

    let roster = sluice_processors::roster();
    let model = sluice_processors::Model::new(settings.model.clone())?;
    if selection.runs(Service::Flow) {
        sluice_flow::start(sluice_flow::Parts {
            process: process.clone(),
            admin: admin.clone(),
            watch: watch.clone(),
            config: config().await?,
            catalogue: catalogue(&roster, process, &watch, stores.clone(), model.clone()).await?,
            // On a shared broker, processors that we do not know may belong to others.
            options: sluice_flow::Options { only_own_processors: bus.is_own(), ..Default::default() },
        })
        .await;
    }
    if selection.runs_processors() {
        let mine = roster.only(|id| selection.runs_processor(id));
        let embedder = sluice_processors::Embedder::open(settings.embedder.clone()).await;
        let resources = sluice_processors::resources(stores.clone(), model, &process.metrics)
            .with(embedder.context("texts cannot be embedded")?)
            .with(sluice_processors::Decoding::new(settings.decoding.clone()));
        if ["document-decoder", "prompt", "prompt-rag"].iter().any(|id| selection.runs_processor(id)) {
            process.tasks.spawn("processors/confinement", tell_confinement());
        }
        sluice_processors::removals::start(process, &watch, &mine, &resources);
        Host::new(process.clone(), mine, watch.clone(), resources, HostOptions::default()).start();
    }

    if !selection.runs(Service::Gateway) {
        return Ok(None);
    }
    let gateway = sluice_gateway::start(sluice_gateway::Parts {
        process: process.clone(),
        watch,
        options: settings.gateway.clone(),
        no_room,
    });
    gateway.await.map(Some).context("the gateway did not start")
}

/// Gives room back, checks what is kept, and counts both, while the store is idle.
fn look_after(store: &Store, data: PathBuf, process: &Process) {
    let (upkeep, stop) = (store.upkeep(), process.stop.clone());
    let [file, used, content, log, damage]: [Gauge; 5] = Default::default();
    let metrics = &process.metrics;
    metrics.register("sluice_store_file_bytes", "What the store's file takes on the disk", file.clone());
    metrics.register("sluice_store_used_bytes", "What of the store's file is in use", used.clone());
    metrics.register(
        "sluice_content_file_bytes",
        "What the files of content take on the disk",
        content.clone(),
    );
    metrics.register("sluice_log_file_bytes", "What the broker's log takes on the disk", log.clone());
    metrics.register("sluice_store_damaged", "Damage that reads and checks of the store met", damage.clone());
    let counting = upkeep.clone();
    let counted = async move {
        loop {
            let begun = Instant::now();
            let report = counting.report();
            let looked = data.clone();
            let room = tokio::task::spawn_blocking(move || Room::of(&looked)).await.unwrap_or_default();
            let met = report.damage.len().max(counting.damaged_blocks()) as u64;
            for (gauge, count) in [
                (&file, room.store_bytes),
                (&used, report.used_bytes),
                (&content, room.content_bytes),
                (&log, room.log_bytes),
                (&damage, met),
            ] {
                gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
            }
            // One percent of the time, however many files there are.
            tokio::time::sleep(COUNT_PAUSE.max(begun.elapsed() * 100)).await;
        }
    };
    process.tasks.spawn("store/upkeep", async move {
        stop.run_until_cancelled(async { tokio::join!(upkeep.tend(), counted) }).await;
    });
}

/// The stores, with content where it was told to be.
async fn stores(store: &Store, opened: &Opened, settings: &Settings) -> anyhow::Result<Stores> {
    let mut stores = store.stores();
    if !settings.selection.runs(Service::Library) {
        return Ok(stores);
    }
    let known = sluice_databases::used_by(&*store.tables()).await?;
    let Some((url, how)) = &settings.objects else {
        return match known {
            None => Ok(stores),
            Some(known) => {
                Err(Told::usage(format!("the content of this folder's documents rests in {known}"))
                    .next(format!("--objects {known}"))
                    .into())
            }
        };
    };
    if known.is_none() && !stores.blobs.list("", None, 1).await?.is_empty() {
        return Err(Told::usage("the content of this folder's documents rests in the data folder itself")
            .next("leave --objects out, or start with another data folder")
            .into());
    }
    let mut how = how.clone();
    if let Some(folder) = &opened.folder {
        how.owner = Some(folder.id().await);
        how.accept_loss = folder.accepts(Loss::Objects);
    }
    let connected = sluice_databases::connect(url, &how, store.tables()).await;
    stores.blobs = connected.map_err(|error| match error {
        // What is wrong with the folder's content, not with how the object store is reached.
        sluice_store::Error::Refused { ref reason }
            if reason.contains("mark of this data folder") || reason.contains("that the tables name") =>
        {
            anyhow::Error::from(Told::new(Code::Failed, error.to_string()).next(format!(
                "check --objects and --objects-endpoint; to go on without that content: --accept-loss {}",
                Loss::Objects
            )))
        }
        other => anyhow::Error::from(other).context("the object store cannot be used"),
    })?;
    Ok(stores)
}

/// Takes the data folder. A process that was killed a moment ago may not have let go of it yet.
async fn hold(data: &Path) -> anyhow::Result<FolderLock> {
    crate::backup::refuse_backup(data)?;
    let until = tokio::time::Instant::now() + FOLDER_TIMEOUT;
    loop {
        match FolderLock::take(data) {
            Err(sluice_store::Error::Locked { .. }) if tokio::time::Instant::now() < until => {
                tokio::time::sleep(START_RETRY.min).await;
            }
            taken => return Ok(taken?),
        }
    }
}

/// A client of the config service, once that answers; in whichever process it runs, it may start later than this one.
async fn config_when_it_answers(process: &Process, watch: &ConfigWatch) -> anyhow::Result<ConfigClient> {
    let mut attempt = 0;
    loop {
        let error = match ConfigClient::new(&process.replies).await {
            Ok(client) => match client.get(record::SYSTEM, standard::SEEDED.0, standard::SEEDED.1).await {
                Ok(_) => {
                    watch.tell_back();
                    return Ok(client);
                }
                Err(error) => error,
            },
            Err(error) => error.into(),
        };
        if matches!(&error, ConfigError::Refused { .. }) {
            return Err(error).context("config cannot be asked");
        }
        watch.tell_away(&error);
        tokio::time::sleep(START_RETRY.pause(attempt)).await;
        attempt += 1;
    }
}

/// What every processor reads and writes. It is learned by binding each, which a process without stores does on an empty
/// one that it puts away again.
async fn catalogue(
    roster: &Roster,
    process: &Process,
    watch: &ConfigWatch,
    stores: Option<Stores>,
    model: sluice_processors::Model,
) -> anyhow::Result<Catalogue> {
    let learn = |stores| {
        let resources = sluice_processors::resources(Some(stores), model, &sluice_sdk::Metrics::default());
        roster.catalogue(process, watch, &resources).context("a processor cannot run here")
    };
    let Some(stores) = stores else {
        let folder = tempfile::tempdir().context("no temporary folder")?;
        let empty = Store::open(folder.path()).context("an empty store could not be opened")?;
        let learned = learn(empty.stores());
        empty.close().await;
        return learned;
    };
    learn(stores)
}
