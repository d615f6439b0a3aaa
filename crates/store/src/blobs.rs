//! Blobs over tables and a folder: small content rests in a table, large content in a file of its own.
//!
//! A row per id says how large the content is and where. A file is written and synced under a name of its own before the
//! row that points to it is committed, and never changed after, so a crash leaves at worst a file that no row names;
//! such files are swept when the store is opened.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::contract::blobs::GET_BYTES_MAX;
use crate::embedded::Faults;
use crate::embedded::disk::is_full;
use crate::keys::{blocking, check_id, rows, to_the_end};
use crate::{Batch, BlobInfo, BlobWriter, Blobs, BoxFuture, Error, KeyRange, Read, Result, Tables};

/// Content up to this many bytes rests in a table.
const INLINE_BYTES_MAX: usize = 64 * 1024;
/// Parts are gathered up to this many bytes before they are written.
const BUFFER_BYTES: usize = 256 * 1024;
/// How often a write or read begins again because somebody replaced the content meanwhile.
const TRIES_MAX: usize = 16;

/// Where content is: size, and the file's name if it has one.
pub(crate) const PLACES: &str = "blobs";
const INLINE: &str = "blobs.inline";

/// Blobs in a folder, with their places in tables.
#[derive(Clone)]
pub struct FileBlobs {
    shared: Arc<Shared>,
}

struct Shared {
    folder: PathBuf,
    tables: Arc<dyn Tables>,
    faults: Arc<Faults>,
    next_name: AtomicU64,
    /// Files of writers that were dropped unfinished, to be removed by the next write.
    leftovers: Mutex<Vec<PathBuf>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    bytes: u64,
    file: Option<String>,
}

impl Place {
    fn encode(&self) -> Vec<u8> {
        let mut row = self.bytes.to_le_bytes().to_vec();
        row.extend_from_slice(self.file.as_deref().unwrap_or_default().as_bytes());
        row
    }

    fn decode(row: &[u8]) -> Result<Self> {
        let (bytes, file) =
            row.split_first_chunk().ok_or_else(|| Error::damaged("the place of a blob", &"too short"))?;
        let file = std::str::from_utf8(file).map_err(|e| Error::damaged("the place of a blob", &e))?;
        Ok(Self { bytes: u64::from_le_bytes(*bytes), file: (!file.is_empty()).then(|| file.to_owned()) })
    }
}

/// The file that a row of [`PLACES`] names.
pub(crate) fn file_named_by(row: &[u8]) -> Result<Option<String>> {
    Ok(Place::decode(row)?.file)
}

