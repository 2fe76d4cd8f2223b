//! Sets of photos or records: what is uploaded is checked by its content, and kept under names that the server makes.

use super::accounts::Owner;
use super::failure::{Answer, Failure};
use super::ids::{hex, new_id};
use super::jobs::now;
use super::request::{Id, Json, Query};
use super::App;
use crate::data::photo_decoding;
use crate::data::records::Records;
use crate::error::{Error, Result};
use crate::recipes::demo;
use crate::whole_file::write_whole;
use axum::body::Bytes;
use axum::extract::{Multipart, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::IntoResponse;
use image::codecs::jpeg::JpegEncoder;
use image::imageops;
use image::{ImageFormat, ImageReader, RgbImage};
use rusqlite::{params, OptionalExtension, Row};
use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Photos of a set.
const MAX_PHOTOS: u64 = 2000;
/// Bytes of one uploaded file: photos of phones are smaller, and zip files of photos can be this large.
pub const MAX_FILE: u64 = 2 << 30;
/// Bytes of one photo.
const MAX_PHOTO: u64 = 128 << 20;
/// Pixels of one photo, which are checked before it is decoded.
const MAX_PIXELS: u64 = 100_000_000;
/// Files in a zip.
const MAX_ENTRIES: usize = 10_000;
/// Bytes that a zip unpacks to.
const MAX_UNPACKED: u64 = 4 << 30;
/// Bytes of a caption.
const MAX_CAPTION: usize = 4000;
/// Height and width of thumbnails, in pixels.
pub const THUMBNAIL: u32 = 256;
/// Refusals that are kept with a set.
const MAX_REFUSED: usize = 100;
/// Columns of records that are looked at.
const MAX_COLUMNS: usize = 64;
/// Records of a sample, and characters of each value.
const SHOWN_RECORDS: usize = 5;
const SHOWN_CHARACTERS: usize = 300;
/// Photos with a shorter side than this share of what a model was made for lose much of what it could learn.
const SMALL: f64 = 0.75;

/// A file that was not taken.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Refused {
    name: String,
    sentence: String,
}

struct Photo {
    id: String,
    name: String,
    width: u32,
    height: u32,
    bytes: u64,
    caption: String,
    pixels: String,
}

