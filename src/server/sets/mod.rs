//! Sets of photos or records: what is uploaded is checked by its content, and kept under names that the server makes.

mod intake;
mod photos;
mod records;

use super::accounts::Owner;
use super::failure::{Answer, Failure};
use super::ids::new_id;
use super::jobs::now;
use super::request::{Id, Query};
use super::schema::{list_of, object, or_null, text, word};
use super::uploaded_file::{label, receive, MAX_FILE};
use super::App;
use crate::error::{Error, Result};
use crate::recipes::demo;
use axum::body::Bytes;
use axum::extract::{Multipart, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use intake::Intake;
pub use photos::{caption_photo, delete_photo, photo_folder, picture};
use photos::{thumbnail_folder, Photo};
pub use records::records_folder;
use rusqlite::params;
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Photos with a shorter side than this share of what a model was made for lose much of what it could learn.
const SMALL: f64 = 0.75;

/// A file that was not taken.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Refused {
    name: String,
    sentence: String,
}

/// The set of photos inside the binary.
const EXAMPLE: &str = "penguin";

/// Photos that a new user can begin with, with settings for them.
pub fn examples() -> Value {
    json!([{ "name": EXAMPLE, "title": "Use the penguin's photos", "model": super::models::DEMO, "values": demo::usual_options() }])
}

/// The body of a new set, which may be none.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct New {
    example: Option<String>,
}

/// `POST /api/sets`.
pub async fn create(State(app): State<App>, owner: Owner, body: Bytes) -> Answer {
    let wanted: New = match body.is_empty() {
        true => New::default(),
        false => serde_json::from_slice(&body)
            .map_err(|error| Failure::bad(format!("the body is not what this address takes: {error}")))?,
    };
    if wanted.example.as_deref().is_some_and(|name| name != EXAMPLE) {
        return Err(Failure::field("example", format!("the one example is `{EXAMPLE}`")));
    }
    let id = new_set(&app, &owner).await?;
    if wanted.example.is_some() {
        let (shared, new) = (app.clone(), id.clone());
        let filled = tokio::task::spawn_blocking(move || fill_with_example(&shared, new));
        filled.await.map_err(|_| Failure::bad("the example could not be written"))??;
    }
    Ok((StatusCode::CREATED, axum::Json(shown(&app, &id, None).await?)).into_response())
}

/// A set with nothing in it.
async fn new_set(app: &App, owner: &Owner) -> Answer<String> {
    let (id, owner) = (new_id()?, owner.owned());
    for folder in [photo_folder(app, &id), thumbnail_folder(app, &id)] {
        std::fs::create_dir_all(&folder).map_err(|error| Error::io("create", &folder, error))?;
    }
    let row = id.clone();
    app.store
        .ask(move |db| {
            db.execute(
                "INSERT INTO sets (id, owner, kind, created) VALUES (?1, ?2, 'photos', ?3)",
                params![row, owner, now()],
            )
        })
        .await?;
    Ok(id)
}

/// A set that was made of files at once.
pub struct Filled {
    /// Its id.
    pub id: String,
    /// It holds records, and no photos.
    pub is_of_records: bool,
    /// It holds neither.
    pub is_empty: bool,
    /// What was not taken, and why, a sentence each.
    pub refused: Vec<String>,
}

