//! A keyword index over tables: for each term the texts that have it, ranked by BM25.
//!
//! Texts and terms have numbers, and a text gets a new one whenever it changes. The postings of a term are rows of some
//! hundred numbers each, to which new ones are appended; so a text costs about two bytes for each of its terms, and as many
//! to know them again when it goes. How long texts are stands in rows of its own. A term goes with the last text that has it.
//!
//! A search reads the rows of its own terms only. How many texts there are and how long they are together stands in one
//! row, which every write expects as it read it; so writes to one collection take turns, and nothing is counted twice. What
//! waits for its turn is committed together.

mod change;
mod earlier;
mod entry;
mod leaving;
mod posting;
mod rebuild;

pub(crate) use earlier::EARLIER;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use self::change::{Change, numbered_twice};
use self::entry::{Entry, Stored};
use self::leaving::LEAVING;
use self::posting::Block;
use crate::contract::tables::ESSENTIAL_BYTES_MAX;
use crate::keys::{ScopeKey, check_id, numbered, put_number, rows, scope_key, take_number, to_the_end};
use crate::terms::terms;
use crate::turns::{Load, Turns, Waiting};
use crate::{
    Batch, BoxFuture, Error, Found, KeyRange, KeywordEntry, Keywords, Match, Op, Read, Result, Scope, Tables,
};

/// What is known of a collection, by workspace and collection; in one row more the number of the next collection.
const COLLECTIONS: &str = "words.collections";
const NEXT_COLLECTION: &[u8] = b"next";
/// The number of an entry, by collection and digest of its id.
const IDS: &str = "words.ids";
/// An entry, by collection and number.
const ENTRIES: &str = "words.entries";
/// How long entries are, by collection and number, some in a row.
const LENGTHS: &str = "words.lengths";
/// The number of a term, by collection and term.
const TERMS: &str = "words.terms";
/// Postings, by collection, number of the term, and the entry that the row begins with, but for a term's first row.
const POSTINGS: &str = "words.postings";

const DIGEST_BYTES: usize = 16;
/// Entries whose lengths stand in one row.
const GROUP_ENTRIES: u64 = 128;
/// Terms of a query that count; further ones are left out.
pub const QUERY_TERMS_MAX: usize = 64;
/// Rows of one term read at once.
const PAGE_ROWS: usize = 64;
/// Entries looked at in one step.
const STEP_ROWS: usize = 256;
/// Entries and bytes of what waits that are committed together.
const TOGETHER_MAX: Load = Load { things: 128, bytes: 4 * 1024 * 1024 };
/// How often a write begins again because another process changed the collection meanwhile.
const TRIES_MAX: usize = 16;
/// How often a search looks again because a text was replaced meanwhile.
const LOOKS_MAX: usize = 3;

// The customary constants of BM25.
const K1: f32 = 1.2;
const B: f32 = 0.75;

/// Keywords over tables.
#[derive(Clone)]
pub struct TableKeywords {
    tables: Arc<dyn Tables>,
    turns: Arc<Turns<Replacement>>,
}

/// New entries by id; `None` for one that goes.
type Replacement = BTreeMap<String, Option<Entry>>;

/// The row of a collection.
#[derive(Debug, Default, Clone, Copy)]
struct Collection {
    number: u64,
    next_entry: u64,
    next_term: u64,
    entries: u64,
    /// How long all entries are together.
    terms: u64,
    writes: u64,
}

impl Collection {
    fn encode(self) -> Vec<u8> {
        let Self { number, next_entry, next_term, entries, terms, writes } = self;
        [number, next_entry, next_term, entries, terms, writes].iter().flat_map(|n| n.to_le_bytes()).collect()
    }

    fn decode(row: &[u8]) -> Result<Self> {
        let numbers: [[u8; 8]; 6] =
            row.as_chunks().0.try_into().map_err(|e| Error::damaged("a keyword collection", &e))?;
        let [number, next_entry, next_term, entries, terms, writes] = numbers.map(u64::from_le_bytes);
        Ok(Self { number, next_entry, next_term, entries, terms, writes })
    }
}

