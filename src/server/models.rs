//! The models that a server trains and draws with: the one inside the binary, those that it was given, and those in the hub's cache.

use super::data_folder::DataFolder;
use super::failure::{Answer, Failure};
use super::ids::hex;
use super::request::Query;
use super::schema::{integer, list_of, object, or_null, text, word};
use super::App;
use crate::error::{Error, Result};
use crate::models::language::LanguageModelFiles;
use crate::models::stable_diffusion::{ModelOptions, PipelineFiles};
use crate::recipes::demo;
use crate::recipes::language::base::WantedModel;
use crate::weights::hub::{self, Hub};
use axum::extract::State;
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The id of the model inside the binary.
pub const DEMO: &str = "demo";

/// What a model does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// Draws pictures.
    StableDiffusion,
    /// Reads and writes texts.
    Language,
}

/// Where a model is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The binary.
    Demo,
    /// A path that the server was given.
    Folder,
    /// The hub's cache, or the hub.
    Cache,
}

/// A model as the page lists it.
#[derive(Debug, Clone, Serialize)]
pub struct Model {
    /// What `options.model` names it by.
    pub id: String,
    /// For people.
    pub name: String,
    /// Where it is from.
    pub source: Source,
    /// What it does.
    pub kind: ModelKind,
    /// Height and width of the pictures that it was made for, in pixels.
    pub native_size: Option<i64>,
    /// Tasks of a language model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<&'static str>,
    /// Whether its files are on this machine.
    #[serde(skip)]
    is_here: bool,
    /// As `--model` takes it.
    #[serde(skip)]
    pub argument: String,
}

impl Model {
    /// Whether it can be read without a download.
    pub fn is_here(&self) -> bool {
        self.is_here
    }
}

/// The models of a server.
pub struct Models {
    given: Vec<Model>,
}

impl Models {
    /// Those that `arguments` name, and the one in the binary. Folders and files must be models.
    pub fn new(data: &DataFolder, arguments: &[String]) -> Result<Self> {
        let folder = data.demo_model();
        demo::write_model(&folder)?;
        let demo = Model {
            id: DEMO.to_owned(),
            name: "Demo model (64 px, inside lorabooth)".to_owned(),
            source: Source::Demo,
            ..of_path(&folder.display().to_string(), &folder)?
        };
        let mut given = Vec::new();
        for argument in arguments {
            let path = Path::new(argument);
            given.push(match path.exists() {
                true => {
                    let path = path.canonicalize().map_err(|error| Error::io("find", path, error))?;
                    of_path(&path.display().to_string(), &path)?
                }
                false if hub::is_language_model_id(argument) => of_hub(argument),
                false => {
                    return Err(Error::invalid(format!("⟨model⟩ {argument}: no such folder or file, and no hub id")))
                }
            });
        }
        given.push(demo);
        Ok(Self { given })
    }

    /// All that can be used without a download, the given ones first; on a public server the given ones alone.
    pub fn list(&self, is_public: bool) -> Vec<Model> {
        let mut models = self.given.clone();
        if !is_public {
            let known: Vec<String> = models.iter().map(|model| model.id.clone()).collect();
            models.extend(cached().into_iter().filter(|model| !known.contains(&model.id)));
        }
        models
    }

    /// The model that a request calls `id`.
    pub fn find(&self, id: &str, is_public: bool) -> Answer<Model> {
        if let Some(model) = self.given.iter().find(|model| model.id == id) {
            return Ok(model.clone());
        }
        // A folder of this name beside the server would be taken for the hub's.
        if is_public || !hub::is_language_model_id(id) || Path::new(id).exists() {
            return Err(Failure::field(
                "model",
                format!("there is no model `{}`; choose one of the list", crate::plain_text::value(id)),
            ));
        }
        Ok(cached().into_iter().find(|model| model.id == id).unwrap_or_else(|| of_hub(id)))
    }
}

/// A model as it is shown; tasks are those of a language model.
pub fn schema() -> Value {
    let mut model = object([
        ("id", text()),
        ("name", text()),
        ("source", word(&["demo", "folder", "cache"])),
        ("kind", word(&["stable_diffusion", "language"])),
        ("native_size", or_null(integer())),
    ]);
    model["properties"]["tasks"] = list_of(text());
    model
}

