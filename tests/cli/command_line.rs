//! The command line's contract: which flags it takes, what it prints, and which files it leaves.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::documented::{keys, Documented};
use crate::support::tiny_run::{lines, train};
use crate::support::{self, lorabooth, lorabooth_ok, model, photos, read, read_json, words};
use serde_json::{json, Value};
use std::fs;
use std::path::Path;
use std::process::Command;
use tch::Tensor;

fn elements(path: &Path) -> usize {
    read(path).values().map(Tensor::numel).sum()
}

#[test]
fn the_command_line_of_pefts_readme_runs_as_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    // The README's, but for sizes, and with folders in place of the variables.
    let line = format!(
        "train dreambooth --pretrained_model_name_or_path={} --instance_data_dir={} --class_data_dir={} --output_dir={} \
         --train_text_encoder --with_prior_preservation --prior_loss_weight=1.0 --instance_prompt=sks \
         --class_prompt=dog --resolution=32 --train_batch_size=1 --lr_scheduler=constant --lr_warmup_steps=0 \
         --num_class_images=2 --use_lora --lora_r 16 --lora_alpha 27 --lora_text_encoder_r 16 \
         --lora_text_encoder_alpha 17 --learning_rate=1e-4 --gradient_accumulation_steps=1 --gradient_checkpointing \
         --max_train_steps=3",
        model("tiny").display(),
        photos(5, 0).display(),
        folder.path().join("class").display(),
        out.display()
    );
    lorabooth_ok(&words(&line));
    for (part, alpha) in [("unet", 27.0), ("text_encoder", 17.0)] {
        let config = read_json(out.join(part).join("adapter_config.json"));
        assert_eq!((config["r"].as_i64(), config["lora_alpha"].as_f64()), (Some(16), Some(alpha)), "{part}");
    }
    assert_eq!(fs::read_dir(folder.path().join("class")).unwrap().count(), 2);
    assert_eq!(lines(&out.join("metrics.jsonl")).len(), 3);
}

#[test]
fn every_other_flag_of_pefts_script_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let more = "--center_crop --scale_lr --use_8bit_adam --adam_beta1 0.8 --adam_beta2 0.99 --adam_weight_decay 0.1 \
        --adam_epsilon 1e-7 --max_grad_norm 0.5 --lr_num_cycles 2 --lr_power 2.0 --lora_dropout 0.1 --lora_bias none \
        --lora_text_encoder_dropout 0.1 --lora_text_encoder_bias lora_only --sample_batch_size 2 --num_train_epochs 1 \
        --checkpointing_steps 1 --num_validation_images 1 --validation_steps 2 --validation_prompt sks \
        --logging_dir my_logs --report_to tensorboard --allow_tf32 --mixed_precision no --seed 3 --local_rank -1 \
        --prior_generation_precision fp32 --num_dataloader_workers 1 --no_tracemalloc --hub_token t --hub_model_id m \
        --wandb_key k --wandb_project_name p --enable_xformers_memory_efficient_attention --learning_rate 1e-4";
    lorabooth_ok(&train(&out, more));
    assert!(out.join("my_logs").is_dir());
    let options = &read_json(out.join("run.json"))["options"];
    for (name, value) in [("adam_beta1", 0.8), ("adam_epsilon", 1e-7), ("max_grad_norm", 0.5), ("lr_power", 2.0)] {
        assert_eq!(options[name], json!(value), "{name}");
    }
}

