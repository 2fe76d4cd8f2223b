//! PEFT of language models: an adapter or a prompt that learns from records.

pub mod adapter;
pub mod base;
pub mod evaluation;
pub mod given_adapters;
pub mod loss;
mod options;
pub mod plan;
pub mod prompted_text;
pub mod training;
