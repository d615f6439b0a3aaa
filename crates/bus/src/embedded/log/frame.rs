//! What the log is made of: framed, checksummed records, and what each says.
//!
//! A file begins with a header (magic, its number, a random salt, how many bytes were in it when it got its name, a
//! checksum). Frames follow: magic, payload length,
//! how far the file was synced when the frame was written, a checksum over all of this and the payload, the payload.
//! The salt goes into every checksum, so a copy of a log inside a message body is never taken for a frame; and so does the
//! place in the file, so that a frame is none where it was not written. Files of the first version have no places in
//! theirs, and are read and written to their end as they began.

use sluice_schema::Topic;

use crate::message::Message;

pub(super) const HEADER_BYTES: usize = 28;
pub(super) const FRAME_BYTES: usize = 20;
const FILE_MAGIC: [u8; 8] = *b"SLUICEB2";
/// Of files whose frames may be anywhere.
const UNPLACED_MAGIC: [u8; 8] = *b"SLUICEB1";
/// What the files of every version begin with, before one digit.
const FAMILY_MAGIC: [u8; 7] = *b"SLUICEB";
/// The format of what is in a log, as its stamps say.
pub(super) const FORMAT: u32 = 2;
const FRAME_MAGIC: [u8; 4] = *b"\xf5SLr";

pub(super) fn header(number: u64, salt: u32, begin_bytes: u32) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&FILE_MAGIC);
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    bytes[16..20].copy_from_slice(&salt.to_le_bytes());
    bytes[20..24].copy_from_slice(&begin_bytes.to_le_bytes());
    let sum = crc32fast::hash(&bytes[..24]);
    bytes[24..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// What makes a frame one of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seal {
    salt: u32,
    is_placed: bool,
}

impl Seal {
    /// Of a new file.
    pub(super) const fn new(salt: u32) -> Self {
        Self { salt, is_placed: true }
    }

    /// A checksum over all of a frame but its payload.
    fn begin(self, at: u64, payload_bytes: u32, synced: u64) -> crc32fast::Hasher {
        let mut sum = crc32fast::Hasher::new_with_initial(self.salt);
        sum.update(&payload_bytes.to_le_bytes());
        sum.update(&synced.to_le_bytes());
        if self.is_placed {
            sum.update(&at.to_le_bytes());
        }
        sum
    }

    fn sum(self, at: u64, synced: u64, payload: &[u8]) -> u32 {
        let mut sum = self.begin(at, payload.len() as u32, synced);
        sum.update(payload);
        sum.finalize()
    }
}

/// The seal and header of a file of the first version.
#[cfg(test)]
pub(super) fn unplaced(number: u64, salt: u32, begin_bytes: u32) -> (Seal, [u8; HEADER_BYTES]) {
    let mut bytes = header(number, salt, begin_bytes);
    bytes[..8].copy_from_slice(&UNPLACED_MAGIC);
    let sum = crc32fast::hash(&bytes[..24]);
    bytes[24..].copy_from_slice(&sum.to_le_bytes());
    (Seal { salt, is_placed: false }, bytes)
}

/// What a file's header says.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileHead {
    pub(super) number: u64,
    pub(super) seal: Seal,
    /// Up to here it was on disk before anything else was written.
    pub(super) begin_bytes: u64,
}

/// Whether a file begins as one of a version that is not ours.
pub(super) fn is_of_other_version(bytes: &[u8]) -> bool {
    let digit = bytes.get(FAMILY_MAGIC.len()).copied().unwrap_or_default();
    let is_ours = [FILE_MAGIC, UNPLACED_MAGIC].iter().any(|magic| bytes.starts_with(magic));
    bytes.starts_with(&FAMILY_MAGIC) && digit.is_ascii_alphanumeric() && !is_ours
}

/// Reads a header, when it is sound.
pub(super) fn read_header(bytes: &[u8]) -> Option<FileHead> {
    let mut at = Cursor(bytes.get(..HEADER_BYTES)?);
    let magic = at.take(8)?;
    let (number, salt, begin, sum) = (at.u64()?, at.u32()?, at.u32()?, at.u32()?);
    let is_placed = magic == FILE_MAGIC;
    let head = FileHead { number, seal: Seal { salt, is_placed }, begin_bytes: begin.into() };
    let is_ours = is_placed || magic == UNPLACED_MAGIC;
    (is_ours && sum == crc32fast::hash(&bytes[..24])).then_some(head)
}

/// The fixed part of a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) payload_bytes: usize,
    pub(super) synced: u64,
    sum: u32,
}

