//! The owner's calls: making, seeing and removing exchanges and queues, with exactly the properties that 2.11 gives them.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::{StreamExt, TryStreamExt, stream};
use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind, Queue};
use sluice_bus::{Error, Losses, Result, Seen, SeenSubscription, TopicSpec, Traits};
use sluice_schema::{Class, Topic};

use super::fault::{self, code};
use super::management::{Inventory, Management};
use super::names;
use super::pool::Pool;
use super::publish::Publisher;
use super::{Pauses, lock};

/// Topics looked at side by side.
const LOOKS_MAX: usize = 16;

pub(super) struct Admin {
    pool: Pool,
    /// For looks at what may not be there: each that finds nothing costs its channel.
    looks: Arc<Pool>,
    /// A reader has met a quorum queue.
    has_quorum_queues: AtomicBool,
    pub(super) management: Option<Arc<Management>>,
    /// Counts what it could not route.
    pub(super) publisher: Arc<Publisher>,
    /// What this process made and nobody removed through it. Without the management API it is all that is known beside
    /// what is asked for.
    made: Mutex<HashMap<Topic, BTreeSet<String>>>,
    losses: Losses,
}

/// What a look knows beside what it asks the broker itself.
struct Known {
    inventory: Option<Arc<Inventory>>,
    /// It is as new as the look.
    is_fresh: bool,
}

impl Admin {
    pub(super) fn new(
        pool: Pool,
        looks: Arc<Pool>,
        management: Option<Arc<Management>>,
        publisher: Arc<Publisher>,
        losses: Losses,
    ) -> Self {
        let (has_quorum_queues, made) = (AtomicBool::new(false), Mutex::default());
        Self { pool, looks, has_quorum_queues, management, publisher, made, losses }
    }

    /// The same over another connection, to which alone belongs what is made through it. Looks go over that of their own: what
    /// they find belongs to nobody.
    pub(super) fn over(&self, pool: Pool) -> Self {
        let (looks, management) = (self.looks.clone(), self.management.clone());
        Self::new(pool, looks, management, self.publisher.clone(), self.losses.clone())
    }

    pub(super) fn is_up(&self) -> bool {
        self.pool.link.is_up()
    }

    pub(super) async fn close(&self) {
        tokio::join!(self.pool.link.close(), self.looks.link.close());
    }

    pub(super) const fn traits(&self) -> Traits {
        if self.management.is_some() { Traits::STRICT } else { super::TRAITS_WITHOUT_MANAGEMENT }
    }

    /// Only the management API tells the version.
    pub(super) async fn product(&self) -> String {
        let version = match &self.management {
            Some(management) => management.version().await.ok(),
            None => None,
        };
        version.map_or_else(|| "RabbitMQ".to_owned(), |version| format!("RabbitMQ {version}"))
    }

    pub(super) async fn management_answers(&self) -> Option<bool> {
        Some(self.management.as_ref()?.inventory().await.is_ok())
    }

    pub(super) async fn ensure(&self, spec: &TopicSpec) -> Result<()> {
        if !spec.subscriptions.is_empty() {
            names::check_class(&spec.topic, true)?;
        }
        let exchange = names::exchange(&spec.topic);
        let name = names::short(&exchange)?;
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        self.call(&exchange, "making an exchange", async move |channel: Channel| {
            channel.exchange_declare(name, ExchangeKind::Fanout, options, FieldTable::default()).await
        })
        .await?;
        for subscription in &spec.subscriptions {
            self.ensure_queue(&spec.topic, subscription).await?;
        }
        lock(&self.made).entry(spec.topic.clone()).or_default().extend(spec.subscriptions.iter().cloned());
        Ok(())
    }

    async fn ensure_queue(&self, topic: &Topic, subscription: &str) -> Result<()> {
        let queue = names::queue(topic, subscription);
        let (name, exchange) = (names::short(&queue)?, names::short(&names::exchange(topic))?);
        let options = QueueDeclareOptions { durable: topic.class() == Class::Flow, ..Default::default() };
        self.call(&queue, "making a queue", async move |channel: Channel| {
            channel.queue_declare(name.clone(), options, FieldTable::default()).await?;
            let options = QueueBindOptions::default();
            channel.queue_bind(name.clone(), exchange, name, options, FieldTable::default()).await
        })
        .await
    }

