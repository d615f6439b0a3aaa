//! The file under the tables, with a checksum for every block: what the disk damaged is reported, never read as data.
//!
//! The engine sees a file of blocks. On the disk two copies of the head come first, then groups: a block of checksums,
//! then the blocks that they belong to. The head holds the engine's own header, the only thing that is written in place.
//! All else goes to blocks that no committed state refers to. So after a crash a checksum that does not match belongs to
//! a block that nobody reads, or the engine finds that the state is not whole and takes the one before.
//!
//! After each sync the file notes which commit is durable then. Where that is the newest one and a block of it does not
//! match, it was whole once: the file is refused, and not taken back to the commit before, as it is after a crash in the
//! middle of a commit. The note is not synced itself; the next commit does that, or the idle store a second later.
//!
//! A damaged block is handed to the engine as a page that leads nowhere. It reports that as corruption to the read that
//! came by; an error from the file would end every read and write.
//!
//! **Assumes.** One handle per file, and an engine that reads and writes whole blocks, apart from its header.

mod beside;
#[cfg(test)]
mod flips;
mod older;
mod read_only;

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher as _, Hasher as _};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub(super) use self::beside::put_in_place;
use self::older::{is_engine_file, seal};
use super::disk::{Faults, ends_early, is_broken, or_unread};
use super::durable::{Commit, may_go_back};
use crate::{Error, Result};

/// The version of this layout. The one before had no checksums: the file was the engine's own.
const FORMAT: u32 = 2;
const MAGIC: [u8; 8] = *b"SLUICEDB";
/// What the engine's own file begins with.
pub(super) const ENGINE_MAGIC: &[u8; 9] = b"redb\x1a\x0a\xa9\x0d\x0a";

/// A block, in bytes: the engine's page.
pub(crate) const BLOCK_BYTES: u64 = 4096;
const BLOCK: usize = BLOCK_BYTES as usize;
/// Checksums in one block, and blocks in one group.
const GROUP_BLOCKS: usize = BLOCK / SUM_BYTES;
const SUM_BYTES: usize = size_of::<u32>();
const GROUP_BYTES: u64 = (GROUP_BLOCKS as u64 + 1) * BLOCK_BYTES;
/// Both copies of the head, each in a block of its own.
const HEADS_BYTES: u64 = 2 * BLOCK_BYTES;
/// A copy of the head; a disk writes so much at once.
const HEAD_BYTES: usize = 512;
/// What of the engine's file rests in the head.
pub(super) const ENGINE_HEADER_BYTES: usize = 448;
pub(super) const ID_BYTES: usize = 16;
const ID_AT: usize = 12;
const ENGINE_AT: usize = 32;
const HEAD_SUM_AT: usize = HEAD_BYTES - SUM_BYTES;
/// Where the note rests that says which commit is durable: in the block of the first copy, in a sector of its own.
const DURABLE_AT: u64 = 1024;

/// Damaged blocks remembered at most.
const DAMAGED_MAX: usize = 4096;

/// A file whose blocks have checksums.
#[derive(Debug)]
pub(crate) struct Sealed {
    path: PathBuf,
    file: File,
    id: [u8; ID_BYTES],
    head: Mutex<Head>,
    sums: RwLock<Sums>,
    /// Held while a block and its checksum are written, so that a check can see both of one moment.
    writing: Mutex<()>,
    damaged: Mutex<BTreeSet<u64>>,
    /// While the engine opens the file it may look at blocks that a crash cut off.
    opening: AtomicBool,
    /// Whether the newest commit of the file as it was opened is known to have been durable, and the engine would go back
    /// behind it nevertheless, as it does after an unclean end.
    may_lose: bool,
    /// The engine's own file, as earlier versions wrote it: it has no checksums of ours.
    is_plain: bool,
}

#[derive(Debug)]
struct Head {
    engine: [u8; ENGINE_HEADER_BYTES],
    /// Memory and disk differ, or one of the copies was damaged.
    stale: bool,
    durable: Option<Commit>,
}

