//! `sluice doc`: documents in the library, and their way through a flow with a progress bar fed by the stages.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::files::{Source, files_in, read_all};
use super::{document, lost};
use crate::api::Api;
use crate::cli::{Doc, Output};
use crate::exit::{Code, Told};
use crate::output::{show, table, text};

/// Files larger than this go up in parts, in bytes.
const WHOLE_BYTES_MAX: u64 = 2 * 1024 * 1024;
/// Size of a part, in bytes.
const PART_BYTES: usize = 3 * 1024 * 1024;
/// Documents asked about in one call.
const PROGRESS_DOCUMENTS_MAX: usize = 500;
/// How often progress is asked for.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// How long nothing may move before waiting is given up.
const STALL_TIMEOUT: Duration = Duration::from_secs(300);
/// How long nothing must move before the flow's queues are looked at, again after each look.
const IDLE_INTERVAL: Duration = Duration::from_secs(3);
/// Looks in a row that must find all of a flow's queues empty before it counts as idle: counts of messages in work may be
/// seconds old. More of them while of some document nothing has come out at the other end, or while the broker does not show
/// what is in work.
const IDLE_LOOKS: u32 = 3;
const IDLE_LOOKS_UNSEEN: u32 = 20;

pub(super) async fn run(api: &Api, output: Output, command: Doc) -> anyhow::Result<Code> {
    match command {
        Doc::Add { paths, flow, collection, title, no_wait, store_only } => {
            let files = files_in(&paths)?;
            if title.is_some() && files.len() != 1 {
                return Err(Told::usage("--title goes with exactly one file").into());
            }
            let mut sources = read_all(&files)?;
            if let (Some(title), [only]) = (title, &mut sources[..]) {
                only.name = title;
            }
            let bar = bar(sources.len() as u64, "{msg:24} {bar:30} {pos}/{len} files  {elapsed}");
            bar.set_message("adding");
            let (mut ids, mut names) = (Vec::new(), Vec::new());
            for source in &sources {
                let id = add(api, source).await.with_context(|| {
                    let all = sources.len();
                    format!(
                        "'{}' was not added, {} of {all} files were; the same command again adds the rest, and nothing twice",
                        source.name,
                        ids.len()
                    )
                })?;
                // Files with the same content are one document.
                if !ids.contains(&id) {
                    ids.push(id);
                    names.push(source.name.clone());
                }
                bar.inc(1);
            }
            if !store_only {
                bar.reset();
                bar.set_length(ids.len() as u64);
                bar.set_message(format!("handing to flow '{flow}'"));
                for (handed, id) in ids.iter().enumerate() {
                    process(api, id, &flow, &collection).await.with_context(|| {
                        let all = ids.len();
                        format!(
                            "all {all} documents are in the library, {handed} of them were handed to flow '{flow}'; the same \
                             command again hands over the rest"
                        )
                    })?;
                    bar.inc(1);
                }
            }
            bar.finish_and_clear();
            let waits = !no_wait && !store_only;
            let waited = async { if waits { wait(api, &ids, &flow).await } else { Ok(Value::Null) } };
            let mut progress = waited.await.with_context(|| {
                format!("all {} documents are in the library and were handed to flow '{flow}'", ids.len())
            })?;
            for one in progress.as_array_mut().into_iter().flatten() {
                let place = ids.iter().position(|id| *id == text(one, "document-id"));
                one["title"] = json!(place.and_then(|place| names.get(place)));
            }
            let failed = progress.as_array().into_iter().flatten().any(is_failed);
            let whole = json!({"documents": ids, "progress": progress});
            show(output, &whole, |whole| summary(whole, waits))?;
            Ok(if failed { Code::Failed } else { Code::Ok })
        }
        Doc::Ls => {
            let answer = api.list("librarian", json!({"operation": "list-documents"})).await?;
            show(output, &answer["document-metadatas"], |documents| {
                let row = |one: &Value| ["id", "title", "kind"].map(|name| text(one, name)).to_vec();
                let rows = documents.as_array().into_iter().flatten().map(row).collect();
                table(&["id", "title", "kind"], rows, "No documents. Try: sluice doc add FILE")
            })?;
            Ok(Code::Ok)
        }
        Doc::Show { id } => document::show(api, output, &id).await.map(|()| Code::Ok),
        Doc::Retry { ids, flow, lost: false } => document::retry(api, output, &ids, flow.as_deref()).await,
        Doc::Retry { flow, lost: true, .. } => lost::retry(api, output, flow.as_deref()).await,
        Doc::Rm { ids } => {
            for id in &ids {
                api.call("librarian", json!({"operation": "remove-document", "document-id": id})).await?;
            }
            show(output, &json!({"removed": ids}), |_| format!("Removed {} document(s).", ids.len()))?;
            Ok(Code::Ok)
        }
    }
}

