//! Losses and adapters of a training run equal those of PEFT's script's loop with the same draws.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

use crate::support::{assert_adapters, lorabooth_ok, model, photos, python, read_json};
use serde_json::{json, Value};
use std::path::Path;

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

/// Trains with lorabooth in `out`, and returns the lines of metrics.jsonl.
fn train(out: &Path, options: &Value, more: &[&str]) -> Vec<Value> {
    let mut args: Vec<String> = ["train", "dreambooth", "--mixed-precision", "no", "--threads", "1", "--device", "cpu"]
        .map(str::to_owned)
        .to_vec();
    args.extend(flags(options));
    args.extend(["--output-dir".to_owned(), out.to_str().unwrap().to_owned()]);
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    lorabooth_ok(&args);
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// 20 steps on both sides from one initial adapter; `change` are the options beside the usual ones.
fn check(variant: &str, change: Value) {
    let folder = tempfile::tempdir().unwrap();
    // Four levels need 128 pixels: at 64 the middle is one place, whose attention has no gradient but rounding noise.
    let resolution = if variant == "tiny" { 32 } else { 128 };
    let mut options = json!({
        "instance_data_dir": photos(5, 0), "instance_prompt": "a photo of sks dog", "resolution": resolution,
        "center_crop": true, "train_text_encoder": true, "learning_rate": 1e-4, "max_train_steps": 20,
    });
    options["pretrained_model_name_or_path"] = json!(model(variant));
    options.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    let start = folder.path().join("start");
    train(&start, &options, &["--max-train-steps", "0"]);

    let mut reference = options.clone();
    let names = reference.as_object_mut().unwrap();
    let model = names.remove("pretrained_model_name_or_path").unwrap();
    names.insert("model".into(), model);
    names.insert("init_adapter".into(), json!(start));
    names.remove("num_class_images");
    let theirs = folder.path().join("theirs");
    python("dreambooth_loop.py", &[theirs.to_str().unwrap(), &reference.to_string()]);
    let expected = read_json(theirs.join("losses.json"));

    let ours = folder.path().join("ours");
    let start_flag = start.to_str().unwrap();
    let steps = train(&ours, &options, &["--init-adapter", start_flag]);
    let expected_steps = expected["steps"].as_array().unwrap();
    assert_eq!(steps.len(), expected_steps.len());
    let close = |name: &str, actual: &Value, wanted: &Value, step: usize, bound: f64| {
        let (actual, wanted) = (actual[name].as_f64().unwrap(), wanted[name].as_f64().unwrap());
        let error = (actual - wanted).abs() / wanted.abs();
        assert!(error < bound, "{variant} step {step}: {name} {actual} is not {wanted} ({error:.1e})");
        error
    };
    let mut worst = 0f64;
    for (i, (actual, wanted)) in steps.iter().zip(expected_steps).enumerate() {
        worst = worst.max(close("loss", actual, wanted, i, 1e-4));
        close("instance_loss", actual, wanted, i, 1e-4);
        close("grad_norm", actual, wanted, i, 1e-3);
        assert_eq!(actual["epoch"], wanted["epoch"], "step {i}");
    }
    for part in ["unet", "text_encoder"] {
        assert_adapters(&format!("{variant} {change}, {part}"), &ours.join(part), &theirs.join(part), 1e-2);
    }
    println!("{variant} {change}: losses within {worst:.1e}");

    let mut again = options.clone();
    again["gradient_checkpointing"] = json!(true);
    let checkpointed = train(&folder.path().join("checkpointed"), &again, &["--init-adapter", start_flag]);
    for (i, (actual, wanted)) in checkpointed.iter().zip(&steps).enumerate() {
        close("loss", actual, wanted, i, 1e-5);
    }
}

#[test]
fn twenty_steps_equal_the_reference_loop() {
    check("tiny", json!({}));
}

#[test]
fn prior_preservation_equals_the_reference_loop() {
    check(
        "tiny",
        json!({
            "with_prior_preservation": true, "class_data_dir": photos(4, 9), "class_prompt": "a photo of dog",
            "prior_loss_weight": 0.7, "num_class_images": 4, "train_batch_size": 2,
        }),
    );
}

#[test]
fn v_prediction_equals_the_reference_loop() {
    check("tiny-v", json!({}));
}

#[test]
fn accumulation_min_snr_and_noise_offset_equal_the_reference_loop() {
    check("tiny", json!({ "gradient_accumulation_steps": 2, "snr_gamma": 5.0, "noise_offset": 0.1 }));
}

/// Five photos, four at a time: every other group is of one photo.
#[test]
fn a_short_group_averaged_over_what_is_there_equals_the_reference_loop() {
    check("tiny", json!({ "gradient_accumulation_steps": 4, "gradient_accumulation_average": "present" }));
}

#[test]
fn random_crops_equal_the_reference_loop() {
    check("tiny", json!({ "center_crop": false }));
}
