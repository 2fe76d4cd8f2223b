//! Weights in few bits are bitsandbytes' and torch's, and what is learned on them is what peft learns there.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

use crate::support::jobs::{bert, close, job, lines, llama, opt, Job, LEARNING_RATE};
use crate::support::{self, lorabooth, lorabooth_ok, made, python, read, read_json, relative_norm_error};
use lorabooth::weights::{BaseWeight, Fp8Weight, Int8Weight, Nf4Weight, Op};
use serde_json::{json, Value};
use std::path::Path;
use tch::{Kind, Tensor};

#[test]
fn int8_codes_equal_bitsandbytes_and_products_are_as_exact() {
    for (outliers, threshold) in [(json!([5, 17]), 6.0), (json!([]), 6.0), (json!([3]), 0.0)] {
        let options = json!({ "rows": 20, "inputs": 64, "outputs": 48, "outliers": outliers, "threshold": threshold });
        let theirs = read(made("int8_linear.py", "int8.safetensors", &options));
        let int8 = Int8Weight::quantise(&theirs["weight"], Kind::Float, threshold);
        assert_eq!(int8.codes(), &theirs["codes"]);
        assert!(relative_norm_error(&(int8.scales() * 127.0), &theirs["largest"]) < 1e-6);

        let ys = BaseWeight::Int8(int8).run(Op::Linear, &theirs["xs"], Some(&theirs["bias"]));
        let error = |ys: &Tensor| relative_norm_error(&ys.to_kind(Kind::Double), &theirs["exact"]);
        let (ours, bitsandbytes) = (error(&ys), error(&theirs["ys"]));
        println!("outliers {outliers}, threshold {threshold}: error {ours:.1e}, bitsandbytes' {bitsandbytes:.1e}");
        assert!(ours <= bitsandbytes * 1.02, "{ours:.2e} is above bitsandbytes' {bitsandbytes:.2e}");
    }
}

#[test]
fn nf4_bytes_equal_bitsandbytes() {
    // Whole blocks; a short last one; an odd number of weights; so many that the scales fill several blocks of their own.
    for shape in [[48, 64], [30, 40], [7, 13], [257, 320]] {
        for dtype in ["float32", "float16", "bfloat16"] {
            for double in [false, true] {
                let options = json!({ "shape": shape, "dtype": dtype, "double": double });
                let theirs = read(made("nf4_weight.py", "nf4.safetensors", &options));
                let kind = theirs["weight"].kind();
                let nf4 = Nf4Weight::quantise(&theirs["weight"], kind, double).unwrap();
                let parts = nf4.parts();
                assert_eq!(parts[0], theirs["packed"], "{options}");
                assert_eq!(parts[1], theirs["absmax"], "{options}");
                if double {
                    assert_eq!(parts[2], theirs["nested_absmax"], "{options}");
                    assert_eq!(parts[3], theirs["map"], "{options}");
                    assert_eq!(nf4.form().nested.unwrap().1 as f32, f32::try_from(&theirs["offset"]).unwrap());
                }
                assert_eq!(nf4.dense(kind), theirs["dense"], "{options}");
            }
        }
    }
}

#[test]
fn fp8_codes_equal_torchs_cast_of_the_clamped_weight() {
    for dtype in [Kind::Float, Kind::Half, Kind::BFloat16] {
        let drawn = read(made(
            "nf4_weight.py",
            "nf4.safetensors",
            &json!({ "shape": [64, 96], "dtype": "float32", "double": false }),
        ));
        let weight = (&drawn["weight"] * 300.0).to_kind(dtype);
        assert!(weight.abs().max().double_value(&[]) > 448.0);
        let fp8 = Fp8Weight::quantise(&weight, dtype).unwrap();
        let cast = weight.clamp(-448.0, 448.0).to_kind(Kind::Float8e4m3fn);
        assert_eq!(fp8.codes(), &cast.view_dtype(Kind::Uint8));
        assert_eq!(fp8.dense(dtype), cast.to_kind(dtype));
    }
}

