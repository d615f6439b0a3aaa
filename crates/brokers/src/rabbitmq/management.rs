//! What only the management API tells: every exchange and binding, and messages that are not acknowledged.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sluice_bus::{Error, Result};
use tokio::time::Instant;
use url::Url;

use super::address::{Address, decoded, encoded};
use super::{Options, lock};
use crate::Secret;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an API that did not answer is left alone.
const SILENCE: Duration = Duration::from_secs(30);

pub(super) struct Management {
    client: reqwest::Client,
    base: String,
    vhost: String,
    user: String,
    password: Secret,
    silent_until: Mutex<Option<Instant>>,
}

/// Bindings and counts at one moment; counts are up to five seconds old.
pub(super) struct Inventory {
    bound: HashMap<String, Vec<String>>,
    unacknowledged: HashMap<String, u64>,
}

#[derive(Deserialize)]
struct Exchange {
    name: String,
}

#[derive(Deserialize)]
struct Binding {
    source: String,
    destination: String,
    destination_type: String,
}

#[derive(Deserialize)]
struct Queue {
    name: String,
    /// Missing until the queue has told its counts for the first time.
    messages_unacknowledged: Option<u64>,
}

impl Management {
    pub(super) fn new(options: &Options, address: &Address) -> Result<Option<Self>> {
        let Some(url) = &options.management else { return Ok(None) };
        let refused = |why: String| Error::Refused {
            reason: format!("the management API's address {why}; it should look like http://host:15672"),
        };
        let mut url =
            Url::parse(url.reveal()).map_err(|error| refused(format!("cannot be read ({error})")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refused("does not begin with http:// or https://".to_owned()));
        }
        let own = address.user();
        let user =
            if url.username().is_empty() { Some(own.username.clone()) } else { decoded(url.username()) };
        let password = url.password().map_or_else(|| Some(own.password.clone()), decoded);
        let (Some(user), Some(password)) = (user, password) else {
            return Err(refused("holds bytes that are not text".to_owned()));
        };
        // The address is shown in errors: it must not hold what it came with.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        let client = reqwest::Client::builder().timeout(ANSWER_TIMEOUT).build().map_err(|error| {
            Error::Refused { reason: format!("no client for the management API: {error}") }
        })?;
        Ok(Some(Self {
            client,
            base: url.as_str().trim_end_matches('/').to_owned(),
            vhost: encoded(address.vhost()),
            user,
            password: Secret::new(password),
            silent_until: Mutex::new(None),
        }))
    }

    /// Names of all exchanges.
    pub(super) async fn exchanges(&self) -> Result<Vec<String>, String> {
        let exchanges: Vec<Exchange> = self.get("exchanges", "name").await?;
        Ok(exchanges.into_iter().map(|exchange| exchange.name).collect())
    }

    pub(super) async fn inventory(&self) -> Result<Inventory, String> {
        let (bindings, queues) = tokio::try_join!(
            self.get::<Vec<Binding>>("bindings", "source,destination,destination_type"),
            self.get::<Vec<Queue>>("queues", "name,messages_unacknowledged"),
        )?;
        let mut bound: HashMap<String, Vec<String>> = HashMap::new();
        for binding in bindings.into_iter().filter(|binding| binding.destination_type == "queue") {
            bound.entry(binding.source).or_default().push(binding.destination);
        }
        let counted =
            queues.into_iter().filter_map(|queue| Some((queue.name, queue.messages_unacknowledged?)));
        Ok(Inventory { bound, unacknowledged: counted.collect() })
    }

    /// As [`Management::inventory`]; one that does not answer is told once and then left alone for a while.
    pub(super) async fn inventory_if_it_answers(&self) -> Option<Inventory> {
        if lock(&self.silent_until).is_some_and(|until| Instant::now() < until) {
            return None;
        }
        match self.inventory().await {
            Ok(inventory) => {
                *lock(&self.silent_until) = None;
                Some(inventory)
            }
            Err(why) => {
                let was_silent = lock(&self.silent_until).replace(Instant::now() + SILENCE).is_some();
                if !was_silent {
                    tracing::warn!(why, "without the management API, unknown queues are not found");
                }
                None
            }
        }
    }

    async fn get<T: DeserializeOwned>(&self, kind: &str, columns: &str) -> Result<T, String> {
        let url = format!("{}/api/{kind}/{}?columns={columns}", self.base, self.vhost);
        let request = self.client.get(&url).basic_auth(&self.user, Some(self.password.reveal()));
        let answer = request.send().await.and_then(reqwest::Response::error_for_status);
        let answer = answer.map_err(|error| told(&error))?;
        answer.json().await.map_err(|error| told(&error))
    }
}

fn told(error: &reqwest::Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

impl Inventory {
    /// Subscriptions bound to an exchange under its name.
    pub(super) fn bound_under(&self, exchange: &str) -> Vec<String> {
        let queues = self.bound.get(exchange).into_iter().flatten();
        let own = |queue: &String| Some(queue.strip_prefix(exchange)?.strip_prefix('.')?.to_owned());
        let mut names: Vec<String> = queues.filter_map(own).collect();
        // One queue may be bound several times, with different keys.
        names.sort();
        names.dedup();
        names
    }

    pub(super) fn unacknowledged(&self, queue: &str) -> Option<u64> {
        self.unacknowledged.get(queue).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_bound_under_the_name_belongs_to_a_topic() {
        let queues =
            ["tg.flow.a.one", "tg.flow.a.one", "tg.flow.ab.two", "sluice.inbox.1"].map(str::to_owned);
        let bound = HashMap::from([("tg.flow.a".to_owned(), queues.to_vec())]);
        let inventory = Inventory { bound, unacknowledged: HashMap::new() };
        assert_eq!(inventory.bound_under("tg.flow.a"), ["one"]);
        assert!(inventory.bound_under("tg.flow.ab").is_empty());
    }
}
