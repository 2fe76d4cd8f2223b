//! `lorabooth plan`: the memory and time that a training run will need, from configurations alone.

use super::{is_present, Common, Reporter};
use crate::data::language_dataset::LanguageTask;
use crate::data::latent_cache::CacheMode;
use crate::error::{Error, Result};
use crate::libtorch::memory;
use crate::models::stable_diffusion::ModelOptions;
use crate::options::dreambooth::DreamBoothConfig;
use crate::options::language::LanguageConfig;
use crate::options::precision::MixedPrecision;
use crate::options::training::TrainingArgs;
use crate::plain_text::counted;
use crate::plan::{fit, parse_size, Card, Fit, LanguagePlanInput, MemoryPlan, PlanInput, Planned, Rates, Work};
use crate::recipes::dreambooth::plan::{plan_input, why_that_length, NetworkConfigs, Photos};
use crate::recipes::language::adapter::WantedAdapter;
use crate::recipes::language::base::WantedModel;
use crate::recipes::language::plan::{PlannedModel, RecordLengths};
use crate::recipes::training::observer::{Event, Observer};
use crate::recipes::{device_flag, dtype_name};
use crate::sentence::{flag, with_options};
use crate::train::precision::{half_kind, Precision};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Arg, Args, Subcommand};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

/// What to plan.
#[derive(Debug, Subcommand)]
pub enum PlanCommand {
    /// Plan a run of `train dreambooth`, with its flags; the default
    #[command(args_override_self = true)]
    Dreambooth(PlanDreamBooth),
    /// Plan a run of `train llm`, with its flags; the default with --task
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

/// `text` with the options in it as flags.
fn with_flags(text: &str) -> String {
    with_options(text, flag)
}

/// What a run must fit in.
#[derive(Debug, Args)]
struct FitFlag {
    /// Memory that the run must fit in: 8 (GB), 8GiB or 6000MB. Names the options to turn on where it does not fit as it is; exit
    /// code 1 if it does not fit with all of them either
    #[arg(long, value_name = "SIZE", help_heading = "Plan")]
    fit: Option<String>,
    /// Plan for a graphics card that need not be in this machine, such as t4, 3060 or a100-80gb: --fit with what CUDA and the driver
    /// leave of its memory, and the dtype that it computes in
    #[arg(long = "for", value_name = "CARD", conflicts_with = "fit", help_heading = "Plan")]
    card: Option<String>,
}

/// Where the planned run computes.
struct Place {
    device: Device,
    /// The card of `--for`.
    card: Option<Card>,
    /// The precision that it computes in, where it is not in this machine.
    assumed_precision: Option<Precision>,
}

impl Place {
    /// What the flags say. A card that is asked about need not be here.
    fn of(common: &Common, flags: &FitFlag, reporter: &mut Reporter) -> Result<Self> {
        let named = common.named_device()?;
        if let Some(name) = &flags.card {
            let card = Card::named(name)?;
            if named == Some(Device::Cpu) {
                return Err(Error::Usage("--for plans for a graphics card; leave --device cpu out".into()));
            }
            let precision = Precision::of_capability(Some(card.capability));
            let device = named.unwrap_or(Device::Cuda(0));
            return Ok(Self { device, card: Some(card), assumed_precision: Some(precision) });
        }
        match named.filter(|device| !is_present(*device)) {
            Some(device) => Ok(Self { device, card: None, assumed_precision: Some(Precision::Bf16) }),
            None => Ok(Self { device: common.device(reporter)?, card: None, assumed_precision: None }),
        }
    }

    /// Lets `training` compute as the card would, where that is left to the device.
    fn set_precision(&self, training: &mut TrainingArgs) {
        if let (MixedPrecision::Auto, Some(precision)) = (training.mixed_precision, self.assumed_precision) {
            training.mixed_precision = match precision {
                Precision::Fp32 => MixedPrecision::No,
                Precision::Fp16 => MixedPrecision::Fp16,
                Precision::Bf16 => MixedPrecision::Bf16,
            };
        }
    }

    /// The 16-bit dtype of the device.
    fn half(&self) -> Kind {
        self.assumed_precision.map_or_else(|| half_kind(self.device), Precision::compute_kind)
    }

