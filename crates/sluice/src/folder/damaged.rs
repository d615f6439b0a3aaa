//! A damaged data folder of which is copied what can be read: what a start would refuse it for is told as lost.
//!
//! What is there and may not be read is not lost, and neither is what was put in the place of a part: both are refused.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use sluice_bus::embedded::{Embedded as Broker, LogEnd};
use sluice_store::{Embedded as Store, Stamp};
use tokio::sync::Mutex;

use super::contents::{Contents, logs};
use super::mark::{self, Found, Mark};
use super::{ADMIN_KEY, BROKER, Folder, Origin, State, Want, check_marked, holds_something, kinds, refusing};
use crate::exit::Told;

/// A folder that is held by whoever copies it.
pub(crate) struct Damaged {
    folder: Folder,
    /// Why its mark does not say what it should hold.
    is_unsaid: Option<String>,
    /// What it should hold; nothing is known where there is no mark.
    holds_log: Option<bool>,
    holds_key: Option<bool>,
    /// Whether it is known which folder the store is of, and how far that has come.
    is_store_known: bool,
}

impl Damaged {
    /// Looks at a folder before anything in it is opened.
    pub(crate) fn look(path: &Path) -> anyhow::Result<Self> {
        kinds::check_damaged(path).map_err(|error| match error.downcast::<Told>() {
            Ok(told) => {
                let next = "move it away, and put back what was there if you have it; then salvage again";
                told.next(next).into()
            }
            Err(error) => error,
        })?;
        let (mark, origin, mut is_unsaid) = match mark::read(path) {
            Found::Mark(mark) if mark.is_fresh => (Some(*mark), Origin::Fresh, None),
            Found::Mark(mark) => (Some(*mark), Origin::Marked, None),
            Found::Nothing => (None, Origin::MarkLost, Some("it is missing".to_owned())),
            Found::Unusable(why) => (None, Origin::MarkLost, Some(why)),
        };
        if let Some(unfinished) = mark.as_ref().and_then(Mark::unfinished) {
            is_unsaid = Some(unfinished.to_owned());
        }
        let holds_log = mark.as_ref().map(Mark::holds_log);
        let holds_key = mark.as_ref().map(|mark| mark.has_admin_key);
        // What was only being filled does not say what it was to hold.
        let is_marked = is_unsaid.is_none();
        let mark = mark.filter(|_| is_marked).unwrap_or_else(|| Mark::new(String::new()));
        let store_at = mark.store.map_or(0, |part| part.generation);
        let broker_at = mark.broker.map_or(0, |part| part.generation);
        let folder = Folder {
            path: path.to_owned(),
            lock: None,
            want: Want { admin_key: true, ..Want::default() },
            origin: if is_marked { origin } else { Origin::MarkLost },
            is_log_lost: AtomicBool::new(false),
            state: Mutex::new(State { mark, store_at, broker_at, written: (0, (0, 0)) }),
        };
        Ok(Self { folder, is_unsaid, holds_log, holds_key, is_store_known: false })
    }

    /// Where a part of it is.
    pub(crate) fn part(&self, name: &str) -> PathBuf {
        self.folder.path.join(name)
    }

    /// What is wrong with its store, and what is known of it. That the store does not say may be since rows are lost.
    pub(crate) async fn check_store(&mut self, stamp: Option<Stamp>, is_incomplete: bool) -> Vec<String> {
        let path = self.folder.path.clone();
        let mut wrong = Vec::new();
        self.is_store_known = stamp.is_some();
        // A store from before there were marks says nothing of its folder either.
        if let Some(why) = self.is_unsaid.as_ref().filter(|_| stamp.is_some() || is_incomplete) {
            wrong.push(format!("{}: {why}; what else is missing or older cannot be told", mark::FILE));
        }
        if self.folder.origin == Origin::MarkLost && stamp.is_none() {
            // From before there were marks, or it is not known.
            self.folder.origin = Origin::Unmarked;
        }
        let mut state = self.folder.state.lock().await;
        if self.folder.origin == Origin::Marked {
            // The other parts are looked at when they are copied.
            let there = Contents { store: true, blobs: true, broker: true, admin_key: true };
            let checked = check_marked(&path, &state.mark, &there, &Want::default());
            wrong.extend(checked.err().map(|error| what(&path, &error)));
        }
        if stamp.is_none() && is_incomplete {
            return wrong;
        }
        let Err(error) = self.folder.admit_store(&mut state, stamp.clone()) else { return wrong };
        wrong.push(what(&path, &error));
        // The mark is not that of this store: the log is compared with the store alone.
        let Stamp { folder, generation } = stamp.unwrap_or(Stamp { folder: String::new(), generation: 0 });
        *state = State { mark: Mark::new(folder), store_at: generation, broker_at: 0, written: (0, (0, 0)) };
        drop(state);
        self.folder.origin = Origin::MarkLost;
        wrong
    }

    /// The names of the log's files.
    pub(crate) fn logs(&self) -> anyhow::Result<Vec<String>> {
        logs(&self.folder.path)
    }

    /// What it means that there are none.
    pub(crate) fn without_log(&self) -> Option<String> {
        let missing = format!("the log of the embedded broker ({BROKER}/log-…) is missing");
        match self.holds_log {
            Some(true) => Some(missing),
            Some(false) => None,
            None => Some(format!("{missing}; if it was used with another broker, that is as it should be")),
        }
    }

    /// Where the log ended when the folder was closed; `None` where it was not, or nobody knows.
    pub(crate) async fn log_end(&self) -> Option<LogEnd> {
        let state = self.folder.state.lock().await;
        state.mark.broker.and_then(|part| part.end).filter(|_| state.mark.is_closed).map(Into::into)
    }

    /// What is wrong with a copy of its log that could be opened.
    pub(crate) async fn check_log(&self, log: &Broker) -> Option<String> {
        let stamp = log.stamp();
        let mut state = self.folder.state.lock().await;
        if !self.is_store_known {
            if state.mark.folder.is_empty() {
                return None;
            }
            // For all that is known they have come as far.
            state.store_at = stamp.as_ref().map_or(0, |stamp| stamp.generation);
        }
        let admitted = self.folder.admit_broker(&mut state, stamp.as_ref());
        admitted.err().map(|error| what(&self.folder.path, &error))
    }

    /// What is wrong with its key, going by the rows that could be read.
    pub(crate) async fn check_key(&self, rows: &Store) -> anyhow::Result<Option<String>> {
        if !holds_something(&self.part(ADMIN_KEY)) {
            // Whoever lets everybody in has none.
            let is_missing =
                self.holds_key == Some(true) || sluice_iam::knows_admin_key(&*rows.tables()).await?;
            return Ok(is_missing.then(|| format!("{ADMIN_KEY} is missing or empty")));
        }
        Ok(self.folder.wrong_key(rows).await.unwrap_or_else(|error| Some(format!("{error:#}"))))
    }
}

/// What a refusal is for.
fn what(path: &Path, error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    text.strip_prefix(&refusing(path)).unwrap_or(&text).to_owned()
}
