//! Tables in one file: readers see snapshots, one thread writes.
//!
//! The writer takes whatever batches arrived while it was syncing and commits them together, each judged on its own. A
//! failed sync ends the engine, since nobody can know what is durable after it. A full disk does not: what was under way
//! is undone, writes are refused until there is room, and removals go on with the room that a reserve file held.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use bytes::Bytes;
use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError, WriteTransaction,
};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::Options;
use super::disk::{Disk, DiskState};
use super::lock::FolderLock;
use crate::contract::tables::{BATCH_BYTES_MAX, KEY_BYTES_MAX, RANGE_BYTES_MAX, TableName, VALUE_BYTES_MAX};
use crate::{Batch, BoxFuture, Error, Expect, Expected, Found, KeyRange, Op, Read, Result, Rows, Tables};

/// Batches that may wait for the writer; more callers wait for a place.
const WAITING_BATCHES_MAX: usize = 4096;
/// What one commit gathers at most, in bytes.
const GATHER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Reads under way at once; more callers wait.
const READERS_MAX: usize = 32;

type Definition<'a> = TableDefinition<'a, &'static [u8], &'static [u8]>;
type OpenTable<'txn> = redb::Table<'txn, &'static [u8], &'static [u8]>;

/// The embedded tables.
#[derive(Debug)]
pub(crate) struct EmbeddedTables {
    shared: Arc<Shared>,
    readers: Arc<Semaphore>,
    work: Mutex<Option<mpsc::Sender<Work>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Work {
    batch: Batch,
    bytes: usize,
    done: oneshot::Sender<Result<()>>,
}

/// What readers and the writer share.
#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    state: Arc<DiskState>,
    cache_bytes: usize,
    engine: RwLock<Engine>,
}

#[derive(Debug)]
enum Engine {
    Open(Box<Database>),
    Ended(Error),
}

impl EmbeddedTables {
    pub(crate) fn open(folder: &Path, lock: FolderLock, options: &Options) -> Result<Self> {
        let path = folder.join("store.redb");
        let written_bytes = std::fs::metadata(&path).map_or(0, |m| m.len());
        let state = Arc::new(DiskState::new(Arc::clone(&options.faults), written_bytes));
        let cache_bytes = options.cache_bytes_max;
        let database = open_database(folder, cache_bytes, &state)?;
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            state,
            cache_bytes,
            engine: RwLock::new(Engine::Open(Box::new(database))),
        });

        let (work, waiting) = mpsc::channel(WAITING_BATCHES_MAX);
        let mut writer = Writer {
            shared: Arc::clone(&shared),
            waiting,
            full: false,
            reserve_owed: false,
            reserve: Reserve { path: folder.join("reserve"), bytes: options.reserve_bytes },
            _lock: lock,
        };
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

    fn sender(&self) -> Result<mpsc::Sender<Work>> {
        let work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        work.clone().ok_or_else(closed)
    }
}

fn take<T>(place: &Mutex<Option<T>>) -> Option<T> {
    place.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn closed() -> Error {
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
            let work = self.sender()?;
            let (done, answer) = oneshot::channel();
            work.send(Work { batch, bytes, done }).await.map_err(|_| self.shared.ended())?;
            drop(work);
            answer.await.unwrap_or_else(|_| {
                let reason = "the store ended while writing; read again to see".to_owned();
                Err(Error::OutcomeUnknown { what: "a write", reason })
            })
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

fn open_database(folder: &Path, cache_bytes: usize, state: &Arc<DiskState>) -> Result<Database> {
    let path = folder.join("store.redb");
    let unusable = |e: std::io::Error| super::unusable(folder, &e);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(unusable)?;
    let disk = Disk::new(file, Arc::clone(state)).map_err(unusable)?;
    let mut builder = Database::builder();
    builder.set_cache_size(cache_bytes);
    let repaired = path.clone();
    builder.set_repair_callback(
        move |_| tracing::info!(path = %repaired.display(), "the store was not closed; checking it"),
    );
    builder.create_with_backend(disk).map_err(|e| match e {
        redb::DatabaseError::Storage(redb::StorageError::Io(e)) => unusable(e),
        other => Error::damaged(format!("'{}'", path.display()), &other),
    })
}

impl Shared {
    fn ended(&self) -> Error {
        match &*self.engine.read().unwrap_or_else(PoisonError::into_inner) {
            Engine::Open(_) => {
                Error::unavailable("its writer is gone; restart, and report what the log says")
            }
            Engine::Ended(error) => error.clone(),
        }
    }

    fn read(&self, reads: &[Read]) -> Result<Vec<Found>> {
        let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner);
        let database = match &*engine {
            Engine::Open(database) => database,
            Engine::Ended(error) => return Err(error.clone()),
        };
        let failed = |e: redb::Error| Error::unavailable(format!("reading failed: {e}; check the disk"));
        let snapshot = database.begin_read().map_err(|e| failed(e.into()))?;
        let mut tables = HashMap::new();
        let mut found = Vec::with_capacity(reads.len());
        for read in reads {
            let (Read::Get { table: name, .. } | Read::Range { table: name, .. }) = read;
            if !tables.contains_key(name) {
                let table = match snapshot.open_table(Definition::new(name)) {
                    Ok(table) => Some(table),
                    Err(TableError::TableDoesNotExist(_)) => None,
                    Err(e) => return Err(failed(e.into())),
                };
                tables.insert(name.clone(), table);
            }
            let table = tables.get(name).and_then(Option::as_ref);
            found.push(answer(table, read).map_err(|e| failed(e.into()))?);
        }
        Ok(found)
    }
}

type Snapshot = redb::ReadOnlyTable<&'static [u8], &'static [u8]>;

fn answer(table: Option<&Snapshot>, read: &Read) -> Result<Found, redb::StorageError> {
    match read {
        Read::Get { key, .. } => {
            let value = table.map(|table| table.get(&key[..])).transpose()?.flatten();
            Ok(Found::Value(value.map(|value| Bytes::copy_from_slice(value.value()))))
        }
        Read::Range { range, rows_max, reverse, .. } => {
            let rows = match table {
                Some(table) if !range.is_empty() => rows(table, range, *rows_max, *reverse)?,
                _ => Rows::default(),
            };
            Ok(Found::Rows(rows))
        }
    }
}

fn bounds(range: &KeyRange) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (Bound::Included(&range.from[..]), range.to.as_deref().map_or(Bound::Unbounded, Bound::Excluded))
}

