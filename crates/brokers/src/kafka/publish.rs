//! Sending, with a receipt of the broker's; what finds nobody is kept apart.

use std::sync::Arc;
use std::time::Duration;

use krafka::producer::Producer;
use krafka::{KrafkaError, Record};
use sluice_bus::{Address, Error, Message, Result};
use sluice_schema::{Class, Topic};
use tokio::sync::Semaphore;

use super::book::Book;
use super::registry::Entry;
use super::{fault, names};
use crate::unroutable::Unroutable;

/// Messages under way at once, counted in units of this size, together.
const UNIT_BYTES: usize = 1 << 10;
const UNITS_MAX: usize = 64 << 10;

pub(super) struct Publisher {
    book: Arc<Book>,
    producer: Producer,
    timeout: Duration,
    bytes_max: usize,
    room: Semaphore,
    unroutable: Unroutable,
}

impl Publisher {
    pub(super) fn new(book: Arc<Book>, producer: Producer, timeout: Duration, bytes_max: usize) -> Self {
        let room = Semaphore::new(UNITS_MAX);
        Self { book, producer, timeout, bytes_max, room, unroutable: Unroutable::default() }
    }

    pub(super) async fn publish(&self, to: &Address, message: &Message) -> Result<()> {
        match to {
            Address::Topic(topic) => self.to_topic(topic, message, false).await,
            Address::Subscribed(topic) => self.to_topic(topic, message, true).await,
            Address::Inbox(inbox) => self.to_inbox(&inbox.0, message).await,
        }
    }

    async fn to_topic(&self, topic: &Topic, message: &Message, is_on_record: bool) -> Result<()> {
        let Some(entry) = self.entry(topic).await? else {
            return Err(Error::NoTopic { topic: topic.clone() });
        };
        if names::keeps(topic.class()) && entry.subscriptions.is_empty() {
            return self.nobody(topic, is_on_record);
        }
        let place = entry.place(topic);
        let record = names::record(&place, message)?;
        let registry = &self.book.registry;
        let removed = registry.until(|registry| !registry.is_there(topic, &entry.id));
        let absent = || Error::NoTopic { topic: topic.clone() };
        self.send(record, message, removed, absent).await
    }

    async fn to_inbox(&self, inbox: &str, message: &Message) -> Result<()> {
        let absent = || Error::NoInbox { inbox: inbox.to_owned() };
        let registry = &self.book.registry;
        let process = match registry.inbox(inbox) {
            Some(process) => process,
            None => {
                self.book.sync(super::registry::Log::Registry).await?;
                registry.inbox(inbox).ok_or_else(absent)?
            }
        };
        let record = names::record_to(&names::inboxes(&process), inbox, message)?;
        let removed = registry.until(|registry| registry.inbox(inbox).is_none());
        self.send(record, message, removed, absent).await
    }

    /// A topic that is there. What is not on record here may have been made a moment ago by somebody else.
    async fn entry(&self, topic: &Topic) -> Result<Option<Entry>> {
        let known = self.book.registry.topic(topic);
        match known {
            Some(entry) if !names::keeps(topic.class()) || !entry.subscriptions.is_empty() => Ok(Some(entry)),
            Some(_) | None => self.book.topic(topic).await,
        }
    }

    /// Sends a copy of a message for one of its subscriptions.
    pub(super) async fn copy(&self, place: &str, copy: &names::Copy, message: &Message) -> Result<()> {
        let record = names::record_copy(place, copy, message)?;
        self.send(record, message, std::future::pending(), || Error::Unavailable {
            reason: format!("'{place}' is removed"),
        })
        .await
    }

    async fn send(
        &self,
        record: Record,
        message: &Message,
        removed: impl Future<Output = ()>,
        absent: impl Fn() -> Error,
    ) -> Result<()> {
        let units = message.size_bytes().div_ceil(UNIT_BYTES).clamp(1, UNITS_MAX) as u32;
        let _room = self.room.acquire_many(units).await;
        let doing = format!("a publish to '{}'", record.topic);
        let sent = tokio::select! {
            biased;
            sent = tokio::time::timeout(self.timeout, self.producer.send(record)) => sent,
            // Its topic is gone, or goes: the client library would try until the deadline.
            () = removed => return Err(absent()),
        };
        let error = match sent {
            Ok(Ok(_)) => {
                self.book.registry.heard();
                return Ok(());
            }
            Ok(Err(error)) => error,
            Err(after) => {
                self.book.registry.missed(&after.into());
                let reason = format!("it was not confirmed within {} ms", self.timeout.as_millis());
                return Err(Error::OutcomeUnknown { what: doing, reason });
            }
        };
        self.book.registry.missed(&error);
        if fault::is_too_large(&error) {
            return Err(Error::TooLarge { bytes: message.body.len(), max: self.bytes_max });
        }
        match &error {
            // Never left this process.
            KrafkaError::Timeout { .. } | KrafkaError::DeliveryTimeout { possibly_written: false, .. } => {
                Err(Error::Unavailable { reason: format!("{doing}: {error}") })
            }
            _ => Err(fault::of_change(&error, &doing)),
        }
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

    pub(super) async fn close(&self, within: Duration) {
        if let Err(error) = self.producer.close_with(krafka::CloseOptions::new().timeout(within)).await {
            tracing::debug!(%error, "not all was sent before the end");
        }
    }

    pub(super) const fn unroutable(&self) -> &Unroutable {
        &self.unroutable
    }
}
