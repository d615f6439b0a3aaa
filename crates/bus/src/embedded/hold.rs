//! A held name: life-cycle calls that end with it, or with the broker.

use std::sync::Arc;

use sluice_schema::Topic;

use super::Core;
use super::topic::lock;
use crate::contract::{BrokerAdmin, Finding, PoisonBound, Seen, TopicSpec, Traits};
use crate::{BoxFuture, Error, Result};

/// Keeps the name until it is dropped. It does not keep the broker running.
pub(super) struct Hold {
    core: Arc<Core>,
    name: String,
}

impl Hold {
    pub(super) fn take(core: &Arc<Core>, name: &str) -> Result<Self> {
        core.table.check_running()?;
        if !lock(&core.held).insert(name.to_owned()) {
            return Err(Error::Held { name: name.to_owned() });
        }
        Ok(Self { core: core.clone(), name: name.to_owned() })
    }

    /// The broker's folder may be somebody else's once it has stopped, and with it every name.
    async fn under<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let outcome = call.await;
        match self.core.table.check_running() {
            Err(_) if outcome.is_err() => Err(Error::HoldLost { name: self.name.clone() }),
            _ => outcome,
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        lock(&self.core.held).remove(&self.name);
    }
}

impl BrokerAdmin for Hold {
    fn observe<'a>(&'a self, topics: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(self.under(async move { self.core.observe(topics) }))
    }

    fn ensure<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.under(self.core.ensure(topic)))
    }

    fn remove<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.under(self.core.remove(topic)))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(self.under(async move { self.core.list(prefix) }))
    }

    fn hold<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn BrokerAdmin>>> {
        Box::pin(async move {
            Err(Error::Refused { reason: format!("'{name}' cannot be held under '{}'", self.name) })
        })
    }

    fn bound_poison<'a>(&'a self, to: &'a Topic) -> BoxFuture<'a, Result<PoisonBound>> {
        Box::pin(self.under(async move { self.core.bound_poison(to) }))
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        Box::pin(self.under(async move { self.core.examine() }))
    }

    fn traits(&self) -> Traits {
        super::Embedded::TRAITS
    }
}