/// The checksums; 0 stands for a block that was never written.
#[derive(Debug)]
struct Sums {
    /// Length of the engine's file, in bytes.
    bytes: u64,
    /// `None` for a group that was not read yet.
    groups: Vec<Option<Box<[u32; GROUP_BLOCKS]>>>,
    /// For each group, which of its checksums are to be written.
    changed: BTreeMap<usize, Range<usize>>,
}

/// What a check of some blocks found.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    /// Where the next check goes on; `None` at the end.
    pub(crate) next: Option<u64>,
    /// Blocks looked at.
    pub(crate) blocks: u64,
    /// Which of them are damaged; block 0 is the head.
    pub(crate) damaged: Vec<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a block rests.
const fn place(block: u64) -> u64 {
    let groups = GROUP_BLOCKS as u64;
    HEADS_BYTES + block / groups * GROUP_BYTES + (1 + block % groups) * BLOCK_BYTES
}

/// Where the checksums of a group rest.
const fn sums_place(group: usize) -> u64 {
    HEADS_BYTES + group as u64 * GROUP_BYTES
}

/// How long the file is for so many bytes of the engine.
const fn file_bytes(engine_bytes: u64) -> u64 {
    match engine_bytes / BLOCK_BYTES {
        0 => HEADS_BYTES,
        blocks => place(blocks - 1) + BLOCK_BYTES,
    }
}

/// The reverse; a part of a block does not count.
const fn engine_bytes(file_bytes: u64) -> u64 {
    let rest = file_bytes.saturating_sub(HEADS_BYTES);
    let of_last = (rest % GROUP_BYTES / BLOCK_BYTES).saturating_sub(1);
    (rest / GROUP_BYTES * GROUP_BLOCKS as u64 + of_last) * BLOCK_BYTES
}

fn group_of(block: u64) -> (usize, usize) {
    let groups = GROUP_BLOCKS as u64;
    ((block / groups) as usize, (block % groups) as usize)
}

/// The checksum of a block in one place of one file, so that a block elsewhere or of another file does not match.
fn sum(id: &[u8; ID_BYTES], block: u64, content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(id);
    hasher.update(&block.to_le_bytes());
    hasher.update(content);
    hasher.finalize().max(1)
}

/// A branch page of the engine's with one key, whose two children have impossible numbers.
fn lead_nowhere(page: &mut [u8]) {
    const BRANCH: u8 = 2;
    const CHILDREN: Range<usize> = 40..56;
    // Where a key of variable length ends, 259, and what a key of fixed length begins with: 3, which all its types know.
    const KEY: [u8; 2] = [3, 1];
    page.fill(0);
    page[0] = BRANCH;
    page[2] = 1;
    page[CHILDREN].fill(0xff);
    page[CHILDREN.end..][..KEY.len()].copy_from_slice(&KEY);
}

fn unsupported(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what.to_owned())
}

impl Sealed {
    /// Opens the file, making it if it is not there, and giving checksums to one that has none.
    pub(crate) fn open(path: &Path, faults: &Faults) -> Result<Self> {
        let failed = |e: &io::Error| failed(path, e);
        let was = open_file(path).map_err(|e| failed(&e))?;
        if was.metadata().map_err(|e| failed(&e))?.len() == 0 {
            let write = |file: &File| {
                file.set_len(HEADS_BYTES)?;
                write_heads(file, &encode_head(&new_id(), &[0; ENGINE_HEADER_BYTES]))
            };
            beside::make(path, write).map_err(|e| failed(&e))?;
        } else if is_engine_file(&was).map_err(|e| failed(&e))? {
            seal(path, was, faults)?;
        }
        let file = open_file(path).map_err(|e| failed(&e))?;
        let sealed = Self::read_in(path, file)?;
        if sealed.bytes() == 0 {
            sealed.file.set_len(HEADS_BYTES).map_err(|e| failed(&e))?;
        }
        Ok(sealed)
    }

