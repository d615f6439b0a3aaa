//! Writing to the registry and the leases, and reading them up to now.

use std::sync::Arc;
use std::time::Duration;

use krafka::Record;
use krafka::admin::{
    AdminClient, CreateTopicsOptions, DescribeTopicsOptions, ListOffsetsOptions, NewTopic, OffsetSpec,
};
use krafka::consumer::TopicPartition;
use krafka::error::ErrorCode;
use krafka::producer::Producer;
use serde::Serialize;
use sluice_bus::{Error, Result};
use sluice_schema::Topic;
use tokio::time::Instant;

use super::fault;
use super::registry::{Entry, Key, Log, Registry};
use crate::local::Pauses;

/// How long records of leases are kept; the youngest decide.
const LEASES_RETENTION: Duration = Duration::from_secs(600);
/// How many replicas are wanted of each topic.
const REPLICAS_WANTED: usize = 3;

pub(super) struct Book {
    pub(super) registry: Arc<Registry>,
    admin: Arc<AdminClient>,
    /// What is written here waits for nothing else.
    producer: Producer,
    within: Duration,
    /// Of each topic that is made.
    replicas: i16,
}

impl Book {
    pub(super) fn new(
        registry: Arc<Registry>,
        admin: Arc<AdminClient>,
        producer: Producer,
        brokers: usize,
        within: Duration,
    ) -> Self {
        let replicas = brokers.clamp(1, REPLICAS_WANTED) as i16;
        Self { registry, admin, producer, within, replicas }
    }

    pub(super) const fn is_alone(&self) -> bool {
        self.replicas == 1
    }

    /// Makes both logs where they are missing.
    pub(super) async fn open(&self) -> Result<()> {
        for log in Log::ALL {
            if self.is_made(log.name()).await? {
                continue;
            }
            let configs = match log {
                Log::Registry => vec![("cleanup.policy", "compact".to_owned())],
                Log::Leases => vec![
                    ("retention.ms", LEASES_RETENTION.as_millis().to_string()),
                    ("segment.ms", (LEASES_RETENTION / 2).as_millis().to_string()),
                ],
            };
            self.make(log.name(), configs, self.within).await?;
        }
        Ok(())
    }

    /// Makes a topic at the broker; one that is there stays as it is. Whether it is a new one.
    pub(super) async fn make(
        &self,
        place: &str,
        configs: Vec<(&'static str, String)>,
        within: Duration,
    ) -> Result<bool> {
        let doing = format!("making the topic '{place}'");
        let topic = NewTopic::new(place, 1, self.replicas).map_err(|error| fault::of(&error, &doing))?;
        let topic = topic.with_config("message.timestamp.type", "LogAppendTime");
        // What a single broker has acknowledged is on its disk; several keep it for each other.
        let topic = if self.is_alone() { topic } else { topic.with_config("min.insync.replicas", "2") };
        let topic = configs.into_iter().fold(topic, |topic, (name, value)| topic.with_config(name, value));
        let made = self.admin.create_topics([topic], CreateTopicsOptions::default().timeout(within)).await;
        match made.map_err(|error| fault::of_change(&error, &doing))?.remove(place) {
            Some(Err(error)) if fault::is(&error, ErrorCode::TopicAlreadyExists) => Ok(false),
            Some(Err(error)) => Err(fault::of_change(&error, &doing)),
            Some(Ok(_)) | None => Ok(true),
        }
    }

    /// Whether the broker has a topic of this name.
    pub(super) async fn is_made(&self, place: &str) -> Result<bool> {
        Ok(self.partitions(place).await?.is_some())
    }

    /// How many partitions a topic has; `None` where it is absent.
    pub(super) async fn partitions(&self, place: &str) -> Result<Option<usize>> {
        let doing = format!("looking at the topic '{place}'");
        let options = DescribeTopicsOptions::default().timeout(self.within);
        let seen = self.admin.describe_topics([place], options).await;
        match seen.map_err(|error| fault::of(&error, &doing))?.remove(place) {
            Some(Err(error)) if fault::is_no_topic(&error) => Ok(None),
            Some(Err(error)) => Err(fault::of(&error, &doing)),
            Some(Ok(found)) => Ok(Some(found.partitions.len())),
            None => Ok(None),
        }
    }

    /// An offset of a topic that was made. One that was made just now may not be known everywhere yet.
    pub(super) async fn offset(&self, place: &str, which: OffsetSpec) -> Result<i64> {
        let doing = format!("looking for the end of '{place}'");
        let until = Instant::now() + self.within;
        let mut pauses = Pauses::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let at = TopicPartition::new(place, 0);
            let options = ListOffsetsOptions::default().timeout(left);
            let found = self.admin.list_offsets([(at.clone(), which)], options).await;
            let error = match found.map(|mut found| found.remove(&at)) {
                Ok(Some(Ok(found))) => {
                    self.registry.heard();
                    return Ok(found.offset);
                }
                Ok(Some(Err(error))) | Err(error) => error,
                Ok(None) => return Err(Error::Unavailable { reason: format!("{doing}: no answer") }),
            };
            if !(fault::is_no_topic(&error) || error.is_retriable()) || left.is_zero() {
                self.registry.missed(&error);
                return Err(fault::of(&error, &doing));
            }
            tokio::time::sleep(pauses.next().min(left)).await;
        }
    }

    /// Reads a log up to what was in it when this was called.
    pub(super) async fn sync(&self, log: Log) -> Result<()> {
        let end = self.offset(log.name(), OffsetSpec::Latest).await?;
        self.until_read(log, end).await
    }

    /// A topic that is there, as of now.
    pub(super) async fn topic(&self, topic: &Topic) -> Result<Option<Entry>> {
        self.sync(Log::Registry).await?;
        Ok(self.registry.topic(topic))
    }

    async fn until_read(&self, log: Log, end: i64) -> Result<()> {
        let read = self.registry.until(|registry| registry.read(log) >= end);
        tokio::time::timeout(self.within, read).await.map_err(|_| Error::Unavailable {
            reason: format!("'{}' could not be read within {} ms", log.name(), self.within.as_millis()),
        })
    }

    /// Writes a record, and reads up to it; `None` removes what was there.
    pub(super) async fn write<T: Serialize>(
        &self,
        key: &Key,
        value: Option<&T>,
        within: Duration,
    ) -> Result<()> {
        let doing = format!("writing '{}' to '{}'", key.text(), key.log().name());
        let record = match value.map(serde_json::to_vec).transpose() {
            Ok(Some(value)) => Record::new(key.log().name(), value),
            Ok(None) => Record::tombstone(key.log().name(), key.text()),
            Err(error) => return Err(Error::Refused { reason: format!("{doing}: {error}") }),
        };
        let sent = tokio::time::timeout(within, self.producer.send(record.key(key.text()))).await;
        let sent = sent.map_err(|after| {
            self.registry.missed(&after.into());
            Error::OutcomeUnknown {
                what: doing.clone(),
                reason: format!("it was not confirmed within {} ms", within.as_millis()),
            }
        })?;
        let sent = sent.inspect_err(|error| self.registry.missed(error));
        let offset = sent.map_err(|error| fault::of_change(&error, &doing))?.offset;
        self.registry.heard();
        self.until_read(key.log(), offset + 1).await
    }

    pub(super) async fn close(&self) {
        let closed = self.producer.close_with(krafka::CloseOptions::new().timeout(self.within)).await;
        if let Err(error) = closed {
            tracing::debug!(%error, "not all was written to the registry");
        }
    }
}
