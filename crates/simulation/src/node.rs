//! The processes of a world: each begins, dies without notice, and begins again, as something that watches over it would
//! have it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sluice_bus::{Embedded, Inbox, Subscription};
use sluice_gateway::RouteWatch;
use sluice_schema::exchange;
use sluice_schema::message::{Chunk, EmbeddingsRequest, EmbeddingsResponse, Error};
use sluice_schema::record::{self, ProcessorEntry};
use sluice_sdk::{
    BindError, ConfigClient, ConfigWatch, Failure, Host, HostOptions, Inputs, Out, Ports, Process, Processor,
    Resources, Responder, Roster,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::chance::Chance;
use crate::line::Line;
use crate::tables::Memory;

/// What a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Config,
    Flow,
    Gateway,
    /// Processors of ours.
    Worker,
    /// A processor of somebody else's: it reads what its entry names, and knows nothing of runs.
    Stranger,
}

/// What every process may touch.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) broker: Embedded,
    pub(crate) tables: Memory,
    pub(crate) chance: Arc<Chance>,
    pub(crate) done: Done,
    pub(crate) routes: Routes,
}

/// What the gateway that runs now routes.
#[derive(Clone, Default)]
pub(crate) struct Routes(Arc<Mutex<(usize, Option<RouteWatch>)>>);

impl Routes {
    fn put(&self, routes: RouteWatch) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *now = (now.0 + 1, Some(routes));
    }

    /// Which gateway it is, and its routes.
    pub(crate) fn now(&self) -> Option<(usize, RouteWatch)> {
        let now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Some((now.0, now.1.clone()?))
    }
}

/// Messages that came out at the end.
#[derive(Clone, Default)]
pub(crate) struct Done(Arc<Mutex<BTreeMap<String, u64>>>);

impl Done {
    pub(crate) fn add(&self, id: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(id.to_owned()).or_default() += 1;
    }

    pub(crate) fn has(&self, id: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(id)
    }
}

pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) line: Line,
    crash: Arc<Notify>,
}

impl Node {
    /// Begins a process and whatever watches over it.
    pub(crate) fn start(kind: Kind, name: &'static str, shared: &Shared) -> Self {
        let line = Line::new(shared.broker.clone(), shared.chance.clone(), name);
        let crash = Arc::new(Notify::new());
        shared.chance.may_crash(name, crash.clone());
        tokio::spawn(watch_over(kind, line.clone(), shared.clone(), crash.clone()));
        Self { kind, line, crash }
    }

    /// The process dies on the spot.
    pub(crate) fn crash(&self) {
        self.crash.notify_one();
    }
}

async fn watch_over(kind: Kind, line: Line, shared: Shared, crash: Arc<Notify>) {
    let chance = shared.chance.clone();
    loop {
        let process = Process::new(Arc::new(line.clone()), CancellationToken::new());
        chance.tell(|| format!("{} begins", line.name));
        let served = async {
            match serve(kind, &process, &line, &shared).await {
                Ok(()) => std::future::pending().await,
                Err(why) => why,
            }
        };
        tokio::select! {
            why = served => chance.tell(|| format!("{} could not begin: {why}", line.name)),
            () = crash.notified() => chance.tell(|| format!("{} dies", line.name)),
        }
        // Without the stop signal: nothing gets to tidy up.
        process.tasks.finish(Duration::ZERO).await;
        drop(process);
        tokio::time::sleep(chance.duration(Duration::from_secs(3))).await;
    }
}

async fn serve(kind: Kind, process: &Process, line: &Line, shared: &Shared) -> Result<(), String> {
    let watch = || ConfigWatch::start(process, sluice_sdk::watch::RESYNC_INTERVAL);
    match kind {
        Kind::Config => {
            let tables = Arc::new(shared.tables.of(line.name));
            let parts = sluice_config::Parts { process: process.clone(), admin: line.admin(), tables };
            sluice_config::start(parts).await.map_err(|error| error.to_string())
        }
        Kind::Flow => {
            let config = loop {
                match ConfigClient::new(&process.replies).await {
                    Ok(config) => break config,
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            };
            let parts = sluice_flow::Parts {
                process: process.clone(),
                admin: line.admin(),
                watch: watch(),
                config,
                catalogue: roster()
                    .catalogue(process, &watch(), &resources(shared))
                    .map_err(|e| e.to_string())?,
                options: sluice_flow::Options::default(),
            };
            sluice_flow::start(parts).await;
            Ok(())
        }
        Kind::Gateway => {
            shared.routes.put(RouteWatch::start(process, &watch()));
            Ok(())
        }
        Kind::Worker => {
            let options = HostOptions::default();
            Host::new(process.clone(), roster(), watch(), resources(shared), options).start();
            Ok(())
        }
        Kind::Stranger => {
            strange(process, &watch(), shared).await;
            Ok(())
        }
    }
}

fn roster() -> Roster {
    Roster::new().add::<First>().add::<Second>().add::<Vectors>()
}

fn resources(shared: &Shared) -> Resources {
    Resources::new().with(shared.done.clone()).with(shared.chance.clone())
}

/// Passes chunks on.
struct First {
    output: Out<Chunk>,
    chance: Arc<Chance>,
}

impl Processor for First {
    const NAME: &'static str = "first";

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        Ok(Self { output: ports.output("output")?, chance: ports.resource()? })
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.message("input", Self::pass);
    }
}