impl Head {
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut at = Cursor(bytes.get(..FRAME_BYTES)?);
        let magic = at.take(4)?;
        let (length, synced, sum) = (at.u32()?, at.u64()?, at.u32()?);
        let payload_bytes = usize::try_from(length).ok()?;
        (magic == FRAME_MAGIC).then_some(Self { payload_bytes, synced, sum })
    }

    /// Whether this payload is the one that was written at this place.
    pub(super) fn fits(self, seal: Seal, at: u64, payload: &[u8]) -> bool {
        self.payload_bytes == payload.len() && self.sum == seal.sum(at, self.synced, payload)
    }

    /// As [`Head::fits`], for a payload of the right length whose own plain checksum is known.
    pub(super) fn fits_sum(self, seal: Seal, at: u64, payload_sum: u32) -> bool {
        let mut sum = seal.begin(at, self.payload_bytes as u32, self.synced);
        sum.combine(&crc32fast::Hasher::new_with_initial_len(payload_sum, self.payload_bytes as u64));
        self.sum == sum.finalize()
    }
}

/// Where a frame may begin, from `from` on.
pub(super) fn find_magic(bytes: &[u8], from: usize) -> Option<usize> {
    bytes.get(from..)?.windows(FRAME_MAGIC.len()).position(|w| w == FRAME_MAGIC).map(|at| from + at)
}

/// Appends one frame to a buffer that will be written at `base`; `payload` writes what it says.
pub(super) fn write(
    buffer: &mut Vec<u8>,
    base: u64,
    seal: Seal,
    synced: u64,
    payload: impl FnOnce(&mut Vec<u8>),
) {
    let start = buffer.len();
    buffer.resize(start + FRAME_BYTES, 0);
    payload(buffer);
    let length = (buffer.len() - start - FRAME_BYTES) as u32;
    let sum = seal.sum(base + start as u64, synced, &buffer[start + FRAME_BYTES..]);
    let head = &mut buffer[start..start + FRAME_BYTES];
    head[..4].copy_from_slice(&FRAME_MAGIC);
    head[4..8].copy_from_slice(&length.to_le_bytes());
    head[8..16].copy_from_slice(&synced.to_le_bytes());
    head[16..20].copy_from_slice(&sum.to_le_bytes());
}

/// One subscription that a message still waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) queue: u64,
    /// How many times it was handed out.
    pub(super) attempts: u32,
}

const COUNTERS: u8 = 1;
const TOPIC: u8 = 2;
const REMOVED: u8 = 3;
const MESSAGE: u8 = 4;
const HANDED: u8 = 5;
const SETTLED: u8 = 6;
const STAMP: u8 = 7;
const CLOSED: u8 = 8;
const NEXT: u8 = 9;
const GONE: u8 = 10;

