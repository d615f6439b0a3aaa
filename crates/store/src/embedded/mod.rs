//! The embedded engine: everything in one folder, held by one process.

pub(crate) mod disk;
pub(crate) mod lock;
pub(crate) mod tables;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::{Error, Result, Tables};

pub use disk::Faults;

/// How the embedded engine runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Memory for pages of the tables, in bytes. Default 32 MiB. More makes reads of large stores faster.
    pub cache_bytes_max: usize,
    /// Memory for vectors that were searched lately, in bytes. Default 256 MiB. A collection that does not fit is
    /// searched from disk.
    pub vectors_bytes_max: usize,
    /// Disk kept free for removals when the disk is full, in bytes. Default 8 MiB.
    pub reserve_bytes: u64,
    /// Faults to play, for tests.
    pub faults: Arc<Faults>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes_max: 32 * 1024 * 1024,
            vectors_bytes_max: 256 * 1024 * 1024,
            reserve_bytes: 8 * 1024 * 1024,
            faults: Arc::default(),
        }
    }
}

/// The embedded engine. Close it to know that its folder is free; dropped, it lets go a little later.
#[derive(Debug)]
pub struct Embedded {
    tables: Arc<tables::EmbeddedTables>,
}

impl Embedded {
    /// Opens the store in `folder`, making it if it is not there.
    ///
    /// Blocks while an unclean end is repaired.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process works in the folder, [`Error::Unavailable`] if it cannot be used,
    /// [`Error::Damaged`] if what is in it cannot be read.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(folder, &Options::default())
    }

    /// Opens the store with options.
    ///
    /// # Errors
    /// As [`Embedded::open`].
    pub fn open_with(folder: impl AsRef<Path>, options: &Options) -> Result<Self> {
        let folder = folder.as_ref();
        fs::create_dir_all(folder).map_err(|e| unusable(folder, &e))?;
        let lock = lock::FolderLock::take(folder)?;
        let tables = tables::EmbeddedTables::open(folder, lock, options)?;
        Ok(Self { tables: Arc::new(tables) })
    }

    /// The tables.
    #[must_use]
    pub fn tables(&self) -> Arc<dyn Tables> {
        Arc::clone(&self.tables) as Arc<dyn Tables>
    }

    /// Finishes what is under way, then lets go of the folder. Calls made later are refused as unavailable.
    pub async fn close(self) {
        self.tables.close().await;
    }
}

pub(crate) fn unusable(folder: &Path, error: &std::io::Error) -> Error {
    Error::unavailable(format!(
        "the data folder '{}' cannot be used: {error}; check that it exists and may be written",
        folder.display()
    ))
}
