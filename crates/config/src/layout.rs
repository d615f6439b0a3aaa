//! How config rests in the store: nine tables, keys in byte order, and what rests in them. Pure.
//!
//! | table | key | value |
//! |---|---|---|
//! | `config.head` | `head` | counters, see [`Head`] |
//! | `config.value` | type, workspace, key | [`Row`]: versions and the value, or the mark that it was deleted |
//! | `config.place` | workspace, type, key | nothing: finds what a workspace holds |
//! | `config.live` | `at`, type, workspace, key | nothing: finds what was written after a version |
//! | `config.dead` | `at`, type, workspace, key | nothing: finds what was deleted after a version, and the oldest such mark |
//! | `config.outbox` | version | the notice that belongs to it |
//! | `config.asked` | number of the write, modulo [`ASKED_MAX`] | [`Answered`]: which request it was, and what it came to |
//! | `config.mark` | number of the last write of a commit, modulo [`MARKS_MAX`] | [`Mark`]: the number and the commit's mark |
//! | `config.size` | workspace, type; type empty for the whole workspace | [`Size`]: how much it holds |
//!
//! Names are separated by NUL, which no name holds; numbers are big-endian, so that byte order is number order.
//!
//! **Invariant: every commit of a write insists on the head it read.** Writers of several instances are thereby in one
//! line, and everything else a commit relies on was read after that head.
//!
//! # Which history it is
//! A version alone does not say what was written: a store that was restored from an older copy, or a folder that was
//! copied back, gives the same numbers to other writes. So every commit leaves a random mark beside its number, and
//! a reader that asks what came after a number shows the mark that it was given with it. A mark that is not on record
//! belongs to another history, or to one longer ago than [`MARKS_MAX`] commits: that reader gets everything. Nothing has to
//! notice that the head went back.

use serde::{Deserialize, Serialize};
use sluice_schema::message::ScopedKey;
use sluice_schema::{ceilings, record};

pub(crate) const HEAD: &str = "config.head";
pub(crate) const VALUE: &str = "config.value";
pub(crate) const PLACE: &str = "config.place";
pub(crate) const LIVE: &str = "config.live";
pub(crate) const DEAD: &str = "config.dead";
pub(crate) const OUTBOX: &str = "config.outbox";
pub(crate) const ASKED: &str = "config.asked";
pub(crate) const MARK: &str = "config.mark";
pub(crate) const SIZE: &str = "config.size";

/// The key of the size table that says that everything was counted; no workspace's key is like it.
pub(crate) const COUNTED_KEY: &[u8] = b"counted";

/// Requests whose writes are remembered, so that one that is handed out again is not carried out again.
pub(crate) const ASKED_MAX: usize = 4_096;

/// Commits whose marks are kept: a reader that is further behind gets everything.
pub(crate) const MARKS_MAX: i64 = 4_096;

/// The one key of the head table.
pub(crate) const HEAD_KEY: &[u8] = b"head";

/// Where the versions of quiet writes begin. They come from a counter of their own, so that a value's version never
/// repeats and never looks like a public one.
pub(crate) const QUIET_BASE: i64 = 1 << 40;

/// The counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// The public version.
    pub(crate) version: i64,
    /// Quiet writes so far.
    pub(crate) quiet: i64,
    /// Deletions up to here may have been forgotten: a reader that is not past it gets everything.
    pub(crate) horizon: i64,
    /// Marks of deletion kept.
    pub(crate) tombstones: u64,
    /// What the last commit left beside its number.
    #[serde(default)]
    pub(crate) mark: u64,
}

impl Head {
    /// The number of the last write, quiet ones counted.
    pub(crate) const fn number(&self) -> i64 {
        self.version + self.quiet
    }

    /// Where this head stands in its history.
    pub(crate) const fn place(&self) -> Mark {
        Mark { number: self.number(), mark: self.mark }
    }
}

/// A moment of one history: the number of the last write and the mark of its commit. Readers are given it as a string
/// and send it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) number: i64,
    pub(crate) mark: u64,
}

