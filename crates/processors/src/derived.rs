//! Which entries of a store flows made from which document, and which documents are gone: so that what was made goes with
//! what it was made from, and does not come back with messages that were still on their way.
//!
//! A writer notes what it is about to write before it writes, under the document (the message's root) and with the pass that
//! the message belongs to. A removal first records that all passes up to a number are gone, then removes what is noted with
//! such a pass. Both may be repeated and may overtake each other: passes, not times, decide what goes. Writers and
//! removals of one store take turns, which is why everything that uses a store runs in one process.

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sluice_bus::trace;
use sluice_schema::message::Removal;
use sluice_schema::system::STORE_KINDS;
use sluice_store::{Batch, BoxFuture, Error, Found, KeyRange, Read, Result, Rows, Scope, Stores, Tables};
use tokio::sync::RwLock;

const NOTES: &str = "derived";
const GONE: &str = "derived.gone";
/// Collections in which traces of questions were written, by workspace.
const TRACED: &str = "derived.traced";

/// The kind of store that traces are in.
const TRIPLES: &str = "triples";

/// Notes read at once.
const PAGE_ROWS: usize = 500;
/// The longest name in a key, in bytes.
const NAME_BYTES_MAX: usize = 1024;
/// How long it is known that something is gone, in seconds: no message is on its way for longer.
const GONE_SECONDS_MAX: i64 = 30 * 24 * 3_600;

/// What is noted of every kind of store in a process. Cheap to clone; the clones take turns, so a process has one.
#[derive(Clone)]
pub struct Derived {
    pub(crate) stores: Stores,
    kinds: Arc<[Kind; 3]>,
    /// What of [`TRACED`] this process has written.
    traced: Arc<Mutex<HashSet<Vec<u8>>>>,
}

struct Kind {
    name: &'static str,
    tables: Arc<dyn Tables>,
    /// Held for writing while something is removed, for reading while something is noted and written.
    turn: RwLock<()>,
}

/// Where a message comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) workspace: &'a str,
    pub(crate) collection: &'a str,
    /// The document; empty where the message tells none, and nothing is noted then.
    pub(crate) root: &'a str,
}

/// An entry to be noted: its id in the store, and what its removal needs to know beside that.
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) detail: Vec<u8>,
}

impl Entry {
    /// An entry that its id tells everything about.
    pub(crate) const fn bare(id: String) -> Self {
        Self { id, detail: Vec::new() }
    }
}

/// An entry that is noted.
pub(crate) struct Note {
    pub(crate) root: String,
    pub(crate) id: String,
    pub(crate) detail: Bytes,
}

/// Takes entries out of one kind of store. May be repeated.
pub(crate) trait Forget: Send + Sync {
    /// Takes noted entries out of a collection; adds to `batch` what goes with their notes.
    fn forget<'a>(
        &'a self,
        scope: Scope<'a>,
        notes: &'a [Note],
        batch: &'a mut Batch,
    ) -> BoxFuture<'a, Result<()>>;

    /// Takes out a whole collection, with what nobody noted.
    fn forget_collection<'a>(&'a self, scope: Scope<'a>) -> BoxFuture<'a, Result<()>>;
}

/// Up to which pass something is gone, and from which on it is there again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Gone {
    until: i64,
    restored: i64,
    at_seconds: i64,
}

impl Gone {
    /// Whether a message of a pass comes too late; one that tells no pass does unless it is there again.
    fn covers(&self, pass: Option<i64>) -> bool {
        pass.unwrap_or(self.restored) <= self.until
    }
}

impl Derived {
    /// Notes beside these stores.
    #[must_use]
    pub fn new(stores: Stores) -> Self {
        let kind = |name| Kind { name, tables: stores.tables.clone(), turn: RwLock::new(()) };
        Self { kinds: Arc::new(STORE_KINDS.map(kind)), stores, traced: Arc::default() }
    }

    fn kind(&self, name: &str) -> Result<&Kind> {
        let unknown = || Error::Refused { reason: format!("there is no kind of store '{name}'") };
        self.kinds.iter().find(|kind| kind.name == name).ok_or_else(unknown)
    }

    /// Notes entries, then writes them; `more` is committed with the notes. Answers whether that was done: what belongs to
    /// something that is gone is not written.
    pub(crate) async fn write<F>(
        &self,
        kind: &str,
        origin: Origin<'_>,
        entries: Vec<Entry>,
        more: Batch,
        write: impl FnOnce() -> F,
    ) -> Result<bool>
    where
        F: Future<Output = Result<()>>,
    {
        if origin.root.is_empty() {
            write().await?;
            return Ok(true);
        }
        self.kind(kind)?.write(origin, entries, more, write).await
    }

    /// Does what a removal says for one kind of store.
    pub(crate) async fn remove(
        &self,
        kind: &str,
        workspace: &str,
        removal: &Removal,
        store: &dyn Forget,
    ) -> Result<()> {
        self.kind(kind)?.remove(workspace, removal, store).await?;
        if kind == TRIPLES && removal.document_id.is_empty() && !removal.restored {
            self.forget_traces(workspace, &removal.collection).await?;
        }
        Ok(())
    }

