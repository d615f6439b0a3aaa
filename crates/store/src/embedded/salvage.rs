//! What can still be read of a store that is damaged, copied into another one.
//!
//! The trees of the newest commit are walked page by page. Where a page does not match its checksum, what its parent says of
//! it tells which keys are lost with it; the commit before, whose pages are still in the file unless they were written over,
//! is asked for these. All that was not found as it was written last is reported by table and keys. The damaged file is only
//! read.

mod page;

use std::path::Path;

use bytes::Bytes;
use tokio::sync::mpsc;

use self::page::{CommitRoot, Geometry, Page};
use super::Embedded;
use super::meta;
use super::sealed::{Sealed, damaged_file};
use super::tables::FILE;
use crate::keywords::TableKeywords;
use crate::triples::TableTriples;
use crate::vectors::TableVectors;
use crate::{Batch, Error, KeyRange, Result, Scope};

/// What one commit of the new store takes, in bytes.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Batches that wait to be committed.
const BATCHES_WAITING_MAX: usize = 2;
/// How deep a tree may be.
const DEPTH_MAX: usize = 64;

/// A damaged store, opened to be read.
#[derive(Debug)]
pub struct Salvage {
    file: Sealed,
    geometry: Geometry,
    /// The commits that are asked, in this order.
    commits: Vec<CommitRoot>,
    is_older: bool,
}

/// What a store says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// The format of each part, by name.
    pub formats: Vec<(String, u32)>,
    /// Id of the data folder that it belongs to.
    pub folder: Option<String>,
    /// How far that had come.
    pub generation: Option<u64>,
}

/// Rows that were not found as they were written last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The table; `None` where it is not known which tables there were, and `keys` are their names.
    pub table: Option<String>,
    /// The keys among which rows may be lost.
    pub keys: KeyRange,
    /// The rows that the commit before had there, if what it had could be read: they were taken instead.
    pub older_rows: Option<u64>,
}

impl Lost {
    /// Whether rows of a table may be lost among some keys.
    pub(crate) fn touches(&self, table: &str, keys: &KeyRange) -> bool {
        match &self.table {
            Some(of) => of == table && !common(&self.keys, keys).is_empty(),
            None => contains(&self.keys, table.as_bytes()),
        }
    }
}

/// What is not found any more in an index that was made anew without what was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unindexed {
    /// What kind of index.
    pub index: &'static str,
    /// The digest of its workspace and collection, see [`scope_digest`]; `None` where that was lost too.
    pub scope: Option<[u8; 20]>,
    /// Some of what is not found.
    pub ids: Vec<String>,
    /// How much is not found.
    pub count: u64,
}

impl Unindexed {
    /// Ids that are kept.
    const IDS_MAX: usize = 100;

    pub(crate) fn add(&mut self, id: String) {
        self.count += 1;
        if self.ids.len() < Self::IDS_MAX {
            self.ids.push(id);
        }
    }
}

