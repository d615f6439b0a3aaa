//! What may be done next about a flow, given what is recorded and what was just seen. Pure: no clock, no broker.
//!
//! A plan is safe to repeat and safe to lose. Going up, topics come before entries and the record. Going down, each stage
//! is taken only after a look has shown that the one before is over: doors closed, drained, entries out, consumers gone,
//! leftovers parked, topics gone, then the record.

use std::collections::BTreeMap;

use sluice_bus::{Seen, SeenSubscription};
use sluice_schema::{Class, Topic, record};

use crate::blueprint::{OwnedTopic, Part, Topology};
use crate::claims::Claims;
use crate::memory::{Drain, FlowKey, Recorded, Records, Want, Wish};

/// Steps, to be taken in order; the first failure ends them until the next look.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Make topics with their subscriptions.
    Ensure(Vec<OwnedTopic>),
    /// Write entries and the public record.
    Open(Vec<Part>),
    /// Show the public record as stopping.
    Close,
    /// Delete entries.
    Withdraw(Vec<Part>),
    /// Move what is left in subscriptions to the dead letters.
    Park(Vec<Leftover>),
    /// Remove topics that nobody reads and that hold nothing, with all that is bound to them.
    Remove(Vec<OwnedTopic>),
    /// Remove topics with what is in them.
    Discard(Vec<OwnedTopic>),
    /// Delete record, wish and report.
    Forget,
}

/// A subscription that nobody reads any more, and how much is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The topic.
    pub topic: Topic,
    /// The subscription.
    pub subscription: String,
    /// Messages seen in it.
    pub messages: u64,
}

/// What comes next for a flow.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// It is as wished.
    Settled,
    /// Take these steps.
    Do(Vec<Step>),
    /// Nothing may be done before processors have worked on these queues.
    Draining(Vec<QueueLeft>),
    /// Nothing may be done before these readers have left.
    Held(Vec<String>),
    /// Nothing may be removed before somebody repairs a record.
    Blocked(String),
}

/// A queue and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueLeft {
    /// `topic / subscription`.
    pub queue: String,
    /// Messages waiting.
    pub ready: u64,
    /// Messages in somebody's hands, where the broker can show them.
    pub unsettled: Option<u64>,
}

/// How far a drain has got, by clocks that the planner does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DrainClock {
    /// The deadline has passed.
    pub is_over: bool,
    /// The same counts were seen before, long enough ago, for brokers that cannot count exactly.
    pub is_steady: bool,
    /// All that the broker has is listed in a while, so that what comes back of a flow is found there.
    pub is_listed: bool,
}

/// Topics as they were seen in this look.
pub type Sight = BTreeMap<Topic, Seen>;

/// Plans one flow. `seen` must cover the topics of its wish.
#[must_use]
pub fn plan(key: &FlowKey, wish: &Wish, claims: &Claims<'_>, seen: &Sight, clock: DrainClock) -> Next {
    match wanted(key, wish, claims.records()) {
        Want::Running => up(key, wish, claims.records(), seen),
        Want::Gone => down(key, wish, claims, seen, clock),
    }
}

/// What should become of a flow: it goes with its workspace.
#[must_use]
pub fn wanted(key: &FlowKey, wish: &Wish, records: &Records) -> Want {
    if records.workspaces.contains_key(&key.workspace) { wish.want } else { Want::Gone }
}

/// The topics that the next plan of a flow depends on. What need not be seen is not looked at: looks are what a start or a
/// stop of many topics waits for.
pub(crate) fn needed<'a>(
    key: &FlowKey,
    wish: &'a Wish,
    claims: &Claims<'_>,
) -> impl Iterator<Item = &'a OwnedTopic> + use<'a> {
    let records = claims.records();
    let record = records.flows.get(key);
    let needs: fn(&OwnedTopic) -> bool = match wanted(key, wish, records) {
        // Not opened yet: everything is made, whether it is there or not.
        Want::Running if record.is_none() => |_| false,
        Want::Running => |_| true,
        Want::Gone if is_routable(record) => |_| false,
        // What is read or drained decides when the entries go.
        Want::Gone if claims.entries_of(key, wish).next().is_some() => {
            |topic| topic.topic.class().has_subscriptions()
        }
        Want::Gone => |_| true,
    };
    wish.topology.topics.iter().filter(move |topic| needs(topic))
}

