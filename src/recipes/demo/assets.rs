//! The model and the photos of the demo, inside the binary.

use crate::error::Result;
use crate::whole_file::write_whole;
use std::path::Path;

macro_rules! embedded {
    ($folder:literal: $($name:literal),+ $(,)?) => {
        &[$(($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/", $folder, "/", $name)))),+]
    };
}

/// Name in its folder, and content.
type File = (&'static str, &'static [u8]);

/// A small Stable Diffusion pipeline in the diffusers layout; `assets/model/README.md` says what it is.
const MODEL: &[File] = embedded!("model":
    "README.md",
    "LICENSE-fluent-emoji",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
);

/// Photos of a penguin, which the model has never seen, with captions.
const SUBJECT: &[File] = embedded!("subject":
    "1.png", "1.txt",
    "2.png", "2.txt",
    "3.png", "3.txt",
    "4.png", "4.txt",
    "5.png", "5.txt",
    "6.png", "6.txt",
);

/// Writes the model into `folder`.
pub fn write_model(folder: &Path) -> Result<()> {
    write(folder, MODEL)
}

/// Writes the subject's photos into `folder`.
pub fn write_subject(folder: &Path) -> Result<()> {
    write(folder, SUBJECT)
}

fn write(folder: &Path, files: &[File]) -> Result<()> {
    files.iter().try_for_each(|(name, content)| write_whole(&folder.join(name), content))
}
