//! The file of a store that is only looked at: what the engine writes while it opens and repairs it stays in memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use super::sealed::{BLOCK_BYTES, ENGINE_HEADER_BYTES, Sealed};

/// Memory for what is written; a repair writes little beside what it reads.
const WRITTEN_BYTES_MAX: u64 = 256 * 1024 * 1024;
const BLOCK: usize = BLOCK_BYTES as usize;

/// A file under changes that it never sees.
#[derive(Debug)]
pub(super) struct Overlay {
    under: Arc<Sealed>,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    bytes: u64,
    header: [u8; ENGINE_HEADER_BYTES],
    blocks: BTreeMap<u64, Box<[u8]>>,
}

impl Overlay {
    pub(super) fn new(under: Arc<Sealed>) -> Self {
        let written =
            Written { bytes: under.bytes(), header: under.engine_header(), blocks: BTreeMap::new() };
        Self { under, written: Mutex::new(written) }
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.written().bytes)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let written = self.written();
        let end = offset + out.len() as u64;
        if end <= ENGINE_HEADER_BYTES as u64 {
            out.copy_from_slice(&written.header[offset as usize..end as usize]);
            return Ok(());
        }
        let first = offset / BLOCK_BYTES;
        if written.blocks.range(first..end.div_ceil(BLOCK_BYTES)).next().is_none() {
            drop(written);
            return self.under.read(offset, out);
        }
        for (block, out) in (first..).zip(out.chunks_mut(BLOCK)) {
            match written.blocks.get(&block) {
                Some(content) => out.copy_from_slice(content),
                None => self.under.read(block * BLOCK_BYTES, out)?,
            }
        }
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.under.check_not_lost()?;
        let mut written = self.written();
        written.bytes = bytes;
        written.blocks.split_off(&bytes.div_ceil(BLOCK_BYTES));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.under.check_not_lost()?;
        let mut written = self.written();
        let end = offset + data.len() as u64;
        if end <= ENGINE_HEADER_BYTES as u64 {
            written.header[offset as usize..end as usize].copy_from_slice(data);
            return Ok(());
        }
        if !offset.is_multiple_of(BLOCK_BYTES) || !data.len().is_multiple_of(BLOCK) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "a write of a part of a block"));
        }
        if (written.blocks.len() * BLOCK + data.len()) as u64 > WRITTEN_BYTES_MAX {
            let what = "it has more to repair than can be done without writing; start `sluice up` on it once";
            return Err(io::Error::other(what));
        }
        for (block, content) in (offset / BLOCK_BYTES..).zip(data.chunks(BLOCK)) {
            written.blocks.insert(block, content.into());
        }
        Ok(())
    }
}
