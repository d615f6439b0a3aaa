//! The owner's calls: making, seeing and removing topics with their subscriptions.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use krafka::admin::{AdminClient, ConfigResource, DeleteTopicsOptions, DescribeConfigsOptions, OffsetSpec};
use sluice_bus::{Error, ErrorKind, Finding, PoisonBound, Result, Seen, SeenSubscription, TopicSpec};
use sluice_schema::{Class, Topic};
use tokio::sync::Mutex;
use tokio_util::task::TaskTracker;

use super::book::Book;
use super::group::{self, Groups, Lag, Removed};
use super::hold::Lease;
use super::publish::Publisher;
use super::registry::{Entry, Key};
use super::{fault, names};
use crate::local::Pauses;

/// Topics looked at side by side.
const LOOKS_MAX: usize = 16;
/// How long a request is kept that nobody takes.
const REQUEST_RETENTION: Duration = Duration::from_secs(3_600);
/// How long answers and notices are kept.
const BROADCAST_RETENTION: Duration = Duration::from_secs(300);
/// The largest message that TrustGraph 2.11 sends.
const BESIDE_BYTES_MAX: usize = 10 << 20;
/// How long the removal of a group is waited for.
const GROUP_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a group whose readers are leaving is tried to be removed.
const LEAVING_TRIES_MAX: u32 = 8;

#[derive(Clone)]
pub(super) struct Admin {
    client: Arc<AdminClient>,
    book: Arc<Book>,
    /// Counts what it could not route.
    publisher: Arc<Publisher>,
    tasks: TaskTracker,
    /// One change at a time.
    changes: Arc<Mutex<()>>,
    broker: i32,
    groups: Groups,
    message_bytes_max: usize,
    call_timeout: Duration,
    /// Under which alone calls are made, where there is one.
    lease: Option<Arc<Lease>>,
}

/// What an owner's calls need.
pub(super) struct Parts {
    pub(super) client: Arc<AdminClient>,
    pub(super) book: Arc<Book>,
    pub(super) publisher: Arc<Publisher>,
    pub(super) tasks: TaskTracker,
    pub(super) broker: i32,
    pub(super) groups: Groups,
    pub(super) message_bytes_max: usize,
    pub(super) call_timeout: Duration,
}

impl Admin {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { client, book, publisher, tasks, broker, groups, message_bytes_max, call_timeout } = parts;
        let changes = Arc::default();
        Self {
            client,
            book,
            publisher,
            tasks,
            changes,
            broker,
            groups,
            message_bytes_max,
            call_timeout,
            lease: None,
        }
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

    /// After how many deliveries the broker drops a message of a group.
    pub(super) async fn deliveries_max(&self, group: &str) -> Result<u32> {
        group::deliveries_max(&self.client, group, self.within()?).await
    }

    pub(super) async fn ensure(&self, spec: &TopicSpec) -> Result<()> {
        if !spec.subscriptions.is_empty() {
            names::check_class(&spec.topic, true)?;
        }
        let _one = self.changes.lock().await;
        let topic = &spec.topic;
        self.book.topic(topic).await?;
        let known = self.book.registry.entry(topic);
        if known.as_ref().is_some_and(|entry| !entry.is_removed && entry.is_beside != self.is_beside()) {
            let beside =
                |is_beside: bool| if is_beside { "beside TrustGraph 2.11" } else { "for Sluice alone" };
            return Err(Error::Mismatch {
                name: topic.to_string(),
                wanted: format!("a topic made {}", beside(self.is_beside())),
                found: format!(
                    "one made {}; go on with the address that it was made with, or give this one a cluster of its own",
                    beside(!self.is_beside())
                ),
            });
        }
        let entry = match known {
            Some(entry) if entry.is_removed => {
                self.finish_removal(topic, &entry).await?;
                None
            }
            Some(entry) if !self.book.is_made(&entry.place(topic)).await? => {
                // Somebody removed it at the broker.
                self.remove_groups(topic, &entry).await?;
                Some(Entry { id: String::new(), ..entry })
            }
            entry => entry,
        };
        match entry {
            Some(entry) if !entry.id.is_empty() => self.add(topic, entry, &spec.subscriptions).await,
            lost => {
                // Those that were lost with it are made again.
                let mut wanted = lost.map(|entry| entry.subscriptions).unwrap_or_default();
                wanted.extend(
                    spec.subscriptions
                        .iter()
                        .filter(|name| !wanted.contains(name))
                        .cloned()
                        .collect::<Vec<_>>(),
                );
                self.make(topic, &wanted).await
            }
        }
    }

