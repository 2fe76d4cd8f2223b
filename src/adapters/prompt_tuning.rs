//! Prompt tuning: the embeddings of virtual tokens are trained themselves (arXiv 2104.08691). Reference: peft
//! `tuners/prompt_tuning`.

use super::prompt::{EncoderTensors, PromptEncoder, PromptMethod, PromptPlace, Table};
use super::prompt_config::PromptConfig;
use crate::error::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub(super) const METHOD: PromptMethod =
    PromptMethod { peft_type: "PROMPT_TUNING", name: "prompt tuning", place: PromptPlace::Embeddings, make };

/// How the virtual tokens start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PromptTuningInit {
    /// Normal.
    #[default]
    Random,
    /// As the embeddings of a text's tokens.
    #[value(help = "The embeddings of --prompt-tuning-init-text")]
    Text,
    /// As those of tokens of the vocabulary (in files of PEFT).
    #[value(skip)]
    SampleVocab,
}

/// Fields of `PromptTuningConfig`, of which only the numbers that they lead to matter once a prompt is there.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PromptTuningOptions {
    /// How the virtual tokens start.
    pub prompt_tuning_init: PromptTuningInit,
    /// The text.
    pub prompt_tuning_init_text: Option<String>,
    /// Whose tokenizer takes it apart.
    pub tokenizer_name_or_path: Option<String>,
    /// What PEFT would give that tokenizer.
    pub tokenizer_kwargs: Option<serde_json::Value>,
}

fn make(config: &PromptConfig, tensors: &mut EncoderTensors) -> Result<Box<dyn PromptEncoder>> {
    Ok(Box::new(Table(tensors.table(config.rows(), config.sizes()?.token_dim)?)))
}
