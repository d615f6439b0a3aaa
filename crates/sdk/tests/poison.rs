//! Messages that end their process: parked after a bounded number of times, in processes that really end.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sluice_bus::embedded::{Config, Embedded};
use sluice_bus::{
    Address, BoxFuture, Broker, BrokerAdmin, Delivery, Inbox, InboxAddress, Limits, Message, Patience,
    Result, Subscription, TopicSpec,
};
use sluice_schema::message::{
    Chunk, ConfigRequest, ConfigResponse, ConfigValue, DeadLetter, EmbeddingsRequest, EmbeddingsResponse,
};
use sluice_schema::{Topic, exchange, wire};
use sluice_sdk::{
    BindError, ConfigWatch, Failure, Host, HostOptions, Inputs, Out, Point, Ports, Process, Processor,
    Resources, Roster, service,
};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(120);
const CHILD_DIR: &str = "SLUICE_SDK_TEST_DIR";
const FLOWS: [&str; 2] = ["f1", "f2"];
const ATTEMPTS_MAX: u32 = 3;
/// Messages beside the one that ends the process, in each flow.
const GOOD: usize = 12;

/// Copies chunks; one ends the process.
struct Copier {
    output: Out<Chunk>,
}

/// How many are worked on at this moment, and how many were at most.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

impl Processor for Copier {
    const NAME: &'static str = "copier";

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        Ok(Self { output: ports.output("output")? })
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.message("input", Self::copy);
    }
}

impl Copier {
    async fn copy(self: Arc<Self>, chunk: Chunk) -> Result<(), Failure> {
        // Those of another case, which may run beside.
        let is_counted = chunk.chunk != "innocent";
        if is_counted {
            let now = UNDER_WAY.fetch_add(1, Ordering::SeqCst) + 1;
            MOST.fetch_max(now, Ordering::SeqCst);
        }
        // Long enough for others to be under way too.
        tokio::time::sleep(Duration::from_millis(20)).await;
        if is_counted {
            UNDER_WAY.fetch_sub(1, Ordering::SeqCst);
        }
        if chunk.chunk == "kill" {
            std::process::abort();
        }
        if chunk.chunk == "long" {
            std::future::pending::<()>().await;
        }
        self.output.send(&chunk).await
    }
}

fn topic(text: &str) -> Topic {
    text.parse().unwrap()
}

fn specs() -> Vec<TopicSpec> {
    let of = |flow: &str| {
        [
            TopicSpec::with(topic(&format!("flow:tg:in:w:{flow}")), format!("copier--w--{flow}--input")),
            TopicSpec::with(topic(&format!("flow:tg:out:w:{flow}")), "reader"),
        ]
    };
    let mut specs: Vec<TopicSpec> = FLOWS.iter().flat_map(|flow| of(flow)).collect();
    specs.push(TopicSpec::with(topic("flow:tg:dead-letters:w"), "library"));
    specs.push(TopicSpec::with(topic("flow:tg:progress:w"), "librarian"));
    specs
}

/// A config service that knows one entry for each flow, and the processor of it, which are on `broker` by a path of their own.
async fn run(broker: &Embedded, path: Arc<dyn Broker>) -> Process {
    let process = Process::new(path, CancellationToken::new());
    let point = Point::new(topic("request:tg:config"), topic("response:tg:config"), "config-svc");
    broker.ensure(&TopicSpec::with(point.request.clone(), "config-svc")).await.unwrap();
    broker.ensure(&TopicSpec::bare(point.response.clone())).await.unwrap();
    broker.ensure(&TopicSpec::bare(topic("notify:tg:config"))).await.unwrap();
    service::serve::<exchange::Config, _, _>(
        &process,
        point,
        process.stop.clone(),
        |_: ConfigRequest, _| async move {
            let entry = |flow: &str| {
                format!(
                    r#"{{"topics": {{"input": "flow:tg:in:w:{flow}", "output": "flow:tg:out:w:{flow}"}}}}"#
                )
            };
            let value = |flow: &&str| ConfigValue {
                r#type: "processor:copier".to_owned(),
                key: (*flow).to_owned(),
                value: Some(entry(flow)),
                workspace: "w".to_owned(),
                version: 1,
            };
            let values = FLOWS.iter().map(value).collect();
            Ok(ConfigResponse { version: 1, values, ..Default::default() })
        },
    );
    let watch = ConfigWatch::start(&process, Duration::from_secs(30));
    let retry = sluice_sdk::Backoff { min: Duration::from_millis(1), max: Duration::from_millis(5) };
    let options = HostOptions { attempts_max: ATTEMPTS_MAX, retry };
    Host::new(process.clone(), Roster::new().add::<Copier>(), watch, Resources::new(), options).start();
    process
}

async fn publish(broker: &Embedded, to: &str, text: &str) {
    let chunk = Chunk { chunk: text.to_owned(), ..Default::default() };
    broker.publish(&Address::Topic(topic(to)), Message::new(wire::encode(&chunk))).await.unwrap();
}

