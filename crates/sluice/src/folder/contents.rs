//! Which parts of a data folder are there; what cannot be read is not taken for missing.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use sluice_store::embedded::on_disk;

use super::{ADMIN_KEY, BLOBS, BROKER, STORE_FILE, kinds};

/// What is in a folder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contents {
    pub(super) store: bool,
    pub(super) blobs: bool,
    pub(super) broker: bool,
    pub(super) admin_key: bool,
}

impl Contents {
    /// Fails for what cannot be read, or is something else than it should be: that is not missing.
    pub(super) fn of(path: &Path) -> anyhow::Result<Self> {
        kinds::check(path)?;
        let blobs = entries(&path.join(BLOBS))?;
        let logs = logs(path)?;
        Ok(Self {
            store: holds(&path.join(STORE_FILE))?,
            blobs: !blobs.is_empty(),
            broker: !logs.is_empty(),
            admin_key: holds(&path.join(ADMIN_KEY))?,
        })
    }

    pub(super) fn is_empty(self) -> bool {
        !(self.store || self.blobs || self.broker || self.admin_key)
    }

    /// Those of these that are there, for people.
    pub(super) fn names(self, of: &[&'static str]) -> String {
        let is_there = |name: &&&str| match **name {
            BLOBS => self.blobs,
            BROKER => self.broker,
            ADMIN_KEY => self.admin_key,
            _ => self.store,
        };
        of.iter().filter(is_there).copied().collect::<Vec<_>>().join(", ")
    }
}

/// The bytes of the files in a data folder, by part.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Room {
    pub(crate) store_bytes: u64,
    /// Of content that rests in files of its own.
    pub(crate) content_bytes: u64,
    /// Of the embedded broker's log, without what it holds back.
    pub(crate) log_bytes: u64,
}

impl Room {
    /// What cannot be read counts nothing.
    pub(crate) fn of(path: &Path) -> Self {
        let bytes = |file: &PathBuf| fs::metadata(file).map_or(0, |meta| on_disk(&meta));
        let all = |folder: &str, prefix: &str| {
            let mut files = entries(&path.join(folder)).unwrap_or_default();
            files.retain(|file| {
                file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
            });
            files.iter().map(bytes).sum()
        };
        Self {
            store_bytes: bytes(&path.join(STORE_FILE)),
            content_bytes: all(BLOBS, ""),
            log_bytes: all(BROKER, "log-"),
        }
    }
}

/// What is in a folder; nothing in one that is not there.
fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let listed = match fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        listed => listed.with_context(|| unreadable(folder))?,
    };
    listed.map(|entry| Ok(entry.with_context(|| unreadable(folder))?.path())).collect()
}

/// The names of the log's files.
pub(super) fn logs(path: &Path) -> anyhow::Result<Vec<String>> {
    let files = entries(&path.join(BROKER))?;
    let names =
        files.iter().filter_map(|file| file.file_name()).map(|name| name.to_string_lossy().into_owned());
    Ok(names.filter(|name| name.starts_with("log-")).collect())
}

/// Whether something is in a file; nothing is in one that is not there.
fn holds(file: &Path) -> anyhow::Result<bool> {
    match fs::metadata(file) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        found => Ok(found.with_context(|| unreadable(file))?.len() > 0),
    }
}

pub(super) fn unreadable(part: &Path) -> String {
    unusable(part, "read")
}

/// What is said of a part with which this process may not do what it has to.
pub(super) fn unusable(part: &Path, done: &str) -> String {
    format!(
        "'{}' is there, but cannot be {done}; see who owns it, and with which permissions",
        part.display()
    )
}

pub(super) fn holds_something(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.len() > 0)
}
