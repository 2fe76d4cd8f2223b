//! Texts: continued, answered or classified by a language model with adapters.

use super::failure::{Answer, Failure};
use super::jobs::Job;
use super::models::ModelKind;
use super::observer::JobObserver;
use super::options::{self, Asked};
use super::training::of_failure;
use super::worker::Loaded;
use super::{library, App};
use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::options::command_line::command_line;
use crate::options::complete::CompleteConfig;
use crate::options::reading::Configuration;
use crate::recipes::complete::{Completion, TextModel};
use clap::Command;
use serde::Deserialize;
use serde_json::{json, Map, Value};

/// Options of the recipe that the server fills in.
const FILLED_IN: &[&str] = &["model", "adapter"];
/// Adapters at once.
const MAX_ADAPTERS: usize = 16;

fn command() -> Command {
    CompleteConfig::command()
}

/// The options, as a form needs them.
pub fn described() -> Value {
    options::described(&command(), FILLED_IN)
}

/// An adapter as a request names it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    id: String,
    #[serde(default)]
    checkpoint: Option<i64>,
    #[serde(default)]
    strength: Option<f64>,
}

/// What `wanted` asks for: the configuration and the seed.
fn of_options(app: &App, owner: &str, wanted: &Map<String, Value>) -> Answer<(CompleteConfig, i64)> {
    let mut wanted = wanted.clone();
    let adapters = wanted.remove("adapters").filter(|value| !value.is_null()).unwrap_or_else(|| json!([]));
    let adapters: Vec<Given> = serde_json::from_value(adapters)
        .map_err(|error| Failure::field("adapters", format!("adapters is not what it must be: {error}")))?;
    if adapters.len() > MAX_ADAPTERS {
        return Err(Failure::field("adapters", format!("there can be {MAX_ADAPTERS} adapters at once")));
    }
    let mut asked = Asked::new(&wanted);
    let model = asked.model(app, ModelKind::Language)?;
    let seed = asked.integer("seed")?;
    let mut options = asked.rest(&command(), FILLED_IN)?;
    options.insert("model".to_owned(), json!(model.argument));
    let mut folders = Vec::new();
    for given in &adapters {
        let (_, folder) = library::folder_now(app, &given.id, owner, given.checkpoint)?;
        let strength =
            given.strength.filter(|strength| *strength != 1.0).map_or(String::new(), |strength| format!("={strength}"));
        folders.push(format!("{}{strength}", folder.display()));
    }
    options.insert("adapter".to_owned(), json!(folders));
    let config = CompleteConfig::from_map(&options)?;
    if config.prompt.is_empty() {
        return Err(Failure::field("prompt", "give a text to continue, answer or classify"));
    }
    Ok((config, seed.unwrap_or(0)))
}

/// Refuses what cannot be meant, before it waits in the queue; the command line of the job, and its usual name.
pub fn prepare(app: &App, owner: &str, options: &Map<String, Value>) -> Answer<(String, String)> {
    let (config, seed) = of_options(app, owner, options)?;
    let name: String = config.prompt.chars().map(|c| if c.is_control() { ' ' } else { c }).take(60).collect();
    Ok((command_line(&config, seed)?, name))
}

/// Completes the text of `job`, with the model of before where it is the same: `text`, or for a classifier `labels`.
pub fn complete(
    app: &App,
    models: &mut Loaded,
    job: &Job,
    interrupt: &Interrupt,
    observer: &mut JobObserver,
) -> Result<Value> {
    let (config, seed) = of_options(app, &job.owner, &job.options).map_err(of_failure)?;
    let model = match models.texts.take().filter(|model| model.is_for(&config, app.device)) {
        Some(model) => model,
        None => {
            models.unload(app);
            TextModel::open(&config, app.device, seed, interrupt, observer)?
        }
    };
    let completion = models.texts.insert(model).complete(&config, seed, interrupt, observer)?;
    Ok(match completion {
        Completion::Text { text, tokens, tokens_per_s } => {
            json!({ "text": text, "tokens": tokens, "tokens_per_s": tokens_per_s })
        }
        Completion::Classes(classes) => {
            let labels: Vec<Value> = classes
                .into_iter()
                .map(|(label, probability)| json!({ "label": label, "probability": probability }))
                .collect();
            json!({ "text": null, "labels": labels })
        }
    })
}
