//! A keyword index over tables: for each term the texts that have it, ranked by BM25.
//!
//! A search reads the rows of its own terms only. How many texts there are and how long they are together stands in one
//! row, which every write expects as it read it; so writes to one collection take turns, and nothing is counted twice.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::keys::{ScopeKey, check_id, id_in, join, rows, scope_key, to_the_end};
use crate::terms::terms;
use crate::{
    Attributes, Batch, BoxFuture, Error, Found, KeyRange, KeywordEntry, Keywords, Match, Read, Result, Rows,
    Scope, Tables,
};

const COLLECTIONS: &str = "keywords.collections";
const ENTRIES: &str = "keywords.entries";
const POSTINGS: &str = "keywords.postings";

/// Terms of a query that count; further ones are left out.
pub const QUERY_TERMS_MAX: usize = 64;
/// Rows of one term read at once.
const PAGE_ROWS: usize = 8192;
/// Entries removed in one step when removing by prefix.
const REMOVE_ROWS: usize = 256;
/// How often a write begins again because another process changed the collection meanwhile.
const TRIES_MAX: usize = 16;
const STRIPES: usize = 64;

// The customary constants of BM25.
const K1: f32 = 1.2;
const B: f32 = 0.75;

/// Keywords over tables.
#[derive(Clone)]
pub struct TableKeywords {
    tables: Arc<dyn Tables>,
    /// Writers of this process take turns per collection instead of refusing each other. A turn is held across reads
    /// and the commit, which never wait for it.
    turns: Arc<Vec<tokio::sync::Mutex<()>>>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Totals {
    entries: u64,
    terms: u64,
    writes: u64,
}

impl Totals {
    fn encode(self) -> Vec<u8> {
        [self.entries, self.terms, self.writes].iter().flat_map(|n| n.to_le_bytes()).collect()
    }

    fn decode(row: Option<&Bytes>) -> Result<Self> {
        let Some(row) = row else { return Ok(Self::default()) };
        let [entries, terms, writes] =
            row.as_chunks().0.try_into().map_err(|e| Error::damaged("a keyword collection", &e))?;
        let [entries, terms, writes] = [entries, terms, writes].map(u64::from_le_bytes);
        Ok(Self { entries, terms, writes })
    }
}

/// What is kept of a text.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    #[serde(rename = "n")]
    length: u32,
    #[serde(rename = "t")]
    counts: BTreeMap<String, u32>,
    #[serde(rename = "a", default, skip_serializing_if = "Attributes::is_empty")]
    attributes: Attributes,
}

impl Entry {
    fn new(text: &str, attributes: Attributes) -> Self {
        let (mut counts, mut length) = (BTreeMap::new(), 0_u32);
        for term in terms(text) {
            *counts.entry(term).or_insert(0_u32) += 1;
            length = length.saturating_add(1);
        }
        Self { length, counts, attributes }
    }

    fn decode(row: &[u8]) -> Result<Self> {
        serde_json::from_slice(row).map_err(|e| Error::damaged("a keyword entry", &e))
    }
}

fn posting_key(key: &ScopeKey, term: &str, id: &str) -> Vec<u8> {
    // A term holds letters and digits only, so a zero ends it.
    join(&[key, term.as_bytes(), &[0], id.as_bytes()])
}

fn posting(count: u32, length: u32) -> Vec<u8> {
    [count.to_le_bytes(), length.to_le_bytes()].concat()
}

impl TableKeywords {
    /// Keywords over these tables.
    pub fn new(tables: Arc<dyn Tables>) -> Self {
        let turns = (0..STRIPES).map(|_| tokio::sync::Mutex::new(())).collect();
        Self { tables, turns: Arc::new(turns) }
    }

