//! Ordered tables of bytes: several reads see one moment, several writes happen together or not at all.

use std::borrow::Cow;

use bytes::Bytes;

use crate::{BoxFuture, Result};

/// The name of a table. It exists as soon as something is in it.
pub type TableName = Cow<'static, str>;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 8 * 1024;
/// The largest value, in bytes. Larger content belongs into [`crate::Blobs`].
pub const VALUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A range stops after this many bytes of keys and values, saying that there is more.
pub const RANGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The most that one batch writes, in bytes of keys and values.
pub const BATCH_BYTES_MAX: usize = 256 * 1024 * 1024;
/// The most that an essential batch writes, in bytes of keys and values; a larger one waits for room like any other.
pub const ESSENTIAL_BYTES_MAX: usize = 256 * 1024;

/// Ordered key-value tables.
///
/// **Guarantees.** All reads of one [`Tables::read`] see the same moment. A batch is applied whole, or not at all: if one
/// of its expectations does not hold, the error is [`crate::Error::Conflict`] and names the first key that differs.
/// [`Tables::commit`] returns after the batch is durable, and whoever reads after that sees it. Batches take effect one
/// after the other; a batch refused does not disturb others. Keys are ordered bytewise.
///
/// **Assumes.** Futures are driven to their end; a dropped commit may or may not have happened.
pub trait Tables: Send + Sync + 'static {
    /// Answers several reads from one moment; one answer per question, in order.
    fn read(&self, reads: Vec<Read>) -> BoxFuture<'_, Result<Vec<Found>>>;

    /// Applies a batch if all its expectations hold.
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<()>>;
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// The value of a key.
    Get {
        /// The table.
        table: TableName,
        /// The key.
        key: Bytes,
    },
    /// The entries of a range, in key order.
    Range {
        /// The table.
        table: TableName,
        /// Which keys.
        range: KeyRange,
        /// At most this many entries.
        rows_max: usize,
        /// Last key first.
        reverse: bool,
    },
}

impl Read {
    /// Asks for one value.
    pub fn get(table: impl Into<TableName>, key: impl AsRef<[u8]>) -> Self {
        Self::Get { table: table.into(), key: Bytes::copy_from_slice(key.as_ref()) }
    }

    /// Asks for the entries whose key starts with `prefix`; an empty prefix means all.
    pub fn prefix(table: impl Into<TableName>, prefix: impl AsRef<[u8]>, rows_max: usize) -> Self {
        Self::range(table, KeyRange::prefix(prefix), rows_max)
    }

    /// Asks for the entries of a range.
    pub fn range(table: impl Into<TableName>, range: KeyRange, rows_max: usize) -> Self {
        Self::Range { table: table.into(), range, rows_max, reverse: false }
    }

    /// Asks for the entries of a range, last key first.
    pub fn range_reverse(table: impl Into<TableName>, range: KeyRange, rows_max: usize) -> Self {
        Self::Range { table: table.into(), range, rows_max, reverse: true }
    }
}

/// A range of keys: from `from`, inclusive, to `to`, exclusive; `None` is the end of the table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyRange {
    /// The first key that belongs to it.
    pub from: Bytes,
    /// The first key beyond it.
    pub to: Option<Bytes>,
}

impl KeyRange {
    /// Every key.
    #[must_use]
    pub const fn all() -> Self {
        Self { from: Bytes::new(), to: None }
    }

    /// Keys that start with `prefix`.
    pub fn prefix(prefix: impl AsRef<[u8]>) -> Self {
        let prefix = prefix.as_ref();
        let kept = prefix.iter().rposition(|&byte| byte != 0xff).map(|last| &prefix[..=last]);
        let to = kept.map(|kept| {
            let mut next = kept.to_vec();
            if let Some(last) = next.last_mut() {
                *last += 1;
            }
            Bytes::from(next)
        });
        Self { from: Bytes::copy_from_slice(prefix), to }
    }

    /// Keys from `from`, inclusive, to `to`, exclusive.
    pub fn between(from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Self {
        Self { from: Bytes::copy_from_slice(from.as_ref()), to: Some(Bytes::copy_from_slice(to.as_ref())) }
    }

    /// The part of this range that comes after `key`: how a scan goes on.
    #[must_use]
    pub fn after(self, key: impl AsRef<[u8]>) -> Self {
        let mut from = key.as_ref().to_vec();
        from.push(0);
        Self { from: self.from.max(Bytes::from(from)), to: self.to }
    }

    /// Whether no key can belong to it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.to.as_ref().is_some_and(|to| *to <= self.from)
    }
}

/// The answer to one [`Read`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// To a [`Read::Get`].
    Value(Option<Bytes>),
    /// To a [`Read::Range`].
    Rows(Rows),
}