    /// What the plan assumes of a card that it cannot look at.
    fn assumptions(&self) -> Option<String> {
        let precision = self.assumed_precision?.flag();
        Some(match &self.card {
            Some(card) => {
                let (major, minor) = card.capability;
                let others = match card.other_sizes().as_slice() {
                    [] => String::new(),
                    names => format!("; there is also --for {}", names.join(" and ")),
                };
                format!(
                    "planned for the {} with {} GB, compute capability {major}.{minor}, which computes in {precision}: error correction, \
                     the driver and the CUDA context leave {} to a run{others}",
                    card.name,
                    card.sold_gb,
                    gib(card.usable_bytes())
                )
            }
            None => format!(
                "planned for a CUDA card that is not in this machine, assumed to be of compute capability 8.0 or higher, which \
                 computes in {precision}; name an older one with --for, such as --for t4"
            ),
        })
    }

    /// Bytes that the run must fit in, and the same in words.
    fn budget(&self, flags: &FitFlag) -> Result<Option<(u64, String)>> {
        match (&self.card, &flags.fit) {
            (Some(card), _) => Ok(Some((card.usable_bytes(), format!("the {} with {} GB", card.name, card.sold_gb)))),
            (None, Some(size)) => {
                let is_bare = size.trim().parse::<f64>().is_ok();
                let bytes = parse_size(size).map_err(|error| Error::Usage(format!("--fit: {error}")))?;
                Ok(Some((bytes, if is_bare { format!("{} GB", size.trim()) } else { size.clone() })))
            }
            (None, None) => Ok(None),
        }
    }

    fn is_measured(&self) -> bool {
        self.assumed_precision.is_none()
    }
}

/// Less than this is given in MiB.
const SMALL: u64 = 100 << 20;

const ASSUMED_PHOTOS: &str =
    "planned for photos that are not square: their crops are random, so the VAE's encoder stays loaded; \
    give --instance-data-dir to plan for yours";

fn optional(arg: Arg) -> Arg {
    arg.required(false).default_value("").hide_default_value(true)
}

fn optional_path(arg: Arg) -> Arg {
    optional(arg).value_parser(OsStringValueParser::new().map(PathBuf::from))
}

/// Runs the command; false where nothing makes the run fit.
pub fn run(command: PlanCommand, common: &Common, reporter: &mut Reporter) -> Result<bool> {
    match command {
        PlanCommand::Dreambooth(args) => dreambooth(args, common, reporter),
        PlanCommand::Llm(args) => llm(args, common, reporter),
    }
}

fn dreambooth(args: PlanDreamBooth, common: &Common, reporter: &mut Reporter) -> Result<bool> {
    let (mut config, place) = (args.config, Place::of(common, &args.fit, reporter)?);
    place.set_precision(&mut config.training);
    let budget = place.budget(&args.fit)?;
    config.check()?;
    config.warnings().into_iter().for_each(|text| reporter.on(Event::Warning { text }));
    let options = ModelOptions { configs_only: true, ..config.model.options() };
    let files = crate::recipes::open_model(&config.model.name, &options, reporter)?;
    let (networks, config) = (NetworkConfigs::of(&files)?, &config.for_model(&files)?);
    let photos = Photos::of(config, &files, reporter)?;
    let input = plan_input(config, &networks, photos.as_ref(), place.device)?;
    let input = PlanInput { half: place.half(), ..input };
    let assumed = photos.is_none() && config.cache_latents == CacheMode::Auto && !input.cache_latents;
    let asked = Asked {
        assumed: assumed.then(|| ASSUMED_PHOTOS.to_owned()).into_iter().chain(place.assumptions()).collect(),
        steps: input.steps,
        shares: Shares::of(&config.training, config.train_batch_size, "photo"),
        length: photos.as_ref().and_then(|photos| why_that_length(config, photos)),
        resolution: Some(config.side()),
        kind: input.kind,
        place,
        budget,
    };
    report(&input, &asked, reporter)
}

fn llm(args: PlanLlm, common: &Common, reporter: &mut Reporter) -> Result<bool> {
    let (mut config, place) = (args.config, Place::of(common, &args.fit, reporter)?);
    place.set_precision(&mut config.training);
    let budget = place.budget(&args.fit)?;
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
            let labels = (config.data.task == LanguageTask::SeqCls).then_some(data.classes().len() as i64);
            (base.files, Some(RecordLengths::of(&data, validation.as_ref(), config.train_batch_size)), labels)
        }
        false => (model.open_files(reporter)?, None, None),
    };
    let model = PlannedModel::of(&files, &WantedAdapter::new(&config, files.architecture())?, labels)?;
    let lengths = records.unwrap_or_else(|| RecordLengths::longest(&config, model.outline().shape.longest));
    let input = LanguagePlanInput { half: place.half(), ..model.input(&config, lengths, place.device) };
    let assumed = || {
        let longest = input.texts.most.length;
        format!(
            "planned for texts of {longest} tokens (--max-seq-length); give --train-file to use the lengths of yours"
        )
    };
    let asked = Asked {
        assumed: (!has_records).then(assumed).into_iter().chain(place.assumptions()).collect(),
        steps: input.steps,
        shares: Shares::of(&config.training, config.train_batch_size, "record"),
        length: None,
        resolution: None,
        kind: input.kind,
        place,
        budget,
    };
    report(&input, &asked, reporter)
}

