//! Every effect of the flow service fails before it is done, fails after, is its last act before it is done or after, gets no
//! word in time, or loses it the right to act: while a flow starts, drains and stops, while another service takes over, and
//! while what was broken behind its back is made good. Whatever happens, the flow ends up fully there or fully gone, and the
//! id can be used again.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use serde_json::Value;
use sluice_bus::{Inbox, Promise, Subscription, TopicSpec, Traits};
use sluice_flow::Options;

use crate::common::{World, next, ok, status, topic};
use crate::faulty::Fault;
use crate::ground::Ground;

/// No world takes this long unless it hangs.
const WORLD_TIMEOUT: Duration = Duration::from_secs(600);
/// Worlds in which an effect may fail to come, of which it is known to come in some.
const WORLDS_MAX: usize = 5;
/// How long after all else an effect may come.
const REACHED_WITHIN: Duration = Duration::from_secs(15);
/// Between looks that nobody asked for, where a scenario is about those.
const AUDIT_INTERVAL: Duration = Duration::from_millis(100);

/// How long a stop waits for work where it cannot be seen whether there is any: all of that.
const BLIND_DRAIN: Duration = Duration::from_millis(500);

/// What is going on when something goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scenario {
    /// A flow starts, is given work that nobody does, and stops.
    Life,
    /// A stop waits for processors to do what there is.
    Drain,
    /// The leader is killed, and another takes over.
    Takeover,
    /// The leader ends in good order, and another takes over.
    HandOver,
    /// The leader loses its hold.
    LostHold,
    /// A topic and an entry of a running flow are removed behind its back, and made again.
    Repair,
    /// A topic of an ended run comes back with a reader, and is swept.
    Sweep,
}

/// What of the matrix is covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Every fault at every effect.
    All,
    /// Every fault at the first effect of each kind.
    Kinds,
    /// Every fault at the first topic that is made for a flow.
    First,
}

/// How many there were, and how long it took.
pub(crate) struct Covered {
    covered: usize,
    all: usize,
    effects: usize,
    of_each: Vec<(Scenario, usize)>,
    left_out: Vec<(Scenario, Promise, &'static str)>,
    took: Duration,
}

impl fmt::Display for Covered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (scenario, faults) in &self.of_each {
            writeln!(f, "{scenario:?}: {faults} faults")?;
        }
        for (scenario, promise, why) in &self.left_out {
            writeln!(f, "{scenario:?}: left out; not promised: {} ({why})", promise.text())?;
        }
        let Self { covered, all, effects, took, .. } = self;
        write!(f, "covered {covered} of {all} faults at {effects} effects in {:.1} s", took.as_secs_f64())
    }
}

impl Scenario {
    const ALL: [Self; 7] =
        [Self::Life, Self::Drain, Self::Takeover, Self::HandOver, Self::LostHold, Self::Repair, Self::Sweep];

