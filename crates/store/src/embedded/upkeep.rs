//! Looking after a folder: whether all in it is sound, how much room it takes, and giving back what nothing uses.
//!
//! All of it is work for idle times, and what it found stands in a file of the folder, for people and other processes.
//! A check goes step by step, so that it can be slowed down, stopped, and gone on with from where it was: first the blocks
//! of the tables' file as they are on the disk, then every row, by name, then every content.

mod owners;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior};

pub use self::owners::{Owner, Owners};
use super::sealed::BLOCK_BYTES;
use super::tables::EmbeddedTables;
use crate::blobs::FileBlobs;
use crate::keys::blocking;
use crate::{Batch, Error, Found, KeyRange, Read, Result, Rows, Tables as _};

/// Rows looked at in one step.
const STEP_ROWS: usize = 1000;

/// How often it is looked whether the store is idle.
const TICK: Duration = Duration::from_secs(1);
/// Idle ticks before the file is looked at for room to give back.
const COMPACT_TICKS: u64 = 5;
/// Room that is not worth a compaction, in bytes.
const SLACK_BYTES: u64 = 2 * 1024 * 1024;
/// What a file written anew has at most of what is in use, in percent: a power of two of pages for a value, and of those for
/// the file.
const TIGHT_PERCENT_MAX: u64 = 300;
/// Bytes checked per idle tick.
const CHECK_BYTES: u64 = 4 * 1024 * 1024;
/// How long after a whole check the next begins, in seconds.
const CHECK_SECONDS: u64 = 24 * 3600;
/// Ticks after which it is put down how far a check is.
const KEEP_TICKS: u64 = 60;
/// Damage named in a report at most.
const DAMAGE_MAX: usize = 100;
/// Damage that waits to be named at most.
const UNNAMED_MAX: usize = 1000;

/// Where a check is, kept over restarts, and when the last one ended.
const KEPT: &str = "upkeep";
const PLACE: &str = "place";
const ENDED: &str = "ended";

/// Looks after a folder. Cheap to clone.
#[derive(Clone)]
pub struct Upkeep {
    tables: Arc<EmbeddedTables>,
    blobs: FileBlobs,
    owners: Option<Owners>,
    known: Arc<Mutex<Known>>,
}

/// What is known, and whether the file of the folder says so too.
#[derive(Debug, Default)]
struct Known {
    report: Report,
    is_unsaved: bool,
}

/// What is known of a folder. It stands in a file of the folder, see [`Report::read`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Report {
    /// What the tables' file takes on the disk, in bytes.
    pub store_bytes: u64,
    /// What of it is in use, as of the last look.
    pub used_bytes: u64,
    /// What a file has, in percent of what is in use, when it has just been written anew; 0 where it never was. Values of more
    /// than a page take a power of two of them, so it may be far over 100.
    pub tight_percent: u64,
    /// What was in use when it was last written anew.
    pub anew_bytes: u64,
    /// When the last whole check ended, in seconds since 1970; 0 for never.
    pub checked_at: u64,
    /// Whole checks so far, over restarts.
    pub checks: u64,
    /// What the checks found damaged, the first of it by name. It stays until a whole check does not find it any more.
    pub damage: Vec<String>,
}

impl Report {
    /// What the process that works in a folder has put down there last, if anything.
    #[must_use]
    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(folder.join("upkeep.json")).ok()?).ok()
    }

    /// Puts it down, whole or not at all.
    fn write(&self, folder: &Path) -> std::io::Result<()> {
        let new = folder.join("upkeep.json.new");
        let text = serde_json::to_vec(self).map_err(std::io::Error::other)?;
        let written = create_private(&new)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .and_then(|()| std::fs::rename(&new, folder.join("upkeep.json")));
        if written.is_err() {
            // A part of it would only take room.
            let _ = std::fs::remove_file(&new);
        }
        written
    }

    /// Asks the process that works in a folder to check all of it now; the report's `checks` tells when it has.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn ask_to_check(folder: &Path) -> std::io::Result<()> {
        create_private(&asked(folder)).map(drop)
    }

    /// Whether it was asked and has not begun.
    #[must_use]
    pub fn is_asked(folder: &Path) -> bool {
        asked(folder).exists()
    }
}

fn asked(folder: &Path) -> PathBuf {
    folder.join("check.now")
}

/// Makes a file that nobody else may read.
fn create_private(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).custom_flags(super::lock::NO_LINK).open(path)
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl fmt::Debug for Upkeep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upkeep")
    }
}

