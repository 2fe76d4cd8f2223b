//! `lorabooth train dreambooth` beside the reference's loop: the same options, one initial adapter, the same draws.

use super::{lorabooth_ok, python, read_json};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

/// Flags that name the same things for both sides.
fn flags(options: &Value) -> Vec<String> {
    let mut flags = Vec::new();
    for (name, value) in options.as_object().unwrap() {
        let flag = format!("--{name}");
        match value {
            Value::Bool(true) => flags.push(flag),
            Value::Bool(false) => {}
            Value::String(text) => flags.extend([flag, text.clone()]),
            other => flags.extend([flag, other.to_string()]),
        }
    }
    flags
}

/// The command that trains with `options` in `out`.
pub fn command(out: &Path, options: &Value, more: &[&str]) -> Vec<String> {
    let mut args: Vec<String> = ["train", "dreambooth", "--mixed-precision", "no", "--threads", "1", "--device", "cpu"]
        .map(str::to_owned)
        .to_vec();
    args.extend(flags(options));
    args.extend(["--output-dir".to_owned(), out.to_str().unwrap().to_owned()]);
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    args
}

/// Trains with lorabooth in `out`, and returns the lines of metrics.jsonl.
pub fn train(out: &Path, options: &Value, more: &[&str]) -> Vec<Value> {
    lorabooth_ok(&command(out, options, more));
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A training on both sides.
pub struct Trained {
    /// The folder of the initial adapter.
    pub start: PathBuf,
    /// Our folder and the reference's.
    pub folders: [PathBuf; 2],
    /// Our steps, as many as the reference's.
    pub steps: Vec<Value>,
    /// The reference's.
    pub expected: Vec<Value>,
}

/// Trains with `options` on both sides from one initial adapter, below `folder`.
pub fn train_both(folder: &Path, options: &Value) -> Trained {
    let [start, ours, theirs] = ["start", "ours", "theirs"].map(|name| folder.join(name));
    train(&start, options, &["--max-train-steps", "0"]);
    let mut reference = options.clone();
    let names = reference.as_object_mut().unwrap();
    let model = names.remove("pretrained_model_name_or_path").unwrap();
    names.insert("model".into(), model);
    names.insert("init_adapter".into(), json!(start));
    names.remove("num_class_images");
    names.remove("cache_latents");
    python("dreambooth_loop.py", &[theirs.to_str().unwrap(), &reference.to_string()]);
    let expected = read_json(theirs.join("losses.json"))["steps"].as_array().unwrap().clone();
    let steps = train(&ours, options, &["--init-adapter", start.to_str().unwrap()]);
    assert_eq!(steps.len(), expected.len());
    Trained { start, folders: [ours, theirs], steps, expected }
}

/// How far the number `name` of a step is from the `wanted` one, which is less than `bound`.
pub fn close(variant: &str, name: &str, (actual, wanted): (&Value, &Value), step: usize, bound: f64) -> f64 {
    let (actual, wanted) = (actual[name].as_f64().unwrap(), wanted[name].as_f64().unwrap());
    let error = (actual - wanted).abs() / wanted.abs();
    assert!(error < bound, "{variant} step {step}: {name} {actual} is not {wanted} ({error:.1e})");
    error
}
