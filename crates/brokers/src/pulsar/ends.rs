//! Consumers and producers at the broker: each is closed there when it is dropped here, however far making it has got.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::link::{Arrived, Fault, Link};
use super::names::Place;
use super::proto::{
    self, Ack, Command, EXCLUSIVE, Flow, GetLast, INDIVIDUAL, MessageId, Metadata, Property, Redeliver,
    SHARED, Subscribe,
};
use crate::local::lock;

/// What keepers call themselves.
pub(super) const KEEPER: &str = "sluice-keeper";

pub(super) struct Consumer {
    link: Arc<Link>,
    id: u64,
    arrived: mpsc::UnboundedReceiver<Arrived>,
}

/// How a consumer reads.
pub(super) enum How<'a> {
    /// With others, from a subscription that is there.
    Shared { subscription: &'a str },
    /// Nothing: it stays attached to a subscription, which nobody else can remove then by leaving as the last.
    Keeper { subscription: &'a str },
    /// Alone and without a trace, what comes after a message; `is_compacted`: only the last of each key.
    Alone { after: MessageId, is_compacted: bool },
}

impl Consumer {
    /// Attaches. It gets nothing before it permits that.
    pub(super) async fn open(
        link: Arc<Link>,
        place: &Place,
        how: &How<'_>,
        within: Duration,
    ) -> Result<Self, Fault> {
        let (id, number) = (link.number(), link.number());
        let arrived = link.add_consumer(id);
        let consumer = Self { link, id, arrived };
        let common = Subscribe {
            topic: place.uri(),
            consumer: id,
            request: number,
            name: Some(format!("sluice-{}", std::process::id())),
            force_topic_creation: Some(false),
            ..Subscribe::default()
        };
        let subscribe = match how {
            How::Shared { subscription } => Subscribe {
                subscription: (*subscription).to_owned(),
                kind: SHARED,
                durable: Some(true),
                ..common
            },
            How::Keeper { subscription } => Subscribe {
                subscription: (*subscription).to_owned(),
                kind: SHARED,
                durable: Some(true),
                name: Some(KEEPER.to_owned()),
                ..common
            },
            How::Alone { after, is_compacted } => Subscribe {
                subscription: format!("sluice-{}", uuid::Uuid::new_v4().simple()),
                kind: EXCLUSIVE,
                durable: Some(false),
                start: Some(*after),
                compacted: Some(*is_compacted),
                ..common
            },
        };
        consumer.link.ask(number, Command::Subscribe(subscribe), within).await?;
        Ok(consumer)
    }

    /// Where the last message of its topic is; before the first one, where there is none.
    pub(super) async fn last(&self, within: Duration) -> Result<MessageId, Fault> {
        let number = self.link.number();
        let ask = Command::GetLast(GetLast { consumer: self.id, request: number });
        match self.link.ask(number, ask, within).await? {
            Command::Last(last) => Ok(last.id),
            other => Err(Fault::Lost(format!("the broker answers with {other:?}"))),
        }
    }

    /// Lets the broker send so many more messages.
    pub(super) fn permit(&self, permits: u32) {
        self.link.say(Command::Flow(Flow { consumer: self.id, permits }));
    }

    pub(super) fn ack(&self, id: MessageId) {
        self.link.say(Command::Ack(Ack { consumer: self.id, kind: INDIVIDUAL, ids: vec![id] }));
    }

    /// Has messages delivered again, to whoever reads, and counted by the broker.
    pub(super) fn give_back(&self, ids: Vec<MessageId>) {
        self.link.say(Command::Redeliver(Redeliver { consumer: self.id, ids }));
    }

    /// What comes next; `None` when the broker has closed it or the connection is lost. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Arrived> {
        self.arrived.recv().await
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.link.close_consumer(self.id);
    }
}

pub(super) struct Producer {
    link: Arc<Link>,
    id: u64,
    name: String,
    closed: CancellationToken,
    /// Held while a message is put behind others, so that numbers keep their order.
    sequence: Mutex<u64>,
}

impl Producer {
    /// Attaches with others.
    pub(super) async fn open(link: Arc<Link>, place: &Place, within: Duration) -> Result<Self, Fault> {
        Self::open_as(link, place, proto::Producer::default(), within).await
    }

    /// Attaches as the only one.
    pub(super) async fn open_alone(
        link: Arc<Link>,
        place: &Place,
        metadata: Vec<Property>,
        within: Duration,
    ) -> Result<Self, Fault> {
        let name = format!("sluice-{}", uuid::Uuid::new_v4().simple());
        let asked = proto::Producer {
            name: Some(name),
            is_name_given: Some(true),
            access: Some(proto::EXCLUSIVE_ACCESS),
            metadata,
            ..proto::Producer::default()
        };
        Self::open_as(link, place, asked, within).await
    }

    async fn open_as(
        link: Arc<Link>,
        place: &Place,
        asked: proto::Producer,
        within: Duration,
    ) -> Result<Self, Fault> {
        let (id, number) = (link.number(), link.number());
        let closed = link.add_producer(id);
        let mut producer = Self { link, id, name: String::new(), closed, sequence: Mutex::new(0) };
        let asked = proto::Producer { topic: place.uri(), producer: id, request: number, ..asked };
        match producer.link.ask(number, Command::Producer(asked), within).await? {
            Command::ProducerSuccess(made) => producer.name = made.name,
            other => {
                return Err(Fault::Lost(format!("the broker answers a producer with {other:?}")));
            }
        }
        Ok(producer)
    }

    /// Whether the broker has closed it, or the connection is lost.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Returns once it is closed.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    pub(super) const fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Sends at once, in the order of calls; what is returned waits for the receipt.
    pub(super) fn send(
        &self,
        key: Option<String>,
        properties: Vec<Property>,
        body: &[u8],
        within: Duration,
    ) -> impl Future<Output = Result<(), Fault>> + Send + use<> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut sequence = lock(&self.sequence);
        let metadata = Metadata {
            producer_name: self.name.clone(),
            sequence: *sequence,
            publish_time: since.as_millis() as u64,
            properties,
            key,
            in_batch: None,
        };
        *sequence += 1;
        self.link.send(self.id, &metadata, body, within)
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.link.close_producer(self.id);
    }
}
