//! How far documents are, counted from what the stages report.
//!
//! Each piece (a text or a chunk) has a row of marks, and a report only ever adds marks. So counting does not depend on
//! the order of reports and is not disturbed by repeated ones. Counts and marks are written in one step with the row of
//! counts as it was read; whoever loses that race counts again from what is there.
//!
//! Complete means: every announced text is done or has failed, and every announced chunk is stored or has failed.
//!
//! Lost means: the broker's log was lost after it was put through a flow, and nothing says that what is counted of it was done
//! by then. Its messages may have been in that log, so it is not told as complete until it was put through again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sluice_schema::ids::is_run_name;
use sluice_schema::message::{DocumentProgress, PieceFailure, ProcessingMetadata, StageReport};
use sluice_store::{Batch, Found, Read, Tables};
use tokio::sync::OnceCell;

use crate::Error;
use crate::clock;
use crate::documents::CONFLICT_TRIES_MAX;
use crate::rows::{self, Rows, key, prefix};

pub(crate) const PROGRESS: &str = "library-progress";
const PIECES: &str = "library-pieces";
/// One row: when the broker's log was lost last, in milliseconds since 1970.
const LOST: &str = "library-lost";
const LOG: &[u8] = b"log";

/// Failures kept per document, with their reasons.
const FAILURES_MAX: usize = 50;
/// Characters kept of a reason.
const REASON_CHARS_MAX: usize = 500;
/// Documents in one answer.
const DOCUMENTS_MAX: usize = 1_000;
/// Chunks asked for at once.
const CHUNKS_MAX: usize = 1_000;
/// Marks that a rate is told from, and the milliseconds between them: about a minute.
const MARKS_MAX: usize = 6;
const MARK_INTERVAL_MS: i64 = 10_000;

/// What has happened to a piece.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Marks(u8);

impl Marks {
    const ANNOUNCED: u8 = 1;
    const DONE: u8 = 2;
    const EMBEDDED: u8 = 4;
    const INDEXED: u8 = 8;
    const STORED: u8 = 16;
    const FAILED: u8 = 32;

    fn has(self, mark: u8) -> bool {
        self.0 & mark != 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Unit {
    Text,
    Chunk,
}

/// What a report says of each of its pieces. Whatever is done or lost was there, so it counts as announced.
fn marks_of(report: &StageReport) -> (Unit, Marks) {
    let unit = if report.unit == "text" { Unit::Text } else { Unit::Chunk };
    let marks = match (unit, report.stage.as_str(), report.event.as_str()) {
        (_, _, "announced") => Marks::ANNOUNCED,
        (Unit::Text, "chunker", "done") => Marks::ANNOUNCED | Marks::DONE,
        // A part without text, or one that was left out: it is through, and nothing more comes of it.
        (Unit::Text, "decoder", "skipped") => Marks::ANNOUNCED | Marks::DONE,
        (Unit::Text, "decoder" | "chunker", "failed") => Marks::ANNOUNCED | Marks::FAILED,
        (Unit::Chunk, "embeddings", "done") => Marks::EMBEDDED,
        (Unit::Chunk, "index", "done") => Marks::INDEXED,
        (Unit::Chunk, "store", "done") => Marks::ANNOUNCED | Marks::STORED,
        (Unit::Chunk, "chunker" | "embeddings" | "store", "failed") => Marks::ANNOUNCED | Marks::FAILED,
        // A failed index or a stage of somebody else's: worth a line among the failures, but it ends nothing.
        _ => 0,
    };
    (unit, Marks(marks))
}

/// Puts down that the broker's log was lost, or a part of it, before the library is started on these tables.
///
/// # Errors
/// What writing says.
pub async fn log_lost(tables: &dyn Tables) -> sluice_store::Result<()> {
    let mut batch = Batch::new();
    batch.put(LOST, LOG, rows::encode(&clock::milliseconds())).essential();
    tables.commit(batch).await
}

/// A document on its way into a flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) run: &'a str,
    pub(crate) pass: i64,
    /// It is its own first text; of other kinds the decoder tells.
    pub(crate) is_text: bool,
    /// The flow indexes its chunks, and says so.
    pub(crate) has_index: bool,
}

/// The row of counts of a pass that may be lost, to be put back if nothing comes of the next one.
pub(crate) struct Lost(Option<Bytes>);

/// The row of counts of one document in one run of a flow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Tally {
    collection: String,
    /// When it was put through the flow; 0 if only reports tell of it.
    started_ms: i64,
    /// The pass that is counted, see [`sluice_bus::property::PASS`]; 0 if only reports tell of it.
    pass: i64,
    /// The flow indexes chunks. What that does is no part of being complete.
    has_index: bool,
    texts_announced: i64,
    texts_done: i64,
    announced: i64,
    embedded: i64,
    indexed: i64,
    stored: i64,
    failed: i64,
    /// The decoder said that there is no text in it.
    empty: bool,
    /// Parts were left out, and why is told with the document itself, which is parked a moment later.
    unexplained: bool,
    failures: BTreeSet<(String, String, String)>,
    /// When so many chunks were stored or had failed, some seconds apart, oldest first: what the rate is told from.
    lately: Vec<(i64, i64)>,
}

