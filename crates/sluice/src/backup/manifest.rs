//! The manifest of a backup: what is in it, and the digest of each.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::files::{check_kinds, hex, is_log_file, write_whole};
use super::{ADMIN_KEY, BLOBS, CHUNKS, LOG, OBJECTS, PARTS};
use crate::exit::{Code, Told};
use crate::folder::{open_file, read_file};

pub(super) const FILE: &str = "sluice-backup.json";
/// The newest format that this version reads.
const FORMAT: u32 = 3;
/// The newest without the generation of the folder.
const FORMAT_UNCOUNTED: u32 = 2;
/// The format of a backup without a log, in which nothing is damaged and every file rests under its own name.
const FORMAT_PLAIN: u32 = 1;
/// The longest name of a file in a backup.
const NAME_BYTES_MAX: usize = 128;

/// What a backup holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Manifest {
    /// Id of the data folder it was made of.
    pub(crate) folder: String,
    /// How far that had come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) generation: Option<u64>,
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
    /// Where the key is, if not under its own name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) admin_key_kept_as: Option<String>,
    /// What was damaged already in what was backed up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) damaged: Vec<String>,
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

/// Some bytes of a file, in a file that is named by its digest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub(crate) sha256: String,
    pub(crate) bytes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Item {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    /// Its name in the backup, if that is another: the backup before had another file of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kept_as: Option<String>,
    /// What it is put together of, if it is no file of its own: one that only grows is not copied whole again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pieces: Option<Vec<Piece>>,
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
            generation: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            made: now.as_secs(),
            formats,
            tables: Vec::new(),
            blobs: Vec::new(),
            log: Vec::new(),
            objects: None,
            admin_key: None,
            admin_key_kept_as: None,
            damaged: Vec::new(),
        }
    }

    /// Reads the manifest of a folder, if it has one.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Option<Self>> {
        let file = dir.join(FILE);
        let told = |what: String| {
            Told::new(Code::Failed, format!("'{}' {what}", file.display()))
                .next("use another backup, or back up into an empty folder")
        };
        check_kinds(dir)?;
        let text = match read_file(&file) {
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
        // Anybody can make a digest fit: what a backup names is written, read and removed by that name.
        if let Some(name) = sealed.backup.names().find(|name| !is_plain(name)) {
            let what = format!("names the file '{}', which no backup has", name.escape_debug());
            return Err(told(what).into());
        }
        if let Some(item) = sealed.backup.log.iter().find(|item| !is_log_file(&item.name)) {
            return Err(told(format!("names '{}' as a file of the broker's log", item.name)).into());
        }
        Ok(Some(sealed.backup))
    }

    pub(super) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        for part in PARTS {
            fs::File::open(dir.join(part))?.sync_all()?;
        }
        // The oldest that can say it, so that earlier versions read what they understand.
        let format = match self.generation {
            Some(_) => FORMAT,
            None if self.is_plain() => FORMAT_PLAIN,
            None => FORMAT_UNCOUNTED,
        };
        let sealed = Sealed { format, sha256: self.digest()?, backup: self };
        write_whole(&dir.join(FILE), &serde_json::to_vec(&sealed)?)?;
        Ok(fs::File::open(dir)?.sync_all()?)
    }

    /// By which one backup is told from another.
    pub(super) fn digest(&self) -> anyhow::Result<String> {
        Ok(hex(&Sha256::digest(serde_json::to_vec(self)?)))
    }

    /// Every file of the backup but the manifest.
    pub(super) fn places(&self) -> BTreeSet<String> {
        let mut places: BTreeSet<String> =
            self.pieces().map(|(sha256, _)| format!("{CHUNKS}/{sha256}")).collect();
        places.extend(self.files().map(|(place, _)| place));
        places.extend(self.key_place().map(ToOwned::to_owned));
        places
    }

    /// Where the admin key is, if there is one.
    pub(super) fn key_place(&self) -> Option<&str> {
        self.admin_key.as_ref().map(|_| self.admin_key_kept_as.as_deref().unwrap_or(ADMIN_KEY))
    }

    fn is_plain(&self) -> bool {
        let is_other = |item: &Item| item.kept_as.is_some() || item.pieces.is_some();
        self.damaged.is_empty()
            && self.admin_key_kept_as.is_none()
            && !self.items().any(|(_, item)| is_other(item))
    }

    /// Size and digest of what may be kept from one backup to the next.
    pub(super) fn digests(&self) -> HashMap<String, (u64, String)> {
        self.files().map(|(place, item)| (place, (item.bytes, item.sha256.clone()))).collect()
    }

    /// The files of content that is not under its own name, by part and name.
    pub(super) fn renamed(&self) -> HashMap<String, String> {
        let all = self.items().filter_map(|(part, item)| Some((part, item, item.kept_as.clone()?)));
        all.map(|(part, item, file)| (format!("{part}/{}", item.name), file)).collect()
    }

    /// Names of its files in their folders, here and where it is restored.
    fn names(&self) -> impl Iterator<Item = &str> {
        let items = self.items().flat_map(|(_, item)| [Some(item.name.as_str()), item.kept_as.as_deref()]);
        let pieces = self.pieces().map(|(sha256, _)| sha256);
        pieces.chain(items.flatten()).chain(self.admin_key_kept_as.as_deref())
    }

    /// Digests, which are their names too, and sizes of the files in `chunks`.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (&str, u64)> {
        let chunks = self.tables.iter().flat_map(|table| &table.chunks);
        let pieces = self.log.iter().flat_map(|item| item.pieces.iter().flatten());
        chunks
            .map(|chunk| (chunk.sha256.as_str(), chunk.bytes))
            .chain(pieces.map(|piece| (piece.sha256.as_str(), piece.bytes)))
    }

    /// What is a file of its own, with its place.
    pub(super) fn files(&self) -> impl Iterator<Item = (String, &Item)> {
        let own = self.items().filter(|(_, item)| item.pieces.is_none());
        own.map(|(part, item)| (format!("{part}/{}", item.file()), item))
    }

    fn items(&self) -> impl Iterator<Item = (&'static str, &Item)> {
        let objects = self.objects.iter().flat_map(|objects| &objects.files);
        let of = |part: &'static str| move |item| (part, item);
        self.blobs.iter().map(of(BLOBS)).chain(self.log.iter().map(of(LOG))).chain(objects.map(of(OBJECTS)))
    }
}

