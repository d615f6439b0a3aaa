//! Setting aside what is in a folder: all of it or nothing.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use super::kinds;
use crate::exit::{Code, Told};

/// Moves these parts of a folder into a new one inside it; where that is. If one of them cannot be moved, none is.
pub(super) fn move_parts(path: &Path, parts: &[&str]) -> anyhow::Result<PathBuf> {
    move_parts_by(path, parts, |from, to| fs::rename(from, to))
}

/// A folder that is not there yet, for what is set aside.
pub(super) fn place(path: &Path) -> PathBuf {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    path.join(format!("set-aside-{now}"))
}

fn move_parts_by(
    path: &Path,
    parts: &[&str],
    rename: impl Fn(&Path, &Path) -> io::Result<()>,
) -> anyhow::Result<PathBuf> {
    let failed = || format!("what is in '{}' could not be set aside", path.display());
    let disk = fs::metadata(path).with_context(failed)?.dev();
    let mut there = Vec::new();
    for name in parts.iter().filter(|name| !may_stay(path, name)) {
        // What is mounted there cannot be moved away.
        if fs::symlink_metadata(path.join(name)).with_context(failed)?.dev() != disk {
            return Err(stays(&path.join(name), "it is a mount of its own").into());
        }
        there.push(*name);
    }
    let aside = place(path);
    fs::create_dir(&aside).with_context(failed)?;
    for (at, name) in there.iter().enumerate() {
        if let Err(error) = rename(&path.join(name), &aside.join(name)) {
            for name in &there[..at] {
                rename(&aside.join(name), &path.join(name)).with_context(failed)?;
            }
            fs::remove_dir(&aside).with_context(failed)?;
            return Err(stays(&path.join(name), &error.to_string()).into());
        }
    }
    fs::File::open(path).and_then(|folder| folder.sync_all()).with_context(failed)?;
    Ok(aside)
}

/// A folder that nothing is in may stay, be it a mount or not, unless it is in the place of a file.
fn may_stay(folder: &Path, name: &str) -> bool {
    let path = folder.join(name);
    let is_empty = || fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none());
    match fs::symlink_metadata(&path) {
        Ok(there) => there.is_dir() && kinds::may_be_empty_folder(name) && is_empty(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn stays(part: &Path, why: &str) -> Told {
    let message = format!("'{}' cannot be set aside, so nothing was: {why}", part.display());
    Told::new(Code::Failed, message)
        .next("unmount it, or move what is in it elsewhere; then run the same again")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("store"), "s").unwrap();
        fs::create_dir(folder.path().join("blobs")).unwrap();
        fs::write(folder.path().join("blobs/one"), "1").unwrap();
        fs::create_dir(folder.path().join("empty")).unwrap();
        folder
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|one| one.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    const PARTS: &[&str] = &["store", "absent", "empty", "blobs"];

    #[test]
    fn what_cannot_all_be_set_aside_stays_as_it_is_with_what_to_do() {
        for refused in ["store", "blobs"] {
            let folder = folder();
            let busy = |from: &Path, to: &Path| match from.parent() == Some(folder.path())
                && from.ends_with(refused)
            {
                true => Err(io::Error::from(io::ErrorKind::ResourceBusy)),
                false => fs::rename(from, to),
            };
            for _ in 0..2 {
                let error = move_parts_by(folder.path(), PARTS, busy).unwrap_err();
                let told = error.downcast_ref::<Told>().unwrap();
                assert!(told.message.contains(refused) && told.next.is_some(), "{told:?}");
                assert_eq!(names(folder.path()), ["blobs", "empty", "store"]);
                assert_eq!(names(&folder.path().join("blobs")), ["one"]);
            }
        }
    }

    #[test]
    fn what_is_there_is_set_aside_and_an_empty_folder_may_stay() {
        let folder = folder();
        let aside = move_parts(folder.path(), PARTS).unwrap();
        assert_eq!(names(&aside), ["blobs", "store"]);
        assert!(folder.path().join("empty").is_dir());
    }
}
