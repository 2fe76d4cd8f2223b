//! A public server's visitors: what is theirs is deleted when they want it, and by itself when its time is over.

use super::accounts::Owner;
use super::failure::{Answer, Failure};
use super::live::Stop;
use super::App;
use crate::error::Result;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use rusqlite::{Connection, Row};
use serde::Deserialize;
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

/// How often it is looked for what is too old.
pub const BETWEEN: Duration = Duration::from_secs(10 * 60);
/// How long a running job has to end.
const ENDING: Duration = Duration::from_secs(60);

/// Sets, jobs and adapters that are to go.
struct Gone {
    sets: Vec<String>,
    /// With their owners.
    jobs: Vec<(String, String)>,
    adapters: Vec<String>,
    images: Vec<String>,
}

/// The body of a request to delete everything, which may be none.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whose {
    session_hash: Option<String>,
}

/// `POST /api/visitor/delete`: everything of this visitor, or of a client of gradio's that keeps no cookie and is told by its session.
pub async fn delete(State(app): State<App>, owner: Owner, body: Bytes) -> Answer {
    let whose: Whose = match body.is_empty() {
        true => Whose::default(),
        false => serde_json::from_slice(&body)
            .map_err(|error| Failure::bad(format!("the body is not what this address takes: {error}")))?,
    };
    let owner = whose.session_hash.map_or(owner, |hash| Owner::of_session(&hash));
    if app.limits.is_none() {
        let sentence =
            "this server has no visitors, of whom everything could be deleted; delete jobs and adapters one by one";
        return Err(Failure::conflict(sentence));
    }
    app.gradio.forget(owner.name());
    let of = owner.owned();
    let running: Vec<String> = app
        .store
        .ask(move |db| {
            // None of them begins meanwhile.
            db.execute("UPDATE jobs SET state = 'stopped' WHERE owner = ?1 AND state = 'queued'", [&of])?;
            ids(db, "SELECT id FROM jobs WHERE owner = ?1 AND state = 'running'", &of)
        })
        .await?;
    for id in running {
        app.worker.stop(&id, Stop::Asked);
        let ended = async {
            while app.worker.with(&id, |live| live.is_some()) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        drop(tokio::time::timeout(ENDING, ended).await);
    }
    let shared = app.clone();
    let deleted = tokio::task::spawn_blocking(move || remove(&shared, "owner = ?1", owner.name()));
    deleted.await.map_err(|_| Failure::bad("not everything could be deleted; try again"))??;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Deletes what is older than it is kept.
pub fn clean(app: &App) -> Result<()> {
    let Some(limits) = app.limits else { return Ok(()) };
    app.gradio.sweep();
    let before = format!("-{} hours", limits.keep_hours);
    remove(app, "julianday(created) < julianday('now', ?1)", &before)
}

fn ids(db: &Connection, sql: &str, parameter: &str) -> rusqlite::Result<Vec<String>> {
    let mut found = db.prepare(sql)?;
    let ids = found.query_map([parameter], |row: &Row| row.get(0))?.collect();
    ids
}

fn jobs(db: &Connection, condition: &str, parameter: &str) -> rusqlite::Result<Vec<(String, String)>> {
    let sql =
        format!("SELECT id, owner FROM jobs WHERE {condition} AND state NOT IN ('running', 'paused', 'stopping')");
    let mut found = db.prepare(&sql)?;
    let jobs = found.query_map([parameter], |row: &Row| Ok((row.get(0)?, row.get(1)?)))?.collect();
    jobs
}

/// Deletes what `condition` holds of, with its files; what runs stays.
fn remove(app: &App, condition: &'static str, parameter: &str) -> Result<()> {
    app.data.give_reserve();
    let parameter = parameter.to_owned();
    let gone = app.store.wait(move |db| {
        let db = db.transaction()?;
        let of =
            |table: &str, more: &str| ids(&db, &format!("SELECT id FROM {table} WHERE {condition}{more}"), &parameter);
        let gone = Gone {
            sets: of("sets", "")?,
            jobs: jobs(&db, condition, &parameter)?,
            adapters: of(
                "adapters",
                " AND id NOT IN (SELECT id FROM jobs WHERE state IN ('running', 'paused', 'stopping'))",
            )?,
            images: Vec::new(),
        };
        let mut images = Vec::new();
        for (id, _) in &gone.jobs {
            images.extend(ids(&db, "SELECT id FROM images WHERE job = ?1", id)?);
            for table in ["lines", "images"] {
                db.execute(&format!("DELETE FROM {table} WHERE job = ?1"), [id])?;
            }
            db.execute("DELETE FROM jobs WHERE id = ?1", [id])?;
        }
        for id in &gone.sets {
            db.execute("DELETE FROM photos WHERE set_id = ?1", [id])?;
            db.execute("DELETE FROM sets WHERE id = ?1", [id])?;
        }
        for id in gone.adapters.iter().chain(gone.jobs.iter().map(|(id, _)| id)) {
            db.execute("DELETE FROM adapters WHERE id = ?1", [id])?;
        }
        db.commit()?;
        Ok(Gone { images, ..gone })
    })?;
    gone.jobs.iter().for_each(|(id, _)| drop(app.tokens.take(id)));
    let data = &app.data;
    let of_jobs = gone.jobs.iter().flat_map(|(id, _)| data.of_job(id));
    let of_adapters = gone.adapters.iter().flat_map(|id| [data.adapters(), data.runs()].map(|folder| folder.join(id)));
    let of_images = gone.images.iter().map(|id| data.thumbnails().join(format!("{id}.jpg")));
    let of_sets = gone.sets.iter().map(|id| data.sets().join(id));
    let paths: Vec<PathBuf> = of_jobs.chain(of_adapters).chain(of_images).chain(of_sets).collect();
    paths.iter().try_for_each(|path| data.remove(path))?;
    for (id, owner) in &gone.jobs {
        app.events.send(owner, &json!({ "kind": "deleted", "id": id }));
    }
    Ok(())
}
