//! The options of fine-tuning a language model, for the command line, TOML files and examples alike.

use super::base::{is_gguf, WantedModel};
use super::data_args::{LanguageDataArgs, TaskChoice};
use crate::adapters::{LoraConfig, TargetModules};
use crate::error::Result;
use crate::models::language::Architecture;
use crate::recipes::dreambooth::config::{optional_path_text, path_text, BiasChoice, LoraInit};
use crate::recipes::given_flags::GivenFlags;
use crate::recipes::option_checks::{self, counted, in_range, is_file, is_there, refuse, MAX_PLACES};
use crate::recipes::pattern_flag::PatternFlag;
use crate::recipes::prompt_args::{PeftMethodChoice, PromptArgs};
use crate::recipes::training::output_name;
use crate::recipes::training_args::TrainingArgs;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Options that change none of a run's numbers: what records come to is weighed as such, and `classes` are theirs.
pub(in crate::recipes) const FREE_OPTIONS: &[&str] =
    &["train_file", "validation_file", "eval_steps", "eval_max_new_tokens", "classes"];

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
    #[arg(long, value_enum, default_value_t = PeftMethodChoice::Lora, help_heading = "Adapter")]
    pub peft_method: PeftMethodChoice,
    /// Rank of the LoRA
    #[arg(long, visible_aliases = ["rank", "network-dim"], default_value_t = 8, help_heading = "Adapter")]
    pub lora_r: i64,
    /// Alpha of the LoRA; its output is scaled by alpha/rank
    #[arg(long, visible_alias = "network-alpha", default_value_t = 16.0, help_heading = "Adapter")]
    pub lora_alpha: f64,
    /// Dropout on the adapter's input
    #[arg(long, default_value_t = 0.0, help_heading = "Adapter")]
    pub lora_dropout: f64,
    /// Which biases to train
    #[arg(long, value_enum, default_value_t = BiasChoice::None, help_heading = "Adapter")]
    pub lora_bias: BiasChoice,
    /// Modules that get a LoRA: names, a regular expression, or all-linear; by default PEFT's for the architecture
    #[arg(long, alias = "target-modules", help_heading = "Adapter")]
    pub lora_targets: Option<String>,
    /// Other ranks for some modules: name=rank,name=rank or a JSON object; a name can be a regular expression
    #[arg(long, value_name = "NAME=RANK,…", help_heading = "Adapter")]
    pub lora_rank_pattern: Option<PatternFlag<i64>>,
    /// Other alphas for some modules, in the same form
    #[arg(long, value_name = "NAME=ALPHA,…", help_heading = "Adapter")]
    pub lora_alpha_pattern: Option<PatternFlag<f64>>,
    /// Modules to leave out of the targets: names, or a regular expression
    #[arg(long, value_name = "MODULES", help_heading = "Adapter")]
    pub lora_exclude_modules: Option<String>,
    /// Modules to train and save in full; a classifier's head always is
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "Adapter")]
    pub lora_modules_to_save: Vec<String>,
    /// Initialization of A: true (Kaiming-uniform) or gaussian (standard deviation 1/rank); B is zero
    #[arg(long, value_enum, default_value_t = LoraInit::True, help_heading = "Adapter")]
    pub lora_init: LoraInit,
    /// Scale by alpha/√rank instead of alpha/rank (rank-stabilized LoRA)
    #[arg(long, help_heading = "Adapter")]
    pub use_rslora: bool,
    /// Also train the magnitudes of the weights (DoRA)
    #[arg(long, help_heading = "Adapter")]
    pub use_dora: bool,

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

