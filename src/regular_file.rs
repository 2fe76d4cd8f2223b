//! The one door through which files of users are read: regular files of a sensible size. A named pipe would be waited for without
//! end, and a device such as `/dev/zero` fills the memory.

use crate::error::{Error, Result};
use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// What a file should be, and the most bytes that such a file has.
#[derive(Debug, Clone, Copy)]
pub struct FileKind {
    noun: &'static str,
    most_bytes: u64,
}

impl FileKind {
    /// A model's, an adapter's or a scheduler's fields, or the index of a model's weights.
    pub const CONFIG: Self = Self::new("a JSON configuration", 64 << 20);
    /// A configuration of the original Stable Diffusion code.
    pub const YAML: Self = Self::new("a YAML configuration", 1 << 20);
    /// A vocabulary, merges, or a whole `tokenizer.json`.
    pub const TOKENIZER: Self = Self::new("a tokenizer's file", 512 << 20);
    /// Flags as TOML.
    pub const FLAGS: Self = Self::new("a TOML file of flags", 1 << 20);
    /// Records to learn from: JSONL, CSV, TSV or Parquet.
    pub const RECORDS: Self = Self::new("a file of records", 8 << 30);
    /// Texts to tokenize, or a prompt.
    pub const TEXT: Self = Self::new("a file of texts", 1 << 30);
    /// A photo's caption: 77 tokens of it are read.
    pub const CAPTION: Self = Self::new("a caption", 1 << 20);
    /// A photo: no photo of the most pixels that are decoded needs more.
    pub const PHOTO: Self = Self::new("a photo", 2 << 30);
    /// What a run writes down of itself.
    pub const RUN: Self = Self::new("a run's own record", 4 << 30);
    /// Weights in the safetensors format: mapped, not read whole.
    pub const SAFETENSORS: Self = Self::new("a .safetensors file", u64::MAX);
    /// Weights in the GGUF format.
    pub const GGUF: Self = Self::new("a .gguf file", u64::MAX);
    /// Any other file of a model, to be copied.
    pub const COPIED: Self = Self::new("a file to copy", u64::MAX);

    const fn new(noun: &'static str, most_bytes: u64) -> Self {
        Self { noun, most_bytes }
    }
}

/// Opens the regular file `path` for reading; nothing else is opened, nor a file of more bytes than its kind has.
pub fn open(path: &Path, kind: FileKind) -> Result<File> {
    let failed = |error| Error::io("read", path, error);
    // Asked first: opening a device can have effects.
    check(path, &std::fs::metadata(path).map_err(failed)?, kind)?;
    // Another file can take the name in between: the opening does not wait for a pipe's other end.
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).map_err(failed)?;
    check(path, &file.metadata().map_err(failed)?, kind)?;
    Ok(file)
}

/// All bytes of the regular file `path`.
pub fn read(path: &Path, kind: FileKind) -> Result<Vec<u8>> {
    let file = open(path, kind)?;
    let mut bytes = Vec::new();
    // It may grow meanwhile, or have no length at all, as those of /proc.
    file.take(kind.most_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
    match bytes.len() as u64 > kind.most_bytes {
        true => Err(too_large(path, bytes.len() as u64, kind)),
        false => Ok(bytes),
    }
}

/// The text of the regular file `path`.
pub fn read_text(path: &Path, kind: FileKind) -> Result<String> {
    text_of(path, read(path, kind)?)
}

/// [`read_text`], or none where there is no such file.
pub fn read_text_if_there(path: &Path, kind: FileKind) -> Result<Option<String>> {
    if_there(read_text(path, kind))
}

/// [`read`], or none where there is no such file.
pub fn read_if_there(path: &Path, kind: FileKind) -> Result<Option<Vec<u8>>> {
    if_there(read(path, kind))
}

fn if_there<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn text_of(path: &Path, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| Error::file(path, "is not UTF-8 text; is it the right file, and whole?"))
}

fn check(path: &Path, about: &Metadata, kind: FileKind) -> Result<()> {
    if !about.is_file() {
        let (found, noun) = (name_of(about.file_type()), kind.noun);
        return Err(Error::file(path, format!("is not a regular file but {found}; it must be {noun}")));
    }
    match about.len() > kind.most_bytes {
        true => Err(too_large(path, about.len(), kind)),
        false => Ok(()),
    }
}

fn too_large(path: &Path, bytes: u64, kind: FileKind) -> Error {
    let most = (kind.most_bytes >> 20, kind.noun);
    Error::file(path, format!("is too large: {} MB, and {} can have {} MB", bytes.div_ceil(1 << 20), most.1, most.0))
}

/// What is there in a regular file's place.
fn name_of(found: FileType) -> &'static str {
    match found {
        found if found.is_dir() => "a folder",
        found if found.is_fifo() => "a named pipe",
        found if found.is_socket() => "a socket",
        _ => "a device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn refusal(path: &Path, kind: FileKind) -> String {
        let refusals = [read(path, kind).map(drop), read_text(path, kind).map(drop), open(path, kind).map(drop)];
        let said = refusals.map(|refused| refused.unwrap_err().to_string());
        assert!(said.iter().all(|text| *text == said[0]), "{said:?}");
        said[0].clone()
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let [pipe, socket, link] = ["pipe", "socket", "link"].map(|name| folder.path().join(name));
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let _listener = UnixListener::bind(&socket).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        let places = [(pipe.as_path(), "a named pipe"), (&socket, "a socket"), (&link, "a device")];
        for (path, found) in
            places.into_iter().chain([(folder.path(), "a folder"), (Path::new("/dev/zero"), "a device")])
        {
            let said = refusal(path, FileKind::CONFIG);
            let name = path.display().to_string();
            assert!(said.contains(&name) && said.contains(found) && said.contains("a JSON configuration"), "{said}");
        }
    }

    #[test]
    fn a_file_of_more_bytes_than_its_kind_has_is_refused_with_both_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        File::create(&path).unwrap().set_len(100 << 30).unwrap();
        let said = refusal(&path, FileKind::CONFIG);
        assert!(said.contains("102400 MB") && said.contains("a JSON configuration can have 64 MB"), "{said}");
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(read_text(&path, FileKind::CONFIG).unwrap(), "{}");
        assert_eq!(read_if_there(&folder.path().join("none"), FileKind::CONFIG).unwrap(), None);
    }
}
