//! Adapters: what jobs trained and what was uploaded, to be tried, compared and taken home.

use super::accounts::Owner;
use super::failure::{Answer, Failure};
use super::jobs::{self, now};
use super::request::{Id, Json, Query};
use super::schema::{integer, list_of, object, or_null, text, truth, word};
use super::state::JobKind;
use super::{App, Shared};
use crate::adapters::formats::language_adapter_at;
use crate::adapters::peft_folder::{CONFIG_FILE, MODEL_FILE};
use crate::adapters::{read_any, write_diffusers, write_kohya, write_peft, Part, TextEncoderSpelling};
use crate::error::{Error, Result};
use crate::recipes::kohya_metadata;
use crate::train::checkpoint;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use rusqlite::{params, OptionalExtension, Row};
use serde::Deserialize;
use serde_json::{json, Value};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use tch::Kind;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use zip::write::SimpleFileOptions;

/// Samples that stand for an adapter.
const SAMPLES: usize = 4;
/// Characters of a name.
const MAX_NAME: usize = 200;
/// Bytes that are sent at a time.
const CHUNK: usize = 256 << 10;

/// An adapter as it stands in the database.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Its id; that of the job that trained it.
    pub id: String,
    /// For people.
    pub name: String,
    /// `stable_diffusion` or `language`.
    pub kind: String,
    job: Option<String>,
    base_model: String,
    trigger: String,
    rank: Option<i64>,
    created: String,
    folder: String,
    chosen: Option<i64>,
    license: Option<String>,
}

impl Adapter {
    fn of_row(row: &Row) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get("id")?,
            name: row.get("name")?,
            kind: row.get("kind")?,
            job: row.get("job")?,
            base_model: row.get("base_model")?,
            trigger: row.get("trigger_text")?,
            rank: row.get("rank")?,
            created: row.get("created")?,
            folder: row.get("folder")?,
            chosen: row.get("chosen")?,
            license: row.get("license")?,
        })
    }

    /// Everything of it.
    fn root(&self, app: &Shared) -> PathBuf {
        app.data.root().join(&self.folder)
    }

    /// Steps of its checkpoints, in their order.
    fn checkpoints(&self, app: &Shared) -> Vec<i64> {
        let entries = std::fs::read_dir(self.root(app)).into_iter().flatten().flatten();
        let step = |name: &str| name.strip_prefix("checkpoint-").and_then(|step| step.parse::<i64>().ok());
        let mut steps: Vec<i64> = entries.filter_map(|entry| step(entry.file_name().to_str()?)).collect();
        steps.sort_unstable();
        steps
    }

    /// Where it is at `checkpoint`; with none at the one that was chosen, else as it ended, else at the last one.
    pub fn at(&self, app: &Shared, checkpoint: Option<i64>) -> Answer<PathBuf> {
        let root = self.root(app);
        if let Some(step) = checkpoint.or(self.chosen) {
            let folder = root.join(format!("checkpoint-{step}"));
            return match self.checkpoints(app).contains(&step) {
                true => Ok(folder),
                false => Err(Failure::field("checkpoint", format!("{} has no checkpoint of step {step}", self.name))),
            };
        }
        if is_adapter(&root) {
            return Ok(root);
        }
        let last = self.checkpoints(app).pop().map(|step| root.join(format!("checkpoint-{step}")));
        last.ok_or_else(|| Failure::not_found("adapter"))
    }
}

/// Whether a whole adapter is in `folder`, and no run that has not come to its end.
fn is_adapter(folder: &Path) -> bool {
    folder.join(CONFIG_FILE).exists()
        || Part::ALL.iter().any(|part| folder.join(part.name()).join(CONFIG_FILE).exists())
        || std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| entry.path().extension().is_some_and(|end| end == "safetensors"))
}

/// Lists what the training `job` has made so far among the adapters, where it has made anything.
pub fn register(app: &App, job: &str) -> Result<()> {
    let Some(job) = jobs::find_now(app, job)?.filter(|job| job.kind.is_training()) else { return Ok(()) };
    let folder = app.data.runs().join(&job.id);
    if !is_adapter(&folder) && checkpoint::latest(&folder).ok().flatten().is_none() {
        return Ok(());
    }
    let text = |name: &str| job.options.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let model = app.models.find(&text("model"), false).map_or_else(|_| text("model"), |model| model.name);
    let rank = job.options.get("lora_r").and_then(Value::as_i64);
    let base = if model.is_empty() { "Demo model".to_owned() } else { model };
    let (trigger, folder) = (text("instance_prompt"), format!("runs/{}", job.id));
    let kind = if job.kind == JobKind::TrainLlm { "language" } else { "stable_diffusion" };
    app.store.wait(move |db| {
        db.execute(
            "INSERT OR IGNORE INTO adapters (id, owner, job, name, kind, base_model, trigger_text, rank, created, folder)
             VALUES (?1, ?2, ?1, ?3, ?9, ?4, ?5, ?6, ?7, ?8)",
            params![job.id, job.owner, job.name, base, trigger, rank, now(), folder, kind],
        )
        .map(drop)
    })
}

