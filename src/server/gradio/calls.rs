//! Calls: taken at once, since a client waits five seconds for that, and done behind its back; what is wrong with one is told in its
//! stream.

use super::super::accounts::{self, Owner};
use super::super::embedding::is_secure;
use super::super::failure::{Answer, Failure};
use super::super::jobs::requests::{submit, Wanted};
use super::super::models::ModelKind;
use super::super::request::{Id, Json, Query};
use super::super::state::JobKind;
use super::super::{jobs, sets, App};
use super::endpoints::{Arguments, Endpoint};
use super::following::{state, with_field, Following};
use super::messages::Message;
use super::sessions::{Form, Listener, Mailbox};
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{json, Map, Value};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// A client that has called opens its stream within this, and somebody with curl within that.
const LISTENS: Duration = Duration::from_secs(120);
const LISTENS_BY_HAND: Duration = Duration::from_secs(3600);
/// Pieces that wait for a slow client.
const WAITING: usize = 16;
/// Bytes of a session's hash.
const MAX_HASH: usize = 128;
/// Runs in a list.
const LISTED: u64 = 100;
/// Refused files that are told of one by one.
const TOLD: usize = 5;

/// The body of a call; what else is in it is of no use here.
#[derive(Debug, Deserialize)]
pub struct Call {
    #[serde(default)]
    data: Vec<Value>,
    fn_index: Option<usize>,
    session_hash: Option<String>,
}

/// What names an event.
#[derive(Debug, Deserialize)]
pub struct Event {
    event_id: Option<String>,
    session_hash: Option<String>,
}

/// What names a session.
#[derive(Debug, Deserialize)]
pub struct Session {
    session_hash: String,
}

/// Whose a request is. Python's client keeps no cookies but that of a sign-in, so that on a public server a client without a
/// visitor's cookie is who its session is.
fn whose(app: &App, owner: Owner, headers: &HeaderMap, hash: Option<&str>) -> Answer<Owner> {
    if hash.is_some_and(|hash| hash.is_empty() || hash.len() > MAX_HASH) {
        return Err(Failure::field("session_hash", format!("session_hash must have 1 to {MAX_HASH} bytes")));
    }
    Ok(match hash.filter(|_| app.limits.is_some() && !accounts::has_visitor(headers)) {
        Some(hash) => Owner::of_session(hash),
        None => owner,
    })
}

/// How the client reaches this server: the name is one of its own, which was checked before.
fn base(headers: &HeaderMap) -> String {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let scheme = if is_secure(headers) { "https" } else { "http" };
    text(HOST.as_str()).map_or(String::new(), |host| format!("{scheme}://{host}"))
}

/// `POST /gradio_api/queue/join`.
pub async fn join(State(app): State<App>, owner: Owner, headers: HeaderMap, Json(call): Json<Call>) -> Answer {
    let owner = whose(&app, owner, &headers, call.session_hash.as_deref())?;
    let endpoint = call.fn_index.and_then(Endpoint::numbered).ok_or_else(|| Failure::not_found("function"))?;
    let hash = call.session_hash.as_deref();
    if hash.is_none() {
        return Err(Failure::field("session_hash", "a call needs a session_hash, which its stream is asked for with"));
    }
    let mail = app.gradio.sessions.open(owner.name(), hash)?;
    Ok(begin(app, owner, endpoint, call.data, base(&headers), mail, LISTENS))
}

/// `POST /gradio_api/call/{name}`.
pub async fn call(
    State(app): State<App>,
    owner: Owner,
    headers: HeaderMap,
    Id(name): Id<String>,
    Json(call): Json<Call>,
) -> Answer {
    let owner = whose(&app, owner, &headers, call.session_hash.as_deref())?;
    let endpoint = Endpoint::named(&name).ok_or_else(|| Failure::not_found("function"))?;
    // Whoever knows the event may listen: curl keeps no cookies.
    let mail = app.gradio.sessions.open(BY_HAND, None)?;
    Ok(begin(app, owner, endpoint, call.data, base(&headers), mail, LISTENS_BY_HAND))
}

/// The owner of sessions of one event, which nobody can guess.
const BY_HAND: &str = "by hand";

/// Does the call while the client is told of its event.
fn begin(
    app: App,
    owner: Owner,
    endpoint: Endpoint,
    data: Vec<Value>,
    base: String,
    mail: Mailbox,
    patience: Duration,
) -> Response {
    let answer = axum::Json(json!({ "event_id": mail.event })).into_response();
    tokio::spawn(async move {
        let doing = Doing { app: &app, owner: &owner, base, mail: &mail, patience };
        if let Err(failure) = doing.perform(endpoint, data).await {
            mail.finish(Message::Failed(with_field(&failure.sentence, failure.field.as_deref())));
            mail.wait_for_a_listener(&app.gradio.sessions, patience).await;
        }
    });
    answer
}

