//! A world for flows: broker, store, config service, registered workspaces, and the flow service under test.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_bus::{
    Address, Broker, BrokerAdmin, Client, Delivery, Inbox, Message, Seen, Subscription, TopicSpec, letter,
    property,
};
use sluice_flow::{Options, Parts};
use sluice_schema::message::{ConfigValue, DeadLetter, Finding, FlowRequest, FlowResponse};
use sluice_schema::{Topic, exchange};
use sluice_sdk::{Catalogue, ConfigClient, ConfigWatch, Process};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::faulty::{Faults, Faulty};
use crate::ground::{End, Ground, Room, Site};

/// Nothing takes this long unless it hangs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(180);
/// Pauses between looks for something: looks at a real broker are not free.
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(5);
const LOOK_PAUSE_MAX: Duration = Duration::from_millis(100);
/// Config types under which nothing may be left of a flow.
const OF_FLOWS: [&str; 4] = ["flow", "processor:*", "flow-wish", "flow-report"];

pub(crate) struct World {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) admin: Arc<dyn BrokerAdmin>,
    pub(crate) faults: Arc<Faults>,
    pub(crate) disk: Arc<sluice_store::embedded::Faults>,
    pub(crate) config: ConfigClient,
    pub(crate) outside: Process,
    options: Options,
    service: Mutex<Service>,
    pub(crate) site: Site,
    outside_end: End,
    store: sluice_store::Embedded,
    _folder: tempfile::TempDir,
}

/// A flow service with its own end of the broker.
pub(crate) struct Service {
    process: Process,
    /// What is stopped first, so that it can say what it still has to.
    part: Process,
    end: End,
    room: Room,
}

