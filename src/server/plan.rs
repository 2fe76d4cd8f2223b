//! What a training will take of memory and time, before it is asked for.

use super::accounts::Owner;
use super::failure::{Answer, Failure};
use super::models::Model;
use super::request::Json;
use super::schema::{integer, list_of, map, number, object, or_null, text, truth, with};
use super::state::JobKind;
use super::{language_training, sets, training, App};
use crate::error::Result;
use crate::libtorch::memory;
use crate::models::stable_diffusion::{ModelOptions, PipelineFiles};
use crate::options::command_line::command_line;
use crate::options::dreambooth::DreamBoothConfig;
use crate::options::reading::Configuration;
use crate::plan::{fit, Planned, Rates, Suggestion};
use crate::recipes::dreambooth::plan::{plan_input, NetworkConfigs, Photos};
use crate::recipes::training::observer::{Event, Observer};
use axum::extract::State;
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{json, Map, Value};
use std::path::Path;
use std::time::Duration;
use tch::{Device, Kind};

/// How long a plan waits for the measurement of the device, which waits for the running job.
const MEASURING: Duration = Duration::from_secs(4);
/// What of a CUDA card the driver and the context leave to a run.
const LEFT_BY_CUDA: f64 = 0.94;

/// The body of a plan.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    kind: String,
    set: Option<String>,
    #[serde(default)]
    options: Map<String, Value>,
}

/// Keeps warnings.
#[derive(Default)]
pub struct Warnings(pub Vec<String>);

impl Observer for Warnings {
    fn on(&mut self, event: Event) {
        if let Event::Warning { text } = event {
            self.0.push(super::failure::of_option(&text).0);
        }
    }
}

/// `POST /api/plan`.
pub async fn plan(State(app): State<App>, owner: Owner, Json(wanted): Json<Wanted>) -> Answer {
    let kind = match wanted.kind.as_str() {
        "dreambooth" => JobKind::TrainDreambooth,
        "llm" => JobKind::TrainLlm,
        _ => return Err(Failure::field("kind", "kind is dreambooth or llm")),
    };
    if let Some(set) = &wanted.set {
        sets::check(&app, set, &owner).await?;
    }
    let sizes = match &wanted.set {
        Some(set) => sets::sizes(&app, set).await?,
        None => Vec::new(),
    };
    let turn = app.heavy.acquire().await.map_err(|_| Failure::conflict("the server is stopping"))?;
    let (shared, of) = (app.clone(), owner.owned());
    let planned = tokio::task::spawn_blocking(move || match kind {
        JobKind::TrainLlm => language_training::planned(&shared, &of, &wanted.options, wanted.set.as_deref()),
        _ => dreambooth(&shared, &of, &wanted.options, wanted.set.as_deref(), &sizes),
    });
    let planned = planned.await.map_err(|_| Failure::bad("the plan could not be made"))?;
    drop(turn);
    Ok(axum::Json(planned?).into_response())
}

fn dreambooth(
    app: &App,
    owner: &str,
    options: &Map<String, Value>,
    set: Option<&str>,
    sizes: &[(u32, u32)],
) -> Answer<Value> {
    let mut options = options.clone();
    // A plan needs neither a prompt nor photos.
    let has_prompt = options.get("instance_prompt").and_then(Value::as_str).is_some_and(|prompt| !prompt.is_empty());
    let has_class = options.get("with_prior_preservation") == Some(&json!(true));
    for (name, usual, is_needed) in
        [("instance_prompt", "a photo of sks thing", true), ("class_prompt", "a photo of a thing", has_class)]
    {
        let is_given = options.get(name).and_then(Value::as_str).is_some_and(|prompt| !prompt.is_empty());
        if is_needed && !is_given {
            options.insert(name.to_owned(), json!(usual));
        }
    }
    let photos = set.map(|set| sets::photo_folder(app, set));
    let named = photos.as_deref().unwrap_or(Path::new("PHOTOS"));
    let training = training::of_options(app, "RUN", owner, &options, named)?;
    let mut config = DreamBoothConfig::from_map(&training.options)?;
    let command = command_line(&config, training.seed)?;
    config.instance_data_dir = photos.unwrap_or_default();
    config.check()?;
    let mut warnings = Warnings(config.warnings());
    let wanted = ModelOptions { configs_only: true, ..config.model.options() };
    let files = local_files(&training.model, || PipelineFiles::resolve(&config.model.name, &wanted, &mut ()))?;
    let (networks, config) = (NetworkConfigs::of(&files)?, config.for_model(&files)?);
    // Where there are no photos yet, one that is square.
    let sizes = if sizes.is_empty() { &[(1, 1)][..] } else { sizes };
    let photos = Photos::known(&config, &files, sizes, has_prompt.then_some(&mut warnings as &mut dyn Observer))?;
    let input = plan_input(&config, &networks, Some(&photos), app.device)?;
    shown(app, &input, Asked { kind: input.kind, steps: input.steps, warnings: warnings.0, command })
}

/// Opens a model for a plan; one of the hub that is not here yet is not fetched for it.
fn local_files<T>(model: &Model, open: impl FnOnce() -> Result<T>) -> Answer<T> {
    match model.is_here() {
        true => Ok(open()?),
        false => Err(Failure::field(
            "model",
            format!("{} is not on this machine yet; the plan is known once a job has fetched it", model.name),
        )),
    }
}

