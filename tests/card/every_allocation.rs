//! Memory that is full at each allocation of a run in turn, on the stand-in for a card: the run is made in this process again and again, and
//! each time a later allocation is refused: of the first way to train from the model's first on, of the others from the step's first on.
//! What fails leaves a folder from which the next one resumes.
//!
//! By default some ten allocations are refused in each way; `LORABOOTH_EVERY_ALLOCATION=1` refuses each from the step on.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what is wrong by panicking")]

use super::full_memory::{check_sentence, dreambooth, language_model, numbers};
use crate::support::stand_in::on_the_stand_in;
use crate::support::words;
use crate::support::{copy, jobs, model, photos, read_json};
use lorabooth::libtorch::memory;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tch::Device;

/// How many allocations of a run are refused, and of one that draws samples.
const SAMPLED: u64 = 10;
const SAMPLED_OF_SAMPLES: u64 = 4;
/// Of a longer part as many at its beginning, and a third of them at its end: between these are a sampler's steps, which are alike.
const OF_MANY: u64 = 4000;
/// Of so many runs that failed, one is resumed to its end.
const RESUMED: u64 = 10;

/// The process' own command line, on the stand-in.
struct Program {
    folder: PathBuf,
}

/// What a run came to.
struct Outcome {
    code: ExitCode,
    said: String,
    /// Whether the allocation that was to be refused was asked for.
    refused: bool,
    /// Its allocations at each moment at which it read its peak, and at its end.
    reads: Vec<u64>,
}

impl Program {
    /// Allocations so far, at each moment of a run at which its peak was read, and now.
    fn allocations(&self) -> Vec<u64> {
        memory::device_peak(Device::Cuda(0)).unwrap();
        let report = self.folder.join("report");
        let lines = jobs::lines(&report);
        fs::remove_file(report).unwrap();
        lines.iter().map(|line| line["allocations_so_far"].as_u64().unwrap()).collect()
    }

    /// `lorabooth ARGS` whose allocation of number `refused` fails, counted from 1; with 0 none does.
    fn run(&self, args: &[String], refused: u64) -> Outcome {
        let said = self.folder.join("said");
        let before = fs::metadata(&said).unwrap().len() as usize;
        let before_all = *self.allocations().last().unwrap();
        let at = before_all + refused;
        std::env::set_var("FAKE_CUDA_FAIL_AT", if refused == 0 { 0 } else { at }.to_string());
        let code = lorabooth::cli::main([&["lorabooth".to_owned()], args].concat().iter().map(Into::into).collect());
        let reads: Vec<u64> = self.allocations().iter().map(|number| number - before_all).collect();
        let said = String::from_utf8_lossy(&fs::read(&said).unwrap()[before..]).into_owned();
        Outcome { code, said, refused: reads.last() >= Some(&(at - before_all)), reads }
    }

    fn run_ok(&self, args: &[String]) -> Outcome {
        let outcome = self.run(args, 0);
        assert_eq!(outcome.code, ExitCode::SUCCESS, "{args:?}: {}", outcome.said);
        outcome
    }
}

impl Outcome {
    fn check_sentence(&self, which: &str) -> String {
        assert!(self.code == ExitCode::from(1), "{which}: {:?} {}", self.code, self.said);
        check_sentence(Some(1), &self.said, which)
    }
}

/// The allocations that are refused, of a run that makes `all` of them, until there is none: from another one on in each of the ways.
fn tried(way: u64, step: u64, all: u64) -> impl Iterator<Item = u64> {
    let every = std::env::var_os("LORABOOTH_EVERY_ALLOCATION").is_some();
    let first = if way == 0 { 1 } else { step };
    let draws_samples = all - first > 3 * OF_MANY;
    let apart = (all - first) / if draws_samples { SAMPLED_OF_SAMPLES } else { SAMPLED } + 1;
    let sample = (first + (way * 17 + 5) % apart..).step_by(apart as usize);
    let before = sample.clone().take_while(move |&number| number < step);
    let from_step: Box<dyn Iterator<Item = u64>> = if every {
        Box::new((step..step + OF_MANY).chain((step + OF_MANY).max(all.saturating_sub(OF_MANY / 3))..))
    } else {
        Box::new(sample.skip_while(move |&number| number < step))
    };
    before.chain(from_step)
}

