//! How far a backup has come, for whoever waits for it.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Grows with what is read and written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(Arc<AtomicU64>);

impl Progress {
    pub(super) fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    /// A number that is another one once something was done.
    pub(crate) fn come_to(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts what is read.
    pub(super) const fn of<R: Read>(&self, from: R) -> Counted<'_, R> {
        Counted { from, progress: self }
    }
}

pub(super) struct Counted<'a, R> {
    from: R,
    progress: &'a Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.progress.add(count as u64);
        Ok(count)
    }
}
