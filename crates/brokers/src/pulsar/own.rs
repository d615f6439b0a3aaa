//! A reader's own inbox: a topic that it makes and removes, which is its address, and a reading end without a trace for that
//! and for each topic that it follows. After a lost connection each goes on behind the last message that came.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use sluice_bus::{BoxFuture, Delivery, Error, Inbox, InboxAddress, Losses, Result};
use sluice_schema::{Class, Topic};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::Core;
use super::link::{Arrived, Fault};
use super::links::Links;
use super::names::{self, Place};
use super::proto::{MessageId, code};
use super::rest::Call;
use super::system::System;
use super::tail::Tail;
use crate::local::{Pauses, stopped};

/// Unread messages that an inbox holds; beyond it messages are dropped and counted.
const INBOX_MESSAGES_MAX: usize = 65_536;
/// Bytes of the unread messages that an inbox holds.
const INBOX_BYTES_MAX: usize = 256 << 20;
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
    links: Arc<Links>,
    system: Arc<System>,
    tasks: TaskTracker,
    stop: CancellationToken,
    out: mpsc::Sender<Delivery>,
    bytes: AtomicUsize,
    dropped: AtomicU64,
}

struct Followed {
    /// Of the topic that is followed.
    incarnation: String,
    /// Cancelled when it is not followed any more.
    ended: CancellationToken,
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
        links: core.links.clone(),
        system: core.system.clone(),
        tasks: core.readers.clone(),
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
        _gone: stop.drop_guard(),
    };
    own.open().await?;
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
            let Some(incarnation) = self.own.system.incarnation(&Place::from(topic)).await? else {
                followed.remove(topic);
                return Err(Error::NoTopic { topic: topic.clone() });
            };
            // So it is too when the broker has said so after it was attached to.
            let is_followed =
                |known: &Followed| known.incarnation == incarnation && !known.ended.is_cancelled();
            if followed.get(topic).is_some_and(is_followed) {
                return Ok(());
            }
            followed.insert(topic.clone(), self.own.follow(topic, incarnation).await?);
        }
        Err(Error::Unavailable { reason: format!("'{topic}' is made again and again") })
    }
}

impl Own {
    /// Makes the inbox and reads it.
    async fn open(self: &Arc<Self>) -> Result<()> {
        let refused = |error: &dyn std::fmt::Display| Error::Refused { reason: error.to_string() };
        let place = names::inbox_at(&self.name).ok_or_else(|| refused(&"an inbox needs a name"))?;
        // Stands for the address where a topic is reported.
        let direct = Topic::tg(Class::Response, &self.name).map_err(|error| refused(&error))?;
        // However far making it gets, it is removed.
        let removed = Removed { own: self.clone(), place: Some(place.clone()) };
        self.system.make(&place, self.links.within()).await?;
        let tail = Tail::open(&self.links, place, MessageId::EARLIEST, false).await;
        let tail = tail.map_err(|fault| fault.of("reading an inbox"))?;
        let (own, stop) = (self.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let _removed = removed;
            own.hand_on(tail, direct, stop, None).await;
        });
        Ok(())
    }

    async fn follow(self: &Arc<Self>, topic: &Topic, incarnation: String) -> Result<Followed> {
        let tail = Tail::open(&self.links, Place::from(topic), MessageId::LATEST, false).await;
        let tail = tail.map_err(|fault: Fault| match fault.is(code::TOPIC_NOT_FOUND) {
            true => Error::NoTopic { topic: topic.clone() },
            false => fault.of(&format!("following '{topic}'")),
        })?;
        let (stop, ended) = (self.stop.child_token(), CancellationToken::new());
        let end = ended.clone().drop_guard();
        let (own, of, until) = (self.clone(), topic.clone(), stop.clone());
        let followed = incarnation.clone();
        self.tasks.spawn(async move {
            let _end = end;
            own.hand_on(tail, of, until, Some(followed)).await;
        });
        Ok(Followed { incarnation, ended, _gone: stop.drop_guard() })
    }

    /// Hands on what comes until it is stopped, or the incarnation of a topic is gone.
    async fn hand_on(
        &self,
        mut tail: Tail,
        topic: Topic,
        stop: CancellationToken,
        incarnation: Option<String>,
    ) {
        loop {
            while let Some(Some(arrived)) = stop.run_until_cancelled(tail.next()).await {
                if stop.is_cancelled() {
                    return;
                }
                self.push(arrived, &topic);
            }
            match stop.run_until_cancelled(self.again(&mut tail, &topic, incarnation.as_deref())).await {
                Some(true) => {}
                Some(false) | None => return,
            }
        }
    }

    /// Attaches again, however long it takes; whether what was read is still there.
    async fn again(&self, tail: &mut Tail, topic: &Topic, incarnation: Option<&str>) -> bool {
        let mut pauses = Pauses::new();
        loop {
            let is_there = match incarnation {
                Some(followed) => {
                    let found = self.system.incarnation(&Place::from(topic)).await;
                    found.map(|found| found.as_deref() == Some(followed))
                }
                None => Ok(true),
            };
            match is_there {
                Ok(false) => return false,
                Ok(true) => match tail.again().await {
                    Ok(()) => return true,
                    Err(fault) if fault.is(code::TOPIC_NOT_FOUND) && incarnation.is_some() => return false,
                    // Somebody removed the inbox: its address is known to those who answer.
                    Err(fault) if fault.is(code::TOPIC_NOT_FOUND) => self.make_again().await,
                    Err(fault) => tracing::debug!(%topic, ?fault, "an inbox could not attach again yet"),
                },
                Err(error) => tracing::debug!(%topic, %error, "an inbox could not attach again yet"),
            }
            tokio::time::sleep(pauses.next()).await;
        }
    }

    async fn make_again(&self) {
        let Some(place) = names::inbox_at(&self.name) else { return };
        match self.system.make(&place, self.links.within()).await {
            Ok(()) => {
                tracing::warn!(inbox = self.name, "an inbox was removed at the broker; it is made again")
            }
            Err(error) => tracing::debug!(inbox = self.name, %error, "an inbox cannot be made again yet"),
        }
    }

    fn push(&self, arrived: Arrived, topic: &Topic) {
        let message = names::message(arrived.body, &arrived.metadata);
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

/// Removes an inbox when it is dropped.
struct Removed {
    own: Arc<Own>,
    place: Option<Place>,
}

impl Drop for Removed {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else { return };
        let (system, name) = (self.own.system.clone(), self.own.name.clone());
        self.own.tasks.spawn(async move {
            let path = place.path();
            match system.call(&Call::delete(&path, &[("force", "true")])).await {
                Ok(answer) if answer.is_done() || answer.is_absent() => {}
                Ok(answer) => tracing::debug!(name, error = %answer.error(), "an inbox goes by itself"),
                Err(error) => tracing::debug!(name, %error, "an inbox goes by itself"),
            }
        });
    }
}
