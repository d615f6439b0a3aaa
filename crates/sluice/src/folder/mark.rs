//! The mark of a data folder: a small file outside the store that says what the folder should hold.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sluice_bus::embedded::LogEnd;

/// The file's name.
pub(crate) const FILE: &str = "sluice.json";
const UNFINISHED: &str = "sluice.json.new";
/// The newest format that this version reads.
const FORMAT: u32 = 2;
/// The format of a mark that says nothing of a backup or a damaged folder.
const FORMAT_PLAIN: u32 = 1;
/// No folder is started so often.
const GENERATION_MAX: u64 = 1 << 48;

/// What a data folder should hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Mark {
    pub(crate) format: u32,
    /// Id of the folder; store and log carry it too.
    pub(crate) folder: String,
    /// Counts starts and stops.
    pub(crate) generation: u64,
    /// The first start is not over: nothing was acknowledged yet, and any part may still be missing.
    pub(crate) is_fresh: bool,
    /// A backup is being restored into it.
    #[serde(default)]
    pub(crate) is_restoring: bool,
    /// Together with that: it is no backup, but what could be read of a damaged folder.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_salvaging: bool,
    /// Digest of the backup that it was restored from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) restored_from: Option<String>,
    /// It was stopped in good order, and every part is exactly at its generation.
    pub(crate) is_closed: bool,
    /// Which file on which disk this was written into. A copy of a folder that was not closed is told by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<FileId>,
    /// The store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) store: Option<StorePart>,
    /// The log of the embedded broker, once it was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) broker: Option<BrokerPart>,
    /// The address of the object store, once content rests in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) objects: Option<String>,
    /// There is an admin key.
    #[serde(default)]
    pub(crate) has_admin_key: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct FileId {
    inode: u64,
    /// When the file was made, in nanoseconds; 0 where the file system does not say.
    born_ns: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct StorePart {
    pub(crate) generation: u64,
    /// The generation that it may still be at, where a start or stop was cut short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) before: Option<u64>,
    /// The size of its file, once closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct BrokerPart {
    pub(crate) generation: u64,
    /// As for the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) before: Option<u64>,
    /// Where the log ends, once closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) end: Option<End>,
}

/// [`LogEnd`] as it rests in the mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct End {
    first_file: u64,
    last_file: u64,
    last_bytes: u64,
}

impl From<LogEnd> for End {
    fn from(LogEnd { first_file, last_file, last_bytes }: LogEnd) -> Self {
        Self { first_file, last_file, last_bytes }
    }
}

impl From<End> for LogEnd {
    fn from(End { first_file, last_file, last_bytes }: End) -> Self {
        Self { first_file, last_file, last_bytes }
    }
}

/// What is there in place of a mark.
#[derive(Debug)]
pub(crate) enum Found {
    Nothing,
    Mark(Box<Mark>),
    /// Why it cannot be used.
    Unusable(String),
}

impl Mark {
    /// A mark for a folder that has none.
    pub(crate) fn new(folder: String) -> Self {
        Self {
            format: FORMAT_PLAIN,
            folder,
            generation: 0,
            is_fresh: false,
            is_restoring: false,
            is_salvaging: false,
            restored_from: None,
            is_closed: false,
            file: None,
            store: None,
            broker: None,
            objects: None,
            has_admin_key: false,
        }
    }

    fn generations(&self) -> impl Iterator<Item = u64> {
        let store = self.store.into_iter().flat_map(|part| [Some(part.generation), part.before]);
        let broker = self.broker.into_iter().flat_map(|part| [Some(part.generation), part.before]);
        store.chain(broker).flatten().chain([self.generation])
    }

    /// Whether the folder is not whole without a log. One that another broker took the place of is not missed.
    pub(crate) fn holds_log(&self) -> bool {
        self.broker.is_some_and(|part| part.generation == self.generation)
    }

