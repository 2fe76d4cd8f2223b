//! Models by hub id (`stable-diffusion-v1-5/stable-diffusion-v1-5`), in the cache that Python's libraries share.
//!
//! A repository is asked once what it holds; then only the files that are used come, each from the commit that answered. A hub,
//! or anybody on the way to one without https, is not trusted: its names are checked before they name files (`names`), its
//! answers before they are used (`client`), bytes are counted and verified before they get their name (`transfer`), and nothing
//! is written outside the cache (`cache`). The other way, files go to a repository of the user's as one commit (`push`).

mod cache;
mod client;
mod digest;
mod exchange;
mod failure;
mod names;
mod push;
mod selection;
mod transfer;

use super::weight_set::shard_names;
use crate::error::{Error, Result};
use cache::RepositoryCache;
use client::{Client, RepositoryInfo};
use failure::{Attempt, Attempted};
pub use push::{Content, Push, Pushed, UploadedFile};
use selection::Selection;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use transfer::Transfer;

/// How often a repository's list of files is asked for again.
const RETRIES: u32 = 2;
/// Seconds that a single read may take, as in Python's library.
const PATIENCE: f64 = 10.0;
/// Folders in folders of a snapshot that are looked into: what is used of a model lies in one.
const DEEPEST: usize = 4;
/// Bytes of a file with a token; a larger one is something else.
const LARGEST_TOKEN: u64 = 4096;
/// Characters of an address that a sentence shows.
const LONGEST_ADDRESS: usize = 200;

/// How far the download, or the upload, of one file is.
#[derive(Debug, Clone, Copy)]
pub struct Download<'a> {
    /// The file's path in its repository.
    pub file: &'a str,
    /// Bytes that have come, those of an earlier attempt included.
    pub done: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// Whoever hears of downloads and uploads, and may stop them.
pub trait Listener {
    /// More of a file is here.
    fn on(&mut self, download: Download);

    /// Asked several times a second for as long as anything is waited for; an error ends the download at once with it, and what
    /// came so far is kept for the next time.
    fn check(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Hears nothing and stops nothing.
impl Listener for () {
    fn on(&mut self, _download: Download) {}
}

/// What to fetch of a repository.
#[derive(Debug, Clone, Default)]
pub struct Request<'a> {
    /// `owner/name`.
    pub id: &'a str,
    /// A branch, a tag or a commit; `main` if absent.
    pub revision: Option<&'a str>,
    /// Weights of this variant ("fp16") where the repository has them.
    pub variant: Option<&'a str>,
    /// The parts whose weights come ("unet", "vae", "text_encoder", and "text_encoder_2" where the model has one); none:
    /// configurations and tokenizer alone. A language model, or a VAE alone, is one part, "".
    pub weights_of: &'a [&'a str],
}

/// The hub, or a mirror, and the cache in front of it.
#[derive(Clone)]
pub struct Hub {
    /// Where the hub is, without a slash at the end.
    pub endpoint: String,
    /// The folder of the cache.
    pub cache: PathBuf,
    /// The user's access token.
    pub token: Option<String>,
    /// Use the cache alone.
    pub offline: bool,
    /// How long to wait for a connection, and for each read.
    pub patience: Duration,
}

impl std::fmt::Debug for Hub {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Hub").field("endpoint", &self.address()).field("cache", &self.cache).finish_non_exhaustive()
    }
}

/// Whether `text` can be a hub id: `owner/name`, and no path that begins like one.
pub fn is_id(text: &str) -> bool {
    let valid = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            && !name.contains("..")
    };
    matches!(text.split_once('/'), Some((owner, name)) if valid(owner) && valid(name))
}

/// Whether `text` can be the hub id of a language model: [`is_id`], or one of the first models, which have no owner (`gpt2`).
pub fn is_language_model_id(text: &str) -> bool {
    is_id(text) || is_id(&format!("owner/{text}"))
}

