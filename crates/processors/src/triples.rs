//! The triple store of a workspace: writing statements and answering patterns.
//!
//! Documents share statements, so each statement is held by every message that brought it, and goes with the last of them.
//! The labels of the vocabulary come with every document and say nothing about it: nobody holds them, and they stay as long
//! as their collection.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sha2::{Digest as _, Sha256};
use sluice_schema::ceilings::json_bytes;
use sluice_schema::message::{Error, Term, Triple, Triples, TriplesQueryRequest, TriplesQueryResponse};
use sluice_schema::vocabulary::is_label;
use sluice_schema::{exchange, listing};
use sluice_sdk::service::SMALL_PAGE_BYTES;
use sluice_sdk::{BindError, Failure, Inputs, Ports, Processor, Responder};
use sluice_store::{Batch, BoxFuture, Found, Pattern, Read, Scope, Stores, content};

use crate::chunk_index::store_failure;
use crate::derived::{Derived, Entry, Forget, Note, Origin, damaged};
use crate::provenance::RETRIEVAL_GRAPH;

/// Which message holds which statement, by digests: of what the statement is about, of the statement, of the message.
const HELD: &str = "derived.holders";
/// The same as an earlier version wrote it, with names in full.
const HELD_EARLIER: &str = "derived.held";

const LIMIT_DEFAULT: usize = 10_000;
/// Statements of one answer that comes in one piece.
const ANSWER_MAX: usize = 100_000;
const BATCH_DEFAULT: usize = 20;
/// Statements read at once, and in one part of an answer, at most: their terms may be large.
const BATCH_MAX: usize = 256;
/// What a statement takes in an answer beside its texts, in bytes.
const ANSWER_BYTES: usize = 512;
/// Statements being removed at once.
const REMOVES_MAX: usize = 64;
/// Bytes of digests in the key of a holding.
const SUBJECT_BYTES: usize = 8;
const STATEMENT_BYTES: usize = 12;
const HOLDER_BYTES: usize = 8;
/// Bytes of a digest in the id of a note.
const DIGEST_BYTES: usize = 16;
/// What the statements of a note begin with when they are packed; an earlier version put down their JSON as it is.
const PACKED: u8 = 1;
/// The statements of one note at most, in bytes; no message is larger.
const NOTE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Writes statements.
pub struct TriplesWriter {
    derived: Derived,
    workspace: String,
}

impl Processor for TriplesWriter {
    const NAME: &'static str = "triples-write";
    const CONCURRENCY: usize = 32;

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        Ok(Self { derived: ports.resource()?, workspace: ports.workspace().to_owned() })
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.message("input", Self::write);
    }
}

impl TriplesWriter {
    async fn write(self: Arc<Self>, message: Triples) -> Result<(), Failure> {
        let metadata = message.metadata.unwrap_or_default();
        let (whole, broken): (Vec<Triple>, Vec<Triple>) = message
            .triples
            .into_iter()
            .partition(|triple| triple.s.is_some() && triple.p.is_some() && triple.o.is_some());
        if !broken.is_empty() {
            tracing::warn!(
                item = metadata.id,
                left_out = broken.len(),
                "triples without subject, predicate or object"
            );
        }
        if whole.is_empty() {
            return Ok(());
        }
        if whole.iter().any(|triple| triple.g.as_deref() == Some(RETRIEVAL_GRAPH)) {
            let noted = self.derived.note_traces(&self.workspace, &metadata.collection).await;
            noted.map_err(|e| store_failure(&e))?;
        }
        let origin =
            Origin { workspace: &self.workspace, collection: &metadata.collection, root: &metadata.root };
        let (entry, holdings) = holding_batch(origin, &metadata.id, &whole).map_err(|e| store_failure(&e))?;
        let scope = Scope::new(&self.workspace, &metadata.collection);
        let written = self.derived.write("triples", origin, vec![entry], holdings, || {
            self.derived.stores.triples.add(scope, whole)
        });
        // What belongs to a document that is gone is not written, and that is fine.
        written.await.map(drop).map_err(|e| store_failure(&e))
    }
}