impl Mark {
    /// Reads what [`Mark::text`] wrote; `None` for anything else.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let (number, mark) = text.split_once('-')?;
        let mark = u64::from_str_radix(mark, 16).ok()?;
        Some(Self { number: i64::from_str_radix(number, 16).ok()?, mark })
    }

    /// Always of the same length, so that answers of the same content are too.
    pub(crate) fn text(self) -> String {
        format!("{:012x}-{:016x}", self.number, self.mark)
    }

    /// Where it rests, until one some thousands later takes its place.
    pub(crate) fn key(self) -> [u8; 8] {
        self.number.rem_euclid(MARKS_MAX).to_be_bytes()
    }

    pub(crate) fn encode(self) -> Vec<u8> {
        [self.number.to_be_bytes(), self.mark.to_be_bytes()].concat()
    }
}

/// What a request's write came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answered {
    pub(crate) id: String,
    pub(crate) version: i64,
    pub(crate) notice: Option<i64>,
}

/// Where the write of this number is remembered, until one some thousands later takes its place.
pub(crate) fn asked_key(number: i64) -> [u8; 8] {
    number.rem_euclid(ASKED_MAX as i64).to_be_bytes()
}

/// How much something holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) keys: u64,
    /// As they travel, with what is around them.
    pub(crate) bytes: u64,
}

impl Size {
    pub(crate) fn encode(self) -> Vec<u8> {
        [self.keys.to_be_bytes(), self.bytes.to_be_bytes()].concat()
    }

    pub(crate) fn decode(raw: &[u8]) -> Option<Self> {
        let (keys, rest) = raw.split_first_chunk::<8>()?;
        let bytes = rest.first_chunk::<8>()?;
        Some(Self { keys: u64::from_be_bytes(*keys), bytes: u64::from_be_bytes(*bytes) })
    }

    /// After one value was another size, `None` for absent.
    pub(crate) fn after(self, before: Option<u64>, now: Option<u64>) -> Self {
        Self {
            keys: (self.keys + u64::from(now.is_some())).saturating_sub(u64::from(before.is_some())),
            bytes: (self.bytes + now.unwrap_or(0)).saturating_sub(before.unwrap_or(0)),
        }
    }
}

