//! Cuts texts into chunks of `chunk-size` characters or tokens, saves each with the librarian and sends it on.

use std::str::FromStr;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, future, stream};
use sluice_schema::message::{
    Chunk, DocumentMetadata, Metadata, StageReport, TextDocument, TextOrList, Triples,
};
use sluice_sdk::{BindError, Failure, Inputs, Out, Ports, Processor, Progress};

use crate::decoder::{first_set, no_text};
use crate::librarian::{Librarian, Saved};
use crate::passage;
use crate::pieces::{Piece, pieces};
use crate::provenance::{self, Part, PartKind};
use crate::tokens::token_pieces;

/// The id under which it counts tokens unless the flow says otherwise.
pub const TOKEN_CHUNKER: &str = "chunker-token";
/// Chunks of one text that are being saved at once.
const SAVES_MAX: usize = 16;
/// Chunks of a text on their way to the broker at once, in order.
const SENDS_MAX: usize = 32;
/// Chunks announced in one report.
const ANNOUNCED_MAX: usize = 500;

/// What sizes count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Characters,
    Tokens,
}

impl FromStr for By {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "characters" => Ok(Self::Characters),
            "tokens" => Ok(Self::Tokens),
            _ => Err(()),
        }
    }
}

/// How texts are cut: sizes in whatever they count.
#[derive(Debug, Clone, Copy)]
struct Cut {
    by: By,
    size: usize,
    overlap: usize,
}

impl Cut {
    fn new(by: By, ports: &Ports) -> Result<Self, BindError> {
        let (size, overlap) = match by {
            By::Characters => (2_000, 100),
            By::Tokens => (250, 15),
        };
        let size = ports.setting("chunk-size", size)?.max(1);
        // An overlap as large as a chunk would never move on.
        Ok(Self { by, size, overlap: ports.setting("chunk-overlap", overlap)?.min(size - 1) })
    }

    /// The name of the chunker in traces.
    const fn component(self) -> &'static str {
        match self.by {
            By::Characters => "chunker",
            By::Tokens => "token-chunker",
        }
    }

    fn pieces(self, text: &str) -> Vec<Piece<'_>> {
        match self.by {
            By::Characters => pieces(text, self.size, self.overlap),
            By::Tokens => token_pieces(text, self.size, self.overlap),
        }
    }
}

/// The chunker of one flow.
pub struct Chunker {
    chunks: Out<Chunk>,
    triples: Out<Triples>,
    librarian: Librarian,
    progress: Progress,
    cut: Cut,
}

impl Processor for Chunker {
    const NAME: &'static str = "chunker";
    const STAGE: Option<&'static str> = Some("chunker");

    fn bind(ports: &mut Ports) -> Result<Self, BindError> {
        let by = if ports.processor() == TOKEN_CHUNKER { By::Tokens } else { By::Characters };
        Ok(Self {
            chunks: ports.output("output")?,
            triples: ports.output("triples")?,
            librarian: Librarian::bind(ports)?,
            progress: ports.progress()?,
            cut: Cut::new(ports.setting("chunk-by", by)?, ports)?,
        })
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.message("input", Self::split);
    }
}

/// A text under way, and what its chunks inherit from it.
struct Text {
    id: String,
    root: String,
    collection: String,
    attributes: passage::Place,
}

impl Chunker {
    async fn split(self: Arc<Self>, document: TextDocument) -> Result<(), Failure> {
        let metadata = document.metadata.clone().unwrap_or_default();
        let id = first_set([&document.document_id, &metadata.id])
            .ok_or_else(|| Failure::never("the text has neither a document_id nor a metadata id"))?;
        let root = first_set([&metadata.root, id]).unwrap_or(id);
        match self.split_text(&document, &metadata, id, root).await {
            Err(Failure::Never(reason)) if self.librarian.was_removed(root).await => {
                tracing::info!(document = root, reason, "a document was removed while it was being cut");
                Ok(())
            }
            done => done,
        }
    }

    async fn split_text(
        &self,
        document: &TextDocument,
        metadata: &Metadata,
        id: &str,
        root: &str,
    ) -> Result<(), Failure> {
        let inline = !document.text.is_empty() || document.document_id.is_empty();
        let content = if inline { document.text.clone() } else { self.librarian.text(id).await? };
        if content.trim().is_empty() {
            return self.progress.report(no_text("chunker", id, root, &metadata.collection)).await;
        }
        let attributes = self.place(id, root, &content, inline).await?;
        let collection = metadata.collection.clone();
        let text = Text { id: id.to_owned(), root: root.to_owned(), collection, attributes };

        let content: Arc<str> = content.into();
        let cut = self.pieces(&content).await?;
        let ids: Vec<String> = cut.iter().map(|piece| text.chunk_id(piece)).collect();
        for (batch, ids) in ids.chunks(ANNOUNCED_MAX).enumerate() {
            self.progress
                .report(text.report("announced", "chunk", &format!("{}:{batch}", text.id), ids.to_vec()))
                .await?;
        }
        let made_at = &provenance::now();
        let (chunker, text, cut, ids) = (self, &text, &cut, &ids);
        // First what may be done twice, then the sends, close together: a text that was cut short by a crash is cut again, and
        // a chunk that was sent before would go to the model again.
        stream::iter(0..cut.len())
            .map(|at| async move {
                chunker.save(text, &cut[at], &ids[at], at + 1).await?;
                chunker.describe(text, &cut[at], &ids[at], at + 1, made_at).await
            })
            .buffer_unordered(SAVES_MAX)
            .try_for_each(|()| future::ready(Ok(())))
            .await?;
        stream::iter(0..cut.len())
            .map(|at| chunker.send(text, &cut[at], &ids[at]))
            .buffered(SENDS_MAX)
            .try_for_each(|()| future::ready(Ok(())))
            .await?;
        self.progress.report(text.report("done", "text", &text.id, vec![text.id.clone()])).await
    }

