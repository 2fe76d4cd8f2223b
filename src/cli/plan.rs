//! `lorabooth plan`: the memory and time that a training run will need, from configurations alone.

use super::{Common, Reporter};
use crate::error::{Error, Result};
use crate::libtorch::memory;
use crate::models::stable_diffusion::ModelOptions;
use crate::recipes::dreambooth_config::{CacheLatents, DreamBoothConfig};
use crate::recipes::dreambooth_plan::{plan_input, why_that_length, NetworkConfigs, Photos};
use crate::recipes::language_adapter::WantedAdapter;
use crate::recipes::language_base::WantedModel;
use crate::recipes::language_config::LanguageConfig;
use crate::recipes::language_data_args::TaskChoice;
use crate::recipes::language_plan::{PlannedModel, RecordLengths};
use crate::recipes::observer::{Event, Observer};
use crate::train::memory_plan::{fit, parse_size, Fit, MemoryPlan, Planned, Rates};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Arg, Args, Subcommand};
use serde_json::json;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

/// What to plan.
#[derive(Debug, Subcommand)]
pub enum PlanCommand {
    /// A run of `train dreambooth`, whose flags these are; meant where neither is named
    #[command(args_override_self = true)]
    Dreambooth(PlanDreamBooth),
    /// A run of `train llm`, whose flags these are
    #[command(args_override_self = true)]
    Llm(PlanLlm),
}

/// The flags of `train dreambooth`, of which the photos' folder and the prompt may be left out.
#[derive(Debug, Args)]
#[command(mut_arg("instance_data_dir", optional_path), mut_arg("instance_prompt", optional))]
pub struct PlanDreamBooth {
    #[command(flatten)]
    config: Box<DreamBoothConfig>,
    #[command(flatten)]
    fit: FitFlag,
}

/// The flags of `train llm`, of which the records may be left out.
#[derive(Debug, Args)]
#[command(mut_arg("train_file", optional_path))]
pub struct PlanLlm {
    #[command(flatten)]
    config: Box<LanguageConfig>,
    #[command(flatten)]
    fit: FitFlag,
}

/// What a run shall fit.
#[derive(Debug, Args)]
struct FitFlag {
    /// Say what to turn on to fit this much memory, such as 11GB
    #[arg(long, help_heading = "Plan")]
    fit: Option<String>,
}

/// Less than this is told in MiB.
const SMALL: u64 = 100 << 20;

const ASSUMED_PHOTOS: &str =
    "planned for photos that are not square: their crops are random, so the VAE's encoder stays loaded; \
    give --instance-data-dir to have yours looked at";

fn optional(arg: Arg) -> Arg {
    arg.required(false).default_value("").hide_default_value(true)
}

fn optional_path(arg: Arg) -> Arg {
    optional(arg).value_parser(OsStringValueParser::new().map(PathBuf::from))
}

/// Runs the command.
pub fn run(command: PlanCommand, common: &Common, reporter: &mut Reporter) -> Result<()> {
    match command {
        PlanCommand::Dreambooth(args) => dreambooth(&args, common.device()?, reporter),
        PlanCommand::Llm(args) => llm(&args, common.device()?, reporter),
    }
}

fn dreambooth(args: &PlanDreamBooth, device: Device, reporter: &mut Reporter) -> Result<()> {
    let config = &args.config;
    config.check()?;
    config.warnings().into_iter().for_each(|text| reporter.on(Event::Warning { text }));
    let options = ModelOptions { configs_only: true, ..config.model.options() };
    let files = crate::recipes::open_model(&config.model.name, &options, reporter)?;
    let (networks, config) = (NetworkConfigs::of(&files)?, &config.for_model(&files)?);
    let photos = Photos::of(config, &files, reporter)?;
    let input = plan_input(config, &networks, photos.as_ref(), device)?;
    let assumed = photos.is_none() && config.cache_latents == CacheLatents::Auto && !input.cache_latents;
    let said = Said {
        targets: format!("{}; to_q,to_v are usual", config.lora_targets),
        assumed: assumed.then(|| ASSUMED_PHOTOS.to_owned()),
        steps: input.steps,
        length: photos.as_ref().and_then(|photos| why_that_length(config, photos)),
        resolution: Some(config.side()),
        kind: input.kind,
        device,
    };
    report(&input, args.fit.fit.as_deref(), said, reporter)
}