    /// Tells at once whether the management API can be used, and does what [`Admin::keep_requests`] does.
    pub(super) async fn keep(self: Arc<Self>) {
        let look = async {
            if let Some(management) = &self.management {
                management.inventory_if_it_answers().await;
            }
        };
        tokio::join!(look, self.keep_requests());
    }

    /// Makes `request` queues again whenever the broker was lost, until the connection is given up: they do not survive
    /// its restart. Only those that this process made, and whose exchange, which survives, nobody has removed.
    async fn keep_requests(&self) {
        let mut generation = 0;
        while let Some(up) = self.pool.link.up_after(generation).await {
            generation = up.generation;
            let mut pauses = Pauses::new();
            // What was found gone is told once, in whichever round it is looked for.
            let told = Mutex::default();
            while let Err(error) = self.restore(&told).await {
                tracing::warn!(%error, "request queues could not be made again yet");
                tokio::time::sleep(pauses.next()).await;
                if !self.pool.link.is_kept() {
                    return;
                }
            }
        }
    }

    async fn restore(&self, told: &Mutex<BTreeSet<String>>) -> Result<()> {
        let made: Vec<_> = lock(&self.made)
            .iter()
            .filter(|(topic, _)| topic.class() == Class::Request)
            .map(|(topic, subscriptions)| (topic.clone(), subscriptions.clone()))
            .collect();
        let restored: Vec<_> =
            made.iter().map(|(topic, subscriptions)| self.restore_one(topic, subscriptions, told)).collect();
        stream::iter(restored).buffer_unordered(LOOKS_MAX).try_collect().await
    }

    async fn restore_one(
        &self,
        topic: &Topic,
        subscriptions: &BTreeSet<String>,
        told: &Mutex<BTreeSet<String>>,
    ) -> Result<()> {
        if !self.look_at_exchange(&names::exchange(topic)).await? {
            lock(&self.made).remove(topic);
            return Ok(());
        }
        for subscription in subscriptions {
            let queue = names::queue(topic, subscription);
            if self.look_at_queue(&queue).await?.is_none() && lock(told).insert(queue) {
                // Its reader may come only when it is there again, and notice nothing.
                self.losses.note_removed(topic);
            }
            self.ensure_queue(topic, subscription).await?;
        }
        Ok(())
    }

    pub(super) async fn remove(&self, spec: &TopicSpec) -> Result<()> {
        self.publisher.forget(&spec.topic);
        let exchange = names::exchange(&spec.topic);
        let known = self.known_subscriptions(spec);
        let mut remakers = Vec::new();
        for subscription in &known {
            remakers.extend(self.remove_queue(&spec.topic, subscription).await?);
        }
        if !self.is_unbound_and_gone(spec, &exchange).await? {
            let inventory = self.inventory().await;
            let strangers = inventory.iter().flat_map(|inventory| inventory.subscriptions(&exchange));
            for subscription in strangers.filter(|name| !known.contains(name)).collect::<BTreeSet<_>>() {
                remakers.extend(self.remove_queue(&spec.topic, &subscription).await?);
            }
            self.remove_exchange(&exchange).await?;
        }
        lock(&self.made).remove(&spec.topic);
        for (queue, consumers) in remakers {
            if self.look_at_queue(&queue).await?.is_some() {
                let holders =
                    format!("{consumers} consumers were attached, and one of them has made it again");
                return Err(Error::InUse { name: queue, holders });
            }
        }
        Ok(())
    }

    /// Subscriptions of a topic that are asked for, were made here, or were there when everything was last listed.
    fn known_subscriptions(&self, spec: &TopicSpec) -> BTreeSet<String> {
        let mut known: BTreeSet<String> = spec.subscriptions.iter().cloned().collect();
        known.extend(lock(&self.made).get(&spec.topic).into_iter().flatten().cloned());
        let listed = self.management.as_ref().and_then(|management| management.last());
        known.extend(listed.iter().flat_map(|listed| listed.subscriptions(&names::exchange(&spec.topic))));
        known
    }

