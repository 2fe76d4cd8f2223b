//! What a model makes: images from text, and text.

pub mod drawn_image;
pub mod grid;
pub mod likeness;
pub mod painter;
pub mod pipeline;
pub mod text_generation;
pub mod text_to_image;
