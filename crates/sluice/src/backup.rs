//! Backups of a data folder: made while it is in use, consistent over all its parts, checked and restored.
//!
//! # What consistent means
//! Store and log are taken at one moment, between two records of the log, so a backup is what a crash at that moment would
//! have left, and the same recovery takes it from there: what was acknowledged before the backup began is in it, and work
//! that was under way is done again. Content is copied after that moment from files that never change and are not removed
//! while the backup is made. So nothing in it names what is not in it.
//!
//! # Layout
//! A manifest with the digest of everything else; rows of tables in chunks, cut where their keys say, so that most chunks
//! of a second backup are there already; content, log files and the admin key as they are. The manifest comes last, and what
//! only the one before it named goes after that: a backup that is cut short leaves the one before it whole.

mod manifest;
mod restore;

use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use sha2::{Digest as _, Sha256};
use sluice_bus::embedded::{Embedded as Broker, LogFile};
use sluice_store::{Embedded as Store, Snapshot};

use self::manifest::{Chunk, Item, Table};
pub(crate) use self::manifest::{Manifest, Object};
pub(crate) use self::restore::restore;
use crate::exit::{Code, Told};

const CHUNKS: &str = "chunks";
const BLOBS: &str = "blobs";
const LOG: &str = "log";
const OBJECTS: &str = "objects";
const ADMIN_KEY: &str = "admin.key";

/// A chunk of rows is not cut before it has this many bytes.
const CHUNK_BYTES_MIN: usize = 256 * 1024;
/// From this many bytes on it is cut wherever it is.
const CHUNK_BYTES_MAX: usize = 4 * 1024 * 1024;
/// In between, one key in so many ends a chunk.
const CUT_ONE_IN: u8 = 64;
/// How often a backup begins again because content was removed from the object store meanwhile.
const OBJECT_TRIES_MAX: u32 = 3;
/// Bytes copied at once.
const COPY_BYTES: usize = 1024 * 1024;

/// What is backed up.
pub(crate) struct Source {
    /// The data folder.
    pub(crate) path: PathBuf,
    /// Its id.
    pub(crate) folder: String,
    pub(crate) store: Arc<Store>,
    /// The embedded broker, if the folder holds its log.
    pub(crate) broker: Option<Broker>,
    /// The object store that keeps the content, if one does.
    pub(crate) objects: Option<(String, sluice_databases::Settings)>,
}

/// What a backup came to.
#[derive(Debug, Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Summary {
    /// Rows of tables.
    pub(crate) rows: u64,
    /// Files of content, of the log, and objects.
    pub(crate) files: u64,
    /// Bytes of the whole backup.
    pub(crate) bytes: u64,
    /// Bytes that were not there from the backup before.
    pub(crate) copied_bytes: u64,
}

/// Makes a backup in `dir`, or brings the one that is there up to date.
pub(crate) async fn make(source: Arc<Source>, dir: &Path) -> anyhow::Result<Summary> {
    let mut tries = 0;
    loop {
        match make_once(&source, dir).await {
            // Objects go at once when their document does, which no snapshot holds back.
            Err(error) if source.objects.is_some() && tries < OBJECT_TRIES_MAX && is_object_gone(&error) => {
                tries += 1
            }
            made => return made,
        }
    }
}

fn is_object_gone(error: &anyhow::Error) -> bool {
    let is_refused = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(sluice_store::Error::Refused { .. }))
    };
    error.chain().any(is_refused)
}

