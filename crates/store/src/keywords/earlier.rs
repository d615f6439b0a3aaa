//! Texts as an earlier version stored them: a row for each term of each text.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;

use super::TableKeywords;
use super::entry::Entry;
use crate::keys::{ScopeKey, id_in, join, rows};
use crate::{Attributes, Batch, Error, Read, Result};

/// The table that is empty once all is taken over.
pub(crate) const EARLIER: &str = ENTRIES;
const COLLECTIONS: &str = "keywords.collections";
const ENTRIES: &str = "keywords.entries";
const POSTINGS: &str = "keywords.postings";

/// Entries moved in one step.
const MOVE_ROWS: usize = 200;
/// Bytes of keys and rows after which a step ends.
const MOVE_BYTES: usize = 8 << 20;

/// What was kept of a text.
#[derive(Debug, Deserialize)]
struct Earlier {
    #[serde(rename = "n")]
    length: u32,
    #[serde(rename = "t")]
    counts: BTreeMap<String, u32>,
    #[serde(rename = "a", default)]
    attributes: Attributes,
}

/// Adds them to the new index, then removes them from the old one, some at a time.
pub(super) async fn take_over(to: &TableKeywords) -> Result<()> {
    let mut moved = 0_usize;
    loop {
        let page = rows(&*to.tables, Read::prefix(ENTRIES, "", MOVE_ROWS)).await?;
        if page.rows.is_empty() {
            break;
        }
        if moved == 0 {
            tracing::info!("the keyword index of an earlier version is written anew; this happens once");
        }
        let mut entries: BTreeMap<ScopeKey, BTreeMap<String, Option<Entry>>> = BTreeMap::new();
        let mut batch = Batch::new();
        let mut bytes = 0;
        for (key, row) in page.rows {
            if bytes > MOVE_BYTES {
                break;
            }
            moved += 1;
            let (scope, id, earlier) = read(&key, &row)?;
            bytes += row.len() + earlier.counts.len() * (scope.len() + id.len());
            for term in earlier.counts.keys() {
                batch.delete(POSTINGS, join(&[&scope, term.as_bytes(), &[0], id.as_bytes()]));
            }
            batch.delete(ENTRIES, &key);
            let Earlier { length, counts, attributes } = earlier;
            entries.entry(scope).or_default().insert(id, Some(Entry { length, counts, attributes }));
        }
        for (scope, entries) in &entries {
            to.replace(scope, entries).await?;
        }
        to.tables.commit(batch).await?;
    }
    if moved > 0 {
        let mut batch = Batch::new();
        batch.delete_prefix(COLLECTIONS, "").delete_prefix(POSTINGS, "");
        to.tables.commit(batch).await?;
        tracing::info!(texts = moved, "the keyword index is written anew");
    }
    Ok(())
}

fn read(key: &Bytes, row: &[u8]) -> Result<(ScopeKey, String, Earlier)> {
    let damaged = |reason: &dyn std::fmt::Display| Error::damaged("a keyword entry", &reason.to_string());
    let (scope, _) = key.split_first_chunk().ok_or_else(|| damaged(&"its key is cut short"))?;
    let id = id_in(key, size_of::<ScopeKey>())?.to_owned();
    Ok((*scope, id, serde_json::from_slice(row).map_err(|e| damaged(&e))?))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sluice_schema::message::TextOrList;

    use super::*;
    use crate::keys::scope_key;
    use crate::{Embedded, KeywordEntry, Keywords as _, Scope};

    /// A text as the version before stored it.
    fn put_old(batch: &mut Batch, scope: Scope<'_>, entry: &KeywordEntry) {
        let Entry { length, counts, attributes } = Entry::new(&entry.text, entry.attributes.clone());
        let scope = scope_key(scope);
        for (term, count) in &counts {
            let row = [count.to_le_bytes(), length.to_le_bytes()].concat();
            batch.put(POSTINGS, join(&[&scope, term.as_bytes(), &[0], entry.id.as_bytes()]), row);
        }
        let row = serde_json::json!({"n": length, "t": counts, "a": attributes});
        batch.put(ENTRIES, join(&[&scope, entry.id.as_bytes()]), row.to_string());
        batch.put(COLLECTIONS, scope, vec![0; 24]);
    }

    fn text(n: usize) -> KeywordEntry {
        let labels = Attributes::from([("title".to_owned(), TextOrList::Text(format!("Text {n}")))]);
        let text = format!("pump number {n} feeds tank {} {}", n % 7, "again ".repeat(n % 4));
        KeywordEntry { id: format!("urn:text:{n}"), text, attributes: labels }
    }

    #[tokio::test]
    async fn texts_of_an_earlier_version_are_found_after_the_start_and_after_one_that_was_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(folder.path()).unwrap();
        let (here, there, fresh) = (Scope::new("w", "c"), Scope::new("w", "d"), Scope::new("w", "fresh"));
        let mut batch = Batch::new();
        for n in 0..700 {
            put_old(&mut batch, if n % 5 == 0 { there } else { here }, &text(n));
        }
        store.tables().commit(batch).await.unwrap();
        // As if the first step had been cut off before it took anything away.
        let keywords = TableKeywords::new(store.tables());
        keywords.upsert(here, (1..90).filter(|n| n % 5 != 0).map(text).collect()).await.unwrap();
        drop(keywords);
        store.close().await;

        let store = Embedded::open(folder.path()).unwrap();
        let keywords = Arc::clone(&store.stores().keywords);
        keywords.upsert(fresh, (0..700).filter(|n| n % 5 != 0).map(text).collect()).await.unwrap();
        for query in ["pump 11", "tank 3 again", "number", "699"] {
            let wanted = keywords.search(fresh, query, 1_000).await.unwrap();
            assert!(!wanted.is_empty(), "{query}");
            assert_eq!(keywords.search(here, query, 1_000).await.unwrap(), wanted, "{query}");
        }
        assert_eq!(keywords.search(there, "pump", 1_000).await.unwrap().len(), 140);
        for table in [COLLECTIONS, ENTRIES, POSTINGS] {
            let left = rows(&*store.tables(), Read::prefix(table, "", 10)).await.unwrap();
            assert_eq!(left.rows.len(), 0, "{table}");
        }
        store.close().await;
    }
}