    /// Opens a file that is there to look at it. Nothing of it is changed, be it of this version or an earlier one.
    pub(super) fn look(path: &Path) -> Result<Self> {
        let failed = |e: &io::Error| failed(path, e);
        let file = File::open(path).map_err(|e| failed(&e))?;
        if !is_engine_file(&file).map_err(|e| failed(&e))? {
            return Self::read_in(path, file);
        }
        let mut engine = [0; ENGINE_HEADER_BYTES];
        file.read_exact_at(&mut engine, 0).map_err(|e| failed(&e))?;
        let bytes = file.metadata().map_err(|e| failed(&e))?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            id: [0; ID_BYTES],
            head: Mutex::new(Head { engine, stale: false, durable: None }),
            sums: RwLock::new(Sums { bytes, groups: Vec::new(), changed: BTreeMap::new() }),
            writing: Mutex::default(),
            damaged: Mutex::default(),
            opening: AtomicBool::new(true),
            may_lose: false,
            is_plain: true,
        })
    }

    fn read_in(path: &Path, file: File) -> Result<Self> {
        let sealed = Self::read_any(path, file)?;
        let head = lock(&sealed.head);
        let newest = Commit::newest(&head.engine).number;
        if head.durable.is_some_and(|durable| durable.number > newest) {
            return Err(damaged_file(path, "it is older than what was committed to it last"));
        }
        drop(head);
        Ok(sealed)
    }

    fn read_any(path: &Path, file: File) -> Result<Self> {
        let failed = |e: &io::Error| failed(path, e);
        let mut bytes = file.metadata().map_err(|e| failed(&e))?.len();
        let (head, stale) = read_head(path, &file)?;
        let mut engine = [0; ENGINE_HEADER_BYTES];
        engine.copy_from_slice(&head[ENGINE_AT..][..ENGINE_HEADER_BYTES]);
        if engine[..ENGINE_MAGIC.len()].iter().all(|byte| *byte == 0) {
            // It was cut off while it was made: nothing was ever committed.
            bytes = HEADS_BYTES;
            engine = [0; ENGINE_HEADER_BYTES];
        }
        let bytes = engine_bytes(bytes);
        let groups = (bytes / BLOCK_BYTES).div_ceil(GROUP_BLOCKS as u64);
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&head[ID_AT..][..ID_BYTES]);
        let mut note = [0; Commit::BYTES];
        ends_early(file.read_exact_at(&mut note, DURABLE_AT)).map_err(|e| failed(&e))?;
        let (durable, newest) = (Commit::decode(&id, &note), Commit::newest(&engine));
        Ok(Self {
            path: path.to_owned(),
            file,
            id,
            may_lose: durable == Some(newest) && may_go_back(&engine),
            head: Mutex::new(Head { engine, stale, durable }),
            sums: RwLock::new(Sums {
                bytes,
                groups: (0..groups).map(|_| None).collect(),
                changed: BTreeMap::new(),
            }),
            writing: Mutex::default(),
            damaged: Mutex::default(),
            opening: AtomicBool::new(true),
            is_plain: false,
        })
    }

    /// Whether it has no checksums of ours.
    pub(super) fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// The engine's own header.
    pub(super) fn engine_header(&self) -> [u8; ENGINE_HEADER_BYTES] {
        lock(&self.head).engine
    }

    /// From now on what does not match is damage.
    pub(crate) fn opened(&self) {
        self.opening.store(false, Ordering::SeqCst);
        lock(&self.damaged).clear();
    }

    /// While the engine opens the file: the damage because of which it would go back behind a commit that was durable.
    pub(crate) fn lost(&self) -> Option<Error> {
        let first = lock(&self.damaged).first().copied();
        let block = first.filter(|_| self.may_lose && self.opening.load(Ordering::SeqCst))?;
        Some(damaged_file(
            &self.path,
            &format!(
                "the block at byte {} does not match its checksum, and without it what was committed last is lost",
                place(block)
            ),
        ))
    }

    pub(super) fn check_not_lost(&self) -> io::Result<()> {
        self.lost().map_or(Ok(()), |error| Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())))
    }

    /// Insists that the path still names this file.
    pub(crate) fn check_in_place(&self) -> Result<()> {
        // Where that cannot be seen now, writing says what is wrong.
        if super::lock::is_at(&self.file, &self.path).unwrap_or(true) {
            return Ok(());
        }
        Err(Error::unavailable(format!(
            "'{}' was removed, moved or replaced while it is in use, and this process has the last copy open, to which nothing \
             more is written; run 'sluice backup DIR' before the process ends and restore that, or move the file back",
            self.path.display()
        )))
    }

    /// Length of the engine's file, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.sums().bytes
    }

    /// Damaged blocks met so far.
    pub(crate) fn damaged(&self) -> Vec<u64> {
        lock(&self.damaged).iter().copied().collect()
    }

    fn sums(&self) -> RwLockReadGuard<'_, Sums> {
        self.sums.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn sums_mut(&self) -> RwLockWriteGuard<'_, Sums> {
        self.sums.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset + out.len() as u64;
        if end <= ENGINE_HEADER_BYTES as u64 {
            out.copy_from_slice(&lock(&self.head).engine[offset as usize..end as usize]);
            return Ok(());
        }
        if offset == 0 || !offset.is_multiple_of(BLOCK_BYTES) || !out.len().is_multiple_of(BLOCK) {
            return Err(unsupported("a read of a part of a block"));
        }
        let first = offset / BLOCK_BYTES;
        let damaged = match self.read_blocks(first, out) {
            Ok(damaged) => damaged,
            Err(error) => or_unread(Err(error)).map(|()| Some(first))?,
        };
        if let Some(block) = damaged {
            self.note(block);
            lead_nowhere(out);
        }
        Ok(())
    }

    /// Reads blocks; answers the first that does not match its checksum.
    fn read_blocks(&self, first: u64, out: &mut [u8]) -> io::Result<Option<u64>> {
        if self.is_plain {
            return self.file.read_exact_at(out, first * BLOCK_BYTES).map(|()| None);
        }
        let mut block = first;
        let mut rest = out;
        while !rest.is_empty() {
            let (group, at) = group_of(block);
            let run = (rest.len() / BLOCK).min(GROUP_BLOCKS - at);
            let (here, after) = rest.split_at_mut(run * BLOCK);
            self.file.read_exact_at(here, place(block))?;
            self.load(group)?;
            let sums = self.sums();
            let Some(Some(of_group)) = sums.groups.get(group) else { return Ok(Some(block)) };
            for (content, stored) in here.chunks_exact(BLOCK).zip(&of_group[at..]) {
                if *stored == 0 || sum(&self.id, block, content) != *stored {
                    return Ok(Some(block));
                }
                block += 1;
            }
            rest = after;
        }
        Ok(None)
    }

    /// Reads the checksums of a group if they are not in memory.
    fn load(&self, group: usize) -> io::Result<()> {
        if matches!(self.sums().groups.get(group), None | Some(Some(_))) {
            return Ok(());
        }
        let mut raw = vec![0; BLOCK];
        self.file.read_exact_at(&mut raw, sums_place(group))?;
        let mut loaded = Box::new([0; GROUP_BLOCKS]);
        for (sum, bytes) in loaded.iter_mut().zip(raw.as_chunks::<SUM_BYTES>().0) {
            *sum = u32::from_le_bytes(*bytes);
        }
        // Somebody else may have been faster, and changed some since.
        if let Some(place @ None) = self.sums_mut().groups.get_mut(group) {
            *place = Some(loaded);
        }
        Ok(())
    }

    /// What is said of a damaged block.
    pub(crate) fn damage(&self, block: u64) -> Error {
        let at = if block == 0 { 0 } else { place(block) };
        damaged_file(
            &self.path,
            &format!("the block at byte {at} cannot be read, or does not match its checksum"),
        )
    }

    fn note(&self, block: u64) {
        let mut damaged = lock(&self.damaged);
        let new = damaged.len() < DAMAGED_MAX && damaged.insert(block);
        drop(damaged);
        if new && !self.opening.load(Ordering::SeqCst) {
            let (file, offset) = (self.path.display(), place(block));
            tracing::error!(%file, offset, "a block of the store is damaged; what rests in it cannot be read");
        }
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_not_lost()?;
        let end = offset + data.len() as u64;
        if end <= ENGINE_HEADER_BYTES as u64 {
            let mut head = lock(&self.head);
            head.engine[offset as usize..end as usize].copy_from_slice(data);
            head.stale = true;
            return Ok(());
        }
        if offset == 0 || !offset.is_multiple_of(BLOCK_BYTES) || !data.len().is_multiple_of(BLOCK) {
            return Err(unsupported("a write of a part of a block"));
        }
        let first = offset / BLOCK_BYTES;
        let blocks = data.chunks_exact(BLOCK).zip(first..);
        let new: Vec<u32> = blocks.map(|(content, block)| sum(&self.id, block, content)).collect();
        let _writing = lock(&self.writing);
        let (mut block, mut rest) = (first, data);
        while !rest.is_empty() {
            let (group, at) = group_of(block);
            let run = (rest.len() / BLOCK).min(GROUP_BLOCKS - at);
            let (here, after) = rest.split_at(run * BLOCK);
            self.load(group)?;
            self.forget(group, at..at + run)?;
            self.file.write_all_at(here, place(block))?;
            let done = (block - first) as usize;
            let mut sums = self.sums_mut();
            if let Some(Some(of_group)) = sums.groups.get_mut(group) {
                of_group[at..at + run].copy_from_slice(&new[done..done + run]);
            }
            sums.change(group, at..at + run);
            block += run as u64;
            rest = after;
        }
        Ok(())
    }

    /// Takes checksums off the disk before their blocks are written: a write that is cut off leaves blocks that nobody refers to
    /// without one, not with that of what they held before.
    fn forget(&self, group: usize, range: Range<usize>) -> io::Result<()> {
        let mut sums = self.sums_mut();
        let Some(Some(of_group)) = sums.groups.get_mut(group) else { return Ok(()) };
        if of_group[range.clone()].iter().all(|sum| *sum == 0) {
            return Ok(());
        }
        of_group[range.clone()].fill(0);
        let zeros = vec![0; range.len() * SUM_BYTES];
        self.file.write_all_at(&zeros, sums_place(group) + (range.start * SUM_BYTES) as u64)
    }

    /// How much room on the disk a write takes that was not taken before.
    pub(crate) fn new_bytes(&self, offset: u64, bytes: usize) -> io::Result<u64> {
        if offset == 0 {
            return Ok(0);
        }
        let mut new = 0;
        for block in offset / BLOCK_BYTES..(offset + bytes as u64).div_ceil(BLOCK_BYTES) {
            let (group, at) = group_of(block);
            self.load(group)?;
            let sums = self.sums();
            new +=
                u64::from(sums.groups.get(group).and_then(Option::as_ref).is_none_or(|sums| sums[at] == 0));
        }
        Ok(new * BLOCK_BYTES)
    }

    /// Makes the file longer or shorter; answers how much room on the disk became free.
    pub(crate) fn set_len(&self, bytes: u64) -> io::Result<u64> {
        if !bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(unsupported("a length that is not of whole blocks"));
        }
        self.check_not_lost()?;
        let _writing = lock(&self.writing);
        let was = self.bytes();
        let gone = bytes.min(was)..was;
        let freed = gone.end - gone.start - self.new_bytes(gone.start, (gone.end - gone.start) as usize)?;
        let (group, at) = group_of(gone.start / BLOCK_BYTES);
        if at > 0 {
            self.load(group)?;
        }
        self.file.set_len(file_bytes(bytes))?;
        let mut sums = self.sums_mut();
        let groups = (bytes / BLOCK_BYTES).div_ceil(GROUP_BLOCKS as u64) as usize;
        sums.bytes = bytes;
        // What is new reads as zeros, on the disk too.
        sums.groups.resize_with(groups, || Some(Box::new([0; GROUP_BLOCKS])));
        sums.changed.split_off(&groups);
        if at > 0 {
            if let Some(Some(of_group)) = sums.groups.get_mut(group) {
                of_group[at..].fill(0);
            }
            sums.change(group, at..GROUP_BLOCKS);
        }
        Ok(freed)
    }

    /// Hands all that was written to the system; [`Sealed::sync`] makes it durable.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let _writing = lock(&self.writing);
        let mut sums = self.sums_mut();
        for (group, range) in std::mem::take(&mut sums.changed) {
            if let Some(Some(of_group)) = sums.groups.get(group) {
                let raw: Vec<u8> = of_group[range.clone()].iter().flat_map(|sum| sum.to_le_bytes()).collect();
                self.file.write_all_at(&raw, sums_place(group) + (range.start * SUM_BYTES) as u64)?;
            }
        }
        drop(sums);
        let mut head = lock(&self.head);
        if head.stale {
            write_heads(&self.file, &encode_head(&self.id, &head.engine))?;
            head.stale = false;
        }
        Ok(())
    }

    /// Makes durable what was flushed, and notes that it is.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let newest = {
            let head = lock(&self.head);
            (!head.stale).then(|| Commit::newest(&head.engine))
        };
        self.file.sync_data()?;
        let mut head = lock(&self.head);
        if newest.is_some() && head.durable != newest {
            let note = newest.map(|newest| newest.encode(&self.id)).unwrap_or_default();
            self.file.write_all_at(&note, DURABLE_AT)?;
            head.durable = newest;
        }
        Ok(())
    }

    /// Reads up to `blocks_max` blocks from the disk and compares them with their checksums.
    pub(crate) fn check(&self, from: u64, blocks_max: u64) -> io::Result<Checked> {
        let mut checked = Checked::default();
        if self.is_plain {
            // The engine has checked it as it opened it.
            return Ok(checked);
        }
        if from == 0 && !self.heads_are_sound()? {
            checked.damaged.push(0);
        }
        let (group, at) = group_of(from);
        let end = self.bytes() / BLOCK_BYTES;
        let run = blocks_max.min(end.saturating_sub(from)).min((GROUP_BLOCKS - at) as u64);
        if run == 0 {
            return Ok(checked);
        }
        match self.load(group) {
            // Their checksums cannot be read.
            Err(error) if is_broken(&error) => checked.damaged.push(from),
            loaded => loaded?,
        }
        let mut raw = vec![0; run as usize * BLOCK];
        // What is cut off or cannot be read stays as it is, and differs.
        or_unread(self.file.read_exact_at(&mut raw, place(from)))?;
        let differs = |block: u64, content: &[u8]| {
            let (group, at) = group_of(block);
            let stored = self.sums().groups.get(group).and_then(Option::as_ref).map_or(0, |sums| sums[at]);
            stored != 0 && sum(&self.id, block, content) != stored
        };
        for (content, block) in raw.chunks_exact_mut(BLOCK).zip(from..) {
            if block == 0 || !differs(block, content) {
                continue;
            }
            // It may have been written meanwhile.
            let _writing = lock(&self.writing);
            if self.bytes() / BLOCK_BYTES <= block {
                break;
            }
            or_unread(self.file.read_exact_at(content, place(block)))?;
            if differs(block, content) {
                checked.damaged.push(block);
            }
        }
        checked.damaged.iter().for_each(|block| self.note(*block));
        checked.blocks = run;
        checked.next = (from + run < end).then_some(from + run);
        Ok(checked)
    }

    fn heads_are_sound(&self) -> io::Result<bool> {
        let _head = lock(&self.head);
        let mut copies = [[0; HEAD_BYTES]; 2];
        for (copy, at) in copies.iter_mut().zip([0, BLOCK_BYTES]) {
            or_unread(self.file.read_exact_at(copy, at))?;
        }
        Ok(copies.iter().all(head_is_sound))
    }
}

