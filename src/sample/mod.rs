//! What a model makes: images from text.

pub mod pipeline;
pub mod text_to_image;
