//! What stores of content have in common: the row that says where content is, and digests of its parts.
//!
//! Content has a SHA-256 for each of its parts, and what is read is compared with them first: damaged content is an error,
//! never an answer. The digest of the whole is the SHA-256 of those of its parts.

use std::io::{Read as _, Write as _};
use std::ops::Range;

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use sha2::{Digest as _, Sha256};

use crate::{Batch, Error, Found, Read, Result, Tables};

/// A part with a digest of its own, in bytes. To read a byte its part is read.
pub const PART_BYTES: u64 = 256 * 1024;
/// Digests in one row.
const ROW_DIGESTS: usize = 1024;
const DIGEST_BYTES: usize = 32;
/// The version of a place with a digest, in the highest byte of the size; before there was 0.
const WITH_DIGEST: u8 = 2;
/// The version of one whose content is packed.
const PACKED: u8 = 3;
/// The version of one whose content is in more than one row: whether it is packed, and how many, follow the digest.
const IN_PIECES: u8 = 4;

/// The digest of a part, or of all of them.
pub type PartDigest = [u8; DIGEST_BYTES];

/// Where content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its size.
    pub bytes: u64,
    /// `None` for content that an earlier version stored.
    pub digest: Option<PartDigest>,
    /// The name that it is kept under; `None` for content that is kept in a table.
    pub name: Option<String>,
    /// Whether it is kept packed. Size and digests are those of what was packed.
    pub is_packed: bool,
    /// The rows that it is kept in beside the first; 0 for content that is kept elsewhere.
    pub more_rows: u8,
}

impl Place {
    /// The row of it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut row = self.bytes.to_le_bytes().to_vec();
        if let Some(digest) = &self.digest {
            row[7] = match (self.more_rows, self.is_packed) {
                (0, false) => WITH_DIGEST,
                (0, true) => PACKED,
                _ => IN_PIECES,
            };
            row.extend_from_slice(digest);
            if self.more_rows > 0 {
                row.extend([u8::from(self.is_packed), self.more_rows]);
            }
        }
        row.extend_from_slice(self.name.as_deref().unwrap_or_default().as_bytes());
        row
    }

    /// Reads a row.
    ///
    /// # Errors
    /// [`Error::Damaged`] for one that is none, or that a newer version wrote.
    pub fn decode(row: &[u8]) -> Result<Self> {
        let damaged = |reason: &str| Error::damaged("the place of content", &reason);
        let (size, rest) = row.split_first_chunk::<8>().ok_or_else(|| damaged("too short"))?;
        let mut size = *size;
        let version = std::mem::take(&mut size[7]);
        let (mut is_packed, mut more_rows) = (version == PACKED, 0);
        let (digest, name) = match version {
            0 => (None, rest),
            WITH_DIGEST | PACKED => {
                let (digest, name) = rest.split_first_chunk().ok_or_else(|| damaged("too short"))?;
                (Some(*digest), name)
            }
            IN_PIECES => {
                let (digest, rest) = rest.split_first_chunk().ok_or_else(|| damaged("too short"))?;
                let [packed, rows] = rest else { return Err(damaged("its rows cannot be read")) };
                (is_packed, more_rows) = (*packed != 0, *rows);
                (Some(*digest), &[][..])
            }
            other => return Err(damaged(&format!("it has version {other}; run the version that wrote it"))),
        };
        let name = std::str::from_utf8(name).map_err(|e| damaged(&e.to_string()))?;
        let name = (!name.is_empty()).then(|| name.to_owned());
        Ok(Self { bytes: u64::from_le_bytes(size), digest, name, is_packed, more_rows })
    }
}

/// The digests of content that comes piece by piece.
#[derive(Debug, Clone, Default)]
pub struct Digests {
    parts: Vec<PartDigest>,
    of_part: Sha256,
    part_bytes: u64,
}

