//! The loop: look, plan, act, report. It is woken by a poke, the clock or the end of an act, and told nothing but "look";
//! what it does follows from what it sees, so a restart at any point goes on from there.
//!
//! Flows that are as wished are left alone until an audit finds otherwise. What is done for one flow runs beside what is
//! done for others, and a flow whose step fails waits alone, longer each time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sluice_bus::{BoxFuture, Broker, BrokerAdmin, Seen, TopicSpec};
use sluice_schema::{Topic, record};
use sluice_sdk::{Apply, ConfigClient, ConfigError, Tasks};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::act::{Error, Hands, Job, Parked};
use crate::blueprint::OwnedTopic;
use crate::board::{Board, Phase, QueueVerdict, Report};
use crate::claims::Claims;
use crate::lead::Lead;
use crate::memory::{FlowKey, LEDGER, ONLY, Records, Want, Wish, scoped_key, scoped_value, unchanged};
use crate::mirror::Mirror;
use crate::plan::{self, DrainClock, Next, QueueLeft, Sight, Step};
use crate::tended::{Doubts, RETRY, Tended, Trouble, verdicts};

/// Failures of one cause after which an operator is told.
const FAILURES_TOLD: u32 = 5;
/// Flows that something is done for at once.
const ACTS_MAX: usize = 64;
/// How long after the end of a flow it is looked whether anything came back; a reader of 2.11 that was still attached makes
/// its queue again within 5 s.
const LOOK_AGAIN: Duration = Duration::from_secs(6);
/// How long a poke waits at most while looking fails or another service leads: each topic that somebody misses pokes, and
/// while config is away those are many.
const POKED_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Topics looked at in one go; a single flow may have more.
const LOOK_TOPICS_MAX: usize = 1_000;

/// Everything the loop works with.
pub(crate) struct Reconciler {
    pub(crate) lead: Lead,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) config: Arc<ConfigClient>,
    pub(crate) shared: Shared,
    pub(crate) poke: Arc<Notify>,
    /// There while this service leads.
    pub(crate) rounds: Option<Rounds>,
}

/// What the loop has in common with the rest of the service.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) mirror: Arc<Mirror>,
    pub(crate) board: Arc<Board>,
    pub(crate) tasks: Tasks,
    pub(crate) audit_interval: Duration,
    pub(crate) doubts: Arc<Doubts>,
}

/// What a service knows and does while it leads.
pub(crate) struct Rounds {
    pub(crate) hands: Hands,
    pub(crate) shared: Shared,
    pub(crate) flows: BTreeMap<FlowKey, Tended>,
    acting: BTreeMap<FlowKey, AbortHandle>,
    tell: mpsc::Sender<Done>,
    done: mpsc::Receiver<Done>,
    /// Acts whose end the loop has not looked at yet.
    ended: Vec<Done>,
    /// Of the mirror, when `flows` was last up to date.
    histories: u64,
    next_audit: Instant,
    pub(crate) auditing: Option<AbortHandle>,
    pub(crate) audit: crate::audit::Audit,
}

/// The end of something that ran beside the loop.
pub(crate) enum Done {
    Act(Box<Acted>),
    Listed(sluice_bus::Result<Vec<Seen>>),
}

/// What was done for a flow.
pub(crate) struct Acted {
    key: FlowKey,
    wish: Arc<Wish>,
    records: Arc<Records>,
    verdicts: Vec<QueueVerdict>,
    outcome: Outcome,
}

