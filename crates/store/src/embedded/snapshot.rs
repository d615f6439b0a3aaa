//! One moment of the store, to be copied while others go on writing.

use std::sync::Arc;

use bytes::Bytes;
use redb::{ReadTransaction, TableHandle as _};

use super::tables::{Definition, EmbeddedTables, Snapshot as Table, damaged_row, rows};
use crate::blobs::{self, Contents, Pin};
use crate::{Error, KeyRange, Result, Rows};

/// Rows of one page at most.
const PAGE_ROWS: usize = 10_000;

/// The tables as they were at one moment. While it lives, no file of content is removed that they name, and the pages of that
/// moment take room on the disk.
pub struct Snapshot {
    transaction: ReadTransaction,
    _pin: Pin,
    _kept: Arc<()>,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Snapshot")
    }
}

impl Snapshot {
    pub(super) fn take(tables: &EmbeddedTables, pin: Pin) -> Result<Self> {
        let (transaction, kept) = tables.begin_read()?;
        Ok(Self { transaction, _pin: pin, _kept: kept })
    }

    /// The names of all tables.
    ///
    /// # Errors
    /// What reading says.
    pub fn tables(&self) -> Result<Vec<String>> {
        let listed = self.transaction.list_tables().map_err(|error| match error {
            redb::StorageError::Corrupted(reason) => Error::damaged("the list of tables", &reason),
            other => Error::unavailable(format!("reading failed: {other}; check the disk")),
        })?;
        let names = listed.map(|table| table.name().to_owned());
        let mut names: Vec<String> = names.filter(|name| name != super::meta::TABLE).collect();
        names.sort();
        Ok(names)
    }

    /// Some rows of a table in the order of their keys, from the first or from the one after `after`.
    ///
    /// # Errors
    /// [`Error::Damaged`] with the table and the last key that could be read, else what reading says.
    pub fn page(&self, table: &str, after: Option<&[u8]>) -> Result<Rows> {
        let Some(opened) = self.table(table)? else { return Ok(Rows::default()) };
        let range = after.map_or_else(KeyRange::all, |after| KeyRange::all().after(after));
        let mut found = Rows::default();
        rows(&opened, &range, PAGE_ROWS, false, &mut found).map_err(|error| {
            let last = found.rows.last().map_or(&range.from, |(key, _)| key);
            failed(table, last, error)
        })?;
        Ok(found)
    }

    /// The content that the tables name. That which rests in tables is compared with its digests; files are for the caller
    /// to compare.
    ///
    /// # Errors
    /// What reading says.
    pub fn contents(&self) -> Result<Contents> {
        blobs::contents_in(|table, after| self.page(table, after), |table, key| self.value(table, key))
    }

    fn table(&self, name: &str) -> Result<Option<Table>> {
        match self.transaction.open_table(Definition::new(name)) {
            Ok(table) => Ok(Some(table)),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(redb::TableError::Storage(error)) => Err(failed(name, b"", error)),
            Err(error) => Err(Error::unavailable(format!("reading failed: {error}; check the disk"))),
        }
    }

    fn value(&self, table: &str, key: &[u8]) -> Result<Option<Bytes>> {
        let Some(found) = self.table(table)? else { return Ok(None) };
        let value = found.get(key).map_err(|error| failed(table, key, error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(value.value())))
    }
}

/// Why a row could not be read.
fn failed(table: &str, key: &[u8], error: redb::StorageError) -> Error {
    match error {
        redb::StorageError::Corrupted(_) => damaged_row(table, key),
        other => Error::unavailable(format!("reading failed: {other}; check the disk")),
    }
}
