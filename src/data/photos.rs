//! A folder of photos with their captions: listed by name, decoded once, kept at the size that is trained on.

use super::photo_decoding;
use super::photo_files::{PhotoFile, PhotoFiles};
use super::photo_transform::{crop_range, resize_shorter_side, CropRange};
use crate::error::{Error, Result};
use crate::interrupt;
use image::RgbImage;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;

/// Resized photos of a folder that stay in memory, in bytes; those beyond are decoded again when they are needed.
const KEPT_BYTES: usize = 512 << 20;
/// Files in which other tools keep captions.
const METADATA: [&str; 9] = ["json", "jsonl", "csv", "tsv", "parquet", "captions", "cap", "tags", "md"];
/// Files that one warning names.
const NAMED: usize = 3;
/// Threads that decode at once: each holds a photo at its full size.
const DECODERS: usize = 8;

/// One photo, its shorter side resized to the training resolution.
#[derive(Debug)]
pub struct Photo {
    path: PathBuf,
    name: String,
    repeats: usize,
    caption: Option<String>,
    original: (u32, u32),
    width: u32,
    height: u32,
    resized: Option<Arc<RgbImage>>,
}

impl Photo {
    /// The image file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path in the folder of photos.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How often an epoch shows it.
    pub fn repeats(&self) -> usize {
        self.repeats
    }

    /// What its caption says, trimmed.
    pub fn caption(&self) -> Option<&str> {
        self.caption.as_deref()
    }

    /// `(width, height)` before resizing, in pixels, upright.
    pub fn original_dimensions(&self) -> (u32, u32) {
        self.original
    }

    /// `(width, height)` after resizing, in pixels.
    pub fn dimensions(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// Where a square crop at the training resolution can start.
    pub fn crop_range(&self) -> CropRange {
        crop_range(self.width, self.height, self.width.min(self.height))
    }

    /// The resized photo: from memory, or decoded again.
    pub fn resized(&self) -> Result<Arc<RgbImage>> {
        if let Some(image) = &self.resized {
            return Ok(image.clone());
        }
        let (_, image) = resized(&self.path, self.width.min(self.height))?;
        match image.dimensions() == self.dimensions() {
            true => Ok(Arc::new(image)),
            false => Err(Error::file(&self.path, "changed since the start of the run")),
        }
    }

    /// Lets go of the pixels; [`Photo::resized`] decodes them again.
    pub fn forget_pixels(&mut self) {
        self.resized = None;
    }
}

/// The photos of a folder and of the folders inside it.
#[derive(Debug)]
pub struct PhotoFolder {
    /// In the order of their paths.
    pub photos: Vec<Photo>,
    /// A sentence for each file or folder that was left out, and for each caption that is not used.
    pub warnings: Vec<String>,
    /// The shorter side of every photo, in pixels.
    pub size: u32,
}

impl PhotoFolder {
    /// Reads every image of `folder` and of the folders inside it with its caption, its shorter side resized to `size` pixels.
    pub fn open(folder: &Path, size: u32) -> Result<Self> {
        let mut files = PhotoFiles::list(folder, &[])?;
        files.read_captions()?;
        Self::decode(folder, files, size)
    }

