//! The triple store of a workspace: writing statements and answering patterns.

use std::sync::Arc;

use sluice_schema::exchange;
use sluice_schema::message::{Error, Triple, Triples, TriplesQueryRequest, TriplesQueryResponse};
use sluice_sdk::{BindError, Failure, Inputs, Ports, Processor, Responder};
use sluice_store::{Pattern, Scope, Stores};

use crate::chunk_index::store_failure;

const LIMIT_DEFAULT: usize = 10_000;
const BATCH_DEFAULT: usize = 20;
/// Statements in one message at most.
const BATCH_MAX: usize = 5_000;

/// Writes statements.
pub struct TriplesWriter {
    stores: Stores,
    workspace: String,
}

impl Processor for TriplesWriter {
    const NAME: &'static str = "triples-write";
    const CONCURRENCY: usize = 32;

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        Ok(Self { stores: ports.resource()?, workspace: ports.workspace().to_owned() })
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
        let scope = Scope::new(&self.workspace, &metadata.collection);
        self.stores.triples.add(scope, whole).await.map_err(|e| store_failure(&e))
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
        let mut left = positive(request.limit).unwrap_or(LIMIT_DEFAULT);
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