/// Why nothing could be looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RoundError {
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
    /// Runs until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let (mut failures, mut trouble) = (0, Trouble::default());
        let mut wake = Instant::now();
        let mut not_before = wake;
        loop {
            let poked = async {
                self.poke.notified().await;
                tokio::time::sleep_until(not_before).await;
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = poked => {}
                () = tokio::time::sleep_until(wake) => {}
                () = Rounds::some_end(self.rounds.as_mut()) => {}
            }
            let Some(round) = stop.run_until_cancelled(self.turn()).await else { break };
            wake = match round {
                Ok(due) => {
                    failures = 0;
                    if self.rounds.is_some() && trouble.end() {
                        tracing::info!("flows are looked at again");
                    }
                    due
                }
                Err(error) => {
                    if trouble.is_news(&error.to_string()) {
                        tracing::warn!(%error, "flows could not be looked at; trying again");
                    }
                    failures += 1;
                    Instant::now() + RETRY.pause(failures)
                }
            };
            let now = Instant::now();
            let is_futile = failures > 0 || self.rounds.is_none();
            not_before = if is_futile { wake.min(now + POKED_PAUSE_MAX) } else { now };
        }
        self.rounds = None;
        self.lead.release().await;
    }

    /// A round, where this service is the one to act. Boxed, so that the compiler need not see through it to `Send`.
    fn turn(&mut self) -> BoxFuture<'_, Result<Instant, RoundError>> {
        Box::pin(async move {
            let Some(admin) = self.lead.tend().await else {
                if self.rounds.take().is_some() {
                    self.shared.board.forget();
                    self.call_out().await;
                }
                return Ok(Instant::now() + self.lead.pause());
            };
            let rounds = self.rounds.get_or_insert_with(|| {
                let hands = Hands { broker: self.broker.clone(), admin, config: self.config.clone() };
                self.shared.board.lead();
                Rounds::new(hands, self.shared.clone())
            });
            rounds.round().await
        })
    }
}

impl Reconciler {
    /// What was decided here quietly, because this service seemed to lead, is told to the one that does.
    async fn call_out(&self) {
        let records = self.shared.mirror.refresh().await;
        let Ok(Some(ledger)) = records.as_ref().map(|records| records.ledger.as_ref()) else { return };
        let Ok(last) = &ledger.value else { return };
        let write = Apply {
            expect: vec![unchanged(scoped_key(record::FLOWS, LEDGER, ONLY), Some(ledger))],
            puts: vec![scoped_value(record::FLOWS, LEDGER, ONLY, last)],
            ..Apply::default()
        };
        if let Err(error) = self.config.apply(write).await {
            tracing::debug!(%error, "others were not told of the last decisions; they look by themselves in a while");
        }
    }
}

impl Rounds {
    fn new(hands: Hands, shared: Shared) -> Self {
        // Room for all that can run at once, so that nobody waits to tell its end.
        let (tell, done) = mpsc::channel(ACTS_MAX + 1);
        Self {
            hands,
            shared,
            flows: BTreeMap::new(),
            acting: BTreeMap::new(),
            tell,
            done,
            ended: Vec::new(),
            histories: 0,
            next_audit: Instant::now(),
            auditing: None,
            audit: crate::audit::Audit::new(),
        }
    }

    /// Waits for the end of an act. Cancel-safe: an end is kept as soon as it is taken.
    async fn some_end(rounds: Option<&mut Self>) {
        let Some(rounds) = rounds else { return std::future::pending().await };
        if let Some(done) = rounds.done.recv().await {
            rounds.ended.push(done);
        }
    }

