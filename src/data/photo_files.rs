//! What a folder of photos holds, before anything is decoded: photos with their captions, in the folder and in folders inside it.
//!
//! A folder inside that is called `10_sks dog`, as kohya's trainer has them, shows its photos ten times an epoch.

use super::captions::{self, Matched};
use super::photo_decoding;
use crate::error::{Error, Result};
use image::ImageFormat;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders inside folders that are read.
const MAX_DEPTH: usize = 8;
/// More files than this are no photos of a subject, but somebody's home folder.
const MAX_FILES: usize = 200_000;
/// More repeats than anyone wants of a photo: a larger number in a folder's name is a year.
const MAX_REPEATS: usize = 1000;
/// How many files of one kind are named, before the rest is counted.
const NAMED: usize = 5;

/// What systems put beside photos.
const CLUTTER: [&str; 3] = ["thumbs.db", "ehthumbs.db", "desktop.ini"];
const FOLDERS_OF_SYSTEMS: [&str; 6] =
    ["__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"];
/// What a folder holds that a run wrote, or a model.
const NO_PHOTOS: [&str; 3] = ["run.json", "model_index.json", "adapter_config.json"];

/// A file that should be a photo.
#[derive(Debug)]
pub struct PhotoFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its path in the folder that was listed, with `/` between names.
    pub name: String,
    /// How often an epoch shows it.
    pub repeats: usize,
    /// What its caption says, once captions are read, and the file that says it.
    pub caption: Option<(PathBuf, String)>,
    captions: Vec<PathBuf>,
}

/// The files of a folder and of the folders inside it.
#[derive(Debug)]
pub struct PhotoFiles {
    /// In the order of their paths.
    pub files: Vec<PhotoFile>,
    /// A sentence for each thing that is left out.
    pub warnings: Vec<String>,
    strays: Vec<String>,
}

/// `lines`, or the first of them and how many more there are `of` a kind.
pub fn first_few(mut lines: Vec<String>, of: &str) -> Vec<String> {
    if lines.len() > NAMED + 1 {
        let rest = lines.len() - NAMED;
        lines.truncate(NAMED);
        lines.push(format!("and {rest} more {of}"));
    }
    lines
}

impl PhotoFiles {
    /// Lists `folder` and the folders inside it, but not those `apart`, which are for something else.
    ///
    /// Hidden files and folders and what systems leave beside photos are passed over in silence.
    pub fn list(folder: &Path, apart: &[&Path]) -> Result<Self> {
        let mut walk = Walk {
            root: folder,
            read: apart.iter().filter_map(|path| path.canonicalize().ok()).collect(),
            listed: Self { files: Vec::new(), warnings: Vec::new(), strays: Vec::new() },
        };
        // Whatever else it is for, this one was named.
        walk.read.extend(folder.canonicalize());
        let inside = entries(folder).map_err(|source| Error::io("read", folder, source))?;
        walk.refuse_kohyas_parent(&inside)?;
        walk.folder(inside, 1, 0)?;
        let mut listed = walk.listed;
        listed.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(listed)
    }

    /// Reads the photos' captions. A blank one is none.
    pub fn read_captions(&mut self) -> Result<()> {
        let (mut blank, mut surplus) = (Vec::new(), Vec::new());
        for photo in &mut self.files {
            for text in &photo.captions {
                if let Some((used, _)) = &photo.caption {
                    let used = used.file_name().unwrap_or_default().display();
                    surplus.push(format!(
                        "{}: the caption of {} is {used}, and this is not used",
                        text.display(),
                        photo.name
                    ));
                } else if let Some(said) = captions::read(text)? {
                    photo.caption = Some((text.clone(), said));
                } else {
                    blank.push(format!("{} is blank, so there is no caption for {}", text.display(), photo.name));
                }
            }
        }
        self.warnings.extend(first_few(blank, "captions are blank"));
        self.warnings.extend(first_few(surplus, "captions are not used, because their photos have another"));
        self.warnings.extend(first_few(std::mem::take(&mut self.strays), "texts are the caption of no photo"));
        Ok(())
    }

    /// How many texts there are.
    pub fn texts(&self) -> usize {
        self.strays.len() + self.files.iter().map(|photo| photo.captions.len()).sum::<usize>()
    }
}

/// What is inside a folder, by name.
#[derive(Default)]
struct Inside {
    folders: Vec<PathBuf>,
    photos: Vec<PathBuf>,
    texts: Vec<PathBuf>,
}

