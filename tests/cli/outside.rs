//! What the outside can do to a run's output: readers that go away, names that are no text, secrets on the command line.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::{lorabooth, lorabooth_command, lorabooth_ok, model, photos, read_json};
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
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

/// Whether a terminal shows all of `text` as it is, in lines that can be read.
fn is_plain(text: &str) -> bool {
    let hidden = |c: char| {
        c != '\n' && c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    !text.chars().any(hidden) && text.lines().all(|line| line.chars().count() < 1100)
}

const ODD: &str = "\u{1b}]0;x\u{7}\u{1b}[2J\u{9b}31m\u{202e}\u{2066}\u{200f}\u{200b}\u{2028}\nerror: forged\r";

#[test]
fn what_files_say_of_themselves_cannot_steer_the_terminal_or_fill_it() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("out");
    lorabooth_ok(&training(&["--max-train-steps", "0"], &out));
    let config = out.join("unet/adapter_config.json");
    let long = format!("{ODD}{}", "long ".repeat(200_000));
    let mut fields = read_json(&config);
    fields["base_model_name_or_path"] = long.clone().into();
    fields["task_type"] = ODD.into();
    fs::write(&config, fields.to_string()).unwrap();
    let said = lorabooth_ok(&["adapter", "inspect", out.to_str().unwrap()]);
    assert!(is_plain(&said) && said.contains("… (1000"), "{:?}", said.get(..2000).unwrap_or(&said));
    assert!(!said.lines().any(|line| line.starts_with("error")), "{said}");
    let json = lorabooth_ok(&["adapter", "inspect", "--json", out.to_str().unwrap()]);
    assert!(json.trim_end().lines().count() == 1 && !json.contains('\u{9b}') && !json.contains('\u{202e}'));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json.to_string().contains(&serde_json::json!(long).to_string()), "the value is not whole");
}

#[test]
fn what_was_typed_is_said_back_in_a_line_that_can_be_read() {
    let folder = tempdir().unwrap();
    let (long, odd) = ("long ".repeat(20_000), format!("x{}", ODD.replace('\0', "")));
    let out = folder.path().join("out");
    for value in [&long, &odd] {
        for flag in [
            "--num-validation-images",
            "--lora-targets",
            "--init-adapter",
            "--device",
            "--config",
            "--no-such",
            "--resume",
        ] {
            for json in [&[][..], &["--json"]] {
                let output = lorabooth(&training(&[&[flag, value], json].concat(), &out));
                let error = String::from_utf8_lossy(&output.stderr);
                assert!(
                    !output.status.success() && is_plain(&error),
                    "{flag}: {:?}",
                    error.get(..3000).unwrap_or(&error)
                );
                assert!(error.matches("error:").count() <= 2 && !error.contains("\nerror: forged"), "{error}");
                let lines = String::from_utf8(output.stdout).unwrap();
                for line in lines.lines().filter(|_| !json.is_empty()) {
                    serde_json::from_str::<serde_json::Value>(line).unwrap();
                }
            }
        }
        let said =
            lorabooth_ok(&training(&["--instance-prompt", value, "--max-train-steps", "0", "--overwrite"], &out));
        assert!(is_plain(&said), "{:?}", said.get(..3000).unwrap_or(&said));
    }
    let command = lorabooth(&[&odd]);
    assert!(is_plain(&String::from_utf8_lossy(&command.stderr)));
}

