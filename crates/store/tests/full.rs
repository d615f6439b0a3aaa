//! A disk without room: whatever is large can be removed from it, and what is removed is gone.

use std::sync::Arc;

use bytes::Bytes;
use sluice_schema::message::{Term, Triple};
use sluice_store::{
    Attributes, Batch, Embedded, Error, KeywordEntry, Options, Pattern, Read, Scope, Stamp, Stores,
    VectorEntry,
};

const SCOPE: Scope<'static> = Scope::new("default", "docs");
/// Less than all pages take over which the rows of what is removed here are spread.
const RESERVE_BYTES: u64 = 768 * 1024;
const TERMS: usize = 20_000;

fn text(id: &str, terms: impl Iterator<Item = usize>) -> KeywordEntry {
    // Words in no order, as those of a text are.
    let text: String = terms.map(|n| format!("w{} ", n * 7_919 % 1_000_003)).collect();
    KeywordEntry { id: id.to_owned(), text, attributes: Attributes::new() }
}

fn statement(graph: &str, n: usize) -> Triple {
    let term = |iri: String| Some(Term { r#type: "i".to_owned(), iri, ..Term::default() });
    Triple {
        s: term(format!("urn:{graph}:{}", n * 7_919 % 1_000_003)),
        p: term(format!("urn:p{}", n % 7)),
        o: term(format!("urn:about:{}", n * 104_729 % 1_000_003)),
        g: Some(graph.to_owned()),
    }
}

fn vector(id: String, n: usize) -> VectorEntry {
    let vector = (0..256).map(|at| ((n * 31 + at * 7) % 17) as f32 - 8.0).collect();
    VectorEntry { id, vector, attributes: Attributes::new() }
}

/// One large thing of each kind, among others that stay.
async fn fill(stores: &Stores) {
    let some = (0..10).map(|n| text(&format!("urn:other/{n}"), n * 700..n * 700 + 2_000));
    stores.keywords.upsert(SCOPE, some.collect()).await.expect("texts are indexed");
    let large = vec![text("urn:large", 0..TERMS), text("urn:stays", 5..TERMS)];
    stores.keywords.upsert(SCOPE, large).await.expect("texts are indexed");
    for from in (0..4_000).step_by(500) {
        let mixed = (from..from + 500).flat_map(|n| [statement("large", n), statement("stays", n)]);
        stores.triples.add(SCOPE, mixed.collect()).await.expect("statements are kept");
        let mixed = (from..from + 500).flat_map(|n| {
            [vector(format!("large/{n}"), n), vector(format!("{}/{n}", n * 7_919 % 10_007), n)]
        });
        stores.vectors.upsert(SCOPE, mixed.collect()).await.expect("vectors are kept");
    }
    for n in 0..300 {
        let content = Bytes::from(vec![n as u8; 3_000 + n]);
        stores.blobs.put(&format!("chunk/{n}"), content).await.expect("content is stored");
    }
    for n in 0..3 {
        stores.blobs.put(&format!("large/{n}"), vec![n; 600_000].into()).await.expect("content is stored");
    }
}

async fn fill_the_disk(store: &Embedded, options: &Options) -> Error {
    options.faults.leave_space_bytes(300_000);
    for n in 0..10_000_u32 {
        let mut batch = Batch::new();
        batch.put("fill", n.to_be_bytes(), vec![n as u8; 3_000]);
        if let Err(error) = store.tables().commit(batch).await {
            return error;
        }
    }
    panic!("the disk never got full");
}

async fn is_full(store: &Embedded) -> bool {
    let mut batch = Batch::new();
    batch.put("fill", "more", vec![1; 400_000]);
    matches!(store.tables().commit(batch).await, Err(Error::Disk { .. }))
}

async fn found(stores: &Stores, word: usize) -> Vec<String> {
    let word = text("", word..word + 1).text;
    let found = stores.keywords.search(SCOPE, &word, 100).await.expect("a search works");
    found.into_iter().map(|found| found.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_large_can_be_removed_while_the_disk_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { reserve_bytes: RESERVE_BYTES, ..Options::default() };
    let store = Embedded::open_with(folder.path(), &options).unwrap();
    let stores = store.stores();
    fill(&stores).await;
    assert!(matches!(fill_the_disk(&store, &options).await, Error::Disk { .. }));
    assert!(options.faults.played() > 0 && is_full(&store).await);

    stores.keywords.remove(SCOPE, &["urn:large".to_owned()]).await.unwrap();
    assert_eq!(found(&stores, 12_345).await, ["urn:stays"]);
    assert!(is_full(&store).await);
    stores.triples.remove(SCOPE, &Pattern::graph("large")).await.unwrap();
    let left = stores.triples.query(SCOPE, &Pattern::all(), None, 10_000).await.unwrap().triples;
    assert!(left.len() == 4_000 && left.iter().all(|triple| triple.g.as_deref() == Some("stays")));
    // By their ids, which are among others that stay.
    let ids: Vec<String> = (0..4_000).step_by(2).map(|n| format!("{}/{n}", n * 7_919 % 10_007)).collect();
    stores.vectors.remove(SCOPE, &ids).await.unwrap();
    stores.vectors.remove_prefix(SCOPE, "large/1").await.unwrap();
    let like = stores.vectors.search(SCOPE, &[1.0; 256], 9_000, &Attributes::new()).await.unwrap();
    assert_eq!(like.len(), 4_000 - 1_111 + 2_000, "{:?}", like.first());
    for n in 0..300 {
        stores.blobs.remove(&format!("chunk/{n}")).await.unwrap();
    }
    for n in 0..3 {
        stores.blobs.remove(&format!("large/{n}")).await.unwrap();
    }
    assert_eq!(stores.blobs.list("", None, 1_000).await.unwrap(), []);
    // Collections too.
    stores.keywords.remove_collection(SCOPE).await.unwrap();
    stores.triples.remove(SCOPE, &Pattern::all()).await.unwrap();
    stores.vectors.remove_collection(SCOPE).await.unwrap();
    options.faults.give_space();
    stores.keywords.upsert(SCOPE, vec![text("urn:new", 0..9)]).await.unwrap();
    assert_eq!(found(&stores, 8).await, ["urn:new"]);
    drop(stores);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_text_whose_removal_is_cut_off_is_hidden_and_goes_with_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { reserve_bytes: RESERVE_BYTES, ..Options::default() };
    let mut cut = 0;
    loop {
        let store = Embedded::open_with(folder.path(), &options).unwrap();
        let tables = sluice_store::FaultyTables::new(store.tables());
        let keywords = sluice_store::keywords::TableKeywords::new(Arc::new(tables.clone()));
        let keywords: &dyn sluice_store::Keywords = &keywords;
        let large = || vec![text("urn:large", 0..TERMS), text("urn:stays", 5..50)];
        keywords.upsert(SCOPE, large()).await.unwrap();
        tables.fail_commit_after(cut, sluice_store::Fault::After);
        let removed = keywords.remove(SCOPE, &["urn:large".to_owned()]).await;
        let is_done = tables.played() == 0;
        assert_eq!(removed.is_ok(), is_done, "{removed:?}");
        for word in [0, 30, TERMS / 4, TERMS / 2 - 1] {
            let left = found(&store.stores(), word).await;
            assert!(!left.contains(&"urn:large".to_owned()), "after {cut} commits");
        }
        // It comes again meanwhile, and is another text.
        let keywords = store.stores().keywords;
        keywords.upsert(SCOPE, large()).await.unwrap();
        assert_eq!(found(&store.stores(), TERMS / 4).await, ["urn:large"]);
        let ids = ["urn:large".to_owned(), "urn:stays".to_owned()];
        keywords.remove(SCOPE, &ids).await.unwrap();
        for table in
            ["words.ids", "words.entries", "words.lengths", "words.terms", "words.postings", "words.leaving"]
        {
            let rest = store.tables().read(vec![Read::prefix(table, "", 10)]).await.unwrap().remove(0);
            assert_eq!(rest.into_rows().rows.len(), 0, "{table} after {cut} commits");
        }
        store.close().await;
        if is_done {
            break;
        }
        cut = cut * 2 + 1;
    }
    assert!(cut > 3, "it took several commits");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_can_be_started_on_and_removed_from_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { reserve_bytes: RESERVE_BYTES, ..Options::default() };
    let store = Embedded::open_with(folder.path(), &options).unwrap();
    assert!(matches!(fill_the_disk(&store, &options).await, Error::Disk { .. }));
    store.close().await;
    for generation in 1..=5 {
        // Whatever room was left, others have it.
        options.faults.leave_space_bytes(0);
        let store = Embedded::open_with(folder.path(), &options).unwrap();
        store.set_stamp(&Stamp { folder: "f".to_owned(), generation }).await.unwrap();
        assert!(is_full(&store).await);
        let mut batch = Batch::new();
        batch.delete("fill", (generation as u32).to_be_bytes());
        store.tables().commit(batch).await.unwrap();
        store.close().await;
    }
    options.faults.give_space();
    let store = Embedded::open_with(folder.path(), &options).unwrap();
    assert!(!is_full(&store).await);
    store.close().await;
    assert_eq!(std::fs::metadata(folder.path().join("reserve")).unwrap().len(), RESERVE_BYTES);
}

/// What a disk without room cuts off is in blocks that nobody refers to, some of which held other rows before.
#[tokio::test]
async fn what_a_full_disk_cut_off_is_not_reported_as_damage() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { reserve_bytes: 256 * 1024, ..Options::default() };
    let store = Embedded::open_with(folder.path(), &options).unwrap();
    let rows = |from: usize, to: usize, with: u8| {
        let mut batch = Batch::new();
        for n in from..to {
            batch.put("rows", n.to_be_bytes(), vec![with; 900]);
        }
        batch
    };
    store.tables().commit(rows(0, 2_000, 1)).await.unwrap();
    let mut gone = Batch::new();
    for n in (0..2_000_usize).filter(|n| n % 3 > 0) {
        gone.delete("rows", n.to_be_bytes());
    }
    store.tables().commit(gone).await.unwrap();
    // Two more, after which the room of what is gone is used again.
    for n in 0..2 {
        store.tables().commit(rows(5_000 + n, 5_001 + n, 2)).await.unwrap();
    }
    options.faults.leave_space_bytes(200_000);
    for round in 0..4 {
        let error = store.tables().commit(rows(10_000, 16_000, 3 + round)).await.unwrap_err();
        assert!(matches!(error, Error::Disk { .. }), "{error}");
    }
    let report = store.upkeep().check_all().await.unwrap();
    assert_eq!((report.damage.as_slice(), store.upkeep().damaged_blocks()), (&[][..], 0));
    store.close().await;
    let store = Embedded::open_with(folder.path(), &options).unwrap();
    let report = store.upkeep().check_all().await.unwrap();
    assert_eq!((report.damage.as_slice(), store.upkeep().damaged_blocks()), (&[][..], 0));
    store.close().await;
}
