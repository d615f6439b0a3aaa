//! A held name: the only producer of a topic, on a connection of its own. The broker lets nobody else be one meanwhile.
//!
//! Calls are made over the admin API, so they do not end with that connection: the holder goes by what it last heard. It asks
//! each second and acts for four seconds after it asked; the broker waits for longer before it gives up a connection that says
//! nothing. Once the connection is lost, so is the hold. One call that the broker has but not done yet may be done a moment
//! later.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use sluice_bus::{BoxFuture, BrokerAdmin, Error, Finding, PoisonBound, Result, Seen, TopicSpec, Traits};
use sluice_schema::Topic;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Core;
use super::admin::Admin;
use super::ends::Producer;
use super::link::Fault;
use super::names::{self, Place};
use super::proto::{Property, code};
use super::rest::Call;
use super::system::System;
use crate::local::lock;

/// After so long a silence nobody acts under a hold any more.
pub(super) const TERM: Duration = Duration::from_secs(5);
/// How long a holder acts on what it last heard.
const VALID: Duration = Duration::from_secs(4);
const RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// The property of a producer that says who it is.
const WHO: &str = "sluice-who";
/// The property of a hold's topic that its holders sign with.
const SIGNATURE: &str = "sluice-signature";

pub(super) struct Lease {
    name: String,
    /// `None` once it is lost, for good.
    until: Mutex<Option<Instant>>,
}

fn place(name: &str) -> Place {
    Place::system(format!("hold-{}", names::escaped(name)))
}

impl Lease {
    /// How long it lasts, unless the broker is heard of.
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
    fn renewed(&self, asked: Instant) {
        if self.left().is_ok() {
            *lock(&self.until) = Some(asked + VALID);
        }
    }

    /// Asks until it is lost or let go.
    async fn keep(self: Arc<Self>, producer: Producer, stop: CancellationToken) {
        let renews = async {
            while self.left().is_ok() {
                let asked = Instant::now();
                if producer.link().ping(VALID).await.is_ok() {
                    self.renewed(asked);
                }
                // What the answer took is part of the interval: late ones leave little time.
                tokio::time::sleep(RENEW_INTERVAL.saturating_sub(asked.elapsed())).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = producer.closed() => {
                tracing::warn!(hold = self.name, "the hold is lost; nothing more is done under it");
            }
            () = renews => tracing::warn!(hold = self.name, "the broker was not heard of; nothing more is done under this hold"),
        }
        *lock(&self.until) = None;
    }
}

/// What the broker tells of a hold's topic.
#[derive(Deserialize)]
struct Stats {
    publishers: Vec<Publisher>,
}

#[derive(Deserialize)]
struct Publisher {
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

/// Who holds a name, as the holder says.
pub(super) async fn holder(core: &Core, name: &str) -> Result<Option<String>> {
    let place = place(name);
    let path = [&place.path()[..], &["stats"]].concat();
    let answer = core.system.call(&Call::get(&path)).await?;
    if answer.is_absent() {
        return Ok(None);
    }
    let stats: Stats = if answer.is_done() { answer.read()? } else { return Err(answer.error()) };
    Ok(stats.publishers.into_iter().find_map(|mut publisher| publisher.metadata.remove(WHO)))
}

pub(super) struct Hold {
    admin: Admin,
    lease: Arc<Lease>,
    place: Place,
    system: Arc<System>,
    call_timeout: Duration,
    _gone: DropGuard,
}

impl Hold {
    /// # Errors
    /// [`Error::Held`] while somebody else holds the name.
    pub(super) async fn take(core: &Core, name: &str) -> Result<Self> {
        let place = place(name);
        core.system.make(&place, core.options.call_timeout).await?;
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let value = format!("process {} on host '{}'", std::process::id(), host.trim());
        let who = vec![Property { key: WHO.to_owned(), value }];
        let asked = Instant::now();
        let taken = async {
            let link = core.links.own_to(&place).await?;
            Producer::open_alone(link, &place, who, core.options.call_timeout).await
        };
        let producer = taken.await.map_err(|fault: Fault| {
            if fault.is(code::PRODUCER_FENCED) || fault.is(code::PRODUCER_BUSY) {
                return Error::Held { name: name.to_owned() };
            }
            fault.of(&format!("holding '{name}'"))
        })?;
        let lease = Arc::new(Lease { name: name.to_owned(), until: Mutex::new(Some(asked + VALID)) });
        let stop = core.stop.child_token();
        core.readers.spawn(lease.clone().keep(producer, stop.clone()));
        let admin = core.admin.under(lease.clone());
        let (system, call_timeout) = (core.system.clone(), core.options.call_timeout);
        Ok(Self { admin, lease, place, system, call_timeout, _gone: stop.drop_guard() })
    }

    /// How long a call may take under the lease.
    fn within(&self) -> Result<Duration> {
        self.lease.left().map(|left| left.min(self.call_timeout))
    }

    async fn read_signature(&self) -> Result<Option<String>> {
        let path = [&self.place.path()[..], &["properties"]].concat();
        let answer = self.system.rest.call(&Call::get(&path), self.within()?).await?;
        let mut properties: BTreeMap<String, String> =
            if answer.is_done() { answer.read()? } else { return Err(answer.error()) };
        Ok(properties.remove(SIGNATURE))
    }

    async fn write_signature(&self, by: Option<&str>) -> Result<()> {
        let path = [&self.place.path()[..], &["properties"]].concat();
        let call = match by {
            Some(by) => Call::put(&path, json!({SIGNATURE: by})),
            None => Call::delete(&path, &[("key", SIGNATURE)]),
        };
        let answer = self.system.rest.call(&call, self.within()?).await?;
        if answer.is_done() { Ok(()) } else { Err(answer.error()) }
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
