//! Stable Diffusion beside diffusers, transformers and peft: networks, samplers, photos, pictures, files, and the plan.

mod adapter_files;
mod clip_tokenizer;
mod generate;
mod models;
mod photos;
mod plan;
mod schedulers;
mod sdxl;
mod single_file;
mod storage;
