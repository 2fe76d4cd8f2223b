//! Whatever is wrong with what a user gives for a language model, the answer is one plain line, exit 1 or 2, and no half-written
//! output.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::complaints::{replace_by, Complaints, ODD};
use crate::support::jobs::{bert, gpt2, lines, llama, t5, Job};
use crate::support::words;
use crate::support::{self, lorabooth, lorabooth_ok, made, read_json};
use serde_json::{json, Value};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A job whose model and records may be spoiled.
struct Own {
    folder: TempDir,
    job: Job,
}

impl Own {
    fn of(job: Job) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("model")).unwrap();
        for part in ["", "model"] {
            for entry in fs::read_dir(job.folder.join(part)).unwrap().map(|entry| entry.unwrap().path()) {
                if entry.is_file() {
                    fs::copy(&entry, folder.path().join(part).join(entry.file_name().unwrap())).unwrap();
                }
            }
        }
        let job = Job { folder: folder.path().to_owned(), ..job };
        Self { folder, job }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn edit(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut value = read_json(self.path(name));
        edit(&mut value);
        fs::write(self.path(name), value.to_string()).unwrap();
    }

    /// Trains, which must be refused with `words` and leave nothing.
    fn refused(&self, complaints: &mut Complaints, what: &str, more: &[&str], words: &[&str]) {
        let out = self.path("out");
        complaints.refused(what, &self.job.train(&out, more), 1, words);
        complaints.check(&format!("{what}: something is left"), !out.exists());
    }
}

#[test]
fn models_that_cannot_be_read_are_refused_by_what_is_wrong_with_them() {
    let config = "model/config.json";
    let mut complaints = Complaints::default();
    let mut edited = |what: &str, edit: &dyn Fn(&mut Value), words: &[&str]| {
        let own = Own::of(gpt2(true));
        own.edit(config, edit);
        own.refused(&mut complaints, what, &[], words);
    };
    let unknown = |config: &mut Value| {
        config["model_type"] = json!("mamba");
        config["architectures"] = json!(["MambaForCausalLM"]);
    };
    edited("an architecture that there is none of", &unknown, &["config.json", "mamba", "gpt2, opt, bloom, llama"]);
    edited("another head", &set_head, &["GPT2ForTokenClassification", "GPT2LMHeadModel"]);
    edited("heads that do not fit", &|config| config["n_head"] = json!(5), &["config.json", "n_embd", "n_head"]);
    edited("no layers", &|config| config["n_layer"] = json!(0), &["config.json", "n_layer"]);
    edited("another activation", &|config| config["activation_function"] = json!("tanhh"), &["config.json", "tanhh"]);
    edited("a larger model", &|config| config["n_embd"] = json!(48), &["wte.weight", "48", "24"]);
    for method in ["bitsandbytes", "gptq", "awq"] {
        let how =
            json!({ "quant_method": method, "load_in_4bit": method == "bitsandbytes", "bnb_4bit_quant_type": "fp4" });
        let quantised = |config: &mut Value| config["quantization_config"] = how.clone();
        edited(method, &quantised, &["config.json", "quantised", method, "NF4", "--quantize"]);
    }

    let own = Own::of(gpt2(true));
    fs::write(own.path(config), "{").unwrap();
    own.refused(&mut complaints, "half a configuration", &[], &["config.json", "JSON"]);
    let own = Own::of(gpt2(true));
    fs::remove_file(own.path("model/model.safetensors")).unwrap();
    own.refused(&mut complaints, "no weights", &[], &["no .safetensors weights"]);
    fs::write(own.path("model/pytorch_model.bin"), "pickle").unwrap();
    own.refused(&mut complaints, "a pickle", &[], &["pytorch_model.bin", "pickle"]);
    fs::write(own.path("model/model.safetensors"), "<html>404</html>").unwrap();
    own.refused(&mut complaints, "no safetensors", &[], &["model.safetensors", "again"]);
    own.refused(&mut complaints, "no such folder", &["--model", "/nowhere/at/all"], &["/nowhere/at/all", "no such"]);
    own.refused(&mut complaints, "not fetched", &["--model", "some/model"], &["`some/model`", "HF_HUB_OFFLINE"]);
    let encodings = made("gguf_files.py", "gguf", &json!({}));
    let quantised = encodings.join("refused-IQ4_NL.gguf");
    own.refused(
        &mut complaints,
        "an encoding that is not read",
        &["--model", quantised.to_str().unwrap()],
        &["IQ4_NL", "Q8_0"],
    );
}

