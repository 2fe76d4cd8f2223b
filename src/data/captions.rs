//! Which text is whose caption, and what it says.
//!
//! Of `photo.png` these are, first of all that are there: `photo.txt`, `photo.caption`, `photo.png.txt`, `photo.png.caption`.
//! Upper and lower case are the same, but a text whose name is a photo's to the letter is no other photo's.

use crate::error::{Error, Result};
use crate::regular_file::{self, FileKind};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// Endings of captions, in the order in which they are taken.
const ENDINGS: [&str; 2] = ["txt", "caption"];

/// What to do where a text could be a caption and is none.
const NAMING: &str = "a caption has its photo's name: photo.txt or photo.caption next to photo.png";

/// Whether a file's name is that of a caption.
pub fn is_caption(path: &Path) -> bool {
    ending(path).is_some()
}

/// The place of a caption's ending in [`ENDINGS`].
fn ending(path: &Path) -> Option<usize> {
    let extension = path.extension()?;
    ENDINGS.iter().position(|ending| extension.eq_ignore_ascii_case(ending))
}

/// The texts of a folder, by the photos that they describe.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Matched {
    /// For each photo the texts that could be its caption, the one to take first.
    pub captions: Vec<Vec<PathBuf>>,
    /// A sentence for each text that is the caption of no photo.
    pub strays: Vec<String>,
}

impl Matched {
    /// Finds for each of `texts` its photos among `photos`, both of one folder.
    pub fn of(photos: &[PathBuf], texts: &[PathBuf]) -> Self {
        let names = Names::of(photos);
        let mut ranked: Vec<Vec<(Rank, &PathBuf)>> = vec![Vec::new(); photos.len()];
        let mut strays = Vec::new();
        for text in texts {
            match names.owners(text, photos) {
                Ok((rank, owners)) => owners.iter().for_each(|&photo| ranked[photo].push((rank, text))),
                Err(why) => strays.push(format!("{}: {why}", text.display())),
            }
        }
        let in_order = |mut texts: Vec<(Rank, &PathBuf)>| {
            texts.sort();
            texts.into_iter().map(|(_, text)| text.clone()).collect()
        };
        Self { captions: ranked.into_iter().map(in_order).collect(), strays }
    }
}

/// The order in which texts are taken: those of the photo's name without its ending, by their own endings, those that have its
/// letters in the same case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    with_photos_ending: bool,
    ending: usize,
    in_other_case: bool,
}

/// Photos by what their captions can be called.
struct Names {
    /// By their names without and with their endings, to the letter.
    exact: [BTreeMap<OsString, Vec<usize>>; 2],
    /// The same in lower case.
    lower: [BTreeMap<String, Vec<usize>>; 2],
}

impl Names {
    fn of(photos: &[PathBuf]) -> Self {
        let mut names = Self { exact: Default::default(), lower: Default::default() };
        for (photo, path) in photos.iter().enumerate() {
            for (which, name) in both_names(path).into_iter().enumerate() {
                names.exact[which].entry(name.to_owned()).or_default().push(photo);
                names.lower[which].entry(name.to_string_lossy().to_lowercase()).or_default().push(photo);
            }
        }
        names
    }

    /// The photos whose caption `text` is, or why it is none's.
    fn owners(&self, text: &Path, photos: &[PathBuf]) -> std::result::Result<(Rank, &[usize]), String> {
        let (name, ending) = (text.file_stem().unwrap_or_default(), ending(text).unwrap_or_default());
        let rank = |which: usize, in_other_case| Rank { with_photos_ending: which == 1, ending, in_other_case };
        let exact = self.exact.iter().enumerate().find_map(|(which, names)| Some((which, names.get(name)?)));
        if let Some((which, owners)) = exact {
            return Ok((rank(which, false), owners));
        }
        let lower = name.to_string_lossy().to_lowercase();
        let alike = self.lower.iter().enumerate().find_map(|(which, names)| Some((which, names.get(&lower)?)));
        let Some((which, owners)) = alike else { return Err(format!("belongs to no photo; {NAMING}")) };
        let called = |photo: &usize| both_names(&photos[*photo])[which];
        match owners.iter().find(|other| called(other) != called(&owners[0])) {
            None => Ok((rank(which, true), owners)),
            Some(other) => {
                let [one, other] = [&owners[0], other].map(|&photo| photos[photo].file_name().unwrap_or_default());
                let names = format!("{} or of {}", one.display(), other.display());
                Err(format!("could be the caption of {names}, and is used for neither; {NAMING}"))
            }
        }
    }
}

/// A photo's name without and with its ending.
fn both_names(photo: &Path) -> [&OsStr; 2] {
    [photo.file_stem().unwrap_or_default(), photo.file_name().unwrap_or_default()]
}

