//! A reader's own inbox: an exclusive queue that it makes, that dies with its connection, and that it makes again under
//! the same name, bound to the same topics, when the connection comes back.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use lapin::message::Delivery as Arrived;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer};
use sluice_bus::{BoxFuture, Delivery, Error, ErrorKind, Inbox, InboxAddress, Result};
use sluice_schema::{Class, Topic};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::admin::Admin;
use super::fault::{self, code};
use super::link::{Closing, Place, Up};
use super::{Core, Pauses, lock, names, stopped};

/// Unread messages that an inbox holds, here and again at the broker; beyond it messages are dropped and counted.
const INBOX_MESSAGES_MAX: usize = 65_536;
/// Bytes of the unread messages that an inbox holds here.
const INBOX_BYTES_MAX: usize = 256 << 20;

/// The reader's end.
pub(super) struct OwnInbox {
    own: Arc<Own>,
    deliveries: tokio::sync::Mutex<mpsc::Receiver<Delivery>>,
    _gone: DropGuard,
}

struct Own {
    name: String,
    queue: ShortString,
    /// Stands for the address where a topic is told.
    direct: Topic,
    place: Place,
    admin: Arc<Admin>,
    stop: CancellationToken,
    followed: Mutex<Vec<Topic>>,
    /// The incarnation of the connection on which the queue is.
    up: watch::Sender<Option<Up>>,
    bytes: AtomicUsize,
    dropped: AtomicU64,
}

pub(super) async fn attach(core: &Core, topics: &[Topic]) -> Result<OwnInbox> {
    topics.iter().try_for_each(|topic| names::check_class(topic, false))?;
    if core.stop.is_cancelled() {
        return Err(stopped());
    }
    let name = names::inbox();
    let own = Arc::new(Own {
        queue: names::short(&name)?,
        direct: Topic::tg(Class::Response, &name)
            .map_err(|error| Error::Refused { reason: error.to_string() })?,
        name,
        place: core.consuming.place().await?,
        admin: core.admin.clone(),
        stop: core.stop.child_token(),
        followed: Mutex::default(),
        up: watch::Sender::new(None),
        bytes: AtomicUsize::new(0),
        dropped: AtomicU64::new(0),
    });
    let session = own.open().await?;
    for topic in topics {
        if let Err(error) = own.follow(topic).await {
            let _ = session.0.close(200, "bye".into()).await;
            return Err(error);
        }
    }
    let (out, deliveries) = mpsc::channel(INBOX_MESSAGES_MAX);
    #[expect(
        clippy::disallowed_methods,
        reason = "floor 1 does not see the sdk's tasks; `stop` ends this one"
    )]
    tokio::spawn(own.clone().run(session, out));
    let _gone = own.stop.clone().drop_guard();
    Ok(OwnInbox { own, deliveries: tokio::sync::Mutex::new(deliveries), _gone })
}

impl Inbox for OwnInbox {
    fn next(&self) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(async move {
            let next = self.deliveries.lock().await.recv().await;
            let delivery = next.ok_or_else(stopped)?;
            self.own.bytes.fetch_sub(delivery.message.size_bytes(), Ordering::Relaxed);
            Ok(delivery)
        })
    }

    fn address(&self) -> Option<InboxAddress> {
        Some(InboxAddress(self.own.name.as_str().into()))
    }

    fn follow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.own.follow(topic))
    }

    fn unfollow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.own.unfollow(topic))
    }
}

impl Own {
    async fn run(self: Arc<Self>, mut session: (Closing, Consumer), out: mpsc::Sender<Delivery>) {
        loop {
            let (channel, consumer) = &mut session;
            let Some(reason) = self.stop.run_until_cancelled(self.receive(consumer, &out)).await else {
                let closing = channel.close(200, "bye".into());
                let _ = tokio::time::timeout(self.place.link.call_timeout(), closing).await;
                return;
            };
            self.up.send_replace(None);
            tracing::debug!(inbox = self.name, reason, "an inbox was cut off; making it again");
            let Some(again) = self.stop.run_until_cancelled(self.open_again()).await else { return };
            session = again;
        }
    }

    /// Takes what comes until the connection is lost; answers why.
    async fn receive(&self, consumer: &mut Consumer, out: &mpsc::Sender<Delivery>) -> String {
        loop {
            match consumer.next().await {
                Some(Ok(arrived)) => self.push(arrived, out),
                Some(Err(error)) => return error.to_string(),
                None => return "its queue was deleted".to_owned(),
            }
        }
    }

