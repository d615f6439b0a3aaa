//! A folder gives back the room of what was removed, while it is read, and after a cut too; what it is asked to check it
//! reports in a file.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sluice_store::embedded::{Owner, Owners, Report};
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
    // Behind its end the file may be longer than what it holds; that takes no room.
    let on_disk = std::fs::metadata(folder.path().join("store.redb")).unwrap().blocks() * 512;
    println!("{full} bytes full, {after} after, of them {on_disk} on the disk, {live} live");
    assert!(after < live * 12 / 10 + 1024 * 1024, "{after} bytes for {live}");
    assert!(on_disk < live * 12 / 10 + 128 * 1024, "{on_disk} bytes for {live}: the pages are not full");
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
async fn a_file_that_writing_anew_made_no_smaller_is_left_until_there_is_more_to_gain() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Embedded::open_with(folder.path(), &options()).unwrap();
    let put = async |store: &Embedded, key: &str, bytes: usize| {
        let mut batch = Batch::new();
        batch.put("rows", key, vec![7; bytes]);
        store.tables().commit(batch).await.unwrap();
    };
    // Each takes the room of a mebibyte.
    for n in 0..24 {
        put(&store, &format!("large {n}"), 540_000).await;
    }
    let file = || std::fs::metadata(folder.path().join("store.redb")).unwrap().ino();
    let first = file();
    assert!(store.upkeep().give_back().await.unwrap());
    let anew = file();
    assert_ne!(anew, first, "it seems to be half empty");
    for n in 0..4 {
        put(&store, "small", n).await;
        assert!(store.upkeep().give_back().await.unwrap());
        assert_eq!(file(), anew, "after small write {n}");
        if n == 1 {
            store.close().await;
            store = Embedded::open_with(folder.path(), &options()).unwrap();
        }
    }
    let mut batch = Batch::new();
    for n in 0..20 {
        batch.delete("rows", format!("large {n}"));
    }
    store.tables().commit(batch).await.unwrap();
    assert!(store.upkeep().give_back().await.unwrap());
    assert_ne!(file(), anew, "now there is much to gain");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_written_anew_for_next_to_nothing_is_written_anew_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open_with(folder.path(), &options()).unwrap();
    let remove = async |store: &Embedded, from: usize| {
        let mut batch = Batch::new();
        for n in from..30_000_usize {
            batch.delete("rows", n.to_be_bytes());
        }
        store.tables().commit(batch).await.unwrap();
    };
    for left in [0, 9_000] {
        fill(&store, 30_000).await;
        let full = file_bytes(folder.path());
        remove(&store, left).await;
        assert!(store.upkeep().give_back().await.unwrap());
        let after = file_bytes(folder.path());
        assert!(after < full / 2, "{after} bytes of {full} with {left} rows");
    }
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