fn entries(folder: &Path) -> std::io::Result<Inside> {
    let mut inside = Inside::default();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = lower_name(&path);
        let of_the_system = |names: &[&str]| names.contains(&name.as_str());
        if name.starts_with('.') || of_the_system(&CLUTTER) {
            continue;
        }
        if captions::is_caption(&path) {
            inside.texts.push(path);
        } else if path.is_dir() {
            if !of_the_system(&FOLDERS_OF_SYSTEMS) {
                inside.folders.push(path);
            }
        } else {
            inside.photos.push(path);
        }
    }
    inside.folders.sort();
    inside.photos.sort();
    inside.texts.sort();
    Ok(inside)
}

fn lower_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().to_lowercase()
}

/// A folder that is being listed.
struct Walk<'a> {
    root: &'a Path,
    /// Folders that were read or are not to be, by their true paths: links may lead back.
    read: BTreeSet<PathBuf>,
    listed: PhotoFiles,
}

impl Walk<'_> {
    /// Takes the files of a folder and goes into its folders.
    fn folder(&mut self, inside: Inside, repeats: usize, depth: usize) -> Result<()> {
        // Only what is a photo has a caption: notes.txt is not that of notes.csv.
        let (photos, others): (Vec<_>, Vec<_>) = inside.photos.into_iter().partition(|path| is_photo(path));
        let Matched { captions, strays } = Matched::of(&photos, &inside.texts);
        self.listed.strays.extend(strays);
        let without = std::iter::repeat_with(Vec::new);
        for (path, captions) in photos.into_iter().zip(captions).chain(others.into_iter().zip(without)) {
            let name = self.name(&path);
            self.listed.files.push(PhotoFile { path, name, repeats, caption: None, captions });
        }
        if self.listed.files.len() > MAX_FILES {
            return Err(Error::file(
                self.root,
                format!("holds more than {MAX_FILES} files with the folders inside it; name a folder of photos alone"),
            ));
        }
        for folder in inside.folders {
            self.folder_inside(&folder, repeats, depth + 1)?;
        }
        Ok(())
    }

    /// Reads a folder inside, or says why not.
    fn folder_inside(&mut self, folder: &Path, outer_repeats: usize, depth: usize) -> Result<()> {
        // It is for something else, or a link leads to it that was followed.
        if folder.canonicalize().is_ok_and(|real| !self.read.insert(real)) {
            return Ok(());
        }
        let found = NO_PHOTOS.iter().find(|name| folder.join(name).is_file());
        let why = match (repeats_of(folder), found, entries(folder)) {
            _ if depth > MAX_DEPTH => format!("{} is more than {MAX_DEPTH} folders deep", folder.display()),
            (_, Some(found), _) => {
                format!("{} contains {found}, so it is a run's or a model's folder", folder.display())
            }
            (Some(0), ..) => format!("{} asks for 0 repeats", folder.display()),
            (_, _, Err(source)) => Error::io("read", folder, source).to_string(),
            (Some(year), _, Ok(inside)) if year > MAX_REPEATS => {
                let text = format!(
                    "{}: its name asks for more than {MAX_REPEATS} repeats and is not taken for them",
                    folder.display()
                );
                self.listed.warnings.push(text);
                return self.folder(inside, outer_repeats, depth);
            }
            (own, _, Ok(inside)) => return self.folder(inside, own.unwrap_or(outer_repeats), depth),
        };
        self.listed.warnings.push(format!("{why}; it is left out"));
        Ok(())
    }

    /// kohya's folder of `img` and `reg` has photos of the subject in one and of its class in the other.
    fn refuse_kohyas_parent(&self, inside: &Inside) -> Result<()> {
        let unread = |path: &&PathBuf| path.canonicalize().map_or(true, |real| !self.read.contains(&real));
        let called = |name: &str| inside.folders.iter().filter(unread).find(|path| lower_name(path) == name);
        let (Some(img), Some(reg)) = (called("img"), called("reg")) else { return Ok(()) };
        Err(Error::file(
            self.root,
            format!(
                "holds photos of a subject in img and of its class in reg, as kohya's trainer has them; give ⟨instance_data_dir⟩ {} \
                 and, with ⟨with_prior_preservation⟩, ⟨class_data_dir⟩ {}",
                img.display(),
                reg.display()
            ),
        ))
    }

    /// A path from the folder that was named, as a text.
    fn name(&self, path: &Path) -> String {
        let inside = path.strip_prefix(self.root).unwrap_or(path);
        let names: Vec<_> = inside.iter().map(|name| name.to_string_lossy()).collect();
        names.join("/")
    }
}

/// Whether a file's name or its beginning is an image's.
fn is_photo(path: &Path) -> bool {
    ImageFormat::from_path(path).is_ok() || photo_decoding::looks_like_an_image(path)
}

