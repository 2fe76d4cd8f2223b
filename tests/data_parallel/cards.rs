//! Two ranks on the stand-in for a card, where the memory of one can be made full.

use super::{assert_losses, dreambooth, losses};
use crate::support::stand_in::bring_along;
use crate::support::{lorabooth_command, made, read_json};
use serde_json::{json, Value};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::Instant;

/// What ranks on one card print, which all have the variables of `all`, and each its own.
fn ranks_on_cards<const N: usize>(args: &[String], all: &[(&str, &str)], own: [&[(&str, &str)]; N]) -> [Output; N] {
    start_on_cards(args, all, own).map(|child| child.wait_with_output().unwrap())
}

fn start_on_cards<const N: usize>(args: &[String], all: &[(&str, &str)], own: [&[(&str, &str)]; N]) -> [Child; N] {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let count = N.to_string();
    std::array::from_fn(|rank| {
        let mut command = lorabooth_command(args);
        bring_along(&mut command);
        let number = rank.to_string();
        command.envs([
            ("RANK", &*number),
            ("LOCAL_RANK", &*number),
            ("WORLD_SIZE", &*count),
            ("LOCAL_WORLD_SIZE", &*count),
        ]);
        command.envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &*port)]);
        command.envs(all.iter().copied()).envs(own[rank].iter().copied());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    })
}

fn on_card(out: &Path, more: &str) -> Vec<String> {
    dreambooth(out, &format!("--device cuda:0 --checkpointing-steps 1 --max-train-steps 3 {more}"))
}

/// What two ranks of a DreamBooth command print; `variables` are the second one's own.
fn on_cards(out: &Path, more: &str, variables: &[(&str, &str)]) -> [Output; 2] {
    ranks_on_cards(&on_card(out, more), &[], [&[], variables])
}

fn assert_all_succeeded(outputs: &[Output], what: &str) {
    outputs.iter().for_each(|output| assert!(output.status.success(), "{what}: {}", text(output)));
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The numbers of a rank's last allocations before the training, in its first step, in its second one, and so on.
fn allocations(outputs: &[Output], report: &Path) -> Vec<u64> {
    assert_all_succeeded(outputs, "counted");
    let mut ends: Vec<u64> =
        super::lines(report).iter().map(|line| line["allocations_so_far"].as_u64().unwrap()).collect();
    ends.dedup();
    ends
}

/// The numbers of the second rank's allocations from the second step's first to its last.
fn second_step(folder: &Path) -> (u64, u64) {
    let report = folder.join("report.jsonl");
    let outputs = on_cards(&folder.join("counted"), "", &[("FAKE_CUDA_REPORT", report.to_str().unwrap())]);
    let ends = allocations(&outputs, &report);
    // Before the training, then one for each step.
    (ends[ends.len() - 3], ends[ends.len() - 2])
}

/// By NCCL's calls, which begin a sum on a stream of its own and go on, and by way of the host. One rank alone learns what a process without
/// a group does.
#[test]
fn ranks_on_cards_learn_what_those_on_the_cpu_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let flags = "--lora-r 256 --lora-text-encoder-r 256 --gradient-accumulation-steps 2";
    super::lorabooth_ok(&dreambooth(&path("cpu"), &format!("--max-train-steps 3 {flags} --processes 2")));
    for (name, nccl, backend) in
        [("nccl", "1", "gradients by NCCL"), ("gloo", "0", "gradients by Gloo by way of the host")]
    {
        for more in ["", "--gradient-checkpointing"] {
            let (out, report) = (path(&format!("{name}{more}")), path("report.jsonl"));
            let variables = [("FAKE_CUDA_NCCL", nccl), ("FAKE_CUDA_REPORT", report.to_str().unwrap())];
            let args = on_card(&out, &format!("{flags} {more}"));
            let outputs = ranks_on_cards(&args, &variables[..1], [&[], &variables[1..]]);
            assert_all_succeeded(&outputs, name);
            let said = String::from_utf8_lossy(&outputs[0].stdout).into_owned();
            assert!(said.contains(backend), "{said}");
            assert!(outputs[1].stdout.is_empty() && outputs[1].stderr.is_empty(), "the second rank says nothing");
            assert_losses(name, &out, &losses(&path("cpu")), 1e-4);
            let sums = |line: &Value| line["launches"]["ncclAllReduce"].as_i64().unwrap_or(0);
            let sums: i64 = super::lines(&report).iter().map(sums).sum();
            // Several buckets in each of three steps.
            assert!(if nccl == "1" { sums >= 6 } else { sums == 0 }, "{sums} sums by NCCL");
            std::fs::remove_file(report).unwrap();
        }
    }
    let group = [("LORABOOTH_GROUP_OF_ONE", "1")];
    let [alone] = ranks_on_cards(&on_card(&path("alone"), flags), &[], [&[]]);
    let [of_one] = ranks_on_cards(&on_card(&path("of-one"), flags), &group, [&[]]);
    assert_all_succeeded(&[alone, of_one], "one rank");
    assert!(losses(&path("alone")) == losses(&path("of-one")));
    assert!(super::adapter_bytes(&path("alone")) == super::adapter_bytes(&path("of-one")));
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
        assert_all_succeeded(&outputs, &format!("allocation {number}"));
        assert!(text(&outputs[0]).contains("the GPU of rank 1 on "), "allocation {number}: {}", text(&outputs[0]));
        let measures = &read_json(out.join("run.json"))["measures"];
        assert_eq!(measures[0]["options"]["gradient_checkpointing"], true, "allocation {number}: {measures}");
        assert_losses("stepped down", &out, &wanted, 1e-4);
    }
    // Without it, both end, and the first says whose memory it was.
    let out = folder.path().join("stopped");
    let outputs = on_cards(&out, "", &[("FAKE_CUDA_FAIL_AT", &((first + last) / 2).to_string())]);
    outputs.iter().for_each(|output| assert_eq!(output.status.code(), Some(1)));
    let said = text(&outputs[0]);
    assert!(said.contains("out of memory on the GPU of rank 1 on ") && said.contains("Tried to allocate"), "{said}");
    assert!(text(&outputs[1]).is_empty() || text(&outputs[1]).contains("[rank 1]"), "{}", text(&outputs[1]));
    assert!(out.join("checkpoint-1").exists());
    // Behind the exchange of its step, when the other is in the next one: NCCL would wait as long as it is told to.
    let (out, began) = (folder.path().join("behind"), Instant::now());
    let outputs = on_cards(&out, "--timeout 300", &[("FAKE_CUDA_FAIL_AT", &(last - 3).to_string())]);
    outputs.iter().for_each(|output| assert_eq!(output.status.code(), Some(1)));
    let said = text(&outputs[0]);
    assert!(said.contains("rank 1 on ") && said.contains("out of memory on the GPU ("), "{said}");
    assert!(began.elapsed().as_secs() < 120, "the first rank waited for {:?}", began.elapsed());
}

