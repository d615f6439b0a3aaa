//! Killed at random moments, the store keeps every acknowledged batch, each whole.
//!
//! The test starts itself as a child that commits numbered batches and says each number after it was acknowledged; it
//! kills the child after a random number of them and looks at what is left.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _};
use sluice_store::{Batch, Embedded, Error, KeyRange, Read, Stores};

const FOLDER: &str = "SLUICE_STORE_CRASH_FOLDER";
const FIRST: &str = "SLUICE_STORE_CRASH_FIRST";
const WRITERS: u64 = 8;
const PARTS: u64 = 20;
const ROUNDS: usize = 12;

fn value(number: u64, part: u64) -> Vec<u8> {
    let bytes = usize::try_from((number * 37 + part * 11) % 3000).expect("it is small");
    vec![(number % 251) as u8; bytes]
}

fn blob(number: u64) -> Bytes {
    let bytes = usize::try_from(number % 4 * 50_000).expect("it is small");
    vec![(number % 251) as u8; bytes].into()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime starts")
}

/// The child: not a test of its own, it only runs when the parent has named a folder.
#[test]
#[ignore = "started by the crash test"]
fn child_that_writes_until_it_is_killed() {
    let (Ok(folder), Ok(first)) = (std::env::var(FOLDER), std::env::var(FIRST)) else { return };
    let first: u64 = first.parse().expect("a number");
    runtime().block_on(async {
        let store = Embedded::open(folder).expect("the store opens");
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            writers.spawn(write_for_ever(store.stores(), first + writer));
        }
        writers.join_all().await;
    });
}

async fn write_for_ever(stores: Stores, mut number: u64) {
    loop {
        let id = format!("blob-{number}");
        let mut batch = Batch::new();
        for part in 0..PARTS {
            batch.put("parts", [number.to_be_bytes(), part.to_be_bytes()].concat(), value(number, part));
        }
        batch.expect_absent("heads", number.to_be_bytes()).put("heads", number.to_be_bytes(), "head");
        stores.tables.commit(batch).await.expect("a commit works");
        stores.blobs.put(&id, blob(number)).await.expect("a blob is stored");
        let mut out = std::io::stdout().lock();
        writeln!(out, "\nack {number}").and_then(|()| out.flush()).expect("the parent listens");
        number += WRITERS;
    }
}

#[test]
fn after_a_kill_every_acknowledged_batch_is_there_and_batches_are_whole() {
    let seed: u64 =
        std::env::var("SLUICE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("run again with SLUICE_SEED={seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    let mut next = 0;
    for _ in 0..ROUNDS {
        acknowledged.extend(run_and_kill(folder.path(), next, random.random_range(1..120)));
        next = runtime().block_on(check(folder.path(), &acknowledged));
    }
    assert!(acknowledged.len() > ROUNDS);
}

/// Runs the child until it has acknowledged some writes, then kills it; answers what it acknowledged.
fn run_and_kill(folder: &Path, first: u64, acks: usize) -> Vec<u64> {
    let mut child = Command::new(std::env::current_exe().expect("the test knows itself"))
        .args(["child_that_writes_until_it_is_killed", "--exact", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .env(FIRST, first.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let mut acknowledged = Vec::new();
    let mut killed = false;
    for line in lines.map_while(Result::ok) {
        if let Some(number) = line.strip_prefix("ack ").and_then(|n| n.parse().ok()) {
            acknowledged.push(number);
        }
        if acknowledged.len() >= acks && !killed {
            child.kill().expect("the child was running");
            killed = true;
        }
    }
    let status = child.wait().expect("the child ends");
    assert!(killed && !status.success(), "the child ended by itself: {status}");
    acknowledged
}

/// Checks everything; answers the first number that was never used.
async fn check(folder: &Path, acknowledged: &[u64]) -> u64 {
    let store = open_when_free(folder);
    let stores = store.stores();
    let heads = all(&stores, "heads").await;
    for number in acknowledged {
        assert!(heads.contains_key(&Bytes::from(number.to_be_bytes().to_vec())), "batch {number} is lost");
        let found = stores.blobs.get(&format!("blob-{number}")).await.expect("the read works");
        assert!(found == Some(blob(*number)), "the blob of {number} is lost or differs");
    }
    let mut parts = all(&stores, "parts").await;
    let mut next = 0;
    for head in heads.keys() {
        let number = u64::from_be_bytes(head[..].try_into().expect("a number"));
        for part in 0..PARTS {
            let found = parts.remove(&Bytes::from([number.to_be_bytes(), part.to_be_bytes()].concat()));
            assert!(found == Some(value(number, part).into()), "batch {number} is not whole: part {part}");
        }
        next = next.max(number + 1);
    }
    assert!(parts.is_empty(), "parts of batches that were never applied: {:?}", parts.keys());

    let audit = store.audit_blobs().await.expect("the look works");
    assert_eq!((audit.missing, audit.unknown), (Vec::new(), 0));
    store.sweep(&store.audit_blobs().await.expect("the look works")).await.expect("the sweep works");
    let files = std::fs::read_dir(folder.join("blobs")).expect("the folder is there").count();
    let large = stores.blobs.list("blob-", None, 100_000).await.expect("the list works");
    let large = large.iter().filter(|entry| entry.bytes > 64 * 1024).count();
    assert_eq!(files, large, "files that no blob names were left");
    store.close().await;
    next
}

/// The system releases the lock of a killed process, a moment after it is gone at the latest.
fn open_when_free(folder: &Path) -> Embedded {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        match Embedded::open(folder) {
            Err(Error::Locked { .. }) if std::time::Instant::now() < deadline => std::thread::yield_now(),
            opened => return opened.expect("the store opens after a kill"),
        }
    }
}

async fn all(stores: &Stores, table: &'static str) -> BTreeMap<Bytes, Bytes> {
    let tables = Arc::clone(&stores.tables);
    let mut rows = BTreeMap::new();
    let mut range = KeyRange::all();
    loop {
        let found = tables.read(vec![Read::range(table, range.clone(), 5000)]).await.expect("the read works");
        let page = found.into_iter().next().expect("one answer").into_rows();
        let last = page.rows.last().map(|(key, _)| key.clone());
        rows.extend(page.rows);
        match last {
            Some(last) if page.more => range = range.after(last),
            _ => return rows,
        }
    }
}
