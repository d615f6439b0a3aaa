//! The triple store of a workspace: writing statements and answering patterns.
//!
//! Documents share statements, so each statement is held by every message that brought it, and goes with the last of them.
//! The labels of the vocabulary come with every document and say nothing about it: nobody holds them, and they stay as long
//! as their collection.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sha2::{Digest as _, Sha256};
use sluice_schema::exchange;
use sluice_schema::message::{Error, Triple, Triples, TriplesQueryRequest, TriplesQueryResponse};
use sluice_schema::vocabulary::is_label;
use sluice_sdk::{BindError, Failure, Inputs, Ports, Processor, Responder};
use sluice_store::{Batch, BoxFuture, Found, Pattern, Read, Scope, Stores};

use crate::chunk_index::store_failure;
use crate::derived::{Derived, Entry, Forget, Note, Origin, damaged};

const HELD: &str = "derived.held";

const LIMIT_DEFAULT: usize = 10_000;
/// Statements of one answer that comes in one piece.
const ANSWER_MAX: usize = 100_000;
const BATCH_DEFAULT: usize = 20;
/// Statements in one message at most.
const BATCH_MAX: usize = 5_000;
/// Statements being removed at once.
const REMOVES_MAX: usize = 64;
/// Bytes of a digest in the key of a holding.
const DIGEST_BYTES: usize = 16;

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
    let detail = serde_json::to_vec(&statements)
        .map_err(|e| damaged("the statements of a message", &e.to_string()))?;
    // A message that comes twice is noted once.
    let id = hex(&[message_id.as_bytes(), &detail]);
    let mut holdings = Batch::new();
    if !origin.root.is_empty() {
        let scope = Scope::new(origin.workspace, origin.collection);
        for triple in statements {
            holdings.put(HELD, holding(scope, triple, &[origin.root, &id])?, Vec::new());
        }
    }
    Ok((Entry { id, detail }, holdings))
}

/// The key that says that a message holds a statement; without names, what all keys for the statement begin with. What is
/// said of one subject stands together, since it mostly comes with one message.
fn holding(scope: Scope<'_>, triple: &Triple, names: &[&str]) -> sluice_store::Result<Vec<u8>> {
    let json = |error: serde_json::Error| damaged("a statement", &error.to_string());
    let subject = hex(&[&serde_json::to_vec(&triple.s).map_err(json)?]);
    let statement = hex(&[&serde_json::to_vec(triple).map_err(json)?]);
    let mut key = [scope.workspace, scope.collection, &subject, &statement].join("\0").into_bytes();
    for name in names {
        key.push(0);
        key.extend_from_slice(name.as_bytes());
    }
    Ok(key)
}

fn hex(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()[..DIGEST_BYTES].iter().map(|byte| format!("{byte:02x}")).collect()
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
                let brought: Vec<Triple> = serde_json::from_slice(&note.detail)
                    .map_err(|e| damaged("the statements of a message", &e.to_string()))?;
                for triple in brought {
                    let held = holding(scope, &triple, &[&note.root, &note.id])?;
                    batch.delete(HELD, &held);
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
                        let mut all = holding(scope, &triple, &[])?;
                        all.push(0);
                        let holders = vec![Read::prefix(HELD, &all, holders_max)];
                        let holders = self.0.tables.read(holders).await?.pop().map(Found::into_rows);
                        let mut holders = holders.unwrap_or_default().rows.into_iter();
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
        loop {
            let size = if request.streaming { batch } else { BATCH_MAX }.min(left);
            let page = self
                .stores
                .triples
                .query(scope, &pattern, from, size)
                .await
                .map_err(|e| failed(e.to_string()))?;
            left -= page.triples.len().min(left);
            found.extend(page.triples);
            from = page.next.filter(|_| left > 0);
            if from.is_none() {
                return Ok(TriplesQueryResponse { error: None, triples: found, is_final: true });
            }
            if request.streaming {
                let triples = std::mem::take(&mut found);
                let part = TriplesQueryResponse { error: None, triples, is_final: false };
                answer.part(&part).await.map_err(|e| failed(e.to_string()))?;
            }
        }
    }
}

fn positive(number: i64) -> Option<usize> {
    usize::try_from(number).ok().filter(|number| *number > 0)
}
