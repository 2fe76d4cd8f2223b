//! `lorabooth train`.

use super::adapter::report;
use super::bars::duration;
use super::{launch, Common, Reporter};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::options::complete::MAX_NEW_TOKENS;
use crate::options::dreambooth::DreamBoothConfig;
use crate::options::generate::GUIDANCE_SCALE;
use crate::options::hub::HubArgs;
use crate::options::language::LanguageConfig;
use crate::options::push::PushConfig;
use crate::options::ranks::RanksArgs;
use crate::options::storage::StorageArgs;
use crate::options::training::TrainingArgs;
use crate::options::{shell_path, shell_word};
use crate::plain_text::counted;
use crate::recipes::training::control::Control;
use crate::recipes::training::observer::{Observer, Silent};
use crate::recipes::training::run::{Finished, TextSample};
use crate::recipes::{dreambooth, language, push};
use crate::train::data_parallel::launch::Launch;
use crate::train::data_parallel::{processes, Ranks};
use crate::weights::hub::Hub;
use crate::weights::{Quantize, Storage, DEFAULT_THRESHOLD};
use clap::Subcommand;
use serde_json::{json, Map, Value};
use std::path::Path;
use std::time::Instant;
use tch::Device;

/// What to train.
#[derive(Subcommand)]
pub enum TrainCommand {
    /// Train a LoRA for Stable Diffusion on photos of one subject (DreamBooth)
    #[command(args_override_self = true)]
    Dreambooth(Box<DreamBoothConfig>),
    /// Fine-tune a language model on a file of records: LoRA, prompt tuning, prefix tuning or P-tuning
    #[command(args_override_self = true)]
    Llm(Box<LanguageConfig>),
}

impl TrainCommand {
    /// Whether its results are to repeat on a GPU too.
    pub fn is_deterministic(&self) -> bool {
        match self {
            Self::Dreambooth(config) => config.training.deterministic,
            Self::Llm(config) => config.training.deterministic,
        }
    }
}

/// Runs the command, and gives its exit code.
pub fn run(mut command: TrainCommand, common: &Common, reporter: &mut Reporter) -> Result<u8> {
    let interrupt = Interrupt::on_signals()?;
    let asked = training_args(&mut command).ranks_args.clone();
    asked.check()?;
    match Launch::of_environment()? {
        None if asked.count() > 1 => launch::run(&asked, common.threads, &interrupt),
        None => train(command, common, reporter, interrupt).map(|()| 0),
        Some(launch) => {
            asked.check_started(launch.local_count)?;
            as_rank(&launch, &asked, command, common, reporter, interrupt)
        }
    }
}

fn training_args(command: &mut TrainCommand) -> &mut TrainingArgs {
    match command {
        TrainCommand::Dreambooth(config) => &mut config.training,
        TrainCommand::Llm(config) => &mut config.training,
    }
}

/// The training in one of several processes. The first one speaks for all; another says only what the first cannot say.
fn as_rank(
    launch: &Launch,
    asked: &RanksArgs,
    mut command: TrainCommand,
    common: &Common,
    reporter: &mut Reporter,
    interrupt: Interrupt,
) -> Result<u8> {
    let ranks = Ranks::join(launch, asked.timeout()).map_err(|error| of_rank(launch.rank, error))?;
    training_args(&mut command).ranks = ranks.clone();
    let agreed = options_of(&command, common.seed).and_then(|own| ranks.agree_on_options(&own));
    let outcome = agreed.and_then(|()| train(command, common, reporter, interrupt));
    ranks.end(&outcome);
    match outcome {
        Ok(()) => Ok(0),
        Err(error) if ranks.is_first() => Err(error),
        Err(Error::Interrupted(_)) => Ok(130),
        // The first says what all of them find.
        Err(Error::Diverged(_) | Error::RanksDiffer(_)) => Ok(1),
        Err(_) if ranks.first_has_ended() => Ok(1),
        Err(error) => Err(of_rank(launch.rank, error)),
    }
}

/// Options of which each process may have its own.
const OWN_OPTIONS: &[&str] = &[
    "output_dir",
    "logging_dir",
    "cache_dir",
    "overwrite",
    "push_to_hub",
    "hub_model_id",
    "gpus",
    "processes",
    "timeout",
];

