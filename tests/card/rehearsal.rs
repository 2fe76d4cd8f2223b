//! cuDNN's search for fast convolutions: before a run that is long enough, where memory is, with the run's numbers and peak as they are
//! without it.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::stand_in::on_card;
use crate::support::{jobs, model, photos, read_json, words};
use serde_json::Value;

const SEARCHED: &str = "convolution searched";
/// What the stand-in takes for a search, in MiB.
const WORKSPACE: u64 = 1024;

#[test]
fn a_long_run_has_its_convolutions_searched_before_its_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let (out, report) = (folder.path().join("out"), folder.path().join("report"));
    let train = |flags: &str, variables: &[(&str, &str)]| -> (bool, Vec<Value>) {
        let line = format!(
            "train dreambooth --quiet --device cuda --threads 1 --resolution 64 --mixed-precision no --overwrite --model {} \
             --instance-data-dir {} --instance-prompt sks --output-dir {} {flags}",
            model("tiny").display(),
            photos(5, 0).display(),
            out.display()
        );
        let report_to = [("FAKE_CUDA_REPORT", report.to_str().unwrap())];
        let output = on_card(&words(&line), &[&report_to, variables].concat());
        let lines = jobs::lines(&report);
        std::fs::remove_file(&report).unwrap();
        (output.status.success(), lines)
    };
    let losses = || -> Vec<Value> {
        jobs::lines(&out.join("metrics.jsonl")).iter().take(2).map(|line| line["loss"].clone()).collect()
    };
    let (ended, short) = train("--max-train-steps 3", &[]);
    assert!(ended);
    let (expected, allocations) = (losses(), short.last().unwrap()["allocations_so_far"].as_u64().unwrap());
    // Long runs end with their third or fourth step, in which memory is full.
    let end = allocations.to_string();
    let long = "--lr-scheduler constant --max-train-steps";
    for (flags, memory, is_searched) in [
        (format!("{long} 1000"), "4000", true),
        (format!("{long} 999"), "4000", false),
        (format!("{long} 1000 --deterministic"), "4000", false),
        (format!("{long} 1000"), "2000", false),
    ] {
        let (ended, lines) = train(&flags, &[("FAKE_CUDA_MIB", memory), ("FAKE_CUDA_FAIL_AT", &end)]);
        assert!(!ended, "{flags}");
        let searches = lines.iter().filter(|line| line["events"][SEARCHED].is_u64()).count();
        assert_eq!(searches, usize::from(is_searched), "{flags}");
        assert_eq!(losses(), expected, "{flags}");
        let peak = read_json(out.join("run.json"))["peak_memory_bytes"]["device"].as_u64().unwrap() >> 20;
        assert!(peak < WORKSPACE / 2, "{flags}: {peak} MiB");
    }
}
