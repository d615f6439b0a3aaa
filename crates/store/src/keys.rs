//! How what belongs to a collection is keyed: a short digest of workspace and collection, then the rest.
//!
//! Digests keep keys small and let one prefix cover a collection whatever its name is. 96 bits tell workspaces apart,
//! 64 bits the collections inside one.

use std::future::Future;

use sha2::{Digest as _, Sha256};

use crate::{Error, Read, Result, Rows, Scope, Tables};

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

/// One read of one range.
pub(crate) async fn rows(tables: &dyn Tables, read: Read) -> Result<Rows> {
    Ok(tables.read(vec![read]).await?.pop().map(crate::Found::into_rows).unwrap_or_default())
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
