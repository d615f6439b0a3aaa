//! A data folder that nobody works in, opened to be read, or to take something out.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use sluice_store::{Embedded as Store, FolderLock, Untouched};

use super::mark::{self, Found};
use super::{Contents, Folder, Origin, STORE_FILE, Want, keep_private};
use crate::bus::Bus;
use crate::exit::{Code, Told};

/// What keeps other processes out.
enum Hold {
    Taken(FolderLock),
    Untouched(Untouched),
}

/// A data folder that no other process holds.
pub(crate) struct Stopped {
    pub(crate) folder: Folder,
    pub(crate) store: Arc<Store>,
    pub(crate) bus: Option<Bus>,
}

impl Stopped {
    /// Opens a folder that is whole to look at it; refuses one that is not, as a start would. Nothing in it is changed, be it
    /// of this version or an earlier one.
    pub(crate) async fn look(path: &Path) -> anyhow::Result<Self> {
        // For what is made elsewhere of what is read here.
        keep_private();
        crate::backup::refuse_backup(path)?;
        let held = Untouched::hold(path)?;
        Self::open(path, Hold::Untouched(held), Self::wants(path)?).await
    }

    /// Looks at a folder as a start is about to find it, and refuses one that the start would refuse. That one would have
    /// changed it by then: opening a store to work in it writes to it, and brings an earlier one up to this version for good.
    pub(crate) async fn rehearse(path: &Path, lock: &FolderLock, want: &Want) -> anyhow::Result<()> {
        let folder = Folder::look(path, None, want.clone())?;
        if folder.is_fresh() {
            // What a first start left that was cut may be unfinished.
            let Ok(store) = folder.look_at_store(lock.untouched()) else { return Ok(()) };
            let admitted = folder.admit_opened(&store).await;
            store.close().await;
            return admitted;
        }
        let has_log = want.broker && Contents::of(path)?.broker;
        let want = Want { broker: has_log, ..want.clone() };
        Self::open(path, Hold::Untouched(lock.untouched()), want).await?.close().await;
        Ok(())
    }

    /// What the folder should hold: by its mark, since what is there says nothing of what is missing, and what is there besides.
    fn wants(path: &Path) -> anyhow::Result<Want> {
        let there = Contents::of(path)?;
        let (log, key) = match mark::read(path) {
            Found::Mark(mark) => (mark.holds_log(), mark.has_admin_key),
            Found::Nothing | Found::Unusable(_) => (false, false),
        };
        Ok(Want { broker: there.broker || log, admin_key: there.admin_key || key, ..Want::default() })
    }

    /// Opens it to change something in it.
    pub(crate) async fn take(path: &Path) -> anyhow::Result<Self> {
        keep_private();
        Folder::insist(path)?;
        let lock = FolderLock::take(path)?;
        Self::open(path, Hold::Taken(lock), Self::wants(path)?).await
    }

    async fn open(path: &Path, hold: Hold, want: Want) -> anyhow::Result<Self> {
        let has_log = want.broker;
        let (lock, untouched) = match hold {
            Hold::Taken(lock) => (Some(lock), None),
            Hold::Untouched(held) => (None, Some(held)),
        };
        let folder = Folder::look(path, lock, want)?;
        if folder.is_fresh() {
            return Err(Told::new(
                Code::NotFound,
                format!("there is nothing in the data folder '{}'", path.display()),
            )
            .into());
        }
        let store = match untouched {
            Some(held) => folder.look_at_store(held),
            None => folder.open_store(),
        };
        let store = Arc::new(store?);
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

    /// Closes it; what was only looked at is left as it was.
    pub(crate) async fn close(self) {
        if let Some(bus) = &self.bus {
            bus.close().await;
        }
        self.store.close().await;
        let mut state = self.folder.state.lock().await;
        let bytes = fs::metadata(self.folder.path.join(STORE_FILE)).ok().map(|meta| meta.len());
        if self.folder.lock.is_none() || !state.mark.is_closed || self.folder.origin != Origin::Marked {
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
    let opened = Stopped::look(path).await?;
    let mut damage = Vec::new();
    let mut place = Some(sluice_store::embedded::Place::BEGIN);
    while let Some(from) = place {
        let step = opened.store.upkeep().check(from, STEP_BYTES).await?;
        damage.extend(step.damage);
        place = step.next;
    }
    let damage = opened.store.upkeep().named(damage).await;
    let wrong: Vec<String> = damage.iter().map(ToString::to_string).collect();
    opened.store.upkeep().checked(&wrong);
    opened.close().await;
    Ok(wrong)
}
