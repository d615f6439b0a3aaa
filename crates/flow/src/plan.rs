//! What may be done next about a flow, given what is recorded and what was just seen. Pure: no clock, no broker.
//!
//! A plan is safe to repeat and safe to lose. Going up, topics come before entries and the record. Going down, each stage
//! is taken only after a look has shown that the one before is over: doors closed, drained, entries out, consumers gone,
//! leftovers parked, topics gone, then the record.

use std::collections::{BTreeMap, BTreeSet};

use sluice_bus::{Seen, SeenSubscription};
use sluice_schema::{Class, Topic, system};

use crate::blueprint::{OwnedTopic, Part, Topology};
use crate::memory::{Drain, FlowKey, Records, Want, Wish};

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
    Park(Vec<(Topic, String)>),
    /// Remove topics with all that is bound to them.
    Remove(Vec<OwnedTopic>),
    /// Delete record, wish and report.
    Forget,
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
}

/// Topics as they were seen in this look.
pub type Sight = BTreeMap<Topic, Seen>;

/// Plans one flow. `seen` must cover the topics of its wish.
#[must_use]
pub fn plan(key: &FlowKey, wish: &Wish, records: &Records, seen: &Sight, clock: DrainClock) -> Next {
    match wanted(key, wish, records) {
        Want::Running => up(key, wish, records, seen),
        Want::Gone => down(key, wish, records, seen, clock),
    }
}

/// What should become of a flow: it goes with its workspace.
#[must_use]
pub fn wanted(key: &FlowKey, wish: &Wish, records: &Records) -> Want {
    if records.workspaces.contains_key(&key.workspace) { wish.want } else { Want::Gone }
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
        && topic
            .subscriptions
            .iter()
            .all(|name| seen.subscriptions.iter().any(|s| s.exists && s.name == *name))
}

fn is_written(key: &FlowKey, part: &Part, records: &Records) -> bool {
    let at = (key.workspace.clone(), part.processor.as_str().into(), part.variant.as_str().into());
    let entry = records.entries.get(&at).and_then(|r| r.value.as_ref().ok());
    entry.is_some_and(|entry| **entry == part.entry)
}

fn down(key: &FlowKey, wish: &Wish, records: &Records, seen: &Sight, clock: DrainClock) -> Next {
    let discard = wish.drain == Drain::Discard || !records.workspaces.contains_key(&key.workspace);
    let others = Others { key, records };
    let parts: Vec<_> = others.parts_of(wish).filter(|part| others.has_entry(part)).cloned().collect();
    let topics = others.unclaimed(&wish.topology);
    let record = records.flows.get(key);
    let is_open = record.is_some_and(|r| r.value.as_ref().is_ok_and(|flow| flow.is_routable()));
    if is_open {
        return Next::Do(vec![Step::Close]);
    }
    let queues =
        || topics.iter().filter(|t| t.topic.class() == Class::Flow).flat_map(|t| subscriptions(t, seen));
    if !parts.is_empty() {
        let left: Vec<_> =
            queues().filter(|(_, s)| is_worked_on(s, clock)).map(|(t, s)| left(t, s)).collect();
        if !(discard || clock.is_over || left.is_empty()) {
            return Next::Draining(left);
        }
        return Next::Do(vec![Step::Withdraw(parts)]);
    }
    let all = || topics.iter().flat_map(|t| subscriptions(t, seen));
    let holders: Vec<_> =
        all().filter(|(_, s)| s.consumers.unwrap_or(0) > 0).map(|(t, s)| queue(t, s)).collect();
    if !holders.is_empty() {
        return Next::Held(holders);
    }
    if let Some(reason) = others.unreadable() {
        return Next::Blocked(reason);
    }
    let full: Vec<_> =
        queues().filter(|(_, s)| !s.is_drained()).map(|(t, s)| (t.clone(), s.name.clone())).collect();
    if !full.is_empty() && !discard {
        return Next::Do(vec![Step::Park(full)]);
    }
    let there: Vec<_> = topics.into_iter().filter(|t| seen.get(&t.topic).is_none_or(|s| s.exists)).collect();
    if !there.is_empty() {
        return Next::Do(vec![Step::Remove(there)]);
    }
    Next::Do(vec![Step::Forget])
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
    let seen = seen.get(&topic.topic).filter(|seen| seen.exists);
    seen.into_iter()
        .flat_map(|seen| seen.subscriptions.iter().filter(|s| s.exists).map(move |s| (&seen.topic, s)))
}

pub(crate) fn left(topic: &Topic, seen: &SeenSubscription) -> QueueLeft {
    QueueLeft { queue: queue(topic, seen), ready: seen.ready, unsettled: seen.unsettled }
}

fn queue(topic: &Topic, seen: &SeenSubscription) -> String {
    format!("{topic} / {}", seen.name)
}

