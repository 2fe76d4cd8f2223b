//! Models by hub id (`stable-diffusion-v1-5/stable-diffusion-v1-5`), in the cache that Python's libraries share.
//!
//! A repository is asked once what it holds; then only the files that are used come, each from the commit that answered,
//! through hf-hub: a file is written under another name until it is whole, and a download that was cut off goes on where
//! it stopped.

mod failure;
mod selection;

use super::weight_set::shard_names;
use crate::error::{Error, Result};
use failure::Attempt;
use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};
use selection::Selection;
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

/// How often a download is taken up again after the connection broke.
const RETRIES: usize = 3;
/// Time before that.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(500);

/// How far the download of one file is.
#[derive(Debug, Clone, Copy)]
pub struct Download<'a> {
    /// The file's path in its repository.
    pub file: &'a str,
    /// Bytes that are here, those of an earlier attempt included.
    pub done: u64,
    /// Bytes of the whole file.
    pub total: u64,
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
    /// The parts whose weights come ("unet", "vae", "text_encoder"); none: configurations and tokenizer alone. A
    /// language model is one part, "".
    pub weights_of: &'a [&'a str],
}

/// The hub, or a mirror, and the cache in front of it.
#[derive(Debug, Clone)]
pub struct Hub {
    /// Where the hub is, without a slash at the end.
    pub endpoint: String,
    /// The folder of the cache.
    pub cache: PathBuf,
    /// The user's access token.
    pub token: Option<String>,
    /// Use the cache alone.
    pub offline: bool,
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
    /// What HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN and HF_HUB_OFFLINE say, with huggingface_hub's defaults.
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
        let saved_token = || std::fs::read_to_string(home.join("token")).ok();
        let token = lookup("HF_TOKEN").or_else(saved_token).map(|token| token.trim().to_owned());
        let endpoint = lookup("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let offline = lookup("HF_HUB_OFFLINE");
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            // hf-hub links files by relative paths, for which it needs an absolute one.
            cache: std::path::absolute(&cache).map_err(|e| Error::io("find", &cache, e))?,
            token: token.filter(|token| !token.is_empty()),
            offline: offline.is_some_and(|v| matches!(v.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")),
        })
    }

    /// Fetches a pipeline in the diffusers layout and returns its folder in the cache.
    pub fn fetch_pipeline(&self, request: &Request, progress: &mut dyn FnMut(Download)) -> Result<PathBuf> {
        self.fetch(request, &selection::pipeline(request), progress)
    }

    /// Fetches a language model in the transformers layout and returns its folder in the cache.
    pub fn fetch_language_model(&self, request: &Request, progress: &mut dyn FnMut(Download)) -> Result<PathBuf> {
        self.fetch(request, &selection::language_model(request), progress)
    }

    /// Fetches a tokenizer's files and returns their folder in the cache.
    pub fn fetch_tokenizer(&self, request: &Request, progress: &mut dyn FnMut(Download)) -> Result<PathBuf> {
        self.fetch(request, &selection::tokenizer(), progress)
    }

    fn fetch(&self, request: &Request, selection: &Selection, progress: &mut dyn FnMut(Download)) -> Result<PathBuf> {
        if !is_language_model_id(request.id) {
            return Err(Error::invalid(format!("`{}` is no hub id; one looks like `owner/name`", request.id)));
        }
        let attempt = Attempt { hub: self, id: request.id, revision: request.revision.unwrap_or("main") };
        if self.offline {
            return self.cached_snapshot(&attempt, selection)?.ok_or_else(|| attempt.not_cached());
        }
        let api = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(false)
            // Its own retries append to a partial file from the wrong place: `Fetching::file` retries instead.
            .with_retries(0)
            .build()
            .map_err(|e| attempt.error(e))?;
        let info = match api.repo(attempt.repo(attempt.revision)).info() {
            Ok(info) => info,
            // No answer at all: what was fetched before is as good as it gets.
            Err(error) if failure::is_transport(&error) => {
                return self.cached_snapshot(&attempt, selection)?.ok_or_else(|| attempt.error(error));
            }
            Err(error) => return Err(attempt.error(error)),
        };
        if !info.sha.chars().all(|c| c.is_ascii_alphanumeric()) || info.sha.is_empty() {
            return Err(attempt.strange_answer());
        }
        let names: BTreeSet<String> =
            info.siblings.into_iter().map(|file| file.rfilename).filter(|name| stays_inside(name)).collect();
        let cache = Cache::new(self.cache.clone());
        let fetching =
            Fetching { attempt: &attempt, api: &api, sha: &info.sha, snapshot: self.snapshot(request.id, &info.sha) };
        let snapshot = fetching.run(selection, &names, progress)?;
        cache
            .repo(attempt.repo(attempt.revision))
            .create_ref(&info.sha)
            .map_err(|e| Error::io("write", &self.cache, e))?;
        Ok(snapshot)
    }

