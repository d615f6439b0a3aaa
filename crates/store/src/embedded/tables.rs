//! Tables in one file: readers see snapshots, one thread writes.
//!
//! The writer takes whatever batches arrived while it was syncing and commits them together, each judged on its own. A
//! failed sync ends the engine, since nobody can know what is durable after it. A full disk does not: what was under way
//! is undone, writes are refused until there is room, and removals go on with the room that a reserve file held.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use bytes::Bytes;
use redb::{Database, ReadableDatabase as _, TableDefinition, TableError};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::Options;
use super::disk::{Disk, DiskState};
use super::lock::FolderLock;
use super::writer::Writer;
use crate::contract::tables::{BATCH_BYTES_MAX, KEY_BYTES_MAX, RANGE_BYTES_MAX, VALUE_BYTES_MAX};
use crate::{Batch, BoxFuture, Error, Found, KeyRange, Op, Read, Result, Rows, Tables};

/// Batches that may wait for the writer; more callers wait for a place.
const WAITING_BATCHES_MAX: usize = 4096;
/// Reads under way at once; more callers wait.
const READERS_MAX: usize = 32;

pub(super) type Definition<'a> = TableDefinition<'a, &'static [u8], &'static [u8]>;

/// The embedded tables.
#[derive(Debug)]
pub(crate) struct EmbeddedTables {
    shared: Arc<Shared>,
    readers: Arc<Semaphore>,
    work: Mutex<Option<mpsc::Sender<Work>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
pub(super) struct Work {
    pub(super) batch: Batch,
    pub(super) bytes: usize,
    pub(super) done: oneshot::Sender<Result<()>>,
}

/// What readers and the writer share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) folder: PathBuf,
    pub(super) state: Arc<DiskState>,
    pub(super) cache_bytes: usize,
    pub(super) engine: RwLock<Engine>,
}

#[derive(Debug)]
pub(super) enum Engine {
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
        let mut writer = Writer::new(Arc::clone(&shared), waiting, options.reserve_bytes, lock);
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

pub(super) fn open_database(folder: &Path, cache_bytes: usize, state: &Arc<DiskState>) -> Result<Database> {
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

pub(super) fn bounds(range: &KeyRange) -> (Bound<&[u8]>, Bound<&[u8]>) {
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
