//! The data folder: whether what is in it belongs together, before anything is served from it.
//!
//! A mark beside the store ([`mark`]) says what the folder should hold. Store and log carry the folder's id and a count of its
//! starts and stops, its *generation*, which also goes up now and then while there is work. So a part that is missing, comes
//! from another folder, or is an older copy beside newer ones is told, and the start is refused by name with what can be done.
//!
//! **Invariant: no start removes anything because something is missing.** What is on record as left over goes to the trash
//! for a day, and only after the whole folder has been looked at. The ways out (`--init-empty`, `--accept-loss`) are asked for
//! by a person; they set aside, and do not remove either.
//!
//! # Flow
//! [`Folder::look`] and [`Folder::begin`] before anything is opened, [`Folder::admit_opened`] after the store is, [`Folder::admit`] after the log is, [`Folder::pulse`] while they run,
//! [`Folder::close`] at the end. Each change of generation is announced in the mark first, so one that was cut short is
//! told from a part that is behind.

mod aside;
mod contents;
mod damaged;
mod in_place;
mod kinds;
mod mark;
mod missing;
mod restored;
mod stopped;

use std::fmt;
use std::fs;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use rustix::fs::OFlags;
use sluice_bus::embedded::{Config, Embedded as Broker, Stamp as LogStamp};
use sluice_library::OWNERS;
use sluice_store::{BlobAudit, Embedded as Store, FolderLock, Options, Stamp, Untouched};
use tokio::sync::Mutex;

pub(crate) use self::contents::Room;
use self::contents::{Contents, holds_something};
pub(crate) use self::damaged::Damaged;
pub(crate) use self::kinds::{in_place_of_folder, is_lost, open_file, read_file};
use self::mark::{BrokerPart, Found, Mark, StorePart};
use self::missing::{check_marked, going_on};
pub(crate) use self::missing::{holds_key, unreadable, wrong_key};
pub(crate) use self::restored::{FilledFrom, Taken, check_formats};
pub(crate) use self::stopped::{Stopped, verify};
use crate::exit::{Code, Told};

/// How often the generation goes up while there is work.
pub(crate) const PULSE: Duration = Duration::from_secs(10);
/// Formats of what services keep in the store.
const SERVICE_FORMATS: &[(&str, u32)] =
    &[("service.config", 1), ("service.iam", 1), ("service.library", 1), ("service.processors", 1)];
/// What everybody may read of a part that is not where its path says; the log has the path.
pub(crate) const NOT_IN_PLACE: &str = "a part of the data folder was removed, moved or replaced while it is in use, so nothing \
     more is kept; run 'sluice backup DIR' before the process ends; its log names the part";
/// The type of a refusal, by which it is told from other failures.
const REFUSED: &str = "folder-refused";
/// The same of a folder that was served from, whatever its mark says.
const SERVED: &str = "served-folder-refused";

const STORE_FILE: &str = "store.redb";
pub(crate) const BLOBS: &str = "blobs";
pub(crate) const BROKER: &str = "broker";
pub(crate) const ADMIN_KEY: &str = "admin.key";
/// Held back for when the disk is full.
const RESERVE: &str = "reserve";
const TRASH: &str = "trash";
const UPKEEP: &str = "upkeep.json";
/// Room for a mark on most file systems.
const MARK_BYTES_MAX: u64 = 64 << 10;
/// All that a process puts into its data folder, but for the lock and models that were fetched.
const PARTS: &[&str] = &[mark::FILE, STORE_FILE, BLOBS, BROKER, ADMIN_KEY, RESERVE, TRASH, UPKEEP];
/// What others should not be able to read.
const PRIVATE: &[&str] = &["", STORE_FILE, BLOBS, BROKER, ADMIN_KEY, mark::FILE];

