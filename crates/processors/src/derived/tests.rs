//! Notes and removals over real stores, in every order.

use sluice_bus::{Message, property};
use sluice_schema::message::{Term, Triple};
use sluice_store::{Attributes, Embedded, KeywordEntry, Pattern, VectorEntry};

use super::*;
use crate::removals::forgetting;
use crate::triples::holding_batch;

const WS: &str = "w";

struct World {
    derived: Derived,
    store: Embedded,
    _folder: tempfile::TempDir,
}

impl World {
    fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(folder.path()).unwrap();
        Self { derived: Derived::new(store.stores()), store, _folder: folder }
    }

    /// Writes a chunk to the vectors and the keywords as a message of a pass would, or of none.
    async fn write(&self, pass: Option<i64>, document: &str, collection: &str, id: &str) -> bool {
        let message = pass
            .map_or_else(Message::default, |pass| Message::default().with(property::PASS, &pass.to_string()));
        let origin = Origin { workspace: WS, collection, root: document };
        let scope = Scope::new(WS, collection);
        let entries = || vec![Entry::bare(id.to_owned())];
        let stores = &self.derived.stores;
        let vector = VectorEntry { id: id.to_owned(), vector: vec![1.0, 0.0], attributes: Attributes::new() };
        let text = KeywordEntry { id: id.to_owned(), text: "word".to_owned(), attributes: Attributes::new() };
        trace::carry(&message, 1, async {
            let vectors = self.derived.write("vectors", origin, entries(), Batch::new(), || {
                stores.vectors.upsert(scope, vec![vector])
            });
            let vectors = vectors.await.unwrap();
            let keywords = self.derived.write("keywords", origin, entries(), Batch::new(), || {
                stores.keywords.upsert(scope, vec![text])
            });
            assert_eq!(keywords.await.unwrap(), vectors);
            vectors
        })
        .await
    }

    async fn state(&self, pass: i64, document: &str, collection: &str, statements: Vec<Triple>) {
        let message = Message::default().with(property::PASS, &pass.to_string());
        let origin = Origin { workspace: WS, collection, root: document };
        let (entry, holdings) = holding_batch(origin, document, &statements).unwrap();
        let add = || self.derived.stores.triples.add(Scope::new(WS, collection), statements);
        trace::carry(&message, 1, self.derived.write("triples", origin, vec![entry], holdings, add))
            .await
            .unwrap();
    }

    async fn remove(&self, pass: i64, document: &str, collection: &str, restored: bool) {
        let removal =
            Removal { document_id: document.to_owned(), collection: collection.to_owned(), pass, restored };
        for kind in STORE_KINDS {
            let store = forgetting(kind, &self.derived.stores);
            self.derived.remove(kind, WS, &removal, &*store).await.unwrap();
        }
    }

    async fn found(&self, collection: &str) -> Vec<String> {
        let (scope, stores) = (Scope::new(WS, collection), &self.derived.stores);
        let near = stores.vectors.search(scope, &[1.0, 0.0], 100, &Attributes::new()).await.unwrap();
        let near: Vec<String> = near.into_iter().map(|found| found.id).collect();
        let by_word = stores.keywords.search(scope, "word", 100).await.unwrap();
        assert_eq!(by_word.into_iter().map(|found| found.id).collect::<Vec<_>>(), near);
        near
    }

    async fn statements(&self, collection: &str) -> usize {
        let all = Pattern::all();
        let found = self.derived.stores.triples.query(Scope::new(WS, collection), &all, None, 1_000);
        found.await.unwrap().triples.len()
    }
}

