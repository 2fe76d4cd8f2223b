//! Trainings: from what was asked for to the recipe's configuration, and the run itself.

use super::failure::{Answer, Failure};
use super::ids::hex;
use super::jobs::Job;
use super::likeness::Subject;
use super::models::{Model, ModelKind};
use super::observer::JobObserver;
use super::options::{self, Asked};
use super::{library, sets, App};
use crate::error::{Error, Result};
use crate::options::dreambooth::DreamBoothConfig;
use crate::options::reading::Configuration;
use crate::options::shell_word;
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
];

/// The recipe's options as clap has them.
pub fn dreambooth_command() -> Command {
    DreamBoothConfig::command()
}

/// A training that is asked for, with every name resolved.
pub struct Training {
    /// The recipe's options as flags, without those of resuming.
    pub flags: Vec<String>,
    /// The seed of all draws.
    pub seed: i64,
    /// The model.
    pub model: Model,
    /// The same on a command line.
    pub command: String,
}

impl Training {
    /// The training of `lorabooth train KIND` with `flags`.
    pub fn new(kind: &str, flags: Vec<String>, seed: i64, model: Model) -> Self {
        let words: Vec<String> = flags.iter().map(|flag| shell_word(flag)).collect();
        let command = format!("lorabooth train {kind} {} --seed={seed}", words.join(" "));
        Self { flags, seed, model, command }
    }
}

/// What `options` ask for of the training `id` on the photos in the folder `photos`.
pub fn of_options(app: &App, id: &str, owner: &str, options: &Map<String, Value>, photos: &Path) -> Answer<Training> {
    let mut asked = Asked::new(options);
    let model = app
        .models
        .find(&asked.text("model")?.unwrap_or_else(|| super::models::DEMO.to_owned()), app.limits.is_some())?;
    if model.kind != ModelKind::StableDiffusion {
        return Err(Failure::field(
            "model",
            format!("{} draws no pictures; choose a Stable Diffusion model", model.name),
        ));
    }
    let seed = asked.integer("seed")?.unwrap_or(0);
    let init = asked.text("init_adapter")?;
    let mut flags = asked.flags(&dreambooth_command(), FILLED_IN)?;
    let has = |flags: &[String], name: &str| flags.iter().any(|flag| flag.split('=').next() == Some(name));
    let value = |flags: &[String], name: &str| {
        let flag = flags.iter().rev().find(|flag| flag.split('=').next() == Some(name))?;
        flag.split_once('=').map(|(_, value)| value.to_owned())
    };
    let Some(prompt) = value(&flags, "--instance-prompt") else {
        return Err(Failure::field(
            "instance_prompt",
            "say what the photos show, with a rare word, such as \"a photo of sks dog\"",
        ));
    };
    // Pictures as it goes are on unless they are turned off by an empty prompt.
    if !options.contains_key("validation_prompt") {
        flags.push(format!("--validation-prompt={prompt}"));
    }
    keep_within_limits(app, &mut flags)?;
    flags.push(format!("--model={}", model.argument));
    // A plan has no photos yet.
    if photos != Path::new("") {
        flags.push(format!("--instance-data-dir={}", photos.display()));
    }
    flags.push(format!("--output-dir={}", app.data.runs().join(id).display()));
    if let Some(class_prompt) = value(&flags, "--class-prompt").filter(|_| has(&flags, "--with-prior-preservation")) {
        let folder = class_folder(app, id, &flags, &class_prompt, &model, seed);
        flags.push(format!("--class-data-dir={}", folder.display()));
    }
    flags.extend(init_adapter(app, owner, init)?);
    Ok(Training::new("dreambooth", flags, seed, model))
}

/// The flag of the adapter `id` of the library to start from, where there is one.
pub fn init_adapter(app: &App, owner: &str, id: Option<String>) -> Answer<Option<String>> {
    let Some(id) = id else { return Ok(None) };
    let (_, folder) = library::folder_now(app, &id, owner, None)?;
    Ok(Some(format!("--init-adapter={}", folder.display())))
}

/// Refuses a training of more steps than the server allows, and gives one without a length one.
pub fn keep_within_limits(app: &App, flags: &mut Vec<String>) -> Answer<()> {
    let Some(limits) = app.limits else { return Ok(()) };
    if options::number_of(flags, "--num-train-epochs").is_some() {
        return Err(Failure::field("num_train_epochs", "the length of a training is given in steps here"));
    }
    match options::number_of(flags, "--max-train-steps") {
        Some(steps) if steps > limits.max_steps as f64 => {
            let sentence =
                format!("{steps} steps are more than the {} that a training may have here", limits.max_steps);
            Err(Failure::field("max_train_steps", sentence))
        }
        Some(_) => Ok(()),
        None => {
            flags.push(format!("--max-train-steps={}", USUAL_STEPS.min(limits.max_steps)));
            Ok(())
        }
    }
}

/// The folder of class images: trainings share one where the same images would be drawn. On a public server each has its own, which
/// goes with it: a visitor's class prompt, too, is nobody else's.
fn class_folder(app: &App, id: &str, flags: &[String], class_prompt: &str, model: &Model, seed: i64) -> PathBuf {
    if app.limits.is_some() {
        return app.data.class_images().join(id);
    }
    let drawn_with = [
        "--resolution",
        "--guidance-scale",
        "--sample-batch-size",
        "--prior-generation-precision",
        "--mixed-precision",
    ];
    let mut key = format!("{}\n{class_prompt}\n{seed}", model.argument);
    for flag in flags.iter().filter(|flag| drawn_with.iter().any(|name| flag.split('=').next() == Some(name))) {
        key.push('\n');
        key.push_str(flag);
    }
    app.data.class_images().join(&hex(&Sha256::digest(key.as_bytes()))[..16])
}

/// Refuses what cannot be meant, before it waits in the queue.
pub fn check(training: &Training) -> Answer<()> {
    let config = config(&training.flags)?;
    config.check().map_err(Failure::from)
}

/// The configuration that `flags` stand for.
pub fn config(flags: &[String]) -> Answer<DreamBoothConfig> {
    options::parsed(flags)
}

/// Runs the training of `job`, from its last checkpoint where it has one.
pub fn dreambooth(app: &App, job: &Job, control: &Control, observer: &mut JobObserver) -> Result<()> {
    let photos = app.data.inputs().join(&job.id);
    let training = of_options(app, &job.id, &job.owner, &job.options, &photos).map_err(of_failure)?;
    let mut flags = training.flags;
    let folder = app.data.runs().join(&job.id);
    if checkpoint::latest(&folder).ok().flatten().is_some() {
        flags.push("--resume-from-checkpoint=latest".to_owned());
    } else if folder.exists() {
        flags.push("--overwrite".to_owned());
    }
    let mut config = config(&flags).map_err(of_failure)?;
    config.training.command = Some(training.command);
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
    check(&training)?;
    Ok(training.command)
}