/// Where a check is. As text it can be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// At a block of the tables' file.
    Block(u64),
    /// In a table, after a key; at its beginning for `None`.
    Row {
        /// The table.
        table: String,
        /// The key.
        after: Option<bytes::Bytes>,
    },
    /// In the content after this one, that far.
    Content {
        /// The id of the content before; empty at the beginning.
        after: String,
        /// Bytes of the next one that were looked at.
        offset: u64,
    },
}

impl Place {
    /// Where every check begins.
    pub const BEGIN: Self = Self::Block(0);
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(block) => write!(f, "block {block}"),
            Self::Row { table, after: None } => write!(f, "table {table}"),
            Self::Row { table, after: Some(key) } => {
                let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
                write!(f, "row {key} {table}")
            }
            Self::Content { after, offset } => write!(f, "content {offset} {after}"),
        }
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (kind, rest) = text.split_once(' ').ok_or(())?;
        match kind {
            "block" => rest.parse().map(Self::Block).map_err(drop),
            "table" => Ok(Self::Row { table: rest.to_owned(), after: None }),
            "row" => {
                let (key, table) = rest.split_once(' ').ok_or(())?;
                let byte = |at| u8::from_str_radix(key.get(at..at + 2).ok_or(())?, 16).map_err(drop);
                let key = (0..key.len()).step_by(2).map(byte).collect::<Result<Vec<_>, ()>>()?;
                Ok(Self::Row { table: table.to_owned(), after: Some(key.into()) })
            }
            "content" => {
                let (offset, after) = rest.split_once(' ').ok_or(())?;
                Ok(Self::Content { after: after.to_owned(), offset: offset.parse().map_err(drop)? })
            }
            _ => Err(()),
        }
    }
}

/// What one step of a check found.
#[derive(Debug, Default)]
pub struct Step {
    /// Where to go on; `None` when all was looked at.
    pub next: Option<Place>,
    /// Bytes read.
    pub bytes: u64,
    /// What is damaged.
    pub damage: Vec<Error>,
}

impl Upkeep {
    pub(super) fn new(tables: Arc<EmbeddedTables>, blobs: FileBlobs, owners: Option<Owners>) -> Self {
        let report = Report::read(tables.folder()).unwrap_or_default();
        Self { tables, blobs, owners, known: Arc::new(Mutex::new(Known { report, is_unsaved: false })) }
    }