#[test]
fn a_run_leaves_the_files_and_fields_that_are_promised() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let more = format!(
        "--train-text-encoder --with-prior-preservation --class-prompt dog --class-data-dir {} --num-class-images 2 \
         --prior-loss-weight 0.5 --validation-prompt sks --num-validation-images 2 --validation-steps 1 \
         --checkpointing-steps 1 --seed 7",
        photos(3, 1).display()
    );
    lorabooth_ok(&train(&out, &more));
    for name in [
        "unet/adapter_config.json",
        "unet/adapter_model.safetensors",
        "text_encoder/adapter_config.json",
        "text_encoder/adapter_model.safetensors",
        "pytorch_lora_weights.safetensors",
        "run.json",
        "metrics.jsonl",
        "loss.png",
        "logs",
        "samples/step-000001-0.png",
        "samples/step-000002-1.png",
        "checkpoint-1",
        "checkpoint-2",
    ] {
        assert!(out.join(name).exists(), "no {name}");
    }
    let run = read_json(out.join("run.json"));
    let parts = ["unet", "text_encoder"].map(|part| elements(&out.join(part).join("adapter_model.safetensors")));
    assert_eq!(run["trainable_parameters"], json!(parts[0] + parts[1]));
    assert_eq!(
        run["trainable_parameters"],
        json!(elements(&out.join("pytorch_lora_weights.safetensors")) - alphas(&out))
    );
    let weights = ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"];
    let base: usize = weights.iter().map(|name| elements(&model("tiny").join(name))).sum();
    let total = run["total_parameters"].as_u64().unwrap() as usize - parts[0] - parts[1];
    // Buffers such as position ids are in files, but are no parameters.
    assert!(total <= base && total + 200 > base, "{total} of {base}");
    assert_eq!((run["seed"].as_i64(), run["steps"].as_u64()), (Some(7), Some(2)));
    for name in ["lorabooth", "libtorch", "device", "seconds", "peak_memory_bytes"] {
        assert!(!run[name].is_null(), "run.json has no {name}");
    }
    assert!(run["peak_memory_bytes"]["host"].as_u64() > Some(1 << 20));
    let metrics = lines(&out.join("metrics.jsonl"));
    assert_eq!(metrics.len(), 2);
    for (i, line) in metrics.iter().enumerate() {
        let number = |name: &str| line[name].as_f64().unwrap_or_else(|| panic!("no {name} in {line}"));
        assert_eq!(line["step"], json!(i + 1));
        let sum = number("instance_loss") + 0.5 * number("prior_loss");
        assert!((number("loss") - sum).abs() < 1e-5 * sum, "{line}");
        assert!(number("lr") == 1e-4 && number("grad_norm") > 0.0 && number("step_s") > 0.0, "{line}");
        assert!(number("epoch") == 0.0 && number("peak_mib") > 1.0, "{line}");
    }
}

/// Elements of the diffusers file that are alphas, and no weights.
fn alphas(out: &Path) -> usize {
    let tensors = read(out.join("pytorch_lora_weights.safetensors"));
    tensors.iter().filter(|(name, _)| name.ends_with(".alpha")).map(|(_, tensor)| tensor.numel()).sum()
}

#[test]
fn no_steps_write_the_initial_adapter_and_a_run_from_it_is_the_same_run() {
    let folder = tempfile::tempdir().unwrap();
    let [initial, from_it, plain] = ["initial", "from_it", "plain"].map(|name| folder.path().join(name));
    lorabooth_ok(&train(&initial, "--max-train-steps 0 --seed 5"));
    for (name, tensor) in read(initial.join("unet/adapter_model.safetensors")) {
        let zero = tensor.abs().max().double_value(&[]) == 0.0;
        assert_eq!(zero, name.contains("lora_B"), "{name}");
    }
    assert_eq!(lines(&initial.join("metrics.jsonl")).len(), 0);
    lorabooth_ok(&train(&plain, "--seed 5"));
    lorabooth_ok(&train(&from_it, &format!("--seed 5 --init-adapter {}", initial.display())));
    let bytes = |out: &Path| fs::read(out.join("unet/adapter_model.safetensors")).unwrap();
    assert!(bytes(&plain) == bytes(&from_it) && bytes(&plain) != bytes(&initial));
}

#[test]
fn flags_win_over_the_toml_file_and_the_last_flag_wins() {
    let folder = tempfile::tempdir().unwrap();
    let (file, out) = (folder.path().join("run.toml"), folder.path().join("out"));
    let text = "lora_r = 4\nlearning-rate = 1e-3\ntrain_text_encoder = true\ncenter_crop = false\n\
        lora_targets = [\"to_q\", \"to_k\"]\ninstance_prompt = \"a photo of sks dog\"\n";
    fs::write(&file, text).unwrap();
    let mut args = words(&format!("train dreambooth --lora_r 3 --config {} --lora_r 2", file.display()));
    // Not the helper's --instance-prompt, which would win.
    let rest = train(&out, "");
    let prompt = rest.iter().position(|arg| arg == "--instance-prompt").unwrap();
    args.extend(
        rest.iter().enumerate().skip(2).filter(|(i, _)| ![prompt, prompt + 1].contains(i)).map(|(_, arg)| arg.clone()),
    );
    lorabooth_ok(&args);
    let run = read_json(out.join("run.json"));
    for (name, value) in [
        ("lora_r", json!(2)),
        ("learning_rate", json!(1e-3)),
        ("train_text_encoder", json!(true)),
        ("center_crop", json!(false)),
        ("instance_prompt", json!("a photo of sks dog")),
    ] {
        assert_eq!(run["options"][name], value, "{name}");
    }
    let config = read_json(out.join("unet/adapter_config.json"));
    assert_eq!(config["r"], json!(2));
    assert!(read(out.join("unet/adapter_model.safetensors")).keys().all(|key| !key.contains("to_v")));
}

