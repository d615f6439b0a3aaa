//! The loop: look, plan, act, report. It is woken by a poke or the clock and told nothing but "look"; what it does follows
//! from what it sees, so a restart at any point goes on from there.
//!
//! Flows that are as wished are left alone until the next audit. A flow whose step fails waits alone, longer each time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use sluice_bus::{BoxFuture, Seen, TopicSpec};
use sluice_schema::{Class, Topic};
use sluice_sdk::{Backoff, ConfigError};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::act::{Error, Hands, Job, Parked};
use crate::blueprint::{OwnedTopic, Topology};
use crate::board::{Board, Phase, QueueVerdict, Report};
use crate::lease::Lease;
use crate::memory::{
    Drain, FlowKey, LEDGER, Named, ONLY, RUNS, Records, Want, Wish, own_key, own_value, unchanged,
};
use crate::mirror::Mirror;
use crate::plan::{self, DrainClock, Next, QueueLeft, Sight, Step};

/// Pauses between looks while something is waited for.
const POLL: Backoff = Backoff { min: Duration::from_millis(2), max: Duration::from_millis(500) };
/// Pauses between tries of a failing step.
const RETRY: Backoff = Backoff { min: Duration::from_millis(50), max: Duration::from_secs(30) };
/// How long counts must stand still where the broker cannot show what is in hand.
const STEADY: Duration = Duration::from_secs(1);
/// Failures of one cause after which an operator is told.
const FAILURES_TOLD: u32 = 5;
/// Audits in which nothing of an ended run may reappear before it is forgotten.
const CLEAN_AUDITS: u32 = 2;

/// Everything the loop works with.
pub(crate) struct Reconciler {
    pub(crate) hands: Hands,
    pub(crate) mirror: Arc<Mirror>,
    pub(crate) board: Arc<Board>,
    pub(crate) poke: Arc<Notify>,
    pub(crate) lease: Lease,
    pub(crate) audit_interval: Duration,
    flows: BTreeMap<FlowKey, Tended>,
    next_audit: Instant,
    swept: BTreeMap<FlowKey, u32>,
}

/// What the loop remembers of a flow between looks; losing it loses nothing but time.
struct Tended {
    wish: Arc<Wish>,
    is_settled: bool,
    due: Instant,
    /// Looks in a row that had to wait.
    polls: u32,
    failures: u32,
    last_error: Option<String>,
    drain: Option<Draining>,
    verdicts: BTreeMap<String, QueueVerdict>,
    told: Option<Phase>,
}

/// A drain under way, on this loop's own clock.
struct Draining {
    since: Instant,
    counts: Vec<QueueLeft>,
    steady_since: Instant,
}

/// Why nothing could be looked at.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error("config: {0}")]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Step(#[from] Error),
}

/// What a look came to for one flow.
enum Outcome {
    /// As wished.
    Settled,
    /// Something was done; there may be more.
    Again(Parked),
    /// Gone.
    Ended,
    Draining(Vec<QueueLeft>),
    Held(Vec<String>),
    Blocked(String),
    Failed(Error),
}

impl Reconciler {
    pub(crate) fn new(
        hands: Hands,
        mirror: Arc<Mirror>,
        board: Arc<Board>,
        poke: Arc<Notify>,
        lease: Lease,
        audit_interval: Duration,
    ) -> Self {
        let (flows, swept) = (BTreeMap::new(), BTreeMap::new());
        Self { hands, mirror, board, poke, lease, audit_interval, flows, next_audit: Instant::now(), swept }
    }

