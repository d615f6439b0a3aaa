//! Documents that arrive in parts, in any order, over as many connections as it takes.
//!
//! A session is a row; each part is a blob and a row that says it is there. Completing joins the parts into the content
//! of a new document and writes document and session in one step, so that it can be repeated.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sluice_schema::listing::Page;
use sluice_schema::message::{DocumentMetadata, LibrarianResponse, UploadSession};
use sluice_schema::wire;
use sluice_store::Batch;
use tokio::sync::Mutex;

use crate::Error;
use crate::clock;
use crate::documents::{self, DOCUMENT_BYTES_MAX, Document, Documents};
use crate::removals::{Removals, Scope};
use crate::rows::{self, Row, check_id, key, prefix};

const SESSIONS: &str = "library-uploads";
const PARTS: &str = "library-upload-parts";

/// The part size when the caller names none, in bytes.
const PART_BYTES_DEFAULT: u64 = 2 * 1024 * 1024;
/// The largest part, in bytes: as base64 it has to fit a message.
const PART_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// The most parts of one upload.
const PARTS_MAX: u64 = 10_000;
/// How long an upload may take.
const SESSION_SECONDS_MAX: i64 = 24 * 3_600;
/// Sessions of one workspace at a time.
const SESSIONS_MAX: usize = 1_000;
/// Sessions read at once.
const SESSIONS_READ: usize = 32;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Session {
    metadata: DocumentMetadata,
    total_bytes: u64,
    part_bytes: u64,
    created_seconds: i64,
    created_at: String,
    /// The object of the finished document.
    completed: Option<String>,
}

impl Session {
    fn parts(&self) -> u64 {
        self.total_bytes.div_ceil(self.part_bytes)
    }

    fn bytes_of(&self, index: u64) -> u64 {
        self.part_bytes.min(self.total_bytes - index * self.part_bytes)
    }

    fn is_expired(&self) -> bool {
        clock::seconds() - self.created_seconds > SESSION_SECONDS_MAX
    }
}

/// What is kept in mind of a session, so that beginning another one reads none of them.
#[derive(Debug, Clone, Copy)]
struct Begun {
    at_seconds: i64,
    is_completed: bool,
}

impl Begun {
    fn is_expired(&self) -> bool {
        clock::seconds() - self.at_seconds > SESSION_SECONDS_MAX
    }
}

impl From<&Session> for Begun {
    fn from(session: &Session) -> Self {
        Self { at_seconds: session.created_seconds, is_completed: session.completed.is_some() }
    }
}

/// Uploads of all workspaces.
#[derive(Clone)]
pub(crate) struct Uploads {
    documents: Documents,
    removals: Removals,
    /// Sessions by workspace and id, of workspaces in which one was begun since the start. Only this process writes them. One
    /// may be in here that is gone or was never written, and counts until it expires; none is left out.
    begun: Arc<Mutex<HashMap<String, HashMap<String, Begun>>>>,
}

impl Uploads {
    pub(crate) fn new(documents: Documents, removals: Removals) -> Self {
        Self { documents, removals, begun: Arc::default() }
    }

    /// Opens a session; the caller must send parts of the size that the answer says.
    pub(crate) async fn begin(
        &self,
        workspace: &str,
        mut metadata: DocumentMetadata,
        total_size: i64,
        chunk_size: i64,
    ) -> Result<LibrarianResponse, Error> {
        documents::check_new(&mut metadata)?;
        // What arrives this way is a document of its own.
        metadata.parent_id.clear();
        "source".clone_into(&mut metadata.document_type);
        let total_bytes = u64::try_from(total_size).ok().filter(|total| *total > 0).ok_or_else(|| {
            Error::request(format!(
                "total-size is {total_size}; it must be the file's size in bytes, above 0"
            ))
        })?;
        if total_bytes > DOCUMENT_BYTES_MAX {
            return Err(Error::request(format!(
                "a document of {total_bytes} bytes is larger than the limit of {DOCUMENT_BYTES_MAX} bytes"
            )));
        }
        self.documents.check_absent(workspace, &metadata.id).await?;
        self.sweep(workspace).await?;
        let upload_id = uuid::Uuid::new_v4().to_string();
        self.admit(workspace, &upload_id).await?;
        let wanted = u64::try_from(chunk_size).ok().filter(|size| *size > 0).unwrap_or(PART_BYTES_DEFAULT);
        let session = Session {
            metadata,
            total_bytes,
            part_bytes: wanted.clamp(total_bytes.div_ceil(PARTS_MAX), PART_BYTES_MAX),
            created_seconds: clock::seconds(),
            created_at: clock::timestamp(SystemTime::now()),
            completed: None,
        };
        let session_key = key(&[workspace, &upload_id]);
        let mut batch = Batch::new();
        batch.expect_absent(SESSIONS, &session_key).put(SESSIONS, &session_key, rows::encode(&session));
        if let Err(error) = self.documents.rows.commit(batch).await {
            // What may have been written counts until it expires.
            let is_in_doubt =
                |inner: &sluice_store::Error| inner.kind() == sluice_store::ErrorKind::OutcomeUnknown;
            if !matches!(&error, Error::Store(inner) if is_in_doubt(inner)) {
                self.is_gone(workspace, &upload_id).await;
            }
            return Err(error);
        }
        Ok(LibrarianResponse {
            upload_id,
            chunk_size: signed(session.part_bytes),
            total_chunks: signed(session.parts()),
            ..Default::default()
        })
    }

