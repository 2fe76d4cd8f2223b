//! Jobs as pages see them: what is in the database, and how the one that has its turn stands.

use super::super::failure::{Answer, Failure};
use super::super::live::Live;
use super::super::schema::{integer, list_of, map, named, number, object, or_null, text, word};
use super::super::state::{JobKind, JobState};
use super::super::App;
use super::queue::waiting_for;
use super::{by_id, Job, COLUMNS};
use crate::error::Result;
use rusqlite::{params, Connection, OptionalExtension, Row};
use serde_json::{json, Value};

/// Pictures of a job that are listed with it.
const MAX_IMAGES: usize = 2000;
/// Jobs that are told when the queue moves; those behind them hear of it when they come nearer.
const TOLD: u32 = 50;
/// Jobs in a list.
pub const MAX_LISTED: u64 = 500;

/// What is in the database of a job.
struct Stored {
    job: Job,
    images: Vec<Value>,
    adapter_name: Option<String>,
    /// Photos or records that it learns from, and a thumbnail of the first photo.
    set: Option<(i64, Option<String>)>,
    /// Jobs that come before it, and the seconds that such jobs took lately.
    ahead: (i64, Option<f64>),
}

impl Stored {
    fn of(db: &Connection, job: Job) -> rusqlite::Result<Self> {
        let mut found = db.prepare_cached("SELECT shown FROM images WHERE job = ?1 ORDER BY number LIMIT ?2")?;
        let image = |row: &Row| Ok(serde_json::from_str(&row.get::<_, String>(0)?).unwrap_or(Value::Null));
        let images = found.query_map(params![job.id, MAX_IMAGES], image)?.collect::<rusqlite::Result<Vec<_>>>()?;
        let adapter_name = db
            .prepare_cached("SELECT name FROM adapters WHERE id = ?1")?
            .query_row([&job.id], |row| row.get(0))
            .optional()?;
        let set = match &job.set {
            Some(set) => db
                .prepare_cached("SELECT count(*), (SELECT id FROM photos WHERE set_id = ?1 ORDER BY number LIMIT 1) FROM photos WHERE set_id = ?1")?
                .query_row([set], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?,
            None => None,
        };
        let ahead = match job.state {
            JobState::Queued => waiting_for(db, &job)?,
            _ => (0, None),
        };
        Ok(Self { job, images, adapter_name, set, ahead })
    }

    /// As the page sees it.
    fn shown(self, live: Option<&Live>) -> Value {
        let Self { job, images, adapter_name, set, ahead: (ahead, wait) } = self;
        let state = job.state(live);
        let answer: Value =
            job.answer.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null);
        // What a job has written so far comes before what an earlier turn of it wrote.
        let text = live
            .map_or_else(|| answer["text"].clone(), |live| json!(Some(live.text()).filter(|text| !text.is_empty())));
        let is_waiting = state == JobState::Queued;
        let error = live.and_then(Live::error).or_else(|| job.error.clone());
        let thumbnail = |photo: Option<String>| photo.map(|photo| format!("/api/photos/{photo}?thumbnail=1"));
        let set_summary = set.map(|(count, photo)| json!({ "photos": count, "thumbnail": thumbnail(photo) }));
        json!({
            "id": job.id, "kind": job.kind, "name": job.name, "state": state, "actions": actions(&job, state),
            "position": is_waiting.then_some(ahead + 1), "wait_seconds": wait.filter(|_| is_waiting),
            "created": job.created, "started": job.started, "ended": job.ended.filter(|_| state.is_over()),
            "error": error, "field": job.field, "options": job.options, "set": job.set, "set_summary": set_summary,
            "progress": live.and_then(|live| live.progress()),
            "memory_bytes": live.and_then(|live| live.memory_bytes()).map(|bytes| bytes as i64).or(job.memory_bytes),
            "adapter_name": adapter_name,
            "results": {
                "adapter": adapter_name.is_some().then_some(&job.id), "images": images, "text": text, "labels": answer["labels"],
            },
            "command": job.command,
        })
    }
}

/// A job as it is shown.
pub fn schema() -> Value {
    let or_text = || or_null(text());
    object([
        ("id", text()),
        ("kind", word(JobKind::NAMES)),
        ("name", text()),
        ("state", word(JobState::NAMES)),
        ("actions", list_of(text())),
        ("position", or_null(integer())),
        ("wait_seconds", or_null(number())),
        ("created", text()),
        ("started", or_text()),
        ("ended", or_text()),
        ("error", or_text()),
        ("field", or_text()),
        ("options", map()),
        ("set", or_text()),
        ("set_summary", or_null(object([("photos", integer()), ("thumbnail", or_text())]))),
        ("progress", or_null(named("Progress"))),
        ("memory_bytes", or_null(integer())),
        ("adapter_name", or_text()),
        (
            "results",
            object([
                ("adapter", or_text()),
                ("images", list_of(named("Picture"))),
                ("text", or_text()),
                ("labels", or_null(list_of(object([("label", text()), ("probability", number())])))),
            ]),
        ),
        ("command", text()),
    ])
}

