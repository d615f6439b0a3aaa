//! What a disk may do to the files of a small folder: bits flipped, blocks swapped, ends cut off. Every start is refused
//! by name or works, every read is answered as before or fails as damaged, and nothing is removed.
//!
//! `SLUICE_FLIPS=64` tries that many bits of each block instead of two.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _};
use redb::TableDefinition;
use sluice_schema::message::{Term, Triple};
use sluice_store::embedded::Place;
use sluice_store::{
    Attributes, Batch, Embedded, Error, KeywordEntry, Options, Pattern, Read, Scope, Stores, VectorEntry,
};

const SCOPE: Scope<'static> = Scope::new("default", "docs");
const TABLES: [&str; 3] = ["one", "two", "three"];
const BLOCK: usize = 4096;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("it starts")
}

fn options() -> Options {
    Options { reserve_bytes: 4096, ..Options::default() }
}

fn blob(n: u8) -> Bytes {
    (0..300_000_u32 + u32::from(n) * 70_000).map(|at| (at % 251) as u8 ^ n).collect()
}

fn statement(n: usize) -> Triple {
    let term = |iri: String| Some(Term { r#type: "i".to_owned(), iri, ..Term::default() });
    Triple {
        s: term(format!("urn:s{}", n % 5)),
        p: term("urn:p".to_owned()),
        o: term(format!("urn:o{n}")),
        g: None,
    }
}

async fn fill(stores: &Stores) {
    for (n, table) in TABLES.into_iter().enumerate() {
        let mut batch = Batch::new();
        for row in 0..120_usize {
            batch.put(table, format!("key-{row:04}"), vec![(row + n) as u8; row * 7 % 400]);
        }
        batch.put(table, "large", vec![n as u8; 20_000]);
        stores.tables.commit(batch).await.expect("a commit works");
    }
    stores.blobs.put("small", Bytes::from_static(b"a small text")).await.expect("content is stored");
    for n in 0..2 {
        stores.blobs.put(&format!("large-{n}"), blob(n)).await.expect("content is stored");
    }
    let id = |n: usize| format!("chunk-{n}");
    let text = |n: usize| format!("the pump {n} leaks at valve {}", n % 3);
    let keywords = (0..20).map(|n| KeywordEntry { id: id(n), text: text(n), attributes: Attributes::new() });
    stores.keywords.upsert(SCOPE, keywords.collect()).await.expect("texts are indexed");
    let vector = |n: usize| (0..16).map(|at| ((n * 31 + at * 7) % 17) as f32 - 8.0).collect();
    let vectors =
        (0..20).map(|n| VectorEntry { id: id(n), vector: vector(n), attributes: Attributes::new() });
    stores.vectors.upsert(SCOPE, vectors.collect()).await.expect("vectors are kept");
    stores.triples.add(SCOPE, (0..40).map(statement).collect()).await.expect("statements are kept");
}

type Answers = BTreeMap<String, Result<String, Error>>;

async fn ask(stores: &Stores) -> Answers {
    let mut answers = Answers::new();
    for table in TABLES {
        let read = |read| async { stores.tables.read(vec![read]).await.map(|found| format!("{found:?}")) };
        answers.insert(format!("all of {table}"), read(Read::prefix(table, "", 1000)).await);
        for key in ["key-0000", "key-0059", "key-0119", "large", "not there"] {
            answers.insert(format!("{key} of {table}"), read(Read::get(table, key)).await);
        }
    }
    for id in ["small", "large-0", "large-1", "not there"] {
        let hash = |found: Result<Option<Bytes>, Error>| {
            found
                .map(|found| format!("{:?}", found.map(|content| (content.len(), crc32fast::hash(&content)))))
        };
        answers.insert(format!("blob {id}"), hash(stores.blobs.get(id).await));
        let part = stores.blobs.get_range(id, 262_000, 1000).await;
        answers.insert(format!("part of blob {id}"), hash(part));
    }
    let listed = stores.blobs.list("", None, 100).await.map(|found| format!("{found:?}"));
    answers.insert("blobs".to_owned(), listed);
    let words = stores.keywords.search(SCOPE, "leaking pump 7", 50).await;
    answers.insert("words".to_owned(), words.map(|found| format!("{found:?}")));
    let likeness = stores.vectors.search(SCOPE, &[1.0; 16], 5, &Attributes::new()).await;
    answers.insert("likeness".to_owned(), likeness.map(|found| format!("{found:?}")));
    let of_one = Pattern { s: statement(3).s, ..Pattern::all() };
    for (name, pattern) in [("statements", Pattern::all()), ("statements of one", of_one)] {
        let found = stores.triples.query(SCOPE, &pattern, None, 1000).await;
        let texts = found.map(|page| {
            let mut texts: Vec<_> = page.triples.iter().map(|triple| format!("{triple:?}")).collect();
            texts.sort();
            texts.join(" ")
        });
        answers.insert(name.to_owned(), texts);
    }
    answers
}

/// The files of a folder with their content.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let of = |folder: &Path, prefix: &str| {
        let entries = fs::read_dir(folder).expect("the folder is there").map(|entry| entry.expect("it is"));
        let files = entries.filter(|entry| entry.file_type().expect("it has a type").is_file());
        let named = files.map(|entry| {
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            (name, fs::read(entry.path()).expect("it can be read"))
        });
        named.collect::<Vec<_>>()
    };
    of(folder, "").into_iter().chain(of(&folder.join("blobs"), "blobs/")).collect()
}