/// The adapter `id` of `owner`.
pub async fn find(app: &App, id: &str, owner: &str) -> Answer<Adapter> {
    let (id, owner) = (id.to_owned(), owner.to_owned());
    let found = app
        .store
        .ask(move |db| {
            db.query_row("SELECT * FROM adapters WHERE id = ?1 AND owner = ?2", [id, owner], Adapter::of_row).optional()
        })
        .await?;
    found.ok_or_else(|| Failure::not_found("adapter"))
}

/// The folder of the adapter `id` of `owner`, for a thread that can wait.
pub fn folder_now(app: &App, id: &str, owner: &str, checkpoint: Option<i64>) -> Answer<(Adapter, PathBuf)> {
    let (wanted, owner) = (id.to_owned(), owner.to_owned());
    let found = app.store.wait(move |db| {
        db.query_row("SELECT * FROM adapters WHERE id = ?1 AND owner = ?2", [wanted, owner], Adapter::of_row).optional()
    })?;
    let adapter = found.ok_or_else(|| {
        Failure::field(
            "adapters",
            format!("there is no adapter `{}`; it may have been deleted", crate::plain_text::value(id)),
        )
    })?;
    let folder = adapter.at(app, checkpoint)?;
    Ok((adapter, folder))
}

/// Bytes of the weights in `folder`.
fn weights_bytes(folder: &Path) -> u64 {
    let parts = Part::ALL.into_iter().map(Part::name);
    let files: Vec<PathBuf> = std::iter::once("").chain(parts).map(|part| folder.join(part)).collect();
    let entries = files.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    let is_weights =
        |path: &Path| path.extension().is_some_and(|end| end == "safetensors") && !path.ends_with("state.safetensors");
    // The file of diffusers in a run holds the same weights again.
    let mut own: Vec<(bool, u64)> = entries
        .filter(|entry| is_weights(&entry.path()))
        .filter_map(|entry| Some((entry.path().ends_with(MODEL_FILE), entry.metadata().ok()?.len())))
        .collect();
    if own.iter().any(|(is_peft, _)| *is_peft) {
        own.retain(|(is_peft, _)| *is_peft);
    }
    own.iter().map(|(_, bytes)| bytes).sum()
}

/// `GET /api/adapters`.
pub async fn list(State(app): State<App>, owner: Owner) -> Answer {
    let owner = owner.owned();
    let found = app
        .store
        .ask(move |db| {
            let mut found = db.prepare_cached("SELECT * FROM adapters WHERE owner = ?1 ORDER BY number DESC")?;
            let adapters = found.query_map([owner], Adapter::of_row)?.collect::<rusqlite::Result<Vec<_>>>()?;
            adapters.into_iter().map(|adapter| with_samples(db, adapter)).collect::<rusqlite::Result<Vec<_>>>()
        })
        .await?;
    let shared = app.clone();
    let listed = tokio::task::spawn_blocking(move || {
        found.iter().map(|(adapter, samples)| shown(&shared, adapter, samples)).collect::<Vec<_>>()
    });
    let listed = listed.await.map_err(|_| Failure::bad("the adapters could not be listed"))?;
    Ok(axum::Json(listed).into_response())
}

fn with_samples(db: &rusqlite::Connection, adapter: Adapter) -> rusqlite::Result<(Adapter, Vec<String>)> {
    let Some(job) = &adapter.job else { return Ok((adapter, Vec::new())) };
    let mut found = db.prepare_cached(
        "SELECT id FROM images WHERE job = ?1 AND step = (SELECT max(step) FROM images WHERE job = ?1) ORDER BY number LIMIT ?2",
    )?;
    let url = |row: &Row| Ok(format!("/api/images/{}?thumbnail=1", row.get::<_, String>(0)?));
    let samples = found.query_map(params![job, SAMPLES], url)?.collect::<rusqlite::Result<Vec<_>>>()?;
    Ok((adapter, samples))
}

fn shown(app: &Shared, adapter: &Adapter, samples: &[String]) -> Value {
    let steps = adapter.checkpoints(app);
    let bytes = adapter.at(app, None).map_or(0, |folder| weights_bytes(&folder));
    let chosen = adapter.chosen;
    let checkpoints: Vec<Value> =
        steps.iter().map(|&step| json!({ "step": step, "chosen": Some(step) == chosen })).collect();
    json!({
        "id": adapter.id, "name": adapter.name, "kind": adapter.kind, "base_model": adapter.base_model, "trigger": adapter.trigger,
        "steps": chosen.or(steps.last().copied()), "rank": adapter.rank, "bytes": bytes, "created": adapter.created,
        "job": adapter.job, "samples": samples, "checkpoints": checkpoints, "license": adapter.license,
    })
}

