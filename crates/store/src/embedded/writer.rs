//! The one thread that writes: it gathers what waits, judges each batch, commits once, and knows what to do when the disk
//! refuses.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use redb::{ReadableDatabase as _, ReadableTable as _, TableHandle as _, WriteTransaction};
use tokio::sync::mpsc;

use super::disk::{DiskState, is_full};
use super::lock::NO_LINK;
use super::meta;
use super::sealed::{damaged_file, put_in_place};
use super::tables::{
    COMPACTED, Definition, Engine, FILE, Hold, Order, Shared, Work, bounds, closed, damaged_row,
    open_database, open_file,
};
use crate::contract::tables::TableName;
use crate::{Error, Expect, Expected, KeyRange, Op, Result};

/// What one commit gathers at most, in bytes.
const GATHER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Memory for pages of the file that a compaction writes.
const COMPACT_CACHE_BYTES: usize = 8 * 1024 * 1024;

type OpenTable<'txn> = redb::Table<'txn, &'static [u8], &'static [u8]>;

/// Room set aside on the disk, given up so that removals work when it is full.
#[derive(Debug)]
struct Reserve {
    path: PathBuf,
    bytes: u64,
    /// Why it could not be made at the last try, where that was not for want of room.
    why: Option<String>,
}

impl Reserve {
    /// Makes the reserve whole, or leaves it as it is; answers whether it is whole.
    fn ensure(&mut self, state: &DiskState) -> bool {
        let before = self.len();
        let grown = self.grow(state);
        if grown.is_err() {
            // A part more would take the room that removals need.
            self.shrink_to(before, state);
        }
        let other = grown.as_ref().err().filter(|error| !is_full(error));
        self.why = other.map(|error| {
            let reserve = self.path.display();
            format!(
                "'{reserve}', which holds room for removals, cannot be made: {error}; move away what is there"
            )
        });
        grown.is_ok()
    }

    /// Whether there is room for as much again as is held back; less may be what was just given free, or what a write that
    /// failed gave back.
    fn has_more(&self, state: &DiskState) -> bool {
        let twice = Self { path: self.path.clone(), bytes: 2 * self.bytes, why: None };
        let has_more = twice.grow(state).is_ok();
        self.shrink_to(self.bytes, state);
        has_more
    }

    /// Takes what room there is, for the next to open the store.
    fn hold_rest(&self, state: &DiskState) {
        if let Err(error) = self.grow(state) {
            tracing::debug!(%error, bytes = self.len(), "the reserve is not whole");
        }
    }

    fn len(&self) -> u64 {
        std::fs::symlink_metadata(&self.path).map_or(0, |there| if there.is_file() { there.len() } else { 0 })
    }

    fn grow(&self, state: &DiskState) -> std::io::Result<()> {
        let mut left = self.bytes.saturating_sub(self.len());
        if left == 0 {
            return Ok(());
        }
        let mut options = OpenOptions::new();
        let mut file = options.create(true).append(true).custom_flags(NO_LINK).open(&self.path)?;
        // Not zeros: a file system that stores zeros as nothing would reserve nothing.
        let block = [0xa5_u8; 64 * 1024];
        while left > 0 {
            let part = left.min(block.len() as u64);
            state.faults.use_space(part)?;
            file.write_all(&block[..usize::try_from(part).unwrap_or(block.len())])?;
            left -= part;
        }
        file.sync_all()
    }

    fn shrink_to(&self, bytes: u64, state: &DiskState) {
        let now = self.len();
        let file = OpenOptions::new().write(true).custom_flags(NO_LINK).open(&self.path);
        if bytes < now && file.and_then(|file| file.set_len(bytes)).is_ok() {
            state.faults.free_space(now - bytes);
        }
    }

    fn release(&self, state: &DiskState) {
        let held = self.len();
        if std::fs::remove_file(&self.path).is_ok() {
            state.faults.free_space(held);
        }
    }
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    waiting: mpsc::Receiver<Order>,
    /// The disk was full, or the reserve was given up: ordinary batches wait until the reserve can be made again.
    short: bool,
    reserve: Reserve,
    _hold: Hold,
}

impl Drop for Writer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fail("the store's writer ended in a panic; restart, and report what the log says");
        }
    }
}

/// How a transaction failed.
enum Failure {
    /// Before the commit: nothing happened.
    Undone(redb::Error),
    /// During the commit.
    Committing(redb::Error),
    /// A row that was to be looked at or changed is damaged; nothing happened.
    Damaged(Error),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Undone(error.into())
    }
}

