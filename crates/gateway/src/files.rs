//! How many files this process may have open, since each connection is one and so is everything that the inside needs.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More than this is not asked for: a limit in the millions makes programs slow that walk through all of it.
const WANTED_FILES_MAX: u64 = 65_536;
/// Files that connections never get, at least: store, log, broker, documents being read.
const INSIDE_FILES_MIN: usize = 256;
/// Connections are served even where almost no files are to be had.
const CONNECTIONS_MIN: usize = 16;

/// Raises this process's limit of open files as far as it may, and gives what it is then.
pub(crate) fn raise() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(WANTED_FILES_MAX).min(WANTED_FILES_MAX);
    let mut files = limit.current.unwrap_or(WANTED_FILES_MAX);
    if files < wanted {
        match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }) {
            Ok(()) => files = wanted,
            Err(error) => tracing::warn!(%error, files, "the limit of open files could not be raised"),
        }
    }
    usize::try_from(files).unwrap_or(usize::MAX)
}

/// How many of so many files may be connections: the inside keeps a quarter, at least [`INSIDE_FILES_MIN`].
pub(crate) fn for_connections(files: usize) -> usize {
    files.saturating_sub((files / 4).max(INSIDE_FILES_MIN)).max(CONNECTIONS_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inside_keeps_files_of_its_own() {
        assert_eq!(for_connections(1_024), 768);
        assert_eq!(for_connections(65_536), 49_152);
        assert_eq!(for_connections(100), CONNECTIONS_MIN);
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        let files = raise();
        let limit = getrlimit(Resource::Nofile);
        let wanted = limit.maximum.unwrap_or(WANTED_FILES_MAX).min(WANTED_FILES_MAX);
        assert!(limit.current.is_none_or(|current| current >= wanted), "{limit:?}");
        assert!(files as u64 >= wanted);
    }
}