impl Tally {
    /// Counts a piece that had `old` marks and now has `new`.
    fn count(&mut self, unit: Unit, old: Marks, new: Marks, weight: i64) {
        self.add(unit, old, -weight);
        self.add(unit, new, weight);
    }

    fn add(&mut self, unit: Unit, marks: Marks, weight: i64) {
        let if_has = |mark| if marks.has(mark) { weight } else { 0 };
        match unit {
            Unit::Text => {
                self.texts_announced += if_has(Marks::ANNOUNCED);
                self.texts_done += if_has(Marks::DONE | Marks::FAILED);
            }
            Unit::Chunk => {
                self.announced += if_has(Marks::ANNOUNCED);
                self.embedded += if_has(Marks::EMBEDDED);
                self.indexed += if_has(Marks::INDEXED);
                self.stored += if_has(Marks::STORED);
                // One that failed first and was stored later, after a replay, is stored.
                self.failed += if marks.has(Marks::STORED) { 0 } else { if_has(Marks::FAILED) };
            }
        }
    }

    /// Keeps the failures that come first in order, so that which are kept does not depend on when they came.
    fn note(&mut self, piece: &str, report: &StageReport) {
        let reason = report.reason.chars().take(REASON_CHARS_MAX).collect();
        self.failures.insert((piece.to_owned(), report.stage.clone(), reason));
        if self.failures.len() > FAILURES_MAX {
            self.failures.pop_last();
        }
    }

    const fn settled(&self) -> i64 {
        self.stored + self.failed
    }

    /// Remembers how much was settled before what is counted now.
    fn mark(&mut self, settled_before: i64, now_ms: i64) {
        let is_due = self.lately.last().is_none_or(|(at_ms, _)| now_ms - at_ms >= MARK_INTERVAL_MS);
        if self.settled() != settled_before && is_due {
            self.lately.push((now_ms, settled_before));
            let surplus = self.lately.len().saturating_sub(MARKS_MAX);
            self.lately.drain(..surplus);
        }
    }

    /// Chunks settled per minute since the oldest mark. It falls while nothing happens.
    fn rate_per_minute(&self, now_ms: i64) -> f64 {
        let Some((since_ms, settled)) = self.lately.first() else { return 0.0 };
        let ms = (now_ms - since_ms).max(1_000);
        (self.settled() - settled) as f64 * 60_000.0 / ms as f64
    }