/// Trains on a base in NF4 from one start here and in PEFT.
fn check_qlora(job: &Job) {
    let folder = tempfile::tempdir().unwrap();
    let [start, ours, theirs] = ["start", "ours", "theirs"].map(|name| folder.path().join(name));
    // B is not zero, so that A learns from the first step on.
    lorabooth_ok(&job.train(&start, &["--max-train-steps", "3", "--seed", "5"]));
    let options = json!({ "job": job.folder, "class": job.class, "task": job.task, "adapter": start, "steps": 10, "nf4": true,
        "learning_rate": LEARNING_RATE.parse::<f64>().unwrap(), "batch": 4, "label": job.label });
    python("language_loop.py", &[theirs.to_str().unwrap(), &options.to_string()]);
    let expected = read_json(theirs.join("losses.json"));
    lorabooth_ok(&job.train(&ours, &["--init-adapter", start.to_str().unwrap(), "--quantize", "nf4"]));
    let losses = losses(&ours);
    assert_eq!(losses.len(), 10);
    let mut worst = 0f64;
    for (i, loss) in losses.iter().enumerate() {
        let wanted = expected["losses"][i].as_f64().unwrap();
        close(*loss, wanted, 2e-4, &format!("{} step {i}", job.name));
        worst = worst.max((loss - wanted).abs() / wanted);
    }
    println!("{}: losses within {worst:.1e}", job.name);
    let (actual, wanted) =
        (read(ours.join("adapter_model.safetensors")), read(theirs.join("adapter/adapter_model.safetensors")));
    assert_eq!(actual.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{}", job.name);
    for (name, tensor) in &wanted {
        let error = relative_norm_error(&actual[name], tensor);
        assert!(error < 1e-3, "{} {name}: {error:.1e}", job.name);
    }
}

fn losses(folder: &Path) -> Vec<f64> {
    lines(&folder.join("metrics.jsonl")).iter().map(|line| line["loss"].as_f64().unwrap()).collect()
}

#[test]
fn losses_and_adapters_on_nf4_are_those_of_peft_on_bitsandbytes() {
    // bitsandbytes' code for AVX512 expands rows wrongly that are multiples of 16 and not of 64.
    let bloom = json!({ "hidden_size": 64, "n_layer": 2, "n_head": 4 });
    let wide = [wide_gpt2(), job("bloom", "BloomForCausalLM", "causal-lm", false, bloom)];
    for job in wide.into_iter().chain([llama(), opt(), bert()]) {
        check_qlora(&job);
    }
}

fn wide_gpt2() -> Job {
    let config = json!({ "n_positions": 32, "n_embd": 64, "n_layer": 2, "n_head": 4,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0 });
    job("gpt2", "GPT2LMHeadModel", "causal-lm", true, config)
}

/// The job's model as bitsandbytes has quantised it.
fn four_bit(job: &Job, more: Value) -> Job {
    let mut options = json!({ "job": job.folder, "class": job.class, "double": true });
    options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Job { folder: made("four_bit_model.py", "four-bit", &options), ..*job }
}

/// bitsandbytes has quantised to the bytes that are quantised to here.
#[test]
fn a_checkpoint_in_4_bits_learns_merges_and_waits_as_the_model_that_it_was_made_from() {
    let folder = tempfile::tempdir().unwrap();
    for (job, storage) in [(llama(), "uint8"), (wide_gpt2(), "uint8"), (opt(), "bfloat16")] {
        let packed = four_bit(&job, json!({ "storage": storage }));
        let learned = |job: &Job, name: &str, more: &[&str]| {
            let out = folder.path().join(format!("{} {name}", job.name));
            lorabooth_ok(&job.train(&out, &[&["--max-train-steps", "4"], more].concat()));
            (losses(&out), std::fs::read(out.join("adapter_model.safetensors")).unwrap())
        };
        let made_here = learned(&job, "here", &["--quantize", "nf4"]);
        assert!(learned(&packed, "there", &[]) == made_here, "{}", job.name);
        assert!(learned(&packed, "waits", &["--offload", "cpu"]) == made_here, "{}", job.name);
        assert!(learned(&packed, "again", &["--quantize", "nf4"]) == made_here, "{}", job.name);

        let adapter = folder.path().join(format!("{} there", job.name)).display().to_string();
        let merged = folder.path().join(format!("{} merged", job.name));
        let model = packed.folder.join("model").display().to_string();
        let to = merged.to_str().unwrap();
        lorabooth_ok(&["adapter", "merge", "--model", &model, "--adapter", &adapter, "--output", to]);
        assert!(read_json(merged.join("config.json")).get("quantization_config").is_none());
        assert!(read(merged.join("model.safetensors")).values().all(|tensor| tensor.kind() == Kind::Float));
        let text = |model: &str, more: &[&str]| {
            let said =
                lorabooth_ok(&support::complete(model, "red house", &[&["--max-new-tokens", "12"], more].concat()));
            serde_json::from_str::<Value>(said.lines().last().unwrap()).unwrap()["text"].clone()
        };
        assert_eq!(text(to, &[]), text(&model, &["--adapter", &adapter]), "{}", job.name);
    }
    let refused = |packed: &Job, more: &[&str], words: &[&str]| {
        let output = lorabooth(&packed.train(&folder.path().join("refused"), more));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && words.iter().all(|word| said.contains(word)), "{said}");
    };
    refused(&four_bit(&llama(), json!({})), &["--quantize", "int8"], &["4 bits (NF4) already", "--quantize int8"]);
    refused(&four_bit(&llama(), json!({ "quant_type": "fp4" })), &[], &["fp4", "NF4", "--quantize"]);
}

