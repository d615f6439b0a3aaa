//! `sluice doctor`: what is wrong, worst first, each with the next thing to try. It looks at what it can reach by itself
//! (the gateway, the broker, the data folder), asks each service for a word, and each flow for its models.

use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::Context as _;
use futures_util::future::join_all;
use serde_json::{Value, json};
use sluice_config::offline::{self, Large};
use sluice_processors::NOT_CONFIGURED;
use sluice_processors::sandbox::Confinement;
use sluice_store::Untouched;
use sluice_store::embedded::Report;

use super::lost::{self, Lost};
use super::up;
use crate::apart;
use crate::api::{Api, data_folder};
use crate::bus::Bus;
use crate::cli::{Broker, Doctor, Target};
use crate::exit::{Code, Told};
use crate::folder::{Folder, Room, Stopped};
use crate::output::{show, text};

/// Severities, worst first, with the title of their group.
const SEVERITIES: [(&str, &str); 4] =
    [("error", "Does not work"), ("warning", "Will hurt"), ("info", "Worth knowing"), ("ok", "Works")];
/// How long one answer is waited for. A gateway says after 10 s that the identity service is silent.
const LOOK_TIMEOUT: Duration = Duration::from_secs(15);
/// Flows whose models are asked.
const FLOWS_MAX: usize = 16;
/// Room on the disk of the data folder below which it is told, in bytes.
const FREE_BYTES_MIN: u64 = 2 << 30;
/// Damaged things named in one finding.
const DAMAGE_SHOWN: usize = 5;
/// Config values that are listed.
const VALUES_SHOWN: usize = 20;
/// How often it is looked whether the data folder was read.
const VERIFY_PAUSE: Duration = Duration::from_millis(200);
const READ_LOGS: &str = "read the log of `sluice up`, or of the process that runs it";

/// Runs every check; what cannot be asked because an earlier one failed is left out.
pub(super) async fn run(target: &Target, doctor: Doctor) -> anyhow::Result<Code> {
    let Doctor { broker, verify, largest, remove } = doctor;
    if let Some(name) = remove {
        remove_value(&data_folder(target)?, &name).await?;
        show(target.output, &json!({"removed": name}), |_| format!("Removed the config value {name}."))?;
        return Ok(Code::Ok);
    }
    let is_named = verify || largest || target.data.is_some();
    let within = LOOK_TIMEOUT.min(Duration::from_secs(target.timeout));
    let answering = match data_folder(target) {
        Ok(folder) => apart::insist_answering(&[&folder], within).await,
        Err(_) => Ok(()),
    };
    let is_answering = answering.is_ok();
    if is_named && is_answering {
        Folder::insist(&data_folder(target)?)?;
    }
    let api = Api::new(target)?;
    let mut findings = Vec::new();
    if let Err(error) = answering {
        let next = error.downcast_ref::<Told>().and_then(|told| told.next.clone()).unwrap_or_default();
        findings.push(finding("error", "folder-silent", error.to_string(), next));
    } else if let Ok(folder) = data_folder(target) {
        findings.extend(folder_found(&folder));
        if folder.is_dir() {
            findings.push(confinement_found().await);
        }
        findings.extend(content_found(&folder, verify.then(|| api.timeout())).await);
        if largest {
            findings.extend(largest_found(&folder).await?);
        }
    }
    findings.extend(broker_found(broker).await?);
    match limited(&api, api.why_not_ready()).await {
        Err(error) => findings.push(unanswered("the gateway", "gateway-silent", &error)),
        Ok(why) => {
            if let Some(why) = why.as_ref().filter(|why| why.kind == "process-troubled") {
                let next = "save what the process holds before it ends: sluice backup DIR";
                findings.push(finding("error", "process-troubled", &*why.message, next));
            }
            // Another reason than its configuration is told by the services below.
            if why.is_some_and(|why| why.kind.is_empty()) {
                let text =
                    "the gateway has not read its configuration: the config service does not answer it";
                findings.push(finding("error", "gateway-waits", text, start("config")));
            }
            findings.extend(services_found(&api).await);
        }
    }
    once(&mut findings);
    if findings.iter().any(|one| one["code"] == "flow-answers") {
        let (store, lost, models) = tokio::join!(store_found(&api), lost_found(&api), models_found(&api));
        findings.push(store);
        findings.extend(lost);
        findings.extend(models);
    }
    let code = if findings.iter().all(is_fine) { Code::Ok } else { Code::Differs };
    show(target.output, &Value::Array(findings), told)?;
    Ok(code)
}

