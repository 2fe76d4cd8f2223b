//! Files go to a repository of the user's as one commit, as `huggingface_hub` makes it: the repository is made, the hub says which
//! files it keeps as large ones (Git LFS, <https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md>), those are put where it
//! says, and the commit names them by their SHA-256 and holds the others itself.
//!
//! The token goes to the endpoint alone: not to where large files are put, and nowhere that an answer redirects to.

use super::client::{is_web, retry_after, Client};
use super::exchange::{Head, Payload};
use super::failure::{busy, Attempted, Failure};
use super::{transfer, Download, Hub, Listener, RETRIES};
use crate::error::{Error, Result};
use crate::plain_text;
use crate::plain_text::hex;
use crate::regular_file::{self, FileKind};
use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use serde::Deserialize;
use serde_json::{json, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use url::Url;

/// The branch that is committed to.
const BRANCH: &str = "main";
/// Bytes of a file's beginning by which a hub tells text from data.
const SAMPLE: usize = 512;
/// Bytes that are hashed at a time.
const BLOCK: usize = 1 << 20;
/// Bytes of a file that a commit holds itself.
const LARGEST_REGULAR: u64 = 64 << 20;
/// Characters of a hub's own sentence that are shown.
const LONGEST_MESSAGE: usize = 300;
/// A hub works longer at a commit than a read may take.
const SLOWER: u32 = 6;

/// A file of an upload.
#[derive(Debug, Clone)]
pub struct UploadedFile {
    /// Its path in the repository.
    pub path: String,
    /// Its bytes.
    pub content: Content,
}

/// The bytes of a file.
#[derive(Debug, Clone)]
pub enum Content {
    /// These.
    Bytes(Vec<u8>),
    /// Those of a file of this machine.
    File(PathBuf),
}

/// What is to be uploaded.
#[derive(Debug, Clone)]
pub struct Push<'a> {
    /// `owner/name`.
    pub id: &'a str,
    /// Whether everybody may see the repository.
    pub is_public: bool,
    /// The commit's message.
    pub message: &'a str,
    /// Its files.
    pub files: &'a [UploadedFile],
    /// Paths of files that are of an earlier upload where they are in the repository and not among the files: they are deleted.
    pub replaced: &'a [&'a str],
}

/// What became of an upload.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// Where the repository can be looked at.
    pub address: String,
    /// The commit's name, where the hub tells it.
    pub commit: Option<String>,
}

#[derive(Deserialize)]
struct Repository {
    private: Option<bool>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

#[derive(Deserialize)]
struct Modes {
    files: Vec<Mode>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mode {
    path: String,
    upload_mode: String,
    #[serde(default)]
    should_ignore: bool,
}

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    actions: Option<Actions>,
    error: Option<ObjectError>,
}

#[derive(Deserialize)]
struct ObjectError {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: Option<BTreeMap<String, String>>,
}

/// A file whose bytes are known.
struct Known<'a> {
    file: &'a UploadedFile,
    size: u64,
    sha256: String,
    sample: Vec<u8>,
}

impl Content {
    fn open(&self) -> Result<Box<dyn Read + '_>> {
        Ok(match self {
            Self::Bytes(bytes) => Box::new(bytes.as_slice()),
            Self::File(path) => Box::new(regular_file::open(path, FileKind::COPIED)?),
        })
    }

    fn payload(&self, size: u64) -> Result<Payload> {
        Ok(match self {
            Self::Bytes(bytes) => Payload::Bytes(bytes.clone()),
            Self::File(path) => Payload::File(regular_file::open(path, FileKind::COPIED)?, size),
        })
    }

    fn name<'a>(&'a self, path: &'a str) -> std::borrow::Cow<'a, str> {
        match self {
            Self::Bytes(_) => path.into(),
            Self::File(file) => file.to_string_lossy(),
        }
    }
}

impl<'a> Known<'a> {
    /// Reads `file` once.
    fn of(file: &'a UploadedFile, listener: &mut dyn Listener) -> Result<Self> {
        let (mut content, mut sha, mut block) = (file.content.open()?, Sha256::new(), vec![0; BLOCK]);
        let (mut size, mut sample) = (0, Vec::new());
        loop {
            listener.check()?;
            let read = content.read(&mut block);
            let read = read.map_err(|error| Error::io("read", &*file.content.name(&file.path), error))?;
            if read == 0 {
                break;
            }
            sha.update(&block[..read]);
            sample.extend(block[..read].iter().take(SAMPLE.saturating_sub(sample.len())));
            size += read as u64;
        }
        Ok(Self { file, size, sha256: hex(&sha.finalize()), sample })
    }
}