    /// Seconds until everything is settled: of the chunks that are known, or as many for each text as there were so far.
    fn remaining_seconds(&self, rate_per_minute: f64) -> Option<i64> {
        if self.is_complete() {
            return Some(0);
        }
        if rate_per_minute <= 0.0 || self.texts_done == 0 {
            return None;
        }
        let expected = self.announced as f64 * self.texts_announced as f64 / self.texts_done as f64;
        let seconds = (expected - self.settled() as f64).max(0.0) / rate_per_minute * 60.0;
        #[expect(clippy::cast_possible_truncation, reason = "whole seconds are meant, and huge ones are cut")]
        Some(seconds.ceil() as i64)
    }

    fn is_complete(&self) -> bool {
        (self.empty || self.texts_announced > 0)
            && self.texts_done == self.texts_announced
            && self.stored + self.failed == self.announced
            && !(self.unexplained && self.failures.is_empty())
    }

    /// Whether all that is counted of it is done.
    fn is_through(&self) -> bool {
        let has_index = self.has_index || self.indexed > 0;
        self.is_complete() && (!has_index || self.indexed >= self.announced)
    }

    /// Whether messages of it may have been lost with the broker's log.
    fn is_lost(&self, log_lost_ms: i64) -> bool {
        (1..log_lost_ms).contains(&self.started_ms) && !self.is_through()
    }

    fn shown(&self, document_id: &str, flow: &str, now_ms: i64, log_lost_ms: i64) -> DocumentProgress {
        let rate_per_minute = if self.is_complete() { 0.0 } else { self.rate_per_minute(now_ms) };
        let lost = self.is_lost(log_lost_ms);
        DocumentProgress {
            started: self.started_ms / 1_000,
            rate_per_minute,
            remaining_seconds: self.remaining_seconds(rate_per_minute).filter(|_| !lost),
            document_id: document_id.to_owned(),
            flow: flow.to_owned(),
            collection: self.collection.clone(),
            texts_announced: self.texts_announced,
            texts_done: self.texts_done,
            announced: self.announced,
            embedded: self.embedded,
            indexed: self.indexed,
            stored: self.stored,
            failed: self.failed,
            complete: self.is_complete() && !lost,
            lost,
            failures: self
                .failures
                .iter()
                .map(|(piece, stage, reason)| PieceFailure {
                    piece: piece.clone(),
                    stage: stage.clone(),
                    reason: reason.clone(),
                })
                .collect(),
            embedded_chunks: Vec::new(),
        }
    }
}

/// A document in a run of a flow, and the pass of it that a report tells of, if it says.
type Told<'a> = (&'a str, &'a str, Option<i64>);

/// What reports say of one document, put together before anything is read: marks per piece with the piece's weight.
#[derive(Default)]
struct News<'a> {
    pieces: BTreeMap<(Unit, String), (Marks, i64)>,
    failures: Vec<(String, &'a StageReport)>,
    empty: bool,
    unexplained: bool,
    collection: &'a str,
}

impl<'a> News<'a> {
    fn add(&mut self, report: &'a StageReport) {
        let (unit, marks) = marks_of(report);
        self.collection = &report.collection;
        let mut hit = |piece: String, weight: i64| {
            if report.event == "failed" {
                self.failures.push((piece.clone(), report));
            }
            if marks.0 != 0 {
                let known = self.pieces.entry((unit, piece)).or_insert((Marks(0), weight));
                known.0 = Marks(known.0.0 | marks.0);
            }
        };
        for piece in report.pieces.iter().filter(|piece| rows::is_id(piece)) {
            hit(piece.clone(), 1);
        }
        if report.pieces.is_empty() && report.count > 0 && rows::is_id(&report.id) {
            // A report that only counts: it is itself the piece, as heavy as it says.
            hit(format!("report:{}", report.id), report.count);
        }
        if report.event == "skipped" && !report.reason.is_empty() {
            // One reason for all of them: the first stands for the others.
            self.failures.extend(report.pieces.first().map(|piece| (piece.clone(), report)));
        }
        self.unexplained |= (report.stage.as_str(), report.event.as_str(), report.reason.as_str())
            == ("decoder", "skipped", "");
        self.empty |= report.pieces.is_empty()
            && report.count == 0
            && (report.stage.as_str(), report.event.as_str(), report.unit.as_str())
                == ("decoder", "announced", "text");
    }
}

