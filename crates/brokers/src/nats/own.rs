//! A reader's own inbox: plain subscriptions, of its address and of what the streams of followed topics publish again as it
//! passes. They live and die with the reader, and the client library makes them again after a lost connection.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::{Message as Arrived, Subscriber};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::json;
use sluice_bus::{BoxFuture, Delivery, Error, Inbox, InboxAddress, Losses, Result};
use sluice_schema::{Class, Topic};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::link::{self, Link};
use super::{Core, admin, names};
use crate::local::stopped;

/// Unread messages that an inbox holds; beyond it messages are dropped and counted.
const INBOX_MESSAGES_MAX: usize = 65_536;
/// Bytes of the unread messages that an inbox holds.
const INBOX_BYTES_MAX: usize = 256 << 20;
/// How long an inbox that goes waits for what is on its way to it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// What an inbox answers to whoever sends to it: it has the message, or goes and has not.
const TAKEN: &str = "";
pub(super) const GONE: &str = "gone";
/// How often a topic is looked at that is made again while it is being followed.
const FOLLOW_TRIES_MAX: u32 = 4;

/// The reader's end.
pub(super) struct OwnInbox {
    own: Arc<Own>,
    deliveries: Mutex<mpsc::Receiver<Delivery>>,
    /// One change at a time.
    followed: Mutex<HashMap<Topic, Followed>>,
    losses: Losses,
    _gone: DropGuard,
}

struct Own {
    name: String,
    link: Arc<Link>,
    tasks: TaskTracker,
    within: Duration,
    stop: CancellationToken,
    out: mpsc::Sender<Delivery>,
    bytes: AtomicUsize,
    dropped: AtomicU64,
}

struct Followed {
    /// Of the incarnation of the topic that is followed.
    subject: String,
    _gone: DropGuard,
}

pub(super) async fn attach(core: &Core, topics: &[Topic]) -> Result<OwnInbox> {
    topics.iter().try_for_each(|topic| names::check_class(topic, false))?;
    if core.stop.is_cancelled() {
        return Err(stopped());
    }
    let (out, deliveries) = mpsc::channel(INBOX_MESSAGES_MAX);
    let stop = core.stop.child_token();
    let own = Arc::new(Own {
        name: names::inbox(),
        link: core.link.clone(),
        tasks: core.tasks.clone(),
        within: core.options.call_timeout,
        stop: stop.clone(),
        out,
        bytes: AtomicUsize::new(0),
        dropped: AtomicU64::new(0),
    });
    let inbox = OwnInbox {
        own: own.clone(),
        deliveries: Mutex::new(deliveries),
        followed: Mutex::default(),
        losses: core.losses.clone(),
        _gone: stop.clone().drop_guard(),
    };
    // Stands for the address where a topic is reported.
    let direct = Topic::tg(Class::Response, &own.name)
        .map_err(|error| Error::Refused { reason: error.to_string() })?;
    own.listen(own.name.clone(), direct, stop).await?;
    // The server does what comes over a connection in order: once it answers, it has subscribed us.
    let asked = own.link.api::<serde_json::Value>("INFO", &json!(null), own.within).await?;
    asked.map_err(|refusal| link::refused(&refusal, "looking at the account"))?;
    for topic in topics {
        inbox.follow_one(topic).await?;
    }
    Ok(inbox)
}

impl Inbox for OwnInbox {
    fn next(&self) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(async move {
            let next = async { self.deliveries.lock().await.recv().await };
            let delivery = self.own.stop.run_until_cancelled(next).await.flatten().ok_or_else(stopped)?;
            self.own.bytes.fetch_sub(delivery.message.size_bytes(), Ordering::Relaxed);
            Ok(delivery)
        })
    }

    fn address(&self) -> Option<InboxAddress> {
        Some(InboxAddress(self.own.name.as_str().into()))
    }

    fn follow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.follow_one(topic).await.inspect_err(|error| self.losses.note(error)) })
    }

    fn unfollow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            names::check_class(topic, false)?;
            self.followed.lock().await.remove(topic);
            Ok(())
        })
    }
}

