//! What the embedded blobs, vectors and tables do in trouble: leftovers, a full disk, lost answers, little memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _};
use sluice_store::vectors::TableVectors;
use sluice_store::{
    Attributes, Batch, Embedded, Error, ErrorKind, Fault, FaultyTables, Options, Read, Scope, Stamp,
    Tables as _, VectorEntry, Vectors,
};

fn files(folder: &std::path::Path) -> usize {
    std::fs::read_dir(folder.join("blobs")).expect("the folder is there").count()
}

#[tokio::test]
async fn what_is_on_record_as_left_over_goes_to_the_trash_and_nothing_else_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    store.stores().blobs.put("kept", vec![1; 100_000].into()).await.unwrap();
    let mut unfinished = store.stores().blobs.writer("unfinished").await.unwrap();
    unfinished.write(vec![2; 1_000_000].into()).await.unwrap();
    assert_eq!(files(folder.path()), 2);
    drop(unfinished);
    store.close().await;

    let stranger = folder.path().join("blobs/of-rows-that-are-lost");
    std::fs::write(&stranger, "content").unwrap();

    let store = Embedded::open(folder.path()).unwrap();
    assert_eq!(files(folder.path()), 3, "opening removes nothing");
    let audit = store.audit_blobs().await.unwrap();
    assert_eq!((audit.named, audit.missing.len(), audit.unknown), (1, 0, 1));
    store.sweep(&audit).await.unwrap();
    assert_eq!(files(folder.path()), 2);
    assert!(stranger.exists());
    let trash: Vec<_> =
        std::fs::read_dir(folder.path().join("trash")).unwrap().map(|one| one.unwrap()).collect();
    assert_eq!(trash.len(), 1);
    assert!(trash[0].metadata().unwrap().len() >= 900_000);
    assert_eq!(store.stores().blobs.get("kept").await.unwrap(), Some(vec![1; 100_000].into()));

    // It goes from there after a day.
    std::fs::rename(trash[0].path(), folder.path().join("trash/1000-old")).unwrap();
    std::fs::write(folder.path().join("trash/99999999999-young"), "content").unwrap();
    store.sweep(&audit).await.unwrap();
    assert!(!folder.path().join("trash/1000-old").exists());
    assert!(folder.path().join("trash/99999999999-young").exists());
    store.close().await;
}

#[tokio::test]
async fn lost_and_shortened_content_is_named_until_its_loss_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let blobs = store.stores().blobs;
    for id in ["lost", "short", "whole"] {
        blobs.put(id, vec![1; 100_000].into()).await.unwrap();
    }
    let audit = store.audit_blobs().await.unwrap();
    assert!(audit.missing.is_empty(), "{audit:?}");
    // Any two of them: they are alike.
    let mut kept = std::fs::read_dir(folder.path().join("blobs")).unwrap().map(|one| one.unwrap().path());
    let (first, second) = (kept.next().unwrap(), kept.next().unwrap());
    std::fs::remove_file(&first).unwrap();
    std::fs::write(&second, "short").unwrap();
    let audit = store.audit_blobs().await.unwrap();
    let mut found: Vec<_> = audit.missing.iter().map(|one| one.found_bytes).collect();
    found.sort();
    assert_eq!(found, [None, Some(5)]);
    store.accept_lost(&audit).await.unwrap();
    assert!(store.audit_blobs().await.unwrap().missing.is_empty());
    store.sweep(&audit).await.unwrap();
    assert!(second.exists());
    store.close().await;
}

#[tokio::test]
async fn a_store_that_should_be_there_is_not_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { create: false, ..Options::default() };
    assert!(Embedded::open_with(folder.path(), &options).is_err());
    assert!(!folder.path().join("store.redb").exists());
    std::fs::write(folder.path().join("store.redb"), "").unwrap();
    let error = Embedded::open_with(folder.path(), &options).unwrap_err().to_string();
    assert!(error.contains("store.redb") && error.contains("empty"), "{error}");
    assert_eq!(std::fs::metadata(folder.path().join("store.redb")).unwrap().len(), 0);
}