/// Progress in all workspaces.
#[derive(Clone)]
pub(crate) struct Progress {
    rows: Rows,
    /// When the broker's log was lost last, once it is known; 0 if it never was.
    log_lost_ms: Arc<OnceCell<i64>>,
}

impl Progress {
    pub(crate) fn new(rows: Rows) -> Self {
        Self { rows, log_lost_ms: Arc::default() }
    }

    async fn log_lost_ms(&self) -> Result<i64, Error> {
        let read =
            || async { Ok::<_, Error>(self.rows.get::<i64>(LOST, LOG).await?.map_or(0, |row| row.is)) };
        self.log_lost_ms.get_or_try_init(read).await.copied()
    }

    /// What is known of a pass of a document of which messages may have been lost with the broker's log.
    pub(crate) async fn lost_pass(
        &self,
        workspace: &str,
        (document, run): (&str, &str),
        pass: i64,
        begun_ms: i64,
    ) -> Result<Option<Lost>, Error> {
        // Its number may be ahead of the time.
        if begun_ms >= self.log_lost_ms().await? {
            return Ok(None);
        }
        let tally = self.rows.get::<Tally>(PROGRESS, &key(&[workspace, document, run])).await?;
        let is_through = tally.as_ref().is_some_and(|tally| tally.is.pass == pass && tally.is.is_through());
        Ok((!is_through).then(|| Lost(tally.map(|tally| tally.raw))))
    }

    /// Counts reports. On return they count for good; counting them again changes nothing.
    pub(crate) async fn count(
        &self,
        workspace: &str,
        reports: &[(Option<i64>, StageReport)],
    ) -> Result<(), Error> {
        let mut by_document: BTreeMap<Told<'_>, News<'_>> = BTreeMap::new();
        for (pass, report) in reports {
            if rows::is_id(&report.document_id) && rows::is_id(&report.flow) {
                by_document.entry((&report.document_id, &report.flow, *pass)).or_default().add(report);
            } else {
                tracing::warn!(
                    workspace,
                    report = report.id,
                    "a progress report without document or flow was dropped"
                );
            }
        }
        for (told, news) in by_document {
            self.count_one(workspace, told, &news).await?;
        }
        Ok(())
    }

    async fn count_one(
        &self,
        workspace: &str,
        (document, run, pass): Told<'_>,
        news: &News<'_>,
    ) -> Result<(), Error> {
        let mut counted = run.to_owned();
        for _ in 0..CONFLICT_TRIES_MAX {
            let run = &*counted;
            let tally_key = key(&[workspace, document, run]);
            let keys: Vec<Vec<u8>> = news
                .pieces
                .keys()
                .map(|(unit, piece)| piece_key(workspace, document, run, *unit, piece))
                .collect();
            let mut reads = vec![Read::get(PROGRESS, &tally_key)];
            reads.extend(keys.iter().map(|key| Read::get(PIECES, key)));
            let mut found = self.rows.read(reads).await?.into_iter().map(Found::into_value);
            let raw = found.next().flatten();
            if raw.is_none() {
                let begun = self.begun_run(workspace, document, run).await?;
                if let Some(begun) = begun.filter(|begun| begun != run) {
                    counted = begun;
                    continue;
                }
            }
            let mut tally = match &raw {
                Some(raw) => rows::decode::<Tally>(PROGRESS, &tally_key, raw)?,
                None => Tally { collection: news.collection.to_owned(), ..Default::default() },
            };
            if pass.is_some_and(|pass| pass < tally.pass) {
                tracing::debug!(workspace, document, run, pass, "a report of an earlier pass came too late");
                return Ok(());
            }
            let before = tally.clone();
            let mut batch = Batch::new();
            for ((((unit, _), (marks, weight)), piece_key), old) in news.pieces.iter().zip(&keys).zip(found) {
                let old = Marks(old.and_then(|raw| raw.first().copied()).unwrap_or(0));
                let new = Marks(old.0 | marks.0);
                if new != old {
                    tally.count(*unit, old, new, *weight);
                    batch.put(PIECES, piece_key, Bytes::copy_from_slice(&[new.0]));
                }
            }
            tally.mark(before.settled(), clock::milliseconds());
            for (piece, report) in &news.failures {
                tally.note(piece, report);
            }
            tally.empty |= news.empty;
            tally.unexplained |= news.unexplained;
            if tally == before && raw.is_some() {
                return Ok(());
            }
            batch.expect(PROGRESS, &tally_key, raw).put(PROGRESS, &tally_key, rows::encode(&tally));
            match self.rows.commit(batch).await {
                Err(error) if rows::is_conflict(&error) => {}
                done => return done,
            }
        }
        Err(Error::Store(sluice_store::Error::Unavailable {
            reason: format!("progress of '{document}' is being written by too many at once; try again"),
        }))
    }