/// What a value takes.
pub(crate) fn bytes_of(at: &ScopedKey, value: &str) -> u64 {
    (ceilings::ROW_BYTES
        + [&at.r#type, &at.key, value].iter().map(|text| ceilings::json_bytes(text)).sum::<usize>())
        as u64
}

/// The workspace that a value counts for: what the flow service keeps of a workspace's flows counts for that workspace.
pub(crate) fn counted_for(at: &ScopedKey) -> &str {
    if at.workspace == record::FLOWS { at.key.split('/').next().unwrap_or_default() } else { &at.workspace }
}

/// Keys of the size table that a value counts for: its type in its workspace, and the workspace.
pub(crate) fn size_keys(at: &ScopedKey) -> [Vec<u8>; 2] {
    let workspace = counted_for(at);
    [size_key(workspace, &at.r#type), size_key(workspace, "")]
}

/// The key of the size table for a type in a workspace; for all of the workspace with no type.
pub(crate) fn size_key(workspace: &str, config_type: &str) -> Vec<u8> {
    joined(&[workspace, config_type])
}

/// What is known of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// What compare-and-set compares.
    pub(crate) version: i64,
    /// The public version with which a reader first sees it: a reader who has seen less than this needs it.
    pub(crate) at: i64,
    /// The value; `None` marks a deletion.
    pub(crate) value: Option<String>,
}

impl Row {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let text = self.value.as_deref().unwrap_or_default();
        let mut bytes = Vec::with_capacity(17 + text.len());
        bytes.extend_from_slice(&self.version.to_be_bytes());
        bytes.extend_from_slice(&self.at.to_be_bytes());
        bytes.push(u8::from(self.value.is_some()));
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first_chunk::<8>()?;
        let (at, rest) = rest.split_first_chunk::<8>()?;
        let (alive, text) = rest.split_first()?;
        let value = match alive {
            0 => None,
            _ => Some(std::str::from_utf8(text).ok()?.to_owned()),
        };
        Some(Self { version: i64::from_be_bytes(*version), at: i64::from_be_bytes(*at), value })
    }

    /// What is put in the place of a row that is none, so that it can be counted out and replaced.
    pub(crate) fn broken(bytes: &[u8]) -> Self {
        let text = bytes.get(17..).unwrap_or_default();
        Self { version: 0, at: 0, value: Some(String::from_utf8_lossy(text).into_owned()) }
    }

    /// The table that finds it by version.
    pub(crate) fn history(&self) -> &'static str {
        if self.value.is_some() { LIVE } else { DEAD }
    }
}

/// Key of the value table.
pub(crate) fn value_key(at: &ScopedKey) -> Vec<u8> {
    joined(&[&at.r#type, &at.workspace, &at.key])
}

/// The place that a key of the value table names.
pub(crate) fn place_of(value_key: &[u8]) -> Option<ScopedKey> {
    let [config_type, workspace, key] = names(value_key)?;
    Some(ScopedKey { workspace, r#type: config_type, key })
}

/// Key of the place table.
pub(crate) fn place_key(at: &ScopedKey) -> Vec<u8> {
    joined(&[&at.workspace, &at.r#type, &at.key])
}

/// The type that a key of the place table names.
pub(crate) fn type_in(place_key: &[u8]) -> Option<String> {
    let [_, config_type, _] = names(place_key)?;
    Some(config_type)
}

/// What keys start with that begin with these names.
pub(crate) fn prefix(names: &[&str]) -> Vec<u8> {
    let mut bytes = joined(names);
    bytes.push(0);
    bytes
}

/// Key of the two history tables.
pub(crate) fn history_key(at: i64, value_key: &[u8]) -> Vec<u8> {
    [&at.to_be_bytes()[..], value_key].concat()
}

/// The version and the key of the value table in a key of a history table.
pub(crate) fn history_of(key: &[u8]) -> Option<(i64, &[u8])> {
    let (at, value_key) = key.split_first_chunk::<8>()?;
    Some((i64::from_be_bytes(*at), value_key))
}

/// Key of the outbox.
pub(crate) fn outbox_key(version: i64) -> Vec<u8> {
    version.to_be_bytes().to_vec()
}

fn joined(names: &[&str]) -> Vec<u8> {
    names.join("\0").into_bytes()
}

pub(crate) fn names(key: &[u8]) -> Option<[String; 3]> {
    let mut parts = std::str::from_utf8(key).ok()?.splitn(3, '\0').map(str::to_owned);
    Some([parts.next()?, parts.next()?, parts.next()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_rows_come_back() {
        let place = ScopedKey { workspace: "acme".into(), r#type: "tool".into(), key: "a:b".into() };
        assert_eq!(place_of(&value_key(&place)).as_ref(), Some(&place));
        assert_eq!(type_in(&place_key(&place)).as_deref(), Some("tool"));
        assert!(value_key(&place).starts_with(&prefix(&["tool", "acme"])));
        assert_eq!(history_of(&history_key(7, b"x")), Some((7, &b"x"[..])));
        for value in [None, Some(String::new()), Some("é".to_owned())] {
            let row = Row { version: QUIET_BASE + 1, at: 9, value };
            assert_eq!(Row::decode(&row.encode()), Some(row));
        }
        assert_eq!(Row::decode(b"short"), None);
        let mark = Mark { number: 77, mark: u64::MAX };
        assert_eq!(Mark::read(&mark.text()), Some(mark));
        assert_eq!(Mark::read("77"), None);
        assert_eq!(mark.key(), Mark { number: 77 + MARKS_MAX, mark: 1 }.key());
    }
}