pub(crate) fn topic(text: &str) -> Topic {
    text.parse().unwrap()
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with_options(change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options::default();
        change(&mut options);
        Self::with(options).await
    }

    async fn with(options: Options) -> Self {
        Self::on(&Ground::Embedded, &["acme", "other"], options).await
    }

    /// A world with a broker, or a part of one, that nobody else has.
    pub(crate) async fn on(ground: &Ground, workspaces: &[&str], options: Options) -> Self {
        let site = ground.site().await;
        let outside_end = site.connect().await;
        let End { broker, admin, .. } = &outside_end;
        let (broker, admin) = (broker.clone(), admin.clone());
        let folder = tempfile::tempdir().unwrap();
        let disk = sluice_store::Options::default();
        let store = sluice_store::Embedded::open_with(folder.path(), &disk).unwrap();
        let outside = Process::new(broker.clone(), CancellationToken::new());
        let parts =
            sluice_config::Parts { process: outside.clone(), admin: admin.clone(), tables: store.tables() };
        sluice_config::start(parts).await.unwrap();
        let config = ConfigClient::new(&outside.replies).await.unwrap();
        for workspace in workspaces {
            let entry =
                sluice_sdk::config::value("__workspaces__", "workspace", workspace, "{\"enabled\": true}");
            config.put("__workspaces__", vec![entry]).await.unwrap();
            let letters = topic(&format!("flow:tg:dead-letters:{workspace}"));
            admin.ensure(&TopicSpec::with(letters, "librarian")).await.unwrap();
        }
        let faults = Arc::new(Faults::default());
        let service = Mutex::new(Service::start(&site, &faults, options).await);
        let _folder = folder;
        let disk = disk.faults;
        Self {
            broker,
            admin,
            faults,
            disk,
            config,
            outside,
            options,
            service,
            site,
            outside_end,
            store,
            _folder,
        }
    }

    /// Takes all room on the disk of config.
    pub(crate) async fn fill_the_disk(&self) {
        self.disk.leave_space_bytes(2 * 1024 * 1024);
        let tables = self.store.tables();
        // To the last: what is left by large values would take a start.
        for bytes in [300_000, 20_000, 500] {
            let mut is_full = false;
            for n in 0..1000 {
                let mut batch = sluice_store::Batch::new();
                batch.put("filling", format!("{bytes} {n}"), vec![7; bytes]);
                is_full = tables.commit(batch).await.is_err();
                if is_full {
                    break;
                }
            }
            assert!(is_full, "the disk never got full");
        }
    }

    /// The service dies on the spot, and another begins; should that one die while it begins, yet another.
    pub(crate) async fn crash(&self) {
        let mut service = self.service.lock().await;
        loop {
            service.die().await;
            *service = Service::new(&self.site, &self.faults).await;
            tokio::select! {
                () = service.serve(&self.faults, self.options) => return,
                () = self.faults.dying.notified() => {}
            }
        }
    }

    /// The service ends in good order, unless it dies of it, and another begins.
    async fn hand_over(&self) {
        let service = self.service.lock().await;
        let part = service.part.clone();
        tokio::select! {
            left = service.room.run(async move { part.shutdown(DEADLINE).await }) => assert_eq!(left, Vec::<String>::new()),
            () = self.faults.dying.notified() => {}
        }
        drop(service);
        self.crash().await;
    }

    /// Another instance beside the one that runs.
    pub(crate) async fn another(&self) -> Service {
        Service::start(&self.site, &self.faults, self.options).await
    }

    /// Ends everything, and takes away what was made for this world.
    pub(crate) async fn end(self) {
        self.service.into_inner().die().await;
        self.outside.tasks.finish(Duration::ZERO).await;
        self.outside_end.close().await;
        self.store.close().await;
        self.site.clear().await;
    }

    /// Runs something while services that end are replaced.
    pub(crate) async fn surviving<T>(&self, doing: impl Future<Output = T>) -> T {
        tokio::pin!(doing);
        loop {
            tokio::select! {
                done = &mut doing => return done,
                () = self.faults.dying.notified() => self.crash().await,
                () = self.faults.retiring.notified() => self.hand_over().await,
            }
        }
    }

    pub(crate) async fn call(&self, request: FlowRequest) -> FlowResponse {
        self.call_in("acme", request).await
    }

    pub(crate) async fn call_in(&self, workspace: &str, request: FlowRequest) -> FlowResponse {
        let ask = topic(&format!("request:tg:flow:{workspace}"));
        let answers = topic(&format!("response:tg:flow:{workspace}"));
        let client = Client::<exchange::Flow>::new(&self.outside.replies, ask, &answers).await.unwrap();
        client.call(&request, DEADLINE).await.unwrap()
    }

    pub(crate) async fn put_blueprint(&self, name: &str, blueprint: &Value) -> FlowResponse {
        self.call(FlowRequest {
            operation: "put-blueprint".into(),
            blueprint_name: name.into(),
            blueprint_definition: blueprint.to_string(),
            ..Default::default()
        })
        .await
    }

    pub(crate) async fn start(&self, id: &str, blueprint: &str) -> FlowResponse {
        self.call(FlowRequest {
            operation: "start-flow".into(),
            blueprint_name: blueprint.into(),
            flow_id: id.into(),
            description: "a test".into(),
            ..Default::default()
        })
        .await
    }

    pub(crate) async fn stop(&self, id: &str) -> FlowResponse {
        self.stop_with(id, None).await
    }

    pub(crate) async fn stop_with(&self, id: &str, drain: Option<&str>) -> FlowResponse {
        self.call(FlowRequest {
            operation: "stop-flow".into(),
            flow_id: id.into(),
            drain: drain.map(str::to_owned),
            ..Default::default()
        })
        .await
    }

    pub(crate) async fn get(&self, id: &str) -> FlowResponse {
        self.call(FlowRequest { operation: "get-flow".into(), flow_id: id.into(), ..Default::default() })
            .await
    }

    pub(crate) async fn doctor(&self) -> Vec<Finding> {
        let asked = FlowRequest { operation: "doctor".into(), ..Default::default() };
        ok(&self.call(asked).await).findings.clone()
    }

    pub(crate) async fn list(&self) -> Vec<String> {
        self.call(FlowRequest { operation: "list-flows".into(), ..Default::default() }).await.flow_ids
    }

    pub(crate) async fn put_value(&self, workspace: &str, kind: &str, key: &str, value: &str) {
        let value = sluice_sdk::config::value(workspace, kind, key, value);
        self.config.put(workspace, vec![value]).await.unwrap();
    }

    pub(crate) async fn delete_value(&self, workspace: &str, kind: &str, key: &str) {
        let key = sluice_schema::message::ConfigKey { r#type: kind.into(), key: key.into() };
        self.config.delete(workspace, vec![key]).await.unwrap();
    }

    /// Everything that config holds about flows.
    pub(crate) async fn records(&self) -> Vec<ConfigValue> {
        self.config.getvalues_many(&OF_FLOWS.map(str::to_owned), 0).await.unwrap().values
    }

    /// Topics that are there, with what is in them, the system's left out.
    pub(crate) async fn topics(&self) -> Vec<Seen> {
        let all = self.admin.list("").await.unwrap();
        all.into_iter().filter(|seen| seen.exists && !sluice_schema::system::is_system(&seen.topic)).collect()
    }

    pub(crate) async fn topic_names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.topics().await.iter().map(|seen| seen.topic.to_string()).collect();
        names.sort();
        names
    }

    pub(crate) async fn subscriptions(&self) -> Vec<String> {
        let mut names: Vec<_> =
            self.topics().await.into_iter().flat_map(|s| s.subscriptions).map(|s| s.name).collect();
        names.sort();
        names
    }

    pub(crate) async fn publish(&self, to: &str, id: &str) {
        let message = Message::new(format!("{{\"n\": \"{id}\"}}")).with(property::MESSAGE_ID, id);
        self.broker.publish(&Address::Topic(topic(to)), message).await.unwrap();
    }

    pub(crate) async fn read(&self, of: &str, subscription: &str) -> Box<dyn Inbox> {
        let to = Subscription::Shared { topic: topic(of), name: subscription.into(), prefetch: 8 };
        self.broker.subscribe(&to).await.unwrap()
    }

    /// Takes what was parked, oldest first.
    pub(crate) async fn dead_letters(&self) -> Vec<DeadLetter> {
        let letters = [TopicSpec::with(topic("flow:tg:dead-letters:acme"), "librarian")];
        let count = self.admin.observe(&letters).await.unwrap()[0].subscriptions[0].ready;
        let inbox = self.read("flow:tg:dead-letters:acme", "librarian").await;
        let mut letters = Vec::new();
        for _ in 0..count {
            let delivery = next(&*inbox).await;
            let (letter, raw) = letter::read(&delivery.message).unwrap();
            let body = raw.map(|raw| String::from_utf8_lossy(&raw).into_owned());
            letters.push(DeadLetter { body: body.unwrap_or(letter.body), ..letter });
            delivery.ack();
        }
        letters
    }

    /// Nothing of any flow is left: no topic, no subscription, no record.
    pub(crate) async fn assert_nothing_left(&self, context: &str) {
        assert_eq!(self.topic_names().await, Vec::<String>::new(), "{context}");
        assert_eq!(self.site.shown().await.unwrap_or_default(), Vec::<String>::new(), "{context}");
        assert_eq!(self.records().await, Vec::new(), "{context}");
        assert_eq!(self.list().await, Vec::<String>::new(), "{context}");
    }

    /// Looks until something is so.
    pub(crate) async fn until<F: Future<Output = bool>>(&self, what: &str, look: impl Fn() -> F) {
        let looking = async {
            let mut pause = LOOK_PAUSE_MIN;
            while !look().await {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOOK_PAUSE_MAX);
            }
        };
        tokio::time::timeout(DEADLINE, looking).await.unwrap_or_else(|_| panic!("never: {what}"));
    }
}

