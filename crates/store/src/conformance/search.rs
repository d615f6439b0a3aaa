//! Promises of vectors and keywords.

use sluice_schema::message::TextOrList;

use super::{Works as _, fails};
use crate::{Attributes, Error, KeywordEntry, Match, Scope, Stores, VectorEntry};

super::promises![
    the_nearest_vectors_come_first_with_their_cosine,
    a_written_vector_is_found_and_a_removed_one_is_not,
    vectors_of_another_length_are_refused_with_both_lengths,
    a_removed_collection_takes_vectors_of_any_length,
    only_vectors_whose_labels_fit_the_filter_are_found,
    vectors_stay_in_their_collection_and_workspace,
    a_writer_finds_what_it_wrote_while_others_write,
    vectors_that_have_no_direction_or_are_not_numbers,
    texts_are_ranked_by_their_terms,
    a_text_upserted_again_counts_once,
    a_removed_text_is_not_found,
    texts_stay_in_their_collection_and_workspace,
    many_writers_of_texts_lose_nothing,
];

const HERE: Scope<'static> = Scope::new("default", "docs");

fn vector(id: &str, vector: &[f32]) -> VectorEntry {
    VectorEntry { id: id.to_owned(), vector: vector.to_vec(), attributes: labels("name", id) }
}

fn text(id: &str, text: &str) -> KeywordEntry {
    KeywordEntry { id: id.to_owned(), text: text.to_owned(), attributes: labels("name", id) }
}

fn labels(name: &str, value: &str) -> Attributes {
    Attributes::from([(name.to_owned(), TextOrList::Text(value.to_owned()))])
}

fn ids(found: Vec<Match>) -> Vec<String> {
    found.into_iter().map(|found| found.id).collect()
}

async fn nearest(stores: &Stores, scope: Scope<'_>, vector: &[f32], limit: usize) -> Vec<String> {
    ids(stores.vectors.search(scope, vector, limit, &Attributes::new()).await.works())
}

async fn having(stores: &Stores, scope: Scope<'_>, query: &str) -> Vec<String> {
    ids(stores.keywords.search(scope, query, 10).await.works())
}

async fn the_nearest_vectors_come_first_with_their_cosine(stores: Stores) {
    let entries = vec![
        vector("along", &[10.0, 0.0, 0.0]),
        vector("near", &[1.0, 1.0, 0.0]),
        vector("across-b", &[0.0, 0.0, 0.1]),
        vector("across-a", &[0.0, 5.0, 0.0]),
        vector("against", &[-2.0, 0.0, 0.0]),
    ];
    stores.vectors.upsert(HERE, entries).await.works();
    let found = stores.vectors.search(HERE, &[0.5, 0.0, 0.0], 10, &Attributes::new()).await.works();
    let expected = [1.0, std::f32::consts::FRAC_1_SQRT_2, 0.0, 0.0, -1.0];
    for (found, expected) in found.iter().zip(expected) {
        assert!((found.score - expected).abs() < 1e-5, "{found:?} should score {expected}");
        assert_eq!(found.attributes, labels("name", &found.id));
    }
    assert_eq!(ids(found), ["along", "near", "across-a", "across-b", "against"]);
    assert_eq!(nearest(&stores, HERE, &[0.0, 1.0, 0.0], 2).await, ["across-a", "near"]);
    assert_eq!(nearest(&stores, HERE, &[0.0, 1.0, 0.0], 0).await, [""; 0]);
    assert_eq!(nearest(&stores, Scope::new("default", "none"), &[1.0], 5).await, [""; 0]);
}

async fn a_written_vector_is_found_and_a_removed_one_is_not(stores: Stores) {
    let vectors = &stores.vectors;
    for n in 0..20 {
        vectors.upsert(HERE, vec![vector(&format!("d{}/{n}", n % 2), &[1.0, n as f32])]).await.works();
        assert_eq!(nearest(&stores, HERE, &[0.0, 1.0], 100).await.len(), n + 1);
    }
    vectors.upsert(HERE, vec![vector("d0/0", &[0.0, 1.0])]).await.works();
    assert_eq!(nearest(&stores, HERE, &[0.0, 1.0], 1).await, ["d0/0"]);
    vectors.remove(HERE, &["d0/0".to_owned(), "never".to_owned()]).await.works();
    assert_eq!(nearest(&stores, HERE, &[0.0, 1.0], 1).await, ["d1/19"]);
    vectors.remove_prefix(HERE, "d1/").await.works();
    let left = nearest(&stores, HERE, &[0.0, 1.0], 100).await;
    assert_eq!(left.len(), 9);
    assert!(left.iter().all(|id| id.starts_with("d0/")), "{left:?}");
    vectors.remove_collection(HERE).await.works();
    vectors.remove_collection(HERE).await.works();
    assert_eq!(nearest(&stores, HERE, &[0.0, 1.0], 100).await, [""; 0]);
}

