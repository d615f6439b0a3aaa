//! Following config: one receiver per process, of the types that somebody in it cares for.
//!
//! # Flow
//! Subscribe to the notices, then fetch, then apply. A notice is a poke: it says what may have changed and carries no
//! data. Pokes coalesce; one fetch is under way at most, and it asks only for what changed since the last one. Types that
//! are too much for one answer, or cannot be read, are read by themselves beside it, page by page: what needs them waits
//! alone, and joins the rest once they are there.
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

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use sluice_bus::{BoxFuture, Error, ErrorKind, Inbox, Renewing};
use sluice_schema::message::{ConfigPush, ConfigResponse};
use sluice_schema::{Class, Topic, wire};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::{ConfigClient, ConfigError, Page, Position};
use crate::tasks::{Backoff, lock};
use crate::values::{Changes, Keep, Values};
use crate::{Metrics, Process};

/// How often config is fetched without a notice, by default.
pub const RESYNC_INTERVAL: Duration = Duration::from_secs(30);
const RETRY: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(30) };
const SUBSCRIBE: Backoff = Backoff { min: Duration::from_millis(50), max: Duration::from_secs(2) };

/// What a config service answers that has no `getvalues-many`.
const NO_OPERATION: &str = "bad-operation";

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

    /// Takes in a page about these types.
    fn take(&mut self, types: &BTreeSet<String>, page: &Page) {
        if page.is_whole {
            self.types.retain(|kind, _| !types.contains(kind));
        }
        for gone in &page.deleted {
            self.delete(&gone.r#type, &gone.workspace, &gone.key);
        }
        for value in page.values.iter().filter(|value| types.contains(&value.r#type)) {
            match &value.value {
                Some(text) => self.put(&value.r#type, &value.workspace, &value.key, text),
                None => self.delete(&value.r#type, &value.workspace, &value.key),
            }
        }
        // They are there: what was known of them stays, else readers find a value that they cannot read.
        for at in page.damaged.iter().filter(|at| types.contains(&at.r#type)) {
            if self.get(&at.r#type, &at.workspace, &at.key).is_none() {
                self.put(&at.r#type, &at.workspace, &at.key, "");
            }
        }
    }

    /// The view at a position, once every page was taken in. Types that are as in `old` keep their identity, so that
    /// comparing stays cheap.
    fn at(mut self, position: Position, old: &Self) -> Self {
        for (kind, workspaces) in &mut self.types {
            if let Some(known) = old.types.get(kind)
                && known == workspaces
            {
                *workspaces = known.clone();
            }
        }
        let Position { version, history } = position;
        (self.version, self.history) = (version, history);
        self
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
    /// Values that are read when they are needed.
    keep: Arc<Keep>,
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
            keep: Arc::new(Keep::new(process)),
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

    /// The values of a type in one workspace, read when they are needed. For types that users write: what all workspaces
    /// together hold of those has no bound, so no view of them is kept.
    #[must_use]
    pub fn values(&self, kind: &str, workspace: &str) -> Values {
        Values::new(&self.shared.keep, kind, workspace)
    }

    /// The workspaces in which one of these types may have changed, from now on, without their values.
    #[must_use]
    pub fn changes(&self, types: &[&str]) -> Changes {
        self.shared.keep.changes(types)
    }

    /// Bytes that are kept of values that are read when they are needed.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.shared.keep.kept_bytes()
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
    /// Notices may have been missed.
    fn missed(&self) {
        self.keep.missed();
        self.poke.notify_one();
    }

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
        match attach(&shared, &process, topic.clone()).await {
            Ok(ends) => break ends,
            // The config service, which makes it, was not here yet.
            Err(error) if error.kind() == ErrorKind::Absent => shared.tell_away(&error),
            Err(error) => return Err(error),
        }
        tokio::time::sleep(SUBSCRIBE.pause(attempt)).await;
        attempt += 1;
    };
    // A new subscription may have missed notices: look again.
    shared.missed();
    let stop = process.stop.child_token();
    tokio::select! {
        error = listen(&inbox, &shared) => Err(error),
        () = fetch_when_poked(&shared, &client, &stop) => Ok(()),
    }
}

async fn attach(
    shared: &Arc<Shared>,
    process: &Process,
    notices: Topic,
) -> Result<(Renewing, ConfigClient), Error> {
    let missed = shared.clone();
    let inbox = Renewing::attach(&*process.broker, vec![notices], move || missed.missed()).await?;
    Ok((inbox, ConfigClient::new(&process.replies).await?))
}

async fn listen(inbox: &dyn Inbox, shared: &Shared) -> Error {
    loop {
        let delivery = match inbox.next().await {
            Ok(delivery) => delivery,
            Err(error) => return error,
        };
        let matters = match wire::decode::<ConfigPush>(&delivery.message.body) {
            Ok(push) => {
                shared.keep.told(&push);
                matters(shared, &push)
            }
            Err(error) => {
                tracing::warn!(%error, "an unreadable config notice; fetching to be safe");
                shared.keep.missed();
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
    let mut alone = Alone::default();
    let mut looked = Looked { at: Instant::now(), position: Position::default() };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.poke.notified() => {}
            () = tokio::time::sleep(shared.resync_interval) => {}
            Some(whole) = alone.reads.next(), if !alone.reads.is_empty() => alone.arrived.push(whole),
        }
        while let Err(error) = fetch_numbered(shared, client, &mut alone).await {
            if stop.is_cancelled() {
                return;
            }
            let pause = RETRY.pause(failures);
            failures += 1;
            shared.tell_away(&error);
            stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
        failures = 0;
        looked.again(shared);
    }
}

/// When it was last looked whether a notice was lost to those who read values when they need them.
struct Looked {
    at: Instant,
    position: Position,
}

impl Looked {
    /// Config that moved since then may have done so unheard; of another history nothing was told.
    fn again(&mut self, shared: &Shared) {
        let now = shared.view.borrow().position();
        let is_other = now.history != self.position.history;
        let is_due = self.at.elapsed() >= shared.resync_interval;
        if is_other || is_due && (now != self.position || now.version == 0) {
            shared.keep.doubt();
        }
        if is_other || is_due {
            *self = Self { at: Instant::now(), position: now };
        }
    }
}

async fn fetch_numbered<'a>(
    shared: &'a Shared,
    client: &'a ConfigClient,
    alone: &mut Alone<'a>,
) -> Result<(), ConfigError> {
    shared.fetches.send_modify(|fetches| fetches.begun += 1);
    let number = shared.fetches.borrow().begun;
    // Before anything can be shown, nobody's question is answered.
    if fetch(shared, client, alone).await? {
        shared.fetches.send_modify(|fetches| fetches.done = number);
    }
    Ok(())
}

/// Types that are read by themselves, since they are too much for one answer or could not be read: whoever waits for them
/// waits alone.
#[derive(Default)]
struct Alone<'a> {
    reads: FuturesUnordered<BoxFuture<'a, Whole>>,
    /// Those that are being read, and those that were and are about to join the others.
    types: BTreeSet<String>,
    arrived: Vec<Whole>,
}

/// All of one type.
struct Whole {
    kind: String,
    values: Option<Arc<Workspaces>>,
    position: Position,
}

impl<'a> Alone<'a> {
    fn begin(&mut self, client: &'a ConfigClient, types: impl IntoIterator<Item = String>) {
        for kind in types {
            self.arrived.retain(|whole| whole.kind != kind);
            self.types.insert(kind.clone());
            self.reads.push(Box::pin(read_alone(client, kind)));
        }
    }
}

impl Whole {
    /// What was written of the type meanwhile.
    async fn catch_up(&mut self, client: &ConfigClient) -> Result<(), ConfigError> {
        let only = BTreeSet::from([self.kind.clone()]);
        let mut draft = View::default();
        draft.types.extend(self.values.clone().map(|values| (self.kind.clone(), values)));
        let list = [self.kind.clone()];
        self.position = client.fetch(&list, &self.position, |page| draft.take(&only, &page)).await?;
        self.values = draft.types.remove(&self.kind);
        Ok(())
    }
}

/// Reads a type until it can be read.
async fn read_alone(client: &ConfigClient, kind: String) -> Whole {
    let only = BTreeSet::from([kind.clone()]);
    let list = [kind.clone()];
    for attempt in 0.. {
        let mut draft = View::default();
        let error = match client.fetch(&list, &Position::default(), |page| draft.take(&only, &page)).await {
            Ok(position) => return Whole { values: draft.types.remove(&kind), kind, position },
            Err(error) => error,
        };
        if (attempt + 1_u32).is_power_of_two() {
            tracing::warn!(kind, %error, "config of this type cannot be read; what needs it waits, all else goes on");
        }
        tokio::time::sleep(RETRY.pause(attempt)).await;
    }
    std::future::pending().await
}

/// Whether an error is about what was asked, not about a service that is away.
fn is_about_the_question(error: &ConfigError) -> bool {
    matches!(error, ConfigError::Refused { kind, .. } if kind != NO_OPERATION) && !error.is_unasked()
}

fn has_no_operation(error: &ConfigError) -> bool {
    matches!(error, ConfigError::Refused { kind, .. } if kind == NO_OPERATION)
}

/// What changed of the types that are followed, and all of those that are new. Where those are little, in one answer.
/// Whether anything is shown by now.
async fn fetch<'a>(
    shared: &'a Shared,
    client: &'a ConfigClient,
    alone: &mut Alone<'a>,
) -> Result<bool, ConfigError> {
    let types: BTreeSet<String> = lock(&shared.types).difference(&alone.types).cloned().collect();
    if types.is_empty() && alone.types.is_empty() {
        return Ok(true);
    }
    let old = shared.view.borrow().clone();
    let grew = !types.is_subset(&shared.covered.borrow());
    let since = if grew { Position::default() } else { old.position() };
    if alone.arrived.is_empty() && !types.is_empty() {
        match client.first_page(&Vec::from_iter(types.clone()), &since).await {
            Ok(answer) if answer.cursor.is_empty() => {
                let mut next = View::clone(&old);
                let position = since.after(&answer);
                let is_whole = answer.since <= 0;
                next.take(&types, &Page { is_whole, ..answer.into() });
                show(shared, next.at(position, &old), &types);
                return Ok(true);
            }
            Err(error) if has_no_operation(&error) => {
                let answer = one_by_one(client, &Vec::from_iter(types.clone())).await?;
                let mut next = View::clone(&old);
                let position = old.position().after(&answer);
                next.take(&types, &Page { is_whole: true, values: answer.values, ..Page::default() });
                show(shared, next.at(position, &old), &types);
                return Ok(true);
            }
            Ok(_) => {}
            Err(error) if is_about_the_question(&error) => {
                tracing::debug!(%error, "reading types by themselves")
            }
            Err(error) => return Err(error),
        }
    }
    if grew {
        let fresh: Vec<String> = types.difference(&shared.covered.borrow()).cloned().collect();
        alone.begin(client, fresh);
    }
    join(shared, client, alone, &old).await
}

/// Brings the types that are shown, and those that have been read by themselves, to one position.
async fn join<'a>(
    shared: &'a Shared,
    client: &'a ConfigClient,
    alone: &mut Alone<'a>,
    old: &View,
) -> Result<bool, ConfigError> {
    for whole in &mut alone.arrived {
        // Read before the others were: first as far as they are, so that all can go on from where they stand.
        if whole.position.version < old.version {
            whole.catch_up(client).await?;
        }
    }
    loop {
        let mut types = shared.covered.borrow().clone();
        types.retain(|kind| !alone.types.contains(kind));
        let mut since = (!types.is_empty()).then(|| old.position());
        let mut next = old.clone();
        for whole in &alone.arrived {
            types.insert(whole.kind.clone());
            match &whole.values {
                Some(values) => drop(next.types.insert(whole.kind.clone(), values.clone())),
                None => drop(next.types.remove(&whole.kind)),
            }
        }
        let arrived = alone.arrived.iter().map(|whole| &whole.position);
        since = since.or_else(|| arrived.min_by_key(|position| position.version).cloned());
        let Some(since) = since else { return Ok(false) };
        let list = Vec::from_iter(types.clone());
        let error = match client.fetch(&list, &since, |page| next.take(&types, &page)).await {
            Ok(position) => {
                alone.arrived.clear();
                alone.types.retain(|kind| !types.contains(kind));
                show(shared, next.at(position, old), &types);
                return Ok(true);
            }
            Err(error) => error,
        };
        if !is_about_the_question(&error) {
            return Err(error);
        }
        // Which of them is it about? Where it is about all, it is not about any.
        let mut bad = Vec::new();
        for kind in &list {
            match client.first_page(std::slice::from_ref(kind), &since).await {
                Ok(_) => {}
                Err(error) if is_about_the_question(&error) => bad.push(kind.clone()),
                Err(error) => return Err(error),
            }
        }
        if bad.is_empty() || bad.len() == list.len() {
            return Err(error);
        }
        alone.begin(client, bad);
    }
}

fn show(shared: &Shared, next: View, types: &BTreeSet<String>) {
    shared.tell_back();
    shared.metrics.config_version.set(next.version);
    let is_news = **shared.view.borrow() != next;
    if is_news {
        shared.view.send_replace(Arc::new(next));
    }
    shared.covered.send_if_modified(|covered| std::mem::replace(covered, types.clone()) != *types);
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

    fn page(is_whole: bool, values: Vec<ConfigValue>, deleted: Vec<ScopedKey>) -> Page {
        Page { is_whole, values, deleted, ..Page::default() }
    }

    #[test]
    fn a_relative_page_changes_only_what_it_names() {
        let types: BTreeSet<String> = ["flow".to_owned(), "tool".to_owned()].into();
        let values = vec![
            value("flow", "a", "f1", "1"),
            value("flow", "b", "f2", "2"),
            value("tool", "a", "t", "x"),
            value("other", "a", "t", "x"),
        ];
        let mut first = View::default();
        first.take(&types, &page(true, values, Vec::new()));
        assert_eq!(first.all("other").count(), 0, "nobody asked for it");
        let mut second = first.clone();
        let gone = ScopedKey { workspace: "b".into(), r#type: "flow".into(), key: "f2".into() };
        second.take(&types, &page(false, vec![value("flow", "a", "f1", "new")], vec![gone]));
        let second = second.at(Position { version: 7, ..Position::default() }, &first);
        assert_eq!(second.version, 7);
        assert_eq!(second.get("flow", "a", "f1").map(|v| &**v), Some("new"));
        assert_eq!(second.all("flow").count(), 1);
        assert!(second.same_type(&first, "tool") && !second.same_type(&first, "flow"));
    }

    #[test]
    fn a_damaged_value_is_there_as_what_was_known_of_it_or_as_what_nobody_can_read() {
        let types: BTreeSet<String> = ["flow".to_owned()].into();
        let at = |key: &str| ScopedKey { workspace: "a".into(), r#type: "flow".into(), key: key.into() };
        let mut view = View::default();
        view.take(&types, &page(true, vec![value("flow", "a", "f1", "1")], Vec::new()));
        view.take(&types, &Page { damaged: vec![at("f1")], ..Page::default() });
        assert_eq!(view.get("flow", "a", "f1").map(|v| &**v), Some("1"));
        view.take(&types, &Page { is_whole: true, damaged: vec![at("f1"), at("f2")], ..Page::default() });
        assert_eq!(
            view.entries("flow", "a").map(|(key, v)| (&**key, &**v)).collect::<Vec<_>>(),
            [("f1", ""), ("f2", "")]
        );
    }

    #[test]
    fn a_whole_page_forgets_what_its_types_had_and_no_others() {
        let types: BTreeSet<String> = ["flow".to_owned()].into();
        let both: BTreeSet<String> = ["flow".to_owned(), "tool".to_owned()].into();
        let mut view = View::default();
        let values = vec![value("flow", "a", "f1", "1"), value("tool", "a", "t", "1")];
        view.take(&both, &page(true, values, Vec::new()));
        view.take(&types, &page(true, Vec::new(), Vec::new()));
        assert_eq!((view.all("flow").count(), view.all("tool").count()), (0, 1));
    }

    #[test]
    fn a_version_goes_back_only_with_a_history() {
        let here = Position { version: 6, history: "one".to_owned() };
        let older = ConfigResponse { version: 2, ..Default::default() };
        assert_eq!(here.after(&older).version, 6);
        let restored = ConfigResponse { history: "other".to_owned(), ..older };
        assert_eq!(here.after(&restored), Position { version: 2, history: "other".to_owned() });
    }
}
