//! One moment of the store, to be copied while others go on writing.

use std::sync::Arc;

use redb::{ReadTransaction, TableHandle as _};

use super::tables::{Definition, EmbeddedTables, rows};
use crate::blobs::{self, Pin};
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
        let failed =
            |e: redb::StorageError| Error::unavailable(format!("reading failed: {e}; check the disk"));
        let names = self.transaction.list_tables().map_err(failed)?.map(|table| table.name().to_owned());
        let mut names: Vec<String> = names.filter(|name| name != super::meta::TABLE).collect();
        names.sort();
        Ok(names)
    }

    /// Some rows of a table in the order of their keys, from the first or from the one after `after`.
    ///
    /// # Errors
    /// What reading says.
    pub fn page(&self, table: &str, after: Option<&[u8]>) -> Result<Rows> {
        let failed = |e: redb::Error| Error::unavailable(format!("reading failed: {e}; check the disk"));
        let table = match self.transaction.open_table(Definition::new(table)) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Rows::default()),
            Err(e) => return Err(failed(e.into())),
        };
        let range = after.map_or_else(KeyRange::all, |after| KeyRange::all().after(after));
        let mut found = Rows::default();
        rows(&table, &range, PAGE_ROWS, false, &mut found).map_err(|e| failed(e.into()))?;
        Ok(found)
    }

    /// The files of content that the tables name, with their sizes; those that are known to be lost are left out.
    ///
    /// # Errors
    /// What reading says.
    pub fn blob_files(&self) -> Result<Vec<(String, u64)>> {
        blobs::files_in(|table, after| self.page(table, after))
    }
}
