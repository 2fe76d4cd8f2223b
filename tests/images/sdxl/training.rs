//! Losses and adapters of a training run equal those of the reference loop with the same draws.

use crate::support::dreambooth_loop::{close, command, train, train_both, Trained};
use crate::support::{assert_adapters, lorabooth, model, photos, read, read_json};
use serde_json::{json, Value};

fn options(variant: &str, change: Value) -> Value {
    let mut options = json!({
        "pretrained_model_name_or_path": model(variant), "instance_data_dir": photos(5, 0),
        "instance_prompt": "a photo of sks dog", "resolution": 128, "center_crop": true, "learning_rate": 1e-4,
        "max_train_steps": 20,
    });
    options.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    options
}

fn parts(options: &Value) -> &'static [&'static str] {
    match options["train_text_encoder"] {
        Value::Bool(true) => &["unet", "text_encoder", "text_encoder_2"],
        _ => &["unet"],
    }
}

/// 20 steps on both sides from one initial adapter; `change` are the options beside the usual ones.
fn check(variant: &str, change: Value) {
    let folder = tempfile::tempdir().unwrap();
    let options = options(variant, change);
    let Trained { folders: [ours, theirs], steps, expected, .. } = train_both(folder.path(), &options);
    let mut worst = 0f64;
    for (i, (actual, wanted)) in steps.iter().zip(&expected).enumerate() {
        for (name, bound) in [("loss", 1e-4), ("instance_loss", 1e-4), ("grad_norm", 1e-3)] {
            let error = close(variant, name, (actual, wanted), i, bound);
            worst = if name == "loss" { worst.max(error) } else { worst };
        }
    }
    for part in parts(&options) {
        assert_adapters(&format!("{variant}, {part}"), &ours.join(part), &theirs.join(part), 1e-2);
    }
    println!("{variant}: losses within {worst:.1e}");
}

#[test]
fn twenty_steps_of_the_unet_equal_the_reference_loop() {
    check("tiny-xl", json!({}));
}

#[test]
fn twenty_steps_of_all_three_networks_equal_the_reference_loop() {
    check("tiny-xl", json!({ "train_text_encoder": true, "text_encoder_lr": 3e-4 }));
}

/// A learning rate of 0 of the UNet beside them leaves its adapter as it was.
#[test]
fn each_text_encoder_has_its_own_learning_rate() {
    let rates =
        json!({ "train_text_encoder": true, "learning_rate": 0.0, "text_encoder_lr": 3e-4, "text_encoder_2_lr": 1e-4 });
    check("tiny-xl", rates);
    let folder = tempfile::tempdir().unwrap();
    let args = |flag: &str| {
        let options = options("tiny", json!({ "resolution": 32, "train_text_encoder": true }));
        command(&folder.path().join("out"), &options, &[flag, "1e-5"])
    };
    let refused = lorabooth(&args("--text-encoder-2-lr"));
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("--text-encoder-2-lr is for Stable Diffusion XL"),
        "{refused:?}"
    );
}

#[test]
fn prior_preservation_at_batch_two_pairs_each_image_with_its_text() {
    check(
        "tiny-xl",
        json!({
            "with_prior_preservation": true, "class_data_dir": photos(4, 9), "class_prompt": "a photo of dog",
            "prior_loss_weight": 0.7, "num_class_images": 4, "train_batch_size": 2,
        }),
    );
}

#[test]
fn v_prediction_to_zero_terminal_snr_equals_the_reference_loop() {
    check("tiny-xl-v", json!({}));
}

#[test]
fn crops_that_are_drawn_at_each_step_are_told_to_the_unet() {
    check("tiny-xl", json!({ "center_crop": false, "cache_latents": "false" }));
}

/// Each photo is cropped once, and everything comes again: the bits of a run that was stopped and went on.
#[test]
fn a_resumed_run_ends_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(
        "tiny-xl",
        json!({ "train_text_encoder": true, "center_crop": false, "max_train_steps": 6, "learning_rate": 1e-3 }),
    );
    let [whole, parted] = ["whole", "parted"].map(|name| folder.path().join(name));
    train(&whole, &options, &[]);
    train(&parted, &options, &["--max-train-steps", "4", "--checkpointing-steps", "2"]);
    train(&parted, &options, &["--resume-from-checkpoint", "latest", "--checkpointing-steps", "2"]);
    for part in parts(&options) {
        let [a, b] =
            [&whole, &parted].map(|run| std::fs::read(run.join(part).join("adapter_model.safetensors")).unwrap());
        assert!(a == b, "the {part}'s adapter has other bits");
    }
    let checkpointed = folder.path().join("checkpointed");
    let steps = train(&checkpointed, &options, &["--gradient-checkpointing"]);
    let text = std::fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
    for (line, actual) in text.lines().zip(&steps) {
        let wanted: Value = serde_json::from_str(line).unwrap();
        let (actual, wanted) = (actual["loss"].as_f64().unwrap(), wanted["loss"].as_f64().unwrap());
        assert!((actual / wanted - 1.0).abs() < 1e-5, "{actual} is not {wanted}");
    }
}

