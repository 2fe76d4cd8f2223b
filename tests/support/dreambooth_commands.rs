//! Commands for Stable Diffusion that work, to be spoiled.

use super::words;
use std::path::Path;

/// A training command that works; what comes behind it wins.
pub fn train(model: &Path, photos: &Path, out: &Path, more: &[&str]) -> Vec<String> {
    let mut args = words(
        "train dreambooth --instance-prompt sks --resolution 32 --max-train-steps 1 --mixed-precision no --device cpu \
         --threads 1",
    );
    for (flag, path) in [("--model", model), ("--instance-data-dir", photos), ("--output-dir", out)] {
        args.extend([flag.to_owned(), path.display().to_string()]);
    }
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    args
}

pub fn generate(model: &Path, output: &Path, more: &[&str]) -> Vec<String> {
    let mut args =
        words("generate --prompt sks --steps 1 --height 32 --width 32 --device cpu --threads 1 --dtype fp32 --model");
    args.extend([model, Path::new("--output"), output].map(|path| path.display().to_string()));
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    args
}
