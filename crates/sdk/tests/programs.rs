//! Services and processors on the embedded broker: answering, retrying behind good messages, parking, following config.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Duration;

use sluice_bus::embedded::Embedded;
use sluice_bus::{Address, Broker, BrokerAdmin, Client, Inbox, Message, Patience, Subscription, TopicSpec};
use sluice_schema::message::{
    Chunk, ConfigRequest, ConfigResponse, ConfigValue, DeadLetter, EmbeddingsRequest, EmbeddingsResponse,
    Error, Metadata, StageReport, TextCompletionRequest, TextCompletionResponse,
};
use sluice_schema::{Topic, exchange, system, wire};
use sluice_sdk::owned;
use sluice_sdk::workspaces::WorkspaceService;
use sluice_sdk::{
    BindError, ConfigWatch, Failure, Host, HostOptions, Inputs, Out, Point, Ports, Process, Processor,
    Resources, Responder, Roster, service,
};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

fn topic(text: &str) -> Topic {
    text.parse().unwrap()
}

async fn process() -> (Process, Embedded) {
    let broker = Embedded::in_memory();
    (Process::new(Arc::new(broker.clone()), CancellationToken::new()), broker)
}

async fn embeddings_point(broker: &Embedded) -> Point {
    let point =
        Point::new(topic("request:tg:embeddings:w:f"), topic("response:tg:embeddings:w:f"), "embedder");
    broker.ensure(&TopicSpec::with(point.request.clone(), "embedder")).await.unwrap();
    broker.ensure(&TopicSpec::bare(point.response.clone())).await.unwrap();
    point
}

fn lengths(request: &EmbeddingsRequest) -> EmbeddingsResponse {
    let vectors = request.texts.iter().map(|text| vec![text.len() as f64]).collect();
    EmbeddingsResponse { vectors, ..Default::default() }
}

