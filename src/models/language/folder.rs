//! A language model on disk: as transformers saves it, `config.json` beside safetensors, whole or in shards; or a GGUF file.

use super::architectures::{Architecture, Build};
use super::interface::LanguageModel;
use crate::error::{Error, Result};
use crate::models::config_file;
use crate::models::loaded::{load, Loaded};
use crate::weights::gguf::GgufLanguageModel;
use crate::weights::{Placement, Storage, WeightSet};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What a classifier becomes whose head is not the one in its files.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeadOptions {
    /// Number of classes; none: as many as its files say.
    pub labels: Option<i64>,
    /// Seed of a head that the files do not have, or not with so many classes.
    pub seed: i64,
}

/// A language model on disk. Nothing but the configuration is read before it is loaded.
pub struct LanguageModelFiles {
    root: PathBuf,
    config: Value,
    architecture: &'static Architecture,
    gguf: Option<GgufLanguageModel>,
    storage: Storage,
}

impl LanguageModelFiles {
    /// The model in the folder `root`, or in the GGUF file of that name.
    pub fn open(root: &Path) -> Result<Self> {
        let gguf = match root.extension().is_some_and(|end| end == "gguf") && !root.is_dir() {
            true => Some(GgufLanguageModel::open(root)?),
            false => None,
        };
        if gguf.is_none() && !root.is_dir() {
            return Err(Error::file(root, "no such model folder"));
        }
        let (path, config) = match &gguf {
            Some(model) => (root.to_owned(), model.config().clone()),
            None => (root.join("config.json"), config_file::read_json(&root.join("config.json"))?),
        };
        let architecture = Architecture::of(&config, &path)?;
        Ok(Self { root: root.to_owned(), config, architecture, gguf, storage: Storage::Dense })
    }

    /// Has the weights of linear projections kept in `storage`.
    pub fn store_in(&mut self, storage: Storage) {
        self.storage = storage;
    }

    /// The folder or file.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The GGUF file, where it is one.
    pub fn gguf(&self) -> Option<&GgufLanguageModel> {
        self.gguf.as_ref()
    }

    /// `config.json`, or what it would say.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Its row in [`super::ARCHITECTURES`].
    pub fn architecture(&self) -> &'static Architecture {
        self.architecture
    }

    /// The weights under the keys of the model with its head.
    pub fn weights(&self) -> Result<WeightSet> {
        match &self.gguf {
            Some(model) => Ok(model.weights()),
            None => Ok(WeightSet::open_folder(&self.root, None)?.respelled(|key| Some(self.architecture.spell(key)))),
        }
    }

    /// Loads the model.
    pub fn load(&self, placement: Placement, head: HeadOptions) -> Result<Loaded<LanguageModel>> {
        let path = if self.gguf.is_some() { self.root.clone() } else { self.root.join("config.json") };
        let build = Build { config: &self.config, path: &path, labels: head.labels, seed: head.seed };
        load(self.weights()?.stored_in(self.storage), placement, |loader| (self.architecture.load)(loader, &build))
    }
}
