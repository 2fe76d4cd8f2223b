//! Jobs: what is asked for, in the database, with a copy of its settings.

mod queue;
pub mod record;
pub mod requests;
pub mod shown;

use super::failure::{Answer, Failure};
use super::ids::new_id;
use super::live::Live;
use super::state::{JobKind, JobState};
use super::App;
use crate::error::Result;
use crate::recipes::training::utc_time::UtcTime;
pub use queue::{add, after_a_start, stop, take_next, NewJob};
pub use record::{add_line, add_picture, finish, forget_pictures, End, Picture};
use rusqlite::{Connection, OptionalExtension, Row};
use serde_json::{Map, Value};
pub use shown::{list, queue, shown, tell_now, tell_those_who_wait};

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

/// An id for a job that is not there yet.
pub fn new_job_id() -> Answer<String> {
    Ok(new_id()?)
}
