//! A folder gives back the room of what was removed, while it is read, and after a cut too; what it is asked to check it
//! reports in a file.

use std::path::Path;
use std::time::Duration;

use sluice_store::embedded::Report;
use sluice_store::{Batch, Embedded, Error, Options, Read};

fn options() -> Options {
    Options { reserve_bytes: 4096, ..Options::default() }
}

fn file_bytes(folder: &Path) -> u64 {
    std::fs::metadata(folder.join("store.redb")).expect("it is there").len()
}

async fn fill(store: &Embedded, rows: usize) {
    for from in (0..rows).step_by(500) {
        let mut batch = Batch::new();
        for n in from..(from + 500).min(rows) {
            // In no order, as most rows come.
            batch.put("rows", (n * 7919 % rows).to_be_bytes(), vec![n as u8; 700]);
        }
        store.tables().commit(batch).await.expect("a commit works");
    }
}

async fn keys(store: &Embedded) -> usize {
    let mut found = store.tables().read(vec![Read::prefix("rows", "", 100_000)]).await.expect("a read works");
    found.remove(0).into_rows().rows.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_removed_gives_its_room_back_and_the_rest_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open_with(folder.path(), &options()).unwrap();
    fill(&store, 30_000).await;
    let full = file_bytes(folder.path());
    let mut batch = Batch::new();
    for n in 3_000..30_000_usize {
        batch.delete("rows", n.to_be_bytes());
    }
    store.tables().commit(batch).await.unwrap();
    assert!(file_bytes(folder.path()) > full / 2, "it takes a compaction");
    let snapshot = store.snapshot().unwrap();
    assert!(!store.upkeep().give_back().await.unwrap(), "a snapshot reads the old file");
    assert_eq!(snapshot.page("rows", None).unwrap().rows.len(), 3_000);
    drop(snapshot);
    assert!(store.upkeep().give_back().await.unwrap());
    let live = 3_000 * 708;
    let after = file_bytes(folder.path());
    println!("{full} bytes full, {after} after, {live} live");
    assert!(after < live * 12 / 10 + 1024 * 1024, "{after} bytes for {live}");
    assert_eq!(keys(&store).await, 3_000);
    let report = Report::read(folder.path()).unwrap();
    assert_eq!(report, store.upkeep().report());
    assert!(
        report.store_bytes <= after && report.used_bytes >= live && report.used_bytes <= report.store_bytes
    );

    let mut batch = Batch::new();
    batch.put("rows", "new", "value");
    store.tables().commit(batch).await.unwrap();
    store.close().await;
    // What a compaction that was cut off leaves behind is in nobody's way.
    std::fs::write(folder.path().join("store.compacted"), "half").unwrap();
    let store = Embedded::open_with(folder.path(), &options()).unwrap();
    assert!(!folder.path().join("store.compacted").exists());
    assert_eq!(keys(&store).await, 3_001);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_gives_way_to_writes_and_leaves_reads_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open_with(folder.path(), &options()).unwrap();
    fill(&store, 20_000).await;
    let mut batch = Batch::new();
    batch.delete_prefix("rows", 0_u32.to_be_bytes()).put("rows", "kept", "1");
    store.tables().commit(batch).await.unwrap();
    fill(&store, 5_000).await;
    let upkeep = store.upkeep();
    let mut done = 0;
    for n in 0..20_u32 {
        let write = async {
            let mut batch = Batch::new();
            batch.put("others", n.to_be_bytes(), "value");
            store.tables().commit(batch).await.unwrap();
        };
        let (given_back, (), read) = tokio::join!(upkeep.give_back(), write, keys(&store));
        done += usize::from(given_back.unwrap());
        assert_eq!(read, 5_001);
    }
    println!("{done} of 20 were done");
    let others = store.tables().read(vec![Read::prefix("others", "", 100)]).await.unwrap().remove(0);
    assert_eq!(others.into_rows().rows.len(), 20);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_a_compaction_fails_and_harms_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let options = options();
    let store = Embedded::open_with(folder.path(), &options).unwrap();
    fill(&store, 20_000).await;
    let mut batch = Batch::new();
    for n in 8_000..20_000_usize {
        batch.delete("rows", n.to_be_bytes());
    }
    store.tables().commit(batch).await.unwrap();
    options.faults.leave_space_bytes(500_000);
    store.upkeep().give_back().await.unwrap_err();
    assert!(options.faults.played() > 0);
    assert!(!folder.path().join("store.compacted").exists());
    assert_eq!(keys(&store).await, 8_000);
    options.faults.give_space();
    assert!(store.upkeep().give_back().await.unwrap());
    assert_eq!(keys(&store).await, 8_000);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_folder_is_made_smaller_and_checked_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open_with(folder.path(), &options()).unwrap();
    fill(&store, 20_000).await;
    let mut batch = Batch::new();
    batch.delete_prefix("rows", "");
    store.tables().commit(batch).await.unwrap();
    let full = file_bytes(folder.path());
    let upkeep = store.upkeep();
    let tending = async {
        upkeep.tend().await;
    };
    let until = async |what: &str, is: &dyn Fn() -> bool| {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
        while !is() {
            assert!(tokio::time::Instant::now() < deadline, "never: {what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let watching = async {
        until("smaller", &|| file_bytes(folder.path()) < full / 4).await;
        Report::ask_to_check(folder.path()).unwrap();
        until("taken", &|| !folder.path().join("check.now").exists()).await;
        until("checked", &|| Report::read(folder.path()).is_some_and(|report| report.checked_at > 0)).await;
    };
    tokio::select! {
        () = tending => panic!("it is tended for ever"),
        () = watching => {}
    }
    let report = Report::read(folder.path()).unwrap();
    assert_eq!(report.damage, [""; 0]);
    assert!(report.store_bytes > 0);
    store.close().await;
}

/// The folder as a kill would leave it now, with a bit of a row flipped.
fn left_behind(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a folder can be made");
    let mut content = std::fs::read(folder.join("store.redb")).expect("it can be read");
    let row = content.windows(9).rposition(|window| window == b"a-row-key").expect("the row is there");
    content[row + 20] ^= 1;
    std::fs::write(copy.path().join("store.redb"), content).expect("it can be written");
    copy
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_idle_opens_after_an_unclean_end_without_reading_all_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open_with(folder.path(), &options()).unwrap();
    let mut batch = Batch::new();
    batch.put("old", "a-row-key", vec![b'x'; 500]);
    store.tables().commit(batch).await.unwrap();
    fill(&store, 2_000).await;
    // A store that was written to a moment ago is read from end to end, which meets the damage.
    let busy = left_behind(folder.path());
    let error = Embedded::open_with(busy.path(), &options()).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");

    let upkeep = store.upkeep();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        tokio::select! {
            () = upkeep.tend() => panic!("it is tended for ever"),
            () = tokio::time::sleep(Duration::from_secs(3)) => {}
        }
        let idle = left_behind(folder.path());
        match Embedded::open_with(idle.path(), &options()) {
            Ok(opened) => {
                let found = opened.tables().read(vec![Read::get("old", "a-row-key")]).await;
                assert!(matches!(found, Err(Error::Damaged { .. })), "{found:?}");
                opened.close().await;
                break;
            }
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
        }
    }
    store.close().await;
}
