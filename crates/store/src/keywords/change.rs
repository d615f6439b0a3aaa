//! The rows that change when texts come and go: postings first of all, then whatever no posting names any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::entry::Stored;
use super::posting::Block;
use super::{GROUP_ENTRIES, LENGTHS, Lengths, POSTINGS, TERMS, term_key};
use crate::keys::{numbered, put_number};
use crate::{Batch, Error, Found, KeyRange, Read, Result, Tables};

/// The place of a row of postings: the term, and the number of the first entry; `None` for the first row.
pub(super) type Place = (u64, Option<u64>);

/// Changes to one collection that are made in one batch.
pub(super) struct Change {
    tables: Arc<dyn Tables>,
    collection: u64,
    /// Rows that change or may, as they will be.
    blocks: BTreeMap<Place, Block>,
    /// Places that have a row in the tables.
    resting: BTreeSet<Place>,
    changed: BTreeSet<Place>,
    lengths: BTreeMap<u64, Lengths>,
}

pub(super) fn block_key(collection: u64, place: Place) -> Vec<u8> {
    let mut key = numbered(collection, &[]);
    put_number(place.0, &mut key);
    if let Some(from) = place.1 {
        put_number(from, &mut key);
    }
    key
}

impl Change {
    pub(super) fn new(tables: Arc<dyn Tables>, collection: u64) -> Self {
        Self {
            tables,
            collection,
            blocks: BTreeMap::new(),
            resting: BTreeSet::new(),
            changed: BTreeSet::new(),
            lengths: BTreeMap::new(),
        }
    }

    /// The numbers of terms, where they have one.
    pub(super) async fn numbers(&self, terms: &[&str]) -> Result<Vec<Option<u64>>> {
        let reads = terms.iter().map(|term| Read::get(TERMS, term_key(self.collection, term))).collect();
        let found = self.tables.read(reads).await?.into_iter().map(Found::into_value);
        found.map(|row| row.map(|row| super::number(&row)).transpose()).collect()
    }

    /// Reads what has to be known to take these entries out and to append to these terms.
    pub(super) async fn load(
        &mut self,
        gone: &[(u64, Stored)],
        come: &[u64],
        groups: impl Iterator<Item = u64>,
    ) -> Result<()> {
        let mut reads = Vec::new();
        let last_of = |range: KeyRange| Read::range_reverse(POSTINGS, range, 1);
        let mut terms = Vec::new();
        for (entry, stored) in gone {
            for term in &stored.terms {
                // The last row that begins with this entry or before.
                let mut end = block_key(self.collection, (*term, Some(*entry)));
                end.push(0);
                let range = KeyRange::between(block_key(self.collection, (*term, None)), end);
                reads.push(last_of(range));
                terms.push(*term);
            }
        }
        for term in come {
            reads.push(last_of(KeyRange::prefix(block_key(self.collection, (*term, None)))));
            terms.push(*term);
        }
        let groups: Vec<u64> =
            groups.map(|entry| entry / GROUP_ENTRIES).collect::<BTreeSet<_>>().into_iter().collect();
        reads.extend(groups.iter().map(|group| Read::get(LENGTHS, numbered_twice(self.collection, *group))));
        let mut found = self.tables.read(reads).await?.into_iter();
        for (term, found) in terms.into_iter().zip(&mut found) {
            for (key, row) in found.into_rows().rows {
                self.take(term, &key, &row)?;
            }
        }
        for (group, found) in groups.into_iter().zip(found) {
            let lengths = found.into_value().map(|row| Lengths::decode(&row)).transpose()?;
            self.lengths.insert(group, lengths.unwrap_or_default());
        }
        Ok(())
    }

