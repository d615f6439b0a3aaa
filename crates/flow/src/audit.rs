//! What is looked at although nobody asked, once per interval: whether running flows are still whole, whether anything of
//! an ended run came back, and what is there that nobody has on record.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sluice_bus::{ErrorKind, Seen};
use sluice_schema::{Topic, record, system};
use sluice_sdk::Apply;
use tokio::time::Instant;

use crate::act::Error;
use crate::blueprint::{OwnedTopic, Topology};
use crate::claims::Claims;
use crate::memory::{FlowKey, Named, RUNS, Records, expect, own_key, own_value, scoped_key, unchanged};
use crate::plan::{self, Next, Sight};
use crate::reconcile::Rounds;

/// Audits in which nothing of an ended run may reappear before its names are forgotten.
const CLEAN_AUDITS: u32 = 10;
/// How long readers of an ended run have to leave once they were told again; 2.11 takes well under a second.
const RECALL_PAUSE: Duration = Duration::from_secs(2);
/// Names that nobody has on record and that were told; beyond that none are told.
const STRANGERS_TOLD_MAX: usize = 1_000;

/// Listing everything takes at most one part in so many of the time: with tens of thousands of queues it takes seconds.
const SHARE: u32 = 5;

/// What is remembered from one audit to the next.
pub(crate) struct Audit {
    /// Audits in a row that found nothing of ended runs, since their row had this version.
    clean: BTreeMap<FlowKey, (i64, u32)>,
    /// Ended runs whose readers were told again since anything of them was last found gone.
    recalled: BTreeSet<FlowKey>,
    strangers: BTreeSet<Topic>,
    /// The broker listed everything the last time.
    pub(crate) is_listing: bool,
    pub(crate) begun: Option<Instant>,
    /// No audit begins before this.
    pub(crate) not_before: Instant,
}

impl Audit {
    pub(crate) fn new() -> Self {
        Self {
            clean: BTreeMap::new(),
            recalled: BTreeSet::new(),
            strangers: BTreeSet::new(),
            is_listing: false,
            begun: None,
            not_before: Instant::now(),
        }
    }
}

impl Rounds {
    /// Draws the conclusions from a listing of everything, or from its failure.
    pub(crate) async fn end_audit(&mut self, listed: sluice_bus::Result<Vec<Seen>>) {
        self.auditing = None;
        if let Some(begun) = self.audit.begun.take() {
            let now = Instant::now();
            self.audit.not_before = now + (now - begun) * SHARE;
        }
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
        self.audit.is_listing = listed.is_some();
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
        let claims = Claims::of(records);
        for (key, tended) in self.flows.iter_mut().filter(|(_, tended)| tended.is_settled) {
            let is_whole =
                |seen| plan::plan(key, &tended.wish, &claims, seen, Default::default()) == Next::Settled;
            if listed.is_some_and(is_whole) {
                continue;
            }
            // A look at one topic may show less than the listing did. Where there is no listing, no look shows what a queue is
            // bound to, and making what is there changes nothing.
            let wish = tended.wish.clone();
            match listed {
                Some(listed) => tended.doubt(plan::missing(&wish, listed).cloned(), now),
                None => tended.doubt(wish.topology.topics.iter().map(|owned| owned.topic.clone()), now),
            }
            (tended.is_settled, tended.is_routine, tended.due) = (false, true, now);
        }
    }

