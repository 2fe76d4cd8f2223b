//! Pictures: of a prompt with adapters, and of one prompt with checkpoints at strengths.

use super::failure::{Answer, Failure};
use super::jobs::{self, Job};
use super::likeness::Subject;
use super::models::ModelKind;
use super::observer::JobObserver;
use super::options::{self, Asked};
use super::state::JobKind;
use super::training::of_failure;
use super::worker::Loaded;
use super::{library, App};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::options::command_line::command_line;
use crate::options::form::label;
use crate::options::generate::GenerateConfig;
use crate::options::reading::Configuration;
use crate::recipes::generate::ImageModel;
use crate::sample::pipeline::Residence;
use crate::sample::text_to_image::check_guidance_scale;
use crate::schedulers::SCHEDULERS;
use clap::Command;
use serde::Deserialize;
use serde_json::{json, Map, Value};
use std::path::{Path, PathBuf};

/// Options of the recipe that the server fills in, or that have other names here.
const FILLED_IN: &[&str] = &[
    "model",
    "config_folder",
    "tokenizer_name",
    "output",
    "overwrite",
    "lora",
    "guidance_scale",
    "scheduler",
    "num_images",
];
/// Names here and there.
const RENAMED: [(&str, &str); 3] = [("guidance", "guidance_scale"), ("sampler", "scheduler"), ("number", "num_images")];
/// Pictures of one job.
const MAX_PICTURES: usize = 100;
/// Adapters at once.
const MAX_ADAPTERS: usize = 16;
/// Seeds that are drawn are numbers that people can copy.
const SEEDS: u32 = 1 << 31;

fn command() -> Command {
    GenerateConfig::command()
}

/// The options, as a form needs them.
pub fn described() -> Value {
    let left_out: Vec<&str> =
        FILLED_IN.iter().copied().filter(|name| RENAMED.iter().all(|(_, there)| there != name)).collect();
    let mut groups = options::described(&command(), &left_out);
    for field in
        groups.as_array_mut().into_iter().flatten().filter_map(|group| group["fields"].as_array_mut()).flatten()
    {
        if let Some((here, _)) = RENAMED.iter().find(|(_, there)| field["name"] == *there) {
            field["name"] = json!(here);
            field["label"] = json!(label(here));
        }
        if field["name"] == "sampler" {
            field["kind"] = json!("choice");
            field["choices"] = SCHEDULERS.iter().map(|(name, _)| json!({ "value": name, "help": null })).collect();
        }
    }
    groups
}

/// The name that the recipe's option `name` has here.
pub fn name_here(name: &str) -> String {
    match RENAMED.iter().find(|(_, there)| *there == name) {
        Some((here, _)) => (*here).to_owned(),
        None => name.to_owned(),
    }
}

/// An adapter as a request names it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    id: String,
    #[serde(default)]
    checkpoint: Option<i64>,
    #[serde(default = "as_trained")]
    strength: f64,
}

fn as_trained() -> f64 {
    1.0
}

/// A job that is asked for, with every name resolved.
struct Drawing {
    /// The recipe's options without adapters and place.
    options: Map<String, Value>,
    adapters: Vec<Given>,
    /// How they are called.
    names: Vec<String>,
    /// The training whose photos pictures are compared with.
    job: Option<PathBuf>,
    seed: Option<i64>,
    /// Checkpoint and strength of each picture of a grid; one pair without either otherwise.
    cells: Vec<Cell>,
}

impl Drawing {
    fn of_options(app: &App, owner: &str, kind: JobKind, wanted: &Map<String, Value>) -> Answer<Self> {
        let mut wanted = wanted.clone();
        let mut taken = |name: &str| wanted.remove(name).filter(|value| !value.is_null());
        let adapters: Vec<Given> = list(taken("adapters"), "adapters", MAX_ADAPTERS)?;
        let checkpoints: Vec<i64> = list(taken("checkpoints"), "checkpoints", MAX_PICTURES)?;
        let strengths: Vec<f64> = list(taken("strengths"), "strengths", MAX_PICTURES)?;
        for (here, there) in RENAMED {
            if let Some(value) = wanted.remove(here).filter(|value| !value.is_null()) {
                wanted.insert(there.to_owned(), value);
            }
        }
        let mut asked = Asked::new(&wanted);
        let model = asked.model(app, ModelKind::StableDiffusion)?;
        let seed = asked.integer("seed")?;
        let filled_in: Vec<&str> =
            FILLED_IN.iter().copied().filter(|name| RENAMED.iter().all(|(_, there)| there != name)).collect();
        let mut options = asked.rest(&command(), &filled_in)?;
        options.insert("model".to_owned(), json!(model.argument));
        let cells = cells(kind, &adapters, &checkpoints, &strengths)?;
        let (mut names, mut job) = (Vec::new(), None);
        for given in &adapters {
            let (adapter, _) = library::folder_now(app, &given.id, owner, given.checkpoint)?;
            names.push(adapter.name);
            let photos = app.data.inputs().join(&given.id);
            job = job.or_else(|| photos.is_dir().then_some(photos));
        }
        Ok(Self { options, adapters, names, job, seed, cells })
    }

