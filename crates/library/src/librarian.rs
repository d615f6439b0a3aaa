//! The librarian's calls: one table of operations over documents, uploads, processing and progress.

use bytes::Bytes;
use sluice_bus::{ErrorKind, trace};
use sluice_schema::exchange;
use sluice_schema::message::{
    DocumentMetadata, Error as Told, LibrarianRequest as Request, LibrarianResponse as Response,
    ProcessingMetadata,
};
use sluice_sdk::Responder;
use sluice_store::Batch;

use crate::Error;
use crate::documents::{Document, Documents, from_base64, to_base64};
use crate::processing::Processings;
use crate::progress::Progress;
use crate::removals::{Removals, Scope};
use crate::rows::check_id;
use crate::uploads::{Uploads, signed};

/// Bytes of content read at once for `stream-document`, in whole parts, or one part that is larger.
const READ_BYTES: u64 = 256 * 1024;
/// Bytes of content in a part of `stream-document` when the caller names no size.
const PART_BYTES_DEFAULT: u64 = 1024 * 1024;
/// Parts that a document is read in: each is a message.
const PARTS_MAX: u64 = 65_536;
/// Room in a message for what is around the content, in bytes.
const FRAME_BYTES: usize = 16 * 1024;

/// The librarian of all workspaces.
#[derive(Clone)]
pub(crate) struct Librarian {
    pub(crate) documents: Documents,
    pub(crate) uploads: Uploads,
    pub(crate) processings: Processings,
    pub(crate) progress: Progress,
    pub(crate) removals: Removals,
    /// The broker's largest message, in bytes.
    pub(crate) message_bytes_max: usize,
}

impl Librarian {
    /// Answers one call.
    pub(crate) async fn answer(
        &self,
        workspace: &str,
        request: Request,
        responder: Responder<exchange::Librarian>,
    ) -> Result<Response, Told> {
        let operation = request.operation.clone();
        let outcome = if operation == "stream-document" {
            self.stream(workspace, &request, &responder).await
        } else {
            self.call(workspace, request, &responder).await
        };
        outcome.map_err(|error| error.told(&operation, responder.trace()))
    }

    async fn call(
        &self,
        workspace: &str,
        mut request: Request,
        responder: &Responder<exchange::Librarian>,
    ) -> Result<Response, Error> {
        let (ok, trace) = (Response::default(), responder.trace());
        // The text goes as soon as its bytes are there: documents are large.
        let content = match std::mem::take(&mut request.content) {
            text if text.is_empty() => Bytes::new(),
            text => from_base64(&text)?,
        };
        let id = request.document_id.as_str();
        let cursor = request.cursor.as_str();
        let upload = request.upload_id.as_str();
        Ok(match request.operation.as_str() {
            "add-document" => {
                let metadata = document(request.document_metadata)?;
                let (scope, mut batch) = ([Scope::document(&metadata.id)], Batch::new());
                self.removals.settle(workspace, &scope, &mut batch).await?;
                self.removals.restore(workspace, &scope).await?;
                self.documents.add(workspace, metadata.clone(), content, batch).await?;
                ok
            }
            "add-child-document" => {
                let metadata = document(request.document_metadata)?;
                let document_id = metadata.id.clone();
                self.add_child(workspace, metadata, content, &request.collection).await?;
                Response { document_id, ..ok }
            }
            "update-document" => {
                self.documents.update(workspace, document(request.document_metadata)?).await?;
                ok
            }
            "remove-document" => {
                self.documents.check_removable(workspace, id).await?;
                self.removals.remove(workspace, Scope::document(id), Batch::new()).await?;
                ok
            }
            "get-document-metadata" | "get-document" => {
                // Pipelines ask this way whether a document is there: one that is not is no error.
                let found = self.documents.find(workspace, id).await?;
                Response { document_metadata: found.map(|row| row.is.metadata), ..ok }
            }
            "get-document-content" => {
                let found = self.documents.get(workspace, id).await?.is;
                Response { content: self.whole(workspace, &found, responder).await?, ..ok }
            }
            "list-documents" => {
                let (children, criteria) = (request.include_children, &request.criteria);
                let list = |page| self.documents.list(workspace, children, criteria, cursor, page);
                let list = responder.list(request.bytes_max, list).await?;
                Response { document_metadatas: list.items, cursor: list.cursor, ..ok }
            }
            "list-children" => {
                let list = |page| self.documents.children(workspace, id, cursor, page);
                let list = responder.list(request.bytes_max, list).await?;
                Response { document_metadatas: list.items, cursor: list.cursor, ..ok }
            }
            "add-processing" => {
                self.processings.add(workspace, processing(request.processing_metadata)?, trace).await?;
                ok
            }
            "remove-processing" => {
                self.processings.remove(workspace, &request.processing_id, request.remove_derived).await?;
                ok
            }
            "list-processing" => {
                let list = |page| self.processings.list(workspace, cursor, page);
                let list = responder.list(request.bytes_max, list).await?;
                Response { processing_metadatas: list.items, cursor: list.cursor, ..ok }
            }
            "begin-upload" => {
                let metadata = document(request.document_metadata)?;
                self.uploads.begin(workspace, metadata, request.total_size, request.chunk_size).await?
            }
            "upload-chunk" => self.uploads.part(workspace, upload, request.chunk_index, content).await?,
            "complete-upload" => self.uploads.complete(workspace, upload).await?,
            "abort-upload" => {
                self.uploads.abort(workspace, upload).await?;
                ok
            }
            "get-upload-status" => self.uploads.status(workspace, upload).await?,
            "list-uploads" => {
                let list = |page| self.uploads.list(workspace, cursor, page);
                let list = responder.list(request.bytes_max, list).await?;
                Response { upload_sessions: list.items, cursor: list.cursor, ..ok }
            }
            "get-progress" if request.lost => {
                Response { progress: self.progress.lost(workspace, &request.flow).await?, ..ok }
            }
            "get-progress" => {
                let mut documents = request.document_ids;
                documents.extend((!id.is_empty()).then(|| id.to_owned()));
                let shown = self.progress.shown(workspace, &documents, &request.flow, &request.chunk_ids);
                Response { progress: shown.await?, ..ok }
            }
            "" => return Err(Error::request("Null operation")),
            other => return Err(Error::request(format!("Invalid operation: {other}"))),
        })
    }

