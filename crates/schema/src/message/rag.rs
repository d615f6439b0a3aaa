//! Retrieval-augmented generation.

use super::{Error, Triple, UserContext};

message! {
    /// One step of a guided graph walk.
    pub struct TraversalStep {
        types: Vec<String>,
        relationships: Vec<String>,
        graphs: Vec<String>,
    }
}

message! {
    /// A question for the graph.
    pub struct GraphRagQuery {
        query: String,
        collection: String,
        entity_limit: i64,
        triple_limit: i64,
        max_subgraph_size: i64,
        max_path_length: i64,
        edge_score_limit: i64,
        edge_limit: i64,
        max_reranker_input: i64,
        streaming: bool,
        parent_uri: String,
        user_context: Option<UserContext>,
        grounding_seeds: Vec<String>,
        graph_seeds: Vec<String>,
        languages: Vec<String>,
        traversal_instructions: Vec<TraversalStep>,
        /// IRI of the graph to look in.
        graph: Option<String>,
    }
}

message! {
    /// A source of an answer.
    pub struct Source {
        uri: String,
        title: String,
    }
}

message! {
    /// A graph answer, or an explanation of it.
    pub struct GraphRagResponse {
        error: Option<Error>,
        response: String,
        /// The answer itself is complete; explanations and counts may follow.
        end_of_stream: bool,
        explain_id: Option<String>,
        explain_graph: Option<String>,
        explain_triples: Vec<Triple>,
        /// `chunk` for a piece of the answer, `explain` for an explanation.
        message_type: String,
        /// Nothing follows.
        end_of_session: bool,
        in_token: Option<i64>,
        out_token: Option<i64>,
        model: Option<String>,
        sources: Vec<Source>,
    }
}

message! {
    /// A question for the passages.
    pub struct DocumentRagQuery {
        query: String,
        collection: String,
        /// The most passages that the answer is made from.
        doc_limit: i64,
        /// How many to fetch before they are put in order; 0 = as many as the service sees fit.
        fetch_limit: i64,
        streaming: bool,
        /// Additive: `vector`, `keyword` or `hybrid`; empty = hybrid where the flow has a keyword index, else vector.
        #[additive] retrieval_mode: String,
        /// Additive: how much a rank in the vector index counts when hybrid; 1 if unset.
        #[additive] vector_weight: Option<f64>,
        /// Additive: how much a rank in the keyword index counts when hybrid; 1 if unset.
        #[additive] keyword_weight: Option<f64>,
        /// Additive: `mmr` prefers passages unlike those before them; `none` or empty goes by their scores alone.
        #[additive] rerank_diversity_mode: String,
        /// Additive: with `mmr`, from 0, only unlike, to 1, only by score; 0.7 if unset.
        #[additive] rerank_diversity_lambda: Option<f64>,
    }
}

message! {
    /// An answer from passages, whole or in parts, or an explanation of it.
    pub struct DocumentRagResponse {
        error: Option<Error>,
        response: Option<String>,
        /// The answer itself is complete.
        end_of_stream: bool,
        explain_id: Option<String>,
        explain_graph: Option<String>,
        explain_triples: Vec<Triple>,
        /// `chunk`, `explain` or `end`; empty on an answer in one piece.
        message_type: String,
        /// Nothing follows.
        end_of_session: bool,
        in_token: Option<i64>,
        out_token: Option<i64>,
        model: Option<String>,
        /// Additive: the passages an answer rests on, on the final message.
        #[additive] sources: Vec<PassageSource>,
    }
}

message! {
    /// A term to look up.
    pub struct LookupRequest {
        kind: String,
        term: String,
    }
}

message! {
    /// What was found about a term.
    pub struct LookupResponse {
        text: String,
        error: Option<Error>,
    }
}

message! {
    /// A passage that an answer rests on. `offset` and `length` count characters of the page or text it was cut from.
    pub struct PassageSource {
        document_id: String,
        title: String,
        page: Option<i64>,
        chunk_id: String,
        offset: i64,
        length: i64,
        score: f64,
        text: String,
    }
}
