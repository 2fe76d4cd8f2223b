//! Two ranks on the stand-in for a card, where the memory of one can be made full.

use super::support::stand_in::bring_along;
use super::support::{lorabooth_command, read_json};
use super::{assert_losses, dreambooth, losses};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Output, Stdio};

/// What two ranks on one card print; `variables` are the second one's own.
fn on_cards(out: &Path, more: &str, variables: &[(&str, &str)]) -> [Output; 2] {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let args = dreambooth(out, &format!("--device cuda:0 --checkpointing-steps 1 --max-train-steps 3 {more}"));
    let children = [0, 1].map(|rank| {
        let mut command = lorabooth_command(&args);
        bring_along(&mut command);
        let number = rank.to_string();
        command.envs([("RANK", &*number), ("LOCAL_RANK", &*number), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")]);
        command.envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &*port)]);
        if rank == 1 {
            command.envs(variables.iter().copied());
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    children.map(|child| child.wait_with_output().unwrap())
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The numbers of the second rank's allocations from the second step's first to its last.
fn second_step(folder: &Path) -> (u64, u64) {
    let report = folder.join("report.jsonl");
    let outputs = on_cards(&folder.join("counted"), "", &[("FAKE_CUDA_REPORT", report.to_str().unwrap())]);
    outputs.iter().for_each(|output| assert!(output.status.success(), "{}", text(output)));
    let mut number = 0;
    let mut ends: Vec<u64> = super::lines(&report)
        .iter()
        .map(|line| {
            number += line["allocations"].as_u64().unwrap();
            number
        })
        .collect();
    ends.dedup();
    // Before the training, then one for each step.
    let steps = ends.split_off(ends.len().saturating_sub(4));
    (steps[1], steps[2])
}

#[test]
fn two_ranks_on_cards_learn_what_two_on_the_cpu_do() {
    let folder = tempfile::tempdir().unwrap();
    let [cards, cpu] = ["cards", "cpu"].map(|name| folder.path().join(name));
    let outputs = on_cards(&cards, "", &[]);
    outputs.iter().for_each(|output| assert!(output.status.success(), "{}", text(output)));
    assert!(String::from_utf8_lossy(&outputs[0].stdout).contains("gradients by Gloo by way of the host"));
    assert!(outputs[1].stdout.is_empty() && outputs[1].stderr.is_empty(), "the second rank says nothing");
    super::lorabooth_ok(&dreambooth(&cpu, "--max-train-steps 3 --processes 2"));
    assert_losses("cards", &cards, &losses(&cpu), 1e-4);
}

/// Wherever in its step that is: both make the step again, with the same measure, and without a checkpoint of a step that was not made.
#[test]
fn a_full_memory_of_one_rank_is_answered_by_all() {
    let folder = tempfile::tempdir().unwrap();
    let (first, last) = second_step(folder.path());
    let wanted = losses(&folder.path().join("counted"));
    for part in [1, 5, 9] {
        let number = (first + (last - first) * part / 12).to_string();
        let out = folder.path().join(&number);
        let outputs = on_cards(&out, "--on-oom step-down", &[("FAKE_CUDA_FAIL_AT", &number)]);
        outputs.iter().for_each(|output| assert!(output.status.success(), "allocation {number}: {}", text(output)));
        assert!(text(&outputs[0]).contains("another process"), "allocation {number}: {}", text(&outputs[0]));
        let measures = &read_json(out.join("run.json"))["measures"];
        assert_eq!(measures[0]["options"]["gradient_checkpointing"], true, "allocation {number}: {measures}");
        assert_losses("stepped down", &out, &wanted, 1e-4);
    }
    // Without it, both end, and the first says whose memory it was.
    let out = folder.path().join("stopped");
    let outputs = on_cards(&out, "", &[("FAKE_CUDA_FAIL_AT", &((first + last) / 2).to_string())]);
    outputs.iter().for_each(|output| assert_eq!(output.status.code(), Some(1)));
    assert!(text(&outputs[0]).contains("out of memory on another process"), "{}", text(&outputs[0]));
    assert!(text(&outputs[1]).is_empty() || text(&outputs[1]).contains("[rank 1]"), "{}", text(&outputs[1]));
    assert!(out.join("checkpoint-1").exists());
}
