//! `sluice doc show` and `sluice doc retry`: one document, what became of it, and what failed of it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::doc::Pace;
use super::lost;
use crate::api::Api;
use crate::cli::Output;
use crate::exit::{Code, Told};
use crate::output::{show as print, table, text};

/// Parked messages that are shown.
const LETTERS_MAX: usize = 20;

/// Shows everything that is known of a document.
pub(super) async fn show(api: &Api, output: Output, id: &str) -> anyhow::Result<()> {
    let ask = |operation: &str| {
        api.call("librarian", json!({"operation": operation, "document-id": id, "document-ids": []}))
    };
    let found = ask("get-document-metadata").await?;
    let Some(metadata) = found.get("document-metadata").filter(|metadata| metadata.is_object()) else {
        return Err(missing(id).into());
    };
    let list = |operation: &str| api.list("librarian", json!({"operation": operation, "document-id": id}));
    let (parts, progress, records) =
        tokio::try_join!(list("list-children"), ask("get-progress"), list("list-processing"))?;
    let parked = json!({"operation": "list", "document-id": id, "limit": LETTERS_MAX});
    let parked = api.call("dead-letters", parked).await?;
    let whole = json!({
        "document": metadata,
        "parts": by_kind(&parts["document-metadatas"]),
        "flows": all(&records["processing-metadatas"]).filter(|one| one["document-id"] == *id).collect::<Vec<_>>(),
        "progress": all(&progress["progress"]).collect::<Vec<_>>(),
        "parked": all(&parked["letters"]).collect::<Vec<_>>(),
        "parked-more": parked["remaining"].as_u64().unwrap_or_default(),
    });
    print(output, &whole, |whole| shown(id, whole))
}

fn missing(id: &str) -> Told {
    Told::new(Code::NotFound, format!("document '{id}' is not in the library")).next("sluice doc ls")
}

fn all(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// How many parts of each kind a document was cut into: pages, sections, chunks.
fn by_kind(parts: &Value) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for part in all(parts) {
        *kinds.entry(text(part, "document-type")).or_default() += 1;
    }
    kinds
}

fn shown(id: &str, whole: &Value) -> String {
    let document = &whole["document"];
    let mut lines = vec![
        format!("document    {id}"),
        format!("title       {}", text(document, "title")),
        format!("kind        {}", text(document, "kind")),
    ];
    let parts = whole["parts"].as_object().into_iter().flatten();
    let parts: Vec<String> = parts.map(|(kind, count)| format!("{count} {kind}(s)")).collect();
    if !parts.is_empty() {
        lines.push(format!("parts       {}", parts.join(", ")));
    }
    let flows: Vec<String> = all(&whole["flows"])
        .map(|one| format!("{} (collection {})", text(one, "flow"), text(one, "collection")))
        .collect();
    lines
        .push(format!("flows       {}", if flows.is_empty() { "none".to_owned() } else { flows.join(", ") }));
    for one in all(&whole["progress"]) {
        lines.push(String::new());
        lines.extend(stages(one));
    }
    if all(&whole["progress"]).any(|one| one["lost"] == true) {
        lines.push(String::new());
        lines.push(format!(
            "The broker's log was lost while it was under way, with messages of it. Put it through again: sluice doc retry {id}"
        ));
    }
    let failures = all(&whole["progress"]).flat_map(|one| all(&one["failures"]));
    let failures: Vec<Vec<String>> =
        failures.map(|one| ["piece", "stage", "reason"].map(|name| text(one, name)).to_vec()).collect();
    if !failures.is_empty() {
        lines.push(String::new());
        lines.push(table(&["piece", "stage", "reason"], failures, ""));
    }
    let parked = all(&whole["parked"]).count() as u64 + whole["parked-more"].as_u64().unwrap_or_default();
    if parked > 0 {
        lines.push(String::new());
        lines.push(format!(
            "{parked} failed message(s) of it are kept. Send them again: sluice doc retry {id}"
        ));
    }
    lines.join("\n")
}

