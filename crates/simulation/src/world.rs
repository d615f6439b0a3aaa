//! One world: its processes, what people ask of it, what befalls it, and what is remembered to judge it by.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use sluice_bus::{
    Address, Broker, BrokerAdmin, Client, Embedded, Message, Replies, Seen, Subscription, TopicSpec,
};
use sluice_schema::message::{
    Chunk, ConfigKey, DeadLetter, EmbeddingsRequest, FlowRequest, FlowResponse, Metadata,
};
use sluice_schema::{Topic, exchange, wire};
use sluice_sdk::{ConfigClient, Process};
use tokio_util::sync::CancellationToken;

use crate::chance::Chance;
use crate::history::History;
use crate::node::{Done, Kind, Node, Routes, Shared, run_number};
use crate::tables::{Copy, Memory};

pub(crate) const WORKSPACE: &str = "acme";
pub(crate) const FLOWS: [&str; 3] = ["f1", "f2", "f3"];
pub(crate) const BLUEPRINTS: [&str; 2] = ["demo", "wide"];
/// Queues of services that people ask.
const OF_SERVICES: [&str; 3] = ["request:tg:config", "request:tg:config:acme", "request:tg:flow:acme"];
const LETTERS: &str = "flow:tg:dead-letters:acme";
/// How long a person waits for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is broken, in words.
pub(crate) type Broken = String;

/// What is known of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Known {
    /// An answer was lost, or two calls met.
    Nothing,
    Stopped,
    Running {
        run: String,
    },
}

/// Calls of services of flows.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<Mutex<Counted>>);

#[derive(Default)]
pub(crate) struct Counted {
    pub(crate) begun: u64,
    pub(crate) ended: u64,
    /// What some of them were told, and should not have been.
    pub(crate) wrong: Vec<Broken>,
}

impl Calls {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks a service of a run: an answer of that run or an error, no answer of another.
async fn asked(replies: &Replies, run: &str, chance: &Chance) -> Result<(), Broken> {
    let [ask, answers] =
        ["request", "response"].map(|class| topic(&format!("{class}:tg:embeddings:acme:{run}")));
    let Ok(client) = Client::<exchange::Embeddings>::new(replies, ask, &answers).await else { return Ok(()) };
    let request = EmbeddingsRequest { texts: vec!["x".to_owned()] };
    match client.call(&request, PATIENCE).await {
        Ok(answer) if answer.error.is_none() => {
            chance.count("answer");
            let right = vec![vec![run_number(run).unwrap_or_default()]];
            if answer.vectors == right {
                Ok(())
            } else {
                Err(format!("{run} was asked, and {:?} answered", answer.vectors))
            }
        }
        Ok(_) | Err(_) => {
            chance.count("typed error");
            Ok(())
        }
    }
}

/// What is remembered of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Run {
    /// Messages that were taken in.
    pub(crate) accepted: BTreeSet<String>,
    /// Somebody removed a queue behind its back, or asked to discard what is left: messages may be gone.
    pub(crate) may_lose: bool,
}

pub(crate) struct World {
    pub(crate) broker: Embedded,
    pub(crate) chance: Arc<Chance>,
    pub(crate) shared: Shared,
    pub(crate) nodes: Vec<Node>,
    pub(crate) known: BTreeMap<&'static str, Known>,
    pub(crate) runs: BTreeMap<String, Run>,
    /// Topic and subscription of every queue that a run was told to have.
    pub(crate) queues: BTreeMap<String, BTreeSet<(String, String)>>,
    pub(crate) letters: Done,
    /// What people write and read of config meanwhile; not in lives by the book.
    pub(crate) history: Option<History>,
    outside: Process,
    pub(crate) config: Arc<ConfigClient>,
    flow: Client<exchange::Flow>,
    messages: u64,
    pub(crate) calls: Calls,
    /// Routed flows at a version, as the config service told them, and as the gateway showed them.
    told: BTreeMap<i64, BTreeSet<String>>,
    shown: (usize, i64),
}

