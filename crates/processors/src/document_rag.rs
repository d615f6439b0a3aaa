//! Answers questions from passages: concepts, two indexes, reranking, then a model that writes the answer, or the best
//! passages quoted where no model does. Every answer names its sources.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use sluice_bus::{Client, Patience};
use sluice_schema::exchange::{self, Exchange};
use sluice_schema::message::{
    ChunkMatch, DocumentEmbeddingsRequest, DocumentRagQuery, DocumentRagResponse, EmbeddingsRequest, Error,
    KeywordIndexRequest, Metadata, PassageSource, PromptRequest, RerankerDocument, RerankerQuery,
    RerankerRequest, Triple, Triples,
};
use sluice_schema::operation::QUERY_BYTES_MAX;
use sluice_sdk::{BindError, Inputs, Out, Ports, Processor, Responder};

use crate::librarian::{Librarian, Saved};
use crate::passage::Place;
use crate::provenance::{self, RETRIEVAL_GRAPH};
use crate::retrieval::{self, Weights};
use crate::trace::{Node, Trace, Usage};

/// Passages given to the model when the request does not say.
const DOC_LIMIT_DEFAULT: usize = 20;
const DOC_LIMIT_MAX: usize = 1_000;
/// Candidates per passage given to the model when the request does not say.
const FETCH_FACTOR: usize = 3;
/// Chunks read from the librarian at once.
const READS_MAX: usize = 16;
const CONCEPTS_MAX: usize = 32;
/// How much the fit counts beside the difference when the request does not say.
const LAMBDA_DEFAULT: f64 = 0.7;

const PROMPT_TIMEOUT: Duration = Duration::from_secs(600);
const STREAM_TIMEOUT: Duration = Duration::from_secs(3_600);
const EMBEDDINGS_TIMEOUT: Duration = Duration::from_secs(300);
const RERANKER_TIMEOUT: Duration = Duration::from_secs(300);
const INDEX_TIMEOUT: Duration = Duration::from_secs(30);

/// Named as the model of an answer that no model wrote.
const EXTRACTIVE: &str = "extractive";
const COLLECTION_DEFAULT: &str = "default";
const TITLE_CHARS: usize = 50;

/// The document-rag service of one flow.
pub struct DocumentRag {
    embeddings: Client<exchange::Embeddings>,
    vectors: Client<exchange::DocumentEmbeddings>,
    keywords: Option<Client<exchange::KeywordIndex>>,
    reranker: Client<exchange::Reranker>,
    prompt: Client<exchange::Prompt>,
    librarian: Librarian,
    traces: Out<Triples>,
}

impl Processor for DocumentRag {
    const NAME: &'static str = "document-rag";

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        Ok(Self {
            embeddings: ports.client("embeddings")?,
            vectors: ports.client("document-embeddings")?,
            keywords: ports.optional_client("keyword-index")?,
            reranker: ports.client("reranker")?,
            prompt: ports.client("prompt")?,
            librarian: Librarian::bind(ports)?,
            traces: ports.output("explainability")?,
        })
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.request::<exchange::DocumentRag, _, _>("request", Self::answer);
    }
}

impl DocumentRag {
    async fn answer(
        self: Arc<Self>,
        mut query: DocumentRagQuery,
        answer: Responder<exchange::DocumentRag>,
    ) -> Result<DocumentRagResponse, Error> {
        if query.query.trim().is_empty() {
            return Err(failed("the query is empty; ask a question"));
        }
        check_query(&query.query).map_err(failed)?;
        if query.collection.is_empty() {
            query.collection = COLLECTION_DEFAULT.to_owned();
        }
        let search = Search::of(&query, self.keywords.is_some()).map_err(failed)?;
        let trace = Trace::new(&uuid::Uuid::new_v4().to_string());
        let session = Session { rag: &self, query: &query, search, answer: &answer, trace };
        let mut told = Vec::new();
        let answered = session.run(&mut told).await;
        session.keep(told).await;
        answered.map_err(failed)
    }
}

/// Whether a question is short enough to be searched with.
pub(crate) fn check_query(query: &str) -> Result<(), String> {
    let bytes = query.len();
    if bytes > QUERY_BYTES_MAX {
        return Err(format!(
            "the query has {bytes} bytes, and at most {QUERY_BYTES_MAX} are searched with; make it shorter"
        ));
    }
    Ok(())
}

