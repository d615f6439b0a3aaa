//! A data folder that a backup is restored into: refused to every start until all of it is there.

use std::fs;
use std::path::Path;

use anyhow::Context;
use sluice_bus::embedded::Embedded as Broker;
use sluice_store::{Embedded as Store, FolderLock};
use tokio::sync::Mutex;

use super::mark::{self, Found, Mark};
use super::{
    ADMIN_KEY, Contents, Folder, Origin, SERVICE_FORMATS, State, Want, holds_something, keep_private,
};
use crate::exit::{Code, Told};

impl Folder {
    /// A folder that a backup is to be restored into. Until [`Folder::restored`] it is refused to every start.
    pub(crate) fn restoring(path: &Path, lock: FolderLock) -> anyhow::Result<Self> {
        let mut mark = Mark::new(uuid::Uuid::new_v4().to_string());
        mark.is_restoring = true;
        let state = State { mark, store_at: 0, broker_at: 0, written: (0, (0, 0)) };
        let folder = Self {
            path: path.to_owned(),
            lock: Some(lock),
            want: Want::default(),
            origin: Origin::Fresh,
            state: Mutex::new(state),
        };
        folder.write(&mut *folder.state.try_lock().context("the folder is in use")?)?;
        Ok(folder)
    }

    /// Takes on the id of a folder that is not used any more, because something outside of it is marked with that.
    pub(crate) async fn take_the_place_of(&self, id: String) {
        self.state.lock().await.mark.folder = id;
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
            self.stamp(&mut state, 1, store, broker).await?;
            state.mark.generation = 1;
            state.mark.is_restoring = false;
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

/// Where the log of a folder ended when that was closed; `None` where it was not, or nobody knows.
pub(crate) fn log_end(path: &Path) -> Option<sluice_bus::embedded::LogEnd> {
    match mark::read(path) {
        Found::Mark(mark) => mark.broker.and_then(|part| part.end).filter(|_| mark.is_closed).map(Into::into),
        Found::Nothing | Found::Unusable(_) => None,
    }
}

/// Takes a folder that nothing is in, making it if it is not there.
pub(crate) fn take_empty(path: &Path) -> anyhow::Result<FolderLock> {
    keep_private();
    fs::create_dir_all(path).with_context(|| format!("'{}' cannot be made", path.display()))?;
    let lock = FolderLock::take(path)?;
    if Folder::is_at(path) || !Contents::of(path)?.is_empty() {
        let what = format!("there is a data folder in '{}' already", path.display());
        return Err(Told::new(Code::Failed, what)
            .next("restore into a folder that is empty or not there")
            .into());
    }
    // A file system of its own begins with a folder for what it finds lost.
    let is_other = |name: &std::ffi::OsStr| name != "sluice.lock" && name != "lost+found";
    let mut entries = fs::read_dir(path).with_context(|| format!("'{}' cannot be read", path.display()))?;
    if let Some(other) = entries.find_map(|entry| Some(entry.ok()?.file_name()).filter(|name| is_other(name)))
    {
        let what = format!("'{}' is not empty: '{}' is in it", path.display(), other.display());
        return Err(Told::new(Code::Failed, what)
            .next("restore into a folder that is empty or not there")
            .into());
    }
    Ok(lock)
}
