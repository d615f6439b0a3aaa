//! Following config: one receiver per process, of the types that somebody in it cares for.
//!
//! # Flow
//! Subscribe to the notices, then fetch, then apply. A notice is a poke: it says what may have changed and carries no
//! data. Pokes coalesce; one fetch is under way at most, and it asks only for what changed since the last one.
//!
//! # Guarantees
//! A version is shown only together with data at least that new. A failing fetch is tried again for ever, and the last
//! good state stays. A lost notice is made good within one resync. A version goes back only with a store that was
//! restored from an older copy, and then together with all of its data.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sluice_bus::{Error, ErrorKind, Inbox, Subscription};
use sluice_schema::message::{ConfigPush, ConfigResponse};
use sluice_schema::{Class, Topic, wire};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::config::{ConfigClient, ConfigError, Position};
use crate::tasks::{Backoff, lock};
use crate::{Metrics, Process};

/// How often config is fetched without a notice, by default.
pub const RESYNC_INTERVAL: Duration = Duration::from_secs(30);
const RETRY: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(30) };
const SUBSCRIBE: Backoff = Backoff { min: Duration::from_millis(50), max: Duration::from_secs(2) };

type Keys = BTreeMap<Arc<str>, Arc<str>>;
type Workspaces = BTreeMap<Arc<str>, Keys>;

/// Config of the types of interest, at one version.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    /// The version that the data is at least as new as.
    pub version: i64,
    /// The history that the version belongs to.
    history: String,
    types: BTreeMap<String, Arc<Workspaces>>,
}

impl View {
    /// One value.
    #[must_use]
    pub fn get(&self, kind: &str, workspace: &str, key: &str) -> Option<&Arc<str>> {
        self.types.get(kind)?.get(workspace)?.get(key)
    }

