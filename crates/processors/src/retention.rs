//! How long traces of questions stay: at most so many days, and so many questions of a collection.
//!
//! A trace is what the graph of retrieval says of one question: the question's node, the steps derived from it, and what
//! they point at in that graph. It goes as a whole, with the answer that the library keeps for it, oldest first. Traces of
//! other makers go in the same way, as they are made of the same terms.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::Deserialize;
use sluice_bus::Client;
use sluice_schema::message::{ConfigKey, ConfigRequest, LibrarianRequest, Term, Triple};
use sluice_schema::{WorkspaceId, exchange, record, system};
use sluice_sdk::values::Changes;
use sluice_sdk::{ConfigClient, ConfigError, ConfigWatch, Process};
use sluice_store::{Cursor, Error, Pattern, Result, Scope, Stores};
use tokio::time::Instant;

use crate::derived::Derived;
use crate::provenance::{self, PROV, RDF_TYPE, RETRIEVAL_GRAPH, TG, iri};

/// The config type that says how long: key is a collection, or [`EVERY`] for those that have no record of their own.
pub(crate) const RETENTION: &str = "trace-retention";
/// The config type whose keys are the collections of a workspace.
pub(crate) const COLLECTION: &str = "collection";
const EVERY: &str = "*";

/// How often old traces are looked for; also when config changes.
const INTERVAL: Duration = Duration::from_secs(3_600);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Statements read at once.
const PAGE: usize = 2_000;
/// Nodes of one trace that are removed in one go; of a longer one the rest goes with its question, at the next look.
const NODES_MAX: usize = 10_000;
/// Statements being removed at once; they are committed together.
const REMOVES_MAX: usize = 256;

/// What stays in a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Retention {
    /// Traces of questions that were asked so many days ago go; 0 for no such bound.
    days: u32,
    /// So many traces stay, the newest; 0 for no such bound.
    count: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self { days: 90, count: 1_000 }
    }
}

impl Retention {
    /// What config says for a collection.
    async fn of(
        config: &ConfigClient,
        workspace: &str,
        collection: &str,
    ) -> std::result::Result<Self, String> {
        let key = |key: &str| ConfigKey { r#type: RETENTION.to_owned(), key: key.to_owned() };
        let request = ConfigRequest {
            operation: "get".to_owned(),
            workspace: workspace.to_owned(),
            keys: vec![key(collection), key(EVERY)],
            ..Default::default()
        };
        let found = config.call(&request).await.map_err(|e| e.to_string())?;
        let Some(found) = found.values.into_iter().find(|found| found.value.is_some()) else {
            return Ok(Self::default());
        };
        let (key, text) = (found.key, found.value.unwrap_or_default());
        serde_json::from_str(&text).map_err(|e| {
            format!(
                "the value '{key}' of type '{RETENTION}' must be like {{\"days\": 90, \"count\": 1000}}: {e}"
            )
        })
    }
}

/// Questions of a collection as they were seen last: nothing is read again while they are as many.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    questions: usize,
    oldest: String,
    retention: Retention,
}

/// Removes old traces of all workspaces, now and then, until the process stops.
pub(crate) async fn follow(process: Process, derived: Derived, watch: ConfigWatch) {
    watch.ready(&[record::WORKSPACE]).await;
    // Heard before anything is read, so that no change is missed in between.
    let changes = watch.changes(&[RETENTION, COLLECTION]);
    let (mut seen, mut config) = (HashMap::<String, HashMap<String, Seen>>::new(), None);
    let mut only: Option<BTreeSet<String>> = None;
    let mut due = Instant::now() + INTERVAL;
    loop {
        let view = watch.view();
        seen.retain(|workspace, _| view.get(record::WORKSPACE, record::WORKSPACES, workspace).is_some());
        let live = view.entries(record::WORKSPACE, record::WORKSPACES).map(|(workspace, _)| workspace);
        for workspace in live.filter(|live| only.as_ref().is_none_or(|only| only.contains(&***live))) {
            let seen = seen.entry(workspace.to_string()).or_default();
            if let Err(error) = trim_workspace(&process, &derived, &mut config, workspace, seen).await {
                tracing::warn!(workspace = &**workspace, %error, "old traces of questions stay for now");
            }
        }
        only = next_turn(&changes, &mut due).await;
    }
}

