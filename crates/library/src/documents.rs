//! Documents at rest: a row of metadata in the tables, the content among the blobs, and three indexes (children of a
//! document, documents that a plain listing shows, parts that were made of a document for a collection).
//!
//! Content is stored before the row that names it and removed before it, so a row's content is there unless its removal
//! was cut short; then the document is still listed and can be removed again. Children are found through an index that
//! outlives their parent's row until they are gone too, so the removal of a tree can be repeated until it is whole.

use std::sync::Arc;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sluice_schema::listing::{self, Page};
use sluice_schema::message::{Criteria, DocumentMetadata};
use sluice_schema::{ceilings, wire};
use sluice_store::embedded::{Owner, Owners};
use sluice_store::{Batch, Blobs, ErrorKind, Found, Read};

use crate::Error;
use crate::rows::{self, Row, Rows, check_id, key, prefix};

pub(crate) const DOCUMENTS: &str = "library-documents";
const LISTED: &str = "library-listed";
const CHILDREN: &str = "library-children";
/// By collection, document and part.
const MADE: &str = "library-made";

/// Says of content which document it is of.
pub const OWNERS: Owners = Owners { table: DOCUMENTS, of: owner_of };
/// Characters of a title that an error shows.
const TITLE_CHARS_SHOWN: usize = 80;

/// The largest document, in bytes.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// Rows removed in one step.
const REMOVE_ROWS: usize = 500;
/// Rows moved at once while a tree goes: with the longest ids they fit what a full disk leaves for removals.
const ADOPT_ROWS: usize = 32;
/// Rows of documents that a list reads at once.
const LISTED_ROWS: usize = 32;
/// Tries of a write that loses against other writers.
pub(crate) const CONFLICT_TRIES_MAX: usize = 8;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Base64 as it goes out.
pub(crate) fn to_base64(content: &[u8]) -> String {
    BASE64.encode(content)
}

/// Base64 as it comes in; line breaks and blanks in it are fine.
pub(crate) fn from_base64(text: &str) -> Result<Bytes, Error> {
    let decoded = match BASE64.decode(text.as_bytes()) {
        Err(_) if text.contains(|c: char| c.is_ascii_whitespace()) => {
            BASE64.decode(text.split_ascii_whitespace().collect::<String>())
        }
        other => other,
    };
    decoded.map(Bytes::from).map_err(|error| {
        Error::request(format!(
            "the content is not valid base64: {error}; encode the file's bytes as standard base64"
        ))
    })
}

/// A document's row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Document {
    /// The blob that holds the content.
    pub(crate) object: String,
    /// Its size.
    pub(crate) bytes: u64,
    pub(crate) metadata: DocumentMetadata,
    /// Of a part: the document that it was made from in the end.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) root: String,
    /// Of a part: the collection that it was made for, if its maker told.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) collection: String,
}

impl Document {
    /// A document of its own.
    pub(crate) const fn whole(object: String, bytes: u64, metadata: DocumentMetadata) -> Self {
        Self { object, bytes, metadata, root: String::new(), collection: String::new() }
    }

    /// Which one it is, for people.
    fn name(&self, workspace: &str) -> String {
        let DocumentMetadata { id, title, .. } = &self.metadata;
        let title: String = title.chars().take(TITLE_CHARS_SHOWN).collect();
        let title = if title.is_empty() { title } else { format!(" ({title:?})") };
        match &*self.root {
            "" => format!("document '{id}'{title} of workspace '{workspace}'"),
            root => format!("part '{id}'{title} of document '{root}' of workspace '{workspace}'"),
        }
    }

    /// The key that says that it was made for a collection.
    fn made_key(&self, workspace: &str) -> Option<Vec<u8>> {
        let is_made = !self.collection.is_empty() && !self.root.is_empty();
        is_made.then(|| key(&[workspace, &self.collection, &self.root, &self.metadata.id]))
    }

    fn is_listed(&self) -> bool {
        self.metadata.parent_id.is_empty() && self.metadata.document_type != "answer"
    }
}

/// The content that the record of a document names, and which document that is.
fn owner_of(key: &[u8], record: &[u8]) -> Option<Owner> {
    let document: Document = serde_json::from_slice(record).ok()?;
    let workspace = key.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = document.name(&String::from_utf8_lossy(workspace));
    Some(Owner { content: document.object, name })
}