impl Hub {
    /// Refuses to push where it is known to be in vain before anybody is asked.
    pub fn check_push(&self, id: &str) -> Result<()> {
        if !super::is_id(id) {
            return Err(Error::invalid(format!(
                "`{}` is not the name of a repository; one looks like `owner/name`",
                plain_text::value(id)
            )));
        }
        if self.offline {
            return Err(Error::invalid("nothing can be pushed while HF_HUB_OFFLINE is set; unset it"));
        }
        if self.token.is_none() {
            let address = self.address();
            return Err(Error::invalid(format!(
                "a push needs a token that may write: make one at {address}/settings/tokens, and set HF_TOKEN to it"
            )));
        }
        Client::new(self).map(drop)
    }

    /// The name of the user whose token it is.
    pub fn user(&self, listener: &mut dyn Listener) -> Result<String> {
        #[derive(Deserialize)]
        struct User {
            name: String,
        }
        let client = Client::new(self)?;
        let mut ask = || -> Attempted<String> {
            let mut answer = client.get(client.address(["api", "whoami-v2"]), None, listener)?;
            let text = client.whole_text(&mut answer, listener)?;
            let user: User = read(&text)?;
            match super::is_id(&format!("{}/a", user.name)) {
                true => Ok(user.name),
                false => Err(Failure::Odd("it names no user".to_owned())),
            }
        };
        ask().map_err(|failure| self.push_error(failure, "", "the user of the token"))
    }

    /// Uploads files to a repository, which is made where it is not there, in one commit.
    pub fn push(&self, push: &Push, listener: &mut dyn Listener) -> Result<Pushed> {
        self.check_push(push.id)?;
        let patient = Hub { patience: self.patience * SLOWER, ..self.clone() };
        let upload = Upload { hub: self, client: &Client::new(&patient)?, push };
        let known = push.files.iter().map(|file| Known::of(file, listener)).collect::<Result<Vec<_>>>();
        let known = known.map_err(|error| self.push_error(Failure::Here(error), push.id, ""))?;
        let there = upload.repository(listener)?;
        let modes = upload.modes(&known, listener)?;
        let large: Vec<&Known> = known.iter().filter(|file| file.size > 0 && modes[&file.file.path] == "lfs").collect();
        upload.put_large(&large, listener)?;
        let commit = upload.commit(&known, &large, &there, listener)?;
        Ok(Pushed { address: format!("{}/{}", self.address(), push.id), commit })
    }

    /// `failure` as the user's error, about `what` of the repository `id`.
    fn push_error(&self, failure: Failure, id: &str, what: &str) -> Error {
        let (host, failure) = match failure {
            Failure::At(host, failure) => (Some(host), *failure),
            failure => (None, failure),
        };
        let (endpoint, is_hub) = (self.address(), host.is_none());
        let server = host.unwrap_or_else(|| endpoint.clone());
        let owner = id.split('/').next().unwrap_or_default();
        Error::Invalid(match failure {
            Failure::Here(Error::Interrupted(_)) => return Error::Interrupted("nothing was committed to the hub".into()),
            Failure::Here(error) => return error,
            Failure::Unreachable(cause) => {
                format!("cannot reach {server} for {what}: {cause}; check the connection and HF_ENDPOINT, and push again")
            }
            Failure::Broken(cause) => format!("the connection to {server} broke off at {what}: {cause}; push again"),
            Failure::TimedOut => format!(
                "{server} did not answer about {what} in time; push again, or set HF_HUB_DOWNLOAD_TIMEOUT to more seconds"
            ),
            Failure::Odd(oddity) => format!("{server} gave a strange answer about {what}: {oddity}; is HF_ENDPOINT right?"),
            Failure::Damaged | Failure::At(..) => format!("{server} cannot be used for {what}; is HF_ENDPOINT right?"),
            Failure::NoThread(cause) => {
                format!("cannot start a thread for {what}: {cause}; raise the limit of processes (ulimit -u)")
            }
            Failure::Refused { status, code, retry_after } => {
                let said = match code.is_empty() {
                    true => String::new(),
                    false => format!("; it says: {code}"),
                };
                match status {
                    401 if is_hub => format!(
                        "{endpoint} does not take this token: it is wrong or has expired; make one that may write at \
                         {endpoint}/settings/tokens, and give it in place of this one"
                    ),
                    403 if is_hub => format!(
                        "this token may not write to `{id}` at {endpoint}: its role must be write, and {owner} must be you or an \
                         organization of yours{said}"
                    ),
                    404 if is_hub => {
                        format!("{endpoint} has no `{id}` that this token may write to; check the name and the token")
                    }
                    409 | 412 => format!("`{id}` was changed by somebody else in the same moment ({what}); push again{said}"),
                    413 => format!("{server} does not take {what}: it is too large{said}"),
                    429 | 500.. => busy(&server, status, retry_after),
                    _ => format!("{server} refused {what} with status {status}{said}"),
                }
            }
        })
    }
}

