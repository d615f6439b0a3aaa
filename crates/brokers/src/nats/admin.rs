//! The owner's calls: making, seeing and removing streams with their consumers.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::account::Account;
use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy};
use async_nats::jetstream::stream::{self, PersistenceMode, Republish, RetentionPolicy, StorageType};
use async_nats::jetstream::{Error as Refusal, ErrorCode};
use futures_util::{StreamExt, TryStreamExt, stream as streams};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use sluice_bus::{Error, Finding, PoisonBound, Result, Seen, SeenSubscription, TopicSpec};
use sluice_schema::{Class, Topic};

use super::hold::Lease;
use super::link::{self, Link};
use super::publish::Publisher;
use super::{Options, names};

/// Topics looked at side by side.
const LOOKS_MAX: usize = 16;
/// Readers of one subscription that may wait at once, more or less.
const WAITING_MAX: i64 = 16_384;
/// How long after a first look a second one must find nobody either: a reader asks again from time to time, and is not seen
/// for that moment.
const SECOND_LOOK: Duration = Duration::from_millis(50);
/// Share of an account's storage that is worth a word.
const STORAGE_HIGH_PERCENT: u64 = 90;
/// Below this largest message, documents of usual size do not pass.
const PAYLOAD_BYTES_WANTED: usize = 8 << 20;

#[derive(Clone)]
pub(super) struct Admin {
    link: Arc<Link>,
    /// Counts what it could not route.
    publisher: Arc<Publisher>,
    call_timeout: Duration,
    ack_wait: Duration,
    /// Under which alone calls are made, where there is one.
    lease: Option<Arc<Lease>>,
}

#[derive(Deserialize)]
struct StreamPage {
    total: usize,
    streams: Option<Vec<stream::Info>>,
}

#[derive(Deserialize)]
struct ConsumerPage {
    total: usize,
    consumers: Option<Vec<consumer::Info>>,
}

impl Admin {
    pub(super) const fn new(link: Arc<Link>, publisher: Arc<Publisher>, options: &Options) -> Self {
        Self { link, publisher, call_timeout: options.call_timeout, ack_wait: options.ack_wait, lease: None }
    }

    /// The same, whose calls are made under a lease only.
    pub(super) fn under(&self, lease: Arc<Lease>) -> Self {
        Self { lease: Some(lease), ..self.clone() }
    }

