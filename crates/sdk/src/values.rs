//! Values of a config type in one workspace, for whoever runs there: read when they are needed, and kept within a bound that
//! everybody in the process shares. What workspaces hold in which nothing runs takes no memory here.
//!
//! # Guarantees
//! A value that was read is used until a notice says that its type may have changed in its workspace; from then on the
//! next question reads it again. What was read before a notice is never taken for newer than it. Where the config service
//! does not answer, the last value that is kept stays: who asks first waits a moment for a newer one, whoever asks after that
//! has it at once, and it is looked beside them whether the service is back. A value that is not kept is waited for as long as
//! for one call, however many others are read. What the bound puts out, the least recently used first, is read again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use sluice_bus::{Error as BusError, Replies};
use sluice_schema::message::{ConfigPush, ConfigResponse};
use tokio::sync::{Notify, OnceCell, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::{CALL_TIMEOUT, ConfigClient, ConfigError};
use crate::tasks::lock;
use crate::{Process, Tasks};

/// What a process keeps of such values, with their names.
pub const KEPT_BYTES_MAX: usize = 32 << 20;
/// A type of a workspace up to this size is read in one go, a larger one value by value.
const SMALL_BYTES_MAX: i64 = 1 << 20;
/// What a value takes beside its texts.
const ROW_BYTES: usize = 256;
/// Reads under way in a process, and of those of one type in one workspace.
const READS_MAX: usize = 8;
const SCOPE_READS_MAX: usize = 2;
/// How long a newer value is waited for where an older one is known.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long nobody asks again for a type of a workspace after a read of it failed.
const FAILED_PAUSE: Duration = Duration::from_secs(1);

/// The values of a type in one workspace. Kept for as long as somebody holds this. Cheap to clone.
#[derive(Clone)]
pub struct Values {
    held: Arc<Held>,
}

struct Held {
    keep: Arc<Keep>,
    kind: Arc<str>,
    workspace: Arc<str>,
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.keep.kept).leave(&self.kind, &self.workspace);
    }
}

impl Values {
    pub(crate) fn new(keep: &Arc<Keep>, kind: &str, workspace: &str) -> Self {
        let (kind, workspace): (Arc<str>, Arc<str>) = (kind.into(), workspace.into());
        lock(&keep.kept).enter(&kind, &workspace);
        Self { held: Arc::new(Held { keep: keep.clone(), kind, workspace }) }
    }

    /// One value, as new as the last notice that was heard.
    ///
    /// # Errors
    /// As [`ConfigClient::call`], where the value is not known from before.
    pub async fn get(&self, key: &str) -> Result<Option<Arc<str>>, ConfigError> {
        if let Some(value) = self.look(|scope| scope.fresh(key)) {
            self.used(key);
            return Ok(value);
        }
        let (known, is_away) = self.look(|scope| (scope.known(key), scope.failed.is_some()));
        let Some(known) = known else { return self.read_or_tell(key).await };
        self.used(key);
        if is_away {
            self.ask_again(key);
            return Ok(known);
        }
        let read = tokio::time::timeout(KNOWN_TIMEOUT, self.read_or_tell(key)).await;
        if read.is_err() {
            self.look(|scope| scope.failed = Some((Instant::now(), None)));
        }
        Ok(read.ok().and_then(Result::ok).unwrap_or(known))
    }

    /// Reads a value beside whoever asks, who has an older one, unless that is done already or was a moment ago.
    fn ask_again(&self, key: &str) {
        let is_due = |scope: &mut Scope| {
            !scope.has_just_failed() && !std::mem::replace(&mut scope.is_asked_again, true)
        };
        if !self.look(is_due) {
            return;
        }
        let asking = Asking(self.clone());
        let (key, stop) = (key.to_owned(), self.held.keep.stop.clone());
        self.held.keep.tasks.spawn("config/values", async move {
            stop.run_until_cancelled(asking.0.read_or_tell(&key)).await;
        });
    }

    /// Whether there is no value of the type in the workspace.
    ///
    /// # Errors
    /// As [`ConfigClient::call`].
    pub async fn is_empty(&self) -> Result<bool, ConfigError> {
        let seen = self.look(|scope| {
            // Where nobody can be asked, what was known last counts.
            let counts = |told: u64| told == scope.told || scope.failed.is_some();
            let has_one = scope.entries.values().any(|entry| counts(entry.told) && entry.value.is_some());
            (has_one || scope.whole.is_some_and(counts)).then_some(!has_one)
        });
        match seen {
            Some(seen) => Ok(seen),
            None => Ok(within(CALL_TIMEOUT, self.page(1)).await?.values.is_empty()),
        }
    }

