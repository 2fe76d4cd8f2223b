//! One repository in the cache that Python's huggingface_hub shares
//! (<https://huggingface.co/docs/huggingface_hub/guides/manage-cache>):
//!
//! ```text
//! models--owner--name/blobs/ETAG                     each content once; ETAG.incomplete while it comes
//! models--owner--name/snapshots/COMMIT/unet/config.json -> ../../../blobs/ETAG
//! models--owner--name/refs/main                      the commit that a branch or tag stood for
//! .locks/models--owner--name/ETAG.lock               held by the process that downloads a blob
//! ```
//!
//! Nothing is written through a link that leads out of the cache.

use super::names;
use crate::error::{Error, Result};
use crate::whole_file::beside;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{symlink, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file in `refs` holds one name; what is longer is none.
const LONGEST_REFERENCE: u64 = 200;

/// Where one repository is in the cache.
pub(super) struct RepositoryCache {
    root: PathBuf,
    name: String,
}

/// The right to write a blob.
pub(super) enum Lock {
    /// Held until the file is dropped.
    Held(#[allow(dead_code, reason = "held, not read")] File),
    /// The file system has no locks.
    Unknown,
    /// Another process has it.
    Taken,
}

/// A blob that is not whole yet.
pub(super) struct Partial {
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// Bytes of an earlier attempt.
    pub(super) length: u64,
}

impl RepositoryCache {
    pub(super) fn new(root: &Path, id: &str) -> Self {
        Self { root: root.to_owned(), name: format!("models--{}", id.replace('/', "--")) }
    }

    fn folder(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    fn blob(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(etag)
    }

    /// The commit that `revision` stood for when it was last fetched, or is.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        let reference = self.folder().join("refs").join(revision);
        let is_short_file = |data: fs::Metadata| data.is_file() && data.len() <= LONGEST_REFERENCE;
        let commit = match fs::metadata(&reference).is_ok_and(is_short_file) {
            true => fs::read_to_string(&reference).ok()?.trim().to_owned(),
            false => revision.to_owned(),
        };
        Some(commit).filter(|commit| names::is_plain(commit))
    }

    /// Notes that `revision` is `commit`.
    pub(super) fn note_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.place("refs", revision)?;
        let temporary = temporary(&path);
        let written = fs::write(&temporary, commit).and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|error| given_up(&temporary, "write", &path, error))
    }

    /// The path of `name` below the repository's `folder`, whose folders are made.
    fn place(&self, folder: &str, name: &str) -> Result<PathBuf> {
        let path = Path::new(&self.name).join(folder).join(name);
        let parent = self.make_folder(path.parent().unwrap_or(Path::new("")))?;
        Ok(parent.join(path.file_name().unwrap_or_default()))
    }

    /// Makes the folder `below` the cache. A link on the way must not lead out of it.
    fn make_folder(&self, below: &Path) -> Result<PathBuf> {
        let create = |path: &Path| fs::create_dir_all(path).map_err(|error| Error::io("create", path, error));
        create(&self.root)?;
        let root = self.root.canonicalize().map_err(|error| Error::io("find", &self.root, error))?;
        let mut path = self.root.clone();
        for part in below.components() {
            path.push(part);
            let leads_out = || path.canonicalize().map_or(true, |to| !to.starts_with(&root));
            if path.is_symlink() && leads_out() {
                return Err(Error::file(
                    &path,
                    "is a link that leads out of the cache, and nothing is written through it; remove it, or set HF_HUB_CACHE to a folder without such links",
                ));
            }
            create(&path)?;
        }
        Ok(path)
    }

    /// Whether the blob is here with `size` bytes.
    pub(super) fn has_blob(&self, etag: &str, size: u64) -> bool {
        fs::metadata(self.blob(etag)).is_ok_and(|data| data.is_file() && data.len() == size)
    }

    /// Whether the commit's file `name` is here.
    pub(super) fn has(&self, commit: &str, name: &str) -> bool {
        fs::metadata(self.snapshot(commit).join(name)).is_ok_and(|data| data.is_file())
    }

    /// Lets the commit's file `name` be the blob `etag`.
    pub(super) fn link(&self, commit: &str, name: &str, etag: &str) -> Result<()> {
        let path = self.place(&format!("snapshots/{commit}"), name)?;
        let up = "../".repeat(2 + name.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        if path.read_link().is_ok_and(|to| to == target) {
            return Ok(());
        }
        let temporary = temporary(&path);
        let linked = match symlink(&target, &temporary) {
            // Some file systems have no links: the file itself then, as Python does it.
            Err(error) if has_no_links(&error) => fs::rename(self.blob(etag), &path),
            made => made.and_then(|()| fs::rename(&temporary, &path)),
        };
        linked.map_err(|error| given_up(&temporary, "write", &path, error))
    }

    /// Asks for the right to write the blob `etag`.
    pub(super) fn lock(&self, etag: &str) -> Result<Lock> {
        let folder = self.make_folder(&Path::new(".locks").join(&self.name))?;
        let path = folder.join(format!("{etag}.lock"));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = options.open(&path).map_err(|error| Error::io("write", &path, error))?;
        Ok(match file.try_lock() {
            Ok(()) => Lock::Held(file),
            Err(TryLockError::WouldBlock) => Lock::Taken,
            Err(TryLockError::Error(_)) => Lock::Unknown,
        })
    }

    /// Bytes of the blob `etag` that another process has written.
    pub(super) fn length_so_far(&self, etag: &str) -> u64 {
        let incomplete = self.blob(&format!("{etag}.incomplete"));
        [incomplete, self.blob(etag)].iter().find_map(|path| fs::metadata(path).ok()).map_or(0, |data| data.len())
    }

    /// What an earlier attempt left of the blob `etag`, or a new file; one of this process alone where locks are unknown.
    pub(super) fn partial(&self, etag: &str, lock: &Lock) -> Result<Partial> {
        let own = match lock {
            Lock::Held(_) => String::new(),
            Lock::Unknown | Lock::Taken => format!(".{}", std::process::id()),
        };
        let path = self.place("blobs", &format!("{etag}{own}.incomplete"))?;
        let failed = |error| Error::io("write", &path, error);
        // A link, a pipe, or a second name of another file is no partial blob.
        let is_ours = |data: &fs::Metadata| data.is_file() && data.nlink() == 1;
        if fs::symlink_metadata(&path).is_ok_and(|data| !is_ours(&data)) {
            fs::remove_file(&path).map_err(failed)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        Ok(Partial { file, length, path })
    }

    /// Gives the partial blob, which is whole with `size` bytes, its name. Some network file systems grant a lock to everybody:
    /// two processes then write the same bytes to the same places, and the first gives the name.
    pub(super) fn keep(&self, partial: &Partial, etag: &str, size: u64) -> Result<()> {
        let blob = self.blob(etag);
        match partial.file.sync_all().and_then(|()| fs::rename(&partial.path, &blob)) {
            Err(error) if error.kind() == ErrorKind::NotFound && self.has_blob(etag, size) => Ok(()),
            kept => kept.map_err(|error| Error::io("write", &blob, error)),
        }
    }

    /// Takes the commit's file `name` and its blob out of the cache, so that they are fetched again.
    pub(super) fn discard(&self, commit: &str, name: &str) -> Result<()> {
        let path = self.place(&format!("snapshots/{commit}"), name)?;
        let blob = self.blob_of(&path);
        for path in blob.iter().chain([&path]) {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io("remove", path, error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The blob that a snapshot's file is a link to.
    pub(super) fn blob_of(&self, path: &Path) -> Option<PathBuf> {
        let blobs = self.folder().join("blobs").canonicalize().ok()?;
        let blob = path.is_symlink().then(|| path.canonicalize().ok()).flatten()?;
        (blob.parent() == Some(&blobs)).then_some(blob)
    }
}

/// A name beside `path` that no other process writes.
fn temporary(path: &Path) -> PathBuf {
    let temporary = beside(path, &format!(".{}{}", std::process::id(), crate::whole_file::TEMPORARY));
    // Of a process with the same number that was killed.
    _ = fs::remove_file(&temporary);
    temporary
}

fn given_up(temporary: &Path, action: &'static str, path: &Path, error: std::io::Error) -> Error {
    _ = fs::remove_file(temporary);
    Error::io(action, path, error)
}

fn has_no_links(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported)
        || matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "someone/a-model";
    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn cache(root: &Path) -> RepositoryCache {
        RepositoryCache::new(root, ID)
    }

    fn write_blob(cache: &RepositoryCache, etag: &str, bytes: &[u8]) {
        let lock = cache.lock(etag).unwrap();
        let partial = cache.partial(etag, &lock).unwrap();
        fs::write(&partial.path, bytes).unwrap();
        cache.keep(&partial, etag, bytes.len() as u64).unwrap();
    }

    #[test]
    fn the_layout_is_that_of_pythons_library() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        write_blob(&cache, "abc", b"{}");
        cache.link(COMMIT, "unet/config.json", "abc").unwrap();
        cache.note_commit("refs/pr/1", COMMIT).unwrap();
        let folder = dir.path().join("models--someone--a-model");
        let link = folder.join("snapshots").join(COMMIT).join("unet/config.json");
        assert_eq!(link.read_link().unwrap(), Path::new("../../../blobs/abc"));
        assert_eq!(fs::read(&link).unwrap(), b"{}");
        assert_eq!(fs::read_to_string(folder.join("refs/refs/pr/1")).unwrap(), COMMIT);
        assert_eq!(cache.commit_of("refs/pr/1").as_deref(), Some(COMMIT));
        assert!(cache.has_blob("abc", 2) && !cache.has_blob("abc", 3) && cache.has(COMMIT, "unet/config.json"));
        assert!(dir.path().join(".locks/models--someone--a-model/abc.lock").is_file());

        cache.discard(COMMIT, "unet/config.json").unwrap();
        assert!(!link.is_symlink() && !cache.has_blob("abc", 2));
    }

    #[test]
    fn one_process_at_a_time_writes_a_blob() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let held = cache.lock("abc").unwrap();
        assert!(matches!(held, Lock::Held(_)) && matches!(cache.lock("abc").unwrap(), Lock::Taken));
        assert!(matches!(cache.lock("other").unwrap(), Lock::Held(_)));
        drop(held);
        assert!(matches!(cache.lock("abc").unwrap(), Lock::Held(_)));
    }

    #[test]
    fn nothing_is_written_through_a_planted_link() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("hub"), dir.path().join("outside"));
        fs::create_dir_all(&outside).unwrap();
        let victim = outside.join("victim");
        fs::write(&victim, "mine").unwrap();
        let repository = root.join("models--someone--a-model");
        for folder in ["blobs", "refs", "snapshots"] {
            fs::create_dir_all(&repository).unwrap();
            symlink(&outside, repository.join(folder)).unwrap();
            let cache = cache(&root);
            let lock = cache.lock("victim").unwrap();
            let refused = [
                cache.partial("victim", &lock).map(drop),
                cache.note_commit("victim", COMMIT),
                cache.link(COMMIT, "victim", "abc"),
            ];
            let said: Vec<String> = refused.into_iter().filter_map(|r| r.err()).map(|e| e.to_string()).collect();
            assert!(said.len() == 1 && said[0].contains("leads out of the cache"), "{folder}: {said:?}");
            fs::remove_dir_all(&repository).unwrap();
        }
        // A link in a file's own place gives way, and what it names stays.
        fs::create_dir_all(repository.join("blobs")).unwrap();
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::create_dir_all(repository.join("snapshots").join(COMMIT)).unwrap();
        symlink(&victim, repository.join("blobs/abc.incomplete")).unwrap();
        symlink(&victim, repository.join("refs/main")).unwrap();
        symlink(&victim, repository.join("snapshots").join(COMMIT).join("config.json")).unwrap();
        let cache = cache(&root);
        write_blob(&cache, "abc", b"new");
        cache.note_commit("main", COMMIT).unwrap();
        cache.link(COMMIT, "config.json", "abc").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
        assert_eq!(cache.commit_of("main").as_deref(), Some(COMMIT));
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }
}