/// Adds a document under an id made from its content; adding the same content again is fine.
pub(super) async fn add(api: &Api, source: &Source) -> anyhow::Result<String> {
    let id = format!("urn:sluice:doc:{}", content_name(&source.content));
    let known =
        api.call("librarian", json!({"operation": "get-document-metadata", "document-id": id})).await?;
    if known["document-metadata"].is_object() {
        let title = text(&known["document-metadata"], "title");
        if title != source.name {
            eprintln!("note: the content of '{}' is in the library already, as '{title}'", source.name);
        }
        return Ok(id);
    }
    let metadata = json!({
        "id": id, "kind": source.kind, "title": source.name, "comments": "", "metadata": [], "tags": [],
    });
    if source.content.len() as u64 <= WHOLE_BYTES_MAX {
        let content = STANDARD.encode(&source.content);
        api.call(
            "librarian",
            json!({"operation": "add-document", "document-metadata": metadata, "content": content}),
        )
        .await?;
    } else {
        upload(api, metadata, &source.content).await?;
    }
    Ok(id)
}

/// A name made from content: the same content has the same name.
fn content_name(content: &[u8]) -> String {
    use sha2::Digest;
    const DIGEST_BYTES: usize = 12;
    let digest = sha2::Sha256::digest(content);
    digest.iter().take(DIGEST_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

async fn upload(api: &Api, metadata: Value, content: &[u8]) -> anyhow::Result<()> {
    let begun = json!({
        "operation": "begin-upload", "document-metadata": metadata,
        "total-size": content.len(), "chunk-size": PART_BYTES,
    });
    let begun = api.call("librarian", begun).await?;
    let upload = begun["upload-id"].clone();
    let size = begun["chunk-size"].as_u64().and_then(|size| usize::try_from(size).ok()).unwrap_or(PART_BYTES);
    for (index, part) in content.chunks(size.max(1)).enumerate() {
        let body = json!({
            "operation": "upload-chunk", "upload-id": upload, "chunk-index": index, "content": STANDARD.encode(part),
        });
        if let Err(error) = api.call("librarian", body).await {
            // The first failure is what the person should see, not that of the tidying up.
            let _ = api.call("librarian", json!({"operation": "abort-upload", "upload-id": upload})).await;
            return Err(error);
        }
    }
    api.call("librarian", json!({"operation": "complete-upload", "upload-id": upload})).await.map(drop)
}

/// Sends a document through a flow.
pub(super) async fn process(api: &Api, document: &str, flow: &str, collection: &str) -> anyhow::Result<()> {
    let processing = json!({
        "id": format!("{document}:{flow}:{collection}"), "document-id": document, "flow": flow,
        "collection": collection, "tags": [],
    });
    api.call("librarian", json!({"operation": "add-processing", "processing-metadata": processing}))
        .await
        .map(drop)
}

/// Waits until every document is through, showing how far the stages say they are. Processors of others may report nothing:
/// then the wait is over when nothing moves and the flow's queues are empty.
pub(super) async fn wait(api: &Api, documents: &[String], flow: &str) -> anyhow::Result<Value> {
    let bar = bar(0, "{prefix:24} {bar:30} {pos}/{len} chunks  {elapsed}  {msg}").with_prefix("decoding");
    let stall_timeout = STALL_TIMEOUT.min(api.timeout());
    let mut last = Vec::new();
    let mut moved = Instant::now();
    let (mut next_look, mut idle_looks) = (moved + IDLE_INTERVAL, 0);
    let mut states = BTreeMap::new();
    loop {
        ask_for_open(api, documents, flow, &mut states).await?;
        let sum = |name: &str| states.values().map(|one| one[name].as_u64().unwrap_or_default()).sum::<u64>();
        bar.set_length(sum("announced"));
        bar.set_position(sum("stored") + sum("failed"));
        bar.set_prefix(format!("{} of {} documents", done(&states), documents.len()));
        bar.set_message(Pace::of(states.values()).to_string());
        if done(&states) == documents.len() {
            bar.finish();
            return Ok(json!(states.values().collect::<Vec<_>>()));
        }
        let now: Vec<_> = states.values().map(counts).collect();
        if now != last {
            last = now;
            moved = Instant::now();
            (next_look, idle_looks) = (moved + IDLE_INTERVAL, 0);
        } else if moved.elapsed() > stall_timeout {
            bar.abandon();
            let seconds = stall_timeout.as_secs();
            let told = format!("nothing has moved for {seconds} s; the documents stay queued");
            return Err(Told::new(Code::TimedOut, told)
                .next(format!("sluice flow watch {flow}, sluice doctor, and sluice dead ls"))
                .into());
        } else if Instant::now() >= next_look {
            let idle = idle(&super::flow::status(api, flow).await?);
            idle_looks = if idle.is_some() { idle_looks + 1 } else { 0 };
            let is_seen = |one: &Value| one["complete"] == true || one["stored"].as_u64() > Some(0);
            let is_all_seen = states.len() == documents.len() && states.values().all(is_seen);
            let is_certain = is_all_seen && idle == Some(Idle::Counted);
            if idle_looks >= if is_certain { IDLE_LOOKS } else { IDLE_LOOKS_UNSEEN } {
                bar.abandon();
                return Ok(json!(states.values().collect::<Vec<_>>()));
            }
            next_look = Instant::now() + IDLE_INTERVAL;
        }
        tokio::time::sleep(PROGRESS_INTERVAL).await;
    }
}

pub(super) fn bar(length: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style)
}

/// How fast documents go through, and how long it will take, as the library tells it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Pace {
    pub(super) chunks_per_minute: f64,
    /// Until the last of them is through; `None` while that cannot be told.
    pub(super) remaining_seconds: Option<u64>,
}

