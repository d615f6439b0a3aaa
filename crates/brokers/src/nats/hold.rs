//! A held name: a lease, which is a value that only its last writer can write again, and that goes when nobody does.
//!
//! The holder takes its own clock from before it asks, so it stops before the server lets the name go. Calls are made over
//! the connection that all share: one that the server has but not done yet when the lease ends may be done a moment later.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sluice_bus::{BoxFuture, BrokerAdmin, Error, Finding, PoisonBound, Result, Seen, TopicSpec, Traits};
use sluice_schema::Topic;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::admin::Admin;
use super::bucket::Bucket;
use super::{Core, names};
use crate::local::lock;

/// How long the server keeps the name for a holder that is not heard of.
pub(super) const TERM: Duration = Duration::from_secs(5);
/// How long a holder acts on what it last heard: the server's clock may run, and its work be done, that much later.
const VALID: Duration = Duration::from_secs(4);
const RENEW_INTERVAL: Duration = Duration::from_secs(1);
const RENEW_TIMEOUT: Duration = Duration::from_secs(1);

/// What stands in the bucket.
#[derive(Serialize, Deserialize)]
struct Holder {
    /// No other holder's.
    token: String,
    /// For people.
    who: String,
}

pub(super) struct Lease {
    name: String,
    key: String,
    value: Bytes,
    bucket: Bucket,
    revision: AtomicU64,
    /// `None` once it is lost, for good.
    until: Mutex<Option<Instant>>,
}

impl Lease {
    async fn take(core: &Core, name: &str) -> Result<Arc<Self>> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let who = format!("process {} on host '{}'", std::process::id(), host.trim());
        let holder = Holder { token: uuid::Uuid::new_v4().simple().to_string(), who };
        let value =
            serde_json::to_vec(&holder).map_err(|error| Error::Refused { reason: error.to_string() })?;
        let (key, value) = (names::key(name), Bytes::from(value));
        let bucket = bucket(core);
        let asked = Instant::now();
        let taken = match bucket.put(&key, value.clone(), Some(0), core.options.call_timeout).await {
            // Whether it was taken, nobody knows; then it ends by itself.
            Err(Error::OutcomeUnknown { reason, .. }) => return Err(Error::Unavailable { reason }),
            Err(Error::TimedOut { what, after_ms }) => {
                let reason = format!("{what} was not answered within {after_ms} ms");
                return Err(Error::Unavailable { reason });
            }
            taken => taken?,
        };
        let Some(revision) = taken else { return Err(Error::Held { name: name.to_owned() }) };
        let until = Mutex::new(Some(asked + VALID));
        let revision = AtomicU64::new(revision);
        Ok(Arc::new(Self { name: name.to_owned(), key, value, bucket, revision, until }))
    }

    /// How long it lasts, unless it is renewed.
    ///
    /// # Errors
    /// [`Error::HoldLost`] once it is over, for ever.
    pub(super) fn left(&self) -> Result<Duration> {
        let mut until = lock(&self.until);
        match until.map(|until| until.saturating_duration_since(Instant::now())) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => {
                *until = None;
                Err(Error::HoldLost { name: self.name.clone() })
            }
        }
    }

    /// Lasts on from when it was asked for, unless it was lost meanwhile.
    fn renewed(&self, revision: u64, asked: Instant) {
        self.revision.store(revision, Ordering::Relaxed);
        if self.left().is_ok() {
            *lock(&self.until) = Some(asked + VALID);
        }
    }

    /// Renews until it is lost or let go.
    async fn keep(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(RENEW_INTERVAL)).await.is_some() {
            if self.left().is_err() {
                break;
            }
            // To its end: what the server took of one that is given up could not be let go.
            match self.renew().await {
                Ok(true) => {}
                Ok(false) => {
                    *lock(&self.until) = None;
                    tracing::warn!(
                        hold = self.name,
                        "the hold is somebody else's; nothing more is done under it"
                    );
                    return;
                }
                Err(error) => tracing::debug!(hold = self.name, %error, "a hold is not renewed yet"),
            }
        }
        *lock(&self.until) = None;
        let revision = self.revision.load(Ordering::Relaxed);
        if let Err(error) = self.bucket.remove(revision, RENEW_TIMEOUT).await {
            tracing::debug!(hold = self.name, %error, "a hold was not let go; it ends by itself");
        }
    }

    /// Whether it is still ours. A renewal that was not answered may have been made all the same: then it is renewed from there
    /// at once, since little of it is left.
    async fn renew(&self) -> Result<bool> {
        for again in [false, true] {
            if again && self.left().is_err() {
                break;
            }
            let asked = Instant::now();
            let expected = self.revision.load(Ordering::Relaxed);
            let written =
                self.bucket.put(&self.key, self.value.clone(), Some(expected), RENEW_TIMEOUT).await?;
            if let Some(revision) = written {
                self.renewed(revision, asked);
                return Ok(true);
            }
            match self.bucket.get(&self.key, RENEW_TIMEOUT).await? {
                Some(entry) if entry.value == self.value => {
                    self.revision.store(entry.revision, Ordering::Relaxed);
                }
                _ => return Ok(false),
            }
        }
        Ok(true)
    }
}

