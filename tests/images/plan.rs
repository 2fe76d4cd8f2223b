//! `lorabooth plan` against what the same flags take when they train.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::{lorabooth, lorabooth_command, lorabooth_ok, made, model, photos, read_json};
use serde_json::{json, Value};
use std::path::Path;

/// Planned and measured bytes at the peak of a run with `flags`, above what the process starts with: that of its second step, which has the
/// optimizer's state.
fn planned_and_measured(out: &Path, flags: &str) -> (f64, f64) {
    let (model, photos) = (model("medium"), photos(5, 0));
    let common = ["--device", "cpu", "--threads", "1", "--model", model.to_str().unwrap(), "--instance-data-dir"];
    let mut flags: Vec<&str> = flags.split(' ').collect();
    flags.splice(0..0, common.into_iter().chain([photos.to_str().unwrap()]));
    let said = lorabooth_ok(&[&["plan", "--json"], flags.as_slice()].concat());
    let plan: Value = serde_json::from_str(said.trim()).unwrap();
    let train = ["train", "dreambooth", "--quiet", "--instance-prompt", "a photo of sks dog", "--max-train-steps", "2"];
    lorabooth_ok(&[&train[..], &flags, &["--output-dir", out.to_str().unwrap()]].concat());
    let run = read_json(out.join("run.json"));
    (plan["peak_bytes"].as_f64().unwrap(), run["peak_memory_bytes"]["host_above_start"].as_f64().unwrap())
}

/// `holds` in one of three tries: it times what other programs may slow down.
fn at_its_best(holds: impl Fn() -> Result<(), String>) {
    let failures: Vec<String> = (0..3).map_while(|_| holds().err()).collect();
    assert!(failures.len() < 3, "{}", failures.join("\n"));
}

#[test]
fn the_plan_is_within_a_tenth_of_what_a_run_takes() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        "--resolution 256 --mixed-precision no --train-text-encoder",
        "--resolution 256 --mixed-precision bf16 --train-text-encoder --gradient-checkpointing --center-crop",
        "--resolution 384 --mixed-precision bf16 --train-batch-size 2 --center-crop",
    ];
    let measured: Vec<(f64, f64)> = cases
        .iter()
        .enumerate()
        .map(|(i, flags)| planned_and_measured(&folder.path().join(i.to_string()), flags))
        .collect();
    for (flags, (planned, measured)) in cases.iter().zip(&measured) {
        println!("{:6.0} MiB planned, {:6.0} measured: {flags}", planned / 1048576.0, measured / 1048576.0);
    }
    for (flags, (planned, measured)) in cases.iter().zip(&measured) {
        let ratio = planned / measured;
        assert!((0.9..1.1).contains(&ratio), "{flags}: planned {ratio:.3} of what was measured");
    }
}

/// A small model's plan is near what its run takes, in memory and in time: its products are narrow, which are slower for their work
/// than a large model's.
#[test]
fn the_plan_of_a_small_model_is_near_what_it_takes() {
    let (folder, photos) = (tempfile::tempdir().unwrap(), photos(5, 0));
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/model");
    for (resolution, precision, steps) in [("64", "no", "60"), ("384", "no", "4"), ("64", "bf16", "20")] {
        at_its_best(|| {
            let flags = ["--device", "cpu", "--threads", "1", "--model", model, "--instance-data-dir"];
            let more = [photos.to_str().unwrap(), "--resolution", resolution, "--mixed-precision", precision];
            let out = folder.path().join(format!("{resolution}-{precision}"));
            let said = lorabooth_ok(&[&["plan", "--json"], &flags[..], &more].concat());
            let plan: Value = serde_json::from_str(said.trim()).unwrap();
            let train =
                ["train", "dreambooth", "--quiet", "--overwrite", "--instance-prompt", "sks", "--max-train-steps"];
            lorabooth_ok(&[&train[..], &[steps], &flags, &more, &["--output-dir", out.to_str().unwrap()]].concat());
            let run = read_json(out.join("run.json"));
            let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
            let mut seconds: Vec<f64> = metrics
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap()["step_s"].as_f64().unwrap())
                .collect();
            seconds.sort_by(f64::total_cmp);
            let bytes = plan["peak_bytes"].as_f64().unwrap();
            let memory = bytes / run["peak_memory_bytes"]["host_above_start"].as_f64().unwrap();
            let planned = plan["seconds_per_step"].as_f64().unwrap();
            let time = planned / seconds[seconds.len() / 4];
            let of = format!(
                "{resolution} px in {precision}: memory {memory:.2}, time {time:.2} ({planned:.4} s) of what was measured"
            );
            println!("{of}");
            let is_near = (0.8..1.35).contains(&memory) && (precision != "no" || (0.25..2.5).contains(&time));
            if is_near {
                Ok(())
            } else {
                Err(of)
            }
        });
    }
}