    /// The run of a flow in which a pass of a document began last. What a stop parked there and somebody sent into a later
    /// run belongs to that pass.
    async fn begun_run(&self, workspace: &str, document: &str, run: &str) -> Result<Option<String>, Error> {
        let mut last = None;
        self.rows
            .scan(PROGRESS, &prefix(&[workspace, document]), |key, raw| {
                let known = rows::last_part(key);
                let tally: Tally = rows::decode(PROGRESS, key, raw)?;
                if flow_of(&known) == flow_of(run) && tally.started_ms > 0 {
                    last = last.take().max(Some((tally.started_ms, known)));
                }
                Ok(true)
            })
            .await?;
        Ok(last.map(|(_, known)| known))
    }

    /// Adds to `batch`: counting starts afresh for a document that is put through a flow. What is known of its earlier
    /// runs and passes in this flow goes, and what reports still tell of them does not count.
    pub(crate) async fn begin(
        &self,
        workspace: &str,
        processing: &ProcessingMetadata,
        entry: Entry<'_>,
        batch: &mut Batch,
    ) -> Result<(), Error> {
        let Entry { run, pass, is_text, has_index } = entry;
        let document = &processing.document_id;
        for known_run in self.runs(workspace, document).await? {
            if flow_of(&known_run) != flow_of(run) {
                continue;
            }
            if known_run != run {
                batch.delete(PROGRESS, key(&[workspace, document, &known_run]));
            }
            batch.delete_prefix(PIECES, prefix(&[workspace, document, &known_run]));
        }
        let mut tally = Tally {
            collection: processing.collection.clone(),
            started_ms: clock::milliseconds(),
            pass,
            has_index,
            ..Default::default()
        };
        if is_text {
            let marks = Marks(Marks::ANNOUNCED);
            tally.count(Unit::Text, Marks(0), marks, 1);
            let piece = piece_key(workspace, document, run, Unit::Text, document);
            batch.put(PIECES, piece, Bytes::copy_from_slice(&[marks.0]));
        }
        batch.put(PROGRESS, key(&[workspace, document, run]), rows::encode(&tally));
        Ok(())
    }

    /// Forgets a document in all flows.
    pub(crate) async fn forget(&self, workspace: &str, document: &str) -> Result<(), Error> {
        let mut batch = Batch::new();
        let under = prefix(&[workspace, document]);
        batch.delete_prefix(PROGRESS, &under).delete_prefix(PIECES, &under);
        self.rows.commit(batch).await
    }

