//! Vectors over tables: durable rows, searched exactly, with the collections searched lately in memory.
//!
//! A write goes to the tables and then names to the cache what it touched; the next search reads those rows again before
//! it looks, so it sees every write acknowledged before it, in whatever order writes and searches meet. A collection
//! that does not fit into memory is searched from the tables, page by page, with the same answers.
//!
//! **Assumes.** One process writes. The cache hears of no other's writes.

mod cache;
mod matrix;
mod row;

use std::sync::Arc;

use cache::{Cache, Loaded, State, Touched};
use matrix::{Best, Matrix, dot};

use crate::keys::{ScopeKey, blocking, check_id, fewer, id_in, join, rows, scope_key, to_the_end};
use crate::{
    Attributes, Batch, BoxFuture, Error, Found, KeyRange, Match, Read, Result, Scope, Tables, VectorEntry,
    Vectors,
};

const COLLECTIONS: &str = "vectors.collections";
const ENTRIES: &str = "vectors";
/// Rows read at once while a collection is loaded or searched from the tables.
const PAGE_ROWS: usize = 4096;
/// Rows read at once while single entries are refreshed.
const REFRESH_ROWS: usize = 512;
/// How often a write begins again because somebody changed the collection meanwhile.
const TRIES_MAX: usize = 16;

/// Vectors over tables.
#[derive(Clone)]
pub struct TableVectors {
    tables: Arc<dyn Tables>,
    cache: Arc<Cache>,
}

impl TableVectors {
    /// Vectors over these tables, with this much memory for collections.
    pub fn new(tables: Arc<dyn Tables>, vectors_bytes_max: usize) -> Self {
        Self { tables, cache: Arc::new(Cache::new(vectors_bytes_max)) }
    }

    async fn dimension_row(&self, key: &ScopeKey) -> Result<Option<bytes::Bytes>> {
        let found = self.tables.read(vec![Read::get(COLLECTIONS, key)]).await?;
        Ok(found.into_iter().next().and_then(Found::into_value))
    }

    /// Commits a batch, then tells the cache; not left half done if the caller leaves.
    async fn write(&self, key: ScopeKey, batch: Batch, touched: Touched) -> Result<()> {
        let this = self.clone();
        to_the_end(async move {
            let committed = this.tables.commit(batch).await;
            this.cache.touch(&key, touched);
            committed
        })
        .await
    }

    async fn upsert_all(&self, scope: Scope<'_>, entries: Vec<VectorEntry>) -> Result<()> {
        let Some(first) = entries.first() else { return Ok(()) };
        let (key, dimension) = (scope_key(scope), first.vector.len());
        let mut puts = Batch::new();
        for entry in &entries {
            check_id(&entry.id)?;
            same_dimension(scope, dimension, entry.vector.len())?;
            puts.put(
                ENTRIES,
                join(&[&key, entry.id.as_bytes()]),
                row::encode(&entry.vector, &entry.attributes)?,
            );
        }
        for _ in 0..TRIES_MAX {
            let was = self.dimension_row(&key).await?;
            if let Some(row) = &was {
                same_dimension(scope, row::dimension(row)?, dimension)?;
            }
            let mut batch = puts.clone();
            if was.is_none() {
                batch.put(COLLECTIONS, key, row::dimension_bytes(dimension).to_vec());
            }
            batch.expect(COLLECTIONS, key, was);
            let ids = entries.iter().map(|entry| entry.id.clone());
            match self.write(key, batch, Touched::ids(ids)).await {
                Err(error) if error.is_conflict() => {}
                done => return done,
            }
        }
        Err(Error::unavailable(format!("collection '{}' is being changed all the time", scope.collection)))
    }

    async fn remove_ids(&self, key: ScopeKey, ids: &[String]) -> Result<()> {
        let (mut left, mut rows_max) = (ids, ids.len());
        while !left.is_empty() {
            let (some, rest) = left.split_at(rows_max.min(left.len()));
            let mut batch = Batch::new();
            for id in some {
                batch.delete(ENTRIES, join(&[&key, id.as_bytes()]));
            }
            match self.write(key, batch, Touched::ids(some.iter().cloned())).await {
                Ok(()) => left = rest,
                Err(error) => rows_max = fewer(rows_max, error)?,
            }
        }
        Ok(())
    }

    /// Puts down again how long the vectors of collections are of which that was lost with a damaged disk.
    ///
    /// # Errors
    /// As reads and commits of the tables.
    pub(crate) async fn rebuild(&self) -> Result<()> {
        let mut range = KeyRange::all();
        while let Some((key, row)) =
            rows(&*self.tables, Read::range(ENTRIES, range.clone(), 1)).await?.rows.first()
        {
            let key: &ScopeKey =
                key.first_chunk().ok_or_else(|| Error::damaged("the key of a vector", &"it is cut short"))?;
            if self.dimension_row(key).await?.is_none() {
                let (numbers, _) = row::split(row)?;
                let mut batch = Batch::new();
                batch.put(COLLECTIONS, key, row::dimension_bytes(numbers.len()).to_vec());
                self.tables.commit(batch).await?;
            }
            let Some(behind) = KeyRange::prefix(key).to else { break };
            range.from = behind;
        }
        Ok(())
    }

    /// Brings the collection in memory up to date; at most one does that at a time.
    async fn refresh(&self, key: &ScopeKey, loaded: &Arc<Loaded>, dimension: usize) -> Result<()> {
        let _turn = loaded.turn.lock().await;
        let touched = loaded.take_touched();
        let stale = {
            let loaded = Arc::clone(loaded);
            blocking(move || Ok(loaded.to_reread(touched, dimension))).await
        };
        let refreshed = match stale {
            Ok(None) => self.load(key, loaded, dimension).await,
            Ok(Some(ids)) => self.reread(key, loaded, ids).await,
            Err(error) => Err(error),
        };
        if refreshed.is_err() {
            loaded.touch(Touched::all());
        }
        refreshed
    }