    const fn is_beside(&self) -> bool {
        matches!(self.groups, Groups::Classic { .. })
    }

    /// Two topics can have one name at the broker, where ':' and '.' are the same.
    fn check_unmistaken(&self, topic: &Topic, place: &str) -> Result<()> {
        let topics = self.book.registry.topics("");
        let mut others = topics.iter().filter(|(other, _)| other != topic);
        match others.find(|(other, entry)| entry.place(other) == place) {
            None => Ok(()),
            Some((other, _)) => Err(Error::Refused {
                reason: format!(
                    "'{topic}' would be called '{place}' at the broker, as '{other}' is; give one of them another name"
                ),
            }),
        }
    }

    async fn make(&self, topic: &Topic, subscriptions: &[String]) -> Result<()> {
        let entry = Entry {
            id: names::fresh(),
            subscriptions: Vec::new(),
            is_removed: false,
            is_beside: self.is_beside(),
        };
        let place = entry.place(topic);
        if self.is_beside() {
            names::check_plain(topic)?;
            self.check_unmistaken(topic, &place)?;
        }
        let is_new = self.book.make(&place, self.configs(topic.class()), self.within()?).await?;
        if self.is_beside() && self.book.partitions(&place).await?.is_some_and(|count| count != 1) {
            return Err(Error::Mismatch {
                name: place,
                wanted: "a topic of one partition".to_owned(),
                found: "one of several, made by somebody else; remove it".to_owned(),
            });
        }
        for name in subscriptions {
            // Of what somebody else made, readers may have had something already.
            if is_new || self.lag(&place, name).await? == Lag::Absent {
                self.make_group(&place, name, 0).await?;
            }
        }
        let entry = Entry { subscriptions: subscriptions.to_vec(), ..entry };
        self.put(topic, &entry).await?;
        if self.book.registry.is_there(topic, &entry.id) {
            return Ok(());
        }
        // Another owner has made one meanwhile: theirs counts. Beside others both are one topic.
        if !self.is_beside() {
            self.delete(&place).await?;
        }
        Err(Error::Unavailable { reason: format!("'{topic}' was made by another owner at the same time") })
    }

