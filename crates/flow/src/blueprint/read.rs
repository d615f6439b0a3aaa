//! From JSON text to a blueprint, or an error that names the place.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use sluice_schema::doors::{self, Home, Use};
use sluice_schema::{Topic, WorkspaceId, slots};

use super::parameters::{self, Declared};
use super::{Error, WARNINGS_MAX, shown, template};

/// Parameters of a blueprint, and topics of one of its processors.
const MEMBERS_MAX: usize = 1_000;

/// A blueprint: templates, not yet filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Blueprint {
    pub(super) parameters: Vec<Declared>,
    /// Interface name, then role and topic.
    pub(super) interfaces: Vec<(String, Vec<(String, String)>)>,
    /// Made once for all flows of the blueprint, then made for each flow.
    pub(super) parts: Vec<PartTemplate>,
}

/// One processor of a blueprint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PartTemplate {
    /// Where it stands, for errors.
    pub(super) place: String,
    pub(super) is_shared: bool,
    pub(super) processor: String,
    pub(super) variant: String,
    pub(super) topics: Vec<(String, String)>,
    pub(super) parameters: Vec<(String, String)>,
    /// Ours: the slots to subscribe, where the blueprint says so itself.
    pub(super) inputs: Option<Vec<String>>,
}

impl Blueprint {
    /// Reads a blueprint.
    ///
    /// # Errors
    /// What is wrong and where.
    pub fn read(text: &str) -> Result<Self, Error> {
        let value: Value = serde_json::from_str(text).map_err(|e| Error::Json(e.to_string()))?;
        let root = object("the blueprint", &value)?;
        let parameters = match root.get("parameters") {
            None | Some(Value::Null) => Vec::new(),
            Some(value) => declared(object("parameters", value)?)?,
        };
        if let Some(circle) = parameters::circle(&parameters) {
            return Err(Error::Circle { circle });
        }
        let interfaces = match root.get("interfaces") {
            None | Some(Value::Null) => Vec::new(),
            Some(value) => object("interfaces", value)?
                .iter()
                .map(|(name, roles)| Ok((name.clone(), texts(&format!("interfaces / {name}"), Some(roles))?)))
                .collect::<Result<_, Error>>()?,
        };
        let mut parts = section(root, "blueprint")?;
        parts.append(&mut section(root, "flow")?);
        Ok(Self { parameters, interfaces, parts })
    }

    /// The declared parameters.
    #[must_use]
    pub fn parameters(&self) -> &[Declared] {
        &self.parameters
    }

    /// Checks as much of the doors as can be known before a flow is started.
    ///
    /// # Errors
    /// A topic that no flow of this blueprint could ever use.
    pub fn check_doors(&self, workspace: &WorkspaceId) -> Result<(), Error> {
        let check = |place: String, topic: &str, wanted: Use| {
            let Ok(filled) = template::render(topic, |name| match name {
                "workspace" => Some(workspace.as_str()),
                "id" | "blueprint" => Some("id"),
                _ => None,
            }) else {
                // A parameter is part of the name: only a start can tell.
                return Ok(());
            };
            let topic =
                Topic::parse(&filled).map_err(|source| Error::Topic { place: place.clone(), source })?;
            doors::check(&topic, wanted, Home { workspace, names: &["id"] })
                .map_err(|source| Error::Door { place, source })
        };
        for (name, roles) in &self.interfaces {
            for (role, topic) in roles {
                check(format!("interfaces / {name} / {role}"), topic, Use::Expose)?;
            }
        }
        for part in &self.parts {
            for (slot, topic) in &part.topics {
                let siblings = part.topics.iter().map(|(slot, _)| slot.as_str());
                let kind = slots::kind_of(&part.processor, slot, siblings);
                check(format!("{} / topics / {slot}", part.place), topic, kind.wanted())?;
            }
        }
        Ok(())
    }

    /// Placeholders that only a caller's extra parameters could fill, the first of them, each with its place.
    #[must_use]
    pub fn undeclared(&self) -> Vec<String> {
        let declared = self.parameters.iter().map(|parameter| parameter.name.as_str());
        let known: BTreeSet<&str> = declared.chain(["workspace", "blueprint", "id"]).collect();
        let mut found = Vec::new();
        let mut look = |place: &str, text: &str| {
            for name in template::placeholders(text).filter(|name| !known.contains(name)) {
                if found.len() >= WARNINGS_MAX {
                    return;
                }
                let (place, name) = (shown(place), shown(name));
                found.push(format!("{place}: no parameter fills {{{name}}}; a start must give it"));
            }
        };
        for (name, roles) in &self.interfaces {
            look(&format!("interfaces / {name}"), name);
            for (role, topic) in roles {
                look(&format!("interfaces / {name} / {role}"), topic);
            }
        }
        for part in &self.parts {
            look(&part.place, &part.variant);
            for (slot, text) in part.topics.iter().chain(&part.parameters) {
                look(&format!("{} / {slot}", part.place), text);
            }
        }
        found
    }
}

