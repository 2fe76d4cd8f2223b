//! What a model makes: images from text, and text.

pub mod grid;
pub mod pipeline;
pub mod text_generation;
pub mod text_to_image;
