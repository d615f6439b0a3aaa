//! `sluice doc`: documents in the library, and their way through a flow with a progress bar fed by the stages.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use sluice_documents::Kind;
use tokio::time::Instant;

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
/// seconds old. More of them while of some document nothing has come out at the other end.
const IDLE_LOOKS: u32 = 3;
const IDLE_LOOKS_UNSEEN: u32 = 20;

/// Files that are read, for people.
const READS: &str = "PDF, Word, Excel, PowerPoint, HTML, Markdown, CSV or text files";

/// A document to add.
pub(super) struct Source {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) content: Vec<u8>,
}

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
            let mut ids = Vec::new();
            for source in &sources {
                let id =
                    add(api, source).await.with_context(|| format!("'{}' was not added", source.name))?;
                // Files with the same content are one document.
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
            if !store_only {
                for id in &ids {
                    process(api, id, &flow, &collection).await?;
                }
            }
            let waits = !no_wait && !store_only;
            let progress = if waits { wait(api, &ids, &flow).await? } else { Value::Null };
            let failed = progress.as_array().into_iter().flatten().any(is_failed);
            let whole = json!({"documents": ids, "progress": progress});
            show(output, &whole, |whole| summary(whole, waits))?;
            Ok(if failed { Code::Failed } else { Code::Ok })
        }
        Doc::Ls => {
            let answer = api.call("librarian", json!({"operation": "list-documents"})).await?;
            show(output, &answer["document-metadatas"], |documents| {
                let row = |one: &Value| ["id", "title", "kind"].map(|name| text(one, name)).to_vec();
                let rows = documents.as_array().into_iter().flatten().map(row).collect();
                table(&["id", "title", "kind"], rows, "No documents. Try: sluice doc add FILE")
            })?;
            Ok(Code::Ok)
        }
        Doc::Rm { ids } => {
            for id in &ids {
                api.call("librarian", json!({"operation": "remove-document", "document-id": id})).await?;
            }
            show(output, &json!({"removed": ids}), |_| format!("Removed {} document(s).", ids.len()))?;
            Ok(Code::Ok)
        }
    }
}

/// The files that paths name, folders walked, in order.
pub(super) fn files_in(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let data = std::fs::metadata(path).map_err(|error| {
            Told::new(Code::NotFound, format!("'{}' cannot be opened: {error}", path.display()))
        })?;
        if data.is_file() {
            files.push(path.clone());
            continue;
        }
        let entries =
            std::fs::read_dir(path).with_context(|| format!("'{}' cannot be listed", path.display()))?;
        let mut inside: Vec<PathBuf> =
            entries.collect::<Result<Vec<_>, _>>()?.into_iter().map(|e| e.path()).collect();
        inside.sort();
        // In a folder only what can be decoded is taken; a file that was named is always tried.
        inside.retain(|entry| entry.is_dir() || kind_of(entry).is_ok());
        files.extend(files_in(&inside)?);
    }
    Ok(files)
}

/// Reads files, all of them before anything is added: those that cannot be loaded are named together.
pub(super) fn read_all(files: &[PathBuf]) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut faults = Vec::new();
    for file in files {
        match read(file) {
            Ok(source) => sources.push(source),
            Err(fault) => faults.push((file, fault)),
        }
    }
    match faults.len() {
        0 if sources.is_empty() => Err(Told::usage("there is nothing to load in what was named")
            .next(format!("name {READS}, or a folder that holds some"))
            .into()),
        0 => Ok(sources),
        1 => Err(faults.remove(0).1),
        count => {
            let lines: Vec<String> = faults.iter().map(|(_, fault)| format!("  {fault}")).collect();
            let message = format!("{count} files cannot be loaded; nothing was added:\n{}", lines.join("\n"));
            Err(Told::new(Code::Failed, message).into())
        }
    }
}

fn read(file: &Path) -> anyhow::Result<Source> {
    let kind = kind_of(file)?;
    let content = std::fs::read(file).with_context(|| format!("'{}' could not be read", file.display()))?;
    if content.is_empty() {
        return Err(Told::new(Code::Failed, format!("'{}' is empty", name_of(file))).into());
    }
    // Plain text goes past the decoder, which is where encodings are found out.
    let is_odd_text = kind == Kind::Text.mime() && std::str::from_utf8(&content).is_err();
    let kind = if is_odd_text { "application/octet-stream" } else { kind };
    Ok(Source { name: name_of(file), kind, content })
}