    /// Reads what is there, so that it is known before it is needed. What fails is read again when it is.
    pub(crate) async fn warm(&self) {
        let warm = async {
            let reading = self.look(|scope| scope.reading.clone());
            let _alone = reading.lock().await;
            if self.look(|scope| scope.is_whole() || !scope.entries.is_empty()) {
                return Ok(false);
            }
            self.read_small().await
        };
        if let Err(error) = within(CALL_TIMEOUT, warm).await {
            tracing::debug!(kind = &*self.held.kind, workspace = &*self.held.workspace, %error, "read when needed");
        }
    }

    /// Reads a value; where nobody can be asked, others learn of it.
    async fn read_or_tell(&self, key: &str) -> Result<Option<Arc<str>>, ConfigError> {
        let read = within(CALL_TIMEOUT, self.read(key)).await;
        // What is wrong with one value says nothing of the others.
        if let Some(error) = read.as_ref().err().filter(|error| error.is_unasked()) {
            self.look(|scope| {
                // Who was only told of an earlier failure has not asked.
                if !scope.has_just_failed() {
                    scope.failed = Some((Instant::now(), Some(error.clone())));
                }
            });
        }
        read
    }

    /// Reads a value: with all others where they are little, else by itself, beside others. Whoever waited for somebody else's
    /// read has what came of it.
    async fn read(&self, key: &str) -> Result<Option<Arc<str>>, ConfigError> {
        let done = || {
            self.look(|scope| match scope.fresh(key) {
                Some(value) => Some(Ok(value)),
                None => scope.just_failed().map(Err),
            })
        };
        if !self.look(|scope| scope.is_large) {
            let reading = self.look(|scope| scope.reading.clone());
            let _alone = reading.lock().await;
            if let Some(done) = done() {
                return done;
            }
            if !self.look(|scope| scope.is_large)
                && self.read_small().await?
                && let Some(value) = self.look(|scope| scope.known(key))
            {
                return Ok(value);
            }
        }
        let turns = self.look(|scope| scope.turns.clone());
        let _turn = turns.acquire().await;
        if let Some(done) = done() {
            return done;
        }
        let Held { keep, kind, workspace } = &*self.held;
        let told = self.look(|scope| scope.told);
        let client = keep.client().await?;
        let _permit = keep.reads.acquire().await;
        let value = client.get(workspace, kind, key).await?.and_then(|found| found.value).map(Arc::from);
        lock(&keep.kept).put(kind, workspace, key.into(), value.clone(), told);
        Ok(value)
    }

    /// Reads all of the type, if that is little; whether it is.
    async fn read_small(&self) -> Result<bool, ConfigError> {
        let told = self.look(|scope| scope.told);
        let answer = match self.page(SMALL_BYTES_MAX).await {
            Ok(answer) => answer,
            // One of the values may be damaged; the others can be read one by one.
            Err(error @ ConfigError::Refused { .. }) if !error.is_unasked() => {
                ConfigResponse { cursor: "more".to_owned(), ..Default::default() }
            }
            Err(error) => return Err(error),
        };
        let Held { keep, kind, workspace } = &*self.held;
        let mut kept = lock(&keep.kept);
        let is_small = answer.cursor.is_empty();
        if is_small {
            kept.forget(kind, workspace);
        }
        if let Some(scope) = kept.scope(kind, workspace) {
            (scope.is_large, scope.whole) = (!is_small, is_small.then_some(told));
            scope.failed = None;
        }
        for found in answer.values {
            kept.put(kind, workspace, found.key.into(), found.value.map(Arc::from), told);
        }
        // Where the bound put out some of it at once, it is as if it were large.
        Ok(kept.scope(kind, workspace).is_some_and(|scope| scope.whole.is_some()))
    }

    async fn page(&self, bytes_max: i64) -> Result<ConfigResponse, ConfigError> {
        let Held { keep, kind, workspace } = &*self.held;
        let client = keep.client().await?;
        let _permit = keep.reads.acquire().await;
        client.getvalues_page(workspace, kind, bytes_max).await
    }

    /// Looks at what is kept of this type and workspace: it is there for as long as it is held.
    fn look<T>(&self, look: impl FnOnce(&mut Scope) -> T) -> T {
        let Held { keep, kind, workspace } = &*self.held;
        let mut kept = lock(&keep.kept);
        look(kept.scopes.entry(kind.clone()).or_default().entry(workspace.clone()).or_default())
    }