fn bucket(core: &Core) -> Bucket {
    Bucket::new(core.link.clone(), "sluice_holds", TERM)
}

/// Who holds a name, as the holder says.
pub(super) async fn holder(core: &Core, name: &str) -> Result<Option<String>> {
    let entry = bucket(core).get(&names::key(name), core.options.call_timeout).await?;
    Ok(entry.and_then(|entry| serde_json::from_slice::<Holder>(&entry.value).ok()).map(|holder| holder.who))
}

pub(super) struct Hold {
    admin: Admin,
    lease: Arc<Lease>,
    /// What holders leave under their names.
    signatures: Bucket,
    call_timeout: Duration,
    _gone: DropGuard,
}

impl Hold {
    /// # Errors
    /// [`Error::Held`] while somebody else holds the name.
    pub(super) async fn take(core: &Core, name: &str) -> Result<Self> {
        let lease = Lease::take(core, name).await?;
        let stop = core.stop.child_token();
        core.tasks.spawn(lease.clone().keep(stop.clone()));
        let signatures = Bucket::new(core.link.clone(), "sluice_signatures", Duration::ZERO);
        let (admin, call_timeout) = (core.admin.under(lease.clone()), core.options.call_timeout);
        Ok(Self { admin, lease, signatures, call_timeout, _gone: stop.drop_guard() })
    }

    /// How long a call may take under the lease.
    fn within(&self) -> Result<Duration> {
        self.lease.left().map(|left| left.min(self.call_timeout))
    }

    async fn read_signature(&self) -> Result<Option<String>> {
        let entry = self.signatures.get(&self.lease.key, self.within()?).await?;
        Ok(entry.and_then(|entry| String::from_utf8(entry.value.into()).ok()))
    }

    async fn write_signature(&self, by: Option<&str>) -> Result<()> {
        let (key, within) = (&self.lease.key, self.within()?);
        if let Some(by) = by {
            return self.signatures.put(key, by.to_owned().into(), None, within).await.map(drop);
        }
        match self.signatures.get(key, within).await? {
            Some(entry) => self.signatures.remove(entry.revision, self.within()?).await,
            None => Ok(()),
        }
    }

    /// A call that is begun only while the name is ours.
    async fn under<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.lease.left()?;
        match call.await {
            // What was under way may have been done before the end.
            Err(error @ (Error::OutcomeUnknown { .. } | Error::TimedOut { .. })) => Err(error),
            Err(error) => Err(self.lease.left().err().unwrap_or(error)),
            // What was seen when the name may have been somebody else's is worth nothing.
            Ok(done) => self.lease.left().map(|_| done),
        }
    }
}

impl BrokerAdmin for Hold {
    fn observe<'a>(&'a self, topics: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(self.under(self.admin.observe(topics)))
    }

    fn ensure<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.under(self.admin.ensure(topic)))
    }

    fn remove<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.under(self.admin.remove(topic)))
    }

    fn remove_idle<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.under(self.admin.remove_idle(topic)))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(self.under(self.admin.list(prefix)))
    }

    fn hold<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn BrokerAdmin>>> {
        Box::pin(async move {
            Err(Error::Refused { reason: format!("'{name}' cannot be held under '{}'", self.lease.name) })
        })
    }

    fn signature(&self) -> BoxFuture<'_, Result<Option<String>>> {
        Box::pin(self.under(self.read_signature()))
    }

    fn sign<'a>(&'a self, by: Option<&'a str>) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.under(self.write_signature(by)))
    }

    fn bound_poison<'a>(&'a self, to: &'a Topic) -> BoxFuture<'a, Result<PoisonBound>> {
        Box::pin(self.under(self.admin.bound_poison(to)))
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        Box::pin(self.under(self.admin.examine()))
    }

    fn traits(&self) -> Traits {
        super::TRAITS
    }
}