impl Pace {
    /// That of documents together. Those that are through take no part.
    pub(super) fn of<'a>(progress: impl Iterator<Item = &'a Value>) -> Self {
        let open: Vec<&Value> = progress.filter(|one| one["complete"] != true).collect();
        let rates = open.iter().filter_map(|one| one["rate-per-minute"].as_f64());
        let remaining: Option<Vec<u64>> = open.iter().map(|one| one["remaining-seconds"].as_u64()).collect();
        Self {
            chunks_per_minute: rates.sum(),
            remaining_seconds: remaining.and_then(|all| all.into_iter().max()),
        }
    }
}

impl std::fmt::Display for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.chunks_per_minute > 0.0 {
            write!(f, "{:.0} chunks/min", self.chunks_per_minute)?;
        }
        match self.remaining_seconds {
            Some(seconds) if seconds > 0 => {
                write!(f, ", about {} left", indicatif::HumanDuration(Duration::from_secs(seconds)))
            }
            _ => Ok(()),
        }
    }
}

/// What grows while something is done for a document; its rate changes although nothing is.
fn counts(progress: &Value) -> [Option<u64>; 7] {
    let names = ["texts-announced", "texts-done", "announced", "embedded", "indexed", "stored", "failed"];
    names.map(|name| progress[name].as_u64())
}

/// That nothing of a flow waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Idle {
    /// Nor is anything in work.
    Counted,
    /// What is in work the broker does not show.
    Unsettled,
}

/// Whether nothing waits or is being worked on in a flow, as far as its broker can show.
pub(super) fn idle(status: &Value) -> Option<Idle> {
    let queues = status["queues"].as_array().into_iter().flatten();
    let durable: Vec<&Value> = queues.filter(|queue| text(queue, "topic").starts_with("flow:")).collect();
    let is_empty = |queue: &&Value| queue["ready"] == 0 && queue["unsettled"].as_u64().unwrap_or(0) == 0;
    let is_counted = durable.iter().all(|queue| queue["unsettled"].is_u64());
    (!durable.is_empty() && durable.iter().all(is_empty)).then_some(if is_counted {
        Idle::Counted
    } else {
        Idle::Unsettled
    })
}

/// Whether chunks of a document failed, or nothing of it is there to be asked about.
fn is_failed(progress: &Value) -> bool {
    let has_reasons = progress["failures"].as_array().is_some_and(|reasons| !reasons.is_empty());
    progress["failed"].as_i64() != Some(0) || (has_reasons && progress["stored"].as_i64() == Some(0))
}

fn done(states: &BTreeMap<String, Value>) -> usize {
    states.values().filter(|one| one["complete"] == true).count()
}