/// What was seen from here and by the flow service is told once.
fn once(findings: &mut Vec<Value>) {
    let mut told = std::collections::BTreeSet::new();
    findings.retain(|one| told.insert((text(one, "code"), text(one, "text"))));
}

fn finding(severity: &str, code: &str, text: impl Into<String>, next: impl Into<String>) -> Value {
    json!({"code": code, "severity": severity, "text": text.into(), "next": next.into()})
}

fn works(code: &str, text: impl Into<String>) -> Value {
    finding("ok", code, text, "")
}

fn is_fine(finding: &Value) -> bool {
    matches!(finding["severity"].as_str(), Some("ok" | "info"))
}

fn start(service: &str) -> String {
    format!("start it with `sluice up`, or by itself with `sluice run {service}`; if it runs, read its log")
}

/// An answer, or that there was none in time.
async fn limited<T>(api: &Api, call: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let within = LOOK_TIMEOUT.min(api.timeout());
    tokio::time::timeout(within, call).await.unwrap_or_else(|_| {
        let told = format!("no answer within {} s", within.as_secs());
        Err(Told::new(Code::TimedOut, told).next(READ_LOGS).into())
    })
}

/// A data folder on this machine: whether it can be written, and how much room it has.
fn folder_found(folder: &Path) -> Vec<Value> {
    if !folder.is_dir() {
        return Vec::new();
    }
    let shown = folder.display();
    let mut findings = Vec::new();
    if let Err(error) = tempfile::Builder::new().prefix(".doctor-").tempfile_in(folder) {
        let text = format!("the data folder '{shown}' cannot be written by this user: {error}");
        let next = "run the command as the user that runs the system, or mend the folder's owner and rights";
        findings.push(finding("warning", "folder-not-writable", text, next));
    }
    match rustix::fs::statvfs(folder) {
        Ok(disk) => {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let text =
                format!("the disk of the data folder '{shown}' has {} free", indicatif::BinaryBytes(free));
            findings.push(if free < FREE_BYTES_MIN {
                finding(
                    "warning",
                    "disk-low",
                    text,
                    "free some space, or move the folder: a full disk takes no documents",
                )
            } else {
                works("disk-free", text)
            });
        }
        Err(error) => findings.push(finding(
            "warning",
            "disk-not-seen",
            format!("the disk of the data folder '{shown}' tells nothing: {error}"),
            "check the mount",
        )),
    }
    findings
}

/// Whether processes that read documents and render prompts reach nothing else on this machine.
async fn confinement_found() -> Value {
    const PAGE: &str =
        "docs/decisions/0009-confined-readers.md says what each part keeps away, and what to do without it";
    match Confinement::of_this_machine().await {
        Ok(confinement) if confinement.is_whole() => works(
            "decode-confined",
            "processes that read documents and render prompts reach no file, no network and no process",
        ),
        Ok(confinement) => {
            let text = format!(
                "processes that read documents and render prompts are not fully confined here: {}",
                confinement.text()
            );
            // While nothing that was tried was done, another part stands in for the one that is missing.
            let severity = if confinement.done.is_empty() { "info" } else { "warning" };
            finding(severity, "decode-not-confined", text, PAGE)
        }
        Err(error) => finding(
            "warning",
            "decode-not-started",
            format!("processes that read documents and render prompts do not start here: {error}"),
            "check that this program can be started by its own user",
        ),
    }
}

