//! Stable Diffusion 1.x and 2.x: the three networks of a pipeline (arXiv 2112.10752).

mod checkpoint_facts;
pub mod clip_text;
mod inferred_config;
pub mod pipeline;
mod resnet;
mod spatial_transformer;
mod time_embedding;
pub mod unet;
mod unet_blocks;
pub mod vae;
mod vae_coders;
mod vae_tiling;
mod written_config;

use super::config_file;

pub use super::loaded::Loaded;
pub use clip_text::{ClipTextConfig, ClipTextModel};
pub use pipeline::{ModelOptions, PipelineFiles};
pub use unet::{UNet2DConditionModel, UNetConfig};
pub use vae::{AutoencoderKl, LatentDistribution, VaeConfig, VaeDecoder, VaeEncoder};
