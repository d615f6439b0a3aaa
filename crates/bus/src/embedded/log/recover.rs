//! Reads a log back. A torn end is cut; damage to what was promised refuses to open and names the place.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::{self, FRAME_BYTES, HEADER_BYTES, Head, Record};
use super::ledger::{Ledger, Spot};
use super::segment::{self, DiskFaults, Segment};
use super::tail::Tail;
use crate::Error;
use crate::embedded::config::Config;

const BUFFER_BYTES: usize = 1 << 20;
/// Frames judged at once.
const CANDIDATES_MAX: usize = 1 << 16;

/// A log that was read back.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) tail: Tail,
    /// Bytes of a torn end that were cut.
    pub(super) cut_bytes: u64,
}

/// Opens the log of a folder at its end.
pub(super) fn open(dir: &Path, config: &Config, faults: &Arc<DiskFaults>) -> Result<Recovered, Error> {
    let failed = |error: io::Error| unusable(dir, &error);
    let files = segment::list(dir, config.is_looked_at).map_err(failed)?;
    check_files(dir, &files, config)?;
    let mut ledger = Ledger::default();
    let mut end = None;
    for (at, (number, path)) in files.iter().enumerate() {
        let is_looked_at = config.is_looked_at;
        let place = Place { is_last: at + 1 == files.len(), is_closed: config.end.is_some(), is_looked_at };
        end = Some(replay(path, *number, place, &mut ledger)?);
    }
    let Some((segment, offset, cut_bytes)) = end else {
        let begun = Tail::begin(dir, ledger, config.segment_bytes, faults.clone()).map_err(failed)?;
        return Ok(Recovered { tail: begun, cut_bytes: 0 });
    };
    if let Some(next) = ledger.next_file.filter(|next| *next > segment.number) {
        return Err(lacks(dir, next));
    }
    if ledger.gone_file.is_some_and(|gone| ledger.first_file() > gone.saturating_add(1)) {
        return Err(lacks(dir, ledger.first_file() - 1));
    }
    if config.end.is_some() && !ledger.is_closed {
        return Err(wrong(format!(
            "{} does not end with the record that it was closed, though it was; {RESTORE}",
            segment.path.display()
        )));
    }
    if !config.is_looked_at {
        if cut_bytes > 0 {
            tell_cut(&segment, offset, cut_bytes, config)?;
        }
        cut(&segment, offset).map_err(failed)?;
    }
    let tail = Tail::resume(dir, ledger, segment, offset, config.segment_bytes, faults.clone());
    Ok(Recovered { tail, cut_bytes })
}

/// What to do about a log that cannot be used.
const RESTORE: &str = "restore the folder from a backup, or move it away to begin empty";

/// Refuses a log whose files cannot be all that there were.
fn check_files(dir: &Path, files: &[(u64, PathBuf)], config: &Config) -> Result<(), Error> {
    for pair in files.windows(2) {
        if pair[0].0 + 1 != pair[1].0 {
            return Err(lacks(dir, pair[0].0 + 1));
        }
    }
    let place = dir.display();
    let (Some((first, _)), Some((last, path))) = (files.first(), files.last()) else {
        if config.create && !config.is_looked_at {
            return Ok(());
        }
        return Err(wrong(format!("{place} holds no log, though there was one; {RESTORE}")));
    };
    let Some(end) = config.end else { return Ok(()) };
    if *first > end.first_file {
        return Err(lacks(dir, end.first_file));
    }
    if *last < end.last_file {
        return Err(lacks(dir, end.last_file));
    }
    let failed = |error: io::Error| unusable(path, &error);
    let bytes = path.metadata().map_err(failed)?.len();
    if *first < end.first_file || *last > end.last_file || bytes != end.last_bytes {
        let (first_file, last_file, last_bytes) = (end.first_file, end.last_file, end.last_bytes);
        return Err(wrong(format!(
            "{place} was closed with the files {first_file} to {last_file}, the last of {last_bytes} bytes; now it has \
             {first} to {last}, the last of {bytes} bytes: it was cut, added to, or comes from elsewhere; {RESTORE}"
        )));
    }
    Ok(())
}

fn lacks(dir: &Path, number: u64) -> Error {
    wrong(format!("{} lacks the log file of number {number}; {RESTORE}", dir.display()))
}

/// What is known of a file before it is read.
#[derive(Debug, Clone, Copy)]
struct Place {
    is_last: bool,
    /// The log was closed, so nothing of it may be torn.
    is_closed: bool,
    /// Nothing is written to it.
    is_looked_at: bool,
}