    /// What is known of the folder.
    #[must_use]
    pub fn report(&self) -> Report {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).report.clone()
    }

    fn note(&self, change: impl FnOnce(&mut Report)) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let was = known.report.clone();
        change(&mut known.report);
        if known.report == was && !known.is_unsaved {
            return;
        }
        let written = known.report.write(self.tables.folder());
        let was_unsaved = std::mem::replace(&mut known.is_unsaved, written.is_err());
        if let (Err(error), false) = (written, was_unsaved) {
            tracing::warn!(%error, "the report on the data folder could not be written, which is tried again");
        }
    }

    /// Puts down that all was looked at, step by step with [`Upkeep::check`], and what is damaged.
    pub fn checked(&self, damage: &[String]) {
        let damage: Vec<String> = damage.iter().take(DAMAGE_MAX).cloned().collect();
        self.note(|report| {
            (report.checked_at, report.damage) = (now_seconds(), damage);
            report.checks += 1;
        });
    }

    /// Looks after the folder while it is idle, for ever: leaves it so that an unclean end costs little, gives back room,
    /// and checks everything once a day and when asked to.
    pub async fn tend(&self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut seen, mut idle_ticks, mut unsettled, mut changed) = (u64::MAX, 0_u64, true, true);
        let mut check = Check::resume(self).await;
        loop {
            ticks.tick().await;
            let batches = self.tables.batches();
            if batches != seen {
                (seen, idle_ticks, unsettled, changed) = (batches, 0, true, true);
            } else {
                idle_ticks += 1;
                if std::mem::take(&mut unsettled) && self.tables.settle().await.is_err() {
                    return;
                }
                if idle_ticks >= COMPACT_TICKS && changed {
                    match self.give_back().await {
                        Ok(is_done) => changed = !is_done,
                        Err(error) => {
                            changed = false;
                            tracing::warn!(%error, "the store's file was not made smaller");
                        }
                    }
                }
            }
            check.step(self, idle_ticks > 0).await;
            // What could not be written before is now, if it can be.
            self.note(|_| ());
            // What a check puts down is no reason to look again, but is settled as all else.
            let after = self.tables.batches();
            unsettled |= after > seen;
            seen = after.max(seen);
        }
    }

    /// Has the file written anew if much of it is not in use. Answers `false` if somebody wrote meanwhile.
    ///
    /// # Errors
    /// If the file cannot be read, or the disk has no room for a second one.
    pub async fn give_back(&self) -> Result<bool> {
        let room = || {
            let tables = Arc::clone(&self.tables);
            blocking(move || tables.room())
        };
        let (bytes, used) = room().await?;
        self.note(|report| (report.store_bytes, report.used_bytes) = (bytes, used));
        let report = self.report();
        // What writing it anew did not free the last time, it would not free this time.
        let tight = used.saturating_mul(report.tight_percent.max(100)) / 100;
        // It costs as much as is in use: a little is worth it once that has changed by a quarter.
        let has_changed = used.abs_diff(report.anew_bytes) >= used / 4;
        let allowed = tight / if has_changed { 5 } else { 2 };
        if bytes <= tight.saturating_add(allowed).saturating_add(SLACK_BYTES) {
            return Ok(true);
        }
        if !self.tables.compact().await? {
            return Ok(false);
        }
        let (after, used) = room().await?;
        tracing::info!(before = bytes, after, "the store's file was written anew without what is not used");
        self.note(|report| {
            (report.store_bytes, report.used_bytes, report.anew_bytes) = (after, used, used);
            let tight = after.saturating_sub(SLACK_BYTES).saturating_mul(100);
            report.tight_percent = tight.checked_div(used).unwrap_or(100).min(TIGHT_PERCENT_MAX);
        });
        Ok(true)
    }

    /// Looks at everything, and puts down what it found.
    ///
    /// # Errors
    /// As [`Upkeep::check`].
    pub async fn check_all(&self) -> Result<Report> {
        let mut check = Check { place: Some(Place::BEGIN), ..Check::default() };
        while let Some(place) = check.place.take() {
            let step = self.check(place, CHECK_BYTES).await?;
            check.take(self, step).await;
        }
        Ok(self.report())
    }

    /// Looks at about `bytes_max` bytes from a place on.
    ///
    /// # Errors
    /// If the disk cannot be read, or the store is closed. Damage is no error but part of the answer.
    pub async fn check(&self, from: Place, bytes_max: u64) -> Result<Step> {
        match from {
            Place::Block(block) => {
                let tables = Arc::clone(&self.tables);
                blocking(move || tables.check_blocks(block, bytes_max.div_ceil(BLOCK_BYTES))).await
            }
            Place::Row { table, after } => self.check_rows(table, after).await,
            Place::Content { after, offset } => self.blobs.check(after, offset, bytes_max).await,
        }
    }

    async fn check_rows(&self, table: String, after: Option<bytes::Bytes>) -> Result<Step> {
        let range = after.as_ref().map_or_else(KeyRange::all, |key| KeyRange::all().after(key));
        let mut step = Step::default();
        let read = self.tables.read(vec![Read::range(table.clone(), range, STEP_ROWS)]).await;
        let found = match read {
            Ok(mut found) => found.pop().map(Found::into_rows).unwrap_or_default(),
            // What comes after it in this table cannot be reached from here.
            Err(error @ Error::Damaged { .. }) => {
                step.damage.push(error);
                Rows::default()
            }
            Err(error) => return Err(error),
        };
        step.bytes = found.rows.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
        step.next = Some(match found.rows.last() {
            Some((last, _)) if found.more => Place::Row { table, after: Some(last.clone()) },
            _ => match self.tables.table_after(&table)? {
                Some(table) => Place::Row { table, after: None },
                None => Place::Content { after: String::new(), offset: 0 },
            },
        });
        Ok(step)
    }

    /// Damaged blocks of the tables' file that reads or checks met since the start.
    #[must_use]
    pub fn damaged_blocks(&self) -> usize {
        self.tables.damaged_blocks()
    }
}

/// A check under way.
#[derive(Debug, Default)]
struct Check {
    /// Where it is; `None` between two.
    place: Option<Place>,
    found: Vec<String>,
    /// What was found and not told yet, and until when it may wait for more: it is named together.
    unnamed: Vec<Error>,
    unnamed_until: Option<Instant>,
    ended: u64,
    ticks: u64,
    /// Somebody waits for it.
    is_asked: bool,
    /// Why it does not go on, as logged last; empty while it does.
    trouble: String,
}

impl Check {
    async fn resume(upkeep: &Upkeep) -> Self {
        let found = upkeep.tables.read(vec![Read::get(KEPT, PLACE), Read::get(KEPT, ENDED)]).await;
        let mut found = found.unwrap_or_default().into_iter().map(Found::into_value);
        let mut text = || found.next().flatten().map(|row| String::from_utf8_lossy(&row).into_owned());
        let place: Option<Place> = text().and_then(|text| text.parse().ok());
        let ended = text().and_then(|text| text.parse().ok()).unwrap_or_default();
        let report = upkeep.report();
        // A check that goes on does not see again what was found before the place where it is.
        let found = if place.is_some() { report.damage } else { Vec::new() };
        // When it ended says nothing where the report of what it found is gone.
        let ended = if report.checked_at == 0 { 0 } else { ended };
        Self { place, found, ended, ..Self::default() }
    }

