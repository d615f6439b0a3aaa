//! Looking after a folder: whether all in it is sound, how much room it takes, and giving back what nothing uses.
//!
//! All of it is work for idle times, and what it found stands in a file of the folder, for people and other processes.
//! A check goes step by step, so that it can be slowed down, stopped, and gone on with from where it was: first the blocks
//! of the tables' file as they are on the disk, then every row, by name, then every content.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;

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
/// Bytes checked per idle tick.
const CHECK_BYTES: u64 = 4 * 1024 * 1024;
/// How long after a whole check the next begins, in seconds.
const CHECK_SECONDS: u64 = 24 * 3600;
/// Ticks after which it is put down how far a check is.
const KEEP_TICKS: u64 = 60;
/// Damage named in a report at most.
const DAMAGE_MAX: usize = 100;

/// Where a check is, kept over restarts, and when the last one ended.
const KEPT: &str = "upkeep";
const PLACE: &str = "place";
const ENDED: &str = "ended";

/// Looks after a folder. Cheap to clone.
#[derive(Clone)]
pub struct Upkeep {
    tables: Arc<EmbeddedTables>,
    blobs: FileBlobs,
    report: Arc<Mutex<Report>>,
}

/// What is known of a folder. It stands in a file of the folder, see [`Report::read`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Report {
    /// Size of the tables' file, in bytes.
    pub store_bytes: u64,
    /// What of it is in use, as of the last look.
    pub used_bytes: u64,
    /// When the last whole check ended, in seconds since 1970; 0 for never.
    pub checked_at: u64,
    /// Whole checks since the process began.
    pub checks: u64,
    /// What the checks found damaged, the first of it by name.
    pub damage: Vec<String>,
}

impl Report {
    /// What the process that works in a folder has put down there last, if anything.
    #[must_use]
    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(folder.join("upkeep.json")).ok()?).ok()
    }

    /// Asks the process that works in a folder to check all of it now; the report's `checked_at` tells when it has.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn ask_to_check(folder: &Path) -> std::io::Result<()> {
        std::fs::write(asked(folder), "")
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
    pub(super) fn new(tables: Arc<EmbeddedTables>, blobs: FileBlobs) -> Self {
        Self { tables, blobs, report: Arc::default() }
    }

    /// What is known of the folder.
    #[must_use]
    pub fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, change: impl FnOnce(&mut Report)) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        let was = report.clone();
        change(&mut report);
        if *report == was {
            return;
        }
        let (path, new) = ("upkeep.json", "upkeep.json.new");
        let folder = self.tables.folder();
        let written = serde_json::to_vec(&*report).map_err(std::io::Error::other).and_then(|text| {
            std::fs::write(folder.join(new), text)?;
            std::fs::rename(folder.join(new), folder.join(path))
        });
        if let Err(error) = written {
            tracing::debug!(%error, "the report on the data folder could not be written");
        }
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
            // What a check puts down is no reason to look again.
            seen = self.tables.batches().max(seen);
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
        if bytes <= used + used / 2 + SLACK_BYTES {
            return Ok(true);
        }
        if !self.tables.compact().await? {
            return Ok(false);
        }
        let (after, used) = room().await?;
        tracing::info!(before = bytes, after, "the store's file was written anew without what is not used");
        self.note(|report| (report.store_bytes, report.used_bytes) = (after, used));
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
            check.take(self, step);
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
    ended: u64,
    ticks: u64,
    /// Somebody waits for it.
    is_asked: bool,
}

impl Check {
    async fn resume(upkeep: &Upkeep) -> Self {
        let found = upkeep.tables.read(vec![Read::get(KEPT, PLACE), Read::get(KEPT, ENDED)]).await;
        let mut found = found.unwrap_or_default().into_iter().map(Found::into_value);
        let mut text = || found.next().flatten().map(|row| String::from_utf8_lossy(&row).into_owned());
        let place = text().and_then(|text| text.parse().ok());
        let ended = text().and_then(|text| text.parse().ok()).unwrap_or_default();
        upkeep.note(|report| report.checked_at = ended);
        Self { place, ended, ..Self::default() }
    }

    /// What belongs to one tick: a little when idle, all that a tick can take when somebody waits.
    async fn step(&mut self, upkeep: &Upkeep, is_idle: bool) {
        if std::fs::remove_file(asked(upkeep.tables.folder())).is_ok() {
            *self = Self { place: Some(Place::BEGIN), is_asked: true, ended: self.ended, ..Self::default() };
        }
        if self.place.is_none() && now_seconds() >= self.ended.saturating_add(CHECK_SECONDS) {
            self.place = Some(Place::BEGIN);
        }
        if !is_idle && !self.is_asked {
            return;
        }
        let until = tokio::time::Instant::now() + TICK / 2;
        while let Some(place) = self.place.clone() {
            match upkeep.check(place, CHECK_BYTES).await {
                Ok(step) => self.take(upkeep, step),
                Err(error) => {
                    tracing::warn!(%error, "the check of the data folder is put off");
                    return;
                }
            }
            if self.place.is_none() {
                self.keep(upkeep).await;
            }
            if !self.is_asked || tokio::time::Instant::now() > until {
                break;
            }
        }
        self.ticks += 1;
        if self.place.is_some() && self.ticks.is_multiple_of(KEEP_TICKS) {
            self.keep(upkeep).await;
        }
    }

    fn take(&mut self, upkeep: &Upkeep, step: Step) {
        for damage in &step.damage {
            tracing::error!(%damage, "the check of the data folder found damage");
            if self.found.len() < DAMAGE_MAX {
                self.found.push(damage.to_string());
            }
        }
        self.place = step.next;
        if self.place.is_none() {
            (self.ended, self.is_asked) = (now_seconds(), false);
            let damage = std::mem::take(&mut self.found);
            upkeep.note(|report| {
                (report.checked_at, report.damage) = (self.ended, damage);
                report.checks += 1;
            });
        } else if !step.damage.is_empty() {
            upkeep.note(|report| report.damage.clone_from(&self.found));
        }
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