    /// Effects that it must have.
    const fn has(self) -> &'static [&'static str] {
        match self {
            Self::Life => &[
                "ensure flow:",
                "remove flow:",
                "config apply quietly put(flow-ledger",
                "config apply put(flow",
                "publish flow:tg:dead-letters:acme",
            ],
            Self::Drain => &["config apply quietly put(flow-report)", "config apply put() delete(processor:"],
            Self::Takeover => {
                &["hold flow", "config apply quietly put(flow-leader)", "ensure request:tg:flow"]
            }
            Self::HandOver => &["hold flow #1", "config apply quietly put(flow-leader) delete() #2"],
            Self::LostHold => &["config apply put(flow-ledger)", "hold flow #1"],
            Self::Repair => {
                &["ensure flow:tg:chunks:acme:f1 #1", "config apply put(flow,processor:second) delete() #1"]
            }
            Self::Sweep => &[
                "config apply put() delete(processor:first) #1",
                "remove flow:tg:load:acme:f1 #1",
                "config apply quietly put(flow-runs) delete() #1",
            ],
        }
    }

    /// What it is about and a broker need not promise, with the broker's reason.
    fn lacks(self, traits: Traits) -> Option<(Self, Promise, &'static str)> {
        let needs = match self {
            // What comes back is told that it is over because it is read.
            Self::Sweep => Promise::ReadersAreShown,
            Self::Life | Self::Drain | Self::Takeover | Self::HandOver | Self::LostHold | Self::Repair => {
                return None;
            }
        };
        traits.why_not(needs).map(|why| (self, needs, why))
    }

    async fn world(self, ground: &Ground) -> World {
        let mut options = Options::default();
        if matches!(self, Self::LostHold | Self::Repair | Self::Sweep) {
            options.audit_interval = AUDIT_INTERVAL;
        }
        let traits = ground.traits();
        let is_hidden = |promise| traits.why_not(promise).is_some();
        if is_hidden(Promise::ReadersAreShown) && is_hidden(Promise::UnsettledIsShown) {
            options.drain_timeout = BLIND_DRAIN;
        }
        let world = World::on(ground, &["acme"], options).await;
        world.put_size_and_blueprint().await;
        world
    }

    /// What there is before.
    async fn prepare(self, world: &World) {
        match self {
            Self::Life => {
                // One that does not lead yet decides the same with other effects.
                let leads = || async {
                    let found = world.doctor().await;
                    !found.iter().any(|found| matches!(found.code.as_str(), "nobody-leads" | "stands-by"))
                };
                world.until("somebody leads", leads).await;
            }
            Self::Drain | Self::Takeover | Self::HandOver | Self::LostHold | Self::Repair => {
                _ = ok(&world.start("f1", "demo").await);
            }
            Self::Sweep => {
                // So that its names are not forgotten too early.
                world.faults.are_listings_held.send_replace(true);
                live(world, "before").await;
            }
        }
    }

    async fn happen(self, world: &World, context: &str) {
        match self {
            Self::Life => live(world, context).await,
            Self::Drain => drain(world, context).await,
            Self::Takeover => leader_after(world, context, || world.faults.dying.notify_one()).await,
            Self::HandOver => leader_after(world, context, || world.faults.retiring.notify_one()).await,
            Self::LostHold => leader_after(world, context, || world.faults.lose_holds()).await,
            Self::Repair => repair(world, context).await,
            Self::Sweep => sweep(world, context).await,
        }
    }

    /// Whether it leaves things as they were before.
    const fn can_happen_again(self) -> bool {
        matches!(self, Self::Takeover | Self::HandOver | Self::LostHold | Self::Repair)
    }

    /// Every effect that it has when nothing goes wrong. Who is faster decides some; those that it must have come in one of
    /// a few worlds.
    async fn effects(self, ground: &Ground) -> Vec<String> {
        let mut effects = Vec::new();
        for _ in 0..WORLDS_MAX {
            let world = self.world(ground).await;
            self.prepare(&world).await;
            world.faults.record();
            let context = format!("{self:?}, the recording");
            world.surviving(self.happen(&world, &context)).await;
            effects = world.faults.effects();
            world.end().await;
            let has = |must: &&str| effects.iter().any(|effect| effect.starts_with(*must));
            if self.has().iter().all(has) {
                return effects;
            }
        }
        panic!("not all of {:?} in {effects:#?}", self.has());
    }

    /// Survives the fault in a world where its effect comes: how often it does depends on who looks when.
    async fn survive(self, ground: &Ground, effect: &str, fault: Fault) {
        let context = format!("{self:?}, {fault:?} at {effect}");
        for _ in 0..WORLDS_MAX {
            if self.meets(ground, effect, fault, &context).await {
                return;
            }
        }
        panic!("never: {context}: is reached");
    }

    /// Whether the effect came. All goes well in any case.
    async fn meets(self, ground: &Ground, effect: &str, fault: Fault, context: &str) -> bool {
        let world = self.world(ground).await;
        self.prepare(&world).await;
        world.faults.arm(effect, fault);
        let lives = async {
            self.happen(&world, context).await;
            while self.can_happen_again() && world.faults.fired() == 0 {
                self.happen(&world, context).await;
            }
            // Some of it comes after all that can be seen.
            let since = Instant::now();
            while world.faults.fired() == 0 && since.elapsed() < REACHED_WITHIN {
                tokio::time::sleep(AUDIT_INTERVAL).await;
            }
            stop(&world, context).await;
            world.assert_nothing_left(context).await;
            live(&world, &format!("again after {context}")).await;
        };
        let deadline = tokio::time::timeout(WORLD_TIMEOUT, world.surviving(lives));
        deadline.await.unwrap_or_else(|_| panic!("{context}: hangs"));
        let fired = world.faults.fired();
        assert!(fired <= 1, "{context}: {fired} times");
        world.end().await;
        fired == 1
    }
}

