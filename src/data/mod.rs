//! What a model is trained on: photos with their captions, the order in which they are visited, and token ids.

pub mod class_images;
pub mod dreambooth_dataset;
pub mod latent_cache;
pub mod photo_decoding;
pub mod photo_transform;
pub mod photos;
pub mod pillow_resize;
pub mod prefetch;
pub mod tokenizers;
