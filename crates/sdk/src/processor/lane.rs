//! One input of one running processor: settling, counting, retrying and parking what comes on it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use sluice_bus::{Address, Delivery, Message, letter};
use sluice_schema::message::{DeadLetter, StageReport};
use sluice_schema::{Class, Topic};

use super::Failure;
use crate::metrics::{ConsumerLabels, OutcomeLabels};
use crate::service::Served;
use crate::suspects;
use crate::{HostOptions, Process, Progress};

/// Pieces named in one failure report at most.
const PIECES_MAX: usize = 1_000;

pub(crate) struct Lane {
    pub(crate) process: Process,
    pub(crate) options: HostOptions,
    pub(crate) workspace: Arc<str>,
    pub(crate) flow: Arc<str>,
    pub(crate) processor: Arc<str>,
    pub(crate) stage: Option<&'static str>,
    pub(crate) topic: Topic,
    pub(crate) subscription: String,
    /// Set for requests.
    pub(crate) served: Option<Arc<Served>>,
    pub(crate) progress: Option<Progress>,
}

impl Lane {
    pub(crate) async fn settle(&self, delivery: Delivery, outcome: Result<(), Failure>, took: Duration) {
        self.count(outcome.is_ok(), took);
        match outcome {
            Ok(()) => delivery.ack(),
            Err(Failure::Again(reason)) if delivery.attempt < self.options.attempts_max => {
                let pause = self.options.retry.pause(delivery.attempt - 1);
                tracing::warn!(
                    processor = &*self.processor, topic = %self.topic, attempt = delivery.attempt, reason, ?pause,
                    "a message could not be processed and comes again"
                );
                self.again(delivery, pause);
            }
            Err(Failure::Again(reason) | Failure::Never(reason)) => self.park(delivery, &reason).await,
        }
    }

    /// Whether a message has ended the process as often as it may; no handler sees it again.
    pub(crate) fn is_spent(&self, delivery: &Delivery) -> bool {
        self.process.suspects.is_spent(delivery, self.options.attempts_max)
    }

    /// Parks a message that ended the process each time.
    pub(crate) async fn give_up(&self, delivery: Delivery) {
        let reason = suspects::reason(&delivery);
        self.count(false, Duration::ZERO);
        self.park(delivery, &reason).await;
    }

    /// Gives a message back, which is known then not to have ended the process.
    fn again(&self, delivery: Delivery, pause: Duration) {
        self.process.suspects.returned(&delivery.message);
        delivery.again(pause);
    }

    pub(crate) fn count(&self, ok: bool, took: Duration) {
        let (processor, consumer) = (self.processor.to_string(), self.topic.to_string());
        let status = if ok { "ok" } else { "error" }.to_owned();
        let labels = ConsumerLabels { processor: processor.clone(), consumer: consumer.clone() };
        self.process.metrics.consumer_duration.get_or_create(&labels).observe(took.as_secs_f64());
        let labels = OutcomeLabels { processor, consumer, status };
        self.process.metrics.consumer_processing.get_or_create(&labels).inc();
    }

    /// Moves a message to the workspace's dead letters; if they cannot take it now, it comes again.
    async fn park(&self, delivery: Delivery, reason: &str) {
        tracing::error!(
            processor = &*self.processor, topic = %self.topic, attempts = delivery.attempt, reason,
            "a message was moved to the dead letters; see `sluice dead ls`"
        );
        let letter = DeadLetter {
            id: uuid::Uuid::now_v7().to_string(),
            workspace: self.workspace.to_string(),
            flow: self.flow.to_string(),
            topic: self.topic.to_string(),
            subscription: self.subscription.clone(),
            reason: reason.to_owned(),
            attempts: i64::from(delivery.attempt),
            time: seconds_since_1970(),
            properties: delivery
                .message
                .properties()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            body: String::new(),
        };
        let topic = Topic::tg(Class::Flow, format!("dead-letters:{}", self.workspace));
        let parked = match topic {
            Ok(topic) => {
                let broker = &self.process.broker;
                let parked = letter::message(letter, &delivery.message.body, broker.limits());
                broker.publish(&Address::Subscribed(topic), parked).await
            }
            Err(error) => Err(sluice_bus::Error::Refused { reason: error.to_string() }),
        };
        if let Err(error) = parked {
            tracing::error!(%error, "the dead letters cannot take a message; it stays where it is");
            // One that ended the process each time comes only to be parked.
            if !self.is_spent(&delivery) {
                self.process.suspects.returned(&delivery.message);
            }
            delivery.again(self.options.retry.max);
            return;
        }
        self.report_lost(&delivery.message, reason).await;
        let labels =
            ConsumerLabels { processor: self.processor.to_string(), consumer: self.topic.to_string() };
        self.process.metrics.parked.get_or_create(&labels).inc();
        delivery.ack();
    }

    /// Tells the librarian which pieces of which document will not arrive.
    async fn report_lost(&self, message: &Message, reason: &str) {
        let (Some(stage), Some(progress)) = (self.stage, &self.progress) else { return };
        let Ok(origin) = serde_json::from_slice::<Origin>(&message.body) else { return };
        let Some((document_id, collection)) = origin.document() else { return };
        let (unit, pieces) = origin.pieces();
        let report = StageReport {
            id: format!("failed:{stage}:{}:{}", self.flow, pieces.first().map_or("", String::as_str)),
            document_id,
            collection,
            stage: stage.to_owned(),
            event: "failed".to_owned(),
            unit: unit.to_owned(),
            count: i64::try_from(pieces.len()).unwrap_or(i64::MAX),
            pieces,
            reason: reason.to_owned(),
            ..Default::default()
        };
        if let Err(error) = progress.report(report).await {
            tracing::warn!(%error, "a lost piece could not be reported");
        }
    }
}

/// Of a pipeline message, no more than a report of its loss needs: what could not be worked on may be large.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Origin {
    metadata: Option<OriginMetadata>,
    chunks: Option<ChunkIds>,
    document_id: Option<String>,
    chunk: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OriginMetadata {
    id: Option<String>,
    root: Option<String>,
    collection: Option<String>,
}

impl Origin {
    fn document(&self) -> Option<(String, String)> {
        let metadata = self.metadata.as_ref()?;
        let root = [&metadata.root, &metadata.id].into_iter().flatten().find(|id| !id.is_empty())?;
        Some((root.clone(), metadata.collection.clone().unwrap_or_default()))
    }

    /// Which pieces it carries: the ids of its chunks, else of itself.
    fn pieces(self) -> (&'static str, Vec<String>) {
        if let Some(ChunkIds(ids)) = self.chunks {
            return ("chunk", ids);
        }
        let own = self.document_id.filter(|id| !id.is_empty()).or_else(|| self.metadata?.id);
        let unit = if self.chunk.is_some() { "chunk" } else { "text" };
        (unit, own.into_iter().collect())
    }
}

/// The ids of a list of chunks, of which it keeps a bounded number.
struct ChunkIds(Vec<String>);

impl<'de> Deserialize<'de> for ChunkIds {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Id {
            #[serde(default)]
            chunk_id: Option<String>,
        }
        struct Ids;
        impl<'de> Visitor<'de> for Ids {
            type Value = ChunkIds;

            fn expecting(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                to.write_str("a list of chunks")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ChunkIds, A::Error> {
                let mut ids = Vec::new();
                while let Some(Id { chunk_id }) = list.next_element()? {
                    if ids.len() < PIECES_MAX {
                        ids.extend(chunk_id);
                    }
                }
                Ok(ChunkIds(ids))
            }
        }
        from.deserialize_seq(Ids)
    }
}

fn seconds_since_1970() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}
