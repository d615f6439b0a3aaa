//! Triples, entity contexts, triple and SPARQL queries.

use std::collections::BTreeMap;

use super::{Error, Metadata, Term, TextOrList, Triple, UserContext};

message! {
    /// Text that tells what an entity is.
    pub struct EntityContext {
        entity: Option<Term>,
        /// The text to embed.
        context: String,
        chunk_id: String,
        /// IRIs of its classes.
        rdf_type: Vec<String>,
        attributes: BTreeMap<String, TextOrList>,
    }
}

message! {
    /// Entities found in one chunk, for the graph embedder.
    pub struct EntityContexts {
        metadata: Option<Metadata>,
        entities: Vec<EntityContext>,
    }
}

message! {
    /// Statements on their way to the triple store.
    pub struct Triples {
        metadata: Option<Metadata>,
        triples: Vec<Triple>,
    }
}

message! {
    /// A pattern query; an unset term matches anything.
    pub struct TriplesQueryRequest {
        collection: String,
        s: Option<Term>,
        p: Option<Term>,
        o: Option<Term>,
        /// `None` = any graph, empty = the default graph, else the IRI of one.
        g: Option<String>,
        /// The most statements over all batches.
        limit: i64,
        streaming: bool,
        /// Statements of one message, where `streaming`.
        batch_size: i64 = 20,
        user_context: Option<UserContext>,
    }
}

message! {
    /// Matching statements, in one or several batches.
    pub struct TriplesQueryResponse {
        error: Option<Error>,
        triples: Vec<Triple>,
        is_final: bool = true,
    }
}

message! {
    /// One row of a SPARQL result.
    pub struct SparqlBinding {
        /// In the order of `variables`; `None` where unbound.
        values: Vec<Option<Term>>,
    }
}

message! {
    /// A SPARQL query.
    pub struct SparqlQueryRequest {
        collection: String,
        query: String,
        limit: i64 = 10000,
        streaming: bool,
        batch_size: i64 = 20,
        user_context: Option<UserContext>,
    }
}

message! {
    /// A SPARQL result.
    pub struct SparqlQueryResponse {
        error: Option<Error>,
        /// `select`, `ask`, `construct` or `describe`; tells which of the other members counts.
        query_type: String,
        variables: Vec<String>,
        bindings: Vec<SparqlBinding>,
        ask_result: bool,
        triples: Vec<Triple>,
        is_final: bool = true,
    }
}