    /// One look, plan, act, report over every flow that is due; when the next is due.
    async fn round(&mut self) -> Result<Instant, RoundError> {
        self.take_ends().await;
        let records = self.shared.mirror.refresh().await?;
        let histories = self.shared.mirror.histories();
        if std::mem::replace(&mut self.histories, histories) != histories {
            // Decisions may have numbers that others had before: every flow is looked at as if for the first time.
            self.flows.clear();
        }
        let claims = Claims::of(&records);
        let now = Instant::now();
        self.notice(&records, now);
        let doubts = self.shared.doubts.take();
        if !doubts.is_empty() {
            self.flows.values_mut().for_each(|tended| tended.doubt(doubts.iter().cloned(), now));
        }
        let (due, is_more) = self.due(&claims, now);
        let needed = due.iter().flat_map(|(key, wish)| plan::needed(key, wish, &claims));
        let seen = Arc::new(self.look(needed).await?);
        for (key, wish) in due {
            let Some(tended) = self.flows.get_mut(&key) else { continue };
            let clock = DrainClock { is_listed: self.audit.is_listing, ..tended.clock(&wish, &seen, now) };
            let next = if plan::wanted(&key, &wish, &records) == Want::Running {
                if tended.told == Some(Phase::Running) {
                    let lost = plan::missing(&wish, &seen).filter(|topic| seen.contains_key(*topic));
                    tell_lost(&key, lost);
                    note_lost_queues(&*self.hands.broker, &wish, &seen);
                }
                tended.miss(&seen);
                plan::plan(&key, &wish, &claims, &tended.believed(&seen), clock)
            } else {
                plan::plan(&key, &wish, &claims, &seen, clock)
            };
            self.tell_parking(&key, &wish, &next);
            self.begin(key, wish, &records, next, &seen).await;
        }
        if self.auditing.is_none() && now >= self.next_audit {
            self.begin_audit();
        }
        if is_more {
            return Ok(Instant::now());
        }
        let waiting = self.flows.iter().filter(|(key, f)| !f.is_settled && !self.acting.contains_key(key));
        let next = waiting.map(|(_, f)| f.due).min();
        Ok(next.map_or(self.next_audit, |due| due.min(self.next_audit)))
    }

    /// Flows that it is time for, those that somebody waits for first; and whether more could be looked at right after.
    fn due(&self, claims: &Claims<'_>, now: Instant) -> (Vec<(FlowKey, Arc<Wish>)>, bool) {
        let is_due =
            |key: &FlowKey, f: &Tended| !f.is_settled && f.due <= now && !self.acting.contains_key(key);
        let mut due: Vec<_> = self.flows.iter().filter(|(key, f)| is_due(key, f)).collect();
        due.sort_by_key(|(_, f)| (f.is_routine, f.due));
        let room = ACTS_MAX.saturating_sub(self.acting.len());
        let mut topics = 0;
        let mut taken = Vec::new();
        for (key, _) in due {
            let Some(Ok(wish)) = claims.records().wishes.get(key).map(|recorded| &recorded.value) else {
                continue;
            };
            // Those that find no room are looked at when an act has ended.
            if taken.len() == room {
                return (taken, false);
            }
            topics += plan::needed(key, wish, claims).count();
            if topics > LOOK_TOPICS_MAX && !taken.is_empty() {
                return (taken, true);
            }
            taken.push((key.clone(), wish.clone()));
        }
        (taken, false)
    }

    /// Reports what has ended since the last round.
    async fn take_ends(&mut self) {
        // Asked before the ends are taken: whoever has finished by now has told its end, or never will.
        let finished: Vec<_> =
            self.acting.iter().filter(|(_, act)| act.is_finished()).map(|(key, _)| key.clone()).collect();
        while let Ok(done) = self.done.try_recv() {
            self.ended.push(done);
        }
        for done in std::mem::take(&mut self.ended) {
            match done {
                Done::Act(acted) => {
                    self.acting.remove(&acted.key);
                    self.report(*acted).await;
                }
                Done::Listed(listed) => self.end_audit(listed).await,
            }
        }
        for key in finished {
            if self.acting.remove(&key).is_some()
                && let Some(tended) = self.flows.get_mut(&key)
            {
                tended.fail(Instant::now(), "a step broke off; the log says why");
            }
        }
    }