#[tokio::test]
async fn a_store_says_whose_it_is_also_on_a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { reserve_bytes: 4 << 20, ..Options::default() };
    let store = Embedded::open_with(folder.path(), &options).unwrap();
    assert_eq!(store.stamp().unwrap(), None);
    let stamp = |generation| Stamp { folder: "f".to_owned(), generation };
    store.set_stamp(&stamp(1)).await.unwrap();
    options.faults.leave_space_bytes(0);
    let put = |number: u32| {
        let mut batch = Batch::new();
        batch.put("t", number.to_be_bytes(), vec![1; 1_000_000]);
        batch
    };
    let mut number = 0;
    while store.tables().commit(put(number)).await.is_ok() {
        number += 1;
    }
    store.set_stamp(&stamp(2)).await.unwrap();
    assert_eq!(store.stamp().unwrap(), Some(stamp(2)));
    assert!(options.faults.played() > 0);
    store.close().await;
    let store = Embedded::open(folder.path()).unwrap();
    assert_eq!(store.stamp().unwrap(), Some(stamp(2)));
    store.close().await;
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let with = |service_formats| Options { service_formats, ..Options::default() };
    Embedded::open_with(folder.path(), &with(&[("service.config", 7)])).unwrap().close().await;
    let error = Embedded::open_with(folder.path(), &with(&[("service.config", 6)])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("service.config are of format 7"), "{error}");
    let error = Embedded::open_with(folder.path(), &with(&[("service.iam", 1)])).unwrap_err();
    assert!(error.to_string().contains("newer"), "{error}");
    Embedded::open(folder.path()).unwrap().close().await;
}

#[tokio::test]
async fn a_failed_sync_is_told_and_a_full_disk_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::default();
    let store = Embedded::open_with(folder.path(), &options).unwrap();
    let failure = store.failure();
    let put = || {
        let mut batch = Batch::new();
        batch.put("t", "k", vec![1; 10_000_000]);
        batch
    };
    options.faults.leave_space_bytes(0);
    assert!(store.tables().commit(put()).await.is_err());
    assert_eq!(*failure.borrow(), None);
    options.faults.give_space();
    store.tables().commit(put()).await.unwrap();
    options.faults.fail_syncs();
    assert!(store.tables().commit(put()).await.is_err());
    let reason = failure.borrow().clone().expect("the failure is told");
    assert!(reason.contains("check the disk"), "{reason}");
    store.close().await;
}