    /// Removes a queue; answers it, and how many consumers it had, if it had any.
    async fn remove_queue(&self, topic: &Topic, subscription: &str) -> Result<Option<(String, u32)>> {
        let queue = names::queue(topic, subscription);
        let consumers = self.look_at_queue(&queue).await?.map_or(0, |found| found.consumer_count());
        let name = names::short(&queue)?;
        self.call(&queue, "removing a queue", async move |channel: Channel| {
            channel.queue_delete(name, QueueDeleteOptions::default()).await.map(drop)
        })
        .await?;
        Ok((consumers > 0).then_some((queue, consumers)))
    }

    /// Removes an exchange by one call where nothing is bound to it any more. A queue that nobody told us of keeps it; only
    /// then need everything be asked for.
    async fn is_unbound_and_gone(&self, spec: &TopicSpec, exchange: &str) -> Result<bool> {
        if !spec.topic.class().has_subscriptions() || self.management.is_none() {
            return Ok(false);
        }
        let name = names::short(exchange)?;
        let options = ExchangeDeleteOptions { if_unused: true, ..Default::default() };
        let removed =
            self.try_call(async move |channel: Channel| channel.exchange_delete(name, options).await);
        match removed.await? {
            Ok(()) => Ok(true),
            Err(error) if fault::is(&error, code::PRECONDITION_FAILED) => Ok(false),
            Err(error) => {
                Err(fault::of_call(&error, exchange, &format!("removing an exchange '{exchange}'")))
            }
        }
    }

    /// Removes a topic if nobody reads it and its queues are empty, each object by one call where that can be conditional.
    pub(super) async fn remove_idle(&self, spec: &TopicSpec) -> Result<()> {
        self.publisher.forget(&spec.topic);
        let exchange = names::exchange(&spec.topic);
        let listed = self.management.as_ref().and_then(|management| management.last());
        let known = self.known_subscriptions(spec);
        for subscription in &known {
            self.remove_idle_queue(&spec.topic, subscription, listed.as_deref()).await?;
        }
        if !self.is_unbound_and_gone(spec, &exchange).await? {
            let inventory = self.inventory().await;
            let strangers = inventory.iter().flat_map(|inventory| inventory.subscriptions(&exchange));
            for subscription in strangers.filter(|name| !known.contains(name)).collect::<BTreeSet<_>>() {
                self.remove_idle_queue(&spec.topic, &subscription, inventory.as_deref()).await?;
            }
            self.remove_exchange(&exchange).await?;
        }
        lock(&self.made).remove(&spec.topic);
        Ok(())
    }

    async fn remove_idle_queue(&self, topic: &Topic, name: &str, known: Option<&Inventory>) -> Result<()> {
        let queue = names::queue(topic, name);
        // What waits on a `request` topic goes with it; that is what its callers are told.
        let if_empty = topic.class() == Class::Flow;
        let in_use = |holders: String| Error::InUse { name: queue.clone(), holders };
        let mut options = QueueDeleteOptions::default();
        if known.and_then(|known| known.queue(&queue)).is_some_and(|queue| queue.is_classic()) {
            (options.if_unused, options.if_empty) = (true, if_empty);
        } else if let Some(found) = self.look_at_queue(&queue).await? {
            let (readers, messages) = (found.consumer_count(), found.message_count());
            if readers > 0 || (if_empty && messages > 0) {
                return Err(in_use(format!("{readers} consumers are attached and {messages} messages wait")));
            }
        } else {
            return Ok(());
        }
        let short = names::short(&queue)?;
        let removed = self.try_call(async move |channel: Channel| channel.queue_delete(short, options).await);
        match removed.await? {
            Ok(_) => Ok(()),
            Err(error) if fault::is(&error, code::PRECONDITION_FAILED) => {
                Err(in_use(fault::reply(&error).map_or_else(String::new, |(_, text)| text.to_owned())))
            }
            Err(error) => Err(fault::of_call(&error, &queue, &format!("removing a queue '{queue}'"))),
        }
    }

    async fn remove_exchange(&self, exchange: &str) -> Result<()> {
        let name = names::short(exchange)?;
        self.call(exchange, "removing an exchange", async move |channel: Channel| {
            channel.exchange_delete(name, ExchangeDeleteOptions::default()).await
        })
        .await
    }

