//! Memory that is full, on the stand-in for a card: wherever an allocation fails, one sentence and a run that goes on from there; and with
//! `--on-oom step-down` a run that helps itself.
//!
//! A step is some 1,500 allocations, of which each run here fails one: a sample of them is tried, another one in each way to train. More ways, and
//! all allocations, are tried in one process by `every_allocation.rs`.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use super::full_memory::{self, dreambooth, language_model, numbers};
use crate::support::jobs::{gpt2, lines, t5};
use crate::support::stand_in::{on_card, on_card_ok};
use crate::support::words;
use crate::support::{model, read_json};
use serde_json::{json, Value};
use std::fs;
use std::path::Path;
use std::process::Output;

/// Failures that are tried of each way to train.
const SAMPLE: u64 = 3;

/// The number of the last allocation before the first step, and of the last of each step: the peak is read there.
fn allocations(args: &[String], folder: &Path) -> Vec<u64> {
    let report = folder.join("report.jsonl");
    on_card_ok(args, &[("FAKE_CUDA_REPORT", report.to_str().unwrap())]);
    let mut number = 0;
    let count = |line: &Value| {
        number += line["allocations"].as_u64().unwrap();
        number
    };
    let mut ends: Vec<u64> = lines(&report).iter().map(count).collect();
    // It is read, too, where nothing has happened since.
    ends.dedup();
    // A training reads it when it begins, after each step and at its end, and some while they load.
    let steps =
        args.iter().rposition(|arg| arg == "--max-train-steps").map(|at| args[at + 1].parse::<usize>().unwrap());
    ends.split_off(steps.map_or(0, |steps| ends.len().saturating_sub(steps + 2)))
}

/// [`full_memory::check_sentence`] of what a program said.
fn check_sentence(output: &Output, which: &str) -> String {
    full_memory::check_sentence(output.status.code(), &String::from_utf8_lossy(&output.stderr), which)
}

/// The numbers from `first` to `last` that are tried, a prime apart, from another one in each way.
fn tried(first: u64, last: u64, way: u64) -> Vec<u64> {
    let apart = ((last - first) / SAMPLE).max(1);
    (first + (way * 37) % apart..=last).step_by(apart as usize).collect()
}

/// Fails allocations of the second step one after the other.
fn fails_well(name: &str, way: u64, args: impl Fn(&Path) -> Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let ends = allocations(&args(&whole), folder.path());
    for (i, number) in tried(ends[1] + 1, ends[2], way).into_iter().enumerate() {
        let which = format!("{name}, allocation {number}");
        let out = folder.path().join(number.to_string());
        let failed = on_card(&args(&out), &[("FAKE_CUDA_FAIL_AT", &number.to_string())]);
        let text = check_sentence(&failed, &which);
        assert!(text.contains("--resume goes on from step"), "{which}: {text}");
        assert_eq!(read_json(out.join("run.json"))["status"], "failed", "{which}");
        if i % 2 == 0 {
            on_card_ok(&[args(&out), vec!["--resume".to_owned()]].concat(), &[]);
            assert!(numbers(&out) == numbers(&whole), "{which}: the resumed run ends elsewhere");
        }
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn any_allocation_of_a_step_can_fail_and_the_run_is_resumed_to_the_same_bits() {
    for (way, more) in ["", "--train-text-encoder --gradient-checkpointing --offload cpu"].into_iter().enumerate() {
        fails_well(more, way as u64, |out| dreambooth(more, out));
    }
}

#[test]
fn any_allocation_of_a_language_models_step_can_fail_and_the_run_is_resumed_to_the_same_bits() {
    let (gpt2, t5) = (gpt2(true), t5());
    fails_well("gpt2", 4, |out| language_model(&gpt2, "", out));
    fails_well("gpt2 in 8 bits", 5, |out| language_model(&gpt2, "--load-in-8bit --gradient-checkpointing", out));
    fails_well("t5", 6, |out| language_model(&t5, "--gradient-checkpointing --offload cpu --lora-dropout 0.1", out));
}

#[test]
fn memory_that_is_full_anywhere_else_is_a_sentence_too() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let gpt2 = gpt2(true);
    let pictures =
        "--max-train-steps 1 --validation-prompt sks --num-validation-images 1 --validation-steps 9 --overwrite";
    let validation =
        format!("--validation-file {} --eval-steps 1 --overwrite", gpt2.folder.join("validation.jsonl").display());
    let generate = format!(
        "generate --device cuda --threads 1 --quiet --model {} --prompt sks --steps 2 --overwrite --output {}",
        model("tiny").display(),
        folder.path().join("a.png").display()
    );
    let language = gpt2.folder.join("model").display().to_string();
    let complete =
        format!("complete --device cuda --threads 1 --quiet --model {language} --prompt one --max-new-tokens 3");
    let jobs = [
        ("samples", dreambooth(pictures, &out)),
        ("evaluation", language_model(&gpt2, &validation, &out)),
        ("generate", words(&generate)),
        ("complete", words(&complete)),
    ];
    for (way, (name, args)) in jobs.into_iter().enumerate() {
        let last = *allocations(&args, folder.path()).last().unwrap();
        fs::remove_file(folder.path().join("report.jsonl")).unwrap();
        for number in tried(1, last, way as u64) {
            let failed = on_card(&args, &[("FAKE_CUDA_FAIL_AT", &number.to_string())]);
            // A picture is decoded again, with the other networks elsewhere.
            if !failed.status.success() {
                check_sentence(&failed, &format!("{name}, allocation {number}"));
            }
        }
    }
}

#[test]
fn a_sample_is_decoded_with_the_other_networks_elsewhere_where_there_is_no_room_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let [without, drawn, helped] = ["without", "drawn", "helped"].map(|name| folder.path().join(name));
    let pictures = "--max-train-steps 1 --validation-prompt sks --num-validation-images 1 --validation-steps 9";
    let of_step = |ends: &[u64]| ends[1] - ends[0];
    let step = of_step(&allocations(&dreambooth("--max-train-steps 1", &without), folder.path()));
    fs::remove_file(folder.path().join("report.jsonl")).unwrap();
    // The picture is drawn before the step, and decoded last: from there on backwards, until a failure is met that costs nothing.
    let ends = allocations(&dreambooth(pictures, &drawn), folder.path());
    let is_helped = |number: u64| {
        let args = dreambooth(&format!("{pictures} --overwrite"), &helped);
        let output = on_card(&args, &[("FAKE_CUDA_FAIL_AT", &number.to_string())]);
        if !output.status.success() {
            check_sentence(&output, &format!("allocation {number}"));
        }
        output.status.success()
    };
    let drawing = ends[0] + 1..=ends[1] - step;
    assert!(drawing.rev().step_by(20).take(20).any(is_helped), "no failure is met while a picture is decoded");
    assert!(numbers(&helped) == numbers(&drawn));
    let picture = |out: &Path| fs::read(out.join("samples/step-000000-0.png")).unwrap();
    assert!(picture(&helped) == picture(&drawn));
}

