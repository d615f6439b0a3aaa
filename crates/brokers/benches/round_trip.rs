//! Calls over RabbitMQ: our ends, with 1, 16 and 64 at once, beside a bare client that makes the same two hops with the
//! same confirmations in the same run.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench tells what it measured, or ends")]
#![allow(clippy::disallowed_methods, reason = "tasks end with the run")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use sluice_brokers::testing::RabbitServer;
use sluice_bus::{
    Address, Broker, BrokerAdmin, InboxAddress, Message, Patience, Replies, Subscription, TopicSpec, property,
};
use sluice_schema::{Class, Topic};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

const CALLS: usize = 4_000;
const AT_ONCE: [usize; 3] = [1, 16, 64];
const PREFETCHES: [u32; 3] = [1, 16, 64];
const BODY: &str = r#"{"operation": "completion", "system": "s", "prompt": "Say hello", "streaming": false}"#;

fn main() {
    // `cargo test` runs benches too, to see that they build.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    if let Some(why) = RabbitServer::missing() {
        println!("round_trip: not measured, {why}");
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(measure());
}

async fn measure() {
    let server = RabbitServer::start().await.unwrap();
    let vhost = server.vhost().await.unwrap();
    for prefetch in PREFETCHES {
        let ours = Ours::start(&server, &vhost, prefetch).await;
        let bare = Bare::start(&server.url(&vhost), u16::try_from(prefetch).unwrap()).await;
        for at_once in AT_ONCE {
            // Both warm up; then each runs twice, in turns, and the better run counts.
            let mut best = [0.0_f64; 2];
            for round in 0..3 {
                let rates = [ours.rate(at_once).await, bare.rate(at_once).await];
                if round > 0 {
                    best = [best[0].max(rates[0]), best[1].max(rates[1])];
                }
            }
            println!(
                "prefetch {prefetch:>2}, {at_once:>2} at once: ours {:>6.0}/s, bare {:>6.0}/s, ratio {:.2}",
                best[0],
                best[1],
                best[0] / best[1]
            );
        }
        ours.stop.cancel();
    }
}

/// Runs calls, so many at once; answers how many a second.
async fn rate<F: Future<Output = ()> + Send + 'static>(at_once: usize, call: impl Fn() -> F) -> f64 {
    let calls = CALLS / (64 / at_once).clamp(1, 8);
    let started = Instant::now();
    let all = futures_util::stream::iter((0..calls).map(|_| tokio::spawn(call()))).buffer_unordered(at_once);
    all.for_each(|done| async { done.unwrap() }).await;
    calls as f64 / started.elapsed().as_secs_f64()
}

struct Ours {
    replies: Replies,
    request: Topic,
    stop: CancellationToken,
}

impl Ours {
    async fn start(server: &RabbitServer, vhost: &str, prefetch: u32) -> Self {
        let (asker, answerer) = (server.connect(vhost).await.unwrap(), server.connect(vhost).await.unwrap());
        let request = Topic::tg(Class::Request, format!("ask-{prefetch}")).unwrap();
        asker.ensure(&TopicSpec::with(request.clone(), "answerer")).await.unwrap();
        let name = "answerer".to_owned();
        let to = Subscription::Shared { topic: request.clone(), name, prefetch };
        let inbox = answerer.subscribe(&to).await.unwrap();
        let answerer = Arc::new(answerer);
        tokio::spawn(async move {
            while let Ok(delivery) = inbox.next().await {
                let answerer = answerer.clone();
                tokio::spawn(async move {
                    let to = delivery.message.get(property::REPLY_TO).unwrap().into();
                    let answer = Message::new(delivery.message.body.clone())
                        .with(property::ID, delivery.message.get(property::ID).unwrap());
                    answerer.publish(&Address::Inbox(InboxAddress(to)), answer).await.unwrap();
                    delivery.ack();
                });
            }
        });
        let (replies, stop) = (Replies::new(Arc::new(asker)), CancellationToken::new());
        tokio::spawn(replies.clone().run(stop.clone()));
        Self { replies, request, stop }
    }