    /// Takes a part; one that is sent again takes the place of the first.
    pub(crate) async fn part(
        &self,
        workspace: &str,
        upload_id: &str,
        index: i64,
        content: Bytes,
    ) -> Result<LibrarianResponse, Error> {
        let Row { is: session, raw } = self.open(workspace, upload_id).await?;
        let index = u64::try_from(index).ok().filter(|index| *index < session.parts()).ok_or_else(|| {
            Error::request(format!(
                "chunk-index is {index}; this upload has parts 0 to {}",
                session.parts() - 1
            ))
        })?;
        let (wanted, got) = (session.bytes_of(index), content.len() as u64);
        if wanted != got {
            return Err(Error::request(format!(
                "part {index} has {got} bytes, but must have {wanted}: send parts of the chunk-size that begin-upload answered"
            )));
        }
        self.documents.blobs.put(&blob(workspace, upload_id, index), content).await?;
        let mut batch = Batch::new();
        batch.expect_value(SESSIONS, key(&[workspace, upload_id]), raw).put(
            PARTS,
            part_key(workspace, upload_id, index),
            Bytes::new(),
        );
        match self.documents.rows.commit(batch).await {
            Err(error) if rows::is_conflict(&error) => return Err(unknown(upload_id)),
            done => done?,
        }
        let received = self.received(workspace, upload_id).await?;
        let counts = counts(upload_id, &session, &received);
        Ok(LibrarianResponse { chunk_index: signed(index), ..counts })
    }

    /// Joins the parts into a document.
    pub(crate) async fn complete(
        &self,
        workspace: &str,
        upload_id: &str,
    ) -> Result<LibrarianResponse, Error> {
        check_id("upload", upload_id)?;
        let session_key = key(&[workspace, upload_id]);
        let found = self.documents.rows.get::<Session>(SESSIONS, &session_key).await?;
        let Row { is: session, raw } = found.ok_or_else(|| unknown(upload_id))?;
        if let Some(object_id) = session.completed {
            return Ok(completed(session.metadata.id, &object_id));
        }
        if session.is_expired() {
            return Err(unknown(upload_id));
        }
        let missing = missing(&session, &self.received(workspace, upload_id).await?);
        if !missing.is_empty() {
            let first: Vec<String> = missing.iter().take(10).map(ToString::to_string).collect();
            return Err(Error::request(format!(
                "{} of {} parts are missing, the first: {}; send them, then complete again",
                missing.len(),
                session.parts(),
                first.join(", ")
            )));
        }
        let mut batch = Batch::new();
        self.removals.settle(workspace, &[Scope::document(&session.metadata.id)], &mut batch).await?;
        self.documents.check_absent(workspace, &session.metadata.id).await?;
        self.removals.restore(workspace, &[Scope::document(&session.metadata.id)]).await?;
        let object = documents::new_object();
        self.join(workspace, upload_id, &session, &object).await?;
        let done = Session { completed: Some(object.clone()), ..session.clone() };
        batch
            .expect_value(SESSIONS, &session_key, raw)
            .put(SESSIONS, &session_key, rows::encode(&done))
            .delete_prefix(PARTS, prefix(&[workspace, upload_id]));
        let document = Document::whole(object.clone(), session.total_bytes, session.metadata.clone());
        match self.documents.shelve(workspace, document, batch).await {
            // The session was completed or aborted meanwhile.
            Err(error) if rows::is_conflict(&error) => {
                return match self.documents.rows.get::<Session>(SESSIONS, &session_key).await? {
                    Some(Row { is: Session { completed: Some(object_id), metadata, .. }, .. }) => {
                        Ok(completed(metadata.id, &object_id))
                    }
                    _ => Err(unknown(upload_id)),
                };
            }
            done => done?,
        }
        if let Some(begun) = self.begun.lock().await.get_mut(workspace) {
            begun.insert(upload_id.to_owned(), Begun::from(&done));
        }
        self.remove_blobs(workspace, upload_id, session.parts()).await;
        Ok(completed(session.metadata.id, &object))
    }

