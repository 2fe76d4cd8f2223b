//! The queue: what is asked for, in the database, with a copy of its settings; and how a job is shown.

use super::failure::{Answer, Failure};
use super::ids::new_id;
use super::state::{JobKind, JobState};
use super::worker::{Live, Stop};
use super::{library, App};
use crate::error::Result;
use crate::recipes::training::utc_time::UtcTime;
use axum::http::StatusCode;
use rusqlite::{params, Connection, OptionalExtension, Row};
use serde_json::{json, Map, Value};
use std::time::Duration;

/// The last lines of a job's log that are shown.
const SHOWN_LINES: usize = 200;
/// Lines of a job that are kept.
const KEPT_LINES: i64 = 1000;
/// Pictures of a job that are listed with it.
const MAX_IMAGES: usize = 2000;
/// Jobs that are told when the queue moves; those behind them hear of it when they come nearer.
const TOLD: u32 = 50;
/// Tenths of a second that a job which is to be deleted has to have its end written down.
const ENDING_TRIES: u32 = 50;
/// Jobs in a list.
pub const MAX_LISTED: u64 = 500;

/// A job as it stands in the database.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub owner: String,
    /// What it does.
    pub kind: JobKind,
    /// For people.
    pub name: String,
    /// Where it stood when that was last written.
    pub state: JobState,
    /// Its copy of what was asked for.
    pub options: Map<String, Value>,
    /// The photos or records that it learns from.
    pub set: Option<String>,
    /// The same on a command line.
    pub command: String,
    created: String,
    started: Option<String>,
    ended: Option<String>,
    error: Option<String>,
    field: Option<String>,
    answer: Option<String>,
    memory_bytes: Option<i64>,
    position: f64,
}

const COLUMNS: &str =
    "id, owner, kind, name, state, options, set_id, command, created, started, ended, error, field, answer, \
    memory_bytes, position";

impl Job {
    fn of_row(row: &Row) -> rusqlite::Result<Self> {
        let options: String = row.get("options")?;
        Ok(Self {
            id: row.get("id")?,
            owner: row.get("owner")?,
            kind: row.get("kind")?,
            name: row.get("name")?,
            state: row.get("state")?,
            options: serde_json::from_str(&options).unwrap_or_default(),
            set: row.get("set_id")?,
            command: row.get("command")?,
            created: row.get("created")?,
            started: row.get("started")?,
            ended: row.get("ended")?,
            error: row.get("error")?,
            field: row.get("field")?,
            answer: row.get("answer")?,
            memory_bytes: row.get("memory_bytes")?,
            position: row.get("position")?,
        })
    }

    /// Where it stands: what the worker says of the job that has its turn. What an earlier server left as running is written down as
    /// interrupted when this one starts ([`after_a_start`]).
    pub fn state(&self, live: Option<&Live>) -> JobState {
        live.map_or(self.state, Live::state)
    }
}

/// Now, as it is written everywhere.
pub fn now() -> String {
    UtcTime::now().date_and_time()
}

/// Jobs that a server left when it was killed are interrupted; with `resume` they come first in the queue.
pub fn after_a_start(app: &App, resume: bool) -> Result<()> {
    let cut = app.store.wait(|db| {
        let mut found = db.prepare("SELECT id FROM jobs WHERE state IN ('running', 'paused', 'stopping')")?;
        let ids = found.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
        db.execute("UPDATE jobs SET state = 'interrupted', ended = coalesce(ended, ?1) WHERE state IN ('running', 'paused', 'stopping')", [now()])?;
        Ok(ids)
    })?;
    for id in cut {
        library::register(app, &id)?;
    }
    if resume {
        app.store.wait(|db| {
            let first = first_position(db)?;
            db.execute(
                "UPDATE jobs SET state = 'queued', ended = NULL, error = NULL, field = NULL, position = ?1 - 1.0 / number
                 WHERE state = 'interrupted'",
                [first],
            )
        })?;
    }
    Ok(())
}

fn first_position(db: &Connection) -> rusqlite::Result<f64> {
    let first: Option<f64> =
        db.query_row("SELECT min(position) FROM jobs WHERE state = 'queued'", [], |row| row.get(0))?;
    Ok(first.unwrap_or(1.0) - 1.0)
}