    /// Checkpoint and strength of each adapter for one picture.
    fn used(&self, (checkpoint, strength): Cell) -> impl Iterator<Item = (&Given, Option<i64>, f64)> {
        self.adapters.iter().enumerate().map(move |(index, given)| {
            let is_compared = index == 0;
            let step = checkpoint.filter(|_| is_compared).or(given.checkpoint);
            (given, step, strength.filter(|_| is_compared).unwrap_or(given.strength))
        })
    }

    /// The adapters of one picture in words.
    fn names_of(&self, cell: Cell) -> String {
        let name = |((_, step, strength), name): ((&Given, Option<i64>, f64), &String)| {
            let step = step.map_or(String::new(), |step| format!(" at step {step}"));
            format!("{name}{step} × {strength}")
        };
        self.used(cell).zip(&self.names).map(name).collect::<Vec<_>>().join(", ")
    }

    /// `error` with the name of an adapter in place of where the server keeps it.
    fn by_name(&self, app: &App, error: Error) -> Error {
        let Error::File { path, message } = error else { return error };
        let folders = [app.data.adapters(), app.data.runs()];
        let is_of = |given: &Given| folders.iter().any(|folder| path.starts_with(folder.join(&given.id)));
        let name = self.adapters.iter().zip(&self.names).find(|(given, _)| is_of(given)).map(|(_, name)| name);
        Error::File { path: name.map_or(path, PathBuf::from), message }
    }

    /// The configuration of one picture, which is written to `output`.
    fn config(&self, app: &App, owner: &str, cell: Cell, output: &Path) -> Answer<GenerateConfig> {
        let mut options = self.options.clone();
        let mut adapters = Vec::new();
        for (given, step, strength) in self.used(cell) {
            let (_, folder) = library::folder_now(app, &given.id, owner, step)?;
            adapters.push(format!("{}={strength}", folder.display()));
        }
        for (name, value) in
            [("lora", json!(adapters)), ("output", json!(output.display().to_string())), ("overwrite", json!(true))]
        {
            options.insert(name.to_owned(), value);
        }
        Ok(GenerateConfig::from_map(&options)?)
    }
}

/// Checkpoint and strength of a picture of a grid.
type Cell = (Option<i64>, Option<f64>);

/// A list of the request.
fn list<T: serde::de::DeserializeOwned>(value: Option<Value>, name: &str, most: usize) -> Answer<Vec<T>> {
    let Some(value) = value else { return Ok(Vec::new()) };
    let list: Vec<T> = serde_json::from_value(value)
        .map_err(|error| Failure::field(name, format!("{name} is not what it must be: {error}")))?;
    match list.len() <= most {
        true => Ok(list),
        false => Err(Failure::field(name, format!("{name} has {} entries; there can be {most}", list.len()))),
    }
}

/// Checkpoint and strength of each picture, by rows of one strength.
fn cells(kind: JobKind, adapters: &[Given], checkpoints: &[i64], strengths: &[f64]) -> Answer<Vec<Cell>> {
    if kind != JobKind::Grid {
        return match (checkpoints, strengths) {
            ([], []) => Ok(vec![(None, None)]),
            _ => Err(Failure::field("checkpoints", "checkpoints and strengths are compared in a grid")),
        };
    }
    if adapters.is_empty() {
        return Err(Failure::field("adapters", "a grid compares the checkpoints of an adapter; choose one"));
    }
    let steps: Vec<Option<i64>> = match checkpoints {
        [] => vec![adapters[0].checkpoint],
        steps => steps.iter().copied().map(Some).collect(),
    };
    let strengths = if strengths.is_empty() { &[1.0][..] } else { strengths };
    let cells: Vec<_> =
        strengths.iter().flat_map(|&strength| steps.iter().map(move |&step| (step, Some(strength)))).collect();
    match cells.len() <= MAX_PICTURES {
        true => Ok(cells),
        false => Err(Failure::field(
            "checkpoints",
            format!("{} pictures are more than the {MAX_PICTURES} of a grid", cells.len()),
        )),
    }
}

/// Refuses what cannot be meant, before it waits in the queue, by the field of the page; the command line of the job `id`, and its
/// usual name.
pub fn prepare(
    app: &App,
    id: &str,
    owner: &str,
    kind: JobKind,
    options: &Map<String, Value>,
) -> Answer<(String, String)> {
    prepared(app, id, owner, kind, options)
        .map_err(|failure| Failure { field: failure.field.as_deref().map(name_here), ..failure })
}

