//! Tables in one file: readers see snapshots, one thread writes.
//!
//! The writer takes whatever batches arrived while it was syncing and commits them together, each judged on its own. A
//! failed sync ends the engine, since nobody can know what is durable after it. A full disk does not: what was under way
//! is undone, writes are refused until there is room, and removals go on with the room that a reserve file held.

use std::collections::HashMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use redb::{
    Database, ReadableDatabase as _, ReadableTableMetadata as _, StorageError, TableDefinition, TableError,
    TableHandle as _,
};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::Options;
use super::disk::{Disk, DiskState, on_disk};
use super::lock::{FolderLock, Untouched};
use super::meta::{self, Stamp};
use super::overlay::Overlay;
use super::sealed::{BLOCK_BYTES, Sealed, damaged_file};
use super::upkeep::{Place, Step};
use super::writer::Writer;
use crate::contract::tables::{
    BATCH_BYTES_MAX, ESSENTIAL_BYTES_MAX, KEY_BYTES_MAX, RANGE_BYTES_MAX, VALUE_BYTES_MAX,
};
use crate::{Batch, BoxFuture, Error, Found, KeyRange, Op, Read, Result, Rows, Tables};

/// Batches that may wait for the writer; more callers wait for a place.
const WAITING_BATCHES_MAX: usize = 4096;
/// Reads under way at once; more callers wait.
const READERS_MAX: usize = 32;

/// How long a read waits for an engine that is about to be opened again, and how often it looks.
const REOPEN_TIMEOUT: Duration = Duration::from_secs(5);
const REOPEN_PAUSE: Duration = Duration::from_millis(10);

/// The file of the tables, in the data folder, and the one that a compaction writes.
pub(super) const FILE: &str = "store.redb";
pub(super) const COMPACTED: &str = "store.compacted";

pub(super) type Definition<'a> = TableDefinition<'a, &'static [u8], &'static [u8]>;

/// The embedded tables.
#[derive(Debug)]
pub(crate) struct EmbeddedTables {
    shared: Arc<Shared>,
    readers: Arc<Semaphore>,
    work: Mutex<Option<mpsc::Sender<Order>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// What the writer is asked to do.
#[derive(Debug)]
pub(super) enum Order {
    Commit(Work),
    /// Write the file anew without what is not used; given up when others wait. Answers whether it was done.
    Compact(oneshot::Sender<Result<bool>>),
    /// Leave the file so that an unclean end from here on costs no check of it.
    Settle,
    /// Look whether a full disk has room again.
    Room,
}

#[derive(Debug)]
pub(super) struct Work {
    pub(super) batch: Batch,
    pub(super) bytes: usize,
    /// Written beside the batch: what the store says about itself.
    pub(super) stamp: Option<Stamp>,
    pub(super) done: oneshot::Sender<Result<()>>,
}

impl Work {
    /// Whether it is done although the disk is full.
    pub(super) fn may_use_reserve(&self) -> bool {
        self.batch.only_removes() || (self.batch.is_essential && self.bytes <= ESSENTIAL_BYTES_MAX)
    }

    /// Whether it writes something for which nothing is held back.
    pub(super) fn needs_room(&self) -> bool {
        !self.batch.is_empty() && !self.may_use_reserve()
    }
}

/// What readers and the writer share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) folder: PathBuf,
    pub(super) state: Arc<DiskState>,
    pub(super) cache_bytes: usize,
    /// Batches handed to the writer so far.
    pub(super) batches: AtomicU64,
    /// It is only looked at: nothing in the folder is changed.
    pub(super) is_looked_at: bool,
    /// Cloned into each snapshot that outlives a read.
    pub(super) snapshots: Arc<()>,
    pub(super) engine: RwLock<Engine>,
    /// Batches committed so far, each group counted once.
    pub(super) commits: AtomicU64,
    /// Why it ended, if its disk failed.
    pub(super) failure: watch::Sender<Option<String>>,
    /// Why all is refused that needs room, while it is. It names no place.
    pub(super) no_room: Mutex<Option<&'static str>>,
}