async fn reader(broker: &Embedded, from: &str, name: &str) -> Box<dyn Inbox> {
    let to = Subscription::Shared { topic: topic(from), name: name.to_owned(), prefetch: 64 };
    broker.subscribe(&to).await.unwrap()
}

/// Waits until the inputs hold nothing.
async fn drained(broker: &Embedded) {
    let inputs: Vec<TopicSpec> =
        specs().into_iter().filter(|spec| spec.topic.as_str().contains(":in:")).collect();
    let empty = async {
        loop {
            let seen = broker.observe(&inputs).await.unwrap();
            if seen.iter().all(|topic| topic.subscriptions.iter().all(|s| s.is_drained())) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, empty).await.expect("the inputs are worked on");
}

#[test]
#[ignore = "the other process of a_message_that_ends_its_process_each_time_is_parked_and_others_pass"]
fn works_until_nothing_is_left() {
    let dir = std::env::var_os(CHILD_DIR).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let broker = Embedded::open(Config::in_dir(Path::new(&dir))).unwrap();
        let process = run(&broker, Arc::new(broker.clone())).await;
        drained(&broker).await;
        process.shutdown(PATIENCE).await;
        broker.shutdown().await;
    });
}

fn ended_well(dir: &Path) -> bool {
    let test = "works_until_nothing_is_left";
    let status = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    status.success()
}

#[tokio::test]
async fn a_message_that_ends_its_process_each_time_is_parked_and_others_pass() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Embedded::open(Config::in_dir(folder.path())).unwrap();
    for spec in specs() {
        broker.ensure(&spec).await.unwrap();
    }
    // In each flow among those that are under way with it, some before and some behind.
    for flow in FLOWS {
        for number in 0..=GOOD {
            let text = if number == 3 { "kill".to_owned() } else { format!("good {number}") };
            publish(&broker, &format!("flow:tg:in:w:{flow}"), &text).await;
        }
    }
    broker.shutdown().await;

    let mut ends = 0;
    while !ended_well(folder.path()) {
        ends += 1;
        assert!(ends <= 2 * ATTEMPTS_MAX, "the process ends for ever");
    }
    assert!(ends >= ATTEMPTS_MAX, "it ended {ends} times only");

    let broker = Embedded::open(Config::in_dir(folder.path())).unwrap();
    let dead = reader(&broker, "flow:tg:dead-letters:w", "library").await;
    for _ in FLOWS {
        let delivery = tokio::time::timeout(PATIENCE, dead.next()).await.unwrap().unwrap();
        let letter: DeadLetter = wire::decode(&delivery.message.body).unwrap();
        delivery.ack();
        let expected = format!("it ended the process {ATTEMPTS_MAX} times");
        assert!(letter.reason.starts_with(&expected), "{}", letter.reason);
        assert_eq!(letter.attempts, i64::from(ATTEMPTS_MAX) + 1);
    }
    let seen = broker.observe(&[TopicSpec::with(topic("flow:tg:dead-letters:w"), "library")]).await.unwrap();
    assert!(seen[0].subscriptions[0].is_drained(), "only those that ended it are parked: {seen:?}");
    for flow in FLOWS {
        let name = format!("flow:tg:out:w:{flow}");
        let out = reader(&broker, &name, "reader").await;
        let mut passed = BTreeSet::new();
        while passed.len() < GOOD {
            let delivery = tokio::time::timeout(PATIENCE, out.next()).await.unwrap().unwrap();
            passed.insert(wire::decode::<Chunk>(&delivery.message.body).unwrap().chunk);
            delivery.ack();
        }
        assert!(!passed.contains("kill"));
    }
}

/// Hands everything out once, as to a process that ends.
async fn hand_out(broker: &Embedded, from: &str, name: &str, messages: usize) {
    let inbox = reader(broker, from, name).await;
    let mut held = Vec::new();
    for _ in 0..messages {
        held.push(tokio::time::timeout(PATIENCE, inbox.next()).await.unwrap().unwrap());
    }
    drop((inbox, held));
}

