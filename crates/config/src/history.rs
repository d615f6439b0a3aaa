//! Beginning another history: for a store that was restored from a copy, before it is served again.

use sluice_store::{Batch, Error, Found, Tables, contract::Read as Look};

use crate::layout::{HEAD, HEAD_KEY, Head, MARK};
use crate::reader::head_of;

/// How far the version leaps: beyond whatever was written after the copy was made.
const LEAP: i64 = 1 << 20;

/// Makes config a history of its own: its version leaps beyond every version that readers may have seen of the history that
/// the store was copied from, and whoever asks what changed since one of those gets everything. Our own readers do not
/// depend on it; readers that compare nothing but versions do. A store without config stays as it is.
///
/// # Errors
/// A failing store; [`Error::Conflict`] when somebody wrote meanwhile.
pub async fn begin_history(tables: &dyn Tables) -> Result<(), Error> {
    let raw = tables.read(vec![Look::get(HEAD, HEAD_KEY)]).await?.pop().and_then(Found::into_value);
    if raw.is_none() {
        return Ok(());
    }
    let old = head_of(raw.as_ref())?;
    let version = old.version + LEAP;
    let head = Head { version, horizon: version, mark: rand::random(), ..old };
    let mut batch = Batch::new();
    batch.expect(HEAD, HEAD_KEY, raw);
    batch.put(HEAD, HEAD_KEY, sluice_schema::wire::encode(&head));
    batch.put(MARK, head.place().key(), head.place().encode());
    tables.commit(batch).await
}