#[test]
fn with_json_every_line_is_an_object_that_names_its_event() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let text = lorabooth_ok(&train(&out, "--json"));
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let named = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    assert!(events.iter().all(|event| event["event"].is_string()), "{text}");
    assert_eq!(named("step"), 2, "{text}");
    assert!(named("wrote") > 0, "{text}");
    let refused = lorabooth(&train(&out, "--json"));
    assert_eq!(refused.status.code(), Some(1));
    let last: Value = serde_json::from_slice(refused.stdout.split(|&b| b == b'\n').rev().nth(1).unwrap()).unwrap();
    assert_eq!(last["event"], "error");
    assert!(last["text"].as_str().unwrap().contains("--overwrite"), "{last}");
    let quiet = lorabooth_ok(&train(&out, "--overwrite -q"));
    assert_eq!(quiet, "");
}

#[test]
fn what_a_run_writes_and_says_is_what_is_documented() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let more = format!(
        "--json --train-text-encoder --with-prior-preservation --class-prompt dog --class-data-dir {} \
         --num-class-images 2 --validation-prompt sks --num-validation-images 2 --validation-steps 1 --checkpointing-steps 1",
        folder.path().join("class").display()
    );
    let said = lorabooth_ok(&train(&out, &more));
    let events: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let documented = Documented::read();
    assert_eq!(documented.undocumented(&events), Default::default());
    let facts: Vec<&str> = events.iter().filter_map(|event| event["name"].as_str()).collect();
    for name in ["model", "device", "memory", "class_images", "photos", "training", "unet", "text_encoder", "output"] {
        assert!(facts.contains(&name), "no fact `{name}` in {facts:?}");
        // As values too, and not in words alone.
        let fact = events.iter().find(|event| event["name"] == name).unwrap();
        assert!(keys(fact).intersection(&documented.facts()[name]).count() > 0, "{fact}");
    }
    let phases: Vec<&str> = events.iter().filter_map(|event| event["phase"].as_str()).collect();
    for phase in ["class images", "encoding", "training", "sampling", "writing"] {
        assert!(phases.contains(&phase), "no phase `{phase}` in {phases:?}");
    }
    let sampled = events.iter().find(|event| event["phase"] == "class images").unwrap();
    // Two images at once, of 50 steps.
    assert_eq!((sampled["total"].as_u64(), sampled["unit"].as_str()), (Some(50), Some("sampler steps")));
    for line in lines(&out.join("metrics.jsonl")) {
        assert_eq!(keys(&line), documented.fields("metrics.jsonl"));
    }
    let run = read_json(out.join("run.json"));
    let mut fields = keys(&run);
    for name in ["seconds", "peak_memory_bytes"] {
        fields.remove(name);
        fields.extend(keys(&run[name]).iter().map(|inner| format!("{name}.{inner}")));
    }
    assert_eq!(fields, documented.fields("run.json"));
    let finished = events.last().unwrap();
    assert_eq!(keys(finished), documented.fields("finished"));
}

#[test]
fn samples_are_one_line_and_one_grid() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let said = lorabooth_ok(&train(&out, "--validation-prompt sks --num-validation-images 4 --validation-steps 2"));
    let wrote: Vec<&str> = said.lines().filter(|line| line.contains("samples")).collect();
    assert!(wrote.len() == 2 && wrote[1].contains("step-000002-grid.png, of 4 images"), "{said}");
    let [one, all] = ["step-000002-3.png", "step-000002-grid.png"]
        .map(|name| image::open(out.join("samples").join(name)).unwrap().to_rgb8());
    let (side, gap) = (one.width(), all.width() - 2 * one.width());
    assert_eq!(all.dimensions(), (2 * side + gap, 2 * side + gap));
    let corner = image::imageops::crop_imm(&all, side + gap, side + gap, side, side).to_image();
    assert!(corner == one, "the last image is not in its place");
}

