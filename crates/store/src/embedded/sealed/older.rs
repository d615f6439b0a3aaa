//! The file as an earlier version wrote it: the engine's own, without checksums.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use redb::backends::FileBackend;

use super::super::disk::{Faults, is_full};
use super::{
    BLOCK, BLOCK_BYTES, ENGINE_HEADER_BYTES, ENGINE_MAGIC, GROUP_BLOCKS, beside, damaged_file, encode_head,
    failed, file_bytes, group_of, new_id, place, sum, sums_place, write_heads,
};
use crate::{Error, Result};

pub(super) fn is_engine_file(file: &File) -> io::Result<bool> {
    let mut begin = [0; ENGINE_MAGIC.len()];
    match file.read_exact_at(&mut begin, 0) {
        Ok(()) => Ok(begin == *ENGINE_MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives checksums to a file that has none. The old file stays until the new one is whole, so this may be cut off.
pub(super) fn seal(path: &Path, old: File, faults: &Faults) -> Result<()> {
    tracing::info!(path = %path.display(), "the file of the store is written anew, once, with checksums");
    // What is damaged already must not be sealed as if it were sound.
    let checked = FileBackend::new(old).map_err(redb::Error::from).and_then(|backend| {
        let mut builder = redb::Database::builder();
        builder.set_check_integrity_on_open(true);
        Ok(builder.create_with_backend(backend)?.close()?)
    });
    checked.map_err(|e| damaged_file(path, &e.to_string()))?;
    copy_sealed(path, faults).map_err(|error| {
        if !is_full(&error) {
            return failed(path, &error);
        }
        let reason =
            format!("the file of the store is written anew once and needs as much room again: {error}");
        Error::Disk { folder: path.parent().unwrap_or(path).display().to_string(), reason }
    })
}

fn copy_sealed(path: &Path, faults: &Faults) -> io::Result<()> {
    let old = File::open(path)?;
    let blocks = old.metadata()?.len() / BLOCK_BYTES;
    faults.use_space(file_bytes(blocks * BLOCK_BYTES))?;
    let mut engine = [0; ENGINE_HEADER_BYTES];
    old.read_exact_at(&mut engine, 0)?;
    let id = new_id();
    beside::make(path, |file| {
        let mut content = vec![0; GROUP_BLOCKS * BLOCK];
        let mut block = 0;
        while block < blocks {
            let run = (blocks - block).min(GROUP_BLOCKS as u64);
            let content = &mut content[..run as usize * BLOCK];
            old.read_exact_at(content, block * BLOCK_BYTES)?;
            let sums = content.chunks_exact(BLOCK).zip(block..);
            let sums: Vec<u8> =
                sums.flat_map(|(content, block)| sum(&id, block, content).to_le_bytes()).collect();
            file.write_all_at(&sums, sums_place(group_of(block).0))?;
            file.write_all_at(content, place(block))?;
            block += run;
        }
        write_heads(file, &encode_head(&id, &engine))
    })?;
    faults.free_space(blocks * BLOCK_BYTES);
    Ok(())
}
