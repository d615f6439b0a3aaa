//! Backups of a data folder: made while it is in use, consistent over all its parts, checked and restored.
//!
//! # What consistent means
//! Store and log are taken at one moment, between two records of the log, so a backup is what a crash at that moment would
//! have left, and the same recovery takes it from there: what was acknowledged before the backup began is in it, and work
//! that was under way is done again. Content is copied after that moment from files that never change and are not removed
//! while the backup is made. So nothing in it names what is not in it.
//!
//! # Damage
//! Content is compared with the digests that were taken when it was stored. What is damaged in the data folder is copied as
//! it is, if it has its size, and named in the manifest, so that the rest is backed up and nobody takes this for whole. What
//! an earlier backup holds is read again and kept while it is whole, whatever became of it in the data folder since.
//!
//! # Layout
//! A manifest with the digest of everything else; rows of tables in chunks, cut where their keys say, and files of the log in
//! chunks of one size, so that most chunks of a second backup are there already; content and the admin key as they are.
//! What a manifest names is never written over: another file of that name is kept under one of its own. The manifest comes
//! last, and what it does not name goes after that: a backup that is cut short leaves the one before it whole.

mod files;
mod hold;
mod key;
mod manifest;
mod progress;
mod restore;
mod salvage;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use sha2::{Digest as _, Sha256};
use sluice_bus::embedded::{Embedded as Broker, LogFile};
use sluice_store::{ContentFile, Embedded as Store, Snapshot};

use self::files::{
    NotCopied, Sums, check_kinds, check_lock, copy_whole, hex, is_there, remove_unnamed, sums_of, version_of,
    write_whole,
};
pub(crate) use self::hold::{Checked, check};
use self::hold::{Making, alone};
use self::key::Key;
use self::manifest::{Chunk, Item, Piece, Table};
pub(crate) use self::manifest::{Manifest, Object};
pub(crate) use self::progress::Progress;
pub(crate) use self::restore::restore;
pub(crate) use self::salvage::{Found, salvage};
use crate::exit::{Code, Told};
use crate::folder::{in_place_of_folder, open_file};

const CHUNKS: &str = "chunks";
const BLOBS: &str = "blobs";
const LOG: &str = "log";
const OBJECTS: &str = "objects";
const ADMIN_KEY: &str = "admin.key";
/// The folders of a backup. Earlier versions kept files of the log in one of their own.
const PARTS: [&str; 3] = [CHUNKS, BLOBS, OBJECTS];

/// A chunk of rows is not cut before it has this many bytes.
const CHUNK_BYTES_MIN: usize = 256 * 1024;
/// From this many bytes on it is cut wherever it is.
const CHUNK_BYTES_MAX: usize = 4 * 1024 * 1024;
/// In between, one key in so many ends a chunk.
const CUT_ONE_IN: u8 = 64;
/// A file of the log is cut after so many bytes.
const LOG_PIECE_BYTES: u64 = 256 * 1024;
/// How often a backup begins again because content was removed from the object store meanwhile.
const OBJECT_TRIES_MAX: u32 = 3;