#[test]
fn short_names_of_flags_are_those_flags_also_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let [typed, filed] = ["typed", "filed"].map(|name| folder.path().join(name));
    let common = format!(
        "train dreambooth --model {} --instance-data-dir {} --instance-prompt sks --resolution 32 --mixed-precision no \
         --device cpu --threads 1",
        model("tiny").display(),
        photos(5, 0).display()
    );
    let typed_flags = "--steps 1 --batch_size 2 --lr 1e-3 --network_dim 4 --network-alpha 6";
    lorabooth_ok(&words(&format!("{common} {typed_flags} --output {}", typed.display())));
    let file = folder.path().join("run.toml");
    let text = format!(
        "steps = 1\nbatch_size = 2\nlr = 1e-3\nrank = 4\nnetwork_alpha = 6\noutput = {:?}\n",
        filed.display().to_string()
    );
    fs::write(&file, text).unwrap();
    lorabooth_ok(&words(&format!("{common} --config {}", file.display())));
    for out in [typed, filed] {
        let options = &read_json(out.join("run.json"))["options"];
        for (name, value) in [
            ("max_train_steps", json!(1)),
            ("train_batch_size", json!(2)),
            ("learning_rate", json!(1e-3)),
            ("lora_r", json!(4)),
            ("lora_alpha", json!(6.0)),
        ] {
            assert_eq!(options[name], value, "{name}");
        }
    }
}

#[test]
fn a_plan_answers_for_cards_that_are_elsewhere_and_by_its_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    configurations(folder.path(), false);
    let plan = |more: &str| {
        let output = lorabooth(&words(&format!("plan --json --model {} {more}", folder.path().display())));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), serde_json::from_str::<Value>(text.trim()).unwrap_or_else(|_| json!({ "said": text })))
    };
    let documented = Documented::read().fields("plan");
    // (flags, exit code, dtype, bytes that it must fit in)
    for (more, code, dtype, budget) in [
        ("--device cpu --mixed-precision no --fit 8", 0, "fp32", Some(8e9)),
        ("--device cpu --mixed-precision no --fit 0.1", 1, "fp32", Some(1e8)),
        ("--device cuda --fit 8GB", 0, "bf16", Some(8e9)),
        ("--for t4", 0, "fp16", None),
        ("--for 3060", 0, "bf16", None),
    ] {
        let (status, plan) = plan(more);
        assert_eq!(status, Some(code), "{more}: {plan}");
        assert_eq!(keys(&plan), documented, "{more}");
        assert_eq!(plan["dtype"], dtype, "{more}");
        assert_eq!(plan["fits"], json!(code == 0), "{more}");
        let is_here = more.contains("cpu");
        assert_eq!(plan["seconds_per_step"].is_null(), !is_here, "{more}");
        assert_eq!(plan["assumed"].as_str().unwrap_or_default().contains("compute capability"), !is_here, "{more}");
        match budget {
            Some(bytes) => assert_eq!(plan["budget_bytes"].as_f64(), Some(bytes), "{more}"),
            // Less than what is sold, and not much less.
            None => {
                let sold = if more.contains("t4") { 16.0 } else { 12.0 };
                let share = plan["budget_bytes"].as_f64().unwrap() / (sold * f64::from(1 << 30));
                assert!((0.85..0.98).contains(&share), "{more}: {share}");
            }
        }
    }
    let suggested = plan("--for t4 --mixed-precision no --train-batch-size 16").1["suggestions"].to_string();
    assert!(suggested.contains("--mixed-precision fp16") && !suggested.contains("bf16"), "{suggested}");
    for (more, words) in [
        ("--for voodoo", "--for"),
        ("--for t4 --fit 8", "--fit"),
        ("--for t4 --device cpu", "--device cpu"),
        ("--fit 8bananas", "--fit"),
    ] {
        let output = lorabooth(&[&["plan", "--model", "x"], words_of(more).as_slice()].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() != Some(0) && said.contains(words), "{more}: {said}");
    }
    let help = lorabooth_ok(&["plan", "--help"]);
    assert!(help.contains("--fit <SIZE>") && help.contains("lorabooth plan --model"), "{help}");
}