/// What is known of the content of a data folder. All of it is read first if there is a time within which the process that
/// works in it has to have done so.
async fn content_found(folder: &Path, verify_timeout: Option<Duration>) -> Vec<Value> {
    if !folder.is_dir() {
        return Vec::new();
    }
    // What was reported of a store that is gone says nothing of what is there.
    if folder.join("sluice.json").is_file() && !folder.join("store.redb").is_file() {
        let text = format!("the data folder '{}' has no store", folder.display());
        let next = match Untouched::hold(folder) {
            Err(sluice_store::Error::Locked { .. }) => {
                "a process still has the store open, though no path leads to it: run `sluice backup DIR` before that process \
                 ends, then restore that backup"
            }
            _ => "start `sluice up` on it, which says more, or restore it from a backup",
        };
        return vec![finding("error", "folder-not-verified", text, next)];
    }
    let report = match verify_timeout {
        Some(timeout) => verified(folder, timeout).await.map(Some),
        None => Ok(Report::read(folder)),
    };
    match report {
        Ok(report) => report.map_or_else(Vec::new, |report| report_found(folder, &report)),
        Err(error) => {
            let next = error.downcast_ref::<Told>().and_then(|told| told.next.as_deref());
            let next =
                next.unwrap_or("start `sluice up` on it, which says more, or restore it from a backup");
            let text = match crate::folder::is_refusal(&error) {
                true => format!("{error:#}"),
                false => format!("the data folder was not read: {error:#}"),
            };
            vec![finding("error", "folder-not-verified", text, next)]
        }
    }
}

/// What was found of a data folder that nobody should work in.
fn unused(folder: &Path, opened: anyhow::Result<Stopped>) -> anyhow::Result<Stopped> {
    let is_locked = |error: &anyhow::Error| {
        let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<sluice_store::Error>());
        causes.any(|error| matches!(error, sluice_store::Error::Locked { .. }))
    };
    match opened {
        Err(error) if is_locked(&error) => {
            let told = format!("the data folder '{}' is in use", folder.display());
            Err(Told::new(Code::Failed, told)
                .next("stop the process that works in it first; while it runs, use `sluice config`")
                .into())
        }
        opened => opened,
    }
}

/// The largest config values.
async fn largest_found(folder: &Path) -> anyhow::Result<Vec<Value>> {
    let opened = unused(folder, Stopped::look(folder).await)?;
    let values = offline::largest(&*opened.store.tables(), VALUES_SHOWN).await;
    opened.close().await;
    let found = |value: Large| {
        let name = format!("{}/{}/{}", value.workspace, value.config_type, value.key);
        let bytes = indicatif::BinaryBytes(value.bytes as u64);
        if value.is_beyond_its_ceiling() {
            let text = format!("the config value {name} has {bytes}, more than is taken in now");
            let next =
                format!("if nothing needs it: sluice doctor --data {} --remove '{name}'", folder.display());
            return finding("warning", "value-too-large", text, next);
        }
        finding("info", "value-size", format!("the config value {name} has {bytes}"), "")
    };
    Ok(values?.into_iter().map(found).collect())
}

/// Takes a config value out of a folder.
async fn remove_value(folder: &Path, name: &str) -> anyhow::Result<()> {
    let mut parts = name.splitn(3, '/');
    let (Some(workspace), Some(config_type), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(Told::usage(format!("'{name}' names no config value"))
            .next("name it as WORKSPACE/TYPE/KEY, as `sluice doctor --largest` does")
            .into());
    };
    let opened = unused(folder, Stopped::take(folder).await)?;
    let removed = offline::remove(&opened.store.tables(), workspace, config_type, key).await;
    opened.close().await;
    match removed {
        Err(sluice_store::Error::Refused { reason }) => {
            Err(Told::new(Code::NotFound, reason).next("sluice doctor --largest").into())
        }
        done => Ok(done?),
    }
}

