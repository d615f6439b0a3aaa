//! Statements as earlier versions stored them: three orders of digests, the statement itself beside the first.

use std::collections::BTreeMap;

use bytes::{Buf as _, Bytes};
use sluice_schema::message::{Term, Triple};

use super::{TableTriples, encoded};
use crate::keys::{ScopeKey, rows};
use crate::{Batch, Error, Read, Result};

/// The table that is empty once all is taken over.
pub(crate) const EARLIER: &str = BY_SUBJECT;
const BY_SUBJECT: &str = "triples.spo";
const BY_PREDICATE: &str = "triples.pos";
const BY_OBJECT: &str = "triples.osp";

const DIGEST_BYTES: usize = 16;
/// Statements moved in one step.
const MOVE_ROWS: usize = 2000;

/// Adds them to the new store, then removes them from the old one, some at a time.
pub(super) async fn take_over(to: &TableTriples) -> Result<()> {
    let mut moved = 0_usize;
    loop {
        let page = rows(&*to.tables, Read::prefix(BY_SUBJECT, "", MOVE_ROWS)).await?;
        if page.rows.is_empty() {
            break;
        }
        if moved == 0 {
            tracing::info!("statements that an earlier version stored get term numbers; this happens once");
        }
        moved += page.rows.len();
        let mut statements: BTreeMap<ScopeKey, Vec<_>> = BTreeMap::new();
        let mut batch = Batch::new();
        for (key, row) in page.rows {
            let (scope, [s, p, o, g]) = parts(&key)?;
            let damaged = || Error::damaged("a statement", &"it is cut short");
            let triple = take_statement(&mut &row[..]).ok_or_else(damaged)?;
            statements.entry(scope).or_default().push(encoded(&triple)?);
            batch.delete(BY_SUBJECT, &key);
            batch.delete(BY_PREDICATE, [&scope[..], &p, &o, &s, &g].concat());
            batch.delete(BY_OBJECT, [&scope[..], &o, &s, &p, &g].concat());
        }
        for (scope, statements) in statements {
            to.add_missing(scope, &statements).await?;
        }
        to.tables.commit(batch).await?;
    }
    if moved > 0 {
        tracing::info!(statements = moved, "all statements have term numbers");
    }
    Ok(())
}

fn parts(key: &Bytes) -> Result<(ScopeKey, [[u8; DIGEST_BYTES]; 4])> {
    let damaged = || Error::damaged("the key of a statement", &"it is cut short");
    let (scope, digests) = key.split_first_chunk().ok_or_else(damaged)?;
    let digests = digests.as_chunks::<DIGEST_BYTES>().0.try_into().map_err(|_| damaged())?;
    Ok((*scope, digests))
}

fn take_statement(from: &mut &[u8]) -> Option<Triple> {
    let (s, p, o) = (take_term(from)?, take_term(from)?, take_term(from)?);
    let graph = take_text(from)?;
    Some(Triple { s: Some(s), p: Some(p), o: Some(o), g: (!graph.is_empty()).then_some(graph) })
}