/// Whether a name is that of a file in the folder it is looked for in, and nowhere else.
fn is_plain(name: &str) -> bool {
    let is_carried = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(is_carried)
}

impl Item {
    pub(super) const fn new(name: String, bytes: u64, sha256: String) -> Self {
        Self { name, bytes, sha256, kept_as: None, pieces: None }
    }

    /// Its name in the backup.
    pub(super) fn file(&self) -> &str {
        self.kept_as.as_deref().unwrap_or(&self.name)
    }

    /// Reads what is backed up of it, from the part of the backup that it belongs to.
    pub(super) fn reader(&self, dir: &Path, part: &str) -> Box<dyn io::Read> {
        let files: Vec<_> = match &self.pieces {
            Some(pieces) => pieces.iter().map(|piece| dir.join(CHUNKS).join(&piece.sha256)).collect(),
            None => vec![dir.join(part).join(self.file())],
        };
        Box::new(Files { next: files.into_iter(), open: None })
    }
}

/// Files one after the other, of which one at a time is open.
struct Files {
    next: std::vec::IntoIter<std::path::PathBuf>,
    open: Option<fs::File>,
}

impl io::Read for Files {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(open) = &mut self.open {
                let count = open.read(buffer)?;
                if count > 0 || buffer.is_empty() {
                    return Ok(count);
                }
            }
            let Some(path) = self.next.next() else { return Ok(0) };
            let failed =
                |error: io::Error| io::Error::new(error.kind(), format!("'{}': {error}", path.display()));
            self.open = Some(open_file(&path).map_err(failed)?);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Component, PathBuf};

    use super::*;

    fn corpus(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
    }

    fn item(name: &str) -> Item {
        Item::new(name.to_owned(), 3, "ab".repeat(32))
    }

    fn whole() -> Manifest {
        let chunk = Chunk { sha256: "cd".repeat(32), rows: 2, bytes: 9 };
        let mut last = item("log-0000000000000002");
        last.pieces = Some(vec![Piece { sha256: "12".repeat(32), bytes: 3 }]);
        Manifest {
            tables: vec![Table { name: "config.value".to_owned(), chunks: vec![chunk] }],
            blobs: vec![item("0190-ab_1")],
            log: vec![item("log-0000000000000001"), last],
            objects: Some(Object { url: "s3://bucket/f".to_owned(), files: vec![item("o1")] }),
            admin_key: Some("ef".repeat(32)),
            ..Manifest::new("f1".to_owned(), vec![("config".to_owned(), 2)])
        }
    }

    /// A folder in which this is the manifest; without its parts, so all it names is missing.
    fn in_folder(text: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), text).unwrap();
        folder
    }

    fn sealed(backup: &Manifest) -> Vec<u8> {
        serde_json::to_vec(&Sealed { format: FORMAT, sha256: backup.digest().unwrap(), backup }).unwrap()
    }

    /// What is read of it names files in its own folders only.
    fn look(text: &[u8]) {
        let folder = in_folder(text);
        match Manifest::read(folder.path()) {
            Err(error) => assert!(error.to_string().contains(FILE), "{error}"),
            Ok(None) => panic!("there is one"),
            Ok(Some(manifest)) => {
                for place in manifest.places() {
                    let parts: Vec<_> = Path::new(&place).components().collect();
                    let is_inside = parts.iter().all(|part| matches!(part, Component::Normal(_)));
                    assert!(is_inside && parts.len() <= 2 && place.len() < 200, "{place}");
                }
                assert!(super::super::verify(folder.path(), &manifest).len() <= manifest.names().count() + 1);
            }
        }
    }

    #[test]
    fn any_manifest_is_refused_by_name_or_names_only_files_of_the_backup() {
        let known = sealed(&whole());
        sluice_fuzz::run("manifest", &corpus("manifest"), 1_000, &[&known], &|input| {
            look(input);
            // Whoever changes one can make its digest fit.
            if let Ok(Sealed { backup, .. }) = serde_json::from_slice::<Sealed<Manifest>>(input) {
                look(&sealed(&backup));
            }
        });
    }

    #[test]
    fn a_manifest_that_names_files_outside_of_the_backup_is_refused() {
        assert!(Manifest::read(in_folder(&sealed(&whole())).path()).unwrap().is_some());
        type Change = fn(&mut Manifest, String);
        let changes: [Change; 8] = [
            |manifest, name| manifest.blobs[0].name = name,
            |manifest, name| manifest.log.push(Item::new(name, 0, String::new())),
            |manifest, name| manifest.log[0].kept_as = Some(name),
            |manifest, name| manifest.log[1].name = name,
            |manifest, name| manifest.log[1].pieces.as_mut().unwrap()[0].sha256 = name,
            |manifest, name| manifest.admin_key_kept_as = Some(name),
            |manifest, name| manifest.tables[0].chunks[0].sha256 = name,
            |manifest, name| manifest.objects.as_mut().unwrap().files[0].name = name,
        ];
        for change in changes {
            for name in ["../x", "/etc/x", "..", ".", "", "a/b", "a\\b", "a\0b", ".hidden", &"x".repeat(300)]
            {
                let mut manifest = whole();
                change(&mut manifest, name.to_owned());
                let error = Manifest::read(in_folder(&sealed(&manifest)).path()).unwrap_err().to_string();
                assert!(error.contains("which no backup has"), "{name}: {error}");
            }
        }
    }
}
