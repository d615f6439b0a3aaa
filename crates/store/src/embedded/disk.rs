//! The file under the tables: it remembers how writing failed, and plays faults for tests.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

use redb::StorageBackend;

use super::sealed::Sealed;

/// Faults that the embedded engine plays on itself, so that tests meet a full disk and a failing sync.
#[derive(Debug)]
pub struct Faults {
    space_bytes: AtomicI64,
    sync_fails: AtomicBool,
    played: AtomicU64,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            space_bytes: AtomicI64::new(i64::MAX / 2),
            sync_fails: AtomicBool::new(false),
            played: AtomicU64::new(0),
        }
    }
}

impl Faults {
    /// From now on the disk has only this much room left.
    pub fn leave_space_bytes(&self, bytes: i64) {
        self.space_bytes.store(bytes, Ordering::SeqCst);
    }

    /// The disk has room again.
    pub fn give_space(&self) {
        self.leave_space_bytes(i64::MAX / 2);
    }

    /// From now on every sync fails.
    pub fn fail_syncs(&self) {
        self.sync_fails.store(true, Ordering::SeqCst);
    }

    /// How many faults were met so far: a test of faults checks that they happened.
    #[must_use]
    pub fn played(&self) -> u64 {
        self.played.load(Ordering::SeqCst)
    }

    pub(crate) fn use_space(&self, bytes: u64) -> io::Result<()> {
        let wanted = i64::try_from(bytes).unwrap_or(i64::MAX / 2);
        let enough = |left: i64| (left >= wanted).then_some(left - wanted);
        if self.space_bytes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, enough).is_err() {
            self.played.fetch_add(1, Ordering::SeqCst);
            return Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on device (played)"));
        }
        Ok(())
    }

    pub(crate) fn free_space(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(0);
        self.space_bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        if self.sync_fails.load(Ordering::SeqCst) {
            self.played.fetch_add(1, Ordering::SeqCst);
            return Err(io::Error::other("input/output error (played)"));
        }
        Ok(())
    }
}

/// Whether an error says that there is no room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// Whether the disk failed at what was asked of it, which is neither a lack of room nor of permission.
pub(crate) fn is_broken(error: &io::Error) -> bool {
    const EIO: i32 = 5;
    // Faults that are played have no number.
    error.raw_os_error() == Some(EIO)
        || matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::Other)
}

/// A read of what may be cut off: what is missing is then as it was before.
pub(crate) fn ends_early(read: io::Result<()>) -> io::Result<()> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        other => other,
    }
}

/// A read of what may be cut off, or where the disk may fail: what is asked for is then as it was before.
pub(crate) fn or_unread(read: io::Result<()>) -> io::Result<()> {
    match ends_early(read) {
        Err(error) if is_broken(&error) => Ok(()),
        other => other,
    }
}

/// How the disk failed, worst last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health {
    pub(crate) full: Option<String>,
    pub(crate) broken: Option<String>,
    pub(crate) sync: Option<String>,
}

/// What outlives a reopening of the file.
#[derive(Debug)]
pub(crate) struct DiskState {
    pub(crate) faults: Arc<Faults>,
    /// It is told once that the file was not closed.
    pub(super) unclosed: Arc<Once>,
    health: Mutex<Health>,
    /// Room that was taken since the last sync.
    unsynced_bytes: AtomicU64,
}

impl DiskState {
    pub(super) fn new(faults: Arc<Faults>, unclosed: Arc<Once>) -> Self {
        Self { faults, unclosed, health: Mutex::default(), unsynced_bytes: AtomicU64::new(0) }
    }

    pub(crate) fn health(&self) -> Health {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets that the disk was full, before trying again.
    pub(crate) fn forget_full(&self) {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).full = None;
    }

    /// Before the file is opened again: what was written and not committed is in it, and is written over.
    pub(crate) fn forget_unsynced(&self) {
        self.faults.free_space(self.unsynced_bytes.swap(0, Ordering::SeqCst));
    }

    fn note<T>(&self, result: io::Result<T>, sync: bool) -> io::Result<T> {
        if let Err(error) = &result {
            let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
            let place = match (sync, is_full(error)) {
                (true, _) => &mut health.sync,
                (false, true) => &mut health.full,
                (false, false) => &mut health.broken,
            };
            place.get_or_insert_with(|| error.to_string());
        }
        result
    }
}

/// A file that notes its failures.
#[derive(Debug)]
pub(crate) struct Disk {
    file: Arc<Sealed>,
    state: Arc<DiskState>,
}

impl Disk {
    pub(crate) fn new(file: Arc<Sealed>, state: Arc<DiskState>) -> Self {
        Self { file, state }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.file.bytes())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.state.note(self.file.read(offset, out), false)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        let freed = self.state.note(self.file.set_len(len), false)?;
        self.state.faults.free_space(freed);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.state.note(self.file.flush(), false)?;
        self.state.note(self.state.faults.sync().and_then(|()| self.file.sync()), true)?;
        self.state.unsynced_bytes.store(0, Ordering::SeqCst);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let written = self.file.new_bytes(offset, data.len()).and_then(|new| {
            self.state.faults.use_space(new)?;
            self.state.unsynced_bytes.fetch_add(new, Ordering::SeqCst);
            self.file.write(offset, data)
        });
        self.state.note(written, false)
    }
}

/// What a file takes on the disk, in bytes: one that was made longer and not written to takes no more than before.
#[must_use]
pub fn on_disk(meta: &std::fs::Metadata) -> u64 {
    match meta.blocks() {
        // Not every file system says.
        0 => meta.len(),
        blocks => meta.len().min(blocks.saturating_mul(512)),
    }
}
