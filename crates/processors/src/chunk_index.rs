//! The chunk index: vectors of chunks written and searched, words of chunks written and searched.

use std::sync::Arc;

use sluice_schema::exchange;
use sluice_schema::message::{
    Chunk, ChunkMatch, DocumentEmbeddings, DocumentEmbeddingsRequest, DocumentEmbeddingsResponse, Error,
    KeywordIndexRequest, KeywordIndexResponse, TextOrList,
};
use sluice_sdk::{BindError, Failure, Inputs, Ports, Processor, Progress, Responder};
use sluice_store::{Attributes, Batch, ErrorKind, KeywordEntry, Match, Scope, Stores, VectorEntry};

use crate::derived::{Derived, Entry, Origin};
use crate::embeddings::chunks_done;
use crate::passage;
use crate::text::{telling_words, words};
use crate::thesaurus::related;

/// Matches when a request asks for none in particular.
const LIMIT_DEFAULT: usize = 20;
/// Words of a question that are looked for.
const QUESTION_WORDS_MAX: usize = 64;
/// Matches of one answer at most.
const LIMIT_MAX: usize = 10_000;

/// Writes chunk vectors.
pub struct VectorWriter {
    derived: Derived,
    workspace: String,
    progress: Progress,
}

impl Processor for VectorWriter {
    const NAME: &'static str = "doc-embeddings-write";
    const CONCURRENCY: usize = 32;
    const STAGE: Option<&'static str> = Some("store");

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        Ok(Self {
            derived: ports.resource()?,
            workspace: ports.workspace().to_owned(),
            progress: ports.progress()?,
        })
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.message("input", Self::write);
    }
}

impl VectorWriter {
    async fn write(self: Arc<Self>, embeddings: DocumentEmbeddings) -> Result<(), Failure> {
        let metadata = embeddings.metadata.unwrap_or_default();
        let usable = embeddings
            .chunks
            .into_iter()
            .filter(|chunk| !chunk.vector.is_empty() && !chunk.chunk_id.is_empty());
        let entries: Vec<VectorEntry> = usable
            .map(|chunk| VectorEntry {
                id: chunk.chunk_id,
                vector: single_precision(&chunk.vector),
                attributes: with_document(chunk.attributes, &metadata.root),
            })
            .collect();
        let ids: Vec<String> = entries.iter().map(|entry| entry.id.clone()).collect();
        if ids.is_empty() {
            return Err(Failure::never("the message holds no chunk with an id and a vector"));
        }
        let scope = Scope::new(&self.workspace, &metadata.collection);
        let written = self.derived.write(
            "vectors",
            Origin { workspace: &self.workspace, collection: &metadata.collection, root: &metadata.root },
            ids.iter().cloned().map(Entry::bare).collect(),
            Batch::new(),
            || self.derived.stores.vectors.upsert(scope, entries),
        );
        if !written.await.map_err(|e| store_failure(&e))? {
            return Ok(());
        }
        self.progress.report(chunks_done("store", &metadata.root, &metadata.collection, ids)).await
    }
}

/// Searches chunk vectors.
pub struct VectorQuery {
    stores: Stores,
    workspace: String,
}

impl Processor for VectorQuery {
    const NAME: &'static str = "doc-embeddings-query";

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        Ok(Self { stores: ports.resource()?, workspace: ports.workspace().to_owned() })
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.request::<exchange::DocumentEmbeddings, _, _>("request", Self::answer);
    }
}

impl VectorQuery {
    async fn answer(
        self: Arc<Self>,
        request: DocumentEmbeddingsRequest,
        _answer: Responder<exchange::DocumentEmbeddings>,
    ) -> Result<DocumentEmbeddingsResponse, Error> {
        if request.vector.is_empty() {
            return Ok(DocumentEmbeddingsResponse::default());
        }
        let scope = Scope::new(&self.workspace, &request.collection);
        let vector = single_precision(&request.vector);
        let search = self.stores.vectors.search(scope, &vector, limit(request.limit), &request.attributes);
        match search.await {
            Ok(found) => Ok(DocumentEmbeddingsResponse { error: None, chunks: matches(found) }),
            Err(error) => Err(Error::new("document-embeddings-query-error", error.to_string())),
        }
    }
}

/// Writes and searches the words of chunks.
pub struct KeywordIndex {
    derived: Derived,
    workspace: String,
    progress: Progress,
}