#[tokio::test]
async fn replaced_and_removed_content_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let blobs = store.stores().blobs;
    for round in 0..3 {
        blobs.put("a", vec![round; 100_000].into()).await.unwrap();
        assert_eq!(files(folder.path()), 1);
    }
    drop({
        let mut unfinished = blobs.writer("b").await.unwrap();
        unfinished.write(vec![2; 1_000_000].into()).await.unwrap();
        unfinished
    });
    blobs.put("a", vec![9; 100_000].into()).await.unwrap();
    assert_eq!(files(folder.path()), 1);
    blobs.put("a", Bytes::from_static(b"small")).await.unwrap();
    assert_eq!(files(folder.path()), 0);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_in_several_rows_is_whole_while_it_is_replaced_and_leaves_none() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let blobs = store.stores().blobs;
    // What cannot be packed takes rows by its size; text by what it packs to.
    let seed = rand::rng().random();
    println!("content comes from seed {seed}");
    let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
    let mut contents: Vec<Bytes> = [1, 1_919, 1_920, 1_921, 3_840, 3_841, 20_000, 65_535, 65_536]
        .map(|bytes| (0..bytes).map(|_| random.random::<u8>()).collect::<Vec<_>>().into())
        .to_vec();
    contents.push((0..60_000).map(|_| random.random_range(b'a'..b'p')).collect::<Vec<_>>().into());
    // An id that ends as the key of a row does is another one.
    blobs.put("a\u{1}", contents[3].clone()).await.unwrap();
    let rows = async |table: &str| {
        let found =
            store.tables().read(vec![Read::prefix(table.to_owned(), "", 10_000)]).await.unwrap().remove(0);
        found.into_rows().rows.len()
    };
    for content in &contents {
        blobs.put("a", content.clone()).await.unwrap();
        assert!(blobs.get("a").await.unwrap().as_ref() == Some(content), "{} bytes differ", content.len());
        let middle = content.len() / 2;
        let part = blobs.get_range("a", middle as u64, 2_500).await.unwrap().unwrap();
        assert!(part == content.slice(middle..content.len().min(middle + 2_500)));
        let found = store.snapshot().unwrap().contents().unwrap();
        assert!(found.damage.is_empty(), "{found:?}");
    }
    assert!(rows("blobs.more").await > 10);

    let mut reading = tokio::task::JoinSet::new();
    let (read, known) = (Arc::clone(&blobs), contents.clone());
    reading.spawn(async move {
        for _ in 0..2_000 {
            let found = read.get("a").await.unwrap().unwrap();
            assert!(known.contains(&found), "{} bytes that never were", found.len());
        }
    });
    let mut turn = 0;
    let ended = loop {
        if let Some(ended) = reading.try_join_next() {
            break ended;
        }
        turn += 1;
        blobs.put("a", contents[turn % contents.len()].clone()).await.unwrap();
    };
    ended.unwrap();

    blobs.put("a", contents[6].clone()).await.unwrap();
    let mut batch = Batch::new();
    batch.delete("blobs.more", b"a\x05");
    store.tables().commit(batch).await.unwrap();
    let error = blobs.get("a").await.unwrap_err();
    assert!(error.is_damage() && error.to_string().contains("'a'"), "{error}");
    assert_eq!(store.snapshot().unwrap().contents().unwrap().damage.len(), 1);

    blobs.remove("a").await.unwrap();
    assert!(blobs.get("a\u{1}").await.unwrap().as_ref() == Some(&contents[3]));
    assert_eq!((rows("blobs.inline").await, rows("blobs.more").await), (1, 1));
    blobs.remove("a\u{1}").await.unwrap();
    assert_eq!((rows("blobs.inline").await, rows("blobs.more").await), (0, 0));
    store.close().await;
}

#[tokio::test]
async fn a_full_disk_refuses_content_clearly_and_keeps_the_old() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::default();
    let store = Embedded::open_with(folder.path(), &options).unwrap();
    let blobs = store.stores().blobs;
    blobs.put("a", vec![1; 500_000].into()).await.unwrap();
    options.faults.leave_space_bytes(400_000);
    let error = blobs.put("a", vec![2; 2_000_000].into()).await.unwrap_err();
    assert!(matches!(error, Error::Disk { .. }), "{error:?}");
    assert!(options.faults.played() > 0);
    assert_eq!(blobs.get("a").await.unwrap(), Some(vec![1; 500_000].into()));
    assert_eq!(files(folder.path()), 1);

    let mut writer = blobs.writer("a").await.unwrap();
    assert!(writer.write(vec![2; 2_000_000].into()).await.is_err());
    assert_eq!(writer.write(vec![2; 1_000_000].into()).await.unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(writer.finish().await.unwrap_err().kind(), ErrorKind::Refused);

    blobs.remove("a").await.unwrap();
    options.faults.give_space();
    blobs.put("a", vec![2; 2_000_000].into()).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn a_lost_answer_is_told_as_unknown_and_a_failure_before_as_unavailable() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let tables = FaultyTables::new(store.tables());
    let batch = |value: &'static str| {
        let mut batch = Batch::new();
        batch.put("t", "a", value);
        batch
    };
    tables.fail_commit_after(1, Fault::Before);
    tables.commit(batch("1")).await.unwrap();
    assert_eq!(tables.commit(batch("2")).await.unwrap_err().kind(), ErrorKind::Unavailable);
    let value = || async { tables.read(vec![Read::get("t", "a")]).await.unwrap().remove(0).into_value() };
    assert_eq!(value().await.as_deref(), Some(&b"1"[..]));
    tables.fail_commit_after(0, Fault::After);
    assert_eq!(tables.commit(batch("3")).await.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    assert_eq!(value().await.as_deref(), Some(&b"3"[..]));
    assert_eq!((tables.commits(), tables.played()), (3, 2));
    store.close().await;
}