/// What the weights are rounded to is near them, and is there: the numbers of each are others.
#[test]
fn every_storage_learns_nearly_the_same_and_waits_anywhere_with_the_same_bits() {
    let (job, folder) = (llama(), tempfile::tempdir().unwrap());
    let learned = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        lorabooth_ok(&job.train(&out, more));
        (losses(&out), std::fs::read(out.join("adapter_model.safetensors")).unwrap())
    };
    let dense = learned("dense", &[]);
    let mut all = vec![dense.0.clone()];
    for (bits, bound) in [("int8", 0.03), ("nf4", 0.1), ("fp8", 0.05)] {
        let stays = learned(bits, &["--quantize", bits]);
        for (i, loss) in stays.0.iter().enumerate() {
            close(*loss, dense.0[i], bound, bits);
        }
        assert!(!all.contains(&stays.0), "{bits}");
        for more in [&[][..], &["--gradient-checkpointing"]] {
            let waits = learned("waits", &[&["--quantize", bits, "--offload", "cpu", "--overwrite"], more].concat());
            assert!(waits == stays, "{bits} {more:?}: {:?} {:?}", waits.0, stays.0);
        }
        all.push(stays.0);
    }
    let int8 = learned("alias", &["--load-in-8bit"]);
    assert_eq!(int8.0, all[1]);
}