/// Runs with `more` and `--on-oom step-down` where an allocation fails in the middle of the step after `step`, and without the failure to that
/// step, and from there on with what was `asked` for: they end with the same bits.
fn steps_down(args: impl Fn(&str, &Path) -> Vec<String>, more: &str, step: usize, asked: &str) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let [counted, helped, wanted] = ["counted", "helped", "wanted"].map(|name| folder.path().join(name));
    let ends = allocations(&args(more, &counted), folder.path());
    let fails = [("FAKE_CUDA_FAIL_AT", &*((ends[step] + ends[step + 1]) / 2).to_string())];
    let said = on_card_ok(&args(&format!("{more} --on-oom step-down"), &helped), &fails);
    if step > 0 {
        on_card_ok(&args(&format!("{more} --max-train-steps {step}"), &wanted), &[]);
    }
    let resume = if step > 0 { "--resume" } else { "" };
    on_card_ok(&args(&format!("{asked} {resume}"), &wanted), &[]);
    assert!(numbers(&helped) == numbers(&wanted), "{more} -> {asked}: {said}");
    let record = read_json(helped.join("run.json"));
    assert_eq!(record["status"], "finished");
    let measures = record["measures"].as_array().unwrap().clone();
    assert_eq!(measures.len(), 1, "{measures:?}");
    assert_eq!(measures[0]["because"], "memory_was_full");
    let warning = said.lines().find(|line| line.contains("was full")).unwrap_or_else(|| panic!("{more}: {said}"));
    let cost = measures[0]["costs"].as_str().unwrap();
    assert!(warning.contains("the run goes on with --") && warning.contains(cost), "{warning}");
    measures[0].clone()
}

#[test]
fn a_run_that_stepped_down_ends_as_one_that_began_so() {
    let mut asked = String::new();
    for (flag, options) in [
        ("--gradient-checkpointing", json!({ "gradient_checkpointing": true })),
        ("--slicing", json!({ "slicing": true })),
        ("--offload cpu", json!({ "offload": "cpu" })),
    ] {
        let (before, with) = (asked.clone(), format!("{asked} {flag}"));
        let taken = steps_down(dreambooth, &before, 1, &with);
        assert_eq!((&taken["options"], &taken["step"]), (&options, &json!(1)));
        asked = with;
    }
    // The batch is last. From the first step on the noise of all batches is that of a run which began with smaller ones.
    let rest = format!("{asked} --train-batch-size 2");
    let smaller =
        format!("{asked} --train-batch-size 1 --gradient-accumulation-steps 2 --gradient-accumulation-average present");
    let taken = steps_down(dreambooth, &rest, 0, &smaller);
    assert_eq!(taken["options"], json!({ "train_batch_size": 1, "gradient_accumulation_steps": 2 }));
    assert_eq!(taken["step"], 0);
}