/// What a start may be told to do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Loss {
    /// The folder's mark, `sluice.json`: it is made anew from what the other parts say
    Mark,
    /// The broker's log: messages that waited are gone, or those of an older log come again
    Broker,
    /// Files of content: reading a document whose file is lost fails
    Blobs,
    /// Content in the object store, likewise
    Objects,
    /// The admin key: a new one is made
    AdminKey,
    /// What a copy may lack that was made while the folder was in use
    Copy,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// What a process wants of its data folder.
#[derive(Debug, Clone, Default)]
pub(crate) struct Want {
    /// It runs the embedded broker.
    pub(crate) broker: bool,
    /// It needs the admin key.
    pub(crate) admin_key: bool,
    /// Losses that were accepted.
    pub(crate) accept: Vec<Loss>,
}

/// How the folder was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// Nothing was in it, or its first start was not over.
    Fresh,
    /// From before there were marks.
    Unmarked,
    /// The mark is lost, which was accepted; the store says which folder it is.
    MarkLost,
    Marked,
}

/// A data folder that this process holds.
pub(crate) struct Folder {
    path: PathBuf,
    /// Nothing where it is only looked at.
    lock: Option<FolderLock>,
    want: Want,
    origin: Origin,
    /// What waited in the log, or a part of it, is lost, and that was accepted.
    is_log_lost: AtomicBool,
    state: Mutex<State>,
}

/// What is said at the end of a process whose disk failed.
pub(crate) fn disk_failed(reason: &str) -> Told {
    Told::new(Code::Failed, format!("the disk failed, and nothing more can be kept: {reason}"))
        .next("check the disk, then start again: what was acknowledged is there")
}

/// Whether something failed for want of room.
fn is_full(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.is_some_and(|io| matches!(io.kind(), StorageFull | QuotaExceeded | FileTooLarge))
            || matches!(cause.downcast_ref(), Some(sluice_store::Error::Disk { .. }))
            || matches!(cause.downcast_ref(), Some(sluice_bus::Error::Disk { .. }))
    })
}

/// Makes a file shorter by so many bytes, as far as it has them; answers whether it had any.
fn give_up(reserve: &Path, bytes: u64) -> std::io::Result<bool> {
    let held = fs::metadata(reserve)?.len();
    let no_link = OFlags::NOFOLLOW.bits().cast_signed();
    let file = fs::OpenOptions::new().write(true).custom_flags(no_link).open(reserve)?;
    file.set_len(held.saturating_sub(bytes))?;
    Ok(held > 0)
}

struct State {
    mark: Mark,
    /// Where the parts really are.
    store_at: u64,
    broker_at: u64,
    /// What had been written at the last pulse.
    written: (u64, (u64, u64)),
}

/// What a refusal begins with.
fn refusing(path: &Path) -> String {
    format!("the data folder '{}' is not used as it is, and nothing in it was removed: ", path.display())
}

/// A refusal: what is wrong, and the ways out.
fn refused(path: &Path, what: impl fmt::Display, accept: Option<Loss>) -> Told {
    let message = format!("{}{what}", refusing(path));
    let mut next = "bring back what is missing, or restore a backup into another folder (sluice restore BACKUP --data NEW)"
        .to_owned();
    if let Some(loss) = accept {
        next.push_str(&format!("; to go on without: --accept-loss {loss}"));
    }
    next.push_str("; to begin empty: --init-empty, which sets aside what is there");
    let mut told = Told::new(Code::Failed, message).next(next);
    told.kind = REFUSED.to_owned();
    told
}

/// Whether a start failed because of what is in the folder, not because of the machine.
pub(crate) fn is_refusal(error: &anyhow::Error) -> bool {
    is_told(error, REFUSED) || is_told(error, SERVED)
}

fn is_told(error: &anyhow::Error, kind: &str) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<Told>().is_some_and(|told| told.kind == kind))
}

