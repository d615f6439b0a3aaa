//! The files of the log: made whole before they carry their name, written only at their end.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::OFlags;

use super::super::topic::lock;
use super::frame::{self, Seal};

/// How a file is opened in whose place something may lie that is none: a pipe is not waited for.
pub(super) const NO_WAIT: i32 = OFlags::NONBLOCK.bits().cast_signed();
/// The same for a file that is written over: nothing that a link in its place leads to is.
pub(super) const NO_LINK: i32 = OFlags::NONBLOCK.union(OFlags::NOFOLLOW).bits().cast_signed();

const PREFIX: &str = "log-";
const UNFINISHED: &str = ".new";

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) seal: Seal,
    pub(super) path: PathBuf,
    pub(super) file: File,
}

impl Segment {
    /// Makes the next file with what it begins with; on return it is on disk, under its name.
    pub(super) fn create(
        dir: &Path,
        number: u64,
        faults: &DiskFaults,
        begin: impl FnOnce(&mut Vec<u8>, Seal),
    ) -> io::Result<(Self, u64)> {
        let salt = rand::random();
        let mut bytes = vec![0; frame::HEADER_BYTES];
        let seal = Seal::new(salt);
        begin(&mut bytes, seal);
        let begin_bytes = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        bytes[..frame::HEADER_BYTES].copy_from_slice(&frame::header(number, salt, begin_bytes));
        let path = dir.join(format!("{PREFIX}{number:016}"));
        let unfinished = path.with_extension(&UNFINISHED[1..]);
        let made = (|| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true).custom_flags(NO_LINK);
            let file = options.open(&unfinished)?;
            faults.charge(bytes.len() as u64)?;
            file.write_all_at(&bytes, 0)?;
            file.sync_all()?;
            std::fs::rename(&unfinished, &path)?;
            sync_dir(dir)?;
            Ok(file)
        })();
        match made {
            Ok(file) => Ok((Self { number, seal, path, file }, bytes.len() as u64)),
            Err(error) => {
                // Left behind it would only cost space until the next open; the first error is the one to tell.
                let _ = std::fs::remove_file(&unfinished);
                Err(error)
            }
        }
    }

    /// Whether its path still names this file.
    pub(super) fn is_in_place(&self) -> bool {
        let id = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        match (std::fs::metadata(&self.path), self.file.metadata()) {
            (Ok(there), Ok(own)) => id(there) == id(own),
            (Err(error), _) => {
                !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
            }
            // Where that cannot be seen now, writing says what is wrong.
            (Ok(_), Err(_)) => true,
        }
    }

    /// Reads one frame's payload, checked.
    pub(super) fn read(&self, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
        let damaged = || {
            let place = format!("{} is damaged at byte {offset}", self.path.display());
            io::Error::new(io::ErrorKind::InvalidData, place)
        };
        let mut whole = vec![0; usize::try_from(bytes).map_err(|_| damaged())?];
        self.file.read_exact_at(&mut whole, offset)?;
        let head = frame::Head::read(&whole).ok_or_else(damaged)?;
        whole.drain(..frame::FRAME_BYTES);
        if head.fits(self.seal, offset, &whole) { Ok(whole) } else { Err(damaged()) }
    }
}

/// The log files of a folder, oldest first. Unfinished ones are thrown away, unless it is only looked at.
pub(super) fn list(dir: &Path, is_looked_at: bool) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        if name.ends_with(UNFINISHED) {
            if !is_looked_at {
                std::fs::remove_file(entry.path())?;
            }
        } else if let Ok(number) = name.parse() {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Whether an error means that the disk has no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// Makes the disk of one broker fail, for tests.
#[derive(Debug, Default)]
pub struct DiskFaults {
    free_bytes: Mutex<Option<u64>>,
    fail_sync: AtomicBool,
}

impl DiskFaults {
    /// From now on the disk takes this many bytes more and is full then; `None` ends that.
    pub fn set_free_bytes(&self, bytes: Option<u64>) {
        *lock(&self.free_bytes) = bytes;
    }

    /// The next sync fails.
    pub fn fail_next_sync(&self) {
        self.fail_sync.store(true, Ordering::Release);
    }

    pub(super) fn is_limited(&self) -> bool {
        lock(&self.free_bytes).is_some()
    }

    pub(super) fn charge(&self, bytes: u64) -> io::Result<()> {
        let mut free = lock(&self.free_bytes);
        match &mut *free {
            Some(free) if *free < bytes => Err(io::ErrorKind::StorageFull.into()),
            Some(free) => {
                *free -= bytes;
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(super) fn give_back(&self, bytes: u64) {
        if let Some(free) = &mut *lock(&self.free_bytes) {
            *free += bytes;
        }
    }

    pub(super) fn sync(&self, file: &File) -> io::Result<()> {
        // A failed sync is never a full disk to be tried again, whatever the kernel calls it.
        let failed = |why: &dyn std::fmt::Display| io::Error::other(format!("a sync failed: {why}"));
        if self.fail_sync.swap(false, Ordering::AcqRel) {
            return Err(failed(&"the test made it fail"));
        }
        file.sync_data().map_err(|error| failed(&error))
    }
}
