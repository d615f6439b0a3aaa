//! Making the index of a collection anew of the rows that are left of it, after others were lost with a damaged disk: an
//! index with holes would answer wrongly, and could not be written to.

use std::collections::{BTreeMap, BTreeSet};

use super::change::{block_key, numbered_twice};
use super::entry::{Entry, Stored};
use super::leaving::LEAVING;
use super::posting::Block;
use super::{
    COLLECTIONS, Collection, ENTRIES, IDS, LENGTHS, NEXT_COLLECTION, POSTINGS, TERMS, TableKeywords, id_key,
    number,
};
use crate::embedded::{Lost, Unindexed};
use crate::keys::{ScopeKey, numbered, numbers_in, put_number, rows, take_number};
use crate::{Batch, Found, KeyRange, Read, Result};

const NUMBERED: [&str; 5] = [IDS, ENTRIES, LENGTHS, TERMS, POSTINGS];
/// Texts looked at in one step; each reads two rows for each of its terms.
const STEP_TEXTS: usize = 32;
const COLLECTIONS_MAX: usize = 1_000_000;

impl TableKeywords {
    /// Makes every collection anew that lacks some of `lost`; answers which texts are no longer in the index.
    ///
    /// # Errors
    /// As reads and commits of the tables.
    pub(crate) async fn rebuild(&self, lost: &[Lost]) -> Result<Vec<Unindexed>> {
        let mut unknown = BTreeSet::new();
        for table in NUMBERED {
            unknown.extend(numbers_in(&*self.tables, table).await?);
        }
        let mut next = unknown.last().map_or(0, |last| last + 1);
        let mut collections = Vec::new();
        for (key, row) in rows(&*self.tables, Read::prefix(COLLECTIONS, "", COLLECTIONS_MAX)).await?.rows {
            match key[..].try_into() {
                Ok(key) => {
                    let number = Collection::decode(&row)?.number;
                    // One that is empty has no rows of its own.
                    next = next.max(number + 1);
                    collections.push((key, number));
                }
                Err(_) => next = next.max(number(&row)?),
            }
        }
        let mut row = Vec::new();
        put_number(next, &mut row);
        let mut batch = Batch::new();
        batch.put(COLLECTIONS, NEXT_COLLECTION, row);
        self.tables.commit(batch).await?;
        let mut unindexed = Vec::new();
        for (key, number) in collections {
            unknown.remove(&number);
            let keys = KeyRange::prefix(numbered(number, &[]));
            let is_touched = |lost: &Lost| {
                lost.touches(COLLECTIONS, &KeyRange::all())
                    || lost.touches(LEAVING, &KeyRange::prefix(key))
                    || NUMBERED.iter().any(|table| lost.touches(table, &keys))
            };
            if lost.iter().any(is_touched) {
                unindexed.push(self.rebuild_one(&key, number).await?);
            }
        }
        // Nobody knows any more whose they are.
        for number in unknown {
            let count = self.entries_in(number, &KeyRange::all()).await?.len() as u64;
            unindexed.push(Unindexed { index: "keyword index", scope: None, ids: Vec::new(), count });
            self.drop_rows(number).await?;
        }
        unindexed.retain(|one| one.count > 0);
        Ok(unindexed)
    }

    async fn rebuild_one(&self, key: &ScopeKey, number: u64) -> Result<Unindexed> {
        let leaving = rows(&*self.tables, Read::prefix(LEAVING, key, COLLECTIONS_MAX)).await?.rows;
        let leaving: BTreeSet<Option<u64>> =
            leaving.iter().map(|(row_key, _)| take_number(&mut &row_key[key.len()..])).collect();
        let mut batch = Batch::new();
        batch.delete(COLLECTIONS, key).delete_prefix(LEAVING, key);
        self.tables.commit(batch).await?;
        let mut unindexed =
            Unindexed { index: "keyword index", scope: Some(*key), ids: Vec::new(), count: 0 };
        let mut range = KeyRange::prefix(numbered(number, &[]));
        loop {
            let some = self.entries_in(number, &range).await?;
            let Some((last, _)) = some.last() else { break };
            range = range.after(numbered_twice(number, *last));
            let mut whole = BTreeMap::new();
            for (entry, stored) in some.into_iter().filter(|(entry, _)| !leaving.contains(&Some(*entry))) {
                if self.is_replaced(number, entry, &stored.id).await? {
                    continue;
                }
                match self.whole(number, entry, &stored).await? {
                    Some(text) => _ = whole.insert(stored.id, Some(text)),
                    None => unindexed.add(stored.id),
                }
            }
            self.replace(key, &whole).await?;
        }
        self.drop_rows(number).await?;
        Ok(unindexed)
    }

    /// Some entries of a collection, by number.
    async fn entries_in(&self, collection: u64, range: &KeyRange) -> Result<Vec<(u64, Stored)>> {
        let prefix = numbered(collection, &[]);
        let all = KeyRange::prefix(&prefix);
        let range = KeyRange { from: all.from.max(range.from.clone()), to: all.to };
        let page = rows(&*self.tables, Read::range(ENTRIES, range, STEP_TEXTS)).await?;
        let entry = |(key, row): &(bytes::Bytes, bytes::Bytes)| {
            Ok((number(key.get(prefix.len()..).unwrap_or_default())?, Stored::decode(row)?))
        };
        page.rows.iter().map(entry).collect()
    }

    /// Whether the id is that of another entry by now.
    async fn is_replaced(&self, collection: u64, entry: u64, id: &str) -> Result<bool> {
        let found = self.tables.read(vec![Read::get(IDS, id_key(collection, id))]).await?;
        let row = found.into_iter().next().and_then(Found::into_value);
        Ok(row.map(|row| number(&row)).transpose()?.is_some_and(|is| is != entry))
    }

    /// A text from its postings, if none of them is lost.
    async fn whole(&self, collection: u64, entry: u64, stored: &Stored) -> Result<Option<Entry>> {
        let mut reads = Vec::with_capacity(stored.terms.len() * 2);
        for term in &stored.terms {
            let first = block_key(collection, (*term, None));
            let mut end = block_key(collection, (*term, Some(entry)));
            end.push(0);
            reads.push(Read::get(POSTINGS, &first));
            reads.push(Read::range_reverse(POSTINGS, KeyRange::between(&first, end), 1));
        }
        let mut found = self.tables.read(reads).await?.into_iter();
        let mut counts = BTreeMap::new();
        for term in &stored.terms {
            let (first, row) = (found.next().and_then(Found::into_value), found.next().map(Found::into_rows));
            let Some(text) = first.map(|row| Block::decode(None, &row)).transpose()?.and_then(|row| row.term)
            else {
                return Ok(None);
            };
            let Some((key, row)) = row.and_then(|found| found.rows.into_iter().next()) else {
                return Ok(None);
            };
            let from = match key.get(block_key(collection, (*term, None)).len()..).unwrap_or_default() {
                [] => None,
                rest => Some(number(rest)?),
            };
            let postings = Block::decode(from, &row)?.postings;
            let Some((_, count)) = postings.into_iter().find(|(of, _)| *of == entry) else { return Ok(None) };
            counts.insert(text, count);
        }
        Ok(Some(Entry { length: stored.length, counts, attributes: stored.attributes()? }))
    }

    async fn drop_rows(&self, collection: u64) -> Result<()> {
        let mut batch = Batch::new();
        for table in NUMBERED {
            batch.delete_prefix(table, numbered(collection, &[]));
        }
        self.tables.commit(batch).await
    }
}