    /// Keys and values of a type in a workspace, in key order.
    pub fn entries(&self, kind: &str, workspace: &str) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        self.types.get(kind).and_then(|workspaces| workspaces.get(workspace)).into_iter().flatten()
    }

    /// Workspace, key and value of everything of a type, in order.
    pub fn all(&self, kind: &str) -> impl Iterator<Item = (&Arc<str>, &Arc<str>, &Arc<str>)> {
        self.types
            .get(kind)
            .into_iter()
            .flat_map(|workspaces| workspaces.iter())
            .flat_map(|(workspace, keys)| keys.iter().map(move |(key, value)| (workspace, key, value)))
    }

    /// Whether a type (in whatever workspace) is the same in both, cheaply where nothing changed.
    #[must_use]
    pub fn same_type(&self, other: &Self, kind: &str) -> bool {
        match (self.types.get(kind), other.types.get(kind)) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
            (None, None) => true,
            (Some(only), None) | (None, Some(only)) => only.is_empty(),
        }
    }

    fn put(&mut self, kind: &str, workspace: &str, key: &str, value: &str) {
        let workspaces = Arc::make_mut(self.types.entry(kind.to_owned()).or_default());
        workspaces.entry(workspace.into()).or_default().insert(key.into(), value.into());
    }

    fn delete(&mut self, kind: &str, workspace: &str, key: &str) {
        let Some(workspaces) = self.types.get_mut(kind) else { return };
        let workspaces = Arc::make_mut(workspaces);
        if let Some(keys) = workspaces.get_mut(workspace) {
            keys.remove(key);
            if keys.is_empty() {
                workspaces.remove(workspace);
            }
        }
    }

    /// Where the view stands.
    fn position(&self) -> Position {
        Position { version: self.version, history: self.history.clone() }
    }

    /// The view after an answer to `getvalues-many` for `types`.
    fn after(&self, types: &BTreeSet<String>, answer: &ConfigResponse) -> Self {
        let mut next = if answer.since > 0 { self.clone() } else { Self::default() };
        next.types.retain(|kind, _| types.contains(kind));
        for gone in &answer.deleted {
            next.delete(&gone.r#type, &gone.workspace, &gone.key);
        }
        for value in &answer.values {
            match &value.value {
                Some(text) => next.put(&value.r#type, &value.workspace, &value.key, text),
                None => next.delete(&value.r#type, &value.workspace, &value.key),
            }
        }
        if answer.since <= 0 {
            // Types that did not change keep their identity, so that comparing stays cheap.
            for (kind, workspaces) in &mut next.types {
                if let Some(old) = self.types.get(kind)
                    && old == workspaces
                {
                    *workspaces = old.clone();
                }
            }
        }
        let Position { version, history } = self.position().after(answer);
        (next.version, next.history) = (version, history);
        next
    }
}

/// The config receiver of a process. Cheap to clone.
#[derive(Clone)]
pub struct ConfigWatch {
    shared: Arc<Shared>,
}

struct Shared {
    types: Mutex<BTreeSet<String>>,
    /// Asked for something new, or told that something may have changed.
    poke: Notify,
    view: watch::Sender<Arc<View>>,
    /// Types that the view covers.
    covered: watch::Sender<BTreeSet<String>>,
    resync_interval: Duration,
    metrics: Metrics,
    fetches: watch::Sender<Fetches>,
    service: Presence,
}

/// Numbers of fetches: the last that began, and the last that succeeded.
#[derive(Debug, Clone, Copy, Default)]
struct Fetches {
    begun: u64,
    done: u64,
}

/// Whether the config service answers, as far as this process was told.
#[derive(Debug, Default)]
struct Presence {
    is_away: AtomicBool,
}

impl Presence {
    /// Whether this is news.
    fn away(&self) -> bool {
        !self.is_away.swap(true, Ordering::Relaxed)
    }

    /// Whether this is news.
    fn back(&self) -> bool {
        self.is_away.swap(false, Ordering::Relaxed)
    }
}

impl ConfigWatch {
    /// Starts the receiver of this process; it fetches nothing until somebody is interested.
    #[must_use]
    pub fn start(process: &Process, resync_interval: Duration) -> Self {
        let shared = Arc::new(Shared {
            types: Mutex::default(),
            poke: Notify::new(),
            view: watch::Sender::new(Arc::default()),
            covered: watch::Sender::new(BTreeSet::new()),
            resync_interval,
            metrics: process.metrics.clone(),
            fetches: watch::Sender::default(),
            service: Presence::default(),
        });
        let run = shared.clone();
        let parts = process.clone();
        process.tasks.supervise("config/watch", SUBSCRIBE, move || follow(run.clone(), parts.clone()));
        Self { shared }
    }

    /// Follows more types; the receiver shows every change of the view, of whatever type.
    pub fn interest<S: AsRef<str>>(&self, types: &[S]) -> watch::Receiver<Arc<View>> {
        let mut known = lock(&self.shared.types);
        let before = known.len();
        known.extend(types.iter().map(|kind| kind.as_ref().to_owned()));
        if known.len() > before {
            self.shared.poke.notify_one();
        }
        drop(known);
        self.shared.view.subscribe()
    }

    /// Waits until the view covers these types; then the view at that moment.
    pub async fn ready<S: AsRef<str>>(&self, types: &[S]) -> Arc<View> {
        self.interest(types);
        let mut covered = self.shared.covered.subscribe();
        // The sender lives in `shared`, so this ends only with the types covered.
        let _ = covered.wait_for(|have| types.iter().all(|kind| have.contains(kind.as_ref()))).await;
        self.shared.view.borrow().clone()
    }

    /// The view now; empty before the first fetch.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.shared.view.borrow().clone()
    }

    /// Asks for a fetch now, as a notice would.
    pub fn poke(&self) {
        self.shared.poke.notify_one();
    }

    /// Fetches, and waits for it: the view is then at least as new as this call. It waits for as long as config does not
    /// answer. Calls at the same time share one fetch.
    pub async fn look(&self) -> Arc<View> {
        let mut fetches = self.shared.fetches.subscribe();
        // One that is under way may have read before this call.
        let wanted = fetches.borrow_and_update().begun + 1;
        self.poke();
        // The sender lives in `shared`, so this ends only with such a fetch.
        let _ = fetches.wait_for(|fetches| fetches.done >= wanted).await;
        self.view()
    }

    /// Says in the log that the config service does not answer: once per process until it does again, whoever met it.
    pub fn tell_away(&self, error: &dyn Display) {
        self.shared.tell_away(error);
    }

    /// Says in the log that the config service answers, if it was said that it does not.
    pub fn tell_back(&self) {
        self.shared.tell_back();
    }
}

impl Shared {
    fn tell_away(&self, error: &dyn Display) {
        if self.service.away() {
            tracing::warn!(%error, "waiting for the config service; the last good state stays");
        } else {
            tracing::debug!(%error, "the config service does not answer yet");
        }
    }

    fn tell_back(&self) {
        if self.service.back() {
            tracing::info!("the config service answers");
        }
    }
}

async fn follow(shared: Arc<Shared>, process: Process) -> Result<(), Error> {
    let topic = Topic::tg(Class::Notify, "config").map_err(|e| Error::Refused { reason: e.to_string() })?;
    let mut attempt = 0;
    let (inbox, client) = loop {
        match attach(&process, topic.clone()).await {
            Ok(ends) => break ends,
            // The config service, which makes it, was not here yet.
            Err(error) if error.kind() == ErrorKind::Absent => shared.tell_away(&error),
            Err(error) => return Err(error),
        }
        tokio::time::sleep(SUBSCRIBE.pause(attempt)).await;
        attempt += 1;
    };
    // A new subscription may have missed notices: look again.
    shared.poke.notify_one();
    let stop = process.stop.child_token();
    tokio::select! {
        error = listen(&*inbox, &shared) => Err(error),
        error = follow_again(&*inbox, &topic, shared.resync_interval) => Err(error),
        () = fetch_when_poked(&shared, &client, &stop) => Ok(()),
    }
}

async fn attach(process: &Process, notices: Topic) -> Result<(Box<dyn Inbox>, ConfigClient), Error> {
    let inbox = process.broker.subscribe(&Subscription::Own { topics: vec![notices] }).await?;
    Ok((inbox, ConfigClient::new(&process.replies).await?))
}

/// Binds the inbox again at a period: when the topic was gone and its owner made it again, nobody else does. Returns what
/// failed.
async fn follow_again(inbox: &dyn Inbox, notices: &Topic, interval: Duration) -> Error {
    loop {
        tokio::time::sleep(interval).await;
        if let Err(error) = inbox.follow(notices).await {
            return error;
        }
    }
}

async fn listen(inbox: &dyn Inbox, shared: &Shared) -> Error {
    loop {
        let delivery = match inbox.next().await {
            Ok(delivery) => delivery,
            Err(error) => return error,
        };
        let matters = match wire::decode::<ConfigPush>(&delivery.message.body) {
            Ok(push) => matters(shared, &push),
            Err(error) => {
                tracing::warn!(%error, "an unreadable config notice; fetching to be safe");
                true
            }
        };
        delivery.ack();
        if matters {
            shared.poke.notify_one();
        }
    }
}

fn matters(shared: &Shared, push: &ConfigPush) -> bool {
    let types = lock(&shared.types);
    push.workspace_changes.is_some()
        || push.changes.is_empty()
        || push.changes.keys().any(|kind| types.contains(kind))
}

async fn fetch_when_poked(shared: &Shared, client: &ConfigClient, stop: &CancellationToken) {
    let mut failures = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.poke.notified() => {}
            () = tokio::time::sleep(shared.resync_interval) => {}
        }
        while let Err(error) = fetch_numbered(shared, client).await {
            if stop.is_cancelled() {
                return;
            }
            let pause = RETRY.pause(failures);
            failures += 1;
            shared.tell_away(&error);
            stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
        failures = 0;
    }
}

