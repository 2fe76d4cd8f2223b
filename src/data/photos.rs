//! A folder of photos with their captions: listed by name, decoded once, kept at the size that is trained on.

use super::photo_decoding;
use super::photo_transform::{crop_range, resize_shorter_side, CropRange};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::regular_file::{self, FileKind};
use image::RgbImage;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;

/// Resized photos of a folder that stay in memory, in bytes; those beyond are decoded again when they are needed.
const KEPT_BYTES: usize = 512 << 20;
/// Threads that decode at once: each holds a photo at its full size.
const DECODERS: usize = 8;

/// One photo, its shorter side resized to the training resolution.
#[derive(Debug)]
pub struct Photo {
    path: PathBuf,
    caption: Option<String>,
    width: u32,
    height: u32,
    resized: Option<Arc<RgbImage>>,
}

impl Photo {
    /// The image file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What `NAME.txt` beside the image says, trimmed.
    pub fn caption(&self) -> Option<&str> {
        self.caption.as_deref()
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
        let image = resized(&self.path, self.width.min(self.height))?;
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

/// The photos of one folder.
#[derive(Debug)]
pub struct PhotoFolder {
    /// In the order of their file names.
    pub photos: Vec<Photo>,
    /// A sentence for each file that was skipped because it is no image or is damaged.
    pub warnings: Vec<String>,
    /// The shorter side of every photo, in pixels.
    pub size: u32,
}

impl PhotoFolder {
    /// Reads every image of `folder`, its shorter side resized to `size` pixels.
    ///
    /// Hidden files, folders and `.txt` files are passed over in silence; other files that are no image are named in
    /// [`PhotoFolder::warnings`]. No image at all is an error.
    pub fn open(folder: &Path, size: u32) -> Result<Self> {
        if size == 0 {
            return Err(Error::invalid("the resolution must be positive"));
        }
        let paths = candidates(folder)?;
        let decoded = decode_all(&paths, size);
        interrupt::check()?;
        let mut opened = Self { photos: Vec::new(), warnings: Vec::new(), size };
        let mut kept = 0;
        for (path, image) in paths.into_iter().zip(decoded) {
            match image {
                Ok((width, height, resized)) => {
                    // Threads decide in any order what still fits; here the first ones by name do.
                    let bytes = resized.as_ref().map_or(0, |image| image.as_raw().len());
                    let resized = resized.filter(|_| kept + bytes <= KEPT_BYTES).map(Arc::new);
                    kept += resized.as_ref().map_or(0, |image| image.as_raw().len());
                    let caption = caption(&path)?;
                    opened.photos.push(Photo { path, caption, width, height, resized });
                }
                Err(message) => opened.warnings.push(format!("{}: {message}; it is skipped", path.display())),
            }
        }
        if opened.photos.is_empty() {
            let found = match opened.warnings.first() {
                Some(first) => format!("no image that can be read ({first})"),
                None => "no image in this folder".to_owned(),
            };
            return Err(Error::file(folder, format!("{found}; put JPEG, PNG, WebP, BMP, GIF or TIFF files there")));
        }
        Ok(opened)
    }
}

/// The number of files in `folder` that begin like an image; 0 where there is no such folder.
pub fn count_images(folder: &Path) -> Result<usize> {
    if !folder.exists() {
        return Ok(0);
    }
    Ok(candidates(folder)?.iter().filter(|path| photo_decoding::looks_like_an_image(path)).count())
}

/// The files of `folder` that should be images, by name.
fn candidates(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source| Error::io("read", folder, source);
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (name, path) = (entry.file_name(), entry.path());
        let hidden = name.as_encoded_bytes().starts_with(b".");
        let text = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt"));
        if !hidden && !text && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// What a decoding thread hands back: the resized dimensions and, where there is room, the pixels.
type Decoded = std::result::Result<(u32, u32, Option<RgbImage>), String>;

/// Decodes on all cores; the results are in the order of `paths`.
fn decode_all(paths: &[PathBuf], size: u32) -> Vec<Decoded> {
    let workers = thread::available_parallelism().map_or(1, usize::from).min(DECODERS).min(paths.len());
    let (next, kept, interrupt) = (AtomicUsize::new(0), AtomicUsize::new(0), interrupt::watched());
    let work = || {
        let mut done = Vec::new();
        while let Some((index, path)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, paths.get(i)?)))
        {
            if interrupt.requested() {
                break;
            }
            let decoded = resized(path, size).map_err(|error| reason(&error, path)).map(|image| {
                let bytes = image.as_raw().len();
                let fits = kept.fetch_add(bytes, Ordering::Relaxed) + bytes <= KEPT_BYTES;
                (image.width(), image.height(), fits.then_some(image))
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

fn resized(path: &Path, size: u32) -> Result<RgbImage> {
    resize_shorter_side(photo_decoding::decode(path)?, size)
}

/// The error without the path, which its reader names itself.
fn reason(error: &Error, path: &Path) -> String {
    let text = error.to_string();
    text.strip_prefix(&format!("{}: ", path.display())).unwrap_or(&text).to_owned()
}

/// `NAME.txt` beside the image, trimmed.
fn caption(image: &Path) -> Result<Option<String>> {
    let path = image.with_extension("txt");
    match regular_file::read_if_there(&path, FileKind::CAPTION)?.map(String::from_utf8) {
        Some(Ok(text)) => Ok(Some(text.trim_start_matches('\u{feff}').trim().to_owned())),
        Some(Err(_)) => Err(Error::file(&path, "is a caption, but not UTF-8 text; save it as UTF-8")),
        None => Ok(None),
    }
}
