//! Who lays claim to what, found out once for all plans of a look: with many flows the records are long, and each plan
//! would else read all of them.

use std::collections::{BTreeMap, HashSet};
use std::sync::OnceLock;

use sluice_schema::{record, system};

use crate::blueprint::{OwnedTopic, Part, Topology};
use crate::memory::{FlowKey, LEDGER, ONLY, Records, Want, Wish};
use crate::plan::wanted;

/// The records, and what they lay claim to.
pub struct Claims<'a> {
    records: &'a Records,
    found: OnceLock<Found<'a>>,
}

/// What somebody names who is not stopping.
struct Found<'a> {
    topics: HashSet<&'a str>,
    /// Workspace, processor, variant: entries that a running flow has.
    parts: HashSet<(&'a str, &'a str, &'a str)>,
    unreadable: Vec<Unreadable<'a>>,
}

/// A record that may claim any topic of its workspace. It can claim none of another: doors see to that.
struct Unreadable<'a> {
    workspace: &'a str,
    /// Whose public record it is.
    flow: Option<&'a FlowKey>,
    what: String,
    reason: &'a str,
}

impl<'a> Claims<'a> {
    /// The claims of these records, found out when they are first asked for.
    #[must_use]
    pub fn of(records: &'a Records) -> Self {
        Self { records, found: OnceLock::new() }
    }

    /// The records.
    #[must_use]
    pub fn records(&self) -> &'a Records {
        self.records
    }

    /// The parts of a stopping flow that go with it.
    pub(crate) fn parts_of<'w>(&self, key: &FlowKey, wish: &'w Wish) -> impl Iterator<Item = &'w Part> {
        let claimed = &self.found().parts;
        let is_claimed =
            move |part: &Part| claimed.contains(&(&*key.workspace, &*part.processor, &*part.variant));
        wish.topology.parts.iter().filter(move |part| !is_claimed(part))
    }

    /// Those of them that have entries still.
    pub(crate) fn entries_of<'w>(&self, key: &FlowKey, wish: &'w Wish) -> impl Iterator<Item = &'w Part> {
        let entries = &self.records.entries;
        self.parts_of(key, wish).filter(move |part| {
            let at = (key.workspace.clone(), part.processor.as_str().into(), part.variant.as_str().into());
            entries.contains_key(&at)
        })
    }

    /// The topics that go with a flow: nobody else names them, and they are no system service's. Of a running flow none.
    pub(crate) fn unclaimed(&self, topology: &Topology) -> Vec<OwnedTopic> {
        let claimed = &self.found().topics;
        let mut own: BTreeMap<&str, &OwnedTopic> =
            topology.topics.iter().map(|topic| (topic.topic.as_str(), topic)).collect();
        own.retain(|name, topic| !system::is_system(&topic.topic) && !claimed.contains(name));
        own.into_values().cloned().collect()
    }

    /// Why no topic of a flow's workspace may be removed, if some record cannot be read. Its own public record does not
    /// count: its wish says what is its.
    pub(crate) fn unreadable(&self, key: &FlowKey) -> Option<String> {
        if let Some(Err(error)) = self.records.ledger.as_ref().map(|recorded| &recorded.value) {
            return Some(format!(
                "the config value '{LEDGER}/{ONLY}' in workspace '{}' cannot be read ({error}), so nothing is decided and no topic is removed; repair or delete it",
                record::FLOWS
            ));
        }
        let workspace = &*key.workspace;
        let counts = |one: &&Unreadable<'_>| one.workspace == workspace && one.flow != Some(key);
        self.found().unreadable.iter().find(counts).map(|one| {
            format!(
                "{} in workspace '{workspace}' cannot be read ({}) and may name any topic, so no topic is removed; repair or delete it",
                one.what, one.reason
            )
        })
    }

    fn found(&self) -> &Found<'a> {
        self.found.get_or_init(|| Found::of(self.records))
    }
}

impl<'a> Found<'a> {
    fn of(records: &'a Records) -> Self {
        let mut found = Self { topics: HashSet::new(), parts: HashSet::new(), unreadable: Vec::new() };
        let mut withdrawn = HashSet::new();
        let mut stopping = HashSet::new();
        for (key, recorded) in &records.wishes {
            let workspace = &*key.workspace;
            let wish = match &recorded.value {
                Ok(wish) => &**wish,
                Err(reason) => {
                    found.cannot_read(workspace, None, format!("the wish of flow '{key}'"), reason);
                    continue;
                }
            };
            let parts = wish.topology.parts.iter().map(|p| (workspace, &*p.processor, &*p.variant));
            if wanted(key, wish, records) == Want::Running {
                found.parts.extend(parts);
                found.topics.extend(wish.topology.topics.iter().map(|topic| topic.topic.as_str()));
            } else {
                stopping.insert(key);
                withdrawn.extend(parts);
            }
        }
        for (key, recorded) in &records.flows {
            match &recorded.value {
                // A flow that is stopping claims nothing any more.
                Ok(_) if stopping.contains(key) => {}
                Ok(flow) => {
                    let topics = flow.interfaces.values().flat_map(|roles| roles.values());
                    found.topics.extend(topics.map(String::as_str));
                }
                Err(reason) => {
                    let what = format!("the record of flow '{key}'");
                    found.cannot_read(&key.workspace, Some(key), what, reason);
                }
            }
        }
        for ((workspace, processor, variant), recorded) in &records.entries {
            match &recorded.value {
                Ok(_) if withdrawn.contains(&(&**workspace, &**processor, &**variant)) => {}
                Ok(entry) => found.topics.extend(entry.topics.values().map(String::as_str)),
                Err(reason) => {
                    let what = format!("the config value 'processor:{processor}/{variant}'");
                    found.cannot_read(workspace, None, what, reason);
                }
            }
        }
        found
    }

    fn cannot_read(&mut self, workspace: &'a str, flow: Option<&'a FlowKey>, what: String, reason: &'a str) {
        self.unreadable.push(Unreadable { workspace, flow, what, reason });
    }
}
