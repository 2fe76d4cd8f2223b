//! What is said and done on machines with NVIDIA's driver, whose answers are made up here: which libtorch is fetched, what `doctor`
//! finds, and that no card is passed over in silence.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::{lorabooth_command, model, photos};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// What `setup/cuda.sh` answers where `nvidia-smi` prints `cards`: the word for the caller, and what a user reads.
fn setup_on(cards: &str) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let smi = folder.path().join("nvidia-smi");
    fs::write(&smi, format!("#!/bin/sh\ncat <<'CARDS'\n{cards}\nCARDS\n")).unwrap();
    fs::set_permissions(&smi, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    let output = Command::new(format!("{HERE}/setup/cuda.sh")).arg("2.11.0").env("PATH", path).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (word, read) = (text(output.stdout).trim().to_owned(), text(output.stderr));
    // Either there is an answer, or the user reads what to do.
    assert_eq!(output.status.success(), !word.is_empty(), "{cards}: {word} {read}");
    (word, read)
}

#[test]
fn the_card_and_its_driver_decide_which_libtorch_is_fetched() {
    for cards in ["580.65.06, 7.5, Tesla T4", "595.10, 12.0, NVIDIA GeForce RTX 5090"] {
        assert_eq!(setup_on(cards), ("cuda".to_owned(), String::new()), "{cards}");
    }
    assert_eq!(setup_on("No devices were found"), ("cpu".to_owned(), String::new()));
}

#[test]
fn an_older_card_or_driver_is_told_the_command_that_fetches_its_libtorch() {
    let fetch = "torch==2.11.0 --index-url https://download.pytorch.org/whl/cu126";
    for (cards, said) in [
        ("535.183.01, 7.5, Tesla T4", "needs 580"),
        ("550.54, 8.6, NVIDIA GeForce RTX 3060", "update the driver to 580"),
        ("580.65.06, 6.1, NVIDIA GeForce GTX 1080 Ti", "GTX 1080 Ti"),
        ("535.183.01, 6.0, Tesla P100", "below compute capability 7.5"),
        ("470.82, 7.0, Tesla V100", "driver 525 or newer; this is 470"),
    ] {
        let (word, read) = setup_on(cards);
        assert!(word.is_empty() && read.contains(said) && read.contains(fetch), "{cards}: {read}");
        assert!(read.contains("LIBTORCH=") && read.contains("LORABOOTH_CUDA=0"), "{cards}: {read}");
    }
    // CUDA 12.6 knows no Blackwell: only a newer driver helps.
    let (word, read) = setup_on("570.124, 12.0, NVIDIA GeForce RTX 5090");
    assert!(word.is_empty() && read.contains("update the driver") && !read.contains("cu126"), "{read}");
}

#[test]
fn what_no_build_can_use_is_said_and_left_out() {
    let (word, read) = setup_on("470.82, 3.7, Tesla K80");
    assert!(word == "cpu" && read.contains("Tesla K80") && read.contains("the CPU is used"), "{word} {read}");
    let (word, read) = setup_on("580.65.06, 6.1, GTX 1080\n580.65.06, 8.6, RTX 3060");
    assert!(word == "cuda" && read.contains("GTX 1080") && !read.contains("3060"), "{word} {read}");
}

/// Runs `command` where the driver's device file is there.
fn beside_a_driver(command: &Command) -> Output {
    // A /dev of its own, in which nothing else changes: the driver's file lies over one that nobody asks for.
    let enter = "dev=$(mktemp -d) && mount -t tmpfs tmpfs $dev && touch $dev/nvidiactl && \
        for name in null zero full random urandom; do touch $dev/$name && mount --bind /dev/$name $dev/$name; done && \
        mkdir $dev/shm && ln -s /proc/self/fd $dev/fd && mount --move $dev /dev && exec \"$0\" \"$@\"";
    let mut inside = Command::new("unshare");
    inside.args(["--map-root-user", "--mount", "sh", "-c", enter]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => inside.env(name, value),
            None => inside.env_remove(name),
        };
    }
    inside.output().unwrap()
}

#[test]
fn a_card_that_cannot_be_used_is_not_passed_over_in_silence() {
    let folder = tempfile::tempdir().unwrap();
    let command = |device: &[&str]| {
        let out = folder.path().join(device.join(""));
        let mut command =
            lorabooth_command(&["train", "dreambooth", "--instance-prompt", "sks", "--max-train-steps", "1"]);
        command.args(["--resolution", "32", "--model"]).arg(model("tiny")).arg("--instance-data-dir").arg(photos(2, 0));
        command.arg("--output-dir").arg(out).args(device);
        command
    };
    let read = |output: Output| {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        text
    };
    let said = read(beside_a_driver(&command(&[])));
    // The loader's own words, and the way out.
    let line =
        said.lines().find(|line| line.starts_with("warning: the CPU is used")).unwrap_or_else(|| panic!("{said}"));
    let reason = ["libtorch_cuda.so", "CUDA shows no device"].iter().any(|reason| line.contains(reason));
    assert!(reason && line.contains("lorabooth doctor"), "{line}");
    assert!(!read(beside_a_driver(&command(&["--device", "cpu"]))).contains("CUDA"));
}

#[test]
fn doctor_names_driver_and_card_although_cuda_cannot_use_it() {
    let folder = tempfile::tempdir().unwrap();
    build_nvml(folder.path());
    let mut doctor = lorabooth_command(&["doctor"]);
    doctor.env("LD_LIBRARY_PATH", folder.path()).env("DRIVER", "580.65.06");
    let output = beside_a_driver(&doctor);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    let line = |name: &str| {
        let found = said.lines().find_map(|line| line.trim_start().strip_prefix(name));
        found.unwrap_or_else(|| panic!("no line {name:?} in\n{said}")).trim().to_owned()
    };
    assert_eq!(line("driver"), "580.65.06");
    assert_eq!(line("not usable"), "Tesla T4, compute capability 7.5, 15.0 GiB free of 16.0 GiB");
    let problem = line("problem");
    assert!(problem.contains("libtorch_cuda.so") && problem.contains("LORABOOTH_CUDA=1 make setup"), "{problem}");
}

fn build_nvml(folder: &Path) {
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(folder.join("libnvidia-ml.so.1"))
        .arg(format!("{HERE}/tests/graphics_driver/nvml.c"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}