    fn used(&self, key: &str) {
        let Held { keep, kind, workspace } = &*self.held;
        lock(&keep.kept).used(kind, workspace, key);
    }
}

/// Somebody looks whether the service is back.
struct Asking(Values);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.look(|scope| scope.is_asked_again = false);
    }
}

/// What comes in time, waiting for one's turn included.
async fn within<T>(
    limit: Duration,
    read: impl Future<Output = Result<T, ConfigError>>,
) -> Result<T, ConfigError> {
    tokio::time::timeout(limit, read).await.unwrap_or_else(|_| {
        let after_ms = limit.as_millis().try_into().unwrap_or(u64::MAX);
        Err(BusError::TimedOut { what: "config".to_owned(), after_ms }.into())
    })
}

/// What a process keeps of values, and who is told of changes.
pub(crate) struct Keep {
    replies: Replies,
    tasks: Tasks,
    stop: CancellationToken,
    client: OnceCell<ConfigClient>,
    reads: Semaphore,
    kept: Mutex<Kept>,
    listeners: Mutex<Vec<Weak<Heard>>>,
}

impl Keep {
    pub(crate) fn new(process: &Process) -> Self {
        Self {
            replies: process.replies.clone(),
            tasks: process.tasks.clone(),
            stop: process.stop.clone(),
            client: OnceCell::new(),
            reads: Semaphore::new(READS_MAX),
            kept: Mutex::new(Kept { bytes_max: KEPT_BYTES_MAX, ..Kept::default() }),
            listeners: Mutex::default(),
        }
    }

    async fn client(&self) -> Result<&ConfigClient, ConfigError> {
        Ok(self.client.get_or_try_init(|| ConfigClient::new(&self.replies)).await?)
    }

    /// A notice says what may have changed.
    pub(crate) fn told(&self, push: &ConfigPush) {
        let moved =
            push.workspace_changes.iter().flat_map(|moved| moved.created.iter().chain(&moved.deleted));
        let mut kept = lock(&self.kept);
        if push.changes.is_empty() && push.workspace_changes.is_none() {
            drop(kept);
            return self.missed();
        }
        for (kind, workspaces) in &push.changes {
            let Some(scopes) = kept.scopes.get_mut(&**kind) else { continue };
            for workspace in workspaces {
                scopes.get_mut(&**workspace).into_iter().for_each(Scope::has_changed);
            }
        }
        for workspace in moved.clone() {
            let scopes = kept.scopes.values_mut().filter_map(|scopes| scopes.get_mut(&**workspace));
            scopes.for_each(Scope::has_changed);
        }
        drop(kept);
        self.tell(|heard| {
            let changed = push.changes.iter().filter(|(kind, _)| heard.types.contains(*kind));
            let changed: Vec<&String> =
                changed.flat_map(|(_, workspaces)| workspaces).chain(moved.clone()).collect();
            if !changed.is_empty() {
                lock(&heard.changed).workspaces.extend(changed.into_iter().cloned());
                heard.poke.notify_one();
            }
        });
    }

    /// Notices may have been missed.
    pub(crate) fn missed(&self) {
        self.doubt();
        self.tell(|heard| {
            lock(&heard.changed).all = true;
            heard.poke.notify_one();
        });
    }

    /// Whatever is kept is read again before it is used.
    pub(crate) fn doubt(&self) {
        let mut kept = lock(&self.kept);
        kept.scopes.values_mut().flat_map(BTreeMap::values_mut).for_each(Scope::may_have_changed);
    }

    fn tell(&self, tell: impl Fn(&Heard)) {
        lock(&self.listeners).retain(|listener| listener.upgrade().map(|heard| tell(&heard)).is_some());
    }

    pub(crate) fn changes(&self, types: &[&str]) -> Changes {
        let types = types.iter().map(|&kind| kind.to_owned()).collect();
        let heard = Arc::new(Heard { types, changed: Mutex::default(), poke: Notify::new() });
        lock(&self.listeners).push(Arc::downgrade(&heard));
        Changes { heard }
    }

    pub(crate) fn kept_bytes(&self) -> usize {
        lock(&self.kept).bytes
    }
}

/// In which workspaces some types may have changed, for those who read them themselves.
pub struct Changes {
    heard: Arc<Heard>,
}

