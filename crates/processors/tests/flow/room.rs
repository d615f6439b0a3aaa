//! What documents and questions leave on the disk, and what of it goes again.

#![expect(clippy::print_stdout, reason = "figures for people are printed")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sluice_bus::Client;
use sluice_schema::exchange;
use sluice_schema::message::{LibrarianRequest, Metadata, Term, Triple, Triples, TriplesQueryRequest};
use sluice_sdk::ConfigClient;
use sluice_sdk::config::value;
use sluice_store::Embedded as Store;
use sluice_store::embedded::Place;

use super::{BICYCLE, COFFEE, DEADLINE, WS, World, question};

/// Statements of a graph, by the node they are about.
async fn said(triples: &Client<exchange::TriplesQuery>, graph: &str) -> BTreeMap<String, usize> {
    let request = TriplesQueryRequest {
        collection: "default".to_owned(),
        g: Some(graph.to_owned()),
        limit: 100_000,
        ..Default::default()
    };
    let mut about = BTreeMap::new();
    for triple in triples.call(&request, DEADLINE).await.unwrap().triples {
        *about.entry(triple.s.unwrap().iri).or_default() += 1;
    }
    about
}

/// Asks; answers with the question's node once all of its trace is in the graph.
async fn ask_and_wait(world: &World, triples: &Client<exchange::TriplesQuery>, query: &str) -> String {
    let parts = world.ask(question(query)).await;
    let told: usize = parts.iter().map(|part| part.explain_triples.len()).sum();
    let node = parts.iter().find_map(|part| part.explain_id.clone()).unwrap();
    let session = node.rsplit_once(':').unwrap().1.to_owned();
    let ends = tokio::time::Instant::now() + DEADLINE;
    loop {
        let about = said(triples, "urn:graph:retrieval").await;
        let of_it = about.iter().filter(|(node, _)| node.contains(&session));
        if of_it.map(|(_, count)| count).sum::<usize>() == told {
            return node;
        }
        assert!(
            tokio::time::Instant::now() < ends,
            "{told} statements were told, and in the graph is {about:?}"
        );
        tokio::task::yield_now().await;
    }
}

/// Somebody else's trace, whose steps hang together in other ways.
fn trace_of_long_ago() -> Triples {
    let term = |r#type: &str, iri: &str, value: &str| {
        Some(Term {
            r#type: r#type.to_owned(),
            iri: iri.to_owned(),
            value: value.to_owned(),
            ..Default::default()
        })
    };
    let said = |s: &str, p: &str, o: Option<Term>| Triple {
        s: term("i", s, ""),
        p: term("i", p, ""),
        o,
        g: Some("urn:graph:retrieval".to_owned()),
    };
    let tg = |name: &str| format!("https://trustgraph.ai/ns/{name}");
    let prov = |name: &str| format!("http://www.w3.org/ns/prov#{name}");
    let is = "http://www.w3.org/1999/02/22-rdf-syntax-ns#type";
    let metadata = Metadata { collection: "default".to_owned(), ..Default::default() };
    let triples = vec![
        said("urn:old/question", is, term("i", &tg("Question"), "")),
        said("urn:old/question", &prov("startedAtTime"), term("l", "", "2020-01-01T00:00:00+00:00")),
        said("urn:old/step", &prov("wasDerivedFrom"), term("i", "urn:old/question", "")),
        said("urn:old/step", &tg("selectedEdge"), term("i", "urn:old/edge", "")),
        said("urn:old/edge", &tg("reasoning"), term("l", "", "it fits")),
    ];
    Triples { metadata: Some(metadata), triples }
}