fn last_position(db: &Connection) -> rusqlite::Result<f64> {
    let last: Option<f64> =
        db.query_row("SELECT max(position) FROM jobs WHERE state = 'queued'", [], |row| row.get(0))?;
    Ok(last.unwrap_or(0.0) + 1.0)
}

/// What is asked for, once it is known that it can be done.
pub struct NewJob {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub owner: String,
    /// What it does.
    pub kind: JobKind,
    /// For people.
    pub name: String,
    /// What was asked for.
    pub options: Map<String, Value>,
    /// The photos or records.
    pub set: Option<String>,
    /// The same on a command line.
    pub command: String,
}

/// Puts a job at the end of the queue.
pub async fn add(app: &App, job: NewJob) -> Answer<Value> {
    let (id, most) = (job.id.clone(), app.limits.map(|limits| limits.max_jobs));
    let is_added = app
        .store
        .ask(move |db| {
            let waiting: u64 = db.query_row(
                "SELECT count(*) FROM jobs WHERE owner = ?1 AND state IN ('queued', 'running', 'paused', 'stopping')",
                [&job.owner],
                |row| row.get(0),
            )?;
            if most.is_some_and(|most| waiting >= most) {
                return Ok(false);
            }
            db.execute(
                "INSERT INTO jobs (id, owner, kind, name, state, position, created, options, set_id, command)
                 VALUES (?1, ?2, ?3, ?4, 'queued', ?5, ?6, ?7, ?8, ?9)",
                params![
                    job.id,
                    job.owner,
                    job.kind,
                    job.name,
                    last_position(db)?,
                    now(),
                    Value::Object(job.options).to_string(),
                    job.set,
                    job.command
                ],
            )?;
            Ok(true)
        })
        .await?;
    if !is_added {
        return Err(Failure::new(
            StatusCode::TOO_MANY_REQUESTS,
            format!(
                "{} of your jobs wait or run already, which is as many as can; wait until one is done",
                most.unwrap_or(0)
            ),
        ));
    }
    app.worker.wake();
    tell_of(app, &id).await;
    shown(app, &id).await
}

/// The job `id` of `owner`.
pub async fn find(app: &App, id: &str, owner: &str) -> Answer<Job> {
    let (id, owner) = (id.to_owned(), owner.to_owned());
    let found = app.store.ask(move |db| by_id(db, &id)).await?;
    found.filter(|job| job.owner == owner).ok_or_else(|| Failure::not_found("job"))
}

