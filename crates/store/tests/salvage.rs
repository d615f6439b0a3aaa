//! What is copied of a store that a disk damaged: every row that can be read, and the rest is named.

use std::collections::BTreeMap;
use std::fs;

use rand::{Rng as _, SeedableRng as _};
use sluice_schema::message::{Term, Triple};
use sluice_store::embedded::{Lost, Salvage, Salvaged};
use sluice_store::{
    Attributes, Batch, Embedded, Error, KeywordEntry, Options, Pattern, Read, Scope, Stores, VectorEntry,
};

const BLOCK: usize = 4096;
/// Where the file says which commit is durable.
const NOTE: std::ops::Range<usize> = 1024..1040;
const TABLES: [&str; 4] = ["alpha", "beta", "delta", "gamma"];

type Rows = BTreeMap<(String, Vec<u8>), Vec<u8>>;

fn options() -> Options {
    Options { reserve_bytes: 4096, ..Options::default() }
}

fn rows_of(store: &Embedded) -> Rows {
    let snapshot = store.snapshot().expect("it can be read");
    let mut rows = Rows::new();
    for table in snapshot.tables().expect("they are listed") {
        let page = snapshot.page(&table, None).expect("it can be read");
        assert!(!page.more);
        rows.extend(page.rows.into_iter().map(|(key, row)| ((table.clone(), key.to_vec()), row.to_vec())));
    }
    rows
}

/// A row of 400 bytes or so; some are much larger than a block.
fn row(n: usize, commit: usize) -> Vec<u8> {
    let bytes = if n.is_multiple_of(97) { 20_000 } else { 200 + n * 7 % 400 };
    vec![(n * 3 + commit) as u8; bytes]
}

async fn commit(store: &Embedded, number: usize) {
    let mut batch = Batch::new();
    for (at, table) in TABLES.into_iter().enumerate() {
        let changed = (0..if number == 0 { 900 } else { 15 }).map(|n| (n * (61 + at) + number * 37) % 900);
        for n in changed {
            let key = format!("{}-{n:04}", "key".repeat(1 + n % 20));
            if number > 0 && n.is_multiple_of(11) {
                batch.delete(table, key);
            } else {
                batch.put(table, key, row(n, number));
            }
        }
    }
    store.tables().commit(batch).await.expect("a commit works");
}

fn covers(lost: &Lost, (table, key): &(String, Vec<u8>)) -> bool {
    let key = lost.table.as_ref().map_or(table.as_bytes(), |of| if of == table { key } else { &[] });
    let is_table = lost.table.as_ref().is_none_or(|of| of == table);
    is_table && lost.keys.from <= key && lost.keys.to.as_ref().is_none_or(|to| key < to)
}

/// Salvages a file and insists that all is there, as it was in one of the commits, or is named; nothing for one without a head.
async fn salvaged(content: &[u8], commits: &[Rows]) -> Option<Salvaged> {
    let (old, new) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    fs::write(old.path().join("store.redb"), content).expect("it can be written");
    let salvage = match Salvage::open(old.path()) {
        Ok(salvage) => salvage,
        Err(error) => {
            assert!(matches!(error, Error::Damaged { .. }) && error.to_string().contains("head"), "{error}");
            return None;
        }
    };
    let store = Embedded::open_with(new.path(), &options()).expect("it is made");
    let salvaged = salvage.copy_to(&store).await.expect("what can be read is copied");
    let found = rows_of(&store);
    assert_eq!(salvaged.rows, found.len() as u64);
    for (key, row) in &commits[0] {
        let is = found.get(key);
        let is_named = salvaged.is_older || salvaged.lost.iter().any(|lost| covers(lost, key));
        assert!(is == Some(row) || is_named, "{key:?} is {:?} and not named", is.map(Vec::len));
    }
    for (key, row) in &found {
        assert!(commits.iter().any(|commit| commit.get(key) == Some(row)), "{key:?} was never like that");
        let is_older = commits[0].get(key) != Some(row);
        let taken = |lost: &Lost| covers(lost, key) && lost.older_rows.is_some();
        assert!(!is_older || salvaged.is_older || salvaged.lost.iter().any(taken), "{key:?} is older");
    }
    let mut batch = Batch::new();
    batch.put("new", "key", "value");
    store.tables().commit(batch).await.expect("it can be written to");
    store.close().await;
    let store = Embedded::open_with(new.path(), &options()).expect("it opens again");
    let read = store.tables().read(vec![Read::get("new", "key")]).await.expect("it can be read");
    assert!(read[0].value().is_some());
    store.close().await;
    let files: Vec<_> = fs::read_dir(old.path()).expect("it is there").collect();
    assert_eq!(files.len(), 1, "nothing is put into the old folder");
    assert!(fs::read(old.path().join("store.redb")).expect("it is there") == content, "it was changed");
    Some(salvaged)
}