impl First {
    async fn pass(self: Arc<Self>, chunk: Chunk) -> Result<(), Failure> {
        let sent = self.output.send(&chunk).await;
        self.chance.tell(|| format!("first passes {} on: {sent:?}", chunk.document_id));
        sent
    }
}

/// Takes chunks; fails now and then, and takes its time.
struct Second {
    done: Done,
    chance: Arc<Chance>,
}

impl Processor for Second {
    const NAME: &'static str = "second";

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        Ok(Self { done: ports.resource()?, chance: ports.resource()? })
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.message("input", Self::take);
    }
}

impl Second {
    async fn take(self: Arc<Self>, chunk: Chunk) -> Result<(), Failure> {
        self.chance.pause().await;
        if self.chance.strikes("work fails", 5) {
            return Err(Failure::again("a fault"));
        }
        if chunk.document_id.contains("/bad/") {
            return Err(Failure::never("nobody could read it"));
        }
        self.chance.tell(|| format!("second is done with {}", chunk.document_id));
        self.done.add(&chunk.document_id);
        Ok(())
    }
}

/// Answers which run it belongs to.
struct Vectors {
    run: String,
    chance: Arc<Chance>,
}

impl Processor for Vectors {
    const NAME: &'static str = "vectors";

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        Ok(Self { run: ports.flow().to_owned(), chance: ports.resource()? })
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.request::<exchange::Embeddings, _, _>("request", Self::answer);
    }
}

impl Vectors {
    async fn answer(
        self: Arc<Self>,
        _: EmbeddingsRequest,
        _: Responder<exchange::Embeddings>,
    ) -> Result<EmbeddingsResponse, Error> {
        self.chance.pause().await;
        let number = run_number(&self.run).ok_or_else(|| Error::new("embeddings-error", "no run"))?;
        Ok(EmbeddingsResponse { vectors: vec![vec![number]], ..Default::default() })
    }
}

/// A run as a number: its flow's and its own.
pub(crate) fn run_number(run: &str) -> Option<f64> {
    let (flow, number) = run.split_once("-r").unwrap_or((run, "1"));
    Some(flow.strip_prefix('f')?.parse::<f64>().ok()? * 10_000.0 + number.parse::<f64>().ok()?)
}

/// Reads the queues of `second` beside ours, for as long as an entry names them, and a while longer.
async fn strange(process: &Process, watch: &ConfigWatch, shared: &Shared) {
    let types = [format!("{}second", record::PROCESSOR_PREFIX)];
    let mut views = watch.interest(&types);
    watch.ready(&types).await;
    let (tasks, done, chance) = (process.tasks.clone(), shared.done.clone(), shared.chance.clone());
    let broker = process.broker.clone();
    process.tasks.spawn("stranger", async move {
        let mut reading: BTreeMap<String, CancellationToken> = BTreeMap::new();
        loop {
            let view = views.borrow_and_update().clone();
            let mut wanted = BTreeMap::new();
            for (workspace, variant, text) in view.all(&types[0]) {
                let Ok(entry) = serde_json::from_str::<ProcessorEntry>(text) else { continue };
                let Some(topic) = entry.topics.get("input").and_then(|topic| topic.parse().ok()) else {
                    continue;
                };
                let name = format!("second--{workspace}--{variant}--input");
                wanted.insert(name.clone(), Subscription::Shared { topic, name, prefetch: 4 });
            }
            reading.retain(|name, stop| {
                let stays = wanted.contains_key(name);
                if !stays {
                    stop.cancel();
                }
                stays
            });
            for (name, to) in wanted {
                reading.entry(name).or_insert_with(|| {
                    let stop = CancellationToken::new();
                    let (broker, done, chance) = (broker.clone(), done.clone(), chance.clone());
                    let ending = stop.clone();
                    tasks.spawn("stranger/reader", async move {
                        while !ending.is_cancelled() {
                            if let Ok(inbox) = broker.subscribe(&to).await {
                                ending.run_until_cancelled(take_all(&*inbox, &done, &chance)).await;
                            }
                            ending.run_until_cancelled(tokio::time::sleep(Duration::from_secs(1))).await;
                        }
                    });
                    stop
                });
            }
            if views.changed().await.is_err() {
                return;
            }
        }
    });
}

async fn take_all(inbox: &dyn Inbox, done: &Done, chance: &Chance) {
    while let Ok(delivery) = inbox.next().await {
        chance.pause().await;
        match sluice_schema::wire::decode::<Chunk>(&delivery.message.body) {
            Ok(chunk) => {
                done.add(&chunk.document_id);
                delivery.ack();
            }
            Err(_) => delivery.ack(),
        }
    }
}
