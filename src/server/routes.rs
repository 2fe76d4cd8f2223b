//! The table of all addresses: the router and the description at `/openapi.json` are made from it.

use super::accounts::{self, Owner, SignedIn};
use super::failure::{Answer, Failure};
use super::jobs::{self, Change, NewJob};
use super::openapi::{self, Endpoint};
use super::request::{Id, Json, Query};
use super::sets::{self, send_picture, Size};
use super::state::{JobKind, JobState};
use super::worker::{Request, Stop};
use super::{
    assets, drawing, events, gradio, guard, import, language_training, library, models, options, plan, pushing,
    training, visitors, writing, App,
};
use crate::data::photo_decoding;
use crate::error::Error;
use crate::libtorch::memory;
use crate::recipes::training::control::SampleRequest;
use crate::recipes::{device_flag, dtype_name};
use crate::regular_file::{self, FileKind};
use crate::train::metrics::StepMetrics;
use crate::train::precision::Precision;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post};
use axum::{middleware, Router};
use rusqlite::OptionalExtension;
use serde::Deserialize;
use serde_json::{json, Map, Value};
use std::io::{BufRead, BufReader};
use std::time::Duration;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::csrf::CsrfLayer;
use tower_http::timeout::RequestBodyTimeoutLayer;

/// Bytes of a body of JSON.
const MAX_JSON: usize = 256 << 10;
/// Bytes of an upload.
const MAX_UPLOAD: usize = 8 << 30;
/// A body that sends nothing for longer is given up.
const SILENT_BODY: Duration = Duration::from_secs(20);
/// Steps of a loss curve in one answer.
const MAX_METRICS: usize = 20_000;

