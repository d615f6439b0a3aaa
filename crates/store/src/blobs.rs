//! Blobs over tables and a folder: small content rests in a table, packed, large content in a file of its own.
//!
//! A row per id says how large the content is, where, and its digest. A file is written once, under a name that no other
//! content has had, and never changed after. Its name is put down as loose before it is written; the commit that points an
//! id to it takes it off that list and puts the file that the id pointed to on it. What a crash leaves behind is therefore on
//! the list, and `FileBlobs::sweep` touches nothing else: a file that no row names may belong to rows that are lost.
//!
//! A file has a SHA-256 for each of its parts, and what is read is compared with them first: damaged content is an error,
//! never an answer. The digest of the whole is the SHA-256 of those of its parts.

mod audit;

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::content::{self, Digests, PART_BYTES, PartDigest, Place, whole};
use crate::contract::blobs::GET_BYTES_MAX;
use crate::embedded::disk::{is_broken, is_full};
use crate::embedded::{self, Faults, Step};
use crate::keys::{blocking, check_id, rows, to_the_end};
use crate::{Batch, BlobInfo, BlobWriter, Blobs, BoxFuture, Error, KeyRange, Read, Result, Rows, Tables};

/// Content up to this many bytes rests in a table.
const INLINE_BYTES_MAX: usize = 64 * 1024;
/// Bytes of content in a row: two rows fill a page of the store. One that needs more than a page takes a power of two of them.
const ROW_BYTES: usize = 1_920;
/// Parts are gathered up to this many bytes before they are written.
const BUFFER_BYTES: usize = 256 * 1024;
/// How often a write or read begins again because somebody replaced the content meanwhile.
const TRIES_MAX: usize = 16;

/// Where content is: size, digest, and the file's name if it has one.
pub(crate) const PLACES: &str = "blobs";
/// The first row of content.
const INLINE: &str = "blobs.inline";
/// The rows that follow it, by id and number.
const MORE: &str = "blobs.more";
/// Files that no place names, or not yet.
const LOOSE: &str = "blobs.loose";
/// Files that places name and that are known to be lost.
const LOST: &str = "blobs.lost";
/// The folder of content, in the data folder.
const FOLDER: &str = "blobs";
/// Where files go that were left over, in the data folder.
const TRASH: &str = "trash";
/// Rows read at once.
const PAGE_ROWS: usize = 10_000;
/// The digests of the parts of a file, by its name, which no other content has had.
const PARTS: &str = "blobs.parts";

pub use self::audit::{BlobAudit, MissingBlob};

/// Blobs in a folder, with their places in tables.
#[derive(Clone)]
pub struct FileBlobs {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for FileBlobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FileBlobs")
    }
}

/// Holds the reason once the store can keep nothing more.
type Failing = watch::Sender<Option<String>>;

struct Shared {
    folder: PathBuf,
    trash: PathBuf,
    tables: Arc<dyn Tables>,
    faults: Arc<Faults>,
    failure: Failing,
    /// Files of writers that were dropped unfinished, to be removed by the next write.
    leftovers: Mutex<Vec<PathBuf>>,
    /// Copies of the folder that are being made: no file is removed meanwhile.
    pins: AtomicUsize,
}

/// The content that the tables of one moment name.
#[derive(Debug, Default)]
pub struct Contents {
    /// That which rests in files.
    pub files: Vec<ContentFile>,
    /// What is damaged of that which rests in tables.
    pub damage: Vec<Error>,
}

/// Content that rests in a file or an object of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentFile {
    /// Id of the content.
    pub id: String,
    /// Name of the file or object.
    pub name: String,
    /// Its size, in bytes.
    pub bytes: u64,
    /// What [`content::whole`] says of it; `None` for content that an earlier version stored.
    pub digest: Option<PartDigest>,
    /// Its file was missing once, and somebody started without it all the same. It may be there again.
    pub is_lost: bool,
}

/// Keeps every file of content where it is, until it is dropped.
pub(crate) struct Pin(Arc<Shared>);