/// What keeps other processes out of the folder.
#[derive(Debug)]
pub(super) enum Hold {
    Taken(#[expect(dead_code, reason = "it is held")] FolderLock),
    Untouched(#[expect(dead_code, reason = "it is held")] Untouched),
}

#[derive(Debug)]
pub(super) enum Engine {
    Open(Box<Opened>),
    Ended(Error),
}

/// The open file.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) file: Arc<Sealed>,
}

impl EmbeddedTables {
    pub(crate) fn open(folder: &Path, lock: FolderLock, options: &Options) -> Result<Self> {
        let state = Arc::new(DiskState::new(Arc::clone(&options.faults), Arc::clone(&lock.unclosed)));
        let cache_bytes = options.cache_bytes_max;
        // A compaction that was cut off; nothing refers to what it wrote.
        let _ = std::fs::remove_file(folder.join(COMPACTED));
        let database = open_database(folder, cache_bytes, &state, options.create)?;
        Self::begin(folder, Hold::Taken(lock), options, state, database)
    }

    /// Opens what is there without changing anything: what would be written stays in memory.
    pub(crate) fn look(folder: &Path, held: Untouched, options: &Options) -> Result<Self> {
        let state = Arc::new(DiskState::new(Arc::clone(&options.faults), Arc::clone(&held.unclosed)));
        let path = folder.join(FILE);
        check_not_empty(&path)?;
        let file = Arc::new(Sealed::look(&path)?);
        let overlay = Overlay::new(Arc::clone(&file));
        let database = open_engine(&path, file, overlay, options.cache_bytes_max, &state)?;
        Self::begin(folder, Hold::Untouched(held), options, state, database)
    }

    fn begin(
        folder: &Path,
        hold: Hold,
        options: &Options,
        state: Arc<DiskState>,
        database: Opened,
    ) -> Result<Self> {
        meta::settle_formats(&database.database, options.service_formats)?;
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            state,
            cache_bytes: options.cache_bytes_max,
            batches: AtomicU64::new(0),
            is_looked_at: matches!(hold, Hold::Untouched(_)),
            snapshots: Arc::default(),
            engine: RwLock::new(Engine::Open(Box::new(database))),
            commits: AtomicU64::new(0),
            failure: watch::Sender::new(None),
            no_room: Mutex::new(None),
        });

        let (work, waiting) = mpsc::channel(WAITING_BATCHES_MAX);
        let mut writer = Writer::new(Arc::clone(&shared), waiting, options.reserve_bytes, hold);
        let thread = std::thread::Builder::new()
            .name("sluice-store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|e| Error::unavailable(format!("the writer thread does not start: {e}")))?;
        Ok(Self {
            shared,
            readers: Arc::new(Semaphore::new(READERS_MAX)),
            work: Mutex::new(Some(work)),
            writer: Mutex::new(Some(thread)),
        })
    }

    pub(crate) async fn close(&self) {
        take(&self.work);
        let Some(writer) = take(&self.writer) else { return };
        // The writer commits what is queued, closes the file and releases the folder.
        let joined = tokio::task::spawn_blocking(move || writer.join().is_ok()).await;
        if !matches!(joined, Ok(true)) {
            tracing::error!(folder = %self.shared.folder.display(), "the store's writer ended in a panic");
        }
    }

    /// Reads on the calling thread.
    pub(crate) fn read_now(&self, reads: &[Read]) -> Result<Vec<Found>> {
        self.shared.read(reads)
    }

    /// Why the engine ended, once its disk failed.
    pub(crate) fn failure(&self) -> watch::Receiver<Option<String>> {
        self.shared.failure.subscribe()
    }

    /// Why all is refused that needs room, while it is.
    pub(crate) fn no_room(&self) -> Option<&'static str> {
        *self.shared.no_room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the writer look whether there is room again, once it has time for that.
    pub(crate) fn look_for_room(&self) {
        if let Ok(work) = self.sender() {
            // Where it is filled, what waits there looks.
            let _ = work.try_send(Order::Room);
        }
    }

    /// For parts beside the tables, to report that the disk failed under them.
    pub(crate) fn failing(&self) -> watch::Sender<Option<String>> {
        self.shared.failure.clone()
    }