fn endpoints() -> Vec<Endpoint> {
    let upload = || DefaultBodyLimit::max(MAX_UPLOAD);
    vec![
        Endpoint::new("get", "/api/state", "What this server is, its models and its queue", get(state)),
        Endpoint::new("get", "/api/options/{kind}", "The options of a job, as a form needs them", get(options_of)),
        Endpoint::new("post", "/api/sets", "Make a set of photos or records, empty or of the photos inside lorabooth", post(sets::create)).optional_body(json!({
            "type": "object", "additionalProperties": false, "properties": { "example": { "type": ["string", "null"] } },
        })),
        Endpoint::new("post", "/api/sets/{id}/files", "Put photos, zip files of photos, or captions in a set", post(sets::upload).layer(upload()))
            .files("files"),
        Endpoint::new("get", "/api/sets/{id}", "The photos of a set, with warnings", get(sets::show)),
        Endpoint::new("patch", "/api/sets/{id}/photos/{photo}", "Change a photo's caption", patch(sets::caption_photo)).body(json!({
            "type": "object", "required": ["caption"], "properties": { "caption": { "type": "string", "maxLength": 1000 } },
            "additionalProperties": false,
        })),
        Endpoint::new("delete", "/api/sets/{id}/photos/{photo}", "Take a photo out of a set", delete(sets::delete_photo)),
        Endpoint::new("get", "/api/photos/{photo}", "A photo; with thumbnail=1 small", get(sets::picture)).query("thumbnail", "integer"),
        Endpoint::new("post", "/api/plan", "What a training will take of memory and time", post(plan::plan)).body(json!({
            "type": "object", "required": ["kind"], "additionalProperties": false, "properties": {
                "kind": { "type": "string", "enum": ["dreambooth", "llm"] }, "set": { "type": ["string", "null"] },
                "options": { "type": "object" },
            },
        })),
        Endpoint::new("post", "/api/jobs", "Put a job in the queue", post(add_job)).body(openapi::new_job()).job(),
        Endpoint::new("get", "/api/jobs", "All jobs, the newest first", get(list_jobs)).query("limit", "integer"),
        Endpoint::new("get", "/api/jobs/{id}", "A job, with its warnings, facts and the end of its log", get(show_job)).job(),
        Endpoint::new("get", "/api/jobs/{id}/metrics", "The numbers of each step after a step", get(metrics)).query("after", "integer"),
        Endpoint::new("patch", "/api/jobs/{id}", "Change a queued job's place or options, or any job's name", patch(change_job)).body(json!({
            "type": "object", "additionalProperties": false, "properties": {
                "position": { "type": "integer", "minimum": 1 }, "name": { "type": "string" }, "options": { "type": "object" },
            },
        })),
        Endpoint::new("delete", "/api/jobs/{id}", "Drop a queued job, or delete one that is over with its files", delete(delete_job)),
        Endpoint::new("post", "/api/jobs/{id}/{action}", "stop, save, sample, pause, continue or resume a job", post(act))
            .optional_body(json!({ "type": "object", "description": "Of sample", "additionalProperties": false, "properties": {
                "prompt": { "type": ["string", "null"] }, "negative_prompt": { "type": ["string", "null"] },
                "seed": { "type": ["integer", "null"] }, "number": { "type": ["integer", "null"] },
                "max_new_tokens": { "type": ["integer", "null"] },
            } })),
        Endpoint::new("get", "/api/images/{id}", "A picture; with thumbnail=1 small", get(image)).query("thumbnail", "integer"),
        Endpoint::new("get", "/api/adapters", "All adapters, the newest first", get(library::list)),
        Endpoint::new("post", "/api/adapters", "Upload an adapter: a zip of PEFT's folder, or a .safetensors file", post(import::upload).layer(upload()))
            .files("file"),
        Endpoint::new("patch", "/api/adapters/{id}", "Rename an adapter, or make a checkpoint the adapter", patch(library::change)).body(json!({
            "type": "object", "additionalProperties": false, "properties": {
                "name": { "type": "string" }, "checkpoint": { "type": ["integer", "null"] },
            },
        })),
        Endpoint::new("delete", "/api/adapters/{id}", "Delete an adapter and its files", delete(library::delete)),
        Endpoint::new("get", "/api/adapters/{id}/download", "An adapter as a file: format peft, diffusers or kohya", get(library::download))
            .query("format", "string")
            .query("checkpoint", "integer"),
        Endpoint::new("post", "/api/adapters/{id}/push", "Upload an adapter to the hub, to a private repository unless private is false", post(pushing::add)).body(json!({
            "type": "object", "required": ["repo"], "additionalProperties": false, "properties": {
                "repo": { "type": "string" }, "token": { "type": ["string", "null"] }, "private": { "type": ["boolean", "null"] },
                "license": { "type": ["string", "null"] }, "checkpoint": { "type": ["integer", "null"] },
            },
        })).job(),
        Endpoint::new("get", "/api/events", "Everything that happens, as an event stream", get(events::stream)).query("after", "integer"),
        Endpoint::new("post", "/api/visitor/delete", "On a public server: delete everything of this visitor", post(visitors::delete)).optional_body(json!({
            "type": "object", "additionalProperties": false,
            "properties": { "session_hash": { "type": ["string", "null"], "description": "Of a client of gradio's that keeps no cookie" } },
        })),
        Endpoint::new("get", "/api/models", "Whether a model of the hub can be used", get(models::look_up)).query("hub", "string"),
        Endpoint::new("post", "/login", "Sign in", post(accounts::login)).body(json!({
            "type": "object", "required": ["username", "password"],
            "properties": { "username": { "type": "string" }, "password": { "type": "string" } },
        })),
        Endpoint::new("post", "/logout", "Sign out", post(accounts::logout)),
    ]
}

/// All routes behind their guards.
pub fn router(app: App) -> Router {
    let endpoints = endpoints();
    let document = openapi::document(&endpoints);
    let describe = move || {
        let document = document.clone();
        async move { axum::Json(document) }
    };
    let mut router = Router::new().route("/openapi.json", get(describe));
    for endpoint in endpoints {
        router = router.route(endpoint.path, endpoint.handler);
    }
    gradio::add_routes(router, MAX_UPLOAD)
        .fallback(get(assets::file).fallback(not_found))
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_JSON))
        .layer(RequestBodyTimeoutLayer::new(SILENT_BODY))
        .layer(middleware::from_fn_with_state(MAX_UPLOAD as u64, guard::check_length))
        .layer(middleware::from_fn_with_state(app.clone(), accounts::admit))
        .layer(CsrfLayer::new())
        .layer(middleware::from_fn_with_state(app.clone(), guard::check_host))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(app.clone(), guard::add_headers))
        .with_state(app)
}

async fn not_found() -> Failure {
    Failure::new(StatusCode::NOT_FOUND, "there is nothing at this address; /openapi.json lists all")
}