fn llm(args: &PlanLlm, device: Device, reporter: &mut Reporter) -> Result<()> {
    let config = &args.config;
    config.check()?;
    let model = WantedModel { configs_only: true, ..WantedModel::new(&config.model, config.revision.as_deref()) };
    let has_records = config.train_file != Path::new("");
    let (files, records, labels) = match has_records {
        true => {
            let base = model.open(reporter)?;
            let options = config.data.options()?;
            let data = options.training(&config.train_file, &base.tokenizer)?;
            let read = |file: &PathBuf| options.validation(file, &base.tokenizer, &data);
            let validation = config.validation_file.as_ref().map(read).transpose()?;
            for data in [Some(&data), validation.as_ref()].into_iter().flatten() {
                data.warnings().iter().for_each(|text| reporter.on(Event::Warning { text: text.clone() }));
            }
            let labels = (config.data.task == TaskChoice::SeqCls).then_some(data.classes().len() as i64);
            (base.files, Some(RecordLengths::of(&data, validation.as_ref(), config.train_batch_size)), labels)
        }
        false => (model.open_files(reporter)?, None, None),
    };
    let model = PlannedModel::of(&files, &WantedAdapter::new(config, files.architecture())?, labels)?;
    let lengths = records.unwrap_or_else(|| RecordLengths::longest(config, model.outline().longest));
    let input = model.input(config, lengths, device);
    let assumed = || {
        let longest = input.texts.most.length;
        format!("planned for texts of {longest} tokens (--max-seq-length); give --train-file to have yours looked at")
    };
    let usual = files.architecture().lora_targets.join(",");
    let said = Said {
        targets: format!("{}; {usual} are usual", config.lora_targets.as_deref().unwrap_or_default()),
        assumed: (!has_records).then(assumed),
        steps: input.steps,
        length: None,
        resolution: None,
        kind: input.kind,
        device,
    };
    report(&input, args.fit.fit.as_deref(), said, reporter)
}

/// What is told beside the plan.
struct Said {
    /// The targets that were asked for, and usual ones.
    targets: String,
    /// What was taken for granted.
    assumed: Option<String>,
    steps: u64,
    /// Why they are so many, where the flags do not say.
    length: Option<String>,
    /// Height and width of the images, in pixels.
    resolution: Option<u32>,
    kind: Kind,
    device: Device,
}

fn report(input: &impl Planned, budget: Option<&str>, said: Said, reporter: &mut Reporter) -> Result<()> {
    let bytes = budget.map(parse_size).transpose()?;
    let plan = input.plan()?;
    if plan.trained_parameters == 0 {
        return Err(Error::invalid(format!("no module of the model matches --lora-targets {}", said.targets)));
    }
    let rates = Rates::measure(said.device, said.kind)?;
    let slow_dtype = crate::recipes::slow_dtype(said.device, said.kind)?;
    let fitted = bytes.map(|bytes| fit(bytes, input)).transpose()?;
    let size = said.resolution.map(|side| format!("planned for images of {side} × {side} pixels"));
    let mut lines: Vec<String> = said.assumed.clone().into_iter().chain(size).collect();
    lines.extend(phase_lines(&plan, &rates));
    lines.extend(summary_lines(&plan, &said, &rates));
    lines.extend(slow_dtype.clone());
    if let (Some(budget), Some(fitted)) = (budget, &fitted) {
        lines.extend(fit_lines(budget, fitted));
    }
    let phases: Vec<_> = plan
        .phases
        .iter()
        .map(|phase| {
            let seconds = rates.seconds(&phase.work);
            json!({ "name": phase.name, "bytes": phase.bytes(), "parts": phase.parts, "seconds": seconds })
        })
        .collect();
    let suggestions: Vec<_> = fitted
        .iter()
        .flat_map(|fitted| &fitted.suggestions)
        .map(|s| json!({ "what": s.what, "saves_bytes": s.saves_bytes, "costs": s.costs }))
        .collect();
    let report = json!({
        "phases": phases, "peak_bytes": plan.peak_bytes, "seconds_per_step": rates.seconds(&plan.step_work),
        "steps": said.steps, "length": said.length, "resolution": said.resolution, "seconds": (said.steps > 0).then(|| seconds_in_all(&plan, &rates)), "assumed": said.assumed,
        "trained_parameters": plan.trained_parameters, "flops_per_step": plan.step_work.flops(),
        "slow_dtype": slow_dtype,
        "suggestions": suggestions, "fits": fitted.as_ref().map(|fitted| fitted.fits),
        "fitted_peak_bytes": fitted.as_ref().map(|fitted| fitted.peak_bytes),
    });
    reporter.result(report, &lines.join("\n"));
    Ok(())
}