/// `GET /gradio_api/queue/data`.
pub async fn stream(State(app): State<App>, owner: Owner, headers: HeaderMap, Query(of): Query<Session>) -> Answer {
    let owner = whose(&app, owner, &headers, Some(&of.session_hash))?;
    let key = (owner.owned(), of.session_hash);
    Ok(match app.gradio.sessions.listen(&key) {
        Some(listener) => streamed(app, listener, Form::Session),
        // All its events are over.
        None => event_stream(Body::from(super::messages::CLOSE)),
    })
}

/// `GET /gradio_api/call/{name}/{event}`.
pub async fn answer(State(app): State<App>, Id((name, event)): Id<(String, String)>) -> Answer {
    Endpoint::named(&name).ok_or_else(|| Failure::not_found("function"))?;
    let listener = app.gradio.sessions.listen(&(BY_HAND.to_owned(), event));
    let listener = listener.ok_or_else(|| Failure::not_found("event; its answer may have been read, and it"))?;
    Ok(streamed(app, listener, Form::Named))
}

fn streamed(app: App, listener: Listener, form: Form) -> Response {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move { listener.stream(&app.gradio.sessions, form, sender).await });
    event_stream(Body::from_stream(ReceiverStream::new(receiver)))
}

fn event_stream(body: Body) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// `POST /gradio_api/cancel`: the run that the call began stops; one that it only followed goes on.
pub async fn cancel(State(app): State<App>, owner: Owner, headers: HeaderMap, Json(event): Json<Event>) -> Answer {
    let owner = whose(&app, owner, &headers, event.session_hash.as_deref())?;
    let named = event.event_id.as_deref().unwrap_or_default();
    let sessions = &app.gradio.sessions;
    if let Some(job) = sessions.cancel(owner.name(), named).or_else(|| sessions.cancel(BY_HAND, named)) {
        // One that is over by now need not be stopped.
        drop(jobs::stop(&app, &job, owner.name()).await);
    }
    Ok(axum::Json(json!({ "success": true })).into_response())
}

/// `POST /gradio_api/reset`: an event here has nothing that could be begun anew.
pub async fn reset(Json(_): Json<Event>) -> Response {
    axum::Json(json!({ "success": true })).into_response()
}

/// A call that is done.
struct Doing<'a> {
    app: &'a App,
    owner: &'a Owner,
    base: String,
    mail: &'a Mailbox,
    patience: Duration,
}