/// Asks how far those documents are that were not through when last asked.
pub(super) async fn ask_for_open(
    api: &Api,
    documents: &[String],
    flow: &str,
    states: &mut BTreeMap<String, Value>,
) -> anyhow::Result<()> {
    let is_open = |id: &&String| states.get(*id).is_none_or(|one| one["complete"] != true);
    let open: Vec<&String> = documents.iter().filter(is_open).collect();
    for ids in open.chunks(PROGRESS_DOCUMENTS_MAX) {
        let body = json!({"operation": "get-progress", "flow": flow, "document-ids": ids});
        let answer = api.call("librarian", body).await?;
        for one in answer["progress"].as_array().into_iter().flatten() {
            states.insert(text(one, "document-id"), one.clone());
        }
    }
    Ok(())
}

fn summary(whole: &Value, waited: bool) -> String {
    let count = whole["documents"].as_array().map_or(0, Vec::len);
    if !waited {
        return format!("Added {count} document(s).");
    }
    let all: Vec<&Value> = whole["progress"].as_array().into_iter().flatten().collect();
    let sum = |name: &str| all.iter().map(|one| one[name].as_i64().unwrap_or_default()).sum::<i64>();
    let mut lines = vec![format!(
        "Added {count} document(s): {} chunks stored, {} failed.",
        sum("stored"),
        sum("failed")
    )];
    let open = all.iter().filter(|one| one["complete"] != true).count();
    if open > 0 {
        lines.push(format!(
            "  Nothing of the flow waits or is in work, but {open} of them are not reported complete: one of its processors does not report."
        ));
    }
    for one in &all {
        for failure in one["failures"].as_array().into_iter().flatten() {
            let (title, reason) = (text(one, "title"), text(failure, "reason"));
            lines.push(format!(
                "  {title}: {reason} ({} at {})",
                text(failure, "piece"),
                text(failure, "stage")
            ));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_idle_when_its_durable_queues_are_known_to_be_empty() {
        let check = |queues: Value, expected: bool| {
            let status = json!({"queues": queues});
            assert_eq!(idle(&status) == Some(Idle::Counted), expected, "{status}");
        };
        let queue = |topic: &str, ready: u64, unsettled: Value| json!({"topic": topic, "ready": ready, "unsettled": unsettled});
        let (flow, request) = ("flow:tg:chunk-load:default:f1", "request:tg:prompt:default:f1");
        check(json!([queue(flow, 0, json!(0)), queue(request, 3, json!(1))]), true);
        check(json!([queue(flow, 0, json!(0)), queue(flow, 1, json!(0))]), false);
        check(json!([queue(flow, 0, json!(1))]), false);
        check(json!([queue(flow, 0, Value::Null)]), false);
        check(json!([queue(request, 0, json!(0))]), false);
        check(json!([]), false);
        // What is in work cannot be seen; that something waits can.
        let unseen = |ready: u64| json!({"queues": [queue(flow, ready, Value::Null)]});
        assert_eq!(idle(&unseen(0)), Some(Idle::Unsettled));
        assert_eq!(idle(&unseen(1)), None);
    }

    #[test]
    fn the_pace_is_that_of_all_open_documents_and_their_end_that_of_the_slowest() {
        let one = |complete: bool, rate: f64, left: Value| json!({"complete": complete, "rate-per-minute": rate, "remaining-seconds": left});
        let pace = |all: &[Value]| Pace::of(all.iter());
        let both =
            pace(&[one(false, 20.0, json!(30)), one(false, 10.0, json!(45)), one(true, 0.0, json!(0))]);
        assert_eq!(both, Pace { chunks_per_minute: 30.0, remaining_seconds: Some(45) });
        assert_eq!(both.to_string(), "30 chunks/min, about 45 seconds left");
        assert_eq!(
            pace(&[one(false, 5.0, json!(30)), one(false, 0.0, Value::Null)]).to_string(),
            "5 chunks/min"
        );
        assert_eq!(pace(&[]), Pace { chunks_per_minute: 0.0, remaining_seconds: None });
    }

    #[test]
    fn a_rate_that_falls_is_no_progress() {
        let progress =
            |stored: u64, rate: f64| json!({"announced": 2, "stored": stored, "rate-per-minute": rate});
        assert_eq!(counts(&progress(1, 9.5)), counts(&progress(1, 8.5)));
        assert_ne!(counts(&progress(1, 9.5)), counts(&progress(2, 9.5)));
    }

    #[test]
    fn what_nobody_reported_is_not_called_complete() {
        let progress = json!([{"stored": 1, "failed": 0, "complete": false}]);
        let told = summary(&json!({"documents": ["a"], "progress": progress}), true);
        assert!(
            told.contains("1 chunks stored") && told.contains("1 of them are not reported complete"),
            "{told}"
        );
    }
}