/// What a frame says.
#[derive(Debug)]
pub(super) enum Record<'a> {
    /// No number below these is given out again. The file before this one had so many bytes when this one was made; files
    /// of earlier builds do not say.
    Counters { message: u64, name: u64, before_bytes: Option<u64> },
    /// A topic has these subscriptions, perhaps among others.
    Topic { id: u64, topic: Topic, queues: Vec<(&'a str, u64)> },
    /// A topic is gone with everything in it.
    Removed { id: u64 },
    /// A message waits for these subscriptions. A later one of the same id takes the place of the earlier.
    Message { id: u64, topic: u64, pending: Vec<Pending>, body: &'a [u8] },
    /// A message was handed out for the n-th time.
    Handed { id: u64, queue: u64, attempts: u32 },
    /// A subscription is done with a message.
    Settled { id: u64, queue: u64 },
    /// The log is of this format and belongs to this data folder, which has come so far.
    Stamp { format: u32, generation: u64, folder: &'a str },
    /// It was closed; what follows was written after it was opened again.
    Closed,
    /// The file of this number exists and follows this one.
    Next { number: u64 },
    /// Files up to this number were given back.
    Gone { number: u64 },
}

pub(super) fn put_counters(out: &mut Vec<u8>, message: u64, name: u64, before_bytes: Option<u64>) {
    out.push(COUNTERS);
    out.extend_from_slice(&message.to_le_bytes());
    out.extend_from_slice(&name.to_le_bytes());
    // Earlier builds leave it unread.
    out.extend(before_bytes.map(u64::to_le_bytes).into_iter().flatten());
}

pub(super) fn put_topic<'a>(
    out: &mut Vec<u8>,
    id: u64,
    topic: &Topic,
    queues: impl Iterator<Item = (&'a str, u64)>,
) {
    out.push(TOPIC);
    out.extend_from_slice(&id.to_le_bytes());
    put_text(out, topic.as_str());
    for (name, queue) in queues {
        out.extend_from_slice(&queue.to_le_bytes());
        put_text(out, name);
    }
}

pub(super) fn put_removed(out: &mut Vec<u8>, id: u64) {
    out.push(REMOVED);
    out.extend_from_slice(&id.to_le_bytes());
}

/// A message record up to the stored body, see [`put_stored`].
pub(super) fn put_message(
    out: &mut Vec<u8>,
    id: u64,
    topic: u64,
    pending: impl ExactSizeIterator<Item = Pending>,
) {
    out.push(MESSAGE);
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&topic.to_le_bytes());
    out.extend_from_slice(&(pending.len() as u32).to_le_bytes());
    for one in pending {
        out.extend_from_slice(&one.queue.to_le_bytes());
        out.extend_from_slice(&one.attempts.to_le_bytes());
    }
}

/// Properties and body of a message.
pub(super) fn put_stored(out: &mut Vec<u8>, message: &Message) {
    out.extend_from_slice(&(message.properties().count() as u32).to_le_bytes());
    for (name, value) in message.properties() {
        put_text(out, name);
        put_text(out, value);
    }
    out.extend_from_slice(&message.body);
}

pub(super) fn put_handed(out: &mut Vec<u8>, id: u64, queue: u64, attempts: u32) {
    out.push(HANDED);
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&queue.to_le_bytes());
    out.extend_from_slice(&attempts.to_le_bytes());
}

pub(super) fn put_settled(out: &mut Vec<u8>, id: u64, queue: u64) {
    out.push(SETTLED);
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&queue.to_le_bytes());
}

pub(super) fn put_stamp(out: &mut Vec<u8>, folder: &str, generation: u64) {
    out.push(STAMP);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&generation.to_le_bytes());
    put_text(out, folder);
}

pub(super) fn put_closed(out: &mut Vec<u8>) {
    out.push(CLOSED);
}

pub(super) fn put_next(out: &mut Vec<u8>, number: u64) {
    out.push(NEXT);
    out.extend_from_slice(&number.to_le_bytes());
}

pub(super) fn put_gone(out: &mut Vec<u8>, number: u64) {
    out.push(GONE);
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Reads what a sound frame says; `None` when a newer version wrote it.
pub(super) fn read(payload: &[u8]) -> Option<Record<'_>> {
    let mut at = Cursor(payload);
    let record = match at.take(1)?[0] {
        COUNTERS => Record::Counters { message: at.u64()?, name: at.u64()?, before_bytes: at.u64() },
        TOPIC => {
            let (id, topic) = (at.u64()?, Topic::parse(at.text()?).ok()?);
            let mut queues = Vec::new();
            while !at.0.is_empty() {
                let queue = at.u64()?;
                queues.push((at.text()?, queue));
            }
            Record::Topic { id, topic, queues }
        }
        REMOVED => Record::Removed { id: at.u64()? },
        MESSAGE => {
            let (id, topic, count) = (at.u64()?, at.u64()?, at.u32()?);
            let mut pending = Vec::new();
            for _ in 0..count {
                pending.push(Pending { queue: at.u64()?, attempts: at.u32()? });
            }
            Record::Message { id, topic, pending, body: at.0 }
        }
        HANDED => Record::Handed { id: at.u64()?, queue: at.u64()?, attempts: at.u32()? },
        SETTLED => Record::Settled { id: at.u64()?, queue: at.u64()? },
        STAMP => Record::Stamp { format: at.u32()?, generation: at.u64()?, folder: at.text()? },
        CLOSED => Record::Closed,
        NEXT => Record::Next { number: at.u64()? },
        GONE => Record::Gone { number: at.u64()? },
        _ => return None,
    };
    Some(record)
}

/// Reads what [`put_stored`] wrote.
pub(super) fn read_stored(bytes: &[u8]) -> Option<Message> {
    let mut at = Cursor(bytes);
    let mut message = Message::default();
    for _ in 0..at.u32()? {
        let name = at.text()?;
        message.set(name, at.text()?);
    }
    message.body = bytes::Bytes::copy_from_slice(at.0);
    Some(message)
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        let count = usize::try_from(self.u32()?).ok()?;
        std::str::from_utf8(self.take(count)?).ok()
    }
}