/// What stores know of a workspace and a collection.
#[must_use]
pub fn scope_digest(scope: Scope<'_>) -> [u8; 20] {
    crate::keys::scope_key(scope)
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Salvaged {
    /// Rows that were copied.
    pub rows: u64,
    /// What is not there, or not as it was written last.
    pub lost: Vec<Lost>,
    /// The newest commit was not complete, as after a loss of power in the middle of it, and the one before was taken.
    pub is_older: bool,
}

/// Takes a row.
type Take<'a> = dyn FnMut(&[u8], &[u8]) -> Result<()> + 'a;

impl Salvage {
    /// Opens the store of a folder that no process works in. Nothing in it is changed.
    ///
    /// # Errors
    /// [`Error::Damaged`] if not even a head is left, [`Error::Refused`] for a store without checksums, [`Error::Unavailable`]
    /// if it cannot be read.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let file = Sealed::read_only(&path)?;
        let engine = file.engine_header();
        let unknown = || damaged_file(&path, "its head names no commit");
        let geometry = Geometry::of(&engine).ok_or_else(unknown)?;
        let commits = page::commits(&engine);
        let newest = commits.first().ok_or_else(unknown)?.number;
        let mut salvage = Self { file, geometry, commits, is_older: false };
        let was_durable = salvage.file.durable_number().is_some_and(|durable| durable >= newest);
        if !was_durable && salvage.commits.len() > 1 && !salvage.is_whole(salvage.commits[0])? {
            salvage.commits.reverse();
            salvage.is_older = true;
        }
        Ok(salvage)
    }

    /// What the store says about itself, as far as it can be read.
    ///
    /// # Errors
    /// If the disk cannot be read.
    pub fn about(&self) -> Result<About> {
        let mut about = About::default();
        let mut take = |key: &[u8], value: &[u8]| {
            about.formats.extend(meta::format_of(key, value));
            about.folder = meta::folder_of(key, value).or(about.folder.take());
            about.generation = meta::generation_of(key, value).or(about.generation.take());
            Ok(())
        };
        self.table(meta::TABLE, &mut take, &mut Vec::new())?;
        Ok(about)
    }

    /// Copies every row that can be read into an empty store.
    ///
    /// # Errors
    /// If the disk cannot be read, or the new store does not take it.
    pub async fn copy_to(self, to: &Embedded) -> Result<Salvaged> {
        let (batches, mut waiting) = mpsc::channel(BATCHES_WAITING_MAX);
        let reading = crate::keys::blocking(move || self.copy(&batches));
        let tables = to.tables();
        // It owns what it waits for: once it ends, who reads learns that nobody writes any more.
        let writing = async move {
            while let Some(batch) = waiting.recv().await {
                tables.commit(batch).await?;
            }
            Ok::<_, Error>(())
        };
        let (salvaged, written) = tokio::join!(reading, writing);
        written?;
        salvaged
    }

    /// Makes the indexes of a store anew that lack some of what was lost, since one with holes answers wrongly and takes
    /// nothing more; answers what is not found in them any more.
    ///
    /// # Errors
    /// What reading and writing say.
    pub async fn mend(to: &Embedded, lost: &[Lost]) -> Result<Vec<Unindexed>> {
        if lost.is_empty() {
            return Ok(Vec::new());
        }
        TableVectors::new(to.tables(), 0).rebuild().await?;
        let mut unindexed = TableKeywords::new(to.tables()).rebuild(lost).await?;
        unindexed.extend(TableTriples::new(to.tables()).rebuild(lost).await?);
        Ok(unindexed)
    }

    fn copy(&self, batches: &mpsc::Sender<Batch>) -> Result<Salvaged> {
        let mut salvaged = Salvaged { is_older: self.is_older, ..Salvaged::default() };
        let send = |batch| {
            batches.blocking_send(batch).map_err(|_| Error::unavailable("nobody writes what was read"))
        };
        for table in self.table_names(&mut salvaged.lost)? {
            if table == meta::TABLE {
                // What the store says about itself is not for the new one.
                self.table(&table, &mut |_, _| Ok(()), &mut salvaged.lost)?;
                continue;
            }
            let (mut batch, mut bytes) = (Batch::new(), 0);
            let mut take = |key: &[u8], value: &[u8]| {
                batch.put(table.clone(), key, value.to_vec());
                salvaged.rows += 1;
                bytes += key.len() + value.len();
                if bytes < BATCH_BYTES {
                    return Ok(());
                }
                bytes = 0;
                send(std::mem::take(&mut batch))
            };
            self.table(&table, &mut take, &mut salvaged.lost)?;
            if !batch.is_empty() {
                send(batch)?;
            }
        }
        Ok(salvaged)
    }

    /// Takes all rows of a table, each once.
    fn table(&self, name: &str, take: &mut Take<'_>, lost: &mut Vec<Lost>) -> Result<()> {
        for keys in self.rows_of(self.commits[0], name, &KeyRange::all(), take)? {
            let table = Some(name.to_owned());
            let Some(older) = self.commits.get(1) else {
                lost.push(Lost { table, keys, older_rows: None });
                continue;
            };
            let mut older_rows = 0;
            let mut counted = |key: &[u8], value: &[u8]| {
                older_rows += 1;
                take(key, value)
            };
            let gaps = self.rows_of(*older, name, &keys, &mut counted)?;
            if gaps.is_empty() || older_rows > 0 {
                lost.push(Lost { table: table.clone(), keys, older_rows: Some(older_rows) });
            }
            lost.extend(gaps.into_iter().map(|keys| Lost { table: table.clone(), keys, older_rows: None }));
        }
        Ok(())
    }

    /// The names of all tables.
    fn table_names(&self, lost: &mut Vec<Lost>) -> Result<Vec<String>> {
        let mut names = std::collections::BTreeSet::new();
        let mut take = |name: &[u8], _: &[u8]| {
            names.insert(String::from_utf8_lossy(name).into_owned());
            Ok(())
        };
        let mut gaps = self.walk_root(self.commits[0].root, &KeyRange::all(), &mut take)?;
        if let Some(older) = self.commits.get(1).filter(|_| !gaps.is_empty()) {
            let mut left = Vec::new();
            for gap in &gaps {
                left.extend(self.walk_root(older.root, gap, &mut take)?);
            }
            gaps = left;
        }
        lost.extend(gaps.into_iter().map(|keys| Lost { table: None, keys, older_rows: None }));
        Ok(names.into_iter().collect())
    }

    /// Takes the rows that a table had in one commit, of some keys; answers among which keys some could not be read.
    fn rows_of(
        &self,
        commit: CommitRoot,
        table: &str,
        keys: &KeyRange,
        take: &mut Take<'_>,
    ) -> Result<Vec<KeyRange>> {
        let mut root = None;
        let mut take_root = |_: &[u8], row: &[u8]| {
            root = Some(page::table_root(row));
            Ok(())
        };
        let of_name = KeyRange::between(table, [table.as_bytes(), &[0]].concat());
        let gaps = self.walk_root(commit.root, &of_name, &mut take_root)?;
        match root {
            Some(Some(root)) => self.walk_root(root, keys, take),
            None if gaps.is_empty() => Ok(Vec::new()),
            _ => Ok(vec![keys.clone()]),
        }
    }

    fn walk_root(&self, root: Option<u64>, keys: &KeyRange, take: &mut Take<'_>) -> Result<Vec<KeyRange>> {
        let mut gaps = Vec::new();
        if let Some(root) = root {
            self.walk(root, &KeyRange::all(), keys, 0, take, &mut gaps)?;
        }
        Ok(gaps)
    }

    /// Takes the rows below a page. Its keys are within `bounds`, of which only `wanted` are looked for.
    fn walk(
        &self,
        page: u64,
        bounds: &KeyRange,
        wanted: &KeyRange,
        depth: usize,
        take: &mut Take<'_>,
        gaps: &mut Vec<KeyRange>,
    ) -> Result<()> {
        let content = self.geometry.place(page).and_then(|place| self.file.whole(place));
        match content.as_deref().and_then(page::read) {
            Some(Page::Leaf(rows)) if rows.iter().all(|(key, _)| contains(bounds, key)) => {
                for (key, value) in rows.into_iter().filter(|(key, _)| contains(wanted, key)) {
                    take(key, value)?;
                }
            }
            Some(Page::Branch { children, last_keys }) if depth < DEPTH_MAX => {
                let after = |key: &&[u8]| Bytes::from([key, &[0][..]].concat());
                let ends = last_keys.iter().map(after).map(Some).chain([None]);
                let mut from = Bytes::new();
                for (child, to) in children.into_iter().zip(ends) {
                    let next = to.clone().unwrap_or_default();
                    let bounds = common(bounds, &KeyRange { from: std::mem::replace(&mut from, next), to });
                    if !common(&bounds, wanted).is_empty() {
                        self.walk(child, &bounds, wanted, depth + 1, take, gaps)?;
                    }
                }
            }
            _ => gaps.push(common(bounds, wanted)),
        }
        Ok(())
    }

    fn is_whole(&self, commit: CommitRoot) -> Result<bool> {
        let mut names = Vec::new();
        let mut take = |name: &[u8], _: &[u8]| {
            names.push(String::from_utf8_lossy(name).into_owned());
            Ok(())
        };
        let mut is_whole = self.walk_root(commit.root, &KeyRange::all(), &mut take)?.is_empty();
        for name in names {
            is_whole &= self.rows_of(commit, &name, &KeyRange::all(), &mut |_, _| Ok(()))?.is_empty();
        }
        Ok(is_whole)
    }
}

fn contains(range: &KeyRange, key: &[u8]) -> bool {
    range.from <= key && range.to.as_ref().is_none_or(|to| key < to)
}

fn common(a: &KeyRange, b: &KeyRange) -> KeyRange {
    let to = match (&a.to, &b.to) {
        (Some(a), Some(b)) => Some(a.min(b).clone()),
        (one, other) => one.clone().or_else(|| other.clone()),
    };
    KeyRange { from: a.from.clone().max(b.from.clone()), to }
}
