//! Reads a log back. A torn end is cut; damage to what was promised refuses to open and names the place.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use super::frame::{self, FRAME_BYTES, HEADER_BYTES, Head};
use super::ledger::{Ledger, Spot};
use super::segment::{self, DiskFaults, Segment};
use super::tail::Tail;
use crate::Error;

const BUFFER_BYTES: usize = 1 << 20;

/// Opens the log of a folder at its end.
pub(super) fn open(dir: &Path, segment_bytes: u64, faults: &Arc<DiskFaults>) -> Result<Tail, Error> {
    let failed = |error: io::Error| disk(format!("cannot read {}: {error}", dir.display()));
    let files = segment::list(dir).map_err(failed)?;
    let mut ledger = Ledger::default();
    let mut end = None;
    for (at, (number, path)) in files.iter().enumerate() {
        let is_last = at + 1 == files.len();
        if let Some((before, _)) = at.checked_sub(1).map(|before| &files[before])
            && before + 1 != *number
        {
            let missing = before + 1;
            return Err(disk(format!("{} lacks the log file of number {missing}", dir.display())));
        }
        end = Some(replay(path, *number, is_last, &mut ledger)?);
    }
    let Some((segment, offset)) = end else {
        return Tail::begin(dir, ledger, segment_bytes, faults.clone()).map_err(failed);
    };
    Ok(Tail::resume(dir, ledger, segment, offset, segment_bytes, faults.clone()))
}

/// Takes in one file; answers where it ends.
fn replay(
    path: &Path,
    number: u64,
    is_last: bool,
    ledger: &mut Ledger,
) -> Result<(Arc<Segment>, u64), Error> {
    let failed = |error: io::Error| disk(format!("cannot read {}: {error}", path.display()));
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
    let file_bytes = file.metadata().map_err(failed)?.len();
    let mut header = [0; HEADER_BYTES];
    let head = file.read_exact_at(&mut header, 0).ok().and_then(|()| frame::read_header(&header));
    let Some(head) = head.filter(|head| head.number == number) else { return Err(damaged(path, 0)) };
    let segment = Arc::new(Segment { number, salt: head.salt, path: path.to_owned(), file });
    ledger.add_segment(segment.clone(), HEADER_BYTES as u64);

    let mut frames = Frames::new(&segment, HEADER_BYTES as u64, file_bytes);
    while let Some(offset) = frames.next().map_err(failed)? {
        let bytes = (FRAME_BYTES + frames.payload.len()) as u64;
        ledger.grow(number, bytes);
        let Some(record) = frame::read(&frames.payload) else {
            let place = path.display();
            return Err(disk(format!("{place} has a record at byte {offset} that a newer version wrote")));
        };
        ledger.apply(record, Spot { segment: number, offset, bytes });
    }
    let end = frames.offset;
    if end < file_bytes {
        if !is_last || end < head.begin_bytes || proven_after(&segment, end, file_bytes).map_err(failed)? {
            return Err(damaged(path, end));
        }
        tracing::debug!(file = %path.display(), from = end, bytes = file_bytes - end, "the unused or torn end is cut");
        segment.file.set_len(end).map_err(failed)?;
    }
    if is_last {
        // What a killed process wrote may not have reached the disk yet.
        segment.file.sync_all().map_err(failed)?;
    }
    Ok((segment, end))
}

/// Whether a sound frame behind `end` was written when `end` was on disk already: then this is no torn tail.
///
/// Frames of one last, unsynced write may reach the disk in any order, so a sound frame alone proves nothing.
fn proven_after(segment: &Segment, end: u64, file_bytes: u64) -> io::Result<bool> {
    let mut window = vec![0; BUFFER_BYTES];
    let mut from = end + 1;
    while from + (FRAME_BYTES as u64) <= file_bytes {
        let count = (file_bytes - from).min(BUFFER_BYTES as u64) as usize;
        segment.file.read_exact_at(&mut window[..count], from)?;
        let mut at = 0;
        while let Some(found) = frame::find_magic(&window[..count], at) {
            let offset = from + found as u64;
            let mut frames = Frames::new(segment, offset, file_bytes);
            if frames.next()?.is_some() && frames.synced > end {
                return Ok(true);
            }
            at = found + 1;
        }
        // Windows overlap, so that a magic across the border is found.
        from += (count - 3).max(1) as u64;
    }
    Ok(false)
}

