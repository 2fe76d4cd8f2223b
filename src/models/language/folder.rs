//! A language model on disk: as transformers saves it, `config.json` beside safetensors, whole or in shards; or a GGUF file.

use super::architectures::{self, Architecture, Build};
use super::interface::LanguageModel;
use super::outline::{HeadOutline, Outline};
use crate::error::{Error, Result};
use crate::models::config_file;
use crate::models::loaded::{load, Loaded};
use crate::nn::Loader;
use crate::weights::gguf::GgufLanguageModel;
use crate::weights::{Keeping, Placement, WeightSet};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tch::Kind;

/// What a classifier becomes whose head is not the one in its files.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeadOptions {
    /// Number of classes, which makes a classifier of a decoder too; none: as many as its files say.
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
    keeping: Keeping,
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
        if root.join("model_index.json").exists() {
            return Err(Error::file(root, "is a Stable Diffusion pipeline, but a language model is needed"));
        }
        let (path, config) = match &gguf {
            Some(model) => (root.to_owned(), model.config().clone()),
            None => (root.join("config.json"), config_file::read_json(&root.join("config.json"))?),
        };
        let architecture = Architecture::of(&config, &path)?;
        config_file::check_quantisation(&config, &path)?;
        Ok(Self { root: root.to_owned(), config, architecture, gguf, keeping: Keeping::default() })
    }

    /// Refuses paths of layers that the model does not have.
    pub fn check_layers(&self) -> Result<()> {
        if self.keeping.fp32_layers.is_empty() {
            return Ok(());
        }
        let weights = self.weights()?;
        let is_there = |layer: &String| weights.keys().any(|key| key.starts_with(&format!("{layer}.")));
        match self.keeping.fp32_layers.iter().find(|layer| !is_there(layer)) {
            Some(layer) => Err(Keeping::no_layer(layer)),
            None => Ok(()),
        }
    }

    /// Has the weights kept so.
    pub fn store_in(&mut self, keeping: impl Into<Keeping>) {
        self.keeping = keeping.into();
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

    /// Where its configuration is.
    fn config_path(&self) -> PathBuf {
        match &self.gguf {
            Some(_) => self.root.clone(),
            None => self.root.join("config.json"),
        }
    }

    /// Whether it is one that sorts texts into classes.
    pub fn is_classifier(&self) -> bool {
        architectures::is_classifier(&self.config)
    }

    /// Names of the classes of a classifier, where its configuration has them (`id2label`).
    pub fn classes(&self) -> Option<Vec<String>> {
        let names = self.config.get("id2label").filter(|_| self.is_classifier())?;
        let name = |id: usize| names.get(id.to_string())?.as_str().map(str::to_owned);
        (0..names.as_object()?.len()).map(name).collect()
    }

    /// What the model is made of, from its configuration alone.
    pub fn outline(&self) -> Result<Outline> {
        let outline = (self.architecture.outline)(&self.config);
        let outline = outline.map_err(|message| Error::file(self.config_path(), message))?;
        Ok(match self.is_classifier() {
            true => Outline { head: outline.head.of_classes(), ..outline },
            false => outline,
        })
    }

    /// Keys of the weights of its head as a classifier, the last of which has a row for each class.
    pub fn classifier_keys(&self) -> Result<Vec<String>> {
        match self.outline()?.head.of_classes() {
            HeadOutline::Classes(paths) => Ok(paths.iter().map(|path| format!("{path}.weight")).collect()),
            HeadOutline::Tokens { .. } => Ok(Vec::new()),
        }
    }

    /// The dtype that its weights are stored in: that of the token table, or where there are no weights what its configuration
    /// says.
    pub fn stored_kind(&self) -> Result<Kind> {
        let key = format!("{}.weight", self.outline()?.table);
        if let Ok(kind) = self.weights().and_then(|weights| weights.kind(&key)) {
            return Ok(kind);
        }
        let said = ["dtype", "torch_dtype"].iter().find_map(|name| self.config.get(name)).and_then(Value::as_str);
        Ok(match said {
            Some("float16") => Kind::Half,
            Some("bfloat16") => Kind::BFloat16,
            _ => Kind::Float,
        })
    }

    /// The weights under the keys of the model with its head.
    pub fn weights(&self) -> Result<WeightSet> {
        match &self.gguf {
            Some(model) => Ok(model.weights()),
            None => {
                let weights = WeightSet::open_folder(&self.root, None)?;
                let weights = weights.respelled(|key| Some(self.architecture.spell(key)));
                Ok(weights.with_transposed(self.architecture.transposed))
            }
        }
    }

    /// Whether the files have the weights of linear layers in 4 bits.
    pub fn is_four_bit(&self) -> bool {
        self.config.get("quantization_config").is_some()
    }

    /// Loads the model.
    pub fn load(&self, placement: Placement, head: HeadOptions) -> Result<Loaded<LanguageModel>> {
        load(self.weights()?.stored_in(self.keeping.clone()), placement, |loader| self.build(loader, head))
    }

    /// The model of a loader's weights.
    pub fn build(&self, loader: &Loader, head: HeadOptions) -> Result<LanguageModel> {
        let path = self.config_path();
        let build = Build { config: &self.config, path: &path, labels: head.labels, seed: head.seed };
        (self.architecture.load)(loader, &build)
    }
}