fn report_found(folder: &Path, report: &Report) -> Vec<Value> {
    let Report { store_bytes: _, used_bytes, checked_at, damage, checks: _, tight_percent: _, anew_bytes: _ } =
        report;
    let mut findings = Vec::new();
    if !damage.is_empty() {
        let named = damage.iter().take(DAMAGE_SHOWN).cloned().collect::<Vec<_>>().join("; ");
        let more = damage.len().saturating_sub(DAMAGE_SHOWN);
        let more = if more > 0 { format!("; and {more} more, which the log names") } else { String::new() };
        let text = format!("the data folder is damaged: {named}{more}");
        findings.push(finding(
            "error",
            "folder-damaged",
            text,
            "restore it from a backup, and check the disk; `sluice doctor --verify` looks again",
        ));
    } else if *checked_at > 0 {
        let since = (UNIX_EPOCH + Duration::from_secs(*checked_at)).elapsed().unwrap_or_default();
        let since = indicatif::HumanDuration(since);
        findings
            .push(works("folder-sound", format!("all of the data folder matched its checksums {since} ago")));
    }
    let room = Room::of(folder);
    if room.store_bytes > 0 {
        let [store, used, content, log] =
            [room.store_bytes, *used_bytes, room.content_bytes, room.log_bytes].map(indicatif::BinaryBytes);
        let in_use = match used_bytes {
            0 => String::new(),
            _ => format!(", of which {used} were in use when it was last idle"),
        };
        let text = format!(
            "the store's file takes {store}{in_use}; content in files takes {content}, the broker's log {log}"
        );
        findings.push(works("store-room", text));
    }
    findings
}

/// Has all of a data folder read: by the process that works in it, or here if none does.
async fn verified(folder: &Path, timeout: Duration) -> anyhow::Result<Report> {
    crate::folder::keep_private();
    crate::backup::refuse_backup(folder)?;
    let options =
        sluice_store::Options { owners: Some(sluice_library::OWNERS), ..sluice_store::Options::default() };
    let looked =
        Untouched::hold(folder).and_then(|held| sluice_store::Embedded::look(folder, held, &options));
    match looked {
        Ok(store) => {
            let report = store.upkeep().check_all().await;
            store.close().await;
            let report = report?;
            if report.damage.is_empty() {
                // All of it matches, and yet something else may be missing, for which a start would refuse it.
                Stopped::look(folder).await?.close().await;
            }
            Ok(report)
        }
        Err(sluice_store::Error::Locked { .. }) => {
            tokio::time::timeout(timeout, verified_by_holder(folder)).await.unwrap_or_else(|_| {
                let what = format!(
                    "the process that works in it was asked to, and has not put down within {} s what it found",
                    timeout.as_secs()
                );
                Err(Told::new(Code::TimedOut, what)
                    .next(
                        "wait longer with --timeout SECONDS, or run `sluice doctor` later: the check goes on; while the disk is \
                         full nothing can be put down, so free space first",
                    )
                    .into())
            })
        }
        Err(error) => Err(error.into()),
    }
}

/// Asks the process that works in a folder to read all of it, and waits until it has, which may be for ever.
async fn verified_by_holder(folder: &Path) -> anyhow::Result<Report> {
    let before = Report::read(folder).unwrap_or_default();
    let asked_at = Instant::now();
    Report::ask_to_check(folder).context("it cannot be written")?;
    loop {
        tokio::time::sleep(VERIFY_PAUSE).await;
        if Report::is_asked(folder) {
            anyhow::ensure!(
                asked_at.elapsed() < LOOK_TIMEOUT,
                "the process that works in it does not answer"
            );
            continue;
        }
        if let Some(report) = Report::read(folder).filter(|now| now.checks > before.checks) {
            return Ok(report);
        }
    }
}

/// The broker whose address was given, and its management API.
async fn broker_found(broker: Broker) -> anyhow::Result<Vec<Value>> {
    let Some(remote) = up::remote(broker)? else { return Ok(Vec::new()) };
    let bus = match Bus::open(Some(&remote), None).await {
        Ok(bus) => bus,
        Err(error) => return Ok(vec![unanswered("the broker", "broker-silent", &error)]),
    };
    let text = "the broker lets this process in";
    let mut findings = vec![works("broker-answers", text)];
    // Looked at from here: while the broker takes no messages, no service can be asked what is wrong.
    match tokio::time::timeout(LOOK_TIMEOUT, bus.admin.examine()).await {
        Ok(Ok(found)) => findings.extend(found.iter().map(|one| {
            let mut found = finding(one.severity().name(), one.code, &*one.text, &*one.next);
            found["topic"] = json!(one.topic.as_ref().map(ToString::to_string).unwrap_or_default());
            found
        })),
        Ok(Err(error)) => findings.push(unanswered("the broker", "broker-not-seen", &error.into())),
        Err(_) => {
            let text = format!("the broker did not say how it is within {} s", LOOK_TIMEOUT.as_secs());
            findings.push(finding("error", "broker-not-seen", text, "read the broker's log"));
        }
    }
    bus.close().await;
    Ok(findings)
}

