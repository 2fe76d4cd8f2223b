//! Adapters folded into the weights of their model, which is then written as a model of its own.

pub mod adapters;
pub mod language_model;
pub mod new_single_file;
pub mod pipeline;
pub mod single_file;
