//! `examples/pretrain seq2seq`: a T5 from nothing, which transformers reads whole and which has the same loss there.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::jobs::{lines, t5_gated, Job};
use crate::support::{python, read, read_json};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Trains the T5 that `start` describes from nothing for `steps` of 8 of `job`'s pairs; what it said.
fn pretrain(start: &Path, job: &Job, out: &Path, steps: &str) -> String {
    let built = Path::new(env!("CARGO_BIN_EXE_lorabooth")).with_file_name("examples").join("pretrain");
    assert!(built.exists(), "{} is built by `cargo test` without --test, or by --example pretrain", built.display());
    let pairs = job.folder.join("train.jsonl");
    let output = Command::new(built)
        .args(["--threads", "1", "seq2seq", "--batch-size", "8", "--learning-rate", "1e-2", "--warmup", "5"])
        .args(["--checkpoint-every", "20", "--steps", steps, "--average-decay", "0.9"])
        .args(["--model".as_ref(), start, "--corpus".as_ref(), &pairs])
        // What it has learned shows on the pairs that it learned from.
        .args(["--validation-file".as_ref(), pairs.as_path(), "--output".as_ref(), out])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// The loss that was told after each 20 steps.
fn losses(said: &str) -> Vec<f64> {
    let told = said.lines().filter(|line| line.ends_with("other pairs"));
    told.map(|line| line.split(' ').nth(3).unwrap().parse().unwrap()).collect()
}

#[test]
fn a_t5_from_nothing_is_read_whole_by_transformers_with_the_same_loss() {
    let (job, folder) = (t5_gated(), tempfile::tempdir().unwrap());
    let out = folder.path().join("out");
    let told = losses(&pretrain(&job.folder.join("model"), &job, &out, "60"));
    assert!(told.len() == 3 && told[2] < 0.5 * told[0], "{told:?}");
    let answer = folder.path().join("loss.json");
    let options = json!({ "model": out.join("model"), "pairs": job.folder.join("train.jsonl") });
    python("seq2seq_loss.py", &[answer.to_str().unwrap(), &options.to_string()]);
    let theirs = read_json(answer);
    assert_eq!(theirs["warnings"], json!([]));
    let difference = told[2] - theirs["loss"].as_f64().unwrap();
    assert!(difference.abs() < 1e-4, "{} in transformers, told in four decimals: {difference:e}", told[2]);
}

#[test]
fn tables_are_one_but_for_an_output_of_its_own_where_the_configuration_says_so() {
    let (job, folder) = (t5_gated(), tempfile::tempdir().unwrap());
    for tied in [true, false] {
        let [start, out] = ["start", "out"].map(|name| folder.path().join(format!("{name}-{tied}")));
        fs::create_dir(&start).unwrap();
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(job.folder.join("model").join(name), start.join(name)).unwrap();
        }
        let mut config = read_json(job.folder.join("model/config.json"));
        config["tie_word_embeddings"] = tied.into();
        fs::write(start.join("config.json"), config.to_string()).unwrap();
        let told = losses(&pretrain(&start, &job, &out, "40"));
        assert!(told.len() == 2 && told[1] < 0.9 * told[0], "{told:?}");
        let keys: Vec<String> = read(out.join("model/model.safetensors")).into_keys().collect();
        let tables: Vec<&str> = keys.iter().map(String::as_str).filter(|key| !key.contains(".block.")).collect();
        let norms = ["decoder.final_layer_norm.weight", "encoder.final_layer_norm.weight"];
        let head = (!tied).then_some("lm_head.weight");
        assert_eq!(tables, norms.into_iter().chain(head).chain(["shared.weight"]).collect::<Vec<_>>());
    }
}

#[test]
fn a_pretraining_that_was_stopped_goes_on_to_the_same_bits() {
    let (job, folder) = (t5_gated(), tempfile::tempdir().unwrap());
    let start = job.folder.join("model");
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    pretrain(&start, &job, &whole, "40");
    // The first half of the same run: what came after its checkpoint is taken away.
    pretrain(&start, &job, &parts, "40");
    fs::remove_dir_all(parts.join("checkpoint-40")).unwrap();
    fs::remove_file(parts.join("model/model.safetensors")).unwrap();
    assert!(pretrain(&start, &job, &parts, "40").contains("goes on from"));
    let file = |out: &Path| fs::read(out.join("model/model.safetensors")).unwrap();
    assert!(file(&whole) == file(&parts));
    assert_eq!(lines(&whole.join("metrics.jsonl")).len(), lines(&parts.join("metrics.jsonl")).len());
}