    /// Forgets what is known of a collection, for one document or for all (`document` empty).
    pub(crate) async fn forget_in(
        &self,
        workspace: &str,
        document: &str,
        collection: &str,
    ) -> Result<(), Error> {
        let under = if document.is_empty() { prefix(&[workspace]) } else { prefix(&[workspace, document]) };
        let mut batch = Batch::new();
        self.rows
            .scan(PROGRESS, &under, |tally_key, raw| {
                if rows::decode::<Tally>(PROGRESS, tally_key, raw)?.collection == collection {
                    // Pieces are kept under the key of their tally.
                    let mut pieces = tally_key.to_vec();
                    pieces.push(0);
                    batch.delete(PROGRESS, tally_key).delete_prefix(PIECES, pieces);
                }
                Ok(true)
            })
            .await?;
        if batch.is_empty() { Ok(()) } else { self.rows.commit(batch).await }
    }

    /// Adds to `batch`: forgets a document in one run, because it never went in.
    pub(crate) fn undo(workspace: &str, document: &str, run: &str, batch: &mut Batch) {
        batch
            .delete(PROGRESS, key(&[workspace, document, run]))
            .delete_prefix(PIECES, prefix(&[workspace, document, run]));
    }

    /// Adds to `batch`: a pass that may be lost is told as that again, because the next one never went in.
    pub(crate) fn put_back(workspace: &str, document: &str, run: &str, lost: Lost, batch: &mut Batch) {
        Self::undo(workspace, document, run, batch);
        if let Lost(Some(tally)) = lost {
            batch.put(PROGRESS, key(&[workspace, document, run]), tally);
        }
    }

    /// Progress of the documents named, or else of all up to the bound, in one flow or in all; of several runs of a flow
    /// the latest. A flow may be named by its id or by the name of its run. A document that nothing is known of is left
    /// out. Of one document it is told which of `chunks` have their vectors.
    pub(crate) async fn shown(
        &self,
        workspace: &str,
        documents: &[String],
        flow: &str,
        chunks: &[String],
    ) -> Result<Vec<DocumentProgress>, Error> {
        if !chunks.is_empty() && documents.len() != 1 {
            return Err(Error::request("chunks were asked for; name the one document that they belong to"));
        }
        if chunks.len() > CHUNKS_MAX {
            return Err(Error::request(format!(
                "{} chunks were asked for; ask for at most {CHUNKS_MAX} at once",
                chunks.len()
            )));
        }
        for chunk in chunks {
            rows::check_id("chunk", chunk)?;
        }
        if documents.len() > DOCUMENTS_MAX {
            return Err(Error::request(format!(
                "the progress of {} documents was asked for; ask for at most {DOCUMENTS_MAX} at once",
                documents.len()
            )));
        }
        let mut latest = BTreeMap::new();
        let log_lost_ms = self.log_lost_ms().await?;
        let show = |((document, flow), (_, _, tally)): ((String, String), (i64, String, Tally))| {
            tally.shown(&document, &flow, clock::milliseconds(), log_lost_ms)
        };
        if documents.is_empty() {
            self.latest(workspace, prefix(&[workspace]), flow, &mut latest).await?;
            // The last document's flows may exceed the bound.
            return Ok(latest.into_iter().take(DOCUMENTS_MAX).map(show).collect());
        }
        for document in documents {
            rows::check_id("document", document)?;
        }
        let mut shown = Vec::new();
        for document in documents.iter().collect::<BTreeSet<_>>() {
            self.latest(workspace, prefix(&[workspace, document]), flow, &mut latest).await?;
            for known in std::mem::take(&mut latest) {
                let embedded_chunks = self.embedded(workspace, document, &known.1.1, chunks).await?;
                shown.push(DocumentProgress { embedded_chunks, ..show(known) });
            }
        }
        Ok(shown)
    }

