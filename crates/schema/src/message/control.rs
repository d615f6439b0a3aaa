//! Config, flow and collection services.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::Error;

message! {
    /// Names one config value within a workspace.
    pub struct ConfigKey {
        r#type: String,
        key: String,
    }
}

message! {
    /// One config value; `value` is `None` in the answer to `get` for a key that is not there.
    pub struct ConfigValue {
        r#type: String,
        key: String,
        /// Opaque to config; by convention JSON text.
        value: Option<String>,
        workspace: String,
        /// Additive: the version at which this value was written; 0 when not told.
        #[additive] version: i64,
    }
}

message! {
    /// A call to the config service, on `request:tg:config` and `request:tg:config:<workspace>`.
    pub struct ConfigRequest {
        operation: String,
        /// Counts on the system queue only; elsewhere the queue names the workspace.
        workspace: String,
        keys: Vec<ConfigKey>,
        /// What `list` and `getvalues` read.
        r#type: String,
        values: Vec<ConfigValue>,
        /// Additive: versions that must still hold, for `put`, `delete` and `apply`.
        #[additive] r#if: Vec<Expectation>,
        /// Additive: the types that `getvalues-many` reads.
        #[additive] types: Vec<String>,
        /// Additive: `getvalues-many` answers only values written after this version.
        #[additive] since: i64,
        /// Additive: the `history` that came with the answer that `since` is taken from. Where the service does not know
        /// it, everything is answered.
        #[additive] history: String,
        /// Additive: what is read comes in pages of about so many bytes; 0 = in one answer, or not at all.
        #[additive] bytes_max: i64,
        /// Additive: the `cursor` of the page before, for the next one. All else is as in the first request.
        #[additive] cursor: String,
        /// Additive, system queue only: no version, no notice, no history.
        #[additive] quiet: bool,
        /// Additive, system queue only: `apply` has to work on a full disk, since things are removed by it.
        #[additive] essential: bool,
        /// Additive: what `apply` writes, each value with its workspace.
        #[additive] puts: Vec<ConfigValue>,
        /// Additive: what `apply` deletes, each key with its workspace.
        #[additive] deletes: Vec<ScopedKey>,
    }
}

message! {
    /// The answer of the config service.
    pub struct ConfigResponse {
        /// Of the whole store, over all workspaces.
        version: i64,
        values: Vec<ConfigValue>,
        /// Keys, in the answer to `list`.
        directory: Vec<String>,
        /// Type → key → value, in the answer to `config`.
        config: BTreeMap<String, BTreeMap<String, String>>,
        error: Option<Error>,
        /// Additive: what a mixed put left out, and why nothing else was.
        #[additive] skipped: Vec<ConfigKey>,
        /// Additive: in the answer to `getvalues-many`, the `since` that the answer is relative to; 0 = `values` is everything.
        #[additive] since: i64,
        /// Additive: keys deleted since the `since` of `getvalues-many`.
        #[additive] deleted: Vec<ScopedKey>,
        /// Additive: which history `version` belongs to, in the answer to `getvalues-many`: to be sent back with it. The
        /// same version of a store that was restored from an older copy has another one.
        #[additive] history: String,
        /// Additive: keys whose values the disk damaged, in the answer to `getvalues-many`: they are there, and cannot be
        /// read. Other answers are an error instead.
        #[additive] damaged: Vec<ScopedKey>,
        /// Additive: where the next page begins; absent on the last. Of each page `deleted` goes first, then `values`, over
        /// the pages before; all of them together are at the last one's version.
        #[additive] cursor: String,
    }
}

message! {
    /// Workspaces that came and went.
    pub struct WorkspaceChanges {
        created: Vec<String>,
        deleted: Vec<String>,
    }
}

message! {
    /// The notice on `notify:tg:config` that config changed; it says what may have changed, never the values.
    pub struct ConfigPush {
        version: i64,
        /// Config type → workspaces in which it changed.
        changes: BTreeMap<String, Vec<String>>,
        workspace_changes: Option<WorkspaceChanges>,
    }
}

message! {
    /// The notice on `notify:tg:lost-topics` that somebody could not publish to topics, or not read them, for something of
    /// them was missing. Their owners look at once; it says nothing that they would do without looking.
    pub struct LostTopics {
        topics: Vec<String>,
        /// Those of which a queue was missing: what waited in it is gone.
        emptied: Vec<String>,
        /// Differs between processes.
        sender: String,
    }
}

