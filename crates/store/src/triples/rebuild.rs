//! Making the statements of a collection anew of the rows that are left of them, after others were lost with a damaged disk.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{
    Collection, DEFAULT_GRAPH, Encoded, NEXT_SCOPE, NUMBERS, ORDERS, Order, PAGE_ROWS, Quad, SCOPES, TERMS,
    TableTriples, term, term_key,
};
use crate::embedded::{Lost, Unindexed};
use crate::keys::{ScopeKey, numbered, numbers_in, rows};
use crate::{Batch, Error, Found, KeyRange, Read, Result};

const COLLECTIONS_MAX: usize = 1_000_000;

fn numbered_tables() -> impl Iterator<Item = &'static str> {
    ORDERS.iter().map(|order| order.table).chain([NUMBERS, TERMS])
}

impl TableTriples {
    /// Makes every collection anew that lacks some of `lost`; answers how many statements are not there any more.
    ///
    /// # Errors
    /// As reads and commits of the tables.
    pub(crate) async fn rebuild(&self, lost: &[Lost]) -> Result<Vec<Unindexed>> {
        let mut unknown = BTreeSet::new();
        for table in numbered_tables() {
            unknown.extend(numbers_in(&*self.tables, table).await?);
        }
        let mut next = unknown.last().map_or(0, |last| last + 1);
        let mut collections: Vec<(ScopeKey, u64)> = Vec::new();
        for (key, row) in rows(&*self.tables, Read::prefix(SCOPES, "", COLLECTIONS_MAX)).await?.rows {
            match key[..].try_into() {
                Ok(key) => {
                    let number = Collection::decode(&row)?.number;
                    // One that is empty has no rows of its own.
                    next = next.max(number + 1);
                    collections.push((key, number));
                }
                Err(_) => {
                    let row = row[..].try_into().map_err(|e| Error::damaged("a number", &e))?;
                    next = next.max(u64::from_le_bytes(row));
                }
            }
        }
        let mut batch = Batch::new();
        batch.put(SCOPES, NEXT_SCOPE, next.to_le_bytes().to_vec());
        self.tables.commit(batch).await?;
        let mut unindexed = Vec::new();
        for (key, number) in collections {
            unknown.remove(&number);
            let keys = KeyRange::prefix(numbered(number, &[]));
            let is_touched = |lost: &Lost| {
                lost.touches(SCOPES, &KeyRange::all())
                    || numbered_tables().any(|table| lost.touches(table, &keys))
            };
            if lost.iter().any(is_touched) {
                unindexed.push(self.rebuild_one(&key, number).await?);
            }
        }
        // Nobody knows any more whose they are.
        for number in unknown {
            let read = Read::prefix(ORDERS[0].table, numbered(number, &[]), COLLECTIONS_MAX);
            let count = rows(&*self.tables, read).await?.rows.len() as u64;
            unindexed.push(Unindexed { index: "statements", scope: None, ids: Vec::new(), count });
            self.drop_rows(number).await?;
        }
        unindexed.retain(|one| one.count > 0);
        Ok(unindexed)
    }

    async fn rebuild_one(&self, key: &ScopeKey, number: u64) -> Result<Unindexed> {
        let mut batch = Batch::new();
        batch.delete(SCOPES, key);
        self.tables.commit(batch).await?;
        let mut unindexed = Unindexed { index: "statements", scope: Some(*key), ids: Vec::new(), count: 0 };
        let mut nameless = BTreeSet::new();
        // Each order has all statements, so what one lost is in the others.
        for order in ORDERS {
            let mut range = KeyRange::prefix(numbered(number, &[]));
            loop {
                let page = rows(&*self.tables, Read::range(order.table, range.clone(), PAGE_ROWS)).await?;
                let Some((last, _)) = page.rows.last() else { break };
                range = range.after(last);
                let statements = self.statements(number, order, &page.rows, &mut nameless).await?;
                if !statements.is_empty() {
                    self.add_missing(*key, &statements).await?;
                }
            }
        }
        unindexed.count = nameless.len() as u64;
        self.drop_rows(number).await?;
        Ok(unindexed)
    }

    /// The statements of some rows of an order; those of which a term is lost are put into `nameless`.
    async fn statements(
        &self,
        collection: u64,
        order: Order,
        rows: &[(Bytes, Bytes)],
        nameless: &mut BTreeSet<Quad>,
    ) -> Result<Vec<Encoded>> {
        let quads = rows.iter().map(|(key, _)| Quad::from_key(key, order)).collect::<Result<Vec<_>>>()?;
        let numbers: BTreeSet<u64> = quads.iter().flat_map(|quad| quad.0).collect();
        let reads = numbers.iter().map(|number| Read::get(TERMS, term_key(collection, *number))).collect();
        let found = self.tables.read(reads).await?.into_iter().map(Found::into_value);
        let mut terms: BTreeMap<u64, Vec<u8>> = numbers
            .into_iter()
            .zip(found)
            .filter_map(|(number, row)| Some((number, row?.to_vec())))
            .collect();
        terms.insert(DEFAULT_GRAPH, term::encode_graph(""));
        let mut statements = Vec::with_capacity(quads.len());
        for quad in quads {
            let term = |at: usize| terms.get(&quad.0[at]).cloned();
            match (term(0), term(1), term(2), term(3)) {
                (Some(s), Some(p), Some(o), Some(g)) => statements.push([s, p, o, g]),
                _ => _ = nameless.insert(quad),
            }
        }
        Ok(statements)
    }

    async fn drop_rows(&self, collection: u64) -> Result<()> {
        let mut batch = Batch::new();
        for table in numbered_tables() {
            batch.delete_prefix(table, numbered(collection, &[]));
        }
        self.tables.commit(batch).await
    }
}
