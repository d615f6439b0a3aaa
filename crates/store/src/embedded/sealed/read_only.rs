//! The file of a store that is damaged, read as far as it is whole.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use super::older::is_engine_file;
use super::{BLOCK_BYTES, Sealed, failed, lock};
use crate::{Error, Result};

impl Sealed {
    /// Opens a file to read what is whole of it. Nothing of it is changed, and only a head is insisted on.
    pub(in crate::embedded) fn read_only(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| failed(path, &e))?;
        if is_engine_file(&file).map_err(|e| failed(path, &e))? {
            let reason = format!(
                "'{}' is of a version without checksums, by which what is damaged of it could be told from the rest",
                path.display()
            );
            return Err(Error::Refused { reason });
        }
        Self::read_any(path, file)
    }

    /// The number of the commit that is on record as durable.
    pub(in crate::embedded) fn durable_number(&self) -> Option<u64> {
        lock(&self.head).durable.map(|durable| durable.number)
    }

    /// Whole blocks of the engine's file; `None` if any of them is damaged, cut off or cannot be read.
    pub(in crate::embedded) fn whole(&self, place: Range<u64>) -> Option<Vec<u8>> {
        if place.start == 0 || place.end > self.bytes() {
            return None;
        }
        let mut blocks = vec![0; usize::try_from(place.end - place.start).ok()?];
        matches!(self.read_blocks(place.start / BLOCK_BYTES, &mut blocks), Ok(None)).then_some(blocks)
    }
}
