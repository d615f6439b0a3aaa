//! Counting in any order, and what is told of it.

use super::*;
use proptest::prelude::*;
use sluice_store::Embedded;

const DOCUMENT: &str = "urn:doc:1";
const RUN: &str = "f1";

/// Every report of a document of `texts` texts with `chunks` chunks each; chunk number 2 fails at the embeddings and
/// text number 1 at the chunker.
fn story(texts: usize, chunks: usize) -> Vec<StageReport> {
    let text = |n: usize| format!("urn:text:{n}");
    let mut all = vec![report("decoder", "announced", "text", (0..texts).map(text).collect())];
    let mut number = 0;
    for n in 0..texts {
        if n == 1 {
            all.push(report("chunker", "failed", "text", vec![text(n)]));
            continue;
        }
        let ids: Vec<String> = (0..chunks).map(|c| format!("urn:chunk:{n}:{c}")).collect();
        all.push(report("chunker", "announced", "chunk", ids.clone()));
        all.push(report("chunker", "done", "text", vec![text(n)]));
        for id in ids {
            number += 1;
            if number == 2 {
                all.push(report("embeddings", "failed", "chunk", vec![id]));
                continue;
            }
            for stage in ["embeddings", "index", "store"] {
                all.push(report(stage, "done", "chunk", vec![id.clone()]));
            }
        }
    }
    for (n, report) in all.iter_mut().enumerate() {
        report.id = n.to_string();
    }
    all
}

fn report(stage: &str, event: &str, unit: &str, pieces: Vec<String>) -> StageReport {
    StageReport {
        document_id: DOCUMENT.to_owned(),
        flow: RUN.to_owned(),
        stage: stage.to_owned(),
        event: event.to_owned(),
        unit: unit.to_owned(),
        count: i64::try_from(pieces.len()).unwrap(),
        reason: if event == "failed" { format!("lost by {stage}") } else { String::new() },
        pieces,
        ..Default::default()
    }
}

fn counted(reports: &[StageReport], batches: usize) -> DocumentProgress {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Embedded::open(folder.path()).unwrap();
        let progress = Progress::new(Rows::new(store.tables()));
        for batch in reports.chunks(reports.len().div_ceil(batches).max(1)) {
            let batch: Vec<_> = batch.iter().map(|report| (None, report.clone())).collect();
            progress.count("w", &batch).await.unwrap();
        }
        let shown = progress.shown("w", &[DOCUMENT.to_owned()], "", &[]).await.unwrap().remove(0);
        store.close().await;
        // These depend on when the reports came, and are tested alone.
        DocumentProgress { rate_per_minute: 0.0, remaining_seconds: None, ..shown }
    })
}

