//! `sluice dead`: messages that could not be processed.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::api::Api;
use crate::cli::{Dead, Output};
use crate::exit::{Code, Told};
use crate::output::{say, show, table, text};

pub(super) async fn run(api: &Api, output: Output, command: Dead) -> anyhow::Result<()> {
    match command {
        Dead::Ls { flow, limit } => {
            let letters = list(api, flow.as_deref(), limit).await?;
            show(output, &Value::Array(letters), |letters| {
                let row = |letter: &Value| {
                    ["id", "flow", "topic", "attempts", "reason"].map(|name| text(letter, name)).to_vec()
                };
                let rows = letters.as_array().into_iter().flatten().map(row).collect();
                table(&["id", "flow", "topic", "attempts", "reason"], rows, "No dead letters.")
            })
        }
        Dead::Export { flow } => export(api, flow.as_deref()).await,
        Dead::Replay { ids, flow, run } => {
            let body = json!({"operation": "replay", "ids": ids, "flow": flow, "run": run});
            let answer = replay(api, body).await?;
            show(output, &answer, replayed)?;
            if answer["kept"].as_array().is_some_and(|kept| !kept.is_empty()) {
                return Err(Told::new(Code::Failed, "some letters were kept").next("sluice dead ls").into());
            }
            Ok(())
        }
        Dead::Rm { ids } => {
            let answer = api.call("dead-letters", json!({"operation": "remove", "ids": ids})).await?;
            show(output, &answer, |answer| format!("Deleted: {}.", answer["count"]))
        }
    }
}

/// Sends letters again, call by call: one takes only so many. What is parked anew meanwhile is not tried for ever.
async fn replay(api: &Api, body: Value) -> anyhow::Result<Value> {
    let mut whole = api.call("dead-letters", body.clone()).await?;
    let number = |answer: &Value, name: &str| answer[name].as_i64().unwrap_or_default();
    let mut left = number(&whole, "remaining");
    let mut sent = number(&whole, "count");
    while left > 0 && sent > 0 && whole["kept"].as_array().is_none_or(Vec::is_empty) {
        let answer = api.call("dead-letters", body.clone()).await?;
        sent = number(&answer, "count");
        left = (left - sent).min(number(&answer, "remaining"));
        whole["count"] = json!(number(&whole, "count") + sent);
        (whole["kept"], whole["remaining"]) = (answer["kept"].clone(), answer["remaining"].clone());
    }
    Ok(whole)
}

/// How many letters were sent again, and why others were kept.
fn replayed(answer: &Value) -> String {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for letter in answer["kept"].as_array().into_iter().flatten() {
        *reasons.entry(text(letter, "reason")).or_default() += 1;
    }
    let kept = reasons.into_iter().map(|(reason, count)| format!("  kept {count}: {reason}"));
    let sent = format!("Sent again: {}.", answer["count"]);
    std::iter::once(sent).chain(kept).collect::<Vec<_>>().join("\n")
}

/// The newest letters, page by page, up to so many.
async fn list(api: &Api, flow: Option<&str>, limit: u32) -> anyhow::Result<Vec<Value>> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut letters: Vec<Value> = Vec::new();
    loop {
        let before = letters.last().map(|letter| letter["id"].clone());
        let left = limit.saturating_sub(letters.len());
        let body = json!({"operation": "list", "flow": flow, "limit": left, "before": before});
        let answer = api.call("dead-letters", body).await?;
        let known = letters.len();
        letters.extend(answer["letters"].as_array().into_iter().flatten().cloned());
        let is_more = answer["remaining"].as_i64().unwrap_or_default() > 0;
        if !is_more || letters.len() >= limit || letters.len() == known {
            return Ok(letters);
        }
    }
}

/// Writes every letter, page by page. At the end it says which ones are too large to be exported.
async fn export(api: &Api, flow: Option<&str>) -> anyhow::Result<()> {
    let (mut before, mut kept) = (Value::Null, Vec::new());
    loop {
        let body = json!({"operation": "export", "flow": flow, "before": before});
        let answer = api.call("dead-letters", body).await?;
        let of = |name: &str| answer[name].as_array().cloned().unwrap_or_default();
        let (letters, too_large) = (of("letters"), of("kept"));
        for letter in &letters {
            say(&letter.to_string());
        }
        // One that is kept ends its page.
        let last = too_large.last().or(letters.last()).map(|letter| letter["id"].clone());
        kept.extend(
            too_large.iter().map(|letter| format!("{} ({})", text(letter, "id"), text(letter, "reason"))),
        );
        if answer["remaining"].as_i64().unwrap_or_default() == 0 {
            break;
        }
        let Some(last) = last else {
            let why = "letters were removed while they were exported, so the export is not whole";
            return Err(Told::new(Code::Failed, why).next("sluice dead export").into());
        };
        before = last;
    }
    if kept.is_empty() {
        return Ok(());
    }
    let why = format!("{} letters were not exported: {}", kept.len(), kept.join("; "));
    Err(Told::new(Code::Failed, why).next("sluice dead replay ID").into())
}
