//! How much room things take in the embedded store: `cargo run -p sluice-store --example room -- [documents]`.
//!
//! Each document has eight chunks with a vector of 512 numbers, an entry in the keyword index, its text, and the statements
//! of its provenance; then everything but the last tenth is removed.

#![expect(clippy::print_stdout, reason = "figures for people are what it is for")]
#![expect(clippy::disallowed_methods, reason = "its tasks are waited for")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use sluice_schema::message::{Term, Triple};
use sluice_store::embedded::Place;
use sluice_store::{Attributes, Embedded, KeywordEntry, Pattern, Scope, Stores, VectorEntry};

const SCOPE: Scope<'static> = Scope::new("default", "docs");
const CHUNKS: usize = 8;
const WORDS: usize = 180;

fn term(kind: &str, text: String) -> Option<Term> {
    let mut term = Term { r#type: kind.to_owned(), ..Term::default() };
    *if kind == "i" { &mut term.iri } else { &mut term.value } = text;
    Some(term)
}

fn chunk_id(document: usize, chunk: usize) -> String {
    format!("urn:document:3f2a-{document:08x}/c{chunk}")
}

fn text(document: usize, chunk: usize) -> String {
    let mut state = (document * 31 + chunk * 7 + 1) as u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Some words are common, most are not.
        let n = (state >> 33) % 1000;
        if n < 500 { n % 60 } else { (state >> 13) % 20_000 }
    };
    (0..WORDS).map(|_| format!("word{} ", next())).collect()
}

/// What a chunker says of a chunk, as many statements and as long.
fn statements(document: usize, chunk: usize) -> Vec<Triple> {
    let id = chunk_id(document, chunk);
    let activity = format!("https://trustgraph.ai/activity/7a1c33e2-{document:08x}-{chunk:04x}-0d1e2f3a4b5c");
    let said = |subject: &str, name: &str, object: Option<Term>| Triple {
        s: term("i", subject.to_owned()),
        p: term("i", format!("http://www.w3.org/ns/prov#{name}")),
        o: object,
        g: Some("urn:graph:source".to_owned()),
    };
    let iri = |text: &str| term("i", text.to_owned());
    let literal = |text: String| term("l", text);
    vec![
        said(&id, "type", iri("http://www.w3.org/ns/prov#Entity")),
        said(&id, "type", iri("https://trustgraph.ai/ns/Chunk")),
        said(&id, "wasDerivedFrom", iri(&format!("urn:document:3f2a-{document:08x}"))),
        said(&id, "wasGeneratedBy", iri(&activity)),
        said(&activity, "type", iri("http://www.w3.org/ns/prov#Activity")),
        said(&activity, "label", literal("chunker extraction".to_owned())),
        said(&activity, "used", iri(&format!("urn:document:3f2a-{document:08x}"))),
        said(&activity, "wasAssociatedWith", iri("https://trustgraph.ai/agent/chunker")),
        said(&activity, "startedAtTime", literal(format!("2026-01-01T00:00:{document}.{chunk:06}Z"))),
        said(&activity, "componentVersion", literal("1.0.0".to_owned())),
        said(&id, "label", literal(format!("Chunk {chunk}"))),
        said(&id, "chunkIndex", literal(chunk.to_string())),
        said(&id, "charOffset", literal((chunk * 1000).to_string())),
        said(&id, "charLength", literal("1000".to_owned())),
        said(&activity, "chunkSize", literal("1000".to_owned())),
        said(&activity, "chunkOverlap", literal("100".to_owned())),
    ]
}

async fn show(store: &Embedded, folder: &Path, title: &str) {
    let mut tables: BTreeMap<String, u64> = BTreeMap::new();
    let mut place = Some(Place::BEGIN);
    while let Some(at) = place {
        let name = match &at {
            Place::Row { table, .. } => Some(table.clone()),
            Place::Block(_) | Place::Content { .. } => None,
        };
        let step = store.upkeep().check(at, 16 << 20).await.expect("it reads");
        if let Some(name) = name {
            *tables.entry(name).or_default() += step.bytes;
        }
        place = step.next;
    }
    let file = std::fs::metadata(folder.join("store.redb")).map_or(0, |file| file.len());
    let rows: u64 = tables.values().sum();
    println!("{title}: file {} KiB, rows {} KiB", file >> 10, rows >> 10);
    for (table, bytes) in tables.iter().filter(|(_, bytes)| **bytes > 0) {
        println!("  {table:<22} {:>8} KiB", bytes >> 10);
    }
}

