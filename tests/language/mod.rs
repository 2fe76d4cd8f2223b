//! Language models beside transformers and peft: networks, data, training, adapters, answers.

mod adapters;
mod data;
mod evaluate;
mod gguf;
mod merged;
mod models;
mod pretrain;
mod prompts;
mod screens;
mod text_sampling;
mod training;
