//! A file that grows while a run goes on, and comes back where its folder is removed meanwhile: what was written is still there
//! for the process that has it open.

use crate::error::{Error, Result};
use crate::regular_file::{self, FileKind};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// An open file that is appended to.
#[derive(Debug)]
pub struct GrowingFile {
    path: PathBuf,
    file: File,
    came_back: bool,
}

impl GrowingFile {
    /// A new file.
    pub fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(|error| Error::io("create", path, error))?;
        Ok(Self { path: path.to_owned(), file, came_back: false })
    }

    /// The first `bytes` bytes of a file, or all where it has fewer; a new file where there is none. With their number.
    pub fn resume(path: &Path, bytes: u64) -> Result<(Self, u64)> {
        if path.exists() {
            // A named pipe would be waited for.
            regular_file::open(path, FileKind::RUN)?;
        }
        let open = || {
            let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
            let bytes = bytes.min(file.metadata()?.len());
            file.set_len(bytes)?;
            file.seek(SeekFrom::Start(bytes))?;
            Ok((Self { path: path.to_owned(), file, came_back: false }, bytes))
        };
        open().map_err(|error| Error::io("write", path, error))
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends `bytes`, seen by other programs at once.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| Error::io("write", &self.path, error))?;
        self.bring_back()
    }

    /// Brings all bytes to the disk.
    pub fn sync(&mut self) -> Result<()> {
        self.bring_back()?;
        self.file.sync_data().map_err(|error| Error::io("write", &self.path, error))
    }

    /// Whether the file was removed and is there again since the last time that this was asked.
    pub fn came_back(&mut self) -> bool {
        std::mem::take(&mut self.came_back)
    }

    /// Writes the file anew where it was removed, or moved away with its folder.
    fn bring_back(&mut self) -> Result<()> {
        let failed = |error| Error::io("write", &self.path, error);
        if self.path.exists() && self.file.metadata().map_err(failed)?.nlink() > 0 {
            return Ok(());
        }
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.read_to_end(&mut bytes)).map_err(failed)?;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
        let again = Self::create(&self.path).map_err(|error| match error {
            Error::Io { source, .. } if source.kind() == ErrorKind::AlreadyExists => Error::file(
                &self.path,
                "was removed while this run writes it, and another program wrote one of that name; the run ends here",
            ),
            other => other,
        })?;
        *self = Self { came_back: true, ..again };
        self.file.write_all(&bytes).map_err(|error| Error::io("write", &self.path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_comes_back_with_the_next_bytes_and_never_over_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out/logs/x.jsonl");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let (mut file, bytes) = GrowingFile::resume(&path, 9).unwrap();
        assert_eq!(bytes, 0);
        file.append(b"one ").unwrap();
        assert!(!file.came_back());
        std::fs::remove_dir_all(folder.path().join("out")).unwrap();
        file.append(b"two ").unwrap();
        assert!(file.came_back() && !file.came_back());
        std::fs::remove_dir_all(folder.path().join("out")).unwrap();
        file.sync().unwrap();
        file.append(b"three").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one two three");
        std::fs::rename(folder.path().join("out"), folder.path().join("moved")).unwrap();
        file.append(b"!").unwrap();
        assert!(file.came_back());
        assert_eq!(std::fs::read(&path).unwrap(), b"one two three!");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "theirs").unwrap();
        let said = file.append(b"x").unwrap_err().to_string();
        assert!(said.contains("x.jsonl") && said.contains("another program"), "{said}");
        assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
        assert_eq!(GrowingFile::resume(&path, 2).unwrap().1, 2);
        assert_eq!(std::fs::read(&path).unwrap(), b"th");
    }
}