/// Takes in one file; answers where it ends, and how much of a torn end lies behind that.
fn replay(
    path: &Path,
    number: u64,
    place: Place,
    ledger: &mut Ledger,
) -> Result<(Arc<Segment>, u64, u64), Error> {
    let failed = |error: io::Error| unusable(path, &error);
    let mut options = OpenOptions::new();
    options.read(true).write(!place.is_looked_at).custom_flags(segment::NO_WAIT);
    let file = options.open(path).map_err(failed)?;
    let file_bytes = file.metadata().map_err(failed)?.len();
    let mut header = [0; HEADER_BYTES];
    let head = file.read_exact_at(&mut header, 0).ok().and_then(|()| frame::read_header(&header));
    if head.is_none() && frame::is_of_other_version(&header) {
        return Err(newer(path, 0));
    }
    let Some(head) = head.filter(|head| head.number == number) else { return Err(damaged(path, 0)) };
    let segment = Arc::new(Segment { number, seal: head.seal, path: path.to_owned(), file });
    ledger.add_segment(segment.clone(), HEADER_BYTES as u64);

    let mut frames = Frames::new(&segment, HEADER_BYTES as u64, file_bytes);
    while let Some(offset) = frames.next().map_err(failed)? {
        let bytes = (FRAME_BYTES + frames.payload.len()) as u64;
        ledger.grow(number, bytes);
        let record = frame::read(&frames.payload).ok_or_else(|| newer(path, offset))?;
        match record {
            Record::Stamp { format, .. } if format > frame::FORMAT => return Err(newer(path, offset)),
            Record::Counters { before_bytes: Some(bytes), .. } => check_before(ledger, number, bytes)?,
            _ => {}
        }
        ledger.apply(record, Spot { segment: number, offset, bytes });
    }
    let end = frames.offset;
    if end < head.begin_bytes {
        return Err(damaged(path, end));
    }
    let mut torn_bytes = 0;
    if end < file_bytes {
        let may_be_torn = place.is_last && !place.is_closed;
        if !may_be_torn || proven_after(&segment, end, file_bytes).map_err(failed)? {
            return Err(damaged(path, end));
        }
        torn_bytes = used_bytes(&segment, end, file_bytes).map_err(failed)?;
    }
    Ok((segment, end, torn_bytes))
}

/// Refuses a log in which the file before the one of this number has lost its end.
fn check_before(ledger: &Ledger, number: u64, bytes: u64) -> Result<(), Error> {
    match number.checked_sub(1).and_then(|before| ledger.segments.get(&before)) {
        Some(held) if held.bytes < bytes => Err(damaged(&held.segment.path, held.bytes)),
        _ => Ok(()),
    }
}

/// Tells of a torn end that is about to be cut. Where nobody knows that it was never promised, its file is copied first.
fn tell_cut(segment: &Segment, from: u64, bytes: u64, config: &Config) -> Result<(), Error> {
    let file = segment.path.display();
    let Some(aside) = &config.set_aside else {
        let what = "the log was not closed and its end is torn: what was not acknowledged yet is cut";
        tracing::warn!(%file, from, bytes, "{what}");
        return Ok(());
    };
    let copy = aside.join(segment.path.file_name().unwrap_or_default());
    let copied = || {
        std::fs::create_dir_all(aside)?;
        std::fs::copy(&segment.path, &copy)?;
        File::open(&copy)?.sync_all()?;
        // With the folders that were made for it.
        let folders = aside.ancestors().take(3);
        folders.filter(|folder| !folder.as_os_str().is_empty()).try_for_each(segment::sync_dir)
    };
    copied().map_err(|error| unusable(&copy, &error))?;
    let what = "the end of the log is torn: what lies behind its last whole record is cut, and may have been acknowledged; \
                the file is set aside as it was";
    tracing::warn!(%file, from, bytes, aside = %copy.display(), "{what}");
    Ok(())
}

/// Cuts what lies behind the last sound record.
fn cut(segment: &Segment, end: u64) -> io::Result<()> {
    if segment.file.metadata()?.len() > end {
        segment.file.set_len(end)?;
    }
    // What a killed process wrote may not have reached the disk yet.
    segment.file.sync_all()
}

