//! How what belongs to a collection is keyed: a short digest of workspace and collection, then the rest.
//!
//! Digests keep keys small and let one prefix cover a collection whatever its name is. 96 bits tell workspaces apart,
//! 64 bits the collections inside one.

use std::collections::BTreeSet;
use std::future::Future;

use sha2::{Digest as _, Sha256};

use crate::{Error, KeyRange, Read, Result, Rows, Scope, Tables};

/// The longest id of an entry, in bytes.
pub(crate) const ID_BYTES_MAX: usize = 1024;

const WORKSPACE_BYTES: usize = 12;
const COLLECTION_BYTES: usize = 8;

/// The prefix of everything in one collection.
pub(crate) type ScopeKey = [u8; WORKSPACE_BYTES + COLLECTION_BYTES];

pub(crate) fn scope_key(scope: Scope<'_>) -> ScopeKey {
    let mut key = ScopeKey::default();
    key[..WORKSPACE_BYTES].copy_from_slice(&Sha256::digest(scope.workspace)[..WORKSPACE_BYTES]);
    key[WORKSPACE_BYTES..].copy_from_slice(&Sha256::digest(scope.collection)[..COLLECTION_BYTES]);
    key
}

/// A key: parts one after the other.
pub(crate) fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// An id as it stands after `prefix_bytes` bytes of a key.
pub(crate) fn id_in(key: &[u8], prefix_bytes: usize) -> Result<&str> {
    let id = key.get(prefix_bytes..).unwrap_or_default();
    std::str::from_utf8(id).map_err(|e| Error::damaged("an id", &e))
}

pub(crate) fn check_id(id: &str) -> Result<()> {
    if id.is_empty() {
        return Err(Error::Refused { reason: "an id must not be empty".to_owned() });
    }
    if id.len() > ID_BYTES_MAX {
        return Err(Error::TooLarge { what: "an id", bytes: id.len() as u64, max: ID_BYTES_MAX as u64 });
    }
    Ok(())
}

/// Appends a number so that the order of the bytes is that of the numbers, and no number begins another.
pub(crate) fn put_number(number: u64, to: &mut Vec<u8>) {
    match number {
        0..=240 => to.push(number as u8),
        241..=2287 => {
            let rest = number - 241;
            to.extend([241 + (rest >> 8) as u8, rest as u8]);
        }
        2288..=67_823 => {
            to.push(249);
            to.extend_from_slice(&((number - 2288) as u16).to_be_bytes());
        }
        _ => {
            let bytes = number.to_be_bytes();
            let skipped = (number.leading_zeros() / 8).min(5) as usize;
            to.push(255 - skipped as u8);
            to.extend_from_slice(&bytes[skipped..]);
        }
    }
}

pub(crate) fn take_number(from: &mut &[u8]) -> Option<u64> {
    let first = u64::from(*from.split_off_first()?);
    match first {
        0..=240 => Some(first),
        241..=248 => Some(241 + ((first - 241) << 8) + u64::from(*from.split_off_first()?)),
        249 => {
            let rest = from.split_off(..2)?;
            Some(2288 + u64::from(u16::from_be_bytes(rest.try_into().ok()?)))
        }
        _ => {
            let skipped = (255 - first) as usize;
            let mut bytes = [0; 8];
            bytes[skipped..].copy_from_slice(from.split_off(..8 - skipped)?);
            Some(u64::from_be_bytes(bytes))
        }
    }
}

pub(crate) fn numbered(scope: u64, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(rest.len() + 4);
    put_number(scope, &mut key);
    key.extend_from_slice(rest);
    key
}

/// The collections that have rows in a table whose keys begin with their numbers.
pub(crate) async fn numbers_in(tables: &dyn Tables, table: &'static str) -> Result<BTreeSet<u64>> {
    let mut numbers = BTreeSet::new();
    let mut range = KeyRange::all();
    while let Some((key, _)) = rows(tables, Read::range(table, range.clone(), 1)).await?.rows.first() {
        let number = take_number(&mut &key[..]).ok_or_else(|| Error::damaged("a key", &"it is cut short"))?;
        numbers.insert(number);
        let Some(behind) = KeyRange::prefix(numbered(number, &[])).to else { break };
        range.from = behind;
    }
    Ok(numbers)
}

/// One read of one range.
pub(crate) async fn rows(tables: &dyn Tables, read: Read) -> Result<Rows> {
    Ok(tables.read(vec![read]).await?.pop().map(crate::Found::into_rows).unwrap_or_default())
}

/// How many rows are removed in the next step after one that failed: fewer if a full disk had no room for all the pages
/// that they are in.
pub(crate) fn fewer(rows_max: usize, error: Error) -> Result<usize> {
    match error {
        Error::Disk { .. } if rows_max > 1 => Ok((rows_max / 8).max(1)),
        error => Err(error),
    }
}

/// Runs what may block or takes long off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::unavailable(format!("an operation was cut off: {e}")))?
}

/// Runs a write to its end, also if its caller leaves, so that what follows the commit is never left out.
pub(crate) async fn to_the_end<T: Send + 'static>(
    write: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    #[expect(clippy::disallowed_methods, reason = "its parent waits for it, and it ends with its one write")]
    let running = tokio::spawn(write);
    running.await.map_err(|e| Error::OutcomeUnknown { what: "a write", reason: e.to_string() })?
}
