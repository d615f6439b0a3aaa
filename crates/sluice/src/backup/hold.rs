//! Who works in the folder of a backup.
//!
//! One process at a time makes a backup in it. Readers need not wait for that: what the manifest names stays until the next
//! one is written, and what that does not name is removed only while nobody reads. The locks end with their process, and
//! readers write nothing, so a backup on a read-only file system is read like any other.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rustix::fs::OFlags;
use tokio::time::Instant;

use super::{Manifest, Progress, manifest, verify};
use crate::exit::{Code, Told};
use crate::folder::open_file;

/// Locked by whoever makes a backup, with its process in it. Earlier versions take such a name for one of a backup too.
const LOCK: &str = "sluice-backup.json.lock";
/// How long one waits for another.
const WAIT: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often a backup is read that another one takes the place of meanwhile.
const READS_MAX: usize = 3;

/// The folder of a backup in which this process makes one.
pub(super) struct Making {
    /// Locked while it is open.
    _file: File,
    path: PathBuf,
}

impl Making {
    /// Waits a little for whoever makes a backup there, then refuses. That this wait will end counts as progress.
    pub(super) async fn begin(dir: &Path, progress: &Progress) -> anyhow::Result<Self> {
        let until = Instant::now() + WAIT;
        loop {
            let begun = Self::try_begin(&dir.join(LOCK));
            if let Some(made) = begun.with_context(|| format!("'{}' cannot be written", dir.display()))? {
                return Ok(made);
            }
            if Instant::now() >= until {
                return Err(busy(dir).into());
            }
            progress.add(1);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn try_begin(path: &Path) -> io::Result<Option<Self>> {
        let mut options = OpenOptions::new();
        // What a link in its place leads to is somebody's.
        let no_link = OFlags::NONBLOCK.union(OFlags::NOFOLLOW).bits().cast_signed();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(no_link);
        let mut file = options.open(path)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(None),
            // A file system without locks: there backups are made one at a time by whoever makes them.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        // Whoever held it before has removed it, and another may be in its place.
        if !is_at(&file, path) {
            return Ok(None);
        }
        // Without it, only the message to others says less.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Some(Self { _file: file, path: path.to_owned() }))
    }

    /// Leaves the folder as others expect it.
    pub(super) fn end(&self) {
        // Where it stays, nobody holds it.
        let _ = fs::remove_file(&self.path);
    }
}

/// The folder of a backup that is read: nothing is removed from it meanwhile.
pub(crate) struct Reading {
    /// Locked while it is open.
    _folder: Option<File>,
}

impl Reading {
    async fn begin(dir: &Path) -> Result<Self, Told> {
        // Whoever reads in it is told why it cannot be opened.
        let Ok(folder) = File::open(dir) else { return Ok(Self { _folder: None }) };
        let until = Instant::now() + WAIT;
        while matches!(folder.try_lock_shared(), Err(TryLockError::WouldBlock)) {
            if Instant::now() >= until {
                return Err(busy(dir));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(Self { _folder: Some(folder) })
    }
}

/// Keeps readers out of the folder, once there are none; `None` if some stay. That this wait will end counts as progress.
pub(super) async fn alone(dir: &Path, progress: &Progress) -> Option<File> {
    let folder = File::open(dir).ok()?;
    let until = Instant::now() + WAIT;
    // Where a folder cannot be locked like this, as on NFS, readers see by the manifest that it was changed.
    while matches!(folder.try_lock(), Err(TryLockError::WouldBlock)) {
        if Instant::now() >= until {
            return None;
        }
        progress.add(1);
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Some(folder)
}

/// A backup of which all was read.
pub(crate) struct Checked {
    pub(crate) manifest: Manifest,
    /// What is wrong with it, nothing if all is well.
    pub(crate) wrong: Vec<String>,
    /// Keeps it as it was read.
    pub(crate) reading: Reading,
}

/// Reads all of a backup and compares it with its manifest; `None` if there is none. Of one that is just being made nothing is
/// said to be wrong.
pub(crate) async fn check(dir: &Path) -> anyhow::Result<Option<Checked>> {
    for _ in 0..READS_MAX {
        // A data folder is locked by whoever works in it.
        if !crate::folder::is_there(&dir.join(manifest::FILE))? && maker(dir).is_none() {
            return Ok(None);
        }
        let reading = Reading::begin(dir).await?;
        if let Some(manifest) = Manifest::read(dir)? {
            let (place, read) = (dir.to_owned(), manifest.clone());
            let wrong = tokio::task::spawn_blocking(move || verify(&place, &read));
            let wrong = wrong.await.context("the check was cut off")?;
            let is_final = || {
                let now = Manifest::read(dir)?;
                let is_same =
                    now.is_some_and(|now| now.made == manifest.made && now.folder == manifest.folder);
                anyhow::Ok(is_same && maker(dir).is_none())
            };
            if wrong.is_empty() || is_final()? {
                return Ok(Some(Checked { manifest, wrong, reading }));
            }
        }
        drop(reading);
        made(dir).await?;
    }
    Err(busy(dir).into())
}

/// Waits until nobody makes a backup in a folder.
async fn made(dir: &Path) -> Result<(), Told> {
    let until = Instant::now() + WAIT;
    while maker(dir).is_some() {
        if Instant::now() >= until {
            return Err(busy(dir));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// The process that makes a backup in a folder, if one does; empty where it is not known which.
fn maker(dir: &Path) -> Option<String> {
    let mut file = open_file(&dir.join(LOCK)).ok()?;
    if !matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
        return None;
    }
    let mut pid = String::new();
    // Then it is not known.
    let _ = file.read_to_string(&mut pid);
    Some(pid.trim().to_owned())
}

fn busy(dir: &Path) -> Told {
    let by = maker(dir).filter(|pid| !pid.is_empty()).map(|pid| format!(" (by process {pid})"));
    let what = format!(
        "'{}' cannot be used now: a backup is being made into it{}",
        dir.display(),
        by.unwrap_or_default()
    );
    Told::new(Code::Failed, what).next("try again when it is done")
}

fn is_at(open: &File, path: &Path) -> bool {
    let (Ok(own), Ok(there)) = (open.metadata(), fs::metadata(path)) else { return false };
    (own.dev(), own.ino()) == (there.dev(), there.ino())
}
