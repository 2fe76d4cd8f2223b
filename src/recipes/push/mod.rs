//! An adapter goes to the hub: PEFT's files, for Stable Diffusion diffusers' file beside them, samples, and a card that says what it is.

mod card;

use super::training::observer::{Event, Observer};
use crate::adapters::diffusers_file::FILE_NAME;
use crate::adapters::formats::{check_family, language_adapter_at};
use crate::adapters::peft_folder::{CONFIG_FILE, MODEL_FILE};
use crate::adapters::{read_any, write_diffusers, write_peft, AdapterSet, Family, TextEncoderSpelling};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::options::push::PushConfig;
use crate::options::secret::Secret;
use crate::regular_file::{self, FileKind};
use crate::weights::hub::{is_id, is_language_model_id, Content, Download, Hub, Listener, Push, Pushed, UploadedFile};
use card::{Card, Kind, Sample};
use serde_json::Value;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Pictures that stand in a card.
const SAMPLES: usize = 4;
/// Where they are in the repository.
const SAMPLE_FOLDER: &str = "samples";
/// The card.
const CARD: &str = "README.md";
/// Files of a language model's adapter.
const LANGUAGE_FILES: [&str; 4] = [CONFIG_FILE, MODEL_FILE, "prompt_encoder.safetensors", "classes.json"];
/// Files of an adapter, which an earlier one may have left in the repository.
const REPLACED: &[&str] = &[
    "unet/adapter_config.json",
    "unet/adapter_model.safetensors",
    "text_encoder/adapter_config.json",
    "text_encoder/adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
    "prompt_encoder.safetensors",
    "classes.json",
];

/// The hub of the environment, with `token` in place of the environment's where it is given.
pub fn hub(token: Option<&Secret>) -> Result<Hub> {
    let hub = Hub::from_env()?;
    Ok(match token {
        Some(token) => Hub { token: Some(token.reveal().to_owned()).filter(|token| !token.is_empty()), ..hub },
        None => hub,
    })
}

/// Uploads the adapter of `config` to the hub.
pub fn push(config: &PushConfig, hub: &Hub, interrupt: &Interrupt, observer: &mut dyn Observer) -> Result<Pushed> {
    config.check()?;
    hub.check_push(&config.repo)?;
    let temporary = Temporary::new()?;
    let run = Run::of(&config.adapter);
    let (kind, mut files, base_model) = match language_adapter_at(&config.adapter)? {
        Some(folder) => language_files(folder)?,
        None => {
            let mut set = read_any(&config.adapter, None)?;
            check_family(&set, &config.adapter)?;
            set.warnings.iter().for_each(|text| observer.warning(text.clone()));
            stable_diffusion_files(&mut set, &temporary.0, observer)?
        }
    };
    let samples: Vec<(Sample, UploadedFile)> = match kind {
        Kind::StableDiffusion { .. } => run.samples(),
        Kind::Language { .. } => Vec::new(),
    };
    let trigger = run.option("instance_prompt");
    let (samples, pictures): (Vec<Sample>, Vec<UploadedFile>) = samples.into_iter().unzip();
    let card = Card {
        repo: &config.repo,
        kind: &kind,
        base_model: base_model.as_deref(),
        trigger: trigger.as_deref(),
        license: config.license.as_deref(),
        samples: &samples,
    };
    files.push(UploadedFile { path: CARD.to_owned(), content: Content::Bytes(card.text().into_bytes()) });
    files.extend(pictures);
    let message = "Upload the adapter with lorabooth";
    let push = Push { id: &config.repo, is_public: config.public, message, files: &files, replaced: REPLACED };
    let mut bar = Bar { observer, interrupt, shown: None };
    let pushed = hub.push(&push, &mut bar);
    if bar.shown.is_some() {
        observer.on(Event::End);
    }
    pushed
}

/// The name of the user of `hub`'s token.
pub fn user(hub: &Hub, interrupt: &Interrupt, observer: &mut dyn Observer) -> Result<String> {
    hub.user(&mut Bar { observer, interrupt, shown: None })
}

/// Whether `name` says which model it is on any machine: a hub's id, by `is_id`, and no folder of this one.
fn is_public_name(name: &str, is_id: fn(&str) -> bool) -> bool {
    is_id(name) && !Path::new(name).exists()
}

type Found = (Kind, Vec<UploadedFile>, Option<String>);

fn stable_diffusion_files(set: &mut AdapterSet, folder: &Path, observer: &mut dyn Observer) -> Result<Found> {
    let mut told = None;
    for part in set.adapters_mut() {
        // Where a model lies on this machine helps nobody elsewhere.
        let name = part.config.base_model_name_or_path.take().filter(|name| is_public_name(name, is_id));
        part.config.base_model_name_or_path.clone_from(&name);
        told = told.or(name);
    }
    let mut names = write_peft(folder, set, TextEncoderSpelling::Today)?;
    match write_diffusers(folder, set) {
        Ok(_) => names.push(FILE_NAME.to_owned()),
        Err(error @ Error::Invalid(_)) => observer.warning(format!("{FILE_NAME} is left out: {error}")),
        Err(error) => return Err(error),
    }
    if let Some(text) = set.left_out_warning(Path::new(FILE_NAME)) {
        observer.warning(text);
    }
    let xl = set.family == Some(Family::Xl);
    Ok((Kind::StableDiffusion { xl }, names.into_iter().map(|name| from_folder(folder, name)).collect(), told))
}