    /// Runs until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut failures = 0;
        let mut wake = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.poke.notified() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
            let Some(round) = stop.run_until_cancelled(self.turn()).await else { break };
            wake = match round {
                Ok(due) => {
                    failures = 0;
                    due.min(Instant::now() + self.lease.interval())
                }
                Err(error) => {
                    tracing::warn!(%error, "flows could not be looked at; trying again");
                    failures += 1;
                    Instant::now() + RETRY.pause(failures)
                }
            };
        }
        self.lease.release().await;
    }

    /// A round, where this service is the one to act. Boxed, so that the compiler need not see through it to `Send`.
    fn turn(&mut self) -> BoxFuture<'_, Result<Instant, RoundError>> {
        Box::pin(async move {
            if self.lease.tend().await {
                return self.round().await;
            }
            if !self.flows.is_empty() {
                self.flows.clear();
                self.board.forget();
            }
            Ok(Instant::now() + self.lease.interval())
        })
    }

    /// One look, plan, act, report over every flow that is due; when the next is due.
    async fn round(&mut self) -> Result<Instant, RoundError> {
        let records = self.mirror.refresh().await?;
        let now = Instant::now();
        let is_audit = now >= self.next_audit;
        self.notice(&records, now, is_audit);
        let due: Vec<(FlowKey, Arc<Wish>)> = records
            .wishes
            .iter()
            .filter(|(key, _)| self.flows.get(key).is_some_and(|f| !f.is_settled && f.due <= now))
            .filter_map(|(key, wish)| Some((key.clone(), wish.value.clone().ok()?)))
            .collect();
        let seen = self.look(due.iter().flat_map(|(_, wish)| &wish.topology.topics)).await?;
        let flows = &mut self.flows;
        let plans: Vec<_> = due
            .iter()
            .map(|(key, wish)| {
                let clock = flows.get_mut(key).map(|f| f.clock(wish, &seen, now)).unwrap_or_default();
                (key, wish, plan::plan(key, wish, &records, &seen, clock))
            })
            .collect();
        for (key, wish, next) in &plans {
            self.tell_parking(key, wish, next);
        }
        let hands = &self.hands;
        let acts = plans.into_iter().map(|(key, wish, next)| {
            let (job, seen) = (Job { key, wish, records: &records }, &seen);
            async move { (key, wish, act(hands, job, next, seen).await) }
        });
        for (key, wish, (verdicts, outcome)) in join_all(acts).await {
            self.report(Job { key, wish, records: &records }, verdicts, outcome).await;
        }
        if is_audit {
            self.sweep(&records).await?;
            self.next_audit = now + self.audit_interval;
        }
        let next = self.flows.values().filter(|f| !f.is_settled).map(|f| f.due).min();
        Ok(next.map_or(self.next_audit, |due| due.min(self.next_audit)))
    }

    /// Takes notice of new decisions, and of flows that are gone or cannot be read.
    fn notice(&mut self, records: &Records, now: Instant, is_audit: bool) {
        let board = &self.board;
        self.flows.retain(|key, tended| {
            let now = records.wishes.get(key).map(|r| r.value.as_deref().map(|wish| wish.run.as_str()));
            let is_over = now.is_none_or(|now| now.is_ok_and(|run| run != tended.wish.run));
            if is_over {
                // The answer to the last write was lost, or somebody else made it.
                board.end(key, &tended.wish.request, tended.last_report());
            }
            !is_over
        });
        if is_audit && let Some(Err(reason)) = records.ledger.as_ref().map(|recorded| &recorded.value) {
            tracing::error!(
                reason,
                "the number of the last decision cannot be read; nothing is started, stopped or removed. Repair or delete config value '{LEDGER}/{ONLY}'"
            );
        }
        for (key, recorded) in &records.wishes {
            let Ok(wish) = &recorded.value else {
                if is_audit {
                    tracing::error!(flow = %key, "the wish of this flow cannot be read; nothing is done about it, and no topic of its workspace is removed. Repair or delete config value 'flow-wish/{key}'");
                }
                continue;
            };
            let tended = self.flows.entry(key.clone()).or_insert_with(|| Tended::new(wish.clone(), now));
            if tended.wish.generation != wish.generation {
                *tended = Tended { told: tended.told, ..Tended::new(wish.clone(), now) };
            }
            if is_audit || plan::wanted(key, wish, records) == Want::Gone {
                tended.is_settled = false;
            }
        }
    }

    async fn look<'a>(&self, topics: impl Iterator<Item = &'a OwnedTopic>) -> Result<Sight, Error> {
        let mut asked: BTreeMap<&Topic, BTreeSet<&String>> = BTreeMap::new();
        for topic in topics {
            asked.entry(&topic.topic).or_default().extend(&topic.subscriptions);
        }
        if asked.is_empty() {
            return Ok(Sight::new());
        }
        let specs: Vec<_> = asked
            .into_iter()
            .map(|(topic, names)| TopicSpec {
                topic: topic.clone(),
                subscriptions: names.into_iter().cloned().collect(),
            })
            .collect();
        let seen = self.hands.observe(&specs).await?;
        Ok(seen.into_iter().map(|seen| (seen.topic.clone(), seen)).collect())
    }

    /// Moving leftovers may take long; what is being done is told before it is done.
    fn tell_parking(&self, key: &FlowKey, wish: &Wish, next: &Next) {
        let Next::Do(steps) = next else { return };
        let parking =
            steps.iter().filter_map(|step| if let Step::Park(full) = step { Some(full) } else { None });
        let parking: Vec<_> = parking.flatten().map(Into::into).collect();
        if !parking.is_empty() {
            let failing = self.flows.get(key).filter(|tended| tended.failures > 0);
            let last_error = failing.and_then(|tended| tended.last_error.clone());
            let report = Report { parking, last_error, ..Report::new(Phase::Stopping, wish) };
            self.board.set(key, report);
        }
    }

    async fn report(&mut self, job: Job<'_>, verdicts: Vec<QueueVerdict>, outcome: Outcome) {
        let (key, wish) = (job.key, job.wish);
        let Some(tended) = self.flows.get_mut(key) else { return };
        let now = Instant::now();
        tended.verdicts.extend(verdicts.into_iter().map(|v| (v.queue.clone(), v)));
        let is_up = plan::wanted(key, wish, job.records) == Want::Running;
        let on_the_way = if is_up { Phase::Starting } else { Phase::Stopping };
        let mut report = Report::new(on_the_way, wish);
        match outcome {
            Outcome::Settled => {
                tended.settle();
                report.phase = Phase::Running;
            }
            Outcome::Again(parked) => {
                if !parked.is_empty() {
                    // There may be more.
                    report.parking = self.board.current(key).map(|told| told.parking).unwrap_or_default();
                }
                tended.park(parked);
                tended.progress(now);
            }
            Outcome::Ended => {
                tracing::info!(flow = %key, run = wish.run, "a flow is gone");
                let report = tended.last_report();
                self.flows.remove(key);
                self.board.end(key, &wish.request, report);
                return;
            }
            Outcome::Draining(left) => {
                tended.wait(now);
                report.phase = Phase::Draining;
                report.draining = left.into_iter().map(Into::into).collect();
            }
            Outcome::Held(holders) => {
                tended.wait(now);
                report.held_by = holders;
            }
            Outcome::Blocked(reason) => {
                let pause = tended.fail(now, &reason);
                report.next_try_in_ms = Some(pause);
                report.last_error = Some(reason);
                report.phase = Phase::Failed;
            }
            Outcome::Failed(error) if error.is_conflict() => tended.progress(now),
            Outcome::Failed(error) => {
                let text = error.to_string();
                report.next_try_in_ms = Some(tended.fail(now, &text));
                report.last_error = Some(text);
                report.is_final = error.is_final();
                let was_running = matches!(tended.told, Some(Phase::Running | Phase::Degraded));
                if is_up && was_running {
                    report.phase = Phase::Degraded;
                } else if report.is_final || tended.failures >= FAILURES_TOLD {
                    report.phase = Phase::Failed;
                }
            }
        }
        if tended.failures == FAILURES_TOLD {
            let reason = report.last_error.as_deref().unwrap_or_default();
            tracing::error!(flow = %key, reason, "a flow keeps failing; it is tried again, but somebody should look");
        }
        let phase = report.phase;
        let is_news = tended.told != Some(phase);
        tended.told = Some(phase);
        // Others learn what they cannot see in the public records.
        let is_told = is_news && !matches!(phase, Phase::Starting | Phase::Running);
        if is_told && let Err(error) = self.hands.apply("report", job.report(&report)).await {
            tracing::debug!(flow = %key, %error, "a report was not written");
        }
        self.board.set(key, report);
    }

    /// Removes what reappeared under the names of ended runs, where nobody lays claim to it.
    async fn sweep(&mut self, records: &Records) -> Result<(), Error> {
        for (key, recorded) in &records.runs {
            let Ok(row) = &recorded.value else { continue };
            if row.ended.topics.is_empty() || records.wishes.contains_key(key) {
                continue;
            }
            let seen = self.look(row.ended.topics.iter()).await?;
            let back: Vec<_> = plan::unclaimed(key, &row.ended, records)
                .into_iter()
                .filter(|topic| seen.get(&topic.topic).is_some_and(|s| s.exists))
                .collect();
            let clean = self.swept.entry(key.clone()).or_default();
            if back.is_empty() {
                *clean += 1;
                if *clean >= CLEAN_AUDITS {
                    let mut write = sluice_sdk::Apply {
                        expect: vec![unchanged(own_key(RUNS, key), Some(recorded))],
                        quiet: true,
                        ..Default::default()
                    };
                    let row = Named { last: row.last, ended: Topology::default() };
                    write.puts.push(own_value(RUNS, key, &row));
                    self.swept.remove(key);
                    if let Err(error) = self.hands.apply("swept names", write).await {
                        tracing::debug!(flow = %key, %error, "swept names stay on record");
                    }
                }
                continue;
            }
            *clean = 0;
            let names: Vec<_> = back.iter().map(|topic| topic.topic.to_string()).collect();
            tracing::warn!(flow = %key, topics = names.join(", "), "topics of an ended run came back and are removed");
            self.hands.remove(&back).await?;
        }
        Ok(())
    }
}