impl Drop for Pin {
    fn drop(&mut self) {
        // What was to be removed meanwhile goes with the next write.
        self.0.pins.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The content that rows name, read page by page; `value` reads one row.
pub(crate) fn contents_in(
    page: impl Fn(&str, Option<&[u8]>) -> Result<Rows>,
    value: impl Fn(&str, &[u8]) -> Result<Option<Bytes>>,
) -> Result<Contents> {
    let mut lost = HashSet::new();
    each_row(&page, LOST, |key, _| {
        lost.insert(String::from_utf8_lossy(key).into_owned());
        Ok(())
    })?;
    let mut contents = Contents::default();
    each_row(&page, PLACES, |key, row| {
        let id = String::from_utf8_lossy(key).into_owned();
        let place = match Place::decode(row) {
            Ok(place) => place,
            Err(error) => {
                contents.damage.push(damaged(&id, &error.to_string()));
                return Ok(());
            }
        };
        let Some(name) = &place.name else {
            let rows = keys_of(&id, &place).map(|(table, key)| value(table, &key)).collect::<Result<_>>();
            match rows
                .map_err(|error| of_content(&id, error))
                .and_then(|rows| inline_content(&id, &place, rows))
            {
                Err(error) if error.is_damage() => contents.damage.push(error),
                checked => drop(checked?),
            }
            return Ok(());
        };
        let is_lost = lost.contains(name);
        let (name, bytes, digest) = (name.clone(), place.bytes, place.digest);
        contents.files.push(ContentFile { id, name, bytes, digest, is_lost });
        Ok(())
    })?;
    Ok(contents)
}

/// Where the rows of content are that rests in tables.
fn keys_of(id: &str, place: &Place) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    let first = (INLINE, id.as_bytes().to_vec());
    let more = (1..=place.more_rows).map(|number| (MORE, [id.as_bytes(), &[number]].concat()));
    std::iter::once(first).chain(more)
}

/// Content that rests in tables, if it is what was stored.
fn inline_content(id: &str, place: &Place, rows: Vec<Option<Bytes>>) -> Result<Bytes> {
    let rows: Option<Vec<Bytes>> = rows.into_iter().collect();
    let mut rows = rows.ok_or_else(|| damaged(id, "its content is missing"))?;
    let mut content = if rows.len() == 1 { rows.swap_remove(0) } else { rows.concat().into() };
    if place.is_packed {
        let whole = content::unpacked(&content, INLINE_BYTES_MAX as u64);
        content = whole.ok_or_else(|| damaged(id, "its content cannot be unpacked"))?.into();
    }
    if content.len() as u64 != place.bytes
        || place.digest.is_some_and(|digest| digest != whole(&Digests::of(&content).finish()))
    {
        return Err(damaged(id, "its content does not match its digest"));
    }
    Ok(content)
}

fn each_row(
    page: impl Fn(&str, Option<&[u8]>) -> Result<Rows>,
    table: &str,
    mut take: impl FnMut(&[u8], &[u8]) -> Result<()>,
) -> Result<()> {
    let mut after: Option<Bytes> = None;
    loop {
        let found = page(table, after.as_deref())?;
        for (key, row) in &found.rows {
            take(key, row)?;
        }
        match found.rows.last() {
            Some((last, _)) if found.more => after = Some(last.clone()),
            _ => return Ok(()),
        }
    }
}

impl FileBlobs {
    /// Opens the content in a data folder, making its folder if it is not there.
    pub(crate) fn open(
        data: &Path,
        tables: Arc<dyn Tables>,
        faults: Arc<Faults>,
        failure: Failing,
    ) -> Result<Self> {
        let folder = data.join(FOLDER);
        fs::create_dir_all(&folder).map_err(|e| crate::embedded::unusable(&folder, &e))?;
        Ok(Self::look(data, tables, faults, failure))
    }

