//! What clients ask of jobs.

use super::super::accounts::Owner;
use super::super::failure::{Answer, Failure};
use super::super::live::{Request, Stop};
use super::super::request::{Id, Json, Query};
use super::super::state::{JobKind, JobState};
use super::super::{drawing, language_training, library, options, sets, training, writing, App};
use super::queue::{self, Change, NewJob};
use super::{find, new_job_id, record, shown};
use crate::recipes::training::control::SampleRequest;
use crate::regular_file::{self, FileKind};
use crate::train::metrics::StepMetrics;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::io::{BufRead, BufReader};

/// Steps of a loss curve in one answer.
const MAX_METRICS: usize = 20_000;

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
pub async fn add_job(State(app): State<App>, owner: Owner, Json(wanted): Json<Wanted>) -> Answer {
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
    let id = new_job_id()?;
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
    let added = queue::add(app, job).await;
    if added.is_err() {
        drop(app.data.remove(&input));
    }
    added
}

/// How many jobs are listed.
#[derive(Debug, Deserialize)]
pub struct Limit {
    limit: Option<u64>,
}

/// `GET /api/jobs`.
pub async fn list_jobs(State(app): State<App>, owner: Owner, Query(query): Query<Limit>) -> Answer {
    let limit = query.limit.unwrap_or(100).min(shown::MAX_LISTED);
    Ok(axum::Json(shown::list(&app, owner.name(), limit).await?).into_response())
}

/// `GET /api/jobs/{id}`.
pub async fn show_job(State(app): State<App>, owner: Owner, Id(id): Id<String>) -> Answer {
    find(&app, &id, owner.name()).await?;
    let mut job = shown::shown(&app, &id).await?;
    if let (Value::Object(job), Value::Object(lines)) = (&mut job, record::lines(&app, &id).await?) {
        job.extend(lines);
    }
    Ok(axum::Json(job).into_response())
}

/// The step that metrics come behind.
#[derive(Debug, Deserialize)]
pub struct After {
    after: Option<u64>,
}

/// `GET /api/jobs/{id}/metrics`.
pub async fn metrics(State(app): State<App>, owner: Owner, Id(id): Id<String>, Query(query): Query<After>) -> Answer {
    find(&app, &id, owner.name()).await?;
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

/// The body of a change.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changed {
    position: Option<u64>,
    name: Option<String>,
    options: Option<Map<String, Value>>,
}

/// `PATCH /api/jobs/{id}`.
pub async fn change_job(State(app): State<App>, owner: Owner, Id(id): Id<String>, Json(body): Json<Changed>) -> Answer {
    let job = find(&app, &id, owner.name()).await?;
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
    queue::change(&app, &id, Change { position: body.position, name, options }).await?;
    Ok(axum::Json(shown::shown(&app, &id).await?).into_response())
}

/// `DELETE /api/jobs/{id}`.
pub async fn delete_job(State(app): State<App>, owner: Owner, Id(id): Id<String>) -> Answer {
    let job = find(&app, &id, owner.name()).await?;
    queue::delete(&app, &job).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /api/jobs/{id}/{action}`.
pub async fn act(State(app): State<App>, owner: Owner, Id((id, action)): Id<(String, String)>, body: Bytes) -> Answer {
    let job = find(&app, &id, owner.name()).await?;
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
        "stop" => shown::tell_of(&app, &id).await,
        "resume" if state.is_over() && state != JobState::Finished => queue::resume(&app, &job).await?,
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
    Ok(axum::Json(shown::shown(&app, &id).await?).into_response())
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