    /// What belongs to one tick: [`CHECK_BYTES`] when idle, all that half a tick can take when somebody waits.
    async fn step(&mut self, upkeep: &Upkeep, is_idle: bool) {
        if std::fs::remove_file(asked(upkeep.tables.folder())).is_ok() {
            *self = Self { place: Some(Place::BEGIN), is_asked: true, ended: self.ended, ..Self::default() };
        }
        if self.place.is_none() && now_seconds() >= self.ended.saturating_add(CHECK_SECONDS) {
            self.place = Some(Place::BEGIN);
        }
        if !self.may_wait() {
            self.tell(upkeep).await;
        }
        if !is_idle && !self.is_asked {
            return;
        }
        let until = Instant::now() + TICK / 2;
        let mut bytes = 0;
        while let Some(place) = self.place.clone() {
            match upkeep.check(place, CHECK_BYTES).await {
                Ok(step) => {
                    self.trouble.clear();
                    bytes += step.bytes;
                    self.take(upkeep, step).await;
                }
                Err(error) => {
                    let trouble = error.to_string();
                    if self.trouble != trouble {
                        tracing::warn!(%error, "the check of the data folder is put off, and tried again");
                        self.trouble = trouble;
                    }
                    return;
                }
            }
            if self.place.is_none() {
                self.keep(upkeep).await;
            }
            let is_enough = bytes >= CHECK_BYTES && !self.is_asked;
            if is_enough || Instant::now() > until {
                break;
            }
        }
        self.ticks += 1;
        // What is found and not told is to be found again after a restart.
        if self.place.is_some() && self.ticks.is_multiple_of(KEEP_TICKS) && self.unnamed.is_empty() {
            self.keep(upkeep).await;
        }
    }

    async fn take(&mut self, upkeep: &Upkeep, step: Step) {
        self.unnamed.extend(step.damage);
        self.place = step.next;
        if self.place.is_none() || !self.may_wait() || self.unnamed.len() >= UNNAMED_MAX {
            self.tell(upkeep).await;
        }
        if self.place.is_none() {
            (self.ended, self.is_asked) = (now_seconds(), false);
            upkeep.checked(&std::mem::take(&mut self.found));
        }
    }

    /// Whether it is not yet time to name what was found.
    fn may_wait(&self) -> bool {
        self.unnamed_until.is_some_and(|until| Instant::now() < until)
    }

    /// Tells what was found.
    async fn tell(&mut self, upkeep: &Upkeep) {
        if self.unnamed.is_empty() {
            return;
        }
        let begun = Instant::now();
        for damage in upkeep.named(std::mem::take(&mut self.unnamed)).await {
            tracing::error!(%damage, "the check of the data folder found damage");
            add_new(&mut self.found, &damage.to_string());
        }
        // One percent of the time, however many rows there are.
        self.unnamed_until = Some(Instant::now() + begun.elapsed() * 100);
        // What earlier checks found stays until this one has looked at everything.
        upkeep.note(|report| self.found.iter().for_each(|one| add_new(&mut report.damage, one)));
    }

    async fn keep(&self, upkeep: &Upkeep) {
        let mut batch = Batch::new();
        match &self.place {
            Some(place) => batch.put(KEPT, PLACE, place.to_string()),
            None => batch.put(KEPT, ENDED, self.ended.to_string()).put(KEPT, PLACE, ""),
        };
        if let Err(error) = upkeep.tables.commit(batch).await {
            tracing::debug!(%error, "how far the check of the data folder is was not put down");
        }
    }
}

fn add_new(damage: &mut Vec<String>, one: &String) {
    if damage.len() < DAMAGE_MAX && !damage.contains(one) {
        damage.push(one.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_the_same_after_it_was_kept_as_text() {
        let key = Some(bytes::Bytes::from_static(b"\x00\xffa b"));
        for place in [
            Place::BEGIN,
            Place::Row { table: "a.b c".to_owned(), after: None },
            Place::Row { table: "a.b".to_owned(), after: key },
            Place::Content { after: String::new(), offset: 7 },
            Place::Content { after: "urn:a b".to_owned(), offset: 0 },
        ] {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        assert_eq!("row zz t".parse::<Place>(), Err(()));
    }
}