impl FileBlobs {
    /// Opens the folder, making it if it is not there, and removes files that are not among `named`.
    pub(crate) fn open(
        folder: &Path,
        tables: Arc<dyn Tables>,
        faults: Arc<Faults>,
        named: &HashSet<String>,
    ) -> Result<Self> {
        let swept = fs::create_dir_all(folder).and_then(|()| sweep(folder, named));
        swept.map_err(|e| crate::embedded::unusable(folder, &e))?;
        let shared = Shared {
            folder: folder.to_owned(),
            tables,
            faults,
            next_name: AtomicU64::new(0),
            leftovers: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }
}

fn sweep(folder: &Path, named: &HashSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let is_named = entry.file_name().to_str().is_some_and(|name| named.contains(name));
        if !is_named && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

impl Shared {
    fn failed(&self, doing: &str, error: &io::Error) -> Error {
        let folder = self.folder.display().to_string();
        if is_full(error) {
            return Error::Disk { folder, reason: error.to_string() };
        }
        Error::unavailable(format!("{doing} content in '{folder}' failed: {error}; check the disk"))
    }

    async fn row(&self, id: &str) -> Result<Option<Bytes>> {
        check_id(id)?;
        let found = self.tables.read(vec![Read::get(PLACES, id)]).await?;
        Ok(found.into_iter().next().and_then(crate::Found::into_value))
    }

    /// Makes a file under a name that no other content has had.
    fn create(&self, id: &str) -> io::Result<(File, String)> {
        let hash = hex(&Sha256::digest(id)[..16]);
        loop {
            let name = format!("{hash}-{:x}", self.next_name.fetch_add(1, Ordering::Relaxed));
            match OpenOptions::new().write(true).create_new(true).open(self.folder.join(&name)) {
                Ok(file) => return Ok((file, name)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn append(&self, file: &mut File, content: &[u8]) -> io::Result<()> {
        self.faults.use_space(content.len() as u64)?;
        file.write_all(content)
    }

    fn remove_leftovers(&self) {
        let leftovers = std::mem::take(&mut *self.leftovers.lock().unwrap_or_else(PoisonError::into_inner));
        for path in leftovers {
            remove_quietly(&path);
        }
    }

    /// Points an id to new content, or to none; removes the file it pointed to.
    async fn point(self: Arc<Self>, id: String, place: Option<Place>, inline: Option<Bytes>) -> Result<()> {
        for _ in 0..TRIES_MAX {
            let was = self.row(&id).await?;
            let mut batch = Batch::new();
            batch.expect(PLACES, &id, was.clone());
            match &place {
                Some(place) => batch.put(PLACES, &id, place.encode()),
                None if was.is_none() => return Ok(()),
                None => batch.delete(PLACES, &id),
            };
            match &inline {
                Some(content) => batch.put(INLINE, &id, content.clone()),
                None => batch.delete(INLINE, &id),
            };
            match self.tables.commit(batch).await {
                Ok(()) => {}
                Err(error) if error.is_conflict() => continue,
                Err(error) => return Err(error),
            }
            if let Some(old) = was.as_deref().map(Place::decode).transpose()?.and_then(|place| place.file) {
                let path = self.folder.join(old);
                blocking(move || {
                    remove_quietly(&path);
                    Ok(())
                })
                .await?;
            }
            return Ok(());
        }
        Err(Error::unavailable(format!("'{id}' is being changed by others all the time; try again")))
    }

    /// Reads a part of the content. The row and the file are looked at one after the other, so a replacement between
    /// the two makes it begin again.
    async fn read_part(self: &Arc<Self>, id: &str, offset: u64, bytes_max: u64) -> Result<Option<Bytes>> {
        for _ in 0..TRIES_MAX {
            check_id(id)?;
            let found = self.tables.read(vec![Read::get(PLACES, id), Read::get(INLINE, id)]).await?;
            let mut found = found.into_iter().map(crate::Found::into_value);
            let (row, inline) = (found.next().flatten(), found.next().flatten());
            let Some(row) = row else { return Ok(None) };
            let place = Place::decode(&row)?;
            let from = offset.min(place.bytes);
            let bytes = bytes_max.min(place.bytes - from);
            let Some(file) = place.file else {
                let content = inline.unwrap_or_default();
                let (from, to) = (from as usize, (from + bytes) as usize);
                let missing = || Error::damaged(format!("blob '{id}'"), &"its content is missing");
                return content.get(from..to).map(|part| Some(content.slice_ref(part))).ok_or_else(missing);
            };
            let shared = Arc::clone(self);
            let part = blocking(move || match read_file(&shared.folder.join(file), from, bytes) {
                Ok(part) => Ok(Some(part)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(shared.failed("reading", &e)),
            })
            .await?;
            if part.is_some() {
                return Ok(part);
            }
        }
        Err(Error::damaged(format!("blob '{id}'"), &"its file is missing"))
    }
}

fn read_file(path: &Path, from: u64, bytes: u64) -> io::Result<Bytes> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut part = Vec::with_capacity(usize::try_from(bytes).map_err(io::Error::other)?);
    file.take(bytes).read_to_end(&mut part)?;
    if part.len() as u64 != bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(part.into())
}

fn remove_quietly(path: &Path) {
    // What stays behind is swept at the next opening.
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "old content could not be removed yet");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Blobs for FileBlobs {
    fn put<'a>(&'a self, id: &'a str, content: Bytes) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let mut writer = self.writer(id).await?;
            writer.write(content).await?;
            writer.finish().await.map(drop)
        })
    }

    fn writer<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Box<dyn BlobWriter>>> {
        Box::pin(async move {
            check_id(id)?;
            let shared = Arc::clone(&self.shared);
            let writer =
                Writer { shared, id: id.to_owned(), bytes: 0, buffer: Vec::new(), file: None, lost: false };
            Ok(Box::new(writer) as Box<dyn BlobWriter>)
        })
    }

    fn get<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Bytes>>> {
        Box::pin(async move {
            let Some(part) = self.shared.read_part(id, 0, GET_BYTES_MAX + 1).await? else { return Ok(None) };
            if part.len() as u64 > GET_BYTES_MAX {
                let bytes = self.size(id).await?.unwrap_or_default();
                return Err(Error::TooLarge { what: "content read at once", bytes, max: GET_BYTES_MAX });
            }
            Ok(Some(part))
        })
    }

    fn get_range<'a>(
        &'a self,
        id: &'a str,
        offset: u64,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<Option<Bytes>>> {
        Box::pin(async move { self.shared.read_part(id, offset, bytes_max.min(GET_BYTES_MAX)).await })
    }

    fn size<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<u64>>> {
        Box::pin(async move {
            let row = self.shared.row(id).await?;
            Ok(row.as_deref().map(Place::decode).transpose()?.map(|place| place.bytes))
        })
    }

    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { to_the_end(shared.point(id.to_owned(), None, None)).await })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        entries_max: usize,
    ) -> BoxFuture<'a, Result<Vec<BlobInfo>>> {
        Box::pin(async move {
            let range = KeyRange::prefix(prefix);
            let range = after.map_or_else(|| range.clone(), |after| range.clone().after(after));
            let found = rows(&*self.shared.tables, Read::range(PLACES, range, entries_max)).await?;
            let info = |(id, row): &(Bytes, Bytes)| {
                let id = crate::keys::id_in(id, 0)?.to_owned();
                Ok(BlobInfo { id, bytes: Place::decode(row)?.bytes })
            };
            found.rows.iter().map(info).collect()
        })
    }
}

