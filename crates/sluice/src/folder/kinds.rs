//! Whether the parts of a data folder are of their kinds, and this process may use them, before anything is opened.
//!
//! What may not be read or written is there, so it is never told as lost: no way out is offered that would do without it.
//! The same of a folder where a file should be. A pipe or a device is told by its kind, since opening one may wait for ever.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use anyhow::Context as _;
use rustix::fs::{Access, AtFlags, CWD, accessat};

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
            return Err(wrong(path, name, "a link that leads to nothing", kind).into());
        }
        found => found.with_context(|| contents::unreadable(&part))?.file_type(),
    };
    let is_its_kind = if kind == Kind::Folder { there.is_dir() } else { there.is_file() };
    if !is_its_kind {
        let found = match there {
            _ if there.is_dir() => "a folder",
            _ if there.is_file() => "a file",
            _ if there.is_fifo() => "a pipe",
            _ if there.is_socket() => "a socket",
            _ => "a device",
        };
        return Err(wrong(path, name, found, kind).into());
    }
    match kind {
        Kind::Folder => may(&part, Access::READ_OK | Access::EXEC_OK, "read"),
        // What is held back is not read.
        Kind::OwnFile if name.ends_with(RESERVE) => Ok(()),
        Kind::File | Kind::OwnFile => may(&part, Access::READ_OK, "read"),
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