fn by_id(db: &Connection, id: &str) -> rusqlite::Result<Option<Job>> {
    db.query_row(&format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1"), [id], Job::of_row).optional()
}

/// The same for the worker.
pub fn find_now(app: &App, id: &str) -> Result<Option<Job>> {
    let id = id.to_owned();
    app.store.wait(move |db| by_id(db, &id))
}

/// Takes the first job of the queue, which is running from now on.
pub fn take_next(app: &App) -> Result<Option<Job>> {
    app.store.wait(|db| {
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE state = 'queued' ORDER BY position, number LIMIT 1");
        let next = db.query_row(&sql, [], Job::of_row).optional()?;
        if let Some(job) = &next {
            db.execute(
                "UPDATE jobs SET state = 'running', started = ?2, ended = NULL, error = NULL, field = NULL WHERE id = ?1",
                [&job.id, &now()],
            )?;
        }
        Ok(next)
    })
}

/// How a job ended.
#[derive(Debug, Clone)]
pub struct End {
    /// Where it stands.
    pub state: JobState,
    /// What went wrong, and the option at fault.
    pub error: Option<(String, Option<String>)>,
    /// What came of it, where that is no file: `text` and `labels`.
    pub answer: Option<Value>,
    /// The most memory that it took.
    pub memory_bytes: Option<u64>,
}

/// Writes down how the job `id` ended.
pub fn finish(app: &App, id: &str, end: End) -> Result<()> {
    let id = id.to_owned();
    let (error, field) = end.error.map_or((None, None), |(error, field)| (Some(error), field));
    let memory = end.memory_bytes.map(|bytes| bytes as i64);
    let answer = end.answer.map(|answer| answer.to_string());
    app.store.wait(move |db| {
        db.execute(
            "UPDATE jobs SET state = ?2, ended = ?3, error = ?4, field = ?5, answer = coalesce(?6, answer),
             memory_bytes = coalesce(?7, memory_bytes), seconds = (julianday(?3) - julianday(started)) * 86400 WHERE id = ?1",
            params![id, end.state, now(), error, field, answer, memory],
        )
        .map(drop)
    })
}

/// What a job said: `kind` is log, warning or fact.
pub fn add_line(app: &App, id: &str, kind: &'static str, name: &str, text: &str) -> Result<()> {
    let (id, name, text) = (id.to_owned(), name.to_owned(), text.to_owned());
    app.store.wait(move |db| {
        db.execute("INSERT INTO lines (job, kind, name, text) VALUES (?1, ?2, ?3, ?4)", params![id, kind, name, text])?;
        let number = db.last_insert_rowid();
        if number % KEPT_LINES == 0 {
            db.execute(
                "DELETE FROM lines WHERE job = ?1 AND kind = 'log' AND number NOT IN
                 (SELECT number FROM lines WHERE job = ?1 ORDER BY number DESC LIMIT ?2)",
                params![id, KEPT_LINES],
            )?;
        }
        Ok(())
    })
}

/// A picture that a job drew.
#[derive(Debug, Default)]
pub struct Picture {
    /// Optimizer steps of the training that drew it.
    pub step: Option<u64>,
    /// The checkpoint that it was drawn with.
    pub checkpoint: Option<i64>,
    /// The strength that its adapter was at, where that is what it is compared by.
    pub strength: Option<f64>,
    /// What it was drawn with.
    pub parameters: Value,
    /// How like it is to the photos of a training.
    pub likeness: Value,
}

/// Keeps a picture of a job, which lies in `file` inside the data folder, and tells of it.
pub fn add_picture(app: &App, job: &Job, file: &str, picture: Picture) -> Result<()> {
    let id = new_id()?;
    let url = format!("/api/images/{id}");
    let Picture { step, checkpoint, strength, parameters, likeness } = picture;
    let shown = json!({
        "id": id, "url": url, "thumbnail": format!("{url}?thumbnail=1"), "width": parameters["width"], "height": parameters["height"],
        "job": job.id, "created": now(), "step": step, "checkpoint": checkpoint, "strength": strength, "parameters": parameters,
        "likeness": likeness,
    });
    let (owner, of, file, text) = (job.owner.clone(), job.id.clone(), file.to_owned(), shown.to_string());
    app.store.wait(move |db| {
        db.execute(
            "INSERT INTO images (id, owner, job, file, step, shown) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![id, owner, of, file, step, text],
        )
        .map(drop)
    })?;
    app.events.send(&job.owner, &json!({ "kind": "image", "id": job.id, "image": shown }));
    Ok(())
}

/// Forgets what a job drew before, as it begins anew.
pub fn forget_pictures(app: &App, id: &str) -> Result<()> {
    let id = id.to_owned();
    app.store.wait(move |db| db.execute("DELETE FROM images WHERE job = ?1", [id]).map(drop))
}

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
        let is_waiting = state == JobState::Queued;
        let error = job.error.or_else(|| live.and_then(Live::error));
        let thumbnail = |photo: Option<String>| photo.map(|photo| format!("/api/photos/{photo}?thumbnail=1"));
        let set_summary = set.map(|(count, photo)| json!({ "photos": count, "thumbnail": thumbnail(photo) }));
        json!({
            "id": job.id, "kind": job.kind, "name": job.name, "state": state, "actions": actions(job.kind, state),
            "position": is_waiting.then_some(ahead + 1), "wait_seconds": wait.filter(|_| is_waiting),
            "created": job.created, "started": job.started, "ended": job.ended.filter(|_| state.is_over()),
            "error": error, "field": job.field, "options": job.options, "set": job.set, "set_summary": set_summary,
            "progress": live.and_then(|live| live.progress()),
            "memory_bytes": live.and_then(|live| live.memory_bytes()).map(|bytes| bytes as i64).or(job.memory_bytes),
            "adapter_name": adapter_name,
            "results": {
                "adapter": adapter_name.is_some().then_some(&job.id), "images": images, "text": answer["text"], "labels": answer["labels"],
            },
            "command": job.command,
        })
    }
}

