//! The options of continuing, answering or classifying a text.

use super::precision::Dtype;
use super::reading::configuration;
use super::storage::StorageArgs;
use super::values::{name_of, path_text};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// The default of `--max-new-tokens`.
pub const MAX_NEW_TOKENS: usize = 50;

/// All options.
#[derive(Debug, Clone, Args, Serialize)]
pub struct CompleteConfig {
    /// Model: a folder in the transformers layout, a .gguf file of the LLaMA family, or a hub id
    #[arg(long)]
    #[serde(serialize_with = "path_text")]
    pub model: PathBuf,
    /// Branch, tag or commit of a hub id
    #[arg(long)]
    pub revision: Option<String>,
    /// Adapter, optionally with a scale: PATH=0.8; can be given several times, at most one of them a prompt
    #[arg(long, visible_alias = "lora", value_name = "PATH[=SCALE]", action = clap::ArgAction::Append)]
    pub adapter: Vec<String>,
    /// The text to continue, answer or classify; - reads standard input
    // Only the command line does; here it is a text as any other.
    #[arg(long)]
    pub prompt: String,
    /// Maximum number of tokens to generate
    #[arg(long, default_value_t = MAX_NEW_TOKENS)]
    pub max_new_tokens: usize,
    /// Sampling temperature; 0 always takes the most likely token
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Sample from the K most likely tokens
    #[arg(long)]
    pub top_k: Option<i64>,
    /// Sample from the most likely tokens whose probabilities add up to P (nucleus sampling)
    #[arg(long)]
    pub top_p: Option<f64>,
    /// Number of beams of beam search
    #[arg(long, default_value_t = 1)]
    pub num_beams: usize,
    /// Dtype of the computation
    #[arg(long, visible_alias = "mixed-precision", value_enum, default_value_t = Dtype::Auto)]
    #[serde(serialize_with = "name_of")]
    pub dtype: Dtype,
    /// How the model's weights are kept.
    #[command(flatten)]
    #[serde(flatten)]
    pub weights: StorageArgs,
}

configuration!(CompleteConfig, "complete");
