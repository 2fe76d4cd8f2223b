//! The name of an output folder where none is given: from what a run learns, and the date.

use super::utc_time::UtcTime;
use crate::train::data_parallel::Ranks;
use std::path::{Path, PathBuf};

/// Characters of a name before the date.
const LONGEST: usize = 48;

/// `a-photo-of-sks-dog-2026-11-26` of the working folder for `words` "a photo of sks dog", or of a name where they have no
/// letters; numbered where it is taken.
pub(in crate::recipes) fn free_folder(words: &str, without_letters: &str) -> PathBuf {
    let slug = slug(words);
    let name = if slug.is_empty() { without_letters } else { &slug };
    free(&format!("{name}-{}", UtcTime::now().date()), Path::new(""))
}

/// The name of a run's folder; one that its launcher started again goes on in the folder that it had.
pub(in crate::recipes) fn folder(words: &str, without_letters: &str, ranks: &Ranks) -> PathBuf {
    let last = (ranks.restarts() > 0).then(|| last_folder(words, without_letters)).flatten();
    last.unwrap_or_else(|| free_folder(words, without_letters))
}

/// The one before [`free_folder`].
fn last_folder(words: &str, without_letters: &str) -> Option<PathBuf> {
    let free = free_folder(words, without_letters);
    let name = free.to_str()?;
    let before = match name.rsplit_once('-').map(|(name, number)| (name, number.parse::<u64>())) {
        // The date's day is no number behind it.
        Some((name, Ok(number))) if number >= 2 && Path::new(name).exists() => match number {
            2 => name.to_owned(),
            number => format!("{name}-{}", number - 1),
        },
        _ => return None,
    };
    Some(before.into())
}

/// The first of `NAME`, `NAME-2`, … that is not in `folder`.
fn free(name: &str, folder: &Path) -> PathBuf {
    let numbered = (2..).map(|number| folder.join(format!("{name}-{number}")));
    let names = std::iter::once(folder.join(name)).chain(numbered);
    names.into_iter().find(|path| std::fs::symlink_metadata(path).is_err()).unwrap_or_else(|| folder.join(name))
}

/// Letters and digits of `text` in lower case, its words joined by dashes and as many of them as fit.
fn slug(text: &str) -> String {
    let lower = text.to_lowercase();
    let mut slug = String::new();
    for word in lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        if !slug.is_empty() && slug.chars().count() + 1 + word.chars().count() > LONGEST {
            break;
        }
        if !slug.is_empty() {
            slug.push('-');
        }
        slug.extend(word.chars().take(LONGEST));
    }
    slug
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_words_and_no_path() {
        for (text, expected) in [
            ("a photo of sks dog", "a-photo-of-sks-dog"),
            ("  <sks> DOG, ../../etc ", "sks-dog-etc"),
            ("ein Foto von Bär", "ein-foto-von-bär"),
            ("--- / ...", ""),
            (
                "a very long prompt that says everything about a dog there is to say",
                "a-very-long-prompt-that-says-everything-about-a",
            ),
        ] {
            assert_eq!(slug(text), expected);
        }
        assert_eq!(slug(&"x".repeat(300)).len(), LONGEST);
    }

    #[test]
    fn a_taken_name_is_numbered() {
        let folder = tempfile::tempdir().unwrap();
        for expected in ["dog", "dog-2", "dog-3"] {
            let path = free("dog", folder.path());
            assert_eq!(path, folder.path().join(expected));
            std::fs::create_dir(path).unwrap();
        }
    }
}