fn words_of(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

#[test]
fn shells_complete_flags_and_their_short_names() {
    for shell in ["bash", "zsh", "fish"] {
        let script = lorabooth_ok(&["completion", shell]);
        for flag in ["instance-data-dir", "network-dim", "steps", "lr"] {
            assert!(script.contains(flag), "{shell}: {flag}");
        }
    }
    let script = tempfile::NamedTempFile::new().unwrap();
    fs::write(script.path(), lorabooth_ok(&["completion", "bash"])).unwrap();
    let complete = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let program = format!(
            "source {}; COMP_WORDS=({line}); COMP_CWORD={}; _lorabooth lorabooth '{}' '{}'; echo \"${{COMPREPLY[@]}}\"",
            script.path().display(),
            words.len() - 1,
            words[words.len() - 1],
            words[words.len() - 2]
        );
        let output = Command::new("bash").args(["--norc", "-c", &program]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(complete("lorabooth tr").contains("train"));
    let flags = complete("lorabooth train dreambooth --net");
    assert!(flags.contains("--network-dim") && flags.contains("--network-alpha"), "{flags}");
    // A plan's flags may stand behind the word alone.
    let flags = complete("lorabooth plan --");
    for flag in ["--fit", "--instance-data-dir", "--train-file", "--lora-r", "--task"] {
        assert!(flags.split_whitespace().any(|known| known == flag), "{flag} is not in {flags}");
    }
    assert_eq!(flags.split_whitespace().filter(|flag| *flag == "--model").count(), 1, "{flags}");
    let samplers = complete("lorabooth generate --scheduler eul");
    assert!(samplers.contains("euler") && samplers.contains("euler-a"), "{samplers}");
}

#[test]
fn a_plan_of_a_training_says_how_it_is_asked_for() {
    for (line, what) in [("plan train dreambooth --lora-r 8", "dreambooth"), ("-q plan train llm", "llm")] {
        let output = lorabooth(&words_of(line));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.contains(&format!("`lorabooth plan {what}` takes the flags of `lorabooth train {what}`")),
            "{said}"
        );
        assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{said}");
    }
}

#[test]
fn manual_pages_are_written_for_every_command_and_over_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("man");
    let line = ["man", "--output", to.to_str().unwrap()];
    lorabooth_ok(&line);
    for page in ["lorabooth.1", "lorabooth-train-dreambooth.1", "lorabooth-adapter-merge.1", "lorabooth-plan.1"] {
        let text = fs::read_to_string(to.join(page)).unwrap();
        assert!(text.contains(".TH") && text.contains("NAME"), "{page}");
    }
    let text = fs::read_to_string(to.join("lorabooth-train-dreambooth.1")).unwrap();
    assert!(text.contains("network\\-dim") && text.contains("train dreambooth"), "{text}");
    let again = lorabooth(&line);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("--overwrite"));
    lorabooth_ok(&[&line[..], &["--overwrite"]].concat());
}

#[test]
fn the_command_that_a_run_ends_with_makes_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let mut args = train(Path::new("x"), "");
    let out = args.iter().position(|arg| arg == "--output-dir").unwrap() + 1;
    args.truncate(out);
    args.push(folder.path().join("my run").display().to_string());
    args.extend(["--instance-prompt".to_owned(), "a \"sks\" dog's $HOME `x`".to_owned()]);
    let said = lorabooth_ok(&args);
    let line = said.lines().last().unwrap().split_once("lorabooth generate").unwrap().1;
    let binary = Path::new(env!("CARGO_BIN_EXE_lorabooth")).parent().unwrap();
    let output = Command::new("sh")
        .args(["-c", &format!("lorabooth generate{line} --steps 1 --height 32 --width 32 --device cpu --threads 1")])
        .current_dir(folder.path())
        .env("PATH", format!("{}:{}", binary.display(), std::env::var("PATH").unwrap()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    let picture = fs::read(folder.path().join("try.png")).unwrap();
    let text = String::from_utf8_lossy(&picture);
    assert!(text.contains("a \"sks\" dog's $HOME `x`"), "the prompt in the picture is another one");
}

#[test]
fn doctor_says_what_is_here() {
    let report: Value = serde_json::from_str(lorabooth_ok(&["doctor", "--json"]).trim()).unwrap();
    for name in ["libtorch", "cores", "threads", "memory_free_bytes", "cuda_devices", "problems"] {
        assert!(!report[name].is_null(), "{name}");
    }
    let documented = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/files.md")).unwrap();
    let (_, documented) = documented.split_once("### `doctor --json`").unwrap();
    let (documented, _) = documented.split_once("\n### ").unwrap();
    let fields: Vec<&str> = documented.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let mut found: Vec<&String> = report.as_object().unwrap().keys().collect();
    found.sort_by_key(|name| fields.iter().position(|field| field == name));
    assert_eq!(found, fields);
    let prose = lorabooth_ok(&["doctor"]);
    assert!(["libtorch", "CPU", "memory", "problem"].iter().all(|word| prose.contains(word)), "{prose}");
}

#[test]
fn tokenize_gives_the_ids_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    support::python("clip_tokenizer.py", &[folder.path().to_str().unwrap()]);
    let texts: Vec<String> = serde_json::from_value(read_json(folder.path().join("texts.json"))).unwrap();
    let lines: Vec<String> = texts.iter().map(|text| json!(text).to_string()).collect();
    let file = folder.path().join("lines.json");
    fs::write(&file, lines.join("\n")).unwrap();
    let expected = read_json(folder.path().join("ids.json"));
    for layout in ["sd1", "sd2_saved"] {
        let model = folder.path().join(layout).display().to_string();
        let said = lorabooth_ok(&["tokenize", "--model", &model, "--json-lines", file.to_str().unwrap()]);
        let ids: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(Value::from(ids) == expected[layout], "{layout}");
    }
}

