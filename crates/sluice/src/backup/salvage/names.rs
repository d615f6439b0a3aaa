//! What lost rows were, for people: which part of the system they belong to, and which workspace and collection.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sluice_store::embedded::{Lost, Unindexed, scope_digest};
use sluice_store::{Found, KeyRange, Read, Result, Scope, Tables};

/// Where it stands which names each workspace has: workspace, type, key.
const PLACES: &str = "config.place";
/// The type of config values whose keys are collections.
const COLLECTION: &str = "collection";
const DEFAULT: &str = "default";
const PAGE_ROWS: usize = 10_000;
/// The longest key that is printed, in characters.
const KEY_CHARS_MAX: usize = 160;

/// What the tables hold whose names begin so, and what their keys are made of.
const PARTS: &[(&str, &str)] = &[
    ("config.value", "config values, by type, workspace and key"),
    ("config.", "what config values are found by"),
    ("iam.key", "keys of users"),
    ("iam.", "users and workspaces"),
    ("library-documents", "records of documents, by workspace and document"),
    ("library-letter", "dead letters, by workspace"),
    ("library-processing", "records of documents in flows, by workspace"),
    ("library-progress", "progress of documents, by workspace, document and run"),
    ("library-pieces", "progress of documents, by workspace, document and run"),
    ("library-upload", "uploads under way"),
    ("library-", "what documents are found by, by workspace"),
    ("derived", "notes of what was made of which document, by kind and workspace"),
    ("blobs.inline", "small content, by document"),
    ("blobs.more", "small content, by document"),
    ("blobs.parts", "digests of content, by file"),
    ("blobs", "where content is, by document"),
    ("objects", "where content is in the object store"),
    ("vectors", "vectors"),
    ("words.", "the keyword index"),
    ("graph.", "statements"),
    ("sluice.meta", "what the store says about itself"),
];

/// Names of workspaces and collections, by what stores know of them.
pub(super) struct Names(BTreeMap<[u8; 20], String>);

impl Names {
    pub(super) async fn of(tables: &Arc<dyn Tables>) -> Result<Self> {
        let (mut workspaces, mut collections) = (BTreeSet::from([DEFAULT.to_owned()]), BTreeSet::new());
        let mut range = KeyRange::all();
        loop {
            let found = tables.read(vec![Read::range(PLACES, range.clone(), PAGE_ROWS)]).await?.pop();
            let page = found.map(Found::into_rows).unwrap_or_default();
            for (key, _) in &page.rows {
                let key = String::from_utf8_lossy(key);
                let mut parts = key.splitn(3, '\0').map(str::to_owned);
                let (Some(workspace), kind, name) = (parts.next(), parts.next(), parts.next()) else {
                    continue;
                };
                if kind.as_deref() == Some(COLLECTION) {
                    collections.insert((workspace.clone(), name.unwrap_or_default()));
                }
                workspaces.insert(workspace);
            }
            match page.rows.last() {
                Some((last, _)) if page.more => range = range.after(last),
                _ => break,
            }
        }
        collections.extend(workspaces.into_iter().map(|workspace| (workspace, DEFAULT.to_owned())));
        let name = |(workspace, collection): (String, String)| {
            let digest = scope_digest(Scope::new(&workspace, &collection));
            (digest, format!("collection '{collection}' of workspace '{workspace}'"))
        };
        Ok(Self(collections.into_iter().map(name).collect()))
    }

    fn scope(&self, digest: Option<&[u8; 20]>) -> &str {
        digest.and_then(|digest| self.0.get(digest)).map_or("a collection that is not known", String::as_str)
    }

    /// A line about lost rows.
    pub(super) fn lost(&self, lost: &Lost) -> String {
        let Lost { table, keys, older_rows } = lost;
        let Some(table) = table else {
            return format!("tables whose names are {} are not known any more", between(keys));
        };
        let part = PARTS.iter().find(|(begin, _)| table.starts_with(begin)).map_or("rows", |(_, part)| part);
        let of = match table.as_str() {
            "vectors" => {
                keys.from.first_chunk().map(|digest| format!(", from {} on", self.scope(Some(digest))))
            }
            _ => None,
        };
        let of = of.unwrap_or_default();
        let what = format!("{part} (table '{table}'){of}, keys {}", between(keys));
        match older_rows {
            Some(rows) => format!("{what}: as of the commit before the last one ({rows} rows)"),
            None => format!("{what}: lost"),
        }
    }

    /// Lines about what an index does not find any more.
    pub(super) fn unindexed(&self, unindexed: &Unindexed) -> Vec<String> {
        let Unindexed { index, scope, ids, count } = unindexed;
        let of = self.scope(scope.as_ref());
        let mut lines = vec![format!(
            "the {index} of {of} lack {count} entries: load their documents again, after removing them"
        )];
        lines.extend(ids.iter().map(|id| format!("the {index} of {of}: '{id}'")));
        lines
    }
}

fn between(keys: &KeyRange) -> String {
    let from = if keys.from.is_empty() {
        "from the first".to_owned()
    } else {
        format!("from {}", shown(&keys.from))
    };
    match &keys.to {
        Some(to) => format!("{from} to before {}", shown(to)),
        None => format!("{from} to the last"),
    }
}

/// A key whose parts are separated by NUL, or any bytes.
fn shown(key: &[u8]) -> String {
    let parts: Vec<String> =
        key.split(|byte| *byte == 0).map(|part| part.escape_ascii().to_string()).collect();
    let text = parts.join("/");
    let cut: String = text.chars().take(KEY_CHARS_MAX).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    format!("'{cut}{more}'")
}