    async fn rate(&self, at_once: usize) -> f64 {
        rate(at_once, || {
            let (replies, request) = (self.replies.clone(), self.request.clone());
            async move {
                let patience = Patience::total(Duration::from_secs(30));
                let mut call = replies.ask(&request, Message::new(BODY), patience).await.unwrap();
                call.next().await.unwrap();
            }
        })
        .await
    }
}

struct Bare {
    publishing: Channel,
    waiting: Arc<Mutex<HashMap<String, oneshot::Sender<()>>>>,
    request: ShortString,
    replies: ShortString,
    _connections: Vec<Connection>,
}

impl Bare {
    async fn start(url: &str, prefetch: u16) -> Self {
        let mut connections = Vec::new();
        let mut channels = Vec::new();
        for _ in 0..4 {
            let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
            channels.push(connection.create_channel().await.unwrap());
            connections.push(connection);
        }
        let [publishing, reading, serving, answering]: [Channel; 4] = channels.try_into().ok().unwrap();
        for channel in [&publishing, &answering] {
            channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        }
        serving.basic_qos(prefetch, BasicQosOptions::default()).await.unwrap();
        let (request, replies) =
            (format!("bare-{prefetch}").into(), format!("bare-replies-{prefetch}").into());
        let requests = consume(&serving, &request, false).await;
        let answers = consume(&reading, &replies, true).await;
        let waiting: Arc<Mutex<HashMap<String, oneshot::Sender<()>>>> = Arc::default();
        tokio::spawn(requests.for_each(move |delivery| {
            let answering = answering.clone();
            tokio::spawn(async move {
                // The server ends with the run, under its consumers.
                let Ok(delivery) = delivery else { return };
                let to = delivery.properties.reply_to().clone().unwrap();
                let properties = delivery.properties.clone();
                publish(&answering, to, &delivery.data, properties).await;
                delivery.acker.ack(BasicAckOptions::default()).await.unwrap();
            });
            async {}
        }));
        let waiters = waiting.clone();
        tokio::spawn(answers.for_each(move |delivery| {
            if let Ok(delivery) = delivery {
                let waiter = waiters.lock().unwrap().remove(&id_of(&delivery.properties));
                waiter.map(|waiter| waiter.send(()));
            }
            async {}
        }));
        Self { publishing, waiting, request, replies, _connections: connections }
    }

    async fn rate(&self, at_once: usize) -> f64 {
        rate(at_once, || {
            let (publishing, to, replies) =
                (self.publishing.clone(), self.request.clone(), self.replies.clone());
            let waiting = self.waiting.clone();
            async move {
                let id = uuid::Uuid::new_v4().to_string();
                let (answered, answer) = oneshot::channel();
                waiting.lock().unwrap().insert(id.clone(), answered);
                let mut headers = FieldTable::default();
                headers.insert("id".into(), AMQPValue::LongString(id.into()));
                let properties = BasicProperties::default().with_headers(headers).with_reply_to(replies);
                publish(&publishing, to, BODY.as_bytes(), properties).await;
                answer.await.unwrap();
            }
        })
        .await
    }
}

async fn consume(channel: &Channel, queue: &ShortString, no_ack: bool) -> Consumer {
    let none = FieldTable::default;
    channel.queue_declare(queue.clone(), QueueDeclareOptions::default(), none()).await.unwrap();
    let options = BasicConsumeOptions { no_ack, ..Default::default() };
    channel.basic_consume(queue.clone(), "".into(), options, none()).await.unwrap()
}

async fn publish(channel: &Channel, to: ShortString, body: &[u8], properties: BasicProperties) {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let confirm = channel.basic_publish("".into(), to, options, body, properties).await.unwrap();
    assert!(confirm.await.unwrap().is_ack());
}

fn id_of(properties: &BasicProperties) -> String {
    let headers = properties.headers().as_ref().unwrap();
    String::from_utf8(headers.inner()["id"].as_long_string().unwrap().as_bytes().to_vec()).unwrap()
}
