//! A run that is stopped while it evaluates, or draws sample images, makes up for that when it goes on, and ends as one that was
//! never stopped.
#![allow(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

use crate::support::jobs::{bert, gpt2, t5, Job};
use crate::support::{self, jobs, lorabooth, lorabooth_ok, model, photos};
use clap::Parser;
use lorabooth::error::Error;
use lorabooth::interrupt::Interrupt;
use lorabooth::options::dreambooth::DreamBoothConfig;
use lorabooth::options::language::LanguageConfig;
use lorabooth::recipes::training::control::Control;
use lorabooth::recipes::training::observer::{Event, Observer, Silent};
use lorabooth::recipes::{dreambooth, language};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;
use tch::Device;

#[derive(Parser)]
#[command(args_override_self = true)]
struct Language {
    #[command(flatten)]
    config: LanguageConfig,
}

#[derive(Parser)]
#[command(args_override_self = true)]
struct DreamBooth {
    #[command(flatten)]
    config: DreamBoothConfig,
}

/// Asks the run to stop at the event number `at` of those that are `meant`.
struct Stop<'a> {
    meant: &'a dyn Fn(&Event) -> bool,
    at: usize,
    seen: usize,
    interrupt: Interrupt,
}

impl Observer for Stop<'_> {
    fn on(&mut self, event: Event) {
        if (self.meant)(&event) {
            if self.seen == self.at {
                self.interrupt.request();
            }
            self.seen += 1;
        }
    }
}

/// A run in a folder, with more flags.
type Run<'a> = &'a dyn Fn(&Path, &[&str], &Interrupt, &mut dyn Observer) -> Result<(), Error>;

/// Stops a run at each of the events that are `meant`, goes on with it, and compares with one that was never stopped.
fn check(meant: &dyn Fn(&Event) -> bool, expected_stops: usize, run: Run) {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let mut count = Stop { meant, at: usize::MAX, seen: 0, interrupt: Interrupt::new() };
    run(&whole, &[], &Interrupt::new(), &mut count).unwrap();
    assert_eq!(count.seen, expected_stops);
    for at in 0..expected_stops {
        let out = folder.path().join(format!("stopped-{at}"));
        let mut stop = Stop { meant, at, seen: 0, interrupt: Interrupt::new() };
        let stopped = run(&out, &[], &stop.interrupt.clone(), &mut stop);
        let Err(Error::Interrupted(message)) = stopped else { panic!("{at}: {stopped:?}") };
        assert!(message.contains("is saved in") && message.contains("⟨resume⟩"), "{message}");
        run(&out, &["--resume", "latest"], &Interrupt::new(), &mut Silent).unwrap();
        let (found, wanted) = (left(&out), left(&whole));
        assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{at}");
        for (name, bytes) in &wanted {
            assert!(found[name] == *bytes, "stop {at}: {name} is another");
        }
    }
}

/// All that a run leaves that does not tell of time and memory.
fn left(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut left = BTreeMap::new();
    let mut folders = vec![out.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let name = entry.strip_prefix(out).unwrap().display().to_string();
            match name.as_str() {
                "run.json" | "logs" | "loss.png" => {}
                // Checkpoints are where runs were stopped too.
                _ if name.starts_with("checkpoint-") => {}
                "metrics.jsonl" => {
                    let steps =
                        jobs::lines(&entry).into_iter().map(|line| (line["step"].clone(), line["loss"].clone()));
                    left.insert(name, format!("{:?}", steps.collect::<Vec<(Value, Value)>>()).into_bytes());
                }
                _ if entry.is_dir() => folders.push(entry),
                _ => drop(left.insert(name, fs::read(&entry).unwrap())),
            }
        }
    }
    left
}

fn language(job: &Job, stops: usize) {
    let validation = job.folder.join("validation.jsonl").display().to_string();
    let run = |out: &Path, more: &[&str], interrupt: &Interrupt, observer: &mut dyn Observer| {
        let words =
            ["--max-train-steps", "4", "--eval-steps", "2", "--eval-max-new-tokens", "3", "--learning-rate", "0.05"];
        let mut args = job.train(out, &[&words[..], &["--validation-file", &validation], more].concat());
        // The command's name is the parser's first word; these are of the whole command line.
        args.drain(..1);
        for flag in ["--device", "--threads"] {
            let at = args.iter().position(|arg| arg == flag).unwrap();
            args.drain(at..at + 2);
        }
        args.retain(|arg| arg != "--quiet");
        let config = Language::parse_from(args).config;
        language::training::train(&config, Device::Cpu, 0, &Control::of(interrupt.clone()), observer).map(drop)
    };
    check(
        &|event| matches!(event, Event::Begin { phase, .. } if phase == "evaluating" || phase == "answering"),
        stops,
        &run,
    );
}