/// A run of several processes.
struct Shares {
    processes: u64,
    /// What an optimizer step learns from in all of them, and one of those.
    batch: u64,
    unit: &'static str,
}

impl Shares {
    fn of(training: &TrainingArgs, batch: usize, unit: &'static str) -> Self {
        let processes = training.ranks_args.count();
        Self { processes, batch: processes * batch as u64 * training.gradient_accumulation_steps, unit }
    }

    /// Bytes that each process gives the others in a step: a number of 4 bytes a parameter.
    fn exchanged(&self, plan: &MemoryPlan) -> u64 {
        if self.processes == 1 {
            0
        } else {
            4 * plan.trained_parameters
        }
    }

    fn line(&self, plan: &MemoryPlan) -> Option<String> {
        let exchanged = gib(self.exchanged(plan));
        (self.processes > 1).then(|| {
            format!(
                "that is the peak of each of {} processes, with {exchanged} more to exchange gradients; a step learns from {} in all, and \
                 each process sends {exchanged} a step",
                self.processes,
                counted(self.batch as usize, self.unit)
            )
        })
    }
}

/// What a plan is asked for, beside the run's own options.
struct Asked {
    /// What was assumed, a sentence each.
    assumed: Vec<String>,
    steps: u64,
    /// What processes share.
    shares: Shares,
    /// Why they are so many, where the flags do not say.
    length: Option<String>,
    /// Height and width of the images, in pixels.
    resolution: Option<u32>,
    kind: Kind,
    place: Place,
    /// Bytes that the run must fit in, and the same in words.
    budget: Option<(u64, String)>,
}

/// Reports the plan of `input`; false where nothing makes it fit.
fn report(input: &impl Planned, asked: &Asked, reporter: &mut Reporter) -> Result<bool> {
    let plan = input.plan()?;
    // Nothing is known of the speed of a card that is not here.
    let measure = || Rates::measure(asked.place.device, asked.kind, &plan.work());
    let rates = asked.place.is_measured().then(measure).transpose()?;
    let slow_dtype = match rates {
        Some(_) => crate::recipes::slow_dtype(asked.place.device, asked.kind)?,
        None => None,
    };
    let fitted = asked.budget.as_ref().map(|(bytes, _)| fit(*bytes, input, &plan)).transpose()?;
    let size = asked.resolution.map(|side| format!("planned for images of {side} × {side} pixels"));
    let mut lines: Vec<String> = asked.assumed.iter().cloned().chain(size).collect();
    lines.extend(phase_lines(&plan, rates.as_ref()));
    lines.extend(summary_lines(&plan, asked, rates.as_ref()));
    lines.extend(slow_dtype.clone());
    if let (Some((_, budget)), Some(fitted)) = (&asked.budget, &fitted) {
        lines.extend(fit_lines(budget, fitted));
    }
    let mut json = as_json(&plan, asked, rates.as_ref(), fitted.as_ref());
    json["slow_dtype"] = json!(slow_dtype);
    reporter.result(json, &with_flags(&lines.join("\n")));
    Ok(fitted.is_none_or(|fitted| fitted.fits))
}