/// A word from each service; of the flow service, what it finds.
async fn services_found(api: &Api) -> Vec<Value> {
    let ask = |kind: &'static str, body: Value| limited(api, async move { api.call(kind, body).await });
    let (iam, config, library, flow) = tokio::join!(
        limited(api, api.call_public("bootstrap-status")),
        ask("config", json!({"operation": "list", "type": "flow"})),
        ask("librarian", json!({"operation": "list-uploads", "bytes_max": 1})),
        ask("flow", json!({"operation": "doctor"})),
    );
    let mut findings = Vec::new();
    let found = flow.as_ref().ok().and_then(|answer| answer["findings"].as_array().cloned());
    let answers = [
        ("iam", iam.map(drop)),
        ("config", config.map(drop)),
        ("library", library.map(drop)),
        ("flow", flow.map(drop)),
    ];
    findings.extend(words(&answers));
    findings.extend(found.into_iter().flatten());
    findings
}

fn told_kind(error: &anyhow::Error) -> Option<&str> {
    error.downcast_ref::<Told>().map(|told| &*told.kind)
}

/// What the answers of the services say together: one cause is told once.
fn words(answers: &[(&str, anyhow::Result<()>)]) -> Vec<Value> {
    let told =
        |error: &anyhow::Error| error.downcast_ref::<Told>().map(|told| (told.code, told.kind.clone()));
    let failed = |wanted: &dyn Fn(Code, &str) -> bool| {
        let errors = answers.iter().filter_map(|(_, answer)| answer.as_ref().err());
        errors.into_iter().find(|error| told(error).is_some_and(|(code, kind)| wanted(code, &kind)))
    };
    if let Some(error) = failed(&|_, kind| kind == "bus-unavailable") {
        let next = "check that the broker runs; `sluice doctor --broker URL` looks at it from here";
        return vec![finding(
            "error",
            "broker-away",
            format!("the gateway cannot use the broker: {error}"),
            next,
        )];
    }
    let iam_answers = answers.iter().any(|(name, answer)| *name == "iam" && answer.is_ok());
    let mut findings = Vec::new();
    if iam_answers && let Some(error) = failed(&|code, _| code == Code::Denied) {
        return vec![unanswered("the gateway", "key-refused", error)];
    }
    if let Some(error) = failed(&|code, _| code == Code::NotFound) {
        return vec![unanswered("the workspace", "workspace-missing", error)];
    }
    for (name, answer) in answers {
        let code = |what: &str| format!("{name}-{what}");
        match answer {
            Ok(()) => findings.push(works(&code("answers"), format!("the {name} service answers"))),
            // Nobody is let in while it is away, so nothing is known of this one.
            Err(error)
                if *name != "iam" && told(error).is_some_and(|(_, kind)| kind == "iam-unavailable") => {}
            Err(error) if *name != "iam" && told(error).is_some_and(|(code, _)| code == Code::Denied) => {}
            Err(error) => {
                let text = format!("the {name} service does not answer: {error}");
                findings.push(finding("error", &code("silent"), text, start(name)));
            }
        }
    }
    if answers.iter().all(|(_, answer)| answer.is_err()) {
        let text = "no service answers: the broker may be away, or none of them runs";
        let next = "`sluice doctor --broker URL` looks at the broker from here";
        findings.push(finding("error", "nothing-answers", text, next));
    }
    findings
}

