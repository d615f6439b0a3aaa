//! Two workspaces in one system: what one of them sees is the same, whatever the other does.
//!
//! The first lives a life that its seed decides: it writes, reads and deletes values, starts and stops flows, hands work in,
//! asks its services. It lives it twice: alone, and beside a second one that uses the same names, fills what it may up to
//! its ceilings and beyond, floods its flows, hands in what fails, names the other's topics, and comes and goes. Nothing
//! fails by chance here, so all that differs is what the second one does.
//!
//! What is compared is what every call was told, in order: errors with their words, values, names, runs, phases, and what
//! became of each message. What may differ is what counts for the whole deployment or is a matter of time: how long a call
//! took, and the versions of config, of which there is one line for all; of these it is looked at that none goes back, and
//! that a compare-and-set is decided the same way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use sluice_bus::{Address, Broker as _, BrokerAdmin as _, Client, Embedded, Message, TopicSpec};
use sluice_schema::message::{
    Chunk, ConfigKey, ConfigRequest, ConfigResponse, ConfigValue, EmbeddingsRequest, Expectation,
    FlowRequest, FlowResponse, Metadata,
};
use sluice_schema::{ceilings, exchange, wire};
use sluice_sdk::{ConfigClient, Process};
use tokio_util::sync::CancellationToken;

use crate::chance::Chance;
use crate::node::Done;
use crate::world::{
    BLUEPRINTS, Broken, FLOWS, WORKSPACE, World, blueprint, collect, insist, phase_of, queues_of, run_of,
    topic,
};

/// What the first one does in its life.
const ACTS: usize = 40;
const PAUSE_MAX_MS: usize = 600;
/// What the second one does at most, and how much of it at once.
const DISTURBANCES: usize = 240;
const AT_ONCE: usize = 3;
/// Steps of such a world at most.
const STEPS_MAX: u64 = 2_000_000;
const OTHER: &str = "beta";
const PAGE: &str = "page";
/// How long a call may take: longer than any that does not hang.
const PATIENCE: Duration = Duration::from_secs(600);

/// Lives a life alone or beside another; what was seen in it.
pub(crate) async fn live(chance: Arc<Chance>, seed: u64, is_beside: bool) -> Result<Vec<String>, Broken> {
    chance.allow_steps(STEPS_MAX);
    let world = World::of_ours(chance.clone()).await;
    let mut one = Tenant::new(&world, WORKSPACE, world.letters.clone(), seed).await;
    let stop = CancellationToken::new();
    let disturbing = is_beside.then(|| {
        let (broker, done) = (world.broker.clone(), world.shared.done.clone());
        let (config, chance) = (world.config.clone(), chance.clone());
        tokio::spawn(disturb(broker, done, config, chance, seed, stop.clone()))
    });
    let mut seen = Vec::new();
    for _ in 0..ACTS {
        let told = one.act().await?;
        let pause = Duration::from_millis(one.below(PAUSE_MAX_MS) as u64);
        chance.tell(|| format!("{WORKSPACE}: {told}"));
        seen.push(told);
        tokio::time::sleep(pause).await;
    }
    stop.cancel();
    match disturbing {
        // What it was in the middle of need not end.
        Some(disturbing) if disturbing.is_finished() => {
            disturbing.await.map_err(|error| format!("the second one ended: {error}"))?;
        }
        Some(disturbing) => disturbing.abort(),
        None => {}
    }
    Ok(seen)
}

/// Where two lives differ first.
pub(crate) fn compare(alone: &[String], beside: &[String]) -> Result<(), Broken> {
    let differs = alone.iter().zip(beside).position(|(alone, beside)| alone != beside);
    match differs {
        None if alone.len() == beside.len() => Ok(()),
        None => Err(format!("{} acts alone, {} beside another", alone.len(), beside.len())),
        Some(at) => Err(format!("act {at}: alone it sees {}; beside another {}", alone[at], beside[at])),
    }
}

/// Somebody in a workspace, with what callers have: the queues of its services.
struct Tenant {
    workspace: &'static str,
    random: StdRng,
    config: Client<exchange::Config>,
    flow: Client<exchange::Flow>,
    process: Process,
    broker: Embedded,
    done: Done,
    letters: Done,
    running: BTreeMap<&'static str, String>,
    /// The version of each key as it was read last.
    versions: BTreeMap<String, i64>,
    seen_version: i64,
    messages: u64,
}

impl Tenant {
    async fn new(world: &World, workspace: &'static str, letters: Done, seed: u64) -> Self {
        Self::at(world.broker.clone(), world.shared.done.clone(), workspace, letters, seed).await
    }

