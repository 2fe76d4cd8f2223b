//! Trainings of language models on records.

use super::failure::{Answer, Failure};
use super::jobs::Job;
use super::models::ModelKind;
use super::observer::JobObserver;
use super::options::{self, Asked};
use super::plan::{self, Warnings};
use super::training::{init_adapter, keep_within_limits, of_failure, step_down, Training};
use super::{sets, App};
use crate::data::language_dataset::LanguageTask;
use crate::error::Result;
use crate::options::language::LanguageConfig;
use crate::options::reading::Configuration;
use crate::recipes::language;
use crate::recipes::language::adapter::WantedAdapter;
use crate::recipes::language::base::WantedModel;
use crate::recipes::language::plan::{PlannedModel, RecordLengths};
use crate::recipes::training::control::Control;
use crate::train::checkpoint;
use clap::Command;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Options of the recipe that the server fills in itself, or that name a path.
pub const FILLED_IN: &[&str] = &[
    "model",
    "train_file",
    "validation_file",
    "output_dir",
    "logging_dir",
    "overwrite",
    "resume_from_checkpoint",
    "init_adapter",
    "push_to_hub",
    "hub_model_id",
    "hub_token",
];

/// The recipe's options as clap has them.
pub fn command() -> Command {
    LanguageConfig::command()
}

/// The records in the folder `folder`; none where there is no file of them.
fn records_in(folder: &Path) -> Option<PathBuf> {
    let mut entries = std::fs::read_dir(folder).ok()?.flatten();
    entries.next().map(|entry| entry.path())
}

fn of_options(
    app: &App,
    id: &str,
    owner: &str,
    wanted: &Map<String, Value>,
    records: Option<&Path>,
) -> Answer<Training> {
    let mut asked = Asked::new(wanted);
    let Some(model) = asked.text("model")? else { return Err(Failure::field("model", "choose a language model")) };
    let model = app.models.find(&model, app.limits.is_some())?;
    if model.kind != ModelKind::Language && model.is_here() {
        return Err(Failure::field("model", format!("{} writes no texts; choose a language model", model.name)));
    }
    let seed = asked.integer("seed")?.unwrap_or(0);
    let init = asked.text("init_adapter")?;
    let validation = asked.text("validation_set")?;
    let mut flags = asked.flags(&command(), FILLED_IN)?;
    keep_within_limits(app, &mut flags)?;
    step_down(&mut flags);
    flags.push(format!("--model={}", model.argument));
    flags.extend(records.map(|records| format!("--train-file={}", records.display())));
    flags.push(format!("--output-dir={}", app.data.runs().join(id).display()));
    if let Some(set) = validation {
        let is_own = app.store.wait({
            let (set, owner) = (set.clone(), owner.to_owned());
            move |db| db.prepare_cached("SELECT 1 FROM sets WHERE id = ?1 AND owner = ?2")?.exists([set, owner])
        })?;
        let file = is_own.then(|| records_in(&sets::records_folder(app, &set))).flatten();
        let file =
            file.ok_or_else(|| Failure::field("validation_set", "there are no such records; upload them first"))?;
        flags.push(format!("--validation-file={}", file.display()));
    }
    flags.extend(init_adapter(app, owner, init)?);
    Ok(Training::new("llm", flags, seed, model))
}

fn config(flags: &[String]) -> Answer<LanguageConfig> {
    options::parsed(flags)
}

/// Keeps the records of `set` for the training `id` and refuses what cannot be meant; its command line and its usual name.
pub fn prepare(
    app: &App,
    id: &str,
    owner: &str,
    options: &Map<String, Value>,
    set: Option<&str>,
) -> Answer<(String, String)> {
    let Some(set) = set else {
        return Err(Failure::field("set", "a training needs records; upload a file of them first"));
    };
    let input = app.data.inputs().join(id);
    let prepared = sets::keep(&sets::records_folder(app, set), &input).map_err(Failure::from).and_then(|()| {
        match records_in(&input) {
            None => Err(Failure::field("set", "the set has no records; upload a file of them first")),
            Some(_) => command_of(app, id, owner, options),
        }
    });
    let command = prepared.inspect_err(|_| drop(app.data.remove(&input)))?;
    let model = options.get("model").and_then(Value::as_str).unwrap_or_default();
    let name = app.models.find(model, false).map_or_else(|_| model.to_owned(), |model| model.name);
    Ok((command, format!("{name} on records")))
}

/// The command line of the training `id`, whose records are kept, once its `options` are checked.
pub fn command_of(app: &App, id: &str, owner: &str, options: &Map<String, Value>) -> Answer<String> {
    let records = records_in(&app.data.inputs().join(id));
    let training = of_options(app, id, owner, options, records.as_deref())?;
    config(&training.flags)?.check()?;
    Ok(training.command)
}

/// Runs the training of `job`, from its last checkpoint where it has one.
pub fn train(app: &App, job: &Job, control: &Control, observer: &mut JobObserver) -> Result<()> {
    let records = records_in(&app.data.inputs().join(&job.id));
    let training = of_options(app, &job.id, &job.owner, &job.options, records.as_deref()).map_err(of_failure)?;
    let mut flags = training.flags;
    let folder = app.data.runs().join(&job.id);
    if checkpoint::latest(&folder).ok().flatten().is_some() {
        flags.push("--resume-from-checkpoint=latest".to_owned());
    } else if folder.exists() {
        flags.push("--overwrite".to_owned());
    }
    let mut config = config(&flags).map_err(of_failure)?;
    config.training.command = Some(training.command);
    language::training::train(&config, app.device, training.seed, control, observer).map(drop)
}

/// What the training would take.
pub fn planned(app: &App, owner: &str, wanted: &Map<String, Value>, set: Option<&str>) -> Answer<Value> {
    let records = set.and_then(|set| records_in(&sets::records_folder(app, set)));
    let training = of_options(app, "RUN", owner, wanted, records.as_deref())?;
    if !training.model.is_here() {
        let sentence =
            format!("{} is not on this machine yet; the plan is known once a job has fetched it", training.model.name);
        return Err(Failure::field("model", sentence));
    }
    let mut flags = training.flags.clone();
    if records.is_none() {
        flags.push("--train-file=none".to_owned());
    }
    let mut config = config(&flags)?;
    config.train_file = records.clone().unwrap_or_default();
    config.check()?;
    let mut warnings = Warnings::default();
    let model = WantedModel { configs_only: true, ..WantedModel::new(&config.model, config.revision.as_deref()) };
    let base = model.open(&mut warnings)?;
    let (mut labels, mut lengths) = (None, None);
    if records.is_some() {
        let reading = config.data.options()?;
        let data = reading.training(&config.train_file, &base.tokenizer)?;
        warnings.0.extend(data.warnings().iter().cloned());
        labels = (config.data.task == LanguageTask::SeqCls).then_some(data.classes().len() as i64);
        lengths = Some(RecordLengths::of(&data, None, config.train_batch_size));
    }
    let model = PlannedModel::of(&base.files, &WantedAdapter::new(&config, base.files.architecture())?, labels)?;
    let lengths = lengths.unwrap_or_else(|| RecordLengths::longest(&config, model.outline().longest));
    let input = model.input(&config, lengths, app.device);
    let asked = plan::Asked { kind: input.kind, steps: input.steps, warnings: warnings.0, command: training.command };
    plan::shown(app, &input, asked)
}