/// A new set of files that lie on this machine, each with what it is called.
pub async fn of_files(app: &App, owner: &Owner, files: Vec<(String, PathBuf)>) -> Answer<Filled> {
    let id = new_set(app, owner).await?;
    let turn = app.heavy.acquire().await.map_err(|_| Failure::conflict("the server is stopping"))?;
    let mut intake = Intake::new(app.clone(), id.clone());
    let taken = tokio::task::spawn_blocking(move || {
        files.iter().try_for_each(|(name, file)| intake.take(name, file)).and_then(|()| intake.finish())
    });
    let taken = taken.await.map_err(|_| Failure::bad("an uploaded file could not be read"));
    drop(turn);
    if let Err(failure) = taken.and_then(|taken| taken.map_err(Failure::from)) {
        discard(app, &id).await?;
        return Err(failure);
    }
    let wanted = id.clone();
    let (kind, refused, photos) = app
        .store
        .ask(move |db| {
            let sql = "SELECT kind, refused, (SELECT count(*) FROM photos WHERE set_id = ?1) FROM sets WHERE id = ?1";
            db.query_row(sql, [wanted], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, u64>(2)?))
            })
        })
        .await?;
    let refused: Vec<Refused> = serde_json::from_str(&refused).unwrap_or_default();
    let is_of_records = kind == "records";
    Ok(Filled {
        id,
        is_of_records,
        is_empty: photos == 0 && !is_of_records,
        refused: refused.iter().map(|refused| format!("{} {}", refused.name, refused.sentence)).collect(),
    })
}

/// Deletes a set that nothing uses.
pub async fn discard(app: &App, id: &str) -> Answer<()> {
    let set = id.to_owned();
    app.store
        .ask(move |db| {
            db.execute("DELETE FROM photos WHERE set_id = ?1", [&set])?;
            db.execute("DELETE FROM sets WHERE id = ?1", [&set])
        })
        .await?;
    Ok(app.data.remove(&app.data.sets().join(id))?)
}

/// Refuses a set that is not the owner's.
pub async fn check(app: &App, id: &str, owner: &Owner) -> Answer<()> {
    let (id, owner) = (id.to_owned(), owner.owned());
    let is_there = app
        .store
        .ask(move |db| db.prepare_cached("SELECT 1 FROM sets WHERE id = ?1 AND owner = ?2")?.exists([id, owner]))
        .await?;
    is_there.then_some(()).ok_or_else(|| Failure::not_found("set"))
}

/// What `GET /api/sets/{id}` can be told.
#[derive(Debug, Default, Deserialize)]
pub struct For {
    /// Height and width that will be trained at, in pixels; that of the first model where nothing is said.
    resolution: Option<u32>,
}

/// `GET /api/sets/{id}`.
pub async fn show(State(app): State<App>, owner: Owner, Id(id): Id<String>, Query(query): Query<For>) -> Answer {
    check(&app, &id, &owner).await?;
    Ok(axum::Json(shown(&app, &id, query.resolution).await?).into_response())
}

async fn shown(app: &App, id: &str, resolution: Option<u32>) -> Answer<Value> {
    let wanted = id.to_owned();
    let (kind, records, refused, photos) = app
        .store
        .ask(move |db| {
            let set = db.query_row("SELECT kind, records, refused FROM sets WHERE id = ?1", [&wanted], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?, row.get::<_, String>(2)?))
            })?;
            let mut found = db.prepare_cached("SELECT * FROM photos WHERE set_id = ?1 ORDER BY number")?;
            let photos = found.query_map([&wanted], Photo::of_row)?.collect::<rusqlite::Result<Vec<_>>>()?;
            Ok((set.0, set.1, set.2, photos))
        })
        .await?;
    let side = match resolution {
        Some(side) => f64::from(side),
        None => app.models.list(app.limits.is_some()).iter().find_map(|model| model.native_size).unwrap_or(512) as f64,
    };
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    let mut listed = Vec::new();
    for photo in &photos {
        let mut warnings = Vec::new();
        let shorter = f64::from(photo.width.min(photo.height));
        if shorter < side * SMALL {
            warnings.push(format!(
                "{} × {} pixels are few for a training at {side}: it is enlarged and looks soft",
                photo.width, photo.height
            ));
        }
        if let Some(first) = seen.get(photo.pixels.as_str()) {
            warnings.push(format!("is the same picture as {first}"));
        }
        seen.entry(&photo.pixels).or_insert(&photo.name);
        listed.push(json!({
            "id": photo.id, "name": photo.name, "width": photo.width, "height": photo.height, "bytes": photo.bytes,
            "caption": photo.caption, "warnings": warnings, "url": format!("/api/photos/{}", photo.id),
            "thumbnail": format!("/api/photos/{}?thumbnail=1", photo.id),
        }));
    }
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap_or(Value::Null);
    let warnings = match photos.len() {
        1..=2 => {
            vec!["few photos: 4 to 20 of the subject, from different sides and with different backgrounds, are usual"
                .to_owned()]
        }
        _ => Vec::new(),
    };
    Ok(json!({
        "id": id, "kind": kind, "photos": listed, "records": records.map_or(Value::Null, |text| json(&text)), "refused": json(&refused),
        "warnings": warnings,
    }))
}

