//! What the broker or the config service does not take or tell at once is not lost.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sluice_bus::embedded::Embedded;
use sluice_bus::faulty::Operation;
use sluice_bus::{
    Address, Broker, BrokerAdmin, Client, Fault, Faulty, Inbox as _, Message, Plan, Renewing, Subscription,
    TopicSpec, property,
};
use sluice_schema::message::{Chunk, DeadLetter, EmbeddingsRequest, EmbeddingsResponse, LostTopics};
use sluice_schema::{Topic, exchange, system, wire};
use sluice_sdk::config::value;
use sluice_sdk::{
    Backoff, BindError, ConfigClient, ConfigWatch, Failure, Host, HostOptions, Inputs, Out, Point, Ports,
    Process, Processor, Resources, Roster, service,
};
use tokio_util::sync::CancellationToken;

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nothing is fetched without a notice.
const NO_RESYNC: Duration = Duration::from_secs(3_600);

fn topic(text: &str) -> Topic {
    text.parse().unwrap()
}

fn process() -> (Process, Faulty<Embedded>) {
    let broker = Faulty::new(Embedded::in_memory());
    (Process::new(Arc::new(broker.clone()), CancellationToken::new()), broker)
}

/// A config service with its store and its folder.
async fn config(process: &Process, broker: &Faulty<Embedded>) -> (ConfigClient, impl Sized) {
    let folder = tempfile::tempdir().unwrap();
    let store = sluice_store::Embedded::open(folder.path()).unwrap();
    let admin: Arc<dyn BrokerAdmin> = Arc::new(broker.clone());
    let parts = sluice_config::Parts { process: process.clone(), admin, tables: store.tables() };
    sluice_config::start(parts).await.unwrap();
    (ConfigClient::new(&process.replies).await.unwrap(), (store, folder))
}

#[tokio::test]
async fn an_answer_that_could_not_be_sent_is_sent_again_and_the_question_is_worked_on_once() {
    let (process, broker) = process();
    let (point, worked) = embedder(&process, &broker, 64).await;
    let client: Client<exchange::Embeddings> =
        Client::new(&process.replies, point.request.clone(), &point.response).await.unwrap();
    for (n, fault) in [Fault::Before, Fault::After].into_iter().enumerate() {
        let question = point.request.to_string();
        broker.plan(Plan::nth(0, fault, move |made| {
            made.operation == Operation::Publish && made.about != question
        }));
        let answer = client.call(&EmbeddingsRequest { texts: vec!["a".to_owned()] }, PATIENCE).await.unwrap();
        assert_eq!(answer.vectors, [[1.0]]);
        assert_eq!(broker.faults().len(), 1);
        assert_eq!(worked.load(Ordering::SeqCst), n + 1);
    }
}

#[tokio::test]
async fn an_answer_waits_for_as_long_as_a_broker_takes_to_come_back() {
    let (process, broker) = process();
    let (point, worked) = embedder(&process, &broker, 64).await;
    let client: Client<exchange::Embeddings> =
        Client::new(&process.replies, point.request.clone(), &point.response).await.unwrap();
    let (is_back, question) = (Arc::new(AtomicBool::new(false)), point.request.to_string());
    let opened = is_back.clone();
    broker.plan(Plan::when(move |made| {
        let is_answer = made.operation == Operation::Publish && made.about != question;
        (is_answer && !opened.load(Ordering::SeqCst)).then_some(Fault::Before)
    }));
    let back = async {
        // More often than an answer is sent to an asker that has gone.
        while broker.faults().len() < 12 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        is_back.store(true, Ordering::SeqCst);
    };
    let question = EmbeddingsRequest { texts: vec!["a".to_owned()] };
    let (answer, back) = tokio::join!(client.call(&question, PATIENCE), tokio::time::timeout(PATIENCE, back));
    back.expect("it is sent again");
    assert_eq!((answer.unwrap().vectors, worked.load(Ordering::SeqCst)), (vec![vec![1.0]], 1));
}

