//! `lorabooth adapter merge` on language models: a folder in which transformers, and we, compute what peft computes with the
//! adapter beside the model.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

use crate::support::jobs::{bert as bert_job, gpt2 as gpt2_job, t5 as t5_job};
use crate::support::language::{assert_close, bloom, gpt2, llama, load, opt, saved, t5, with};
use crate::support::language::{every_architecture, Given, Model, Tensors, CLOSE, FLOAT32};
use crate::support::{self, complete, jobs, lorabooth, lorabooth_ok, made, python, read, read_json, relative_error};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};
use tempfile::TempDir;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn merge_words<'a>(model: &'a Path, lora: &'a str, out: &'a Path) -> [&'a str; 8] {
    ["adapter", "merge", "--model", text(model), "--lora", lora, "--output-dir", text(out)]
}

/// What transformers computes with the model in `folder`, given what [`with_adapter`] gave peft.
fn in_transformers(class: &str, folder: &Path, scratch: &TempDir) -> Tensors {
    let out = scratch.path().join("computed");
    python("language_lora.py", &[text(&out), &json!({ "model": folder, "class": class, "adapter": "" }).to_string()]);
    read(out.join("outputs.safetensors"))
}

/// The model's folder, and what peft made of it: adapter and outputs.
fn with_adapter(model: &Model, lora: &Value, files: Value) -> (PathBuf, PathBuf) {
    let folder = saved(model, files);
    let made = made("language_lora.py", "lora", &json!({ "model": folder, "class": model.0, "lora": lora }));
    (folder, made)
}

/// Merges, and compares with peft in transformers and here.
fn check(name: &str, model: &Model, lora: Value, files: Value) -> (TempDir, PathBuf) {
    let (folder, theirs) = with_adapter(model, &lora, files);
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("merged");
    lorabooth_ok(&merge_words(&folder, text(&theirs.join("adapter")), &out));
    let expected = read(theirs.join("outputs.safetensors"));
    let merged = in_transformers(model.0, &out, &scratch);
    assert_eq!(merged["input_ids"], expected["input_ids"], "{name}");
    let loaded = load(&out, FLOAT32);
    let given = Given::of(&expected, "");
    let at = |logits: &Tensor| given.seen(&loaded.model, logits);
    let wanted = at(&expected["logits"]);
    assert_close(&format!("{name} in transformers"), &at(&merged["logits"]), &wanted, CLOSE);
    assert_close(&format!("{name} here"), &at(&given.logits(&loaded.model, false)), &wanted, CLOSE);
    let before = load(&folder, FLOAT32);
    assert!(relative_error(&at(&given.logits(&before.model, false)), &wanted) > 1e-3, "{name}: nothing is changed");
    (scratch, out)
}

#[test]
fn every_architecture_computes_the_same_with_the_adapter_in_its_weights() {
    let lora = json!({ "r": 3, "lora_alpha": 5 });
    for (name, model) in every_architecture() {
        check(name, &model, lora.clone(), json!({}));
    }
}

#[test]
fn every_kind_of_adapter_is_merged() {
    let everywhere = json!({ "r": 2, "target_modules": "all-linear", "bias": "all" });
    check("gpt2 on all projections", &gpt2(json!({})), everywhere.clone(), json!({}));
    check("opt on all projections", &opt(json!({})), everywhere, json!({}));
    // Its configuration says of all modules what is true of the last.
    let mixed = json!({ "r": 2, "target_modules": r".*(attn\.c_proj|lm_head)" });
    check("gpt2 on transposed and other weights", &gpt2(json!({})), mixed, json!({}));
    check("gpt2 with DoRA", &gpt2(json!({})), json!({ "r": 2, "use_dora": true }), json!({}));
    let norm = json!({ "r": 2, "use_rslora": true, "modules_to_save": ["input_layernorm"] });
    check("llama with a norm", &llama("LlamaForCausalLM", json!({})), norm, json!({}));
}

#[test]
fn other_layouts_of_a_model_are_merged() {
    let lora = json!({ "r": 3, "lora_alpha": 5 });
    check("gpt2 as on the hub", &gpt2(json!({})), lora.clone(), json!({ "keys": "hub" }));
    check("opt in shards", &opt(json!({})), lora.clone(), json!({ "max_shard_size": "20KB" }));
    let (_scratch, out) = check(
        "llama of a base model",
        &llama("LlamaForCausalLM", json!({ "tie_word_embeddings": true })),
        lora,
        json!({ "keys": "base" }),
    );
    assert_eq!(read_json(out.join("config.json"))["tie_word_embeddings"], true);
}