#[tokio::test]
async fn as_many_traces_of_questions_stay_as_the_collection_keeps_and_answers_go_with_them() {
    let world = World::start(None).await;
    let config = ConfigClient::new(&world.process.replies).await.unwrap();
    let put = async |key: &str, text: &str| {
        config.put(WS, vec![value(WS, "trace-retention", key, text)]).await.unwrap();
    };
    put("*", r#"{"days": 0, "count": 0}"#).await;
    world.load("urn:doc:coffee", "text/markdown", "Coffee", COFFEE.as_bytes()).await;
    let triples = world.service::<exchange::TriplesQuery>("triples").await;
    let mut asked = Vec::new();
    for query in ["What is limescale?", "How is a kettle cleaned?", "Which grind is for espresso?"] {
        asked.push(ask_and_wait(&world, &triples, query).await);
    }
    let old = trace_of_long_ago();
    let nodes: BTreeSet<String> = old.triples.iter().filter_map(|one| one.s.clone()).map(|s| s.iri).collect();
    world.send("triples-store", &old).await;
    let until_old = async |is_there: bool| {
        let ends = tokio::time::Instant::now() + DEADLINE;
        loop {
            let about = said(&triples, "urn:graph:retrieval").await;
            if nodes.iter().all(|node| about.contains_key(node) == is_there) {
                return;
            }
            assert!(tokio::time::Instant::now() < ends, "{about:?}");
            tokio::task::yield_now().await;
        }
    };
    until_old(true).await;
    put("*", r#"{"days": 1, "count": 0}"#).await;
    until_old(false).await;
    let sources = said(&triples, "urn:graph:source").await;
    let kept = said(&triples, "urn:graph:retrieval").await;
    let newest = asked.pop().unwrap();
    let session = newest.rsplit_once(':').unwrap().1;
    let wanted: Vec<_> = kept.into_iter().filter(|(node, _)| node.contains(session)).collect();
    assert!(wanted.len() > 6, "{wanted:?}");

    // What cannot be read removes nothing; the other collection's own word does not count here.
    put("*", r#"{"count": "one"}"#).await;
    put("other", r#"{"count": 1}"#).await;
    put("default", r#"{"count": 2, "days": 0}"#).await;
    let until = async |nodes: usize| {
        let ends = tokio::time::Instant::now() + DEADLINE;
        loop {
            let about = said(&triples, "urn:graph:retrieval").await;
            if about.keys().filter(|node| !node.contains('/') && node.contains(":docrag:")).count() == nodes {
                return about;
            }
            assert!(tokio::time::Instant::now() < ends, "{about:?}");
            tokio::task::yield_now().await;
        }
    };
    let two = until(2).await;
    assert!(!two.contains_key(&asked[0]) && two.contains_key(&asked[1]), "the oldest goes first: {two:?}");
    put("default", r#"{"count": 1}"#).await;
    let one = until(1).await;
    assert_eq!(
        one.into_iter().collect::<Vec<_>>(),
        wanted,
        "the newest trace stays whole, of others nothing"
    );
    assert_eq!(said(&triples, "urn:graph:source").await, sources);
    for (node, is_there) in [(&asked[0], false), (&asked[1], false), (&newest, true)] {
        let request = LibrarianRequest {
            operation: "get-document-metadata".to_owned(),
            document_id: format!("{node}/answer"),
            ..Default::default()
        };
        assert_eq!(world.librarian(request).await.document_metadata.is_some(), is_there, "{node}");
    }
    world.stop().await;
}

/// What the rows of each table take, in bytes.
async fn rows_by_table(store: &Store) -> BTreeMap<String, u64> {
    let mut tables = BTreeMap::new();
    let mut place = Some(Place::BEGIN);
    while let Some(at) = place {
        let name = match &at {
            Place::Row { table, .. } => Some(table.clone()),
            Place::Block(_) | Place::Content { .. } => None,
        };
        let step = store.upkeep().check(at, 16 << 20).await.unwrap();
        if let Some(name) = name {
            *tables.entry(name).or_default() += step.bytes;
        }
        place = step.next;
    }
    tables
}

/// Texts of the samples' paragraphs, each in another order, in bytes about as many as told.
fn texts_of(bytes: usize) -> Vec<String> {
    const SAMPLES: [&str; 5] = [
        COFFEE,
        BICYCLE,
        include_str!("../../../../samples/knots.txt"),
        include_str!("../../../../samples/night-sky.md"),
        include_str!("../../../../samples/backups.md"),
    ];
    let paragraphs: Vec<&str> = SAMPLES.iter().flat_map(|text| text.split("\n\n")).collect();
    let count = paragraphs.len();
    let text = |n: usize| -> String {
        let at = |place: usize| paragraphs[(place * (2 * n + 7) + n * 31) % count];
        (0..count / 2).map(|place| format!("{} In edition {n}{place}.\n\n", at(place))).collect()
    };
    let mut total = 0;
    (0..).map(text).take_while(|text| (total < bytes, total += text.len()).0).collect()
}

/// What the store keeps of these texts, in bytes, once each went through the flow; prints what of it takes what.
async fn room_of(texts: &[String]) -> u64 {
    let world = World::start(None).await;
    let text_bytes = texts.iter().map(String::len).sum::<usize>() as f64;
    let room = async || {
        let upkeep = world.rest.store.upkeep();
        upkeep.give_back().await.unwrap();
        upkeep.report().used_bytes
    };
    let (before, rows_before) = (room().await, rows_by_table(&world.rest.store).await);
    let mut chunks = 0;
    for (n, text) in texts.iter().enumerate() {
        let (id, title) = (format!("urn:doc:{n}"), format!("Text {n}"));
        let loaded = world.load(&id, "text/plain", &title, text.as_bytes()).await;
        assert_eq!(loaded.failed, 0, "{loaded:?}");
        chunks += loaded.stored;
    }
    // A chunk and its making are each said something about; no report counts that.
    let triples = world.service::<exchange::TriplesQuery>("triples").await;
    let ends = tokio::time::Instant::now() + DEADLINE;
    while i64::try_from(said(&triples, "urn:graph:source").await.len()).unwrap() < 2 * chunks {
        assert!(tokio::time::Instant::now() < ends, "not all statements came");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let all = room().await - before;
    println!(
        "{} documents, {chunks} chunks, {text_bytes} bytes of text: {all} bytes, {:.2} times as much, {} for each document",
        texts.len(),
        all as f64 / text_bytes,
        all / texts.len() as u64
    );
    for (table, rows) in rows_by_table(&world.rest.store).await {
        let more = rows.saturating_sub(rows_before.get(&table).copied().unwrap_or_default());
        if more > 0 {
            println!("  {table:<22} {:.3}", more as f64 / text_bytes);
        }
    }
    world.stop().await;
    all
}

/// `SLUICE_TEXT_BYTES` makes it as large as told.
#[tokio::test]
async fn documents_take_at_most_six_times_their_text() {
    let bytes = std::env::var("SLUICE_TEXT_BYTES").ok().and_then(|n| n.parse().ok()).unwrap_or(300_000);
    let texts = texts_of(bytes);
    let room = room_of(&texts).await;
    assert!(room <= 6 * texts.iter().map(|text| text.len() as u64).sum::<u64>(), "{room}");
}

#[tokio::test]
async fn a_small_document_takes_a_dozen_kib_at_most() {
    let of = |n: usize| format!("Note {n}. {}", COFFEE.split("\n\n").nth(n % 12 + 1).unwrap_or_default());
    let texts: Vec<String> = (0..100).map(of).collect();
    let room = room_of(&texts).await;
    assert!(room <= 12 * 1024 * texts.len() as u64, "{room}");
}

#[tokio::test]
async fn a_question_leaves_at_most_20_kib_behind() {
    const QUESTIONS: usize = 40;
    let world = World::start(None).await;
    world.load("urn:doc:coffee", "text/markdown", "Coffee", COFFEE.as_bytes()).await;
    world.load("urn:doc:bicycle", "text/plain", "Bicycle", BICYCLE.as_bytes()).await;
    let triples = world.service::<exchange::TriplesQuery>("triples").await;
    ask_and_wait(&world, &triples, "What is limescale?").await;
    let room = async || {
        let upkeep = world.rest.store.upkeep();
        upkeep.give_back().await.unwrap();
        upkeep.report().used_bytes
    };
    let (before, messages) = (room().await, world.rest.sent("flow:tg:triples-store"));
    let mut statements = 0;
    for n in 0..QUESTIONS {
        let node = ask_and_wait(&world, &triples, &format!("How is part {n} of a kettle cleaned?")).await;
        let session = node.rsplit_once(':').unwrap().1.to_owned();
        let about = said(&triples, "urn:graph:retrieval").await;
        statements += about.iter().filter(|(node, _)| node.contains(&session)).map(|(_, n)| n).sum::<usize>();
    }
    let each = (room().await - before) / QUESTIONS as u64;
    println!(
        "a question: {} statements, {each} bytes of the store, its answer with them",
        statements / QUESTIONS
    );
    assert!(each <= 20 * 1024, "{each} bytes");
    assert_eq!(world.rest.sent("flow:tg:triples-store") - messages, QUESTIONS, "one message a question");
    world.stop().await;
}
