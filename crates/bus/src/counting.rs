//! A broker that counts what goes through it, for tests and benches that promise how much may.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use sluice_schema::Topic;

use crate::contract::{
    Address, Broker, BrokerAdmin, Excess, Finding, Inbox, InboxAddress, Limits, Naming, PoisonBound,
    Pressure, Seen, Subscription, TopicSpec, Traits,
};
use crate::losses::Losses;
use crate::message::{Delivery, Message};
use crate::{BoxFuture, Result};

/// What was counted for one topic. Calls count when they are made, whatever comes of them; deliveries when they arrive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Publishes.
    pub published: u64,
    /// Bytes of their bodies.
    pub published_bytes: u64,
    /// Deliveries, redeliveries included.
    pub delivered: u64,
    /// Bytes of their bodies.
    pub delivered_bytes: u64,
    /// Readers attached to it: subscriptions and follows.
    pub subscribed: u64,
    /// Times it was looked at; listing looks at every topic it finds.
    pub observed: u64,
    /// Times it was ensured.
    pub ensured: u64,
    /// Times it was removed.
    pub removed: u64,
}

/// An ordinary broker that counts, around another. Clones count together.
///
/// ```
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
/// # runtime.block_on(async {
/// use sluice_bus::{BrokerAdmin, Counting, Embedded, TopicSpec};
///
/// let broker = Counting::new(Embedded::in_memory());
/// let topic: sluice_schema::Topic = "notify:tg:config".parse()?;
/// broker.ensure(&TopicSpec::bare(topic.clone())).await?;
/// assert_eq!(broker.of(&topic).ensured, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Counting<B> {
    inner: B,
    counts: Arc<Mutex<HashMap<Topic, Counts>>>,
}

impl<B> Counting<B> {
    /// Counts around `inner`.
    pub fn new(inner: B) -> Self {
        Self { inner, counts: Arc::default() }
    }

    /// What was counted for a topic so far.
    #[must_use]
    pub fn of(&self, topic: &Topic) -> Counts {
        lock(&self.counts).get(topic).copied().unwrap_or_default()
    }

    /// What was counted for all topics together. Messages sent to an inbox's address count under the topic that their
    /// delivery names.
    #[must_use]
    pub fn total(&self) -> Counts {
        lock(&self.counts).values().fold(Counts::default(), |sum, one| Counts {
            published: sum.published + one.published,
            published_bytes: sum.published_bytes + one.published_bytes,
            delivered: sum.delivered + one.delivered,
            delivered_bytes: sum.delivered_bytes + one.delivered_bytes,
            subscribed: sum.subscribed + one.subscribed,
            observed: sum.observed + one.observed,
            ensured: sum.ensured + one.ensured,
            removed: sum.removed + one.removed,
        })
    }

    /// Starts again from zero.
    pub fn reset(&self) {
        lock(&self.counts).clear();
    }

    fn count(&self, topic: &Topic, change: impl FnOnce(&mut Counts)) {
        count(&self.counts, topic, change);
    }
}