async fn wrong_method() -> Failure {
    Failure::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this address does not take that method; /openapi.json lists what each one takes",
    )
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "an internal check failed; please report it with what was asked")
        .into_response()
}

/// `GET /api/state`.
async fn state(State(app): State<App>, owner: Owner, SignedIn(signed_in): SignedIn) -> Answer {
    let version = env!("CARGO_PKG_VERSION");
    let is_public = app.limits.is_some();
    if !signed_in {
        return Ok(axum::Json(json!({ "version": version, "public": is_public, "signed_in": false })).into_response());
    }
    // Before anything is looked up: what changes meanwhile is told again behind it.
    let last = app.events.last();
    let (free, total) = memory::device_memory(app.device).unwrap_or((0, 0));
    let shared = app.clone();
    let models = tokio::task::spawn_blocking(move || shared.models.list(is_public)).await.unwrap_or_default();
    let kind = Precision::auto(app.device).compute_kind();
    let state = json!({
        "version": version,
        "device": { "name": device_flag(app.device), "dtype": dtype_name(kind), "memory_total": total, "memory_free": free },
        "public": is_public, "limits": app.limits, "signed_in": true, "has_account": app.account.is_some(), "models": models,
        "examples": sets::examples(), "last_event": last, "queue": jobs::queue(&app, owner.name()).await?,
    });
    Ok(axum::Json(state).into_response())
}

/// `GET /api/options/{kind}`.
async fn options_of(Id(kind): Id<String>) -> Answer {
    match kind.as_str() {
        "dreambooth" => {
            let groups = options::with_seed(options::described(&training::dreambooth_command(), training::FILLED_IN));
            Ok(axum::Json(json!({ "groups": groups, "presets": super::presets::dreambooth() })).into_response())
        }
        "llm" => {
            let groups =
                options::with_seed(options::described(&language_training::command(), language_training::FILLED_IN));
            Ok(axum::Json(json!({ "groups": groups, "presets": [] })).into_response())
        }
        "complete" => Ok(axum::Json(json!({ "groups": writing::described(), "presets": [] })).into_response()),
        "generate" => Ok(axum::Json(json!({ "groups": drawing::described(), "presets": [] })).into_response()),
        _ => Err(Failure::not_found("kind of options")),
    }
}

/// The body of a new job.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// What is to be done.
    pub kind: String,
    /// For people; the usual one where there is none.
    pub name: Option<String>,
    /// Photos or records to learn from.
    pub set: Option<String>,
    /// The job's options.
    #[serde(default)]
    pub options: Map<String, Value>,
}

/// `POST /api/jobs`.
async fn add_job(State(app): State<App>, owner: Owner, Json(wanted): Json<Wanted>) -> Answer {
    Ok((StatusCode::CREATED, axum::Json(submit(&app, &owner, wanted).await?)).into_response())
}

/// Puts a job in the queue, once it is known that it can be done.
pub async fn submit(app: &App, owner: &Owner, wanted: Wanted) -> Answer<Value> {
    let Some(kind) = JobKind::named(&wanted.kind) else {
        return Err(Failure::field("kind", format!("kind is one of {}", JobKind::NAMES.join(", "))));
    };
    if kind == JobKind::Push {
        return Err(Failure::field("kind", "an adapter is pushed by POST /api/adapters/{id}/push"));
    }
    if let Some(set) = &wanted.set {
        sets::check(app, set, owner).await?;
    }
    app.data.check_room()?;
    let id = jobs::new_job_id()?;
    let name = wanted.name.as_deref().filter(|name| !name.trim().is_empty()).map(library::checked_name).transpose()?;
    let (shared, new, of, options, set) =
        (app.clone(), id.clone(), owner.owned(), wanted.options.clone(), wanted.set.clone());
    let prepared = tokio::task::spawn_blocking(move || match kind {
        JobKind::TrainDreambooth => training::prepare(&shared, &new, &of, &options, set.as_deref()),
        JobKind::TrainLlm => language_training::prepare(&shared, &new, &of, &options, set.as_deref()),
        JobKind::Generate | JobKind::Grid => drawing::prepare(&shared, &new, &of, kind, &options),
        JobKind::Complete => writing::prepare(&shared, &of, &options),
        JobKind::Push => Err(Failure::not_found("kind of jobs")),
    });
    let (command, usual_name) = prepared.await.map_err(|_| Failure::bad("the job could not be prepared"))??;
    let job = NewJob {
        id,
        owner: owner.owned(),
        kind,
        name: name.unwrap_or(usual_name),
        options: wanted.options,
        set: wanted.set,
        command,
    };
    let input = app.data.inputs().join(&job.id);
    let added = jobs::add(app, job).await;
    if added.is_err() {
        drop(app.data.remove(&input));
    }
    added
}