/// Goes through the matrix, so many worlds at once.
pub(crate) async fn cover(ground: &Ground, at_once: usize, extent: Extent) -> Covered {
    let begun = Instant::now();
    // Boxed: each holds a whole world, and all of them together are more than a thread's stack.
    let traits = ground.traits();
    let wanted = Scenario::ALL.into_iter().filter(|it| extent != Extent::First || *it == Scenario::Life);
    let (left_out, wanted): (Vec<_>, Vec<_>) = wanted.partition(|scenario| scenario.lacks(traits).is_some());
    let left_out = left_out.into_iter().filter_map(|scenario| scenario.lacks(traits)).collect();
    let recordings = wanted
        .into_iter()
        .map(|scenario| Box::pin(async move { (scenario, scenario.effects(ground).await) }));
    let recorded: Vec<_> = stream::iter(recordings).buffered(at_once).collect().await;
    let mut kinds = BTreeSet::new();
    let mut cases = Vec::new();
    let (mut effects, mut of_each) = (0, Vec::new());
    for (scenario, seen) in &recorded {
        let before = cases.len();
        for effect in seen {
            let is_new = kinds.insert(kind(effect));
            let is_covered = match extent {
                Extent::All => true,
                Extent::Kinds => is_new,
                Extent::First => cases.is_empty() && effect.starts_with("ensure flow:"),
            };
            if is_covered {
                effects += 1;
                cases.extend(Fault::of(effect).into_iter().map(|fault| (*scenario, effect.as_str(), fault)));
            }
        }
        of_each.push((*scenario, cases.len() - before));
    }
    let all = cases.len();
    assert!(all > 0, "no fault is covered");
    let survived = stream::iter(cases)
        .map(|(scenario, effect, fault)| Box::pin(scenario.survive(ground, effect, fault)));
    let covered = survived.buffer_unordered(at_once).count().await;
    assert_eq!(covered, all);
    Covered { covered, all, effects, of_each, left_out, took: begun.elapsed() }
}

/// An effect without its number, and without the name of the topic.
fn kind(effect: &str) -> String {
    let what = effect.rsplit_once(" #").map_or(effect, |(what, _)| what);
    match what.split_once(' ') {
        Some((verb @ ("ensure" | "remove"), topic)) => {
            format!("{verb} {}", topic.split(':').next().unwrap_or_default())
        }
        _ => what.to_owned(),
    }
}

/// One life: started, given work that nobody does, stopped.
pub(crate) async fn live(world: &World, context: &str) {
    start(world, context).await;
    let run = status(&world.get("f1").await)["run"].as_str().unwrap().to_owned();
    let subscriptions = world.subscriptions().await;
    for name in [format!("first--acme--{run}--input"), format!("second--acme--{run}--input")] {
        assert!(subscriptions.contains(&name), "{context}: {name} is not in {subscriptions:?}");
    }
    let shown = world.site.shown().await;
    assert!(shown.as_ref().is_none_or(|names| !names.is_empty()), "{context}: {shown:?}");
    for n in 0..2 {
        world.publish(&format!("flow:tg:load:acme:{run}"), &format!("{run}-{n}")).await;
    }
    stop(world, context).await;
    world.assert_nothing_left(context).await;
    let letters = world.dead_letters().await;
    let ids: BTreeSet<_> = letters.iter().map(|letter| letter.id.as_str()).collect();
    assert_eq!(ids.len(), 2, "{context}: {letters:?}");
}

/// Asks for a start as a stubborn client does.
async fn start(world: &World, context: &str) {
    let is_up = || async {
        match world.start("f1", "demo").await.error {
            None => true,
            Some(error) => error.message == "Flow already exists" && is_in(world, "Running").await,
        }
    };
    world.until(&format!("{context}: started"), is_up).await;
}

async fn stop(world: &World, context: &str) {
    let is_gone =
        || async { world.stop("f1").await.error.is_none_or(|error| error.message == "Flow ID invalid") };
    world.until(&format!("{context}: stopped"), is_gone).await;
}

/// Whether the flow is in this phase.
async fn is_in(world: &World, phase: &str) -> bool {
    let got = world.get("f1").await;
    got.error.is_none() && status(&got)["phase"] == phase
}

