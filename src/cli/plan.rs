//! `lorabooth plan`: the memory and time that a training run will need, from configurations alone.

use super::{Common, Reporter};
use crate::error::{Error, Result};
use crate::libtorch::memory;
use crate::models::stable_diffusion::ModelOptions;
use crate::recipes::dreambooth_config::{CacheLatents, DreamBoothConfig};
use crate::recipes::dreambooth_plan::{plan_input, NetworkConfigs, Photos};
use crate::recipes::observer::{Event, Observer};
use crate::train::memory_plan::{fit, parse_size, Fit, MemoryPlan, PlanInput, Rates};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Arg, Args};
use serde_json::json;
use std::path::PathBuf;

/// The flags of `train dreambooth`, of which the photos' folder and the prompt may be left out.
#[derive(Debug, Args)]
#[command(
    mut_arg("instance_data_dir", |arg| optional(arg).value_parser(OsStringValueParser::new().map(PathBuf::from))),
    mut_arg("instance_prompt", optional)
)]
pub struct PlanArgs {
    #[command(flatten)]
    config: Box<DreamBoothConfig>,
    /// Say what to turn on to fit this much memory, such as 11GB
    #[arg(long, help_heading = "Plan")]
    fit: Option<String>,
}

const ASSUMED: &str =
    "planned for photos that are not square: their crops are random, so the VAE's encoder stays loaded; \
    give --instance-data-dir to have yours looked at";

fn optional(arg: Arg) -> Arg {
    arg.required(false).default_value("").hide_default_value(true)
}

/// Runs the command.
pub fn run(args: PlanArgs, common: &Common, reporter: &mut Reporter) -> Result<()> {
    let config = &args.config;
    let budget = args.fit.as_deref().map(parse_size).transpose()?;
    let device = common.device()?;
    config.check()?;
    config.warnings().into_iter().for_each(|text| reporter.on(Event::Warning { text }));
    let options = ModelOptions { configs_only: true, ..config.model.options() };
    let networks = NetworkConfigs::of(&crate::recipes::open_model(&config.model.name, &options, reporter)?)?;
    let photos = Photos::of(config)?;
    let input = plan_input(config, &networks, photos.as_ref(), device)?;
    let assumed =
        (photos.is_none() && config.cache_latents == CacheLatents::Auto && !input.cache_latents).then_some(ASSUMED);
    let plan = MemoryPlan::new(&input)?;
    if plan.trained_parameters == 0 {
        let flag = "no module of the model matches --lora-targets";
        return Err(Error::invalid(format!("{flag} {}; to_q,to_v are usual", config.lora_targets)));
    }
    let rates = Rates::measure(device, input.kind)?;
    let fitted = budget.map(|budget| fit(budget, &input)).transpose()?;
    let mut lines: Vec<String> = assumed.map(str::to_owned).into_iter().collect();
    lines.extend(phase_lines(&plan, &rates));
    lines.extend(summary_lines(&plan, &input, &rates));
    if let (Some(budget), Some(fitted)) = (&args.fit, &fitted) {
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
        "steps": input.steps, "seconds": seconds_in_all(&plan, &rates), "assumed": assumed,
        "trained_parameters": plan.trained_parameters, "flops_per_step": plan.step_work.flops(),
        "suggestions": suggestions, "fits": fitted.as_ref().map(|fitted| fitted.fits),
        "fitted_peak_bytes": fitted.as_ref().map(|fitted| fitted.peak_bytes),
    });
    reporter.result(report, &lines.join("\n"));
    Ok(())
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", memory::gib(bytes))
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

fn summary_lines(plan: &MemoryPlan, input: &PlanInput, rates: &Rates) -> Vec<String> {
    let step = about(rates.seconds(&plan.step_work));
    let mut lines = vec![
        format!("{:>10}  peak of the run, above what the process starts with", gib(plan.peak_bytes)),
        format!("{:>10}  trained parameters", plan.trained_parameters),
        format!("a step takes {step}, by a quick measure of this machine"),
    ];
    if input.steps > 0 {
        let all = about(seconds_in_all(plan, rates));
        lines.push(format!("the run of {} steps takes {all}", input.steps));
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
