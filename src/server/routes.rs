//! The table of all addresses: the router and the description at `/openapi.json` are made from it.

use super::accounts::{self, Owner, SignedIn};
use super::failure::{Answer, Failure};
use super::jobs::{self, requests};
use super::openapi::{self, Endpoint};
use super::request::Id;
use super::schema::{integer, list_of, map, named, object, one_of, or_null, text, truth};
use super::{
    assets, drawing, events, gradio, guard, import, language_training, library, models, options, pictures, plan,
    pushing, sets, training, visitors, writing, App,
};
use crate::libtorch::memory;
use crate::recipes::{device_flag, dtype_name};
use crate::train::precision::Precision;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post};
use axum::{middleware, Router};
use serde_json::{json, Value};
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

/// Media types of pictures.
const PICTURES: &[&str] = &["image/png", "image/jpeg", "image/webp", "application/octet-stream"];

fn endpoints() -> Vec<Endpoint> {
    let upload = || DefaultBodyLimit::max(MAX_UPLOAD);
    vec![
        Endpoint::new("get", "/api/state", "What this server is, its models and its queue", get(state)).answers_with("State"),
        Endpoint::new("get", "/api/options/{kind}", "The options of a job, as a form needs them", get(options_of)).answers_with("Options"),
        Endpoint::new("post", "/api/sets", "Make a set of photos or records, empty or of the photos inside lorabooth", post(sets::create)).optional_body(json!({
            "type": "object", "additionalProperties": false, "properties": { "example": { "type": ["string", "null"] } },
        })).answers_with("Set"),
        Endpoint::new("post", "/api/sets/{id}/files", "Put photos, zip files of photos, or captions in a set", post(sets::upload).layer(upload()))
            .files("files").answers_with("Set"),
        Endpoint::new("get", "/api/sets/{id}", "The photos of a set, with warnings", get(sets::show)).answers_with("Set"),
        Endpoint::new("patch", "/api/sets/{id}/photos/{photo}", "Change a photo's caption", patch(sets::caption_photo)).body(json!({
            "type": "object", "required": ["caption"], "properties": { "caption": { "type": "string", "maxLength": 1000 } },
            "additionalProperties": false,
        })).answers_with("Set"),
        Endpoint::new("delete", "/api/sets/{id}/photos/{photo}", "Take a photo out of a set", delete(sets::delete_photo)).answers_with("Set"),
        Endpoint::new("get", "/api/photos/{photo}", "A photo; with thumbnail=1 small", get(sets::picture)).query("thumbnail", "integer").sends(PICTURES),
        Endpoint::new("post", "/api/plan", "What a training will take of memory and time", post(plan::plan)).body(json!({
            "type": "object", "required": ["kind"], "additionalProperties": false, "properties": {
                "kind": { "type": "string", "enum": ["dreambooth", "llm"] }, "set": { "type": ["string", "null"] },
                "options": { "type": "object" },
            },
        })).answers_with("Plan"),
        Endpoint::new("post", "/api/jobs", "Put a job in the queue", post(requests::add_job)).body(openapi::new_job()).answers_with("Job"),
        Endpoint::new("get", "/api/jobs", "All jobs, the newest first", get(requests::list_jobs)).query("limit", "integer").answers(list_of(named("Job"))),
        Endpoint::new("get", "/api/jobs/{id}", "A job, with its warnings, facts and the end of its log", get(requests::show_job)).answers_with("JobWithLines"),
        Endpoint::new("get", "/api/jobs/{id}/metrics", "The numbers of each step after a step", get(requests::metrics)).query("after", "integer").answers(list_of(named("Step"))),
        Endpoint::new("patch", "/api/jobs/{id}", "Change a queued job's place or options, or any job's name", patch(requests::change_job)).body(json!({
            "type": "object", "additionalProperties": false, "properties": {
                "position": { "type": "integer", "minimum": 1 }, "name": { "type": "string" }, "options": { "type": "object" },
            },
        })).answers_with("Job"),
        Endpoint::new("delete", "/api/jobs/{id}", "Drop a queued job, or delete one that is over with its files", delete(requests::delete_job)),
        Endpoint::new("post", "/api/jobs/{id}/{action}", "stop, save, sample, pause, continue or resume a job", post(requests::act))
            .optional_body(json!({ "type": "object", "description": "Of sample", "additionalProperties": false, "properties": {
                "prompt": { "type": ["string", "null"] }, "negative_prompt": { "type": ["string", "null"] },
                "seed": { "type": ["integer", "null"] }, "number": { "type": ["integer", "null"] },
                "max_new_tokens": { "type": ["integer", "null"] },
            } })).answers_with("Job"),
        Endpoint::new("get", "/api/images/{id}", "A picture; with thumbnail=1 small", get(pictures::image)).query("thumbnail", "integer").sends(PICTURES),
        Endpoint::new("get", "/api/adapters", "All adapters, the newest first", get(library::list)).answers(list_of(named("Adapter"))),
        Endpoint::new("post", "/api/adapters", "Upload an adapter: a zip of PEFT's folder, or a .safetensors file", post(import::upload).layer(upload()))
            .files("file").answers_with("Adapter"),
        Endpoint::new("patch", "/api/adapters/{id}", "Rename an adapter, or make a checkpoint the adapter", patch(library::change)).body(json!({
            "type": "object", "additionalProperties": false, "properties": {
                "name": { "type": "string" }, "checkpoint": { "type": ["integer", "null"] },
            },
        })).answers_with("Adapter"),
        Endpoint::new("delete", "/api/adapters/{id}", "Delete an adapter and its files", delete(library::delete)),
        Endpoint::new("get", "/api/adapters/{id}/download", "An adapter as a file: format peft, diffusers or kohya", get(library::download))
            .query("format", "string")
            .query("checkpoint", "integer").sends(&["application/zip", "application/octet-stream"]),
        Endpoint::new("post", "/api/adapters/{id}/push", "Upload an adapter to the hub, to a private repository unless private is false", post(pushing::add)).body(json!({
            "type": "object", "required": ["repo"], "additionalProperties": false, "properties": {
                "repo": { "type": "string" }, "token": { "type": ["string", "null"] }, "private": { "type": ["boolean", "null"] },
                "license": { "type": ["string", "null"] }, "checkpoint": { "type": ["integer", "null"] },
            },
        })).answers_with("Job"),
        Endpoint::new("get", "/api/events", "Everything that happens, as an event stream: each row is an Event of the schemas below, with its number as `id`", get(events::stream)).query("after", "integer").sends(&["text/event-stream"]),
        Endpoint::new("post", "/api/visitor/delete", "On a public server: delete everything of this visitor", post(visitors::delete)).optional_body(json!({
            "type": "object", "additionalProperties": false,
            "properties": { "session_hash": { "type": ["string", "null"], "description": "Of a client of gradio's that keeps no cookie" } },
        })),
        Endpoint::new("get", "/api/models", "Whether a model of the hub can be used", get(models::look_up)).query("hub", "string").answers_with("Model"),
        Endpoint::new("post", "/login", "Sign in", post(accounts::login)).body(json!({
            "type": "object", "required": ["username", "password"],
            "properties": { "username": { "type": "string" }, "password": { "type": "string" } },
        })).answers(object([("success", truth())])),
        Endpoint::new("post", "/logout", "Sign out", post(accounts::logout)).answers(object([("success", truth())])),
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

/// What [`state`] answers.
pub fn state_schema() -> Value {
    let signed_out = object([("version", text()), ("public", truth()), ("signed_in", json!({ "const": false }))]);
    let device = object([("name", text()), ("dtype", text()), ("memory_total", integer()), ("memory_free", integer())]);
    let limits =
        object(["max_photos", "max_steps", "max_minutes", "max_jobs", "keep_hours"].map(|name| (name, integer())));
    let example = object([("name", text()), ("title", text()), ("model", text()), ("values", map())]);
    let signed_in = object([
        ("version", text()),
        ("device", device),
        ("public", truth()),
        ("limits", or_null(limits)),
        ("signed_in", json!({ "const": true })),
        ("has_account", truth()),
        ("models", list_of(named("Model"))),
        ("examples", list_of(example)),
        ("last_event", integer()),
        ("queue", list_of(named("Job"))),
    ]);
    one_of([signed_out, signed_in])
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
