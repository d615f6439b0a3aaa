//! Prompt records of a workspace: loaded one by one, so that a bad one costs only itself.

use std::collections::BTreeMap;

use minijinja::value::Serde;
use minijinja::{Environment, Value};
use serde::Deserialize;
use serde_json::Map;

use super::results::{self, ResponseType};
use crate::template;

/// The config type of prompt records.
pub(crate) const PROMPT: &str = "prompt";
const SYSTEM: &str = "system";
const TEMPLATE_PREFIX: &str = "template.";
const SYSTEM_DEFAULT: &str = "Be helpful.";

#[derive(Deserialize)]
struct Record {
    prompt: String,
    #[serde(rename = "response-type", default)]
    response_type: Option<String>,
    #[serde(default)]
    schema: Option<serde_json::Value>,
    #[serde(rename = "object-schema", default)]
    object_schema: Option<serde_json::Value>,
}

/// What a good record promises of its results.
struct Promise {
    response_type: ResponseType,
    schema: Option<serde_json::Value>,
}

/// The prompts of a workspace, compiled.
pub(crate) struct Prompts {
    environment: Environment<'static>,
    promises: BTreeMap<String, Result<Promise, String>>,
    bad_system: Option<String>,
}

/// A prompt with its terms filled in.
#[derive(Debug)]
pub(crate) struct Rendered {
    pub(crate) system: String,
    pub(crate) prompt: String,
    pub(crate) response_type: ResponseType,
    pub(crate) schema: Option<serde_json::Value>,
}

impl Rendered {
    /// The schema, if the model's provider can enforce it.
    pub(crate) fn strict_schema(&self) -> Option<Map<String, serde_json::Value>> {
        let schema = self.schema.as_ref().filter(|_| self.response_type == ResponseType::Json)?;
        results::enforceable(schema)
    }
}

impl Prompts {
    /// Compiles all records; those that cannot be used are kept with the reason.
    pub(crate) fn load(records: &[(&str, &str)]) -> Self {
        let mut environment = template::environment();
        let mut promises = BTreeMap::new();
        let mut bad_system = None;
        let mut system = SYSTEM_DEFAULT.to_owned();
        for (key, text) in records {
            if *key == SYSTEM {
                match serde_json::from_str(text) {
                    Ok(text) => system = text,
                    Err(error) => bad_system = Some(format!("not a JSON string: {error}")),
                }
            } else if let Some(id) = key.strip_prefix(TEMPLATE_PREFIX) {
                promises.insert(id.to_owned(), load_one(&mut environment, key, text));
            }
        }
        if let Err(reason) = template::compile(&mut environment, SYSTEM, &system) {
            bad_system = Some(reason);
            // The default is plain text and compiles.
            let _ = template::compile(&mut environment, SYSTEM, SYSTEM_DEFAULT);
        }
        Self { environment, promises, bad_system }
    }

    /// Keys and reasons of the records that cannot be used.
    pub(crate) fn bad(&self) -> impl Iterator<Item = (&str, &str)> {
        let templates = self
            .promises
            .iter()
            .filter_map(|(id, promise)| Some((id.as_str(), promise.as_ref().err()?.as_str())));
        self.bad_system.iter().map(|reason| (SYSTEM, reason.as_str())).chain(templates)
    }

    /// Fills in a prompt; each term is JSON text, or else the text itself, as some clients send it.
    pub(crate) fn render(&self, id: &str, terms: &BTreeMap<String, String>) -> Result<Rendered, String> {
        let promise = match self.promises.get(id) {
            Some(Ok(promise)) => promise,
            Some(Err(reason)) => return Err(format!("prompt '{id}' cannot be used: {reason}")),
            None => {
                return Err(format!(
                    "there is no prompt '{id}'; put it as config type '{PROMPT}', key '{TEMPLATE_PREFIX}{id}'"
                ));
            }
        };
        let mut values = BTreeMap::new();
        for (name, text) in terms {
            let value =
                serde_json::from_str(text).unwrap_or_else(|_| serde_json::Value::String(text.clone()));
            values.insert(name.clone(), Value::from(Serde(&value)));
        }
        Ok(Rendered {
            system: template::render(&self.environment, SYSTEM, &values)?,
            prompt: template::render(&self.environment, &format!("{TEMPLATE_PREFIX}{id}"), &values)?,
            response_type: promise.response_type,
            schema: promise.schema.clone(),
        })
    }
}

