//! DreamBooth LoRA: Stable Diffusion learns a subject from a few photos.

mod adapters;
mod class_images;
mod encodings;
mod networks;
mod options;
mod photos;
pub mod plan;
mod samples;
pub mod training;
