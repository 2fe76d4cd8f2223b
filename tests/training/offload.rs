//! `--offload cpu`: the numbers are those of weights that stay, and the weights are not in memory together.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

use crate::support::{self, lorabooth_ok, made, read_json};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

/// A language model's job: a folder of `language_job.py`, and its task.
fn job(class: &str, task: &'static str, dtype: &str, config: Value) -> (PathBuf, &'static str) {
    (made("language_job.py", "job", &json!({ "class": class, "config": config, "dtype": dtype })), task)
}

fn jobs() -> [(PathBuf, &'static str); 6] {
    let gpt2 = json!({ "n_positions": 32, "n_embd": 24, "n_layer": 3, "n_head": 3 });
    let opt = json!({ "hidden_size": 24, "num_hidden_layers": 3, "ffn_dim": 40, "max_position_embeddings": 32,
        "num_attention_heads": 3, "word_embed_proj_dim": 16 });
    let bloom = json!({ "hidden_size": 24, "n_layer": 3, "n_head": 6 });
    let llama = json!({ "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 2, "max_position_embeddings": 32 });
    let t5 = json!({ "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 3,
        "decoder_start_token_id": 0 });
    let bert = json!({ "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
        "max_position_embeddings": 32, "num_labels": 3 });
    [
        job("GPT2LMHeadModel", "causal-lm", "float32", gpt2),
        job("OPTForCausalLM", "causal-lm", "float16", opt),
        job("BloomForCausalLM", "causal-lm", "float32", bloom),
        job("LlamaForCausalLM", "causal-lm", "bfloat16", llama),
        job("T5ForConditionalGeneration", "seq2seq-lm", "float32", t5),
        job("BertForSequenceClassification", "seq-cls", "bfloat16", bert),
    ]
}

fn train_llm((folder, task): &(PathBuf, &str), out: &Path, more: &str) {
    let flags = "train llm --device cpu --threads 1 --quiet --mixed-precision no --label-column label --task";
    let mut args: Vec<String> = flags.split(' ').map(str::to_owned).collect();
    args.push((*task).to_owned());
    args.extend(["--model".into(), folder.join("model").display().to_string()]);
    args.extend(["--train-file".into(), folder.join("train.jsonl").display().to_string()]);
    args.extend(["--output-dir".into(), out.display().to_string()]);
    args.extend(more.split_whitespace().map(str::to_owned));
    lorabooth_ok(&args);
}

/// The loss of each step and the bytes of the files `adapters`.
fn learned(out: &Path, adapters: &[&str]) -> (Vec<f64>, Vec<Vec<u8>>) {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let loss = |line: &str| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap();
    (text.lines().map(loss).collect(), adapters.iter().map(|name| std::fs::read(out.join(name)).unwrap()).collect())
}

#[test]
fn language_models_learn_the_same_bits() {
    for job in jobs() {
        let folder = tempfile::tempdir().unwrap();
        let [stays, comes] = ["stays", "comes"].map(|name| folder.path().join(name));
        let tables =
            "--lora-targets wte,wpe,embed_tokens,embed_positions,word_embeddings,c_attn,q_proj,query_key_value,query,q";
        for more in ["", "--gradient-checkpointing", tables] {
            // Biases of frozen projections get gradients too.
            let flags = format!("--max-train-steps 4 --learning-rate 0.01 --lora-bias all --overwrite {more}");
            train_llm(&job, &stays, &flags);
            train_llm(&job, &comes, &format!("{flags} --offload cpu"));
            let of = |out: &Path| learned(out, &["adapter_model.safetensors"]);
            assert_eq!(of(&comes), of(&stays), "{} {more}", job.0.display());
        }
        if job.1 == "seq-cls" {
            continue;
        }
        let complete = |offload: &str| {
            let adapter = stays.display().to_string();
            let model = job.0.join("model").display().to_string();
            let mut args = vec!["complete", "--device", "cpu", "--json", "--model", &model, "--adapter", &adapter];
            args.extend(["--prompt", "red house", "--max-new-tokens", "8", "--offload", offload]);
            let said: Value = serde_json::from_str(lorabooth_ok(&args).lines().last().unwrap()).unwrap();
            said["text"].clone()
        };
        assert_eq!(complete("cpu"), complete("none"), "{}", job.0.display());
    }
}

#[test]
fn stable_diffusion_learns_the_same_bits_and_draws_the_same_image() {
    let folder = tempfile::tempdir().unwrap();
    let train = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        support::train_with_convolutions(&out, more);
        let adapters = ["unet/adapter_model.safetensors", "text_encoder/adapter_model.safetensors"];
        learned(&out, &adapters)
    };
    assert_eq!(train("comes", &["--offload", "cpu"]), train("stays", &[]));
    let again = "--gradient-checkpointing";
    assert_eq!(train("comes again", &["--offload", "cpu", again]), train("stays again", &[again]));

    let image = |offload: &str| {
        let path = folder.path().join(format!("{offload}.png"));
        support::draw_quickly(&path, &["--offload", offload]);
        std::fs::read(path).unwrap()
    };
    assert!(image("cpu") == image("none"));
}

#[test]
fn weights_are_not_in_memory_together() {
    let config = json!({ "n_positions": 32, "n_embd": 768, "n_layer": 10, "n_head": 12 });
    let job = job("GPT2LMHeadModel", "causal-lm", "bfloat16", config);
    let folder = tempfile::tempdir().unwrap();
    let peak = |offload: &str| {
        let out = folder.path().join(offload);
        train_llm(&job, &out, &format!("--max-train-steps 2 --train-batch-size 1 --offload {offload}"));
        read_json(out.join("run.json"))["peak_memory_bytes"]["host_above_start"].as_f64().unwrap()
    };
    let (stays, comes) = (peak("none"), peak("cpu"));
    // 12 · 768² numbers a block, converted to float32.
    let weights = 10.0 * 12.0 * 768.0 * 768.0 * 4.0;
    println!("weights {:.0} MB; at the peak {:.0} MB, streamed {:.0} MB", weights / 1e6, stays / 1e6, comes / 1e6);
    assert!(stays > weights, "{stays} bytes are less than the weights");
    assert!(comes < stays - 0.8 * weights, "{comes} bytes, {stays} where weights stay");
}
