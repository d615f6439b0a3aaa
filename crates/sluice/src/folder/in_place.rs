//! Whether the parts of a folder in use are still where their paths say. What was removed or replaced meanwhile is gone with
//! the process that has it open, so nothing more is promised of it, and whoever looks is told while it can still be saved.

use std::path::PathBuf;

use sluice_bus::embedded::Embedded as Broker;
use sluice_store::Embedded as Store;

use super::{Folder, State, mark};
use crate::exit::{Code, Told};

impl Folder {
    /// Insists that the paths of folder, store and log name what this process has open. The lock and the mark, of which it
    /// knows all, are put back.
    pub(crate) async fn check_in_place(&self, store: &Store, broker: Option<&Broker>) -> anyhow::Result<()> {
        self.look_in_place(&mut *self.state.lock().await, store, broker)
    }

    /// Where it is read from, which is where it is now; of one that was removed, where it was.
    pub(crate) fn is_read_at(&self) -> PathBuf {
        match &self.lock {
            Some(lock) if !lock.is_at(&self.path).unwrap_or(true) && !lock.is_removed() => lock.held_path(),
            _ => self.path.clone(),
        }
    }

    pub(super) fn look_in_place(
        &self,
        state: &mut State,
        store: &Store,
        broker: Option<&Broker>,
    ) -> anyhow::Result<()> {
        let Some(lock) = &self.lock else { return Ok(()) };
        // Where that cannot be seen now, the parts are looked for.
        if !lock.is_at(&self.path).unwrap_or(true) {
            let what_to_do = if lock.is_removed() {
                "make an empty folder in its place and run 'sluice backup DIR --data' with that before the process ends"
            } else {
                "move it back, or run 'sluice backup DIR --data' with where it is now before the process ends"
            };
            let told = format!(
                "the data folder '{}' was removed, moved or replaced while it is in use, and this process has the last copy of \
                 what is in it open; {what_to_do}",
                self.path.display()
            );
            return Err(Told::new(Code::Failed, told).into());
        }
        if lock.put_back(&self.path)? {
            tracing::warn!(folder = %self.path.display(), "the lock of the data folder was removed while it is in use; it is put back");
        }
        if state.mark.is_copied(&self.path) {
            self.write(state)?;
            tracing::warn!(folder = %self.path.display(), "{} was removed or replaced while the folder is in use; it is put back", mark::FILE);
        }
        store.check_in_place()?;
        if let Some(broker) = broker {
            broker.check_in_place()?;
        }
        Ok(())
    }
}

/// What is said at the end of a process that had the last copy of a part open.
pub(super) fn gone(error: &anyhow::Error) -> anyhow::Error {
    Told::new(Code::Failed, format!("a part of the data folder was not in its place when the process ended: {error:#}"))
        .next("restore the backup that was made before the process ended, or the last one: sluice restore BACKUP --data NEW")
        .into()
}
