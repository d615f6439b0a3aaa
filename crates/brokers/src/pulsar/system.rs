//! What is there before any topic: a tenant and namespaces, closed, so that nothing is made but by who owns it, and kept, so
//! that nothing goes because nobody uses it for a while.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use sluice_bus::{Error, Result};
use sluice_schema::Class;
use tokio::sync::Mutex;

use super::names::{INBOXES, INCARNATION, Place, SYSTEM, TENANT};
use super::rest::{Answer, Call, Rest};

/// How long a request is kept that nobody takes: longer than anybody waits for an answer. The broker drops it some minutes
/// later.
const REQUEST_SECONDS_MAX: u64 = 60 * 60;
/// How soon the broker removes an inbox whose reader was killed.
const INBOX_IDLE_SECONDS: u64 = 60;
/// How much of notes the broker collects before it keeps the last of each only.
const NOTES_BYTES: u64 = 16 << 20;
/// How much it keeps of them until then, should it be late.
const NOTES_KEPT_MB: u64 = 256;
const NOTES_KEPT_MINUTES: u64 = 24 * 60;

pub(super) struct System {
    pub(super) rest: Arc<Rest>,
    within: Duration,
    /// Tenants whose namespaces have been seen to be as they should.
    ready: Mutex<HashSet<String>>,
}

/// A setting of a namespace: where it stands in what the broker tells, how it is set, and what it should be.
struct Policy {
    name: &'static str,
    call: &'static str,
    is_put: bool,
    value: Value,
}

/// What the broker tells of a namespace.
#[derive(Deserialize)]
pub(super) struct Namespace(Map<String, Value>);

impl Namespace {
    pub(super) fn get(&self, name: &str) -> &Value {
        self.0.get(name).unwrap_or(&Value::Null)
    }
}

impl System {
    pub(super) fn new(rest: Arc<Rest>, within: Duration) -> Self {
        Self { rest, within, ready: Mutex::default() }
    }

    pub(super) async fn call(&self, call: &Call<'_>) -> Result<Answer> {
        self.rest.call(call, self.within).await
    }

    /// Makes a topic where it is missing.
    pub(super) async fn make(&self, place: &Place, within: Duration) -> Result<()> {
        let incarnation = json!({INCARNATION: uuid::Uuid::new_v4().simple().to_string()});
        let path = place.path();
        self.ready(&place.tenant).await?;
        for _ in 0..2 {
            let answer = self.rest.call(&Call::put(&path, incarnation.clone()), within).await?;
            if answer.is_done() || answer.is_there_already() {
                return Ok(());
            }
            if !answer.is_absent() {
                return Err(answer.error());
            }
            // Somebody has removed the namespace since.
            self.ready.lock().await.remove(&place.tenant);
            self.ready(&place.tenant).await?;
        }
        Err(Error::Unavailable { reason: format!("the namespace of {} goes again and again", place.uri()) })
    }

    /// Which incarnation of a topic is there; `None` where there is none.
    pub(super) async fn incarnation(&self, place: &Place) -> Result<Option<String>> {
        let path = [&place.path()[..], &["properties"]].concat();
        let answer = self.call(&Call::get(&path)).await?;
        if answer.is_absent() {
            return Ok(None);
        }
        if !answer.is_done() {
            return Err(answer.error());
        }
        let properties: Map<String, Value> = answer.read()?;
        let incarnation = properties.get(INCARNATION).and_then(Value::as_str).unwrap_or_default();
        Ok(Some(incarnation.to_owned()))
    }

    /// Makes tenant and namespaces where they are missing, and has them be as they should.
    async fn ready(&self, tenant: &str) -> Result<()> {
        let mut ready = self.ready.lock().await;
        if ready.contains(tenant) {
            return Ok(());
        }
        for class in Class::ALL {
            self.ready_namespace(tenant, class.as_str()).await?;
        }
        if tenant == TENANT {
            self.ready_namespace(tenant, INBOXES).await?;
            self.ready_namespace(tenant, SYSTEM).await?;
        }
        ready.insert(tenant.to_owned());
        Ok(())
    }

