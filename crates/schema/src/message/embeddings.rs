//! Vectors, similarity and keyword queries, reranking.

use std::collections::BTreeMap;

use super::{Error, Metadata, Term, TextOrList};

message! {
    /// An entity with its vector.
    pub struct EntityEmbeddings {
        entity: Option<Term>,
        vector: Vec<f64>,
        /// The chunk that the text came from.
        chunk_id: String,
        /// IRIs of its classes.
        rdf_type: Vec<String>,
        attributes: BTreeMap<String, TextOrList>,
    }
}

message! {
    /// Entity vectors on their way to the store.
    pub struct GraphEmbeddings {
        metadata: Option<Metadata>,
        entities: Vec<EntityEmbeddings>,
    }
}

message! {
    /// A chunk id with its vector.
    pub struct ChunkEmbeddings {
        chunk_id: String,
        vector: Vec<f64>,
        attributes: BTreeMap<String, TextOrList>,
    }
}

message! {
    /// Chunk vectors on their way to the store.
    pub struct DocumentEmbeddings {
        metadata: Option<Metadata>,
        chunks: Vec<ChunkEmbeddings>,
    }
}

message! {
    /// An object with its vector.
    pub struct ObjectEmbeddings {
        metadata: Option<Metadata>,
        vector: Vec<f64>,
        name: String,
        key_name: String,
        id: String,
    }
}

message! {
    /// A structured object with its vectors.
    pub struct StructuredObjectEmbedding {
        metadata: Option<Metadata>,
        vector: Vec<f64>,
        schema_name: String,
        object_id: String,
        field_embeddings: BTreeMap<String, Vec<f64>>,
    }
}

message! {
    /// A row index value with its vector.
    pub struct RowIndexEmbedding {
        index_name: String,
        index_value: Vec<String>,
        text: String,
        vector: Vec<f64>,
        attributes: BTreeMap<String, TextOrList>,
    }
}

message! {
    /// Row index vectors on their way to the store.
    pub struct RowEmbeddings {
        metadata: Option<Metadata>,
        schema_name: String,
        embeddings: Vec<RowIndexEmbedding>,
    }
}

message! {
    /// Texts to turn into vectors.
    pub struct EmbeddingsRequest {
        texts: Vec<String>,
    }
}

message! {
    /// One vector per text, in order.
    pub struct EmbeddingsResponse {
        error: Option<Error>,
        vectors: Vec<Vec<f64>>,
    }
}

message! {
    /// Entities near a vector, at most `limit`.
    pub struct GraphEmbeddingsRequest {
        vector: Vec<f64>,
        limit: i64,
        collection: String,
        rdf_type: String,
        attributes: BTreeMap<String, TextOrList>,
    }
}

message! {
    /// An entity and how near it is.
    pub struct EntityMatch {
        entity: Option<Term>,
        /// Higher is nearer.
        score: f64,
        rdf_type: Vec<String>,
        attributes: BTreeMap<String, TextOrList>,
    }
}

message! {
    /// Entities, nearest first.
    pub struct GraphEmbeddingsResponse {
        error: Option<Error>,
        entities: Vec<EntityMatch>,
    }
}

message! {
    /// Chunks near a vector, at most `limit`.
    pub struct DocumentEmbeddingsRequest {
        vector: Vec<f64>,
        limit: i64,
        collection: String,
        attributes: BTreeMap<String, TextOrList>,
    }
}

message! {
    /// A chunk and how well it matches.
    pub struct ChunkMatch {
        chunk_id: String,
        /// Higher is better.
        score: f64,
        attributes: BTreeMap<String, TextOrList>,
    }
}

message! {
    /// Chunks, nearest first.
    pub struct DocumentEmbeddingsResponse {
        error: Option<Error>,
        chunks: Vec<ChunkMatch>,
    }
}

message! {
    /// Chunks that hold the words of a query, at most `limit`.
    pub struct KeywordIndexRequest {
        query: String,
        limit: i64,
        collection: String,
    }
}

message! {
    /// Chunks, best first.
    pub struct KeywordIndexResponse {
        error: Option<Error>,
        chunks: Vec<ChunkMatch>,
    }
}

message! {
    /// A row index value and how near it is.
    pub struct RowIndexMatch {
        index_name: String,
        index_value: Vec<String>,
        text: String,
        score: f64,
        attributes: BTreeMap<String, TextOrList>,
    }
}

message! {
    /// Row index values near a vector.
    pub struct RowEmbeddingsRequest {
        vector: Vec<f64>,
        limit: i64 = 10,
        collection: String,
        schema_name: String,
        /// `None` = any index of the schema.
        index_name: Option<String>,
        attributes: BTreeMap<String, TextOrList>,
    }
}

message! {
    /// Row index values, nearest first.
    pub struct RowEmbeddingsResponse {
        error: Option<Error>,
        matches: Vec<RowIndexMatch>,
    }
}

message! {
    /// A question to score documents against.
    pub struct RerankerQuery {
        query_id: String,
        query_text: String,
    }
}

message! {
    /// A text to be scored.
    pub struct RerankerDocument {
        document_id: String,
        document_text: String,
    }
}

message! {
    /// Documents to put in order for queries.
    pub struct RerankerRequest {
        queries: Vec<RerankerQuery>,
        documents: Vec<RerankerDocument>,
        /// The most results.
        limit: i64 = 10,
    }
}

message! {
    /// The score of one document for one query.
    pub struct RerankerResult {
        document_id: String,
        query_id: String,
        /// Higher is better.
        score: f64,
    }
}

message! {
    /// Scores, best first.
    pub struct RerankerResponse {
        error: Option<Error>,
        results: Vec<RerankerResult>,
    }
}
