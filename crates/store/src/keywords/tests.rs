//! The keyword index on its own: what rests of texts that came, changed and went.

use proptest::prelude::*;

use super::*;
use crate::{Attributes, Embedded};

const HERE: Scope<'static> = Scope::new("w", "c");
const ALL: [&str; 5] = [IDS, ENTRIES, LENGTHS, TERMS, POSTINGS];

fn text(id: &str, text: &str) -> KeywordEntry {
    KeywordEntry { id: id.to_owned(), text: text.to_owned(), attributes: Attributes::new() }
}

async fn count(tables: &dyn Tables, table: &'static str) -> usize {
    rows(tables, Read::prefix(table, "", 1_000_000)).await.unwrap().rows.len()
}

async fn found(keywords: &TableKeywords, query: &str) -> Vec<(String, f32)> {
    let found = keywords.search(HERE, query, 10_000).await.unwrap();
    found.into_iter().map(|found| (found.id, found.score)).collect()
}

/// The score of each text as BM25 says, from the texts themselves.
fn by_hand(texts: &BTreeMap<String, String>, query: &str) -> Vec<(String, f32)> {
    let split: BTreeMap<&String, Vec<String>> = texts.iter().map(|(id, text)| (id, terms(text))).collect();
    let entries = split.len() as f32;
    let mean = (split.values().map(Vec::len).sum::<usize>() as f32 / entries).max(1.0);
    let mut scores: BTreeMap<&String, f32> = BTreeMap::new();
    for term in terms(query).into_iter().collect::<BTreeSet<_>>() {
        let count = |words: &Vec<String>| words.iter().filter(|word| **word == term).count() as f32;
        let having = split.values().filter(|words| count(words) > 0.0).count() as f32;
        let rarity = (1.0 + (entries - having + 0.5) / (having + 0.5)).ln();
        for (id, words) in split.iter().filter(|(_, words)| count(words) > 0.0) {
            let (count, length) = (count(words), words.len() as f32);
            *scores.entry(id).or_default() +=
                rarity * count * (K1 + 1.0) / (count + K1 * (1.0 - B + B * length / mean));
        }
    }
    let mut scores: Vec<(String, f32)> = scores.into_iter().map(|(id, score)| (id.clone(), score)).collect();
    scores.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    scores
}

fn same(a: &[(String, f32)], b: &[(String, f32)]) -> bool {
    let ids = |scores: &[(String, f32)]| scores.iter().map(|(id, _)| id.clone()).collect::<BTreeSet<_>>();
    let close = |a: &(String, f32), b: &(String, f32)| (a.1 - b.1).abs() < 1e-4;
    ids(a) == ids(b) && a.iter().zip(b).all(|(a, b)| close(a, b))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever comes, changes and goes: a search finds what a count by hand does, and in the end nothing rests.
    #[test]
    fn searches_are_right_whatever_came_and_went_and_nothing_is_left_of_what_went(
        steps in proptest::collection::vec(
            (any::<bool>(), proptest::collection::vec((0_u8..30, "[a-e]{1,2}( [a-e]{1,2}){0,9}"), 1..20)),
            1..25,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let store = Embedded::open(folder.path()).unwrap();
            let keywords = TableKeywords::new(store.tables());
            let mut there: BTreeMap<String, String> = BTreeMap::new();
            for (comes, some) in steps {
                let ids: Vec<String> = some.iter().map(|(id, _)| format!("urn:{id}")).collect();
                if comes {
                    let entries = ids.iter().zip(&some).map(|(id, (_, words))| text(id, words)).collect();
                    keywords.upsert(HERE, entries).await.unwrap();
                    there.extend(ids.into_iter().zip(some.into_iter().map(|(_, words)| words)));
                } else {
                    keywords.remove(HERE, &ids).await.unwrap();
                    there.retain(|id, _| !ids.contains(id));
                }
                for query in ["a", "b c dd", "e ab bc cd de ea"] {
                    let (seen, wanted) = (found(&keywords, query).await, by_hand(&there, query));
                    assert!(same(&seen, &wanted), "{query}: {seen:?} instead of {wanted:?}");
                }
            }
            let ids: Vec<String> = there.into_keys().collect();
            keywords.remove(HERE, &ids).await.unwrap();
            for table in ALL {
                assert_eq!(count(&*store.tables(), table).await, 0, "{table}");
            }
            store.close().await;
        });
    }
}