    /// The content in a data folder as it is there.
    pub(crate) fn look(data: &Path, tables: Arc<dyn Tables>, faults: Arc<Faults>, failure: Failing) -> Self {
        let shared = Shared {
            folder: data.join(FOLDER),
            trash: data.join(TRASH),
            tables,
            faults,
            failure,
            leftovers: Mutex::default(),
            pins: AtomicUsize::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    pub(crate) fn pin(&self) -> Pin {
        self.shared.pins.fetch_add(1, Ordering::SeqCst);
        Pin(Arc::clone(&self.shared))
    }
}

impl Shared {
    fn failed(&self, doing: &str, error: &io::Error) -> Error {
        let folder = self.folder.display().to_string();
        if is_full(error) {
            return Error::Disk { folder, reason: error.to_string() };
        }
        Error::unavailable(format!("{doing} content in '{folder}' failed: {error}; check the disk"))
    }

    /// Content that was not kept. Where the disk failed, the whole store has, of which this is a part.
    fn not_kept(&self, error: &io::Error) -> Error {
        let told = self.failed("storing", error);
        if is_broken(error) {
            self.failure.send_replace(Some(told.to_string()));
        }
        told
    }

    async fn row(&self, id: &str) -> Result<Option<Bytes>> {
        check_id(id)?;
        let found = self.tables.read(vec![Read::get(PLACES, id)]).await?;
        Ok(found.into_iter().next().and_then(crate::Found::into_value))
    }

    /// The keys of a small table, as names of files.
    async fn names(&self, table: &'static str) -> Result<HashSet<String>> {
        let mut names = HashSet::new();
        let mut range = KeyRange::all();
        loop {
            let page = rows(&*self.tables, Read::range(table, range.clone(), PAGE_ROWS)).await?;
            names.extend(page.rows.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()));
            match page.rows.last() {
                Some((last, _)) if page.more => range = range.after(last),
                _ => return Ok(names),
            }
        }
    }

    /// A name that no other content has had, put down as loose before there is a file of it.
    async fn name(&self, id: &str) -> Result<String> {
        let name = format!("{}-{}", hex(&Sha256::digest(id)[..8]), uuid::Uuid::now_v7().simple());
        let mut batch = Batch::new();
        batch.put(LOOSE, &name, Vec::new());
        self.tables.commit(batch).await?;
        Ok(name)
    }

    fn create(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).open(self.folder.join(name))
    }

    fn append(&self, file: &mut File, content: &[u8]) -> io::Result<()> {
        self.faults.use_space(content.len() as u64)?;
        file.write_all(content)
    }

    fn remove_leftovers(&self) {
        if self.pins.load(Ordering::SeqCst) > 0 {
            return;
        }
        let leftovers = std::mem::take(&mut *self.leftovers.lock().unwrap_or_else(PoisonError::into_inner));
        for path in leftovers {
            remove_quietly(&path);
        }
    }

    /// Points an id to new content, or to none; removes the file it pointed to.
    async fn point(
        self: Arc<Self>,
        id: String,
        place: Option<Place>,
        parts: Vec<PartDigest>,
        inline: Option<Bytes>,
    ) -> Result<()> {
        for _ in 0..TRIES_MAX {
            let was = self.row(&id).await?;
            if place.is_none() && was.is_none() {
                return Ok(());
            }
            let old = was.as_deref().map(Place::decode).transpose()?;
            let mut batch = Batch::new();
            batch.expect(PLACES, &id, was.clone());
            for (table, key) in old.iter().flat_map(|old| keys_of(&id, old)) {
                batch.delete(table, key);
            }
            let old = old.and_then(|old| old.name);
            if let Some(old) = &old {
                content::forget_digests(&mut batch, PARTS, old);
            }
            if let Some(file) = place.as_ref().and_then(|place| place.name.as_deref()) {
                content::put_digests(&mut batch, PARTS, file, &parts);
                batch.delete(LOOSE, file);
            }
            match &place {
                Some(place) => batch.put(PLACES, &id, place.encode()),
                None => batch.delete(PLACES, &id),
            };
            if let (Some(place), Some(content)) = (&place, &inline) {
                for (number, (table, key)) in keys_of(&id, place).enumerate() {
                    let from = number * ROW_BYTES;
                    batch.put(table, key, content.slice(from..content.len().min(from + ROW_BYTES)));
                }
            }
            if let Some(old) = &old {
                batch.put(LOOSE, old, Vec::new());
            }
            if place.is_none() {
                // Removing works on a full disk.
                batch.essential();
            }
            match self.tables.commit(batch).await {
                Ok(()) => {}
                Err(error) if error.is_conflict() => continue,
                Err(error) => return Err(error),
            }
            if let Some(old) = old {
                self.remove_loose(old).await?;
            }
            return Ok(());
        }
        Err(Error::unavailable(format!("'{id}' is being changed by others all the time; try again")))
    }