    /// A collection that is gone has no traces; one that comes again is noted with its next. No name stands for all.
    async fn forget_traces(&self, workspace: &str, collection: &str) -> Result<()> {
        let key = traced_key(workspace, collection);
        let mut batch = Batch::new();
        if collection.is_empty() {
            self.traced().retain(|known| !known.starts_with(&key));
            batch.delete_prefix(TRACED, key);
        } else {
            self.traced().remove(&key);
            batch.delete(TRACED, key);
        }
        batch.essential();
        self.stores.tables.commit(batch).await
    }

    /// Notes that a collection gets traces, since stores do not know the names of collections.
    pub(crate) async fn note_traces(&self, workspace: &str, collection: &str) -> Result<()> {
        check_name(workspace)?;
        check_name(collection)?;
        let key = traced_key(workspace, collection);
        if self.traced().contains(&key) {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.put(TRACED, &key, Vec::new());
        self.stores.tables.commit(batch).await?;
        self.traced().insert(key);
        Ok(())
    }

    /// The collections of a workspace in which traces were written.
    pub(crate) async fn traced_collections(&self, workspace: &str) -> Result<Vec<String>> {
        let under = [workspace, "\0"].concat();
        let mut range = KeyRange::prefix(&under);
        let mut collections = Vec::new();
        loop {
            let read = Read::range(TRACED, range.clone(), PAGE_ROWS);
            let Rows { rows, more } =
                self.stores.tables.read(vec![read]).await?.pop().map(Found::into_rows).unwrap_or_default();
            let names = rows.iter().map(|(key, _)| String::from_utf8_lossy(&key[under.len()..]).into_owned());
            collections.extend(names);
            match rows.last() {
                Some((last, _)) if more => range = range.after(last),
                _ => return Ok(collections),
            }
        }
    }

    fn traced(&self) -> MutexGuard<'_, HashSet<Vec<u8>>> {
        self.traced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what has been gone for so long that it does not matter any more.
    pub(crate) async fn sweep(&self, kind: &str, workspace: &str) -> Result<()> {
        self.kind(kind)?.sweep(workspace).await
    }
}

impl Kind {
    async fn write<F>(
        &self,
        origin: Origin<'_>,
        entries: Vec<Entry>,
        mut batch: Batch,
        write: impl FnOnce() -> F,
    ) -> Result<bool>
    where
        F: Future<Output = Result<()>>,
    {
        let Origin { workspace, collection, root } = origin;
        for name in [workspace, collection, root].into_iter().chain(entries.iter().map(|entry| &*entry.id)) {
            check_name(name)?;
        }
        let _turn = self.turn.read().await;
        let places = [(root, collection), (root, ""), ("", collection)];
        let reads =
            places.map(|(root, collection)| Read::get(GONE, self.key(&[workspace, root, collection]))).into();
        let mut restored = 0;
        for found in self.tables.read(reads).await? {
            let Some(raw) = found.into_value() else { continue };
            let gone = decode(&raw)?;
            if gone.covers(trace::pass()) {
                tracing::debug!(
                    document = root,
                    collection,
                    kind = self.name,
                    "not written: the document is gone"
                );
                return Ok(false);
            }
            restored = restored.max(gone.restored);
        }
        let pass = trace::pass().unwrap_or(restored);
        for Entry { id, detail } in entries {
            let row = [&pass.to_le_bytes(), &detail[..]].concat();
            batch.put(NOTES, self.key(&[workspace, root, collection, &id]), row);
        }
        self.tables.commit(batch).await?;
        write().await?;
        Ok(true)
    }

    async fn remove(&self, workspace: &str, removal: &Removal, store: &dyn Forget) -> Result<()> {
        let Removal { document_id: root, collection, pass, restored } = removal;
        for name in [workspace, root, collection] {
            check_name(name)?;
        }
        let turn = self.turn.write().await;
        let gone = self.record(&self.key(&[workspace, root, collection]), *pass, *restored).await?;
        if *restored {
            return Ok(());
        }
        if root.is_empty() {
            let stays = self.remove_noted(workspace, root, collection, gone.until, store, None).await?;
            if !stays {
                store.forget_collection(Scope::new(workspace, collection)).await?;
            }
        } else {
            self.remove_noted(workspace, root, collection, gone.until, store, Some(turn)).await?;
        }
        Ok(())
    }

    async fn record(&self, key: &[u8], pass: i64, restored: bool) -> Result<Gone> {
        let was = self.tables.read(vec![Read::get(GONE, key)]).await?.pop().and_then(Found::into_value);
        let mut gone = was.as_deref().map(decode).transpose()?.unwrap_or_default();
        let place = if restored { &mut gone.restored } else { &mut gone.until };
        *place = (*place).max(pass);
        gone.at_seconds = crate::provenance::now_seconds();
        let row = serde_json::to_vec(&gone)
            .map_err(|e| Error::Refused { reason: format!("a removal does not serialise: {e}") })?;
        let mut batch = Batch::new();
        batch.expect(GONE, key, was).put(GONE, key, row).essential();
        self.tables.commit(batch).await?;
        Ok(gone)
    }

