//! What the flow service writes down, and its copy of what config holds about flows. All of it rests in the config
//! service; the copy is only ever refreshed from there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sluice_bus::Naming;
use sluice_schema::Topic;
use sluice_schema::message::{ConfigValue, Expectation, ScopedKey};
use sluice_schema::record::{self, Flow, ProcessorEntry};

use crate::blueprint::{OwnedTopic, Topology};
use crate::texts::{Stripped, Text, Texts};

/// Config type of wishes, in [`record::FLOWS`].
pub const WISH: &str = "flow-wish";
/// Config type of reports, in [`record::FLOWS`].
pub const REPORT: &str = "flow-report";
/// Config type of the row per flow id that outlives its runs, in [`record::FLOWS`].
pub const RUNS: &str = "flow-runs";
/// Config type of the row per blueprint that counts the names of its shared section, in [`record::FLOWS`].
pub const SHARED: &str = "flow-shared";
/// Config type of the row that every decision bumps, in [`record::FLOWS`].
pub const LEDGER: &str = "flow-ledger";
/// Config type of the row that names the service that acts, in [`record::FLOWS`].
pub const LEADER: &str = "flow-leader";
/// The only key of [`LEDGER`] and [`LEADER`].
pub const ONLY: &str = "head";

/// Topics of earlier runs whose names are kept for sweeping when another run ends, at most.
const EARLIER_TOPICS_MAX: usize = 200;

/// Why a value cannot be read that the disk damaged.
const DAMAGED: &str = "the disk damaged it; restore a backup";
/// The version of such a value: a write that expects it is refused.
const VERSION_UNKNOWN: i64 = -1;

/// A flow: its workspace and the id that people use.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// The workspace.
    pub workspace: Arc<str>,
    /// The id.
    pub id: Arc<str>,
}

impl FlowKey {
    /// A key from its parts.
    #[must_use]
    pub fn new(workspace: &str, id: &str) -> Self {
        Self { workspace: workspace.into(), id: id.into() }
    }

    fn read(text: &str) -> Option<Self> {
        text.split_once('/').map(|(workspace, id)| Self::new(workspace, id))
    }
}

impl fmt::Display for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.workspace, self.id)
    }
}

/// What should become of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Want {
    /// It should run.
    Running,
    /// It should be gone.
    Gone,
}

/// What a stop does about messages that are still queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Drain {
    /// Lets processors work on them this long; what is left then is parked as dead letters.
    WithinMs(u64),
    /// Throws them away.
    Discard,
}

/// What somebody asked for, with all that follows from it: the one record that decides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Wish {
    /// The number of the decision, unique over all flows.
    pub generation: i64,
    /// Id of the request that made the decision.
    pub request: String,
    /// What should be.
    pub want: Want,
    /// How to stop.
    pub drain: Drain,
    /// The run's name.
    pub run: String,
    /// The blueprint's name, for people.
    pub blueprint: String,
    /// The shared section that the run uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<SharedUse>,
    /// Text for people.
    pub description: String,
    /// Resolved parameters.
    pub parameters: Map<String, Value>,
    /// All that the run consists of.
    pub topology: Topology,
    /// What the start warned of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Wish {
    /// The public record that shows this wish.
    #[must_use]
    pub fn public(&self) -> Flow {
        Flow {
            description: self.description.clone(),
            blueprint_name: self.blueprint.clone(),
            interfaces: self.topology.interfaces.clone(),
            parameters: self.parameters.clone(),
            status: (self.want == Want::Gone).then(|| "stopping".to_owned()),
            run: Some(self.run.clone()),
            read: self.topology.read_interfaces(),
        }
    }
}

/// Which shared section a run uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedUse {
    /// What `{blueprint}` became.
    pub name: String,
    /// What is in the section.
    pub content: String,
}

/// A row that outlives runs: names that were given are never given again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Named {
    /// How many names were given.
    pub last: u64,
    /// Topics of the last ended run, and of those shortly before it: what reappears under these names is swept.
    #[serde(skip_serializing_if = "Topology::is_empty")]
    pub ended: Topology,
    /// Id of the request that ended the last run.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ended_by: String,
}

