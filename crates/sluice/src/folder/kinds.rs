//! Whether the parts of a data folder are of their kinds, and this process may use them, before anything is opened.
//!
//! What may not be read or written is there, so it is never told as lost: no way out is offered that would do without it.
//! The same of a folder where a file should be. A pipe or a device is told by its kind, since opening one may wait for ever.

use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::Context as _;
use rustix::fs::{Access, AtFlags, CWD, OFlags, accessat};
use rustix::io::Errno;

use super::{ADMIN_KEY, BLOBS, BROKER, REFUSED, RESERVE, STORE_FILE, TRASH, UPKEEP, Want, contents, mark};
use crate::exit::{Code, Told};

/// What a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    /// A file that is written over in place, so that no link may stand for it.
    OwnFile,
    Folder,
}

/// The parts that are there in every folder, or in most.
const PARTS: &[(&str, Kind)] = &[
    (mark::FILE, Kind::File),
    (STORE_FILE, Kind::File),
    (ADMIN_KEY, Kind::File),
    (RESERVE, Kind::OwnFile),
    (UPKEEP, Kind::File),
    (BLOBS, Kind::Folder),
    (TRASH, Kind::Folder),
    (BROKER, Kind::Folder),
    ("broker/lock", Kind::OwnFile),
    ("broker/reserve", Kind::OwnFile),
];
const LEADS_NOWHERE: &str = "a link that leads to nothing";
/// Those that are made again.
const MADE_AGAIN: &[&str] = &[RESERVE, UPKEEP, TRASH, "broker/lock", "broker/reserve"];

/// Whether a part of this name is a folder, so that an empty one in its place is as good as none.
pub(super) fn may_be_empty_folder(name: &str) -> bool {
    PARTS.iter().all(|(part, kind)| *part != name || *kind == Kind::Folder)
}

/// Insists that each part is of its kind, and may be read.
pub(super) fn check(path: &Path) -> anyhow::Result<()> {
    for (name, kind) in PARTS {
        check_part(path, name, *kind)?;
    }
    for log in contents::logs(path)? {
        check_part(path, &format!("{BROKER}/{log}"), Kind::File)?;
    }
    Ok(())
}

/// The same of what is copied of a damaged folder. What the disk cannot read is lost, and told as that by whoever copies it.
pub(super) fn check_damaged(path: &Path) -> anyhow::Result<()> {
    for (name, kind) in PARTS.iter().filter(|(name, _)| !MADE_AGAIN.contains(name)) {
        unless_of_disk(check_part(path, name, *kind))?;
    }
    for log in unless_of_disk(contents::logs(path))?.unwrap_or_default() {
        unless_of_disk(check_part(path, &format!("{BROKER}/{log}"), Kind::File))?;
    }
    Ok(())
}

/// Nothing in place of what the disk cannot read.
fn unless_of_disk<T>(found: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
    let is_of_disk = |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref().is_some_and(is_of_disk);
    match found {
        Err(error) if error.chain().any(is_of_disk) => Ok(None),
        found => found.map(Some),
    }
}

fn is_of_disk(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::UCLEAN | Errno::BADMSG))
}

/// Whether a file that [`open_file`] does not open is lost: not there, something else, or damaged. Any other may be read by
/// somebody, or at another time.
pub(crate) fn is_lost(error: &io::Error) -> bool {
    let is_gone =
        matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidInput);
    is_gone || is_of_disk(error)
}

/// Opens a file to be read. What is something else is an error that says what, and is not waited for.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    let insist = |there: Metadata| match there.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(
            ErrorKind::InvalidInput,
            format!("it is {} where a file should be", named(there.file_type())),
        )),
    };
    insist(fs::metadata(path)?)?;
    // It may have been replaced since.
    let no_wait = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(no_wait).open(path)?;
    insist(file.metadata()?)?;
    Ok(file)
}