#[tokio::test]
async fn a_vector_whose_write_was_not_acknowledged_is_found_if_it_is_durable() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let tables = FaultyTables::new(store.tables());
    let vectors = TableVectors::new(Arc::new(tables.clone()), 1 << 20);
    let scope = Scope::new("default", "docs");
    let entry =
        |id: &str| VectorEntry { id: id.to_owned(), vector: vec![1.0, 2.0], attributes: Attributes::new() };
    let count = || async { vectors.search(scope, &[1.0, 2.0], 9, &Attributes::new()).await.unwrap().len() };
    vectors.upsert(scope, vec![entry("a")]).await.unwrap();
    assert_eq!(count().await, 1);
    tables.fail_commit_after(0, Fault::After);
    vectors.upsert(scope, vec![entry("b")]).await.unwrap_err();
    assert_eq!(count().await, 2);
    store.close().await;
}

/// Random writes and searches in several collections, with memory for about two of them, against a plain list.
#[tokio::test(flavor = "multi_thread")]
async fn vectors_in_little_memory_are_those_of_a_plain_list() {
    let seed: u64 =
        std::env::var("SLUICE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("run again with SLUICE_SEED={seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let options = Options { vectors_bytes_max: 16_000, ..Options::default() };
    let store = Embedded::open_with(folder.path(), &options).unwrap();
    let vectors = store.stores().vectors;
    let names = ["one", "two", "three", "four"];
    let mut model: BTreeMap<(&str, String), Vec<f32>> = BTreeMap::new();
    let mut wholes = 0;
    for _ in 0..400 {
        let name = names[random.random_range(0..names.len())];
        let scope = Scope::new("default", name);
        let id = format!("{}/{}", random.random_range(0..5), random.random_range(0..8));
        match random.random_range(0..10) {
            0 => {
                vectors.remove(scope, std::slice::from_ref(&id)).await.unwrap();
                model.remove(&(name, id));
            }
            1 => {
                let prefix = &id[..2];
                vectors.remove_prefix(scope, prefix).await.unwrap();
                model.retain(|(n, id), _| *n != name || !id.starts_with(prefix));
            }
            2 if random.random_bool(0.2) => {
                vectors.remove_collection(scope).await.unwrap();
                model.retain(|(n, _), _| *n != name);
            }
            _ => {
                let vector: Vec<f32> = (0..24).map(|_| random.random_range(-1.0..1.0)).collect();
                let entry =
                    VectorEntry { id: id.clone(), vector: vector.clone(), attributes: Attributes::new() };
                vectors.upsert(scope, vec![entry]).await.unwrap();
                model.insert((name, id), vector);
            }
        }
        let scope_name = names[random.random_range(0..names.len())];
        let query: Vec<f32> = (0..24).map(|_| random.random_range(-1.0..1.0)).collect();
        let scope = Scope::new("default", scope_name);
        let found = vectors.search(scope, &query, 100, &Attributes::new()).await.unwrap();
        let expected = plain_search(&model, scope_name, &query);
        assert_eq!(found.len(), expected.len());
        wholes += usize::from(!found.is_empty());
        for (found, (id, score)) in found.iter().zip(expected) {
            // Half a step of 1/32767 for each of 24 numbers, at most, of a query of length 1.
            assert!((found.score - score).abs() < 1e-4, "{found:?} is not {id} {score}");
        }
    }
    assert!(wholes > 100);
    store.close().await;
}

fn plain_search<'a>(
    model: &'a BTreeMap<(&str, String), Vec<f32>>,
    name: &str,
    query: &[f32],
) -> Vec<(&'a str, f32)> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    let mut scored: Vec<_> = model
        .iter()
        .filter(|((n, _), _)| *n == name)
        .map(|((_, id), v)| (id.as_str(), dot(v, query) / (dot(v, v) * dot(query, query)).sqrt()))
        .collect();
    scored.sort_by(|a, b| b.1.total_cmp(&a.1));
    scored
}
