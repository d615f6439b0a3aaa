//! The end of the log, where everything is written, behind one lock with the ledger.

use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::{self, Pending};
use super::ledger::{Ledger, Spot};
use super::segment::{self, DiskFaults, Segment};
use crate::embedded::config::{LogEnd, Stamp};
use crate::message::Message;

/// Small records (settled, handed out) that may wait for the next write.
const LAZY_BYTES: usize = 64 << 10;
/// Small records kept back while the disk takes nothing; those beyond it are lost, which costs redeliveries.
const LAZY_BYTES_MAX: usize = 4 << 20;
/// A buffer larger than this is not kept.
const BUFFER_BYTES: usize = 1 << 20;
/// How far a file is filled with zeros ahead of its end. A sync then finds neither size nor blocks changed and leaves
/// the file system's journal alone, which makes it about twice as fast.
const AHEAD_BYTES: u64 = 1 << 20;
pub(super) const RESERVE: &str = "reserve";

pub(super) struct Tail {
    pub(super) ledger: Ledger,
    pub(super) segment: Arc<Segment>,
    pub(super) offset: u64,
    /// How long the file was when it was begun; 0 where that was before the start.
    pub(super) begun_at: u64,
    /// Up to here the segment is known to be on disk.
    pub(super) synced: u64,
    /// The disk took no message at the last try.
    pub(super) full: bool,
    dir: PathBuf,
    /// Up to here the file has its blocks; zeros after `offset`.
    allocated: u64,
    /// Files grow ahead up to here.
    segment_bytes: u64,
    /// Written by the next write, whatever it is, so its frames are placed from `offset` on.
    lazy: Vec<u8>,
    buffer: Vec<u8>,
    reserve_bytes: u64,
    has_reserve: bool,
    /// Something was written since it was opened.
    is_changed: bool,
    /// It was closed: nothing is written any more.
    pub(super) is_ended: bool,
    faults: Arc<DiskFaults>,
}