impl Processor for KeywordIndex {
    const NAME: &'static str = "kw-index";
    const CONCURRENCY: usize = 32;
    const STAGE: Option<&'static str> = Some("index");

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        Ok(Self {
            derived: ports.resource()?,
            workspace: ports.workspace().to_owned(),
            progress: ports.progress()?,
        })
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.message("input", Self::index);
        on.request::<exchange::KeywordIndex, _, _>("request", Self::answer);
    }
}

impl KeywordIndex {
    async fn index(self: Arc<Self>, chunk: Chunk) -> Result<(), Failure> {
        let metadata = chunk.metadata.unwrap_or_default();
        let id = crate::decoder::first_set([&chunk.document_id, &metadata.id])
            .ok_or_else(|| Failure::never("the chunk has neither a document_id nor a metadata id"))?;
        let entry = KeywordEntry {
            id: id.to_owned(),
            text: index_terms(&chunk.chunk),
            attributes: with_document(chunk.attributes, &metadata.root),
        };
        let scope = Scope::new(&self.workspace, &metadata.collection);
        let written = self.derived.write(
            "keywords",
            Origin { workspace: &self.workspace, collection: &metadata.collection, root: &metadata.root },
            vec![Entry::bare(id.to_owned())],
            Batch::new(),
            || self.derived.stores.keywords.upsert(scope, vec![entry]),
        );
        if !written.await.map_err(|e| store_failure(&e))? {
            return Ok(());
        }
        self.progress
            .report(chunks_done("index", &metadata.root, &metadata.collection, vec![id.to_owned()]))
            .await
    }

    async fn answer(
        self: Arc<Self>,
        request: KeywordIndexRequest,
        _answer: Responder<exchange::KeywordIndex>,
    ) -> Result<KeywordIndexResponse, Error> {
        let failed = |reason: String| Error::new("keyword-index-query-error", reason);
        crate::document_rag::check_query(&request.query).map_err(failed)?;
        let scope = Scope::new(&self.workspace, &request.collection);
        let terms = query_terms(&request.query);
        match self.derived.stores.keywords.search(scope, &terms, limit(request.limit)).await {
            Ok(found) => Ok(KeywordIndexResponse { error: None, chunks: matches(found) }),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

/// What of a chunk goes into the keyword index: its words, stemmed.
#[must_use]
pub fn index_terms(text: &str) -> String {
    words(text).into_iter().map(|word| word.stem).collect::<Vec<_>>().join(" ")
}

/// What the keyword index is asked for: the words that tell what a question is about, stemmed as in the index, and other
/// words for them.
#[must_use]
pub fn query_terms(question: &str) -> String {
    let mut terms = telling_words(question);
    terms.truncate(QUESTION_WORDS_MAX);
    for place in 0..terms.len() {
        for other in related(&terms[place]) {
            if !terms.contains(other) {
                terms.push(other.clone());
            }
        }
    }
    terms.join(" ")
}

fn with_document(mut attributes: Attributes, root: &str) -> Attributes {
    if !root.is_empty() {
        attributes.insert(passage::DOCUMENT.to_owned(), TextOrList::Text(root.to_owned()));
    }
    attributes
}

fn matches(found: Vec<Match>) -> Vec<ChunkMatch> {
    found
        .into_iter()
        .map(|found| ChunkMatch {
            chunk_id: found.id,
            score: f64::from(found.score),
            attributes: found.attributes,
        })
        .collect()
}

fn limit(wanted: i64) -> usize {
    match usize::try_from(wanted) {
        Ok(0) | Err(_) => LIMIT_DEFAULT,
        Ok(limit) => limit.min(LIMIT_MAX),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "stores keep single precision")]
pub(crate) fn single_precision(vector: &[f64]) -> Vec<f32> {
    vector.iter().map(|x| *x as f32).collect()
}

pub(crate) fn store_failure(error: &sluice_store::Error) -> Failure {
    match error.kind() {
        ErrorKind::Refused => Failure::never(error),
        ErrorKind::Absent | ErrorKind::Unavailable | ErrorKind::OutcomeUnknown => Failure::again(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_says_nothing_is_the_default_and_a_huge_one_is_bounded() {
        assert_eq!([limit(0), limit(-1), limit(7), limit(i64::MAX)], [20, 20, 7, LIMIT_MAX]);
    }

    #[test]
    fn questions_and_chunks_share_their_terms() {
        assert!(query_terms("How are the zebras oiled?").starts_with("zebra oil"));
        assert!(query_terms("Which wrench?").contains("spanner"));
        assert!(index_terms("Oil the chain.").contains("oil the chain"));
    }
}
