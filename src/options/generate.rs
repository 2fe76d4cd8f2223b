//! The options of drawing images.

use super::model::ModelArgs;
use super::precision::Dtype;
use super::reading::configuration;
use super::storage::StorageArgs;
use super::values::{name_of, optional_path_text};
use crate::schedulers::SCHEDULERS;
use clap::builder::PossibleValuesParser;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// How closely a picture follows its prompt where nothing else is asked for.
pub const GUIDANCE_SCALE: f64 = 7.5;

/// All options.
#[derive(Debug, Clone, Args, Serialize)]
pub struct GenerateConfig {
    /// What the image shows
    #[arg(long)]
    pub prompt: String,
    /// What Stable Diffusion XL's second text encoder reads instead
    #[arg(long)]
    pub prompt_2: Option<String>,
    /// What the image must not show
    #[arg(long)]
    pub negative_prompt: Option<String>,
    /// Adapter, optionally with a scale: PATH=0.8; can be given several times
    #[arg(long, value_name = "PATH[=SCALE]", action = clap::ArgAction::Append)]
    pub lora: Vec<String>,
    /// Number of sampling steps
    #[arg(long, alias = "num-inference-steps", default_value_t = 30)]
    pub steps: usize,
    /// Guidance scale: how closely to follow the prompt
    #[arg(long, default_value_t = GUIDANCE_SCALE)]
    pub guidance_scale: f64,
    /// Bring back so much of the spread that guidance adds, 0 to 1; 0.7 is usual for models of zero terminal SNR
    #[arg(long, default_value_t = 0.0)]
    pub guidance_rescale: f64,
    /// Sampler; by default the model's own
    #[arg(long, value_parser = PossibleValuesParser::new(SCHEDULERS.iter().map(|(name, _)| *name)))]
    pub scheduler: Option<String>,
    /// Height in pixels; by default the model's own
    #[arg(long)]
    pub height: Option<i64>,
    /// Width in pixels; by default the model's own
    #[arg(long)]
    pub width: Option<i64>,
    /// Size that Stable Diffusion XL is told the image had before it was resized, by default its own: WIDTHxHEIGHT
    #[arg(long, value_name = "WIDTHxHEIGHT")]
    pub original_size: Option<String>,
    /// Size that it is told the image has, by default its own: WIDTHxHEIGHT
    #[arg(long, value_name = "WIDTHxHEIGHT")]
    pub target_size: Option<String>,
    /// What it is told was cut off: columns at the left and rows at the top, by default none: LEFT,TOP
    #[arg(long, value_name = "LEFT,TOP")]
    pub crop: Option<String>,
    /// Number of images; image i uses the seed --seed + i
    #[arg(long, default_value_t = 1)]
    pub num_images: usize,
    /// Images to sample at a time; they are decoded one by one
    #[arg(long, default_value_t = 1)]
    pub batch_size: usize,
    /// Decode large images tile by tile, which needs the memory of one tile
    #[arg(long)]
    pub vae_tiling: bool,
    /// Dtype of the computation
    #[arg(long, visible_alias = "mixed-precision", value_enum, default_value_t = Dtype::Auto)]
    #[serde(serialize_with = "name_of")]
    pub dtype: Dtype,
    /// FILE.png, or a folder in which images are numbered; by default image.png. Next to an earlier image the new one is numbered
    #[arg(long, visible_alias = "output-dir", value_name = "FILE.png|FOLDER")]
    #[serde(serialize_with = "optional_path_text")]
    pub output: Option<PathBuf>,
    /// Replace a file that already exists
    #[arg(long)]
    pub overwrite: bool,
    /// How the weights of UNet and text encoder are kept.
    #[command(flatten)]
    #[serde(flatten)]
    pub weights: StorageArgs,
    // Last: its heading holds for what follows.
    /// The model to draw with.
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelArgs,
}

configuration!(GenerateConfig, "generate");