fn set_head(config: &mut Value) {
    config["architectures"] = json!(["GPT2ForTokenClassification"]);
}

#[test]
fn weights_by_the_names_of_quantised_ones_are_refused() {
    let mut complaints = Complaints::default();
    for end in ["qweight", "SCB", "absmax"] {
        let own = Own::of(gpt2(true));
        let path = own.path("model/model.safetensors");
        let mut tensors = tch::Tensor::read_safetensors(&path).unwrap();
        tensors.push((format!("transformer.h.0.attn.c_attn.{end}"), tch::Tensor::zeros([4], tch::kind::FLOAT_CPU)));
        tch::Tensor::write_safetensors(&tensors, &path).unwrap();
        own.refused(&mut complaints, end, &[], &["model.safetensors", "quantised", end, "NF4", "--quantize"]);
    }
}

#[test]
fn a_tokenizer_must_be_there_and_the_models_own() {
    let mut complaints = Complaints::default();
    let own = Own::of(gpt2(true));
    own.edit("model/tokenizer.json", |tokenizer| tokenizer["model"]["vocab"]["zebra"] = json!(99));
    own.refused(&mut complaints, "more tokens than rows", &[], &["tokenizer has 100 tokens", "model embeds"]);
    fs::write(own.path("model/tokenizer.json"), "{\"model\": 3}").unwrap();
    own.refused(&mut complaints, "no tokenizer in it", &[], &["tokenizer.json"]);
    fs::remove_file(own.path("model/tokenizer.json")).unwrap();
    own.refused(&mut complaints, "none", &[], &["has no tokenizer", "tokenizer.json", "vocab.txt"]);
}

#[test]
fn records_that_cannot_be_learnt_from_are_refused_by_file_and_line() {
    let mut complaints = Complaints::default();
    let own = Own::of(gpt2(true));
    let cases: &[(&str, &str, &str, &[&str])] = &[
        ("empty", "a.jsonl", "", &["a.jsonl", "no rows"]),
        ("blank lines", "a.jsonl", "\n\n", &["a.jsonl", "no rows"]),
        ("a header alone", "a.csv", "text,label\n", &["a.csv", "no rows"]),
        ("no columns", "a.csv", "", &["a.csv"]),
        (
            "another column",
            "a.jsonl",
            "{\"words\": \"red\", \"label\": \"x\"}\n",
            &["line 1", "`text`", "`words`", "`label`"],
        ),
        ("a broken line", "a.jsonl", "{\"text\": \"red\", \"label\": \"x\"}\n{\"text\": \n", &["a.jsonl", "line 2"]),
        ("a short line", "a.csv", "text,label\nred,x\nblue\n", &["a.csv", "line 3"]),
        ("no text", "a.jsonl", "{\"text\": 3, \"label\": {}}\n", &["a.jsonl", "line 1"]),
        ("no data file", "a.txt", "red", &["a.txt", ".jsonl"]),
        ("no Parquet", "a.parquet", "PAR1 it is not", &["a.parquet"]),
    ];
    for (what, name, text, expected) in cases {
        fs::write(own.path(name), text).unwrap();
        own.refused(&mut complaints, what, &["--train-file", own.path(name).to_str().unwrap()], expected);
    }
    own.refused(
        &mut complaints,
        "no such file",
        &["--train-file", "/nowhere.jsonl"],
        &["/nowhere.jsonl", "no such file"],
    );
    own.refused(&mut complaints, "a folder", &["--train-file", own.folder.path().to_str().unwrap()], &["is a folder"]);
    own.refused(&mut complaints, "no such column", &["--label-column", "answer"], &["`answer`", "`text`, `label`"]);
    own.refused(
        &mut complaints,
        "a template's",
        &["--prompt-template", "{question}"],
        &["`question`", "`text`, `label`"],
    );
    own.refused(&mut complaints, "an open brace", &["--prompt-template", "{text"], &["{text"]);
}