/// Before the training, in the optimizer's first step, and while the first rank draws samples, in which the others wait.
#[test]
fn a_full_memory_outside_a_step_is_answered_by_all() {
    let folder = tempfile::tempdir().unwrap();
    let samples = "--validation-prompt sks --validation-steps 2 --num-validation-images 1";
    let counted = |victim: usize, flags: &str| {
        let name = |what: &str| folder.path().join(format!("{what}-{victim}-{}", flags.len()));
        let (report, out) = (name("report"), name("counted"));
        let variables = [("FAKE_CUDA_REPORT", report.to_str().unwrap())];
        let own: [&[_]; 2] = if victim == 0 { [&variables, &[]] } else { [&[], &variables] };
        let ends = allocations(&ranks_on_cards(&on_card(&out, flags), &[], own), &report);
        (ends, losses(&out))
    };
    // The first rank has a line more, once all is loaded; it draws before the first step and after the second.
    let ((first, wanted), (second, _), (drawing, _)) = (counted(0, ""), counted(1, ""), counted(0, samples));
    for (flags, victim, number, what) in [
        ("", 1, (2 * second[0] - second[1]) / 2, "while all is loaded"),
        ("", 0, first[0] / 2, "while all is loaded"),
        ("", 1, second[0] - 4, "in the optimizer's first step"),
        ("", 0, first[1] - 4, "in the optimizer's first step"),
        (samples, 0, (drawing[2] + drawing[3]) / 2, "while a sample is drawn"),
    ] {
        let number = number.to_string();
        let variables = [("FAKE_CUDA_FAIL_AT", &*number)];
        let own: [&[_]; 2] = if victim == 0 { [&variables, &[]] } else { [&[], &variables] };
        let what = format!("rank {victim} {what}, allocation {number}");
        let out = folder.path().join(&number);
        let outputs = ranks_on_cards(&on_card(&out, &format!("{flags} --on-oom step-down")), &[], own);
        println!("{what}: {}", text(&outputs[0]).trim());
        assert_all_succeeded(&outputs, &what);
        let of = if victim == 0 { "memory of the GPU was full" } else { "memory of the GPU of rank 1 on " };
        assert!(text(&outputs[0]).contains(of), "{what}: {}", text(&outputs[0]));
        assert_losses(&what, &out, &wanted, 1e-4);
        // Without it, both end, and the first says whose memory it was.
        let out = folder.path().join(format!("{number}-stopped"));
        let outputs = ranks_on_cards(&on_card(&out, flags), &[], own);
        println!("{what}: {}", text(&outputs[0]).trim());
        outputs.iter().for_each(|output| assert_eq!(output.status.code(), Some(1), "{what}"));
        let said = text(&outputs[0]);
        assert!(said.contains("out of memory on ") && (victim == 0 || said.contains("rank 1 on ")), "{what}: {said}");
    }
}