    async fn join(
        &self,
        workspace: &str,
        upload_id: &str,
        session: &Session,
        object: &str,
    ) -> Result<(), Error> {
        let mut writer = self.documents.blobs.writer(object).await?;
        for index in 0..session.parts() {
            let part = self.documents.blobs.get(&blob(workspace, upload_id, index)).await?;
            writer.write(part.ok_or_else(|| unknown(upload_id))?).await?;
        }
        writer.finish().await?;
        Ok(())
    }

    /// Forgets an upload and its parts.
    pub(crate) async fn abort(&self, workspace: &str, upload_id: &str) -> Result<(), Error> {
        check_id("upload", upload_id)?;
        let found = self.documents.rows.get::<Session>(SESSIONS, &key(&[workspace, upload_id])).await?;
        let session = found.ok_or_else(|| unknown(upload_id))?.is;
        self.forget(workspace, upload_id, &session).await
    }

    /// What has arrived of an upload. One that is gone counts as expired.
    pub(crate) async fn status(&self, workspace: &str, upload_id: &str) -> Result<LibrarianResponse, Error> {
        check_id("upload", upload_id)?;
        let found = self.documents.rows.get::<Session>(SESSIONS, &key(&[workspace, upload_id])).await?;
        let Some(session) = found.map(|row| row.is).filter(|session| session.completed.is_none()) else {
            return Ok(LibrarianResponse {
                upload_id: upload_id.to_owned(),
                upload_state: "expired".to_owned(),
                ..Default::default()
            });
        };
        let received = self.received(workspace, upload_id).await?;
        let state = if session.is_expired() { "expired" } else { "in-progress" };
        Ok(LibrarianResponse {
            upload_state: state.to_owned(),
            missing_chunks: missing(&session, &received).into_iter().map(signed).collect(),
            received_chunks: received.iter().copied().map(signed).collect(),
            ..counts(upload_id, &session, &received)
        })
    }

    /// Uploads that are not finished.
    pub(crate) async fn list(
        &self,
        workspace: &str,
        cursor: &str,
        mut page: Page<UploadSession>,
    ) -> Result<Page<UploadSession>, Error> {
        let mut after = cursor.to_owned();
        loop {
            let some = self.sessions(workspace, &after).await?;
            for (upload_id, session) in &some {
                if session.completed.is_some() || session.is_expired() {
                    continue;
                }
                let told = self.told(workspace, upload_id, session).await?;
                let bytes = wire::encode(&told).len();
                if !page.take(upload_id, bytes, told).map_err(Error::Told)? {
                    return Ok(page);
                }
            }
            match some.into_iter().next_back() {
                Some((last, _)) => after = last,
                None => return Ok(page),
            }
        }
    }

    /// What a list tells of an upload.
    async fn told(
        &self,
        workspace: &str,
        upload_id: &str,
        session: &Session,
    ) -> Result<UploadSession, Error> {
        let received = self.received(workspace, upload_id).await?;
        let DocumentMetadata { id, time, kind, title, comments, tags, .. } = &session.metadata;
        let shown = serde_json::json!({
            "id": id, "time": time, "kind": kind, "title": title, "comments": comments, "tags": tags
        });
        Ok(UploadSession {
            upload_id: upload_id.to_owned(),
            document_id: id.clone(),
            document_metadata_json: shown.to_string(),
            total_size: signed(session.total_bytes),
            chunk_size: signed(session.part_bytes),
            total_chunks: signed(session.parts()),
            chunks_received: signed(received.len() as u64),
            created_at: session.created_at.clone(),
        })
    }

    /// Removes what is older than a session may get.
    pub(crate) async fn sweep(&self, workspace: &str) -> Result<(), Error> {
        let mut begun = self.begun.lock().await;
        let known = self.known(&mut begun, workspace).await?;
        let expired = known.iter().filter(|(_, begun)| begun.is_expired()).map(|(id, _)| id.clone());
        let expired: Vec<String> = expired.collect();
        drop(begun);
        for upload_id in expired {
            match self.documents.rows.get::<Session>(SESSIONS, &key(&[workspace, &upload_id])).await? {
                Some(row) => self.forget(workspace, &upload_id, &row.is).await?,
                None => self.is_gone(workspace, &upload_id).await,
            }
        }
        Ok(())
    }

    /// Counts a session that is about to begin; refuses it when too many are open.
    async fn admit(&self, workspace: &str, upload_id: &str) -> Result<(), Error> {
        let mut begun = self.begun.lock().await;
        let known = self.known(&mut begun, workspace).await?;
        let open = known.values().filter(|begun| !begun.is_completed).count();
        if open >= SESSIONS_MAX {
            return Err(Error::request(format!(
                "{open} uploads are open in this workspace, which is the limit; complete or abort some (list-uploads)"
            )));
        }
        let now = Begun { at_seconds: clock::seconds(), is_completed: false };
        known.insert(upload_id.to_owned(), now);
        Ok(())
    }