    /// Grows with everything that is written.
    pub(crate) fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }

    pub(crate) fn check_in_place(&self) -> Result<()> {
        self.shared.check_in_place()
    }

    /// What the store says about itself.
    pub(crate) fn stamp(&self) -> Result<Option<Stamp>> {
        let engine = self.shared.engine.read().unwrap_or_else(PoisonError::into_inner);
        match &*engine {
            Engine::Open(opened) => meta::stamp(&opened.database),
            Engine::Ended(error) => Err(error.clone()),
        }
    }

    /// A snapshot, with what keeps the file in place while it lives.
    pub(super) fn begin_read(&self) -> Result<(redb::ReadTransaction, Arc<()>)> {
        let failed = |e: redb::Error| Error::unavailable(format!("reading failed: {e}; check the disk"));
        match &*self.shared.engine.read().unwrap_or_else(PoisonError::into_inner) {
            Engine::Open(opened) => {
                let snapshot = opened.database.begin_read().map_err(|e| failed(e.into()))?;
                Ok((snapshot, Arc::clone(&self.shared.snapshots)))
            }
            Engine::Ended(error) => Err(error.clone()),
        }
    }

    /// The format of each part.
    pub(super) fn formats(&self) -> Result<Vec<(String, u32)>> {
        match &*self.shared.engine.read().unwrap_or_else(PoisonError::into_inner) {
            Engine::Open(opened) => meta::formats(&opened.database),
            Engine::Ended(error) => Err(error.clone()),
        }
    }

    pub(super) fn set_formats(&self, formats: &[(String, u32)]) -> Result<()> {
        match &*self.shared.engine.read().unwrap_or_else(PoisonError::into_inner) {
            Engine::Open(opened) => meta::set_formats(&opened.database, formats),
            Engine::Ended(error) => Err(error.clone()),
        }
    }

    /// Puts down that all parts have the formats of this version now.
    pub(crate) fn raise_formats(&self) -> Result<()> {
        let engine = self.shared.engine.read().unwrap_or_else(PoisonError::into_inner);
        match &*engine {
            Engine::Open(opened) => meta::raise_formats(&opened.database),
            Engine::Ended(error) => Err(error.clone()),
        }
    }

    /// Writes what the store says about itself, from the reserve if the disk is full.
    pub(crate) async fn set_stamp(&self, stamp: &Stamp) -> Result<()> {
        match self.hand_over(Batch::new(), 0, Some(stamp.clone())).await {
            // That gave the reserve free.
            Err(Error::Disk { .. }) => self.hand_over(Batch::new(), 0, Some(stamp.clone())).await,
            written => written,
        }
    }

    async fn hand_over(&self, batch: Batch, bytes: usize, stamp: Option<Stamp>) -> Result<()> {
        let work = self.sender()?;
        let (done, answer) = oneshot::channel();
        self.shared.batches.fetch_add(1, Ordering::Relaxed);
        let order = Order::Commit(Work { batch, bytes, stamp, done });
        work.send(order).await.map_err(|_| self.shared.ended())?;
        drop(work);
        answer.await.unwrap_or_else(|_| {
            let reason = "the store ended while writing; read again to see".to_owned();
            Err(Error::OutcomeUnknown { what: "a write", reason })
        })
    }

    /// Compares blocks of the file with their checksums.
    pub(super) fn check_blocks(&self, from: u64, blocks_max: u64) -> Result<Step> {
        let file = self.file()?;
        let checked = file.check(from, blocks_max).map_err(|e| super::unusable(&self.shared.folder, &e))?;
        let next = match checked.next {
            Some(block) => Some(Place::Block(block)),
            None => Some(match self.table_after("")? {
                Some(table) => Place::Row { table, after: None },
                None => Place::Content { after: String::new(), offset: 0 },
            }),
        };
        let damage = checked.damaged.iter().map(|block| file.damage(*block)).collect();
        Ok(Step { next, bytes: checked.blocks * BLOCK_BYTES, damage })
    }

    /// The name of the first table after this one.
    pub(super) fn table_after(&self, name: &str) -> Result<Option<String>> {
        self.shared.table_after(name)
    }

    pub(super) fn damaged_blocks(&self) -> usize {
        self.file().map_or(0, |file| file.damaged().len())
    }

    fn file(&self) -> Result<Arc<Sealed>> {
        match &*self.shared.engine.read().unwrap_or_else(PoisonError::into_inner) {
            Engine::Open(opened) => Ok(Arc::clone(&opened.file)),
            Engine::Ended(error) => Err(error.clone()),
        }
    }

    /// Batches handed to the writer so far: it is idle while this stays.
    pub(super) fn batches(&self) -> u64 {
        self.shared.batches.load(Ordering::Relaxed)
    }

    /// What the file takes on the disk, and how large it would be with nothing but what is in use, in bytes. Reads the whole
    /// tree.
    pub(super) fn room(&self) -> Result<(u64, u64)> {
        let engine = self.shared.engine.read().unwrap_or_else(PoisonError::into_inner);
        let opened = match &*engine {
            Engine::Open(opened) => opened,
            Engine::Ended(error) => return Err(error.clone()),
        };
        let failed = |e: redb::Error| damaged_file(&self.shared.folder.join(FILE), &e.to_string());
        let snapshot = opened.database.begin_read().map_err(|e| failed(e.into()))?;
        let mut used = 0;
        for table in snapshot.list_tables().map_err(|e| failed(e.into()))? {
            let table = snapshot.open_untyped_table(table).map_err(|e| failed(e.into()))?;
            let stats = table.stats().map_err(|e| failed(e.into()))?;
            used += stats.stored_bytes() + stats.metadata_bytes();
        }
        let file = std::fs::metadata(self.shared.folder.join(FILE));
        Ok((file.map_or(opened.file.bytes(), |meta| on_disk(&meta)), used))
    }

    /// Has the file written anew without what is not used; `false` if others waited.
    pub(super) async fn compact(&self) -> Result<bool> {
        let (done, answer) = oneshot::channel();
        self.sender()?.send(Order::Compact(done)).await.map_err(|_| self.shared.ended())?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    pub(super) async fn settle(&self) -> Result<()> {
        self.sender()?.send(Order::Settle).await.map_err(|_| self.shared.ended())
    }

    pub(super) fn folder(&self) -> &Path {
        &self.shared.folder
    }

    fn sender(&self) -> Result<mpsc::Sender<Order>> {
        let work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        work.clone().ok_or_else(closed)
    }
}

