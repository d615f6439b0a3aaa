//! One input of one running processor: settling, counting, retrying and parking what comes on it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use serde_json::Value;
use sluice_bus::{Address, Delivery, Message};
use sluice_schema::message::{DeadLetter, StageReport};
use sluice_schema::{Class, Topic, wire};

use super::Failure;
use crate::metrics::{ConsumerLabels, OutcomeLabels};
use crate::service::Point;
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
    pub(crate) point: Option<Point>,
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
                delivery.again(pause);
            }
            Err(Failure::Again(reason) | Failure::Never(reason)) => self.park(delivery, &reason).await,
        }
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
            body: base64::engine::general_purpose::STANDARD.encode(&delivery.message.body),
        };
        let topic = Topic::tg(Class::Flow, format!("dead-letters:{}", self.workspace));
        let parked = match topic {
            Ok(topic) => {
                self.process.broker.publish(&Address::Topic(topic), Message::new(wire::encode(&letter))).await
            }
            Err(error) => Err(sluice_bus::Error::Refused { reason: error.to_string() }),
        };
        if let Err(error) = parked {
            tracing::error!(%error, "the dead letters cannot take a message; it stays where it is");
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
        let Ok(body) = serde_json::from_slice::<Value>(&message.body) else { return };
        let Some((document_id, collection)) = origin(&body) else { return };
        let (unit, pieces) = pieces(&body);
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

fn origin(body: &Value) -> Option<(String, String)> {
    let metadata = body.get("metadata")?;
    let root = metadata.get("root").and_then(Value::as_str).filter(|root| !root.is_empty());
    let root = root.or_else(|| metadata.get("id").and_then(Value::as_str)).filter(|root| !root.is_empty())?;
    let collection = metadata.get("collection").and_then(Value::as_str).unwrap_or_default();
    Some((root.to_owned(), collection.to_owned()))
}

/// Which pieces a pipeline message carries: the ids of its chunks, else of itself.
fn pieces(body: &Value) -> (&'static str, Vec<String>) {
    if let Some(chunks) = body.get("chunks").and_then(Value::as_array) {
        let ids = chunks.iter().filter_map(|chunk| chunk.get("chunk_id").and_then(Value::as_str));
        return ("chunk", ids.take(PIECES_MAX).map(str::to_owned).collect());
    }
    let own =
        |name: &str| body.get(name).and_then(Value::as_str).filter(|id| !id.is_empty()).map(str::to_owned);
    let id = own("document_id").or_else(|| Some(body.get("metadata")?.get("id")?.as_str()?.to_owned()));
    let unit = if body.get("chunk").is_some() { "chunk" } else { "text" };
    (unit, id.into_iter().collect())
}

fn seconds_since_1970() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}