/// An adapter as it is shown.
pub fn schema() -> Value {
    object([
        ("id", text()),
        ("name", text()),
        ("kind", word(&["stable_diffusion", "language"])),
        ("base_model", text()),
        ("trigger", text()),
        ("steps", or_null(integer())),
        ("rank", or_null(integer())),
        ("bytes", integer()),
        ("created", text()),
        ("job", or_null(text())),
        ("samples", list_of(text())),
        ("checkpoints", list_of(object([("step", integer()), ("chosen", truth())]))),
        ("license", or_null(text())),
    ])
}

/// The adapter `id` as the page sees it.
pub async fn shown_one(app: &App, id: &str, owner: &str) -> Answer {
    let adapter = find(app, id, owner).await?;
    let (adapter, samples) = app.store.ask(move |db| with_samples(db, adapter)).await?;
    Ok(axum::Json(shown(app, &adapter, &samples)).into_response())
}

/// The body of a change.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    name: Option<String>,
    /// Null takes the adapter as it ended again.
    #[serde(default, deserialize_with = "given")]
    checkpoint: Option<Option<i64>>,
}

/// Tells null from what is not there.
fn given<'de, D: serde::Deserializer<'de>>(value: D) -> std::result::Result<Option<Option<i64>>, D::Error> {
    Option::<i64>::deserialize(value).map(Some)
}

/// A name as it is kept, or what is wrong with it.
pub fn checked_name(name: &str) -> Answer<String> {
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    match name.trim() {
        "" => Err(Failure::field("name", "a name needs a letter at least")),
        name if name.chars().count() > MAX_NAME => {
            Err(Failure::field("name", format!("a name can have at most {MAX_NAME} characters")))
        }
        name => Ok(name.to_owned()),
    }
}

/// `PATCH /api/adapters/{id}`.
pub async fn change(State(app): State<App>, owner: Owner, Id(id): Id<String>, Json(change): Json<Change>) -> Answer {
    let adapter = find(&app, &id, owner.name()).await?;
    let name = change.name.as_deref().map(checked_name).transpose()?;
    if let Some(Some(step)) = change.checkpoint {
        adapter.at(&app, Some(step))?;
    }
    let wanted = id.clone();
    app.store
        .ask(move |db| {
            if let Some(name) = name {
                db.execute("UPDATE adapters SET name = ?2 WHERE id = ?1", params![wanted, name])?;
            }
            if let Some(step) = change.checkpoint {
                db.execute("UPDATE adapters SET chosen = ?2 WHERE id = ?1", params![wanted, step])?;
            }
            Ok(())
        })
        .await?;
    app.events.send(owner.name(), &json!({ "kind": "adapters" }));
    shown_one(&app, &id, owner.name()).await
}

/// `DELETE /api/adapters/{id}`: the adapter and what its training wrote; the job stays listed.
pub async fn delete(State(app): State<App>, owner: Owner, Id(id): Id<String>) -> Answer {
    let adapter = find(&app, &id, owner.name()).await?;
    if app.worker.with(&id, |live| live.is_some()) {
        return Err(Failure::conflict("its training is running; stop it first"));
    }
    app.data.give_reserve();
    app.store.ask(move |db| db.execute("DELETE FROM adapters WHERE id = ?1", [id])).await?;
    app.data.remove(&adapter.root(&app))?;
    app.events.send(owner.name(), &json!({ "kind": "adapters" }));
    Ok(axum::http::StatusCode::NO_CONTENT.into_response())
}

/// What a download can be told.
#[derive(Debug, Deserialize)]
pub struct Wanted {
    #[serde(default)]
    format: Format,
    checkpoint: Option<i64>,
}

impl Wanted {
    /// The adapter as it is, in `format`.
    pub fn whole(format: Format) -> Self {
        Self { format, checkpoint: None }
    }
}

/// How an adapter is written.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A zip of PEFT's folder.
    #[default]
    Peft,
    /// diffusers' one file.
    Diffusers,
    /// kohya's one file, which web UIs read.
    Kohya,
}