pub(crate) async fn next(inbox: &dyn Inbox) -> Delivery {
    tokio::time::timeout(DEADLINE, inbox.next()).await.expect("a message").unwrap()
}

impl Service {
    async fn new(site: &Site, faults: &Arc<Faults>) -> Self {
        let room = site.room();
        let (site, faults) = (site.clone(), faults.clone());
        let begun = room.run(async move {
            let end = site.connect_service().await;
            let process = Process::new(Arc::new(faulty(&end, &faults)), CancellationToken::new());
            (process.part(), process, end)
        });
        let (part, process, end) = begun.await;
        Self { process, part, end, room }
    }

    async fn start(site: &Site, faults: &Arc<Faults>, options: Options) -> Self {
        let service = Self::new(site, faults).await;
        service.serve(faults, options).await;
        service
    }

    async fn serve(&self, faults: &Arc<Faults>, options: Options) {
        let process = self.part.clone();
        let admin = Arc::new(faulty(&self.end, faults));
        let serving = async move {
            let watch = ConfigWatch::start(&process, Duration::from_secs(30));
            let config = ConfigClient::new(&process.replies).await.unwrap();
            let catalogue = Catalogue::default();
            sluice_flow::start(Parts { process, admin, watch, config, catalogue, options }).await;
        };
        self.room.run(serving).await;
    }