    pub(super) async fn observe(&self, specs: &[TopicSpec]) -> Result<Vec<Seen>> {
        if specs.is_empty() {
            return Ok(Vec::new());
        }
        let (inventory, is_fresh) = match &self.management {
            Some(management) => management.inventory_for(specs.len()).await,
            None => (None, true),
        };
        let known = Known { inventory, is_fresh };
        let looks: Vec<_> = specs.iter().map(|spec| self.look(spec, &known)).collect();
        stream::iter(looks).buffered(LOOKS_MAX).try_collect().await
    }

    async fn look(&self, spec: &TopicSpec, known: &Known) -> Result<Seen> {
        let exchange = names::exchange(&spec.topic);
        let inventory = known.inventory.as_deref();
        let mut asked = spec.subscriptions.clone();
        let bound = inventory.map(|inventory| inventory.subscriptions(&exchange)).unwrap_or_default();
        asked.extend(bound.into_iter().filter(|name| !spec.subscriptions.contains(name)));
        let mut subscriptions = Vec::with_capacity(asked.len());
        for name in asked {
            let queue = names::queue(&spec.topic, &name);
            let found = self.look_at_queue(&queue).await?;
            let (ready, consumers) =
                found.as_ref().map_or((0, 0), |found| (found.message_count(), found.consumer_count()));
            let unsettled = match (&found, &self.management) {
                (None, _) => Some(0),
                // Something is going on there that an older count knows nothing of.
                (Some(_), Some(management)) if !known.is_fresh && (ready > 0 || consumers > 0) => {
                    management.unacknowledged(&queue).await
                }
                (Some(_), _) => inventory.and_then(|inventory| inventory.unacknowledged(&queue)),
            };
            let (exists, ready, consumers) = (found.is_some(), ready.into(), Some(consumers.into()));
            let fresh = inventory.filter(|_| known.is_fresh);
            let is_bound = fresh.map(|inventory| inventory.is_bound(&exchange, &queue));
            subscriptions.push(SeenSubscription { name, exists, ready, unsettled, consumers, is_bound });
        }
        let is_listed =
            known.is_fresh && inventory.is_some_and(|inventory| inventory.has_exchange(&exchange));
        let exists = is_listed || self.look_at_exchange(&exchange).await?;
        let unroutable = self.publisher.unroutable(&spec.topic);
        Ok(Seen { topic: spec.topic.clone(), exists, subscriptions, unroutable })
    }

    pub(super) async fn look_at_exchange(&self, exchange: &str) -> Result<bool> {
        let name = names::short(exchange)?;
        let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
        let looked = call_over(&self.looks, async move |channel: Channel| {
            channel.exchange_declare(name, ExchangeKind::Fanout, options, FieldTable::default()).await
        });
        match looked.await.map_err(unchanged)? {
            Ok(()) => Ok(true),
            Err(error) if fault::is(&error, code::NOT_FOUND) => Ok(false),
            Err(error) => Err(unchanged(fault::of_call(&error, exchange, "looking at an exchange"))),
        }
    }

    pub(super) async fn look_at_queue(&self, queue: &str) -> Result<Option<Queue>> {
        Self::look_at_queue_over(&self.looks, queue).await
    }

    /// From now on it is asked of each queue whether it is one.
    pub(super) fn note_quorum_queue(&self) {
        self.has_quorum_queues.store(true, Ordering::Relaxed);
    }

    /// Whether a queue is known to be a quorum queue: the broker agrees to one that is made so, and to no other.
    pub(super) async fn is_quorum_queue(&self, queue: &str) -> Result<bool> {
        if !self.has_quorum_queues.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let name = names::short(queue)?;
        let asked = call_over(&self.looks, async move |channel: Channel| {
            let options = QueueDeclareOptions { durable: true, ..Default::default() };
            let mut arguments = FieldTable::default();
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
            channel.queue_declare(name, options, arguments).await
        });
        Ok(asked.await.map_err(unchanged)?.is_ok())
    }

    /// Looks at a queue that belongs to this connection.
    pub(super) async fn look_at_own_queue(&self, queue: &str) -> Result<Option<Queue>> {
        Self::look_at_queue_over(&self.pool, queue).await
    }