/// All that is in a file, as [`open_file`] opens it.
pub(crate) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_file(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What is said where a folder is to be and something else is, or in the place of one that it is to be in.
pub(crate) fn in_place_of_folder(path: &Path) -> Option<String> {
    let there = path.ancestors().find(|at| fs::symlink_metadata(at).is_ok())?;
    let found = match fs::metadata(there) {
        Ok(found) if found.is_dir() => return None,
        Ok(found) => named(found.file_type()),
        // It is told by whoever makes one there.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return None,
        Err(_) => LEADS_NOWHERE,
    };
    Some(format!("'{}' is {found} where a folder should be", there.display()))
}

/// Insists that this process may write to the parts that it is going to work in.
pub(super) fn check_writable(path: &Path, want: &Want) -> anyhow::Result<()> {
    may(path, Access::WRITE_OK | Access::EXEC_OK, "written to")?;
    let is_ours = |name: &str| want.broker || !name.starts_with(BROKER);
    for (name, kind) in PARTS.iter().filter(|(name, _)| is_ours(name)) {
        match kind {
            // Mark and report are written anew, and the key is only read.
            Kind::File if *name != STORE_FILE => {}
            Kind::File | Kind::OwnFile => may(&path.join(name), Access::WRITE_OK, "written to")?,
            Kind::Folder => may(&path.join(name), Access::WRITE_OK | Access::EXEC_OK, "written to")?,
        }
    }
    if want.broker {
        for log in contents::logs(path)? {
            may(&path.join(BROKER).join(log), Access::WRITE_OK, "written to")?;
        }
    }
    Ok(())
}

fn check_part(path: &Path, name: &str, kind: Kind) -> anyhow::Result<()> {
    let part = path.join(name);
    let there = match fs::symlink_metadata(&part) {
        // What its folder is, is told of that.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        found => found.with_context(|| contents::unreadable(&part))?,
    };
    if there.is_symlink() && kind == Kind::OwnFile {
        return Err(wrong(path, name, "a link", kind).into());
    }
    let there = match fs::metadata(&part) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Err(wrong(path, name, LEADS_NOWHERE, kind).into());
        }
        found => found.with_context(|| contents::unreadable(&part))?.file_type(),
    };
    let is_its_kind = if kind == Kind::Folder { there.is_dir() } else { there.is_file() };
    if !is_its_kind {
        return Err(wrong(path, name, named(there), kind).into());
    }
    match kind {
        Kind::Folder => may(&part, Access::READ_OK | Access::EXEC_OK, "read"),
        // What is held back is not read.
        Kind::OwnFile if name.ends_with(RESERVE) => Ok(()),
        Kind::File | Kind::OwnFile => may(&part, Access::READ_OK, "read"),
    }
}

/// What something is, for people.
fn named(there: FileType) -> &'static str {
    match there {
        _ if there.is_dir() => "a folder",
        _ if there.is_file() => "a file",
        _ if there.is_fifo() => "a pipe",
        _ if there.is_socket() => "a socket",
        _ => "a device",
    }
}

/// Insists that this process may do that with a part, if it is there.
fn may(part: &Path, access: Access, done: &str) -> anyhow::Result<()> {
    match accessat(CWD, part, access, AtFlags::EACCESS) {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        allowed => allowed.map_err(std::io::Error::from).with_context(|| contents::unusable(part, done)),
    }
}

/// The refusal of a part that is something else.
fn wrong(path: &Path, name: &str, found: &str, kind: Kind) -> Told {
    let wanted = if kind == Kind::Folder { "a folder" } else { "a file" };
    let message = format!(
        "the data folder '{}' is not used as it is, and nothing in it was changed: '{name}' is {found} where {wanted} should be",
        path.display()
    );
    let then = if MADE_AGAIN.contains(&name) { " (it is made again)" } else { ", put back what was there" };
    let mut told = Told::new(Code::Failed, message).next(format!(
        "move '{}' away{then}, then start again; to begin empty: --init-empty, which sets aside what is there",
        path.join(name).display()
    ));
    told.kind = REFUSED.to_owned();
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_disk_cannot_read_of_a_damaged_folder_is_lost() {
        let failed = |errno: Errno| -> anyhow::Result<()> {
            Err(io::Error::from(errno)).with_context(|| contents::unreadable(Path::new("blobs")))
        };
        for errno in [Errno::IO, Errno::UCLEAN, Errno::BADMSG] {
            assert_eq!(unless_of_disk(failed(errno)).unwrap(), None);
            assert!(is_lost(&errno.into()));
        }
        for errno in [Errno::ACCESS, Errno::PERM, Errno::LOOP, Errno::MFILE] {
            assert!(unless_of_disk(failed(errno)).is_err() && !is_lost(&errno.into()), "{errno}");
        }
        assert_eq!(unless_of_disk(Ok(1)).unwrap(), Some(1));
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("file"), "text").unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for name in ["file", "link"] {
            assert_eq!(read_file(&path(name)).unwrap(), b"text");
        }
        for (name, says) in [("", "it is a folder"), ("socket", "it is a socket")] {
            let error = open_file(&path(name)).unwrap_err();
            assert!(error.to_string().starts_with(says) && is_lost(&error), "{error}");
        }
        assert_eq!(open_file(&path("none")).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