/// How long some entries are; 0 for one that is not there.
#[derive(Debug, Clone)]
struct Lengths([u32; GROUP_ENTRIES as usize]);

impl Default for Lengths {
    fn default() -> Self {
        Self([0; GROUP_ENTRIES as usize])
    }
}

impl Lengths {
    const fn of(&self, entry: u64) -> u32 {
        self.0[(entry % GROUP_ENTRIES) as usize]
    }

    const fn set(&mut self, entry: u64, length: u32) {
        self.0[(entry % GROUP_ENTRIES) as usize] = length;
    }

    /// `None` if there is nothing to be kept. Those at the end that are not there are left out.
    fn encode(&self) -> Option<Vec<u8>> {
        let last = self.0.iter().rposition(|length| *length > 0)?;
        let mut row = Vec::with_capacity(last * 2);
        self.0[..=last].iter().for_each(|length| put_number(u64::from(*length), &mut row));
        Some(row)
    }

    fn decode(mut row: &[u8]) -> Result<Self> {
        let damaged = || Error::damaged("the lengths of texts", &"they are cut short");
        let mut lengths = Self::default();
        let mut places = lengths.0.iter_mut();
        while !row.is_empty() {
            let length = take_number(&mut row).and_then(|length| u32::try_from(length).ok());
            *places.next().ok_or_else(damaged)? = length.ok_or_else(damaged)?;
        }
        Ok(lengths)
    }
}

fn number(row: &[u8]) -> Result<u64> {
    take_number(&mut &row[..])
        .ok_or_else(|| Error::damaged("a number of the keyword index", &"it is cut short"))
}

fn id_key(collection: u64, id: &str) -> Vec<u8> {
    numbered(collection, &Sha256::digest(id)[..DIGEST_BYTES])
}

fn term_key(collection: u64, term: &str) -> Vec<u8> {
    numbered(collection, term.as_bytes())
}

impl TableKeywords {
    /// Keywords over these tables.
    pub fn new(tables: Arc<dyn Tables>) -> Self {
        Self { tables, turns: Turns::new(TOGETHER_MAX) }
    }

    /// Moves entries here that an earlier version stored in another way. May be cut off and repeated.
    ///
    /// # Errors
    /// As reads and commits of the tables.
    pub(crate) async fn take_over(&self) -> Result<()> {
        earlier::take_over(self).await
    }

    async fn collection(&self, key: &ScopeKey) -> Result<(Option<Bytes>, Option<Collection>)> {
        let found = self.tables.read(vec![Read::get(COLLECTIONS, key)]).await?;
        let row = found.into_iter().next().and_then(Found::into_value);
        let collection = row.as_deref().map(Collection::decode).transpose()?;
        Ok((row, collection))
    }

    /// Replaces entries when their turn comes, together with others that wait.
    async fn make(&self, key: ScopeKey, entries: Replacement) -> Result<()> {
        let bytes = entries.values().flatten().map(Entry::bytes).sum();
        let (this, load) = (self.clone(), Load { things: entries.len(), bytes });
        self.turns.make(key, entries, load, async move |next| this.make_all(key, next).await).await
    }

    /// Neighbours that add, and neighbours that only remove, in one commit each.
    async fn make_all(&self, key: ScopeKey, waiting: Vec<Waiting<Replacement>>) {
        let removes = |entries: &Replacement| entries.values().all(Option::is_none);
        let mut waiting = waiting.into_iter().peekable();
        while let Some(first) = waiting.next() {
            let (mut entries, mut waiters) = (first.change, vec![first.done]);
            while let Some(next) = waiting.next_if(|next| removes(&next.change) == removes(&entries)) {
                entries.extend(next.change);
                waiters.push(next.done);
            }
            let made = if removes(&entries) {
                self.remove_some(&key, entries.into_keys().collect()).await
            } else {
                self.replace(&key, &entries).await.map(drop)
            };
            for done in waiters {
                let _ = done.send(made.clone());
            }
        }
    }

