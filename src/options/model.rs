//! Which model a command works on: the same flags for training, generating, planning and merging.

use super::checks::{is_folder, is_there};
use crate::error::{Error, Result};
use crate::models::stable_diffusion::ModelOptions;
use crate::weights::gguf::is_gguf;
use crate::weights::hub;
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A model and how it is read.
#[derive(Debug, Clone, PartialEq, Args, Serialize)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Model: a diffusers folder, a .safetensors checkpoint, or a hub id
    #[serde(rename = "model")]
    #[arg(id = "model", long = "model", value_name = "MODEL", visible_alias = "pretrained-model-name-or-path")]
    pub name: String,
    /// Branch, tag or commit of a hub id
    #[arg(long)]
    pub revision: Option<String>,
    /// Variant of the weight files, such as fp16
    #[arg(long)]
    pub variant: Option<String>,
    /// Folder or hub id of another tokenizer; a single .safetensors checkpoint has none of its own
    #[arg(long)]
    pub tokenizer_name: Option<String>,
    /// Folder in the diffusers layout with the configurations, scheduler and tokenizer for a .safetensors checkpoint
    #[arg(long)]
    pub config_folder: Option<PathBuf>,
    /// Another VAE than the model's own: a folder, a .safetensors file, or a hub id
    #[arg(long)]
    pub vae: Option<String>,
    /// What the model predicts, if its scheduler configuration is wrong or missing
    #[arg(long, value_parser = ["epsilon", "v_prediction", "sample"])]
    pub prediction_type: Option<String>,
}

impl ModelArgs {
    /// Refuses what only says something of a pipeline.
    pub fn check_for_language_model(&self) -> Result<()> {
        for (flag, given) in [
            ("⟨variant⟩", self.variant.is_some()),
            ("⟨tokenizer_name⟩", self.tokenizer_name.is_some()),
            ("⟨config_folder⟩", self.config_folder.is_some()),
            ("⟨vae⟩", self.vae.is_some()),
            ("⟨prediction_type⟩", self.prediction_type.is_some()),
        ] {
            if given {
                return Err(Error::Usage(format!(
                    "{flag} is for Stable Diffusion, and the adapter is a language model's; leave it out"
                )));
            }
        }
        Ok(())
    }

    /// Refuses paths that are not there.
    pub fn check_paths(&self) -> Result<()> {
        check_model("⟨model⟩", &self.name)?;
        self.vae.as_deref().map_or(Ok(()), |name| check_model("⟨vae⟩", name))?;
        self.tokenizer_name.as_deref().map_or(Ok(()), |name| check_model("⟨tokenizer_name⟩", name))?;
        self.config_folder.as_deref().map_or(Ok(()), |folder| is_folder("⟨config_folder⟩", folder))
    }

    /// How the model is looked for.
    pub fn options(&self) -> ModelOptions {
        ModelOptions {
            variant: self.variant.clone(),
            revision: self.revision.clone(),
            config_folder: self.config_folder.clone(),
            tokenizer: self.tokenizer_name.clone(),
            vae: self.vae.clone(),
            prediction_type: self.prediction_type.clone(),
            configs_only: false,
        }
    }
}

/// Refuses the `name` of a model that is not there and no hub id either.
fn check_model(flag: &str, name: &str) -> Result<()> {
    let is_file_name = [".safetensors", ".gguf", ".ckpt"].iter().any(|end| name.to_lowercase().ends_with(end));
    match hub::is_id(name) && !is_file_name {
        true => Ok(()),
        false => is_there(flag, Path::new(name)),
    }
}

/// Refuses the `name` of a language model, as `flag` has it, that is not there and no hub id either.
pub fn check_language_model(flag: &str, name: &Path) -> Result<()> {
    let is_id = !is_gguf(name) && name.to_str().is_some_and(hub::is_language_model_id);
    match is_id {
        true => Ok(()),
        false => is_there(flag, name),
    }
}