/// Sums of a field of the mappings of shared weights in a process, in bytes.
pub fn of_shared_weights(process: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/smaps")).unwrap();
    let (mut is_shared, mut sum) = (false, 0);
    for line in text.lines() {
        match line.split_once(':').filter(|(name, _)| !name.contains(['-', ' '])) {
            None => is_shared = line.contains("memfd:lorabooth-weights"),
            Some((name, value)) if is_shared && name == field => {
                sum += value.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10;
            }
            Some(_) => {}
        }
    }
    sum
}

/// A model of 142 MB in 16 bits with records, trained by two ranks whose frozen weights wait on the host.
pub fn large_language_job(out: &Path, more: &str) -> Vec<String> {
    let config = json!({ "n_positions": 32, "n_embd": 768, "n_layer": 10, "n_head": 12,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0 });
    let options = json!({ "class": "GPT2LMHeadModel", "config": config, "dtype": "bfloat16" });
    let job = made("language_job.py", "job", &options);
    let path = |name: &str| job.join(name).display().to_string();
    super::words(&format!(
        "train llm --device cuda:0 --threads 1 --task causal-lm --mixed-precision fp16 --max-train-steps 3 \
         --train-batch-size 1 --timeout 60 --model {} --train-file {} --output-dir {} {more}",
        path("model"),
        path("train.jsonl"),
        out.display()
    ))
}

#[test]
fn weights_that_wait_on_the_host_are_there_once_and_teach_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let report = path("report.jsonl");
    let variables = [("FAKE_CUDA_REPORT", report.to_str().unwrap())];
    let weights = 10 * 12 * 768 * 768 * 2;
    let children = start_on_cards(&large_language_job(&path("shared"), "--offload cpu"), &[], [&[], &variables]);
    super::faults::wait_for_steps(&path("shared"), 1);
    let [resident, share] = ["Rss", "Pss"]
        .map(|field| children.iter().map(|child| of_shared_weights(child.id(), field)).collect::<Vec<_>>());
    let outputs = children.map(|child| child.wait_with_output().unwrap());
    assert_all_succeeded(&outputs, "shared");
    println!("of {weights} bytes of weights each rank has {resident:?} in memory, of which {share:?} are its share");
    assert!(resident.iter().all(|&bytes| bytes > weights), "{resident:?} of {weights}");
    assert!(share.iter().all(|&bytes| bytes < resident[0] * 51 / 100), "{share:?} of {resident:?}");
    let last = super::lines(&report).pop().unwrap();
    assert!(last["pinned"].as_u64().unwrap() < 1 << 20, "the second rank has pinned weights of its own: {last}");
    assert!(String::from_utf8_lossy(&outputs[0].stdout).contains("pinned once"), "{:?}", outputs[0]);

    assert_all_succeeded(&ranks_on_cards(&large_language_job(&path("stay"), ""), &[], [&[], &[]]), "stay");
    assert!(super::adapter_bytes(&path("shared")) == super::adapter_bytes(&path("stay")));
    // Where the second rank's driver does not do that, it has weights of its own, and the first says so.
    let cannot = [("FAKE_CUDA_REGISTER", "0")];
    let outputs = ranks_on_cards(&large_language_job(&path("own"), "--offload cpu"), &[], [&[], &cannot]);
    assert_all_succeeded(&outputs, "own");
    let said = text(&outputs[0]);
    assert!(said.contains("once more by rank 1 (") && said.contains("operation not supported"), "{said}");
    assert!(super::adapter_bytes(&path("own")) == super::adapter_bytes(&path("stay")));
}