struct Played {
    refused: usize,
    damaged: usize,
    unharmed: usize,
}

/// Puts the files there as they are given, opens the folder and compares; answers what happened.
fn play(before: &BTreeMap<String, Vec<u8>>, good: &Answers, harmed: (&str, &[u8]), played: &mut Played) {
    let folder = tempfile::tempdir().expect("a folder can be made");
    fs::create_dir(folder.path().join("blobs")).expect("a folder can be made");
    for (name, content) in before {
        let content = if name == harmed.0 { harmed.1 } else { content };
        fs::write(folder.path().join(name), content).expect("a file can be written");
    }
    runtime().block_on(async {
        match Embedded::open_with(folder.path(), &options()) {
            Err(error) => {
                assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
                played.refused += 1;
            }
            Ok(store) => {
                let mut harm = 0;
                for (question, answer) in ask(&store.stores()).await {
                    match (&answer, &good[&question]) {
                        (Ok(is), Ok(was)) => assert_eq!(is, was, "{question}"),
                        (Err(error), _) if error.is_damage() => harm += 1,
                        other => panic!("{question}: {other:?}"),
                    }
                }
                let mut batch = Batch::new();
                batch.put("four", "key", "value").put("one", "key-0060", "new");
                match store.tables().commit(batch).await {
                    Ok(()) => {
                        let found = store.tables().read(vec![Read::get("four", "key")]).await;
                        assert_eq!(
                            found.expect("it is there")[0].value().map(|v| &v[..]),
                            Some(&b"value"[..])
                        );
                    }
                    // The engine's own records are damaged: nothing can be written any more.
                    Err(Error::OutcomeUnknown { reason, .. }) => {
                        assert!(reason.contains("restore it from a backup"), "{reason}");
                        let after = store.tables().read(vec![Read::get("four", "key")]).await;
                        assert!(matches!(after, Err(Error::Damaged { .. })), "{after:?}");
                        harm += 1;
                    }
                    Err(error) => assert!(matches!(error, Error::Damaged { .. }), "{error:?}"),
                }
                if harm > 0 {
                    played.damaged += 1
                } else {
                    played.unharmed += 1
                }
                store.close().await;
            }
        }
    });
    let after = files(folder.path());
    for (name, content) in before.iter().filter(|(name, _)| name.starts_with("blobs/")) {
        let kept = if name == harmed.0 { harmed.1 } else { &content[..] };
        assert!(after.get(name).is_some_and(|is| is == kept), "'{name}' was removed or changed");
    }
}

fn small_folder() -> (BTreeMap<String, Vec<u8>>, Answers) {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let good = runtime().block_on(async {
        let store = Embedded::open_with(folder.path(), &options()).expect("the store opens");
        fill(&store.stores()).await;
        let good = ask(&store.stores()).await;
        store.close().await;
        good
    });
    assert!(good.values().all(Result::is_ok), "{good:?}");
    (files(folder.path()), good)
}