/// What all processes must have been started with, the program's version too.
fn options_of(command: &TrainCommand, seed: i64) -> Result<Map<String, Value>> {
    let options = match command {
        TrainCommand::Dreambooth(config) => serde_json::to_value(config),
        TrainCommand::Llm(config) => serde_json::to_value(config),
    };
    let mut all = match options {
        Ok(Value::Object(options)) => options,
        Ok(_) => Map::new(),
        Err(error) => return Err(Error::Internal(error.to_string())),
    };
    OWN_OPTIONS.iter().for_each(|name| drop(all.remove(*name)));
    all.insert("seed".to_owned(), seed.into());
    all.insert("version".to_owned(), env!("CARGO_PKG_VERSION").into());
    Ok(all)
}

/// The error with the rank that has it before it.
fn of_rank(rank: usize, error: Error) -> Error {
    match rank {
        0 => error,
        _ => Error::OtherRank(format!("[rank {rank}] {error}")),
    }
}

/// One process' training.
fn train(mut command: TrainCommand, common: &Common, reporter: &mut Reporter, interrupt: Interrupt) -> Result<()> {
    let training = training_args(&mut command);
    training.command = Some(common.command.clone());
    let (ranks, is_on_cpu) = (training.ranks.clone(), training.ranks_args.processes.is_some());
    let (control, began) = (Control::of(interrupt), Instant::now());
    let hub = training.hub.clone();
    let destination = match ranks.is_first() {
        true => Destination::of(&hub, control.interrupt(), reporter)?,
        false => None,
    };
    let mut silent = Silent;
    let observer: &mut dyn Observer = if ranks.is_first() { &mut *reporter } else { &mut silent };
    let device = common.device_of_rank(ranks.local_rank(), is_on_cpu, observer)?;
    report_ranks(&ranks, device, observer)?;
    let (finished, again) = match &command {
        TrainCommand::Dreambooth(config) => {
            let finished = dreambooth::training::train(config, device, common.seed, &control, observer)?;
            let again = command_to_draw(config, &finished);
            (finished, Some(again))
        }
        TrainCommand::Llm(config) => {
            let finished = language::training::train(config, device, common.seed, &control, observer)?;
            let again = command_to_write(config, &finished);
            (finished, again)
        }
    };
    if !ranks.is_first() {
        return Ok(());
    }
    let folder = finished.output_dir.display();
    let loss =
        finished.final_loss.map_or(String::new(), |loss| format!(", mean loss over the last 10 % of steps {loss:.4}"));
    let in_all = match finished.resumed_at {
        0 => String::new(),
        _ => format!(" ({} in all)", finished.steps),
    };
    let done = match finished.steps - finished.resumed_at {
        0 if finished.steps == 0 => "no steps: the initial adapter".to_owned(),
        0 if finished.steps == 1 => "the 1 step was done before".to_owned(),
        0 => format!("all {} steps were done before", finished.steps),
        steps => {
            let steps = counted(steps as usize, "step");
            format!("trained {steps}{in_all} in {}{loss}", duration(began.elapsed().as_secs_f64()))
        }
    };
    let json = json!({
        "event": "finished", "steps": finished.steps, "loss": finished.final_loss, "path": folder.to_string(),
        "try": again,
    });
    let again = again.map_or(String::new(), |command| format!("\ntry it:  {command}"));
    reporter.summary(json, &format!("\n{done}; everything is in {folder}{again}"));
    destination.map_or(Ok(()), |destination| destination.push(&finished.output_dir, control.interrupt(), reporter))
}

/// How many processes there are, and what they exchange gradients through.
fn report_ranks(ranks: &Ranks, device: Device, observer: &mut dyn Observer) -> Result<()> {
    let backend = ranks.use_device(device)?;
    ranks.share_host_memory()?;
    if !ranks.is_alone() {
        let place = if ranks.share_a_machine() { "on this machine" } else { "on several machines" };
        let text = format!("{} {place}, gradients by {backend}", processes(ranks.count()));
        observer.fact_with("processes", text, json!({ "processes": ranks.count(), "backend": backend }));
    }
    Ok(())
}

/// Where an adapter goes when it is trained.
struct Destination {
    hub: Hub,
    /// Of the token.
    user: String,
    repo: Option<String>,
}

