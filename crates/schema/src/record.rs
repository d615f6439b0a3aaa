//! Records that rest in config and are read by several programs: the public flow record and a processor's entry.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Config types that only the flow service writes.
pub const FLOW: &str = "flow";
/// Config type of blueprints.
pub const BLUEPRINT: &str = "flow-blueprint";
/// Config type of parameter types.
pub const PARAMETER_TYPE: &str = "parameter-type";
/// Prefix of the config types that hold processor entries: `processor:<processor id>`.
pub const PROCESSOR_PREFIX: &str = "processor:";
/// Config type of workspaces, in [`WORKSPACES`].
pub const WORKSPACE: &str = "workspace";
/// Reserved workspace: the registry of live workspaces.
pub const WORKSPACES: &str = "__workspaces__";
/// Reserved workspace: what a new workspace starts with.
pub const TEMPLATE: &str = "__template__";
/// Reserved workspace: the flow service's memory.
pub const FLOWS: &str = "__flows__";
/// Reserved workspace: the platform's own bookkeeping.
pub const SYSTEM: &str = "__system__";

/// Whether users may not write a config type through their workspace queue because a service manages it.
#[must_use]
pub fn is_managed_type(config_type: &str) -> bool {
    config_type == FLOW || config_type.starts_with(PROCESSOR_PREFIX)
}

/// The public record of a flow: config type `flow`, key = flow id. Gateways turn it into routes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Flow {
    /// Text for people.
    pub description: String,
    /// The blueprint it was started from.
    #[serde(rename = "blueprint-name")]
    pub blueprint_name: String,
    /// Interface name → role (`request`, `response`, `flow`) → topic.
    pub interfaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Resolved parameters.
    pub parameters: Map<String, Value>,
    /// Absent while it runs; `stopping` from the first moment of a stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// The run that the topics belong to; ours, absent in records of other flow services.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Ours: topics among the interfaces that have a reader on record. What is sent there is kept or refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub read: Vec<String>,
}

impl Flow {
    /// Whether calls may be routed to it.
    #[must_use]
    pub fn is_routable(&self) -> bool {
        self.status.is_none()
    }
}

/// One processor's part in a flow: config type `processor:<id>`, key = variant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessorEntry {
    /// Slot → topic.
    pub topics: BTreeMap<String, String>,
    /// Parameter → text.
    pub parameters: BTreeMap<String, String>,
    /// Ours: response slots whose answers may go straight to the asker's inbox, because the run records no other reader
    /// of that topic.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub direct: Vec<String>,
    /// Ours: slots that it sends to whose topic has a reader on record. What is sent there is kept or refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub read: Vec<String>,
}