fn rows(
    table: &Snapshot,
    range: &KeyRange,
    rows_max: usize,
    reverse: bool,
) -> Result<Rows, redb::StorageError> {
    let mut entries = table.range::<&[u8]>(bounds(range))?;
    let mut found = Rows::default();
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
    Ok(found)
}

/// Room set aside on the disk, given up so that removals work when it is full.
#[derive(Debug)]
struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// Makes the reserve if it is not there; answers whether it is.
    fn ensure(&self, state: &DiskState) -> bool {
        if std::fs::metadata(&self.path).is_ok_and(|m| m.len() == self.bytes) {
            return true;
        }
        let made = state.faults.use_space(self.bytes).and_then(|()| self.fill());
        if made.is_err() {
            // A part of it would take the room that removals need.
            let _ = std::fs::remove_file(&self.path);
        }
        made.is_ok()
    }

    fn fill(&self) -> std::io::Result<()> {
        let mut file = File::create(&self.path)?;
        // Not zeros: a file system that stores zeros as nothing would reserve nothing.
        let block = [0xa5_u8; 64 * 1024];
        let mut left = self.bytes;
        while left > 0 {
            let part = left.min(block.len() as u64);
            file.write_all(&block[..usize::try_from(part).unwrap_or(block.len())])?;
            left -= part;
        }
        file.sync_all()
    }

    fn release(&self, state: &DiskState) {
        if std::fs::remove_file(&self.path).is_ok() {
            state.faults.free_space(self.bytes);
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
    waiting: mpsc::Receiver<Work>,
    full: bool,
    reserve_owed: bool,
    reserve: Reserve,
    _lock: FolderLock,
}

/// How a transaction failed.
enum Failure {
    /// Before the commit: nothing happened.
    Undone(redb::Error),
    /// During the commit.
    Committing(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Undone(error.into())
    }
}

impl Writer {
    fn run(&mut self) {
        self.full = !self.reserve.ensure(&self.shared.state);
        while let Some(first) = self.waiting.blocking_recv() {
            let mut bytes = first.bytes;
            let mut gathered = vec![first];
            while bytes < GATHER_BYTES_MAX
                && let Ok(next) = self.waiting.try_recv()
            {
                bytes += next.bytes;
                gathered.push(next);
            }
            self.handle(gathered);
        }
        self.end(&closed());
    }

    fn handle(&mut self, mut gathered: Vec<Work>) {
        if self.full {
            gathered = self.refuse_additions(gathered);
        }
        if gathered.is_empty() {
            return;
        }
        let judged = self.transact(&gathered);
        match judged {
            Ok(verdicts) => {
                // With something taken away there may be room again; if not, the next addition finds out.
                self.full = false;
                if self.reserve_owed && gathered.iter().any(|work| !work.batch.only_removes()) {
                    self.reserve_owed = false;
                    self.reserve.ensure(&self.shared.state);
                }
                for (work, verdict) in gathered.into_iter().zip(verdicts) {
                    let _ = work.done.send(verdict);
                }
            }
            Err(failure) => {
                let error = self.recover(failure);
                for work in gathered {
                    let _ = work.done.send(Err(error.clone()));
                }
            }
        }
    }

    /// While the disk is full: lets only removals through, unless the reserve can be made again.
    fn refuse_additions(&mut self, gathered: Vec<Work>) -> Vec<Work> {
        let additions = gathered.iter().any(|work| !work.batch.only_removes());
        if additions && self.reserve.ensure(&self.shared.state) {
            self.full = false;
            return gathered;
        }
        let (removals, additions): (Vec<_>, Vec<_>) =
            gathered.into_iter().partition(|work| work.batch.only_removes());
        for work in additions {
            let _ = work.done.send(Err(self.disk_full("its reserve is used up")));
        }
        if !removals.is_empty() {
            self.release_reserve();
        }
        removals
    }

    fn release_reserve(&mut self) {
        self.reserve.release(&self.shared.state);
        self.reserve_owed = true;
    }

    fn disk_full(&self, reason: &str) -> Error {
        Error::Disk { folder: self.shared.folder.display().to_string(), reason: reason.to_owned() }
    }

    fn transact(&self, gathered: &[Work]) -> Result<Vec<Result<()>>, Failure> {
        let engine = self.shared.engine.read().unwrap_or_else(PoisonError::into_inner);
        let database = match &*engine {
            Engine::Open(database) => database,
            Engine::Ended(error) => return Ok(gathered.iter().map(|_| Err(error.clone())).collect()),
        };
        let transaction = database.begin_write()?;
        let mut tables = OpenTables { transaction: &transaction, open: HashMap::new() };
        let mut verdicts = Vec::with_capacity(gathered.len());
        let mut changed = false;
        for work in gathered {
            let verdict = tables.judge(&work.batch.expects)?;
            if verdict.is_ok() {
                tables.apply(&work.batch.ops)?;
                changed |= !work.batch.is_empty();
            }
            verdicts.push(verdict);
        }
        drop(tables);
        if changed {
            transaction.commit().map_err(|e| Failure::Committing(e.into()))?;
        } else {
            transaction.abort()?;
        }
        Ok(verdicts)
    }

    /// After a failed transaction: goes on after a full disk, ends after anything else.
    fn recover(&mut self, failure: Failure) -> Error {
        let health = self.shared.state.health();
        let (error, committing) = match failure {
            Failure::Undone(error) => (error, false),
            Failure::Committing(error) => (error, true),
        };
        if let (Some(reason), None, None) = (&health.full, &health.sync, &health.broken) {
            self.full = true;
            self.release_reserve();
            return match self.reopen() {
                Ok(()) => self.disk_full(reason),
                Err(error) => {
                    self.end(&error);
                    error
                }
            };
        }
        let cause = health.sync.or(health.broken).unwrap_or_else(|| error.to_string());
        let reason = format!(
            "writing to '{}' failed: {cause}; check the disk, then restart",
            self.shared.folder.display()
        );
        tracing::error!(folder = %self.shared.folder.display(), %cause, "the store stops: its disk failed");
        self.end(&Error::unavailable(reason.clone()));
        if committing {
            Error::OutcomeUnknown { what: "a write", reason }
        } else {
            Error::unavailable(reason)
        }
    }

    /// Opens the file again, as it was after the last commit.
    fn reopen(&self) -> Result<()> {
        let mut engine = self.shared.engine.write().unwrap_or_else(PoisonError::into_inner);
        *engine = Engine::Ended(Error::unavailable("it is being reopened; try again"));
        self.shared.state.forget_full();
        let database = open_database(&self.shared.folder, self.shared.cache_bytes, &self.shared.state)?;
        *engine = Engine::Open(Box::new(database));
        Ok(())
    }

    fn end(&self, error: &Error) {
        let mut engine = self.shared.engine.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*engine, Engine::Open(_)) {
            *engine = Engine::Ended(error.clone());
        }
    }
}

