//! Where flows are, for people: from this service's own reports while it acts, else from what the one that acts wrote down.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sluice_schema::WorkspaceId;
use sluice_schema::message::FlowRow;

use crate::board::{Board, Phase, Report};
use crate::memory::{FlowKey, Records, Want, Wish};

/// Ids of all flows of a workspace, whoever made them.
pub(crate) fn ids(workspace: &WorkspaceId, records: &Records) -> BTreeSet<FlowKey> {
    let keys = records.flows.keys().chain(records.wishes.keys());
    keys.filter(|key| *key.workspace == *workspace.as_str()).cloned().collect()
}

/// A flow as one row of a list.
pub(crate) fn row(key: &FlowKey, records: &Records, board: &Board) -> FlowRow {
    let status = status(key, records, board);
    let text = |name: &str| status[name].as_str().unwrap_or_default().to_owned();
    let record = records.flows.get(key).and_then(|r| r.value.as_deref().ok());
    let described = |wish: &Wish| (wish.blueprint.clone(), wish.description.clone());
    let (blueprint, description) = wish(key, records)
        .map(described)
        .or_else(|| record.map(|flow| (flow.blueprint_name.clone(), flow.description.clone())))
        .unwrap_or_default();
    FlowRow {
        id: key.id.to_string(),
        phase: text("phase"),
        run: text("run"),
        blueprint,
        description,
        last_error: text("last-error"),
    }
}

/// The last report on a flow.
pub(crate) fn status(key: &FlowKey, records: &Records, board: &Board) -> Value {
    if let Some(Err(reason)) = records.wishes.get(key).map(|recorded| &recorded.value) {
        let text = format!("config value 'flow-wish/{key}' cannot be read ({reason}); repair or delete it");
        return json!({"phase": Phase::Failed, "last-error": text});
    }
    let Some(wish) = wish(key, records) else { return json!({"phase": Phase::Unmanaged}) };
    // A report on an earlier decision says nothing of this one.
    if let Some(report) = board.current(key).filter(|report| report.generation >= wish.generation) {
        return json!(report);
    }
    let written = records.reports.get(key).and_then(|recorded| recorded.value.as_deref().ok());
    if let Some(written) = written.filter(|written| written["generation"] == wish.generation) {
        return written.clone();
    }
    let record = records.flows.get(key).and_then(|r| r.value.as_deref().ok());
    let phase = match wish.want {
        Want::Gone => Phase::Stopping,
        Want::Running if record.is_some_and(|record| *record == wish.public()) => Phase::Running,
        Want::Running => Phase::Starting,
    };
    json!(Report::new(phase, wish))
}

pub(crate) fn wish<'a>(key: &FlowKey, records: &'a Records) -> Option<&'a Wish> {
    records.wishes.get(key).and_then(|recorded| recorded.value.as_deref().ok())
}