#[test]
fn pictures_and_trainings_of_stable_diffusion_take_every_storage() {
    let folder = tempfile::tempdir().unwrap();
    let learned = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        support::train_with_convolutions(&out, more);
        losses(&out)
    };
    let dense = learned("dense", &[]);
    let draw = |name: &str, more: &[&str]| {
        let path = folder.path().join(format!("{name}.png"));
        support::draw_quickly(&path, more);
        path
    };
    let picture = draw("dense", &[]);
    let mut nearness = Vec::new();
    for bits in ["int8", "fp8", "nf4"] {
        let stays = learned(bits, &["--quantize", bits]);
        stays.iter().zip(&dense).for_each(|(loss, dense)| close(*loss, *dense, 0.1, bits));
        assert_ne!(stays, dense, "{bits}");
        assert_eq!(learned(&format!("{bits} waits"), &["--quantize", bits, "--offload", "cpu"]), stays, "{bits}");
        let drawn = draw(bits, &["--quantize", bits]);
        let waits = draw(&format!("{bits} waits"), &["--quantize", bits, "--offload", "cpu"]);
        assert!(std::fs::read(&drawn).unwrap() == std::fs::read(waits).unwrap(), "{bits}");
        nearness.push(support::psnr(&drawn, &picture));
    }
    println!("pictures of int8, fp8 and nf4 beside the dense one: {nearness:.1?} dB");
    assert!(nearness.iter().all(|decibels| (15.0..90.0).contains(decibels)));
}

#[test]
fn options_that_exclude_each_other_are_refused() {
    let model = llama().folder.join("model").display().to_string();
    let said = |more: &[&str]| {
        let output = lorabooth(&[&["complete", "--model", &model, "--prompt", "red"], more].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        said
    };
    let both = said(&["--load-in-8bit", "--quantize", "nf4"]);
    assert!(both.contains("--load-in-8bit is --quantize int8, and --quantize nf4 is given too"), "{both}");
    let threshold = said(&["--int8-threshold", "4", "--quantize", "fp8"]);
    assert!(threshold.contains("--int8-threshold needs --quantize int8"), "{threshold}");
}

/// A weight in 4 bits that a run loads takes no more than its codes beside one weight in the making.
#[test]
fn a_base_in_few_bits_is_never_whole_in_memory() {
    let config = json!({ "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16,
        "num_key_value_heads": 16, "max_position_embeddings": 64 });
    let job =
        made("language_job.py", "job", &json!({ "class": "LlamaForCausalLM", "config": config, "dtype": "bfloat16" }));
    let folder = tempfile::tempdir().unwrap();
    let peak = |name: &str, more: &[&str]| -> f64 {
        let out = folder.path().join(name);
        let path = |name: &str| job.join(name).display().to_string();
        let (model, records, out_dir) = (path("model"), path("train.jsonl"), out.display().to_string());
        let args = [
            "train",
            "llm",
            "--device",
            "cpu",
            "--threads",
            "1",
            "--quiet",
            "--mixed-precision",
            "bf16",
            "--task",
            "causal-lm",
            "--train-batch-size",
            "1",
            "--max-train-steps",
            "2",
            "--gradient-checkpointing",
            "--model",
            &model,
            "--train-file",
            &records,
            "--output-dir",
            &out_dir,
        ];
        lorabooth_ok(&[&args[..], more].concat());
        let run: Value = read_json(out.join("run.json"));
        run["peak_memory_bytes"]["host_above_start"].as_f64().unwrap()
    };
    // A layer: four projections of 1024² and three of 1024 · 2816 numbers.
    let numbers = 8.0 * (4.0 * 1024.0 * 1024.0 + 3.0 * 1024.0 * 2816.0);
    let dense = peak("dense", &[]);
    for (bits, bytes) in [("int8", 1.0), ("fp8", 1.0), ("nf4", 0.5 + 1.0 / 64.0)] {
        let (stays, waits) = (
            peak(bits, &["--quantize", bits]),
            peak("waits", &["--quantize", bits, "--offload", "cpu", "--overwrite"]),
        );
        println!("{bits}: {:.0} MB, waiting {:.0} MB, dense {:.0} MB", stays / 1e6, waits / 1e6, dense / 1e6);
        // Some of the largest weight in bf16, as it is made and as it is expanded, and as much for the rest.
        assert!(stays < dense - numbers * (2.0 - bytes) + 60e6, "{bits}: {stays}");
        assert!(waits < stays - numbers * bytes * 0.7, "{bits}: {waits}");
    }
}