#[tokio::test]
async fn messages_that_may_have_ended_a_process_are_worked_on_one_at_a_time_over_all_flows() {
    let broker = Embedded::in_memory();
    for spec in specs() {
        broker.ensure(&spec).await.unwrap();
    }
    for flow in FLOWS {
        let to = format!("flow:tg:in:w:{flow}");
        for number in 0..5 {
            publish(&broker, &to, &format!("suspect {number}")).await;
        }
        hand_out(&broker, &to, &format!("copier--w--{flow}--input"), 5).await;
    }
    let process = run(&broker, Arc::new(broker.clone())).await;
    drained(&broker).await;
    assert_eq!(MOST.swap(0, Ordering::SeqCst), 1, "suspects were under way together");
    // Others are worked on together as before.
    for number in 0..20 {
        publish(&broker, "flow:tg:in:w:f1", &format!("good {number}")).await;
    }
    drained(&broker).await;
    assert!(MOST.load(Ordering::SeqCst) > 1, "good messages are under way one at a time");
    process.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn a_request_that_ended_its_process_each_time_is_answered_with_an_error() {
    let broker = Embedded::in_memory();
    let process = Process::new(Arc::new(broker.clone()), CancellationToken::new());
    let point =
        Point::new(topic("request:tg:embeddings:w:f"), topic("response:tg:embeddings:w:f"), "embedder");
    broker.ensure(&TopicSpec::with(point.request.clone(), "embedder")).await.unwrap();
    broker.ensure(&TopicSpec::bare(point.response.clone())).await.unwrap();
    let _following = process.replies.follow(&point.response).await.unwrap();
    let question = Message::new(wire::encode(&EmbeddingsRequest::default()));
    let mut call = process.replies.ask(&point.request, question, Patience::total(PATIENCE)).await.unwrap();
    for _ in 0..5 {
        hand_out(&broker, point.request.as_str(), "embedder", 1).await;
    }
    service::serve::<exchange::Embeddings, _, _>(&process, point, process.stop.clone(), |_, _| async move {
        panic!("the handler sees it once more")
    });
    let answer: EmbeddingsResponse = wire::decode(&call.next().await.unwrap().body).unwrap();
    let error = answer.error.unwrap();
    assert!(error.message.contains("it ended the process 5 times"), "{error:?}");
}

/// A broker that counts more than was worked on, and whose notes say how often work on any message has begun.
struct Noting {
    inner: Embedded,
    begun: u32,
}

struct NotingInbox(Box<dyn Inbox>, u32);

impl Broker for Noting {
    fn publish<'a>(&'a self, to: &'a Address, message: Message) -> BoxFuture<'a, Result<()>> {
        self.inner.publish(to, message)
    }

    fn subscribe<'a>(&'a self, to: &'a Subscription) -> BoxFuture<'a, Result<Box<dyn Inbox>>> {
        Box::pin(async move {
            let inbox = self.inner.subscribe(to).await?;
            Ok(Box::new(NotingInbox(inbox, self.begun)) as Box<dyn Inbox>)
        })
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }
}

impl Inbox for NotingInbox {
    fn next(&self) -> BoxFuture<'_, Result<Delivery>> {
        self.0.next()
    }

    fn begin(&self, mut delivery: Delivery) -> BoxFuture<'_, Result<Delivery>> {
        delivery.begun = Some(self.1);
        Box::pin(async { Ok(delivery) })
    }

    fn address(&self) -> Option<InboxAddress> {
        self.0.address()
    }

    fn follow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        self.0.follow(topic)
    }

    fn unfollow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        self.0.unfollow(topic)
    }
}

#[tokio::test]
async fn where_a_broker_counts_more_than_was_begun_its_notes_decide() {
    for (handed_out, begun, is_parked) in [(10, ATTEMPTS_MAX, false), (1, ATTEMPTS_MAX + 1, true)] {
        let broker = Embedded::in_memory();
        for spec in specs() {
            broker.ensure(&spec).await.unwrap();
        }
        let [from, out, dead] = ["flow:tg:in:w:f1", "flow:tg:out:w:f1", "flow:tg:dead-letters:w"];
        publish(&broker, from, "innocent").await;
        for _ in 0..handed_out {
            hand_out(&broker, from, "copier--w--f1--input", 1).await;
        }
        let process = run(&broker, Arc::new(Noting { inner: broker.clone(), begun })).await;
        drained(&broker).await;
        let (to, name) = if is_parked { (dead, "library") } else { (out, "reader") };
        let inbox = reader(&broker, to, name).await;
        let came = tokio::time::timeout(PATIENCE, inbox.next()).await.unwrap().unwrap();
        came.ack();
        process.shutdown(PATIENCE).await;
    }
}

#[tokio::test]
async fn what_a_stop_cuts_is_not_counted() {
    let broker = Embedded::in_memory();
    for spec in specs() {
        broker.ensure(&spec).await.unwrap();
    }
    publish(&broker, "flow:tg:in:w:f1", "long").await;
    let spec = specs().remove(0);
    for _ in 0..2 {
        let process = run(&broker, Arc::new(broker.clone())).await;
        let under_way = async {
            while broker.observe(std::slice::from_ref(&spec)).await.unwrap()[0].subscriptions[0].unsettled
                != Some(1)
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, under_way).await.unwrap();
        // As long as a whole system has.
        let cut = process.shutdown(Duration::from_secs(10)).await;
        assert!(cut.is_empty(), "{cut:?}");
    }
    let inbox = reader(&broker, "flow:tg:in:w:f1", &spec.subscriptions[0]).await;
    let got = tokio::time::timeout(PATIENCE, inbox.next()).await.unwrap().unwrap();
    assert_eq!(got.attempt, 1);
}
