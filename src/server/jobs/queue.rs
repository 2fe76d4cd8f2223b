//! The order in which jobs have their turns, and how they come into the queue, move in it and leave it.

use super::super::failure::{Answer, Failure};
use super::super::live::Stop;
use super::super::state::{JobKind, Lane};
use super::super::{library, App};
use super::shown::{shown, tell_of, tell_the_queue};
use super::{by_id, find, now, Job, COLUMNS};
use crate::error::Result;
use axum::http::StatusCode;
use rusqlite::{params, Connection, OptionalExtension, Row};
use serde_json::{json, Map, Value};
use std::time::Duration;

/// Tenths of a second that a job which is to be deleted has to have its end written down.
const ENDING_TRIES: u32 = 50;

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

/// Which jobs are of `lane`.
fn of_lane(lane: Lane) -> &'static str {
    match lane {
        Lane::Device => "kind <> 'push'",
        Lane::Hub => "kind = 'push'",
    }
}

/// Takes the first job of the queue that is of `lane`, which is running from now on.
pub fn take_next(app: &App, lane: Lane) -> Result<Option<Job>> {
    app.store.wait(move |db| {
        let of = of_lane(lane);
        let sql =
            format!("SELECT {COLUMNS} FROM jobs WHERE state = 'queued' AND {of} ORDER BY position, number LIMIT 1");
        let next = db.query_row(&sql, [], Job::of_row).optional()?;
        if let Some(job) = &next {
            db.execute(
                "UPDATE jobs SET state = 'running', started = ?2, ended = NULL, error = NULL, field = NULL, answer = NULL WHERE id = ?1",
                [&job.id, &now()],
            )?;
        }
        Ok(next)
    })
}

/// How many jobs of its lane come before a queued one, and how many seconds they will take by what jobs of their kind took lately; none where no
/// job of a kind among them was ever finished, or the one that has its turn takes longer than such jobs did.
pub fn waiting_for(db: &Connection, job: &Job) -> rusqlite::Result<(i64, Option<f64>)> {
    let mut found = db.prepare_cached(&format!(
        "SELECT kind, count(*), coalesce(sum(state = 'queued'), 0),
             coalesce(sum(CASE WHEN state = 'queued' THEN 0 ELSE (julianday('now') - julianday(started)) * 86400 END), 0)
         FROM jobs WHERE ((state = 'queued' AND position < ?1) OR state IN ('running', 'paused', 'stopping')) AND {} GROUP BY kind",
        of_lane(job.kind.lane())
    ))?;
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

/// Numbers the queue of its lane anew with the job `id` at `place`, from 1; false where it does not wait.
fn move_to(db: &Connection, id: &str, place: u64) -> rusqlite::Result<bool> {
    let Some(job) = by_id(db, id)? else { return Ok(false) };
    let of = of_lane(job.kind.lane());
    let mut found =
        db.prepare(&format!("SELECT id FROM jobs WHERE state = 'queued' AND {of} ORDER BY position, number"))?;
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
    app.data.of_job(id).iter().try_for_each(|folder| app.data.remove(folder))
}
