//! What is computed: architectures, built from their `config.json`. No word of adapters or training.

pub mod stable_diffusion;