    /// Removes a file that no place names any more, and takes it off the list.
    async fn remove_loose(&self, file: String) -> Result<()> {
        let path = self.folder.join(&file);
        if self.pins.load(Ordering::SeqCst) > 0 {
            self.leftovers.lock().unwrap_or_else(PoisonError::into_inner).push(path);
            return Ok(());
        }
        blocking(move || {
            remove_quietly(&path);
            Ok(())
        })
        .await?;
        let mut batch = Batch::new();
        batch.delete(LOOSE, &file);
        if let Err(error) = self.tables.commit(batch).await {
            tracing::debug!(%error, file, "a removed file stays on the list");
        }
        Ok(())
    }

    /// Reads a part of the content. The row and the file are looked at one after the other, so a replacement between
    /// the two makes it begin again.
    async fn read_part(self: &Arc<Self>, id: &str, offset: u64, bytes_max: u64) -> Result<Option<Bytes>> {
        check_id(id)?;
        let mut known: Option<Bytes> = None;
        let mut is_changed = false;
        for _ in 0..TRIES_MAX {
            let (row, rows) =
                self.rows_of(id, known.as_deref()).await.map_err(|error| of_content(id, error))?;
            let Some(row) = row else { return Ok(None) };
            is_changed = known.replace(row.clone()).is_some_and(|known| known != row);
            let place = Place::decode(&row).map_err(|error| of_content(id, error))?;
            let from = offset.min(place.bytes);
            let bytes = bytes_max.min(place.bytes - from);
            let Some(file) = &place.name else {
                if rows.len() != usize::from(place.more_rows) + 1 {
                    continue;
                }
                let content = inline_content(id, &place, rows)?;
                return Ok(Some(content.slice(from as usize..(from + bytes) as usize)));
            };
            let digests = match place.digest {
                Some(_) => match content::digests(&*self.tables, PARTS, file, from..from + bytes).await? {
                    Some(digests) => digests,
                    None => continue,
                },
                None => Vec::new(),
            };
            let (shared, file, of_all) = (Arc::clone(self), file.clone(), place.bytes);
            let read = blocking(move || {
                let path = shared.folder.join(file);
                match read_verified(&path, of_all, from, bytes, &digests) {
                    Ok(part) => Ok(Some(Ok(part))),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(e) if is_damage(&e) => Ok(Some(Err("its file does not match its digests"))),
                    Err(e) => match why_unreadable(&shared.folder, &e) {
                        Some(reason) => Ok(Some(Err(reason))),
                        None => Err(shared.failed("reading", &e)),
                    },
                }
            });
            match read.await? {
                Some(Ok(part)) => return Ok(Some(part)),
                Some(Err(reason)) => return Err(damaged(id, reason)),
                // It was replaced meanwhile.
                None => {}
            }
        }
        if is_changed {
            return Err(Error::unavailable(format!(
                "'{id}' is being changed by others all the time; try again"
            )));
        }
        Err(damaged(id, "its file or its digests are missing"))
    }

