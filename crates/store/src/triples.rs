//! Statements over tables: terms have numbers, and statements are three orders of these numbers.
//!
//! Each collection has a number and a dictionary, from the digest of a term to its number and from the number to the term.
//! A key is the collection's number and those of the four terms in one order, the graph last; whichever terms a pattern
//! names, one of the orders has them in front. Numbers take one to three bytes mostly, so a statement whose terms are known
//! takes three short rows.
//!
//! Each write expects the row of its collection as it read it, and changes it; so a term that nothing uses any more can go
//! with the last statement that did. Writes of one process to one collection take turns, and what waits for its turn is
//! committed together.

mod earlier;
mod rebuild;
mod term;

pub(crate) use earlier::EARLIER;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use sluice_schema::ceilings::TERM_BYTES_MAX;
use sluice_schema::message::{Term, Triple};

use crate::keys::{ScopeKey, fewer, numbered, put_number, rows, scope_key, take_number};
use crate::turns::{Load, Turns, Waiting};
use crate::{
    Batch, BoxFuture, Cursor, Error, Found, KeyRange, Page, Pattern, Read, Result, Scope, Tables, Triples,
};

/// What is known of a collection, by workspace and collection; in one row more the number of the next collection.
const SCOPES: &str = "graph.collections";
const NEXT_SCOPE: &[u8] = b"next";
/// The number of a term, by collection and digest.
const NUMBERS: &str = "graph.numbers";
/// A term, by collection and number.
const TERMS: &str = "graph.terms";

const DIGEST_BYTES: usize = 16;
/// Rows looked at per read while a query looks for matches.
const PAGE_ROWS: usize = 1024;
/// Statements removed in one step.
const REMOVE_ROWS: usize = 512;
/// Statements and bytes of what waits that are committed together.
const TOGETHER_MAX: Load = Load { things: 20_000, bytes: 16 * 1024 * 1024 };
/// How often a write begins again because another process changed the collection meanwhile.
const TRIES_MAX: usize = 16;
/// The number of the default graph.
const DEFAULT_GRAPH: u64 = 0;

/// An order of the terms in a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Order {
    table: &'static str,
    /// For each place in the key, which of subject, predicate and object stands there.
    places: [usize; 3],
}

const ORDERS: [Order; 3] = [
    Order { table: "graph.spo", places: [0, 1, 2] },
    Order { table: "graph.pos", places: [1, 2, 0] },
    Order { table: "graph.osp", places: [2, 0, 1] },
];

/// A statement by its numbers: subject, predicate, object, graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Quad([u64; 4]);

impl Quad {
    fn key(&self, scope: u64, order: Order) -> Vec<u8> {
        let mut key = Vec::with_capacity(16);
        put_number(scope, &mut key);
        for place in order.places {
            put_number(self.0[place], &mut key);
        }
        put_number(self.0[3], &mut key);
        key
    }

    fn from_key(mut key: &[u8], order: Order) -> Result<Self> {
        let mut next = || {
            take_number(&mut key).ok_or_else(|| Error::damaged("the key of a statement", &"it is cut short"))
        };
        let mut quad = [0; 4];
        next()?;
        for place in order.places {
            quad[place] = next()?;
        }
        quad[3] = next()?;
        Ok(Self(quad))
    }
}

fn digest_key(scope: u64, term: &[u8]) -> Vec<u8> {
    numbered(scope, &Sha256::digest(term)[..DIGEST_BYTES])
}

fn term_key(scope: u64, number: u64) -> Vec<u8> {
    let mut key = numbered(scope, &[]);
    put_number(number, &mut key);
    key
}

/// The row of a collection.
#[derive(Debug, Clone, Copy)]
struct Collection {
    number: u64,
    next_term: u64,
    writes: u64,
}

impl Collection {
    fn encode(self) -> Vec<u8> {
        [self.number, self.next_term, self.writes].iter().flat_map(|n| n.to_le_bytes()).collect()
    }