    /// Removes what is noted with a pass up to `until`; answers whether something of a later pass stays. Between pages
    /// others may have their turn, if one was given.
    async fn remove_noted(
        &self,
        workspace: &str,
        root: &str,
        collection: &str,
        until: i64,
        store: &dyn Forget,
        mut turn: Option<tokio::sync::RwLockWriteGuard<'_, ()>>,
    ) -> Result<bool> {
        let mut under = self.key(&[workspace]);
        for name in [root, collection].into_iter().take_while(|name| !name.is_empty()) {
            under.push(0);
            under.extend_from_slice(name.as_bytes());
        }
        under.push(0);
        let mut range = KeyRange::prefix(&under);
        let mut stays = false;
        loop {
            let found = self.tables.read(vec![Read::range(NOTES, range.clone(), PAGE_ROWS)]).await?.pop();
            let Rows { rows, more } = found.map(Found::into_rows).unwrap_or_default();
            let mut going: BTreeMap<String, Vec<Note>> = BTreeMap::new();
            let mut batch = Batch::new();
            for (key, row) in &rows {
                let (place, noted_pass, note) = read_note(key, row)?;
                if !collection.is_empty() && place != collection {
                    continue;
                }
                if noted_pass > until {
                    stays = true;
                    continue;
                }
                batch.delete(NOTES, key);
                going.entry(place).or_default().push(note);
            }
            for (place, notes) in &going {
                store.forget(Scope::new(workspace, place), notes, &mut batch).await?;
            }
            if !batch.is_empty() {
                self.tables.commit(batch).await?;
            }
            match rows.last() {
                Some((last, _)) if more => range = range.after(last),
                _ => return Ok(stays),
            }
            if turn.take().is_some() {
                turn = Some(self.turn.write().await);
            }
        }
    }

    async fn sweep(&self, workspace: &str) -> Result<()> {
        let oldest = crate::provenance::now_seconds() - GONE_SECONDS_MAX;
        let mut under = self.key(&[workspace]);
        under.push(0);
        let mut range = KeyRange::prefix(&under);
        loop {
            let found = self.tables.read(vec![Read::range(GONE, range.clone(), PAGE_ROWS)]).await?.pop();
            let Rows { rows, more } = found.map(Found::into_rows).unwrap_or_default();
            let mut batch = Batch::new();
            for (key, row) in &rows {
                if decode(row)?.at_seconds < oldest {
                    batch.expect_value(GONE, key, row.clone()).delete(GONE, key);
                }
            }
            if !batch.is_empty() {
                match self.tables.commit(batch).await {
                    // It was removed again meanwhile, and stays.
                    Err(error) if error.is_conflict() => {}
                    done => done?,
                }
            }
            match rows.last() {
                Some((last, _)) if more => range = range.after(last),
                _ => return Ok(()),
            }
        }
    }

    /// Names hold no zero byte, so it parts them.
    fn key(&self, names: &[&str]) -> Vec<u8> {
        let mut key = self.name.as_bytes().to_vec();
        for name in names {
            key.push(0);
            key.extend_from_slice(name.as_bytes());
        }
        key
    }
}

/// The collection, the pass and the note of a row.
fn read_note(key: &[u8], row: &Bytes) -> Result<(String, i64, Note)> {
    let damaged = || damaged("a note of what was made from a document", "it is cut short");
    let mut names =
        key.split(|byte| *byte == 0).skip(2).map(|name| String::from_utf8_lossy(name).into_owned());
    let (root, collection, id) =
        names.next().zip(names.next()).zip(names.next()).map(|((a, b), c)| (a, b, c)).ok_or_else(damaged)?;
    let (pass, _) = row.split_first_chunk().ok_or_else(damaged)?;
    Ok((collection, i64::from_le_bytes(*pass), Note { root, id, detail: row.slice(8..) }))
}

fn decode(raw: &[u8]) -> Result<Gone> {
    serde_json::from_slice(raw).map_err(|e| damaged("the record of a removal", &e.to_string()))
}

pub(crate) fn damaged(what: &str, reason: &str) -> Error {
    Error::Damaged { what: what.to_owned(), reason: reason.to_owned() }
}

fn traced_key(workspace: &str, collection: &str) -> Vec<u8> {
    [workspace, "\0", collection].concat().into_bytes()
}

fn check_name(name: &str) -> Result<()> {
    if name.len() <= NAME_BYTES_MAX && !name.contains('\0') {
        return Ok(());
    }
    Err(Error::Refused {
        reason: format!(
            "names of documents, collections and chunks are up to {NAME_BYTES_MAX} bytes without zero bytes; this one has {}",
            name.len()
        ),
    })
}

#[cfg(test)]
mod tests;
