//! Decisions: from what somebody asks and what is recorded to the one atomic write that records the wish, or a refusal
//! that has written nothing. Pure.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Map, Value};
use sluice_schema::doors::{self, Home};
use sluice_schema::record::{self, Flow, ProcessorEntry};
use sluice_schema::{FlowId, IdError, Topic, WorkspaceId, ceilings, message};
use sluice_sdk::Apply;

use crate::blueprint::{self, Blueprint, Names, OwnedTopic, ParameterType, Part, Ports, Resolved, Topology};
use crate::memory::{
    Drain, FlowKey, LEDGER, Named, ONLY, RUNS, Records, SHARED, SharedUse, WISH, Want, Wish, expect,
    nth_name, own_key, own_value, scoped_key, scoped_value, unchanged,
};
use crate::plan;
use crate::texts::Text;

/// The longest drain that may be asked for.
const DRAIN_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// No flow named.
    #[error("No flow ID")]
    NoFlowId,
    /// No blueprint named.
    #[error("No blueprint name")]
    NoBlueprintName,
    /// The id cannot be one.
    #[error(transparent)]
    Id(#[from] IdError),
    /// There is one of that id, running or stopping.
    #[error("Flow already exists")]
    Exists,
    /// There is no blueprint of that name.
    #[error("Blueprint does not exist")]
    NoBlueprint,
    /// There is no flow of that id to stop.
    #[error("Flow ID invalid")]
    NoFlow,
    /// There is no flow of that id to show.
    #[error("Unknown flow: {0}")]
    Unknown(String),
    /// The blueprint, the parameters or the names do not make a flow.
    #[error(transparent)]
    Blueprint(#[from] blueprint::Error),
    /// It is beyond a ceiling.
    #[error("{}", .0.message)]
    TooLarge(message::Error),
    /// Another flow has the same processor variant with other content.
    #[error(
        "processor '{processor}' already has a variant '{variant}' that is defined differently, by {owner}; stop that first or use another variant"
    )]
    Clash {
        /// The processor.
        processor: String,
        /// The variant.
        variant: String,
        /// Whose it is.
        owner: String,
    },
    /// What is on record cannot be read.
    #[error("{what} cannot be read ({reason}); repair or delete it")]
    Unreadable {
        /// Which value.
        what: String,
        /// Why.
        reason: String,
    },
    /// Not a refusal yet: these texts of a workspace are to be read first.
    #[error("{} texts of type {kind} are not at hand; ask again", .names.len())]
    Elsewhere {
        /// The workspace.
        workspace: WorkspaceId,
        /// Their config type.
        kind: &'static str,
        /// Their names.
        names: BTreeSet<String>,
    },
    /// Somebody may have obeyed it, or refused, and died before the broker knew; a flow may have come or gone since.
    #[error(
        "this request was handed out twice, and whether it was obeyed the first time is not known; look with get-flow and ask again"
    )]
    Repeated,
    /// The drain is not understood.
    #[error("drain '{0}' is not understood; use {known}", known = DRAINS)]
    Drain(String),
}

/// What a drain can be.
pub(crate) const DRAINS: &str = r#""20s", "500ms", "2m", a number of seconds up to 86400, or "discard""#;

/// Which request it is, as the broker hands it out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) id: &'a str,
    /// It was handed out before.
    pub(crate) is_repeated: bool,
}

/// What a caller wants started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start<'a> {
    pub(crate) workspace: &'a WorkspaceId,
    pub(crate) id: &'a str,
    pub(crate) blueprint: &'a str,
    pub(crate) description: &'a str,
    pub(crate) given: &'a Map<String, Value>,
    pub(crate) asked: Asked<'a>,
    pub(crate) drain: Drain,
}

/// A decision: the wish and the write that records it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Decision {
    /// Write this.
    Write(Box<Wish>, Apply),
    /// It was decided before; wait for this one.
    Join(Box<Wish>),
}