impl Folder {
    /// Looks at a folder before anything in it is opened. Nothing is changed.
    pub(crate) fn look(path: &Path, lock: Option<FolderLock>, want: Want) -> anyhow::Result<Self> {
        let accepts = |loss| want.accept.contains(&loss);
        let refuse = |what: String, accept| Err(refused(path, what, accept).into());
        let there = Contents::of(path)?;
        if lock.is_some() {
            kinds::check_writable(path, &want)?;
        }
        let mut origin = Origin::Marked;
        let mark = match mark::read(path) {
            // One from before the first start was over, beside a store that says otherwise.
            Found::Mark(mark) if mark.is_fresh && there.store && accepts(Loss::Mark) => {
                let what = "is from before the first start was over";
                going_on(format!("{} {what}", mark::FILE), Loss::Mark);
                origin = Origin::MarkLost;
                Mark::new(String::new())
            }
            Found::Mark(mark) => *mark,
            Found::Unusable(why) if !accepts(Loss::Mark) || why.contains("newer") => {
                return refuse(
                    format!("{}: {why}", mark::FILE),
                    (!why.contains("newer")).then_some(Loss::Mark),
                );
            }
            Found::Unusable(why) => {
                going_on(format!("{}: {why}", mark::FILE), Loss::Mark);
                origin = Origin::MarkLost;
                Mark::new(String::new())
            }
            Found::Nothing => {
                origin = if there.is_empty() { Origin::Fresh } else { Origin::Unmarked };
                Mark::new(uuid::Uuid::new_v4().to_string())
            }
        };
        if let Some(what) = mark.unfinished() {
            return refuse(what.to_owned(), None);
        }
        if mark.is_fresh {
            origin = Origin::Fresh;
        }
        if origin != Origin::Fresh && !there.store {
            let rest = there.names(&[BLOBS, BROKER, ADMIN_KEY]);
            let beside = if rest.is_empty() { String::new() } else { format!(", beside {rest}") };
            return refuse(
                format!(
                    "{STORE_FILE} is missing or empty{beside}; the documents, config and records that it held are \
                lost with it"
                ),
                None,
            );
        }
        // A copy need not hold the messages of what its store says.
        let mut is_log_lost = origin == Origin::Marked && !mark.is_closed && mark.is_copied(path);
        if origin == Origin::Marked {
            check_marked(path, &mark, &there, &want)?;
        } else if origin == Origin::Unmarked && want.broker && !there.broker {
            let what = format!("it holds a store, but no log of the embedded broker ({BROKER}/log-…)");
            if !accepts(Loss::Broker) {
                let how = "if it was used with another broker so far, that is as it should be";
                return refuse(format!("{what}; {how}"), Some(Loss::Broker));
            }
            going_on(format!("the data folder '{}': {what}", path.display()), Loss::Broker);
            is_log_lost = true;
        }
        let is_log_lost = AtomicBool::new(is_log_lost);
        let (store_at, broker_at) =
            (mark.store.map_or(0, |part| part.generation), mark.broker.map_or(0, |part| part.generation));
        let state = State { mark, store_at, broker_at, written: (0, (0, 0)) };
        Ok(Self { path: path.to_owned(), lock, want, origin, is_log_lost, state: Mutex::new(state) })
    }

    /// Marks a folder that nothing is in yet, before anything is made in it: a first start that is cut short is told by it.
    pub(crate) async fn begin(&self) -> anyhow::Result<()> {
        let mut state = self.state.lock().await;
        if !self.is_fresh() || state.mark.is_fresh {
            return Ok(());
        }
        state.mark.is_fresh = true;
        self.write(&mut state)
    }

    /// Whether nothing is in it yet.
    pub(crate) fn is_fresh(&self) -> bool {
        self.origin == Origin::Fresh
    }

    /// How the store is opened.
    pub(crate) fn open_store(&self) -> anyhow::Result<Store> {
        let options = Options {
            create: self.is_fresh(),
            service_formats: SERVICE_FORMATS,
            owners: Some(OWNERS),
            ..Options::default()
        };
        let lock = self.lock.clone().context("a folder that is looked at is not opened to be changed")?;
        Store::open_held(&self.path, lock, &options).map_err(|error| self.store_error(error))
    }