impl Photo {
    fn of_row(row: &Row) -> rusqlite::Result<Self> {
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

/// A file that goes when it is dropped.
pub struct Temporary(pub PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

/// The folder of photos of the set `id`.
pub fn photo_folder(app: &App, id: &str) -> PathBuf {
    app.data.sets().join(id).join("photos")
}

/// The folder of the one file of records of the set `id`.
pub fn records_folder(app: &App, id: &str) -> PathBuf {
    app.data.sets().join(id).join("records")
}

fn thumbnail_folder(app: &App, id: &str) -> PathBuf {
    app.data.sets().join(id).join("thumbnails")
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
        let filled = tokio::task::spawn_blocking(move || fill_with_example(Intake::new(shared, new)));
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
fn fill_with_example(mut intake: Intake) -> Result<()> {
    let folder = intake.app.data.temporary().join(new_id()?);
    let taken = demo::write_subject(&folder).and_then(|()| {
        let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
            .map_err(|error| Error::io("read", &folder, error))?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        files.sort();
        files.iter().try_for_each(|file| intake.take(&file.file_name().unwrap_or_default().to_string_lossy(), file))
    });
    intake.app.data.remove(&folder)?;
    taken?;
    intake.finish()
}

/// Writes an uploaded file to the data folder as it comes; none where it is larger than `most`, when the rest of it is passed over.
pub async fn receive(
    app: &App,
    mut field: axum::extract::multipart::Field<'_>,
    most: u64,
) -> Answer<Option<Temporary>> {
    app.data.check_room()?;
    let path = app.data.temporary().join(new_id()?);
    let mut file = File::create_new(&path).map_err(|error| Error::io("create", &path, error))?;
    let temporary = Temporary(path.clone());
    let mut bytes = 0;
    let broken = |error: axum::extract::multipart::MultipartError| {
        Failure::new(error.status(), "the upload broke off, or is larger than the server takes at a time")
    };
    while let Some(chunk) = field.chunk().await.map_err(broken)? {
        bytes += chunk.len() as u64;
        if bytes <= most {
            file.write_all(&chunk).map_err(|error| match error.kind() {
                std::io::ErrorKind::StorageFull => Failure::new(
                    StatusCode::INSUFFICIENT_STORAGE,
                    "the disk of the data folder is full; make room on it and try again",
                ),
                _ => Failure::from(Error::io("write", &path, error)),
            })?;
        }
    }
    Ok((bytes <= most).then_some(temporary))
}

/// What a client calls a file, fit to be shown: the last part of a path, without control characters.
pub fn label(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let plain: String = last.chars().filter(|c| !c.is_control()).take(120).collect();
    match plain.trim().trim_matches('.') {
        "" => "file".to_owned(),
        plain => plain.to_owned(),
    }
}

/// The name without its ending.
pub fn stem(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// The part of a server-made file name that tells people which file it was.
pub fn readable(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let text: String = stem(name).chars().map(plain).take(40).collect();
    text.trim_matches('-').to_owned()
}

/// Files of one upload on their way into a set.
struct Intake {
    app: App,
    set: String,
    refused: Vec<Refused>,
    /// Captions by the stem of the photo's name.
    texts: BTreeMap<String, String>,
}

/// What `error` says of the file at `path`, which has another name for its user.
fn without_path(error: &Error, path: &Path) -> String {
    let text = error.to_string();
    let behind = text.strip_prefix(&path.display().to_string());
    behind.map(|rest| rest.trim_start_matches(':').trim_start().to_owned()).unwrap_or(text)
}

impl Intake {
    fn new(app: App, set: String) -> Self {
        Self { app, set, refused: Vec::new(), texts: BTreeMap::new() }
    }

    fn refuse(&mut self, name: &str, sentence: impl Into<String>) {
        if self.refused.len() < MAX_REFUSED {
            self.refused.push(Refused { name: name.to_owned(), sentence: sentence.into() });
        }
    }

    /// Takes one file; only what is wrong with the server is an error.
    fn take(&mut self, name: &str, file: &Path) -> Result<()> {
        let mut begin = [0; 4];
        let is_zip =
            File::open(file).and_then(|mut file| file.read_exact(&mut begin)).is_ok() && &begin == b"PK\x03\x04";
        let end = name.rsplit('.').next().unwrap_or_default().to_lowercase();
        match end.as_str() {
            _ if is_zip => self.unpack(name, file),
            "txt" | "caption" => {
                self.text(name, file);
                Ok(())
            }
            "jsonl" | "ndjson" | "json" | "csv" | "tsv" | "tab" | "parquet" => self.records(name, &end, file),
            _ => self.photo(name, file),
        }
    }

    /// Takes a file of records, in place of one that was there.
    fn records(&mut self, name: &str, end: &str, file: &Path) -> Result<()> {
        let set = self.set.clone();
        let has_photos = self
            .app
            .store
            .wait(move |db| db.prepare_cached("SELECT 1 FROM photos WHERE set_id = ?1")?.exists([set]))?;
        if has_photos {
            self.refuse(name, "is a file of records, and the set has photos; put it in a set of its own");
            return Ok(());
        }
        // Its format is told by its ending.
        let named = Temporary(file.with_extension(end));
        std::fs::copy(file, &named.0).map_err(|error| Error::io("write", &named.0, error))?;
        let about = match about_records(name, &named.0) {
            Ok(about) => about.to_string(),
            Err(error) => {
                self.refuse(name, without_path(&error, &named.0));
                return Ok(());
            }
        };
        let folder = records_folder(&self.app, &self.set);
        self.app.data.remove(&folder)?;
        std::fs::create_dir_all(&folder).map_err(|error| Error::io("create", &folder, error))?;
        let kept = folder.join(format!("records.{end}"));
        std::fs::rename(&named.0, &kept).map_err(|error| Error::io("write", &kept, error))?;
        let set = self.set.clone();
        self.app.store.wait(move |db| {
            db.execute("UPDATE sets SET kind = 'records', records = ?2 WHERE id = ?1", params![set, about]).map(drop)
        })
    }

    fn text(&mut self, name: &str, file: &Path) {
        match std::fs::metadata(file).map(|about| about.len()) {
            Ok(bytes) if bytes <= MAX_CAPTION as u64 => match std::fs::read(file).map(String::from_utf8) {
                Ok(Ok(text)) => drop(self.texts.insert(stem(name).to_lowercase(), caption(&text))),
                _ => self.refuse(name, "is not a text in UTF-8"),
            },
            _ => self.refuse(name, format!("is longer than {MAX_CAPTION} bytes, which is no caption")),
        }
    }

    /// Takes the files of a zip; their names are labels alone.
    fn unpack(&mut self, name: &str, file: &Path) -> Result<()> {
        let opened = File::open(file).map_err(|error| Error::io("read", file, error))?;
        let mut archive = match zip::ZipArchive::new(opened) {
            Ok(archive) if archive.len() <= MAX_ENTRIES => archive,
            Ok(archive) => {
                self.refuse(
                    name,
                    format!("holds {} files, more than the {MAX_ENTRIES} that are unpacked", archive.len()),
                );
                return Ok(());
            }
            Err(_) => {
                self.refuse(name, "is a damaged zip file");
                return Ok(());
            }
        };
        // Before anything is written, as far as it is told.
        if archive.decompressed_size().is_some_and(|bytes| bytes > u128::from(MAX_UNPACKED)) {
            self.refuse(
                name,
                format!("unpacks to more than {} GB; split it, or make the photos smaller", MAX_UNPACKED >> 30),
            );
            return Ok(());
        }
        let mut unpacked = 0;
        for index in 0..archive.len() {
            let Ok(entry) = archive.by_index(index) else {
                self.refuse(name, format!("its file number {} is damaged or locked with a password", index + 1));
                continue;
            };
            let whole = entry.name().map(std::borrow::Cow::into_owned).unwrap_or_default();
            let inside = label(&whole);
            // Folders, and what systems put beside photos.
            if entry.is_dir()
                || whole.contains("__MACOSX")
                || whole.rsplit(['/', '\\']).next().unwrap_or_default().starts_with('.')
            {
                continue;
            }
            if entry.size() > MAX_PHOTO {
                self.refuse(&inside, format!("is larger than {} MB", MAX_PHOTO >> 20));
                continue;
            }
            let path = self.app.data.temporary().join(new_id()?);
            let temporary = Temporary(path.clone());
            let mut out = File::create_new(&path).map_err(|error| Error::io("create", &path, error))?;
            // What an entry claims to unpack to is nothing to rely on.
            let copied = match std::io::copy(&mut entry.take(MAX_PHOTO + 1), &mut out) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                    return Err(Error::io("write", &path, error))
                }
                Err(_) => {
                    self.refuse(&inside, "is damaged in its zip file");
                    continue;
                }
            };
            drop(out);
            unpacked += copied;
            if unpacked > MAX_UNPACKED {
                self.refuse(
                    name,
                    format!("unpacks to more than {} GB; the rest of it is left out", MAX_UNPACKED >> 30),
                );
                return Ok(());
            }
            match inside.to_lowercase() {
                lower if lower.ends_with(".txt") || lower.ends_with(".caption") => self.text(&inside, &temporary.0),
                _ => self.photo(&inside, &temporary.0)?,
            }
        }
        Ok(())
    }

    /// Takes a photo, or refuses it with what is wrong with it.
    fn photo(&mut self, name: &str, file: &Path) -> Result<()> {
        let bytes = std::fs::metadata(file).map_err(|error| Error::io("read", file, error))?.len();
        let (format, image) = match readable_photo(file, bytes) {
            Ok(read) => read,
            Err(sentence) => {
                self.refuse(name, sentence);
                return Ok(());
            }
        };
        let set = self.set.clone();
        let most = self.app.limits.map_or(MAX_PHOTOS, |limits| limits.max_photos);
        let (count, last) = self.app.store.wait(move |db| {
            db.query_row("SELECT count(*), coalesce(max(number), 0) FROM photos WHERE set_id = ?1", [set], |row| {
                Ok((row.get::<_, u64>(0)?, row.get::<_, u64>(1)?))
            })
        })?;
        if count >= most {
            self.refuse(name, format!("there are {most} photos already, which is as many as a set can have here"));
            return Ok(());
        }
        let (id, number) = (new_id()?, last + 1);
        let end = format.extensions_str().first().copied().unwrap_or("png");
        let file_name = format!("{number:05}-{}.{end}", readable(name));
        write_thumbnail(&thumbnail_folder(&self.app, &self.set).join(format!("{id}.jpg")), &image)?;
        let kept = photo_folder(&self.app, &self.set).join(&file_name);
        std::fs::copy(file, &kept).map_err(|error| Error::io("write", &kept, error))?;
        let (set, name) = (self.set.clone(), name.to_owned());
        let (width, height) = image.dimensions();
        let mut pixels = Sha256::new();
        pixels.update(width.to_le_bytes());
        pixels.update(image.as_raw());
        let pixels = hex(&pixels.finalize());
        self.app.store.wait(move |db| {
            db.execute(
                "INSERT INTO photos (id, set_id, number, name, file, width, height, bytes, pixels) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                params![id, set, number, name, file_name, width, height, bytes, pixels],
            )
            .map(drop)
        })
    }

    /// Gives photos their captions, and keeps what was refused.
    fn finish(mut self) -> Result<()> {
        let set = self.set.clone();
        let names = self.app.store.wait(move |db| {
            let mut found = db.prepare_cached("SELECT id, name FROM photos WHERE set_id = ?1")?;
            let pair = |row: &Row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?));
            let names = found.query_map([set], pair)?.collect::<rusqlite::Result<Vec<_>>>()?;
            Ok(names)
        })?;
        for (text_of, text) in std::mem::take(&mut self.texts) {
            let of: Vec<&String> =
                names.iter().filter(|(_, name)| stem(name).to_lowercase() == text_of).map(|(id, _)| id).collect();
            if of.is_empty() {
                self.refuse(&format!("{text_of}.txt"), "is the caption of no photo: it must have a photo's name");
            }
            for id in of {
                set_caption(&self.app, &self.set, id, &text)?;
            }
        }
        let (set, refused) = (self.set, json!(self.refused).to_string());
        self.app
            .store
            .wait(move |db| db.execute("UPDATE sets SET refused = ?2 WHERE id = ?1", params![set, refused]).map(drop))
    }
}

/// What the records at `path` are: their columns, how many they are, and the first of them.
fn about_records(name: &str, path: &Path) -> Result<Value> {
    let columns = Records::columns(path)?;
    // Columns of lists and gaps are for others; what can be learned from is flat and whole.
    let is_flat = |column: &&String| Records::read(path, &[column.as_str()]).is_ok();
    let flat: Vec<&str> = match Records::read(path, &columns.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(_) => columns.iter().map(String::as_str).collect(),
        Err(_) => columns.iter().take(MAX_COLUMNS).filter(is_flat).map(String::as_str).collect(),
    };
    if flat.is_empty() {
        // Says what is wrong with it.
        Records::read(path, &columns.iter().map(String::as_str).take(1).collect::<Vec<_>>())?;
    }
    let records = Records::read(path, &flat)?;
    let shown = |text: &str| text.chars().take(SHOWN_CHARACTERS).collect::<String>();
    let sample: Vec<Value> = records
        .iter()
        .take(SHOWN_RECORDS)
        .map(|record| {
            flat.iter()
                .map(|column| ((*column).to_owned(), json!(record.get(column).map(shown))))
                .collect::<Map<_, _>>()
                .into()
        })
        .collect();
    Ok(json!({ "name": name, "count": records.len(), "columns": columns, "sample": sample }))
}

/// The photo in `file`, decoded, or what is wrong with it.
fn readable_photo(file: &Path, bytes: u64) -> std::result::Result<(ImageFormat, RgbImage), String> {
    if bytes > MAX_PHOTO {
        return Err(format!("is larger than {} MB", MAX_PHOTO >> 20));
    }
    let unreadable = || "is not an image in a supported format (JPEG, PNG, WebP, BMP, GIF, TIFF)".to_owned();
    let reader = ImageReader::open(file).and_then(ImageReader::with_guessed_format).map_err(|_| unreadable())?;
    let format = reader.format().filter(ImageFormat::reading_enabled).ok_or_else(unreadable)?;
    let (width, height) = reader.into_dimensions().map_err(|_| "is damaged".to_owned())?;
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(format!("has {width} × {height} pixels; make it smaller, a side of 2000 is plenty"));
    }
    match photo_decoding::decode(file) {
        Ok(image) => Ok((format, image)),
        Err(Error::File { message, .. }) => Err(message),
        Err(_) => Err("cannot be read".to_owned()),
    }
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

/// A caption on one line.
fn caption(text: &str) -> String {
    text.split(|c: char| c.is_control() || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Writes the caption of a photo where the trainer reads it: beside the photo.
fn set_caption(app: &App, set: &str, photo: &str, text: &str) -> Result<()> {
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

/// `?thumbnail=1`.
#[derive(Debug, Default, Deserialize)]
pub struct Size {
    /// 1 for at most 256 pixels a side.
    pub thumbnail: Option<u8>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_clients_are_labels_alone() {
        for (name, shown) in [
            ("../../etc/passwd", "passwd"),
            ("C:\\Users\\me\\dog.jpg", "dog.jpg"),
            ("..", "file"),
            ("", "file"),
            ("a\u{0}b\n.png", "ab.png"),
        ] {
            assert_eq!(label(name), shown);
        }
        assert_eq!(readable("My Dog (1).JPG"), "my-dog--1");
        assert_eq!(readable("../..//x.png"), "x");
        assert_eq!(caption(" a dog\n\ton\u{7} grass "), "a dog on grass");
    }
}