    /// A call of the API, which does not outlast the lease that it is made under.
    async fn call<V: DeserializeOwned>(
        &self,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<Result<V, Refusal>> {
        self.link.api(path, body, self.within()?).await
    }

    fn within(&self) -> Result<Duration> {
        match &self.lease {
            Some(lease) => Ok(lease.left()?.min(self.call_timeout)),
            None => Ok(self.call_timeout),
        }
    }

    pub(super) async fn ensure(&self, spec: &TopicSpec) -> Result<()> {
        if !spec.subscriptions.is_empty() {
            names::check_class(&spec.topic, true)?;
        }
        let name = names::stream(&spec.topic);
        let mut found = self.ensure_stream(&spec.topic, &name).await?;
        for subscription in &spec.subscriptions {
            let Err(refusal) = self.ensure_consumer(&name, subscription).await? else { continue };
            if !is_without_folder(&refusal) || !self.is_empty(&name).await? {
                return Err(link::refused(&refusal, "making a consumer"));
            }
            tracing::warn!(topic = %spec.topic, %refusal, "the server has lost the folder of a stream that nothing waits in; it is made anew");
            self.remove(spec).await?;
            found = self.ensure_stream(&spec.topic, &name).await?;
            for subscription in &spec.subscriptions {
                let made = self.ensure_consumer(&name, subscription).await?;
                made.map_err(|refusal| link::refused(&refusal, "making a consumer"))?;
            }
            break;
        }
        let subjects = vec![names::subject(&spec.topic)];
        let is_read = !spec.subscriptions.is_empty() || found.state.consumer_count > 0;
        // Last, so that nothing is taken for a subscription that is not there yet.
        if is_read && found.config.subjects != subjects {
            found.config.subjects = subjects;
            let path = format!("STREAM.UPDATE.{name}");
            let updated = self.call::<stream::Info>(&path, &encoded(&found.config)?).await?;
            updated.map_err(|refusal| link::refused(&refusal, "binding a stream"))?;
        }
        Ok(())
    }

    async fn ensure_stream(&self, topic: &Topic, name: &str) -> Result<stream::Info> {
        let wanted = stream_config(topic, name, self.link.replicas);
        let found = match self.stream(name).await? {
            Some(found) => found,
            None => {
                match self.link.make(&wanted, self.within()?).await? {
                    Ok(made) => return Ok(made),
                    // Somebody else made it just now.
                    Err(refusal) if refusal.error_code() == ErrorCode::STREAM_NAME_EXIST => {
                        let found = self.stream(name).await?;
                        found.ok_or_else(|| Error::Unavailable { reason: refusal.to_string() })?
                    }
                    Err(refusal) => return Err(link::refused(&refusal, "making a stream")),
                }
            }
        };
        if found.config.retention != wanted.retention {
            return Err(Error::Mismatch {
                name: name.to_owned(),
                wanted: format!("{:?} retention", wanted.retention),
                found: format!("{:?} retention", found.config.retention),
            });
        }
        if found.config.num_replicas < wanted.num_replicas {
            return self.replicated(found, wanted.num_replicas).await;
        }
        Ok(found)
    }

    /// Gives more replicas to a stream that was made while too few servers were there, or before there were others.
    async fn replicated(&self, found: stream::Info, replicas: usize) -> Result<stream::Info> {
        let config = stream::Config { num_replicas: replicas, ..found.config.clone() };
        let path = format!("STREAM.UPDATE.{}", config.name);
        match self.call(&path, &encoded(&config)?).await? {
            Ok(updated) => Ok(updated),
            Err(refusal) => {
                tracing::debug!(stream = config.name, %refusal, "a stream stays without more replicas");
                Ok(found)
            }
        }
    }

    /// Whether nothing waits in a stream, and nobody has anything of it in hand.
    async fn is_empty(&self, stream: &str) -> Result<bool> {
        Ok(self.stream(stream).await?.is_none_or(|found| found.state.messages == 0))
    }

    async fn ensure_consumer(&self, stream: &str, subscription: &str) -> Result<Result<(), Refusal>> {
        let name = names::consumer(subscription);
        let config = consumer_config(&name, subscription, self.ack_wait);
        let body = json!({"stream_name": stream, "config": encoded(&config)?, "action": "create"});
        let made = self.call::<consumer::Info>(&format!("CONSUMER.CREATE.{stream}.{name}"), &body).await?;
        let Err(refusal) = made else { return Ok(Ok(())) };
        if refusal.error_code() != ErrorCode::CONSUMER_ALREADY_EXISTS {
            return Ok(Err(refusal));
        }
        // An operator may have changed its bounds; it must still be one that many read and settle one by one.
        let found =
            self.call::<consumer::Info>(&format!("CONSUMER.INFO.{stream}.{name}"), &json!(null)).await?;
        let found = found.map_err(|refusal| link::refused(&refusal, "looking at a consumer"))?.config;
        if found.deliver_subject.is_none() && found.ack_policy == AckPolicy::Explicit {
            return Ok(Ok(()));
        }
        Err(Error::Mismatch {
            name: format!("{stream} / {name}"),
            wanted: "a pull consumer with explicit acknowledgement".to_owned(),
            found: refusal.to_string(),
        })
    }

    pub(super) async fn remove(&self, spec: &TopicSpec) -> Result<()> {
        self.publisher.unroutable().forget(&spec.topic);
        let path = format!("STREAM.DELETE.{}", names::stream(&spec.topic));
        match self.call::<serde_json::Value>(&path, &json!(null)).await? {
            Ok(_) => Ok(()),
            Err(refusal) if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(()),
            Err(refusal) => Err(link::refused(&refusal, "removing a stream")),
        }
    }

    pub(super) async fn remove_idle(&self, spec: &TopicSpec) -> Result<()> {
        if spec.topic.class().has_subscriptions() {
            self.check_idle(spec).await?;
            tokio::time::sleep(SECOND_LOOK).await;
            self.check_idle(spec).await?;
        }
        self.remove(spec).await
    }

    async fn check_idle(&self, spec: &TopicSpec) -> Result<()> {
        let is_flow = spec.topic.class() == Class::Flow;
        for found in self.consumers(&names::stream(&spec.topic)).await? {
            let (waiting, held, ready) = (found.num_waiting, found.num_ack_pending, found.num_pending);
            if waiting > 0 || held > 0 || (is_flow && ready > 0) {
                return Err(Error::InUse {
                    name: format!("{} / {}", spec.topic, subscription(&found)),
                    holders: format!("{waiting} readers wait, {held} messages are held and {ready} wait"),
                });
            }
        }
        Ok(())
    }

    pub(super) async fn observe(&self, specs: &[TopicSpec]) -> Result<Vec<Seen>> {
        let looks: Vec<_> = specs.iter().map(|spec| self.look(spec)).collect();
        streams::iter(looks).buffered(LOOKS_MAX).try_collect().await
    }

    async fn look(&self, spec: &TopicSpec) -> Result<Seen> {
        let name = names::stream(&spec.topic);
        let found = self.stream(&name).await?;
        let mut seen = match &found {
            Some(found) => self.seen(spec.topic.clone(), found).await?,
            None => Seen {
                topic: spec.topic.clone(),
                exists: false,
                subscriptions: Vec::new(),
                unroutable: self.publisher.unroutable().of(&spec.topic),
            },
        };
        for name in &spec.subscriptions {
            if !seen.subscriptions.iter().any(|known| known.name == *name) {
                seen.subscriptions.push(SeenSubscription {
                    name: name.clone(),
                    exists: false,
                    ready: 0,
                    unsettled: Some(0),
                    consumers: Some(0),
                    is_bound: Some(false),
                });
            }
        }
        Ok(seen)
    }

    async fn seen(&self, topic: Topic, found: &stream::Info) -> Result<Seen> {
        let is_bound = found.config.subjects == [names::subject(&topic)];
        let consumers = match found.state.consumer_count {
            0 => Vec::new(),
            _ => self.consumers(&found.config.name).await?,
        };
        let subscriptions = consumers.iter().map(|found| SeenSubscription {
            name: subscription(found),
            exists: true,
            ready: found.num_pending,
            unsettled: Some(found.num_ack_pending as u64),
            // It shows who waits for a message. Who has one in hand does not wait.
            consumers: (found.num_waiting == 0 && found.num_ack_pending == 0).then_some(0),
            is_bound: Some(is_bound),
        });
        let unroutable = self.publisher.unroutable().of(&topic);
        Ok(Seen { subscriptions: subscriptions.collect(), exists: true, unroutable, topic })
    }

    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<Seen>> {
        let found = self.streams().await?;
        let ours = found.iter().filter_map(|found| Some((topic_of(found)?, found)));
        let wanted: Vec<_> = ours
            .filter(|(topic, _)| topic.as_str().starts_with(prefix))
            .map(|(topic, found)| self.seen(topic, found))
            .collect();
        streams::iter(wanted).buffered(LOOKS_MAX).try_collect().await
    }

    async fn streams(&self) -> Result<Vec<stream::Info>> {
        let mut found = Vec::new();
        loop {
            let page = self.call::<StreamPage>("STREAM.LIST", &json!({"offset": found.len()})).await?;
            let page = page.map_err(|refusal| link::refused(&refusal, "listing streams"))?;
            let more = page.streams.unwrap_or_default();
            let is_last = more.is_empty();
            found.extend(more);
            if is_last || found.len() >= page.total {
                return Ok(found);
            }
        }
    }

    /// Consumers of a stream; none where it is absent.
    async fn consumers(&self, stream: &str) -> Result<Vec<consumer::Info>> {
        let mut found = Vec::new();
        loop {
            let path = format!("CONSUMER.LIST.{stream}");
            let page = match self.call::<ConsumerPage>(&path, &json!({"offset": found.len()})).await? {
                Ok(page) => page,
                Err(refusal) if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND => return Ok(Vec::new()),
                Err(refusal) => return Err(link::refused(&refusal, "listing consumers")),
            };
            let more = page.consumers.unwrap_or_default();
            let is_last = more.is_empty();
            found.extend(more);
            if is_last || found.len() >= page.total {
                return Ok(found);
            }
        }
    }

    async fn stream(&self, name: &str) -> Result<Option<stream::Info>> {
        if let Some(lease) = &self.lease {
            lease.left()?;
        }
        look_at(&self.link, name, self.call_timeout).await
    }

    /// Only readers of ours reach these queues, and those count and park by themselves.
    pub(super) async fn bound_poison(&self, to: &Topic) -> Result<PoisonBound> {
        if to.class() != Class::Flow {
            return Err(Error::Refused { reason: format!("dead letters go to a flow topic, not to '{to}'") });
        }
        match self.stream(&names::stream(to)).await? {
            Some(_) => Ok(PoisonBound::Unneeded),
            None => Err(Error::NoTopic { topic: to.clone() }),
        }
    }

    pub(super) async fn examine(&self) -> Result<Vec<Finding>> {
        let account = self.call::<Account>("INFO", &json!(null)).await?;
        let account = account.map_err(|refusal| link::refused(&refusal, "looking at the account"))?;
        let mut findings: Vec<_> = storage(&account).into_iter().collect();
        let bytes = self.link.client.max_payload();
        if bytes < PAYLOAD_BYTES_WANTED {
            findings.push(Finding {
                code: "max-payload-small",
                topic: None,
                subscription: None,
                text: format!(
                    "the server takes messages of {bytes} bytes at most; larger pages and results are refused"
                ),
                next: format!("set max_payload to {PAYLOAD_BYTES_WANTED} in the server's configuration"),
            });
        }
        for found in self.streams().await? {
            let Some(topic) = topic_of(&found) else { continue };
            findings.extend(losing(&topic, &found));
            findings.extend(exposed(topic, &found, self.link.replicas));
        }
        Ok(findings)
    }
}

/// A stream that is made while one of its name is being removed can lose its folder with that one: the server shows it, and
/// cannot write to it any more.
fn is_without_folder(refusal: &Refusal) -> bool {
    refusal.error_code() == ErrorCode::CONSUMER_CREATE
        && refusal.to_string().contains("no such file or directory")
}

/// A stream; `None` where it is absent.
pub(super) async fn look_at(link: &Link, name: &str, within: Duration) -> Result<Option<stream::Info>> {
    match link.api(&format!("STREAM.INFO.{name}"), &json!(null), within).await? {
        Ok(found) => Ok(Some(found)),
        Err(refusal) if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
        Err(refusal) => Err(link::refused(&refusal, "looking at a stream")),
    }
}

fn encoded(config: &impl serde::Serialize) -> Result<serde_json::Value> {
    serde_json::to_value(config).map_err(|error| Error::Refused { reason: error.to_string() })
}

fn topic_of(found: &stream::Info) -> Option<Topic> {
    Topic::parse(found.config.metadata.get(names::TOPIC)?).ok()
}

fn subscription(found: &consumer::Info) -> String {
    found.config.metadata.get(names::SUBSCRIPTION).unwrap_or(&found.name).clone()
}

/// What an operator set that takes messages away from readers.
fn losing(topic: &Topic, found: &stream::Info) -> Option<Finding> {
    let config = &found.config;
    let is_bounded = config.max_bytes > 0 || config.max_messages > 0 || !config.max_age.is_zero();
    (topic.class() == Class::Flow && is_bounded).then(|| Finding {
        code: "policy-loses-messages",
        topic: Some(topic.clone()),
        subscription: None,
        text: format!(
            "stream '{}' has a limit on messages, bytes or age, and drops the oldest at it",
            config.name
        ),
        next: format!("remove max_msgs, max_bytes and max_age from stream '{}'", config.name),
    })
}

/// A stream that goes with one server though there are others.
fn exposed(topic: Topic, found: &stream::Info, wanted: usize) -> Option<Finding> {
    let (name, replicas) = (&found.config.name, found.config.num_replicas);
    (replicas < wanted).then(|| Finding {
        code: "replicas-few",
        topic: Some(topic),
        subscription: None,
        text: format!(
            "{replicas} of {wanted} servers that are wanted keep stream '{name}'; without them it is away"
        ),
        next: format!("once the servers are there: nats stream edit {name} --replicas {wanted}"),
    })
}

fn storage(account: &Account) -> Option<Finding> {
    let max = account.limits.max_storage.filter(|max| *max > 0)?.unsigned_abs();
    let percent = account.storage.saturating_mul(100) / max;
    (percent >= STORAGE_HIGH_PERCENT).then(|| Finding {
        code: "storage-high",
        topic: None,
        subscription: None,
        text: format!("{percent} % of the storage that JetStream gives this account is used"),
        next: "raise max_file or the account's limit, or let flows drain".to_owned(),
    })
}

/// What a topic's stream is made with. Messages of `flow` are on the disk when their publish is acknowledged, as far as the
/// server syncs; of the others only that they exist is worth keeping, so the server writes them when it likes.
fn stream_config(topic: &Topic, name: &str, replicas: usize) -> stream::Config {
    // The server takes it for streams of one replica only; others have it in the memory of most before they acknowledge.
    let when_it_likes = (replicas == 1).then_some(PersistenceMode::Async);
    let common = stream::Config {
        name: name.to_owned(),
        max_consumers: -1,
        max_messages: -1,
        max_bytes: -1,
        max_messages_per_subject: -1,
        storage: StorageType::File,
        num_replicas: replicas,
        // No message of another incarnation has the same number, so what settles one settles nothing of the next.
        first_sequence: Some(first_sequence()),
        metadata: [(names::TOPIC.to_owned(), topic.to_string())].into(),
        ..stream::Config::default()
    };
    match topic.class() {
        Class::Flow => stream::Config {
            retention: RetentionPolicy::Interest,
            subjects: vec![names::nowhere(topic)],
            ..common
        },
        Class::Request => stream::Config {
            retention: RetentionPolicy::Interest,
            subjects: vec![names::nowhere(topic)],
            persist_mode: when_it_likes,
            allow_message_ttl: true,
            ..common
        },
        // It keeps one message only because a stream has to; followers get what is published as it passes.
        Class::Response | Class::Notify => stream::Config {
            retention: RetentionPolicy::Limits,
            subjects: vec![names::subject(topic)],
            max_messages: 1,
            persist_mode: when_it_likes,
            republish: Some(Republish {
                source: names::subject(topic),
                destination: names::followers(),
                headers_only: false,
            }),
            ..common
        },
    }
}

fn first_sequence() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    since.as_micros() as u64
}

fn consumer_config(name: &str, subscription: &str, ack_wait: Duration) -> consumer::Config {
    consumer::Config {
        durable_name: Some(name.to_owned()),
        name: Some(name.to_owned()),
        deliver_policy: DeliverPolicy::New,
        ack_policy: AckPolicy::Explicit,
        ack_wait,
        max_deliver: -1,
        // What is wanted again later counts as pending: a bound would let that hold up the rest.
        max_ack_pending: -1,
        max_waiting: WAITING_MAX,
        metadata: [(names::SUBSCRIPTION.to_owned(), subscription.to_owned())].into(),
        ..consumer::Config::default()
    }
}