    /// Takes notice of new decisions, and of flows that are gone or cannot be read.
    fn notice(&mut self, records: &Records, now: Instant) {
        let board = &self.shared.board;
        self.flows.retain(|key, tended| {
            let now = records.wishes.get(key).map(|r| r.value.as_deref().map(|wish| wish.run.as_str()));
            let is_over = now.is_none_or(|now| now.is_ok_and(|run| run != tended.wish.run));
            if is_over {
                // The answer to the last write was lost, or somebody else made it.
                board.end(key, &tended.wish.request, tended.last_report());
            }
            !is_over
        });
        for (key, recorded) in &records.wishes {
            let Ok(wish) = &recorded.value else { continue };
            let tended = self.flows.entry(key.clone()).or_insert_with(|| Tended::new(wish.clone(), now));
            if tended.wish.generation != wish.generation {
                *tended = tended.decided_anew(wish.clone(), now);
            }
            if plan::wanted(key, wish, records) == Want::Gone {
                tended.is_settled = false;
            }
        }
    }

    /// Tells an operator which records cannot be read.
    pub(crate) fn tell_unreadable(records: &Records) {
        if let Some(Err(reason)) = records.ledger.as_ref().map(|recorded| &recorded.value) {
            tracing::error!(
                reason,
                "the number of the last decision cannot be read; nothing is started, stopped or removed. Repair or delete config value '{LEDGER}/{ONLY}' in workspace '{}'",
                record::FLOWS
            );
        }
        for key in records.wishes.iter().filter(|(_, r)| r.value.is_err()).map(|(key, _)| key) {
            tracing::error!(flow = %key, "the wish of this flow cannot be read; nothing is done about it, and no topic of its workspace is removed. Repair or delete config value 'flow-wish/{key}'");
        }
    }