    /// How the store is opened where nothing is to be changed.
    fn look_at_store(&self, held: Untouched) -> anyhow::Result<Store> {
        let options =
            Options { service_formats: SERVICE_FORMATS, owners: Some(OWNERS), ..Options::default() };
        Store::look(&self.path, held, &options).map_err(|error| self.store_error(error))
    }

    fn store_error(&self, error: sluice_store::Error) -> anyhow::Error {
        match error {
            sluice_store::Error::Damaged { .. } | sluice_store::Error::Refused { .. } => {
                let copied = "; a copy that is made while the folder is in use cannot be opened: make it with 'sluice backup'; what can \
                              be read of a damaged one is copied by 'sluice salvage'";
                let hint = if matches!(error, sluice_store::Error::Damaged { .. }) { copied } else { "" };
                refused(&self.path, format!("{error}{hint}"), None).into()
            }
            other => other.into(),
        }
    }

    /// How the embedded broker is opened.
    pub(crate) async fn broker_config(&self) -> Config {
        let state = self.state.lock().await;
        let part = state.mark.broker;
        let is_lost = self.accepts(Loss::Broker);
        // Whoever goes on without knowing where the log ended may cut what was promised.
        let is_end_unknown = is_lost || self.origin == Origin::MarkLost || self.origin == Origin::Unmarked;
        Config {
            set_aside: is_end_unknown.then(|| aside::place(&self.path).join(BROKER)),
            create: part.is_none() || self.origin != Origin::Marked || is_lost,
            is_looked_at: self.lock.is_none(),
            end: part.filter(|_| !is_lost).and_then(|part| part.end).map(Into::into),
            ..Config::in_dir(self.path.join(BROKER))
        }
    }

    /// Puts a log that cannot be opened aside, so that one can be begun anew.
    pub(crate) fn set_broker_aside(&self) -> anyhow::Result<PathBuf> {
        let aside = aside::move_parts(&self.path, &[BROKER])?;
        self.log_is_lost();
        Ok(aside)
    }

    /// What waited in the log, or a part of it, is lost.
    pub(crate) fn log_is_lost(&self) {
        self.is_log_lost.store(true, Ordering::Relaxed);
    }

    /// What a log that could not be opened means.
    pub(crate) fn broker_error(&self, error: sluice_bus::Error) -> anyhow::Error {
        match error {
            sluice_bus::Error::Log { .. } => refused(&self.path, error, Some(Loss::Broker)).into(),
            other => other.into(),
        }
    }

    /// Insists that the store belongs to this folder and is as new as the mark, before the log is opened.
    pub(crate) async fn admit_opened(&self, store: &Store) -> anyhow::Result<()> {
        let mut state = self.state.lock().await;
        self.admit_store(&mut state, store.stamp()?)
    }

    /// Insists that the log belongs to this folder and to the store, and that all content is there, then puts down that a start was made. On return
    /// it may be served from.
    pub(crate) async fn admit(&self, store: &Store, broker: Option<&Broker>) -> anyhow::Result<()> {
        let mut state = self.state.lock().await;
        let audit = self.check_rest(&mut state, store, broker).await?;
        if let Some(what) = self.wrong_key(store).await? {
            let aside = aside::move_parts(&self.path, &[ADMIN_KEY])?;
            tracing::warn!(aside = %aside.display(), "{what}; it is set aside, and a new one is made, as was asked for");
        }
        if self.origin != Origin::Marked && self.origin != Origin::Fresh {
            tracing::info!(folder = %self.path.display(), "the data folder is marked from now on");
        }
        if self.is_log_lost.load(Ordering::Relaxed) {
            // Before the folder counts on: from then on nothing else tells of it.
            sluice_library::log_lost(&*store.tables()).await?;
        }
        state.mark.is_fresh = self.is_fresh();
        self.advance(&mut state, store, broker).await?;
        store.sweep(&audit).await?;
        self.warn_if_open();
        Ok(())
    }