#[test]
fn evaluations_of_language_models_are_made_up_for() {
    // Before the first step, after the second and the fourth: the loss, then answers.
    language(&gpt2(true), 3 * 2);
    language(&t5(), 3 * 2);
    // A classifier's answers come with its loss.
    language(&bert(), 3);
}

/// Evaluations that a run was stopped in are made once, however often it goes on from there; without the records it does not.
#[test]
fn an_evaluation_that_was_owed_is_made_once() {
    let (job, folder) = (gpt2(true), tempfile::tempdir().unwrap());
    let out = folder.path().join("out");
    let validation = job.folder.join("validation.jsonl").display().to_string();
    let words = ["--max-train-steps", "2", "--validation-file", &validation];
    lorabooth_ok(&job.train(&out, &words));
    let steps = |out: &Path| -> Vec<Value> {
        jobs::lines(&out.join("evaluations.jsonl")).into_iter().map(|line| line["step"].clone()).collect()
    };
    let expected = steps(&out);
    let state = out.join("checkpoint-2/state.json");
    let mut owed = support::read_json(&state);
    owed["evaluation_is_owed"] = true.into();
    fs::write(&state, owed.to_string()).unwrap();
    for _ in 0..2 {
        lorabooth_ok(&job.train(&out, &[&words[..], &["--resume", "latest"]].concat()));
        assert_eq!(steps(&out), expected);
    }
    let refused = lorabooth(&job.train(&out, &["--max-train-steps", "4", "--resume", "latest"]));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("give --validation-file again"), "{said}");
}

#[test]
fn sample_images_are_made_up_for() {
    let (model, photos) = (model("tiny"), photos(3, 0));
    let run = |out: &Path, more: &[&str], interrupt: &Interrupt, observer: &mut dyn Observer| {
        let words = format!(
            "dreambooth --model {} --instance-data-dir {} --instance-prompt sks --resolution 32 --learning-rate 1e-3 \
             --max-train-steps 4 --mixed-precision no --validation-prompt sks --validation-steps 2 --num-validation-images 2 \
             --output-dir {}",
            model.display(),
            photos.display(),
            out.display()
        );
        let config = DreamBooth::parse_from(words.split_whitespace().chain(more.iter().copied())).config;
        dreambooth::training::train(&config, Device::Cpu, 0, &Control::of(interrupt.clone()), observer).map(drop)
    };
    // In the first of 25 steps of the second of two images: the first is there, the second is not.
    let first = |event: &Event| matches!(event, Event::Progress { done: 26 });
    check(&first, 3, &run);
}

/// What a test does to a run's output folder at one of its steps.
struct At<'a> {
    step: u64,
    act: &'a mut dyn FnMut(),
    warnings: Vec<String>,
}

impl Observer for At<'_> {
    fn on(&mut self, event: Event) {
        match event {
            Event::Step { metrics, .. } if metrics.step == self.step => (self.act)(),
            Event::Warning { text } => self.warnings.push(text),
            _ => {}
        }
    }
}

/// A run of eight steps with a checkpoint after each second one.
fn eight_steps(out: &Path, interrupt: &Interrupt, observer: &mut dyn Observer) -> Result<(), Error> {
    let words = format!(
        "dreambooth --model {} --instance-data-dir {} --instance-prompt sks --resolution 32 --learning-rate 1e-3 \
         --max-train-steps 8 --checkpointing-steps 2 --mixed-precision no --output-dir {}",
        model("tiny").display(),
        photos(3, 0).display(),
        out.display()
    );
    let config = DreamBooth::parse_from(words.split_whitespace()).config;
    dreambooth::training::train(&config, Device::Cpu, 0, &Control::of(interrupt.clone()), observer).map(drop)
}