fn prepared(app: &App, id: &str, owner: &str, kind: JobKind, options: &Map<String, Value>) -> Answer<(String, String)> {
    let drawing = Drawing::of_options(app, owner, kind, options)?;
    let folder = app.data.pictures().join(id);
    let configs: Vec<GenerateConfig> =
        drawing.cells.iter().map(|cell| drawing.config(app, owner, *cell, &folder)).collect::<Answer<_>>()?;
    let Some(config) = configs.first() else { return Err(Failure::bad("no picture is asked for")) };
    check_guidance_scale(config.guidance_scale)?;
    if config.prompt.trim().is_empty() {
        return Err(Failure::field("prompt", "say what the picture shows"));
    }
    if !(1..=MAX_PICTURES).contains(&config.num_images) {
        return Err(Failure::field(
            "number",
            format!("{} pictures were asked for; one job draws 1 to {MAX_PICTURES}", config.num_images),
        ));
    }
    let name: String = config.prompt.chars().filter(|c| !c.is_control()).take(60).collect();
    Ok((command_line(config, drawing.seed.unwrap_or(0))?, name))
}

/// Draws the pictures of `job`, with the model of before where it is the same; a grid's for each checkpoint at each strength, from the
/// same noise.
pub fn draw(
    app: &App,
    models: &mut Loaded,
    job: &Job,
    interrupt: &Interrupt,
    observer: &mut JobObserver,
) -> Result<()> {
    let drawing = Drawing::of_options(app, &job.owner, job.kind, &job.options).map_err(of_failure)?;
    let folder = app.data.pictures().join(&job.id);
    jobs::forget_pictures(app, &job.id)?;
    app.data.remove(&folder)?;
    std::fs::create_dir_all(&folder).map_err(|error| Error::io("create", &folder, error))?;
    if let Some(photos) = &drawing.job {
        observer.compare_with(Subject::of(photos));
    }
    let seed = match drawing.seed {
        Some(seed) => seed,
        None => random_seed()?,
    };
    let count = drawing.cells.len() as u64;
    for (index, &(checkpoint, strength)) in (0..).zip(&drawing.cells) {
        let output = match job.kind {
            JobKind::Grid => folder.join(format!("{index:04}.png")),
            _ => folder.clone(),
        };
        let cell = (checkpoint, strength);
        let mut config = drawing.config(app, &job.owner, cell, &output).map_err(of_failure)?;
        if job.kind == JobKind::Grid {
            config.num_images = 1;
        }
        observer.name_adapters(drawing.names_of(cell));
        observer.begin_cell(index, count, checkpoint, strength);
        let model = match models.images.take().filter(|model| model.is_for(&config, app.device)) {
            Some(model) => model,
            None => {
                models.unload(app);
                ImageModel::open(&config, app.device, Residence::Together, interrupt, observer)?
            }
        };
        let drawn = models.images.insert(model).generate(&config, seed, interrupt, observer);
        drawn.map_err(|error| drawing.by_name(app, error))?;
    }
    Ok(())
}

fn random_seed() -> Result<i64> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::Internal(format!("the system gives no random numbers: {error}")))?;
    Ok(i64::from(u32::from_le_bytes(bytes) % SEEDS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_has_a_picture_for_each_checkpoint_at_each_strength() {
        let adapters = [Given { id: "a".to_owned(), checkpoint: None, strength: 1.0 }];
        let found = cells(JobKind::Grid, &adapters, &[10, 20], &[0.5, 1.0]).unwrap();
        assert_eq!(found, [(Some(10), Some(0.5)), (Some(20), Some(0.5)), (Some(10), Some(1.0)), (Some(20), Some(1.0))]);
        assert_eq!(cells(JobKind::Grid, &adapters, &[], &[]).unwrap(), [(None, Some(1.0))]);
        assert_eq!(cells(JobKind::Grid, &[], &[1], &[1.0]).unwrap_err().field.as_deref(), Some("adapters"));
        assert_eq!(cells(JobKind::Generate, &[], &[], &[]).unwrap(), [(None, None)]);
        let many: Vec<i64> = (0..60).collect();
        assert!(cells(JobKind::Grid, &adapters, &many, &[0.5, 1.0]).is_err());
    }

    #[test]
    fn the_form_has_the_pages_names() {
        let groups = described();
        let fields: Vec<&Value> =
            groups.as_array().unwrap().iter().flat_map(|group| group["fields"].as_array().unwrap()).collect();
        let of = |name: &str| fields.iter().find(|field| field["name"] == name);
        assert_eq!(of("guidance").unwrap()["default"], 7.5);
        assert!(of("sampler").unwrap()["choices"].as_array().unwrap().iter().any(|choice| choice["value"] == "unipc"));
        assert!(of("number").is_some() && of("output").is_none() && of("lora").is_none() && of("scheduler").is_none());
    }
}
