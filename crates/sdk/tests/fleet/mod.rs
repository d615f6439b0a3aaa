//! Processes that run processors of flows, and the services that start the flows: what a start costs its receivers.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use sluice_bus::{
    Address, BoxFuture, Broker, BrokerAdmin, Client, Counting, Error, Inbox, Limits, Message, Pressure,
    Subscription, TopicSpec,
};
use sluice_schema::message::{Chunk, FlowRequest};
use sluice_schema::{Topic, exchange};
use sluice_sdk::{
    BindError, Catalogue, ConfigClient, ConfigWatch, Failure, Host, HostOptions, Inputs, Ports, Process,
    Processor, Resources, Roster,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(120);
/// Nothing is fetched without a notice.
const NO_RESYNC: Duration = Duration::from_secs(3_600);

/// Config and flow service with one workspace.
pub(crate) struct System {
    pub(crate) config: ConfigClient,
    flows: Client<exchange::Flow>,
    _process: Process,
    _store: sluice_store::Embedded,
    _folder: tempfile::TempDir,
}

impl System {
    pub(crate) async fn start<B: Broker + BrokerAdmin + Clone>(broker: B) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = sluice_store::Embedded::open(folder.path()).unwrap();
        let admin: Arc<dyn BrokerAdmin> = Arc::new(broker.clone());
        let process = Process::new(Arc::new(broker), CancellationToken::new());
        let parts =
            sluice_config::Parts { process: process.clone(), admin: admin.clone(), tables: store.tables() };
        sluice_config::start(parts).await.unwrap();
        let config = ConfigClient::new(&process.replies).await.unwrap();
        let workspace = sluice_sdk::config::value("__workspaces__", "workspace", "w", r#"{"enabled": true}"#);
        config.put("__workspaces__", vec![workspace]).await.unwrap();
        let letters = TopicSpec::with("flow:tg:dead-letters:w".parse().unwrap(), "librarian");
        admin.ensure(&letters).await.unwrap();
        sluice_flow::start(sluice_flow::Parts {
            process: process.clone(),
            admin,
            watch: ConfigWatch::start(&process, NO_RESYNC),
            config: ConfigClient::new(&process.replies).await.unwrap(),
            catalogue: Catalogue::default(),
            options: sluice_flow::Options::default(),
        })
        .await;
        let [ask, answers] = ["request:tg:flow:w", "response:tg:flow:w"].map(|topic| topic.parse().unwrap());
        let flows = Client::new(&process.replies, ask, &answers).await.unwrap();
        Self { config, flows, _process: process, _store: store, _folder: folder }
    }

    /// A blueprint of so many processors, `step-0` and on, each reading a topic of its own.
    pub(crate) async fn put_blueprint(&self, name: &str, processors: usize) {
        let part = |n: usize| {
            let topics = json!({"input": format!("flow:tg:step-{n}:{{workspace}}:{{id}}")});
            (format!("step-{n}:{{id}}"), json!({"topics": topics, "parameters": {"size": "2000"}}))
        };
        let flow: Map<String, Value> = (0..processors).map(part).collect();
        let text = json!({"blueprint": {}, "flow": flow}).to_string();
        let value = sluice_sdk::config::value("w", "flow-blueprint", name, text);
        self.config.put("w", vec![value]).await.unwrap();
    }

    pub(crate) async fn start_flow(&self, id: &str, blueprint: &str) {
        let request = FlowRequest {
            operation: "start-flow".to_owned(),
            flow_id: id.to_owned(),
            blueprint_name: blueprint.to_owned(),
            ..Default::default()
        };
        let answer = self.flows.call(&request, DEADLINE).await.unwrap();
        assert_eq!(answer.error, None, "{id}");
    }
}

/// Reads its input and leaves it at that.
struct Step;

impl Processor for Step {
    const NAME: &'static str = "step";

    fn bind(_: &mut Ports) -> Result<Self, BindError> {
        Ok(Self)
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.message("input", async |_, _: Chunk| Ok::<(), Failure>(()));
    }
}

/// Processes that share the processors `step-0` and on among them, and what was counted at their brokers.
pub(crate) struct Fleet<B> {
    pub(crate) watches: Vec<ConfigWatch>,
    processes: Vec<Process>,
    ends: Vec<Counting<Attaching<B>>>,
    attached: watch::Receiver<usize>,
}

/// What the receivers of a fleet asked and got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cost {
    pub(crate) requests: u64,
    pub(crate) fetched_bytes: u64,
    pub(crate) notices: u64,
}

