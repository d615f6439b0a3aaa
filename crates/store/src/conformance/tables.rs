//! Promises of tables.

use bytes::Bytes;

use super::{Works as _, fails};
use crate::{Batch, Error, ErrorKind, Found, KeyRange, Read, Rows, Stores, Tables};

super::promises![
    a_batch_is_seen_whole_after_it_is_acknowledged,
    expectations_must_all_hold_or_nothing_changes,
    later_changes_of_a_batch_see_earlier_ones,
    ranges_are_ordered_bounded_and_say_whether_there_is_more,
    a_prefix_is_removed_with_everything_under_it,
    tables_do_not_mix,
    all_reads_of_one_call_see_the_same_moment,
    a_refused_batch_does_not_disturb_those_beside_it,
];

async fn commit(tables: &dyn Tables, fill: impl FnOnce(&mut Batch)) -> crate::Result<()> {
    let mut batch = Batch::new();
    fill(&mut batch);
    tables.commit(batch).await
}

async fn value(tables: &dyn Tables, key: &str) -> Option<Bytes> {
    tables.read(vec![Read::get("t", key)]).await.works().remove(0).into_value()
}

async fn found(tables: &dyn Tables, read: Read) -> (Vec<String>, bool) {
    let Rows { rows, more } = tables.read(vec![read]).await.works().remove(0).into_rows();
    (rows.iter().map(|(key, _)| String::from_utf8_lossy(key).into_owned()).collect(), more)
}

async fn a_batch_is_seen_whole_after_it_is_acknowledged(stores: Stores) {
    let tables = &*stores.tables;
    assert_eq!(value(tables, "a").await, None);
    commit(tables, |batch| {
        batch.put("t", "a", "1").put("t", "b", "").put("u", "a", "3");
    })
    .await
    .works();
    let reads = vec![Read::get("t", "a"), Read::get("t", "b"), Read::get("u", "a"), Read::get("u", "b")];
    let found: Vec<_> = tables.read(reads).await.works().into_iter().map(Found::into_value).collect();
    let some = |value: &'static str| Some(Bytes::from_static(value.as_bytes()));
    assert_eq!(found, [some("1"), some(""), some("3"), None]);
}

async fn expectations_must_all_hold_or_nothing_changes(stores: Stores) {
    let tables = &*stores.tables;
    commit(tables, |batch| {
        batch.expect_absent("t", "a").put("t", "a", "1");
    })
    .await
    .works();
    let error = fails(
        commit(tables, |batch| {
            batch.expect_value("t", "a", "1").expect_value("t", "b", "2").put("t", "a", "9").delete("t", "b");
        })
        .await,
    );
    assert_eq!(error.kind(), ErrorKind::Refused);
    match error {
        Error::Conflict { table, key, raw_key } => {
            assert_eq!((table.as_str(), key.as_str(), &raw_key[..]), ("t", "b", &b"b"[..]));
        }
        other => panic!("expected a conflict, got {other:?}"),
    }
    assert_eq!(value(tables, "a").await.as_deref(), Some(&b"1"[..]));
    let absent = commit(tables, |batch| {
        batch.expect_absent("t", "a").delete("t", "a");
    });
    assert!(fails(absent.await).is_conflict());
    commit(tables, |batch| {
        batch.expect_value("t", "a", "1").expect_absent("t", "b").put("t", "a", "2");
    })
    .await
    .works();
    assert_eq!(value(tables, "a").await.as_deref(), Some(&b"2"[..]));
}

async fn later_changes_of_a_batch_see_earlier_ones(stores: Stores) {
    let tables = &*stores.tables;
    commit(tables, |batch| {
        batch.put("t", "a/1", "1").put("t", "a/2", "2").delete_prefix("t", "a/").put("t", "a/3", "3");
        batch.put("t", "b", "1").put("t", "b", "2").delete("t", "c").put("t", "c", "1").delete("t", "c");
    })
    .await
    .works();
    assert_eq!(found(tables, Read::prefix("t", "", 10)).await.0, ["a/3", "b"]);
    assert_eq!(value(tables, "b").await.as_deref(), Some(&b"2"[..]));
}

