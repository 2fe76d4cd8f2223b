//! The adapters that a command is told to use on a language model.

use super::adapter_argument::path_and_scale;
use super::language_adapter::fitted;
use super::language_data_args::TaskChoice;
use crate::adapters::formats::of_unfinished_run;
use crate::adapters::prompt_folder::{self, PromptFiles};
use crate::adapters::{attach, peft_folder, Init, PartAdapter, Prompt, PromptConfig, PromptMethod};
use crate::error::{Error, Result};
use crate::models::language::{LanguageModel, LanguageModelFiles};
use crate::models::Loaded;
use std::path::{Path, PathBuf};
use tch::Device;

/// What `--adapter` names.
#[derive(Default)]
pub struct GivenAdapters {
    /// Their names, and their strengths.
    on_weights: Vec<(String, PartAdapter, f64)>,
    prompt: Option<PromptFiles>,
    folders: Vec<PathBuf>,
}

impl GivenAdapters {
    /// Reads those of each `PATH` or `PATH=SCALE`; one of them can be a prompt.
    pub fn read(given: &[String]) -> Result<Self> {
        let mut adapters = Self::default();
        for (index, text) in given.iter().enumerate() {
            let (path, scale) = path_and_scale(text)?;
            of_unfinished_run(&path).map_or(Ok(()), Err)?;
            match PromptMethod::of(&peft_folder::peft_type(&path)?) {
                // Numbered: the same adapter twice is twice its change.
                None => adapters.on_weights.push((format!("{index} {text}"), peft_folder::read(&path)?, scale)),
                Some(_) if scale != 1.0 => {
                    return Err(Error::file(path, "is a prompt, which has no strength; leave `=SCALE` out"));
                }
                Some(_) if adapters.prompt.is_some() => {
                    return Err(Error::file(path, "is a second prompt; one can stand before a text"));
                }
                Some(_) => adapters.prompt = Some(prompt_folder::read(&path)?),
            }
            adapters.folders.push(path);
        }
        Ok(adapters)
    }

    /// Where they are.
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// The prompt among them.
    pub fn prompt(&self) -> Option<&PromptConfig> {
        self.prompt.as_ref().map(|prompt| &prompt.config)
    }

    /// Those on projections, with their strengths.
    pub fn on_weights(&self) -> impl Iterator<Item = (&PartAdapter, f64)> {
        self.on_weights.iter().map(|(_, adapter, scale)| (adapter, *scale))
    }

    /// Names of the classes that the last of them has learned, where a file beside it tells; else those of the model behind `files`.
    pub fn classes(&self, files: &LanguageModelFiles) -> Result<Option<Vec<String>>> {
        let mut told = self.folders.iter().rev().map(|folder| folder.join("classes.json"));
        match told.find(|file| file.exists()) {
            Some(file) => read_classes(&file).map(Some),
            None => Ok(files.classes()),
        }
    }

    /// The error where [`GivenAdapters::classes`] finds none.
    pub fn without_classes(&self, files: &LanguageModelFiles) -> Error {
        match self.folders.first() {
            Some(folder) => Error::file(folder, "has no classes.json, which `train llm` writes for seq-cls"),
            None => Error::file(
                files.root(),
                "is no classifier whose classes have names (`id2label`); give --adapter, one of `train llm --task seq-cls`",
            ),
        }
    }

    /// Whether one of them says that it is for `task`.
    pub fn are_for(&self, task: TaskChoice) -> bool {
        self.tasks().any(|name| name == task.peft_name())
    }

    /// PEFT's `task_type` of each that tells it.
    pub fn tasks(&self) -> impl Iterator<Item = &str> {
        let on_weights = self.on_weights.iter().map(|(_, adapter, _)| &adapter.config.task_type);
        on_weights.chain(self.prompt.iter().map(|prompt| &prompt.config.task_type)).filter_map(Option::as_deref)
    }

    /// Puts them on a model on `device`; the prompt, where there is one, is to stand before its texts.
    pub fn put_on(self, loaded: &Loaded<LanguageModel>, device: Device) -> Result<Option<Prompt>> {
        for (name, adapter, scale) in &self.on_weights {
            attach(&loaded.sites, name, adapter.config.clone(), Init::Tensors(&adapter.tensors))?;
            loaded.sites.set_scale(name, *scale)?;
        }
        let prompt = self.prompt.map(|PromptFiles { config, embeddings, whole, .. }| {
            let config = fitted(config, &loaded.model, device)?;
            Prompt::finished(&loaded.sites, device, config, &embeddings, &whole)
        });
        prompt.transpose()
    }
}

fn read_classes(file: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(file).map_err(|error| Error::io("read", file, error))?;
    match serde_json::from_str::<Vec<String>>(&text) {
        Ok(classes) if classes.len() > 1 => Ok(classes),
        _ => Err(Error::file(file, "is no list of two or more classes' names")),
    }
}
