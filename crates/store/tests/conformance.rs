//! The embedded engine put through every case of the contracts, with vectors in memory and with hardly any memory.

use std::panic::{AssertUnwindSafe, catch_unwind};

use sluice_store::{Embedded, Options, conformance};

fn passes_every_case(options: &Options) {
    let mut failed = Vec::new();
    for case in conformance::cases() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let folder = tempfile::tempdir().expect("a folder can be made");
        let passed = catch_unwind(AssertUnwindSafe(|| {
            runtime.expect("a runtime starts").block_on(async {
                let store = Embedded::open_with(folder.path(), options).expect("the store opens");
                (case.run)(store.stores()).await;
                store.close().await;
            });
        }));
        if passed.is_err() {
            failed.push(case.name);
        }
    }
    assert!(failed.is_empty(), "cases that failed: {failed:#?}");
}

#[test]
fn the_embedded_engine_passes_every_case() {
    passes_every_case(&Options::default());
}

#[test]
fn the_embedded_engine_passes_every_case_with_hardly_any_memory() {
    let options = Options { vectors_bytes_max: 300, cache_bytes_max: 64 * 1024, ..Options::default() };
    passes_every_case(&options);
}