impl Sums {
    fn change(&mut self, group: usize, range: Range<usize>) {
        let changed = self.changed.entry(group).or_insert_with(|| range.clone());
        *changed = changed.start.min(range.start)..changed.end.max(range.end);
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

fn failed(path: &Path, error: &io::Error) -> Error {
    super::unusable(path, error)
}

fn encode_head(id: &[u8; ID_BYTES], engine: &[u8; ENGINE_HEADER_BYTES]) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..MAGIC.len()].copy_from_slice(&MAGIC);
    head[MAGIC.len()..ID_AT].copy_from_slice(&FORMAT.to_le_bytes());
    head[ID_AT..][..ID_BYTES].copy_from_slice(id);
    head[ENGINE_AT..][..ENGINE_HEADER_BYTES].copy_from_slice(engine);
    let sum = crc32fast::hash(&head[..HEAD_SUM_AT]);
    head[HEAD_SUM_AT..].copy_from_slice(&sum.to_le_bytes());
    head
}

fn head_is_sound(head: &[u8; HEAD_BYTES]) -> bool {
    let sum = crc32fast::hash(&head[..HEAD_SUM_AT]).to_le_bytes();
    head[..MAGIC.len()] == MAGIC && head[HEAD_SUM_AT..] == sum
}

/// Both copies, one after the other: with a cut in between one of them is whole.
fn write_heads(file: &File, head: &[u8; HEAD_BYTES]) -> io::Result<()> {
    file.write_all_at(head, 0)?;
    file.write_all_at(head, BLOCK_BYTES)
}