impl std::fmt::Debug for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tail").field("dir", &self.dir).field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl Tail {
    /// Begins the first file of an empty folder.
    pub(super) fn begin(
        dir: &Path,
        mut ledger: Ledger,
        segment_bytes: u64,
        faults: Arc<DiskFaults>,
    ) -> io::Result<Self> {
        ledger.gone_file = Some(0);
        let (made, offset) = Segment::create(dir, 1, &faults, |out, seal| ledger.snapshot(out, seal))?;
        let segment = Arc::new(made);
        ledger.add_segment(segment.clone(), offset);
        let mut begun = Self::resume(dir, ledger, segment, offset, segment_bytes, faults);
        begun.is_changed = true;
        begun.begun_at = offset;
        Ok(begun)
    }

    /// Goes on at the end of the last file.
    pub(super) fn resume(
        dir: &Path,
        ledger: Ledger,
        segment: Arc<Segment>,
        offset: u64,
        segment_bytes: u64,
        faults: Arc<DiskFaults>,
    ) -> Self {
        Self {
            ledger,
            segment,
            offset,
            begun_at: 0,
            synced: offset,
            full: false,
            dir: dir.to_owned(),
            allocated: offset,
            segment_bytes,
            lazy: Vec::new(),
            buffer: Vec::new(),
            reserve_bytes: 0,
            has_reserve: false,
            is_changed: false,
            is_ended: false,
            faults,
        }
    }

    /// Sets space aside, or finds it set aside; false when the disk has not so much.
    pub(super) fn reserve(&mut self, bytes: u64) -> io::Result<bool> {
        self.reserve_bytes = bytes;
        if self.has_reserve || bytes == 0 {
            return Ok(true);
        }
        let path = self.dir.join(RESERVE);
        if std::fs::symlink_metadata(&path).is_ok_and(|there| there.is_file() && there.len() == bytes) {
            self.has_reserve = true;
            return Ok(true);
        }
        let made = self.faults.charge(bytes).and_then(|()| {
            let mut options = std::fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).custom_flags(segment::NO_LINK);
            let mut file = options.open(&path)?;
            // Zeros that are written take real space; a hole would not.
            let zeros = vec![0; bytes.min(AHEAD_BYTES) as usize];
            let mut left = bytes;
            while left > 0 {
                let part = left.min(AHEAD_BYTES);
                file.write_all(&zeros[..part as usize])?;
                left -= part;
            }
            file.sync_all()
        });
        match made {
            Ok(()) => self.has_reserve = true,
            Err(error) if segment::is_full(&error) => {
                let _ = std::fs::remove_file(&path);
            }
            Err(error) => return Err(error),
        }
        Ok(self.has_reserve)
    }

    /// Gives the reserve free; false when there is none.
    fn release_reserve(&mut self) -> bool {
        if !self.has_reserve || std::fs::remove_file(self.dir.join(RESERVE)).is_err() {
            return false;
        }
        tracing::warn!(
            bytes = self.reserve_bytes,
            "the disk is full; the reserve is given free to settle messages"
        );
        self.has_reserve = false;
        self.faults.give_back(self.reserve_bytes);
        true
    }

    /// Writes bytes at the end, or nothing of them.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let end = self.offset + bytes.len() as u64;
        let mut ahead = (end + AHEAD_BYTES).min(self.segment_bytes);
        if self.faults.is_limited() {
            // A test counts bytes: what was filled ahead before is not to be written into for free.
            self.segment.file.set_len(self.offset)?;
            self.allocated = self.offset;
            ahead = end;
        }
        // A disk that has not so much may still have what is needed.
        let written = if self.allocated < end && self.allocate(ahead.max(end)).is_err() {
            self.allocate(end)
        } else {
            Ok(())
        };
        let written = written.and_then(|()| self.segment.file.write_all_at(bytes, self.offset));
        if let Err(error) = written {
            self.trim()?;
            return Err(error);
        }
        self.offset = end;
        self.ledger.is_closed = false;
        self.is_changed = true;
        self.ledger.grow(self.segment.number, bytes.len() as u64);
        Ok(())
    }

    /// Fills the file with zeros up to `end`.
    fn allocate(&mut self, end: u64) -> io::Result<()> {
        let bytes = end - self.allocated;
        self.faults.charge(bytes)?;
        let zeros = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
        let written = self.segment.file.write_all_at(&zeros, self.allocated);
        if written.is_err() {
            self.faults.give_back(bytes);
            self.segment.file.set_len(self.allocated)?;
        } else {
            self.allocated = end;
        }
        written
    }

    /// Cuts off what lies behind the end.
    pub(super) fn trim(&mut self) -> io::Result<()> {
        if self.allocated > self.offset {
            self.segment.file.set_len(self.offset)?;
            self.faults.give_back(self.allocated - self.offset);
            self.allocated = self.offset;
        }
        Ok(())
    }

    /// Writes the small records that wait, from the reserve if it must be.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.lazy.is_empty() {
            return Ok(());
        }
        let lazy = std::mem::take(&mut self.lazy);
        let mut written = self.write(&lazy);
        if written.as_ref().is_err_and(segment::is_full) {
            self.full = true;
            if self.release_reserve() {
                written = self.write(&lazy);
            }
        }
        self.lazy = lazy;
        if written.is_ok() {
            self.lazy.clear();
        }
        written
    }

    fn keep(&mut self, put: impl FnOnce(&mut Vec<u8>)) {
        if self.lazy.len() < LAZY_BYTES_MAX {
            frame::write(&mut self.lazy, self.offset, self.segment.seal, self.synced, put);
        }
    }

    /// Notes that a message leaves for a reader; written on return, so a killed process does not forget it.
    pub(super) fn handed(&mut self, id: u64, queue: u64, attempts: u32) -> io::Result<()> {
        self.keep(|out| frame::put_handed(out, id, queue, attempts));
        self.ledger.handed(id, queue, attempts);
        self.flush()
    }

    /// Notes that a subscription is done with a message; written with the next write.
    pub(super) fn settled(&mut self, id: u64, queue: u64) -> io::Result<()> {
        self.keep(|out| frame::put_settled(out, id, queue));
        self.ledger.settled(id, queue);
        if self.lazy.len() >= LAZY_BYTES && !self.full { self.flush() } else { Ok(()) }
    }

    /// Writes messages, all or none, each for the subscriptions that its topic has; answers their ids.
    pub(super) fn messages<'a>(
        &mut self,
        messages: impl Iterator<Item = (u64, &'a Message)>,
        ids: &mut Vec<u64>,
    ) -> io::Result<()> {
        self.flush()?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut planned: Vec<(u64, u64, Vec<Pending>, u64, u64)> = Vec::new();
        for (topic, message) in messages {
            let id = self.ledger.new_message();
            ids.push(id);
            let queues = self.ledger.topics.get(&topic).map_or(&[][..], |known| &known.queues);
            let pending: Vec<Pending> =
                queues.iter().map(|(_, queue)| Pending { queue: *queue, attempts: 0 }).collect();
            let start = buffer.len() as u64;
            frame::write(&mut buffer, self.offset, self.segment.seal, self.synced, |out| {
                frame::put_message(out, id, topic, pending.iter().copied());
                frame::put_stored(out, message);
            });
            planned.push((id, topic, pending, start, buffer.len() as u64 - start));
        }
        let begin = self.offset;
        let written = self.write(&buffer);
        if written.is_ok() {
            for (id, topic, pending, start, bytes) in planned {
                let spot = Spot { segment: self.segment.number, offset: begin + start, bytes };
                self.ledger.message(id, topic, pending, spot);
            }
        }
        buffer.clear();
        buffer.shrink_to(BUFFER_BYTES);
        self.buffer = buffer;
        written
    }

    /// Writes a record that matters for the topology, from the reserve if it must be.
    pub(super) fn topology(&mut self, put: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        self.flush()?;
        let mut record = Vec::new();
        frame::write(&mut record, self.offset, self.segment.seal, self.synced, put);
        let written = self.write(&record);
        if written.as_ref().is_err_and(segment::is_full) {
            self.full = true;
            if self.release_reserve() {
                return self.write(&record);
            }
        }
        written
    }

    /// Begins the next file; what was written before is synced first.
    pub(super) fn roll(&mut self) -> io::Result<()> {
        self.flush()?;
        self.trim()?;
        self.faults.sync(&self.segment.file)?;
        self.synced = self.offset;
        let number = self.segment.number + 1;
        let ledger = &self.ledger;
        let (made, offset) =
            Segment::create(&self.dir, number, &self.faults, |out, seal| ledger.snapshot(out, seal))?;
        self.name_follower(number)?;
        self.segment = Arc::new(made);
        self.offset = offset;
        self.begun_at = offset;
        self.allocated = offset;
        self.synced = offset;
        self.ledger.add_segment(self.segment.clone(), offset);
        Ok(())
    }

    /// Ends the present file with the number of the one that was made after it, so that it is missed if it is lost.
    fn name_follower(&mut self, number: u64) -> io::Result<()> {
        let mut record = Vec::new();
        frame::write(&mut record, self.offset, self.segment.seal, self.synced, |out| {
            frame::put_next(out, number)
        });
        let written = self.faults.charge(record.len() as u64);
        let written = written.and_then(|()| self.segment.file.write_all_at(&record, self.offset));
        match written {
            Ok(()) => {
                self.ledger.grow(self.segment.number, record.len() as u64);
                self.faults.sync(&self.segment.file)
            }
            // Without it, one loss less is found.
            Err(error) if segment::is_full(&error) => self.segment.file.set_len(self.offset),
            Err(error) => Err(error),
        }
    }

    /// Puts down which folder the log belongs to.
    pub(super) fn stamp(&mut self, stamp: Stamp) -> io::Result<()> {
        self.topology(|out| frame::put_stamp(out, &stamp.folder, stamp.generation))?;
        self.ledger.stamp = Some(stamp);
        match self.ledger.gone_file {
            Some(_) => Ok(()),
            // A log of an older version begins to keep count.
            None => self.gone(self.ledger.first_file().saturating_sub(1)),
        }
    }

    /// Puts down that files up to this number are given back. It has to be synced before they go.
    pub(super) fn gone(&mut self, number: u64) -> io::Result<()> {
        self.topology(|out| frame::put_gone(out, number))?;
        self.ledger.gone_file = self.ledger.gone_file.max(Some(number));
        Ok(())
    }

    /// Writes the record that says that the log is closed. One that was only looked at stays as it was.
    pub(super) fn close(&mut self) -> io::Result<()> {
        self.is_ended = true;
        self.flush()?;
        if self.is_changed && !self.ledger.is_closed {
            self.topology(frame::put_closed)?;
            self.ledger.is_closed = true;
        }
        self.trim()
    }

    /// Where a closed log ends.
    pub(super) fn end(&self) -> LogEnd {
        LogEnd {
            first_file: self.ledger.first_file(),
            last_file: self.segment.number,
            last_bytes: self.offset,
        }
    }

    /// Moves some of the messages that live in the oldest file to the end; false when none is left there.
    pub(super) fn move_oldest(&mut self) -> io::Result<bool> {
        self.flush()?;
        let oldest = match self.ledger.segments.first_key_value() {
            Some((number, _)) if *number != self.segment.number => *number,
            _ => return Ok(false),
        };
        let mut ids: Vec<u64> = self
            .ledger
            .messages
            .iter()
            .filter(|(_, live)| live.spot.segment == oldest)
            .map(|(id, _)| *id)
            .collect();
        ids.sort_unstable();
        let mut moved_bytes = 0;
        for id in ids {
            let (Some(live), Some(held)) = (self.ledger.messages.get(&id), self.ledger.segments.get(&oldest))
            else {
                continue;
            };
            let payload = held.segment.read(live.spot.offset, live.spot.bytes)?;
            let Some(frame::Record::Message { body, .. }) = frame::read(&payload) else { continue };
            let (topic, pending) = (live.topic, live.pending.clone());
            let mut record = Vec::with_capacity(payload.len());
            frame::write(&mut record, self.offset, self.segment.seal, self.synced, |out| {
                frame::put_message(out, id, topic, pending.iter().copied());
                out.extend_from_slice(body);
            });
            let spot = Spot { segment: self.segment.number, offset: self.offset, bytes: record.len() as u64 };
            self.write(&record)?;
            self.ledger.message(id, topic, pending, spot);
            moved_bytes += record.len();
            if moved_bytes >= BUFFER_BYTES {
                break;
            }
        }
        Ok(moved_bytes > 0)
    }
}
