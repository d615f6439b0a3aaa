//! Values of a config type in one workspace, for whoever runs there: read when they are needed, and kept within a bound that
//! everybody in the process shares. What workspaces hold in which nothing runs takes no memory here.
//!
//! # Guarantees
//! A value that was read is used until a notice says that its type may have changed in its workspace; from then on the
//! next question reads it again. What was read before a notice is never taken for newer than it. Where the config service
//! does not answer, the last value that is kept stays. What the bound puts out, the least recently used first, is read again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use sluice_bus::Replies;
use sluice_schema::message::{ConfigPush, ConfigRequest, ConfigResponse};
use tokio::sync::{Notify, OnceCell, Semaphore};
use tokio::time::Instant;

use crate::config::{ConfigClient, ConfigError};
use crate::tasks::lock;

/// What a process keeps of such values, with their names.
pub const KEPT_BYTES_MAX: usize = 32 << 20;
/// A type of a workspace up to this size is read in one go, a larger one value by value.
const SMALL_BYTES_MAX: i64 = 1 << 20;
/// What a value takes beside its texts.
const ROW_BYTES: usize = 256;
/// Reads under way in a process.
const READS_MAX: usize = 8;
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
        let look = || self.look(|scope| (scope.fresh(key), scope.reading.clone()));
        let (fresh, reading) = look();
        if let Some(value) = fresh {
            self.used(key);
            return Ok(value);
        }
        let _alone = reading.lock().await;
        if let (Some(value), _) = look() {
            return Ok(value);
        }
        let (known, failed) = self.look(|scope| (scope.known(key), scope.failed()));
        match (&known, failed) {
            (Some(value), Some(_)) => return Ok(value.clone()),
            (None, Some(Some(error))) => return Err(error),
            _ => {}
        }
        let read = match &known {
            Some(_) => tokio::time::timeout(KNOWN_TIMEOUT, self.read(key)).await.ok(),
            None => Some(self.read(key).await),
        };
        let error = match read {
            Some(Ok(value)) => return Ok(value),
            Some(Err(error)) => Some(error),
            None => None,
        };
        // What is wrong with one value says nothing of the others.
        if !matches!(error, Some(ConfigError::Refused { .. })) {
            self.look(|scope| scope.failed = Some((Instant::now(), error.clone())));
        }
        match (known, error) {
            (None, Some(error)) => Err(error),
            (known, _) => Ok(known.flatten()),
        }
    }

    /// Whether there is no value of the type in the workspace.
    ///
    /// # Errors
    /// As [`ConfigClient::call`].
    pub async fn is_empty(&self) -> Result<bool, ConfigError> {
        let seen = self.look(|scope| {
            let has_one = scope.entries.values().any(|entry| entry.value.is_some());
            (has_one || scope.is_whole()).then_some(!has_one)
        });
        match seen {
            Some(seen) => Ok(seen),
            None => Ok(self.page(1).await?.values.is_empty()),
        }
    }

    /// Reads what is there, so that it is known before it is needed. What fails is read again when it is.
    pub(crate) async fn warm(&self) {
        let reading = self.look(|scope| scope.reading.clone());
        let _alone = reading.lock().await;
        if self.look(|scope| scope.is_whole() || !scope.entries.is_empty()) {
            return;
        }
        if let Err(error) = self.read_small().await {
            tracing::debug!(kind = &*self.held.kind, workspace = &*self.held.workspace, %error, "read when needed");
        }
    }

    async fn read(&self, key: &str) -> Result<Option<Arc<str>>, ConfigError> {
        if !self.look(|scope| scope.is_large) && self.read_small().await? {
            return Ok(self.look(|scope| scope.known(key)).flatten());
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
            Err(ConfigError::Refused { .. }) => {
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
        let request = ConfigRequest {
            operation: "getvalues".to_owned(),
            workspace: workspace.to_string(),
            r#type: kind.to_string(),
            bytes_max,
            ..Default::default()
        };
        client.call(&request).await
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

/// What a process keeps of values, and who is told of changes.
pub(crate) struct Keep {
    replies: Replies,
    client: OnceCell<ConfigClient>,
    reads: Semaphore,
    kept: Mutex<Kept>,
    listeners: Mutex<Vec<Weak<Heard>>>,
}

impl Keep {
    pub(crate) fn new(replies: Replies) -> Self {
        Self {
            replies,
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
                scopes.get_mut(&**workspace).into_iter().for_each(Scope::may_have_changed);
            }
        }
        for workspace in moved.clone() {
            let scopes = kept.scopes.values_mut().filter_map(|scopes| scopes.get_mut(&**workspace));
            scopes.for_each(Scope::may_have_changed);
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
#[derive(Default)]
struct Scope {
    holders: usize,
    /// How often it may have changed. What was read before the last time is old.
    told: u64,
    /// All values were read and are kept, as of then.
    whole: Option<u64>,
    /// It is more than is read in one go.
    is_large: bool,
    entries: HashMap<Arc<str>, Entry>,
    /// Who reads, reads alone.
    reading: Arc<tokio::sync::Mutex<()>>,
    failed: Option<(Instant, Option<ConfigError>)>,
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

    /// A failure so short ago that nobody asks again yet.
    fn failed(&self) -> Option<Option<ConfigError>> {
        let (at, error) = self.failed.as_ref()?;
        (at.elapsed() < FAILED_PAUSE).then(|| error.clone())
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