    /// Removes what reappeared under the names of ended runs, where nobody lays claim to it.
    async fn sweep(&mut self, records: &Records, listed: Option<&Sight>) -> Result<(), Error> {
        let claims = Claims::of(records);
        let ended: Vec<_> = records
            .runs
            .iter()
            .filter_map(|(key, recorded)| Some((key, recorded, recorded.value.as_deref().ok()?)))
            .filter(|(_, _, row)| !row.ended.topics.is_empty())
            .map(|(key, recorded, row)| (key, recorded, row, ended(key, row, &claims)))
            .collect();
        let looked;
        let seen = match listed {
            Some(listed) => listed,
            None => {
                looked = self.look(ended.iter().flat_map(|(_, _, _, topics)| topics)).await?;
                &looked
            }
        };
        // A listing may be older than the end of a run, and its counts of readers are.
        let is_back = |topic: &&OwnedTopic, seen: &Sight| seen.get(&topic.topic).is_some_and(plan::is_there);
        let listed = ended.iter().flat_map(|(_, _, _, topics)| topics).filter(|topic| is_back(topic, seen));
        let seen = &self.look(listed).await?;
        for (key, recorded, row, topics) in &ended {
            let back: Vec<_> = topics.iter().filter(|topic| is_back(topic, seen)).cloned().collect();
            if !back.is_empty() {
                self.audit.clean.remove(*key);
                self.evict(key, &back, records, seen).await;
                continue;
            }
            self.audit.recalled.remove(*key);
            let (version, clean) = self.audit.clean.entry((*key).clone()).or_default();
            if std::mem::replace(version, recorded.version) != recorded.version {
                *clean = 0;
            }
            *clean += 1;
            if *clean < CLEAN_AUDITS {
                continue;
            }
            let forgotten = Named { ended: Topology::default(), ..(*row).clone() };
            let write = Apply {
                expect: vec![unchanged(own_key(RUNS, key), Some(recorded))],
                puts: vec![own_value(RUNS, key, &forgotten)],
                quiet: true,
                essential: true,
                ..Apply::default()
            };
            self.audit.clean.remove(*key);
            if let Err(error) = self.hands.apply("swept names", write).await {
                tracing::debug!(flow = %key, %error, "swept names stay on record");
            }
        }
        Ok(())
    }

    /// Removes what came back of an ended run. Who reads it again has missed that the run is over, and would make again what
    /// is removed: it is told once more first, and has until the next audit, which comes soon.
    async fn evict(&mut self, key: &FlowKey, back: &[OwnedTopic], records: &Records, seen: &Sight) {
        let names: Vec<_> = back.iter().map(|topic| topic.topic.to_string()).collect();
        let topics = names.join(", ");
        let all = back.iter().filter_map(|topic| seen.get(&topic.topic)).flat_map(|seen| &seen.subscriptions);
        let readers: Vec<&str> =
            all.filter(|s| s.consumers.is_some_and(|count| count > 0)).map(|s| s.name.as_str()).collect();
        if !readers.is_empty() && self.audit.recalled.insert(key.clone()) {
            tracing::warn!(flow = %key, topics, readers = readers.join(", "), "topics of an ended run came back with readers, which are told again that it is over");
            let told = self.hands.apply("recall of readers", recall(&key.workspace, &readers, records)).await;
            if let Err(error) = told {
                tracing::warn!(flow = %key, %error, "the readers could not be told");
            }
            self.audit_soon(RECALL_PAUSE);
            return;
        }
        tracing::warn!(flow = %key, topics, "topics of an ended run came back and are removed");
        if let Err(error) = self.hands.remove(back).await
            && !error.is_over()
        {
            tracing::warn!(flow = %key, %error, "what came back of an ended run could not be removed; trying again at the next audit");
        }
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

/// A write that changes nothing but tells processors to look at their entries again: of each reader the entry that it had,
/// deleted once more where it is not there.
fn recall(workspace: &str, readers: &[&str], records: &Records) -> Apply {
    let mut write = Apply::default();
    let mark = format!("--{workspace}--");
    let entries: BTreeSet<(&str, &str)> = readers
        .iter()
        .filter_map(|reader| {
            let (processor, rest) = reader.split_once(&mark)?;
            Some((processor, rest.rsplit_once("--")?.0))
        })
        .collect();
    for (processor, variant) in entries {
        if records.entries.contains_key(&(workspace.into(), processor.into(), variant.into())) {
            continue;
        }
        let at = scoped_key(workspace, &format!("{}{processor}", record::PROCESSOR_PREFIX), variant);
        write.expect.push(expect(at.clone(), 0));
        write.deletes.push(at);
    }
    write
}

/// The topics of ended runs of a flow that neither its present run nor anybody else names.
fn ended(key: &FlowKey, row: &Named, claims: &Claims<'_>) -> Vec<OwnedTopic> {
    let own = match claims.records().wishes.get(key).map(|recorded| &recorded.value) {
        None => None,
        Some(Ok(wish)) => Some(wish),
        // It may name anything.
        Some(Err(_)) => return Vec::new(),
    };
    let own: BTreeSet<&Topic> =
        own.iter().flat_map(|wish| &wish.topology.topics).map(|topic| &topic.topic).collect();
    let mut topics = plan::unclaimed(key, &row.ended, claims);
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
        plan::is_there(seen)
            && topic.space() == "tg"
            && !system::is_system(topic)
            && !named.contains(topic.as_str())
    })
    .collect()
}
