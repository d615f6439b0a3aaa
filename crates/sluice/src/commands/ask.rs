//! `sluice ask`: a question, answered with its sources.

use serde_json::{Value, json};

use crate::api::Api;
use crate::cli::{Ask, Output};
use crate::output::{show, text};

pub(super) async fn run(api: &Api, output: Output, command: &Ask) -> anyhow::Result<()> {
    let answer = ask(api, &command.flow, &command.collection, &command.question, command.limit).await?;
    show(output, &answer, readable)
}

pub(super) async fn ask(
    api: &Api,
    flow: &str,
    collection: &str,
    question: &str,
    limit: u32,
) -> anyhow::Result<Value> {
    let body = json!({"query": question, "collection": collection, "doc-limit": limit});
    api.call_flow(flow, "document-rag", body).await
}

/// The answer with its sources, for people.
pub(super) fn readable(answer: &Value) -> String {
    let mut lines = vec![text(answer, "response").trim().to_owned()];
    let sources: Vec<&Value> = answer["sources"].as_array().into_iter().flatten().collect();
    if !sources.is_empty() {
        lines.push(String::new());
        lines.push("Sources".to_owned());
    }
    for (n, source) in sources.into_iter().enumerate() {
        let page = source["page"].as_i64().map(|page| format!(", page {page}")).unwrap_or_default();
        let title = match text(source, "title") {
            title if title.is_empty() => text(source, "document_id"),
            title => title,
        };
        let place = format!("characters {}–{}", source["offset"], end(source));
        let score = source["score"].as_f64().unwrap_or_default();
        lines.push(format!("  [{}] {title}{page}, {place} (score {score:.2})", n + 1));
    }
    lines.join("\n")
}

fn end(source: &Value) -> i64 {
    source["offset"].as_i64().unwrap_or_default() + source["length"].as_i64().unwrap_or_default()
}