#[test]
fn every_flipped_bit_is_refused_reported_or_harmless() {
    let seed: u64 =
        std::env::var("SLUICE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("run again with SLUICE_SEED={seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let flips: usize = std::env::var("SLUICE_FLIPS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let (before, good) = small_folder();
    let mut played = Played { refused: 0, damaged: 0, unharmed: 0 };
    for (name, content) in
        before.iter().filter(|(name, _)| *name == "store.redb" || name.starts_with("blobs/"))
    {
        // What was never written reads as zeros, and nobody reads it.
        let written =
            content.chunks(BLOCK).enumerate().filter(|(_, block)| block.iter().any(|byte| *byte != 0));
        for (block, bytes) in written {
            // The heads are small and matter most.
            let count = if name == "store.redb" && block < 2 { 40 } else { flips };
            for _ in 0..count {
                let within = if name == "store.redb" && block < 2 { 512 } else { bytes.len() };
                let at = block * BLOCK + random.random_range(0..within);
                let mut harmed = content.clone();
                harmed[at] ^= 1 << random.random_range(0..8);
                play(&before, &good, (name, &harmed), &mut played);
            }
        }
    }
    let Played { refused, damaged, unharmed } = played;
    println!("{refused} starts refused, {damaged} with reads reported as damaged, {unharmed} unharmed");
    assert!(refused > 0 && damaged > 20 && unharmed > 0);
}

#[test]
fn swapped_blocks_and_cut_files_are_refused_reported_or_harmless() {
    let (before, good) = small_folder();
    let mut played = Played { refused: 0, damaged: 0, unharmed: 0 };
    let large: Vec<_> = before.keys().filter(|name| name.starts_with("blobs/")).cloned().collect();
    assert_eq!(large.len(), 2);
    for name in ["store.redb", &large[0], &large[1]] {
        let content = &before[name];
        let blocks = content.len() / BLOCK;
        for n in 1..12 {
            let (from, to) = (n * blocks / 12, (n * 7 + 3) % blocks);
            if from == to {
                continue;
            }
            let mut harmed = content.clone();
            harmed[to * BLOCK..][..BLOCK].copy_from_slice(&content[from * BLOCK..][..BLOCK]);
            harmed[from * BLOCK..][..BLOCK].copy_from_slice(&content[to * BLOCK..][..BLOCK]);
            play(&before, &good, (name, &harmed), &mut played);
            let cut = content.len() * n / 12 + n;
            play(&before, &good, (name, &content[..cut]), &mut played);
        }
    }
    play(&before, &good, (&large[0], &before[&large[1]]), &mut played);
    assert!(played.refused > 0 && played.damaged > 0);
}

#[tokio::test]
async fn what_was_acknowledged_last_before_a_crash_is_there_or_its_loss_is_named() {
    /// Where the file says which commit is durable.
    const NOTE: std::ops::Range<usize> = 1024..1040;
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open_with(folder.path(), &options()).unwrap();
    let commit = async |n: usize| {
        let mut batch = Batch::new();
        for row in 0..60_usize {
            batch.put("rows", format!("key-{:03}", (row * 7 + n * 13) % 400), vec![n as u8; 300]);
        }
        batch.put("last", "n", n.to_string());
        store.tables().commit(batch).await.unwrap();
        // As a kill leaves it: nothing is under way.
        fs::read(folder.path().join("store.redb")).unwrap()
    };
    for n in 0..20 {
        commit(n).await;
    }
    let (earlier, content) = (commit(20).await, commit(21).await);
    store.close().await;
    assert_ne!(earlier[NOTE], content[NOTE]);

    let open = async |content: &[u8]| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("store.redb"), content).unwrap();
        let store = Embedded::open_with(folder.path(), &options())?;
        let last = store.tables().read(vec![Read::get("last", "n")]).await;
        store.close().await;
        Ok::<_, Error>(last.map(|found| found[0].value().map(|n| String::from_utf8_lossy(n).into_owned())))
    };
    let last = |n: usize| Some(n.to_string());
    assert_eq!(open(&content).await.unwrap().unwrap(), last(21));
    assert_eq!(open(&earlier).await.unwrap().unwrap(), last(20));
    // Blocks that the last commit wrote: the heads and checksums left out.
    let new: Vec<usize> = (3..content.len() / BLOCK)
        .filter(|block| {
            let at = block * BLOCK..(block + 1) * BLOCK;
            earlier.get(at.clone()).is_none_or(|was| *was != content[at])
        })
        .collect();
    let (mut refused, mut undone) = (0, 0);
    for block in &new {
        let mut harmed = content.clone();
        harmed[block * BLOCK + 100] ^= 4;
        match open(&harmed).await {
            Err(error) => {
                let is_named = error.to_string().contains("what was committed last is lost");
                assert!(matches!(error, Error::Damaged { .. }) && is_named, "{error}");
                refused += 1;
            }
            Ok(Ok(found)) => assert_eq!(found, last(21), "block {block}"),
            Ok(Err(error)) => assert!(matches!(error, Error::Damaged { .. }), "{error}"),
        }
        // Before the sync ended, nobody was told that it is there: then the commit before counts.
        harmed[NOTE].copy_from_slice(&earlier[NOTE]);
        undone += usize::from(open(&harmed).await.unwrap().unwrap() == last(20));
    }
    println!("of {} new blocks {refused} refused; {undone} undone where the sync had not ended", new.len());
    assert!(refused > 5 && undone == refused);

    // An older head over newer blocks.
    let mut old_head = content.clone();
    for at in [0, BLOCK] {
        old_head[at..at + 512].copy_from_slice(&earlier[at..at + 512]);
    }
    let error = open(&old_head).await.unwrap_err();
    assert!(error.to_string().contains("older than what was committed to it last"), "{error}");
}

#[tokio::test]
async fn damage_is_named_by_table_and_key_and_others_can_be_read_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open_with(folder.path(), &options()).unwrap();
    let mut batch = Batch::new();
    for n in 0..200 {
        batch.put("rows", format!("key-{n:03}"), vec![b'a' + (n % 26) as u8; 500]);
    }
    store.tables().commit(batch).await.unwrap();
    store.close().await;
    let path = folder.path().join("store.redb");
    let mut content = fs::read(&path).unwrap();
    let at = content.windows(7).position(|window| window == b"key-100").unwrap();
    content[at + 2] ^= 1;
    fs::write(&path, content).unwrap();

    let store = Embedded::open_with(folder.path(), &options()).unwrap();
    let tables = &*store.tables();
    let get = |key: &'static str| async move { tables.read(vec![Read::get("rows", key)]).await };
    let error = get("key-100").await.unwrap_err().to_string();
    assert!(error.contains("row 'key-100' of table 'rows'") && error.contains("backup"), "{error}");
    assert!(tables.read(vec![Read::prefix("rows", "", 1000)]).await.is_err());
    assert!(get("key-000").await.unwrap()[0].value().is_some());

    let mut good = Batch::new();
    good.put("rows", "key-000", "new").put("others", "a", "1");
    let mut bad = Batch::new();
    bad.put("rows", "key-100", "new");
    let (good, bad) = tokio::join!(tables.commit(good), tables.commit(bad));
    good.unwrap();
    let error = bad.unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
    assert_eq!(get("key-000").await.unwrap()[0].value().map(|v| &v[..]), Some(&b"new"[..]));
    store.close().await;
}