fn is_routable(record: Option<&Recorded<record::Flow>>) -> bool {
    record.is_some_and(|r| r.value.as_ref().is_ok_and(|flow| flow.is_routable()))
}

fn up(key: &FlowKey, wish: &Wish, records: &Records, seen: &Sight) -> Next {
    let missing: Vec<_> = wish.topology.topics.iter().filter(|t| !is_whole(t, seen)).cloned().collect();
    let unwritten: Vec<_> =
        wish.topology.parts.iter().filter(|part| !is_written(key, part, records)).cloned().collect();
    let record = records.flows.get(key).and_then(|r| r.value.as_ref().ok());
    let is_open = record.is_some_and(|record| **record == wish.public());
    let mut steps = Vec::new();
    if !missing.is_empty() {
        steps.push(Step::Ensure(missing));
    }
    if !unwritten.is_empty() || !is_open {
        steps.push(Step::Open(unwritten));
    }
    if steps.is_empty() { Next::Settled } else { Next::Do(steps) }
}

fn is_whole(topic: &OwnedTopic, seen: &Sight) -> bool {
    let Some(seen) = seen.get(&topic.topic) else { return false };
    seen.exists
        && topic.subscriptions.iter().all(|name| {
            seen.subscriptions.iter().any(|s| s.exists && s.is_bound != Some(false) && s.name == *name)
        })
}

/// Topics of a wish of which something is not there, or not as it must be.
pub(crate) fn missing<'a>(wish: &'a Wish, seen: &'a Sight) -> impl Iterator<Item = &'a Topic> {
    wish.topology.topics.iter().filter(|topic| !is_whole(topic, seen)).map(|topic| &topic.topic)
}

fn is_written(key: &FlowKey, part: &Part, records: &Records) -> bool {
    let at = (key.workspace.clone(), part.processor.as_str().into(), part.variant.as_str().into());
    let entry = records.entries.get(&at).and_then(|r| r.value.as_ref().ok());
    entry.is_some_and(|entry| **entry == part.entry)
}

fn down(key: &FlowKey, wish: &Wish, claims: &Claims<'_>, seen: &Sight, clock: DrainClock) -> Next {
    let records = claims.records();
    let discard = wish.drain == Drain::Discard || !records.workspaces.contains_key(&key.workspace);
    if is_routable(records.flows.get(key)) {
        return Next::Do(vec![Step::Close]);
    }
    let parts: Vec<_> = claims.entries_of(key, wish).cloned().collect();
    let topics = claims.unclaimed(&wish.topology);
    let queues =
        || topics.iter().filter(|t| t.topic.class() == Class::Flow).flat_map(|t| subscriptions(t, seen));
    let all = || topics.iter().flat_map(|t| subscriptions(t, seen));
    if !parts.is_empty() {
        let left: Vec<_> =
            queues().filter(|(_, s)| is_worked_on(s, clock)).map(|(t, s)| left(t, s)).collect();
        if !(discard || clock.is_over || left.is_empty()) {
            return Next::Draining(left);
        }
        let mut steps = vec![Step::Withdraw(parts)];
        // Where nobody reads and nothing is left, nobody is waited for: no call is under way whose answer would miss its
        // topic. Removing looks for itself and fails if somebody came; then the rest goes a stage per look.
        let is_seen = |t: &OwnedTopic| !t.topic.class().has_subscriptions() || seen.contains_key(&t.topic);
        let is_unread = topics.iter().all(is_seen) && all().all(|(_, s)| s.consumers == Some(0));
        let is_idle = is_unread && queues().all(|(_, s)| s.is_drained());
        if clock.is_listed && is_idle && claims.unreadable(key).is_none() {
            steps.extend([Step::Remove(topics), Step::Forget]);
        }
        return Next::Do(steps);
    }
    let holders: Vec<_> =
        all().filter(|(_, s)| s.consumers.unwrap_or(0) > 0).map(|(t, s)| queue(t, &s.name)).collect();
    if !holders.is_empty() {
        return Next::Held(holders);
    }
    if let Some(reason) = claims.unreadable(key) {
        return Next::Blocked(reason);
    }
    let full: Vec<_> = queues().filter(|(_, s)| !s.is_drained()).map(|(t, s)| leftover(t, s)).collect();
    if !full.is_empty() && !discard {
        return Next::Do(vec![Step::Park(full)]);
    }
    let there: Vec<_> = topics.iter().filter(|t| seen.get(&t.topic).is_none_or(is_there)).cloned().collect();
    if there.is_empty() {
        return Next::Do(vec![Step::Forget]);
    }
    // Nobody is attached who could bring anything back at once; removing looks once more and fails if somebody is. Looking
    // for each topic that it is gone would cost more than the rest of the stop.
    let is_unread = all().all(|(_, s)| s.consumers == Some(0));
    let mut steps = vec![if full.is_empty() { Step::Remove(there) } else { Step::Discard(there) }];
    if clock.is_listed && is_unread {
        steps.push(Step::Forget);
    }
    Next::Do(steps)
}