#[test]
fn labels_must_be_there_and_known_from_training() {
    let mut complaints = Complaints::default();
    let own = Own::of(bert());
    let file = |name: &str, text: &str| {
        fs::write(own.path(name), text).unwrap();
        own.path(name).display().to_string()
    };
    let unseen =
        file("unseen.jsonl", "{\"text\": \"red\", \"label\": \"long\"}\n{\"text\": \"red\", \"label\": \"endless\"}\n");
    own.refused(
        &mut complaints,
        "an unseen label",
        &["--validation-file", &unseen],
        &["unseen.jsonl", "line 2", "`endless`", "long, short, tiny"],
    );
    let none = file("none.jsonl", "{\"text\": \"red\", \"label\": \"\"}\n");
    own.refused(&mut complaints, "no label", &["--train-file", &none], &["none.jsonl", "line 1", "label"]);
    let same = file("same.jsonl", "{\"text\": \"red\", \"label\": \"x\"}\n{\"text\": \"blue\", \"label\": \"x\"}\n");
    own.refused(&mut complaints, "one label", &["--train-file", &same], &["same.jsonl", "the same label in every row"]);
    let job = t5();
    let out = own.path("out");
    let mut args = job.train(&out, &[]);
    args.truncate(args.len() - 2);
    complaints.refused("no column of labels", &args, 1, &["--label-column"]);
}

#[test]
fn texts_over_a_models_positions_are_refused_and_cut_where_that_is_asked_for() {
    let mut complaints = Complaints::default();
    let own = Own::of(gpt2(true));
    let long = own.path("long.jsonl");
    fs::write(&long, format!("{{\"text\": \"{}\", \"label\": \"long\"}}\n", "red ".repeat(60))).unwrap();
    let file = ["--train-file", long.to_str().unwrap()];
    own.refused(&mut complaints, "too long", &file, &["positions end at 32", "--max-seq-length 32"]);
    let out = own.path("out");
    let output =
        lorabooth(&own.job.train(&out, &[&file[..], &["--max-seq-length", "16", "--max-train-steps", "1"]].concat()));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    complaints.check(&format!("cut without a warning: {said}"), said.contains("1 of 1 rows are longer than"));
    complaints.check("no training", output.status.success() && lines(&out.join("metrics.jsonl")).len() == 1);
    // Positions that are computed have no end: a text may be longer than those that the model was made for.
    let llama = Own::of(llama());
    let output = lorabooth(&llama.job.train(&llama.path("out"), &[&file[..], &["--max-train-steps", "1"]].concat()));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    complaints.check("no training of a LLaMA", output.status.success());
    complaints.check(&said, said.contains("the model was made for 32") && said.contains("--max-seq-length"));
}

#[test]
fn what_a_run_reads_it_does_not_replace() {
    let mut complaints = Complaints::default();
    let own = Own::of(gpt2(true));
    let (out, records) = (own.path("out"), own.path("out/predictions.csv"));
    lorabooth_ok(&own.job.train(&out, &["--max-train-steps", "1"]));
    fs::write(&records, "text,label\nred green,short\n").unwrap();
    let adapter = fs::read(out.join("adapter_model.safetensors")).unwrap();
    for (flag, path) in [("--train-file", &records), ("--validation-file", &records), ("--init-adapter", &out)] {
        let again = own.job.train(&out, &["--overwrite", flag, path.to_str().unwrap()]);
        complaints.refused(flag, &again, 1, &[flag, "give another --output-dir"]);
    }
    complaints.check("the records are others", fs::read(&records).unwrap().starts_with(b"text,label\nred"));
    complaints.check("the adapter is another", fs::read(out.join("adapter_model.safetensors")).unwrap() == adapter);
}

