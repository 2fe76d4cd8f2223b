//! What the header of a kohya file says of the run that made its adapter, from the run's `run.json`: web UIs show the model, the
//! resolution, the date and the words of the captions, of which they make prompts.
//! Reference: sd-scripts `train_network.py` and `library/sai_model_spec.py`; AUTOMATIC1111 `extensions-builtin/Lora/ui_edit_user_metadata.py`.

use super::training::utc_time::seconds_since_1970;
use crate::regular_file::{self, FileKind};
use crate::schedulers::PredictionType;
use serde::Deserialize;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// The metadata of the adapter at `adapter`, which is written to the file `out`; only its name where no run stands beside it.
pub fn of_run_beside(adapter: &Path, out: &Path) -> BTreeMap<String, String> {
    let name = out.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let mut metadata: BTreeMap<String, String> =
        ["ss_output_name", "modelspec.title"].map(|field| (field.to_owned(), name.clone())).into();
    // A run's folder, a checkpoint in it, or the file in either.
    let folders = adapter.ancestors().take(3).filter(|folder| folder.is_dir());
    let run = folders.map(|folder| folder.join("run.json")).find(|path| path.is_file());
    let run = run.and_then(|path| regular_file::read(&path, FileKind::RUN).ok());
    if let Some(run) = run.and_then(|text| serde_json::from_slice::<Value>(&text).ok()) {
        metadata.extend(of_run(&run));
    }
    metadata
}

/// What `run.json` tells, by the names of sd-scripts and of Stability's model specification.
fn of_run(run: &Value) -> BTreeMap<String, String> {
    let options = &run["options"];
    let text = |value: &Value| match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let option = |name: &str| text(&options[name]);
    let count =
        |kind: &str| run["data"].as_array().map_or(0, |files| files.iter().filter(|file| file["kind"] == kind).count());
    let own_rate = |name: &str, other: &str| match (&options["train_text_encoder"], &options[name]) {
        (Value::Bool(true), Value::Null) => option(other),
        (Value::Bool(true), rate) => text(rate),
        _ => "None".to_owned(),
    };
    let optimizer = match options["use_8bit_adam"] {
        Value::Bool(true) => "bitsandbytes.optim.adamw.AdamW8bit",
        _ => "torch.optim.adamw.AdamW",
    };
    let model = option("model");
    let model = model.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let mut found: Vec<(&str, String)> = vec![
        ("ss_sd_model_name", model.to_owned()),
        ("ss_seed", text(&run["seed"])),
        ("ss_steps", text(&run["steps"])),
        ("ss_max_train_steps", text(&run["total_steps"])),
        ("ss_num_train_images", count("instance").to_string()),
        ("ss_num_reg_images", count("class").to_string()),
        ("ss_unet_lr", option("learning_rate")),
        ("ss_text_encoder_lr", own_rate("text_encoder_lr", "learning_rate")),
        ("ss_optimizer", optimizer.to_owned()),
        ("ss_clip_skip", "None".to_owned()),
    ];
    for (name, of) in [
        ("ss_learning_rate", "learning_rate"),
        ("ss_lr_scheduler", "lr_scheduler"),
        ("ss_lr_warmup_steps", "lr_warmup_steps"),
        ("ss_total_batch_size", "train_batch_size"),
        ("ss_gradient_accumulation_steps", "gradient_accumulation_steps"),
        ("ss_gradient_checkpointing", "gradient_checkpointing"),
        ("ss_max_grad_norm", "max_grad_norm"),
        ("ss_min_snr_gamma", "snr_gamma"),
        ("ss_noise_offset", "noise_offset"),
        ("ss_prior_loss_weight", "prior_loss_weight"),
        ("ss_mixed_precision", "mixed_precision"),
    ] {
        found.push((name, option(of)));
    }
    if let Some(side) = options["resolution"].as_u64() {
        found.push(("ss_resolution", format!("({side}, {side})")));
        found.push(("modelspec.resolution", format!("{side}x{side}")));
        let bucket = json!({ "buckets": { "0": { "resolution": [side, side], "count": count("instance") } } });
        found.push(("ss_bucket_info", bucket.to_string()));
    }
    if let Some(date) = run["date"].as_str() {
        found.push(("modelspec.date", date.to_owned()));
        found.extend(seconds_since_1970(date).map(|seconds| ("ss_training_started_at", format!("{seconds}.0"))));
    }
    if let Ok(prediction) = PredictionType::deserialize(&run["prediction_type"]) {
        found.push(("modelspec.prediction_type", prediction.modelspec_name().to_owned()));
    }
    found.extend(data_folders(run));
    found.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The photos' folders and how often each word of their captions stands in them: sd-scripts counts what stands between commas, in
/// small letters.
fn data_folders(run: &Value) -> Vec<(&'static str, String)> {
    let mut words: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    let mut images: BTreeMap<String, u64> = BTreeMap::new();
    for file in run["data"].as_array().into_iter().flatten() {
        let (Some(path), Some(caption)) = (file["file"].as_str(), file["caption"].as_str()) else { continue };
        let folder =
            Path::new(path).parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        *images.entry(folder.clone()).or_default() += 1;
        let words = words.entry(folder).or_default();
        for word in caption.split(',').map(|word| word.trim().to_lowercase()).filter(|word| !word.is_empty()) {
            *words.entry(word).or_default() += 1;
        }
    }
    if images.is_empty() {
        return Vec::new();
    }
    let folders: BTreeMap<_, _> =
        images.into_iter().map(|(folder, count)| (folder, json!({ "n_repeats": 1, "img_count": count }))).collect();
    vec![("ss_tag_frequency", json!(words).to_string()), ("ss_dataset_dirs", json!(folders).to_string())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_told_by_the_names_that_web_uis_read() {
        let run = json!({
            "date": "2026-11-26T01:02:03Z", "seed": 7, "steps": 40, "total_steps": 50, "prediction_type": "v_prediction",
            "options": { "model": "hub/noob-xl/", "resolution": 1024, "learning_rate": 0.0001, "train_text_encoder": true,
                "text_encoder_lr": null, "use_8bit_adam": true, "snr_gamma": null, "gradient_checkpointing": true },
            "data": [
                { "file": "/x/dog/1.png", "kind": "instance", "caption": "sks dog, On Grass" },
                { "file": "/x/dog/2.png", "kind": "instance", "caption": "sks dog" },
                { "file": "/x/dogs/1.png", "kind": "class", "caption": "dog" },
            ],
        });
        let metadata = of_run(&run);
        for (name, value) in [
            ("ss_sd_model_name", "noob-xl"),
            ("ss_training_started_at", "1795654923.0"),
            ("ss_resolution", "(1024, 1024)"),
            ("ss_text_encoder_lr", "0.0001"),
            ("ss_min_snr_gamma", "None"),
            ("ss_gradient_checkpointing", "True"),
            ("ss_optimizer", "bitsandbytes.optim.adamw.AdamW8bit"),
            ("ss_num_train_images", "2"),
            ("ss_num_reg_images", "1"),
            ("ss_tag_frequency", r#"{"dog":{"on grass":1,"sks dog":2},"dogs":{"dog":1}}"#),
            ("modelspec.date", "2026-11-26T01:02:03Z"),
            ("modelspec.prediction_type", "v"),
        ] {
            assert_eq!(metadata[name], value, "{name}");
        }
    }
}
