//! What a job leaves: how it ended, what it said, and what it drew.

use super::super::failure::Answer;
use super::super::ids::new_id;
use super::super::schema::{integer, list_of, number, object, or_null, text, with};
use super::super::state::JobState;
use super::super::{likeness, observer, App};
use super::{now, Job};
use crate::error::Result;
use rusqlite::{params, Row};
use serde_json::{json, Value};

/// The last lines of a job's log that are shown.
const SHOWN_LINES: usize = 200;
/// Lines of a job that are kept.
const KEPT_LINES: i64 = 1000;

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

/// A picture as it is shown.
pub fn picture_schema() -> Value {
    object([
        ("id", text()),
        ("url", text()),
        ("thumbnail", text()),
        ("width", integer()),
        ("height", integer()),
        ("job", text()),
        ("created", text()),
        ("step", or_null(integer())),
        ("checkpoint", or_null(integer())),
        ("strength", or_null(number())),
        ("parameters", observer::parameters_schema()),
        ("likeness", or_null(likeness::schema())),
    ])
}

/// What [`lines`] gives, with the rest of the `job`.
pub fn with_lines_schema(job: Value) -> Value {
    let fact = object([("name", text()), ("text", text())]);
    with(job, [("warnings", list_of(text())), ("log", list_of(text())), ("facts", list_of(fact))])
}

/// The numbers of a step; what the loss is made of is beside it.
pub fn step_schema() -> Value {
    let mut step = object([
        ("step", integer()),
        ("epoch", integer()),
        ("loss", or_null(number())),
        ("lr", number()),
        ("grad_norm", or_null(number())),
        ("step_s", number()),
        ("peak_mib", number()),
    ]);
    step["additionalProperties"] = or_null(number());
    step
}

/// Forgets what a job drew before, as it begins anew.
pub fn forget_pictures(app: &App, id: &str) -> Result<()> {
    let id = id.to_owned();
    app.store.wait(move |db| db.execute("DELETE FROM images WHERE job = ?1", [id]).map(drop))
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