/// Whether the library's store takes a record and a content: an upload that is begun, gets its first part and is given up.
async fn store_found(api: &Api) -> Value {
    let id = format!("urn:sluice:doctor:{}", uuid::Uuid::new_v4());
    let document = json!({"id": id, "kind": "text/plain", "title": "doctor", "comments": "", "metadata": [], "tags": []});
    let begun = json!({
        "operation": "begin-upload", "document-metadata": document, "total-size": 1, "chunk-size": 1 << 20,
    });
    let wrote = limited(api, async {
        let begun = api.call("librarian", begun).await?;
        let part = json!({"operation": "upload-chunk", "upload-id": begun["upload-id"], "chunk-index": 0, "content": "Lg=="});
        let taken = api.call("librarian", part).await;
        let abort = json!({"operation": "abort-upload", "upload-id": begun["upload-id"]});
        let aborted = api.call("librarian", abort).await;
        taken.and(aborted)
    });
    store_told(wrote.await.map(drop))
}

fn store_told(wrote: anyhow::Result<()>) -> Value {
    match wrote {
        Ok(()) => works("store-writes", "the library's store takes what is written"),
        // The gateway lets nothing new in, so the store was not asked.
        Err(error) if told_kind(&error) == Some("backlog-high") => {
            let text = format!("whether the library's store takes what is written was not tried: {error}");
            finding(
                "info",
                "store-not-tried",
                text,
                "see what waits: sluice flow watch FLOW; ask again afterwards",
            )
        }
        Err(error) => {
            let next = "free space on the disk of the library's data folder, look after the object store if --objects names one, or read the library's log";
            finding("error", "store-refuses", format!("the library's store takes nothing: {error}"), next)
        }
    }
}

/// Documents that were under way when the broker's log was lost.
async fn lost_found(api: &Api) -> Option<Value> {
    // A library that is not ours tells of no progress.
    lost_told(&limited(api, lost::ask(api, None)).await.ok()?)
}

fn lost_told(lost: &Lost) -> Option<Value> {
    let (document, flow) = lost.first()?;
    let text = format!(
        "{} document(s) of this workspace were under way when the broker's log was lost, and are not on record as done; the \
         first is '{document}' in flow '{flow}'. What extractors make is not counted: of documents that were put through shortly \
         before, statements may be missing",
        lost.len()
    );
    Some(finding("error", "documents-lost", text, "put them through again: sluice doc retry --lost"))
}

/// The models of each flow: whether they answer, and whether the provider offers the one that is asked.
async fn models_found(api: &Api) -> Vec<Value> {
    let flows = match limited(api, api.list("flow", json!({"operation": "list-flows"}))).await {
        Ok(answer) => answer["flow-ids"].as_array().cloned().unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    let flows = flows.iter().filter_map(Value::as_str).take(FLOWS_MAX);
    join_all(flows.map(|id| models_of(api, id))).await.into_iter().flatten().collect()
}

async fn models_of(api: &Api, flow: &str) -> Vec<Value> {
    let record = limited(api, api.call("flow", json!({"operation": "get-flow", "flow-id": flow}))).await;
    let record = record.map(|answer| serde_json::from_str(&text(&answer, "flow")).unwrap_or(Value::Null));
    let Ok(record) = record else { return Vec::new() };
    let has = |interface: &str| record["interfaces"].get(interface).is_some();
    let mut findings = Vec::new();
    if has("text-completion") {
        let asked = api.call_flow(flow, "text-completion", json!({"operation": "list-models"}));
        findings.push(model(flow, limited(api, asked).await));
    }
    if has("embeddings") {
        let asked = api.call_flow(flow, "embeddings", json!({"texts": ["Is anybody there?"]}));
        findings.push(embeddings(flow, limited(api, asked).await));
    }
    for finding in &mut findings {
        finding["flow"] = json!(flow);
    }
    findings
}

fn model(flow: &str, answer: anyhow::Result<Value>) -> Value {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) if error.to_string().ends_with(NOT_CONFIGURED) => {
            let text = format!("flow '{flow}' has no language model: questions are answered with quotations");
            return finding("info", "model-not-configured", text, "give one with --llm-url and --llm-model");
        }
        Err(error) => {
            let text = format!("the language model of flow '{flow}' does not answer: {error}");
            let next = "check --llm-url, --llm-dialect and the key, and that the provider runs";
            return finding("error", "model-silent", text, next);
        }
    };
    let offered = answer["models"].as_array().into_iter().flatten();
    let offered: Vec<String> = offered.map(|one| text(one, "id")).collect();
    let asked = text(&answer, "model");
    if asked.is_empty() {
        let text = format!("the provider of flow '{flow}' answers, and no model of it is named");
        return finding("warning", "model-not-named", text, names(&offered));
    }
    // One dialect has tags, and takes a name without one as the latest.
    if offered.iter().any(|one| *one == asked || *one == format!("{asked}:latest")) {
        return works("model-answers", format!("the provider of flow '{flow}' answers and offers '{asked}'"));
    }
    let text = format!("the provider of flow '{flow}' answers, and does not list '{asked}'");
    finding("warning", "model-not-offered", text, names(&offered))
}