fn take<T>(place: &Mutex<Option<T>>) -> Option<T> {
    place.lock().unwrap_or_else(PoisonError::into_inner).take()
}

pub(super) fn closed() -> Error {
    Error::unavailable("it was closed; open it again")
}

impl Tables for EmbeddedTables {
    fn read(&self, reads: Vec<Read>) -> BoxFuture<'_, Result<Vec<Found>>> {
        Box::pin(async move {
            let permit = Arc::clone(&self.readers).acquire_owned().await.map_err(|_| closed())?;
            let shared = Arc::clone(&self.shared);
            let reading = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                shared.read(&reads)
            });
            reading.await.map_err(|e| Error::unavailable(format!("a read was cut off: {e}")))?
        })
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let bytes = checked_bytes(&batch)?;
            self.hand_over(batch, bytes, None).await
        })
    }
}

/// The size of a batch, if everything in it is within bounds.
fn checked_bytes(batch: &Batch) -> Result<usize> {
    fn within(what: &'static str, bytes: usize, max: usize) -> Result<()> {
        if bytes > max {
            return Err(Error::TooLarge { what, bytes: bytes as u64, max: max as u64 });
        }
        Ok(())
    }
    let mut total = 0;
    for op in &batch.ops {
        let (key, value) = match op {
            Op::Put { key, value, .. } => (key.len(), value.len()),
            Op::Delete { key, .. } | Op::DeletePrefix { prefix: key, .. } => (key.len(), 0),
        };
        within("a key", key, KEY_BYTES_MAX)?;
        within("a value", value, VALUE_BYTES_MAX)?;
        total += key + value;
    }
    within("a batch", total, BATCH_BYTES_MAX)?;
    Ok(total)
}

