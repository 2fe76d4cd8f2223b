//! A language model on disk with its tokenizer.

use crate::data::tokenizers::{json_files, LanguageTokenizer};
use crate::error::{Error, Result};
use crate::models::language::LanguageModelFiles;
use crate::options::model::check_language_model;
use crate::recipes::training::observer::Observer;
use crate::train::interrupt::Interrupt;
use crate::weights::gguf::is_gguf;
use crate::weights::hub::{self, Hub};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A model's files and its tokenizer.
pub struct LanguageBase {
    /// The model, not loaded yet.
    pub files: LanguageModelFiles,
    /// Its tokenizer.
    pub tokenizer: LanguageTokenizer,
}

/// Which language model is meant, and what is needed of it.
#[derive(Debug, Clone, Copy)]
pub struct WantedModel<'a> {
    /// A folder in the transformers layout, a GGUF file, or a hub id.
    pub name: &'a Path,
    /// Revision of a hub id.
    pub revision: Option<&'a str>,
    /// Of a hub id fetch the configuration and the tokenizer, no weights.
    pub configs_only: bool,
    /// What ends a download, beside Ctrl-C.
    pub interrupt: Option<&'a Interrupt>,
}

impl<'a> WantedModel<'a> {
    /// All of the model `name`.
    pub fn new(name: &'a Path, revision: Option<&'a str>) -> Self {
        Self { name, revision, configs_only: false, interrupt: None }
    }

    /// Refuses a path that is not there.
    pub fn check_path(&self) -> Result<()> {
        check_language_model("⟨model⟩", self.name)
    }

    /// Where it is on disk, fetched first if it is a hub id, with a bar for what has to be downloaded.
    pub fn find(&self, observer: &mut dyn Observer) -> Result<PathBuf> {
        let id = self.name.to_str().filter(|name| hub::is_language_model_id(name));
        match id.filter(|_| !self.name.exists() && !is_gguf(self.name)) {
            Some(id) => self.fetch(id, observer),
            None if self.revision.is_some() => Err(Error::invalid(format!(
                "⟨revision⟩ is of a hub id, and {} is a path; leave it out",
                self.name.display()
            ))),
            None => Ok(self.name.to_owned()),
        }
    }

    fn fetch(&self, id: &str, observer: &mut dyn Observer) -> Result<PathBuf> {
        let weights_of: &[&str] = if self.configs_only { &[] } else { &[""] };
        let request = hub::Request { id, revision: self.revision, variant: None, weights_of };
        crate::recipes::with_bar(observer, self.interrupt, |listener| {
            Hub::from_env()?.fetch_language_model(&request, listener)
        })
    }

    /// Its files, without a look at its tokenizer.
    pub fn open_files(&self, observer: &mut dyn Observer) -> Result<LanguageModelFiles> {
        LanguageModelFiles::open(&self.find(observer)?)
    }

    /// Its files and its tokenizer.
    pub fn open(&self, observer: &mut dyn Observer) -> Result<LanguageBase> {
        let path = self.find(observer)?;
        let files = LanguageModelFiles::open(&path)?;
        let tokenizer = match files.gguf() {
            Some(model) => LanguageTokenizer::from_gguf(model.file())?,
            None => LanguageTokenizer::from_folder(&path)?,
        };
        Ok(LanguageBase { files, tokenizer })
    }
}

impl LanguageBase {
    /// Tokens that end a text: the tokenizer's, and those of `generation_config.json`, or where it has none of the model's
    /// configuration.
    pub fn ends(&self) -> Result<Vec<i64>> {
        let of_generation = match self.files.gguf() {
            Some(_) => Map::new(),
            None => json_files::optional_object(&self.files.root().join("generation_config.json"))?,
        };
        let told = of_generation.get("eos_token_id").or_else(|| self.files.config().get("eos_token_id"));
        let ids: Vec<i64> = match told {
            Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_i64).collect(),
            id => id.and_then(Value::as_i64).into_iter().collect(),
        };
        let mut ends: Vec<i64> = self.tokenizer.special_ids().eos.into_iter().chain(ids).collect();
        ends.sort_unstable();
        ends.dedup();
        Ok(ends)
    }
}
