//! What the loop remembers of a flow between looks, on its own clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sluice_bus::Seen;
use sluice_schema::{Class, Topic};
use sluice_sdk::Backoff;
use tokio::time::Instant;

use crate::act::Parked;
use crate::board::{Phase, QueueVerdict, Report};
use crate::memory::{Drain, Want, Wish};
use crate::plan::{self, DrainClock, QueueLeft, Sight};

/// Pauses between looks while something is waited for.
const POLL: Backoff = Backoff { min: Duration::from_millis(2), max: Duration::from_millis(500) };
/// Pauses between tries of a failing step.
pub(crate) const RETRY: Backoff = Backoff { min: Duration::from_millis(50), max: Duration::from_secs(30) };
/// How long counts must stand still where the broker cannot show what is in hand.
const STEADY: Duration = Duration::from_secs(1);

/// What the loop remembers of a flow between looks; losing it loses nothing but time.
pub(crate) struct Tended {
    pub(crate) wish: Arc<Wish>,
    pub(crate) is_settled: bool,
    /// Nobody waits for it: it is looked at because it was time to.
    pub(crate) is_routine: bool,
    pub(crate) due: Instant,
    /// Looks in a row that had to wait.
    polls: u32,
    pub(crate) failures: u32,
    pub(crate) last_error: Option<String>,
    drain: Option<Draining>,
    pub(crate) verdicts: BTreeMap<String, QueueVerdict>,
    pub(crate) told: Option<Phase>,
    /// It was running at some time since this service tends it.
    has_run: bool,
    /// Topics without queues that it has lost since: who followed them does so no more, and does not learn it.
    unfollowed: BTreeSet<Topic>,
    /// When followers were last told of one that was made again.
    reported: BTreeMap<Topic, Instant>,
    /// Topics of a running flow that are made whatever a look shows: not all that can be missing can be seen.
    doubted: BTreeSet<Topic>,
    /// Those of them that are being made.
    being_made: BTreeSet<Topic>,
}

/// Topics that publishers and readers found something of missing, until the loop takes notice.
#[derive(Default)]
pub(crate) struct Doubts(Mutex<BTreeSet<Topic>>);

/// A topic that is made again is reported no sooner after the last time.
const REPORTED_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Doubts that wait at most; of others the audit learns.
const DOUBTS_MAX: usize = 10_000;

impl Doubts {
    pub(crate) fn add(&self, topic: Topic) {
        let mut doubts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if doubts.len() < DOUBTS_MAX {
            doubts.insert(topic);
        }
    }

    pub(crate) fn take(&self) -> BTreeSet<Topic> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Something that keeps failing: logged when it begins and when its cause is another one, not each time.
#[derive(Default)]
pub(crate) struct Trouble(Option<String>);

impl Trouble {
    /// Whether a failure is news.
    pub(crate) fn is_news(&mut self, reason: &str) -> bool {
        let is_news = self.0.as_deref() != Some(reason);
        self.0 = Some(reason.to_owned());
        is_news
    }

    /// It works again; whether it did not before.
    pub(crate) fn end(&mut self) -> bool {
        self.0.take().is_some()
    }
}

/// A drain under way, on this loop's own clock.
struct Draining {
    since: Instant,
    counts: Vec<QueueLeft>,
    steady_since: Instant,
}

impl Tended {
    pub(crate) fn new(wish: Arc<Wish>, now: Instant) -> Self {
        Self {
            wish,
            is_settled: false,
            is_routine: false,
            due: now,
            polls: 0,
            failures: 0,
            last_error: None,
            drain: None,
            verdicts: BTreeMap::new(),
            told: None,
            has_run: false,
            unfollowed: BTreeSet::new(),
            reported: BTreeMap::new(),
            doubted: BTreeSet::new(),
            being_made: BTreeSet::new(),
        }
    }

    /// The same flow after another decision.
    pub(crate) fn decided_anew(&self, wish: Arc<Wish>, now: Instant) -> Self {
        Self { told: self.told, has_run: self.has_run, ..Self::new(wish, now) }
    }

    pub(crate) fn last_report(&self) -> Report {
        Report { queues: self.verdicts.values().cloned().collect(), ..Report::new(Phase::Gone, &self.wish) }
    }

    /// Remembers what of a flow that has run a look shows to be gone with its followers.
    pub(crate) fn miss(&mut self, seen: &Sight) {
        if self.has_run {
            let owned = self.wish.topology.topics.iter().map(|owned| &owned.topic);
            let followed = owned.filter(|topic| !topic.class().has_subscriptions());
            let gone = followed.filter(|topic| seen.get(*topic).is_some_and(|seen| !seen.exists));
            self.unfollowed.extend(gone.cloned());
        }
    }

