//! The embedded tables against a plain map, and in trouble: many writers, a full disk, a failing sync.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use sluice_store::{Batch, Embedded, Error, ErrorKind, Expected, KeyRange, Op, Options, Read, Rows, Tables};

type Model = BTreeMap<(String, Bytes), Bytes>;

fn table() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("one"), Just("two")]
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(0), Just(0xff)], 0..4)
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0_u8..3, 0..2)
}

fn batch() -> impl Strategy<Value = Batch> {
    let expect = (table(), key(), prop::option::of(value()));
    let op = (table(), key(), 0..8, value());
    (prop::collection::vec(expect, 0..2), prop::collection::vec(op, 0..6)).prop_map(|(expects, ops)| {
        let mut batch = Batch::new();
        for (table, key, was) in expects {
            batch.expect(table, key, was.map(Bytes::from));
        }
        for (table, key, kind, value) in ops {
            match kind {
                0 => batch.delete_prefix(table, key),
                1 => batch.delete(table, key),
                _ => batch.put(table, key, value),
            };
        }
        batch
    })
}

/// Applies a batch to the model; answers the first key that is not as expected.
fn apply(model: &mut Model, batch: &Batch) -> Result<(), Bytes> {
    for expect in &batch.expects {
        let is = model.get(&(expect.table.to_string(), expect.key.clone()));
        let wanted = match &expect.is {
            Expected::Absent => None,
            Expected::Value(value) => Some(value),
        };
        if is != wanted {
            return Err(expect.key.clone());
        }
    }
    for op in &batch.ops {
        match op {
            Op::Put { table, key, value } => {
                model.insert((table.to_string(), key.clone()), value.clone());
            }
            Op::Delete { table, key } => {
                model.remove(&(table.to_string(), key.clone()));
            }
            Op::DeletePrefix { table, prefix } => {
                model.retain(|(t, k), _| t != table || !k.starts_with(prefix));
            }
        }
    }
    Ok(())
}

fn expected_rows(model: &Model, table: &str, range: &KeyRange, rows_max: usize, reverse: bool) -> Rows {
    let mut rows: Vec<_> = model
        .iter()
        .filter(|((t, k), _)| t == table && *k >= range.from && range.to.as_ref().is_none_or(|to| k < to))
        .map(|((_, k), v)| (k.clone(), v.clone()))
        .collect();
    if reverse {
        rows.reverse();
    }
    let more = rows.len() > rows_max;
    rows.truncate(rows_max);
    Rows { rows, more }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime starts")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn tables_behave_like_a_sorted_map(
        batches in prop::collection::vec(batch(), 1..24),
        ranges in prop::collection::vec((table(), key(), prop::option::of(key()), 0_usize..6, any::<bool>()), 1..8),
        reopen in any::<bool>(),
    ) {
        runtime().block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let mut store = Embedded::open(folder.path()).unwrap();
            let mut tables = store.tables();
            let mut model = Model::new();
            for batch in batches {
                let expected = apply(&mut model, &batch);
                match (tables.commit(batch).await, expected) {
                    (Ok(()), Ok(())) => {}
                    (Err(Error::Conflict { raw_key, .. }), Err(key)) => assert_eq!(raw_key, key),
                    (got, expected) => panic!("got {got:?}, expected {expected:?}"),
                }
            }
            if reopen {
                store.close().await;
                store = Embedded::open(folder.path()).unwrap();
                tables = store.tables();
            }
            for (table, from, to, rows_max, reverse) in ranges {
                let range = to.map_or_else(|| KeyRange::prefix(&from), |to| KeyRange::between(&from, to));
                let read = Read::Range { table: table.into(), range: range.clone(), rows_max, reverse };
                let found = tables.read(vec![read, Read::get(table, &from)]).await.unwrap();
                let key = (table.to_owned(), Bytes::from(from));
                assert_eq!(found[1].value(), model.get(&key));
                assert_eq!(found[0].clone().into_rows(), expected_rows(&model, table, &range, rows_max, reverse));
            }
            store.close().await;
        });
    }
}

async fn put(tables: &dyn Tables, key: &str, value: impl Into<Bytes>) -> sluice_store::Result<()> {
    let mut batch = Batch::new();
    batch.put("t", key, value);
    tables.commit(batch).await
}