/// What is noted of the statements that a message brings.
pub(crate) fn holding_batch(
    origin: Origin<'_>,
    message_id: &str,
    statements: &[Triple],
) -> sluice_store::Result<(Entry, Batch)> {
    let statements: Vec<&Triple> = statements.iter().filter(|statement| !is_label(statement)).collect();
    let json = serde_json::to_vec(&statements)
        .map_err(|e| damaged("the statements of a message", &e.to_string()))?;
    // A message that comes twice is noted once.
    let id = hex(&[message_id.as_bytes(), &json]);
    let mut holdings = Batch::new();
    if !origin.root.is_empty() {
        let scope = Scope::new(origin.workspace, origin.collection);
        for triple in statements {
            holdings.put(HELD, holding(scope, triple, Some((origin.root, &id)))?, Vec::new());
        }
    }
    Ok((Entry { id, detail: packed(&json) }, holdings))
}

/// Statements of one message say much the same, so they are packed.
fn packed(json: &[u8]) -> Vec<u8> {
    let mut packed = vec![PACKED];
    packed.extend(content::packed(json));
    packed
}

/// The statements of a note, and whether they are packed.
fn unpacked(detail: &[u8]) -> sluice_store::Result<(Vec<Triple>, bool)> {
    let unreadable = |reason: &str| damaged("the statements of a message", reason);
    let (json, is_packed) = match detail.split_first() {
        Some((&PACKED, rest)) => {
            let json = content::unpacked(rest, NOTE_BYTES_MAX);
            (json.ok_or_else(|| unreadable("they cannot be unpacked"))?, true)
        }
        _ => (detail.to_vec(), false),
    };
    Ok((serde_json::from_slice(&json).map_err(|e| unreadable(&e.to_string()))?, is_packed))
}

fn json_of(value: &impl serde::Serialize) -> sluice_store::Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| damaged("a statement", &e.to_string()))
}

/// The key that says that a note (its document and id) holds a statement; without one, what all keys for the statement begin
/// with. What is said of one subject stands together, since it mostly comes with one message.
fn holding(scope: Scope<'_>, triple: &Triple, holder: Option<(&str, &str)>) -> sluice_store::Result<Vec<u8>> {
    let (workspace, collection) = (scope.workspace.as_bytes(), scope.collection.as_bytes());
    let mut key = digest(&[workspace, collection, &json_of(&triple.s)?])[..SUBJECT_BYTES].to_vec();
    key.extend_from_slice(&digest(&[&json_of(triple)?])[..STATEMENT_BYTES]);
    if let Some((root, id)) = holder {
        key.extend_from_slice(&digest(&[root.as_bytes(), id.as_bytes()])[..HOLDER_BYTES]);
    }
    Ok(key)
}