/// What is backed up.
pub(crate) struct Source {
    /// The data folder.
    pub(crate) path: PathBuf,
    /// Its id.
    pub(crate) folder: String,
    /// Digest of the backup that it was restored from, if it was.
    pub(crate) restored_from: Option<String>,
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

/// How a backup is made.
#[derive(Debug, Clone, Default)]
pub(crate) struct How {
    /// In place of one that has come further than the folder, too.
    pub(crate) older: bool,
    pub(crate) progress: Progress,
}

/// Makes a backup in `dir`, or brings the one that is there up to date. The disk of `dir` may hold the thread that this runs on.
pub(crate) async fn make(source: Arc<Source>, dir: &Path, how: &How) -> anyhow::Result<Summary> {
    make_alone(&source, dir, how).await.map_err(|error| explained(error, dir))
}

async fn make_alone(source: &Source, dir: &Path, how: &How) -> anyhow::Result<Summary> {
    if let Some(what) = in_place_of_folder(dir) {
        return Err(Told::new(Code::Failed, what).next("name another folder for the backup").into());
    }
    fs::create_dir_all(dir).with_context(|| format!("'{}' cannot be made", dir.display()))?;
    check_kinds(dir)?;
    check_lock(dir)?;
    // What copies goes on for a moment when nobody waits for it any more, and holds it too.
    let making = Arc::new(Making::begin(dir, &how.progress).await?);
    let mut tries = 0;
    let made = loop {
        match make_once(source, dir, how, &making).await {
            // Objects go at once when their document does, which no snapshot holds back.
            Err(error) if source.objects.is_some() && tries < OBJECT_TRIES_MAX && is_object_gone(&error) => {
                tries += 1
            }
            made => break made,
        }
    };
    making.end();
    made
}

/// A row that cannot be read is in no backup, and neither is what comes after it: a backup without them would be taken for one.
fn explained(error: anyhow::Error, dir: &Path) -> anyhow::Error {
    if error.chain().any(|cause| cause.is::<Told>()) {
        return error;
    }
    let is_damage = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(sluice_store::Error::Damaged { .. }))
    };
    let next = if error.chain().any(is_damage) {
        "`sluice doctor --verify` names all that is damaged; restore the last whole backup with `sluice restore DIR --data NEW`"
            .to_owned()
    } else if let Some(folder) = error.chain().find_map(in_the_way) {
        format!(
            "move the folder '{}' away, which is in the place of a file, then make it again",
            folder.display()
        )
    } else {
        format!(
            "see whether '{}' has room and may be written, then make it again; or name another folder",
            dir.display()
        )
    };
    Told::new(Code::Failed, format!("no backup was made, and an earlier one is as it was: {error:#}"))
        .next(next)
        .into()
}

/// The folder for which a file could not be written.
fn in_the_way<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a Path> {
    match cause.downcast_ref() {
        Some(NotCopied::To(path, _)) if path.is_dir() => Some(path),
        _ => None,
    }
}

fn is_object_gone(error: &anyhow::Error) -> bool {
    let is_refused = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(sluice_store::Error::Refused { .. }))
    };
    error.chain().any(is_refused)
}

async fn make_once(source: &Source, dir: &Path, how: &How, making: &Arc<Making>) -> anyhow::Result<Summary> {
    let generation = source.store.stamp()?.map(|stamp| stamp.generation);
    let before = prepare(dir, source, generation, how)?;
    let key = Key::of(source, dir, before.as_ref()).await?;
    // One moment for both.
    let (log, snapshot) = match &source.broker {
        Some(broker) => broker.freeze(|| source.store.snapshot())?,
        None => (Vec::new(), source.store.snapshot()),
    };
    let snapshot = snapshot?;
    let to = dir.to_owned();
    let (path, folder, formats) = (source.path.clone(), source.folder.clone(), source.store.formats()?);
    let (known, progress, held) = (before.clone(), how.progress.clone(), making.clone());
    let copied = tokio::task::spawn_blocking(move || {
        let _held = held;
        let mut copy = Copy::new(to, known, progress);
        let mut manifest = Manifest::new(folder, formats);
        manifest.generation = generation;
        copy.tables(&snapshot, &mut manifest)?;
        copy.contents(&path, &snapshot, &mut manifest)?;
        copy.log(&log, &mut manifest)?;
        copy.key(key, &mut manifest)?;
        anyhow::Ok((copy, manifest, snapshot))
    });
    let (mut copy, mut manifest, snapshot) = copied.await.context("the backup was cut off")??;
    if let Some((url, settings)) = &source.objects {
        copy.objects(url, settings, &snapshot, &mut manifest).await?;
    }
    drop(snapshot);
    let damage = source.store.upkeep().named(std::mem::take(&mut copy.damage)).await;
    manifest.damaged.extend(damage.iter().map(ToString::to_string));
    let (to, held) = (dir.to_owned(), making.clone());
    let written = tokio::task::spawn_blocking(move || {
        let _held = held;
        manifest.write(&to).map(|()| manifest)
    });
    let manifest = written.await.context("the backup was cut off")??;
    if let Some(alone) = alone(dir, &how.progress).await {
        let (to, held) = (dir.to_owned(), making.clone());
        let removed = tokio::task::spawn_blocking(move || {
            let _held = (held, alone);
            remove_unnamed(&to, before.as_ref(), &manifest);
        });
        removed.await.context("the backup was cut off")?;
    } else {
        tracing::info!(dir = %dir.display(), "the backup is being read: what it does not hold any more goes with the next one");
    }
    Ok(copy.summary)
}

