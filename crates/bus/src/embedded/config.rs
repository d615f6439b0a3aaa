//! What can be set on the embedded broker, with units and what each trades.

use std::path::PathBuf;
use std::time::Duration;

/// Where a log ends that was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogEnd {
    /// Number of its oldest file.
    pub first_file: u64,
    /// Number of its last file.
    pub last_file: u64,
    /// Size of that file, in bytes.
    pub last_bytes: u64,
}

/// Which data folder a log belongs to, and how far that had come when it was last said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// The id of the folder.
    pub folder: String,
    /// Counts starts and stops of the folder.
    pub generation: u64,
}

/// Settings of the embedded broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The folder of its log, locked while it is open. `None` keeps everything in memory and loses it at the end, for
    /// tests.
    pub dir: Option<PathBuf>,
    /// Makes the log if there is none, by default. Without, a folder that holds no log is refused: what was in it is lost.
    pub create: bool,
    /// The log is only looked at: nothing in the folder is changed, and nothing is taken. Off by default.
    pub is_looked_at: bool,
    /// Where the log ended when it was closed, if that is known and nothing was written since. A log that does not end
    /// there is refused, and nothing of it is cut.
    pub end: Option<LogEnd>,
    /// A folder, made if need be, into which a file of the log is copied before its torn end is cut. Without, which is the
    /// default, the end of a log that was not closed is cut as what nobody was told is kept.
    pub set_aside: Option<PathBuf>,
    /// Bytes of messages kept in memory over all queues, 256 MiB. Half of it, or all where there is no log, is for `flow`
    /// messages and inboxes: beyond it `flow` messages stay in the log alone and are read again for delivery, inboxes lose
    /// what is newest. Half is for `request` messages: beyond it topics are full for a workspace that has more than an equal
    /// part, and others are let in ([`crate::shares`] says how much that may be together).
    pub memory_bytes_max: usize,
    /// Bytes of messages that one queue or inbox keeps in memory, 64 MiB; beyond it the same happens.
    pub queue_bytes_max: usize,
    /// Messages that one `request` subscription holds, 10 000; a publish beyond it fails with [`crate::Error::Full`].
    pub request_messages_max: usize,
    /// Messages that one reader's own inbox holds unread, 65 536; beyond it the newest are dropped and counted.
    pub inbox_messages_max: usize,
    /// The largest body, 64 MiB.
    pub message_bytes_max: usize,
    /// Size of a log file before the next is begun, 32 MiB. Smaller ones give space back earlier and cost more files.
    pub segment_bytes: u64,
    /// Bytes the log may take on disk, without limit by default. At the limit publishers of `flow` topics wait, see
    /// [`Config::disk_wait_max`].
    pub disk_bytes_max: Option<u64>,
    /// Bytes set aside on disk and given free when it is full, 4 MiB, so that messages can still be settled and topics
    /// removed.
    pub disk_reserve_bytes: u64,
    /// How long a publish to a `flow` topic waits for space on a full disk before it fails with
    /// [`crate::Error::Disk`], 5 s.
    pub disk_wait_max: Duration,
    /// Bytes of unsettled `flow` messages above which [`super::Pressure::is_high`], 1 GiB, those counted several times of which
    /// stages make more ([`crate::property::GROWTH`]; once after a restart). One workspace alone should be let in up to three
    /// quarters of it; above it, those that have less than an equal share of it, up to four times the mark in all. Nothing
    /// stops there by itself; the doors should ([`super::Broker::excess`]).
    pub high_water_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dir: None,
            create: true,
            is_looked_at: false,
            end: None,
            set_aside: None,
            memory_bytes_max: 256 << 20,
            queue_bytes_max: 64 << 20,
            request_messages_max: 10_000,
            inbox_messages_max: 65_536,
            message_bytes_max: 64 << 20,
            segment_bytes: 32 << 20,
            disk_bytes_max: None,
            disk_reserve_bytes: 4 << 20,
            disk_wait_max: Duration::from_secs(5),
            high_water_bytes: 1 << 30,
        }
    }
}

impl Config {
    /// The defaults, with the log in `dir`.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        Self { dir: Some(dir.into()), ..Self::default() }
    }
}
