//! DreamBooth LoRA: Stable Diffusion learns a subject from a few photos.

mod adapters;
mod options;
mod phases;
pub mod plan;
mod samples;
pub mod training;
