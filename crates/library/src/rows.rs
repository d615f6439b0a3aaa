//! Rows of the library in the store's tables: JSON under keys that begin with the workspace.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sluice_store::{Batch, Found, KeyRange, Read, Tables};

use crate::Error;

/// Ids in the library are at most this long, so that a key of three of them fits every store.
pub(crate) const ID_BYTES_MAX: usize = 1024;
/// Rows read at once while scanning.
const PAGE_ROWS: usize = 1_000;

/// A key of parts that hold no zero byte.
pub(crate) fn key(parts: &[&str]) -> Vec<u8> {
    parts.join("\0").into_bytes()
}

/// The prefix of all keys that begin with these parts and go on.
pub(crate) fn prefix(parts: &[&str]) -> Vec<u8> {
    let mut prefix = key(parts);
    prefix.push(0);
    prefix
}

/// The part of a prefix's keys behind that of a cursor; all of them for an empty one.
pub(crate) fn behind(prefix: &[u8], cursor: &str) -> KeyRange {
    let all = KeyRange::prefix(prefix);
    if cursor.is_empty() { all } else { all.after([prefix, cursor.as_bytes()].concat()) }
}

/// The last part of a key, or of what follows its prefix.
pub(crate) fn last_part(key: &[u8]) -> String {
    let start = key.iter().rposition(|byte| *byte == 0).map_or(0, |at| at + 1);
    String::from_utf8_lossy(&key[start..]).into_owned()
}

/// Whether a text may be an id here.
pub(crate) fn is_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= ID_BYTES_MAX && !text.contains(|c: char| c.is_control())
}

/// Checks an id that a caller gave.
pub(crate) fn check_id(what: &str, text: &str) -> Result<(), Error> {
    if text.is_empty() {
        return Err(Error::request(format!("the request names no {what}")));
    }
    if !is_id(text) {
        return Err(Error::request(format!(
            "{what} ids are up to {ID_BYTES_MAX} bytes without control characters; this one has {} bytes: {}",
            text.len(),
            text.chars().take(80).collect::<String>().escape_debug()
        )));
    }
    Ok(())
}

/// Typed access to tables.
#[derive(Clone)]
pub(crate) struct Rows {
    tables: Arc<dyn Tables>,
}

/// A row as it is, and its bytes as they were read: what a later write expects.
pub(crate) struct Row<T> {
    pub(crate) is: T,
    pub(crate) raw: Bytes,
}

impl Rows {
    pub(crate) fn new(tables: Arc<dyn Tables>) -> Self {
        Self { tables }
    }

    pub(crate) async fn read(&self, reads: Vec<Read>) -> Result<Vec<Found>, Error> {
        Ok(self.tables.read(reads).await?)
    }

    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        table: &'static str,
        key: &[u8],
    ) -> Result<Option<Row<T>>, Error> {
        let found = self.tables.read(vec![Read::get(table, key)]).await?.pop().and_then(Found::into_value);
        found.map(|raw| Ok(Row { is: decode(table, key, &raw)?, raw })).transpose()
    }

    /// A page of a range: keys and values, and whether there is more.
    pub(crate) async fn page(
        &self,
        table: &'static str,
        prefix: &[u8],
        rows_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, Error> {
        let found = self.tables.read(vec![Read::prefix(table, prefix, rows_max)]).await?.pop();
        Ok(found.map(|found| found.into_rows().rows).unwrap_or_default())
    }

    /// Every entry under a prefix, page by page, as long as `take` wants more.
    pub(crate) async fn scan(
        &self,
        table: &'static str,
        prefix: &[u8],
        take: impl FnMut(&Bytes, &Bytes) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        self.scan_range(table, KeyRange::prefix(prefix), PAGE_ROWS, take).await
    }

    /// Every entry of a range, so many at once, as long as `take` wants more.
    pub(crate) async fn scan_range(
        &self,
        table: &'static str,
        mut range: KeyRange,
        rows_max: usize,
        mut take: impl FnMut(&Bytes, &Bytes) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        loop {
            let found = self.tables.read(vec![Read::range(table, range.clone(), rows_max)]).await?.pop();
            let page = found.map(Found::into_rows).unwrap_or_default();
            for (key, value) in &page.rows {
                if !take(key, value)? {
                    return Ok(());
                }
            }
            match page.rows.last() {
                Some((last, _)) if page.more => range = range.after(last),
                _ => return Ok(()),
            }
        }
    }

    pub(crate) async fn commit(&self, batch: Batch) -> Result<(), Error> {
        Ok(self.tables.commit(batch).await?)
    }
}

pub(crate) fn encode<T: Serialize>(row: &T) -> Bytes {
    // Rows have text keys and plain values, so writing them cannot fail.
    serde_json::to_vec(row).map(Bytes::from).unwrap_or_default()
}

pub(crate) fn decode<T: DeserializeOwned>(table: &str, key: &[u8], raw: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(raw).map_err(|error| Error::Damaged {
        what: format!("'{}' in {table}", String::from_utf8_lossy(key).escape_debug()),
        reason: error.to_string(),
    })
}

/// Whether a write lost against another writer and should be thought through again.
pub(crate) fn is_conflict(error: &Error) -> bool {
    matches!(error, Error::Store(inner) if inner.is_conflict())
}