#[test]
fn weights_that_are_cut_short_while_they_are_used_are_one_sentence() {
    let folder = tempdir().unwrap();
    for json in [&[][..], &["--json"]] {
        let (own, out) = (folder.path().join("own"), folder.path().join(format!("out{}", json.len())));
        let copied = Command::new("cp").args(["-rT"]).args([&model("tiny"), &own]).status();
        assert!(copied.unwrap().success());
        let weights = own.join("unet/diffusion_pytorch_model.safetensors");
        let more = ["--model", own.to_str().unwrap(), "--offload", "cpu", "--max-train-steps", "1000000", "-v"];
        let mut command = lorabooth_command(&training(&[&more[..], json].concat(), &out));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        // Its weights stay in the file, and each step reads them.
        assert!(lines.any(|line| line.contains("1/1000000") || line.contains(r#""step":1"#)));
        fs::File::options().write(true).open(&weights).unwrap().set_len(100).unwrap();
        let last = lines.last().unwrap_or_default();
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let said = if json.is_empty() { error.trim() } else { &last };
        assert!(output.status.code() == Some(1) && said.lines().count() == 1, "{:?} {said}", output.status);
        assert!(said.contains("diffusion_pytorch_model.safetensors") && said.contains("cut short"), "{said}");
        assert!(!said.contains("internal check"), "{said}");
    }
}

#[test]
fn a_system_that_gives_no_threads_is_one_sentence() {
    let folder = tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let limited = |limit: u32| {
        let (binary, out) = (env!("CARGO_BIN_EXE_lorabooth"), folder.path().join(limit.to_string()));
        let mut command = Command::new("bash");
        command.args(["-c", &format!("ulimit -u {limit}; exec timeout 100 \"$0\" \"$@\""), binary]);
        command.args(training(&["--max-train-steps", "1"], &out)).env("HF_HUB_OFFLINE", "1");
        // The limit is of a user, and root has none: one that has no other process.
        command.uid(64_321).gid(64_321).output()
    };
    // Some machines let no test become another user, or hide its files from it.
    let Some(whole) = limited(100).ok().filter(|output| output.status.success()) else { return };
    assert!(whole.stderr.is_empty());
    for limit in 3..8 {
        let output = limited(limit).unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && error.trim().lines().count() == 1, "{limit}: {error}");
        assert!(error.contains("threads") && error.contains("ulimit -u"), "{limit}: {error}");
    }
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

#[test]
fn a_class_folder_of_ones_own_images_needs_no_generated_ones() {
    let folder = tempdir().unwrap();
    let class = photos(2, 1).display().to_string();
    let more = ["--with-prior-preservation", "--class-prompt", "dog", "--num-class-images", "0", "--class-data-dir"];
    lorabooth_ok(&training(&[&more[..], &[&class]].concat(), &folder.path().join("out")));
    assert_eq!(fs::read_dir(class).unwrap().count(), 2);
}

#[test]
fn events_go_where_they_are_asked_to_and_overwriting_leaves_what_is_outside() {
    let folder = tempdir().unwrap();
    let (out, elsewhere) = (folder.path().join("out"), folder.path().join("elsewhere"));
    let events = |folder: &Path| fs::read_dir(folder).map_or(0, Iterator::count);
    for (logs, path) in [("mine/tb", out.join("mine/tb")), (elsewhere.to_str().unwrap(), elsewhere.clone())] {
        lorabooth_ok(&training(&["--overwrite", "--logging-dir", logs], &out));
        assert_eq!(events(&path), 1, "{logs}");
    }
    lorabooth_ok(&training(&["--overwrite", "--logging-dir", "mine/tb"], &out));
    lorabooth_ok(&training(&["--overwrite", "--logging-dir", elsewhere.to_str().unwrap()], &out));
    assert_eq!((events(&out.join("mine/tb")), events(&elsewhere)), (1, 2));
}

#[test]
fn a_picture_that_does_not_fit_in_memory_is_one_line_with_the_cure() {
    let folder = tempdir().unwrap();
    let picture = folder.path().join("image.png");
    let draw = |kib: u64, width: &str| {
        let model = model("tiny").display().to_string();
        let args = ["--model", &model, "--prompt", "x", "--steps", "1", "--height", "64", "--width", width];
        let rest = ["--dtype", "fp32", "--device", "cpu", "--threads", "1", "--output", picture.to_str().unwrap()];
        let script = format!("ulimit -v {kib}; exec \"$0\" generate \"$@\"");
        let command = std::process::Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_lorabooth")])
            .args(args.iter().chain(&rest))
            .env("OMP_NUM_THREADS", "1")
            .output();
        command.unwrap()
    };
    // What libtorch's own files take differs from machine to machine.
    let enough = (0..60).map(|i| 400_000 + 10_000 * i * i).find(|&kib| draw(kib, "64").status.success()).unwrap();
    fs::remove_file(&picture).unwrap();
    // A little more: what is just enough once can be too little the next time.
    let output = draw(enough + 100_000, "8192");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && error.trim().lines().count() == 1, "{error}");
    for word in ["error: out of memory", "--vae-tiling", "--height", "bf16"] {
        assert!(error.contains(word), "no {word}: {error}");
    }
    assert!(!error.contains("--gradient-checkpointing") && !picture.exists(), "{error}");
}
