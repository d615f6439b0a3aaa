//! What a person should know of the flows of a workspace and what they run on. Pure: it draws conclusions from what was
//! looked at, and what it names is never removed for it.
//!
//! **Invariant: findings stay behind the walls.** What concerns a workspace is told there only; what concerns none is told
//! to all.

use std::collections::{BTreeMap, BTreeSet};

use sluice_bus::{PoisonBound, Seen, Severity};
use sluice_schema::message::Finding;
use sluice_schema::{Class, Topic, WorkspaceId, doors, record, system, wire};

use crate::audit::strangers;
use crate::board::Board;
use crate::lead::Leader;
use crate::memory::{FlowKey, LEDGER, ONLY, Records, Want};
use crate::plan::Sight;
use crate::texts::Text;
use crate::view;

/// What was looked at. A part that could not be seen says why.
pub(crate) struct Looked<'a> {
    pub(crate) workspace: &'a WorkspaceId,
    pub(crate) records: &'a Records,
    pub(crate) board: &'a Board,
    pub(crate) leader: Option<Leader>,
    /// The topics of the workspace's flows.
    pub(crate) seen: Result<Sight, String>,
    /// Everything that the broker lists.
    pub(crate) listed: Result<Vec<Seen>, String>,
    pub(crate) broker: Result<Vec<sluice_bus::Finding>, String>,
    /// `None` while nobody is there to take what would come.
    pub(crate) poison: Option<PoisonBound>,
}

/// Everything worth telling, worst first.
pub(crate) fn findings(looked: &Looked<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    leadership(looked, &mut found);
    unreadable(looked, &mut found);
    flows(looked, &mut found);
    match &looked.seen {
        Ok(seen) => drift(looked, seen, &mut found),
        Err(why) => found.push(unseen("the topics of the flows", why)),
    }
    unknown(looked, &mut found);
    broker(looked, &mut found);
    found.sort_by_key(|(severity, _)| *severity);
    found
        .into_iter()
        .map(|(severity, finding)| Finding { severity: severity.name().to_owned(), ..finding })
        .collect()
}

/// As many findings as there is room for, the worst of them; the last one says how many were left out.
pub(crate) fn within(mut findings: Vec<Finding>, bytes_max: usize) -> Vec<Finding> {
    let mut bytes = 0;
    let fit = findings.iter().take_while(|finding| {
        bytes += wire::encode(finding).len() + 1;
        bytes <= bytes_max
    });
    let fit = fit.count();
    let left_out = findings.len() - fit;
    if left_out > 0 {
        findings.truncate(fit);
        let text = format!("{left_out} more findings do not fit one answer");
        let (severity, more) =
            finding(Severity::Warning, "findings-left-out", text, "mend those above first, then ask again");
        findings.push(Finding { severity: severity.name().to_owned(), ..more });
    }
    findings
}

type Found = (Severity, Finding);

fn finding(severity: Severity, code: &str, text: String, next: impl Into<String>) -> Found {
    (severity, Finding { code: code.to_owned(), text, next: next.into(), ..Finding::default() })
}

fn about(mut found: Found, flow: &str, topic: Option<&Topic>, subscription: &str) -> Found {
    flow.clone_into(&mut found.1.flow);
    found.1.topic = topic.map(ToString::to_string).unwrap_or_default();
    subscription.clone_into(&mut found.1.subscription);
    found
}

fn unseen(what: &str, why: &str) -> Found {
    let text = format!("{what} could not be looked at: {why}");
    finding(
        Severity::Error,
        "broker-not-seen",
        text,
        "check that the broker runs and answers, then ask again",
    )
}

fn leadership(looked: &Looked<'_>, found: &mut Vec<Found>) {
    if looked.board.leads() {
        return;
    }
    found.push(match &looked.leader {
        Some(leader) => finding(
            Severity::Info,
            "stands-by",
            format!(
                "the flow service that answers stands by; process {} on host '{}' acts (leader number {})",
                leader.pid, leader.host, leader.epoch
            ),
            "nothing: it takes over when the other one ends",
        ),
        None => finding(
            Severity::Error,
            "nobody-leads",
            "no flow service acts: nothing is started or stopped".to_owned(),
            "wait some seconds; if it stays so, read the log of the flow service",
        ),
    });
}

