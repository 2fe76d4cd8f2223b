//! A short DreamBooth run on the tiny model, and the lines of its logs.

use super::{model, photos};
use serde_json::Value;
use std::path::Path;

/// A training command of two steps; what comes behind it wins.
pub fn train(out: &Path, more: &str) -> Vec<String> {
    let line = format!(
        "train dreambooth --model {} --instance-data-dir {} --instance-prompt sks --resolution 32 --max-train-steps 2 \
         --mixed-precision no --device cpu --threads 1 --output-dir {} {more}",
        model("tiny").display(),
        photos(5, 0).display(),
        out.display()
    );
    line.split_whitespace().map(str::to_owned).collect()
}

/// The JSON objects of the file `path`, one a line.
pub fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