/// An adapter on one of two modules that share a tensor changes that one alone.
#[test]
fn a_table_that_is_the_output_too_is_written_twice() {
    for (name, model, lora) in [
        ("gpt2", gpt2(json!({})), json!({ "r": 3, "target_modules": ["wte"] })),
        ("opt", opt(json!({})), json!({ "r": 3, "target_modules": ["embed_tokens"] })),
        ("bloom", bloom(json!({})), json!({ "r": 3, "target_modules": ["word_embeddings"] })),
        ("gpt2 with a whole table", gpt2(json!({})), json!({ "r": 3, "modules_to_save": ["wte"] })),
        ("gpt2 with a whole head", gpt2(json!({})), json!({ "r": 3, "modules_to_save": ["lm_head"] })),
    ] {
        let (_scratch, out) = check(name, &model, lora, json!({}));
        assert_eq!(read_json(out.join("config.json"))["tie_word_embeddings"], false, "{name}");
    }
    check(
        "llama, untied",
        &llama("LlamaForCausalLM", json!({})),
        json!({ "target_modules": ["embed_tokens"] }),
        json!({}),
    );
    let shared = t5("T5ForConditionalGeneration", json!({}));
    let (folder, theirs) = with_adapter(&shared, &json!({ "r": 3, "target_modules": ["embed_tokens"] }), json!({}));
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("merged");
    let refused = lorabooth(&merge_words(&folder, text(&theirs.join("adapter")), &out));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("one for encoder, decoder and output"), "{said}");
    assert!(!out.exists());
}

#[test]
fn a_decoder_becomes_the_classifier_that_it_was_trained_to_be() {
    let lora = json!({ "r": 3, "lora_alpha": 5, "task_type": "SEQ_CLS" });
    for (class, (_, config)) in [
        ("GPT2ForSequenceClassification", gpt2(json!({}))),
        ("LlamaForSequenceClassification", llama("LlamaForSequenceClassification", json!({}))),
    ] {
        let model = (class, with(config, json!({ "num_labels": 3, "pad_token_id": 0 })));
        check(class, &model, lora.clone(), json!({}));
    }
}

/// From a model without a head: `train llm`, `adapter merge`, then what reads a folder of transformers.
#[test]
fn a_model_without_a_head_gets_the_one_that_was_trained() {
    for job in [bert_job(), gpt2_job(true)] {
        let scratch = tempfile::tempdir().unwrap();
        let [adapter, merged] = ["adapter", "merged"].map(|name| scratch.path().join(name));
        let steps = ["--task", "seq-cls", "--max-train-steps", "4", "--learning-rate", "0.02"];
        lorabooth_ok(&job.train(&adapter, &steps));
        lorabooth_ok(&merge_words(&job.folder.join("model"), text(&adapter), &merged));
        let config = read_json(merged.join("config.json"));
        assert_eq!(config["id2label"], json!({ "0": "long", "1": "short", "2": "tiny" }), "{}", job.name);
        assert!(config["architectures"][0].as_str().unwrap().ends_with("ForSequenceClassification"), "{config}");
        let evaluate = |model: &Path, more: &[&str]| {
            let records = job.folder.join("validation.jsonl");
            let words =
                ["evaluate", "--json", "--task", "seq-cls", "--label-column", "label", "--mixed-precision", "no"];
            let given = ["--model", text(model), "--validation-file", text(&records)];
            let said = lorabooth_ok(&[&words[..], &given, more].concat());
            serde_json::from_str::<Value>(said.lines().last().unwrap()).unwrap()
        };
        let beside = evaluate(&job.folder.join("model"), &["--adapter", text(&adapter)]);
        let within = evaluate(&merged, &[]);
        let close = |name: &str| (beside[name].as_f64().unwrap() - within[name].as_f64().unwrap()).abs() < 1e-4;
        assert!(close("loss") && close("accuracy"), "{}: {beside} {within}", job.name);
    }
}