/// Reports shuffled, some of them several times.
fn shuffled() -> impl Strategy<Value = (usize, usize, Vec<StageReport>, usize)> {
    (1_usize..4, 1_usize..5, 1_usize..5).prop_flat_map(|(texts, chunks, batches)| {
        let all = story(texts, chunks);
        let again = prop::collection::vec(0..all.len(), 0..6);
        (Just(all), again).prop_flat_map(move |(mut all, again)| {
            let copies: Vec<StageReport> = again.into_iter().map(|n| all[n].clone()).collect();
            all.extend(copies);
            Just(all).prop_shuffle().prop_map(move |all| (texts, chunks, all, batches))
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn counting_does_not_depend_on_order_batches_or_repetition((texts, chunks, reports, batches) in shuffled()) {
        let expected = counted(&story(texts, chunks), 1);
        prop_assert_eq!(counted(&reports, batches), expected.clone());
        prop_assert!(expected.complete);
        prop_assert_eq!(expected.stored + expected.failed, expected.announced);
    }
}

fn check(reports: &[StageReport], expected: (i64, i64, i64, i64, i64, bool)) {
    let got = counted(reports, 1);
    let shown = (got.texts_announced, got.texts_done, got.announced, got.stored, got.failed, got.complete);
    assert_eq!(shown, expected, "{reports:#?}");
}

#[test]
fn every_way_to_end_is_an_end() {
    let ids = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let mut reports = vec![report("decoder", "announced", "text", ids(&["t"]))];
    check(&reports, (1, 0, 0, 0, 0, false));
    reports.push(report("chunker", "announced", "chunk", ids(&["a", "b"])));
    reports.push(report("chunker", "done", "text", ids(&["t"])));
    check(&reports, (1, 1, 2, 0, 0, false));
    reports.push(report("store", "failed", "chunk", ids(&["a"])));
    reports.push(report("index", "failed", "chunk", ids(&["b"])));
    check(&reports, (1, 1, 2, 0, 1, false));
    reports.push(report("store", "done", "chunk", ids(&["b"])));
    check(&reports, (1, 1, 2, 1, 1, true));
    reports.push(report("store", "done", "chunk", ids(&["a"])));
    check(&reports, (1, 1, 2, 2, 0, true));
    assert_eq!(counted(&reports, 1).failures.len(), 2, "what went wrong on the way stays told");

    check(&[report("decoder", "failed", "text", ids(&["doc"]))], (1, 1, 0, 0, 0, true));
    // Nothing more comes of its parts, but why is still to be told.
    let mut broken = vec![report("decoder", "announced", "text", ids(&["p1"]))];
    broken.push(report("decoder", "skipped", "text", ids(&["p1"])));
    check(&broken, (1, 1, 0, 0, 0, false));
    broken.push(report("decoder", "failed", "text", ids(&["doc"])));
    check(&broken, (2, 2, 0, 0, 0, true));
    check(&[report("decoder", "announced", "text", Vec::new())], (0, 0, 0, 0, 0, true));
}

#[test]
fn reports_that_only_count_are_told_apart_by_their_id() {
    let only = |id: &str, stage: &str, event: &str, unit: &str, count| StageReport {
        id: id.to_owned(),
        count,
        ..report(stage, event, unit, Vec::new())
    };
    let announced = only("1", "chunker", "announced", "chunk", 3);
    let reports = [
        announced.clone(),
        announced,
        only("2", "chunker", "done", "text", 1),
        only("3", "store", "failed", "chunk", 1),
    ];
    // A failure that names no piece counts as one more piece: announced and failed.
    check(&reports, (1, 1, 4, 0, 1, false));
}

#[tokio::test]
async fn chunks_with_vectors_are_told_of_the_pass_that_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let progress = Progress::new(Rows::new(store.tables()));
    let chunks = ["a", "b"].map(str::to_owned);
    let embedded = |chunk: &str| report("embeddings", "done", "chunk", vec![chunk.to_owned()]);
    let told = async || {
        let shown = progress.shown("w", &[DOCUMENT.to_owned()], "f1", &chunks).await.unwrap();
        shown.into_iter().flat_map(|one| one.embedded_chunks).collect::<Vec<_>>()
    };
    let begin = async |pass| {
        let processing = ProcessingMetadata { document_id: DOCUMENT.to_owned(), ..Default::default() };
        let mut batch = Batch::new();
        let entry = Entry { run: RUN, pass, is_text: true, has_index: false };
        progress.begin("w", &processing, entry, &mut batch).await.unwrap();
        progress.rows.commit(batch).await.unwrap();
    };
    assert!(told().await.is_empty());
    begin(1).await;
    progress.count("w", &[(Some(1), embedded("a"))]).await.unwrap();
    assert_eq!(told().await, ["a"]);
    begin(2).await;
    assert!(told().await.is_empty(), "each pass makes its vectors");
    progress.count("w", &[(Some(1), embedded("a")), (Some(2), embedded("b"))]).await.unwrap();
    assert_eq!(told().await, ["b"], "a report of the pass before comes too late");
    progress.count("w", &[(None, embedded("a"))]).await.unwrap();
    assert_eq!(told().await, ["a", "b"], "one that tells no pass counts");
    for (documents, chunks) in [(vec![], &chunks[..]), (vec![DOCUMENT.to_owned()], &[String::new()])] {
        let refused = progress.shown("w", &documents, "f1", chunks).await;
        assert!(matches!(refused, Err(Error::Request(_))), "{refused:?}");
    }
    store.close().await;
}

#[tokio::test]
async fn what_is_sent_into_a_later_run_counts_where_its_pass_began() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let progress = Progress::new(Rows::new(store.tables()));
    let processing = ProcessingMetadata { document_id: DOCUMENT.to_owned(), ..Default::default() };
    let mut batch = Batch::new();
    let entry = Entry { run: RUN, pass: 1, is_text: false, has_index: false };
    progress.begin("w", &processing, entry, &mut batch).await.unwrap();
    progress.rows.commit(batch).await.unwrap();
    let (before, after) = (story(3, 2), "f1-r2");
    let half = before.len() / 2;
    for (n, one) in before.into_iter().enumerate() {
        let flow = if n < half { RUN } else { after };
        progress.count("w", &[(Some(1), StageReport { flow: flow.to_owned(), ..one })]).await.unwrap();
    }
    let shown = progress.shown("w", &[DOCUMENT.to_owned()], "f1", &[]).await.unwrap();
    assert_eq!(shown.len(), 1);
    assert!(shown[0].complete, "{shown:?}");
    assert_eq!((shown[0].texts_announced, shown[0].texts_done, shown[0].announced), (3, 3, 4));
    // Another flow has its own.
    let other =
        StageReport { flow: "f2".to_owned(), ..report("store", "done", "chunk", vec!["x".to_owned()]) };
    progress.count("w", &[(Some(1), other)]).await.unwrap();
    let shown = progress.shown("w", &[DOCUMENT.to_owned()], "f2", &[]).await.unwrap();
    assert_eq!((shown[0].stored, shown[0].complete), (1, false));
    store.close().await;
}

#[test]
fn failures_kept_are_bounded_and_their_reasons_too() {
    let failed = |n: usize| StageReport {
        reason: "x".repeat(10_000),
        ..report("store", "failed", "chunk", vec![format!("chunk {n:03}")])
    };
    let shown = counted(&(0..200).rev().map(failed).collect::<Vec<_>>(), 3);
    assert_eq!((shown.failed, shown.failures.len()), (200, FAILURES_MAX));
    assert_eq!(shown.failures[0].piece, "chunk 000");
    assert_eq!(shown.failures[0].reason.len(), REASON_CHARS_MAX);
}

#[tokio::test]
async fn beyond_the_bound_documents_are_asked_for_by_name_and_none_is_shown_in_an_older_run() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path()).unwrap();
    let progress = Progress::new(Rows::new(store.tables()));
    let mut batch = Batch::new();
    let name = |n: usize| format!("urn:doc:{n:04}");
    for n in 0..=DOCUMENTS_MAX {
        for (run, started_ms, stored) in [("f1", 1, 1), ("f1-r2", 2, 2)] {
            let tally = Tally { started_ms, stored, ..Default::default() };
            batch.put(PROGRESS, key(&["w", &name(n), run]), rows::encode(&tally));
        }
    }
    progress.rows.commit(batch).await.unwrap();
    let all = progress.shown("w", &[], "f1", &[]).await.unwrap();
    assert_eq!((all.len(), all.last().unwrap().stored), (DOCUMENTS_MAX, 2));
    assert!(all.iter().all(|one| one.stored == 2));
    let beyond = [name(DOCUMENTS_MAX), name(7), "urn:doc:none".to_owned(), name(7)];
    let named = progress.shown("w", &beyond, "f1", &[]).await.unwrap();
    let seen: Vec<_> = named.iter().map(|one| (one.document_id.as_str(), one.stored)).collect();
    assert_eq!(seen, [("urn:doc:0007", 2), ("urn:doc:1000", 2)]);
    let many: Vec<String> = (0..=DOCUMENTS_MAX).map(name).collect();
    assert_eq!(progress.shown("w", &many[1..], "f1", &[]).await.unwrap().len(), DOCUMENTS_MAX);
    let refused = progress.shown("w", &many, "f1", &[]).await.unwrap_err();
    assert!(matches!(&refused, Error::Request(said) if said.contains("at most 1000")), "{refused}");
    assert!(matches!(progress.shown("w", &[String::new()], "f1", &[]).await, Err(Error::Request(_))));
    store.close().await;
}

