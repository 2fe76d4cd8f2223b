//! Small jobs for `lorabooth train llm`: models of random weights with tokenizers, and records.

use super::made;
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

pub const LEARNING_RATE: &str = "0.002";

pub struct Job {
    pub name: &'static str,
    pub folder: PathBuf,
    pub class: &'static str,
    pub task: &'static str,
    pub label: bool,
}

pub fn job(name: &'static str, class: &'static str, task: &'static str, label: bool, config: Value) -> Job {
    let folder = made("language_job.py", "job", &json!({ "class": class, "config": config }));
    Job { name, folder, class, task, label }
}

pub fn gpt2(label: bool) -> Job {
    let config = json!({ "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 3,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0 });
    job("gpt2", "GPT2LMHeadModel", "causal-lm", label, config)
}

pub fn llama() -> Job {
    let config = json!({ "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "max_position_embeddings": 32 });
    job("llama", "LlamaForCausalLM", "causal-lm", true, config)
}

/// One so large that a text of it takes seconds.
pub fn slow_llama() -> Job {
    let config = json!({ "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 8, "max_position_embeddings": 1024 });
    job("slow llama", "LlamaForCausalLM", "causal-lm", true, config)
}

pub fn opt() -> Job {
    let config = json!({ "hidden_size": 24, "num_hidden_layers": 2, "ffn_dim": 40, "max_position_embeddings": 32,
        "num_attention_heads": 3, "dropout": 0.0, "attention_dropout": 0.0 });
    job("opt", "OPTForCausalLM", "causal-lm", true, config)
}

pub fn bloom() -> Job {
    job("bloom", "BloomForCausalLM", "causal-lm", false, json!({ "hidden_size": 24, "n_layer": 2, "n_head": 6 }))
}

pub fn t5() -> Job {
    let config = json!({ "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 3,
        "dropout_rate": 0.0, "decoder_start_token_id": 0 });
    job("t5", "T5ForConditionalGeneration", "seq2seq-lm", true, config)
}

/// Its later form.
pub fn t5_gated() -> Job {
    let config = json!({ "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 3,
        "dropout_rate": 0.0, "decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu" });
    job("gated t5", "T5ForConditionalGeneration", "seq2seq-lm", true, config)
}

pub fn bert() -> Job {
    let config = json!({ "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
        "max_position_embeddings": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 3 });
    job("bert", "BertForSequenceClassification", "seq-cls", true, config)
}

/// A decoder that sorts texts into classes.
pub fn gpt2_classifier() -> Job {
    let config = json!({ "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 3, "num_labels": 3,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0 });
    job("gpt2 as a classifier", "GPT2ForSequenceClassification", "seq-cls", true, config)
}

/// Another.
pub fn llama_classifier() -> Job {
    let config = json!({ "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "max_position_embeddings": 32, "num_labels": 3 });
    job("llama as a classifier", "LlamaForSequenceClassification", "seq-cls", true, config)
}

impl Job {
    /// The command line; what comes behind it wins.
    pub fn train(&self, out: &Path, more: &[&str]) -> Vec<String> {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let words = [
            "train llm --device cpu --threads 1 --quiet --mixed-precision no --no-shuffle --task",
            self.task,
            "--max-train-steps 10 --learning-rate",
            LEARNING_RATE,
        ];
        let mut args: Vec<String> = words.join(" ").split(' ').map(str::to_owned).collect();
        args.extend(["--model".to_owned(), path("model"), "--train-file".to_owned(), path("train.jsonl")]);
        args.extend(["--output-dir".to_owned(), out.display().to_string()]);
        if self.label {
            args.extend(["--label-column".to_owned(), "label".to_owned()]);
        }
        args.extend(more.iter().map(|&arg| arg.to_owned()));
        args
    }
}

pub fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub fn close(actual: f64, expected: f64, bound: f64, what: &str) {
    let error = (actual - expected).abs() / expected.abs().max(1e-3);
    assert!(error < bound, "{what}: {actual} is not {expected} ({error:.1e})");
}