impl Digests {
    /// Of all content.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        let mut digests = Self::default();
        digests.add(content);
        digests
    }

    /// Takes in the next piece.
    pub fn add(&mut self, mut content: &[u8]) {
        while !content.is_empty() {
            let left = usize::try_from(PART_BYTES - self.part_bytes).unwrap_or(usize::MAX);
            let (here, after) = content.split_at(left.min(content.len()));
            self.of_part.update(here);
            self.part_bytes += here.len() as u64;
            if self.part_bytes == PART_BYTES {
                self.end_part();
            }
            content = after;
        }
    }

    fn end_part(&mut self) {
        self.parts.push(self.of_part.finalize_reset().into());
        self.part_bytes = 0;
    }

    /// One for each part.
    #[must_use]
    pub fn finish(mut self) -> Vec<PartDigest> {
        if self.part_bytes > 0 {
            self.end_part();
        }
        self.parts
    }
}

/// The digest of the whole, from those of its parts.
#[must_use]
pub fn whole(parts: &[PartDigest]) -> PartDigest {
    Sha256::digest(parts.as_flattened()).into()
}

/// The row of digests that a part's is in.
fn digests_key(name: &str, part: u64) -> Vec<u8> {
    let row = u32::try_from(part / ROW_DIGESTS as u64).unwrap_or(u32::MAX);
    [name.as_bytes(), b"/", &row.to_be_bytes()].concat()
}

/// Adds the digests of the parts of content to a batch, under a name that no other content has had.
pub fn put_digests(batch: &mut Batch, table: &'static str, name: &str, parts: &[PartDigest]) {
    for (some, first) in parts.chunks(ROW_DIGESTS).zip((0..).step_by(ROW_DIGESTS)) {
        batch.put(table, digests_key(name, first), some.as_flattened().to_vec());
    }
}

/// Adds to a batch that the digests of content go.
pub fn forget_digests(batch: &mut Batch, table: &'static str, name: &str) {
    batch.delete_prefix(table, [name.as_bytes(), b"/"].concat());
}

/// The digests of the parts that cover a range; `None` if they are not there.
///
/// # Errors
/// What reading says.
pub async fn digests(
    tables: &dyn Tables,
    table: &'static str,
    name: &str,
    range: Range<u64>,
) -> Result<Option<Vec<PartDigest>>> {
    let parts = range.start / PART_BYTES..range.end.div_ceil(PART_BYTES);
    if parts.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let rows = parts.start / ROW_DIGESTS as u64..=(parts.end - 1) / ROW_DIGESTS as u64;
    let first = rows.start() * ROW_DIGESTS as u64;
    let reads = rows.map(|row| Read::get(table, digests_key(name, row * ROW_DIGESTS as u64)));
    let mut digests = Vec::new();
    for row in tables.read(reads.collect()).await?.into_iter().map(Found::into_value) {
        let Some(row) = row else { return Ok(None) };
        digests.extend_from_slice(row.as_chunks().0);
    }
    let wanted = (parts.start - first) as usize..(parts.end - first) as usize;
    Ok(digests.get(wanted).map(<[_]>::to_vec))
}

/// The bytes of the whole parts that cover a range of content of `bytes` bytes.
#[must_use]
pub fn parts_of(range: Range<u64>, bytes: u64) -> Range<u64> {
    range.start / PART_BYTES * PART_BYTES..range.end.next_multiple_of(PART_BYTES).min(bytes)
}

/// Whether whole parts are what their digests say.
#[must_use]
pub fn fits(parts: &[u8], digests: &[PartDigest]) -> bool {
    let parts = parts.chunks(PART_BYTES as usize);
    parts.len() == digests.len() && parts.zip(digests).all(|(part, digest)| *Sha256::digest(part) == *digest)
}

/// Makes text and the like smaller, quickly.
///
/// ```
/// use sluice_store::content::{packed, unpacked};
///
/// let text = b"again and again and again and again".repeat(10);
/// let small = packed(&text);
/// assert!(small.len() < text.len() / 4);
/// assert_eq!(unpacked(&small, 1_000).as_deref(), Some(&text[..]));
/// assert_eq!(unpacked(&small, 100), None);
/// ```
#[must_use]
pub fn packed(content: &[u8]) -> Vec<u8> {
    let mut packer = DeflateEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(content).and_then(|()| packer.finish()).expect("memory takes what is written to it")
}

/// What was packed; `None` if that has more than `bytes_max` bytes, or `packed` is damaged.
#[must_use]
pub fn unpacked(packed: &[u8], bytes_max: u64) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    DeflateDecoder::new(packed).take(bytes_max.saturating_add(1)).read_to_end(&mut content).ok()?;
    (content.len() as u64 <= bytes_max).then_some(content)
}
