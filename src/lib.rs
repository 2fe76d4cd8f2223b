//! DreamBooth LoRA for Stable Diffusion and PEFT fine-tuning of language models, on libtorch.
//!
//! The modules are listed in the order in which data and knowledge flow: a module uses only modules above it.

pub mod adapters;
pub mod error;
pub mod libtorch;
pub mod models;
pub mod nn;
pub mod train;
pub mod weights;