async fn make_once(source: &Source, dir: &Path) -> anyhow::Result<Summary> {
    let before = prepare(dir, &source.folder)?;
    // One moment for both.
    let (log, snapshot) = match &source.broker {
        Some(broker) => broker.freeze(|| source.store.snapshot())?,
        None => (Vec::new(), source.store.snapshot()),
    };
    let snapshot = snapshot?;
    let to = dir.to_owned();
    let (path, folder, formats) = (source.path.clone(), source.folder.clone(), source.store.formats()?);
    let known = before.as_ref().map(Manifest::digests).unwrap_or_default();
    let copied = tokio::task::spawn_blocking(move || {
        let mut copy = Copy { to, known, summary: Summary::default() };
        let mut manifest = Manifest::new(folder, formats);
        copy.tables(&snapshot, &mut manifest)?;
        copy.blobs(&path, &snapshot, &mut manifest)?;
        copy.log(&log, &mut manifest)?;
        copy.key(&path, &mut manifest)?;
        anyhow::Ok((copy, manifest, snapshot))
    });
    let (mut copy, mut manifest, snapshot) = copied.await.context("the backup was cut off")??;
    if let Some((url, settings)) = &source.objects {
        copy.objects(url, settings, &snapshot, &mut manifest).await?;
    }
    drop(snapshot);
    let to = dir.to_owned();
    let summary = copy.summary;
    let finished = tokio::task::spawn_blocking(move || {
        manifest.write(&to)?;
        if let Some(before) = before {
            remove_unnamed(&to, &before, &manifest);
        }
        anyhow::Ok(())
    });
    finished.await.context("the backup was cut off")??;
    Ok(summary)
}

/// Refuses the folder of a backup where a data folder is wanted: what works in it would break the backup.
pub(crate) fn refuse_backup(folder: &Path) -> Result<(), Told> {
    if !folder.join(manifest::FILE).exists() {
        return Ok(());
    }
    let folder = folder.display();
    Err(Told::new(Code::Failed, format!("'{folder}' is a backup, not a data folder, and stays as it is"))
        .next(format!("sluice restore {folder} --data NEW, then use NEW")))
}