impl Destination {
    /// That of `options`, if they ask for one. The hub is asked about the token now, and not after a night's training.
    fn of(options: &HubArgs, interrupt: &Interrupt, reporter: &mut Reporter) -> Result<Option<Self>> {
        if !options.push_to_hub {
            return Ok(None);
        }
        let (hub, repo) = (push::hub(options.hub_token.as_ref())?, options.hub_model_id.clone());
        let whole = |id: &String| if id.contains('/') { id.clone() } else { format!("owner/{id}") };
        hub.check_push(&repo.as_ref().map_or_else(|| "owner/name".to_owned(), whole))?;
        let user = push::user(&hub, interrupt, reporter)?;
        Ok(Some(Self { hub, user, repo }))
    }

    fn push(self, folder: &Path, interrupt: &Interrupt, reporter: &mut Reporter) -> Result<()> {
        let named = || folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = self.repo.unwrap_or_else(named);
        let repo = if name.contains('/') { name } else { format!("{}/{name}", self.user) };
        let config = PushConfig { adapter: folder.to_owned(), repo, token: None, public: false, license: None };
        let pushed = push::push(&config, &self.hub, interrupt, reporter);
        let again = format!(
            "the adapter is in {}, and `lorabooth adapter push {} --repo {}` pushes it",
            folder.display(),
            shell_path(folder),
            shell_word(&config.repo)
        );
        let pushed = pushed.map_err(|error| match error {
            Error::Interrupted(text) => Error::Interrupted(format!("{text}; {again}")),
            other => Error::invalid(format!("{other}; {again}")),
        })?;
        report(&pushed, reporter);
        Ok(())
    }
}

/// The command that draws with the adapter.
fn command_to_draw(config: &DreamBoothConfig, finished: &Finished) -> String {
    let model = &config.model;
    let mut command = format!("lorabooth generate --model {}", shell_word(&model.name));
    let described = model.config_folder.as_ref().map(|folder| folder.display().to_string());
    for (flag, value) in [
        ("--revision", &model.revision),
        ("--variant", &model.variant),
        ("--tokenizer-name", &model.tokenizer_name),
        ("--config-folder", &described),
        ("--prediction-type", &model.prediction_type),
    ] {
        if let Some(value) = value {
            command.push_str(&format!(" {flag} {}", shell_word(value)));
        }
    }
    if let Some(side) = finished.resolution {
        command.push_str(&format!(" --height {side} --width {side}"));
    }
    if config.guidance_scale != GUIDANCE_SCALE {
        command.push_str(&format!(" --guidance-scale {}", config.guidance_scale));
    }
    command.push_str(&storage_flags(&config.training.weights));
    let lora = shell_path(&finished.output_dir);
    let prompt = finished.sample.as_ref().map_or(&config.instance_prompt, |sample| &sample.prompt);
    format!("{command} --lora {lora} {} --output try.png", prompt_flag(prompt))
}

/// The command that tries the adapter; none where the model's positions leave no room for an answer.
fn command_to_write(config: &LanguageConfig, finished: &Finished) -> Option<String> {
    let TextSample { prompt, room } = finished.sample.as_ref()?;
    let mut command = format!("lorabooth complete --model {}", shell_path(&config.model));
    if let Some(revision) = &config.revision {
        command.push_str(&format!(" --revision {}", shell_word(revision)));
    }
    command.push_str(&storage_flags(&config.training.weights));
    if let Some(room) = room.filter(|&room| room < MAX_NEW_TOKENS as i64) {
        command.push_str(&format!(" --max-new-tokens {room}"));
    }
    Some(format!("{command} --adapter {} {}", shell_path(&finished.output_dir), prompt_flag(prompt)))
}

/// `--prompt` with its text, which is no flag where it begins with a dash.
fn prompt_flag(prompt: &str) -> String {
    let between = if prompt.starts_with('-') { '=' } else { ' ' };
    format!("--prompt{between}{}", shell_word(prompt))
}

/// The flags that ask for weights as they were kept, behind a space each.
fn storage_flags(weights: &StorageArgs) -> String {
    let Storage { quantize, int8_threshold, streamed } = weights.storage();
    let mut flags = String::new();
    if quantize != Quantize::None {
        flags.push_str(&format!(" --quantize {}", quantize.name()));
    }
    if int8_threshold != DEFAULT_THRESHOLD {
        flags.push_str(&format!(" --int8-threshold {int8_threshold}"));
    }
    if streamed {
        flags.push_str(" --offload cpu");
    }
    flags
}