fn section(root: &Map<String, Value>, section: &'static str) -> Result<Vec<PartTemplate>, Error> {
    let value = root.get(section).ok_or(Error::Section { section })?;
    object(section, value)?
        .iter()
        .map(|(key, value)| part(format!("{section} / {key}"), section == "blueprint", key, value))
        .collect()
}

fn part(place: String, is_shared: bool, key: &str, value: &Value) -> Result<PartTemplate, Error> {
    let halves =
        key.split_once(':').filter(|(processor, variant)| !processor.is_empty() && !variant.is_empty());
    let Some((processor, variant)) = halves else { return Err(Error::Key { place }) };
    let members = object(&place, value)?;
    let topics = texts(&format!("{place} / topics"), members.get("topics"))?;
    let parameters = texts(&format!("{place} / parameters"), members.get("parameters"))?;
    let inputs = match members.get("inputs") {
        None | Some(Value::Null) => None,
        Some(value) => Some(names(&format!("{place} / inputs"), value)?),
    };
    at_most(&place, "topics", topics.len())?;
    at_most(&place, "inputs", inputs.as_ref().map_or(0, Vec::len))?;
    let (processor, variant) = (processor.to_owned(), variant.to_owned());
    Ok(PartTemplate { place, is_shared, processor, variant, topics, parameters, inputs })
}

/// What is looked at one by the other has a bound.
fn at_most(place: &str, what: &'static str, count: usize) -> Result<(), Error> {
    if count <= MEMBERS_MAX {
        return Ok(());
    }
    Err(Error::Many { place: place.to_owned(), what, count, count_max: MEMBERS_MAX })
}

fn declared(parameters: &Map<String, Value>) -> Result<Vec<Declared>, Error> {
    at_most("parameters", "parameters", parameters.len())?;
    parameters
        .iter()
        .map(|(name, value)| {
            let place = format!("parameters / {name}");
            let members = object(&place, value)?;
            let member = |member: &str| match members.get(member) {
                None | Some(Value::Null) => Ok(None),
                Some(value) => text(&format!("{place} / {member}"), value).map(Some),
            };
            Ok(Declared {
                name: name.clone(),
                type_name: member("type")?,
                controlled_by: member("controlled-by")?,
            })
        })
        .collect()
}

fn object<'a>(place: &str, value: &'a Value) -> Result<&'a Map<String, Value>, Error> {
    value.as_object().ok_or_else(|| shape(place, "an object", value))
}

fn text(place: &str, value: &Value) -> Result<String, Error> {
    value.as_str().map(str::to_owned).ok_or_else(|| shape(place, "text", value))
}

fn texts(place: &str, value: Option<&Value>) -> Result<Vec<(String, String)>, Error> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
    object(place, value)?
        .iter()
        .map(|(name, value)| Ok((name.clone(), text(&format!("{place} / {name}"), value)?)))
        .collect()
}

fn names(place: &str, value: &Value) -> Result<Vec<String>, Error> {
    let list = value.as_array().ok_or_else(|| shape(place, "a list of slot names", value))?;
    list.iter().map(|value| text(place, value)).collect()
}

