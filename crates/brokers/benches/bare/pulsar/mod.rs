//! The protocol alone: frames of our link, which no library for Rust has among our dependencies, and nothing above them. A
//! connection is a task that writes and one that reads.

#[allow(dead_code, unused_imports, reason = "the link speaks more of the protocol")]
#[path = "../../../src/pulsar/frame.rs"]
mod frame;
#[allow(dead_code, unused_imports, reason = "the link speaks more of the protocol")]
#[path = "../../../src/pulsar/proto.rs"]
mod proto;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use sluice_bus::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::waiting::{ID, Waiting};
use super::{Bare, REPLY_TO};
use frame::Frame;
use proto::{
    Ack, CONNECT, Command, Connect, EXCLUSIVE, Flow, INDIVIDUAL, Lookup, MessageId, Metadata,
    PROTOCOL_VERSION, Property, SHARED, Subscribe,
};

const FRAME_BYTES_MAX: usize = 5 << 20;
const WRITES_MAX: usize = 256;
/// Answers that the broker may send ahead.
const AHEAD: u32 = 1_000;

/// A question goes to a shared subscription, an answer to a topic that its asker reads alone; both are persistent, each
/// with a receipt, and the question is acknowledged once it is answered.
pub(crate) struct Pulsar {
    asking: Arc<Producer>,
    waiting: Waiting,
    replies: String,
    body: &'static str,
    stop: CancellationToken,
}

impl Pulsar {
    pub(crate) async fn start(broker: &str, prefetch: u32, body: &'static str) -> Self {
        let topic = |name: &str| format!("persistent://public/default/{name}-{prefetch}");
        let (request, replies) = (topic("bare"), topic("bare-replies"));
        let stop = CancellationToken::new();
        // Readers first: they make their topics.
        let (serving, requests) = consumer(broker, &request, true, prefetch, &stop).await;
        let (reading, answers) = consumer(broker, &replies, false, AHEAD, &stop).await;
        let asking = Producer::open(broker, &request, &stop).await;
        let answering = Producer::open(broker, &replies, &stop).await;
        let waiting = Waiting::default();
        tokio::spawn(serve(serving, requests, answering, prefetch));
        tokio::spawn(take(reading, answers, waiting.clone()));
        Self { asking, waiting, replies, body, stop }
    }
}

impl Bare for Pulsar {
    fn ask(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let (id, answer) = self.waiting.add();
            let properties = vec![property(ID, id), property(REPLY_TO, self.replies.clone())];
            self.asking.send(properties, self.body.as_bytes()).await;
            answer.await.unwrap();
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.stop.cancel() })
    }
}

async fn serve(
    reading: Link,
    mut requests: mpsc::UnboundedReceiver<Arrived>,
    answering: Arc<Producer>,
    prefetch: u32,
) {
    let settled = Arc::new(AtomicU64::new(0));
    while let Some(asked) = requests.recv().await {
        let (reading, answering, settled) = (reading.clone(), answering.clone(), settled.clone());
        tokio::spawn(async move {
            answering.send(asked.metadata.properties, &asked.body).await;
            reading.say(Command::Ack(Ack { consumer: 1, kind: INDIVIDUAL, ids: vec![asked.id] }));
            // Permits go by halves, as libraries have it.
            let permits = (prefetch / 2).max(1);
            if settled.fetch_add(1, Ordering::Relaxed) % u64::from(permits) == u64::from(permits) - 1 {
                reading.say(Command::Flow(Flow { consumer: 1, permits }));
            }
        });
    }
}

async fn take(reading: Link, mut answers: mpsc::UnboundedReceiver<Arrived>, waiting: Waiting) {
    let mut taken = 0;
    while let Some(answer) = answers.recv().await {
        let id = answer.metadata.properties.iter().find(|property| property.key == ID).unwrap();
        waiting.answered(&id.value);
        taken += 1;
        if taken == AHEAD / 2 {
            reading.say(Command::Flow(Flow { consumer: 1, permits: std::mem::take(&mut taken) }));
        }
    }
}

fn property(key: &str, value: String) -> Property {
    Property { key: key.to_owned(), value }
}

struct Arrived {
    id: MessageId,
    metadata: Metadata,
    body: Bytes,
}

/// A connection for one producer or one consumer, of number 1.
#[derive(Clone)]
struct Link {
    out: mpsc::UnboundedSender<Bytes>,
    shared: Arc<Shared>,
}

struct Shared {
    receipts: Mutex<HashMap<u64, oneshot::Sender<()>>>,
    /// The answer to the only request, of number 1.
    answer: Mutex<Option<oneshot::Sender<Command>>>,
    arrived: mpsc::UnboundedSender<Arrived>,
}

