//! The admin key of what is backed up: by it nobody gets into the data that it is not the key of.

use std::io;
use std::path::Path;

use sluice_store::Tables;

use super::{ADMIN_KEY, Manifest, Source};
use crate::folder;

/// What is backed up of it.
#[derive(Debug, Default)]
pub(super) struct Key {
    pub(super) bytes: Option<Vec<u8>>,
    /// What is wrong with that of the data folder.
    pub(super) wrong: Option<String>,
}

impl Key {
    /// The key of the data folder. In place of one that is not there, or not that of the data, the one stays that the backup
    /// before has: whatever became of it since, it opens what is backed up.
    pub(super) async fn of(source: &Source, dir: &Path, before: Option<&Manifest>) -> anyhow::Result<Self> {
        let tables = source.store.tables();
        let mut wrong = match read(&source.path.join(ADMIN_KEY), &*tables).await? {
            Ok(Some(key)) => return Ok(Self { bytes: Some(key), wrong: None }),
            Ok(None) if !folder::holds_key(&source.path, &*tables).await? => return Ok(Self::default()),
            Ok(None) => format!("{ADMIN_KEY} is missing or empty"),
            Err(wrong) => wrong,
        };
        let mut bytes = None;
        if let Some(place) = before.and_then(Manifest::key_place)
            && let Ok(kept) = read(&dir.join(place), &*tables).await?
        {
            bytes = kept;
        }
        if bytes.is_some() {
            wrong.push_str("; the one of the backup before is kept");
        }
        Ok(Self { bytes, wrong: Some(wrong) })
    }
}

/// The key in a file, or what is wrong with it.
async fn read(file: &Path, tables: &dyn Tables) -> anyhow::Result<Result<Option<Vec<u8>>, String>> {
    let key = match folder::read_file(file) {
        Ok(key) if key.is_empty() => return Ok(Ok(None)),
        Ok(key) => key,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok(None)),
        Err(error) => return Ok(Err(format!("{ADMIN_KEY} cannot be read: {error}"))),
    };
    Ok(folder::wrong_key(file, tables).await?.map_or(Ok(Some(key)), Err))
}