    /// Where content is, and the rows of it if it rests in tables: as many as it had when `known` said where it is.
    async fn rows_of(&self, id: &str, known: Option<&[u8]>) -> Result<(Option<Bytes>, Vec<Option<Bytes>>)> {
        let known = known.map(Place::decode).transpose()?;
        let more = known.iter().flat_map(|known| keys_of(id, known)).skip(1);
        let keys = std::iter::once((INLINE, id.as_bytes().to_vec())).chain(more);
        let reads = std::iter::once(Read::get(PLACES, id));
        let reads = reads.chain(keys.map(|(table, key)| Read::get(table, key))).collect();
        let mut found = self.tables.read(reads).await?.into_iter().map(crate::Found::into_value);
        Ok((found.next().flatten(), found.collect()))
    }
}

/// What is damaged of the rows of content is damage of that content.
fn of_content(id: &str, error: Error) -> Error {
    if matches!(error, Error::Damaged { .. }) { Error::damaged_content(id, error.to_string()) } else { error }
}

impl FileBlobs {
    /// Looks at the content after the one of an id, from an offset on; what has no digests yet gets them.
    pub(crate) async fn check(&self, after: String, offset: u64, bytes_max: u64) -> Result<Step> {
        let range = if after.is_empty() { KeyRange::all() } else { KeyRange::all().after(&after) };
        let found = rows(&*self.shared.tables, Read::range(PLACES, range, 1)).await?;
        let Some((key, row)) = found.rows.into_iter().next() else { return Ok(Step::default()) };
        let id = crate::keys::id_in(&key, 0)?.to_owned();
        let place = Place::decode(&row)?;
        let end = place.bytes.min(offset.saturating_add(bytes_max.clamp(PART_BYTES, GET_BYTES_MAX)));
        let (mut damage, mut is_damaged) = (Vec::new(), false);
        let checked = match (&place.digest, &place.name) {
            (None, Some(_)) => self.shared.give_digests(&id, &place, row).await,
            (Some(_), Some(file)) if offset == 0 && self.shared.lacks_digests(file, place.bytes).await => {
                self.shared.give_digests(&id, &place, row).await
            }
            _ => self.shared.read_part(&id, offset, end - offset).await.map(drop),
        };
        match checked {
            Ok(()) => {}
            Err(error) if error.is_damage() => {
                is_damaged = true;
                // A loss that was accepted is no news.
                if !self.shared.is_lost(&place).await? {
                    damage.push(error);
                }
            }
            Err(error) => return Err(error),
        }
        let is_over = end == place.bytes || place.digest.is_none() || is_damaged;
        let next = if is_over {
            embedded::Place::Content { after: id, offset: 0 }
        } else {
            embedded::Place::Content { after, offset: end }
        };
        Ok(Step { next: Some(next), bytes: end - offset, damage })
    }
}

impl Shared {
    /// Whether the file of content is known to be lost.
    async fn is_lost(&self, place: &Place) -> Result<bool> {
        let Some(file) = &place.name else { return Ok(false) };
        let found = self.tables.read(vec![Read::get(LOST, file.clone())]).await?;
        Ok(found.first().is_some_and(|found| found.value().is_some()))
    }

    /// Whether the digests of a file are not there, as after they were lost with a damaged disk.
    async fn lacks_digests(&self, file: &str, bytes: u64) -> bool {
        matches!(content::digests(&*self.tables, PARTS, file, 0..bytes).await, Ok(None))
    }

    /// Gives digests to content that an earlier version stored, or that lost them and is whole.
    async fn give_digests(&self, id: &str, place: &Place, was: Bytes) -> Result<()> {
        let Some(file) = place.name.clone() else { return Ok(()) };
        let (path, bytes) = (self.folder.join(&file), place.bytes);
        let reading = blocking(move || {
            let read = || -> io::Result<Digests> {
                let mut digests = Digests::default();
                let mut from = 0;
                while from < bytes {
                    let some = (bytes - from).min(16 * PART_BYTES);
                    digests.add(&read_file(&path, from, some)?);
                    from += some;
                }
                Ok(digests)
            };
            Ok(read())
        });
        let parts = match reading.await? {
            Ok(digests) => digests.finish(),
            Err(error) if is_damage(&error) => return Err(damaged(id, "its file is cut short")),
            // It may have been removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let is_named = self.row(id).await?.is_some_and(|row| row == was);
                return if is_named { Err(damaged(id, "its file is missing")) } else { Ok(()) };
            }
            Err(error) => match why_unreadable(&self.folder, &error) {
                Some(reason) => return Err(damaged(id, reason)),
                None => return Err(self.failed("reading", &error)),
            },
        };
        if place.digest.is_some_and(|digest| digest != whole(&parts)) {
            return Err(damaged(id, "its file does not match its digest"));
        }
        let mut batch = Batch::new();
        content::put_digests(&mut batch, PARTS, &file, &parts);
        let place = Place { digest: Some(whole(&parts)), ..place.clone() };
        batch.expect_value(PLACES, id, was).put(PLACES, id, place.encode());
        match self.tables.commit(batch).await {
            Err(error) if error.is_conflict() => Ok(()),
            // A later check gives them; this one need not wait for room.
            Err(Error::Disk { .. }) => Ok(()),
            done => done,
        }
    }
}

