//! How well the search without a model finds: questions over the sample documents, through the real chunker, embedder,
//! stores, fusion and reranker, as `document-rag` joins them. Run with `--nocapture` to see the numbers.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]
#![expect(clippy::print_stdout, reason = "the numbers are what a reader of this test wants")]

use std::path::Path;

use serde::Deserialize;
use sluice_processors::chunk_index::{index_terms, query_terms};
use sluice_processors::pieces::pieces;
use sluice_processors::{hashing, reranker, retrieval};
use sluice_schema::message::{ChunkMatch, RerankerDocument, RerankerQuery, RerankerRequest};
use sluice_store::{Attributes, Embedded, KeywordEntry, Match, Scope, Stores, VectorEntry};

const FETCH_LIMIT: usize = 60;
const DOC_LIMIT: usize = 20;
const SCOPE: Scope<'static> = Scope::new("default", "samples");

#[derive(Deserialize)]
struct Question {
    question: String,
    document: String,
    passage: String,
}

struct Passage {
    id: String,
    document: String,
    text: String,
}

struct Found {
    /// The place of the right passage, from 0; `None` when it is not among the first ten.
    by_vector: Option<usize>,
    by_keyword: Option<usize>,
    fused: Option<usize>,
    reranked: Option<usize>,
}

#[tokio::test]
async fn the_right_passage_is_among_the_first_three_for_at_least_27_of_30_questions() {
    // The sizes that the standard parameter types give, and a finer cut.
    let found = measure("questions.json", 2_000, 50).await;
    let found_finer = measure("questions.json", 600, 50).await;
    assert!(found >= 27, "{found} of 30 at 2000 characters");
    assert!(found_finer >= 25, "{found_finer} of 30 at 600 characters");
}

/// Written after the search was finished, and never used to change it: what to expect of other questions.
#[tokio::test]
async fn questions_that_the_search_was_not_made_with_find_their_passage_nearly_as_often() {
    let found = measure("questions-held-out.json", 2_000, 50).await;
    measure("questions-held-out.json", 600, 50).await;
    assert!(found >= 24, "{found} of 30 at 2000 characters");
}

/// How many questions find their passage among the first three.
async fn measure(file: &str, size: usize, overlap: usize) -> usize {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../samples");
    let questions: Vec<Question> =
        serde_json::from_slice(&std::fs::read(samples.join(file)).unwrap()).unwrap();
    assert_eq!(questions.len(), 30);
    let passages = cut_samples(&samples, size, overlap);
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let stores = store.stores();
    index(&stores, &passages).await;

    let mut found = Vec::new();
    for question in &questions {
        let place = find(&stores, &passages, question).await;
        if place.reranked.is_none_or(|place| place > 2) {
            println!(
                "missed: {} (vector {:?}, keyword {:?}, fused {:?}, reranked {:?})",
                question.question, place.by_vector, place.by_keyword, place.fused, place.reranked
            );
        }
        found.push(place);
    }
    let within = |count: usize, place: fn(&Found) -> Option<usize>| {
        found.iter().filter(|found| place(found).is_some_and(|place| place < count)).count()
    };
    println!(
        "{file}: {} passages of at most {size} characters, {} questions",
        passages.len(),
        questions.len()
    );
    println!(
        "  first / first three by vectors alone:  {} / {}",
        within(1, |f| f.by_vector),
        within(3, |f| f.by_vector)
    );
    println!(
        "  first / first three by keywords alone: {} / {}",
        within(1, |f| f.by_keyword),
        within(3, |f| f.by_keyword)
    );
    println!(
        "  first / first three fused:             {} / {}",
        within(1, |f| f.fused),
        within(3, |f| f.fused)
    );
    println!(
        "  first / first three reranked:          {} / {}",
        within(1, |f| f.reranked),
        within(3, |f| f.reranked)
    );
    store.close().await;
    within(3, |f| f.reranked)
}

fn cut_samples(samples: &Path, size: usize, overlap: usize) -> Vec<Passage> {
    let mut passages = Vec::new();
    for entry in std::fs::read_dir(samples).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name == "README.md" || !(name.ends_with(".md") || name.ends_with(".txt")) {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, piece) in pieces(&text, size, overlap).iter().enumerate() {
            let id = format!("{name}#{number}");
            passages.push(Passage { id, document: name.clone(), text: piece.text.to_owned() });
        }
    }
    passages
}

async fn index(stores: &Stores, passages: &[Passage]) {
    let labels = Attributes::new;
    let vectors = passages
        .iter()
        .map(|p| VectorEntry { id: p.id.clone(), vector: vector(&p.text), attributes: labels() })
        .collect();
    stores.vectors.upsert(SCOPE, vectors).await.unwrap();
    let texts = passages
        .iter()
        .map(|p| KeywordEntry { id: p.id.clone(), text: index_terms(&p.text), attributes: labels() })
        .collect();
    stores.keywords.upsert(SCOPE, texts).await.unwrap();
}

async fn find(stores: &Stores, passages: &[Passage], question: &Question) -> Found {
    let asked = vector(&question.question);
    let near = matches(stores.vectors.search(SCOPE, &asked, FETCH_LIMIT, &Attributes::new()).await.unwrap());
    let terms = query_terms(&question.question);
    let by_keyword = matches(stores.keywords.search(SCOPE, &terms, FETCH_LIMIT).await.unwrap());
    let fused = retrieval::candidates(
        vec![near.clone()],
        by_keyword.clone(),
        retrieval::Weights::default(),
        FETCH_LIMIT,
    );

    let text = |id: &str| passages.iter().find(|p| p.id == id).unwrap();
    let documents = fused.iter().map(|found| RerankerDocument {
        document_id: found.chunk_id.clone(),
        document_text: text(&found.chunk_id).text.clone(),
    });
    let request = RerankerRequest {
        queries: vec![RerankerQuery { query_id: "0".to_owned(), query_text: question.question.clone() }],
        documents: documents.collect(),
        limit: DOC_LIMIT as i64,
    };
    let reranked: Vec<String> =
        reranker::rank(&request).into_iter().map(|result| result.document_id).collect();

    let is_right =
        |id: &str| text(id).document == question.document && text(id).text.contains(&question.passage);
    let place = |ids: &mut dyn Iterator<Item = &str>| ids.take(10).position(is_right);
    Found {
        by_vector: place(&mut near.iter().map(|found| found.chunk_id.as_str())),
        by_keyword: place(&mut by_keyword.iter().map(|found| found.chunk_id.as_str())),
        fused: place(&mut fused.iter().map(|found| found.chunk_id.as_str())),
        reranked: place(&mut reranked.iter().map(String::as_str)),
    }
}

fn vector(text: &str) -> Vec<f32> {
    hashing::embed(text).into_iter().map(|x| x as f32).collect()
}

fn matches(found: Vec<Match>) -> Vec<ChunkMatch> {
    found
        .into_iter()
        .map(|found| ChunkMatch {
            chunk_id: found.id,
            score: f64::from(found.score),
            attributes: found.attributes,
        })
        .collect()
}