#[tokio::test]
async fn content_of_a_folder_without_checksums_is_kept_and_gets_them() {
    const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");
    const PLACES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("blobs");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let old = redb::Database::create(&path).unwrap();
    let transaction = old.begin_write().unwrap();
    {
        let mut rows = transaction.open_table(ROWS).unwrap();
        for n in 0..3000_u32 {
            rows.insert(&n.to_be_bytes()[..], &vec![n as u8; 900][..]).unwrap();
        }
        let mut places = transaction.open_table(PLACES).unwrap();
        let place = [&300_000_u64.to_le_bytes()[..], b"a-1"].concat();
        places.insert(&b"content"[..], &place[..]).unwrap();
    }
    transaction.commit().unwrap();
    drop(old);
    fs::create_dir(folder.path().join("blobs")).unwrap();
    fs::write(folder.path().join("blobs/a-1"), blob(0)).unwrap();
    assert!(fs::read(&path).unwrap().starts_with(b"redb"));

    // A disk that is too small leaves it as it is.
    let options = options();
    options.faults.leave_space_bytes(100_000);
    let error = Embedded::open_with(folder.path(), &options).unwrap_err();
    assert!(matches!(error, Error::Disk { .. }), "{error:?}");
    assert!(fs::read(&path).unwrap().starts_with(b"redb"));
    assert_eq!(
        fs::read_dir(folder.path())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().ends_with(".new"))
            .count(),
        0
    );
    options.faults.give_space();
    // What a migration that was cut off left behind does no harm.
    fs::write(folder.path().join("store.new"), "half").unwrap();
    for _ in 0..2 {
        let store = Embedded::open_with(folder.path(), &options).unwrap();
        assert!(fs::read(&path).unwrap().starts_with(b"SLUICEDB"));
        let rows = store.tables().read(vec![Read::prefix("rows", "", 10_000)]).await.unwrap();
        let rows = rows[0].clone().into_rows().rows;
        assert_eq!(rows.len(), 3000);
        assert!(rows.iter().all(|(key, value)| value.len() == 900 && value[0] == key[3]));
        assert_eq!(store.stores().blobs.get("content").await.unwrap(), Some(blob(0)));
        store.close().await;
    }
}