/// Entries of a range.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rows {
    /// Keys and values, in the order asked for.
    pub rows: Vec<(Bytes, Bytes)>,
    /// Whether the range holds entries beyond these.
    pub more: bool,
}

impl Found {
    /// The value found; `None` also for the answer to a range.
    #[must_use]
    pub fn value(&self) -> Option<&Bytes> {
        match self {
            Self::Value(value) => value.as_ref(),
            Self::Rows(_) => None,
        }
    }

    /// The value found, taken out.
    #[must_use]
    pub fn into_value(self) -> Option<Bytes> {
        match self {
            Self::Value(value) => value,
            Self::Rows(_) => None,
        }
    }

    /// The entries found, taken out; none for the answer to a get.
    #[must_use]
    pub fn into_rows(self) -> Rows {
        match self {
            Self::Value(_) => Rows::default(),
            Self::Rows(rows) => rows,
        }
    }
}

/// What a key must be for a batch to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// The key is not there.
    Absent,
    /// The key has exactly this value.
    Value(Bytes),
}

/// One expectation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expect {
    /// The table.
    pub table: TableName,
    /// The key.
    pub key: Bytes,
    /// What it must be.
    pub is: Expected,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets a key.
    Put {
        /// The table.
        table: TableName,
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
    },
    /// Removes a key; one that is not there is fine.
    Delete {
        /// The table.
        table: TableName,
        /// The key.
        key: Bytes,
    },
    /// Removes every key that starts with `prefix`; an empty prefix means all.
    DeletePrefix {
        /// The table.
        table: TableName,
        /// The prefix.
        prefix: Bytes,
    },
}

/// Changes that happen together, if what they expect holds. Later changes of one batch see earlier ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// What must hold before; checked in order.
    pub expects: Vec<Expect>,
    /// What is changed, in order.
    pub ops: Vec<Op>,
    /// Whether it may use the room that is kept for removals when the disk is full: see [`Batch::essential`].
    pub is_essential: bool,
}

impl Batch {
    /// A batch that does nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Expects a key as it was read: absent for `None`.
    pub fn expect(
        &mut self,
        table: impl Into<TableName>,
        key: impl AsRef<[u8]>,
        was: Option<Bytes>,
    ) -> &mut Self {
        let is = was.map_or(Expected::Absent, Expected::Value);
        self.expects.push(Expect { table: table.into(), key: Bytes::copy_from_slice(key.as_ref()), is });
        self
    }

    /// Expects that a key is not there.
    pub fn expect_absent(&mut self, table: impl Into<TableName>, key: impl AsRef<[u8]>) -> &mut Self {
        self.expect(table, key, None)
    }

    /// Expects that a key has exactly this value.
    pub fn expect_value(
        &mut self,
        table: impl Into<TableName>,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
    ) -> &mut Self {
        self.expect(table, key, Some(value.into()))
    }

    /// Sets a key.
    pub fn put(
        &mut self,
        table: impl Into<TableName>,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
    ) -> &mut Self {
        let key = Bytes::copy_from_slice(key.as_ref());
        self.ops.push(Op::Put { table: table.into(), key, value: value.into() });
        self
    }

    /// Removes a key.
    pub fn delete(&mut self, table: impl Into<TableName>, key: impl AsRef<[u8]>) -> &mut Self {
        self.ops.push(Op::Delete { table: table.into(), key: Bytes::copy_from_slice(key.as_ref()) });
        self
    }

    /// Removes every key that starts with `prefix`.
    pub fn delete_prefix(&mut self, table: impl Into<TableName>, prefix: impl AsRef<[u8]>) -> &mut Self {
        let prefix = Bytes::copy_from_slice(prefix.as_ref());
        self.ops.push(Op::DeletePrefix { table: table.into(), prefix });
        self
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Marks a write without which nothing could be removed, such as the wish to stop a flow: on a full disk it may use
    /// the room that is kept for removals, if it is not larger than [`ESSENTIAL_BYTES_MAX`].
    pub fn essential(&mut self) -> &mut Self {
        self.is_essential = true;
        self
    }

    /// Whether it only takes away.
    #[must_use]
    pub fn only_removes(&self) -> bool {
        self.ops.iter().all(|op| !matches!(op, Op::Put { .. }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_covers_exactly_the_keys_that_start_with_it() {
        let covers = |prefix: &[u8], key: &[u8]| {
            let range = KeyRange::prefix(prefix);
            range.from <= key && range.to.is_none_or(|to| key < to)
        };
        let keys: &[&[u8]] =
            &[b"", b"a", b"a\xff", b"a\xff\xff", b"a\xff\x01", b"b", b"\xff", b"\xff\xff\x01"];
        for prefix in keys {
            for key in keys {
                assert_eq!(covers(prefix, key), key.starts_with(prefix), "{prefix:?} {key:?}");
            }
        }
    }
}
