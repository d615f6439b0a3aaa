//! Making whole again what follows from config values, after rows were lost with a damaged disk.

use std::collections::BTreeSet;

use bytes::Bytes;
use sluice_store::{Batch, Error, Found, KeyRange, Rows, Tables, contract::Read as Look};

use crate::layout::{self, DEAD, HEAD, HEAD_KEY, Head, LIVE, PLACE, QUIET_BASE, SIZE, VALUE};
use crate::reader::{head_of, place_at, row_of};
use crate::sizes;

/// Rows read and written in one go.
const ROWS_MAX: usize = 256;

/// Writes anew what values are found and counted by, and brings the counters up to the values; answers which values are
/// lost, as far as something tells of them. For tables that no service works on; may be repeated.
///
/// # Errors
/// What reading or writing says.
pub async fn rebuild(tables: &dyn Tables) -> Result<Vec<String>, Error> {
    let lost = lost(tables).await?;
    let raw = tables.read(vec![Look::get(HEAD, HEAD_KEY)]).await?.pop().and_then(Found::into_value);
    let mut head = Head { tombstones: 0, ..head_of(raw.as_ref())? };
    let mut batch = Batch::new();
    for table in [PLACE, LIVE, DEAD, SIZE] {
        batch.delete_prefix(table, b"");
    }
    tables.commit(batch).await?;
    let mut after = None;
    loop {
        let page = page(tables, VALUE, after).await?;
        let mut batch = Batch::new();
        for (key, raw) in &page.rows {
            let (at, row) = (place_at(key)?, row_of(key, raw)?);
            if row.value.is_some() {
                batch.put(PLACE, layout::place_key(&at), Vec::new());
            } else {
                head.tombstones += 1;
            }
            batch.put(row.history(), layout::history_key(row.at, key), Vec::new());
            head.version = head.version.max(row.at);
            match row.version - QUIET_BASE {
                quiet if quiet > 0 => head.quiet = head.quiet.max(quiet),
                _ => head.version = head.version.max(row.version),
            }
        }
        tables.commit(batch).await?;
        after = page.rows.last().map(|(key, _)| key.clone()).filter(|_| page.more);
        if after.is_none() {
            break;
        }
    }
    // Which deletions are forgotten nobody knows: readers get everything.
    head.horizon = head.version;
    let mut batch = Batch::new();
    batch.put(HEAD, HEAD_KEY, sluice_schema::wire::encode(&head));
    tables.commit(batch).await?;
    sizes::count(tables).await?;
    Ok(lost)
}

/// Values that are named somewhere and not there.
async fn lost(tables: &dyn Tables) -> Result<Vec<String>, Error> {
    let mut named: BTreeSet<Vec<u8>> = BTreeSet::new();
    for table in [PLACE, LIVE] {
        let mut after = None;
        loop {
            let page = page(tables, table, after).await?;
            let keys: Vec<Vec<u8>> = page.rows.iter().filter_map(|(key, _)| value_key(table, key)).collect();
            let looks = keys.iter().map(|key| Look::get(VALUE, key)).collect();
            let found = tables.read(looks).await?;
            let missing = keys.into_iter().zip(found).filter(|(_, found)| found.value().is_none());
            named.extend(missing.map(|(key, _)| key));
            after = page.rows.last().map(|(key, _)| key.clone()).filter(|_| page.more);
            if after.is_none() {
                break;
            }
        }
    }
    named.iter().map(|key| Ok(crate::request::place(&place_at(key)?))).collect()
}

fn value_key(table: &str, key: &[u8]) -> Option<Vec<u8>> {
    if table == LIVE {
        return layout::history_of(key).map(|(_, key)| key.to_vec());
    }
    let [workspace, config_type, key] = layout::names(key)?;
    Some([config_type, workspace, key].join("\0").into_bytes())
}

async fn page(tables: &dyn Tables, table: &'static str, after: Option<Bytes>) -> Result<Rows, Error> {
    let range = after.map_or_else(KeyRange::all, |after| KeyRange::all().after(after));
    let found = tables.read(vec![Look::range(table, range, ROWS_MAX)]).await?.pop();
    Ok(found.map(Found::into_rows).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use sluice_schema::message::ScopedKey;
    use sluice_store::Embedded;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::layout::{MARK, OUTBOX};
    use crate::request::{Put, Write};
    use crate::writer::{Sent, Writer};

    async fn write(tables: &Arc<dyn Tables>, write: Write) {
        let (writer, committing) =
            Writer::new(tables.clone(), Arc::new(Sent::default()), CancellationToken::new());
        tokio::select! {
            done = writer.write(write) => drop(done.unwrap()),
            () = committing => panic!("it goes on"),
        }
    }

    fn at(workspace: &str, key: usize) -> ScopedKey {
        ScopedKey { workspace: workspace.into(), r#type: "tool".into(), key: format!("k{key}") }
    }

    async fn all(tables: &dyn Tables) -> BTreeMap<(&'static str, Bytes), Bytes> {
        let mut all = BTreeMap::new();
        for table in [VALUE, PLACE, LIVE, DEAD, SIZE] {
            let rows = page(tables, table, None).await.unwrap().rows;
            all.extend(rows.into_iter().map(|(key, row)| ((table, key), row)));
        }
        all
    }

    #[tokio::test]
    async fn config_that_lost_rows_is_made_whole_and_what_is_lost_of_it_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(folder.path()).unwrap();
        let tables = store.tables();
        for key in 0..20 {
            for workspace in ["acme", "beta"] {
                let put = Put { at: at(workspace, key), value: format!("value {key}") };
                write(&tables, Write { puts: vec![put], ..Write::default() }).await;
            }
        }
        write(&tables, Write { deletes: vec![at("acme", 3)], ..Write::default() }).await;
        sizes::count(&*tables).await.unwrap();
        let whole = all(&*tables).await;
        let head = async || {
            let raw = tables.read(vec![Look::get(HEAD, HEAD_KEY)]).await.unwrap().remove(0).into_value();
            head_of(raw.as_ref()).unwrap()
        };
        let before = head().await;

        // Whatever follows from the values comes back.
        for lost in [&[PLACE][..], &[LIVE, SIZE], &[DEAD, HEAD], &[HEAD, PLACE, MARK, OUTBOX]] {
            let mut batch = Batch::new();
            for table in lost {
                batch.delete_prefix(*table, b"");
            }
            tables.commit(batch).await.unwrap();
            assert_eq!(rebuild(&*tables).await.unwrap(), [""; 0], "{lost:?}");
            assert_eq!(all(&*tables).await, whole, "{lost:?}");
            let now = head().await;
            assert_eq!((now.version, now.tombstones), (before.version, before.tombstones), "{lost:?}");
        }
        let mut batch = Batch::new();
        batch.delete(VALUE, layout::value_key(&at("beta", 7)));
        tables.commit(batch).await.unwrap();
        let lost = rebuild(&*tables).await.unwrap();
        assert!(lost.len() == 1 && lost[0].contains("tool/k7") && lost[0].contains("beta"), "{lost:?}");
        write(&tables, Write { deletes: vec![at("acme", 4)], ..Write::default() }).await;
        assert_eq!(head().await.version, before.version + 1);
        store.close().await;
    }
}
