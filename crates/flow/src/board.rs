//! Reports: what the loop last saw of each flow, for callers who wait and for people who ask. Derived, never an input.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use tokio::sync::watch;

use crate::memory::{FlowKey, Wish};
use crate::plan::{self, Leftover, QueueLeft};

/// Ended flows whose last report is kept.
const ENDED_MAX: usize = 1_024;

/// Where a flow is, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Phase {
    /// It is being made.
    Starting,
    /// It is there.
    Running,
    /// It runs, but something of it is missing and cannot be made good.
    Degraded,
    /// Its doors are closed; what is queued is being worked on.
    Draining,
    /// It is being removed.
    Stopping,
    /// It cannot be made or removed, for a cause that only the world can change.
    Failed,
    /// Somebody else's flow service made it.
    Unmanaged,
    /// It is gone.
    Gone,
}

impl Phase {
    /// The word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::Degraded => "Degraded",
            Self::Draining => "Draining",
            Self::Stopping => "Stopping",
            Self::Failed => "Failed",
            Self::Unmanaged => "Unmanaged",
            Self::Gone => "Gone",
        }
    }
}

/// What happened to a queue when its flow was stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct QueueVerdict {
    /// `topic / subscription`.
    pub queue: String,
    /// `drained`, `unverified` (the broker cannot show what is in hand), `parked` or `discarded`.
    pub verdict: &'static str,
    /// Messages that were in it.
    pub messages: u64,
}

/// What was last seen of a flow.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// Where it is.
    pub phase: Phase,
    /// Its run.
    pub run: String,
    /// The decision that this look followed.
    pub generation: i64,
    /// Queues that are still worked on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub draining: Vec<Left>,
    /// Queues whose leftovers are being moved to the dead letters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parking: Vec<Left>,
    /// Readers that hold on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held_by: Vec<String>,
    /// What became of its queues.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<QueueVerdict>,
    /// What the start warned of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Why the last step failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When the next try is due, counted from this report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_try_in_ms: Option<u64>,
    /// Waiting for the next try is no use to a caller.
    #[serde(skip)]
    pub(crate) is_final: bool,
}

impl Report {
    /// A report with nothing to tell but the phase.
    pub(crate) fn new(phase: Phase, wish: &Wish) -> Self {
        Self {
            phase,
            run: wish.run.clone(),
            generation: wish.generation,
            draining: Vec::new(),
            parking: Vec::new(),
            held_by: Vec::new(),
            queues: Vec::new(),
            warnings: wish.warnings.clone(),
            last_error: None,
            next_try_in_ms: None,
            is_final: false,
        }
    }
}

/// A queue and what is in it, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// `topic / subscription`.
    pub queue: String,
    /// Messages waiting.
    pub ready: u64,
    /// Messages in somebody's hands.
    pub unsettled: Option<u64>,
}

impl From<QueueLeft> for Left {
    fn from(left: QueueLeft) -> Self {
        Self { queue: left.queue, ready: left.ready, unsettled: left.unsettled }
    }
}

impl From<&Leftover> for Left {
    fn from(left: &Leftover) -> Self {
        let queue = plan::queue(&left.topic, &left.subscription);
        Self { queue, ready: left.messages, unsettled: None }
    }
}

/// The reports of one flow service.
pub(crate) struct Board {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    current: BTreeMap<FlowKey, Report>,
    ended: VecDeque<(FlowKey, String, Report)>,
    leads: bool,
}

impl Board {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), changed: watch::Sender::new(0) }
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(crate) fn set(&self, key: &FlowKey, report: Report) {
        self.with(|state| _ = state.current.insert(key.clone(), report));
    }

    /// This service acts from now on.
    pub(crate) fn lead(&self) {
        self.with(|state| state.leads = true);
    }

    /// Another service acts now: what this one saw is no news any more.
    pub(crate) fn forget(&self) {
        self.with(|state| {
            state.leads = false;
            state.current.clear();
        });
    }

    /// Nothing was seen yet, of whatever flow.
    pub(crate) fn clear(&self) {
        self.with(|state| {
            state.current.clear();
            state.ended.clear();
        });
    }

    /// Whether this service acts.
    pub(crate) fn leads(&self) -> bool {
        self.lock().leads
    }

    /// The flow is gone; `request` is what asked for it.
    pub(crate) fn end(&self, key: &FlowKey, request: &str, report: Report) {
        self.with(|state| {
            state.current.remove(key);
            if state.ended.len() == ENDED_MAX {
                state.ended.pop_front();
            }
            state.ended.push_back((key.clone(), request.to_owned(), report));
        });
    }

    /// The last report on a flow that is not gone.
    pub(crate) fn current(&self, key: &FlowKey) -> Option<Report> {
        self.lock().current.get(key).cloned()
    }

    /// The report on a run that ended at this decision or a later one. The number alone does not say which decision it is:
    /// config that was restored from an older copy gives numbers again.
    pub(crate) fn ended(&self, key: &FlowKey, wish: &Wish) -> Option<Report> {
        let state = self.lock();
        let is_it = |request: &str, report: &Report| {
            report.generation > wish.generation
                || (report.generation == wish.generation && request == wish.request)
        };
        let mut ended = state.ended.iter().rev();
        ended.find(|(k, request, report)| k == key && is_it(request, report)).map(|(_, _, r)| r.clone())
    }

    /// The report on a run that ended because of this very request.
    pub(crate) fn ended_by(&self, key: &FlowKey, request: &str) -> Option<Report> {
        let state = self.lock();
        state.ended.iter().rev().find(|(k, r, _)| k == key && r == request).map(|(_, _, r)| r.clone())
    }

    fn with(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.send_modify(|n| *n += 1);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