/// A set as it is shown.
pub fn schema() -> Value {
    let refused = object([("name", text()), ("sentence", text())]);
    object([
        ("id", text()),
        ("kind", word(&["photos", "records"])),
        ("photos", list_of(photos::schema())),
        ("records", or_null(records::schema())),
        ("refused", list_of(refused)),
        ("warnings", list_of(text())),
    ])
}

/// `POST /api/sets/{id}/files`.
pub async fn upload(State(app): State<App>, owner: Owner, Id(id): Id<String>, mut form: Multipart) -> Answer {
    check(&app, &id, &owner).await?;
    let mut intake = Intake::new(app.clone(), id.clone());
    let broken = |_| Failure::bad("the upload broke off, or is not a form with files");
    while let Some(field) = form.next_field().await.map_err(broken)? {
        let name = label(field.file_name().unwrap_or("file"));
        let file = match receive(&app, field, MAX_FILE).await? {
            Some(file) => file,
            None => {
                intake.refuse(&name, format!("is larger than {} GB", MAX_FILE >> 30));
                continue;
            }
        };
        let turn = app.heavy.acquire().await.map_err(|_| Failure::conflict("the server is stopping"))?;
        let taken = tokio::task::spawn_blocking(move || {
            let outcome = intake.take(&name, &file.0);
            (intake, outcome)
        });
        let (back, outcome) = taken.await.map_err(|_| Failure::bad("an uploaded file could not be read"))?;
        drop(turn);
        intake = back;
        outcome?;
    }
    let blocking = tokio::task::spawn_blocking(move || intake.finish());
    blocking.await.map_err(|_| Failure::bad("an uploaded file could not be read"))??;
    Ok(axum::Json(shown(&app, &id, None).await?).into_response())
}

/// Takes the photos inside the binary.
fn fill_with_example(app: &App, set: String) -> Result<()> {
    let mut intake = Intake::new(app.clone(), set);
    let folder = app.data.temporary().join(new_id()?);
    let taken = demo::write_subject(&folder).and_then(|()| {
        let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
            .map_err(|error| Error::io("read", &folder, error))?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        files.sort();
        files.iter().try_for_each(|file| intake.take(&file.file_name().unwrap_or_default().to_string_lossy(), file))
    });
    app.data.remove(&folder)?;
    taken?;
    intake.finish()
}

/// Keeps what is in the folder `folder` of a set as it is now, in the folder `into`: the same files under a second name.
pub fn keep(folder: &Path, into: &Path) -> Result<()> {
    std::fs::create_dir_all(into).map_err(|error| Error::io("create", into, error))?;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (from, to) = (entry.path(), into.join(entry.file_name()));
        // Where a file system has no second names, a copy.
        if std::fs::hard_link(&from, &to).is_err() {
            std::fs::copy(&from, &to).map_err(|error| Error::io("write", &to, error))?;
        }
    }
    Ok(())
}

/// Width and height of each photo of the set `id`.
pub async fn sizes(app: &App, id: &str) -> Answer<Vec<(u32, u32)>> {
    let id = id.to_owned();
    app.store
        .ask(move |db| {
            let mut found = db.prepare_cached("SELECT width, height FROM photos WHERE set_id = ?1")?;
            let sizes =
                found.query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<Vec<_>>>()?;
            Ok(sizes)
        })
        .await
}
