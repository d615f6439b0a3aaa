//! Promises of triples.

use std::collections::BTreeSet;

use sluice_schema::ceilings::TERM_BYTES_MAX;
use sluice_schema::message::{Term, Triple};

use super::{Works as _, fails};
use crate::{ErrorKind, Pattern, Scope, Stores};

super::promises![
    statements_are_found_by_every_pattern,
    adding_again_changes_nothing,
    every_kind_of_term_comes_back,
    a_graph_is_a_filter_or_none,
    pages_give_every_statement_once,
    a_graph_or_a_collection_is_removed,
    statements_stay_in_their_collection_and_workspace,
    a_statement_with_a_hole_is_refused,
    a_term_that_no_answer_could_hold_is_refused,
];

const HERE: Scope<'static> = Scope::new("default", "graph");

fn iri(text: &str) -> Term {
    Term { r#type: "i".to_owned(), iri: text.to_owned(), ..Term::default() }
}

fn literal(value: &str, datatype: &str, language: &str) -> Term {
    Term {
        r#type: "l".to_owned(),
        value: value.to_owned(),
        datatype: datatype.to_owned(),
        language: language.to_owned(),
        ..Term::default()
    }
}

fn triple(s: &str, p: &str, o: &str, g: Option<&str>) -> Triple {
    Triple { s: Some(iri(s)), p: Some(iri(p)), o: Some(iri(o)), g: g.map(str::to_owned) }
}

fn pattern(s: Option<&str>, p: Option<&str>, o: Option<&str>, g: Option<&str>) -> Pattern {
    Pattern { s: s.map(iri), p: p.map(iri), o: o.map(iri), g: g.map(str::to_owned) }
}

fn texts(triples: &[Triple]) -> BTreeSet<String> {
    let text = |term: &Option<Term>| term.as_ref().map(|term| term.iri.clone()).unwrap_or_default();
    let line = |t: &Triple| {
        format!("{} {} {} {}", text(&t.s), text(&t.p), text(&t.o), t.g.as_deref().unwrap_or("-"))
    };
    triples.iter().map(line).collect()
}

async fn all(stores: &Stores, scope: Scope<'_>, pattern: &Pattern) -> Vec<Triple> {
    let page = stores.triples.query(scope, pattern, None, 10_000).await.works();
    assert_eq!(page.next, None);
    assert_eq!(texts(&page.triples).len(), page.triples.len(), "something came twice");
    page.triples
}

async fn statements_are_found_by_every_pattern(stores: Stores) {
    let names = ["a", "b", "c"];
    let mut triples = Vec::new();
    for s in names {
        for p in names {
            for o in names {
                for g in [None, Some("g")] {
                    triples.push(triple(s, p, o, g));
                }
            }
        }
    }
    stores.triples.add(HERE, triples.clone()).await.works();
    let choices = [None, Some("b"), Some("unheard-of")];
    for s in choices {
        for p in choices {
            for o in choices {
                for g in [None, Some(""), Some("g"), Some("*")] {
                    let fits = |term: &Option<Term>, wanted: Option<&str>| {
                        wanted.is_none_or(|wanted| term.as_ref().is_some_and(|term| term.iri == wanted))
                    };
                    let matching = |t: &&Triple| {
                        fits(&t.s, s)
                            && fits(&t.p, p)
                            && fits(&t.o, o)
                            && g.is_none_or(|g| t.g.as_deref().unwrap_or("") == g)
                    };
                    let expected: Vec<_> = triples.iter().filter(matching).cloned().collect();
                    let found = all(&stores, HERE, &pattern(s, p, o, g)).await;
                    assert_eq!(texts(&found), texts(&expected), "pattern {s:?} {p:?} {o:?} {g:?}");
                }
            }
        }
    }
}

async fn adding_again_changes_nothing(stores: Stores) {
    for _ in 0..3 {
        let twice = vec![triple("a", "b", "c", None), triple("a", "b", "c", None)];
        stores.triples.add(HERE, twice).await.works();
        stores.triples.add(HERE, vec![triple("a", "b", "c", Some(""))]).await.works();
    }
    assert_eq!(all(&stores, HERE, &Pattern::all()).await, [triple("a", "b", "c", None)]);
}

async fn every_kind_of_term_comes_back(stores: Stores) {
    let quoted = Term {
        r#type: "t".to_owned(),
        triple: Some(Box::new(Triple { o: Some(literal("7", "", "")), ..triple("a", "b", "c", Some("g")) })),
        ..Term::default()
    };
    let blank = Term { r#type: "b".to_owned(), id: "a".to_owned(), ..Term::default() };
    let objects = [
        iri("a"),
        blank,
        literal("a", "", ""),
        literal("a", "", "en"),
        literal("a", "http://www.w3.org/2001/XMLSchema#string", ""),
        literal("", "", ""),
        literal(&"long ".repeat(20_000), "", ""),
        literal("水\0\"\n", "", ""),
        quoted,
    ];
    for object in &objects {
        let statement = Triple { o: Some(object.clone()), ..triple("a", "b", "", None) };
        stores.triples.add(HERE, vec![statement.clone()]).await.works();
        let by_object = Pattern { o: Some(object.clone()), ..Pattern::all() };
        assert_eq!(stores.triples.query(HERE, &by_object, None, 9).await.works().triples, [statement]);
    }
    let page = stores.triples.query(HERE, &pattern(Some("a"), None, None, None), None, 99).await.works();
    assert_eq!(page.triples.len(), objects.len());

    let noisy = Term { value: "not of an IRI".to_owned(), ..iri("a") };
    stores.triples.add(HERE, vec![Triple { o: Some(noisy), ..triple("a", "b", "", None) }]).await.works();
    let page = stores.triples.query(HERE, &pattern(None, None, Some("a"), None), None, 99).await.works();
    assert_eq!(page.triples, [triple("a", "b", "a", None)]);
}

async fn a_graph_is_a_filter_or_none(stores: Stores) {
    let triples = vec![
        triple("a", "b", "c", None),
        triple("a", "b", "c", Some("g1")),
        triple("a", "b", "c", Some("g2")),
    ];
    stores.triples.add(HERE, triples).await.works();
    let graphs = |g: Option<&'static str>| {
        let stores = &stores;
        async move {
            let found = all(stores, HERE, &pattern(Some("a"), None, None, g)).await;
            found.into_iter().map(|t| t.g.unwrap_or_default()).collect::<BTreeSet<_>>()
        }
    };
    assert_eq!(graphs(None).await, ["", "g1", "g2"].map(str::to_owned).into());
    assert_eq!(graphs(Some("")).await, [String::new()].into());
    assert_eq!(graphs(Some("g1")).await, ["g1".to_owned()].into());
    assert_eq!(graphs(Some("*")).await, [].into());
}

async fn pages_give_every_statement_once(stores: Stores) {
    let triples: Vec<_> = (0..2500)
        .map(|n| triple(&format!("s{}", n % 7), "p", &format!("o{n}"), (n % 5 == 0).then_some("g")))
        .collect();
    for some in triples.chunks(1000) {
        stores.triples.add(HERE, some.to_vec()).await.works();
    }
    let patterns = [
        (Pattern::all(), 2500),
        (pattern(None, Some("p"), None, None), 2500),
        (pattern(Some("s3"), None, None, None), 357),
        (Pattern::graph("g"), 500),
        (Pattern::graph(""), 2000),
    ];
    for (pattern, expected) in patterns {
        for limit in [1, 20, 999, 1024, 5000] {
            if limit == 1 && expected > 500 {
                continue;
            }
            let (mut found, mut from, mut pages) = (Vec::new(), None, 0);
            loop {
                let mut page = stores.triples.query(HERE, &pattern, from, limit).await.works();
                assert!(page.triples.len() <= limit);
                found.append(&mut page.triples);
                pages += 1;
                assert!(pages <= expected + 2, "paging does not end");
                from = page.next;
                if from.is_none() {
                    break;
                }
            }
            assert_eq!(found.len(), expected, "{pattern:?} by {limit}");
            assert_eq!(texts(&found).len(), expected, "{pattern:?} by {limit}");
        }
    }
    let none = stores.triples.query(HERE, &Pattern::all(), None, 0).await.works();
    assert!(none.triples.is_empty());
}

async fn a_graph_or_a_collection_is_removed(stores: Stores) {
    let triples =
        (0..1500).map(|n| triple("s", "p", &format!("o{n}"), ["g1", "g2"].get(n % 3).copied())).collect();
    stores.triples.add(HERE, triples).await.works();
    for _ in 0..2 {
        stores.triples.remove(HERE, &Pattern::graph("g1")).await.works();
    }
    assert_eq!(all(&stores, HERE, &Pattern::all()).await.len(), 1000);
    assert_eq!(all(&stores, HERE, &pattern(None, None, Some("o0"), None)).await.len(), 0);
    assert_eq!(all(&stores, HERE, &pattern(None, Some("p"), None, Some("g2"))).await.len(), 500);
    stores.triples.remove(HERE, &Pattern::graph("")).await.works();
    assert_eq!(all(&stores, HERE, &Pattern::all()).await.len(), 500);
    stores.triples.remove(HERE, &pattern(None, None, Some("o1"), None)).await.works();
    assert_eq!(all(&stores, HERE, &pattern(Some("s"), None, None, None)).await.len(), 499);
    for _ in 0..2 {
        stores.triples.remove(HERE, &Pattern::all()).await.works();
        assert_eq!(all(&stores, HERE, &Pattern::all()).await, []);
        assert_eq!(all(&stores, HERE, &pattern(None, Some("p"), None, None)).await, []);
    }
}

async fn statements_stay_in_their_collection_and_workspace(stores: Stores) {
    let scopes = [HERE, Scope::new("default", "other"), Scope::new("acme", "graph")];
    for (n, scope) in scopes.into_iter().enumerate() {
        stores.triples.add(scope, vec![triple("a", "b", &n.to_string(), None)]).await.works();
    }
    stores.triples.remove(HERE, &Pattern::all()).await.works();
    for (n, scope) in scopes.into_iter().enumerate().skip(1) {
        let expected = [triple("a", "b", &n.to_string(), None)];
        assert_eq!(all(&stores, scope, &Pattern::all()).await, expected);
        assert_eq!(all(&stores, scope, &pattern(None, Some("b"), None, None)).await, expected);
    }
}

async fn a_statement_with_a_hole_is_refused(stores: Stores) {
    let whole = triple("a", "b", "c", None);
    let holes = [
        Triple { s: None, ..whole.clone() },
        Triple { p: None, ..whole.clone() },
        Triple { o: None, ..whole.clone() },
        Triple { o: Some(Term::default()), ..whole.clone() },
        Triple { o: Some(Term { r#type: "t".to_owned(), ..Term::default() }), ..whole.clone() },
    ];
    for hole in holes {
        let error = fails(stores.triples.add(HERE, vec![whole.clone(), hole]).await);
        assert_eq!(error.kind(), ErrorKind::Refused);
    }
    assert_eq!(all(&stores, HERE, &Pattern::all()).await, []);
}

async fn a_term_that_no_answer_could_hold_is_refused(stores: Stores) {
    let said = |value: &str, language: &str| Triple {
        o: Some(literal(value, "", language)),
        ..triple("a", "b", "c", None)
    };
    let most = "x".repeat(TERM_BYTES_MAX - 64);
    stores.triples.add(HERE, vec![said(&most, "en")]).await.works();
    let long = "x".repeat(TERM_BYTES_MAX);
    let quoted = Term { r#type: "t".to_owned(), triple: Some(Box::new(said(&long, ""))), ..Term::default() };
    let beyond = [
        said(&long, ""),
        said("short", &long),
        triple(&long, "b", "c", None),
        triple("a", "b", "c", Some(&long)),
        Triple { o: Some(quoted), ..triple("a", "b", "c", None) },
    ];
    for statement in beyond {
        let error = fails(stores.triples.add(HERE, vec![triple("d", "e", "f", None), statement]).await);
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains(&TERM_BYTES_MAX.to_string()), "{error}");
    }
    // Nothing of a refused message is there, and what was taken can be had and removed.
    let found = all(&stores, HERE, &Pattern::all()).await;
    assert_eq!(found, [said(&most, "en")]);
    stores.triples.remove(HERE, &Pattern::all()).await.works();
    assert_eq!(all(&stores, HERE, &Pattern::all()).await, []);
}