fn language_files(folder: &Path) -> Result<Found> {
    let path = folder.join(CONFIG_FILE);
    let text = regular_file::read(&path, FileKind::CONFIG)?;
    let mut config: Value =
        serde_json::from_slice(&text).map_err(|error| Error::file(&path, format!("not valid JSON: {error}")))?;
    let name = config["base_model_name_or_path"]
        .as_str()
        .filter(|name| is_public_name(name, is_language_model_id))
        .map(str::to_owned);
    let text_of = |name: &str| config[name].as_str().unwrap_or_default().to_owned();
    let kind = Kind::Language { task: text_of("task_type"), method: text_of("peft_type") };
    let names = LANGUAGE_FILES.into_iter().filter(|name| folder.join(name).is_file());
    let mut files: Vec<UploadedFile> = names.map(|name| from_folder(folder, name.to_owned())).collect();
    if name.is_none() && config["base_model_name_or_path"].is_string() {
        config["base_model_name_or_path"] = Value::Null;
        let text = serde_json::to_vec_pretty(&config).map_err(|error| Error::invalid(error.to_string()))?;
        files
            .iter_mut()
            .filter(|file| file.path == CONFIG_FILE)
            .for_each(|file| file.content = Content::Bytes(text.clone()));
    }
    Ok((kind, files, name))
}

fn from_folder(folder: &Path, name: String) -> UploadedFile {
    UploadedFile { content: Content::File(folder.join(&name)), path: name }
}

/// The run that an adapter is of, as far as its folder still holds one.
struct Run {
    folder: PathBuf,
    /// Steps of the checkpoint that the adapter is.
    step: Option<u64>,
    options: Value,
}

impl Run {
    fn of(adapter: &Path) -> Self {
        let own = adapter.join("run.json").exists();
        let folder = if own { adapter } else { adapter.parent().unwrap_or(adapter) };
        let name = adapter.file_name().unwrap_or_default().to_string_lossy();
        let step = name.strip_prefix("checkpoint-").and_then(|step| step.parse().ok()).filter(|_| !own);
        let is_of_run = own || step.is_some();
        let record = is_of_run.then(|| regular_file::read(&folder.join("run.json"), FileKind::RUN).ok()).flatten();
        let mut record: Value = record.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { folder: folder.to_owned(), step, options: record["options"].take() }
    }

    fn option(&self, name: &str) -> Option<String> {
        self.options[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned)
    }

    /// Its last samples that are not of later steps than the adapter.
    fn samples(&self) -> Vec<(Sample, UploadedFile)> {
        let Some(prompt) = self.option("validation_prompt").or_else(|| self.option("instance_prompt")) else {
            return Vec::new();
        };
        let folder = self.folder.join("samples");
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let step_of = |name: &str| name.strip_prefix("step-")?.split(['-', '.']).next()?.parse::<u64>().ok();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let names = names.filter(|name| name.ends_with(".png") && folder.join(name).is_file());
        let mut found: Vec<(u64, String)> = names.filter_map(|name| Some((step_of(&name)?, name))).collect();
        found.retain(|(step, _)| self.step.is_none_or(|last| *step <= last));
        found.sort();
        let last = found.last().map(|(step, _)| *step);
        found.retain(|(step, _)| Some(*step) == last);
        let sample = |(_, name): (u64, String)| {
            let path = format!("{SAMPLE_FOLDER}/{name}");
            let file = UploadedFile { path: path.clone(), content: Content::File(folder.join(&name)) };
            (Sample { path, prompt: prompt.clone() }, file)
        };
        found.into_iter().take(SAMPLES).map(sample).collect()
    }
}

/// A folder for the time of an upload, which nobody else can read.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Result<Self> {
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|error| Error::invalid(format!("the system gives no random numbers: {error}")))?;
        let folder = std::env::temp_dir().join(format!("lorabooth-push-{:016x}", u64::from_le_bytes(random)));
        DirBuilder::new().mode(0o700).create(&folder).map_err(|error| Error::io("create", &folder, error))?;
        Ok(Self(folder))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Shows uploads, and ends them where the user wants that.
struct Bar<'a> {
    observer: &'a mut dyn Observer,
    interrupt: &'a Interrupt,
    shown: Option<String>,
}

impl Listener for Bar<'_> {
    fn on(&mut self, Download { file, total, done }: Download) {
        if self.shown.as_deref() == Some(file) {
            return self.observer.on(Event::Progress { done });
        }
        if self.shown.replace(file.to_owned()).is_some() {
            self.observer.on(Event::End);
        }
        self.observer.on(Event::Begin { phase: format!("upload of {file}"), total, done, unit: "bytes" });
    }

    fn check(&mut self) -> Result<()> {
        self.interrupt.check()
    }
}
