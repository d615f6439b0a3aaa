//! Looking after a folder: whether all in it is sound, and how much room it takes.
//!
//! A check goes step by step, so that it can be slowed down, stopped, and gone on with from where it was: first the blocks
//! of the tables' file as they are on the disk, then every row, by name, then every content.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::sealed::BLOCK_BYTES;
use super::tables::EmbeddedTables;
use crate::blobs::FileBlobs;
use crate::keys::blocking;
use crate::{Error, Found, KeyRange, Read, Result, Rows, Tables as _};

/// Rows looked at in one step.
const STEP_ROWS: usize = 1000;

/// Looks after a folder. Cheap to clone.
#[derive(Clone)]
pub struct Upkeep {
    pub(super) tables: Arc<EmbeddedTables>,
    pub(super) blobs: FileBlobs,
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
