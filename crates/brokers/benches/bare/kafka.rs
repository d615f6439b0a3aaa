//! `krafka` alone.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use krafka::admin::{
    AdminClient, ConfigOp, ConfigResource, CreateTopicsOptions, IncrementalAlterConfigsOptions, NewTopic,
};
use krafka::consumer::{AutoOffsetReset, Consumer};
use krafka::producer::Producer;
use krafka::share_consumer::{AcknowledgementMode, AcquireMode, ShareConsumer};
use krafka::{ConsumerRecord, Headers, Record};
use sluice_bus::BoxFuture;
use tokio::sync::Notify;

use super::Bare;
use super::waiting::{ID, Waiting};

const POLL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the broker may keep a question for messages; as our link has it.
const WAIT_MAX: Duration = Duration::from_millis(250);
/// How soon a member asks again what there is to read.
const JOIN_PAUSE: Duration = Duration::from_millis(100);

/// A question goes to a share group, which takes as many at once as there are and settles them before it takes more: the
/// library does not have it otherwise. An answer goes to a topic that is read without a group.
pub(crate) struct Kafka {
    producer: Producer,
    waiting: Waiting,
    request: String,
    body: &'static str,
    stop: Arc<Notify>,
}

impl Kafka {
    /// What waits for messages has connections of its own: the broker answers one connection in order.
    pub(crate) async fn start(servers: &str, prefetch: u32, body: &'static str) -> Self {
        let (request, replies) = (format!("bare-{prefetch}"), format!("bare-replies-{prefetch}"));
        let admin = connect(servers).await.admin();
        make(&admin, &request).await;
        make(&admin, &replies).await;
        begin_with_first(&admin, &request).await;
        let (producer, answering) = (producer(servers).await, Arc::new(producer(servers).await));
        let (waiting, stop) = (Waiting::default(), Arc::new(Notify::new()));
        let requests = member(servers, &request, prefetch).await;
        let consumer = connect(servers).await.consumer_without_group();
        let consumer = consumer.auto_offset_reset(AutoOffsetReset::Earliest).fetch_max_wait(WAIT_MAX);
        let answers = consumer.build().await.unwrap();
        answers.assign(&replies, vec![0]).await.unwrap();
        tokio::spawn(until(stop.clone(), serve(requests, answering, replies)));
        tokio::spawn(until(stop.clone(), take(answers, waiting.clone())));
        Self { producer, waiting, request, body, stop }
    }
}

impl Bare for Kafka {
    fn ask(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let (id, answer) = self.waiting.add();
            send(&self.producer, Record::new(&self.request, self.body).header(ID, id)).await;
            answer.await.unwrap();
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.stop.notify_waiters();
            self.producer.close().await.unwrap();
        })
    }
}

async fn until(stop: Arc<Notify>, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.notified() => {}
        () = work => {}
    }
}

async fn serve(requests: ShareConsumer, answering: Arc<Producer>, replies: String) {
    loop {
        let asked = requests.poll(POLL_TIMEOUT).await.unwrap();
        let answers = asked.iter().map(|record| async {
            let answer = Record::new(&replies, record.value.clone().unwrap()).header(ID, id_of(record));
            send(&answering, answer).await;
            requests.ack(record).unwrap();
        });
        join_all(answers).await;
    }
}

async fn take(answers: Consumer, waiting: Waiting) {
    loop {
        for answer in answers.poll(POLL_TIMEOUT).await.unwrap() {
            waiting.answered(&id_of(&answer));
        }
    }
}

async fn connect(servers: &str) -> krafka::Kafka {
    krafka::Kafka::builder(servers).connect().await.unwrap()
}

async fn producer(servers: &str) -> Producer {
    connect(servers).await.producer().linger(Duration::ZERO).build().await.unwrap()
}

async fn send(producer: &Producer, record: Record) {
    producer.send(record).await.map(drop).unwrap();
}

async fn make(admin: &AdminClient, topic: &str) {
    let new = NewTopic::new(topic, 1, 1).unwrap();
    let made = admin.create_topics([new], CreateTopicsOptions::default()).await.unwrap().remove(topic);
    made.unwrap().unwrap();
}

/// The group of the same name gets all that is in the topic.
async fn begin_with_first(admin: &AdminClient, group: &str) {
    let of = ConfigResource::group(group);
    let set = vec![
        ConfigOp::set("share.auto.offset.reset", "earliest"),
        ConfigOp::set("share.assignment.interval.ms", "0"),
    ];
    let options = IncrementalAlterConfigsOptions::default();
    let set = admin.incremental_alter_configs([(of.clone(), set)], options).await.unwrap().remove(&of);
    set.unwrap().unwrap();
}

async fn member(servers: &str, topic: &str, prefetch: u32) -> ShareConsumer {
    let prefetch = i32::try_from(prefetch).unwrap();
    let member = connect(servers)
        .await
        .share_consumer(topic)
        .acknowledgement_mode(AcknowledgementMode::Explicit)
        .acquire_mode(AcquireMode::RecordLimit)
        .max_poll_records(prefetch)
        .batch_size(prefetch)
        .fetch_max_wait(WAIT_MAX)
        .build()
        .await
        .unwrap();
    loop {
        member.subscribe([topic]).await.unwrap();
        if !member.assignment().is_empty() {
            return member;
        }
        tokio::time::sleep(JOIN_PAUSE).await;
    }
}

fn id_of(record: &ConsumerRecord) -> String {
    let headers: &Headers = &record.headers;
    let (_, id) = headers.iter().find(|(name, _)| name == ID).unwrap();
    String::from_utf8(id.clone().unwrap().to_vec()).unwrap()
}