/// Decides a start.
pub(crate) fn start(records: &Records, ports: &Ports, ask: Start<'_>) -> Result<Decision, Refusal> {
    if ask.blueprint.is_empty() {
        return Err(Refusal::NoBlueprintName);
    }
    if ask.id.is_empty() {
        return Err(Refusal::NoFlowId);
    }
    let key = FlowKey::new(ask.workspace.as_str(), ask.id);
    if let Some(recorded) = records.wishes.get(&key) {
        return match &recorded.value {
            Ok(wish) if wish.request == ask.asked.id => Ok(Decision::Join(Box::new((**wish).clone()))),
            _ => Err(Refusal::Exists),
        };
    }
    if records.flows.contains_key(&key) {
        return Err(Refusal::Exists);
    }
    if ask.asked.is_repeated {
        return Err(Refusal::Repeated);
    }
    FlowId::parse(ask.id)?;
    check_ceilings(records, &ask)?;
    let named = FlowKey::new(ask.workspace.as_str(), ask.blueprint);
    let text = match records.blueprints.get(&named).ok_or(Refusal::NoBlueprint)? {
        Text::Kept(text) | Text::Same(text) => text,
        Text::Elsewhere => {
            let names = BTreeSet::from([ask.blueprint.to_owned()]);
            return Err(Refusal::Elsewhere {
                workspace: ask.workspace.clone(),
                kind: record::BLUEPRINT,
                names,
            });
        }
        Text::Unreadable(reason) => {
            return Err(unreadable(format!("blueprint '{}'", ask.blueprint), reason));
        }
    };
    let blueprint = Blueprint::read(text)?;
    // All of them at once: each look at a blueprint takes its time, and others wait meanwhile.
    let elsewhere = RefCell::new(BTreeSet::new());
    let cannot_be_read = RefCell::new(None);
    let type_of = |name: &str| {
        let at = FlowKey::new(ask.workspace.as_str(), name);
        match records.parameter_types.get(&at)? {
            Text::Kept(text) | Text::Same(text) => return Some(ParameterType::read(text)),
            Text::Elsewhere => _ = elsewhere.borrow_mut().insert(name.to_owned()),
            Text::Unreadable(reason) => {
                cannot_be_read.replace(Some(unreadable(format!("parameter type '{name}'"), reason)));
            }
        }
        None
    };
    let declared = blueprint.parameters();
    let parameters = blueprint::resolve_parameters(declared, ask.given, type_of);
    if let Some(refusal) = cannot_be_read.take() {
        return Err(refusal);
    }
    let names = elsewhere.take();
    if !names.is_empty() {
        return Err(Refusal::Elsewhere {
            workspace: ask.workspace.clone(),
            kind: record::PARAMETER_TYPE,
            names,
        });
    }
    let parameters = parameters?;
    // Before it is filled in: each placeholder may become the longest value.
    let longest = parameters.iter().map(|(_, value)| value.len()).max().unwrap_or(0);
    let filled = text.len() + text.matches('{').count().saturating_mul(longest);
    let what = format_args!("blueprint '{}' with these parameters", ask.blueprint);
    ceilings::within(what, filled, ceilings::FILLED_BYTES_MAX).map_err(Refusal::TooLarge)?;
    let mut warnings = blueprint::check_parameters(declared, &parameters, type_of)?;
    let run_row = row(&records.runs, &key, RUNS)?;
    let run = nth_name(ask.id, run_row.last + 1);
    let resolve = |shared: &str| {
        let names =
            Names { workspace: ask.workspace, id: ask.id, run: &run, blueprint: ask.blueprint, shared };
        blueprint.resolve(names, &parameters, ports)
    };
    let first = resolve(ask.blueprint)?;
    let (resolved, shared, is_new_name) = with_shared_name(records, &named, first, resolve)?;
    no_clash(records, &key, &resolved.topology.parts)?;
    let bytes = serde_json::to_string(&resolved.topology).map_or(0, |text| text.len());
    let what = format_args!("what flow '{}' consists of", ask.id);
    ceilings::within(what, bytes, ceilings::TOPOLOGY_BYTES_MAX).map_err(Refusal::TooLarge)?;
    warnings.extend(resolved.warnings);

    let generation = next_generation(records)?;
    let wish = Wish {
        generation,
        request: ask.asked.id.to_owned(),
        want: Want::Running,
        drain: ask.drain,
        run,
        blueprint: ask.blueprint.to_owned(),
        shared,
        description: ask.description.to_owned(),
        parameters: parameters.into_iter().map(|(name, value)| (name, Value::String(value))).collect(),
        topology: resolved.topology,
        warnings,
    };
    let mut write = decision(records, &key, &wish);
    // Nobody but flow services reads what this writes: the notice comes with the entries and the record.
    write.quiet = true;
    write.expect.push(expect(scoped_key(ask.workspace.as_str(), record::FLOW, ask.id), 0));
    write.expect.push(unchanged(own_key(RUNS, &key), records.runs.get(&key)));
    write.puts.push(own_value(RUNS, &key, &Named { last: run_row.last + 1, ..run_row }));
    if is_new_name {
        let row = row(&records.shared, &named, SHARED)?;
        write.expect.push(unchanged(own_key(SHARED, &named), records.shared.get(&named)));
        write.puts.push(own_value(SHARED, &named, &Named { last: row.last + 1, ..row }));
    }
    Ok(Decision::Write(Box::new(wish), write))
}