/// What to name instead.
fn names(offered: &[String]) -> String {
    const SHOWN_MAX: usize = 8;
    match offered.len() {
        0 => "make the provider offer a model, and name it with --llm-model".to_owned(),
        count => {
            let more = if count > SHOWN_MAX { ", …" } else { "" };
            let some: Vec<&str> = offered.iter().take(SHOWN_MAX).map(String::as_str).collect();
            format!("--llm-model, or the flow's llm-model, with one of: {}{more}", some.join(", "))
        }
    }
}

fn embeddings(flow: &str, answer: anyhow::Result<Value>) -> Value {
    match answer {
        Ok(answer) => {
            let vector = answer["vectors"].get(0).and_then(Value::as_array).map_or(0, Vec::len);
            works(
                "embeddings-answer",
                format!("the embeddings of flow '{flow}' answer, {vector} numbers a text"),
            )
        }
        Err(error) => {
            let text = format!("the embeddings of flow '{flow}' do not answer: {error}");
            let next = "check --embeddings-url, the model and the key, and that processor 'embeddings' runs";
            finding("error", "embeddings-silent", text, next)
        }
    }
}

/// A call that got no answer, as a finding.
fn unanswered(who: &str, code: &str, error: &anyhow::Error) -> Value {
    let next = error.downcast_ref::<Told>().and_then(|told| told.next.clone());
    let next = next.unwrap_or_else(|| READ_LOGS.to_owned());
    finding("error", code, format!("{who}: {error}"), next)
}