fn shape(place: &str, wanted: &'static str, value: &Value) -> Error {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    Error::Shape { place: place.to_owned(), wanted, found }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(blueprint: &Value) -> String {
        Blueprint::read(&blueprint.to_string()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let check = |blueprint: Value, expected: &str| assert_eq!(refused(&blueprint), expected);
        check(json!([]), "the blueprint: must be an object, not a list");
        check(
            json!({"flow": {}}),
            "the blueprint has no 'blueprint' section; give it one, {} if it has nothing to hold",
        );
        check(
            json!({"blueprint": {}}),
            "the blueprint has no 'flow' section; give it one, {} if it has nothing to hold",
        );
        check(
            json!({"blueprint": {}, "flow": {"chunker": {}}}),
            "flow / chunker: a processor key is <processor>:<variant>, for example chunker:{id}",
        );
        check(
            json!({"blueprint": {"a:b": 1}, "flow": {}}),
            "blueprint / a:b: must be an object, not a number",
        );
        check(
            json!({"blueprint": {}, "flow": {"a:{id}": {"topics": {"input": 1}}}}),
            "flow / a:{id} / topics / input: must be text, not a number",
        );
        check(
            json!({"blueprint": {}, "flow": {"a:{id}": {"parameters": {"size": 1}}}}),
            "flow / a:{id} / parameters / size: must be text, not a number",
        );
        check(
            json!({"blueprint": {}, "flow": {}, "interfaces": {"agent": "request:tg:agent"}}),
            "interfaces / agent: must be an object, not text",
        );
        check(
            json!({"blueprint": {}, "flow": {}, "interfaces": {"agent": {"request": null}}}),
            "interfaces / agent / request: must be text, not null",
        );
        check(
            json!({"blueprint": {}, "flow": {}, "parameters": {"a": {"controlled-by": "b"}, "b": {"controlled-by": "a"}}}),
            "parameters: controlled-by goes round in a circle: a -> b -> a",
        );
        check(
            json!({"blueprint": {}, "flow": {"a:{id}": {"inputs": "input"}}}),
            "flow / a:{id} / inputs: must be a list of slot names, not text",
        );
        assert!(Blueprint::read("{").unwrap_err().to_string().contains("not JSON"));
    }

    #[test]
    fn a_blueprint_of_one_value_is_read_in_time_however_many_members_it_has() {
        let chain = |count: usize| -> Map<String, Value> {
            let next = |at: usize| json!({"controlled-by": format!("p{}", at + 1)});
            (0..count).map(|at| (format!("p{at}"), next(at))).collect()
        };
        let said = refused(&json!({"blueprint": {}, "flow": {}, "parameters": chain(25_000)}));
        assert_eq!(
            said,
            "parameters: has 25000 parameters, and 1000 is the limit; leave out what is not needed"
        );
        let topics: Map<String, Value> = (0..5_000).map(|at| (format!("s{at}"), "x".into())).collect();
        let said = refused(&json!({"blueprint": {}, "flow": {"a:{id}": {"topics": topics}}}));
        assert!(said.starts_with("flow / a:{id}: has 5000 topics"), "{said}");
        let allowed = json!({"blueprint": {}, "flow": {}, "parameters": chain(MEMBERS_MAX)}).to_string();
        let read = Blueprint::read(&allowed).unwrap();
        let types = |_: &str| None;
        let given = Map::from_iter([(format!("p{MEMBERS_MAX}"), json!("x"))]);
        let resolved = parameters::resolve(read.parameters(), &given, types).unwrap();
        assert!(resolved.len() == MEMBERS_MAX + 1 && resolved.iter().all(|(_, value)| value == "x"));
    }

    #[test]
    fn what_is_noticed_stays_short_however_long_names_are() {
        let (key, text) = (format!("{}:{{id}}", "k".repeat(100_000)), "{nope}".repeat(50_000));
        let text = json!({"blueprint": {}, "flow": {key: {"parameters": {"x": text}}}}).to_string();
        let told = Blueprint::read(&text).unwrap().undeclared();
        assert!(told.len() == WARNINGS_MAX && told.iter().all(|line| line.len() < 400), "{}", told.len());
    }

    #[test]
    fn doors_are_checked_before_any_flow_is_started() {
        let check = |slot: &str, topic: &str| {
            let mut topics = json!({slot: topic});
            if let Some(service) = slot.strip_suffix("-request") {
                topics[format!("{service}-response")] = topic.replace("request:", "response:").into();
            }
            let blueprint = json!({"blueprint": {}, "flow": {"a:{id}": {"topics": topics}}}).to_string();
            let workspace = WorkspaceId::parse("acme").unwrap();
            Blueprint::read(&blueprint).unwrap().check_doors(&workspace).map_err(|e| e.to_string())
        };
        assert_eq!(check("input", "flow:tg:x:{workspace}:{id}"), Ok(()));
        assert_eq!(check("librarian-request", "request:tg:librarian:{workspace}"), Ok(()));
        assert_eq!(check("input", "flow:tg:x:{workspace}:{tier}"), Ok(()), "only a start can tell");
        for (slot, topic) in [
            ("input", "request:tg:librarian:{workspace}"),
            ("input", "flow:tg:x:other:{id}"),
            ("output", "flow:tg:dead-letters:{workspace}"),
            ("config-request", "request:tg:config"),
            ("input", "chunks"),
        ] {
            let said = check(slot, topic).unwrap_err();
            assert!(said.starts_with(&format!("flow / a:{{id}} / topics / {slot}: ")), "{said}");
        }
    }

    #[test]
    fn placeholders_that_no_parameter_fills_are_listed() {
        let text = json!({"blueprint": {}, "parameters": {"size": {}},
            "flow": {"a:{id}": {"parameters": {"x": "{size}", "y": "{nope}"}}}});
        let blueprint = Blueprint::read(&text.to_string()).unwrap();
        assert_eq!(
            blueprint.undeclared(),
            ["flow / a:{id} / y: no parameter fills {nope}; a start must give it"]
        );
    }
}