/// The head, and whether a copy of it has to be written anew.
fn read_head(path: &Path, file: &File) -> Result<([u8; HEAD_BYTES], bool)> {
    let mut copies = Vec::new();
    for at in [0, BLOCK_BYTES] {
        let mut copy = [0; HEAD_BYTES];
        ends_early(file.read_exact_at(&mut copy, at)).map_err(|e| failed(path, &e))?;
        if head_is_sound(&copy) {
            copies.push(copy);
        }
    }
    let Some(head) = copies.first() else {
        return Err(damaged_file(path, "neither copy of its head is whole"));
    };
    let mut format = [0; size_of::<u32>()];
    format.copy_from_slice(&head[MAGIC.len()..ID_AT]);
    let format = u32::from_le_bytes(format);
    if format != FORMAT {
        return Err(Error::Refused {
            reason: format!(
                "'{}' has format {format}, and this program reads up to {FORMAT}; run the version that wrote it, or restore a backup made before",
                path.display()
            ),
        });
    }
    Ok((*head, copies.get(1) != Some(head)))
}

pub(super) fn damaged_file(path: &Path, reason: &str) -> Error {
    Error::Damaged {
        what: format!("'{}'", path.display()),
        reason: format!(
            "{reason}; restore it from a backup (a copy of the folder of a running process is none), and check the disk"
        ),
    }
}