impl OwnInbox {
    async fn follow_one(&self, topic: &Topic) -> Result<()> {
        names::check_class(topic, false)?;
        let mut followed = self.followed.lock().await;
        for _ in 0..FOLLOW_TRIES_MAX {
            let Some(subject) = self.own.subject_of(topic).await? else {
                followed.remove(topic);
                return Err(Error::NoTopic { topic: topic.clone() });
            };
            // So it is too when the server has said so after it was subscribed to.
            if followed.get(topic).is_some_and(|known| known.subject == subject) {
                return Ok(());
            }
            let stop = self.own.stop.child_token();
            let known = Followed { subject: subject.clone(), _gone: stop.clone().drop_guard() };
            self.own.listen(subject, topic.clone(), stop).await?;
            followed.insert(topic.clone(), known);
        }
        Err(Error::Unavailable { reason: format!("'{topic}' is made again and again") })
    }
}

impl Own {
    /// Where the followers of a topic listen; `None` where it is absent.
    async fn subject_of(&self, topic: &Topic) -> Result<Option<String>> {
        let found = admin::look_at(&self.link, &names::stream(topic), self.within).await?;
        let Some(found) = found else { return Ok(None) };
        match found.config.republish {
            Some(again) => Ok(Some(again.destination)),
            None => Err(Error::Mismatch {
                name: found.config.name,
                wanted: "a stream that publishes again".to_owned(),
                found: "one that does not".to_owned(),
            }),
        }
    }

    async fn listen(self: &Arc<Self>, subject: String, topic: Topic, stop: CancellationToken) -> Result<()> {
        self.link.up(self.within).await?;
        let subscriber = self.link.client.subscribe(subject).await;
        let subscriber = subscriber.map_err(|error| Error::Unavailable { reason: error.to_string() })?;
        self.tasks.spawn(self.clone().hand_on(subscriber, topic, stop));
        Ok(())
    }

    /// Hands on what comes until it is stopped.
    async fn hand_on(self: Arc<Self>, mut subscriber: Subscriber, topic: Topic, stop: CancellationToken) {
        let mut last = None;
        while let Some(Some(arrived)) = stop.run_until_cancelled(subscriber.next()).await {
            if stop.is_cancelled() {
                last = Some(arrived);
                break;
            }
            self.answer(&arrived, TAKEN).await;
            self.push(arrived, &topic);
        }
        if let Err(error) = subscriber.drain().await {
            tracing::debug!(inbox = self.name, %error, "not unsubscribed; it ends with the connection");
            return;
        }
        let rest = async {
            let mut rest = stream::iter(last).chain(subscriber);
            while let Some(arrived) = rest.next().await {
                self.answer(&arrived, GONE).await;
            }
        };
        if tokio::time::timeout(LEAVE_TIMEOUT, rest).await.is_err() {
            tracing::debug!(inbox = self.name, "what was on its way has no answer");
        }
    }

    /// So that the sender knows whether there is an inbox.
    async fn answer(&self, arrived: &Arrived, what: &'static str) {
        if let Some(reply) = arrived.reply.clone()
            && let Err(error) = self.link.client.publish(reply, Bytes::from_static(what.as_bytes())).await
        {
            tracing::debug!(inbox = self.name, %error, "a sender was not answered");
        }
    }

    fn push(&self, arrived: Arrived, topic: &Topic) {
        let message = names::message(arrived.payload, arrived.headers.as_ref());
        let bytes = message.size_bytes();
        let has_room = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= INBOX_BYTES_MAX;
        if has_room && self.out.try_send(Delivery::unsettled(message, topic.clone())).is_ok() {
            return;
        }
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if self.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(inbox = self.name, "a reader does not read; what is newest is dropped");
        }
    }
}
