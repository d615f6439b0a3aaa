//! Counts tokens and what they cost, from the answers of language models.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use serde::Deserialize;
use sluice_schema::message::TextCompletionResponse;
use sluice_sdk::{BindError, Failure, Inputs, Metrics, Ports, Processor, Values};

/// Config type of prices: key = model.
const TOKEN_COST: &str = "token-cost";

/// What is counted, per model and direction. One per process; cheap to clone.
#[derive(Clone, Default)]
pub struct Meters {
    tokens: Family<Labels, Counter>,
    cost: Family<Labels, Counter<f64, AtomicU64>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    model: String,
    direction: &'static str,
}

impl Meters {
    /// Meters shown among a process's metrics.
    #[must_use]
    pub fn registered(metrics: &Metrics) -> Self {
        let meters = Self::default();
        metrics.register("tg_metering_tokens", "Tokens used by language models", meters.tokens.clone());
        metrics.register("tg_metering_cost_usd", "Cost of language models", meters.cost.clone());
        meters
    }

    fn count(&self, usage: &TextCompletionResponse, price: &Price) {
        let model = usage.model.as_deref().unwrap_or("unknown");
        for (direction, tokens, price) in
            [("input", usage.in_token, price.input_price), ("output", usage.out_token, price.output_price)]
        {
            let Some(tokens) = tokens.and_then(|tokens| u64::try_from(tokens).ok()) else { continue };
            let labels = Labels { model: model.to_owned(), direction };
            self.tokens.get_or_create(&labels).inc_by(tokens);
            if price > 0.0 {
                self.cost.get_or_create(&labels).inc_by(price * tokens as f64);
            }
        }
    }
}

/// What one token of a model costs.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Price {
    input_price: f64,
    output_price: f64,
}

/// Reads the answers of a text-completion service.
pub struct Metering {
    meters: Meters,
    prices: Values,
    workspace: String,
}

impl Processor for Metering {
    const NAME: &'static str = "metering";

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        Ok(Self {
            meters: ports.resource()?,
            prices: ports.config(TOKEN_COST),
            workspace: ports.workspace().to_owned(),
        })
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.message("input", Self::count);
    }
}

impl Metering {
    async fn count(self: Arc<Self>, usage: TextCompletionResponse) -> Result<(), Failure> {
        let model = usage.model.as_deref().unwrap_or_default();
        let price = match model {
            "" => None,
            // What was used counts in any case: the answer that says so does not come again.
            model => self.prices.get(model).await.unwrap_or_else(|error| {
                tracing::warn!(workspace = self.workspace, model, %error, "the cost of a model cannot be read; it is not counted");
                None
            }),
        };
        let price = price.map(|text| serde_json::from_str(&text));
        let price = price.transpose().unwrap_or_else(|error| {
            tracing::warn!(workspace = self.workspace, model, %error, "the token-cost record of a model cannot be read");
            None
        });
        self.meters.count(&usage, &price.unwrap_or_default());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_cost_add_up_per_model_and_direction() {
        let metrics = Metrics::default();
        let meters = Meters::registered(&metrics);
        let usage = TextCompletionResponse {
            in_token: Some(100),
            out_token: Some(5),
            model: Some("m1".to_owned()),
            ..Default::default()
        };
        let price = Price { input_price: 0.001, output_price: 0.0 };
        meters.count(&usage, &price);
        meters.count(&usage, &price);
        meters.count(&TextCompletionResponse::default(), &price);
        let text = metrics.text();
        assert!(text.contains(r#"tg_metering_tokens_total{model="m1",direction="input"} 200"#), "{text}");
        assert!(text.contains(r#"tg_metering_tokens_total{model="m1",direction="output"} 10"#), "{text}");
        assert!(text.contains(r#"tg_metering_cost_usd_total{model="m1",direction="input"} 0.2"#), "{text}");
        assert!(!text.contains("unknown"), "{text}");
    }

    #[tokio::test]
    async fn tokens_count_although_config_cannot_be_asked_what_they_cost() {
        let broker = std::sync::Arc::new(sluice_bus::Embedded::in_memory());
        let process = sluice_sdk::Process::new(broker, tokio_util::sync::CancellationToken::new());
        let watch = sluice_sdk::ConfigWatch::start(&process, std::time::Duration::from_secs(60));
        let meters = Meters::registered(&process.metrics);
        let metering = Metering { meters, prices: watch.values(TOKEN_COST, "w"), workspace: "w".to_owned() };
        let usage =
            TextCompletionResponse { in_token: Some(7), model: Some("m1".to_owned()), ..Default::default() };
        Arc::new(metering).count(usage).await.unwrap();
        let text = process.metrics.text();
        assert!(text.contains(r#"tg_metering_tokens_total{model="m1",direction="input"} 7"#), "{text}");
    }
}