async fn keys(tables: &dyn Tables) -> Vec<String> {
    let found = tables.read(vec![Read::prefix("t", "", 100_000)]).await.expect("the read works");
    let rows = found.into_iter().next().expect("one answer").into_rows();
    rows.rows.iter().map(|(key, _)| String::from_utf8_lossy(key).into_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_writers_that_expect_the_same_exactly_one_wins_each_round() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let writers = (0..8_u64).map(|writer| {
        let tables = store.tables();
        async move {
            let mut won = 0_u64;
            while won < 25 {
                let found = tables.read(vec![Read::get("t", "counter")]).await.unwrap();
                let was = found[0].value().cloned();
                let count = was.as_ref().map_or(0, |v| u64::from_be_bytes(v[..].try_into().unwrap()));
                let mut batch = Batch::new();
                batch.expect("t", "counter", was).put("t", "counter", (count + 1).to_be_bytes().to_vec());
                batch.put("log", (count + 1).to_be_bytes(), writer.to_be_bytes().to_vec());
                match tables.commit(batch).await {
                    Ok(()) => won += 1,
                    Err(error) => assert!(error.is_conflict(), "{error}"),
                }
            }
        }
    });
    let mut set = tokio::task::JoinSet::new();
    for writer in writers {
        set.spawn(writer);
    }
    set.join_all().await;
    let found =
        store.tables().read(vec![Read::get("t", "counter"), Read::prefix("log", "", 1000)]).await.unwrap();
    assert_eq!(found[0].value().map(|v| &v[..]), Some(&200_u64.to_be_bytes()[..]));
    assert_eq!(found[1].clone().into_rows().rows.len(), 200);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_clearly_loses_nothing_and_lets_removals_through() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { reserve_bytes: 1024 * 1024, ..Options::default() };
    let store = Embedded::open_with(folder.path(), &options).unwrap();
    let tables = store.tables();
    put(&*tables, "first", "1").await.unwrap();
    options.faults.leave_space_bytes(3 * 1024 * 1024);

    let mut kept = vec!["first".to_owned()];
    let error = loop {
        let key = format!("big-{:03}", kept.len());
        match put(&*tables, &key, vec![7; 400 * 1024]).await {
            Ok(()) => kept.push(key),
            Err(error) => break error,
        }
        assert!(kept.len() < 1000, "the disk never got full");
    };
    assert!(options.faults.played() > 0);
    assert!(matches!(error, Error::Disk { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains(&folder.path().display().to_string()), "{error}");
    kept.sort();
    assert_eq!(keys(&*tables).await, kept);
    assert!(matches!(put(&*tables, "more", vec![7; 4_000_000]).await, Err(Error::Disk { .. })));

    let mut batch = Batch::new();
    batch.delete_prefix("t", "big-");
    tables.commit(batch).await.unwrap();
    assert_eq!(keys(&*tables).await, ["first"]);

    options.faults.give_space();
    put(&*tables, "last", vec![7; 4_000_000]).await.unwrap();
    store.close().await;
    let store = Embedded::open(folder.path()).unwrap();
    assert_eq!(keys(&*store.tables()).await, ["first", "last"]);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn that_there_is_no_room_is_told_until_there_is_some_also_when_nobody_writes() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { reserve_bytes: 1024 * 1024, ..Options::default() };
    let store = Embedded::open_with(folder.path(), &options).unwrap();
    let tables = store.tables();
    put(&*tables, "first", "1").await.unwrap();
    assert_eq!(store.no_room(), None);
    options.faults.leave_space_bytes(512 * 1024);
    let large = async || put(&*tables, "large", vec![7; 4_000_000]).await;
    assert!(matches!(large().await, Err(Error::Disk { .. })));
    // What the write gave back, and what was held back, is no room for others.
    for _ in 0..5 {
        assert_eq!(store.no_room(), Some("its disk is full"));
        store.look_for_room();
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let mut batch = Batch::new();
    batch.delete("t", "first");
    tables.commit(batch).await.unwrap();
    assert_eq!(store.no_room(), Some("its disk is full"), "what needs no room says nothing of it");
    options.faults.give_space();
    store.look_for_room();
    let is_told = async {
        while store.no_room().is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), is_told).await.unwrap();
    // So is it by whoever writes.
    options.faults.leave_space_bytes(512 * 1024);
    assert!(large().await.is_err() && store.no_room().is_some());
    options.faults.give_space();
    large().await.unwrap();
    assert_eq!(store.no_room(), None);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reserve_that_cannot_be_made_is_named_and_a_link_in_its_place_is_not_followed() {
    let harms: [fn(&std::path::Path); 2] = [
        |reserve| std::fs::create_dir(reserve).unwrap(),
        |reserve| std::os::unix::fs::symlink(reserve.with_file_name("target"), reserve).unwrap(),
    ];
    for harm in harms {
        let folder = tempfile::tempdir().unwrap();
        let (reserve, target) = (folder.path().join("reserve"), folder.path().join("target"));
        std::fs::write(&target, "somebody's").unwrap();
        harm(&reserve);
        let options = Options { reserve_bytes: 1024 * 1024, ..Options::default() };
        let store = Embedded::open_with(folder.path(), &options).unwrap();
        let error = put(&*store.tables(), "first", "1").await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        assert!(error.to_string().contains(&reserve.display().to_string()), "{error}");
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "somebody's");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_essential_writes_use_the_reserve_and_others_wait_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { reserve_bytes: 2 * 1024 * 1024, ..Options::default() };
    let store = Embedded::open_with(folder.path(), &options).unwrap();
    let tables = store.tables();
    options.faults.leave_space_bytes(3 * 1024 * 1024);
    let mut count = 0;
    while put(&*tables, &format!("big-{count:03}"), vec![7; 400 * 1024]).await.is_ok() {
        count += 1;
        assert!(count < 1000, "the disk never got full");
    }
    let essential = |key: String, bytes: usize| {
        let mut batch = Batch::new();
        batch.put("t", key, vec![1; bytes]).essential();
        tables.commit(batch)
    };
    assert!(matches!(put(&*tables, "more", vec![7; 400 * 1024]).await, Err(Error::Disk { .. })));
    for n in 0..50 {
        essential(format!("stop-{}", n % 5), 2000).await.unwrap();
        let other = put(&*tables, "more", vec![7; 400 * 1024]).await;
        assert!(matches!(other, Err(Error::Disk { .. })), "an ordinary write used the reserve: {other:?}");
    }
    let large = essential("large".to_owned(), 300 * 1024).await;
    assert!(matches!(large, Err(Error::Disk { .. })), "it is too large to be essential: {large:?}");
    // An essential write that is gathered with one that fills the disk is done all the same.
    options.faults.leave_space_bytes(3 * 1024 * 1024);
    put(&*tables, "fits", vec![7; 1000]).await.unwrap();
    let (large, small) =
        tokio::join!(put(&*tables, "more", vec![7; 4_000_000]), essential("stop-9".to_owned(), 2000));
    assert!(matches!(large, Err(Error::Disk { .. })), "{large:?}");
    small.unwrap();
    assert!(keys(&*tables).await.contains(&"stop-9".to_owned()));

    let mut batch = Batch::new();
    batch.delete_prefix("t", "big-");
    tables.commit(batch).await.unwrap();
    options.faults.give_space();
    put(&*tables, "last", vec![7; 400_000]).await.unwrap();
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_ends_the_store_and_what_was_acknowledged_stays() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::default();
    let store = Embedded::open_with(folder.path(), &options).unwrap();
    let tables = store.tables();
    put(&*tables, "first", "1").await.unwrap();

    options.faults.fail_syncs();
    let error = put(&*tables, "second", "2").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    assert!(options.faults.played() > 0);
    for error in [
        put(&*tables, "third", "3").await.unwrap_err(),
        tables.read(vec![Read::get("t", "first")]).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("restart"), "{error}");
    }
    store.close().await;

    let store = Embedded::open(folder.path()).unwrap();
    let found = keys(&*store.tables()).await;
    assert_eq!(found[0], "first");
    assert!(!found.contains(&"third".to_owned()));
    store.close().await;
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let tables = store.tables();
    let second = Embedded::open(folder.path()).unwrap_err();
    assert!(matches!(second, Error::Locked { .. }), "{second}");
    store.close().await;
    let error = put(&*tables, "a", "b").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("closed"), "{error}");
    Embedded::open(folder.path()).unwrap().close().await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_with_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let mut batch = Batch::new();
    batch.put("t", vec![1; 9000], "v");
    let error = store.tables().commit(batch).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { bytes: 9000, .. }), "{error}");
    store.close().await;
}
