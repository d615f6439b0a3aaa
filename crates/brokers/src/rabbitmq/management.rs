//! What only the management API tells: every exchange, queue and binding, and messages that are not acknowledged.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;
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
    shared: Shared,
}

/// One fetch of the inventory serves all who asked before it began: a step that removes hundreds of topics at once would
/// else fetch everything for each of them.
#[derive(Default)]
struct Shared {
    begun: AtomicU64,
    /// The last fetch: its number and what came of it.
    last: tokio::sync::Mutex<(u64, Option<Fetched>)>,
}

type Fetched = Result<Arc<Inventory>, String>;

impl Shared {
    /// What a fetch tells that began after this call.
    async fn fetch(&self, fetch: impl Future<Output = Result<Inventory, String>>) -> Fetched {
        let asked = self.begun.load(Ordering::Acquire);
        let mut last = self.last.lock().await;
        if let (number, Some(outcome)) = &*last
            && *number > asked
        {
            return outcome.clone();
        }
        let number = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let outcome = fetch.await.map(Arc::new);
        *last = (number, Some(outcome.clone()));
        outcome
    }
}

/// Names, bindings and counts at one moment; counts are up to five seconds old.
#[derive(Default)]
pub(super) struct Inventory {
    exchanges: BTreeSet<String>,
    bound: HashMap<String, Vec<String>>,
    /// Queues that are bound to no exchange.
    unbound: Vec<String>,
    queues: HashMap<String, Queue>,
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
struct Named {
    name: String,
    #[serde(flatten)]
    queue: Queue,
}

/// What is told of a queue. Counts are missing until it has told them for the first time.
#[derive(Deserialize)]
pub(super) struct Queue {
    /// `classic`, `quorum` or `stream`.
    #[serde(default)]
    r#type: String,
    pub(super) messages_ready: Option<u64>,
    pub(super) messages_unacknowledged: Option<u64>,
    pub(super) consumers: Option<u64>,
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
            shared: Shared::default(),
        }))
    }

    pub(super) fn vhost(&self) -> &str {
        &self.vhost
    }

    pub(super) async fn inventory(&self) -> Result<Arc<Inventory>, String> {
        self.shared.fetch(self.fetch()).await
    }

    /// What was fetched last, however long ago; nothing while a fetch is under way.
    pub(super) fn last(&self) -> Option<Arc<Inventory>> {
        self.shared.last.try_lock().ok()?.1.as_ref()?.as_ref().ok().cloned()
    }

    async fn fetch(&self) -> Result<Inventory, String> {
        let vhost = &self.vhost;
        let (bindings, queues, exchanges) = (
            format!("bindings/{vhost}?columns=source,destination,destination_type"),
            format!("queues/{vhost}?columns=name,type,messages_ready,messages_unacknowledged,consumers"),
            format!("exchanges/{vhost}?columns=name"),
        );
        let (bindings, queues, exchanges) = tokio::try_join!(
            self.get::<Vec<Binding>>(&bindings),
            self.get::<Vec<Named>>(&queues),
            self.get::<Vec<Exchange>>(&exchanges),
        )?;
        let mut bound: HashMap<String, Vec<String>> = HashMap::new();
        // Every queue is bound to the exchange without a name.
        let told = |binding: &Binding| binding.destination_type == "queue" && !binding.source.is_empty();
        for binding in bindings.into_iter().filter(told) {
            bound.entry(binding.source).or_default().push(binding.destination);
        }
        let any: HashSet<&String> = bound.values().flatten().collect();
        let unbound = queues.iter().map(|queue| &queue.name).filter(|name| !any.contains(name));
        Ok(Inventory {
            unbound: unbound.cloned().collect(),
            exchanges: exchanges.into_iter().map(|exchange| exchange.name).collect(),
            queues: queues.into_iter().map(|named| (named.name, named.queue)).collect(),
            bound,
        })
    }

    /// As [`Management::inventory`]; one that does not answer is told once and then left alone for a while.
    pub(super) async fn inventory_if_it_answers(&self) -> Option<Arc<Inventory>> {
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

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        let answer = self.ask(self.client.get(format!("{}/api/{path}", self.base))).await?;
        answer.json().await.map_err(|error| told(&error))
    }

    pub(super) async fn put<T: Serialize + Sync>(&self, path: &str, body: &T) -> Result<(), String> {
        self.ask(self.client.put(format!("{}/api/{path}", self.base)).json(body)).await.map(drop)
    }

    async fn ask(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, String> {
        let request = request.basic_auth(&self.user, Some(self.password.reveal()));
        let answer = request.send().await.and_then(reqwest::Response::error_for_status);
        answer.map_err(|error| told(&error))
    }
}