fn new_id() -> [u8; ID_BYTES] {
    let random = || RandomState::new().build_hasher().finish().to_le_bytes();
    let mut id = [0; ID_BYTES];
    id[..8].copy_from_slice(&random());
    id[8..].copy_from_slice(&random());
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_lengths_fit_each_other() {
        let groups = GROUP_BLOCKS as u64;
        for blocks in [0, 1, 2, groups - 1, groups, groups + 1, 3 * groups, 3 * groups + 7] {
            let bytes = blocks * BLOCK_BYTES;
            assert_eq!(engine_bytes(file_bytes(bytes)), bytes, "{blocks} blocks");
            assert!(place(blocks) >= file_bytes(bytes), "{blocks} blocks");
        }
        assert_eq!(place(groups) - place(groups - 1), 2 * BLOCK_BYTES);
    }

    #[test]
    fn blocks_come_back_until_one_is_damaged_swapped_or_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let content = |n: u8| vec![n; BLOCK];
        {
            let file = Sealed::open(&path, &Faults::default()).unwrap();
            file.set_len(2000 * BLOCK_BYTES).unwrap();
            file.write(0, b"redb\x1a\x0a\xa9\x0d\x0a header").unwrap();
            for n in [1_u8, 2, 3] {
                file.write(u64::from(n) * BLOCK_BYTES, &content(n)).unwrap();
            }
            // Across the end of a group.
            let across: Vec<u8> = [content(4), content(5)].concat();
            file.write(1023 * BLOCK_BYTES, &across).unwrap();
            file.flush().unwrap();
            file.sync().unwrap();
        }
        let reads = |file: &Sealed, block: u64, blocks: usize| {
            let mut out = vec![0; blocks * BLOCK];
            file.read(block * BLOCK_BYTES, &mut out).unwrap();
            out
        };
        let mut nowhere = content(0);
        lead_nowhere(&mut nowhere);
        let file = Sealed::open(&path, &Faults::default()).unwrap();
        assert_eq!(file.bytes(), 2000 * BLOCK_BYTES);
        assert_eq!(reads(&file, 2, 1), content(2));
        assert_eq!(reads(&file, 1023, 2), [content(4), content(5)].concat());
        assert_eq!(reads(&file, 7, 1), nowhere, "what was never written is no content");
        let mut header = [0; 9];
        file.read(0, &mut header).unwrap();
        assert_eq!(header, *ENGINE_MAGIC);

        let raw = OpenOptions::new().write(true).open(&path).unwrap();
        raw.write_all_at(&[9], place(1) + 100).unwrap();
        raw.write_all_at(&content(3), place(2)).unwrap();
        drop(file);
        let file = Sealed::open(&path, &Faults::default()).unwrap();
        assert_eq!(reads(&file, 1, 1), nowhere);
        assert_eq!(reads(&file, 2, 1), nowhere);
        assert_eq!(reads(&file, 3, 1), content(3));
        let checked = file.check(0, 1024).unwrap();
        assert_eq!((checked.damaged, checked.next), (vec![1, 2], Some(1024)));
        assert_eq!(file.damaged(), [1, 2]);

        // Shorter and longer again: what comes back is nothing that was there before.
        file.set_len(1023 * BLOCK_BYTES).unwrap();
        file.set_len(2000 * BLOCK_BYTES).unwrap();
        assert_eq!(reads(&file, 1023, 1), nowhere);
        file.flush().unwrap();
        drop(file);
        raw.set_len(place(3)).unwrap();
        let file = Sealed::open(&path, &Faults::default()).unwrap();
        assert_eq!(reads(&file, 3, 1), nowhere);
    }

    #[test]
    fn a_head_with_one_sound_copy_opens_and_is_made_whole_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let open = || Sealed::open(&path, &Faults::default());
        let file = open().unwrap();
        file.set_len(2 * BLOCK_BYTES).unwrap();
        file.write(0, ENGINE_MAGIC).unwrap();
        file.flush().unwrap();
        let raw = OpenOptions::new().write(true).open(&path).unwrap();
        for at in [ID_AT as u64, BLOCK_BYTES + ENGINE_AT as u64] {
            raw.write_all_at(&[0xee], at).unwrap();
            assert_eq!(open().unwrap().check(0, 1).unwrap().damaged, [0]);
            let file = open().unwrap();
            file.flush().unwrap();
            assert_eq!(file.check(0, 1).unwrap().damaged, [0; 0]);
        }
        let newer = |head: &mut [u8; HEAD_BYTES]| {
            head[MAGIC.len()] = 99;
            let sum = crc32fast::hash(&head[..HEAD_SUM_AT]).to_le_bytes();
            head[HEAD_SUM_AT..].copy_from_slice(&sum);
        };
        let mut head = encode_head(&[1; ID_BYTES], &[2; ENGINE_HEADER_BYTES]);
        newer(&mut head);
        write_heads(&raw, &head).unwrap();
        let error = open().unwrap_err();
        assert!(error.to_string().contains("format 99"), "{error}");
        write_heads(&raw, &[7; HEAD_BYTES]).unwrap();
        let error = open().unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
    }
}