#[test]
fn options_that_mean_nothing_are_refused_by_their_flags() {
    let mut complaints = Complaints::default();
    let own = Own::of(gpt2(true));
    for (flags, expected) in [
        ("--task seq2seq-lm", &["--task seq2seq-lm", "gpt2", "causal-lm and seq-cls"][..]),
        ("--lora-targets q_proj", &["q_proj", "c_attn"]),
        ("--lora-targets wte --use-dora", &["transformer.wte", "embedding", "DoRA"]),
        ("--lora-modules-to-save classifier", &["modules_to_save", "classifier"]),
        ("--max-seq-length 1", &["--max-seq-length", "1"]),
        ("--train-batch-size 0", &["--train-batch-size"]),
        ("--eval-steps 5", &["--eval-steps", "--validation-file"]),
        ("--best-by accuracy", &["--best-by accuracy", "--validation-file"]),
        ("--lora-r 0", &["--lora-r"]),
        ("--int8-threshold 4", &["--int8-threshold needs --quantize int8"]),
        ("--revision main", &["--revision", "hub id"]),
    ] {
        let more = words(flags);
        own.refused(&mut complaints, flags, &more.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    }
    let model = own.path("model").display().to_string();
    let plan = |flags: &str| words(&format!("plan llm --device cpu --task causal-lm --model {model} {flags}"));
    complaints.refused("a plan for nothing", &plan("--lora-targets q_proj"), 1, &["the targets q_proj", "c_attn"]);
    complaints.refused("a plan for no size", &plan("--fit much"), 2, &["`much`", "11GB"]);
    complaints.refused("a plan without a task", &words(&format!("plan llm --model {model}")), 2, &["--task"]);
}

#[test]
fn files_that_are_no_regular_files_are_refused_by_name() {
    let mut complaints = Complaints::default();
    for file in ["model/config.json", "model/tokenizer.json", "model/tokenizer_config.json", "train.jsonl"] {
        for (odd, name) in ODD {
            let own = Own::of(gpt2(true));
            replace_by(&own.path(file), odd);
            let last = file.rsplit('/').next().unwrap();
            let (what, out) = (format!("{file} is {odd}"), own.path("out"));
            complaints.refused_at_once(&what, &own.job.train(&out, &[]), 1, &[last, name]);
            complaints.check(&format!("{what}: something is left"), !out.exists());
        }
    }
    for file in ["records.csv", "records.parquet", "model.gguf"] {
        for (odd, name) in ODD {
            let own = Own::of(gpt2(true));
            replace_by(&own.path(file), odd);
            let path = own.path(file).display().to_string();
            let args = match file {
                // A model's folder may have any name.
                "model.gguf" if matches!(name, "too large" | "a folder") => continue,
                "model.gguf" => own.job.train(&own.path("out"), &["--model", &path]),
                _ => own.job.train(&own.path("out"), &["--train-file", &path]),
            };
            complaints.refused_at_once(&format!("{file} is {odd}"), &args, 1, &[file, name]);
        }
    }
    let own = Own::of(gpt2(true));
    fs::write(own.path("train.jsonl"), "x".repeat(65 << 20)).unwrap();
    own.refused(&mut complaints, "a line without end", &[], &["train.jsonl", "line 1", "64 MB"]);
}

#[test]
fn complete_refuses_what_writes_no_text() {
    let mut complaints = Complaints::default();
    let (decoder, classifier) = (Own::of(gpt2(true)), Own::of(bert()));
    let complete = |own: &Own, more: &[&str]| {
        let mut args = words("complete --quiet --device cpu --dtype fp32 --prompt red --model");
        args.push(own.path("model").display().to_string());
        args.extend(more.iter().map(|&arg| arg.to_owned()));
        args
    };
    let adapter = classifier.path("adapter");
    lorabooth_ok(&classifier.job.train(&adapter, &["--max-train-steps", "0"]));
    let adapter = adapter.to_str().unwrap();
    let writes = decoder.path("adapter");
    lorabooth_ok(&decoder.job.train(&writes, &["--max-train-steps", "0"]));
    let writes = writes.to_str().unwrap();
    let headless = Own::of(bert());
    let config = headless.path("model/config.json");
    let mut named = support::read_json(&config);
    named["id2label"] = serde_json::json!({ "0": "a", "1": "b" });
    std::fs::write(&config, named.to_string()).unwrap();
    for (what, own, more, expected) in [
        (
            "a classifier's adapter",
            &decoder,
            &["--adapter", adapter][..],
            &["no module matches", "it was trained on"][..],
        ),
        ("a writer's adapter", &classifier, &["--adapter", writes], &["is for causal-lm", "a bert model", "seq-cls"]),
        ("other names than the head has", &headless, &[], &["classifier.weight", "[3, 24]"]),
        ("a draw without a temperature", &decoder, &["--top-p", "0.5"], &["--top-p", "--temperature"]),
        ("no adapter", &decoder, &["--adapter", "/nowhere"], &["/nowhere"]),
        ("a strength of no number", &decoder, &["--adapter", "a=much"], &["much"]),
        ("no room", &decoder, &["--max-new-tokens", "40"], &["32 positions", "--max-new-tokens"]),
        ("no tokens", &decoder, &["--max-new-tokens", "0"], &["--max-new-tokens"]),
        ("a probability over 1", &decoder, &["--top-p", "1.5", "--temperature", "1"], &["--top-p"]),
        ("no likely tokens", &decoder, &["--top-k", "0", "--temperature", "1"], &["--top-k"]),
        ("2^63 tokens", &decoder, &["--max-new-tokens", "9223372036854775808"], &["--max-new-tokens", "1000000"]),
        ("2^64 - 1 tokens", &decoder, &["--max-new-tokens", "18446744073709551615"], &["--max-new-tokens"]),
        ("2^63 beams", &decoder, &["--num-beams", "9223372036854775808"], &["--num-beams", "256"]),
        ("a temperature of nothing", &decoder, &["--temperature", "1e-310"], &["--temperature", "0.0001"]),
        ("a temperature without end", &decoder, &["--temperature", "1e308"], &["--temperature", "10000"]),
        ("a strength without end", &decoder, &["--adapter", "a=1e300"], &["1e300", "1000"]),
        ("a temperature below 0", &decoder, &["--temperature=-1"], &["--temperature"]),
        ("beams that are drawn", &decoder, &["--num-beams", "2", "--temperature", "1"], &["--num-beams"]),
    ] {
        complaints.refused(what, &complete(own, more), 1, expected);
    }
    assert!(Path::new(adapter).join("adapter_config.json").exists());
}

#[test]
fn a_flag_that_asks_for_another_adapter_than_the_one_to_start_from_is_refused() {
    let mut complaints = Complaints::default();
    let own = Own::of(gpt2(true));
    let [lora, prompt, out] = ["lora", "prompt", "out"].map(|name| own.path(name));
    let prefix = ["--peft-method", "prefix-tuning", "--num-virtual-tokens", "4"];
    lorabooth_ok(&own.job.train(&lora, &["--max-train-steps", "0", "--lora-r", "4"]));
    lorabooth_ok(&own.job.train(&prompt, &[&prefix[..], &["--max-train-steps", "0"]].concat()));
    let from = |start: &Path, flags: &str| {
        let start = ["--init-adapter", start.to_str().unwrap(), "--max-train-steps", "0"];
        own.job.train(&out, &[&start[..], &flags.split(' ').collect::<Vec<_>>()].concat())
    };
    for (start, flags, words) in [
        (&lora, "--lora-r 8", &["--lora-r is 8", "has 4", "leave the flag out"][..]),
        (&lora, "--lora-alpha 8", &["--lora-alpha is 8", "has 16"]),
        (&lora, "--lora-targets c_proj", &["--lora-targets is c_proj", "has c_attn"]),
        (&lora, "--use-dora", &["--use-dora is true", "has false"]),
        (&prompt, "--peft-method prefix-tuning --num-virtual-tokens 5", &["--num-virtual-tokens is 5", "has 4"]),
    ] {
        complaints.refused(flags, &from(start, flags), 2, words);
        complaints.check(&format!("{flags}: something is left"), !out.exists());
    }
    lorabooth_ok(&from(&lora, "--lora-r 4 --lora-targets c_attn --lora-alpha 16.0"));
    lorabooth_ok(&from(&prompt, "--overwrite --peft-method prefix-tuning --num-virtual-tokens 4"));
}

/// Makes one number of the tensors of an adapter's folder NaN; the key that it is in.
fn spoil(folder: &Path) -> String {
    let path = folder.join("adapter_model.safetensors");
    let mut tensors: Vec<(String, tch::Tensor)> = support::read(&path).into_iter().collect();
    let (key, tensor) = &mut tensors[0];
    let key = key.clone();
    _ = tensor.view([-1]).get(0).fill_(f64::NAN);
    tch::Tensor::write_safetensors(&tensors, &path).unwrap();
    key
}

#[test]
fn an_adapter_with_nan_is_named_by_every_command() {
    let mut complaints = Complaints::default();
    let own = Own::of(gpt2(true));
    let prefix = ["--peft-method", "prefix-tuning", "--num-virtual-tokens", "4"];
    for (name, flags) in [("lora", &[][..]), ("prompt", &prefix)] {
        let (adapter, out) = (own.path(name), own.path("out"));
        lorabooth_ok(&own.job.train(&adapter, &[flags, &["--max-train-steps", "0"]].concat()));
        let key = spoil(&adapter);
        let (adapter, model) = (adapter.display().to_string(), own.path("model").display().to_string());
        let expected = [adapter.as_str(), "adapter_model.safetensors", &key, "NaN"];
        let complete =
            format!("complete --quiet --device cpu --dtype fp32 --prompt red --model {model} --adapter {adapter}");
        complaints.refused("complete", &words(&complete), 1, &expected);
        complaints.refused("inspect", &words(&format!("adapter inspect {adapter}")), 1, &expected);
        let start = [flags, &["--init-adapter", &adapter, "--max-train-steps", "1"]].concat();
        complaints.refused("train", &own.job.train(&out, &start), 1, &expected);
        complaints.check("train: something is left", !out.exists());
        let records = own.path("train.jsonl").display().to_string();
        let evaluate = format!(
            "evaluate --device cpu --quiet --task causal-lm --label-column label --model {model} --adapter {adapter} \
             --validation-file {records}"
        );
        complaints.refused("evaluate", &words(&evaluate), 1, &expected);
    }
}