fn as_json(plan: &MemoryPlan, asked: &Asked, rates: Option<&Rates>, fitted: Option<&Fit>) -> Value {
    let seconds = |work: &Work| rates.map(|rates| rates.seconds(work));
    let phases: Vec<_> = plan
        .phases
        .iter()
        .map(|phase| {
            json!({ "name": phase.name, "bytes": phase.bytes(), "parts": phase.parts, "seconds": seconds(&phase.work) })
        })
        .collect();
    let suggestions: Vec<_> = fitted
        .iter()
        .flat_map(|fitted| &fitted.suggestions)
        .map(|s| json!({ "what": with_flags(&s.what), "saves_bytes": s.saves_bytes, "costs": s.costs }))
        .collect();
    json!({
        "event": "plan", "device": device_flag(asked.place.device), "card": asked.place.card.map(|card| card.name),
        "dtype": dtype_name(asked.kind), "phases": phases, "peak_bytes": plan.peak_bytes,
        "seconds_per_step": seconds(&plan.step_work), "steps": asked.steps, "length": asked.length.as_deref().map(with_flags),
        "resolution": asked.resolution, "processes": asked.shares.processes, "global_batch": asked.shares.batch,
        "exchanged_bytes_per_step": asked.shares.exchanged(plan),
        "seconds": rates.filter(|_| asked.steps > 0).map(|rates| seconds_in_all(plan, rates)),
        "assumed": (!asked.assumed.is_empty()).then(|| asked.assumed.join("; ")),
        "trained_parameters": plan.trained_parameters, "flops_per_step": plan.step_work.flops(),
        "budget_bytes": asked.budget.as_ref().map(|(bytes, _)| bytes),
        "suggestions": suggestions, "fits": fitted.map(|fitted| fitted.fits),
        "fits_as_asked": fitted.map(|fitted| fitted.fits && fitted.suggestions.is_empty()),
        "fitted_peak_bytes": fitted.map(|fitted| fitted.peak_bytes),
    })
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
fn phase_lines(plan: &MemoryPlan, rates: Option<&Rates>) -> Vec<String> {
    let mut lines = Vec::new();
    for phase in &plan.phases {
        let time = rates.map_or(String::new(), |rates| about(rates.seconds(&phase.work)));
        lines.push(format!("{:>10}  {:<18}  {time}", gib(phase.bytes()), phase.name).trim_end().to_owned());
        lines.extend(phase.parts.iter().map(|(name, bytes)| format!("{:>24}  {name}", gib(*bytes))));
    }
    lines
}

fn summary_lines(plan: &MemoryPlan, asked: &Asked, rates: Option<&Rates>) -> Vec<String> {
    let more = match asked.place.device {
        Device::Cpu => format!(", plus {} for the program itself", gib(memory::host_now())),
        _ => ", plus about 0.5 GiB for the CUDA context".to_owned(),
    };
    let mut lines = vec![
        format!("{:>10}  peak of the run in {}{more}", gib(plan.peak_bytes), dtype_name(asked.kind)),
        format!("{:>10}  trained parameters", plan.trained_parameters),
    ];
    match rates {
        Some(rates) => {
            let step = about(rates.seconds(&plan.step_work));
            lines.push(format!("a step takes {step}, estimated from a quick benchmark of this machine"));
            if asked.steps > 0 {
                lines.push(format!(
                    "the run of {} takes {}",
                    counted(asked.steps as usize, "step"),
                    about(seconds_in_all(plan, rates))
                ));
            }
        }
        None => {
            lines.push("no time is predicted: the card is not in this machine, so its speed cannot be measured".into())
        }
    }
    lines.extend(asked.length.clone());
    lines.extend(asked.shares.line(plan));
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
        (true, true) => format!("it fits {budget} without changes"),
        (true, false) => format!("then it fits {budget}, with a peak of {}", gib(fitted.peak_bytes)),
        (false, _) => format!("nothing makes it fit {budget}: the least is {}", gib(fitted.peak_bytes)),
    });
    lines
}