#[tokio::test]
async fn postings_of_many_texts_stand_in_few_rows_and_are_taken_out_of_any_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let keywords = TableKeywords::new(store.tables());
    let all: Vec<String> = (0..1_000).map(|n| format!("urn:{n:04}")).collect();
    for some in all.chunks(70) {
        keywords.upsert(HERE, some.iter().map(|id| text(id, &format!("pump {id}"))).collect()).await.unwrap();
    }
    // A term of its own for each, and the two that all have.
    let rest = 2 * 1_000_usize.div_ceil(posting::BLOCK_POSTINGS_MAX);
    assert_eq!(count(&*store.tables(), POSTINGS).await, 1_000 + rest);
    assert_eq!(count(&*store.tables(), LENGTHS).await, 8);
    let going: Vec<String> =
        all.iter().enumerate().filter(|(n, _)| n % 3 != 1).map(|(_, id)| id.clone()).collect();
    keywords.remove(HERE, &going).await.unwrap();
    let stays: Vec<String> = all.iter().filter(|id| !going.contains(id)).cloned().collect();
    let mut seen: Vec<String> = found(&keywords, "pump").await.into_iter().map(|(id, _)| id).collect();
    seen.sort();
    assert_eq!(seen, stays);
    assert_eq!(count(&*store.tables(), TERMS).await, stays.len() + 2);
    // The first row of a term is empty by now, and has its name.
    keywords.remove(HERE, &stays[..100]).await.unwrap();
    assert_eq!(found(&keywords, "urn pump").await.len(), stays.len() - 100);
    keywords.remove(HERE, &stays).await.unwrap();
    assert_eq!(count(&*store.tables(), POSTINGS).await + count(&*store.tables(), TERMS).await, 0);
    store.close().await;
}

#[tokio::test]
async fn a_term_stays_for_its_last_texts_however_the_earlier_ones_went() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let keywords = TableKeywords::new(store.tables());
    let all: Vec<String> = (0..3 * posting::BLOCK_POSTINGS_MAX).map(|n| format!("urn:{n:04}")).collect();
    keywords.upsert(HERE, all.iter().map(|id| text(id, &format!("pump {id}"))).collect()).await.unwrap();
    let blocks: Vec<&[String]> = all.chunks(posting::BLOCK_POSTINGS_MAX).collect();
    // Oldest first, a row of the common term at a time: the first row is empty already when the second one goes.
    keywords.remove(HERE, blocks[0]).await.unwrap();
    keywords.remove(HERE, blocks[1]).await.unwrap();
    assert_eq!(found(&keywords, "pump").await.len(), blocks[2].len());
    keywords.remove(HERE, blocks[2]).await.unwrap();
    assert_eq!(count(&*store.tables(), POSTINGS).await + count(&*store.tables(), TERMS).await, 0);
    store.close().await;
}

#[tokio::test]
async fn a_text_that_is_there_already_is_not_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let keywords = TableKeywords::new(store.tables());
    keywords.upsert(HERE, vec![text("a", "pump tank"), text("b", "tank")]).await.unwrap();
    let commits = store.commits();
    keywords.upsert(HERE, vec![text("b", "tank"), text("a", "tank pump")]).await.unwrap();
    assert_eq!(store.commits(), commits, "the same terms as often");
    keywords.upsert(HERE, vec![text("a", "tank tank pump")]).await.unwrap();
    assert!(store.commits() > commits);
    store.close().await;
}

#[tokio::test]
async fn equal_scores_are_ordered_by_id_wherever_the_list_ends() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let keywords = TableKeywords::new(store.tables());
    // In another order than that of their ids.
    for n in (0..600).rev() {
        keywords.upsert(HERE, vec![text(&format!("urn:{n:03}"), "pump")]).await.unwrap();
    }
    keywords.upsert(HERE, vec![text("urn:best", "pump pump")]).await.unwrap();
    let best = keywords.search(HERE, "pump", 4).await.unwrap();
    let ids: Vec<&str> = best.iter().map(|found| found.id.as_str()).collect();
    assert_eq!(ids, ["urn:best", "urn:000", "urn:001", "urn:002"]);
    store.close().await;
}

#[tokio::test]
async fn removals_fit_what_a_full_disk_leaves_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let keywords = TableKeywords::new(store.tables());
    let words = |n: usize| (0..800).map(|at| format!("w{} ", (n * 37 + at * 11) % 6_000)).collect::<String>();
    let ids: Vec<String> = (0..700).map(|n| format!("urn:{n}")).collect();
    for some in ids.chunks(100) {
        let entries = some.iter().map(|id| text(id, &words(id[4..].parse().unwrap())));
        keywords.upsert(HERE, entries.collect()).await.unwrap();
    }
    let gone = ids[..300].iter().map(|id| (id.clone(), None)).collect();
    let batch = keywords.replacement(&scope_key(HERE), &gone).await.unwrap().unwrap();
    assert!(bytes(&batch) > ESSENTIAL_BYTES_MAX, "all at once would be too large: {}", bytes(&batch));
    let commits = store.commits();
    keywords.remove(HERE, &ids[..300]).await.unwrap();
    assert!(store.commits() > commits + 1);
    assert_eq!(count(&*store.tables(), ENTRIES).await, 400);
    store.close().await;
}
