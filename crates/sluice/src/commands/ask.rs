//! `sluice ask`: a question, answered with its sources.

use clap::ValueEnum as _;
use serde_json::{Value, json};

use crate::api::Api;
use crate::cli::{Ask, Output};
use crate::output::{say, say_on, show, text};

pub(super) const SERVICE: &str = "document-rag";

pub(super) async fn run(api: &Api, output: Output, command: &Ask) -> anyhow::Result<()> {
    let flow = &command.flow;
    let question = question_of(command);
    if output != Output::Table {
        return show(output, &api.call_flow(flow, SERVICE, question).await?, readable);
    }
    // For people, word by word.
    let mut sources = Value::Null;
    let mut spoken = false;
    api.stream_flow(flow, SERVICE, question, |part| {
        if part["message_type"] != "explain" {
            let words = text(part, "response");
            spoken |= !words.is_empty();
            say_on(&words);
        }
        if part["sources"].is_array() {
            sources = part["sources"].clone();
        }
    })
    .await?;
    if spoken {
        say("");
    }
    let cited = cited(&sources);
    if !cited.is_empty() {
        say(&format!("\n{}", cited.join("\n")));
    }
    Ok(())
}

fn question_of(command: &Ask) -> Value {
    let Ask { question, flow: _, collection, limit, mode, diverse } = command;
    let mut asked = json!({"query": question, "collection": collection, "doc-limit": limit});
    if let Some(mode) = mode.and_then(|mode| mode.to_possible_value()) {
        asked["retrieval-mode"] = mode.get_name().into();
    }
    if *diverse {
        asked["rerank-diversity-mode"] = "mmr".into();
    }
    asked
}

/// The answer with its sources, for people.
pub(super) fn readable(answer: &Value) -> String {
    let mut lines = vec![text(answer, "response").trim().to_owned()];
    let cited = cited(&answer["sources"]);
    if !cited.is_empty() {
        lines.push(String::new());
        lines.extend(cited);
    }
    lines.join("\n")
}

/// Where an answer comes from, a line each; none without sources.
fn cited(sources: &Value) -> Vec<String> {
    let sources = sources.as_array().into_iter().flatten();
    let mut lines: Vec<String> = sources
        .enumerate()
        .map(|(n, source)| {
            let page = source["page"].as_i64().map(|page| format!(", page {page}")).unwrap_or_default();
            let title = match text(source, "title") {
                title if title.is_empty() => text(source, "document_id"),
                title => title,
            };
            let place = format!("characters {}–{}", source["offset"], end(source));
            let score = source["score"].as_f64().unwrap_or_default();
            format!("  [{}] {title}{page}, {place} (score {score:.2})", n + 1)
        })
        .collect();
    if !lines.is_empty() {
        lines.insert(0, "Sources".to_owned());
    }
    lines
}

fn end(source: &Value) -> i64 {
    source["offset"].as_i64().unwrap_or_default() + source["length"].as_i64().unwrap_or_default()
}
