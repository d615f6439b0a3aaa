//! Turns documents into texts, page by page: each is saved with the librarian below its document, described in the graph of
//! sources, and sent on. A part that gives no text is told with its reason, and the others go on.
//!
//! Which parts a document has is announced before the first is sent, so that a document is never taken for complete while it
//! is being read. The ids of parts derive from the document's content and their numbers: a document that is decoded again
//! makes the same parts.

mod process;
mod reading;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sha2::{Digest as _, Sha256};
use sluice_documents::{Event, Kind, PLAIN_BYTES_MAX, Problem, ProblemKind, READER_VERSION, Unit, plain};
use sluice_schema::message::{Document, Metadata, StageReport, TextDocument, Triples};
use sluice_sdk::{BindError, Failure, Inputs, Out, Ports, Processor, Progress};

use crate::librarian::{Librarian, Saved};
use crate::provenance::{self, Part, PartKind};
use reading::Reading;
pub use reading::{Decoding, DecodingConfig};

const COMPONENT: &str = "document-decoder";
/// Longer texts are not sent along: the chunker fetches them.
const INLINE_BYTES_MAX: usize = 256 * 1024;
/// Parts of one document that are being saved at once.
const SAVES_MAX: usize = 8;
/// Parts named in one report.
const REPORTED_MAX: usize = 500;

/// The document decoder of one flow.
pub struct DocumentDecoder {
    texts: Out<TextDocument>,
    triples: Out<Triples>,
    librarian: Librarian,
    progress: Progress,
    decoding: Decoding,
    workspace: Arc<str>,
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
            decoding: ports.resource()?,
            workspace: ports.workspace().into(),
        })
    }

    fn inputs(on: &mut Inputs<Self>) {
        on.message("input", Self::decode);
    }
}

/// A document under way, and what its parts inherit from it.
struct Source {
    id: String,
    root: String,
    collection: String,
    kind: Kind,
    /// A name made from the content.
    content: String,
    unit: Unit,
    count: usize,
}

/// Parts that give no text.
struct Loss {
    first: usize,
    last: usize,
    problem: Problem,
}

/// A part with its text, or what ended the reading early.
enum Found {
    Text(usize, String),
    Lost(Loss),
    Failed(Problem),
}

impl DocumentDecoder {
    async fn decode(self: Arc<Self>, document: Document) -> Result<(), Failure> {
        let metadata = document.metadata.clone().unwrap_or_default();
        let id = first_set([&document.document_id, &metadata.id])
            .ok_or_else(|| Failure::never("the document has neither a document_id nor a metadata id"))?;
        let root = first_set([&metadata.root, id]).unwrap_or(id);
        match self.decode_as(&document, &metadata, id, root).await {
            Err(Failure::Never(reason)) if self.librarian.was_removed(root).await => {
                tracing::info!(document = root, reason, "a document was removed while it was being decoded");
                Ok(())
            }
            done => done,
        }
    }

    async fn decode_as(
        &self,
        document: &Document,
        metadata: &Metadata,
        id: &str,
        root: &str,
    ) -> Result<(), Failure> {
        let declared = self.declared(document, id).await?;
        let mut slot = None;
        // Small texts are read here. Of everything else only as many are in memory as are being read.
        let content = match self.small_text(document, &declared, id).await? {
            Some(content) => content,
            None => {
                slot = Some(self.decoding.slot(&self.workspace).await);
                self.content(document, id).await?
            }
        };
        let name = named_by(content.clone()).await?;
        let mut reading = match plain(&declared, &content).map_err(Failure::never)? {
            Some(kind) => self.decoding.open_plain(kind, &declared, content.clone()).await?,
            None => {
                if slot.is_none() {
                    slot = Some(self.decoding.slot(&self.workspace).await);
                }
                self.decoding.open(&declared, &content).await?
            }
        };
        let (kind, unit, count) = match reading.next().await? {
            Event::Begin { kind, unit, count } => (kind, unit, count),
            Event::Failed(problem) => {
                return self.nothing_read(id, root, &metadata.collection, problem).await;
            }
            other => return Err(Failure::never(format!("reading the document began with {other:?}"))),
        };
        if document.document_id.is_empty() {
            // Whoever sent the content along may not have told the librarian; a part needs something to be a part of.
            self.librarian.save_source(id, kind.mime(), &content).await?;
        }
        drop(content);
        let source = Source {
            id: id.to_owned(),
            root: root.to_owned(),
            collection: metadata.collection.clone(),
            kind,
            content: name,
            unit,
            count,
        };
        self.announce(&source).await?;
        let done = self.read(&source, reading).await;
        drop(slot);
        done
    }

    /// The kind that a document was declared as.
    async fn declared(&self, document: &Document, id: &str) -> Result<String, Failure> {
        if document.document_id.is_empty() {
            return Ok(String::new());
        }
        let metadata = self.librarian.metadata(id).await?;
        let metadata =
            metadata.ok_or_else(|| Failure::never(format!("the librarian has no document '{id}'")))?;
        Ok(metadata.kind)
    }