    fn folder(&self, id: &str) -> PathBuf {
        self.cache.join(Repo::model(id.to_owned()).folder_name())
    }

    fn snapshot(&self, id: &str, sha: &str) -> PathBuf {
        self.folder(id).join("snapshots").join(sha)
    }

    /// The folder in the cache, if all that is selected is there.
    fn cached_snapshot(&self, attempt: &Attempt, selection: &Selection) -> Result<Option<PathBuf>> {
        let reference = self.folder(attempt.id).join("refs").join(attempt.revision);
        let sha = match stays_inside(attempt.revision) {
            true => std::fs::read_to_string(reference).unwrap_or_else(|_| attempt.revision.to_owned()),
            false => return Ok(None),
        };
        let snapshot = self.snapshot(attempt.id, sha.trim());
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
}

/// Whether a file's name stays in its folder.
fn stays_inside(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// The files under `folder`, by their paths in it.
fn list(folder: &Path, prefix: &str, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        // `is_dir` follows links, as the cache's files are.
        match entry.path().is_dir() {
            true => list(&entry.path(), &format!("{name}/"), names),
            false => names.extend([name]),
        }
    }
}

/// A fetch from one commit of one repository.
struct Fetching<'a> {
    attempt: &'a Attempt<'a>,
    api: &'a Api,
    sha: &'a str,
    snapshot: PathBuf,
}

impl Fetching<'_> {
    fn run(
        &self,
        selection: &Selection,
        names: &BTreeSet<String>,
        progress: &mut dyn FnMut(Download),
    ) -> Result<PathBuf> {
        // What kind of model it is comes first: gigabytes of another kind need not come.
        if let Some(name) = selection.index_file().filter(|name| names.contains(*name)) {
            self.file(name, progress)?;
            selection.check_index_file(self.attempt.id, &self.snapshot)?;
        }
        let indices = selection.indices(names).map_err(|error| self.attempt.of_repository(error))?;
        for name in selection.configurations(names) {
            self.file(&name, progress)?;
        }
        for name in &indices {
            self.file(name, progress)?;
            let shards = selection.shards(name, &shard_names(&self.snapshot.join(name))?);
            for shard in shards {
                self.file(&shard, progress)?;
            }
        }
        for name in selection.single_weights(names) {
            self.file(&name, progress)?;
        }
        Ok(self.snapshot.clone())
    }

    fn file(&self, name: &str, progress: &mut dyn FnMut(Download)) -> Result<()> {
        if self.snapshot.join(name).exists() {
            return Ok(());
        }
        let repository =
            self.api.repo(Repo::with_revision(self.attempt.id.to_owned(), RepoType::Model, self.sha.to_owned()));
        for attempt in 0.. {
            let reporter = Reporter { file: name.to_owned(), done: 0, total: 0, progress: &mut *progress };
            match repository.download_with_progress(name, reporter) {
                Ok(_) => break,
                Err(error) if attempt == RETRIES => return Err(self.attempt.error(error)),
                // What an earlier attempt left is longer than the file, or the whole of it: a fresh start.
                Err(error) if failure::is_bad_resume(&error) => self.forget_partial_downloads(),
                Err(error) if failure::is_interruption(&error) => std::thread::sleep(PAUSE),
                Err(error) => return Err(self.attempt.error(error)),
            }
        }
        Ok(())
    }

    fn forget_partial_downloads(&self) {
        let blobs = self.attempt.hub.folder(self.attempt.id).join("blobs");
        for entry in std::fs::read_dir(blobs).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "part") {
                // A file that stays is met again as the same error.
                drop(std::fs::remove_file(entry.path()));
            }
        }
    }
}

/// hf-hub's progress, passed on.
struct Reporter<'a> {
    file: String,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(Download),
}

impl Reporter<'_> {
    fn report(&mut self) {
        (self.progress)(Download { file: &self.file, done: self.done, total: self.total });
    }
}

impl hf_hub::api::Progress for Reporter<'_> {
    fn init(&mut self, size: usize, _name: &str) {
        (self.done, self.total) = (0, size as u64);
        self.report();
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        self.report();
    }

    fn finish(&mut self) {
        self.report();
    }
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