struct Writer {
    shared: Arc<Shared>,
    id: String,
    bytes: u64,
    buffer: Vec<u8>,
    file: Option<(File, String)>,
    /// A part failed or was dropped on its way: the content can never be whole.
    lost: bool,
}

impl Writer {
    /// Moves what is gathered to the file, making the file if there is none.
    async fn spill(&mut self, last: bool) -> Result<()> {
        if std::mem::replace(&mut self.lost, true) {
            let reason = format!("a part of '{}' was lost; store it again from the start", self.id);
            return Err(Error::Refused { reason });
        }
        let (shared, content) = (Arc::clone(&self.shared), std::mem::take(&mut self.buffer));
        let (file, id) = (self.file.take(), self.id.clone());
        let spilled = blocking(move || {
            shared.remove_leftovers();
            let (mut file, name) = match file {
                Some(open) => open,
                None => shared.create(&id).map_err(|e| shared.failed("storing", &e))?,
            };
            let mut written = shared.append(&mut file, &content);
            if last {
                written = written.and_then(|()| file.sync_all());
                written = written.and_then(|()| File::open(&shared.folder)?.sync_all());
            }
            if let Err(e) = written {
                remove_quietly(&shared.folder.join(name));
                return Err(shared.failed("storing", &e));
            }
            Ok((file, name))
        });
        self.file = Some(spilled.await?);
        self.lost = false;
        Ok(())
    }
}

impl BlobWriter for Writer {
    fn write(&mut self, part: Bytes) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.bytes += part.len() as u64;
            self.buffer.extend_from_slice(&part);
            if self.buffer.len() > BUFFER_BYTES { self.spill(false).await } else { Ok(()) }
        })
    }

    fn finish(mut self: Box<Self>) -> BoxFuture<'static, Result<u64>> {
        Box::pin(async move {
            let bytes = self.bytes;
            let inline = !self.lost && self.file.is_none() && self.buffer.len() <= INLINE_BYTES_MAX;
            if !inline {
                self.spill(true).await?;
            }
            let content = inline.then(|| Bytes::from(std::mem::take(&mut self.buffer)));
            let place = Place { bytes, file: self.file.as_ref().map(|(_, name)| name.clone()) };
            let pointed =
                to_the_end(Arc::clone(&self.shared).point(self.id.clone(), Some(place), content)).await;
            // A file whose row may have been committed stays; a sweep knows better.
            let may_be_named = match &pointed {
                Ok(()) => true,
                Err(error) => error.kind() == crate::ErrorKind::OutcomeUnknown,
            };
            if may_be_named {
                self.file = None;
            }
            pointed.map(|()| bytes)
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some((_, name)) = self.file.take() {
            let path = self.shared.folder.join(name);
            self.shared.leftovers.lock().unwrap_or_else(PoisonError::into_inner).push(path);
        }
    }
}