async fn read_load(world: &World, run: &str) -> Box<dyn Inbox> {
    let (topic, name) = (topic(&format!("flow:tg:load:acme:{run}")), format!("first--acme--{run}--input"));
    world.broker.subscribe(&Subscription::Shared { topic, name, prefetch: 1 }).await.unwrap()
}

/// A reader begins to work when the drain is under way, and leaves as processors do: when its entry is gone.
async fn drain(world: &World, context: &str) {
    const MESSAGES: usize = 5;
    for n in 0..MESSAGES {
        world.publish("flow:tg:load:acme:f1", &format!("m{n}")).await;
    }
    let inbox = read_load(world, "f1").await;
    let first = next(&*inbox).await;
    let is_gone = || async {
        let stopped = world.stop_with("f1", Some("5m")).await;
        stopped.error.is_none_or(|error| error.message == "Flow ID invalid")
    };
    let what = format!("{context}: stopped after its drain");
    let stopping = world.until(&what, is_gone);
    let working = async {
        world.until(&format!("{context}: drains"), || is_in(world, "Draining")).await;
        first.ack();
        for _ in 1..MESSAGES {
            next(&*inbox).await.ack();
        }
        let is_withdrawn =
            || async { world.config.get("acme", "processor:first", "f1").await.unwrap().is_none() };
        world.until(&format!("{context}: its entry goes"), is_withdrawn).await;
        drop(inbox);
    };
    tokio::join!(stopping, working);
    world.assert_nothing_left(context).await;
    let letters = world.dead_letters().await;
    assert!(letters.is_empty(), "{context}: {letters:?}");
}

/// Number of the present leader, if there is one.
async fn leader(world: &World) -> Option<u64> {
    let row = world.config.get("__flows__", "flow-leader", "head").await.unwrap()?.value?;
    let row: Value = serde_json::from_str(&row).unwrap();
    row["holder"].as_str().filter(|holder| !holder.is_empty())?;
    row["epoch"].as_u64()
}

/// Does something after which somebody has to begin to lead.
async fn leader_after(world: &World, context: &str, event: impl FnOnce()) {
    let before = leader(world).await;
    event();
    let leads_anew = || async { leader(world).await > before };
    world.until(&format!("{context}: somebody leads"), leads_anew).await;
    let topics = world.topic_names().await;
    assert!(topics.contains(&"flow:tg:load:acme:f1".to_owned()), "{context}: {topics:?}");
    let is_running = || is_in(world, "Running");
    world.until(&format!("{context}: the flow runs on"), is_running).await;
}

/// Breaks one thing after the other; each is made good before the next.
async fn repair(world: &World, context: &str) {
    let chunks = TopicSpec::bare(topic("flow:tg:chunks:acme:f1"));
    world.admin.remove(&chunks).await.unwrap();
    let is_back = || async { world.subscriptions().await.contains(&"second--acme--f1--input".to_owned()) };
    world.until(&format!("{context}: the topic is back"), is_back).await;
    world.delete_value("acme", "processor:second", "f1").await;
    let is_back = || async { world.config.get("acme", "processor:second", "f1").await.unwrap().is_some() };
    world.until(&format!("{context}: the entry is back"), is_back).await;
}

/// Lets a topic of the last run come back.
async fn sweep(world: &World, context: &str) {
    // Then no look is under way that could see the topic before its reader.
    let is_held = || async { world.faults.listings_held.load(Ordering::SeqCst) > 0 };
    world.until(&format!("{context}: nobody looks"), is_held).await;
    let late = TopicSpec::with(topic("flow:tg:load:acme:f1"), "first--acme--f1--input");
    world.admin.ensure(&late).await.unwrap();
    let _reader = read_load(world, "f1").await;
    world.faults.are_listings_held.send_replace(false);
    let is_swept = || async { world.topic_names().await.is_empty() };
    world.until(&format!("{context}: the topic is swept"), is_swept).await;
    let is_forgotten = || async {
        let row = world.config.get("__flows__", "flow-runs", "acme/f1").await.unwrap().unwrap();
        let row: Value = serde_json::from_str(&row.value.unwrap()).unwrap();
        row.get("ended").is_none()
    };
    world.until(&format!("{context}: its names are forgotten"), is_forgotten).await;
}