fn damaged(id: &str, reason: &str) -> Error {
    Error::damaged_content(id, format!("{reason}; restore it from a backup, and check the disk"))
}

/// Reads a range of a file of `of_all` bytes. With digests, whole parts are read and each is compared with its digest.
fn read_verified(
    path: &Path,
    of_all: u64,
    from: u64,
    bytes: u64,
    digests: &[PartDigest],
) -> io::Result<Bytes> {
    if digests.is_empty() {
        return read_file(path, from, bytes);
    }
    let parts = content::parts_of(from..from + bytes, of_all);
    let content = read_file(path, parts.start, parts.end - parts.start)?;
    if !content::fits(&content, digests) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let skipped = (from - parts.start) as usize;
    Ok(content.slice(skipped..skipped + bytes as usize))
}

fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// Why one file of a folder cannot be read while others can; `None` for what passes, or is about all of them.
fn why_unreadable(folder: &Path, error: &io::Error) -> Option<&'static str> {
    const ELOOP: i32 = 40;
    match error.kind() {
        _ if is_broken(error) => Some("the disk cannot read its file"),
        _ if std::fs::read_dir(folder).is_err() => None,
        io::ErrorKind::PermissionDenied => Some("its file may not be read"),
        io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => Some("what is in its place is no file"),
        _ if error.raw_os_error() == Some(ELOOP) => Some("what is in its place is no file"),
        _ => None,
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
    // What stays behind is on record, and swept at a next start.
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
            let writer = Writer {
                shared,
                id: id.to_owned(),
                bytes: 0,
                buffer: Vec::new(),
                digests: Digests::default(),
                file: None,
                lost: false,
            };
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
        Box::pin(async move { to_the_end(shared.point(id.to_owned(), None, Vec::new(), None)).await })
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
    /// Of what was moved to the file.
    digests: Digests,
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
        let (file, name) = match self.file.take() {
            Some((file, name)) => (Some(file), name),
            None => (None, shared.name(&self.id).await?),
        };
        let mut digests = std::mem::take(&mut self.digests);
        let spilled = blocking(move || {
            shared.remove_leftovers();
            let mut file = match file {
                Some(open) => open,
                None => shared.create(&name).map_err(|e| shared.not_kept(&e))?,
            };
            digests.add(&content);
            let mut written = shared.append(&mut file, &content);
            if last {
                written = written.and_then(|()| shared.faults.sync()).and_then(|()| file.sync_all());
                written = written.and_then(|()| File::open(&shared.folder)?.sync_all());
            }
            if let Err(e) = written {
                remove_quietly(&shared.folder.join(name));
                return Err(shared.not_kept(&e));
            }
            Ok(((file, name), digests))
        });
        let (file, digests) = spilled.await?;
        (self.file, self.digests) = (Some(file), digests);
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
            if let Some(content) = &content {
                self.digests.add(content);
            }
            let parts = std::mem::take(&mut self.digests).finish();
            let file = self.file.as_ref().map(|(_, name)| name.clone());
            // What hardly gets smaller stays as it is.
            let packed = content.as_deref().map(content::packed);
            let packed = packed.filter(|packed| packed.len() as u64 + bytes / 8 < bytes);
            let is_packed = packed.is_some();
            let content = packed.map(Bytes::from).or(content);
            let rows = content.as_ref().map_or(1, |content| content.len().div_ceil(ROW_BYTES).max(1));
            let more_rows = (rows - 1) as u8;
            let place = Place { bytes, digest: Some(whole(&parts)), name: file, is_packed, more_rows };
            let pointing = Arc::clone(&self.shared).point(self.id.clone(), Some(place), parts, content);
            let pointed = to_the_end(pointing).await;
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