impl LanguageConfig {
    /// Refuses options that cannot be meant, each by its flag and with what to give instead.
    pub fn check(&self) -> Result<()> {
        self.peft_method.check_given(self.given.names())?;
        self.training.check()?;
        self.data.check()?;
        self.data.check_labels()?;
        counted("--train-batch-size", self.train_batch_size as u64, 1, MAX_PLACES)?;
        counted("--eval-steps", self.eval_steps.unwrap_or(1), 1, u64::MAX)?;
        in_range("--learning-rate", self.learning_rate, 1e3)?;
        option_checks::rank("--lora-r", self.lora_r)?;
        option_checks::alpha("--lora-alpha", self.lora_alpha)?;
        option_checks::dropout("--lora-dropout", self.lora_dropout)?;
        self.prompt.check(self.peft_method)?;
        self.check_paths()?;
        self.training.check_logging_dir(self.output())?;
        for (flag, path) in [
            ("--train-file", Some(&self.train_file)),
            ("--validation-file", self.validation_file.as_ref()),
            ("--init-adapter", self.init_adapter.as_ref()),
        ] {
            path.map_or(Ok(()), |path| TrainingArgs::check_stays(flag, path, self.output()))?;
        }
        if self.eval_steps.is_some() && self.validation_file.is_none() {
            return refuse("--eval-steps needs --validation-file, the records to evaluate on".into());
        }
        Ok(())
    }

    /// What is to be read must be there: each path is named with its flag.
    fn check_paths(&self) -> Result<()> {
        // A plan needs no records.
        let train_file = Some(&self.train_file).filter(|path| **path != Path::new(""));
        for (flag, path) in [("--train-file", train_file), ("--validation-file", self.validation_file.as_ref())] {
            path.map_or(Ok(()), |path| is_file(flag, path))?;
        }
        WantedModel::new(&self.model, None).check_path()?;
        self.init_adapter.as_deref().map_or(Ok(()), |path| is_there("--init-adapter", path))
    }

    /// The folder that the run writes to, once it is named.
    pub fn output(&self) -> &Path {
        self.output_dir.as_deref().unwrap_or(Path::new(""))
    }

    /// The same options with an output folder: the one that was given, or one named after the records, the model and the date.
    pub(in crate::recipes) fn with_output(&self) -> Self {
        let stem = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let model = match is_gguf(&self.model) {
            true => stem(&self.model),
            // A dot in a folder's name begins no ending.
            false => self.model.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        };
        let named = || output_name::free_folder(&format!("{} {model}", stem(&self.train_file)), "language-model");
        Self { output_dir: Some(self.output_dir.clone().unwrap_or_else(named)), ..self.clone() }
    }

    /// The adapter that the options ask for on a model of `architecture`.
    pub fn lora(&self, architecture: &Architecture) -> LoraConfig {
        let default =
            || TargetModules::Names(architecture.lora_targets.iter().map(|name| (*name).to_owned()).collect());
        let mut saved = self.lora_modules_to_save.clone();
        if self.data.task == TaskChoice::SeqCls {
            // As PEFT does for this task: the head is new, and no low rank can make one.
            saved.push(architecture.classifier_head().to_owned());
        }
        LoraConfig {
            r: self.lora_r,
            lora_alpha: self.lora_alpha,
            lora_dropout: self.lora_dropout,
            bias: self.lora_bias.into(),
            target_modules: Some(self.lora_targets.as_deref().map_or_else(default, TargetModules::from_flag)),
            use_rslora: self.use_rslora,
            use_dora: self.use_dora,
            init_lora_weights: self.lora_init.into(),
            rank_pattern: self.lora_rank_pattern.as_ref().map(|pattern| pattern.0.clone()).unwrap_or_default(),
            alpha_pattern: self.lora_alpha_pattern.as_ref().map(|pattern| pattern.0.clone()).unwrap_or_default(),
            exclude_modules: self.lora_exclude_modules.as_deref().map(TargetModules::from_flag),
            modules_to_save: (!saved.is_empty()).then_some(saved),
            base_model_name_or_path: Some(self.model.display().to_string()),
            task_type: Some(self.data.task.peft_name().to_owned()),
            ..LoraConfig::default()
        }
    }
}