/// The frames of a file, one after the other.
struct Frames<'a> {
    segment: &'a Segment,
    reader: BufReader<At<'a>>,
    file_bytes: u64,
    /// Where the next frame begins.
    offset: u64,
    synced: u64,
    payload: Vec<u8>,
}

impl<'a> Frames<'a> {
    fn new(segment: &'a Segment, offset: u64, file_bytes: u64) -> Self {
        let reader = BufReader::with_capacity(64 << 10, At { file: &segment.file, offset });
        Self { segment, reader, file_bytes, offset, synced: 0, payload: Vec::new() }
    }

    /// Reads the next frame; `None` where no sound one begins.
    fn next(&mut self) -> io::Result<Option<u64>> {
        let left = self.file_bytes - self.offset;
        if left < FRAME_BYTES as u64 {
            return Ok(None);
        }
        let mut head = [0; FRAME_BYTES];
        self.reader.read_exact(&mut head)?;
        let Some(head) = Head::read(&head) else { return Ok(None) };
        if left - (FRAME_BYTES as u64) < head.payload_bytes as u64 {
            return Ok(None);
        }
        self.payload.resize(head.payload_bytes, 0);
        self.reader.read_exact(&mut self.payload)?;
        if !head.fits(self.segment.salt, &self.payload) {
            return Ok(None);
        }
        self.synced = head.synced;
        let begins = self.offset;
        self.offset += (FRAME_BYTES + head.payload_bytes) as u64;
        Ok(Some(begins))
    }
}

struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl io::Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

pub(super) const fn disk(reason: String) -> Error {
    Error::Disk { reason }
}

fn damaged(path: &Path, offset: u64) -> Error {
    let place = path.display();
    disk(format!(
        "{place} is damaged at byte {offset}, before records that were promised; restore the folder from a backup, \
         or move it away to begin empty"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Message;

    /// Two messages, written with or without a sync between them; the first is damaged then.
    fn reopened(sync_between: bool) -> (tempfile::TempDir, u64, Result<Tail, Error>) {
        let folder = tempfile::tempdir().unwrap();
        let faults = Arc::new(DiskFaults::default());
        let mut tail = Tail::begin(folder.path(), Ledger::default(), 1 << 20, faults.clone()).unwrap();
        let topic = "flow:tg:torn".parse().unwrap();
        tail.topology(|out| frame::put_topic(out, 1, &topic, [("reader", 2)].into_iter())).unwrap();
        tail.ledger.topic(1, &topic, &[("reader", 2)]);
        tail.synced = tail.offset;
        let first = tail.offset;
        for _ in 0..2 {
            let mut ids = Vec::new();
            tail.messages([(1, &Message::new("body"))].into_iter(), &mut ids).unwrap();
            if sync_between {
                tail.synced = tail.offset;
            }
        }
        tail.segment.file.write_all_at(&[0; 4], first).unwrap();
        drop(tail);
        let tail = open(folder.path(), 1 << 20, &faults);
        (folder, first, tail)
    }

    #[test]
    fn a_hole_in_what_was_never_synced_is_a_torn_end() {
        let (_folder, first, tail) = reopened(false);
        let tail = tail.unwrap();
        assert_eq!(tail.offset, first);
        assert_eq!((tail.ledger.topics.len(), tail.ledger.messages.len()), (1, 0));
    }

    #[test]
    fn a_hole_before_what_was_written_after_a_sync_is_damage() {
        let (_folder, first, tail) = reopened(true);
        let error = tail.err().expect("it must not open").to_string();
        assert!(error.contains(&format!("damaged at byte {first}")), "{error}");
    }
}
