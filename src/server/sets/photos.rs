//! Photos of a set, each with its caption.

use super::super::accounts::Owner;
use super::super::failure::{Answer, Failure};
use super::super::pictures::{send_picture, Size};
use super::super::request::{Id, Json, Query};
use super::super::schema::{integer, list_of, object, text};
use super::super::App;
use super::shown;
use crate::error::Result;
use crate::whole_file::write_whole;
use axum::extract::State;
use axum::response::IntoResponse;
use rusqlite::{OptionalExtension, Row};
use serde::Deserialize;
use serde_json::Value;
use std::path::PathBuf;

/// Bytes of a caption.
pub const MAX_CAPTION: usize = 4000;

/// A photo as it stands in the database.
pub struct Photo {
    /// Its id.
    pub id: String,
    /// What its user calls it.
    pub name: String,
    /// Pixels of its two sides.
    pub width: u32,
    /// See `width`.
    pub height: u32,
    /// Bytes of its file.
    pub bytes: u64,
    /// What it shows; empty where nobody said.
    pub caption: String,
    /// The hash of its pixels.
    pub pixels: String,
}

impl Photo {
    /// That of a row.
    pub fn of_row(row: &Row) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get("id")?,
            name: row.get("name")?,
            width: row.get("width")?,
            height: row.get("height")?,
            bytes: row.get("bytes")?,
            caption: row.get("caption")?,
            pixels: row.get("pixels")?,
        })
    }
}

/// A photo as it is shown.
pub fn schema() -> Value {
    object([
        ("id", text()),
        ("name", text()),
        ("width", integer()),
        ("height", integer()),
        ("bytes", integer()),
        ("caption", text()),
        ("warnings", list_of(text())),
        ("url", text()),
        ("thumbnail", text()),
    ])
}

/// The folder of photos of the set `id`.
pub fn photo_folder(app: &App, id: &str) -> PathBuf {
    app.data.sets().join(id).join("photos")
}

/// The folder of their thumbnails.
pub fn thumbnail_folder(app: &App, id: &str) -> PathBuf {
    app.data.sets().join(id).join("thumbnails")
}

/// A caption on one line.
pub fn caption(text: &str) -> String {
    text.split(|c: char| c.is_control() || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Writes the caption of a photo where the trainer reads it: beside the photo.
pub fn set_caption(app: &App, set: &str, photo: &str, text: &str) -> Result<()> {
    let (id, text_kept) = (photo.to_owned(), text.to_owned());
    let file: Option<String> = app.store.wait(move |db| {
        db.execute("UPDATE photos SET caption = ?2 WHERE id = ?1", [&id, &text_kept])?;
        db.query_row("SELECT file FROM photos WHERE id = ?1", [&id], |row| row.get(0)).optional()
    })?;
    let Some(file) = file else { return Ok(()) };
    let beside = photo_folder(app, set).join(file).with_extension("txt");
    match text.is_empty() {
        true => app.data.remove(&beside),
        false => write_whole(&beside, text.as_bytes()),
    }
}

/// The body of a change of a photo.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caption {
    caption: String,
}

/// `PATCH /api/sets/{id}/photos/{photo}`.
pub async fn caption_photo(
    State(app): State<App>,
    owner: Owner,
    Id((set, photo)): Id<(String, String)>,
    Json(body): Json<Caption>,
) -> Answer {
    find_photo(&app, &owner, Some(&set), &photo).await?;
    if body.caption.len() > MAX_CAPTION {
        return Err(Failure::field("caption", format!("a caption can have at most {MAX_CAPTION} bytes")));
    }
    let (shared, in_set) = (app.clone(), set.clone());
    let written = tokio::task::spawn_blocking(move || set_caption(&shared, &in_set, &photo, &caption(&body.caption)));
    written.await.map_err(|_| Failure::bad("the caption could not be written"))??;
    Ok(axum::Json(shown(&app, &set, None).await?).into_response())
}

/// `DELETE /api/sets/{id}/photos/{photo}`.
pub async fn delete_photo(State(app): State<App>, owner: Owner, Id((set, photo)): Id<(String, String)>) -> Answer {
    let (_, file) = find_photo(&app, &owner, Some(&set), &photo).await?;
    let id = photo.clone();
    app.store.ask(move |db| db.execute("DELETE FROM photos WHERE id = ?1", [id])).await?;
    let path = photo_folder(&app, &set).join(file);
    for gone in [path.with_extension("txt"), path, thumbnail_folder(&app, &set).join(format!("{photo}.jpg"))] {
        app.data.remove(&gone)?;
    }
    Ok(axum::Json(shown(&app, &set, None).await?).into_response())
}

/// Set and file name of a photo of `owner`, which is of `set` where one is named.
async fn find_photo(app: &App, owner: &Owner, set: Option<&str>, photo: &str) -> Answer<(String, String)> {
    let (owner, id, set) = (owner.owned(), photo.to_owned(), set.map(str::to_owned));
    let found = app
        .store
        .ask(move |db| {
            let sql =
                "SELECT set_id, file FROM photos JOIN sets ON sets.id = set_id WHERE photos.id = ?1 AND owner = ?2";
            db.query_row(sql, [id, owner], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))).optional()
        })
        .await?;
    found.filter(|(of, _)| set.is_none_or(|set| set == *of)).ok_or_else(|| Failure::not_found("photo"))
}

/// `GET /api/photos/{photo}`.
pub async fn picture(State(app): State<App>, owner: Owner, Id(photo): Id<String>, Query(size): Query<Size>) -> Answer {
    let (set, file) = find_photo(&app, &owner, None, &photo).await?;
    let path = match size.thumbnail {
        Some(1) => thumbnail_folder(&app, &set).join(format!("{photo}.jpg")),
        _ => photo_folder(&app, &set).join(file),
    };
    send_picture(path).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caption_is_one_line() {
        assert_eq!(caption(" a dog\n\ton\u{7} grass "), "a dog on grass");
    }
}