/// Puts every chunk into the keyword index, for sixteen writers, then searches it.
async fn index(stores: &Stores, documents: usize) {
    const WRITERS: usize = 16;
    const SEARCHES: usize = 200;
    let began = Instant::now();
    let write = |writer: usize| {
        let keywords = Arc::clone(&stores.keywords);
        tokio::spawn(async move {
            for document in (writer..documents).step_by(WRITERS) {
                for chunk in 0..CHUNKS {
                    let (id, text) = (chunk_id(document, chunk), text(document, chunk));
                    let entry = KeywordEntry { id, text, attributes: Attributes::new() };
                    keywords.upsert(SCOPE, vec![entry]).await.expect("a text is indexed");
                }
            }
        })
    };
    for writer in (0..WRITERS).map(write).collect::<Vec<_>>() {
        writer.await.expect("it writes to the end");
    }
    let rate = (documents * CHUNKS) as f64 / began.elapsed().as_secs_f64();
    let began = Instant::now();
    for n in 0..SEARCHES {
        let query = format!("word{} word{} word{}", n % 60, n * 7 % 60, n * 31);
        stores.keywords.search(SCOPE, &query, 20).await.expect("it is searched");
    }
    let each = began.elapsed().as_secs_f64() * 1e3 / SEARCHES as f64;
    println!("keyword index: {rate:.0} texts/s for {WRITERS} writers, {each:.2} ms a search");
}

#[tokio::main]
async fn main() {
    let documents: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(200);
    let folder = tempfile::tempdir_in(".").expect("a folder can be made");
    let store = Embedded::open(folder.path()).expect("the store opens");
    let stores = store.stores();
    let mut bytes = 0;

    let began = Instant::now();
    let mut count = 0;
    for some in (0..documents).collect::<Vec<_>>().chunks(8) {
        let all: Vec<Triple> =
            some.iter().flat_map(|d| (0..CHUNKS).flat_map(|chunk| statements(*d, chunk))).collect();
        count += all.len();
        stores.triples.add(SCOPE, all).await.expect("statements are kept");
    }
    let rate = count as f64 / began.elapsed().as_secs_f64();
    show(&store, folder.path(), &format!("{count} statements, {rate:.0}/s")).await;

    for document in 0..documents {
        for chunk in 0..CHUNKS {
            let (id, text) = (chunk_id(document, chunk), text(document, chunk));
            bytes += text.len();
            let vector = (0..512).map(|n| ((document * 7 + chunk * 3 + n) % 101) as f32 - 50.0).collect();
            let entry = VectorEntry { id: id.clone(), vector, attributes: Attributes::new() };
            stores.blobs.put(&id, text.clone().into()).await.expect("content is kept");
            stores.vectors.upsert(SCOPE, vec![entry]).await.expect("a vector is kept");
        }
    }
    index(&stores, documents).await;
    show(&store, folder.path(), &format!("{documents} documents, {} KiB of text", bytes >> 10)).await;

    for document in 0..documents * 9 / 10 {
        let ids: Vec<String> = (0..CHUNKS).map(|chunk| chunk_id(document, chunk)).collect();
        stores.vectors.remove(SCOPE, &ids).await.expect("vectors go");
        stores.keywords.remove(SCOPE, &ids).await.expect("texts go");
        for (chunk, id) in ids.iter().enumerate() {
            stores.blobs.remove(id).await.expect("content goes");
            let subject = Pattern { s: statements(document, chunk)[0].s.clone(), ..Pattern::all() };
            stores.triples.remove(SCOPE, &subject).await.expect("statements go");
        }
    }
    show(&store, folder.path(), "a tenth of them").await;
    let began = Instant::now();
    store.upkeep().give_back().await.expect("the file is written anew");
    println!("compacted in {} ms", began.elapsed().as_millis());
    show(&store, folder.path(), "a tenth of them, compacted").await;
    store.close().await;
}