/// Whether waiting for a queue makes sense: something is in it and somebody takes it out.
fn is_worked_on(seen: &SeenSubscription, clock: DrainClock) -> bool {
    if seen.consumers == Some(0) && seen.unsettled.unwrap_or(0) == 0 {
        return false;
    }
    !seen.is_drained() || (seen.unsettled.is_none() && !clock.is_steady)
}

fn subscriptions<'a>(
    topic: &OwnedTopic,
    seen: &'a Sight,
) -> impl Iterator<Item = (&'a Topic, &'a SeenSubscription)> + use<'a> {
    let seen = seen.get(&topic.topic);
    seen.into_iter()
        .flat_map(|seen| seen.subscriptions.iter().filter(|s| s.exists).map(move |s| (&seen.topic, s)))
}

/// Whether anything of a topic is there: a reader may have made its queue again after the topic was removed.
pub(crate) fn is_there(seen: &Seen) -> bool {
    seen.exists || seen.subscriptions.iter().any(|s| s.exists)
}

pub(crate) fn left(topic: &Topic, seen: &SeenSubscription) -> QueueLeft {
    QueueLeft { queue: queue(topic, &seen.name), ready: seen.ready, unsettled: seen.unsettled }
}

fn leftover(topic: &Topic, seen: &SeenSubscription) -> Leftover {
    let messages = seen.ready + seen.unsettled.unwrap_or(0);
    Leftover { topic: topic.clone(), subscription: seen.name.clone(), messages }
}

pub(crate) fn queue(topic: &Topic, subscription: &str) -> String {
    format!("{topic} / {subscription}")
}

