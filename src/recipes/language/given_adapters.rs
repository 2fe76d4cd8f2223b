//! The adapters that a command is told to use on a language model.

use super::adapter::fitted;
use crate::adapters::diffusers_file::FILE_NAME;
use crate::adapters::formats::of_unfinished_run;
use crate::adapters::peft_folder::CONFIG_FILE;
use crate::adapters::prompt_folder::{self, PromptFiles};
use crate::adapters::{attach, peft_folder, Init, PartAdapter, Prompt, PromptConfig, PromptMethod};
use crate::data::language_dataset::LanguageTask;
use crate::error::{Error, Result};
use crate::models::language::{LanguageModel, LanguageModelFiles};
use crate::models::Loaded;
use crate::options::adapter_argument::path_and_scale;
use crate::options::records::task_name;
use crate::regular_file::{self, FileKind};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tch::Device;

/// What `--adapter` names.
#[derive(Default)]
pub struct GivenAdapters {
    /// Their names, and their strengths.
    on_weights: Vec<(String, PartAdapter, f64)>,
    prompt: Option<PromptFiles>,
    folders: Vec<PathBuf>,
    warnings: Vec<String>,
}

impl GivenAdapters {
    /// Reads those of each `PATH` or `PATH=SCALE`; one of them can be a prompt.
    pub fn read(given: &[String]) -> Result<Self> {
        let mut adapters = Self::default();
        for (index, text) in given.iter().enumerate() {
            let (path, scale) = path_and_scale("⟨adapter⟩", text)?;
            check_kind(&path)?;
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
            adapters.warnings.extend(peft_folder::left_out(&path)?);
            adapters.folders.push(path);
        }
        Ok(adapters)
    }

    /// What of their files was left out.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
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
        let Some(file) = told.find(|file| file.exists()) else { return Ok(files.classes()) };
        let classes = read_classes(&file)?;
        match self.head_rows(files)?.filter(|&rows| rows != classes.len() as i64) {
            None => Ok(Some(classes)),
            Some(rows) => {
                Err(Error::file(file, format!("names {} classes, and the adapter's head has {rows}", classes.len())))
            }
        }
    }

    /// The classes of the head that they bring for a classifier; none: they bring none.
    pub fn head_rows(&self, files: &LanguageModelFiles) -> Result<Option<i64>> {
        let Some(key) = files.classifier_keys()?.pop() else { return Ok(None) };
        let on_weights = self.on_weights.iter().rev().find_map(|(_, adapter, _)| adapter.tensors.get(&key));
        let weight = self.prompt.as_ref().and_then(|prompt| prompt.whole.get(&key)).or(on_weights);
        Ok(weight.and_then(|weight| weight.size().first().copied()))
    }

    /// Refuses adapters for tasks that the model behind `files` does not do.
    pub fn check_for(&self, files: &LanguageModelFiles) -> Result<()> {
        let architecture = files.architecture();
        match self.tasks().find(|task| LanguageTask::named(task).is_some() && !architecture.tasks.contains(task)) {
            None => Ok(()),
            Some(task) => Err(Error::invalid(format!(
                "the adapter is for {}, and {} is a {} model, which does {}",
                task_name(task),
                files.root().display(),
                architecture.model_type,
                architecture.tasks.iter().map(|task| task_name(task)).collect::<Vec<_>>().join(" and ")
            ))),
        }
    }

    /// The error where [`GivenAdapters::classes`] finds none.
    pub fn without_classes(&self, files: &LanguageModelFiles) -> Error {
        match self.folders.first() {
            Some(folder) => Error::file(folder, "has no classes.json, which `train llm` writes for seq-cls"),
            None => Error::file(
                files.root(),
                "is not a classifier with named classes (`id2label`); give ⟨adapter⟩ with one from `train llm --task seq-cls`",
            ),
        }
    }

    /// Whether one of them says that it is for `task`.
    pub fn are_for(&self, task: LanguageTask) -> bool {
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
            attach(&loaded.sites, name, adapter.config.clone(), Init::Tensors(&adapter.tensors))
                .map_err(|error| of_other_model(error, adapter))?;
            loaded.sites.set_scale(name, *scale)?;
        }
        let prompt = self.prompt.map(|PromptFiles { config, embeddings, whole, .. }| {
            let config = fitted(config, &loaded.model, device)?;
            Prompt::finished(&loaded.sites, device, config, &embeddings, &whole)
        });
        prompt.transpose()
    }
}

/// `error` of an adapter that does not fit, with the model that it was trained on, where it tells.
pub(in crate::recipes) fn of_other_model(error: Error, adapter: &PartAdapter) -> Error {
    match (error, &adapter.config.base_model_name_or_path) {
        (Error::Invalid(message) | Error::NoTarget(message), Some(model)) => {
            Error::Invalid(format!("{message} (it was trained on {model})"))
        }
        (error, _) => error,
    }
}

/// Refuses what is no folder of PEFT's for a language model.
fn check_kind(path: &Path) -> Result<()> {
    let is_of_pipeline = ["unet", "text_encoder", FILE_NAME].iter().any(|name| path.join(name).exists());
    if path.is_file() {
        return Err(Error::file(path, "is a file, and the adapter of a language model is a folder of PEFT's"));
    }
    match is_of_pipeline && !path.join(CONFIG_FILE).exists() {
        true => {
            Err(Error::file(path, "is a Stable Diffusion adapter, but this command needs a language-model adapter"))
        }
        false => of_unfinished_run(path).map_or(Ok(()), Err),
    }
}

fn read_classes(file: &Path) -> Result<Vec<String>> {
    let text = regular_file::read_text(file, FileKind::CONFIG)?;
    match serde_json::from_str::<Vec<String>>(&text) {
        Ok(classes) if classes.len() > 1 && classes.iter().collect::<BTreeSet<_>>().len() == classes.len() => {
            Ok(classes)
        }
        _ => Err(Error::file(file, "is not a list of two or more different class names")),
    }
}