    /// Looks at log and content; nothing is changed.
    async fn check_rest(
        &self,
        state: &mut State,
        store: &Store,
        broker: Option<&Broker>,
    ) -> anyhow::Result<BlobAudit> {
        if let Some(broker) = broker {
            self.admit_broker(state, broker.stamp().as_ref())?;
        }
        if self.want.admin_key
            && !holds_something(&self.path.join(ADMIN_KEY))
            && !self.accepts(Loss::AdminKey)
            && sluice_iam::knows_admin_key(&*store.tables()).await?
        {
            return Err(self.refuse(format!("{ADMIN_KEY} is missing or empty"), Some(Loss::AdminKey)));
        }
        if let Some(what) = self.wrong_key(store).await?
            && !self.accepts(Loss::AdminKey)
        {
            return Err(self.refuse(what, Some(Loss::AdminKey)));
        }
        let audit = store.audit_blobs().await?;
        self.admit_blobs(store, &audit).await?;
        Ok(audit)
    }

    /// What is wrong with the key file, where there is one and this process needs it.
    async fn wrong_key(&self, store: &Store) -> anyhow::Result<Option<String>> {
        let file = self.path.join(ADMIN_KEY);
        if !self.want.admin_key || !file.exists() {
            return Ok(None);
        }
        wrong_key(&file, &*store.tables()).await
    }

    /// Whether there is a data folder.
    pub(crate) fn is_at(path: &Path) -> Result<bool, Told> {
        Ok(is_there(&path.join(mark::FILE))? || is_there(&path.join(STORE_FILE))?)
    }

    /// Insists that there is a data folder, before anything is made in what may be another's.
    pub(crate) fn insist(path: &Path) -> Result<(), Told> {
        crate::backup::refuse_backup(path)?;
        if Self::is_at(path)? {
            return Ok(());
        }
        let shown = path.display();
        let what = match path.is_dir() {
            true => format!("'{shown}' is no data folder: neither {} nor {STORE_FILE} is in it", mark::FILE),
            false => format!("there is no data folder '{shown}'"),
        };
        Err(Told::new(Code::NotFound, what).next("name it with --data DIR"))
    }

    /// Puts down what else there is once everything serves.
    pub(crate) async fn settle(&self, objects: Option<&str>) -> anyhow::Result<()> {
        let mut state = self.state.lock().await;
        let has_key = holds_something(&self.path.join(ADMIN_KEY));
        let objects = objects.map(str::to_owned).or_else(|| state.mark.objects.clone());
        if has_key == state.mark.has_admin_key && objects == state.mark.objects {
            return Ok(());
        }
        state.mark.has_admin_key = has_key;
        state.mark.objects = objects;
        self.write(&mut state)
    }

    /// Id of the folder.
    pub(crate) async fn id(&self) -> String {
        self.state.lock().await.mark.folder.clone()
    }

    /// Digest of the backup that it was restored from, if it was.
    pub(crate) async fn restored_from(&self) -> Option<String> {
        self.state.lock().await.mark.restored_from.clone()
    }

    /// Whether a loss was accepted.
    pub(crate) fn accepts(&self, loss: Loss) -> bool {
        self.want.accept.contains(&loss)
    }

    /// Counts on, if something was written since the last time: what is copied now is older from then on.
    pub(crate) async fn pulse(&self, store: &Store, broker: Option<&Broker>) -> anyhow::Result<()> {
        let mut state = self.state.lock().await;
        // Who sees that nothing is taken sends nothing by which it would be found out that there is room again.
        store.look_for_room();
        let written = (store.commits(), broker.map_or((0, 0), Broker::log_position));
        if written == state.written {
            if let Some(broker) = broker.filter(|broker| broker.pressure().disk_full)
                && let Some(stamp) = broker.stamp()
            {
                // It looks before it writes; what is written is there already.
                broker.set_stamp(&stamp).await?;
                state.written.1 = broker.log_position();
            }
            return Ok(());
        }
        // As when it advances: one that stayed behind comes up first.
        let is_behind = broker.is_some() && state.broker_at < state.store_at;
        let next = if is_behind { state.store_at } else { state.store_at + 1 };
        self.stamp(&mut state, next, store, broker).await?;
        state.written = (store.commits(), broker.map_or((0, 0), Broker::log_position));
        Ok(())
    }

