//! Frames: `size, command size, command`, and where a message travels `0x0e01, CRC-32C, metadata size, metadata, body`
//! behind. All numbers are big-endian; the checksum covers what follows it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use super::proto::{Command, Envelope, Metadata};

/// What a frame has beside a message of the largest size.
const OVERHEAD_BYTES_MAX: usize = 64 << 10;
const MAGIC: u16 = 0x0e01;
/// Of the size that stands before a frame.
const SIZE_BYTES: usize = 4;

/// A command, and what travels with it.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) command: Option<Command>,
    pub(super) message: Option<(Metadata, Bytes)>,
}

pub(super) fn encode(command: Command) -> Bytes {
    let envelope = Envelope::from(command);
    let size = envelope.encoded_len();
    let mut out = BytesMut::with_capacity(2 * SIZE_BYTES + size);
    out.put_u32((SIZE_BYTES + size) as u32);
    put(&mut out, &envelope, size);
    out.freeze()
}

pub(super) fn encode_message(command: Command, metadata: &Metadata, body: &[u8]) -> Bytes {
    let envelope = Envelope::from(command);
    let (size, of_metadata) = (envelope.encoded_len(), metadata.encoded_len());
    let checked = SIZE_BYTES + of_metadata + body.len();
    let total = SIZE_BYTES + size + size_of_val(&MAGIC) + SIZE_BYTES + checked;
    let mut out = BytesMut::with_capacity(SIZE_BYTES + total);
    out.put_u32(total as u32);
    put(&mut out, &envelope, size);
    out.put_u16(MAGIC);
    let checksum_at = out.len();
    out.put_u32(0);
    put(&mut out, metadata, of_metadata);
    out.put_slice(body);
    let checksum = crc32c(&out[checksum_at + SIZE_BYTES..]);
    out[checksum_at..checksum_at + SIZE_BYTES].copy_from_slice(&checksum.to_be_bytes());
    out.freeze()
}

fn put(out: &mut BytesMut, message: &impl Message, size: usize) {
    out.put_u32(size as u32);
    message.encode_raw(out);
}

/// Takes the next frame out of what has arrived; `None` while it is not whole.
///
/// # Errors
/// Why nothing of this connection can be understood any more.
pub(super) fn take(arrived: &mut BytesMut, message_bytes_max: usize) -> Result<Option<Frame>, String> {
    let Some(size) = arrived.get(..SIZE_BYTES) else { return Ok(None) };
    let size = size.iter().fold(0_usize, |size, byte| size << 8 | usize::from(*byte));
    let max = message_bytes_max.saturating_add(OVERHEAD_BYTES_MAX);
    if size > max {
        return Err(format!("a frame of {size} bytes came; {max} are the most"));
    }
    if arrived.len() < SIZE_BYTES + size {
        arrived.reserve(SIZE_BYTES + size - arrived.len());
        return Ok(None);
    }
    arrived.advance(SIZE_BYTES);
    let mut frame = arrived.split_to(size).freeze();
    let command = sized(&mut frame, "a command")?;
    let command = Envelope::decode(command).map_err(|error| format!("a command cannot be read: {error}"))?;
    let is_message = matches!(command.command, Some(Command::Message(_)));
    let message = if is_message { Some(read_message(frame)?) } else { None };
    Ok(Some(Frame { command: command.command, message }))
}

fn read_message(mut frame: Bytes) -> Result<(Metadata, Bytes), String> {
    if frame.get(..2).is_some_and(|magic| magic == MAGIC.to_be_bytes()) {
        frame.advance(size_of_val(&MAGIC));
        let expected = frame.try_get_u32().map_err(|_| "a message ends in its checksum".to_owned())?;
        if crc32c(&frame) != expected {
            return Err("a message came damaged: its checksum differs".to_owned());
        }
    }
    let metadata = sized(&mut frame, "metadata")?;
    let metadata = Metadata::decode(metadata).map_err(|error| format!("metadata cannot be read: {error}"))?;
    Ok((metadata, frame))
}

