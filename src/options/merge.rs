//! The options of folding adapters into a model.

use super::model::ModelArgs;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use tch::Kind;

/// All options.
#[derive(Debug, Clone, Args)]
#[command(mut_arg("model", |arg| arg.help("Model: a diffusers folder, a .safetensors checkpoint or a hub id; a language model's folder, .gguf file or hub id")))]
pub struct MergeConfig {
    /// Adapter, optionally with a scale: PATH=0.8; can be given several times
    #[arg(long, required = true, visible_alias = "adapter", value_name = "PATH[=SCALE]")]
    pub lora: Vec<String>,
    /// Folder for the merged model, in the diffusers layout; or of Stable Diffusion FILE.safetensors, one checkpoint as web UIs read it
    #[arg(long, visible_alias = "output")]
    pub output_dir: PathBuf,
    /// Replace a model that is already there
    #[arg(long)]
    pub overwrite: bool,
    /// Dtype of the merged weights; by default that of the model's files
    #[arg(long, value_enum)]
    pub dtype: Option<WrittenDtype>,
    // Last: its heading holds for what follows.
    /// The model to fold into.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// A dtype of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WrittenDtype {
    /// float32.
    Fp32,
    /// float16.
    Fp16,
    /// bfloat16.
    Bf16,
}

impl From<WrittenDtype> for Kind {
    fn from(dtype: WrittenDtype) -> Self {
        match dtype {
            WrittenDtype::Fp32 => Self::Float,
            WrittenDtype::Fp16 => Self::Half,
            WrittenDtype::Bf16 => Self::BFloat16,
        }
    }
}