/// The same as an earlier version wrote it.
fn earlier_holding(scope: Scope<'_>, triple: &Triple, names: &[&str]) -> sluice_store::Result<Vec<u8>> {
    let (subject, statement) = (hex(&[&json_of(&triple.s)?]), hex(&[&json_of(triple)?]));
    let mut key = [scope.workspace, scope.collection, &subject, &statement].join("\0").into_bytes();
    for name in names {
        key.push(0);
        key.extend_from_slice(name.as_bytes());
    }
    Ok(key)
}

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn hex(parts: &[&[u8]]) -> String {
    digest(parts)[..DIGEST_BYTES].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Takes statements out of the triple store.
pub(crate) struct ForgetTriples(pub(crate) Stores);

impl Forget for ForgetTriples {
    fn forget<'a>(
        &'a self,
        scope: Scope<'a>,
        notes: &'a [Note],
        batch: &'a mut Batch,
    ) -> BoxFuture<'a, sluice_store::Result<()>> {
        Box::pin(async move {
            let (mut own, mut statements) = (BTreeSet::new(), Vec::new());
            for note in notes {
                let (brought, is_packed) = unpacked(&note.detail)?;
                for triple in brought {
                    if is_packed {
                        let held = holding(scope, &triple, Some((&note.root, &note.id)))?;
                        batch.delete(HELD, &held);
                        own.insert(held);
                    }
                    // Of a packed note too: an earlier version may have written it before this one got its message again.
                    let held = earlier_holding(scope, &triple, &[&note.root, &note.id])?;
                    batch.delete(HELD_EARLIER, &held);
                    own.insert(held);
                    statements.push(triple);
                }
            }
            // Others than the messages that go now may hold it; so many and one more are enough to see one of them.
            let holders_max = own.len() + 1;
            let removed = stream::iter(statements).map(Ok::<_, sluice_store::Error>);
            removed
                .try_for_each_concurrent(REMOVES_MAX, |triple| {
                    let own = &own;
                    async move {
                        let earlier = earlier_holding(scope, &triple, &[""])?;
                        let holders = vec![
                            Read::prefix(HELD, holding(scope, &triple, None)?, holders_max),
                            Read::prefix(HELD_EARLIER, earlier, holders_max),
                        ];
                        let found = self.0.tables.read(holders).await?.into_iter().map(Found::into_rows);
                        let mut holders = found.flat_map(|found| found.rows);
                        if holders.any(|(key, _)| !own.contains(&key[..])) {
                            return Ok(());
                        }
                        let g = Some(triple.g.unwrap_or_default());
                        let exactly = Pattern { s: triple.s, p: triple.p, o: triple.o, g };
                        self.0.triples.remove(scope, &exactly).await
                    }
                })
                .await
        })
    }

    fn forget_collection<'a>(&'a self, scope: Scope<'a>) -> BoxFuture<'a, sluice_store::Result<()>> {
        Box::pin(async move { self.0.triples.remove(scope, &Pattern::all()).await })
    }
}

/// Answers patterns.
pub struct TriplesQuery {
    stores: Stores,
    workspace: String,
}

impl Processor for TriplesQuery {
    const NAME: &'static str = "triples-query";

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        Ok(Self { stores: ports.resource()?, workspace: ports.workspace().to_owned() })
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.request::<exchange::TriplesQuery, _, _>("request", Self::answer);
    }
}

impl TriplesQuery {
    async fn answer(
        self: Arc<Self>,
        request: TriplesQueryRequest,
        answer: Responder<exchange::TriplesQuery>,
    ) -> Result<TriplesQueryResponse, Error> {
        let failed = |reason: String| Error::new("triples-query-error", reason);
        let scope = Scope::new(&self.workspace, &request.collection);
        let pattern = Pattern { s: request.s, p: request.p, o: request.o, g: request.g };
        let limit_max = if request.streaming { usize::MAX } else { ANSWER_MAX };
        let mut left = positive(request.limit).unwrap_or(LIMIT_DEFAULT).min(limit_max);
        let batch = positive(request.batch_size).unwrap_or(BATCH_DEFAULT).min(BATCH_MAX);
        let mut found: Vec<Triple> = Vec::new();
        let mut from = None;
        let (mut bytes, bytes_max) = (0, listing::room(answer.answer_bytes_max()));
        loop {
            let size = if request.streaming { batch } else { BATCH_MAX }.min(left);
            let page = self
                .stores
                .triples
                .query(scope, &pattern, from, size)
                .await
                .map_err(|e| failed(e.to_string()))?;
            left -= page.triples.len().min(left);
            bytes += page.triples.iter().map(size_of).sum::<usize>();
            if bytes > bytes_max {
                return Err(Error::new(
                    Error::TOO_LARGE,
                    format!(
                        "the statements found take more than the {bytes_max} bytes that fit one answer; ask with a lower limit, \
                         or streaming with a lower batch-size"
                    ),
                ));
            }
            found.extend(page.triples);
            from = page.next.filter(|_| left > 0);
            if !request.streaming && bytes > SMALL_PAGE_BYTES {
                // As much as the rest will be, if it is like what came.
                let about = bytes / found.len() * (found.len() + if from.is_some() { left } else { 0 });
                answer.room_for(about.min(bytes_max)).await?;
            }
            if from.is_none() {
                return Ok(TriplesQueryResponse { error: None, triples: found, is_final: true });
            }
            if request.streaming {
                bytes = 0;
                let triples = std::mem::take(&mut found);
                let part = TriplesQueryResponse { error: None, triples, is_final: false };
                answer.part(&part).await.map_err(|e| failed(e.to_string()))?;
            }
        }
    }
}