fn gib(bytes: u64) -> String {
    match bytes {
        0..SMALL => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.2} GiB", memory::gib(bytes)),
    }
}

/// A time as people say it; nothing for no time.
fn about(seconds: f64) -> String {
    match seconds {
        0.0 => String::new(),
        s if s < 0.1 => "under 0.1 s".to_owned(),
        s if s < 100.0 => format!("about {s:.1} s"),
        s if s < 6000.0 => format!("about {:.0} min", s / 60.0),
        s => format!("about {:.1} hours", s / 3600.0),
    }
}

fn seconds_in_all(plan: &MemoryPlan, rates: &Rates) -> f64 {
    plan.phases.iter().map(|phase| rates.seconds(&phase.work)).sum()
}

/// Each phase with its parts.
fn phase_lines(plan: &MemoryPlan, rates: &Rates) -> Vec<String> {
    let mut lines = Vec::new();
    for phase in &plan.phases {
        let time = about(rates.seconds(&phase.work));
        lines.push(format!("{:>10}  {:<18}  {time}", gib(phase.bytes()), phase.name).trim_end().to_owned());
        lines.extend(phase.parts.iter().map(|(name, bytes)| format!("{:>24}  {name}", gib(*bytes))));
    }
    lines
}

fn summary_lines(plan: &MemoryPlan, said: &Said, rates: &Rates) -> Vec<String> {
    let beside = match said.device {
        Device::Cpu => format!(", beside {} of the program itself", gib(memory::host_now())),
        _ => String::new(),
    };
    let step = about(rates.seconds(&plan.step_work));
    let mut lines = vec![
        format!("{:>10}  peak of the run{beside}", gib(plan.peak_bytes)),
        format!("{:>10}  trained parameters", plan.trained_parameters),
        format!("a step takes {step}, by a quick measure of this machine"),
    ];
    if said.steps > 0 {
        let all = about(seconds_in_all(plan, rates));
        lines.push(format!("the run of {} steps takes {all}", said.steps));
        lines.extend(said.length.clone());
    }
    lines
}

fn fit_lines(budget: &str, fitted: &Fit) -> Vec<String> {
    let mut lines: Vec<String> = fitted
        .suggestions
        .iter()
        .map(|suggestion| {
            format!("turn on {}: saves {}, {}", suggestion.what, gib(suggestion.saves_bytes), suggestion.costs)
        })
        .collect();
    lines.push(match (fitted.fits, fitted.suggestions.is_empty()) {
        (true, true) => format!("it fits {budget} as it is"),
        (true, false) => format!("then it fits {budget}, with a peak of {}", gib(fitted.peak_bytes)),
        (false, _) => format!("nothing makes it fit {budget}: the least is {}", gib(fitted.peak_bytes)),
    });
    lines
}
