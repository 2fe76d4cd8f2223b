//! Files for generated class images, named as PEFT's script names them, but never over another file.

use crate::error::{Error, Result};
use crate::plain_text::hex;
use image::codecs::jpeg::JpegEncoder;
use image::RgbImage;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The files are training data: finer than Pillow's 75.
const JPEG_QUALITY: u8 = 95;

/// What the hidden name of an unfinished image ends in.
const UNFINISHED: &str = ".part";

/// The numbers, ascending, of the `count` images to draw next: the least that no file of `folder` has. An image that a
/// user deleted is drawn again as it was, and never lands on a file that is there.
pub fn free_numbers(folder: &Path, count: usize) -> Result<Vec<usize>> {
    let taken: BTreeSet<usize> = names(folder)?.iter().filter_map(|name| number_of(name)).collect();
    Ok((0..).filter(|number| !taken.contains(number)).take(count).collect())
}

/// Removes what a run that was killed left: hidden images that it had not finished.
pub fn remove_unfinished(folder: &Path) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for name in names(folder)? {
        let inner = name.strip_prefix('.').and_then(|name| name.strip_suffix(UNFINISHED));
        if inner.is_some_and(|inner| inner.ends_with(".jpg") && number_of(inner).is_some()) {
            let path = folder.join(&name);
            fs::remove_file(&path).map_err(|source| Error::io("remove", &path, source))?;
        }
    }
    Ok(())
}

/// The number of a name `{number}-{SHA-256}.jpg`.
fn number_of(name: &str) -> Option<usize> {
    name.split_once('-')?.0.parse().ok()
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let failed = |source| Error::io("read", folder, source);
    let entries = fs::read_dir(folder).map_err(failed)?;
    entries.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
}

/// Writes the generated class image of `number`, whole or not at all, to `FOLDER/{number}-{SHA-256 of the pixels}.jpg`,
/// and says where.
pub fn save_class_image(folder: &Path, number: usize, image: &RgbImage) -> Result<PathBuf> {
    let digest = hex(&Sha256::digest(image.as_raw()));
    let path = folder.join(format!("{number}-{digest}.jpg"));
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY)
        .encode_image(image)
        .map_err(|error| Error::file(&path, format!("cannot be encoded: {error}")))?;
    // Hidden, so that a run that is killed here leaves nothing that counts as an image.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = folder.join(format!(".{name}{UNFINISHED}"));
    let written = fs::File::create(&unfinished)
        .and_then(|mut file| file.write_all(&jpeg).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&unfinished, &path));
    if let Err(source) = written {
        fs::remove_file(&unfinished).ok();
        return Err(Error::io("write", &path, source));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::photos::count_images;

    #[test]
    fn a_deleted_image_is_drawn_again_and_none_lands_on_a_file_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let image = RgbImage::from_pixel(8, 8, image::Rgb([9, 80, 200]));
        for name in ["mine.jpg", "2-mine.png"] {
            image.save(folder.path().join(name)).unwrap();
        }
        let numbers = free_numbers(folder.path(), 3).unwrap();
        assert_eq!(numbers, [0, 1, 3]);
        let paths: Vec<_> = numbers.iter().map(|&n| save_class_image(folder.path(), n, &image).unwrap()).collect();
        assert_eq!(count_images(folder.path()).unwrap(), 5);
        fs::remove_file(&paths[1]).unwrap();
        assert_eq!(free_numbers(folder.path(), 2).unwrap(), [1, 4]);
    }

    #[test]
    fn what_a_killed_run_had_not_finished_goes_and_other_hidden_files_stay() {
        let folder = tempfile::tempdir().unwrap();
        let names = [".3-0ab4.jpg.part", ".film.mkv.part", ".3-notes.txt", "3-0ab4.jpg"];
        names.iter().for_each(|name| fs::write(folder.path().join(name), "half").unwrap());
        remove_unfinished(folder.path()).unwrap();
        let left = |name: &str| folder.path().join(name).exists();
        assert_eq!(names.map(left), [false, true, true, true]);
        remove_unfinished(&folder.path().join("absent")).unwrap();
    }
}