#[test]
fn a_strength_scales_the_change_and_several_add_up() {
    let job = gpt2_job(true);
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let model = job.folder.join("model");
    lorabooth_ok(&job.train(&path("a"), &["--learning-rate", "0.05"]));
    lorabooth_ok(&job.train(&path("b"), &["--learning-rate", "0.05", "--seed", "3"]));
    let [half, twice] = [format!("{}=0.5", text(&path("a"))), format!("{}=2", text(&path("b")))];
    let out = path("merged");
    lorabooth_ok(&[&merge_words(&model, &half, &out)[..], &["--lora", &twice]].concat());
    let few = ["--max-new-tokens", "20"];
    let beside = lorabooth_ok(&complete(
        text(&model),
        "red",
        &["--max-new-tokens", "20", "--adapter", &half, "--adapter", &twice],
    ));
    let within = lorabooth_ok(&complete(text(&out), "red", &few));
    let written = |said: &str| serde_json::from_str::<Value>(said.lines().last().unwrap()).unwrap()["text"].clone();
    assert_eq!(written(&beside), written(&within));
    assert_ne!(written(&beside), written(&lorabooth_ok(&complete(text(&model), "red", &few))));
    // What is trained whole counts in full at any strength, beside the model and within.
    let whole = ["--learning-rate", "0.05", "--lora-bias", "all", "--lora-modules-to-save", "lm_head"];
    lorabooth_ok(&job.train(&path("whole"), &whole));
    let (none, out) = (format!("{}=0", text(&path("whole"))), path("merged whole"));
    lorabooth_ok(&merge_words(&model, &none, &out));
    let records = job.folder.join("validation.jsonl");
    let loss = |model: &Path, more: &[&str]| {
        let words = ["evaluate", "--json", "--task", "causal-lm", "--mixed-precision", "no", "--model", text(model)];
        let said = lorabooth_ok(&[&words[..], &["--validation-file", text(&records)], more].concat());
        serde_json::from_str::<Value>(said.lines().last().unwrap()).unwrap()["loss"].as_f64().unwrap()
    };
    let [beside, within, before] = [loss(&model, &["--adapter", &none]), loss(&out, &[]), loss(&model, &[])];
    assert!((beside - within).abs() < 1e-5 && (beside - before).abs() > 1e-2, "{beside} {within} {before}");
}

#[test]
fn a_dtype_can_be_asked_for() {
    let lora = json!({ "r": 3, "lora_alpha": 5 });
    let (folder, theirs) = with_adapter(&gpt2(json!({})), &lora, json!({ "keys": "hub" }));
    let scratch = tempfile::tempdir().unwrap();
    let [whole, half] = ["whole", "half"].map(|name| scratch.path().join(name));
    let adapter = theirs.join("adapter");
    lorabooth_ok(&merge_words(&folder, text(&adapter), &whole));
    lorabooth_ok(&[&merge_words(&folder, text(&adapter), &half)[..], &["--dtype", "bf16"]].concat());
    let [whole, halved] = [&whole, &half].map(|folder| read(folder.join("model.safetensors")));
    for (name, tensor) in &whole {
        let expected = if tensor.kind() == Kind::Float { tensor.to_kind(Kind::BFloat16) } else { tensor.copy() };
        assert!(halved[name].kind() == expected.kind() && halved[name] == expected, "{name}");
    }
    // GPT-2's masks are no floating-point numbers.
    assert!(halved.values().any(|tensor| tensor.kind() == Kind::Uint8));
    assert_eq!(read_json(half.join("config.json"))["dtype"], "bfloat16");
}