pub(crate) fn topic(text: &str) -> Topic {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Two processors in a row, a service of its own, and one that flows of the blueprint share.
pub(crate) fn blueprint(size: usize) -> Value {
    let service = |of: &str| {
        json!({
            "request": format!("request:tg:embeddings:{{workspace}}:{of}"),
            "response": format!("response:tg:embeddings:{{workspace}}:{of}"),
        })
    };
    json!({
        "interfaces": {"load": {"flow": "flow:tg:load:{workspace}:{id}"}, "embeddings": service("{id}")},
        "blueprint": {"vectors:{blueprint}": {"topics": service("{blueprint}"), "parameters": {"size": size.to_string()}}},
        "flow": {
            "first:{id}": {"topics": {
                "input": "flow:tg:load:{workspace}:{id}", "output": "flow:tg:chunks:{workspace}:{id}"
            }},
            "second:{id}": {"topics": {"input": "flow:tg:chunks:{workspace}:{id}"}, "parameters": {"size": size.to_string()}},
            "vectors:{id}": {"topics": service("{id}")},
        },
    })
}

impl World {
    pub(crate) async fn new(chance: Arc<Chance>) -> Self {
        let with_stranger = chance.percent(50);
        Self::with(chance, with_stranger).await
    }

    /// A world in which only processes of ours read.
    pub(crate) async fn of_ours(chance: Arc<Chance>) -> Self {
        Self::with(chance, false).await
    }

    async fn with(chance: Arc<Chance>, with_stranger: bool) -> Self {
        let broker = Embedded::in_memory();
        let shared = Shared {
            broker: broker.clone(),
            tables: Memory::new(chance.clone()),
            chance: chance.clone(),
            done: Done::default(),
            routes: Routes::default(),
        };
        let mut kinds = vec![
            (Kind::Config, "config 1"),
            (Kind::Config, "config 2"),
            (Kind::Flow, "flow 1"),
            (Kind::Flow, "flow 2"),
            (Kind::Gateway, "gateway"),
            (Kind::Worker, "worker 1"),
            (Kind::Worker, "worker 2"),
        ];
        if with_stranger {
            kinds.push((Kind::Stranger, "stranger"));
        }
        let nodes = kinds.into_iter().map(|(kind, name)| Node::start(kind, name, &shared)).collect();
        let outside = Process::new(Arc::new(broker.clone()), CancellationToken::new());
        let letters = Done::default();
        let spec = TopicSpec::with(topic(LETTERS), "librarian");
        broker.ensure(&spec).await.unwrap_or_else(|error| panic!("{error}"));
        tokio::spawn(collect(broker.clone(), topic(LETTERS), letters.clone(), chance.clone()));
        let config = Arc::new(insist(|| ConfigClient::new(&outside.replies)).await);
        let workspace =
            || sluice_sdk::config::value("__workspaces__", "workspace", WORKSPACE, "{\"enabled\": true}");
        insist(|| config.put("__workspaces__", vec![workspace()])).await;
        let (ask, answers) = (topic("request:tg:flow:acme"), topic("response:tg:flow:acme"));
        let flow = insist(|| Client::new(&outside.replies, ask.clone(), &answers)).await;
        let known = FLOWS.map(|id| (id, Known::Stopped)).into();
        let mut world = Self {
            broker,
            chance,
            shared,
            nodes,
            known,
            runs: BTreeMap::new(),
            queues: BTreeMap::new(),
            letters,
            history: None,
            outside,
            config,
            flow,
            messages: 0,
            calls: Calls::default(),
            told: BTreeMap::new(),
            shown: (0, 0),
        };
        for name in BLUEPRINTS {
            world.put_blueprint(name, 1).await;
        }
        world
    }

    /// One thing happens.
    pub(crate) async fn step(&mut self) -> Result<(), Broken> {
        match self.chance.below(100) {
            0..20 => {
                let (id, blueprint) = (*self.chance.pick(&FLOWS), *self.chance.pick(&BLUEPRINTS));
                self.start(id, blueprint).await?;
            }
            20..35 => {
                let (id, drain) =
                    (*self.chance.pick(&FLOWS), *self.chance.pick(&[None, Some("1ms"), Some("discard")]));
                self.stop(id, drain).await?;
            }
            35..52 => self.publish().await?,
            52..58 => self.ask(),
            58..62 => self.stop_at_work().await?,
            62..65 => {
                let (name, size) = (*self.chance.pick(&BLUEPRINTS), self.chance.below(3));
                self.put_blueprint(name, size).await;
            }
            65..68 => self.delete_blueprint().await,
            68..78 => {
                self.chance.count("crash");
                self.chance.pick(&self.nodes).crash();
            }
            78..84 => self.cut(),
            84..86 => self.remove_behind_its_back().await,
            86..89 => self.make_again().await,
            89..92 => self.two_at_once().await?,
            92..95 => self.hand_over().await?,
            _ => tokio::time::sleep(self.chance.duration(Duration::from_secs(60))).await,
        }
        self.look_at_routes().await
    }

    /// One life after the other, asked for by somebody stubborn: started, given work, stopped with some of it left; started
    /// with nobody to do the work, stopped; beside another flow that shares a part with it.
    pub(crate) async fn live_by_the_book(&mut self) -> Result<(), Broken> {
        for (id, drain) in [("f1", Some("1ms")), ("f2", None)] {
            self.insist_on_start(id).await?;
            self.insist_on_start("f3").await?;
            let Known::Running { run } = self.known[id].clone() else { continue };
            if drain.is_some() {
                for node in self.nodes.iter().filter(|node| node.kind == Kind::Worker) {
                    node.crash();
                }
            }
            for _ in 0..3 {
                self.publish_into(&run).await?;
            }
            self.insist_on_stop(id, drain).await?;
            self.insist_on_stop("f3", None).await?;
        }
        Ok(())
    }

    async fn insist_on_start(&mut self, id: &'static str) -> Result<(), Broken> {
        while !self.start(id, BLUEPRINTS[0]).await? {
            if matches!(self.resolve(id).await?, Known::Running { .. }) {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn insist_on_stop(&mut self, id: &'static str, drain: Option<&str>) -> Result<(), Broken> {
        while !self.stop(id, drain).await? {
            if self.resolve(id).await? == Known::Stopped {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn flow(&self, request: FlowRequest) -> Result<FlowResponse, String> {
        let (operation, id) = (request.operation.clone(), request.flow_id.clone());
        let drain = request.drain.clone();
        let answer = self.flow.call(&request, PATIENCE).await.map_err(|error| error.to_string());
        self.chance.tell(|| {
            let id = format!("{id} {}", drain.as_deref().unwrap_or_default());
            let said = match &answer {
                Ok(answer) => answer.error.as_ref().map_or("OK".to_owned(), |error| error.message.clone()),
                Err(error) => error.clone(),
            };
            format!("{operation} {id} → {said}")
        });
        answer
    }

    fn start_request(id: &str, blueprint: &str) -> FlowRequest {
        FlowRequest {
            operation: "start-flow".to_owned(),
            flow_id: id.to_owned(),
            blueprint_name: blueprint.to_owned(),
            ..Default::default()
        }
    }

    fn stop_request(id: &str, drain: Option<&str>) -> FlowRequest {
        let drain = drain.map(str::to_owned);
        FlowRequest { operation: "stop-flow".to_owned(), flow_id: id.to_owned(), drain, ..Default::default() }
    }

    pub(crate) async fn start(&mut self, id: &'static str, blueprint: &str) -> Result<bool, Broken> {
        let before = self.known[id].clone();
        let answer = self.flow(Self::start_request(id, blueprint)).await;
        let run = match &answer {
            Ok(answer) if answer.error.is_none() => run_of(answer),
            Ok(_) => {
                // Who was told that it exists may have asked for this very one, in a call handed out twice.
                if !matches!(before, Known::Running { .. }) {
                    self.known.insert(id, Known::Nothing);
                }
                return Ok(false);
            }
            Err(_) => {
                self.known.insert(id, Known::Nothing);
                return Ok(false);
            }
        };
        let Some(run) = run else { return Err(format!("{id} was started, and no run was told: {answer:?}")) };
        if let Known::Running { run: old } = before {
            return Err(format!("{id} was started as {run} while it ran as {old}"));
        }
        self.begun(id, run).await?;
        Ok(true)
    }

    /// Everything of a run is there when its start says OK.
    pub(crate) async fn assert_wired(&self, run: &str) -> Result<(), Broken> {
        let seen = self.topics().await;
        for (name, subscription) in [
            (format!("flow:tg:load:acme:{run}"), format!("first--acme--{run}--input")),
            (format!("flow:tg:chunks:acme:{run}"), format!("second--acme--{run}--input")),
            (format!("request:tg:embeddings:acme:{run}"), format!("vectors--acme--{run}--request")),
        ] {
            let found = seen.iter().find(|seen| seen.topic.as_str() == name);
            if !found.is_some_and(|seen| seen.subscriptions.iter().any(|s| s.name == subscription)) {
                return Err(format!("{run} was started, and {name} / {subscription} is not there"));
            }
        }
        Ok(())
    }

    pub(crate) async fn stop(&mut self, id: &'static str, drain: Option<&str>) -> Result<bool, Broken> {
        let before = self.known[id].clone();
        if drain == Some("discard") {
            self.may_lose(id);
        }
        let answer = self.flow(Self::stop_request(id, drain)).await;
        if !answer.is_ok_and(|answer| answer.error.is_none()) {
            self.known.insert(id, Known::Nothing);
            return Ok(false);
        }
        if let Known::Running { run } = before {
            let left: Vec<_> =
                self.topic_names().await.into_iter().filter(|name| is_of(name, &run)).collect();
            if !left.is_empty() {
                return Err(format!("{run} was stopped, and there is still {left:?}"));
            }
        }
        self.known.insert(id, Known::Stopped);
        Ok(true)
    }

    /// Whatever runs a flow has or had: they may lose messages from now on.
    fn may_lose(&mut self, id: &str) {
        for (run, remembered) in &mut self.runs {
            if run == id || run.starts_with(&format!("{id}-r")) {
                remembered.may_lose = true;
            }
        }
    }

    fn running(&self) -> Vec<String> {
        let running = self.known.values().filter_map(|known| match known {
            Known::Running { run } => Some(run.clone()),
            Known::Nothing | Known::Stopped => None,
        });
        running.collect()
    }

    /// Messages go into a flow that is known to run.
    pub(crate) async fn publish(&mut self) -> Result<(), Broken> {
        let running = self.running();
        if running.is_empty() {
            return Ok(());
        }
        let run = self.chance.pick(&running).clone();
        let count = 1 + self.chance.below(5);
        self.chance.tell(|| format!("{count} messages into {run}"));
        for _ in 0..count {
            self.publish_into(&run).await?;
        }
        Ok(())
    }

    pub(crate) async fn publish_into(&mut self, run: &str) -> Result<(), Broken> {
        self.messages += 1;
        let id = format!("{run}/{}", self.messages);
        let metadata = Metadata { id: id.clone(), ..Default::default() };
        let chunk = Chunk { metadata: Some(metadata), document_id: id.clone(), ..Default::default() };
        let to = Address::Topic(topic(&format!("flow:tg:load:acme:{run}")));
        let sent = self.broker.publish(&to, Message::new(wire::encode(&chunk))).await;
        let remembered = self.runs.entry(run.to_owned()).or_default();
        match sent {
            Ok(()) => {
                remembered.accepted.insert(id);
                Ok(())
            }
            Err(_) if remembered.may_lose => Ok(()),
            Err(error) => Err(format!("{run} runs, and takes no message: {error}")),
        }
    }

    /// A flow is stopped while messages come in, with hardly any time for them.
    async fn stop_at_work(&mut self) -> Result<(), Broken> {
        let running = self.known.iter().find_map(|(id, known)| match known {
            Known::Running { run } => Some((*id, run.clone())),
            Known::Nothing | Known::Stopped => None,
        });
        let Some((id, run)) = running else { return Ok(()) };
        for node in self.nodes.iter().filter(|node| matches!(node.kind, Kind::Worker | Kind::Stranger)) {
            if self.chance.percent(70) {
                node.crash();
            }
        }
        for _ in 0..5 {
            self.publish_into(&run).await?;
        }
        self.stop(id, Some("1ms")).await.map(drop)
    }

    /// Some people ask a service of a flow, while whatever comes next goes on: what they are told is looked at in the end.
    fn ask(&self) {
        let running = self.running();
        if running.is_empty() {
            return;
        }
        let run = self.chance.pick(&running).clone();
        for _ in 0..=self.chance.below(4) {
            let (replies, calls, chance) =
                (self.outside.replies.clone(), self.calls.clone(), self.chance.clone());
            let (run, pause) = (run.clone(), chance.duration(Duration::from_secs(3)));
            calls.lock().begun += 1;
            tokio::spawn(async move {
                tokio::time::sleep(pause).await;
                let wrong = asked(&replies, &run, &chance).await.err();
                let mut calls = calls.lock();
                calls.ended += 1;
                calls.wrong.extend(wrong);
            });
        }
    }

    async fn put_blueprint(&mut self, name: &str, size: usize) {
        let request = FlowRequest {
            operation: "put-blueprint".to_owned(),
            blueprint_name: name.to_owned(),
            blueprint_definition: blueprint(size).to_string(),
            ..Default::default()
        };
        // Without an answer it may have happened; either is fine.
        let _ = self.flow(request).await;
    }

    pub(crate) async fn insist_on_blueprints(&mut self) {
        for name in BLUEPRINTS {
            self.put_blueprint(name, 1).await;
        }
    }

    async fn delete_blueprint(&self) {
        let name = *self.chance.pick(&BLUEPRINTS);
        self.chance.tell(|| format!("the blueprint {name} is deleted"));
        let key = ConfigKey { r#type: "flow-blueprint".to_owned(), key: name.to_owned() };
        let _ = self.config.delete(WORKSPACE, vec![key]).await;
    }

    /// A line is cut, for a while.
    fn cut(&self) {
        let node = self.chance.pick(&self.nodes);
        let (line, chance) = (node.line.clone(), self.chance.clone());
        let while_it_lasts = chance.duration(Duration::from_secs(40));
        chance.count("cut");
        chance.tell(|| format!("{} is cut off for {while_it_lasts:?}", line.name));
        line.cut(true);
        tokio::spawn(async move {
            tokio::time::sleep(while_it_lasts).await;
            line.cut(false);
        });
    }

    /// Somebody removes a queue of a running flow, or of a service.
    async fn remove_behind_its_back(&mut self) {
        let topics = self.topics().await;
        if topics.is_empty() {
            return;
        }
        let mut victim = self.chance.pick(&topics).topic.clone();
        if self.chance.percent(40) {
            victim = topic(self.chance.pick::<&str>(&OF_SERVICES));
        }
        self.chance.count("removed behind its back");
        self.chance.tell(|| format!("somebody removes {victim}"));
        for id in FLOWS {
            self.may_lose(id);
        }
        let _ = self.broker.remove(&TopicSpec::bare(victim)).await;
    }

    /// A reader of a run that is over makes its queue again, as readers of 2.11 do.
    async fn make_again(&mut self) {
        let over: Vec<String> = {
            let running = self.running();
            let is_known = |run: &&String| !running.contains(run);
            self.runs.keys().filter(is_known).cloned().collect()
        };
        let can_be_told = self.known.values().all(|known| *known != Known::Nothing);
        if over.is_empty() || !can_be_told {
            return;
        }
        let run = self.chance.pick(&over).clone();
        let name = format!("flow:tg:chunks:acme:{run}");
        self.chance.count("made again");
        self.chance.tell(|| format!("a stranger makes {name} again"));
        let spec = TopicSpec::with(topic(&name), format!("second--acme--{run}--input"));
        let _ = self.broker.ensure(&spec).await;
    }

    /// Two people ask for the same flow at once.
    async fn two_at_once(&mut self) -> Result<(), Broken> {
        let id = *self.chance.pick(&FLOWS);
        let was_running = matches!(self.known[id], Known::Running { .. });
        let is_stop = self.chance.percent(50);
        self.chance.count("two at once");
        let first = Self::start_request(id, self.chance.pick::<&str>(&BLUEPRINTS));
        let second = match is_stop {
            true => Self::stop_request(id, None),
            false => Self::start_request(id, self.chance.pick::<&str>(&BLUEPRINTS)),
        };
        let (first, second) = tokio::join!(self.flow(first), self.flow(second));
        self.known.insert(id, Known::Nothing);
        let is_ok = |answer: &Result<FlowResponse, String>| {
            answer.as_ref().is_ok_and(|answer| answer.error.is_none())
        };
        for answer in [&first, &second] {
            if let (true, Ok(answer)) = (is_ok(answer), answer)
                && let Some(run) = run_of(answer)
            {
                self.runs.entry(run).or_default();
            }
        }
        if !is_stop && is_ok(&first) && is_ok(&second) {
            return Err(format!("{id} was started twice at once"));
        }
        if !is_stop && was_running && (is_ok(&first) || is_ok(&second)) {
            return Err(format!("{id} was started while it ran"));
        }
        Ok(())
    }

    /// A flow is stopped while another one starts, maybe of the same blueprint: what they share goes to the other.
    async fn hand_over(&mut self) -> Result<(), Broken> {
        let find =
            |wanted: fn(&Known) -> bool| FLOWS.into_iter().find(|id| self.known.get(id).is_some_and(wanted));
        let (Some(old), Some(new)) =
            (find(|known| matches!(known, Known::Running { .. })), find(|known| *known == Known::Stopped))
        else {
            return Ok(());
        };
        self.chance.count("hand over");
        let pause = self.chance.duration(Duration::from_millis(300));
        let blueprint = *self.chance.pick(&BLUEPRINTS);
        let (_, started) = tokio::join!(self.flow(Self::stop_request(old, Some("1ms"))), async {
            tokio::time::sleep(pause).await;
            self.flow(Self::start_request(new, blueprint)).await
        });
        self.known.insert(old, Known::Nothing);
        self.known.insert(new, Known::Nothing);
        let Ok(answer) = &started else { return Ok(()) };
        if let (None, Some(run)) = (&answer.error, run_of(answer)) {
            self.begun(new, run).await?;
        }
        Ok(())
    }

    /// A flow was started: from now on it is known to run, with all that it was told to have.
    async fn begun(&mut self, id: &'static str, run: String) -> Result<(), Broken> {
        if self.runs.insert(run.clone(), Run::default()).is_some() {
            return Err(format!("the run {run} was given out twice"));
        }
        self.assert_wired(&run).await?;
        let request =
            FlowRequest { operation: "get-flow".to_owned(), flow_id: id.to_owned(), ..Default::default() };
        if let Ok(answer) = self.flow(request).await
            && answer.error.is_none()
            && run_of(&answer).as_ref() == Some(&run)
        {
            self.queues.insert(run.clone(), queues_of(&answer));
        }
        self.known.insert(id, Known::Running { run });
        Ok(())
    }

    /// Config is restored from an older copy while all others run; some of those are away until its version is beyond
    /// the last that anybody saw of the other history.
    pub(crate) async fn restore_config(&mut self, copy: Copy) {
        self.chance.count("restored");
        for node in self.nodes.iter().filter(|node| node.kind != Kind::Config) {
            if node.kind == Kind::Gateway || self.chance.percent(50) {
                node.line.cut(true);
            }
        }
        let config = self.config.clone();
        let put = async |text: &str| {
            let value = sluice_sdk::config::value(WORKSPACE, "page", "k", text);
            insist(|| config.put(WORKSPACE, vec![value.clone()])).await
        };
        let last = put("before").await;
        for node in self.nodes.iter().filter(|node| node.kind == Kind::Config) {
            node.crash();
        }
        self.shared.tables.restore(copy);
        self.chance.tell(|| format!("config is restored from a copy older than version {last}"));
        while put("after").await <= last + 3 {}
        self.told.clear();
        self.shown = (0, 0);
        self.nodes.iter().for_each(|node| node.line.cut(false));
    }

    /// What a flow is now: asked until somebody knows, in peace.
    pub(crate) async fn resolve(&mut self, id: &'static str) -> Result<Known, Broken> {
        let request =
            || FlowRequest { operation: "get-flow".to_owned(), flow_id: id.to_owned(), ..Default::default() };
        let begun = self.chance.now();
        loop {
            let last = self.flow(request()).await;
            if let Ok(answer) = &last {
                match &answer.error {
                    None if phase_of(answer).as_deref() == Some("Running") => {
                        if let Some(run) = run_of(answer) {
                            self.runs.entry(run.clone()).or_default();
                            self.queues.insert(run.clone(), queues_of(answer));
                            let known = Known::Running { run };
                            self.known.insert(id, known.clone());
                            return Ok(known);
                        }
                    }
                    Some(error) if error.message.starts_with("Unknown flow") => {
                        self.known.insert(id, Known::Stopped);
                        return Ok(Known::Stopped);
                    }
                    _ => {}
                }
            }
            if self.chance.now() - begun > crate::laws::SETTLE_MAX {
                return Err(format!("{id} never settles: {last:?}"));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// A flow that runs has all its entries. No version is shown with other data than config had at it, and none after a later one.
    pub(crate) async fn look_at_routes(&mut self) -> Result<(), Broken> {
        let types = ["flow", "processor:*"].map(str::to_owned);
        let asked = tokio::time::timeout(Duration::from_secs(2), self.config.getvalues_many(&types, 0)).await;
        if let Ok(Ok(answer)) = asked {
            let record = |value: &sluice_schema::message::ConfigValue| -> Option<String> {
                let record: Value = serde_json::from_str(value.value.as_deref()?).ok()?;
                Some(routed(&value.key, record["run"].as_str(), record["status"].is_null()))
            };
            let flows = answer.values.iter().filter(|value| value.r#type == "flow");
            self.told.insert(answer.version, flows.filter_map(record).collect());
            let entries: BTreeSet<String> =
                answer.values.iter().map(|value| format!("{}/{}", value.r#type, value.key)).collect();
            for run in self.running() {
                for (_, subscription) in self.queues.get(&run).into_iter().flatten() {
                    if let Some(entry) = entry_of(subscription).filter(|entry| !entries.contains(entry)) {
                        return Err(format!("{run} runs without {entry}"));
                    }
                }
            }
        }
        let Some((of, routes)) = self.shared.routes.now() else { return Ok(()) };
        let (version, shown) = (routes.version(), self.routed(&routes));
        if of == self.shown.0 && version < self.shown.1 {
            return Err(format!("routes went back from version {} to {version}", self.shown.1));
        }
        self.shown = (of, version);
        match self.told.get(&version) {
            Some(told) if *told != shown => {
                Err(format!("routes show {shown:?} at version {version}, config had {told:?} then"))
            }
            _ => Ok(()),
        }
    }

    fn routed(&self, routes: &sluice_gateway::RouteWatch) -> BTreeSet<String> {
        routes.flows().iter().map(|flow| routed(&flow.flow, flow.run.as_deref(), flow.is_open)).collect()
    }

    pub(crate) fn routes_now(&self) -> Option<BTreeSet<String>> {
        Some(self.routed(&self.shared.routes.now()?.1))
    }

    /// Topics that are there, those of the system left out.
    pub(crate) async fn topics(&self) -> Vec<Seen> {
        let all = self.broker.list("").await.unwrap_or_default();
        all.into_iter().filter(|seen| seen.exists && !sluice_schema::system::is_system(&seen.topic)).collect()
    }

    pub(crate) async fn topic_names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.topics().await.iter().map(|seen| seen.topic.to_string()).collect();
        names.sort();
        names
    }

    /// Everything that config holds of flows; `None` where it does not answer.
    pub(crate) async fn records(&self) -> Option<Vec<String>> {
        let types = ["flow", "processor:*", "flow-wish", "flow-report"].map(str::to_owned);
        let answer = self.config.getvalues_many(&types, 0).await.ok()?;
        Some(answer.values.iter().map(|value| format!("{}/{}", value.r#type, value.key)).collect())
    }
}

/// The processor entry that a subscription is read for.
pub(crate) fn entry_of(subscription: &str) -> Option<String> {
    let parts: Vec<_> = subscription.split("--").collect();
    if let [part, _, variant, _] = parts[..] { Some(format!("processor:{part}/{variant}")) } else { None }
}

pub(crate) fn routed(flow: &str, run: Option<&str>, is_open: bool) -> String {
    format!("{flow} as {} {}", run.unwrap_or("?"), if is_open { "open" } else { "stopping" })
}

/// Whether a topic belongs to a run.
pub(crate) fn is_of(topic: &str, run: &str) -> bool {
    topic.rsplit(':').next() == Some(run)
}

fn status(answer: &FlowResponse) -> Value {
    serde_json::from_str(&answer.status).unwrap_or_default()
}

pub(crate) fn run_of(answer: &FlowResponse) -> Option<String> {
    status(answer)["run"].as_str().map(str::to_owned)
}

pub(crate) fn queues_of(answer: &FlowResponse) -> BTreeSet<(String, String)> {
    let text = |queue: &Value, name: &str| queue[name].as_str().unwrap_or_default().to_owned();
    let status = status(answer);
    let queues = status["queues"].as_array().into_iter().flatten();
    queues.map(|queue| (text(queue, "topic"), text(queue, "subscription"))).collect()
}

pub(crate) fn phase_of(answer: &FlowResponse) -> Option<String> {
    status(answer)["phase"].as_str().map(str::to_owned)
}

/// Takes what was parked.
pub(crate) async fn collect(broker: Embedded, from: Topic, letters: Done, chance: Arc<Chance>) {
    let to = Subscription::Shared { topic: from, name: "librarian".to_owned(), prefetch: 64 };
    let Ok(inbox) = broker.subscribe(&to).await else { return };
    while let Ok(delivery) = inbox.next().await {
        let letter = wire::decode::<DeadLetter>(&delivery.message.body).ok();
        let body = letter.and_then(|letter| BASE64.decode(letter.body).ok());
        if let Some(chunk) = body.and_then(|body| wire::decode::<Chunk>(&body).ok()) {
            chance.tell(|| format!("{} is parked", chunk.document_id));
            chance.count("parked");
            letters.add(&chunk.document_id);
        }
        delivery.ack();
    }
}

/// Tries until it works.
pub(crate) async fn insist<T, E, F: Future<Output = Result<T, E>>>(mut attempt: impl FnMut() -> F) -> T {
    loop {
        if let Ok(done) = attempt().await {
            return done;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