/// What a plan was asked for.
pub struct Asked {
    /// The dtype of the computation.
    pub kind: Kind,
    /// Optimizer steps.
    pub steps: u64,
    /// Sentences about what was asked for.
    pub warnings: Vec<String>,
    /// The same on a command line.
    pub command: String,
}

/// The plan of `input` as the page sees it.
pub fn shown(app: &App, input: &impl Planned, asked: Asked) -> Answer<Value> {
    let plan = input.plan()?;
    let (_, total) = memory::device_memory(app.device)?;
    let total = total.max(0) as u64;
    let budget = match app.device {
        Device::Cpu => total.saturating_sub(memory::host_now()),
        _ => (total as f64 * LEFT_BY_CUDA) as u64,
    };
    let fitted = fit(budget, input, &plan)?;
    let rates = app.worker.rates(asked.kind, plan.work(), MEASURING);
    let seconds = |rates: &Rates| plan.phases.iter().map(|phase| rates.seconds(&phase.work)).sum::<f64>();
    let largest = plan.phases.iter().max_by_key(|phase| phase.bytes());
    let parts: Vec<Value> = largest
        .iter()
        .flat_map(|phase| &phase.parts)
        .map(|(name, bytes)| json!({ "name": name, "bytes": bytes }))
        .collect();
    let phases: Vec<Value> = plan
        .phases
        .iter()
        .map(|phase| {
            let seconds = rates.as_ref().map(|rates| rates.seconds(&phase.work));
            json!({ "name": phase.name, "bytes": phase.bytes(), "seconds": seconds })
        })
        .collect();
    Ok(json!({
        "fits": plan.peak_bytes <= budget, "peak_bytes": plan.peak_bytes, "device_bytes": total,
        "step_seconds": rates.as_ref().map(|rates| rates.seconds(&plan.step_work)), "total_seconds": rates.as_ref().map(seconds),
        "steps": asked.steps, "parts": parts, "phases": phases, "warnings": asked.warnings,
        "suggestion": suggestion(&fitted.suggestions, fitted.fits, fitted.peak_bytes), "command": asked.command,
    }))
}

/// A plan as it is shown.
pub fn schema() -> Value {
    let part = || object([("name", text()), ("bytes", integer())]);
    object([
        ("fits", truth()),
        ("peak_bytes", integer()),
        ("device_bytes", integer()),
        ("step_seconds", or_null(number())),
        ("total_seconds", or_null(number())),
        ("steps", integer()),
        ("parts", list_of(part())),
        ("phases", list_of(with(part(), [("seconds", or_null(number()))]))),
        ("warnings", list_of(text())),
        ("suggestion", or_null(object([("options", map()), ("sentence", text())]))),
        ("command", text()),
    ])
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", memory::gib(bytes))
}

/// What to turn on, as options and as a sentence.
fn suggestion(suggestions: &[Suggestion], fits: bool, peak: u64) -> Value {
    if suggestions.is_empty() {
        return Value::Null;
    }
    let mut options = Map::new();
    suggestions.iter().for_each(|suggestion| options.extend(as_options(&suggestion.what)));
    let each: Vec<String> = suggestions
        .iter()
        .map(|one| format!("{} saves {} ({})", super::failure::of_option(&one.what).0, gib(one.saves_bytes), one.costs))
        .collect();
    let then = match fits {
        true => format!("then it takes {} and fits", gib(peak)),
        false => format!("but it takes {} even then, which is too much", gib(peak)),
    };
    json!({ "options": options, "sentence": format!("{}; {then}", each.join("; ")) })
}

/// A suggestion, such as `⟨a⟩ 1 ⟨b⟩` or `no ⟨c⟩`, as options.
fn as_options(flags: &str) -> Map<String, Value> {
    let mut options = Map::new();
    let (on, off) = match flags.strip_prefix("no ") {
        Some(off) => ("", off),
        None => (flags, ""),
    };
    let name = |word: &str| word.trim_matches(['⟨', '⟩']).to_owned();
    let mut words = on.split_whitespace().peekable();
    while let Some(flag) = words.next() {
        let value = words.next_if(|word| !word.starts_with('⟨'));
        let value = match value {
            None => Value::Bool(true),
            Some(text) => text.parse::<i64>().map_or_else(|_| json!(text), |number| json!(number)),
        };
        options.insert(name(flag), value);
    }
    options.extend(off.split_whitespace().map(|flag| (name(flag), Value::Bool(false))));
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_become_options() {
        let of = |flags: &str| Value::Object(as_options(flags));
        assert_eq!(of("⟨cache_latents⟩ true"), json!({ "cache_latents": "true" }));
        assert_eq!(of("⟨gradient_checkpointing⟩"), json!({ "gradient_checkpointing": true }));
        assert_eq!(
            of("⟨train_batch_size⟩ 1 ⟨gradient_accumulation_steps⟩ 4"),
            json!({ "train_batch_size": 1, "gradient_accumulation_steps": 4 })
        );
        assert_eq!(of("no ⟨train_text_encoder⟩"), json!({ "train_text_encoder": false }));
        assert_eq!(of("⟨quantize⟩ nf4"), json!({ "quantize": "nf4" }));
    }
}
