//! Stable Diffusion 1.x and 2.x: the three networks of a pipeline (arXiv 2112.10752).

pub mod activation;
pub mod clip_text;
pub mod config_file;
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

pub use clip_text::{ClipTextConfig, ClipTextModel};
pub use pipeline::{Loaded, ModelOptions, PipelineFiles};
pub use unet::{UNet2DConditionModel, UNetConfig};
pub use vae::{vae_kind, AutoencoderKl, LatentDistribution, VaeConfig, VaeDecoder, VaeEncoder};