impl Named {
    /// The row once a run with these topics was ended by a request. Of earlier runs the latest names are kept.
    pub(crate) fn after(&self, topics: &[OwnedTopic], request: &str) -> Self {
        let own: BTreeSet<&Topic> = topics.iter().map(|owned| &owned.topic).collect();
        let earlier = self.ended.topics.iter().filter(|owned| !own.contains(&owned.topic));
        let topics = topics.iter().chain(earlier.take(EARLIER_TOPICS_MAX)).cloned().collect();
        Self {
            last: self.last,
            ended: Topology { topics, ..Topology::default() },
            ended_by: request.to_owned(),
        }
    }
}

impl Topology {
    /// Topics that interfaces take messages in by, and that have a reader on record.
    fn read_interfaces(&self) -> Vec<String> {
        let entrances: BTreeSet<&String> =
            self.interfaces.values().filter_map(|roles| roles.get("flow")).collect();
        let owned = self.topics.iter().filter(|owned| !owned.subscriptions.is_empty());
        owned.map(|owned| owned.topic.to_string()).filter(|topic| entrances.contains(topic)).collect()
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The `n`-th name of a thing: the bare name first, then with `-r2`, `-r3`, …
#[must_use]
pub fn nth_name(name: &str, n: u64) -> String {
    if n <= 1 { name.to_owned() } else { format!("{name}-r{n}") }
}

/// A value of config, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded<T> {
    /// The version at which it was written.
    pub version: i64,
    /// The value, or why it cannot be read.
    pub value: Result<Arc<T>, String>,
}

/// An entry's place: workspace, processor, variant.
pub type EntryKey = (Arc<str>, Arc<str>, Arc<str>);

/// All that config holds about flows, in one snapshot.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Records {
    /// Live workspaces.
    pub workspaces: BTreeMap<Arc<str>, ()>,
    /// Wishes.
    pub wishes: BTreeMap<FlowKey, Recorded<Wish>>,
    /// Public records.
    pub flows: BTreeMap<FlowKey, Recorded<Flow>>,
    /// Processor entries.
    pub entries: BTreeMap<EntryKey, Recorded<ProcessorEntry>>,
    /// Run counters.
    pub runs: BTreeMap<FlowKey, Recorded<Named>>,
    /// Counters of shared sections, by workspace and blueprint.
    pub shared: BTreeMap<FlowKey, Recorded<Named>>,
    /// Blueprints.
    pub blueprints: Texts,
    /// Parameter types.
    pub parameter_types: Texts,
    /// Number of the last decision.
    pub ledger: Option<Recorded<i64>>,
    /// What the service that acts last told of flows that are not simply up: never an input of a plan.
    pub reports: BTreeMap<FlowKey, Recorded<Value>>,
}

impl Records {
    /// The config types that make up the records; the last stands for every processor's.
    pub const TYPES: [&'static str; 10] = [
        record::WORKSPACE,
        WISH,
        REPORT,
        record::FLOW,
        RUNS,
        SHARED,
        LEDGER,
        record::BLUEPRINT,
        record::PARAMETER_TYPE,
        "processor:*",
    ];