    /// The text in pieces, found off the async threads: a text may be long.
    async fn pieces<'a>(&self, content: &'a Arc<str>) -> Result<Vec<Piece<'a>>, Failure> {
        let (cut, text) = (self.cut, content.clone());
        let found = tokio::task::spawn_blocking(move || {
            let pieces = cut.pieces(&text);
            pieces.iter().map(|piece| (piece.start, piece.text.len(), piece.offset, piece.length)).collect()
        });
        let found: Vec<(usize, usize, usize, usize)> = found.await.map_err(Failure::again)?;
        let piece = |(start, bytes, offset, length)| Piece {
            text: &content[start..start + bytes],
            start,
            offset,
            length,
        };
        Ok(found.into_iter().map(piece).collect())
    }

    /// The document's title and, if the text is one of its pages, the page. A text that came without a record gets one,
    /// because a chunk needs something to be a part of.
    async fn place(
        &self,
        id: &str,
        root: &str,
        content: &str,
        inline: bool,
    ) -> Result<passage::Place, Failure> {
        let own = self.librarian.metadata(id).await?;
        if own.is_none() && inline {
            self.librarian
                .save(Saved { id, parent_id: "", document_type: "source", title: id, text: content })
                .await?;
        }
        let page = own.as_ref().and_then(page_number);
        let of_root = if root == id { own } else { self.librarian.metadata(root).await? };
        let title = of_root.map(|document| document.title).filter(|title| !title.is_empty());
        Ok(passage::Place { title: title.unwrap_or_else(|| root.to_owned()), page, ..Default::default() })
    }

    async fn save(&self, text: &Text, piece: &Piece<'_>, id: &str, index: usize) -> Result<(), Failure> {
        let title = format!("Chunk {index}");
        let chunk =
            Saved { id, parent_id: &text.id, document_type: "chunk", title: &title, text: piece.text };
        self.librarian.save_in(&text.collection, chunk).await
    }

    /// Says in triples where a chunk comes from.
    async fn describe(
        &self,
        text: &Text,
        piece: &Piece<'_>,
        id: &str,
        index: usize,
        made_at: &str,
    ) -> Result<(), Failure> {
        let kind = PartKind::Chunk {
            index,
            offset: piece.offset,
            length: piece.length,
            size: self.cut.size,
            overlap: self.cut.overlap,
        };
        let title = format!("Chunk {index}");
        let component = self.cut.component();
        let part = Part { id, parent: &text.id, component, title: &title, kind };
        let metadata = Some(text.metadata_of(id));
        self.triples.send(&Triples { metadata, triples: part.triples(made_at) }).await
    }

    async fn send(&self, text: &Text, piece: &Piece<'_>, id: &str) -> Result<(), Failure> {
        let place = passage::Place {
            offset: Some(piece.offset),
            length: Some(piece.length),
            ..text.attributes.clone()
        };
        let chunk = Chunk {
            metadata: Some(text.metadata_of(id)),
            chunk: piece.text.to_owned(),
            document_id: id.to_owned(),
            attributes: place.attributes().map(|(name, value)| (name, TextOrList::Text(value))).collect(),
        };
        self.chunks.send(&chunk).await
    }
}

impl Text {
    fn metadata_of(&self, chunk: &str) -> Metadata {
        Metadata { id: chunk.to_owned(), root: self.root.clone(), collection: self.collection.clone() }
    }

    /// The same piece of the same text in the same collection is the same chunk, however often it is cut out.
    fn chunk_id(&self, piece: &Piece<'_>) -> String {
        let offset = piece.offset.to_string();
        let uuid = provenance::derived_uuid(&["chunk", &self.id, &self.collection, &offset, piece.text]);
        format!("urn:chunk:{uuid}")
    }

    fn report(&self, event: &str, unit: &str, about: &str, pieces: Vec<String>) -> StageReport {
        StageReport {
            id: format!("chunker:{event}:{about}"),
            document_id: self.root.clone(),
            collection: self.collection.clone(),
            stage: "chunker".to_owned(),
            event: event.to_owned(),
            unit: unit.to_owned(),
            count: i64::try_from(pieces.len()).unwrap_or(i64::MAX),
            pieces,
            ..Default::default()
        }
    }
}

/// The number in a page's title, as decoders write it: `Page 3`.
pub(crate) fn page_number(document: &DocumentMetadata) -> Option<i64> {
    let is_page = document.document_type == "page";
    document.title.strip_prefix("Page ").filter(|_| is_page)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_known_by_its_type_and_title() {
        let titled = |document_type: &str, title: &str| DocumentMetadata {
            title: title.to_owned(),
            document_type: document_type.to_owned(),
            ..Default::default()
        };
        assert_eq!(page_number(&titled("page", "Page 12")), Some(12));
        assert_eq!(page_number(&titled("section", "Page 12")), None);
        assert_eq!(page_number(&titled("page", "Section 1")), None);
    }

    #[test]
    fn equal_pieces_at_different_places_are_different_chunks() {
        let text = Text {
            id: "urn:d".to_owned(),
            root: "urn:d".to_owned(),
            collection: "default".to_owned(),
            attributes: passage::Place::default(),
        };
        let piece = Piece { text: "same", start: 0, offset: 0, length: 4 };
        assert_eq!(text.chunk_id(&piece), text.chunk_id(&piece));
        assert_ne!(text.chunk_id(&piece), text.chunk_id(&Piece { offset: 9, ..piece }));
    }
}