/// Bytes from `end` up to the last that is not zero: the file is filled with zeros ahead of its end.
fn used_bytes(segment: &Segment, end: u64, file_bytes: u64) -> io::Result<u64> {
    let mut used = 0;
    let mut window = vec![0; BUFFER_BYTES];
    let mut from = end;
    while from < file_bytes {
        let count = (file_bytes - from).min(BUFFER_BYTES as u64) as usize;
        segment.file.read_exact_at(&mut window[..count], from)?;
        if let Some(last) = window[..count].iter().rposition(|byte| *byte != 0) {
            used = from + last as u64 + 1 - end;
        }
        from += count as u64;
    }
    Ok(used)
}

/// Whether a sound frame behind `end` was written when `end` was on disk already: then this is no torn tail.
///
/// Frames of one last, unsynced write may reach the disk in any order, so a sound frame alone proves nothing.
fn proven_after(segment: &Segment, end: u64, file_bytes: u64) -> io::Result<bool> {
    let mut candidates = Vec::new();
    let mut window = vec![0; BUFFER_BYTES];
    let mut from = end + 1;
    while from + (FRAME_BYTES as u64) <= file_bytes {
        let count = (file_bytes - from).min(BUFFER_BYTES as u64) as usize;
        segment.file.read_exact_at(&mut window[..count], from)?;
        let mut at = 0;
        while let Some(found) = frame::find_magic(&window[..count], at) {
            at = found + 1;
            let Some(head) = Head::read(&window[found..count]) else { continue };
            let begins = from + found as u64;
            let payload = begins + FRAME_BYTES as u64;
            let may_be = head.synced > end
                && head.synced <= begins
                && payload + head.payload_bytes as u64 <= file_bytes;
            if may_be {
                candidates.push((payload, head));
            }
            if candidates.len() >= CANDIDATES_MAX {
                if any_fits(segment, &candidates)? {
                    return Ok(true);
                }
                candidates.clear();
            }
        }
        // Windows overlap, so that a head across the border is found.
        from += (count - (FRAME_BYTES - 1)).max(1) as u64;
    }
    any_fits(segment, &candidates)
}

/// Whether one of these frames is sound. A torn message may be full of what looks like frames, each as long as the rest of
/// it; so all are judged in one pass over the file, by the checksums of what lies before their two ends.
fn any_fits(segment: &Segment, candidates: &[(u64, Head)]) -> io::Result<bool> {
    let ends = |(payload, head): &(u64, Head)| [*payload, *payload + head.payload_bytes as u64];
    let mut places: Vec<u64> = candidates.iter().flat_map(ends).collect();
    places.sort_unstable();
    places.dedup();
    let Some(&first) = places.first() else { return Ok(false) };
    let mut sums = Vec::with_capacity(places.len());
    let mut sum = crc32fast::Hasher::new();
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, At { file: &segment.file, offset: first });
    let mut from = first;
    for &place in &places {
        while from < place {
            let there = reader.fill_buf()?;
            if there.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let count = (there.len() as u64).min(place - from) as usize;
            sum.update(&there[..count]);
            reader.consume(count);
            from += count as u64;
        }
        sums.push(sum.clone().finalize());
    }
    let sum_before = |place: u64| places.binary_search(&place).map_or(0, |at| sums[at]);
    Ok(candidates.iter().any(|(payload, head)| {
        let (before, bytes) = (sum_before(*payload), head.payload_bytes as u64);
        // Two checksums of beginnings give that of what lies between them.
        let mut moved = crc32fast::Hasher::new_with_initial_len(before, *payload - first);
        moved.combine(&crc32fast::Hasher::new_with_initial_len(0, bytes));
        let between = sum_before(*payload + bytes) ^ moved.finalize();
        head.fits_sum(segment.seal, payload - FRAME_BYTES as u64, between)
    }))
}