async fn vectors_of_another_length_are_refused_with_both_lengths(stores: Stores) {
    stores.vectors.upsert(HERE, vec![vector("a", &[1.0, 2.0])]).await.works();
    let check = |error| match error {
        Error::Dimension { wanted, got, .. } => assert_eq!((wanted, got), (2, 3)),
        other => panic!("expected a refused dimension, got {other:?}"),
    };
    check(fails(stores.vectors.upsert(HERE, vec![vector("b", &[1.0; 3])]).await));
    check(fails(stores.vectors.upsert(HERE, vec![vector("b", &[1.0; 2]), vector("c", &[1.0; 3])]).await));
    check(fails(stores.vectors.search(HERE, &[1.0; 3], 5, &Attributes::new()).await));
    assert_eq!(nearest(&stores, HERE, &[1.0, 2.0], 5).await, ["a"]);
}

async fn a_removed_collection_takes_vectors_of_any_length(stores: Stores) {
    stores.vectors.upsert(HERE, vec![vector("a", &[1.0, 2.0])]).await.works();
    assert_eq!(nearest(&stores, HERE, &[1.0; 2], 5).await, ["a"]);
    stores.vectors.remove_collection(HERE).await.works();
    stores.vectors.upsert(HERE, vec![vector("b", &[1.0; 5])]).await.works();
    assert_eq!(nearest(&stores, HERE, &[1.0; 5], 5).await, ["b"]);
}

async fn only_vectors_whose_labels_fit_the_filter_are_found(stores: Stores) {
    let list = |texts: &[&str]| TextOrList::List(texts.iter().map(|text| (*text).to_owned()).collect());
    let mut entries: Vec<_> = (0..50).map(|n| vector(&format!("n{n}"), &[1.0, n as f32])).collect();
    entries[3].attributes.insert("kind".to_owned(), list(&["red", "round"]));
    entries[4].attributes.insert("kind".to_owned(), TextOrList::Text("red".to_owned()));
    stores.vectors.upsert(HERE, entries).await.works();
    let search = |filter: Attributes| {
        let stores = &stores;
        async move { ids(stores.vectors.search(HERE, &[0.0, 1.0], 2, &filter).await.works()) }
    };
    assert_eq!(search(labels("name", "n7")).await, ["n7"]);
    assert_eq!(search(labels("kind", "red")).await, ["n4", "n3"]);
    assert_eq!(search(Attributes::from([("kind".to_owned(), list(&["red", "round"]))])).await, ["n3"]);
    assert_eq!(search(labels("other", "x")).await, [""; 0]);
}

async fn vectors_stay_in_their_collection_and_workspace(stores: Stores) {
    let scopes = [HERE, Scope::new("default", "other"), Scope::new("acme", "docs")];
    for (n, scope) in scopes.into_iter().enumerate() {
        stores.vectors.upsert(scope, vec![vector(&format!("in-{n}"), &[1.0, 0.0])]).await.works();
    }
    for (n, scope) in scopes.into_iter().enumerate() {
        assert_eq!(nearest(&stores, scope, &[1.0, 0.0], 9).await, [format!("in-{n}")]);
    }
    stores.vectors.remove_collection(HERE).await.works();
    stores.vectors.remove_prefix(scopes[1], "").await.works();
    assert_eq!(nearest(&stores, scopes[1], &[1.0, 0.0], 9).await, [""; 0]);
    assert_eq!(nearest(&stores, scopes[2], &[1.0, 0.0], 9).await, ["in-2"]);
}

async fn a_writer_finds_what_it_wrote_while_others_write(stores: Stores) {
    let write = |writer: usize| {
        let stores = &stores;
        async move {
            for n in 0..15 {
                let id = format!("{writer}-{n}");
                stores.vectors.upsert(HERE, vec![vector(&id, &[1.0, 0.0])]).await.works();
                assert!(nearest(stores, HERE, &[1.0, 0.0], 999).await.contains(&id), "{id} is not found");
                if n % 3 == 0 {
                    stores.vectors.remove(HERE, std::slice::from_ref(&id)).await.works();
                    assert!(!nearest(stores, HERE, &[1.0, 0.0], 999).await.contains(&id), "{id} is found");
                }
            }
        }
    };
    tokio::join!(write(0), write(1), write(2), write(3), write(4), write(5));
    assert_eq!(nearest(&stores, HERE, &[1.0, 0.0], 999).await.len(), 60);
}

async fn vectors_that_have_no_direction_or_are_not_numbers(stores: Stores) {
    stores
        .vectors
        .upsert(HERE, vec![vector("zero", &[0.0, 0.0]), vector("one", &[1e-30, 0.0])])
        .await
        .works();
    assert_eq!(nearest(&stores, HERE, &[1e30, 0.0], 9).await, ["one", "zero"]);
    for bad in [vec![], vec![f32::NAN, 0.0], vec![0.0, f32::INFINITY]] {
        assert!(matches!(
            fails(stores.vectors.upsert(HERE, vec![vector("bad", &bad)]).await),
            Error::Refused { .. }
        ));
    }
    assert_eq!(nearest(&stores, HERE, &[1.0, 0.0], 9).await, ["one", "zero"]);
}