/// A model folder of configurations alone, of Stable Diffusion 1.5's shapes or 2.1's.
fn configurations(folder: &Path, second: bool) {
    let text = match second {
        false => {
            json!({ "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12 })
        }
        true => {
            json!({ "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 23 })
        }
    };
    let unet = match second {
        false => json!({ "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8 }),
        true => json!({ "sample_size": 64, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
                        "use_linear_projection": true }),
    };
    let vae = json!({
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
        "down_block_types": vec!["DownEncoderBlock2D"; 4], "up_block_types": vec!["UpDecoderBlock2D"; 4],
    });
    let scheduler = json!({ "_class_name": "PNDMScheduler" });
    for (name, config) in [
        ("unet/config.json", unet),
        ("vae/config.json", vae),
        ("text_encoder/config.json", text),
        ("scheduler/scheduler_config.json", scheduler),
        ("model_index.json", json!({ "_class_name": "StableDiffusionPipeline" })),
    ] {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, config.to_string()).unwrap();
    }
}

#[test]
fn plan_counts_the_trained_parameters_of_stable_diffusion_from_configurations_alone() {
    // Published sizes of adapters: 8.8 MB at rank 16 for 1.x, and what follows from the same shapes.
    for (second, more, trained) in [
        (false, "--train-text-encoder --lora-r 16 --lora-text-encoder-r 16", 1_594_368 + 589_824),
        (false, "--train-text-encoder", 797_184 + 294_912),
        (false, "", 797_184),
        (true, "--train-text-encoder --lora-r 16 --lora-text-encoder-r 16", 1_659_904 + 1_507_328),
    ] {
        let folder = tempfile::tempdir().unwrap();
        configurations(folder.path(), second);
        let line = format!(
            "plan --json --model {} --device cpu --fit 6GB --mixed-precision no {more}",
            folder.path().display()
        );
        let said = lorabooth_ok(&words(&line));
        let plan: Value = serde_json::from_str(said.trim()).unwrap();
        assert_eq!(plan["trained_parameters"], json!(trained), "{more}");
        let peak = plan["peak_bytes"].as_f64().unwrap();
        assert!((3e9..40e9).contains(&peak), "{more}: {peak}");
        assert!(plan["fits"].is_boolean() && plan["fitted_peak_bytes"].as_f64().unwrap() <= peak, "{said}");
        if peak > 6e9 {
            let first = &plan["suggestions"][0];
            assert!(first["what"].as_str().is_some_and(|what| what.contains("--")), "{said}");
        }
    }
}

#[test]
fn help_and_version_are_no_mistakes() {
    for line in
        ["--help", "--version", "train dreambooth --help", "generate --help", "adapter convert --help", "plan -h"]
    {
        let output = lorabooth(&words(line));
        assert_eq!(output.status.code(), Some(0), "{line}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{line}");
    }
}

#[test]
fn a_full_standard_output_is_an_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = support::lorabooth_command(&["doctor"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("standard output") && said.lines().count() == 1, "{said}");
}
