//! A data folder that a backup is restored into, or what can be read of a damaged one: refused to every start until all of it
//! is there.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use sluice_bus::embedded::Embedded as Broker;
use sluice_store::{Embedded as Store, FolderLock};
use tokio::sync::Mutex;

use super::mark::{self, Mark};
use super::{
    ADMIN_KEY, Contents, Folder, Origin, SERVICE_FORMATS, State, Want, holds_something, keep_private,
};
use crate::exit::{Code, Told};

/// The file that locks a folder.
const LOCK: &str = "sluice.lock";
/// A file system of its own begins with a folder for what it finds lost.
const LOST_AND_FOUND: &str = "lost+found";

/// Where what is put into a new folder comes from.
pub(crate) enum FilledFrom {
    /// The backup with this digest.
    Backup(String),
    Damaged,
}

impl Folder {
    /// A folder that is to be filled. Until [`Folder::restored`] it is refused to every start.
    pub(crate) fn restoring(path: &Path, lock: FolderLock, from: FilledFrom) -> anyhow::Result<Self> {
        let mut mark = Mark::new(uuid::Uuid::new_v4().to_string());
        mark.is_restoring = true;
        match from {
            FilledFrom::Backup(digest) => mark.restored_from = Some(digest),
            FilledFrom::Damaged => mark.is_salvaging = true,
        }
        let state = State { mark, store_at: 0, broker_at: 0, written: (0, (0, 0)) };
        let folder = Self {
            path: path.to_owned(),
            lock: Some(lock),
            want: Want::default(),
            origin: Origin::Fresh,
            is_log_lost: AtomicBool::new(false),
            state: Mutex::new(state),
        };
        folder.write(&mut *folder.state.try_lock().context("the folder is in use")?)?;
        Ok(folder)
    }

    /// Takes on the id of a folder that is not used any more, because something outside of it is marked with that. It goes on
    /// from where that had come to: a backup of that one is not newer.
    pub(crate) async fn take_the_place_of(&self, id: String, generation: u64) {
        let mut state = self.state.lock().await;
        state.mark.folder = id;
        state.mark.generation = generation;
    }

    /// Marks a folder that a backup was restored into as whole, and closes it.
    pub(crate) async fn restored(
        &self,
        store: &Store,
        broker: Option<&Broker>,
        objects: Option<&str>,
    ) -> anyhow::Result<()> {
        {
            let mut state = self.state.lock().await;
            let audit = store.audit_blobs().await?;
            self.admit_blobs(store, &audit).await?;
            state.mark.has_admin_key = holds_something(&self.path.join(ADMIN_KEY));
            state.mark.objects = objects.map(str::to_owned);
            // The parts carry the id of the folder that was backed up until they are stamped.
            let first = state.mark.generation + 1;
            self.stamp(&mut state, first, store, broker).await?;
            state.mark.generation = first;
            state.mark.is_restoring = false;
            state.mark.is_salvaging = false;
        }
        self.close(store, broker).await
    }
}

/// Refuses formats of a backup that this version cannot read.
pub(crate) fn check_formats(formats: &[(String, u32)]) -> anyhow::Result<()> {
    let known: Vec<&(&str, u32)> = sluice_store::embedded::FORMATS.iter().chain(SERVICE_FORMATS).collect();
    for (part, version) in formats {
        let ours = known.iter().find(|(known, _)| known == part).map_or(0, |(_, version)| *version);
        if *version > ours {
            let what = format!(
                "a newer version of Sluice made the backup: its {part} are of format {version}, and this version reads up to {ours}"
            );
            return Err(Told::new(Code::Failed, what).next("restore it with the newer version").into());
        }
    }
    Ok(())
}

/// A folder that nothing was in, held to be filled: in the end all is in it, or nothing.
pub(crate) struct Taken {
    path: PathBuf,
    lock: FolderLock,
    /// Folders that were made for it, the innermost first.
    made: Vec<PathBuf>,
    had_lock: bool,
}

impl Taken {
    /// Takes a folder that nothing is in, making it if it is not there.
    pub(crate) fn empty(path: &Path) -> anyhow::Result<Self> {
        keep_private();
        let is_missing = |folder: &&Path| {
            let is_there = folder.symlink_metadata().is_ok();
            !folder.as_os_str().is_empty() && !is_there
        };
        let made: Vec<PathBuf> = path.ancestors().take_while(is_missing).map(Path::to_owned).collect();
        let had_lock = path.join(LOCK).exists();
        let taken = fs::create_dir_all(path)
            .with_context(|| format!("'{}' cannot be made", path.display()))
            .and_then(|()| take_empty(path, had_lock));
        match taken {
            Ok(lock) => Ok(Self { path: path.to_owned(), lock, made, had_lock }),
            Err(error) => {
                remove_empty(&made);
                Err(error)
            }
        }
    }

    pub(crate) fn lock(&self) -> FolderLock {
        self.lock.clone()
    }

