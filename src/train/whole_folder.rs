//! Folders that are there whole or not at all, and the removing of a run's own files from a folder that others use too.

use crate::error::{Error, Result};
use crate::whole_file::{beside, sync, sync_parent, TEMPORARY};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Where a folder waits while its successor takes its name.
const REPLACED: &str = ".lorabooth-old";

/// The folder `path`, whole or not at all: `write` fills an empty folder with the files `ours`, which are made durable
/// before the folder takes the name `path`; some may be in folders of it. A folder that has the name waits beside it until then, and
/// what a user put into it, which is whatever is not called as one of `ours`, moves into the new one; [`restore_replaced`] brings all
/// of it back if the process ended in between.
pub fn write_folder_atomically(path: &Path, ours: &[String], write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (temporary, replaced) = (beside(path, TEMPORARY), beside(path, REPLACED));
    if fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_dir()) {
        return Err(Error::file(path, "is a file or a link where a folder is to be written; move it away"));
    }
    let finish = || -> Result<()> {
        drop(fs::remove_dir_all(&temporary));
        fs::create_dir_all(&temporary).map_err(|error| Error::io("create", path, error))?;
        write(&temporary)?;
        sync_whole(&temporary)?;
        if path.exists() {
            fs::rename(path, &replaced).map_err(|error| Error::io("replace", path, error))?;
        }
        fs::rename(&temporary, path).map_err(|error| Error::io("write", path, error))?;
        sync_parent(path)
    };
    finish().inspect_err(|_| drop(fs::remove_dir_all(&temporary)))?;
    empty_into(&replaced, path, ours)
}

/// Brings a folder with all that is in it to the disk.
fn sync_whole(folder: &Path) -> Result<()> {
    for entry in entries(folder)? {
        if entry.is_dir() { sync_whole(&entry) } else { sync(&entry) }?;
    }
    sync(folder)
}

/// Takes the folder `replaced` away, if it is there: the files `ours` go, everything else moves into `successor`.
fn empty_into(replaced: &Path, successor: &Path, ours: &[String]) -> Result<()> {
    if !fs::symlink_metadata(replaced).is_ok_and(|metadata| metadata.is_dir()) {
        return Ok(());
    }
    remove_own(replaced, ours)?;
    if !replaced.exists() {
        return Ok(());
    }
    for entry in entries(replaced)? {
        let place = successor.join(entry.file_name().unwrap_or_default());
        if !place.exists() {
            fs::rename(&entry, &place).map_err(|error| Error::io("move", &entry, error))?;
        }
    }
    // Fails, rightly, where something of a user's is in both.
    drop(fs::remove_dir(replaced));
    Ok(())
}

/// Removes the files `ours` of the folder `path`, the folders that they are in, and itself, where a user put nothing else into them.
pub(super) fn remove_own(path: &Path, ours: &[impl AsRef<Path>]) -> Result<()> {
    ours.iter().try_for_each(|name| remove_file(&path.join(name)))?;
    for folder in ours.iter().filter_map(|name| name.as_ref().parent()).filter(|folder| *folder != Path::new("")) {
        drop(fs::remove_dir(path.join(folder)));
    }
    // Fails, rightly, where something else is left in it.
    drop(fs::remove_dir(path));
    Ok(())
}

/// Finishes the replacing of folders in `parent` that a process began and did not end: a folder whose successor is not
/// there gets its name back; of another what is not called as one of `ours` moves into the successor.
pub fn restore_replaced(parent: &Path, ours: &[String]) -> Result<()> {
    for entry in entries(parent)? {
        if let Some(name) = name_of(&entry).strip_prefix('.').and_then(|name| name.strip_suffix(REPLACED)) {
            let place = parent.join(name);
            if place.exists() {
                empty_into(&entry, &place, ours)?;
            } else {
                fs::rename(&entry, &place).map_err(|error| Error::io("restore", &place, error))?;
            }
        }
    }
    Ok(())
}

pub(super) fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// What lies in `folder`, sorted.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(folder).map_err(|error| Error::io("read", folder, error))?;
    let mut paths: Vec<PathBuf> = list.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

/// Removes a file, if it is there.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Err(Error::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(folder: &Path, name: &str) {
        fs::write(folder.join(name), "x").unwrap();
    }

    #[test]
    fn a_folder_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint-1");
        for name in ["first", "second"] {
            write_folder_atomically(&path, &["first", "second"].map(str::to_owned), |temporary| {
                touch(temporary, name);
                Ok(())
            })
            .unwrap();
        }
        assert_eq!(entries(&path).unwrap(), [path.join("second")]);
        assert_eq!(entries(folder.path()).unwrap(), [path]);
    }
}
