//! What is looked at although nobody asked, once per interval: whether running flows are still whole, whether anything of
//! an ended run came back, and what is there that nobody has on record.

use std::collections::{BTreeMap, BTreeSet};

use sluice_bus::{ErrorKind, Seen};
use sluice_schema::{Topic, system};
use sluice_sdk::Apply;
use tokio::time::Instant;

use crate::act::Error;
use crate::blueprint::{OwnedTopic, Topology};
use crate::memory::{FlowKey, Named, RUNS, Records, own_key, own_value, unchanged};
use crate::plan::{self, Next, Sight};
use crate::reconcile::Rounds;

/// Audits in which nothing of an ended run may reappear before its names are forgotten.
const CLEAN_AUDITS: u32 = 2;
/// Names that nobody has on record and that were told; beyond that none are told.
const STRANGERS_TOLD_MAX: usize = 1_000;

/// What is remembered from one audit to the next.
#[derive(Default)]
pub(crate) struct Audit {
    /// Audits in a row that found nothing of an ended run.
    clean: BTreeMap<FlowKey, u32>,
    strangers: BTreeSet<Topic>,
}

impl Rounds {
    /// Draws the conclusions from a listing of everything, or from its failure.
    pub(crate) async fn end_audit(&mut self, listed: sluice_bus::Result<Vec<Seen>>) {
        self.auditing = None;
        let records = match self.shared.mirror.refresh().await {
            Ok(records) => records,
            Err(error) => return tracing::warn!(%error, "an audit found no records and is put off"),
        };
        Self::tell_unreadable(&records);
        let listed = match listed {
            Ok(seen) => Some(seen.into_iter().map(|seen| (seen.topic.clone(), seen)).collect::<Sight>()),
            Err(sluice_bus::Error::HoldLost { .. }) => return,
            // It cannot list at all: then each flow is looked at by itself.
            Err(error) if error.kind() == ErrorKind::Refused => None,
            Err(error) => {
                tracing::warn!(%error, "the broker could not list its topics");
                None
            }
        };
        self.recheck(&records, listed.as_ref());
        if let Err(error) = self.sweep(&records, listed.as_ref()).await
            && !error.is_over()
        {
            tracing::warn!(%error, "what came back of ended runs could not be removed; trying again at the next audit");
        }
        self.tell_strangers(&records, listed.as_ref());
    }

    /// Flows of which something seems to be missing are looked at again, one by one.
    fn recheck(&mut self, records: &Records, listed: Option<&Sight>) {
        let now = Instant::now();
        for (key, tended) in self.flows.iter_mut().filter(|(_, tended)| tended.is_settled) {
            let is_whole =
                |seen| plan::plan(key, &tended.wish, records, seen, Default::default()) == Next::Settled;
            if !listed.is_some_and(is_whole) {
                (tended.is_settled, tended.is_routine, tended.due) = (false, true, now);
            }
        }
    }

    /// Removes what reappeared under the names of ended runs, where nobody lays claim to it.
    async fn sweep(&mut self, records: &Records, listed: Option<&Sight>) -> Result<(), Error> {
        let ended: Vec<_> = records
            .runs
            .iter()
            .filter_map(|(key, recorded)| Some((key, recorded, recorded.value.as_deref().ok()?)))
            .filter(|(_, _, row)| !row.ended.topics.is_empty())
            .map(|(key, recorded, row)| (key, recorded, row, ended(key, row, records)))
            .collect();
        let looked;
        let seen = match listed {
            Some(listed) => listed,
            None => {
                looked = self.look(ended.iter().flat_map(|(_, _, _, topics)| topics)).await?;
                &looked
            }
        };
        for (key, recorded, row, topics) in &ended {
            let is_back = |topic: &&OwnedTopic| seen.get(&topic.topic).is_some_and(|s| s.exists);
            let back: Vec<_> = topics.iter().filter(is_back).cloned().collect();
            let clean = self.audit.clean.entry((*key).clone()).or_default();
            if !back.is_empty() {
                *clean = 0;
                let names: Vec<_> = back.iter().map(|topic| topic.topic.to_string()).collect();
                tracing::warn!(flow = %key, topics = names.join(", "), "topics of an ended run came back and are removed");
                self.hands.remove(&back).await?;
                continue;
            }
            *clean += 1;
            if *clean < CLEAN_AUDITS {
                continue;
            }
            let forgotten = Named { last: row.last, ended: Topology::default() };
            let write = Apply {
                expect: vec![unchanged(own_key(RUNS, key), Some(recorded))],
                puts: vec![own_value(RUNS, key, &forgotten)],
                quiet: true,
                ..Apply::default()
            };
            self.audit.clean.remove(*key);
            if let Err(error) = self.hands.apply("swept names", write).await {
                tracing::debug!(flow = %key, %error, "swept names stay on record");
            }
        }
        Ok(())
    }

    /// Tells once of each topic that nobody has on record. It is never removed.
    fn tell_strangers(&mut self, records: &Records, listed: Option<&Sight>) {
        let Some(listed) = listed else { return };
        for seen in strangers(listed.values(), records) {
            let told = &mut self.audit.strangers;
            if told.len() < STRANGERS_TOLD_MAX && told.insert(seen.topic.clone()) {
                tracing::warn!(topic = %seen.topic, "the broker has a topic under our names that no flow has on record; it stays, see `sluice doctor`");
            }
        }
    }
}

/// The topics of the last ended run of a flow that neither its present run nor anybody else names.
fn ended(key: &FlowKey, row: &Named, records: &Records) -> Vec<OwnedTopic> {
    let own = match records.wishes.get(key).map(|recorded| &recorded.value) {
        None => None,
        Some(Ok(wish)) => Some(wish),
        // It may name anything.
        Some(Err(_)) => return Vec::new(),
    };
    let own: BTreeSet<&Topic> =
        own.iter().flat_map(|wish| &wish.topology.topics).map(|topic| &topic.topic).collect();
    let mut topics = plan::unclaimed(key, &row.ended, records);
    topics.retain(|topic| !own.contains(&topic.topic));
    topics
}

/// Topics under our names that are there although no wish, record, entry, ended run or system service names them.
pub(crate) fn strangers<'a>(seen: impl Iterator<Item = &'a Seen>, records: &Records) -> Vec<&'a Seen> {
    let mut named: BTreeSet<&str> = BTreeSet::new();
    let wishes = records.wishes.values().filter_map(|recorded| recorded.value.as_deref().ok());
    named.extend(wishes.flat_map(|wish| &wish.topology.topics).map(|topic| topic.topic.as_str()));
    let rows = records.runs.values().filter_map(|recorded| recorded.value.as_deref().ok());
    named.extend(rows.flat_map(|row| &row.ended.topics).map(|topic| topic.topic.as_str()));
    let flows = records.flows.values().filter_map(|recorded| recorded.value.as_deref().ok());
    named.extend(
        flows.flat_map(|flow| flow.interfaces.values()).flat_map(|roles| roles.values()).map(String::as_str),
    );
    let entries = records.entries.values().filter_map(|recorded| recorded.value.as_deref().ok());
    named.extend(entries.flat_map(|entry| entry.topics.values()).map(String::as_str));
    seen.filter(|seen| {
        let topic = &seen.topic;
        seen.exists && topic.space() == "tg" && !system::is_system(topic) && !named.contains(topic.as_str())
    })
    .collect()
}