/// Whether a folder is another one, or inside of it, however the two are named.
pub(crate) fn is_within(folder: &Path, other: &Path) -> io::Result<bool> {
    Ok(resolved(folder)?.starts_with(resolved(other)?))
}

/// Where a path leads, without links as far as it is there.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    for there in path.ancestors() {
        if let Ok(found) = fs::canonicalize(there) {
            let rest = path.strip_prefix(there).unwrap_or(Path::new(""));
            // Nothing of the rest is there, so nothing in it is a link.
            return Ok(rest.components().fold(found, |mut at, part| {
                match part {
                    Component::ParentDir => drop(at.pop()),
                    part => at.push(part),
                }
                at
            }));
        }
    }
    Ok(path)
}

/// Refuses the folder of a backup where a data folder is wanted: what works in it would break the backup.
pub(crate) fn refuse_backup(folder: &Path) -> Result<(), Told> {
    let is_backup = crate::folder::is_there(&folder.join(manifest::FILE))?;
    let folder = folder.display();
    if !is_backup {
        return Ok(());
    }
    Err(Told::new(Code::Failed, format!("'{folder}' is a backup, not a data folder, and stays as it is"))
        .next(format!("sluice restore {folder} --data NEW, then use NEW")))
}

/// Insists that a backup may take the place of this one, if it is of the same data folder.
fn insist_newer(
    dir: &Path,
    before: &Manifest,
    source: &Source,
    generation: Option<u64>,
) -> anyhow::Result<()> {
    let (Some(reached), Some(at)) = (before.generation, generation) else { return Ok(()) };
    if reached <= at {
        return Ok(());
    }
    let what = format!(
        "the backup in '{}' has come further (to generation {reached}) than the data folder '{}' (generation {at}), which is an \
         older copy; it stays as it is",
        dir.display(),
        source.path.display()
    );
    Err(Told::new(Code::Failed, what)
        .next("name another folder for this backup; or replace the newer one with --older")
        .into())
}