/// Whether a file is, up to so many bytes, what was written to it. One that was cut is not.
pub(super) fn is_whole(segment: &Segment, bytes: u64) -> io::Result<bool> {
    let look = || -> io::Result<bool> {
        let mut header = [0; HEADER_BYTES];
        segment.file.read_exact_at(&mut header, 0)?;
        let head = frame::read_header(&header);
        let is_its = head.is_some_and(|head| head.number == segment.number && head.seal == segment.seal);
        let mut frames = Frames::new(segment, HEADER_BYTES as u64, bytes);
        while frames.next()?.is_some() {}
        Ok(is_its && frames.offset == bytes)
    };
    match look() {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        looked => looked,
    }
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
        if !head.fits(self.segment.seal, self.offset, &self.payload) {
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

/// What is wrong with what is there.
pub(super) const fn wrong(reason: String) -> Error {
    Error::Log { reason }
}

/// What the system says of a file or the folder while the log is opened.
pub(super) fn unusable(path: &Path, error: &io::Error) -> Error {
    let reason = format!("{}: {error}", path.display());
    match error.kind() {
        _ if segment::is_full(error) => disk(reason),
        // What is there is not lost: the wrong user asks for it, or something else lies in its place.
        ErrorKind::PermissionDenied
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory => unopened(&reason),
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => unopened(&reason),
        _ => wrong(reason),
    }
}

fn unopened(reason: &str) -> Error {
    Error::LogUnopened {
        reason: format!("{reason}; see what it is, who owns it, and with which permissions"),
    }
}

fn damaged(path: &Path, offset: u64) -> Error {
    let place = path.display();
    wrong(format!("{place} is damaged at byte {offset}, before records that were promised; {RESTORE}"))
}

fn newer(path: &Path, offset: u64) -> Error {
    let (place, format) = (path.display(), frame::FORMAT);
    wrong(format!(
        "{place} has a record at byte {offset} that a newer version wrote, and this version reads logs up to format {format}; \
         run the newer one, or restore a backup that was made before the upgrade"
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
        let config = Config { segment_bytes: 1 << 20, ..Config::default() };
        let tail = open(folder.path(), &config, &faults).map(|recovered| recovered.tail);
        (folder, first, tail)
    }

    #[test]
    fn a_torn_message_full_of_what_looks_like_frames_is_judged_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let faults = Arc::new(DiskFaults::default());
        let tail = Tail::begin(folder.path(), Ledger::default(), 1 << 20, faults.clone()).unwrap();
        let (segment, end) = (tail.segment.clone(), tail.offset);
        let body_bytes = 8_u64 << 20;
        let mut body = vec![1; 100];
        while (body.len() as u64) < body_bytes {
            let left = body_bytes.saturating_sub(body.len() as u64 + 100);
            body.extend_from_slice(b"\xf5SLr");
            body.extend_from_slice(&(left as u32).to_le_bytes());
            body.extend_from_slice(&(end + 90).to_le_bytes());
            body.extend_from_slice(&[7; 4]);
        }
        segment.file.write_all_at(&body, end).unwrap();
        let file_bytes = end + body.len() as u64;
        assert!(!proven_after(&segment, end, file_bytes).unwrap());
        // One sound frame among them, written after a sync, is found.
        let mut frame = Vec::new();
        let place = end + (4 << 20);
        frame::write(&mut frame, place, segment.seal, end + 60, |out| frame::put_settled(out, 1, 2));
        segment.file.write_all_at(&frame, place).unwrap();
        assert!(proven_after(&segment, end, file_bytes).unwrap());
    }

    #[test]
    fn what_is_cut_of_an_end_that_may_have_been_promised_is_set_aside_first() {
        let (folder, first, opened) = reopened(true);
        assert!(opened.is_err());
        let path = folder.path().join("log-0000000000000001");
        let whole = std::fs::read(&path).unwrap();
        // Half of the first message is all that is left.
        let torn = &whole[..usize::try_from(first).unwrap() + 20];
        std::fs::write(&path, torn).unwrap();
        let aside = folder.path().join("aside/broker");
        let config = Config { set_aside: Some(aside.clone()), ..Config::default() };
        let opened = open(folder.path(), &config, &Arc::default()).unwrap();
        assert_eq!((opened.tail.offset, opened.cut_bytes > 0), (first, true));
        assert_eq!(std::fs::read(aside.join("log-0000000000000001")).unwrap(), torn);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), first);
    }

    #[test]
    fn what_this_process_may_not_use_is_not_told_as_damage() {
        for kind in [ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem, ErrorKind::IsADirectory] {
            let told = unusable(Path::new("d/log-1"), &kind.into());
            assert!(matches!(told, Error::LogUnopened { .. }), "{told}");
            assert!(
                told.to_string().contains("d/log-1") && told.to_string().contains("who owns it"),
                "{told}"
            );
        }
        assert!(matches!(unusable(Path::new("d"), &ErrorKind::UnexpectedEof.into()), Error::Log { .. }));
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
        let error = tail.expect_err("it must not open").to_string();
        assert!(error.contains(&format!("damaged at byte {first}")), "{error}");
    }
}