    /// The content of a document that is small and may be text.
    async fn small_text(
        &self,
        document: &Document,
        declared: &str,
        id: &str,
    ) -> Result<Option<Bytes>, Failure> {
        if document.document_id.is_empty() {
            let is_small = document.data.len() / 4 * 3 < PLAIN_BYTES_MAX;
            return if is_small { sent_along(document, id).map(Some) } else { Ok(None) };
        }
        if !Kind::of_mime(declared).is_some_and(Kind::is_plain) {
            return Ok(None);
        }
        Ok(self.librarian.small_content(id, PLAIN_BYTES_MAX).await?.map(Bytes::from))
    }

    async fn content(&self, document: &Document, id: &str) -> Result<Bytes, Failure> {
        if document.document_id.is_empty() {
            return sent_along(document, id);
        }
        let bytes_max = self.decoding.config().document_bytes_max;
        self.librarian.content_up_to(id, bytes_max).await.map(Bytes::from)
    }

    /// A document of which nothing could be read: blank ones are told, others are parked as well.
    async fn nothing_read(
        &self,
        id: &str,
        root: &str,
        collection: &str,
        problem: Problem,
    ) -> Result<(), Failure> {
        if problem.kind != ProblemKind::Empty {
            return Err(Failure::never(problem));
        }
        let report = no_text("decoder", id, root, collection);
        self.progress.report(StageReport { reason: problem.reason, ..report }).await
    }

    async fn announce(&self, source: &Source) -> Result<(), Failure> {
        let ids: Vec<String> = (1..=source.count).map(|number| source.part_id(number)).collect();
        for (batch, ids) in ids.chunks(REPORTED_MAX).enumerate() {
            self.progress.report(source.report("announced", &batch.to_string(), ids.to_vec(), "")).await?;
        }
        Ok(())
    }

    /// Saves and sends parts as they come, in order; tells what was lost once all is known.
    async fn read(&self, source: &Source, reading: Reading) -> Result<(), Failure> {
        let made_at = provenance::now();
        let mut losses = Vec::new();
        let mut failed = None;
        let mut sent = 0;
        let mut parts = found(reading)
            .map(|found| async move {
                let found = found?;
                if let Found::Text(number, text) = &found {
                    self.save(source, *number, text).await?;
                }
                Ok::<Found, Failure>(found)
            })
            .buffered(SAVES_MAX)
            .boxed();
        let mut heard = 0;
        while let Some(found) = parts.try_next().await? {
            match found {
                Found::Text(number, text) => {
                    self.send(source, number, text, &made_at).await?;
                    heard = number;
                    sent += 1;
                }
                Found::Lost(loss) => {
                    heard = heard.max(if loss.first <= source.count { loss.last } else { heard });
                    losses.push(loss);
                }
                Found::Failed(problem) => failed = Some(problem),
            }
        }
        let Some(problem) = failed else { return self.tell(source, &losses).await };
        if problem.kind == ProblemKind::Empty && sent == 0 {
            // All parts are blank: one line says so.
            return self.tell(source, &[Loss { first: 1, last: source.count, problem }]).await;
        }
        if heard < source.count {
            // Why the rest is lost is told with the document that is parked.
            let problem = Problem { reason: String::new(), ..problem.clone() };
            losses.push(Loss { first: heard + 1, last: source.count, problem });
        }
        self.tell(source, &losses).await?;
        Err(Failure::never(problem))
    }

    async fn save(&self, source: &Source, number: usize, text: &str) -> Result<(), Failure> {
        let (id, title) = (source.part_id(number), source.title(number));
        let document_type = source.unit.name();
        let part = Saved { id: &id, parent_id: &source.id, document_type, title: &title, text };
        self.librarian.save_in(&source.collection, part).await
    }

    async fn send(&self, source: &Source, number: usize, text: String, made_at: &str) -> Result<(), Failure> {
        let (id, title) = (source.part_id(number), source.title(number));
        let metadata =
            Metadata { id: id.clone(), root: source.root.clone(), collection: source.collection.clone() };
        let mime_type = source.kind.mime().to_owned();
        let kind = match source.unit {
            Unit::Page => PartKind::Page { number, mime_type },
            Unit::Section => PartKind::Section { mime_type },
        };
        let part = Part { id: &id, parent: &source.id, component: COMPONENT, title: &title, kind };
        let triples = part.triples(made_at);
        self.triples.send(&Triples { metadata: Some(metadata.clone()), triples }).await?;
        let text = if text.len() <= INLINE_BYTES_MAX { text } else { String::new() };
        self.texts.send(&TextDocument { metadata: Some(metadata), text, document_id: id }).await
    }