/// The documents of all workspaces.
#[derive(Clone)]
pub(crate) struct Documents {
    pub(crate) rows: Rows,
    pub(crate) blobs: Arc<dyn Blobs>,
}

impl Documents {
    pub(crate) fn new(rows: Rows, blobs: Arc<dyn Blobs>) -> Self {
        Self { rows, blobs }
    }

    /// Takes in a document with its content; `batch` is committed with it.
    pub(crate) async fn add(
        &self,
        workspace: &str,
        mut metadata: DocumentMetadata,
        content: Bytes,
        batch: Batch,
    ) -> Result<(), Error> {
        check_new(&mut metadata)?;
        if content.is_empty() && metadata.document_type == "source" {
            return Err(Error::request(format!(
                "document '{}' is empty: send its content as base64",
                metadata.id
            )));
        }
        self.check_absent(workspace, &metadata.id).await?;
        let bytes = content.len() as u64;
        let object = new_object();
        self.blobs.put(&object, content).await?;
        self.shelve(workspace, Document::whole(object, bytes, metadata), batch).await
    }

    /// Takes in a part of a document. A part that is there already with the same content is fine: whoever adds parts may
    /// have to do so twice.
    pub(crate) async fn add_child(
        &self,
        workspace: &str,
        mut metadata: DocumentMetadata,
        content: Bytes,
        collection: &str,
    ) -> Result<(), Error> {
        check_id("parent document", &metadata.parent_id)?;
        if metadata.document_type.is_empty() || metadata.document_type == "source" {
            metadata.document_type = "extracted".to_owned();
        }
        check_new(&mut metadata)?;
        let parent_key = key(&[workspace, &metadata.parent_id]);
        for _ in 0..CONFLICT_TRIES_MAX {
            let Some(parent) = self.rows.get::<Document>(DOCUMENTS, &parent_key).await? else {
                return Err(Error::request(format!(
                    "parent document '{}' is not in the library; add it first",
                    metadata.parent_id
                )));
            };
            if let Some(known) = self.find(workspace, &metadata.id).await? {
                let same = known.is.metadata.parent_id == metadata.parent_id
                    && known.is.metadata.kind == metadata.kind
                    && self.whole(workspace, &known.is).await?.is_some_and(|stored| stored == content);
                return if same { Ok(()) } else { Err(Error::Exists(metadata.id)) };
            }
            let object = new_object();
            self.blobs.put(&object, content.clone()).await?;
            let mut batch = Batch::new();
            batch.expect_value(DOCUMENTS, &parent_key, parent.raw);
            let of = parent.is;
            let document = Document {
                object,
                bytes: content.len() as u64,
                metadata: metadata.clone(),
                root: if of.root.is_empty() { of.metadata.id } else { of.root },
                collection: collection.to_owned(),
            };
            match self.shelve(workspace, document, batch).await {
                // The parent changed or went, or the same child was added meanwhile: look again.
                Err(error) if rows::is_conflict(&error) || matches!(error, Error::Exists(_)) => {}
                done => return done,
            }
        }
        Err(Error::request(format!("document '{}' keeps changing; try again", metadata.parent_id)))
    }

    /// Writes the row and the indexes of a document whose content is stored, with whatever else `batch` holds. When that
    /// fails for sure, the content goes again.
    pub(crate) async fn shelve(
        &self,
        workspace: &str,
        document: Document,
        mut batch: Batch,
    ) -> Result<(), Error> {
        let id = &document.metadata.id;
        let row_key = key(&[workspace, id]);
        batch.expect_absent(DOCUMENTS, &row_key).put(DOCUMENTS, &row_key, rows::encode(&document));
        if document.is_listed() {
            batch.put(LISTED, &row_key, Bytes::new());
        }
        if !document.metadata.parent_id.is_empty() {
            batch.put(CHILDREN, key(&[workspace, &document.metadata.parent_id, id]), Bytes::new());
        }
        if let Some(made) = document.made_key(workspace) {
            batch.put(MADE, made, Bytes::new());
        }
        let failed = match self.rows.commit(batch).await {
            Ok(()) => return Ok(()),
            Err(Error::Store(error)) => error,
            Err(error) => return Err(error),
        };
        if failed.kind() != ErrorKind::OutcomeUnknown
            && let Err(error) = self.blobs.remove(&document.object).await
        {
            tracing::warn!(object = document.object, %error, "content that no document names could not be removed");
        }
        let lost_the_id =
            matches!(&failed, sluice_store::Error::Conflict { raw_key, .. } if *raw_key == row_key);
        Err(if lost_the_id { Error::Exists(document.metadata.id) } else { failed.into() })
    }

