//! Where drawn images go: names that replace nothing unless that is asked for.

use crate::error::{Error, Result};
use crate::regular_file::{self, FileKind};
use crate::sample::drawn_image::PARAMETERS;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// The name of an image where none is given.
const NAME: &str = "image";

/// Whether `output` names a PNG file, and not a folder.
pub fn is_png(output: &Path) -> bool {
    output.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("png"))
}

/// The files of `count` images for `--output`: one file, or numbered files. With `overwrite` they replace what is there. Without it,
/// a new image goes beside an earlier drawn one under the next free number, which the warning that comes along says, and any other
/// file in the way is an error.
pub fn output_paths(output: Option<&Path>, count: usize, overwrite: bool) -> Result<(Vec<PathBuf>, Option<String>)> {
    let Some(output) = output else { return Ok((free_names(Path::new(NAME), count), None)) };
    if let (false, Some(ending)) = (is_png(output) || output.is_dir(), output.extension()) {
        let ending = ending.to_string_lossy();
        if image::ImageFormat::from_extension(ending.as_ref()).is_some() {
            return Err(Error::invalid(format!(
                "⟨output⟩: images are PNG, not {ending}; name a .png file or a folder"
            )));
        }
    }
    if !is_png(output) {
        create(output)?;
        let free = (0..).map(|i| output.join(format!("{i:05}.png"))).filter(|path| !is_taken(path));
        return Ok((free.take(count).collect(), None));
    }
    let stem = output.with_extension("");
    let paths = numbered(&stem, output, count);
    let taken: Vec<&PathBuf> = paths.iter().filter(|path| !overwrite && is_taken(path)).collect();
    if let Some(other) = taken.iter().find(|path| !is_drawn(path)) {
        return Err(Error::is_there(other, "⟨output⟩"));
    }
    create(output.parent().unwrap_or(Path::new("")))?;
    let Some(&taken) = taken.first() else { return Ok((paths, None)) };
    let free = free_names(&stem, count);
    let new = free.first().map_or(String::new(), |path| path.display().to_string());
    let text =
        format!("{} already exists and stays; the new image is {new} (⟨overwrite⟩ replaces instead)", taken.display());
    Ok((free, Some(text)))
}

fn create(folder: &Path) -> Result<()> {
    match folder.as_os_str().is_empty() {
        true => Ok(()),
        false => std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e)),
    }
}

/// Whether something is at `path`, be it a link to nothing.
fn is_taken(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

/// Whether the file `path` is an image with the parameters that it was drawn with.
fn is_drawn(path: &Path) -> bool {
    let Ok(file) = regular_file::open(path, FileKind::PHOTO) else { return false };
    let Ok(reader) = png::Decoder::new(BufReader::new(file)).read_info() else { return false };
    let about = reader.info();
    let mut keywords = about.uncompressed_latin1_text.iter().map(|text| text.keyword.as_str());
    keywords.any(|keyword| keyword == PARAMETERS) || about.utf8_text.iter().any(|text| text.keyword == PARAMETERS)
}

/// `one`, or where there are to be several `STEM-0.png`, `STEM-1.png`, …
fn numbered(stem: &Path, one: &Path, count: usize) -> Vec<PathBuf> {
    match count {
        1 => vec![one.to_owned()],
        _ => (0..count).map(|i| with_ending(stem, &format!("-{i}.png"))).collect(),
    }
}

/// `STEM.png`, `STEM-2.png`, …: the first that is free, with all its numbers.
fn free_names(stem: &Path, count: usize) -> Vec<PathBuf> {
    let stems = std::iter::once(stem.to_owned()).chain((2..).map(|number| with_ending(stem, &format!("-{number}"))));
    let mut names = stems.map(|stem| numbered(&stem, &with_ending(&stem, ".png"), count));
    names.find(|names| !names.iter().any(|path| is_taken(path))).unwrap_or_default()
}

fn with_ending(stem: &Path, ending: &str) -> PathBuf {
    let mut name = stem.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::drawn_image::png_with_parameters;
    use image::RgbImage;
    use std::fs;

    #[test]
    fn a_new_image_goes_beside_a_drawn_one_and_never_over_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let paths = |name: &str, count, overwrite| output_paths(Some(&at(name)), count, overwrite);
        let drawn = |parameters: &str| png_with_parameters(&RgbImage::new(8, 8), parameters).unwrap();
        assert_eq!(paths("a.png", 1, false).unwrap(), (vec![at("a.png")], None));
        for (name, parameters) in [("a.png", "a dog"), ("a-2.png", "ein Bär 🐻"), ("b-1.png", "a dog")] {
            fs::write(at(name), drawn(parameters)).unwrap();
        }
        let (found, warning) = paths("a.png", 1, false).unwrap();
        assert_eq!(found, [at("a-3.png")]);
        let warning = warning.unwrap();
        assert!(warning.contains("a.png already exists") && warning.contains("a-3.png"), "{warning}");
        assert_eq!(paths("a.png", 1, true).unwrap(), (vec![at("a.png")], None));
        assert_eq!(paths("b.png", 2, false).unwrap().0, [at("b-2-0.png"), at("b-2-1.png")]);
        // A photo, a text, a link to nothing: somebody's.
        RgbImage::new(8, 8).save(at("photo.png")).unwrap();
        fs::write(at("text.png"), "mine").unwrap();
        std::os::unix::fs::symlink("nowhere", at("link.png")).unwrap();
        for name in ["photo.png", "text.png", "link.png"] {
            let error = paths(name, 1, false).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("⟨overwrite⟩"), "{error}");
        }
    }

    #[test]
    fn images_in_a_folder_take_free_numbers() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("00001.png"), "mine").unwrap();
        let (found, _) = output_paths(Some(folder.path()), 2, false).unwrap();
        assert_eq!(found, [folder.path().join("00000.png"), folder.path().join("00002.png")]);
        assert!(output_paths(Some(&folder.path().join("a.jpg")), 1, false).is_err());
    }
}