fn told(error: &reqwest::Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

impl Queue {
    /// Whether it can be removed on conditions; others end the whole connection when asked to.
    pub(super) fn is_classic(&self) -> bool {
        self.r#type == "classic"
    }
}

impl Inventory {
    pub(super) fn exchanges(&self) -> impl Iterator<Item = &str> {
        self.exchanges.iter().map(String::as_str)
    }

    /// Subscriptions under an exchange's name: bound to it, or bound to nothing and of no other exchange.
    pub(super) fn subscriptions(&self, exchange: &str) -> Vec<String> {
        let bound = self.bound.get(exchange).into_iter().flatten();
        let unbound =
            self.unbound.iter().filter(|queue| self.owner(queue).is_none_or(|name| name == exchange));
        let own = |queue: &String| Some(queue.strip_prefix(exchange)?.strip_prefix('.')?.to_owned());
        let mut names: Vec<String> = bound.chain(unbound).filter_map(own).collect();
        // One queue may be bound several times, with different keys.
        names.sort();
        names.dedup();
        names
    }

    /// Queues under no exchange's name.
    pub(super) fn orphans(&self) -> impl Iterator<Item = &str> {
        self.unbound.iter().filter(|queue| self.owner(queue).is_none()).map(String::as_str)
    }

    /// The exchange whose name a queue's begins with; of several the longest.
    pub(super) fn owner(&self, queue: &str) -> Option<&str> {
        let ends = queue.rmatch_indices('.').map(|(at, _)| &queue[..at]);
        ends.into_iter().find_map(|prefix| self.exchanges.get(prefix)).map(String::as_str)
    }

    pub(super) fn has_exchange(&self, name: &str) -> bool {
        self.exchanges.contains(name)
    }

    pub(super) fn queue(&self, name: &str) -> Option<&Queue> {
        self.queues.get(name)
    }

    pub(super) fn unacknowledged(&self, queue: &str) -> Option<u64> {
        self.queues.get(queue)?.messages_unacknowledged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_bound_under_the_name_or_nowhere_belongs_to_a_topic() {
        let queues =
            ["tg.flow.a.one", "tg.flow.a.one", "tg.flow.ab.two", "sluice.inbox.1"].map(str::to_owned);
        let bound = HashMap::from([("tg.flow.a".to_owned(), queues.to_vec())]);
        let unbound = ["tg.flow.a.three", "tg.flow.a.b.four", "tg.flow.c.five", "six"].map(str::to_owned);
        let exchanges = ["tg.flow.a", "tg.flow.a.b", "tg.flow.ab"].map(str::to_owned).into();
        let inventory = Inventory { exchanges, bound, unbound: unbound.to_vec(), queues: HashMap::new() };
        assert_eq!(inventory.subscriptions("tg.flow.a"), ["one", "three"]);
        assert_eq!(inventory.subscriptions("tg.flow.a.b"), ["four"]);
        assert!(inventory.subscriptions("tg.flow.ab").is_empty());
        assert_eq!(inventory.subscriptions("tg.flow.c"), ["five"]);
        assert_eq!(inventory.orphans().collect::<Vec<_>>(), ["tg.flow.c.five", "six"]);
    }

    #[tokio::test]
    async fn one_fetch_serves_all_who_asked_before_it_began_and_none_who_asked_after() {
        let shared = Shared::default();
        let fetched = AtomicU64::new(0);
        let (go, gone) = (tokio::sync::Notify::new(), tokio::sync::Notify::new());
        let fetch = || async {
            fetched.fetch_add(1, Ordering::SeqCst);
            gone.notify_one();
            go.notified().await;
            Ok(Inventory::default())
        };
        let first = shared.fetch(fetch());
        let late = async {
            gone.notified().await;
            // These come while the first is under way: it may have missed what they want to see.
            let all = futures_util::future::join_all((0..10).map(|_| shared.fetch(fetch())));
            let release = async {
                go.notify_one();
                gone.notified().await;
                go.notify_one();
            };
            tokio::join!(all, release).0
        };
        let (_, late) = tokio::join!(first, late);
        assert!(late.iter().all(Result::is_ok));
        assert_eq!(fetched.load(Ordering::SeqCst), 2);
    }
}
