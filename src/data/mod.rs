//! What a model is trained on: photos with their captions, rows of texts, the order in which they are visited, and token ids.

pub mod captions;
pub mod class_images;
pub mod dreambooth_dataset;
pub mod encodings;
pub mod epoch_order;
pub mod language_batch;
pub mod language_dataset;
mod language_example;
pub mod latent_cache;
pub mod photo_decoding;
pub mod photo_files;
pub mod photo_transform;
pub mod photos;
pub mod pillow_resize;
pub mod prefetch;
pub mod prompt_marks;
pub mod prompt_template;
pub mod records;
pub mod tokenizers;
