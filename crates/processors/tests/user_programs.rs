//! Templates and schemas that users wrote, run by real processes: whatever they are, they end, and nobody else waits for it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sluice_processors::{Renderer, RendererConfig};

#[test]
#[ignore = "the process that renders prompts for the other tests"]
fn renders_prompts() {
    sluice_processors::renderer::child::serve(std::io::stdin(), std::io::stdout()).unwrap();
}

/// Renders in processes of this program.
fn renderer() -> Renderer {
    Renderer::new(config())
}

fn config() -> RendererConfig {
    let arguments = ["renders_prompts", "--exact", "--ignored", "--nocapture", "--test-threads", "1"];
    RendererConfig {
        program: std::env::current_exe().unwrap(),
        arguments: arguments.map(str::to_owned).to_vec(),
        ..RendererConfig::default()
    }
}

/// Templates that no count of steps ends: what they make is not counted, or falls apart after.
const HOSTILE: [&str; 6] = [
    "{% set ns = namespace(x=[1,1]) %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ns.x|length}}",
    "{% set ns = namespace(x=[1,1]) %}{% for i in range(30) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ns.x|list|length}}",
    "{% set ns = namespace(x=[1,1]) %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ns.x == ns.x}}{{ns.x|last}}",
    "{% set ns = namespace(x=[]) %}{% for j in range(9) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}{% endfor %}{{ns.x|length}}",
    "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% set ns = namespace(s='ab') %}{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ns.s}}",
];

fn nothing() -> BTreeMap<String, String> {
    BTreeMap::new()
}

/// Counts up for as long as the threads of the runtime are free to do so.
fn heartbeat() -> (Arc<AtomicUsize>, tokio::task::JoinSet<()>) {
    let beats = Arc::new(AtomicUsize::new(0));
    let counted = beats.clone();
    let beating = async move {
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            counted.fetch_add(1, Ordering::SeqCst);
        }
    };
    let mut heart = tokio::task::JoinSet::new();
    heart.spawn(beating);
    (beats, heart)
}

fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// With one thread: a template that ran on it would stop the heart.
#[tokio::test]
async fn a_template_without_end_ends_and_no_thread_of_the_runtime_waits_for_it() {
    let renderer = renderer();
    assert_eq!(renderer.render("w", "{{ 1 + 1 }}", &nothing()).await.as_deref(), Ok("2"));
    let before = peak_bytes();
    let (beats, heart) = heartbeat();
    for template in HOSTILE {
        beats.store(0, Ordering::SeqCst);
        let reason = renderer.render("w", template, &nothing()).await.unwrap_err();
        assert!(
            reason.contains("make it simpler") || reason.contains("fuel") || reason.contains("recursion"),
            "{template}: {reason}"
        );
        if reason.contains("computing") {
            assert!(beats.load(Ordering::SeqCst) > 10, "{template}: the runtime stood still");
        }
        // The next one is rendered as if nothing had been.
        assert_eq!(
            renderer.render("w", "{{ 'a' }}", &nothing()).await.as_deref(),
            Ok("a"),
            "after {template}"
        );
    }
    drop(heart);
    let more = peak_bytes().saturating_sub(before);
    assert!(more < 64 * 1024 * 1024, "{more} bytes here for templates that end elsewhere");
}

/// Between jobs nothing looks at what a process takes, so the next one has to be looked at again.
#[tokio::test]
async fn a_process_ends_a_template_by_itself_also_after_it_was_idle() {
    let renderer = Renderer::new(RendererConfig { answer_timeout: Duration::from_secs(3_600), ..config() });
    for _ in 0..2 {
        assert_eq!(renderer.render("w", "{{ 1 }}", &nothing()).await.as_deref(), Ok("1"));
        tokio::time::sleep(Duration::from_millis(100)).await;
        let terms = nothing();
        let ended = renderer.render("w", HOSTILE[0], &terms);
        let ended = tokio::time::timeout(Duration::from_secs(60), ended).await.expect("it goes on");
        assert!(ended.unwrap_err().contains("of computing"));
    }
}