    /// The sessions of a workspace, read where they are not in mind.
    async fn known<'a>(
        &self,
        begun: &'a mut HashMap<String, HashMap<String, Begun>>,
        workspace: &str,
    ) -> Result<&'a mut HashMap<String, Begun>, Error> {
        let known = match begun.remove(workspace) {
            Some(known) => known,
            None => self.read(workspace).await?,
        };
        Ok(begun.entry(workspace.to_owned()).or_insert(known))
    }

    async fn read(&self, workspace: &str) -> Result<HashMap<String, Begun>, Error> {
        let (mut known, mut after) = (HashMap::new(), String::new());
        loop {
            let some = self.sessions(workspace, &after).await?;
            let Some((last, _)) = some.last() else { return Ok(known) };
            after.clone_from(last);
            known.extend(some.iter().map(|(upload_id, session)| (upload_id.clone(), Begun::from(session))));
        }
    }

    async fn is_gone(&self, workspace: &str, upload_id: &str) {
        if let Some(known) = self.begun.lock().await.get_mut(workspace) {
            known.remove(upload_id);
        }
    }

    /// Some uploads behind one, in the order of their ids; none behind the last.
    async fn sessions(&self, workspace: &str, after: &str) -> Result<Vec<(String, Session)>, Error> {
        let range = rows::behind(&prefix(&[workspace]), after);
        let mut sessions = Vec::new();
        self.documents
            .rows
            .scan_range(SESSIONS, range, SESSIONS_READ, |key, raw| {
                sessions.push((rows::last_part(key), rows::decode(SESSIONS, key, raw)?));
                Ok(sessions.len() < SESSIONS_READ)
            })
            .await?;
        Ok(sessions)
    }

    /// An upload that takes parts.
    async fn open(&self, workspace: &str, upload_id: &str) -> Result<Row<Session>, Error> {
        check_id("upload", upload_id)?;
        let found = self.documents.rows.get::<Session>(SESSIONS, &key(&[workspace, upload_id])).await?;
        found
            .filter(|row| row.is.completed.is_none() && !row.is.is_expired())
            .ok_or_else(|| unknown(upload_id))
    }

    async fn received(&self, workspace: &str, upload_id: &str) -> Result<Vec<u64>, Error> {
        let under = prefix(&[workspace, upload_id]);
        let mut received = Vec::new();
        self.documents
            .rows
            .scan(PARTS, &under, |key, _| {
                received.extend(
                    std::str::from_utf8(&key[under.len()..]).ok().and_then(|n| n.parse::<u64>().ok()),
                );
                Ok(true)
            })
            .await?;
        Ok(received)
    }

    async fn forget(&self, workspace: &str, upload_id: &str, session: &Session) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch
            .delete(SESSIONS, key(&[workspace, upload_id]))
            .delete_prefix(PARTS, prefix(&[workspace, upload_id]));
        self.documents.rows.commit(batch).await?;
        self.is_gone(workspace, upload_id).await;
        self.remove_blobs(workspace, upload_id, session.parts()).await;
        Ok(())
    }

    async fn remove_blobs(&self, workspace: &str, upload_id: &str, parts: u64) {
        for index in 0..parts {
            if let Err(error) = self.documents.blobs.remove(&blob(workspace, upload_id, index)).await {
                tracing::warn!(upload_id, index, %error, "a part of a finished upload could not be removed");
            }
        }
    }
}

fn blob(workspace: &str, upload_id: &str, index: u64) -> String {
    format!("upload/{workspace}/{upload_id}/{index}")
}

/// Part numbers of equal length, so that they are read in order.
fn part_key(workspace: &str, upload_id: &str, index: u64) -> Vec<u8> {
    key(&[workspace, upload_id, &format!("{index:05}")])
}

fn missing(session: &Session, received: &[u64]) -> Vec<u64> {
    (0..session.parts()).filter(|index| received.binary_search(index).is_err()).collect()
}

fn counts(upload_id: &str, session: &Session, received: &[u64]) -> LibrarianResponse {
    LibrarianResponse {
        upload_id: upload_id.to_owned(),
        chunks_received: signed(received.len() as u64),
        total_chunks: signed(session.parts()),
        bytes_received: signed(received.iter().map(|index| session.bytes_of(*index)).sum()),
        total_bytes: signed(session.total_bytes),
        ..Default::default()
    }
}

fn completed(document_id: String, object: &str) -> LibrarianResponse {
    let object_id = object.rsplit('/').next().unwrap_or(object).to_owned();
    LibrarianResponse { document_id, object_id, ..Default::default() }
}

fn unknown(upload_id: &str) -> Error {
    Error::request(format!(
        "upload '{upload_id}' is not open: it was never begun here, was completed or aborted, or is older than a day; begin a new one"
    ))
}

pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