fn failed(reason: impl Into<String>) -> Error {
    Error::new("document-rag-error", reason)
}

/// How a question is searched for.
struct Search {
    by_vector: bool,
    by_keyword: bool,
    weights: Weights,
    /// How much the fit counts beside the difference, for who wants passages that differ.
    diversity: Option<f64>,
}

impl Search {
    fn of(query: &DocumentRagQuery, has_keywords: bool) -> Result<Self, String> {
        let (by_vector, by_keyword) = match query.retrieval_mode.as_str() {
            "" => (true, has_keywords),
            "vector" => (true, false),
            mode @ ("keyword" | "hybrid") if !has_keywords => {
                return Err(format!("this flow has no keyword index, which '{mode}' needs; ask by 'vector'"));
            }
            "keyword" => (false, true),
            "hybrid" => (true, true),
            other => {
                return Err(format!(
                    "'{other}' is no retrieval mode; choose 'vector', 'keyword' or 'hybrid'"
                ));
            }
        };
        let lambda = number(query.rerank_diversity_lambda, "rerank-diversity-lambda", LAMBDA_DEFAULT, 1.0)?;
        let diversity = match query.rerank_diversity_mode.as_str() {
            "" | "none" => None,
            "mmr" => Some(lambda),
            other => return Err(format!("'{other}' is no diversity mode; choose 'none' or 'mmr'")),
        };
        let default = Weights::default();
        let weights = Weights {
            vector: number(query.vector_weight, "vector-weight", default.vector, f64::MAX)?,
            keyword: number(query.keyword_weight, "keyword-weight", default.keyword, f64::MAX)?,
        };
        Ok(Self { by_vector, by_keyword, weights, diversity })
    }
}

/// What was asked for, or `default`; from 0 to `max`.
fn number(asked: Option<f64>, name: &str, default: f64, max: f64) -> Result<f64, String> {
    match asked {
        None => Ok(default),
        Some(number) if (0.0..=max).contains(&number) => Ok(number),
        Some(number) if max == f64::MAX => Err(format!("'{name}' is {number}; it must be 0 or more")),
        Some(number) => Err(format!("'{name}' is {number}; it must be from 0 to {max}")),
    }
}

/// One question under way.
struct Session<'a> {
    rag: &'a DocumentRag,
    query: &'a DocumentRagQuery,
    search: Search,
    answer: &'a Responder<exchange::DocumentRag>,
    trace: Trace,
}

/// What the model, or the lack of one, made of the passages.
struct Written {
    text: String,
    usage: Usage,
    /// The places of the passages it rests on, in order.
    used: Vec<usize>,
}

