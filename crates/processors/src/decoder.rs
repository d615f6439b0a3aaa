//! Turns a document into text: plain text and Markdown pass, everything else is refused with its kind named.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sluice_schema::message::{Document, Metadata, StageReport, TextDocument, Triples};
use sluice_sdk::{BindError, Failure, Inputs, Out, Ports, Processor, Progress};

use crate::librarian::{Librarian, Saved};
use crate::provenance::{self, Part, PartKind};

const COMPONENT: &str = "document-decoder";
/// Longer texts are not sent along: the chunker fetches them.
const INLINE_BYTES_MAX: usize = 256 * 1024;
/// Bytes looked at to tell what a document is.
const SNIFF_BYTES_MAX: usize = 8 * 1024;

/// The document decoder of one flow.
pub struct DocumentDecoder {
    texts: Out<TextDocument>,
    triples: Out<Triples>,
    librarian: Librarian,
    progress: Progress,
}

impl Processor for DocumentDecoder {
    const NAME: &'static str = "document-decoder";
    const STAGE: Option<&'static str> = Some("decoder");

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        Ok(Self {
            texts: ports.output("output")?,
            triples: ports.output("triples")?,
            librarian: Librarian::bind(ports)?,
            progress: ports.progress()?,
        })
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.message("input", Self::decode);
    }
}

impl DocumentDecoder {
    async fn decode(self: Arc<Self>, document: Document) -> Result<(), Failure> {
        let metadata = document.metadata.clone().unwrap_or_default();
        let id = first_set([&document.document_id, &metadata.id])
            .ok_or_else(|| Failure::never("the document has neither a document_id nor a metadata id"))?;
        let root = first_set([&metadata.root, id]).unwrap_or(id);
        let (kind, content) = self.fetch(&document, id).await?;
        let text = text_of(&kind, &content).map_err(Failure::never)?;
        if text.trim().is_empty() {
            return self.progress.report(no_text("decoder", id, root, &metadata.collection)).await;
        }

        let section =
            format!("urn:section:{}", provenance::derived_uuid(&["section", id, &metadata.collection, text]));
        let title = "Section 1";
        if document.document_id.is_empty() {
            // Whoever sent the content along may not have told the librarian; a part needs something to be a part of.
            self.librarian
                .save(Saved { id, parent_id: "", document_type: "source", title: id, text })
                .await?;
        }
        self.progress
            .report(StageReport {
                id: format!("decoder:announced:{section}"),
                document_id: root.to_owned(),
                collection: metadata.collection.clone(),
                stage: "decoder".to_owned(),
                event: "announced".to_owned(),
                unit: "text".to_owned(),
                pieces: vec![section.clone()],
                count: 1,
                ..Default::default()
            })
            .await?;
        self.librarian
            .save(Saved { id: &section, parent_id: id, document_type: "section", title, text })
            .await?;

        let metadata =
            Metadata { id: section.clone(), root: root.to_owned(), collection: metadata.collection.clone() };
        let kind = PartKind::Section { mime_type: kind };
        let part = Part { id: &section, parent: id, component: COMPONENT, title, kind };
        let triples = part.triples(&provenance::now());
        self.triples.send(&Triples { metadata: Some(metadata.clone()), triples }).await?;
        let text = if text.len() <= INLINE_BYTES_MAX { text.to_owned() } else { String::new() };
        self.texts.send(&TextDocument { metadata: Some(metadata), text, document_id: section.clone() }).await
    }

    async fn fetch(&self, document: &Document, id: &str) -> Result<(String, Vec<u8>), Failure> {
        if document.document_id.is_empty() {
            let content = BASE64.decode(&document.data);
            let content =
                content.map_err(|e| Failure::never(format!("the data of '{id}' is not base64: {e}")))?;
            return Ok((String::new(), content));
        }
        let metadata = self.librarian.metadata(id).await?;
        let metadata =
            metadata.ok_or_else(|| Failure::never(format!("the librarian has no document '{id}'")))?;
        Ok((metadata.kind, self.librarian.content(id).await?))
    }
}

/// What tells a person that a document holds nothing to search in.
pub(crate) fn no_text(stage: &str, text_id: &str, root: &str, collection: &str) -> StageReport {
    StageReport {
        id: format!("{stage}:failed:{text_id}"),
        document_id: root.to_owned(),
        collection: collection.to_owned(),
        stage: stage.to_owned(),
        event: "failed".to_owned(),
        unit: "text".to_owned(),
        pieces: vec![text_id.to_owned()],
        count: 1,
        reason: "the document holds no text".to_owned(),
        ..Default::default()
    }
}

/// The first text that is not empty.
pub(crate) fn first_set<const N: usize>(texts: [&str; N]) -> Option<&str> {
    texts.into_iter().find(|text| !text.is_empty())
}

/// The text of a document of a declared kind; a missing or general kind is told from the content.
fn text_of<'a>(kind: &str, content: &'a [u8]) -> Result<&'a str, String> {
    let declared = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match declared.as_str() {
        "text/plain" | "text/markdown" | "text/x-markdown" => {}
        "" | "application/octet-stream" => {
            if let Some(found) = sniff(content) {
                return Err(format!("the content looks like {found}; {READS}"));
            }
        }
        other => return Err(format!("documents of kind '{other}' cannot be read here; {READS}")),
    }
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    std::str::from_utf8(content).map_err(|e| {
        format!(
            "the text is not valid UTF-8 (byte {} onwards); convert it to UTF-8 and add it again",
            e.valid_up_to()
        )
    })
}

const READS: &str = "this decoder reads text/plain and text/markdown";

/// What a content is if it is not text.
fn sniff(content: &[u8]) -> Option<&'static str> {
    const SIGNATURES: [(&[u8], &str); 6] = [
        (b"%PDF-", "application/pdf"),
        (b"PK\x03\x04", "a ZIP archive or office document"),
        (b"\xd0\xcf\x11\xe0", "an old office document"),
        (b"\x89PNG", "image/png"),
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"\x1f\x8b", "a gzip archive"),
    ];
    let start = content.trim_ascii_start();
    let known = SIGNATURES.iter().find(|(signature, _)| start.starts_with(signature)).map(|(_, name)| *name);
    known.or_else(|| content.iter().take(SNIFF_BYTES_MAX).any(|byte| *byte == 0).then_some("binary data"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_markdown_pass_whatever_the_parameters_of_their_kind() {
        for kind in
            ["text/plain", "text/markdown", "Text/Plain; charset=utf-8", "", "application/octet-stream"]
        {
            assert_eq!(text_of(kind, "# Käse".as_bytes()), Ok("# Käse"), "{kind}");
        }
        assert_eq!(text_of("text/plain", b"\xef\xbb\xbfa"), Ok("a"));
        assert_eq!(text_of("text/plain", b""), Ok(""));
    }

    #[test]
    fn other_kinds_are_refused_by_name() {
        let refused = |kind: &str, content: &[u8]| text_of(kind, content).unwrap_err();
        assert!(refused("application/pdf", b"%PDF-1.7").contains("'application/pdf'"));
        assert!(refused("", b"\n%PDF-1.7").contains("application/pdf"));
        assert!(refused("", b"a\0b").contains("binary data"));
        assert!(refused("text/plain", b"ab\xff").contains("byte 2"));
    }
}
