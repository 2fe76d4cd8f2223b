//! Trainings of language models on records.

use super::failure::{Answer, Failure};
use super::jobs::Job;
use super::models::ModelKind;
use super::observer::JobObserver;
use super::options::Asked;
use super::plan::{self, Warnings};
use super::training::{go_on, init_adapter, keep_within_limits, of_failure, step_down, Training};
use super::{sets, App};
use crate::data::language_dataset::LanguageTask;
use crate::error::Result;
use crate::options::command_line::command_line;
use crate::options::language::LanguageConfig;
use crate::options::reading::Configuration;
use crate::recipes::language;
use crate::recipes::language::adapter::WantedAdapter;
use crate::recipes::language::base::WantedModel;
use crate::recipes::language::plan::{PlannedModel, RecordLengths};
use crate::recipes::training::control::Control;
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
    "gpus",
    "processes",
    "timeout",
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

/// The records that are kept for the job `id`.
fn kept_records(app: &App, id: &str) -> PathBuf {
    records_in(&app.data.inputs().join(id)).unwrap_or_default()
}

fn of_options(app: &App, id: &str, owner: &str, wanted: &Map<String, Value>, records: &Path) -> Answer<Training> {
    let mut asked = Asked::new(wanted);
    let model = asked.model(app, ModelKind::Language)?;
    let seed = asked.integer("seed")?.unwrap_or(0);
    let init = asked.text("init_adapter")?;
    let validation = asked.text("validation_set")?;
    let mut options = asked.rest(&command(), FILLED_IN)?;
    keep_within_limits(app, &mut options)?;
    step_down(&mut options);
    let mut fill_in = |name: &str, value: String| options.insert(name.to_owned(), Value::String(value));
    fill_in("model", model.argument.clone());
    fill_in("train_file", records.display().to_string());
    fill_in("output_dir", app.data.runs().join(id).display().to_string());
    if let Some(set) = validation {
        let is_own = app.store.wait({
            let (set, owner) = (set.clone(), owner.to_owned());
            move |db| db.prepare_cached("SELECT 1 FROM sets WHERE id = ?1 AND owner = ?2")?.exists([set, owner])
        })?;
        let file = is_own.then(|| records_in(&sets::records_folder(app, &set))).flatten();
        let file =
            file.ok_or_else(|| Failure::field("validation_set", "there are no such records; upload them first"))?;
        fill_in("validation_file", file.display().to_string());
    }
    if let Some(folder) = init_adapter(app, owner, init)? {
        fill_in("init_adapter", folder);
    }
    Ok(Training { options, seed, model })
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
    let records = kept_records(app, id);
    let training = of_options(app, id, owner, options, &records)?;
    let config = LanguageConfig::from_map(&training.options)?;
    config.check()?;
    Ok(command_line(&config, training.seed)?)
}

/// Runs the training of `job`, from its last checkpoint where it has one.
pub fn train(app: &App, job: &Job, control: &Control, observer: &mut JobObserver) -> Result<()> {
    let records = kept_records(app, &job.id);
    let mut training = of_options(app, &job.id, &job.owner, &job.options, &records).map_err(of_failure)?;
    go_on(&mut training.options, &app.data.runs().join(&job.id));
    let mut config = LanguageConfig::from_map(&training.options)?;
    config.training.command = Some(job.command.clone());
    language::training::train(&config, app.device, training.seed, control, observer).map(drop)
}

/// What the training would take.
pub fn planned(app: &App, owner: &str, wanted: &Map<String, Value>, set: Option<&str>) -> Answer<Value> {
    let records = set.and_then(|set| records_in(&sets::records_folder(app, set)));
    let named = records.as_deref().unwrap_or(Path::new("RECORDS"));
    let training = of_options(app, "RUN", owner, wanted, named)?;
    if !training.model.is_here() {
        let sentence =
            format!("{} is not on this machine yet; the plan is known once a job has fetched it", training.model.name);
        return Err(Failure::field("model", sentence));
    }
    let mut config = LanguageConfig::from_map(&training.options)?;
    let command = command_line(&config, training.seed)?;
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
    let lengths = lengths.unwrap_or_else(|| RecordLengths::longest(&config, model.outline().shape.longest));
    let input = model.input(&config, lengths, app.device);
    let asked = plan::Asked { kind: input.kind, steps: input.steps, warnings: warnings.0, command };
    plan::shown(app, &input, asked)
}
