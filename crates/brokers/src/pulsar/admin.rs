//! The owner's calls: making, seeing and removing topics with their subscriptions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use sluice_bus::{Error, Finding, PoisonBound, Result, Seen, SeenSubscription, TopicSpec};
use sluice_schema::{Class, Topic};

use super::beside::Beside;
use super::ends::KEEPER;
use super::hold::Lease;
use super::names::{self, Place, TENANT};
use super::notes::Notes;
use super::proto::MessageId;
use super::publish::Publisher;
use super::rest::{Answer, Call};
use super::system::{Namespace, System};

/// Topics looked at side by side.
const LOOKS_MAX: usize = 16;
/// Below this largest message, documents of usual size do not pass.
const MESSAGE_BYTES_WANTED: usize = 5 << 20;

#[derive(Clone)]
pub(super) struct Admin {
    system: Arc<System>,
    /// Counts what it could not route.
    publisher: Arc<Publisher>,
    notes: Notes,
    /// Where others take part.
    beside: Option<Arc<Beside>>,
    message_bytes_max: usize,
    call_timeout: Duration,
    /// Under which alone calls are made, where there is one.
    lease: Option<Arc<Lease>>,
}

/// What the broker tells of a topic.
#[derive(Deserialize)]
struct Stats {
    subscriptions: BTreeMap<String, SubscriptionStats>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SubscriptionStats {
    /// What is in hand included.
    msg_backlog: u64,
    unacked_messages: u64,
    consumers: Vec<ConsumerStats>,
    is_durable: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConsumerStats {
    #[serde(default)]
    consumer_name: String,
}

impl SubscriptionStats {
    fn seen(&self, name: &str, has_keeper: impl FnOnce(&str) -> bool) -> SeenSubscription {
        let unsettled = self.unacked_messages.min(self.msg_backlog);
        let keepers = self.consumers.iter().filter(|consumer| consumer.consumer_name == KEEPER).count();
        let name = names::read(name).unwrap_or_else(|| name.to_owned());
        let is_bound = keepers > 0 || has_keeper(&name);
        SeenSubscription {
            name,
            exists: true,
            ready: self.msg_backlog - unsettled,
            unsettled: Some(unsettled),
            consumers: Some((self.consumers.len() - keepers) as u64),
            is_bound: Some(is_bound),
        }
    }
}

impl Admin {
    pub(super) const fn new(
        system: Arc<System>,
        publisher: Arc<Publisher>,
        notes: Notes,
        beside: Option<Arc<Beside>>,
        message_bytes_max: usize,
        call_timeout: Duration,
    ) -> Self {
        Self { system, publisher, notes, beside, message_bytes_max, call_timeout, lease: None }
    }

    /// The same, whose calls are made under a lease only.
    pub(super) fn under(&self, lease: Arc<Lease>) -> Self {
        Self { lease: Some(lease), ..self.clone() }
    }

    /// How long a call may take: it does not outlast the lease that it is made under.
    fn within(&self) -> Result<Duration> {
        match &self.lease {
            Some(lease) => Ok(lease.left()?.min(self.call_timeout)),
            None => Ok(self.call_timeout),
        }
    }

    async fn call(&self, call: &Call<'_>) -> Result<Answer> {
        self.system.rest.call(call, self.within()?).await
    }

    pub(super) async fn ensure(&self, spec: &TopicSpec) -> Result<()> {
        if !spec.subscriptions.is_empty() {
            names::check_class(&spec.topic, true)?;
        }
        let place = Place::from(&spec.topic);
        self.system.make(&place, self.within()?).await?;
        for name in &spec.subscriptions {
            self.ensure_subscription(&place, name).await?;
        }
        match &self.beside {
            Some(beside) => beside.attend(spec).await,
            None => Ok(()),
        }
    }

    async fn ensure_subscription(&self, place: &Place, name: &str) -> Result<()> {
        let escaped = names::escaped(name);
        let path = [&place.path()[..], &["subscription", &escaped]].concat();
        let MessageId { ledger, entry } = MessageId::LATEST;
        let from = json!({"ledgerId": ledger, "entryId": entry, "partitionIndex": -1});
        let answer = self.call(&Call::put(&path, from)).await?;
        if answer.is_done() || answer.is_there_already() {
            return Ok(());
        }
        // Somebody removes the topic meanwhile.
        if answer.is_absent() {
            return Err(Error::Unavailable { reason: format!("{} is removed meanwhile", place.uri()) });
        }
        Err(answer.error())
    }

    pub(super) async fn remove(&self, spec: &TopicSpec) -> Result<()> {
        self.within()?;
        // First what the topic would not be missed with, should it stay.
        if let Some(beside) = &self.beside {
            beside.leave(&spec.topic).await?;
        }
        let place = Place::from(&spec.topic);
        let path = place.path();
        let answer = self.call(&Call::delete(&path, &[("force", "true")])).await?;
        if !answer.is_done() && !answer.is_absent() {
            return Err(answer.error());
        }
        self.publisher.unroutable().forget(&spec.topic);
        self.notes.forget_all(&spec.topic);
        match &self.beside {
            // Another process may have made its mirror again before it missed the topic.
            Some(beside) => beside.leave(&spec.topic).await,
            None => Ok(()),
        }
    }

    pub(super) async fn observe(&self, specs: &[TopicSpec]) -> Result<Vec<Seen>> {
        self.within()?;
        let looks: Vec<_> = specs.iter().map(|spec| self.look(spec)).collect();
        stream::iter(looks).buffered(LOOKS_MAX).try_collect().await
    }

    async fn look(&self, spec: &TopicSpec) -> Result<Seen> {
        let mut seen = self.seen(&spec.topic).await?;
        self.attend(&seen).await;
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

    /// Who acts sees from now on to what an owner before it made.
    async fn attend(&self, seen: &Seen) {
        let (Some(beside), true, true) = (&self.beside, self.lease.is_some(), seen.exists) else { return };
        let subscriptions = seen.subscriptions.iter().map(|seen| seen.name.clone()).collect();
        let spec = TopicSpec { topic: seen.topic.clone(), subscriptions };
        if let Err(error) = beside.attend(&spec).await {
            tracing::debug!(topic = %spec.topic, %error, "what others need of a topic is not seen to yet");
        }
    }

    async fn seen(&self, topic: &Topic) -> Result<Seen> {
        let stats = self.stats(&Place::from(topic)).await?;
        // Followers of a topic have no subscription that anybody made.
        // Made again, one without a keeper has one.
        let has_keeper =
            |name: &str| self.beside.as_ref().is_none_or(|beside| beside.is_keeping(topic, name));
        let durable = |(name, found): (&String, &SubscriptionStats)| {
            found.is_durable.then(|| found.seen(name, has_keeper))
        };
        Ok(Seen {
            topic: topic.clone(),
            exists: stats.is_some(),
            subscriptions: stats.iter().flat_map(|stats| &stats.subscriptions).filter_map(durable).collect(),
            unroutable: self.publisher.unroutable().of(topic),
        })
    }

    /// `None` where the topic is absent.
    async fn stats(&self, place: &Place) -> Result<Option<Stats>> {
        let path = [&place.path()[..], &["stats"]].concat();
        let call = Call { query: &[("getPreciseBacklog", "true")], ..Call::get(&path) };
        let answer = self.call(&call).await?;
        if answer.is_absent() {
            return Ok(None);
        }
        if answer.is_done() { answer.read().map(Some) } else { Err(answer.error()) }
    }

    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<Seen>> {
        let mut topics = Vec::new();
        for class in Class::ALL {
            topics.extend(self.topics(class).await?);
        }
        topics.retain(|topic| topic.as_str().starts_with(prefix));
        let looks: Vec<_> = topics.iter().map(|topic| self.seen(topic)).collect();
        let seen: Vec<_> = stream::iter(looks).buffered(LOOKS_MAX).try_collect().await?;
        // Some may have gone since they were listed.
        Ok(seen.into_iter().filter(|seen| seen.exists).collect())
    }

    async fn topics(&self, class: Class) -> Result<Vec<Topic>> {
        let answer = self.call(&Call::get(&["persistent", TENANT, class.as_str()])).await?;
        // Before the first topic there is no namespace.
        if answer.is_absent() {
            return Ok(Vec::new());
        }
        let uris: Vec<String> = if answer.is_done() { answer.read()? } else { return Err(answer.error()) };
        Ok(uris.iter().filter_map(|uri| names::topic(uri)).collect())
    }

    /// Only readers of ours reach these topics, and those count and park by themselves, unless others take part.
    pub(super) async fn bound_poison(&self, to: &Topic) -> Result<PoisonBound> {
        if to.class() != Class::Flow {
            return Err(Error::Refused { reason: format!("dead letters go to a flow topic, not to '{to}'") });
        }
        match self.stats(&Place::from(to)).await? {
            Some(_) if self.beside.is_some() => Ok(PoisonBound::Unbounded {
                why: "the broker leaves it to each reader's client how often it takes a message back, and TrustGraph 2.11 asks for \
                      no end; park what loops by hand"
                    .to_owned(),
            }),
            Some(_) => Ok(PoisonBound::Unneeded),
            None => Err(Error::NoTopic { topic: to.clone() }),
        }
    }

    pub(super) async fn examine(&self) -> Result<Vec<Finding>> {
        self.within()?;
        let mut findings = Vec::new();
        if self.message_bytes_max < MESSAGE_BYTES_WANTED {
            let bytes = self.message_bytes_max;
            findings.push(Finding {
                code: "max-message-small",
                topic: None,
                subscription: None,
                text: format!(
                    "the broker takes messages of {bytes} bytes at most; larger pages and results are refused"
                ),
                next: format!("set maxMessageSize to {MESSAGE_BYTES_WANTED} in the broker's configuration"),
            });
        }
        for class in Class::ALL {
            if let Some(found) = self.system.namespace(TENANT, class.as_str()).await? {
                findings.extend(losing(class, &found));
            }
        }
        Ok(findings)
    }
}

/// What about a namespace loses messages, or makes what nobody owns.
fn losing(class: Class, found: &Namespace) -> Vec<Finding> {
    let finding =
        |code, text: String, next: String| Finding { code, topic: None, subscription: None, text, next };
    let space = format!("{TENANT}/{class}");
    let mut findings = Vec::new();
    let ttl = found.get("message_ttl_in_seconds").as_u64().unwrap_or(0);
    let quotas = found.get("backlog_quota_map").to_string();
    if class == Class::Flow && (ttl > 0 || quotas.contains("consumer_backlog_eviction")) {
        findings.push(finding(
            "policy-loses-messages",
            format!("namespace '{space}' has a message TTL or a backlog quota that evicts, and drops the oldest at it"),
            format!("remove the TTL and the backlog quota of '{space}'"),
        ));
    }
    for (policy, what) in [
        ("autoTopicCreationOverride", "allowAutoTopicCreation"),
        ("autoSubscriptionCreationOverride", "allowAutoSubscriptionCreation"),
    ] {
        if found.get(policy)[what] != json!(false) {
            findings.push(finding(
                "auto-creation-on",
                format!("namespace '{space}' has {what} on: whoever attaches makes what nobody owns"),
                format!("set {what} of '{space}' to false, or restart the process that owns its topics"),
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_loses_messages_or_is_open_is_named() {
        let codes = |class, told: serde_json::Value| {
            let found: Namespace = serde_json::from_value(told).unwrap();
            losing(class, &found).iter().map(|found| found.code).collect::<Vec<_>>()
        };
        let closed = json!({
            "autoTopicCreationOverride": {"allowAutoTopicCreation": false},
            "autoSubscriptionCreationOverride": {"allowAutoSubscriptionCreation": false},
        });
        assert_eq!(codes(Class::Flow, closed.clone()), [""; 0]);
        let mut short = closed;
        short["message_ttl_in_seconds"] = json!(60);
        assert_eq!(codes(Class::Flow, short.clone()), ["policy-loses-messages"]);
        assert_eq!(codes(Class::Request, short), [""; 0]);
        assert_eq!(codes(Class::Flow, json!({})), ["auto-creation-on"; 2]);
    }
}