impl Session<'_> {
    /// Answers; what it tells on the way is added to `told`, also if it fails in the end.
    async fn run(&self, told: &mut Vec<Triple>) -> Result<DocumentRagResponse, String> {
        self.explain(self.trace.question(&self.query.query, &provenance::now()), told).await?;
        let (concepts, mut usage) = self.concepts().await;
        self.explain(self.trace.grounding(&concepts, &usage), told).await?;

        let found = self.retrieve(&concepts).await?;
        let passages = self.read(found).await;
        let explored = passages.iter().map(|passage| passage.chunk_id.as_str());
        self.explain(self.trace.exploration(explored), told).await?;
        let focused = !passages.is_empty();
        let mut passages = if focused { self.select(passages).await } else { passages };
        if focused {
            let scored = passages.iter().map(|passage| (passage.chunk_id.as_str(), passage.score));
            self.explain(self.trace.focus(scored), told).await?;
        }

        let written = self.write(&passages).await?;
        usage.add(&written.usage);
        let mut place = 0..;
        passages.retain(|_| place.next().is_some_and(|place| written.used.contains(&place)));
        let saved = self.save(&written.text).await;
        self.explain(self.trace.synthesis(focused, saved.as_deref(), &written.usage), told).await?;
        let streamed = self.query.streaming;
        Ok(DocumentRagResponse {
            response: (!streamed).then_some(written.text),
            end_of_stream: !streamed,
            end_of_session: true,
            message_type: if streamed { "end" } else { "" }.to_owned(),
            in_token: usage.in_token,
            out_token: usage.out_token,
            model: usage.model,
            sources: passages,
            ..Default::default()
        })
    }

    /// Tells a step to the asker, and keeps it for the graph.
    async fn explain(&self, node: Node, told: &mut Vec<Triple>) -> Result<(), String> {
        let part = DocumentRagResponse {
            response: None,
            explain_id: Some(node.id),
            explain_graph: Some(RETRIEVAL_GRAPH.to_owned()),
            explain_triples: node.triples.clone(),
            message_type: "explain".to_owned(),
            ..Default::default()
        };
        told.extend(node.triples);
        self.answer.part(&part).await.map_err(|e| e.to_string())
    }

    /// Sends the trace to the graph, in one message. A graph that cannot take it costs the trace, not the answer.
    async fn keep(&self, triples: Vec<Triple>) {
        let id = self.trace.id().to_owned();
        let metadata = Metadata { id, collection: self.query.collection.clone(), ..Default::default() };
        if let Err(error) = self.rag.traces.send(&Triples { metadata: Some(metadata), triples }).await {
            tracing::warn!(%error, "the trace of a question could not be written to the graph");
        }
    }

    /// What to search for. Without a model that says so: the question itself.
    async fn concepts(&self) -> (Vec<String>, Usage) {
        if !self.search.by_vector {
            return (vec![self.query.query.clone()], Usage::default());
        }
        let request = prompt("extract-concepts", &[("query", serde_json::json!(self.query.query))], false);
        let (text, usage) = match self.rag.prompt.call(&request, PROMPT_TIMEOUT).await {
            Ok(answer) if answer.error.is_none() => (
                answer.text,
                Usage { in_token: answer.in_token, out_token: answer.out_token, model: answer.model },
            ),
            Ok(answer) => {
                let reason = answer.error.map(|error| error.message).unwrap_or_default();
                tracing::debug!(reason, "no concepts from a model; the question is searched for as it is");
                (String::new(), Usage::default())
            }
            Err(error) => {
                tracing::warn!(%error, "no concepts from a model; the question is searched for as it is");
                (String::new(), Usage::default())
            }
        };
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned);
        let concepts: Vec<String> = lines.take(CONCEPTS_MAX).collect();
        if concepts.is_empty() { (vec![self.query.query.clone()], usage) } else { (concepts, usage) }
    }

    fn doc_limit(&self) -> usize {
        positive(self.query.doc_limit).unwrap_or(DOC_LIMIT_DEFAULT).min(DOC_LIMIT_MAX)
    }

    fn fetch_limit(&self) -> usize {
        let doc_limit = self.doc_limit();
        positive(self.query.fetch_limit)
            .unwrap_or(FETCH_FACTOR * doc_limit)
            .clamp(doc_limit, FETCH_FACTOR * DOC_LIMIT_MAX)
    }

    /// Chunks that may answer, best first, from both indexes.
    async fn retrieve(&self, concepts: &[String]) -> Result<Vec<ChunkMatch>, String> {
        let limit = self.fetch_limit();
        if !self.search.by_vector {
            return self.by_keyword(limit).await;
        }
        let (near, by_keyword) = tokio::join!(self.near(concepts, limit), async {
            if !self.search.by_keyword {
                return Vec::new();
            }
            self.by_keyword(limit).await.unwrap_or_else(|reason| {
                tracing::warn!(reason, "the keyword index did not answer; searching by vectors only");
                Vec::new()
            })
        });
        Ok(retrieval::candidates(near?, by_keyword, self.search.weights, limit))
    }

    async fn near(&self, concepts: &[String], limit: usize) -> Result<Vec<Vec<ChunkMatch>>, String> {
        let request = EmbeddingsRequest { texts: concepts.to_vec() };
        let vectors = ask(&self.rag.embeddings, &request, EMBEDDINGS_TIMEOUT).await?.vectors;
        let share = (limit / vectors.len().max(1)).max(1);
        let searches = vectors.into_iter().map(|vector| {
            let request = DocumentEmbeddingsRequest {
                vector,
                limit: i64::try_from(share).unwrap_or(i64::MAX),
                collection: self.query.collection.clone(),
                ..Default::default()
            };
            async move { ask(&self.rag.vectors, &request, INDEX_TIMEOUT).await.map(|answer| answer.chunks) }
        });
        futures_util::future::try_join_all(searches).await
    }

    async fn by_keyword(&self, limit: usize) -> Result<Vec<ChunkMatch>, String> {
        let Some(keywords) = &self.rag.keywords else { return Ok(Vec::new()) };
        let request = KeywordIndexRequest {
            query: self.query.query.clone(),
            limit: i64::try_from(limit).unwrap_or(i64::MAX),
            collection: self.query.collection.clone(),
        };
        ask(keywords, &request, INDEX_TIMEOUT).await.map(|answer| answer.chunks)
    }

    /// The texts of chunks, with where they stand. A chunk that cannot be read is left out.
    async fn read(&self, found: Vec<ChunkMatch>) -> Vec<PassageSource> {
        let reads = stream::iter(found).map(|found| async move {
            match self.passage(&found).await {
                Ok(passage) => Some(passage),
                Err(error) => {
                    tracing::warn!(chunk = found.chunk_id, %error, "a chunk that was found cannot be read");
                    None
                }
            }
        });
        reads.buffered(READS_MAX).filter_map(std::future::ready).collect().await
    }

    async fn passage(&self, found: &ChunkMatch) -> Result<PassageSource, sluice_sdk::Failure> {
        let text = self.rag.librarian.text(&found.chunk_id).await?;
        let mut place = Place::from_attributes(&found.attributes);
        if place.title.is_empty() {
            // A chunk that another maker cut carries no labels.
            place = self.place_of(&found.chunk_id, place).await?;
        }
        let length = place.length.unwrap_or_else(|| text.chars().count());
        Ok(PassageSource {
            document_id: place.document_id,
            title: place.title,
            page: place.page,
            chunk_id: found.chunk_id.clone(),
            offset: place.offset.and_then(|offset| i64::try_from(offset).ok()).unwrap_or_default(),
            length: i64::try_from(length).unwrap_or(i64::MAX),
            score: found.score,
            text,
        })
    }

    /// Walks from a chunk to its document with the librarian.
    async fn place_of(&self, chunk_id: &str, mut place: Place) -> Result<Place, sluice_sdk::Failure> {
        /// Page, section and the like between a chunk and its document.
        const PARENTS_MAX: usize = 4;
        let mut id = chunk_id.to_owned();
        for _ in 0..PARENTS_MAX {
            let Some(document) = self.rag.librarian.metadata(&id).await? else { break };
            place.page = place.page.or_else(|| crate::chunker::page_number(&document));
            place.title = if document.title.is_empty() { id.clone() } else { document.title };
            place.document_id.clone_from(&id);
            if document.parent_id.is_empty() {
                break;
            }
            id = document.parent_id;
        }
        Ok(place)
    }

    /// The passages that fit best, in the reranker's order; in their own if it does not answer.
    async fn select(&self, passages: Vec<PassageSource>) -> Vec<PassageSource> {
        let documents = passages.iter().enumerate();
        let request = RerankerRequest {
            queries: vec![RerankerQuery { query_id: "0".to_owned(), query_text: self.query.query.clone() }],
            documents: documents
                .map(|(id, passage)| RerankerDocument {
                    document_id: id.to_string(),
                    document_text: passage.text.clone(),
                })
                .collect(),
            // Who chooses by difference too has to see all.
            limit: match self.search.diversity {
                None => i64::try_from(self.doc_limit()).unwrap_or(i64::MAX),
                Some(_) => i64::try_from(passages.len()).unwrap_or(i64::MAX),
            },
        };
        let results = match ask(&self.rag.reranker, &request, RERANKER_TIMEOUT).await {
            Ok(answer) => answer.results,
            Err(reason) => {
                tracing::warn!(
                    reason,
                    "the reranker did not answer; passages stay in the order they were found"
                );
                return passages.into_iter().take(self.doc_limit()).collect();
            }
        };
        let mut passages: Vec<Option<PassageSource>> = passages.into_iter().map(Some).collect();
        let chosen = results.into_iter().filter_map(|result| {
            let passage = passages.get_mut(result.document_id.parse::<usize>().ok()?)?.take()?;
            Some(PassageSource { score: result.score, ..passage })
        });
        match self.search.diversity {
            None => chosen.collect(),
            Some(lambda) => retrieval::diverse(chosen.collect(), lambda, self.doc_limit()),
        }
    }

    async fn write(&self, passages: &[PassageSource]) -> Result<Written, String> {
        let why = match self.ask_model(passages).await {
            Ok((text, usage)) => return Ok(Written { text, usage, used: (0..passages.len()).collect() }),
            Err(Unwritten::Broken(reason)) => return Err(reason),
            Err(Unwritten::NoModel(why)) => why,
        };
        tracing::debug!(why, "answering extractively");
        let (text, used) = retrieval::quotations(&self.query.query, passages, &why);
        if self.query.streaming {
            self.fragment(text.clone(), true).await?;
        }
        let usage = Usage { model: Some(EXTRACTIVE.to_owned()), ..Default::default() };
        Ok(Written { text, usage, used })
    }

    /// The model's answer; when streaming, its fragments have been passed on.
    async fn ask_model(&self, passages: &[PassageSource]) -> Result<(String, Usage), Unwritten> {
        let texts: Vec<&str> = passages.iter().map(|passage| passage.text.as_str()).collect();
        let terms = [("query", serde_json::json!(self.query.query)), ("documents", serde_json::json!(texts))];
        let streaming = self.query.streaming;
        let request = prompt("document-prompt", &terms, streaming);
        let total = if streaming { STREAM_TIMEOUT } else { PROMPT_TIMEOUT };
        let patience = Patience { idle: PROMPT_TIMEOUT, total };
        let no_model = |e: sluice_bus::Error| Unwritten::NoModel(e.to_string());
        let mut call = self.rag.prompt.stream(&request, patience).await.map_err(no_model)?;
        let (mut text, mut usage) = (String::new(), Usage::default());
        loop {
            let part = match call.next().await {
                Ok(Some(part)) => part,
                Ok(None) => return Ok((text, usage)),
                Err(error) if text.is_empty() => return Err(no_model(error)),
                Err(error) => return Err(Unwritten::Broken(error.to_string())),
            };
            match part.error {
                Some(error) if text.is_empty() => return Err(Unwritten::NoModel(error.message)),
                Some(error) => return Err(Unwritten::Broken(error.message)),
                None => {}
            }
            usage.add(&Usage { in_token: part.in_token, out_token: part.out_token, model: part.model });
            text.push_str(&part.text);
            if streaming {
                self.fragment(part.text, part.end_of_stream).await.map_err(Unwritten::Broken)?;
            }
        }
    }

    async fn fragment(&self, text: String, last: bool) -> Result<(), String> {
        let part = DocumentRagResponse {
            response: Some(text),
            end_of_stream: last,
            message_type: "chunk".to_owned(),
            ..Default::default()
        };
        self.answer.part(&part).await.map_err(|e| e.to_string())
    }

    /// Saves the answer with the librarian; the id, or `None` when that failed.
    async fn save(&self, text: &str) -> Option<String> {
        let id = self.trace.answer_id();
        let start: String = self.query.query.chars().take(TITLE_CHARS).collect();
        let title = format!("DocumentRAG Answer: {start}...");
        let saved = Saved { id: &id, parent_id: "", document_type: "answer", title: &title, text };
        match self.rag.librarian.save(saved).await {
            Ok(()) => Some(id),
            Err(error) => {
                tracing::warn!(%error, "an answer could not be saved");
                None
            }
        }
    }
}

/// Why there is no answer of a model.
enum Unwritten {
    /// Nothing was written: quote instead.
    NoModel(String),
    /// It broke off.
    Broken(String),
}

/// Asks a service once; what it reports as failed is a failure here too.
async fn ask<X: Exchange>(
    client: &Client<X>,
    request: &X::Request,
    within: Duration,
) -> Result<X::Response, String> {
    let answer = client.call(request, within).await.map_err(|e| format!("{}: {e}", X::NAME))?;
    match X::error(&answer) {
        Some(error) => Err(format!("{}: {}", X::NAME, error.message)),
        None => Ok(answer),
    }
}

fn prompt(id: &str, terms: &[(&str, serde_json::Value)], streaming: bool) -> PromptRequest {
    let terms = terms.iter().map(|(name, value)| ((*name).to_owned(), value.to_string())).collect();
    PromptRequest { id: id.to_owned(), terms, streaming }
}

fn positive(number: i64) -> Option<usize> {
    usize::try_from(number).ok().filter(|number| *number > 0)
}
