//! Statements over tables: three orders of short digests, the statement itself beside the first.
//!
//! A key is the collection and the digests of the four terms in one order; whichever terms a pattern names, one of the
//! orders has them in front. Only the subject order holds the statement, the others lead to it. Digests of equal length
//! keep keys short however long a literal is.

use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use sha2::{Digest as _, Sha256};
use sluice_schema::message::{Term, Triple};

use crate::keys::{ScopeKey, join, rows, scope_key};
use crate::{
    Batch, BoxFuture, Cursor, Error, Found, KeyRange, Page, Pattern, Read, Result, Scope, Tables, Triples,
};

const BY_SUBJECT: &str = "triples.spo";
const BY_PREDICATE: &str = "triples.pos";
const BY_OBJECT: &str = "triples.osp";

const SCOPE_BYTES: usize = size_of::<ScopeKey>();
const DIGEST_BYTES: usize = 16;
/// Rows looked at per read while a query looks for matches.
const PAGE_ROWS: usize = 1024;
/// Statements removed in one step.
const REMOVE_ROWS: usize = 512;
/// How deep statements may be quoted inside each other.
const QUOTES_MAX: usize = 16;

type Hash = [u8; DIGEST_BYTES];

/// An order of the terms in a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Order {
    table: &'static str,
    /// For each place in the key, which of subject, predicate and object stands there.
    places: [usize; 3],
}

const ORDERS: [Order; 3] = [
    Order { table: BY_SUBJECT, places: [0, 1, 2] },
    Order { table: BY_PREDICATE, places: [1, 2, 0] },
    Order { table: BY_OBJECT, places: [2, 0, 1] },
];

/// A statement by its digests: subject, predicate, object, graph.
#[derive(Debug, Clone, Copy)]
struct Quad([Hash; 4]);

impl Quad {
    fn new(triple: &Triple) -> Result<Self> {
        let [s, p, o] = terms_of(triple)?;
        let graph = triple.g.as_deref().unwrap_or_default();
        Ok(Self([
            digest(&encode_term(s)?),
            digest(&encode_term(p)?),
            digest(&encode_term(o)?),
            digest(graph.as_bytes()),
        ]))
    }

    fn key(&self, scope: &ScopeKey, order: Order) -> Vec<u8> {
        let [a, b, c] = order.places.map(|place| self.0[place]);
        join(&[scope, &a, &b, &c, &self.0[3]])
    }

    fn from_key(key: &[u8], order: Order) -> Result<Self> {
        let digests = key.get(SCOPE_BYTES..).unwrap_or_default().as_chunks::<DIGEST_BYTES>().0;
        let [a, b, c, graph] =
            *<&[Hash; 4]>::try_from(digests).map_err(|e| Error::damaged("the key of a statement", &e))?;
        let mut quad = [Hash::default(), Hash::default(), Hash::default(), graph];
        for (place, digest) in order.places.into_iter().zip([a, b, c]) {
            quad[place] = digest;
        }
        Ok(Self(quad))
    }
}

/// A pattern by its digests.
struct Wanted([Option<Hash>; 4]);

impl Wanted {
    fn new(pattern: &Pattern) -> Result<Self> {
        let term =
            |term: &Option<Term>| term.as_ref().map(|term| Ok(digest(&encode_term(term)?))).transpose();
        let graph = pattern.g.as_deref().map(|name| digest(name.as_bytes()));
        Ok(Self([term(&pattern.s)?, term(&pattern.p)?, term(&pattern.o)?, graph]))
    }

    fn matches(&self, quad: &Quad) -> bool {
        self.0.iter().zip(&quad.0).all(|(wanted, is)| wanted.is_none_or(|wanted| wanted == *is))
    }

    /// The order with most of the pattern in front, and what is in front.
    fn start(&self, scope: &ScopeKey) -> (Order, Vec<u8>) {
        let in_front = |order: Order| {
            let digests = order.places.into_iter().map_while(move |place| self.0[place]);
            digests.collect::<Vec<_>>()
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
        (order, join(&[scope, front.as_flattened()]))
    }
}

fn digest(bytes: &[u8]) -> Hash {
    let mut hash = Hash::default();
    hash.copy_from_slice(&Sha256::digest(bytes)[..DIGEST_BYTES]);
    hash
}

fn refused(reason: impl Into<String>) -> Error {
    Error::Refused { reason: reason.into() }
}

/// A term as bytes: its type, then the fields that belong to the type, each with its length.
fn encode_term(term: &Term) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    put_term(term, &mut bytes, 0)?;
    Ok(bytes)
}

