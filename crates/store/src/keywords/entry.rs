//! What is kept of a text: what it is called, how long it is, which terms it has.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::keys::{put_number, take_number};
use crate::terms::terms;
use crate::{Attributes, Error, Result};

const DIGEST_BYTES: usize = 8;

/// A text to be indexed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    /// Terms, repeats counted.
    pub(super) length: u32,
    pub(super) counts: BTreeMap<String, u32>,
    pub(super) attributes: Attributes,
}

impl Entry {
    pub(super) fn new(text: &str, attributes: Attributes) -> Self {
        let (mut counts, mut length) = (BTreeMap::new(), 0_u32);
        for term in terms(text) {
            *counts.entry(term).or_insert(0_u32) += 1;
            length = length.saturating_add(1);
        }
        Self { length, counts, attributes }
    }

    /// About how much of it is written, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.counts.keys().map(|term| term.len() + 8).sum::<usize>() + 256
    }

    fn labels(&self) -> Result<Vec<u8>> {
        if self.attributes.is_empty() {
            return Ok(Vec::new());
        }
        serde_json::to_vec(&self.attributes)
            .map_err(|e| Error::Refused { reason: format!("labels do not serialise: {e}") })
    }

    /// The entry as it rests; `numbers` are those of its terms.
    pub(super) fn stored(&self, id: &str, mut numbers: Vec<u64>) -> Result<Stored> {
        numbers.sort_unstable();
        let labels = self.labels()?;
        Ok(Stored {
            id: id.to_owned(),
            length: self.length,
            digest: self.digest(&labels),
            terms: numbers,
            labels,
        })
    }

    /// Whether what rests is this entry.
    pub(super) fn is_stored(&self, stored: &Stored) -> Result<bool> {
        Ok(stored.digest == self.digest(&self.labels()?))
    }

    fn digest(&self, labels: &[u8]) -> [u8; DIGEST_BYTES] {
        let mut hash = Sha256::new();
        for (term, count) in &self.counts {
            hash.update((term.len() as u64).to_le_bytes());
            hash.update(term);
            hash.update(count.to_le_bytes());
        }
        hash.update([0]);
        hash.update(labels);
        let mut digest = [0; DIGEST_BYTES];
        digest.copy_from_slice(&hash.finalize()[..DIGEST_BYTES]);
        digest
    }
}

/// An entry as it rests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) id: String,
    pub(super) length: u32,
    digest: [u8; DIGEST_BYTES],
    /// Numbers of its terms, rising.
    pub(super) terms: Vec<u64>,
    labels: Vec<u8>,
}

impl Stored {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut row = Vec::with_capacity(self.id.len() + self.labels.len() + self.terms.len() * 2 + 32);
        put_number(self.id.len() as u64, &mut row);
        row.extend_from_slice(self.id.as_bytes());
        put_number(u64::from(self.length), &mut row);
        row.extend_from_slice(&self.digest);
        put_number(self.terms.len() as u64, &mut row);
        let mut last = 0;
        for term in &self.terms {
            put_number(term - last, &mut row);
            last = *term;
        }
        row.extend_from_slice(&self.labels);
        row
    }

    pub(super) fn decode(row: &[u8]) -> Result<Self> {
        Self::read(row).ok_or_else(|| Error::damaged("a keyword entry", &"it is cut short"))
    }

    fn read(mut row: &[u8]) -> Option<Self> {
        let length = usize::try_from(take_number(&mut row)?).ok()?;
        let id = String::from_utf8(row.split_off(..length)?.to_vec()).ok()?;
        let length = u32::try_from(take_number(&mut row)?).ok()?;
        let digest = row.split_off(..DIGEST_BYTES)?.try_into().ok()?;
        let count = take_number(&mut row)?;
        let (mut terms, mut last) = (Vec::new(), 0_u64);
        for _ in 0..count {
            last = last.checked_add(take_number(&mut row)?)?;
            terms.push(last);
        }
        Some(Self { id, length, digest, terms, labels: row.to_vec() })
    }

    pub(super) fn attributes(&self) -> Result<Attributes> {
        if self.labels.is_empty() {
            return Ok(Attributes::new());
        }
        serde_json::from_slice(&self.labels).map_err(|e| Error::damaged("a keyword entry", &e))
    }
}

#[cfg(test)]
mod tests {
    use sluice_schema::message::TextOrList;

    use super::*;

    #[test]
    fn an_entry_reads_as_it_was_written_and_is_told_from_others() {
        let labels = Attributes::from([("title".to_owned(), TextOrList::Text("Pumps".to_owned()))]);
        let entry = Entry::new("pump and pump and tank", labels);
        let stored = entry.stored("urn:a", vec![70_000, 3, 1_000]).unwrap();
        assert_eq!((stored.length, &stored.terms[..]), (5, &[3, 1_000, 70_000][..]));
        let row = stored.encode();
        assert_eq!(Stored::decode(&row).unwrap(), stored);
        assert_eq!(stored.attributes().unwrap(), entry.attributes);
        Stored::decode(&row[..12]).unwrap_err();
        assert!(entry.is_stored(&stored).unwrap());
        for other in ["pump and pump and tanks of", "pump pump and and tank", "pump and tank"] {
            let other = Entry::new(other, entry.attributes.clone());
            assert_eq!(other.is_stored(&stored).unwrap(), other == entry);
        }
        assert!(!Entry::new("pump and pump and tank", Attributes::new()).is_stored(&stored).unwrap());
    }
}