/// The number before the first underscore of a folder's name.
fn repeats_of(folder: &Path) -> Option<usize> {
    let name = folder.file_name()?.to_string_lossy();
    let (number, _) = name.split_once('_')?;
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| number.parse().unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, if is_caption(file) { "a caption" } else { "a photo" }).unwrap();
        }
        folder
    }

    fn is_caption(file: &str) -> bool {
        captions::is_caption(Path::new(file))
    }

    fn names(listed: &PhotoFiles) -> Vec<(&str, usize)> {
        listed.files.iter().map(|file| (file.name.as_str(), file.repeats)).collect()
    }

    #[test]
    fn folders_inside_are_read_with_the_repeats_of_their_names() {
        let folder = tree(&[
            "b.png",
            "10_sks dog/a.png",
            "10_sks dog/near/c.png",
            "more/a.png",
            "0_none/a.png",
            "2024_may/a.png",
        ]);
        let listed = PhotoFiles::list(folder.path(), &[]).unwrap();
        let expected = [
            ("10_sks dog/a.png", 10),
            ("10_sks dog/near/c.png", 10),
            ("2024_may/a.png", 1),
            ("b.png", 1),
            ("more/a.png", 1),
        ];
        assert_eq!(names(&listed), expected);
        assert_eq!(listed.warnings.len(), 2, "{:?}", listed.warnings);
        assert!(listed.warnings[0].contains("0_none asks for 0 repeats"), "{:?}", listed.warnings);
        assert!(
            listed.warnings[1].contains("2024_may: its name asks for more than 1000 repeats"),
            "{:?}",
            listed.warnings
        );
        let numbers = ["10_dog", "x_10", "10", "_10", "1 0_dog", "99999999999999999999999_dog"];
        let repeats = numbers.map(|name| repeats_of(Path::new(name)));
        assert_eq!(repeats, [Some(10), None, None, None, None, Some(usize::MAX)]);
    }

    #[test]
    fn what_is_no_folder_of_photos_is_not_read() {
        let deep = "1/2/3/4/5/6/7/8/9/deep.png";
        let folder = tree(&[
            "a.png",
            "Thumbs.db",
            ".hidden/b.png",
            "__MACOSX/c.png",
            "@eaDir/a.png/d.png",
            "run/run.json",
            "run/samples/e.png",
            deep,
            "class/f.png",
        ]);
        std::os::unix::fs::symlink(folder.path(), folder.path().join("loop")).unwrap();
        std::os::unix::fs::symlink("nowhere", folder.path().join("dangling")).unwrap();
        let listed = PhotoFiles::list(folder.path(), &[&folder.path().join("class"), Path::new("/nowhere")]).unwrap();
        assert_eq!(names(&listed), [("a.png", 1), ("dangling", 1)]);
        assert_eq!(listed.warnings.len(), 2, "{:?}", listed.warnings);
        assert!(listed.warnings.iter().any(|text| text.contains("more than 8 folders deep")), "{:?}", listed.warnings);
        assert!(listed.warnings.iter().any(|text| text.contains("run contains run.json")), "{:?}", listed.warnings);
    }

    #[test]
    fn kohyas_folder_of_both_is_refused_with_the_flags_and_read_where_one_is_known() {
        let folder = tree(&["img/10_sks dog/a.png", "reg/1_dog/b.png"]);
        let error = PhotoFiles::list(folder.path(), &[]).unwrap_err().to_string();
        assert!(error.contains("⟨instance_data_dir⟩") && error.contains("⟨class_data_dir⟩"), "{error}");
        let listed = PhotoFiles::list(folder.path(), &[&folder.path().join("reg")]).unwrap();
        assert_eq!(names(&listed), [("img/10_sks dog/a.png", 10)]);
    }

    #[test]
    fn blank_surplus_and_stray_captions_are_named_and_many_are_counted() {
        let folder = tree(&["a.png", "a.txt", "a.caption", "b.png", "b.txt", "b.caption", "notes.csv", "notes.txt"]);
        fs::write(folder.path().join("a.txt"), "\u{feff} \n").unwrap();
        let mut listed = PhotoFiles::list(folder.path(), &[]).unwrap();
        assert_eq!(listed.texts(), 5);
        listed.read_captions().unwrap();
        assert_eq!(listed.files[0].caption, Some((folder.path().join("a.caption"), "a caption".to_owned())));
        let says = ["a.txt is blank", "b.caption: the caption of b.png is b.txt", "notes.txt: belongs to no photo"];
        assert_eq!(listed.warnings.len(), says.len(), "{:#?}", listed.warnings);
        for (warning, says) in listed.warnings.iter().zip(says) {
            assert!(warning.contains(says), "{warning}");
        }
        let lines = |count: usize| first_few((0..count).map(|i| i.to_string()).collect(), "lines");
        assert_eq!(lines(6).len(), 6);
        assert_eq!(lines(7).last().unwrap(), "and 2 more lines");
    }
}
