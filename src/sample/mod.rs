//! What a model makes: images from text.

pub mod text_to_image;