    /// Changes what may be changed: time, title, comments, metadata, tags.
    pub(crate) async fn update(&self, workspace: &str, wanted: DocumentMetadata) -> Result<(), Error> {
        for _ in 0..CONFLICT_TRIES_MAX {
            let Row { is: mut document, raw } = self.get(workspace, &wanted.id).await?;
            document.metadata.time = wanted.time;
            document.metadata.title.clone_from(&wanted.title);
            document.metadata.comments.clone_from(&wanted.comments);
            document.metadata.metadata.clone_from(&wanted.metadata);
            document.metadata.tags.clone_from(&wanted.tags);
            check_size(&document.metadata)?;
            let row_key = key(&[workspace, &wanted.id]);
            let mut batch = Batch::new();
            batch.expect_value(DOCUMENTS, &row_key, raw).put(DOCUMENTS, &row_key, rows::encode(&document));
            match self.rows.commit(batch).await {
                Err(error) if rows::is_conflict(&error) => {}
                done => return done,
            }
        }
        Err(Error::request(format!("document '{}' keeps changing; try again", wanted.id)))
    }

    /// Checks that there is something of a document to remove.
    pub(crate) async fn check_removable(&self, workspace: &str, id: &str) -> Result<(), Error> {
        let is_there = self.find(workspace, id).await?.is_some()
            || !self.rows.page(CHILDREN, &prefix(&[workspace, id]), 1).await?.is_empty();
        if is_there { Ok(()) } else { Err(unknown(id)) }
    }

    /// Removes a document with all its parts. What is not there is fine.
    pub(crate) async fn remove_tree(&self, workspace: &str, id: &str) -> Result<(), Error> {
        let children = prefix(&[workspace, id]);
        let found = self.find(workspace, id).await?;
        self.remove_rows(workspace, &[id.to_owned()]).await?;
        loop {
            let page = self.rows.page(CHILDREN, &children, REMOVE_ROWS).await?;
            if page.is_empty() {
                break;
            }
            let ids: Vec<String> = page.iter().map(|(key, _)| rows::last_part(key)).collect();
            self.remove_rows(workspace, &ids).await?;
            for child in &ids {
                self.adopt_children(workspace, child, id).await?;
            }
            let mut batch = Batch::new();
            for (key, _) in &page {
                batch.delete(CHILDREN, key);
            }
            self.rows.commit(batch).await?;
        }
        if let Some(parent) = found.map(|row| row.is.metadata.parent_id).filter(|parent| !parent.is_empty()) {
            let mut batch = Batch::new();
            batch.delete(CHILDREN, key(&[workspace, &parent, id]));
            self.rows.commit(batch).await?;
        }
        Ok(())
    }

    /// Removes the parts that were made for a collection, of one document or of all (`root` empty). Parts of those parts
    /// that were made for something else become parts of the document.
    pub(crate) async fn remove_made(
        &self,
        workspace: &str,
        root: &str,
        collection: &str,
    ) -> Result<(), Error> {
        let under = if root.is_empty() {
            prefix(&[workspace, collection])
        } else {
            prefix(&[workspace, collection, root])
        };
        let start = prefix(&[workspace, collection]).len();
        loop {
            let page = self.rows.page(MADE, &under, REMOVE_ROWS).await?;
            if page.is_empty() {
                return Ok(());
            }
            let mut parts = Vec::with_capacity(page.len());
            for (made, _) in &page {
                let names = String::from_utf8_lossy(&made[start..]).into_owned();
                parts.extend(names.split_once('\0').map(|(root, id)| (root.to_owned(), id.to_owned())));
            }
            let mut batch = Batch::new();
            for (root, id) in &parts {
                self.adopt_children(workspace, id, root).await?;
                if let Some(part) = self.find(workspace, id).await? {
                    batch.delete(CHILDREN, key(&[workspace, &part.is.metadata.parent_id, id]));
                }
                batch.delete(CHILDREN, key(&[workspace, root, id]));
            }
            for (made, _) in &page {
                batch.delete(MADE, made);
            }
            let ids: Vec<String> = parts.into_iter().map(|(_, id)| id).collect();
            self.remove_rows(workspace, &ids).await?;
            self.rows.commit(batch).await?;
        }
    }

