//! Comparing the files of content with what the tables say, and clearing away what is on record as left over.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{FileBlobs, LOOSE, LOST, PAGE_ROWS, PLACES, Place, remove_quietly};
use crate::keys::{blocking, rows};
use crate::{Batch, KeyRange, Read, Result};

/// How long files stay in the trash.
const TRASH_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// What files of content there are, and what there should be.
#[derive(Debug, Default)]
pub struct BlobAudit {
    /// Files that the tables name.
    pub named: usize,
    /// Those that are missing or of another size, but for the ones that are known to be lost.
    pub missing: Vec<MissingBlob>,
    /// Files in the folder that the tables neither name nor have on record as left over.
    pub unknown: usize,
    files: HashSet<String>,
    /// Files that are on record as lost, and are there or not named any more.
    found_again: Vec<String>,
}

/// Content whose file is not as the tables say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingBlob {
    /// Id of the content.
    pub id: String,
    /// Name of its file.
    pub file: String,
    /// The size that it should have.
    pub bytes: u64,
    /// The size that it has, if it is there.
    pub found_bytes: Option<u64>,
}

impl FileBlobs {
    pub(crate) async fn audit(&self) -> Result<BlobAudit> {
        let shared = &self.shared;
        let (mut lost, loose) = (shared.names(LOST).await?, shared.names(LOOSE).await?);
        let mut still_lost = HashSet::new();
        let mut audit = BlobAudit::default();
        let mut range = KeyRange::all();
        loop {
            let page = rows(&*shared.tables, Read::range(PLACES, range.clone(), PAGE_ROWS)).await?;
            let mut named = Vec::new();
            for (id, row) in &page.rows {
                let Place { bytes, name: Some(file), .. } = Place::decode(row)? else { continue };
                let id = String::from_utf8_lossy(id).into_owned();
                named.push(MissingBlob { id, file, bytes, found_bytes: None });
            }
            audit.named += named.len();
            audit.files.extend(named.iter().map(|one| one.file.clone()));
            let folder = shared.folder.clone();
            let missing = blocking(move || Ok(not_as_named(&folder, named))).await?;
            let (known, missing): (Vec<_>, Vec<_>) =
                missing.into_iter().partition(|one| lost.contains(&one.file));
            still_lost.extend(known.into_iter().map(|one| one.file));
            audit.missing.extend(missing);
            match page.rows.last() {
                Some((last, _)) if page.more => range = range.after(last),
                _ => break,
            }
        }
        lost.retain(|file| !still_lost.contains(file));
        audit.found_again = lost.into_iter().collect();
        let folder = shared.folder.clone();
        let there = blocking(move || {
            let mut names = Vec::new();
            let entries = match fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
                entries => entries.map_err(|e| crate::embedded::unusable(&folder, &e))?,
            };
            for entry in entries {
                let entry = entry.map_err(|e| crate::embedded::unusable(&folder, &e))?;
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
            Ok(names)
        });
        let is_known = |name: &String| audit.files.contains(name) || loose.contains(name);
        audit.unknown = there.await?.iter().filter(|name| !is_known(name)).count();
        Ok(audit)
    }

    pub(crate) async fn accept_lost(&self, audit: &BlobAudit) -> Result<()> {
        let mut batch = Batch::new();
        for one in &audit.missing {
            batch.put(LOST, &one.file, Vec::new());
        }
        self.shared.tables.commit(batch).await
    }

    pub(crate) async fn sweep(&self, audit: &BlobAudit) -> Result<()> {
        let shared = &self.shared;
        let loose: Vec<String> = shared.names(LOOSE).await?.into_iter().collect();
        let (folder, trash) = (shared.folder.clone(), shared.trash.clone());
        // What a place names is nobody's leftover, whatever else is on record.
        let left: Vec<String> = loose.iter().filter(|name| !audit.files.contains(*name)).cloned().collect();
        let moved = blocking(move || {
            empty(&trash);
            Ok(left.into_iter().filter(|name| throw_away(&folder, &trash, name)).collect::<Vec<_>>())
        });
        let mut batch = Batch::new();
        for name in moved.await? {
            batch.delete(LOOSE, name);
        }
        for name in &audit.found_again {
            batch.delete(LOST, name);
        }
        if batch.is_empty() { Ok(()) } else { shared.tables.commit(batch).await }
    }
}

/// Which of these files are missing or of another size.
fn not_as_named(folder: &Path, named: Vec<MissingBlob>) -> Vec<MissingBlob> {
    let found = |one: MissingBlob| MissingBlob {
        found_bytes: fs::metadata(folder.join(&one.file)).ok().map(|there| there.len()),
        ..one
    };
    named.into_iter().map(found).filter(|one| one.found_bytes != Some(one.bytes)).collect()
}

/// Moves a file to the trash; whether it is in its folder no more.
fn throw_away(folder: &Path, trash: &Path, name: &str) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let moved = fs::create_dir_all(trash)
        .and_then(|()| fs::rename(folder.join(name), trash.join(format!("{now}-{name}"))));
    match moved {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => {
            tracing::warn!(file = name, %error, "left-over content could not be moved to the trash yet");
            false
        }
    }
}

/// Removes what has lain in the trash for long enough. Names begin with the second in which it came there.
fn empty(trash: &Path) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    for entry in fs::read_dir(trash).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let since = name.to_str().and_then(|name| name.split_once('-')?.0.parse().ok());
        if since.is_some_and(|since| now > Duration::from_secs(since) + TRASH_KEPT) {
            remove_quietly(&entry.path());
        }
    }
}