impl Tended {
    fn new(wish: Arc<Wish>, now: Instant) -> Self {
        Self {
            wish,
            is_settled: false,
            due: now,
            polls: 0,
            failures: 0,
            last_error: None,
            drain: None,
            verdicts: BTreeMap::new(),
            told: None,
        }
    }

    fn last_report(&self) -> Report {
        Report { queues: self.verdicts.values().cloned().collect(), ..Report::new(Phase::Gone, &self.wish) }
    }

    fn settle(&mut self) {
        self.is_settled = true;
        (self.polls, self.failures, self.last_error) = (0, 0, None);
    }

    fn progress(&mut self, now: Instant) {
        self.due = now;
        (self.polls, self.failures) = (0, 0);
    }

    fn wait(&mut self, now: Instant) {
        self.failures = 0;
        self.due = now + POLL.pause(self.polls);
        self.polls += 1;
    }

    /// Backs off; how long, in milliseconds.
    fn fail(&mut self, now: Instant, reason: &str) -> u64 {
        let is_same = self.last_error.as_deref() == Some(reason);
        self.failures = if is_same { self.failures + 1 } else { 1 };
        self.last_error = Some(reason.to_owned());
        let pause = RETRY.pause(self.failures - 1);
        self.due = now + pause;
        u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)
    }

    fn park(&mut self, parked: Parked) {
        for (queue, messages) in parked {
            let verdict = QueueVerdict { queue: queue.clone(), verdict: "parked", messages: 0 };
            let verdict = self.verdicts.entry(queue).or_insert(verdict);
            if verdict.verdict != "parked" {
                (verdict.verdict, verdict.messages) = ("parked", 0);
            }
            verdict.messages += messages;
        }
    }

    fn clock(&mut self, wish: &Wish, seen: &Sight, now: Instant) -> DrainClock {
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
        DrainClock { is_over, is_steady: now.duration_since(draining.steady_since) >= STEADY }
    }
}