/// Whose turn it is next: those that changed, or all of them. All have their turn once it is due, however often some change.
async fn next_turn(changes: &Changes, due: &mut Instant) -> Option<BTreeSet<String>> {
    let changed = match Instant::now() < *due {
        true => tokio::time::timeout_at(*due, changes.next()).await.ok(),
        false => None,
    };
    if changed.is_none() {
        *due = Instant::now() + INTERVAL;
    }
    changed.filter(|changed| !changed.all).map(|changed| changed.workspaces)
}

async fn trim_workspace(
    process: &Process,
    derived: &Derived,
    config: &mut Option<ConfigClient>,
    workspace: &str,
    seen: &mut HashMap<String, Seen>,
) -> Result<()> {
    let unread = |error: ConfigError| Error::Unavailable { reason: error.to_string() };
    let config = match config {
        Some(config) => &*config,
        None => config.insert(ConfigClient::new(&process.replies).await.map_err(|e| unread(e.into()))?),
    };
    let mut collections = BTreeSet::from_iter(config.list(workspace, COLLECTION).await.map_err(unread)?);
    collections.extend(derived.traced_collections(workspace).await?);
    seen.retain(|collection, _| collections.contains(collection));
    for collection in collections {
        // No trace goes by a word that cannot be read.
        let retention = match Retention::of(config, workspace, &collection).await {
            Ok(retention) => retention,
            Err(reason) => {
                tracing::warn!(workspace, collection, reason, "all traces of questions stay");
                continue;
            }
        };
        let traces = Traces {
            stores: &derived.stores,
            answers: Answers { process, workspace },
            scope: Scope::new(workspace, &collection),
        };
        let now = u64::try_from(provenance::now_seconds()).unwrap_or(0);
        let found = traces.trim(retention, now, seen.get(&collection)).await?;
        seen.insert(collection, found);
    }
    Ok(())
}

/// The answers of a workspace that the library keeps.
struct Answers<'a> {
    process: &'a Process,
    workspace: &'a str,
}

/// Why an answer is still there.
enum Kept {
    /// The library could not be asked; others need not wait for it as well.
    Unasked(String),
    Refused(String),
}

impl Answers<'_> {
    /// Removes one. One that is not there is fine.
    async fn remove(&self, id: &str) -> std::result::Result<(), Kept> {
        let workspace = WorkspaceId::existing(self.workspace);
        let response = system::librarian_response(&workspace);
        let request = system::librarian_request(&workspace);
        let librarian = Client::<exchange::Librarian>::new(&self.process.replies, request, &response);
        let librarian = librarian.await.map_err(|e| Kept::Unasked(e.to_string()))?;
        let question = |operation: &str| LibrarianRequest {
            operation: operation.to_owned(),
            document_id: id.to_owned(),
            ..Default::default()
        };
        let ask = async |operation: &str| {
            let answer = librarian.call(&question(operation), ANSWER_TIMEOUT).await;
            let answer = answer.map_err(|e| Kept::Unasked(e.to_string()))?;
            answer.error.as_ref().map_or(Ok(()), |error| Err(Kept::Refused(error.message.clone())))?;
            Ok::<_, Kept>(answer)
        };
        let known = ask("get-document-metadata").await?.document_metadata;
        // What a trace names as its answer may be anything; only answers are ours to remove.
        if known.is_some_and(|document| document.document_type == "answer") {
            ask("remove-document").await?;
        }
        Ok(())
    }
}

/// The traces of a collection.
struct Traces<'a> {
    stores: &'a Stores,
    answers: Answers<'a>,
    scope: Scope<'a>,
}

