//! The options of evaluating a language model.

use super::precision::MixedPrecision;
use super::reading::configuration;
use super::records::LanguageDataArgs;
use super::storage::StorageArgs;
use super::values::{optional_path_text, path_text};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// All options.
#[derive(Debug, Clone, Args, Serialize)]
pub struct EvaluateConfig {
    /// Model: a folder in the transformers layout, a .gguf file of the LLaMA family, or a hub id
    #[arg(long, visible_alias = "model-name-or-path", help_heading = "Model")]
    #[serde(serialize_with = "path_text")]
    pub model: PathBuf,
    /// Branch, tag or commit of a hub id
    #[arg(long, help_heading = "Model")]
    pub revision: Option<String>,
    /// Adapter, optionally with a scale: PATH=0.8; can be given several times, at most one of them a prompt
    #[arg(long, visible_alias = "lora", value_name = "PATH[=SCALE]", action = clap::ArgAction::Append, help_heading = "Model")]
    pub adapter: Vec<String>,
    /// What the model does with records.
    #[command(flatten)]
    #[serde(flatten)]
    pub data: LanguageDataArgs,
    /// Records to evaluate on: a JSONL, CSV, TSV or Parquet file
    #[arg(long, help_heading = "Data")]
    #[serde(serialize_with = "path_text")]
    pub validation_file: PathBuf,
    /// CSV file for the model's answers, next to the expected ones where --label-column is given
    #[arg(long, value_name = "FILE.csv", help_heading = "Output")]
    #[serde(serialize_with = "optional_path_text")]
    pub output: Option<PathBuf>,
    /// Replace a file that is already there
    #[arg(long, help_heading = "Output")]
    pub overwrite: bool,
    /// Dtype of the computation
    #[arg(long, visible_alias = "dtype", value_enum, default_value_t = MixedPrecision::Auto, help_heading = "Model")]
    pub mixed_precision: MixedPrecision,
    /// How the model's weights are kept.
    #[command(flatten)]
    #[serde(flatten)]
    pub weights: StorageArgs,
}

configuration!(EvaluateConfig, "evaluate");