/// The topics of an ended run that nobody names any more; none while a record of the workspace cannot be read.
#[must_use]
pub fn unclaimed(key: &FlowKey, topology: &Topology, claims: &Claims<'_>) -> Vec<OwnedTopic> {
    if claims.unreadable(key).is_some() { Vec::new() } else { claims.unclaimed(topology) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_schema::record::{Flow, ProcessorEntry};
    use std::sync::Arc;

    const INPUT: &str = "flow:tg:in:acme:f1";
    const ASKED: &str = "request:tg:ask:acme:demo";

    fn topic(text: &str) -> Topic {
        text.parse().unwrap()
    }

    fn recorded<T>(value: T) -> Recorded<T> {
        Recorded { version: 1, value: Ok(Arc::new(value)) }
    }

    fn part(processor: &str, variant: &str, input: &str) -> Part {
        let topics = [("input".to_owned(), input.to_owned())].into();
        let entry = ProcessorEntry { topics, ..ProcessorEntry::default() };
        Part { processor: processor.to_owned(), variant: variant.to_owned(), entry }
    }

    fn wish(want: Want, run: &str) -> Wish {
        let own = format!("flow:tg:in:acme:{run}");
        let owned =
            |text: &str, name: &str| OwnedTopic { topic: topic(text), subscriptions: vec![name.to_owned()] };
        let topology = Topology {
            topics: vec![owned(&own, "a"), owned(ASKED, "b")],
            parts: vec![part("a", run, &own), part("b", "demo", ASKED)],
            ..Topology::default()
        };
        Wish {
            generation: 1,
            request: String::new(),
            want,
            drain: Drain::WithinMs(20_000),
            run: run.to_owned(),
            blueprint: "demo".to_owned(),
            shared: None,
            description: String::new(),
            parameters: serde_json::Map::new(),
            topology,
            warnings: Vec::new(),
        }
    }

    /// A flow as it stands while it runs, or right after a stop was decided.
    struct Case {
        wish: Wish,
        records: Records,
        seen: Sight,
        clock: DrainClock,
    }

    fn key(id: &str) -> FlowKey {
        FlowKey::new("acme", id)
    }

    impl Case {
        fn new(want: Want) -> Self {
            let mut case = Self {
                wish: wish(want, "f1"),
                records: Records::default(),
                seen: Sight::new(),
                clock: DrainClock::default(),
            };
            case.records.workspaces.insert("acme".into(), ());
            case.add("f1", want);
            for topic in case.wish.topology.topics.clone() {
                case.see(topic.topic.as_str(), &topic.subscriptions[0], 0, Some(0), Some(0));
            }
            case
        }

        fn add(&mut self, id: &str, want: Want) {
            let wish = wish(want, id);
            self.records.flows.insert(key(id), recorded(wish.public()));
            for part in &wish.topology.parts {
                self.entry("acme", part);
            }
            self.records.wishes.insert(key(id), recorded(wish));
        }

        fn entry(&mut self, workspace: &str, part: &Part) {
            let at = (workspace.into(), part.processor.as_str().into(), part.variant.as_str().into());
            self.records.entries.insert(at, recorded(part.entry.clone()));
        }

        fn see(&mut self, at: &str, name: &str, ready: u64, unsettled: Option<u64>, consumers: Option<u64>) {
            let subscription = SeenSubscription {
                name: name.to_owned(),
                exists: true,
                ready,
                unsettled,
                consumers,
                is_bound: None,
            };
            let seen =
                Seen { topic: topic(at), exists: true, subscriptions: vec![subscription], unroutable: None };
            self.seen.insert(topic(at), seen);
        }

        fn without_entries(mut self) -> Self {
            self.records.entries.clear();
            self
        }

        fn gone(&mut self, at: &str) {
            let seen = Seen { topic: topic(at), exists: false, subscriptions: Vec::new(), unroutable: None };
            self.seen.insert(topic(at), seen);
        }

        fn next(&self) -> Next {
            plan(&key("f1"), &self.wish, &Claims::of(&self.records), &self.seen, self.clock)
        }

        /// The steps by name with what they are about.
        fn steps(&self) -> Vec<String> {
            let Next::Do(steps) = self.next() else { panic!("{:?}", self.next()) };
            let topics = |topics: &[OwnedTopic]| {
                topics.iter().map(|t| t.topic.to_string()).collect::<Vec<_>>().join(" ")
            };
            let parts =
                |parts: &[Part]| parts.iter().map(|p| p.processor.clone()).collect::<Vec<_>>().join(" ");
            steps
                .iter()
                .map(|step| match step {
                    Step::Ensure(t) => format!("ensure {}", topics(t)),
                    Step::Open(p) => format!("open {}", parts(p)),
                    Step::Close => "close".to_owned(),
                    Step::Withdraw(p) => format!("withdraw {}", parts(p)),
                    Step::Park(q) => format!("park {}", q.iter().map(|q| q.messages).sum::<u64>()),
                    Step::Remove(t) => format!("remove {}", topics(t)),
                    Step::Discard(t) => format!("discard {}", topics(t)),
                    Step::Forget => "forget".to_owned(),
                })
                .collect()
        }
    }

    #[test]
    fn what_is_as_wished_is_left_alone() {
        assert_eq!(Case::new(Want::Running).next(), Next::Settled);
    }

    #[test]
    fn topics_come_before_entries_and_the_record() {
        let mut case = Case::new(Want::Running).without_entries();
        case.records.flows.clear();
        case.gone(INPUT);
        assert_eq!(case.steps(), [format!("ensure {INPUT}"), "open a b".to_owned()]);
        case.see(INPUT, "somebody else's", 0, None, None);
        assert_eq!(case.steps()[0], format!("ensure {INPUT}"), "its own subscription is missing");
        case.see(INPUT, "a", 0, None, None);
        assert_eq!(case.steps(), ["open a b"]);
        case.seen.clear();
        assert_eq!(
            case.steps()[0],
            format!("ensure {INPUT} {ASKED}"),
            "what was not seen is not taken to be there"
        );
    }

    #[test]
    fn a_changed_entry_or_record_is_put_right() {
        let mut case = Case::new(Want::Running);
        case.entry("acme", &part("a", "f1", "flow:tg:elsewhere:acme:f1"));
        assert_eq!(case.steps(), ["open a"]);
        let mut case = Case::new(Want::Running);
        case.records.flows.insert(key("f1"), recorded(Flow::default()));
        assert_eq!(case.steps(), ["open "]);
    }

    #[test]
    fn a_stop_goes_one_stage_per_look() {
        let mut case = Case::new(Want::Gone);
        assert_eq!(case.steps(), ["withdraw a b"]);
        case = case.without_entries();
        assert_eq!(case.steps(), [format!("remove {INPUT} {ASKED}")]);
        case.gone(INPUT);
        assert_eq!(case.steps(), [format!("remove {ASKED}")]);
        case.gone(ASKED);
        assert_eq!(case.steps(), ["forget"]);
    }

    #[test]
    fn where_everything_is_listed_an_unread_flow_is_forgotten_right_after_its_removal() {
        let mut case = Case::new(Want::Gone).without_entries();
        case.clock.is_listed = true;
        assert_eq!(case.steps(), [format!("remove {INPUT} {ASKED}"), "forget".to_owned()]);
        case.see(INPUT, "a", 0, Some(0), None);
        assert_eq!(case.steps(), [format!("remove {INPUT} {ASKED}")], "readers may be there, unseen");
    }

    #[test]
    fn a_flow_that_nobody_reads_goes_in_one_look() {
        let mut case = Case::new(Want::Gone);
        case.clock.is_listed = true;
        let removal = [format!("remove {INPUT} {ASKED}"), "forget".to_owned()];
        assert_eq!(case.steps()[1..], removal);
        for (ready, unsettled, consumers) in
            [(1, Some(0), Some(0)), (0, Some(0), Some(1)), (0, Some(0), None)]
        {
            case.see(INPUT, "a", ready, unsettled, consumers);
            assert_eq!(case.steps(), ["withdraw a b"], "{ready} {unsettled:?} {consumers:?}");
        }
        case.see(INPUT, "a", 0, Some(0), Some(0));
        case.see(ASKED, "b", 0, Some(0), Some(1));
        assert_eq!(case.steps(), ["withdraw a b"], "a call may be under way whose answer needs its topic");
        case.seen.remove(&topic(ASKED));
        assert_eq!(case.steps(), ["withdraw a b"], "who was not looked at may be there");
        case.see(ASKED, "b", 0, Some(0), Some(0));
        let broken = Recorded { version: 1, value: Err("no JSON".to_owned()) };
        case.records.wishes.insert(key("f2"), broken);
        assert_eq!(case.steps(), ["withdraw a b"], "what cannot be read may claim it");
    }

    #[test]
    fn a_record_that_somebody_opened_again_is_closed_first() {
        let mut case = Case::new(Want::Gone);
        case.records.flows.insert(key("f1"), recorded(wish(Want::Running, "f1").public()));
        assert_eq!(case.steps(), ["close"]);
    }

    #[test]
    fn a_drain_waits_for_work_that_somebody_does() {
        let check = |ready, unsettled, consumers, clock, waits: bool| {
            let mut case = Case::new(Want::Gone);
            case.see(INPUT, "a", ready, unsettled, consumers);
            case.clock = clock;
            let next = case.next();
            assert_eq!(
                matches!(next, Next::Draining(_)),
                waits,
                "{ready} {unsettled:?} {consumers:?} {clock:?}: {next:?}"
            );
        };
        let (fresh, steady) =
            (DrainClock::default(), DrainClock { is_steady: true, ..DrainClock::default() });
        let over = DrainClock { is_over: true, ..DrainClock::default() };
        check(0, Some(0), Some(1), fresh, false);
        check(3, Some(0), Some(1), fresh, true);
        check(0, Some(1), Some(1), fresh, true);
        check(3, Some(1), Some(1), over, false);
        check(3, Some(0), Some(0), fresh, false);
        check(3, Some(1), Some(0), fresh, true);
        check(3, None, None, steady, true);
        check(0, None, None, fresh, true);
        check(0, None, None, steady, false);
    }

    #[test]
    fn only_flow_topics_are_drained() {
        let mut case = Case::new(Want::Gone);
        case.see(ASKED, "b", 5, Some(5), Some(1));
        assert_eq!(case.steps(), ["withdraw a b"]);
    }

    #[test]
    fn nothing_is_removed_while_somebody_reads_it() {
        let mut case = Case::new(Want::Gone).without_entries();
        case.see(ASKED, "b", 0, Some(0), Some(2));
        assert_eq!(case.next(), Next::Held(vec![format!("{ASKED} / b")]));
    }

    #[test]
    fn a_queue_that_its_reader_made_again_without_its_topic_is_held_and_then_removed() {
        let mut case = Case::new(Want::Gone).without_entries();
        case.gone(ASKED);
        case.see(INPUT, "a", 0, Some(0), Some(1));
        case.seen.get_mut(&topic(INPUT)).unwrap().exists = false;
        assert_eq!(case.next(), Next::Held(vec![format!("{INPUT} / a")]));
        case.see(INPUT, "a", 0, Some(0), Some(0));
        case.seen.get_mut(&topic(INPUT)).unwrap().exists = false;
        assert_eq!(case.steps(), [format!("remove {INPUT}")]);
    }

    #[test]
    fn only_what_the_next_plan_depends_on_is_looked_at() {
        let needed = |case: &Case| {
            let claims = Claims::of(&case.records);
            let topics = needed(&key("f1"), &case.wish, &claims);
            topics.map(|topic| topic.topic.to_string()).collect::<Vec<_>>()
        };
        let mut case = Case::new(Want::Running);
        assert_eq!(needed(&case), [INPUT, ASKED]);
        case.records.flows.clear();
        assert!(needed(&case).is_empty(), "what was never opened is made anyway");
        let case = Case::new(Want::Gone);
        assert_eq!(needed(&case), [INPUT, ASKED]);
        assert_eq!(needed(&case.without_entries()), [INPUT, ASKED]);
    }

    #[test]
    fn leftovers_are_parked_unless_they_may_be_discarded() {
        let mut case = Case::new(Want::Gone).without_entries();
        case.see(INPUT, "a", 2, Some(1), Some(0));
        assert_eq!(case.steps(), ["park 3"]);
        case.wish.drain = Drain::Discard;
        assert_eq!(case.steps(), [format!("discard {INPUT} {ASKED}")]);
    }

    #[test]
    fn what_a_running_flow_shares_stays_and_two_stopping_ones_take_it_along() {
        let mut case = Case::new(Want::Gone);
        case.add("f2", Want::Running);
        assert_eq!(case.steps(), ["withdraw a"]);
        case.records.entries.remove(&("acme".into(), "a".into(), "f1".into()));
        assert_eq!(case.steps(), [format!("remove {INPUT}")]);
        case.gone(INPUT);
        assert_eq!(case.steps(), ["forget"]);

        let mut case = Case::new(Want::Gone);
        case.add("f2", Want::Gone);
        assert_eq!(case.steps(), ["withdraw a b"]);
        assert_eq!(case.without_entries().steps(), [format!("remove {INPUT} {ASKED}")]);
    }

    #[test]
    fn what_a_foreign_record_or_entry_names_stays() {
        let mut case = Case::new(Want::Gone).without_entries();
        case.entry("other", &part("foreign", "x", INPUT));
        assert_eq!(case.steps(), [format!("remove {ASKED}")]);
        let mut flow = Flow::default();
        flow.interfaces.entry("ask".to_owned()).or_default().insert("request".to_owned(), ASKED.to_owned());
        case.records.flows.insert(FlowKey::new("other", "x"), recorded(flow));
        assert_eq!(case.steps(), ["forget"]);
    }

    #[test]
    fn an_unreadable_record_of_the_workspace_blocks_removal_and_is_named() {
        let broken = || Recorded { version: 1, value: Err("no JSON".to_owned()) };
        let check = |break_it: &dyn Fn(&mut Records), expected: Option<&str>| {
            let mut case = Case::new(Want::Gone).without_entries();
            break_it(&mut case.records);
            match (case.next(), expected) {
                (Next::Blocked(reason), Some(expected)) => assert!(reason.contains(expected), "{reason}"),
                (Next::Do(_), None) => {}
                (next, expected) => panic!("{next:?}, expected {expected:?}"),
            }
        };
        check(
            &|records| _ = records.wishes.insert(key("f2"), Recorded { version: 1, value: Err("x".into()) }),
            Some("wish of flow 'acme/f2'"),
        );
        check(
            &|records| records.ledger = Some(Recorded { version: 1, value: Err("x".into()) }),
            Some("'flow-ledger/head' in workspace '__flows__' cannot be read"),
        );
        check(
            &|records| _ = records.flows.insert(key("f2"), Recorded { version: 1, value: Err("x".into()) }),
            Some("record of flow 'acme/f2'"),
        );
        check(
            &|records| {
                _ = records.entries.insert(
                    ("acme".into(), "p".into(), "v".into()),
                    Recorded { version: 1, value: Err("x".into()) },
                )
            },
            Some("'processor:p/v'"),
        );
        check(
            &|records| {
                _ = records.entries.insert(
                    ("other".into(), "p".into(), "v".into()),
                    Recorded { version: 1, value: Err("x".into()) },
                )
            },
            None,
        );
        let mut case = Case::new(Want::Gone).without_entries();
        case.records.flows.insert(key("f1"), broken());
        assert_eq!(case.steps(), [format!("remove {INPUT} {ASKED}")], "its own record blocks nothing");
    }

    #[test]
    fn a_system_topic_is_never_removed_whatever_a_wish_says() {
        let mut case = Case::new(Want::Gone).without_entries();
        for text in ["request:tg:librarian:acme", "notify:tg:config"] {
            case.wish.topology.topics.push(OwnedTopic { topic: topic(text), subscriptions: Vec::new() });
            case.see(text, "librarian", 0, Some(0), Some(0));
        }
        assert_eq!(case.steps(), [format!("remove {INPUT} {ASKED}")]);
    }

    #[test]
    fn a_queue_that_nothing_reaches_is_made_again() {
        let mut case = Case::new(Want::Running);
        assert_eq!(case.next(), Next::Settled);
        let bind = |case: &mut Case, is_bound| {
            case.seen.get_mut(&topic(INPUT)).unwrap().subscriptions[0].is_bound = is_bound;
        };
        bind(&mut case, Some(false));
        assert_eq!(case.steps(), [format!("ensure {INPUT}")]);
        assert_eq!(missing(&case.wish, &case.seen).collect::<Vec<_>>(), [&topic(INPUT)]);
        bind(&mut case, Some(true));
        assert_eq!(case.next(), Next::Settled);
    }

    #[test]
    fn a_flow_goes_with_its_workspace_and_nothing_is_kept() {
        let mut case = Case::new(Want::Running);
        case.records.workspaces.clear();
        case.see(INPUT, "a", 9, Some(0), Some(1));
        assert_eq!(case.steps(), ["close"]);
        case.records.flows.clear();
        assert_eq!(case.steps(), ["withdraw a b"]);
    }
}