pub(super) fn open_database(
    folder: &Path,
    cache_bytes: usize,
    state: &Arc<DiskState>,
    create: bool,
) -> Result<Opened> {
    let path = folder.join(FILE);
    if !create {
        check_not_empty(&path)?;
    }
    open_file(&path, cache_bytes, state)
}

fn check_not_empty(path: &Path) -> Result<()> {
    let there = std::fs::metadata(path).map_err(|e| super::unusable(path, &e))?;
    if !there.is_file() {
        return Err(Error::unavailable(format!("'{}' is no file; move it away", path.display())));
    }
    if there.len() == 0 {
        return Err(Error::damaged(format!("'{}'", path.display()), &"it is empty"));
    }
    Ok(())
}

pub(super) fn open_file(path: &Path, cache_bytes: usize, state: &Arc<DiskState>) -> Result<Opened> {
    let file = Arc::new(Sealed::open(path, &state.faults)?);
    let disk = Disk::new(Arc::clone(&file), Arc::clone(state));
    open_engine(path, file, disk, cache_bytes, state)
}

/// Has the engine open a file.
fn open_engine(
    path: &Path,
    file: Arc<Sealed>,
    disk: impl redb::StorageBackend,
    cache_bytes: usize,
    state: &DiskState,
) -> Result<Opened> {
    let folder = path.parent().unwrap_or(path);
    let mut builder = Database::builder();
    builder.set_cache_size(cache_bytes);
    // What has no checksums of ours has only those of the engine.
    builder.set_check_integrity_on_open(file.is_plain());
    let (repaired, unclosed) = (path.to_owned(), Arc::clone(&state.unclosed));
    // It is called again for each step of a repair.
    builder.set_repair_callback(move |_| {
        unclosed.call_once(
            || tracing::info!(path = %repaired.display(), "the store was not closed; checking it"),
        );
    });
    let database = builder.create_with_backend(disk).map_err(|e| match (file.lost(), e) {
        (Some(lost), _) => lost,
        (None, redb::DatabaseError::Storage(redb::StorageError::Io(e))) => super::unusable(folder, &e),
        (None, other) => damaged_file(path, &other.to_string()),
    })?;
    file.opened();
    Ok(Opened { database, file })
}

/// What a failed read or write of a row says.
pub(super) fn damaged_row(table: &str, key: &[u8]) -> Error {
    Error::Damaged {
        what: format!("row '{}' of table '{table}'", key.escape_ascii()),
        reason: "a block that it rests in, or that leads to it, does not match its checksum; the log says where. Restore it from a backup, and check the disk".to_owned(),
    }
}

impl Shared {
    /// Refuses what no path would lead to: a file that was removed or replaced is gone with this process.
    pub(super) fn check_in_place(&self) -> Result<()> {
        match &*self.engine.read().unwrap_or_else(PoisonError::into_inner) {
            Engine::Open(opened) => opened.file.check_in_place(),
            Engine::Ended(_) => Ok(()),
        }
    }

    fn ended(&self) -> Error {
        match &*self.engine.read().unwrap_or_else(PoisonError::into_inner) {
            Engine::Open(_) => {
                Error::unavailable("its writer is gone; restart, and report what the log says")
            }
            Engine::Ended(error) => error.clone(),
        }
    }