#[test]
fn the_rate_is_of_the_last_minute_and_tells_what_remains() {
    let mut tally = Tally { texts_announced: 4, texts_done: 2, announced: 100, ..Default::default() };
    let told = |tally: &Tally, now_ms: i64| {
        let shown = tally.shown("d", "f", now_ms, 0);
        (shown.rate_per_minute.round() as i64, shown.remaining_seconds)
    };
    assert_eq!(told(&tally, 0), (0, None), "nothing is known yet");
    // Ten chunks in every ten seconds for two minutes, reported every second.
    for second in 0..60 {
        tally.stored += 1;
        tally.mark(tally.stored - 1, second * 1_000);
    }
    assert_eq!(told(&tally, 60_000), (60, Some(140)), "200 chunks are expected, 60 are stored");
    assert_eq!(tally.lately.len(), MARKS_MAX);
    assert_eq!(told(&tally, 120_000).0, 30, "it falls while nothing happens");
    (tally.texts_done, tally.announced) = (4, 60);
    assert_eq!(told(&tally, 120_000), (0, Some(0)), "complete");
}

#[test]
fn a_run_belongs_to_its_flow() {
    assert_eq!((flow_of("f1"), flow_of("f1-r2"), flow_of("for-real")), ("f1", "f1", "for-real"));
}
