//! Files on their way into a set: each is told by its content, and refused with what is wrong with it.

use super::super::ids::{hex, new_id};
use super::super::pictures::write_thumbnail;
use super::super::uploaded_file::{label, readable, stem, Temporary};
use super::super::App;
use super::photos::{caption, photo_folder, set_caption, thumbnail_folder, MAX_CAPTION};
use super::records::{about_records, records_folder};
use super::Refused;
use crate::data::photo_decoding;
use crate::error::{Error, Result};
use image::{ImageFormat, ImageReader, RgbImage};
use rusqlite::{params, Row};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Photos of a set.
const MAX_PHOTOS: u64 = 2000;
/// Bytes of one photo.
const MAX_PHOTO: u64 = 128 << 20;
/// Pixels of one photo, which are checked before it is decoded.
const MAX_PIXELS: u64 = 100_000_000;
/// Files in a zip.
const MAX_ENTRIES: usize = 10_000;
/// Bytes that a zip unpacks to.
const MAX_UNPACKED: u64 = 4 << 30;
/// Refusals that are kept with a set.
const MAX_REFUSED: usize = 100;

/// Files of one upload on their way into a set.
pub struct Intake {
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
    /// None yet, for the set `set`.
    pub fn new(app: App, set: String) -> Self {
        Self { app, set, refused: Vec::new(), texts: BTreeMap::new() }
    }

    /// Notes that the file `name` is not taken.
    pub fn refuse(&mut self, name: &str, sentence: impl Into<String>) {
        if self.refused.len() < MAX_REFUSED {
            self.refused.push(Refused { name: name.to_owned(), sentence: sentence.into() });
        }
    }

    /// Takes one file; only what is wrong with the server is an error.
    pub fn take(&mut self, name: &str, file: &Path) -> Result<()> {
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
    pub fn finish(mut self) -> Result<()> {
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