/// Makes the folder of a backup, or looks whether it is one of this data folder.
fn prepare(
    dir: &Path,
    source: &Source,
    generation: Option<u64>,
    how: &How,
) -> anyhow::Result<Option<Manifest>> {
    let refused = |what: String| {
        Told::new(Code::Failed, what).next("name an empty folder, or the one of an earlier backup")
    };
    let before = Manifest::read(dir)?;
    match &before {
        Some(before) if before.folder == source.folder && how.older => {}
        Some(before) if before.folder == source.folder => insist_newer(dir, before, source, generation)?,
        // It was restored from this very backup, and no other one took its place since.
        Some(before) if source.restored_from.as_ref() == Some(&before.digest()?) => {}
        Some(before) => {
            let what =
                format!("'{}' holds a backup of another data folder ({})", dir.display(), before.folder);
            return Err(refused(what).into());
        }
        None => {}
    }
    // In a backup, what others left beside it (a lock, `lost+found`) is in nobody's way.
    let is_new = before.is_none();
    // Every backup begins with it: where it is missing, content or a key is somebody's, and not left by one that was cut short.
    let is_begun = dir.join(CHUNKS).is_dir();
    let ours = [CHUNKS, BLOBS, LOG, OBJECTS, ADMIN_KEY];
    for entry in fs::read_dir(dir).with_context(|| format!("'{}' cannot be read", dir.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_left = ours.contains(&name.as_str()) || name.starts_with(ADMIN_KEY) || name.ends_with(".new");
        if is_new && !name.starts_with(manifest::FILE) && !(is_begun && is_left) {
            let what = format!("'{}' is not empty and no backup: '{name}' is in it", dir.display());
            return Err(refused(what).into());
        }
    }
    for part in PARTS {
        fs::create_dir_all(dir.join(part))
            .with_context(|| format!("'{}' cannot be written", dir.display()))?;
    }
    Ok(before)
}

struct Copy {
    to: PathBuf,
    before: Option<Manifest>,
    /// Digests of what the backup before this one holds, by place.
    known: HashMap<String, (u64, String)>,
    /// The files of what that does not hold under its own name, by part and name.
    renamed: HashMap<String, String>,
    /// Content that is not what was stored.
    damage: Vec<sluice_store::Error>,
    summary: Summary,
    progress: Progress,
}

impl Copy {
    fn new(to: PathBuf, before: Option<Manifest>, progress: Progress) -> Self {
        let known = before.as_ref().map(Manifest::digests).unwrap_or_default();
        let renamed = before.as_ref().map(Manifest::renamed).unwrap_or_default();
        Self { to, before, known, renamed, damage: Vec::new(), summary: Summary::default(), progress }
    }

    fn tables(&mut self, snapshot: &Snapshot, manifest: &mut Manifest) -> anyhow::Result<()> {
        for name in snapshot.tables()? {
            let mut table = Table { name: name.clone(), chunks: Vec::new() };
            let mut after: Option<Vec<u8>> = None;
            let (mut chunk, mut rows_in_chunk) = (Vec::new(), 0);
            loop {
                let page = snapshot.page(&name, after.as_deref())?;
                self.progress.add(page.rows.len() as u64);
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

    fn chunk(&mut self, bytes: &mut Vec<u8>, rows: &mut u64) -> anyhow::Result<Chunk> {
        let Piece { sha256, bytes: size } = self.piece(bytes)?;
        self.summary.rows += *rows;
        self.summary.bytes += size;
        bytes.clear();
        Ok(Chunk { sha256, rows: std::mem::take(rows), bytes: size })
    }

    /// Puts bytes into `chunks`, if they are not there yet.
    fn piece(&mut self, bytes: &[u8]) -> anyhow::Result<Piece> {
        let piece = Piece { sha256: hex(&Sha256::digest(bytes)), bytes: bytes.len() as u64 };
        let to = self.to.join(CHUNKS).join(&piece.sha256);
        self.progress.add(piece.bytes);
        if !self.is_piece_there(&piece) {
            write_whole(&to, bytes)?;
            self.summary.copied_bytes += piece.bytes;
        }
        Ok(piece)
    }

    fn is_piece_there(&self, piece: &Piece) -> bool {
        is_there(&self.to.join(CHUNKS).join(&piece.sha256), piece.bytes, |sums| sums.sha256 == piece.sha256)
    }

    fn contents(
        &mut self,
        folder: &Path,
        snapshot: &Snapshot,
        manifest: &mut Manifest,
    ) -> anyhow::Result<()> {
        let contents = snapshot.contents()?;
        self.damage.extend(contents.damage);
        for content in contents.files {
            let from = folder.join(BLOBS).join(&content.name);
            let mut file = self.file_of(BLOBS, &content.name);
            let (to, known) = (self.to.join(BLOBS).join(&file), self.known_sum(BLOBS, &file));
            let sums = match content_there(&to, &content, known, &self.progress) {
                Some(sums) => sums,
                None => {
                    file = self.beside(BLOBS, &content.name, file);
                    match copy_content(&from, &content, &self.to.join(BLOBS).join(&file), &self.progress) {
                        Ok(sums) => {
                            self.summary.copied_bytes += content.bytes;
                            sums
                        }
                        // Known already: somebody started without it.
                        Err(NotCopied::From(_)) if content.is_lost => continue,
                        Err(NotCopied::From(reason)) => {
                            self.damage.push(damaged(BLOBS, &content, &reason));
                            continue;
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
            };
            let item = self.content(BLOBS, content, file, sums);
            manifest.blobs.push(item);
        }
        Ok(())
    }

    /// Takes in content that is in the backup now, and names it if it is not what was stored.
    fn content(&mut self, part: &str, content: ContentFile, file: String, sums: Sums) -> Item {
        if content.digest.is_some_and(|digest| digest != sums.content) {
            self.damage.push(damaged(part, &content, "it does not match its digests"));
        }
        self.summary.files += 1;
        self.summary.bytes += content.bytes;
        let kept_as = Some(file).filter(|file| *file != content.name);
        Item { kept_as, ..Item::new(content.name, content.bytes, sums.sha256) }
    }

    /// The file that content is in, in the backup before this one.
    fn file_of(&self, part: &str, name: &str) -> String {
        self.renamed.get(&format!("{part}/{name}")).cloned().unwrap_or_else(|| name.to_owned())
    }

    /// The file that it is copied to: not the one that the backup before this one names and holds. That is not what was stored,
    /// but as that backup has it, and that is whole for as long as it stays.
    fn beside(&self, part: &str, name: &str, file: String) -> String {
        let place = format!("{part}/{file}");
        let is_held = self.known.get(&place).is_some_and(|(bytes, sha256)| {
            is_there(&self.to.join(&place), *bytes, |sums| sums.sha256 == *sha256)
        });
        match is_held {
            false => file,
            true if file == name => version_of(name),
            true => name.to_owned(),
        }
    }

    /// The digest that a file has in the backup before this one.
    fn known_sum(&self, part: &str, file: &str) -> Option<String> {
        self.known.get(&format!("{part}/{file}")).map(|(_, sha256)| sha256.clone())
    }

    fn log(&mut self, files: &[LogFile], manifest: &mut Manifest) -> anyhow::Result<()> {
        let mut damaged = Vec::new();
        for (at, file) in files.iter().enumerate() {
            // The last one grows, or was cut after a crash and written on: only what is in it says whether it is the same.
            let is_last = at + 1 == files.len();
            self.progress.add(1);
            match self.log_there(file).filter(|_| !is_last) {
                Some(item) => manifest.log.push(item),
                None if file.is_whole().unwrap_or(false) => manifest.log.push(self.log_file(file)?),
                None => damaged.push(format!("{LOG}/{}", file.name)),
            }
        }
        if !damaged.is_empty() {
            // A log opens as a whole or not at all.
            manifest.log.clear();
            let files = damaged.join(", ");
            let what =
                format!("the broker's log ({files}) is damaged: messages that wait in it are left out");
            manifest.damaged.push(what);
        }
        self.summary.files += manifest.log.len() as u64;
        self.summary.bytes += manifest.log.iter().map(|item| item.bytes).sum::<u64>();
        Ok(())
    }

    fn log_file(&mut self, file: &LogFile) -> anyhow::Result<Item> {
        let what = || format!("'{LOG}/{}' cannot be copied", file.name);
        let (mut from, mut whole, mut pieces) = (file.reader(), Sha256::new(), Vec::new());
        let (mut left, mut piece) = (file.bytes, Vec::new());
        while left > 0 {
            let bytes = left.min(LOG_PIECE_BYTES);
            piece.clear();
            from.by_ref().take(bytes).read_to_end(&mut piece).with_context(what)?;
            if piece.len() as u64 != bytes {
                bail!("{}: it ends {left} bytes too early", what());
            }
            whole.update(&piece);
            pieces.push(self.piece(&piece)?);
            left -= bytes;
        }
        let mut item = Item::new(file.name.clone(), file.bytes, hex(&whole.finalize()));
        item.pieces = Some(pieces);
        Ok(item)
    }

    fn key(&mut self, key: Key, manifest: &mut Manifest) -> anyhow::Result<()> {
        manifest.damaged.extend(key.wrong);
        let Some(key) = key.bytes else { return Ok(()) };
        let sha256 = hex(&Sha256::digest(&key));
        let before =
            self.before.as_ref().and_then(|before| Some((before.key_place()?, before.admin_key.as_ref()?)));
        let place = match before {
            Some((place, known)) if *known == sha256 => place.to_owned(),
            Some((ADMIN_KEY, _)) => version_of(ADMIN_KEY),
            _ => ADMIN_KEY.to_owned(),
        };
        // The same one is written again: it may be damaged there.
        write_whole(&self.to.join(&place), &key)?;
        manifest.admin_key_kept_as = Some(place).filter(|place| place != ADMIN_KEY);
        manifest.admin_key = Some(sha256);
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
        for content in sluice_databases::objects_in(|table, after| snapshot.page(table, after))? {
            let mut file = self.file_of(OBJECTS, &content.name);
            let (there, known) = (self.to.join(OBJECTS).join(&file), self.known_sum(OBJECTS, &file));
            let (of_file, progress) = (content.clone(), self.progress.clone());
            progress.add(1);
            let looked =
                tokio::task::spawn_blocking(move || content_there(&there, &of_file, known, &progress));
            let sums = match looked.await.context("the backup was cut off")? {
                Some(sums) => sums,
                None => {
                    file = self.beside(OBJECTS, &content.name, file);
                    let to = self.to.join(OBJECTS).join(&file);
                    match bucket.fetch(&content.name, content.bytes, &to).await {
                        Ok(()) => {
                            self.summary.copied_bytes += content.bytes;
                            let copied =
                                tokio::task::spawn_blocking(move || File::open(to).and_then(sums_of));
                            copied.await.context("the backup was cut off")??.1
                        }
                        Err(error @ sluice_store::Error::Damaged { .. }) => {
                            self.damage.push(damaged(OBJECTS, &content, &error.to_string()));
                            continue;
                        }
                        Err(error) => {
                            return Err(anyhow::Error::from(error).context(format!(
                                "object '{}' cannot be copied; if its document was just removed, make the backup again",
                                content.name
                            )));
                        }
                    }
                }
            };
            let item = self.content(OBJECTS, content, file, sums);
            objects.files.push(item);
        }
        manifest.objects = Some(objects);
        Ok(())
    }

    /// The file of the log that is in the backup already, if all of it is.
    fn log_there(&self, file: &LogFile) -> Option<Item> {
        let known = self.before.as_ref()?.log.iter().find(|item| item.name == file.name)?;
        let mut pieces = known.pieces.as_ref()?.iter();
        (known.bytes == file.bytes && pieces.all(|piece| self.is_piece_there(piece))).then(|| known.clone())
    }
}

/// The digests of a copy of content that is in the backup already, if it is whole.
fn content_there(
    to: &Path,
    content: &ContentFile,
    known: Option<String>,
    progress: &Progress,
) -> Option<Sums> {
    let found = fs::metadata(to).ok()?.len();
    let sums = || open_file(to).and_then(|file| sums_of(progress.of(file))).ok();
    let sums = (found == content.bytes).then(sums).flatten()?.1;
    let is_whole = match content.digest {
        Some(digest) => sums.content == digest,
        None => known.is_some_and(|known| known == sums.sha256),
    };
    is_whole.then_some(sums)
}

fn copy_content(
    from: &Path,
    content: &ContentFile,
    to: &Path,
    progress: &Progress,
) -> Result<Sums, NotCopied> {
    let opened = open_file(from).map_err(|error| NotCopied::From(format!("it cannot be read: {error}")))?;
    copy_whole(progress.of(opened), content.bytes, to)
}

fn damaged(part: &str, content: &ContentFile, reason: &str) -> sluice_store::Error {
    sluice_store::Error::damaged_content(&content.id, format!("{part}/{} is damaged: {reason}", content.name))
}

/// Reads all of a backup and compares it with its manifest; what is wrong with it, nothing if all is well.
fn verify(dir: &Path, manifest: &Manifest) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |place: String, bytes: u64, sha256: &str| match open_file(&dir.join(&place))
        .and_then(sums_of)
    {
        Ok((found, sums)) if found == bytes && sums.sha256 == sha256 => {}
        Ok((found, _)) if found != bytes => {
            wrong.push(format!("{place} has {found} bytes instead of {bytes}"))
        }
        Ok(_) => wrong.push(format!("{place} is damaged: its content is not what was backed up")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => wrong.push(format!("{place} is missing")),
        Err(error) if dir.join(&place).is_dir() => {
            wrong.push(format!("{place} cannot be read: {error}; move that away first"))
        }
        Err(error) => wrong.push(format!("{place} cannot be read: {error}")),
    };
    for (sha256, bytes) in manifest.pieces() {
        check(format!("{CHUNKS}/{sha256}"), bytes, sha256);
    }
    for (place, item) in manifest.files() {
        check(place, item.bytes, &item.sha256);
    }
    if let (Some(sha256), Some(place)) = (&manifest.admin_key, manifest.key_place()) {
        let bytes = fs::metadata(dir.join(place)).map_or(0, |there| there.len());
        check(place.to_owned(), bytes, sha256);
    }
    if wrong.is_empty() {
        // Pieces that are whole may still not be those of the file, or not in its order.
        let in_pieces = manifest.log.iter().filter(|item| item.pieces.is_some());
        let of_another = in_pieces.filter(|item| {
            let sums = sums_of(item.reader(dir, LOG));
            !sums.is_ok_and(|(bytes, sums)| bytes == item.bytes && sums.sha256 == item.sha256)
        });
        wrong.extend(of_another.map(|item| format!("the pieces of {LOG}/{} are not what it was", item.name)));
    }
    wrong
}
