//! Sending, with a receipt of the broker's, through a producer for each topic; what finds nobody is kept apart.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sluice_bus::{Address, Error, ErrorKind, Message, Result};
use sluice_schema::{Class, Topic};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::ends::Producer;
use super::link::Fault;
use super::links::{Links, Role};
use super::names::{self, Place};
use super::proto::code;
use super::rest::Call;
use super::system::System;
use crate::local::{Pauses, lock};
use crate::unroutable::Unroutable;

/// Producers that are kept for the next publish. Beyond it those go that were used longest ago.
const PRODUCERS_MAX: usize = 4_096;
/// Messages under way at once, counted in units of this size, together.
const UNIT_BYTES: usize = 1 << 10;
const UNITS_MAX: usize = 64 << 10;

pub(super) struct Publisher {
    links: Arc<Links>,
    system: Arc<System>,
    timeout: Duration,
    slots: Mutex<HashMap<Place, Arc<Slot>>>,
    uses: AtomicU64,
    room: Semaphore,
    unroutable: Unroutable,
}

#[derive(Default)]
struct Slot {
    producer: tokio::sync::Mutex<Option<Arc<Open>>>,
    used: AtomicU64,
}

struct Open {
    producer: Producer,
    /// Whether a subscription was seen: the owner removes none but with its topic, which closes the producer.
    has_readers: AtomicBool,
}

impl Publisher {
    pub(super) fn new(links: Arc<Links>, system: Arc<System>, timeout: Duration) -> Self {
        Self {
            links,
            system,
            timeout,
            slots: Mutex::default(),
            uses: AtomicU64::new(0),
            room: Semaphore::new(UNITS_MAX),
            unroutable: Unroutable::default(),
        }
    }

    pub(super) async fn publish(&self, to: &Address, message: Message) -> Result<()> {
        let absent = || match to {
            Address::Topic(topic) | Address::Subscribed(topic) => Error::NoTopic { topic: topic.clone() },
            Address::Inbox(inbox) => Error::NoInbox { inbox: inbox.to_string() },
        };
        let place = match to {
            Address::Topic(topic) | Address::Subscribed(topic) => Place::from(topic),
            Address::Inbox(inbox) => names::inbox_at(&inbox.0).ok_or_else(absent)?,
        };
        let properties = names::properties(&message)?;
        let units = message.size_bytes().div_ceil(UNIT_BYTES).clamp(1, UNITS_MAX) as u32;
        let _room = self.room.acquire_many(units).await;
        let Some(open) = self.open(&place).await? else { return Err(absent()) };
        if let Some(topic) = to.topic().filter(|topic| names::keeps(topic))
            && !self.has_readers(&open, &place).await?
        {
            return self.nobody(topic, matches!(to, Address::Subscribed(_)));
        }
        let sent = open.producer.send(None, properties, &message.body, self.timeout).await;
        let what = || format!("a publish to '{}'", place.uri());
        match sent {
            Ok(()) => Ok(()),
            Err(Fault::Lost(reason)) => match self.try_open(&place).await {
                Ok(None) => Err(absent()),
                Ok(Some(_)) | Err(_) => Err(Error::OutcomeUnknown { what: what(), reason }),
            },
            Err(Fault::TimedOut(after)) => Err(Error::OutcomeUnknown {
                what: what(),
                reason: format!("it was not confirmed within {} ms", after.as_millis()),
            }),
            Err(fault) => Err(fault.of(&what())),
        }
    }

    /// Sends to whoever reads there now; whether there is such a place.
    pub(super) async fn send(&self, place: &Place, message: &Message) -> Result<bool> {
        let properties = names::properties(message)?;
        let Some(open) = self.try_open(place).await? else { return Ok(false) };
        let sent = open.producer.send(None, properties, &message.body, self.timeout).await;
        sent.map(|()| true).map_err(|fault| fault.of(&format!("a publish to '{}'", place.uri())))
    }

    /// A producer for a topic, and none where that is absent. A lost connection is waited for.
    async fn open(&self, place: &Place) -> Result<Option<Arc<Open>>> {
        let (until, mut pauses) = (Instant::now() + self.timeout, Pauses::new());
        loop {
            match self.try_open(place).await {
                Err(error) if error.kind() == ErrorKind::Unavailable && Instant::now() < until => {
                    tracing::debug!(topic = place.uri(), %error, "nothing can be sent yet");
                    tokio::time::sleep(pauses.next()).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn try_open(&self, place: &Place) -> Result<Option<Arc<Open>>> {
        let slot = self.slot(place);
        let mut held = slot.producer.lock().await;
        if let Some(open) = held.as_ref().filter(|open| !open.producer.is_closed()) {
            return Ok(Some(open.clone()));
        }
        *held = None;
        let opened = async {
            let link = self.links.to(Role::Publish, place).await?;
            Producer::open(link, place, self.links.within()).await
        };
        match opened.await {
            Ok(producer) => {
                let open = Arc::new(Open { producer, has_readers: AtomicBool::new(false) });
                *held = Some(open.clone());
                Ok(Some(open))
            }
            Err(fault) if fault.is(code::TOPIC_NOT_FOUND) => {
                lock(&self.slots).remove(place);
                Ok(None)
            }
            Err(fault) => Err(fault.of(&format!("attaching to '{}'", place.uri()))),
        }
    }

    fn slot(&self, place: &Place) -> Arc<Slot> {
        let mut slots = lock(&self.slots);
        if slots.len() >= PRODUCERS_MAX && !slots.contains_key(place) {
            let mut uses: Vec<_> = slots.values().map(|slot| slot.used.load(Ordering::Relaxed)).collect();
            let (_, median, _) = uses.select_nth_unstable(PRODUCERS_MAX / 2);
            let oldest = *median;
            slots.retain(|_, slot| slot.used.load(Ordering::Relaxed) > oldest);
        }
        let slot = slots.entry(place.clone()).or_default();
        slot.used.store(self.uses.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        slot.clone()
    }

    /// Whether anything that is sent would be kept for somebody.
    async fn has_readers(&self, open: &Open, place: &Place) -> Result<bool> {
        if open.has_readers.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let path = [&place.path()[..], &["subscriptions"]].concat();
        let answer = self.system.call(&Call::get(&path)).await?;
        if !answer.is_done() {
            return Err(answer.error());
        }
        let subscriptions: Vec<String> = answer.read()?;
        let has_some = !subscriptions.is_empty();
        open.has_readers.store(has_some, Ordering::Relaxed);
        Ok(has_some)
    }

    /// A topic is there, and has no subscription.
    fn nobody(&self, topic: &Topic, is_on_record: bool) -> Result<()> {
        match topic.class() {
            Class::Request => Err(Error::Unroutable { topic: topic.clone() }),
            _ if is_on_record => Err(Error::NoReader { topic: topic.clone() }),
            Class::Flow | Class::Response | Class::Notify => {
                self.unroutable.count(topic);
                Ok(())
            }
        }
    }

    /// Lets all producers go.
    pub(super) fn close(&self) {
        lock(&self.slots).clear();
    }

    pub(super) const fn unroutable(&self) -> &Unroutable {
        &self.unroutable
    }
}
