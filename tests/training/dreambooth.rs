//! Losses and adapters of a training run equal those of PEFT's script's loop with the same draws.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

use crate::support::dreambooth_loop::{close, train, train_both, Trained};
use crate::support::{assert_adapters, model, photos};
use serde_json::{json, Value};

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
    let Trained { start, folders: [ours, theirs], steps, expected } = train_both(folder.path(), &options);
    let mut worst = 0f64;
    for (i, (actual, wanted)) in steps.iter().zip(&expected).enumerate() {
        let close = |name: &str, bound: f64| close(variant, name, (actual, wanted), i, bound);
        worst = worst.max(close("loss", 1e-4));
        close("instance_loss", 1e-4);
        close("grad_norm", 1e-3);
        assert_eq!(actual["epoch"], wanted["epoch"], "step {i}");
    }
    for part in ["unet", "text_encoder"] {
        assert_adapters(&format!("{variant} {change}, {part}"), &ours.join(part), &theirs.join(part), 1e-2);
    }
    println!("{variant} {change}: losses within {worst:.1e}");

    let mut again = options.clone();
    again["gradient_checkpointing"] = json!(true);
    let checkpointed = train(&folder.path().join("checkpointed"), &again, &["--init-adapter", start.to_str().unwrap()]);
    for (i, (actual, wanted)) in checkpointed.iter().zip(&steps).enumerate() {
        close(variant, "loss", (actual, wanted), i, 1e-5);
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
