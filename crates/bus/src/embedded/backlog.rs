//! Bytes of `flow` messages that wait, and whose they are by the names of their topics. Each message counts when it comes and
//! when it is settled; nothing is looked through for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use sluice_schema::{Topic, doors};

use crate::contract::Excess;

/// Where all together have this many times the mark, nobody's new work is let in.
const WHOLE_MARKS: u64 = 4;
/// Of the mark, one workspace leaves this part to others: a quarter.
const RESERVE_PART: u64 = 4;
/// Workspaces that may be known before those are forgotten that have no topics.
const IDLE_MAX: usize = 64;

/// What waits in all topics together.
pub(super) struct Backlog {
    /// See [`super::Config::high_water_bytes`].
    mark_bytes: u64,
    bytes: AtomicU64,
    /// Workspaces of which something waits.
    holding: AtomicUsize,
    workspaces: Mutex<Workspaces>,
}

#[derive(Default)]
struct Workspaces {
    by_id: HashMap<Box<str>, Arc<Workspace>>,
    known_max: usize,
}

#[derive(Default)]
struct Workspace {
    bytes: AtomicU64,
    /// Its topics, for words about it.
    topics: Mutex<Vec<Weak<Waiting>>>,
}

/// What waits in one topic.
pub(super) struct Waiting {
    backlog: Arc<Backlog>,
    workspace: Option<Arc<Workspace>>,
    topic: Topic,
    bytes: AtomicU64,
}