#[test]
fn a_run_whose_output_folder_is_removed_makes_it_anew_and_keeps_its_logs_and_its_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, out) = (folder.path().join("whole"), folder.path().join("out"));
    eight_steps(&whole, &Interrupt::new(), &mut Silent).unwrap();
    for step in [1, 5, 8] {
        let mut remove = || fs::remove_dir_all(&out).unwrap();
        let mut observer = At { step, act: &mut remove, warnings: Vec::new() };
        eight_steps(&out, &Interrupt::new(), &mut observer).unwrap();
        assert!(observer.warnings.iter().any(|text| text.contains("removed") && text.contains("out")), "{step}");
        let (mut found, mut wanted) = (left(&out), left(&whole));
        // Images of the steps before are gone with their folder.
        found.retain(|name, _| !name.starts_with("samples"));
        wanted.retain(|name, _| !name.starts_with("samples"));
        assert!(found == wanted, "step {step}: {:?} is left of {:?}", found.keys(), wanted.keys());
        assert!(out.join("checkpoint-8").is_dir() && fs::read_dir(out.join("logs")).unwrap().count() == 1);
        fs::remove_dir_all(&out).unwrap();
    }
    // Its files alone: the folder is the one that the run has locked.
    let mut empty = || {
        fs::remove_file(out.join("metrics.jsonl")).unwrap();
        fs::remove_dir_all(out.join("logs")).unwrap();
    };
    eight_steps(&out, &Interrupt::new(), &mut At { step: 3, act: &mut empty, warnings: Vec::new() }).unwrap();
    assert!(left(&out) == left(&whole));
}

#[test]
fn an_output_folder_that_becomes_something_else_is_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut replace = || {
        fs::remove_dir_all(&out).unwrap();
        fs::write(&out, "mine").unwrap();
    };
    let mut observer = At { step: 5, act: &mut replace, warnings: Vec::new() };
    let error = eight_steps(&out, &Interrupt::new(), &mut observer).unwrap_err().to_string();
    assert!(error.contains(&out.display().to_string()) && error.lines().count() == 1, "{error}");
    assert_eq!(fs::read(&out).unwrap(), b"mine");
    fs::remove_file(&out).unwrap();
    // Another run's folder is not this one's to write to.
    let mut take = || {
        fs::remove_dir_all(&out).unwrap();
        fs::create_dir(&out).unwrap();
        fs::write(out.join("metrics.jsonl"), "theirs").unwrap();
    };
    let mut observer = At { step: 5, act: &mut take, warnings: Vec::new() };
    let error = eight_steps(&out, &Interrupt::new(), &mut observer).unwrap_err().to_string();
    assert!(error.contains("metrics.jsonl") && error.contains("another program"), "{error}");
    assert_eq!(fs::read(out.join("metrics.jsonl")).unwrap(), b"theirs");
}

#[test]
fn a_run_that_is_stopped_before_its_first_step_leaves_nothing_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let stopped = |error: Error| matches!(&error, Error::Interrupted(text) if text.contains("the same command"));
    for phase in ["encoding", "loading the model"] {
        let meant = |event: &Event| matches!(event, Event::Begin { phase: begun, .. } if begun == phase);
        let mut stop = Stop { meant: &meant, at: 0, seen: 0, interrupt: Interrupt::new() };
        let interrupt = stop.interrupt.clone();
        assert!(stopped(eight_steps(&out, &interrupt, &mut stop).unwrap_err()), "{phase}");
        assert!(stop.seen == 1 && !out.exists(), "{phase}");
    }
    let interrupt = Interrupt::new();
    interrupt.request();
    assert!(stopped(eight_steps(&out, &interrupt, &mut Silent).unwrap_err()) && !out.exists());
}

#[test]
fn sigterm_is_heeded_while_photos_are_prepared() {
    let folder = tempfile::tempdir().unwrap();
    let (many, out) = (folder.path().join("photos"), folder.path().join("out"));
    fs::create_dir(&many).unwrap();
    // Noise, which takes a decoder a tenth of a second or more.
    let noise = image::RgbImage::from_fn(2400, 1800, |x, y| {
        let mixed = (x * 2_654_435_761).wrapping_add(y * 40_503).wrapping_mul(2_246_822_519);
        image::Rgb([mixed as u8, (mixed >> 8) as u8, (mixed >> 16) as u8])
    });
    noise.save(many.join("0.png")).unwrap();
    (1..400).for_each(|number| fs::hard_link(many.join("0.png"), many.join(format!("{number}.png"))).unwrap());
    let words = format!(
        "train dreambooth --device cpu --model {} --instance-data-dir {} --instance-prompt sks --resolution 32 --max-train-steps 1 \
         --output-dir {}",
        model("tiny").display(),
        many.display(),
        out.display()
    );
    let mut command = support::lorabooth_command(&words.split_whitespace().collect::<Vec<_>>());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("memory")));
    let began = Instant::now();
    let killed = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(killed.unwrap().success());
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(130) && error.contains("before the first step"),
        "{:?} {error}",
        output.status
    );
    assert!(began.elapsed().as_secs() < 20 && !out.exists(), "{:?}", began.elapsed());
}

