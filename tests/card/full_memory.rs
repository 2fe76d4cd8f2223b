//! Runs on the stand-in for a card whose memory is full at some allocation, and what they say and leave behind.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::jobs::{lines, Job};
use crate::support::{model, photos, words};
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

pub fn dreambooth(more: &str, out: &Path) -> Vec<String> {
    words(&format!(
        "train dreambooth --device cuda --threads 1 --quiet --model {} --instance-data-dir {} --instance-prompt sks --resolution 32 \
         --learning-rate 1e-3 --max-train-steps 3 --checkpointing-steps 1 --output-dir {} {more}",
        model("tiny").display(),
        photos(5, 0).display(),
        out.display()
    ))
}

pub fn language_model(job: &Job, more: &str, out: &Path) -> Vec<String> {
    let more = format!("--max-train-steps 3 --checkpointing-steps 1 --device cuda --mixed-precision auto {more}");
    job.train(out, &more.split_whitespace().collect::<Vec<_>>())
}

/// What a run learned, and each loss on the way.
pub fn numbers(out: &Path) -> (Vec<Value>, BTreeMap<String, Vec<u8>>) {
    let losses = lines(&out.join("metrics.jsonl")).iter().map(|line| json!([line["step"], line["loss"]])).collect();
    let names =
        ["unet/adapter_model.safetensors", "text_encoder/adapter_model.safetensors", "adapter_model.safetensors"];
    let read = |name: &str| Some((name.to_owned(), fs::read(out.join(name)).ok()?));
    (losses, names.into_iter().filter_map(read).collect())
}

/// One sentence that says what did not fit and what helps, and nothing that only a developer reads.
pub fn check_sentence(code: Option<i32>, error: &str, which: &str) -> String {
    let text = error.lines().filter(|line| !line.starts_with("warning: ")).collect::<Vec<_>>().join("\n");
    assert_eq!(code, Some(1), "{which}: {error}");
    assert_eq!(text.lines().count(), 1, "{which}: {error}");
    assert!(text.starts_with("error: out of memory on the GPU (Tried to allocate"), "{which}: {error}");
    assert!(["turn on", "lower "].iter().any(|cure| text.contains(cure)), "{which}: {error}");
    assert_eq!(text.matches("out of memory").count(), 1, "{which}: {error}");
    assert!(!["panicked", "frame #", ".cpp"].iter().any(|word| error.contains(word)), "{which}: {error}");
    text
}