    fn push(&self, arrived: Arrived, out: &mpsc::Sender<Delivery>) {
        let topic = names::topic(arrived.exchange.as_str()).unwrap_or_else(|| self.direct.clone());
        let message = names::message(arrived.data, &arrived.properties);
        let bytes = message.size_bytes();
        let has_room = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= INBOX_BYTES_MAX;
        if has_room && out.try_send(Delivery::unsettled(message, topic)).is_ok() {
            return;
        }
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if self.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(inbox = self.name, "a reader does not read; what is newest is dropped");
        }
    }

    /// Makes the queue and begins to read it.
    async fn open(&self) -> Result<(Closing, Consumer)> {
        let within = self.place.link.call_timeout();
        let up = self.place.link.up(within).await?;
        let opened = tokio::time::timeout(within, async {
            let channel = Closing::new(up.channel().await?);
            let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
            let mut bounded = FieldTable::default();
            bounded.insert("x-max-length".into(), AMQPValue::LongLongInt(INBOX_MESSAGES_MAX as i64));
            channel.queue_declare(self.queue.clone(), options, bounded).await?;
            let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
            let tag = ShortString::default();
            let consumer =
                channel.basic_consume(self.queue.clone(), tag, options, names::consuming()).await?;
            Ok::<_, lapin::Error>((channel, consumer))
        });
        match opened.await {
            Ok(Ok(session)) => {
                self.up.send_replace(Some(up));
                Ok(session)
            }
            Ok(Err(error)) => Err(match fault::of_call(&error, &self.name, "making an inbox") {
                // Nothing that was half done outlives its channel.
                Error::OutcomeUnknown { reason, .. } => Error::Unavailable { reason },
                other => other,
            }),
            Err(_) => Err(Error::Unavailable { reason: "an inbox could not be made in time".to_owned() }),
        }
    }

    /// Makes the queue again with its bindings, however long it takes. The broker may hold the old one for a while.
    async fn open_again(&self) -> (Closing, Consumer) {
        let mut pauses = Pauses::new();
        loop {
            tokio::time::sleep(pauses.next()).await;
            match self.open_and_follow().await {
                Ok(session) => return session,
                Err(error) => {
                    tracing::debug!(inbox = self.name, %error, "an inbox could not be made again yet")
                }
            }
        }
    }

    async fn open_and_follow(&self) -> Result<(Closing, Consumer)> {
        let session = self.open().await?;
        let followed = lock(&self.followed).clone();
        for topic in followed {
            match self.bind(&topic).await {
                Err(error) if error.kind() != ErrorKind::Absent => return Err(error),
                // A topic that was removed meanwhile is not followed any more.
                Err(_) => lock(&self.followed).retain(|known| *known != topic),
                Ok(()) => {}
            }
        }
        Ok(session)
    }

    async fn follow(&self, topic: &Topic) -> Result<()> {
        names::check_class(topic, false)?;
        let is_new = {
            let mut followed = lock(&self.followed);
            let is_new = !followed.contains(topic);
            if is_new {
                followed.push(topic.clone());
            }
            is_new
        };
        let bound = self.bind(topic).await;
        if bound.is_err() && is_new {
            lock(&self.followed).retain(|known| known != topic);
        }
        bound
    }

    async fn unfollow(&self, topic: &Topic) -> Result<()> {
        names::check_class(topic, false)?;
        lock(&self.followed).retain(|known| known != topic);
        let exchange = names::short(&names::exchange(topic))?;
        let queue = self.queue.clone();
        let unbound = self.errand(topic, async move |channel: Channel| {
            channel.queue_unbind(queue.clone(), exchange, queue, FieldTable::default()).await
        });
        match unbound.await {
            Err(error) if error.kind() == ErrorKind::Absent => Ok(()),
            other => other,
        }
    }

    async fn bind(&self, topic: &Topic) -> Result<()> {
        let exchange = names::short(&names::exchange(topic))?;
        let queue = self.queue.clone();
        let bound = self.errand(topic, async move |channel: Channel| {
            let options = QueueBindOptions::default();
            channel.queue_bind(queue.clone(), exchange, queue, options, FieldTable::default()).await
        });
        bound.await
    }

    /// One call on a channel of its own, for a failed one closes its channel: the reader's must stay open. Looked for on
    /// another connection first, for it costs this one a number too.
    async fn errand<F>(&self, topic: &Topic, call: impl FnOnce(Channel) -> F) -> Result<()>
    where
        F: Future<Output = Result<(), lapin::Error>>,
    {
        if !self.admin.look_at_exchange(&names::exchange(topic)).await? {
            return Err(Error::NoTopic { topic: topic.clone() });
        }
        let within = self.place.link.call_timeout();
        let mut up = self.up.subscribe();
        let found = tokio::time::timeout(within, up.wait_for(Option::is_some)).await;
        let up = found.ok().and_then(|found| found.ok()?.clone());
        let up = up.ok_or_else(|| Error::Unavailable { reason: "the connection was lost".to_owned() })?;
        let done = tokio::time::timeout(within, async {
            let channel = up.channel().await?;
            call(channel.clone()).await?;
            channel.close(200, "bye".into()).await
        });
        match done.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(match fault::reply(&error) {
                Some((code::NOT_FOUND, text)) if text.contains("exchange") => {
                    Error::NoTopic { topic: topic.clone() }
                }
                // The inbox itself is being made again.
                Some((code::NOT_FOUND | code::RESOURCE_LOCKED, text)) => {
                    Error::Unavailable { reason: text.to_owned() }
                }
                _ => fault::of_call(&error, topic.as_str(), "following a topic"),
            }),
            Err(_) => Err(Error::TimedOut { what: topic.to_string(), after_ms: within.as_millis() as u64 }),
        }
    }
}
