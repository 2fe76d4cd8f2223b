//! What `lorabooth train llm` says: how weights are kept, and a command that tries the adapter.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

#[path = "support/jobs.rs"]
mod jobs;
mod support;

use jobs::{gpt2, Job};
use std::path::Path;
use support::lorabooth_ok;

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