fn statement(subject: &str) -> Triple {
    let iri = |iri: &str| Some(Term { r#type: "i".to_owned(), iri: iri.to_owned(), ..Default::default() });
    Triple { s: iri(subject), p: iri("urn:p"), o: iri("urn:o"), g: None }
}

#[tokio::test]
async fn a_removal_takes_what_passes_up_to_it_made_and_nothing_else() {
    let world = World::open();
    for n in 0..700 {
        assert!(world.write(Some(1), "doc", "c", &format!("chunk {n:03}")).await);
    }
    world.write(Some(1), "doc", "d", "in d").await;
    world.write(Some(1), "doc 2", "c", "of another").await;
    world.remove(2, "doc", "c", false).await;
    assert_eq!(world.found("c").await, ["of another"]);
    assert_eq!(world.found("d").await, ["in d"]);
    world.remove(3, "doc", "", false).await;
    assert!(world.found("d").await.is_empty());
    world.remove(3, "doc", "", false).await;
    world.store.close().await;
}

#[tokio::test]
async fn messages_of_a_pass_that_ended_write_nothing_and_those_of_a_later_one_do() {
    let world = World::open();
    world.write(Some(1), "doc", "c", "a").await;
    world.remove(5, "doc", "", false).await;
    assert!(!world.write(Some(1), "doc", "c", "a").await, "it came too late");
    assert!(!world.write(Some(5), "doc", "c", "b").await);
    assert!(!world.write(None, "doc", "c", "c").await, "nobody knows when it was made");
    assert!(world.found("c").await.is_empty());
    assert!(world.write(Some(6), "doc", "c", "d").await);
    assert!(world.write(None, "doc 2", "c", "e").await);
    world.remove(7, "doc", "", true).await;
    assert!(world.write(None, "doc", "c", "f").await, "it is there again");
    assert_eq!(world.found("c").await, ["d", "e", "f"]);
    world.store.close().await;
}

#[tokio::test]
async fn a_removal_that_comes_late_leaves_what_a_later_pass_made() {
    let world = World::open();
    world.write(Some(1), "doc", "c", "old").await;
    world.write(Some(1), "doc", "c", "same").await;
    world.write(Some(9), "doc", "c", "new").await;
    world.write(Some(9), "doc", "c", "same").await;
    world.remove(9, "doc", "", true).await;
    world.remove(5, "doc", "", false).await;
    assert_eq!(world.found("c").await, ["new", "same"]);
    world.remove(5, "", "c", false).await;
    assert_eq!(world.found("c").await, ["new", "same"], "also when the whole collection was removed before");
    world.remove(10, "", "c", false).await;
    assert!(world.found("c").await.is_empty());
    assert!(!world.write(Some(9), "doc", "c", "new").await);
    world.store.close().await;
}

#[tokio::test]
async fn a_statement_stays_as_long_as_one_document_states_it() {
    let world = World::open();
    world.state(1, "one", "c", vec![statement("urn:both"), statement("urn:one")]).await;
    world.state(1, "two", "c", vec![statement("urn:both"), statement("urn:two")]).await;
    world.state(2, "two", "d", vec![statement("urn:both")]).await;
    assert_eq!(world.statements("c").await, 3);
    world.remove(3, "one", "", false).await;
    assert_eq!(world.statements("c").await, 2);
    world.remove(3, "two", "c", false).await;
    assert_eq!((world.statements("c").await, world.statements("d").await), (0, 1));
    world.store.close().await;
}

#[tokio::test]
async fn labels_of_the_vocabulary_belong_to_no_document() {
    let world = World::open();
    let text = |r#type: &str, iri: &str, value: &str| {
        Some(Term {
            r#type: r#type.to_owned(),
            iri: iri.to_owned(),
            value: value.to_owned(),
            ..Default::default()
        })
    };
    let label = |subject: &str, label: &str| Triple {
        s: text("i", subject, ""),
        p: text("i", "http://www.w3.org/2000/01/rdf-schema#label", ""),
        o: text("l", "", label),
        g: None,
    };
    let standard = label("http://www.w3.org/ns/prov#Entity", "Entity");
    let own = label("http://www.w3.org/ns/prov#Entity", "Thing");
    world.state(1, "doc", "c", vec![standard, own, statement("urn:one")]).await;
    let noted = Read::range("derived.holders", KeyRange::all(), 100);
    let noted = world.store.tables().read(vec![noted]).await.unwrap().pop().unwrap();
    assert_eq!(noted.into_rows().rows.len(), 2);
    world.remove(2, "doc", "", false).await;
    assert_eq!(world.statements("c").await, 1, "the label stays");
    world.remove(3, "", "c", false).await;
    assert_eq!(world.statements("c").await, 0, "and goes with its collection");
    world.store.close().await;
}

#[tokio::test]
async fn what_has_been_gone_for_long_is_forgotten() {
    let world = World::open();
    world.remove(5, "doc", "", false).await;
    world.derived.sweep("vectors", WS).await.unwrap();
    assert!(!world.write(Some(5), "doc", "c", "a").await, "it has not been gone for long");
    let old = Gone { until: 5, restored: 0, at_seconds: 1 };
    for kind in STORE_KINDS {
        let key = world.derived.kind(kind).unwrap().key(&[WS, "doc", ""]);
        let mut batch = Batch::new();
        batch.put(GONE, key, serde_json::to_vec(&old).unwrap());
        world.derived.stores.tables.commit(batch).await.unwrap();
        world.derived.sweep(kind, WS).await.unwrap();
    }
    assert!(world.write(Some(5), "doc", "c", "a").await);
    world.store.close().await;
}
