//! A file that is made beside its place: it is there as a whole, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

/// Has a file written and puts it in its place, where it takes that of what was there. One that cannot be written leaves nothing.
pub(super) fn make(path: &Path, write: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let new = path.with_extension("new");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&new)?;
    write(&file).and_then(|()| put_in_place(&file, &new, path)).inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

pub(in crate::embedded) fn put_in_place(file: &File, new: &Path, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    fs::rename(new, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_or_put_in_place_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.redb");
        make(&path, |_| Err(io::ErrorKind::StorageFull.into())).unwrap_err();
        fs::create_dir_all(path.join("in the way")).unwrap();
        make(&path, |file| file.set_len(10)).unwrap_err();
        assert!(!path.with_extension("new").exists());
        fs::remove_dir_all(&path).unwrap();
        make(&path, |file| file.set_len(10)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 10);
        assert!(!path.with_extension("new").exists());
    }
}