    /// Replaces entries: `Some` by a new one, `None` by nothing.
    async fn replace(self, key: ScopeKey, entries: BTreeMap<String, Option<Entry>>) -> Result<()> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let stripe = usize::try_from(hasher.finish() % STRIPES as u64).unwrap_or(0);
        let _turn = self.turns[stripe].lock().await;
        for _ in 0..TRIES_MAX {
            let Some(batch) = self.replacement(&key, &entries).await? else { return Ok(()) };
            match self.tables.commit(batch).await {
                Err(error) if error.is_conflict() => {}
                done => return done,
            }
        }
        Err(Error::unavailable("the keyword collection is being changed all the time; try again"))
    }

    /// The batch that replaces entries, given what is there now; `None` if there is nothing to do.
    async fn replacement(
        &self,
        key: &ScopeKey,
        entries: &BTreeMap<String, Option<Entry>>,
    ) -> Result<Option<Batch>> {
        let mut reads = vec![Read::get(COLLECTIONS, key)];
        reads.extend(entries.keys().map(|id| Read::get(ENTRIES, join(&[key, id.as_bytes()]))));
        let mut found = self.tables.read(reads).await?.into_iter().map(Found::into_value);
        let was = found.next().flatten();
        let mut totals = Totals::decode(was.as_ref())?;
        let mut batch = Batch::new();
        for ((id, new), old) in entries.iter().zip(found) {
            let row_key = join(&[key, id.as_bytes()]);
            if let Some(old) = old.as_deref().map(Entry::decode).transpose()? {
                totals.entries = totals.entries.saturating_sub(1);
                totals.terms = totals.terms.saturating_sub(u64::from(old.length));
                for term in old.counts.keys() {
                    batch.delete(POSTINGS, posting_key(key, term, id));
                }
                batch.delete(ENTRIES, &row_key);
            }
            if let Some(new) = new {
                totals.entries += 1;
                totals.terms += u64::from(new.length);
                for (term, &count) in &new.counts {
                    batch.put(POSTINGS, posting_key(key, term, id), posting(count, new.length));
                }
                let row = serde_json::to_vec(new)
                    .map_err(|e| Error::Refused { reason: format!("labels do not serialise: {e}") })?;
                batch.put(ENTRIES, &row_key, row);
            }
        }
        if batch.is_empty() {
            return Ok(None);
        }
        totals.writes += 1;
        batch.expect(COLLECTIONS, key, was).put(COLLECTIONS, key, totals.encode());
        if entries.values().all(Option::is_none) {
            batch.essential();
        }
        Ok(Some(batch))
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
        let prefixes: Vec<_> = wanted.iter().map(|term| posting_key(&key, term, "")).collect();
        let mut reads = vec![Read::get(COLLECTIONS, key)];
        reads.extend(prefixes.iter().map(|prefix| Read::prefix(POSTINGS, prefix, PAGE_ROWS)));
        let mut found = self.tables.read(reads).await?.into_iter();
        let totals = Totals::decode(found.next().and_then(Found::into_value).as_ref())?;

        let mut scores: HashMap<String, f32> = HashMap::new();
        for (prefix, first) in prefixes.iter().zip(found) {
            let postings = self.whole_term(prefix, first.into_rows()).await?;
            score(totals, prefix.len(), &postings, &mut scores)?;
        }
        let mut best: Vec<_> = scores.into_iter().collect();
        best.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        best.truncate(limit);
        self.with_labels(&key, best).await
    }

    /// All rows of a term, given the first of them.
    async fn whole_term(&self, prefix: &[u8], mut page: Rows) -> Result<Vec<(Bytes, Bytes)>> {
        let mut postings = Vec::new();
        loop {
            let more = page.more;
            postings.append(&mut page.rows);
            let Some((last, _)) = postings.last().filter(|_| more) else { return Ok(postings) };
            let range = KeyRange::prefix(prefix).after(last);
            page = rows(&*self.tables, Read::range(POSTINGS, range, PAGE_ROWS)).await?;
        }
    }

    async fn with_labels(&self, key: &ScopeKey, best: Vec<(String, f32)>) -> Result<Vec<Match>> {
        let reads = best.iter().map(|(id, _)| Read::get(ENTRIES, join(&[key, id.as_bytes()]))).collect();
        let found = self.tables.read(reads).await?;
        let mut matches = Vec::with_capacity(best.len());
        for ((id, score), found) in best.into_iter().zip(found) {
            // One that was removed a moment ago is left out.
            if let Some(row) = found.into_value() {
                matches.push(Match { id, score, attributes: Entry::decode(&row)?.attributes });
            }
        }
        Ok(matches)
    }

    async fn remove_all_with(self, key: ScopeKey, prefix: String) -> Result<()> {
        let start = join(&[&key, prefix.as_bytes()]);
        loop {
            let page = rows(&*self.tables, Read::prefix(ENTRIES, &start, REMOVE_ROWS)).await?;
            let mut gone = BTreeMap::new();
            for (row_key, _) in &page.rows {
                gone.insert(id_in(row_key, size_of::<ScopeKey>())?.to_owned(), None);
            }
            self.clone().replace(key, gone).await?;
            if !page.more {
                return Ok(());
            }
        }
    }
}

/// Adds what one term is worth to each text that has it.
fn score(
    totals: Totals,
    prefix_bytes: usize,
    postings: &[(Bytes, Bytes)],
    scores: &mut HashMap<String, f32>,
) -> Result<()> {
    let having = postings.len() as f32;
    // A page of a long term may have been read after an entry was added: never fewer entries than rows.
    let entries = (totals.entries as f32).max(having);
    let mean_length = (totals.terms as f32 / entries).max(1.0);
    let rarity = (1.0 + (entries - having + 0.5) / (having + 0.5)).ln();
    for (key, value) in postings {
        let (count, length) = value
            .split_first_chunk()
            .and_then(|(count, length)| {
                Some((u32::from_le_bytes(*count), u32::from_le_bytes(length.try_into().ok()?)))
            })
            .ok_or_else(|| Error::damaged("a keyword row", &"it is cut short"))?;
        let (count, length) = (count as f32, length as f32);
        let weight = count * (K1 + 1.0) / (count + K1 * (1.0 - B + B * length / mean_length));
        *scores.entry(id_in(key, prefix_bytes)?.to_owned()).or_insert(0.0) += rarity * weight;
    }
    Ok(())
}

impl Keywords for TableKeywords {
    fn upsert<'a>(&'a self, scope: Scope<'a>, entries: Vec<KeywordEntry>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let mut new = BTreeMap::new();
            for KeywordEntry { id, text, attributes } in entries {
                check_id(&id)?;
                new.insert(id, Some(Entry::new(&text, attributes)));
            }
            to_the_end(self.clone().replace(scope_key(scope), new)).await
        })
    }

    fn remove<'a>(&'a self, scope: Scope<'a>, ids: &'a [String]) -> BoxFuture<'a, Result<()>> {
        let gone = ids.iter().map(|id| (id.clone(), None)).collect();
        Box::pin(to_the_end(self.clone().replace(scope_key(scope), gone)))
    }

    fn remove_prefix<'a>(&'a self, scope: Scope<'a>, prefix: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(to_the_end(self.clone().remove_all_with(scope_key(scope), prefix.to_owned())))
    }

    fn remove_collection<'a>(&'a self, scope: Scope<'a>) -> BoxFuture<'a, Result<()>> {
        let key = scope_key(scope);
        let mut batch = Batch::new();
        batch.delete_prefix(ENTRIES, key).delete_prefix(POSTINGS, key).delete(COLLECTIONS, key);
        self.tables.commit(batch)
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
