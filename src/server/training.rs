//! Trainings: from what was asked for to the recipe's configuration, and the run itself.

use super::failure::{Answer, Failure};
use super::ids::hex;
use super::jobs::Job;
use super::likeness::Subject;
use super::models::{Model, ModelKind};
use super::observer::JobObserver;
use super::options::Asked;
use super::{library, sets, App};
use crate::error::{Error, Result};
use crate::options::command_line::command_line;
use crate::options::dreambooth::DreamBoothConfig;
use crate::options::reading::Configuration;
use crate::recipes::dreambooth;
use crate::recipes::training::control::Control;
use crate::sentence::option;
use crate::train::checkpoint;
use axum::http::StatusCode;
use clap::Command;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Steps of a training on a public server where its options say nothing.
const USUAL_STEPS: u64 = 800;

/// Options of the recipe that the server fills in itself, or that name a path.
pub const FILLED_IN: &[&str] = &[
    "model",
    "instance_data_dir",
    "class_data_dir",
    "output_dir",
    "logging_dir",
    "overwrite",
    "resume_from_checkpoint",
    "config_folder",
    "tokenizer_name",
    "init_adapter",
    "push_to_hub",
    "hub_model_id",
    "hub_token",
    "gpus",
    "processes",
    "timeout",
];

/// The recipe's options as clap has them.
pub fn dreambooth_command() -> Command {
    DreamBoothConfig::command()
}

/// A training that is asked for, with every name resolved.
pub struct Training {
    /// The recipe's options, without those of resuming.
    pub options: Map<String, Value>,
    /// The seed of all draws.
    pub seed: i64,
    /// The model.
    pub model: Model,
}

/// What `wanted` asks for of the training `id` on the photos in the folder `photos`.
pub fn of_options(app: &App, id: &str, owner: &str, wanted: &Map<String, Value>, photos: &Path) -> Answer<Training> {
    let mut asked = Asked::new(wanted);
    let model = asked.model(app, ModelKind::StableDiffusion)?;
    let seed = asked.integer("seed")?.unwrap_or(0);
    let init = asked.text("init_adapter")?;
    let mut options = asked.rest(&dreambooth_command(), FILLED_IN)?;
    let Some(prompt) = options.get("instance_prompt").cloned() else {
        return Err(Failure::field(
            "instance_prompt",
            "say what the photos show, with a rare word, such as \"a photo of sks dog\"",
        ));
    };
    if options.get("with_prior_preservation") == Some(&Value::Bool(true)) {
        let Some(class_prompt) = options.get("class_prompt") else {
            let sentence =
                "say what such subjects are called, such as \"a photo of a dog\", or turn prior preservation off";
            return Err(Failure::field("class_prompt", sentence));
        };
        let folder = class_folder(app, id, &options, class_prompt, &model, seed);
        options.insert("class_data_dir".to_owned(), Value::String(folder.display().to_string()));
    }
    // Pictures as it goes are on unless they are turned off by an empty prompt.
    if !wanted.contains_key("validation_prompt") {
        options.insert("validation_prompt".to_owned(), prompt);
    }
    keep_within_limits(app, &mut options)?;
    step_down(&mut options);
    let mut fill_in = |name: &str, value: String| options.insert(name.to_owned(), Value::String(value));
    fill_in("model", model.argument.clone());
    fill_in("instance_data_dir", photos.display().to_string());
    fill_in("output_dir", app.data.runs().join(id).display().to_string());
    if let Some(folder) = init_adapter(app, owner, init)? {
        fill_in("init_adapter", folder);
    }
    Ok(Training { options, seed, model })
}

/// Has a training whose options say nothing of it help itself where memory is full: nobody sits before it to start it again.
pub fn step_down(options: &mut Map<String, Value>) {
    options.entry("on_oom").or_insert_with(|| "step-down".into());
}

/// The folder of the adapter `id` of the library to start from, where there is one.
pub fn init_adapter(app: &App, owner: &str, id: Option<String>) -> Answer<Option<String>> {
    let Some(id) = id else { return Ok(None) };
    let (_, folder) = library::folder_now(app, &id, owner, None)?;
    Ok(Some(folder.display().to_string()))
}