#[tokio::test]
async fn a_damaged_file_without_checksums_is_refused_and_stays_as_it_is() {
    const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let old = redb::Database::create(&path).unwrap();
    let transaction = old.begin_write().unwrap();
    transaction.open_table(ROWS).unwrap().insert(&b"key-of-a-row"[..], &[7; 900][..]).unwrap();
    transaction.commit().unwrap();
    drop(old);
    let mut content = fs::read(&path).unwrap();
    let at = content.windows(12).position(|window| window == b"key-of-a-row").unwrap();
    content[at + 100] ^= 4;
    fs::write(&path, &content).unwrap();
    let error = Embedded::open_with(folder.path(), &options()).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
    assert!(fs::read(&path).unwrap().starts_with(b"redb"));
}

/// Everything that a check finds, from beginning to end, in small steps whose place is kept as text in between.
async fn check_all(store: &Embedded) -> Vec<String> {
    let mut place = Place::BEGIN.to_string();
    let mut damage = Vec::new();
    for _ in 0..100_000 {
        let step =
            store.upkeep().check(place.parse().expect("it was kept"), 64 * 1024).await.expect("it reads");
        damage.extend(step.damage.iter().map(ToString::to_string));
        match step.next {
            Some(next) => place = next.to_string(),
            None => return damage,
        }
    }
    panic!("the check does not end");
}

#[tokio::test]
async fn a_check_names_all_that_is_damaged_and_gives_digests_to_older_content() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open_with(folder.path(), &options()).unwrap();
    fill(&store.stores()).await;
    // As an earlier version left it.
    let place =
        store.tables().read(vec![Read::get("blobs", "large-1")]).await.unwrap()[0].value().cloned().unwrap();
    let mut old = Batch::new();
    let older = [&370_000_u64.to_le_bytes()[..], &place[40..]].concat();
    old.put("blobs", "large-1", older).delete_prefix("blobs.parts", &place[40..]);
    store.tables().commit(old).await.unwrap();
    assert_eq!(check_all(&store).await, [""; 0]);
    let now = store.tables().read(vec![Read::get("blobs", "large-1")]).await.unwrap()[0].value().cloned();
    assert_eq!(now, Some(place));
    store.close().await;

    let path = folder.path().join("store.redb");
    let mut content = fs::read(&path).unwrap();
    let at = content.windows(8).rposition(|window| window == b"key-0070").unwrap();
    content[at + 100] ^= 1;
    fs::write(&path, content).unwrap();
    for entry in fs::read_dir(folder.path().join("blobs")).unwrap() {
        let path = entry.unwrap().path();
        let mut content = fs::read(&path).unwrap();
        content[299_999] ^= 0x80;
        fs::write(&path, content).unwrap();
    }
    let store = Embedded::open_with(folder.path(), &options()).unwrap();
    let damage = check_all(&store).await.join("\n");
    for named in ["store.redb' in the store", "of table '", "content 'large-0'", "content 'large-1'"] {
        assert!(damage.contains(named), "{named}: {damage}");
    }
    assert!(store.upkeep().damaged_blocks() > 0);
    store.close().await;
}

