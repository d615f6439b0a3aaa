//! The embedded engine: everything in one folder, held by one process.
//!
//! What a disk damaged is an error that names it, never another answer: the tables' file has a checksum for every block,
//! content has digests. [`Upkeep`] looks for damage before somebody needs what is damaged.

pub(crate) mod disk;
mod durable;
pub(crate) mod lock;
mod meta;
mod overlay;
mod salvage;
pub(crate) mod sealed;
mod snapshot;
pub(crate) mod tables;
mod upkeep;
mod writer;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::blobs::FileBlobs;
use crate::keywords::TableKeywords;
use crate::triples::TableTriples;
use crate::vectors::TableVectors;
use crate::{Error, Read, Result, Stores, Tables};

pub use self::lock::{FolderLock, Untouched};
pub use self::meta::{FORMATS, Stamp};
pub use self::salvage::{About, Lost, Salvage, Salvaged, Unindexed, scope_digest};
pub use self::snapshot::Snapshot;
pub use crate::blobs::{BlobAudit, MissingBlob};
pub use disk::{Faults, on_disk};
pub use upkeep::{Owner, Owners, Place, Report, Step, Upkeep};

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
    /// Makes the store if it is not there, by default. Without, one that is missing or empty is refused.
    pub create: bool,
    /// Names (`service.…`) and formats of what services keep in the tables, checked as those of the store's own parts are.
    pub service_formats: &'static [(&'static str, u32)],
    /// Says whose content is, for what is told of damage.
    pub owners: Option<Owners>,
    /// Faults to play, for tests.
    pub faults: Arc<Faults>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes_max: 32 * 1024 * 1024,
            vectors_bytes_max: 256 * 1024 * 1024,
            reserve_bytes: 8 * 1024 * 1024,
            create: true,
            service_formats: &[],
            owners: None,
            faults: Arc::default(),
        }
    }
}

/// The embedded engine: tables in one file, large blobs beside it, the rest over the tables. Close it to know that its folder is free; dropped, it lets go a little later.
#[derive(Debug)]
pub struct Embedded {
    tables: Arc<tables::EmbeddedTables>,
    blobs: FileBlobs,
    stores: Stores,
    upkeep: Upkeep,
}