struct Heard {
    types: BTreeSet<String>,
    changed: Mutex<Changed>,
    poke: Notify,
}

/// What may have changed since somebody asked last.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changed {
    /// Notices may have been missed: anything, anywhere.
    pub all: bool,
    /// The workspaces that notices named.
    pub workspaces: BTreeSet<String>,
}

impl Changes {
    /// What notices say from now on, or said since the last call.
    pub async fn next(&self) -> Changed {
        loop {
            self.heard.poke.notified().await;
            let changed = std::mem::take(&mut *lock(&self.heard.changed));
            if changed != Changed::default() {
                return changed;
            }
        }
    }
}

/// All that is kept, by type and workspace.
#[derive(Default)]
struct Kept {
    scopes: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Scope>>,
    /// Values in the order of their last use.
    order: BTreeMap<u64, [Arc<str>; 3]>,
    uses: u64,
    bytes: usize,
    bytes_max: usize,
}

/// What is kept of a type in a workspace.
struct Scope {
    holders: usize,
    /// How often it may have changed. What was read before the last time is old.
    told: u64,
    /// All values were read and are kept, as of then.
    whole: Option<u64>,
    /// It is more than is read in one go.
    is_large: bool,
    entries: HashMap<Arc<str>, Entry>,
    /// Who reads all of it, reads alone.
    reading: Arc<tokio::sync::Mutex<()>>,
    /// For those who read one value.
    turns: Arc<Semaphore>,
    /// Nobody could be asked, then, with what was told if anything was; until something is read again.
    failed: Option<(Instant, Option<ConfigError>)>,
    is_asked_again: bool,
}

impl Default for Scope {
    fn default() -> Self {
        let (holders, told, whole, is_large, entries, reading, failed, is_asked_again) = Default::default();
        let turns = Arc::new(Semaphore::new(SCOPE_READS_MAX));
        Self { holders, told, whole, is_large, entries, reading, turns, failed, is_asked_again }
    }
}

struct Entry {
    value: Option<Arc<str>>,
    told: u64,
    used: u64,
    bytes: usize,
}

impl Scope {
    fn may_have_changed(&mut self) {
        self.told += 1;
    }

    /// The service said so, which is there then.
    fn has_changed(&mut self) {
        self.may_have_changed();
        self.failed = None;
    }

    fn is_whole(&self) -> bool {
        self.whole == Some(self.told)
    }

    /// The value, if it is as new as the last notice.
    fn fresh(&self, key: &str) -> Option<Option<Arc<str>>> {
        match self.entries.get(key) {
            Some(entry) => (entry.told == self.told).then(|| entry.value.clone()),
            None => self.is_whole().then_some(None),
        }
    }

    /// The value as it was known last.
    fn known(&self, key: &str) -> Option<Option<Arc<str>>> {
        let absent = self.whole.map(|_| None);
        self.entries.get(key).map(|entry| entry.value.clone()).or(absent)
    }

    /// Whether a read failed so short ago that nobody asks again yet.
    fn has_just_failed(&self) -> bool {
        self.failed.as_ref().is_some_and(|(at, _)| at.elapsed() < FAILED_PAUSE)
    }

    /// What such a read was told.
    fn just_failed(&self) -> Option<ConfigError> {
        self.failed.as_ref().filter(|_| self.has_just_failed()).and_then(|(_, error)| error.clone())
    }
}

impl Kept {
    fn scope(&mut self, kind: &str, workspace: &str) -> Option<&mut Scope> {
        self.scopes.get_mut(kind)?.get_mut(workspace)
    }

    fn enter(&mut self, kind: &Arc<str>, workspace: &Arc<str>) {
        let scopes = self.scopes.entry(kind.clone()).or_default();
        scopes.entry(workspace.clone()).or_default().holders += 1;
    }

    fn leave(&mut self, kind: &str, workspace: &str) {
        let Some(scope) = self.scope(kind, workspace) else { return };
        scope.holders -= 1;
        if scope.holders > 0 {
            return;
        }
        self.forget(kind, workspace);
        if let Some(scopes) = self.scopes.get_mut(kind) {
            scopes.remove(workspace);
            if scopes.is_empty() {
                self.scopes.remove(kind);
            }
        }
    }