    fn take(&mut self, term: u64, key: &Bytes, row: &Bytes) -> Result<()> {
        let begin = block_key(self.collection, (term, None)).len();
        let from = match key.get(begin..).unwrap_or_default() {
            [] => None,
            rest => Some(super::number(rest)?),
        };
        let place = (term, from);
        if self.resting.insert(place) {
            self.blocks.insert(place, Block::decode(from, row)?);
        }
        Ok(())
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, entry: u64, stored: &Stored) -> Result<()> {
        for term in &stored.terms {
            let row = self.blocks.range_mut((*term, None)..=(*term, Some(entry))).next_back();
            let Some(place) = row.and_then(|(place, block)| block.remove(entry).then_some(*place)) else {
                let reason = format!("entry {entry} has no posting of term {term}");
                return Err(Error::damaged("the keyword index", &reason));
            };
            self.changed.insert(place);
        }
        self.set_length(entry, 0);
        Ok(())
    }

    /// Appends an entry to a term; it has to have the highest number so far. A new term is told with its text.
    pub(super) fn append(&mut self, term: u64, text: &str, entry: u64, count: u32) {
        let last = self.blocks.range((term, None)..=(term, Some(u64::MAX))).next_back();
        let place = match last {
            None => {
                let block = Block { term: Some(text.to_owned()), ..Block::default() };
                self.blocks.insert((term, None), block);
                (term, None)
            }
            Some((_, block)) if block.is_full() => {
                let place = (term, Some(entry));
                self.blocks.insert(place, Block { from: entry, ..Block::default() });
                place
            }
            Some((place, _)) => *place,
        };
        if let Some(block) = self.blocks.get_mut(&place) {
            block.postings.push((entry, count));
        }
        self.changed.insert(place);
    }

    pub(super) fn set_length(&mut self, entry: u64, length: u32) {
        self.lengths.entry(entry / GROUP_ENTRIES).or_default().set(entry, length);
    }

    /// Looks which terms nothing has any more, and adds all rows to the batch.
    pub(super) async fn finish(mut self, batch: &mut Batch) -> Result<()> {
        let emptied: BTreeSet<u64> = self
            .changed
            .iter()
            .filter(|place| self.blocks.get(place).is_some_and(|block| block.postings.is_empty()))
            .map(|(term, _)| *term)
            .collect();
        // Two rows more than those that are known are enough to see whether something stays: the first one may be empty.
        let known = |term: &u64| self.blocks.range((*term, None)..=(*term, Some(u64::MAX))).count() + 2;
        let reads = emptied
            .iter()
            .map(|term| Read::prefix(POSTINGS, block_key(self.collection, (*term, None)), known(term)))
            .collect();
        let found = self.tables.read(reads).await?;
        for (term, found) in emptied.iter().zip(found) {
            for (key, row) in found.into_rows().rows {
                self.take(*term, &key, &row)?;
            }
        }
        let mut texts: HashMap<u64, String> = HashMap::new();
        for term in emptied {
            let mut rows = self.blocks.range((term, None)..=(term, Some(u64::MAX)));
            if rows.all(|(_, block)| block.postings.is_empty())
                && let Some(text) = self.blocks.get(&(term, None)).and_then(|block| block.term.clone())
            {
                texts.insert(term, text);
            }
        }
        for place in &self.changed {
            let Some(block) = self.blocks.get(place) else { continue };
            let key = block_key(self.collection, *place);
            // The first row stays while there is another, since it has the term.
            let is_first = place.1.is_none();
            if block.postings.is_empty() && (!is_first || texts.contains_key(&place.0)) {
                batch.delete(POSTINGS, key);
            } else {
                batch.put(POSTINGS, key, block.encode());
            }
        }
        for (term, text) in texts {
            batch.delete(POSTINGS, block_key(self.collection, (term, None)));
            batch.delete(TERMS, term_key(self.collection, &text));
        }
        for (group, lengths) in self.lengths {
            let key = numbered_twice(self.collection, group);
            match lengths.encode() {
                Some(row) => batch.put(LENGTHS, key, row),
                None => batch.delete(LENGTHS, key),
            };
        }
        Ok(())
    }
}

/// A key of two numbers.
pub(super) fn numbered_twice(first: u64, second: u64) -> Vec<u8> {
    let mut key = numbered(first, &[]);
    put_number(second, &mut key);
    key
}