fn count(counts: &Mutex<HashMap<Topic, Counts>>, topic: &Topic, change: impl FnOnce(&mut Counts)) {
    let mut counts = lock(counts);
    match counts.get_mut(topic) {
        Some(known) => change(known),
        None => change(counts.entry(topic.clone()).or_default()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: Broker> Broker for Counting<B> {
    fn publish<'a>(&'a self, to: &'a Address, message: Message) -> BoxFuture<'a, Result<()>> {
        if let Some(topic) = to.topic() {
            self.count(topic, |counts| {
                counts.published += 1;
                counts.published_bytes += message.body.len() as u64;
            });
        }
        self.inner.publish(to, message)
    }

    fn subscribe<'a>(&'a self, to: &'a Subscription) -> BoxFuture<'a, Result<Box<dyn Inbox>>> {
        Box::pin(async move {
            let topics = match to {
                Subscription::Shared { topic, .. } => std::slice::from_ref(topic),
                Subscription::Own { topics } => topics,
            };
            for topic in topics {
                self.count(topic, |counts| counts.subscribed += 1);
            }
            let inner = self.inner.subscribe(to).await?;
            Ok(Box::new(CountingInbox { inner, counts: self.counts.clone() }) as Box<dyn Inbox>)
        })
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn pressure(&self) -> Option<Pressure> {
        self.inner.pressure()
    }

    fn excess(&self, workspace: &str) -> Option<Excess> {
        self.inner.excess(workspace)
    }

    fn trouble(&self) -> Option<String> {
        self.inner.trouble()
    }

    fn losses(&self) -> Option<&Losses> {
        self.inner.losses()
    }

    fn naming(&self) -> Naming {
        self.inner.naming()
    }
}

impl<B: BrokerAdmin> BrokerAdmin for Counting<B> {
    fn observe<'a>(&'a self, topics: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<Seen>>> {
        for spec in topics {
            self.count(&spec.topic, |counts| counts.observed += 1);
        }
        self.inner.observe(topics)
    }

    fn ensure<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        self.count(&topic.topic, |counts| counts.ensured += 1);
        self.inner.ensure(topic)
    }

    fn remove<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        self.count(&topic.topic, |counts| counts.removed += 1);
        self.inner.remove(topic)
    }

    fn remove_idle<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        self.count(&topic.topic, |counts| counts.removed += 1);
        self.inner.remove_idle(topic)
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(async move {
            let seen = self.inner.list(prefix).await?;
            for one in &seen {
                self.count(&one.topic, |counts| counts.observed += 1);
            }
            Ok(seen)
        })
    }

    fn hold<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn BrokerAdmin>>> {
        Box::pin(async move {
            let inner = self.inner.hold(name).await?;
            Ok(Arc::new(Counting { inner, counts: self.counts.clone() }) as Arc<dyn BrokerAdmin>)
        })
    }

    fn bound_poison<'a>(&'a self, to: &'a Topic) -> BoxFuture<'a, Result<PoisonBound>> {
        self.inner.bound_poison(to)
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        self.inner.examine()
    }

    fn traits(&self) -> Traits {
        self.inner.traits()
    }

    fn product(&self) -> BoxFuture<'_, Option<String>> {
        self.inner.product()
    }
}

struct CountingInbox {
    inner: Box<dyn Inbox>,
    counts: Arc<Mutex<HashMap<Topic, Counts>>>,
}

impl Inbox for CountingInbox {
    fn next(&self) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(async move {
            let delivery = self.inner.next().await?;
            count(&self.counts, &delivery.topic, |counts| {
                counts.delivered += 1;
                counts.delivered_bytes += delivery.message.body.len() as u64;
            });
            Ok(delivery)
        })
    }

    fn begin(&self, delivery: Delivery) -> BoxFuture<'_, Result<Delivery>> {
        self.inner.begin(delivery)
    }

    fn address(&self) -> Option<InboxAddress> {
        self.inner.address()
    }

    fn follow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        count(&self.counts, topic, |counts| counts.subscribed += 1);
        self.inner.follow(topic)
    }

    fn unfollow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        self.inner.unfollow(topic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Embedded;

    #[tokio::test]
    async fn what_goes_through_is_counted_per_topic() {
        let broker = Counting::new(Embedded::in_memory());
        let (used, unused): (Topic, Topic) =
            ("flow:tg:used".parse().unwrap(), "flow:tg:unused".parse().unwrap());
        let spec = TopicSpec::with(used.clone(), "reader");
        broker.ensure(&spec).await.unwrap();
        let to = Subscription::Shared { topic: used.clone(), name: "reader".to_owned(), prefetch: 1 };
        let inbox = broker.subscribe(&to).await.unwrap();
        broker.publish(&Address::Topic(used.clone()), Message::new("four")).await.unwrap();
        drop(inbox.next().await.unwrap());
        inbox.next().await.unwrap().ack();
        broker.observe(std::slice::from_ref(&spec)).await.unwrap();
        broker.remove(&spec).await.unwrap();
        let expected = Counts {
            published: 1,
            published_bytes: 4,
            delivered: 2,
            delivered_bytes: 8,
            subscribed: 1,
            observed: 1,
            ensured: 1,
            removed: 1,
        };
        assert_eq!(broker.of(&used), expected);
        assert_eq!(broker.of(&unused), Counts::default());
        assert_eq!(broker.total(), expected);
        broker.reset();
        assert_eq!(broker.total(), Counts::default());
    }
}