/// The same of a language model's run on the records of `job`, of language_job.py; beside that the trained parameters.
fn planned_and_measured_text(out: &Path, job: &Value, flags: &str) -> [(f64, f64); 2] {
    let job = made("language_job.py", "job", job);
    let path = |name: &str| job.join(name).to_str().unwrap().to_owned();
    let (model, records) = (path("model"), path("train.jsonl"));
    let common = ["llm", "--device", "cpu", "--threads", "1", "--model", &model, "--train-file", &records];
    let flags: Vec<&str> = common.into_iter().chain(flags.split(' ')).collect();
    let said = lorabooth_ok(&[&["plan"], flags.as_slice(), &["--json"]].concat());
    let plan: Value = serde_json::from_str(said.trim()).unwrap();
    let train = [&["train"], flags.as_slice(), &["--quiet", "--max-train-steps", "2", "--output-dir"]].concat();
    lorabooth_ok(&[train.as_slice(), &[out.to_str().unwrap()]].concat());
    let run = read_json(out.join("run.json"));
    let number = |value: &Value| value.as_f64().unwrap();
    [
        (number(&plan["peak_bytes"]), number(&run["peak_memory_bytes"]["host_above_start"])),
        (number(&plan["trained_parameters"]), number(&run["trainable_parameters"])),
    ]
}

