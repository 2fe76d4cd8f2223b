//! Ranks that die, hang or are stopped, and runs that go on.

use super::{adapter_bytes, dreambooth, losses};
use crate::support::{interpreter, lorabooth, lorabooth_command, lorabooth_ok, read_json};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A run with everything that has a state.
pub const EVERYTHING: &str =
    "--lora-dropout 0.1 --gradient-accumulation-steps 2 --lr-scheduler cosine --noise-offset 0.1 \
    --checkpointing-steps 2 --max-train-steps 12";

pub fn start(command: &[String]) -> Child {
    lorabooth_command(command).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The processes that `launcher` started, by rank.
pub fn ranks_of(launcher: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap_or_default();
    let rank = |pid: &u32| {
        let variables = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let variables = String::from_utf8_lossy(&variables).into_owned();
        variables.split('\0').find_map(|pair| pair.strip_prefix("RANK=")?.parse::<usize>().ok())
    };
    let mut found: Vec<u32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    found.retain(|pid| rank(pid).is_some());
    found.sort_by_key(rank);
    found
}

pub fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

/// Waits for lines of the log: steps that are done.
pub fn wait_for_steps(out: &Path, steps: usize) {
    let began = Instant::now();
    let done = || fs::read_to_string(out.join("metrics.jsonl")).map_or(0, |text| text.lines().count());
    while done() < steps {
        assert!(began.elapsed() < Duration::from_secs(120), "no step {steps} in {}", out.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What it printed, once it has ended, which must be within `seconds`.
pub fn end_of(mut child: Child, seconds: u64) -> Output {
    let until = Instant::now() + Duration::from_secs(seconds);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("the run did not end within {seconds} s");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

fn assert_all_are_gone(ranks: &[u32]) {
    for pid in ranks {
        assert!(!Path::new(&format!("/proc/{pid}/exe")).exists(), "process {pid} is still there");
    }
}

/// Every checkpoint can be read, and nothing is half written.
pub fn assert_whole(out: &Path) {
    for entry in fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_name().unwrap().to_str().unwrap().to_owned();
        if name.starts_with("checkpoint-") {
            read_json(entry.join("state.json"));
            for part in ["unet", "text_encoder"] {
                crate::support::read(entry.join(part).join("adapter_model.safetensors"));
            }
        }
    }
}

/// The bits of a run that is never stopped.
pub fn unstopped(folder: &Path, more: &str) -> (Vec<Vec<u8>>, Vec<f64>) {
    let out = folder.join("unstopped");
    lorabooth_ok(&dreambooth(&out, &format!("{EVERYTHING} {more}")));
    (adapter_bytes(&out), losses(&out))
}

#[test]
fn a_rank_that_is_killed_is_named_and_the_resumed_run_ends_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = unstopped(folder.path(), "--processes 3");
    for (victim, steps) in [(2usize, 3), (0, 5), (usize::MAX, 4)] {
        let out = folder.path().join(format!("killed-{victim}"));
        let command = dreambooth(&out, &format!("{EVERYTHING} --processes 3"));
        let child = start(&command);
        wait_for_steps(&out, steps);
        let ranks = ranks_of(child.id());
        assert_eq!(ranks.len(), 3);
        match ranks.get(victim) {
            Some(&rank) => signal(rank, "-9"),
            None => ranks.iter().for_each(|&rank| signal(rank, "-9")),
        }
        let ended = end_of(child, 25);
        let text = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(!ended.status.success(), "{text}");
        if victim < 3 {
            assert!(text.contains(&format!("rank {victim} on ")) && text.contains("after step "), "{text}");
        }
        if victim == 2 {
            assert!(text.contains("the last checkpoint is ") && text.contains("--resume"), "{text}");
            assert!(text.contains("[rank 1]"), "{text}");
        }
        assert_all_are_gone(&ranks);
        assert_whole(&out);
        lorabooth_ok(&[command, vec!["--resume".to_owned()]].concat());
        assert!((adapter_bytes(&out), losses(&out)) == wanted, "killed {victim}");
    }
}

/// As many kills at moments that nothing knows, as `LORABOOTH_KILLS` says: of one rank, of all, of the launcher.
#[test]
fn kills_at_random_moments_leave_no_hang_and_no_half_file() {
    let kills: u64 = std::env::var("LORABOOTH_KILLS").map_or(3, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let wanted = unstopped(folder.path(), "--processes 2");
    let out = folder.path().join("out");
    let mut random = u64::from(std::process::id()) * 7919 + 1;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let command = dreambooth(&out, &format!("{EVERYTHING} --checkpointing-steps 1 --processes 2"));
    let mut landed = 0;
    while landed < kills {
        let resume = if out.join("run.json").exists() { vec!["--resume".to_owned()] } else { Vec::new() };
        if !resume.is_empty() && read_json(out.join("run.json"))["status"] == "finished" {
            assert!((adapter_bytes(&out), losses(&out)) == wanted, "after {landed} kills");
            fs::remove_dir_all(&out).unwrap();
            continue;
        }
        let child = start(&[command.clone(), resume].concat());
        std::thread::sleep(Duration::from_millis(300 + next(5000)));
        let ranks = ranks_of(child.id());
        let Some(&rank) = ranks.get(next(2) as usize) else {
            end_of(child, 60);
            continue;
        };
        let (what, launcher) = (next(4), child.id());
        match what {
            0 => ranks.iter().for_each(|&rank| drop(Command::new("kill").args(["-9", &rank.to_string()]).status())),
            1 => drop(Command::new("kill").args(["-9", &launcher.to_string()]).status()),
            _ => drop(Command::new("kill").args(["-9", &rank.to_string()]).status()),
        }
        landed += 1;
        let ended = end_of(child, 30);
        // Without their launcher they end by themselves.
        let until = Instant::now() + Duration::from_secs(30);
        while ranks.iter().any(|pid| Path::new(&format!("/proc/{pid}/exe")).exists()) {
            assert!(Instant::now() < until, "kill {landed} ({what}) left a process behind");
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("kill {landed} ({what}): {}, {}", ended.status, String::from_utf8_lossy(&ended.stderr).trim());
        if out.exists() {
            assert_whole(&out);
        }
    }
    if out.exists() {
        let resume = if out.join("run.json").exists() { vec!["--resume".to_owned()] } else { Vec::new() };
        lorabooth_ok(&[command, resume].concat());
        assert!((adapter_bytes(&out), losses(&out)) == wanted, "after all kills");
    }
}

#[test]
fn a_rank_that_hangs_is_named_within_the_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let child = start(&dreambooth(&out, "--max-train-steps 5000 --checkpointing-steps 2 --processes 2 --timeout 5"));
    wait_for_steps(&out, 3);
    let ranks = ranks_of(child.id());
    signal(ranks[1], "-STOP");
    let ended = end_of(child, 5 + 12);
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success());
    assert!(
        text.contains("rank 1 on ") && text.contains("hangs") && text.contains("the last checkpoint is "),
        "{text}"
    );
    assert_all_are_gone(&ranks);
    assert_whole(&out);
}

/// The signal reaches one of them alone: all stop after the same step, with its checkpoint.
#[test]
fn a_rank_that_is_asked_to_stop_stops_all_in_the_same_step() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = unstopped(folder.path(), "--processes 2");
    for (name, by_launcher) in [("launcher", true), ("rank", false)] {
        let out = folder.path().join(name);
        let command = dreambooth(&out, &format!("{EVERYTHING} --processes 2"));
        let child = start(&command);
        wait_for_steps(&out, 3);
        let target = if by_launcher { child.id() } else { ranks_of(child.id())[1] };
        signal(target, "-INT");
        let ended = end_of(child, 30);
        let text = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(130), "{text}");
        assert!(text.starts_with("interrupted: step ") && text.trim().lines().count() == 1, "{text}");
        lorabooth_ok(&[command, vec!["--resume".to_owned()]].concat());
        assert!((adapter_bytes(&out), losses(&out)) == wanted, "{name}");
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks_and_says_what_changes() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    lorabooth_ok(&dreambooth(&out, "--max-train-steps 3 --checkpointing-steps 1 --processes 2"));
    let before = losses(&out);
    let warning = |flags: &str| {
        let output = lorabooth(&dreambooth(&out, flags));
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let said = warning("--max-train-steps 6 --resume");
    assert!(said.contains("the checkpoint is of 2 processes, and this run has 1 process"), "{said}");
    let after = losses(&out);
    assert!(after.len() == 6 && after[..3] == before[..]);
    let said = warning("--max-train-steps 8 --resume --processes 3");
    assert!(said.contains("the checkpoint is of 1 process, and this run has 3 processes"), "{said}");
    assert_eq!(losses(&out).len(), 8);
    assert_eq!(read_json(out.join("checkpoint-8/state.json"))["ranks"], json!(3));
}

/// torchrun starts all ranks again when one dies, with the same command: they go on from the last checkpoint.
#[test]
fn torchrun_starts_the_ranks_and_starts_them_again_after_one_died() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = unstopped(folder.path(), "--processes 2");
    let out = folder.path().join("out");
    let mut command = interpreter();
    command.args("-m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 2 --no-python".split(' '));
    command.arg(env!("CARGO_BIN_EXE_lorabooth")).args(dreambooth(&out, EVERYTHING));
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_steps(&out, 5);
    let ranks = ranks_of(child.id());
    assert_eq!(ranks.len(), 2);
    signal(ranks[1], "-9");
    let ended = end_of(child, 90);
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    assert!((adapter_bytes(&out), losses(&out)) == wanted);
    assert!(read_json(out.join("run.json"))["resumed"]["step"].as_u64().unwrap() > 0);
}

/// The first rank alone saves, and draws: on this disk longer than the timeout, for which exchanges wait.
#[test]
fn ranks_wait_for_one_that_works_longer_than_the_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let (source, library) =
        (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data_parallel/slow_disk.c"), folder.path().join("slow.so"));
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl").output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let more = "--validation-prompt sks --validation-steps 3 --num-validation-images 1 --checkpointing-steps 2 --max-train-steps 6";
    let run = |name: &str, library: Option<&Path>| {
        let out = folder.path().join(name);
        let mut command = lorabooth_command(&dreambooth(&out, &format!("{more} --processes 2 --timeout 5")));
        command.envs(library.map(|library| ("LD_PRELOAD", library)));
        let (began, ended) = (Instant::now(), command.output().unwrap());
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        (adapter_bytes(&out), losses(&out), began.elapsed())
    };
    let (quick, slow) = (run("quick", None), run("slow", Some(&library)));
    assert!(quick.0 == slow.0 && quick.1 == slow.1);
    assert!(slow.2 > Duration::from_secs(16), "the disk was not slow: {:?}", slow.2);
}

/// The first rank's disk is full: it says so, and all end.
#[test]
fn a_full_disk_of_the_first_rank_ends_all() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(&disk).output().unwrap();
    if !mounted.status.success() {
        return println!("skipped: nothing can be mounted here");
    }
    let out = disk.join("out");
    let child = start(&dreambooth(&out, "--checkpointing-steps 1 --max-train-steps 5000 --processes 2"));
    let ended = end_of(child, 60);
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    let unmounted = Command::new("umount").arg("-l").arg(&disk).status().unwrap();
    assert!(unmounted.success());
    assert_eq!(ended.status.code(), Some(1), "{text}");
    assert!(text.contains("no space left on device") && text.trim().lines().count() == 1, "{text}");
}

/// The first rank hangs, which the launcher ends; and the launcher, which serves the store.
#[test]
fn a_first_rank_and_a_launcher_that_hang_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for (name, is_launcher, words) in [("rank", false, "rank 0 on "), ("launcher", true, "the launcher at 127.0.0.1")] {
        let out = folder.path().join(name);
        let child =
            start(&dreambooth(&out, "--max-train-steps 5000 --checkpointing-steps 2 --processes 2 --timeout 5"));
        wait_for_steps(&out, 3);
        let (launcher, ranks) = (child.id(), ranks_of(child.id()));
        signal(if is_launcher { launcher } else { ranks[0] }, "-STOP");
        if is_launcher {
            let until = Instant::now() + Duration::from_secs(30);
            let runs =
                |pid: &u32| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
            while ranks.iter().any(runs) {
                assert!(Instant::now() < until, "ranks outlive their launcher");
                std::thread::sleep(Duration::from_millis(50));
            }
            signal(launcher, "-CONT");
        }
        let ended = end_of(child, 5 + 20);
        let text = String::from_utf8_lossy(&ended.stderr).into_owned();
        println!("{name}: {text}");
        assert!(!ended.status.success() && text.contains(words) && text.contains("step"), "{name}: {text}");
        assert_all_are_gone(&ranks);
        assert_whole(&out);
    }
}
