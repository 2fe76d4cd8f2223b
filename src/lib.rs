//! DreamBooth LoRA for Stable Diffusion and PEFT fine-tuning of language models, on libtorch.
//!
//! The modules are listed in the order in which data and knowledge flow: a module uses only modules above it.

pub mod sentence;

pub mod error;

pub mod interrupt;

pub mod plain_text;

pub mod regular_file;

pub mod whole_file;

pub mod libtorch;

pub mod weights;

pub mod adapters;

pub mod nn;

pub mod models;

pub mod schedulers;

pub mod data;

pub mod train;

pub mod plan;

pub mod sample;

pub mod options;

pub mod recipes;

pub mod server;

pub mod cli;