/// A store after some commits: its file as it was closed, as a kill after the last commit leaves it, and all rows, newest first.
async fn made(count: usize) -> (Vec<u8>, Vec<u8>, Vec<Rows>) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Embedded::open_with(folder.path(), &options()).expect("it is made");
    let mut commits = Vec::new();
    for number in 0..count {
        commit(&store, number).await;
        commits.insert(0, rows_of(&store));
    }
    let unclean = fs::read(folder.path().join("store.redb")).expect("it is there");
    store.close().await;
    (fs::read(folder.path().join("store.redb")).expect("it is there"), unclean, commits)
}

#[allow(clippy::print_stdout, reason = "a failure is run again with it")]
fn random() -> rand::rngs::StdRng {
    let seed: u64 =
        std::env::var("SLUICE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("run again with SLUICE_SEED={seed}");
    rand::rngs::StdRng::seed_from_u64(seed)
}

/// Blocks of a file that hold something, its heads left out.
fn written(content: &[u8]) -> Vec<usize> {
    let is_written = |block: &usize| content[block * BLOCK..][..BLOCK].iter().any(|byte| *byte != 0);
    (2..content.len() / BLOCK).filter(is_written).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_blocks_are_damaged_all_other_rows_are_there_and_the_lost_are_named() {
    let mut random = random();
    let (content, _, commits) = made(6).await;
    let whole = salvaged(&content, &commits).await.unwrap();
    assert_eq!((whole.rows, &whole.lost[..], whole.is_older), (commits[0].len() as u64, &[][..], false));
    let written = written(&content);
    let (mut lost, mut older, mut most) = (0, 0, 0);
    for round in 0..60 {
        let mut harmed = content.clone();
        for _ in 0..=round % 6 {
            let block = written[random.random_range(0..written.len())];
            harmed[block * BLOCK + random.random_range(0..BLOCK)] ^= 1 << random.random_range(0..8);
        }
        let found = salvaged(&harmed, &commits).await.unwrap();
        lost += found.lost.iter().filter(|lost| lost.older_rows.is_none()).count();
        older += found.lost.iter().filter(|lost| lost.older_rows.is_some()).count();
        most = most.max(found.rows);
    }
    println!("{lost} times keys were lost, {older} times older rows taken");
    assert!(lost > 30 && most > commits[0].len() as u64 / 2);
    for n in 1..16 {
        salvaged(&content[..content.len() * n / 16 + n], &commits).await;
    }
    let mut headless = content.clone();
    (headless[100], headless[BLOCK + 100]) = (headless[100] ^ 1, headless[BLOCK + 100] ^ 1);
    assert_eq!(salvaged(&headless, &commits).await, None, "neither copy of the head is whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_refused_for_its_newest_commit_is_copied_with_what_the_one_before_had() {
    let (_, earlier, _) = made(7).await;
    let (_, content, commits) = made(8).await;
    let new: Vec<usize> = (3..content.len() / BLOCK)
        .filter(|block| {
            let at = block * BLOCK..(block + 1) * BLOCK;
            content[at.clone()].iter().any(|byte| *byte != 0)
                && earlier.get(at.clone()).is_none_or(|was| *was != content[at])
        })
        .collect();
    let (mut refused, mut taken) = (0, 0);
    for block in new {
        let mut harmed = content.clone();
        harmed[block * BLOCK + 100] ^= 4;
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("store.redb"), &harmed).unwrap();
        if Embedded::open_with(folder.path(), &options()).is_ok() {
            continue;
        }
        refused += 1;
        let found = salvaged(&harmed, &commits).await.unwrap();
        taken += usize::from(found.lost.iter().any(|lost| lost.older_rows.is_some()));
        // Where it is not on record as durable, the commit before is taken as a whole.
        harmed[NOTE].fill(0);
        let found = salvaged(&harmed, &commits).await.unwrap();
        assert!(found.is_older || found.lost.is_empty(), "block {block}");
        if refused == 12 {
            break;
        }
    }
    println!("{refused} were refused, {taken} with older rows taken");
    assert!(refused > 5 && taken > 0);
}

const SCOPES: [Scope<'static>; 2] = [Scope::new("default", "docs"), Scope::new("acme", "docs")];
const ENTRIES: usize = 300;

fn text(n: usize) -> KeywordEntry {
    let common: String = (0..20).map(|at| format!("common{} ", (n * 7 + at * 3) % 60)).collect();
    KeywordEntry { id: format!("urn:{n}"), text: format!("{common}only{n}"), attributes: Attributes::new() }
}

fn statement(n: usize) -> Triple {
    let term = |iri: String| Some(Term { r#type: "i".to_owned(), iri, ..Term::default() });
    Triple {
        s: term(format!("urn:s{}", n % 50)),
        p: term("urn:p".to_owned()),
        o: term(format!("urn:o{n}")),
        g: n.is_multiple_of(2).then(|| "graph".to_owned()),
    }
}

async fn fill(stores: &Stores) {
    for (at, scope) in SCOPES.into_iter().enumerate() {
        let some = || (0..ENTRIES).map(|n| n + at);
        stores.keywords.upsert(scope, some().map(text).collect()).await.expect("texts are indexed");
        stores.triples.add(scope, some().map(statement).collect()).await.expect("statements are kept");
        let vector = |n: usize| VectorEntry {
            id: format!("urn:{n}"),
            vector: (0..16).map(|at| ((n * 31 + at * 7) % 17) as f32 - 8.0).collect(),
            attributes: Attributes::new(),
        };
        stores.vectors.upsert(scope, some().map(vector).collect()).await.expect("vectors are kept");
    }
}

/// What is found: texts by a word of their own and by common ones, statements, vectors.
async fn found(stores: &Stores) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    for (at, scope) in SCOPES.into_iter().enumerate() {
        for word in (0..ENTRIES).map(|n| format!("only{}", n + at)).chain(["common3 common7".to_owned()]) {
            let texts = stores.keywords.search(scope, &word, 1_000).await.expect("a search works");
            let mut texts: Vec<String> =
                texts.into_iter().map(|found| format!("{} {:.4}", found.id, found.score)).collect();
            texts.sort();
            found.insert(format!("{at} {word}"), texts);
        }
        let triples =
            stores.triples.query(scope, &Pattern::all(), None, 10_000).await.expect("a query works");
        let mut texts: Vec<String> = triples.triples.iter().map(|triple| format!("{triple:?}")).collect();
        texts.sort();
        found.insert(format!("{at} statements"), texts);
        let like =
            stores.vectors.search(scope, &[1.0; 16], 1_000, &Attributes::new()).await.expect("it works");
        let mut like: Vec<String> = like.into_iter().map(|found| found.id).collect();
        like.sort();
        found.insert(format!("{at} vectors"), like);
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_that_lost_rows_answer_rightly_take_all_again_and_leave_nothing() {
    let mut random = random();
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open_with(folder.path(), &options()).unwrap();
    fill(&store.stores()).await;
    let good = found(&store.stores()).await;
    store.close().await;
    let content = fs::read(folder.path().join("store.redb")).unwrap();
    let written = written(&content);
    let mut unindexed = 0;
    for _ in 0..25 {
        let mut harmed = content.clone();
        for _ in 0..random.random_range(1..4) {
            let block = written[random.random_range(0..written.len())];
            harmed[block * BLOCK + random.random_range(0..BLOCK)] ^= 1;
        }
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(old.path().join("store.redb"), harmed).unwrap();
        let store = Embedded::open_with(new.path(), &options()).unwrap();
        let salvaged = Salvage::open(old.path()).unwrap().copy_to(&store).await.unwrap();
        let missing = Salvage::mend(&store, &salvaged.lost).await.unwrap();
        unindexed += missing.iter().map(|one| one.count).sum::<u64>();
        let stores = store.stores();
        let is = found(&stores).await;
        for (question, answers) in &is {
            // Scores tell how rare words are among the texts that are left.
            let id = |answer: &String| answer.split_once(' ').map_or(&answer[..], |(id, _)| id).to_owned();
            let all: Vec<String> = good[question].iter().map(id).collect();
            assert!(answers.iter().map(id).all(|answer| all.contains(&answer)), "{question}: {answers:?}");
        }
        assert!(!salvaged.lost.is_empty() || is == good);
        fill(&stores).await;
        assert!(found(&stores).await == good, "what comes again is found as before: {:?}", salvaged.lost);
        for (at, scope) in SCOPES.into_iter().enumerate() {
            let ids: Vec<String> = (0..ENTRIES).map(|n| format!("urn:{}", n + at)).collect();
            stores.keywords.remove(scope, &ids).await.unwrap();
            stores.vectors.remove(scope, &ids).await.unwrap();
            stores.triples.remove(scope, &Pattern::graph("graph")).await.unwrap();
            stores.triples.remove(scope, &Pattern::graph("")).await.unwrap();
        }
        for table in
            ["ids", "entries", "lengths", "terms", "postings", "leaving"].map(|name| format!("words.{name}"))
        {
            let left =
                store.tables().read(vec![Read::prefix(table.clone(), "", 10)]).await.unwrap().remove(0);
            assert_eq!(left.into_rows().rows.len(), 0, "{table}: {:?}", salvaged.lost);
        }
        for table in ["graph.spo", "graph.pos", "graph.osp", "vectors"] {
            let left = store.tables().read(vec![Read::prefix(table, "", 10)]).await.unwrap().remove(0);
            assert_eq!(left.into_rows().rows.len(), 0, "{table}: {:?}", salvaged.lost);
        }
        drop(stores);
        store.close().await;
    }
    println!("{unindexed} entries were named as not found any more");
    assert!(unindexed > 0);
}

#[tokio::test]
async fn digests_that_were_lost_are_made_anew_of_content_that_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open_with(folder.path(), &options()).unwrap();
    let blobs = store.stores().blobs;
    let content = |n: u8| (0..700_000_u32).map(|at| (at % 251) as u8 ^ n).collect::<Vec<u8>>();
    for (n, id) in (0..).zip(["changed", "cut", "whole"]) {
        blobs.put(id, content(n).into()).await.unwrap();
    }
    let mut batch = Batch::new();
    batch.delete_prefix("blobs.parts", "");
    store.tables().commit(batch).await.unwrap();
    for entry in fs::read_dir(folder.path().join("blobs")).unwrap() {
        let path = entry.unwrap().path();
        let mut file = fs::read(&path).unwrap();
        match file[0] {
            0 => file[600_000] ^= 1,
            1 => file.truncate(600_000),
            _ => continue,
        }
        fs::write(path, file).unwrap();
    }
    blobs.get("whole").await.unwrap_err();
    let damage = store.upkeep().check_all().await.unwrap().damage;
    assert!(damage.len() == 2 && damage[0].contains("changed") && damage[1].contains("cut"), "{damage:?}");
    assert_eq!(blobs.get("whole").await.unwrap().as_deref(), Some(&content(2)[..]));
    for id in ["changed", "cut"] {
        assert!(matches!(blobs.get(id).await, Err(Error::DamagedContent { .. })), "{id}");
    }
    drop(blobs);
    store.close().await;
}