async fn ranges_are_ordered_bounded_and_say_whether_there_is_more(stores: Stores) {
    let tables = &*stores.tables;
    commit(tables, |batch| {
        for key in ["b/2", "a", "c", "b/10", "b/1", "b"] {
            batch.put("t", key, key);
        }
    })
    .await
    .works();
    let check = |read, keys: &'static [&'static str], more| async move {
        let (got, got_more) = found(tables, read).await;
        assert_eq!((got, got_more), (keys.iter().map(|k| (*k).to_owned()).collect(), more));
    };
    check(Read::prefix("t", "", 100), &["a", "b", "b/1", "b/10", "b/2", "c"], false).await;
    check(Read::prefix("t", "b/", 3), &["b/1", "b/10", "b/2"], false).await;
    check(Read::prefix("t", "b/", 2), &["b/1", "b/10"], true).await;
    check(Read::range("t", KeyRange::prefix("b/").after("b/10"), 9), &["b/2"], false).await;
    check(Read::range("t", KeyRange::between("a", "b/1"), 9), &["a", "b"], false).await;
    check(Read::range("t", KeyRange::between("b", "a"), 9), &[], false).await;
    check(Read::range_reverse("t", KeyRange::prefix("b"), 2), &["b/2", "b/10"], true).await;
    check(Read::prefix("nothing", "", 9), &[], false).await;
    check(Read::prefix("t", "", 0), &[], true).await;
}

async fn a_prefix_is_removed_with_everything_under_it(stores: Stores) {
    let tables = &*stores.tables;
    commit(tables, |batch| {
        for key in ["a", "b", "b/1", "bc"] {
            batch.put("t", key, "1");
        }
        batch.put("t", b"b\xff\xff", "1").put("t", b"c", "1");
    })
    .await
    .works();
    commit(tables, |batch| {
        batch.delete_prefix("t", "b").delete_prefix("nothing", "");
    })
    .await
    .works();
    assert_eq!(found(tables, Read::prefix("t", "", 9)).await.0, ["a", "c"]);
    commit(tables, |batch| {
        batch.delete_prefix("t", "");
    })
    .await
    .works();
    assert_eq!(found(tables, Read::prefix("t", "", 9)).await.0, [""; 0]);
}

async fn tables_do_not_mix(stores: Stores) {
    let tables = &*stores.tables;
    commit(tables, |batch| {
        batch.put("t", "a", "1").put("ta", "", "2").put("t2", "a", "3");
    })
    .await
    .works();
    commit(tables, |batch| {
        batch.delete_prefix("t", "");
    })
    .await
    .works();
    assert_eq!(found(tables, Read::prefix("ta", "", 9)).await.0, [""]);
    assert_eq!(found(tables, Read::prefix("t2", "", 9)).await.0, ["a"]);
}

async fn all_reads_of_one_call_see_the_same_moment(stores: Stores) {
    let tables = &stores.tables;
    let writing = async {
        for n in 0..100_u32 {
            commit(&**tables, |batch| {
                let value = n.to_be_bytes().to_vec();
                batch.put("t", "a", value.clone()).put("u", "b", value);
            })
            .await
            .works();
        }
    };
    let reading = async {
        for _ in 0..200 {
            let found = tables.read(vec![Read::get("t", "a"), Read::prefix("u", "", 1)]).await.works();
            let [a, b] = <[Found; 2]>::try_from(found).expect("two answers");
            let b = b.into_rows().rows.pop().map(|(_, value)| value);
            assert_eq!(a.into_value(), b);
        }
    };
    both(writing, reading).await;
}

async fn a_refused_batch_does_not_disturb_those_beside_it(stores: Stores) {
    let tables = &stores.tables;
    let good = async {
        for n in 0..50_u32 {
            commit(&**tables, |batch| {
                batch.expect_absent("t", n.to_be_bytes()).put("t", n.to_be_bytes(), "1");
            })
            .await
            .works();
        }
    };
    let bad = async {
        for _ in 0..50 {
            let refused = commit(&**tables, |batch| {
                batch.put("u", "a", "1").expect_value("u", "never", "1");
            });
            assert!(fails(refused.await).is_conflict());
        }
    };
    both(good, bad).await;
    assert_eq!(found(&**tables, Read::prefix("t", "", 100)).await.0.len(), 50);
    assert_eq!(found(&**tables, Read::prefix("u", "", 100)).await.0, [""; 0]);
}

async fn both(a: impl Future<Output = ()>, b: impl Future<Output = ()>) {
    tokio::join!(a, b);
}
