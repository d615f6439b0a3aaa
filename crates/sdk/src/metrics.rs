//! Metrics under the names that dashboards for TrustGraph 2.11 already read.

use std::sync::{Arc, Mutex};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use crate::tasks::lock;

/// Buckets of most durations, in seconds.
pub const STANDARD: [f64; 9] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Buckets of language-model durations, in seconds.
pub const LLM: [f64; 9] = [0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Buckets of whole sessions, in seconds.
pub const SESSION: [f64; 8] = [1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];

/// A histogram per label set.
pub type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Labels of a processor's consumer; `consumer` is the topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ConsumerLabels {
    /// Processor id.
    pub processor: String,
    /// Topic read.
    pub consumer: String,
}

/// [`ConsumerLabels`] with the outcome.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// Processor id.
    pub processor: String,
    /// Topic read.
    pub consumer: String,
    /// `ok` or `error`.
    pub status: String,
}

/// Labels of a processor's producer; `producer` is the topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ProducerLabels {
    /// Processor id.
    pub processor: String,
    /// Topic written.
    pub producer: String,
}

/// A processor alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ProcessorLabels {
    /// Processor id.
    pub processor: String,
}

/// All metrics of a process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    /// `tg_consumer_request_duration_seconds`: handler time.
    pub consumer_duration: Histograms<ConsumerLabels>,
    /// `tg_consumer_processing_total`: handled messages.
    pub consumer_processing: Family<OutcomeLabels, Counter>,
    /// `tg_producer_messages_total`: messages sent.
    pub producer_messages: Family<ProducerLabels, Counter>,
    /// `tg_config_version`: config version known.
    pub config_version: Gauge,
    /// `sluice_parked_total`: messages moved to the dead letters.
    pub parked: Family<ConsumerLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Arc::default(),
            consumer_duration: Family::new_with_constructor(standard_histogram as fn() -> Histogram),
            consumer_processing: Family::default(),
            producer_messages: Family::default(),
            config_version: Gauge::default(),
            parked: Family::default(),
        };
        metrics.register(
            "tg_consumer_request_duration_seconds",
            "Time a handler took",
            metrics.consumer_duration.clone(),
        );
        metrics.register("tg_consumer_processing", "Messages handled", metrics.consumer_processing.clone());
        metrics.register("tg_producer_messages", "Messages sent", metrics.producer_messages.clone());
        metrics.register("tg_config_version", "Config version known", metrics.config_version.clone());
        metrics.register("sluice_parked", "Messages moved to the dead letters", metrics.parked.clone());
        metrics
    }
}

impl Metrics {
    /// Adds a metric; counters get `_total` when written, so leave it out of the name.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        lock(&self.registry).register(name, help, metric);
    }

    /// The Prometheus text form.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &lock(&self.registry));
        text
    }
}

/// A histogram with [`STANDARD`] buckets.
#[must_use]
pub fn standard_histogram() -> Histogram {
    Histogram::new(STANDARD)
}

/// A histogram with [`LLM`] buckets.
#[must_use]
pub fn llm_histogram() -> Histogram {
    Histogram::new(LLM)
}

/// A histogram with [`SESSION`] buckets.
#[must_use]
pub fn session_histogram() -> Histogram {
    Histogram::new(SESSION)
}