    /// Without the stop signal: nothing gets to tidy up, and its broker sees no more than that it is gone.
    async fn die(&mut self) {
        self.end.cut().await;
        let is_gone = self.room.end();
        tokio::join!(self.part.tasks.finish(Duration::ZERO), self.process.tasks.finish(Duration::ZERO));
        if !is_gone {
            self.end.close().await;
        }
    }
}

fn faulty(end: &End, faults: &Arc<Faults>) -> Faulty {
    Faulty { broker: end.broker.clone(), admin: end.admin.clone(), faults: faults.clone() }
}

pub(crate) fn ok(response: &FlowResponse) -> &FlowResponse {
    assert_eq!(response.error, None);
    response
}

pub(crate) fn error(response: &FlowResponse) -> String {
    error_of("flow-error", response)
}

pub(crate) fn error_of(kind: &str, response: &FlowResponse) -> String {
    let error = response.error.as_ref().expect("an error");
    assert_eq!(error.r#type, kind, "{}", error.message);
    error.message.clone()
}

pub(crate) fn status(response: &FlowResponse) -> Value {
    serde_json::from_str(&response.status).unwrap()
}

/// Two processors of its own in a row, one shared service.
pub(crate) fn blueprint() -> Value {
    json!({
        "description": "A small flow",
        "interfaces": {
            "load": {"flow": "flow:tg:load:{workspace}:{id}"},
            "embeddings": {
                "request": "request:tg:embeddings:{workspace}:{blueprint}",
                "response": "response:tg:embeddings:{workspace}:{blueprint}"
            }
        },
        "blueprint": {
            "vectors:{blueprint}": {"topics": {
                "request": "request:tg:embeddings:{workspace}:{blueprint}",
                "response": "response:tg:embeddings:{workspace}:{blueprint}"
            }}
        },
        "flow": {
            "first:{id}": {"topics": {
                "input": "flow:tg:load:{workspace}:{id}",
                "output": "flow:tg:chunks:{workspace}:{id}"
            }},
            "second:{id}": {"topics": {
                "input": "flow:tg:chunks:{workspace}:{id}",
                "librarian-request": "request:tg:librarian:{workspace}",
                "librarian-response": "response:tg:librarian:{workspace}"
            }, "parameters": {"size": "{size}", "who": "{id}"}}
        },
        "parameters": {"size": {"type": "size"}}
    })
}

impl World {
    /// A world that has the small blueprint.
    pub(crate) async fn with_blueprint() -> Self {
        let world = Self::new().await;
        world.put_size_and_blueprint().await;
        world
    }

    pub(crate) async fn put_size_and_blueprint(&self) {
        self.put_value("acme", "parameter-type", "size", "{\"default\": 7}").await;
        ok(&self.put_blueprint("demo", &blueprint()).await);
    }
}
