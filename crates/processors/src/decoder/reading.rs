//! Reading one document: in this process where nothing can go wrong, else in a process of its own; and how many of those run
//! at once, for which workspaces.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sluice_documents::{Event, Kind, Limits};
use sluice_sdk::Failure;

use super::process::Process;
use crate::fair::{Slot, Slots};
use crate::sandbox::own_program;

/// Seconds of computing that a document may take however small it is.
const CPU_SECONDS: u64 = 10;
/// Seconds of computing that a document may take more for each million bytes.
const CPU_SECONDS_PER_MB: u64 = 5;

/// How documents are read.
#[derive(Debug, Clone)]
pub struct DecodingConfig {
    /// The program that reads one document and serves `sluice_documents::child` on its standard streams. Default: this
    /// program.
    pub program: PathBuf,
    /// Its arguments. Default: `decode`.
    pub arguments: Vec<String>,
    /// What is taken of a document.
    pub limits: Limits,
    /// Bytes of a document; a longer one is refused. Default 128 MiB.
    pub document_bytes_max: usize,
    /// Bytes of address space of a reading process. Default 1 GiB.
    pub memory_bytes_max: u64,
    /// Seconds of computing that a reading process may use, all together, however large the document is. Default 300.
    pub cpu_seconds_max: u64,
    /// Longest wait for the next part from a reading process. All waits together may take as long, and as long as it may
    /// compute. Default 60 s.
    pub part_timeout: Duration,
    /// Reading processes at once, over all flows of this process; workspaces get them in turn. Default 2.
    pub processes_max: usize,
}

impl Default for DecodingConfig {
    fn default() -> Self {
        Self {
            program: own_program(),
            arguments: vec!["decode".to_owned()],
            limits: Limits::default(),
            document_bytes_max: 128 * 1024 * 1024,
            memory_bytes_max: 1024 * 1024 * 1024,
            cpu_seconds_max: 300,
            part_timeout: Duration::from_secs(60),
            processes_max: 2,
        }
    }
}

impl DecodingConfig {
    /// Seconds of computing that a document of this size may take.
    pub(super) fn cpu_seconds(&self, content_bytes: usize) -> u64 {
        let megabytes = (content_bytes as u64).div_ceil(1_000_000);
        self.cpu_seconds_max.min(CPU_SECONDS + CPU_SECONDS_PER_MB * megabytes)
    }
}

/// How documents are read in this program; one for all flows. Cheap to clone.
#[derive(Clone)]
pub struct Decoding(Arc<Shared>);

struct Shared {
    config: DecodingConfig,
    slots: Slots,
}

impl Default for Decoding {
    fn default() -> Self {
        Self::new(DecodingConfig::default())
    }
}

impl Decoding {
    /// With these settings.
    #[must_use]
    pub fn new(config: DecodingConfig) -> Self {
        let slots = Slots::new(config.processes_max);
        Self(Arc::new(Shared { config, slots }))
    }

    pub(super) fn config(&self) -> &DecodingConfig {
        &self.0.config
    }

    /// Waits until a process may run for a workspace, and its document be in memory.
    pub(super) async fn slot(&self, workspace: &Arc<str>) -> Slot {
        self.0.slots.take(workspace).await
    }

    /// Begins to read a document that is [plain](sluice_documents::plain), here.
    pub(super) async fn open_plain(
        &self,
        kind: Kind,
        declared: &str,
        content: Bytes,
    ) -> Result<Reading, Failure> {
        let (declared, limits) = (declared.to_owned(), self.config().limits.clone());
        let read = tokio::task::spawn_blocking(move || {
            let mut told = Vec::new();
            let sink = &mut |event| {
                told.push(event);
                Ok(())
            };
            // The sink takes everything.
            let _ = sluice_documents::read(kind, &declared, content.into(), &limits, sink);
            told
        });
        Ok(Reading::Here(read.await.map_err(Failure::again)?.into_iter()))
    }

    /// Begins to read a document in a process of its own.
    pub(super) async fn open(&self, declared: &str, content: &[u8]) -> Result<Reading, Failure> {
        Ok(Reading::Apart(Box::new(Process::start(self.config(), declared, content).await?)))
    }
}

/// A document being read.
pub(super) enum Reading {
    Here(std::vec::IntoIter<Event>),
    Apart(Box<Process>),
}

impl Reading {
    /// The next event; the last is always [`Event::End`] or [`Event::Failed`].
    pub(super) async fn next(&mut self) -> Result<Event, Failure> {
        match self {
            Self::Here(events) => Ok(events.next().unwrap_or(Event::End)),
            Self::Apart(process) => process.next().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_may_take_as_long_as_its_size_says_and_no_longer_than_was_set() {
        let seconds = |bytes| DecodingConfig::default().cpu_seconds(bytes);
        assert_eq!([seconds(0), seconds(50), seconds(7_500_000)], [10, 15, 50]);
        assert_eq!(seconds(128 << 20), 300);
        let strict = DecodingConfig { cpu_seconds_max: 2, ..DecodingConfig::default() };
        assert_eq!(strict.cpu_seconds(128 << 20), 2);
    }
}