    /// It runs; which topics were made again that somebody may have followed. One that was reported a moment ago is not again:
    /// where a broker shows late what is there, its own news would not end.
    pub(crate) fn settle(&mut self, now: Instant) -> BTreeSet<Topic> {
        self.has_run = true;
        let mut made_again = std::mem::take(&mut self.unfollowed);
        self.reported.retain(|_, at| now.duration_since(*at) < REPORTED_AGAIN_AFTER);
        made_again.retain(|topic| !self.reported.contains_key(topic));
        self.reported.extend(made_again.iter().map(|topic| (topic.clone(), now)));
        self.being_made.clear();
        // What was doubted meanwhile comes next.
        self.is_settled = self.doubted.is_empty();
        self.is_routine = false;
        (self.polls, self.failures, self.last_error) = (0, 0, None);
        made_again
    }

    /// Lets topics be made again; at once, unless what is tried for this flow keeps failing.
    pub(crate) fn doubt(&mut self, topics: impl IntoIterator<Item = Topic>, now: Instant) {
        let owned = || self.wish.topology.topics.iter().map(|owned| &owned.topic);
        let before = self.doubted.len();
        if topics.into_iter().any(|topic| owned().any(|own| *own == topic)) {
            // Who removed one may have removed others, which nobody misses as soon.
            self.doubted.extend(owned().cloned());
        }
        if self.doubted.len() > before && self.is_settled {
            (self.is_settled, self.is_routine, self.due) = (false, true, now);
        }
    }

    /// What a plan for a running flow may rely on: doubted topics are made, as if they had not been seen.
    pub(crate) fn believed(&mut self, seen: &Sight) -> Sight {
        self.being_made.append(&mut self.doubted);
        let own = self.wish.topology.topics.iter().map(|owned| &owned.topic);
        let believed = own.filter(|topic| !self.being_made.contains(*topic));
        believed.filter_map(|topic| Some((topic.clone(), seen.get(topic)?.clone()))).collect()
    }

    pub(crate) fn progress(&mut self, now: Instant) {
        self.due = now;
        (self.polls, self.failures) = (0, 0);
    }

    pub(crate) fn wait(&mut self, now: Instant) {
        self.failures = 0;
        self.due = now + POLL.pause(self.polls);
        self.polls += 1;
    }

    /// Backs off; how long, in milliseconds.
    pub(crate) fn fail(&mut self, now: Instant, reason: &str) -> u64 {
        let is_same = self.last_error.as_deref() == Some(reason);
        self.failures = if is_same { self.failures + 1 } else { 1 };
        self.last_error = Some(reason.to_owned());
        self.doubted.append(&mut self.being_made);
        let pause = RETRY.pause(self.failures - 1);
        self.due = now + pause;
        u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn park(&mut self, parked: Parked) {
        for (queue, messages) in parked {
            let verdict = QueueVerdict { queue: queue.clone(), verdict: "parked", messages: 0 };
            let verdict = self.verdicts.entry(queue).or_insert(verdict);
            if verdict.verdict != "parked" {
                (verdict.verdict, verdict.messages) = ("parked", 0);
            }
            verdict.messages += messages;
        }
    }

    pub(crate) fn clock(&mut self, wish: &Wish, seen: &Sight, now: Instant) -> DrainClock {
        if wish.want == Want::Running {
            return DrainClock::default();
        }
        let counts = counts(wish, seen);
        let draining =
            self.drain.get_or_insert_with(|| Draining { since: now, counts: Vec::new(), steady_since: now });
        if draining.counts != counts {
            (draining.counts, draining.steady_since) = (counts, now);
        }
        let is_over = match wish.drain {
            Drain::Discard => true,
            Drain::WithinMs(ms) => now.duration_since(draining.since) >= Duration::from_millis(ms),
        };
        DrainClock {
            is_over,
            is_steady: now.duration_since(draining.steady_since) >= STEADY,
            is_listed: false,
        }
    }
}

fn flow_queues<'a>(
    wish: &'a Wish,
    seen: &'a Sight,
) -> impl Iterator<Item = (&'a Seen, &'a sluice_bus::SeenSubscription)> {
    let topics = wish.topology.topics.iter().filter(|topic| topic.topic.class() == Class::Flow);
    topics
        .filter_map(|topic| seen.get(&topic.topic))
        .flat_map(|seen| seen.subscriptions.iter().filter(|s| s.exists).map(move |s| (seen, s)))
}

fn counts(wish: &Wish, seen: &Sight) -> Vec<QueueLeft> {
    flow_queues(wish, seen).map(|(seen, s)| plan::left(&seen.topic, s)).collect()
}

/// What became of each queue, as seen when its processors are told to leave.
pub(crate) fn verdicts(wish: &Wish, seen: &Sight) -> Vec<QueueVerdict> {
    let verdict = |left: QueueLeft| {
        let messages = left.ready + left.unsettled.unwrap_or(0);
        let verdict = match left.unsettled {
            _ if messages > 0 && wish.drain == Drain::Discard => "discarded",
            _ if messages > 0 => "parked",
            None => "unverified",
            Some(_) => "drained",
        };
        QueueVerdict { queue: left.queue, verdict, messages: if verdict == "parked" { 0 } else { messages } }
    };
    counts(wish, seen).into_iter().map(verdict).collect()
}