/// About what a statement takes in an answer, in bytes.
fn size_of(triple: &Triple) -> usize {
    let terms = [&triple.s, &triple.p, &triple.o].into_iter().flatten();
    let graph = triple.g.as_deref().map_or(0, json_bytes);
    ANSWER_BYTES + graph + terms.map(size_of_term).sum::<usize>()
}

fn size_of_term(term: &Term) -> usize {
    let texts = [&term.iri, &term.id, &term.value, &term.datatype, &term.language];
    let quoted = term.triple.as_deref().map_or(0, size_of);
    quoted + texts.into_iter().map(|text| json_bytes(text)).sum::<usize>()
}

fn positive(number: i64) -> Option<usize> {
    usize::try_from(number).ok().filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iri(iri: &str) -> Option<sluice_schema::message::Term> {
        Some(crate::provenance::iri(iri))
    }

    fn said(subject: &str, object: &str) -> Triple {
        Triple { s: iri(subject), p: iri("urn:p"), o: iri(object), g: Some("urn:g".to_owned()) }
    }

    #[test]
    fn statements_of_a_note_read_as_they_were_written_packed_and_as_earlier_versions_did() {
        let statements: Vec<Triple> =
            (0..16).map(|n| said("https://trustgraph.ai/chunk/1", &format!("urn:o{n}"))).collect();
        let json = serde_json::to_vec(&statements).unwrap();
        let packed = packed(&json);
        assert!(packed.len() * 8 < json.len(), "{} of {} bytes", packed.len(), json.len());
        assert_eq!(unpacked(&packed).unwrap(), (statements.clone(), true));
        assert_eq!(unpacked(&json).unwrap(), (statements, false));
        unpacked(&packed[..packed.len() / 2]).unwrap_err();
    }

    #[tokio::test]
    async fn what_an_earlier_version_noted_goes_and_what_it_holds_beside_others_stays() {
        let folder = tempfile::tempdir().unwrap();
        let store = sluice_store::Embedded::open(folder.path()).unwrap();
        let derived = Derived::new(store.stores());
        let scope = Scope::new("w", "c");
        let all =
            vec![said("urn:a", "urn:of old"), said("urn:a", "urn:of both"), said("urn:a", "urn:of new")];
        store.stores().triples.add(scope, all.clone()).await.unwrap();
        // One note of an earlier version, which holds the first two, and one of this, which holds the last two.
        let json = serde_json::to_vec(&all[..2]).unwrap();
        let old = Note { root: "old".to_owned(), id: "1".to_owned(), detail: json.into() };
        let mut batch = Batch::new();
        for triple in &all[..2] {
            batch.put(HELD_EARLIER, earlier_holding(scope, triple, &["old", "1"]).unwrap(), Vec::new());
        }
        let origin = Origin { workspace: "w", collection: "c", root: "new" };
        let (entry, holdings) = holding_batch(origin, "message", &all[1..]).unwrap();
        let new = Note { root: "new".to_owned(), id: entry.id, detail: entry.detail.into() };
        derived.stores.tables.commit(batch).await.unwrap();
        derived.stores.tables.commit(holdings).await.unwrap();

        let forget = async |note: Note| {
            let mut batch = Batch::new();
            ForgetTriples(store.stores()).forget(scope, &[note], &mut batch).await.unwrap();
            derived.stores.tables.commit(batch).await.unwrap();
            let found = store.stores().triples.query(scope, &Pattern::all(), None, 10).await.unwrap();
            found.triples.into_iter().map(|triple| triple.o.unwrap().iri).collect::<BTreeSet<_>>()
        };
        assert_eq!(forget(old).await, ["urn:of both", "urn:of new"].map(str::to_owned).into());
        assert_eq!(forget(new).await, BTreeSet::new());
        for table in [HELD, HELD_EARLIER] {
            let left = derived.stores.tables.read(vec![Read::prefix(table, "", 10)]).await.unwrap();
            assert_eq!(left[0].clone().into_rows().rows.len(), 0, "{table}");
        }
        store.close().await;
    }
}