    fn table_after(&self, name: &str) -> Result<Option<String>> {
        let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner);
        let database = match &*engine {
            Engine::Open(opened) => &opened.database,
            Engine::Ended(error) => return Err(error.clone()),
        };
        let failed = |e: redb::Error| damaged_file(&self.folder.join(FILE), &e.to_string());
        let snapshot = database.begin_read().map_err(|e| failed(e.into()))?;
        let tables = snapshot.list_tables().map_err(|e| failed(e.into()))?;
        Ok(tables.map(|table| table.name().to_owned()).filter(|table| &**table > name).min())
    }

    /// Reads; waits a moment for an engine that a full disk has stopped, which the writer is about to open again.
    fn read(&self, reads: &[Read]) -> Result<Vec<Found>> {
        let until = Instant::now() + REOPEN_TIMEOUT;
        loop {
            match self.read_once(reads) {
                Err(Error::Disk { .. }) if self.is_open() && Instant::now() < until => {
                    std::thread::park_timeout(REOPEN_PAUSE);
                }
                read => return read,
            }
        }
    }

    fn is_open(&self) -> bool {
        matches!(&*self.engine.read().unwrap_or_else(PoisonError::into_inner), Engine::Open(_))
    }

    fn read_once(&self, reads: &[Read]) -> Result<Vec<Found>> {
        let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner);
        let database = match &*engine {
            Engine::Open(opened) => &opened.database,
            Engine::Ended(error) => return Err(error.clone()),
        };
        let failed = |e: redb::Error| match (e, self.state.health().full) {
            (redb::Error::Corrupted(reason), _) => damaged_file(&self.folder.join(FILE), &reason),
            // Until it is opened again, the engine refuses reads too.
            (redb::Error::PreviousIo, Some(reason)) => {
                Error::Disk { folder: self.folder.display().to_string(), reason }
            }
            (other, _) => Error::unavailable(format!("reading failed: {other}; check the disk")),
        };
        let snapshot = database.begin_read().map_err(|e| failed(e.into()))?;
        let mut tables = HashMap::new();
        let mut found = Vec::with_capacity(reads.len());
        for read in reads {
            let (Read::Get { table: name, .. } | Read::Range { table: name, .. }) = read;
            if !tables.contains_key(name) {
                let table = match snapshot.open_table(Definition::new(name)) {
                    Ok(table) => Some(table),
                    Err(TableError::TableDoesNotExist(_)) => None,
                    Err(TableError::Storage(StorageError::Corrupted(_))) => {
                        return Err(damaged_row(name, b""));
                    }
                    Err(e) => return Err(failed(e.into())),
                };
                tables.insert(name.clone(), table);
            }
            let table = tables.get(name).and_then(Option::as_ref);
            found.push(answer(table, read).map_err(|(e, key)| match e {
                StorageError::Corrupted(_) => damaged_row(name, &key),
                other => failed(other.into()),
            })?);
        }
        Ok(found)
    }
}

pub(super) type Snapshot = redb::ReadOnlyTable<&'static [u8], &'static [u8]>;

/// The answer to a read; if it fails, with the key that it had come to.
fn answer(table: Option<&Snapshot>, read: &Read) -> Result<Found, (StorageError, Bytes)> {
    match read {
        Read::Get { key, .. } => {
            let value = table.map(|table| table.get(&key[..])).transpose().map_err(|e| (e, key.clone()))?;
            Ok(Found::Value(value.flatten().map(|value| Bytes::copy_from_slice(value.value()))))
        }
        Read::Range { range, rows_max, reverse, .. } => {
            let mut found = Rows::default();
            if let Some(table) = table.filter(|_| !range.is_empty())
                && let Err(error) = rows(table, range, *rows_max, *reverse, &mut found)
            {
                let last = found.rows.pop().map_or_else(|| range.from.clone(), |(key, _)| key);
                return Err((error, last));
            }
            Ok(Found::Rows(found))
        }
    }
}

pub(super) fn bounds(range: &KeyRange) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (Bound::Included(&range.from[..]), range.to.as_deref().map_or(Bound::Unbounded, Bound::Excluded))
}

pub(super) fn rows(
    table: &Snapshot,
    range: &KeyRange,
    rows_max: usize,
    reverse: bool,
    found: &mut Rows,
) -> Result<(), StorageError> {
    let mut entries = table.range::<&[u8]>(bounds(range))?;
    let mut bytes = 0;
    while let Some(entry) = if reverse { entries.next_back() } else { entries.next() } {
        if found.rows.len() >= rows_max || bytes >= RANGE_BYTES_MAX {
            found.more = true;
            break;
        }
        let (key, value) = entry?;
        bytes += key.value().len() + value.value().len();
        found.rows.push((Bytes::copy_from_slice(key.value()), Bytes::copy_from_slice(value.value())));
    }
    Ok(())
}