fn flow_queues<'a>(
    wish: &'a Wish,
    seen: &'a Sight,
) -> impl Iterator<Item = (&'a Seen, &'a sluice_bus::SeenSubscription)> {
    let topics = wish.topology.topics.iter().filter(|topic| topic.topic.class() == Class::Flow);
    topics
        .filter_map(|topic| seen.get(&topic.topic).filter(|seen| seen.exists))
        .flat_map(|seen| seen.subscriptions.iter().filter(|s| s.exists).map(move |s| (seen, s)))
}

fn counts(wish: &Wish, seen: &Sight) -> Vec<QueueLeft> {
    flow_queues(wish, seen).map(|(seen, s)| plan::left(&seen.topic, s)).collect()
}

/// What became of each queue, as seen when its processors are told to leave.
fn verdicts(wish: &Wish, seen: &Sight) -> Vec<QueueVerdict> {
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

async fn act(hands: &Hands, job: Job<'_>, next: Next, seen: &Sight) -> (Vec<QueueVerdict>, Outcome) {
    let steps = match next {
        Next::Settled => return (Vec::new(), Outcome::Settled),
        Next::Draining(left) => return (Vec::new(), Outcome::Draining(left)),
        Next::Held(holders) => return (Vec::new(), Outcome::Held(holders)),
        Next::Blocked(reason) => return (Vec::new(), Outcome::Blocked(reason)),
        Next::Do(steps) => steps,
    };
    let mut judged = Vec::new();
    let mut parked = Parked::new();
    for step in &steps {
        match hands.take(job, step).await {
            Ok(moved) => parked.extend(moved),
            Err(error) => return (judged, Outcome::Failed(error)),
        }
        if matches!(step, Step::Withdraw(_)) {
            judged = verdicts(job.wish, seen);
        }
    }
    let outcome = match steps.last() {
        // Making is its own proof; removing is looked at once more.
        Some(Step::Ensure(_) | Step::Open(_)) => Outcome::Settled,
        Some(Step::Forget) => Outcome::Ended,
        _ => Outcome::Again(parked),
    };
    (judged, outcome)
}