/// How looking at or changing a row failed.
fn at_row(table: &str, key: &[u8], error: impl Into<redb::Error>) -> Failure {
    match error.into() {
        redb::Error::Corrupted(_) => Failure::Damaged(damaged_row(table, key)),
        other => Failure::Undone(other),
    }
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        waiting: mpsc::Receiver<Order>,
        reserve_bytes: u64,
        hold: Hold,
    ) -> Self {
        let reserve = Reserve { path: shared.folder.join("reserve"), bytes: reserve_bytes, why: None };
        Self { shared, waiting, short: false, reserve, _hold: hold }
    }

    /// Writes until everybody who could send work is gone.
    pub(super) fn run(&mut self) {
        self.short = !self.shared.is_looked_at && !self.reserve.ensure(&self.shared.state);
        if self.short {
            self.tell_no_room();
        }
        let mut other = None;
        while let Some(first) = other.take().or_else(|| self.waiting.blocking_recv()) {
            let first = match first {
                Order::Commit(work) => work,
                Order::Compact(done) => {
                    let _ = done.send(self.compact());
                    continue;
                }
                Order::Settle => {
                    self.settle();
                    continue;
                }
                Order::Room => {
                    let state = &self.shared.state;
                    let is_ours = self.shared.check_in_place().is_ok();
                    if is_ours && self.reserve.ensure(state) && self.reserve.has_more(state) {
                        self.short = false;
                        self.there_is_room();
                    }
                    continue;
                }
            };
            let mut bytes = first.bytes;
            let mut gathered = vec![first];
            while bytes < GATHER_BYTES_MAX
                && let Ok(next) = self.waiting.try_recv()
            {
                let Order::Commit(next) = next else {
                    other = Some(next);
                    break;
                };
                bytes += next.bytes;
                gathered.push(next);
            }
            self.handle(gathered);
        }
        let is_ours = self.shared.check_in_place().is_ok();
        self.end(&closed());
        if self.short && is_ours {
            // With what the file gave back. Else somebody else has it when this store is opened again.
            self.reserve.hold_rest(&self.shared.state);
        }
    }

    /// Has it told that something was refused for want of room, and why.
    fn tell_no_room(&self) {
        let why = match self.reserve.why {
            Some(_) => "the file that holds room for removals cannot be made",
            None => "its disk is full",
        };
        *self.shared.no_room.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    fn there_is_room(&self) {
        *self.shared.no_room.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn handle(&mut self, mut gathered: Vec<Work>) {
        if self.short {
            gathered = self.admit(gathered);
        }
        if gathered.is_empty() {
            return;
        }
        if let Err(error) = self.shared.check_in_place() {
            for work in gathered {
                let _ = work.done.send(Err(error.clone()));
            }
            return;
        }
        if self.short && gathered.len() > 1 {
            // Each fits the reserve by itself.
            for work in gathered {
                self.handle(vec![work]);
            }
            return;
        }
        let was_short = self.short;
        match self.transact(&gathered) {
            Ok(verdicts) => {
                let mut done = gathered.iter().zip(&verdicts);
                if done.any(|(work, verdict)| verdict.is_ok() && work.needs_room()) {
                    self.there_is_room();
                }
                for (work, verdict) in gathered.into_iter().zip(verdicts) {
                    let _ = work.done.send(verdict);
                }
            }
            // One of them meets damage: the others are done without it.
            Err(Failure::Damaged(_)) if gathered.len() > 1 => {
                for work in gathered {
                    self.handle(vec![work]);
                }
            }
            Err(failure) => {
                let error = self.recover(failure);
                // The room that was missing may have been for others.
                let tried_again = matches!(error, Error::Disk { .. }) && !was_short;
                let (first, others): (Vec<_>, Vec<_>) =
                    gathered.into_iter().partition(|work| tried_again && work.may_use_reserve());
                for work in others {
                    let _ = work.done.send(Err(error.clone()));
                }
                if !first.is_empty() {
                    self.handle(first);
                }
            }
        }
    }

    /// While the disk is full: lets only removals and what is essential through, unless the reserve can be made again.
    fn admit(&mut self, gathered: Vec<Work>) -> Vec<Work> {
        let ordinary = gathered.iter().any(|work| !work.may_use_reserve());
        if ordinary && self.reserve.ensure(&self.shared.state) {
            self.short = false;
            return gathered;
        }
        if ordinary {
            self.tell_no_room();
        }
        let (first, ordinary): (Vec<_>, Vec<_>) = gathered.into_iter().partition(Work::may_use_reserve);
        for work in ordinary {
            let refused = match &self.reserve.why {
                Some(why) => Error::unavailable(why.clone()),
                None => self.disk_full("its reserve is used up"),
            };
            let _ = work.done.send(Err(refused));
        }
        if !first.is_empty() {
            self.reserve.release(&self.shared.state);
        }
        first
    }

    /// Copies what is in use to a new file, in order and without gaps, and puts that in place of the old one. Reads go on
    /// meanwhile; it is given up as soon as a batch waits.
    fn compact(&self) -> Result<bool> {
        if self.shared.is_looked_at {
            return Ok(true);
        }
        if std::fs::symlink_metadata(self.shared.folder.join(FILE)).is_ok_and(|found| found.is_symlink()) {
            tracing::warn!(
                "{FILE} is a link to another place, where its room cannot be given back; link the folder instead"
            );
            return Ok(true);
        }
        let new = self.shared.folder.join(COMPACTED);
        let compacted = match self.copy_to_new() {
            Ok(true) => self.take_new(&new),
            other => other,
        };
        let bytes = std::fs::metadata(&new).map_or(0, |file| file.len());
        if std::fs::remove_file(&new).is_ok() {
            self.shared.state.faults.free_space(bytes);
        }
        compacted
    }

    /// Puts the new file in place of the old one, unless a snapshot reads that.
    fn take_new(&self, new: &Path) -> Result<bool> {
        let folder = &self.shared.folder;
        let mut engine = self.shared.engine.write().unwrap_or_else(PoisonError::into_inner);
        if Arc::strong_count(&self.shared.snapshots) > 1 {
            return Ok(false);
        }
        if let Engine::Open(opened) = &*engine {
            // It would be put in the place of somebody else's.
            opened.file.check_in_place()?;
        }
        let old = folder.join(FILE);
        let bytes = std::fs::metadata(&old).map_or(0, |file| file.len());
        File::open(new)
            .and_then(|file| put_in_place(&file, new, &old))
            .map_err(|e| super::unusable(folder, &e))?;
        self.shared.state.faults.free_space(bytes);
        *engine = Engine::Ended(Error::unavailable("it is being reopened; try again"));
        match open_database(folder, self.shared.cache_bytes, &self.shared.state, false) {
            Ok(opened) => {
                *engine = Engine::Open(Box::new(opened));
                Ok(true)
            }
            Err(error) => {
                *engine = Engine::Ended(error.clone());
                drop(engine);
                self.fail(&error.to_string());
                Err(error)
            }
        }
    }

    /// Answers whether all was copied.
    fn copy_to_new(&self) -> Result<bool> {
        let folder = &self.shared.folder;
        if Arc::strong_count(&self.shared.snapshots) > 1 {
            return Ok(false);
        }
        let engine = self.shared.engine.read().unwrap_or_else(PoisonError::into_inner);
        let old = match &*engine {
            Engine::Open(opened) => &opened.database,
            Engine::Ended(error) => return Err(error.clone()),
        };
        // What goes wrong there says nothing about the file that is in use.
        let shared = &self.shared.state;
        let state = Arc::new(DiskState::new(Arc::clone(&shared.faults), Arc::clone(&shared.unclosed)));
        let failed = |e: redb::Error| match e {
            redb::Error::Corrupted(reason) => damaged_file(&folder.join(FILE), &reason),
            redb::Error::Io(error) if is_full(&error) => super::unusable(folder, &error),
            other => Error::unavailable(format!("the store was not compacted: {other}")),
        };
        let new = open_file(&folder.join(COMPACTED), COMPACT_CACHE_BYTES, &state)?.database;
        let snapshot = old.begin_read().map_err(|e| failed(e.into()))?;
        for table in snapshot.list_tables().map_err(|e| failed(e.into()))? {
            let name = table.name().to_owned();
            let definition = Definition::new(&name);
            let from = snapshot.open_table(definition).map_err(|e| failed(e.into()))?;
            let mut entries = from.iter().map_err(|e| failed(e.into()))?.peekable();
            while entries.peek().is_some() {
                let transaction = new.begin_write().map_err(|e| failed(e.into()))?;
                {
                    let mut to = transaction.open_table(definition).map_err(|e| failed(e.into()))?;
                    // Rows that are put in one by one would leave the pages half empty.
                    let mut end =
                        to.upper_bound_mut(Bound::<&[u8]>::Unbounded).map_err(|e| failed(e.into()))?;
                    let (mut bytes, mut count) = (0, 0_usize);
                    while bytes < GATHER_BYTES_MAX
                        && let Some(entry) = entries.next()
                    {
                        let (key, value) = entry.map_err(|e| failed(e.into()))?;
                        bytes += key.value().len() + value.value().len();
                        end.insert_before(key.value(), value.value()).map_err(|e| failed(e.into()))?;
                        count += 1;
                        if count.is_multiple_of(256) && !self.waiting.is_empty() {
                            return Ok(false);
                        }
                    }
                    end.close().map_err(|e| failed(e.into()))?;
                }
                transaction.commit().map_err(|e| failed(e.into()))?;
            }
        }
        new.close().map_err(|e| failed(e.into()))?;
        Ok(true)
    }

    /// An empty commit that says which room is free, so that it need not be found out after an unclean end.
    fn settle(&self) {
        let engine = self.shared.engine.read().unwrap_or_else(PoisonError::into_inner);
        let Engine::Open(opened) = &*engine else { return };
        let settled = opened.database.begin_write().map_err(redb::Error::from).and_then(|mut transaction| {
            transaction.set_quick_repair(true);
            Ok(transaction.commit()?)
        });
        if let Err(error) = settled {
            // The next batch finds out whether the disk is full or broken, and acts on it.
            tracing::debug!(%error, "the store could not be left settled");
        }
    }

    fn disk_full(&self, reason: &str) -> Error {
        Error::Disk { folder: self.shared.folder.display().to_string(), reason: reason.to_owned() }
    }

    fn transact(&self, gathered: &[Work]) -> Result<Vec<Result<()>>, Failure> {
        let engine = self.shared.engine.read().unwrap_or_else(PoisonError::into_inner);
        let database = match &*engine {
            Engine::Open(opened) => &opened.database,
            Engine::Ended(error) => return Ok(gathered.iter().map(|_| Err(error.clone())).collect()),
        };
        let transaction = database.begin_write()?;
        let mut tables = OpenTables { transaction: &transaction, open: HashMap::new() };
        let mut verdicts = Vec::with_capacity(gathered.len());
        let mut changed = false;
        for work in gathered {
            if let Some(stamp) = &work.stamp {
                meta::put_stamp(&transaction, stamp)?;
                changed = true;
            }
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
            if gathered.iter().any(|work| work.stamp.is_none()) {
                self.shared.commits.fetch_add(1, Ordering::Relaxed);
            }
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
            Failure::Damaged(error) => return error,
        };
        if let (Some(reason), None, None) = (&health.full, &health.sync, &health.broken) {
            self.short = true;
            self.tell_no_room();
            self.reserve.release(&self.shared.state);
            return match self.reopen() {
                Ok(()) => self.disk_full(reason),
                Err(error) => {
                    self.end(&error);
                    self.fail(&error.to_string());
                    error
                }
            };
        }
        if let (redb::Error::Corrupted(_), None, None) = (&error, &health.sync, &health.broken) {
            let damaged = damaged_file(&self.shared.folder.join(FILE), &error.to_string());
            tracing::error!(folder = %self.shared.folder.display(), error = %damaged, "the store stops: it is damaged");
            self.end(&damaged);
            self.fail(&damaged.to_string());
            return if committing {
                Error::OutcomeUnknown { what: "a write", reason: damaged.to_string() }
            } else {
                damaged
            };
        }
        let cause = health.sync.or(health.broken).unwrap_or_else(|| error.to_string());
        let reason = format!(
            "writing to '{}' failed: {cause}; check the disk, then restart",
            self.shared.folder.display()
        );
        tracing::error!(folder = %self.shared.folder.display(), %cause, "the store stops: its disk failed");
        self.end(&Error::unavailable(reason.clone()));
        self.fail(&reason);
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
        self.shared.state.forget_unsynced();
        let opened = open_database(&self.shared.folder, self.shared.cache_bytes, &self.shared.state, false)?;
        *engine = Engine::Open(Box::new(opened));
        Ok(())
    }

    /// Tells that the store will not work again in this process.
    fn fail(&self, reason: &str) {
        self.shared.failure.send_replace(Some(reason.to_owned()));
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
    fn table(&mut self, name: &TableName) -> Result<&mut OpenTable<'txn>, Failure> {
        if !self.open.contains_key(name) {
            let table =
                self.transaction.open_table(Definition::new(name)).map_err(|e| at_row(name, b"", e))?;
            self.open.insert(name.clone(), table);
        }
        Ok(self.open.get_mut(name).expect("it was opened above"))
    }

    fn judge(&mut self, expects: &[Expect]) -> Result<Result<()>, Failure> {
        for Expect { table, key, is } in expects {
            let is_so = {
                let value = self.table(table)?.get(&key[..]).map_err(|e| at_row(table, key, e))?;
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

    fn apply(&mut self, ops: &[Op]) -> Result<(), Failure> {
        for op in ops {
            match op {
                Op::Put { table, key, value } => {
                    self.table(table)?.insert(&key[..], &value[..]).map_err(|e| at_row(table, key, e))?;
                }
                Op::Delete { table, key } => {
                    self.table(table)?.remove(&key[..]).map_err(|e| at_row(table, key, e))?;
                }
                Op::DeletePrefix { table, prefix } => {
                    let range = KeyRange::prefix(prefix);
                    self.table(table)?
                        .retain_in::<&[u8], _>(bounds(&range), |_, _| false)
                        .map_err(|e| at_row(table, prefix, e))?;
                }
            }
        }
        Ok(())
    }
}