/// How many jobs come before a queued one, and how many seconds they will take by what jobs of their kind took lately; none where no
/// job of a kind among them was ever finished, or the one that has its turn takes longer than such jobs did.
fn waiting_for(db: &Connection, job: &Job) -> rusqlite::Result<(i64, Option<f64>)> {
    let mut found = db.prepare_cached(
        "SELECT kind, count(*), coalesce(sum(state = 'queued'), 0),
             coalesce(sum(CASE WHEN state = 'queued' THEN 0 ELSE (julianday('now') - julianday(started)) * 86400 END), 0)
         FROM jobs WHERE (state = 'queued' AND position < ?1) OR state IN ('running', 'paused', 'stopping') GROUP BY kind",
    )?;
    let of_kind = |row: &Row| {
        Ok((row.get::<_, JobKind>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?, row.get::<_, f64>(3)?))
    };
    let (mut ahead, mut seconds) = (0, Some(0.0));
    for (kind, count, queued, passed) in
        found.query_map([job.position], of_kind)?.collect::<rusqlite::Result<Vec<_>>>()?
    {
        let usual: Option<f64> = db
            .prepare_cached(
                "SELECT avg(seconds) FROM (SELECT seconds FROM jobs WHERE kind = ?1 AND state = 'finished' ORDER BY number DESC LIMIT 20)",
            )?
            .query_row([kind], |row| row.get(0))?;
        ahead += queued;
        let left =
            usual.map(|usual| usual * count as f64 - passed).filter(|_| usual.is_some_and(|usual| passed <= usual));
        seconds = seconds.zip(left).map(|(sum, left)| sum + left);
    }
    Ok((ahead, seconds))
}

/// What can be asked of a job of this kind in this state.
fn actions(kind: JobKind, state: JobState) -> &'static [&'static str] {
    match (state, kind.is_training()) {
        (JobState::Running, true) => &["stop", "save", "sample", "pause"],
        (JobState::Paused, true) => &["stop", "save", "sample", "continue"],
        (JobState::Running | JobState::Paused, false) => &["stop"],
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

/// Warnings, log and facts of a job.
pub async fn lines(app: &App, id: &str) -> Answer<Value> {
    let id = id.to_owned();
    let lines = app
        .store
        .ask(move |db| {
            let mut found = db.prepare_cached("SELECT kind, name, text FROM lines WHERE job = ?1 ORDER BY number")?;
            let line = |row: &Row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?));
            let lines = found.query_map([id], line)?.collect::<rusqlite::Result<Vec<_>>>()?;
            Ok(lines)
        })
        .await?;
    let of_kind = |kind: &'static str| lines.iter().filter(move |line| line.0 == kind);
    let log: Vec<&String> = of_kind("log").map(|line| &line.2).collect();
    let facts: Vec<Value> = of_kind("fact").map(|(_, name, text)| json!({ "name": name, "text": text })).collect();
    let warnings: Vec<&String> = of_kind("warning").map(|line| &line.2).collect();
    Ok(json!({ "warnings": warnings, "log": log[log.len().saturating_sub(SHOWN_LINES)..], "facts": facts }))
}

/// What can be changed of a job.
#[derive(Debug, Default)]
pub struct Change {
    /// Its place in the queue, from 1.
    pub position: Option<u64>,
    /// Its name.
    pub name: Option<String>,
    /// Its settings, checked, with their command line.
    pub options: Option<(Map<String, Value>, String)>,
}

/// Changes the job `id`; place and settings only while it waits.
pub async fn change(app: &App, id: &str, change: Change) -> Answer<()> {
    let wanted = id.to_owned();
    let is_done = app
        .store
        .ask(move |db| {
            let db = db.transaction()?;
            if let Some(name) = change.name {
                db.execute("UPDATE jobs SET name = ?2 WHERE id = ?1", [&wanted, &name])?;
            }
            let mut is_done = true;
            if let Some((options, command)) = change.options {
                let changed = db.execute(
                    "UPDATE jobs SET options = ?2, command = ?3 WHERE id = ?1 AND state = 'queued'",
                    params![wanted, Value::Object(options).to_string(), command],
                )?;
                is_done &= changed == 1;
            }
            if let Some(place) = change.position {
                is_done &= move_to(&db, &wanted, place)?;
            }
            db.commit()?;
            Ok(is_done)
        })
        .await?;
    tell_of(app, id).await;
    tell_the_queue(app).await;
    match is_done {
        true => Ok(()),
        false => Err(Failure::conflict("the job does not wait any more; only a queued one can be changed")),
    }
}

