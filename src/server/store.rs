//! The server's database: one thread owns the connection and works off what it is asked.

use super::failure::Failure;
use crate::error::{Error, Result};
use axum::http::StatusCode;
use rusqlite::Connection;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

/// Statements that make the tables, one entry a version: what is there is never changed, only added to.
const VERSIONS: &[&str] = &["
    CREATE TABLE sets (id TEXT PRIMARY KEY, owner TEXT NOT NULL, kind TEXT NOT NULL, created TEXT NOT NULL,
        records TEXT, refused TEXT NOT NULL DEFAULT '[]');
    CREATE TABLE photos (id TEXT PRIMARY KEY, set_id TEXT NOT NULL, number INTEGER NOT NULL, name TEXT NOT NULL, file TEXT NOT NULL,
        width INTEGER NOT NULL, height INTEGER NOT NULL, bytes INTEGER NOT NULL, caption TEXT NOT NULL DEFAULT '', pixels TEXT NOT NULL);
    CREATE INDEX photos_of_a_set ON photos (set_id, number);
    CREATE TABLE jobs (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, kind TEXT NOT NULL,
        name TEXT NOT NULL, state TEXT NOT NULL, position REAL NOT NULL, created TEXT NOT NULL, started TEXT, ended TEXT,
        error TEXT, field TEXT, options TEXT NOT NULL, set_id TEXT, command TEXT NOT NULL, answer TEXT, memory_bytes INTEGER,
        seconds REAL);
    CREATE INDEX jobs_by_state ON jobs (state, position);
    CREATE INDEX jobs_by_owner ON jobs (owner, number);
    CREATE TABLE lines (number INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
        text TEXT NOT NULL);
    CREATE INDEX lines_of_a_job ON lines (job, number);
    CREATE TABLE images (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, job TEXT NOT NULL,
        file TEXT NOT NULL, step INTEGER, shown TEXT NOT NULL);
    CREATE INDEX images_of_a_job ON images (job, number);
    CREATE TABLE adapters (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, job TEXT,
        name TEXT NOT NULL, kind TEXT NOT NULL, base_model TEXT NOT NULL, trigger_text TEXT NOT NULL, rank INTEGER, created TEXT NOT NULL,
        folder TEXT NOT NULL, chosen INTEGER, license TEXT);
"];

type Task = Box<dyn FnOnce(&mut Connection) + Send>;

/// The database. Clones ask the same thread.
#[derive(Clone)]
pub struct Store(mpsc::Sender<Task>);

impl Store {
    /// Opens the database at `path`, which is made where it is not there.
    pub fn open(path: &Path) -> Result<Self> {
        let failed =
            |error: rusqlite::Error| Error::file(path, format!("cannot be used as the server's database: {error}"));
        let mut connection = Connection::open(path).map_err(failed)?;
        prepare(&mut connection).map_err(failed)?;
        let version = version(&connection).map_err(failed)?;
        if version > VERSIONS.len() {
            return Err(Error::file(path, "was written by a newer lorabooth; use that one, or another ⟨data_dir⟩"));
        }
        for (index, statements) in VERSIONS.iter().enumerate().skip(version) {
            let whole = format!("BEGIN; {statements} PRAGMA user_version = {}; COMMIT;", index + 1);
            connection.execute_batch(&whole).map_err(failed)?;
        }
        let (sender, tasks) = mpsc::channel::<Task>();
        let work = move || tasks.into_iter().for_each(|task| task(&mut connection));
        thread::Builder::new().name("database".to_owned()).spawn(work).map_err(Error::no_thread)?;
        Ok(Self(sender))
    }

    /// What `work` gives.
    pub async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> std::result::Result<T, Failure> {
        let (answer, wait) = tokio::sync::oneshot::channel();
        let task: Task = Box::new(move |connection| drop(answer.send(work(connection))));
        self.0.send(task).map_err(|_| gone())?;
        wait.await.map_err(|_| gone())?.map_err(|error| of_database(&error))
    }

    /// The same for a thread that can wait.
    pub fn wait<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, wait) = mpsc::channel();
        let task: Task = Box::new(move |connection| drop(answer.send(work(connection))));
        let failed = || Error::Internal("the database's thread has ended".to_owned());
        self.0.send(task).map_err(|_| failed())?;
        wait.recv().map_err(|_| failed())?.map_err(|error| Error::invalid(sentence(&error)))
    }
}

fn prepare(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")
}

fn version(connection: &Connection) -> rusqlite::Result<usize> {
    connection
        .pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))
        .map(|version| version.max(0) as usize)
}

fn gone() -> Failure {
    Failure::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping; try again when it is back")
}

fn sentence(error: &rusqlite::Error) -> String {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => {
            "the disk of the data folder is full; make room on it and try again".to_owned()
        }
        _ => format!("the server's database failed: {error}"),
    }
}

fn of_database(error: &rusqlite::Error) -> Failure {
    let status = match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => StatusCode::INSUFFICIENT_STORAGE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Failure::new(status, sentence(error))
}