/// The tables of one transaction, opened as they are named.
struct OpenTables<'txn> {
    transaction: &'txn WriteTransaction,
    open: HashMap<TableName, OpenTable<'txn>>,
}

impl<'txn> OpenTables<'txn> {
    fn table(&mut self, name: &TableName) -> Result<&mut OpenTable<'txn>, redb::Error> {
        if !self.open.contains_key(name) {
            let table = self.transaction.open_table(Definition::new(name))?;
            self.open.insert(name.clone(), table);
        }
        Ok(self.open.get_mut(name).expect("it was opened above"))
    }

    fn judge(&mut self, expects: &[Expect]) -> Result<Result<()>, redb::Error> {
        for Expect { table, key, is } in expects {
            let is_so = {
                let value = self.table(table)?.get(&key[..])?;
                match (is, &value) {
                    (Expected::Absent, None) => true,
                    (Expected::Value(wanted), Some(value)) => value.value() == &wanted[..],
                    (Expected::Absent, Some(_)) | (Expected::Value(_), None) => false,
                }
            };
            if !is_so {
                return Ok(Err(Error::Conflict {
                    table: table.to_string(),
                    key: key.escape_ascii().to_string(),
                    raw_key: key.clone(),
                }));
            }
        }
        Ok(Ok(()))
    }

    fn apply(&mut self, ops: &[Op]) -> Result<(), redb::Error> {
        for op in ops {
            match op {
                Op::Put { table, key, value } => {
                    self.table(table)?.insert(&key[..], &value[..])?;
                }
                Op::Delete { table, key } => {
                    self.table(table)?.remove(&key[..])?;
                }
                Op::DeletePrefix { table, prefix } => {
                    let range = KeyRange::prefix(prefix);
                    self.table(table)?.retain_in::<&[u8], _>(bounds(&range), |_, _| false)?;
                }
            }
        }
        Ok(())
    }
}