    /// Documents of which messages may have been lost with the broker's log, up to the bound, without their failures.
    pub(crate) async fn lost(&self, workspace: &str, flow: &str) -> Result<Vec<DocumentProgress>, Error> {
        let (log_lost_ms, now_ms) = (self.log_lost_ms().await?, clock::milliseconds());
        let mut lost = Vec::new();
        if log_lost_ms == 0 {
            return Ok(lost);
        }
        let start = prefix(&[workspace]).len();
        self.rows
            .scan(PROGRESS, &prefix(&[workspace]), |key, raw| {
                let names = String::from_utf8_lossy(&key[start..]).into_owned();
                let Some((document, run)) = names.split_once('\0') else { return Ok(true) };
                let id = flow_of(run);
                let tally: Tally = rows::decode(PROGRESS, key, raw)?;
                if (flow.is_empty() || flow == run || flow == id) && tally.is_lost(log_lost_ms) {
                    let shown = tally.shown(document, id, now_ms, log_lost_ms);
                    lost.push(DocumentProgress { failures: Vec::new(), ..shown });
                }
                Ok(lost.len() < DOCUMENTS_MAX)
            })
            .await?;
        Ok(lost)
    }

    /// Which of these chunks of a document have their vectors in a run.
    async fn embedded(
        &self,
        workspace: &str,
        document: &str,
        run: &str,
        chunks: &[String],
    ) -> Result<Vec<String>, Error> {
        let read =
            |chunk: &String| Read::get(PIECES, piece_key(workspace, document, run, Unit::Chunk, chunk));
        let found = self.rows.read(chunks.iter().map(read).collect()).await?;
        let is_embedded = |found: Found| {
            let row = found.into_value();
            row.and_then(|row| row.first().copied()).is_some_and(|row| Marks(row).has(Marks::EMBEDDED))
        };
        let asked = chunks.iter().zip(found);
        Ok(asked.filter_map(|(chunk, found)| is_embedded(found).then(|| chunk.clone())).collect())
    }

    /// The latest runs of whole documents: none is begun once there are as many as the bound.
    async fn latest(
        &self,
        workspace: &str,
        under: Vec<u8>,
        flow: &str,
        latest: &mut BTreeMap<(String, String), (i64, String, Tally)>,
    ) -> Result<(), Error> {
        let start = prefix(&[workspace]).len();
        self.rows
            .scan(PROGRESS, &under, |key, raw| {
                let names = String::from_utf8_lossy(&key[start..]).into_owned();
                let Some((document, run)) = names.split_once('\0') else { return Ok(true) };
                let id = flow_of(run);
                if !flow.is_empty() && flow != run && flow != id {
                    return Ok(true);
                }
                let is_begun = latest.last_key_value().is_some_and(|((last, _), _)| last == document);
                if latest.len() >= DOCUMENTS_MAX && !is_begun {
                    return Ok(false);
                }
                let tally: Tally = rows::decode(PROGRESS, key, raw)?;
                let this = (tally.started_ms, run.to_owned(), tally);
                let place =
                    latest.entry((document.to_owned(), id.to_owned())).or_insert_with(|| this.clone());
                if (place.0, &place.1) < (this.0, &this.1) {
                    *place = this;
                }
                Ok(true)
            })
            .await
    }

    async fn runs(&self, workspace: &str, document: &str) -> Result<Vec<String>, Error> {
        let mut runs = Vec::new();
        self.rows
            .scan(PROGRESS, &prefix(&[workspace, document]), |key, _| {
                runs.push(rows::last_part(key));
                Ok(true)
            })
            .await?;
        Ok(runs)
    }
}

fn piece_key(workspace: &str, document: &str, run: &str, unit: Unit, piece: &str) -> Vec<u8> {
    let unit = match unit {
        Unit::Text => "t",
        Unit::Chunk => "c",
    };
    key(&[workspace, document, run, unit, piece])
}

/// The flow that a run belongs to: second and later runs are named `<flow>-r<n>`, and no flow is.
pub(crate) fn flow_of(run: &str) -> &str {
    if is_run_name(run) { run.rsplit_once("-r").map_or(run, |(flow, _)| flow) } else { run }
}

#[cfg(test)]
mod tests;