#[test]
fn a_language_models_run_that_stepped_down_ends_as_one_that_began_so() {
    let gpt2 = gpt2(true);
    let args = |more: &str, out: &Path| language_model(&gpt2, more, out);
    steps_down(args, "", 1, "--gradient-checkpointing");
    steps_down(args, "--gradient-checkpointing", 1, "--gradient-checkpointing --offload cpu");
    let rest = "--gradient-checkpointing --offload cpu --train-batch-size 4";
    let smaller = "--gradient-checkpointing --offload cpu --train-batch-size 2 --gradient-accumulation-steps 2 \
        --gradient-accumulation-average present";
    steps_down(args, rest, 0, smaller);
}

#[test]
fn what_a_run_changed_of_itself_holds_when_it_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let [counted, helped, wanted] = ["counted", "helped", "wanted"].map(|name| folder.path().join(name));
    let ends = allocations(&dreambooth("", &counted), folder.path());
    let fails = [("FAKE_CUDA_FAIL_AT", &*((ends[0] + ends[1]) / 2).to_string())];
    on_card_ok(&dreambooth("--on-oom step-down", &helped), &fails);
    // The same command as at the first time, and two more steps.
    on_card_ok(&dreambooth("--resume --max-train-steps 5", &helped), &[]);
    on_card_ok(&dreambooth("--gradient-checkpointing --max-train-steps 5", &wanted), &[]);
    assert!(numbers(&helped) == numbers(&wanted));
    let measures = &read_json(helped.join("run.json"))["measures"];
    assert_eq!(measures[0]["options"], json!({ "gradient_checkpointing": true }), "{measures}");
}

#[test]
fn without_anything_left_to_turn_on_the_run_ends_with_the_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    // No card is so small.
    let failed = on_card(&dreambooth("--on-oom step-down", &out), &[("FAKE_CUDA_MIB", "2")]);
    check_sentence(&failed, "2 MiB");
}

/// 128 pixels are four tiles of this model.
const LARGE: &str = "--cache-latents true --max-train-steps 2 --checkpointing-steps 9";

fn large(more: &str, out: &Path) -> Vec<String> {
    let args = dreambooth("", out).join(" ").replace("--resolution 32", "--resolution 128");
    words(&format!("{args} {LARGE} {more}").replace("--max-train-steps 3 --checkpointing-steps 1 ", ""))
}

#[test]
fn photos_are_encoded_in_tiles_where_there_is_no_room_for_a_whole_one() {
    let folder = tempfile::tempdir().unwrap();
    let [counted, helped, wanted] = ["counted", "helped", "wanted"].map(|name| folder.path().join(name));
    let before = allocations(&large("", &counted), folder.path())[0];
    let taken = tried(1, before, 1).into_iter().rev().find_map(|number| {
        let args = large("--on-oom step-down --overwrite", &helped);
        let output = on_card(&args, &[("FAKE_CUDA_FAIL_AT", &number.to_string())]);
        let record = output.status.success().then(|| read_json(helped.join("run.json")))?;
        let taken = record["measures"][0].clone();
        (taken["options"] == json!({ "vae_tiling": true })).then_some(taken)
    });
    let taken = taken.expect("no failure is met while a photo is encoded");
    assert_eq!((&taken["step"], &taken["because"]), (&json!(0), &json!("memory_was_full")));
    assert!(taken["saves_bytes"].as_u64().unwrap() > 0, "{taken}");
    on_card_ok(&large("--vae-tiling", &wanted), &[]);
    assert!(numbers(&helped) == numbers(&wanted));
    assert!(numbers(&helped) != numbers(&counted));
}

#[test]
fn a_picture_is_decoded_in_tiles_where_there_is_no_room_for_all_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, tiled, helped] = ["whole", "tiled", "helped"].map(|name| folder.path().join(format!("{name}.png")));
    let args = |more: &str, out: &Path| {
        words(&format!(
            "generate --device cuda --threads 1 --model {} --prompt sks --steps 2 --height 128 --width 128 --overwrite --output {} {more}",
            model("tiny").display(),
            out.display()
        ))
    };
    let last = *allocations(&args("", &whole), folder.path()).last().unwrap();
    on_card_ok(&args("--vae-tiling", &tiled), &[]);
    let is_helped = |number: u64| {
        let output = on_card(&args("", &helped), &[("FAKE_CUDA_FAIL_AT", &number.to_string())]);
        let said = String::from_utf8_lossy(&output.stderr);
        output.status.success() && said.contains("decoded tile by tile (--vae-tiling)")
    };
    assert!((1..=last).rev().step_by(20).take(20).any(is_helped), "no failure is met while a picture is decoded");
    let same = |a: &Path, b: &Path| crate::support::psnr(a, b).is_infinite();
    assert!(same(&helped, &tiled) && !same(&helped, &whole));
}