impl Doing<'_> {
    async fn perform(self, endpoint: Endpoint, data: Vec<Value>) -> Answer<()> {
        let mut given = endpoint.arguments(data)?;
        let after = self.app.events.last();
        let run = match endpoint {
            Endpoint::Train => self.train(&mut given).await?,
            Endpoint::Generate => self.generate(&mut given).await?,
            Endpoint::Complete => self.complete(&mut given).await?,
            Endpoint::Follow => self.named_run(&given.text("run")?).await?,
            Endpoint::Stop => {
                let run = self.named_run(&given.text("run")?).await?;
                jobs::stop(self.app, &run, self.owner.name()).await?;
                self.mail.finish(Message::Completed(vec![state(&jobs::shown(self.app, &run).await?)]));
                self.mail.wait_for_a_listener(&self.app.gradio.sessions, self.patience).await;
                return Ok(());
            }
            Endpoint::Runs => {
                let jobs = jobs::list(self.app, self.owner.name(), LISTED).await?;
                self.mail.finish(Message::Completed(vec![jobs.iter().map(state).collect::<Value>()]));
                self.mail.wait_for_a_listener(&self.app.gradio.sessions, self.patience).await;
                return Ok(());
            }
        };
        if endpoint != Endpoint::Follow && self.app.gradio.sessions.note_job(&self.mail.event, &run) {
            // It was cancelled before it was in the queue.
            return jobs::stop(self.app, &run, self.owner.name()).await;
        }
        if !self.mail.wait_for_a_listener(&self.app.gradio.sessions, self.patience).await {
            return Ok(());
        }
        let following = Following { run, owner: self.owner.owned(), endpoint, base: self.base, after };
        following.follow(self.app, self.mail).await
    }

    /// Puts a job in the queue: its id.
    async fn submit(&self, kind: JobKind, set: Option<String>, options: Map<String, Value>) -> Answer<String> {
        let wanted = Wanted { kind: kind.name().to_owned(), name: None, set, options };
        let job = submit(self.app, self.owner, wanted).await?;
        Ok(job["id"].as_str().unwrap_or_default().to_owned())
    }

    /// The id of the run that is called `run`; the newest where that is empty.
    async fn named_run(&self, run: &str) -> Answer<String> {
        if !run.is_empty() {
            return Ok(jobs::find(self.app, run, self.owner.name()).await?.id);
        }
        let newest = jobs::list(self.app, self.owner.name(), 1).await?;
        let id = newest.first().and_then(|job| job["id"].as_str());
        id.map(str::to_owned).ok_or_else(|| Failure::not_found("run"))
    }

    /// The first model of a kind.
    fn model(&self, kind: ModelKind) -> Value {
        let models = self.app.models.list(self.app.limits.is_some());
        json!(models.into_iter().find(|model| model.kind == kind).map(|model| model.id))
    }

    async fn train(&self, given: &mut Arguments) -> Answer<String> {
        let files = self.app.gradio.files.named_by(&given.take("files"))?;
        if files.is_empty() {
            return Err(Failure::field("files", "give photos, or a file of records, to learn from"));
        }
        let mut options = given.options()?;
        let (prompt, model) = (given.text("instance_prompt")?, given.text("model")?);
        let steps = given.number("steps")?;
        let paths: Vec<(String, PathBuf)> =
            files.iter().map(|(name, upload)| (name.clone(), upload.file.0.clone())).collect();
        let set = sets::of_files(self.app, self.owner, paths).await?;
        drop(files);
        let mut told = set.refused.iter().take(TOLD);
        let job = match set.is_empty {
            true => Err(Failure::field(
                "files",
                told.next().map_or("none of the files can be learned from", String::as_str),
            )),
            false => {
                told.for_each(|sentence| self.mail.send(Message::Warning(sentence.clone())));
                let (kind, usual) = match set.is_of_records {
                    true => (JobKind::TrainLlm, ModelKind::Language),
                    false => (JobKind::TrainDreambooth, ModelKind::StableDiffusion),
                };
                options.entry("model").or_insert_with(|| self.model(usual));
                for (name, value) in
                    [("instance_prompt", json!(prompt)), ("model", json!(model)), ("max_train_steps", steps)]
                {
                    if !value.is_null() && value != "" {
                        options.insert(name.to_owned(), value);
                    }
                }
                self.submit(kind, Some(set.id.clone()), options).await
            }
        };
        if job.is_err() {
            sets::discard(self.app, &set.id).await?;
        }
        job
    }

    /// Options of a job with an adapter that `given` may name.
    async fn with_adapter(&self, given: &mut Arguments, kind: ModelKind) -> Answer<Map<String, Value>> {
        let mut options = given.options()?;
        let adapter = given.text("adapter")?;
        let strength = given.number("strength")?;
        let named = given.text("model")?;
        if !named.is_empty() {
            options.insert("model".to_owned(), json!(named));
        }
        if !adapter.is_empty() {
            let mut entry = json!({ "id": adapter });
            if !strength.is_null() {
                entry["strength"] = strength;
            }
            options.insert("adapters".to_owned(), json!([entry]));
            // An adapter goes with the model that it was trained on.
            if let Ok(job) = jobs::find(self.app, &adapter, self.owner.name()).await {
                if let Some(model) = job.options.get("model") {
                    options.entry("model").or_insert_with(|| model.clone());
                }
            }
        }
        options.entry("model").or_insert_with(|| self.model(kind));
        options.insert("prompt".to_owned(), json!(given.text("prompt")?));
        Ok(options)
    }

    async fn generate(&self, given: &mut Arguments) -> Answer<String> {
        let mut options = self.with_adapter(given, ModelKind::StableDiffusion).await?;
        let negative = given.text("negative_prompt")?;
        if !negative.is_empty() {
            options.insert("negative_prompt".to_owned(), json!(negative));
        }
        for name in ["steps", "guidance", "seed", "number"] {
            let value = given.number(name)?;
            if !value.is_null() {
                options.entry(name).or_insert(value);
            }
        }
        self.submit(JobKind::Generate, None, options).await
    }

    async fn complete(&self, given: &mut Arguments) -> Answer<String> {
        let mut options = self.with_adapter(given, ModelKind::Language).await?;
        let tokens = given.number("max_new_tokens")?;
        if !tokens.is_null() {
            options.insert("max_new_tokens".to_owned(), tokens);
        }
        self.submit(JobKind::Complete, None, options).await
    }
}