fn load_one(environment: &mut Environment<'static>, key: &str, text: &str) -> Result<Promise, String> {
    let record: Record = serde_json::from_str(text).map_err(|e| format!("not a prompt record: {e}"))?;
    let response_type = match record.response_type.as_deref() {
        None | Some("text") => ResponseType::Text,
        Some("json") => ResponseType::Json,
        Some("jsonl") => ResponseType::JsonLines,
        Some(other) => return Err(format!("response-type is '{other}', not text, json or jsonl")),
    };
    let schema = record.schema.or(record.object_schema.filter(|_| response_type == ResponseType::JsonLines));
    template::compile(environment, key, &record.prompt)?;
    Ok(Promise { response_type, schema })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn a_bad_record_costs_only_itself() {
        let prompts = Prompts::load(&[
            ("system", "\"You are {{who}}.\""),
            ("template-index", "[]"),
            ("template.good", r#"{"prompt": "Say {{word}}", "response-type": "text", "other": 1}"#),
            ("template.broken", r#"{"prompt": "{% if %}"}"#),
            ("template.no-json", "{"),
            ("template.odd", r#"{"prompt": "", "response-type": "yaml"}"#),
        ]);
        let good = prompts.render("good", &terms(&[("word", "\"hi\""), ("who", "\"terse\"")])).unwrap();
        assert_eq!((good.system.as_str(), good.prompt.as_str()), ("You are terse.", "Say hi"));
        assert_eq!(prompts.bad().map(|(id, _)| id).collect::<Vec<_>>(), ["broken", "no-json", "odd"]);
        assert!(prompts.render("broken", &terms(&[])).unwrap_err().contains("cannot be used"));
        assert!(prompts.render("unknown", &terms(&[])).unwrap_err().contains("template.unknown"));
    }

    #[test]
    fn a_term_that_is_no_json_is_a_text() {
        let prompts = Prompts::load(&[("template.a", r#"{"prompt": "{{a}}|{{b}}|{{c}}"}"#)]);
        let shown =
            prompts.render("a", &terms(&[("a", "hi there"), ("b", "[1, \"x\"]"), ("c", "\"q\"")])).unwrap();
        assert_eq!(shown.prompt, "hi there|[1, 'x']|q");
    }

    #[test]
    fn without_a_system_record_the_default_stands() {
        let prompts = Prompts::load(&[("system", "not json"), ("template.a", r#"{"prompt": ""}"#)]);
        assert_eq!(prompts.render("a", &terms(&[])).unwrap().system, "Be helpful.");
        assert_eq!(prompts.bad().count(), 1);
    }

    /// Each standard prompt with terms as its callers send them, as the engine that templates were written for renders it.
    #[test]
    fn every_standard_prompt_renders_as_it_did_before() {
        let standard = sluice_schema::standard::config().iter().filter(|value| value.config_type == PROMPT);
        let records: Vec<(&str, &str)> =
            standard.map(|value| (value.key.as_ref(), value.value.as_ref())).collect();
        let prompts = Prompts::load(&records);
        let rendered: BTreeMap<String, (serde_json::Map<String, serde_json::Value>, String)> =
            serde_json::from_str(include_str!("rendered.json")).unwrap();
        let ids = records.iter().filter_map(|(key, _)| key.strip_prefix(TEMPLATE_PREFIX));
        assert_eq!(
            ids.collect::<std::collections::BTreeSet<_>>(),
            rendered.keys().map(String::as_str).collect()
        );
        for (id, (variables, expected)) in &rendered {
            let terms = variables.iter().map(|(name, value)| (name.clone(), value.to_string())).collect();
            assert_eq!(&prompts.render(id, &terms).unwrap().prompt, expected, "{id}");
        }
    }

    #[test]
    fn every_standard_prompt_compiles_and_renders() {
        let standard = sluice_schema::standard::config();
        let records: Vec<(&str, &str)> = standard
            .iter()
            .filter(|value| value.config_type == PROMPT)
            .map(|value| (value.key.as_ref(), value.value.as_ref()))
            .collect();
        assert!(records.len() > 20);
        let prompts = Prompts::load(&records);
        assert_eq!(prompts.bad().collect::<Vec<_>>(), []);
        let documents = r#"["Water boils at 100 degrees.", "Ice melts at 0."]"#;
        let shown = prompts
            .render("document-prompt", &terms(&[("query", "\"When?\""), ("documents", documents)]))
            .unwrap();
        assert!(
            shown.prompt.contains("Water boils at 100 degrees.\n\n[passage]\nIce melts at 0."),
            "{}",
            shown.prompt
        );
        assert!(shown.prompt.ends_with("Question: When?\n"));
        for (key, _) in records.iter().filter(|(key, _)| *key != "system") {
            let id = key.strip_prefix("template.").unwrap();
            prompts.render(id, &terms(&[])).unwrap_or_else(|reason| panic!("{id}: {reason}"));
        }
    }
}