/// Numbers the queue anew with the job `id` at `place`, from 1; false where it does not wait.
fn move_to(db: &Connection, id: &str, place: u64) -> rusqlite::Result<bool> {
    let mut found = db.prepare("SELECT id FROM jobs WHERE state = 'queued' ORDER BY position, number")?;
    let mut ids = found.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    let Some(at) = ids.iter().position(|found| found == id) else { return Ok(false) };
    let moved = ids.remove(at);
    ids.insert((place.max(1) as usize - 1).min(ids.len()), moved);
    for (place, id) in (1..).zip(&ids) {
        db.execute("UPDATE jobs SET position = ?2 WHERE id = ?1", params![id, f64::from(place)])?;
    }
    Ok(true)
}

/// Puts a job that was stopped, interrupted or failed in the queue again, from where it goes on from its last checkpoint.
pub async fn resume(app: &App, job: &Job) -> Answer<()> {
    let id = job.id.clone();
    app.store
        .ask(move |db| {
            let last = last_position(db)?;
            db.execute(
                "UPDATE jobs SET state = 'queued', ended = NULL, error = NULL, field = NULL, position = ?2 WHERE id = ?1",
                params![id, last],
            )
            .map(drop)
        })
        .await?;
    app.worker.wake();
    tell_of(app, &job.id).await;
    Ok(())
}

/// Tells the job `id` of `owner` to stop; one that waits leaves the queue and keeps what it made before.
pub async fn stop(app: &App, id: &str, owner: &str) -> Answer<()> {
    const TRIES: u32 = 40;
    let job = find(app, id, owner).await?;
    for _ in 0..TRIES {
        let waiting = job.id.clone();
        let left = app
            .store
            .ask(move |db| {
                db.execute(
                    "UPDATE jobs SET state = 'stopped', ended = ?2 WHERE id = ?1 AND state = 'queued'",
                    [waiting, now()],
                )
            })
            .await?;
        if left == 1 {
            tell_of(app, id).await;
            tell_the_queue(app).await;
            return Ok(());
        }
        if app.worker.stop(id, Stop::Asked) {
            tell_of(app, id).await;
            return Ok(());
        }
        let state = find(app, id, owner).await?.state;
        if state.is_over() {
            return Err(Failure::conflict(format!("the job is {} and does not run", state.name())));
        }
        // Its turn has come in the database, and it is about to be at work.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(Failure::conflict("the job neither waits nor runs; try again"))
}

/// Deletes a job that does not run, with its pictures, and where nothing else needs it what it trained.
pub async fn delete(app: &App, job: &Job) -> Answer<()> {
    app.data.give_reserve();
    if app.worker.with(&job.id, |live| job.state(live)).is_over() {
        // First of all it makes room: on a full disk the database can forget nothing, nor the worker write down how the job ended.
        remove_files(app, &job.id)?;
        for _ in 0..ENDING_TRIES {
            if app.worker.with(&job.id, |live| live.is_none()) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let id = job.id.clone();
    let is_gone = app
        .store
        .ask(move |db| {
            let db = db.transaction()?;
            let gone =
                db.execute("DELETE FROM jobs WHERE id = ?1 AND state NOT IN ('running', 'paused', 'stopping')", [&id])?;
            if gone == 1 {
                db.execute("DELETE FROM lines WHERE job = ?1", [&id])?;
                db.execute("DELETE FROM images WHERE job = ?1", [&id])?;
                db.execute("DELETE FROM adapters WHERE id = ?1", [&id])?;
            }
            db.commit()?;
            Ok(gone == 1)
        })
        .await?;
    if !is_gone {
        return Err(Failure::conflict("the job is running; stop it first"));
    }
    drop(app.tokens.take(&job.id));
    remove_files(app, &job.id)?;
    app.events.send(&job.owner, &json!({ "kind": "deleted", "id": job.id }));
    app.events.send(&job.owner, &json!({ "kind": "adapters" }));
    tell_the_queue(app).await;
    Ok(())
}

fn remove_files(app: &App, id: &str) -> Result<()> {
    let folders = [app.data.inputs(), app.data.runs(), app.data.pictures(), app.data.class_images()];
    folders.iter().try_for_each(|folder| app.data.remove(&folder.join(id)))
}

/// An id for a job that is not there yet.
pub fn new_job_id() -> Answer<String> {
    Ok(new_id()?)
}