/// How far a flow is with it, a line per stage.
fn stages(progress: &Value) -> Vec<String> {
    let number = |name: &str| progress[name].as_i64().unwrap_or_default();
    let state = match progress["complete"] == true {
        true => "complete".to_owned(),
        false if progress["lost"] == true => "not on record as done".to_owned(),
        false => format!("under way {}", Pace::of(std::iter::once(progress))).trim_end().to_owned(),
    };
    let announced = number("announced");
    vec![
        format!("flow        {}: {state}", text(progress, "flow")),
        format!("  chunked   {} of {} texts", number("texts-done"), number("texts-announced")),
        format!("  embedded  {} of {announced} chunks", number("embedded")),
        format!("  indexed   {} of {announced} chunks", number("indexed")),
        format!("  stored    {} of {announced} chunks", number("stored")),
        format!("  failed    {} chunks", number("failed")),
    ]
}

/// Sends what failed of documents through their flows again.
pub(super) async fn retry(
    api: &Api,
    output: Output,
    ids: &[String],
    flow: Option<&str>,
) -> anyhow::Result<Code> {
    let mut outcomes = Vec::new();
    for id in ids {
        let metadata = json!({"operation": "get-document-metadata", "document-id": id});
        if !api.call("librarian", metadata).await?["document-metadata"].is_object() {
            return Err(missing(id).into());
        }
        let about = |operation: &str| {
            let flow = flow.unwrap_or_default();
            json!({"operation": operation, "document-id": id, "flow": flow})
        };
        // What is not there cannot be sent again, and that is fine.
        let kept = api.call("dead-letters", about("list")).await?;
        let answer = match all(&kept["letters"]).next() {
            Some(_) => api.call("dead-letters", about("replay")).await?,
            None => json!({"count": 0}),
        };
        let kept: Vec<&Value> = all(&answer["kept"]).collect();
        let progress = api.call("librarian", about("get-progress")).await?;
        let again = lost::put_through(api, &lost::of(&progress)).await?;
        outcomes.push(json!({"document": id, "sent": answer["count"], "kept": kept, "again": again}));
    }
    let stays = outcomes.iter().any(|one| all(&one["kept"]).next().is_some() || lost::stays(&one["again"]));
    print(output, &Value::Array(outcomes), retried)?;
    Ok(if stays { Code::Failed } else { Code::Ok })
}

fn retried(outcomes: &Value) -> String {
    let mut lines = Vec::new();
    for one in all(outcomes) {
        let id = text(one, "document");
        let again = Some(lost::told(&one["again"])).filter(|again| !again.is_empty());
        let counts = (one["sent"].as_i64().unwrap_or_default(), all(&one["kept"]).count());
        lines.extend(again.clone());
        lines.extend(match counts {
            (0, 0) if again.is_some() => None,
            (0, 0) => Some(format!(
                "{id}: no failed message of it is kept, and none was lost. `sluice doc show {id}` shows what failed; `sluice doc rm \
                 {id}`, then `sluice doc add` puts all of it through again."
            )),
            (sent, 0) => Some(format!("{id}: {sent} failed message(s) sent again.")),
            (sent, kept) => Some(format!("{id}: {sent} failed message(s) sent again, {kept} stay:")),
        });
        lines.extend(all(&one["kept"]).map(|kept| format!("  {}", text(kept, "reason"))));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_shown_with_its_reason_and_how_to_send_it_again() {
        let whole = json!({
            "document": {"title": "pumps.pdf", "kind": "application/pdf"}, "parts": {"page": 2},
            "flows": [{"flow": "f1", "collection": "c"}],
            "progress": [{"flow": "f1", "complete": false, "texts-announced": 2, "texts-done": 1, "announced": 9,
                "stored": 3, "failed": 1, "failures": [{"piece": "p1", "stage": "chunker", "reason": "too long"}]}],
            "parked": [{"id": "x"}], "parked-more": 2,
        });
        let said = shown("d1", &whole);
        for part in [
            "2 page(s)",
            "f1 (collection c)",
            "under way",
            "1 of 2 texts",
            "3 of 9",
            "too long",
            "3 failed message(s)",
            "sluice doc retry d1",
        ] {
            assert!(said.contains(part), "{part} in:\n{said}");
        }
    }

    #[test]
    fn a_retry_says_what_was_sent_and_what_stays() {
        let said = retried(
            &json!([{"document": "a", "sent": 2, "kept": []}, {"document": "b", "sent": 0, "kept": []},
            {"document": "c", "sent": 1, "kept": [{"id": "x", "reason": "start the flow"}]}]),
        );
        assert!(
            said.contains("a: 2 failed")
                && said.contains("b: no failed")
                && said.contains("  start the flow"),
            "{said}"
        );
    }
}