impl Link {
    async fn open(broker: &str, stop: &CancellationToken) -> (Self, mpsc::UnboundedReceiver<Arrived>) {
        let mut socket = TcpStream::connect(broker).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let hello = Connect {
            client_version: "bare".to_owned(),
            protocol_version: Some(PROTOCOL_VERSION),
            ..Connect::default()
        };
        socket.write_all(&frame::encode(Command::Connect(hello))).await.unwrap();
        let (read, write) = socket.into_split();
        let (out, outgoing) = mpsc::unbounded_channel();
        let (to, arrived) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared { receipts: Mutex::default(), answer: Mutex::default(), arrived: to });
        let link = Self { out, shared };
        let (reads, writes, until) = (link.clone().read(read), written(write, outgoing), stop.clone());
        let both = async { tokio::join!(reads, writes) };
        tokio::spawn(async move { until.run_until_cancelled(both).await });
        (link, arrived)
    }

    fn say(&self, command: Command) {
        // At the end of the run nobody hears it.
        let _ = self.out.send(frame::encode(command));
    }

    /// The broker serves a topic only once it was asked who does.
    async fn look_up(&self, topic: &str) {
        let lookup = Lookup { topic: topic.to_owned(), request: 1, authoritative: Some(false) };
        let Command::LookupResponse(found) = self.ask(Command::Lookup(lookup)).await else {
            panic!("the broker does not say who serves '{topic}'");
        };
        assert_eq!(found.response, Some(CONNECT), "{found:?}");
    }

    async fn ask(&self, command: Command) -> Command {
        let (answer, answered) = oneshot::channel();
        *self.shared.answer.lock().unwrap() = Some(answer);
        self.say(command);
        answered.await.unwrap()
    }

    async fn read(self, mut socket: OwnedReadHalf) {
        let mut arrived = BytesMut::new();
        loop {
            while let Some(frame) = frame::take(&mut arrived, FRAME_BYTES_MAX).unwrap() {
                self.came(frame);
            }
            // The broker ends with the run, under its connections.
            if !socket.read_buf(&mut arrived).await.is_ok_and(|read| read > 0) {
                return;
            }
        }
    }

    fn came(&self, frame: Frame) {
        match frame.command {
            Some(Command::SendReceipt(receipt)) => {
                let waiter = self.shared.receipts.lock().unwrap().remove(&receipt.sequence);
                waiter.map(|waiter| waiter.send(()));
            }
            Some(Command::Message(deliver)) => {
                let (metadata, body) = frame.message.unwrap();
                let _ = self.shared.arrived.send(Arrived { id: deliver.id, metadata, body });
            }
            Some(Command::Ping(ping)) => self.say(Command::Pong(ping)),
            Some(
                answer @ (Command::Success(_) | Command::ProducerSuccess(_) | Command::LookupResponse(_)),
            ) => {
                let waiter = self.shared.answer.lock().unwrap().take();
                waiter.map(|waiter| waiter.send(answer));
            }
            Some(Command::Connected(_) | Command::Pong(_)) | None => {}
            Some(other) => panic!("the broker says {other:?}"),
        }
    }
}

async fn written(mut socket: OwnedWriteHalf, mut outgoing: mpsc::UnboundedReceiver<Bytes>) {
    let mut frames = Vec::with_capacity(WRITES_MAX);
    let mut all = BytesMut::new();
    while outgoing.recv_many(&mut frames, WRITES_MAX).await > 0 {
        frames.drain(..).for_each(|frame| all.extend_from_slice(&frame));
        if socket.write_all(&all.split()).await.is_err() {
            return;
        }
    }
}

async fn consumer(
    broker: &str,
    topic: &str,
    is_shared: bool,
    permits: u32,
    stop: &CancellationToken,
) -> (Link, mpsc::UnboundedReceiver<Arrived>) {
    let (link, arrived) = Link::open(broker, stop).await;
    link.look_up(topic).await;
    let subscribe = Subscribe {
        topic: topic.to_owned(),
        subscription: "bare".to_owned(),
        kind: if is_shared { SHARED } else { EXCLUSIVE },
        consumer: 1,
        request: 1,
        durable: Some(is_shared),
        start: (!is_shared).then_some(MessageId::LATEST),
        force_topic_creation: Some(true),
        ..Subscribe::default()
    };
    link.ask(Command::Subscribe(subscribe)).await;
    link.say(Command::Flow(Flow { consumer: 1, permits }));
    (link, arrived)
}

struct Producer {
    link: Link,
    name: String,
    /// Held while a message is put behind others, so that numbers keep their order.
    sequence: Mutex<u64>,
}

impl Producer {
    async fn open(broker: &str, topic: &str, stop: &CancellationToken) -> Arc<Self> {
        let (link, _) = Link::open(broker, stop).await;
        link.look_up(topic).await;
        let asked = proto::Producer {
            topic: topic.to_owned(),
            producer: 1,
            request: 1,
            ..proto::Producer::default()
        };
        let Command::ProducerSuccess(made) = link.ask(Command::Producer(asked)).await else {
            panic!("the broker makes no producer");
        };
        Arc::new(Self { link, name: made.name, sequence: Mutex::default() })
    }

    async fn send(&self, properties: Vec<Property>, body: &[u8]) {
        let (receipt, received) = oneshot::channel();
        {
            let mut next = self.sequence.lock().unwrap();
            let sequence = *next;
            *next += 1;
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            let metadata = Metadata {
                producer_name: self.name.clone(),
                sequence,
                publish_time: since.as_millis() as u64,
                properties,
                ..Metadata::default()
            };
            self.link.shared.receipts.lock().unwrap().insert(sequence, receipt);
            let send = Command::Send(proto::Send { producer: 1, sequence });
            let _ = self.link.out.send(frame::encode_message(send, &metadata, body));
        }
        received.await.unwrap();
    }
}
