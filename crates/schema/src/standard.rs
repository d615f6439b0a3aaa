//! The standard wiring: blueprints and the config that goes with them, as they can be put into a workspace.

use std::sync::LazyLock;

use serde_json::{Map, Value};

/// Standard blueprints: name and JSON text.
pub const BLUEPRINTS: &[(&str, &str)] = &[
    ("document-rag", include_str!("../data/blueprints/document-rag.json")),
    ("graph-rag", include_str!("../data/blueprints/graph-rag.json")),
    ("document-rag+graph-rag", include_str!("../data/blueprints/document-rag+graph-rag.json")),
    ("structured", include_str!("../data/blueprints/structured.json")),
    ("ontology", include_str!("../data/blueprints/ontology.json")),
    ("everything", include_str!("../data/blueprints/everything.json")),
];
/// Parameter types: JSON text of an object, key → record.
pub const PARAMETER_TYPES: &str = include_str!("../data/parameter-types.json");
/// Prompt templates: JSON text of an object, key → record.
pub const PROMPTS: &str = include_str!("../data/prompts.json");
/// Collections: JSON text of an object, key → record.
pub const COLLECTIONS: &str = include_str!("../data/collections.json");
/// Tools of agents: JSON text of an object, key → record.
pub const TOOLS: &str = include_str!("../data/tools.json");
/// What interfaces are for: JSON text of an object, key → record.
pub const INTERFACE_DESCRIPTIONS: &str = include_str!("../data/interface-descriptions.json");

/// Config types with their standard records, blueprints left out.
const CONFIG: &[(&str, &str)] = &[
    ("parameter-type", PARAMETER_TYPES),
    ("prompt", PROMPTS),
    ("collection", COLLECTIONS),
    ("tool", TOOLS),
    ("interface-description", INTERFACE_DESCRIPTIONS),
];

/// One config value to put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandardValue {
    /// Config type.
    pub config_type: &'static str,
    /// Key.
    pub key: String,
    /// The record as JSON text.
    pub value: String,
}

/// The standard config of a workspace, blueprints left out.
#[must_use]
pub fn config() -> &'static [StandardValue] {
    static VALUES: LazyLock<Vec<StandardValue>> = LazyLock::new(|| {
        let values = |(config_type, text): &(&'static str, &str)| {
            let config_type = *config_type;
            let records: Map<String, Value> =
                serde_json::from_str(text).expect("the tree's own data parses, as a test shows");
            records.into_iter().map(move |(key, record)| StandardValue {
                config_type,
                key,
                value: record.to_string(),
            })
        };
        CONFIG.iter().flat_map(values).collect()
    });
    &VALUES
}

/// A standard blueprint's JSON text.
#[must_use]
pub fn blueprint(name: &str) -> Option<&'static str> {
    BLUEPRINTS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doors::{self, Home};
    use crate::{Topic, WorkspaceId, slots};

    #[test]
    fn every_standard_value_is_json_text() {
        assert!(config().iter().any(|value| value.config_type == "prompt" && value.key == "system"));
        for value in config() {
            serde_json::from_str::<Value>(&value.value).unwrap();
        }
    }

    #[test]
    fn every_standard_blueprint_stays_behind_its_doors() {
        let workspace = WorkspaceId::existing("acme");
        let home = Home { workspace: &workspace, names: &["f1"] };
        let topic = |template: &Value| {
            Topic::parse(&template.as_str().unwrap().replace("{workspace}", "acme").replace("{id}", "f1"))
                .unwrap()
        };
        for (name, text) in BLUEPRINTS {
            let blueprint: Value = serde_json::from_str(text).unwrap();
            for interface in blueprint["interfaces"].as_object().unwrap().values() {
                for template in interface.as_object().unwrap().values() {
                    doors::check(&topic(template), doors::Use::Expose, home).unwrap();
                }
            }
            for (key, processor) in blueprint["flow"].as_object().unwrap() {
                let (id, _) = key.split_once(':').unwrap();
                let topics = processor["topics"].as_object().unwrap();
                for (slot, template) in topics {
                    let kind = slots::kind_of(id, slot, topics.keys().map(String::as_str));
                    doors::check(&topic(template), kind.wanted(), home)
                        .unwrap_or_else(|e| panic!("{name} {key} {slot}: {e}"));
                }
            }
        }
    }
}
