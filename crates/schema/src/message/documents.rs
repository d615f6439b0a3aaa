//! Documents on their way through a flow, the librarian and knowledge cores.

use std::collections::BTreeMap;

use super::{DocumentEmbeddings, Error, GraphEmbeddings, Metadata, TextOrList, Triple, Triples};

message! {
    /// A document to decode: either base64 in `data` or a librarian id.
    pub struct Document {
        metadata: Option<Metadata>,
        /// Base64 of the file; empty where `document_id` is given.
        data: String,
        /// In the library, to be fetched from there.
        document_id: String,
    }
}

message! {
    /// Plain text, inline or by librarian id, on its way to the chunker.
    pub struct TextDocument {
        metadata: Option<Metadata>,
        /// The text as it is, no base64. Where it is empty, fetch `document_id`.
        text: String,
        document_id: String,
    }
}

message! {
    /// A passage of a document.
    pub struct Chunk {
        metadata: Option<Metadata>,
        /// The text as it is, no base64.
        chunk: String,
        /// The chunk as a document of the library.
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
        /// MIME type.
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
        /// Base64.
        data: String,
    }
}

message! {
    /// A call to the knowledge core service.
    pub struct KnowledgeRequest {
        operation: String,
        /// Of the core, which is that of its root document.
        id: String,
        /// The flow to load into.
        flow: String,
        /// The collection to load into; empty = `default`.
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
        /// Set in answers to lists only.
        ids: Option<Vec<String>>,
        /// The end of a core that came in parts.
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
        /// MIME type.
        kind: String,
        title: String,
        comments: String,
        /// Further statements about the document.
        metadata: Vec<Triple>,
        tags: Vec<String>,
        /// The document that this one was cut from; empty for one that was put in.
        parent_id: String,
        /// `source`, `page`, `section`, `chunk`, `image`, `extracted` or `answer`.
        document_type: String = "source".to_owned(),
    }
}

message! {
    /// A document put through a flow.
    pub struct ProcessingMetadata {
        id: String,
        document_id: String,
        /// Seconds since 1970.
        time: i64,
        /// Id of the flow, not of its run.
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
        /// A [`DocumentMetadata`] as JSON text.
        document_metadata_json: String,
        /// Bytes.
        total_size: i64,
        /// Bytes.
        chunk_size: i64,
        total_chunks: i64,
        chunks_received: i64,
        /// ISO 8601.
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
        /// `begin-upload`: bytes.
        total_size: i64,
        /// Bytes of a part; 0 = 2 MiB for uploads, 1 MiB for `stream-document`.
        chunk_size: i64,
        upload_id: String,
        /// Which part, counted from 0.
        chunk_index: i64,
        /// `list-documents`: also pages, chunks and answers.
        include_children: bool,
        /// Additive: `get-progress` answers for this flow only.
        #[additive] flow: String,
        /// Additive: `get-progress` answers for these documents only, at most 1 000.
        #[additive] document_ids: Vec<String>,
        /// Additive: `get-progress` of one document tells which of these chunks have their vectors; at most 1 000.
        #[additive] chunk_ids: Vec<String>,
        /// Additive: `get-progress` answers for documents only of which messages may have been lost with the broker's log, at
        /// most 1 000.
        #[additive] lost: bool,
        /// Additive: `remove-processing` also removes what was made of the document in that collection, once no other
        /// record wants it there; without it the record alone goes.
        #[additive] remove_derived: bool,
        /// Additive: a list comes in pages of about so many bytes; 0 = in one answer, or not at all.
        #[additive] bytes_max: i64,
        /// Additive: the `cursor` of the page before, for the next one. All else is as in the first request.
        #[additive] cursor: String,
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
        /// Bytes.
        chunk_size: i64,
        total_chunks: i64,
        /// Which part, counted from 0.
        chunk_index: i64,
        /// How many parts so far, this one included.
        chunks_received: i64,
        /// How many bytes so far.
        bytes_received: i64,
        total_bytes: i64,
        document_id: String,
        /// UUID under which the content is kept.
        object_id: String,
        /// `in-progress` or `expired`.
        upload_state: String,
        received_chunks: Vec<i64>,
        missing_chunks: Vec<i64>,
        upload_sessions: Vec<UploadSession>,
        /// False only on parts of `stream-document` before the last.
        is_final: bool = true,
        /// Additive: how far documents are, in the answer to `get-progress`.
        #[additive] progress: Vec<DocumentProgress>,
        /// Additive: where the next page of a list begins; absent on the last.
        #[additive] cursor: String,
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
        /// The broker's log was lost since it was put through, and nothing says that it was done by then: put it through again.
        #[additive] lost: bool,
        /// When it was put through, in seconds since 1970; 0 where only reports tell of it.
        started: i64,
        /// Chunks stored or failed per minute, over about the last one; 0 while none was.
        rate_per_minute: f64,
        /// At this rate it is complete so many seconds from now; unset while that cannot be told.
        remaining_seconds: Option<i64>,
        /// The first of them, with reasons; `failed` counts them all. What was parked is retried by replaying the dead letters
        /// of the document.
        failures: Vec<PieceFailure>,
        /// Of the chunks that were asked for, those that have their vectors.
        embedded_chunks: Vec<String>,
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
    /// What stores must forget, sent on `flow:tg:removals:<workspace>`, which the librarian owns: everything that passes up to
    /// and including `pass` made of a document (of every document where `document_id` is empty), in one collection (in
    /// every one where `collection` is empty). Repeating it, or a later one overtaking it, changes nothing.
    pub struct Removal {
        document_id: String,
        collection: String,
        pass: i64,
        /// Nothing is to be forgotten: from this pass on it is there again, also for messages that tell no pass.
        restored: bool,
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
