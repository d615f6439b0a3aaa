//! The files of a backup: copied whole or not at all, compared by digest, and removed when nothing names them.

use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use sluice_store::content::{self, Digests, PartDigest};

use super::manifest::Manifest;
use super::{ADMIN_KEY, BLOBS, CHUNKS, LOG, OBJECTS, manifest};
use crate::exit::{Code, Told};
use crate::folder::{in_place_of_folder, open_file};

/// Bytes read at once.
const COPY_BYTES: usize = 1024 * 1024;
/// What the name of a file ends with until the file is whole.
const UNFINISHED: &str = "new";

/// The digests of a file.
pub(super) struct Sums {
    /// The SHA-256 of all of it, in hex.
    pub(super) sha256: String,
    /// The digest by which the store knows content.
    pub(super) content: PartDigest,
}

/// Why something was not copied.
#[derive(Debug)]
pub(super) enum NotCopied {
    /// What is to be copied cannot be read, or is not as long as it should be.
    From(String),
    /// The copy cannot be written.
    To(PathBuf, io::Error),
}

impl std::fmt::Display for NotCopied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::From(reason) => f.write_str(reason),
            Self::To(path, error) => write!(f, "'{}' cannot be written: {error}", path.display()),
        }
    }
}

impl std::error::Error for NotCopied {}

/// Copies exactly so many bytes into a file that is whole or not there.
pub(super) fn copy_whole(from: impl Read, bytes: u64, to: &Path) -> Result<Sums, NotCopied> {
    let mut unfinished = to.as_os_str().to_owned();
    unfinished.push(".");
    unfinished.push(UNFINISHED);
    let unfinished = PathBuf::from(unfinished);
    let copied = copy_and_rename(from, bytes, &unfinished, to);
    if copied.is_err() {
        // A part of it would only take room.
        let _ = fs::remove_file(&unfinished);
    }
    copied
}

fn copy_and_rename(from: impl Read, bytes: u64, unfinished: &Path, to: &Path) -> Result<Sums, NotCopied> {
    let unwritten = |error| NotCopied::To(to.to_owned(), error);
    // What lies there is what was cut short, or no file that could be written over.
    match fs::remove_file(unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(NotCopied::To(unfinished.to_owned(), error));
        }
        _ => {}
    }
    let mut out = File::create_new(unfinished).map_err(unwritten)?;
    let mut failed = None;
    let read = each_piece(from.take(bytes), |piece| {
        failed = out.write_all(piece).err();
        failed.is_none()
    });
    if let Some(error) = failed {
        return Err(unwritten(error));
    }
    let (copied, sums) = read.map_err(|error| NotCopied::From(format!("it cannot be read: {error}")))?;
    if copied != bytes {
        return Err(NotCopied::From(format!("it has {copied} bytes instead of {bytes}")));
    }
    out.sync_all().and_then(|()| fs::rename(unfinished, to)).map_err(unwritten)?;
    Ok(sums)
}

pub(super) fn write_whole(to: &Path, bytes: &[u8]) -> Result<(), NotCopied> {
    copy_whole(bytes, bytes.len() as u64, to).map(drop)
}

/// Size and digests of what can be read.
pub(super) fn sums_of(from: impl Read) -> io::Result<(u64, Sums)> {
    each_piece(from, |_| true)
}

/// Reads to the end, or until `take` wants no more.
fn each_piece(mut from: impl Read, mut take: impl FnMut(&[u8]) -> bool) -> io::Result<(u64, Sums)> {
    let (mut sum, mut digests, mut bytes) = (Sha256::new(), Digests::default(), 0);
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let count = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        let piece = &buffer[..count];
        if piece.is_empty() || !take(piece) {
            let content = content::whole(&digests.finish());
            return Ok((bytes, Sums { sha256: hex(&sum.finalize()), content }));
        }
        sum.update(piece);
        digests.add(piece);
        bytes += count as u64;
    }
}

