//! `sluice doc retry --lost`: documents that were under way when the broker's log was lost.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::api::Api;
use crate::cli::Output;
use crate::exit::Code;
use crate::output::{show, text};

/// A document in a flow.
pub(super) type Lost = BTreeSet<(String, String)>;

/// Those of an answer about progress of which messages were lost.
pub(super) fn of(answer: &Value) -> Lost {
    let all = answer["progress"].as_array().into_iter().flatten();
    let lost = all.filter(|one| one["lost"] == true);
    lost.map(|one| (text(one, "document-id"), text(one, "flow"))).collect()
}

/// Asks for documents of which messages were lost, as many as one answer tells.
pub(super) async fn ask(api: &Api, flow: Option<&str>) -> anyhow::Result<Lost> {
    let body = json!({"operation": "get-progress", "lost": true, "flow": flow.unwrap_or_default()});
    Ok(of(&api.call("librarian", body).await?))
}

/// Puts all of them through their flows again.
pub(super) async fn retry(api: &Api, output: Output, flow: Option<&str>) -> anyhow::Result<Code> {
    let (mut tried, mut outcomes) = (Lost::new(), Vec::new());
    loop {
        // Those that were put through are not told again, and others come in their place.
        let lost: Lost = ask(api, flow).await?.difference(&tried).cloned().collect();
        if lost.is_empty() {
            break;
        }
        outcomes.extend(put_through(api, &lost).await?);
        tried.extend(lost);
    }
    let outcomes = Value::Array(outcomes);
    show(output, &outcomes, |outcomes| match told(outcomes) {
        none if none.is_empty() => {
            "Nothing is on record that was under way when the broker's log was lost.".to_owned()
        }
        told => told,
    })?;
    Ok(if stays(&outcomes) { Code::Failed } else { Code::Ok })
}

/// Puts these documents through their flows again as it is on record that they were; what became of each.
pub(super) async fn put_through(api: &Api, lost: &Lost) -> anyhow::Result<Vec<Value>> {
    if lost.is_empty() {
        return Ok(Vec::new());
    }
    let answer = api.list("librarian", json!({"operation": "list-processing"})).await?;
    let mut without_record = lost.clone();
    let mut outcomes = Vec::new();
    for record in answer["processing-metadatas"].as_array().into_iter().flatten() {
        let one = (text(record, "document-id"), text(record, "flow"));
        if !lost.contains(&one) {
            continue;
        }
        without_record.remove(&one);
        let body = json!({"operation": "add-processing", "processing-metadata": record});
        let sent = api.call("librarian", body).await;
        let reason = sent.err().map(|error| format!("{error:#}"));
        outcomes.push(outcome(&one, reason.as_deref()));
    }
    let reason =
        "it is not on record how it was put through; `sluice doc rm`, then `sluice doc add` does that anew";
    outcomes.extend(without_record.iter().map(|one| outcome(one, Some(reason))));
    Ok(outcomes)
}

fn outcome((document, flow): &(String, String), reason: Option<&str>) -> Value {
    json!({"document": document, "flow": flow, "sent": reason.is_none(), "reason": reason})
}

/// Whether one of them was not put through again.
pub(super) fn stays(outcomes: &Value) -> bool {
    outcomes.as_array().into_iter().flatten().any(|one| one["sent"] != true)
}

/// A line for each.
pub(super) fn told(outcomes: &Value) -> String {
    let line = |one: &Value| {
        let (document, flow) = (text(one, "document"), text(one, "flow"));
        match one["reason"].as_str() {
            None => format!("{document}: put through flow '{flow}' again."),
            Some(reason) => format!("{document}: not put through flow '{flow}' again: {reason}"),
        }
    };
    let lines: Vec<String> = outcomes.as_array().into_iter().flatten().map(line).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_document_is_told_with_what_became_of_it() {
        let one = |flow: &str, reason: Option<&str>| outcome(&("d".to_owned(), flow.to_owned()), reason);
        let all = json!([one("f1", None), one("f2", Some("start the flow"))]);
        assert_eq!(
            told(&all),
            "d: put through flow 'f1' again.\nd: not put through flow 'f2' again: start the flow"
        );
        assert!(stays(&all) && !stays(&json!([one("f1", None)])) && !stays(&Value::Null));
        let answer = json!({"progress": [{"document-id": "a", "flow": "f"}, {"document-id": "b", "flow": "f", "lost": true}]});
        assert_eq!(of(&answer), Lost::from([("b".to_owned(), "f".to_owned())]));
    }
}