    /// Takes in a part. One that a message of an earlier pass brings, whose document or collection was removed since, is
    /// taken and forgotten: whoever works on that message has done nothing wrong.
    async fn add_child(
        &self,
        workspace: &str,
        metadata: DocumentMetadata,
        content: Bytes,
        collection: &str,
    ) -> Result<(), Error> {
        check_id("parent document", &metadata.parent_id)?;
        let parent = self.documents.find(workspace, &metadata.parent_id).await?;
        if let Some(pass) = trace::pass() {
            let root = parent.map_or_else(
                || metadata.parent_id.clone(),
                |row| if row.is.root.is_empty() { row.is.metadata.id } else { row.is.root },
            );
            if self.removals.is_gone(workspace, &root, collection, Some(pass)).await? {
                tracing::debug!(workspace, part = metadata.id, document = root, "a part of what was removed");
                return Ok(());
            }
        }
        self.documents.add_child(workspace, metadata, content, collection).await
    }

    async fn whole(
        &self,
        workspace: &str,
        document: &Document,
        responder: &Responder<exchange::Librarian>,
    ) -> Result<String, Error> {
        let bytes_max = self.content_bytes_max();
        if document.bytes > bytes_max {
            return Err(Error::request(format!(
                "document '{}' has {} bytes, more than one message carries ({bytes_max}); use stream-document",
                document.metadata.id, document.bytes
            )));
        }
        take_room(responder, document.bytes).await?;
        Ok(to_base64(&self.documents.content(workspace, document, 0, bytes_max).await?))
    }

    /// Sends the content in parts; an empty document is one empty part.
    async fn stream(
        &self,
        workspace: &str,
        request: &Request,
        responder: &Responder<exchange::Librarian>,
    ) -> Result<Response, Error> {
        let document = self.documents.get(workspace, &request.document_id).await?.is;
        let wanted = u64::try_from(request.chunk_size).ok().filter(|size| *size > 0);
        let part_bytes = wanted.unwrap_or(PART_BYTES_DEFAULT).min(self.content_bytes_max());
        let parts = document.bytes.div_ceil(part_bytes);
        if parts > PARTS_MAX {
            return Err(Error::request(format!(
                "chunk-size {part_bytes} would make {parts} parts of this document; {PARTS_MAX} are the most: take larger ones"
            )));
        }
        // Each read is checked, and unpacked, as a whole: small parts share one.
        let read_bytes = part_bytes * (READ_BYTES / part_bytes).max(1);
        take_room(responder, read_bytes.min(document.bytes)).await?;
        let (mut index, mut read) = (0, Bytes::new());
        loop {
            let offset = index * part_bytes;
            if read.is_empty() {
                read = self.documents.content(workspace, &document, offset, read_bytes).await?;
            }
            let content = read.split_to(read.len().min(part_bytes as usize));
            let part = Response {
                content: to_base64(&content),
                chunk_index: signed(index),
                chunks_received: signed((index + 1).min(parts)),
                total_chunks: signed(parts),
                bytes_received: signed(offset + content.len() as u64),
                total_bytes: signed(document.bytes),
                is_final: index + 1 >= parts,
                ..Default::default()
            };
            if part.is_final {
                return Ok(part);
            }
            match responder.part(&part).await {
                Ok(()) => index += 1,
                Err(error) if error.kind() == ErrorKind::Absent => {
                    // Nobody listens any more; the last part goes nowhere either.
                    return Ok(Response::default());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The most content that fits a message as base64.
    fn content_bytes_max(&self) -> u64 {
        (self.message_bytes_max.saturating_sub(FRAME_BYTES) as u64 / 4 * 3).max(1)
    }
}

/// Content is in memory as it is and as base64, then as base64 and as that in its message.
async fn take_room(responder: &Responder<exchange::Librarian>, content_bytes: u64) -> Result<(), Error> {
    let bytes = usize::try_from(content_bytes).unwrap_or(usize::MAX);
    responder.room((bytes / 3).saturating_mul(8)).await.map_err(Error::Told)
}

fn document(given: Option<DocumentMetadata>) -> Result<DocumentMetadata, Error> {
    given.ok_or_else(|| Error::request("the request has no document-metadata"))
}

fn processing(given: Option<ProcessingMetadata>) -> Result<ProcessingMetadata, Error> {
    given.ok_or_else(|| Error::request("the request has no processing-metadata"))
}
