//! Several processes that train together: the numbers of one process with the same batches, whatever starts them, and an end that names
//! the one that died.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

mod cards;
mod faults;
mod launchers;
mod machines;
mod networks;
mod starts;

use crate::support::jobs::{bert, close, gpt2, lines, llama, t5, Job};
use crate::support::{assert_adapters, interpreter, lorabooth, lorabooth_ok, model, photos, python, read_json, words};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

/// Flags that every run here has: signs of life are waited for as long.
const TIMEOUT: &str = "30";

/// A DreamBooth command on the tiny model; what comes behind it wins.
fn dreambooth(out: &Path, more: &str) -> Vec<String> {
    words(&format!(
        "train dreambooth --model {} --instance-data-dir {} --instance-prompt sks --resolution 32 --learning-rate 1e-3 \
         --train-text-encoder --max-train-steps 6 --mixed-precision no --device cpu --threads 1 --timeout {TIMEOUT} \
         --output-dir {} {more}",
        model("tiny").display(),
        photos(5, 0).display(),
        out.display()
    ))
}

fn losses(out: &Path) -> Vec<f64> {
    lines(&out.join("metrics.jsonl")).iter().map(|line| line["loss"].as_f64().unwrap()).collect()
}

fn numbers(report: &Value, name: &str) -> Vec<f64> {
    report[name].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn assert_losses(what: &str, out: &Path, wanted: &[f64], bound: f64) {
    let actual = losses(out);
    assert_eq!(actual.len(), wanted.len(), "{what}");
    let worst = actual.iter().zip(wanted).map(|(a, b)| (a - b).abs() / b.abs()).fold(0f64, f64::max);
    println!("{what}: losses within {worst:.1e}");
    assert!(worst < bound, "{what}: {actual:?} is not {wanted:?} ({worst:.1e})");
}

/// The bytes of every adapter file of a run.
fn adapter_bytes(out: &Path) -> Vec<Vec<u8>> {
    let files =
        ["unet/adapter_model.safetensors", "text_encoder/adapter_model.safetensors", "adapter_model.safetensors"];
    let found: Vec<_> = files.iter().filter_map(|file| std::fs::read(out.join(file)).ok()).collect();
    assert!(!found.is_empty());
    found
}

/// The initial adapter of a command.
fn start_of(folder: &Path, more: &str) -> PathBuf {
    let start = folder.join("start");
    lorabooth_ok(&dreambooth(&start, &format!("{more} --max-train-steps 0")));
    start
}

/// The options of `dreambooth` as the reference has them.
fn reference_options(start: &Path, more: &Value) -> Value {
    let mut options = json!({ "model": model("tiny"), "instance_data_dir": photos(5, 0), "instance_prompt": "sks",
        "resolution": 32, "learning_rate": 1e-3, "train_text_encoder": true, "max_train_steps": 6, "init_adapter": start });
    options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    options
}

/// Five photos are too few for the last round of batches, which is filled up; the losses shown are those of all ranks.
#[test]
fn two_and_three_ranks_equal_one_process_with_their_draws() {
    let prior = format!("--with-prior-preservation --class-data-dir {} --class-prompt dog", photos(4, 9).display());
    for (ranks, flags, more) in [
        (2, "--center-crop", json!({ "center_crop": true })),
        (3, "--train-batch-size 2", json!({ "train_batch_size": 2 })),
        (
            2,
            &format!("--gradient-accumulation-steps 2 --noise-offset 0.1 --num-class-images 4 {prior}")[..],
            json!({ "gradient_accumulation_steps": 2, "noise_offset": 0.1, "with_prior_preservation": true,
                "class_data_dir": photos(4, 9), "class_prompt": "dog" }),
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let start = start_of(folder.path(), flags);
        let theirs = folder.path().join("theirs");
        let options = json!({ "ranks": ranks, "dreambooth": reference_options(&start, &more) });
        python("data_parallel.py", &[theirs.to_str().unwrap(), &options.to_string()]);
        let expected = read_json(theirs.join("losses.json"));
        for also in ["", "--gradient-checkpointing"] {
            let ours = folder.path().join(format!("ours{also}"));
            let flags = format!("{flags} {also} --init-adapter {} --processes {ranks}", start.display());
            lorabooth_ok(&dreambooth(&ours, &flags));
            let what = format!("{ranks} ranks, {flags}");
            assert_losses(&what, &ours, &numbers(&expected, "losses"), 1e-5);
            for part in ["unet", "text_encoder"] {
                assert_adapters(&format!("{what}, {part}"), &ours.join(part), &theirs.join(part), 1e-3);
            }
            let norms = lines(&ours.join("metrics.jsonl"));
            for (line, wanted) in norms.iter().zip(numbers(&expected, "grad_norms")) {
                close(line["grad_norm"].as_f64().unwrap(), wanted, 1e-4, &what);
            }
        }
    }
}

/// Where nothing is drawn, batches of N ranks are those that one process adds up in N micro-steps.
#[test]
fn ranks_of_each_language_task_and_method_equal_a_process_that_accumulates() {
    let lora = "--gradient-checkpointing";
    let all: Vec<(Job, usize, &str)> = vec![
        (gpt2(false), 2, "--lora-r 4"),
        (gpt2(true), 3, lora),
        (llama(), 2, "--use-dora --use-8bit-adam --max-grad-norm 0.1"),
        (llama(), 2, "--lora-targets embed_tokens,q_proj"),
        (t5(), 2, lora),
        (gpt2(true), 2, "--peft-method prefix-tuning --num-virtual-tokens 3"),
        (bert(), 3, "--learning-rate 0.01"),
        (gpt2(true), 2, "--peft-method prompt-tuning --num-virtual-tokens 3"),
        (llama(), 2, "--peft-method p-tuning --num-virtual-tokens 3"),
        (bert(), 2, "--peft-method p-tuning --num-virtual-tokens 3"),
        (llama(), 2, "--quantize int8"),
        (gpt2(true), 2, "--quantize nf4 --offload cpu"),
        (t5(), 3, "--quantize fp8"),
    ];
    for (job, ranks, more) in &all {
        let folder = tempfile::tempdir().unwrap();
        let [one, several] = ["one", "several"].map(|name| folder.path().join(name));
        let flags = |last: &str| words(&format!("--train-batch-size 2 --max-train-steps 4 {more} {last}"));
        let validation = job.folder.join("validation.jsonl");
        let evaluated = format!("--validation-file {} --eval-steps 4 --eval-max-new-tokens 4", validation.display());
        let run = |out: &Path, last: &str| {
            let flags = flags(last);
            lorabooth_ok(&job.train(out, &flags.iter().map(String::as_str).collect::<Vec<_>>()))
        };
        run(&one, &format!("{evaluated} --gradient-accumulation-steps {ranks}"));
        run(&several, &format!("{evaluated} --processes {ranks} --timeout {TIMEOUT}"));
        let what = format!("{} with {ranks} ranks {more}", job.name);
        assert_losses(&what, &several, &losses(&one), 1e-5);
        // Eight bits of state step over the edge between two codes.
        let bound = if more.contains("8bit") { 1e-2 } else { 1e-4 };
        assert_adapters(&what, &several, &one, bound);
        // Shared out, and the same bits: the first is of one and the same adapter.
        let evaluations = [&one, &several].map(|out| lines(&out.join("evaluations.jsonl")));
        assert_eq!(evaluations[0][0], evaluations[1][0], "{what}");
        let answers =
            [&one, &several].map(|out| std::fs::read_to_string(out.join("predictions.csv")).unwrap_or_default());
        assert_eq!(answers[0].lines().count(), answers[1].lines().count(), "{what}");
    }
}

/// Runs a script in two processes of torchrun.
fn accelerated(out: &Path, options: &Value) {
    let mut command = interpreter();
    command.args(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "data_parallel.py"]);
    let output = command.arg(out).arg(options.to_string()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn two_ranks_equal_accelerate_and_peft_in_two_processes() {
    let folder = tempfile::tempdir().unwrap();
    let start = start_of(folder.path(), "--center-crop");
    let [theirs, ours] = ["theirs", "ours"].map(|name| folder.path().join(name));
    accelerated(&theirs, &json!({ "dreambooth": reference_options(&start, &json!({ "center_crop": true })) }));
    lorabooth_ok(&dreambooth(&ours, &format!("--center-crop --processes 2 --init-adapter {}", start.display())));
    assert_losses("dreambooth", &ours, &numbers(&read_json(theirs.join("losses.json")), "losses"), 1e-4);
    assert_adapters("dreambooth", &ours.join("unet"), &theirs.join("unet"), 1e-3);

    for job in [gpt2(true), t5(), bert()] {
        let folder = tempfile::tempdir().unwrap();
        let [start, theirs, ours] = ["start", "theirs", "ours"].map(|name| folder.path().join(name));
        lorabooth_ok(&job.train(&start, &["--max-train-steps", "3", "--seed", "5"]));
        // 24 records, 5 at a time: the last round is short and filled up.
        let language = json!({ "job": job.folder, "class": job.class, "task": job.task, "adapter": start, "steps": 10,
            "learning_rate": 0.002, "batch": 5, "label": job.label });
        accelerated(&theirs, &json!({ "language": language }));
        let start = start.display().to_string();
        let more = ["--train-batch-size", "5", "--processes", "2", "--timeout", TIMEOUT, "--init-adapter", &start];
        lorabooth_ok(&job.train(&ours, &more));
        assert_losses(job.name, &ours, &numbers(&read_json(theirs.join("losses.json")), "losses"), 1e-4);
        assert_adapters(job.name, &ours, &theirs.join("adapter"), 1e-3);
    }
}

#[test]
fn two_runs_of_three_ranks_end_with_the_same_bits_and_run_json_says_how_many_there_were() {
    let folder = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
    for out in [&one, &two] {
        lorabooth_ok(&dreambooth(out, "--processes 3 --lora-dropout 0.1 --gradient-accumulation-steps 2"));
    }
    assert_eq!(adapter_bytes(&one), adapter_bytes(&two));
    let record = read_json(one.join("run.json"));
    assert_eq!((&record["processes"], &record["status"]), (&json!(3), &json!("finished")));
}

/// Class images are drawn in shares, each with its own seed, so that they are those of one process.
#[test]
fn class_images_of_two_ranks_are_those_of_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let names = |ranks: usize| -> Vec<String> {
        let class = folder.path().join(format!("class{ranks}"));
        let flags = format!(
            "--with-prior-preservation --class-prompt dog --num-class-images 5 --sample-batch-size 2 --class-data-dir {} \
             --max-train-steps 1 --processes {ranks}",
            class.display()
        );
        lorabooth_ok(&dreambooth(&folder.path().join(format!("out{ranks}")), &flags));
        let mut names: Vec<String> =
            std::fs::read_dir(&class).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name.ends_with(".jpg"));
        names.sort();
        names
    };
    let (one, two) = (names(1), names(2));
    assert_eq!(one.len(), 5);
    assert_eq!(one, two);
}

/// Each rank draws a share of them, the third one none of the last round; the first one writes them and draws their grid.
#[test]
fn sample_images_of_three_ranks_are_those_of_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let files = |ranks: usize| {
        let out = folder.path().join(format!("{ranks}"));
        let flags = format!(
            "--learning-rate 1e-30 --max-train-steps 2 --validation-prompt sks --validation-steps 2 --num-validation-images 5 \
             --processes {ranks}"
        );
        lorabooth_ok(&dreambooth(&out, &flags));
        let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(out.join("samples"))
            .unwrap()
            .map(|file| file.unwrap())
            .map(|file| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap()))
            .collect();
        files.sort();
        files
    };
    let (one, three) = (files(1), files(3));
    // At the beginning and at the end, and a grid of each.
    assert_eq!(one.len(), 12);
    assert!(one == three);
}

/// All refuse what the first refuses, in one line.
#[test]
fn a_wrong_command_is_refused_once() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    lorabooth_ok(&dreambooth(&out, "--max-train-steps 1"));
    let refused = lorabooth(&dreambooth(&out, "--max-train-steps 1 --processes 2"));
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1));
    assert!(text.contains("already exists") && text.lines().count() == 1, "{text}");

    let refused = crate::support::lorabooth_command(&dreambooth(&folder.path().join("b"), "--processes 2"))
        .env("RANK", "0")
        .env("WORLD_SIZE", "3")
        .env("LOCAL_WORLD_SIZE", "3")
        .env("MASTER_ADDR", "127.0.0.1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("--processes is 2") && text.contains("started 3"), "{text}");
}
