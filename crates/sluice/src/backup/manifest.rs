//! The manifest of a backup: what is in it, and the digest of each.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{ADMIN_KEY, BLOBS, CHUNKS, LOG, OBJECTS, hex, write_whole};
use crate::exit::{Code, Told};

pub(super) const FILE: &str = "sluice-backup.json";
/// The format that this version writes.
const FORMAT: u32 = 1;

/// What a backup holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Manifest {
    /// Id of the data folder it was made of.
    pub(crate) folder: String,
    /// The version that made it.
    pub(crate) version: String,
    /// Seconds since 1970.
    pub(crate) made: u64,
    /// Formats of what is in the tables, by part.
    pub(crate) formats: Vec<(String, u32)>,
    pub(crate) tables: Vec<Table>,
    pub(crate) blobs: Vec<Item>,
    pub(crate) log: Vec<Item>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) objects: Option<Object>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) admin_key: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) chunks: Vec<Chunk>,
}

/// Some rows of a table, in a file that is named by its digest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Chunk {
    pub(crate) sha256: String,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Item {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// Content that rested in an object store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Object {
    pub(crate) url: String,
    pub(crate) files: Vec<Item>,
}

/// The manifest as it rests in its file.
#[derive(Serialize, Deserialize)]
struct Sealed<T> {
    format: u32,
    /// Digest of the rest.
    sha256: String,
    backup: T,
}

#[derive(Deserialize)]
struct AnyFormat {
    format: u32,
}

impl Manifest {
    pub(super) fn new(folder: String, formats: Vec<(String, u32)>) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            folder,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            made: now.as_secs(),
            formats,
            tables: Vec::new(),
            blobs: Vec::new(),
            log: Vec::new(),
            objects: None,
            admin_key: None,
        }
    }

    /// Reads the manifest of a folder, if it has one.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Option<Self>> {
        let file = dir.join(FILE);
        let told = |what: String| {
            Told::new(Code::Failed, format!("'{}' {what}", file.display()))
                .next("take another backup, or make a new one")
        };
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(told(format!("cannot be read: {error}")).into()),
        };
        let any: AnyFormat =
            serde_json::from_slice(&text).map_err(|error| told(format!("is damaged: {error}")))?;
        if any.format > FORMAT {
            let what = format!(
                "was made by a newer version of Sluice (format {}, this version reads up to {FORMAT})",
                any.format
            );
            return Err(told(what).next("run that version").into());
        }
        let sealed: Sealed<Self> =
            serde_json::from_slice(&text).map_err(|error| told(format!("is damaged: {error}")))?;
        if sealed.sha256 != sealed.backup.digest()? {
            return Err(told("is damaged: its digest is another".to_owned()).into());
        }
        Ok(Some(sealed.backup))
    }

    pub(super) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        for part in [CHUNKS, BLOBS, LOG, OBJECTS] {
            fs::File::open(dir.join(part))?.sync_all()?;
        }
        let sealed = Sealed { format: FORMAT, sha256: self.digest()?, backup: self };
        write_whole(&dir.join(FILE), &serde_json::to_vec(&sealed)?)?;
        Ok(fs::File::open(dir)?.sync_all()?)
    }

    fn digest(&self) -> anyhow::Result<String> {
        Ok(hex(&Sha256::digest(serde_json::to_vec(self)?)))
    }

    /// Every file of the backup but the manifest.
    pub(super) fn places(&self) -> BTreeSet<String> {
        let chunks = self.tables.iter().flat_map(|table| &table.chunks);
        let mut places: BTreeSet<String> = chunks.map(|chunk| format!("{CHUNKS}/{}", chunk.sha256)).collect();
        places.extend(self.items().map(|(place, _)| place));
        places.extend(self.admin_key.as_ref().map(|_| ADMIN_KEY.to_owned()));
        places
    }

    /// Size and digest of what may be kept from one backup to the next.
    pub(super) fn digests(&self) -> HashMap<String, (u64, String)> {
        self.items().map(|(place, item)| (place, (item.bytes, item.sha256.clone()))).collect()
    }

    fn items(&self) -> impl Iterator<Item = (String, &Item)> {
        let objects = self.objects.iter().flat_map(|objects| &objects.files);
        let of = |part: &'static str| move |item| (format!("{part}/{}", Item::name(item)), item);
        self.blobs.iter().map(of(BLOBS)).chain(self.log.iter().map(of(LOG))).chain(objects.map(of(OBJECTS)))
    }
}

impl Item {
    fn name(&self) -> &str {
        &self.name
    }
}