/// The topics of an ended run that nobody names any more; none while a record of the workspace cannot be read.
#[must_use]
pub fn unclaimed(key: &FlowKey, topology: &Topology, records: &Records) -> Vec<OwnedTopic> {
    let others = Others { key, records };
    if others.unreadable().is_some() { Vec::new() } else { others.unclaimed(topology) }
}

/// What everybody but one stopping flow lays claim to. Flows that are stopping themselves claim nothing any more.
struct Others<'a> {
    key: &'a FlowKey,
    records: &'a Records,
}

impl<'a> Others<'a> {
    fn running(&self) -> impl Iterator<Item = (&'a FlowKey, &'a Wish)> + use<'a> {
        let (own, records) = (self.key, self.records);
        let wishes = records.wishes.iter().filter(move |(key, _)| *key != own);
        wishes
            .filter_map(|(key, recorded)| recorded.value.as_deref().ok().map(|wish| (key, wish)))
            .filter(move |(key, wish)| wanted(key, wish, records) == Want::Running)
    }

    /// The parts of a wish that go with it.
    fn parts_of(&self, wish: &'a Wish) -> impl Iterator<Item = &'a Part> + use<'a> {
        let workspace = &self.key.workspace;
        let claimed: BTreeSet<(&str, &str)> = self
            .running()
            .filter(|(key, _)| key.workspace == *workspace)
            .flat_map(|(_, wish)| {
                wish.topology.parts.iter().map(|p| (p.processor.as_str(), p.variant.as_str()))
            })
            .collect();
        let parts = wish.topology.parts.iter();
        parts.filter(move |part| !claimed.contains(&(part.processor.as_str(), part.variant.as_str())))
    }

    fn has_entry(&self, part: &Part) -> bool {
        let at = (self.key.workspace.clone(), part.processor.as_str().into(), part.variant.as_str().into());
        self.records.entries.contains_key(&at)
    }

    /// The topics that go with a flow: nobody else names them, and they are no system service's.
    fn unclaimed(&self, topology: &Topology) -> Vec<OwnedTopic> {
        let mut own: BTreeMap<&str, &OwnedTopic> =
            topology.topics.iter().map(|topic| (topic.topic.as_str(), topic)).collect();
        own.retain(|_, topic| !system::is_system(&topic.topic));
        for (_, wish) in self.running() {
            for topic in &wish.topology.topics {
                own.remove(topic.topic.as_str());
            }
        }
        let stopping = self.stopping();
        for (key, recorded) in &self.records.flows {
            if let Ok(flow) = &recorded.value
                && !stopping.contains_key(key)
            {
                for topic in flow.interfaces.values().flat_map(|roles| roles.values()) {
                    own.remove(topic.as_str());
                }
            }
        }
        let withdrawn: BTreeSet<(&str, &str, &str)> = stopping
            .iter()
            .flat_map(|(key, wish)| {
                let parts = wish.topology.parts.iter();
                parts.map(move |p| (&*key.workspace, p.processor.as_str(), p.variant.as_str()))
            })
            .collect();
        for ((workspace, processor, variant), recorded) in &self.records.entries {
            if let Ok(entry) = &recorded.value
                && !withdrawn.contains(&(&**workspace, &**processor, &**variant))
            {
                for topic in entry.topics.values() {
                    own.remove(topic.as_str());
                }
            }
        }
        own.into_values().cloned().collect()
    }

    fn stopping(&self) -> BTreeMap<&'a FlowKey, &'a Wish> {
        let wishes = self.records.wishes.iter();
        wishes
            .filter_map(|(key, recorded)| recorded.value.as_deref().ok().map(|wish| (key, wish)))
            .filter(|(key, wish)| wanted(key, wish, self.records) == Want::Gone)
            .collect()
    }

    /// A record that cannot be read may claim any topic of its workspace. It can claim none of another: doors see to that.
    fn unreadable(&self) -> Option<String> {
        let workspace = &self.key.workspace;
        let wishes = self.records.wishes.iter().filter(|(key, _)| key.workspace == *workspace);
        let wishes = wishes
            .filter_map(|(key, r)| r.value.as_ref().err().map(|e| (format!("the wish of flow '{key}'"), e)));
        let flows =
            self.records.flows.iter().filter(|(key, _)| key.workspace == *workspace && *key != self.key);
        let flows = flows.filter_map(|(key, r)| {
            r.value.as_ref().err().map(|e| (format!("the record of flow '{key}'"), e))
        });
        let entries = self.records.entries.iter().filter(|((at, _, _), _)| at == workspace);
        let entries = entries.filter_map(|((_, processor, variant), r)| {
            r.value.as_ref().err().map(|e| (format!("the config value 'processor:{processor}/{variant}'"), e))
        });
        wishes.chain(flows).chain(entries).next().map(|(what, error)| {
            format!(
                "{what} in workspace '{workspace}' cannot be read ({error}) and may name any topic, so no topic is removed; repair or delete it"
            )
        })
    }
}
