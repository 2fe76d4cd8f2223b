//! One file from a hub into the cache: claimed, locked, continued where it stopped, counted, verified, and only then named.

use super::cache::{Lock, Partial, RepositoryCache};
use super::client::{Answer, Client, WEB_PAGE};
use super::digest::Digest;
use super::failure::{Attempt, Attempted, Failure};
use super::{names, Download, Listener};
use crate::error::{Error, Result};
use crate::regular_file::{self, FileKind};
use crate::weights::mapped_file::MappedFile;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// How often a file is tried again.
const RETRIES: u32 = 3;
/// Bytes that bring the number of tries back: a long download may break off now and then.
const WORTH_MORE: u64 = 8 << 20;
/// Between two looks at what another process does, and at whether to stop.
const POLL: Duration = Duration::from_millis(100);
/// Between two reports of the bytes that came.
const REPORTS: Duration = Duration::from_millis(100);
/// Bytes that are read from disk at once.
const BLOCK: usize = 1 << 20;
/// Files in the cache up to this size are verified again each time; larger ones where their own form is broken.
const SMALL: u64 = 32 << 20;

/// A file that holds no weights is smaller than this.
const LARGEST_TEXT: u64 = 1 << 30;

/// Fetches files of one commit.
pub(super) struct Transfer<'a> {
    pub(super) attempt: Attempt<'a>,
    pub(super) client: &'a Client,
    pub(super) cache: &'a RepositoryCache,
    pub(super) commit: &'a str,
}

/// What the hub says of a file before it comes.
#[derive(Debug, PartialEq, Eq)]
struct Claim {
    etag: String,
    size: u64,
}