/// What is asked of the hub.
#[derive(Debug, Deserialize)]
pub struct Wanted {
    hub: String,
}

/// `GET /api/models?hub=OWNER/NAME`: looks at a model's configurations, which are fetched for it.
pub async fn look_up(State(app): State<App>, Query(wanted): Query<Wanted>) -> Answer {
    let model = app.models.find(&wanted.hub, app.limits.is_some())?;
    let looked = tokio::task::spawn_blocking(move || match model.is_here() {
        true => Ok(model),
        false => of_hub_now(model),
    });
    let model = looked.await.map_err(|_| Failure::bad("the model could not be looked at"))?;
    let model = model.map_err(|error| Failure { field: Some("hub".to_owned()), ..Failure::from(error) })?;
    Ok(axum::Json(model).into_response())
}

/// A model of the hub, by the configurations that it has there.
fn of_hub_now(model: Model) -> Result<Model> {
    let pipeline = ModelOptions { configs_only: true, ..ModelOptions::default() };
    let refused = match PipelineFiles::resolve(&model.id, &pipeline, &mut ()) {
        Ok(files) => return Ok(Model { native_size: files.native_resolution().ok(), ..model }),
        Err(error) => error,
    };
    match language_files(Path::new(&model.id)) {
        Ok(files) => Ok(Model { kind: ModelKind::Language, tasks: files.architecture().tasks.to_vec(), ..model }),
        Err(_) => Err(refused),
    }
}

/// The model in a folder or a file.
fn of_path(argument: &str, path: &Path) -> Result<Model> {
    let name = path.file_name().map_or_else(|| argument.to_owned(), |name| name.to_string_lossy().into_owned());
    let id = hex(&Sha256::digest(argument.as_bytes()))[..16].to_owned();
    let model = Model {
        id,
        name,
        source: Source::Folder,
        kind: ModelKind::StableDiffusion,
        native_size: None,
        tasks: Vec::new(),
        is_here: true,
        argument: argument.to_owned(),
    };
    let is_pipeline = path.join("model_index.json").exists() || path.join("unet").is_dir();
    let is_checkpoint = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("safetensors"));
    if is_pipeline || is_checkpoint {
        let files = PipelineFiles::resolve(argument, &ModelOptions::default(), &mut ())?;
        return Ok(Model { native_size: files.native_resolution().ok(), ..model });
    }
    let files = language_files(path)?;
    Ok(Model { kind: ModelKind::Language, tasks: files.architecture().tasks.to_vec(), ..model })
}

fn language_files(path: &Path) -> Result<LanguageModelFiles> {
    let wanted = WantedModel { configs_only: true, ..WantedModel::new(path, None) };
    wanted.open_files(&mut crate::recipes::training::observer::Silent)
}

/// A model of which nothing but its name is known before it is fetched.
fn of_hub(id: &str) -> Model {
    Model {
        id: id.to_owned(),
        name: id.to_owned(),
        source: Source::Cache,
        kind: ModelKind::StableDiffusion,
        native_size: None,
        tasks: Vec::new(),
        is_here: false,
        argument: id.to_owned(),
    }
}

/// The models in the hub's cache, by name.
fn cached() -> Vec<Model> {
    let Ok(hub) = Hub::from_env() else { return Vec::new() };
    let mut ids: Vec<(String, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(&hub.cache).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(id) = name.strip_prefix("models--").map(|id| id.replacen("--", "/", 1)) else { continue };
        let Ok(commit) = std::fs::read_to_string(entry.path().join("refs").join("main")) else { continue };
        let snapshot = entry.path().join("snapshots").join(commit.trim());
        if hub::is_language_model_id(&id) && snapshot.is_dir() {
            ids.push((id, snapshot));
        }
    }
    ids.sort();
    // What is not whole, or no model that can be used, is left out.
    let model = |(id, snapshot): (String, PathBuf)| {
        let model = of_path(&id, &snapshot).ok()?;
        Some(Model { name: id.clone(), argument: id.clone(), id, source: Source::Cache, ..model })
    };
    ids.into_iter().filter_map(model).collect()
}
