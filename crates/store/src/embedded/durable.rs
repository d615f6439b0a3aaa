//! Which commit of a file is durable: what is noted of it beside the file's head, and what the engine's header tells.

use super::sealed::{ENGINE_HEADER_BYTES, ENGINE_MAGIC, ID_BYTES};

/// The engine's two records of commits, and where in one its number stands.
const COMMITS_AT: [usize; 2] = [64, 192];
const COMMIT_BYTES: usize = 128;
const COMMIT_NUMBER_AT: usize = 104;
/// Bits behind the engine's magic: the second record is the newest, the file was not closed, and the commit was synced before
/// it became the newest, so that the engine never goes back behind it.
const SECOND: u8 = 1;
const UNCLEAN: u8 = 2;
const IN_TWO_STEPS: u8 = 4;

/// A commit, by its number and a checksum of the engine's record of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Commit {
    pub(super) number: u64,
    sum: u32,
}

impl Commit {
    pub(super) const BYTES: usize = 16;

    /// The newest one that a header tells of.
    pub(super) fn newest(engine: &[u8; ENGINE_HEADER_BYTES]) -> Self {
        let commits = COMMITS_AT.map(|at| {
            let record = &engine[at..at + COMMIT_BYTES];
            let mut number = [0; 8];
            number.copy_from_slice(&record[COMMIT_NUMBER_AT..][..8]);
            Self { number: u64::from_le_bytes(number), sum: crc32fast::hash(record) }
        });
        let primary = usize::from(engine[ENGINE_MAGIC.len()] & SECOND);
        let [first, other] = [commits[primary], commits[1 - primary]];
        if other.number > first.number { other } else { first }
    }

    pub(super) fn encode(self, id: &[u8; ID_BYTES]) -> [u8; Self::BYTES] {
        let mut note = [0; Self::BYTES];
        note[..8].copy_from_slice(&self.number.to_le_bytes());
        note[8..12].copy_from_slice(&self.sum.to_le_bytes());
        let sum = crc32fast::hash(&[&id[..], &note[..12]].concat());
        note[12..].copy_from_slice(&sum.to_le_bytes());
        note
    }

    /// What a note says; nothing if it is none of this file, or is not whole.
    pub(super) fn decode(id: &[u8; ID_BYTES], note: &[u8; Self::BYTES]) -> Option<Self> {
        let (number, rest) = note.split_first_chunk()?;
        let (sum, _) = rest.split_first_chunk()?;
        let commit = Self { number: u64::from_le_bytes(*number), sum: u32::from_le_bytes(*sum) };
        (commit.encode(id) == *note).then_some(commit)
    }
}

/// Whether the engine would go back behind the newest commit if that is not whole, as it does after an unclean end.
pub(super) fn may_go_back(engine: &[u8; ENGINE_HEADER_BYTES]) -> bool {
    engine[ENGINE_MAGIC.len()] & (UNCLEAN | IN_TWO_STEPS) == UNCLEAN
}