    /// Tells which parts are lost: a line for each reason, one line for all that are blank.
    async fn tell(&self, source: &Source, losses: &[Loss]) -> Result<(), Failure> {
        let is_blank = |loss: &&Loss| loss.problem.kind == ProblemKind::Empty && losses.len() > 1;
        let blank: Vec<usize> = losses.iter().filter(is_blank).map(|loss| loss.first).collect();
        if !blank.is_empty() {
            let names = source.named(&blank);
            let reason = format!("{names} without text, left out: blank, or a picture of text");
            self.skip(source, &blank, &reason).await?;
        }
        for loss in losses.iter().filter(|loss| !is_blank(loss)) {
            // Those beyond the last that is read were never announced: the first of them stands for all.
            let last = if loss.first > source.count { loss.first } else { loss.last };
            let numbers: Vec<usize> = (loss.first..=last).collect();
            self.skip(source, &numbers, &loss.problem.reason).await?;
        }
        Ok(())
    }

    async fn skip(&self, source: &Source, numbers: &[usize], reason: &str) -> Result<(), Failure> {
        for (batch, numbers) in numbers.chunks(REPORTED_MAX).enumerate() {
            let ids: Vec<String> = numbers.iter().map(|number| source.part_id(*number)).collect();
            let reason = if batch == 0 { reason } else { "" };
            let name = ids.first().cloned().unwrap_or_default();
            self.progress.report(source.report("skipped", &name, ids, reason)).await?;
        }
        Ok(())
    }
}

/// The content that came with a message.
fn sent_along(document: &Document, id: &str) -> Result<Bytes, Failure> {
    let content = BASE64.decode(&document.data);
    let told = |error| Failure::never(format!("the data of '{id}' is not base64: {error}"));
    content.map(Bytes::from).map_err(told)
}

/// A name made from a content.
async fn named_by(content: Bytes) -> Result<String, Failure> {
    if content.len() < PLAIN_BYTES_MAX {
        return Ok(format!("{:x}", Sha256::digest(&content)));
    }
    let name = tokio::task::spawn_blocking(move || format!("{:x}", Sha256::digest(&content)));
    name.await.map_err(Failure::again)
}

/// What a reading finds, up to its end.
fn found(reading: Reading) -> impl stream::Stream<Item = Result<Found, Failure>> {
    stream::unfold(Some(reading), |reading| async {
        let mut reading = reading?;
        match reading.next().await {
            Ok(Event::Part { number, text }) => Some((Ok(Found::Text(number, text)), Some(reading))),
            Ok(Event::Lost { first, last, problem }) => {
                Some((Ok(Found::Lost(Loss { first, last, problem })), Some(reading)))
            }
            Ok(Event::Failed(problem)) => Some((Ok(Found::Failed(problem)), None)),
            Ok(Event::End | Event::Begin { .. }) => None,
            Err(failure) => Some((Err(failure), None)),
        }
    })
}

impl Source {
    fn part_id(&self, number: usize) -> String {
        let unit = self.unit.name();
        let number = number.to_string();
        let uuid = provenance::derived_uuid(&[
            unit,
            &self.id,
            &self.collection,
            &self.content,
            READER_VERSION,
            &number,
        ]);
        format!("urn:{unit}:{uuid}")
    }

    fn title(&self, number: usize) -> String {
        match self.unit {
            Unit::Page => format!("Page {number}"),
            Unit::Section => format!("Section {number}"),
        }
    }

    /// For people: `page 3`, `pages 3, 7-9`.
    fn named(&self, numbers: &[usize]) -> String {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for number in numbers {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == *number => *last = *number,
                _ => runs.push((*number, *number)),
            }
        }
        let run = |(first, last): &(usize, usize)| {
            if first == last { first.to_string() } else { format!("{first}-{last}") }
        };
        let runs: Vec<String> = runs.iter().map(run).collect();
        let plural = if numbers.len() > 1 { "s" } else { "" };
        format!("{}{plural} {}", self.unit.name(), runs.join(", "))
    }

    fn report(&self, event: &str, name: &str, pieces: Vec<String>, reason: &str) -> StageReport {
        StageReport {
            id: format!("decoder:{event}:{}:{name}", self.id),
            document_id: self.root.clone(),
            collection: self.collection.clone(),
            stage: "decoder".to_owned(),
            event: event.to_owned(),
            unit: "text".to_owned(),
            count: i64::try_from(pieces.len()).unwrap_or(i64::MAX),
            pieces,
            reason: reason.to_owned(),
            ..Default::default()
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn source(content: &str) -> Source {
        Source {
            id: "urn:d".to_owned(),
            root: "urn:d".to_owned(),
            collection: "default".to_owned(),
            kind: Kind::Pdf,
            content: content.to_owned(),
            unit: Unit::Page,
            count: 9,
        }
    }

    #[test]
    fn parts_of_the_same_content_have_the_same_ids() {
        assert_eq!(source("a").part_id(3), source("a").part_id(3));
        assert_ne!(source("a").part_id(3), source("a").part_id(4));
        assert_ne!(source("a").part_id(3), source("b").part_id(3));
        assert!(source("a").part_id(3).starts_with("urn:page:"));
    }

    #[test]
    fn pages_are_named_as_people_would() {
        assert_eq!(source("a").named(&[3]), "page 3");
        assert_eq!(source("a").named(&[1, 3, 4, 5, 9]), "pages 1, 3-5, 9");
    }
}
