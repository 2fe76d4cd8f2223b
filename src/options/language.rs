//! The options of fine-tuning a language model, for the command line, TOML files and examples alike.

use super::checks::{counted, in_range, is_file, is_there, refuse, MAX_PLACES};
use super::given::GivenFlags;
use super::lora::{LoraArgs, LoraVariantArgs};
use super::model::check_language_model;
use super::prompts::{PeftMethod, PromptArgs};
use super::reading::configuration;
use super::records::LanguageDataArgs;
use super::training::TrainingArgs;
use super::values::{optional_path_text, path_text};
use crate::adapters::{LoraConfig, TargetModules};
use crate::data::language_dataset::LanguageTask;
use crate::error::Result;
use crate::models::language::Architecture;
use crate::train::measure::Measure;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// `--best-by`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BestBy {
    /// The lowest loss.
    Loss,
    /// The highest accuracy.
    Accuracy,
}

/// All options of a run.
#[derive(Debug, Clone, Args, Serialize)]
pub struct LanguageConfig {
    /// Which of them were given.
    #[command(flatten)]
    #[serde(skip)]
    pub given: GivenFlags,
    /// Model: a folder in the transformers layout, a .gguf file of the LLaMA family, or a hub id
    #[arg(long, visible_alias = "model-name-or-path", help_heading = "Model")]
    #[serde(serialize_with = "path_text")]
    pub model: PathBuf,
    /// Branch, tag or commit of a hub id
    #[arg(long, help_heading = "Model")]
    pub revision: Option<String>,
    /// Adapter to start from: the folder of an earlier run
    #[arg(long, help_heading = "Model")]
    #[serde(serialize_with = "optional_path_text")]
    pub init_adapter: Option<PathBuf>,

    /// What is learned of records.
    #[command(flatten)]
    #[serde(flatten)]
    pub data: LanguageDataArgs,
    /// Records to train on: a JSONL, CSV, TSV or Parquet file
    #[arg(long, help_heading = "Data")]
    #[serde(serialize_with = "path_text")]
    pub train_file: PathBuf,
    /// Records to evaluate on during the training; the adapter of the best evaluation is kept
    #[arg(long, help_heading = "Data")]
    #[serde(serialize_with = "optional_path_text")]
    pub validation_file: Option<PathBuf>,
    /// Train on the records in their order instead of shuffled
    #[arg(long, help_heading = "Data")]
    pub no_shuffle: bool,

    /// Method of parameter-efficient fine-tuning
    #[arg(long, value_enum, default_value_t = PeftMethod::Lora, help_heading = "Adapter")]
    pub peft_method: PeftMethod,
    /// LoRA.
    #[command(flatten)]
    #[serde(flatten)]
    pub lora: LoraArgs,
    /// Its kind.
    #[command(flatten)]
    #[serde(flatten)]
    pub variant: LoraVariantArgs,

    /// Virtual tokens.
    #[command(flatten)]
    #[serde(flatten)]
    pub prompt: PromptArgs,

    /// Records in a batch
    #[arg(long, visible_alias = "batch-size", default_value_t = 4, help_heading = "Training")]
    pub train_batch_size: usize,
    /// Learning rate
    #[arg(long, visible_alias = "lr", default_value_t = 3e-4, help_heading = "Training")]
    pub learning_rate: f64,
    /// Evaluate every so many optimizer steps; by default at the end of each epoch
    #[arg(long, help_heading = "Training")]
    pub eval_steps: Option<u64>,
    /// Which evaluation is the best: the one with the lowest loss, or with the highest accuracy
    #[arg(long, value_enum, default_value_t = BestBy::Loss, help_heading = "Training")]
    pub best_by: BestBy,
    /// Steps, optimizer, precision and checkpoints.
    #[command(flatten)]
    #[serde(flatten)]
    pub training: TrainingArgs,

    /// Folder for everything that the run writes; by default named after the records, the model and the date
    #[arg(long, visible_alias = "output", help_heading = "Output")]
    #[serde(serialize_with = "optional_path_text")]
    pub output_dir: Option<PathBuf>,
}

configuration!(LanguageConfig, "train llm");

impl LanguageConfig {
    /// Refuses options that cannot be meant, each by its flag and with what to give instead.
    pub fn check(&self) -> Result<()> {
        self.peft_method.check_given(self.given.names())?;
        self.training.check()?;
        self.data.check()?;
        self.data.check_labels()?;
        counted("⟨train_batch_size⟩", self.train_batch_size as u64, 1, MAX_PLACES)?;
        counted("⟨eval_steps⟩", self.eval_steps.unwrap_or(1), 1, u64::MAX)?;
        in_range("⟨learning_rate⟩", self.learning_rate, 1e3)?;
        self.lora.check()?;
        self.prompt.check(self.peft_method)?;
        self.check_paths()?;
        self.training.check_logging_dir(self.output())?;
        for (flag, path) in [
            ("⟨train_file⟩", Some(&self.train_file)),
            ("⟨validation_file⟩", self.validation_file.as_ref()),
            ("⟨init_adapter⟩", self.init_adapter.as_ref()),
        ] {
            path.map_or(Ok(()), |path| TrainingArgs::check_stays(flag, path, self.output()))?;
        }
        if self.eval_steps.is_some() && self.validation_file.is_none() {
            return refuse("⟨eval_steps⟩ needs ⟨validation_file⟩, the records to evaluate on".into());
        }
        Ok(())
    }

    /// What is to be read must be there: each path is named with its flag.
    fn check_paths(&self) -> Result<()> {
        // A plan needs no records.
        let train_file = Some(&self.train_file).filter(|path| **path != Path::new(""));
        for (flag, path) in [("⟨train_file⟩", train_file), ("⟨validation_file⟩", self.validation_file.as_ref())]
        {
            path.map_or(Ok(()), |path| is_file(flag, path))?;
        }
        check_language_model("⟨model⟩", &self.model)?;
        self.init_adapter.as_deref().map_or(Ok(()), |path| is_there("⟨init_adapter⟩", path))
    }

    /// The same options with those of `measure`.
    pub fn taking(mut self, measure: &Measure) -> Self {
        self.training.take(measure, &mut self.train_batch_size);
        self
    }

    /// The folder that the run writes to, once it is named.
    pub fn output(&self) -> &Path {
        self.output_dir.as_deref().unwrap_or(Path::new(""))
    }

    /// The adapter that the options ask for on a model of `architecture`.
    pub fn lora(&self, architecture: &Architecture) -> LoraConfig {
        let default =
            || TargetModules::Names(architecture.lora_targets.iter().map(|name| (*name).to_owned()).collect());
        let mut config = self.lora.config(&self.variant);
        if self.data.task == LanguageTask::SeqCls {
            // As PEFT does for this task: the head is new, and no low rank can make one.
            config.modules_to_save.get_or_insert_default().push(architecture.classifier_head().to_owned());
        }
        LoraConfig {
            target_modules: Some(config.target_modules.unwrap_or_else(default)),
            base_model_name_or_path: Some(self.model.display().to_string()),
            task_type: Some(self.data.task.peft_name().to_owned()),
            ..config
        }
    }
}