/// Makes the folder of a backup, or looks whether it is one of this data folder.
fn prepare(dir: &Path, folder: &str) -> anyhow::Result<Option<Manifest>> {
    let refused = |what: String| {
        Told::new(Code::Failed, what).next("name an empty folder, or the one of an earlier backup")
    };
    fs::create_dir_all(dir).with_context(|| format!("'{}' cannot be made", dir.display()))?;
    let before = Manifest::read(dir)?;
    if let Some(before) = &before
        && before.folder != folder
    {
        let what = format!("'{}' holds a backup of another data folder ({})", dir.display(), before.folder);
        return Err(refused(what).into());
    }
    // In a backup, what others left beside it (a lock, `lost+found`) is in nobody's way.
    let is_new = before.is_none();
    let ours = [CHUNKS, BLOBS, LOG, OBJECTS, ADMIN_KEY];
    for entry in fs::read_dir(dir).with_context(|| format!("'{}' cannot be read", dir.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if is_new
            && !ours.contains(&name.as_str())
            && !name.starts_with(manifest::FILE)
            && !name.ends_with(".new")
        {
            let what = format!("'{}' is not empty and no backup: '{name}' is in it", dir.display());
            return Err(refused(what).into());
        }
    }
    for part in [CHUNKS, BLOBS, LOG, OBJECTS] {
        fs::create_dir_all(dir.join(part))
            .with_context(|| format!("'{}' cannot be written", dir.display()))?;
    }
    Ok(before)
}

struct Copy {
    to: PathBuf,
    /// Digests of what the backup before this one holds, by place.
    known: std::collections::HashMap<String, (u64, String)>,
    summary: Summary,
}

impl Copy {
    fn tables(&mut self, snapshot: &Snapshot, manifest: &mut Manifest) -> anyhow::Result<()> {
        for name in snapshot.tables()? {
            let mut table = Table { name: name.clone(), chunks: Vec::new() };
            let mut after: Option<Vec<u8>> = None;
            let (mut chunk, mut rows_in_chunk) = (Vec::new(), 0);
            loop {
                let page = snapshot.page(&name, after.as_deref())?;
                for (key, value) in &page.rows {
                    for part in [key, value] {
                        chunk.extend_from_slice(&u32::try_from(part.len())?.to_le_bytes());
                        chunk.extend_from_slice(part);
                    }
                    rows_in_chunk += 1;
                    let may_end = chunk.len() >= CHUNK_BYTES_MIN && Sha256::digest(key)[0] % CUT_ONE_IN == 0;
                    if may_end || chunk.len() >= CHUNK_BYTES_MAX {
                        table.chunks.push(self.chunk(&mut chunk, &mut rows_in_chunk)?);
                    }
                }
                match page.rows.last() {
                    Some((last, _)) if page.more => after = Some(last.to_vec()),
                    _ => break,
                }
            }
            if !chunk.is_empty() {
                table.chunks.push(self.chunk(&mut chunk, &mut rows_in_chunk)?);
            }
            manifest.tables.push(table);
        }
        Ok(())
    }

    /// Puts a chunk where it is not yet.
    fn chunk(&mut self, bytes: &mut Vec<u8>, rows: &mut u64) -> anyhow::Result<Chunk> {
        let chunk = Chunk { sha256: hex(&Sha256::digest(&*bytes)), rows: *rows, bytes: bytes.len() as u64 };
        let to = self.to.join(CHUNKS).join(&chunk.sha256);
        self.summary.rows += chunk.rows;
        self.summary.bytes += chunk.bytes;
        if fs::metadata(&to).map_or(0, |there| there.len()) != chunk.bytes {
            write_whole(&to, bytes)?;
            self.summary.copied_bytes += chunk.bytes;
        }
        bytes.clear();
        *rows = 0;
        Ok(chunk)
    }

    fn blobs(&mut self, folder: &Path, snapshot: &Snapshot, manifest: &mut Manifest) -> anyhow::Result<()> {
        for (name, bytes) in snapshot.blob_files()? {
            let from = folder.join(BLOBS).join(&name);
            let open = || File::open(&from).with_context(|| format!("'{}' cannot be read", from.display()));
            manifest.blobs.push(self.file(BLOBS, &name, bytes, open)?);
        }
        Ok(())
    }

    fn log(&mut self, files: &[LogFile], manifest: &mut Manifest) -> anyhow::Result<()> {
        for (at, file) in files.iter().enumerate() {
            // The last one grows, or was cut after a crash and written on: only what is in it says whether it is the same.
            let is_other = at + 1 == files.len()
                && match self.there(LOG, &file.name, file.bytes) {
                    Some(known) => digest_of(file.reader().take(file.bytes))?.1 != known.sha256,
                    None => true,
                };
            if is_other {
                self.known.remove(&format!("{LOG}/{}", file.name));
            }
            manifest.log.push(self.file(LOG, &file.name, file.bytes, || Ok(file.reader()))?);
        }
        Ok(())
    }

    fn key(&mut self, folder: &Path, manifest: &mut Manifest) -> anyhow::Result<()> {
        let from = folder.join(ADMIN_KEY);
        let Ok(key) = fs::read(&from) else { return Ok(()) };
        write_whole(&self.to.join(ADMIN_KEY), &key)?;
        manifest.admin_key = Some(hex(&Sha256::digest(&key)));
        Ok(())
    }

    async fn objects(
        &mut self,
        url: &str,
        settings: &sluice_databases::Settings,
        snapshot: &Snapshot,
        manifest: &mut Manifest,
    ) -> anyhow::Result<()> {
        let bucket = sluice_databases::Bucket::open(url, settings)?;
        let mut objects = Object { url: url.to_owned(), files: Vec::new() };
        for (name, bytes) in sluice_databases::objects_in(|table, after| snapshot.page(table, after))? {
            let item = match self.there(OBJECTS, &name, bytes) {
                Some(item) => item,
                None => {
                    let to = self.to.join(OBJECTS).join(&name);
                    let sha256 = bucket.fetch(&name, bytes, &to).await.with_context(|| {
                        format!("object '{name}' cannot be copied; if its document was just removed, make the backup again")
                    })?;
                    self.summary.copied_bytes += bytes;
                    Item { name, bytes, sha256 }
                }
            };
            self.summary.files += 1;
            self.summary.bytes += bytes;
            objects.files.push(item);
        }
        manifest.objects = Some(objects);
        Ok(())
    }

    /// What is in the backup already under that name, if it has the right size.
    fn there(&self, part: &str, name: &str, bytes: u64) -> Option<Item> {
        let (known_bytes, sha256) = self.known.get(&format!("{part}/{name}"))?;
        let found = fs::metadata(self.to.join(part).join(name)).ok()?.len();
        (*known_bytes == bytes && found == bytes).then(|| Item {
            name: name.to_owned(),
            bytes,
            sha256: sha256.clone(),
        })
    }

    /// Copies a file that never changes but for growing, unless it is there.
    fn file<R: Read>(
        &mut self,
        part: &str,
        name: &str,
        bytes: u64,
        open: impl FnOnce() -> anyhow::Result<R>,
    ) -> anyhow::Result<Item> {
        self.summary.files += 1;
        self.summary.bytes += bytes;
        if let Some(item) = self.there(part, name, bytes) {
            return Ok(item);
        }
        let to = self.to.join(part).join(name);
        let sha256 =
            copy_whole(open()?, bytes, &to).with_context(|| format!("'{part}/{name}' cannot be copied"))?;
        self.summary.copied_bytes += bytes;
        Ok(Item { name: name.to_owned(), bytes, sha256 })
    }
}

/// Copies exactly so many bytes into a file that is whole or not there; their digest.
fn copy_whole(from: impl Read, bytes: u64, to: &Path) -> anyhow::Result<String> {
    let unfinished = to.with_extension("new");
    let mut from = from.take(bytes);
    let mut out = File::create(&unfinished)?;
    let (mut sum, mut buffer, mut copied) = (Sha256::new(), vec![0; COPY_BYTES], 0);
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        sum.update(&buffer[..count]);
        out.write_all(&buffer[..count])?;
        copied += count as u64;
    }
    if copied != bytes {
        bail!("it has {copied} bytes instead of {bytes}");
    }
    out.sync_all()?;
    fs::rename(&unfinished, to)?;
    Ok(hex(&sum.finalize()))
}