/// A message's part; given back when dropped.
pub(super) struct Part {
    of: Arc<Waiting>,
    bytes: u64,
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Part").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backlog {
    pub(super) fn new(mark_bytes: u64) -> Arc<Self> {
        let (bytes, holding) = Default::default();
        Arc::new(Self { mark_bytes, bytes, holding, workspaces: Mutex::default() })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The count of a topic.
    pub(super) fn of(self: &Arc<Self>, topic: &Topic) -> Arc<Waiting> {
        let workspace = doors::whose(topic).map(|(id, _)| self.workspace(id.as_str()));
        let (backlog, topic, bytes) = (self.clone(), topic.clone(), AtomicU64::new(0));
        let waiting = Arc::new(Waiting { backlog, workspace, topic, bytes });
        if let Some(workspace) = &waiting.workspace {
            let mut topics = lock(&workspace.topics);
            topics.retain(|topic| topic.strong_count() > 0);
            topics.push(Arc::downgrade(&waiting));
        }
        waiting
    }

    fn workspace(&self, id: &str) -> Arc<Workspace> {
        let mut known = lock(&self.workspaces);
        if let Some(workspace) = known.by_id.get(id) {
            return workspace.clone();
        }
        if known.by_id.len() >= known.known_max {
            // One that has a topic is counted through it. Clones are made under this lock.
            known.by_id.retain(|_, workspace| Arc::strong_count(workspace) > 1);
            known.known_max = IDLE_MAX.max(2 * known.by_id.len());
        }
        known.by_id.entry(id.into()).or_default().clone()
    }

    /// Why new work of a workspace should not be let in.
    pub(super) fn excess(&self, id: &str) -> Option<Excess> {
        let all_bytes = self.bytes();
        // All of it may be nobody's.
        let marks = if self.holding.load(Ordering::Relaxed) == 0 { 1 } else { WHOLE_MARKS };
        if all_bytes >= self.mark_bytes.saturating_mul(marks) {
            return Some(Excess::Whole);
        }
        let workspace = lock(&self.workspaces).by_id.get(id).cloned()?;
        self.excess_of(&workspace, all_bytes)
    }

    fn excess_of(&self, workspace: &Workspace, all_bytes: u64) -> Option<Excess> {
        let bytes = workspace.bytes.load(Ordering::Relaxed);
        let holders = self.holding.load(Ordering::Relaxed).max(1) as u64;
        let alone_bytes = self.mark_bytes - self.mark_bytes / RESERVE_PART;
        let share_bytes = match all_bytes < self.mark_bytes {
            true => alone_bytes,
            false => alone_bytes.min(self.mark_bytes / holders),
        };
        if bytes == 0 || bytes < share_bytes {
            return None;
        }
        Some(Excess::Own { bytes, share_bytes, flow: workspace.fullest().and_then(|(_, flow)| flow) })
    }

    /// Every workspace that has more than its share, with a topic of its fullest flow.
    pub(super) fn over(&self) -> Vec<(String, Topic, Excess)> {
        let all_bytes = self.bytes();
        let known: Vec<_> =
            lock(&self.workspaces).by_id.iter().map(|(id, known)| (id.to_string(), known.clone())).collect();
        let over = known.into_iter().filter_map(|(id, workspace)| {
            let excess = self.excess_of(&workspace, all_bytes)?;
            workspace.fullest().map(|(topic, _)| (id, topic, excess))
        });
        let mut over: Vec<_> = over.collect();
        over.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        over
    }
}

impl Workspace {
    /// The flow of which most waits, by the name in its topics, with the topic of which most waits there.
    fn fullest(&self) -> Option<(Topic, Option<String>)> {
        let topics: Vec<_> = lock(&self.topics).iter().filter_map(Weak::upgrade).collect();
        let name = |topic: &Topic| doors::whose(topic).and_then(|(_, name)| name.map(ToOwned::to_owned));
        let mut flows: HashMap<Option<String>, (u64, Arc<Waiting>)> = HashMap::new();
        for topic in topics {
            let bytes = topic.bytes();
            flows
                .entry(name(&topic.topic))
                .and_modify(|(sum, fullest)| {
                    *sum += bytes;
                    if bytes > fullest.bytes() {
                        *fullest = topic.clone();
                    }
                })
                .or_insert((bytes, topic));
        }
        let (flow, (_, fullest)) = flows.into_iter().max_by_key(|(_, (sum, _))| *sum)?;
        Some((fullest.topic.clone(), flow))
    }
}

impl Waiting {
    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Counts so many bytes until the part is dropped.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Part {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.backlog.bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(workspace) = &self.workspace
            && workspace.bytes.fetch_add(bytes, Ordering::Relaxed) == 0
            && bytes > 0
        {
            self.backlog.holding.fetch_add(1, Ordering::Relaxed);
        }
        Part { of: self.clone(), bytes }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let (of, bytes) = (&self.of, self.bytes);
        of.bytes.fetch_sub(bytes, Ordering::Relaxed);
        of.backlog.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(workspace) = &of.workspace
            && workspace.bytes.fetch_sub(bytes, Ordering::Relaxed) == bytes
            && bytes > 0
        {
            of.backlog.holding.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(backlog: &Arc<Backlog>, name: &str) -> Arc<Waiting> {
        backlog.of(&Topic::parse(&format!("flow:tg:{name}")).unwrap())
    }

    fn own(bytes: u64, share_bytes: u64, flow: &str) -> Option<Excess> {
        Some(Excess::Own { bytes, share_bytes, flow: Some(flow.to_owned()) })
    }

    #[test]
    fn a_workspace_alone_has_all_but_the_reserve_and_another_is_let_in_beside_it() {
        let backlog = Backlog::new(100);
        let (load, chunks) = (topic(&backlog, "load:acme:f1"), topic(&backlog, "chunks:acme:f2"));
        let small = load.take(30);
        let half = chunks.take(44);
        assert_eq!(backlog.excess("acme"), None);
        let one = load.take(1);
        assert_eq!(backlog.excess("acme"), own(75, 75, "f2"));
        assert_eq!(backlog.excess("other"), None);
        // What its stages make of it grows beyond the mark.
        let grown = chunks.take(300);
        assert_eq!(backlog.excess("acme"), own(375, 75, "f2"));
        assert_eq!((backlog.excess("other"), backlog.excess("new")), (None, None));
        let others = topic(&backlog, "load:other:f");
        let held = others.take(20);
        assert_eq!(backlog.excess("other"), None, "below its share");
        let more = others.take(4);
        assert_eq!(backlog.over().len(), 1);
        drop((grown, half, one, small));
        assert_eq!((backlog.excess("acme"), backlog.bytes()), (None, 24));
        drop((held, more));
        assert_eq!((backlog.bytes(), backlog.holding.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn above_the_mark_each_has_an_equal_share_and_far_above_it_nobody_comes_in() {
        let backlog = Backlog::new(100);
        let topics: Vec<_> = (0..4).map(|n| topic(&backlog, &format!("load:w{n}:f"))).collect();
        let parts: Vec<_> = topics.iter().zip([70, 20, 10, 26]).map(|(one, bytes)| one.take(bytes)).collect();
        let over: Vec<_> = backlog.over().into_iter().map(|(id, ..)| id).collect();
        assert_eq!(over, ["w0", "w3"], "a quarter of the mark is theirs");
        assert_eq!((backlog.excess("w1"), backlog.excess("w2")), (None, None));
        let last = topics[0].take(274);
        assert_eq!((backlog.excess("w1"), backlog.excess("new")), (Some(Excess::Whole), Some(Excess::Whole)));
        drop((parts, last));
        assert_eq!((backlog.bytes(), backlog.excess("w0")), (0, None));
    }

    #[test]
    fn workspaces_and_topics_that_are_gone_are_forgotten() {
        let backlog = Backlog::new(100);
        let kept = topic(&backlog, "load:acme:f");
        let part = kept.take(80);
        for n in 0..1_000 {
            drop(topic(&backlog, &format!("load:w{n}:f")));
            drop(topic(&backlog, &format!("load:acme:f{n}")));
        }
        assert!(lock(&backlog.workspaces).by_id.len() <= IDLE_MAX + 2);
        assert!(lock(&backlog.workspace("acme").topics).len() <= 2);
        assert_eq!(backlog.excess("acme"), own(80, 75, "f"));
        drop(part);
    }
}
