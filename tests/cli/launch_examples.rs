//! The scripts in `examples/` that run PEFT's launch examples do so as they stand, here on small models.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::{complete, lorabooth_ok, made, model, python, read, read_json};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use std::process::Command;
use tch::Tensor;
use tempfile::tempdir;

/// Runs `examples/SCRIPT`, which writes in `out`; what it printed.
fn run(script: &str, model: &Path, out: &Path, more: &[(&str, &str)]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(root.join("examples").join(script))
        .env("LORABOOTH", env!("CARGO_BIN_EXE_lorabooth"))
        .env("MODEL", model)
        .env("OUT", out)
        .env("DEVICE", "cpu")
        .env("OMP_NUM_THREADS", "1")
        .envs(more.iter().copied())
        .current_dir(out.parent().unwrap())
        .output()
        .unwrap();
    let [said, error] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{script} ended with {}:\n{said}{error}", output.status);
    said
}

/// A small model of `class` that knows the words of the example's records.
fn language_model(class: &str, config: Value, records: &str) -> PathBuf {
    let records = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data").join(records);
    made("launch_model.py", "model", &json!({ "class": class, "config": config, "records": records }))
}

/// What peft makes of `lora` on the same model.
fn trainable(model: &Path, class: &str, lora: Value) -> Value {
    let out = made("language_lora.py", "lora", &json!({ "model": model, "class": class, "lora": lora }));
    read_json(out.join("summary.json"))["trainable"].clone()
}

fn losses(run: &Path) -> Vec<f64> {
    let lines = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap()).collect()
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

#[test]
fn t0_learns_from_tweets_with_its_weights_in_host_memory() {
    let config = json!({ "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false, "decoder_start_token_id": 0 });
    let class = "T5ForConditionalGeneration";
    let model = language_model(class, config, "complaints.jsonl");
    let (folder, lora) = (tempdir().unwrap(), json!({ "r": 8, "lora_alpha": 32, "lora_dropout": 0.1 }));
    let out = folder.path().join("out");
    run("t0_3b_offload.sh", &model, &out, &[]);
    let losses = losses(&out);
    assert_eq!(losses.len(), 25, "5 epochs of 40 tweets, 8 at a time");
    assert!(mean(&losses[20..]) < 0.9 * mean(&losses[..5]), "{losses:?}");
    assert_eq!(read_json(out.join("run.json"))["trainable_parameters"], trainable(&model, class, lora.clone()));
    let config = read_json(out.join("adapter_config.json"));
    lora.as_object().unwrap().iter().for_each(|(name, value)| assert_eq!(&config[name], value, "{name}"));
}

#[test]
fn opt_learns_quotes_with_its_weights_in_8_bits() {
    let config = json!({ "hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 64, "max_position_embeddings": 64,
        "num_attention_heads": 4, "word_embed_proj_dim": 32 });
    let class = "OPTForCausalLM";
    let model = language_model(class, config, "quotes.jsonl");
    let lora = json!({ "r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"], "bias": "none" });
    let folder = tempdir().unwrap();
    let out = folder.path().join("out");
    run("opt_6_7b_int8.sh", &model, &out, &[("STEPS", "6")]);
    let losses = losses(&out);
    assert!(losses.len() == 6 && losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
    let learned = read(out.join("adapter_model.safetensors"));
    let moved =
        |(name, tensor): (&String, &Tensor)| name.contains("lora_B") && tensor.abs().max().double_value(&[]) > 0.0;
    assert_eq!(learned.iter().filter(|pair| moved(*pair)).count(), 4, "q_proj and v_proj of two layers");
    let options = &read_json(out.join("run.json"))["options"];
    for (name, value) in [
        ("load_in_8bit", json!(true)),
        ("gradient_checkpointing", json!(true)),
        ("train_batch_size", json!(4)),
        ("gradient_accumulation_steps", json!(4)),
        ("learning_rate", json!(2e-4)),
        ("lr_scheduler", json!("linear")),
        ("lr_warmup_steps", json!(100)),
    ] {
        assert_eq!(options[name], value, "{name}");
    }
    assert_eq!(read_json(out.join("run.json"))["trainable_parameters"], trainable(&model, class, lora.clone()));
    let config = read_json(out.join("adapter_config.json"));
    lora.as_object().unwrap().iter().for_each(|(name, value)| assert_eq!(&config[name], value, "{name}"));
}

#[test]
fn stable_diffusion_learns_six_photos_and_draws_what_it_learned() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out");
    run("dreambooth_11gb.sh", &model("tiny"), &out, &[("STEPS", "2"), ("CLASS_IMAGES", "2"), ("RESOLUTION", "32")]);
    assert_eq!(std::fs::read_dir(out.join("class")).unwrap().count(), 2);
    for (part, alpha) in [("unet", 27.0), ("text_encoder", 17.0)] {
        let config = read_json(out.join("adapter").join(part).join("adapter_config.json"));
        assert_eq!((&config["r"], config["lora_alpha"].as_f64().unwrap()), (&json!(16), alpha));
    }
    let picture = image::open(out.join("bird.png")).unwrap();
    assert_eq!((picture.width(), picture.height()), (32, 32));
}

#[test]
fn a_models_pickle_is_written_anew_as_safetensors() {
    let config = json!({ "hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 64, "num_attention_heads": 4 });
    let model = language_model("OPTForCausalLM", config, "quotes.jsonl");
    let folder = tempdir().unwrap();
    let [pickled, anew] = ["pickled", "anew"].map(|name| folder.path().join(name));
    python("pickled.py", &[pickled.to_str().unwrap(), &json!({ "model": model }).to_string()]);
    python("../../examples/as_safetensors.py", &[pickled.to_str().unwrap(), anew.to_str().unwrap()]);
    let [before, after] = [&model, &anew].map(|folder| {
        lorabooth_ok(&complete(folder.to_str().unwrap(), "Two things are", &["--max-new-tokens", "5", "--quiet"]))
    });
    let text = |said: &str| serde_json::from_str::<Value>(said.lines().last().unwrap()).unwrap()["text"].clone();
    assert_eq!(text(&before), text(&after));
    assert!(!text(&after).as_str().unwrap().is_empty());
}
