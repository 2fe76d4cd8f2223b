//! Pictures as they are sent: those that jobs drew, and each of them small.

use super::accounts::Owner;
use super::failure::{Answer, Failure};
use super::request::{Id, Query};
use super::App;
use crate::data::photo_decoding;
use crate::error::{Error, Result};
use crate::whole_file::write_whole;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::HeaderValue;
use axum::response::IntoResponse;
use image::codecs::jpeg::JpegEncoder;
use image::{imageops, RgbImage};
use rusqlite::OptionalExtension;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Height and width of thumbnails, in pixels.
const THUMBNAIL: u32 = 256;

/// `?thumbnail=1`.
#[derive(Debug, Default, Deserialize)]
pub struct Size {
    /// 1 for at most 256 pixels a side.
    pub thumbnail: Option<u8>,
}

/// Writes `image`, small, as a JPEG.
pub fn write_thumbnail(path: &Path, image: &RgbImage) -> Result<()> {
    let scale = (f64::from(THUMBNAIL) / f64::from(image.width().max(image.height()))).min(1.0);
    let side = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
    let small = imageops::thumbnail(image, side(image.width()), side(image.height()));
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 85)
        .encode_image(&small)
        .map_err(|error| Error::file(path, format!("a thumbnail cannot be encoded: {error}")))?;
    write_whole(path, &bytes)
}

/// A picture that the server has decoded before.
pub async fn send_picture(path: PathBuf) -> Answer {
    let read = tokio::task::spawn_blocking(move || std::fs::read(&path).map(|bytes| (path, bytes))).await;
    let Ok(Ok((path, bytes))) = read else { return Err(Failure::not_found("picture")) };
    let kind = match path.extension().and_then(|end| end.to_str()) {
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("webp") => "image/webp",
        _ => "application/octet-stream",
    };
    let mut response = bytes.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    // A picture never changes under its id.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, max-age=31536000, immutable"));
    if kind == "application/octet-stream" {
        headers.insert(CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    }
    Ok(response)
}

/// `GET /api/images/{id}`.
pub async fn image(State(app): State<App>, owner: Owner, Id(id): Id<String>, Query(size): Query<Size>) -> Answer {
    let (wanted, of) = (id.clone(), owner.owned());
    let found: Option<String> = app
        .store
        .ask(move |db| {
            db.query_row("SELECT file FROM images WHERE id = ?1 AND owner = ?2", [wanted, of], |row| row.get(0))
                .optional()
        })
        .await?;
    let path = app.data.root().join(found.ok_or_else(|| Failure::not_found("picture"))?);
    if size.thumbnail != Some(1) {
        return send_picture(path).await;
    }
    let thumbnail = app.data.thumbnails().join(format!("{id}.jpg"));
    if !thumbnail.exists() {
        let (from, to) = (path, thumbnail.clone());
        let made = tokio::task::spawn_blocking(move || {
            let image = photo_decoding::decode(&from)?;
            std::fs::create_dir_all(to.parent().unwrap_or(&to)).map_err(|error| Error::io("create", &to, error))?;
            write_thumbnail(&to, &image)
        });
        made.await.map_err(|_| Failure::not_found("picture"))?.map_err(|_| Failure::not_found("picture"))?;
    }
    send_picture(thumbnail).await
}