/// Insists that nothing else is in the place of a backup's folders. What is in that of a file is told by whoever reads it.
pub(super) fn check_kinds(dir: &Path) -> Result<(), Told> {
    let wrong = [CHUNKS, BLOBS, LOG, OBJECTS].iter().find_map(|part| in_place_of_folder(&dir.join(part)));
    wrong.map_or(Ok(()), |what| Err(in_the_way(what)))
}

/// The same of its lock, which who only reads it does without. What a link leads to is somebody's.
pub(super) fn check_lock(dir: &Path) -> Result<(), Told> {
    let lock = dir.join(format!("{}.lock", manifest::FILE));
    match fs::symlink_metadata(&lock) {
        Ok(there) if !there.is_file() => Err(in_the_way(format!(
            "'{}' is no file of its own, so it cannot be written as the lock of a backup is",
            lock.display()
        ))),
        _ => Ok(()),
    }
}

fn in_the_way(what: String) -> Told {
    Told::new(Code::Failed, what).next("move it away, then run the same again; or name another folder")
}

/// Whether a file has this size, and digests that fit.
pub(super) fn is_there(file: &Path, bytes: u64, fits: impl FnOnce(&Sums) -> bool) -> bool {
    fs::metadata(file).is_ok_and(|found| found.len() == bytes)
        && open_file(file).and_then(sums_of).is_ok_and(|(_, sums)| fits(&sums))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Removes what the manifest does not name: what the one before it did, and what backups that were cut short left behind. A
/// file whose name no backup gives is somebody else's, and stays.
pub(super) fn remove_unnamed(dir: &Path, before: Option<&Manifest>, now: &Manifest) {
    let kept = now.places();
    let mut places = before.map(Manifest::places).unwrap_or_default();
    places.extend(names_in(dir).filter(|name| is_version(name, ADMIN_KEY)));
    for part in [CHUNKS, BLOBS, LOG, OBJECTS] {
        let names = names_in(&dir.join(part)).filter(|name| is_ours(part, name));
        places.extend(names.map(|name| format!("{part}/{name}")));
    }
    for place in places.difference(&kept) {
        match fs::remove_file(dir.join(place)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(place, %error, "what the backup does not hold any more could not be removed yet");
            }
            _ => {}
        }
    }
    // An earlier version kept the log there; it stays while somebody else's files are in it.
    let _ = fs::remove_dir(dir.join(LOG));
}

fn names_in(folder: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    files.filter_map(|entry| entry.file_name().into_string().ok())
}

/// A name for a file that takes the place of another in the next manifest: what a manifest names is never written over.
pub(super) fn version_of(name: &str) -> String {
    format!("{name}.{}", uuid::Uuid::new_v4().simple())
}

/// Whether this is a name that [`version_of`] gives, or a part of one that was cut short.
fn is_version(name: &str, of: &str) -> bool {
    let name = without_unfinished(name);
    name.strip_prefix(of).and_then(|rest| rest.strip_prefix('.')).is_some_and(|unique| is_hex(unique, 32))
}

/// Whether the broker's log gives a file such a name.
pub(super) fn is_log_file(name: &str) -> bool {
    name.strip_prefix("log-").is_some_and(|number| is_hex(number, 16))
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn without_unfinished(name: &str) -> &str {
    name.strip_suffix(UNFINISHED).and_then(|name| name.strip_suffix('.')).unwrap_or(name)
}

/// Whether a backup gives such a name to a file in that folder.
fn is_ours(part: &str, name: &str) -> bool {
    let name = without_unfinished(name);
    match part {
        CHUNKS => is_hex(name, 64),
        LOG => {
            let own = name.split_once('.').map_or(name, |(own, _)| own);
            is_log_file(own) && (own == name || is_version(name, own))
        }
        _ => {
            let own = name.split_once('.').map_or(name, |(own, _)| own);
            let is_content =
                own.split_once('-').is_some_and(|(id, unique)| is_hex(id, 16) && is_hex(unique, 32));
            is_content && (own == name || is_version(name, own))
        }
    }
}
