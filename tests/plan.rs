//! `lorabooth plan` against what the same flags take when they train.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

mod support;

use serde_json::Value;
use std::path::Path;
use support::{lorabooth_ok, model, photos, read_json};

/// Planned and measured bytes at the peak of a run with `flags`, above what the process starts with.
fn planned_and_measured(out: &Path, flags: &str) -> (f64, f64) {
    let (model, photos) = (model("medium"), photos(5, 0));
    let common = ["--device", "cpu", "--threads", "1", "--model", model.to_str().unwrap(), "--instance-data-dir"];
    let mut flags: Vec<&str> = flags.split(' ').collect();
    flags.splice(0..0, common.into_iter().chain([photos.to_str().unwrap()]));
    let said = lorabooth_ok(&[&["plan", "--json"], flags.as_slice()].concat());
    let plan: Value = serde_json::from_str(said.trim()).unwrap();
    let train = ["train", "dreambooth", "--quiet", "--instance-prompt", "a photo of sks dog", "--max-train-steps", "3"];
    lorabooth_ok(&[&train[..], &flags, &["--output-dir", out.to_str().unwrap()]].concat());
    let run = read_json(out.join("run.json"));
    (plan["peak_bytes"].as_f64().unwrap(), run["peak_memory_bytes"]["host_above_start"].as_f64().unwrap())
}

#[test]
fn the_plan_is_within_a_tenth_of_what_a_run_takes() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        "--resolution 256 --mixed-precision no --train-text-encoder",
        "--resolution 256 --mixed-precision bf16 --train-text-encoder --gradient-checkpointing --center-crop",
        "--resolution 384 --mixed-precision bf16 --train-batch-size 2 --center-crop",
    ];
    let measured: Vec<(f64, f64)> = cases
        .iter()
        .enumerate()
        .map(|(i, flags)| planned_and_measured(&folder.path().join(i.to_string()), flags))
        .collect();
    for (flags, (planned, measured)) in cases.iter().zip(&measured) {
        println!("{:6.0} MiB planned, {:6.0} measured: {flags}", planned / 1048576.0, measured / 1048576.0);
    }
    for (flags, (planned, measured)) in cases.iter().zip(&measured) {
        let ratio = planned / measured;
        assert!((0.9..1.1).contains(&ratio), "{flags}: planned {ratio:.3} of what was measured");
    }
}
