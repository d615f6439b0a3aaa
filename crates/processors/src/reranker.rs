//! Puts documents in order for questions, by the words they share.

use std::sync::Arc;

use sluice_schema::exchange;
use sluice_schema::message::{Error, RerankerRequest, RerankerResponse, RerankerResult};
use sluice_schema::operation::{QUERY_BYTES_MAX, RERANKER_DOCUMENTS_MAX, RERANKER_QUERIES_MAX};
use sluice_sdk::{BindError, Inputs, Ports, Processor, Responder};

use crate::lexical::Scorer;

/// The reranker of one flow. It needs no model; the flow's `model` parameter names models that other rerankers have.
pub struct Reranker;

impl Processor for Reranker {
    const NAME: &'static str = "reranker";

    fn bind(_ports: &mut Ports) -> Result<Self, BindError> {
        Ok(Self)
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.request::<exchange::Reranker, _, _>("request", Self::answer);
    }
}

impl Reranker {
    async fn answer(
        self: Arc<Self>,
        request: RerankerRequest,
        _answer: Responder<exchange::Reranker>,
    ) -> Result<RerankerResponse, Error> {
        let (queries, documents) = (request.queries.len(), request.documents.len());
        let bytes = request.queries.iter().map(|one| one.query_text.len()).sum::<usize>();
        if queries > RERANKER_QUERIES_MAX || documents > RERANKER_DOCUMENTS_MAX || bytes > QUERY_BYTES_MAX {
            let reason = format!(
                "{queries} queries of {bytes} bytes for {documents} documents are too many; ask for at most \
                 {RERANKER_QUERIES_MAX} of {QUERY_BYTES_MAX} bytes and {RERANKER_DOCUMENTS_MAX} documents"
            );
            return Err(Error::new("reranker-error", reason));
        }
        let ranked = tokio::task::spawn_blocking(move || rank(&request));
        let results = ranked.await.map_err(|e| Error::new("reranker-error", e.to_string()))?;
        Ok(RerankerResponse { error: None, results })
    }
}

/// Scores every document against every query, keeps each document's best query, and puts the best documents first.
#[must_use]
pub fn rank(request: &RerankerRequest) -> Vec<RerankerResult> {
    let texts = || request.documents.iter().map(|document| document.document_text.as_str());
    let mut best: Vec<Option<RerankerResult>> = vec![None; request.documents.len()];
    for query in &request.queries {
        let scores = Scorer::new(&query.query_text, texts()).scores();
        for ((document, best), score) in request.documents.iter().zip(&mut best).zip(scores) {
            if best.as_ref().is_none_or(|known| score > known.score) {
                *best = Some(RerankerResult {
                    document_id: document.document_id.clone(),
                    query_id: query.query_id.clone(),
                    score,
                });
            }
        }
    }
    let mut results: Vec<RerankerResult> = best.into_iter().flatten().collect();
    results.sort_by(|a, b| b.score.total_cmp(&a.score));
    results.truncate(usize::try_from(request.limit).unwrap_or_default());
    results
}

#[cfg(test)]
mod tests {
    use sluice_schema::message::{RerankerDocument, RerankerQuery};

    use super::*;

    fn request(queries: &[&str], documents: &[&str], limit: i64) -> RerankerRequest {
        let queries = (0..)
            .zip(queries)
            .map(|(id, text)| RerankerQuery { query_id: format!("q{id}"), query_text: (*text).to_owned() });
        let documents = (0..).zip(documents).map(|(id, text)| RerankerDocument {
            document_id: format!("d{id}"),
            document_text: (*text).to_owned(),
        });
        RerankerRequest { queries: queries.collect(), documents: documents.collect(), limit }
    }

    #[test]
    fn each_document_is_listed_once_with_its_best_query() {
        let results = rank(&request(
            &["what feeds tank 2", "colour of the pump"],
            &["painted blue pump", "feeds Tank 2", "nothing"],
            2,
        ));
        let found: Vec<(&str, &str)> =
            results.iter().map(|r| (r.document_id.as_str(), r.query_id.as_str())).collect();
        assert_eq!(found, [("d1", "q0"), ("d0", "q1")]);
        assert!(results[0].score > results[1].score);
    }

    #[test]
    fn no_queries_no_documents_or_no_room_give_no_results() {
        assert!(rank(&request(&[], &["a"], 5)).is_empty());
        assert!(rank(&request(&["a"], &[], 5)).is_empty());
        assert!(rank(&request(&["a"], &["a"], -1)).is_empty());
    }
}