    /// Forgets the values of a type in a workspace.
    fn forget(&mut self, kind: &str, workspace: &str) {
        let Some(scope) = self.scope(kind, workspace) else { return };
        scope.whole = None;
        for (_, entry) in std::mem::take(&mut scope.entries) {
            self.order.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }

    fn put(
        &mut self,
        kind: &Arc<str>,
        workspace: &Arc<str>,
        key: Arc<str>,
        value: Option<Arc<str>>,
        told: u64,
    ) {
        self.uses += 1;
        let used = self.uses;
        let bytes = ROW_BYTES + key.len() + value.as_deref().map_or(0, str::len);
        let Some(scope) = self.scope(kind, workspace) else { return };
        scope.failed = None;
        // Reads of one value beside each other may end in any order.
        if scope.entries.get(&key).is_some_and(|known| known.told > told) {
            return;
        }
        let old = scope.entries.insert(key.clone(), Entry { value, told, used, bytes });
        self.bytes += bytes;
        if let Some(old) = old {
            self.order.remove(&old.used);
            self.bytes -= old.bytes;
        }
        self.order.insert(used, [kind.clone(), workspace.clone(), key]);
        while self.bytes > self.bytes_max {
            let Some((_, [kind, workspace, key])) = self.order.pop_first() else { return };
            let Some(scope) = self.scope(&kind, &workspace) else { continue };
            scope.whole = None;
            let gone = scope.entries.remove(&key).map_or(0, |entry| entry.bytes);
            self.bytes -= gone;
        }
    }

    fn used(&mut self, kind: &str, workspace: &str, key: &str) {
        self.uses += 1;
        let used = self.uses;
        let Some(entry) = self.scope(kind, workspace).and_then(|scope| scope.entries.get_mut(key)) else {
            return;
        };
        let before = std::mem::replace(&mut entry.used, used);
        if let Some(place) = self.order.remove(&before) {
            self.order.insert(used, place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(bytes_max: usize, workspaces: &[Arc<str>]) -> (Kept, Arc<str>) {
        let kind: Arc<str> = "prompt".into();
        let mut kept = Kept { bytes_max, ..Kept::default() };
        workspaces.iter().for_each(|workspace| kept.enter(&kind, workspace));
        (kept, kind)
    }

    #[test]
    fn what_is_kept_of_values_stays_within_its_bound_and_the_least_recently_used_goes_first() {
        let workspaces: Vec<Arc<str>> = (0..100).map(|n| format!("w{n}").into()).collect();
        let (mut kept, kind) = kept(100_000, &workspaces);
        let text: Arc<str> = "x".repeat(9_000).into();
        for workspace in &workspaces {
            kept.put(&kind, workspace, "k".into(), Some(text.clone()), 0);
            kept.used(&kind, "w0", "k");
            assert!(kept.bytes <= 100_000, "{}", kept.bytes);
        }
        let there = |kept: &Kept, workspace: &str| kept.scopes[&*kind][workspace].fresh("k").is_some();
        assert!(there(&kept, "w0") && there(&kept, "w99") && !there(&kept, "w1"));
        assert_eq!(kept.order.len(), 10);
        for workspace in &workspaces {
            kept.leave(&kind, workspace);
        }
        assert!(
            kept.bytes == 0 && kept.order.is_empty() && kept.scopes.is_empty(),
            "it goes with who needs it"
        );
    }

    #[test]
    fn what_was_read_before_a_notice_is_old_and_stays_known() {
        let workspace: Arc<str> = "w".into();
        let (mut kept, kind) = kept(100_000, std::slice::from_ref(&workspace));
        let told = kept.scopes[&*kind]["w"].told;
        kept.scope(&kind, "w").unwrap().may_have_changed();
        kept.put(&kind, &workspace, "k".into(), Some("old".into()), told);
        let scope = &kept.scopes[&*kind]["w"];
        assert_eq!(scope.fresh("k"), None);
        assert_eq!(scope.known("k"), Some(Some("old".into())));
    }

    #[test]
    fn once_something_was_put_out_nobody_takes_it_for_absent() {
        let workspace: Arc<str> = "w".into();
        let (mut kept, kind) = kept(1_000, std::slice::from_ref(&workspace));
        kept.scope(&kind, "w").unwrap().whole = Some(0);
        assert_eq!(kept.scopes[&*kind]["w"].fresh("first"), Some(None), "all is known");
        for key in ["first", "second"] {
            kept.put(&kind, &workspace, key.into(), Some("x".repeat(600).into()), 0);
        }
        assert_eq!(kept.scopes[&*kind]["w"].fresh("first"), None);
        assert_eq!(kept.scopes[&*kind]["w"].known("first"), None);
    }
}