    /// Removes all that was put into it, which nobody has open any more; answers whether nothing is left.
    pub(crate) fn give_up(self) -> bool {
        let is_gone = remove_all_by(&self.path, self.had_lock, |path, is_folder| match is_folder {
            true => fs::remove_dir_all(path),
            false => fs::remove_file(path),
        });
        remove_empty(&self.made);
        is_gone
    }

    /// How a failure to fill it is told; nothing of what was put into it stays.
    pub(crate) fn failed(self, what: &str, error: &anyhow::Error) -> anyhow::Error {
        let shown = self.path.display().to_string();
        let told = error.chain().find_map(|cause| cause.downcast_ref::<Told>());
        let next = told.and_then(|told| told.next.clone());
        let code = told.map_or(Code::Failed, |told| told.code);
        let is_refused = |cause: &(dyn std::error::Error + 'static)| {
            matches!(cause.downcast_ref(), Some(sluice_store::Error::Refused { .. }))
        };
        let next = next.unwrap_or_else(|| match error.chain().any(is_refused) {
            true => "see to that, then run it again".to_owned(),
            false => {
                format!("see whether '{shown}' has room and may be written, then run it again, or name another folder with --data NEW")
            }
        });
        let left = match self.give_up() {
            true => "",
            false => "; remove what is left of it in that folder",
        };
        Told::new(code, format!("{what}: {error:#}")).next(format!("{next}{left}")).into()
    }
}

/// Removes what is in a folder, and answers whether nothing is left. The mark, by which every start refuses what is there, goes
/// last, and stays if something else does: the rest would be taken for a folder from before there were marks.
fn remove_all_by(
    path: &Path,
    keeps_lock: bool,
    mut remove: impl FnMut(&Path, bool) -> io::Result<()>,
) -> bool {
    let is_ours = |name: &OsStr| {
        let is_kept = name == LOST_AND_FOUND || name == mark::FILE || (keeps_lock && name == LOCK);
        !is_kept
    };
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut is_gone = true;
    for entry in entries.filter(|entry| is_ours(&entry.file_name())) {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        is_gone &= remove(&entry.path(), is_folder).is_ok();
    }
    let mark = path.join(mark::FILE);
    is_gone && (remove(&mark, false).is_ok() || !mark.exists())
}

/// Removes folders in which nothing is.
fn remove_empty(folders: &[PathBuf]) {
    for folder in folders {
        // One that something is in is somebody's.
        let _ = fs::remove_dir(folder);
    }
}

/// Takes a folder in which nothing is. Nothing is left in one that is somebody's.
fn take_empty(path: &Path, had_lock: bool) -> anyhow::Result<FolderLock> {
    insist_empty(path)?;
    let lock = FolderLock::take(path)?;
    // Somebody may have put something into it before it was taken.
    if let Err(error) = insist_empty(path) {
        if !had_lock {
            // Where it stays, nobody holds it.
            let _ = fs::remove_file(path.join(LOCK));
        }
        return Err(error);
    }
    Ok(lock)
}

fn insist_empty(path: &Path) -> anyhow::Result<()> {
    let refused = |what: String| {
        Err(Told::new(Code::Failed, what)
            .next("name a folder that is empty or not there with --data NEW")
            .into())
    };
    if Folder::is_at(path)? || !Contents::of(path)?.is_empty() {
        return refused(format!("there is a data folder in '{}' already", path.display()));
    }
    let is_other = |name: &OsStr| name != LOCK && name != LOST_AND_FOUND;
    let mut entries = fs::read_dir(path).with_context(|| format!("'{}' cannot be read", path.display()))?;
    if let Some(other) = entries.find_map(|entry| Some(entry.ok()?.file_name()).filter(|name| is_other(name)))
    {
        return refused(format!("'{}' is not empty: '{}' is in it", path.display(), other.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_is_refused_by_its_mark_until_all_else_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", mark::FILE, "store.redb", "z", LOCK] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        fs::create_dir(folder.path().join("blobs")).unwrap();
        let left = || {
            let names = fs::read_dir(folder.path()).unwrap().map(|one| one.unwrap().file_name());
            let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
            names.sort();
            names
        };
        let remove = |path: &Path, is_folder| {
            assert!(folder.path().join(mark::FILE).exists(), "{} goes after the mark", path.display());
            if is_folder { fs::remove_dir(path) } else { fs::remove_file(path) }
        };
        let all_but_one = |path: &Path, is_folder| match path.ends_with("store.redb") {
            true => Err(io::ErrorKind::ResourceBusy.into()),
            false => remove(path, is_folder),
        };
        assert!(!remove_all_by(folder.path(), true, all_but_one));
        assert_eq!(left(), [mark::FILE, LOCK, "store.redb"]);
        assert!(remove_all_by(folder.path(), true, remove));
        assert_eq!(left(), [LOCK]);
        assert!(remove_all_by(folder.path(), false, |path, _| fs::remove_file(path)), "without a mark too");
        assert!(left().is_empty());
    }
}
