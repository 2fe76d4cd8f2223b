//! What the outside can do to a run's output: readers that go away, names that are no text, secrets on the command line.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

mod support;

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::Stdio;
use support::{lorabooth, lorabooth_command, lorabooth_ok, model, photos, read_json};
use tempfile::tempdir;

/// A short run on a tiny model.
fn training(more: &[&str], out: &Path) -> Vec<String> {
    let (model, photos, out) = (model("tiny"), photos(3, 0), out.display().to_string());
    let usual = ["train", "dreambooth", "--instance-prompt", "a photo of sks dog", "--resolution", "32"];
    let usual = usual.iter().chain(&["--max-train-steps", "4", "--device", "cpu", "--threads", "1"]);
    let places = ["--model", model.to_str().unwrap(), "--instance-data-dir", photos.to_str().unwrap()];
    let output = ["--output-dir", &out];
    usual.chain(&places).chain(&output).chain(more).map(|&word| word.to_owned()).collect()
}

#[test]
fn a_reader_that_goes_away_does_not_end_a_run() {
    let folder = tempdir().unwrap();
    for more in [&[][..], &["--json"]] {
        let out = folder.path().join(more.len().to_string());
        let mut child = lorabooth_command(&training(more, &out)).stdout(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        assert!(child.wait().unwrap().success());
        assert!(out.join("unet/adapter_model.safetensors").exists());
    }
}

#[test]
fn paths_may_be_no_utf_8_and_prompts_may_not() {
    let (folder, odd) = (tempdir().unwrap(), OsString::from_vec(b"\xff\xfe".to_vec()));
    let out = folder.path().join(&odd);
    for more in [&[][..], &["--overwrite", "--json"]] {
        let mut args: Vec<OsString> = training(more, folder.path()).into_iter().map(OsString::from).collect();
        args.extend(["--output-dir".into(), out.clone().into_os_string()]);
        lorabooth_ok(&args);
        assert!(read_json(out.join("run.json"))["options"]["output_dir"].is_string());
    }
    lorabooth_ok(&[OsString::from("adapter"), "inspect".into(), out.into_os_string()]);
    let prompt = [OsString::from("tokenize"), "--model".into(), model("tiny").into_os_string(), odd];
    let output = lorabooth(&prompt);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && error.contains("UTF-8"), "{error}");
}

#[test]
fn file_names_cannot_write_escape_sequences_to_the_terminal() {
    let folder = tempdir().unwrap();
    let class = folder.path().join("photos");
    fs::create_dir(&class).unwrap();
    fs::copy(photos(3, 0).join("00.png"), class.join("00.png")).unwrap();
    fs::write(class.join("line\n\u{1b}[31mend.jpg"), "hello").unwrap();
    let more = ["--instance-data-dir", class.to_str().unwrap()];
    let output = lorabooth(&training(&more, &folder.path().join("out")));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.trim().lines().count() == 1, "{error}");
    assert!(error.contains("end.jpg") && !error.contains('\u{1b}'), "{error}");
}

#[test]
fn quiet_says_nothing_on_standard_output() {
    let folder = tempdir().unwrap();
    assert_eq!(lorabooth_ok(&training(&["--quiet"], &folder.path().join("out"))), "");
}

#[test]
fn secrets_of_the_command_line_are_written_nowhere() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out");
    let output = lorabooth(&training(&["--wandb_key=hush-1", "--hub_token", "hush-2", "--report_to", "wandb"], &out));
    let [said, warned] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(output.status.success() && warned.contains("--report-to wandb"), "{warned}");
    assert!(!said.contains("hush") && !warned.contains("hush"));
    for file in ["run.json", "unet/adapter_config.json", "checkpoint-4/state.json", "pytorch_lora_weights.safetensors"]
    {
        let bytes = fs::read(out.join(file)).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("hush"), "a secret is in {file}");
    }
}
