//! The lock of a folder: one process at a time writes a run into it.

use crate::error::{Error, Result};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The hidden file that is locked, with the id of the process that has it. The lock ends with the process, so a file that a
/// killed one left is in nobody's way.
pub const LOCK_FILE: &str = ".lorabooth-lock";
/// An id has no more digits.
const MAX_DIGITS: u64 = 20;

/// A folder that this process alone writes to, until it is dropped.
#[derive(Debug)]
pub struct FolderLock {
    path: PathBuf,
    file: File,
}

impl FolderLock {
    /// Takes the lock of `folder`, or says which process has it. A file system without locks has none to take.
    pub fn take(folder: &Path) -> Result<Self> {
        let path = folder.join(LOCK_FILE);
        loop {
            // A link here could name any file of the user's.
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path);
            let mut file = opened.map_err(|error| Error::io("write to", folder, error))?;
            if let Err(TryLockError::WouldBlock) = file.try_lock() {
                return Err(busy(folder, &mut file));
            }
            let lock = Self { path: path.clone(), file };
            // The one before may have removed the file between the two lines above: then this is the lock of nothing.
            if lock.is_of_its_path() {
                // Without it the next one is refused without a number.
                drop(lock.file.set_len(0).and_then(|()| writeln!(&lock.file, "{}", std::process::id())));
                return Ok(lock);
            }
        }
    }

    /// Refuses a folder that a run is writing to.
    pub fn check_free(folder: &Path) -> Result<()> {
        let Ok(mut file) = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(folder.join(LOCK_FILE))
        else {
            return Ok(());
        };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(busy(folder, &mut file)),
            _ => Ok(()),
        }
    }

    fn is_of_its_path(&self) -> bool {
        let same = |named: fs::Metadata, own: fs::Metadata| (named.dev(), named.ino()) == (own.dev(), own.ino());
        match (fs::symlink_metadata(&self.path), self.file.metadata()) {
            (Ok(named), Ok(own)) => same(named, own),
            _ => false,
        }
    }

    /// Removes the file, so that the folder can be empty; the lock ends when it is dropped.
    pub fn remove_file(&self) {
        if self.is_of_its_path() {
            drop(fs::remove_file(&self.path));
        }
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        self.remove_file();
    }
}

/// The refusal of a `folder` whose lock `file` another process has.
fn busy(folder: &Path, file: &mut File) -> Error {
    let mut text = String::new();
    drop(file.take(MAX_DIGITS).read_to_string(&mut text));
    let process = text.trim().parse::<u32>().map_or(String::new(), |id| format!(" (process {id})"));
    Error::file(
        folder,
        format!("another run{process} is writing to this folder; wait until it ends, or name another folder"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_folder_is_refused_with_the_process_and_is_free_again_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(folder.path()).unwrap();
        for refused in [FolderLock::take(folder.path()).map(drop), FolderLock::check_free(folder.path())] {
            let message = refused.unwrap_err().to_string();
            assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
        }
        drop(lock);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        FolderLock::check_free(folder.path()).unwrap();
        FolderLock::take(folder.path()).unwrap();
    }

    #[test]
    fn what_a_killed_process_left_is_no_obstacle_and_a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(LOCK_FILE), "1\n").unwrap();
        FolderLock::check_free(folder.path()).unwrap();
        drop(FolderLock::take(folder.path()).unwrap());
        let precious = folder.path().join("precious");
        fs::write(&precious, "mine").unwrap();
        std::os::unix::fs::symlink(&precious, folder.path().join(LOCK_FILE)).unwrap();
        FolderLock::take(folder.path()).unwrap_err();
        assert_eq!(fs::read_to_string(&precious).unwrap(), "mine");
    }
}