    fn decode(row: &[u8]) -> Result<Self> {
        let [number, next_term, writes] =
            row.as_chunks().0.try_into().map_err(|e| Error::damaged("a collection of statements", &e))?;
        let [number, next_term, writes] = [number, next_term, writes].map(u64::from_le_bytes);
        Ok(Self { number, next_term, writes })
    }
}

/// A statement by its terms as they rest: subject, predicate, object, and the name of the graph.
type Encoded = [Vec<u8>; 4];

fn encoded(triple: &Triple) -> Result<Encoded> {
    let [s, p, o] = term::terms_of(triple)?;
    Ok([
        term::encode(s)?,
        term::encode(p)?,
        term::encode(o)?,
        term::encode_graph(triple.g.as_deref().unwrap_or_default()),
    ])
}

/// A pattern by its terms as they rest.
type Sought = [Option<Vec<u8>>; 4];

fn sought(pattern: &Pattern) -> Result<Sought> {
    let term = |term: &Option<Term>| term.as_ref().map(term::encode).transpose();
    let graph = pattern.g.as_deref().map(term::encode_graph);
    Ok([term(&pattern.s)?, term(&pattern.p)?, term(&pattern.o)?, graph])
}

/// A pattern by its numbers.
struct Wanted([Option<u64>; 4]);

impl Wanted {
    fn matches(&self, quad: &Quad) -> bool {
        self.0.iter().zip(&quad.0).all(|(wanted, is)| wanted.is_none_or(|wanted| wanted == *is))
    }

    /// The order with most of the pattern in front, and what is in front.
    fn start(&self, scope: u64) -> (Order, Vec<u8>) {
        let in_front = |order: Order| {
            let numbers = order.places.into_iter().map_while(move |place| self.0[place]);
            numbers.collect::<Vec<_>>()
        };
        let mut best = (ORDERS[0], in_front(ORDERS[0]));
        for order in &ORDERS[1..] {
            let front = in_front(*order);
            if front.len() > best.1.len() {
                best = (*order, front);
            }
        }
        let (order, mut front) = best;
        if front.len() == 3 {
            front.extend(self.0[3]);
        }
        let mut key = numbered(scope, &[]);
        front.into_iter().for_each(|number| put_number(number, &mut key));
        (order, key)
    }
}

#[derive(Debug)]
enum Change {
    Add(Vec<Encoded>),
    /// Exactly these.
    Remove(Vec<Encoded>),
    /// All that match.
    RemoveMatching(Sought),
}

impl Change {
    fn load(&self) -> Load {
        match self {
            Self::Add(some) | Self::Remove(some) => {
                Load { things: some.len(), bytes: some.iter().flatten().map(Vec::len).sum() }
            }
            Self::RemoveMatching(_) => Load { things: 0, bytes: 0 },
        }
    }
}