fn write_whole(to: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    copy_whole(bytes, bytes.len() as u64, to)
        .with_context(|| format!("'{}' cannot be written", to.display()))?;
    Ok(())
}

/// Removes what the backup before named and this one does not.
fn remove_unnamed(dir: &Path, before: &Manifest, now: &Manifest) {
    let kept = now.places();
    for place in before.places().difference(&kept) {
        let _ = fs::remove_file(dir.join(place));
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Size and digest of what can be read.
fn digest_of(mut from: impl Read) -> io::Result<(u64, String)> {
    let (mut sum, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; COPY_BYTES]);
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok((bytes, hex(&sum.finalize())));
        }
        sum.update(&buffer[..count]);
        bytes += count as u64;
    }
}

/// Reads all of a backup and compares it with its manifest; what is wrong with it, nothing if all is well.
pub(crate) fn verify(dir: &Path, manifest: &Manifest) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |place: String, bytes: u64, sha256: &str| match File::open(dir.join(&place))
        .and_then(digest_of)
    {
        Ok((found, digest)) if found == bytes && digest == sha256 => {}
        Ok((found, _)) if found != bytes => {
            wrong.push(format!("{place} has {found} bytes instead of {bytes}"))
        }
        Ok(_) => wrong.push(format!("{place} is damaged: its content is not what was backed up")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => wrong.push(format!("{place} is missing")),
        Err(error) => wrong.push(format!("{place} cannot be read: {error}")),
    };
    for chunk in manifest.tables.iter().flat_map(|table| &table.chunks) {
        check(format!("{CHUNKS}/{}", chunk.sha256), chunk.bytes, &chunk.sha256);
    }
    let objects = manifest.objects.iter().flat_map(|objects| &objects.files);
    let parts = [(BLOBS, &manifest.blobs), (LOG, &manifest.log)];
    let files = parts.iter().flat_map(|(part, items)| items.iter().map(move |item| (*part, item)));
    for (part, item) in files.chain(objects.map(|item| (OBJECTS, item))) {
        check(format!("{part}/{}", item.name), item.bytes, &item.sha256);
    }
    if let Some(sha256) = &manifest.admin_key {
        let bytes = fs::metadata(dir.join(ADMIN_KEY)).map_or(0, |there| there.len());
        check(ADMIN_KEY.to_owned(), bytes, sha256);
    }
    wrong
}
