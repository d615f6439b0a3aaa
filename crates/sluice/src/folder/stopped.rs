//! A data folder that nobody works in, opened to be read.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use sluice_store::{Embedded as Store, FolderLock};

use super::{Contents, Folder, Origin, STORE_FILE, Want, keep_private};
use crate::bus::Bus;
use crate::exit::{Code, Told};

/// A data folder that no other process holds, opened to be read.
pub(crate) struct Stopped {
    pub(crate) folder: Folder,
    pub(crate) store: Arc<Store>,
    pub(crate) bus: Option<Bus>,
}

impl Stopped {
    /// Opens a folder that is whole; refuses one that is not, as a start would.
    pub(crate) async fn open(path: &Path) -> anyhow::Result<Self> {
        keep_private();
        crate::backup::refuse_backup(path)?;
        let lock = FolderLock::take(path)?;
        let want = Want { broker: Contents::of(path).broker, ..Want::default() };
        let has_log = want.broker;
        let folder = Folder::look(path, lock, want)?;
        if folder.is_fresh() {
            return Err(Told::new(
                Code::NotFound,
                format!("there is nothing in the data folder '{}'", path.display()),
            )
            .into());
        }
        let store = Arc::new(folder.open_store()?);
        let opened = async {
            folder.admit_opened(&store).await?;
            let bus = match has_log {
                true => Some(
                    Bus::embed(folder.broker_config().await).map_err(|error| folder.broker_error(error))?,
                ),
                false => None,
            };
            let mut state = folder.state.lock().await;
            let checked = folder.check_rest(&mut state, &store, bus.as_ref().and_then(Bus::embedded)).await;
            drop(state);
            match checked {
                Ok(_) => Ok(bus),
                Err(error) => {
                    if let Some(bus) = &bus {
                        bus.close().await;
                    }
                    Err(error)
                }
            }
        };
        match opened.await {
            Ok(bus) => Ok(Self { folder, store, bus }),
            Err(error) => {
                store.close().await;
                Err(error)
            }
        }
    }

    /// Leaves it as it was.
    pub(crate) async fn close(self) {
        if let Some(bus) = &self.bus {
            bus.close().await;
        }
        self.store.close().await;
        let mut state = self.folder.state.lock().await;
        let bytes = fs::metadata(self.folder.path.join(STORE_FILE)).ok().map(|meta| meta.len());
        if !state.mark.is_closed || self.folder.origin != Origin::Marked {
            return;
        }
        if let Some(part) = state.mark.store.as_mut().filter(|part| part.bytes != bytes) {
            part.bytes = bytes;
            if let Err(error) = self.folder.write(&mut state) {
                tracing::warn!(error = format!("{error:#}"), "the data folder's mark could not be written");
            }
        }
    }
}

/// Reads all of a data folder that is not in use; what is wrong with it, nothing if all is well.
pub(crate) async fn verify(path: &Path) -> anyhow::Result<Vec<String>> {
    /// Bytes looked at in one step.
    const STEP_BYTES: u64 = 16 * 1024 * 1024;
    let opened = Stopped::open(path).await?;
    let mut wrong = Vec::new();
    let mut place = Some(sluice_store::embedded::Place::BEGIN);
    while let Some(from) = place {
        let step = opened.store.upkeep().check(from, STEP_BYTES).await?;
        wrong.extend(step.damage.iter().map(ToString::to_string));
        place = step.next;
    }
    opened.close().await;
    Ok(wrong)
}