#[derive(Debug, Deserialize)]
struct Limit {
    limit: Option<u64>,
}

/// `GET /api/jobs`.
async fn list_jobs(State(app): State<App>, owner: Owner, Query(query): Query<Limit>) -> Answer {
    let limit = query.limit.unwrap_or(100).min(jobs::MAX_LISTED);
    Ok(axum::Json(jobs::list(&app, owner.name(), limit).await?).into_response())
}

/// `GET /api/jobs/{id}`.
async fn show_job(State(app): State<App>, owner: Owner, Id(id): Id<String>) -> Answer {
    jobs::find(&app, &id, owner.name()).await?;
    let mut job = jobs::shown(&app, &id).await?;
    if let (Value::Object(job), Value::Object(lines)) = (&mut job, jobs::lines(&app, &id).await?) {
        job.extend(lines);
    }
    Ok(axum::Json(job).into_response())
}

#[derive(Debug, Deserialize)]
struct After {
    after: Option<u64>,
}

/// `GET /api/jobs/{id}/metrics`.
async fn metrics(State(app): State<App>, owner: Owner, Id(id): Id<String>, Query(query): Query<After>) -> Answer {
    jobs::find(&app, &id, owner.name()).await?;
    let file = app.data.runs().join(&id).join("metrics.jsonl");
    let read = tokio::task::spawn_blocking(move || {
        let Ok(file) = regular_file::open(&file, FileKind::FLAGS) else { return Vec::new() };
        let lines = BufReader::new(file).lines().map_while(std::io::Result::ok);
        // A line that is being written is not whole yet.
        let steps = lines.filter_map(|line| serde_json::from_str::<StepMetrics>(&line).ok());
        steps.filter(|metrics| query.after.is_none_or(|after| metrics.step > after)).take(MAX_METRICS).collect()
    });
    let steps: Vec<StepMetrics> = read.await.map_err(|_| Failure::bad("the metrics could not be read"))?;
    Ok(axum::Json(steps).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Changed {
    position: Option<u64>,
    name: Option<String>,
    options: Option<Map<String, Value>>,
}

/// `PATCH /api/jobs/{id}`.
async fn change_job(State(app): State<App>, owner: Owner, Id(id): Id<String>, Json(body): Json<Changed>) -> Answer {
    let job = jobs::find(&app, &id, owner.name()).await?;
    let name = body.name.as_deref().map(library::checked_name).transpose()?;
    let options = match body.options {
        Some(options) => {
            let (shared, new, of) = (app.clone(), id.clone(), owner.owned());
            let checked = tokio::task::spawn_blocking(move || {
                let command = match job.kind {
                    JobKind::TrainDreambooth => training::command_of(&shared, &new, &of, &options),
                    JobKind::TrainLlm => language_training::command_of(&shared, &new, &of, &options),
                    JobKind::Complete => writing::prepare(&shared, &of, &options).map(|(command, _)| command),
                    JobKind::Push => Err(Failure::conflict("a push cannot be changed; drop it, and push again")),
                    kind @ (JobKind::Generate | JobKind::Grid) => {
                        drawing::prepare(&shared, &new, &of, kind, &options).map(|(command, _)| command)
                    }
                }?;
                Ok::<_, Failure>((options, command))
            });
            Some(checked.await.map_err(|_| Failure::bad("the options could not be checked"))??)
        }
        None => None,
    };
    jobs::change(&app, &id, Change { position: body.position, name, options }).await?;
    Ok(axum::Json(jobs::shown(&app, &id).await?).into_response())
}

/// `DELETE /api/jobs/{id}`.
async fn delete_job(State(app): State<App>, owner: Owner, Id(id): Id<String>) -> Answer {
    let job = jobs::find(&app, &id, owner.name()).await?;
    jobs::delete(&app, &job).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /api/jobs/{id}/{action}`.
async fn act(State(app): State<App>, owner: Owner, Id((id, action)): Id<(String, String)>, body: Bytes) -> Answer {
    let job = jobs::find(&app, &id, owner.name()).await?;
    let is_training = job.kind.is_training();
    if !is_training && ["save", "sample", "pause", "continue"].contains(&action.as_str()) {
        return Err(Failure::conflict("only a training can be paused, saved and sampled"));
    }
    let state = app.worker.with(&id, |live| job.state(live));
    match action.as_str() {
        "stop" if state == JobState::Queued => {
            return Err(Failure::conflict("the job only waits in the queue; delete it to drop it"));
        }
        "stop" if !app.worker.stop(&id, Stop::Asked) => {
            return Err(Failure::conflict(format!("the job is {} and does not run", state.name())));
        }
        "stop" => jobs::tell_of(&app, &id).await,
        "resume" if state.is_over() && state != JobState::Finished => jobs::resume(&app, &job).await?,
        "resume" => {
            return Err(Failure::conflict(format!(
                "the job is {}; one that was stopped, failed or was interrupted can be resumed",
                state.name()
            )))
        }
        "save" => ask(&app, &id, state, Request::Save)?,
        "pause" => ask(&app, &id, state, Request::Pause)?,
        "continue" => ask(&app, &id, state, Request::Continue)?,
        "sample" => ask(&app, &id, state, Request::Sample(sample_of(body)?))?,
        _ => return Err(Failure::not_found("action on a job")),
    }
    Ok(axum::Json(jobs::shown(&app, &id).await?).into_response())
}

/// Asks the job `id`, which is in `state`, for something.
fn ask(app: &App, id: &str, state: JobState, request: Request) -> Answer<()> {
    match app.worker.ask(id, request) {
        true => Ok(()),
        false => Err(Failure::conflict(format!("the job is {} and does not run", state.name()))),
    }
}

/// What a sample shows, by the body of the request, which may be empty.
fn sample_of(body: Bytes) -> Answer<SampleRequest> {
    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        prompt: Option<String>,
        negative_prompt: Option<String>,
        seed: Option<i64>,
        number: Option<usize>,
        max_new_tokens: Option<usize>,
    }
    let sample: Sample = match body.is_empty() {
        true => Sample::default(),
        false => serde_json::from_slice(&body)
            .map_err(|error| Failure::bad(format!("the body is not what a sample takes: {error}")))?,
    };
    let text = |name: &str, text: Option<String>| match text {
        Some(text) if text.len() > options::MAX_VALUE => Err(options::too_long(name)),
        text => Ok(text.filter(|text| !text.trim().is_empty())),
    };
    Ok(SampleRequest {
        prompt: text("prompt", sample.prompt)?,
        negative_prompt: text("negative_prompt", sample.negative_prompt)?,
        seed: sample.seed,
        images: sample.number,
        max_new_tokens: sample.max_new_tokens,
    })
}

/// `GET /api/images/{id}`.
pub async fn image(State(app): State<App>, owner: Owner, Id(id): Id<String>, Query(size): Query<Size>) -> Answer {
    let (wanted, of) = (id.clone(), owner.owned());
    let found: Option<String> = app
        .store
        .ask(move |db| {
            db.query_row("SELECT file FROM images WHERE id = ?1 AND owner = ?2", [wanted, of], |row| row.get(0))
                .optional()
        })
        .await?;
    let path = app.data.root().join(found.ok_or_else(|| Failure::not_found("picture"))?);
    if size.thumbnail != Some(1) {
        return send_picture(path).await;
    }
    let thumbnail = app.data.thumbnails().join(format!("{id}.jpg"));
    if !thumbnail.exists() {
        let (from, to) = (path, thumbnail.clone());
        let made = tokio::task::spawn_blocking(move || {
            let image = photo_decoding::decode(&from)?;
            std::fs::create_dir_all(to.parent().unwrap_or(&to)).map_err(|error| Error::io("create", &to, error))?;
            sets::write_thumbnail(&to, &image)
        });
        made.await.map_err(|_| Failure::not_found("picture"))?.map_err(|_| Failure::not_found("picture"))?;
    }
    send_picture(thumbnail).await
}
