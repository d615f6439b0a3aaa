//! Postings of one term, some in a row: entries by number, rising, each with how often it has the term.

use crate::keys::{put_number, take_number};
use crate::{Error, Result};

/// Postings in one row at most.
pub(super) const BLOCK_POSTINGS_MAX: usize = 128;

/// A row of postings. The first row of a term carries the term itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) term: Option<String>,
    /// The number that the row's key tells: no entry in it is smaller. 0 in a term's first row.
    pub(super) from: u64,
    pub(super) postings: Vec<(u64, u32)>,
}

impl Block {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut row = Vec::with_capacity(self.postings.len() * 2 + 16);
        if let Some(term) = &self.term {
            put_number(term.len() as u64, &mut row);
            row.extend_from_slice(term.as_bytes());
        }
        let mut last = self.from;
        for (entry, count) in &self.postings {
            // Most texts have a term once: the last bit says that there are more.
            let is_more = *count > 1;
            put_number((entry - last) << 1 | u64::from(is_more), &mut row);
            if is_more {
                put_number(u64::from(*count), &mut row);
            }
            last = *entry;
        }
        row
    }

    /// `from` is `None` for the first row of a term.
    pub(super) fn decode(from: Option<u64>, row: &[u8]) -> Result<Self> {
        Self::read(from, row).ok_or_else(|| Error::damaged("a row of keywords", &"it is cut short"))
    }

    fn read(from: Option<u64>, mut row: &[u8]) -> Option<Self> {
        let mut block = Self { from: from.unwrap_or_default(), ..Self::default() };
        if from.is_none() {
            let length = usize::try_from(take_number(&mut row)?).ok()?;
            block.term = Some(String::from_utf8(row.split_off(..length)?.to_vec()).ok()?);
        }
        let mut last = block.from;
        while !row.is_empty() {
            let step = take_number(&mut row)?;
            let count = if step & 1 == 1 { u32::try_from(take_number(&mut row)?).ok()? } else { 1 };
            last = last.checked_add(step >> 1)?;
            block.postings.push((last, count));
        }
        Some(block)
    }

    pub(super) fn is_full(&self) -> bool {
        self.postings.len() >= BLOCK_POSTINGS_MAX
    }

    /// Takes an entry out; whether it was there.
    pub(super) fn remove(&mut self, entry: u64) -> bool {
        let found = self.postings.binary_search_by_key(&entry, |(entry, _)| *entry);
        found.map(|at| self.postings.remove(at)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_postings_reads_as_it_was_written_and_takes_two_bytes_or_so_for_each() {
        let postings: Vec<(u64, u32)> = (0..100).map(|n| (70_000 + n * n, 1 + (n % 7 == 0) as u32)).collect();
        for (from, term) in [(None, Some("pump".to_owned())), (Some(69_000), None)] {
            let block = Block { term, from: from.unwrap_or_default(), postings: postings.clone() };
            let row = block.encode();
            assert!(row.len() < 260, "{} bytes", row.len());
            assert_eq!(Block::decode(from, &row).unwrap(), block);
            Block::decode(from, &row[..row.len() - 1]).unwrap_err();
        }
        let odd = [(0, u32::MAX), (1, 1), (u64::MAX >> 1, 3)];
        let block = Block { postings: odd.to_vec(), from: 0, term: None };
        assert_eq!(Block::decode(Some(0), &block.encode()).unwrap(), block);
    }
}