fn unreadable(looked: &Looked<'_>, found: &mut Vec<Found>) {
    let mut tell = |what: String, reason: &str, effect: &str| {
        let text = format!("{what} cannot be read ({reason}): {effect}");
        found.push(finding(Severity::Error, "unreadable-record", text, "repair or delete it"));
    };
    let records = looked.records;
    if let Some(Err(reason)) = records.ledger.as_ref().map(|recorded| &recorded.value) {
        let what = format!("config value '{LEDGER}/{ONLY}' in workspace '{}'", record::FLOWS);
        tell(what, reason, "nothing is decided and no topic is removed");
    }
    let own = looked.workspace.as_str();
    let blocks = "no topic of this workspace is removed meanwhile";
    let keyed = |kind: &'static str| move |key: &FlowKey| format!("config value '{kind}/{key}'");
    for (key, recorded) in records.wishes.iter().filter(|(key, _)| *key.workspace == *own) {
        if let Err(reason) = &recorded.value {
            tell(keyed("flow-wish")(key), reason, blocks);
        }
    }
    for (key, recorded) in records.flows.iter().filter(|(key, _)| *key.workspace == *own) {
        if let Err(reason) = &recorded.value {
            tell(format!("config value 'flow/{}'", key.id), reason, blocks);
        }
    }
    for ((workspace, processor, variant), recorded) in &records.entries {
        if let Err(reason) = &recorded.value
            && **workspace == *own
        {
            tell(format!("config value 'processor:{processor}/{variant}'"), reason, blocks);
        }
    }
    for (kind, rows) in [("flow-runs", &records.runs), ("flow-shared", &records.shared)] {
        for (key, recorded) in rows.iter().filter(|(key, _)| *key.workspace == *own) {
            if let Err(reason) = &recorded.value {
                tell(keyed(kind)(key), reason, "nothing is started under this name");
            }
        }
    }
    let types =
        [(record::BLUEPRINT, &records.blueprints), (record::PARAMETER_TYPE, &records.parameter_types)];
    for (kind, texts) in types {
        for (key, text) in texts.iter().filter(|(key, _)| *key.workspace == *own) {
            if let Text::Unreadable(reason) = text {
                let effect = "no flow that uses it can be started";
                tell(format!("config value '{kind}/{}'", key.id), reason, effect);
            }
        }
    }
}

fn flows(looked: &Looked<'_>, found: &mut Vec<Found>) {
    for key in view::ids(looked.workspace, looked.records) {
        let row = view::row(&key, looked.records, looked.board);
        let id = &row.id;
        let told = match row.phase.as_str() {
            "Failed" => finding(
                Severity::Error,
                "flow-failed",
                format!("flow '{id}' keeps failing: {}", row.last_error),
                format!(
                    "remove the cause; it is tried again by itself. `sluice flow describe {id}` shows more"
                ),
            ),
            "Degraded" => finding(
                Severity::Error,
                "flow-degraded",
                format!("flow '{id}' runs, but not all of it is there: {}", row.last_error),
                format!(
                    "remove the cause; it is tried again by itself. `sluice flow describe {id}` shows more"
                ),
            ),
            "Unmanaged" => finding(
                Severity::Info,
                "flow-unmanaged",
                format!("flow '{id}' was made by another flow service and is left alone"),
                format!("nothing; `sluice flow stop {id}` would take it over and end it"),
            ),
            _ => continue,
        };
        found.push(about(told, id, None, ""));
    }
}