/// `GET /api/adapters/{id}/download`.
pub async fn download(
    State(app): State<App>,
    owner: Owner,
    Id(id): Id<String>,
    Query(wanted): Query<Wanted>,
) -> Answer {
    let adapter = find(&app, &id, owner.name()).await?;
    let folder = adapter.at(&app, wanted.checkpoint)?;
    let step = wanted.checkpoint.or(adapter.chosen).map_or(String::new(), |step| format!("-{step:06}"));
    let name = format!("{}{step}", file_stem(&adapter.name));
    let _turn = app.heavy.acquire().await.map_err(|_| Failure::conflict("the server is stopping"))?;
    let temporary = app.data.temporary().join(super::ids::new_id()?);
    let written = tokio::task::spawn_blocking(move || {
        // Processor memory alone: the device is the jobs' thread's.
        let outcome = converted(&folder, &temporary, wanted.format);
        let opened = outcome.and_then(|file| File::open(&file).map_err(|error| Error::io("read", &file, error)));
        drop(std::fs::remove_dir_all(&temporary));
        opened
    });
    let file = written.await.map_err(|_| Failure::bad("the adapter could not be converted"))??;
    let (name, kind) = match wanted.format {
        Format::Peft => (format!("{name}.zip"), "application/zip"),
        Format::Diffusers => ("pytorch_lora_weights.safetensors".to_owned(), "application/octet-stream"),
        Format::Kohya => (format!("{name}.safetensors"), "application/octet-stream"),
    };
    send_file(file, &name, kind)
}

/// The name of a downloaded file: what every file system and web UI takes.
pub fn file_stem(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
    let text: String = name.chars().map(plain).take(80).collect();
    let words: Vec<&str> = text.split('-').filter(|word| !word.is_empty()).collect();
    match words.is_empty() {
        true => "adapter".to_owned(),
        false => words.join("-"),
    }
}

/// The adapter in `folder` as one file in `format`, written into `temporary`.
fn converted(folder: &Path, temporary: &Path, format: Format) -> Result<PathBuf> {
    std::fs::create_dir_all(temporary).map_err(|error| Error::io("create", temporary, error))?;
    let file = temporary.join("file.safetensors");
    if language_adapter_at(folder)?.is_some() {
        if format != Format::Peft {
            return Err(Error::invalid("⟨format⟩: a language model's adapter has one format, PEFT's; choose that"));
        }
        zip_files(folder, &adapter_files(folder), &file)?;
        return Ok(file);
    }
    let set = read_any(folder, None)?;
    match format {
        Format::Peft => {
            let peft = temporary.join("peft");
            let files = write_peft(&peft, &set, TextEncoderSpelling::Today)?;
            zip_files(&peft, &files, &file)?;
        }
        Format::Diffusers => return write_diffusers(temporary, &set),
        Format::Kohya => write_kohya(&file, &set, Kind::Half, &kohya_metadata::of_run_beside(folder, folder))?,
    }
    Ok(file)
}

/// Files of a language model's adapter.
fn adapter_files(folder: &Path) -> Vec<String> {
    let names = [CONFIG_FILE, MODEL_FILE, "prompt_encoder.safetensors", "classes.json"];
    names.into_iter().filter(|name| folder.join(name).is_file()).map(str::to_owned).collect()
}

/// Puts `names` of `folder` in the zip file `out`.
fn zip_files(folder: &Path, names: &[String], out: &Path) -> Result<()> {
    let written = File::create(out).map_err(|error| Error::io("create", out, error))?;
    let mut archive = zip::ZipWriter::new(written);
    let failed = |error: zip::result::ZipError| Error::file(out, format!("cannot be packed: {error}"));
    // Weights are random numbers to a compressor.
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored).large_file(true);
    for name in names {
        let path = folder.join(name);
        let mut file = File::open(&path).map_err(|error| Error::io("read", &path, error))?;
        archive.start_file(name.as_str(), options).map_err(failed)?;
        std::io::copy(&mut file, &mut archive).map_err(|error| Error::io("write", out, error))?;
    }
    let mut file = archive.finish().map_err(failed)?;
    file.flush().map_err(|error| Error::io("write", out, error))
}

/// Sends `file` in pieces as a download called `name`.
fn send_file(mut file: File, name: &str, kind: &'static str) -> Answer {
    let bytes = file.metadata().map_err(|error| Error::io("read", name, error))?.len();
    let (sender, receiver) = mpsc::channel::<std::io::Result<Vec<u8>>>(2);
    tokio::task::spawn_blocking(move || loop {
        let mut piece = vec![0; CHUNK];
        let read = file.read(&mut piece).map(|read| {
            piece.truncate(read);
            piece
        });
        let is_last = !matches!(&read, Ok(piece) if !piece.is_empty());
        if read.as_ref().is_ok_and(Vec::is_empty) || sender.blocking_send(read).is_err() || is_last {
            return;
        }
    });
    let mut response: Response = Body::from_stream(ReceiverStream::new(receiver)).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CONTENT_LENGTH, bytes.into());
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"{name}\"")) {
        headers.insert(CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downloads_have_names_that_every_program_takes() {
        assert_eq!(file_stem("A photo of sks dog"), "A-photo-of-sks-dog");
        assert_eq!(file_stem("../..\"\r\n"), "adapter");
    }
}