impl Traces<'_> {
    /// Removes the traces that are over the bounds. Answers what is there then.
    async fn trim(&self, retention: Retention, now: u64, seen: Option<&Seen>) -> Result<Seen> {
        let cutoff = now.saturating_sub(u64::from(retention.days) * 86_400);
        let cutoff = if retention.days == 0 { String::new() } else { provenance::timestamp(cutoff, 0) };
        let is_question = Pattern {
            p: Some(iri(RDF_TYPE)),
            o: Some(iri(format!("{TG}Question"))),
            ..Pattern::graph(RETRIEVAL_GRAPH)
        };
        if let Some(seen) =
            seen.filter(|seen| seen.retention == retention && !is_older(&seen.oldest, &cutoff))
            && self.count(&is_question, seen.questions + 1).await? == seen.questions
        {
            return Ok(seen.clone());
        }
        // The newest, with the oldest of them on top.
        let mut kept: BinaryHeap<Reverse<(String, String)>> = BinaryHeap::new();
        let mut from = None;
        loop {
            let page = self.stores.triples.query(self.scope, &is_question, from, PAGE).await?;
            let mut going = Vec::new();
            for question in page.triples.into_iter().filter_map(|triple| triple.s).map(|term| term.iri) {
                let asked_at = self.asked_at(&question).await?;
                if is_older(&asked_at, &cutoff) {
                    going.push(question);
                    continue;
                }
                kept.push(Reverse((asked_at, question)));
                if retention.count > 0 && kept.len() > retention.count {
                    going.extend(kept.pop().map(|Reverse((_, question))| question));
                }
            }
            for question in going {
                self.remove(&question).await?;
            }
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        let oldest = kept.peek().map(|Reverse((asked_at, _))| asked_at.clone()).unwrap_or_default();
        Ok(Seen { questions: kept.len(), oldest, retention })
    }

    /// How many statements match, counted up to `max`.
    async fn count(&self, pattern: &Pattern, max: usize) -> Result<usize> {
        let (mut count, mut from) = (0, None);
        while count < max {
            let page = self.stores.triples.query(self.scope, pattern, from, PAGE.min(max - count)).await?;
            count += page.triples.len();
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        Ok(count)
    }

    /// When a question was asked; empty where its trace does not say.
    async fn asked_at(&self, question: &str) -> Result<String> {
        let pattern = Pattern {
            s: Some(iri(question)),
            p: Some(iri(format!("{PROV}startedAtTime"))),
            ..Pattern::graph(RETRIEVAL_GRAPH)
        };
        let found = self.stores.triples.query(self.scope, &pattern, None, 1).await?.triples;
        Ok(found.into_iter().next().and_then(|triple| triple.o).map(|term| term.value).unwrap_or_default())
    }

    /// Removes a trace with its answer. What the library cannot remove now, and the trace that names it, stays for now.
    async fn remove(&self, question: &str) -> Result<()> {
        let (statements, answers) = self.statements(question).await?;
        for answer in answers {
            match self.answers.remove(&answer).await {
                Ok(()) => {}
                Err(Kept::Refused(reason)) => {
                    tracing::warn!(
                        question,
                        answer,
                        reason,
                        "an old answer could not be removed; it stays for now"
                    );
                    return Ok(());
                }
                Err(Kept::Unasked(why)) => {
                    let reason = format!("the library, which keeps answers, could not be asked: {why}");
                    return Err(Error::Unavailable { reason });
                }
            }
        }
        // The question goes last: a trace that was cut off in between is found again.
        let (last, first): (Vec<Triple>, Vec<Triple>) =
            statements.into_iter().partition(|one| one.s.as_ref().is_some_and(|s| s.iri == question));
        for some in [first, last] {
            stream::iter(some)
                .map(Ok)
                .try_for_each_concurrent(REMOVES_MAX, async |one: Triple| {
                    let exactly =
                        Pattern { s: one.s, p: one.p, o: one.o, g: Some(one.g.unwrap_or_default()) };
                    self.stores.triples.remove(self.scope, &exactly).await
                })
                .await?;
        }
        Ok(())
    }

    /// The statements of a trace, and the documents that it names as answers.
    async fn statements(&self, question: &str) -> Result<(Vec<Triple>, Vec<String>)> {
        let derived_from = format!("{PROV}wasDerivedFrom");
        let document = format!("{TG}document");
        let synthesis = iri(format!("{TG}Synthesis"));
        let (mut statements, mut answers) = (Vec::new(), Vec::new());
        let mut known = BTreeSet::from([question.to_owned()]);
        let mut nodes = vec![question.to_owned()];
        while let Some(node) = nodes.pop() {
            let said = self.all(Pattern { s: Some(iri(&*node)), ..Pattern::graph(RETRIEVAL_GRAPH) }).await?;
            let derived = Pattern {
                p: Some(iri(&*derived_from)),
                o: Some(iri(&*node)),
                ..Pattern::graph(RETRIEVAL_GRAPH)
            };
            // What is no subject of this graph is no part of the trace: a chunk, say.
            let from_it = if said.is_empty() { Vec::new() } else { self.all(derived).await? };
            let is_synthesis = said.iter().any(|one| one.o.as_ref() == Some(&synthesis));
            let is = |term: &Option<Term>, name: &str| term.as_ref().is_some_and(|term| term.iri == name);
            // Not up to what it was derived from, nor to its class.
            let pointed = said
                .iter()
                .filter(|one| !is(&one.p, &derived_from) && !is(&one.p, RDF_TYPE))
                .filter_map(|one| one.o.as_ref())
                .chain(from_it.iter().filter_map(|one| one.s.as_ref()));
            for term in pointed {
                if !term.iri.is_empty() && known.len() < NODES_MAX && known.insert(term.iri.clone()) {
                    nodes.push(term.iri.clone());
                }
            }
            if is_synthesis {
                let named = said.iter().filter(|one| is(&one.p, &document));
                answers.extend(named.filter_map(|one| one.o.as_ref()).map(|term| term.iri.clone()));
            }
            statements.extend(said);
        }
        Ok((statements, answers))
    }

    async fn all(&self, pattern: Pattern) -> Result<Vec<Triple>> {
        let (mut all, mut from): (Vec<Triple>, Option<Cursor>) = (Vec::new(), None);
        loop {
            let page = self.stores.triples.query(self.scope, &pattern, from, PAGE).await?;
            all.extend(page.triples);
            from = page.next;
            if from.is_none() {
                return Ok(all);
            }
        }
    }
}

/// Whether a time comes before another, to the second. A time that is not known does not.
fn is_older(time: &str, cutoff: &str) -> bool {
    const SECONDS: usize = "2026-01-01T00:00:00".len();
    match (time.get(..SECONDS), cutoff.get(..SECONDS)) {
        (Some(time), Some(cutoff)) => time < cutoff,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_compared_to_the_second_whatever_ends_them() {
        assert!(is_older("2026-01-01T00:00:00.5Z", "2026-01-01T00:00:01Z"));
        assert!(!is_older("2026-01-01T00:00:01+00:00", "2026-01-01T00:00:01.9Z"));
        assert!(!is_older("", "2026-01-01T00:00:01Z") && !is_older("2026-01-01T00:00:01Z", ""));
    }

    #[tokio::test]
    async fn workspaces_that_keep_changing_take_no_turn_of_the_others() {
        use sluice_bus::{Address, Broker as _, BrokerAdmin as _, Message, TopicSpec};
        use sluice_schema::{message::ConfigPush, wire};

        let broker = std::sync::Arc::new(sluice_bus::Embedded::in_memory());
        let notices: sluice_schema::Topic = "notify:tg:config".parse().unwrap();
        broker.ensure(&TopicSpec::bare(notices.clone())).await.unwrap();
        broker.ensure(&TopicSpec::bare("response:tg:config".parse().unwrap())).await.unwrap();
        let process = Process::new(broker.clone(), tokio_util::sync::CancellationToken::new());
        let watch = ConfigWatch::start(&process, INTERVAL);
        let changes = watch.changes(&[COLLECTION]);
        let mut later = Instant::now() + INTERVAL;
        assert_eq!(next_turn(&changes, &mut later).await, None, "nothing is known before notices are heard");
        let tell = async || {
            let changed = [(COLLECTION.to_owned(), vec!["w".to_owned()])];
            let push = ConfigPush { version: 1, changes: changed.into(), ..ConfigPush::default() };
            broker
                .publish(&Address::Topic(notices.clone()), Message::new(wire::encode(&push)))
                .await
                .unwrap();
        };
        let only = Some(BTreeSet::from(["w".to_owned()]));
        tell().await;
        assert_eq!(next_turn(&changes, &mut later).await, only);
        tell().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut due = Instant::now();
        assert_eq!(next_turn(&changes, &mut due).await, None, "all are due");
        assert_eq!(next_turn(&changes, &mut due).await, only, "what changed meanwhile is not forgotten");
    }

    #[test]
    fn what_is_left_out_of_a_record_has_its_default() {
        let read = |text: &str| serde_json::from_str::<Retention>(text).ok();
        assert_eq!(read("{}"), Some(Retention { days: 90, count: 1_000 }));
        assert_eq!(read(r#"{"days": 7}"#), Some(Retention { days: 7, count: 1_000 }));
        assert_eq!(read(r#"{"day": 7}"#), None);
    }
}