/// A folder of transformers comes of a GGUF file: configuration and tokenizer too.
#[test]
fn a_gguf_file_becomes_a_folder() {
    let gguf = made("gguf_files.py", "gguf", &json!({}));
    for name in ["llama-3.gguf", "qwen2.gguf"] {
        let scratch = tempfile::tempdir().unwrap();
        let [adapter, out, records] = ["adapter", "merged", "records.jsonl"].map(|name| scratch.path().join(name));
        std::fs::write(&records, "{\"text\": \"abc\"}\n{\"text\": \"cba\"}\n").unwrap();
        let model = gguf.join(name);
        let words = "train llm --quiet --mixed-precision no --task causal-lm --learning-rate 0.05 --max-train-steps 5";
        let given = ["--model", text(&model), "--train-file", text(&records), "--output-dir", text(&adapter)];
        lorabooth_ok(&[&words.split(' ').collect::<Vec<_>>()[..], &given].concat());
        lorabooth_ok(&merge_words(&model, text(&adapter), &out));
        let written =
            |said: String| serde_json::from_str::<Value>(said.lines().last().unwrap()).unwrap()["text"].clone();
        let beside = written(lorabooth_ok(&complete(text(&model), "ab", &["--adapter", text(&adapter)])));
        assert_eq!(written(lorabooth_ok(&complete(text(&out), "ab", &[]))), beside, "{name}");
        assert_ne!(written(lorabooth_ok(&complete(text(&model), "ab", &[]))), beside, "{name}");
        let class = read_json(out.join("config.json"))["architectures"][0].as_str().unwrap().to_owned();
        let theirs = in_transformers(&class, &out, &scratch);
        let loaded = load(&out, FLOAT32);
        let given = Given::of(&theirs, "");
        let at = |logits: &Tensor| given.seen(&loaded.model, logits);
        assert_close(name, &at(&given.logits(&loaded.model, false)), &at(&theirs["logits"]), CLOSE);
        let ids = |model: &Path| lorabooth_ok(&["tokenize", "--model", text(model), "abc", "<s>ab"]);
        assert_eq!(ids(&model), ids(&out), "{name}");
    }
}

#[test]
fn what_cannot_be_merged_is_refused_in_plain_words() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let (job, other) = (gpt2_job(true), t5_job());
    let model = job.folder.join("model");
    lorabooth_ok(&job.train(&path("prompt"), &["--peft-method", "prompt-tuning", "--max-train-steps", "1"]));
    lorabooth_ok(&other.train(&path("t5"), &["--max-train-steps", "1"]));
    lorabooth_ok(&jobs::llama().train(&path("other"), &["--max-train-steps", "3", "--learning-rate", "0.05"]));
    let pipeline = support::model("tiny");
    for (lora, model, more, words) in [
        ("prompt", &model, &[][..], &["a prompt", "cannot be merged"][..]),
        ("t5", &model, &[], &["is for seq2seq-lm", "a gpt2 model", "causal-lm and seq-cls"]),
        ("other", &model, &[], &["does not fit this model", "it was trained on"]),
        ("t5", &pipeline, &[], &["is a Stable Diffusion pipeline"]),
        ("t5", &other.folder.join("model"), &["--variant", "fp16"], &["--variant is for Stable Diffusion"]),
    ] {
        let (lora, out) = (path(lora), path("out"));
        let refused = lorabooth(&[&merge_words(model, text(&lora), &out), more].concat());
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
        assert!(!out.exists(), "{said}");
    }
    let classes = path("classes");
    lorabooth_ok(&bert_job().train(&classes, &["--max-train-steps", "1"]));
    let bert_model = bert_job().folder.join("model");
    for (names, word) in [(r#"["a", "b"]"#, "names 2 classes"), (r#"["a", "a", "b"]"#, "different class names")] {
        std::fs::write(classes.join("classes.json"), names).unwrap();
        let refused = lorabooth(&merge_words(&bert_model, text(&classes), &path("out")));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("classes.json") && said.contains(word), "{said}");
    }
    let llama_model = jobs::llama().folder.join("model");
    let huge = path("other").join("adapter_config.json");
    let mut config = read_json(&huge);
    config["lora_alpha"] = json!(1e10);
    std::fs::write(&huge, config.to_string()).unwrap();
    let other = path("other");
    let refused =
        lorabooth(&[&merge_words(&llama_model, text(&other), &path("out"))[..], &["--dtype", "fp16"]].concat());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("not a number in places"), "{said}");
    let t5 = path("t5");
    for words in [
        &["adapter", "convert", text(&t5), "--to", "kohya", "--output", "/nowhere/x.safetensors"][..],
        &["generate", "--model", text(&pipeline), "--prompt", "p", "--lora", text(&t5)],
    ] {
        let refused = lorabooth(words);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success()
                && (said.contains("a language model") || said.contains("a language-model adapter")),
            "{said}"
        );
    }
    let inspected = lorabooth_ok(&["adapter", "inspect", text(&t5)]);
    assert!(inspected.contains("language model") && inspected.contains("SEQ_2_SEQ_LM"), "{inspected}");
    assert!(inspected.contains("encoder.block.0") && !inspected.contains("unet"), "{inspected}");
}
