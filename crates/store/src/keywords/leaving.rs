//! Removing a text in portions, where one commit would need more room than a full disk leaves for it.
//!
//! The first commit hides the text: its id is free, and without a length no search counts it. Then it goes out of the
//! postings of some terms at a time, and a row says of how many. What was cut off is gone on with before the next removal in
//! its collection; until then it takes room and does nothing else.

use bytes::Bytes;

use super::change::{Change, numbered_twice};
use super::{
    COLLECTIONS, Collection, ENTRIES, IDS, TRIES_MAX, TableKeywords, bytes, contended, id_key, number,
};
use crate::contract::tables::ESSENTIAL_BYTES_MAX;
use crate::keys::{ScopeKey, put_number, rows};
use crate::{Batch, Error, Read, Result};

/// Of how many of its terms a hidden entry is out, by workspace, collection and number.
pub(super) const LEAVING: &str = "words.leaving";
/// Terms of one portion. Each has a row or two, and each row a page of its own.
const PORTION_TERMS: usize = 128;

impl TableKeywords {
    /// Removes one entry, however many terms it has.
    pub(super) async fn remove_in_portions(&self, key: &ScopeKey, id: String) -> Result<()> {
        self.hide(key, &id).await?;
        self.finish_leaving(key).await
    }

    async fn hide(&self, key: &ScopeKey, id: &String) -> Result<()> {
        for _ in 0..TRIES_MAX {
            let (was, Some(mut collection)) = self.collection(key).await? else { return Ok(()) };
            let stored = self.stored(collection.number, std::iter::once(id)).await?;
            let Some((_, (entry, stored))) = stored.into_iter().next() else { return Ok(()) };
            let mut change = Change::new(self.tables.clone(), collection.number);
            change.load(&[], &[], std::iter::once(entry)).await?;
            change.set_length(entry, 0);
            let mut batch = Batch::new();
            change.finish(&mut batch).await?;
            batch.delete(IDS, id_key(collection.number, id)).put(
                LEAVING,
                leaving_key(key, entry),
                out_of_terms(0),
            );
            collection.entries = collection.entries.saturating_sub(1);
            collection.terms = collection.terms.saturating_sub(u64::from(stored.length));
            match self.commit_after(key, was, collection, batch).await {
                Err(error) if error.is_conflict() => {}
                done => return done,
            }
        }
        Err(contended())
    }

    /// Takes out what is left of hidden entries of a collection.
    pub(super) async fn finish_leaving(&self, key: &ScopeKey) -> Result<()> {
        let (mut conflicts, mut portion) = (0, PORTION_TERMS);
        loop {
            // First, so that a commit that is based on an older row of the text's is refused.
            let (was, Some(collection)) = self.collection(key).await? else { return Ok(()) };
            let next = rows(&*self.tables, Read::prefix(LEAVING, key, 1)).await?.rows.into_iter().next();
            let Some((row_key, row)) = next else { return Ok(()) };
            let entry = number(&row_key[key.len()..])?;
            let out_of = usize::try_from(number(&row)?).unwrap_or(usize::MAX);
            let batch = self.portion(key, collection, entry, out_of, portion).await?;
            if bytes(&batch) > ESSENTIAL_BYTES_MAX && portion > 1 {
                portion /= 2;
                continue;
            }
            match self.commit_after(key, was, collection, batch).await {
                Ok(()) => conflicts = 0,
                Err(error) if error.is_conflict() && conflicts < TRIES_MAX => conflicts += 1,
                // Others have used what was left.
                Err(Error::Disk { .. }) if portion > 1 => portion /= 2,
                Err(error) => return Err(error),
            }
        }
    }

    /// The batch that takes an entry out of the next terms, and in the end away.
    async fn portion(
        &self,
        key: &ScopeKey,
        collection: Collection,
        entry: u64,
        out_of: usize,
        portion: usize,
    ) -> Result<Batch> {
        let mut batch = Batch::new();
        let row_key = leaving_key(key, entry);
        let Some(mut stored) = self.entries(collection.number, &[entry]).await?.remove(&entry) else {
            batch.delete(LEAVING, row_key);
            return Ok(batch);
        };
        let (from, to) = (out_of.min(stored.terms.len()), out_of.saturating_add(portion));
        if to < stored.terms.len() {
            batch.put(LEAVING, row_key, out_of_terms(to));
        } else {
            batch.delete(LEAVING, row_key).delete(ENTRIES, numbered_twice(collection.number, entry));
        }
        stored.terms.truncate(to);
        stored.terms.drain(..from);
        let mut change = Change::new(self.tables.clone(), collection.number);
        let going = [(entry, stored)];
        change.load(&going, &[], std::iter::once(entry)).await?;
        let [(_, stored)] = &going;
        change.remove(entry, stored)?;
        change.finish(&mut batch).await?;
        Ok(batch)
    }

    async fn commit_after(
        &self,
        key: &ScopeKey,
        was: Option<Bytes>,
        collection: Collection,
        mut batch: Batch,
    ) -> Result<()> {
        let collection = Collection { writes: collection.writes + 1, ..collection };
        batch.expect(COLLECTIONS, key, was).put(COLLECTIONS, key, collection.encode()).essential();
        self.tables.commit(batch).await
    }
}

fn leaving_key(key: &ScopeKey, entry: u64) -> Vec<u8> {
    let mut row_key = key.to_vec();
    put_number(entry, &mut row_key);
    row_key
}

fn out_of_terms(terms: usize) -> Vec<u8> {
    let mut row = Vec::new();
    put_number(terms as u64, &mut row);
    row
}