    /// The same of the `files` of `folder`. Files that are no image are named in [`PhotoFolder::warnings`]; no image at all is
    /// an error.
    pub fn decode(folder: &Path, files: PhotoFiles, size: u32) -> Result<Self> {
        if size == 0 {
            return Err(Error::invalid("the resolution must be positive"));
        }
        let decoded = decode_all(&files.files, size);
        interrupt::check()?;
        let (mut photos, mut skipped) = (Vec::new(), Vec::<(PathBuf, String)>::new());
        let mut kept = 0;
        for (file, image) in files.files.into_iter().zip(decoded) {
            match image {
                Ok((original, (width, height), resized)) => {
                    // Threads decide in any order what still fits; here the first ones by name do.
                    let bytes = resized.as_ref().map_or(0, |image| image.as_raw().len());
                    let resized = resized.filter(|_| kept + bytes <= KEPT_BYTES).map(Arc::new);
                    kept += resized.as_ref().map_or(0, |image| image.as_raw().len());
                    let PhotoFile { path, name, repeats, caption, .. } = file;
                    let caption = caption.map(|(_, text)| text);
                    photos.push(Photo { path, name, repeats, caption, original, width, height, resized });
                }
                Err(message) => skipped.push((file.path, message)),
            }
        }
        if photos.is_empty() {
            let first = skipped.first().map(|(path, message)| format!("{} {message}", path.display()));
            return Err(no_image(folder, first.as_ref()));
        }
        let mut warnings = skipped_files(folder, &skipped);
        warnings.extend(files.warnings);
        Ok(Self { photos, warnings, size })
    }
}

/// What is told of the files of `folder` that are no images, each with the reason: a line for each reason, with the first names.
fn skipped_files(folder: &Path, skipped: &[(PathBuf, String)]) -> Vec<String> {
    let mut by_reason: Vec<(&str, Vec<&Path>)> = Vec::new();
    for (path, reason) in skipped {
        match by_reason.iter_mut().find(|(known, _)| known == reason) {
            Some((_, paths)) => paths.push(path),
            None => by_reason.push((reason, vec![path])),
        }
    }
    let line = |(reason, paths): (&str, Vec<&Path>)| match paths.as_slice() {
        [path] => format!("{} {reason}; it is skipped", path.display()),
        _ => {
            let name = |path: &&Path| path.strip_prefix(folder).unwrap_or(path).display().to_string();
            let names = paths.iter().take(NAMED).map(name).collect::<Vec<_>>().join(", ");
            let more = if paths.len() > NAMED { ", …" } else { "" };
            format!("{} files in {} are skipped ({names}{more}): each {reason}", paths.len(), folder.display())
        }
    };
    by_reason.into_iter().map(line).collect()
}

/// The error of a `folder` without an image; `skipped` says what the first file in it is.
pub fn no_image(folder: &Path, skipped: Option<&String>) -> Error {
    let found = match skipped {
        Some(first) => format!("no image that can be read ({first})"),
        None => "no image in this folder".to_owned(),
    };
    Error::file(folder, format!("{found}; put JPEG, PNG, WebP, BMP, GIF or TIFF files there"))
}

/// The number of files in `folder` and the folders inside it that begin like an image; 0 where there is no such folder.
pub fn count_images(folder: &Path) -> Result<usize> {
    count_images_but(folder, &[])
}

/// The same without those in the folders `apart`.
pub fn count_images_but(folder: &Path, apart: &[&Path]) -> Result<usize> {
    if !folder.exists() {
        return Ok(0);
    }
    let files = PhotoFiles::list(folder, apart)?.files;
    Ok(files.iter().filter(|file| photo_decoding::looks_like_an_image(&file.path)).count())
}

/// What a decoding thread hands back: the dimensions before and after resizing and, where there is room, the pixels.
type Decoded = std::result::Result<((u32, u32), (u32, u32), Option<RgbImage>), String>;

/// Decodes on all cores; the results are in the order of `files`.
fn decode_all(files: &[PhotoFile], size: u32) -> Vec<Decoded> {
    let workers = thread::available_parallelism().map_or(1, usize::from).min(DECODERS).min(files.len());
    let (next, kept, interrupt) = (AtomicUsize::new(0), AtomicUsize::new(0), interrupt::watched());
    let work = || {
        let mut done = Vec::new();
        while let Some((index, file)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, files.get(i)?)))
        {
            if interrupt.requested() {
                break;
            }
            let path = &file.path;
            let decoded = resized(path, size).map_err(|error| reason(&error, path)).map(|(original, image)| {
                let bytes = image.as_raw().len();
                let fits = kept.fetch_add(bytes, Ordering::Relaxed) + bytes <= KEPT_BYTES;
                (original, image.dimensions(), fits.then_some(image))
            });
            done.push((index, decoded));
        }
        done
    };
    let mut results: Vec<(usize, Decoded)> = thread::scope(|scope| {
        // Where no more threads can be made, those that there are do the work.
        let spawn = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
        let handles: Vec<_> = (1..workers).map_while(spawn).collect();
        let own = work();
        handles.into_iter().filter_map(|handle| handle.join().ok()).flatten().chain(own).collect()
    });
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, decoded)| decoded).collect()
}

/// The photo's dimensions and, resized, the photo.
fn resized(path: &Path, size: u32) -> Result<((u32, u32), RgbImage)> {
    let photo = photo_decoding::decode(path)?;
    Ok((photo.dimensions(), resize_shorter_side(photo, size)?))
}

/// The error without the path, which its reader names itself.
fn reason(error: &Error, path: &Path) -> String {
    let text = error.to_string();
    let text = text.strip_prefix(&path.display().to_string()).unwrap_or(&text).trim_start_matches([':', ' ']);
    let is_metadata = path.extension().is_some_and(|end| METADATA.iter().any(|data| end.eq_ignore_ascii_case(data)));
    match is_metadata {
        true => {
            "is not an image; captions are read from a NAME.txt or NAME.caption next to each photo, not from this file"
                .to_owned()
        }
        false => text.to_owned(),
    }
}
