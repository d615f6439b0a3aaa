//! How fast the embedded store is: durable commits by one and by many writers, small reads, exact vector search, keyword
//! search. `SLUICE_BENCH_VECTORS=100000` searches a large collection; the default keeps a run short.

use std::sync::Arc;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use rand::{Rng as _, SeedableRng as _};
use sluice_store::{Attributes, Batch, Embedded, KeywordEntry, Read, Scope, Stores, Tables, VectorEntry};
use tokio::runtime::Runtime;

fn main() {
    divan::main();
}

const COMMITS: usize = 256;
const SCOPE: Scope<'static> = Scope::new("default", "bench");

struct Bench {
    runtime: Runtime,
    stores: Stores,
    _store: Embedded,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let runtime = Runtime::new().expect("a runtime starts");
        // In the working folder: the temporary one is memory on many machines, where a sync costs nothing.
        let folder = tempfile::tempdir_in(".").expect("a folder can be made");
        let store = Embedded::open(folder.path()).expect("the store opens");
        Self { runtime, stores: store.stores(), _store: store, _folder: folder }
    }
}

/// Durable commits of one small put each, shared out among writers.
#[divan::bench(args = [1, 64], sample_count = 10)]
fn commits(bencher: Bencher<'_, '_>, writers: usize) {
    let bench = Bench::new();
    bencher.counter(ItemsCount::new(COMMITS)).bench_local(|| {
        bench.runtime.block_on(async {
            let mut running = tokio::task::JoinSet::new();
            for writer in 0..writers {
                running.spawn(commit_some(Arc::clone(&bench.stores.tables), writer, COMMITS / writers));
            }
            running.join_all().await;
        });
    });
}

/// The same puts in one batch: what a commit costs beside its sync.
#[divan::bench(sample_count = 10)]
fn commit_all_at_once(bencher: Bencher<'_, '_>) {
    let bench = Bench::new();
    bencher.counter(ItemsCount::new(COMMITS)).bench_local(|| {
        let mut batch = Batch::new();
        for n in 0..COMMITS {
            batch.put("bench", n.to_be_bytes(), vec![7; 100]);
        }
        bench.runtime.block_on(bench.stores.tables.commit(batch)).expect("a commit works");
    });
}

async fn commit_some(tables: Arc<dyn Tables>, writer: usize, count: usize) {
    for n in 0..count {
        let mut batch = Batch::new();
        batch.put("bench", [writer.to_be_bytes(), n.to_be_bytes()].concat(), vec![7; 100]);
        tables.commit(batch).await.expect("a commit works");
    }
}

/// Reads of ten keys each.
#[divan::bench(sample_count = 20, sample_size = 50)]
fn read_ten_keys(bencher: Bencher<'_, '_>) {
    let bench = Bench::new();
    let mut batch = Batch::new();
    for n in 0..10_000_u64 {
        batch.put("bench", n.to_be_bytes(), vec![7; 100]);
    }
    bench.runtime.block_on(bench.stores.tables.commit(batch)).expect("a commit works");
    bencher.bench_local(|| {
        let reads = (0..10_u64).map(|n| Read::get("bench", (n * 977).to_be_bytes())).collect();
        black_box(bench.runtime.block_on(bench.stores.tables.read(reads)).expect("a read works"))
    });
}

/// Searches of vectors with 512 numbers each, in memory.
#[divan::bench(sample_count = 20)]
fn vector_search(bencher: Bencher<'_, '_>) {
    let count = std::env::var("SLUICE_BENCH_VECTORS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    let bench = Bench::new();
    let mut random = rand::rngs::SmallRng::seed_from_u64(1);
    let mut vector = || (0..512).map(|_| random.random_range(-1.0..1.0)).collect::<Vec<f32>>();
    let query = vector();
    for from in (0..count).step_by(1000) {
        let entry = |n| VectorEntry { id: format!("{n}"), vector: vector(), attributes: Attributes::new() };
        let entries = (from..count.min(from + 1000)).map(entry).collect();
        bench.runtime.block_on(bench.stores.vectors.upsert(SCOPE, entries)).expect("an upsert works");
    }
    let no_filter = Attributes::new();
    let search = || {
        let found = bench.stores.vectors.search(SCOPE, &query, 10, &no_filter);
        bench.runtime.block_on(found).expect("a search works")
    };
    assert_eq!(search().len(), count.min(10));
    bencher.counter(ItemsCount::new(count)).bench_local(|| black_box(search()));
}

/// Searches of two words among a thousand texts.
#[divan::bench(sample_count = 20)]
fn keyword_search(bencher: Bencher<'_, '_>) {
    let bench = Bench::new();
    let text = |n: usize| (0..100).map(|w| format!("word{} ", (n * 31 + w * w) % 5000)).collect::<String>();
    for from in (0..1000).step_by(100) {
        let entry = |n| KeywordEntry { id: format!("{n}"), text: text(n), attributes: Attributes::new() };
        let entries = (from..from + 100).map(entry).collect();
        bench.runtime.block_on(bench.stores.keywords.upsert(SCOPE, entries)).expect("an upsert works");
    }
    let search = || bench.runtime.block_on(bench.stores.keywords.search(SCOPE, "word31 word100", 10));
    assert!(!search().expect("a search works").is_empty());
    bencher.bench_local(|| black_box(search().expect("a search works")));
}
