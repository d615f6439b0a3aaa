//! What the registry and the leases say, as far as they were read. Both are logs that everybody reads to the end, in the same
//! order, so everybody comes to the same view; times are the broker's only.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use krafka::KrafkaError;
use serde::{Deserialize, Serialize};
use sluice_schema::Topic;
use tokio::sync::watch;

use super::names;
use crate::local::lock;

/// How long a lease lasts that is not renewed.
pub(super) const TERM: Duration = Duration::from_secs(8);

/// Which of the two logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Log {
    Registry,
    Leases,
}

impl Log {
    pub(super) const ALL: [Self; 2] = [Self::Registry, Self::Leases];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Registry => names::REGISTRY,
            Self::Leases => names::LEASES,
        }
    }
}

/// What a record is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    Topic(Topic),
    Inbox(String),
    Signature(String),
    Hold(String),
    Process(String),
}

impl Key {
    pub(super) const fn log(&self) -> Log {
        match self {
            Self::Topic(_) | Self::Inbox(_) | Self::Signature(_) => Log::Registry,
            Self::Hold(_) | Self::Process(_) => Log::Leases,
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Topic(topic) => format!("topic {topic}"),
            Self::Inbox(inbox) => format!("inbox {inbox}"),
            Self::Signature(name) => format!("signature {name}"),
            Self::Hold(name) => format!("hold {name}"),
            Self::Process(id) => format!("process {id}"),
        }
    }

    fn read(text: &str) -> Option<Self> {
        let (kind, name) = text.split_once(' ')?;
        let owned = || name.to_owned();
        match kind {
            "topic" => Topic::parse(name).ok().map(Self::Topic),
            "inbox" => Some(Self::Inbox(owned())),
            "signature" => Some(Self::Signature(owned())),
            "hold" => Some(Self::Hold(owned())),
            "process" => Some(Self::Process(owned())),
            _ => None,
        }
    }
}

/// A topic on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// What no other topic under this identifier has.
    pub(super) id: String,
    pub(super) subscriptions: Vec<String>,
    /// Somebody has begun to remove it: it is not there any more for anybody else.
    #[serde(default)]
    pub(super) is_removed: bool,
    /// It is called and read as by processes of TrustGraph 2.11.
    #[serde(default)]
    pub(super) is_beside: bool,
}

impl Entry {
    pub(super) fn place(&self, topic: &Topic) -> String {
        if self.is_beside { names::plain_place(topic) } else { names::place(topic, &self.id) }
    }
}

/// An inbox on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InboxEntry {
    pub(super) process: String,
}

/// A claim of a name, or its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    /// What no other claim has.
    pub(super) id: String,
    /// Who it is, in words for people.
    pub(super) who: String,
    /// It is let go.
    #[serde(default)]
    pub(super) is_over: bool,
}

struct Holder {
    id: String,
    who: String,
    /// By the broker's clock.
    until_ms: i64,
}

#[derive(Default)]
struct View {
    topics: BTreeMap<Topic, Entry>,
    inboxes: HashMap<String, InboxEntry>,
    signatures: HashMap<String, String>,
    holders: HashMap<String, Holder>,
    /// When they were last heard of, by the broker's clock.
    processes: HashMap<String, i64>,
    /// Behind the last record that was read of each log.
    read: [i64; 2],
    /// How far the broker's clock is before ours, at least.
    ahead_ms: Option<i64>,
}

/// The view of a process.
#[derive(Default)]
pub(super) struct Registry {
    view: Mutex<View>,
    changed: watch::Sender<()>,
    /// The last that was sent or asked came to nothing, and nothing was heard since.
    is_silent: AtomicBool,
}

impl Registry {
    /// Where reading begins.
    pub(super) fn begin(&self, log: Log, offset: i64) {
        lock(&self.view).read[log as usize] = offset;
    }

    /// The broker answered, or sent something.
    pub(super) fn heard(&self) {
        if self.is_silent.swap(false, Ordering::Relaxed) {
            tracing::info!("the Kafka cluster answers again");
        }
    }