impl<B: Broker + Clone> Fleet<B> {
    /// Starts so many processes with `processors` shared evenly among them, each on one of `ends`, and waits until all
    /// follow config.
    pub(crate) async fn start(ends: Vec<B>, processes: usize, processors: usize) -> Self {
        let (count, attached) = watch::channel(0);
        let attaching = |inner| Counting::new(Attaching { inner, count: count.clone() });
        let ends: Vec<_> = ends.into_iter().map(attaching).collect();
        let mut fleet = Self { watches: Vec::new(), processes: Vec::new(), ends, attached };
        let each = processors / processes;
        for n in 0..processes {
            let end = fleet.ends[n % fleet.ends.len()].clone();
            let process = Process::new(Arc::new(end), CancellationToken::new());
            let watch = ConfigWatch::start(&process, NO_RESYNC);
            let ids: Vec<String> = (n * each..(n + 1) * each).map(|step| format!("step-{step}")).collect();
            let roster = ids.iter().fold(Roster::new(), |roster, id| roster.add_as::<Step>(id));
            let options = HostOptions::default();
            Host::new(process.clone(), roster, watch.clone(), Resources::new(), options).start();
            fleet.watches.push(watch);
            fleet.processes.push(process);
        }
        for (n, watch) in fleet.watches.iter().enumerate() {
            let first = format!("processor:step-{}", n * each);
            tokio::time::timeout(DEADLINE, watch.ready(&[first])).await.expect("config is fetched");
        }
        fleet
    }

    /// Waits until so many processors in all have attached to their queue.
    pub(crate) async fn attached(&self, processors: usize) {
        let mut attached = self.attached.clone();
        let waiting = attached.wait_for(|count| *count >= processors);
        tokio::time::timeout(DEADLINE, waiting).await.expect("all attach").unwrap();
    }

    /// How many processors have attached since the start.
    pub(crate) fn attached_so_far(&self) -> usize {
        *self.attached.borrow()
    }

    /// What was counted since this was asked last.
    pub(crate) fn cost(&self) -> Cost {
        let [asking, telling]: [Topic; 2] =
            ["request:tg:config", "notify:tg:config"].map(|topic| topic.parse().unwrap());
        let mut cost = Cost { requests: 0, fetched_bytes: 0, notices: 0 };
        for end in &self.ends {
            let notices = end.of(&telling);
            cost.requests += end.of(&asking).published;
            // Nothing but answers and notices is sent to these processes.
            cost.fetched_bytes += end.total().delivered_bytes - notices.delivered_bytes;
            cost.notices += notices.delivered;
            end.reset();
        }
        cost
    }

    pub(crate) async fn stop(self) {
        for process in self.processes {
            assert_eq!(process.shutdown(DEADLINE).await, Vec::<String>::new());
        }
    }
}

/// A broker that tells how many readers have attached to a queue that others made.
#[derive(Clone)]
struct Attaching<B> {
    inner: B,
    count: watch::Sender<usize>,
}

impl<B: Broker> Broker for Attaching<B> {
    fn publish<'a>(&'a self, to: &'a Address, message: Message) -> BoxFuture<'a, Result<(), Error>> {
        self.inner.publish(to, message)
    }

    fn subscribe<'a>(&'a self, to: &'a Subscription) -> BoxFuture<'a, Result<Box<dyn Inbox>, Error>> {
        Box::pin(async move {
            let inbox = self.inner.subscribe(to).await?;
            if matches!(to, Subscription::Shared { .. }) {
                self.count.send_modify(|count| *count += 1);
            }
            Ok(inbox)
        })
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn pressure(&self) -> Option<Pressure> {
        self.inner.pressure()
    }
}
