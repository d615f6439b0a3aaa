//! Asking the librarian: metadata and content of documents, saving parts and answers.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sluice_bus::{Client, Patience, trace};
use sluice_schema::exchange;
use sluice_schema::message::{DocumentMetadata, Error, LibrarianRequest, LibrarianResponse};
use sluice_sdk::{BindError, Failure, Ports};

/// Longest wait for the next message of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest wait for the whole of a content.
const CONTENT_TIMEOUT: Duration = Duration::from_secs(600);

pub(crate) struct Librarian(Client<exchange::Librarian>);

/// A content, or how many bytes one has at least that is too long.
enum Content {
    Whole(Vec<u8>),
    Longer(usize),
}

/// A document or part to be saved.
pub(crate) struct Saved<'a> {
    pub(crate) id: &'a str,
    /// Empty for what stands on its own.
    pub(crate) parent_id: &'a str,
    pub(crate) document_type: &'a str,
    pub(crate) title: &'a str,
    pub(crate) text: &'a str,
}

impl Librarian {
    pub(crate) fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        ports.client("librarian").map(Self)
    }

    /// What is known of a document; `None` when the librarian does not have it.
    pub(crate) async fn metadata(&self, id: &str) -> Result<Option<DocumentMetadata>, Failure> {
        let question = request("get-document-metadata", id);
        Ok(self.ask(&question).await?.document_metadata)
    }

    /// The whole content of a document.
    pub(crate) async fn content(&self, id: &str) -> Result<Vec<u8>, Failure> {
        self.content_up_to(id, usize::MAX).await
    }

    /// The whole content of a document of so many bytes at most; a longer one is refused as soon as that is known.
    pub(crate) async fn content_up_to(&self, id: &str, bytes_max: usize) -> Result<Vec<u8>, Failure> {
        match self.content_within(id, bytes_max).await? {
            Content::Whole(content) => Ok(content),
            Content::Longer(bytes) => {
                let most = bytes_max / (1024 * 1024);
                Err(Failure::never(format!(
                    "document '{id}' has {bytes} bytes, more than the {most} MiB that are read; split it"
                )))
            }
        }
    }

    /// The whole content of a document that has fewer bytes than these; of a longer one nothing.
    pub(crate) async fn small_content(&self, id: &str, bytes: usize) -> Result<Option<Vec<u8>>, Failure> {
        Ok(match self.content_within(id, bytes.saturating_sub(1)).await? {
            Content::Whole(content) => Some(content),
            Content::Longer(_) => None,
        })
    }

    async fn content_within(&self, id: &str, bytes_max: usize) -> Result<Content, Failure> {
        let patience = Patience { idle: ANSWER_TIMEOUT, total: CONTENT_TIMEOUT };
        let mut answer = self.0.stream(&request("stream-document", id), patience).await?;
        let mut content = Vec::new();
        while let Some(part) = answer.next().await? {
            if let Some(error) = part.error {
                return Err(failure(&format!("read document '{id}'"), &error));
            }
            let total = usize::try_from(part.total_bytes).unwrap_or(0);
            if total > bytes_max {
                return Ok(Content::Longer(total));
            }
            let bytes = BASE64.decode(&part.content);
            content.extend(bytes.map_err(|e| {
                Failure::never(format!("the librarian's content of '{id}' is not base64: {e}"))
            })?);
            if content.len() > bytes_max {
                return Ok(Content::Longer(content.len()));
            }
        }
        Ok(Content::Whole(content))
    }

    /// The content of a document as text.
    pub(crate) async fn text(&self, id: &str) -> Result<String, Failure> {
        String::from_utf8(self.content(id).await?)
            .map_err(|e| Failure::never(format!("document '{id}' is not UTF-8 text: {}", e.utf8_error())))
    }

    /// Whether a document that came from the library is not there any more. What cannot be told counts as not removed.
    pub(crate) async fn was_removed(&self, id: &str) -> bool {
        trace::pass().is_some() && matches!(self.metadata(id).await, Ok(None))
    }

    /// Saves a document that came without a record; one that is already there stays as it is.
    pub(crate) async fn save_source(&self, id: &str, kind: &str, content: &[u8]) -> Result<(), Failure> {
        let metadata = DocumentMetadata {
            id: id.to_owned(),
            time: crate::provenance::now_seconds(),
            kind: kind.to_owned(),
            title: id.to_owned(),
            document_type: "source".to_owned(),
            ..Default::default()
        };
        self.add(LibrarianRequest {
            document_metadata: Some(metadata),
            content: BASE64.encode(content),
            ..request("add-document", "")
        })
        .await
    }

    /// Saves a text; one that is already there stays as it is.
    pub(crate) async fn save(&self, document: Saved<'_>) -> Result<(), Failure> {
        self.save_in("", document).await
    }

    /// Saves a text that was made for a collection: it goes when the document goes from that collection.
    pub(crate) async fn save_in(&self, collection: &str, document: Saved<'_>) -> Result<(), Failure> {
        let operation = if document.parent_id.is_empty() { "add-document" } else { "add-child-document" };
        let mut question = request(operation, "");
        question.document_metadata = Some(DocumentMetadata {
            id: document.id.to_owned(),
            time: crate::provenance::now_seconds(),
            kind: "text/plain".to_owned(),
            title: document.title.to_owned(),
            parent_id: document.parent_id.to_owned(),
            document_type: document.document_type.to_owned(),
            ..Default::default()
        });
        question.content = BASE64.encode(document.text);
        question.collection = collection.to_owned();
        self.add(question).await
    }

    async fn add(&self, question: LibrarianRequest) -> Result<(), Failure> {
        let answer = self.0.call(&question, ANSWER_TIMEOUT).await?;
        match answer.error {
            Some(error) if !error.message.contains("already exists") => {
                let id = question.document_metadata.map(|document| document.id).unwrap_or_default();
                Err(failure(&format!("save '{id}'"), &error))
            }
            _ => Ok(()),
        }
    }

    async fn ask(&self, question: &LibrarianRequest) -> Result<LibrarianResponse, Failure> {
        let answer = self.0.call(question, ANSWER_TIMEOUT).await?;
        match &answer.error {
            Some(error) => Err(failure(&format!("{} '{}'", question.operation, question.document_id), error)),
            None => Ok(answer),
        }
    }
}

fn request(operation: &str, document_id: &str) -> LibrarianRequest {
    LibrarianRequest {
        operation: operation.to_owned(),
        document_id: document_id.to_owned(),
        ..Default::default()
    }
}

/// `request-error` says that the message asks for something impossible; anything else may pass.
fn failure(attempt: &str, error: &Error) -> Failure {
    let reason = format!("the librarian could not {attempt}: {}", error.message);
    if error.r#type == "request-error" { Failure::never(reason) } else { Failure::again(reason) }
}
