//! Prompt records of a workspace, each read when it is asked for, so that a bad one costs only itself.

use std::sync::Arc;

use serde::Deserialize;
use sluice_schema::ceilings::PROMPT_RECORD_BYTES_MAX as RECORD_BYTES_MAX;
use sluice_sdk::{ConfigError, Values};

use super::results::ResponseType;
use crate::renderer::child::SYSTEM_DEFAULT;

/// The config type of prompt records.
pub(crate) const PROMPT: &str = "prompt";
const SYSTEM: &str = "system";
const TEMPLATE_PREFIX: &str = "template.";

#[derive(Deserialize)]
struct Raw {
    prompt: String,
    #[serde(rename = "response-type", default)]
    response_type: Option<String>,
    #[serde(default)]
    schema: Option<serde_json::Value>,
    #[serde(rename = "object-schema", default)]
    object_schema: Option<serde_json::Value>,
}

/// A record that can be read. Its template and schema may still be no good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) template: String,
    pub(crate) response_type: ResponseType,
    /// JSON text; empty where there is none.
    pub(crate) schema: String,
}

/// The texts of records that a question needs.
pub(crate) struct Texts {
    template: Option<Arc<str>>,
    system: Option<Arc<str>>,
}

impl Texts {
    pub(crate) async fn of(values: &Values, id: &str) -> Result<Self, ConfigError> {
        let template = values.get(&format!("{TEMPLATE_PREFIX}{id}")).await?;
        Ok(Self { template, system: values.get(SYSTEM).await? })
    }

    pub(crate) const fn has_template(&self) -> bool {
        self.template.is_some()
    }
}

/// The record of a prompt.
pub(crate) fn find(texts: &Texts, id: &str) -> Result<Record, String> {
    let Some(text) = &texts.template else {
        return Err(format!(
            "there is no prompt '{id}'; put it as config type '{PROMPT}', key '{TEMPLATE_PREFIX}{id}'"
        ));
    };
    read(text).map_err(|reason| format!("prompt '{id}' cannot be used: {reason}"))
}

/// The system prompt, and why the record of it cannot be used, if that is so.
pub(crate) fn system(texts: &Texts) -> (String, Option<String>) {
    match texts.system.as_ref().map(read_system) {
        None => (SYSTEM_DEFAULT.to_owned(), None),
        Some(Ok(text)) => (text, None),
        Some(Err(reason)) => (SYSTEM_DEFAULT.to_owned(), Some(reason)),
    }
}

fn read_system(text: &Arc<str>) -> Result<String, String> {
    check_size(text)?;
    serde_json::from_str(text).map_err(|error| format!("not a JSON string: {error}"))
}

fn check_size(text: &str) -> Result<(), String> {
    let bytes = text.len();
    if bytes > RECORD_BYTES_MAX {
        return Err(format!(
            "it has {bytes} bytes, and a prompt record at most {RECORD_BYTES_MAX}; make it shorter"
        ));
    }
    Ok(())
}