/// Refuses a training of more steps than the server allows, and gives one without a length one.
pub fn keep_within_limits(app: &App, options: &mut Map<String, Value>) -> Answer<()> {
    let Some(limits) = app.limits else { return Ok(()) };
    if options.contains_key("num_train_epochs") {
        return Err(Failure::field("num_train_epochs", "the length of a training is given in steps here"));
    }
    let steps = options.entry("max_train_steps").or_insert_with(|| USUAL_STEPS.min(limits.max_steps).into());
    // What is no number is refused where the options are read.
    let steps = steps.as_f64().or_else(|| steps.as_str()?.parse().ok());
    match steps.filter(|steps| *steps > limits.max_steps as f64) {
        Some(steps) => {
            let sentence =
                format!("{steps} steps are more than the {} that a training may have here", limits.max_steps);
            Err(Failure::field("max_train_steps", sentence))
        }
        None => Ok(()),
    }
}

/// The folder of class images: trainings share one where the same images would be drawn. On a public server each has its own, which
/// goes with it: a visitor's class prompt, too, is nobody else's.
fn class_folder(
    app: &App,
    id: &str,
    options: &Map<String, Value>,
    class_prompt: &Value,
    model: &Model,
    seed: i64,
) -> PathBuf {
    if app.limits.is_some() {
        return app.data.class_images().join(id);
    }
    let drawn_with =
        ["resolution", "guidance_scale", "sample_batch_size", "prior_generation_precision", "mixed_precision"];
    let mut key = format!("{}\n{class_prompt}\n{seed}", model.argument);
    for name in drawn_with {
        if let Some(value) = options.get(name) {
            key.push_str(&format!("\n{name}={value}"));
        }
    }
    app.data.class_images().join(&hex(&Sha256::digest(key.as_bytes()))[..16])
}

/// Has a training go on from its last checkpoint where its `folder` has one, or begin anew in it.
pub fn go_on(options: &mut Map<String, Value>, folder: &Path) {
    if checkpoint::latest(folder).ok().flatten().is_some() {
        options.insert("resume_from_checkpoint".to_owned(), "latest".into());
    } else if folder.exists() {
        options.insert("overwrite".to_owned(), true.into());
    }
}

/// Runs the training of `job`, from its last checkpoint where it has one.
pub fn dreambooth(app: &App, job: &Job, control: &Control, observer: &mut JobObserver) -> Result<()> {
    let photos = app.data.inputs().join(&job.id);
    let mut training = of_options(app, &job.id, &job.owner, &job.options, &photos).map_err(of_failure)?;
    go_on(&mut training.options, &app.data.runs().join(&job.id));
    let mut config = DreamBoothConfig::from_map(&training.options)?;
    config.training.command = Some(job.command.clone());
    observer.compare_with(Subject::of(&photos));
    dreambooth::training::train(&config, app.device, training.seed, control, observer).map(drop)
}

/// A refusal as the error of a job.
pub fn of_failure(failure: Failure) -> Error {
    match (failure.status, failure.field) {
        (StatusCode::INTERNAL_SERVER_ERROR, _) => Error::Internal(failure.sentence),
        (_, Some(field)) => Error::invalid(format!("{}: {}", option(&field), failure.sentence)),
        (_, None) => Error::invalid(failure.sentence),
    }
}

/// Keeps the photos of `set` for the training `id` of `owner` and refuses what cannot be meant; its command line and the name that it
/// has where nobody gives it one.
pub fn prepare(
    app: &App,
    id: &str,
    owner: &str,
    options: &Map<String, Value>,
    set: Option<&str>,
) -> Answer<(String, String)> {
    let Some(set) = set else { return Err(Failure::field("set", "a training needs photos; upload some first")) };
    let photos = app.data.inputs().join(id);
    let prepared = sets::keep(&sets::photo_folder(app, set), &photos).map_err(Failure::from).and_then(|()| {
        if std::fs::read_dir(&photos).into_iter().flatten().next().is_none() {
            return Err(Failure::field("set", "the set has no photos; upload some first"));
        }
        command_of(app, id, owner, options)
    });
    let command = prepared.inspect_err(|_| drop(app.data.remove(&photos)))?;
    let prompt = options.get("instance_prompt").and_then(Value::as_str).unwrap_or_default();
    let name: String = prompt.chars().filter(|c| !c.is_control()).take(60).collect();
    Ok((command, if name.trim().is_empty() { "training".to_owned() } else { name.trim().to_owned() }))
}

/// The command line of the training `id`, whose photos are kept, once its `options` are checked.
pub fn command_of(app: &App, id: &str, owner: &str, options: &Map<String, Value>) -> Answer<String> {
    let training = of_options(app, id, owner, options, &app.data.inputs().join(id))?;
    let config = DreamBoothConfig::from_map(&training.options)?;
    config.check()?;
    Ok(command_line(&config, training.seed)?)
}