impl Hub {
    /// What HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_HUB_OFFLINE and HF_HUB_DOWNLOAD_TIMEOUT say, with the defaults of
    /// huggingface_hub.
    pub fn from_env() -> Result<Self> {
        Self::from_lookup(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let home = match (lookup("HF_HOME"), lookup("XDG_CACHE_HOME"), lookup("HOME")) {
            (Some(home), ..) => PathBuf::from(home),
            (None, Some(cache), _) => Path::new(&cache).join("huggingface"),
            (None, None, Some(user)) => Path::new(&user).join(".cache/huggingface"),
            (None, None, None) => {
                return Err(Error::invalid("no folder for downloaded models: set HF_HOME to one"));
            }
        };
        let cache = lookup("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from);
        let saved_token = || {
            let path = home.join("token");
            let is_small = path.metadata().is_ok_and(|data| data.is_file() && data.len() <= LARGEST_TOKEN);
            is_small.then(|| std::fs::read_to_string(path).ok()).flatten()
        };
        let token = lookup("HF_TOKEN").or_else(saved_token).map(|token| token.trim().to_owned());
        let endpoint = lookup("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let offline = lookup("HF_HUB_OFFLINE");
        let patience = match lookup("HF_HUB_DOWNLOAD_TIMEOUT") {
            None => PATIENCE,
            Some(text) => {
                text.trim().parse().ok().filter(|seconds| (0.1..=86_400.0).contains(seconds)).ok_or_else(|| {
                    Error::invalid("HF_HUB_DOWNLOAD_TIMEOUT must be a number of seconds, up to 86400 (one day)")
                })?
            }
        };
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            // A run's folder may change, the cache may not.
            cache: std::path::absolute(&cache).map_err(|e| Error::io("find", &cache, e))?,
            token: token.filter(|token| !token.is_empty()),
            offline: offline.is_some_and(|v| matches!(v.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")),
            patience: Duration::from_secs_f64(patience),
        })
    }

    /// Fetches a pipeline in the diffusers layout and returns its folder in the cache.
    pub fn fetch_pipeline(&self, request: &Request, listener: &mut dyn Listener) -> Result<PathBuf> {
        self.fetch(request, &selection::pipeline(request), listener)
    }

    /// Fetches a language model in the transformers layout and returns its folder in the cache.
    pub fn fetch_language_model(&self, request: &Request, listener: &mut dyn Listener) -> Result<PathBuf> {
        self.fetch(request, &selection::language_model(request), listener)
    }

    /// Fetches a VAE and returns its folder in the cache.
    pub fn fetch_vae(&self, request: &Request, listener: &mut dyn Listener) -> Result<PathBuf> {
        self.fetch(request, &selection::vae(request), listener)
    }

    /// Fetches a tokenizer's files and returns their folder in the cache.
    pub fn fetch_tokenizer(&self, request: &Request, listener: &mut dyn Listener) -> Result<PathBuf> {
        self.fetch(request, &selection::tokenizer(), listener)
    }

    fn fetch(&self, request: &Request, selection: &Selection, listener: &mut dyn Listener) -> Result<PathBuf> {
        if !is_language_model_id(request.id) {
            return Err(Error::invalid(format!("`{}` is not a hub id; one looks like `owner/name`", request.id)));
        }
        let attempt = Attempt { hub: self, id: request.id, revision: request.revision.unwrap_or("main") };
        if !names::is_path(attempt.revision) {
            return Err(Error::invalid(format!(
                "the revision given for `{}` cannot be one of a model: give a branch, a tag or a commit",
                request.id
            )));
        }
        let cache = RepositoryCache::new(&self.cache, request.id);
        if self.offline {
            return cached_snapshot(&cache, attempt, selection)?.ok_or_else(|| attempt.not_cached());
        }
        let client = Client::new(self)?;
        let info = match ask(&client, attempt, listener) {
            Ok(info) => info,
            // No answer at all: what was fetched before is as good as it gets.
            Err(failure) if failure.is_absence() => {
                return cached_snapshot(&cache, attempt, selection)?.ok_or_else(|| attempt.error(failure, None));
            }
            Err(failure) => return Err(attempt.error(failure, None)),
        };
        let transfer = Transfer { attempt, client: &client, cache: &cache, commit: &info.sha };
        let snapshot = fetch_selected(&transfer, &info, selection, listener)?;
        cache.note_commit(attempt.revision, &info.sha)?;
        Ok(snapshot)
    }

    /// The endpoint as a sentence shows it: without a user's name and password.
    fn address(&self) -> String {
        let shown = match url::Url::parse(&self.endpoint) {
            Ok(mut url) => {
                // An address that can have neither keeps none.
                _ = url.set_username("").and_then(|()| url.set_password(None));
                url.set_query(None);
                url.set_fragment(None);
                url.as_str().trim_end_matches('/').to_owned()
            }
            Err(_) => self.endpoint.rsplit('@').next().unwrap_or_default().to_owned(),
        };
        shown.chars().take(LONGEST_ADDRESS).collect()
    }
}

/// What the repository holds.
fn ask(client: &Client, attempt: Attempt, listener: &mut dyn Listener) -> Attempted<RepositoryInfo> {
    let mut tries = 0;
    loop {
        let failure = match client.repository(attempt.id, attempt.revision, listener) {
            Ok(info) => return Ok(info),
            Err(failure) => failure,
        };
        tries += 1;
        match failure.pause(tries).filter(|_| tries <= RETRIES && !failure.is_without_answer()) {
            Some(pause) => transfer::rest(pause, listener)?,
            None => return Err(failure),
        }
    }
}

/// The folder in the cache, if all that is selected is there.
fn cached_snapshot(cache: &RepositoryCache, attempt: Attempt, selection: &Selection) -> Result<Option<PathBuf>> {
    let Some(commit) = cache.commit_of(attempt.revision) else {
        return Ok(None);
    };
    let snapshot = cache.snapshot(&commit);
    let mut names = BTreeSet::new();
    list(&snapshot, "", &mut names);
    let complete = (|| -> Result<bool> {
        for name in selection.indices(&names)? {
            if selection.shards(&name, &shard_names(&snapshot.join(&name))?).iter().any(|s| !names.contains(s)) {
                return Ok(false);
            }
        }
        Ok(true)
    })();
    match complete {
        Ok(true) => {
            selection.check_index_file(attempt.id, &snapshot)?;
            Ok(Some(snapshot))
        }
        _ => Ok(None),
    }
}

/// The files under `folder`, by their paths in it. A link to a blob that is gone is none.
fn list(folder: &Path, prefix: &str, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        // Both follow links, as the cache's files are.
        match entry.path() {
            path if path.is_file() => names.extend([name]),
            path if path.is_dir() && prefix.matches('/').count() < DEEPEST => list(&path, &format!("{name}/"), names),
            _ => {}
        }
    }
}

/// Fetches what is selected of a commit, and returns its folder.
fn fetch_selected(
    transfer: &Transfer,
    info: &RepositoryInfo,
    selection: &Selection,
    listener: &mut dyn Listener,
) -> Result<PathBuf> {
    let (attempt, snapshot) = (transfer.attempt, transfer.cache.snapshot(&info.sha));
    let names: BTreeSet<String> = info.files().map(str::to_owned).collect();
    // What kind of model it is comes first: gigabytes of another kind need not come.
    if let Some(name) = selection.index_file().filter(|name| names.contains(*name)) {
        transfer.file(name, listener)?;
        selection.check_index_file(attempt.id, &snapshot)?;
    }
    let indices = selection.indices(&names).map_err(|error| attempt.of_repository(error))?;
    for name in selection.configurations(&names) {
        transfer.file(&name, listener)?;
    }
    for name in &indices {
        transfer.file(name, listener)?;
        let shards = selection.shards(name, &shard_names(&snapshot.join(name))?);
        if let Some(missing) = shards.iter().find(|shard| !names.contains(*shard)) {
            let id = attempt.id;
            return Err(Error::invalid(format!(
                "`{name}` of `{id}` speaks of weights that the repository does not hold ({}); try another `⟨revision⟩`",
                missing.escape_debug().take(LONGEST_ADDRESS).collect::<String>()
            )));
        }
        for shard in shards {
            transfer.file(&shard, listener)?;
        }
    }
    for name in selection.single_weights(&names) {
        transfer.file(&name, listener)?;
    }
    Ok(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(variables: &[(&str, &str)]) -> Hub {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Hub::from_lookup(find).unwrap()
    }

    #[test]
    fn the_environment_says_where_the_hub_and_the_cache_are() {
        let plain = hub(&[("HOME", "/home/a")]);
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(plain.cache, Path::new("/home/a/.cache/huggingface/hub"));
        assert!(!plain.offline && plain.token.is_none());
        let set = hub(&[
            ("HF_HOME", "/models"),
            ("HF_ENDPOINT", "http://localhost:8080/"),
            ("HF_TOKEN", "hf_x\n"),
            ("HF_HUB_OFFLINE", "true"),
        ]);
        assert_eq!(set.cache, Path::new("/models/hub"));
        assert_eq!(
            (set.endpoint.as_str(), set.token.as_deref(), set.offline),
            ("http://localhost:8080", Some("hf_x"), true)
        );
        assert_eq!(hub(&[("HOME", "/a"), ("HF_HUB_CACHE", "/c")]).cache, Path::new("/c"));
    }

    #[test]
    fn a_hub_id_is_an_owner_and_a_name() {
        assert!(is_id("stable-diffusion-v1-5/stable-diffusion-v1-5") && is_id("a/b.c_d"));
        for path in ["a", "a/b/c", "/a/b", "./a", "../b", "~/a", "a/", "a/..", "a b/c", ""] {
            assert!(!is_id(path), "{path}");
        }
    }
}
