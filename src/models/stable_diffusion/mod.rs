//! Stable Diffusion 1.x, 2.x and XL: the networks of a pipeline (arXiv 2112.10752, arXiv 2307.01952).

mod checkpoint_facts;
pub mod clip_text;
mod conditioning;
mod inferred_config;
pub mod pipeline;
mod resnet;
mod spatial_transformer;
mod text_encoders;
mod time_embedding;
pub mod unet;
mod unet_blocks;
pub mod vae;
mod vae_coders;
mod vae_files;
mod vae_tiling;
mod written_config;

use super::config_file;

pub use super::loaded::Loaded;
pub use clip_text::{ClipTextConfig, ClipTextModel};
pub use conditioning::{Conditioning, SizeIds};
pub use pipeline::{ModelOptions, PipelineFiles};
pub use text_encoders::TextEncoders;
pub use unet::{UNet2DConditionModel, UNetConfig};
pub use vae::{AutoencoderKl, LatentDistribution, VaeConfig, VaeDecoder, VaeEncoder};