/// What a removal is about.
#[derive(Clone, Copy)]
enum Going<'a> {
    These(&'a [Encoded]),
    /// So many of those that match.
    Matching(&'a Sought, usize),
}

/// Triples over tables.
#[derive(Clone)]
pub struct TableTriples {
    tables: Arc<dyn Tables>,
    turns: Arc<Turns<Change>>,
}

impl TableTriples {
    /// Triples over these tables.
    pub fn new(tables: Arc<dyn Tables>) -> Self {
        Self { tables, turns: Turns::new(TOGETHER_MAX) }
    }

    /// Moves statements here that an earlier version stored in another way. May be cut off and repeated.
    ///
    /// # Errors
    /// As reads and commits of the tables.
    pub(crate) async fn take_over(&self) -> Result<()> {
        earlier::take_over(self).await
    }

    async fn collection(&self, key: &ScopeKey) -> Result<(Option<Bytes>, Option<Collection>)> {
        let found = self.tables.read(vec![Read::get(SCOPES, key)]).await?;
        let row = found.into_iter().next().and_then(Found::into_value);
        let collection = row.as_deref().map(Collection::decode).transpose()?;
        Ok((row, collection))
    }

    /// The numbers of terms, where they have one.
    async fn numbers(&self, scope: u64, terms: &[&[u8]]) -> Result<Vec<Option<u64>>> {
        let reads = terms.iter().map(|term| Read::get(NUMBERS, digest_key(scope, term))).collect();
        let found = self.tables.read(reads).await?.into_iter().map(Found::into_value);
        let number = |row: Bytes| {
            take_number(&mut &row[..])
                .ok_or_else(|| Error::damaged("the number of a term", &"it is cut short"))
        };
        found.map(|row| row.map(number).transpose()).collect()
    }

    /// The numbers of a pattern; `None` if nothing can match, as a term has none.
    async fn wanted(&self, scope: u64, sought: &Sought) -> Result<Option<Wanted>> {
        let is_default = |at: usize, term: &[u8]| at == 3 && term::is_default_graph(term);
        let given = |(at, term): (usize, &'_ Option<Vec<u8>>)| term.clone().map(|term| (at, term));
        let terms: Vec<(usize, Vec<u8>)> = sought.iter().enumerate().filter_map(given).collect();
        let looked: Vec<&[u8]> = terms.iter().map(|(_, term)| &term[..]).collect();
        let mut wanted = [None; 4];
        for ((at, term), number) in terms.iter().zip(self.numbers(scope, &looked).await?) {
            let number = if is_default(*at, term) { Some(DEFAULT_GRAPH) } else { number };
            let Some(number) = number else { return Ok(None) };
            wanted[*at] = Some(number);
        }
        Ok(Some(Wanted(wanted)))
    }

    /// Up to `limit` matches from a cursor; with the cursor to go on from.
    async fn find(
        &self,
        scope: u64,
        wanted: &Wanted,
        from: Option<Cursor>,
        limit: usize,
    ) -> Result<(Vec<Quad>, Option<Cursor>)> {
        let (order, front) = wanted.start(scope);
        let mut range = KeyRange::prefix(front);
        if let Some(Cursor(key)) = from {
            range = range.after(key);
        }
        let mut found = Vec::new();
        loop {
            let page = rows(&*self.tables, Read::range(order.table, range.clone(), PAGE_ROWS)).await?;
            let more = page.more;
            let mut last = None;
            for (key, _) in page.rows {
                let quad = Quad::from_key(&key, order)?;
                if wanted.matches(&quad) {
                    if found.len() == limit {
                        return Ok((found, last.map(Cursor)));
                    }
                    found.push(quad);
                }
                last = Some(key);
            }
            match last {
                Some(last) if more && found.len() == limit => return Ok((found, Some(Cursor(last)))),
                Some(last) if more => range = range.after(last),
                _ => return Ok((found, None)),
            }
        }
    }

    async fn query_page(
        &self,
        scope: Scope<'_>,
        pattern: &Pattern,
        from: Option<Cursor>,
        limit: usize,
    ) -> Result<Page> {
        if limit == 0 {
            return Ok(Page::default());
        }
        let sought = sought(pattern)?;
        let (_, Some(Collection { number: scope, .. })) = self.collection(&scope_key(scope)).await? else {
            return Ok(Page::default());
        };
        let Some(wanted) = self.wanted(scope, &sought).await? else { return Ok(Page::default()) };
        let (quads, next) = self.find(scope, &wanted, from, limit).await?;
        let numbers: BTreeSet<u64> = quads.iter().flat_map(|quad| quad.0).collect();
        let numbers: Vec<u64> = numbers.into_iter().collect();
        let mut terms: HashMap<u64, Bytes> = HashMap::new();
        for some in numbers.chunks(PAGE_ROWS) {
            let reads = some.iter().map(|number| Read::get(TERMS, term_key(scope, *number))).collect();
            let found = self.tables.read(reads).await?.into_iter().map(Found::into_value);
            terms.extend(some.iter().zip(found).filter_map(|(number, row)| Some((*number, row?))));
        }
        let mut triples = Vec::with_capacity(quads.len());
        for Quad([s, p, o, g]) in quads {
            // One that was removed a moment ago is left out.
            let (Some(s), Some(p), Some(o)) = (terms.get(&s), terms.get(&p), terms.get(&o)) else { continue };
            let graph = match g {
                DEFAULT_GRAPH => None,
                named => match terms.get(&named) {
                    Some(name) => Some(term::decode_graph(name)?),
                    None => continue,
                },
            };
            let (s, p, o) = (term::decode(s)?, term::decode(p)?, term::decode(o)?);
            triples.push(Triple { s: Some(s), p: Some(p), o: Some(o), g: graph });
        }
        Ok(Page { triples, next })
    }

    /// Makes a change when its turn comes, together with others that wait.
    async fn make(&self, key: ScopeKey, change: Change) -> Result<()> {
        let (this, load) = (self.clone(), change.load());
        self.turns.make(key, change, load, async move |next| this.make_all(key, next).await).await
    }

    /// Makes changes in their order; neighbours of one kind in one commit.
    async fn make_all(&self, key: ScopeKey, waiting: Vec<Waiting<Change>>) {
        let mut waiting = waiting.into_iter().peekable();
        while let Some(first) = waiting.next() {
            let mut waiters = vec![first.done];
            let made = match first.change {
                Change::Add(mut statements) => {
                    while let Some(next) = waiting.next_if(|next| matches!(next.change, Change::Add(_))) {
                        let Change::Add(more) = next.change else { continue };
                        statements.extend(more);
                        waiters.push(next.done);
                    }
                    self.add_missing(key, &statements).await
                }
                Change::Remove(mut statements) => {
                    while let Some(next) = waiting.next_if(|next| matches!(next.change, Change::Remove(_))) {
                        let Change::Remove(more) = next.change else { continue };
                        statements.extend(more);
                        waiters.push(next.done);
                    }
                    self.remove_these(key, &statements).await
                }
                Change::RemoveMatching(sought) => self.remove_matching(key, &sought).await,
            };
            for done in waiters {
                let _ = done.send(made.clone());
            }
        }
    }

    /// Adds what is not there; many statements come with every document.
    pub(crate) async fn add_missing(&self, key: ScopeKey, statements: &[Encoded]) -> Result<()> {
        for _ in 0..TRIES_MAX {
            let Some(batch) = self.addition(&key, statements).await? else { return Ok(()) };
            match self.tables.commit(batch).await {
                Err(error) if error.is_conflict() => {}
                done => return done,
            }
        }
        Err(contended())
    }

    /// The batch that adds what is missing; `None` if nothing is.
    async fn addition(&self, key: &ScopeKey, statements: &[Encoded]) -> Result<Option<Batch>> {
        let mut batch = Batch::new();
        let (was, collection) = self.collection(key).await?;
        let mut collection = match collection {
            Some(collection) => collection,
            None => {
                let found = self.tables.read(vec![Read::get(SCOPES, NEXT_SCOPE)]).await?;
                let next = found.into_iter().next().and_then(Found::into_value);
                let number = next.as_deref().map_or(Ok(0), |row| {
                    row.try_into().map(u64::from_le_bytes).map_err(|e| Error::damaged("a number", &e))
                })?;
                batch.expect(SCOPES, NEXT_SCOPE, next);
                batch.put(SCOPES, NEXT_SCOPE, (number + 1).to_le_bytes().to_vec());
                Collection { number, next_term: DEFAULT_GRAPH + 1, writes: 0 }
            }
        };
        let scope = collection.number;
        let terms: BTreeSet<&[u8]> = statements
            .iter()
            .flatten()
            .map(|term| &term[..])
            .filter(|t| !term::is_default_graph(t))
            .collect();
        let terms: Vec<&[u8]> = terms.into_iter().collect();
        let known_up_to = collection.next_term;
        let mut numbers: HashMap<&[u8], u64> = HashMap::with_capacity(terms.len());
        let found = if was.is_some() { self.numbers(scope, &terms).await? } else { vec![None; terms.len()] };
        for (term, number) in terms.into_iter().zip(found) {
            let number = number.unwrap_or_else(|| {
                let number = collection.next_term;
                collection.next_term += 1;
                let mut row = Vec::new();
                put_number(number, &mut row);
                batch.put(NUMBERS, digest_key(scope, term), row);
                batch.put(TERMS, term_key(scope, number), term.to_vec());
                number
            });
            numbers.insert(term, number);
        }
        let number = |term: &[u8]| numbers.get(term).copied().unwrap_or(DEFAULT_GRAPH);
        let quads: BTreeSet<Quad> =
            statements.iter().map(|terms| Quad([0, 1, 2, 3].map(|at| number(&terms[at])))).collect();
        let (old, mut missing): (Vec<Quad>, Vec<Quad>) =
            quads.into_iter().partition(|quad| quad.0.iter().all(|number| *number < known_up_to));
        let reads = old.iter().map(|quad| Read::get(ORDERS[0].table, quad.key(scope, ORDERS[0]))).collect();
        let there = self.tables.read(reads).await?;
        missing.extend(
            old.iter().zip(there).filter(|(_, found)| found.value().is_none()).map(|(quad, _)| *quad),
        );
        if missing.is_empty() {
            return Ok(None);
        }
        for quad in missing {
            for order in ORDERS {
                batch.put(order.table, quad.key(scope, order), Bytes::new());
            }
        }
        collection.writes += 1;
        batch.expect(SCOPES, key, was).put(SCOPES, key, collection.encode());
        Ok(Some(batch))
    }

    async fn remove_these(&self, key: ScopeKey, statements: &[Encoded]) -> Result<()> {
        let (mut left, mut rows_max) = (statements, REMOVE_ROWS);
        while !left.is_empty() {
            let (some, rest) = left.split_at(rows_max.min(left.len()));
            match self.remove_some(key, Going::These(some)).await {
                Ok(_) => left = rest,
                Err(error) => rows_max = fewer(rows_max, error)?,
            }
        }
        Ok(())
    }

    async fn remove_matching(&self, key: ScopeKey, sought: &Sought) -> Result<()> {
        if sought.iter().all(Option::is_none) {
            return self.remove_all(key).await;
        }
        let mut rows_max = REMOVE_ROWS;
        loop {
            match self.remove_some(key, Going::Matching(sought, rows_max)).await {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => rows_max = fewer(rows_max, error)?,
            }
        }
    }

    /// What goes, by its numbers, and whether there is more.
    async fn going(&self, scope: u64, going: Going<'_>) -> Result<(Vec<Quad>, bool)> {
        let statements = match going {
            Going::These(statements) => statements,
            Going::Matching(sought, rows_max) => {
                let Some(wanted) = self.wanted(scope, sought).await? else { return Ok((Vec::new(), false)) };
                let (quads, next) = self.find(scope, &wanted, None, rows_max).await?;
                return Ok((quads, next.is_some()));
            }
        };
        let terms: Vec<&[u8]> = statements.iter().flatten().map(|term| &term[..]).collect();
        let mut numbers = self.numbers(scope, &terms).await?;
        for (number, term) in numbers.iter_mut().zip(&terms) {
            if term::is_default_graph(term) {
                *number = Some(DEFAULT_GRAPH);
            }
        }
        let quad = |numbers: &[Option<u64>; 4]| {
            let [Some(s), Some(p), Some(o), Some(g)] = *numbers else { return None };
            Some(Quad([s, p, o, g]))
        };
        Ok((numbers.as_chunks().0.iter().filter_map(quad).collect(), false))
    }

    /// Removes statements with the terms that nothing uses then; answers whether more are to go.
    async fn remove_some(&self, key: ScopeKey, going: Going<'_>) -> Result<bool> {
        for _ in 0..TRIES_MAX {
            let (was, Some(mut collection)) = self.collection(&key).await? else { return Ok(false) };
            let (quads, more) = self.going(collection.number, going).await?;
            if quads.is_empty() {
                return Ok(more);
            }
            let mut batch = Batch::new();
            for quad in &quads {
                for order in ORDERS {
                    batch.delete(order.table, quad.key(collection.number, order));
                }
            }
            self.drop_terms(collection.number, &quads, &mut batch).await?;
            collection.writes += 1;
            batch.expect(SCOPES, key, was).put(SCOPES, key, collection.encode()).essential();
            match self.tables.commit(batch).await {
                Ok(()) => return Ok(more),
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error),
            }
        }
        Err(contended())
    }

    /// Adds to a removal the terms that only its statements use. Names of graphs are few and stay.
    async fn drop_terms(&self, scope: u64, gone: &[Quad], batch: &mut Batch) -> Result<()> {
        let mut uses: BTreeMap<u64, [usize; 3]> = BTreeMap::new();
        for quad in gone {
            for place in 0..3 {
                uses.entry(quad.0[place]).or_default()[place] += 1;
            }
        }
        let gone: BTreeSet<&Quad> = gone.iter().collect();
        let terms: Vec<(u64, [usize; 3])> = uses.into_iter().collect();
        for some in terms.chunks(PAGE_ROWS / 4) {
            let mut reads = Vec::new();
            for (number, uses) in some {
                for (order, going) in ORDERS.iter().zip(uses) {
                    // One more than those that go is enough to see one that stays.
                    let range = KeyRange::prefix(term_key(scope, *number));
                    reads.push(Read::range(order.table, range, going + 1));
                }
                reads.push(Read::get(TERMS, term_key(scope, *number)));
            }
            let mut found = self.tables.read(reads).await?.into_iter();
            for (number, _) in some {
                let mut is_used = false;
                for order in ORDERS {
                    for (key, _) in found.next().map(Found::into_rows).unwrap_or_default().rows {
                        is_used |= !gone.contains(&Quad::from_key(&key, order)?);
                    }
                }
                if let Some(term) = found.next().and_then(Found::into_value).filter(|_| !is_used) {
                    batch.delete(TERMS, term_key(scope, *number)).delete(NUMBERS, digest_key(scope, &term));
                }
            }
        }
        Ok(())
    }

    async fn remove_all(&self, key: ScopeKey) -> Result<()> {
        for _ in 0..TRIES_MAX {
            let (was, Some(collection)) = self.collection(&key).await? else { return Ok(()) };
            let prefix = numbered(collection.number, &[]);
            let mut batch = Batch::new();
            for table in ORDERS.map(|order| order.table).into_iter().chain([NUMBERS, TERMS]) {
                batch.delete_prefix(table, &prefix);
            }
            batch.expect(SCOPES, key, was).delete(SCOPES, key);
            match self.tables.commit(batch).await {
                Err(error) if error.is_conflict() => {}
                done => return done,
            }
        }
        Err(contended())
    }
}

fn contended() -> Error {
    Error::unavailable("the statements of the collection are being changed all the time; try again")
}

impl Triples for TableTriples {
    fn add<'a>(&'a self, scope: Scope<'a>, triples: Vec<Triple>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let statements = triples.iter().map(encoded).collect::<Result<Vec<_>>>()?;
            if let Some(bytes) =
                statements.iter().flatten().map(Vec::len).find(|bytes| *bytes > TERM_BYTES_MAX)
            {
                let reason = format!(
                    "a term of a statement has {bytes} bytes, more than the {TERM_BYTES_MAX} that one may have; \
                     put long texts into the library and name them in the statement"
                );
                return Err(Error::Refused { reason });
            }
            if statements.is_empty() {
                Ok(())
            } else {
                self.make(scope_key(scope), Change::Add(statements)).await
            }
        })
    }

    fn query<'a>(
        &'a self,
        scope: Scope<'a>,
        pattern: &'a Pattern,
        from: Option<Cursor>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Page>> {
        Box::pin(self.query_page(scope, pattern, from, limit))
    }

    fn remove<'a>(&'a self, scope: Scope<'a>, pattern: &'a Pattern) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let change = match sought(pattern)? {
                [Some(s), Some(p), Some(o), Some(g)] => Change::Remove(vec![[s, p, o, g]]),
                other => Change::RemoveMatching(other),
            };
            self.make(scope_key(scope), change).await
        })
    }
}

#[cfg(test)]
mod tests;