    async fn ready_namespace(&self, tenant: &str, name: &str) -> Result<()> {
        let found = match self.namespace(tenant, name).await? {
            Some(found) => found,
            None => {
                self.make_namespace(tenant, name).await?;
                let found = self.namespace(tenant, name).await?;
                found.ok_or_else(|| Error::Unavailable {
                    reason: format!("namespace {tenant}/{name} is gone"),
                })?
            }
        };
        for policy in policies(name) {
            if !matches(found.get(policy.name), &policy.value) {
                self.set(tenant, name, policy).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn namespace(&self, tenant: &str, name: &str) -> Result<Option<Namespace>> {
        let answer = self.call(&Call::get(&["namespaces", tenant, name])).await?;
        if answer.is_absent() {
            return Ok(None);
        }
        if answer.is_done() { answer.read().map(Some) } else { Err(answer.error()) }
    }

    async fn make_namespace(&self, tenant: &str, name: &str) -> Result<()> {
        let with: Map<_, _> =
            policies(name).into_iter().map(|policy| (policy.name.to_owned(), policy.value)).collect();
        let (path, with) = (["namespaces", tenant, name], Value::Object(with));
        let mut answer = self.call(&Call::put(&path, with.clone())).await?;
        if answer.is_absent() {
            self.make_tenant(tenant).await?;
            answer = self.call(&Call::put(&path, with)).await?;
        }
        if answer.is_done() || answer.is_there_already() { Ok(()) } else { Err(answer.error()) }
    }

    async fn make_tenant(&self, tenant: &str) -> Result<()> {
        let answer = self.call(&Call::get(&["clusters"])).await?;
        let clusters: Vec<String> =
            if answer.is_done() { answer.read()? } else { return Err(answer.error()) };
        let clusters: Vec<_> = clusters.into_iter().filter(|name| name != "global").collect();
        let answer =
            self.call(&Call::put(&["tenants", tenant], json!({"allowedClusters": clusters}))).await?;
        if answer.is_done() || answer.is_there_already() { Ok(()) } else { Err(answer.error()) }
    }

    async fn set(&self, tenant: &str, name: &str, policy: Policy) -> Result<()> {
        let path = ["namespaces", tenant, name, policy.call];
        let call =
            if policy.is_put { Call::put(&path, policy.value) } else { Call::post(&path, policy.value) };
        let answer = self.call(&call).await?;
        if answer.is_done() { Ok(()) } else { Err(answer.error()) }
    }
}

/// What a namespace needs.
fn policies(name: &str) -> Vec<Policy> {
    let is_inbox = name == INBOXES;
    let post = |name, call, value| Policy { name, call, is_put: false, value };
    let mut policies = vec![
        post("autoTopicCreationOverride", "autoTopicCreation", json!({"allowAutoTopicCreation": false})),
        post(
            "autoSubscriptionCreationOverride",
            "autoSubscriptionCreation",
            json!({"allowAutoSubscriptionCreation": false}),
        ),
        post(
            "inactive_topic_policies",
            "inactiveTopicPolicies",
            json!({
                "inactiveTopicDeleteMode": "delete_when_no_subscriptions",
                "maxInactiveDurationSeconds": INBOX_IDLE_SECONDS,
                "deleteWhileInactive": is_inbox,
            }),
        ),
    ];
    if name == Class::Request.as_str() {
        policies.push(post("message_ttl_in_seconds", "messageTTL", json!(REQUEST_SECONDS_MAX)));
    }
    if name == SYSTEM {
        let kept = json!({"retentionTimeInMinutes": NOTES_KEPT_MINUTES, "retentionSizeInMB": NOTES_KEPT_MB});
        policies.push(post("retention_policies", "retention", kept));
        let (name, call) = ("compaction_threshold", "compactionThreshold");
        policies.push(Policy { name, call, is_put: true, value: json!(NOTES_BYTES) });
    }
    policies
}

/// Whether all that is wanted is there; the broker tells more.
fn matches(found: &Value, wanted: &Value) -> bool {
    match wanted {
        Value::Object(wanted) => wanted.iter().all(|(name, value)| matches(&found[name], value)),
        wanted => found == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_as_wanted_whatever_else_the_broker_tells() {
        let wanted = json!({"deleteWhileInactive": false});
        assert!(matches(&json!({"deleteWhileInactive": false, "more": 1}), &wanted));
        for found in [json!({"deleteWhileInactive": true}), json!({}), Value::Null] {
            assert!(!matches(&found, &wanted), "{found}");
        }
    }
}