/// What a start may ask for, as far as it can be said before the blueprint is read.
fn check_ceilings(records: &Records, ask: &Start<'_>) -> Result<(), Refusal> {
    let id = ask.id;
    let description = ceilings::json_bytes(ask.description);
    let what = format_args!("the description of flow '{id}'");
    ceilings::within(what, description, ceilings::DESCRIPTION_BYTES_MAX).map_err(Refusal::TooLarge)?;
    let given = serde_json::to_string(ask.given).map_or(0, |text| text.len());
    let what = format_args!("the parameters of flow '{id}' together");
    ceilings::within(what, given, ceilings::PARAMETERS_BYTES_MAX).map_err(Refusal::TooLarge)?;
    let of_workspace = |key: &&FlowKey| *key.workspace == *ask.workspace.as_str();
    let flows = records.wishes.keys().filter(of_workspace).count();
    if flows >= ceilings::FLOWS_MAX {
        let told =
            format!("workspace '{}' has {flows} flows, which is the limit; stop one first", ask.workspace);
        return Err(Refusal::TooLarge(message::Error::new(message::Error::TOO_LARGE, told)));
    }
    Ok(())
}

/// Decides a stop. A flow that somebody else's flow service made is adopted in the same step.
pub(crate) fn stop(
    records: &Records,
    ports: &Ports,
    key: &FlowKey,
    drain: Drain,
    asked: Asked<'_>,
) -> Result<Decision, Refusal> {
    if key.id.is_empty() {
        return Err(Refusal::NoFlowId);
    }
    let mut wish = match records.wishes.get(key) {
        Some(recorded) => match &recorded.value {
            Ok(wish) => (**wish).clone(),
            Err(reason) => return Err(unreadable(format!("the wish of flow '{key}'"), reason)),
        },
        None => match records.flows.get(key).ok_or(Refusal::NoFlow)?.value.as_deref() {
            Ok(flow) => adopted(records, ports, key, flow),
            Err(reason) => return Err(unreadable(format!("the record of flow '{key}'"), reason)),
        },
    };
    let is_under_way = wish.want == Want::Gone && records.wishes.contains_key(key);
    let asks_more = drain == Drain::Discard && wish.drain != Drain::Discard;
    if is_under_way && !asks_more {
        return Ok(Decision::Join(Box::new(wish)));
    }
    if asked.is_repeated && !is_under_way {
        return Err(Refusal::Repeated);
    }
    wish.want = Want::Gone;
    wish.drain = drain;
    asked.id.clone_into(&mut wish.request);
    wish.generation = next_generation(records)?;
    let mut write = decision(records, key, &wish);
    write.essential = true;
    if let Some(recorded) = records.flows.get(key) {
        let at = scoped_key(&key.workspace, record::FLOW, &key.id);
        write.expect.push(unchanged(at, Some(recorded)));
        let status = Some("stopping".to_owned());
        let flow = match &recorded.value {
            Ok(flow) => Flow { status, ..(**flow).clone() },
            Err(_) => wish.public(),
        };
        write.puts.push(scoped_value(&key.workspace, record::FLOW, &key.id, &flow));
    }
    Ok(Decision::Write(Box::new(wish), write))
}

/// Reads a drain as requests give it.
pub(crate) fn drain(text: Option<&str>, default: Duration) -> Result<Drain, Refusal> {
    let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else {
        return Ok(within(default));
    };
    if text == "discard" {
        return Ok(Drain::Discard);
    }
    let units = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("", 1.0)];
    let number = units.iter().find_map(|(unit, seconds)| {
        text.strip_suffix(unit).and_then(|n| n.trim().parse::<f64>().ok()).map(|n| n * seconds)
    });
    let asked = number.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    asked.filter(|asked| *asked <= DRAIN_MAX).map(within).ok_or_else(|| Refusal::Drain(text.to_owned()))
}

