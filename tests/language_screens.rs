//! What `lorabooth train llm` says: how weights are kept, and a command that tries the adapter.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

#[path = "support/jobs.rs"]
mod jobs;
mod support;

use jobs::{bert, gpt2, lines, t5, Job};
use std::path::Path;
use std::process::Command;
use support::lorabooth_ok;
use tempfile::TempDir;

/// What a run of no steps says.
fn said(job: &Job, out: &Path, more: &[&str]) -> String {
    let mut args = job.train(out, &[&["--max-train-steps", "0"], more].concat());
    args.retain(|arg| arg != "--quiet");
    lorabooth_ok(&args)
}

#[test]
fn the_first_screen_says_how_weights_are_kept() {
    let (job, folder) = (gpt2(true), tempfile::tempdir().unwrap());
    let line = |name: &str, more: &[&str]| {
        let said = said(&job, &folder.path().join(name), more);
        said.lines().find_map(|line| line.trim_start().strip_prefix("weights  ")).map(str::to_owned)
    };
    assert_eq!(line("plain", &[]), None);
    let int8 = line("int8", &["--load-in-8bit", "--int8-threshold", "4.5"]).unwrap();
    assert_eq!(int8, "linear layers in 8 bits; inputs of 4.5 or more are computed in 16");
    assert_eq!(line("offload", &["--offload", "cpu"]).unwrap(), "in their files, each block brought for its use");
}

/// The command that a run of `job` closes with.
fn command(job: &Job, more: &[&str]) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let said = said(job, &folder.path().join("an adapter"), more);
    let command = said.lines().last().unwrap().strip_prefix("try it:  lorabooth ").unwrap_or_else(|| panic!("{said}"));
    (folder, command.to_owned())
}

/// What the command says in bash: the text, and what is beside it.
fn tried(command: &str) -> [String; 2] {
    let script = format!("{} {command} --device cpu --dtype fp32", env!("CARGO_BIN_EXE_lorabooth"));
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    let [text, beside] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success() && !beside.contains("warning"), "{script}: {beside}");
    [text, beside]
}

#[test]
fn a_run_closes_with_a_command_that_tries_the_adapter() {
    let (job, summary, classifier) = (gpt2(true), t5(), bert());
    let validation = job.folder.join("validation.jsonl");
    let first = |file: &str| lines(&job.folder.join(file))[0]["text"].as_str().unwrap().to_owned();
    let template = ["--prompt-template", "<user>\nit's {text}\n<robot>\n"];
    for (job, more, words) in [
        (&job, &[][..], vec![format!("--prompt '{}'", first("train.jsonl"))]),
        (&job, &["--validation-file", validation.to_str().unwrap()], vec![first("validation.jsonl")]),
        (&job, &template, vec![format!(r"--prompt $'<user>\nit\'s {}\n<robot>\n'", first("train.jsonl"))]),
        (&job, &["--prompt-template=-{text}"], vec![format!("--prompt='-{}'", first("train.jsonl"))]),
        (&summary, &[], vec![format!("--prompt '{}'", first("train.jsonl"))]),
        (&classifier, &[], vec![format!("--prompt '{}'", first("train.jsonl"))]),
        (&job, &["--load-in-8bit"], vec!["--load-in-8bit --max-new-tokens".to_owned()]),
        (&job, &["--load-in-8bit", "--int8-threshold", "3"], vec!["--int8-threshold 3".to_owned()]),
        (&job, &["--offload", "cpu"], vec!["--offload cpu".to_owned()]),
        (&job, &["--peft-method", "prefix-tuning"], vec!["--max-new-tokens".to_owned()]),
    ] {
        let (_folder, command) = command(job, more);
        words.iter().for_each(|word| assert!(command.contains(word), "{command} lacks {word}"));
        let [text, beside] = tried(&command);
        // What has learned nothing may end at once.
        assert!(beside.contains("adapter  ") && text.ends_with('\n'), "{command}: {text}");
    }
}