/// An upload under way.
struct Upload<'a> {
    hub: &'a Hub,
    client: &'a Client,
    push: &'a Push<'a>,
}

impl Upload<'_> {
    fn error(&self, failure: Failure, what: &str) -> Error {
        self.hub.push_error(failure, self.push.id, what)
    }

    /// The address below the endpoint of `before`, the repository with `end` behind its name, and `behind`.
    fn address(&self, before: &[&str], end: &str, behind: &[&str]) -> Url {
        let id = format!("{}{end}", self.push.id);
        self.client.address(before.iter().copied().chain(id.split('/')).chain(behind.iter().copied()))
    }

    /// What `attempt` gives, which is made again where the hub is busy or the connection broke.
    fn again<T>(
        listener: &mut dyn Listener,
        mut attempt: impl FnMut(&mut dyn Listener) -> Attempted<T>,
    ) -> Attempted<T> {
        let mut tries = 0;
        loop {
            let failure = match attempt(listener) {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            tries += 1;
            match failure.pause(tries).filter(|_| tries <= RETRIES && !failure.is_without_answer()) {
                Some(pause) => transfer::rest(pause, listener)?,
                None => return Err(failure),
            }
        }
    }

    /// The answer to JSON that is sent to the hub.
    fn post(&self, url: &Url, kind: &str, body: Vec<u8>, listener: &mut dyn Listener) -> Attempted<Vec<u8>> {
        let accepted = if kind == LFS { LFS } else { "application/json" };
        let headers = [("content-type", kind), ("accept", accepted)];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let payload = Payload::Bytes(body);
        let (head, text) = self.client.send("POST", url, &headers, payload, true, listener, &mut |_, _| {})?;
        self.accepted(&head, text)
    }

    /// An answer's text, unless it is a refusal.
    fn accepted(&self, head: &Head, text: Vec<u8>) -> Attempted<Vec<u8>> {
        match head.status {
            200..=299 => Ok(text),
            status => Err(Failure::Refused { status, code: self.message(head, &text), retry_after: retry_after(head) }),
        }
    }

    /// What the hub itself says of a refusal, as a part of a sentence.
    fn message(&self, head: &Head, text: &[u8]) -> String {
        let of_body = || {
            let body: Value = serde_json::from_slice(text).unwrap_or_default();
            let found = ["error", "message"].iter().find_map(|name| body[*name].as_str());
            found.map(str::to_owned)
        };
        let message = head.get("x-error-message").map(str::to_owned).or_else(of_body).unwrap_or_default();
        self.shown(&message)
    }

    /// What comes from a hub, as a sentence can have it: short, plain, and without the token.
    fn shown(&self, text: &str) -> String {
        let text = match &self.hub.token {
            Some(token) => text.replace(token.as_str(), "…"),
            None => text.to_owned(),
        };
        plain_text::value(text.trim().trim_end_matches('.')).chars().take(LONGEST_MESSAGE).collect()
    }

    /// Makes the repository where it is not there, and makes sure that nobody sees it who should not; the files in it.
    fn repository(&self, listener: &mut dyn Listener) -> Result<Vec<String>> {
        let Push { id, is_public, .. } = *self.push;
        let (owner, name) = id.split_once('/').unwrap_or_default();
        let visibility = if is_public { "public" } else { "private" };
        let body = json!({ "name": name, "organization": owner, "type": "model", "visibility": visibility });
        let url = self.client.address(["api", "repos", "create"]);
        let what = format!("the repository `{id}`");
        let made = Self::again(listener, |listener| {
            self.post(&url, "application/json", body.to_string().into_bytes(), listener)
        });
        let refused = match made {
            Ok(_) => None,
            // It is there, or, with 403, may be: who may write to one need not be allowed to make one.
            Err(failure @ Failure::Refused { status: 403 | 409, .. }) => Some(failure),
            Err(failure) => return Err(self.error(failure, &what)),
        };
        let found = Self::again(listener, |listener| {
            let mut answer = self.client.get(self.address(&["api", "models"], "", &[]), None, listener)?;
            read::<Repository>(&self.client.whole_text(&mut answer, listener)?)
        });
        let found = match (found, refused) {
            (Ok(found), _) => found,
            (Err(Failure::Refused { status: 401..=404, .. }), Some(refused @ Failure::Refused { status: 403, .. })) => {
                return Err(self.error(refused, &what));
            }
            (Err(failure), _) => return Err(self.error(failure, &what)),
        };
        if !is_public && found.private != Some(true) {
            let endpoint = self.hub.address();
            return Err(Error::invalid(format!(
                "⟨public⟩ is not given, but `{id}` at {endpoint} is a public repository: everybody would see the adapter; give ⟨public⟩ if \
                 that is meant, or the name of another repository"
            )));
        }
        Ok(found.siblings.into_iter().map(|file| file.rfilename).collect())
    }

    /// How the hub wants each file: `lfs` or `regular`.
    fn modes(&self, known: &[Known], listener: &mut dyn Listener) -> Result<BTreeMap<String, String>> {
        let files: Vec<Value> = known
            .iter()
            .map(|file| json!({ "path": file.file.path, "sample": STANDARD.encode(&file.sample), "size": file.size }))
            .collect();
        let body = json!({ "files": files }).to_string();
        let url = self.address(&["api", "models"], "", &["preupload", BRANCH]);
        let modes = Self::again(listener, |listener| {
            read::<Modes>(&self.post(&url, "application/json", body.clone().into_bytes(), listener)?)
        });
        let modes = modes.map_err(|failure| self.error(failure, "the list of files"))?;
        let mut found = BTreeMap::new();
        for file in known {
            let path = &file.file.path;
            let Some(mode) = modes.files.iter().find(|mode| mode.path == *path) else {
                let odd = Failure::Odd("it does not say how it keeps it".to_owned());
                return Err(self.error(odd, &format!("`{path}`")));
            };
            if mode.should_ignore {
                return Err(Error::invalid(format!(
                    "the .gitignore of `{}` at {} leaves out `{path}`; change it there, and push again",
                    self.push.id,
                    self.hub.address()
                )));
            }
            found.insert(path.clone(), mode.upload_mode.clone());
        }
        Ok(found)
    }

    /// Puts large files where the hub says, but for those that it has.
    fn put_large(&self, large: &[&Known], listener: &mut dyn Listener) -> Result<()> {
        if large.is_empty() {
            return Ok(());
        }
        let objects: Vec<Value> = large.iter().map(|file| json!({ "oid": file.sha256, "size": file.size })).collect();
        let body = json!({
            "operation": "upload", "transfers": ["basic"], "objects": objects, "hash_algo": "sha256", "ref": { "name": BRANCH },
        });
        let url = self.address(&[], ".git", &["info", "lfs", "objects", "batch"]);
        let batch = Self::again(listener, |listener| {
            read::<Batch>(&self.post(&url, LFS, body.to_string().into_bytes(), listener)?)
        });
        let batch = batch.map_err(|failure| self.error(failure, "the large files"))?;
        for file in large {
            let what = format!("`{}`", file.file.path);
            let failed = |failure| self.error(failure, &what);
            let object = batch.objects.iter().find(|object| object.oid == file.sha256);
            let object = object.ok_or_else(|| failed(Failure::Odd("it does not say where it goes".to_owned())))?;
            if let Some(error) = &object.error {
                let code = self.shown(&error.message);
                return Err(failed(Failure::Refused { status: error.code, code, retry_after: None }));
            }
            let Some(actions) = &object.actions else { continue };
            if let Some(action) = &actions.upload {
                self.put(file, action, listener).map_err(failed)?;
            }
            if let Some(action) = &actions.verify {
                let body = json!({ "oid": file.sha256, "size": file.size }).to_string().into_bytes();
                let (url, mut headers) = self.checked(action).map_err(failed)?;
                headers.push(("content-type".to_owned(), LFS.to_owned()));
                let is_authorized = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization"));
                let verified = Self::again(listener, |listener| {
                    let payload = Payload::Bytes(body.clone());
                    let (head, text) =
                        self.client.send("POST", &url, &headers, payload, !is_authorized, listener, &mut |_, _| {})?;
                    self.accepted(&head, text)
                });
                verified.map_err(failed)?;
            }
        }
        Ok(())
    }

    fn put(&self, file: &Known, action: &Action, listener: &mut dyn Listener) -> Attempted<()> {
        let (url, headers) = self.checked(action)?;
        if headers.iter().any(|(name, _)| name == "chunk_size") {
            return Err(Failure::Odd("it wants it in parts, which was not offered".to_owned()));
        }
        let (path, total) = (file.file.path.as_str(), file.size);
        Self::again(listener, |listener| {
            let (payload, mut done) = (file.file.content.payload(total)?, 0);
            listener.on(Download { file: path, done, total });
            let mut sent = |listener: &mut dyn Listener, bytes: u64| {
                done += bytes;
                listener.on(Download { file: path, done: done.min(total), total });
            };
            let (head, text) = self.client.send("PUT", &url, &headers, payload, false, listener, &mut sent)?;
            let accepted = self.accepted(&head, text).map(drop);
            let host = url.host_str().unwrap_or_default();
            accepted.map_err(|failure| match self.client.is_hub(&url) {
                true => failure,
                false => Failure::At(host.to_owned(), Box::new(failure)),
            })
        })
    }

    /// Where an action leads, and the headers that it wants, unless following it would give anything away.
    fn checked(&self, action: &Action) -> Attempted<(Url, Vec<(String, String)>)> {
        let odd = |oddity: &str| Failure::Odd(oddity.to_owned());
        let url = Url::parse(&action.href).map_err(|_| odd("where it goes is not an address"))?;
        let endpoint = self.client.address([]);
        if !is_web(&url) || !url.username().is_empty() || url.password().is_some() {
            return Err(odd("where it goes is not an address on the web"));
        }
        if endpoint.scheme() == "https" && url.scheme() == "http" {
            return Err(odd("it goes without https, where anybody on the way could read it"));
        }
        let headers: Vec<(String, String)> = action.header.clone().unwrap_or_default().into_iter().collect();
        let has_token = |text: &str| self.hub.token.as_ref().is_some_and(|token| text.contains(token.as_str()));
        let gives_away =
            has_token(&action.href) || headers.iter().any(|(name, value)| has_token(name) || has_token(value));
        match gives_away && !self.client.is_hub(&url) {
            true => Err(odd("it would give the token to another host")),
            false => Ok((url, headers)),
        }
    }

    /// Makes the commit; its name, where the hub tells it.
    fn commit(
        &self,
        known: &[Known],
        large: &[&Known],
        there: &[String],
        listener: &mut dyn Listener,
    ) -> Result<Option<String>> {
        let mut lines = vec![json!({ "key": "header", "value": { "summary": self.push.message, "description": "" } })];
        for file in known {
            let path = &file.file.path;
            if large.iter().any(|large| large.file.path == *path) {
                let value = json!({ "path": path, "algo": "sha256", "oid": file.sha256, "size": file.size });
                lines.push(json!({ "key": "lfsFile", "value": value }));
                continue;
            }
            if file.size > LARGEST_REGULAR {
                let odd = Failure::Odd("it would keep so large a file like a text".to_owned());
                return Err(self.error(odd, &format!("`{path}`")));
            }
            let mut bytes = Vec::new();
            let read = file.file.content.open()?.take(file.size).read_to_end(&mut bytes);
            read.map_err(|error| Error::io("read", &*file.file.content.name(path), error))?;
            let value = json!({ "content": STANDARD.encode(&bytes), "path": path, "encoding": "base64" });
            lines.push(json!({ "key": "file", "value": value }));
        }
        let is_sent = |path: &str| known.iter().any(|file| file.file.path == path);
        for stale in self.push.replaced.iter().filter(|path| there.iter().any(|file| file == *path) && !is_sent(path)) {
            lines.push(json!({ "key": "deletedFile", "value": { "path": stale } }));
        }
        let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let url = self.address(&["api", "models"], "", &["commit", BRANCH]);
        // Once: of one that broke off nobody knows whether it was made.
        let answer = self.post(&url, "application/x-ndjson", body.into_bytes(), listener);
        let answer = answer.map_err(|failure| match failure {
            Failure::Here(Error::Interrupted(_)) => Error::Interrupted(format!(
                "the hub may have made the commit: look at {}/{}",
                self.hub.address(),
                self.push.id
            )),
            failure => self.error(failure, "the commit"),
        })?;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        let commit = answer["commitOid"].as_str().filter(|commit| super::names::is_commit(commit));
        Ok(commit.map(str::to_owned))
    }
}

/// What requests about large files are made of.
const LFS: &str = "application/vnd.git-lfs+json";

/// JSON that a hub sent.
fn read<T: for<'de> Deserialize<'de>>(text: &[u8]) -> Attempted<T> {
    let is_page = text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'<');
    serde_json::from_slice(text).map_err(|_| {
        let oddity = if is_page { super::client::WEB_PAGE } else { "it is not the JSON that a hub gives" };
        Failure::Odd(oddity.to_owned())
    })
}
