//! What only the management API tells: every exchange, queue and binding, and messages that are not acknowledged.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::StatusCode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sluice_bus::{Error, Result};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use url::Url;

use super::address::{Address, encoded};
use super::{Options, lock};
use crate::Secret;
use crate::local::decoded;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for all that a broker has: some thousand queues take a second.
const INVENTORY_TIMEOUT: Duration = Duration::from_secs(20);
/// Objects of a whole inventory that cost as much as looking at one topic by itself.
const WORTH_OF_ONE: usize = 25;
/// How old what a look relies on may be.
const INVENTORY_AGE_MAX: Duration = Duration::from_secs(60);
/// Questions about single queues under way at once.
const QUESTIONS_MAX: usize = 8;
/// How long an API that did not answer is left alone.
const SILENCE: Duration = Duration::from_secs(30);

pub(super) struct Management {
    client: reqwest::Client,
    base: String,
    vhost: String,
    user: String,
    password: Secret,
    silent_until: Mutex<Option<Instant>>,
    questions: Semaphore,
    shared: Shared,
}

/// One fetch of the inventory serves all who asked before it began: a step that removes hundreds of topics at once would
/// else fetch everything for each of them.
#[derive(Default)]
struct Shared {
    begun: AtomicU64,
    /// The last fetch: its number and what came of it.
    last: tokio::sync::Mutex<(u64, Option<Fetched>)>,
    /// The last fetch that succeeded, and when.
    good: Mutex<Option<(Instant, Arc<Inventory>)>>,
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
        if let Ok(inventory) = &outcome {
            *lock(&self.good) = Some((Instant::now(), inventory.clone()));
        }
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
struct Overview {
    rabbitmq_version: String,
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

impl Binding {
    /// Whether it is one that somebody made: every queue is bound to the exchange without a name.
    fn is_to_queue(&self) -> bool {
        self.destination_type == "queue" && !self.source.is_empty()
    }
}

const QUEUE_COLUMNS: &str = "name,type,messages_ready,messages_unacknowledged,consumers";

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
        url.set_query(None);
        url.set_fragment(None);
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
            questions: Semaphore::new(QUESTIONS_MAX),
            shared: Shared::default(),
        }))
    }

    pub(super) fn vhost(&self) -> &str {
        &self.vhost
    }

    /// The version of the server.
    pub(super) async fn version(&self) -> Result<String, String> {
        let overview: Overview = self.get("overview?columns=rabbitmq_version").await?;
        Ok(overview.rabbitmq_version)
    }

    pub(super) async fn inventory(&self) -> Result<Arc<Inventory>, String> {
        self.shared.fetch(self.fetch()).await
    }

    /// What was fetched last, however long ago.
    pub(super) fn last(&self) -> Option<Arc<Inventory>> {
        self.last_since(Duration::MAX)
    }

    fn last_since(&self, age_max: Duration) -> Option<Arc<Inventory>> {
        let good = lock(&self.shared.good);
        good.as_ref().filter(|(fetched, _)| fetched.elapsed() <= age_max).map(|(_, last)| last.clone())
    }

    /// What is known for a look at so many topics, and whether it is as new as the look. On a broker with much beside them
    /// that is what was fetched last, if it is not old: everything takes seconds to fetch there.
    pub(super) async fn inventory_for(&self, topics: usize) -> (Option<Arc<Inventory>>, bool) {
        let last = self.last_since(INVENTORY_AGE_MAX);
        let is_large = |last: &Inventory| last.exchanges.len() + last.queues.len() > topics * WORTH_OF_ONE;
        match last.filter(|last| is_large(last) && !self.is_silent()) {
            Some(last) => (Some(last), false),
            None => (self.inventory_if_it_answers().await, true),
        }
    }

    /// How many messages of one queue are not acknowledged, if that can be told.
    pub(super) async fn unacknowledged(&self, queue: &str) -> Option<u64> {
        let Ok(_permit) = self.questions.acquire().await else { return None };
        let at = format!("queues/{}/{}?columns={QUEUE_COLUMNS}", self.vhost, encoded(queue));
        let found = self.get_if_there::<Named>(&at).await.ok()?;
        found.map_or(Some(0), |found| found.queue.messages_unacknowledged)
    }

    async fn fetch(&self) -> Result<Inventory, String> {
        let vhost = &self.vhost;
        let (bindings, queues, exchanges) = (
            format!("bindings/{vhost}?columns=source,destination,destination_type"),
            format!("queues/{vhost}?columns={QUEUE_COLUMNS}"),
            format!("exchanges/{vhost}?columns=name"),
        );
        let (bindings, queues, exchanges) = tokio::try_join!(
            self.get::<Vec<Binding>>(&bindings),
            self.get::<Vec<Named>>(&queues),
            self.get::<Vec<Exchange>>(&exchanges),
        )?;
        let mut bound: HashMap<String, Vec<String>> = HashMap::new();
        for binding in bindings.into_iter().filter(Binding::is_to_queue) {
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

    /// As [`Management::inventory`]; an API that does not answer is told once and then left alone for a while.
    pub(super) async fn inventory_if_it_answers(&self) -> Option<Arc<Inventory>> {
        if self.is_silent() {
            return None;
        }
        match self.inventory().await {
            Ok(inventory) => {
                if lock(&self.silent_until).take().is_some() {
                    tracing::info!("the management API answers again");
                }
                Some(inventory)
            }
            Err(why) => {
                let was_silent = lock(&self.silent_until).replace(Instant::now() + SILENCE).is_some();
                if !was_silent {
                    tracing::warn!(
                        why,
                        "the management API cannot be used: queues that nobody asked about are not found, and messages in \
                         hand are not counted; check its address and what its user may see"
                    );
                }
                None
            }
        }
    }

    fn is_silent(&self) -> bool {
        lock(&self.silent_until).is_some_and(|until| Instant::now() < until)
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        self.get_if_there(path).await?.ok_or_else(|| format!("it knows nothing of '{path}'"))
    }

    async fn get_if_there<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, String> {
        let request = self.client.get(format!("{}/api/{path}", self.base)).timeout(INVENTORY_TIMEOUT);
        let answer = self.send(request).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let answer = answer.error_for_status().map_err(|error| told(&error))?;
        answer.json().await.map(Some).map_err(|error| told(&error))
    }

    pub(super) async fn put<T: Serialize + Sync>(&self, path: &str, body: &T) -> Result<(), String> {
        let answer = self.send(self.client.put(format!("{}/api/{path}", self.base)).json(body)).await?;
        answer.error_for_status().map(drop).map_err(|error| told(&error))
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, String> {
        let request = request.basic_auth(&self.user, Some(self.password.reveal()));
        request.send().await.map_err(|error| told(&error))
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

    /// Whether a queue is bound to an exchange.
    pub(super) fn is_bound(&self, exchange: &str, queue: &str) -> bool {
        self.bound.get(exchange).is_some_and(|queues| queues.iter().any(|bound| bound == queue))
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