    async fn add(&self, topic: &Topic, mut entry: Entry, subscriptions: &[String]) -> Result<()> {
        let place = entry.place(topic);
        let missing: Vec<_> =
            subscriptions.iter().filter(|name| !entry.subscriptions.contains(name)).cloned().collect();
        // Those on record may have been removed at the broker.
        for name in subscriptions.iter().filter(|name| entry.subscriptions.contains(name)) {
            if self.lag(&place, name).await? == Lag::Absent {
                // Beside others the broker forgets where a group stands that nobody reads: what waited comes again, and nothing is
                // passed over.
                let from = if self.is_beside() { OffsetSpec::Earliest } else { OffsetSpec::Latest };
                let from = self.book.offset(&place, from).await?;
                self.make_group(&place, name, from).await?;
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        for name in &missing {
            let end = self.book.offset(&place, OffsetSpec::Latest).await?;
            self.make_group(&place, name, end).await?;
        }
        entry.subscriptions.extend(missing);
        self.put(topic, &entry).await
    }

    async fn make_group(&self, place: &str, name: &str, from: i64) -> Result<()> {
        let group = self.groups.name(place, name);
        self.groups.make(&self.client, &group, place, from, self.within()?).await
    }

    async fn put(&self, topic: &Topic, entry: &Entry) -> Result<()> {
        self.book.write(&Key::Topic(topic.clone()), Some(entry), self.within()?).await
    }

    fn configs(&self, class: Class) -> Vec<(&'static str, String)> {
        let retention = match class {
            Class::Flow => "-1".to_owned(),
            Class::Request => REQUEST_RETENTION.as_millis().to_string(),
            Class::Response | Class::Notify => BROADCAST_RETENTION.as_millis().to_string(),
        };
        let bytes_max = match self.is_beside() {
            true => self.message_bytes_max.max(BESIDE_BYTES_MAX),
            false => self.message_bytes_max,
        };
        let mut configs = vec![("retention.ms", retention), ("max.message.bytes", bytes_max.to_string())];
        if class == Class::Flow {
            configs.push(("retention.bytes", "-1".to_owned()));
            if self.book.is_alone() {
                configs.push(("flush.messages", "1".to_owned()));
            }
        } else {
            // What is old goes by segments.
            configs.push(("segment.ms", BROADCAST_RETENTION.as_millis().to_string()));
        }
        configs
    }

    pub(super) async fn remove(&self, spec: &TopicSpec) -> Result<()> {
        let _one = self.changes.lock().await;
        self.within()?;
        self.book.topic(&spec.topic).await?;
        match self.book.registry.entry(&spec.topic) {
            Some(entry) => self.take_away(&spec.topic, &entry).await,
            None => Ok(()),
        }
    }

    /// Removes a topic only while nobody reads it and, for a `flow` topic, nothing is in its subscriptions. A group that is read
    /// cannot be removed, so the groups go first.
    pub(super) async fn remove_idle(&self, spec: &TopicSpec) -> Result<()> {
        let _one = self.changes.lock().await;
        self.within()?;
        let topic = &spec.topic;
        let Some(mut entry) = self.book.topic(topic).await? else { return Ok(()) };
        let place = entry.place(topic);
        let in_use = |name: &str, holders: &str| Error::InUse {
            name: format!("{topic} / {name}"),
            holders: holders.to_owned(),
        };
        if topic.class() == Class::Flow {
            for name in &entry.subscriptions {
                match self.lag(&place, name).await? {
                    Lag::Messages(0) | Lag::Absent => {}
                    Lag::Messages(count) => return Err(in_use(name, &format!("{count} messages"))),
                }
            }
        }
        while let Some(name) = entry.subscriptions.last().cloned() {
            let group = self.groups.name(&place, &name);
            if group::remove(&self.client, &group, self.within()?).await? == Removed::InUse {
                // What is gone by now is not on record any more.
                self.put(topic, &entry).await?;
                return Err(in_use(&name, "readers"));
            }
            entry.subscriptions.pop();
        }
        self.take_away(topic, &entry).await
    }

    /// Its readers and senders are told first; what was begun is on record until it is done.
    async fn take_away(&self, topic: &Topic, entry: &Entry) -> Result<()> {
        if !entry.is_removed {
            self.put(topic, &Entry { is_removed: true, ..entry.clone() }).await?;
        }
        self.finish_removal(topic, entry).await?;
        self.publisher.unroutable().forget(topic);
        Ok(())
    }

    async fn finish_removal(&self, topic: &Topic, entry: &Entry) -> Result<()> {
        // A group without its topic takes the broker long to remove.
        self.remove_groups(topic, entry).await?;
        self.delete(&entry.place(topic)).await?;
        self.book.write::<Entry>(&Key::Topic(topic.clone()), None, self.within()?).await
    }

    async fn delete(&self, place: &str) -> Result<()> {
        let doing = format!("removing the topic '{place}'");
        let options = DeleteTopicsOptions::default().timeout(self.within()?);
        let removed = self.client.delete_topics([place], options).await;
        match removed.map_err(|error| fault::of_change(&error, &doing))?.remove(place) {
            Some(Err(error)) if !fault::is_no_topic(&error) => Err(fault::of_change(&error, &doing)),
            Some(_) | None => Ok(()),
        }
    }

    /// Groups that are still read go when their readers have left; without its topic a group has nothing.
    async fn remove_groups(&self, topic: &Topic, entry: &Entry) -> Result<()> {
        let place = entry.place(topic);
        for name in &entry.subscriptions {
            let group = self.groups.name(&place, name);
            match group::remove(&self.client, &group, self.within()?.min(GROUP_TIMEOUT)).await {
                Ok(Removed::Gone) => {}
                Err(error) if error.kind() == ErrorKind::Refused => return Err(error),
                Ok(Removed::InUse) | Err(_) => {
                    let later = self.clone().remove_later(topic.clone(), entry.id.clone(), group);
                    self.tasks.spawn(later);
                }
            }
        }
        Ok(())
    }

    /// Removes a group once its readers have left, unless its topic is made again under the same name by then.
    async fn remove_later(self, topic: Topic, id: String, group: String) {
        let mut pauses = Pauses::new();
        for _ in 0..LEAVING_TRIES_MAX {
            tokio::time::sleep(pauses.next()).await;
            let _one = self.changes.lock().await;
            if self.is_beside() {
                match self.book.topic(&topic).await {
                    Ok(Some(made)) if made.id != id => return,
                    Ok(_) => {}
                    Err(_) => continue,
                }
            }
            match group::remove(&self.client, &group, self.call_timeout).await {
                Ok(Removed::Gone) => return,
                Ok(Removed::InUse) => {}
                Err(error) => tracing::debug!(group, %error, "a group could not be removed yet"),
            }
        }
        tracing::debug!(group, "a group stays empty at the broker: a reader of it was killed a moment ago");
    }

    /// Goes on with removals that somebody began.
    pub(super) async fn finish_removals(&self) -> Result<()> {
        let _one = self.changes.lock().await;
        for (topic, entry) in self.book.registry.topics("") {
            if entry.is_removed {
                self.finish_removal(&topic, &entry).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn observe(&self, specs: &[TopicSpec]) -> Result<Vec<Seen>> {
        self.within()?;
        if specs.is_empty() {
            return Ok(Vec::new());
        }
        self.book.sync(super::registry::Log::Registry).await?;
        let looks: Vec<_> = specs.iter().map(|spec| self.look(spec)).collect();
        stream::iter(looks).buffered(LOOKS_MAX).try_collect().await
    }

    async fn look(&self, spec: &TopicSpec) -> Result<Seen> {
        let mut seen = match self.book.registry.topic(&spec.topic) {
            Some(entry) => self.seen(&spec.topic, &entry).await?,
            None => self.absent(&spec.topic),
        };
        for name in &spec.subscriptions {
            if !seen.subscriptions.iter().any(|known| known.name == *name) {
                seen.subscriptions.push(seen_subscription(name, Lag::Absent));
            }
        }
        Ok(seen)
    }

    fn absent(&self, topic: &Topic) -> Seen {
        let unroutable = self.publisher.unroutable().of(topic);
        Seen { topic: topic.clone(), exists: false, subscriptions: Vec::new(), unroutable }
    }

    async fn seen(&self, topic: &Topic, entry: &Entry) -> Result<Seen> {
        let place = entry.place(topic);
        if !self.book.is_made(&place).await? {
            return Ok(self.absent(topic));
        }
        let mut subscriptions = Vec::with_capacity(entry.subscriptions.len());
        for name in &entry.subscriptions {
            let mut seen = seen_subscription(name, self.lag(&place, name).await?);
            if self.is_beside() && seen.exists {
                let group = self.groups.name(&place, name);
                seen.consumers = Some(group::readers(&self.client, &group, self.within()?).await?);
            }
            subscriptions.push(seen);
        }
        Ok(Seen { exists: true, subscriptions, ..self.absent(topic) })
    }

    async fn lag(&self, place: &str, name: &str) -> Result<Lag> {
        self.groups.lag(&self.client, &self.groups.name(place, name), place, self.within()?).await
    }

    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<Seen>> {
        self.within()?;
        self.book.sync(super::registry::Log::Registry).await?;
        let topics = self.book.registry.topics(prefix);
        let there = topics.iter().filter(|(_, entry)| !entry.is_removed);
        let looks: Vec<_> = there.map(|(topic, entry)| self.seen(topic, entry)).collect();
        let seen: Vec<_> = stream::iter(looks).buffered(LOOKS_MAX).try_collect().await?;
        // Some may have gone since they were listed.
        Ok(seen.into_iter().filter(|seen| seen.exists).collect())
    }

    /// Readers of ours count and park by themselves; those of others come by a message again after they were killed.
    pub(super) async fn bound_poison(&self, to: &Topic) -> Result<PoisonBound> {
        if to.class() != Class::Flow {
            return Err(Error::Refused { reason: format!("dead letters go to a flow topic, not to '{to}'") });
        }
        self.within()?;
        match self.book.topic(to).await? {
            Some(_) if self.is_beside() => Ok(PoisonBound::Unbounded {
                why: "Kafka counts nothing in groups as TrustGraph 2.11 has them, so a message that ends one of its processes is \
                      handed to it again whenever it starts"
                    .to_owned(),
            }),
            Some(_) => Ok(PoisonBound::Unneeded),
            None => Err(Error::NoTopic { topic: to.clone() }),
        }
    }

    pub(super) async fn examine(&self) -> Result<Vec<Finding>> {
        let within = self.within()?;
        let finding =
            |code, topic, text: String, next: String| Finding { code, topic, subscription: None, text, next };
        let mut findings = Vec::new();
        let makes = self.config(ConfigResource::broker(self.broker), "auto.create.topics.enable").await?;
        if makes.as_deref() != Some("false") {
            findings.push(finding(
                "auto-creation-on",
                None,
                "the broker makes a topic whenever somebody asks for one that is absent".to_owned(),
                "set auto.create.topics.enable=false in the configuration of the brokers".to_owned(),
            ));
        }
        self.book.sync(super::registry::Log::Registry).await?;
        let flows = self.book.registry.topics(Class::Flow.as_str());
        let flows: Vec<_> = flows.into_iter().filter(|(_, entry)| !entry.is_removed).collect();
        let resources = flows.iter().map(|(topic, entry)| ConfigResource::topic(entry.place(topic)));
        let options = DescribeConfigsOptions::default().timeout(within);
        let options = options.config_names(vec!["retention.ms".to_owned(), "cleanup.policy".to_owned()]);
        let found = self.client.describe_configs(resources, options).await;
        let found = found.map_err(|error| fault::of(&error, "reading the configuration of topics"))?;
        for (topic, entry) in flows {
            let place = entry.place(&topic);
            let Some(Ok(entries)) = found.get(&ConfigResource::topic(&*place)) else { continue };
            let loses = |entry: &krafka::admin::ConfigEntry| match &*entry.name {
                "retention.ms" => entry.value.as_deref() != Some("-1"),
                _ => entry.value.as_deref() != Some("delete"),
            };
            if entries.iter().any(loses) {
                findings.push(finding(
                    "policy-loses-messages",
                    Some(topic),
                    format!(
                        "the topic '{place}' is cut or compacted, and with it what waits in its subscriptions"
                    ),
                    format!("set retention.ms=-1 and cleanup.policy=delete of '{place}'"),
                ));
            }
        }
        Ok(findings)
    }

    async fn config(&self, of: ConfigResource, name: &str) -> Result<Option<String>> {
        let options =
            DescribeConfigsOptions::default().timeout(self.within()?).config_names(vec![name.to_owned()]);
        let found = self.client.describe_configs([of.clone()], options).await;
        let found =
            found.map_err(|error| fault::of(&error, "reading the broker's configuration"))?.remove(&of);
        let entries =
            found.transpose().map_err(|error| fault::of(&error, "reading the broker's configuration"))?;
        Ok(entries.into_iter().flatten().find(|entry| entry.name == name).and_then(|entry| entry.value))
    }
}

fn seen_subscription(name: &str, lag: Lag) -> SeenSubscription {
    let (exists, ready) = match lag {
        Lag::Messages(count) => (true, count),
        Lag::Absent => (false, 0),
    };
    // What is in hand is in the count, and who reads cannot be seen.
    let (unsettled, consumers) = if exists { (None, None) } else { (Some(0), Some(0)) };
    SeenSubscription { name: name.to_owned(), exists, ready, unsettled, consumers, is_bound: Some(exists) }
}