    /// The broker did not answer.
    pub(super) fn missed(&self, error: &KrafkaError) {
        let is_away = matches!(
            error,
            KrafkaError::Network(_) | KrafkaError::Timeout { .. } | KrafkaError::DeliveryTimeout { .. }
        );
        if is_away && !self.is_silent.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "the Kafka cluster does not answer; connections are made again");
        }
    }

    pub(super) fn is_silent(&self) -> bool {
        self.is_silent.load(Ordering::Relaxed)
    }

    /// Takes a record of a log; one that cannot be read is passed over.
    pub(super) fn apply(&self, log: Log, offset: i64, at_ms: i64, key: Option<&[u8]>, value: Option<&[u8]>) {
        {
            let mut view = lock(&self.view);
            view.read[log as usize] = offset + 1;
            let ahead_ms = at_ms - now_ms();
            view.ahead_ms = Some(view.ahead_ms.map_or(ahead_ms, |known| known.max(ahead_ms)));
            let key = key.and_then(|key| std::str::from_utf8(key).ok()).and_then(Key::read);
            match key {
                Some(key) => view.set(key, value, at_ms),
                None => tracing::warn!(log = log.name(), offset, "a record of the registry cannot be read"),
            }
        }
        self.heard();
        self.changed.send_replace(());
    }

    fn look<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&lock(&self.view))
    }

    /// Waits until it is so.
    pub(super) async fn until(&self, mut is_so: impl FnMut(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        while !is_so(self) {
            // The sender is ours.
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    pub(super) fn read(&self, log: Log) -> i64 {
        self.look(|view| view.read[log as usize])
    }

    /// A topic that is there.
    pub(super) fn topic(&self, topic: &Topic) -> Option<Entry> {
        self.entry(topic).filter(|entry| !entry.is_removed)
    }

    /// A topic on record, also one that is being removed.
    pub(super) fn entry(&self, topic: &Topic) -> Option<Entry> {
        self.look(|view| view.topics.get(topic).cloned())
    }

    /// Every topic on record whose identifier begins so.
    pub(super) fn topics(&self, prefix: &str) -> Vec<(Topic, Entry)> {
        let begins = |(topic, _): &(&Topic, &Entry)| topic.as_str().starts_with(prefix);
        self.look(|view| {
            let found = view.topics.iter().filter(begins);
            found.map(|(topic, entry)| (topic.clone(), entry.clone())).collect()
        })
    }

    /// Whether this incarnation of a topic is there.
    pub(super) fn is_there(&self, topic: &Topic, id: &str) -> bool {
        self.look(|view| view.topics.get(topic).is_some_and(|entry| entry.id == id && !entry.is_removed))
    }

    /// The process whose inbox it is.
    pub(super) fn inbox(&self, inbox: &str) -> Option<String> {
        self.look(|view| view.inboxes.get(inbox).map(|entry| entry.process.clone()))
    }

    pub(super) fn inboxes(&self) -> Vec<(String, String)> {
        self.look(|view| view.inboxes.iter().map(|(name, of)| (name.clone(), of.process.clone())).collect())
    }

    pub(super) fn signature(&self, name: &str) -> Option<String> {
        self.look(|view| view.signatures.get(name).cloned())
    }

    /// The claim that holds a name, and who says so; as of now, by the broker's clock.
    pub(super) fn holder(&self, name: &str) -> Option<(String, String)> {
        self.look(|view| {
            let holder = view.holders.get(name).filter(|holder| holder.until_ms >= view.now_ms())?;
            Some((holder.id.clone(), holder.who.clone()))
        })
    }

    /// The claim that held a name last.
    pub(super) fn last_holder(&self, name: &str) -> Option<String> {
        self.look(|view| view.holders.get(name).map(|holder| holder.id.clone()))
    }

    /// For how long nothing was heard of a process, by the broker's clock; `None` where nothing ever was.
    pub(super) fn silence(&self, process: &str) -> Option<Duration> {
        self.look(|view| {
            let heard_ms = view.processes.get(process)?;
            Some(Duration::from_millis(u64::try_from(view.now_ms() - heard_ms).unwrap_or(0)))
        })
    }

    /// How old what was written then is, by the broker's clock.
    pub(super) fn age_ms(&self, at_ms: i64) -> u64 {
        self.look(|view| u64::try_from(view.now_ms() - at_ms).unwrap_or(0))
    }
}

impl View {
    fn set(&mut self, key: Key, value: Option<&[u8]>, at_ms: i64) {
        fn read<'a, T: Deserialize<'a>>(value: Option<&'a [u8]>) -> Option<T> {
            value.and_then(|value| serde_json::from_slice(value).ok())
        }
        match key {
            Key::Topic(topic) => put(&mut self.topics, topic, read(value)),
            Key::Inbox(inbox) => match read(value) {
                Some(entry) => drop(self.inboxes.insert(inbox, entry)),
                None => drop(self.inboxes.remove(&inbox)),
            },
            Key::Signature(name) => match read(value) {
                Some(by) => drop(self.signatures.insert(name, by)),
                None => drop(self.signatures.remove(&name)),
            },
            Key::Process(id) => match value {
                Some(_) => drop(self.processes.insert(id, at_ms)),
                None => drop(self.processes.remove(&id)),
            },
            Key::Hold(name) => {
                if let Some(claim) = read::<Claim>(value) {
                    self.claim(name, claim, at_ms);
                }
            }
        }
    }

    /// Whoever claims a name that is free has it for a term; whoever has it renews it in the same way.
    fn claim(&mut self, name: String, claim: Claim, at_ms: i64) {
        let held = self.holders.get(&name).filter(|holder| holder.until_ms >= at_ms);
        if held.is_some_and(|holder| holder.id != claim.id) {
            return;
        }
        if claim.is_over {
            self.holders.remove(&name);
            return;
        }
        let until_ms = at_ms + TERM.as_millis() as i64;
        self.holders.insert(name, Holder { id: claim.id, who: claim.who, until_ms });
    }

    fn now_ms(&self) -> i64 {
        now_ms() + self.ahead_ms.unwrap_or(0)
    }
}

fn put(topics: &mut BTreeMap<Topic, Entry>, topic: Topic, entry: Option<Entry>) {
    match entry {
        Some(entry) => drop(topics.insert(topic, entry)),
        None => drop(topics.remove(&topic)),
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tell(registry: &Registry, at_ms: i64, key: &Key, value: Option<&str>) {
        let offset = registry.read(key.log());
        registry.apply(key.log(), offset, at_ms, Some(key.text().as_bytes()), value.map(str::as_bytes));
    }

    fn claim(registry: &Registry, at_ms: i64, id: &str, is_over: bool) -> Option<String> {
        let claim = Claim { id: id.to_owned(), who: "p".to_owned(), is_over };
        let value = serde_json::to_string(&claim).unwrap();
        tell(registry, at_ms, &Key::Hold("leader".to_owned()), Some(&value));
        registry.last_holder("leader")
    }

    #[test]
    fn a_name_is_held_by_whoever_claimed_it_first_until_its_term_is_over() {
        let (registry, term) = (Registry::default(), TERM.as_millis() as i64);
        let check = |at_ms, id, is_over, holder: Option<&str>| {
            assert_eq!(claim(&registry, at_ms, id, is_over).as_deref(), holder, "{id} at {at_ms}");
        };
        check(0, "a", false, Some("a"));
        check(1, "b", false, Some("a"));
        check(term, "a", false, Some("a"));
        check(2 * term, "b", false, Some("a"));
        // Letting go what is another's takes nothing away.
        check(2 * term, "b", true, Some("a"));
        check(2 * term + 1, "b", false, Some("b"));
        check(2 * term + 2, "a", false, Some("b"));
        check(2 * term + 3, "b", true, None);
        check(2 * term + 4, "a", false, Some("a"));
    }

    #[test]
    fn the_last_record_of_a_topic_counts_and_a_removed_one_is_on_record_only() {
        let registry = Registry::default();
        let topic = Topic::parse("flow:tg:a:b").unwrap();
        let key = Key::Topic(topic.clone());
        tell(&registry, 0, &key, Some(r#"{"id":"1","subscriptions":["reader"]}"#));
        assert_eq!(registry.topic(&topic).unwrap().subscriptions, ["reader"]);
        assert!(registry.is_there(&topic, "1") && !registry.is_there(&topic, "2"));
        tell(&registry, 0, &key, Some(r#"{"id":"1","subscriptions":[],"is_removed":true}"#));
        assert!(registry.topic(&topic).is_none() && registry.entry(&topic).is_some());
        tell(&registry, 0, &key, None);
        assert!(registry.entry(&topic).is_none());
        assert_eq!(registry.read(Log::Registry), 3);
    }

    #[test]
    fn what_cannot_be_read_is_passed_over() {
        let registry = Registry::default();
        for key in [None, Some(&b"topic x"[..]), Some(b"other y"), Some(b"\xff"), Some(b"hold h")] {
            registry.apply(Log::Registry, 0, 0, key, Some(b"{"));
        }
        assert!(registry.topics("").is_empty() && registry.last_holder("h").is_none());
        assert_eq!(registry.read(Log::Registry), 1);
    }

    #[test]
    fn ages_are_told_by_the_brokers_clock() {
        let registry = Registry::default();
        let at_ms = now_ms() + 3_600_000;
        tell(&registry, at_ms, &Key::Process("p".to_owned()), Some("1"));
        assert!(registry.age_ms(at_ms - 5_000) >= 5_000);
        assert!(registry.age_ms(at_ms) < 5_000);
        assert!(registry.silence("p").unwrap() < Duration::from_secs(5));
        assert!(registry.silence("q").is_none());
    }
}