/// What a caption says, trimmed; none where it says nothing.
pub fn read(path: &Path) -> Result<Option<String>> {
    let bytes = regular_file::read(path, FileKind::CAPTION)?;
    let text = decoded(&bytes)
        .filter(|text| !text.contains('\0'))
        .ok_or_else(|| Error::file(path, "is a caption, but not UTF-8 text; save it as UTF-8"))?;
    let blank = |c: char| c.is_whitespace() || "\u{feff}\u{200b}\u{2060}".contains(c);
    let text = text.trim_matches(blank);
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

/// UTF-8, or UTF-16 where the bytes begin with its mark.
fn decoded(bytes: &[u8]) -> Option<String> {
    let utf16 = |of: fn([u8; 2]) -> u16| {
        let (pairs, rest) = bytes[2..].as_chunks::<2>();
        let units: Vec<u16> = pairs.iter().map(|&pair| of(pair)).collect();
        String::from_utf16(&units).ok().filter(|_| rest.is_empty())
    };
    match bytes {
        [0xff, 0xfe, ..] => utf16(u16::from_le_bytes),
        [0xfe, 0xff, ..] => utf16(u16::from_be_bytes),
        _ => std::str::from_utf8(bytes).ok().map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn matched(photos: &[&str], texts: &[&str]) -> (Vec<Vec<String>>, Vec<String>) {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let matched = Matched::of(&paths(photos), &paths(texts));
        let names = |texts: Vec<PathBuf>| texts.iter().map(|text| text.display().to_string()).collect();
        (matched.captions.into_iter().map(names).collect(), matched.strays)
    }

    #[test]
    fn every_usual_name_is_found_and_the_plainest_is_taken_first() {
        for text in ["dog.txt", "dog.TXT", "dog.caption", "Dog.txt", "DOG.Caption", "dog.png.txt", "Dog.PNG.caption"] {
            assert_eq!(matched(&["dog.png"], &[text]).0, [[text]], "{text}");
        }
        let all = ["dog.caption", "dog.png.caption", "dog.png.txt", "dog.txt", "DOG.txt"];
        let order = ["dog.txt", "DOG.txt", "dog.caption", "dog.png.txt", "dog.png.caption"];
        assert_eq!(matched(&["dog.png"], &all).0, [order]);
        // One text for two photos of a name, as ever.
        assert_eq!(matched(&["dog.jpg", "dog.png"], &["dog.txt"]).0, [["dog.txt"], ["dog.txt"]]);
        assert_eq!(matched(&["v1.2.png"], &["v1.2.txt", "v1.txt"]).0, [["v1.2.txt"]]);
    }

    #[test]
    fn a_text_is_no_other_photos_where_names_differ_by_case_alone() {
        let (captions, strays) = matched(&["A.jpg", "a.jpg"], &["A.txt", "a.txt"]);
        assert_eq!((captions, strays.len()), (vec![vec!["A.txt".to_owned()], vec!["a.txt".to_owned()]], 0));
        assert_eq!(matched(&["A.jpg", "a.jpg"], &["a.txt"]).0, [vec![], vec!["a.txt".to_owned()]]);
        let (captions, strays) = matched(&["Dog.jpg", "dog.jpg"], &["DOG.txt"]);
        assert!(captions.iter().all(Vec::is_empty));
        assert!(strays[0].contains("DOG.txt") && strays[0].contains("Dog.jpg or of dog.jpg"), "{strays:?}");
        // The name without its ending is `dog.png` here, so the text is this photo's and not that of dog.png.
        assert_eq!(matched(&["dog.png", "dog.png.png"], &["dog.png.txt"]).0, [vec![], vec!["dog.png.txt".to_owned()]]);
    }

    #[test]
    fn a_text_without_a_photo_is_named_with_what_a_caption_is_called() {
        let (captions, strays) = matched(&["dog.png"], &["cat.txt", "README.txt", "dog.jpg.txt"]);
        assert!(captions[0].is_empty());
        let named = |name: &str| strays.iter().any(|stray| stray.starts_with(name) && stray.contains("photo.caption"));
        assert!(strays.len() == 3 && ["cat.txt", "README.txt", "dog.jpg.txt"].into_iter().all(named), "{strays:?}");
    }

    #[test]
    fn captions_are_read_in_the_encodings_of_editors_and_blank_ones_say_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dog.txt");
        let say = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read(&path)
        };
        let utf16 = |mark: u16, of: fn(u16) -> [u8; 2]| -> Vec<u8> {
            std::iter::once(mark).chain("un café\r\n".encode_utf16()).flat_map(of).collect()
        };
        let whole = Some("un café".to_owned());
        assert_eq!(say("\u{feff} un café \r\n".as_bytes()).unwrap(), whole);
        assert_eq!(say(&utf16(0xfeff, u16::to_le_bytes)).unwrap(), whole);
        assert_eq!(say(&utf16(0xfeff, u16::to_be_bytes)).unwrap(), whole);
        for blank in [
            &b""[..],
            b" \r\n\t",
            "\u{feff}".as_bytes(),
            "\u{feff}\r\n\u{feff}".as_bytes(),
            b"\xff\xfe",
            b"\xfe\xff\0 ",
        ] {
            assert_eq!(say(blank).unwrap(), None, "{blank:?}");
        }
        // Latin-1, UTF-16 without its mark, UTF-32, half a character.
        for bad in [&b"caf\xe9"[..], b"a\0b\0", b"\xff\xfe\0\0a\0\0\0", b"\xff\xfea", b"\xff\xfe\0\xd8a\0"] {
            let error = say(bad).unwrap_err().to_string();
            assert!(error.contains("dog.txt") && error.contains("UTF-8"), "{error}");
        }
    }
}