/// What can be asked of a job in this state.
fn actions(job: &Job, state: JobState) -> &'static [&'static str] {
    // Its token is gone.
    let is_spent = job.kind == JobKind::Push && job.options.get("has_token") == Some(&json!(true));
    match (state, job.kind.is_training()) {
        (JobState::Running, true) => &["stop", "save", "sample", "pause"],
        (JobState::Paused, true) => &["stop", "save", "sample", "continue"],
        (JobState::Running | JobState::Paused, false) => &["stop"],
        _ if state.is_over() && is_spent => &[],
        (JobState::Failed | JobState::Stopped | JobState::Interrupted, _) => &["resume"],
        (JobState::Queued | JobState::Stopping | JobState::Finished, _) => &[],
    }
}

/// Jobs of `owner`, the newest first.
pub async fn list(app: &App, owner: &str, limit: u64) -> Answer<Vec<Value>> {
    let owner = owner.to_owned();
    let of = "WHERE owner = ?1 ORDER BY number DESC LIMIT ?2";
    shown_of(app, of, move |statement, each| statement.query_map(params![owner, limit], each)?.collect()).await
}

/// Jobs of `owner` that wait or run, in the order of their turns.
pub async fn queue(app: &App, owner: &str) -> Answer<Vec<Value>> {
    let owner = owner.to_owned();
    let of = "WHERE owner = ?1 AND state IN ('queued', 'running', 'paused', 'stopping') ORDER BY state = 'queued', position LIMIT ?2";
    shown_of(app, of, move |statement, each| statement.query_map(params![owner, MAX_LISTED], each)?.collect()).await
}

async fn shown_of(
    app: &App,
    of: &'static str,
    query: impl FnOnce(&mut rusqlite::Statement, fn(&Row) -> rusqlite::Result<Job>) -> rusqlite::Result<Vec<Job>>
        + Send
        + 'static,
) -> Answer<Vec<Value>> {
    let stored = app
        .store
        .ask(move |db| {
            let mut statement = db.prepare_cached(&format!("SELECT {COLUMNS} FROM jobs {of}"))?;
            let jobs = query(&mut statement, Job::of_row)?;
            jobs.into_iter().map(|job| Stored::of(db, job)).collect::<rusqlite::Result<Vec<_>>>()
        })
        .await?;
    Ok(stored.into_iter().map(|stored| app.worker.with(&stored.job.id.clone(), |live| stored.shown(live))).collect())
}

/// The job `id` as the page sees it.
pub async fn shown(app: &App, id: &str) -> Answer<Value> {
    let wanted = id.to_owned();
    let stored = app.store.ask(move |db| by_id(db, &wanted)?.map(|job| Stored::of(db, job)).transpose()).await?;
    let stored = stored.ok_or_else(|| Failure::not_found("job"))?;
    Ok(app.worker.with(id, |live| stored.shown(live)))
}

/// Tells pages how the job `id` stands.
pub async fn tell_of(app: &App, id: &str) {
    let wanted = id.to_owned();
    let Ok(Some(stored)) =
        app.store.ask(move |db| by_id(db, &wanted)?.map(|job| Stored::of(db, job)).transpose()).await
    else {
        return;
    };
    tell(app, id, stored);
}

/// The same for the worker.
pub fn tell_now(app: &App, id: &str) -> Result<()> {
    let wanted = id.to_owned();
    if let Some(stored) = app.store.wait(move |db| by_id(db, &wanted)?.map(|job| Stored::of(db, job)).transpose())? {
        tell(app, id, stored);
    }
    Ok(())
}

/// Tells the first of those who wait of their places, which have changed.
pub fn tell_those_who_wait(app: &App) {
    let waiting = app.store.wait(|db| {
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE state = 'queued' ORDER BY position, number LIMIT {TOLD}");
        let mut found = db.prepare_cached(&sql)?;
        let jobs = found.query_map([], Job::of_row)?.collect::<rusqlite::Result<Vec<_>>>()?;
        jobs.into_iter().map(|job| Stored::of(db, job)).collect::<rusqlite::Result<Vec<_>>>()
    });
    for stored in waiting.unwrap_or_default() {
        let id = stored.job.id.clone();
        tell(app, &id, stored);
    }
}

/// The same for a handler.
pub async fn tell_the_queue(app: &App) {
    let shared = app.clone();
    drop(tokio::task::spawn_blocking(move || tell_those_who_wait(&shared)).await);
}

fn tell(app: &App, id: &str, stored: Stored) {
    let owner = stored.job.owner.clone();
    let job = app.worker.with(id, |live| stored.shown(live));
    app.events.send(&owner, &json!({ "kind": "job", "job": job }));
}
