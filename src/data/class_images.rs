//! Files for generated class images, named as PEFT's script names them, but never over another file.

use crate::error::{Error, Result};
use image::codecs::jpeg::JpegEncoder;
use image::RgbImage;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The files are training data: finer than Pillow's 75.
const JPEG_QUALITY: u8 = 95;

/// `FOLDER/{index}-{SHA-256 of the pixels}.jpg`, the index raised until no file begins with it.
///
/// An image that a user deleted then never makes a later one land on a file that is already there.
pub fn class_image_path(folder: &Path, index: usize, image: &RgbImage) -> Result<PathBuf> {
    let digest: String = Sha256::digest(image.as_raw()).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut taken = std::collections::BTreeSet::new();
    let failed = |source| Error::io("read", folder, source);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        taken.extend(name.to_string_lossy().split('-').next().and_then(|first| first.parse::<usize>().ok()));
    }
    let mut free = index;
    while taken.contains(&free) {
        free += 1;
    }
    Ok(folder.join(format!("{free}-{digest}.jpg")))
}

/// Writes a generated class image, whole or not at all, and says where.
///
/// `index` is the number of images that are already there; the folder is made where it is missing.
pub fn save_class_image(folder: &Path, index: usize, image: &RgbImage) -> Result<PathBuf> {
    fs::create_dir_all(folder).map_err(|source| Error::io("create", folder, source))?;
    let path = class_image_path(folder, index, image)?;
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY)
        .encode_image(image)
        .map_err(|error| Error::file(&path, format!("cannot be encoded: {error}")))?;
    // Hidden, so that a run that is killed here leaves nothing that counts as an image.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = folder.join(format!(".{name}.part"));
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
    fn a_class_image_never_lands_on_a_file_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let class = folder.path().join("class");
        assert_eq!(count_images(&class).unwrap(), 0);
        let image = RgbImage::from_pixel(8, 8, image::Rgb([9, 80, 200]));
        let paths: Vec<_> = (0..3).map(|index| save_class_image(&class, index, &image).unwrap()).collect();
        assert_eq!(count_images(&class).unwrap(), 3);
        fs::remove_file(&paths[0]).unwrap();
        let again = save_class_image(&class, count_images(&class).unwrap(), &image).unwrap();
        assert!(again.file_name().unwrap().to_string_lossy().starts_with("3-"), "{again:?}");
        assert_eq!(count_images(&class).unwrap(), 3);
        assert_eq!(fs::read_dir(&class).unwrap().count(), 3);
    }
}