    /// What was not finished, if the folder was only being filled.
    pub(crate) fn unfinished(&self) -> Option<&'static str> {
        match (self.is_restoring, self.is_salvaging) {
            (false, _) => None,
            (true, false) => Some(
                "a backup was being restored into it, and that was not finished; restore it again, into another folder",
            ),
            (true, true) => Some(
                "what can be read of a damaged folder was being copied into it (sluice salvage), and that was not finished; salvage \
                 it again, into another folder",
            ),
        }
    }

    /// Whether a store at this generation may stand beside a mark of a first start that is not over: one that was ended while it
    /// was about to be over, perhaps again and again, has said that it goes there.
    pub(crate) fn is_of_first_starts(&self, store_generation: u64) -> bool {
        let said = self.store.filter(|part| part.before.is_some()).map_or(0, |part| part.generation);
        store_generation <= said.max(1)
    }

    /// Whether the mark in this folder is a copy of the one that was written.
    pub(crate) fn is_copied(&self, folder: &Path) -> bool {
        let here = fs::metadata(folder.join(FILE)).ok().map(|meta| FileId::of(&meta));
        self.file.is_some() && self.file != here
    }

    /// Writes it, whole or not at all; on return it is durable.
    pub(crate) fn write(&mut self, folder: &Path) -> io::Result<()> {
        let unfinished = folder.join(UNFINISHED);
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        self.file = Some(FileId::of(&file.metadata()?));
        // The oldest that can say it, so that earlier versions read what they understand.
        self.format = if self.is_salvaging || self.restored_from.is_some() { FORMAT } else { FORMAT_PLAIN };
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, folder.join(FILE))?;
        File::open(folder)?.sync_all()
    }
}

impl FileId {
    fn of(meta: &Metadata) -> Self {
        let born = meta.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        let born_ns = born.map_or(0, |born| u64::try_from(born.as_nanos()).unwrap_or(0));
        Self { inode: meta.ino(), born_ns }
    }
}

/// Reads what is in the place of the mark.
pub(crate) fn read(folder: &Path) -> Found {
    let read = || {
        // A pipe in its place is not waited for.
        let no_wait = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let mut file = OpenOptions::new().read(true).custom_flags(no_wait).open(folder.join(FILE))?;
        let mut text = Vec::new();
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        file.read_to_end(&mut text).map(|_| text)
    };
    let text = match read() {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Nothing,
        Err(error) => return Found::Unusable(format!("it cannot be read: {error}")),
    };
    /// What every format has.
    #[derive(Deserialize)]
    struct AnyMark {
        format: u32,
    }
    match serde_json::from_slice::<AnyMark>(&text) {
        Ok(any) if any.format > FORMAT => {
            return Found::Unusable(format!(
                "a newer version of Sluice wrote it (format {}, this version reads up to {FORMAT}); run the newer one, or \
                 restore a backup that was made before the upgrade",
                any.format
            ));
        }
        Ok(_) => {}
        Err(error) => return Found::Unusable(format!("it is damaged: {error}")),
    }
    match serde_json::from_slice::<Mark>(&text) {
        Ok(mark) if mark.generations().any(|at| at > GENERATION_MAX) => {
            Found::Unusable(format!("it is damaged: it counts beyond generation {GENERATION_MAX}"))
        }
        Ok(mark) => Found::Mark(Box::new(mark)),
        Err(error) => Found::Unusable(format!("it is damaged: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(folder: &Path) -> Mark {
        let mut mark = Mark::new("a".to_owned());
        mark.store = Some(StorePart { generation: 3, before: None, bytes: Some(7) });
        mark.write(folder).unwrap();
        mark
    }

    #[test]
    fn a_mark_is_read_as_it_was_written_and_its_copy_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let mark = written(folder.path());
        let Found::Mark(read) = read(folder.path()) else { panic!("it can be read") };
        assert_eq!(*read, mark);
        assert!(!mark.is_copied(folder.path()));
        let copy = tempfile::tempdir().unwrap();
        fs::copy(folder.path().join(FILE), copy.path().join(FILE)).unwrap();
        assert!(mark.is_copied(copy.path()));
    }

    #[test]
    fn a_log_that_another_broker_took_the_place_of_is_not_missed() {
        let mut mark = Mark::new("a".to_owned());
        assert!(!mark.holds_log(), "it was never used");
        mark.generation = 3;
        mark.broker = Some(BrokerPart { generation: 3, before: None, end: None });
        assert!(mark.holds_log());
        mark.generation = 4;
        assert!(!mark.holds_log());
    }

    #[test]
    fn what_is_no_mark_of_this_version_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(read(folder.path()), Found::Nothing));
        let told = |text: &str| {
            fs::write(folder.path().join(FILE), text).unwrap();
            match read(folder.path()) {
                Found::Unusable(why) => why,
                other => panic!("{text}: {other:?}"),
            }
        };
        assert!(told(r#"{"format": 3, "shape": "new"}"#).contains("newer version"));
        for damaged in ["", "{", "null", r#"{"format": 1}"#] {
            assert!(told(damaged).contains("damaged"), "{damaged}");
        }
        written(folder.path());
        let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert!(told(&text.replace("\"store\"", "\"stare\"")).contains("damaged"));
    }
}
