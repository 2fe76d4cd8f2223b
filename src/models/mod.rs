//! What is computed: architectures, built from their `config.json`. No word of adapters or training.

pub(crate) mod config_file;
pub mod language;
mod loaded;
pub mod stable_diffusion;

pub use loaded::Loaded;