    /// Removes contents and rows; the children index stays.
    async fn remove_rows(&self, workspace: &str, ids: &[String]) -> Result<(), Error> {
        let reads = ids.iter().map(|id| Read::get(DOCUMENTS, key(&[workspace, id]))).collect();
        let found = self.rows.read(reads).await?;
        let mut batch = Batch::new();
        for (id, raw) in ids.iter().zip(found) {
            let row_key = key(&[workspace, id]);
            if let Some(raw) = raw.into_value() {
                let document: Document = rows::decode(DOCUMENTS, &row_key, &raw)?;
                self.blobs.remove(&document.object).await?;
                if let Some(made) = document.made_key(workspace) {
                    batch.delete(MADE, made);
                }
            }
            batch.delete(DOCUMENTS, &row_key).delete(LISTED, &row_key);
        }
        self.rows.commit(batch).await
    }

    /// Moves the children of a document that is gone under the root whose tree is being removed.
    async fn adopt_children(&self, workspace: &str, gone: &str, root: &str) -> Result<(), Error> {
        loop {
            let page = self.rows.page(CHILDREN, &prefix(&[workspace, gone]), ADOPT_ROWS).await?;
            if page.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::new();
            batch.essential();
            for (old, _) in &page {
                let child = rows::last_part(old);
                batch.put(CHILDREN, key(&[workspace, root, &child]), Bytes::new()).delete(CHILDREN, old);
            }
            self.rows.commit(batch).await?;
        }
    }

    /// A document's row.
    pub(crate) async fn get(&self, workspace: &str, id: &str) -> Result<Row<Document>, Error> {
        self.find(workspace, id).await?.ok_or_else(|| unknown(id))
    }

    /// A document's row, if it is there.
    pub(crate) async fn find(&self, workspace: &str, id: &str) -> Result<Option<Row<Document>>, Error> {
        check_id("document", id)?;
        self.rows.get(DOCUMENTS, &key(&[workspace, id])).await
    }

    pub(crate) async fn check_absent(&self, workspace: &str, id: &str) -> Result<(), Error> {
        match self.find(workspace, id).await? {
            None => Ok(()),
            Some(_) => Err(Error::Exists(id.to_owned())),
        }
    }

    /// The whole content of a document, if it is there.
    async fn whole(&self, workspace: &str, document: &Document) -> Result<Option<Bytes>, Error> {
        let content = self.blobs.get(&document.object).await;
        content.map_err(|error| error.of(document.name(workspace)).into())
    }

    /// Up to `bytes_max` bytes of a document's content from `offset`.
    pub(crate) async fn content(
        &self,
        workspace: &str,
        document: &Document,
        offset: u64,
        bytes_max: u64,
    ) -> Result<Bytes, Error> {
        let wanted = bytes_max.min(document.bytes.saturating_sub(offset));
        let content = self.blobs.get_range(&document.object, offset, bytes_max).await;
        let content = content.map_err(|error| error.of(document.name(workspace)))?;
        content.filter(|content| content.len() as u64 == wanted).ok_or_else(|| {
            Error::request(format!(
                "the content of document '{}' is gone: it was removed meanwhile, or lost; remove the document and add it again, or restore a backup",
                document.metadata.id
            ))
        })
    }

    /// Documents that fit the criteria: those without a parent that are no answers, or really all.
    pub(crate) async fn list(
        &self,
        workspace: &str,
        include_children: bool,
        criteria: &[Criteria],
        cursor: &str,
        mut page: Page<DocumentMetadata>,
    ) -> Result<Page<DocumentMetadata>, Error> {
        for criterion in criteria {
            fits(&DocumentMetadata::default(), criterion)?;
        }
        let under = prefix(&[workspace]);
        if !include_children {
            return self.named_by(LISTED, workspace, &under, criteria, cursor, page).await;
        }
        let range = rows::behind(&under, cursor);
        self.rows
            .scan_range(DOCUMENTS, range, LISTED_ROWS, |key, raw| {
                let document: Document = rows::decode(DOCUMENTS, key, raw)?;
                take(&mut page, document, listing::row_bytes(raw), criteria)
            })
            .await?;
        Ok(page)
    }

    /// Direct children of a document.
    pub(crate) async fn children(
        &self,
        workspace: &str,
        id: &str,
        cursor: &str,
        page: Page<DocumentMetadata>,
    ) -> Result<Page<DocumentMetadata>, Error> {
        self.get(workspace, id).await?;
        self.named_by(CHILDREN, workspace, &prefix(&[workspace, id]), &[], cursor, page).await
    }