    async fn look_at_queue_over(pool: &Pool, queue: &str) -> Result<Option<Queue>> {
        let name = names::short(queue)?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let looked = call_over(pool, async move |channel: Channel| {
            channel.queue_declare(name, options, FieldTable::default()).await
        });
        match looked.await.map_err(unchanged)? {
            Ok(found) => Ok(Some(found)),
            Err(error) if fault::is(&error, code::NOT_FOUND) => Ok(None),
            Err(error) => Err(unchanged(fault::of_call(&error, queue, "looking at a queue"))),
        }
    }

    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<Seen>> {
        let Some(management) = &self.management else {
            let reason = "the broker lists its topics only through its management API, and no address of that is given";
            return Err(Error::Refused { reason: reason.to_owned() });
        };
        let unavailable = |why: String| Error::Unavailable { reason: format!("its management API: {why}") };
        let inventory = management.inventory().await.map_err(unavailable)?;
        let mut topics: BTreeSet<Topic> = inventory.exchanges().filter_map(names::topic).collect();
        // A reader that makes its queue again when it was removed has no exchange to bind it to.
        topics.extend(inventory.orphans().filter_map(names::topic_of_orphan));
        let wanted = topics.into_iter().filter(|topic| topic.as_str().starts_with(prefix));
        Ok(wanted.map(|topic| self.listed(topic, &inventory)).collect())
    }

    /// A topic as the inventory alone shows it: a look at every queue of a large broker takes seconds.
    fn listed(&self, topic: Topic, inventory: &Inventory) -> Seen {
        let exchange = names::exchange(&topic);
        let subscription = |name: String| {
            let queue_name = names::queue(&topic, &name);
            let queue = inventory.queue(&queue_name);
            SeenSubscription {
                is_bound: Some(inventory.is_bound(&exchange, &queue_name)),
                name,
                exists: queue.is_some(),
                ready: queue.and_then(|queue| queue.messages_ready).unwrap_or(0),
                unsettled: queue.map_or(Some(0), |queue| queue.messages_unacknowledged),
                consumers: queue.map_or(Some(0), |queue| queue.consumers),
            }
        };
        let subscriptions = inventory.subscriptions(&exchange).into_iter().map(subscription).collect();
        let unroutable = self.publisher.unroutable(&topic);
        Seen { exists: inventory.has_exchange(&exchange), subscriptions, unroutable, topic }
    }

    /// What the management API knows, if there is one that answers.
    async fn inventory(&self) -> Option<Arc<Inventory>> {
        self.management.as_ref()?.inventory_if_it_answers().await
    }

    /// A call that must succeed.
    async fn call<F>(&self, name: &str, what: &str, call: impl FnOnce(Channel) -> F) -> Result<()>
    where
        F: Future<Output = Result<(), lapin::Error>>,
    {
        self.try_call(call).await?.map_err(|error| fault::of_call(&error, name, &format!("{what} '{name}'")))
    }

    pub(super) async fn try_call<F, T>(
        &self,
        call: impl FnOnce(Channel) -> F,
    ) -> Result<Result<T, lapin::Error>>
    where
        F: Future<Output = Result<T, lapin::Error>>,
    {
        call_over(&self.pool, call).await
    }
}

/// Of a look that was not answered it is known that it changed nothing.
fn unchanged(error: Error) -> Error {
    match error {
        Error::OutcomeUnknown { reason, .. } => Error::Unavailable { reason },
        Error::TimedOut { after_ms, .. } => {
            Error::Unavailable { reason: format!("it gave no word within {after_ms} ms") }
        }
        other => other,
    }
}

async fn call_over<F, T>(pool: &Pool, call: impl FnOnce(Channel) -> F) -> Result<Result<T, lapin::Error>>
where
    F: Future<Output = Result<T, lapin::Error>>,
{
    let within = pool.link.call_timeout();
    let lane = pool.take(within).await?;
    let Ok(outcome) = tokio::time::timeout(within, call(lane.channel.clone())).await else {
        return Err(Error::TimedOut { what: "the broker".to_owned(), after_ms: within.as_millis() as u64 });
    };
    if outcome.is_ok() {
        lane.give_back();
    } else {
        lane.give_up();
    }
    Ok(outcome)
}