    async fn load(&self, key: &ScopeKey, loaded: &Arc<Loaded>, dimension: usize) -> Result<()> {
        loaded.set(State::Unknown);
        let mut matrix = Matrix::new(dimension);
        let mut range = KeyRange::prefix(key);
        loop {
            let page = rows(&*self.tables, Read::range(ENTRIES, range.clone(), PAGE_ROWS)).await?;
            let last = page.rows.last().map(|(key, _)| key.clone());
            let more = page.more;
            matrix = blocking(move || {
                for (key, value) in &page.rows {
                    matrix.set(id_in(key, size_of::<ScopeKey>())?, value)?;
                }
                Ok(matrix)
            })
            .await?;
            if !self.cache.make_room(key, matrix.bytes()) {
                loaded.set(State::TooLarge);
                return Ok(());
            }
            match last {
                Some(last) if more => range = range.after(last),
                _ => break,
            }
        }
        loaded.set(State::Matrix(matrix));
        Ok(())
    }

    async fn reread(&self, key: &ScopeKey, loaded: &Arc<Loaded>, ids: Vec<String>) -> Result<()> {
        for some in ids.chunks(REFRESH_ROWS) {
            let reads = some.iter().map(|id| Read::get(ENTRIES, join(&[key, id.as_bytes()]))).collect();
            let found = self.tables.read(reads).await?;
            let (loaded, ids) = (Arc::clone(loaded), some.to_vec());
            let bytes = blocking(move || loaded.apply(&ids, found)).await?;
            if !self.cache.make_room(key, bytes) {
                // It has outgrown the memory.
                self.cache.forget(key);
            }
        }
        Ok(())
    }

    async fn search_all(
        &self,
        scope: Scope<'_>,
        vector: &[f32],
        limit: usize,
        filter: &Attributes,
    ) -> Result<Vec<Match>> {
        let vector = row::normalised(vector)?;
        let key = scope_key(scope);
        let Some(row) = self.dimension_row(&key).await? else { return Ok(Vec::new()) };
        let dimension = row::dimension(&row)?;
        same_dimension(scope, dimension, vector.len())?;
        if limit == 0 {
            return Ok(Vec::new());
        }
        let loaded = self.cache.entry(&key);
        self.refresh(&key, &loaded, dimension).await?;
        let vector = Arc::new(vector);
        let mut best = Best::new(limit, filter.clone());
        let (best, in_memory) = {
            let vector = Arc::clone(&vector);
            blocking(move || loaded.search(&vector, &mut best).map(|done| (best, done))).await?
        };
        let best = if in_memory { best } else { self.search_tables(&key, vector, best).await? };
        Ok(best.into_matches())
    }

    async fn search_tables(&self, key: &ScopeKey, vector: Arc<Vec<f32>>, mut best: Best) -> Result<Best> {
        let mut range = KeyRange::prefix(key);
        loop {
            let page = rows(&*self.tables, Read::range(ENTRIES, range.clone(), PAGE_ROWS)).await?;
            let last = page.rows.last().map(|(key, _)| key.clone());
            let more = page.more;
            let vector = Arc::clone(&vector);
            best = blocking(move || {
                for (key, value) in &page.rows {
                    let (numbers, attributes) = row::split(value)?;
                    let numbers: Vec<f32> = numbers.iter().collect();
                    let score = dot(&vector, &numbers);
                    if numbers.len() == vector.len() && best.wants(score) {
                        best.offer(score, id_in(key, size_of::<ScopeKey>())?, attributes)?;
                    }
                }
                Ok(best)
            })
            .await?;
            match last {
                Some(last) if more => range = range.after(last),
                _ => return Ok(best),
            }
        }
    }
}

fn same_dimension(scope: Scope<'_>, wanted: usize, got: usize) -> Result<()> {
    if wanted == got {
        return Ok(());
    }
    Err(Error::Dimension { collection: scope.collection.to_owned(), wanted, got })
}

impl Vectors for TableVectors {
    fn upsert<'a>(&'a self, scope: Scope<'a>, entries: Vec<VectorEntry>) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.upsert_all(scope, entries))
    }

    fn remove<'a>(&'a self, scope: Scope<'a>, ids: &'a [String]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.remove_ids(scope_key(scope), ids))
    }

    fn remove_prefix<'a>(&'a self, scope: Scope<'a>, prefix: &'a str) -> BoxFuture<'a, Result<()>> {
        let key = scope_key(scope);
        let mut batch = Batch::new();
        batch.delete_prefix(ENTRIES, join(&[&key, prefix.as_bytes()]));
        Box::pin(self.write(key, batch, Touched::prefix(prefix)))
    }

    fn remove_collection<'a>(&'a self, scope: Scope<'a>) -> BoxFuture<'a, Result<()>> {
        let key = scope_key(scope);
        let mut batch = Batch::new();
        batch.delete_prefix(ENTRIES, key).delete(COLLECTIONS, key);
        Box::pin(async move {
            self.write(key, batch, Touched::all()).await?;
            self.cache.forget(&key);
            Ok(())
        })
    }

    fn search<'a>(
        &'a self,
        scope: Scope<'a>,
        vector: &'a [f32],
        limit: usize,
        filter: &'a Attributes,
    ) -> BoxFuture<'a, Result<Vec<Match>>> {
        Box::pin(self.search_all(scope, vector, limit, filter))
    }
}