impl Embedded {
    /// Opens the store in `folder`, making it if it is not there.
    ///
    /// Blocks while an unclean end is repaired. Opening removes nothing, whatever is there; see [`Embedded::sweep`].
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
        Self::open_held(folder, FolderLock::take(folder)?, options)
    }

    /// Opens the store in a folder that this process holds already.
    ///
    /// # Errors
    /// As [`Embedded::open`], but for [`Error::Locked`].
    pub fn open_held(folder: impl AsRef<Path>, lock: FolderLock, options: &Options) -> Result<Self> {
        let folder = folder.as_ref();
        let tables = Arc::new(tables::EmbeddedTables::open(folder, lock, options)?);
        let shared = Arc::clone(&tables) as Arc<dyn Tables>;
        let blobs = FileBlobs::open(folder, shared, Arc::clone(&options.faults), tables.failing())?;
        let opened = Self::of(tables, blobs, options);
        let (tables, shared) = (&opened.tables, &opened.stores.tables);
        let (triples, keywords) =
            (TableTriples::new(Arc::clone(shared)), TableKeywords::new(Arc::clone(shared)));
        // First, since an earlier version would miss what a move that was cut off has moved.
        tables.raise_formats()?;
        take_over(tables, crate::triples::EARLIER, || triples.take_over())?;
        take_over(tables, crate::keywords::EARLIER, || keywords.take_over())?;
        Ok(opened)
    }

    /// Opens the store of a folder to read its rows, to check and to copy it, in the form in which they rest there. Nothing in
    /// the folder is changed, be it of this version or an earlier one: what is written stays in memory, and goes with it.
    ///
    /// # Errors
    /// As [`Embedded::open`], but for [`Error::Locked`].
    pub fn look(folder: impl AsRef<Path>, held: Untouched, options: &Options) -> Result<Self> {
        let folder = folder.as_ref();
        let tables = Arc::new(tables::EmbeddedTables::look(folder, held, options)?);
        let shared = Arc::clone(&tables) as Arc<dyn Tables>;
        let blobs = FileBlobs::look(folder, shared, Arc::clone(&options.faults), tables.failing());
        Ok(Self::of(tables, blobs, options))
    }

    fn of(tables: Arc<tables::EmbeddedTables>, blobs: FileBlobs, options: &Options) -> Self {
        let shared = Arc::clone(&tables) as Arc<dyn Tables>;
        let upkeep = Upkeep::new(Arc::clone(&tables), blobs.clone(), options.owners);
        let stores = Stores {
            blobs: Arc::new(blobs.clone()),
            vectors: Arc::new(TableVectors::new(Arc::clone(&shared), options.vectors_bytes_max)),
            keywords: Arc::new(TableKeywords::new(Arc::clone(&shared))),
            triples: Arc::new(TableTriples::new(Arc::clone(&shared))),
            tables: shared,
        };
        Self { tables, blobs, stores, upkeep }
    }

    /// Which data folder the store belongs to, and how far that had come; `None` for a store that never heard of one.
    ///
    /// # Errors
    /// What reading says.
    pub fn stamp(&self) -> Result<Option<Stamp>> {
        self.tables.stamp()
    }

    /// Puts down which data folder the store belongs to, and how far that has come. Works on a full disk too.
    ///
    /// # Errors
    /// What writing says.
    pub async fn set_stamp(&self, stamp: &Stamp) -> Result<()> {
        self.tables.set_stamp(stamp).await
    }

    /// Insists that the path of the tables' file still names the one that is open. If it does not, writes are refused with
    /// the same error: what is open is gone with this process.
    ///
    /// # Errors
    /// [`Error::Unavailable`], with what to do.
    pub fn check_in_place(&self) -> Result<()> {
        self.tables.check_in_place()
    }

    /// The store as it is at this moment, to be copied while others write. Files of content that are removed meanwhile stay
    /// until it is dropped.
    ///
    /// # Errors
    /// What reading says.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let pin = self.blobs.pin();
        Snapshot::take(&self.tables, pin)
    }

    /// The format of each part, by name.
    ///
    /// # Errors
    /// What reading says.
    pub fn formats(&self) -> Result<Vec<(String, u32)>> {
        self.tables.formats()
    }

    /// Puts down formats of parts whose rows were written from a backup. Those that concern the file alone are left out.
    ///
    /// # Errors
    /// What writing says.
    pub async fn set_formats(&self, formats: &[(String, u32)]) -> Result<()> {
        let (tables, formats) = (Arc::clone(&self.tables), formats.to_vec());
        crate::keys::blocking(move || tables.set_formats(&formats)).await
    }

    /// Grows with everything that is written, stamps left out.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.tables.commits()
    }

    /// Compares the files of content with those that the tables name. Nothing is changed.
    ///
    /// # Errors
    /// What reading says.
    pub async fn audit_blobs(&self) -> Result<BlobAudit> {
        self.blobs.audit().await
    }

    /// Puts down that the missing files of an audit are known to be lost, so that later ones leave them out.
    ///
    /// # Errors
    /// What writing says.
    pub async fn accept_lost(&self, audit: &BlobAudit) -> Result<()> {
        self.blobs.accept_lost(audit).await
    }

    /// Puts files of content that are on record as left over into the trash, and empties that of what has lain there for
    /// more than a day. Only for a store that is known to belong to its folder, and after its audit.
    ///
    /// # Errors
    /// What reading says; files that cannot be moved stay on record for the next time.
    pub async fn sweep(&self, audit: &BlobAudit) -> Result<()> {
        self.blobs.sweep(audit).await
    }

    /// Tells, once the disk has failed, why the store takes nothing more. A full disk is no such failure.
    #[must_use]
    pub fn failure(&self) -> tokio::sync::watch::Receiver<Option<String>> {
        self.tables.failure()
    }

    /// Why everything that needs room is refused, while it is; removals and what is essential go on. Anybody may read it: it
    /// names no place on this machine.
    #[must_use]
    pub fn no_room(&self) -> Option<&'static str> {
        self.tables.no_room()
    }

    /// Has it looked soon whether there is room again, which is else found out by the next write.
    pub fn look_for_room(&self) {
        if self.no_room().is_some() {
            self.tables.look_for_room();
        }
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
    pub async fn close(&self) {
        self.tables.close().await;
    }
}

/// Brings what an earlier version stored into the form of this one, if there is something in its table.
fn take_over<F: Future<Output = Result<()>>>(
    tables: &tables::EmbeddedTables,
    earlier: &'static str,
    take: impl FnOnce() -> F + Send,
) -> Result<()> {
    let earlier = tables.read_now(&[Read::prefix(earlier, "", 1)])?.pop();
    if earlier.is_none_or(|found| found.into_rows().rows.is_empty()) {
        return Ok(());
    }
    // The caller may be a task, which must not wait; a thread with a runtime of its own may.
    std::thread::scope(|scope| {
        let taking = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            let failed = |e: std::io::Error| Error::unavailable(format!("a migration does not start: {e}"));
            runtime.map_err(failed)?.block_on(take())
        });
        let ended = || Err(Error::unavailable("a migration ended in a panic; report what the log says"));
        taking.join().unwrap_or_else(|_| ended())
    })
}

pub(crate) fn unusable(folder: &Path, error: &std::io::Error) -> Error {
    if disk::is_full(error) {
        return Error::Disk { folder: folder.display().to_string(), reason: error.to_string() };
    }
    Error::unavailable(format!(
        "'{}' cannot be used: {error}; see that it is there, who owns it, and with which permissions",
        folder.display()
    ))
}