#[test]
fn the_adapter_of_an_unfinished_run_is_in_its_checkpoint() {
    let (job, folder) = (bert(), tempfile::tempdir().unwrap());
    let (out, text) = (folder.path().join("out"), |path: &Path| path.display().to_string());
    lorabooth_ok(&job.train(&out, &["--max-train-steps", "3", "--save-every", "3"]));
    let complete = |adapter: &Path| {
        let model = text(&job.folder.join("model"));
        lorabooth(&["complete", "--model", &model, "--adapter", &text(adapter), "--prompt", "red", "--json"])
    };
    let finished = complete(&out);
    assert!(finished.status.success());
    let class = |output: &[u8]| {
        let said = String::from_utf8_lossy(output).into_owned();
        serde_json::from_str::<Value>(said.lines().last().unwrap()).unwrap()["probabilities"].clone()
    };
    let checkpoint = out.join("checkpoint-3");
    assert_eq!(class(&complete(&checkpoint).stdout), class(&finished.stdout));
    // As one that was killed after its last checkpoint.
    for name in ["adapter_config.json", "adapter_model.safetensors", "classes.json", "run.json"] {
        fs::remove_file(out.join(name)).unwrap();
    }
    let said = String::from_utf8_lossy(&complete(&out).stdout).into_owned();
    assert!(said.contains("unfinished run") && said.contains(&text(&checkpoint)), "{said}");
    let inspected = lorabooth(&["adapter", "inspect", &text(&out)]);
    assert!(String::from_utf8_lossy(&inspected.stderr).contains(&text(&checkpoint)));
    let (model, photos, out) = (model("tiny"), photos(3, 0), folder.path().join("dreambooth"));
    let words = format!(
        "train dreambooth --device cpu --model {} --instance-data-dir {} --instance-prompt sks --resolution 32 --max-train-steps 1 \
         --train-text-encoder --output-dir {}",
        model.display(),
        photos.display(),
        out.display()
    );
    lorabooth_ok(&words.split_whitespace().collect::<Vec<_>>());
    for part in ["unet", "text_encoder"] {
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let of = |folder: &Path| fs::read(folder.join(part).join(file)).unwrap();
            assert_eq!(of(&out.join("checkpoint-1")), of(&out), "{part}/{file}");
        }
    }
}

#[test]
fn a_narrower_window_and_ctrl_c_leave_no_bar_on_the_screen() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let (model, photos) = (model("tiny"), photos(5, 0));
    let [model, photos, out] = [&model, &photos, &out].map(|path| path.to_str().unwrap());
    let program = env!("CARGO_BIN_EXE_lorabooth");
    let run = ["train", "dreambooth", "--model", model, "--instance-data-dir", photos, "--instance-prompt", "sks"];
    let more = "--resolution 32 --mixed-precision no --device cpu --threads 1 --max-train-steps 1000000 --output-dir";
    let args: Vec<&str> = [&[program], &run[..]].concat().into_iter().chain(more.split(' ')).chain([out]).collect();
    support::python_alone("terminal.py", &args);
    // A step of many seconds, which the second Ctrl-C does not wait for.
    let long = ["--resolution", "256", "--train-batch-size", "4", "--overwrite"];
    support::python_alone("terminal.py", &[&["--twice"], args.as_slice(), &long].concat());
}

/// The signal that comes before anything was read asks the run to stop too, and is no sudden end.
#[test]
fn a_signal_is_heeded_from_the_first_moment_on() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let (model, photos) = (model("tiny"), photos(5, 0));
    let [model, photos, to] = [&model, &photos, &out].map(|path| path.to_str().unwrap());
    let run = ["train", "dreambooth", "--model", model, "--instance-data-dir", photos, "--instance-prompt", "sks"];
    let more = ["--device", "cpu", "--max-train-steps", "100000", "--output-dir", to];
    let args = [&run[..], &more].concat();
    let mut child = support::lorabooth_command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    // The mask of signals that the process catches, in hexadecimal digits: bit 14 is SIGTERM's.
    let catches = || {
        let text = fs::read_to_string(&status).unwrap();
        let mask = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
        u64::from_str_radix(&mask, 16).unwrap() >> 14 & 1 == 1
    };
    while !catches() {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
    assert!(!out.exists());
    let sent = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.starts_with("interrupted: ") && said.trim().lines().count() == 1, "{said}");
}