fn name_of(file: &Path) -> String {
    file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

pub(super) fn kind_of(file: &Path) -> anyhow::Result<&'static str> {
    let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
    match ending.as_str() {
        "md" | "markdown" => Ok(Kind::Markdown.mime()),
        "txt" | "text" | "" => Ok(Kind::Text.mime()),
        "csv" | "tsv" => Ok(Kind::Csv.mime()),
        "html" | "htm" | "xhtml" => Ok(Kind::Html.mime()),
        "pdf" => Ok(Kind::Pdf.mime()),
        "docx" | "docm" => Ok(Kind::Docx.mime()),
        "xlsx" | "xlsm" => Ok(Kind::Xlsx.mime()),
        "pptx" | "pptm" => Ok(Kind::Pptx.mime()),
        "doc" => Ok(Kind::Doc.mime()),
        "xls" => Ok(Kind::Xls.mime()),
        "ppt" => Ok(Kind::Ppt.mime()),
        other => Err(Told::usage(format!("'{}': files of kind '{other}' cannot be decoded", file.display()))
            .next(format!("load {READS}"))
            .into()),
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
    let style = ProgressStyle::with_template("{msg:24} {bar:30} {pos}/{len} chunks  {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style).with_message("decoding");
    let mut last = Vec::new();
    let mut moved = Instant::now();
    let (mut next_look, mut idle_looks) = (moved + IDLE_INTERVAL, 0);
    let mut states = BTreeMap::new();
    let patience = STALL_TIMEOUT.min(api.timeout());
    loop {
        ask_for_open(api, documents, flow, &mut states).await?;
        let sum = |name: &str| states.values().map(|one| one[name].as_u64().unwrap_or_default()).sum::<u64>();
        bar.set_length(sum("announced"));
        bar.set_position(sum("stored") + sum("failed"));
        bar.set_message(format!("{} of {} documents", done(&states), documents.len()));
        if done(&states) == documents.len() {
            bar.finish();
            return Ok(json!(states.values().collect::<Vec<_>>()));
        }
        let now: Vec<_> = states.values().map(counts).collect();
        if now != last {
            last = now;
            moved = Instant::now();
            (next_look, idle_looks) = (moved + IDLE_INTERVAL, 0);
        } else if moved.elapsed() > patience {
            return Err(Told::new(
                Code::TimedOut,
                format!("nothing has moved for {} s; the documents stay queued", patience.as_secs()),
            )
            .next("sluice flow describe FLOW, and sluice dead ls")
            .into());
        } else if Instant::now() >= next_look {
            idle_looks = if is_idle(&super::flow::status(api, flow).await?) { idle_looks + 1 } else { 0 };
            let is_seen = |one: &Value| one["complete"] == true || one["stored"].as_u64() > Some(0);
            let is_all_seen = states.len() == documents.len() && states.values().all(is_seen);
            if idle_looks >= if is_all_seen { IDLE_LOOKS } else { IDLE_LOOKS_UNSEEN } {
                bar.abandon();
                return Ok(json!(states.values().collect::<Vec<_>>()));
            }
            next_look = Instant::now() + IDLE_INTERVAL;
        }
        tokio::time::sleep(PROGRESS_INTERVAL).await;
    }
}

/// What grows while something is done for a document; its rate changes although nothing is.
fn counts(progress: &Value) -> [Option<u64>; 7] {
    let names = ["texts-announced", "texts-done", "announced", "embedded", "indexed", "stored", "failed"];
    names.map(|name| progress[name].as_u64())
}

/// Whether nothing waits or is being worked on in a flow, as far as its broker can show.
fn is_idle(status: &Value) -> bool {
    let queues = status["queues"].as_array().into_iter().flatten();
    let mut durable = queues.filter(|queue| text(queue, "topic").starts_with("flow:")).peekable();
    durable.peek().is_some() && durable.all(|queue| queue["ready"] == 0 && queue["unsettled"] == 0)
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
async fn ask_for_open(
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
    for failure in all.iter().flat_map(|one| one["failures"].as_array().into_iter().flatten()) {
        lines.push(format!(
            "  {} at {}: {}",
            text(failure, "piece"),
            text(failure, "stage"),
            text(failure, "reason")
        ));
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
            assert_eq!(is_idle(&status), expected, "{status}");
        };
        let queue = |topic: &str, ready: u64, unsettled: Value| json!({"topic": topic, "ready": ready, "unsettled": unsettled});
        let (flow, request) = ("flow:tg:chunk-load:default:f1", "request:tg:prompt:default:f1");
        check(json!([queue(flow, 0, json!(0)), queue(request, 3, json!(1))]), true);
        check(json!([queue(flow, 0, json!(0)), queue(flow, 1, json!(0))]), false);
        check(json!([queue(flow, 0, json!(1))]), false);
        check(json!([queue(flow, 0, Value::Null)]), false);
        check(json!([queue(request, 0, json!(0))]), false);
        check(json!([]), false);
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
