//! One process per folder: locks that the system releases when their holder dies.
//!
//! Two things are locked: the folder itself, and a file in it that names the holder, which is all that earlier versions
//! lock. Of the file alone the next process would make another one, were it removed while it is held.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, PoisonError};

use rustix::fs::OFlags;

use super::unusable;
use crate::{Error, Result};

const FILE: &str = "sluice.lock";
/// How a file is opened that is written over: nothing that a link in its place leads to is, and a pipe is not waited for.
pub(super) const NO_LINK: i32 = OFlags::NONBLOCK.union(OFlags::NOFOLLOW).bits().cast_signed();

/// A held folder; it is free when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct FolderLock {
    folder: Arc<File>,
    file: Arc<Mutex<File>>,
    /// Whoever looks at the store first, and opens it then, tells once that it was not closed.
    pub(super) unclosed: Arc<Once>,
}

impl FolderLock {
    /// Takes the folder, which must be there.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process has it, [`Error::Unavailable`] if it cannot be used.
    pub fn take(folder: &Path) -> Result<Self> {
        let held = hold(folder)?;
        let file = take_file(folder)?;
        Ok(Self { folder: Arc::new(held), file: Arc::new(Mutex::new(file)), unclosed: Arc::new(Once::new()) })
    }

    /// Whether `path` still names the folder that was taken: it may have been moved or removed, and another one made.
    ///
    /// # Errors
    /// What the system says.
    pub fn is_at(&self, path: &Path) -> io::Result<bool> {
        is_at(&self.folder, path)
    }

    /// Whether the folder that was taken is in no other any more.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.folder.metadata().is_ok_and(|folder| folder.nlink() == 0)
    }

    /// A path by which this process reaches the folder that it holds, wherever that is now.
    #[must_use]
    pub fn held_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.folder.as_raw_fd()))
    }

    /// To look at the folder first, by whoever has taken it.
    #[must_use]
    pub fn untouched(&self) -> Untouched {
        Untouched { _folder: Arc::clone(&self.folder), unclosed: Arc::clone(&self.unclosed) }
    }

    /// Puts the file back that names the holder, if it was removed or replaced; answers whether it was.
    ///
    /// # Errors
    /// As [`FolderLock::take`].
    pub fn put_back(&self, folder: &Path) -> Result<bool> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if is_at(&file, &folder.join(FILE)).map_err(|e| unusable(folder, &e))? {
            return Ok(false);
        }
        *file = take_file(folder)?;
        Ok(true)
    }
}

/// A folder that is looked at: no process works in it meanwhile, and nothing is left in it.
#[derive(Debug)]
pub struct Untouched {
    _folder: Arc<File>,
    pub(super) unclosed: Arc<Once>,
}

impl Untouched {
    /// Keeps others from beginning to work in a folder, without writing to it.
    ///
    /// # Errors
    /// [`Error::Locked`] if a process has it, [`Error::Unavailable`] if it cannot be read.
    pub fn hold(folder: &Path) -> Result<Self> {
        let held = hold(folder)?;
        if is_file_locked(folder) {
            return Err(locked(folder));
        }
        Ok(Self { _folder: Arc::new(held), unclosed: Arc::new(Once::new()) })
    }
}

/// Locks the folder itself.
fn hold(folder: &Path) -> Result<File> {
    let held = File::open(folder).map_err(|e| unusable(folder, &e))?;
    match held.try_lock() {
        Err(TryLockError::WouldBlock) => Err(locked(folder)),
        // A file system that locks only what can be written, as NFS: there the file in it has to do.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(held),
    }
}

/// Locks the file in a folder, making it if it is not there, and puts down who holds it.
fn take_file(folder: &Path) -> Result<File> {
    let path = folder.join(FILE);
    let failed = |e: io::Error| unusable(&path, &e);
    let is_other = |there: std::fs::Metadata| !there.is_file();
    if std::fs::symlink_metadata(&path).is_ok_and(is_other) {
        let what = format!("'{}' is no file of its own", path.display());
        return Err(Error::unavailable(format!("{what}; move it away, it is made again")));
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(NO_LINK);
    let mut file = options.open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(locked(folder)),
        Err(TryLockError::Error(e)) => return Err(failed(e)),
    }
    file.set_len(0).map_err(failed)?;
    file.rewind().map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

/// Whether a process holds the file in a folder.
fn is_file_locked(folder: &Path) -> bool {
    open_file(folder).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

fn open_file(folder: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(NO_LINK).open(folder.join(FILE))
}

fn locked(folder: &Path) -> Error {
    // Where nobody holds the file, it names a process that ended.
    let pid = is_file_locked(folder).then(|| {
        let mut pid = String::new();
        open_file(folder).and_then(|mut file| file.read_to_string(&mut pid)).map(|_| pid)
    });
    let pid = pid.and_then(io::Result::ok).map(|pid| pid.trim().to_owned()).filter(|pid| !pid.is_empty());
    let pid = pid.unwrap_or_else(|| "(unknown)".to_owned());
    Error::Locked { folder: folder.display().to_string(), pid }
}

/// Whether a path names what is open.
pub(super) fn is_at(open: &File, path: &Path) -> io::Result<bool> {
    let there = match std::fs::metadata(path) {
        Ok(there) => there,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    let own = open.metadata()?;
    Ok((there.dev(), there.ino()) == (own.dev(), own.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_the_folder_and_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let held = FolderLock::take(folder.path()).unwrap();
        let error = FolderLock::take(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        assert!(error.contains(&folder.path().display().to_string()), "{error}");
        drop(held);
        FolderLock::take(folder.path()).unwrap();
    }

    #[test]
    fn a_folder_stays_locked_whatever_becomes_of_the_file_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        let held = FolderLock::take(folder.path()).unwrap();
        let is_refused = |what: &str| {
            let taken = FolderLock::take(folder.path());
            assert!(matches!(taken, Err(Error::Locked { .. })), "{what}: {taken:?}");
            let looked = Untouched::hold(folder.path());
            assert!(matches!(looked, Err(Error::Locked { .. })), "{what}: {looked:?}");
        };
        is_refused("as it was");
        std::fs::rename(&file, folder.path().join("moved")).unwrap();
        is_refused("moved");
        std::fs::write(&file, "1\n").unwrap();
        is_refused("replaced");
        std::fs::remove_file(&file).unwrap();
        is_refused("removed");
        assert!(!file.exists(), "whoever is refused makes nothing");
        drop(held);
        FolderLock::take(folder.path()).unwrap();
    }

    #[test]
    fn what_a_link_in_place_of_the_lock_leads_to_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (file, target) = (folder.path().join(FILE), folder.path().join("target"));
        std::fs::write(&target, "somebody's").unwrap();
        std::os::unix::fs::symlink(&target, &file).unwrap();
        let error = FolderLock::take(folder.path()).unwrap_err().to_string();
        assert!(error.contains(FILE) && error.contains("move it away"), "{error}");
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "somebody's");
        std::fs::remove_file(&file).unwrap();
        FolderLock::take(folder.path()).unwrap();
    }

    #[test]
    fn a_folder_is_looked_at_without_a_trace_and_not_while_an_earlier_version_holds_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let looked = Untouched::hold(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let refused = FolderLock::take(folder.path());
        assert!(matches!(refused, Err(Error::Locked { .. })), "{refused:?}");
        drop(looked);
        let file = File::create(folder.path().join(FILE)).unwrap();
        file.lock().unwrap();
        let refused = Untouched::hold(folder.path());
        assert!(matches!(refused, Err(Error::Locked { .. })), "{refused:?}");
    }
}
