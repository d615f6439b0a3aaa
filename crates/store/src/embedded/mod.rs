//! The embedded engine: everything in one folder, held by one process.
//!
//! What a disk damaged is an error that names it, never another answer: the tables' file has a checksum for every block,
//! content has digests. [`Upkeep`] looks for damage before somebody needs what is damaged.

pub(crate) mod disk;
pub(crate) mod lock;
pub(crate) mod sealed;
pub(crate) mod tables;
mod upkeep;
mod writer;

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::blobs::{self, FileBlobs};
use crate::keywords::TableKeywords;
use crate::triples::TableTriples;
use crate::vectors::TableVectors;
use crate::{Error, Found, KeyRange, Read, Result, Rows, Stores, Tables};

pub use disk::Faults;
pub use upkeep::{Place, Step, Upkeep};

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

/// The embedded engine: tables in one file, large blobs beside it, the rest over the tables. Close it to know that its folder is free; dropped, it lets go a little later.
#[derive(Debug)]
pub struct Embedded {
    tables: Arc<tables::EmbeddedTables>,
    stores: Stores,
    upkeep: Upkeep,
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
        let tables = Arc::new(tables::EmbeddedTables::open(folder, lock, options)?);
        let shared = Arc::clone(&tables) as Arc<dyn Tables>;
        let named = named_files(&tables)?;
        let blobs =
            FileBlobs::open(&folder.join("blobs"), Arc::clone(&shared), Arc::clone(&options.faults), &named)?;
        let upkeep = Upkeep { tables: Arc::clone(&tables), blobs: blobs.clone() };
        let stores = Stores {
            blobs: Arc::new(blobs),
            vectors: Arc::new(TableVectors::new(Arc::clone(&shared), options.vectors_bytes_max)),
            keywords: Arc::new(TableKeywords::new(Arc::clone(&shared))),
            triples: Arc::new(TableTriples::new(Arc::clone(&shared))),
            tables: shared,
        };
        Ok(Self { tables, stores, upkeep })
    }

    /// Everything, as a service is handed it.
    #[must_use]
    pub fn stores(&self) -> Stores {
        self.stores.clone()
    }

    /// The tables.
    #[must_use]
    pub fn tables(&self) -> Arc<dyn Tables> {
        Arc::clone(&self.stores.tables)
    }

    /// What looks after the folder.
    #[must_use]
    pub fn upkeep(&self) -> Upkeep {
        self.upkeep.clone()
    }

    /// Finishes what is under way, then lets go of the folder. Calls made later are refused as unavailable.
    pub async fn close(self) {
        self.tables.close().await;
    }
}

/// The files that blobs rest in.
fn named_files(tables: &tables::EmbeddedTables) -> Result<HashSet<String>> {
    let mut named = HashSet::new();
    let mut range = KeyRange::all();
    loop {
        let read = Read::range(blobs::PLACES, range.clone(), 10_000);
        let Rows { rows, more } = tables.read_now(&[read])?.pop().map(Found::into_rows).unwrap_or_default();
        for (_, row) in &rows {
            named.extend(blobs::file_named_by(row)?);
        }
        match rows.last() {
            Some((last, _)) if more => range = range.after(last),
            _ => return Ok(named),
        }
    }
}

pub(crate) fn unusable(folder: &Path, error: &std::io::Error) -> Error {
    Error::unavailable(format!(
        "the data folder '{}' cannot be used: {error}; check that it exists and may be written",
        folder.display()
    ))
}