fn take_term(from: &mut &[u8]) -> Option<Term> {
    let kind = from.split_off_first()?;
    let mut term = Term { r#type: char::from(*kind).to_string(), ..Term::default() };
    match kind {
        b'i' => term.iri = take_text(from)?,
        b'b' => term.id = take_text(from)?,
        b'l' => {
            term.value = take_text(from)?;
            term.datatype = take_text(from)?;
            term.language = take_text(from)?;
        }
        b't' => term.triple = Some(Box::new(take_statement(from)?)),
        _ => return None,
    }
    Some(term)
}

fn take_text(from: &mut &[u8]) -> Option<String> {
    let length = from.try_get_u32_le().ok()?;
    let text = from.split_off(..usize::try_from(length).ok()?)?;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::keys::scope_key;
    use crate::triples::TableTriples;
    use crate::{Embedded, Pattern, Scope, Triples as _};

    fn put_text(text: &str, to: &mut Vec<u8>) {
        to.extend_from_slice(&(text.len() as u32).to_le_bytes());
        to.extend_from_slice(text.as_bytes());
    }

    fn iri(text: &str) -> Term {
        Term { r#type: "i".to_owned(), iri: text.to_owned(), ..Term::default() }
    }

    fn old_term(term: &Term) -> Vec<u8> {
        let mut bytes = term.r#type.clone().into_bytes();
        match term.r#type.as_str() {
            "i" => put_text(&term.iri, &mut bytes),
            _ => [&term.value, &term.datatype, &term.language]
                .into_iter()
                .for_each(|t| put_text(t, &mut bytes)),
        }
        bytes
    }

    /// A statement as the version before stored it.
    fn put_old(batch: &mut Batch, scope: Scope<'_>, triple: &Triple) {
        let terms = [&triple.s, &triple.p, &triple.o].map(|term| old_term(term.as_ref().unwrap()));
        let graph = triple.g.clone().unwrap_or_default();
        let digest = |bytes: &[u8]| Sha256::digest(bytes)[..DIGEST_BYTES].to_vec();
        let [s, p, o] = [0, 1, 2].map(|at| digest(&terms[at]));
        let (g, scope) = (digest(graph.as_bytes()), scope_key(scope).to_vec());
        let mut row = terms.concat();
        put_text(&graph, &mut row);
        batch.put(BY_SUBJECT, [&scope[..], &s, &p, &o, &g].concat(), row);
        batch.put(BY_PREDICATE, [&scope[..], &p, &o, &s, &g].concat(), Bytes::new());
        batch.put(BY_OBJECT, [scope, o, s, p, g].concat(), Bytes::new());
    }

    #[tokio::test]
    async fn statements_of_an_earlier_version_are_there_after_the_start_and_after_one_that_was_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(folder.path()).unwrap();
        let (here, there) = (Scope::new("w", "c"), Scope::new("w", "d"));
        let literal = Term {
            r#type: "l".to_owned(),
            value: "a".to_owned(),
            language: "en".to_owned(),
            ..Term::default()
        };
        let statement = |n: usize| Triple {
            s: Some(iri(&format!("urn:s{}", n % 40))),
            p: Some(iri("urn:p")),
            o: Some(if n.is_multiple_of(3) { literal.clone() } else { iri(&format!("urn:o{n}")) }),
            g: n.is_multiple_of(2).then(|| "g".to_owned()),
        };
        let mut batch = Batch::new();
        for n in 0..4500 {
            put_old(&mut batch, if n % 5 == 0 { there } else { here }, &statement(n));
        }
        store.tables().commit(batch).await.unwrap();
        // As if the first step had been cut off before it took anything away.
        let triples = TableTriples::new(store.tables());
        triples.add(here, (1..100).filter(|n| n % 5 != 0).map(statement).collect()).await.unwrap();
        drop(triples);
        store.close().await;

        let store = Embedded::open(folder.path()).unwrap();
        let triples = Arc::clone(&store.stores().triples);
        for (scope, is_there) in [(here, false), (there, true)] {
            let mut wanted: Vec<String> = (0..4500)
                .filter(|n| (n % 5 == 0) == is_there)
                .map(|n| format!("{:?}", statement(n)))
                .collect();
            wanted.sort();
            wanted.dedup();
            let found = triples.query(scope, &Pattern::all(), None, 10_000).await.unwrap().triples;
            let mut found: Vec<_> = found.iter().map(|triple| format!("{triple:?}")).collect();
            found.sort();
            assert_eq!(found, wanted);
            let one = Pattern { s: statement(7).s, g: Some(String::new()), ..Pattern::all() };
            assert_eq!(triples.query(here, &one, None, 10_000).await.unwrap().triples.len(), 77);
        }
        for table in [BY_SUBJECT, BY_PREDICATE, BY_OBJECT] {
            let left = rows(&*store.tables(), Read::prefix(table, "", 10)).await.unwrap();
            assert_eq!(left.rows.len(), 0, "{table}");
        }
        store.close().await;
    }
}
