//! Pages of the engine's trees, read without the engine: it gives up a whole tree where one page of it is damaged.
//!
//! What is read here has matched its checksum, and is believed no more for it: a page may be of another commit than the one
//! that leads to it. One whose parts do not fit each other is damaged.

use std::ops::Range;

use super::super::sealed::{BLOCK_BYTES, ENGINE_HEADER_BYTES};

const LEAF: u8 = 1;
const BRANCH: u8 = 2;
/// Where the counts and sizes stand in the engine's header.
const PAGE_BYTES_AT: usize = 12;
const REGION_HEADER_PAGES_AT: usize = 16;
const REGION_PAGES_AT: usize = 20;
/// The engine's two records of commits, and what stands in one.
const COMMITS_AT: [usize; 2] = [64, 192];
const VERSION: u8 = 3;
const HAS_ROOT_AT: usize = 1;
const ROOT_AT: usize = 8;
const NUMBER_AT: usize = 104;
/// Pages larger than the largest value do not exist: blocks of the largest one, as a power of two.
const ORDER_MAX: u32 = 15;
/// What stands in the row of a table before its root.
const HAS_TABLE_ROOT_AT: usize = 9;
const TABLE_ROOT_AT: usize = 10;
/// The row of a plain table begins with this.
const PLAIN_TABLE: u8 = 3;
const CHILD_BYTES: usize = 24;
const CHECKSUM_BYTES: usize = 16;

/// Where the engine's pages are in its file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    region_header_bytes: u64,
    region_bytes: u64,
}

/// A commit that the engine's header names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CommitRoot {
    pub(super) number: u64,
    /// The page that the tree of all tables begins with; `None` for a commit without tables.
    pub(super) root: Option<u64>,
}

fn number<const BYTES: usize>(bytes: &[u8], at: usize) -> Option<[u8; BYTES]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    number(bytes, at).map(|number| usize::from(u16::from_le_bytes(number)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    number(bytes, at).and_then(|number| usize::try_from(u32::from_le_bytes(number)).ok())
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    number(bytes, at).map(u64::from_le_bytes)
}

impl Geometry {
    /// `None` for a header that this does not know.
    pub(super) fn of(engine: &[u8; ENGINE_HEADER_BYTES]) -> Option<Self> {
        let pages = |at| u32_at(engine, at).map(|pages| pages as u64);
        if pages(PAGE_BYTES_AT)? != BLOCK_BYTES {
            return None;
        }
        let (header, data) = (pages(REGION_HEADER_PAGES_AT)?, pages(REGION_PAGES_AT)?);
        Some(Self { region_header_bytes: header * BLOCK_BYTES, region_bytes: (header + data) * BLOCK_BYTES })
    }

    /// Where a page is, in bytes of the engine's file; `None` for a number that no page has.
    pub(super) fn place(self, page: u64) -> Option<Range<u64>> {
        let order = u32::try_from(page >> 59).ok().filter(|order| *order <= ORDER_MAX)?;
        let (index, region) = (page & (0xf_ffff >> order), page >> 20 & 0xf_ffff);
        let bytes = BLOCK_BYTES << order;
        let start =
            BLOCK_BYTES + region.checked_mul(self.region_bytes)? + self.region_header_bytes + index * bytes;
        Some(start..start + bytes)
    }
}

/// The commits that a header names, newest first.
pub(super) fn commits(engine: &[u8; ENGINE_HEADER_BYTES]) -> Vec<CommitRoot> {
    let commit = |at: usize| {
        let has_root = (engine[at] == VERSION).then(|| engine[at + HAS_ROOT_AT] != 0)?;
        let root = u64_at(engine, at + ROOT_AT).filter(|_| has_root);
        Some(CommitRoot { number: u64_at(engine, at + NUMBER_AT)?, root })
    };
    let mut commits: Vec<CommitRoot> = COMMITS_AT.into_iter().filter_map(commit).collect();
    commits.sort_by_key(|commit| std::cmp::Reverse(commit.number));
    commits
}

/// The root of a table, from its row in the tree of tables: `Some(None)` for one without rows, `None` for no such row.
pub(super) fn table_root(row: &[u8]) -> Option<Option<u64>> {
    let (kind, has_root) = (*row.first()?, *row.get(HAS_TABLE_ROOT_AT)? != 0);
    let root = u64_at(row, TABLE_ROOT_AT)?;
    (kind == PLAIN_TABLE).then_some(has_root.then_some(root))
}

/// A page of a tree.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Page<'a> {
    /// Keys with their values, keys rising.
    Leaf(Vec<(&'a [u8], &'a [u8])>),
    /// Pages, and between them the last keys that may be in the one before, rising.
    Branch { children: Vec<u64>, last_keys: Vec<&'a [u8]> },
}

/// Reads a page; `None` for one whose parts do not fit each other.
pub(super) fn read(page: &[u8]) -> Option<Page<'_>> {
    let count = u16_at(page, 2).filter(|count| *count > 0)?;
    match *page.first()? {
        LEAF => {
            let keys_at = 4 + 8 * count;
            let keys = parts(page, 4, count, keys_at)?;
            let values_at = u32_at(page, 4 * count)?;
            let values = parts(page, 4 + 4 * count, count, values_at)?;
            is_rising(&keys).then(|| Page::Leaf(keys.into_iter().zip(values).collect()))
        }
        BRANCH => {
            let pages_at = 8 + CHECKSUM_BYTES * (count + 1);
            let ends_at = 8 + CHILD_BYTES * (count + 1);
            let children = (0..=count).map(|n| u64_at(page, pages_at + 8 * n)).collect::<Option<_>>()?;
            let last_keys = parts(page, ends_at, count, ends_at + 4 * count)?;
            is_rising(&last_keys).then_some(Page::Branch { children, last_keys })
        }
        _ => None,
    }
}

/// Parts that follow each other from a place on; where each ends stands at `ends_at`.
fn parts(page: &[u8], ends_at: usize, count: usize, from: usize) -> Option<Vec<&[u8]>> {
    let mut begin = from;
    let mut part = |n: usize| {
        let end = u32_at(page, ends_at + 4 * n)?;
        page.get(std::mem::replace(&mut begin, end)..end)
    };
    (0..count).map(&mut part).collect()
}

fn is_rising(keys: &[&[u8]]) -> bool {
    keys.is_sorted_by(|a, b| a < b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_page_holds_it_is_read_or_is_none() {
        let mut leaf = vec![LEAF, 0, 2, 0];
        for end in [22_u32, 24, 25, 25] {
            leaf.extend(end.to_le_bytes());
        }
        leaf.extend(b"abcdx");
        let Some(Page::Leaf(rows)) = read(&leaf) else { panic!("it can be read") };
        assert_eq!(rows, [(&b"ab"[..], &b"x"[..]), (b"cd", b"")]);
        for at in 0..leaf.len() {
            for bit in 0..8 {
                let mut other = leaf.clone();
                other[at] ^= 1 << bit;
                let _ = read(&other);
                let _ = read(&other[..at]);
            }
        }
        leaf[20] = b'd';
        assert_eq!(read(&leaf), None, "its keys do not rise");
        assert_eq!(read(&[BRANCH, 0, 0xff, 0xff, 0, 0]), None);
        assert_eq!(read(&[]), None);
    }
}