    async fn at(broker: Embedded, done: Done, workspace: &'static str, letters: Done, seed: u64) -> Self {
        let process = Process::new(Arc::new(broker.clone()), CancellationToken::new());
        let topics = |service: &str| {
            ["request", "response"].map(|class| topic(&format!("{class}:tg:{service}:{workspace}")))
        };
        let (config, flow) = (topics("config"), topics("flow"));
        Self {
            workspace,
            random: StdRng::seed_from_u64(seed),
            config: insist(|| Client::new(&process.replies, config[0].clone(), &config[1])).await,
            flow: insist(|| Client::new(&process.replies, flow[0].clone(), &flow[1])).await,
            process,
            broker,
            done,
            letters,
            running: BTreeMap::new(),
            versions: BTreeMap::new(),
            seen_version: 0,
            messages: 0,
        }
    }

    fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end)
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// One thing it does, and all that it is told.
    async fn act(&mut self) -> Result<String, Broken> {
        let key = format!("k{}", self.below(5));
        Ok(match self.below(100) {
            0..16 => {
                let text = format!("text {}", self.below(1_000));
                self.put(&key, &text, None).await?
            }
            16..21 => self.delete(vec![key]).await?,
            21..33 => self.values("").await?,
            33..38 => self.told(ConfigRequest { r#type: PAGE.to_owned(), ..asked("list") }).await?,
            38..44 => self.told(asked("config")).await?,
            44..52 => {
                let text = format!("changed {}", self.below(1_000));
                // As it was read last: it may have been changed since, by itself.
                let version = self.versions.get(&key).copied().unwrap_or_default();
                self.put(&key, &text, Some(version)).await?
            }
            52..64 => {
                let (id, name) = (self.one_of(&FLOWS), self.one_of(&["demo", "wide", "gone"]));
                self.start(id, name).await
            }
            64..71 => {
                let (id, drain) = (self.one_of(&FLOWS), self.one_of(&[None, Some("discard")]));
                self.stop(id, drain).await
            }
            71..76 => {
                let flow_id = self.one_of(&FLOWS).to_owned();
                self.ask_flow(FlowRequest { flow_id, ..of_flow("get-flow") }).await
            }
            76..80 => self.ask_flow(of_flow("list-flows")).await,
            80..93 => self.hand_in().await?,
            _ => self.ask_vectors().await,
        })
    }

    async fn told(&mut self, request: ConfigRequest) -> Result<String, Broken> {
        let what = request.operation.clone();
        let answer = self.config.call(&request, PATIENCE).await;
        let answer = answer.map_err(|error| format!("{what} was not answered: {error}"))?;
        // How far the whole deployment has come.
        if answer.error.is_none() && answer.version != 0 {
            if answer.version < self.seen_version {
                return Err(format!("{what} went back from {} to {}", self.seen_version, answer.version));
            }
            self.seen_version = answer.version;
        }
        Ok(format!("{what}: {}", told(&answer)))
    }

    async fn put(&mut self, key: &str, text: &str, version: Option<i64>) -> Result<String, Broken> {
        let value = ConfigValue {
            r#type: PAGE.to_owned(),
            key: key.to_owned(),
            value: Some(text.to_owned()),
            ..Default::default()
        };
        let holds = |version| Expectation {
            r#type: PAGE.to_owned(),
            key: key.to_owned(),
            version,
            ..Default::default()
        };
        let expect = version.map(holds).into_iter().collect();
        let said = self.told(ConfigRequest { values: vec![value], r#if: expect, ..asked("put") }).await?;
        // A conflict names both versions.
        Ok(if version.is_some() { said.split(':').take(2).collect::<Vec<_>>().join(":") } else { said })
    }

    async fn delete(&mut self, keys: Vec<String>) -> Result<String, Broken> {
        let keys = keys.into_iter().map(|key| ConfigKey { r#type: PAGE.to_owned(), key }).collect();
        self.told(ConfigRequest { keys, ..asked("delete") }).await
    }

    async fn values(&mut self, cursor: &str) -> Result<String, Broken> {
        let cursor = cursor.to_owned();
        let request = ConfigRequest { r#type: PAGE.to_owned(), cursor, ..asked("getvalues") };
        let answer = self.config.call(&request, PATIENCE).await;
        let answer = answer.map_err(|error| format!("getvalues was not answered: {error}"))?;
        self.versions = answer.values.iter().map(|value| (value.key.clone(), value.version)).collect();
        Ok(format!("getvalues: {}", told(&answer)))
    }

    async fn ask_flow(&self, request: FlowRequest) -> String {
        let what = format!("{} {}", request.operation, request.flow_id);
        match self.flow.call(&request, PATIENCE).await {
            Ok(answer) => format!("{what}: {}", of_answer(&answer)),
            Err(error) => format!("{what} was not answered: {error}"),
        }
    }

    async fn start(&mut self, id: &'static str, name: &str) -> String {
        let request =
            FlowRequest { flow_id: id.to_owned(), blueprint_name: name.to_owned(), ..of_flow("start-flow") };
        let answer = self.flow.call(&request, PATIENCE).await;
        if let Ok(answer) = &answer
            && answer.error.is_none()
            && let Some(run) = run_of(answer)
        {
            self.running.insert(id, run);
        }
        let said = answer.map_or_else(|error| error.to_string(), |answer| of_answer(&answer));
        format!("start-flow {id} {name}: {said}")
    }

    async fn stop(&mut self, id: &'static str, drain: Option<&str>) -> String {
        self.running.remove(id);
        let drain = drain.map(str::to_owned);
        self.ask_flow(FlowRequest { flow_id: id.to_owned(), drain, ..of_flow("stop-flow") }).await
    }

    fn a_run(&mut self) -> Option<String> {
        let runs: Vec<String> = self.running.values().cloned().collect();
        (!runs.is_empty()).then(|| runs[self.below(runs.len())].clone())
    }

    async fn publish(&mut self, run: &str, is_bad: bool) -> (String, bool) {
        self.messages += 1;
        let kind = if is_bad { "bad" } else { "good" };
        let id = format!("{}/{run}/{kind}/{}", self.workspace, self.messages);
        let metadata = Metadata { id: id.clone(), ..Default::default() };
        let chunk = Chunk { metadata: Some(metadata), document_id: id.clone(), ..Default::default() };
        let to = Address::Topic(topic(&format!("flow:tg:load:{}:{run}", self.workspace)));
        let sent = self.broker.publish(&to, Message::new(wire::encode(&chunk))).await;
        (id, sent.is_ok())
    }

    /// Work goes in; what becomes of each piece.
    async fn hand_in(&mut self) -> Result<String, Broken> {
        let Some(run) = self.a_run() else { return Ok("nothing runs".to_owned()) };
        let mut seen = Vec::new();
        for _ in 0..=self.below(3) {
            let is_bad = self.below(5) == 0;
            let (id, is_taken) = self.publish(&run, is_bad).await;
            if !is_taken {
                seen.push(format!("{id} is refused"));
                continue;
            }
            let looked = async {
                loop {
                    if self.done.has(&id) {
                        return "done";
                    }
                    if self.letters.has(&id) {
                        return "parked";
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            let became = tokio::time::timeout(PATIENCE, looked).await;
            let became = became.map_err(|_| format!("nothing becomes of {id}"))?;
            seen.push(format!("{id} is {became}"));
        }
        Ok(seen.join(", "))
    }

    async fn ask_vectors(&mut self) -> String {
        let Some(run) = self.a_run() else { return "nothing runs".to_owned() };
        let [ask, answers] = ["request", "response"]
            .map(|class| topic(&format!("{class}:tg:embeddings:{}:{run}", self.workspace)));
        let client = Client::<exchange::Embeddings>::new(&self.process.replies, ask, &answers).await;
        let Ok(client) = client else { return format!("{run} cannot be asked") };
        let answer = client.call(&EmbeddingsRequest { texts: vec!["x".to_owned()] }, PATIENCE).await;
        match answer {
            Ok(answer) => format!("{run} says {:?} {:?}", answer.vectors, answer.error),
            Err(error) => format!("{run}: {error}"),
        }
    }

    /// One thing that somebody does who means no good.
    async fn disturb(&mut self, config: &ConfigClient) {
        let key = format!("k{}", self.below(20));
        let id = self.one_of(&FLOWS);
        match self.below(12) {
            0 => drop(self.put(&key, &"x".repeat(ceilings::VALUE_BYTES_MAX - 1_000), None).await),
            1 => drop(self.put(&key, &"x".repeat(ceilings::VALUE_BYTES_MAX + 1), None).await),
            2 => {
                let version = self.below(1_000) as i64;
                drop(self.put(&key, "mine", Some(version)).await);
            }
            3 => drop(self.delete((0..20).map(|n| format!("k{n}")).collect()).await),
            4 => drop(self.values("{\"base\":7").await),
            5 => {
                // What it names belongs to its neighbour.
                let definition = blueprint(2).to_string().replace("{workspace}", WORKSPACE);
                let (name, given) = (self.one_of(&BLUEPRINTS).to_owned(), definition);
                let put = FlowRequest {
                    blueprint_name: name,
                    blueprint_definition: given,
                    ..of_flow("put-blueprint")
                };
                self.ask_flow(put).await;
            }
            6 => {
                let size = self.below(3);
                let (name, given) = (self.one_of(&BLUEPRINTS).to_owned(), blueprint(size).to_string());
                let put = FlowRequest {
                    blueprint_name: name,
                    blueprint_definition: given,
                    ..of_flow("put-blueprint")
                };
                self.ask_flow(put).await;
            }
            7 => drop(self.start(id, BLUEPRINTS[0]).await),
            8 => drop(self.stop(id, Some("discard")).await),
            9 => {
                let run = self.a_run().unwrap_or_else(|| id.to_owned());
                for number in 0..60 {
                    self.publish(&run, number % 2 == 0).await;
                }
            }
            10 => drop(self.ask_vectors().await),
            _ if self.below(4) == 0 => {
                // Somebody takes the whole workspace away, and it comes back.
                let key = ConfigKey { r#type: "workspace".to_owned(), key: OTHER.to_owned() };
                let _ = config.delete("__workspaces__", vec![key]).await;
                self.running.clear();
                tokio::time::sleep(Duration::from_millis(500)).await;
                register(config).await;
            }
            _ => drop(self.told(asked("config")).await),
        }
        let pause = self.below(400) as u64;
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

async fn register(config: &ConfigClient) {
    let entry = || sluice_sdk::config::value("__workspaces__", "workspace", OTHER, "{\"enabled\": true}");
    insist(|| config.put("__workspaces__", vec![entry()])).await;
}

/// The second workspace, with several people in it at once.
async fn disturb(
    broker: Embedded,
    done: Done,
    config: Arc<ConfigClient>,
    chance: Arc<Chance>,
    seed: u64,
    stop: CancellationToken,
) {
    register(&config).await;
    let letters = topic(&format!("flow:tg:dead-letters:{OTHER}"));
    let spec = TopicSpec::with(letters.clone(), "librarian");
    insist(|| broker.ensure(&spec)).await;
    let parked = Done::default();
    let reading = tokio::spawn(collect(broker.clone(), letters, parked.clone(), chance.clone()));
    let people = (0..AT_ONCE).map(|number| {
        let (broker, done, parked) = (broker.clone(), done.clone(), parked.clone());
        let (config, stop, chance) = (config.clone(), stop.clone(), chance.clone());
        tokio::spawn(async move {
            let seed = seed.wrapping_mul(31).wrapping_add(number as u64 + 1);
            let mut one = Tenant::at(broker, done, OTHER, parked, seed).await;
            for _ in 0..DISTURBANCES / AT_ONCE {
                chance.count("disturbance");
                if stop.run_until_cancelled(one.disturb(&config)).await.is_none() {
                    return;
                }
            }
        })
    });
    for person in people.collect::<Vec<_>>() {
        if person.await.is_err() {
            chance.count("disturber ended");
        }
    }
    reading.abort();
}

fn asked(operation: &str) -> ConfigRequest {
    ConfigRequest { operation: operation.to_owned(), ..Default::default() }
}

fn of_flow(operation: &str) -> FlowRequest {
    FlowRequest { operation: operation.to_owned(), ..Default::default() }
}

/// All that an answer of config says of the workspace, but for versions.
fn told(answer: &ConfigResponse) -> String {
    if let Some(error) = &answer.error {
        return format!("{}: {}", error.r#type, error.message);
    }
    let values: Vec<String> = answer
        .values
        .iter()
        .map(|value| format!("{}={}", value.key, value.value.as_deref().unwrap_or_default()))
        .collect();
    format!("{values:?} {:?} {:?}", answer.directory, answer.config)
}

/// What a person makes of an answer about flows. A stop also tells what it found in queues, and may find the last message not
/// yet settled: a matter of time.
fn of_answer(answer: &FlowResponse) -> String {
    if let Some(error) = &answer.error {
        return format!("{}: {}", error.r#type, error.message);
    }
    let (phase, run) = (phase_of(answer), run_of(answer));
    let queues = queues_of(answer).into_iter().filter(|(topic, _)| !topic.is_empty());
    let queues: Vec<String> = queues.map(|(topic, name)| format!("{topic}/{name}")).collect();
    format!("{phase:?} {run:?} {queues:?} {:?} {:?}", answer.flow_ids, answer.warnings)
}
