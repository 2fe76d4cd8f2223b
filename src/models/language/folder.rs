//! A language model on disk, as transformers saves it: `config.json` beside safetensors, whole or in shards.

use super::architectures::{Architecture, Build};
use super::interface::LanguageModel;
use crate::error::{Error, Result};
use crate::models::config_file;
use crate::models::loaded::{load, Loaded};
use crate::weights::{Placement, WeightSet};
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

/// A language model's folder. Nothing but the configuration is read before it is loaded.
pub struct LanguageModelFiles {
    root: PathBuf,
    config: Value,
    architecture: &'static Architecture,
}

impl LanguageModelFiles {
    /// The model in the folder `root`.
    pub fn open(root: &Path) -> Result<Self> {
        if !root.is_dir() {
            return Err(Error::file(root, "no such model folder"));
        }
        let path = root.join("config.json");
        let config = config_file::read_json(&path)?;
        let architecture = Architecture::of(&config, &path)?;
        Ok(Self { root: root.to_owned(), config, architecture })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Its row in [`super::ARCHITECTURES`].
    pub fn architecture(&self) -> &'static Architecture {
        self.architecture
    }

    /// The weights under the keys of the model with its head.
    pub fn weights(&self) -> Result<WeightSet> {
        Ok(WeightSet::open_folder(&self.root, None)?.respelled(|key| Some(self.architecture.spell(key))))
    }

    /// Loads the model.
    pub fn load(&self, placement: Placement, head: HeadOptions) -> Result<Loaded<LanguageModel>> {
        let path = self.root.join("config.json");
        let build = Build { config: &self.config, path: &path, labels: head.labels, seed: head.seed };
        load(self.weights()?, placement, |loader| (self.architecture.load)(loader, &build))
    }
}
