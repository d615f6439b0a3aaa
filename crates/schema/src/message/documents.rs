//! Documents on their way through a flow, the librarian and knowledge cores.

use std::collections::BTreeMap;

use super::{DocumentEmbeddings, Error, GraphEmbeddings, Metadata, TextOrList, Triple, Triples};

message! {
    /// A document to decode: either base64 in `data` or a librarian id.
    pub struct Document {
        metadata: Option<Metadata>,
        data: String,
        document_id: String,
    }
}

message! {
    /// Plain text, inline or by librarian id, on its way to the chunker.
    pub struct TextDocument {
        metadata: Option<Metadata>,
        text: String,
        document_id: String,
    }
}

message! {
    /// A passage of a document.
    pub struct Chunk {
        metadata: Option<Metadata>,
        chunk: String,
        document_id: String,
        attributes: BTreeMap<String, TextOrList>,
    }
}

message! {
    /// An extracted definition.
    pub struct Definition {
        name: String,
        definition: String,
    }
}

message! {
    /// An extracted topic.
    pub struct Topic {
        name: String,
        definition: String,
    }
}

message! {
    /// An extracted relationship.
    pub struct Relationship {
        s: String,
        p: String,
        o: String,
        o_entity: bool,
    }
}

message! {
    /// An extracted fact.
    pub struct Fact {
        s: String,
        p: String,
        o: String,
    }
}

message! {
    /// Document metadata inside a knowledge core.
    pub struct LibraryMetadata {
        id: String,
        kind: String,
        title: String,
        parent_id: String,
        document_type: String,
        comments: String,
        tags: Vec<String>,
    }
}

message! {
    /// Document content (base64) inside a knowledge core.
    pub struct LibraryBlob {
        id: String,
        data: String,
    }
}

message! {
    /// A call to the knowledge core service.
    pub struct KnowledgeRequest {
        operation: String,
        id: String,
        flow: String,
        collection: String,
        triples: Option<Triples>,
        graph_embeddings: Option<GraphEmbeddings>,
        document_embeddings: Option<DocumentEmbeddings>,
        library_metadata: Option<LibraryMetadata>,
        library_blob: Option<LibraryBlob>,
    }
}

message! {
    /// The answer of the knowledge core service.
    pub struct KnowledgeResponse {
        error: Option<Error>,
        ids: Option<Vec<String>>,
        eos: bool,
        triples: Option<Triples>,
        graph_embeddings: Option<GraphEmbeddings>,
        document_embeddings: Option<DocumentEmbeddings>,
        library_metadata: Option<LibraryMetadata>,
        library_blob: Option<LibraryBlob>,
    }
}

message! {
    /// What the library knows of a document; `time` is in seconds since 1970.
    pub struct DocumentMetadata {
        id: String,
        time: i64,
        kind: String,
        title: String,
        comments: String,
        metadata: Vec<Triple>,
        tags: Vec<String>,
        parent_id: String,
        document_type: String = "source".to_owned(),
    }
}

message! {
    /// A document put through a flow.
    pub struct ProcessingMetadata {
        id: String,
        document_id: String,
        time: i64,
        flow: String,
        collection: String,
        tags: Vec<String>,
    }
}

message! {
    /// A filter on documents.
    pub struct Criteria {
        key: String,
        value: String,
        operator: String,
    }
}

message! {
    /// How far an upload in parts is.
    pub struct UploadProgress {
        upload_id: String,
        chunks_received: i64,
        total_chunks: i64,
        bytes_received: i64,
        total_bytes: i64,
    }
}

message! {
    /// An upload in parts that is not finished.
    pub struct UploadSession {
        upload_id: String,
        document_id: String,
        document_metadata_json: String,
        total_size: i64,
        chunk_size: i64,
        total_chunks: i64,
        chunks_received: i64,
        created_at: String,
    }
}

message! {
    /// A call to the librarian, on `request:tg:librarian:<workspace>`; `content` is base64.
    pub struct LibrarianRequest {
        operation: String,
        document_id: String,
        processing_id: String,
        document_metadata: Option<DocumentMetadata>,
        processing_metadata: Option<ProcessingMetadata>,
        content: String,
        collection: String,
        criteria: Vec<Criteria>,
        total_size: i64,
        chunk_size: i64,
        upload_id: String,
        chunk_index: i64,
        include_children: bool,
        /// Additive: `get-progress` answers for this flow only.
        #[additive] flow: String,
    }
}

message! {
    /// The answer of the librarian; `content` is base64.
    pub struct LibrarianResponse {
        error: Option<Error>,
        document_metadata: Option<DocumentMetadata>,
        content: String,
        document_metadatas: Vec<DocumentMetadata>,
        processing_metadatas: Vec<ProcessingMetadata>,
        upload_id: String,
        chunk_size: i64,
        total_chunks: i64,
        chunk_index: i64,
        chunks_received: i64,
        bytes_received: i64,
        total_bytes: i64,
        document_id: String,
        object_id: String,
        upload_state: String,
        received_chunks: Vec<i64>,
        missing_chunks: Vec<i64>,
        upload_sessions: Vec<UploadSession>,
        is_final: bool = true,
        /// Additive: how far documents are, in the answer to `get-progress`.
        #[additive] progress: Vec<DocumentProgress>,
    }
}

message! {
    /// How far one document is on its way through one flow. Complete when `stored + failed == announced` and
    /// `texts_done == texts_announced`, which is what `complete` says.
    pub struct DocumentProgress {
        document_id: String,
        flow: String,
        collection: String,
        texts_announced: i64,
        texts_done: i64,
        announced: i64,
        embedded: i64,
        indexed: i64,
        stored: i64,
        failed: i64,
        complete: bool,
        failures: Vec<PieceFailure>,
    }
}
message! {
    /// A piece of a document that did not make it, and why.
    pub struct PieceFailure {
        piece: String,
        stage: String,
        reason: String,
    }
}
message! {
    /// What a stage did with pieces of a document; sent on `flow:tg:progress:<workspace>`, which the librarian owns.
    /// `id` makes counting idempotent: a report seen before counts once.
    pub struct StageReport {
        id: String,
        document_id: String,
        flow: String,
        collection: String,
        stage: String,
        event: String,
        unit: String,
        pieces: Vec<String>,
        count: i64,
        reason: String,
    }
}
message! {
    /// A message that could not be processed, parked on `flow:tg:dead-letters:<workspace>`; `body` is base64.
    pub struct DeadLetter {
        id: String,
        workspace: String,
        flow: String,
        topic: String,
        subscription: String,
        reason: String,
        attempts: i64,
        time: i64,
        properties: BTreeMap<String, String>,
        body: String,
    }
}