    /// Takes in a page of what config holds, where entries call topics by such names.
    pub(crate) fn take(&mut self, stripped: Stripped, naming: Naming) {
        let Stripped { page, same, elsewhere } = stripped;
        if page.is_whole {
            *self = Self::default();
        }
        for gone in page.deleted {
            self.set(&gone.workspace, &gone.r#type, &gone.key, None, 0, naming);
        }
        for value in page.values {
            let text = value.value.as_deref().map(Ok);
            self.set(&value.workspace, &value.r#type, &value.key, text, value.version, naming);
        }
        for damaged in page.damaged {
            let text = Some(Err(DAMAGED));
            self.set(&damaged.workspace, &damaged.r#type, &damaged.key, text, VERSION_UNKNOWN, naming);
        }
        for (at, template) in same {
            let Some(texts) = self.texts(&at.r#type) else { continue };
            texts.put(FlowKey::new(&at.workspace, &at.key), Some(Text::Same(template)));
        }
        for at in elsewhere {
            let Some(texts) = self.texts(&at.r#type) else { continue };
            texts.put(FlowKey::new(&at.workspace, &at.key), Some(Text::Elsewhere));
        }
    }

    /// Texts of a kind that has any.
    pub(crate) fn texts(&mut self, kind: &str) -> Option<&mut Texts> {
        match kind {
            record::BLUEPRINT => Some(&mut self.blueprints),
            record::PARAMETER_TYPE => Some(&mut self.parameter_types),
            _ => None,
        }
    }

    fn set(
        &mut self,
        workspace: &str,
        kind: &str,
        key: &str,
        text: Option<Result<&str, &str>>,
        version: i64,
        naming: Naming,
    ) {
        let is_ours = workspace == record::FLOWS;
        let own = || FlowKey::read(key);
        match kind {
            REPORT if is_ours => put(&mut self.reports, own(), read(text, version)),
            WISH if is_ours => put(&mut self.wishes, own(), read(text, version)),
            RUNS if is_ours => put(&mut self.runs, own(), read(text, version)),
            SHARED if is_ours => put(&mut self.shared, own(), read(text, version)),
            LEDGER if is_ours => self.ledger = read(text, version),
            record::WORKSPACE if workspace == record::WORKSPACES => {
                put(&mut self.workspaces, Some(key.into()), text.map(|_| ()));
            }
            record::FLOW => put(&mut self.flows, Some(FlowKey::new(workspace, key)), read(text, version)),
            _ => {
                if let Some(texts) = self.texts(kind) {
                    let at = FlowKey::new(workspace, key);
                    let text = text.map(|text| match text {
                        Ok(text) => texts.of(&at, text),
                        Err(reason) => Text::Unreadable(reason.to_owned()),
                    });
                    texts.put(at, text);
                } else if let Some(processor) = kind.strip_prefix(record::PROCESSOR_PREFIX) {
                    let at = (workspace.into(), processor.into(), key.into());
                    put(
                        &mut self.entries,
                        Some(at),
                        read(text, version).map(|entry| identified(entry, naming)),
                    );
                }
            }
        }
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: Option<K>, value: Option<V>) {
    match (key, value) {
        (Some(key), Some(value)) => _ = map.insert(key, value),
        (Some(key), None) => _ = map.remove(&key),
        (None, _) => {}
    }
}

/// An entry with the identifiers of its topics instead of what it calls them; what is no topic stays as it is.
fn identified(mut entry: Recorded<ProcessorEntry>, naming: Naming) -> Recorded<ProcessorEntry> {
    if let Ok(value) = &mut entry.value {
        for name in Arc::make_mut(value).topics.values_mut() {
            if let Ok(topic) = (naming.topic)(name) {
                *name = topic.to_string();
            }
        }
    }
    entry
}

fn read<T: DeserializeOwned>(text: Option<Result<&str, &str>>, version: i64) -> Option<Recorded<T>> {
    let value = |text: &str| serde_json::from_str(text).map(Arc::new).map_err(|e| e.to_string());
    text.map(|text| Recorded { version, value: text.map_err(str::to_owned).and_then(value) })
}

/// A value in the flow service's own workspace.
pub(crate) fn own_value(kind: &str, key: &FlowKey, value: &impl Serialize) -> ConfigValue {
    scoped_value(record::FLOWS, kind, &key.to_string(), value)
}

pub(crate) fn scoped_value(workspace: &str, kind: &str, key: &str, value: &impl Serialize) -> ConfigValue {
    let text = serde_json::to_string(value).unwrap_or_default();
    sluice_sdk::config::value(workspace, kind, key, text)
}

pub(crate) fn own_key(kind: &str, key: &FlowKey) -> ScopedKey {
    scoped_key(record::FLOWS, kind, &key.to_string())
}

pub(crate) fn scoped_key(workspace: &str, kind: &str, key: &str) -> ScopedKey {
    ScopedKey { workspace: workspace.to_owned(), r#type: kind.to_owned(), key: key.to_owned() }
}

/// That a key is still as it was read; `None` = absent.
pub(crate) fn unchanged<T>(at: ScopedKey, read: Option<&Recorded<T>>) -> Expectation {
    expect(at, read.map_or(0, |r| r.version))
}

pub(crate) fn expect(at: ScopedKey, version: i64) -> Expectation {
    Expectation { workspace: at.workspace, r#type: at.r#type, key: at.key, version }
}
