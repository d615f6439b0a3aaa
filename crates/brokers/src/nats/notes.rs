//! What the server's own count of deliveries does not say, noted durably for each message that needs it: how often it was
//! given back without work on it, and how often work on it began.
//!
//! The server counts each time it sends a message, also to a reader that ends before it takes it.

use std::sync::Arc;
use std::time::Duration;

use sluice_bus::{Delivery, Result};

use super::bucket::Bucket;
use super::link::Link;

/// How long a note outlives its last change: its message went with its topic, or was settled by somebody who did not know
/// of the note.
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a message waits whose beginning could not be noted.
const AGAIN_PAUSE: Duration = Duration::from_secs(1);

/// What is noted of a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Note {
    /// Times that do not count as attempts.
    pub(super) untried: u32,
    /// Times that work began, but for the first.
    pub(super) begun: u32,
}

#[derive(Clone)]
pub(super) struct Notes {
    bucket: Bucket,
    within: Duration,
}

impl Notes {
    pub(super) const fn new(link: Arc<Link>, within: Duration) -> Self {
        Self { bucket: Bucket::new(link, "sluice_notes", MAX_AGE), within }
    }

    pub(super) async fn read(&self, key: &str) -> Result<Note> {
        let entry = self.bucket.get(key, self.within).await?;
        Ok(entry.map(|entry| Note::parse(&entry.value)).unwrap_or_default())
    }

    /// One reader has a message at a time, so nobody else changes its note meanwhile.
    async fn change(&self, key: &str, change: impl FnOnce(&mut Note)) -> Result<Note> {
        let mut note = self.read(key).await?;
        change(&mut note);
        self.bucket.put(key, note.text().into(), None, self.within).await?;
        Ok(note)
    }

    /// Takes one delivery off the count of attempts.
    pub(super) async fn untried(&self, key: &str) -> Result<()> {
        self.change(key, |note| note.untried = note.untried.saturating_add(1)).await.map(drop)
    }

    /// Notes that work begins, and sets how often it has.
    pub(super) async fn begin(&self, key: &str, mut delivery: Delivery) -> Result<Delivery> {
        match self.change(key, |note| note.begun = note.begun.saturating_add(1)).await {
            Ok(note) => {
                delivery.begun = Some(note.begun.saturating_add(1));
                Ok(delivery)
            }
            Err(error) => {
                delivery.untried(AGAIN_PAUSE);
                Err(error)
            }
        }
    }

    /// The message is settled.
    pub(super) async fn forget(&self, key: &str) -> Result<()> {
        match self.bucket.get(key, self.within).await? {
            Some(entry) => self.bucket.remove(entry.revision, self.within).await,
            None => Ok(()),
        }
    }
}

impl Note {
    fn text(self) -> String {
        format!("{} {}", self.untried, self.begun)
    }

    /// What cannot be read says nothing.
    fn parse(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text);
        let mut numbers = text.split(' ').map(|number| number.parse().unwrap_or(0));
        let (untried, begun) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        Self { untried, begun }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let note = Note { untried: 3, begun: 7 };
        assert_eq!(Note::parse(note.text().as_bytes()), note);
        for text in ["", "x", "é 2 3", "-1"] {
            let read = Note::parse(text.as_bytes());
            assert_eq!(read.untried, 0, "{text}");
        }
    }
}