fn within(duration: Duration) -> Drain {
    Drain::WithinMs(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// A number above that of every decision on record, even if the ledger was deleted.
fn next_generation(records: &Records) -> Result<i64, Refusal> {
    let last = match records.ledger.as_ref().map(|recorded| &recorded.value) {
        None => 0,
        Some(Ok(last)) => **last,
        Some(Err(reason)) => return Err(unreadable(format!("config value '{LEDGER}/{ONLY}'"), reason)),
    };
    let wishes = records.wishes.values().filter_map(|recorded| recorded.value.as_deref().ok());
    Ok(wishes.map(|wish| wish.generation).fold(last, i64::max) + 1)
}

/// The write of a decision: the wish and the next number, if nobody decided anything since.
fn decision(records: &Records, key: &FlowKey, wish: &Wish) -> Apply {
    let ledger = scoped_key(record::FLOWS, LEDGER, ONLY);
    Apply {
        expect: vec![
            unchanged(own_key(WISH, key), records.wishes.get(key)),
            unchanged(ledger, records.ledger.as_ref()),
        ],
        puts: vec![own_value(WISH, key, wish), scoped_value(record::FLOWS, LEDGER, ONLY, &wish.generation)],
        ..Apply::default()
    }
}

/// Finds the name for the shared section: that of a running flow with the same content, else one never used before.
fn with_shared_name(
    records: &Records,
    named: &FlowKey,
    first: Resolved,
    resolve: impl Fn(&str) -> Result<Resolved, blueprint::Error>,
) -> Result<(Resolved, Option<SharedUse>, bool), Refusal> {
    let Some(content) = first.shared_content.clone() else { return Ok((first, None, false)) };
    let used = records
        .wishes
        .iter()
        .filter(|(key, _)| key.workspace == named.workspace)
        .filter_map(|(key, recorded)| recorded.value.as_deref().ok().map(|wish| (key, wish)))
        .filter(|(key, wish)| {
            *wish.blueprint == *named.id && plan::wanted(key, wish, records) == Want::Running
        })
        .filter_map(|(_, wish)| wish.shared.as_ref())
        .find(|shared| shared.content == content);
    let (name, is_new) = match used {
        Some(shared) => (shared.name.clone(), false),
        None => (nth_name(&named.id, row(&records.shared, named, SHARED)?.last + 1), true),
    };
    let resolved = if *name == *named.id { first } else { resolve(&name)? };
    Ok((resolved, Some(SharedUse { name, content }), is_new))
}

fn row(
    rows: &BTreeMap<FlowKey, crate::memory::Recorded<Named>>,
    key: &FlowKey,
    kind: &str,
) -> Result<Named, Refusal> {
    match rows.get(key).map(|recorded| &recorded.value) {
        None => Ok(Named::default()),
        Some(Ok(row)) => Ok((**row).clone()),
        Some(Err(reason)) => Err(unreadable(format!("config value '{kind}/{key}'"), reason)),
    }
}

fn unreadable(what: String, reason: &str) -> Refusal {
    Refusal::Unreadable { what, reason: reason.to_owned() }
}

/// Entries of one key must be alike: the processors read only one.
fn no_clash(records: &Records, key: &FlowKey, parts: &[Part]) -> Result<(), Refusal> {
    let own: BTreeMap<(&str, &str), &ProcessorEntry> =
        parts.iter().map(|part| ((part.processor.as_str(), part.variant.as_str()), &part.entry)).collect();
    let clash = |part: &Part, owner: String| Refusal::Clash {
        processor: part.processor.clone(),
        variant: part.variant.clone(),
        owner,
    };
    let mut owned = BTreeSet::new();
    for (other, recorded) in records.wishes.iter().filter(|(other, _)| other.workspace == key.workspace) {
        let Ok(wish) = &recorded.value else { continue };
        for part in &wish.topology.parts {
            let at = (part.processor.as_str(), part.variant.as_str());
            owned.insert(at);
            if own.get(&at).is_some_and(|entry| **entry != part.entry) {
                return Err(clash(part, format!("flow '{}'", other.id)));
            }
        }
    }
    for part in parts.iter().filter(|part| !owned.contains(&(part.processor.as_str(), part.variant.as_str())))
    {
        let at = (key.workspace.clone(), part.processor.as_str().into(), part.variant.as_str().into());
        let foreign = records.entries.get(&at);
        if foreign.is_some_and(|r| r.value.as_ref().map_or(true, |entry| **entry != part.entry)) {
            return Err(clash(part, "somebody other than this flow service".to_owned()));
        }
    }
    Ok(())
}

/// A wish for a flow that another flow service made: its entries by its id, and the topics behind its own doors.
fn adopted(records: &Records, ports: &Ports, key: &FlowKey, flow: &Flow) -> Wish {
    let workspace = WorkspaceId::existing(&key.workspace);
    let home = Home { workspace: &workspace, names: &[&key.id] };
    let own = |text: &str| Topic::parse(text).ok().filter(|topic| doors::is_own(topic, home));
    let mut topics: BTreeMap<Topic, BTreeSet<String>> = flow
        .interfaces
        .values()
        .flat_map(|roles| roles.values())
        .filter_map(|text| own(text).map(|topic| (topic, BTreeSet::new())))
        .collect();
    let mut parts = Vec::new();
    let entries =
        records.entries.iter().filter(|((at, _, variant), _)| *at == key.workspace && *variant == key.id);
    for ((_, processor, variant), recorded) in entries {
        let Ok(entry) = &recorded.value else { continue };
        for (slot, text) in &entry.topics {
            let Some(topic) = own(text) else { continue };
            let has_subscription = topic.class().has_subscriptions()
                && ports.is_input(processor, slot, entry.topics.keys().map(String::as_str));
            let names = topics.entry(topic).or_default();
            if has_subscription {
                names.insert(format!("{processor}--{workspace}--{variant}--{slot}"));
            }
        }
        parts.push(Part {
            processor: processor.to_string(),
            variant: variant.to_string(),
            entry: (**entry).clone(),
        });
    }
    let topics = topics
        .into_iter()
        .map(|(topic, names)| OwnedTopic { topic, subscriptions: names.into_iter().collect() });
    Wish {
        generation: 0,
        request: String::new(),
        want: Want::Running,
        drain: Drain::Discard,
        run: key.id.to_string(),
        blueprint: flow.blueprint_name.clone(),
        shared: None,
        description: flow.description.clone(),
        parameters: flow.parameters.clone(),
        topology: Topology { topics: topics.collect(), parts, interfaces: flow.interfaces.clone() },
        warnings: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Recorded;

    #[test]
    fn a_request_that_is_handed_out_again_changes_nothing_that_came_since() {
        let ports = Ports::new(false);
        let workspace = WorkspaceId::existing("acme");
        let asked = |is_repeated| Asked { id: "r1", is_repeated };
        let start = |records: &Records, is_repeated| {
            let given = Map::new();
            let ask = Start {
                workspace: &workspace,
                id: "f1",
                blueprint: "demo",
                description: "",
                given: &given,
                asked: asked(is_repeated),
                drain: Drain::Discard,
            };
            super::start(records, &ports, ask)
        };
        let key = FlowKey::new("acme", "f1");
        let stop = |records: &Records, is_repeated| {
            super::stop(records, &ports, &key, Drain::Discard, asked(is_repeated))
        };
        // It may have been started and stopped since.
        let mut records = Records::default();
        assert!(matches!(start(&records, true), Err(Refusal::Repeated)));
        assert!(matches!(start(&records, false), Err(Refusal::NoBlueprint)));
        assert!(matches!(stop(&records, true), Err(Refusal::NoFlow)));
        // It may have been stopped and started since.
        let flow = Flow { blueprint_name: "demo".to_owned(), ..Flow::default() };
        records.flows.insert(key.clone(), Recorded { version: 1, value: Ok(flow.into()) });
        assert!(matches!(stop(&records, true), Err(Refusal::Repeated)));
        let Ok(Decision::Write(mut wish, _)) = stop(&records, false) else { panic!("a stop") };
        // A stop under way is joined, and so is what the request itself began.
        records.wishes.insert(key.clone(), Recorded { version: 2, value: Ok(wish.clone().into()) });
        assert!(matches!(stop(&records, true), Ok(Decision::Join(_))));
        wish.want = Want::Running;
        records.wishes.insert(key.clone(), Recorded { version: 3, value: Ok(wish.into()) });
        assert!(matches!(start(&records, true), Ok(Decision::Join(_))));
    }

    #[test]
    fn what_a_flow_may_be_has_ceilings_that_say_what_is_beyond_them() {
        let (ports, workspace) = (Ports::new(false), WorkspaceId::existing("acme"));
        let mut records = Records::default();
        let blueprint = r#"{"flow": {"a:{id}": {"topics": {}, "parameters": {"x": "{p}{p}{p}"}}}, "blueprint": {},
            "interfaces": {}, "parameters": {"p": {"type": "p"}}}"#;
        let large = format!("{{\"flow\": {{}}, \"blueprint\": {{}}, \"pad\": \"{}\"}}", "{p}".repeat(1_000));
        for (name, text) in [("demo", blueprint), ("large", &large)] {
            records.blueprints.put(FlowKey::new("acme", name), Some(Text::Kept(text.into())));
        }
        let of_type = Text::Kept(r#"{"type": "string"}"#.into());
        records.parameter_types.put(FlowKey::new("acme", "p"), Some(of_type));
        let start = |records: &Records, blueprint: &str, description: &str, p: &str| {
            let given = Map::from_iter([("p".to_owned(), Value::String(p.to_owned()))]);
            let asked = Asked { id: "r1", is_repeated: false };
            let (workspace, drain) = (&workspace, Drain::Discard);
            let ask = Start { workspace, id: "f1", blueprint, description, given: &given, asked, drain };
            super::start(records, &ports, ask)
        };
        let refused = |outcome: Result<Decision, Refusal>, what: &str| match outcome {
            Err(Refusal::TooLarge(error)) => {
                assert!(error.r#type == "too-large" && error.message.contains(what), "{what}: {error:?}");
            }
            other => panic!("{what}: {other:?}"),
        };
        assert!(matches!(start(&records, "demo", "short", "v"), Ok(Decision::Write(..))));
        refused(start(&records, "demo", &"d".repeat(16_385), "v"), "the description");
        refused(start(&records, "demo", "", &"v".repeat(262_144)), "the parameters");
        refused(start(&records, "large", "", &"v".repeat(100_000)), "with these parameters");
        let Ok(Decision::Write(wish, _)) = start(&records, "demo", "", "v") else { panic!("a start") };
        let wish = std::sync::Arc::new(*wish);
        for n in 0..ceilings::FLOWS_MAX {
            let recorded = Recorded { version: 1, value: Ok(wish.clone()) };
            records.wishes.insert(FlowKey::new("acme", &format!("g{n}")), recorded);
        }
        refused(start(&records, "demo", "", "v"), "1000 flows");
    }

    #[test]
    fn all_texts_that_a_start_needs_and_are_not_kept_are_named_at_once() {
        let (ports, workspace) = (Ports::new(false), WorkspaceId::existing("acme"));
        let mut records = Records::default();
        let declared: Vec<String> = (0..500).map(|n| format!(r#""p{n}": {{"type": "t{n}"}}"#)).collect();
        let blueprint =
            format!(r#"{{"flow": {{}}, "blueprint": {{}}, "parameters": {{{}}}}}"#, declared.join(", "));
        records.blueprints.put(FlowKey::new("acme", "demo"), Some(Text::Kept(blueprint.into())));
        let of_type = |n: usize| FlowKey::new("acme", &format!("t{n}"));
        (0..500).for_each(|n| records.parameter_types.put(of_type(n), Some(Text::Elsewhere)));
        let start = |records: &Records| {
            let (given, asked) = (Map::new(), Asked { id: "r1", is_repeated: false });
            let (workspace, drain) = (&workspace, Drain::Discard);
            let (blueprint, description) = ("demo", "");
            let ask = Start { workspace, id: "f1", blueprint, description, given: &given, asked, drain };
            super::start(records, &ports, ask)
        };
        let Err(Refusal::Elsewhere { kind, names, .. }) = start(&records) else { panic!("not at hand") };
        assert_eq!((kind, names.len()), (record::PARAMETER_TYPE, 500));
        (0..500).for_each(|n| records.parameter_types.put(of_type(n), None));
        assert!(matches!(start(&records), Ok(Decision::Write(..))));
    }

    #[test]
    fn a_drain_is_a_time_or_discard() {
        let check = |text: &str, expected: Option<Drain>| {
            assert_eq!(drain(Some(text), Duration::from_secs(20)).ok(), expected, "{text}");
        };
        check("", Some(Drain::WithinMs(20_000)));
        check("20s", Some(Drain::WithinMs(20_000)));
        check("500ms", Some(Drain::WithinMs(500)));
        check("2m", Some(Drain::WithinMs(120_000)));
        check(" 1.5 ", Some(Drain::WithinMs(1_500)));
        check("0", Some(Drain::WithinMs(0)));
        check("discard", Some(Drain::Discard));
        for bad in ["soon", "-1", "s", "1h", "1e99", "nan", "86401"] {
            check(bad, None);
        }
    }
}