/// The next part, which has its size before it.
fn sized(frame: &mut Bytes, what: &str) -> Result<Bytes, String> {
    let size = frame.try_get_u32().map_err(|_| format!("{what} has no size"))? as usize;
    if size > frame.len() {
        return Err(format!("{what} of {size} bytes is longer than its frame"));
    }
    Ok(frame.split_to(size))
}

/// The reversed polynomial of Castagnoli.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// What eight bytes at a time are looked up in.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut at = 0;
    while at < 256 {
        let (mut value, mut bit) = (at as u32, 0);
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ POLYNOMIAL } else { value >> 1 };
            bit += 1;
        }
        tables[0][at] = value;
        at += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut at = 0;
        while at < 256 {
            let before = tables[table - 1][at];
            tables[table][at] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            at += 1;
        }
        table += 1;
    }
    tables
}

fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    let (eights, rest) = bytes.as_chunks::<8>();
    for eight in eights {
        let mixed = u64::from_le_bytes(*eight) ^ u64::from(crc);
        let look = |(at, byte): (usize, &u8)| TABLES[7 - at][usize::from(*byte)];
        crc = mixed.to_le_bytes().iter().enumerate().map(look).fold(0, |crc, found| crc ^ found);
    }
    for byte in rest {
        crc = crc >> 8 ^ TABLES[0][usize::from(crc as u8 ^ byte)];
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::super::proto::{Deliver, MessageId, Nothing, Property};
    use super::*;

    fn delivered(body: &[u8]) -> Bytes {
        let id = MessageId { ledger: 3, entry: 5 };
        let metadata = Metadata {
            producer_name: "p".to_owned(),
            properties: vec![Property { key: "id".to_owned(), value: "é".to_owned() }],
            ..Metadata::default()
        };
        let command = Command::Message(Deliver { consumer: 1, id, redelivered: Some(2) });
        encode_message(command, &metadata, body)
    }

    #[test]
    fn checksums_are_those_of_the_published_examples() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn a_frame_is_taken_once_it_is_whole_and_only_that() {
        let whole = [delivered(b"body"), encode(Command::Ping(Nothing {}))].concat();
        let mut arrived = BytesMut::new();
        let mut taken = Vec::new();
        for byte in &whole {
            arrived.put_u8(*byte);
            taken.extend(take(&mut arrived, 100).unwrap());
        }
        let [first, second] = &taken[..] else { panic!("{taken:?}") };
        let (metadata, body) = first.message.as_ref().unwrap();
        assert_eq!((metadata.properties[0].value.as_str(), &body[..]), ("é", &b"body"[..]));
        assert_eq!(second.command, Some(Command::Ping(Nothing {})));
        assert!(arrived.is_empty());
    }

    #[test]
    fn what_is_damaged_or_too_large_is_an_error() {
        let mut damaged = BytesMut::from(&delivered(b"body")[..]);
        *damaged.last_mut().unwrap() ^= 1;
        assert!(take(&mut damaged, 100).unwrap_err().contains("checksum"));
        let mut large = BytesMut::from(&[0x7f, 0, 0, 0][..]);
        assert!(take(&mut large, 100).unwrap_err().contains("are the most"));
        let mut short = BytesMut::from(&[0, 0, 0, 4, 0, 0, 0, 9][..]);
        assert!(take(&mut short, 100).unwrap_err().contains("longer than its frame"));
    }

    #[test]
    fn nothing_that_a_broker_could_send_does_harm() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/pulsar");
        let known: [&[u8]; 2] = [&delivered(b"body"), &encode(Command::Ping(Nothing {}))];
        sluice_fuzz::run("pulsar", &corpus, 5_000, &known, &|input| {
            let mut arrived = BytesMut::from(input);
            while let Ok(Some(frame)) = take(&mut arrived, 1 << 20) {
                assert!(frame.message.is_none_or(|(_, body)| body.len() <= input.len()));
            }
        });
    }
}