fn read(text: &str) -> Result<Record, String> {
    check_size(text)?;
    let raw: Raw = serde_json::from_str(text).map_err(|e| format!("not a prompt record: {e}"))?;
    let response_type = match raw.response_type.as_deref() {
        None | Some("text") => ResponseType::Text,
        Some("json") => ResponseType::Json,
        Some("jsonl") => ResponseType::JsonLines,
        Some(other) => return Err(format!("response-type is '{other}', not text, json or jsonl")),
    };
    let schema = raw.schema.or(raw.object_schema.filter(|_| response_type == ResponseType::JsonLines));
    let schema = schema.map(|schema| schema.to_string()).unwrap_or_default();
    Ok(Record { template: raw.prompt, response_type, schema })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::renderer::child::{Answer, render};

    /// Prompts as the service finds and renders them, but in this process.
    struct Prompts(Vec<(String, String)>);

    impl Prompts {
        fn new(records: &[(&str, &str)]) -> Self {
            Self(records.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect())
        }

        fn get(&self, key: &str) -> Option<&str> {
            self.0.iter().find(|(known, _)| known == key).map(|(_, text)| text.as_str())
        }

        fn render(&self, id: &str, terms: &BTreeMap<String, String>) -> Result<(String, String), String> {
            let record = read(self.get(&format!("{TEMPLATE_PREFIX}{id}")).unwrap())?;
            let system = self.get(SYSTEM).and_then(|text| read_system(&text.into()).ok());
            let system = system.unwrap_or_else(|| SYSTEM_DEFAULT.to_owned());
            let terms = terms.iter().map(|(name, text)| (name.as_str(), text.as_str()));
            match render(id, &system, &record.template, &record.schema, terms)? {
                Answer::Rendered { system, prompt, .. } => Ok((system, prompt)),
                Answer::Result { .. } => Err("no rendering".to_owned()),
            }
        }
    }

    fn terms(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn a_bad_record_costs_only_itself() {
        let large = format!(r#"{{"prompt": "{}"}}"#, "x".repeat(RECORD_BYTES_MAX));
        let prompts = Prompts::new(&[
            ("system", "\"You are {{who}}.\""),
            ("template-index", "[]"),
            ("template.good", r#"{"prompt": "Say {{word}}", "response-type": "text", "other": 1}"#),
            ("template.broken", r#"{"prompt": "{% if %}"}"#),
            ("template.no-json", "{"),
            ("template.odd", r#"{"prompt": "", "response-type": "yaml"}"#),
            ("template.large", &large),
        ]);
        let good = prompts.render("good", &terms(&[("word", "\"hi\""), ("who", "\"terse\"")]));
        assert_eq!(good, Ok(("You are terse.".to_owned(), "Say hi".to_owned())));
        for (id, expected) in [
            ("broken", "prompt 'broken' cannot be used"),
            ("no-json", "not a prompt record"),
            ("odd", "'yaml'"),
            ("large", "make it shorter"),
        ] {
            let reason = prompts.render(id, &terms(&[])).unwrap_err();
            assert!(reason.contains(expected), "{id}: {reason}");
        }
        let nothing = Texts { template: None, system: None };
        assert!(find(&nothing, "unknown").unwrap_err().contains("template.unknown"));
    }

    #[test]
    fn a_term_that_is_no_json_is_a_text() {
        let prompts = Prompts::new(&[("template.a", r#"{"prompt": "{{a}}|{{b}}|{{c}}"}"#)]);
        let shown =
            prompts.render("a", &terms(&[("a", "hi there"), ("b", "[1, \"x\"]"), ("c", "\"q\"")])).unwrap();
        assert_eq!(shown.1, "hi there|[1, 'x']|q");
    }

    #[test]
    fn without_a_system_record_the_default_stands() {
        for system in ["not json", "\"{% if %}\""] {
            let prompts = Prompts::new(&[("system", system), ("template.a", r#"{"prompt": ""}"#)]);
            assert_eq!(prompts.render("a", &terms(&[])).unwrap().0, "Be helpful.");
        }
        let nothing = Texts { template: None, system: None };
        assert_eq!(system(&nothing), ("Be helpful.".to_owned(), None));
    }

    fn standard() -> Vec<(&'static str, &'static str)> {
        let standard = sluice_schema::standard::config().iter().filter(|value| value.config_type == PROMPT);
        standard.map(|value| (value.key.as_ref(), value.value.as_ref())).collect()
    }

    /// Each standard prompt with terms as its callers send them, as the engine that templates were written for renders it.
    #[test]
    fn every_standard_prompt_renders_as_it_did_before() {
        let records = standard();
        let prompts = Prompts::new(&records);
        let rendered: BTreeMap<String, (serde_json::Map<String, serde_json::Value>, String)> =
            serde_json::from_str(include_str!("rendered.json")).unwrap();
        let ids = records.iter().filter_map(|(key, _)| key.strip_prefix(TEMPLATE_PREFIX));
        assert_eq!(
            ids.collect::<std::collections::BTreeSet<_>>(),
            rendered.keys().map(String::as_str).collect()
        );
        for (id, (variables, expected)) in &rendered {
            let terms = variables.iter().map(|(name, value)| (name.clone(), value.to_string())).collect();
            assert_eq!(&prompts.render(id, &terms).unwrap().1, expected, "{id}");
        }
    }

    #[test]
    fn every_standard_prompt_compiles_and_renders() {
        let records = standard();
        assert!(records.len() > 20);
        let prompts = Prompts::new(&records);
        let documents = r#"["Water boils at 100 degrees.", "Ice melts at 0."]"#;
        let shown = prompts
            .render("document-prompt", &terms(&[("query", "\"When?\""), ("documents", documents)]))
            .unwrap()
            .1;
        assert!(shown.contains("Water boils at 100 degrees.\n\n[passage]\nIce melts at 0."), "{shown}");
        assert!(shown.ends_with("Question: When?\n"));
        for (key, _) in records.iter().filter(|(key, _)| *key != "system") {
            let id = key.strip_prefix("template.").unwrap();
            prompts.render(id, &terms(&[])).unwrap_or_else(|reason| panic!("{id}: {reason}"));
        }
    }
}