fn put_term(term: &Term, to: &mut Vec<u8>, depth: usize) -> Result<()> {
    let (kind, fields): (u8, &[&String]) = match term.r#type.as_str() {
        "i" => (b'i', &[&term.iri]),
        "b" => (b'b', &[&term.id]),
        "l" => (b'l', &[&term.value, &term.datatype, &term.language]),
        "t" if depth < QUOTES_MAX => (b't', &[]),
        "t" => return Err(refused(format!("statements are quoted more than {QUOTES_MAX} deep"))),
        other => return Err(refused(format!("a term has the type '{other}'; use 'i', 'b', 'l' or 't'"))),
    };
    to.push(kind);
    for field in fields {
        put_text(field, to)?;
    }
    if kind == b't' {
        let quoted = term.triple.as_deref().ok_or_else(|| refused("a term of type 't' needs a triple"))?;
        put_statement(quoted, to, depth + 1)?;
    }
    Ok(())
}

fn put_statement(triple: &Triple, to: &mut Vec<u8>, depth: usize) -> Result<()> {
    for term in terms_of(triple)? {
        put_term(term, to, depth)?;
    }
    put_text(triple.g.as_deref().unwrap_or_default(), to)
}

fn put_text(text: &str, to: &mut Vec<u8>) -> Result<()> {
    let length = u32::try_from(text.len()).map_err(|_| refused("a term is larger than 4 GiB"))?;
    to.extend_from_slice(&length.to_le_bytes());
    to.extend_from_slice(text.as_bytes());
    Ok(())
}

fn terms_of(triple: &Triple) -> Result<[&Term; 3]> {
    match (&triple.s, &triple.p, &triple.o) {
        (Some(s), Some(p), Some(o)) => Ok([s, p, o]),
        _ => Err(refused("a statement needs a subject, a predicate and an object")),
    }
}

fn take_statement(from: &mut &[u8]) -> Option<Triple> {
    let (s, p, o) = (take_term(from)?, take_term(from)?, take_term(from)?);
    let graph = take_text(from)?;
    Some(Triple { s: Some(s), p: Some(p), o: Some(o), g: (!graph.is_empty()).then_some(graph) })
}