#[tokio::test]
async fn a_schema_without_end_ends() {
    let renderer = renderer();
    let good = r#"{"type": "object", "required": ["a"]}"#;
    assert_eq!(renderer.check("w", good, "Sure: {\"a\": 1}").await.as_deref(), Ok(r#"{"a":1}"#));
    // Each level asks both alternatives below, and no value fits any.
    let mut schema = "false".to_owned();
    for _ in 0..40 {
        schema = format!(r#"{{"anyOf": [{schema}, {{"$ref": "x"}}], "items": true}}"#);
    }
    let _ = renderer.check("w", &schema, "[1]").await;
    let deep = (0..12)
        .fold("{\"type\": \"null\"}".to_owned(), |below, _| format!(r#"{{"anyOf": [{below}, {below}]}}"#));
    let reason = renderer.check("w", &deep, &format!("[{}1]", "1,".repeat(100_000))).await.unwrap_err();
    assert!(!reason.is_empty());
    let items = format!(r#"{{"type": "array", "items": {deep}}}"#);
    let reason = renderer.check("w", &items, &format!("[{}1]", "null,".repeat(100_000))).await.unwrap_err();
    assert!(reason.contains("make it simpler") || reason.contains("fits none"), "{reason}");
    assert_eq!(renderer.check("w", good, "{\"a\": 1}").await.as_deref(), Ok(r#"{"a":1}"#));
}

#[tokio::test]
async fn a_workspace_waits_for_no_template_of_another() {
    let renderer = renderer();
    // Processes that are there already.
    let (a, b) = (nothing(), nothing());
    let warm = tokio::join!(renderer.render("a", "a", &a), renderer.render("b", "b", &b));
    assert!(warm.0.is_ok() && warm.1.is_ok(), "{warm:?}");
    let terms = nothing();
    let many = (0..8).map(|_| Box::pin(renderer.render("a", HOSTILE[0], &terms)));
    let hostile = futures_util::future::select_all(many);
    let neighbour = async {
        tokio::task::yield_now().await;
        renderer.render("b", "{{ 'mine' }}", &terms).await
    };
    tokio::select! {
        biased;
        done = neighbour => assert_eq!(done.as_deref(), Ok("mine")),
        _ = hostile => panic!("a neighbour waited for one of them"),
    }
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_ended() {
    let renderer = renderer();
    let terms = nothing();
    for _ in 0..3 {
        let rendering = renderer.render("w", HOSTILE[0], &terms);
        assert!(tokio::time::timeout(Duration::from_millis(50), rendering).await.is_err());
        // Its turn and its slot are free at once.
        assert_eq!(renderer.render("w", "{{ 1 }}", &terms).await.as_deref(), Ok("1"));
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_it_is_sent_and_after_it_was_made() {
    let renderer = renderer();
    let terms = BTreeMap::from([("text".to_owned(), "x".repeat(17 * 1024 * 1024))]);
    assert!(renderer.render("w", "{{ text }}", &terms).await.unwrap_err().contains("send less"));
    let terms = BTreeMap::from([("text".to_owned(), "x".repeat(1024 * 1024))]);
    assert_eq!(renderer.render("w", "{{ text }}", &terms).await.unwrap().len(), 1024 * 1024);
    let reason =
        renderer.render("w", "{% for i in range(20) %}{{ text }}{% endfor %}", &terms).await.unwrap_err();
    assert!(reason.contains("more than the") || reason.contains("simpler"), "{reason}");
}

/// Expressions and statements of the language, put together at random.
fn templates() -> impl Strategy<Value = String> {
    let atom = prop_oneof![
        Just("x".to_owned()),
        Just("ns.x".to_owned()),
        Just("[1, 2]".to_owned()),
        Just("'ab'".to_owned()),
        Just("range(1000)".to_owned()),
        Just("{'a': ns.x}".to_owned()),
        (0_u32..100_000).prop_map(|n| n.to_string()),
    ];
    let expression = atom.prop_recursive(4, 24, 3, |inner| {
        let filter = prop_oneof![
            Just("list"),
            Just("length"),
            Just("reverse"),
            Just("sort"),
            Just("unique"),
            Just("join(',')"),
            Just("string"),
            Just("first"),
            Just("last"),
            Just("tojson"),
            Just("batch(2)"),
            Just("slice(3)"),
            Just("indent(500)"),
            Just("replace('a', 'aaaa')"),
            Just("title"),
            Just("repr"),
            Just("items"),
        ];
        prop_oneof![
            (
                inner.clone(),
                prop_oneof![Just("+"), Just("~"), Just("*"), Just("=="), Just("in")],
                inner.clone()
            )
                .prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            (inner.clone(), filter).prop_map(|(a, filter)| format!("({a} | {filter})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("[{a}, {b}]")),
            inner.prop_map(|a| format!("{a}[0]")),
        ]
    });
    let statement =
        expression.clone().prop_map(|e| format!("{{{{ {e} }}}}")).prop_recursive(4, 16, 3, move |inner| {
            let e = expression.clone();
            prop_oneof![
                (e.clone(), inner.clone()).prop_map(|(e, body)| format!("{{% set ns.x = {e} %}}{body}")),
                (1_u32..5_000, inner.clone())
                    .prop_map(|(n, body)| format!("{{% for x in range({n}) %}}{body}{{% endfor %}}")),
                (e.clone(), inner.clone())
                    .prop_map(|(e, body)| format!("{{% for x in {e} %}}{body}{{% endfor %}}")),
                (e, inner.clone(), inner.clone())
                    .prop_map(|(e, a, b)| format!("{{% if {e} %}}{a}{{% else %}}{b}{{% endif %}}")),
                (inner.clone(), inner).prop_map(|(a, b)| format!("{a}{b}")),
            ]
        });
    statement.prop_map(|body| format!("{{% set ns = namespace(x=[1]) %}}{body}"))
}

#[test]
fn whatever_a_template_is_it_renders_or_fails() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let renderer = renderer();
    let config = Config { cases: 48, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let before = peak_bytes();
    let rendered = AtomicUsize::new(0);
    TestRunner::new(config)
        .run(&templates(), |template| {
            let done = runtime.block_on(renderer.render("w", &template, &nothing()));
            rendered.fetch_add(usize::from(done.is_ok()), Ordering::SeqCst);
            // Infrastructure is never the reason.
            let reason = done.err().unwrap_or_default();
            prop_assert!(
                !reason.contains("at the moment") && !reason.contains("try again"),
                "{template}: {reason}"
            );
            Ok(())
        })
        .unwrap();
    assert!(rendered.into_inner() > 0, "no template was any good");
    let more = peak_bytes().saturating_sub(before);
    assert!(more < 64 * 1024 * 1024, "{more} bytes here");
}