/// What running flows should have and do not, and what nobody takes out.
fn drift(looked: &Looked<'_>, seen: &Sight, found: &mut Vec<Found>) {
    let mut told = BTreeSet::new();
    for key in view::ids(looked.workspace, looked.records) {
        let Some(wish) = view::wish(&key, looked.records) else { continue };
        let is_open = looked.records.flows.get(&key).is_some_and(|record| record.value.is_ok());
        if wish.want != Want::Running || !is_open {
            continue;
        }
        let next = "nothing: the flow service makes it again within its next audit; find out who removed it";
        for topic in wish.topology.topics.iter().filter(|topic| !system::is_system(&topic.topic)) {
            let Some(seen) = seen.get(&topic.topic).filter(|_| told.insert(&topic.topic)) else { continue };
            let name = &topic.topic;
            if !seen.exists {
                let text = format!("flow '{}' has lost topic {name}", key.id);
                let missing = finding(Severity::Error, "topic-missing", text, next);
                found.push(about(missing, &key.id, Some(name), ""));
                continue;
            }
            let by_name: BTreeMap<&str, _> =
                seen.subscriptions.iter().map(|s| (s.name.as_str(), s)).collect();
            for own in &topic.subscriptions {
                match by_name.get(own.as_str()).filter(|s| s.exists) {
                    None => {
                        let text = format!("flow '{}' has lost the queue of {own} on {name}", key.id);
                        let missing = finding(Severity::Error, "subscription-missing", text, next);
                        found.push(about(missing, &key.id, Some(name), own));
                    }
                    Some(s) if s.is_bound == Some(false) => {
                        let text =
                            format!("nothing sent to {name} reaches the queue of {own}: it is not bound");
                        let unbound = finding(Severity::Error, "subscription-unbound", text, next);
                        found.push(about(unbound, &key.id, Some(name), own));
                    }
                    Some(s) if s.consumers == Some(0) => {
                        let text = format!("nobody reads {name} as {own}; {} messages wait there", s.ready);
                        // Every question on a request topic goes unanswered, whether or not one waits now.
                        let hurts = s.ready > 0 || name.class() == Class::Request;
                        let severity = if hurts { Severity::Warning } else { Severity::Info };
                        let processor = own.split("--").next().unwrap_or_default();
                        let next = format!(
                            "start processor '{processor}', or read its log: it may not be able to bind"
                        );
                        found.push(about(
                            finding(severity, "nobody-reads", text, next),
                            &key.id,
                            Some(name),
                            own,
                        ));
                    }
                    Some(_) => {}
                }
            }
            for other in
                seen.subscriptions.iter().filter(|s| s.exists && !topic.subscriptions.contains(&s.name))
            {
                let is_full = other.ready > 0 && other.consumers == Some(0);
                let text = format!(
                    "queue {} on {name} was made by somebody else; {} messages wait there. It goes with the topic",
                    other.name, other.ready
                );
                let severity = if is_full { Severity::Warning } else { Severity::Info };
                let next = "nothing if its reader is wanted; else remove the queue at the broker";
                let told = finding(severity, "unknown-subscription", text, next);
                found.push(about(told, &key.id, Some(name), &other.name));
            }
        }
    }
}

/// What is there under our names and on nobody's record.
fn unknown(looked: &Looked<'_>, found: &mut Vec<Found>) {
    let listed = match &looked.listed {
        Ok(listed) => listed,
        Err(why) => {
            let text = format!("topics that nobody has on record could not be looked for: {why}");
            let next = "give the address of the broker's management API, if it has one";
            return found.push(finding(Severity::Info, "broker-not-listed", text, next));
        }
    };
    for seen in strangers(listed.iter(), looked.records) {
        let topic = &seen.topic;
        if !looked.may_tell(topic) {
            continue;
        }
        let messages: u64 = seen.subscriptions.iter().map(|s| s.ready).sum();
        let readers: u64 = seen.subscriptions.iter().filter_map(|s| s.consumers).sum();
        let text = format!(
            "topic {topic} is on no record: {} queues, {messages} messages, {readers} readers",
            seen.subscriptions.iter().filter(|s| s.exists).count()
        );
        let next = "find out who made it; if nobody needs it, remove its exchange and queues at the broker";
        found.push(about(finding(Severity::Warning, "unknown-topic", text, next), "", Some(topic), ""));
    }
}

fn broker(looked: &Looked<'_>, found: &mut Vec<Found>) {
    match &looked.broker {
        Ok(told) => {
            for one in told.iter().filter(|one| one.topic.as_ref().is_none_or(|topic| looked.may_tell(topic)))
            {
                let finding = finding(one.severity(), one.code, one.text.clone(), one.next.clone());
                let subscription = one.subscription.as_deref().unwrap_or_default();
                found.push(about(finding, "", one.topic.as_ref(), subscription));
            }
        }
        Err(why) => found.push(unseen("the broker's own findings", why)),
    }
    if let Some(PoisonBound::Unbounded { why }) = &looked.poison {
        let text =
            format!("a reader that is not ours and gives a message back for ever is not stopped: {why}");
        let next = "nothing while all readers behave; a loop shows as a queue that neither grows nor shrinks";
        found.push(finding(Severity::Info, "poison-unbounded", text, next));
    }
}

impl Looked<'_> {
    /// Whether a topic is this workspace's or no live workspace's.
    fn may_tell(&self, topic: &Topic) -> bool {
        let of = doors::whose(topic).map(|(workspace, _)| workspace);
        let is_live = |at: &WorkspaceId| self.records.workspaces.contains_key(at.as_str());
        of.is_none_or(|at| at.as_str() == self.workspace.as_str() || !is_live(&at))
    }
}