    /// The documents that an index names.
    async fn named_by(
        &self,
        index: &'static str,
        workspace: &str,
        under: &[u8],
        criteria: &[Criteria],
        cursor: &str,
        mut page: Page<DocumentMetadata>,
    ) -> Result<Page<DocumentMetadata>, Error> {
        let mut range = rows::behind(under, cursor);
        loop {
            let found = self.rows.read(vec![Read::range(index, range.clone(), LISTED_ROWS)]).await?.pop();
            let entries = found.map(Found::into_rows).unwrap_or_default();
            let keys: Vec<Vec<u8>> =
                entries.rows.iter().map(|(entry, _)| key(&[workspace, &rows::last_part(entry)])).collect();
            let found = self.rows.read(keys.iter().map(|key| Read::get(DOCUMENTS, key)).collect()).await?;
            for (key, raw) in keys.iter().zip(found.into_iter().map(Found::into_value)) {
                // One that went between the two reads is not there any more.
                let Some(raw) = raw else { continue };
                let document: Document = rows::decode(DOCUMENTS, key, &raw)?;
                if !take(&mut page, document, listing::row_bytes(&raw), criteria)? {
                    return Ok(page);
                }
            }
            match entries.rows.last() {
                Some((last, _)) if entries.more => range = range.after(last),
                _ => return Ok(page),
            }
        }
    }
}

/// Checks the metadata of a document to add and fills in its type.
pub(crate) fn check_new(metadata: &mut DocumentMetadata) -> Result<(), Error> {
    check_id("document", &metadata.id)?;
    if metadata.kind.is_empty() {
        return Err(Error::request(format!(
            "document '{}' has no kind: say its MIME type, for example text/plain",
            metadata.id
        )));
    }
    if !metadata.parent_id.is_empty() {
        check_id("parent document", &metadata.parent_id)?;
    }
    if metadata.document_type.is_empty() {
        metadata.document_type = "source".to_owned();
    }
    check_size(metadata)
}

/// Refuses metadata beyond their ceiling.
fn check_size(metadata: &DocumentMetadata) -> Result<(), Error> {
    let bytes = wire::encode(metadata).len();
    let what = format_args!("the metadata of document '{}'", metadata.id);
    ceilings::within(what, bytes, ceilings::DOCUMENT_METADATA_BYTES_MAX).map_err(Error::Told)
}

pub(crate) fn new_object() -> String {
    format!("doc/{}", uuid::Uuid::new_v4())
}

fn unknown(id: &str) -> Error {
    Error::NotFound(format!("document '{id}' is not in the library"))
}

/// Puts a document on a page if it fits the criteria; whether the page has room for more. Its row is larger than what is
/// told of it.
fn take(
    page: &mut Page<DocumentMetadata>,
    document: Document,
    row_bytes: usize,
    criteria: &[Criteria],
) -> Result<bool, Error> {
    for criterion in criteria {
        if !fits(&document.metadata, criterion)? {
            return Ok(true);
        }
    }
    let id = document.metadata.id.clone();
    page.take(&id, row_bytes, document.metadata).map_err(Error::Told)
}

fn fits(document: &DocumentMetadata, criterion: &Criteria) -> Result<bool, Error> {
    let values: Vec<&str> = match criterion.key.as_str() {
        "id" => vec![&document.id],
        "kind" => vec![&document.kind],
        "title" => vec![&document.title],
        "comments" => vec![&document.comments],
        "parent-id" | "parent_id" => vec![&document.parent_id],
        "document-type" | "document_type" => vec![&document.document_type],
        "tags" | "tag" => document.tags.iter().map(String::as_str).collect(),
        other => {
            return Err(Error::request(format!(
                "documents cannot be filtered by '{other}'; use id, kind, title, comments, parent-id, document-type or tags"
            )));
        }
    };
    let wanted = criterion.value.as_str();
    Ok(match criterion.operator.as_str() {
        "" | "=" | "==" | "eq" => values.contains(&wanted),
        "!=" | "ne" => !values.contains(&wanted),
        "contains" => values.iter().any(|value| value.contains(wanted)),
        "starts-with" => values.iter().any(|value| value.starts_with(wanted)),
        other => {
            return Err(Error::request(format!(
                "criteria know no operator '{other}'; use =, !=, contains or starts-with"
            )));
        }
    })
}