impl Transfer<'_> {
    /// Brings the file `name` into the commit's folder, where it is not there yet.
    pub(super) fn file(&self, name: &str, listener: &mut dyn Listener) -> Result<()> {
        listener.check()?;
        if self.cache.has(self.commit, name) {
            match self.is_whole(name, listener)? {
                true => return Ok(()),
                false => self.cache.discard(self.commit, name)?,
            }
        }
        let (mut tries, mut last) = (0, 0);
        loop {
            let mut reached = 0;
            let failure = match self.attempt_file(name, &mut reached, listener) {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            if failure.is_cut() && reached >= last + WORTH_MORE {
                tries = 0;
            }
            (tries, last) = (tries + 1, last.max(reached));
            match failure.pause(tries).filter(|_| tries <= RETRIES) {
                Some(pause) => rest(pause, listener)?,
                None => return Err(self.attempt.error(failure, Some(name))),
            }
        }
    }

    /// Whether the file in the cache is what the hub named, as far as that costs nothing: a small one by its checksum, a large one
    /// where it is no whole safetensors file.
    fn is_whole(&self, name: &str, listener: &mut dyn Listener) -> Result<bool> {
        let path = self.cache.snapshot(self.commit).join(name);
        let Some(blob) = self.cache.blob_of(&path) else {
            return Ok(true);
        };
        let mut file = regular_file::open(&blob, FileKind::COPIED)?;
        let size = file.metadata().map_err(|error| Error::io("read", &blob, error))?.len();
        let looks_broken = || name.ends_with(".safetensors") && MappedFile::open(&path).is_err();
        if size > SMALL && !looks_broken() {
            return Ok(true);
        }
        let etag = blob.file_name().unwrap_or_default().to_string_lossy();
        let mut digest = Digest::of(&etag, size);
        digest_file(&mut file, size, &mut digest, listener).map_err(|error| read_failed(error, &blob))?;
        Ok(digest.matches(&etag))
    }

    /// One attempt; `reached` is how far it came.
    fn attempt_file(&self, name: &str, reached: &mut u64, listener: &mut dyn Listener) -> Attempted<()> {
        let url = self.client.file_address(self.attempt.id, self.commit, name);
        let mut answer = self.client.get(url.clone(), Some(0), listener)?;
        if answer.head.status == 416 && total_of_range(&answer) != Some(0) {
            // An empty file has no byte 0; this is a server that takes no ranges.
            answer = self.client.get(url.clone(), None, listener)?;
        }
        let claim = self.claim(name, &answer)?;
        let (mut answer, mut watched) = (Some(answer), None);
        let lock = loop {
            if self.cache.has_blob(&claim.etag, claim.size) {
                return Ok(self.cache.link(self.commit, name, &claim.etag)?);
            }
            match self.cache.lock(&claim.etag)? {
                Lock::Taken => {
                    // What was asked for comes to the other process.
                    answer = None;
                    let done = self.cache.length_so_far(&claim.etag).min(claim.size);
                    if watched.replace(done) != Some(done) {
                        listener.on(Download { file: name, done, total: claim.size });
                    }
                    rest(POLL, listener)?;
                }
                lock => break lock,
            }
        };
        let partial = self.cache.partial(&claim.etag, &lock)?;
        let mut incoming = Incoming::new(name, &claim, partial, self.attempt);
        let outcome = self.receive(&mut incoming, answer, &url, listener);
        *reached = incoming.done;
        if outcome.is_err() && !matches!(lock, Lock::Held(_)) {
            // Nobody could continue it.
            _ = std::fs::remove_file(&incoming.partial.path);
        }
        outcome?;
        self.cache.keep(&incoming.partial, &claim.etag, claim.size).map_err(|error| incoming.full_disk(error))?;
        Ok(self.cache.link(self.commit, name, &claim.etag)?)
    }

    /// Receives what is missing, and verifies all of it. `answer` is one from the first byte on, where it is still open.
    fn receive(
        &self,
        incoming: &mut Incoming,
        answer: Option<Answer>,
        url: &url::Url,
        listener: &mut dyn Listener,
    ) -> Attempted<()> {
        incoming.take_up(listener)?;
        if incoming.done < incoming.claim.size {
            let mut answer = match answer.filter(|_| incoming.done == 0) {
                Some(answer) => answer,
                None => self.client.get(url.clone(), Some(incoming.done), listener)?,
            };
            if answer.head.status == 416 {
                incoming.start_afresh()?;
                return Err(Failure::Broken("the server does not continue downloads".into()));
            }
            if self.claim(incoming.name, &answer)? != *incoming.claim {
                return Err(answer.failed(Failure::Odd("the file has changed while it came".into())));
            }
            incoming.accept(&answer).map_err(|failure| answer.failed(failure))?;
            incoming.all(&mut answer, listener).map_err(|failure| answer.failed(failure))?;
        }
        match incoming.is_verified() {
            true => Ok(()),
            false => {
                let path = &incoming.partial.path;
                std::fs::remove_file(path).map_err(|error| Error::io("remove", path, error))?;
                Err(Failure::Damaged)
            }
        }
    }

    /// What the hub's answers say of the file. What another host says does not count, but for the size.
    fn claim(&self, name: &str, answer: &Answer) -> Attempted<Claim> {
        let odd = |oddity: &str| Failure::Odd(oddity.to_owned());
        let is_page = answer.head.get("content-type").is_some_and(|kind| kind.starts_with("text/html"));
        let commits: Vec<&str> = answer.of_hub.iter().flat_map(|head| head.all("x-repo-commit")).collect();
        match commits.first() {
            None if is_page => return Err(odd(WEB_PAGE)),
            None => return Err(odd("it does not name the commit (X-Repo-Commit) that the file is of")),
            Some(_) if commits.iter().any(|commit| *commit != self.commit) => {
                return Err(odd("it is about another commit than was asked for"));
            }
            Some(_) => {}
        }
        let linked = |name| answer.of_hub.iter().find_map(|head| head.get(name));
        let etag = linked("x-linked-etag").or_else(|| answer.of_hub.iter().rev().find_map(|head| head.get("etag")));
        let etag = etag.ok_or_else(|| odd("it does not name the file's content (ETag)"))?;
        let etag =
            names::etag(etag).ok_or_else(|| odd("its ETag cannot be the name of a file in the cache"))?.to_owned();
        let linked_size = linked("x-linked-size").map(|size| size.parse::<u64>());
        let size = match (linked_size, total_size(answer)) {
            (Some(Err(_)), _) => return Err(odd("its X-Linked-Size is not a size")),
            (Some(Ok(linked)), Some(size)) if linked != size => {
                return Err(answer.failed(Failure::Odd(format!("it has {size} bytes where the hub says {linked}"))));
            }
            (Some(Ok(size)), _) | (None, Some(size)) => size,
            (None, None) => return Err(answer.failed(odd("it does not say how large the file is"))),
        };
        match size > LARGEST_TEXT && !name.ends_with(".safetensors") {
            true => Err(odd(&format!("it claims {size} bytes for a file without weights"))),
            false => Ok(Claim { etag, size }),
        }
    }
}

/// The whole file's size, as the last answer gives it.
fn total_size(answer: &Answer) -> Option<u64> {
    match answer.head.status {
        200 => content_length(answer),
        _ => total_of_range(answer),
    }
}

fn content_length(answer: &Answer) -> Option<u64> {
    answer.head.get("content-length").and_then(|length| length.trim().parse().ok())
}

/// The total in `Content-Range: bytes 0-9/10` or `bytes */10`.
fn total_of_range(answer: &Answer) -> Option<u64> {
    answer.head.get("content-range")?.rsplit_once('/')?.1.trim().parse().ok()
}

/// First and last byte in `Content-Range: bytes 0-9/10`.
fn range_of(answer: &Answer) -> Option<(u64, u64)> {
    let (range, _) = answer.head.get("content-range")?.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.trim().split_once('-')?;
    Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
}

/// A blob that comes.
struct Incoming<'a> {
    name: &'a str,
    claim: &'a Claim,
    attempt: Attempt<'a>,
    partial: Partial,
    digest: Digest,
    done: u64,
    reported: Option<Instant>,
}

impl<'a> Incoming<'a> {
    fn new(name: &'a str, claim: &'a Claim, partial: Partial, attempt: Attempt<'a>) -> Self {
        let digest = Digest::of(&claim.etag, claim.size);
        Self { name, claim, attempt, partial, digest, done: 0, reported: None }
    }

