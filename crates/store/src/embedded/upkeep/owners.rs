//! Whose content is, for whoever is told that it is damaged: the rows of a service say it.

use std::collections::HashMap;

use super::{STEP_ROWS, Upkeep};
use crate::keys::rows;
use crate::{Error, Found, KeyRange, Read, Result, Tables as _};

/// A table whose rows name content.
#[derive(Debug, Clone, Copy)]
pub struct Owners {
    /// The table.
    pub table: &'static str,
    /// By key and row.
    pub of: fn(&[u8], &[u8]) -> Option<Owner>,
}

/// What a row says of content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The id of the content.
    pub content: String,
    /// Whose it is, in words.
    pub name: String,
}

impl Upkeep {
    /// Content that rows name and that a table of places does not know. That of a removal that was cut off is among it too.
    ///
    /// # Errors
    /// If the rows cannot be read.
    pub async fn unplaced(&self, places: &'static str) -> Result<Vec<Owner>> {
        let mut unplaced = Vec::new();
        let Some(owners) = self.owners else { return Ok(unplaced) };
        let mut range = KeyRange::all();
        loop {
            let page = rows(&*self.tables, Read::range(owners.table, range.clone(), STEP_ROWS)).await?;
            let owned: Vec<Owner> = page.rows.iter().filter_map(|(key, row)| (owners.of)(key, row)).collect();
            let reads = owned.iter().map(|owner| Read::get(places, &owner.content)).collect();
            let found = self.tables.read(reads).await?.into_iter().map(Found::into_value);
            unplaced.extend(
                owned.into_iter().zip(found).filter_map(|(owner, place)| place.is_none().then_some(owner)),
            );
            match page.rows.last() {
                Some((last, _)) if page.more => range = range.after(last),
                _ => return Ok(unplaced),
            }
        }
    }

    /// Says of damaged content whose it is, where a row does that can be read. The rows are read once for all of it.
    pub async fn named(&self, damage: Vec<Error>) -> Vec<Error> {
        let Some(owners) = self.owners else { return damage };
        let ids = damage.iter().filter_map(Error::content_of_nobody);
        let mut found: HashMap<String, Option<String>> = ids.map(|id| (id.to_owned(), None)).collect();
        let mut unknown = found.len();
        let mut range = KeyRange::all();
        while unknown > 0 {
            let read = Read::range(owners.table, range.clone(), STEP_ROWS);
            // Whose it is need not be known to tell that it is damaged.
            let Ok(page) = rows(&*self.tables, read).await else { break };
            for owner in page.rows.iter().filter_map(|(key, row)| (owners.of)(key, row)) {
                if let Some(known) = found.get_mut(&owner.content)
                    && known.replace(owner.name).is_none()
                {
                    unknown -= 1;
                }
            }
            match page.rows.last() {
                Some((last, _)) if page.more => range = range.after(last),
                _ => break,
            }
        }
        let name = |error: Error| match error.content_of_nobody().and_then(|id| found.get(id)).cloned() {
            Some(Some(owner)) => error.of(owner),
            _ => error,
        };
        damage.into_iter().map(name).collect()
    }
}