    /// Closes store and broker, and puts down where each ended. Whatever fails leaves the folder as a crash would.
    ///
    /// # Errors
    /// If a part is not where its path says, so that what this process held is gone with it; if the disk failed, or has while
    /// it was closed. A full disk is no such failure.
    pub(crate) async fn close(&self, store: &Store, broker: Option<&Broker>) -> anyhow::Result<()> {
        let mut state = self.state.lock().await;
        let in_place = self.look_in_place(&mut state, store, broker).map_err(|error| in_place::gone(&error));
        let failed = || store.failure().borrow().clone().or_else(|| broker.and_then(Broker::failure));
        // After a failure nothing can be written any more.
        let can_write = in_place.is_ok() && failed().is_none();
        let advanced = if can_write { self.advance(&mut state, store, broker).await } else { Ok(()) };
        if let Some(broker) = broker {
            broker.shutdown().await;
        }
        store.close().await;
        in_place?;
        if let Some(reason) = failed() {
            return Err(disk_failed(&reason).into());
        }
        let closed = advanced.and_then(|()| self.put_down_ends(&mut state, broker));
        let Err(error) = closed else { return Ok(()) };
        if !is_full(&error) {
            return Err(disk_failed(&format!("{error:#}")).into());
        }
        tracing::warn!(error = format!("{error:#}"), "the data folder could not be closed in good order");
        Ok(())
    }

    /// Puts down where the parts ended that are closed.
    fn put_down_ends(&self, state: &mut State, broker: Option<&Broker>) -> anyhow::Result<()> {
        let end = broker.map(Broker::log_end);
        if let (Some(end), Some(part)) = (end, &mut state.mark.broker) {
            part.end = end.map(Into::into);
        }
        if let Some(part) = &mut state.mark.store {
            part.bytes = fs::metadata(self.path.join(STORE_FILE)).ok().map(|meta| meta.len());
        }
        state.mark.is_closed = end.is_none_or(|end| end.is_some());
        self.write(state)
    }

    fn refuse(&self, what: impl fmt::Display, accept: Option<Loss>) -> anyhow::Error {
        refused(&self.path, what, accept).into()
    }