#[tokio::test]
async fn a_service_answers_and_its_failure_is_part_of_the_answer() {
    let (process, broker) = process().await;
    let point = embeddings_point(&broker).await;
    service::serve::<exchange::Embeddings, _, _>(
        &process,
        point.clone(),
        process.stop.clone(),
        |request, _| async move {
            match request.texts.first().map(String::as_str) {
                Some("refuse") => Err(Error::new("embeddings-error", "no")),
                Some("panic") => panic!("a bug"),
                _ => Ok(lengths(&request)),
            }
        },
    );
    let client: Client<exchange::Embeddings> =
        Client::new(&process.replies, point.request.clone(), &point.response).await.unwrap();
    let ask = |text: &str| EmbeddingsRequest { texts: vec![text.to_owned()] };
    assert_eq!(client.call(&ask("four"), PATIENCE).await.unwrap().vectors, [[4.0]]);
    let refused = client.call(&ask("refuse"), PATIENCE).await.unwrap().error.unwrap();
    assert_eq!((refused.r#type.as_str(), refused.message.as_str()), ("embeddings-error", "no"));
    let panicked = client.call(&ask("panic"), PATIENCE).await.unwrap().error.unwrap();
    assert!(panicked.message.contains("a bug"), "{panicked:?}");
    assert_eq!(client.call(&ask("still here"), PATIENCE).await.unwrap().vectors, [[10.0]]);
    let seen = broker.observe(&[TopicSpec::with(point.request, "embedder")]).await.unwrap();
    assert!(seen[0].subscriptions[0].is_drained(), "{seen:?}");
}

#[tokio::test]
async fn a_question_nobody_could_read_gets_an_error_and_one_without_id_is_dropped() {
    let (process, broker) = process().await;
    let point = embeddings_point(&broker).await;
    service::serve::<exchange::Embeddings, _, _>(
        &process,
        point.clone(),
        process.stop.clone(),
        |r, _| async move { Ok(lengths(&r)) },
    );
    let request = Address::Topic(point.request.clone());
    broker.publish(&request, Message::new(&b"{\"texts\": []}"[..])).await.unwrap();
    let bad = Message::new(&b"not json"[..]);
    let _following = process.replies.follow(&point.response).await.unwrap();
    let mut call = process.replies.ask(&point.request, bad, Patience::total(PATIENCE)).await.unwrap();
    let answer: EmbeddingsResponse = wire::decode(&call.next().await.unwrap().body).unwrap();
    assert_eq!(answer.error.unwrap().r#type, "bad-request");
}

#[tokio::test]
async fn an_answer_in_parts_arrives_in_order_and_ends() {
    let (process, broker) = process().await;
    let point =
        Point::new(topic("request:tg:text-completion:w:f"), topic("response:tg:text-completion:w:f"), "llm");
    broker.ensure(&TopicSpec::with(point.request.clone(), "llm")).await.unwrap();
    broker.ensure(&TopicSpec::bare(point.response.clone())).await.unwrap();
    service::serve::<exchange::TextCompletion, _, _>(
        &process,
        point.clone(),
        process.stop.clone(),
        |_, out: Responder<exchange::TextCompletion>| async move {
            for word in ["one", "two", "three"] {
                let part = TextCompletionResponse { response: word.to_owned(), ..Default::default() };
                out.part(&part).await.map_err(|e| Error::new("llm-error", e.to_string()))?;
            }
            Ok(TextCompletionResponse { end_of_stream: true, ..Default::default() })
        },
    );
    let client: Client<exchange::TextCompletion> =
        Client::new(&process.replies, point.request.clone(), &point.response).await.unwrap();
    let mut call = client.stream(&TextCompletionRequest::default(), Patience::total(PATIENCE)).await.unwrap();
    let mut words = Vec::new();
    while let Some(part) = call.next().await.unwrap() {
        words.push(part.response);
    }
    assert_eq!(words, ["one", "two", "three", ""]);
}

/// Copies chunks; refuses those that say so.
struct Copier {
    output: Out<Chunk>,
    prefix: String,
}

impl Processor for Copier {
    const NAME: &'static str = "copier";
    const STAGE: Option<&'static str> = Some("copy");

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        Ok(Self { output: ports.output("output")?, prefix: ports.setting("prefix", String::new())? })
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.message("input", Self::copy);
    }
}

impl Copier {
    async fn copy(self: Arc<Self>, chunk: Chunk) -> Result<(), Failure> {
        match chunk.chunk.as_str() {
            "never" => Err(Failure::never("it is poison")),
            "again" => Err(Failure::again("the world is down")),
            text => {
                self.output.send(&Chunk { chunk: format!("{}{text}", self.prefix), ..chunk.clone() }).await
            }
        }
    }
}

/// A config service that knows one entry of one processor.
async fn config_with(process: &Process, broker: &Embedded, entry: &'static str) {
    let point = Point::new(topic("request:tg:config"), topic("response:tg:config"), "config-svc");
    broker.ensure(&TopicSpec::with(point.request.clone(), "config-svc")).await.unwrap();
    broker.ensure(&TopicSpec::bare(point.response.clone())).await.unwrap();
    broker.ensure(&TopicSpec::bare(topic("notify:tg:config"))).await.unwrap();
    service::serve::<exchange::Config, _, _>(
        process,
        point,
        process.stop.clone(),
        move |r: ConfigRequest, _| async move {
            assert_eq!(r.operation, "getvalues-many");
            let value = ConfigValue {
                r#type: "processor:copier".to_owned(),
                key: "f1".to_owned(),
                value: Some(entry.to_owned()),
                workspace: "w".to_owned(),
                version: 1,
            };
            Ok(ConfigResponse { version: 1, values: vec![value], ..Default::default() })
        },
    );
}

async fn read(broker: &Embedded, from: &str, subscription: &str) -> Box<dyn Inbox> {
    let to = Subscription::Shared { topic: topic(from), name: subscription.to_owned(), prefetch: 1 };
    broker.subscribe(&to).await.unwrap()
}

#[tokio::test]
async fn a_processor_works_retries_behind_good_messages_and_parks_with_reason() {
    let (process, broker) = process().await;
    for (name, subscription) in [
        ("flow:tg:in:w:f1", "copier--w--f1--input"),
        ("flow:tg:out:w:f1", "reader"),
        ("flow:tg:dead-letters:w", "library"),
        ("flow:tg:progress:w", "librarian"),
    ] {
        broker.ensure(&TopicSpec::with(topic(name), subscription)).await.unwrap();
    }
    let entry = r#"{"topics": {"input": "flow:tg:in:w:f1", "output": "flow:tg:out:w:f1"}, "parameters": {"prefix": ">"}}"#;
    config_with(&process, &broker, entry).await;
    let watch = ConfigWatch::start(&process, Duration::from_secs(30));
    let roster = Roster::new().add::<Copier>();
    let catalogue = roster.catalogue(&process, &watch, &Resources::new()).unwrap();
    assert_eq!(catalogue.inputs("copier").unwrap(), ["input"]);
    let retry = sluice_sdk::Backoff { min: Duration::from_millis(1), max: Duration::from_millis(5) };
    let options = HostOptions { attempts_max: 3, retry };
    Host::new(process.clone(), roster, watch, Resources::new(), options).start();

    let input = Address::Topic(topic("flow:tg:in:w:f1"));
    for text in ["again", "never", "good"] {
        let metadata = Metadata { id: text.to_owned(), root: "doc".to_owned(), collection: "c".to_owned() };
        let chunk = Chunk { chunk: text.to_owned(), metadata: Some(metadata), ..Default::default() };
        broker.publish(&input, Message::new(wire::encode(&chunk))).await.unwrap();
    }
    let out = read(&broker, "flow:tg:out:w:f1", "reader").await;
    let good = tokio::time::timeout(PATIENCE, out.next()).await.unwrap().unwrap();
    assert_eq!(wire::decode::<Chunk>(&good.message.body).unwrap().chunk, ">good");
    good.ack();

    let dead = read(&broker, "flow:tg:dead-letters:w", "library").await;
    let mut letters = Vec::new();
    for _ in 0..2 {
        let delivery = tokio::time::timeout(PATIENCE, dead.next()).await.unwrap().unwrap();
        letters.push(wire::decode::<DeadLetter>(&delivery.message.body).unwrap());
        delivery.ack();
    }
    letters.sort_by(|a, b| a.reason.cmp(&b.reason));
    let told: Vec<(&str, i64)> = letters.iter().map(|one| (one.reason.as_str(), one.attempts)).collect();
    assert_eq!(told, [("it is poison", 1), ("the world is down", 3)]);
    assert!(letters.iter().all(|one| one.flow == "f1" && one.subscription == "copier--w--f1--input"));

    let progress = read(&broker, "flow:tg:progress:w", "librarian").await;
    let delivery = tokio::time::timeout(PATIENCE, progress.next()).await.unwrap().unwrap();
    let report: StageReport = wire::decode(&delivery.message.body).unwrap();
    assert_eq!(
        (report.document_id.as_str(), report.event.as_str(), report.unit.as_str()),
        ("doc", "failed", "chunk")
    );
    delivery.ack();
}

#[tokio::test]
async fn a_processor_attaches_once_its_subscription_is_made() {
    let (process, broker) = process().await;
    let entry = r#"{"topics": {"input": "flow:tg:in:w:f1", "output": "flow:tg:out:w:f1"}, "parameters": {}}"#;
    config_with(&process, &broker, entry).await;
    let watch = ConfigWatch::start(&process, Duration::from_secs(30));
    let roster = Roster::new().add::<Copier>();
    Host::new(process.clone(), roster, watch.clone(), Resources::new(), HostOptions::default()).start();
    watch.ready(&["processor:copier"]).await;

    broker.ensure(&TopicSpec::with(topic("flow:tg:out:w:f1"), "reader")).await.unwrap();
    broker.ensure(&TopicSpec::with(topic("flow:tg:in:w:f1"), "copier--w--f1--input")).await.unwrap();
    let chunk = Chunk { chunk: "late".to_owned(), ..Default::default() };
    let input = Address::Topic(topic("flow:tg:in:w:f1"));
    broker.publish(&input, Message::new(wire::encode(&chunk))).await.unwrap();
    let out = read(&broker, "flow:tg:out:w:f1", "reader").await;
    let delivery = tokio::time::timeout(PATIENCE, out.next()).await.unwrap().unwrap();
    assert_eq!(wire::decode::<Chunk>(&delivery.message.body).unwrap().chunk, "late");
    delivery.ack();
    assert!(process.shutdown(PATIENCE).await.is_empty(), "everything ends when told");
}

/// Answers embeddings in every workspace.
struct PerWorkspace(Process);

impl WorkspaceService for PerWorkspace {
    fn topics(&self, workspace: &str) -> Vec<TopicSpec> {
        vec![
            TopicSpec::with(topic(&format!("request:tg:embeddings:{workspace}")), "embedder"),
            TopicSpec::bare(topic(&format!("response:tg:embeddings:{workspace}"))),
            TopicSpec::with(topic(&format!("flow:tg:kept:{workspace}")), "embedder"),
        ]
    }

    async fn start(&self, workspace: &str, stop: CancellationToken) {
        let [request, response] =
            ["request", "response"].map(|c| topic(&format!("{c}:tg:embeddings:{workspace}")));
        let point = Point::new(request, response, "embedder");
        let serving = service::serve::<exchange::Embeddings, _, _>(&self.0, point, stop, |r, _| async move {
            Ok(lengths(&r))
        });
        serving.cancelled().await;
    }
}

#[tokio::test]
async fn a_workspace_is_served_while_it_lives_and_its_queues_go_with_it() {
    let (process, broker) = process().await;
    let workspaces = tokio::sync::watch::Sender::new(vec!["a".to_owned()]);
    let point = Point::new(topic("request:tg:config"), topic("response:tg:config"), "config-svc");
    broker.ensure(&TopicSpec::with(point.request.clone(), "config-svc")).await.unwrap();
    broker.ensure(&TopicSpec::bare(point.response.clone())).await.unwrap();
    broker.ensure(&TopicSpec::bare(topic("notify:tg:config"))).await.unwrap();
    let live = workspaces.subscribe();
    service::serve::<exchange::Config, _, _>(
        &process,
        point,
        process.stop.clone(),
        move |_: ConfigRequest, _| {
            let live = live.borrow().clone();
            async move {
                let value =
                    |key: String| sluice_sdk::config::value("__workspaces__", "workspace", &key, "{}");
                Ok(ConfigResponse {
                    version: 1,
                    values: live.into_iter().map(value).collect(),
                    ..Default::default()
                })
            }
        },
    );
    let watch = ConfigWatch::start(&process, Duration::from_secs(30));
    let service = PerWorkspace(process.clone());
    sluice_sdk::workspaces::serve_workspaces(&process, Arc::new(broker.clone()), &watch, service).await;
    let client: Client<exchange::Embeddings> =
        Client::new(&process.replies, topic("request:tg:embeddings:a"), &topic("response:tg:embeddings:a"))
            .await
            .unwrap();
    let ask = EmbeddingsRequest { texts: vec!["ab".to_owned()] };
    assert_eq!(client.call(&ask, PATIENCE).await.unwrap().vectors, [[2.0]]);

    workspaces.send_replace(Vec::new());
    watch.poke();
    let specs = PerWorkspace(process.clone()).topics("a");
    let is_over = async {
        loop {
            let seen = broker.observe(&specs).await.unwrap();
            if !seen[0].exists && !seen[1].exists {
                break seen;
            }
            tokio::task::yield_now().await;
        }
    };
    let seen = tokio::time::timeout(PATIENCE, is_over).await.expect("its queues go");
    assert!(seen[2].exists, "durable topics stay");
}

/// A config service that knows one workspace, and what serves it.
async fn one_workspace(process: &Process, broker: &Embedded) -> Vec<TopicSpec> {
    let point = Point::new(topic("request:tg:config"), topic("response:tg:config"), "config-svc");
    broker.ensure(&TopicSpec::with(point.request.clone(), "config-svc")).await.unwrap();
    broker.ensure(&TopicSpec::bare(point.response.clone())).await.unwrap();
    broker.ensure(&TopicSpec::bare(topic("notify:tg:config"))).await.unwrap();
    let answer = |_: ConfigRequest, _| async {
        let values = vec![sluice_sdk::config::value("__workspaces__", "workspace", "a", "{}")];
        Ok(ConfigResponse { version: 1, values, ..Default::default() })
    };
    service::serve::<exchange::Config, _, _>(process, point, process.stop.clone(), answer);
    let watch = ConfigWatch::start(process, Duration::from_secs(30));
    let service = PerWorkspace(process.clone());
    let topics = service.topics("a");
    sluice_sdk::workspaces::serve_workspaces(process, Arc::new(broker.clone()), &watch, service).await;
    topics
}

/// Its reader reports it, so nobody waits for the next look.
#[tokio::test]
async fn a_queue_that_somebody_removes_is_made_again_when_its_reader_misses_it() {
    let (process, broker) = process().await;
    let topics = one_workspace(&process, &broker).await;
    let (ask, answers) = (topics[0].topic.clone(), topics[1].topic.clone());
    let client = Client::<exchange::Embeddings>::new(&process.replies, ask, &answers).await.unwrap();
    let question = EmbeddingsRequest { texts: vec!["ab".to_owned()] };
    for _ in 0..2 {
        broker.remove(&topics[0]).await.unwrap();
        let answered = async {
            while client.call(&question, PATIENCE).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, answered).await.expect("it is made and read again");
    }
    process.shutdown(PATIENCE).await;
}

/// A response topic has no reader in its owner, and what is kept may have one in another process.
#[tokio::test(start_paused = true)]
async fn what_nobody_here_reads_is_made_again_at_the_next_look() {
    let (process, broker) = process().await;
    let topics = one_workspace(&process, &broker).await;
    for missing in &topics[1..] {
        broker.remove(missing).await.unwrap();
        let is_there = async {
            while !broker.observe(std::slice::from_ref(missing)).await.unwrap()[0].exists {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::time::timeout(sluice_sdk::owned::LOOK_INTERVAL * 2, is_there).await.expect("it is made again");
    }
    process.shutdown(PATIENCE).await;
}

/// On virtual time: sooner than the owner would look by itself.
#[tokio::test(start_paused = true)]
async fn what_another_process_misses_of_a_service_is_made_again_at_once() {
    let (process, broker) = process().await;
    broker.ensure(&TopicSpec::bare(system::lost_topics())).await.unwrap();
    let admin: Arc<dyn BrokerAdmin> = Arc::new(broker.clone());
    let answers = TopicSpec::bare(system::iam_response());
    owned::own(&process, &admin, "iam", vec![answers.clone()]).await.unwrap();
    let other = Process::new(Arc::new(broker.clone()), CancellationToken::new());
    for _ in 0..3 {
        broker.remove(&answers).await.unwrap();
        let begun = tokio::time::Instant::now();
        let to = Address::Topic(answers.topic.clone());
        let is_there = async {
            while other.broker.publish(&to, Message::new("x")).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, is_there).await.expect("it is made again");
        assert!(begun.elapsed() < owned::LOOK_INTERVAL / 2, "{:?}", begun.elapsed());
        // So that the next loss counts as a new one.
        tokio::time::sleep(owned::LOOK_INTERVAL * 5).await;
    }
    other.shutdown(PATIENCE).await;
    process.shutdown(PATIENCE).await;
}

/// A config service that cannot read one type, until it can.
#[tokio::test]
async fn a_type_that_cannot_be_read_stops_only_what_needs_it() {
    let (process, broker) = process().await;
    let is_well = tokio::sync::watch::Sender::new(false);
    let point = Point::new(topic("request:tg:config"), topic("response:tg:config"), "config-svc");
    broker.ensure(&TopicSpec::with(point.request.clone(), "config-svc")).await.unwrap();
    broker.ensure(&TopicSpec::bare(point.response.clone())).await.unwrap();
    broker.ensure(&TopicSpec::bare(topic("notify:tg:config"))).await.unwrap();
    let (well, count) = (is_well.subscribe(), tokio::sync::watch::Sender::new(0_u32));
    let counted = count.clone();
    service::serve::<exchange::Config, _, _>(
        &process,
        point,
        process.stop.clone(),
        move |request: ConfigRequest, _| {
            let is_refused = request.types.iter().any(|kind| kind == "prompt") && !*well.borrow();
            counted.send_modify(|count| *count += 1);
            let version = i64::from(*counted.borrow());
            async move {
                if is_refused {
                    return Err(Error::new("config-error", "a damaged row"));
                }
                let value = |kind: &String| sluice_sdk::config::value("a", kind, "k", version.to_string());
                let values = request.types.iter().map(value).collect();
                Ok(ConfigResponse { version, values, ..Default::default() })
            }
        },
    );
    let watch = ConfigWatch::start(&process, Duration::from_secs(30));
    watch.interest(&["flow", "prompt"]);
    let ready = tokio::time::timeout(PATIENCE, watch.ready(&["flow"])).await.expect("flows are shown");
    assert!(ready.get("flow", "a", "k").is_some() && ready.get("prompt", "a", "k").is_none());
    let before = ready.version;
    let later = tokio::time::timeout(PATIENCE, watch.look()).await.expect("flows are followed");
    assert!(later.version > before);
    is_well.send_replace(true);
    let all = tokio::time::timeout(PATIENCE, watch.ready(&["flow", "prompt"])).await.expect("both are shown");
    assert!(all.get("prompt", "a", "k").is_some());
    // And again, while it is followed: the last that was read stays.
    is_well.send_replace(false);
    let later = tokio::time::timeout(PATIENCE, watch.look()).await.expect("flows are followed still");
    assert!(later.version > all.version && later.get("prompt", "a", "k").is_some());
    process.shutdown(PATIENCE).await;
}