fn take_term(from: &mut &[u8]) -> Option<Term> {
    let kind = from.split_off_first()?;
    let mut term = Term { r#type: char::from(*kind).to_string(), ..Term::default() };
    match kind {
        b'i' => term.iri = take_text(from)?,
        b'b' => term.id = take_text(from)?,
        b'l' => {
            term.value = take_text(from)?;
            term.datatype = take_text(from)?;
            term.language = take_text(from)?;
        }
        b't' => term.triple = Some(Box::new(take_statement(from)?)),
        _ => return None,
    }
    Some(term)
}

fn take_text(from: &mut &[u8]) -> Option<String> {
    let length = from.try_get_u32_le().ok()?;
    let text = from.split_off(..usize::try_from(length).ok()?)?;
    String::from_utf8(text.to_vec()).ok()
}

/// Triples over tables.
#[derive(Clone)]
pub struct TableTriples {
    tables: Arc<dyn Tables>,
}

impl TableTriples {
    /// Triples over these tables.
    pub fn new(tables: Arc<dyn Tables>) -> Self {
        Self { tables }
    }

    /// Up to `limit` matches from a cursor, by their digests; with the cursor to go on from.
    async fn find(
        &self,
        scope: &ScopeKey,
        wanted: &Wanted,
        from: Option<Cursor>,
        limit: usize,
    ) -> Result<(Vec<(Quad, Option<Bytes>)>, Option<Cursor>)> {
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
            for (key, value) in page.rows {
                let quad = Quad::from_key(&key, order)?;
                if wanted.matches(&quad) {
                    if found.len() == limit {
                        return Ok((found, last.map(Cursor)));
                    }
                    found.push((quad, (order == ORDERS[0]).then_some(value)));
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
        let scope = scope_key(scope);
        let (found, next) = self.find(&scope, &Wanted::new(pattern)?, from, limit).await?;
        let mut statements = Vec::with_capacity(found.len());
        for some in found.chunks(PAGE_ROWS) {
            let missing = some.iter().filter(|(_, statement)| statement.is_none());
            let reads: Vec<_> =
                missing.map(|(quad, _)| Read::get(BY_SUBJECT, quad.key(&scope, ORDERS[0]))).collect();
            let led_to = if reads.is_empty() { Vec::new() } else { self.tables.read(reads).await? };
            let mut led_to = led_to.into_iter().map(Found::into_value);
            // One that was removed a moment ago is left out.
            let here =
                some.iter().filter_map(|(_, statement)| statement.clone().or_else(|| led_to.next()?));
            statements.extend(here);
        }
        let damaged = || Error::damaged("a statement", &"it is cut short");
        let triples = statements.iter().map(|row| take_statement(&mut &row[..]).ok_or_else(damaged));
        Ok(Page { triples: triples.collect::<Result<_>>()?, next })
    }

    async fn remove_matching(&self, scope: Scope<'_>, pattern: &Pattern) -> Result<()> {
        let scope = scope_key(scope);
        let wanted = Wanted::new(pattern)?;
        let mut batch = Batch::new();
        if wanted.0.iter().all(Option::is_none) {
            for order in ORDERS {
                batch.delete_prefix(order.table, scope);
            }
            return self.tables.commit(batch).await;
        }
        let mut from = None;
        loop {
            let (found, next) = self.find(&scope, &wanted, from, REMOVE_ROWS).await?;
            for (quad, _) in found {
                for order in ORDERS {
                    batch.delete(order.table, quad.key(&scope, order));
                }
            }
            if !batch.is_empty() {
                self.tables.commit(std::mem::take(&mut batch)).await?;
            }
            if next.is_none() {
                return Ok(());
            }
            from = next;
        }
    }

    /// Many statements come with every document. What is there already is not written: its three rows lie far apart, and
    /// each would have its page written anew.
    async fn add_missing(&self, scope: Scope<'_>, triples: &[Triple]) -> Result<()> {
        let scope = scope_key(scope);
        let mut statements = Vec::with_capacity(triples.len());
        for triple in triples {
            let mut row = Vec::new();
            put_statement(triple, &mut row, 0)?;
            statements.push((Quad::new(triple)?, Bytes::from(row)));
        }
        let key = |quad: &Quad| quad.key(&scope, ORDERS[0]);
        let reads = statements.iter().map(|(quad, _)| Read::get(BY_SUBJECT, key(quad))).collect();
        let found = self.tables.read(reads).await?.into_iter().map(Found::into_value);
        let (there, missing): (Vec<_>, Vec<_>) =
            statements.iter().zip(found).partition(|((_, row), found)| found.as_ref() == Some(row));
        let mut batch = Batch::new();
        let put = |batch: &mut Batch, (quad, row): &(Quad, Bytes)| {
            batch.put(BY_SUBJECT, key(quad), row.clone());
            for order in &ORDERS[1..] {
                batch.put(order.table, quad.key(&scope, *order), Bytes::new());
            }
        };
        missing.iter().for_each(|(statement, _)| put(&mut batch, statement));
        for ((quad, row), _) in &there {
            batch.expect_value(BY_SUBJECT, key(quad), row.clone());
        }
        match self.tables.commit(batch).await {
            // Something was removed since; then all of it is written.
            Err(error) if error.is_conflict() => {}
            done => return done,
        }
        let mut batch = Batch::new();
        statements.iter().for_each(|statement| put(&mut batch, statement));
        self.tables.commit(batch).await
    }
}

impl Triples for TableTriples {
    fn add<'a>(&'a self, scope: Scope<'a>, triples: Vec<Triple>) -> BoxFuture<'a, Result<()>> {
        Box::pin(
            async move { if triples.is_empty() { Ok(()) } else { self.add_missing(scope, &triples).await } },
        )
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
        Box::pin(self.remove_matching(scope, pattern))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{BoxFuture, Embedded};

    /// Tables that write down what is committed, and before the next commit commit something else.
    struct Watched {
        inner: Arc<dyn Tables>,
        first: Mutex<Option<Batch>>,
        puts: Mutex<Vec<usize>>,
    }

    impl Tables for Watched {
        fn read(&self, reads: Vec<Read>) -> BoxFuture<'_, Result<Vec<Found>>> {
            self.inner.read(reads)
        }

        fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<()>> {
            Box::pin(async move {
                let first = self.first.lock().unwrap().take();
                if let Some(first) = first {
                    self.inner.commit(first).await?;
                }
                self.puts.lock().unwrap().push(batch.ops.len());
                self.inner.commit(batch).await
            })
        }
    }

    #[tokio::test]
    async fn what_is_there_is_not_written_again_unless_it_goes_meanwhile() {
        let iri = |iri: &str| Some(Term { r#type: "i".to_owned(), iri: iri.to_owned(), ..Term::default() });
        let said = |s: &str| Triple { s: iri(s), p: iri("urn:p"), o: iri("urn:o"), g: None };
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(folder.path()).unwrap();
        let tables =
            Arc::new(Watched { inner: store.tables(), first: Mutex::default(), puts: Mutex::default() });
        let triples = TableTriples::new(Arc::clone(&tables) as Arc<dyn Tables>);
        let scope = Scope::new("w", "c");
        triples.add(scope, vec![said("urn:a")]).await.unwrap();
        triples.add(scope, vec![said("urn:a"), said("urn:b")]).await.unwrap();
        triples.add(scope, vec![said("urn:a"), said("urn:b")]).await.unwrap();
        assert_eq!(*tables.puts.lock().unwrap(), [3, 3, 0], "three orders for each that was missing");

        let mut removal = Batch::new();
        let gone = Quad::new(&said("urn:a")).unwrap();
        ORDERS.iter().for_each(|order| _ = removal.delete(order.table, gone.key(&scope_key(scope), *order)));
        *tables.first.lock().unwrap() = Some(removal);
        triples.add(scope, vec![said("urn:a"), said("urn:c")]).await.unwrap();
        let found = triples.query(scope, &Pattern::all(), None, 10).await.unwrap().triples;
        assert_eq!(found.len(), 3, "{found:?}");
        store.close().await;
    }
}