    fn admit_store(&self, state: &mut State, stamp: Option<Stamp>) -> anyhow::Result<()> {
        let own = state.mark.folder.clone();
        let of_other = |folder: &str| {
            format!(
                "{STORE_FILE} and {} do not belong together: one is of the data folder {folder}, the other of {own}",
                mark::FILE
            )
        };
        match (self.origin, stamp) {
            (Origin::Fresh | Origin::Unmarked, None) => {}
            (Origin::Fresh, Some(stamp))
                if stamp.folder == state.mark.folder && !state.mark.is_of_first_starts(stamp.generation) =>
            {
                let what = format!(
                    "{} is an older copy: it is from before the first start was over, and {STORE_FILE} had come to generation {}",
                    mark::FILE,
                    stamp.generation
                );
                let mut told = refused(&self.path, what, Some(Loss::Mark));
                told.kind = SERVED.to_owned();
                return Err(told.into());
            }
            (Origin::Fresh, Some(stamp)) if stamp.folder == state.mark.folder => {
                state.store_at = stamp.generation;
            }
            (Origin::Fresh, Some(stamp)) => return Err(self.refuse(of_other(&stamp.folder), None)),
            (Origin::Unmarked, Some(stamp)) if !self.accepts(Loss::Mark) => {
                let what = format!(
                    "{} is missing, and the store belongs to a folder that had one ({})",
                    mark::FILE,
                    stamp.folder
                );
                return Err(self.refuse(what, Some(Loss::Mark)));
            }
            (Origin::Unmarked | Origin::MarkLost, Some(stamp)) => {
                if self.origin == Origin::Unmarked {
                    going_on(format!("{} is missing", mark::FILE), Loss::Mark);
                }
                state.mark.folder = stamp.folder;
                state.store_at = stamp.generation;
                state.mark.generation = stamp.generation;
            }
            (Origin::MarkLost, None) => {
                return Err(self.refuse(
                    format!("{STORE_FILE} does not say which folder it belongs to: it is an older copy, or another one"),
                    None,
                ));
            }
            (Origin::Marked, stamp) => {
                let part = state.mark.store.unwrap_or(StorePart { generation: 0, before: None, bytes: None });
                let at = stamp.as_ref().map_or(0, |stamp| stamp.generation);
                if let Some(stamp) = stamp.filter(|stamp| stamp.folder != state.mark.folder) {
                    return Err(self.refuse(of_other(&stamp.folder), None));
                }
                let oldest = part.before.unwrap_or(part.generation);
                if at < oldest {
                    let what = format!(
                        "{STORE_FILE} is an older copy: it is of generation {at}, and the folder had come to {oldest}"
                    );
                    return Err(self.refuse(what, None));
                }
                if state.mark.is_closed && at > part.generation && self.accepts(Loss::Mark) {
                    going_on(format!("{} is an older copy", mark::FILE), Loss::Mark);
                    // What it says of the log is as old.
                    state.mark.is_closed = false;
                    state.mark.broker.iter_mut().for_each(|part| part.end = None);
                } else if state.mark.is_closed && at > part.generation {
                    let what = format!(
                        "{} is an older copy: it is of generation {}, and {STORE_FILE} had come to {at}",
                        mark::FILE,
                        part.generation
                    );
                    return Err(self.refuse(what, Some(Loss::Mark)));
                }
                state.store_at = at;
            }
        }
        Ok(())
    }

    fn admit_broker(&self, state: &mut State, stamp: Option<&LogStamp>) -> anyhow::Result<()> {
        let accepted = self.accepts(Loss::Broker);
        let is_store_behind = |at: u64| at > state.store_at + 1;
        let at = stamp.map_or(0, |stamp| stamp.generation);
        let known = state.mark.broker;
        let wrong = match stamp {
            Some(stamp) if stamp.folder != state.mark.folder => {
                Some(format!("the log in {BROKER} belongs to another data folder ({})", stamp.folder))
            }
            None if known.is_none() || self.origin == Origin::Fresh => None,
            _ if self.origin == Origin::MarkLost || (self.origin == Origin::Unmarked && at > 0) => {
                (at.abs_diff(state.store_at) > 1).then(|| self.apart(at, state.store_at))
            }
            _ => known.and_then(|part| {
                let oldest = part.before.unwrap_or(part.generation);
                if stamp.is_none() && oldest > 0 {
                    return Some(format!("the log in {BROKER} is missing; the messages that waited in it are lost with it"));
                }
                if at < oldest {
                    return Some(format!(
                        "the log in {BROKER} is an older copy: it is of generation {at}, and the folder had come to {oldest}"
                    ));
                }
                // While both are in use they go on together.
                let together = part.generation == state.mark.generation;
                (together && at.abs_diff(state.store_at) > 1).then(|| self.apart(at, state.store_at))
            }),
        };
        match wrong {
            // Nobody may do without what the store held.
            Some(what) if is_store_behind(at) => return Err(self.refuse(what, None)),
            Some(what) if !accepted => return Err(self.refuse(what, Some(Loss::Broker))),
            Some(what) => {
                going_on(what, Loss::Broker);
                self.log_is_lost();
            }
            None => {}
        }
        state.broker_at = at;
        Ok(())
    }

    fn apart(&self, broker_at: u64, store_at: u64) -> String {
        let (older, newer, at, other) = if broker_at < store_at {
            (BROKER, STORE_FILE, broker_at, store_at)
        } else {
            (STORE_FILE, BROKER, store_at, broker_at)
        };
        format!("{older} is an older copy: it is of generation {at}, and {newer} had come to {other}")
    }

