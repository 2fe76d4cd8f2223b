//! Files that are there whole or not at all: written under a temporary name beside their place, then renamed.

use crate::error::{Error, Result};
use image::{ImageFormat, RgbImage};
use std::fs::File;
use std::io::{BufWriter, Cursor, Write};
use std::path::{Path, PathBuf};

/// What temporary names end in: what is left of a process that was killed is known by it.
pub const TEMPORARY: &str = ".lorabooth-tmp";

/// The name beside `path` for what is not yet, or no longer, in its place.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}{suffix}"))
}

/// Brings a file, or a folder's list of names, to the disk.
pub fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| Error::io("write", path, error))
}

/// Brings the name of `path` to the disk.
pub fn sync_parent(path: &Path) -> Result<()> {
    sync(folder_of(path))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file that appears at its path when it is finished. Dropped before that, it leaves nothing.
pub struct WholeFile {
    path: PathBuf,
    temporary: PathBuf,
    writer: Option<BufWriter<File>>,
}

impl WholeFile {
    /// Starts the file `path`; its folder is made where it is missing. A link stays, and what it names is written. A folder, a
    /// device or a pipe is refused: it would give way to the file.
    pub fn create(path: &Path) -> Result<Self> {
        let named = path.canonicalize().or_else(|_| path.read_link().map(|to| folder_of(path).join(to)));
        let path = named.as_deref().unwrap_or(path);
        if path.exists() && !path.is_file() {
            return Err(Error::file(path, "is not a regular file; name a regular file or a new one"));
        }
        let folder = folder_of(path);
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        path.file_name().ok_or_else(|| Error::file(path, "is not a file name"))?;
        let temporary = beside(path, TEMPORARY);
        let file = File::create(&temporary).map_err(|e| Error::io("write", path, e))?;
        Ok(Self { path: path.to_owned(), temporary, writer: Some(BufWriter::new(file)) })
    }

    /// Appends `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.writer {
            Some(writer) => writer.write_all(bytes).map_err(|e| Error::io("write", &self.path, e)),
            None => Ok(()),
        }
    }

    /// Brings all bytes to the disk and gives the file its name.
    pub fn finish(mut self) -> Result<()> {
        let failed = |e: std::io::Error| Error::io("write", &self.path, e);
        if let Some(writer) = self.writer.take() {
            let file = writer.into_inner().map_err(|e| failed(e.into_error()))?;
            file.sync_all().map_err(failed)?;
        }
        std::fs::rename(&self.temporary, &self.path).map_err(failed)?;
        sync_parent(&self.path)
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        // After `finish` the name is gone, and there is nothing to remove.
        drop(self.writer.take());
        _ = std::fs::remove_file(&self.temporary);
    }
}

/// Writes `bytes` to `path`, whole or not at all.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = WholeFile::create(path)?;
    file.write(bytes)?;
    file.finish()
}

/// Writes `picture` as PNG, whole or not at all.
pub fn write_png(path: &Path, picture: &RgbImage) -> Result<()> {
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, ImageFormat::Png).map_err(|error| Error::file(path, error.to_string()))?;
    write_whole(path, png.get_ref())
}

/// Writes `value` as JSON, indented by two spaces, with a line end, whole or not at all.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| Error::file(path, error.to_string()))?;
    text.push(b'\n');
    write_whole(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_finished_leaves_the_old_one_and_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/x.json");
        write_whole(&path, b"old").unwrap();
        let mut file = WholeFile::create(&path).unwrap();
        file.write(b"half").unwrap();
        drop(file);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_stays_a_link_and_what_is_no_file_stays_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::os::unix::fs::symlink("target", &link).unwrap();
        write_whole(&link, b"old").unwrap();
        write_whole(&link, b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        let error = write_whole(Path::new("/dev/null"), b"x").unwrap_err().to_string();
        assert!(error.contains("/dev/null") && error.contains("not a regular file"), "{error}");
    }
}