/// Runs what looks after a store until something holds.
async fn tended_until(store: &Embedded, what: &str, holds: impl Fn() -> bool) {
    let upkeep = store.upkeep();
    let watching = async {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
        while !holds() {
            assert!(tokio::time::Instant::now() < deadline, "never: {what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = upkeep.tend() => panic!("it is tended for ever"),
        () = watching => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_content_is_named_by_whose_it_is_and_the_rows_that_say_so_are_read_once_for_all() {
    const CONTENTS: usize = 20;
    static READ: AtomicUsize = AtomicUsize::new(0);
    fn of(key: &[u8], row: &[u8]) -> Option<Owner> {
        READ.fetch_add(1, Ordering::SeqCst);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Some(Owner { content: text(row), name: format!("page {}", text(key)) })
    }
    let folder = tempfile::tempdir().unwrap();
    let owners = Some(Owners { table: "pages", of });
    let store = Embedded::open_with(folder.path(), &Options { owners, ..options() }).unwrap();
    let mut batch = Batch::new();
    for n in 0..CONTENTS {
        store.stores().blobs.put(&format!("content-{n:02}"), vec![7; 100_000].into()).await.unwrap();
        batch.put("pages", format!("{n:02}"), format!("content-{n:02}"));
    }
    store.stores().blobs.put("content-of-nobody", vec![7; 100_000].into()).await.unwrap();
    store.tables().commit(batch).await.unwrap();
    for file in std::fs::read_dir(folder.path().join("blobs")).unwrap() {
        std::fs::write(file.unwrap().path(), "short").unwrap();
    }
    let damage = store.upkeep().check_all().await.unwrap().damage;
    assert_eq!(damage.len(), CONTENTS + 1, "{damage:?}");
    for n in 0..CONTENTS {
        let named = format!("page {n:02}: its content 'content-{n:02}' in the store cannot be read");
        assert!(damage.iter().any(|one| one.starts_with(&named)), "{named}: {damage:?}");
    }
    assert!(damage.iter().any(|one| one.starts_with("content 'content-of-nobody' in")), "{damage:?}");

    let errors: Vec<_> =
        (0..CONTENTS).map(|n| Error::damaged_content(&format!("content-{n:02}"), "it is cut")).collect();
    READ.store(0, Ordering::SeqCst);
    let named = store.upkeep().named(errors).await;
    assert!(named.iter().all(|one| one.to_string().starts_with("page ")), "{named:?}");
    assert_eq!(READ.load(Ordering::SeqCst), CONTENTS);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_stays_reported_over_restarts_until_all_was_looked_at_again() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Embedded::open_with(folder.path(), &options()).unwrap();
    let reported = || Report::read(folder.path()).unwrap();
    let store = open();
    for id in ["a", "b"] {
        store.stores().blobs.put(id, vec![7; 300_000].into()).await.unwrap();
    }
    let files = std::fs::read_dir(folder.path().join("blobs")).unwrap();
    let files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    let content = std::fs::read(&files[0]).unwrap();
    std::fs::write(&files[0], "short").unwrap();
    let found = store.upkeep().check_all().await.unwrap();
    assert_eq!((found.damage.len(), found.checks), (1, 1), "{found:?}");
    // A check that was half through before the restart, and behind what is damaged.
    let mut batch = Batch::new();
    batch.put("upkeep", "place", "content 0 b");
    store.tables().commit(batch).await.unwrap();
    store.close().await;

    let store = open();
    assert_eq!(store.upkeep().report(), found);
    store.upkeep().give_back().await.unwrap();
    assert_eq!(reported().damage, found.damage, "it was looked at nothing");
    tended_until(&store, "the check to end", || reported().checks > found.checks).await;
    assert_eq!(reported().damage, found.damage, "the rest of a check did not look at it");
    store.close().await;

    // Found whole again by a check of everything, or not missed any more.
    let store = open();
    std::fs::write(&files[0], content).unwrap();
    let found = store.upkeep().check_all().await.unwrap();
    assert!(found.damage.is_empty() && found.checked_at > 0, "{found:?}");
    std::fs::remove_file(&files[1]).unwrap();
    assert_eq!(store.upkeep().check_all().await.unwrap().damage.len(), 1);
    store.accept_lost(&store.audit_blobs().await.unwrap()).await.unwrap();
    assert_eq!(store.upkeep().check_all().await.unwrap().damage, [""; 0]);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_could_not_be_written_is_written_as_soon_as_it_can_be() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open_with(folder.path(), &options()).unwrap();
    // In its way, as a full disk is.
    let in_its_way = folder.path().join("upkeep.json.new");
    std::fs::create_dir(&in_its_way).unwrap();
    let found = store.upkeep().check_all().await.unwrap();
    assert_eq!((found.checks, Report::read(folder.path())), (1, None));
    std::fs::remove_dir(&in_its_way).unwrap();
    let first = Mutex::new(None);
    let is_there = || {
        *first.lock().unwrap() = Report::read(folder.path());
        first.lock().unwrap().is_some()
    };
    tended_until(&store, "the report", is_there).await;
    let first = first.into_inner().unwrap();
    assert_eq!(first, Some(found), "it waited for more to report");
    store.close().await;
}