/// The findings for people, one group per severity.
fn told(findings: &Value) -> String {
    let mut lines = Vec::new();
    let all = || findings.as_array().into_iter().flatten();
    for (severity, title) in SEVERITIES {
        let mut group = all().filter(|finding| finding["severity"] == severity).peekable();
        if group.peek().is_none() {
            continue;
        }
        lines.push(format!("{title}:"));
        for finding in group {
            lines.push(format!("  {} [{}]", text(finding, "text"), text(finding, "code")));
            let next = text(finding, "next");
            if !next.is_empty() {
                lines.push(format!("    try: {next}"));
            }
        }
    }
    if all().all(is_fine) {
        lines.push("Nothing is wrong.".to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_grouped_worst_first_and_each_says_what_to_try() {
        let finding = |severity: &str, code: &str| json!({"severity": severity, "code": code, "text": format!("about {code}"), "next": "look"});
        let said = told(&json!([finding("info", "a"), finding("error", "b"), finding("warning", "c")]));
        let expected = "Does not work:\n  about b [b]\n    try: look\nWill hurt:\n  about c [c]\n    try: look\nWorth knowing:\n  about a [a]\n    try: look";
        assert_eq!(said, expected);
        assert!(told(&json!([finding("info", "a")])).ends_with("Nothing is wrong."));
    }

    #[test]
    fn documents_that_were_under_way_when_the_log_was_lost_are_told_with_what_to_do() {
        assert_eq!(lost_told(&Lost::new()), None);
        let one = |id: &str| (id.to_owned(), "f1".to_owned());
        let told = lost_told(&Lost::from([one("b"), one("a")])).unwrap();
        let said = text(&told, "text");
        assert!(said.starts_with("2 document(s)") && said.contains("'a' in flow 'f1'"), "{said}");
        assert!(text(&told, "next").contains("sluice doc retry --lost") && !is_fine(&told));
    }

    #[test]
    fn a_backlog_is_not_blamed_on_the_store() {
        let store = |kind: &str| store_told(refused(Code::Failed, kind));
        assert_eq!(
            (&store("backlog-high")["code"], &store("")["code"]),
            (&json!("store-not-tried"), &json!("store-refuses"))
        );
        assert!(is_fine(&store("backlog-high")), "the backlog has a finding of its own");
    }

    fn refused(code: Code, kind: &str) -> anyhow::Result<()> {
        Err(Told { kind: kind.to_owned(), ..Told::new(code, "so it is").next("do this") }.into())
    }

    fn codes(findings: &[Value]) -> Vec<&str> {
        findings.iter().filter_map(|one| one["code"].as_str()).collect()
    }

    #[test]
    fn the_service_that_does_not_answer_is_named_with_how_to_start_it() {
        let late = || refused(Code::TimedOut, "");
        let found = words(&[("iam", Ok(())), ("config", late()), ("library", Ok(())), ("flow", Ok(()))]);
        assert_eq!(codes(&found), ["iam-answers", "config-silent", "library-answers", "flow-answers"]);
        assert!(text(&found[1], "next").contains("sluice run config"), "{found:?}");
        // Without iam nobody is let in: the others are not called silent for that.
        let denied = || refused(Code::Denied, "");
        let found =
            words(&[("iam", late()), ("config", denied()), ("library", denied()), ("flow", denied())]);
        assert_eq!(codes(&found), ["iam-silent", "nothing-answers"]);
        let unasked = || refused(Code::Failed, "iam-unavailable");
        let found = words(&[("iam", unasked()), ("config", unasked()), ("flow", unasked())]);
        assert_eq!(codes(&found), ["iam-silent", "nothing-answers"]);
        let all = words(&[("iam", late()), ("config", late()), ("library", late()), ("flow", late())]);
        assert_eq!(all.len(), 5, "{all:?}");
    }

    #[test]
    fn one_cause_is_told_once() {
        let denied = || refused(Code::Denied, "");
        let found =
            words(&[("iam", Ok(())), ("config", denied()), ("library", denied()), ("flow", denied())]);
        assert_eq!(codes(&found), ["key-refused"]);
        assert_eq!(text(&found[0], "next"), "do this");
        let away = || refused(Code::Failed, "bus-unavailable");
        assert_eq!(codes(&words(&[("iam", away()), ("config", away())])), ["broker-away"]);
        let nowhere = || refused(Code::NotFound, "");
        assert_eq!(codes(&words(&[("iam", Ok(())), ("flow", nowhere())])), ["workspace-missing"]);
    }

    #[test]
    fn a_model_is_fine_when_the_provider_offers_it() {
        let answer =
            |asked: &str| Ok(json!({"models": [{"id": "gemma3:latest"}, {"id": "q"}], "model": asked}));
        let code = |found: Value| (text(&found, "severity"), text(&found, "code"));
        let check = |answer, severity: &str, expected: &str| {
            assert_eq!(code(model("f1", answer)), (severity.to_owned(), expected.to_owned()));
        };
        check(answer("gemma3"), "ok", "model-answers");
        check(answer("q"), "ok", "model-answers");
        check(answer("x"), "warning", "model-not-offered");
        check(answer(""), "warning", "model-not-named");
        check(
            Err(Told::new(Code::Failed, format!("llm-error: {NOT_CONFIGURED}")).into()),
            "info",
            "model-not-configured",
        );
        check(Err(Told::new(Code::Failed, "llm-error: refused").into()), "error", "model-silent");
        assert!(text(&model("f1", answer("x")), "next").contains("gemma3:latest, q"));
    }

    #[test]
    fn a_folder_tells_how_much_room_it_has() {
        let folder = tempfile::tempdir().unwrap();
        assert!(codes(&folder_found(folder.path())).iter().any(|code| code.starts_with("disk-")));
        assert!(folder_found(&folder.path().join("not there")).is_empty());
    }
}
