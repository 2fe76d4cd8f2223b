//! Which model a command works on: the same flags for training, generating, planning and merging.

use crate::models::stable_diffusion::ModelOptions;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// A model and how it is read.
#[derive(Debug, Clone, Args, Serialize)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Model: a diffusers folder, a .safetensors checkpoint, or a hub id
    #[serde(rename = "model")]
    #[arg(id = "model", long = "model", value_name = "MODEL", visible_alias = "pretrained-model-name-or-path")]
    pub name: String,
    /// Revision of a hub id
    #[arg(long)]
    pub revision: Option<String>,
    /// Variant of the weight files, such as fp16
    #[arg(long)]
    pub variant: Option<String>,
    /// Folder or hub id of the tokenizer, where the model has none
    #[arg(long)]
    pub tokenizer_name: Option<String>,
    /// Folder in the diffusers layout whose configurations, scheduler and tokenizer describe a .safetensors checkpoint
    #[arg(long)]
    pub config_folder: Option<PathBuf>,
    /// What the model predicts, where its scheduler's configuration is wrong or absent
    #[arg(long, value_parser = ["epsilon", "v_prediction", "sample"])]
    pub prediction_type: Option<String>,
}

impl ModelArgs {
    /// How the model is looked for.
    pub fn options(&self) -> ModelOptions {
        ModelOptions {
            variant: self.variant.clone(),
            revision: self.revision.clone(),
            config_folder: self.config_folder.clone(),
            tokenizer: self.tokenizer_name.clone(),
            prediction_type: self.prediction_type.clone(),
            configs_only: false,
        }
    }
}