/// A run of two steps that goes on from its first, with each allocation of it refused in turn.
fn fails_well(program: &Program, way: u64, name: &str, args: impl Fn(&str, &Path) -> Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let [whole, first, out] = ["whole", "first", "out"].map(|name| folder.path().join(name));
    program.run_ok(&args("--max-train-steps 2", &whole));
    program.run_ok(&args("--max-train-steps 1", &first));
    let args = args("--max-train-steps 2 --resume", &out);
    copy(&first, &out);
    // The peak is read when the training begins, after the step and at the end; and now.
    let reads = program.run_ok(&args).reads;
    fs::remove_dir_all(&out).unwrap();
    let step = reads[reads.len().saturating_sub(4)] + 1;
    copy(&first, &out);
    let (mut runs, mut failed_in_a_row, mut before) = (0, 0, read_json(out.join("run.json")));
    for number in tried(way, step, *reads.last().unwrap()) {
        let which = format!("{name}, allocation {number}");
        let outcome = program.run(&args, number);
        let ended = outcome.code == ExitCode::SUCCESS;
        if !ended {
            outcome.check_sentence(&which);
            // What fails before the folder is opened leaves it as it was.
            let run = read_json(out.join("run.json"));
            assert!(run["status"] == "failed" || run == before, "{which}: {}", run["status"]);
            before = run;
        }
        runs += 1;
        failed_in_a_row += 1;
        if ended || out.join("checkpoint-2").exists() || failed_in_a_row == RESUMED {
            if !ended {
                program.run_ok(&args);
            }
            assert!(numbers(&out) == numbers(&whole), "{which}: the run ends elsewhere");
            fs::remove_dir_all(&out).unwrap();
            copy(&first, &out);
            (failed_in_a_row, before) = (0, read_json(out.join("run.json")));
        }
        if !outcome.refused {
            assert!(ended, "{which}: {}", outcome.said);
            println!("{name}: {runs} runs; the step begins with allocation {step} of {}", reads.last().unwrap());
            return;
        }
    }
}

fn of_dreambooth(test: &str, ways: &[(u64, &str)]) {
    model("tiny");
    photos(5, 0);
    let Some(folder) = on_the_stand_in(&format!("card::every_allocation::{test}")) else { return };
    let program = Program { folder };
    for (way, more) in ways {
        fails_well(&program, *way, more, |steps, out| dreambooth(&format!("{more} {steps}"), out));
    }
}

#[test]
fn of_stable_diffusion() {
    let ways = [
        (0, ""),
        (1, "--train-text-encoder --use-8bit-adam --lora-r 64 --gradient-checkpointing"),
        (2, "--train-text-encoder --gradient-checkpointing --offload cpu --checkpointing-steps 9"),
    ];
    of_dreambooth("of_stable_diffusion", &ways);
}

#[test]
fn of_stable_diffusion_in_8_bits_or_with_samples() {
    let ways = [
        (3, "--load-in-8bit --cache-latents false"),
        (4, "--validation-prompt sks --num-validation-images 1 --validation-steps 2 --slicing"),
    ];
    of_dreambooth("of_stable_diffusion_in_8_bits_or_with_samples", &ways);
}

#[test]
fn of_a_language_model() {
    let (gpt2, t5) = (jobs::gpt2(true), jobs::t5());
    let Some(folder) = on_the_stand_in("card::every_allocation::of_a_language_model") else { return };
    let program = Program { folder };
    let validation = format!("--validation-file {} --eval-steps 2", gpt2.folder.join("validation.jsonl").display());
    for (way, (job, more)) in [
        (&gpt2, &*validation),
        (&gpt2, "--load-in-8bit --gradient-checkpointing --use-8bit-adam"),
        (&t5, "--gradient-checkpointing --offload cpu --lora-dropout 0.1 --checkpointing-steps 9"),
    ]
    .into_iter()
    .enumerate()
    {
        let args = |steps: &str, out: &Path| language_model(job, &format!("{more} {steps}"), out);
        fails_well(&program, way as u64, &format!("{} {more}", job.name), args);
    }
}

#[test]
fn of_pictures_and_texts() {
    let language = jobs::gpt2(true).folder.join("model").display().to_string();
    let tiny = model("tiny");
    let Some(folder) = on_the_stand_in("card::every_allocation::of_pictures_and_texts") else { return };
    let picture = folder.join("a.png");
    let program = Program { folder };
    let generate = format!(
        "generate --device cuda --threads 1 --quiet --model {} --prompt sks --steps 2 --overwrite --output {}",
        tiny.display(),
        picture.display()
    );
    let complete =
        format!("complete --device cuda --threads 1 --quiet --model {language} --prompt one --max-new-tokens 3");
    for (way, args) in [words(&generate), words(&complete)].into_iter().enumerate() {
        let reads = program.run_ok(&args).reads;
        for number in tried(way as u64, 1, *reads.last().unwrap()) {
            let outcome = program.run(&args, number);
            // A picture is decoded again, with the other networks elsewhere.
            if outcome.code != ExitCode::SUCCESS {
                outcome.check_sentence(&format!("{}, allocation {number}", args[0]));
            }
            if !outcome.refused {
                println!("{}: {number} allocations or fewer", args[0]);
                break;
            }
        }
    }
}