    /// Removes entries, in batches that are small enough for a full disk.
    async fn remove_some(&self, key: &ScopeKey, ids: Vec<String>) -> Result<()> {
        self.finish_leaving(key).await?;
        let mut left = vec![ids];
        while let Some(mut ids) = left.pop() {
            let entries = ids.iter().map(|id| (id.clone(), None)).collect();
            match self.replace(key, &entries).await {
                Ok(true) => {}
                Ok(false) if ids.len() > 1 => {
                    left.push(ids.split_off(ids.len() / 2));
                    left.push(ids);
                }
                // Its rows are spread over more pages than there is room for.
                Err(Error::Disk { .. }) if ids.len() > 1 => left.extend(ids.into_iter().map(|id| vec![id])),
                Ok(false) | Err(Error::Disk { .. }) => {
                    for id in ids {
                        self.remove_in_portions(key, id).await?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Replaces entries: `Some` by a new one, `None` by nothing. Answers `false`, without having done anything, if it is a
    /// removal that is better made in parts.
    async fn replace(&self, key: &ScopeKey, entries: &Replacement) -> Result<bool> {
        for _ in 0..TRIES_MAX {
            let Some(batch) = self.replacement(key, entries).await? else { return Ok(true) };
            if batch.is_essential && bytes(&batch) > ESSENTIAL_BYTES_MAX {
                return Ok(false);
            }
            match self.tables.commit(batch).await {
                Err(error) if error.is_conflict() => {}
                done => return done.map(|()| true),
            }
        }
        Err(contended())
    }

    /// The batch that replaces entries, given what is there now; `None` if there is nothing to do.
    async fn replacement(&self, key: &ScopeKey, entries: &Replacement) -> Result<Option<Batch>> {
        let mut batch = Batch::new();
        let (was, collection) = self.collection(key).await?;
        let mut collection = match collection {
            Some(collection) => collection,
            None if entries.values().all(Option::is_none) => return Ok(None),
            None => self.new_collection(&mut batch).await?,
        };
        let there = if was.is_some() {
            self.stored(collection.number, entries.keys()).await?
        } else {
            HashMap::new()
        };
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        for (id, new) in entries {
            let old = there.get(id);
            if let (Some(new), Some((_, stored))) = (new, old)
                && new.is_stored(stored)?
            {
                continue;
            }
            gone.extend(old.cloned());
            come.extend(new.as_ref().map(|new| (id, new)));
        }
        if gone.is_empty() && come.is_empty() {
            return Ok(None);
        }

        let mut change = Change::new(Arc::clone(&self.tables), collection.number);
        let terms: BTreeSet<&str> =
            come.iter().flat_map(|(_, new)| new.counts.keys()).map(String::as_str).collect();
        let terms: Vec<&str> = terms.into_iter().collect();
        let known = if was.is_some() { change.numbers(&terms).await? } else { vec![None; terms.len()] };
        let old_terms: Vec<u64> = known.iter().flatten().copied().collect();
        let mut numbers: HashMap<&str, u64> = HashMap::with_capacity(terms.len());
        for (term, known) in terms.into_iter().zip(known) {
            let number = known.unwrap_or_else(|| {
                let number = collection.next_term;
                collection.next_term += 1;
                let mut row = Vec::new();
                put_number(number, &mut row);
                batch.put(TERMS, term_key(collection.number, term), row);
                number
            });
            numbers.insert(term, number);
        }
        let first = collection.next_entry;
        let touched = gone.iter().map(|(entry, _)| *entry).chain(first..first + come.len() as u64);
        change.load(&gone, &old_terms, touched).await?;

        for (entry, stored) in &gone {
            change.remove(*entry, stored)?;
            collection.entries = collection.entries.saturating_sub(1);
            collection.terms = collection.terms.saturating_sub(u64::from(stored.length));
            batch.delete(ENTRIES, numbered_twice(collection.number, *entry));
            batch.delete(IDS, id_key(collection.number, &stored.id));
        }
        for (id, new) in come {
            let entry = collection.next_entry;
            collection.next_entry += 1;
            collection.entries += 1;
            collection.terms += u64::from(new.length);
            for (term, count) in &new.counts {
                change.append(numbers[term.as_str()], term, entry, *count);
            }
            change.set_length(entry, new.length);
            let stored = new.stored(id, new.counts.keys().map(|term| numbers[term.as_str()]).collect())?;
            batch.put(ENTRIES, numbered_twice(collection.number, entry), stored.encode());
            let mut row = Vec::new();
            put_number(entry, &mut row);
            batch.put(IDS, id_key(collection.number, id), row);
        }
        change.finish(&mut batch).await?;
        collection.writes += 1;
        batch.expect(COLLECTIONS, key, was).put(COLLECTIONS, key, collection.encode());
        if entries.values().all(Option::is_none) {
            batch.essential();
        }
        Ok(Some(batch))
    }

    async fn new_collection(&self, batch: &mut Batch) -> Result<Collection> {
        let found = self.tables.read(vec![Read::get(COLLECTIONS, NEXT_COLLECTION)]).await?;
        let next = found.into_iter().next().and_then(Found::into_value);
        let number = next.as_deref().map_or(Ok(0), number)?;
        let mut row = Vec::new();
        put_number(number + 1, &mut row);
        batch.expect(COLLECTIONS, NEXT_COLLECTION, next).put(COLLECTIONS, NEXT_COLLECTION, row);
        Ok(Collection { number, ..Collection::default() })
    }

    /// Entries by id, with their numbers, as far as they are there.
    async fn stored<'a>(
        &self,
        collection: u64,
        ids: impl Iterator<Item = &'a String>,
    ) -> Result<HashMap<String, (u64, Stored)>> {
        let reads = ids.map(|id| Read::get(IDS, id_key(collection, id))).collect();
        let found = self.tables.read(reads).await?.into_iter().filter_map(Found::into_value);
        let numbers = found.map(|row| number(&row)).collect::<Result<Vec<u64>>>()?;
        let entries = self.entries(collection, &numbers).await?;
        Ok(entries.into_iter().map(|(number, stored)| (stored.id.clone(), (number, stored))).collect())
    }

    /// Entries by number, as far as they are there.
    async fn entries(&self, collection: u64, numbers: &[u64]) -> Result<HashMap<u64, Stored>> {
        let mut entries = HashMap::with_capacity(numbers.len());
        for some in numbers.chunks(STEP_ROWS) {
            let reads = some.iter().map(|n| Read::get(ENTRIES, numbered_twice(collection, *n))).collect();
            for (number, found) in some.iter().zip(self.tables.read(reads).await?) {
                if let Some(row) = found.into_value() {
                    entries.insert(*number, Stored::decode(&row)?);
                }
            }
        }
        Ok(entries)
    }

    async fn search_all(&self, scope: Scope<'_>, query: &str, limit: usize) -> Result<Vec<Match>> {
        let mut seen = HashSet::new();
        let mut wanted = terms(query);
        wanted.retain(|term| seen.insert(term.clone()));
        wanted.truncate(QUERY_TERMS_MAX);
        if wanted.is_empty() || limit == 0 {
            return Ok(Vec::new());
        }
        let key = scope_key(scope);
        let mut matches = Vec::new();
        for _ in 0..LOOKS_MAX {
            let (_, Some(collection)) = self.collection(&key).await? else { return Ok(Vec::new()) };
            let scores = self.scores(&collection, &wanted).await?;
            let is_whole;
            (matches, is_whole) = self.best(collection.number, scores, limit).await?;
            if is_whole {
                break;
            }
        }
        // One that was removed a moment ago is left out.
        Ok(matches)
    }

    /// What each text that has one of these terms is worth.
    async fn scores(&self, collection: &Collection, wanted: &[String]) -> Result<HashMap<u64, f32>> {
        let number_of = Change::new(Arc::clone(&self.tables), collection.number);
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let numbers: Vec<u64> = number_of.numbers(&wanted).await?.into_iter().flatten().collect();
        let prefixes: Vec<_> = numbers.iter().map(|term| numbered_twice(collection.number, *term)).collect();
        let reads = prefixes.iter().map(|prefix| Read::prefix(POSTINGS, prefix, PAGE_ROWS)).collect();
        let found = self.tables.read(reads).await?;
        let mut scores: HashMap<u64, f32> = HashMap::new();
        let mut lengths: HashMap<u64, Lengths> = HashMap::new();
        for (prefix, found) in prefixes.iter().zip(found) {
            let mut page = found.into_rows();
            let mut postings = Vec::new();
            loop {
                for (key, row) in &page.rows {
                    let from = Some(&key[prefix.len()..]).filter(|rest| !rest.is_empty()).map(number);
                    postings.extend(Block::decode(from.transpose()?, row)?.postings);
                }
                let Some((last, _)) = page.rows.last().filter(|_| page.more) else { break };
                let range = KeyRange::prefix(prefix).after(last);
                page = rows(&*self.tables, Read::range(POSTINGS, range, PAGE_ROWS)).await?;
            }
            self.learn_lengths(collection.number, &postings, &mut lengths).await?;
            score(collection, &postings, &lengths, &mut scores);
        }
        Ok(scores)
    }

    async fn learn_lengths(
        &self,
        collection: u64,
        postings: &[(u64, u32)],
        lengths: &mut HashMap<u64, Lengths>,
    ) -> Result<()> {
        let mut groups: Vec<u64> = postings.iter().map(|(entry, _)| entry / GROUP_ENTRIES).collect();
        groups.dedup();
        groups.retain(|group| !lengths.contains_key(group));
        for some in groups.chunks(STEP_ROWS) {
            let reads =
                some.iter().map(|group| Read::get(LENGTHS, numbered_twice(collection, *group))).collect();
            for (group, found) in some.iter().zip(self.tables.read(reads).await?) {
                let row = found.into_value();
                lengths.insert(*group, row.as_deref().map_or(Ok(Lengths::default()), Lengths::decode)?);
            }
        }
        Ok(())
    }

    /// The best entries, best first, and whether all of them were still there.
    async fn best(
        &self,
        collection: u64,
        scores: HashMap<u64, f32>,
        limit: usize,
    ) -> Result<(Vec<Match>, bool)> {
        let mut best: Vec<(u64, f32)> = scores.into_iter().collect();
        best.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        // Of those that are worth as much as the last, the ids decide.
        let worst = best.get(limit - 1).map(|(_, score)| *score);
        let end = worst.map_or(best.len(), |worst| best.partition_point(|(_, score)| *score >= worst));
        best.truncate(end);
        let mut matches: Vec<Match> = Vec::with_capacity(limit.min(best.len()));
        let mut is_whole = true;
        for some in best.chunks(STEP_ROWS) {
            let numbers: Vec<u64> = some.iter().map(|(number, _)| *number).collect();
            let mut entries = self.entries(collection, &numbers).await?;
            for (number, score) in some {
                match entries.remove(number) {
                    Some(stored) => {
                        let attributes = stored.attributes()?;
                        matches.push(Match { id: stored.id, score: *score, attributes });
                    }
                    None => is_whole = false,
                }
            }
            matches.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.id.cmp(&b.id)));
            matches.truncate(limit);
        }
        Ok((matches, is_whole))
    }

    async fn remove_all_with(&self, key: ScopeKey, prefix: &str) -> Result<()> {
        let (_, Some(collection)) = self.collection(&key).await? else { return Ok(()) };
        let mut range = KeyRange::prefix(numbered(collection.number, &[]));
        loop {
            let page = rows(&*self.tables, Read::range(ENTRIES, range.clone(), STEP_ROWS)).await?;
            let mut gone = BTreeMap::new();
            for (_, row) in &page.rows {
                let id = Stored::decode(row)?.id;
                if id.starts_with(prefix) {
                    gone.insert(id, None);
                }
            }
            if !gone.is_empty() {
                self.make(key, gone).await?;
            }
            match page.rows.last() {
                Some((last, _)) if page.more => range = range.after(last),
                _ => return Ok(()),
            }
        }
    }

    async fn remove_all(&self, key: ScopeKey) -> Result<()> {
        for _ in 0..TRIES_MAX {
            let (was, Some(collection)) = self.collection(&key).await? else { return Ok(()) };
            let prefix = numbered(collection.number, &[]);
            let mut batch = Batch::new();
            for table in [IDS, ENTRIES, LENGTHS, TERMS, POSTINGS] {
                batch.delete_prefix(table, &prefix);
            }
            batch.delete_prefix(LEAVING, key);
            batch.expect(COLLECTIONS, key, was).delete(COLLECTIONS, key);
            match self.tables.commit(batch).await {
                Err(error) if error.is_conflict() => {}
                done => return done,
            }
        }
        Err(contended())
    }
}

fn contended() -> Error {
    Error::unavailable("the keyword collection is being changed all the time; try again")
}

/// The size of a batch, as the tables count it.
fn bytes(batch: &Batch) -> usize {
    let sizes = batch.ops.iter().map(|op| match op {
        Op::Put { key, value, .. } => key.len() + value.len(),
        Op::Delete { key, .. } | Op::DeletePrefix { prefix: key, .. } => key.len(),
    });
    sizes.sum()
}

/// Adds what one term is worth to each text that has it.
fn score(
    collection: &Collection,
    postings: &[(u64, u32)],
    lengths: &HashMap<u64, Lengths>,
    scores: &mut HashMap<u64, f32>,
) {
    // One without a length is being removed.
    let length_of = |entry: &u64| lengths.get(&(entry / GROUP_ENTRIES)).map_or(0, |of| of.of(*entry));
    let there: Vec<(u64, u32, u32)> = postings
        .iter()
        .map(|(entry, count)| (*entry, *count, length_of(entry)))
        .filter(|(_, _, length)| *length > 0)
        .collect();
    let having = there.len() as f32;
    // A page of a long term may have been read after an entry was added: never fewer entries than rows.
    let entries = (collection.entries as f32).max(having);
    let mean_length = (collection.terms as f32 / entries).max(1.0);
    let rarity = (1.0 + (entries - having + 0.5) / (having + 0.5)).ln();
    for (entry, count, length) in there {
        let (count, length) = (count as f32, length as f32);
        let weight = count * (K1 + 1.0) / (count + K1 * (1.0 - B + B * length / mean_length));
        *scores.entry(entry).or_insert(0.0) += rarity * weight;
    }
}

impl Keywords for TableKeywords {
    fn upsert<'a>(&'a self, scope: Scope<'a>, entries: Vec<KeywordEntry>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let mut new = BTreeMap::new();
            for KeywordEntry { id, text, attributes } in entries {
                check_id(&id)?;
                new.insert(id, Some(Entry::new(&text, attributes)));
            }
            if new.is_empty() { Ok(()) } else { self.make(scope_key(scope), new).await }
        })
    }

    fn remove<'a>(&'a self, scope: Scope<'a>, ids: &'a [String]) -> BoxFuture<'a, Result<()>> {
        let gone: Replacement = ids.iter().map(|id| (id.clone(), None)).collect();
        Box::pin(
            async move { if gone.is_empty() { Ok(()) } else { self.make(scope_key(scope), gone).await } },
        )
    }

    fn remove_prefix<'a>(&'a self, scope: Scope<'a>, prefix: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.remove_all_with(scope_key(scope), prefix))
    }

    fn remove_collection<'a>(&'a self, scope: Scope<'a>) -> BoxFuture<'a, Result<()>> {
        let (this, key) = (self.clone(), scope_key(scope));
        Box::pin(to_the_end(async move { this.remove_all(key).await }))
    }

    fn search<'a>(
        &'a self,
        scope: Scope<'a>,
        query: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Match>>> {
        Box::pin(self.search_all(scope, query, limit))
    }
}

#[cfg(test)]
mod tests;