message! {
    /// A call to the flow service, on `request:tg:flow:<workspace>`.
    pub struct FlowRequest {
        operation: String,
        blueprint_name: String,
        /// JSON text.
        blueprint_definition: String,
        description: String,
        flow_id: String,
        /// Name → value of any JSON; resolved values are texts.
        parameters: Map<String, Value>,
        /// Additive: `"20s"`, a number of seconds, or `"discard"`: how `stop-flow` treats what is still queued.
        #[additive] drain: Option<String>,
        /// Additive: a list comes in pages of about so many bytes; 0 = in one answer, or not at all.
        #[additive] bytes_max: i64,
        /// Additive: the `cursor` of the page before, for the next one. All else is as in the first request.
        #[additive] cursor: String,
    }
}

message! {
    /// The answer of the flow service.
    pub struct FlowResponse {
        blueprint_names: Vec<String>,
        flow_ids: Vec<String>,
        /// JSON text.
        blueprint_definition: String,
        /// A [`record::Flow`](crate::record::Flow) as JSON text.
        flow: String,
        description: String,
        parameters: BTreeMap<String, String>,
        error: Option<Error>,
        /// Additive: phase, run and last report of a flow, as JSON text.
        #[additive] status: String,
        /// Additive: things worth knowing that did not stop the request.
        #[additive] warnings: Vec<String>,
        /// Additive: each flow with where it is, in the answer to `list-flows`.
        #[additive] flows: Vec<FlowRow>,
        /// Additive: what `doctor` found, worst first.
        #[additive] findings: Vec<Finding>,
        /// Additive: where the next page of a list begins; absent on the last.
        #[additive] cursor: String,
    }
}

message! {
    /// A flow in a list.
    pub struct FlowRow {
        id: String,
        /// `Starting`, `Running`, `Degraded`, `Draining`, `Stopping`, `Failed` or `Unmanaged`.
        phase: String,
        /// The run that it is now.
        run: String,
        blueprint: String,
        description: String,
        /// Why the last step failed.
        last_error: String,
    }
}

message! {
    /// Something a person should know of the flows or what they run on.
    pub struct Finding {
        /// What it is, in kebab-case; does not change between versions.
        code: String,
        /// `error` (does not work), `warning` (will hurt) or `info`.
        severity: String,
        /// The flow it is about, if it is about one.
        flow: String,
        /// The topic it is about, if it is about one.
        topic: String,
        /// The subscription it is about, if it is about one.
        subscription: String,
        /// What is so.
        text: String,
        /// What to do about it.
        next: String,
    }
}

message! {
    /// A collection as people see it.
    pub struct CollectionMetadata {
        collection: String,
        name: String,
        description: String,
        tags: Vec<String>,
    }
}

message! {
    /// A call on `request:tg:collection:<workspace>`.
    pub struct CollectionManagementRequest {
        operation: String,
        collection: String,
        /// ISO 8601.
        timestamp: String,
        name: String,
        description: String,
        tags: Vec<String>,
        /// Only collections with one of these tags; empty = all.
        tag_filter: Vec<String>,
        /// 0 = no limit.
        limit: i64,
        /// Additive: a list comes in pages of about so many bytes; 0 = in one answer, or not at all.
        #[additive] bytes_max: i64,
        /// Additive: the `cursor` of the page before, for the next one. All else is as in the first request.
        #[additive] cursor: String,
    }
}

message! {
    /// The answer to a collection call.
    pub struct CollectionManagementResponse {
        error: Option<Error>,
        timestamp: String,
        collections: Vec<CollectionMetadata>,
        /// Additive: where the next page of a list begins; absent on the last.
        #[additive] cursor: String,
    }
}

message! {
    /// A version that must still hold: 0 means the key must be absent. Part of a conditional config write.
    pub struct Expectation {
        workspace: String,
        r#type: String,
        key: String,
        version: i64,
    }
}
message! {
    /// Names one config value in any workspace. Part of `apply` and `getvalues-many`.
    pub struct ScopedKey {
        workspace: String,
        r#type: String,
        key: String,
    }
}