    pub(crate) async fn look<'a>(
        &self,
        topics: impl Iterator<Item = &'a OwnedTopic>,
    ) -> Result<Sight, Error> {
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
            self.shared.board.set(key, report);
        }
    }

    /// Lets the steps for a flow be taken beside the loop; what is only to be told is told at once.
    async fn begin(
        &mut self,
        key: FlowKey,
        wish: Arc<Wish>,
        records: &Arc<Records>,
        next: Next,
        seen: &Arc<Sight>,
    ) {
        let records = records.clone();
        let verdicts = Vec::new();
        let outcome = match next {
            Next::Settled => Outcome::Settled,
            Next::Draining(left) => Outcome::Draining(left),
            Next::Held(holders) => Outcome::Held(holders),
            Next::Blocked(reason) => Outcome::Blocked(reason),
            Next::Do(steps) => {
                let (hands, seen, tell) = (self.hands.clone(), seen.clone(), self.tell.clone());
                let name = format!("flow/act/{key}");
                let at = key.clone();
                let act = self.shared.tasks.spawn(name, async move {
                    let job = Job { key: &key, wish: &wish, records: &records };
                    let (verdicts, outcome) = act(&hands, job, steps, &seen).await;
                    let acted = Acted { key, wish, records, verdicts, outcome };
                    // Nobody to tell: this service leads no more.
                    let _ = tell.send(Done::Act(Box::new(acted))).await;
                });
                self.acting.insert(at, act);
                return;
            }
        };
        self.report(Acted { key, wish, records, verdicts, outcome }).await;
    }

    async fn report(&mut self, acted: Acted) {
        let Acted { key, wish, records, verdicts, outcome } = acted;
        let Some(tended) = self.flows.get_mut(&key) else { return };
        if (tended.wish.generation, &tended.wish.request) != (wish.generation, &wish.request) {
            // Somebody decided anew meanwhile; what was done is looked at with that in mind.
            return;
        }
        let (key, wish) = (&key, &*wish);
        let job = Job { key, wish, records: &records };
        let now = Instant::now();
        tended.verdicts.extend(verdicts.into_iter().map(|v| (v.queue.clone(), v)));
        let is_up = plan::wanted(key, wish, job.records) == Want::Running;
        let on_the_way = if is_up { Phase::Starting } else { Phase::Stopping };
        let mut report = Report::new(on_the_way, wish);
        match outcome {
            Outcome::Settled => {
                let made_again = tended.settle(now);
                if let Some(losses) = self.hands.broker.losses() {
                    made_again.iter().for_each(|topic| losses.note_removed(topic));
                }
                report.phase = Phase::Running;
            }
            Outcome::Again(parked) => {
                if !parked.is_empty() {
                    // There may be more.
                    let told = self.shared.board.current(key);
                    report.parking = told.map(|told| told.parking).unwrap_or_default();
                }
                tended.park(parked);
                tended.progress(now);
            }
            Outcome::Ended => {
                tracing::info!(flow = %key, run = wish.run, "a flow is gone");
                let report = tended.last_report();
                self.flows.remove(key);
                self.shared.board.end(key, &wish.request, report);
                self.audit_soon(LOOK_AGAIN);
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
            Outcome::Failed(error) if error.is_over() => return,
            Outcome::Failed(error) if error.is_conflict() => tended.progress(now),
            Outcome::Failed(error) if !is_up && error.is_in_use() => tended.wait(now),
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
        // Others learn what they cannot see in the public records, and that it is over.
        let on_record = records.reports.get(key).and_then(|r| r.value.as_deref().ok());
        let is_told = is_news
            && match on_record {
                None => !matches!(phase, Phase::Starting | Phase::Running),
                Some(last) => last["phase"] != phase.name() || last["generation"] != wish.generation,
            };
        if is_told && let Err(error) = self.hands.apply("report", job.report(&report)).await {
            tracing::debug!(flow = %key, %error, "a report was not written");
        }
        self.shared.board.set(key, report);
    }

    /// Lets the next audit come no later than this, unless audits would then take most of the broker's time.
    pub(crate) fn audit_soon(&mut self, pause: Duration) {
        let soon = (Instant::now() + pause).max(self.audit.not_before);
        self.next_audit = self.next_audit.min(soon);
    }

    fn begin_audit(&mut self) {
        let now = Instant::now();
        self.next_audit = now + self.shared.audit_interval;
        self.audit.begun = Some(now);
        let (admin, tell): (Arc<dyn BrokerAdmin>, _) = (self.hands.admin.clone(), self.tell.clone());
        self.auditing = Some(self.shared.tasks.spawn("flow/audit", async move {
            let listed = admin.list("").await;
            let _ = tell.send(Done::Listed(listed)).await;
        }));
    }
}

impl Drop for Rounds {
    /// What is under way is cut: under a lost hold it can do nothing any more, and a successor looks for itself.
    fn drop(&mut self) {
        self.acting.values().chain(&self.auditing).for_each(AbortHandle::abort);
    }
}

/// What a running flow has lost is made again; whether messages were lost with it nobody can tell.
pub(crate) fn tell_lost<'a>(key: &FlowKey, lost: impl Iterator<Item = &'a Topic>) {
    let lost: Vec<_> = lost.map(Topic::as_str).collect();
    if !lost.is_empty() {
        tracing::warn!(flow = %key, topics = lost.join(", "), "a running flow has lost queues at the broker; they are made again. What was in them is gone, and what foreign processes sent meanwhile may be: find out who removes them");
    }
}

/// Lets every process know of queues that are gone: whoever waits for the answer to what was in one would not learn it where
/// nobody reads it at the moment.
fn note_lost_queues(broker: &dyn Broker, wish: &Wish, seen: &Sight) {
    let Some(losses) = broker.losses() else { return };
    for owned in &wish.topology.topics {
        let queues = seen.get(&owned.topic).into_iter().flat_map(|seen| &seen.subscriptions);
        for lost in queues.filter(|queue| !queue.exists && owned.subscriptions.contains(&queue.name)) {
            let (topic, subscription) = (owned.topic.clone(), lost.name.clone());
            losses.note(&sluice_bus::Error::NoSubscription { topic, subscription });
        }
    }
}

async fn act(hands: &Hands, job: Job<'_>, steps: Vec<Step>, seen: &Sight) -> (Vec<QueueVerdict>, Outcome) {
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