async fn texts_are_ranked_by_their_terms(stores: Stores) {
    let entries = vec![
        text("often", "Pump, pump, pump: a pump."),
        text("once", "The tank is fed by a pump and has a lid that opens."),
        text("rare", "Cavitation harms the tank."),
        text("none", "Nothing of that kind."),
    ];
    stores.keywords.upsert(HERE, entries).await.works();
    assert_eq!(having(&stores, HERE, "PUMPS").await, ["often", "once"]);
    assert_eq!(having(&stores, HERE, "tank cavitation").await, ["rare", "once"]);
    assert_eq!(having(&stores, HERE, "tank tank tank cavitation").await, ["rare", "once"]);
    assert_eq!(having(&stores, HERE, "unheard-of").await, ["none"]);
    assert_eq!(having(&stores, HERE, "\"*)( ").await, [""; 0]);
    let found = stores.keywords.search(HERE, "pump", 1).await.works();
    assert!(found[0].score > 0.0);
    assert_eq!(found[0].attributes, labels("name", "often"));
    assert_eq!(found.len(), 1);
    assert_eq!(having(&stores, Scope::new("default", "none"), "pump").await, [""; 0]);
}

async fn a_text_upserted_again_counts_once(stores: Stores) {
    let scores = || async {
        let found = stores.keywords.search(HERE, "pump tank", 9).await.works();
        found.into_iter().map(|found| (found.id, found.score)).collect::<Vec<_>>()
    };
    stores.keywords.upsert(HERE, vec![text("a", "pump tank"), text("b", "tank of water")]).await.works();
    let before = scores().await;
    for _ in 0..3 {
        stores.keywords.upsert(HERE, vec![text("a", "valve"), text("a", "pump tank")]).await.works();
    }
    assert_eq!(scores().await, before);
    stores.keywords.upsert(HERE, vec![text("a", "valve")]).await.works();
    assert_eq!(having(&stores, HERE, "pump tank").await, ["b"]);
    assert_eq!(having(&stores, HERE, "valve").await, ["a"]);
}

async fn a_removed_text_is_not_found(stores: Stores) {
    let keywords = &stores.keywords;
    let entries = (0..300).map(|n| text(&format!("d{}/{n}", n % 3), "pump")).collect();
    keywords.upsert(HERE, entries).await.works();
    keywords.upsert(HERE, vec![text("last", "pump tank")]).await.works();
    keywords.remove(HERE, &["d0/0".to_owned(), "never".to_owned()]).await.works();
    assert!(!ids(keywords.search(HERE, "pump", 999).await.works()).contains(&"d0/0".to_owned()));
    keywords.remove_prefix(HERE, "d1/").await.works();
    assert_eq!(keywords.search(HERE, "pump", 999).await.works().len(), 200);
    keywords.remove_prefix(HERE, "d").await.works();
    assert_eq!(having(&stores, HERE, "pump").await, ["last"]);

    // Nothing of the removed ones is counted: the score is that of a collection that never had them.
    let there = Scope::new("default", "fresh");
    keywords.upsert(there, vec![text("last", "pump tank")]).await.works();
    let score = |scope| async move { keywords.search(scope, "pump", 1).await.works()[0].score };
    assert!((score(HERE).await - score(there).await).abs() < 1e-6);
    keywords.remove_collection(HERE).await.works();
    keywords.remove_collection(HERE).await.works();
    assert_eq!(having(&stores, HERE, "pump").await, [""; 0]);
}

async fn texts_stay_in_their_collection_and_workspace(stores: Stores) {
    let scopes = [HERE, Scope::new("default", "other"), Scope::new("acme", "docs")];
    for (n, scope) in scopes.into_iter().enumerate() {
        stores.keywords.upsert(scope, vec![text(&format!("in-{n}"), "pump")]).await.works();
    }
    for (n, scope) in scopes.into_iter().enumerate() {
        assert_eq!(having(&stores, scope, "pump").await, [format!("in-{n}")]);
    }
    stores.keywords.remove_collection(HERE).await.works();
    assert_eq!(having(&stores, scopes[2], "pump").await, ["in-2"]);
}

async fn many_writers_of_texts_lose_nothing(stores: Stores) {
    let write = |writer: usize| {
        let stores = &stores;
        async move {
            for n in 0..10 {
                let entry = text(&format!("{writer}-{n}"), "pump");
                stores.keywords.upsert(HERE, vec![entry]).await.works();
            }
        }
    };
    tokio::join!(write(0), write(1), write(2), write(3), write(4), write(5));
    assert_eq!(stores.keywords.search(HERE, "pump", 999).await.works().len(), 60);
}