#[tokio::test]
async fn an_answer_to_an_asker_that_has_gone_holds_up_no_other() {
    let (process, broker) = process();
    let (point, _) = embedder(&process, &broker, 1).await;
    let gone = Process::new(Arc::new(broker.clone()), CancellationToken::new());
    let client: Client<exchange::Embeddings> =
        Client::new(&process.replies, point.request.clone(), &point.response).await.unwrap();
    let asked = Message::new(wire::encode(&EmbeddingsRequest { texts: vec!["a".to_owned()] }))
        .with(property::ID, "1")
        .with(property::REPLY_TO, "inbox-of-somebody-who-left");
    gone.broker.publish(&Address::Topic(point.request.clone()), asked).await.unwrap();
    let answer = client.call(&EmbeddingsRequest { texts: vec!["a".to_owned()] }, PATIENCE).await.unwrap();
    assert_eq!(answer.vectors, [[1.0]]);
    let to_nobody = || {
        let log = broker.log();
        log.iter().filter(|made| made.about == "inbox-of-somebody-who-left").count()
    };
    let tried = to_nobody();
    assert!((1..4).contains(&tried), "the second waited for {tried} tries of the first");
    tokio::time::timeout(PATIENCE, async {
        while to_nobody() < 11 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("it is sent again, should its asker have another inbox");
}

/// A service of this process with room for so many questions, and how often it worked.
async fn embedder(
    process: &Process,
    broker: &Faulty<Embedded>,
    concurrency: usize,
) -> (Point, Arc<AtomicUsize>) {
    let (request, response) = (topic("request:tg:embeddings:w:f"), topic("response:tg:embeddings:w:f"));
    let point = Point { concurrency, ..Point::new(request, response, "embedder") };
    broker.ensure(&TopicSpec::with(point.request.clone(), "embedder")).await.unwrap();
    broker.ensure(&TopicSpec::bare(point.response.clone())).await.unwrap();
    let worked = Arc::new(AtomicUsize::new(0));
    let counted = worked.clone();
    service::serve::<exchange::Embeddings, _, _>(
        process,
        point.clone(),
        process.stop.clone(),
        move |_, _| {
            counted.fetch_add(1, Ordering::SeqCst);
            async { Ok(EmbeddingsResponse { vectors: vec![vec![1.0]], ..Default::default() }) }
        },
    );
    (point, worked)
}

#[tokio::test]
async fn answers_on_a_topic_are_heard_after_the_inbox_was_lost() {
    let (process, broker) = process();
    let (ask, answers) = (topic("request:tg:embeddings:w:f"), topic("response:tg:embeddings:w:f"));
    broker.ensure(&TopicSpec::with(ask.clone(), "embedder")).await.unwrap();
    broker.ensure(&TopicSpec::bare(answers.clone())).await.unwrap();
    let client: Client<exchange::Embeddings> =
        Client::new(&process.replies, ask.clone(), &answers).await.unwrap();
    broker.plan(Plan::nth(0, Fault::Before, |made| {
        made.operation == Operation::Next && made.about.starts_with("response:")
    }));
    broker.publish(&Address::Topic(answers.clone()), Message::new("lost")).await.unwrap();
    tokio::time::timeout(PATIENCE, async {
        while broker.faults().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    // A service of somebody else's knows nothing of inboxes.
    let read = Subscription::Shared { topic: ask, name: "embedder".to_owned(), prefetch: 1 };
    let read = broker.subscribe(&read).await.unwrap();
    let stranger = async {
        let asked = read.next().await.unwrap();
        let id = asked.message.get(property::ID).unwrap();
        let answer = EmbeddingsResponse { vectors: vec![vec![2.0]], ..Default::default() };
        let answer = Message::new(wire::encode(&answer)).with(property::ID, id);
        broker.publish(&Address::Topic(answers.clone()), answer).await.unwrap();
        asked.ack();
    };
    let question = EmbeddingsRequest { texts: vec!["a".to_owned()] };
    let (answer, ()) = tokio::join!(client.call(&question, PATIENCE), stranger);
    assert_eq!(answer.unwrap().vectors, [[2.0]]);
}

/// Refuses everything.
struct Refuser;

impl Processor for Refuser {
    const NAME: &'static str = "refuser";

    fn bind(_: &mut Ports) -> Result<Self, BindError> {
        Ok(Self)
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.message("input", |_, _: Chunk| async { Err(Failure::never("it is poison")) });
    }
}

#[tokio::test]
async fn a_message_that_the_dead_letters_cannot_take_stays_until_they_can() {
    let (process, broker) = process();
    let (config, _kept) = config(&process, &broker).await;
    let (input, letters) = (topic("flow:tg:in:w:f1"), topic("flow:tg:dead-letters:w"));
    broker.ensure(&TopicSpec::with(input.clone(), "refuser--w--f1--input")).await.unwrap();
    let entry = format!(r#"{{"topics": {{"input": "{input}"}}, "parameters": {{}}}}"#);
    config.put("w", vec![value("w", "processor:refuser", "f1", entry)]).await.unwrap();
    let watch = ConfigWatch::start(&process, NO_RESYNC);
    let retry = Backoff { min: Duration::from_millis(1), max: Duration::from_millis(5) };
    let options = HostOptions { retry, ..HostOptions::default() };
    Host::new(process.clone(), Roster::new().add::<Refuser>(), watch, Resources::new(), options).start();

    broker.plan(Plan::none());
    let chunk = Message::new(wire::encode(&Chunk { chunk: "c".to_owned(), ..Default::default() }));
    broker.publish(&Address::Topic(input), chunk).await.unwrap();
    let tries = || broker.log().iter().filter(|made| made.about == letters.as_str()).count();
    tokio::time::timeout(PATIENCE, async {
        while tries() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    broker.ensure(&TopicSpec::with(letters.clone(), "librarian")).await.unwrap();
    let read = Subscription::Shared { topic: letters, name: "librarian".to_owned(), prefetch: 1 };
    let read = broker.subscribe(&read).await.unwrap();
    let letter = tokio::time::timeout(PATIENCE, read.next()).await.unwrap().unwrap();
    assert_eq!(wire::decode::<DeadLetter>(&letter.message.body).unwrap().reason, "it is poison");
    letter.ack();
}

/// Passes on everything.
struct Passer(Out<Chunk>);

impl Processor for Passer {
    const NAME: &'static str = "passer";

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        ports.output("output").map(Self)
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.message("input", |passer: Arc<Self>, chunk: Chunk| async move { passer.0.send(&chunk).await });
    }
}

/// The owner of the output is told as often as somebody fails to send there.
#[tokio::test]
async fn what_is_sent_to_a_missing_reader_is_sent_again_until_it_is_there() {
    let (process, broker) = process();
    let (config, _kept) = config(&process, &broker).await;
    let (input, output) = (topic("flow:tg:in:w:f1"), topic("flow:tg:out:w:f1"));
    broker.ensure(&TopicSpec::with(input.clone(), "passer--w--f1--input")).await.unwrap();
    broker.ensure(&TopicSpec::bare(output.clone())).await.unwrap();
    broker.ensure(&TopicSpec::bare(system::lost_topics())).await.unwrap();
    let topics = format!(r#"{{"input": "{input}", "output": "{output}"}}"#);
    let entry = format!(r#"{{"topics": {topics}, "parameters": {{}}, "read": ["output"]}}"#);
    config.put("w", vec![value("w", "processor:passer", "f1", entry)]).await.unwrap();
    let watch = ConfigWatch::start(&process, NO_RESYNC);
    let retry = Backoff { min: Duration::from_millis(1), max: Duration::from_millis(5) };
    let options = HostOptions { retry, attempts_max: u32::MAX };
    Host::new(process.clone(), Roster::new().add::<Passer>(), watch, Resources::new(), options).start();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let listening = broker.clone();
    process.tasks.spawn("test/listens", async move {
        let inbox = Renewing::attach(&listening, vec![system::lost_topics()], || ()).await.unwrap();
        while let Ok(notice) = inbox.next().await {
            let told: LostTopics = wire::decode(&notice.message.body).unwrap();
            told.topics.iter().for_each(|lost| _ = tell.send(topic(lost)));
        }
    });

    let chunk = Message::new(wire::encode(&Chunk { chunk: "c".to_owned(), ..Default::default() }));
    broker.publish(&Address::Topic(input.clone()), chunk).await.unwrap();
    // A notice that nobody follows yet is lost, and another comes as long as something is missing.
    let lost = async { while told.recv().await.unwrap() != output {} };
    tokio::time::timeout(PATIENCE, lost).await.unwrap();
    broker.ensure(&TopicSpec::with(output.clone(), "reader")).await.unwrap();
    let read = Subscription::Shared { topic: output, name: "reader".to_owned(), prefetch: 1 };
    let read = broker.subscribe(&read).await.unwrap();
    let passed = tokio::time::timeout(PATIENCE, read.next()).await.unwrap().unwrap();
    assert_eq!(wire::decode::<Chunk>(&passed.message.body).unwrap().chunk, "c");
    passed.ack();
}

#[tokio::test]
async fn what_was_there_before_anybody_was_interested_in_its_type_is_fetched() {
    let (process, broker) = process();
    let (config, _kept) = config(&process, &broker).await;
    config.put("w", vec![value("w", "late", "key", "old")]).await.unwrap();
    config.put("w", vec![value("w", "early", "key", "new")]).await.unwrap();
    let watch = ConfigWatch::start(&process, NO_RESYNC);
    for kind in ["early", "late"] {
        let mut views = watch.interest(&[kind]);
        let is_there =
            tokio::time::timeout(PATIENCE, views.wait_for(|view| view.get(kind, "w", "key").is_some()));
        assert!(is_there.await.is_ok(), "'{kind}' never came");
    }
    let view = watch.view();
    assert_eq!(
        ["early", "late"].map(|kind| view.get(kind, "w", "key").map(|text| &**text)),
        [Some("new"), Some("old")]
    );
}

/// What an operator does to a topic: it is gone, somebody runs into that, and its owner makes it again.
async fn removed_and_made_again(broker: &Faulty<Embedded>, topic: &Topic) {
    broker.remove(&TopicSpec::bare(topic.clone())).await.unwrap();
    let missed = broker.publish(&Address::Topic(topic.clone()), Message::new("lost")).await;
    assert!(missed.is_err(), "it is there");
    broker.ensure(&TopicSpec::bare(topic.clone())).await.unwrap();
}

#[tokio::test]
async fn answers_on_a_topic_that_was_removed_and_made_again_are_heard() {
    let (process, broker) = process();
    let (ask, answers) = (topic("request:tg:embeddings:w:f"), topic("response:tg:embeddings:w:f"));
    broker.ensure(&TopicSpec::with(ask.clone(), "embedder")).await.unwrap();
    broker.ensure(&TopicSpec::bare(answers.clone())).await.unwrap();
    let client: Client<exchange::Embeddings> =
        Client::new(&process.replies, ask.clone(), &answers).await.unwrap();
    removed_and_made_again(&broker, &answers).await;
    let read = Subscription::Shared { topic: ask, name: "embedder".to_owned(), prefetch: 1 };
    let read = broker.subscribe(&read).await.unwrap();
    // A service of somebody else's knows nothing of inboxes. It answers again: the first may come before it is followed.
    let stranger = async {
        let asked = read.next().await.unwrap();
        let id = asked.message.get(property::ID).unwrap().to_owned();
        asked.ack();
        loop {
            let answer = Message::new(wire::encode(&EmbeddingsResponse::default())).with(property::ID, &id);
            broker.publish(&Address::Topic(answers.clone()), answer).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let question = EmbeddingsRequest { texts: vec!["a".to_owned()] };
    tokio::select! {
        answer = client.call(&question, PATIENCE) => drop(answer.unwrap()),
        () = stranger => {}
    }
}

#[tokio::test]
async fn an_answer_goes_to_its_asker_while_its_topic_is_missing() {
    let (process, broker) = process();
    let point =
        Point::new(topic("request:tg:embeddings:w:f"), topic("response:tg:embeddings:w:f"), "embedder");
    broker.ensure(&TopicSpec::with(point.request.clone(), "embedder")).await.unwrap();
    broker.ensure(&TopicSpec::bare(point.response.clone())).await.unwrap();
    // Others read the answers too, so they do not go straight to the asker.
    let served = Point { direct: false, ..point.clone() };
    service::serve::<exchange::Embeddings, _, _>(&process, served, process.stop.clone(), |_, _| async {
        Ok(EmbeddingsResponse { vectors: vec![vec![1.0]], ..Default::default() })
    });
    let client: Client<exchange::Embeddings> =
        Client::new(&process.replies, point.request.clone(), &point.response).await.unwrap();
    broker.remove(&TopicSpec::bare(point.response.clone())).await.unwrap();
    let answer = client.call(&EmbeddingsRequest { texts: vec!["a".to_owned()] }, PATIENCE).await.unwrap();
    assert_eq!(answer.vectors, [[1.0]]);
}

#[tokio::test]
async fn news_of_config_come_again_after_their_topic_was_removed_and_made_again() {
    let (process, broker) = process();
    let (config, _kept) = config(&process, &broker).await;
    config.put("w", vec![value("w", "kind", "key", "old")]).await.unwrap();
    let watch = ConfigWatch::start(&process, NO_RESYNC);
    let mut views = watch.interest(&["kind"]);
    let holds = |text: &'static str| {
        move |view: &Arc<sluice_sdk::View>| view.get("kind", "w", "key").is_some_and(|found| **found == *text)
    };
    let old = tokio::time::timeout(PATIENCE, views.wait_for(holds("old")));
    assert!(old.await.is_ok(), "it was never there");
    broker.remove(&TopicSpec::bare(system::config_notify())).await.unwrap();
    // Its notice goes nowhere; the service makes the topic again.
    config.put("w", vec![value("w", "kind", "key", "new")]).await.unwrap();
    let new = tokio::time::timeout(PATIENCE, views.wait_for(holds("new")));
    assert!(new.await.is_ok(), "what was written meanwhile is never seen");
    config.put("w", vec![value("w", "kind", "key", "newer")]).await.unwrap();
    let newer = tokio::time::timeout(PATIENCE, views.wait_for(holds("newer")));
    assert!(newer.await.is_ok(), "later notices are not heard");
}

#[tokio::test(start_paused = true)]
async fn what_was_begun_when_its_queue_was_removed_is_answered_and_what_is_asked_meanwhile_too() {
    let (process, broker) = process();
    let point =
        Point::new(topic("request:tg:embeddings:w:f"), topic("response:tg:embeddings:w:f"), "embedder");
    let spec = TopicSpec::with(point.request.clone(), "embedder");
    broker.ensure(&spec).await.unwrap();
    broker.ensure(&TopicSpec::bare(point.response.clone())).await.unwrap();
    let (begun, go_on) = (CancellationToken::new(), CancellationToken::new());
    let (begins, goes_on) = (begun.clone(), go_on.clone());
    service::serve::<exchange::Embeddings, _, _>(
        &process,
        point.clone(),
        process.stop.clone(),
        move |question, _| {
            let (begins, goes_on) = (begins.clone(), goes_on.clone());
            async move {
                if question.texts == ["long"] {
                    begins.cancel();
                    goes_on.cancelled().await;
                }
                Ok(EmbeddingsResponse::default())
            }
        },
    );
    let client: Client<exchange::Embeddings> =
        Client::new(&process.replies, point.request.clone(), &point.response).await.unwrap();
    let question = |text: &str| EmbeddingsRequest { texts: vec![text.to_owned()] };
    let (long, short) = (question("long"), question("short"));
    let meanwhile = async {
        begun.cancelled().await;
        broker.remove(&spec).await.unwrap();
        broker.ensure(&spec).await.unwrap();
        broker.ensure(&TopicSpec::bare(point.response.clone())).await.unwrap();
        // The service reads the new queue at once, although it is still busy with what was in the old one.
        let answered = client.call(&short, Duration::from_secs(5)).await;
        tokio::time::sleep(PATIENCE / 2).await;
        go_on.cancel();
        answered
    };
    let (long, short) = tokio::join!(client.call(&long, PATIENCE), meanwhile);
    short.unwrap();
    long.unwrap();
}