#[tokio::test]
async fn content_that_cannot_be_read_is_named_and_what_comes_after_it_is_looked_at() {
    let harms: [fn(&Path); 2] =
        [|path| fs::create_dir(path).unwrap(), |path| std::os::unix::fs::symlink(path, path).unwrap()];
    for (number, harm) in harms.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open_with(folder.path(), &options()).unwrap();
        fill(&store.stores()).await;
        let entries = fs::read_dir(folder.path().join("blobs")).unwrap();
        let files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        let [unreadable, flipped] = &files[..] else { panic!("{files:?}") };
        fs::remove_file(unreadable).unwrap();
        harm(unreadable);
        let mut content = fs::read(flipped).unwrap();
        content[299_999] ^= 0x80;
        fs::write(flipped, content).unwrap();
        let damage = check_all(&store).await.join("\n");
        for named in
            ["content 'large-0'", "content 'large-1'", "what is in its place is no file", "does not match"]
        {
            assert!(damage.contains(named), "{number}: {named}: {damage}");
        }
        store.close().await;
    }
}

#[tokio::test]
async fn a_snapshot_names_the_rows_and_the_content_that_are_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open_with(folder.path(), &options()).unwrap();
    fill(&store.stores()).await;
    for id in ["other", "missing", "strange"] {
        store.stores().blobs.put(id, Bytes::from_static(b"text")).await.unwrap();
    }
    let contents = store.snapshot().unwrap().contents().unwrap();
    assert!(contents.damage.is_empty() && contents.files.len() == 2, "{contents:?}");
    assert!(contents.files.iter().all(|file| file.digest.is_some() && file.bytes > 0), "{contents:?}");
    let mut batch = Batch::new();
    batch.put("blobs.inline", "other", "TEXT").delete("blobs.inline", "missing").put("blobs", "strange", "?");
    store.tables().commit(batch).await.unwrap();
    let contents = store.snapshot().unwrap().contents().unwrap();
    let damage: Vec<String> = contents.damage.iter().map(ToString::to_string).collect();
    assert_eq!(damage.len(), 3, "{damage:?}");
    for id in ["other", "missing", "strange"] {
        assert!(damage.iter().any(|one| one.contains(&format!("'{id}'"))), "{id}: {damage:?}");
    }
    store.close().await;

    let path = folder.path().join("store.redb");
    let mut content = fs::read(&path).unwrap();
    let at = content.windows(8).rposition(|window| window == b"key-0070").unwrap();
    content[at + 100] ^= 1;
    fs::write(&path, content).unwrap();
    let store = Embedded::open_with(folder.path(), &options()).unwrap();
    let snapshot = store.snapshot().unwrap();
    let named = |table: &String| match snapshot.page(table, None) {
        Ok(_) => None,
        Err(error) => Some((table.clone(), error)),
    };
    let failed: Vec<_> = snapshot.tables().unwrap().iter().filter_map(named).collect();
    assert!(!failed.is_empty());
    for (table, error) in &failed {
        let said = error.to_string();
        assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
        assert!(said.contains("row '") && said.contains(&format!("of table '{table}'")), "{said}");
    }
    drop(snapshot);
    store.close().await;
}

/// Where a block of the rows of content is damaged, it is the content that is named.
#[tokio::test]
async fn damaged_rows_of_content_are_damage_of_that_content() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open_with(folder.path(), &options()).unwrap();
    fill(&store.stores()).await;
    let seed = rand::rng().random();
    println!("content comes from seed {seed}");
    let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
    let content: Bytes = (0..20_000).map(|_| random.random::<u8>()).collect::<Vec<_>>().into();
    store.stores().blobs.put("in rows", content.clone()).await.unwrap();
    store.close().await;

    let path = folder.path().join("store.redb");
    // In its first row, and in one of the others.
    for at in [700, 12_000] {
        let whole = fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        let places: Vec<usize> =
            (0..whole.len() - 64).filter(|from| whole[*from..].starts_with(&content[at..at + 64])).collect();
        assert!(!places.is_empty());
        places.iter().for_each(|place| damaged[*place] ^= 1);
        fs::write(&path, damaged).unwrap();
        let store = Embedded::open_with(folder.path(), &options()).unwrap();
        let error = store.stores().blobs.get("in rows").await.unwrap_err();
        assert!(
            matches!(error, Error::DamagedContent { .. }) && error.to_string().contains("'in rows'"),
            "{error}"
        );
        let named = |damage: &[Error]| damage.iter().any(|one| one.to_string().contains("content 'in rows'"));
        let contents = store.snapshot().unwrap().contents().unwrap();
        assert!(named(&contents.damage), "{contents:?}");
        let damage = check_all(&store).await;
        assert!(damage.iter().any(|one| one.contains("content 'in rows'")), "{damage:?}");
        store.close().await;
        fs::write(&path, whole).unwrap();
    }
}