    /// Goes to the next generation: said in the mark first, then in each part, then settled in the mark. From then on a
    /// first start is no longer one that was cut short.
    async fn advance(&self, state: &mut State, store: &Store, broker: Option<&Broker>) -> anyhow::Result<()> {
        // One that stayed behind comes up first, so that the two are never more than one apart.
        let level = state.store_at;
        self.stamp(state, level, store, broker).await?;
        let next = state.mark.generation.max(state.store_at).max(state.broker_at) + 1;
        state.mark.generation = next;
        state.mark.is_closed = false;
        state.mark.store = Some(StorePart { generation: next, before: Some(state.store_at), bytes: None });
        if broker.is_some() {
            state.mark.broker =
                Some(BrokerPart { generation: next, before: Some(state.broker_at), end: None });
        }
        self.write(state)?;
        self.stamp(state, next, store, broker).await?;
        if let Some(part) = &mut state.mark.store {
            part.before = None;
        }
        if let (Some(part), true) = (&mut state.mark.broker, broker.is_some()) {
            part.before = None;
        }
        state.mark.is_fresh = false;
        self.write(state)
    }

    async fn stamp(
        &self,
        state: &mut State,
        generation: u64,
        store: &Store,
        broker: Option<&Broker>,
    ) -> anyhow::Result<()> {
        let folder = state.mark.folder.clone();
        if state.store_at < generation {
            store.set_stamp(&Stamp { folder: folder.clone(), generation }).await?;
            state.store_at = generation;
        }
        if let Some(broker) = broker.filter(|_| state.broker_at < generation) {
            broker.set_stamp(&LogStamp { folder, generation }).await?;
            state.broker_at = generation;
        }
        Ok(())
    }

    /// Writes the mark, with a little of the room that is held back if there is no other.
    fn write(&self, state: &mut State) -> anyhow::Result<()> {
        let mut written = state.mark.write(&self.path);
        // More each time: some file systems give back less than a file got shorter.
        let mut bytes = MARK_BYTES_MAX;
        while written.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::StorageFull)
            && give_up(&self.path.join(RESERVE), bytes).unwrap_or(false)
        {
            bytes = bytes.saturating_mul(4);
            written = state.mark.write(&self.path);
        }
        written.with_context(|| {
            format!("{} cannot be written; check the disk", self.path.join(mark::FILE).display())
        })
    }

    fn warn_if_open(&self) {
        let is_open = |name: &&&str| {
            let path = if name.is_empty() { self.path.clone() } else { self.path.join(name) };
            fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0)
        };
        let open: Vec<&str> =
            PRIVATE.iter().filter(is_open).map(|name| if name.is_empty() { "." } else { *name }).collect();
        if !open.is_empty() {
            tracing::warn!(
                "others on this machine may read {} in the data folder; run: chmod -R go= '{}'",
                open.join(", "),
                self.path.display()
            );
        }
    }
}

/// Whether something is in a folder. What this user may not see is not taken for missing.
pub(crate) fn is_there(part: &Path) -> Result<bool, Told> {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    match fs::symlink_metadata(part) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => Ok(false),
        Err(error) => {
            let what = contents::unusable(part.parent().unwrap_or(part), "looked into");
            Err(Told::new(Code::Failed, format!("{what} ({error})"))
                .next("run this as the user that runs the system, or give the folder to this one (chown)"))
        }
    }
}

/// Whether the first start of a folder, which was refused, had been cut short: nothing in it was acknowledged to anybody.
pub(crate) fn was_never_served(path: &Path, refusal: &anyhow::Error) -> bool {
    !is_told(refusal, SERVED) && matches!(mark::read(path), Found::Mark(mark) if mark.is_fresh)
}

/// Moves all that is in a folder into one inside it, so that it can be begun anew; where that is.
pub(crate) fn set_aside(path: &Path, _held: &FolderLock) -> anyhow::Result<PathBuf> {
    aside::move_parts(path, PARTS)
}

/// What is made from now on is for the owner of this process alone.
pub(crate) fn keep_private() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}
