//! What a store says about itself: which data folder it belongs to, how far that folder had come, and in which format each
//! part is.
//!
//! It rests in a table of its own that no caller of [`crate::Tables`] reaches, in a form that never changes, so that any
//! version can read it before it trusts the rest.

use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError, TableHandle as _,
    WriteTransaction,
};

use crate::{Error, Result};

const META: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new(TABLE);
/// The table that holds it.
pub(super) const TABLE: &str = "sluice.meta";
const FOLDER: &str = "folder";
const GENERATION: &str = "generation";
const FORMAT_PREFIX: &str = "format.";
/// What the names of parts begin with that services keep in the tables.
const SERVICE_PREFIX: &str = "service.";

/// The format in which a store was written before formats were kept.
const FORMAT_UNWRITTEN: u32 = 1;

/// The formats that this version writes, by part. A store with a higher number, or with a part that is not in this list,
/// was written by a newer version.
pub const FORMATS: &[(&str, u32)] =
    &[("tables", 1), ("blobs", 4), ("vectors", 2), ("keywords", 3), ("triples", 2)];

/// Which data folder a store belongs to, and how far that had come when it was last said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// The id of the folder.
    pub folder: String,
    /// Counts starts and stops of the folder.
    pub generation: u64,
}

/// Reads the stamp, if there is one.
pub(super) fn stamp(database: &Database) -> Result<Option<Stamp>> {
    let reading = || -> Result<Option<(String, String)>, redb::Error> {
        let table = match database.begin_read()?.open_table(META) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let text =
            |key: &str| Ok::<_, redb::Error>(table.get(key.as_bytes())?.map(|value| text_of(value.value())));
        Ok(text(FOLDER)?.zip(text(GENERATION)?))
    };
    let Some((folder, generation)) = reading().map_err(|e| unreadable(&e))? else { return Ok(None) };
    let generation = generation.parse().map_err(|e| unreadable(&e))?;
    Ok(Some(Stamp { folder, generation }))
}

/// Writes the stamp with a transaction of somebody else.
pub(super) fn put_stamp(transaction: &WriteTransaction, stamp: &Stamp) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(META)?;
    table.insert(FOLDER.as_bytes(), stamp.folder.as_bytes())?;
    table.insert(GENERATION.as_bytes(), stamp.generation.to_string().as_bytes())?;
    Ok(())
}

/// Refuses a store that a newer version wrote, and notes the formats of one that has none on record. `services` are the
/// formats of what others keep in the tables; without any, theirs are not looked at.
pub(super) fn settle_formats(database: &Database, services: &[(&str, u32)]) -> Result<()> {
    let known: Vec<(&str, u32)> = FORMATS.iter().chain(services).copied().collect();
    let (is_new, written) = written_formats(database).map_err(|e| unreadable(&e))?;
    for (part, version) in &written {
        let ours = known.iter().find(|(known, _)| known == part).map(|(_, version)| *version);
        let is_unknown = ours.is_none() && !(services.is_empty() && part.starts_with(SERVICE_PREFIX));
        if is_unknown || ours.is_some_and(|ours| *version > ours) {
            return Err(newer(part, *version, ours));
        }
    }
    let missing = known.iter().filter(|(part, _)| !written.iter().any(|(there, _)| there == part));
    let add: Vec<(&str, u32)> =
        missing.map(|(part, version)| (*part, if is_new { *version } else { FORMAT_UNWRITTEN })).collect();
    if add.is_empty() {
        return Ok(());
    }
    write_formats(database, &add).map_err(|e| match e {
        redb::Error::Io(e) => Error::unavailable(format!("its formats cannot be noted: {e}; check the disk")),
        other => Error::unavailable(format!("its formats cannot be noted: {other}")),
    })
}

/// The formats on record.
pub(super) fn formats(database: &Database) -> Result<Vec<(String, u32)>> {
    Ok(written_formats(database).map_err(|e| unreadable(&e))?.1)
}

/// Puts down the formats of rows that come from a backup. How the file itself is laid out is the business of this version.
pub(super) fn set_formats(database: &Database, formats: &[(String, u32)]) -> Result<()> {
    let of_rows: Vec<(&str, u32)> = formats
        .iter()
        .map(|(part, version)| (part.as_str(), *version))
        .filter(|(part, _)| *part != "tables")
        .collect();
    let failed = |e: redb::Error| Error::unavailable(format!("formats cannot be noted: {e}; check the disk"));
    write_formats(database, &of_rows).map_err(failed)
}

/// Puts down the formats of this version, once everything is in them or will be written in them.
pub(super) fn raise_formats(database: &Database) -> Result<()> {
    let (_, written) = written_formats(database).map_err(|e| unreadable(&e))?;
    let is_behind = |(part, ours): &&(&str, u32)| written.iter().any(|(there, v)| there == part && v < ours);
    let behind: Vec<(&str, u32)> = FORMATS.iter().filter(is_behind).copied().collect();
    if behind.is_empty() {
        return Ok(());
    }
    write_formats(database, &behind)
        .map_err(|e| Error::unavailable(format!("its formats cannot be noted: {e}; check the disk")))
}

/// Whether nothing was ever written, and the formats on record.
fn written_formats(database: &Database) -> Result<(bool, Vec<(String, u32)>), redb::Error> {
    let snapshot = database.begin_read()?;
    let is_new = snapshot.list_tables()?.all(|table| table.name() == META.name());
    let table = match snapshot.open_table(META) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok((is_new, Vec::new())),
        Err(error) => return Err(error.into()),
    };
    let mut written = Vec::new();
    for entry in table.iter()? {
        let (key, value) = entry?;
        written.extend(format_of(key.value(), value.value()));
    }
    Ok((is_new, written))
}

/// The part and its format that a row tells of, if it does.
pub(super) fn format_of(key: &[u8], value: &[u8]) -> Option<(String, u32)> {
    let key = text_of(key);
    let part = key.strip_prefix(FORMAT_PREFIX)?;
    // What is no number is of no version that we know.
    Some((part.to_owned(), text_of(value).parse().unwrap_or(u32::MAX)))
}

/// The id of the folder, if a row tells it.
pub(super) fn folder_of(key: &[u8], value: &[u8]) -> Option<String> {
    (key == FOLDER.as_bytes()).then(|| text_of(value))
}

/// The generation that the store had come to, if a row tells it.
pub(super) fn generation_of(key: &[u8], value: &[u8]) -> Option<u64> {
    (key == GENERATION.as_bytes()).then(|| text_of(value).parse().ok()).flatten()
}

fn write_formats(database: &Database, formats: &[(&str, u32)]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(META)?;
        for (part, version) in formats {
            table.insert(format!("{FORMAT_PREFIX}{part}").as_bytes(), version.to_string().as_bytes())?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn newer(part: &str, version: u32, ours: Option<u32>) -> Error {
    let reads = ours.map_or("does not know them".to_owned(), |ours| format!("reads up to {ours}"));
    Error::Refused {
        reason: format!(
            "a newer version of Sluice wrote the store: its {part} are of format {version}, and this version {reads}; run \
             the newer one, or restore a backup that was made before the upgrade"
        ),
    }
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn unreadable(error: &impl ToString) -> Error {
    Error::damaged("what the store says about itself", error)
}