/// What frozen networks make is the same from the disk, is read by other runs, and made again where it is broken or of something else.
#[test]
fn a_cache_on_disk_changes_no_bit_and_is_shared() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let options =
        options("tiny-xl", json!({ "max_train_steps": 2, "validation_prompt": "a cat", "num_validation_images": 1 }));
    let run = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        train(&out, &options, more);
        std::fs::read(out.join("unet/adapter_model.safetensors")).unwrap()
    };
    let kept = || {
        let files = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path());
        let mut kept: Vec<_> = files.map(|path| (path.clone(), path.metadata().unwrap().modified().unwrap())).collect();
        kept.sort();
        kept
    };
    let flag = ["--cache-dir", cache.to_str().unwrap()];
    let plain = run("plain", &[]);
    assert!(run("first", &flag) == plain, "writing the cache changes the adapter");
    let first = kept();
    // Five photos, one prompt, one sample's prompt with what is not on it.
    assert_eq!(first.len(), 7);
    assert!(run("second", &flag) == plain, "reading the cache changes the adapter");
    assert_eq!(kept(), first, "the second run made something anew");
    first.iter().for_each(|(path, _)| std::fs::write(path, b"broken").unwrap());
    assert!(run("third", &flag) == plain, "a broken cache changes the adapter");
    run("other", &[&flag[..], &["--instance-prompt", "another"]].concat());
    assert_eq!(kept().len(), 8);
}

/// The options of one encoder are the other's where nothing else is said.
#[test]
fn the_second_text_encoder_has_options_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let options = options("tiny-xl", json!({ "train_text_encoder": true, "max_train_steps": 0 }));
    let more = ["--lora-text-encoder-r", "3", "--lora-text-encoder-2-alpha", "9", "--validation-prompt", "a dog"];
    train(folder.path(), &options, &[&more[..], &["--overwrite"]].concat());
    let config = |part: &str| read_json(folder.path().join(part).join("adapter_config.json"));
    let (unet, first, second) = (config("unet"), config("text_encoder"), config("text_encoder_2"));
    assert_eq!((&unet["r"], &first["r"], &second["r"]), (&json!(8), &json!(3), &json!(3)));
    assert_eq!((&first["lora_alpha"], &second["lora_alpha"]), (&json!(32), &json!(9)));
    assert_eq!(unet["target_modules"], json!(["to_k", "to_out.0", "to_q", "to_v"]));
    assert_eq!(second["target_modules"], json!(["k_proj", "out_proj", "q_proj", "v_proj"]));
    let class = |config: &Value| config["auto_mapping"]["base_model_class"].clone();
    assert_eq!((class(&first), class(&second)), (json!("CLIPTextModel"), json!("CLIPTextModelWithProjection")));
}

/// Class images and sample images are drawn by the model, the adapters of frozen encoders are carried along.
#[test]
fn class_images_and_samples_are_drawn_and_frozen_encoders_adapters_are_carried() {
    let folder = tempfile::tempdir().unwrap();
    let both = options("tiny-xl", json!({ "train_text_encoder": true, "max_train_steps": 1 }));
    let start = folder.path().join("start");
    train(&start, &both, &[]);
    let class = folder.path().join("class");
    let unet = options(
        "tiny-xl",
        json!({ "max_train_steps": 1, "with_prior_preservation": true, "class_data_dir": class, "class_prompt": "a dog",
            "num_class_images": 1, "validation_prompt": "a cat", "num_validation_images": 1, "init_adapter": start }),
    );
    let out = folder.path().join("out");
    train(&out, &unet, &[]);
    assert_eq!(std::fs::read_dir(&class).unwrap().count(), 1);
    assert!(out.join("samples/step-000001-0.png").is_file());
    for part in ["text_encoder", "text_encoder_2"] {
        let [before, after] = [&start, &out].map(|run| read(run.join(part).join("adapter_model.safetensors")));
        assert!(before.iter().all(|(name, tensor)| tensor.equal(&after[name])), "{part}");
    }
    let refused = lorabooth(&command(&out, &unet, &["--lora-r", "4", "--overwrite"]));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--lora-r is 4"), "{refused:?}");
}