    fn report(&mut self, listener: &mut dyn Listener) {
        let is_due = self.reported.is_none_or(|time| time.elapsed() >= REPORTS) || self.done == self.claim.size;
        if is_due {
            self.reported = Some(Instant::now());
            listener.on(Download { file: self.name, done: self.done, total: self.claim.size });
        }
    }

    /// Reads what an earlier attempt left; too much of it is none.
    fn take_up(&mut self, listener: &mut dyn Listener) -> Attempted<()> {
        if self.partial.length > self.claim.size {
            self.start_afresh()?;
        }
        let path = self.partial.path.clone();
        digest_file(&mut self.partial.file, self.partial.length, &mut self.digest, listener)
            .map_err(|error| read_failed(error, &path))?;
        self.done = self.partial.length;
        self.report(listener);
        Ok(())
    }

    /// Forgets what came.
    fn start_afresh(&mut self) -> Result<()> {
        let emptied = self.partial.file.set_len(0).and_then(|()| self.partial.file.seek(SeekFrom::Start(0)));
        emptied.map_err(|error| Error::io("write", &self.partial.path, error))?;
        (self.done, self.partial.length) = (0, 0);
        self.digest = Digest::of(&self.claim.etag, self.claim.size);
        Ok(())
    }

    /// Checks that `answer` brings the bytes that are missing: the rest, or, in an answer of the whole file, all.
    fn accept(&mut self, answer: &Answer) -> Attempted<()> {
        if answer.head.status == 200 {
            if self.done > 0 {
                self.start_afresh()?;
            }
            return Ok(());
        }
        let (first, last) = range_of(answer).unwrap_or_default();
        let is_rest = first == self.done && (first..self.claim.size).contains(&last);
        match is_rest && content_length(answer).is_none_or(|length| length == last - first + 1) {
            true => Ok(()),
            false => Err(Failure::Odd(format!("it brings other bytes than those from {} on", self.done))),
        }
    }

    /// Writes what comes, up to the claimed size.
    fn all(&mut self, answer: &mut Answer, listener: &mut dyn Listener) -> Attempted<()> {
        while self.done < self.claim.size {
            let Some(bytes) = answer.body.bytes(listener)? else {
                return Err(Failure::Broken(format!("it ended after {} of {} bytes", self.done, self.claim.size)));
            };
            if self.done + bytes.len() as u64 > self.claim.size {
                self.start_afresh()?;
                return Err(Failure::Odd(format!(
                    "it brings more than the {} bytes that it announced",
                    self.claim.size
                )));
            }
            let written = self.partial.file.write_all(&bytes);
            written.map_err(|error| self.full_disk(Error::io("write", &self.partial.path, error)))?;
            self.digest.update(&bytes);
            self.done += bytes.len() as u64;
            self.report(listener);
        }
        Ok(())
    }

    /// Whether all bytes are those that the hub names.
    fn is_verified(&mut self) -> bool {
        let digest = std::mem::replace(&mut self.digest, Digest::None);
        self.done == self.claim.size && digest.matches(&self.claim.etag)
    }

    /// `error`, with what to do where the disk is full.
    fn full_disk(&self, error: Error) -> Error {
        let is_full = matches!(&error, Error::Io { source, .. } if matches!(
            source.kind(),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
        ));
        if !is_full {
            return error;
        }
        let missing = (self.claim.size - self.done) as f64 / 1e9;
        Error::file(
            &self.attempt.hub.cache,
            format!(
                "there is no room for `{}` of `{}`, of which {missing:.2} GB are missing; free some, or set HF_HUB_CACHE to a folder on another disk, and run the command again",
                self.name, self.attempt.id
            ),
        )
    }
}

/// Adds the first `length` bytes of `file`, or all that it has, to `digest`.
fn digest_file(
    file: &mut File,
    length: u64,
    digest: &mut Digest,
    listener: &mut dyn Listener,
) -> std::result::Result<(), Unread> {
    file.seek(SeekFrom::Start(0)).map_err(Unread::Io)?;
    let (mut left, mut block) = (length, vec![0; BLOCK.min(length as usize).max(1)]);
    while left > 0 {
        listener.check().map_err(Unread::Stopped)?;
        let most = block.len().min(left as usize);
        match file.read(&mut block[..most]).map_err(Unread::Io)? {
            0 => break,
            count => {
                digest.update(&block[..count]);
                left -= count as u64;
            }
        }
    }
    Ok(())
}

/// Why a file was not read.
enum Unread {
    Io(std::io::Error),
    Stopped(Error),
}

fn read_failed(error: Unread, path: &Path) -> Error {
    match error {
        Unread::Io(source) => Error::io("read", path, source),
        Unread::Stopped(error) => error,
    }
}

/// Waits, unless the listener wants to stop.
pub(super) fn rest(pause: Duration, listener: &mut dyn Listener) -> Result<()> {
    let began = Instant::now();
    loop {
        listener.check()?;
        match pause.checked_sub(began.elapsed()) {
            None => return Ok(()),
            Some(left) => std::thread::sleep(left.min(POLL)),
        }
    }
}
