//! A held name: a lease in a log that all read in the same order. The first claim of a name that is free counts, by the broker's
//! clock, until it is not renewed for a term.
//!
//! The holder renews each second and acts for six seconds after it last did, by its own clock; others wait for eight, by the
//! broker's. One call that the broker has but not done yet may be done a moment later.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use sluice_bus::{BoxFuture, BrokerAdmin, Error, Finding, PoisonBound, Result, Seen, TopicSpec, Traits};
use sluice_schema::Topic;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::admin::Admin;
use super::book::Book;
use super::registry::{Claim, Key, Log};
use super::{Core, names};
use crate::local::lock;

pub(super) use super::registry::TERM;

/// How long a holder acts after it last renewed.
const VALID: Duration = Duration::from_secs(6);
const RENEW_INTERVAL: Duration = Duration::from_secs(1);
/// How long one renewal is waited for.
const RENEW_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) struct Lease {
    name: String,
    claim: String,
    /// `None` once it is lost, for good.
    until: Mutex<Option<Instant>>,
}

impl Lease {
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
    fn renewed(&self, asked: Instant) {
        if self.left().is_ok() {
            *lock(&self.until) = Some(asked + VALID);
        }
    }

    fn key(&self) -> Key {
        Key::Hold(self.name.clone())
    }

    fn claimed(&self, is_over: bool) -> Claim {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let who = format!("process {} on host '{}'", std::process::id(), host.trim());
        Claim { id: self.claim.clone(), who, is_over }
    }

    fn is_ours(&self, book: &Book) -> bool {
        book.registry.last_holder(&self.name).as_deref() == Some(&*self.claim)
    }

    /// Renews until it is lost or let go.
    async fn keep(self: Arc<Self>, book: Arc<Book>, stop: CancellationToken) {
        let renews = async {
            while let Ok(left) = self.left() {
                let asked = Instant::now();
                let within = left.min(RENEW_TIMEOUT);
                match book.write(&self.key(), Some(&self.claimed(false)), within).await {
                    Ok(()) if self.is_ours(&book) => self.renewed(asked),
                    Ok(()) => return,
                    Err(error) => {
                        tracing::debug!(hold = self.name, %error, "a hold could not be renewed yet")
                    }
                }
                tokio::time::sleep(RENEW_INTERVAL).await;
            }
        };
        if stop.run_until_cancelled(renews).await.is_some() {
            tracing::warn!(hold = self.name, "the hold is lost; nothing more is done under it");
        }
        *lock(&self.until) = None;
        if let Err(error) = book.write(&self.key(), Some(&self.claimed(true)), RENEW_INTERVAL).await {
            tracing::debug!(hold = self.name, %error, "a hold was not let go; its term ends it");
        }
    }
}

/// Who holds a name, as the holder says.
pub(super) async fn holder(core: &Core, name: &str) -> Result<Option<String>> {
    core.book.sync(Log::Leases).await?;
    Ok(core.book.registry.holder(name).map(|(_, who)| who))
}

pub(super) struct Hold {
    admin: Admin,
    book: Arc<Book>,
    lease: Arc<Lease>,
    _gone: DropGuard,
}

impl Hold {
    /// # Errors
    /// [`Error::Held`] while somebody else holds the name.
    pub(super) async fn take(core: &Core, name: &str) -> Result<Self> {
        let held = || Error::Held { name: name.to_owned() };
        let book = core.book.clone();
        book.sync(Log::Leases).await?;
        if book.registry.holder(name).is_some() {
            return Err(held());
        }
        let asked = Instant::now();
        let until = Mutex::new(Some(asked + VALID));
        let lease = Arc::new(Lease { name: name.to_owned(), claim: names::fresh(), until });
        // Kept from here on: a claim whose outcome is unknown is let go again.
        let stop = core.stop.child_token();
        let gone = stop.clone().drop_guard();
        let claimed = book.write(&lease.key(), Some(&lease.claimed(false)), VALID).await;
        if let Err(error) = claimed {
            let (lease, book) = (lease.clone(), book.clone());
            core.readers.spawn(async move { lease.keep(book, stop).await });
            return Err(error);
        }
        if !lease.is_ours(&book) {
            return Err(held());
        }
        core.readers.spawn(lease.clone().keep(book.clone(), stop));
        Ok(Self { admin: core.admin.under(lease.clone()), book, lease, _gone: gone })
    }

    async fn read_signature(&self) -> Result<Option<String>> {
        self.book.sync(Log::Registry).await?;
        Ok(self.book.registry.signature(&self.lease.name))
    }

    async fn write_signature(&self, by: Option<&str>) -> Result<()> {
        let key = Key::Signature(self.lease.name.clone());
        self.book.write(&key, by.as_ref(), self.lease.left()?).await
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