async fn fetch_numbered(shared: &Shared, client: &ConfigClient) -> Result<(), ConfigError> {
    shared.fetches.send_modify(|fetches| fetches.begun += 1);
    let number = shared.fetches.borrow().begun;
    fetch(shared, client).await?;
    shared.fetches.send_modify(|fetches| fetches.done = number);
    Ok(())
}

async fn fetch(shared: &Shared, client: &ConfigClient) -> Result<(), ConfigError> {
    let types = lock(&shared.types).clone();
    if types.is_empty() {
        return Ok(());
    }
    let old = shared.view.borrow().clone();
    let grew = *shared.covered.borrow() != types;
    let since = if grew { Position::default() } else { old.position() };
    let list: Vec<String> = types.iter().cloned().collect();
    let answer = match client.changes(&list, &since).await {
        Err(ConfigError::Refused { kind, .. }) if kind == "bad-operation" => {
            one_by_one(client, &list).await?
        }
        other => other?,
    };
    shared.tell_back();
    let next = old.after(&types, &answer);
    shared.metrics.config_version.set(next.version);
    if *old != next {
        shared.view.send_replace(Arc::new(next));
    }
    if grew {
        shared.covered.send_replace(types);
    }
    Ok(())
}

/// For config services without `getvalues-many`: one call per type. The lowest version seen is the one to show.
async fn one_by_one(client: &ConfigClient, types: &[String]) -> Result<ConfigResponse, ConfigError> {
    let mut whole = ConfigResponse { version: i64::MAX, ..Default::default() };
    for kind in types {
        let mut answer = client.getvalues_all(kind).await?;
        whole.version = whole.version.min(answer.version);
        whole.values.append(&mut answer.values);
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_schema::message::{ConfigValue, ScopedKey};

    fn value(kind: &str, workspace: &str, key: &str, text: &str) -> ConfigValue {
        crate::config::value(workspace, kind, key, text)
    }

    #[test]
    fn that_config_is_away_is_news_once_and_that_it_is_back_too() {
        let service = Presence::default();
        assert!(!service.back(), "it was never away");
        assert!(service.away() && !service.away());
        assert!(service.back() && !service.back());
    }

    #[test]
    fn a_relative_answer_changes_only_what_it_names() {
        let types: BTreeSet<String> = ["flow".to_owned(), "tool".to_owned()].into();
        let whole = ConfigResponse {
            version: 5,
            values: vec![
                value("flow", "a", "f1", "1"),
                value("flow", "b", "f2", "2"),
                value("tool", "a", "t", "x"),
            ],
            ..Default::default()
        };
        let first = View::default().after(&types, &whole);
        let change = ConfigResponse {
            version: 7,
            since: 5,
            values: vec![value("flow", "a", "f1", "new")],
            deleted: vec![ScopedKey { workspace: "b".into(), r#type: "flow".into(), key: "f2".into() }],
            ..Default::default()
        };
        let second = first.after(&types, &change);
        assert_eq!(second.version, 7);
        assert_eq!(second.get("flow", "a", "f1").map(|v| &**v), Some("new"));
        assert_eq!(second.all("flow").count(), 1);
        assert!(second.same_type(&first, "tool") && !second.same_type(&first, "flow"));
    }

    #[test]
    fn a_whole_answer_forgets_what_it_does_not_name() {
        let types: BTreeSet<String> = ["flow".to_owned()].into();
        let whole = |version, values| ConfigResponse { version, values, ..Default::default() };
        let first = View::default().after(&types, &whole(5, vec![value("flow", "a", "f1", "1")]));
        let second = first.after(&types, &whole(6, vec![]));
        assert_eq!(second.all("flow").count(), 0);
        let older = second.after(&types, &whole(2, vec![]));
        assert_eq!(older.version, 6, "a version never goes back");
        let restored = ConfigResponse { history: "other".to_owned(), ..whole(2, vec![]) };
        assert_eq!(
            older.after(&types, &restored).position(),
            Position { version: 2, history: "other".to_owned() }
        );
    }
}
