//! The store of statements on its own: what is written, what goes, what waits.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::{BoxFuture, Embedded};

/// Tables that write down what is committed, and before the next commit commit something else.
struct Watched {
    inner: Arc<dyn Tables>,
    first: Mutex<Option<Batch>>,
    puts: Mutex<Vec<usize>>,
    /// Commits that were begun; while the gate is held they go no further.
    begun: AtomicUsize,
    gate: tokio::sync::Mutex<()>,
}

impl Watched {
    fn new(inner: Arc<dyn Tables>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            first: Mutex::default(),
            puts: Mutex::default(),
            begun: AtomicUsize::new(0),
            gate: tokio::sync::Mutex::default(),
        })
    }
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
            self.begun.fetch_add(1, Ordering::SeqCst);
            let _passed = self.gate.lock().await;
            self.inner.commit(batch).await
        })
    }
}

fn said(s: &str) -> Triple {
    let iri = |iri: &str| Some(Term { r#type: "i".to_owned(), iri: iri.to_owned(), ..Term::default() });
    Triple { s: iri(s), p: iri("urn:p"), o: iri("urn:o"), g: None }
}

fn own(writer: usize, n: usize) -> Encoded {
    encoded(&said(&format!("urn:{writer}/{n}"))).unwrap()
}

#[tokio::test]
async fn what_is_there_is_not_written_again_unless_it_goes_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let tables = Watched::new(store.tables());
    let triples = TableTriples::new(Arc::clone(&tables) as Arc<dyn Tables>);
    let scope = Scope::new("w", "c");
    triples.add(scope, vec![said("urn:a")]).await.unwrap();
    triples.add(scope, vec![said("urn:a"), said("urn:b")]).await.unwrap();
    triples.add(scope, vec![said("urn:a"), said("urn:b")]).await.unwrap();
    // Three orders, two rows for each new term, the collection; once the number of the next collection.
    assert_eq!(*tables.puts.lock().unwrap(), [3 + 3 * 2 + 1 + 1, 3 + 2 + 1]);

    // Another process removes one of them between the look and the commit.
    let key = scope_key(scope);
    let (_, collection) = triples.collection(&key).await.unwrap();
    let collection = collection.unwrap();
    let terms = encoded(&said("urn:a")).unwrap();
    let terms: Vec<&[u8]> = terms[..3].iter().map(|term| &term[..]).collect();
    let numbers = triples.numbers(collection.number, &terms).await.unwrap();
    let gone = Quad([numbers[0].unwrap(), numbers[1].unwrap(), numbers[2].unwrap(), DEFAULT_GRAPH]);
    let mut removal = Batch::new();
    ORDERS.iter().for_each(|order| _ = removal.delete(order.table, gone.key(collection.number, *order)));
    removal.put(SCOPES, key, Collection { writes: collection.writes + 1, ..collection }.encode());
    *tables.first.lock().unwrap() = Some(removal);
    triples.add(scope, vec![said("urn:a"), said("urn:c")]).await.unwrap();
    let found = triples.query(scope, &Pattern::all(), None, 10).await.unwrap().triples;
    assert_eq!(found.len(), 3, "{found:?}");
    store.close().await;
}

#[tokio::test]
async fn terms_go_with_the_last_statement_that_uses_them() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let triples = TableTriples::new(store.tables());
    let scope = Scope::new("w", "c");
    let terms = async |table: &'static str| {
        rows(&*store.tables(), Read::prefix(table, "", 100)).await.unwrap().rows.len()
    };
    let odd = Triple { s: said("urn:x").p, p: said("urn:x").o, o: said("urn:a").s, g: Some("g".to_owned()) };
    triples.add(scope, vec![said("urn:a"), said("urn:b"), odd.clone()]).await.unwrap();
    assert_eq!((terms(TERMS).await, terms(NUMBERS).await), (5, 5));
    let only = |triple: &Triple| Pattern {
        s: triple.s.clone(),
        p: triple.p.clone(),
        o: triple.o.clone(),
        g: Some(triple.g.clone().unwrap_or_default()),
    };
    triples.remove(scope, &only(&said("urn:b"))).await.unwrap();
    assert_eq!((terms(TERMS).await, terms(NUMBERS).await), (4, 4), "urn:b is gone");
    triples.remove(scope, &only(&said("urn:a"))).await.unwrap();
    assert_eq!(terms(TERMS).await, 4, "all of them are used elsewhere in a statement");
    assert_eq!(triples.query(scope, &Pattern::all(), None, 9).await.unwrap().triples.len(), 1);
    triples.remove(scope, &Pattern::graph("g")).await.unwrap();
    assert_eq!(terms(TERMS).await, 1, "the graph's name stays");
    triples.add(scope, vec![odd.clone()]).await.unwrap();
    assert_eq!(triples.query(scope, &Pattern::all(), None, 9).await.unwrap().triples, [odd]);
    triples.remove(scope, &Pattern::all()).await.unwrap();
    assert_eq!((terms(TERMS).await, terms(NUMBERS).await, terms(ORDERS[1].table).await), (0, 0, 0));
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_at_once_are_all_made_whole_and_in_fewer_commits() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let tables = Watched::new(store.tables());
    let triples = TableTriples::new(Arc::clone(&tables) as Arc<dyn Tables>);
    let scope = Scope::new("w", "c");
    // The first one is held up in its commit until all the others wait for their turn.
    let at_once = async |change: fn(usize) -> Change| {
        let held = tables.gate.lock().await;
        let begun = tables.begun.load(Ordering::SeqCst);
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..=64 {
            let (triples, key) = (triples.clone(), scope_key(scope));
            writers.spawn(async move { triples.make(key, change(writer)).await.unwrap() });
            while tables.begun.load(Ordering::SeqCst) == begun {
                tokio::task::yield_now().await;
            }
        }
        while triples.turns.waiting_count(&scope_key(scope)) < 64 {
            tokio::task::yield_now().await;
        }
        drop(held);
        writers.join_all().await;
    };
    at_once(|writer| Change::Add((0..5).map(|n| own(writer, n)).collect())).await;
    at_once(|writer| Change::Remove(vec![own(writer, 0)])).await;
    let found = triples.query(scope, &Pattern::all(), None, 1000).await.unwrap().triples;
    assert_eq!(found.len(), 65 * 4);
    assert_eq!(tables.puts.lock().unwrap().len(), 4, "of each kind the first one, and the 64 others");
    store.close().await;
}

#[test]
fn numbers_come_back_and_sort_as_they_are() {
    let mut numbers: Vec<u64> =
        (0..70).flat_map(|n| [n * n * n, 1 << (n % 64), u64::MAX >> (n % 64)]).collect();
    numbers.extend([240, 241, 2287, 2288, 67_823, 67_824, (1 << 24) - 1, 1 << 24]);
    let bytes = |number: u64| {
        let mut bytes = Vec::new();
        put_number(number, &mut bytes);
        bytes
    };
    for a in &numbers {
        let encoded = bytes(*a);
        let mut rest = &encoded[..];
        assert_eq!((take_number(&mut rest), rest.len()), (Some(*a), 0));
        for b in &numbers {
            assert_eq!(a.cmp(b), encoded.cmp(&bytes(*b)), "{a} {b}");
            assert!(a == b || !bytes(*b).starts_with(&encoded), "{a} {b}");
        }
    }
}