#[test]
fn the_plan_of_a_language_models_run_is_near_what_it_takes() {
    let folder = tempfile::tempdir().unwrap();
    let gpt2 = json!({ "class": "GPT2LMHeadModel", "rows": 8000, "words": 200,
        "config": { "n_positions": 256, "n_embd": 512, "n_layer": 8, "n_head": 8 } });
    let t5 = json!({ "class": "T5ForConditionalGeneration", "rows": 8000, "words": 200,
        "config": { "d_model": 512, "d_kv": 64, "d_ff": 1536, "num_layers": 6, "num_heads": 8, "decoder_start_token_id": 0 } });
    let llama = json!({ "class": "LlamaForCausalLM", "rows": 8000, "words": 200,
        "config": { "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12,
                    "num_key_value_heads": 4, "max_position_embeddings": 256 } });
    let bert = json!({ "class": "BertForSequenceClassification", "rows": 8000, "words": 200,
        "config": { "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2048,
                    "max_position_embeddings": 256, "num_labels": 2 } });
    let causal = "--task causal-lm --train-batch-size 4";
    let recomputed = format!("{causal} --mixed-precision bf16 --gradient-checkpointing --lora-targets all-linear");
    let cases = [
        ("gpt2", &gpt2, format!("{causal} --mixed-precision no")),
        ("gpt2", &gpt2, format!("{causal} --mixed-precision bf16")),
        ("gpt2", &gpt2, format!("{causal} --mixed-precision bf16 --offload cpu")),
        ("gpt2", &gpt2, recomputed.clone()),
        ("t5", &t5, "--task seq2seq-lm --label-column text --train-batch-size 4 --mixed-precision no".to_owned()),
        ("llama", &llama, format!("{causal} --mixed-precision no --load-in-8bit")),
        ("llama", &llama, format!("{causal} --mixed-precision bf16")),
        ("llama", &llama, format!("{causal} --mixed-precision no --offload cpu")),
        ("gpt2", &gpt2, format!("{recomputed} --offload cpu")),
        ("llama", &llama, format!("{causal} --mixed-precision bf16 --quantize nf4")),
        ("llama", &llama, format!("{causal} --mixed-precision no --quantize nf4")),
        ("llama", &llama, format!("{causal} --mixed-precision bf16 --quantize fp8")),
        ("llama", &llama, format!("{causal} --mixed-precision bf16 --quantize nf4 --offload cpu")),
        ("bert", &bert, "--task seq-cls --label-column label --mixed-precision no".to_owned()),
    ];
    let mut complaints = Vec::new();
    for (i, (name, job, flags)) in cases.iter().enumerate() {
        let [bytes, trained] = planned_and_measured_text(&folder.path().join(i.to_string()), job, flags);
        println!("{:6.0} MiB planned, {:6.0} measured: {name} {flags}", bytes.0 / 1048576.0, bytes.1 / 1048576.0);
        assert_eq!(trained.0, trained.1, "{name} {flags}");
        let ratio = bytes.0 / bytes.1;
        if !(0.87..1.15).contains(&ratio) {
            complaints.push(format!("{name} {flags}: planned {ratio:.3} of what was measured"));
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn fewer_bits_and_streaming_are_suggested_where_they_save_memory() {
    let config = json!({ "n_positions": 64, "n_embd": 768, "n_layer": 4, "n_head": 12 });
    let model = made("language_job.py", "job", &json!({ "class": "GPT2LMHeadModel", "config": config })).join("model");
    let suggested = |more: &[&str]| {
        let plan = ["plan", "llm", "--json", "--device", "cpu", "--task", "causal-lm", "--max-seq-length", "16"];
        let fit = ["--mixed-precision", "no", "--fit", "1MB", "--model", model.to_str().unwrap()];
        // Nothing makes it fit: the exit code says so.
        let output = lorabooth(&[&plan[..], &fit, more].concat());
        assert_eq!(output.status.code(), Some(1));
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        let suggestions = plan["suggestions"].as_array().unwrap().clone();
        let saved: u64 = suggestions.iter().map(|suggestion| suggestion["saves_bytes"].as_u64().unwrap()).sum();
        assert_eq!(plan["peak_bytes"].as_u64().unwrap() - saved, plan["fitted_peak_bytes"].as_u64().unwrap());
        suggestions.iter().map(|suggestion| suggestion["what"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for more in [&[][..], &["--load-in-8bit"]] {
        let asked = suggested(more);
        assert!(asked.contains(&"--quantize nf4".to_owned()), "{asked:?}");
        assert!(asked.contains(&"--offload cpu".to_owned()), "{asked:?}");
    }
    let asked = suggested(&["--quantize", "nf4", "--offload", "cpu"]);
    assert!(asked.iter().all(|what| !what.contains("quantize") && !what.contains("offload")), "{asked:?}");
}

/// QLoRA on LLaMA-7B, of which nothing but the configuration is there.
#[test]
fn a_model_of_7_billion_in_4_bits_is_planned_from_its_configuration_alone() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({ "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "vocab_size": 32000, "tie_word_embeddings": false, "hidden_act": "silu", "torch_dtype": "float16" });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let plan = |more: &[&str]| {
        let common = ["plan", "llm", "--json", "--device", "cpu", "--task", "causal-lm", "--max-seq-length", "512"];
        let model = ["--train-batch-size", "1", "--model", folder.path().to_str().unwrap()];
        let said = lorabooth_ok(&[&common[..], &model, more].concat());
        serde_json::from_str::<Value>(said.trim()).unwrap()
    };
    // The blocks' linear layers; tokens' table and output stay in bf16.
    let numbers = 32.0 * (4.0 * 4096.0 * 4096.0 + 3.0 * 4096.0 * 11008.0);
    let rest = 2.0 * (2.0 * 32000.0 * 4096.0);
    let flags = ["--mixed-precision", "bf16", "--gradient-checkpointing", "--quantize"];
    for (bits, bytes) in [("nf4", 0.5 + 1.0 / 64.0), ("int8", 1.0), ("fp8", 1.0), ("none", 2.0)] {
        let peak = plan(&[&flags[..], &[bits]].concat())["peak_bytes"].as_f64().unwrap();
        let beside = peak - numbers * bytes - rest;
        assert!((0.0..1.2e9).contains(&beside), "{bits}: {peak}");
    }
    let fitted = plan(&["--fit", "6"]);
    let what: Vec<&str> =
        fitted["suggestions"].as_array().unwrap().iter().map(|one| one["what"].as_str().unwrap()).collect();
    assert!(what.contains(&"--quantize nf4"), "{what:?}");
}

/// What the command writes to its standard output and its standard error where libtorch sees a processor with AVX2 alone, which
/// has no units for bf16, fp16 or int8.
fn on_avx2(args: &[&str]) -> [String; 2] {
    let output = lorabooth_command(args)
        .envs([("ATEN_CPU_CAPABILITY", "avx2"), ("ONEDNN_MAX_CPU_ISA", "AVX2")])
        .output()
        .unwrap();
    let [out, error] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{args:?} ended with {}:\n{out}{error}", output.status);
    [out, error]
}

#[test]
fn narrow_dtypes_cost_little_time_on_a_processor_without_units_for_them() {
    let model = model("medium");
    let plan = |precision: &str| {
        let common = ["plan", "--json", "--device", "cpu", "--threads", "1", "--model", model.to_str().unwrap()];
        let [said, _] = on_avx2(&[&common[..], &["--resolution", "256", "--mixed-precision", precision]].concat());
        let plan: Value = serde_json::from_str(said.trim()).unwrap();
        (plan["seconds_per_step"].as_f64().unwrap(), plan["slow_dtype"].clone())
    };
    assert!(plan("no").1.is_null());
    assert!(plan("auto").1.is_null());
    for precision in ["bf16", "fp16"] {
        at_its_best(|| {
            let (fp32, narrow) = (plan("no").0, plan(precision).0);
            // By libtorch's own kernels six times.
            let of = format!("{precision}: {narrow:.2} s a step, in fp32 {fp32:.2} s");
            if narrow < 3.0 * fp32 {
                Ok(())
            } else {
                Err(of)
            }
        });
        let warning = plan(precision).1.as_str().unwrap().to_owned();
        assert!(warning.starts_with(precision) && warning.contains("no units for it"), "{warning}");
        assert!(warning.contains("as long as fp32"), "{warning}");
    }
}

#[test]
fn a_run_in_bf16_learns_on_a_processor_without_units_for_it() {
    let (model, photos) = (model("tiny"), photos(5, 0));
    let folder = tempfile::tempdir().unwrap();
    let train = |name: &str, precision: &str| {
        let out = folder.path().join(name);
        let common = ["train", "dreambooth", "--quiet", "--device", "cpu", "--threads", "1", "--max-train-steps", "4"];
        let [model, photos, to] = [&model, &photos, &out].map(|path| path.to_str().unwrap());
        let of = ["--model", model, "--instance-data-dir", photos, "--instance-prompt", "a photo of sks dog"];
        let how = ["--resolution", "64", "--train-text-encoder", "--lora-targets", "to_q,to_v,conv1"];
        let [_, said] =
            on_avx2(&[&common[..], &of, &how, &["--mixed-precision", precision, "--output-dir", to]].concat());
        let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let losses: Vec<f64> = metrics
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap())
            .collect();
        assert_eq!(losses.len(), 4);
        (losses.iter().sum::<f64>(), said)
    };
    let (exact, said) = train("exact", "no");
    assert!(!said.contains("saves memory but no time"), "{said}");
    for precision in ["bf16", "fp16"] {
        let (loss, said) = train(precision, precision);
        assert!((loss / exact - 1.0).abs() < 0.02, "{precision}: loss {loss}, in fp32 {exact}");
        assert!(
            said.contains(&format!("{precision} saves memory but no time on this processor, which has no units")),
            "{said}"
        );
    }
}
