//! The harness and the Python side of parity, checked on themselves.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::{made, model, photos, psnr, python_alone, read, read_json, relative_error, relative_norm_error};
use serde_json::json;

const PROMPT: &str = "a photo of sks dog";

#[test]
fn a_model_has_the_same_outputs_in_every_spelling_of_its_files() {
    let forward = |options| {
        let folder = made("models.py", "model", &options);
        read(made("forward.py", "forward.safetensors", &json!({ "model": folder })))
    };
    let expected = forward(json!({ "variant": "tiny" }));
    for options in [
        json!({ "variant": "tiny", "spelling": "hub" }),
        json!({ "variant": "tiny", "max_shard_size": "500KB", "tokenizer": "today" }),
    ] {
        for (name, tensor) in forward(options.clone()) {
            assert_eq!(relative_error(&tensor, &expected[&name]), 0.0, "{name} with {options}");
        }
    }
    assert!(expected.contains_key("unet.output") && expected.contains_key("vae.logvar"));
}

#[test]
fn clips_vocabulary_gives_the_known_ids() {
    let forward =
        read(made("forward.py", "f.safetensors", &json!({ "model": model("tiny"), "parts": ["text_encoder"] })));
    let ids: Vec<i64> = Vec::try_from(forward["text_encoder.input_ids"].get(0)).unwrap();
    assert_eq!(ids[..7], [49406, 320, 1125, 539, 48136, 1929, 267]);
}

#[test]
fn diffusers_makes_the_same_image_from_a_single_file_as_from_its_folder() {
    for variant in ["tiny4", "tiny-v"] {
        let folder = model(variant);
        let file = made("single_file.py", "model.safetensors", &json!({ "model": folder }));
        let images = made(
            "pipeline_images.py",
            "images",
            &json!([
                { "name": "folder", "model": folder, "prompt": PROMPT, "steps": 4 },
                { "name": "file", "model": file, "config": folder, "prompt": PROMPT, "steps": 4 },
                { "name": "negative", "model": folder, "prompt": PROMPT, "negative_prompt": "ugly", "steps": 4 },
            ]),
        );
        assert!(psnr(images.join("file-0.png"), images.join("folder-0.png")) > 60.0);
        assert!(psnr(images.join("negative-0.png"), images.join("folder-0.png")) < 40.0, "the prompts should show");
    }
}

#[test]
fn an_adapter_gives_the_same_image_in_every_file_format() {
    let folder = model("tiny4");
    let adapter = made(
        "adapters.py",
        "adapter",
        &json!({
            "model": folder,
            "unet": { "r": 4, "lora_alpha": 6, "target_modules": ["to_q", "to_v", "conv1"] },
            "text_encoder": { "r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj", "out_proj"] },
            "formats": ["peft", "diffusers", "diffusers-old", "kohya"],
        }),
    );
    let job =
        |name: &str, loras| json!({ "name": name, "model": folder, "prompt": PROMPT, "steps": 4, "loras": loras });
    let file = |path: &str| json!([{ "file": adapter.join(path), "scale": 0.5 }]);
    let images = made(
        "pipeline_images.py",
        "images",
        &json!([
            job("none", json!([])),
            job("peft", json!([{ "peft": adapter.join("peft"), "scale": 0.5 }])),
            job("diffusers", file("diffusers/pytorch_lora_weights.safetensors")),
            job("diffusers-old", file("diffusers-old/pytorch_lora_weights.safetensors")),
            job("kohya", file("kohya/lora.safetensors")),
        ]),
    );
    let peft = images.join("peft-0.png");
    for format in ["diffusers", "diffusers-old", "kohya"] {
        assert!(psnr(images.join(format!("{format}-0.png")), &peft) > 60.0, "{format}");
    }
    assert!(psnr(images.join("none-0.png"), &peft) < 30.0, "the adapter should show");

    let outputs = read(adapter.join("outputs.safetensors"));
    for part in ["unet", "text_encoder"] {
        assert!(relative_error(&outputs[&format!("{part}.merged")], &outputs[&format!("{part}.adapter")]) < 1e-5);
        assert!(relative_error(&outputs[&format!("{part}.base")], &outputs[&format!("{part}.adapter")]) > 0.05);
    }
    let report = read_json(adapter.join("report.json"));
    assert!(report["unet"]["trainable"].as_str().unwrap().starts_with("trainable params: "));
}

#[test]
fn the_reference_loop_repeats_itself_and_every_option_shows() {
    let options = |extra: serde_json::Value| {
        let mut options = json!({
            "model": model("tiny-v"), "instance_data_dir": photos(3, 0), "instance_prompt": PROMPT, "max_train_steps": 5,
            "train_text_encoder": true, "learning_rate": 1e-3, "resolution": 128,
            "with_prior_preservation": true, "class_data_dir": photos(2, 1), "class_prompt": "a photo of dog",
        });
        options.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        options
    };
    let losses = |folder: &std::path::Path| -> Vec<f64> {
        let report = read_json(folder.join("losses.json"));
        report["steps"].as_array().unwrap().iter().map(|step| step["loss"].as_f64().unwrap()).collect()
    };
    let first = made("dreambooth_loop.py", "first", &options(json!({})));
    let again = made("dreambooth_loop.py", "again", &options(json!({})));
    assert_eq!(losses(&first), losses(&again));
    for part in ["unet", "text_encoder"] {
        let [ours, theirs] = [&first, &again].map(|run| read(run.join(part).join("adapter_model.safetensors")));
        assert!(ours.iter().all(|(name, tensor)| relative_norm_error(tensor, &theirs[name]) == 0.0));
    }
    for extra in [
        json!({ "snr_gamma": 5.0 }),
        json!({ "noise_offset": 0.1 }),
        json!({ "prior_loss_weight": 0.5 }),
        json!({ "init_adapter": first }),
    ] {
        let other = made("dreambooth_loop.py", "other", &options(extra.clone()));
        assert!((losses(&other)[0] / losses(&first)[0] - 1.0).abs() > 1e-3, "{extra}");
    }
    let accumulated = made("dreambooth_loop.py", "accumulated", &options(json!({ "gradient_accumulation_steps": 2 })));
    let report = read_json(accumulated.join("losses.json"));
    let micro_steps: Vec<usize> =
        report["steps"].as_array().unwrap().iter().map(|step| step["micro_losses"].as_array().unwrap().len()).collect();
    assert_eq!(micro_steps, [2, 1, 2, 1, 2], "an epoch of three batches ends its accumulation");
}

#[test]
fn a_script_in_a_process_of_its_own_measures_its_start_and_its_memory() {
    let folder = tempfile::tempdir().unwrap();
    let options = json!({
        "model": model("tiny"), "instance_data_dir": photos(3, 0), "instance_prompt": PROMPT, "max_train_steps": 2,
    });
    python_alone("dreambooth_loop.py", &[folder.path().to_str().unwrap(), &options.to_string()]);
    let report = read_json(folder.path().join("losses.json"));
    assert!(report["first_step_seconds"].as_f64().unwrap() > 0.5);
    assert!(report["peak_rss_mib"].as_f64().unwrap() > 200.0);
    assert_eq!(report["seconds"].as_array().unwrap().len(), 2);
}

#[test]
fn a_failing_script_says_what_failed() {
    let failure =
        std::panic::catch_unwind(|| crate::support::python("models.py", &["/nonexistent", "{\"variant\": \"huge\"}"]));
    let message = failure.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("AssertionError"), "{message}");
}
