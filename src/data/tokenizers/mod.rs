//! From text to token ids.

pub mod clip;

pub use clip::ClipTokenizer;
